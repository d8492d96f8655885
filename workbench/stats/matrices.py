"""Correlation of distance matrices."""

from __future__ import annotations

import numpy as np

from workbench.stats.arrays import ranks


def mantel(
    a: np.ndarray,
    b: np.ndarray,
    *,
    draws: int = 9999,
    seed: int = 0,
    rank: bool = False,
    given: np.ndarray | None = None,
) -> tuple[float, float]:
    """Correlation of two distance matrices [n, n] over their pairs, and its two-sided p by Mantel's permutations.

    Pairs share members, so that a correlation's usual p is far too small: rows and columns of one matrix are
    permuted together instead (Mantel 1967).  ``rank``: Spearman's in place of Pearson's.  ``given``: a third matrix
    that is taken out of both first (partial Mantel; Smouse, Long & Sokal 1986).  draws=0: no p (NaN).
    """
    r, p = mantel_table(np.asarray(a)[None], np.asarray(b)[None], draws=draws, seed=seed, rank=rank, given=given)
    return float(r[0, 0]), float(p[0, 0])


def mantel_table(
    a: np.ndarray,
    b: np.ndarray,
    *,
    draws: int = 9999,
    seed: int = 0,
    rank: bool = False,
    given: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`mantel` of each matrix in ``a`` [m, n, n] with each in ``b`` [k, n, n], under the same permutations.

    Correlations [m, k] and p [m, k]; NaN where a matrix has NaN.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n = a.shape[-1]
    i, j = np.triu_indices(n, 1)
    nothing = np.full((len(a), len(b)), np.nan)
    if len(i) < 3:
        return nothing, nothing

    def unit(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)

    other = None if given is None else unit(np.asarray(given, float)[i, j])

    def prepared(x: np.ndarray) -> np.ndarray:
        x = unit(x)
        return x if other is None else unit(x - (x @ other)[..., None] * other)

    def pairs(x: np.ndarray) -> np.ndarray:
        x = x[:, i, j]
        whole = ~np.isnan(x).any(1, keepdims=True)
        return ranks(x, 1) * np.where(whole, 1, np.nan) if rank else x

    own, fixed = pairs(a), prepared(pairs(b)).T
    r = prepared(own) @ fixed
    if not draws:
        return r, nothing
    # The number of each pair, so that values (or ranks, which permutations leave as they are) are looked up.
    number = np.zeros((n, n), int)
    number[i, j] = number[j, i] = np.arange(len(i))
    rng = np.random.default_rng(seed)
    reach = np.zeros(r.shape)
    step = max(1, 2_000_000 // len(i))
    for start in range(0, draws, step):
        orders = np.array([rng.permutation(n) for _ in range(min(step, draws - start))])
        moved = number[orders[:, i], orders[:, j]]
        for m, values in enumerate(own):
            reach[m] += (np.abs(prepared(values[moved]) @ fixed) >= np.abs(r[m]) - 1e-12 * (1 + np.abs(r[m]))).sum(0)
    return r, np.where(np.isnan(r), np.nan, (1 + reach) / (1 + draws))
