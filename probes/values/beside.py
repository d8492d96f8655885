"""Drift beside something else: other runs, the training data, another instrument."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from probes.values.units import (
    AXES,
    OF_RUN,
    RUN,
    STANCES,
    StanceUnits,
    Units,
    aligned,
    by_stance,
    family,
    named,
    opened,
)
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, over, p_value, ranks, step_down
from workbench.variables import about, described

SEEDS = 3
"""So many runs of an arm have a spread."""
FEW_TOPICS = 5
CLOSE = 0.9999
"""Correlations nearer to 1 are taken for this by their interval, whose scale has no end."""
EXACT = 5040
"""Up to so many orders of topics (those of seven) are all taken, and no longer drawn."""
ENDS = ("low", "high", "band_low", "band_high", "p")
VARIABLES: dict[str, Any] = {
    **AXES,
    "run": about("run", role="label"),
    "pair": about("pair", role="label"),
    "arm": about("arm", role="label"),
    "arm_pair": about("pair of arms", role="label"),
    **by_stance("M", "drift to the end of the run", ends=ENDS, more=OF_RUN),
    **by_stance("difference", "difference between two runs' drift", ends=ENDS, more="(two seeds of one recipe differ)"),
    **by_stance("mean", "mean drift of an arm, over its runs", ends=("low", "high", "p")),
    **by_stance("arm_difference", "difference between two arms' drift, over their runs", ends=("low", "high", "p")),
    **by_stance("spread", "standard deviation of drift over an arm's runs", ends=("null", "p")),
    "seeds": about("runs of the arm", "runs", role="count"),
    "run_arm": about("arm of the run", role="label"),
    "run_start": about("baseline of the run", "steps", role="label"),
    "run_end": about("last checkpoint of the run", "steps", role="label"),
    **family("drift", "keyed drift of the model", ends=ENDS, more=OF_RUN),
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

    Whether two recipes differ is a question about runs: two seeds of one recipe differ, too, and items, however many,
    do not say by how much.  Give several runs of each recipe, and say with ``arm`` which is of which.

    Parameters
    ----------
    runs
        Readings by the run's name; the steps may differ.
    arm
        Run -> arm, of runs that differ in the seed of training alone.
    baseline
        A step that every run has; each one's first by default.

    Returns
    -------
    Reading
        M [run, topic, stance], and keyed_M, commitment_M [run, topic], as in ``drift`` (family: all of these): of the
        run that was read, and not of its recipe.  run_start, run_end [run]: the steps it is between.

        With arms, run-level inference:
            mean [arm, topic, stance]: mean of M over the arm's runs; _low and _high: Student's t over runs; _p: is it
                0, t over runs, family-wise over all cells and arms (Holm).  NaN for a single run.
            arm_difference [arm_pair, topic, stance]: the first arm's mean less the second's; _low, _high: Welch's t
                over runs; _p: family-wise over all cells and pairs of arms.  Runs are shuffled between the arms
                (studentised, step-down max-T) where they have arrangements enough to reach 1 - ``level``, and Welch's
                p are adjusted (Holm) where not: 3 runs against 3 have 20 arrangements, and p = .1 at least.  NaN where
                an arm has a single run.  attrs["arms"] says which test it was.
            spread [arm, topic, stance]: standard deviation of M over runs of an arm; NaN for fewer than three.  _null:
                its mean when runs are shuffled within each cluster, the noise of reading; _p: family-wise over arms and
                the rest.
            seeds [arm]: number of runs.  run_arm [run].
        Without, difference [pair, topic, stance]: M of the pair's first run less that of its second, paired by cluster:
            _low, _high, _band_low, _band_high and _p (one family over topics, stances, keyed, commitment and pairs).
            It says whether these two runs differ; two seeds of one recipe do.
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
    one, changes, bases = units[0], [], []
    for name, own in zip(names, units, strict=True):
        base = own.number(baseline)
        if base == len(own.steps) - 1:
            raise InputError(f"Run {name!r} ends at its baseline, {own.steps[-1]}. Read a later checkpoint of it.")
        changes.append(own.x[-1] - own.x[base])
        bases.append(own.steps[base])
    most = max(x.shape[1] for x in changes)
    # Runs may have other numbers of samples: what is missing is NaN.
    x = np.stack([np.pad(x, ((0, 0), (0, most - x.shape[1]), (0, 0)), constant_values=np.nan) for x in changes])
    d = one.means(x)  # [unit, run, measure]
    own, test = one.interval(d, level, draws, seed), one.tested(d, level, draws, seed)
    bands = {"band_low": own.value - test.half, "band_high": own.value + test.half}
    found = named("M", ("topic", "run", "stance"), own.value, low=own.low, high=own.high, **bands, p=test.p)
    found |= {"run_start": (("run",), np.array(bases)), "run_end": (("run",), np.array([x.steps[-1] for x in units]))}
    found |= one.counts()
    axes: dict = {"run": names, "topic": np.array(one.topics, object), "stance": list(STANCES)}
    attrs = {"level": level, "draws": draws, "interval": own.said("clusters of items")}
    attrs["assumes"] = f"{test.assumes}; {RUN}"
    pairs = list(itertools.combinations(range(len(names)), 2))
    if arm is not None:
        found |= _spread(one, d, names, arm, draws, seed)
        arms = list(dict.fromkeys(arm[name] for name in names))
        found["run_arm"] = (("run",), np.array([arm[name] for name in names], object))
        axes["arm"] = arms
        over_runs, attrs["arms"] = _arms(np.moveaxis(own.value, 1, 0), names, arm, level, draws, seed)
        found |= over_runs
        axes["arm_pair"] = np.array([f"{a} - {b}" for a, b in itertools.combinations(arms, 2)], object)
    elif pairs:
        a, b = (list(side) for side in zip(*pairs, strict=True))
        between = d[:, a] - d[:, b]
        own, test = one.interval(between, level, draws, seed), one.tested(between, level, draws, seed)
        bands = {"band_low": own.value - test.half, "band_high": own.value + test.half}
        dims = ("topic", "pair", "stance")
        found |= named("difference", dims, own.value, low=own.low, high=own.high, **bands, p=test.p)
        axes["pair"] = np.array([f"{names[i]} - {names[j]}" for i, j in pairs], object)
    axes = {name: own for name, own in axes.items() if len(own)}
    found = {name: own for name, own in found.items() if set(own[0]) <= set(axes)}
    data = described(xr.Dataset(found, axes, attrs), VARIABLES)
    data = data.transpose("run", "pair", "arm", "arm_pair", "topic", "stance", missing_dims="ignore")
    asked = {"runs": names, "arm": None if arm is None else {name: arm[name] for name in names}, "baseline": baseline}
    table = derived("values.compare", data, *given.values(), **asked, level=level, draws=draws, seed=seed)
    if len(names) > 1:  # else the last run's model would stand for all
        table.provenance[-1]["model"] = {"name": ", ".join(names)}
        table.data.attrs["model"] = ", ".join(names)
    return table


def _arms(
    m: np.ndarray, names: list[str], arm: Mapping[str, str], level: float, draws: int, seed: int
) -> tuple[dict[str, tuple], str]:
    """mean and arm_difference from drifts of runs [run, topic, measure]; and how they were tested."""
    from scipy.special import stdtr, stdtrit

    arms = list(dict.fromkeys(arm[name] for name in names))
    of = [m[[arm[name] == one for name in names]] for one in arms]
    shape, tail = m.shape[1:], (1 + level) / 2
    mean = np.stack([own.mean(0) for own in of])
    square = np.stack([own.var(0, ddof=1) / len(own) if len(own) > 1 else np.full(shape, np.nan) for own in of])
    dof = np.array([len(own) - 1 for own in of], float).reshape(-1, 1, 1)
    # Runs that agree to the last bit (the same weights) show no spread between seeds, and no test is made of them.
    square = np.where(square > 1e-24, square, np.nan)

    def tested(value: np.ndarray, variance: np.ndarray, dof: np.ndarray) -> tuple[np.ndarray, ...]:
        dof = np.broadcast_to(np.maximum(dof, 1), value.shape)
        half = stdtrit(dof, tail) * np.sqrt(variance)
        return value - half, value + half, 2 * stdtr(dof, -np.abs(value) / np.sqrt(variance))

    low, high, p = tested(mean, square, dof)
    found = named("mean", ("arm", "topic", "stance"), mean, low=low, high=high, p=_holm(p))
    pairs = list(itertools.combinations(range(len(arms)), 2))
    if not pairs:
        return found, "t over runs, Holm over all cells"
    value, ends, family, said = np.empty((len(pairs), *shape)), [], np.empty((len(pairs), *shape)), set()
    for k, (a, b) in enumerate(pairs):
        value[k], variance = mean[a] - mean[b], square[a] + square[b]
        weight = over(square[a], variance)
        welch = 1 / (weight**2 / max(1, dof[a, 0, 0]) + (1 - weight) ** 2 / max(1, dof[b, 0, 0]))
        *bounds, p = tested(value[k], variance, np.nan_to_num(welch, nan=1.0))
        ends.append(bounds)
        some = np.concatenate([of[a], of[b]])
        test = Design(n=len(some)).permute(some, np.repeat([0, 1], [len(of[a]), len(of[b])]), draws=draws, seed=seed)
        # So few arrangements cannot reach the level, once it is shared among the pairs of arms.
        few = test.resolution * len(pairs) > 1 - level + 1e-12
        family[k] = np.minimum(1, len(pairs) * np.where(np.isnan(p), np.nan, _holm(p) if few else test.p_family))
        if min(len(of[a]), len(of[b])) < 2:
            said.add("none for an arm of one run")
        else:
            runs = f"{len(of[a])} and {len(of[b])} runs, whose permutations reach p = {test.resolution:.2g}"
            said.add(f"{'Welch t, Holm over all cells' if few else 'permutations, step-down max-T'} ({runs})")
    low, high = (np.stack([own[i] for own in ends]) for i in (0, 1))
    found |= named("arm_difference", ("arm_pair", "topic", "stance"), value, low=low, high=high, p=family)
    return found, "; ".join(sorted(said))


def _holm(p: np.ndarray) -> np.ndarray:
    """Family-wise p over all cells that have one (Holm 1979)."""
    found, known = np.full(p.shape, np.nan), ~np.isnan(p)
    own = p[known]
    order = np.argsort(own)
    adjusted = np.empty(len(own))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(own[order] * np.arange(len(own), 0, -1)))
    found[known] = adjusted
    return found


def _spread(
    units: Units, d: np.ndarray, names: list[str], arm: Mapping[str, str], draws: int, seed: int
) -> dict[str, tuple]:
    """Of differences [unit, run, measure]."""
    unknown = sorted(set(names) - set(arm))
    if unknown:
        raise InputError(f"Run {unknown[0]!r} has no arm. Name the arm of every run.")
    arms = list(dict.fromkeys(arm[name] for name in names))
    shape = (len(units.topics), len(arms), d.shape[-1])
    spread, scaled, expected = (np.full(shape, np.nan) for _ in range(3))
    null = np.full((draws, *shape), np.nan)
    seeds = np.array([sum(arm[name] == one for name in names) for one in arms])
    rng = np.random.default_rng([seed, 5])
    for j, one in enumerate(arms):
        own = d[:, [arm[name] == one for name in names]]
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
        p[known] = step_down(scaled[known], null[:, known])
    found = named("spread", ("topic", "arm", "stance"), spread, null=expected, p=p)
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
    own, test = units.interval(d, level, draws, seed), units.tested(d, level, draws, seed)
    value = own.value
    columns = {"low": own.low, "high": own.high, "p": test.p}
    columns |= {"band_low": value - test.half, "band_high": value + test.half}
    found = named("drift", ("topic",), value[:, 0], **{name: x[:, 0] for name, x in columns.items()})
    found |= {"training": (("topic",), training)} | units.counts()
    known = ~np.isnan(training) & ~np.isnan(value[:, 0])
    n = int(known.sum())
    orders = _orders(n, draws, seed)
    for name, rank in (("pearson", False), ("spearman", True)):
        r = _correlations(training[known], value[None, known, 0], rank)[0]
        null = _correlations(training[known], value[known, 0][orders], rank)
        low, high = _interval(
            units.design,
            lambda times, rank=rank: _correlations(training[known], units.mean(d, times)[:, known, 0], rank),
            level=level, draws=draws, seed=seed,
        )  # fmt: skip
        p = p_value(np.array(abs(r)), np.abs(null))
        found |= {name: ((), r), f"{name}_low": ((), low), f"{name}_high": ((), high), f"{name}_p": ((), p)}
    attrs = {"level": level, "baseline": int(units.steps[base]), "topics": n}
    attrs |= {"interval": own.said("clusters of items"), "assumes": f"{test.assumes}; {RUN}"}
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


def _interval(
    design: Design, correlation: Callable[[np.ndarray], np.ndarray], **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a correlation, on the scale on which its error does not depend on it (Fisher's z)."""
    value = correlation(np.ones((1, design.rows)))[0]
    own = design.bootstrap(lambda times: np.arctanh(np.clip(correlation(times), -CLOSE, CLOSE)), **settings)
    return np.minimum(value, np.tanh(own.low)), np.maximum(value, np.tanh(own.high))


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
    clusters, settings = Design(units.cluster), {"level": level, "draws": draws, "seed": seed}
    there = ~np.isnan(apart)
    tv = clusters.bootstrap(apart, **settings)
    known = ~np.isnan(keyed[0])
    x, y = (k[known] for k in keyed)
    once = np.ones((1, len(x)))
    r = _weighted_spearman(x, y, once)[0]
    rng = np.random.default_rng([seed, 7])
    shuffled = rng.permuted(np.tile(ranks(y), (draws, 1)), axis=1) if len(y) else np.empty((draws, 0))
    null = _correlations(ranks(x), shuffled)
    low, high = _interval(clusters, lambda times: _weighted_spearman(x, y, times[:, known]), **settings)
    return {
        "spearman": r, "spearman_low": low, "spearman_high": high,
        "spearman_p": p_value(np.array(abs(r)), np.abs(null)),
        "tv": tv.value, "tv_low": np.maximum(tv.low, 0), "tv_high": np.minimum(tv.high, 1),
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
