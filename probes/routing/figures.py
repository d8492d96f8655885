"""Figures of a measure's result: ``figures.usage(measures.usage(reading))``, the numbers of that table and no others.

``reading.figure("usage")`` of a routing trace measures first, with the measure's defaults and what options are its.

An expert that is claimed to serve a label is marked with a star where an intervention backs the claim: pass the table
of :func:`probes.routing.effects`, whose ``backed`` says so, as ``effects=``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.routing.tracer import numbered
from workbench import tokens
from workbench.errors import InputError
from workbench.figures.charts import Chart
from workbench.figures.figure import drawn
from workbench.figures.plot import GREY, Axis, Cells, Flow, Line, Panel, Plot, Points, Rule, Table, whole
from workbench.figures.source import of_model
from workbench.variables import title

if TYPE_CHECKING:
    from workbench.reading import Reading


@drawn
def usage(table: xr.Dataset, label: Any = None, effects: Reading | None = None) -> Plot:
    """Share of slots by block and expert of one label (default the first).

    Hatched: within the band of a router that chooses at random; a star marks what an intervention backs.
    """
    names, i = chosen(table, "label", label)
    own = table.isel(label=i)
    share, blocks = own["share"].values, own["block"].values.tolist()
    starred = np.zeros(share.shape, bool)
    for block, expert in _backed(effects, names[i], names):
        if block in blocks:
            starred[blocks.index(block), expert] = True
    inside = (share >= own["band_low"].values[:, None]) & (share <= own["band_high"].values[:, None])
    cells = Cells(share, low=0, bar=title(own["share"], short=True), hatched=inside, starred=starred)
    what = f"{one_of(names, i)}: share of slots (hatched: as by chance{_star(effects)})"
    return Plot([Panel([cells], axis(table, "expert"), axis(table, "block"))], of_model(table, what), shows=["share"])


def axis(table: xr.Dataset, name: str, label: str | None = None, **options: Any) -> Axis:
    """An axis of the labels of a dimension."""
    return Axis(name if label is None else label, names=[str(x) for x in table[name].values], **options)


def chosen(table: xr.Dataset, name: str, which: Any) -> tuple[list[str], int]:
    """The labels of a dimension, and the index of the one that is asked for (default the first)."""
    names = [str(x) for x in table[name].values]
    if which is not None and str(which) not in names:
        raise InputError(f"There is no {name} {str(which)!r} in the reading; there are {', '.join(names)}.")
    return names, 0 if which is None else names.index(str(which))


def one_of(names: list[str], i: int) -> str:
    """A label that is shown alone, and of how many it is one."""
    return f"{names[i]} (label {i + 1} of {len(names)})" if len(names) > 1 else names[i]


def _star(effects: Reading | None) -> str:
    return ", star: missed when dropped" if effects is not None else ""


def _backed(effects: Reading | None, label: str, labels: list[str]) -> set[tuple[int, int]]:
    """(block, expert) of backed claims of this label; a claim without a label's name is of all labels."""
    if effects is None:
        return set()
    held = zip(effects["claim"].values, effects["experts"].values, _holds(effects), strict=True)
    return {
        (int(block), expert)
        for claim, experts, backed in held
        if backed and (str(claim) == label or str(claim) not in labels)
        for block, some in json.loads(str(experts)).items()
        for expert in some
    }


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
def entropy(table: xr.Dataset) -> Plot:
    """Entropy of expert usage (less its bias) over blocks, a line for each label with interval; dashed: even loads."""
    x = table["block"].values
    marks = []
    for i, name in enumerate(table["label"].values):
        own = table.isel(label=i)
        low, high = own["entropy_low"].values, own["entropy_high"].values
        marks.append(Line(x, own["entropy_corrected"].values, str(name), low, high, hue=i))
    marks.append(Line(x, table["entropy_uniform"].values, "even", hue=GREY, dash="dash", markers=False, width=1))
    panel = Panel(marks, whole("block", x), title(table["entropy_corrected"], short=True))
    return Plot([panel], of_model(table, "entropy of expert usage"), shows=["entropy"])


@drawn
def gate(table: xr.Dataset, label: Any = None) -> Plot:
    """How sure the gate is of each token: a histogram of its entropy over ln E for every block."""
    names, i = chosen(table, "label", label)
    share, ticks = table["histogram"].values[i], np.linspace(0, 1, 6)
    hover = [
        [f"block {b}, {x:.2f}: {v:.1%} of tokens" for x, v in zip(table["bin"].values, row, strict=True)]
        for b, row in zip(table["block"].values, share, strict=True)
    ]
    cells = Cells(share, low=0, bar=title(table["histogram"], short=True), hover=hover)
    # Bins stand at 0, 1, 2, ..., so the first one's lower edge is at -0.5.
    across = Axis("entropy / ln E", ticks=(ticks * share.shape[1] - 0.5).tolist(), names=[f"{t:g}" for t in ticks])
    what = f"{one_of(names, i)}: entropy of the gate (1: undecided)"
    return Plot([Panel([cells], across, axis(table, "block"))], of_model(table, what), shows=["histogram"])


@drawn
def words(table: xr.Dataset, block: int | None = None, top: int = 8) -> Plot:
    """The tokens that each expert of one block (default the last) serves most beyond chance, as a table."""
    own = table.isel(block=_block(table, block))
    text, share, expert = (own[name].values for name in ("text", "share", "expert"))
    excess = share - own["null"].values
    rows = []
    for e in range(int(own["experts"])):
        mine = np.flatnonzero((expert == e) & (excess > 0))
        best = mine[np.argsort(-excess[mine])][:top]
        rows.append((str(e), ", ".join(f"{tokens.visible(text[j])} {share[j]:.0%}" for j in best), str(len(mine))))
    shown = Table(["expert", "tokens", "of it"], rows, [1.6, 8, 1.2])
    times = f"(share served; at least {table.attrs['least']} times)"
    what = f"tokens of the experts of block {own['block'].item()} {times}"
    return Plot([Panel([shown])], of_model(table, what), shows=["share"])


@drawn
def divergence(table: xr.Dataset, block: int | None = None) -> Plot:
    """Jensen-Shannon divergence between labels in one block (default the last); a ring where q < 0.05."""
    own = table.isel(block=_block(table, block))
    lower = np.tri(own.sizes["label"], k=-1, dtype=bool)
    values, sure = np.where(lower, own["jsd"].values, np.nan), lower & (own["jsd_q"].values < 0.05)
    cells = Cells(values, low=0, bar=title(own["jsd"], short=True), ringed=sure)
    panel = Panel([cells], axis(table, "label", ""), axis(table, "label", "", reversed=True))
    return Plot([panel], of_model(table, f"JSD in block {own['block'].item()} (ring: q < 0.05)"), shows=["jsd"])


@drawn
def overlap(table: xr.Dataset, block: int | None = None, measure: str = "jaccard") -> Plot:
    """Divergence of usage against shared vocabulary, a point for each pair of labels, with Mantel's p.

    Pairs that lie at one point have one label with all their names.
    """
    if measure not in OVERLAPS:
        raise InputError(f"measure={measure!r} is unknown. Use one of {', '.join(OVERLAPS)}.")
    own = table.sel(measure=measure).isel(block=_block(table, block))
    names = [str(x) for x in table["label"].values]
    i, j = np.triu_indices(len(names), 1)
    x, y = own[measure].values[i, j], own["jsd"].values[i, j]
    far, high = max(0.05, float(np.nanmax(x, initial=0))), max(0.001, float(np.nanmax(y, initial=0)))
    points = Points(x, y, names=[f"{names[a]}-{names[b]}" for a, b in zip(i, j, strict=True)], size=7)
    across = Axis(title(own[measure]), range=(-0.04 * far, 1.08 * far))
    panel = Panel([points], across, Axis(title(own["jsd"], short=True), range=(0, 1.12 * high)))
    r, p = float(own["pearson"]), float(own["mantel_p"])
    what = f"block {own['block'].item()}: r = {r:.2f}, Mantel p = {p:.3g}"
    return Plot([panel], of_model(table, what), shows=["pearson"])


@drawn
def layers(table: xr.Dataset) -> Plot:
    """Mean divergence between labels over blocks, with its interval, beside shuffled labels and split halves.

    The band and its line are less the bias of few documents; the line as counted is to be compared with the other two.
    """
    x, own = table["block"].values, {name: table[f"mean_jsd{name}"].values for name in (
        "", "_low", "_high", "_corrected", "_null", "_floor")}  # fmt: skip
    marks = [
        Line(x, own["_corrected"], "labels, less bias", own["_low"], own["_high"]),
        Line(x, own[""], "labels, as counted", dash="longdash"),
        Line(x, own["_null"], "labels shuffled among documents", hue=1, dash="dash"),
        Line(x, own["_floor"], "halves of one label", hue=2, dash="dot"),
    ]
    panel = Panel(marks, whole("block", x), Axis(title(table["mean_jsd"], short=True), range=(0, None)))
    return Plot([panel], of_model(table, "mean divergence between labels"), shows=["mean_jsd"])


@drawn
def gaps(table: xr.Dataset, block: int | None = None, effects: Reading | None = None) -> Plot:
    """Activation gap of every expert of one block (default the last) by its label, and the threshold of chance.

    A star: an intervention backs that the expert is needed.
    """
    own = table.isel(block=_block(table, block))
    gap, at = own["gap"].values, own["block"].item()
    order = np.argsort(-gap)
    owner, labels = own["owner"].values[order].astype(str), [str(x) for x in table["label"].values]
    marks = []
    for i, name in enumerate(labels):
        backed, places = _backed(effects, name, labels), np.flatnonzero(owner == name)
        stars = np.array([(at, int(e)) in backed for e in order[places]], bool)
        looks = {"symbol": np.where(stars, "star", "circle"), "size": np.where(stars, 13, 8)}
        marks.append(Points(places, gap[order[places]], name, i, **looks))
    threshold = own["threshold"].values[order]
    marks.append(Points(range(len(order)), threshold, "threshold", GREY, symbol="dash", size=14))
    across = Axis("expert", names=[str(e) for e in order])
    panel = Panel(marks, across, Axis(title(own["gap"], short=True), range=(0, None)))
    what = f"activation gap in block {at} (highest less second share{_star(effects)})"
    return Plot([panel], of_model(table, what), shows=["gap"])


@drawn
def coactivation(table: xr.Dataset, block: int | None = None) -> Plot:
    """Which experts serve a token together: log2 of how often over what their loads alone give (0)."""
    own = table.isel(block=_block(table, block))
    lift = own["lift"].values
    values = np.where(np.isfinite(lift) & ~np.eye(len(lift), dtype=bool), lift, np.nan)
    cells = Cells(values, "diverging", bar=title(own["lift"], short=True))
    panel = Panel([cells], axis(table, "expert"), axis(table, "expert", "given expert", reversed=True))
    zero = "0: as by their loads"
    what = of_model(table, f"co-activation in block {own['block'].item()} ({zero})")
    return Plot([panel], what, shows=["lift"], controls=[zero])


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
    blocks = table["block"].values
    nodes = [(column, f"{blocks[column]}.{expert}", expert) for column, expert in ends]
    links = [(ends.index(a), ends.index(b), much) for a, b, much in streams]
    what = f"strongest expert, block to block (from {least:.0%})"
    return Plot([Panel([Flow(nodes, links)])], of_model(table, what), shows=["follows"])


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
    for name, kind, symbol in (("other sets", "random", "tick"), ("replaced at random", "replaced", "x")):
        drawn = table[f"delta_{kind}"].values
        marks.append(Points(drawn.ravel(), np.repeat(rows, drawn.shape[1]), name, GREY, symbol=symbol))
    marks.append(Points(own, rows, "dropped", x_low=low, x_high=high, size=9, hover=hover))
    down = Axis(names=[n + " ★" * bool(held) for n, held in zip(names, _holds(table), strict=True)], reversed=True)
    level = table.attrs.get("level", 0.95)
    said = f"{100 * level:g} % over documents; ★: q over sets ≤ {1 - level:.2g}"
    what = f"what dropping experts costs ({said})"
    return Plot([Panel(marks, title(table["delta"]), down)], of_model(table, what), shows=["delta"])


@drawn
def saturation(table: xr.Dataset, value: str = "saturation") -> Plot:
    """How soon the final routing is there: a table of :func:`measures.saturation`, a line for each block.

    ``value``: "saturation", "top", "weighted" or "divergence".
    """
    if f"{value}_low" not in table:
        raise InputError(f"The table has no {value!r} with an interval.")
    share, x = value != "divergence", range(table.sizes["checkpoint"])
    marks = []
    for i, block in enumerate(table["block"].values):
        y, low, high = (table[value + end].values[:, i] for end in ("", "_low", "_high"))
        marks.append(Line(x, y, f"block {block}", low, high, hue=i))
    for ending, name, dash, end in (("null", "chance", "dash", "high"), ("floor", "noise", "dot", "low")):
        if f"{value}_{ending}" in table:
            marks.append(Rule(float(table[f"{value}_{ending}"].mean()), name=name, dash=dash, end=end))
    what = "share of the final experts" if share else "divergence of the gate from the final one"
    up = Axis(title(table[value], short=True), range=(0, 1.03 if share else None))
    return Plot([Panel(marks, axis(table, "checkpoint"), up)], of_model(table, what), shows=[value])


@drawn
def parallel(table: xr.Dataset, reference: str | None = None) -> Plot:
    """Divergence between translations over blocks (a table of :func:`measures.parallel`), beside random pairings.

    ``reference``: pairs with this label alone.
    """
    (names, _), x = chosen(table, "label", reference), table["block"].values
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if reference in (None, a, b)]
    marks = []
    for i, (a, b) in enumerate(pairs):
        own, name = table.sel(label=a, label_2=b), f"{a}-{b}"
        y, low, high, null = (own[f"divergence{end}"].values for end in ("", "_low", "_high", "_null"))
        marks.append(Line(x, y, name, low, high, hue=i, markers=False))
        marks.append(Line(x, null, f"{name}, of other sentences", hue=i, dash="dash", markers=False, width=1, legend=False))
    panel = Panel(marks, whole("block", x), Axis(title(table["divergence"], short=True), range=(0, None)))
    what = "divergence between translations (dashed: of other sentences)"
    return Plot([panel], of_model(table, what), shows=["divergence"])


def _block(data: xr.Dataset, block: int | None) -> int:
    """Where a block is in a reading (default the last one there; below 0: from the model's last)."""
    blocks = data["block"].values.tolist()
    number = blocks[-1] if block is None else numbered(block, data.attrs.get("n_layers") or blocks[-1] + 1, blocks)[0]
    if number not in blocks:
        raise InputError(f"Block {number} is not in the reading; there are {blocks}.")
    return blocks.index(number)


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
