"""What is said of the gate and the load, against transformers' own losses and against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from scipy import stats as scipy_stats
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

import workbench
from probes.routing import RoutingTracer, measures
from probes.routing.tracer import GATE
from workbench.errors import InputError
from workbench.organisms.polyglot import twins

K, E = 2, twins.EXPERTS


@pytest.fixture(scope="module")
def read():
    """The planted model over uneven documents, and the gate's scores by transformers itself, document by document."""
    model = twins.planted()
    texts, labels = twins.documents(24, languages=True, tokens=30)
    texts = [t[: 6 + i] for i, t in enumerate(texts)]
    reading = workbench.read(model, texts, RoutingTracer(labels, trace=True, scores=True), batch_size=5, progress=False)
    scores = []
    with torch.no_grad():
        for ids in texts:
            out = model.module(input_ids=torch.tensor([ids]), output_router_logits=True)
            scores.append(torch.stack(out.router_logits).double())
    return reading, labels, scores


def test_statistics_of_the_gate_are_those_of_its_scores(read):
    reading, labels, scores = read
    for i, own in enumerate(scores):
        p = own.softmax(-1)
        top = p.sort(-1, descending=True).values
        expected = {
            "entropy": torch.special.entr(p).sum(-1), "top": top[..., 0], "margin": top[..., K - 1] - top[..., K],
            "chosen": top[..., :K].sum(-1), "log_sum_square": own.logsumexp(-1) ** 2, "moved": 0 * top[..., 0],
        }  # fmt: skip
        found = reading.data["document_gate"].values[i]
        for name, value in expected.items():
            np.testing.assert_allclose(found[:, GATE.index(name)], value.mean(1), rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(reading.data["document_probability"].values[i], p.mean(1), rtol=1e-4, atol=1e-6)
        length = own.shape[1]
        kept = reading.data["gate_probability"].values[i][:, :length]
        np.testing.assert_allclose(kept, p, atol=1e-3)
        assert np.isnan(reading.data["gate_probability"].values[i][:, length:]).all()
    table = measures.gate(reading, draws=50)
    mine = [own for own, label in zip(scores, labels, strict=True) if label == "L2"]
    p = torch.cat([own.softmax(-1) for own in mine], 1)
    share = torch.special.entr(p).sum(-1) / np.log(E)
    np.testing.assert_allclose(table["entropy_share"].sel(label="L2"), share.mean(1), rtol=1e-4)
    whole = torch.special.entr(p.mean(1)).sum(-1)
    information = whole - torch.special.entr(p).sum(-1).mean(1)
    np.testing.assert_allclose(table["information"].sel(label="L2"), information, atol=1e-5)
    lengths = torch.tensor([own.shape[1] for own in mine]).double()
    each = torch.stack([torch.special.entr(own.softmax(-1).mean(1)).sum(-1) for own in mine])
    between = whole - (each * lengths[:, None]).sum(0) / lengths.sum()
    np.testing.assert_allclose(table["document_information"].sel(label="L2"), between, atol=1e-5)
    assert (table["document_information"] <= table["information"] + 1e-9).all()
    counts, _ = np.histogram(share[1].clamp(0, 1 - 1e-9), bins=20, range=(0, 1))
    np.testing.assert_allclose(table["histogram"].sel(label="L2")[1], counts / counts.sum(), atol=0.02)
    assert (table["entropy_share_low"] <= table["entropy_share"]).all()


def test_balance_is_transformers_own_loss_block_by_block(read):
    reading, _, scores = read
    table = measures.balance(reading, draws=50)
    logits = [torch.cat([own[b] for own in scores]).float() for b in range(2)]
    for b in range(2):
        # Theirs adds the k slots, ours takes their share.
        theirs = float(load_balancing_loss_func((logits[b],), num_experts=E, top_k=K)) / K
        assert float(table["aux_loss"][b]) == pytest.approx(theirs, rel=1e-4)
        assert float(table["z_loss"][b]) == pytest.approx(float((logits[b].logsumexp(1) ** 2).mean()), rel=1e-4)
        assert float(table["aux_loss_low"][b]) <= theirs <= float(table["aux_loss_high"][b])
    pooled = float(load_balancing_loss_func(tuple(logits), num_experts=E, top_k=K)) / K
    assert float(table["aux_loss_pooled"]) == pytest.approx(pooled, rel=1e-4)
    with pytest.raises(InputError, match="scores=True"):
        measures.balance(workbench.read(twins.planted(), [[5, 6, 7]], RoutingTracer(), progress=False))


def test_uneven_blocks_that_even_out_are_hidden_by_pooling():
    """Two blocks that each use half of the experts, the other half each: balanced once pooled."""
    reading = workbench.read(twins.null(), [[5, 6]], RoutingTracer(scores=True), progress=False)
    data = reading.data.copy(deep=True)
    for b in range(2):
        half = np.arange(E) // (E // 2) == b
        data["document_count"][0, b] = half.astype(int)
        data["document_probability"][0, b] = half / half.sum()
    table = measures.balance(workbench.reading.Reading(data, {}), draws=5)
    assert table["aux_loss"].values.tolist() == [2, 2] and float(table["aux_loss_pooled"]) == pytest.approx(1)


def test_gini_and_the_rest_of_the_imbalance(read):
    reading, _, _ = read
    table = measures.usage(reading, draws=50)
    for i in range(4):
        for b in range(2):
            x = table["share"].values[i, b]
            gini = np.abs(x[:, None] - x[None]).mean() / (2 * x.mean())
            assert float(table["gini"][i, b]) == pytest.approx(gini)
            assert float(table["cv"][i, b]) == pytest.approx(x.std() / x.mean())
    weight = reading.data["usage_weight"].values
    np.testing.assert_allclose(table["weight_share"], weight / weight.sum(-1, keepdims=True), rtol=1e-5)
    assert (table["idle"] == 0).all() and (table["idle_high"] == 0).all()
    # The entropy that even loads show for want of slots is less than ln E, and corrected back to it.
    assert np.abs(table["entropy_null"] - np.log(E)).max() < 0.05


def test_what_a_bias_moves_is_counted_and_tied_to_the_load():
    """DeepSeek-V3: the top k of the scores is another set than the one applied; with no bias and one group it is it."""
    module = zoo.build("deepseek_v3")
    torch.manual_seed(1)
    biases = []
    for part in module.modules():
        if hasattr(part, "e_score_correction_bias"):
            part.e_score_correction_bias.copy_(3 * torch.randn_like(part.e_score_correction_bias))
            biases.append(part.e_score_correction_bias.numpy().copy())
    model = workbench.load(module)
    ids = [torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(6)]
    reading = workbench.read(model, ids, RoutingTracer(trace=True, scores=True), progress=False)
    table = measures.reordering(reading, model, draws=50)
    blocks = table["block"].values.tolist()
    routers = [model.module.get_submodule(model.moe[b].router) for b in blocks]
    seen: dict[int, list[torch.Tensor]] = {}
    handles = [
        r.register_forward_hook(lambda m, a, out, b=b: seen.setdefault(b, []).append(out[0].float()))
        for b, r in zip(blocks, routers, strict=True)
    ]
    with torch.no_grad():
        for own in ids:
            model.module(input_ids=torch.tensor([own]))
    for handle in handles:
        handle.remove()
    for i, b in enumerate(blocks):
        applied = reading.data["expert_id"].values[:, i].reshape(-1, model.moe[b].top_k)
        naive = torch.cat(seen[b]).topk(model.moe[b].top_k, 1).indices.numpy()
        moved = np.mean([len(set(a) - set(n)) / len(a) for a, n in zip(applied, naive, strict=True)])
        assert moved > 0.1
        assert float(table["moved"][0, i]) == pytest.approx(moved, abs=1e-9)
        load = reading.data["usage_count"].values[0, i]
        n = len(biases[i])
        np.testing.assert_allclose(table["bias"].values[i, :n], biases[i], rtol=1e-6)
        r = scipy_stats.spearmanr(biases[i], load[:n]).statistic
        assert float(table["bias_load"][i]) == pytest.approx(r) and 0 < float(table["bias_load_p"][i]) <= 1


def test_slots_that_reach_no_expert_are_told_apart():
    """LongCat's identity experts."""
    model = workbench.load(zoo.build("longcat_flash"))
    ids = [torch.randint(3, 90, (30,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(5)]
    reading = workbench.read(model, ids, RoutingTracer(trace=True), progress=False)
    table = measures.usage(reading, draws=50)
    for i, b in enumerate(table["block"].values):
        layer = model.moe[int(b)]
        slots = reading.data["expert_id"].values[:, i].reshape(-1, layer.top_k)
        assert layer.n_identity and (slots >= layer.n_experts).any()
        assert float(table["identity"][0, i]) == pytest.approx((slots >= layer.n_experts).mean())
        assert float(table["idle"][0, i]) == pytest.approx(((slots >= layer.n_experts) | (slots < 0)).mean())
        assert table["idle_low"][0, i] <= table["idle"][0, i] <= table["idle_high"][0, i]
