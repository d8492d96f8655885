"""Figures of thoughts: what they hold, where in the model, and what the answer owes to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.results import drawn
from probes.superposition.places import called_as
from probes.superposition.problems import Problem
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.charts import Chart
from workbench.figures.figure import Figure
from workbench.reading import Reading
from workbench.stats.design import FEW

GREY = "#8c8c8c"
HUES = {
    "frontier": theme.HUES[0], "optimal": theme.HUES[2], "reachable": theme.HUES[4], "not reachable": "#999999",
    "correct next": theme.HUES[0], "target": theme.HUES[2], "wrong neighbour": theme.HUES[1], "other": "#999999",
}  # fmt: skip


@drawn
def areas(table: xr.Dataset, title: str = "belief over thoughts") -> Figure:
    """How belief is shared among groups of nodes from thought to thought (a table of :func:`mass`)."""
    figure = _figure(title)
    for name in [str(g) for g in table["group"].values]:
        own = table.sel(group=name)
        figure.add_scatter(
            x=table["place"].values, y=own["mean"].values, name=name, mode="lines", stackgroup="one",
            line={"width": 0.5, "color": HUES[name]}, hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="thoughts so far", tickvals=table["place"].values)
    figure.update_yaxes(title_text="belief", range=[0, 1])
    figure.update_layout(width=520, height=340, legend={"orientation": "h", "y": -0.3})
    return figure


@drawn
def inner(table: xr.Dataset, title: str = "logits of nodes by group") -> Figure:
    """Mean logit of the nodes of every group from thought to thought (a table of :func:`mass`)."""
    figure = _figure(title)
    for name in [str(g) for g in table["group"].values]:
        own = table.sel(group=name)
        _line(figure, table["place"].values, own["inner"], own["inner_low"], own["inner_high"], name, HUES[name])
    figure.update_xaxes(title_text="thoughts so far", tickvals=table["place"].values)
    figure.update_yaxes(title_text="logit")
    figure.update_layout(width=520, height=340, legend={"orientation": "h", "y": -0.3})
    return figure


@drawn
def depths(table: xr.Dataset, title: str = "belief in the target") -> Figure:
    """Belief in the target by layer and thought, mean over problems (a table of :func:`focus`)."""
    n = table.attrs["problems"]
    figure = _figure(f"{title}, mean over {n} problems" if n > 1 else title)
    figure.add_heatmap(
        z=table["target_mean"].values, x=table["position"].values, y=[str(x) for x in table["layer"].values],
        zmin=0, zmax=1,
        colorscale=theme.stops("sequential"), colorbar={"title": {"text": "belief"}},
        hovertemplate="layer %{y}, after %{x} thoughts: %{z:.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="thoughts so far", tickvals=table["position"].values)
    figure.update_yaxes(title_text="layer", type="category")
    figure.update_layout(width=480, height=140 + 26 * table.sizes["layer"])
    return figure


@drawn
def belief(data: xr.Dataset, prompt: int = 0, layer: int = -1) -> Figure:
    """Belief in every candidate from place to place, of one prompt at one layer."""
    own = data.isel(prompt=prompt).sel(layer=int(data["layer"].values[layer]))
    names = tokens.labels(own["candidate_name"].values)
    count = data.sizes["prompt"]
    figure = _figure(f"belief at layer {int(own['layer'])}, prompt {prompt % count}" + f" of {count}" * (count > 1))
    figure.add_heatmap(
        z=own["belief"].values.T, x=data["position"].values, y=names, zmin=0, zmax=1,
        colorscale=theme.stops("sequential"), colorbar={"title": {"text": "belief"}},
        hovertemplate="%{y} at %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="position", tickvals=data["position"].values)
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(width=480, height=140 + 18 * len(names))
    return figure


@drawn
def uses(table: xr.Dataset, title: str = "what the answer owes to the thoughts") -> Figure:
    """Change of the target's log-odds under every intervention (a table of :func:`use`), and the accuracy left."""
    names = [str(c) for c in table["condition"].values]
    change = [n for n in names if n != "plain"]
    own = table.sel(condition=change)
    figure = _figure(title)
    mean, low, high = (own[x].values for x in ("effect", "effect_low", "effect_high"))
    figure.add_scatter(
        x=mean, y=list(range(len(change))), mode="markers", marker={"size": 9, "color": theme.HUES[0]},
        error_x={"type": "data", "array": high - mean, "arrayminus": mean - low, "symmetric": False},
        hovertemplate="%{x:+.2f} nats<extra></extra>", showlegend=False,
    )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1})
    plain = float(table["accuracy"].sel(condition="plain"))
    labels = [f"{n} ({float(own['accuracy'].sel(condition=n)):.0%})" for n in change]
    figure.update_yaxes(tickvals=list(range(len(change))), ticktext=labels, autorange="reversed")
    figure.update_xaxes(title_text=f"change of log-odds, 95 % over problems (right of two: {plain:.0%} with thoughts)")
    figure.update_layout(width=620, height=150 + 34 * len(change))
    return figure


@drawn
def soft(table: xr.Dataset, title: str = "mixture beside its largest token") -> Figure:
    """Soft against hard by layer: KL of the lens's distributions, beside what another token would make of it."""
    figure = _figure(title)
    x = table["layer"].values
    for i, (name, called) in enumerate((("kl", "largest token"), ("kl_second", "second token"))):
        if not np.isnan(table[name].values).all():
            own = [table[f"{name}{end}"] for end in ("", "_low", "_high")]
            _line(figure, x, *own, called, theme.HUES[i], _each(table, name))
    figure.update_xaxes(title_text="layer", tickvals=x)
    figure.update_yaxes(title_text="KL from the mixture (nats)", rangemode="tozero")
    figure.update_layout(width=520, height=340, legend={"orientation": "h", "y": -0.3})
    return figure


@drawn
def entropies(table: xr.Dataset, title: str = "entropy by layer") -> Figure:
    """Entropy of the logit lens at the thought, fed soft and fed hard (a table of :func:`soft_versus_hard`)."""
    figure = _figure(title)
    for i, name in enumerate(("soft", "hard")):
        own = [table[f"entropy_{name}{end}"] for end in ("", "_low", "_high")]
        _line(figure, table["layer"].values, *own, name, theme.HUES[i], _each(table, f"entropy_{name}"))
    figure.update_xaxes(title_text="layer", tickvals=table["layer"].values)
    figure.update_yaxes(title_text="nats", rangemode="tozero")
    figure.update_layout(width=520, height=340, legend={"orientation": "h", "y": -0.3})
    return figure


def mixtures(
    tables: Mapping[Any, Reading] | Reading | xr.Dataset, title: str = "entropy behind a mixture of k tokens"
) -> Figure:
    """Entropy against the number of tokens in the mixture (:func:`mixture_entropy`), a line for each checkpoint."""
    lines: dict[Any, Any] = {"": tables} if isinstance(tables, Reading | xr.Dataset) else dict(tables)
    figure = _figure(title)
    for i, (name, table) in enumerate(lines.items()):
        own = [table[f"entropy{end}"] for end in ("", "_low", "_high")]
        each = _each(table, "entropy")
        hue = theme.HUES[i % len(theme.HUES)]
        _line(figure, table["size"].values, *own, str(name), hue, None if each is None else each.T)
    even = max(float(table["entropy_even"]) for table in lines.values())
    figure.add_hline(y=even, line={"dash": "dash", "width": 1}, annotation_text="even")
    sizes = np.unique(np.concatenate([table["size"].values for table in lines.values()]))
    figure.update_xaxes(title_text="tokens in the mixture", type="log", tickvals=sizes)
    figure.update_yaxes(title_text="nats", rangemode="tozero")
    figure.update_layout(width=520, height=360, legend={"orientation": "h", "y": -0.35})
    return figure.describe(next(iter(lines.values())))


def graph(problem: Problem, belief: np.ndarray, title: str = "", *, then: str | Sequence[str] = ()) -> Figure:
    """The problem's graph, nodes as light as the belief in them is great, with a slider from thought to thought.

    Columns are distances from the root, and nodes out of its reach stand below.  The target is a square, the other
    answer (the problem's negative) a diamond, both with a thick rim.

    Args:
        belief: [place, node], from before the first thought on.
        then: the token, or tokens, fed behind the last thought, as in :func:`think`: the last places are theirs, and
            no thoughts.

    Raises InputError where belief has fewer nodes than the problem, or no place is left for a thought.
    """
    belief = np.atleast_2d(np.asarray(belief, float))
    if belief.shape[1] < len(problem.names):
        raise InputError(f"The problem has {len(problem.names)} nodes and belief {belief.shape[1]}. Give one for each.")
    fed = [then] if isinstance(then, str) else list(then)
    thoughts = len(belief) - 1 - len(fed)
    if thoughts < 0:
        raise InputError(
            f"then names {len(fed)} tokens behind the thoughts, and belief has {len(belief)} places, which are to "
            "begin before the first thought. Give belief at all of them, or fewer tokens."
        )
    places = [called_as(t, "") for t in range(thoughts + 1)] + [f"answer, after {tokens.visible(x)}" for x in fed]
    x, y = _places(problem)
    figure = _figure(title or f"{problem.names[problem.root]}: {problem.names[problem.target]} or "
                     f"{problem.names[problem.negative]}?")  # fmt: skip
    size = 24
    for a, b in problem.edges:
        figure.add_annotation(
            x=x[b], y=y[b], ax=x[a], ay=y[a], xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
            arrowhead=2, arrowsize=1, arrowwidth=1, arrowcolor="#bbbbbb", standoff=size / 2, startstandoff=size / 2,
        )  # fmt: skip
    special = {problem.target: ("target", "square", theme.HUES[2]),
               problem.negative: ("other answer", "diamond", theme.HUES[1])}  # fmt: skip
    looks = [special.get(v, ("", "circle", GREY)) for v in range(len(x))]
    for place, own in enumerate(belief):
        shown = np.nan_to_num(own[: len(x)])
        figure.add_scatter(
            x=x, y=y, mode="markers+text", text=tokens.labels(problem.names, 16), textposition="top center",
            textfont={"size": 10}, visible=place == 0, cliponaxis=False,
            showlegend=False, customdata=shown, hovertemplate="%{text}: %{customdata:.3f}<extra></extra>",
            marker={
                "size": [1.15 * size if symbol == "diamond" else size for _, symbol, _ in looks], "opacity": 1,
                "color": shown, "colorscale": theme.stops("sequential"), "cmin": 0, "cmax": 1, "showscale": True,
                "colorbar": {"title": {"text": "belief", "side": "right"}, "thickness": 10, "outlinewidth": 0},
                "symbol": [symbol for _, symbol, _ in looks],
                "line": {"width": [3 if name else 1 for name, *_ in looks], "color": [hue for *_, hue in looks]},
            },
        )  # fmt: skip
    for name, symbol, hue in special.values():
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, showlegend=True,
            marker={"symbol": symbol, "size": 10, "color": "#ffffff", "line": {"width": 2, "color": hue}},
        )  # fmt: skip
    figure.update_layout(
        width=680, height=440, xaxis={"visible": False}, yaxis={"visible": False},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        sliders=[{
            "currentvalue": {"prefix": ""}, "pad": {"t": 20, "l": 20, "r": 45},
            "steps": [
                {
                    "label": tokens.plotly(place), "method": "restyle",
                    "args": [{"visible": [q == p for q in range(len(belief))] + [True] * len(special)}],
                }
                for p, place in enumerate(places)
            ],
        }],
    )  # fmt: skip
    return figure


def _places(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Columns by distance from the root; nodes out of reach below, by the longest way that leads to them."""
    x, y = np.zeros((2, len(problem.names)))
    reached = problem.depth >= 0
    column = np.where(reached, problem.depth, 0)
    for _ in range(len(problem.names)):
        for a, b in problem.edges:
            if not reached[b] and not reached[a] and a != b:
                column[b] = max(column[b], min(column[a] + 1, len(problem.names)))
    for row, own in ((1, reached), (-1, ~reached)):
        for c in np.unique(column[own]):
            nodes = np.flatnonzero(own & (column == c))
            x[nodes] = c
            y[nodes] = row * (0.5 + np.arange(len(nodes)))
    return x, y


def _each(table: xr.Dataset, name: str) -> np.ndarray | None:
    """A variable unit by unit, which earlier tables lack."""
    return table[f"{name}_each"].values if f"{name}_each" in table else None


def _line(
    figure: Figure, x: Any, value: Any, low: Any, high: Any, name: str, hue: str, each: np.ndarray | None = None
) -> None:
    """A line with its interval, and the units themselves [unit, x] where they are fewer than :data:`FEW`."""
    x, low, high = np.asarray(x), np.asarray(low), np.asarray(high)
    figure.add_scatter(
        x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
        fillcolor=theme.faded(hue) if hue in theme.HUES else "rgba(153,153,153,0.18)", hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=np.asarray(value), name=tokens.labels([name])[0], mode="lines+markers", marker={"size": 4},
        line={"color": hue, "width": 2},
    )  # fmt: skip
    if each is not None and len(each) < FEW:
        figure.add_scatter(
            x=np.tile(x, len(each)), y=each.ravel(), mode="markers", marker={"size": 4, "color": hue, "opacity": 0.5},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip


def _figure(title: str) -> Figure:
    theme.register()
    figure = Figure()
    figure.update_layout(template="workbench", title_text=tokens.plotly(title))
    return figure


BELIEF = Chart(belief, ("belief", "candidate_name"))
DEPTHS = Chart(depths, ("target_mean",), "superposition.focus", ("belief", "candidate_name"))
AREAS = Chart(areas, ("mean", "inner"))
INNER = Chart(inner, ("mean", "inner"))
USES = Chart(uses, ("logodds", "effect", "accuracy"))
SOFT = Chart(soft, ("kl", "kl_second"))
ENTROPIES = Chart(entropies, ("entropy_soft", "entropy_hard"))
MIXTURES = Chart(mixtures, ("entropy_each", "entropy_even"))
