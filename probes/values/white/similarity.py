"""Linear centred kernel alignment (CKA) of two sets of states of the same prompts."""

from __future__ import annotations

import numpy as np

from workbench.stats import over


def hsic(k: np.ndarray, l: np.ndarray, times: np.ndarray, *, debiased: bool) -> np.ndarray:
    """Kernels [n, n] -> their Hilbert-Schmidt independence criterion, up to a factor, among the rows that are there.

    ``times`` [draw, n] of 0 and 1.  tr(K H L H) with H = I - 11'/n, or, debiased, HSIC_1 of Song et al. (2012, JMLR 13,
    eq. 5), without whose diagonals two unrelated sets are at 0 in the mean: NaN below four rows.
    """
    if debiased:
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    n, a, b = times.sum(1), times @ k, times @ l
    both = ((times @ (k * l)) * times).sum(1)
    sums, cross = (a * times).sum(1) * (b * times).sum(1), (a * b * times).sum(1)
    return _joined(both, cross, sums, n, debiased)


def _joined(both: np.ndarray, cross: np.ndarray, sums: np.ndarray, n: np.ndarray, debiased: bool) -> np.ndarray:
    if not debiased:
        return both - 2 * cross / n + sums / n**2
    m = np.where(n > 3, n, np.nan)
    return (both + sums / ((m - 1) * (m - 2)) - 2 * cross / (m - 2)) / (m * (m - 3))


def cka(k: np.ndarray, l: np.ndarray, times: np.ndarray | None = None, *, debiased: bool = False) -> np.ndarray:
    """[draw]: HSIC(K, L) / root of HSIC(K, K) HSIC(L, L), which of linear kernels is |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) of
    centred states (Kornblith et al. 2019, arXiv 1905.00414, eq. 3); ``debiased`` as in Nguyen, Raghu & Kornblith (2021,
    arXiv 2010.15327, eq. 2-3).  NaN where states do not vary."""
    times = np.ones((1, len(k))) if times is None else times
    k, l = _even(k), _even(l)
    top, one, two = (hsic(x, y, times, debiased=debiased) for x, y in ((k, l), (k, k), (l, l)))
    return _ratio(top, one, two)


def _even(k: np.ndarray) -> np.ndarray:
    """The kernel of centred states of length 1 in the mean square."""
    k = k - k.mean(0)
    k = k - k.mean(1, keepdims=True)
    length = float(np.trace(k)) / len(k)
    return k / length if length > 0 else k


def _ratio(top: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    tiny = 1e-14
    return over(top, np.where((one > tiny) & (two > tiny), np.sqrt(np.maximum(0, one) * np.maximum(0, two)), 0))


def shuffled(k: np.ndarray, l: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CKA and debiased CKA [draw] when the second set's rows are put in other ``orders`` [draw, n]."""
    k, l, n = _even(k), _even(l), np.full(len(orders), len(k))
    ones = np.ones((1, len(k)))
    found = []
    bare = [x - np.diag(np.diag(x)) for x in (k, l)]
    # The diagonals stay diagonals in any order, so one product of entries serves both.
    edge = np.array([(np.diag(k) * np.diag(l)[o]).sum() for o in orders])
    both = np.array([np.einsum("ij,ij", bare[0], bare[1][np.ix_(o, o)]) for o in orders])
    for debiased, (x, y) in ((False, (k, l)), (True, (bare[0], bare[1]))):
        rows, columns = x.sum(1), y.sum(1)
        cross = (rows * columns[orders]).sum(1)
        sums = np.full(len(orders), rows.sum() * columns.sum())
        top = _joined(both + (0 if debiased else edge), cross, sums, n, debiased)
        one, two = (hsic(z, z, ones, debiased=debiased)[0] for z in (k, l))
        found.append(_ratio(top, np.full(len(orders), one), np.full(len(orders), two)))
    return found[0], found[1]
