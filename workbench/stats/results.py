"""What intervals and tests give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A confidence interval, cell by cell, and how it was made.

    Attributes
    ----------
    value, low, high
        The estimate and the ends of its interval; NaN where fewer than two clusters have a value.
    error, bias
        Standard error, and how far the estimate is expected to lie above what it estimates (0 for means).
    units
        Clusters that have a value, [...] or one number.
    method
        "exact", "t", "bootstrap-t", "jackknife-t", "percentile" or "basic"; several, where cells differ, joined by
        commas.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    bias: np.ndarray
    units: np.ndarray
    method: str

    def said(self, units: str = "units") -> str:
        """The method and the number of units in words: ``"t over 5 prompts"``."""
        least, most = (int(x) for x in (np.min(self.units, initial=10**9), np.max(self.units, initial=0)))
        return f"{self.method} over {most if least >= most else f'{least} to {most}'} {units}"


class Jackknife(NamedTuple):
    """Delete-one-cluster jackknife: standard error, degrees of freedom and bias of an estimate."""

    value: np.ndarray
    error: np.ndarray
    dof: np.ndarray
    bias: np.ndarray


class Test(NamedTuple):
    """A test of each cell.

    Attributes
    ----------
    statistic
        Studentised; signed where there are two sides.
    p, p_family
        Of each cell alone, and adjusted for all cells together (step-down max-T).
    resolution
        The least p that there can be with these draws and clusters.
    """

    __test__ = False  # no test case, whatever pytest thinks of its name

    statistic: np.ndarray
    p: np.ndarray
    p_family: np.ndarray
    resolution: float


class MaxT(NamedTuple):
    """Family-wise test of means against 0, and simultaneous intervals.

    Attributes
    ----------
    value, statistic
        Mean, and its studentised form T = sum y / root(sum y^2): Student's t on a scale that ends at the root of n.
    p
        The larger of ``p_flip`` and ``p_bootstrap``, which are family-wise; NaN where one was not asked for.
    low, high
        Intervals that hold all cells together; infinite where there are too few clusters to say.
    resolution
        The least p that there can be.
    """

    value: np.ndarray
    statistic: np.ndarray
    p: np.ndarray
    p_flip: np.ndarray
    p_bootstrap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    resolution: float
