"""``Design`` against scipy, against formulas written out here, and against what is known of small cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from workbench.errors import InputError
from workbench.stats import Design, auroc, draws_for, fdr, least_q, p_value, step_down
from workbench.stats import design as module

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


def test_copies_of_answers_are_one_answer_and_unequal_ones_are_not_counted():
    right = np.array([1.0, 1, 1, 0, 1])
    expected = stats.binomtest(4, 5).proportion_ci()
    found = Design(np.repeat(np.arange(5), 3)).bootstrap(np.repeat(right, 3), bounds=(0, 1))
    assert (found.low, found.high) == pytest.approx(tuple(expected)) and found.said() == "exact over 5 units"
    assert Design(weights=[1, 2, 1, 1, 1]).bootstrap(right, bounds=(0, 1)).method == "t"
    groups = Design(strata=[0, 0, 0, 1, 1]).bootstrap(right, by=np.array([0, 0, 0, 1, 1]), bounds=(0, 1))
    assert groups.method == "exact" and groups.low[0] == pytest.approx(stats.binomtest(3, 3).proportion_ci().low)
    assert Design(strata=[0, 0, 0, 1, 1]).bootstrap(right, bounds=(0, 1)).method == "t"


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
    size = lambda x, y: -stats.ttest_ind(x, y, equal_var=False).pvalue  # noqa: E731
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


def test_more_labels_are_compared_by_welchs_p():
    rng = np.random.default_rng(2)
    groups = [rng.normal(0, 1, 3), rng.normal(0, 3, 2), rng.normal(1, 1, 3)]
    found = Design(n=8).permute(np.concatenate(groups), [0, 0, 0, 1, 1, 2, 2, 2], draws=20_000)
    size = lambda *x: -stats.f_oneway(*x, equal_var=False).pvalue  # noqa: E731
    expected = stats.permutation_test(groups, size, n_resamples=np.inf, alternative="greater", vectorized=False)
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)


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


def test_strata_have_the_textbooks_error():
    """Of a mean over strata: the sum of share^2 variance / n, whatever the strata's sizes and means (Cochran 1977)."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        size = rng.integers(2, 7, rng.integers(2, 5))
        strata = np.repeat(np.arange(len(size)), size)
        values = rng.normal(size=len(strata)) + 5 * strata
        parts = [(values[strata == h].var(ddof=1) * n / len(strata) ** 2, n - 1) for h, n in enumerate(size)]
        variance = sum(v for v, _ in parts)
        dof = max(1, variance**2 / sum(v**2 / d for v, d in parts))
        design = Design(strata=strata)
        for what in (values, lambda times, x=values: (times @ x) / times.sum(1)):
            found = design.jackknife(what)
            assert (found.error, found.dof) == pytest.approx((variance**0.5, dof))
        assert design.bootstrap(values).high == pytest.approx(values.mean() + variance**0.5 * stats.t.ppf(0.975, dof))
        squared = design.jackknife(lambda times, x=values: ((times @ x) / times.sum(1)) ** 2)
        assert squared.bias == pytest.approx(variance)


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


def test_far_from_zero_and_large_and_small_are_the_same():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=20), [0] * 10 + [1] * 10
    design = Design(n=20)
    test, interval, many = design.permute(values, labels, draws=99), design.bootstrap(values), design.max_t(values)
    for far in (1e6, 1e9):
        moved = design.permute(values + far, labels, draws=99)
        expected = stats.ttest_ind(values[10:], values[:10], equal_var=False).statistic
        assert moved.statistic == pytest.approx(expected, rel=1e-5) and moved.p == test.p
        found = design.bootstrap(values + far)
        assert np.array(found[:3]) - far == pytest.approx(np.array(interval[:3]), abs=1e-5)
    for scale in (1e-12, 1e12):
        assert design.permute(values * scale, [0, 0, 1, 1, 2] * 4, draws=9).statistic == pytest.approx(
            design.permute(values, [0, 0, 1, 1, 2] * 4, draws=9).statistic
        )
        found = design.max_t(values * scale)
        assert [float(found.p), float(found.low) / scale] == pytest.approx([float(many.p), float(many.low)])
    alike = design.bootstrap(np.full(20, 0.1))
    assert alike.low == alike.high == pytest.approx(0.1) and alike.error == 0


def test_of_missing_values_the_shuffles_that_leave_too_few_do_not_count():
    values, labels = np.array([0.3, 1.9, np.nan, np.nan, 2.5, 2.2, 3.1, np.nan]), np.repeat([0, 1], 4)

    def size(first: tuple[int, ...]) -> float:
        groups = [values[[i for i in range(8) if (i in first) == own]] for own in (True, False)]
        groups = [x[~np.isnan(x)] for x in groups]
        return -stats.ttest_ind(*groups, equal_var=False).pvalue if min(map(len, groups)) > 1 else np.nan

    sizes = np.array([x for x in map(size, combinations(range(8), 4)) if not np.isnan(x)])
    found = Design(n=8).permute(values, labels, draws=20_000)
    assert found.p == found.p_family == pytest.approx((sizes >= size((0, 1, 2, 3)) - 1e-9).mean(), abs=0.01)


def test_the_least_p_of_shuffles_is_that_of_the_arrangements():
    rng = np.random.default_rng(0)
    least = lambda labels, clusters=None: (  # noqa: E731
        Design(clusters, n=len(labels)).permute(rng.normal(size=len(labels)), labels, draws=10**4).resolution
    )
    assert least([0, 0, 0, 1, 1, 1, 2, 2]) == pytest.approx(2 / 560), "two of three labels may be exchanged"
    assert least([0, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3]) == pytest.approx(1 / 3), "one cluster is mixed"
    assert Design(n=3000).permute(rng.normal(size=3000), np.arange(3000) % 2, draws=9).resolution == 0.1


def test_draws_do_not_depend_on_how_many_fit_in_memory(monkeypatch):
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(24, 3)), np.arange(24) % 2
    whole = Design(strata=np.repeat([0, 1], 12))
    calls = [lambda: whole.flip(values), lambda: whole.max_t(values), lambda: whole.permute(values, labels)]
    before = [call() for call in calls]
    monkeypatch.setattr(module, "AT_ONCE", 999)
    for call, found in zip(calls, before, strict=True):
        for one, other in zip(call(), found, strict=True):
            np.testing.assert_allclose(one, other)


def test_intervals_together_of_unequal_weights_hold_them_together():
    """And one mean's ends are those whose T, of the differences from them, is as large as flips make it."""
    held = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        found = Design(weights=rng.lognormal(0, 1, 24)).max_t(rng.normal(size=(24, 4)), draws=199, null="flip")
        held.append(bool(((found.low <= 0) & (found.high >= 0)).all()))
    assert stats.binomtest(sum(held), 400).proportion_ci(0.999).high >= 0.95
    weights, values = rng.random(12) + 0.5, rng.normal(size=12)
    found = Design(weights=weights).max_t(values, null="flip")
    sizes = [abs((weights * (values - end)).sum()) / np.sqrt((weights**2 * (values - end) ** 2).sum())
             for end in (found.low, found.high)]  # fmt: skip
    assert sizes[0] == pytest.approx(sizes[1])


def test_what_was_not_drawn_has_no_p_and_too_few_draws_no_interval():
    values = np.arange(20.0)
    assert np.isnan(Design(n=20).max_t(values, null="bootstrap").p_flip)
    assert np.isnan(Design(n=8).max_t(values[:8], null="bootstrap").p_flip)
    assert np.isnan(Design(n=20).max_t(values, null="flip").p_bootstrap)
    for draws in (0, 1, 18):
        found = Design(n=20).max_t(values, draws=draws)
        assert (found.low, found.high) == (-np.inf, np.inf)
    assert np.isfinite(Design(n=20).max_t(values, draws=19).low)
    assert Design(n=1000).bootstrap(np.arange(1000.0), draws=1).method == "t"


def test_a_draw_without_a_value_is_left_out():
    values = np.arange(1000.0)
    mean = lambda times: np.where(times[:, 0] > 3, np.nan, times @ values / 1000)  # noqa: E731
    found, plain = Design(n=1000).bootstrap(mean), Design(n=1000).bootstrap(values)
    assert np.array(found[:4]) == pytest.approx(np.array(plain[:4]), rel=0.05)


def test_infinities_are_what_they_are():
    null = np.array([np.inf, 1.0, np.inf, -np.inf])
    assert p_value(np.inf, null) == 3 / 5 and p_value(-np.inf, null) == 1
    assert step_down([np.inf, 1.0], np.c_[null, null]).tolist() == [3 / 5, 4 / 5]
    found = Design(n=9).bootstrap(np.r_[np.arange(8.0), np.inf])
    assert found.value == np.inf and np.isnan([found.low, found.high]).all()
    assert Design(weights=[1, 1, 0]).mean([1.0, 2.0, np.inf]) == 1.5


def test_labels_of_any_kind_stay_apart_and_in_order():
    for labels, codes in (
        ([1, "1", None, "None", 1], [0, 3, 1, 2, 0]),
        ([("b", 1), ("a", 10), ("a", 9), ("b", 1)], [2, 1, 0, 2]),
        (np.array([[1, 10], [1, 9], [0, 3], [1, 9]]), [2, 1, 0, 1]),
        (np.array([10, 9, 10], object), [1, 0, 1]),
        ([True, False], [1, 0]),
    ):
        codes = np.array(codes)
        found = Design(labels).cluster
        assert (found[:, None] == found).tolist() == (codes[:, None] == codes).tolist()
        if len({type(x) for x in labels}) == 1:
            assert found.tolist() == codes.tolist()


def test_a_design_keeps_what_it_was_given():
    weights = np.ones(3)
    design = Design(weights=weights)
    weights[0] = 9
    assert design.mean([3.0, 0.0, 0.0]) == 1
    mean, variance = Design([0, 0, 1, 1, 2, 2]).mean_and_variance(np.arange(6.0), np.array([0, -1, -2, 1, 0, 2]), 2)
    assert mean.tolist() == [[2, 3]] and variance[0, 0] == 4 and np.isnan(variance[0, 1])


def test_auroc_takes_ones_and_zeros():
    assert auroc(np.array([0.1, 0.9, 0.8, 0.7]), np.array([0, 1, 1, 0])) == 1


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
    "given",
    [{}, {"n": 0}, {"n": -1}, {"clusters": [1, 2], "n": 3}, *({"weights": [1, x]} for x in (-1, np.nan, np.inf))],
)
def test_designs_that_are_none_are_refused(given):
    with pytest.raises(InputError):
        Design(**given)


def test_values_of_another_length_are_refused():
    with pytest.raises(InputError, match="2 rows and the design 3"):
        Design(n=3).mean([1.0, 2.0])
    for values, by in ((1.0, None), ([1.0, 2.0, 3.0], [0, -1, 1]), ([1.0, 2.0, 3.0], [0, 0.5, 1])):
        with pytest.raises(InputError):
            Design(n=3).mean(values, by=by)
    with pytest.raises(InputError, match="weights"):
        Design(weights=np.ones((3, 2))).mean(np.ones(3))
    with pytest.raises(InputError, match="labels has 2 rows"):
        Design(n=3).permute([1.0, 2.0, 3.0], [0, 1])
    for name in ("bootstrap", "max_t"):
        with pytest.raises(InputError, match="level=95"):
            getattr(Design(n=3), name)([1.0, 2.0, 3.0], level=95)
    with pytest.raises(InputError, match="alternative"):
        Design(n=3).flip([1.0, 2.0, 3.0], alternative="both")
    with pytest.raises(InputError, match="null"):
        Design(n=3).max_t([1.0, 2.0, 3.0], null="none")
