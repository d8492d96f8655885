"""What a judge gets wrong, measured on texts whose stance is known, and taken out of means: v = C^-1 v_observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from probes.values.framings import OFFERED, STANCES
from probes.values.judged import SLACK, Judge, judged
from workbench.errors import InputError

WORST = 30.0
"""A confusion matrix of a larger condition number is not inverted: noise would be multiplied by as much."""


@dataclass(frozen=True)
class Confusion:
    """How a judge sees texts whose stance is known.

    Attributes:
        judged: [text, 3] its probabilities of support, neutral, oppose.
        truth: [text] the number of the true stance.
    """

    judged: np.ndarray
    truth: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """C [judged, true]: what the judge says on average of texts of each stance; columns sum to 1."""
        return np.stack([self.judged[self.truth == k].mean(0) for k in range(3)], 1)

    @property
    def counts(self) -> np.ndarray:
        """[3] labelled texts of each stance."""
        return np.bincount(self.truth, minlength=3)

    def frame(self) -> Any:
        """The matrix as a table: rows are what is judged, columns what is true."""
        import pandas as pd

        return pd.DataFrame(self.matrix, index=pd.Index(OFFERED, name="judged"), columns=pd.Index(OFFERED, name="true"))


def confusion(judge: Judge, labelled: Sequence[tuple[str, str]]) -> Confusion:
    """How a judge sees labelled texts: pairs (text as the instrument shows it to the judge, its true stance).

    Raises InputError for another stance, fewer than two texts of one, and a text that is called uncommitted outright.
    """
    pairs = list(labelled)
    if unknown := sorted({str(s) for _, s in pairs} - set(OFFERED)):
        raise InputError(f"The labels have {', '.join(unknown)}. A labelled text is one of {', '.join(OFFERED)}.")
    truth = np.array([OFFERED.index(s) for _, s in pairs], int)
    counts = np.bincount(truth, minlength=3)
    if counts.min() < 2:
        raise InputError(
            f"{counts.tolist()} texts are labelled {', '.join(OFFERED)}. What a judge makes of a stance is not "
            "known from fewer than two; label more (30 of each give an error of about .1)."
        )
    p = judged(judge, [text for text, _ in pairs])[:, :3]
    total = p.sum(1, keepdims=True)
    if (total < SLACK).any():
        raise InputError(
            "The judge calls a labelled text uncommitted outright, and stances are corrected among themselves."
        )
    return Confusion(p / total, truth)


def corrected(
    readings: xr.Dataset, known: Confusion, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
    """The mean stance with the judge's confusion taken out: v = C^-1 v_observed, put back onto the simplex.

    Args:
        readings: of :class:`~probes.values.sampled.SampledText`, p [item, sample, stance], with cluster [item].
        known: of the same judge.
        draws, level, seed: of the bootstrap, which draws clusters of items and, within each true stance, labelled
            texts: the interval holds what is not known of the judge, too.

    Returns [stance]: v, v_low, v_high, and observed.  A cluster counts once.  What is uncommitted stays as observed.
    The simplex point is the nearest one; where v before it was below -.05 (outside), C does not fit these texts.
    Raises InputError where C is too near to singular: the judge hardly tells two stances apart.
    """
    condition = float(np.linalg.cond(known.matrix))
    if not condition < WORST:
        raise InputError(
            f"The judge's confusion matrix has the condition number {condition:.0f} (at most {WORST:.0f} is inverted): "
            f"it hardly tells stances apart.\n{known.frame().round(2)}\nNo correction mends this judge: use another."
        )
    p = readings["p"].mean("sample").transpose("item", "stance").sel(stance=list(STANCES)).values
    _, cluster = np.unique(readings["cluster"].values.astype(str), return_inverse=True)
    there = ~np.isnan(p).any(1)
    if not there.any():
        raise InputError("The readings are NaN everywhere, so there is nothing to correct.")
    names = np.unique(cluster[there])
    units = np.stack([p[there & (cluster == k)].mean(0) for k in names])
    rng = np.random.default_rng(seed)
    groups = [known.judged[known.truth == k] for k in range(3)]

    def solve(matrix: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(matrix, mean[:3], rcond=None)[0]

    raw = solve(known.matrix, units.mean(0))
    drawn = np.empty((draws, 4))
    for d in range(draws):
        mean = units[rng.integers(len(units), size=len(units))].mean(0)
        matrix = np.stack([own[rng.integers(len(own), size=len(own))].mean(0) for own in groups], 1)
        drawn[d] = [*on_simplex(solve(matrix, mean), 1 - mean[3]), mean[3]]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if len(units) < 2:
        low = high = np.full(4, np.nan)  # one cluster says nothing of others
    best = np.array([*on_simplex(raw, 1 - units.mean(0)[3]), units.mean(0)[3]])
    found = {"v": best, "v_low": low, "v_high": high, "observed": units.mean(0)}
    return xr.Dataset(
        {name: ("stance", value) for name, value in found.items()},
        {"stance": list(STANCES)},
        {"condition": condition, "outside": float(min(raw.min(), 0.0)), "labelled": len(known.truth)},
    )


def on_simplex(v: np.ndarray, total: float = 1.0) -> np.ndarray:
    """The nearest vector of nonnegative numbers with this sum (Duchi et al. 2008)."""
    falling = np.sort(v)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(v) + 1)
    return np.maximum(v - excess[np.flatnonzero(falling > excess)[-1]], 0) if total > 0 else np.zeros(len(v))
