"""What the rooms still call by its old name."""

from __future__ import annotations

import numpy as np

from workbench.stats.levels import p_value


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
