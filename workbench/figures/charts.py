"""Charts: one function for each kind, dataset in and Figure out; `chart()` chooses by what the data holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench import plugins, tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.cells import SMALLEST, fit_cells, ink
from workbench.figures.figure import Figure
from workbench.figures.source import Source
from workbench.stats import Design, nanmean
from workbench.stats.design import FEW
from workbench.variables import aimed

if TYPE_CHECKING:
    import xarray as xr

    from workbench.reading import Reading

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
            score that the tokens are in the order of, or the first value.
    target  which target, by text or number, for variables over targets
    text    whether cells show their top token (left out by itself where cells are too small to read)
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    if value is None:
        value = source.score or next(iter(source.values()), None)
    if value is None or not source.has(value):
        raise InputError(
            f"heatmap(value={value!r}): this reading holds {source.grids()}. Choose one of these."
        )
    grid = source.grid(value, prompt, target)
    shown, bar = grid, {"title": {"text": source.title(value, short=True)}}
    if source.about(value).get("scale") == "log":
        shown = np.log10(grid + 1)
        ticks = [t for t in (0, 9, 99, 999, 9999, 99999) if t <= max(np.nanmax(grid, initial=0), 1)]
        bar |= {"tickvals": np.log10(np.add(ticks, 1)).tolist(), "ticktext": [f"{t:,}" for t in ticks]}

    inputs = [tokens.visible(t) for t in source.inputs(prompt)]
    signed, scale = source.scale(value) == "diverging", theme.stops(source.scale(value))
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
    figure = blank(trace)
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
    said = source.title(value)
    if "target" in data[value].dims:
        said = aimed(said, source.aim(source.target(target, prompt), prompt))
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
    return shows(figure, value)


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
    score, scores = source.score, None
    if ids is not None and score is not None:
        found = source.data[score].isel(prompt=prompt).transpose(source.depth, "position", "rank")
        scores = found.values[:, source.positions(prompt), :5]
    name = source.title(value)
    said, places, sinks = _contexts(source, prompt), source.places(prompt), source.sinks(prompt)
    found = {end: source.controls(score, end) if score else [] for end in ("p", "q")}
    tests = {end: source.grid(names[0], prompt) for end, names in found.items() if names}
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
    data: xr.Dataset,
    prompt: int = 0,
    position: int = -1,
    targets: Sequence[str] | None = None,
    value: str | None = None,
) -> Figure:
    """A value over depth at one position, of each target where there are several; dotted its null, where it has one.

    position counts the prompt's own tokens; negative from the end.  targets chooses some, by text.
    value is any of the reading's over depth and position; by default the one of its targets (``target_logprob``), or
    else the first.
    """
    source = Source(data)
    value = value or source.followed or next(iter(source.values()), None)
    if value not in source.grids():
        raise InputError(f"trajectory(value={value!r}): this reading holds {source.grids()}. Choose one of these.")
    prompt = source.prompt(prompt)
    at = source.position(prompt, position)
    aimed = value == source.followed and source.has("target_id")
    names = source.targets(prompt, at) if aimed else [source.called(value, short=True)]
    chosen = list(range(len(names))) if targets is None else [source.target(t, prompt) for t in targets]
    chosen, more = first_few(chosen, "targets")
    units = source.about(value).get("units", "")
    beside = [n for n in source.values() if n != value and source.data[n].dims == source.data[value].dims]
    null = next(iter(source.controls(value, "null")), None)
    null_name = f"null: {source.called(null, short=True)}" if null else ""
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    figure = blank()
    nulls = 0
    for number, index in enumerate(chosen):
        colour = theme.HUES[number % len(theme.HUES)]
        label = tokens.labels([tokens.visible(names[index])])[0]
        more_told = [
            f", {source.called(n, short=True)} %{{customdata[{i}]:.5~g}}" for i, n in enumerate(beside)
        ]  # fmt: skip
        known = [_along(source, n, prompt, column, index) for n in beside]
        figure.add_scatter(
            x=source.depths, y=_along(source, value, prompt, column, index), name=label, mode="lines+markers",
            line={"color": colour, "width": 2}, marker={"size": 4}, legendgroup=label,
            customdata=np.stack(known, -1) if known else None,
            hovertemplate=f"{source.depth} %{{x}}: %{{y:.3f}} {units}{''.join(more_told)}",
        )  # fmt: skip
        found = None if null is None else _along(source, null, prompt, column, index)
        if found is not None and not np.all(np.isnan(found)):
            nulls += 1
            figure.add_scatter(
                x=source.depths, y=found, mode="lines", legendgroup=label, showlegend=len(chosen) == 1,
                line={"color": colour, "width": 1.5, "dash": "dot"},
                name=null_name if len(chosen) == 1 else f"{label}, {null_name}", hovertemplate=f"%{{y:.3f}} {units}",
            )  # fmt: skip
    if nulls and len(chosen) > 1:  # one entry for all of them
        grey = {"color": "#7F7F7F", "width": 1.5, "dash": "dot"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=grey, name=null_name)
    token = tokens.visible(source.inputs(prompt)[column])
    sink = "a sink" if source.sinks(prompt)[:, column].any() else ""
    what = f"{source.called(value, short=True)} after {token} (#{source.places(prompt)[column]})"
    said = ", ".join(filter(None, [what, sink, more]))
    figure.update_layout(title_text=tokens.plotly(_title(source, said, prompt)))
    figure.update_layout(width=640, height=380, hovermode="x unified", showlegend=True)
    figure.update_xaxes(title_text=source.depth_label, tickformat="d")
    figure.update_yaxes(title_text=source.title(value, short=True))
    return shows(figure, value)


def first_few(chosen: list[Any], what: str) -> tuple[list[Any], str]:
    """As many as there are hues, and what a title says of the rest."""
    kept = chosen[: len(theme.HUES)]
    return kept, f"the first {len(kept)} of {len(chosen)} {what}" if len(kept) < len(chosen) else ""


def _along(source: Source, name: str, prompt: int, column: int, target: int) -> np.ndarray:
    """[depth] of one value at the column of a position, of one target where it is over targets."""
    return source.grid(name, prompt, target if "target" in source.data[name].dims else None)[:, column]


# ---------------------------------------------------------------- curves


def curves(
    data: xr.Dataset,
    value: str | Sequence[str] | None = None,
    target: int | str | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Figure:
    """Depth curves: the mean over prompts of each prompt's mean, with a band (below 8, the prompts); dotted: the null.

    Positions are averaged without those that are sinks, where the reading tells them; the title says how many.
    Of fewer than 8 prompts each is shown as a point instead of a band, and the hover has the interval.

    value      one variable or several (one panel each); default: the first that is logarithmic (ranks of targets) and
               the first other that is not over ranks
    target     one of several, by text or number; default all of them, a line each
    level, draws, seed    of the interval over prompts (:meth:`workbench.stats.Design.bootstrap`); with one prompt there
               is none
    What is logarithmic by its attributes (ranks of targets) is averaged as log10(1 + x) and drawn on that scale.
    """
    source = Source(data)
    asked = [value] if isinstance(value, str) else list(value or ())
    data, known = source.data, source.values()
    plain = [v for v in known if "rank" not in data[v].dims]
    logs = [v for v in plain if source.about(v).get("scale") == "log"][:1]
    names = asked or [*logs, *(v for v in plain if v not in logs)][:2] or known[:1]
    if not names or (lacking := [v for v in names if v not in source.grids()]):
        lacking = lacking if names else "any value over depth and position"
        raise InputError(f"curves: this reading does not hold {lacking}. It holds {source.grids()}.")
    prompts = range(data.sizes.get("prompt", 1))
    aims = list(range(data.sizes.get("target", 1))) if target is None else [source.target(target, 0)]
    aims, more = first_few(aims, "targets")
    if all("target" not in data[name].dims for name in names):
        aims, more = [0], ""
    lines = [(name, aim) for name in names for aim in (aims if "target" in data[name].dims else aims[:1])]
    means = np.stack([[_position_mean(source, *line, p) for line in lines] for p in prompts])
    if np.isnan(means).all((0, 2)).any():
        raise InputError(
            "curves: no position of any prompt has a value (sinks are left out), so there is nothing to average."
        )
    found = Design(n=len(means)).bootstrap(means, level=level, draws=draws, seed=seed)
    few = bool(found.units.max() < FEW)
    how = f"{level:.0%} interval: {found.said('prompts')}"
    figure, nulls = blank(make_subplots(cols=len(names), horizontal_spacing=0.16)), 0
    highest: dict[str, float] = {}
    for line, (name, aim) in enumerate(lines):
        column, number = names.index(name) + 1, aims.index(aim)
        where, log = {"row": 1, "col": column}, source.about(name).get("scale") == "log"
        centre, low, high = found.value[line], found.low[line], found.high[line]
        known, shown = ~np.isnan(low), means[:, line] if few else high
        highest[name] = max(highest.get(name, 0.3), float(np.nanmax(shown, initial=0.3)))
        several = len(aims) > 1 and "target" in data[name].dims
        called = tokens.labels([_target_name(source, aim)])[0] if several else source.called(name, short=True)
        # Beside lines of several targets, another panel's line has none of the hues that say which target.
        colour = theme.HUES[number if several else -column if len(aims) > 1 else column - 1]
        if len(means) > 1 and few:
            figure.add_scatter(
                x=np.tile(source.depths, len(means)), y=means[:, line].ravel(), mode="markers", showlegend=False,
                marker={"size": 4, "color": theme.faded(colour, 0.45)}, legendgroup=called,
                customdata=np.repeat(prompts, len(source.depths)),
                hovertemplate="prompt %{customdata}: %{y:.3f}<extra></extra>", **where,
            )  # fmt: skip
        elif known.any():
            x, low_, high_ = source.depths[known], low[known], high[known]
            figure.add_scatter(
                x=np.concatenate([x, x[::-1]]), y=np.concatenate([high_, low_[::-1]]), mode="lines", fill="toself",
                fillcolor=theme.faded(colour), line={"width": 0}, hoverinfo="skip", showlegend=False,
                legendgroup=called, **where,
            )  # fmt: skip
        figure.add_scatter(
            x=source.depths, y=centre, name=called, mode="lines+markers", marker={"size": 4},
            line={"color": colour, "width": 2}, customdata=np.stack([low, high], axis=-1), legendgroup=called,
            showlegend=several and not any(t.name == called and t.showlegend for t in figure.data),
            hovertemplate="%{y:.3f}"
            + f" [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}], {how}" * bool(known.any())
            + "<extra></extra>", **where,
        )  # fmt: skip
        own = [n for n in source.controls(name, "null") if n in source.grids() or data[n].dims == (source.depth,)]
        null = nanmean(np.stack([_position_mean(source, n, aim, p, log) for n in own[:1] for p in prompts] or [np.nan]))
        if not np.isnan(null).all():
            nulls += 1
            figure.add_scatter(
                x=source.depths, y=null, name=f"{called}, null", mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dot"}, showlegend=False, legendgroup=called,
                hovertemplate="null: %{y:.3f}<extra></extra>", **where,
            )  # fmt: skip
    for column, name in enumerate(names, start=1):
        where = {"row": 1, "col": column}
        figure.update_yaxes(title_text=source.title(name), **where)
        if source.about(name).get("scale") == "log":
            top = highest[name]
            ticks = [t for t in (0, 1, 3, 9, 30, 99, 999, 9999, 99999) if np.log10(t + 1) <= top + 0.2]
            figure.update_yaxes(
                tickvals=np.log10(np.add(ticks, 1)), ticktext=[f"{t:,}" for t in ticks], **where
            )
        figure.update_xaxes(title_text=source.depth_label, tickformat="d", **where)
    count = len(prompts)
    band = f"points: each of {count} prompts" if few else f"{level:.0%} band: {found.said('prompts')}"
    band = band if count > 1 else "1 prompt, so no band"
    over = "mean over positions" if data.sizes.get("position", 1) > 1 else ""
    one = f"target {_target_name(source, aims[0])}" if len(aims) == 1 and data.sizes.get("target", 1) > 1 else ""
    if all("target" not in data[name].dims for name in names):
        one = ""
    said = ", ".join(filter(None, [one, more, over, source.sinks_left_out(), band, "dotted: null" * bool(nulls)]))
    width = 330 * len(names) + 60
    figure.update_layout(title_text=tokens.plotly(heading(source, said)), width=width, height=340)
    if len(aims) > 1:
        figure.update_layout(height=380, legend={"orientation": "h", "y": -0.22})
    return shows(figure, *names, controls=[band])


def _target_name(source: Source, target: int) -> str:
    """What a target is called in all prompts; of prompts with targets of their own, its number."""
    return f"{target + 1} of each prompt" if source.own_targets else tokens.visible(source.targets(0, 0)[target])


def _position_mean(source: Source, name: str, target: int, prompt: int, log: bool | None = None) -> np.ndarray:
    """[depth], the mean over a prompt's positions, sinks apart; NaN where none has a value.

    ``log``: of log10(1 + x); None: as the variable's scale says.
    """
    log = source.about(name).get("scale") == "log" if log is None else log
    grid = source.grid(name, prompt, target if "target" in source.data[name].dims else None)
    values = np.where(source.sinks(prompt), np.nan, np.log10(grid + 1) if log else grid)
    count = np.sum(~np.isnan(values), axis=1)
    return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


# ---------------------------------------------------------------- attribution


def attribution(
    data: xr.Dataset, prompt: int = 0, position: int = -1, target: int | str | None = None
) -> Figure:
    """What each component of the model adds at one position, such as to a token's logit; the bars add up to it.

    Lines across: the null of each component, such as its mean over all positions, what it adds anywhere.
    """
    source = Source(data)
    data, value = source.data, source.by_component()[0]
    total, null = source.about(value).get("sums_to"), next(iter(source.controls(value, "null")), None)
    prompt = source.prompt(prompt)
    at = source.position(prompt, position)
    index = source.target(target, prompt)

    def pick(name: str) -> np.ndarray:
        found = data[name].isel(prompt=prompt, position=at)
        return (found.isel(target=index) if "target" in found.dims else found).values

    names = [str(c) for c in data["component"].values]
    values = pick(value).astype(float)
    figure = blank()
    kinds = list(dict.fromkeys(n.split(".")[0] for n in names))
    hues = dict(zip(kinds, theme.HUES, strict=False))
    for kind in kinds:
        own = [i for i, n in enumerate(names) if n.split(".")[0] == kind]
        figure.add_bar(
            x=own, y=values[own], name=kind, marker={"color": hues.get(kind, theme.HUES[-1])}, width=0.85,
            customdata=[tokens.plotly(names[i]) for i in own],
            hovertemplate="%{customdata}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    if null is not None:
        mean, called = data[null], source.called(null, short=True)
        mean = (mean.isel(target=index) if "target" in mean.dims else mean).values
        figure.add_scatter(
            x=list(range(len(names))), y=mean, mode="markers", name=called,
            marker={"symbol": "line-ew", "size": 13, "line": {"width": 2, "color": "#222222"}},
            hovertemplate=f"{called}: %{{y:.4g}}<extra></extra>",
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
        title_text=source.title(value), zeroline=True, zerolinewidth=1, zerolinecolor="#888888"
    )
    targets = source.targets(prompt, at)
    said = aimed(source.called(value), tokens.visible(targets[min(index, len(targets) - 1)]))
    if total and source.has(total):
        said += f", in all {float(pick(total)):.3g}"
    if "target" in data[value].dims and len(targets) > 1:
        said += f", target {index + 1} of {len(targets)}"
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    if len(source.positions(prompt)) > 1:
        said += f", after {tokens.visible(source.inputs(prompt)[column])} (#{source.places(prompt)[column]})"
    figure.update_layout(title_text=tokens.plotly(_title(source, said, prompt)))
    figure.update_layout(width=width, height=380, barmode="overlay", showlegend=True)
    return shows(figure, value)


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Chart:
    """A chart: its function(data, **options), and what it cannot be drawn without.

    needs    names of variables ("a or b": either)
    measure  of a chart that draws a measure's result: the measure (an entry point of ``workbench.measures``).  A
             reading that has the variables ``of`` is measured first, with the measure's own defaults and those options
             that it has and the chart has not.
    lacking  (data) -> what is missing in words, [] where nothing is: for a chart that goes by what variables are and
             not by their names (:mod:`workbench.variables`)
    """

    function: Callable[..., Figure]
    needs: tuple[str, ...] = ()
    measure: str = ""
    of: tuple[str, ...] = ()
    lacking: Callable[[xr.Dataset], list[str]] | None = None

    def _own(self, data: xr.Dataset) -> list[str]:
        return _absent(self.needs, data) + (self.lacking(data) if self.lacking else [])

    def lacks(self, data: xr.Dataset) -> list[str]:
        """What a reading would have to hold, in words; [] where it can be drawn."""
        own = self._own(data)
        return _absent(self.of, data) if own and self.measure else own

    def measured(self, reading: Any, options: dict[str, Any]) -> Any:
        """What the chart draws: the reading itself, or its measure's result; takes the measure's options out."""
        if not self.measure or not self._own(_data(reading)):
            return reading
        own, measure = inspect.signature(self.function).parameters, plugins.load("measures", self.measure)
        given = [name for name in options if name not in own and name in inspect.signature(measure).parameters]
        return measure(reading, **{name: options.pop(name) for name in given})


def _absent(needs: tuple[str, ...], data: xr.Dataset) -> list[str]:
    return [name for name in needs if not any(one in data.data_vars for one in name.split(" or "))]


def _data(reading: Any) -> xr.Dataset:
    """The dataset of a reading; a dataset is its own."""
    return reading.data if hasattr(reading, "provenance") else reading


def _no_grid(data: xr.Dataset) -> list[str]:
    return [] if Source(data).values() else ["a value over layer (or block) and position"]


def _no_parts(data: xr.Dataset) -> list[str]:
    return [] if Source(data).by_component() else ["a value over position and component"]


CHARTS: dict[str, Chart] = {
    "heatmap": Chart(heatmap, lacking=_no_grid),
    "trajectory": Chart(trajectory, lacking=_no_grid),
    "curves": Chart(curves, lacking=_no_grid),
    "attribution": Chart(attribution, lacking=_no_parts),
}


def charts() -> dict[str, Chart]:
    """All charts: ours, and those of lenses, probes and other packages (entry points ``workbench.charts``)."""
    return CHARTS | dict(plugins.loaded("charts", reserved=CHARTS))


def _first_that_fits(data: xr.Dataset) -> str | None:
    """A chart that was made for a kind of reading goes before those that draw any, unless there are tokens to show."""
    ours = next((name for name, c in CHARTS.items() if not c.lacks(data)), None)
    if ours and ("token_id" in data or Source(data).by_component()):
        return ours
    return next((name for name, c in plugins.loaded("charts", reserved=CHARTS) if not c.lacks(data)), ours)


def chart(reading: Reading | xr.Dataset, kind: str | None = None, **options: Any) -> Figure:
    """Draw `kind`, or the first chart that fits; options go to that chart's function, or to its measure."""
    data = _data(reading)
    kind = kind or data.attrs.get("chart") or _first_that_fits(data)
    if kind is None:
        own = {name: c.needs or tuple(c.lacks(data)) for name, c in charts().items()}
        needs = "; ".join(f"{name} needs {', '.join(what)}" for name, what in own.items())
        raise InputError(
            f"No chart fits this reading: it holds {sorted(map(str, data.data_vars))}, but {needs}. "
            "Draw it from .data or .frame() with plotly itself."
        )
    known = plugins.points("charts", reserved=CHARTS)
    chosen = CHARTS.get(kind) or (plugins.load("charts", kind, reserved=CHARTS) if kind in known else None)
    if chosen is None or (lacking := chosen.lacks(data)):
        fitting = [name for name, c in charts().items() if not c.lacks(data)]
        if chosen is None:
            raise InputError(f"There is no chart {kind!r}. Charts that fit this reading: {fitting}.")
        raise InputError(
            f"The chart {kind!r} needs {lacking}, which this reading does not hold. Charts that fit it: {fitting}."
        )
    drawn = chosen.measured(reading, options)
    _known_options(kind, chosen, options)
    figure = chosen.function(_data(drawn), **options)
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


def blank(content: Any = None, title: str = "") -> Figure:
    theme.register()
    figure = Figure(content)
    figure.update_layout(template="workbench")
    figure.update_layout(title_text=tokens.plotly(title))
    return figure


def shows(figure: Figure, *names: str, controls: Sequence[str] = ()) -> Figure:
    """Note which variables a figure shows, and what it says itself of how sure they are (a band): for its caption."""
    meta: Any = figure.layout["meta"] if isinstance(figure.layout["meta"], dict) else {}
    own = {"shows": list(names), "controls": list(controls)}
    figure.update_layout(meta={**meta, "workbench": {**(meta.get("workbench") or {}), **own}})
    return figure


def heading(source: Source, what: str) -> str:
    return " · ".join(part for part in (source.reader, source.model, what) if part)


def _title(source: Source, what: str, prompt: int) -> str:
    count = source.data.sizes.get("prompt", 1)
    return heading(source, what + (f" · prompt {prompt} of {count}" if count > 1 else ""))
