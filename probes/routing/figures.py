"""Figures of a measure's result: ``figures.usage(measures.usage(reading))``, the numbers of that table and no others.

``reading.figure("usage")`` of a routing trace measures first, with the measure's defaults and what options are its.

An expert that is claimed to serve a label is marked with a star where an intervention backs the claim: pass the table
of :func:`probes.routing.effects`, whose ``backed`` says so, as ``effects=``.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.routing.tracer import numbered
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import Axis, Cells, Chart, Flow, Line, Panel, Plot, Points, Rule, Table, drawn, plot, whole
from workbench.figures.charts import heading
from workbench.figures.source import Source
from workbench.variables import title

if TYPE_CHECKING:
    from workbench.reading import Reading


@drawn
def usage(table: xr.Dataset, label: Any = None, effects: Reading | None = None) -> Plot:
    """Share of slots by block and expert of one label (default the first).

    Hatched: within the band of a router that chooses at random; a star marks what an intervention backs.
    """
    own, name = chosen(table, label)
    share, low, high = (own[x].values for x in ("share", "band_low", "band_high"))
    inside, stars = (share >= low[:, None]) & (share <= high[:, None]), _backed(effects, table, own["label"].item())
    cells = Cells(share, low=0, bar=title(own["share"], short=True), hatched=inside, starred=stars)
    panel = Panel([cells], Axis("expert", names=own["expert"]), Axis("block", names=own["block"]))
    what = f"{name}: share of slots (hatched: as by chance{STAR * (effects is not None)})"
    return Plot([panel], heading(Source(table), what), shows=["share"])


def chosen(table: xr.Dataset, label: Any) -> tuple[xr.Dataset, str]:
    """The part of the label that is asked for (default the first), and what a title says of it."""
    names = [str(x) for x in table["label"].values]
    if label is not None and str(label) not in names:
        raise InputError(f"There is no label {str(label)!r} in the reading; there are {', '.join(names)}.")
    i = 0 if label is None else names.index(str(label))
    return table.isel(label=i), f"{names[i]} (label {i + 1} of {len(names)})" if len(names) > 1 else names[i]


def _backed(effects: Reading | None, table: xr.Dataset, label: str) -> np.ndarray:
    """[block, expert] whether a claim of this label is backed; a claim without a label's name is of all labels."""
    blocks, others = np.atleast_1d(table["block"].values), {*table["label"].values.astype(str)} - {label}
    found = np.zeros((len(blocks), table.sizes["expert"]), bool)
    if effects is None:
        return found
    for i in np.flatnonzero(_holds(effects)):
        if str(effects["claim"].values[i]) not in others:
            for block, experts in json.loads(str(effects["experts"].values[i])).items():
                found[np.ix_(blocks == int(block), experts)] = True
    return found


def _holds(effects: Reading | xr.Dataset) -> np.ndarray:
    """[claim] whether an intervention backs it."""
    if "backed" not in effects:
        held = ", ".join(map(str, getattr(effects, "data", effects).data_vars))
        raise InputError(
            f"The table of effects has no 'backed', only {held}, so that no star can be given. Make it with "
            "probes.routing.effects."
        )
    return effects["backed"].values


@drawn
def entropy(table: xr.Dataset) -> Plot:
    """Entropy of expert usage (less its bias) over blocks, a line for each label with interval; dashed: even loads."""
    x, marks = table["block"].values, []
    for i, name in enumerate(table["label"].values):
        own = table.isel(label=i)
        marks.append(Line(x, own["entropy_corrected"], str(name), own["entropy_low"], own["entropy_high"], hue=i))
    marks.append(Line(x, table["entropy_uniform"], "even", hue=plot.GREY, dash="dash", markers=False, width=1))
    panel = Panel(marks, whole("block", x), title(table["entropy_corrected"], short=True))
    return Plot([panel], heading(Source(table), "entropy of expert usage"), shows=["entropy"])


@drawn
def gate(table: xr.Dataset, label: Any = None) -> Plot:
    """How sure the gate is of each token: a histogram of its entropy over ln E for every block."""
    own, name = chosen(table, label)
    share, blocks, bins, edges = own["histogram"], own["block"].values, own["bin"].values, np.linspace(0, 1, 6)
    hover = [
        [f"block {block}, {middle:.2f}: {v:.1%} of tokens" for middle, v in zip(bins, row, strict=True)]
        for block, row in zip(blocks, share.values, strict=True)
    ]
    cells = Cells(share, low=0, bar=title(share, short=True), hover=hover)
    # Bins stand at 0, 1, 2, ..., so that the first begins at -0.5.
    across = Axis("entropy / ln E", ticks=edges * len(bins) - 0.5, names=[f"{edge:g}" for edge in edges])
    panel, what = Panel([cells], across, Axis("block", names=blocks)), f"{name}: entropy of the gate (1: undecided)"
    return Plot([panel], heading(Source(table), what), shows=["histogram"])


@drawn
def words(table: xr.Dataset, block: int | None = None, top: int = 8) -> Plot:
    """The tokens that each expert of one block (default the last) serves most beyond chance, as a table."""
    own = _at(table, block)
    text, share, expert = (own[name].values for name in ("text", "share", "expert"))
    excess, rows = share - own["null"].values, []
    for e in range(int(own["experts"])):
        mine = np.flatnonzero((expert == e) & (excess > 0))
        best = mine[np.argsort(-excess[mine])][:top]
        rows.append((str(e), ", ".join(f"{tokens.visible(text[j])} {share[j]:.0%}" for j in best), str(len(mine))))
    shown = Table(["expert", "tokens (share served)", "in all"], rows, [1.6, 8, 1.2])
    what = f"tokens of the experts of block {own['block'].item()} (at least {table.attrs['least']} times)"
    return Plot([Panel([shown])], heading(Source(table), what), shows=["share"])


@drawn
def divergence(table: xr.Dataset, block: int | None = None) -> Plot:
    """Jensen-Shannon divergence between labels in one block (default the last); a ring where q < 0.05."""
    own = _at(table, block)
    names, lower = own["label"], np.tri(own.sizes["label"], k=-1, dtype=bool)
    values, sure = np.where(lower, own["jsd"], np.nan), lower & (own["jsd_q"].values < 0.05)
    cells = Cells(values, low=0, bar=title(own["jsd"], short=True), ringed=sure)
    panel = Panel([cells], Axis(names=names), Axis(names=names, reversed=True))
    return Plot([panel], heading(Source(table), f"JSD in block {own['block'].item()} (ring: q < 0.05)"), shows=["jsd"])


@drawn
def overlap(table: xr.Dataset, block: int | None = None, measure: str = "jaccard") -> Plot:
    """Divergence of usage against shared vocabulary, a point for each pair of labels, with Mantel's p.

    Pairs that lie at one point have one label with all their names.
    """
    if measure not in table["measure"].values:
        raise InputError(f"measure={measure!r} is unknown. Use one of {', '.join(table['measure'].values)}.")
    own = _at(table.sel(measure=measure), block)
    pairs = np.triu_indices(own.sizes["label"], 1)
    names = [f"{a}-{b}" for a, b in combinations(own["label"].values, 2)]
    points = Points(own[measure].values[pairs], own["jsd"].values[pairs], names=names, size=7)
    across, up = (Axis(title(own[name], short=True), range=(0, None)) for name in (measure, "jsd"))
    what = f"block {own['block'].item()}: r = {own['pearson'].item():.2f}, Mantel p = {own['mantel_p'].item():.3g}"
    return Plot([Panel([points], across, up)], heading(Source(table), what), shows=["pearson"])


@drawn
def layers(table: xr.Dataset) -> Plot:
    """Mean divergence between labels over blocks, with its interval, beside shuffled labels and split halves.

    The band and its line are less the bias of few documents; the line as counted is to be compared with the other two.
    """
    x = table["block"].values
    marks = [
        Line(x, table["mean_jsd_corrected"], "labels, less bias", table["mean_jsd_low"], table["mean_jsd_high"]),
        Line(x, table["mean_jsd"], "labels, as counted", dash="longdash"),
        Line(x, table["mean_jsd_null"], "labels shuffled among documents", hue=1, dash="dash"),
        Line(x, table["mean_jsd_floor"], "halves of one label", hue=2, dash="dot"),
    ]
    panel = Panel(marks, whole("block", x), Axis(title(table["mean_jsd"], short=True), range=(0, None)))
    return Plot([panel], heading(Source(table), "mean divergence between labels"), shows=["mean_jsd"])


@drawn
def gaps(table: xr.Dataset, block: int | None = None, effects: Reading | None = None) -> Plot:
    """Activation gap of every expert of one block (default the last) by its label, and the threshold of chance.

    A star: an intervention backs that the expert is needed.
    """
    own = _at(table, block)
    order = np.argsort(-own["gap"].values)
    gap, owner, threshold = (own[name].values[order] for name in ("gap", "owner", "threshold"))
    marks = []
    for i, name in enumerate(table["label"].values.astype(str)):
        at, stars = np.flatnonzero(owner.astype(str) == name), _backed(effects, own, name)[0, order]
        at = at[np.argsort(stars[at], kind="stable")]  # the legend has the first one's symbol
        symbols = np.where(stars[at], "star", "circle")
        marks.append(Points(at, gap[at], str(name), i, symbol=symbols, size=8 + 5 * stars[at]))
    marks.append(Points(range(len(order)), threshold, "threshold", plot.GREY, symbol="dash", size=14))
    panel = Panel(marks, Axis("expert", names=order), Axis(title(own["gap"], short=True), range=(0, None)))
    what = f"activation gap in block {own['block'].item()} (highest less second share{STAR * (effects is not None)})"
    return Plot([panel], heading(Source(table), what), shows=["gap"])


@drawn
def coactivation(table: xr.Dataset, block: int | None = None) -> Plot:
    """Which experts serve a token together: log2 of how often over what their loads alone give (0)."""
    own = _at(table, block)
    lift, experts = own["lift"].values, own["expert"]
    values = np.where(np.isfinite(lift) & ~np.eye(len(lift), dtype=bool), lift, np.nan)
    cells = Cells(values, "diverging", bar=title(own["lift"], short=True))
    panel = Panel([cells], Axis("expert", names=experts), Axis("given expert", names=experts, reversed=True))
    what = f"co-activation in block {own['block'].item()} (0: as by their loads)"
    return Plot([panel], heading(Source(table), what), shows=["lift"], controls=["0: as by their loads"])


@drawn
def flow(table: xr.Dataset, least: float = 0.02) -> Plot:
    """Where tokens go from block to block, by their strongest expert; streams of less than ``least`` are left out."""
    if not table.sizes["block_from"]:
        raise InputError("Flow is from block to block, and one block was traced.")
    streams = [
        ((i, int(a)), (i + 1, int(b)), float(own[a, b]))
        for i, own in enumerate(table["count"].values)
        for a, b in np.argwhere(own >= least * own.sum())
    ]
    ends = sorted({end for *both, _ in streams for end in both})
    nodes = [(column, f"{table['block'].values[column]}.{expert}", expert) for column, expert in ends]
    links = [(ends.index(a), ends.index(b), much) for a, b, much in streams]
    what = f"strongest expert, block to block (from {least:.0%})"
    return Plot([Panel([Flow(nodes, links)])], heading(Source(table), what), shows=["follows"])


@drawn
def forest(table: xr.Dataset) -> Plot:
    """What dropping experts costs (the table of :func:`probes.routing.effects`), beside other sets of as many.

    Ticks: other sets, near in load unless the caliper is 1; crosses: their slots given to random others (equal
    compute); star: ``backed``.
    """
    names, rows = [str(x) for x in table["claim"].values], range(table.sizes["claim"])
    own, low, high, q = (table[name].values for name in ("delta", "delta_low", "delta_high", "q_random"))
    hover = [
        f"{names[i]}: {own[i]:.4f} [{low[i]:.4f}, {high[i]:.4f}] nats a token, q over sets = {q[i]:.2g}" for i in rows
    ]
    marks = [Rule(0, "x", dash="solid")]
    for name, kind, symbol, size in (("other sets", "random", "tick", 15), ("replaced at random", "replaced", "x", 6)):
        others = table[f"delta_{kind}"].values
        at = np.repeat(rows, others.shape[1])
        marks.append(Points(others.ravel(), at, name, plot.GREY, symbol=symbol, size=size))
    marks.append(Points(own, rows, "dropped", x_low=low, x_high=high, size=9, hover=hover))
    down = Axis(names=[n + " ★" * bool(held) for n, held in zip(names, _holds(table), strict=True)], reversed=True)
    level = table.attrs.get("level", 0.95)
    what = f"what dropping experts costs ({100 * level:g} % over documents; ★: q over sets ≤ {1 - level:.2g})"
    return Plot([Panel(marks, title(table["delta"]), down)], heading(Source(table), what), shows=["delta"])


@drawn
def saturation(table: xr.Dataset, value: str = "saturation") -> Plot:
    """How soon the final routing is there: a table of :func:`measures.saturation`, a line for each block.

    ``value``: "saturation", "top", "weighted" or "divergence".
    """
    if f"{value}_low" not in table:
        raise InputError(f"The table has no {value!r} with an interval.")
    x, marks = range(table.sizes["checkpoint"]), []
    for i, block in enumerate(table["block"].values):
        y, low, high = (table[value + end].isel(block=i) for end in ("", "_low", "_high"))
        marks.append(Line(x, y, f"block {block}", low, high, hue=i))
    for ending, name, dash, end in (("null", "chance", "dash", "high"), ("floor", "noise", "dot", "low")):
        if f"{value}_{ending}" in table:
            marks.append(Rule(float(table[f"{value}_{ending}"].mean()), name=name, dash=dash, end=end))
    across = Axis("checkpoint", names=table["checkpoint"])
    panel = Panel(marks, across, Axis(title(table[value]), range=(0, None if value == "divergence" else 1.03)))
    return Plot([panel], heading(Source(table), "how soon the final routing is there"), shows=[value])


@drawn
def parallel(table: xr.Dataset, reference: str | None = None) -> Plot:
    """Divergence between translations over blocks (a table of :func:`measures.parallel`), beside random pairings.

    ``reference``: pairs with this label alone.
    """
    chosen(table, reference)
    pairs = [pair for pair in combinations(table["label"].values, 2) if reference is None or reference in pair]
    x, marks = table["block"].values, []
    for i, (a, b) in enumerate(pairs):
        own, name = table.sel(label=a, label_2=b), f"{a}-{b}"
        y, low, high, null = (own[f"divergence{end}"] for end in ("", "_low", "_high", "_null"))
        marks.append(Line(x, y, name, low, high, hue=i, markers=False))
        marks.append(Line(x, null, name, hue=i, dash="dash", markers=False, width=1, legend=False))
    panel = Panel(marks, whole("block", x), Axis(title(table["divergence"], short=True), range=(0, None)))
    what = "divergence between translations (dashed: of other sentences)"
    return Plot([panel], heading(Source(table), what), shows=["divergence"])


def _at(table: xr.Dataset, block: int | None) -> xr.Dataset:
    """One block of a table (default the last one there; below 0: from the model's last)."""
    blocks = table["block"].values.tolist()
    number = blocks[-1] if block is None else numbered(block, table.attrs.get("n_layers") or blocks[-1] + 1, blocks)[0]
    if number not in blocks:
        raise InputError(f"Block {number} is not in the reading; there are {blocks}.")
    return table.isel(block=blocks.index(number))


STAR = ", star: missed when dropped"
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
