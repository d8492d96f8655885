"""Readings of stance, checked, and the clusters of near-duplicate prompts that every interval and test counts in.

Readings hold p [checkpoint, item, sample, stance], probabilities, NaN (all four) where nothing was read; checkpoint:
steps, rising ints; topic, polarity, cluster [item].  A dataset of one's own will do.  The samples of an item are
framings and generations.  A cluster of duplicates is one opinion asked several times, and counts once: its readings are
averaged first, a topic's value is the mean over its clusters, and clusters are what is drawn again and flipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import max_statistic_p, over
from workbench.variables import about

STANCES = ("support", "neutral", "oppose", "uncommitted")
MEASURES = (*STANCES, "keyed", "commitment")
"""keyed = polarity * (support - oppose), of items with a polarity; commitment = support + oppose."""
DIMS = ("checkpoint", "item", "sample", "stance")
SLACK = 1e-3
"""How far probabilities may be off, as stored in half precision."""


ENDS = {
    "low": ("lower end of the interval of", "low"), "high": ("upper end of the interval of", "high"),
    "band_low": ("lower end of the simultaneous interval of", "low"),
    "band_high": ("upper end of the simultaneous interval of", "high"),
    "p": ("family-wise p of", "p"), "null": ("by chance:", "null"), "null_high": ("quantile of the null of", "floor"),
}  # fmt: skip
"""What stands beside a value, by the end of its name: the beginning of its long name, and its role."""
AXES = {
    "checkpoint": about("checkpoint", "steps", role="label"),
    "topic": about("topic", role="label"),
    "stance": about("stance", role="label"),
    "items": about("items of the topic", role="count"),
    "clusters": about("clusters of near-duplicate items of the topic", role="count"),
}


def family(name: str, long_name: str, units: str = "", better: str = "", *, ends: Iterable[str] = ()) -> dict[str, Any]:
    """Attributes of a variable, and of what :func:`named` puts beside it under the same ``ends``."""
    found = {name: about(long_name, units, better)}
    for end in ends:
        said, role = ENDS[end]
        found[f"{name}_{end}"] = about(f"{said} {long_name}", "" if role == "p" else units, role=role, of=name)
    return found


def by_stance(name: str, long_name: str, units: str = "", *, ends: Iterable[str] = ()) -> dict[str, Any]:
    """:func:`family` of a variable over stances, and of the same of the keyed stance and of commitment."""
    ends = tuple(ends)
    found = family(name, f"{long_name} of the stance", units, ends=ends)
    found |= family(f"keyed_{name}", f"{long_name} of the keyed stance", units, ends=ends)
    return found | family(f"commitment_{name}", f"{long_name} of commitment", units, ends=ends)


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
    for name in ("topic", "polarity", "cluster"):
        if name not in readings.variables or readings[name].dims != ("item",):
            raise InputError(f"The readings need {name} [item]. A prompt without duplicates is a cluster of its own.")
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


class Units:
    """Clusters of prompts within topics ("units"), and the arithmetic on them.  Arrays of units are [unit, ...].

    A cluster with items in two topics is a unit in each; both are drawn and flipped together.

    Parameters
    ----------
    topic, cluster
        Of each item.
    """

    def __init__(self, topic: Sequence[Any] | np.ndarray, cluster: Sequence[Any] | np.ndarray) -> None:
        topic, cluster = np.asarray(topic, object).astype(str), np.asarray(cluster, object).astype(str)
        self.topics = list(dict.fromkeys(topic.tolist()))
        self.item_topic = np.array([self.topics.index(x) for x in topic])
        _, item_cluster = np.unique(cluster, return_inverse=True)
        both, self.unit = np.unique(np.stack([self.item_topic, item_cluster]), axis=1, return_inverse=True)
        self.unit = self.unit.reshape(-1)
        self.topic, self.cluster = both
        self.clusters = int(item_cluster.max()) + 1
        _, first = np.unique(self.cluster, return_index=True)
        self._stratum = self.topic[first]  # a cluster in two topics is drawn with the first

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

    def parts(self, x: np.ndarray, *, centred: bool = False) -> np.ndarray:
        """[checkpoint, item, sample, ...] -> [unit, sample, checkpoint, ...] whose mean over samples is ``means``.

        ``centred``: what each sample adds to it, which has mean 0.
        """
        x = np.moveaxis(np.moveaxis(x, 1, 0), 2, 1)
        there = ~np.isnan(x)
        total, count = self._grouped(np.where(there, x, 0)), self._grouped(there)
        if centred:
            total = total - count * np.nan_to_num(over(total.sum(1), count.sum(1)))[:, None]
        return np.nan_to_num(over(total, count.mean(1)[:, None]))

    def mean(self, y: np.ndarray, times: np.ndarray | None = None, add: np.ndarray | None = None) -> np.ndarray:
        """[unit, ...] -> [topic, ...] mean over clusters that have a value; [draws, topic, ...] with ``times``
        [draws, unit] that each is there.  ``add`` [draws, topic, ...] is added to the sums."""
        once = times is None
        times = np.ones((1, len(y))) if times is None else times
        there = (~np.isnan(y)).astype(float)
        top, bottom = self.sums(times, np.nan_to_num(y)), self.sums(times, there)
        found = over(top if add is None else top + add, bottom)
        return found[0] if once else found

    def sums(self, times: np.ndarray, y: np.ndarray) -> np.ndarray:
        """[draws, unit] x [unit, ...] -> [draws, topic, ...]"""
        found = np.empty((len(times), len(self.topics), *y.shape[1:]))
        flat = y.reshape(len(y), -1)
        for t in range(len(self.topics)):
            own = self.topic == t
            found[:, t] = (times[:, own] @ flat[own]).reshape(len(times), *y.shape[1:])
        return found

    def drawn(self, draws: int, seed: int) -> np.ndarray:
        """[draws, unit]: how often each is there when clusters are drawn again, within topics."""
        rng, times = np.random.default_rng(seed), np.zeros((draws, self.clusters))
        for stratum in np.unique(self._stratum):
            own = self._stratum == stratum
            times[:, own] = rng.multinomial(own.sum(), np.full(own.sum(), 1 / own.sum()), size=draws)
        return times[:, self.cluster]

    def signs(self, draws: int, seed: int, samples: int | None = None) -> np.ndarray:
        """[draws, unit] of +1, -1, alike within a cluster; [draws, unit, sample] with ``samples``."""
        shape = (draws, self.clusters) if samples is None else (draws, self.clusters, samples)
        return np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=shape)[:, self.cluster]

    def bootstrap(self, x: np.ndarray, draws: int, seed: int, *, redraw: bool = False) -> np.ndarray:
        """[checkpoint, item, sample, ...] -> [draws, topic, checkpoint, ...]: means when prompts are drawn again.

        In two stages, the same indices at all checkpoints: clusters with replacement, then each one's samples, without
        replacement (all of them), because clusters already differ by the noise of their samples, and samples drawn with
        replacement (``redraw``) add it once more (Davison & Hinkley 1997, section 3.8).  NaN for one cluster alone.
        """
        y, times, add = self.means(x), self.drawn(draws, seed), None
        if redraw:
            rng, n = np.random.default_rng([seed, 2]), x.shape[2]
            first = np.unique(self.cluster, return_index=True)[1]
            again = rng.multinomial(times[:, first].astype(int) * n, np.full(n, 1 / n))[:, self.cluster] / n
            rows = self.parts(x, centred=True)
            add = np.zeros((draws, len(self.topics), *rows.shape[2:]))
            for s in range(n):
                add += self.sums(again[:, :, s], rows[:, s])
        found = self.mean(y, times, add)
        found[:, self.count(y) < 2] = np.nan
        return found

    def count(self, y: np.ndarray) -> np.ndarray:
        """[unit, ...] -> [topic, ...] clusters with a value."""
        return self.sums(np.ones((1, len(y))), (~np.isnan(y)).astype(float))[0]

    def flipped(self, d: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """[unit, ...] -> [draws, topic, ...]: T = sum of flipped differences / root of the sum of their squares.

        Flips leave the sum of squares as it is, so T has variance 1 in every cell, and is Student's t on another scale.
        """
        y = np.nan_to_num(d)
        root = np.sqrt(self.sums(np.ones((1, len(y))), y**2)[0])
        found = self.sums(signs, y) / np.where(root > 1e-12, root, 1)
        found[:, self.count(d) == 0] = np.nan
        return found

    def mean_flipped(self, d: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """[unit, ...] -> [draws, topic, ...] means of flipped differences."""
        return over(self.sums(signs, np.nan_to_num(d)), self.count(d))

    def tested(self, d: np.ndarray, draws: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Paired differences [unit, ...] -> family-wise p and half width of simultaneous intervals, both [topic, ...].

        Every cell is of one family.  p: the sign of each cluster's differences is flipped, all of its cells together,
        and a cell's |T| is compared with the largest of each draw.  The intervals take the quantile of the largest
        |T| of flipped differences from the mean; they are infinite where a topic has too few clusters to say.

        Flips are exact for one checkpoint.  Several with a common baseline are flipped together, which keeps their
        correlations and is right as clusters become many: without drift, topics of 8 to 50 clusters had a p <= .05 in
        4 to 5 % of simulated runs.
        """
        signs = self.signs(draws, seed)
        observed = np.abs(self.flipped(d, np.ones((1, len(d))))[0])
        known = ~np.isnan(observed)
        p = np.full(observed.shape, np.nan)
        if not known.any():
            return p, p.copy()
        p[known] = max_statistic_p(observed[known], np.abs(self.flipped(d, signs)[:, known]))
        n = self.count(d)
        centred = d - self.mean(d)[self.topic]
        q2 = float(np.quantile(np.abs(self.flipped(centred, signs)[:, known]).max(1), level, method="higher")) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt(self.sums(np.ones((1, len(d))), np.nan_to_num(centred) ** 2)[0] / (n * (n - 1)))
            # T of the flips, bounded by the root of n, back on the scale of Student's t.
            half = np.where(n > q2, error * np.sqrt(q2 * (n - 1) / (n - q2)), np.inf)
        # n clusters have 2^n flips, half of them mirror images: no p is smaller, and no interval more certain.
        half = np.where(2.0 ** (1 - n) > 1 - level + 1e-12, np.inf, half)
        return p, np.where(n < 2, np.nan, half)


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
