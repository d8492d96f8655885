"""What was sampled, and the inference that follows from it: intervals, permutations, sign flips, family-wise tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from workbench.errors import InputError
from workbench.stats.arrays import over
from workbench.stats.levels import Reached

FEW, MANY = 8, 1000
"""Below ``FEW`` clusters an interval is Student's t; from ``MANY`` on, percentiles; between them bootstrap-t."""
GROUPS = 200
"""From ``MANY`` clusters on the jackknife of a statistic leaves out so many groups of clusters in place of each."""
AT_ONCE, BLOCK = 4_000_000, 64
"""Numbers that a block may hold; draws that are made together."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""A function of how often each row is there, [draws, row] -> [draws, ...]."""


class Interval(NamedTuple):
    """A confidence interval, cell by cell, and how it was made.

    Attributes
    ----------
    value, low, high
        The estimate and the ends of its interval; NaN where fewer than two clusters have a value.
    error, bias
        Standard error, and how far the estimate is expected to lie above what it estimates (0 for means).
    units
        Clusters that have a value, [...] or one number.
    method
        "exact", "t", "bootstrap-t", "jackknife-t", "percentile" or "basic"; several, where cells differ, joined by
        commas.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    bias: np.ndarray
    units: np.ndarray
    method: str

    def said(self, units: str = "units") -> str:
        """The method and the number of units in words: ``"t over 5 prompts"``."""
        least, most = (int(x) for x in (np.min(self.units, initial=10**9), np.max(self.units, initial=0)))
        return f"{self.method} over {most if least >= most else f'{least} to {most}'} {units}"


class Jackknife(NamedTuple):
    """Delete-one-cluster jackknife: standard error, degrees of freedom and bias of an estimate."""

    value: np.ndarray
    error: np.ndarray
    dof: np.ndarray
    bias: np.ndarray


class Test(NamedTuple):
    """A test of each cell.

    Attributes
    ----------
    statistic
        Studentised; signed where there are two sides.
    p, p_family
        Of each cell alone, and adjusted for all cells together (step-down max-T).
    resolution
        The least p that there can be with these draws and clusters.
    """

    __test__ = False  # no test case, whatever pytest thinks of its name

    statistic: np.ndarray
    p: np.ndarray
    p_family: np.ndarray
    resolution: float


class MaxT(NamedTuple):
    """Family-wise test of means against 0, and simultaneous intervals.

    Attributes
    ----------
    value, statistic
        Mean, and its studentised form T = sum y / root(sum y^2): Student's t on a scale that ends at the root of n.
    p
        The larger of ``p_flip`` and ``p_bootstrap``, which are family-wise.
    low, high
        Intervals that hold all cells together; infinite where there are too few clusters to say.
    resolution
        The least p that there can be.
    """

    value: np.ndarray
    statistic: np.ndarray
    p: np.ndarray
    p_flip: np.ndarray
    p_bootstrap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    resolution: float


class Design:
    """Which units were sampled: rows in clusters, clusters in strata.

    Everything that says how sure a number is starts here.  Rows are observations (documents, items, prompts); clusters
    are what was drawn, so that rows of one cluster count together (near-duplicates, the items of one text, prompts made
    from one template); strata are fixed groups within which clusters are drawn and shuffled (topics, labels).

    Parameters
    ----------
    clusters, strata
        Labels [row] of any kind; None: each row is a cluster of its own, and there is one stratum.  A cluster belongs
        to the stratum of its first row.
    weights
        [row], or [row, ...] as the values: what a row counts in a mean (tokens of a document).  None: all alike.
    n
        How many rows, where nothing else says so.

    Raises
    ------
    InputError
        For arrays of different lengths, negative or missing weights, and no rows.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench.stats import Design
    >>> values = np.array([0.1, 0.3, 0.2, 0.4, 0.3, 0.2])
    >>> found = Design(clusters=["a", "a", "b", "c", "d", "e"]).bootstrap(values)
    >>> found.said("documents"), round(float(found.low), 2), round(float(found.high), 2)
    ('t over 5 documents', 0.12, 0.38)
    """

    def __init__(
        self,
        clusters: ArrayLike | None = None,
        strata: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        *,
        n: int | None = None,
    ) -> None:
        given = {"clusters": clusters, "strata": strata, "weights": weights}
        lengths = {name: len(np.asarray(x)) for name, x in given.items() if x is not None}
        lengths |= {} if n is None else {"n": n}
        if len(set(lengths.values())) != 1:
            raise InputError(f"The rows of a design are counted by {lengths or 'nothing'}. Give arrays of one length.")
        self.rows = next(iter(lengths.values()))
        if not self.rows:
            raise InputError("A design needs one row or more, and there is none.")
        self.cluster = np.arange(self.rows) if clusters is None else _codes(clusters)
        self.n = int(self.cluster.max()) + 1
        self.first = np.unique(self.cluster, return_index=True)[1]
        """[cluster] its first row."""
        self.stratum = np.zeros(self.n, int) if strata is None else _codes(np.asarray(strata)[self.first])
        """[cluster] its stratum."""
        self.weights = np.ones(self.rows) if weights is None else np.asarray(weights, float)
        if (self.weights < 0).any() or np.isnan(self.weights).any():
            raise InputError("Weights of rows are 0 or more, and some here are not. Leave rows out, or weigh them 0.")

    def __repr__(self) -> str:
        return f"Design({self.rows} rows, {self.n} clusters, {int(self.stratum.max()) + 1} strata)"

    # ------------------------------------------------------------ what is drawn

    def resample(self, draws: int, seed: int = 0) -> np.ndarray:
        """[draws, row] how often each row is there when clusters are drawn again, with replacement, within strata.

        The cluster of a stratum that has no other is always there once.
        """
        return np.concatenate([block[:, self.cluster] for block in self._drawn(draws, seed)])

    def _drawn(self, draws: int, seed: int) -> Iterator[np.ndarray]:
        """[draws, cluster] how often each is there, in blocks."""
        rng, strata = np.random.default_rng(seed), list(self._strata())
        for start in range(0, draws, BLOCK):
            times = np.zeros((min(BLOCK, draws - start), self.n))
            for own in strata:
                times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=len(times))
            yield times

    def relabel(self, labels: ArrayLike, draws: int, seed: int = 0) -> np.ndarray:
        """[draws, row] labels (ints) shuffled among whole clusters, within strata.

        A cluster whose rows have several labels keeps them, in every draw.
        """
        labels = np.asarray(labels)
        own = labels[self.first]
        mixed = np.zeros(self.n, bool)
        mixed[self.cluster[labels != own[self.cluster]]] = True
        rng, drawn = np.random.default_rng(seed), np.tile(own, (draws, 1))
        for members in self._strata():
            some = members[~mixed[members]]
            drawn[:, some] = rng.permuted(drawn[:, some], axis=1)
        return np.where(mixed[self.cluster], labels, drawn[:, self.cluster])

    def signs(self, draws: int, seed: int = 0) -> np.ndarray:
        """[draws, row] of +1 and -1, alike within a cluster.  All that there are, where they are no more than asked."""
        return self._signs(draws, seed)[0][:, self.cluster]

    def _signs(self, draws: int, seed: int) -> tuple[np.ndarray, bool]:
        if self.n < 31 and 2**self.n <= draws:
            return 1.0 - 2 * (np.arange(2**self.n)[:, None] >> np.arange(self.n) & 1), True
        return np.random.default_rng([seed, 1]).choice([-1.0, 1.0], (draws, self.n)), False

    def _strata(self) -> Iterator[np.ndarray]:
        for stratum in range(int(self.stratum.max()) + 1):
            yield np.flatnonzero(self.stratum == stratum)

    # ------------------------------------------------------------ sums over clusters

    def _sums(self, values: np.ndarray, by: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Weights and weighted values of clusters, [group, cluster, cell], and the shape of results."""
        values = np.asarray(values, float)
        if len(values) != self.rows:
            raise InputError(f"values has {len(values)} rows and the design {self.rows}. Give one row for each.")
        weights = self.weights
        weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
        w = np.where(np.isnan(values), 0.0, weights).reshape(self.rows, -1)
        x = np.nan_to_num(values.reshape(self.rows, -1)) * w
        group = np.zeros(self.rows, int) if by is None else np.asarray(by, int)
        groups = 1 if by is None else int(group.max()) + 1
        place = group * self.n + self.cluster
        found = np.zeros((2, groups * self.n, w.shape[1]))
        if groups * self.n == self.rows and (place == np.arange(self.rows)).all():
            found[0], found[1] = w, x
        else:
            np.add.at(found[0], place, w)
            np.add.at(found[1], place, x)
        shape = (*(() if by is None else (groups,)), *values.shape[1:])
        return *found.reshape(2, groups, self.n, -1), shape

    def mean(self, values: ArrayLike, by: np.ndarray | None = None) -> np.ndarray:
        """[row, ...] -> [...] weighted mean of the rows that have a value; [group, ...] with codes ``by`` [row]."""
        w, x, shape = self._sums(np.asarray(values), by)
        return over(x.sum(1), w.sum(1)).reshape(shape)

    # ------------------------------------------------------------ intervals

    def bootstrap(
        self,
        what: ArrayLike | Statistic,
        *,
        by: np.ndarray | None = None,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        reflect: bool = False,
    ) -> Interval:
        """Confidence interval of a mean or of another statistic, over clusters.

        Parameters
        ----------
        what
            Values [row, ...], of which the weighted mean is taken (NaN: no value in that row), or a function of how
            often each row is there, [draws, row] -> [draws, ...].  Rows of a cluster that is alone in its stratum are
            NaN to the function when there are several strata, since nothing says how it varies.
        by
            Codes [row] of groups of rows: the mean of each group.
        level, draws, seed
            Of the interval, of the bootstrap.
        bounds
            The least and greatest value that there can be.  With (0, 1), values that are all 0 or 1 (right or wrong)
            have the exact interval.
        reflect
            Of a statistic that is biased in small samples (a divergence, an entropy): resampling biases it once more,
            so that the interval is reflected in the value ("basic").

        Returns
        -------
        Interval

        Notes
        -----
        Percentiles of the bootstrap are too narrow for few clusters (5 of them, normal: 83 % in place of 95 %), so the
        number of clusters that have a value decides: fewer than 8, or several strata, Student's t on the
        delete-one-cluster jackknife's standard error, with degrees of freedom from the effective number of clusters
        (Kish), which is conservative where weights differ much; up to 999, bootstrap-t of
        a mean (Efron & Tibshirani 1993, chapter 12), each end no nearer than Student's (heavy tails), and the
        jackknife's t of another statistic; from 1000 on, percentiles.  Proportions: Clopper & Pearson (1934).  Where
        bootstrap-t has no finite end, t stands in.
        """
        tail = (1 - level) / 2
        if callable(what):
            return self._bootstrap_statistic(what, level, draws, seed, bounds, reflect)
        given = np.asarray(what, float)
        w, x, shape = self._sums(given, by)
        units = (w > 0).sum(1)
        value, error, dof, _ = self._jackknife(w, x)
        half = error * _student(dof, 1 - tail)
        low, high = value - half, value + half
        method = np.full(units.shape, "t", object)
        # Between strata nothing varies, which a t that is studentised over all clusters does not know.
        one = sum((w[:, own] > 0).any(1) for own in self._strata()) == 1
        for jobs in _passes((units >= FEW) & one, draws):
            for (g, cells), ends in zip(jobs, self._resampled(jobs, w, x, draws, seed, tail), strict=True):
                good = np.isfinite(ends).all(0)
                wider = [np.minimum(ends[0], low[g, cells]), np.maximum(ends[1], high[g, cells])]
                wider = np.where(units[g, cells] >= MANY, ends, wider)
                low[g, cells[good]], high[g, cells[good]] = wider[:, good]
                method[g, cells[good]] = np.where(units[g, cells] >= MANY, "percentile", "bootstrap-t")[good]
        if bounds == (0, 1) or bounds == (0.0, 1.0):
            self._exact(given, by, units, value, low, high, method, tail)
        known = ~np.isnan(error)
        low, high = (np.where(known, np.clip(end, *bounds), np.nan).reshape(shape) for end in (low, high))
        said = ", ".join(sorted(set(method[known].tolist()))) or "no interval"
        return Interval(
            value.reshape(shape), low, high, error.reshape(shape), np.zeros(shape), units.reshape(shape), said
        )

    def _resampled(
        self, jobs: list[tuple[int, np.ndarray]], w: np.ndarray, x: np.ndarray, draws: int, seed: int, tail: float
    ) -> Iterator[np.ndarray]:
        """Ends [2, cell] of the intervals of the means of each (group, cells): bootstrap-t, or percentiles of many."""
        found: list[list[np.ndarray]] = [[] for _ in jobs]
        rows = [np.flatnonzero((w[g][:, cells] > 0).any(1)) for g, cells in jobs]
        for times in self._drawn(draws, seed):
            for (g, cells), own, kept in zip(jobs, rows, found, strict=True):
                kept.append(_resampled(times[:, own], w[g][np.ix_(own, cells)], x[g][np.ix_(own, cells)]))
        for (g, cells), kept in zip(jobs, found, strict=True):
            drawn, n = np.concatenate(kept), (w[g][:, cells] > 0).sum(0)
            total = w[g][:, cells].sum(0)
            value = over(x[g][:, cells].sum(0), total)
            square = ((x[g][:, cells] - value * w[g][:, cells]) ** 2).sum(0)
            error = np.sqrt(square * n / (n - 1)) / total
            top = np.nanquantile(drawn, 1 - tail, axis=0, method="higher")
            bottom = np.nanquantile(drawn, tail, axis=0, method="lower")
            yield np.where(n >= MANY, [bottom, top], [value - top * error, value - bottom * error])

    def _exact(
        self, given: np.ndarray, by: np.ndarray | None, units: np.ndarray, value: np.ndarray, low: np.ndarray,
        high: np.ndarray, method: np.ndarray, tail: float,
    ) -> None:  # fmt: skip
        """Put Clopper and Pearson's ends where rows are clusters, weigh alike, and are all 0 or 1."""
        from scipy.special import betaincinv

        if self.n < self.rows or len({*self.weights.ravel().tolist()}) > 1:
            return
        flat = given.reshape(self.rows, -1)
        binary = np.isnan(flat) | (flat == 0) | (flat == 1)
        group = np.zeros(self.rows, int) if by is None else np.asarray(by, int)
        for g in range(len(units)):
            cells = np.flatnonzero(binary[group == g].all(0) & (units[g] > 1))
            n = units[g, cells]
            k = np.rint(value[g, cells] * n)
            with np.errstate(invalid="ignore"):
                low[g, cells] = np.where(k > 0, betaincinv(np.maximum(k, 0.5), n - k + 1, tail), 0)
                high[g, cells] = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 0.5), 1 - tail), 1)
            method[g, cells] = "exact"

    def _bootstrap_statistic(
        self, statistic: Statistic, level: float, draws: int, seed: int, bounds: tuple[float, float], reflect: bool
    ) -> Interval:
        tail = (1 - level) / 2
        smallest = min(len(own) for own in self._strata())
        if self.n >= MANY and smallest >= FEW:
            value = np.asarray(statistic(np.ones((1, self.rows))))[0]
            found = self.distribution(statistic, draws, seed)
            low, high = quantiles(found, level)
            bias = np.nanmean(np.where(np.isnan(low), 0, found), 0) - value
            if reflect:
                low, high = 2 * value - high, 2 * value - low
            error, method = found.std(0, ddof=1), "basic" if reflect else "percentile"
            bias = bias if reflect else np.zeros_like(value)
        else:
            value, error, dof, bias = self.jackknife(statistic)
            bias = bias if reflect else np.zeros_like(value)
            half = error * _student(dof, 1 - tail)
            low, high, method = value - bias - half, value - bias + half, "jackknife-t"
        known = ~np.isnan(error)
        low, high = (np.where(known, np.clip(end, *bounds), np.nan) for end in (low, high))
        units = np.full(value.shape, self.n)
        return Interval(value, low, high, error, bias, units, method if known.any() else "no interval")

    def distribution(self, statistic: Statistic, draws: int, seed: int = 0) -> np.ndarray:
        """[draws, ...] of a statistic when clusters are drawn again.

        Where there are several strata, the rows of a cluster that is alone in its stratum are NaN to the function.
        """
        size = np.bincount(self.stratum)
        alone = (size == 1)[self.stratum] & (len(size) > 1)

        def known(times: np.ndarray) -> np.ndarray:
            return np.where(alone, np.nan, times)[:, self.cluster]

        return self._applied(statistic, (known(times) for times in self._drawn(draws, seed)))

    def _applied(self, statistic: Statistic, blocks: Iterator[np.ndarray]) -> np.ndarray:
        """[draws, ...] of a statistic of blocks [draws, row], in parts that fit in memory."""
        found: list[np.ndarray] = []
        for times in blocks:
            size = max(self.rows, found[0][0].size if found else AT_ONCE)
            step = max(1, AT_ONCE // size)
            found += [np.asarray(statistic(times[i : i + step])) for i in range(0, len(times), step)]
        return np.concatenate(found)

    def jackknife(self, what: ArrayLike | Statistic, *, by: np.ndarray | None = None) -> Jackknife:
        """Delete-one-cluster jackknife of a mean or of another statistic (arguments as in :meth:`bootstrap`).

        With strata, variances and biases of strata add up (Shao & Tu 1995, section 6.2), and degrees of freedom are
        Satterthwaite's.  NaN where a stratum that counts has one cluster alone.
        """
        if callable(what):
            return self._jackknife_statistic(what)
        w, x, shape = self._sums(np.asarray(what), by)
        return Jackknife(*(part.reshape(shape) for part in self._jackknife(w, x)))

    def _jackknife(self, w: np.ndarray, x: np.ndarray) -> Jackknife:
        """Of means, from sums [group, cluster, cell]."""
        total, top = w.sum(1, keepdims=True), x.sum(1, keepdims=True)
        value = over(top, total)[:, 0]
        there = w > 0
        without = over(top - x, np.where(total - w > 1e-12 * total, total - w, 0))
        # Of the mean itself there is no bias to speak of: without the weights it is none at all.
        effect = np.where(there, without - value[:, None], 0.0)
        share = np.where(there, over(w, total), 0.0)
        variance, fourth = np.zeros(value.shape), np.zeros(value.shape)
        for own in self._strata():
            n = there[:, own].sum(1)
            mean = over(effect[:, own].sum(1), n)[:, None]
            apart = np.where(there[:, own], effect[:, own] - mean, 0)
            part = over((n - 1) * (apart**2).sum(1), n)
            # A cluster alone in its stratum does not say how much it varies.
            part = np.where(n == 1, np.nan, np.where(n == 0, 0, part))
            variance += part
            square = share[:, own] ** 2
            effective = over(square.sum(1) ** 2, (square**2).sum(1))
            fourth += np.nan_to_num(over(part**2, np.maximum(effective - 1, 1)))
        variance = np.where(there.sum(1) < 2, np.nan, variance)
        dof = np.where(fourth > 0, np.maximum(over(variance**2, fourth), 1), np.maximum(there.sum(1) - 1, 1))
        return Jackknife(value, np.sqrt(variance), dof, np.zeros(value.shape))

    def _jackknife_statistic(self, statistic: Statistic) -> Jackknife:
        value = np.asarray(statistic(np.ones((1, self.rows))), float)[0]
        variance, fourth, bias = np.zeros(value.shape), np.zeros(value.shape), np.zeros(value.shape)
        strata = list(self._strata())
        for own in strata:
            left_out = self._left_out(own, max(FEW, GROUPS // len(strata)))
            blocks = (1.0 - (left_out[None, self.cluster] == g) for g in range(left_out.max() + 1))
            without = self._applied(statistic, blocks)
            n = len(without)
            if n == 1:
                # It matters to the cells that are gone, or others, without it.
                moved = np.isnan(without[0]) | (np.abs(without[0] - value) > 1e-12 * (1 + np.abs(value)))
                variance = np.where(moved if len(strata) > 1 else True, np.nan, variance)
                continue
            mean = without.mean(0)
            part = (n - 1) / n * ((without - mean) ** 2).sum(0)
            variance, fourth = variance + part, fourth + part**2 / (n - 1)
            bias = bias + (n - 1) * (mean - value)
        dof = np.where(fourth > 0, over(variance**2, fourth), max(self.n - 1, 1))
        return Jackknife(value, np.sqrt(variance), np.maximum(np.nan_to_num(dof, nan=1.0), 1), bias)

    def _left_out(self, own: np.ndarray, groups: int) -> np.ndarray:
        """[cluster] in which group each of a stratum's clusters is left out; -1: of another stratum."""
        n = len(own) if self.n < MANY else min(len(own), groups)
        found = np.full(self.n, -1)
        found[own] = np.random.default_rng(len(own)).permutation(np.arange(len(own)) % n)
        return found

    # ------------------------------------------------------------ tests

    def flip(
        self,
        values: ArrayLike,
        *,
        by: np.ndarray | None = None,
        alternative: str = "two-sided",
        draws: int = 2000,
        seed: int = 0,
    ) -> Test:
        """Test means against 0 by flipping the signs of clusters at random, all cells of a cluster together.

        Exact for differences that are as often above 0 as below by as much (symmetric), whatever their spreads.  Of
        skewed ones it is not: see :meth:`max_t`.  The statistic is T = sum y / root(sum y^2), which flips leave the
        scale of.  All flips are taken where they are no more than ``draws``.

        Parameters
        ----------
        values
            [row, ...]; NaN: no value in that row.
        by
            Codes [row] of groups of rows, whose means are tested.
        alternative
            "two-sided", "greater" or "less", as in scipy.stats.

        Returns
        -------
        Test
            p is 1 where all differences are 0, and NaN where there are none.
        """
        side = _side(alternative)
        w, x, shape = self._sums(np.asarray(values), by)
        signs, every = self._signs(draws, seed)
        observed = _t(np.ones((1, self.n)), x, w)[0]
        reached = Reached(side(observed), every=every)
        for some in _draws(len(signs), x):
            reached.add(side(_t(signs[some], x, w)))
        n = int((w > 0).any((0, 2)).sum())
        least = max(2.0 ** ((alternative == "two-sided") - n), 0 if every else 1 / (1 + draws))
        return Test(observed.reshape(shape), reached.p().reshape(shape), reached.step_down().reshape(shape), least)

    def max_t(
        self,
        values: ArrayLike,
        *,
        by: np.ndarray | None = None,
        level: float = 0.95,
        draws: int = 2000,
        seed: int = 0,
        null: str = "both",
    ) -> MaxT:
        """Test means against 0, all cells of one family, with simultaneous intervals.

        Parameters
        ----------
        values, by
            As in :meth:`flip`.
        null
            "flip": sign flips, exact for symmetric differences; "bootstrap": clusters drawn again, of the differences
            from their mean, studentised, right for skewed ones as clusters become many; "both": the larger p, which is
            right where either is.

        Returns
        -------
        MaxT

        Notes
        -----
        Step-down max-T: Westfall & Young (1993), algorithm 4.1; Romano & Wolf (2005) with a studentised bootstrap.
        The intervals take the quantile of the largest |T| of flipped differences from the mean.
        """
        if null not in ("flip", "bootstrap", "both"):
            raise InputError(f"null={null!r} is unknown. Use 'flip', 'bootstrap' or 'both'.")
        w, x, shape = self._sums(np.asarray(values), by)
        value = over(x.sum(1), w.sum(1))
        residual = x - np.nan_to_num(value)[:, None] * w
        observed = _t(np.ones((1, self.n)), x, w)[0]
        signs, every = self._signs(draws, seed)
        flips, boots = Reached(np.abs(observed), every=every), Reached(np.abs(observed))
        largest = []
        for some in _draws(len(signs), x):
            if null != "bootstrap":
                flips.add(np.abs(_t(signs[some], x, w)))
            largest.append(np.nanmax(np.abs(_t(signs[some], residual, w)), (1, 2), initial=0))
        if null != "flip":
            for times in self._drawn(draws, seed):
                boots.add(np.abs(_t(times, residual, w, empty=np.inf)))
        p_flip, p_boot = flips.step_down(), boots.step_down()
        p = {"flip": p_flip, "bootstrap": p_boot, "both": np.fmax(p_flip, p_boot)}[null]
        n, q2 = (w > 0).sum(1), float(np.quantile(np.concatenate(largest), level, method="higher")) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((residual**2).sum(1) * n / (n - 1)) / w.sum(1)
            # T of the flips, bounded by the root of n, back on the scale of Student's t.
            half = np.where(n > q2, error * np.sqrt(q2 * (n - 1) / (n - q2)), np.inf)
        # n clusters have 2^n flips, half of them mirror images: no p is smaller, and no interval more certain.
        half = np.where(2.0 ** (1 - n) > 1 - level + 1e-12, np.inf, half)
        half = np.where(n < 2, np.nan, half)
        least = max(2.0 ** (1 - int((w > 0).any((0, 2)).sum())), 0 if every and null == "flip" else 1 / (1 + draws))
        parts = (value, observed, p, p_flip, p_boot, value - half, value + half)
        return MaxT(*(part.reshape(shape) for part in parts), least)

    def permute(self, values: ArrayLike, labels: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Test:
        """Test whether labels differ in their means, by shuffling labels among whole clusters, within strata.

        The statistic is studentised, so that labels may differ in spread and in the number of clusters: Welch's t of
        two labels (signed, the second's mean less the first's, in sorted order; the test has two sides), Welch and
        James's sum of squares of more.  Without that, a label of few and noisy documents is called different far too
        often, or never (Janssen 1997; Chung & Romano 2013).

        Parameters
        ----------
        values
            [row, ...]; NaN: no value in that row.
        labels
            [row], of any kind.

        Returns
        -------
        Test
            NaN where a label has fewer than two clusters.
        """
        values, labels = np.asarray(values, float), _codes(labels)
        k = int(labels.max()) + 1
        shape = values.shape[1:]
        if k < 2:
            nothing = np.full(shape, np.nan)
            return Test(nothing, nothing, nothing, 1.0)
        observed = _welch(*self.mean_and_variance(values, labels[None], k))[0]
        reached = Reached(np.abs(observed))
        drawn = self.relabel(labels, draws, seed)
        for some in _draws(draws, values.reshape(1, self.rows, -1), k):
            reached.add(np.abs(_welch(*self.mean_and_variance(values, drawn[some], k))))
        return Test(observed, reached.p(), reached.step_down(), max(1 / (1 + draws), self._least(labels, k)))

    def _least(self, labels: np.ndarray, k: int) -> float:
        """The least p of all arrangements of labels."""
        own, ways, same = labels[self.first], 1.0, True
        for members in self._strata():
            count = np.bincount(own[members], minlength=k)
            ways *= math.exp(math.lgamma(count.sum() + 1) - sum(math.lgamma(c + 1) for c in count))
            same &= bool((count == count[0]).all())
        # Labels with as many clusters each may be exchanged whole, which leaves the statistic's size as it is.
        return min(1.0, (math.factorial(k) if same else 1) / ways)

    def mean_and_variance(
        self, values: ArrayLike, labels: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weighted means of labels, and their cluster-robust variances: what studentised statistics are made of.

        Parameters
        ----------
        values
            [row, ...]; NaN: no value in that row.
        labels
            Codes [draws, row] from 0 to ``k - 1``, as :meth:`relabel` gives; negative: a row of no label.

        Returns
        -------
        mean, variance
            [draws, label, ...]; the variance is NaN where a label has fewer than two clusters.
        """
        labels = np.atleast_2d(labels)
        # Rows of a cluster that have one label in all draws are one piece.
        _, piece = np.unique(self.cluster * (k + 1) + labels[0] + 1, return_inverse=True)
        piece = piece.reshape(-1)
        of = Design(clusters=piece, weights=self.weights)
        w, x, shape = of._sums(np.asarray(values), None)
        w, x, own = w[0], x[0], labels[:, of.first]
        if (w == w[:, :1]).all():
            w = w[:, :1]
        once = (own[:, None] == np.arange(k)[:, None]).astype(float)
        there, total, top = once @ (w > 0), once @ w, once @ x
        mean = over(top, np.broadcast_to(total, top.shape))
        square = once @ x**2 - 2 * mean * (once @ (x * w)) + mean**2 * (once @ w**2)
        # Rounding may leave a little where the pieces are all alike.
        square = np.where(square > 1e-12 * (once @ x**2), square, 0)
        variance = over(np.maximum(square, 0) * there, np.where(there > 1, total**2 * (there - 1), 0))
        return tuple(part.reshape(len(labels), k, *shape) for part in (mean, variance))  # type: ignore[return-value]


def _codes(labels: ArrayLike) -> np.ndarray:
    """Numbers [row] of labels of any kind, in their order."""
    given = np.asarray(labels)
    given = given.astype(str) if given.dtype == object else given
    return np.unique(given, return_inverse=True)[1].reshape(-1)


def _passes(some: np.ndarray, draws: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Cells [group, cell] that are to be drawn, in lists of (group, cells) whose draws fit in memory."""
    room = step = max(1, AT_ONCE // max(1, draws))
    jobs: list[tuple[int, np.ndarray]] = []
    for g in range(len(some) if draws else 0):
        cells = np.flatnonzero(some[g])
        for part in np.array_split(cells, range(step, len(cells), step)) if len(cells) else ():
            if jobs and len(part) > room:
                yield jobs
                jobs, room = [], step
            jobs.append((g, part))
            room -= len(part)
    if jobs:
        yield jobs


def _draws(draws: int, x: np.ndarray, times: int = 1) -> Iterator[slice]:
    """Blocks of draws, whose statistics of [group, cluster, cell] fit in memory."""
    step = max(1, AT_ONCE // max(1, times * len(x) * x.shape[2]))
    for start in range(0, draws, step):
        yield slice(start, start + step)


def _t(times: np.ndarray, x: np.ndarray, w: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Weights [draws, cluster] of clusters and their sums [group, cluster, cell] -> T [draws, group, cell].

    T = sum c y / root(sum |c| y^2); ``empty`` where all y that are there are 0; NaN where a cell has no cluster.
    """
    found = np.empty((len(times), len(x), x.shape[2]))
    often = np.abs(times)
    for g in range(len(x)):
        own = np.flatnonzero((w[g] > 0).any(1))
        root = np.sqrt(often[:, own] @ x[g][own] ** 2)
        scale = np.sqrt((x[g] ** 2).sum(0))
        some = root > 1e-9 * np.maximum(scale, 1e-300)
        found[:, g] = np.where(some, (times[:, own] @ x[g][own]) / np.where(some, root, 1), empty)
    found[:, (w > 0).sum(1) == 0] = np.nan
    return found


def _welch(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """[draws, label, ...] -> [draws, ...] Welch's t of two labels, or Welch and James's statistic of more."""
    some = (variance > 0) | np.isnan(variance)
    variance = np.where(some, variance, 1e-30 * (1 + mean**2))
    if mean.shape[1] == 2:
        return (mean[:, 1] - mean[:, 0]) / np.sqrt(variance.sum(1))
    centre = (mean / variance).sum(1, keepdims=True) / (1 / variance).sum(1, keepdims=True)
    return ((mean - centre) ** 2 / variance).sum(1)


def _side(alternative: str) -> Callable[[np.ndarray], np.ndarray]:
    sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "two-sided": np.abs, "greater": lambda t: t, "less": lambda t: -t,
    }  # fmt: skip
    if alternative not in sides:
        raise InputError(f"alternative={alternative!r} is unknown. Use one of {', '.join(sides)}.")
    return sides[alternative]


def _student(dof: np.ndarray, q: float) -> np.ndarray:
    from scipy.special import stdtrit

    return stdtrit(dof, q)


def _resampled(times: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[draws, cell] of times [draws, cluster] and sums [cluster, cell]: t of the mean, or the mean itself of many."""
    mean, there = over(times @ x, times @ w), w > 0
    many = there.sum(0) >= MANY
    if many.all():
        return mean
    value = over(x.sum(0), w.sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        n = times @ there
        square = times @ x**2 - 2 * mean * (times @ (x * w)) + mean**2 * (times @ w**2)
        # Rounding leaves a little where all that was drawn is alike.
        square = np.where(square > 1e-12 * (times @ x**2), square, 0)
        own = np.sqrt(square * n / (n - 1)) / (times @ w)
        t = np.where(own > 0, (mean - value) / own, np.sign(mean - value) * np.inf)
    return np.where(many, mean, np.nan_to_num(t, nan=0, posinf=np.inf, neginf=-np.inf))


def quantiles(found: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws [draws, ...]; NaN where less than half of them have a value."""
    known = (~np.isnan(found)).mean(0) >= 0.5 if len(found) else np.zeros(found.shape[1:], bool)
    if not known.any():
        return np.full(found.shape[1:], np.nan), np.full(found.shape[1:], np.nan)
    low, high = np.nanquantile(np.where(known, found, 0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)
