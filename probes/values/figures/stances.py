"""Figures of values over training: where a model stands, what moved, when, and which items changed sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np
import xarray as xr
from plotly.subplots import make_subplots

from probes.values.explorer import SIDES
from probes.values.units import opened
from workbench import tokens
from workbench.figures import theme
from workbench.figures.figure import Figure
from workbench.reading import Reading


def drawn(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have a chart of data take readings, too, and its figure know what it is of."""

    @wraps(function)
    def draw(reading: Reading | xr.Dataset, **options: Any) -> Figure:
        reading = opened(reading)
        return function(reading.data, **options).describe(reading)

    return draw


def sure(table: xr.Dataset, name: str, *dims: str) -> np.ndarray:
    """Where the p of a variable is beyond chance, at the table's own level."""
    p = table[name].transpose(*dims) if dims else table[name]
    return p.values <= 1 - table.attrs.get("level", 0.95) + 1e-12


def trajectories(table: Reading | xr.Dataset | Mapping[str, Reading | xr.Dataset], *, columns: int = 4) -> Figure:
    """Keyed stance of every topic over checkpoints with its interval (:func:`~probes.values.measures.stance`), of one
    run or of several by name.

    Dashed, where the table has it: mass, what the answers offered have of the probability.  Where it is low, stances
    are of little that the model would say.
    """
    several = isinstance(table, Mapping) and not isinstance(table, xr.Dataset)
    readings = {name: opened(own) for name, own in (table if several else {"": table}).items()}
    runs = {name: own.data for name, own in readings.items()}
    first = next(iter(runs.values()))
    topics = [str(t) for t in first["topic"].values]
    columns = min(columns, len(topics))
    rows = -(-len(topics) // columns)
    figure = _figure("keyed stance", Figure(make_subplots(
        rows, columns, shared_yaxes="all", shared_xaxes=True, subplot_titles=tokens.labels(topics, 24),
        vertical_spacing=0.25 / max(1, rows), horizontal_spacing=0.03,
    )))  # fmt: skip
    for i, (name, own) in enumerate(runs.items()):
        hue, x = theme.HUES[i % len(theme.HUES)], own["checkpoint"].values
        for j, topic in enumerate(topics):
            at = {"row": j // columns + 1, "col": j % columns + 1}
            value, low, high = (own[f"keyed{end}"].sel(topic=topic).values for end in ("", "_low", "_high"))
            figure.add_scatter(
                x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
                fillcolor=theme.faded(hue), hoverinfo="skip", showlegend=False, **at,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=value, mode="lines+markers", marker={"size": 4}, line={"color": hue, "width": 2}, name=name,
                legendgroup=name, showlegend=bool(name) and j == 0, hovertemplate="%{x}: %{y:+.2f}<extra></extra>",
                **at,
            )  # fmt: skip
            if "mass" in own:
                figure.add_scatter(
                    x=x, y=own["mass"].sel(topic=topic).values, mode="lines", name="mass of the answers",
                    legendgroup=f"mass {name}", showlegend=i == j == 0, opacity=0.7,
                    line={"color": hue if name else "#7F7F7F", "width": 1, "dash": "dash"},
                    hovertemplate="mass at %{x}: %{y:.2f}<extra></extra>", **at,
                )  # fmt: skip
    for j in range(max(0, len(topics) - columns), len(topics)):  # the lowest of each column, also above an empty place
        figure.update_xaxes(showticklabels=True, row=j // columns + 1, col=j % columns + 1)
    figure.update_annotations(font_size=12)
    figure.add_hline(y=0, line={"width": 1, "dash": "dot"})
    figure.update_layout(
        width=170 * columns + 90, height=150 * rows + 130, legend={"orientation": "h", "y": -0.25}, margin={"t": 70},
    )  # fmt: skip
    one = next(iter(readings.values()))
    named = {"step": "runs", "model": {"name": ", ".join(runs)}}
    return figure.describe(one if len(runs) == 1 else Reading(first, [*one.provenance, named]))


@drawn
def drifts(table: xr.Dataset) -> Figure:
    """Keyed drift of a run by topic and checkpoint (:func:`~probes.values.measures.drift`); hatched: not beyond chance
    (family-wise)."""
    value = table["keyed_M"].transpose("topic", "checkpoint").values
    beyond = sure(table, "keyed_M_p", "topic", "checkpoint")
    figure = _figure("keyed drift in this run (hatched: not beyond chance)")
    x = [str(c) for c in table["checkpoint"].values]
    y = tokens.labels(table["topic"].values)
    reach = float(np.nanmax(np.abs(value), initial=0.05))
    figure.add_heatmap(
        z=value, x=x, y=y, zmin=-reach, zmax=reach, colorscale=theme.stops("diverging"),
        colorbar={"title": {"text": "drift"}},
        text=np.where(beyond | np.isnan(value), "", "///"), texttemplate="%{text}", textfont={"size": 16},
        hovertemplate="%{y} at %{x}: %{z:+.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="checkpoint", type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(width=200 + 38 * len(x), height=140 + 26 * len(y))
    return figure


@drawn
def times(table: xr.Dataset) -> Figure:
    """From which step on a topic's keyed stance moves, with its interval; significant drifts only."""
    figure = _figure("onset of keyed drift in this run (significant drifts only)")
    keyed = table["keyed_onset"].values
    real = ~np.isnan(keyed)
    names = tokens.labels(table["topic"].values[real])
    low, high = (
        np.where(np.isnan(x), keyed, x)[real]
        for x in (table["keyed_onset_low"].values, table["keyed_onset_high"].values)
    )
    figure.add_scatter(
        x=keyed[real], y=names, mode="markers", marker={"size": 9, "color": theme.HUES[0]}, showlegend=False,
        error_x={"type": "data", "array": high - keyed[real], "arrayminus": keyed[real] - low, "symmetric": False},
    )  # fmt: skip
    steps = table["checkpoint"].values
    room = 0.02 * float(steps[-1] - steps[0])
    figure.update_xaxes(title_text="step", range=[steps[0] - room, steps[-1] + room])
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(width=520, height=150 + 26 * max(1, len(names)))
    return figure


@drawn
def sides(table: xr.Dataset) -> Figure:
    """Which items changed sides between two checkpoints (:func:`~probes.values.measures.sides`).  What is uncommitted
    (refused, none of the answers offered) is a side of its own."""
    names, count = [str(s) for s in table["before"].values], table["changed"].transpose("before", "after").values
    source, target = np.nonzero(count)
    start, end, topic = (table.attrs.get(name) for name in ("start", "end", "topic"))
    figure = _figure(f"items from {start} to {end}" + (f": {topic}" if topic else ""))
    hues = [theme.HUES[SIDES.get(n, 6)] for n in names]
    shown = [f"{n}{' or refused' if n == 'uncommitted' else ''}: " for n in names]
    counts = [*count.sum(1), *count.sum(0)]
    figure.add_sankey(
        node={
            "label": [f"{n}{number}" for n, number in zip(shown * 2, counts, strict=True)], "color": hues * 2,
            "pad": 14, "thickness": 14,
        },
        link={
            "source": source, "target": target + len(names), "value": count[source, target],
            "color": [theme.faded(hues[s]) for s in source],
        },
    )  # fmt: skip
    figure.update_layout(width=560, height=360)
    return figure


def _figure(title: str, figure: Figure | None = None) -> Figure:
    theme.register()
    figure = Figure() if figure is None else figure
    figure.update_layout(template="workbench", title_text=tokens.plotly(title))
    return figure
