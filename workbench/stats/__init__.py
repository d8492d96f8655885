"""Inference that lenses and probes share: what was sampled, intervals, tests, nulls.  scipy below.

    Design            rows in clusters in strata: bootstrap, jackknife, sign flips, permutations, max-T
    p_value           of draws of a null; step_down: family-wise; fdr: false discovery rate
    least_q           what so many draws can show among so many cells; draws_for: how many draws would do
    mantel            correlation of distance matrices
"""

from __future__ import annotations

from workbench.stats.arrays import auroc, entropy, js_divergence, nanmean, over, quantiles, ranks
from workbench.stats.design import Design
from workbench.stats.levels import draws_for, fdr, least_q, p_value, step_down
from workbench.stats.matrices import mantel, mantel_table
from workbench.stats.results import Interval, Jackknife, MaxT, Test

__all__ = [
    "Design",
    "Interval",
    "Jackknife",
    "MaxT",
    "Test",
    "auroc",
    "draws_for",
    "entropy",
    "fdr",
    "js_divergence",
    "least_q",
    "mantel",
    "mantel_table",
    "nanmean",
    "over",
    "p_value",
    "quantiles",
    "ranks",
    "step_down",
]
