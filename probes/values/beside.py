"""Drift beside something else: other runs, the training data, another instrument."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from probes.values.units import AXES, STANCES, StanceUnits, Units, aligned, by_stance, family, named, opened
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import max_statistic_p, over, p_value, quantiles, ranks
from workbench.variables import about, described

SEEDS = 3
"""So many runs of an arm have a spread."""
FEW_TOPICS = 5
EXACT = 5040
"""Up to so many orders of topics (those of seven) are all taken, and no longer drawn."""
ENDS = ("low", "high", "band_low", "band_high", "p")
VARIABLES: dict[str, Any] = {
    **AXES,
    "run": about("run", role="label"),
    "pair": about("pair", role="label"),
    "arm": about("arm", role="label"),
    **by_stance("M", "drift to the end of the run", ends=ENDS),
    **by_stance("difference", "difference between two runs' drift", ends=ENDS),
    **by_stance("mean", "mean drift of an arm's runs"),
    **by_stance("spread", "standard deviation of drift over an arm's runs", ends=("null", "p")),
    "seeds": about("runs of the arm", "runs", role="count"),
    "run_arm": about("arm of the run", role="label"),
    **family("drift", "keyed drift of the model", ends=ENDS),
    "training": about("keyed stance of the training data"),
    **family("pearson", "correlation of training data and drift over topics", better="high", ends=("low", "high", "p")),
    **family("spearman", "rank correlation", better="high", ends=("low", "high", "p")),
    **family("tv", "total variation between two instruments", better="low", ends=("low", "high", "null")),
    "n": about("clusters that both instruments read", "clusters", role="count"),
}


def compare(
    runs: Mapping[str, Reading | xr.Dataset],
    *,
    arm: Mapping[str, str] | None = None,
    baseline: int | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """Runs beside each other: how far each one's stances moved from its baseline to its end, on the same items.

    Args:
        runs: readings by the run's name; the steps may differ.
        arm: run -> arm, of runs that differ in the seed of training alone.
        baseline: a step that every run has; each one's first by default.

    Returns:
        M [run, topic, stance], and keyed_M, commitment_M [run, topic], as in ``drift`` (family: all of these).
        difference [pair, topic, stance], keyed_difference and so on: M of the pair's first run less that of its
            second, paired by cluster: _low, _high, _band_low, _band_high and _p (sign flips; one family over topics,
            stances, keyed, commitment and pairs).  It says whether these two runs differ, not whether their recipes do.
        spread [arm, topic, stance]: standard deviation of M over runs of an arm, the yardstick for recipes; NaN for
            fewer than three.  _null: its mean when runs are shuffled within each cluster, the noise of reading; _p:
            family-wise over arms and the rest.  mean, seeds [arm]: mean of M, number of runs.  run_arm [run].
    """
    names = list(runs)
    if not names:
        raise InputError("There are no runs to compare. Give readings by name.")
    given = {name: opened(own) for name, own in runs.items()}
    ways = {name: own.data.attrs["asked"] for name, own in given.items() if own.data.attrs.get("asked")}
    if len(set(ways.values())) > 1:
        warnings.warn(
            f"The runs were not asked in one way ({'; '.join(f'{k}: {v}' for k, v in ways.items())}), so that a "
            "difference between them can be one of chat templates. chat=False asks all in plain text.",
            stacklevel=2,
        )
    units = aligned(list(given.values()), names)
    one, changes = units[0], []
    for name, own in zip(names, units, strict=True):
        base = own.number(baseline)
        if base == len(own.steps) - 1:
            raise InputError(f"Run {name!r} ends at its baseline, {own.steps[-1]}. Read a later checkpoint of it.")
        changes.append(own.x[-1] - own.x[base])
    most = max(x.shape[1] for x in changes)
    # Runs may have other numbers of samples: what is missing is NaN.
    x = np.stack([np.pad(x, ((0, 0), (0, most - x.shape[1]), (0, 0)), constant_values=np.nan) for x in changes])
    d = one.means(x)  # [unit, run, measure]
    m, star = one.mean(d), one.bootstrap(x, draws, seed)
    p, half = one.tested(d, draws, seed, level)
    low, high = quantiles(star, level)
    found = named(
        "M", ("topic", "run", "stance"), m, low=low, high=high, band_low=m - half, band_high=m + half, p=p
    ) | one.counts()  # fmt: skip
    axes: dict = {"run": names, "topic": np.array(one.topics, object), "stance": list(STANCES)}
    pairs = list(itertools.combinations(range(len(names)), 2))
    if pairs:
        a, b = (list(side) for side in zip(*pairs, strict=True))
        between = d[:, a] - d[:, b]
        value = one.mean(between)
        low, high = quantiles(one.mean(between, one.drawn(draws, seed)), level)
        low, high = (np.where(one.count(between) < 2, np.nan, ends) for ends in (low, high))
        p, half = one.tested(between, draws, seed, level)
        bands = {"band_low": value - half, "band_high": value + half}
        found |= named("difference", ("topic", "pair", "stance"), value, low=low, high=high, p=p, **bands)
        axes["pair"] = np.array([f"{names[i]} - {names[j]}" for i, j in pairs], object)
    if arm is not None:
        found |= _spread(one, d, names, arm, draws, seed)
        found["run_arm"] = (("run",), np.array([arm[name] for name in names], object))
        axes["arm"] = list(dict.fromkeys(arm[name] for name in names))
    data = described(xr.Dataset(found, axes, {"level": level, "draws": draws}), VARIABLES)
    data = data.transpose("run", "pair", "arm", "topic", "stance", missing_dims="ignore")
    asked = {"runs": names, "arm": None if arm is None else {name: arm[name] for name in names}, "baseline": baseline}
    table = derived("values.compare", data, *given.values(), **asked, level=level, draws=draws, seed=seed)
    if len(names) > 1:  # else the last run's model would stand for all
        table.provenance[-1]["model"] = {"name": ", ".join(names)}
        table.data.attrs["model"] = ", ".join(names)
    return table


def _spread(
    units: Units, d: np.ndarray, names: list[str], arm: Mapping[str, str], draws: int, seed: int
) -> dict[str, tuple]:
    """Of differences [unit, run, measure]."""
    unknown = sorted(set(names) - set(arm))
    if unknown:
        raise InputError(f"Run {unknown[0]!r} has no arm. Name the arm of every run.")
    arms = list(dict.fromkeys(arm[name] for name in names))
    shape = (len(units.topics), len(arms), d.shape[-1])
    mean, spread, scaled, expected = (np.full(shape, np.nan) for _ in range(4))
    null = np.full((draws, *shape), np.nan)
    seeds = np.array([sum(arm[name] == one for name in names) for one in arms])
    rng = np.random.default_rng([seed, 5])
    for j, one in enumerate(arms):
        own = d[:, [arm[name] == one for name in names]]
        mean[:, j] = units.mean(own).mean(1)
        if seeds[j] < SEEDS:
            continue
        own = np.where(np.isnan(own).any(1, keepdims=True), np.nan, own)
        order = rng.random((draws, units.clusters, seeds[j])).argsort(-1)[:, units.cluster]
        n = units.count(own[:, 0])
        shuffled = np.empty((draws, len(units.topics), *own.shape[1:]))
        for t in range(len(units.topics)):
            at = np.flatnonzero(units.topic == t)
            for r in range(seeds[j]):
                shuffled[:, t, r] = np.nan_to_num(own)[at, order[:, at, r]].sum(1)
        spread[:, j] = units.mean(own).std(1, ddof=1)
        drawn = over(shuffled, n[:, None]).std(2, ddof=1)
        expected[:, j] = drawn.mean(0)
        # Shuffles leave the differences within clusters as they are: a scale that makes cells alike.
        within = np.nan_to_num(own - own.mean(1, keepdims=True))
        scale = over(np.sqrt(units.sums(np.ones((1, len(d))), within**2)[0].sum(1)), n)
        scale = np.where(scale > 1e-12, scale, np.inf)
        scaled[:, j], null[:, :, j] = spread[:, j] / scale, drawn / scale
    known, p = ~np.isnan(scaled), np.full(shape, np.nan)
    if known.any():
        p[known] = max_statistic_p(scaled[known], null[:, known])
    dims = ("topic", "arm", "stance")
    found = named("spread", dims, spread, null=expected, p=p) | named("mean", dims, mean)
    return found | {"seeds": (("arm",), seeds)}


def data_gap(
    training_stance: Reading | xr.Dataset,
    readings: Reading | xr.Dataset,
    *,
    baseline: int | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """Does a model move to where its training data stand?  Over topics.

    Args:
        training_stance: keyed stance by topic: keyed [topic], of the responses that it is trained on; or chosen and
            rejected [topic] of preference pairs, whose difference is taken.

    Returns:
        training [topic]; drift [topic]: keyed stance at the end less at the baseline, _low, _high, _band_low,
            _band_high and _p (family: topics).
        pearson, spearman: correlation over topics; _low, _high: prompts drawn again, the topics as they are; _p: topics
            shuffled, two-sided, all orders of up to seven topics.  Few topics cannot show much: with four, p is at
            least 1/24.  NaN for fewer than three.
    Warns, and says in attrs["warning"], where there are fewer than five topics.
    """
    source, readings = opened(training_stance), opened(readings)
    training_stance = source.data
    if "topic" not in training_stance.coords or training_stance.indexes["topic"].has_duplicates:
        raise InputError("The stance of the training data is by topic. Give keyed [topic], each topic once.")
    if "keyed" in training_stance:
        stance = training_stance["keyed"]
    elif "chosen" in training_stance and "rejected" in training_stance:
        stance = training_stance["chosen"] - training_stance["rejected"]
    else:
        raise InputError(
            f"The training data have {list(training_stance.data_vars)}. Give keyed [topic], or chosen and rejected."
        )
    units = StanceUnits(readings)
    base = units.number(baseline)
    if base == len(units.steps) - 1:
        raise InputError(f"The readings end at the baseline, {units.steps[-1]}. Read a later checkpoint.")
    lacking = sorted(set(units.topics) - {str(x) for x in stance["topic"].values})
    if stance.dims != ("topic",) or lacking:
        raise InputError(
            f"The stance of the training data is {list(stance.dims)}"
            + (f" and lacks topic {lacking[0]!r}" if lacking else "")
            + ". Give one number for every topic that was read; NaN where the data say nothing of it."
        )
    at = [str(x) for x in stance["topic"].values]
    training = stance.values.astype(float)[[at.index(topic) for topic in units.topics]]
    x = (units.x[-1] - units.x[base])[None, :, :, 4]
    d = units.means(x)
    value, star = units.mean(d), units.bootstrap(x, draws, seed)
    low, high = quantiles(star, level)
    p, half = units.tested(d, draws, seed, level)
    columns = {"low": low, "high": high, "band_low": value - half, "band_high": value + half, "p": p}
    found = named("drift", ("topic",), value[:, 0], **{name: x[:, 0] for name, x in columns.items()})
    found |= {"training": (("topic",), training)} | units.counts()
    known = ~np.isnan(training) & ~np.isnan(value[:, 0])
    n = int(known.sum())
    orders = _orders(n, draws, seed)
    for name, rank in (("pearson", False), ("spearman", True)):
        r = _correlations(training[known], value[None, known, 0], rank)[0]
        null = _correlations(training[known], value[known, 0][orders], rank)
        drawn = _correlations(training[known], star[:, known, 0], rank)
        low, high = quantiles(drawn, level)
        p = p_value(np.array(abs(r)), np.abs(null))
        found |= {name: ((), r), f"{name}_low": ((), low), f"{name}_high": ((), high), f"{name}_p": ((), p)}
    attrs = {"level": level, "baseline": int(units.steps[base]), "topics": n}
    if n < FEW_TOPICS:
        attrs["warning"] = f"A correlation over {n} topics: p is at least {1 / max(1, math.factorial(n)):.2g}."
        warnings.warn(attrs["warning"] + " Read more topics before reading anything into it.", stacklevel=2)
    data = described(xr.Dataset(found, {"topic": np.array(units.topics, object)}, attrs), VARIABLES)
    asked = {"baseline": attrs["baseline"], "level": level, "draws": draws, "seed": seed}
    return derived("values.data_gap", data, source, readings, **asked)


def _orders(n: int, draws: int, seed: int) -> np.ndarray:
    """Orders of n, the given one left out: all, or ``draws`` of them."""
    if math.factorial(n) <= EXACT:
        return np.array(list(itertools.permutations(range(n))), int).reshape(-1, n)[1:]
    rng = np.random.default_rng([seed, 6])
    return rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def _correlations(x: np.ndarray, rows: np.ndarray, rank: bool = False) -> np.ndarray:
    """Of x [n] with each row [draws, n]; NaN for fewer than three, or without variance."""
    if len(x) < 3:
        return np.full(len(rows), np.nan)
    if rank:
        x, rows = ranks(x), ranks(rows, 1)
    x, rows = x - x.mean(), rows - rows.mean(1, keepdims=True)
    size = np.sqrt((x**2).sum() * (rows**2).sum(1))
    return over(rows @ x, np.where(size > 1e-12, size, 0))


def agreement(
    readings_by_instrument: Mapping[str, Reading | xr.Dataset],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """Do instruments say the same of the same items?  At the checkpoints that both of a pair read.

    Returns [pair, checkpoint], NaN where one of the two was not read:
        spearman: rank correlation of keyed stance over clusters (an item without duplicates is one); _low, _high:
            clusters drawn again within topics; _p: clusters shuffled, two-sided, for each cell alone.  Noise of reading
            lowers it: two runs of one instrument are the ceiling.
        tv: mean over clusters of the total variation between an item's two distributions; _low, _high; _null: the
            same between items of different clusters, as far apart as instruments are that agree in the mean alone.
        n: clusters that both read.
    """
    names = list(readings_by_instrument)
    if len(names) < 2:
        raise InputError(f"Agreement is between instruments, and there is {len(names)}. Give two or more.")
    given = [opened(readings_by_instrument[name]) for name in names]
    units = aligned(given, names)
    steps = sorted(set().union(*(own.steps.tolist() for own in units)))
    pairs = list(itertools.combinations(range(len(names)), 2))
    shape = (len(pairs), len(steps))
    columns = [f"{name}{end}" for name in ("spearman", "tv") for end in ("", "_low", "_high")]
    found = {name: np.full(shape, np.nan) for name in (*columns, "spearman_p", "tv_null", "n")}
    common = [sorted(set(units[a].steps.tolist()) & set(units[b].steps.tolist())) for a, b in pairs]
    if not any(common):
        raise InputError(f"{' and '.join(map(repr, names))} have no checkpoint in common. Read one with two of them.")
    for i, (a, b) in enumerate(pairs):
        for step in common[i]:
            cell = _agreement(*(own.x[own.number(step)] for own in (units[a], units[b])), units[a], level, draws, seed)
            for name, value in cell.items():
                found[name][i, steps.index(step)] = value
    axes = {"pair": np.array([f"{names[a]} - {names[b]}" for a, b in pairs], object), "checkpoint": steps}
    data = xr.Dataset({name: (("pair", "checkpoint"), x) for name, x in found.items()}, axes, {"level": level})
    asked = {"instruments": names, "level": level, "draws": draws, "seed": seed}
    return derived("values.agreement", described(data, VARIABLES), *given, **asked)


def _agreement(
    a: np.ndarray, b: np.ndarray, units: Units, level: float, draws: int, seed: int
) -> dict[str, float | np.ndarray]:
    """Of readings [item, sample, measure] of one checkpoint."""

    def items(x: np.ndarray) -> np.ndarray:
        there = ~np.isnan(x)
        return over(np.where(there, x, 0).sum(1), there.sum(1))

    p, q = items(a), items(b)
    gone = np.isnan(p) | np.isnan(q)
    p, q = np.where(gone, np.nan, p), np.where(gone, np.nan, q)
    keyed = [units.means(x[None, :, None, 4])[:, 0] for x in (p, q)]
    apart = units.means((np.abs(p - q)[:, :4].sum(1) / 2)[None, :, None])[:, 0]
    times = units.drawn(draws, seed)
    there = ~np.isnan(apart)
    tv = times[:, there] @ apart[there] / np.maximum(1, times[:, there].sum(1))
    known = ~np.isnan(keyed[0])
    x, y = (k[known] for k in keyed)
    once = np.ones((1, len(x)))
    r = _weighted_spearman(x, y, once)[0]
    rng = np.random.default_rng([seed, 7])
    shuffled = rng.permuted(np.tile(ranks(y), (draws, 1)), axis=1) if len(y) else np.empty((draws, 0))
    null = _correlations(ranks(x), shuffled)
    ends = quantiles(_weighted_spearman(x, y, times[:, known]), level)
    low, high = quantiles(tv, level) if there.sum() > 1 else (np.nan, np.nan)
    return {
        "spearman": r, "spearman_low": ends[0], "spearman_high": ends[1],
        "spearman_p": p_value(np.array(abs(r)), np.abs(null)),
        "tv": apart[there].mean() if there.any() else np.nan, "tv_low": low, "tv_high": high,
        "tv_null": _crossed(p[:, :4], q[:, :4], units), "n": there.sum(),
    }  # fmt: skip


def _weighted_spearman(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[draws] rank correlation of x, y [n] where each is there so many times [draws, n]."""
    if len(x) < 3:
        return np.full(len(times), np.nan)
    u, v = (times @ ((z[:, None] < z) + (z[:, None] == z) / 2) for z in (x, y))  # middles of tied ranks
    total = times.sum(1, keepdims=True)
    u, v = (z - (times * z).sum(1, keepdims=True) / total for z in (u, v))
    size = np.sqrt((times * u**2).sum(1) * (times * v**2).sum(1))
    return over((times * u * v).sum(1), np.where(size > 1e-9, size, 0))


def _crossed(p: np.ndarray, q: np.ndarray, units: Units) -> float:
    """Mean TV between p of one item and q of one of another cluster [item, stance], clusters counted once."""
    there = np.flatnonzero(~np.isnan(p[:, 0]))
    cluster = units.cluster[units.unit[there]]
    weight = 1 / np.bincount(cluster, minlength=units.clusters)[cluster]
    top = bottom = 0.0
    for i, w in zip(there, weight, strict=True):
        other = weight * w * (cluster != units.cluster[units.unit[i]])
        top += float(other @ np.abs(p[i] - q[there]).sum(1)) / 2
        bottom += float(other.sum())
    return top / bottom if bottom else float("nan")
