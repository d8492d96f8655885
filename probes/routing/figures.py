"""Figures of a measure's result: ``figures.usage(measures.usage(reading))``, the numbers of that table and no others.

``reading.figure("usage")`` of a routing trace measures first, with the measure's defaults and what options are its.

An expert that is claimed to serve a label is marked with a star where an intervention backs the claim: pass the table
of :func:`probes.routing.effects`, whose ``backed`` says so, as ``effects=``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.results import drawn
from probes.routing.tracer import numbered
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.cells import ink
from workbench.figures.charts import Chart
from workbench.figures.figure import Figure
from workbench.figures.naming import name_points
from workbench.figures.source import short_name

if TYPE_CHECKING:
    from workbench.reading import Reading


@drawn
def usage(table: xr.Dataset, label: Any = None, effects: Reading | None = None) -> Figure:
    """Share of slots by block and expert of one label (default the first).

    Hatched: within the band of a router that chooses at random; a star marks what an intervention backs.
    """
    names = [str(x) for x in table["label"].values]
    i = _label(names, label)
    share = table["share"].values[i]
    inside = (share >= table["band_low"].values[i][:, None]) & (share <= table["band_high"].values[i][:, None])
    blocks = table["block"].values.tolist()
    stars = [(blocks.index(b), e) for b, e in _backed(effects, names[i], names) if b in blocks]
    star = ", star: missed when dropped" if effects is not None else ""
    figure = _figure(table, f"{_one(names, i)}: share of slots (hatched: as by chance{star})")
    figure.add_heatmap(
        z=share, x=table["expert"].values, y=[str(b) for b in table["block"].values],
        colorscale=theme.stops("sequential"), zmin=0, colorbar={"title": {"text": "share"}},
        text=np.where(inside, theme.HATCH, ""), texttemplate="%{text}",
        hovertemplate="block %{y}, expert %{x}: %{z:.1%}<extra></extra>",
    )  # fmt: skip
    if stars:
        inks = np.array(ink(share, theme.stops("sequential"), False, (0, float(np.nanmax(share))))).reshape(share.shape)
        figure.add_scatter(
            x=[e for _, e in stars], y=[str(blocks[b]) for b, _ in stars], mode="markers", hoverinfo="skip",
            marker={"symbol": "star", "size": 11, "color": [inks[at] for at in stars]}, showlegend=False,
        )  # fmt: skip
    figure.update_xaxes(title_text="expert", tickformat="d")
    figure.update_yaxes(title_text="block", type="category")
    return _sized(figure, 160 + 14 * share.shape[1], 140 + 20 * share.shape[0])


def _label(names: list[str], label: Any) -> int:
    """Which label this is; the first where none is asked for."""
    if label is not None and str(label) not in names:
        raise InputError(f"There is no label {str(label)!r} in the reading; there are {', '.join(names)}.")
    return 0 if label is None else names.index(str(label))


def _one(names: Sequence[str], i: int) -> str:
    """A label that is shown alone, and of how many it is one."""
    return f"{names[i]} (label {i + 1} of {len(names)})" if len(names) > 1 else str(names[i])


def _backed(effects: Reading | None, label: str, labels: list[str]) -> list[tuple[int, int]]:
    """(block, expert) of backed claims of this label; a claim without a label's name is of all labels."""
    if effects is None:
        return []
    found = []
    for claim, experts, backed in zip(effects["claim"].values, effects["experts"].values, _holds(effects), strict=True):
        if backed and (str(claim) == label or str(claim) not in labels):
            found += [(int(block), e) for block, chosen in json.loads(str(experts)).items() for e in chosen]
    return sorted(set(found))


def _holds(effects: Reading | xr.Dataset) -> np.ndarray:
    """[claim] whether an intervention backs it."""
    if "backed" not in effects:
        held = effects if isinstance(effects, xr.Dataset) else effects.data
        raise InputError(
            f"The table of effects has no 'backed', only {', '.join(map(str, held.data_vars))}, so that no star can "
            "be given. Make it with probes.routing.effects."
        )
    return effects["backed"].values


@drawn
def entropy(table: xr.Dataset) -> Figure:
    """Entropy of expert usage (less its bias) over blocks, a line for each label with interval; dashed: even loads."""
    x = table["block"].values
    figure = _figure(table, "entropy of expert usage")
    for i, name in enumerate([str(n) for n in table["label"].values]):
        hue = theme.HUES[i % len(theme.HUES)]
        _band(figure, x, table["entropy_low"].values[i], table["entropy_high"].values[i], hue)
        figure.add_scatter(
            x=x, y=table["entropy_corrected"].values[i], name=tokens.labels([name])[0], mode="lines+markers",
            marker={"size": 4}, line={"color": hue, "width": 2},
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=table["entropy_uniform"].values, name="even", mode="lines", line={"dash": "dash", "width": 1},
    )  # fmt: skip
    figure.update_xaxes(title_text="block", tickvals=x[:: max(1, len(x) // 12)])
    figure.update_yaxes(title_text="nats")
    figure.update_layout(legend={"orientation": "h", "y": -0.3})
    return _sized(figure, 520, 380)


@drawn
def gate(table: xr.Dataset, label: Any = None) -> Figure:
    """How sure the gate is of each token: a histogram of its entropy over ln E for every block."""
    names = [str(x) for x in table["label"].values]
    i = _label(names, label)
    share = table["histogram"].values[i]
    figure = _figure(table, f"{_one(names, i)}: entropy of the gate (1: undecided)")
    figure.add_heatmap(
        z=share, x=table["bin"].values, y=[str(b) for b in table["block"].values],
        colorscale=theme.stops("sequential"), zmin=0, colorbar={"title": {"text": "tokens"}},
        hovertemplate="block %{y}, %{x:.2f}: %{z:.1%} of tokens<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="entropy / ln E", range=[0, 1])
    figure.update_yaxes(title_text="block", type="category")
    return _sized(figure, 520, 140 + 20 * len(share))


@drawn
def words(table: xr.Dataset, block: int | None = None, top: int = 8) -> Figure:
    """The tokens that each expert of one block (default the last) serves most beyond chance, as a table."""
    own = table.isel(block=_block(table, block))
    text, experts = own["text"].values, range(int(own["experts"]))
    excess = own["share"].values - own["null"].values
    rows = []
    for e in experts:
        mine = np.flatnonzero((own["expert"].values == e) & (excess > 0))
        best = mine[np.argsort(-excess[mine])][:top]
        words = [
            f"{tokens.plotly(tokens.visible(text[j]))} {own['share'].values[j]:.0%}" for j in best
        ]
        rows.append((str(e), ", ".join(words), str(len(mine))))
    least = table.attrs["least"]
    figure = _figure(
        table, f"tokens of the experts of block {own['block'].item()} (share served; at least {least} times)"
    )
    figure.add_table(
        columnwidth=[1, 8, 1], header={"values": ["expert", "tokens", "of it"], "align": "left"},
        cells={"values": list(zip(*rows, strict=True)), "align": "left"},
    )  # fmt: skip
    return _sized(figure, 760, 160 + sum(10 + 18 * (1 + len(row[1]) // 85) for row in rows))


@drawn
def divergence(table: xr.Dataset, block: int | None = None) -> Figure:
    """Jensen-Shannon divergence between labels in one block (default the last); a ring where q < 0.05."""
    at, blocks = _block(table, block), table["block"].values.tolist()
    names = tokens.labels(table["label"].values)
    values = table["jsd"].values[..., at].copy()
    sure = table["jsd_q"].values[..., at] < 0.05
    values[np.triu_indices(len(names), 0)] = np.nan
    units = table["jsd"].attrs.get("units", "nats")
    figure = _figure(table, f"JSD in block {blocks[at]} (ring: q < 0.05)")
    figure.add_heatmap(
        z=values, x=names, y=names, colorscale=theme.stops("sequential"), zmin=0, colorbar={"title": {"text": units}},
        text=np.where(sure & ~np.isnan(values), "○", ""), texttemplate="%{text}",
        hovertemplate=f"%{{y}} and %{{x}}: %{{z:.4f}} {units}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return _sized(figure, 190 + 34 * len(names), 150 + 30 * len(names))


@drawn
def overlap(table: xr.Dataset, block: int | None = None, measure: str = "jaccard") -> Figure:
    """Divergence of usage against shared vocabulary, a point for each pair of labels, with Mantel's p.

    Pairs that lie at one point have one label with all their names.
    """
    if measure not in OVERLAPS:
        raise InputError(f"measure={measure!r} is unknown. Use one of {', '.join(OVERLAPS)}.")
    at, blocks = _block(table, block), table["block"].values.tolist()
    names = [str(x) for x in table["label"].values]
    i, j = np.triu_indices(len(names), 1)
    own = table.sel(measure=measure).isel(block=at)
    said = f"block {blocks[at]}: r = {float(own['pearson']):.2f}, Mantel p = {float(own['mantel_p']):.3g}"
    figure = _figure(table, said)
    x, y = table[measure].values[i, j], table["jsd"].values[i, j, at]
    pairs = [f"{names[a]}-{names[b]}" for a, b in zip(i, j, strict=True)]
    figure.add_scatter(
        x=x, y=y, mode="markers", marker={"size": 7}, text=tokens.labels(pairs),
        hovertemplate="%{text}: %{x:.3f}, %{y:.4f} nats<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    far, high = max(0.05, float(np.nanmax(x, initial=0))), max(0.001, float(np.nanmax(y, initial=0)))
    unnamed = name_points(figure, x, y, pairs, (-0.04 * far, 1.08 * far), (0, 1.12 * high))
    if unnamed:
        figure.update_layout(title_text=tokens.plotly(f"{_title(table, said)} ({unnamed} unnamed)"))
    figure.update_xaxes(title_text=f"shared vocabulary ({measure})")
    figure.update_yaxes(title_text="JSD (nats)")
    return _sized(figure, 520, 400)


@drawn
def layers(table: xr.Dataset) -> Figure:
    """Mean divergence between labels over blocks, with its interval, beside shuffled labels and split halves.

    The band and its line are less the bias of few documents; the line as counted is to be compared with the other two.
    """
    x = table["block"].values
    figure = _figure(table, "mean divergence between labels")
    low, high = table["mean_jsd_low"].values, table["mean_jsd_high"].values
    _band(figure, x, low, high, theme.HUES[0])
    lines = [
        ("labels, less bias", table["mean_jsd_corrected"].values, None, 0),
        ("labels, as counted", table["mean_jsd"].values, "longdash", 0),
        ("labels shuffled among documents", table["mean_jsd_null"].values, "dash", 1),
        ("halves of one label", table["mean_jsd_floor"].values, "dot", 2),
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


@drawn
def gaps(table: xr.Dataset, block: int | None = None, effects: Reading | None = None) -> Figure:
    """Activation gap of every expert of one block (default the last) by its label, and the threshold of chance.

    A star: an intervention backs that the expert is needed.
    """
    at, blocks = _block(table, block), table["block"].values.tolist()
    gap, owner = table["gap"].values[at], table["owner"].values[at]
    order = np.argsort(-gap)
    figure = _figure(table, f"activation gap in block {blocks[at]}")
    labels = [str(x) for x in table["label"].values]
    for i, name in enumerate(labels):
        own = [j for j in order if str(owner[j]) == name]
        stars = [(blocks[at], int(j)) in _backed(effects, name, labels) for j in own]
        figure.add_scatter(
            x=[int(np.flatnonzero(order == j)[0]) for j in own], y=gap[own], mode="markers",
            name=tokens.labels([name])[0],
            marker={
                "size": [13 if star else 8 for star in stars],
                "symbol": ["star" if star else "circle" for star in stars],
                "color": theme.HUES[i % len(theme.HUES)],
            },
            text=[str(j) for j in own], hovertemplate="expert %{text}: %{y:.4f}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=list(range(len(order))), y=table["threshold"].values[at][order], mode="markers", name="threshold",
        marker={"symbol": ["line-ew-open"] * len(order), "size": 14},
        text=[str(j) for j in order], hovertemplate="expert %{text}: threshold %{y:.4f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="expert", tickvals=list(range(len(order))), ticktext=[str(j) for j in order])
    figure.update_yaxes(title_text="highest less second share", rangemode="tozero")
    return _sized(figure, 200 + 22 * len(order), 360)


@drawn
def coactivation(table: xr.Dataset, block: int | None = None) -> Figure:
    """Which experts serve a token together: log2 of how often over what their loads alone give (0)."""
    at, blocks = _block(table, block), table["block"].values.tolist()
    values = table["lift"].values[at].copy()
    np.fill_diagonal(values, np.nan)
    values[~np.isfinite(values)] = np.nan
    reach = float(np.nanmax(np.abs(values), initial=0.1))
    figure = _figure(table, f"co-activation in block {blocks[at]} (0: as by their loads)")
    figure.add_heatmap(
        z=values, x=table["expert"].values, y=table["expert"].values, colorscale=theme.stops("diverging"), zmin=-reach,
        zmax=reach, colorbar={"title": {"text": "bits"}}, hovertemplate="%{x} given %{y}: %{z:.2f} bits<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="expert", tickformat="d")
    figure.update_yaxes(title_text="given expert", autorange="reversed", tickformat="d")
    side = 150 + 14 * len(values)
    return _sized(figure, side + 60, side)


@drawn
def flow(table: xr.Dataset, least: float = 0.02) -> Figure:
    """Where tokens go from block to block, by their strongest expert; streams of less than ``least`` are left out."""
    if not table.sizes["block_from"]:
        raise InputError("Flow is from block to block, and one block was traced.")
    count = table["count"].values
    blocks, e = table["block"].values.tolist(), count.shape[1]
    source, target, value = [], [], []
    for i, own in enumerate(count):
        for a, b in zip(*np.nonzero(own >= least * own.sum()), strict=True):
            source.append(i * e + int(a))
            target.append((i + 1) * e + int(b))
            value.append(int(own[a, b]))
    used = sorted({*source, *target})
    number = {n: i for i, n in enumerate(used)}
    figure = _figure(table, f"strongest expert, block to block (from {least:.0%})")
    figure.add_sankey(
        node={
            "label": [f"{blocks[n // e]}.{n % e}" for n in used], "pad": 6, "thickness": 10,
            "color": [theme.HUES[(n % e) % len(theme.HUES)] for n in used],
        },
        link={"source": [number[n] for n in source], "target": [number[n] for n in target], "value": value},
    )  # fmt: skip
    return _sized(figure, 160 + 150 * len(blocks), 460)


@drawn
def forest(table: xr.Dataset) -> Figure:
    """What dropping experts costs (the table of :func:`probes.routing.effects`), beside other sets of as many.

    Ticks: other sets, near in load unless the caliper is 1; crosses: their slots given to random others (equal
    compute); star: ``backed``.
    """
    theme.register()
    figure = Figure()
    names = [str(x) for x in table["claim"].values]
    rows = list(range(len(names)))
    for name, values, symbol in (
        ("other sets", table["delta_random"], "line-ns-open"),
        ("replaced at random", table["delta_replaced"], "x-thin-open"),
    ):
        figure.add_scatter(
            x=values.values.ravel(), y=np.repeat(rows, values.shape[1]), mode="markers", name=name,
            marker={"symbol": symbol, "size": 8, "color": "#888888"}, hovertemplate="%{x:.4f}<extra></extra>",
        )  # fmt: skip
    own, low, high = (table[x].values for x in ("delta", "delta_low", "delta_high"))
    figure.add_scatter(
        x=own, y=rows, mode="markers", name="dropped", marker={"size": 9, "color": theme.HUES[0]},
        error_x={"type": "data", "array": high - own, "arrayminus": own - low, "symmetric": False},
        text=[f"q over sets = {q:.2g}" for q in table["q_random"].values],
        hovertemplate="%{x:.4f} nats a token, %{text}<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1})
    title = f"{short_name(str(table.attrs['model']))} · what dropping experts costs"
    figure.update_layout(template="workbench", title_text=tokens.plotly(title), legend={"orientation": "h", "y": -0.4})
    shown = [n + " ★" * bool(held) for n, held in zip(tokens.labels(names), _holds(table), strict=True)]
    figure.update_yaxes(tickvals=rows, ticktext=shown, autorange="reversed")
    level = table.attrs.get("level", 0.95)
    figure.update_xaxes(
        title_text=f"more nats a token, {100 * level:g} % over documents (★ q over sets ≤ {1 - level:.2g})"
    )
    return _sized(figure, 600, 170 + 34 * len(names))


@drawn
def saturation(table: xr.Dataset, value: str = "saturation") -> Figure:
    """How soon the final routing is there: a table of :func:`measures.saturation`, a line for each block.

    ``value``: "saturation", "top", "weighted" or "divergence".
    """
    if f"{value}_low" not in table:
        raise InputError(f"The table has no {value!r} with an interval.")
    share = value != "divergence"
    figure = _figure(table, "share of the final experts" if share else "divergence of the gate from the final one")
    steps = [str(x) for x in table["checkpoint"].values]
    for i, block in enumerate(table["block"].values):
        hue = theme.HUES[i % len(theme.HUES)]
        own = table.isel(block=i)
        _band(figure, steps, own[f"{value}_low"].values, own[f"{value}_high"].values, hue)
        figure.add_scatter(
            x=steps, y=own[value].values, name=f"block {block}", mode="lines+markers", line={"color": hue, "width": 2},
        )  # fmt: skip
    if f"{value}_null" in table:
        chance = float(table[f"{value}_null"].mean())
        figure.add_hline(y=chance, line={"dash": "dash", "width": 1}, annotation_text="chance")
    if f"{value}_floor" in table:
        floor = float(table[f"{value}_floor"].mean())
        figure.add_hline(
            y=floor, line={"dash": "dot", "width": 1}, annotation_text="noise", annotation_position="bottom left"
        )
    figure.update_xaxes(title_text="checkpoint", type="category")
    figure.update_yaxes(**{"range": [0, 1.03]} if share else {"rangemode": "tozero", "title_text": "nats"})
    return _sized(figure, 560, 380)


@drawn
def parallel(table: xr.Dataset, reference: str | None = None) -> Figure:
    """Divergence between translations over blocks (a table of :func:`measures.parallel`), beside random pairings.

    ``reference``: pairs with this label alone.
    """
    figure = _figure(table, "divergence between translations (dashed: of other sentences)")
    names, x = [str(n) for n in table["label"].values], table["block"].values
    if reference is not None and reference not in names:
        raise InputError(f"There is no label {reference!r}; there are {', '.join(names)}.")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if reference in (None, a, b)]
    for i, (a, b) in enumerate(pairs):
        own, hue = table.sel(label=a, label_2=b), theme.HUES[i % len(theme.HUES)]
        _band(figure, x, own["divergence_low"].values, own["divergence_high"].values, hue)
        for name, dash in (("divergence", None), ("divergence_null", "dash")):
            figure.add_scatter(
                x=x, y=own[name].values, name=tokens.labels([f"{a}-{b}"])[0], showlegend=dash is None, mode="lines",
                line={"color": hue, "dash": dash, "width": 2 if dash is None else 1},
            )  # fmt: skip
    figure.update_xaxes(title_text="block", tickvals=x[:: max(1, len(x) // 12)])
    figure.update_yaxes(title_text="JSD / mean entropy", rangemode="tozero")
    return _sized(figure, 600, 400)


def _block(data: xr.Dataset, block: int | None) -> int:
    """Where a block is in a reading (default the last one there; below 0: from the model's last)."""
    blocks = data["block"].values.tolist()
    number = blocks[-1] if block is None else numbered(block, data.attrs.get("n_layers") or blocks[-1] + 1, blocks)[0]
    if number not in blocks:
        raise InputError(f"Block {number} is not in the reading; there are {blocks}.")
    return blocks.index(number)


def _band(figure: Figure, x: Any, low: np.ndarray, high: np.ndarray, hue: str) -> None:
    """An interval behind a line."""
    figure.add_scatter(
        x=[*x, *list(x)[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
        fillcolor=theme.faded(hue), hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _figure(data: xr.Dataset, what: str) -> Figure:
    theme.register()
    figure = Figure()
    figure.update_layout(template="workbench", title_text=tokens.plotly(_title(data, what)))
    return figure


def _title(data: xr.Dataset, what: str) -> str:
    return f"{short_name(str(data.attrs.get('model', '')))} · {what}"


def _sized(figure: Figure, width: float, height: float) -> Figure:
    figure.update_layout(width=float(np.clip(width, 480, 1400)), height=float(np.clip(height, 260, 1200)))
    return figure


OVERLAPS = ("jaccard", "contained", "weighted")
COUNTS = ("document_count", "usage_count")
USAGE = Chart(usage, ("share", "band_low"), "routing.usage", COUNTS)
DIVERGENCE = Chart(divergence, ("jsd", "jsd_q"), "routing.divergence", COUNTS)
OVERLAP = Chart(overlap, ("jaccard", "mantel_p"), "routing.overlap", COUNTS)
LAYERS = Chart(layers, ("mean_jsd", "mean_jsd_floor"), "routing.divergence", COUNTS)
GAPS = Chart(gaps, ("gap", "threshold"), "routing.select", COUNTS)
COACTIVATION = Chart(coactivation, ("given", "lift"), "routing.coactivation", ("pair_count or expert_id",))
ENTROPY = Chart(entropy, ("entropy_corrected", "entropy_uniform"), "routing.usage", COUNTS)
GATE = Chart(gate, ("entropy_share", "histogram"), "routing.gate", ("gate_histogram",))
WORDS = Chart(words, ("specialisation", "text"), "routing.vocabulary", ("expert_id", "input_token"))
FLOW = Chart(flow, ("follows", "count"), "routing.flow", ("flow_count or expert_id",))
FOREST = Chart(forest, ("delta", "delta_random", "backed"))
SATURATION = Chart(saturation, ("saturation", "top_null"))
PARALLEL = Chart(parallel, ("divergence", "divergence_excess"))
