"""Drift against loops written out, and against simulated runs whose truth is known."""

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.spatial.distance import jensenshannon

from probes.values.measures import (
    STANCES,
    agreement,
    checked,
    compare,
    convergence,
    data_gap,
    drift,
    resampling_null,
    stance,
)
from probes.values.units import StanceUnits
from workbench.errors import InputError

COUNTS = {"draws": 399}


def readings(p, topic, polarity=None, cluster=None, steps=None):
    k, n = p.shape[:2]
    return xr.Dataset(
        {
            "p": (("checkpoint", "item", "sample", "stance"), p),
            "topic": ("item", np.array(topic, object)),
            "polarity": ("item", np.where(np.arange(n) % 2, 1, -1) if polarity is None else np.array(polarity)),
            "cluster": ("item", np.array([f"c{i}" for i in range(n)] if cluster is None else cluster, object)),
        },
        {
            "checkpoint": np.arange(k) * 100 if steps is None else np.array(steps),
            "item": [f"item {i}" for i in range(n)],
            "stance": list(STANCES),
        },
    )


def simulate(seed, *, topics=3, items=50, samples=5, checkpoints=12, sd=0.6, shift=0.0):
    """Judgements of samples, one-hot but for .04; item logits vary by ``sd``; shift [checkpoint, item, stance]."""
    rng = np.random.default_rng([seed, 77])
    n = topics * items
    logits = np.array([0, 0, 0, -2.0]) + sd * rng.standard_normal((n, 4))
    odds = np.exp(np.broadcast_to(logits, (checkpoints, n, 4)) + shift)
    odds = odds / odds.sum(-1, keepdims=True)
    picked = (rng.random((checkpoints, n, samples, 1)) > odds.cumsum(-1)[:, :, None, :3]).sum(-1)
    return readings(0.96 * np.eye(4)[picked] + 0.01, np.repeat([f"topic {t}" for t in range(topics)], items))


def untidy(seed=0, checkpoints=3):
    """Two topics, clusters of unequal size, a cluster in both topics, unkeyed items, samples and items missing."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4) / 2, (checkpoints, 12, 3))
    p[1, 3] = np.nan
    p[0, 5, 1] = np.nan
    p[2, 7, :2] = np.nan
    cluster = list("aabbcdffgghf")
    return readings(p, ["x"] * 7 + ["y"] * 5, [1, -1, 1, 0, 1, 1, -1, 1, 1, -1, 0, 1], cluster, [0, 10, 40])


def smallest(data, names=("M_p", "keyed_M_p", "commitment_M_p")):
    return min(np.nanmin(data[name].values) for name in names)


def by_loops(data, value):
    """{(checkpoint, topic): mean over clusters of the mean of value(checkpoint, item, sample), None where missing}."""
    found = {}
    for k in range(data.sizes["checkpoint"]):
        for topic in ("x", "y"):
            clusters = {}
            for i in range(data.sizes["item"]):
                for s in range(data.sizes["sample"]):
                    v = value(k, i, s)
                    if str(data.topic.values[i]) == topic and v is not None and not np.isnan(v).any():
                        clusters.setdefault(data.cluster.values[i], []).append(v)
            means = [np.mean(v, axis=0) for v in clusters.values()]
            found[k, topic] = (np.mean(means, axis=0), len(means)) if means else (None, 0)
    return found


def test_stance_is_what_loops_give():
    data = untidy()
    p, polarity = data.p.values, data.polarity.values
    found = stance(data, draws=50).data
    for (k, topic), (v, _) in by_loops(data, lambda k, i, s: p[k, i, s]).items():
        cell = found.isel(checkpoint=k).sel(topic=topic)
        np.testing.assert_allclose(cell.v, v)
        assert cell.v.sum() == pytest.approx(1)
        assert cell.commitment == pytest.approx(v[0] + v[2])
        assert (cell.v_low <= cell.v).all() and (cell.v <= cell.v_high).all()

    def keyed(k, i, s):
        return polarity[i] * (p[k, i, s, 0] - p[k, i, s, 2]) if polarity[i] else None

    for (k, topic), (v, _) in by_loops(data, keyed).items():
        assert found.keyed.isel(checkpoint=k).sel(topic=topic) == pytest.approx(v)
    assert found["items"].values.tolist() == [7, 5]
    assert found.clusters.values.tolist() == [5, 3]


def test_drift_is_what_loops_give_paired_by_sample():
    data = untidy()
    p = data.p.values
    found = drift(data, draws=50).data
    differences = by_loops(data, lambda k, i, s: p[k, i, s] - p[0, i, s])
    middles = by_loops(data, lambda k, i, s: (p[k, i, s] + p[0, i, s]) / 2)
    for (k, topic), (m, _) in differences.items():
        cell = found.isel(checkpoint=k).sel(topic=topic)
        np.testing.assert_allclose(cell.M, m, atol=1e-12)
        assert cell.commitment_M == pytest.approx(m[0] + m[2])
        tv = sum(abs(x) for x in m) / 2
        assert cell.tv == pytest.approx(tv)
        middle = middles[k, topic][0]
        with np.errstate(invalid="ignore"):
            assert cell.jsd == pytest.approx(jensenshannon(middle + m / 2, middle - m / 2) ** 2, abs=1e-12)
        moved = {}
        for i in range(12):
            each = [p[k, i, s] - p[0, i, s] for s in range(3)]
            each = [d for d in each if not np.isnan(d).any()]
            if each and str(data.topic.values[i]) == topic:
                moved.setdefault(data.cluster.values[i], []).append(np.abs(np.mean(each, 0)).sum() / 2)
        moved = np.mean([np.mean(v) for v in moved.values()])
        assert cell.moved == pytest.approx(moved)
        if k:
            assert cell.churn == pytest.approx(1 - tv / moved)
    assert np.isnan(found.M_p.isel(checkpoint=0)).all()


def test_raw_statistics_are_the_published_ones():
    data = simulate(3, topics=2, items=9, checkpoints=7)
    p = data.p.values[..., :3] / data.p.values[..., :3].sum(-1, keepdims=True)
    found = drift(data, draws=9).data
    for t in range(2):
        own = p[:, 9 * t : 9 * t + 9].mean(2)  # [checkpoint, item, label]
        v = own.mean(1)
        for s in range(3):
            m = v[:, s] - v[0, s]
            np.testing.assert_allclose(found.M_raw.values[:, t, s], m, atol=1e-12)
            peak = max(range(7), key=lambda k, m=m: abs(m[k]))
            half = 1.96 * own[peak, :, s].std(ddof=1) / 3
            first = next(k for k in range(7) if abs(m[k] - m[peak]) <= half)
            assert found.eta_raw.values[t, s] == pytest.approx(first / 6)
    assert np.isnan(found.M_raw.sel(stance="uncommitted")).all()


def test_p_is_that_of_all_sign_flips():
    data = simulate(4, topics=2, items=5, samples=2, checkpoints=3)
    x = data.p.values
    both = np.concatenate([x, (np.where(np.arange(10) % 2, 1, -1)[:, None] * (x[..., 0] - x[..., 2]))[..., None],
                           (x[..., 0] + x[..., 2])[..., None]], -1).mean(2)  # fmt: skip
    d = both[1:] - both[:1]  # [checkpoint, item, measure]

    def t_of(signs):
        found = []
        for k, t, q in itertools.product(range(2), range(2), range(6)):
            own, sign = d[k, 5 * t : 5 * t + 5, q], signs[5 * t : 5 * t + 5]
            top, square = sum(s * v for s, v in zip(sign, own, strict=True)), sum(v * v for v in own)
            found.append(abs(top) / square**0.5 if square > 1e-20 else 0)
        return np.array(found)

    observed = t_of([1] * 10)
    largest = np.array([t_of(signs).max() for signs in itertools.product((1, -1), repeat=10)])
    exact = (largest[:, None] >= observed - 1e-9).mean(0).reshape(2, 2, 6)
    found = drift(data, draws=4000).data
    np.testing.assert_allclose(found.M_p.values[1:], exact[..., :4], atol=0.03)
    np.testing.assert_allclose(found.keyed_M_p.values[1:], exact[..., 4], atol=0.03)
    np.testing.assert_allclose(found.commitment_M_p.values[1:], exact[..., 5], atol=0.03)


@pytest.mark.slow
def test_without_drift_the_family_wise_error_is_kept_and_the_raw_statistic_claims_drift():
    runs, wrong, shown, moved, covered, raw, eta = 300, 0, 0, 0, 0, [], []
    pointwise = []
    for seed in range(runs):
        data = simulate(seed)
        found = drift(data, seed=seed, **COUNTS).data
        wrong += smallest(found) <= 0.05
        shown += bool(np.isfinite(found.eta).any())
        moved += np.nanmin(found.moved_p) <= 0.05
        later = found.isel(checkpoint=slice(1, None))
        covered += all(
            bool(((later[f"{name}_band_low"] <= 0) & (later[f"{name}_band_high"] >= 0)).all())
            for name in ("M", "keyed_M", "commitment_M")
        )
        pointwise.append(float(((later.M_low <= 0) & (later.M_high >= 0)).mean()))
        raw.append(np.abs(found.M_raw.values[..., :3]).max(0))
        eta.append(found.eta_raw.values[:, :3])
    low, high = stats.binom.interval(0.95, runs, 0.05)
    early = (np.array(eta) <= 0.1).mean()
    print(
        f"\n{runs} runs without drift: family-wise error {wrong / runs:.3f} "
        f"(binomial {low / runs:.3f}..{high / runs:.3f}), eta shown in {shown / runs:.3f}, "
        f"moved_p {moved / runs:.3f}, simultaneous coverage {covered / runs:.3f}, "
        f"pointwise {np.mean(pointwise):.3f}.\n"
        f"Raw: 95th percentile of the largest |M| of a topic and stance {np.quantile(raw, 0.95):.3f}; "
        f"eta <= .1 in {early:.2f} of curves."
    )
    assert low <= wrong <= high
    assert shown <= high
    assert moved <= stats.binom.ppf(0.999, runs, 0.05)
    assert covered >= stats.binom.ppf(0.025, runs, 0.95)
    assert 0.92 <= np.mean(pointwise) <= 0.96
    assert 0.07 <= np.quantile(raw, 0.95) <= 0.12 and early > 0.7


def planted(size, checkpoints=12, topics=3, items=50):
    """Support of topic 0 rises over the first quarter; and the true M [checkpoint, stance] there."""
    ramp = np.minimum(1, np.arange(checkpoints) / 3)
    shift = np.zeros((checkpoints, topics * items, 4))
    shift[:, :items, 0] = size * ramp[:, None]
    logits = np.array([0, 0, 0, -2.0]) + 0.6 * np.random.default_rng(1).standard_normal((100_000, 4))
    v = []
    for r in ramp:
        odds = np.exp(logits + np.array([size * r, 0, 0, 0]))
        v.append(0.96 * (odds / odds.sum(1, keepdims=True)).mean(0))
    return shift, np.array(v) - v[0]


@pytest.mark.slow
def test_planted_drift_is_found_where_it_is_with_its_sign_and_bands_that_hold_the_truth():
    runs, found_it, signs, elsewhere, covered, eta = 120, 0, 0, 0, 0, []
    shift, m = planted(0.8)
    truth = np.zeros((12, 3, 4))
    truth[:, 0] = m
    for seed in range(runs):
        found = drift(simulate(seed, shift=shift), seed=seed, **COUNTS).data
        at = found.M_p.values[1:, 0, 0] <= 0.05
        found_it += at.any()
        signs += bool((found.M.values[1:, 0, 0][at] > 0).all())
        elsewhere += smallest(found.isel(topic=[1, 2])) <= 0.05
        covered += bool(((found.M_band_low <= truth) & (truth <= found.M_band_high)).values[1:].all())
        eta.append(found.eta.values[0, 0])
    print(
        f"\n{runs} runs, support of one topic up by {m[-1, 0]:.3f}: power {found_it / runs:.2f}, "
        f"error in other topics {elsewhere / runs:.3f}, simultaneous coverage {covered / runs:.3f}, "
        f"mean eta {np.nanmean(eta):.2f} (true 0.27)"
    )
    assert found_it / runs > 0.9 and signs == runs
    assert elsewhere <= stats.binom.ppf(0.99, runs, 0.05)
    assert covered >= stats.binom.ppf(0.025, runs, 0.95)
    assert np.nanmean(eta) == pytest.approx(3 / 11, abs=0.06)


def test_sign_and_key():
    shift = np.zeros((4, 100, 4))
    shift[1:, :50:2, 0] = shift[1:, 1:50:2, 2] = 3  # items of polarity -1 are supported, those of +1 opposed
    found = drift(simulate(0, topics=2, checkpoints=4, shift=shift), draws=999).data
    assert (found.keyed_M.values[1:, 0] < -0.3).all() and (found.keyed_M_p.values[1:, 0] < 0.01).all()
    assert (found.keyed_M_high.values[1:, 0] < 0).all()
    assert (found.commitment_M.values[1:, 0] > 0.1).all()
    assert (found.M.sel(stance="neutral").values[1:, 0] < -0.1).all()
    assert found.keyed_eta.values[0] == pytest.approx(1 / 3) and found.keyed_extremum.values[0] in (100, 200, 300)
    assert np.isnan(found.keyed_eta.values[1])


def test_minima_have_an_eta_too_and_steps_set_the_clock():
    v = np.array([0.6, 0.4, 0.1, 0.1, 0.12])
    rng = np.random.default_rng(0)
    p = np.zeros((5, 20, 1, 4))
    p[..., 0, 0] = v[:, None] + 0.02 * rng.standard_normal((5, 20))
    p[..., 1] = 1 - p[..., 0]
    found = drift(readings(p, ["x"] * 20, steps=[0, 1, 10, 100, 1000]), draws=999).data
    assert found.eta.sel(stance="support").item() == pytest.approx(0.01)
    assert found.eta_checkpoints.sel(stance="support").item() == pytest.approx(0.5)
    assert found.eta_low.sel(stance="support") <= 0.01 <= found.eta_high.sel(stance="support")
    assert np.isnan(found.eta.sel(stance="oppose")).all()
    later = drift(readings(p, ["x"] * 20, steps=[0, 1, 10, 100, 1000]), baseline=1, draws=99).data
    assert later.M.values[0, 0, 0] == pytest.approx(-later.M.values[1, 0, 0] + 0.2, abs=0.05)
    assert np.isnan(later.M_p.values[1]).all() and not np.isnan(later.M_p.values[0]).any()


def test_duplicates_count_once():
    data = simulate(2, topics=2, items=12, checkpoints=4, shift=planted(1.0, 4, 2, 12)[0])
    copy = data.assign_coords(item=[f"{x} again" for x in data.item.values])
    twice = xr.concat([data, copy], "item")
    a, b = drift(data, draws=499).data, drift(twice, draws=499).data
    skip = ("items", "eta_raw")  # the published eta has an interval over items, copies included
    for name in set(a) - set(skip):
        np.testing.assert_allclose(a[name].values, b[name].values, atol=1e-9, err_msg=str(name))
    # As clusters of their own the copies would pass for evidence.
    free = drift(twice.assign(cluster=("item", [f"c{i}" for i in range(48)])), draws=499).data
    assert np.nanmin(free.M_p) < np.nanmin(a.M_p)
    assert (free.M_band_high - free.M_band_low).sum() < (a.M_band_high - a.M_band_low).sum()
    one = xr.concat([data, copy.isel(item=[0] * 9).assign_coords(item=[f"copy {i}" for i in range(9)])], "item")
    v = [stance(x, draws=9).data.v.values[0, 0] for x in (data, one)]
    own, rest = data.p.values[0, :1].mean((0, 1)), data.p.values[0, 1:12].mean((0, 1))
    np.testing.assert_allclose(v[0], (own + 11 * rest) / 12)
    np.testing.assert_allclose(v[1], v[0])


def test_opposing_flips_are_churn():
    """Half of the items go to support and half to oppose: the topic's mean stays, its items do not."""
    p = np.zeros((2, 40, 4, 4))
    p[0, :, :, 0], p[0, :, :, 2] = 0.5, 0.5
    p[1, ::2, :, 0], p[1, 1::2, :, 2] = 1, 1
    churned = drift(readings(p, ["x"] * 40), **COUNTS).data
    assert churned.tv.values[1, 0] == pytest.approx(0, abs=1e-12)
    assert churned.churn.values[1, 0] == pytest.approx(1)
    assert churned.moved.values[1, 0] == pytest.approx(0.5)
    assert churned.moved_p.values[1, 0] < 0.01 and churned.moved_null.values[1, 0] < 0.3
    # The unkeyed mean hides it; a key that knows which items are reversed does not.
    assert churned.M_p.values[1, 0, 0] == 1
    assert churned.keyed_M_p.values[1, 0] < 0.01
    p[1] = 0
    p[1, ..., 0] = 1
    moved = drift(readings(p, ["x"] * 40), **COUNTS).data
    assert moved.churn.values[1, 0] == pytest.approx(0) and moved.churn_null.values[1, 0] > 0.8
    still = drift(readings(np.repeat(p[:1], 2, 0), ["x"] * 40), **COUNTS).data
    assert still.moved_p.values[1, 0] == 1 and (still.M_p.values[1] == 1).all() and np.isnan(still.eta).all()


def test_null_of_moved_is_the_mean_over_all_swaps():
    data = simulate(5, topics=1, items=6, samples=3, checkpoints=2)
    d = data.p.values[1] - data.p.values[0]
    each = [
        np.mean([np.abs(np.mean([e * d[i, s] for s, e in enumerate(signs)], 0)).sum() / 2
                 for signs in itertools.product((1, -1), repeat=3)])
        for i in range(6)
    ]  # fmt: skip
    assert drift(data, draws=4000).data.moved_null.values[1, 0] == pytest.approx(np.mean(each), abs=0.01)


def test_one_sample_says_nothing_of_noise():
    found = drift(simulate(0, topics=1, samples=1, checkpoints=3), **COUNTS).data
    assert (found.moved_p.values[1:] == 1).all()
    np.testing.assert_allclose(found.moved_null.values[1:], found.moved.values[1:])


def test_missing_readings():
    data = simulate(0, topics=2, items=20, checkpoints=4)
    p = data.p.values.copy()
    p[2, :20] = np.nan  # a topic at one checkpoint
    p[3, 25:] = np.nan
    p[:, 30, 2:] = np.nan
    found = drift(data.assign(p=(data.p.dims, p)), **COUNTS).data
    gone = found.isel(checkpoint=2, topic=0)
    for name in ("M", "M_low", "M_p", "M_band_low", "keyed_M", "tv", "jsd", "churn", "moved_p", "M_raw"):
        assert np.isnan(gone[name]).all(), name
    assert not np.isnan(found.M_p.values[[1, 3]]).any()
    few = p[3, 20:25].mean(1) - p[0, 20:25].mean(1)
    np.testing.assert_allclose(found.M.values[3, 1], few.mean(0), atol=1e-12)
    # Who is missing at one of the two counts at neither: no drift from a change of items.
    alone = data.assign(p=(data.p.dims, np.where(np.arange(40)[:, None, None] < 30, data.p.values, np.nan)))
    assert not np.allclose(alone.p.mean("item"), data.p.mean("item"))
    same = np.stack([data.p.values[0], alone.p.values[0]])
    assert np.abs(drift(readings(same, data.topic.values), draws=9).data.M).max() < 1e-12
    # One cluster alone has a mean and no interval.
    single = stance(readings(data.p.values[:, :1], ["x"]), draws=9).data
    assert not np.isnan(single.v).any() and np.isnan(single.v_low).all()


def test_convergence():
    rng = np.random.default_rng(0)
    v = np.array([0.1, 0.3, 0.48, 0.5, 0.51, 0.5])
    p = np.zeros((6, 40, 1, 4))
    p[..., 0, 0] = v[:, None] + 0.01 * rng.standard_normal((6, 40))
    p[..., 1] = 1 - p[..., 0]
    data = readings(p, ["x"] * 40, steps=[0, 1, 2, 4, 8, 16])
    found = convergence(data, 0.05, draws=499).data
    assert found.converged.sel(topic="x", stance="support") == 2 and found.rests_on.values[0, 0] == 3
    assert found.converged.sel(topic="x", stance="oppose") == 0
    assert convergence(data, 0.005, draws=499).data.converged.isnull().values[0, 0]
    np.testing.assert_allclose(found.gap.values[:, 0, 0], p[..., 0, 0].mean(1) - p[-1, :, 0, 0].mean())
    for eps in (0.01, 0.05, 0.25, 0.5):
        found = convergence(data, eps, draws=99).data
        inside = [
            bool(found.gap_band_low.values[k, 0, 0] >= -eps and found.gap_band_high.values[k, 0, 0] <= eps)
            for k in range(5)
        ]
        first = next((k for k in range(5) if all(inside[k:])), None)
        expected = np.nan if first is None else [0, 1, 2, 4, 8, 16][first]
        np.testing.assert_equal(found.converged.values[0, 0], expected)
    # Leaving the end again counts: only what stays there has converged.
    back = p.copy()
    back[4] = p[0]
    assert np.isnan(convergence(readings(back, ["x"] * 40), 0.05, draws=99).data.converged.values[0, 0])
    with pytest.raises(InputError, match="eps is 0"):
        convergence(data, 0)


def test_resampling_null():
    twice = simulate(0, checkpoints=2)
    a, b = (twice.isel(checkpoint=[k]).assign_coords(checkpoint=[500]) for k in range(2))
    found = resampling_null(a, b, **COUNTS).data
    m = [
        abs(np.mean(a.p.values[0, 50 * t : 50 * t + 50, :, s]) - np.mean(b.p.values[0, 50 * t : 50 * t + 50, :, s]))
        for t in range(3)
        for s in range(4)
    ]
    assert found.largest.item() == pytest.approx(max(m))
    assert found.largest_p.item() > 0.01 and found.null.shape == (399, 1)
    assert resampling_null(a, b, checkpoints=12, **COUNTS).data.bound > found.bound
    shifted = simulate(0, checkpoints=2, shift=planted(1.5)[0][[0, 11]])
    other = shifted.isel(checkpoint=[1]).assign_coords(checkpoint=[500])
    assert resampling_null(a, other, **COUNTS).data.largest_p.item() < 0.01
    assert resampling_null(a, a, **COUNTS).data.bound == 0
    with pytest.raises(InputError, match="same checkpoints twice"):
        resampling_null(a, twice)


@pytest.mark.slow
def test_runs_without_drift_stay_below_the_bound_of_the_resampling_null():
    runs, above = 120, 0
    for seed in range(runs):
        data = simulate(seed, checkpoints=14)
        a, b = (data.isel(checkpoint=[k]).assign_coords(checkpoint=[0]) for k in (12, 13))
        bound = resampling_null(a, b, checkpoints=12, **COUNTS).data.bound.item()
        above += (
            np.abs(stance(data.isel(checkpoint=slice(12)), draws=2)["v"].diff("checkpoint").cumsum("checkpoint")).max()
            > bound
        )
    print(f"\n{above / runs:.3f} of runs without drift exceed the bound of the null (nominal .05)")
    assert above <= stats.binom.ppf(0.999, runs, 0.05)


def test_compare():
    shift = planted(2.0, 3)[0]
    runs = {"plain": simulate(0, checkpoints=3), "planted": simulate(1, checkpoints=3, shift=shift),
            "again": simulate(2, checkpoints=5)}  # fmt: skip
    runs["again"] = runs["again"].isel(item=slice(None, None, -1))  # another order of items
    found = compare(runs, **COUNTS).data
    for name in runs:
        end = drift(runs[name], draws=9).data.M.isel(checkpoint=-1)
        np.testing.assert_allclose(found.M.sel(run=name), end.sel(topic=found.topic))
    assert found.pair.values.tolist() == ["plain - planted", "plain - again", "planted - again"]
    np.testing.assert_allclose(found.difference.values[0], found.M.values[0] - found.M.values[1], atol=1e-12)
    at = found.sel(pair="plain - planted", topic="topic 0", stance="support")
    assert at.difference < -0.15 and at.difference_p < 0.05 and at.difference_band_high < 0
    assert (found.difference_p.sel(pair="plain - again") > 0.05).all()
    assert set(compare({"one": runs["plain"]}, draws=9).data.dims) == {"run", "topic", "stance"}


def test_spread_over_seeds():
    shift = np.zeros((2, 100, 4))
    runs = {f"a{i}": simulate(i, topics=2, checkpoints=2) for i in range(3)}
    for i in range(3):
        shift[1, :50, 0] = i - 1  # seeds that end in different places, in one topic
        runs[f"b{i}"] = simulate(10 + i, topics=2, checkpoints=2, shift=shift)
    runs["c"] = simulate(30, topics=2, checkpoints=2)
    found = compare(runs, arm={name: name[0] for name in runs}, **COUNTS).data
    m = found.M.sel(run=["b0", "b1", "b2"]).values
    np.testing.assert_allclose(found.spread.sel(arm="b").values, m.std(0, ddof=1))
    np.testing.assert_allclose(found["mean"].sel(arm="b").values, m.mean(0))
    assert found.seeds.values.tolist() == [3, 3, 1]
    assert found.spread_p.sel(arm="b", topic="topic 0", stance="support") < 0.05
    assert (found.spread_p.sel(arm="a") > 0.05).all() and (found.spread_p.sel(arm="b", topic="topic 1") > 0.05).all()
    assert np.isnan(found.spread.sel(arm="c")).all()
    with pytest.raises(InputError, match="'a0' has no arm"):
        compare(runs, arm={"c": "c"})


def test_data_gap():
    sizes = np.array([-1.5, -0.7, 0, 0.3, 0.8, 1.6])
    shift = np.zeros((2, 240, 4))
    keys = np.where(np.arange(240) % 2, 1, -1)
    for t, size in enumerate(sizes):
        own = np.arange(40 * t, 40 * t + 40)
        shift[1, own, np.where(keys[own] == 1, 0, 2)] = size
    data = simulate(0, topics=6, items=40, checkpoints=2, shift=shift)
    names = [f"topic {t}" for t in range(6)]
    training = xr.Dataset({"keyed": ("topic", sizes[::-1] / 2)}, {"topic": names[::-1]})
    found = data_gap(training, data, **COUNTS).data
    np.testing.assert_allclose(found.training, sizes / 2)
    np.testing.assert_allclose(found.drift, drift(data, draws=9).data.keyed_M.isel(checkpoint=-1))
    assert found.pearson.item() == pytest.approx(stats.pearsonr(sizes, found.drift).statistic)
    assert found.spearman.item() == pytest.approx(stats.spearmanr(sizes, found.drift).statistic)
    reach = [
        abs(stats.spearmanr(sizes, found.drift.values[list(order)]).statistic) >= abs(found.spearman.item()) - 1e-9
        for order in itertools.permutations(range(6))
    ]
    assert found.spearman_p.item() == pytest.approx(np.mean(reach))
    assert found.pearson_low <= found.pearson <= found.pearson_high and found.pearson_p < 0.05
    pairs = xr.Dataset({"chosen": ("topic", sizes), "rejected": ("topic", sizes / 2)}, {"topic": names})
    assert data_gap(pairs, data, **COUNTS).data.pearson == pytest.approx(found.pearson)
    with pytest.warns(UserWarning, match="over 4 topics: p is at least 0.042"):
        few = data_gap(training, data.isel(item=slice(160)), **COUNTS).data
    assert "4 topics" in few.attrs["warning"] and few.pearson_p >= 1 / 24
    with pytest.warns(UserWarning):
        assert np.isnan(data_gap(training, data.isel(item=slice(80)), **COUNTS).data.pearson)
    with pytest.raises(InputError, match="lacks topic 'topic 0'"):
        data_gap(training.isel(topic=slice(5)), data)
    with pytest.raises(InputError, match="chosen and rejected"):
        data_gap(training.rename(keyed="other"), data)


def test_agreement_is_what_scipy_and_loops_give():
    a, b, c = (simulate(s, topics=2, items=15, samples=4, sd=2.0) for s in (0, 0, 1))
    b = b.isel(checkpoint=slice(None, None, 1)).assign(p=(b.p.dims, np.roll(b.p.values, 1, 0)))  # read again
    c = c.isel(sample=slice(2), checkpoint=[0, 3])
    found = agreement({"a": a, "b": b, "c": c}, **COUNTS).data
    assert found.pair.values.tolist() == ["a - b", "a - c", "b - c"]
    key = np.where(np.arange(30) % 2, 1, -1)
    x, y = (d.p.values[3].mean(1) for d in (a, b))
    keyed = [key * (z[:, 0] - z[:, 2]) for z in (x, y)]
    cell = found.isel(pair=0, checkpoint=3)
    assert cell.spearman == pytest.approx(stats.spearmanr(*keyed).statistic)
    assert cell.spearman_p < 0.02 and cell.spearman_low <= cell.spearman <= cell.spearman_high
    assert cell.tv == pytest.approx(np.mean([np.abs(p - q).sum() / 2 for p, q in zip(x, y, strict=True)]))
    crossed = [np.abs(x[i] - y[j]).sum() / 2 for i in range(30) for j in range(30) if i != j]
    assert cell.tv_null == pytest.approx(np.mean(crossed))
    assert cell.tv_high < cell.tv_null
    chance = found.isel(pair=1, checkpoint=0)
    assert chance.spearman_low < 0 < chance.spearman_high and chance.spearman_p > 0.01
    assert found.spearman.isel(pair=1).notnull().sum() == 2 and found.n.isel(pair=0).values.tolist() == [30] * 12
    copied = [xr.concat([d, d.assign_coords(item=[f"{i} again" for i in d.item.values])], "item") for d in (a, b)]
    twice = agreement({"a": copied[0], "b": copied[1]}, **COUNTS).data
    for name in twice:
        np.testing.assert_allclose(twice[name].values[0], found[name].values[0], atol=1e-9, err_msg=str(name))
    with pytest.raises(InputError, match="no checkpoint in common"):
        agreement({"a": a.isel(checkpoint=[1]), "c": c})


def test_weighted_rank_correlation_is_that_of_rows_repeated():
    from probes.values.beside import _weighted_spearman

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 20)).astype(float)
    times = rng.multinomial(20, np.full(20, 1 / 20), size=10).astype(float)
    expected = [stats.spearmanr(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int))).statistic for w in times]
    np.testing.assert_allclose(_weighted_spearman(x, y, times), expected)


def test_same_indices_and_seed():
    data = untidy()
    xr.testing.assert_identical(drift(data, draws=99).data, drift(data, draws=99).data)
    still = readings(np.repeat(simulate(0, checkpoints=1).p.values, 3, 0), ["x"] * 150)
    # The same draws at all checkpoints: what has not moved has not moved in any draw.
    found = drift(still, draws=99).data
    assert (found.M_low == 0).all() and (found.M_high == 0).all()
    mixed = data.isel(stance=[2, 0, 3, 1]).transpose("stance", "sample", "item", "checkpoint")
    xr.testing.assert_identical(drift(data, draws=99).data, drift(mixed, draws=99).data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["p"], "got a DataArray"),
        (lambda d: d.drop_vars("p"), "The readings have variables"),
        (lambda d: d.isel(sample=0), "a single sample is an axis of length 1"),
        (lambda d: d.isel(item=[]), "axis 'item' is empty"),
        (lambda d: d.isel(stance=[0, 1, 2]), "Name all of support, neutral, oppose, uncommitted"),
        (lambda d: d.drop_vars("stance"), "The stances are not named"),
        (lambda d: d.drop_vars("checkpoint"), "'checkpoint' has no coordinate"),
        (lambda d: d.assign_coords(checkpoint=[0, 40, 10]), "ints that rise"),
        (lambda d: d.assign_coords(checkpoint=["a", "b", "c"]), "ints that rise"),
        (lambda d: d.assign_coords(item=["same"] * 12), "'same' is there 12 times"),
        (lambda d: d.drop_vars("cluster"), r"need cluster \[item\]"),
        (lambda d: d.assign(topic=("item", ["x"] * 11 + [""])), "'item 11' has no topic"),
        (lambda d: d.assign(polarity=("item", [2] + [1] * 11)), "'item 0' has polarity 2"),
        (lambda d: d.assign(p=d.p.where((d.stance != "oppose") | (d.item != "item 2"))), "NaN in part at .*'item 2'"),
        (lambda d: d.assign(p=d.p * np.nan), "NaN everywhere"),
        (lambda d: d.assign(p=d.p * 2), "no distribution at checkpoint 0, item 'item 0', sample 0"),
        (lambda d: d.assign(p=d.p + xr.DataArray([1.5, -1.5, 0, 0], dims="stance")), "no distribution"),
        (lambda d: d.assign(p=d.p + np.inf), "no distribution"),
    ],
)  # fmt: skip
def test_what_is_no_readings_is_refused_by_name(change, message):
    data = untidy()
    checked(data)
    with pytest.raises(InputError, match=message):
        stance(change(data))


def test_what_cannot_be_compared_is_refused():
    data = untidy()
    with pytest.raises(InputError, match="There is no checkpoint 7"):
        drift(data, baseline=7)
    with pytest.raises(InputError, match="none is later than 40"):
        drift(data, baseline=40)
    with pytest.raises(InputError, match="none is later than 0"):
        drift(data.isel(checkpoint=[0]))
    with pytest.raises(InputError, match="there is one"):
        convergence(data.isel(checkpoint=[0]), 0.1)
    with pytest.raises(InputError, match="There are no runs"):
        compare({})
    with pytest.raises(InputError, match="not of the same items: 'item 3'"):
        compare({"a": data, "b": data.drop_sel(item="item 3")})
    with pytest.raises(InputError, match="differ in polarity"):
        compare({"a": data, "b": data.assign(polarity=-data.polarity)})
    with pytest.raises(InputError, match="'b' ends at its baseline"):
        compare({"a": data, "b": data.isel(checkpoint=[0])})
    with pytest.raises(InputError, match="there is 1"):
        agreement({"a": data})
    with pytest.raises(InputError, match="checkpoints is 1"):
        resampling_null(data, data, checkpoints=1)


def test_a_few_clusters_have_no_simultaneous_interval():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(4), (2, 9, 1))
    data = readings(p, ["three"] * 3 + ["six"] * 6, [1] * 9)
    # Of three clusters' sign flips the rarest are 2 of 8: nothing can be said with 95 %; of six, 2 of 64.
    table = drift(data, **COUNTS).data.isel(checkpoint=-1)
    assert np.isinf(table["M_band_high"].sel(topic="three")).all()
    assert np.isfinite(table["M_band_high"].sel(topic="six")).all()
    strict = drift(data, level=0.99, **COUNTS).data.isel(checkpoint=-1)
    assert np.isinf(strict["M_band_high"]).all()


def skewed(seed, each, topics=10, far=0.6, share=0.15):
    """Few items move far and the rest creep back: keyed moves of mean 0, between two checkpoints."""
    rng = np.random.default_rng([seed, 5])
    n = topics * each
    moves = np.where(rng.random(n) < share, far, -far * share / (1 - share)) + 0.02 * rng.standard_normal(n)
    keyed = np.stack([np.zeros(n), moves])[:, :, None]
    rest = np.full_like(keyed, 0.05)
    p = np.stack([0.45 + keyed / 2, rest, 0.45 - keyed / 2, rest], -1)
    return readings(p, np.repeat([f"topic {t}" for t in range(topics)], each), np.ones(n, int))


def test_moves_of_few_items_far_and_of_the_rest_back_are_no_drift():
    runs = 40
    wrong = {each: 0 for each in (8, 24)}
    for each in wrong:
        for seed in range(runs):
            found = drift(skewed(seed, each), draws=199).data
            wrong[each] += smallest(found) <= 0.05
        assert found.keyed_M_symmetry_p.values[1] < 0.05 and "rejected" in found.attrs["assumes"]
    # Sign flips alone: .96 of runs with 8 items, .2 with 24.
    assert max(wrong.values()) <= stats.binom.ppf(0.99, runs, 0.05)
    one = drift(skewed(0, 8, topics=1), draws=199).data
    assert "cannot be tested with 8 clusters" in one.attrs["assumes"]
    assert "another seed" in one.keyed_M.attrs["long_name"]
    plain = drift(simulate(0, checkpoints=2), draws=199).data
    assert "symmetry" in plain.attrs["assumes"] and plain.M_symmetry_p.dims == ("checkpoint", "stance")


def test_symmetry_is_tested_by_the_third_central_moment_of_clusters_about_their_topics_means():
    data = skewed(3, 8, topics=2)
    units = StanceUnits(data)
    d = units.means(units.x - units.x[[0]])[:, 1, 4]
    h, size = np.zeros(16), np.zeros(2)
    for t in range(2):
        e = d[8 * t : 8 * t + 8] - d[8 * t : 8 * t + 8].mean()
        h[8 * t : 8 * t + 8] = e**3 - 3 * e.var(ddof=1) * e
        size[t] = np.sqrt((h[8 * t : 8 * t + 8] ** 2).sum())
    signs = np.array(list(itertools.product((1, -1), repeat=16)))
    drawn = np.stack([(signs[:, :8] * h[:8]).sum(1), (signs[:, 8:] * h[8:]).sum(1)], 1)
    ways = [(np.abs(drawn.sum(1)), abs(h.sum())), ((np.abs(drawn) / size).sum(1), (np.abs(drawn[0]) / size).sum())]
    exact = min(1, 2 * min((null >= value - 1e-12).mean() for null, value in ways))
    found = units.tested(units.means(units.x - units.x[[0]])[:, 1:, 4:5], 0.95, 4000, 0).symmetry_p
    assert found.item() == pytest.approx(exact, abs=0.02)


def test_onset_is_where_a_broken_line_fits_best_and_does_not_depend_on_the_number_of_items():
    steps = np.arange(0, 200, 10)
    shape = np.clip((steps - 80) / 60, 0, 1)
    onsets, etas = [], []
    for items in (24, 200):
        rng = np.random.default_rng(items)
        keyed = (0.2 + 0.1 * rng.standard_normal(items)) * shape[:, None] + 0.06 * rng.standard_normal((20, items))
        rest = np.full((20, items, 1), 0.05)
        keyed = keyed[..., None]
        p = np.stack([0.45 + keyed / 2, rest, 0.45 - keyed / 2, rest], -1)
        found = drift(readings(p, ["x"] * items, np.ones(items, int), steps=steps), **COUNTS).data
        assert found.keyed_onset_low <= 80 <= found.keyed_onset_high
        onsets.append(found.keyed_onset.item())
        etas.append(found.keyed_eta.item())
        assert np.isnan(found.onset.sel(stance="neutral")).all(), "nothing moves there"
        # Least squares over all broken lines, written out.
        curve = found.keyed_M.values[:, 0]
        best = {}
        for i, j in itertools.combinations(range(20), 2):
            line = np.clip((steps - steps[i]) / (steps[j] - steps[i]), 0, 1)
            fit = np.polynomial.polynomial.polyfit(line, curve, 1)
            best[i, j] = ((curve - fit[0] - fit[1] * line) ** 2).sum()
        assert found.keyed_onset.item() == steps[min(best, key=best.__getitem__)[0]]
    assert all(abs(x - 80) <= 20 for x in onsets)
    flat = drift(simulate(0), draws=99).data
    assert np.isnan(flat.keyed_onset).all()


def test_arms_are_compared_over_runs():
    rng = np.random.default_rng(1)

    def run(mean):
        keyed = np.stack([np.zeros(48), 0.05 * rng.standard_normal(48) + np.repeat(mean, 24)])[:, :, None]
        rest = np.full_like(keyed, 0.05)
        p = np.stack([0.45 + keyed / 2, rest, 0.45 - keyed / 2, rest], -1)
        return readings(p, ["x"] * 24 + ["y"] * 24, np.ones(48, int))

    runs = {f"{arm}{i}": run(np.array([0.3 * (arm == "b"), 0]) + 0.03 * rng.standard_normal(2)) for arm in "ab"
            for i in range(5)}  # fmt: skip
    found = compare(runs, arm={name: name[0] for name in runs}, draws=999).data
    m = found.keyed_M.transpose("topic", "run").values
    a, b = m[:, :5], m[:, 5:]
    welch = stats.ttest_ind(a, b, axis=1, equal_var=False)
    np.testing.assert_allclose(found.keyed_arm_difference.values[0], a.mean(1) - b.mean(1))
    interval = welch.confidence_interval(0.95)
    np.testing.assert_allclose(found.keyed_arm_difference_low.values[0], interval.low)
    np.testing.assert_allclose(found.keyed_arm_difference_high.values[0], interval.high)
    assert found.keyed_arm_difference_p.values[0, 0] < 0.05 < found.keyed_arm_difference_p.values[0, 1]
    one = stats.ttest_1samp(a, 0, axis=1).confidence_interval(0.95)
    np.testing.assert_allclose(found.keyed_mean_low.sel(arm="a"), one.low)
    np.testing.assert_allclose(found.keyed_mean_high.sel(arm="a"), one.high)
    assert "permutations" in found.attrs["arms"] and "difference" not in found and "arm_pair" in found.dims
    # Three runs against three have 20 arrangements: Welch's p, and Holm's over all cells, in place of permutations.
    few = {name: own for name, own in runs.items() if int(name[1]) < 3}
    found = compare(few, arm={name: name[0] for name in few}, draws=99).data
    assert "Welch t" in found.attrs["arms"] and "p = 0.1" in found.attrs["arms"]
    p = np.array([
        stats.ttest_ind(*(found[name].sel(run=[f"{arm}{i}" for i in range(3)], **at).values for arm in "ab"),
                        equal_var=False).pvalue
        for topic in "xy"
        for name, at in [
            *(("M", {"topic": topic, "stance": stance}) for stance in ("support", "oppose")),
            ("keyed_M", {"topic": topic}),
        ]
    ])  # fmt: skip
    # Neutral, uncommitted and commitment do not differ between runs at all, and are of no family.
    holm = np.minimum(1, p.min() * len(p))
    found_p = [np.nanmin(found[f"{name}arm_difference_p"].values) for name in ("", "keyed_")]
    assert min(found_p) == pytest.approx(holm, rel=0.01)
    single = compare({"a0": runs["a0"], "b0": runs["b0"]}, arm={"a0": "a", "b0": "b"}, draws=99).data
    assert np.isnan(single.keyed_arm_difference_p).all() and "one run" in single.attrs["arms"]


def test_near_duplicates_are_found_by_the_texts_of_a_dataset_without_clusters():
    data = simulate(0, topics=2, items=10, checkpoints=2)
    texts = [f"{word} is a good thing to have in a town." for word in ("Rain", "Tea", "Snow", "Wind", "Music", "Bread",
             "Chess", "Silence", "Traffic", "Sunshine")] * 2  # fmt: skip
    found = drift(data.drop_vars("cluster").assign(text=("item", texts)), draws=49).data
    assert found.attrs["duplicates"] == "20 items in 10 clusters of near-duplicates"
    assert "duplicates" not in drift(data, draws=49).data.attrs
