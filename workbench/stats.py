"""Nulls and intervals that lenses and probes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from workbench.readers import Found, Output

if TYPE_CHECKING:
    from workbench.inputs import Batch


class RandomDirections:
    """Draws of random states with the mean and covariance of the states that were seen, at several depths.

    A random sample of at most ``KEPT`` positions is held.  A draw is mean + sum_i g_i (x_i - mean) / sqrt(n) with g_i
    standard normal: given the sample it is Gaussian with exactly its covariance, and no [d, d] matrix is ever held.
    Which positions are kept goes by a hash of prompt and position: the draws do not depend on batches.
    """

    KEPT, FEWEST = 512, 20

    def __init__(self, draws: int, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def outputs(self, axis: str) -> dict[str, Output]:
        """What a plan has among its outputs, for states [sample, axis, width]."""
        key: Any = {"combine": "concat", "key": True, "keep": self.KEPT}
        return {
            "sample_priority": Output(("sample",), dtype=np.float64, **key),
            "sample_prompt": Output(("sample",), dtype=np.int64, **key),
            "sample_slot": Output(("sample",), dtype=np.int64, **key),
            "sample_state": Output(("sample", axis, "width"), combine="concat", keep=self.KEPT),
        }

    def observed(self, states: Tensor, batch: Batch) -> dict[str, Any]:
        """What ``observe`` gives of states [selected, depth, width]."""
        prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
        priority = np.empty(len(prompt))
        for one in np.unique(prompt):
            own = np.random.Generator(np.random.Philox(key=[self.seed, int(one)]))
            mine = prompt == one
            priority[mine] = own.random(int(slot[mine].max()) + 1)[slot[mine]]
        some = np.lexsort((slot, prompt, priority))[: self.KEPT]
        return {
            "sample_priority": priority[some], "sample_prompt": prompt[some], "sample_slot": slot[some],
            "sample_state": states[torch.from_numpy(some).to(states.device)].float(),
        }  # fmt: skip

    def draw(self, found: Found, depth: int, left_out: np.ndarray) -> Tensor:
        """[draws, width] float32 from the states that are not in ``left_out`` [prompt, slot]; [0, width] if too few."""
        states = torch.from_numpy(found["sample_state"][:, depth])
        states = states[torch.from_numpy(~left_out[found["sample_prompt"], found["sample_slot"]])]
        if len(states) < self.FEWEST:
            return states[:0]
        g = np.random.default_rng(self.seed).standard_normal((self.draws, len(states)), np.float32)
        mean = states.mean(0)
        return mean + torch.from_numpy(g) @ (states - mean) / len(states) ** 0.5


def over(top: ArrayLike, bottom: ArrayLike) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def nanmean(values: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Weighted mean over the first axis of what is not NaN; NaN where all is."""
    weight = np.where(np.isnan(values), 0.0, weight)
    return over(np.nansum(values * weight, 0), weight.sum(0))


def quantiles(found: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws [draws, ...]; NaN where less than half of them have a value."""
    known = (~np.isnan(found)).mean(0) >= 0.5 if len(found) else np.zeros(found.shape[1:], bool)
    if not known.any():
        return np.full(found.shape[1:], np.nan), np.full(found.shape[1:], np.nan)
    low, high = np.nanquantile(np.where(known, found, 0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def bootstrap_interval(
    values: np.ndarray, weights: np.ndarray | None = None, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the weighted mean over the first axis: [units, ...] -> lower [...], upper [...].

    Units are what was sampled (prompts, documents), never the tokens inside them.  NaN: no value in that unit.
    ``weights`` [units] or as values.  With fewer than two units that have a value there is no interval, and both
    bounds are NaN.
    """
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if weights.ndim == 1:
        weights = weights.reshape(-1, *[1] * (values.ndim - 1))
    w = np.where(np.isnan(values), 0.0, weights)
    x = np.nan_to_num(values) * w
    known = (w > 0).sum(0) > 1
    if not known.any():
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.tensordot(counts, x, 1) / np.tensordot(counts, w, 1)
    lower, upper = np.nanquantile(np.where(known, means, 0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.where(known, lower, np.nan), np.where(known, upper, np.nan)


def p_value(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided permutation p: (1 + how many of the null's draws [draws, ...] reach the observed) / (1 + draws).

    Never 0, and valid at any number of draws (Phipson & Smyth 2010).  NaN where the observed or the null is.
    """
    null = np.asarray(null)
    # Sums of the same numbers in another order must not look different.
    reach = (null >= np.asarray(observed) - 1e-12 * (1 + np.abs(observed))).sum(0)
    return np.where(np.isnan(null).any(0) | np.isnan(observed), np.nan, (1 + reach) / (1 + len(null)))


def ranks(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Ranks from 1, ties at their mean; of each row along ``axis``, of all values without."""
    from scipy.stats import rankdata

    return rankdata(values, axis=axis)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive's score is above another's (ties count half)."""
    n = int(positive.sum())
    if not 0 < n < len(positive):
        return float("nan")
    return float((ranks(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def fdr(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (q) over all cells; NaN cells are left out."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p, float)
    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


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


def max_statistic_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Family-wise p of each cell: how often the largest cell of a null draw [draws, ...] reaches it."""
    null = np.asarray(null)
    largest = null.reshape(len(null), -1).max(1)
    return p_value(observed, np.broadcast_to(largest.reshape(-1, *[1] * np.ndim(observed)), null.shape))


def sign_flip_p(differences: np.ndarray, draws: int = 2000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences [units], whose signs are flipped at random; 1 where all are 0."""
    if not np.any(differences):
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, len(differences)))
    return float(p_value(np.array(abs(np.sum(differences))), np.abs(signs @ differences)))


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
