"""Figures of values over training, from the tables of :mod:`probes.values.drift` and its neighbours."""

from probes.values.figures.beside import agreement, gap, plane, runs
from probes.values.figures.inside import behaviour, directions, margins, weights
from probes.values.figures.stances import drifts, sides, times, trajectories

__all__ = [
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
