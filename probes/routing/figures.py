"""Figures of a routing trace; ``reading.figure("usage")`` and so on draw them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from plotly.subplots import make_subplots

from probes.routing import measures
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.charts import Chart
from workbench.figures.export import Figure
from workbench.figures.source import short_name
from workbench.reading import Reading

if TYPE_CHECKING:
    import xarray as xr


def usage(data: xr.Dataset, label: Any = None) -> Figure:
    """Share of slots by block and expert; marked where it lies within the band of a router that chooses at random."""
    table = measures.usage(Reading(data), draws=50)
    names = [str(x) for x in table["label"].values]
    i = names.index(str(label)) if label is not None else 0
    if label is not None and str(label) not in names:
        raise InputError(f"There is no label {label!r}; there are {', '.join(names)}.")
    share = table["share"].values[i]
    inside = (share >= table["band_low"].values[i][:, None]) & (share <= table["band_high"].values[i][:, None])
    figure = _figure(data, f"{names[i]}: share of slots (dot: as by chance)")
    figure.add_heatmap(
        z=share, x=table["expert"].values, y=[str(b) for b in table["block"].values], colorscale=theme.SEQUENTIAL,
        zmin=0, colorbar={"title": {"text": "share"}}, text=np.where(inside, "·", ""), texttemplate="%{text}",
        hovertemplate="block %{y}, expert %{x}: %{z:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="expert", tickformat="d")
    figure.update_yaxes(title_text="block", type="category")
    return _sized(figure, 160 + 14 * share.shape[1], 140 + 20 * share.shape[0])


def divergence(data: xr.Dataset, block: int | None = None) -> Figure:
    """Jensen-Shannon divergence between labels in one block (default the last); a ring where q < 0.05."""
    table = measures.divergence(Reading(data), draws=200)
    blocks = table["block"].values.tolist()
    at = blocks.index(blocks[-1] if block is None else block)
    names = [str(x) for x in table["label"].values]
    values = table["jsd"].values[..., at].copy()
    sure = table["jsd_q"].values[..., at] < 0.05
    values[np.triu_indices(len(names), 0)] = np.nan
    figure = _figure(data, f"JSD in block {blocks[at]} (ring: q < 0.05)")
    figure.add_heatmap(
        z=values, x=names, y=names, colorscale=theme.SEQUENTIAL, zmin=0, colorbar={"title": {"text": "nats"}},
        text=np.where(sure & ~np.isnan(values), "○", ""), texttemplate="%{text}",
        hovertemplate="%{y} and %{x}: %{z:.4f} nats<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return _sized(figure, 190 + 34 * len(names), 150 + 30 * len(names))


def overlap(data: xr.Dataset, block: int | None = None, measure: str = "jaccard") -> Figure:
    """Divergence of usage against shared vocabulary, a point for each pair of labels, with Mantel's p."""
    table = measures.overlap(Reading(data), draws=20)
    blocks = table["block"].values.tolist()
    at = blocks.index(blocks[-1] if block is None else block)
    names = [str(x) for x in table["label"].values]
    i, j = np.triu_indices(len(names), 1)
    own = table.sel(measure=measure).isel(block=at)
    figure = _figure(
        data, f"block {blocks[at]}: r = {float(own['pearson']):.2f}, Mantel p = {float(own['mantel_p']):.3g}"
    )
    figure.add_scatter(
        x=table[measure].values[i, j], y=table["jsd"].values[i, j, at], mode="markers+text", marker={"size": 7},
        text=[tokens.plotly(f"{names[a]}-{names[b]}") for a, b in zip(i, j, strict=True)], textposition="top center",
        textfont={"size": 9}, hovertemplate="%{text}: %{x:.3f}, %{y:.4f} nats<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    figure.update_xaxes(title_text=f"shared vocabulary ({measure})")
    figure.update_yaxes(title_text="JSD (nats)", rangemode="tozero")
    return _sized(figure, 520, 400)


def layers(data: xr.Dataset) -> Figure:
    """Mean divergence between labels over blocks, with its interval, beside shuffled labels and split halves."""
    table = measures.divergence(Reading(data), draws=200)
    x = table["block"].values
    figure = _figure(data, "mean divergence between labels")
    low, high = table["mean_jsd_low"].values, table["mean_jsd_high"].values
    red, green, blue = (int(theme.HUES[0][i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
        fillcolor=f"rgba({red},{green},{blue},0.18)", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    lines = [
        ("labels", table["mean_jsd"].values, None, 0),
        ("labels shuffled among documents", table["mean_jsd_null"].values, "dash", 1),
        ("halves of one label", np.nanmean(table["jsd_floor"].values, 0), "dot", 2),
    ]
    for name, y, dash, hue in lines:
        figure.add_scatter(
            x=x, y=y, name=name, mode="lines+markers", marker={"size": 4},
            line={"color": theme.HUES[hue], "dash": dash, "width": 2},
        )  # fmt: skip
    figure.update_xaxes(title_text="block", tickvals=x[:: max(1, len(x) // 12)])
    figure.update_yaxes(title_text="JSD (nats)", rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.3})
    return _sized(figure, 520, 360)


def gaps(data: xr.Dataset, block: int | None = None) -> Figure:
    """Activation gap of every expert of one block (default the last) by its label, and the threshold of chance."""
    table = measures.select(Reading(data), draws=200)
    blocks = table["block"].values.tolist()
    at = blocks.index(blocks[-1] if block is None else block)
    gap, owner = table["gap"].values[at], table["owner"].values[at]
    order = np.argsort(-gap)
    figure = _figure(data, f"activation gap in block {blocks[at]}")
    for i, name in enumerate([str(x) for x in table["label"].values]):
        own = [j for j in order if str(owner[j]) == name]
        figure.add_scatter(
            x=[int(np.flatnonzero(order == j)[0]) for j in own], y=gap[own], mode="markers", name=tokens.plotly(name),
            marker={"size": 8, "color": theme.HUES[i % len(theme.HUES)]}, text=[str(j) for j in own],
            hovertemplate="expert %{text}: %{y:.4f}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=table.attrs["threshold"], line={"dash": "dash", "width": 1})
    figure.update_xaxes(title_text="expert", tickvals=list(range(len(order))), ticktext=[str(j) for j in order])
    figure.update_yaxes(title_text="highest less second share", rangemode="tozero")
    return _sized(figure, 200 + 22 * len(order), 360)


def coactivation(data: xr.Dataset, block: int | None = None) -> Figure:
    """Which experts serve a token together: log2 of P(column | row) over the column's own share; 0 is independence."""
    table = measures.coactivation(Reading(data))
    blocks = table["block"].values.tolist()
    at = blocks.index(blocks[-1] if block is None else block)
    values = table["pmi"].values[at].copy()
    np.fill_diagonal(values, np.nan)
    values[~np.isfinite(values)] = np.nan
    reach = float(np.nanmax(np.abs(values), initial=0.1))
    figure = _figure(data, f"co-activation in block {blocks[at]} (0: independent)")
    figure.add_heatmap(
        z=values, x=table["expert"].values, y=table["expert"].values, colorscale=theme.DIVERGING, zmin=-reach,
        zmax=reach, colorbar={"title": {"text": "bits"}}, hovertemplate="%{x} given %{y}: %{z:.2f} bits<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="expert", tickformat="d")
    figure.update_yaxes(title_text="given expert", autorange="reversed", tickformat="d")
    side = 150 + 14 * len(values)
    return _sized(figure, side + 60, side)


def flow(data: xr.Dataset, least: float = 0.02) -> Figure:
    """Where tokens go from block to block, by their strongest expert; streams of less than ``least`` are left out."""
    if "flow_count" not in data or not data.sizes.get("block_from"):
        raise InputError("The reading has no flow. Trace with pairs=True, and at least two blocks.")
    count = data["flow_count"].values
    blocks, e = data["block"].values.tolist(), count.shape[1]
    source, target, value = [], [], []
    for i, own in enumerate(count):
        for a, b in zip(*np.nonzero(own >= least * own.sum()), strict=True):
            source.append(i * e + int(a))
            target.append((i + 1) * e + int(b))
            value.append(int(own[a, b]))
    used = sorted({*source, *target})
    number = {n: i for i, n in enumerate(used)}
    figure = _figure(data, f"strongest expert, block to block (from {least:.0%})")
    figure.add_sankey(
        node={
            "label": [f"{blocks[n // e]}.{n % e}" for n in used], "pad": 6, "thickness": 10,
            "color": [theme.HUES[(n % e) % len(theme.HUES)] for n in used],
        },
        link={"source": [number[n] for n in source], "target": [number[n] for n in target], "value": value},
    )  # fmt: skip
    return _sized(figure, 160 + 150 * len(blocks), 460)


def forest(effects: dict[str, xr.Dataset]) -> Figure:
    """What dropping experts costs (:func:`probes.routing.interventions.effect`), beside experts of the same load."""
    figure = Figure(make_subplots())
    theme.register()
    names = list(effects)
    for i, (name, found) in enumerate(effects.items()):
        own, low, high = (float(found[x]) for x in ("delta", "delta_low", "delta_high"))
        figure.add_scatter(
            x=found["delta_random"].values, y=[i] * found.sizes["draw"], mode="markers", showlegend=i == 0,
            name="experts of the same load", marker={"symbol": "line-ns-open", "size": 9, "color": "#888888"},
        )  # fmt: skip
        figure.add_scatter(
            x=[own], y=[i], mode="markers", name="dropped", showlegend=i == 0,
            marker={"size": 9, "color": theme.HUES[0]},
            error_x={"type": "data", "array": [high - own], "arrayminus": [own - low], "symmetric": False},
            hovertemplate=f"{tokens.plotly(name)}: %{{x:.4f}} nats a token<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1})
    figure.update_layout(
        template="workbench", title_text="what dropping experts costs", legend={"orientation": "h", "y": -0.4}
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[tokens.plotly(n) for n in names], autorange="reversed"
    )
    figure.update_xaxes(title_text="more nats a token, 95 % over documents")
    return _sized(figure, 560, 170 + 34 * len(names))


def _figure(data: xr.Dataset, what: str) -> Figure:
    theme.register()
    figure = Figure()
    name = short_name(str(data.attrs.get("model", "")))
    figure.update_layout(template="workbench", title_text=tokens.plotly(f"{name} · {what}"))
    return figure


def _sized(figure: Figure, width: float, height: float) -> Figure:
    figure.update_layout(width=float(np.clip(width, 480, 1400)), height=float(np.clip(height, 260, 1200)))
    return figure


USAGE = Chart(usage, ("document_count", "usage_count"))
DIVERGENCE = Chart(divergence, ("document_count", "usage_count"))
OVERLAP = Chart(overlap, ("document_count", "usage_count"))
LAYERS = Chart(layers, ("document_count", "usage_count"))
GAPS = Chart(gaps, ("document_count", "usage_count"))
COACTIVATION = Chart(coactivation, ("pair_count",))
FLOW = Chart(flow, ("flow_count",))
