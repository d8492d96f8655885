"""Verdicts where the truth is built in, interventions by hand, mixtures, and trained probes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binom, binomtest
from test_belief import graph, made
from tiny import tiny

import workbench
from probes.superposition import (
    ContinuousThought,
    Problem,
    SoftThought,
    decode_frontier,
    frontier,
    mixture_entropy,
    soft_versus_hard,
    think,
    use,
    verdict,
)
from probes.superposition.used import _remover, _victims
from workbench.errors import InputError
from workbench.readers import States
from workbench.reading import Reading


def uses(problems, matter: bool, seed: int) -> Reading:
    """What `use` would give for an answer that reads the thoughts, and for one that was known before."""
    rng = np.random.default_rng(seed)
    n = len(problems)
    odds = {name: 4 + rng.standard_normal(n) for name in ("plain", "resampled", "edit optimal", "edit not reachable")}
    if matter:
        odds["resampled"] -= 4
        odds["edit optimal"] -= 2
    values = {"logodds": (("condition", "problem"), np.stack(list(odds.values())))}
    return Reading(xr.Dataset(values, {"condition": list(odds)}))


@pytest.mark.parametrize(
    ("kind", "matter", "word"),
    [
        ("all", True, "held and used"),
        ("all", False, "held but unused"),
        ("one", True, "collapsed"),
        ("nothing", False, "absent"),
    ],
)
def test_the_verdict_is_right_on_a_hundred_instances_of_each_kind(kind, matter, word):
    other = []
    for seed in range(100):
        problems = [graph(1000 * seed + i) for i in range(25)]
        held = frontier(made(problems, kind, seed), problems, others=5, draws=99, seed=seed)
        found = verdict(held, uses(problems, matter, seed), draws=399)
        assert found.decided_by in found.evidence and len(found.evidence) == 15
        other += [str(found)] * (found.word != word)
    # Of nothing at all something is said at the level of the intervals; of something, what it is.
    assert len(other) <= (binom.ppf(0.999, 100, 0.05) if word == "absent" else 0), other[0]


def test_the_thoughts_of_other_problems_are_at_chance():
    """Forty sets of thoughts that hold their own frontier: of others' 0.5 within its interval."""
    inside = 0
    for seed in range(40):
        problems = [graph(500 * seed + i) for i in range(25)]
        table = frontier(made(problems, "all", seed), problems, others=10, seed=seed)
        inside += bool(table["auc_null_low"][1] <= 0.5 <= table["auc_null_high"][1])
    assert inside >= 33  # 95 % of 40, less what 25 problems allow


def numbered(seed: int) -> Problem:
    """A random tree of two halves, whose nodes are numbered from the root on, level by level."""
    rng = np.random.default_rng(seed)
    edges = [(1 + (v - 1) // int(rng.integers(2, 4)) - 1, v) for v in range(1, 12)]
    edges += [(a + 12, b + 12) for a, b in edges]
    found = Problem(tuple(edges), 0, 11, 23, tuple(map(str, range(24))))
    return Problem(tuple(edges), 0, int(found.depth.argmax()), 23, found.names)


def test_what_numbers_alone_tell_is_not_held():
    """A thought that is the same for all problems, where nodes are numbered by their depth."""
    problems = [numbered(i) for i in range(40)]
    logit = np.random.default_rng(0).normal(0, 0.1, (40, 2, 24))
    logit[:, 0, 1:4] += 3
    logit[:, 1, 4:8] += 3
    table = frontier(logit, problems)
    assert (table["auc"] > 0.8).all() and (abs(table["auc_null"] - table["auc"]) < 0.05).all()
    found = verdict(table)
    assert not found.word.startswith("held") and (found.reading["above_null_low"] <= 0).any()


def thoughts(problems: list[Problem], kind: str, seed: int, size: float = 3.0) -> np.ndarray:
    """Noise, and what the kind puts on it."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(len(problems), 3, len(problems[0].names)))
    for i, p in enumerate(problems):
        for t in range(3):
            ring = np.flatnonzero(p.depth == t + 1)
            one = rng.choice(ring, 1) if len(ring) else ring
            put = {
                "all": ring, "one": one, "reachable": p.depth >= 0, "third": ring if t == 1 else [],
                "part": ring if i % 5 < 2 else one, "answer": [p.target],
            }[kind]  # fmt: skip
            found[i, t, put] += size
    return found


@pytest.mark.parametrize(("kind", "size", "word", "decided"), [
    ("all", 3, "held but unused", "no intervention"),
    ("one", 2, "one node", "without its highest node"),
    ("answer", 4, "collapsed", "lead of the first node"),
    ("reachable", 2, "reachability without steps", "reachable nodes at other distances"),
    ("third", 3, "some places only", "frontier above all other nodes"),
    ("part", 4, "some problems only", "share of problems"),
])  # fmt: skip
def test_mixed_cases_have_words_of_their_own_at_any_scale(kind, size, word, decided):
    problems = [graph(i) for i in range(100)]
    logit = thoughts(problems, kind, 5, size)
    found = [verdict(frontier(scale * logit + 7, problems, others=5)) for scale in (1, 10, 20)]
    assert {(x.word, x.sure) for x in found} == {(word, kind != "all")} and decided in found[0].decided_by
    # What decides does not change with the scale; belief does.
    for name in found[0].reading.data.data_vars:
        np.testing.assert_allclose(found[2].reading[name], found[0].reading[name], atol=1e-6)


def test_one_node_among_reachable_ones_is_one_node():
    """Reachable nodes lift the frontier without its highest node above all others, and not above each other."""
    problems = [graph(i) for i in range(100)]
    logit = thoughts(problems, "one", 0, 2.5)
    for i, p in enumerate(problems):
        logit[i, :, p.depth >= 0] += 1.5
    found = verdict(frontier(logit, problems))
    assert found.word == "one node" and "above reachable ones" in found.decided_by
    assert (found.reading["auc_without_top_low"] > 0.5).all()


def test_problems_of_interventions_are_those_of_the_thoughts():
    problems = [graph(i) for i in range(25)]
    held = frontier(made(problems, "all", 0), problems, others=5)
    with pytest.raises(InputError, match="one row for each"):
        verdict(held, uses(problems[:20], True, 0))


def test_a_verdict_needs_problems_that_branch_and_interventions_for_use():
    problems = [graph(i) for i in range(25)]
    held = frontier(made(problems, "all", 0), problems, others=5)
    assert verdict(held).word == "held but unused" and "no intervention" in str(verdict(held))
    line = Reading(held.data.assign(auc_without_top_each=held["auc_without_top_each"] * np.nan))
    with pytest.raises(InputError, match="problems that branch"):
        verdict(line)


# ---------------------------------------------------------------- interventions


@pytest.fixture(scope="module")
def setting():
    """A tiny model with graphs in its vocabulary: node v is token 10 + v."""
    model = workbench.load(tiny("gpt2"))
    problems = [graph(i, nodes=16) for i in range(6)]
    inputs = [[5, *[10 + v for e in p.edges[:8] for v in e], 6, 10 + p.root] for p in problems]
    return model, problems, inputs, [[10 + v for v in range(16)] for _ in problems]


def odds(model, ids, vectors, then, problem):
    embed = model.module.get_input_embeddings()
    row = torch.cat([embed(torch.tensor([ids])), torch.as_tensor(vectors)[None], embed(torch.tensor([then]))], 1)
    with torch.no_grad():
        z = model.module(inputs_embeds=row).logits[0, -1]
    return float(z[10 + problem.target] - z[10 + problem.negative]), int(z.argmax())


def test_conditions_are_what_they_say(setting):
    model, problems, inputs, names = setting
    table = use(model, inputs, problems, names, ContinuousThought(3), then=[7], mirrored=inputs[::-1])
    vectors = think(model, inputs, ContinuousThought(3)).vectors
    empty = np.zeros((0, model.d_model), np.float32)
    for i, problem in enumerate(problems):
        others = np.delete(vectors, i, 0).mean(0)
        for condition, fed in (
            ("plain", vectors[i]), ("deleted", empty), ("mean", others), ("mirrored", vectors[len(problems) - 1 - i]),
        ):  # fmt: skip
            own, first = odds(model, inputs[i], fed, [7], problem)
            assert float(table["logodds"].sel(condition=condition)[i]) == pytest.approx(own, abs=2e-4), condition
        resampled = [odds(model, inputs[i], vectors[j], [7], problem)[0] for j in range(6) if j != i]
        assert np.abs(np.array(resampled) - float(table["logodds"].sel(condition="resampled")[i])).min() < 2e-4
    plain = table["logodds"].sel(condition="plain").values
    assert float(table["accuracy"].sel(condition="plain")) == pytest.approx((plain > 0).mean())
    exact = binomtest(int((plain > 0).sum()), len(plain)).proportion_ci()
    ends = [float(table[f"accuracy_{end}"].sel(condition="plain")) for end in ("low", "high")]
    assert ends == pytest.approx([exact.low, exact.high]) and "exact over 6 graphs" in table.data.attrs["interval"]
    assert float(table["effect"].sel(condition="plain")) == 0 and float(table["effect_p"].sel(condition="plain")) == 1


def test_an_edit_takes_one_node_out_and_nothing_else(setting):
    model, problems, inputs, names = setting
    chosen = [_victims(p, "optimal", 3, np.random.default_rng(i)) for i, p in enumerate(problems)]
    for own, problem in zip(chosen, problems, strict=True):
        for t, node in enumerate(own, 1):
            assert node < 0 or (problem.depth[node] == t and t + problem.to_target[node] == problem.length)
    remove = _remover(model, names, chosen)
    x = torch.randn(6, model.d_model, generator=torch.Generator().manual_seed(0))
    found = remove(1, x, list(range(6)))
    table, rows = model.module.get_input_embeddings().weight.detach(), model.unembedding[0]
    for i in range(6):
        if chosen[i][0] < 0:
            assert torch.equal(found[i], x[i])
            continue
        token = 10 + chosen[i][0]
        for direction in (table[token], rows[token]):
            assert abs(float(found[i] @ direction)) < 1e-4 * float(x[i].norm() * direction.norm())
        gone = x[i] - found[i]
        span = torch.stack([table[token], rows[token]])
        assert np.linalg.matrix_rank(torch.cat([span, gone[None]]).numpy(), tol=1e-3) == np.linalg.matrix_rank(
            span.numpy(), tol=1e-3
        )
    assert all(_victims(p, "not reachable", 3, np.random.default_rng(0)) != [p.negative] * 3 for p in problems)


# ---------------------------------------------------------------- mixtures and probes


def test_soft_and_hard_are_compared_layer_by_layer():
    model = workbench.load(tiny("llama"))
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    policy = SoftThought(1, temperature=1.5, keep=4)
    table = soft_versus_hard(model, prompts, policy)
    mixed = think(model, prompts, policy)
    embed, norm, head = model.module.get_input_embeddings(), model.module.model.norm, model.module.lm_head
    for i, ids in enumerate(prompts):
        kept = []
        for vector in (mixed.vectors[i, 0], embed.weight[int(mixed.data["token_id"][i, 0, 0])].detach().numpy()):
            row = torch.cat([embed(torch.tensor([ids])), torch.tensor(vector)[None, None]], 1)
            with torch.no_grad():
                out = model.module(inputs_embeds=row, output_hidden_states=True)
            kept.append(out)
        for layer in range(model.n_layers + 1):
            last = layer == model.n_layers
            with torch.no_grad():
                p, q = ((o.logits if last else head(norm(o.hidden_states[layer])))[0, -1].log_softmax(0) for o in kept)
            assert float(table["kl_each"][i, layer]) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)
        a, b = (o.hidden_states[2][0, -1] for o in kept)
        assert float(table["cosine_each"][i, 2]) == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
    # One token alone: nothing to compare.
    one = soft_versus_hard(model, prompts, SoftThought(1, keep=1))
    assert np.abs(one["kl"]).max() < 1e-5 and np.isnan(one["kl_second"]).all() and (one["weight"] == 1).all()


def test_entropy_behind_mixtures():
    model = workbench.load(tiny("gpt2"))
    table = mixture_entropy(model, [[5, 6, 7], [8, 9]], sizes=(1, 4), mixtures=3)
    assert table["entropy"].shape == (2,) and (table["entropy"] <= table["entropy_even"]).all()
    assert (table["entropy_low"] <= table["entropy"]).all()


def test_a_probe_finds_the_frontier_where_it_is_and_nothing_by_names_alone():
    problems = [graph(i, nodes=16) for i in range(400)]
    rng = np.random.default_rng(0)
    table = np.linalg.qr(rng.standard_normal((32, 16)))[0].T
    states = np.zeros((400, 2, 2, 32), np.float32)
    for i, p in enumerate(problems):
        for t in range(2):
            # Layer 0 is noise; layer 1 holds the ring.
            states[i, :, t] = 0.3 * rng.standard_normal((2, 32))
            states[i, 1, t] += table[p.depth == t + 1].sum(0)
    found = decode_frontier(states, problems, seeds=2, steps=150)
    assert (found["auc_mean"].sel(layer=1) > 0.95).all() and (np.abs(found["auc_mean"].sel(layer=0) - 0.5) < 0.06).all()
    assert (found["selectivity_mean"].sel(layer=1) > 0.4).all() and (np.abs(found["control_mean"] - 0.5) < 0.08).all()
    with pytest.raises(InputError, match="too few different graphs"):
        decode_frontier(states[:3], [problems[0]] * 3)
    with pytest.raises(InputError, match="\\['tree'\\] are unknown"):
        decode_frontier(states, problems, kinds=["tree"])


def test_states_of_thoughts_go_into_the_probe(setting):
    model, problems, inputs, names = setting
    states = think(model, inputs, ContinuousThought(2), readers=[States()]).readings[0]["state"].values
    found = decode_frontier(states, problems, names, seeds=1, steps=5, kinds=["linear"])
    assert found["auc"].shape == (1, 1, model.n_layers + 1, 3)


def test_a_verdict_without_an_interval_is_refused_and_one_on_an_edge_is_not_sure():
    problems = [graph(i) for i in range(25)]
    held = frontier(made(problems, "all", 0), problems, others=5)
    assert verdict(held, uses(problems, True, 0)).sure
    one = problems[:1]
    with pytest.raises(InputError, match="no interval"):
        verdict(frontier(made(one, "all", 0), one), uses(one, True, 0))
    # A fall that a few problems cannot tell from none is no evidence of no use.
    weak = uses(problems, True, 0)
    noise = np.random.default_rng(0).normal(-0.4, 2.0, 25)
    odds = weak["logodds"].values.copy()
    odds[1] = odds[0] + noise - noise.mean() - 0.4
    found = verdict(held, Reading(weak.data.assign(logodds=(weak["logodds"].dims, odds))))
    assert found.word == "held but unused" and not found.sure


def test_thoughts_that_stop_early_are_swapped_as_they_are(setting):
    model, problems, inputs, names = setting
    entropy = think(model, inputs, SoftThought(4)).data["entropy"].values
    policy = SoftThought(4, stop_entropy=float(np.median(entropy)), patience=1)
    plain = think(model, inputs, policy)
    table = use(model, inputs, problems, names, policy, then=[7], edits=False)
    lengths = plain.data["length"].values
    assert len(set(lengths)) > 1
    resampled = table["logodds"].sel(condition="resampled").values
    for i, problem in enumerate(problems):
        own = [
            odds(model, inputs[i], plain.vectors[j, : lengths[j]], [7], problem)[0]
            for j in range(len(problems))
            if j != i
        ]
        assert np.abs(np.array(own) - resampled[i]).min() < 2e-4
    with pytest.raises(InputError, match="Give then="):
        use(model, inputs, problems, names, policy)
    with pytest.raises(InputError, match="two problems or more"):
        use(model, inputs[:1], problems[:1], names[:1], policy, then=[7])
