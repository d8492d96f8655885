"""Does what moves inside move with what is said, more than anything would that moves in training?"""

from __future__ import annotations

import numpy as np
import xarray as xr

from probes.values.units import StanceUnits, family, opened
from probes.values.white.directions import NULLS, moves, tested
from probes.values.white.series import Series
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import over, p_value, quantiles
from workbench.variables import about

SAID = "correlation of projection drift and stance drift"
VARIABLES = {
    **family("r", SAID, ends=("low", "high")),
    "r_p": about(f"p of the {SAID}, by null", role="p", of="r"),
    **tested("r", f"the {SAID}"),
    **family("topic_r", f"{SAID}, of a topic", ends=("low", "high")),
    "topic_r_p": about(f"p of the {SAID}, of a topic, by null", role="p", of="topic_r"),
    **tested("topic_r", f"the {SAID}, of a topic"),
    "effective": about("independent checkpoints that two series are worth", "checkpoints", role="count"),
    "said": about("keyed stance drift"),
    "projected": about("projection drift", "SD"),
    "projected_null_low": about("lower end of projection drift on null directions", "SD", role="null", of="projected"),
    "projected_null_high": about("upper end of projection drift on null directions", "SD", role="null", of="projected"),
}


def behaviour(
    data: Reading | xr.Dataset,
    readings: Reading | xr.Dataset | None = None,
    *,
    direction: str = "pooled",
    changes: bool = False,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> Reading:
    """Correlation of projection drift with keyed stance drift, and of drift on directions that mean nothing with it.

    In training nearly everything moves one way, and what moves one way correlates: in one replication of persona
    vectors covariance-matched random directions came to .94-.97, as high as the vectors (n = 24, best of 28 layers).
    So |r| is compared with what the nulls of :func:`projections` reach, each draw taking its best layer.

    Args:
        data: ``tracker.table("whitebox")``.
        readings: of any instrument, of the same items: ``tracker.readings("sampled")``; None: WhiteBox's own p, which
            come from the very prompts of the states.
        direction: "pooled" or "own topic".
        changes: correlate the steps from one checkpoint to the next instead of drifts from the baseline: a common trend
            is then no more than one common step.

    Returns, over the checkpoints that both have, the baseline left out (steps between them with ``changes``):
        r [layer]: over all topics and checkpoints; _low, _high: bootstrap over clusters, the same for both.
        r_p [null, layer]: against the best layer of each draw; r_battery_p [layer]: the largest of the nulls'.
        r_null_high [null]: the ``level`` quantile of the best layers' |r|.
        topic_r [topic, layer], topic_r_p and so on: over the checkpoints of one topic alone.
        effective [topic, layer]: how many independent checkpoints a topic's two series are worth,
            n (1 - a b) / (1 + a b) with a, b their lag-1 autocorrelations (Bretherton et al. 1999, eq. 31): with two
            trends hardly more than one or two, whatever n is, so that their usual p would mean nothing.  Lag-1
            autocorrelations of short series come out low, and this number high.
        said [checkpoint, topic], projected [checkpoint, topic, layer]: what is correlated; projected_null_low,
            projected_null_high [null, checkpoint, topic, layer]: where ``level`` of the null directions lie.

    Raises InputError for readings of other items, and fewer than three checkpoints besides the baseline.
    """
    series = Series(data)
    names = series.data["direction"].values.tolist()
    if direction not in names:
        raise InputError(f"There is no direction {direction!r}. Use one of: {', '.join(map(repr, names))}.")
    own = names.index(direction)
    change, null = moves(series)
    change, null = change[..., own], null[..., own]
    others = [] if readings is None else [opened(readings)]
    spoken, at, where = _said(series, *others)
    if len(at) - 1 < 3:
        raise InputError(
            f"{len(at) - 1} checkpoints besides the baseline have both projections and readings, and a correlation "
            "over fewer than 3 is always near 1. Read more checkpoints."
        )
    units = series.units
    within, without = units.means(change[at]), units.means(spoken)
    inside, star = units.mean(within), units.again(within, draws, seed)
    outside, outside_star = units.mean(without), units.again(without, draws, seed)
    null = null[:, :, :, at]  # [null, draw, topic, checkpoint, layer]

    def ready(x: np.ndarray, axis: int) -> np.ndarray:
        return np.diff(x, axis=axis) if changes else np.delete(x, where, axis)

    said, projected, null = ready(outside, 1), ready(inside, 1), ready(null, 3)
    said_star, projected_star = ready(outside_star, 2), ready(star, 2)
    r, topic_r = _over_all(said[..., None], projected), _over_steps(said[..., None], projected)
    r_star = quantiles(_over_all(said_star[..., None], projected_star), level)
    t_star = quantiles(_over_steps(said_star[..., None], projected_star), level)
    r_null = np.abs(_over_all(said[..., None], null))  # [null, draw, layer]
    t_null = np.abs(_over_steps(said[..., None], null))  # [null, draw, topic, layer]
    best, topic_best = _most(r_null), _most(t_null)
    r_p, topic_p = _reached(r, best), _reached(topic_r, topic_best)
    steps = series.steps[at]
    found = {
        "r": (("layer",), r), "r_low": (("layer",), r_star[0]), "r_high": (("layer",), r_star[1]),
        "r_p": (("null", "layer"), r_p), "r_battery_p": (("layer",), r_p.max(0)),
        "r_null_high": (("null",), np.quantile(best, level, axis=1)),
        "topic_r": (("topic", "layer"), topic_r), "topic_r_low": (("topic", "layer"), t_star[0]),
        "topic_r_high": (("topic", "layer"), t_star[1]),
        "topic_r_p": (("null", "topic", "layer"), topic_p), "topic_r_battery_p": (("topic", "layer"), topic_p.max(0)),
        "topic_r_null_high": (("null", "topic"), np.quantile(topic_best, level, axis=1)),
        "effective": (("topic", "layer"), _effective(said[..., None], projected)),
        "said": (("topic", "checkpoint"), said), "projected": (("topic", "checkpoint", "layer"), projected),
    }  # fmt: skip
    tail = (1 - level) / 2
    for name, q in (("low", tail), ("high", 1 - tail)):
        bound = np.quantile(null, q, axis=1)
        found[f"projected_null_{name}"] = (("null", "topic", "checkpoint", "layer"), bound)
    attrs = {"level": level, "draws": draws, "direction": direction, "changes": int(changes)}
    coords = {"checkpoint": steps[1:] if changes else np.delete(steps, where), "null": list(NULLS)}
    order = ("null", "checkpoint", "topic", "layer")
    said = {"interval": f"percentile over {units.clusters} clusters of items, within topics"}
    return series.derived("behaviour", found, VARIABLES, coords, order, attrs | said, *others, **attrs, seed=seed)


def _said(series: Series, other: Reading | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """Keyed stance less the baseline's [checkpoint, item, sample], of checkpoints that both have; their numbers in the
    series, and which of them is the baseline."""
    if other is None:
        p = series.data["p"].rename(framing="sample")
        columns = {x: ("item", series.data[x].values) for x in ("topic", "polarity", "cluster")}
        readings = xr.Dataset({"p": p, **columns}).drop_vars("sample", errors="ignore")
    else:
        readings = other.data
    items = series.data["item"].values.astype(str)
    if "item" not in readings.coords or set(readings["item"].values.astype(str)) != set(items):
        raise InputError(
            "The readings and the table are not of the same items, so they cannot be put beside each other. Take both "
            "from one tracker."
        )
    order = np.argsort(readings["item"].values.astype(str))[np.argsort(np.argsort(items))]
    spoken = StanceUnits(readings.isel(item=order))
    both = [step for step in series.steps.tolist() if step in spoken.steps]
    base = int(series.steps[series.base])
    if base not in both:
        raise InputError(f"The readings have no checkpoint {base}, the baseline. Read it with this instrument, too.")
    keyed = spoken.x[[spoken.number(step) for step in both]][..., 4]  # [checkpoint, item, sample]
    return keyed - keyed[[both.index(base)]], np.array([series.steps.tolist().index(s) for s in both]), both.index(base)


def _correlation(a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Pearson's r over ``axes``, of the places where both have a value; NaN where either does not vary."""
    a, b = np.broadcast_arrays(a, b)
    there = ~np.isnan(a) & ~np.isnan(b)
    n = there.sum(axes, keepdims=True)
    x, y = (np.where(there, v, 0.0) for v in (a, b))
    x, y = (np.where(there, v - over(v.sum(axes, keepdims=True), n), 0.0) for v in (x, y))
    xx, yy = (x * x).sum(axes), (y * y).sum(axes)
    return over((x * y).sum(axes), np.where((xx > 1e-20) & (yy > 1e-20), np.sqrt(xx * yy), 0))


def _over_all(said: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """[..., topic, checkpoint, layer] -> [..., layer]"""
    return _correlation(said, projected, (-3, -2))


def _over_steps(said: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """[..., topic, checkpoint, layer] -> [..., topic, layer]"""
    return _correlation(said, projected, (-2,))


def _most(r: np.ndarray) -> np.ndarray:
    """|r| [null, draw, ..., layer] -> of the best layer; NaN where no layer has one."""
    found = np.where(np.isnan(r), -1, r).max(-1)
    return np.where(found < 0, np.nan, found)


def _reached(r: np.ndarray, best: np.ndarray) -> np.ndarray:
    """r [..., layer] against best layers [null, draw, ...] -> p [null, ..., layer]"""
    return np.stack([p_value(np.abs(r), np.broadcast_to(x[..., None], (len(x), *r.shape))) for x in best])


def _effective(said: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """[topic, checkpoint, layer] -> [topic, layer]"""
    n = projected.shape[1]

    def lag(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(1, keepdims=True)
        return over((x[:, 1:] * x[:, :-1]).sum(1), (x * x).sum(1))

    both = lag(np.broadcast_to(said, projected.shape)) * lag(projected)
    return np.clip(over(n * (1 - both), 1 + both), 1, n)
