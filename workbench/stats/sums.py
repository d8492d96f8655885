"""Studentised statistics from sums over clusters, for many draws at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from workbench.stats.arrays import over

MANY = 1000
"""From so many clusters on an interval is of percentiles, and not studentised."""


def codes(labels: ArrayLike) -> np.ndarray:
    """Numbers [row] of labels of any kind, in their order; rows of several columns are one label together."""
    given = np.asarray(labels)
    if given.ndim == 1 and given.dtype.kind not in "OU":
        return np.unique(given, return_inverse=True)[1]
    # From what was given: numpy makes texts of 1 and "1" alike.
    rows = labels if isinstance(labels, list | tuple) else given.tolist()
    keys = [tuple(x) if isinstance(x, list | np.ndarray) else x for x in rows]
    try:
        order = sorted(set(keys))
    except TypeError:
        order = sorted(set(keys), key=lambda x: (type(x).__name__, str(x)))
    number = {x: i for i, x in enumerate(order)}
    return np.array([number[x] for x in keys])


def centred(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sums [..., cluster, cell] from the mean of their cells on; 0 where only rounding is left."""

    def mean(sums: np.ndarray) -> np.ndarray:
        return over(sums.sum(-2, keepdims=True), w.sum(-2, keepdims=True)) * w

    with np.errstate(invalid="ignore"):
        far = mean(x)
        near = x - far
        near = near - mean(near)
        return np.where(w > 0, np.where(np.abs(near) <= 1e-14 * np.abs(far), 0, near), 0)


def flipped_t(times: np.ndarray, x: np.ndarray, w: np.ndarray, empty: float = 0.0) -> np.ndarray:
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


def welch(mean: np.ndarray, variance: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[draws, label, ...] -> [draws, ...] Welch's t of two labels, its square summed of more; -log of its p."""
    from scipy.special import fdtrc

    k = mean.shape[1]
    mean = mean - mean[:, :1]
    # A label that does not vary varies next to nothing, on the scale of the cell.
    least = 1e-20 * (variance.max(1, keepdims=True) + np.abs(mean).max(1, keepdims=True) ** 2)
    variance = np.maximum(variance, np.maximum(least, 1e-300))
    weight = 1 / variance
    share = weight / weight.sum(1, keepdims=True)
    found = ((mean - (mean * share).sum(1, keepdims=True)) ** 2 * weight).sum(1)
    lost = over((1 - share) ** 2, clusters - 1).sum(1)
    f = found / (k - 1) / (1 + 2 * (k - 2) / (k**2 - 1) * lost)
    p = fdtrc(k - 1, over((k**2 - 1) / 3, lost), f)
    # Rounded: labels that are exchanged whole are no other draw.
    size = np.round(-np.log(np.maximum(p, 1e-300)), 9)
    return (mean[:, 1] / np.sqrt(variance.sum(1)) if k == 2 else found), size


def resampled_t(times: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[draws, cell] of times [draws, cluster] and sums [cluster, cell]: t of the mean; of many, how far it moved."""
    x, there = centred(x, w), w > 0
    mean = over(times @ x, times @ w)
    many = there.sum(0) >= MANY
    if many.all():
        return mean
    with np.errstate(invalid="ignore", divide="ignore"):
        n = times @ there
        square = times @ x**2 - 2 * mean * (times @ (x * w)) + mean**2 * (times @ w**2)
        # Rounding leaves a little where all that was drawn is alike.
        square = np.where(square > 1e-12 * (times @ x**2), square, 0)
        own = np.sqrt(square * n / (n - 1)) / (times @ w)
        t = np.where(own > 0, mean / own, np.sign(mean) * np.inf)
    return np.where(many, mean, np.nan_to_num(t, nan=0, posinf=np.inf, neginf=-np.inf))
