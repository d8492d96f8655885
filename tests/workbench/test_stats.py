"""Nulls and intervals against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from workbench.stats import mantel, mantel_table, p_value


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
