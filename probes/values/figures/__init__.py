"""Figures of values over training, of what :mod:`probes.values.measures` and its neighbours give.

``reading.figure(kind)`` finds them, too: :data:`CHARTS`.
"""

from probes.values.figures.beside import agreement, gap, plane, runs
from probes.values.figures.inside import behaviour, directions, margins, weights
from probes.values.figures.stances import drifts, sides, times, trajectories
from workbench.figures.charts import Chart

__all__ = [
    "CHARTS",
    "agreement",
    "behaviour",
    "directions",
    "drifts",
    "gap",
    "margins",
    "plane",
    "runs",
    "sides",
    "times",
    "trajectories",
    "weights",
]

TRAJECTORIES = Chart(trajectories, ("keyed", "keyed_low", "keyed_high"))
DRIFTS = Chart(drifts, ("keyed_M", "keyed_M_p", "churn"))
TIMES = Chart(times, ("keyed_onset", "keyed_onset_low", "keyed_onset_high"))
SIDES = Chart(sides, ("changed",))
GAP = Chart(gap, ("training", "drift", "drift_p", "pearson"))
RUNS = Chart(runs, ("keyed_M", "keyed_M_p", "run_end"))
AGREEMENT = Chart(agreement, ("spearman", "tv_null"))
PLANE = Chart(plane, ("score", "null", "lay"))
MARGINS = Chart(margins, ("margin", "margin_p", "depth_sure"))
DIRECTIONS = Chart(directions, ("rotation", "mean_auc"))
BEHAVIOUR = Chart(behaviour, ("r", "r_battery_p", "said", "projected"))
WEIGHTS = Chart(weights, ("change", "update", "cosine"))
CHARTS = {
    "trajectories": TRAJECTORIES, "drifts": DRIFTS, "times": TIMES, "sides": SIDES, "gap": GAP, "runs": RUNS,
    "agreement": AGREEMENT, "plane": PLANE, "margins": MARGINS, "directions": DIRECTIONS, "behaviour": BEHAVIOUR,
    "weights": WEIGHTS,
}  # fmt: skip
"""By name, as registered in pyproject.toml."""
