"""Figures of values over training, from the tables of :mod:`probes.values.drift` and its neighbours."""

from probes.values.figures.stances import drifts, sides, times, trajectories

__all__ = ["drifts", "sides", "times", "trajectories"]
