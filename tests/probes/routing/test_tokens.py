"""Tokens, experts and checkpoints beside each other, against loops and against routing that is made up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import zoo
from transformers import OlmoeForCausalLM

import workbench
from probes.routing import RoutingTracer, intervene, measures, trace
from probes.routing.measures.experts import together
from probes.routing.store import counted
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins
from workbench.reading import Reading

E, K = twins.EXPERTS, 2


@pytest.fixture(scope="module")
def found():
    texts, labels = twins.documents(40, languages=False, tokens=30)
    texts = [t[: 12 + i % 18] for i, t in enumerate(texts)]
    tracer = RoutingTracer(labels, trace=True, scores=True, pairs=True)
    return workbench.read(twins.null(), texts, tracer, progress=False)


def made(found: Reading, choose) -> Reading:
    """The reading with other experts: choose(ids [prompt, position], rng) -> [prompt, block, position, k]."""
    data = found.data.copy()
    ids = data["input_id"].values
    slots = choose(ids, np.random.default_rng(0))
    data["expert_id"] = (data["expert_id"].dims, np.where((ids >= 0)[:, None, :, None], slots, -1).astype(np.int16))
    return Reading(data, found.provenance)


def test_neighbours_and_repeats_by_loops(found):
    table = measures.consistency(found, draws=100)
    slots, ids = found.data["expert_id"].values, found.data["input_id"].values
    for b in range(2):
        near, any_, again = [], [], {}
        for p in range(40):
            own = [set(s) for s, i in zip(slots[p, b], ids[p], strict=True) if i >= 0]
            steps = [len(x & y) / K for x, y in itertools.pairwise(own)]
            near += steps
            pairs = [len(x & y) / K for x, y in itertools.permutations(own, 2)]
            any_.append((np.mean(pairs), len(steps)))
            for s, i in zip(slots[p, b], ids[p], strict=True):
                if i >= 0:
                    again.setdefault(int(i), []).append((p, set(s)))
        assert float(table["adjacent"][b]) == pytest.approx(np.mean(near))
        assert float(table["adjacent_null"][b]) == pytest.approx(
            np.average([x for x, _ in any_], weights=[n for _, n in any_])
        )
        value, weight = [], []
        for seen in again.values():
            pairs = [len(x & y) / K for (p, x), (q, y) in itertools.permutations(seen, 2) if p != q]
            if pairs:
                value.append(np.mean(pairs))
                weight.append(len(seen))
        assert float(table["again"][b]) == pytest.approx(np.average(value, weights=weight))
        everything = [s for seen in again.values() for s in seen]
        pairs = [len(x & y) / K for (p, x), (q, y) in itertools.permutations(everything, 2) if p != q]
        assert float(table["again_null"][b]) == pytest.approx(np.mean(pairs), abs=1e-9)
        assert table["adjacent_low"][b] < table["adjacent"][b] < table["adjacent_high"][b]
    assert table["uniform"].values.tolist() == [K / E, K / E]


def test_a_router_of_ids_and_a_router_of_nothing(found):
    by_id = made(found, lambda ids, rng: np.stack([ids % E, (ids + 1) % E], -1)[:, None].repeat(2, 1))
    at_random = made(found, lambda ids, rng: rng.random((*ids.shape[:1], 2, ids.shape[1], E)).argsort(-1)[..., :K])
    steady, loose = measures.consistency(by_id, draws=50), measures.consistency(at_random, draws=200)
    assert steady["again"].values.tolist() == [1, 1] and (steady["again_null"] < 0.4).all()
    assert np.abs(loose["again"] - K / E).max() < 0.02 and np.abs(loose["adjacent"] - K / E).max() < 0.03
    assert (loose["adjacent_low"] < loose["adjacent_null"]).all() and (
        loose["adjacent_null"] < loose["adjacent_high"]
    ).all()
    words = measures.vocabulary(by_id, least=10)
    assert words["specialisation"].values.tolist() == [1, 1] and (words["specialisation_low"] == 1).all()
    assert (words["specialisation_null"] < 0.7).all()
    # The next token's id says nothing of an expert, but for the topic of its document.
    other = measures.vocabulary(by_id, of="next", least=10)
    assert (other["specialisation"] < 0.75).all()
    own = found.data["input_id"].values
    np.testing.assert_allclose(measures.vocabulary(by_id, of=own, least=10)["share"], words["share"])
    with pytest.raises(InputError, match="shape \\(3,\\) are not one for each prompt"):
        measures.vocabulary(by_id, of=np.zeros(3, int))
    with pytest.raises(InputError, match="of='output' is unknown"):
        measures.vocabulary(by_id, of="output")


def test_variance_of_the_scores_splits_into_token_place_and_context(found):
    """Scores made of known parts: their shares come back, and shuffled ids explain nothing."""
    ids = found.data["input_id"].values
    real = ids >= 0
    rng = np.random.default_rng(0)
    position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    parts = [
        rng.standard_normal((200, E))[np.maximum(ids, 0)],
        rng.standard_normal((2, E))[(position >= np.median(position[real])).astype(int)],
        rng.standard_normal((*ids.shape, E)) * 0.7,
    ]
    p = np.where(real[..., None], torch.tensor(sum(parts)).softmax(-1).numpy(), np.nan)
    data = found.data.copy()
    dims = data["gate_probability"].dims
    data["gate_probability"] = (dims, p[:, None].repeat(2, 1).astype(np.float16))
    table = measures.context(Reading(data, {}), bins=2)
    power = [(x[real] - x[real].mean(1, keepdims=True)).var(0).sum() for x in parts]
    for name, share in zip(("by_token", "by_position", "by_context"), np.array(power) / sum(power), strict=True):
        assert np.abs(table[name] - share).max() < 0.05, name
    assert np.abs(table["by_token"] + table["by_position"] + table["by_context"] - 1).max() < 1e-9
    assert np.abs(table["by_token_null"]).max() < 0.04 and (table["by_token_raw"] > table["by_token"]).all()
    assert (table["by_token_low"] < table["by_token"]).all() and (table["by_token"] < table["by_token_high"]).all()
    with pytest.raises(InputError, match="trace=True, scores=True"):
        measures.context(Reading(data.drop_vars("gate_probability"), {}))


def test_loads_alone_make_experts_meet_as_often_as_conditional_draws_do():
    """Against all sets of k written out, with weights found by a plain optimiser's fixed point: brute force."""
    odds = np.array([3.0, 1.0, 0.5, 2.0, 0.1, 1.5])
    for k in (1, 2, 3):
        sets = list(itertools.combinations(range(6), k))
        mass = np.array([np.prod(odds[list(s)]) for s in sets])
        mass /= mass.sum()
        load, pair = np.zeros(6), np.zeros((6, 6))
        for s, m in zip(sets, mass, strict=True):
            load[list(s)] += m
            for a, b in itertools.permutations(s, 2):
                pair[a, b] += m
        np.testing.assert_allclose(together(load, k), pair, atol=1e-6)
    np.testing.assert_allclose(together(np.full(16, 4 / 16), 4)[0, 1:], 4 * 3 / (16 * 15), rtol=1e-9)


def test_coactivation_of_loads_alone_is_expected_and_a_bound_pair_is_not(found):
    weights = np.array([4, 3, 2, 2, 1, 1, 1, 0.5])

    def gumbel(ids, rng):
        return (np.log(weights) + rng.gumbel(size=(*ids.shape[:1], 2, ids.shape[1], E))).argsort(-1)[..., ::-1][..., :K]

    table = measures.coactivation(made(found, gumbel), draws=200)
    off = ~np.eye(E, dtype=bool)
    # Mean absolute log ratio: the sampling noise of some hundred tokens, and no bias.
    lift = table["lift"].values[:, off]
    lift = lift[np.isfinite(lift)]
    assert abs(np.median(lift)) < 0.25
    assert (table["pmi"].values[0, 0, 1:] < 0).mean() > 0.5  # what pmi takes for avoidance
    bound = measures.coactivation(
        made(found, lambda ids, rng: np.stack([ids % 4 * 2, ids % 4 * 2 + 1], -1)[:, None].repeat(2, 1))
    )
    assert (bound["given"].values[:, 0, 1] == 1).all() and (bound["phi"].values[:, 0, 1] > 0.99).all()
    assert (bound["lift"].values[:, 0, 1] > 1).all()
    # Counted in the pass, and counted from the tokens: the same.
    live, again = measures.coactivation(Reading(found.data.drop_vars("expert_id"), {})), measures.coactivation(found)
    np.testing.assert_allclose(live["given"], again["given"])
    assert np.isnan(live["given_low"]).all()
    real = ~np.isnan(again["given"].values)
    assert (again["given_low"].values[real] <= again["given"].values[real] + 1e-9).all()


def test_flow_and_paths_by_loops(found):
    table, routes = measures.flow(found, draws=50), measures.paths(found, top=5)
    slots, weight = found.data["expert_id"].values, found.data["expert_weight"].values
    first = np.take_along_axis(slots, np.nan_to_num(weight).argmax(-1)[..., None], -1)[..., 0]
    real = slots[:, 0, :, 0] >= 0
    a, b = first[:, 0][real], first[:, 1][real]
    joint = np.zeros((E, E))
    np.add.at(joint, (a, b), 1)
    np.testing.assert_allclose(
        table["follows"].values[0][joint.sum(1) > 0], (joint / joint.sum(1, keepdims=True).clip(1))[joint.sum(1) > 0]
    )
    p = joint / joint.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        mutual = np.nansum(p * np.log(p / (p.sum(1, keepdims=True) * p.sum(0, keepdims=True))))
    assert float(table["information"][0]) == pytest.approx(mutual)
    assert float(table["information_low"][0]) < mutual < float(table["information_high"][0]) + 0.1
    live = measures.flow(Reading(found.data.drop_vars("expert_id"), {}))
    np.testing.assert_allclose(live["information"], table["information"])
    values, counts = np.unique(np.stack([a, b], 1), axis=0, return_counts=True)
    assert int(routes["distinct"]) == len(values) and int(routes["count"][0]) == counts.max()
    share = counts / counts.sum()
    assert float(routes["entropy"]) == pytest.approx(-(share * np.log(share)).sum())
    # Two independent blocks have no routes of their own.
    assert float(routes["entropy_null"]) >= float(routes["entropy"]) - 0.02


def test_measures_of_tokens_are_the_same_from_a_trace_on_disk(tmp_path):
    model = twins.planted()
    texts, labels = twins.documents(24, languages=True, tokens=20)
    reading = workbench.read(model, texts, RoutingTracer(labels, trace=True, scores=True), progress=False)
    saved = trace(model, texts, tmp_path / "trace", labels=labels, progress=False)
    by_name = {
        "consistency": {}, "vocabulary": {"of": "next", "least": 5}, "coactivation": {}, "flow": {}, "paths": {},
        "overlap": {"permutations": 19},
    }  # fmt: skip
    for name, options in by_name.items():
        measure = getattr(measures, name)
        a, b = measure(reading, **options), measure(saved, **options)
        assert set(a.data.data_vars) - set(b.data.data_vars) <= {"text"}  # a trace on disk has ids alone
        for name in b.data.data_vars:
            np.testing.assert_allclose(a[name].values, b[name].values, atol=1e-6, err_msg=f"{measure.__name__} {name}")


def synthetic(seed: int, experts=(8, 16), k=(4, 4), identity=0, idle=0.0, documents=24, tokens=120) -> Reading:
    """Every token of every block goes to k of its experts (and identity ones) at random, or nowhere."""
    rng, blocks = np.random.default_rng(seed), len(experts)
    index = np.full((documents, blocks, tokens, max(k)), -1, np.int16)
    for b in range(blocks):
        index[:, b, :, : k[b]] = rng.random((documents, tokens, experts[b] + identity)).argsort(-1)[..., : k[b]]
    index[rng.random(index.shape) < idle] = -1
    weight = np.where(index >= 0, rng.random(index.shape) + 0.1, np.nan).astype(np.float16)
    shards = (
        {"document": np.full(tokens, i), "index": x.swapaxes(0, 1), "weight": w.swapaxes(0, 1)}
        for i, (x, w) in enumerate(zip(index, weight, strict=True))
    )
    labels = [f"L{i % 4}" for i in range(documents)]
    data = counted(shards, documents, labels, list(range(blocks)), experts, k).data
    one = ("prompt", "block", "position", "slot")
    data["expert_id"], data["expert_weight"] = (one, index), (one, weight)
    data["input_id"] = (one[::2], np.random.default_rng(7).integers(0, 20, (documents, tokens)))
    data["input_position"] = (one[::2], np.tile(np.arange(tokens), (documents, 1)))
    return Reading(data)


@pytest.mark.parametrize(
    "how", [{}, {"k": (2, 4)}, {"idle": 0.3}, {"identity": 8}, {"identity": 8, "idle": 0.2, "k": (3, 4)}]
)
def test_a_random_router_is_its_own_null_whatever_its_blocks_have(how):
    """Blocks of 8 and of 16 experts, slots that are idle, experts that are the identity: nulls are what is seen."""
    reading, other = synthetic(0, **how), synthetic(1, **how)
    experts = reading.data["expert_exists"].values.sum(1)
    pairs = measures.coactivation(reading, draws=20)
    for b, e in enumerate(experts):
        off = ~np.eye(e, dtype=bool)
        given = pairs["given"].values[b, :e, :e][off]
        assert given.mean() == pytest.approx(float(pairs["given_null"][b]), rel=0.03)
        assert given.mean() == pytest.approx(np.mean(pairs["expected"].values[b, :e, :e][off]), rel=0.03)
        assert abs(pairs["lift"].values[b, :e, :e][off].mean()) < 0.05
    words = measures.vocabulary(reading)
    assert np.abs(words["specialisation_excess"]).max() < 0.02
    assert (words["expert"].values.max(1) < experts).all()
    routes = measures.paths(reading, top=10**6)
    assert (routes["expert"].values.max(0) < experts).all()
    steady = measures.consistency(reading, draws=20)
    for name in ("adjacent", "adjacent_null", "again", "again_null"):
        np.testing.assert_allclose(steady[name], steady["uniform"], atol=0.015)
    kept = measures.saturation([other, reading], draws=10)
    np.testing.assert_allclose(kept["saturation"][0], kept["saturation_null"], atol=0.015)
    np.testing.assert_allclose(kept["saturation"][1], 1)
    shares = measures.specialisation(reading, draws=5)
    for b, e in enumerate(experts):
        assert shares["token_share"].values[:, b, :e].mean() == pytest.approx(float(shares["token_share_null"][b]))
    even = measures.usage(reading, draws=5)
    for b, e in enumerate(experts):
        share = even["share"].values[:, b, :e]
        outside = (share < even["band_low"].values[:, b, None]) | (share > even["band_high"].values[:, b, None])
        assert outside.mean() < 0.2
    np.testing.assert_allclose(even["entropy"], even["entropy_null"], atol=0.01)


def test_identity_experts_are_nobodys_strongest():
    """Counted in the pass and counted from the tokens: the same flow, of a model that has them."""
    model = workbench.load(zoo.build("longcat_flash"))
    ids = [torch.randint(3, 90, (30,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(6)]
    reading = workbench.read(model, ids, RoutingTracer(trace=True, pairs=True, scores=True), progress=False)
    assert (reading.data["expert_id"].values >= reading.data["expert_exists"].values.sum(1).max()).any()
    live = measures.flow(Reading(reading.data.drop_vars("expert_id"), {}))
    np.testing.assert_array_equal(measures.flow(reading)["follows"], live["follows"])
    # The gate is what it is among routed experts.
    table = measures.gate(reading, draws=20)
    assert (table["entropy_share"] <= 1 + 1e-6).all() and (table["information"] >= -1e-6).all()
    np.testing.assert_allclose(reading.data["usage_probability"].sum("expert"), 1, atol=1e-5)


def test_tokens_of_one_document_are_no_repeats_and_no_pairs_are_no_zero():
    own = synthetic(0, experts=(8,), k=(2,), documents=2)
    slots = own.data["expert_id"].values
    slots[0], slots[1] = slots[0] % 4, slots[1] % 4 + 4
    table = measures.consistency(own, draws=10)
    assert table["again"].values.tolist() == table["again_null"].values.tolist() == [0]
    alone = measures.consistency(synthetic(0, documents=6, tokens=1), draws=10)
    assert np.isnan(alone["adjacent"]).all() and np.isnan(alone["adjacent_null"]).all()
    many = [measures.consistency(synthetic(i, documents=40, tokens=15, k=(2, 2)), draws=10) for i in range(30)]
    held = [(x["again_low"] <= 2 / np.array([8, 16])) & (2 / np.array([8, 16]) <= x["again_high"]) for x in many]
    assert np.mean(held) > 0.85


def test_each_block_is_weighed_by_its_own_tokens():
    """Half of the documents have no expert in block 0, which says nothing of block 1."""
    last, first = synthetic(0, documents=10), synthetic(1, documents=10)
    last.data["expert_id"][:5, 0] = -1
    first.data["expert_id"][5:, 1] = last.data["expert_id"].values[5:, 1]
    table = measures.saturation([first, last], draws=200)
    assert (
        float(table["saturation_low"][0, 1]) < float(table["saturation"][0, 1]) < float(table["saturation_high"][0, 1])
    )
    assert float(table["saturation"][0, 1]) == pytest.approx((1 + 0.25) / 2, abs=0.05)
    with pytest.raises(InputError, match="list of readings is empty"):
        measures.saturation([])
    with pytest.raises(InputError, match="trace=True"):
        measures.saturation([first, Reading(last.data.drop_vars("expert_id"))])


def test_dense_models_have_no_routers_to_look_at():
    from tiny import tiny

    dense = workbench.load(tiny("llama"))
    for look in (measures.geometry, lambda m: measures.router_drift({"a": m, "b": m})):
        with pytest.raises(Refused, match="dense model"):
            look(dense)
    with pytest.raises(InputError, match="no checkpoint 'zz'"):
        measures.router_drift({"a": dense, "b": dense}, final="zz")


def test_router_rows_beside_random_ones():
    model = twins.planted()
    table = measures.geometry(model, draws=50)
    rows = model.module.model.layers[1].mlp.gate.weight.detach().double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(table["cosine"].values[1], unit @ unit.T, atol=1e-6)
    # Planted: pairs of experts look along one direction; the other block's rows are as random ones are.
    assert float(table["rank_p"][1]) < 0.05 and float(table["rank"][1]) < float(table["rank_null"][1])
    assert abs(float(table["cosine_size"][0]) - float(table["cosine_size_null"][0])) < 0.05
    assert float(table["cosine_size_null"][0]) == pytest.approx(np.sqrt(2 / (np.pi * 64)), rel=0.1)


def test_saturation_has_its_floor_and_drift_its_scale():
    module = twins.planted().module
    early = OlmoeForCausalLM(module.config).eval()
    early.load_state_dict(module.state_dict())
    with torch.no_grad():
        # Experts 0 and 1 change places in the router of the last block, and the first block's router is a new one.
        gate = early.model.layers[1].mlp.gate.weight
        gate[[0, 1]] = gate[[1, 0]].clone()
        early.model.layers[0].mlp.gate.weight.normal_()
    models = {"early": workbench.load(early, name="early"), "late": workbench.load(module, name="late")}
    texts, labels = twins.documents(20, languages=True, tokens=20)
    readings = [
        workbench.read(m, texts, RoutingTracer(labels, trace=True, scores=True), progress=False)
        for m in models.values()
    ]
    with intervene(models["late"], jitter=2**-8):
        noisy = workbench.read(models["late"], texts, RoutingTracer(labels, trace=True, scores=True), progress=False)
    table = measures.saturation(readings, list(models), floor=noisy)
    assert (table["saturation"].sel(checkpoint="late") == 1).all() and (
        table["divergence"].sel(checkpoint="late") == 0
    ).all()
    slots = [r.data["expert_id"].values for r in readings]
    for b in range(2):
        same = [len(set(x) & set(y)) / K for x, y in zip(*(s[:, b].reshape(-1, K) for s in slots), strict=True)]
        assert float(table["saturation"].sel(checkpoint="early")[b]) == pytest.approx(np.mean(same))
        p, q = (r.data["gate_probability"].values[:, b].reshape(-1, E).astype(float) for r in readings)
        p, q = np.maximum(p, 1e-7), np.maximum(q, 1e-7)
        kl = (p * np.log(p / q)).sum(1).mean()
        assert float(table["divergence"].sel(checkpoint="early")[b]) == pytest.approx(kl, rel=1e-3)
    # Noise of the size of bf16's rounding moves few tokens; a change beyond it is a change.
    assert (table["saturation_floor"] > 0.97).all() and (table["saturation_floor"] <= 1).all()
    assert float(table["saturation"].sel(checkpoint="early")[0]) < float(table["saturation_floor"][0]) - 0.2
    drift = measures.router_drift(models)
    assert drift["matched"].sel(checkpoint="early")[1] == pytest.approx(1 - 2 / E)
    assert np.abs(drift["cosine"].sel(checkpoint="early")[0]).max() < 5 * float(drift["cosine_spread"][0])
    assert (drift["change"].sel(checkpoint="late") == 0).all()
    a, b = (m.module.model.layers[0].mlp.gate.weight.detach() for m in models.values())
    assert float(drift["change"].sel(checkpoint="early")[0]) == pytest.approx(
        float((a - b).norm() / b.norm()), rel=1e-5
    )
    with pytest.raises(InputError, match="there is one"):
        measures.router_drift({"late": models["late"]})
    with pytest.raises(InputError, match="2 readings and 1 names"):
        measures.saturation(readings, ["late"])
