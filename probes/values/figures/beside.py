"""Figures of drift beside something else: the training data, other runs, another instrument, two scales at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probes.values.figures.stances import _figure, drawn, sure
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.figure import Figure
from workbench.figures.naming import name_points

GREY = "#8c8c8c"


@drawn
def gap(table: xr.Dataset) -> Figure:
    """Where the training data stand against how far the model moved, by topic: of ``data_gap``.

    Bars are simultaneous intervals; filled: beyond chance (family-wise).  On the dotted line the model moved as far as
    the data stand.  The title has the correlation over topics, its p by shuffling them, and what is to be said of few.
    """
    x, y = table["training"].values, table["drift"].values
    r, low, high, p = (float(table[f"pearson{end}"]) for end in ("", "_low", "_high", "_p"))
    warning = table.attrs.get("warning", "")
    said = f"r = {r:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.3f}, {table.attrs['topics']} topics"
    title = "training data and drift: " + (said if np.isfinite(r) else "too few topics for a correlation")
    figure = _figure(title)
    if warning:
        figure.add_annotation(
            text=tokens.plotly(warning), x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
            showarrow=False, font={"size": 11, "color": theme.HUES[1]},
        )  # fmt: skip
    reach = 1.1 * float(np.nanmax(np.abs([x, y, *_band(table, "drift")])[..., np.isfinite(y)], initial=0.05))
    figure.add_scatter(
        x=[-reach, reach], y=[-reach, reach], mode="lines", line={"color": GREY, "width": 1, "dash": "dot"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    topics, band = [str(t) for t in table["topic"].values], _band(table, "drift")
    _points(figure, x, y, sure(table, "drift_p"), theme.HUES[0], band, topics)
    bars = np.stack([np.broadcast_to(x, (9, len(x))), np.linspace(*band, 9)], -1).reshape(-1, 2)
    along = np.linspace(-reach, reach, 81)
    unnamed = name_points(
        figure, x, y, topics, (-reach, reach), (-reach, reach), avoid=np.concatenate([bars, np.stack([along] * 2, 1)])
    )
    if unnamed:
        figure.update_layout(title_text=tokens.plotly(f"{title} ({unnamed} unnamed)"))
    figure.add_hline(y=0, line={"width": 1, "color": GREY})
    figure.update_xaxes(title_text="keyed stance of the training data")
    figure.update_yaxes(title_text="keyed drift of the model")
    figure.update_layout(width=560, height=470)
    return figure


SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x")


@drawn
def runs(table: xr.Dataset) -> Figure:
    """Drift of several runs by topic: of ``compare``.  Filled: beyond chance; bars: simultaneous intervals, over items.

    Both are of the run that was read: two seeds of one recipe differ, too.  ``arm_difference`` says whether arms do.

    With arms, a run has the colour of its arm and a shape of its own in it: seeds of one recipe are to be told from
    differences between recipes.
    """
    names, topics = ([str(x) for x in table[axis].values] for axis in ("run", "topic"))
    arms = [str(x) for x in table["run_arm"].values] if "run_arm" in table else names
    known = list(dict.fromkeys(arms))
    moved = sure(table, "keyed_M_p", "run", "topic")
    value = table["keyed_M"].transpose("run", "topic").values
    figure = _figure("keyed drift in each run (filled: beyond chance)")
    row = 18 if len(names) < 4 else 8  # pixels
    tall = (row * len(names) + 12) * len(topics)
    step = row * len(topics) / tall
    shapes = [SHAPES[arms[:i].count(arm) % len(SHAPES)] for i, arm in enumerate(arms)]
    for i, name in enumerate(names):
        place = np.arange(len(topics)) + step * (i - (len(names) - 1) / 2)
        hue = theme.HUES[known.index(arms[i]) % len(theme.HUES)]
        _points(
            figure, value[i], place, moved[i], hue, _band(table.isel(run=i), "keyed_M"), topics, across=True,
            name=arms[i], run=name, size=min(9, row), shape=shapes[i],
        )  # fmt: skip
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=tokens.labels([name])[0], legendgroup=name, showlegend=True,
            marker={"size": 9, "color": hue, "symbol": shapes[i]},
        )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1, "color": GREY})
    figure.update_xaxes(title_text="keyed drift")
    figure.update_yaxes(
        tickvals=list(range(len(topics))), ticktext=tokens.labels(topics), range=[len(topics) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_layout(width=640, height=150 + tall, legend={"orientation": "h", "y": -60 / tall})
    return figure


@drawn
def agreement(table: xr.Dataset) -> Figure:
    """Rank correlation of keyed stance between instruments over checkpoints: of ``agreement``.

    Two readings by one instrument have a correlation below 1, too: its noise is the ceiling.
    """
    figure = _figure("agreement of instruments (rank correlation over items)")
    x = table["checkpoint"].values
    for i, pair in enumerate(table["pair"].values):
        own, hue = table.sel(pair=pair), theme.HUES[i % len(theme.HUES)]
        value, low, high = (own[f"spearman{end}"].values for end in ("", "_low", "_high"))
        known = np.isfinite(value)
        at, low, high = x[known], low[known], high[known]
        figure.add_scatter(
            x=np.r_[at, at[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
            fillcolor=theme.faded(hue), hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=at, y=value[known], mode="lines+markers", marker={"size": 5}, line={"color": hue, "width": 2},
            name=tokens.labels([pair])[0], hovertemplate="%{x}: %{y:+.2f}<extra></extra>", showlegend=True,
            error_y=_error(value[known], low, high, hue) if known.sum() == 1 else None,
        )  # fmt: skip
    figure.add_hline(y=0, line={"width": 1, "dash": "dot", "color": GREY})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(
        title_text="rank correlation", range=[min(0.0, float(table["spearman_low"].min())) - 0.05, 1.05]
    )
    figure.update_layout(width=600, height=360, legend={"orientation": "h", "y": -0.3})
    return figure


@drawn
def plane(table: xr.Dataset) -> Figure:
    """Impartial beneficence against instrumental harm by checkpoint: of ``greatest_good.scores``.

    The ellipse is one standard deviation of people about their mean; the grey rectangle what a model without opinion
    gives, at its widest over the checkpoints; bars: simultaneous intervals.
    """
    lacking = {"IB", "IH"} - set(map(str, table["scale"].values))
    if lacking:
        raise InputError(f"The scores have no scale {', '.join(sorted(lacking))}. The plane needs both, IB and IH.")
    ib, ih = (table.sel(scale=scale) for scale in ("IB", "IH"))
    figure = _figure("instrumental harm and impartial beneficence")
    x, y = ih["score"].values, ib["score"].values
    half = [float(own["null"].max()) for own in (ih, ib)]
    figure.add_shape(
        type="rect", x0=4 - half[0], x1=4 + half[0], y0=4 - half[1], y1=4 + half[1], line={"width": 0},
        fillcolor="rgba(140,140,140,0.35)", layer="below",
    )  # fmt: skip
    turn = np.linspace(0, 2 * np.pi, 73)
    lay = [(float(own["lay"]), float(own["lay_sd"])) for own in (ih, ib)]
    figure.add_scatter(
        x=lay[0][0] + lay[0][1] * np.cos(turn), y=lay[1][0] + lay[1][1] * np.sin(turn), mode="lines", fill="toself",
        line={"color": theme.HUES[4], "width": 1}, fillcolor=theme.faded(theme.HUES[4]), hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=[lay[0][0]], y=[lay[1][0]], mode="markers", name="people (mean, 1 SD)", showlegend=True,
        marker={"symbol": "diamond", "size": 11, "color": theme.HUES[4]},
        hovertemplate="people: IH %{x:.2f}, IB %{y:.2f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[None], y=[None], mode="markers", name="without opinion", showlegend=True,
        marker={"symbol": "square", "size": 11, "color": "rgba(140,140,140,0.6)"},
    )  # fmt: skip
    steps = [str(s) for s in table["checkpoint"].values]
    ends = [str(s) if k in (0, len(steps) - 1) else "" for k, s in enumerate(steps)]
    figure.add_scatter(
        x=x, y=y, mode="lines+markers+text", text=ends, name="checkpoints", showlegend=True,
        textposition=["top left", *["bottom right"] * (len(steps) - 1)], customdata=steps,
        line={"color": theme.HUES[0], "width": 1.5},
        marker={"size": 8, "color": np.arange(len(steps)), "colorscale": theme.SEQUENTIAL},
        error_x=_error(x, *_band(ih, "score"), theme.HUES[0]), error_y=_error(y, *_band(ib, "score"), theme.HUES[0]),
        hovertemplate="step %{customdata}: IH %{x:.2f}, IB %{y:.2f}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=4, line={"width": 1, "dash": "dot", "color": GREY})
    figure.add_vline(x=4, line={"width": 1, "dash": "dot", "color": GREY})
    figure.update_xaxes(title_text="instrumental harm", range=[0.8, 7.2], dtick=1)
    figure.update_yaxes(
        title_text="impartial beneficence", range=[0.8, 7.2], dtick=1, scaleanchor="x", constrain="domain"
    )
    figure.update_layout(width=560, height=560, legend={"orientation": "h", "y": -0.14})
    return figure


# ---------------------------------------------------------------- inside


def _band(table: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the simultaneous interval; the value itself where it has none (too few clusters to say)."""
    value = table[name].values
    low, high = (table[f"{name}_band_{end}"].values for end in ("low", "high"))
    return np.where(np.isfinite(low), low, value), np.where(np.isfinite(high), high, value)


def _error(value: np.ndarray, low: np.ndarray, high: np.ndarray, hue: str) -> dict[str, Any]:
    return {
        "type": "data", "array": high - value, "arrayminus": value - low, "symmetric": False, "color": hue,
        "thickness": 1, "width": 3,
    }  # fmt: skip


def _points(
    figure: Figure,
    x: np.ndarray,
    y: np.ndarray,
    sure: np.ndarray,
    hue: str,
    band: tuple[np.ndarray, np.ndarray],
    topics: list[str],
    *,
    across: bool = False,
    name: str = "",
    run: str = "",
    size: float = 9,
    shape: str = "circle",
) -> None:
    """Dots of topics with intervals along y, or ``across``; filled where it is sure, open where not."""
    error = _error(x if across else y, *band, hue)
    shown = f" ({run})" if run else ""
    figure.add_scatter(
        x=x, y=y, mode="markers", text=[t + shown for t in tokens.labels(topics)], name=tokens.labels([name])[0],
        showlegend=False, legendgroup=name,
        marker={"size": size, "color": hue, "symbol": [shape if s else f"{shape}-open" for s in sure]},
        hovertemplate="%{text}: %{" + ("x" if across else "y") + ":+.3f}<extra></extra>",
        **{"error_x" if across else "error_y": error},
    )  # fmt: skip
