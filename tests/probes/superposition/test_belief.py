"""Problems, beliefs and what is held, against enumeration, a search written out, and thoughts made by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tiny import tiny

import workbench
from lenses import LogitLens
from probes.superposition import (
    CandidateBelief,
    ContinuousThought,
    Problem,
    entity_belief,
    frontier,
    load_prosqa,
    mass,
    think,
)
from probes.superposition.problems import DEPTH_GROUPS, STEP_GROUPS
from workbench.errors import InputError

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_prosqa = pytest.mark.skipif(not DATA.exists(), reason="the public ProsQA files are not beside the checkout")


def graph(seed: int, nodes: int = 24) -> Problem:
    """Two halves, each a random branching graph in which all but the root have a parent; the second out of reach."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(nodes)
    edges = []
    for half in (names[: nodes // 2], names[nodes // 2 :]):
        for j in range(1, len(half)):
            parents = {int(half[max(0, (j - 1) // 2)]), int(half[rng.integers(max(1, j))])}
            edges += [(p, int(half[j])) for p in parents]
    root, other, called = int(names[0]), int(names[-1]), tuple(map(str, range(nodes)))
    depth = Problem(tuple(edges), root, int(names[1]), other, called).depth
    return Problem(tuple(edges), root, int(np.flatnonzero(depth == depth.max())[0]), other, called)


# ---------------------------------------------------------------- problems


def test_groups_are_those_of_a_search_written_out():
    for seed in range(20):
        problem = graph(seed)
        ring, depth, d = {problem.root}, {problem.root: 0}, 0
        while ring:
            d += 1
            ring = {b for a, b in problem.edges if a in ring} - set(depth)
            depth |= dict.fromkeys(ring, d)
        back, ring, d = {problem.target: 0}, {problem.target}, 0
        while ring:
            d += 1
            ring = {a for a, b in problem.edges if b in ring} - set(back)
            back |= dict.fromkeys(ring, d)
        for step in range(problem.length + 1):
            groups = problem.groups(step)
            for v in range(len(problem.names)):
                reached = depth.get(v, math.inf)
                best = reached == step and step + back.get(v, math.inf) == depth[problem.target]
                expected = 3 if best else 2 if reached == step else 1 if reached < step else 0
                assert groups[v] == expected, (seed, step, v)


def test_the_last_step_is_charged_to_the_target():
    problem = Problem(((0, 1), (0, 2), (1, 3), (1, 4)), 0, 3, 5, tuple("abcdef"), (1, 3))
    assert [STEP_GROUPS[g] for g in problem.step_groups(0)] == [
        "other", "correct next", "wrong neighbour", "target", "other", "other"
    ]  # fmt: skip
    assert [STEP_GROUPS[g] for g in problem.step_groups(1)] == [
        "other", "other", "other", "target", "wrong neighbour", "other"
    ]  # fmt: skip
    assert [STEP_GROUPS[g] for g in problem.step_groups(2)] == ["other"] * 3 + ["target"] + ["other"] * 2


def test_impossible_problems_are_named():
    names = tuple("abcd")
    with pytest.raises(InputError, match="The target is the root"):
        Problem(((0, 1),), 0, 0, 2, names)
    with pytest.raises(InputError, match="disconnected there"):
        Problem(((0, 1),), 0, 3, 2, names)
    with pytest.raises(InputError, match="both answers are right"):
        Problem(((0, 1), (0, 2)), 0, 1, 2, names)
    with pytest.raises(InputError, match="nodes 0 to 9, and 4 names"):
        Problem(((0, 9),), 0, 9, 2, names)
    with pytest.raises(InputError, match="'neg_target' is missing"):
        Problem.of({"edges": [], "root": 0, "target": 1})


@needs_prosqa
def test_public_prosqa_is_read_and_its_own_layers_are_distances():
    words = load_prosqa(DATA / "prosqa" / "prosqa_test.json")
    assert len(words) == 500 and len(load_prosqa(DATA / "prosqa" / "prosqa_valid.json")) == 300
    for problem in words[:100]:
        way = (problem.root, *problem.steps)
        assert way[-1] == problem.target and all(e in problem.edges for e in itertools.pairwise(way))
    import json

    path = DATA / "prosqa-graph" / "prosqa_test_graph_4_coconut.json"
    layers = 0
    for record, problem in zip(json.loads(path.read_text()), load_prosqa(path), strict=True):
        for k, own in record["neighbor_k"].items():
            assert sorted(np.flatnonzero(problem.groups(int(k)) == 3)) == sorted(own)
            layers += 1
    assert layers > 1000


# ---------------------------------------------------------------- beliefs


def test_belief_is_the_softmax_of_the_models_own_logits_over_the_candidates():
    model = workbench.load(tiny("llama"))
    prompts, candidates = [[5, 6, 7, 8], [9, 10]], [[20, 21, 22], [30, 31]]
    data = workbench.read(model, prompts, CandidateBelief(candidates, mass=True), progress=False).data
    for i, ids in enumerate(prompts):
        with torch.no_grad():
            out = model.module(torch.tensor([ids]), output_hidden_states=True)
            norm, head = model.module.model.norm, model.module.lm_head
            logits = [head(norm(h[0])) for h in out.hidden_states[:-1]] + [out.logits[0]]
        own = candidates[i]
        for layer in range(model.n_layers + 1):
            for position in range(len(ids)):
                z = logits[layer][position]
                q = z[own].softmax(0).numpy()
                place = data.isel(prompt=i, layer=layer, position=position)
                np.testing.assert_allclose(place["belief"].values[: len(own)], q, atol=1e-5)
                assert float(place["mass"]) == pytest.approx(float(z.softmax(0)[own].sum()), abs=1e-5)
                assert int(place["first_id"]) == int(z.argmax())
                bits = -(q * np.log2(q)).sum()
                assert float(place["entropy_bits"]) == pytest.approx(bits, abs=1e-4)
                assert float(place["effective"]) == pytest.approx(2**bits, rel=1e-4)
    real = data["belief"].sum("candidate").values[~np.isnan(data["entropy_bits"].values)]
    np.testing.assert_allclose(real, 1, atol=1e-6)
    assert np.isnan(data["belief"].values[1, :, :2, 2]).all()


def test_whole_names_are_enumerated():
    """Every path of tokens by a forward pass of its own."""
    model = workbench.load("organism:story")
    prompt = "The old man walked to the"
    names = [" river", " bank", " river bank", " riverside", " quickly"]
    ids = {n: model.tokenizer(n, add_special_tokens=False)["input_ids"] for n in names}
    several = [n for n in names if len(ids[n]) > 1]
    assert several
    free = [n for n in names if not any(m != n and ids[n] == ids[m][: len(ids[n])] for m in names)]
    head = model.tokenizer(prompt)["input_ids"]
    thoughts = think(model, [prompt], ContinuousThought(2)).vectors
    found = entity_belief(model, [prompt], free, thoughts=thoughts)
    embed = model.module.get_input_embeddings()
    for place in range(3):
        expected = []
        for name in free:
            total, row = 0.0, torch.cat([embed(torch.tensor([head])), torch.tensor(thoughts[:, :place])], 1)
            for token in ids[name]:
                with torch.no_grad():
                    total += float(model.module(inputs_embeds=row).logits[0, -1].log_softmax(0)[token])
                row = torch.cat([row, embed(torch.tensor([[token]]))], 1)
            expected.append(total)
        np.testing.assert_allclose(found["logprob"].values[0, place], expected, atol=1e-3)
        q = np.exp(np.array(expected) - logsumexp(expected))
        np.testing.assert_allclose(found["belief"].values[0, place], q, atol=1e-4)
    if len(free) < len(names):
        with pytest.raises(InputError, match="begins with the whole of another"):
            entity_belief(model, [prompt], names)


def test_candidates_that_cannot_be_told_apart_or_are_not_there_are_named():
    model = workbench.load("organism:story")
    with pytest.raises(InputError, match="begin with the same token"):
        workbench.read(model, "The", CandidateBelief([" river", " river bank"]), progress=False)
    with pytest.raises(InputError, match="outside the vocabulary"):
        workbench.read(model, "The", CandidateBelief([10**7]), progress=False)
    with pytest.raises(InputError, match="candidates has 2 lists and there are 1"):
        workbench.read(model, "The", CandidateBelief([[" a"], [" b"]]), progress=False)
    with pytest.raises(InputError, match="no candidates"):
        workbench.read(model, "The", CandidateBelief([]), progress=False)


# ---------------------------------------------------------------- what is held


def made(problems: list[Problem], kind: str, seed: int, places: int = 3) -> np.ndarray:
    """Logits of thoughts made by hand: the even sum of the ring's embeddings, or one node's, under a random readout."""
    rng = np.random.default_rng(seed)
    nodes = len(problems[0].names)
    table = np.linalg.qr(rng.standard_normal((64, nodes)))[0].T
    found = np.zeros((len(problems), places, nodes))
    for i, problem in enumerate(problems):
        for t in range(places):
            ring = np.flatnonzero(problem.depth == t + 1)
            if kind == "one":
                ring = rng.choice(ring, 1) if len(ring) else ring
            if kind == "nothing":
                ring = np.array([], int)
            thought = table[ring].sum(0) if len(ring) else np.zeros(64)
            thought = thought * (6 if len(ring) else 1) + 0.05 * rng.standard_normal(64)
            found[i, t] = table @ thought
    return found


def test_belief_of_groups_adds_up_and_stands_where_it_was_put():
    problems = [graph(s) for s in range(30)]
    table = mass(made(problems, "all", 0, places=2), problems)
    np.testing.assert_allclose(table["mass"].sum("group").values, 1, atol=1e-9)
    own = table["mean"].sel(group=["frontier", "optimal"]).sum("group").values
    assert (own > 0.9).all() and table["group"].values.tolist() == list(DEPTH_GROUPS)
    inner = table["inner"]
    assert (inner.sel(group="frontier") > 5).all() and (np.abs(inner.sel(group="not reachable")) < 0.5).all()
    with pytest.raises(InputError, match="Use 'depth' or 'step'"):
        mass(made(problems, "all", 0), problems, by="hops")
    with pytest.raises(InputError, match="one layer"):
        mass(np.zeros((30, 3)), problems)


def test_frontiers_are_told_apart_and_other_graphs_are_not():
    problems = [graph(s) for s in range(60)]
    table = frontier(made(problems, "all", 1), problems)
    assert (table["auc"] > 0.999).all() and (table["evenness"] > 0.9).all()
    assert (np.abs(table["auc_null"] - 0.5) < 0.03).all()
    assert (np.abs(table["auc_other"] - 0.5) < 0.08).all() and (table["auc_out"] > 0.999).all()
    rings = [[int((p.depth == t + 1).sum()) for p in problems] for t in range(3)]
    sizes = [np.mean([n for n in own if n]) for own in rings]  # where the search has not ended yet
    np.testing.assert_allclose(table["size"], sizes)
    one = frontier(made(problems, "one", 1), problems)
    assert (one["evenness"] < 0.1).all() and (one["held"] < 1.2).all()
    none = frontier(made(problems, "nothing", 1), problems)
    assert (none["auc_low"] < 0.5).all() and (none["auc_high"] > 0.5).all()
    assert float(none["effective"][0]) == pytest.approx(24, rel=0.01)


def test_problems_on_one_graph_are_one_sample():
    """The same problem thirty times says no more than once, and nothing of other graphs."""
    edges = ((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (6, 8), (7, 9))
    problems = [Problem(edges, 0, 3, 8, tuple("abcdefghij"), (1, 3))] * 30
    table = frontier(made(problems, "all", 0, places=2), problems)
    assert (table["auc"] > 0.99).all() and np.isnan(table["auc_null"]).all() and np.isnan(table["auc_low"]).all()
    several = [graph(s) for s in range(12)]
    logit = made(several, "all", 0) + np.random.default_rng(0).normal(0, 4, (12, 3, 24))
    once = frontier(logit, several)
    twice = frontier(np.concatenate([logit, logit]), [*several, *several])
    np.testing.assert_allclose(twice["auc_low"], once["auc_low"], atol=1e-9)


def test_numbers_of_the_frontier_are_those_of_loops():
    problems = [graph(s) for s in range(8)]
    logit = np.round(np.random.default_rng(0).normal(0, 2, (8, 3, 26)), 1)  # with ties, and two nodes too many
    logit[..., 24:], logit[3, 1, 5], logit[2, 2] = np.nan, np.nan, np.nan
    table = frontier(logit, problems, others=7, draws=9)

    def auc(own, positive, negative):
        pairs = [(own[a] > own[b]) + 0.5 * (own[a] == own[b]) for a in positive for b in negative]
        return np.mean(pairs) if pairs else np.nan

    for i, p in enumerate(problems):
        for t in range(3):
            z = logit[i, t]
            seen = [v for v in range(24) if np.isfinite(z[v])]
            ring = [v for v in seen if p.depth[v] == t + 1]
            rest = [v for v in seen if v not in ring]
            if not ring or not rest:
                assert np.isnan(table["auc_each"][i, t])
                continue
            within = [v for v in rest if p.depth[v] >= 0]
            left = sorted(ring, key=lambda v: -z[v])[1:]
            reached = sorted([v for v in seen if p.depth[v] >= 0], key=lambda v: -z[v])[1:]
            rise = np.maximum([z[v] - np.median(z[rest]) for v in ring], 0)
            share = rise[rise > 0] / rise.sum() if rise.any() else np.array([1.0])
            first, *others = sorted((z[v] for v in seen), reverse=True)
            null = [
                auc(logit[j, t], [v for v in ring if np.isfinite(logit[j, t, v])],
                    [v for v in rest if np.isfinite(logit[j, t, v])])
                for j in range(8) if j != i
            ]  # fmt: skip
            circles = []
            for start in range(24):
                at = Problem._distances(p, p.edges, start)
                circle = [v for v in rest if at[v] == t + 1]
                if start != p.root and circle:
                    circles.append(auc(z, circle, [v for v in rest if v not in circle]))
            expected = {
                "auc": auc(z, ring, rest), "auc_within": auc(z, ring, within), "auc_without_top": auc(z, left, rest),
                "auc_within_without_top": auc(z, left, within),
                "auc_reachable": auc(z, reached, [v for v in seen if p.depth[v] < 0]),
                "auc_target": auc(z, [p.target], [v for v in seen if v != p.target]),
                "lead": (first - others[0]) / (first - others[0] + np.std(others)),
                "auc_null": np.nanmean(null), "auc_other": np.nanmean(circles) if circles else np.nan,
                "evenness": (np.exp(-(share * np.log(share)).sum()) - 1) / (len(ring) - 1) if left else np.nan,
            }  # fmt: skip
            for name, value in expected.items():
                own = float(table[f"{name}_each"][i, t])
                assert own == pytest.approx(value, nan_ok=True, abs=1e-6), (name, i, t)


def test_places_that_were_not_reached_count_for_nothing():
    problems = [graph(s) for s in range(40)]
    logit = made(problems, "all", 0)
    whole = frontier(logit, problems)
    logit[:30, 2] = np.nan
    table, belief = frontier(logit, problems), mass(logit, problems)
    for name in ("auc", "evenness"):
        np.testing.assert_allclose(table[name].values[:2], whole[name].values[:2])
    np.testing.assert_allclose(belief["mean"].sum("group").values, 1)


def test_names_beyond_the_context_are_an_error():
    model = workbench.load(tiny("gpt2"))
    with pytest.raises(InputError, match="Cut the prompt, or think less"):
        entity_belief(
            model, [[5, 6, 7]], [[8]], thoughts=np.zeros((1, model.context_length, model.d_model), np.float32)
        )


def test_candidates_are_the_tokens_that_a_lens_follows():
    """SentencePiece puts a space before a text: "a" is two tokens, and yet there is one whose text it is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2, "o": 3, "b": 4}, [], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [1, 2]
    model = workbench.load(tiny("llama"), tokenizer=tokenizer)
    belief, lens = workbench.read(
        model, "a b", [CandidateBelief(["a", "o"]), LogitLens(targets=["a", "o"])], progress=False
    )
    assert belief.data["candidate_id"].values.tolist() == [[2, 3]] == [lens.data["target_id"].values.tolist()]
    odds = np.diff(belief.data["logit"].values, axis=-1)[..., 0]
    theirs = lens.data["target_logprob"].transpose("prompt", "layer", "position", "target").values
    np.testing.assert_allclose(odds, np.diff(theirs, axis=-1)[..., 0], atol=1e-4)
