"""Tests of labels against each other: differences of usage in units of what documents of one label differ by.

Labels are shuffled among whole clusters of documents.  What is compared with its shuffles is studentised: the shares of
two labels differ by chance the more, the fewer, the shorter and the more unlike their documents are, and a difference
that is not measured in that is called significant wherever a label of few tokens is shuffled into longer documents
(Janssen 1997; Chung & Romano 2013; Pauly, Brunner & Konietschke 2015).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from probes.routing.measures.documents import Documents
from workbench.stats import Design, draws_for, entropy, least_q, over, p_value

PRIOR = 4
"""Clusters that the pooled estimate of an expert's variance counts for, beside those of the label itself."""
AT_ONCE = 2_000_000


class Shares(NamedTuple):
    """Labels under shuffled labels: their shares and the variances of those, [draws, label, block, expert]."""

    share: np.ndarray
    variance: np.ndarray


Statistic = Callable[[Shares], np.ndarray]


class TooFew(UserWarning):
    """No result could be significant: too few draws, or too few documents."""


class Contrast:
    """Usage of labels by cluster of documents, and what it would be under other labels.

    Parameters
    ----------
    count
        [row, block, expert]: slots, or other amounts.
    total
        [row, block]: what they are shares of.
    tokens, label, cluster
        [row].
    labels
        Which labels are compared, and shuffled among each other; None: all.

    Notes
    -----
    A label's share of an expert is its count over its total, p = C / N.  Its variance is cluster-robust, from the
    clusters' residuals r = c - n p, each over 1 less its leverage h (its part of the label's tokens): V = sum of
    r^2 / (1 - h) / N^2 (CR2; Bell & McCaffrey 2002).  Of few documents, the variance of a rare expert is often 0 by
    chance; it is moderated (Smyth 2004): with d degrees of freedom it is (4 V0 + d V) / (4 + d) and no smaller than V0,
    which is in proportion to p(1 - p) of all labels together and adds up to what V does over the block's experts.
    """

    def __init__(
        self, count: np.ndarray, total: np.ndarray, tokens: np.ndarray, label: np.ndarray, cluster: np.ndarray,
        labels: tuple[int, ...] | None = None, *, fixed: bool = False,
    ) -> None:  # fmt: skip
        label = np.asarray(label)
        chosen = np.arange(label.max() + 1) if labels is None else np.array(labels)
        rows = np.flatnonzero(np.isin(label, chosen))
        self.k = len(chosen)
        # Rows of a cluster that have one label are one piece.
        key, first, piece = np.unique(
            cluster[rows] * (int(label.max()) + 1) + label[rows], return_index=True, return_inverse=True
        )
        piece = piece.reshape(-1)

        def summed(values: np.ndarray) -> np.ndarray:
            if len(key) == len(rows):
                return values[rows[first]].astype(float)
            found = np.zeros((len(key), *values.shape[1:]))
            np.add.at(found, piece, values[rows])
            return found

        self.label = np.searchsorted(chosen, label[rows][first])
        self.design = Design(cluster[rows][first])
        self.shape = count.shape[1:]
        self.count, self.total, self.tokens = summed(count), summed(total), summed(tokens)
        pooled = self.count.sum(0)
        pooled = over(pooled, pooled.sum(-1, keepdims=True))
        self.base = np.nan_to_num(pooled * (1 - pooled))
        self.clusters = np.bincount(self.label, minlength=self.k)
        size = np.bincount(self.design.cluster)
        self.fixed = fixed or bool((size > 1).all())
        """Nothing can be shuffled: every cluster has several labels."""

    @classmethod
    def of(cls, documents: Documents, labels: tuple[int, ...] | None = None, *, by_token: bool = False) -> Contrast:
        """Of documents: shares of slots; ``by_token``: of tokens."""
        total = documents.count.sum(-1)
        if by_token:
            total = np.broadcast_to(documents.tokens[:, None], total.shape)
        return cls(
            documents.count, total, documents.tokens, documents.label, documents.cluster, labels, fixed=documents.mixed
        )

    def shares(self, label: np.ndarray) -> Shares:
        """Under labels [draws, piece]."""
        pieces, (blocks, experts) = len(self.label), self.shape
        once = (label[:, None] == np.arange(self.k)[:, None]).astype(float)
        there = once.sum(-1)[..., None, None]
        leverage = once * self.tokens / np.maximum((once @ self.tokens)[..., None], 1e-300)
        weight = np.where(leverage < 1 - 1e-9, once / np.maximum(1 - leverage, 1e-9), 0)
        shape = (*label.shape[:1], self.k, blocks, experts)
        count = self.count.reshape(pieces, -1)
        total = (once @ self.total)[..., None]
        share = over((once @ count).reshape(shape), total)
        square = (weight @ count**2).reshape(shape)
        cross = (weight @ (self.count * self.total[..., None]).reshape(pieces, -1)).reshape(shape)
        square = square - 2 * share * cross + share**2 * (weight @ self.total**2)[..., None]
        variance = np.maximum(square, 0) / np.maximum(total, 1e-300) ** 2
        spread = over(variance.sum(-1), self.base.sum(-1))[..., None]
        degrees = there - 1
        moderated = (PRIOR * spread * self.base + degrees * variance) / (PRIOR + degrees)
        return Shares(share, np.where(there > 1, np.maximum(moderated, spread * self.base), np.nan))

    def spread(self) -> np.ndarray:
        """[label] how much more documents vary than as many independent slots would, mean over blocks."""
        share, variance = self.shares(self.label[None])
        total = (np.arange(self.k)[:, None] == self.label).astype(float) @ self.total
        return over(variance[0].sum(-1), over((share[0] * (1 - share[0])).sum(-1), total)).mean(-1)

    def test(self, statistic: Statistic, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A statistic as it is, and under ``draws`` shuffles [draws, ...]; these are NaN where there are none."""
        observed = statistic(self.shares(self.label[None]))[0]
        if self.fixed or not draws:
            return observed, np.full((1, *observed.shape), np.nan)
        drawn = self.design.relabel(self.label, draws, seed)
        step = max(1, AT_ONCE // max(1, self.k * self.count[0].size))
        parts = [statistic(self.shares(drawn[i : i + step])) for i in range(0, draws, step)]
        return observed, np.concatenate(parts)

    def ways(self) -> float:
        """In how many ways that differ the labels could have fallen."""
        # Labels with as many clusters each may change places without changing what lies between them.
        same = math.factorial(self.k) if len({*self.clusters.tolist()}) == 1 else 1
        logs = math.lgamma(self.clusters.sum() + 1) - sum(math.lgamma(n + 1) for n in self.clusters.tolist())
        return 1.0 if self.fixed else math.exp(min(logs, 300.0)) / same


def apart(shares: Shares) -> np.ndarray:
    """[draws, block]: squares of the differences of two labels, each over its variance, summed over the experts; of
    more labels, the mean over their pairs.

    A sum and not a maximum: simulated with 5 documents against 50, 8 and 64 experts, both keep their level, and a
    difference of many experts, which a divergence adds up, is found two to three times as often by the sum.
    """
    first, second = np.triu_indices(shares.share.shape[1], 1)
    total, n = 0.0, len(first)
    for a, b in zip(first, second, strict=True):
        square = (shares.share[:, a] - shares.share[:, b]) ** 2
        scale = shares.variance[:, a] + shares.variance[:, b]
        total = total + _scaled(square, scale).sum(-1)
    return np.asarray(total) / n


def gap(shares: Shares) -> np.ndarray:
    """[draws, block, expert]: the highest share of the labels less the second, over its standard error.

    Cells with a family-wise p: the largest of all is compared, so that a single expert stands out.
    """
    order = shares.share.argsort(1)[:, -2:]
    top = np.take_along_axis(shares.share, order, 1)
    scale = np.take_along_axis(shares.variance, order, 1).sum(1)
    return np.sqrt(_scaled((top[:, 1] - top[:, 0]) ** 2, scale))


def against_mean(shares: Shares) -> np.ndarray:
    """[draws, label, block, expert]: a label's share less the mean of all labels', over its standard error (signed)."""
    k = shares.share.shape[1]
    away = shares.share - shares.share.mean(1, keepdims=True)
    rest = shares.variance.sum(1, keepdims=True) / k**2
    return np.sign(away) * np.sqrt(_scaled(away**2, rest + shares.variance * (1 - 2 / k)))


def by_chance(contrast: Contrast, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[block] the Jensen-Shannon divergence in nats that labels which differ in nothing would have, and p of theirs.

    The mean under shuffled labels, times the variance of the labels' own shares over that of shuffled ones: labels of
    few and short documents are far apart by chance, whatever they are shuffled into.
    """

    def both(found: Shares) -> np.ndarray:
        jsd = entropy(found.share.mean(1)) - entropy(found.share).mean(1)
        # What it comes to by chance is in proportion to this, to the first order.
        noise = over(found.variance.sum(1), np.where(contrast.base > 0, pooled, 0))
        return np.stack([apart(found), jsd, np.nansum(noise, -1)], 1)

    pooled = over(contrast.count.sum(0), contrast.total.sum(0)[:, None])
    observed, null = contrast.test(both, draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = null[:, 1].mean(0) * np.where(observed[2] > 0, observed[2] / null[:, 2].mean(0), 0)
    p = p_value(observed[0], null[:, 0])
    return np.where(np.isnan(null[:, 1]).any(0) | (contrast.clusters < 2).any(), np.nan, chance), p


def _scaled(square: np.ndarray, variance: np.ndarray) -> np.ndarray:
    # An expert that no label uses differs in nothing; one that never varies, beyond measure.
    found = np.where(square > 0, square / np.maximum(variance, 1e-18), 0.0)
    return np.where(np.isnan(variance) | np.isnan(square), np.nan, found)


def warn_of(what: str, draws: int, cells: int, ways: float, level: float = 0.05, *, stacklevel: int = 3) -> None:
    """Warn where nothing could be significant: the least p of so many draws and documents, over so many cells.

    Parameters
    ----------
    what
        Name of the variable, as ``jsd_q``.
    cells
        How many it is adjusted for; 1 of a p, and of a family-wise one.
    ways
        In how many ways labels can fall.
    """
    if not draws or ways <= 1 or cells < 1:
        return
    if cells / ways > level:
        warnings.warn(
            f"{what}: the labels of these documents could have fallen in {ways:.0f} ways, so the least that a single "
            f"one of {cells} can be is {min(1, cells / ways):.2g}, above {level:g}. Read more documents.",
            TooFew,
            stacklevel=stacklevel,
        )
    elif least_q(draws, cells) > level:
        warnings.warn(
            f"{what}: with draws={draws}, the least that a single one of {cells} can be is "
            f"{least_q(draws, cells):.2g}, above {level:g}. Use draws={draws_for(level, cells)}.",
            TooFew,
            stacklevel=stacklevel,
        )
