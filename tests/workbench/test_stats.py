"""Nulls and intervals against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from workbench.stats import bootstrap_interval, mantel, mantel_table, p_value, sign_flip_p


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
