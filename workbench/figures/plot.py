"""What a chart is: panels with marks of a few kinds, said once and drawn twice (`screen`: plotly, `page`: matplotlib).

    Plot([Panel([Line(layers, entropy, low=low, high=high)], x="layer", y="entropy (nats)")], title="entropy by layer")

A chart is a function from a reading's dataset to a `Plot`.  Texts are plain texts: renderers escape, break and cut
them.  Colours are numbers of `HUES`, "#rrggbb", or, of steps in their order, shares (0.0 to 1.0) of the sequential
scale.  An axis of names has its marks at 0, 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures.colours import HUES, HUES_DARK, SEQUENTIAL, ink, rgb, stops
from workbench.figures.glyphs import broken, cut, width

Hue = int | float | str
GREY = "#8c8c8c"
INK = "ink"
"""The colour of text: black on paper, light on a dark screen."""
VEIL = 0.6
"""How strong the colours over a picture are."""
HOVER_CELLS = 3_000
"""Above this many cells their hover texts would outweigh the figure."""


@dataclass
class Axis:
    """One axis of a panel.

    Parameters
    ----------
    label
        What it says, with units.
    names
        Texts at 0, 1, 2, ...: an axis of names.  What does not fit is turned, cut or thinned out by the renderer.
    places
        Numbers that may stand for the names where these do not fit (places of tokens in their prompt).
    ticks
        Where ticks are, where the renderer is not to choose; ``names`` are then their texts.
    range
        Lowest and highest value; None: what the marks need.  One end may be None.
    scale
        "linear", "whole" (ticks at whole numbers only) or "log".
    reversed
        The first is at the top (or at the right).
    shown
        False: no line, no ticks.
    """

    label: str = ""
    names: Any = None
    places: Sequence[int] | None = None
    ticks: Any = None
    range: tuple[float | None, float | None] | None = None
    scale: str = "linear"
    reversed: bool = False
    shown: bool = True

    def __post_init__(self) -> None:
        self.names = None if self.names is None else [str(name) for name in np.asarray(self.names, object)]
        self.ticks = None if self.ticks is None else np.asarray(self.ticks, float).tolist()

    @property
    def named(self) -> bool:
        """Whether it is an axis of names: of ticks, names are but their texts."""
        return self.names is not None and self.ticks is None


def whole(label: str, values: Sequence[int] | np.ndarray) -> Axis:
    """An axis of layers, blocks or steps that were read: ticks at these, of many at every second, fifth, ..."""
    known = sorted({int(v) for v in values})
    return Axis(label, ticks=known[:: max(1, -(-len(known) // 12))])


def log_ticks(highest: float) -> tuple[list[float], list[str]]:
    """Ticks of a value that is drawn as log10(1 + x), and their texts."""
    known = [t for t in (0, 1, 3, 9, 30, 99, 999, 9999, 99999, 999999) if np.log10(t + 1) <= highest + 0.2]
    return np.log10(np.add(known, 1)).tolist(), [f"{t:,}" for t in known]


# ---------------------------------------------------------------- marks


@dataclass
class Mark:
    """What is drawn in a panel."""


@dataclass
class Line(Mark):
    """A line, with a band where it has ``low`` and ``high``, and its units as points where these are few.

    Parameters
    ----------
    x, y
        [n] values; NaN breaks the line.
    name
        In the legend; "" has no entry.
    low, high
        [n] ends of an interval.
    hue
        Number of a hue, or a colour.
    dash
        "solid", "dash", "dot", "dashdot" or "longdash"; controls (nulls, floors, chance) are never solid.
    markers
        Whether its points are marked.
    width
        In pixels of the screen (3/4 of a point).
    each
        [unit, n] values of the units that the line is the mean of, drawn as faint points.
    hover
        [n] texts; by default name, x and y with the interval.
    bars
        Draw the interval as bars at the points instead of a band.
    banded
        False: the interval is told by the hover alone, as where ``each`` shows few units.
    legend
        False: no entry of its own (another panel has it).
    """

    x: Any
    y: Any
    name: str = ""
    low: Any = None
    high: Any = None
    hue: Hue = 0
    dash: str = "solid"
    markers: bool = True
    width: float = 2
    each: Any = None
    hover: Sequence[str] | None = None
    bars: bool = False
    banded: bool = True
    legend: bool = True


@dataclass
class Areas(Mark):
    """Shares of a whole, one above the other: ``y`` is [name, x]."""

    x: Any
    y: Any
    names: Sequence[str] = ()
    hues: Sequence[Hue] = ()


@dataclass
class Points(Mark):
    """Points, with intervals along either axis.

    Parameters
    ----------
    x, y
        [n] values.
    name, hue, legend, hover
        As of a :class:`Line`; ``hue`` may be [n] of them.
    x_low, x_high, y_low, y_high
        [n] ends of intervals.
    filled
        Whether a point is filled: what is beyond chance.  One truth value, or [n] of them.
    symbol
        "circle", "square", "diamond", "triangle", "cross", "x", "star", "tick" (upright) or "dash" (level); or [n].
    size
        In pixels of the screen; or [n].
    names
        [n] texts written beside the points, where there is room; "" for none.
    faint
        Behind what matters.
    """

    x: Any
    y: Any
    name: str = ""
    hue: Any = 0
    x_low: Any = None
    x_high: Any = None
    y_low: Any = None
    y_high: Any = None
    filled: Any = True
    symbol: Any = "circle"
    size: Any = 8
    names: Sequence[str] | None = None
    hover: Sequence[str] | None = None
    faint: bool = False
    legend: bool = True


@dataclass
class Bars(Mark):
    """Bars from zero.

    Parameters
    ----------
    at, values
        [n] places and heights (lengths, where ``level``).
    colours
        [n] numbers that their colours show, with a bar of its own (``bar``, its title) from 0 to ``high``.
    """

    at: Any
    values: Any
    name: str = ""
    hue: Hue = 0
    level: bool = False
    colours: Any = None
    bar: str = ""
    high: float | None = None
    hover: Sequence[str] | None = None
    legend: bool = True


@dataclass
class Cells(Mark):
    """A table of numbers as colours: row r, column c of ``values`` stands at (c, r); the axes have the names.

    Parameters
    ----------
    values
        [row, column] numbers; NaN is left empty.
    scale
        "sequential", "reversed" or "diverging" (:func:`workbench.figures.colours.scale`).
    low, high
        Ends of the colours; by default of the values.  A diverging scale is centred on 0.
    bar
        Title of the colour bar; "" has none.  Panels of one plot with the same title, scale and ends share one.
    ticks
        Of the bar: values and their texts.
    text
        [row, column] texts, fitted to the cells or, where they cannot be read, left out with a warning.
    hatched, ringed, starred, dotted, framed
        [row, column] truth values: hatched where not beyond chance; a ring, a star, a dot in the cell; a dotted frame.
    hover
        [row, column] texts, or None: names and value.
    """

    values: Any
    scale: str = "sequential"
    low: float | None = None
    high: float | None = None
    bar: str = ""
    ticks: tuple[Sequence[float], Sequence[str]] | None = None
    text: Any = None
    hatched: Any = None
    ringed: Any = None
    starred: Any = None
    dotted: Any = None
    framed: Any = None
    hover: Any = None

    def __post_init__(self) -> None:
        self.values = np.asarray(self.values, float)

    @property
    def ends(self) -> tuple[float, float]:
        """Values at the ends of the colours."""
        known = self.values[np.isfinite(self.values)]
        low = float(known.min(initial=np.inf)) if self.low is None else self.low
        high = float(known.max(initial=-np.inf)) if self.high is None else self.high
        if not known.size and (self.low is None or self.high is None):
            low, high = 0.0, 1.0
        if self.scale == "diverging":
            high = max(abs(low), abs(high), 1e-6)
            low = -high
        return (low, high) if high > low else (low, low + 1e-6)

    @property
    def shares(self) -> np.ndarray:
        """[row, column] place of each value on the scale, 0 to 1; NaN for none."""
        low, high = self.ends
        return ((self.values - low) / (high - low)).clip(0, 1)

    @property
    def marked(self) -> bool:
        """Whether anything stands in a cell whose ink depends on the cell's colour."""
        return any(mask is not None for mask in (self.hatched, self.ringed, self.starred, self.dotted))

    @property
    def key(self) -> tuple[Any, ...]:
        """What cells have in common that share a colour bar."""
        return self.bar, self.scale, self.ends, str(self.ticks)


@dataclass
class Rule(Mark):
    """A line all across at one value of ``axis`` ("x" or "y"), with a name at its end."""

    at: float
    axis: str = "y"
    name: str = ""
    hue: Hue = GREY
    dash: str = "dot"
    end: str = "high"
    """At which end its name stands: "high" (right, above) or "low"."""


@dataclass
class Region(Mark):
    """A filled outline: an ellipse, a rectangle."""

    x: Any
    y: Any
    name: str = ""
    hue: Hue = GREY
    legend: bool = True


@dataclass
class Flow(Mark):
    """Streams between columns of nodes: nodes are (column, text, hue), links (node, node, how much).

    Nodes without a stream are left out.
    """

    nodes: Sequence[tuple[int, str, Hue]]
    links: Sequence[tuple[int, int, float]]

    def __post_init__(self) -> None:
        kept = sorted({node for *ends, much in self.links if much for node in ends})
        self.links = [(kept.index(a), kept.index(b), much) for a, b, much in self.links if much]
        self.nodes = [self.nodes[i] for i in kept]


@dataclass
class Graph(Mark):
    """Nodes and directed edges, nodes coloured 0 to 1 by one of several frames.

    Parameters
    ----------
    x, y, names
        [node] places and texts.
    edges
        Pairs of nodes.
    values
        [frame, node] shares; on the screen a slider chooses, on paper the last stands alone.
    frames
        Their names.
    special
        Name in the legend -> (node, symbol, hue).
    bar
        Title of the colour bar.
    """

    x: Any
    y: Any
    names: Sequence[str]
    edges: Sequence[tuple[int, int]]
    values: Any
    frames: Sequence[str] = ("",)
    special: dict[str, tuple[int, str, Hue]] = field(default_factory=dict)
    bar: str = ""


@dataclass
class Table(Mark):
    """Rows of texts under a header; ``widths`` are relative.  Cells break into lines."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[float] = ()


@dataclass
class Picture(Mark):
    """An image [height, width, 3 or 4] of bytes or shares, with a grid whose cells have colours.

    Parameters
    ----------
    image
        The pixels.
    boxes
        [cell, 4] left, upper, right, lower edge in pixels.
    values
        [cell] numbers, shown as colours over the picture, which is grey then.
    scale, low, high, bar, ticks
        As of :class:`Cells`; panels of one plot share a bar in the same way.
    text
        [cell] texts, fitted to their cells, or left out where they cannot be read.
    framed
        [cell] truth values: a dotted frame.
    hover
        [cell] texts.
    """

    image: Any
    boxes: Any = None
    values: Any = None
    scale: str = "sequential"
    low: float | None = None
    high: float | None = None
    bar: str = ""
    ticks: tuple[Sequence[float], Sequence[str]] | None = None
    text: Any = None
    framed: Any = None
    hover: Sequence[str] | None = None

    @property
    def pixels(self) -> np.ndarray:
        """The image as bytes, grey where colours lie over it."""
        image = np.asarray(self.image)
        image = (image * 255).round().astype(np.uint8) if image.dtype.kind == "f" else image.astype(np.uint8)
        if self.values is None:
            return image
        grey = image[..., :3] @ np.array([0.299, 0.587, 0.114])
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, -1)

    def inks(self) -> np.ndarray:
        """[cell] black or white, whichever stands out more from what is seen there."""
        if self.boxes is None:
            return np.zeros(0, dtype=object)
        cells, pixels = self.cells, self.pixels[..., :3]
        own = rgb(stops(self.scale), np.nan_to_num(cells.shares[0]))
        veil = np.where(np.isfinite(cells.values[0]), VEIL, 0.0)[:, None]
        edges = np.asarray(self.boxes, float).round().astype(int).clip(0).tolist()
        under = [pixels[t : max(b, t + 1), l : max(r, l + 1)].reshape(-1, 3).mean(0) for l, t, r, b in edges]
        return np.asarray(ink(veil * own + (1 - veil) * np.reshape(under, (-1, 3))))

    @property
    def cells(self) -> Cells:
        """Its colours as those of one row of cells."""
        boxes = 0 if self.boxes is None else len(self.boxes)
        values = np.full(boxes, np.nan) if self.values is None else np.asarray(self.values, float)
        return Cells(values[None], self.scale, self.low, self.high, self.bar, self.ticks)

    @property
    def key(self) -> tuple[Any, ...]:
        """What pictures have in common that share a colour bar."""
        return self.cells.key


@dataclass
class Thumbnails(Mark):
    """Small images in an axis of names: each within a place one wide and ``high`` high, in its own proportions.

    Parameters
    ----------
    images
        Arrays [height, width, 3] of bytes.
    x, y
        [image] where their middles are.
    high
        Rows that each takes.
    """

    images: Sequence[Any]
    x: Any
    y: Any
    high: float = 1


# ---------------------------------------------------------------- panels


@dataclass
class Panel:
    """Marks between two axes.

    Parameters
    ----------
    marks
        Drawn in this order.
    x, y
        Axes, or their labels.
    title
        Above the panel.
    width
        Relative to the other panels of its row.
    square
        One unit is as long on both axes.
    """

    marks: Sequence[Mark]
    x: Axis | str = ""
    y: Axis | str = ""
    title: str = ""
    width: float = 1
    square: bool = False

    def __post_init__(self) -> None:
        self.x = Axis(self.x) if isinstance(self.x, str) else self.x
        self.y = Axis(self.y) if isinstance(self.y, str) else self.y

    def of(self, kind: type) -> list[Any]:
        """Its marks of one kind."""
        return [mark for mark in self.marks if isinstance(mark, kind)]


@dataclass
class Plot:
    """Panels, a title, and what the caption needs.

    Parameters
    ----------
    panels
        In reading order.
    title
        Parts joined by " · "; on paper it is left to the caption.
    columns
        Panels in a row; by default all.
    shared
        Axes that all panels have in common: "x", "y" or "xy".
    note
        A warning that stands in the figure.
    shows
        Names of the variables that are shown: the caption names their controls.  None: all of the table's.
    controls
        What the figure itself says of how sure its numbers are (a band).
    size
        (width, height) in pixels of the screen, where the content does not say it well.
    """

    panels: Sequence[Panel]
    title: str = ""
    columns: int | None = None
    shared: str = ""
    note: str = ""
    shows: Sequence[str] | None = None
    controls: Sequence[str] = ()
    size: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not len(self.panels):
            raise InputError("A plot without panels shows nothing. Give at least one: Plot([Panel([Line(x, y)])]).")

    def rows(self, most: int | None = None) -> list[list[Panel]]:
        """Panels as they stand, at most so many side by side."""
        panels, n = list(self.panels), self.columns or len(self.panels)
        n = n if most is None else min(n, most)
        return [panels[i : i + n] for i in range(0, len(panels), n)]

    def room(self) -> tuple[float, float]:
        """Width and height that the panels like to have, in sizes of the type, without legend and title."""
        rows = self.rows()
        wide = max(sum(room(p)[0] + (beside(p) if i == 0 or "y" not in self.shared else 1.5)
                       for i, p in enumerate(row)) for row in rows)  # fmt: skip
        tall = sum(max(room(p)[1] + 1.8 * bool(p.title) for p in row) + (3 if r == len(rows) - 1 or
                   "x" not in self.shared else 1) for r, row in enumerate(rows))  # fmt: skip
        return wide, tall

    def bars(self) -> list[Any]:
        """Marks that need a colour bar, one for all that share it."""
        found: dict[Any, Any] = {}
        for panel in self.panels:
            for mark in (*panel.of(Cells), *panel.of(Picture)):
                if mark.bar and (isinstance(mark, Cells) or mark.values is not None):
                    found.setdefault(mark.key, mark)
        return list(found.values())


def beside(panel: Panel) -> float:
    """Width of the ticks or names beside a panel in sizes of the type."""
    if any(isinstance(mark, Table | Flow | Graph | Picture) for mark in panel.marks):
        return 1.0
    label = 1.8 * bool(panel.y.label)  # type: ignore[union-attr]
    named = panel.y.names  # type: ignore[union-attr]
    return label + (3.5 if not named else min(1 + max(map(width, named)), 22))


def room(panel: Panel) -> tuple[float, float]:
    """Width and height of a panel in sizes of the type, by what is in it."""
    if cells := panel.of(Cells):
        rows, columns = cells[0].values.shape
        named = panel.x.names and np.median([len(n) for n in panel.x.names] or [1])
        wide = 3.8 if cells[0].text is not None else min(3.5, max(1.6, 0.55 * (named or 1)))
        tall = 1.75
        if columns > 60 and cells[0].text is None:
            wide = 60 / columns * 1.6
        titled = 0.55 * width(cells[0].bar)  # the bar's title in two lines
        return max(14, columns * wide), max(5.0, titled, rows * min(tall, 70 / rows))
    if tables := panel.of(Table):
        return 56, 2.2 + sum(row_lines(tables[0], row, 56) * 1.45 + 0.4 for row in tables[0].rows)
    if flows := panel.of(Flow):
        columns = 1 + max((c for c, *_ in flows[0].nodes), default=0)
        deep = max((sum(c == column for c, *_ in flows[0].nodes) for column in range(columns)), default=1)
        return 8 + 11 * columns, max(16.0, min(1.9 * deep, 44))
    if pictures := panel.of(Picture):
        tall, wide = np.asarray(pictures[0].image).shape[:2]
        each = 36 if pictures[0].text is not None and len(pictures[0].boxes) <= 200 else 28
        return each, each * tall / max(1, wide)
    if panel.of(Graph):
        return 48, 26
    across, down = panel.x, panel.y
    assert isinstance(across, Axis) and isinstance(down, Axis)
    side = 34 if panel.square else 22
    # Points that share a name stand below each other.
    rows = max(len(down.names or ()), 0.45 * len({float(y) for mark in panel.of(Points) for y in mark.y}))
    wide = max(26.0, 1.7 * len(across.names or ())) if across.named else 34.0
    return wide, max(5.0, 1.7 * rows) if down.named else side


def row_lines(table: Table, row: Sequence[str], width: float) -> int:
    """Lines that a row takes, of a table so many sizes of its type wide."""
    share = np.asarray(table.widths or [1] * len(row), float)
    share = share / share.sum() * width
    return max(len(broken(text, w - 1, 60)) for text, w in zip(row, share, strict=True))


# ---------------------------------------------------------------- texts and looks that both renderers share


def colour(hue: Hue, dark: bool = False) -> str:
    """"#rrggbb" of a hue."""
    known = HUES_DARK if dark else HUES
    if hue == INK:
        return "#DDE2EC" if dark else "#000000"
    if isinstance(hue, float):  # neither of the ends that the ground would hide
        return "#{:02x}{:02x}{:02x}".format(*rgb(SEQUENTIAL, np.array([0.2 + 0.8 * hue if dark else 0.9 * hue]))[0])
    return hue if isinstance(hue, str) else known[hue % len(known)]


def first_few(chosen: list[Any], what: str) -> tuple[list[Any], str]:
    """As many as there are hues, and what a title says of the rest."""
    kept = chosen[: len(HUES)]
    return kept, f"the first {len(kept)} of {len(chosen)} {what}" if len(kept) < len(chosen) else ""


def diagonals(mask: np.ndarray, lines: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Hatching of cells as segments: x and y, each [segment, 2]."""
    rows, columns = np.nonzero(mask)
    found = []
    for shift in np.linspace(-0.66, 0.66, lines):
        low, high = max(-0.46, -0.46 - shift), min(0.46, 0.46 - shift)
        found.append(np.stack([columns + low, rows + low + shift, columns + high, rows + high + shift], -1))
    ends = np.concatenate(found) if found else np.zeros((0, 4))
    return ends[:, [0, 2]], ends[:, [1, 3]]


def corners(boxes: Any, inset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Outlines of boxes, smaller by a share: x and y, each [box, 5]."""
    left, top, right, bottom = np.asarray(boxes, float).reshape(-1, 4).T
    wide, tall = inset * (right - left), inset * (bottom - top)
    left, right, top, bottom = left + wide, right - wide, top + tall, bottom - tall
    return np.stack([left, right, right, left, left], 1), np.stack([top, top, bottom, bottom, top], 1)


def outlines(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame around each upright run of cells: x and y, each [frame, 5]."""
    edges = np.diff(np.pad(np.asarray(mask).astype(int), ((1, 1), (0, 0))), axis=0)
    x, y = [], []
    for column in np.flatnonzero(np.any(mask, axis=0)).tolist():
        starts, ends = np.flatnonzero(edges[:, column] > 0), np.flatnonzero(edges[:, column] < 0)
        for low, high in zip(starts - 0.44, ends - 0.56, strict=True):
            x.append(column + np.array([-0.44, 0.44, 0.44, -0.44, -0.44]))
            y.append([low, low, high, high, low])
    return np.reshape(x, (-1, 5)), np.reshape(y, (-1, 5))


@dataclass
class Names:
    """Names along an axis as they fit: where, which texts, their size, and whether they are turned or numbers."""

    at: list[int]
    texts: list[str]
    size: float
    turned: bool = False
    numbered: bool = False


NUMBERED = "place in the prompt (its tokens do not fit here)"


def names_across(axis: Axis, each: float, size: float, least: float) -> Names:
    """Names below columns ``each`` so wide, in type of ``size`` and no smaller than ``least`` (all in one unit).

    Tokens (an axis with ``places``) all have their text or none: a row of every second one would read as a text.
    """
    names = tokens.labels(axis.names or (), 60)
    everyone = list(range(len(names)))
    for own in (size, max(least, 0.85 * size)):
        if max(map(width, names), default=0) * own <= 0.94 * each:
            return Names(everyone, names, own)
    own = min(size, max(least, each / 1.15))
    if each >= 1.15 * least - 1e-6 or axis.places is None:
        step = max(1, int(np.ceil(1.15 * own / each - 1e-6)))
        return Names(everyone[::step], [cut(n, 9.0) for n in names[::step]], own, turned=True)
    places = list(axis.places)
    room = (0.65 * own * len(str(max(places, default=0))) + own) / each
    step = next(s for n in range(9) for s in (10**n, 2 * 10**n, 5 * 10**n) if s >= room)
    at = [i for i in everyone if places[i] % step == 0]
    return Names(at, [str(places[i]) for i in at], own, numbered=True)


def names_down(axis: Axis, each: float, size: float, least: float, room: float) -> Names:
    """Names beside rows ``each`` so high, none wider than ``room``."""
    own = min(size, max(least, each / 1.2))
    step = max(1, int(np.ceil(1.15 * own / each - 1e-6)))
    names = tokens.labels(axis.names or (), 60)
    return Names(list(range(len(names)))[::step], [cut(n, room / own) for n in names[::step]], own)


def cell_texts(text: Any, wide: float, tall: float, size: float, least: float) -> tuple[float, np.ndarray] | None:
    """Size and cut texts of cells of so much room; None where they could not be read."""
    size = min(size, tall * 0.74)
    for own in (size, least):
        if least <= own <= size and wide - 0.3 * own >= 2.2 * own:
            fitted = [cut(tokens.legible(str(t)), (wide - 0.3 * own) / own) for t in np.ravel(text)]
            return own, np.reshape(np.array(fitted, object), np.shape(text))
    return None


def nodes(flow: Flow) -> tuple[np.ndarray, np.ndarray, float]:
    """Lower ends and heights of the nodes of a flow, from 0 downwards, and the gap between them."""
    columns = np.array([c for c, *_ in flow.nodes])
    sums = np.zeros((2, len(columns)))
    for a, b, value in flow.links:
        sums[0, a] += value
        sums[1, b] += value
    through = sums.max(0)
    held = [np.flatnonzero(columns == c) for c in np.unique(columns)]
    gap = 0.5 * max((through[own].sum() for own in held), default=0.0) / max(map(len, held), default=1)
    base = np.zeros(len(columns))
    for own in held:
        base[own] = -np.cumsum(through[own]) - gap * np.arange(len(own))
    return base, through, float(gap)


def obstacles(panel: Panel) -> np.ndarray:
    """[n, 2] places along the lines and intervals of a panel, which names beside points keep off."""
    found: list[np.ndarray] = [np.zeros((0, 2))]
    share = np.linspace(0, 1, 13)[:, None]
    for line in panel.of(Line):
        at = np.stack([np.asarray(line.x, float), np.asarray(line.y, float)], 1)
        found += [a + share * (b - a) for a, b in zip(at[:-1], at[1:], strict=True)]
    for mark in panel.of(Points):
        x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
        for low, high, across in ((mark.x_low, mark.x_high, True), (mark.y_low, mark.y_high, False)):
            if low is not None and high is not None:
                low, high = np.asarray(low, float), np.asarray(high, float)
                ends = np.isfinite(low) & np.isfinite(high)
                along = (low[ends] + share * (high - low)[ends]).T
                fixed = np.repeat((y if across else x)[ends, None], along.shape[1], 1)
                found.append(np.stack([along, fixed] if across else [fixed, along], -1).reshape(-1, 2))
    return np.concatenate(found)


def placed(
    at: np.ndarray, sizes: np.ndarray, box: tuple[float, float], gap: float, avoid: np.ndarray | None = None
) -> list[tuple[float, float] | None]:
    """Where labels go that are written beside points: the middle of each, or None where there is no room.

    Greedy, from the top: the nearest free place of 16 directions and several distances, clear of the points, of the
    other labels and of the edges.

    Parameters
    ----------
    at, sizes
        [point, 2] places of the points, and widths and heights of their labels, in one unit; no label: width 0.
    box
        Width and height of the panel; its lower left corner is (0, 0).
    gap
        Between a point and its label.
    avoid
        [n, 2] places that labels keep off, too, unless they would stand far away.
    """
    soft = np.zeros((0, 2)) if avoid is None else avoid[np.isfinite(avoid).all(1)]
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rays = np.stack([np.cos(turns), np.sin(turns)], 1)[[0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15]]
    found: list[tuple[float, float] | None] = [None] * len(at)
    boxes = np.zeros((0, 4))
    for i in sorted(range(len(at)), key=lambda i: -at[i][1]):
        half = np.asarray(sizes[i]) / 2
        if not half[0] or not np.isfinite(at[i]).all():
            continue
        tries = [(gap * far, soft) for far in (1, 1.6, 2.5, 4, 6)]
        tries += [(gap * far, soft[:0]) for far in (1, 2.5, 6, 8, 11)]
        for far, others in tries:
            # Each ray leaves the label's own box before the gap begins.
            middles = at[i] + rays * (far + np.min(half / np.maximum(np.abs(rays), 1e-9), 1, keepdims=True))
            low, high = middles - half, middles + half
            free = np.all((low >= 0) & (high <= box), 1)
            for k in np.flatnonzero(free):
                clear = not np.any(np.all((boxes[:, :2] < high[k] + gap / 2) & (boxes[:, 2:] > low[k] - gap / 2), 1))
                inside = [np.any(np.all((p > low[k] - gap / 2) & (p < high[k] + gap / 2), 1)) for p in (at, others)]
                if clear and not any(inside):
                    found[i] = (float(middles[k][0]), float(middles[k][1]))
                    boxes = np.concatenate([boxes, [np.concatenate([low[k], high[k]])]])
                    break
            if found[i]:
                break
    return found


@dataclass
class Label:
    """A name beside a point: where the point is, its lines, the way from the point to its middle, and how far off."""

    at: np.ndarray
    lines: list[str]
    away: np.ndarray
    apart: float


def labels_beside(
    panel: Panel, scaled: Callable[[np.ndarray], np.ndarray], box: tuple[float, float], size: float, gap: float,
    near: float, drawn: Callable[[str], str] = tokens.legible,
) -> list[Label]:  # fmt: skip
    """The names beside the points of a panel that find room.

    Parameters
    ----------
    scaled
        From the units of the axes to those of ``box``, ``size`` (of the type), ``gap`` and ``near``.
    near
        Points nearer than this have one label.
    drawn
        A text as it is drawn.
    """
    marks = [mark for mark in panel.of(Points) if mark.names is not None]
    at = np.concatenate([np.stack([np.asarray(m.x, float), np.asarray(m.y, float)], 1) for m in marks])
    points = scaled(at)
    names = tokens.labels(name for mark in marks for name in mark.names or ())
    lines = [broken(drawn(t), 20) if t else [] for t in together(points[:, 0], points[:, 1], names, near)]
    sizes = np.array([[size * max(map(width, own)) if own else 0, 1.25 * size * len(own)] for own in lines])
    places = placed(points, sizes, box, gap, scaled(obstacles(panel)))
    return [
        Label(at[i], lines[i], away := np.array(place) - points[i], float((np.abs(away) - sizes[i] / 2).max()))
        for i, place in enumerate(places) if place is not None
    ]  # fmt: skip


def together(x: np.ndarray, y: np.ndarray, names: Sequence[str], near: float, most: int = 6) -> list[str]:
    """One label for points that lie on each other (nearer than ``near``): all their names at the first, none else."""
    found, firsts = [""] * len(names), list[int]()
    members: dict[int, list[str]] = {}
    for i in np.argsort(-np.asarray(y, float)).tolist():
        if not names[i] or not np.isfinite([x[i], y[i]]).all():
            continue
        first = next((j for j in firsts if abs(x[i] - x[j]) < near and abs(y[i] - y[j]) < near), i)
        members.setdefault(first, []).append(str(names[i]))
        firsts += [i] if first == i else []
    for first, own in members.items():
        more = f" and {len(own) - most} more" if len(own) > most else ""
        found[first] = ", ".join(own[:most]) + more
    return found
