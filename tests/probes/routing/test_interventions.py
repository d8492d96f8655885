"""Interventions do what they say, cost what they should, and leave nothing behind."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import xarray as xr
import zoo

import workbench
from probes.routing import RoutingTracer, figures, intervene, interventions
from probes.routing.interventions import document_nll, effect, effects, regret
from workbench import stats
from workbench.anatomy.moe import record
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins
from workbench.reading import Reading
from workbench.stats import sign_flip_p
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


def test_nll_is_the_models_own_loss(model):
    texts, _ = twins.documents(5, languages=True, tokens=9)
    texts = [t[: 4 + i] for i, t in enumerate(texts)]
    nats, tokens = document_nll(model, texts)
    for i, ids in enumerate(texts):
        t = torch.tensor([ids])
        with torch.no_grad():
            loss = model.module(input_ids=t, labels=t).loss
        assert nats[i] / tokens[i] == pytest.approx(float(loss), rel=1e-4)


def test_other_sets_are_different_sets_matched_in_these_documents(model):
    """p of sets that were drawn again and again was 1 in 20 of what four sets can show."""
    texts, labels = twins.documents(16, languages=True, tokens=20)
    own = [t for t, label in zip(texts, labels, strict=True) if label == "L0"]
    count = workbench.read(model, own, RoutingTracer(), progress=False).data["usage_count"].sum("label").values
    found = effect(model, own, {-1: [0, 1]}, sets=20)
    assert json.loads(found.data.attrs["experts"]) == {"1": [0, 1]}
    # Of six others there are 15 pairs: all of them.
    costs, lost = [], []
    plain, tokens = document_nll(model, own)
    for pair in itertools.combinations(range(2, 8), 2):
        with intervene(model, drop={1: pair}):
            costs.append((document_nll(model, own)[0] - plain).sum() / tokens.sum())
        lost.append(count[1, list(pair)].sum())
    assert int(found["sets"]) == 15 and np.isnan(found["delta_random"].values[15:]).all()
    np.testing.assert_allclose(found["delta_random"].values[:15], costs, atol=1e-6)
    assert found["slots_random"].values[:15].tolist() == lost and float(found["slots"]) == count[1, :2].sum()
    reach = sum(c >= float(found["delta"]) for c in costs)
    assert float(found["p_random"]) == pytest.approx((1 + reach) / 16)
    assert float(found["excess"]) == pytest.approx(float(found["delta"]) - np.mean(costs), abs=1e-6)
    few = effect(model, own, {1: [0], 0: [1]}, sets=6)
    assert int(few["sets"]) == 6 and not np.isnan(few["delta_random"]).any()
    # The nearest in load of each half: the least alike is never it.
    mixed = twins.documents(8, languages=False, tokens=20)[0]
    load = workbench.read(model, mixed, RoutingTracer(), progress=False).data["usage_count"].sum("label")
    near = interventions._matched({1: [3]}, {1: load.values[1].astype(float)}, 6, np.random.default_rng(0))
    apart = np.abs(load.values[1] - load.values[1, 3])
    assert len(near) >= 4 and max(apart[x[1][0]] for x in near) == np.sort(np.delete(apart, 3))[3]
    table = effects(model, {"L0": (own, {1: [0, 1]}), "two": (own, {1: [0], 0: [1]})}, sets=20)
    assert table["sets"].values.tolist() == [15, 20]
    assert len(figures.forest(table).data) == 3


def test_an_effect_stands_beside_experts_of_the_same_load(model):
    texts, labels = twins.documents(16, languages=True, tokens=20)
    data = workbench.read(model, texts, RoutingTracer(labels), progress=False).data
    own = [t for t, label in zip(texts, labels, strict=True) if label == "L0"]
    loads = data["usage_count"].sum("label")
    found = effect(model, own, {1: twins.MAP["L0"]}, loads=loads, sets=3)
    plain = document_nll(model, own)
    with intervene(model, drop={1: twins.MAP["L0"]}):
        without = document_nll(model, own)
    assert float(found["delta"]) == pytest.approx((without[0] - plain[0]).sum() / plain[1].sum(), rel=1e-5)
    # Documents in L0 never reach the other languages' experts: dropping those costs nothing.
    np.testing.assert_allclose(found["delta_random"].values, 0, atol=1e-6)
    assert float(found["delta_low"]) <= float(found["delta"]) <= float(found["delta_high"])


def test_an_effect_stands_beside_other_routes_of_the_same_compute(model, monkeypatch):
    own = twins.documents(6, languages=False, tokens=12)[0]
    encoded = []
    encode = interventions.encode
    monkeypatch.setattr(interventions, "encode", lambda *a: encoded.append(1) or encode(*a))
    experts = {np.int64(1): np.array([0, 5])}
    found = effect(model, own, experts, sets=3, seed=7)
    assert len(encoded) == 1
    assert json.loads(found.data.attrs["experts"]) == {"1": [0, 5]}
    plain, tokens = document_nll(model, own)
    routes = []
    for i in range(3):
        with intervene(model, replace={1: [0, 5]}, seed=7 + i):
            routes.append((document_nll(model, own)[0] - plain).sum() / tokens.sum())
    np.testing.assert_allclose(found["delta_replaced"].values, routes, rtol=1e-5)
    assert float(found["replaced"]) == pytest.approx(np.mean(routes), rel=1e-5)
    assert float(found["replaced_low"]) <= float(found["replaced"]) <= float(found["replaced_high"])
    reach = (found["delta_random"].values >= float(found["delta"])).sum()
    assert float(found["p_random"]) == pytest.approx((1 + reach) / 4)


def test_the_sign_flip_is_the_share_of_all_flips():
    values = np.array([1.0, 2.0, -0.5, 3.0, 0.7, 1.1])
    flips = np.array(list(itertools.product([-1, 1], repeat=6)))
    exact = (abs(flips @ values) >= abs(values.sum()) - 1e-9).mean()
    assert sign_flip_p(values, 20000, 0) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(-values, 20000, 0) == pytest.approx(exact, abs=0.01)


def test_effects_are_one_table_with_the_false_discovery_rate(model, tmp_path):
    texts, labels = twins.documents(24, languages=True, tokens=20)
    claims = {
        name: ([t for t, label in zip(texts, labels, strict=True) if label == name], {1: twins.MAP[name]})
        for name in ("L0", "L1")
    }
    claims["not L0"] = (claims["L0"][0], {1: twins.MAP["L1"]})
    table = effects(model, claims, sets=2)
    assert table["claim"].values.tolist() == ["L0", "L1", "not L0"]
    one = effect(model, *claims["L1"], sets=2)
    for name in one.data.data_vars:
        np.testing.assert_array_equal(table[name].sel(claim="L1").values, one[name].values)
    assert json.loads(str(table["experts"].sel(claim="L1").item())) == {"1": [2, 3]}
    np.testing.assert_array_equal(table["q"].values, stats.fdr(table["p"].values))
    np.testing.assert_array_equal(table["q_random"].values, stats.fdr(table["p_random"].values))
    # Documents in L0 never reach the experts of L1: exactly nothing.
    assert float(table["delta"].sel(claim="not L0")) == float(table["replaced"].sel(claim="not L0")) == 0
    path = table.save(tmp_path / "claims.nc")
    assert workbench.open(path).data["experts"].values.tolist() == table["experts"].values.tolist()
    with pytest.raises(InputError, match="no claim"):
        effects(model, {})


def test_a_claim_is_backed_where_its_experts_are_missed_more_than_all_others(model, monkeypatch):
    none = np.nan
    made = {  # delta, delta_random, excess_low, p
        "missed": (0.3, [0.1, 0.2, none], 0.1, 0.001), "one set costs as much": (0.3, [0.1, 0.3, 0.2], 0.1, 0.001),
        "no excess": (0.3, [0.1, 0.2, 0.2], -0.01, 0.001), "of few documents": (0.3, [0.1, 0.2, 0.2], 0.1, 0.3),
        "missed as well": (0.02, [0.0, -0.1, 0.01], 0.001, 0.02),
    }  # fmt: skip

    def effect(model, inputs, experts):
        delta, draws, low, p = made[inputs]
        values = {"delta": delta, "delta_random": ("draw", draws), "excess_low": low, "p": p, "p_random": 0.5}
        return Reading(xr.Dataset(values, attrs={"documents": 9}))

    monkeypatch.setattr(interventions, "effect", effect)
    table = effects(model, {name: (name, {}) for name in made})
    assert table["backed"].dtype == bool
    assert table["claim"].values[table["backed"].values].tolist() == ["missed", "missed as well"]


def test_regret_is_what_random_routes_cost(model):
    texts, _ = twins.documents(5, languages=False, tokens=12)
    found = regret(model, texts, 1, routes=3, seed=2)
    plain, tokens = document_nll(model, texts)
    routes = []
    for i in range(3):
        with intervene(model, force={1: "random"}, seed=2 + i):
            routes.append(document_nll(model, texts)[0])
    assert float(found["nll"]) == pytest.approx(plain.sum() / tokens.sum())
    np.testing.assert_allclose(found["nll_random"].values, np.sum(routes, 1) / tokens.sum(), rtol=1e-5)
    assert float(found["regret"]) == pytest.approx((plain - np.mean(routes, 0)).sum() / tokens.sum(), abs=1e-6)
    assert float(found["regret_best"]) == pytest.approx((plain - np.min(routes, 0)).sum() / tokens.sum(), abs=1e-6)
    assert float(found["regret_low"]) <= float(found["regret"]) <= float(found["regret_high"])


def test_a_trained_router_chooses_better_than_chance():
    from workbench.organisms.polyglot.grammar import LANGUAGES, documents

    texts = [text for language in LANGUAGES for text in documents(4, language, 4242)]
    trained = workbench.load("organism:polyglot")
    found = regret(trained, texts, 3, routes=2)
    assert float(found["regret_high"]) < -0.2
    assert float(found["p"]) < 0.01
    with intervene(trained, jitter=2**-8):  # the rounding of bfloat16 costs next to nothing
        nats, tokens = document_nll(trained, texts)
    assert abs(nats.sum() / tokens.sum() - float(found["nll"])) < 0.002
