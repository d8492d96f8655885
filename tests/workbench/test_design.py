"""``Design`` against scipy, against formulas written out here, and against what is known of small cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench.errors import InputError
from workbench.stats import Design, draws_for, fdr, least_q, step_down

SEEDS = range(300)


def test_few_units_have_students_interval():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        values = rng.normal(size=rng.integers(2, 8))
        level = rng.uniform(0.5, 0.99)
        found = Design(n=len(values)).bootstrap(values, level=level)
        expected = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx(tuple(expected)) and found.method == "t"


def test_right_or_wrong_has_the_exact_interval():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        right = rng.integers(0, 2, rng.integers(2, 90)).astype(float)
        found = Design(n=len(right)).bootstrap(right, bounds=(0, 1))
        expected = stats.binomtest(int(right.sum()), len(right)).proportion_ci()
        assert (found.low, found.high) == pytest.approx(tuple(expected)) and found.method == "exact"


def test_flips_of_few_units_are_all_flips():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        values, side = rng.normal(0.4, 1, rng.integers(3, 10)), rng.choice(["two-sided", "greater", "less"])
        found = Design(n=len(values)).flip(values, alternative=side)
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=side
        )
        assert found.p == pytest.approx(expected.pvalue)


def test_two_labels_have_welchs_statistic():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(rng.integers(2, 9), 3)), rng.normal(0, 3, (rng.integers(2, 9), 3))
        found = Design(n=len(a) + len(b)).permute(np.concatenate([a, b]), ["a"] * len(a) + ["b"] * len(b), draws=9)
        assert found.statistic == pytest.approx(stats.ttest_ind(b, a, equal_var=False).statistic)


def test_shuffled_labels_are_a_studentised_permutation_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4), rng.normal(1, 2, 5)
    found = Design(n=9).permute(np.r_[a, b], [0] * 4 + [1] * 5, draws=20_000)
    size = lambda x, y: abs(stats.ttest_ind(x, y, equal_var=False).statistic)  # noqa: E731
    expected = stats.permutation_test((a, b), size, n_resamples=np.inf, alternative="greater")
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    assert found.resolution == pytest.approx(1 / 126)
    assert Design(n=6).permute(rng.normal(size=6), [0, 0, 0, 1, 1, 1]).resolution == pytest.approx(0.1)


def test_more_labels_have_welch_and_jamess_statistic():
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=n) for n in (4, 6, 5)]
    mean, weight = np.array([x.mean() for x in groups]), np.array([len(x) / x.var(ddof=1) for x in groups])
    expected = (weight * (mean - (weight * mean).sum() / weight.sum()) ** 2).sum()
    found = Design(n=15).permute(np.concatenate(groups), np.repeat(["x", "y", "z"], [4, 6, 5]), draws=9)
    assert found.statistic == pytest.approx(expected)


def test_the_jackknife_of_a_mean_is_that_of_the_statistic():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(8, 20))
        clusters, weights, values = np.arange(n) // 2, rng.random(n), rng.normal(size=n)
        design = Design(clusters, np.arange(n) // 2 % 2, weights)
        own = design.jackknife(values)
        other = design.jackknife(lambda times, w=weights, x=values: (times @ (w * x)) / (times @ w))
        assert own.error == pytest.approx(other.error)
        plain = Design(n=n).jackknife(values)
        assert (plain.error, plain.dof) == pytest.approx((values.std(ddof=1) / n**0.5, n - 1))


def test_the_jackknife_takes_out_the_bias_of_a_square():
    rng = np.random.default_rng(1)
    values = rng.normal(1, 2, 12)
    found = Design(n=12).jackknife(lambda times: (times @ values / times.sum(1)) ** 2)
    # Quenouille: of a square of a mean the jackknife's correction is exact, the mean squared less its variance.
    assert found.value - found.bias == pytest.approx(values.mean() ** 2 - values.var(ddof=1) / 12)


def test_clusters_count_once():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2))
    twice = Design(np.repeat(np.arange(6), 3))
    alone = Design(n=6)
    for name in ("flip", "max_t"):
        one, many = getattr(alone, name)(values), getattr(twice, name)(np.repeat(values, 3, 0))
        np.testing.assert_allclose(one.p, many.p)
    one, many = alone.bootstrap(values), twice.bootstrap(np.repeat(values, 3, 0))
    np.testing.assert_allclose([one.low, one.high], [many.low, many.high])
    assert many.units.tolist() == [6, 6]
    labels = np.array([0, 0, 0, 1, 1, 1])
    one, many = alone.permute(values, labels), twice.permute(np.repeat(values, 3, 0), np.repeat(labels, 3))
    np.testing.assert_allclose(one.statistic, many.statistic)
    np.testing.assert_allclose(one.p, many.p)


def test_labels_and_draws_stay_within_strata_and_clusters():
    strata, clusters = np.repeat([0, 1], 8), np.arange(16) // 2
    design = Design(clusters, strata)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 2, 0])
    drawn = design.relabel(labels, 50)
    assert (drawn[:, 14:] == [2, 0]).all(), "a cluster with two labels keeps them"
    assert (drawn[:, :14:2] == drawn[:, 1:14:2]).all()
    assert (drawn[:, :8].sum(1) == 4).all() and (drawn[:, 8:14].sum(1) == 4).all()
    times = design.resample(50)
    assert (times[:, ::2] == times[:, 1::2]).all()
    assert (times[:, :8].sum(1) == 8).all() and (times[:, 8:].sum(1) == 8).all()
    assert (design.signs(50)[:, ::2] == design.signs(50)[:, 1::2]).all()


def test_groups_of_rows_are_each_alone():
    rng = np.random.default_rng(0)
    values, by = rng.normal(size=(30, 2)), np.repeat([0, 1], [10, 20])
    found = Design(strata=by).bootstrap(values, by=by)
    assert found.value == pytest.approx(np.stack([values[:10].mean(0), values[10:].mean(0)]))
    assert found.units.tolist() == [[10, 10], [20, 20]]
    few = Design(n=30).bootstrap(values[:, 0], by=np.repeat([0, 1], [5, 25]))
    assert few.method == "bootstrap-t, t" and few.said("items") == "bootstrap-t, t over 5 to 25 items"


def test_missing_values_are_left_out_and_one_cluster_says_nothing():
    values = np.array([[0.0, np.nan], [1.0, np.nan], [2.0, 5.0], [np.nan, np.nan]])
    found = Design(n=4).bootstrap(values)
    expected = stats.ttest_1samp([0, 1, 2], 0).confidence_interval()
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected))
    assert found.value[1] == 5 and np.isnan([found.low[1], found.high[1], found.error[1]]).all()
    assert np.isnan(Design(n=4).flip(np.full(4, np.nan)).p) and Design(n=4).flip(np.zeros(4)).p == 1
    assert np.isnan(Design(n=3).permute([1.0, 2.0, 3.0], [0, 0, 1]).p)
    lonely = Design(strata=[0, 0, 1]).bootstrap(np.array([1.0, 2.0, 3.0]))
    assert np.isnan(lonely.low)


def test_step_down_is_westfall_and_youngs_written_out():
    rng = np.random.default_rng(0)
    for _ in range(50):
        observed, null = rng.normal(1.5, 1, 5), rng.normal(size=(99, 5))
        order = np.argsort(-observed)
        p, before = np.empty(5), 0.0
        for i, cell in enumerate(order):
            most = null[:, order[i:]].max(1)
            before = max(before, (1 + (most >= observed[cell]).sum()) / 100)
            p[cell] = before
        assert step_down(observed, null) == pytest.approx(p)


def test_a_cell_that_is_not_known_is_of_no_family():
    null = np.random.default_rng(0).normal(size=(99, 3))
    null[:, 2] = np.nan
    p = step_down([2.0, np.nan, 9.0], null)
    assert np.isnan(p[1:]).all() and p[0] == pytest.approx((1 + (null[:, 0] >= 2).sum()) / 100)


def test_fdr_is_scipys_and_least_q_is_what_it_gives():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        p = rng.random(rng.integers(1, 40)) ** 2
        assert fdr(p) == pytest.approx(stats.false_discovery_control(p))
        draws, cells = int(rng.integers(19, 999)), len(p)
        least = np.ones(cells)
        least[0] = 1 / (1 + draws)
        assert least_q(draws, cells) == pytest.approx(fdr(least)[0])
        enough = draws_for(0.05, cells)
        assert least_q(enough, cells) <= 0.05 + 1e-12 and (enough == 0 or least_q(enough - 1, cells) > 0.05)


@pytest.mark.parametrize(
    "given", [{}, {"n": 0}, {"clusters": [1, 2], "n": 3}, {"weights": [1.0, -1.0]}, {"weights": [np.nan]}]
)
def test_designs_that_are_none_are_refused(given):
    with pytest.raises(InputError):
        Design(**given)


def test_values_of_another_length_are_refused():
    with pytest.raises(InputError, match="2 rows and the design 3"):
        Design(n=3).mean([1.0, 2.0])
    with pytest.raises(InputError, match="alternative"):
        Design(n=3).flip([1.0, 2.0, 3.0], alternative="both")
    with pytest.raises(InputError, match="null"):
        Design(n=3).max_t([1.0, 2.0, 3.0], null="none")
