"""Nulls and intervals against their definitions."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.engine.collect import Collected
from workbench.inputs import Batch
from workbench.readers import Plan
from workbench.stats import RandomDirections, bootstrap_interval, mantel, mantel_table, p_value, sign_flip_p


def fed(directions: RandomDirections, *parts: tuple[torch.Tensor, list[int]]) -> dict[str, np.ndarray]:
    """What the engine makes of states [row, width] that come in parts, each with the prompts of its rows."""
    plan = Plan((), directions.outputs("layer"), lambda states, batch: {})
    found = Collected(plan, {"layer": 1, "width": parts[0][0].shape[1]})
    for states, prompts in parts:
        slot = torch.tensor([prompts[:i].count(p) for i, p in enumerate(prompts)])
        none = torch.zeros(0, dtype=torch.long)
        batch = Batch(prompts, {}, none, torch.tensor(prompts), slot, slot, torch.zeros_like(slot))
        found.add(directions.observed(states[:, None], batch), batch)
    return found.found()


def test_draws_have_the_mean_and_covariance_of_what_was_seen():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    states = torch.randn(500, 6, generator=generator) @ mix + 3
    directions = RandomDirections(20_000)
    found = fed(directions, *((states[at : at + 50], [at // 50] * 50) for at in range(0, 500, 50)))
    drawn = directions.draw(found, 0, np.zeros((10, 50), bool)).double()
    covariance = torch.cov(states.double().T, correction=0)
    torch.testing.assert_close(drawn.mean(0), states.double().mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.04 * float(covariance.diag().max()), rtol=0.05)


def test_draws_do_not_depend_on_batches():
    states = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    directions = RandomDirections(10)
    prompts = [i // 10 for i in range(30)]
    whole = fed(directions, (states, prompts))
    cuts = [slice(10 * i, 10 * i + 10) for i in (2, 0, 1)]
    parts = fed(directions, *((states[cut], prompts[cut]) for cut in cuts))
    none = np.zeros((3, 10), bool)
    torch.testing.assert_close(directions.draw(whole, 0, none), directions.draw(parts, 0, none))


def test_draws_leave_out_what_is_to_be_left_out_and_need_twenty_states():
    """One state of 1e4 among 60: with it every draw points along it, without it none does."""
    states = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    states[7] = 0
    states[7, 3] = 1e4
    directions = RandomDirections(200)
    found = fed(directions, (states, [0] * 60))
    sink = np.zeros((1, 60), bool)
    along = lambda drawn: float((drawn[:, 3].abs() / drawn.norm(dim=1)).median())  # noqa: E731
    assert along(directions.draw(found, 0, sink)) > 0.999
    sink[0, 7] = True
    assert along(directions.draw(found, 0, sink)) < 0.6
    sink[0, 20:] = True
    assert directions.draw(found, 0, sink).shape == (0, 8)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng, hits, n = np.random.default_rng(0), 0, 300
    for i in range(n):
        values = rng.normal(1, 1, 40)
        low, high = bootstrap_interval(values, draws=400, seed=i)
        hits += low <= 1 <= high
    assert 0.90 < hits / n < 0.98


def test_weights_and_missing_values():
    values = np.array([[0.0, 1.0], [1.0, np.nan], [1.0, 1.0]])
    low, high = bootstrap_interval(values, np.array([1.0, 1e-12, 1e-12]), draws=2000)
    assert low[0] == 0 and high[0] <= 1 and low[1] == high[1] == 1
    assert all(np.isnan(bootstrap_interval(np.ones((1, 2)))).ravel())


def test_each_value_has_its_own_weights_and_one_value_has_no_interval():
    values, weights = np.array([[0.0, 0.0], [1.0, 1.0], [np.nan, 1.0]]), np.array([[9.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    both = bootstrap_interval(values, weights, draws=500)
    for i in range(2):
        alone = bootstrap_interval(values[:, i], weights[:, i], draws=500)
        assert [x[i] for x in both] == list(alone)
    assert np.isnan(bootstrap_interval(np.array([[np.nan], [2.0], [np.nan]]))).all()


def test_p_of_what_is_not_known_is_not_known():
    assert np.isnan(p_value(np.array([np.nan, 1.0]), np.zeros((9, 2)))).tolist() == [True, False]


def test_mantel_of_many_is_mantel_of_each_and_of_all_orders():
    rng = np.random.default_rng(0)
    a, b = (x + x.swapaxes(1, 2) for x in (rng.random((2, 5, 5)), rng.random((3, 5, 5))))
    i, j = np.triu_indices(5, 1)
    for rank, correlation in ((False, stats.pearsonr), (True, stats.spearmanr)):
        r, p = mantel_table(a, b, draws=5000, rank=rank)
        for m, k in np.ndindex(2, 3):
            assert r[m, k] == pytest.approx(correlation(a[m][i, j], b[k][i, j]).statistic)
            assert (r[m, k], p[m, k]) == pytest.approx(mantel(a[m], b[k], draws=5000, rank=rank))
            every = [
                abs(correlation(a[m][np.ix_(o, o)][i, j], b[k][i, j]).statistic)
                for o in map(list, itertools.permutations(range(5)))
            ]
            assert p[m, k] == pytest.approx(np.mean(np.array(every) >= abs(r[m, k]) - 1e-9), abs=0.03)
    b[1, 0, 1] = np.nan
    assert np.isnan(mantel_table(a, b, draws=9)[1]).tolist() == [[False, True, False]] * 2


def test_flipped_signs_are_level():
    rng = np.random.default_rng(0)
    hits = sum(sign_flip_p(rng.standard_t(3, 25), 199, i) <= 0.05 for i in range(300))
    assert 5 <= hits <= 26
    assert sign_flip_p(2 + 0.1 * rng.standard_normal(20), 999) < 0.01 and sign_flip_p(np.zeros(3), 9) == 1
