"""p-values of draws of a null, and what they are worth when there are many."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

SLACK = 1e-12
"""Sums of the same numbers in another order must not look different."""


def p_value(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """One-sided p: (1 + how many of the null's draws [draws, ...] reach the observed) / (1 + draws).

    Never 0, and valid at any number of draws (Phipson & Smyth 2010).  NaN where the observed or the null is.
    """
    null, observed = np.asarray(null), np.asarray(observed)
    reach = (null >= _bar(observed)).sum(0)
    return np.where(np.isnan(null).any(0) | np.isnan(observed), np.nan, (1 + reach) / (1 + len(null)))


def _bar(observed: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(observed), observed, observed - SLACK * (1 + np.abs(observed)))


def step_down(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """Family-wise p of cells: step-down max-T (Westfall & Young 1993, algorithm 4.1).

    Parameters
    ----------
    observed
        Statistics [...], larger where they speak against the null, on one scale (studentised).
    null
        Draws of all of them together, [draws, ...].

    Returns
    -------
    ndarray
        [...]; NaN where a statistic is NaN, or its null throughout, which is then of no family.  A draw that is NaN
        in some cells is left out of those.

    Notes
    -----
    The cells are taken from the largest on; each is compared with the largest of those that are left, so that what is
    found does not make the others harder to find.  Never larger than the single-step p of the largest of all.

    Examples
    --------
    >>> import numpy as np
    >>> null = np.random.default_rng(0).standard_normal((999, 3))
    >>> step_down([4.5, 0.1, 3.0], null).round(3)
    array([0.001, 0.916, 0.005])
    """
    reached = Reached(np.asarray(observed, float))
    reached.add(np.asarray(null, float))
    return reached.step_down()


class Reached:
    """How many draws of a null reach what was observed, counted block by block: cells alone, and step-down.

    Parameters
    ----------
    observed
        [...], larger where it speaks against the null.
    every
        The draws are all that there are, what was observed among them: p is their share, and nothing is added to it.
    """

    def __init__(self, observed: np.ndarray, *, every: bool = False) -> None:
        self.shape, self.every = observed.shape, every
        self.observed = observed.reshape(-1).astype(float)
        self.known = ~np.isnan(self.observed)
        self.order = np.argsort(-self.observed[self.known], kind="stable")
        # How many draws have a value, and how many of them reach what was observed.
        self.cell, self.largest = np.zeros((2, len(self.observed))), np.zeros((2, len(self.order)))

    def add(self, null: np.ndarray) -> None:
        """Count draws [draws, ...]; NaN: no draw of that cell."""
        null, bar = null.reshape(len(null), -1), _bar(self.observed)
        self.cell += (~np.isnan(null)).sum(0), (null >= bar).sum(0)
        mine = null[:, self.known][:, self.order]
        most = np.fmax.accumulate(mine[:, ::-1], axis=1)[:, ::-1]
        self.largest += (~np.isnan(most)).sum(0), (most >= bar[self.known][self.order]).sum(0)

    def p(self) -> np.ndarray:
        """Of each cell alone."""
        return np.where(self.known, self._share(self.cell), np.nan).reshape(self.shape)

    def step_down(self) -> np.ndarray:
        """Of all cells together."""
        p = np.full(len(self.observed), np.nan)
        p[np.flatnonzero(self.known)[self.order]] = np.fmax.accumulate(self._share(self.largest))
        p[self.cell[0] == 0] = np.nan
        return p.reshape(self.shape)

    def _share(self, counted: np.ndarray) -> np.ndarray:
        draws, reach = counted
        share = reach / np.maximum(1, draws) if self.every else (1 + reach) / (1 + draws)
        return np.where(draws > 0, share, np.nan)


def fdr(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (q) over all cells; NaN cells are left out."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p, float)
    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def least_q(draws: int, cells: int, together: int = 1) -> float:
    """The least q that ``together`` of so many cells can reach, all at the least p of so many draws."""
    return min(1.0, cells / (together * (1 + draws)))


def draws_for(level: float, cells: int, together: int = 1) -> int:
    """How many draws it takes until ``together`` of so many cells can reach a q of ``level``."""
    return max(0, math.ceil(cells / (together * level) * (1 - 1e-12)) - 1)
