"""What was sampled, and the inference that follows from it: intervals, permutations, sign flips, family-wise tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from workbench.errors import InputError
from workbench.stats.arrays import over, quantiles
from workbench.stats.levels import Reached
from workbench.stats.results import Interval, Jackknife, MaxT, Test
from workbench.stats.sums import MANY, centred, codes, flipped_t, resampled_t, welch

FEW = 8
"""Below so many clusters an interval is Student's t; from ``MANY`` on, percentiles; between them bootstrap-t."""
GROUPS = 200
"""From ``MANY`` clusters on the jackknife of a statistic leaves out so many groups of clusters in place of each."""
AT_ONCE, BLOCK = 4_000_000, 64
"""Numbers that a block may hold; draws that are made together."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""A function of how often each row is there, [draws, row] -> [draws, ...]."""


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
        lengths = {name: len(x) for name, x in given.items() if x is not None}  # type: ignore[arg-type]
        lengths |= {} if n is None else {"n": n}
        if len(set(lengths.values())) != 1:
            raise InputError(f"The rows of a design are counted by {lengths or 'nothing'}. Give arrays of one length.")
        self.rows = next(iter(lengths.values()))
        if self.rows < 1:
            raise InputError("A design needs one row or more, and there is none.")
        self.cluster = np.arange(self.rows) if clusters is None else codes(clusters)
        self.n = int(self.cluster.max()) + 1
        self.first = np.unique(self.cluster, return_index=True)[1]
        """[cluster] its first row."""
        self.stratum = np.zeros(self.n, int) if strata is None else codes(strata)[self.first]
        """[cluster] its stratum."""
        self.strata = int(self.stratum.max()) + 1
        self.weights = np.ones(self.rows) if weights is None else np.array(weights, float)
        if not ((self.weights >= 0) & np.isfinite(self.weights)).all():
            raise InputError("Weights of rows are 0 or more, and some here are not. Leave rows out, or weigh them 0.")

    def __repr__(self) -> str:
        return f"Design({self.rows} rows, {self.n} clusters, {self.strata} strata)"

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
        return np.concatenate(list(self._relabelled(np.asarray(labels), [slice(0, draws)], seed)))

    def _relabelled(self, labels: np.ndarray, blocks: Iterable[slice], seed: int) -> Iterator[np.ndarray]:
        own, mixed = labels[self.first], self._mixed(labels)
        # Each stratum has draws of its own, which do not depend on the blocks.
        rngs = [np.random.default_rng([seed, stratum] if stratum else seed) for stratum in range(self.strata)]
        for some in blocks:
            drawn = np.tile(own, (some.stop - some.start, 1))
            for members, rng in zip(self._strata(), rngs, strict=True):
                free = members[~mixed[members]]
                drawn[:, free] = rng.permuted(drawn[:, free], axis=1)
            yield np.where(mixed[self.cluster], labels, drawn[:, self.cluster])

    def _mixed(self, labels: np.ndarray) -> np.ndarray:
        """[cluster] whether its rows have several labels."""
        mixed = np.zeros(self.n, bool)
        mixed[self.cluster[labels != labels[self.first][self.cluster]]] = True
        return mixed

    def signs(self, draws: int, seed: int = 0) -> np.ndarray:
        """[draws, row] of +1 and -1, alike within a cluster.  All that there are, where they are no more than asked."""
        return np.concatenate(list(self._signs(draws, seed)))[:, self.cluster]

    def _every(self, draws: int) -> bool:
        """Whether there are no more flips than draws."""
        return self.n < 31 and 2**self.n <= draws

    def _signs(self, draws: int, seed: int, cells: int = 1) -> Iterator[np.ndarray]:
        """[draws, cluster] in blocks."""
        rng, every = np.random.default_rng([seed, 1]), self._every(draws)
        for some in _blocks(2**self.n if every else draws, max(self.n, cells)):
            if every:
                yield 1.0 - 2 * (np.arange(some.start, some.stop)[:, None] >> np.arange(self.n) & 1)
            else:
                yield rng.choice([-1.0, 1.0], (some.stop - some.start, self.n))

    def _strata(self) -> Iterator[np.ndarray]:
        for stratum in range(self.strata):
            yield np.flatnonzero(self.stratum == stratum)

    # ------------------------------------------------------------ sums over clusters

    def _sums(self, values: np.ndarray, by: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Weights and weighted values of clusters, [group, cluster, cell], and the shape of results."""
        values = np.asarray(values, float)
        rows = len(values) if values.ndim else 0
        if rows != self.rows:
            raise InputError(f"values has {rows} rows and the design {self.rows}. Give one row for each.")
        weights = self.weights.reshape(*self.weights.shape, *[1] * (values.ndim - self.weights.ndim))
        if weights.ndim > values.ndim or any(n not in (1, m) for n, m in zip(weights.shape, values.shape, strict=True)):
            raise InputError(f"weights are {list(self.weights.shape)} and values {list(values.shape)}. Give one a row.")
        w = np.where(np.isnan(values), 0.0, weights).reshape(self.rows, -1)
        x = np.multiply(values.reshape(w.shape), w, out=np.zeros(w.shape), where=w > 0)
        group, groups = self._groups(by), 1 if by is None else int(np.max(by)) + 1
        place = group * self.n + self.cluster
        found = np.zeros((2, groups * self.n, w.shape[1]))
        if groups * self.n == self.rows and (place == np.arange(self.rows)).all():
            found[0], found[1] = w, x
        else:
            np.add.at(found[0], place, w)
            np.add.at(found[1], place, x)
        shape = (*(() if by is None else (groups,)), *values.shape[1:])
        w, x = found.reshape(2, groups, self.n, -1)
        return w, x, shape

    def _groups(self, by: np.ndarray | None) -> np.ndarray:
        group = np.zeros(self.rows, int) if by is None else np.asarray(by)
        if group.shape != (self.rows,) or group.dtype.kind not in "bui" or group.min() < 0:
            raise InputError(f"by is one whole number a row, from 0 on, for {self.rows} rows, and is not here.")
        return group.astype(int)

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
        tail = _tail(level)
        if callable(what):
            return self._bootstrap_statistic(what, level, draws, seed, bounds, reflect)
        w, x, shape = self._sums(np.asarray(what, float), by)
        units = (w > 0).sum(1)
        value, error, dof, _ = self._jackknife(w, x)
        half = error * _student(dof, 1 - tail)
        low, high = value - half, value + half
        method = np.full(units.shape, "t", object)
        # Between strata nothing varies, which a t that is studentised over all clusters does not know.
        one = sum((w[:, own] > 0).any(1) for own in self._strata()) == 1
        for jobs in _passes((units >= FEW) & one, draws):
            for (g, cells), ends in zip(jobs, self._resampled(jobs, w, x, draws, seed, tail), strict=True):
                good = np.isfinite(ends).all(0) & ((units[g, cells] < MANY) | _enough(draws, tail))
                wider = [np.minimum(ends[0], low[g, cells]), np.maximum(ends[1], high[g, cells])]
                wider = np.where(units[g, cells] >= MANY, ends, wider)
                low[g, cells[good]], high[g, cells[good]] = wider[:, good]
                method[g, cells[good]] = np.where(units[g, cells] >= MANY, "percentile", "bootstrap-t")[good]
        if tuple(bounds) == (0, 1):
            _exact(w, x, one, low, high, method, tail)
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
                kept.append(resampled_t(times[:, own], w[g][np.ix_(own, cells)], x[g][np.ix_(own, cells)]))
        for (g, cells), kept in zip(jobs, found, strict=True):
            drawn, n = np.concatenate(kept), (w[g][:, cells] > 0).sum(0)
            total = w[g][:, cells].sum(0)
            value = over(x[g][:, cells].sum(0), total)
            square = (centred(x[g][:, cells], w[g][:, cells]) ** 2).sum(0)
            with np.errstate(invalid="ignore"):
                error = np.sqrt(square * n / (n - 1)) / total
                top = np.nanquantile(drawn, 1 - tail, axis=0, method="higher")
                bottom = np.nanquantile(drawn, tail, axis=0, method="lower")
                yield value + np.where(n >= MANY, [bottom, top], [-top * error, -bottom * error])

    def _bootstrap_statistic(
        self, statistic: Statistic, level: float, draws: int, seed: int, bounds: tuple[float, float], reflect: bool
    ) -> Interval:
        tail = _tail(level)
        smallest = min(len(own) for own in self._strata())
        if self.n >= MANY and smallest >= FEW and _enough(draws, tail):
            value = np.asarray(statistic(np.ones((1, self.rows))))[0]
            found = self.distribution(statistic, draws, seed)
            low, high = quantiles(found, level)
            found = np.where(np.isnan(low), 0, found)
            bias = np.nanmean(found, 0) - value
            if reflect:
                low, high = 2 * value - high, 2 * value - low
            error = np.where(np.isnan(low), np.nan, np.nanstd(found, 0, ddof=1))
            method = "basic" if reflect else "percentile"
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
            start = 0
            while start < len(times):
                # One draw first, to see how large its result is.
                step = max(1, AT_ONCE // max(self.rows, found[0][0].size)) if found else 1
                found.append(np.asarray(statistic(times[start : start + step])))
                start += step
        return np.concatenate(found)

    def jackknife(self, what: ArrayLike | Statistic, *, by: np.ndarray | None = None) -> Jackknife:
        """Delete-one-cluster jackknife of a mean or of another statistic (arguments as in :meth:`bootstrap`).

        With strata, the others of a stratum stand for the one that is left out, so that the stratum weighs what it did;
        variances and biases of strata add up (Shao & Tu 1995, section 6.2), and degrees of freedom are Satterthwaite's.
        NaN where a stratum that counts has one cluster alone.
        """
        if callable(what):
            return self._jackknife_statistic(what)
        w, x, shape = self._sums(np.asarray(what), by)
        return Jackknife(*(part.reshape(shape) for part in self._jackknife(w, x)))

    def _jackknife(self, w: np.ndarray, x: np.ndarray) -> Jackknife:
        """Of means, from sums [group, cluster, cell]."""
        total = w.sum(1, keepdims=True)
        value = over(x.sum(1), total[:, 0])
        there, apart = w > 0, centred(x, w)
        share = np.where(there, over(w, total), 0.0)
        variance, fourth = np.zeros(value.shape), np.zeros(value.shape)
        for own in self._strata():
            n = there[:, own].sum(1)
            more = over(1, n - 1)[:, None]
            # The mean without each, the others of its stratum 1 + 1 / (n - 1) times, less the mean of all: of the mean
            # there is no bias to speak of, and without weights none at all.
            rest = total - w[:, own] + more * (w[:, own].sum(1, keepdims=True) - w[:, own])
            moved = more * apart[:, own].sum(1, keepdims=True) - (1 + more) * apart[:, own]
            effect = np.where(there[:, own], over(moved, np.where(rest > 1e-12 * total, rest, 0)), 0)
            effect = np.where(there[:, own], effect - over(effect.sum(1), n)[:, None], 0)
            part = over((n - 1) * (effect**2).sum(1), n)
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
            without = self._applied(statistic, self._without(left_out, len(strata) > 1))
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

    def _without(self, left_out: np.ndarray, weigh: bool) -> Iterator[np.ndarray]:
        """[draws, row] without each group; ``weigh``: with the others of the stratum in its place."""
        size = np.bincount(left_out[left_out >= 0])
        step = max(1, AT_ONCE // self.rows)
        for start in range(0, len(size), step):
            group = np.arange(start, min(start + step, len(size)))
            times = 1.0 - (left_out == group[:, None])
            if weigh and len(size) > 1:
                times[:, left_out >= 0] *= (size.sum() / (size.sum() - size[group]))[:, None]
            yield times[:, self.cluster]

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
        every, observed = self._every(draws), flipped_t(np.ones((1, self.n)), x, w)[0]
        reached = Reached(side(observed), every=every)
        for signs in self._signs(draws, seed, observed.size):
            reached.add(side(flipped_t(signs, x, w)))
        n = max(1, int((w > 0).any((0, 2)).sum()))
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
        The intervals hold the means whose T is within the quantile of the largest |T| of flipped differences from the
        mean (of the other clusters, which with weights is another one for each).
        """
        if null not in ("flip", "bootstrap", "both"):
            raise InputError(f"null={null!r} is unknown. Use 'flip', 'bootstrap' or 'both'.")
        _tail(level)
        w, x, shape = self._sums(np.asarray(values), by)
        value, residual = over(x.sum(1), w.sum(1)), centred(x, w)
        every, observed = self._every(draws), flipped_t(np.ones((1, self.n)), x, w)[0]
        flips, boots = Reached(np.abs(observed), every=every), Reached(np.abs(observed))
        # A mean is near the clusters that make it up: differences from the mean of the others.
        alone = residual / np.maximum(1 - over(w, w.sum(1, keepdims=True)), 1e-12)
        # Beside random flips stands what was observed, as far off as can be.
        largest = [np.full(0 if every else 1, np.inf)]
        for signs in self._signs(draws, seed, observed.size):
            if null != "bootstrap":
                flips.add(np.abs(flipped_t(signs, x, w)))
            largest.append(np.nanmax(np.abs(flipped_t(signs, alone, w)), (1, 2), initial=0))
        if null != "flip":
            for times in self._drawn(draws, seed):
                boots.add(np.abs(flipped_t(times, residual, w, empty=np.inf)))
        p_flip, p_boot = flips.step_down(), boots.step_down()
        p = {"flip": p_flip, "bootstrap": p_boot, "both": np.fmax(p_flip, p_boot)}[null]
        # Which means have a T of the differences from them within the flips': the roots of a square.
        q2 = float(np.quantile(np.concatenate(largest), level, method="inverted_cdf")) ** 2
        total, square = w.sum(1), (w**2).sum(1)
        with np.errstate(invalid="ignore"):
            free, shift = total**2 - q2 * square, -q2 * (residual * w).sum(1)
            root = np.sqrt(shift**2 + free * q2 * (residual**2).sum(1))
        # n clusters have 2^n flips, half of them mirror images: no p is smaller, and no interval more certain.
        some = (free > 1e-12 * total**2) & (2.0 ** (1 - over(total**2, square)) <= 1 - level + 1e-12)
        low, high = (np.where(some, value + over(shift + s * root, free), s * np.inf) for s in (-1, 1))
        low, high = (np.where((w > 0).sum(1) < 2, np.nan, end) for end in (low, high))
        most = max(1, int((w > 0).any((0, 2)).sum()))
        least = max(2.0 ** (1 - most), 0 if every and null == "flip" else 1 / (1 + draws))
        parts = (value, observed, p, p_flip, p_boot, low, high)
        return MaxT(*(part.reshape(shape) for part in parts), least)

    def permute(self, values: ArrayLike, labels: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Test:
        """Test whether labels differ in their means, by shuffling labels among whole clusters, within strata.

        The statistic is studentised, so that labels may differ in spread and in the number of clusters: Welch's t of
        two labels (signed, the second's mean less the first's, in sorted order; the test has two sides), Welch and
        James's sum of squares of more.  Draws and cells are compared by what Welch's degrees of freedom make of it
        (Welch 1951; Beran 1988), since a label of few and noisy clusters has far larger ones by chance.  Without that,
        it is called different far too often, or never (Janssen 1997; Chung & Romano 2013).  Where spreads differ, p is
        right as clusters become many, and of many cells ``p_family`` and q need more of them.

        Parameters
        ----------
        values
            [row, ...]; NaN: no value in that row.
        labels
            [row], of any kind.

        Returns
        -------
        Test
            NaN where a label has fewer than two clusters; of missing values, draws that leave so few do not count.
        """
        values, labels = np.asarray(values, float), codes(labels)
        if len(labels) != self.rows:
            raise InputError(f"labels has {len(labels)} rows and the design {self.rows}. Give one row for each.")
        k = int(labels.max()) + 1
        shape = values.shape[1:]
        if k < 2:
            nothing = np.full(shape, np.nan)
            return Test(nothing, nothing, nothing, 1.0)
        observed, size = (part[0] for part in welch(*self._labelled(values, labels[None], k)))
        reached = Reached(size)
        for drawn in self._relabelled(labels, _blocks(draws, k * max(self.rows, size.size)), seed):
            reached.add(welch(*self._labelled(values, drawn, k))[1])
        return Test(observed, reached.p(), reached.step_down(), max(1 / (1 + draws), self._least(labels, k)))

    def _least(self, labels: np.ndarray, k: int) -> float:
        """The least p of all arrangements of labels."""
        from scipy.special import gammaln

        free = ~self._mixed(labels)
        count = np.zeros((self.strata, k), int)
        np.add.at(count, (self.stratum[free], labels[self.first][free]), 1)
        ways = (gammaln(count.sum(1) + 1) - gammaln(count + 1).sum(1)).sum()
        # Labels with as many clusters each may be exchanged whole, which leaves the statistic's size as it is.
        alike = np.unique(count, axis=1, return_counts=True)[1] if free.all() else np.ones(1)
        return float(min(1.0, np.exp(gammaln(alike + 1).sum() - ways)))

    def mean_and_variance(self, values: ArrayLike, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
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
        return self._labelled(values, labels, k)[:2]

    def _labelled(self, values: ArrayLike, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, variances and numbers of clusters [draws, label, ...]."""
        labels = np.atleast_2d(labels)
        labels = np.where(labels < k, np.maximum(labels, -1), -1)
        # Rows of a cluster that have one label in all draws are one piece.
        _, piece = np.unique(self.cluster * (k + 1) + labels[0] + 1, return_inverse=True)
        piece = piece.reshape(-1)
        of = Design(clusters=piece, weights=self.weights)
        w, x, shape = of._sums(np.asarray(values), None)
        # From the mean on: of values far from 0 the squares would leave nothing.
        w, centre, x, own = w[0], over(x.sum(1), w.sum(1))[0], centred(x, w)[0], labels[:, of.first]
        if (w == w[:, :1]).all():
            w = w[:, :1]
        once = (own[:, None] == np.arange(k)[:, None]).astype(float)
        there, total, top = once @ (w > 0), once @ w, once @ x
        mean = over(top, np.broadcast_to(total, top.shape))
        square = once @ x**2 - 2 * mean * (once @ (x * w)) + mean**2 * (once @ w**2)
        # Rounding may leave a little where the pieces are all alike.
        square = np.where(square > 1e-12 * (once @ x**2), square, 0)
        variance = over(square * there, np.where(there > 1, total**2 * (there - 1), 0))
        parts = (mean + centre, variance, np.broadcast_to(there, mean.shape))
        return tuple(part.reshape(len(labels), k, *shape) for part in parts)  # type: ignore[return-value]


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level={level!r} is no share between 0 and 1. Use 0.95, for example.")
    return (1 - level) / 2


def _enough(draws: int, tail: float) -> bool:
    """Whether so many draws have so small a share of them at an end."""
    return (1 + draws) * tail >= 1 - 1e-9


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


def _blocks(draws: int, size: int) -> Iterator[slice]:
    """Blocks of draws of so many numbers each that fit in memory."""
    step = max(1, AT_ONCE // max(1, size))
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


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


def _exact(
    w: np.ndarray, x: np.ndarray, one: np.ndarray, low: np.ndarray, high: np.ndarray, method: np.ndarray, tail: float
) -> None:
    """Put Clopper and Pearson's ends where clusters [group, cluster, cell] weigh alike and are each 0 or 1 throughout.

    ``one`` [group, cell]: of one stratum.
    """
    from scipy.special import betaincinv

    there, units = w > 0, (w > 0).sum(1)
    alike = np.where(there, w, -np.inf).max(1) == np.where(there, w, np.inf).min(1)
    some = alike & (~there | (x == 0) | (x == w)).all(1) & one & (units > 1)
    n, k = units[some], (there & (x > 0)).sum(1)[some]
    low[some] = np.where(k > 0, betaincinv(np.maximum(k, 0.5), n - k + 1, tail), 0)
    high[some] = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 0.5), 1 - tail), 1)
    method[some] = "exact"
