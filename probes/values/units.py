"""Readings of stance, checked, and the clusters of near-duplicate prompts that every interval and test counts in.

Readings hold p [checkpoint, item, sample, stance], probabilities, NaN (all four) where nothing was read; checkpoint:
steps, rising ints; topic, polarity, cluster [item].  A dataset of one's own will do.  The samples of an item are
framings and generations.  A cluster of duplicates is one opinion asked several times, and counts once: its readings are
averaged first, a topic's value is the mean over its clusters, and clusters are what is drawn again and flipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probes.values.duplicates import joined, told
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import Design, Interval, over, step_down
from workbench.stats.levels import Reached
from workbench.variables import about

STANCES = ("support", "neutral", "oppose", "uncommitted")
MEASURES = (*STANCES, "keyed", "commitment")
"""keyed = polarity * (support - oppose), of items with a polarity; commitment = support + oppose."""
DIMS = ("checkpoint", "item", "sample", "stance")
SLACK = 1e-3
"""How far probabilities may be off, as stored in half precision."""
OF_RUN = "in this run (another seed may differ)"
RUN = "the run is given: another seed of training may differ (compare has tests over runs)"
"""What tests and intervals over items say nothing of."""
SKEWED = 0.2
"""Differences with a smaller ``symmetry_p`` count as skewed."""
ROUNDING = 1e-12
"""Smaller differences are of rounding, and 0 to tests: else what cannot move would be one more thing that does."""
TESTABLE = 50
"""With fewer clusters in all, symmetry that is not rejected has not been tested, and several topics' counts as
rejected."""

ENDS = {
    "low": ("lower end of the interval of", "low"), "high": ("upper end of the interval of", "high"),
    "band_low": ("lower end of the simultaneous interval of", "low"),
    "band_high": ("upper end of the simultaneous interval of", "high"),
    "p": ("family-wise p of", "p"), "symmetry_p": ("p of symmetric moves:", "p"), "null": ("by chance:", "null"),
    "null_high": ("quantile of the null of", "floor"),
}  # fmt: skip
"""What stands beside a value, by the end of its name: the beginning of its long name, and its role."""
AXES = {
    "checkpoint": about("checkpoint", "steps", role="label"),
    "topic": about("topic", role="label"),
    "stance": about("stance", role="label"),
    "items": about("items of the topic", role="count"),
    "clusters": about("clusters of near-duplicate items of the topic", role="count"),
}


def family(
    name: str, long_name: str, units: str = "", better: str = "", *, ends: Iterable[str] = (), more: str = ""
) -> dict[str, Any]:
    """Attributes of a variable, and of what :func:`named` puts beside it under the same ``ends``.

    ``more`` is said of the value alone.
    """
    short = {"short_name": long_name} if more else {}
    found = {name: about(f"{long_name} {more}".strip(), units, better, **short)}
    for end in ends:
        said, role = ENDS[end]
        found[f"{name}_{end}"] = about(f"{said} {long_name}", "" if role == "p" else units, role=role, of=name)
    return found


def by_stance(
    name: str, long_name: str, units: str = "", *, ends: Iterable[str] = (), more: str = ""
) -> dict[str, Any]:
    """:func:`family` of a variable over stances, and of the same of the keyed stance and of commitment."""
    ends = tuple(ends)
    found = family(name, f"{long_name} of the stance", units, ends=ends, more=more)
    found |= family(f"keyed_{name}", f"{long_name} of the keyed stance", units, ends=ends, more=more)
    return found | family(f"commitment_{name}", f"{long_name} of commitment", units, ends=ends, more=more)


def opened(given: Any) -> Reading:
    """The reading; of a dataset of one's own, one without provenance.  InputError for anything else."""
    if isinstance(given, xr.Dataset):
        return Reading(given)
    if not isinstance(given, Reading):
        raise InputError(
            f"Expected a Reading (or an xarray.Dataset like its .data), got a {type(given).__name__}: what a tracker's "
            "readings() or table() and the functions of probes.values give."
        )
    return given


def checked(readings: Reading | xr.Dataset) -> xr.Dataset:
    """The data of readings, axes and stances in order.  InputError, with what is wrong, if they are no readings."""
    readings = opened(readings).data
    if "p" not in readings or set(readings["p"].dims) != set(DIMS):
        found = f"p {list(readings['p'].dims)}" if "p" in readings else f"variables {list(readings.data_vars)}"
        raise InputError(f"The readings have {found}. Give p {list(DIMS)}; a single sample is an axis of length 1.")
    empty = [name for name in DIMS if not readings.sizes[name]]
    if empty:
        raise InputError(f"The axis {empty[0]!r} is empty: nothing was read.")
    if "stance" not in readings.coords or sorted(map(str, readings["stance"].values)) != sorted(STANCES):
        found = [str(x) for x in readings["stance"].values] if "stance" in readings.coords else "not named"
        raise InputError(f"The stances are {found}. Name all of {', '.join(STANCES)}; one that cannot occur has p = 0.")
    for name in ("checkpoint", "item"):
        if name not in readings.coords:
            raise InputError(f"The axis {name!r} has no coordinate. Name every {name}.")
    steps = readings["checkpoint"].values
    if steps.dtype.kind not in "iu" or (np.diff(steps.astype(np.int64)) <= 0).any():
        raise InputError(f"checkpoint holds {steps.tolist()}. Checkpoints are steps of training: ints that rise.")
    items, count = np.unique(readings["item"].values.astype(str), return_counts=True)
    if (count > 1).any():
        raise InputError(
            f"Item {str(items[count.argmax()])!r} is there {count.max()} times. Items are read once; name each."
        )
    if "cluster" not in readings.variables and {"text", "topic"} <= set(readings.variables):
        readings = readings.assign(cluster=("item", _by_text(readings)))
    for name in ("topic", "polarity", "cluster"):
        if name not in readings.variables or readings[name].dims != ("item",):
            raise InputError(
                f"The readings need {name} [item]. A prompt without duplicates is a cluster of its own; with the texts "
                "of items, text [item], near-duplicates are found."
            )
    for name in ("topic", "cluster"):
        blank = np.array([x is None or x != x or str(x) == "" for x in readings[name].values])
        if blank.any():
            raise InputError(f"Item {str(readings['item'].values[blank.argmax()])!r} has no {name}. Name one.")
    odd = ~np.isin(readings["polarity"].values, (1, -1, 0))
    if odd.any():
        i = odd.argmax()
        raise InputError(
            f"Item {str(readings['item'].values[i])!r} has polarity {readings['polarity'].values[i]}. "
            "Polarity is +1, -1 where support of the item opposes the topic's direction, or 0 where it has none."
        )
    order = [[str(x) for x in readings["stance"].values].index(name) for name in STANCES]
    readings = readings.isel(stance=order).transpose(*DIMS, ...)
    p = readings["p"].values.astype(float)
    gone = np.isnan(p)
    if (gone.any(-1) & ~gone.all(-1)).any():
        raise InputError(
            f"p is NaN in part at {_where(readings, gone.any(-1) & ~gone.all(-1))}. Missing: all four NaN."
        )
    if gone.all():
        raise InputError("p is NaN everywhere: nothing was read.")
    wrong = ~gone[..., 0] & ~((p >= -SLACK).all(-1) & (np.abs(p.sum(-1) - 1) <= SLACK))
    if wrong.any():
        raise InputError(
            f"p is no distribution at {_where(readings, wrong)}: {p[wrong][0].tolist()}. Let it add up to 1."
        )
    return readings


def _by_text(readings: xr.Dataset) -> np.ndarray:
    """Clusters of near-duplicates among a dataset's own texts."""
    rows = zip(readings["item"].values, readings["text"].values, strict=True)
    items = joined(SimpleNamespace(item_id=str(name), text=str(text), cluster="") for name, text in rows)
    return np.array([item.cluster for item in items], object)


def _where(readings: xr.Dataset, at: np.ndarray) -> str:
    k, i, s = np.argwhere(at)[0]
    return f"checkpoint {readings['checkpoint'].values[k]}, item {str(readings['item'].values[i])!r}, sample {s}"


def aligned(readings: Sequence[Reading | xr.Dataset], names: Sequence[str]) -> list[StanceUnits]:
    """Units of several readings of the same items, in the first one's order.  InputError where items differ."""
    first = checked(readings[0])
    found = [StanceUnits(first)]
    for name, other in zip(names[1:], readings[1:], strict=True):
        other = checked(other)
        alone = set(first["item"].values.tolist()) ^ set(other["item"].values.tolist())
        if alone:
            raise InputError(
                f"{names[0]!r} and {name!r} are not of the same items: {sorted(map(str, alone))[0]!r} is in one alone. "
                "Take what both have with .sel(item=...)."
            )
        other = other.sel(item=first["item"].values)
        for column in ("topic", "polarity", "cluster"):
            if (first[column].values != other[column].values).any():
                raise InputError(
                    f"{names[0]!r} and {name!r} differ in {column} of the same items. Read one list of items."
                )
        found.append(StanceUnits(other))
    return found


class Tested(NamedTuple):
    """Family-wise tests of means against 0 and simultaneous intervals, [topic, ...].

    Attributes
    ----------
    p
        Family-wise over all cells.
    half
        Half width of simultaneous intervals; infinite where a topic has too few clusters to say, NaN without any.
    symmetry_p
        [...], over topics: how likely differences that lie symmetrically about their topic's mean would look as skewed.
    assumes
        What p rests on, in words.
    skewed
        Whether the SD pooled over topics was taken for some cell.
    """

    p: np.ndarray
    half: np.ndarray
    symmetry_p: np.ndarray
    assumes: str
    skewed: bool = False


class Units:
    """Clusters of prompts within topics ("units"), and the arithmetic on them.  Arrays of units are [unit, ...].

    A cluster with items in two topics is a unit in each; both are drawn and flipped together.

    Parameters
    ----------
    topic, cluster
        Of each item.

    Attributes
    ----------
    design
        :class:`workbench.stats.Design` whose rows are units, in clusters, within topics (a cluster in two topics is
        drawn with its first).
    """

    def __init__(self, topic: Sequence[Any] | np.ndarray, cluster: Sequence[Any] | np.ndarray) -> None:
        topic, cluster = np.asarray(topic, object).astype(str), np.asarray(cluster, object).astype(str)
        self.topics = list(dict.fromkeys(topic.tolist()))
        self.item_topic = np.array([self.topics.index(x) for x in topic])
        _, item_cluster = np.unique(cluster, return_inverse=True)
        both, self.unit = np.unique(np.stack([self.item_topic, item_cluster]), axis=1, return_inverse=True)
        self.unit = self.unit.reshape(-1)
        self.topic, self.cluster = both
        self.design = Design(self.cluster, self.topic)
        self.clusters = self.design.n

    @property
    def duplicates(self) -> dict[str, str]:
        """What is said of near-duplicates in a table's attributes."""
        said = told(self.cluster[self.unit])
        return {"duplicates": said} if said else {}

    def counts(self) -> dict[str, tuple[tuple[str], np.ndarray]]:
        """How many items and clusters a topic has: variables of a Dataset (described by :data:`AXES`)."""
        n = len(self.topics)
        return {
            "items": (("topic",), np.bincount(self.item_topic, minlength=n)),
            "clusters": (("topic",), np.bincount(self.topic, minlength=n)),
        }

    def _grouped(self, values: np.ndarray) -> np.ndarray:
        """[item, ...] -> [unit, ...] sums."""
        found = np.zeros((len(self.topic), *values.shape[1:]))
        np.add.at(found, self.unit, values)
        return found

    def means(self, x: np.ndarray) -> np.ndarray:
        """[checkpoint, item, sample, ...] -> [unit, checkpoint, ...]: the mean of a cluster's readings."""
        x = np.moveaxis(x, 1, 0)
        there = ~np.isnan(x)
        return over(self._grouped(np.where(there, x, 0).sum(2)), self._grouped(there.sum(2)))

    def parts(self, x: np.ndarray) -> np.ndarray:
        """[checkpoint, item, sample, ...] -> [unit, sample, checkpoint, ...] whose mean over samples is ``means``."""
        x = np.moveaxis(np.moveaxis(x, 1, 0), 2, 1)
        there = ~np.isnan(x)
        total, count = self._grouped(np.where(there, x, 0)), self._grouped(there)
        return np.nan_to_num(over(total, count.mean(1)[:, None]))

    def mean(self, y: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """[unit, ...] -> [topic, ...] mean over clusters that have a value; [draws, topic, ...] with ``times``
        [draws, unit] that each is there."""
        once = times is None
        times = np.ones((1, len(y))) if times is None else times
        found = over(self.sums(times, np.nan_to_num(y)), self.sums(times, (~np.isnan(y)).astype(float)))
        return found[0] if once else found

    def sums(self, times: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[draws, unit] x [unit, ...] -> [draws, topic, ...]"""
        found = np.empty((len(times), len(self.topics), *y.shape[1:]))
        flat = y.reshape(len(y), -1)
        for t in range(len(self.topics)):
            own = self.topic == t
            found[:, t] = (times[:, own] @ flat[own]).reshape(len(times), *y.shape[1:])
        return found

    def count(self, y: np.ndarray) -> np.ndarray:
        """[unit, ...] -> [topic, ...] clusters with a value."""
        return self.sums(np.ones((1, len(y))), (~np.isnan(y)).astype(float))[0]

    def again(self, y: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """[unit, ...] -> [draws, topic, ...]: means when clusters are drawn again, all cells together.

        A cluster's samples are not drawn again with it: clusters already differ by the noise of their samples, and
        samples drawn with replacement add it once more (Davison & Hinkley 1997, section 3.8).  NaN for one cluster.
        """
        found = self.mean(y, self.design.resample(draws, seed))
        found[:, self.count(y) < 2] = np.nan
        return found

    def flipped(self, y: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """[unit, ...] -> [draws, topic, ...] means when the sign of each cluster is flipped."""
        return over(self.sums(self.design.signs(draws, seed), np.nan_to_num(y)), self.count(y))

    def interval(self, y: np.ndarray, level: float, draws: int, seed: int) -> Interval:
        """[unit, ...] -> intervals of the topics' means, [topic, ...] (:meth:`workbench.stats.Design.bootstrap`)."""
        found = []
        for t in range(len(self.topics)):
            own = y[self.topic == t]
            found.append(Design(n=len(own)).bootstrap(own, level=level, draws=draws, seed=seed))
        said = sorted({kind for one in found for kind in one.method.split(", ")} - {"no interval"})
        *arrays, _ = zip(*found, strict=True)
        return Interval(*(np.stack(x) for x in arrays), ", ".join(said) or "no interval")

    def tested(self, d: np.ndarray, level: float, draws: int, seed: int) -> Tested:
        """Paired differences [unit, ...] against 0; every cell is of one family.

        The sign of each cluster's differences is flipped, all of its cells together (step-down max-T,
        :meth:`workbench.stats.Design.max_t`): exact for one checkpoint, where differences are as often above 0 as below
        by as much.  Several checkpoints with a common baseline are flipped together, which keeps their correlations.

        Differences of mean 0 that are skewed (few items move far, the others creep back) pass flips too easily: a topic
        that has none of the few has moved in all its items.  Symmetry is therefore tested, cell by cell, over all
        topics.  Where it is rejected, or cannot be tested (fewer than :data:`TESTABLE` clusters), p is the larger of
        flips' and of a second test, whose statistic is the mean over the SD pooled over topics, against clusters drawn
        again within topics, of differences from their topic's mean; and the interval is the wider of the two's.  Cells
        that are found to have moved are then left out, and the rest is tested once more: how uneven the moves of topics
        are that moved is no measure of those that did not.  Of a single topic with a handful of items nothing helps:
        without one of the few among them, they have moved.

        Notes
        -----
        Symmetry: with e a cluster's difference from its topic's mean, and s^2 the topic's variance, h = e^3 - 3 s^2 e
        is what a cluster adds to the third central moment.  Signs of h are flipped; the statistics are the sum over all
        clusters, studentised, and the sum over topics of the size of each one's (skews that differ in sign); p is
        twice the smaller.  The threshold, :data:`SKEWED`, is lenient: a cell that is called skewed by chance loses a
        little power.  A studentised bootstrap with each topic's own SD is no second test here: one cell with a single
        outlier, which many draws leave out, has a spread near 0 in them, and takes the power of the whole family.
        """
        d = np.where(np.abs(d) < ROUNDING, 0, d)
        first = found = self._round(d, level, draws, seed)
        p, gone = first.p, np.zeros(first.p.shape, bool)
        while found.skewed and ((moved := (p <= 1 - level + 1e-12) & ~gone).any()):
            gone |= moved
            if not (left := ~gone & ~np.isnan(p)).any():
                break
            found = self._round(np.where(gone[self.topic], np.nan, d), level, draws, seed)
            p = np.where(left, np.fmin(p, np.fmax(found.p, p[gone].max())), p)
        return Tested(p, first.half, first.symmetry_p, first.assumes)

    def _round(self, d: np.ndarray, level: float, draws: int, seed: int) -> Tested:
        """The test of :meth:`tested` with all topics that have a value."""
        shape = d.shape[1:]
        flips = self.design.max_t(d, by=self.topic, level=level, draws=draws, seed=seed, null="flip")
        y = d.reshape(len(d), -1)
        there = ~np.isnan(y)
        n = self.count(y)
        mean = self.mean(y)
        e = np.where(there, y - mean[self.topic], 0)
        square = self.sums(np.ones((1, len(e))), e**2)[0]
        symmetry_p = self._symmetry(e, over(square, n - 1), draws, seed)
        number = int(there.any(1).sum())
        rejected = np.nan_to_num(symmetry_p, nan=1.0) <= SKEWED
        # Of one topic alone the SD over topics is its own, and says nothing that the flips do not.
        skewed = rejected | (number < TESTABLE and len(self.topics) > 1)
        p, half = flips.p.reshape(n.shape), (flips.high - flips.value).reshape(n.shape)
        if skewed.any():
            pooled = np.sqrt(over(square.sum(0), np.maximum(n - 1, 0).sum(0)))
            q, pooled_p = self._pooled(e, there, n, mean, pooled, draws, seed, level)
            p = np.where(skewed, np.fmax(p, pooled_p), p)
            half = np.where(skewed, np.fmax(half, q * over(pooled, np.sqrt(n))), half)
        said = "if a mean did not move, items would move up as often as down, by as much (symmetry)"
        if number < TESTABLE:
            said += f": cannot be tested with {number} clusters"
        elif rejected.any():
            said += f": rejected in {rejected.sum()} of {len(rejected)} cells"
        else:
            said += ": tested, and not rejected"
        said += "; p and bands there also hold the SD over all topics" if skewed.any() else ""
        full = (len(self.topics), *shape)
        return Tested(p.reshape(full), half.reshape(full), symmetry_p.reshape(shape), said, bool(skewed.any()))

    def _symmetry(self, e: np.ndarray, variance: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """p [cell] of differences from their topics' means [unit, cell], of which topics have this variance."""
        h = e**3 - 3 * np.nan_to_num(variance)[self.topic] * e
        root = np.sqrt(self.sums(np.ones((1, len(h))), h**2)[0])  # [topic, cell]
        scale = np.where(root > 1e-12 * np.max(np.abs(e), initial=1e-100) ** 3, root, np.inf)
        total = np.sqrt((root**2).sum(0))

        def statistics(times: np.ndarray) -> np.ndarray:
            found = self.sums(times, h)
            return np.stack([np.abs(over(found.sum(1), total)), np.abs(found / scale).sum(1)], 1)

        reached = Reached(statistics(np.ones((1, len(h))))[0])
        for signs in _blocks(self.design.signs(draws, seed + 1), root.size):
            reached.add(statistics(signs))
        return np.minimum(1, 2 * reached.p().min(0))

    def _pooled(
        self, e: np.ndarray, there: np.ndarray, n: np.ndarray, mean: np.ndarray, own: np.ndarray, draws: int, seed: int,
        level: float,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Simultaneous quantiles and p [topic, cell] of means over the SD pooled over topics (``own``)."""
        # Differences from a mean of n vary too little, by (n - 1) / n.
        e = e * np.sqrt(np.nan_to_num(over(n, n - 1)))[self.topic]

        def statistic(times: np.ndarray) -> np.ndarray:
            total, count = self.sums(times, e), self.sums(times, there.astype(float))
            square = self.sums(times, e**2) - np.nan_to_num(over(total**2, count))
            spread = np.sqrt(over(np.maximum(square.sum(1), 0), np.maximum(count - 1, 0).sum(1)))
            # Draws without a cell's few outliers have next to no spread, and would decide for all cells.
            pooled = np.maximum(spread, own)[:, None]
            return np.nan_to_num(over(np.abs(total), pooled * np.sqrt(count)))

        null = np.concatenate([statistic(times) for times in _blocks(self.design.resample(draws, seed + 2), n.size)])
        # Balanced (Beran 1988): in units of what a cell reaches by itself over topics, or rare stances would decide for
        # all.  By topic it would be studentised once more, and pass topics whose items only creep.
        alone = np.quantile(null.max(1), level, axis=0)
        null = over(null, alone)
        largest = np.nanmax(null, (1, 2), initial=0)
        p = step_down(over(over(np.abs(mean) * np.sqrt(n), own), alone), np.nan_to_num(null))
        return float(np.quantile(largest, level, method="higher")) * alone, p


def _blocks(drawn: np.ndarray, cells: int) -> Iterator[np.ndarray]:
    """Draws [draws, unit] in blocks whose statistics of so many cells fit in memory."""
    step = max(1, 2_000_000 // max(1, cells))
    for start in range(0, len(drawn), step):
        yield drawn[start : start + step]


class StanceUnits(Units):
    """The units of readings of stance, and their values.

    Attributes
    ----------
    steps
        Checkpoints.
    p
        [checkpoint, item, sample, stance]
    x
        [checkpoint, item, sample, measure], measures as in :data:`MEASURES`.
    """

    def __init__(self, readings: Reading | xr.Dataset) -> None:
        data = checked(readings)
        super().__init__(data["topic"].values, data["cluster"].values)
        self.steps = data["checkpoint"].values.astype(np.int64)
        self.p = data["p"].values.astype(float)
        polarity = data["polarity"].values.astype(float)
        keyed = np.where(polarity == 0, np.nan, polarity)[:, None] * (self.p[..., 0] - self.p[..., 2])
        self.x = np.concatenate([self.p, np.stack([keyed, self.p[..., 0] + self.p[..., 2]], -1)], -1)

    def number(self, step: int | None) -> int:
        """Which checkpoint a step is; the first for None."""
        if step is None:
            return 0
        if step not in self.steps:
            raise InputError(f"There is no checkpoint {step}; there are {self.steps.tolist()}.")
        return int(np.flatnonzero(self.steps == step)[0])


def named(name: str, dims: tuple[str, ...], value: np.ndarray, **more: np.ndarray) -> dict[str, tuple]:
    """Variables of a Dataset: the value, and ``more`` as name_low and so on.

    Values of all MEASURES in the last axis fall into the stances, under ``name``, and keyed and commitment.
    """
    parts: dict[str, tuple] = {}
    for end, array in {"": value, **{f"_{key}": x for key, x in more.items()}}.items():
        if dims[-1] != "stance":
            parts[name + end] = (dims, array)
            continue
        parts[name + end] = (dims, array[..., :4])
        for i, measure in enumerate(MEASURES[4:], 4):
            # v of the keyed stance is "keyed", M of it "keyed_M".
            parts[(measure if name == "v" else f"{measure}_{name}") + end] = (dims[:-1], array[..., i])
    return parts
