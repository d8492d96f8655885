"""What experts say and how loudly, against loops written out and against models whose experts say what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from tiny import tiny
from torch.nn import functional as F

import workbench
from probes.routing import intervene
from probes.routing.outputs import contributions, functional, token_clusters
from probes.routing.shared_experts import shared
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins

PROMPTS = [[5, 9, 40, 77, 60, 12, 33], [8, 9, 10, 11], [50, 51, 52, 53, 54]]


@pytest.fixture(scope="module")
def models():
    return {name: workbench.load(zoo.build(name), name=name) for name in ("olmoe", "qwen2_moe", "deepseek_v3")}


@pytest.fixture(scope="module")
def speaking():
    return _speaking()


def calls(model, block: int, ids: list[int]) -> dict:
    """What a block's mixture is given and gives, for one prompt alone, by hooks of the test's own."""
    kept, part = {}, model.blocks[block].mlp
    handles = [
        part.experts.register_forward_hook(
            lambda m, a, k, out: kept.update(x=a[0], index=a[1], weight=a[2], routed=out), with_kwargs=True
        ),
        part.register_forward_hook(lambda m, a, out: kept.update(whole=out.reshape(-1, out.shape[-1]))),
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return kept


def by_hand(experts, e: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = F.linear(x, experts.gate_up_proj[e]).chunk(2, -1)
    return F.linear(experts.act_fn(gate) * up, experts.down_proj[e]).detach()


@pytest.mark.parametrize("name", ["olmoe", "qwen2_moe", "deepseek_v3"])
def test_contributions_are_the_loop_over_tokens_and_slots(models, name):
    model = models[name]
    labels = ["a", "b", "a"]
    for batch_size in (None, 1):
        found = contributions(model, PROMPTS, labels, batch_size=batch_size)
        for block in found["block"].values:
            experts = model.blocks[block].mlp.experts
            mass, size, count = np.zeros((3, 2, found.data.sizes["expert"]))
            for ids, label in zip(PROMPTS, labels, strict=True):
                seen = calls(model, block, ids)
                for x, chosen, weights in zip(seen["x"], seen["index"], seen["weight"], strict=True):
                    for e, w in zip(chosen.tolist(), weights.tolist(), strict=True):
                        loud = float(by_hand(experts, e, x).norm())
                        mass["ab".index(label), e] += w * loud
                        size["ab".index(label), e] += loud
                        count["ab".index(label), e] += 1
            own = found.data.sel(block=block)
            np.testing.assert_array_equal(own["count"].values, count)
            np.testing.assert_allclose(own["total"].values, mass, rtol=1e-4)
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(own["reap"].values, mass / count, rtol=1e-4)
                np.testing.assert_allclose(own["norm"].values, size / count, rtol=1e-4)
    inside = (found["reap_low"] <= found["reap"] + 1e-9) & (found["reap"] <= found["reap_high"] + 1e-9)
    assert bool((inside | found["reap_low"].isnull()).all())
    assert found["reap_low"].sel(label="b").isnull().all()  # one document has no interval


def test_the_reading_follows_an_intervention_and_leaves_the_model_alone(models):
    model = models["olmoe"]
    with torch.no_grad():
        before = model.module(input_ids=torch.tensor(PROMPTS[:1])).logits
    with intervene(model, force={1: [3, 0]}):
        found = contributions(model, PROMPTS, blocks=[1])
    assert found["count"].values.tolist() == [[[16, 0, 0, 16]]]
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=torch.tensor(PROMPTS[:1])).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_half_precision_is_proved_too():
    model = workbench.load(zoo.build("olmoe"), dtype="bfloat16")
    assert int(contributions(model, PROMPTS)["count"].sum()) == 4 * 2 * 16


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_the_shared_expert_stands_beside_the_routed_ones(models, name):
    model = models[name]
    found = shared(model, PROMPTS)
    for block in found["block"].values:
        mlp = model.blocks[block].mlp
        own, routed, gates = [], [], []
        for ids in PROMPTS:
            seen = calls(model, block, ids)
            with torch.no_grad():
                if name == "qwen2_moe":
                    gate = mlp.shared_expert_gate(seen["x"]).sigmoid()
                    value = gate * mlp.shared_expert(seen["x"])
                    gates.append(gate[:, 0])
                else:
                    value = mlp.shared_experts(seen["x"])
            torch.testing.assert_close(value + seen["routed"], seen["whole"], rtol=1e-3, atol=1e-3)
            own.append(value.norm(dim=1))
            routed.append(seen["routed"].norm(dim=1))
        at = found.data.sel(block=block)
        assert float(at["shared"]) == pytest.approx(float(torch.cat(own).mean()), rel=1e-3)
        assert float(at["routed"]) == pytest.approx(float(torch.cat(routed).mean()), rel=1e-3)
        assert float(at["ratio"]) == pytest.approx(float(torch.cat(own).sum() / torch.cat(routed).sum()), rel=1e-3)
        assert float(at["ratio_low"]) <= float(at["ratio"]) <= float(at["ratio_high"])
        expected = float(torch.cat(gates).mean()) if gates else np.nan
        assert float(at["gate"]) == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_a_shared_expert_that_meets_the_routed_ones_in_the_block_itself():
    model = workbench.load(zoo.build("granitemoeshared"))
    found = shared(model, PROMPTS[:1], blocks=[0])
    kept, block = {}, model.blocks[0]
    handles = [
        getattr(block, n).register_forward_hook(lambda m, a, out, n=n: kept.update({n: out.reshape(-1, out.shape[-1])}))
        for n in ("shared_mlp", "block_sparse_moe")
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor(PROMPTS[:1]))
    for handle in handles:
        handle.remove()
    scale = block.residual_multiplier
    assert scale != 1
    for name, part in (("shared", "shared_mlp"), ("routed", "block_sparse_moe")):
        assert float(found[name][0]) == pytest.approx(scale * float(kept[part].norm(dim=1).mean()), rel=1e-3)


def _speaking(alike: bool = False) -> workbench.Model:
    """The planted model with experts that write towards the tokens of one group each, whatever they read."""
    model = twins.planted()
    torch.manual_seed(1)
    groups = torch.linalg.qr(torch.randn(twins.WIDTH, twins.EXPERTS)).Q.T
    table = model.module.lm_head.weight
    with torch.no_grad():
        table.copy_(groups[torch.arange(len(table)) % twins.EXPERTS] + 0.01 * torch.randn_like(table))
        for layer in model.module.model.layers:
            experts = layer.mlp.experts
            gate, _ = experts.gate_up_proj.chunk(2, 1)
            if alike:
                experts.gate_up_proj.copy_(experts.gate_up_proj[:1].clone().expand_as(experts.gate_up_proj) * 5)
                experts.down_proj.copy_(torch.randn_like(experts.down_proj[:1]).expand_as(experts.down_proj))
                continue
            # silu(g) * g is never below 0, so that an expert never writes away from its tokens.
            experts.gate_up_proj.copy_(torch.cat([gate, gate], 1))
            experts.down_proj.copy_(groups[:, :, None].expand_as(experts.down_proj))
    return workbench.load(model.module, name="speaking")


def test_experts_that_write_one_group_of_words_each_are_as_far_apart_as_can_be(speaking):
    texts, _ = twins.documents(12, languages=True, tokens=20)
    found = functional(speaking, texts, clusters=twins.EXPERTS, draws=50)
    assert len({tuple(np.flatnonzero(found["vocab_cluster"].values == c) % 8) for c in range(8)}) == 8
    slots = found["slot_count"].values
    assert (slots.sum(1) == 2 * 12 * 20).all()
    for i in range(2):
        share = slots[i] / slots[i].sum()
        # All of an expert's words fall in one cluster, whose share of the block's is the expert's share of slots.
        m = (1 + share) / 2
        entropy = -m * np.log(m) - (1 - share) / 2 * np.log(1 / 2)
        rest = np.array([-np.sum(np.delete(share, e) / 2 * np.log(np.delete(share, e))) for e in range(8)])
        expected = entropy + rest - (-np.sum(share * np.log(share))) / 2
        np.testing.assert_allclose(found["jsd"].values[i], expected, atol=1e-6)
        assert float(found["mean_jsd"][i]) == pytest.approx(float((share * expected).sum()), abs=1e-6)
    assert (found["mean_excess"].values > 0.3).all()
    assert found["mean_p"].values == pytest.approx(1 / 51)


def test_experts_that_are_alike_on_random_routes_differ_by_chance_only():
    model = _speaking(alike=True)
    texts, _ = twins.documents(40, languages=True, tokens=30)
    with intervene(model, force={0: "random", 1: "random"}):
        found = functional(model, texts, clusters=8, top=1)
    assert (found["mean_jsd"].values > 0).all()
    np.testing.assert_allclose(found["mean_jsd"].values, found["mean_jsd_null"].values, rtol=0.8)
    assert (abs(found["mean_excess"].values) < 0.003).all()
    # On their own routes they read other tokens, and so say other words.
    assert functional(model, texts, blocks=-1, clusters=8, top=1)["mean_excess"].item() > 0.05


def test_the_words_of_an_expert_are_the_logit_lens_of_its_output(models):
    model = models["olmoe"]
    found = functional(model, PROMPTS, blocks=[2], clusters=5, top=3)
    cluster = found["vocab_cluster"].values
    expected = np.zeros((4, 5), int)
    for ids in PROMPTS:
        seen = calls(model, 2, ids)
        for x, chosen in zip(seen["x"], seen["index"], strict=True):
            for e in chosen.tolist():
                out = by_hand(model.blocks[2].mlp.experts, e, x[None])
                with torch.no_grad():
                    logits = model.module.lm_head(model.module.model.norm(out))[0]
                np.add.at(expected[e], cluster[logits.topk(3).indices.numpy()], 1)
    np.testing.assert_array_equal(found["cluster_count"].values[0], expected)


def test_clusters_are_the_groups_that_rows_lie_in_and_do_not_depend_on_the_run(speaking):
    found = token_clusters(speaking, 8, seed=5)
    groups = torch.arange(len(found)) % 8
    assert len({(int(a), int(b)) for a, b in zip(groups, found, strict=True)}) == 8
    assert torch.equal(found, token_clusters(speaking, 8, seed=5))
    table = speaking.module.lm_head.weight
    own = table.detach().clone()
    try:
        with torch.no_grad():
            table += 30 * torch.ones(twins.WIDTH)  # what all rows have in common says nothing
        assert torch.equal(found, token_clusters(speaking, 8, seed=5))
    finally:
        table.data.copy_(own)
    with pytest.raises(InputError, match="clusters=500"):
        token_clusters(speaking, 500)


def test_what_cannot_be_seen_is_refused(models):
    with pytest.raises(Refused, match="no block has routed experts"):
        contributions(workbench.load(tiny("llama")), PROMPTS)
    with pytest.raises(Refused, match="no shared expert"):
        shared(models["olmoe"], PROMPTS)
    with pytest.raises(Refused, match="inside its router"):
        contributions(workbench.load(zoo.build("llama4_text")), PROMPTS)
    with pytest.raises(Refused, match="not what they are mixed to"):  # a norm stands behind the sum
        shared(workbench.load(zoo.build("axk1")), PROMPTS)
    with pytest.raises(InputError, match="2 and there are 3 documents"):
        contributions(models["olmoe"], PROMPTS, ["a", "b"])


def test_experts_whose_slots_do_not_add_up_are_refused(models):
    model = models["olmoe"]
    experts = model.blocks[1].mlp.experts
    handle = experts.register_forward_hook(lambda m, a, out: out * out)
    try:
        with pytest.raises(Refused, match="relative error"):
            contributions(model, PROMPTS, blocks=[1])
    finally:
        handle.remove()
