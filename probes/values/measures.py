"""How stances move in training: how far, how soon, and whether it is more than the noise of reading them.

Every function takes readings, p [checkpoint, item, sample, stance] (:mod:`probes.values.units` has the format), and
gives a :class:`~workbench.reading.Reading` with a value, _low and _high (95 %, over clusters of prompts), _band_low and
_band_high (simultaneous over all cells of the result), _p (family-wise over them) or _null (what chance gives).
Probabilities are shares of 1, divergences nats, checkpoints steps.

    stance            where a model stands, by topic and checkpoint
    drift             how far from a baseline, with eta, churn and the raw statistics beside it
    convergence       from when on it is where it ends
    resampling_null   how far the same checkpoint is from itself, read twice
    sides             which items changed sides between two checkpoints
    compare           runs beside each other            (probes.values.beside, as the next two)
    data_gap          what the training data say, against the drift
    agreement         instruments beside each other

Tests and intervals take prompts for drawn from more prompts like them, and a run for given: what another seed of
training would do, they do not know (``compare`` has the spread of seeds).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probes.values.beside import agreement, compare, data_gap
from probes.values.units import (
    AXES,
    MEASURES,
    OF_RUN,
    RUN,
    STANCES,
    StanceUnits,
    Units,
    aligned,
    by_stance,
    checked,
    family,
    named,
    opened,
)
from probes.values.when import raw, times
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import js_divergence, over, p_value, quantiles, step_down
from workbench.variables import about, described

__all__ = [
    "MEASURES",
    "STANCES",
    "agreement",
    "checked",
    "compare",
    "convergence",
    "data_gap",
    "drift",
    "resampling_null",
    "sides",
    "stance",
]

ENDS = ("low", "high", "band_low", "band_high", "p")
VARIABLES: dict[str, Any] = {
    **AXES,
    **family("v", "stance vector", ends=ENDS[:2]),
    **family("keyed", "keyed stance", ends=ENDS[:2]),
    **family("commitment", "commitment", ends=ENDS[:2]),
    "mass": about("probability of the answers offered", better="high"),
    **by_stance("M", "drift", ends=(*ENDS, "symmetry_p"), more=OF_RUN),
    **family("tv", "total variation between stance vectors", ends=("low", "high", "null")),
    **family("jsd", "Jensen-Shannon divergence of stance vectors", "nats", ends=("low", "high", "null")),
    **family("moved", "mean total variation that items moved", ends=("low", "high", "null", "p")),
    **family("churn", "share of the items' moves that cancels", ends=("low", "high", "null")),
    **by_stance("onset", "onset of drift", "steps", ends=("low", "high")),
    **by_stance("eta", "drift time, as a share of steps,", ends=("low", "high")),
    **by_stance("eta_checkpoints", "drift time, as a share of checkpoints,"),
    **by_stance("extremum", "step of the largest drift", "steps"),
    "M_raw": about("drift as published"),
    "eta_raw": about("drift time as published, as a share of steps"),
    **by_stance("gap", "distance from the last checkpoint", ends=("band_low", "band_high")),
    **by_stance("converged", "step of convergence", "steps"),
    **by_stance("rests_on", "checkpoints that show convergence", "checkpoints"),
    "largest": about("largest drift between two readings of one checkpoint"),
    "largest_p": about("p of the largest drift", role="p", of="largest"),
    "null": about("largest drift of a run without drift, by draw", role="null", of="largest"),
    "bound": about("quantile of the largest drift of a run without drift", role="floor", of="largest"),
    "before": about("stance before", role="label"),
    "after": about("stance after", role="label"),
    "changed": about("items by their likeliest stance, before and after", "items", role="count"),
}

LEAST = np.array([0.0, 0.0, 0.0, 0.0, -1.0, 0.0])
"""Of each of :data:`MEASURES`."""
PATTERNS = 64
"""So many ways to swap an item's samples are drawn from, where there are more."""


def stance(
    readings: Reading | xr.Dataset, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Reading:
    """Where the model stands: means over a topic's clusters, each the mean of its readings.

    Returns, each with _low and _high:
        v [checkpoint, topic, stance]: the stance vector; its entry "uncommitted" is the share that took no side and
            did not say so (refusals, off the labels).
        keyed [checkpoint, topic]: polarity * (support - oppose), over items whose polarity is not 0: > 0, towards the
            topic's direction.
        mass [checkpoint, topic]: what the answers offered have of the probability, where readings say it; no interval.
        commitment [checkpoint, topic]: support + oppose = 1 - neutral - uncommitted: falls when a model is
            neutralised, and stays when it is persuaded.
    """
    readings = opened(readings)
    units = StanceUnits(readings)
    own = units.interval(units.means(units.x), level, draws, seed)
    ends = {"low": np.maximum(own.low, LEAST), "high": np.minimum(own.high, 1)}
    found = named("v", ("topic", "checkpoint", "stance"), own.value, **ends) | units.counts()
    if "mass" in readings:
        mass = checked(readings)["mass"].transpose("checkpoint", "item", "sample").values.astype(float)
        found["mass"] = (("topic", "checkpoint"), units.mean(units.means(mass)))
    asked = readings.data.attrs.get("asked")
    told = {"asked": asked} if asked else {}
    data = _dataset(units, found, level=level, interval=own.said("clusters of items"), **told)
    return derived("values.stance", data, readings, level=level, draws=draws, seed=seed)


def drift(
    readings: Reading | xr.Dataset,
    baseline: int | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """How far each stance has moved from a baseline, and which moves are more than chance.

    Differences are paired: of each item, the samples that were read at both checkpoints.  A sample that is a framing
    is so compared with itself, and an item that is missing at one of them counts at neither.

    Args:
        baseline: a step; the first by default.
        level: of intervals; M is significant where M_p <= 1 - level.

    Returns:
        M [checkpoint, topic, stance]: v(t) - v(baseline), signed; keyed_M, commitment_M [checkpoint, topic] of those.
            _low, _high; _band_low, _band_high; and _p: sign flips of each cluster's differences, step-down over topics,
            checkpoints, stances, keyed and commitment (one family).  NaN at the baseline.
        M_symmetry_p [checkpoint, stance], keyed_M_symmetry_p, commitment_M_symmetry_p [checkpoint]: p of the hypothesis
            that items' moves lie symmetrically about their topic's mean, over all topics.  Flips need that; where it is
            below .2, or few clusters cannot tell, M_p and the bands also hold the spread over all topics
            (:meth:`probes.values.units.Units.tested`).  attrs["assumes"] says what was found.
        tv = 1/2 sum |M| and jsd (nats, between the stance vectors) [checkpoint, topic]: both are above 0 by noise
            alone: _null is their mean under flips, and intervals are reflected in the value.
        moved [checkpoint, topic]: the mean |TV| that single items moved; _null is its mean, and _p its family-wise
            test, when each sample's two readings are swapped at random (p = 1 with one sample).
        churn = 1 - tv / moved: the share of it that cancels in the topic's mean.  Noise cancels, too: without any
            drift churn is near 1, so read it where moved_p is small.  _null: items moved as far, in random directions.
        onset [topic, stance]: the step from which on M moves, with _low and _high (:func:`probes.values.when.onset`):
            for comparing topics.  NaN unless M is significant at its extremum.
        eta [topic, stance]: the share of steps, from the baseline to the end, until M is within the interval of its
            extremum (the largest |M|); NaN unless M is significant there.  _low, _high; eta_checkpoints, the share of
            checkpoints; extremum, its step.  keyed_eta, commitment_eta and so on likewise.  It depends on how
            wide intervals are: the same drift has a later eta the more items there are.  Compare topics by their onset.
        M_raw, eta_raw [.., stance]: as published (Value Drifts, arXiv 2510.26707): means over items, duplicates
            included, of probabilities over three labels, and eta with an interval over items of v at the extremum,
            where M is significant or not.  For printing beside: with no drift at all they look like early drift.
    """
    readings = opened(readings)
    units = StanceUnits(readings)
    base = units.number(baseline)
    if len(units.steps) < 2 or base == len(units.steps) - 1:
        raise InputError(
            f"Drift is from a baseline to later checkpoints, and none is later than {units.steps[base]} among "
            f"{units.steps.tolist()}. Read another checkpoint, or take an earlier baseline."
        )
    others = np.delete(np.arange(len(units.steps)), base)
    dims = ("topic", "checkpoint", "stance")
    x = units.x - units.x[[base]]
    d = units.means(x)
    own = units.interval(d, level, draws, seed)
    m, low, high = own.value, own.low, own.high
    test = units.tested(d[:, others], level, draws, seed)
    p, half = (np.full(m.shape, np.nan) for _ in range(2))
    p[:, others], half[:, others] = test.p, test.half
    found = named("M", dims, m, low=low, high=high, band_low=m - half, band_high=m + half, p=p)
    symmetry_p = np.full(m.shape[1:], np.nan)
    symmetry_p[others] = test.symmetry_p
    found |= named("M_symmetry_p", dims[1:], symmetry_p)
    star = units.again(d, draws, seed)
    clusters = units.count(d)[:, -1]
    found |= times(units, base, m, low, high, p <= 1 - level + 1e-12, star, clusters, level)

    middle = units.means((units.p + units.p[[base]]) / 2)
    at, at_star = units.mean(middle), units.again(middle, draws, seed)
    flips = units.flipped(d[..., :4], draws, seed)
    tv, tv_star, tv_flip = _tv(m[..., :4]), _tv(star[..., :4]), _tv(flips)
    found |= _biased("tv", tv, tv_star, tv_flip, 1.0, level)
    jsd = _jsd(at, m[..., :4]), _jsd(at_star, star[..., :4]), _jsd(at, flips)
    found |= _biased("jsd", *jsd, np.log(2), level)
    found |= _churn(units, x[..., :4], tv, tv_star, tv_flip, others, draws, seed, level)
    found |= raw(units, base)
    step = int(units.steps[base])
    told = {"interval": own.said("clusters of items"), "assumes": f"{test.assumes}; {RUN}"}
    data = _dataset(units, found | units.counts(), level=level, baseline=step, draws=draws, **told)
    asked = {"baseline": step, "level": level, "draws": draws, "seed": seed}
    return derived("values.drift", data, readings, **asked)


def _tv(m: np.ndarray) -> np.ndarray:
    return np.abs(m).sum(-1) / 2


def _jsd(middle: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of middle + m / 2 and middle - m / 2, in nats."""
    return js_divergence(middle + m / 2, middle - m / 2)


def _biased(
    name: str, value: np.ndarray, star: np.ndarray, flip: np.ndarray, most: float, level: float
) -> dict[str, tuple]:
    """A statistic that noise makes larger, and draws of it larger still: its interval is reflected in the value."""
    low, high = quantiles(star, level)
    low, high = np.clip(2 * value - high, 0, most), np.clip(2 * value - low, 0, most)
    return named(name, ("topic", "checkpoint"), value, low=low, high=high, null=flip.mean(0))


def _churn(
    units: Units,
    x: np.ndarray,
    tv: np.ndarray,
    tv_star: np.ndarray,
    tv_flip: np.ndarray,
    others: np.ndarray,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, tuple]:
    """churn and moved [topic, checkpoint] from differences [checkpoint, item, sample, stance]; ``others``: checkpoints
    that are not the baseline."""
    samples = x.shape[2]
    if 2 ** (samples - 1) <= PATTERNS:
        bits = np.arange(2 ** (samples - 1))[:, None] >> np.arange(samples)
        swaps = 1.0 - 2 * (bits & 1)
    else:
        swaps = np.random.default_rng([seed, 3]).choice([-1.0, 1.0], (PATTERNS, samples))
    there = ~np.isnan(x[..., 0])
    count, filled = there.sum(2), np.nan_to_num(x)

    def items(signs: np.ndarray) -> np.ndarray:
        """[unit, checkpoint] mean TV of a cluster's items."""
        return units.means(over(_tv(np.einsum("kisq,s->kiq", filled, signs)), count)[:, :, None])

    one = items(np.ones(samples))
    moved = units.mean(one)
    table = np.nan_to_num(np.stack([items(signs) for signs in swaps]))  # [pattern, unit, checkpoint]
    picked = np.random.default_rng([seed, 4]).integers(len(swaps), size=(draws, units.clusters))[:, units.cluster]
    null = np.empty((draws, *moved.shape))
    for t in range(len(units.topics)):
        own = np.flatnonzero(units.topic == t)
        null[:, t] = table[picked[:, own], own].sum(1)
    null = over(null, units.count(one))
    spread = np.maximum(null.std(0), 1e-12)
    known = ~np.isnan(moved) & np.isin(np.arange(moved.shape[1]), others)
    p = np.full(moved.shape, np.nan)
    if known.any():
        p[known] = step_down(((moved - null.mean(0)) / spread)[known], ((null - null.mean(0)) / spread)[:, known])
    low, high = quantiles(1 - over(tv_star, units.again(one, draws, seed)), level)
    own = units.interval(one, level, draws, seed)
    ends = {"low": np.maximum(own.low, 0), "high": np.minimum(own.high, 1)}
    dims = ("topic", "checkpoint")
    return named("moved", dims, moved, **ends, null=null.mean(0), p=p) | named(
        "churn", dims, 1 - over(tv, moved), low=low, high=high, null=1 - over(tv_flip.mean(0), moved)
    )


def convergence(
    readings: Reading | xr.Dataset, eps: float, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Reading:
    """From which checkpoint on a stance is where it ends, within ``eps``.

    Returns:
        gap [checkpoint, topic, stance]: v(t) - v(end), paired, with _band_low and _band_high, simultaneous over all
            cells; NaN at the end itself.
        converged [topic, stance]: the first step from which on every interval lies within -eps..eps; NaN if the last
            one before the end does not.  Wide intervals never do: NaN is "not shown", not "still moving".
        rests_on: the number of checkpoints, the end left out, that say so.
        keyed_gap, commitment_converged and so on likewise.
    """
    if not eps > 0:
        raise InputError(f"eps is {eps}. Give how far from the end still counts as there, above 0.")
    readings = opened(readings)
    units = StanceUnits(readings)
    if len(units.steps) < 2:
        raise InputError("Convergence is between checkpoints, and there is one. Read two or more.")
    d = units.means(units.x - units.x[[-1]])
    gap = units.mean(d)
    half = np.full(gap.shape, np.nan)
    test = units.tested(d[:, :-1], level, draws, seed)
    half[:, :-1] = test.half
    inside = (gap - half >= -eps) & (gap + half <= eps)
    last = np.logical_and.accumulate(inside[:, -2::-1], axis=1).sum(1)  # [topic, measure] checkpoints, from the end
    step = units.steps[np.maximum(0, len(units.steps) - 1 - last)]
    found = named("gap", ("topic", "checkpoint", "stance"), gap, band_low=gap - half, band_high=gap + half)
    found |= named("converged", ("topic", "stance"), np.where(last > 0, step, np.nan))
    found |= named("rests_on", ("topic", "stance"), last)
    data = _dataset(units, found | units.counts(), level=level, eps=eps, draws=draws, assumes=f"{test.assumes}; {RUN}")
    return derived("values.convergence", data, readings, eps=eps, level=level, draws=draws, seed=seed)


def resampling_null(
    readings_a: Reading | xr.Dataset,
    readings_b: Reading | xr.Dataset,
    *,
    checkpoints: int = 2,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """How far a checkpoint is from itself: the same one read twice, with other seeds of generation.

    Half of the difference between the two readings of a sample is its noise; runs without drift are made by giving it
    a random sign at every checkpoint.  This is the noise of reading these very prompts; flips of clusters (``drift``)
    have that of other prompts, too.  An instrument that draws nothing has none: the null is then 0.

    Args:
        checkpoints: of the run that the null is to be of, the baseline included.

    Returns, by checkpoint read:
        largest: the largest |M| over topics and stances between the two readings; largest_p: how often the null with
            two checkpoints reaches it: small where the two are not of one checkpoint and one instrument.
        null [draw, checkpoint]: the largest |M| from the first of ``checkpoints`` checkpoints, over topics, stances
            and checkpoints, without drift; bound: its quantile at ``level``.
    """
    if checkpoints < 2:
        raise InputError(f"checkpoints is {checkpoints}. Drift is between two checkpoints or more.")
    both = [opened(readings_a), opened(readings_b)]
    a, b = aligned(both, ["the first reading", "the second reading"])
    if a.steps.tolist() != b.steps.tolist() or a.p.shape != b.p.shape:
        raise InputError(
            f"The readings are of checkpoints {a.steps.tolist()} and {b.steps.tolist()}, with {a.p.shape[2]} and "
            f"{b.p.shape[2]} samples. Read the same checkpoints twice, alike."
        )
    d = a.p - b.p
    y, rows = a.means(d), a.parts(d) / d.shape[2]
    largest = _most(a.mean(y))
    n = a.count(y)

    def noise(number: int) -> np.ndarray:
        # Of each sample its own: what a cluster's samples share is no noise of reading.
        shape = (draws, a.clusters, d.shape[2])
        signs = np.random.default_rng([seed, 1, number]).choice([-1.0, 1.0], shape)[:, a.cluster]
        return over(sum(a.sums(signs[:, :, s], rows[:, s]) for s in range(d.shape[2])), n) / np.sqrt(2)

    first = noise(0)
    null = two = _most(noise(1) - first)
    for number in range(2, checkpoints):
        null = np.maximum(null, _most(noise(number) - first))
    data = xr.Dataset(
        {
            "largest": (("checkpoint",), largest), "largest_p": (("checkpoint",), p_value(largest, two)),
            "null": (("draw", "checkpoint"), null), "bound": (("checkpoint",), np.quantile(null, level, axis=0)),
        },
        {"checkpoint": a.steps, "draw": np.arange(draws)},
        {"checkpoints": checkpoints, "level": level},
    )  # fmt: skip
    asked = {"checkpoints": checkpoints, "level": level, "draws": draws, "seed": seed}
    return derived("values.resampling_null", described(data, VARIABLES), *both, **asked)


def sides(
    readings: Reading | xr.Dataset, start: int | None = None, end: int | None = None, *, topic: str | None = None
) -> Reading:
    """Which items changed sides between two checkpoints.

    Parameters
    ----------
    readings
        p [checkpoint, item, sample, stance].
    start, end
        Steps; the first and the last by default.
    topic
        Its items alone.

    Returns
    -------
    Reading
        changed [before, after]: how many items have these likeliest stances (of the mean over their samples) at the two
        checkpoints, of those that were read at both.  What is uncommitted (refused, none of the answers offered) is a
        side of its own.

    Raises
    ------
    InputError
        For a checkpoint or a topic that was not read.
    """
    readings = opened(readings)
    data = checked(readings)
    steps = data["checkpoint"].values.tolist()
    chosen = [steps[0] if start is None else start, steps[-1] if end is None else end]
    if missing := [s for s in chosen if s not in steps]:
        raise InputError(
            f"There is no checkpoint {missing[0]} in the readings; there are {', '.join(map(str, steps))}."
        )
    topics = data["topic"].values.astype(str)
    data = data if topic is None else data.isel(item=np.flatnonzero(topics == topic))
    if not data.sizes["item"]:
        raise InputError(f"There is no topic {topic!r}; there are {', '.join(sorted(set(topics)))}.")
    mean = data["p"].sel(checkpoint=chosen).mean("sample").transpose("checkpoint", "item", "stance")
    known = ~mean.isnull().any(("stance", "checkpoint")).values
    best = mean.fillna(0).argmax("stance").values[:, known]
    count = np.zeros((len(STANCES), len(STANCES)), int)
    np.add.at(count, (best[0], best[1]), 1)
    asked = {"start": chosen[0], "end": chosen[1], **({} if topic is None else {"topic": topic})}
    found = xr.Dataset(
        {"changed": (("before", "after"), count)}, {"before": list(STANCES), "after": list(STANCES)}, asked
    )
    return derived("values.sides", described(found, VARIABLES), readings, **asked)


def _most(m: np.ndarray) -> np.ndarray:
    """[..., topic, checkpoint, stance] -> [..., checkpoint] the largest |M|; NaN where nothing was read."""
    size = np.where(np.isnan(m), -1, np.abs(m)).max((-1, -3))
    return np.where(size < 0, np.nan, size)


def _dataset(units: StanceUnits, found: dict[str, tuple], **attrs: object) -> xr.Dataset:
    axes = {"checkpoint": units.steps, "topic": np.array(units.topics, object), "stance": list(STANCES)}
    data = described(xr.Dataset(found, axes, {**attrs, **units.duplicates}), VARIABLES)
    return data.transpose("draw", "checkpoint", "topic", "stance", missing_dims="ignore")
