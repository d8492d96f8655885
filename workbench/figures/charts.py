"""Charts: one function for each kind, dataset in and plot out; `chart()` chooses by what the data holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import plugins, tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.figures import plot as plots
from workbench.figures.caption import by_name
from workbench.figures.figure import Figure, dataset, drawn
from workbench.figures.pictures import overlay, rows_of_patches
from workbench.figures.plot import Axis, Bars, Cells, Line, Panel, Plot, Points, Rule, first_few, whole
from workbench.figures.said import (
    at_position,
    heading,
    hovers,
    ids,
    names_of_positions,
    of_kind,
    on_scale,
    prompt_title,
)
from workbench.figures.source import Source
from workbench.stats import Design, nanmean
from workbench.stats.design import FEW
from workbench.variables import aimed

if TYPE_CHECKING:
    import xarray as xr

    from workbench.reading import Reading

TEXT_CELLS = 6_000


# ---------------------------------------------------------------- heatmap


@drawn
def heatmap(
    data: xr.Dataset,
    prompt: int = 0,
    value: str | None = None,
    target: int | str | None = None,
    text: bool = True,
    positions: str | None = None,
) -> Plot:
    """Depth x positions of one prompt, rising upwards, the top token in each cell and the input below.

    value   what the colour shows: any variable over [prompt, depth, position(, rank)(, target)], such as
            "logprob", "entropy", "kl_to_final", "cosine", "target_rank"; the first rank of it.  Default: the
            score that the tokens are in the order of, or the first value.
    target  which target, by text or number, for variables over targets
    text    whether cells show their top token (left out by itself where cells are too small to read)
    positions    of a prompt with pictures: "text" (the default where there is any), "image" or "all"; a picture itself
                 is drawn by the chart "overlay"
    """
    source, kinds = of_kind(data, positions, "heatmap")
    prompt = source.prompt(prompt)
    value = value or source.score or next(iter(source.values()), None)
    if value is None or not source.has(value):
        raise InputError(
            f"heatmap(value={value!r}): this reading holds {source.grids()}. Choose one of these."
        )
    grid = source.grid(value, prompt, target)
    shown, ticks = on_scale(source, value, grid)
    top = None
    if text and source.has("token_id") and grid.size <= TEXT_CELLS:
        first = ids(source, prompt)[:, :, 0]
        top = np.array([[tokens.visible(source.text(i)) if i >= 0 else "" for i in row] for row in first], object)
    sinks = source.sinks(prompt)
    said = source.title(value)
    if "target" in data[value].dims:
        said = aimed(said, source.aim(source.target(target, prompt), prompt))
    framed = f"dotted frame: {source.sink_said}" if sinks.any() else ""
    cells = Cells(
        shown, source.scale(value), bar=source.title(value, short=True), ticks=ticks, text=top, framed=sinks,
        hover=hovers(source, prompt, value, grid) if grid.size <= plots.HOVER_CELLS else None,
    )  # fmt: skip
    across = Axis(names=names_of_positions(source, prompt), places=source.places(prompt).tolist())
    panel = Panel([cells], across, Axis(source.depth_label, names=[str(d) for d in source.depths]))
    return Plot([panel], prompt_title(source, ", ".join(filter(None, [said, kinds, framed])), prompt), shows=[value])


# ---------------------------------------------------------------- trajectory


@drawn
def trajectory(
    data: xr.Dataset,
    prompt: int = 0,
    position: int = -1,
    targets: Sequence[str] | None = None,
    value: str | None = None,
) -> Plot:
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
    several = value == source.followed and source.has("target_id")
    names = source.targets(prompt, at) if several else [source.called(value, short=True)]
    chosen = list(range(len(names))) if targets is None else [source.target(t, prompt) for t in targets]
    chosen, more = first_few(chosen, "targets")
    beside = [n for n in source.values() if n != value and source.data[n].dims == source.data[value].dims]
    null = next(iter(source.controls(value, "null")), None)
    null_name = f"null: {source.called(null, short=True)}" if null else ""
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    marks: list[plots.Mark] = []
    nulls = []
    for hue, index in enumerate(chosen):
        label = tokens.visible(names[index])
        y, others = _along(source, value, prompt, column, index), {
            source.called(n, short=True): _along(source, n, prompt, column, index) for n in beside
        }  # fmt: skip
        hover = [
            ", ".join([f"{label}, {source.depth} {d}: {y[i]:.3f} {source.about(value).get('units', '')}".strip(),
                       *(f"{n} {v[i]:.5g}" for n, v in others.items())])
            for i, d in enumerate(source.depths)
        ]  # fmt: skip
        marks.append(Line(source.depths, y, label, hue=hue, hover=hover))
        found = None if null is None else _along(source, null, prompt, column, index)
        if found is not None and not np.all(np.isnan(found)):
            nulls.append(Line(source.depths, found, null_name, hue=hue if len(chosen) == 1 else plots.GREY, dash="dot",
                              markers=False, width=1.5))  # fmt: skip
            nulls[-1].hue, nulls[-1].legend = hue, len(chosen) == 1
    if nulls and len(chosen) > 1:  # one entry for all of them
        marks.append(Line([], [], null_name, hue=plots.GREY, dash="dot", markers=False, width=1.5))
    sink = "a sink" if source.sinks(prompt)[:, column].any() else ""
    what = f"{source.called(value, short=True)} {at_position(source, prompt, column)}"
    said = ", ".join(filter(None, [what, sink, more]))
    panel = Panel([*marks, *nulls], whole(source.depth_label, source.depths), source.title(value, short=True))
    return Plot([panel], prompt_title(source, said, prompt), shows=[value])


def _along(source: Source, name: str, prompt: int, column: int, target: int) -> np.ndarray:
    """[depth] of one value at the column of a position, of one target where it is over targets."""
    return source.grid(name, prompt, target if "target" in source.data[name].dims else None)[:, column]


# ---------------------------------------------------------------- curves


@partial(drawn, several=True)
def curves(
    data: xr.Dataset | Mapping[str, xr.Dataset],
    value: str | Sequence[str] | None = None,
    target: int | str | None = None,
    *,
    positions: str | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Plot:
    """Depth curves: the mean over prompts of each prompt's mean, with a band (below 8, the prompts); dotted: the null.

    Positions are averaged without those that are sinks, where the reading tells them; the title says how many.
    Of fewer than 8 prompts each is shown as a point instead of a band, and the hover has the interval.

    data       a reading, or several by name, which get a line each: ``curves({"base": one, "tuned": other})``
    value      one variable or several (one panel each); default: the first that is logarithmic (ranks of targets) and
               the first other that is not over ranks
    target     one of several, by text or number; default all of them, a line each
    positions  of prompts with pictures, those that are averaged: "text" (the default where there are any), "image"
               or "all"
    level, draws, seed    of the interval over prompts (:meth:`workbench.stats.Design.bootstrap`); with one prompt there
               is none
    What is logarithmic by its attributes (ranks of targets) is averaged as log10(1 + x) and drawn on that scale.
    """
    kept = {str(who): of_kind(own, positions, "curves") for who, own in (data if by_name(data) else {"": data}).items()}
    sources, kinds = {who: source for who, (source, _) in kept.items()}, next(iter(kept.values()))[1]
    first, *others = sources.values()
    names = _curved(sources, value)
    aimed_at = [name for name in names if "target" in first.data[name].dims]
    chosen = [(who, aim) for who, source in sources.items() for aim in (_aims(source, target) if aimed_at else [0])]
    chosen, more = first_few(chosen, "lines" if others else "targets")
    depths = np.concatenate([source.depths for source in sources.values()])
    panels = {name: Panel([], whole(first.depth_label, depths), first.title(name)) for name in names}
    hues: dict[str, int] = {}
    said: dict[str, str] = {}
    for who in dict.fromkeys(who for who, _ in chosen):
        source, aims = sources[who], [aim for own, aim in chosen if own == who]
        lines = [(name, aim) for name in names for aim in (aims if name in aimed_at else aims[:1])]
        marks, band = _means(source, lines, who, level, draws, seed)
        for (name, aim), own in zip(lines, marks, strict=True):
            called = _target_name(source, aim) if name in aimed_at and len(aims) > 1 else ""
            own[0].name = " · ".join(filter(None, [who, called]))
            for mark in own:  # a line that is of no target has the hue of none
                mark.hue = hues.setdefault(own[0].name or name, len(hues))
            panels[name].marks = [*panels[name].marks, *own]
        one = aimed_at and len(aims) == 1 and source.data.sizes["target"] > 1
        told = [f"target {_target_name(source, aims[0])}" if one else "", source.sinks_left_out(), band]
        said[who] = ", ".join(filter(None, told))
    for name, panel in panels.items():
        if first.about(name).get("scale") == "log":
            ends = [(line.y, line.high if line.banded else line.each) for line in panel.of(Line)]
            shown = [np.ravel(v) for pair in ends for v in pair if v is not None]
            highest = float(np.nanmax(np.concatenate(shown), initial=0.3))
            panel.y.ticks, panel.y.names = plots.log_ticks(highest)  # type: ignore[union-attr]
    over = f"mean over {kinds or 'positions'}" * any(s.data.sizes.get("position", 1) > 1 for s in sources.values())
    nulls = "dotted: null" * any(line.dash == "dot" for panel in panels.values() for line in panel.of(Line))
    same = len(set(said.values())) == 1
    every = list(said.values())[:1] if same else [f"{text} ({who})" for who, text in said.items()]
    title = heading(first, ", ".join(filter(None, [more, over, *every, nulls])), *others)
    return Plot(list(panels.values()), title, shows=names, controls=list(said.values()))


def _curved(sources: dict[str, Source], value: str | Sequence[str] | None) -> list[str]:
    """The variables whose means are drawn: every reading has them, over the same depth and in the same units."""
    first = next(iter(sources.values()))
    known = [v for v in first.values() if all(v in source.values() for source in sources.values())]
    plain = [v for v in known if "rank" not in first.data[v].dims]
    logs = [v for v in plain if first.about(v).get("scale") == "log"][:1]
    names = [value] if isinstance(value, str) else list(value or ())
    names = names or [*logs, *(v for v in plain if v not in logs)][:2] or known[:1]
    for who, source in sources.items():
        if not names or (lacking := [v for v in names if v not in source.grids()]):
            lacking = lacking if names else "any value over depth and position" + " that all hold" * (len(sources) > 1)
            raise InputError(f"curves: {who or 'this reading'} does not hold {lacking}. It holds {source.grids()}.")
        own, other = ([s.depth_label, *map(s.title, names)] for s in (source, first))
        if own != other:
            raise InputError(
                f"curves: {who} has {', '.join(own)}, and {next(iter(sources))} has {', '.join(other)}, which no axis "
                "shows together. Draw a figure of each."
            )
    return names


def _aims(source: Source, target: int | str | None) -> list[int]:
    """The targets that are drawn."""
    return list(range(source.data.sizes.get("target", 1))) if target is None else [source.target(target, 0)]


def _means(
    source: Source, lines: Sequence[tuple[str, int]], who: str, level: float, draws: int, seed: int
) -> tuple[list[list[Line]], str]:
    """The mean over prompts of each variable and target with its null, where it has one; and what the band is."""
    prompts = range(source.data.sizes.get("prompt", 1))
    means = np.stack([[_position_mean(source, *line, p) for line in lines] for p in prompts])
    if np.isnan(means).all((0, 2)).any():
        raise InputError(
            f"curves: no position of any prompt {f'of {who} ' * bool(who)}has a value (sinks are left out), so there "
            "is nothing to average."
        )
    found = Design(n=len(means)).bootstrap(means, level=level, draws=draws, seed=seed)
    few, count = bool(found.units.max() < FEW), len(prompts)
    marks = []
    for i, (name, aim) in enumerate(lines):
        mean, low, high = found.value[i], found.low[i], found.high[i]
        line = Line(source.depths, mean, low=low, high=high)
        if few and count > 1:
            line.each, line.banded = means[:, i], False
            line.hover = [
                f"{source.depth} {d}: {v:.3f} [{a:.3f}, {b:.3f}], {level:.0%} interval: {found.said('prompts')}"
                for d, v, a, b in zip(source.depths, mean, low, high, strict=True)
            ]
        over_depth = [str(n) for n, v in source.data.items() if v.dims == (source.depth,)]
        nulls = [n for n in source.controls(name, "null") if n in (*source.grids(), *over_depth)][:1]
        log = source.about(name).get("scale") == "log"
        null = nanmean(np.stack([_position_mean(source, n, aim, p, log) for n in nulls for p in prompts] or [np.nan]))
        own = [] if np.isnan(null).all() else [Line(source.depths, null, dash="dot", markers=False, width=1.5)]
        marks.append([line, *own])
    band = f"points: each of {count} prompts" if few else f"{level:.0%} band: {found.said('prompts')}"
    return marks, band if count > 1 else "1 prompt, so no band"


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


@drawn
def attribution(data: xr.Dataset, prompt: int = 0, position: int = -1, target: int | str | None = None) -> Plot:
    """What each component of the model adds at one position, such as to a token's logit; the bars add up to it.

    Dashes: the null of each component, such as its mean over all positions, what it adds anywhere.
    """
    source = Source(data)
    data, value = source.data, source.by_component()[0]
    total, null = source.about(value).get("sums_to"), next(iter(source.controls(value, "null")), None)
    prompt = source.prompt(prompt)
    at = source.position(prompt, position)
    index = source.target(target, prompt)

    def pick(name: str) -> np.ndarray:
        found = data[name]
        for dim, place in (("prompt", prompt), ("position", at), ("target", index)):
            found = found.isel({dim: place}) if dim in found.dims else found
        return found.values.astype(float)

    names = [str(c) for c in data["component"].values]
    values = pick(value)
    marks: list[plots.Mark] = [Rule(0, dash="solid")]
    for hue, kind in enumerate(dict.fromkeys(n.split(".")[0] for n in names)):
        own = [i for i, n in enumerate(names) if n.split(".")[0] == kind]
        marks.append(Bars(own, values[own], kind, hue, hover=[f"{names[i]}: {values[i]:.4g}" for i in own]))
    if null is not None:
        called = source.called(null, short=True)
        marks.append(Points(range(len(names)), pick(null), called, plots.INK, symbol="dash", size=12))
    targets = source.targets(prompt, at)
    said = aimed(source.called(value), tokens.visible(targets[min(index, len(targets) - 1)]))
    if total and source.has(total):
        said += f", in all {float(pick(total)):.3g}"
    if "target" in data[value].dims and len(targets) > 1:
        said += f", target {index + 1} of {len(targets)}"
    column = int(np.flatnonzero(source.positions(prompt) == at)[0])
    if len(source.positions(prompt)) > 1:
        said += f", {at_position(source, prompt, column)}"
    across = Axis("component", names=[n.replace("_out", "") for n in names])
    return Plot([Panel(marks, across, source.title(value))], prompt_title(source, said, prompt), shows=[value])


# ---------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Chart:
    """A chart: its function(data, **options) -> Plot, and what it cannot be drawn without.

    needs    names of variables ("a or b": either)
    measure  of a chart that draws a measure's result: the measure (an entry point of ``workbench.measures``).  A
             reading that has the variables ``of`` is measured first, with the measure's own defaults and those options
             that it has and the chart has not.
    lacking  (data) -> what is missing in words, [] where nothing is: for a chart that goes by what variables are and
             not by their names (:mod:`workbench.variables`)
    """

    function: Callable[..., Any]
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
        if not self.measure or not self._own(dataset(reading)):
            return reading
        own, measure = inspect.signature(self.function).parameters, plugins.load("measures", self.measure)
        given = [name for name in options if name not in own and name in inspect.signature(measure).parameters]
        return measure(reading, **{name: options.pop(name) for name in given})


def _absent(needs: tuple[str, ...], data: xr.Dataset) -> list[str]:
    return [name for name in needs if not any(one in data.variables for one in name.split(" or "))]


def _no_grid(data: xr.Dataset) -> list[str]:
    return [] if Source(data).values() else ["a value over layer (or block) and position"]


def _no_pictures(data: xr.Dataset) -> list[str]:
    source = Source(data)
    there = patches.pictured(source) and (data["kind"].values == "image").any()
    return _no_grid(data) or ([] if there else ["pictures in its prompts"])


def _no_parts(data: xr.Dataset) -> list[str]:
    return [] if Source(data).by_component() else ["a value over position and component"]


CHARTS: dict[str, Chart] = {
    "heatmap": Chart(heatmap, lacking=_no_grid),
    "trajectory": Chart(trajectory, lacking=_no_grid),
    "curves": Chart(curves, lacking=_no_grid),
    "attribution": Chart(attribution, lacking=_no_parts),
    "overlay": Chart(overlay, lacking=_no_pictures),
    "patches": Chart(rows_of_patches, lacking=_no_pictures),
}


def charts() -> dict[str, Chart]:
    """All charts: ours, and those of lenses, probes and other packages (entry points ``workbench.charts``)."""
    return CHARTS | dict(plugins.loaded("charts", reserved=CHARTS))


def _first_that_fits(data: xr.Dataset) -> str | None:
    """A chart that was made for a kind of reading goes before those that draw any, unless there are tokens to show.

    Of patches alone the picture is shown.
    """
    if not _no_pictures(data) and not (data["kind"].values == "text").any():
        return "overlay"
    ours = next((name for name, c in CHARTS.items() if not c.lacks(data)), None)
    if ours and ("token_id" in data or Source(data).by_component()):
        return ours
    return next((name for name, c in plugins.loaded("charts", reserved=CHARTS) if not c.lacks(data)), ours)


def chart(reading: Reading | xr.Dataset, kind: str | None = None, **options: Any) -> Figure:
    """Draw `kind`, or the first chart that fits; options go to that chart's function, or to its measure."""
    data = dataset(reading)
    kind = kind or data.attrs.get("chart") or _first_that_fits(data)
    if kind is None:
        own = {name: c.needs or tuple(c.lacks(data)) for name, c in charts().items()}
        needs = "; ".join(f"{name} needs {', '.join(what)}" for name, what in own.items())
        raise InputError(
            f"No chart fits this reading: it holds {sorted(map(str, data.data_vars))}, but {needs}. "
            "Draw it from .data or .frame(), or describe it: workbench.figures.Plot."
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
    measured = chosen.measured(reading, options)
    _known_options(kind, chosen, options)
    found = chosen.function(measured if hasattr(chosen.function, "__wrapped__") else dataset(measured), **options)
    return Figure(found, of=measured) if isinstance(found, Plot) else found


def _known_options(kind: str, own: Chart, options: dict[str, Any]) -> None:
    """Raise InputError for options that the chart's function does not take, and say which it takes."""
    parameters = list(inspect.signature(own.function).parameters.values())[1:]
    takes = [str(p).replace("'", "") for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in parameters}
    if len(takes) < len(parameters) or not (unknown := [name for name in options if name not in names]):
        return
    size = "; sizes belong to .save(path, width=..., venue=...)" * (unknown[0] in ("width", "venue", "height"))
    size += "; axes of your own to reading.plot(ax=...) or .matplotlib(ax=...)" * (unknown[0] in ("ax", "axes"))
    part = "; a part of a reading is drawn as reading.isel(layer=..., position=...).figure()"
    raise InputError(
        f"The chart {kind!r} has no option {unknown[0]!r}. It takes: {', '.join(takes) or 'none'}"
        + f"; of a reading that is not measured yet also those of the measure {own.measure}" * bool(own.measure)
        + size
        + (part if unknown[0].rstrip("s") in ("layer", "position", "block", "depth") else "")
        + "."
    )
