"""Charts: one function for each kind, dataset in and Figure out; `chart()` chooses by what the data holds."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import plugins, tokens
from workbench.errors import InputError
from workbench.figures import colours, theme
from workbench.figures.cells import SMALLEST, fit_cells, ink
from workbench.figures.figure import Figure
from workbench.figures.source import Source, short_name
from workbench.reading import Reading

if TYPE_CHECKING:
    import xarray as xr

LABELS = {
    "logprob": "log-prob of top token (nats)",
    "cosine": "cosine of nearest token",
    "similarity": "similarity of nearest context",
    "entropy": "entropy (nats)",
    "kl_to_final": "KL to final (nats)",
    "target_logprob": "log-prob of target (nats)",
    "target_rank": "rank of target (0 = top)",
    "contribution": "contribution to logit",
}
BAR_LABELS = {
    "logprob": "log-prob (nats)", "cosine": "cosine", "similarity": "similarity",
    "target_logprob": "log-prob (nats)",
    "kl_to_final": "KL (nats)", "target_rank": "rank of target",
}  # fmt: skip
NULL = "null: other positions' states"
HOVER_CELLS = 3_000  # above this many cells the hover lists would outweigh the figure
TEXT_CELLS = 6_000


# ---------------------------------------------------------------- heatmap


def heatmap(
    data: xr.Dataset,
    prompt: int = 0,
    value: str | None = None,
    target: int | str | None = None,
    text: bool = True,
) -> Figure:
    """Depth x positions of one prompt, rising upwards, the top token in each cell and the input below.

    value   what the colour shows: any variable over [prompt, depth, position(, rank)(, target)], such as
            "logprob", "entropy", "kl_to_final", "cosine", "target_rank"; the first rank of it.  Default: the
            first of these there.
    target  which target, by text or number, for target_logprob and target_rank
    text    whether cells show their top token (left out by itself where cells are too small to read)
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    if value is None:
        value = next((v for v in LABELS if v in source.grids()), None)
    if value is None or not source.has(value):
        raise InputError(
            f"heatmap(value={value!r}): this reading holds {source.grids()}. Choose one of these."
        )
    grid = source.grid(value, prompt, target)
    shown, bar = grid, {"title": {"text": BAR_LABELS.get(value, LABELS.get(value, value))}}
    if value == "target_rank":
        shown = np.log10(grid + 1)
        ticks = [t for t in (0, 9, 99, 999, 9999, 99999) if t <= max(np.nanmax(grid, initial=0), 1)]
        bar |= {"tickvals": np.log10(np.add(ticks, 1)).tolist(), "ticktext": [f"{t:,}" for t in ticks]}

    inputs = [tokens.visible(t) for t in source.inputs(prompt)]
    signed, scale = colours.signed(value), theme.stops(value)
    trace = go.Heatmap(
        z=np.round(shown, 4),
        x=list(range(len(inputs))),
        y=list(range(len(source.depths))),  # rows are equally high, whichever layers were read
        colorscale=scale,
        zmid=0 if signed else None,
        colorbar=bar,
        hoverongaps=False,
        xgap=0.5 if grid.size <= TEXT_CELLS else 0,
        ygap=0.5 if grid.size <= TEXT_CELLS else 0,
        hovertemplate="%{hovertext}<extra></extra>" if grid.size <= HOVER_CELLS else None,
    )
    if grid.size <= HOVER_CELLS:
        trace.hovertext = _hovers(source, prompt, value, grid, inputs)
    figure = _figure(trace)
    if text and source.has("token_id") and grid.size <= TEXT_CELLS:
        rows, columns = np.indices(grid.shape)
        top = _ids(source, prompt)[:, :, 0].ravel()
        # A trace of its own: a heatmap's texts have one colour, and here each must stand out from its cell.
        figure.add_scatter(
            x=columns.ravel().tolist(), y=rows.ravel().tolist(), mode="text", hoverinfo="skip",
            customdata=[tokens.visible(source.text(i)) if i >= 0 else "" for i in top], showlegend=False,
            textfont={"color": ink(shown, scale, signed)},
        )  # fmt: skip
    width = float(np.clip(130 + 46 * len(inputs), 420, 1400))
    said = LABELS.get(value, value)
    if "target" in data[value].dims:
        said = said.replace("target", source.aim(source.target(target, prompt), prompt))
    framed = [f"dotted frame: {source.sink_said}"] if _frame(figure, source.sinks(prompt)) else []
    figure.update_layout(
        title_text=tokens.plotly(_title(source, ", ".join(filter(None, [said, *framed])), prompt)), width=width,
        meta={"workbench": {
            "inputs": inputs, "places": source.places(prompt).tolist(), "depths": source.depths.tolist(),
        }},
    )  # fmt: skip
    figure.update_yaxes(title_text=source.depth_label, showline=False, ticks="")
    figure.update_xaxes(showline=False, ticks="")
    fit_cells(figure)
    return figure


def _frame(figure: go.Figure, marked: np.ndarray) -> bool:
    """A dotted frame around each upright run of marked cells [row, column]; whether there is one."""
    edges = np.diff(np.pad(marked.astype(int), ((1, 1), (0, 0))), axis=0)
    for column in np.flatnonzero(marked.any(0)).tolist():
        starts, ends = np.flatnonzero(edges[:, column] > 0), np.flatnonzero(edges[:, column] < 0)
        for low, high in zip(starts.tolist(), ends.tolist(), strict=True):
            place = {"x0": column - 0.46, "x1": column + 0.46, "y0": low - 0.46, "y1": high - 0.54}
            for colour, dash in (("#FFFFFF", "solid"), ("#000000", "dot")):  # seen on every colour
                figure.add_shape(type="rect", line={"color": colour, "width": 1.5, "dash": dash}, **place)
    return bool(marked.any())


def _ids(source: Source, prompt: int) -> np.ndarray:
    """token_id of one prompt as [depth, real position, rank]."""
    found = source.data["token_id"].isel(prompt=prompt).transpose(source.depth, "position", "rank")
    return found.values[:, source.positions(prompt)]


def _hovers(source: Source, prompt: int, value: str, grid: np.ndarray, inputs: list[str]) -> list[list[str]]:
    """What hovering a cell tells: place, value, and the five nearest tokens."""
    ids = _ids(source, prompt)[:, :, :5] if source.has("token_id") else None
    score = next((s for s in ("logprob", "cosine", "similarity") if source.has(s)), None)
    scores = None
    if ids is not None and score is not None and "rank" in source.data[score].dims:
        found = source.data[score].isel(prompt=prompt).transpose(source.depth, "position", "rank")
        scores = found.values[:, source.positions(prompt), :5]
    name = LABELS.get(value, value)
    said, places, sinks = _contexts(source, prompt), source.places(prompt), source.sinks(prompt)
    tests = {end: source.grid(f"{score}_{end}", prompt) for end in ("p", "q") if source.has(f"{score}_{end}")}
    rows = []
    for d, depth in enumerate(source.depths):
        row = []
        for p, token in enumerate(inputs):
            lines = [f"{source.depth} {depth}, after <b>{tokens.plotly(token)}</b> (#{places[p]})"]
            if not np.isnan(grid[d, p]):
                lines.append(f"{name}: {grid[d, p]:.4g}")
            if sinks[d, p]:
                lines.append(source.sink_said)
            if known := [f"{end} {v[d, p]:.3g}" for end, v in tests.items() if not np.isnan(v[d, p])]:
                lines.append(f"nearest: {', '.join(known)}")
            if ids is not None:
                for rank, token_id in enumerate(ids[d, p]):
                    if token_id >= 0:
                        number = f"  {scores[d, p, rank]:.3g}" if scores is not None else ""
                        text = said(d, p, rank) or tokens.plotly(tokens.visible(source.text(token_id)))
                        lines.append(f"{rank}. {text}{number}")
            row.append("<br>".join(lines))
        rows.append(row)
    return rows


def _contexts(source: Source, prompt: int) -> Callable[[int, int, int], str]:
    """The sentence of a neighbour with its word in bold, by (depth, position, rank); "" where there is none."""
    if not source.has("sentence"):
        return lambda d, p, rank: ""
    real = source.positions(prompt)
    found = {
        name: source.data[name].isel(prompt=prompt).transpose(source.depth, "position", "rank").values[:, real]
        for name in ("sentence", "char_start", "char_end")
    }

    def said(d: int, p: int, rank: int) -> str:
        text, start, end = (found[name][d, p, rank] for name in ("sentence", "char_start", "char_end"))
        before, word, after = (tokens.plotly(tokens.plain(t)) for t in tokens.around(str(text), start, end, 30))
        return f"{before}<b>{word}</b>{after}"

    return said


# ---------------------------------------------------------------- trajectory


def trajectory(
    data: xr.Dataset, prompt: int = 0, position: int = -1, targets: Sequence[str] | None = None
) -> Figure:
    """Log-prob of each target over depth at one position, dotted the null: the same under other positions' states.

    position counts the prompt's own tokens; negative from the end.  targets chooses some, by text.
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    at = source.position(prompt, position)
    names = source.targets(prompt, at)
    chosen = list(range(len(names))) if targets is None else [source.target(t, prompt) for t in targets]
    chosen, more = _most(chosen, "targets")
    place = data.isel(prompt=prompt, position=at)
    figure = _figure()
    nulls = 0
    for number, index in enumerate(chosen):
        colour = theme.HUES[number % len(theme.HUES)]
        label = tokens.labels([tokens.visible(names[index])])[0]
        line = {"color": colour, "width": 2}
        ranks = _along(place, "target_rank", index)
        rank = "" if ranks is None else ", rank %{customdata}"
        figure.add_scatter(
            x=source.depths, y=_along(place, "target_logprob", index), name=label, mode="lines+markers",
            line=line, marker={"size": 4}, customdata=ranks, legendgroup=label,
            hovertemplate=f"{source.depth} %{{x}}: %{{y:.3f}} nats" + rank,
        )  # fmt: skip
        null = _along(place, "target_logprob_null", index)
        if null is not None and not np.all(np.isnan(null)):
            nulls += 1
            figure.add_scatter(
                x=source.depths, y=null, mode="lines", legendgroup=label, showlegend=len(chosen) == 1,
                line={"color": colour, "width": 1.5, "dash": "dot"},
                name=NULL if len(chosen) == 1 else f"{label}, {NULL}", hovertemplate="%{y:.3f} nats",
            )  # fmt: skip
    if nulls and len(chosen) > 1:  # one entry for all of them
        grey = {"color": "#7F7F7F", "width": 1.5, "dash": "dot"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=grey, name=NULL)
    token = tokens.visible(source.inputs(prompt)[int(np.flatnonzero(source.positions(prompt) == at)[0])])
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    sink = "a sink" if source.sinks(prompt)[:, column].any() else ""
    said = ", ".join(filter(None, [f"log-prob after {token} (#{source.places(prompt)[column]})", sink, more]))
    figure.update_layout(title_text=tokens.plotly(_title(source, said, prompt)))
    figure.update_layout(width=640, height=380, hovermode="x unified", showlegend=True)
    figure.update_xaxes(title_text=source.depth_label, tickformat="d")
    figure.update_yaxes(title_text="log-prob (nats)")
    return figure


def _most(chosen: list[Any], what: str) -> tuple[list[Any], str]:
    """As many as there are hues, and what a title says of the rest."""
    kept = chosen[: len(theme.HUES)]
    return kept, f"the first {len(kept)} of {len(chosen)} {what}" if len(kept) < len(chosen) else ""


def _along(place: xr.Dataset, name: str, target: int) -> np.ndarray | None:
    if name not in place:
        return None
    found = place[name]
    found = found.isel(target=target) if "target" in found.dims else found
    return found.values


# ---------------------------------------------------------------- curves


def curves(
    data: xr.Dataset,
    value: str | Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    target: int | str | None = None,
) -> Figure:
    """Depth curves: the mean over prompts of each prompt's mean, with a bootstrap band over prompts; dotted: the null.

    Positions are averaged without those that are sinks, where the reading tells them; the title says how many.

    The null of a variable is the mean of its ``_null`` companion, where the reading has one, as target_logprob does.

    value      one variable or several (one panel each); default target_rank and entropy, where there
    level      of the percentile band; it needs two prompts, and with one there is none
    target     one of several, by text or number; default all of them, a line each
    Ranks are averaged as log10(1 + rank) and drawn on that scale.
    """
    source = Source(data)
    asked = [value] if isinstance(value, str) else list(value or ())
    names = (
        asked or [v for v in ("target_rank", "entropy", "cosine", "kl_to_final") if v in source.grids()][:2]
    )
    if not names or (lacking := [v for v in names if v not in source.grids()]):
        lacking = lacking if names else "any of target_rank, entropy"
        raise InputError(f"curves: this reading does not hold {lacking}. It holds {source.grids()}.")
    prompts = range(data.sizes.get("prompt", 1))
    aims = list(range(data.sizes.get("target", 1))) if target is None else [source.target(target, 0)]
    aims, more = _most(aims, "targets")
    if all("target" not in data[name].dims for name in names):
        aims, more = [0], ""
    figure, nulls = _figure(make_subplots(cols=len(names), horizontal_spacing=0.16)), 0
    highest: dict[str, float] = {}
    for column, name in enumerate(names, start=1):
        where = {"row": 1, "col": column}
        for number, aim in enumerate(aims if "target" in data[name].dims else aims[:1]):
            means = np.stack([_position_mean(source, name, p, aim) for p in prompts])
            centre, low, high = _band(means, level, resamples, seed)
            highest[name] = max(highest.get(name, 0.3), float(np.nanmax(high, initial=0.3)))
            several = len(aims) > 1 and "target" in data[name].dims
            called = tokens.labels([_target_name(source, aim)])[0] if several else name
            # Beside lines of several targets, another panel's line has none of the hues that say which target.
            colour = theme.HUES[number if several else -column if len(aims) > 1 else column - 1]
            if len(means) > 1:
                figure.add_scatter(
                    x=np.concatenate([source.depths, source.depths[::-1]]), y=np.concatenate([high, low[::-1]]),
                    mode="lines", fill="toself", fillcolor=theme.faded(colour), line={"width": 0}, hoverinfo="skip",
                    showlegend=False, legendgroup=called, **where,
                )  # fmt: skip
            figure.add_scatter(
                x=source.depths, y=centre, name=called, mode="lines+markers", marker={"size": 4},
                line={"color": colour, "width": 2}, customdata=np.stack([low, high], axis=-1), legendgroup=called,
                showlegend=several and not any(t.name == called and t.showlegend for t in figure.data),
                hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>", **where,
            )  # fmt: skip
            if f"{name}_null" not in source.grids():
                continue
            null = np.stack([_position_mean(source, f"{name}_null", p, aim) for p in prompts])
            if not np.isnan(null).all():
                nulls += 1
                figure.add_scatter(
                    x=source.depths, y=_band(null, level, 1, seed)[0], name=f"{called}, null", mode="lines",
                    line={"color": colour, "width": 1.5, "dash": "dot"}, showlegend=False, legendgroup=called,
                    hovertemplate="null: %{y:.3f}<extra></extra>", **where,
                )  # fmt: skip
        figure.update_yaxes(title_text=LABELS.get(name, name), **where)
        if name == "target_rank":
            top = highest[name]
            ticks = [t for t in (0, 1, 3, 9, 30, 99, 999, 9999, 99999) if np.log10(t + 1) <= top + 0.2]
            figure.update_yaxes(
                tickvals=np.log10(np.add(ticks, 1)), ticktext=[f"{t:,}" for t in ticks], **where
            )
        figure.update_xaxes(title_text=source.depth_label, tickformat="d", **where)
    count = len(prompts)
    band = f"{level:.0%} bootstrap band over {count} prompts" if count > 1 else "1 prompt, so no band"
    over = "mean over positions" if data.sizes.get("position", 1) > 1 else ""
    one = f"target {_target_name(source, aims[0])}" if len(aims) == 1 and data.sizes.get("target", 1) > 1 else ""
    if all("target" not in data[name].dims for name in names):
        one = ""
    said = ", ".join(filter(None, [one, more, over, source.sinks_left_out(), band, "dotted: null" * bool(nulls)]))
    width = 330 * len(names) + 60
    figure.update_layout(title_text=tokens.plotly(_heading(source, said)), width=width, height=340)
    if len(aims) > 1:
        figure.update_layout(height=380, legend={"orientation": "h", "y": -0.22})
    return figure


def _target_name(source: Source, target: int) -> str:
    """What a target is called in all prompts; of prompts with targets of their own, its number."""
    return f"{target + 1} of each prompt" if source.own_targets else tokens.visible(source.targets(0, 0)[target])


def _position_mean(source: Source, name: str, prompt: int, target: int) -> np.ndarray:
    """[depth], the mean over a prompt's positions, sinks apart; NaN where none has a value."""
    grid = source.grid(name, prompt, target if "target" in source.data[name].dims else None)
    values = np.where(source.sinks(prompt), np.nan, np.log10(grid + 1) if name == "target_rank" else grid)
    count = np.sum(~np.isnan(values), axis=1)
    return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def _band(
    means: np.ndarray, level: float, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and percentile band over prompts, means [prompt, depth]; prompts without a value are left out."""
    means = means[~np.all(np.isnan(means), axis=1)]
    if len(means) == 0:
        raise InputError(
            "curves: no position of any prompt has a value (sinks are left out), so there is nothing to average."
        )
    with warnings.catch_warnings():  # a layer may have no value at all
        warnings.simplefilter("ignore", RuntimeWarning)
        centre = np.nanmean(means, axis=0)
        if len(means) == 1:
            return centre, centre, centre
        picks = np.random.default_rng(seed).integers(len(means), size=(resamples, len(means)))
        draws = np.stack([np.nanmean(means[p], axis=0) for p in picks])
        low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return centre, low, high


# ---------------------------------------------------------------- attribution


def attribution(
    data: xr.Dataset, prompt: int = 0, position: int = -1, target: int | str | None = None
) -> Figure:
    """What each component of the model adds to a token's logit at one position; the bars sum to the logit.

    Lines across: the same component's mean over all positions, what it adds anywhere.
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    at = source.position(prompt, position)
    index = source.target(target, prompt)

    def pick(name: str) -> np.ndarray:
        found = data[name].isel(prompt=prompt, position=at)
        return (found.isel(target=index) if "target" in found.dims else found).values

    names = [str(c) for c in data["component"].values]
    values = pick("contribution").astype(float)
    figure = _figure()
    kinds = list(dict.fromkeys(n.split(".")[0] for n in names))
    hues = dict(zip(kinds, theme.HUES, strict=False))
    for kind in kinds:
        own = [i for i, n in enumerate(names) if n.split(".")[0] == kind]
        figure.add_bar(
            x=own, y=values[own], name=kind, marker={"color": hues.get(kind, theme.HUES[-1])}, width=0.85,
            customdata=[tokens.plotly(names[i]) for i in own],
            hovertemplate="%{customdata}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    if source.has("contribution_mean"):
        mean = data["contribution_mean"]
        mean = (mean.isel(target=index) if "target" in mean.dims else mean).values
        figure.add_scatter(
            x=list(range(len(names))), y=mean, mode="markers", name="mean over positions",
            marker={"symbol": "line-ew", "size": 13, "line": {"width": 2, "color": "#222222"}},
            hovertemplate="mean over positions: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    width = float(np.clip(160 + 26 * len(names), 480, 1300))
    step = max(1, int(np.ceil(len(names) * 10 / (width - 120))))
    labels = [n.replace("_out", "") for n in names]
    figure.update_xaxes(
        tickvals=list(range(0, len(names), step)), ticktext=[tokens.plotly(t) for t in labels[::step]], tickangle=-90,
        title_text=f"component (one of {step} is named)" if step > 1 else "component",
        tickfont_size=float(np.clip((width - 120) / len(names) / 1.15, SMALLEST, 12)),
    )  # fmt: skip
    figure.update_yaxes(
        title_text="contribution to logit", zeroline=True, zerolinewidth=1, zerolinecolor="#888888"
    )
    targets = source.targets(prompt, at)
    said = f"what adds to the logit of {tokens.visible(targets[min(index, len(targets) - 1)])}"
    if source.has("logit"):
        said += f", {float(pick('logit')):.3g}"
    if "target" in data["contribution"].dims and len(targets) > 1:
        said += f", target {index + 1} of {len(targets)}"
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    if len(source.positions(prompt)) > 1:
        said += f", after {tokens.visible(source.inputs(prompt)[column])} (#{source.places(prompt)[column]})"
    figure.update_layout(title_text=tokens.plotly(_title(source, said, prompt)))
    figure.update_layout(width=width, height=380, barmode="overlay", showlegend=True)
    return figure


# ---------------------------------------------------------------- leap


def leap(data: xr.Dataset) -> Figure:
    """From which index layer the nearest contexts of each model layer come, beside the null of random tokens.

    Shares of a row add up to 1.  The null is of prompts of random tokens: what it shows, too, is
    what the index prefers by itself (hubs, crowded layers), and not where meaning lies.
    """
    source = Source(data)
    panels = [("index_layer_share", "neighbours")]
    if source.has("index_layer_share_null"):
        panels.append(("index_layer_share_null", "null: random tokens"))
    names = [str(i) for i in data["index"].values]
    titles = [title for _, title in panels]
    figure = _figure(make_subplots(cols=len(panels), horizontal_spacing=0.08, shared_yaxes=True, subplot_titles=titles))
    for column, (name, _) in enumerate(panels, start=1):
        shares = data[name].transpose(source.depth, "index").values
        bounds = [data[n].transpose(source.depth, "index").values for n in (f"{name}_low", f"{name}_high") if n in data]
        known = len(bounds) == 2 and not np.isnan(bounds).all()
        figure.add_heatmap(
            z=np.round(shares, 4), x=names, y=list(range(len(source.depths))), zmin=0, zmax=1,
            colorscale=theme.stops("share"), colorbar={"title": {"text": "share"}}, showscale=column == len(panels),
            customdata=np.stack(bounds, -1) if known else None, row=1, col=column,
            hovertemplate=f"{source.depth} %{{y}}, index layer %{{x}}: %{{z:.1%}}"
            f"{' [%{customdata[0]:.1%}, %{customdata[1]:.1%}]' * known}<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title_text="index layer", type="category", row=1, col=column)
    figure.update_yaxes(
        tickvals=list(range(len(source.depths))), ticktext=[str(d) for d in source.depths], showline=False, ticks=""
    )
    figure.update_yaxes(title_text=f"model {source.depth_label}", col=1)
    figure.update_layout(title_text=tokens.plotly(_heading(source, "which index layer answers")))
    height = float(np.clip(150 + 22 * len(source.depths), 260, 900))
    figure.update_layout(width=float(190 + len(panels) * max(140, 44 * len(names))), height=height, margin={"t": 70})
    return figure


# ---------------------------------------------------------------- floors


FLOORS = {
    "similarity_floor_random": ("random tokens", "dash"), "similarity_floor_shuffled": ("shuffled prompts", "dashdot"),
    "cosine_floor": ("random directions", "dash"), "cosine_floor_shuffled": ("shuffled prompts", "dashdot"),
}  # fmt: skip


def floors(data: xr.Dataset) -> Figure:
    """How near the nearest is at every depth, beside what chance reaches: median and quartiles, floors dashed.

    Over all positions of all prompts but sinks, where the reading tells them; the legend has the share of all states
    above each floor, the hover each depth's.
    A state below a floor has a neighbour that says no more than one of random tokens, a random direction or a shuffled
    prompt does.
    """
    source = Source(data)
    name = "similarity" if source.has("similarity") else "cosine"
    best = data[name].isel(rank=0).transpose(source.depth, ...)
    if source.has("sink"):
        best = best.where(~data["sink"].astype(bool))
    best = best.transpose(source.depth, ...).values.reshape(len(source.depths), -1)
    if not np.isfinite(best).any():
        raise InputError(f"floors: this reading holds no {name} (every state is zero), so there is nothing to compare.")
    low, middle, high = np.nanquantile(best, [0.25, 0.5, 0.75], axis=1)
    colour = theme.HUES[0]
    lines, told = [], []
    for floor, (called, dash) in FLOORS.items():
        if not source.has(floor) or np.isnan(level := data[floor].values.astype(float)).all():
            continue
        known, above = ~np.isnan(best + level[:, None]), best > level[:, None]
        shares = above.sum(1) / np.maximum(known.sum(1), 1)
        told.append(f"<br>above {called}: %{{customdata[{len(lines) + 2}]:.0%}}")
        lines.append((level, f"floor: {called} ({above.sum() / known.sum():.0%} above)", dash, shares))
    figure = _figure()
    figure.add_scatter(
        x=np.concatenate([source.depths, source.depths[::-1]]), y=np.concatenate([high, low[::-1]]), mode="lines",
        fill="toself", fillcolor=theme.faded(colour), line={"width": 0}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=source.depths, y=middle, mode="lines+markers", marker={"size": 4}, line={"color": colour, "width": 2},
        name="median (band: quartiles)", customdata=np.stack([low, high, *(shares for *_, shares in lines)], -1),
        hovertemplate=f"{source.depth} %{{x}}: %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]"
        f"{''.join(told)}<extra></extra>",
    )  # fmt: skip
    for level, called, dash, _ in lines:
        line = {"color": theme.HUES[colours.FLOOR], "width": 1.5, "dash": dash}
        figure.add_scatter(
            x=source.depths, y=level, mode="lines", line=line, name=called,
            hovertemplate="%{y:.3f}",
        )  # fmt: skip
    figure.update_xaxes(title_text=source.depth_label, tickformat="d")
    figure.update_yaxes(title_text=LABELS[name])
    states = int(np.isfinite(best).any(0).sum())
    said = ", ".join(filter(None, [f"band: quartiles over {states:,} positions", source.sinks_left_out()]))
    figure.update_layout(title_text=tokens.plotly(_heading(source, said)))
    figure.update_layout(width=560, height=420, showlegend=True, legend={"orientation": "h", "y": -0.2})
    return figure


# ---------------------------------------------------------------- rates


def rates(data: xr.Dataset) -> Figure:
    """Shares over depth, one panel for each measure: rate with its interval, and its chance level dashed.

    Needs rate, rate_low, rate_high, rate_chance [measure, depth], or with one more dimension of several series
    (several lenses, say), which get a line each.
    """
    depth = "layer" if "layer" in data.dims else "block"
    others = [d for d in data["rate"].dims if d not in ("measure", depth)]
    series = [" · ".join(map(str, own)) for own in product(*(data[d].values for d in others))]  # one "" without others
    series, more = _most(series, "series")
    measures = [str(m) for m in data["measure"].values]
    found = data.transpose("measure", *others, depth, ...)
    x = data[depth].values
    panels = make_subplots(cols=len(measures), horizontal_spacing=0.05, shared_yaxes=True, subplot_titles=measures)
    figure = _figure(panels)
    for column in range(len(measures)):
        where = {"row": 1, "col": column + 1}
        for i, name in enumerate(series):
            own = found.isel(measure=column)
            rate, low, high, chance = (
                own[f"rate{end}"].transpose(*others, depth).values.reshape(-1, len(x))[i]
                for end in ("", "_low", "_high", "_chance")
            )
            colour = theme.HUES[i]
            if not np.isnan(low).all():
                figure.add_scatter(
                    x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), mode="lines", fill="toself",
                    fillcolor=theme.faded(colour), line={"width": 0}, hoverinfo="skip", showlegend=False, **where,
                )  # fmt: skip
            figure.add_scatter(
                x=x, y=chance, mode="lines", line={"color": colour, "width": 1, "dash": "dash"}, hoverinfo="skip",
                name=f"{name} by chance".strip(), showlegend=column == 0 and len(series) == 1, **where,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=rate, mode="lines+markers", marker={"size": 4}, line={"color": colour, "width": 2},
                name=name or "rate", showlegend=column == 0 and bool(others),
                customdata=np.stack([low, high, chance], -1),
                hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], chance %{customdata[2]:.3f}"
                f"<extra>{tokens.plotly(name)}</extra>", **where,
            )  # fmt: skip
        figure.update_xaxes(title_text=depth, tickformat="d", **where)
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title_text="share", col=1)
    model, reader = short_name(str(data.attrs.get("model", ""))), str(data.attrs.get("reader", ""))
    figure.update_layout(title_text=tokens.plotly(" · ".join(filter(None, [reader, model, more, "dashed: chance"]))))
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    figure.update_layout(width=float(100 + 250 * len(measures)), height=360, margin={"t": 70})
    return figure


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Chart:
    """A chart: its function(data, **options) and the variables without which it cannot be drawn ("a or b": either).

    A chart of a measure's result names that measure (an entry point of ``workbench.measures``) and the variables of
    the readings that it measures, ``of``: such a reading is measured first, with the measure's own defaults and what
    options it has of the chart's.
    """

    function: Callable[..., Figure]
    needs: tuple[str, ...]
    measure: str = ""
    of: tuple[str, ...] = ()

    def lacks(self, data: xr.Dataset) -> list[str]:
        def lacking(needs: tuple[str, ...]) -> list[str]:
            return [name for name in needs if not any(one in data.data_vars for one in name.split(" or "))]

        lost = lacking(self.needs)
        return lacking(self.of) if lost and self.measure else lost

    def measured(self, reading: Reading, options: dict[str, Any]) -> Reading:
        """What the chart draws: the reading itself, or its measure's result, with options that are the measure's."""
        if not self.measure or not Chart(self.function, self.needs).lacks(reading.data):
            return reading
        own, measure = inspect.signature(self.function).parameters, _measure(self.measure)
        given = [name for name in options if name not in own and name in inspect.signature(measure).parameters]
        return measure(reading, **{name: options.pop(name) for name in given})


CHARTS: dict[str, Chart] = {
    "heatmap": Chart(heatmap, ("token_id",)),
    "trajectory": Chart(trajectory, ("target_logprob",)),
    "curves": Chart(curves, ("entropy",)),
    "attribution": Chart(attribution, ("contribution",)),
    "leap": Chart(leap, ("index_layer_share",)),
    "floors": Chart(floors, ("similarity or cosine", "similarity_floor_random or cosine_floor")),
    "rates": Chart(rates, ("rate", "rate_low", "rate_high", "rate_chance")),
}


def charts() -> dict[str, Chart]:
    """All charts: ours, and those of probes and other packages (entry points ``workbench.charts``)."""
    return CHARTS | dict(plugins.loaded("charts", reserved=CHARTS))


def _measure(name: str) -> Callable[..., Reading]:
    """A measure that a chart names (entry point ``workbench.measures``): a function from a reading to a reading."""
    return plugins.load("measures", name)


def chart(content: Reading | xr.Dataset, kind: str | None = None, **options: Any) -> Figure:
    """Draw `kind`, or the first chart that fits; options go to that chart's function, or to its measure."""
    reading = content if isinstance(content, Reading) else Reading(content)
    data = reading.data
    kind = kind or data.attrs.get("chart")
    if kind in CHARTS or (kind is None and any(not c.lacks(data) for c in CHARTS.values())):
        known = CHARTS
    else:
        known = charts()
    fitting = [name for name, c in known.items() if not c.lacks(data)]
    if kind is None:
        if not fitting:
            needs = "; ".join(f"{name} needs {', '.join(c.needs)}" for name, c in known.items())
            raise InputError(
                f"No chart fits this reading: it holds {sorted(map(str, data.data_vars))}, but {needs}. "
                "Draw it from .data or .frame() with plotly itself."
            )
        kind = fitting[0]
    if kind not in known:
        raise InputError(f"There is no chart {kind!r}. Charts that fit this reading: {fitting}.")
    if lacking := known[kind].lacks(data):
        raise InputError(
            f"The chart {kind!r} needs {lacking}, which this reading does not hold. Charts that fit it: "
            f"{fitting}."
        )
    drawn = known[kind].measured(reading, options)
    _known_options(kind, known[kind], options)
    figure = known[kind].function(drawn.data, **options)
    return figure.describe(drawn) if isinstance(figure, Figure) else figure


def _known_options(kind: str, own: Chart, options: dict[str, Any]) -> None:
    """Raise InputError for options that the chart's function does not take, and say which it takes."""
    parameters = list(inspect.signature(own.function).parameters.values())[1:]
    takes = [str(p).replace("'", "") for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in parameters}
    if len(takes) < len(parameters) or not (unknown := [name for name in options if name not in names]):
        return
    size = "; sizes belong to .save(path, width=..., venue=...)" * (unknown[0] in ("width", "venue", "height"))
    part = "; a part of a reading is drawn as reading.isel(layer=..., position=...).figure()"
    raise InputError(
        f"The chart {kind!r} has no option {unknown[0]!r}. It takes: {', '.join(takes) or 'none'}"
        + f"; of a reading that is not measured yet also those of the measure {own.measure}" * bool(own.measure)
        + size
        + (part if unknown[0].rstrip("s") in ("layer", "position", "block", "depth") else "")
        + "."
    )


# ---------------------------------------------------------------- common


def _figure(content: Any = None, title: str = "") -> Figure:
    theme.register()
    figure = Figure(content)
    figure.update_layout(template="workbench")
    figure.update_layout(title_text=tokens.plotly(title))
    return figure


def _heading(source: Source, what: str) -> str:
    return " · ".join(part for part in (source.reader, source.model, what) if part)


def _title(source: Source, what: str, prompt: int) -> str:
    count = source.data.sizes.get("prompt", 1)
    return _heading(source, what + (f" · prompt {prompt} of {count}" if count > 1 else ""))
