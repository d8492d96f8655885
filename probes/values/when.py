"""When a stance moves: the onset of its drift, and the drift time as it was published."""

from __future__ import annotations

import numpy as np

from probes.values.units import STANCES, StanceUnits, named
from workbench.stats import over, quantiles

KNOTS = 50
"""So many checkpoints are tried as the onset, evenly among them where there are more."""
FEW = 8
"""Fewer clusters give an onset without an interval."""


def times(
    units: StanceUnits,
    base: int,
    m: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    significant: np.ndarray,
    star: np.ndarray,
    clusters: np.ndarray,
    level: float,
) -> dict[str, tuple]:
    """eta and onset of drifts [topic, checkpoint, measure]; star [draws, ...], clusters [topic, measure]."""
    curve, draws, below, above, sure = (
        np.swapaxes(x, -1, -2)[..., base:] for x in (m, star, low - m, high - m, significant)
    )
    steps = units.steps[base:]
    clock = (steps - steps[0]) / (steps[-1] - steps[0])
    eta, at = _reached(curve, below, above, clock)
    shown = np.take_along_axis(sure, at[..., None], -1)[..., 0]
    ends = quantiles(_reached(draws, below, above, clock)[0], level)
    counted = _reached(curve, below, above, np.linspace(0, 1, len(steps)))[0]
    values = {"eta": eta, "eta_low": ends[0], "eta_high": ends[1], "eta_checkpoints": counted, "extremum": steps[at]}
    values |= dict(zip(("onset", "onset_low", "onset_high"), np.full((3, *eta.shape), np.nan), strict=True))
    for cell in zip(*np.nonzero(shown & ~np.isnan(curve).any(-1)), strict=True):
        own = onset(curve[cell], draws[:, *cell], steps, level)
        for name, value in zip(("onset", "onset_low", "onset_high"), own, strict=True):
            values[name][cell] = value if name == "onset" or clusters[cell] >= FEW else np.nan
    found: dict[str, tuple] = {}
    for name, value in values.items():
        found |= named(name, ("topic", "stance"), np.where(shown, value, np.nan))
    return found


def onset(curve: np.ndarray, draws: np.ndarray, steps: np.ndarray, level: float) -> tuple[float, float, float]:
    """The step from which on a curve [checkpoint] moves, and its interval, from draws [draw, checkpoint] of the curve.

    Least squares over curves that are flat until one checkpoint, go straight until a later one, and stay (a step, where
    the two are neighbours).  The level before the onset is fitted, too: the baseline's noise is in every drift from it.

    Notes
    -----
    The interval is of onsets whose best fit is not worse than the best of all by more than the fitted onset's is in
    ``level`` of the draws (a bootstrap likelihood ratio), and a checkpoint on either side, between which nothing was
    read.  Percentiles of the draws' onsets would not do: none lies before the first checkpoint, so that a drift from
    the first step on is put too late by all of them.
    """
    tried = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), KNOTS)).round().astype(int))
    start, stop = (tried[x] for x in np.triu_indices(len(tried), 1))
    t = steps.astype(float)
    ramps = np.clip((t - t[start][:, None]) / (t[stop] - t[start])[:, None], 0, 1)
    ramps -= ramps.mean(1, keepdims=True)
    ramps /= np.linalg.norm(ramps, axis=1, keepdims=True)
    first = np.flatnonzero(np.r_[True, np.diff(start) > 0])  # pairs are in the order of their starts

    def explained(curves: np.ndarray) -> np.ndarray:
        """[..., start]: the sum of squares that the best curve from there explains."""
        return np.maximum.reduceat((curves @ ramps.T) ** 2, first, axis=-1)

    own = explained(curve)
    best = int(own.argmax())
    drawn = explained(draws[~np.isnan(draws).any(1)])
    bound = np.quantile(drawn.max(1) - drawn[:, best], level) if len(drawn) else np.inf
    kept = tried[:-1][own.max() - own <= bound]
    return float(steps[tried[best]]), float(steps[max(0, kept[0] - 1)]), float(steps[min(len(steps), kept[-1] + 2) - 1])


def _reached(curve: np.ndarray, low: np.ndarray, high: np.ndarray, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curves [..., checkpoint] from the baseline on -> clock when first within the interval of the extremum, and where
    that is.  ``low``, ``high``: ends of the interval less the curve."""
    size = np.where(np.isnan(curve), -1, np.abs(curve))
    at = size.argmax(-1)[..., None]
    peak = np.take_along_axis(curve, at, -1)
    ends = [peak + np.take_along_axis(np.broadcast_to(x, curve.shape), at, -1) for x in (low, high)]
    inside = (curve >= ends[0] - 1e-12) & (curve <= ends[1] + 1e-12)
    return np.where(inside.any(-1), clock[inside.argmax(-1)], np.nan), at[..., 0]


def raw(units: StanceUnits, base: int) -> dict[str, tuple]:
    """M and eta as published, [topic, checkpoint, stance] and [topic, stance]; no "uncommitted" (NaN)."""
    shape = (len(units.topics), len(units.steps), len(STANCES))
    v, half = np.full(shape, np.nan), np.full(shape, np.nan)
    labels = over(units.p[..., :3], units.p[..., :3].sum(-1, keepdims=True))
    there = ~np.isnan(labels)
    item = over(np.where(there, labels, 0).sum(2), there.sum(2))  # [checkpoint, item, label]
    for t in range(len(units.topics)):
        own = item[:, units.item_topic == t]
        n = (~np.isnan(own)).sum(1)
        v[t, :, :3] = over(np.nansum(own, 1), n)
        square = np.nansum((own - v[t, :, None, :3]) ** 2, 1)
        half[t, :, :3] = 1.96 * np.sqrt(over(square, np.where(n > 1, n * (n - 1), 0)))
    m = v - v[:, [base]]
    curve, width = (np.swapaxes(x, -1, -2)[..., base:] for x in (m, half))
    steps = units.steps[base:]
    eta, _ = _reached(curve, -width, width, (steps - steps[0]) / (steps[-1] - steps[0]))
    return {"M_raw": (("topic", "checkpoint", "stance"), m), "eta_raw": (("topic", "stance"), eta)}
