"""Charts of LatentLens and of what is measured with it; :func:`floors` and :func:`rates` of any such reading."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from plotly.subplots import make_subplots

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import colours, theme
from workbench.figures.charts import Chart, blank, first_few, heading, shows
from workbench.figures.source import Source, short_name
from workbench.variables import called, completed, controls_of, title

if TYPE_CHECKING:
    import xarray as xr

    from workbench.figures import Figure

def leap(data: xr.Dataset) -> Figure:
    """From which index layer the nearest contexts of each model layer come, beside the null of random tokens.

    Shares of a row add up to 1.  The null is of prompts of random tokens: what it shows, too, is
    what the index prefers by itself (hubs, crowded layers), and not where meaning lies.
    """
    source = Source(data)
    data, share = source.data, "index_layer_share"
    nulls = source.controls(share, "null")
    panels = [(share, "neighbours"), *((null, f"null: {source.called(null, short=True)}") for null in nulls)]
    ends = [source.controls(share, end) for end in ("low", "high")]
    how = next((f" ({said})" for n in ends[0] if (said := data[n].attrs.get("interval"))), "")
    names = [str(i) for i in data["index"].values]
    titles = [title for _, title in panels]
    figure = blank(make_subplots(cols=len(panels), horizontal_spacing=0.08, shared_yaxes=True, subplot_titles=titles))
    for column, (name, _) in enumerate(panels, start=1):
        shares = data[name].transpose(source.depth, "index").values
        bounds = [data[n[0]].transpose(source.depth, "index").values for n in ends if n and name == share]
        known = len(bounds) == 2 and not np.isnan(bounds).all()
        figure.add_heatmap(
            z=np.round(shares, 4), x=names, y=list(range(len(source.depths))), zmin=0, zmax=1,
            colorscale=theme.stops(source.scale(share)),
            colorbar={"title": {"text": source.title(share, short=True)}}, showscale=column == len(panels),
            customdata=np.stack(bounds, -1) if known else None, row=1, col=column,
            hovertemplate=f"{source.depth} %{{y}}, index layer %{{x}}: %{{z:.1%}}"
            f"{(' [%{customdata[0]:.1%}, %{customdata[1]:.1%}]' + how) * known}<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title_text="index layer", type="category", row=1, col=column)
    figure.update_yaxes(
        tickvals=list(range(len(source.depths))), ticktext=[str(d) for d in source.depths], showline=False, ticks=""
    )
    figure.update_yaxes(title_text=f"model {source.depth_label}", col=1)
    figure.update_layout(title_text=tokens.plotly(heading(source, "which index layer answers")))
    height = float(np.clip(150 + 22 * len(source.depths), 260, 900))
    figure.update_layout(width=float(190 + len(panels) * max(140, 44 * len(names))), height=height, margin={"t": 70})
    return shows(figure, share)


DASHES = ("dash", "dashdot", "dot", "longdash")


def floors(data: xr.Dataset) -> Figure:
    """How near the nearest is at every depth, beside what chance reaches: median and quartiles, floors dashed.

    Over all positions of all prompts but sinks, where the reading tells them; the legend has the share of all states
    above each floor, the hover each depth's.
    A state below a floor has a neighbour that says no more than one of random tokens, a random direction or a shuffled
    prompt does.
    """
    source = Source(data)
    data, name = source.data, str(source.score)
    best = data[name].isel(rank=0).transpose(source.depth, ...)
    if source.has("sink"):
        best = best.where(~data["sink"].astype(bool))
    best = best.transpose(source.depth, ...).values.reshape(len(source.depths), -1)
    if not np.isfinite(best).any():
        raise InputError(f"floors: this reading holds no {name} (every state is zero), so there is nothing to compare.")
    low, middle, high = np.nanquantile(best, [0.25, 0.5, 0.75], axis=1)
    colour = theme.HUES[0]
    lines, told = [], []
    for floor, dash in zip(by_depth(source), DASHES, strict=False):
        if np.isnan(level := data[floor].values.astype(float)).all():
            continue
        called = source.called(floor, short=True)
        known, above = ~np.isnan(best + level[:, None]), best > level[:, None]
        shares = above.sum(1) / np.maximum(known.sum(1), 1)
        told.append(f"<br>above {called}: %{{customdata[{len(lines) + 2}]:.0%}}")
        lines.append((level, f"floor: {called} ({above.sum() / known.sum():.0%} above)", dash, shares))
    figure = blank()
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
    figure.update_yaxes(title_text=source.title(name))
    states = int(np.isfinite(best).any(0).sum())
    said = ", ".join(filter(None, [f"band: quartiles over {states:,} positions", source.sinks_left_out()]))
    figure.update_layout(title_text=tokens.plotly(heading(source, said)))
    figure.update_layout(width=560, height=420, showlegend=True, legend={"orientation": "h", "y": -0.2})
    return shows(figure, name)


def by_depth(source: Source) -> list[str]:
    """The floors of the score, one number for each depth."""
    known = source.controls(source.score, "floor") if source.score else []
    return [name for name in known if source.data[name].dims == (source.depth,)]


def rates(data: xr.Dataset) -> Figure:
    """Shares over depth, one panel for each measure: a rate with its interval, and its chance level dashed.

    Of a value [measure, depth] with both ends of its interval and its chance level, or with one more dimension of
    several series (several lenses, say), which get a line each.
    """
    data = completed(data)
    value, *controls = rated(data)
    depth = "layer" if "layer" in data.dims else "block"
    others = [d for d in data[value].dims if d not in ("measure", depth)]
    series = [" · ".join(map(str, own)) for own in product(*(data[d].values for d in others))]  # one "" without others
    series, more = first_few(series, "series")
    measures = [str(m) for m in data["measure"].values]
    found = data.transpose("measure", *others, depth, ...)
    x = data[depth].values
    how = f" ({said})" if (said := data.attrs.get("interval")) else ""
    panels = make_subplots(cols=len(measures), horizontal_spacing=0.05, shared_yaxes=True, subplot_titles=measures)
    figure = blank(panels)
    for column in range(len(measures)):
        where = {"row": 1, "col": column + 1}
        for i, name in enumerate(series):
            own = found.isel(measure=column)
            rate, low, high, chance = (
                own[one].transpose(*others, depth).values.reshape(-1, len(x))[i] for one in (value, *controls)
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
                name=name or called(data[value], short=True), showlegend=column == 0 and bool(others),
                customdata=np.stack([low, high, chance], -1),
                hovertemplate=f"%{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]{how}, "
                "chance %{customdata[2]:.3f}"
                f"<extra>{tokens.plotly(name)}</extra>", **where,
            )  # fmt: skip
        figure.update_xaxes(title_text=depth, tickformat="d", **where)
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title_text=title(data[value], short=True), col=1)
    model, reader = short_name(str(data.attrs.get("model", ""))), str(data.attrs.get("reader", ""))
    figure.update_layout(title_text=tokens.plotly(" · ".join(filter(None, [reader, model, more, "dashed: chance"]))))
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    figure.update_layout(width=float(100 + 250 * len(measures)), height=360, margin={"t": 70})
    return shows(figure, value)


def rated(data: xr.Dataset) -> list[str]:
    """A value over measures and depth, the ends of its interval and its chance level; [] where there is none."""
    for name, variable in data.data_vars.items():
        if "measure" in variable.dims and {"layer", "block"} & set(variable.dims):
            known = controls_of(data, str(name))
            if {"low", "high", "chance"} <= set(known):
                return [str(name), *(known[role][0] for role in ("low", "high", "chance"))]
    return []


LEAP = Chart(leap, ("index_layer_share",))
FLOORS = Chart(floors, lacking=lambda data: [] if by_depth(Source(data)) else ["a floor of its score by layer"])
RATES = Chart(
    rates, lacking=lambda data: [] if rated(completed(data)) else ["a value over measures with interval and chance"]
)
