"""Arithmetic on arrays with missing values, quantiles of draws, ranks, entropies, divergences, and what pairs join."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def over(top: ArrayLike, bottom: ArrayLike) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def nanmean(values: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Weighted mean over the first axis of what is not NaN; NaN where all is."""
    weight = np.where(np.isnan(values), 0.0, weight)
    return over(np.nansum(values * weight, 0), weight.sum(0))


def ranks(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Ranks from 1, ties at their mean; of each row along ``axis``, of all values without."""
    from scipy.stats import rankdata

    return rankdata(values, axis=axis)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive's score is above another's (ties count half)."""
    positive = np.asarray(positive, bool)
    n = int(positive.sum())
    if not 0 < n < len(positive):
        return float("nan")
    return float((ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def entropy(p: np.ndarray, axis: int = -1) -> np.ndarray:
    """Entropy of distributions along an axis, in nats; NaN where a share is NaN.  Shares below 0 are taken for 0."""
    from scipy.special import entr

    return entr(np.maximum(p, 0)).sum(axis)


def js_divergence(p: np.ndarray, q: np.ndarray, axis: int = -1) -> np.ndarray:
    """Jensen-Shannon divergence along an axis, in nats (at most ln 2); divide by ln 2 for bits.

    From entropies and not from relative entropies: of distributions beside each other, each one's own entropy is
    computed once, however many it stands beside.
    """
    return np.maximum(0, entropy((p + q) / 2, axis) - (entropy(p, axis) + entropy(q, axis)) / 2)


def quantiles(found: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws [draws, ...]; NaN where less than half of them have a value."""
    known = (~np.isnan(found)).mean(0) >= 0.5 if len(found) else np.zeros(found.shape[1:], bool)
    if not known.any():
        return np.full(found.shape[1:], np.nan), np.full(found.shape[1:], np.nan)
    low, high = np.nanquantile(np.where(known, found, 0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def linked(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """[n] the first member of the group that pairs join each to (single linkage); itself where there is none."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(pairs), int).reshape(-1, 2)
    if not n:
        return np.zeros(0, int)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    group = connected_components(graph, directed=False)[1]
    return np.unique(group, return_index=True)[1][group]
