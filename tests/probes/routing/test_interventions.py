"""Interventions do what they say, cost what they should, and leave nothing behind."""

from __future__ import annotations

import numpy as np
import planted
import pytest
import torch

import workbench
from probes.routing import RoutingTracer, intervene
from probes.routing.interventions import document_nll, effect
from workbench.errors import InputError, Refused


@pytest.fixture(scope="module")
def model():
    return planted.model(planted=True)


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


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(model, fails):
    before = logits(model)
    hooks = sum(len(m._forward_pre_hooks) for m in model.module.modules())
    try:
        with intervene(model, drop={0: [1], 1: [2]}, steer={0: {3: 1.0}}):
            assert not torch.equal(logits(model), before)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(logits(model), before)
    assert sum(len(m._forward_pre_hooks) for m in model.module.modules()) == hooks


def test_what_cannot_be_done_says_why(model):
    with pytest.raises(InputError, match="experts 0 to 7, and not 8"), intervene(model, drop={1: [8]}):
        pass
    with pytest.raises(InputError, match="each token 2 experts and force names 1"), intervene(model, force={1: [3]}):
        pass
    from tiny import tiny

    with pytest.raises(Refused, match="no routed experts"), intervene(workbench.load(tiny("llama")), drop={0: [1]}):
        pass


def test_nll_is_the_models_own_loss(model):
    texts, _ = planted.documents(5, languages=True, tokens=9)
    texts = [t[: 4 + i] for i, t in enumerate(texts)]
    nats, tokens = document_nll(model, texts)
    for i, ids in enumerate(texts):
        t = torch.tensor([ids])
        with torch.no_grad():
            loss = model.module(input_ids=t, labels=t).loss
        assert nats[i] / tokens[i] == pytest.approx(float(loss), rel=1e-4)


def test_an_effect_stands_beside_experts_of_the_same_load(model):
    texts, labels = planted.documents(16, languages=True, tokens=20)
    data = workbench.read(model, texts, RoutingTracer(labels), progress=False).data
    own = [t for t, label in zip(texts, labels, strict=True) if label == "L0"]
    loads = data["usage_count"].sum("label")
    found = effect(model, own, {1: planted.MAP["L0"]}, loads=loads, draws=3)
    plain = document_nll(model, own)
    with intervene(model, drop={1: planted.MAP["L0"]}):
        without = document_nll(model, own)
    assert float(found["delta"]) == pytest.approx((without[0] - plain[0]).sum() / plain[1].sum(), rel=1e-5)
    # Documents in L0 never reach the other languages' experts: dropping those costs nothing.
    np.testing.assert_allclose(found["delta_random"].values, 0, atol=1e-6)
    assert float(found["delta_low"]) <= float(found["delta"]) <= float(found["delta_high"])
