"""Interventions do what they say, and leave nothing behind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import zoo

import workbench
from probes.routing import RoutingTracer, effects, intervene
from probes.routing.costs import document_nll
from workbench.anatomy.moe import record
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins
from workbench.testing import CHECKS, check_reader


@pytest.fixture(scope="module")
def model():
    return twins.planted()


IDS = torch.tensor([[5, 9, 40, 77, 100, 12]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.module(input_ids=IDS).logits


def block_output(model, block: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, gate logits and output of a block's mixture, by hooks of the test's own."""
    kept = {}
    part = model.module.model.layers[block].mlp
    handle = part.register_forward_hook(lambda m, a, out: kept.update(x=a[0][0], out=out[0]))
    logits(model)
    handle.remove()
    return kept["x"], kept["x"] @ part.gate.weight.T, kept["out"]


def by_hand(model, x, index, weight, block: int = 1) -> torch.Tensor:
    experts = model.module.model.layers[block].mlp.experts
    out = torch.zeros_like(x)
    with torch.no_grad():
        for t in range(len(x)):
            for e, w in zip(index[t].tolist(), weight[t], strict=True):
                gate, up = (experts.gate_up_proj[e] @ x[t]).chunk(2)
                out[t] += w * (experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    return out


def test_dropped_experts_are_lost_and_the_others_make_up_for_them(model):
    x, scores, _ = block_output(model)
    weight, index = scores.softmax(1).topk(2, 1)
    dropped = sorted({int(index[0, 0]), int(index[3, 1])})
    held = ~torch.isin(index, torch.tensor(dropped))
    for renormalise in (False, True):
        left = weight * held
        if renormalise:
            left = torch.where(
                left.sum(1, keepdim=True) > 0, left * weight.sum(1, keepdim=True) / left.sum(1, keepdim=True), left
            )
        with intervene(model, drop={1: dropped}, renormalise=renormalise):
            _, _, out = block_output(model)
        torch.testing.assert_close(out, by_hand(model, x, index, torch.nan_to_num(left)), atol=1e-5, rtol=1e-4)


def test_forced_experts_get_the_weights_of_the_choice_rank_by_rank(model):
    x, scores, _ = block_output(model)
    weight = scores.softmax(1).topk(2, 1).values
    with intervene(model, force={1: [6, 3]}):
        _, _, out = block_output(model)
    torch.testing.assert_close(out, by_hand(model, x, torch.tensor([[6, 3]] * len(x)), weight), atol=1e-5, rtol=1e-4)


def test_steering_adds_to_the_score_before_the_models_own_choice(model):
    x, scores, _ = block_output(model)
    moved = scores.clone()
    moved[:, 7] += 4.0
    weight, index = moved.softmax(1).topk(2, 1)
    with intervene(model, steer={1: {7: 4.0}}):
        _, _, out = block_output(model)
    torch.testing.assert_close(out, by_hand(model, x, index, weight), atol=1e-4, rtol=1e-3)


def test_only_the_rows_asked_for_change(model):
    plain = block_output(model)[2]
    rows = torch.tensor([False, False, True, False, False, False])
    with intervene(model, force={1: [6, 3]}, rows=rows):
        out = block_output(model)[2]
    assert not torch.allclose(out[2], plain[2])
    torch.testing.assert_close(out[~rows], plain[~rows])


def test_the_tracer_sees_the_routing_as_it_was_changed(model):
    with intervene(model, force={1: [6, 3]}):
        data = workbench.read(model, IDS.tolist(), RoutingTracer(), progress=False).data
    assert data["usage_count"].values[0, 1].tolist() == [0, 0, 0, 6, 0, 0, 6, 0]


TEXTS = [[5, 9, 40, 77, 100, 12], [9, 8, 33], [60, 9, 61, 62, 9]]


def applied(model, block: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and weights that a block's experts were given, as the tests' own prompt passes."""
    with record(model.module) as found:
        logits(model)
    return found[model.moe[block].name][0]


def test_replaced_slots_go_to_others_with_their_weights(model):
    x, scores, _ = block_output(model)
    weight, index = scores.softmax(1).topk(2, 1)
    named = sorted({*index[0].tolist(), int(index[2, 1])})  # all of the first token's, and one of another's
    with intervene(model, replace={1: named}, seed=3):
        new, kept = applied(model)
        _, _, out = block_output(model)
    moved = torch.isin(index, torch.tensor(named))
    torch.testing.assert_close(kept, weight)
    assert torch.equal(new[~moved], index[~moved])
    assert not torch.isin(new, torch.tensor(named)).any()
    assert (new[:, 0] != new[:, 1]).all()
    torch.testing.assert_close(out, by_hand(model, x, new, weight), atol=1e-5, rtol=1e-4)


def test_random_routes_have_as_many_experts_and_the_same_weights(model):
    x, scores, _ = block_output(model)
    weight = scores.softmax(1).topk(2, 1).values
    with intervene(model, force={1: "random"}):
        new, kept = applied(model)
        _, _, out = block_output(model)
    torch.testing.assert_close(kept, weight)
    assert (new[:, 0] != new[:, 1]).all()
    torch.testing.assert_close(out, by_hand(model, x, new, weight), atol=1e-5, rtol=1e-4)


def test_slots_of_identity_experts_cost_nothing_and_stay():
    longcat = workbench.load(zoo.build("longcat_flash"))
    layer, ids = longcat.moe[0], torch.arange(3, 60)[None]
    seen = []
    for change in ({}, {"force": {0: "random"}}):
        with intervene(longcat, **change), record(longcat.module) as found, torch.no_grad():
            longcat.module(input_ids=ids)
        seen.append(found[layer.name][0].index)
    identity = seen[0] >= layer.n_experts
    assert identity.any()
    assert torch.equal(seen[1] >= layer.n_experts, identity)
    assert not torch.equal(seen[1], seen[0])


def test_random_choices_are_even_and_differ_by_seed_and_block(model):
    texts, _ = twins.documents(60, languages=False, tokens=40)
    seen = {}
    for seed in (0, 1):
        with intervene(model, force={0: "random", 1: "random"}, seed=seed):
            seen[seed] = workbench.read(model, texts, RoutingTracer(trace=True), progress=False).data
    share = seen[0]["usage_count"].values[0] / (60 * 40 * 2)
    # 4800 slots: one eighth, give or take 3.5 standard errors.
    assert (abs(share - 1 / 8) < 3.5 * (1 / 8 * 7 / 8 / 4800) ** 0.5).all()
    first = [seen[s]["expert_id"].values[:, b, :, 0] for s, b in ((0, 0), (0, 1), (1, 0))]
    for a, b in itertools.combinations(first, 2):
        assert abs((a == b).mean() - 1 / 8) < 0.03


@pytest.mark.parametrize("change", ["replace", "random", "jitter", "rows"])
def test_neither_batch_nor_padding_side_changes_what_happens_to_a_token(model, change):
    settings = {
        "replace": {"replace": {0: [1, 2], 1: [2, 3, 4]}},
        "random": {"force": {1: "random"}},
        "jitter": {"jitter": 0.5},
        "rows": {"drop": {0: [0, 1, 2, 3], 1: [0, 1, 2]}, "rows": lambda ids: (ids == 9) | (ids % 4 == 0)},
    }[change]  # fmt: skip
    run = ("again", "batches", "padding", "memory")  # what is drawn depends on a prompt's number
    with intervene(model, **settings):
        check_reader(RoutingTracer(trace=True), model, TEXTS, skip=[c for c in CHECKS if c not in run])
        alone = document_nll(model, TEXTS, batch_size=1)[0]
        np.testing.assert_allclose(document_nll(model, TEXTS)[0], alone, rtol=1e-4)
    assert abs(alone - document_nll(model, TEXTS)[0]).max() > 1e-4


def test_a_function_of_the_tokens_says_which_are_changed(model):
    asked = []

    def nines(ids):
        asked.append(ids.clone())
        return ids == 9

    def heard(**settings):
        reading = workbench.read(model, TEXTS, RoutingTracer(trace=True), progress=False, **settings)
        return reading.data["expert_id"].values[:, 1]

    plain = heard()
    for side in ("right", "left"):
        with intervene(model, force={1: [6, 3]}, rows=nines):
            ids = heard(padding_side=side)
        # Each prompt from column 0 on, longest first, and -1 where there is no token.
        assert asked[-1].tolist() == [TEXTS[0], [*TEXTS[2], -1], [*TEXTS[1], -1, -1, -1]]
        for p, text in enumerate(TEXTS):
            for t, token in enumerate(text):
                assert sorted(ids[p, t]) == ([3, 6] if token == 9 else sorted(plain[p, t]))
    # A function that says yes to pads, too, does not reach them.
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    seen = []
    for rows in (lambda ids: ids < -1, lambda ids: ids < 999):
        with intervene(model, force={0: [6, 3]}, rows=rows), record(model.module) as found, torch.no_grad():
            model.module(input_ids=torch.tensor([[0, 0, 5, 9], [9, 8, 33, 40]]), attention_mask=mask)
        seen.append(found[model.moe[0].name][0].index)
    assert (seen[1][mask.flatten() == 1].sort(1).values == torch.tensor([3, 6])).all()
    assert torch.equal(seen[1][mask.flatten() == 0], seen[0][mask.flatten() == 0])
    with (
        pytest.raises(InputError, match=r"gave torch.int64 \[3, 6\]"),
        intervene(model, drop={1: [1]}, rows=lambda i: i),
    ):
        heard()
    with (
        pytest.raises(InputError, match="without input_ids"),
        intervene(model, replace={1: [1]}),
        torch.no_grad(),
    ):
        model.module(inputs_embeds=torch.zeros(1, 3, twins.WIDTH))


def test_jitter_reaches_the_router_alone_and_by_no_more_than_its_width(model):
    texts, _ = twins.documents(8, languages=True, tokens=30)
    seen: dict[str, list[torch.Tensor]] = {"gate": [], "experts": []}
    mlp = model.module.model.layers[0].mlp
    handles = []
    with intervene(model, jitter={0: 0.25}):
        for name, kept in seen.items():
            part = getattr(mlp, name)
            handles.append(part.register_forward_pre_hook(lambda m, a, kept=kept: kept.append(a[0].detach().clone())))
        document_nll(model, texts)
    for handle in handles:
        handle.remove()
    noise = seen["gate"][0].reshape(-1) / seen["experts"][0].reshape(-1) - 1
    assert float(noise.abs().max()) <= 0.25 + 1e-5
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(0.25 / 3**0.5, rel=0.02)
    plain = document_nll(model, texts)[0]
    with intervene(model, jitter=0.0):
        np.testing.assert_array_equal(document_nll(model, texts)[0], plain)
    with intervene(model, jitter=0.5, rows=lambda ids: torch.zeros_like(ids, dtype=torch.bool)):
        np.testing.assert_array_equal(document_nll(model, texts)[0], plain)
    with intervene(model, jitter=0.5):
        assert abs(document_nll(model, texts)[0] - plain).max() > 1e-3


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(model, fails):
    before = logits(model)
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.module.modules())
    try:
        with intervene(model, drop={0: [1], 1: [2]}, replace={0: [2]}, steer={0: {3: 1.0}}, jitter=0.1):
            assert not torch.equal(logits(model), before)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(logits(model), before)
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.module.modules()) == hooks


def test_what_cannot_be_done_says_why(model):
    with pytest.raises(InputError, match="experts 0 to 7, and not 8"), intervene(model, drop={1: [8]}):
        pass
    for change, says in (
        ({"force": {1: [3]}}, "each token 2 experts and force names 1"), ({"force": {1: "rand"}}, "use 'random'"),
        ({"force": {1: [3, 3]}}, "twice"), ({"drop": {1: 3}}, "Give a list"),
        ({"drop": {1: [1], -1: [2]}}, "named twice"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says), intervene(model, **change):
            pass
    load = workbench.read(model, TEXTS, RoutingTracer(), progress=False).data["usage_count"]
    for experts, loads, says in (
        ({1: [3]}, load, "must be a DataArray"), ({1: [3]}, load.sum("label").isel(block=[0]), "has the blocks"),
        ({1: 3}, None, "Give a list"), ({}, None, "nothing to drop"), ({1: [8]}, None, "and not 8"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            effects(model, {"claim": (TEXTS, experts)}, loads=loads, sets=2)
    with pytest.raises(InputError, match="fewer than the 2 slots"), intervene(model, replace={1: range(7)}):
        pass
    from tiny import tiny

    jet = workbench.load(zoo.build("jetmoe"))
    with pytest.raises(Refused, match="dropped, replaced or forced"), intervene(jet, replace={1: [1]}):
        pass
    hashed = workbench.load(zoo.build("deepseek_v4"))
    with pytest.raises(Refused, match="no router of its own"), intervene(hashed, jitter=0.1):
        pass
    dense = workbench.load(tiny("llama"))
    with pytest.raises(Refused, match="no routed experts"), intervene(dense, drop={0: [1]}):
        pass
    with pytest.raises(Refused, match="dense model"), intervene(dense, jitter=0.1):
        pass
    with pytest.raises(InputError, match="blocks is empty"):
        workbench.read(model, TEXTS, RoutingTracer(blocks=[]), progress=False)
