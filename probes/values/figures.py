"""Figures of values over training, of what :mod:`probes.values.measures` and its neighbours give.

``reading.figure(kind)`` finds them, too: :data:`CHARTS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from probes.values.explorer import SIDES as SIDE_HUES
from workbench.errors import InputError
from workbench.figures.charts import Chart
from workbench.figures.colours import HUES
from workbench.figures.figure import drawn
from workbench.figures.plot import GREY, INK, Axis, Cells, Flow, Line, Mark, Panel, Plot, Points, Region, Rule, whole
from workbench.figures.source import Source

__all__ = [
    "CHARTS", "agreement", "behaviour", "directions", "drifts", "gap", "margins", "plane", "runs", "sides", "times",
    "trajectories", "weights",
]  # fmt: skip

SYMBOLS = ("circle", "square", "diamond", "triangle", "cross", "x")
"""Of runs of one arm, and of topics beyond the number of hues."""


# ---------------------------------------------------------------- where a model stands, what moved, and when


@partial(drawn, several=True)
def trajectories(table: xr.Dataset | Mapping[str, xr.Dataset], *, columns: int = 4) -> Plot:
    """Keyed stance of every topic over checkpoints with its interval (:func:`~probes.values.measures.stance`), of one
    run or of several by name.

    Dashed, where the table has it: mass, what the answers offered have of the probability.  Where it is low, stances
    are of little that the model would say.
    """
    tables = {"": table} if isinstance(table, xr.Dataset) else table
    topics = _names(next(iter(tables.values())), "topic")
    panels = []
    for topic in topics:
        marks: list[Mark] = [Rule(0)]
        for hue, (name, run) in enumerate(tables.items()):
            own = run.sel(topic=topic)
            steps = own["checkpoint"].values
            marks.append(Line(steps, own["keyed"].values, name, **_interval(own, "keyed"), hue=hue))
            if "mass" in own:
                look = {"hue": hue if name else GREY, "dash": "dash", "markers": False, "width": 1}
                marks.append(Line(steps, own["mass"].values, "mass of the answers", **look))
        panels.append(Panel(marks, Axis("step", scale="whole"), "keyed stance", title=topic))
    columns = min(columns, len(topics))
    size = 80 + 190 * columns, 160 * -(-len(topics) // columns)
    return Plot(panels, "keyed stance", columns=columns, shared="xy", shows=["keyed"], size=size)


@drawn
def drifts(table: xr.Dataset) -> Plot:
    """Keyed drift of a run by topic and checkpoint (:func:`~probes.values.measures.drift`); hatched: not beyond chance
    (family-wise)."""
    moved = table.transpose("topic", "checkpoint", ...)
    reach = float(np.nanmax(np.abs(moved["keyed_M"]), initial=0.05))
    bar = Source(table).title("keyed_M", short=True)
    cells = Cells(moved["keyed_M"], "diverging", -reach, reach, bar, hatched=_by_chance(moved, "keyed_M"))
    down = Axis(names=_names(table, "topic"), reversed=True)
    title = "keyed drift in this run (hatched: not beyond chance)"
    return Plot([Panel([cells], _checkpoints(table), down)], title, shows=["keyed_M"])


@drawn
def times(table: xr.Dataset) -> Plot:
    """From which step on a topic's keyed stance moves, with its interval; significant drifts only."""
    own = table.dropna("topic", subset=["keyed_onset"])
    topics, steps = _names(own, "topic"), table["checkpoint"].values
    onsets = Points(own["keyed_onset"].values, range(len(topics)), **_interval(own, "keyed_onset", "x_"), size=9)
    room = 0.02 * float(steps[-1] - steps[0])
    across = Axis("step", range=(steps[0] - room, steps[-1] + room), scale="whole")
    title = "onset of keyed drift in this run (significant drifts only)"
    return Plot([Panel([onsets], across, Axis(names=topics, reversed=True))], title, shows=["keyed_onset"])


@drawn
def sides(table: xr.Dataset) -> Plot:
    """Which items changed sides between two checkpoints (:func:`~probes.values.measures.sides`).  What is uncommitted
    (refused, none of the answers offered) is a side of its own."""
    names, count = _names(table, "before"), table["changed"].transpose("before", "after").values
    nodes = [
        (column, f"{name}{' or refused' * (name == 'uncommitted')}: {items}", SIDE_HUES.get(name, 6))
        for column, totals in enumerate((count.sum(1), count.sum(0)))
        for name, items in zip(names, totals, strict=True)
    ]
    links = [(int(a), len(names) + int(b), float(count[a, b])) for a, b in np.argwhere(count)]
    start, end, topic = (table.attrs.get(name) for name in ("start", "end", "topic"))
    title = f"items from {start} to {end}" + (f": {topic}" if topic else "")
    return Plot([Panel([Flow(nodes, links)])], title)


# ---------------------------------------------------------------- beside something else


@drawn
def gap(table: xr.Dataset) -> Plot:
    """Where the training data stand against how far the model moved, by topic: of ``data_gap``.

    Bars are simultaneous intervals; filled: beyond chance (family-wise).  On the dotted line the model moved as far as
    the data stand.  The title has the correlation over topics and its p by shuffling them; what is to be said of few
    topics stands below it.
    """
    r, low, high, p = (float(table[f"pearson{end}"]) for end in ("", "_low", "_high", "_p"))
    said = f"r = {r:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.3f}, {table.attrs['topics']} topics"
    x, y, band = table["training"].values, table["drift"].values, _interval(table, "drift_band", "y_")
    shown = np.abs([x, y, *band.values()])
    reach = 1.1 * float(shown[np.isfinite(shown)].max(initial=0.05))
    points = Points(x, y, **band, filled=_sure(table, "drift_p"), size=9, names=_names(table, "topic"))
    diagonal = Line([-reach, reach], [-reach, reach], hue=GREY, dash="dot", markers=False, width=1, hover=["", ""])
    across, up = (Axis(Source(table).title(name, short=True), range=(-reach, reach)) for name in ("training", "drift"))
    title = f"training data and drift: {said if np.isfinite(r) else 'too few topics for a correlation'}"
    panel = Panel([diagonal, Rule(0, dash="solid"), points], across, up)
    return Plot([panel], title, note=table.attrs.get("warning", ""), shows=["training", "drift", "pearson"])


@drawn
def runs(table: xr.Dataset) -> Plot:
    """Drift of several runs by topic: of ``compare``.  Filled: beyond chance; bars: simultaneous intervals, over items.

    Both are of the run that was read: two seeds of one recipe differ, too.  ``arm_difference`` says whether arms do.

    With arms, a run has the colour of its arm and a shape of its own in it: seeds of one recipe are to be told from
    differences between recipes.
    """
    names, topics = _names(table, "run"), _names(table, "topic")
    arms = _names(table, "run_arm") if "run_arm" in table else names
    known = list(dict.fromkeys(arms))
    # Runs of a topic stand below each other, with room for one more between topics.
    places = (np.arange(len(names)) - (len(names) - 1) / 2) / (len(names) + 1)
    marks: list[Mark] = [Rule(0, "x", dash="solid")]
    for i, name in enumerate(names):
        own, arm = table.isel(run=i), known.index(arms[i])
        band, symbol = _interval(own, "keyed_M_band", "x_"), SYMBOLS[arms[:i].count(arms[i]) % len(SYMBOLS)]
        at = np.arange(len(topics)) + places[i]
        filled = _sure(own, "keyed_M_p")
        marks.append(Points(own["keyed_M"].values, at, name, arm, **band, filled=filled, symbol=symbol))
    down = Axis(names=topics, reversed=True)
    panel = Panel(marks, Source(table).title("keyed_M", short=True), down)
    return Plot([panel], "keyed drift in each run (filled: beyond chance)", shows=["keyed_M"])


@drawn
def agreement(table: xr.Dataset) -> Plot:
    """Rank correlation of keyed stance between instruments over checkpoints: of ``agreement``.

    Two readings by one instrument have a correlation below 1, too: its noise is the ceiling.
    """
    marks: list[Mark] = [Rule(0)]
    for hue, pair in enumerate(_names(table, "pair")):
        own = table.isel(pair=hue).dropna("checkpoint", subset=["spearman"])
        steps = own["checkpoint"].values
        band = _interval(own, "spearman")
        marks.append(Line(steps, own["spearman"].values, pair, **band, hue=hue, bars=len(steps) == 1))
    lowest = min(0.0, float(table["spearman_low"].min())) - 0.05
    up = Axis(Source(table).title("spearman"), range=(lowest, 1.05))
    title = "agreement of instruments (rank correlation over items)"
    return Plot([Panel(marks, Axis("step", scale="whole"), up)], title, shows=["spearman"])


@drawn
def plane(table: xr.Dataset) -> Plot:
    """Impartial beneficence against instrumental harm by checkpoint: of ``greatest_good.scores``.

    The ellipse is one standard deviation of people about their mean; the grey rectangle what a model without opinion
    gives, at its widest over the checkpoints; bars: simultaneous intervals.
    """
    lacking = {"IB", "IH"} - set(_names(table, "scale"))
    if lacking:
        raise InputError(f"The scores have no scale {', '.join(sorted(lacking))}. The plane needs both, IB and IH.")
    ih, ib = (table.sel(scale=scale) for scale in ("IH", "IB"))
    x, y, steps = ih["score"].values, ib["score"].values, _names(table, "checkpoint")
    half_x, half_y = (float(own["null"].max()) for own in (ih, ib))
    (mean_x, sd_x), (mean_y, sd_y) = ((float(own["lay"]), float(own["lay_sd"])) for own in (ih, ib))
    turn, corners = np.linspace(0, 2 * np.pi, 73), np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]])
    points = Points(
        x, y, "checkpoints", np.linspace(0, 1, len(steps)), **_interval(ih, "score_band", "x_"),
        **_interval(ib, "score_band", "y_"), names=[steps[0], *[""] * (len(steps) - 2), *steps[1:][-1:]],
        hover=[f"step {s}: IH {a:.2f}, IB {b:.2f}" for s, a, b in zip(steps, x, y, strict=True)],
    )  # fmt: skip
    marks = [
        Region(4 + half_x * corners[0], 4 + half_y * corners[1], "without opinion"),
        Region(mean_x + sd_x * np.cos(turn), mean_y + sd_y * np.sin(turn), hue=4),
        Rule(4), Rule(4, "x"), Points([mean_x], [mean_y], "people (mean, 1 SD)", 4, symbol="diamond", size=11),
        Line(x, y, hue=0, markers=False, width=1.5), points,
    ]  # fmt: skip
    across, up = (
        Axis(name, ticks=range(1, 8), range=(0.8, 7.2)) for name in ("instrumental harm", "impartial beneficence")
    )
    panel = Panel(marks, across, up, square=True)
    return Plot([panel], "instrumental harm and impartial beneficence", shows=["score"])


# ---------------------------------------------------------------- inside


@drawn
def margins(table: xr.Dataset, *, drift: bool = False, columns: int = 3) -> Plot:
    """Stance margin by layer and checkpoint, a panel for each topic (of :func:`white.margins`); hatched: not
    different from 0, family-wise.

    The line is the layer from which on the stance is settled (``depth_sure``), where there is one.  ``drift``: margin
    less the baseline's instead.
    """
    name, title = ("M", "stance margin less the baseline's") if drift else ("margin", "stance margin")
    layers, steps = table["layer"].values, _names(table, "checkpoint")
    reach = float(np.nanmax(np.abs(table[name]), initial=1e-6))
    panels = []
    for t, topic in enumerate(_names(table, "topic")):
        own = table.isel(topic=t).transpose("layer", "checkpoint", ...)
        hatched = _by_chance(own, name)
        marks: list[Mark] = [Cells(own[name], "diverging", -reach, reach, "log-odds (nats)", hatched=hatched)]
        if not drift:
            depth = own["depth_sure"].values
            hover = [f"settled from layer {d:g} on, at {s}" for d, s in zip(depth, steps, strict=True)]
            rows = np.interp(depth, layers, range(len(layers)))
            marks.append(Line(range(len(steps)), rows, hue="#000000", width=1.5, hover=hover))  # cells are never dark
        up = Axis("layer", names=_names(table, "layer"))
        panels.append(Panel(marks, _checkpoints(table), up, title=topic))
    said = f"{title} (hatched: not beyond chance)"
    return Plot(panels, said, columns=columns, shared="xy", shows=[name])


@drawn
def directions(table: xr.Dataset, *, fitted: str = "pooled") -> Plot:
    """The stance direction over checkpoints, a line for each layer (of :func:`white.directions`): how far it has
    turned, and how well the baseline's and a refitted one tell labels apart (held-out AUC, mean over topics).

    ``fitted``: "pooled" or a topic, of the rotation; AUCs are those of the pooled direction.
    """
    if fitted not in table["fitted"].values:
        raise InputError(f"There is no direction of {fitted!r}. There are: {', '.join(_names(table, 'fitted'))}.")
    # Where every prompt ends with the same token, embeddings have no direction.
    table = table.dropna("layer", how="all", subset=["mean_auc"])
    pooled, places = table.sel(direction="pooled"), range(table.sizes["checkpoint"])
    panels = []
    for title, name, own in (
        ("rotation (1: where it was)", "rotation", table.sel(fitted=fitted)),
        ("AUC, baseline's direction", "mean_auc", pooled.sel(kind="fixed")),
        ("AUC, refitted", "mean_auc", pooled.sel(kind="refit")),
    ):
        auc = name == "mean_auc"
        marks: list[Mark] = [Rule(0.5 if auc else 1)]
        for l, hue in enumerate(np.linspace(0, 1, table.sizes["layer"])):
            at = own.isel(layer=l)
            layer = f"layer {at['layer'].item()}"
            marks.append(Line(places, at[name].values, layer, **_interval(at, name), hue=hue, bars=True))
        up = Axis(Source(table).title(name, short=True), range=(0, 1.04) if auc else None)
        panels.append(Panel(marks, _checkpoints(table), up, title))
    return Plot(panels, f"stance direction, fitted: {fitted}", columns=3, shows=["rotation", "mean_auc"])


@drawn
def behaviour(table: xr.Dataset, *, layer: int | None = None) -> Plot:
    """Projection drift against keyed stance drift, topics by checkpoints, with the bars in which null directions lie;
    beside, r of every layer against what the best layer of a null direction reaches (of :func:`white.behaviour`).

    ``layer``: which; None: that of the largest \\|r\\|, which is what the null is the best of, too.
    """
    r = table["r"].values
    if np.isnan(r).all():
        raise InputError("No layer has a correlation: projections or stances do not vary.")
    layers = table["layer"].values.tolist()
    if layer is not None and layer not in layers:
        raise InputError(f"There is no layer {layer} in the table; there are {layers}.")
    chosen = layers[int(np.nanargmax(np.abs(r)))] if layer is None else layer
    own, steps, label = table.sel(layer=chosen), _names(table, "checkpoint"), Source(table).title
    said, null = own["said"].values.ravel(), own.transpose("null", *own["said"].dims, ...)
    low = null["projected_null_low"].min("null").values.ravel()
    high = null["projected_null_high"].max("null").values.ravel()
    nulls = Points(said, 0 * said, "null directions", GREY, y_low=low, y_high=high, symbol="tick", faint=True)
    marks: list[Mark] = [nulls]
    for t, topic in enumerate(_names(table, "topic")):
        x, y = (own[name].isel(topic=t).values for name in ("said", "projected"))
        hover = [f"{topic}, {s}: said {a:+.3f}, projected {b:+.2f} SD" for s, a, b in zip(steps, x, y, strict=True)]
        symbol = SYMBOLS[t // len(HUES) % len(SYMBOLS)]
        marks.append(Line(x, y, topic, hue=t, markers=False, width=1, legend=False))
        marks.append(Points(x, y, topic, t, symbol=symbol, size=6, hover=hover))
    bound, level = float(table["r_null_high"].max()), 100 * float(table.attrs["level"])
    reached = [
        Region([*layers, *layers[::-1]], np.repeat([bound, -bound], len(layers)),
               f"best layer of null directions ({level:.0f} %)"),
        Line(layers, r, hue=INK, markers=False, width=1.5),
        Points(layers, r, "", INK, **_interval(table, "r", "y_"), filled=_sure(table, "r_battery_p"), size=7),
    ]  # fmt: skip
    across = whole("layer", layers)
    known = f"layer {chosen}: r = {float(own['r']):+.2f}, p = {float(own['r_battery_p']):.2g} (all nulls)"
    panels = [
        Panel(marks, label("said"), label("projected"), known, width=1.6),
        Panel(reached, across, Axis("r", range=(-1.05, 1.05)), "r by layer"),
    ]
    return Plot(panels, "behaviour and projection (filled: beyond all nulls)", shows=["r", "projected"])


@drawn
def weights(table: xr.Dataset, *, value: str = "change") -> Plot:
    """How far each module's weights are from the first checkpoint's, relative to their norm (of
    :func:`white.weights`); ``value``: "change", "update", or "cosine" of successive updates."""
    titles = {
        "change": "weights less the first checkpoint's, over their norm",
        "update": "updates, over the norm of the first checkpoint's weights",
        "cosine": "cosine of an update with the one before",
    }
    if value not in titles:
        raise InputError(f"value={value!r} is not in the table of weights. Use one of: {', '.join(titles)}.")
    own = table.transpose("module", "checkpoint", ...)
    modules, steps = _names(own, "module"), _names(own, "checkpoint")
    # What all modules begin with would leave no room for how they differ.
    rows = [name[os.path.commonprefix(modules).rfind(".") + 1 :] for name in modules]
    told = np.where(own[value].isnull(), own["reason"], np.char.mod("%.4g", own[value].values))
    hover = [
        [f"{module} at {step}: {text}" for step, text in zip(steps, row, strict=True)]
        for module, row in zip(modules, told, strict=True)
    ]
    scale, low, high = ("diverging", -1, 1) if value == "cosine" else ("sequential", 0, None)
    cells = Cells(own[value], scale, low, high, value, hover=hover)
    panel = Panel([cells], _checkpoints(table), Axis(names=rows, reversed=True))
    return Plot([panel], titles[value], shows=[value])


# ---------------------------------------------------------------- common


def _names(table: xr.Dataset, axis: str) -> list[str]:
    return [str(name) for name in table[axis].values]


def _checkpoints(table: xr.Dataset) -> Axis:
    """Checkpoints as names, one as wide as the other."""
    return Axis("checkpoint", names=_names(table, "checkpoint"))


def _interval(table: xr.Dataset, name: str, axis: str = "") -> dict[str, Any]:
    """Ends of an interval, as marks take them; ``axis``: "x\\_" or "y\\_" of points."""
    return {f"{axis}{end}": table[f"{name}_{end}"].values for end in ("low", "high")}


def _sure(table: xr.Dataset, p: str) -> np.ndarray:
    """Where a p is beyond chance, at the table's own level."""
    return table[p].values <= 1 - table.attrs.get("level", 0.95) + 1e-12


def _by_chance(table: xr.Dataset, name: str) -> np.ndarray:
    """Where a variable has a value, and that is not beyond chance."""
    return table[name].notnull().values & ~_sure(table, f"{name}_p")


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
