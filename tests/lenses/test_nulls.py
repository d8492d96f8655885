"""Null states of the lenses and the ranks among them, against loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import prompts

import workbench
from lenses import EmbeddingLens, nulls
from workbench.errors import InputError
from workbench.sinks import Norms
from workbench.sites import Site


def run_of(ids, positions):
    model = SimpleNamespace(tokenizer=None, module=SimpleNamespace(config=None))
    known = [SimpleNamespace(ids=i, positions=p) for i, p in zip(ids, positions, strict=True)]
    slots = range(max(map(len, positions)))
    return SimpleNamespace(model=model, prompts=known, positions=slots, norms=Norms(model, known))


def test_p_is_the_rank_among_null_states_above_what_their_tokens_reach():
    rng = np.random.default_rng(0)
    ids, positions = [[3, 4, 5, 3], [5, 3]], [[0, 1, 3], [0, 1]]
    run, sites = run_of(ids, positions), [Site("resid", 1), Site("resid", 2)]
    best = rng.random((2, 2, 3)).astype(np.float32)
    best[1, :, 2] = np.nan
    drawn = [rng.choice([3, 4, 5, 7], 4).tolist() for _ in range(9)]
    at = [(i, j) for i in range(9) for j in range(4)]
    scores = [rng.random(36), rng.random(36)]
    scores[1][5] = np.nan  # a state of zeros
    null = SimpleNamespace(
        prompts=drawn, prompt=[np.array([i for i, _ in at])] * 2, position=[np.array([j for _, j in at])] * 2, reason=""
    )
    found = nulls.tested("score", best, run, sites, {"shuffled": (null, scores)})
    p = found["score_p"][1]
    assert found["score_p"][0] == ("prompt", "layer", "position") and np.isnan(p[1, :, 2]).all()
    for depth in range(2):
        pool: list[tuple[float, int, tuple[int, ...]]] = [
            (s, drawn[i][j], ()) for s, (i, j) in zip(scores[depth], at, strict=True)
        ]
        pool = [one for one in pool if not np.isnan(one[0])]
        pool += [(best[i, depth, k], ids[i][a], (i, k)) for i in range(2) for k, a in enumerate(positions[i])]
        mean = np.mean([s for s, *_ in pool])

        def above(n, pool=pool, mean=mean):
            others = [s for m, (s, token, _) in enumerate(pool) if token == pool[n][1] and m != n]
            return pool[n][0] - mean - sum(s - mean for s in others) / (len(others) + 3)

        r = [above(n) for n in range(len(pool))]
        null_r = [x for x, (*_, cell) in zip(r, pool, strict=True) if not cell]
        for x, (*_, cell) in zip(r, pool, strict=True):
            if cell:
                expected = (1 + sum(y >= x for y in null_r)) / (1 + len(null_r))
                assert p[cell[0], depth, cell[1]] == pytest.approx(expected, abs=1e-6)
        # One more score of the kind exceeds it in 5 of 100 cases at most: of 35 or 36 it is the largest.
        known = np.sort(scores[depth][~np.isnan(scores[depth])])
        assert found["score_floor_shuffled"][1][depth] == pytest.approx(known[-1])


def test_floors_are_passed_as_often_as_they_say():
    rng, n = np.random.default_rng(1), 4000
    for draws in (20, 57, 256):
        null = rng.exponential(size=(n, draws))
        passed = (rng.exponential(size=n) > nulls.floors(list(null))).mean()
        assert passed < 0.05 + 3 * (0.05 * 0.95 / n) ** 0.5 and passed > 0.05 - 1 / draws - 0.011
    assert np.isnan(nulls.floors([np.zeros(19)])).all()


@pytest.mark.parametrize("positions", ["all", "last", [1], slice(3, None)], ids=str)
def test_null_states_are_at_the_positions_that_are_read(llama, monkeypatch, positions):
    seen, states_at = [], nulls.states_at

    def watched(model, variants, sites, chosen, **options):
        seen.append((variants, chosen))
        return states_at(model, variants, sites, chosen, **options)

    monkeypatch.setattr(nulls, "states_at", watched)
    ids = prompts()
    data = workbench.read(llama, ids, EmbeddingLens([2]), positions=positions, progress=False).data
    ((variants, chosen),) = seen
    read = {(len(i), a) for i, row in zip(ids, data.input_position.values, strict=True) for a in row if a >= 0}
    bags = {tuple(sorted(i)) for i in ids}
    assert all(tuple(sorted(v)) in bags for v in variants)
    # In prompts of up to 14 tokens: exactly there, or one further from position 8 on.
    for variant, places in zip(variants, chosen, strict=True):
        for at in places.tolist():
            assert any((len(variant), a) in read for a in {at, at - 1, at + 1} if a == at or a >= 8)
    assert 100 < sum(map(len, chosen)) <= 512
    p = data.cosine_p.values
    assert ((p > 0) & (p <= 1))[~np.isnan(p)].all() and (~np.isnan(p)).any()


def test_more_draws_are_taken_and_what_they_could_show_is_said(llama):
    few = workbench.read(llama, prompts(), EmbeddingLens([2], draws=40), progress=False).data
    many = workbench.read(llama, prompts(), EmbeddingLens([2], draws=3000), progress=False).data
    lowest = [float(np.nanmin(d.cosine_p.values * n)) for d, n in ((few, 41), (many, 3001))]
    np.testing.assert_allclose(lowest, np.round(lowest), atol=1e-3)  # whole numbers of null states reach a cell
    with pytest.raises(InputError, match="draws=5 gives no p-value"):
        EmbeddingLens(draws=5)
    p = np.r_[np.full(3, 1 / 101), np.linspace(0.1, 1, 17)]
    with pytest.warns(UserWarning, match=r"least of 20 cells is 0.066, that of the 3 .*draws=133"):
        q = nulls.adjusted(p, 100, "x_q")
    assert q[0] == pytest.approx(20 / 3 / 101)
    assert np.isnan(nulls.adjusted(np.full(3, np.nan), 100, "x_q")).all()


def test_a_state_at_the_same_place_has_the_same_null_whatever_else_is_read(llama):
    """Readers of other layers share the null states of a run."""
    ids = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(1)).tolist()
    one, two = workbench.read(llama, ids, [EmbeddingLens([2]), EmbeddingLens([1, 2])], progress=False)
    np.testing.assert_array_equal(one.data.cosine_p.values[:, 0], two.data.cosine_p.values[:, 1])
