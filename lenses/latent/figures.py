"""Charts of LatentLens and of what is measured with it; :func:`floors` and :func:`rates` of any such reading."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import InputError
from workbench.figures import colours
from workbench.figures.charts import Chart
from workbench.figures.figure import drawn
from workbench.figures.plot import Axis, Cells, Line, Mark, Panel, Plot, first_few, whole
from workbench.figures.said import heading, of_kind
from workbench.figures.source import Source
from workbench.variables import completed, controls_of

if TYPE_CHECKING:
    import xarray as xr


@drawn
def leap(data: xr.Dataset) -> Plot:
    """From which index layer the nearest contexts of each model layer come, beside the null of random tokens.

    Shares of a row add up to 1.  The null is of prompts of random tokens: what it shows, too, is
    what the index prefers by itself (hubs, crowded layers), and not where meaning lies.
    """
    source = Source(data)
    return Plot(
        _aligned(source, "index_layer_share"), heading(source, "which index layer answers"), shared="y",
        shows=["index_layer_share"],
    )  # fmt: skip


@drawn
def alignment(data: xr.Dataset) -> Plot:
    """Every share over model layers and index layers, each beside its nulls: of texts, and of patches where there are.

    The same as :func:`leap` for whatever shares a reading holds: rows that follow the diagonal, and whose null does
    not, answer from their own depth.
    """
    source = Source(data)
    names = shares(source.data)
    panels = [panel for name in names for panel in _aligned(source, name, source.called(name, short=True))]
    title, columns = heading(source, "which index layer answers"), len(panels) // len(names)
    return Plot(panels, title, columns=columns, shared="xy", shows=names)


def shares(data: xr.Dataset) -> list[str]:
    """Values over model layers and index layers that have a null of the same shape."""
    depth = next((d for d in ("layer", "block") if d in data.dims), None)
    return [
        str(name) for name, variable in data.data_vars.items()
        if variable.attrs.get("role") == "value" and set(variable.dims) == {depth, "index"}
        and any(set(data[null].dims) == {depth, "index"} for null in controls_of(data, str(name)).get("null", []))
    ]  # fmt: skip


def _aligned(source: Source, share: str, shown: str = "neighbours") -> list[Panel]:
    """A share and its nulls, a panel each."""
    names, depths = [str(i) for i in source.data["index"].values], [str(d) for d in source.depths]
    nulls = source.controls(share, "null")
    ends = [name for end in ("low", "high") for name in source.controls(share, end)[:1]]
    tables = {n: source.data[n].transpose(source.depth, "index").values for n in (share, *nulls, *ends)}
    said = None
    if len(ends) == 2 and not np.isnan([tables[n] for n in ends]).all():
        how = f" ({known})" if (known := source.about(ends[0]).get("interval")) else ""
        numbers = np.stack([tables[n] for n in (share, *ends)], -1)
        said = [
            [f"{source.depth} {d}, index layer {i}: {v:.1%} [{low:.1%}, {high:.1%}]{how}"
             for i, (v, low, high) in zip(names, row, strict=True)] for d, row in zip(depths, numbers, strict=True)
        ]  # fmt: skip
    panels = []
    for name in (share, *nulls):
        null = source.called(name, short=True)
        called, hover = (shown, said) if name == share else ("null" + f": {null}" * (null != name), None)
        cells = Cells(tables[name], source.scale(share), 0, 1, "share", hover=hover)
        down = Axis(f"model {source.depth_label}", names=depths)
        panels.append(Panel([cells], Axis("index layer", names=names), down, called))
    return panels


DASHES = ("dash", "dashdot", "dot", "longdash")


@drawn
def floors(data: xr.Dataset, positions: str | None = None) -> Plot:
    """How near the nearest is at every depth, beside what chance reaches: median and quartiles, floors dashed.

    Over all positions of all prompts but sinks, where the reading tells them; the legend has the share of all states
    above each floor, the hover each depth's.  Of prompts with pictures over ``positions``: "text" (the default
    where there are any), "image" or "all".
    A state below a floor has a neighbour that says no more than one of random tokens, a random direction or a shuffled
    prompt does.
    """
    source, kinds = of_kind(data, positions, "floors")
    data, name = source.data, str(source.score)
    best = data[name].isel(rank=0)
    if source.kind is not None:
        best = best.where(data["kind"] == source.kind)
    if source.has("sink"):
        best = best.where(~data["sink"].astype(bool))
    best = best.transpose(source.depth, ...).values.reshape(len(source.depths), -1)
    if not np.isfinite(best).any():
        raise InputError(f"floors: this reading holds no {name} (every state is zero), so there is nothing to compare.")
    low, middle, high = np.nanquantile(best, [0.25, 0.5, 0.75], axis=1)
    hover = [f"{source.depth} {d}: {middle[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" for i, d in enumerate(source.depths)]
    lines = []
    for floor, dash in zip(by_depth(source), DASHES, strict=False):
        if np.isnan(level := data[floor].values.astype(float)).all():
            continue
        what = source.called(floor, short=True)
        known, above = ~np.isnan(best + level[:, None]), best > level[:, None]
        shares = above.sum(1) / np.maximum(known.sum(1), 1)
        hover = [f"{text}\nabove {what}: {share:.0%}" for text, share in zip(hover, shares, strict=True)]
        entry = f"floor: {what} ({above.sum() / known.sum():.0%} above)"
        lines.append(Line(source.depths, level, entry, hue=colours.FLOOR, dash=dash, markers=False, width=1.5))
    median = Line(source.depths, middle, "median (band: quartiles)", low, high, hover=hover)
    states = int(np.isfinite(best).any(0).sum())
    said = ", ".join(filter(None, [f"band: quartiles over {states:,} {kinds or 'positions'}", source.sinks_left_out()]))
    panel = Panel([median, *lines], whole(source.depth_label, source.depths), source.title(name))
    return Plot([panel], heading(source, said), shows=[name])


def by_depth(source: Source) -> list[str]:
    """The floors of the score, one number for each depth."""
    known = source.controls(source.score, "floor") if source.score else []
    return [name for name in known if source.data[name].dims == (source.depth,)]


@drawn
def rates(data: xr.Dataset) -> Plot:
    """Shares over depth, one panel for each measure: a rate with its interval, and its chance level dashed.

    Of a value [measure, depth] with both ends of its interval and its chance level, or with one more dimension of
    several series (several lenses, say), which get a line each.
    """
    source = Source(data)
    data, names = source.data, rated(source.data)
    others = [d for d in data[names[0]].dims if d not in ("measure", source.depth)]
    series = [" · ".join(map(str, own)) for own in product(*(data[d].values for d in others))]  # one "" without others
    series, more = first_few(series, "series")
    measures = [str(m) for m in data["measure"].values]
    value, low, high, chance = (
        data[one].transpose("measure", *others, source.depth).values.reshape(len(measures), -1, len(source.depths))
        for one in names
    )
    x, called = source.depths, source.called(names[0], short=True)
    panels = []
    for m, measure in enumerate(measures):
        lines: list[Mark] = []
        for i, name in enumerate(series):
            floor = {"hue": i, "dash": "dash", "markers": False, "width": 1, "legend": len(series) == 1}
            lines.append(Line(x, chance[m, i], f"{name} by chance".strip(), **floor))
            lines.append(Line(x, value[m, i], name or called, low[m, i], high[m, i], hue=i, legend=bool(others)))
        up = Axis(source.title(names[0], short=True), range=(-0.02, 1.02))
        panels.append(Panel(lines, whole(str(source.depth), x), up, measure))
    said = ", ".join(filter(None, [more, "dashed: chance"]))
    return Plot(panels, heading(source, said), shared="y", shows=names[:1])


def rated(data: xr.Dataset) -> list[str]:
    """A value over measures and depth, the ends of its interval and its chance level; [] where there is none."""
    for name, variable in data.data_vars.items():
        if "measure" in variable.dims and {"layer", "block"} & set(variable.dims):
            known = controls_of(data, str(name))
            if {"low", "high", "chance"} <= set(known):
                return [str(name), *(known[role][0] for role in ("low", "high", "chance"))]
    return []


LEAP = Chart(leap, ("index_layer_share",))
ALIGNMENT = Chart(
    alignment, lacking=lambda data: [] if shares(completed(data)) else ["a share over layers and index layers"]
)
FLOORS = Chart(floors, lacking=lambda data: [] if by_depth(Source(data)) else ["a floor of its score by layer"])
RATES = Chart(
    rates, lacking=lambda data: [] if rated(completed(data)) else ["a value over measures with interval and chance"]
)
