"""Figures of what goes on inside, of what :mod:`probes.values.white` gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from probes.values.figures.stances import _figure, drawn, sure
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.figure import Figure

TOP = 84
"""Room for a title above the titles of panels."""
SYMBOLS = ("circle", "diamond-open", "square", "x")
"""Of topics beyond the number of hues."""


@drawn
def margins(table: xr.Dataset, *, drift: bool = False, columns: int = 3) -> Figure:
    """Stance margin by layer and checkpoint, a panel for each topic (of :func:`white.margins`); hatched: not
    different from 0, family-wise.

    The line is the layer from which on the stance is settled (``depth_sure``), where there is one.  ``drift``: margin
    less the baseline's instead.
    """
    name, title = ("M", "stance margin less the baseline's") if drift else ("margin", "stance margin")
    topics, layers = [str(t) for t in table["topic"].values], table["layer"].values
    figure, places = _panels(topics, columns, f"{title} (hatched: not beyond chance)")
    x = [str(c) for c in table["checkpoint"].values]
    value = table[name].transpose("topic", "checkpoint", "layer").values
    beyond = sure(table, f"{name}_p", "topic", "checkpoint", "layer")
    depth = table["depth_sure"].transpose("topic", "checkpoint").values
    reach = float(np.nanmax(np.abs(value), initial=1e-6))
    for t, at in enumerate(places):
        figure.add_heatmap(
            z=value[t].T, x=x, y=layers, zmin=-reach, zmax=reach, colorscale=theme.stops("diverging"), showscale=t == 0,
            colorbar={"title": {"text": "log-odds (nats)"}}, texttemplate="%{text}",
            text=np.where(beyond[t] | np.isnan(value[t]), "", "///").T, textfont={"size": 8},
            hovertemplate=f"{tokens.plotly(topics[t])}, layer %{{y}} at %{{x}}: %{{z:+.3f}}<extra></extra>", **at,
        )  # fmt: skip
        if not drift:
            figure.add_scatter(
                x=x, y=depth[t], mode="lines+markers", line={"color": "#000000", "width": 1.5}, marker={"size": 4},
                hovertemplate="settled from layer %{y} on, at %{x}<extra></extra>", showlegend=False, **at,
            )  # fmt: skip
    figure.update_xaxes(type="category")
    _name_edges(figure, places, "checkpoint", "layer")
    rows = places[-1]["row"]
    width = 150 + min(len(topics), columns) * (50 + 20 * len(x))
    figure.update_layout(width=width, height=150 + rows * (80 + 12 * len(layers)), margin={"t": TOP})
    return figure


@drawn
def directions(table: xr.Dataset, *, fitted: str = "pooled") -> Figure:
    """The stance direction over checkpoints, a line for each layer (of :func:`white.directions`): how far it has
    turned, and how well the baseline's and a refitted one tell labels apart (held-out AUC, mean over topics).

    ``fitted``: "pooled" or a topic, of the rotation; AUCs are those of the pooled direction.
    """
    if fitted not in table["fitted"].values:
        raise InputError(
            f"There is no direction of {fitted!r}. There are: {', '.join(map(str, table['fitted'].values))}."
        )
    panels = ["rotation (1: where it was)", "AUC, baseline's direction", "AUC, refitted"]
    panes = make_subplots(1, 3, subplot_titles=panels, horizontal_spacing=0.07)
    figure = _figure(f"stance direction, fitted: {fitted}", Figure(panes))
    steps, layers = [str(c) for c in table["checkpoint"].values], table["layer"].values
    hues = sample_colorscale(theme.SEQUENTIAL, np.linspace(0, 0.9, len(layers)).tolist())
    auc = {x: table.sel(kind=kind, direction="pooled") for x, kind in ((2, "fixed"), (3, "refit"))}
    for l, layer in enumerate(layers):
        if table["mean_auc"].sel(layer=layer).isnull().all():
            continue  # the same token at the end of every prompt: embeddings have no direction
        for column in (1, 2, 3):
            own, name = (table.sel(fitted=fitted), "rotation") if column == 1 else (auc[column], "mean_auc")
            value, low, high = (own[name + end].sel(layer=layer).values for end in ("", "_low", "_high"))
            figure.add_scatter(
                x=steps, y=value, mode="lines+markers", line={"color": hues[l], "width": 2}, marker={"size": 4},
                name=f"layer {layer}", legendgroup=str(layer), showlegend=column == 1, row=1, col=column,
                customdata=np.stack([low, high], 1),
                hovertemplate=f"layer {layer} at %{{x}}: %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]"
                "<extra></extra>",
                error_y=_bars(value, low, high, hues[l]),
            )  # fmt: skip
    figure.add_hline(y=1, line={"width": 1, "dash": "dot"}, row=1, col=1)
    for column in (2, 3):
        figure.add_hline(y=0.5, line={"width": 1, "dash": "dot"}, row=1, col=column)
        figure.update_yaxes(range=[0, 1.04], row=1, col=column)
    figure.update_xaxes(title_text="checkpoint", type="category")
    figure.update_layout(width=980, height=370, margin={"t": TOP})
    return figure


@drawn
def behaviour(table: xr.Dataset, *, layer: int | None = None) -> Figure:
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
    own = table.sel(layer=chosen)
    p = float(own["r_battery_p"])
    said = f"layer {chosen}: r = {float(own['r']):+.2f}, p = {p:.2g} (all nulls)"
    figure = _figure("behaviour and projection", Figure(make_subplots(
        1, 2, subplot_titles=[said, "r, layer by layer"], column_widths=[0.62, 0.38], horizontal_spacing=0.1,
    )))  # fmt: skip
    low, high = own["projected_null_low"].min("null"), own["projected_null_high"].max("null")
    for t, topic in enumerate(table["topic"].values):
        hue, symbol = theme.HUES[t % len(theme.HUES)], SYMBOLS[t // len(theme.HUES) % len(SYMBOLS)]
        x, y, ends = (v.sel(topic=topic).values for v in (own["said"], own["projected"], low))
        figure.add_scatter(
            x=x, y=np.zeros(len(x)), mode="markers", marker={"size": 1, "color": "#999999"}, showlegend=False,
            hoverinfo="skip", row=1, col=1,
            error_y={
                "type": "data", "array": high.sel(topic=topic).values, "arrayminus": -ends, "symmetric": False,
                "color": "rgba(128,128,128,0.35)", "thickness": 5, "width": 0,
            },
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", line={"color": hue, "width": 1},
            marker={"size": 6, "color": hue, "symbol": symbol},
            name=tokens.labels([topic])[0], text=[str(c) for c in table["checkpoint"].values],
            hovertemplate="%{text}: said %{x:+.3f}, projected %{y:+.2f} SD<extra>%{fullData.name}</extra>",
            row=1, col=1,
        )  # fmt: skip
    bound = float(table["r_null_high"].max())
    shown, beyond = 100 * float(table.attrs["level"]), sure(table, "r_battery_p")
    figure.add_scatter(
        x=[*layers, *layers[::-1]], y=[bound] * len(layers) + [-bound] * len(layers), mode="lines", fill="toself",
        line={"width": 0}, fillcolor="rgba(128,128,128,0.25)", hoverinfo="skip", row=1, col=2,
        name=f"best layer of null directions ({shown:.0f} %)",
    )  # fmt: skip
    figure.add_scatter(
        x=layers, y=r, mode="lines+markers", line={"color": "#000000", "width": 1.5}, row=1, col=2, showlegend=False,
        marker={"size": 7, "symbol": np.where(beyond, "circle", "circle-open").tolist(), "color": "#000000"},
        error_y=_bars(r, table["r_low"].values, table["r_high"].values, "#000000"),
        hovertemplate="layer %{x}: r = %{y:+.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="keyed stance drift", row=1, col=1)
    figure.update_yaxes(title_text="projection drift (SD)", row=1, col=1)
    figure.update_xaxes(title_text="layer (filled: beyond all nulls)", row=1, col=2)
    figure.update_yaxes(range=[-1.05, 1.05], row=1, col=2)
    figure.update_layout(width=920, height=440, margin={"t": TOP})
    return figure


@drawn
def weights(table: xr.Dataset, *, value: str = "change") -> Figure:
    """How far each module's weights are from the first checkpoint's, relative to their norm (of
    :func:`white.weights`); ``value``: "change", "update", or "cosine" of successive updates."""
    titles = {
        "change": "weights less the first checkpoint's, over their norm",
        "update": "updates, over the norm of the first checkpoint's weights",
        "cosine": "cosine of an update with the one before",
    }
    if value not in titles:
        raise InputError(f"value={value!r} is not in the table of weights. Use one of: {', '.join(titles)}.")
    z = table[value].transpose("module", "checkpoint").values
    x, y = [str(c) for c in table["checkpoint"].values], tokens.labels(table["module"].values, 60)
    figure = _figure(titles[value])
    reasons = table["reason"].transpose("module", "checkpoint").values
    figure.add_heatmap(
        z=z, x=x, y=y, colorscale=theme.stops("diverging" if value == "cosine" else "sequential"),
        zmin=-1 if value == "cosine" else 0, zmax=1 if value == "cosine" else None, customdata=reasons,
        hovertemplate="%{y} at %{x}: %{z:.4g} %{customdata}<extra></extra>", hoverongaps=False,
        colorbar={"title": {"text": value}},
    )  # fmt: skip
    figure.update_xaxes(title_text="checkpoint", type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(width=300 + 38 * len(x), height=140 + 18 * len(y))
    return figure


def _panels(topics: list[str], columns: int, title: str) -> tuple[Figure, list[dict[str, int]]]:
    columns = min(columns, len(topics))
    rows = -(-len(topics) // columns)
    figure = _figure(title, Figure(make_subplots(
        rows, columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=tokens.labels(topics, 24),
        horizontal_spacing=0.04, vertical_spacing=0.25 / max(1, rows),
    )))  # fmt: skip
    return figure, [{"row": k // columns + 1, "col": k % columns + 1} for k in range(len(topics))]


def _name_edges(figure: Figure, places: list[dict[str, int]], x: str, y: str) -> None:
    for at in places:
        if {**at, "row": at["row"] + 1} not in places:
            figure.update_xaxes(title_text=x, showticklabels=True, **at)
        if at["col"] == 1:
            figure.update_yaxes(title_text=y, **at)


def _bars(value: np.ndarray, low: np.ndarray, high: np.ndarray, hue: str) -> dict[str, Any]:
    return {
        "type": "data", "array": np.nan_to_num(high - value).clip(0), "symmetric": False, "thickness": 1, "width": 2,
        "arrayminus": np.nan_to_num(value - low).clip(0), "color": hue,
    }  # fmt: skip
