"""What experts cost, beside which other sets, and when they are said to be missed."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr

import workbench
from probes.routing import RoutingTracer, costs, effect, effects, figures, intervene, regret
from probes.routing.costs import Costs, document_nll, judged
from probes.routing.matched import alike
from workbench import stats
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins

few = pytest.mark.filterwarnings("ignore:Too few sets")


@pytest.fixture(scope="module")
def model():
    return twins.planted()


def in_language(name: str, n: int = 16) -> list[list[int]]:
    texts, labels = twins.documents(n, languages=True, tokens=20)
    return [t for t, label in zip(texts, labels, strict=True) if label == name]


def test_nll_is_the_models_own_loss(model):
    texts, _ = twins.documents(5, languages=True, tokens=9)
    texts = [t[: 4 + i] for i, t in enumerate(texts)]
    nats, tokens = document_nll(model, texts)
    for i, ids in enumerate(texts):
        t = torch.tensor([ids])
        with torch.no_grad():
            loss = model.module(input_ids=t, labels=t).loss
        assert nats[i] / tokens[i] == pytest.approx(float(loss), rel=1e-4)


# ---------------------------------------------------------------- other sets


def test_experts_stand_for_each_other_within_a_caliper_of_load():
    load = {0: np.array([100.0, 51, 49, 200, 201, 0, 0, 99]), 2: np.array([10.0, 11, 90, 100])}
    assert alike({0: [0]}, load, 0.5).pools[0].members == (0, 1, 3, 7)
    assert alike({0: [5]}, load, 0.5).pools[0].members == (5, 6)
    assert alike({0: [0]}, load, 0.0).others == 0
    # Claimed experts that some expert may both stand for share a pool; others do not.
    assert [p.members for p in alike({2: [0, 3]}, load, 0.5).pools] == [(0, 1), (2, 3)]
    (pool,) = alike({0: [0, 3]}, load, 0.5).pools
    assert pool.members == (0, 1, 3, 4, 7) and pool.claimed == (0, 3)
    # Without a caliper: every set of as many in each block.
    family = alike({0: [0, 1], 2: [3]}, load, 1)
    assert family.others == math.comb(8, 2) * 4 - 1
    with pytest.raises(InputError, match="caliper=2"):
        alike({0: [0]}, load, 2)


@pytest.mark.parametrize("sets", [3, 8, 100])
def test_sets_are_drawn_evenly_and_once(sets):
    """Of 11 other sets: all of them, or as often each (chi squared, in 600 draws of some)."""
    load = {0: np.ones(4), 1: np.array([1.0, 1, 5])}
    family = alike({0: [1, 3], 1: [0]}, load, 0.5)
    every = {
        (pair, (one,)) for pair in itertools.combinations(range(4), 2) for one in (0, 1)
    } - {((1, 3), (0,))}
    count: Counter = Counter()
    for seed in range(600):
        drawn = [(tuple(own[0]), tuple(own[1])) for own in family.draw(sets, seed)]
        assert len(drawn) == len(set(drawn)) == min(sets, len(every)) and set(drawn) <= every
        count.update(drawn)
        if sets == 100:
            return
    expected = 600 * sets / len(every)
    assert sum((count[one] - expected) ** 2 / expected for one in every) < 29.6  # 99.9 % of chi squared with 10


def test_many_sets_are_drawn_evenly_where_they_are_not_listed():
    family = alike({0: [0, 1, 2]}, {0: np.ones(40)}, 0.5)
    drawn = family.draw(300, 1)
    assert len({tuple(own[0]) for own in drawn}) == 300
    count = np.bincount(np.concatenate([own[0] for own in drawn]), minlength=40)
    assert count.sum() == 900 and ((count - 22.5) ** 2 / 22.5).sum() < 75  # of 39, 99.9 %: 72; a little less variable
    assert family.draw(300, 1) == drawn != family.draw(300, 2)


@few
def test_other_sets_are_different_sets_matched_in_these_documents(model):
    """p of sets that were drawn again and again was 1 in 20 of what four sets can show."""
    own = in_language("L0")
    count = workbench.read(model, own, RoutingTracer(), progress=False).data["usage_count"].sum("label").values
    found = effect(model, own, {-1: [0, 1]}, sets=30, caliper=1, routes=2)
    assert json.loads(found.data.attrs["experts"]) == {"1": [0, 1]}
    # Of eight experts there are 28 pairs: all of them.
    plain, tokens = document_nll(model, own)
    cost, lost, shared = [], [], []
    for pair in itertools.combinations(range(8), 2):
        with intervene(model, drop={1: pair}):
            cost.append((document_nll(model, own)[0] - plain).sum() / tokens.sum())
        lost.append(count[1, list(pair)].sum())
        shared.append(len({0, 1} & {*pair}))
    assert float(found["delta"]) == pytest.approx(cost[0], abs=1e-6)
    assert int(found["sets"]) == int(found["possible"]) == 27
    assert np.isnan(found["delta_random"].values[27:]).all() and found["delta_random"].shape == (30,)
    np.testing.assert_allclose(found["delta_random"].values[:27], cost[1:], atol=1e-6)
    assert found["slots_random"].values[:27].tolist() == lost[1:] and float(found["slots"]) == lost[0]
    assert found["shared"].values[:27].tolist() == shared[1:]
    reach = sum(c >= cost[0] for c in cost[1:])
    assert float(found["p_random"]) == pytest.approx((1 + reach) / 28)
    assert float(found["p_random_least"]) == pytest.approx(1 / 28)
    assert float(found["excess"]) == pytest.approx(cost[0] - np.mean(cost[1:]), abs=1e-6)
    # Its documents reach no other expert: none is near in load, and nothing is said.
    none = effect(model, own, {1: [0, 1]}, routes=1)
    assert int(none["possible"]) == 0 and np.isnan(none["p_random"]) and np.isnan(none["excess"])
    assert float(none["delta"]) == pytest.approx(cost[0], abs=1e-6)
    # Each within the caliper of one that is claimed.
    mixed = twins.documents(8, languages=False, tokens=20)[0]
    load = workbench.read(model, mixed, RoutingTracer(), progress=False).data["usage_count"].sum("label")
    near = effect(model, mixed, {1: [3]}, caliper=0.3, routes=0)
    other = np.delete(load.values[1], 3)
    within = other[np.abs(other - load.values[1, 3]) <= 0.3 * np.maximum(other, load.values[1, 3])]
    assert sorted(near["slots_random"].values[: int(near["sets"])]) == sorted(within)
    table = effects(model, {"L0": (own, {1: [0, 1]}), "two": (own, {1: [0], 0: [1]})}, sets=30, caliper=1, routes=1)
    assert table["sets"].values.tolist() == [27, 30]
    assert [len(m.x) for m in figures.forest(table).plot.panels[0].marks[1:]] == [60, 2, 2]


@few
def test_an_effect_stands_beside_experts_of_the_same_load(model):
    texts, labels = twins.documents(16, languages=True, tokens=20)
    data = workbench.read(model, texts, RoutingTracer(labels), progress=False).data
    own = in_language("L0")
    loads = data["usage_count"].sum("label")
    found = effect(model, own, {1: [0]}, loads=loads, sets=7, routes=1)
    plain = document_nll(model, own)
    with intervene(model, drop={1: [0]}):
        without = document_nll(model, own)
    assert float(found["delta"]) == pytest.approx((without[0] - plain[0]).sum() / plain[1].sum(), rel=1e-5)
    # Documents in L0 never reach the other languages' experts: dropping those costs nothing.
    random = found["delta_random"].values[: int(found["sets"])]
    assert len(random) >= 4 and (np.abs(random) < 1e-6).sum() >= len(random) - 1
    assert float(found["delta_low"]) <= float(found["delta"]) <= float(found["delta_high"])


@few
def test_an_effect_stands_beside_other_routes_of_the_same_compute(model, monkeypatch):
    own = twins.documents(6, languages=False, tokens=12)[0]
    encoded = []
    encode = costs.encode
    monkeypatch.setattr(costs, "encode", lambda *a: encoded.append(1) or encode(*a))
    experts = {np.int64(1): np.array([0, 5])}
    found = effect(model, own, experts, sets=3, routes=3, seed=7)
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


# ---------------------------------------------------------------- tables


@few
def test_effects_are_one_table_with_the_false_discovery_rate(model, tmp_path):
    claims = {name: (in_language(name, 24), {1: twins.MAP[name]}) for name in ("L0", "L1")}
    claims["not L0"] = (claims["L0"][0], {1: twins.MAP["L1"]})
    table = effects(model, claims, sets=2, caliper=1)
    assert table["claim"].values.tolist() == ["L0", "L1", "not L0"]
    one = effect(model, *claims["L1"], sets=2, caliper=1)
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


def test_experts_that_are_routed_by_language_and_have_learned_nothing_are_not_backed(model):
    claims = {name: (in_language(name, 32), {1: twins.MAP[name]}) for name in twins.MAP}
    with pytest.warns(UserWarning, match=r"Too few sets for q_random.*'L0' \(27: at least 0.14\)"):
        table = effects(model, claims, caliper=1, routes=0, draws=200)
    assert not table["backed"].any() and (np.abs(table["delta"]) < 0.002).all()


def made(rng: np.random.Generator, own: float, others: float = 0.0, sets: int = 59, n: int = 20, **more) -> Costs:
    tokens = rng.integers(20, 60, n)
    noise = rng.normal(0, 2e-4, n)
    rows = np.array([others + rng.normal(0, 1e-4) + noise for _ in range(sets)]).reshape(sets, n)
    return Costs(tokens, (own + noise) * tokens, rows * tokens, np.zeros((0, n)), **more)


def test_a_star_needs_more_than_other_sets_and_more_than_the_smallest_effect():
    rng = np.random.default_rng(0)
    claims = {"missed": made(rng, 0.3), "small": made(rng, 8e-4), "as others": made(rng, 0.2, 0.2)}
    table = judged(claims, draws=200)
    assert table["backed"].dtype == bool and table["backed"].values.tolist() == [True, False, False]
    # The small one is above all other sets, and sure over documents.
    assert float(table["q_random"][1]) <= 0.05 and float(table["excess_low"][1]) > 0
    assert judged(claims, smallest=1e-4, draws=200)["backed"].values.tolist() == [True, True, False]
    assert not judged(claims, smallest=0.4, draws=200)["backed"].any()
    # Sure over documents alone says nothing of other sets.
    sure = judged({"as others": made(rng, 0.2, 0.2, n=40)}, draws=200, smallest=0)
    assert not sure["backed"].any()
    assert table.attrs["interval"].endswith("over 20 documents")


def test_a_table_says_where_no_claim_could_be_backed_by_itself():
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=r"p_random to reach 0.05. Give sets=19 for 'a' \(8: at least 0.11\)"):
        judged({"a": made(rng, 0.3, sets=8, possible=500)}, draws=50)
    pair = {"a": made(rng, 0.3, sets=19, possible=500), "b": made(rng, 0.3, sets=39, possible=60)}
    says = r"q_random of one of 2 claims to reach 0.05. Give sets=39 for 'a' \(19: at least 0.1\)\."
    with pytest.warns(UserWarning, match=says) as said:
        judged(pair, draws=50)
    assert "'b'" not in str(said[0].message)
    with pytest.warns(UserWarning, match=r"caliper holds no more for 'a' \(8: at least 0.11\): widen it"):
        judged({"a": made(rng, 0.3, sets=8, possible=8)}, draws=50)
    with pytest.warns(UserWarning, match="'a': no other experts of nearly that load"):
        table = judged({"a": made(rng, 0.3, sets=0)}, draws=50)
    assert np.isnan(table["p_random"][0]) and not table["backed"][0]


def test_documents_that_are_copies_count_as_one():
    rng = np.random.default_rng(3)
    tokens, each = rng.integers(20, 60, 12), rng.normal(0.1, 0.05, 12)
    nothing = np.zeros((0, 12))

    def told(copies: int, clusters: list[int] | None) -> xr.Dataset:
        t = np.repeat(tokens, copies)
        return Costs(t, np.repeat(each, copies) * t, np.zeros((1, 12 * copies)), nothing, clusters=clusters).told()

    once, said = told(1, None), told(4, np.repeat(np.arange(12), 4).tolist())
    for name in ("delta", "delta_low", "delta_high", "p"):
        assert float(once[name]) == pytest.approx(float(said[name]), rel=1e-9), name
    assert said.attrs["interval"] == "bootstrap-t over 12 clusters of documents"
    untold = told(4, None)
    assert float(untold["delta_high"] - untold["delta_low"]) < 0.7 * float(once["delta_high"] - once["delta_low"])


@few
def test_clusters_are_those_of_a_claims_documents(model):
    own = in_language("L0")
    claims = {"a": (own, {1: [0]}), "b": (own, {1: [1]})}
    table = effects(model, claims, sets=1, routes=0, caliper=1, clusters={"a": [0, 0, 1, 1]}, draws=50)
    assert table.data.attrs["interval"] == "t over 2 clusters of documents; t over 4 documents"
    # Near-duplicates are found.
    twice = effect(model, [*own, *own], {1: [0]}, sets=1, routes=0, caliper=1, draws=50)
    assert twice.data.attrs["interval"] == "t over 4 clusters of documents"
    assert twice.data.attrs["clusters"] == "8 of 8 documents are near-duplicates: 4 clusters"
    apart = regret(model, [*own, *own], 1, routes=1, clusters=False, draws=50)
    assert apart.data.attrs["interval"].endswith("over 8 documents")
    found = regret(model, [*own, *own], 1, routes=1, draws=50)
    assert found.data.attrs["interval"].endswith("over 4 clusters of documents")
    with pytest.raises(InputError, match="names the claim 'c'"):
        effects(model, claims, clusters={"c": [0]})
    with pytest.raises(InputError, match="2 labels for 4 documents"):
        effect(model, own, {1: [0]}, clusters=[0, 1])


# ---------------------------------------------------------------- an untrained twin


@few
def test_an_untrained_twin_stands_beside(model):
    own = in_language("L0")
    claims = {"L0": (own, {1: [0, 1]}), "other": (own, {1: [4]})}
    found = effects(model, claims, sets=2, routes=0, caliper=1, control="untrained", draws=50)
    twin = model.untrained()
    for name, (_, experts) in claims.items():
        plain, tokens = document_nll(twin, own)
        with intervene(twin, drop=experts):
            cost = (document_nll(twin, own)[0] - plain).sum() / tokens.sum()
        assert float(found["delta_untrained"].sel(claim=name)) == pytest.approx(cost, abs=1e-6)
    for name in ("delta", "excess"):
        assert found[f"{name}_untrained"].attrs["role"] == "null" and found[f"{name}_untrained"].attrs["of"] == name
    same = effect(model, own, {1: [0, 1]}, sets=2, routes=0, caliper=1, control=twin, draws=50)
    assert float(same["delta_untrained"]) == float(found["delta_untrained"][0])
    with pytest.raises(InputError, match="control='random' is unknown"):
        effects(model, claims, control="random")


@pytest.mark.filterwarnings("ignore:Too few sets")
def test_no_claim_is_backed_in_a_model_that_has_learned_nothing():
    from workbench.organisms.polyglot.grammar import documents

    twin = workbench.load("organism:polyglot").untrained()
    texts = documents(20, "a", 4242)
    reading = workbench.read(twin, texts, RoutingTracer(), progress=False)
    most = reading.data["usage_count"].sum("label").values.argmax(1)
    claims = {f"block {b}": (texts, {b: [int(e)]}) for b, e in enumerate(most)}
    table = effects(twin, claims, caliper=1, routes=0, draws=200)
    assert not table["backed"].any() and (np.abs(table["delta"]) < 0.01).all()


def test_an_untrained_model_is_the_same_architecture_with_other_weights():
    import transformers
    from tiny import tiny

    model = workbench.load(tiny("gemma2"), name="gemma")
    state = torch.get_rng_state()
    twin = model.untrained(seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert twin.name == "gemma, untrained" and type(twin.module) is type(model.module)
    assert twin.module.config.to_dict() == model.module.config.to_dict() and twin.dtype == model.dtype
    torch.manual_seed(3)
    by_hand = transformers.AutoModelForCausalLM.from_config(model.module.config)
    for (name, a), b in zip(twin.module.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert twin.fingerprint == model.untrained(seed=3).fingerprint != model.untrained().fingerprint
    assert workbench.load("organism:polyglot").untrained().tokenizer is not None

    class Own(transformers.LlamaForCausalLM):
        pass

    own = workbench.load(Own(tiny("llama").config).eval())
    with pytest.raises(Refused, match="builds a LlamaForCausalLM, and it is a Own"):
        own.untrained()
    model.quantization = "bitsandbytes 4bit"
    with pytest.raises(Refused, match="adapted or quantised"):
        model.untrained()


# ---------------------------------------------------------------- the router's own choice


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
    assert found.data.attrs["interval"] == "t over 5 documents"


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
