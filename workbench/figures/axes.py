"""A plot in matplotlib's axes: its marks, and names, legends and colour bars as there is room for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.patches import PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from workbench import tokens
from workbench.errors import InputError, warn
from workbench.figures import glyphs
from workbench.figures import plot as plots
from workbench.figures.colours import ink, rgb, stops
from workbench.figures.glyphs import SMALLEST, broken, cut, width
from workbench.figures.plot import GREY, Axis, Cells, Graph, Panel, Plot, colour

PIXEL = 0.75
"""Points of a pixel of the screen, in which plots give widths of lines and sizes of points."""
DASHES = {
    "solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.6)), "dashdot": (0, (4, 1.6, 1, 1.6)), "longdash": (0, (7, 2)),
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "P", "x": "X", "star": "*", "tick": "|",
    "dash": "_",
}  # fmt: skip
ROUND = [1, 2, 5, 10]
"""Ticks are at multiples of these."""
MANY = 6_000
"""Cells beyond which a heat-map is an image in the file, one dot a cell."""


def settings(points: float, texts: list[str], family: str | None = None) -> AbstractContextManager[None]:
    """matplotlib's settings while a figure is made or written."""
    line, small = 0.6, smaller(points)
    return mpl.rc_context({
        "font.family": [*([family] if family else []), glyphs.FAMILY, *glyphs.families(texts)], "font.size": points,
        "axes.titlesize": points, "axes.labelsize": points,
        "xtick.labelsize": small, "ytick.labelsize": small,
        "legend.fontsize": small, "figure.titlesize": points, "axes.titleweight": "normal",
        "text.parse_math": False, "text.usetex": False, "axes.unicode_minus": True,
        "axes.formatter.use_mathtext": False,
        "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "workbench",
        "axes.linewidth": line, "xtick.major.width": line, "ytick.major.width": line, "xtick.major.size": 2.5,
        "ytick.major.size": 2.5, "xtick.minor.visible": False, "ytick.minor.visible": False, "xtick.direction": "out",
        "ytick.direction": "out", "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "axes.titlepad": 3, "axes.labelpad": 2, "legend.frameon": False, "legend.borderaxespad": 0.3,
        "legend.handlelength": 1.8, "legend.columnspacing": 1.2, "legend.handletextpad": 0.5, "legend.borderpad": 0.1,
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "savefig.bbox": None,
        "axes.grid": False, "text.color": "black", "axes.labelcolor": "black", "xtick.color": "black",
        "ytick.color": "black", "axes.edgecolor": "black", "figure.dpi": 144, "lines.solid_capstyle": "butt",
        "axes.axisbelow": False, **{f"figure.constrained_layout.{pad}": 0.02 for pad in ("h_pad", "w_pad", "hspace",
        "wspace")},
    })  # fmt: skip


def draw_into(plot: Plot, axes: Any) -> Any:
    """Draw into axes of the author's own: one, or as many as there are panels; returns what was given.

    The figure's size, fonts and layout stay the author's.
    """
    given = list(np.ravel(np.asarray(axes, object)))
    if len(given) != len(plot.panels):
        raise InputError(
            f"ax= has {len(given)} axes for {len(plot.panels)} panels. Give one for each: "
            f"fig, axes = plt.subplots(1, {len(plot.panels)})."
        )
    points = float(mpl.rcParams["font.size"])
    with settings(points, texts(plot)):
        host = Host(given[0].figure, plot, points)
        for panel, ax in zip(plot.panels, given, strict=True):
            host.panel(panel, ax)
            host.fit(panel, ax, *extent(ax))
            host.texts(panel, ax)
            host.names(panel, ax)
        host.bars(dict(zip(map(id, plot.panels), given, strict=True)))
        if host.entries:
            ax = given[0]
            ax.legend(list(host.entries.values()), list(host.entries), loc="best")
    return axes


def texts(plot: Plot) -> list[str]:
    """Every text of a plot, as it is drawn."""
    found: list[str] = [tokens.legible(plot.title), tokens.legible(plot.note)]

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(tokens.legible(value))
        elif isinstance(value, dict):
            for part in (*value, *value.values()):
                walk(part)
        elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
            for part in np.ravel(value) if isinstance(value, np.ndarray) else value:
                walk(part)
        elif isinstance(value, Panel | Axis | plots.Mark):
            for key, part in vars(value).items():
                if key != "hover":
                    walk(part)

    walk(list(plot.panels))
    return found


def typed(text: Any) -> str:
    """A text from outside as it is drawn: on one line, with escapes for what is not seen or has no glyph."""
    return glyphs.drawn(tokens.legible(str(text)))


def extent(ax: Any) -> tuple[float, float]:
    """Width and height of axes in points."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi * 72, box.height / ax.figure.dpi * 72


def legend_columns(names: Sequence[str], wide: float, points: float) -> int:
    """As many columns as fit into so many points."""
    size = smaller(points)
    for n in range(len(names), 0, -1):
        # Each column is as wide as its widest name.
        widths = [size * (max(map(width, t.split("\n"))) + 3.7) for t in names]
        if sum(max(widths[c::n]) for c in range(n)) <= wide:
            return n
    return 1


def add_legend(into: Any, entries: dict[str, Any], wide: float, points: float, **place: Any) -> Any:
    """A legend of at most so many points, row by row: in as many columns as fit, too long names in several lines."""
    names = ["\n".join(broken(name, wide / smaller(points) - 3.7)) for name in entries]
    n, handles = legend_columns(names, wide, points), list(entries.values())
    order = [i for c in range(n) for i in range(c, len(names), n)]  # matplotlib fills columns downwards
    return into.legend([handles[i] for i in order], [names[i] for i in order], ncols=n, **place)


def colormap(scale: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(scale, stops(scale), 256)


def add_bar(figure: Any, image: Any, axes: Any, ticks: Any) -> Any:
    bar = figure.colorbar(image, ax=axes, aspect=24, pad=0.015, fraction=0.06)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.ax.tick_params(width=0.6, length=2)
    if ticks is not None:
        bar.set_ticks(list(ticks[0]), labels=list(ticks[1]))
    elif bar.vmax - bar.vmin < 2e-6:  # of one value
        bar.set_ticks([bar.vmin], labels=[f"{bar.vmin:.3g}"])
    return bar


def fit_bar(bar: Any, title: str, ticks: Any, points: float) -> None:
    """Its title no longer than it is, and no more ticks than stand apart."""
    tall = extent(bar.ax)[1]
    bar.set_label("\n".join(broken(glyphs.drawn(title), max(6, tall / points))))
    if ticks is None and bar.vmax - bar.vmin >= 2e-6:
        bar.locator = MaxNLocator(int(np.clip(tall / (2 * points), 1, 5)), steps=ROUND)
        bar.update_ticks()


def smaller(points: float) -> float:
    """The type of ticks, legends and names beside what is drawn."""
    return max(SMALLEST, points - 1)


class Host:
    """One plot in a figure, a part of one, or axes."""

    def __init__(self, into: Any, plot: Plot, points: float, norms: Any = None) -> None:
        self.into, self.plot, self.points, self.norms = into, plot, points, norms
        self.axes: dict[int, Any] = {}
        self.entries: dict[str, Any] = {}
        self.looks: dict[str, str] = {}
        self.images: dict[Any, tuple[Any, Any, list[Any]]] = {}
        self.numbered = False
        self.lost: str = ""
        self.head: Any = None
        self.alone, self.wide = True, 0.0
        self.rows: list[list[Panel]] = []
        self.ruled: list[tuple[bool, Any]] = []
        self.titled: list[tuple[Any, str, Any]] = []
        self.above: Any = None
        self.kept: Any = None

    def build(self, spot: Any, alone: bool) -> None:
        """Axes for all panels in a part of the figure's grid, and what is in them; ``alone``: it is the whole grid."""
        share = len(spot.colspan) / spot.get_gridspec().ncols
        self.alone, self.wide = alone, self.into.get_figwidth() * 72 * share
        # On a narrow page no more side by side than can be read.
        self.rows = rows = self.plot.rows(max(1, int(self.wide / (68 if "y" in self.plot.shared else 94))))
        weights = [max((row[c].width for row in rows if c < len(row)), default=1) for c in range(max(map(len, rows)))]
        # A single panel stands in the figure's own grid, in line with the others.
        grid = {(0, 0): spot} if len(self.plot.panels) == 1 else spot.subgridspec(
            len(rows), len(weights), width_ratios=weights)  # fmt: skip
        first: Any = None
        for r, row in enumerate(rows):
            for c, panel in enumerate(row):
                share = {f"share{a}": first for a in self.plot.shared if first is not None}
                self.axes[id(panel)] = ax = self.into.add_subplot(grid[r, c], **share)
                first = first or ax
        for r, row in enumerate(rows):
            for c, panel in enumerate(row):
                last = r == len(rows) - 1 or c >= len(rows[r + 1])
                ax = self.axes[id(panel)]
                self.panel(panel, ax)
                if "x" in self.plot.shared and not last:
                    ax.tick_params(labelbottom=False)
                    ax.set_xlabel("")
                if "y" in self.plot.shared and c:
                    ax.tick_params(labelleft=False)
                    ax.set_ylabel("")

    def letter(self, text: str) -> None:
        """The letter of a panel, above its upper left corner."""
        ax = next(iter(self.axes.values()))
        self.head = text
        title = ax.get_title(loc="left")
        ax.set_title(f"{text} {title}".strip(), loc="left", fontweight="bold" if not title else "normal")

    def legend(self, below: bool = False) -> None:
        """Above the panels (or below them), in as many columns as fit."""
        if not self.entries:
            return
        if self.alone:
            where = f"outside {'lower' if below else 'upper'} left"
            add_legend(self.into, self.entries, self.wide - 6, self.points, loc=where)
            return
        # Of one plot among several: it may be wider than the panel that it stands above: its height alone counts.
        ax = next(iter(self.axes.values()))
        self.above = add_legend(ax, self.entries, self.wide - 6, self.points, loc="lower left")
        self.above.set_in_layout(False)
        self.kept = Rectangle((0, 1), 0.01, 0.001, transform=ax.transAxes, clip_on=False, fc="none", ec="none")
        ax.add_patch(self.kept)

    def move_legend(self) -> None:
        """Put it above its panel, from the left end of the labels on, and keep the room for it."""
        if self.above is None:
            return
        ax = next(iter(self.axes.values()))
        labels = [t for t in (ax.yaxis.label, *ax.get_yticklabels()) if t.get_text()]
        start, scale = ax.get_window_extent().x0, 72 / ax.figure.dpi
        left = min([start, *(t.get_window_extent().x0 for t in labels)]) - start
        lines = ax.get_title(loc="left").split("\n")
        title = (0.2 + 1.2 * len(lines)) * self.points * bool(lines[0])
        high = title + self.above.get_window_extent().height * scale + 2
        self.above.set_bbox_to_anchor((0, 1), offset_copy(ax.transAxes, ax.figure, left * scale, title, "points"))
        self.kept.set_transform(offset_copy(ax.transAxes, ax.figure, 0, high, "points"))

    def bars(self, axes: dict[int, Any]) -> None:
        """A colour bar for each scale, beside the panels that it is of."""
        every = list(self.axes.values()) or list(axes.values())
        for image, mark, own in self.images.values():
            if self.norms is None and mark.bar:
                beside = every if len(own) > 1 and len(own) == len(every) else own if len(own) > 1 else own[0]
                ticks = getattr(mark, "ticks", None)
                self.titled.append((add_bar(self.into, image, beside, ticks), mark.bar, ticks))

    def part(self) -> None:
        """Names of rules that would stand on each other go to the other sides of their lines."""
        taken: list[Any] = []
        for level, note in sorted(self.ruled, key=lambda own: (own[0], -own[1].xy[own[0]])):
            for _ in range(2):
                box = note.get_window_extent()
                if not any(box.overlaps(other) for other in taken):
                    break
                x, y = note.xyann
                note.xyann = (x, -y) if level else (-x, y)
                note.set(va="top" if y > 0 else "bottom") if level else note.set(ha="right" if x > 0 else "left")
            taken.append(box)

    def say_lost(self) -> None:
        if self.lost:
            warn(self.lost)

    # ------------------------------------------------------------ panels and axes

    def panel(self, panel: Panel, ax: Any) -> None:
        """What is in a panel, and its axes, but for names, which wait for their room."""
        for mark in panel.marks:
            getattr(self, f"_{type(mark).__name__.lower()}")(mark, panel, ax)
        if panel.title:
            # The layout makes room for the first half of a title: it has to be short before its width is known.
            ax.set_title("\n".join(broken(typed(panel.title), 8)), loc="left")
        if any(isinstance(m, plots.Flow | plots.Table | Graph) for m in panel.marks):
            ax.set_axis_off()
            return
        for which in "xy":
            self._axis(panel, ax, which)
        if panel.square:
            ax.set_aspect("equal", adjustable="box")

    def _axis(self, panel: Panel, ax: Any, which: str) -> None:
        axis: Axis = getattr(panel, which)
        own = getattr(ax, f"{which}axis")
        getattr(ax, f"set_{which}label")(typed(axis.label))
        if axis.scale == "log":
            getattr(ax, f"set_{which}scale")("log")
            own.set_minor_locator(NullLocator())
            own.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own are formulas
        elif axis.scale == "whole":
            own.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
        set_limits = getattr(ax, f"set_{which}lim")
        if axis.ticks is not None:
            names = axis.names if axis.names is not None else [f"{t:g}" for t in axis.ticks]
            own.set_major_locator(FixedLocator(list(axis.ticks)))
            own.set_ticks(list(axis.ticks), labels=[typed(n) for n in names])
        elif axis.names is not None:
            set_limits(-0.5, len(axis.names) - 0.5)
        if axis.range is not None:
            set_limits(*axis.range)
        if axis.reversed:
            getattr(ax, f"invert_{which}axis")()
        if panel.of(Cells):
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
        if not axis.shown:
            own.set_visible(False)
            ax.spines[["bottom", "top"] if which == "x" else ["left", "right"]].set_visible(False)

    def fit(self, panel: Panel, ax: Any, wide: float, tall: float) -> None:
        """Names along the axes as there is room for them, and axis labels that are no longer than their axis."""
        for which, along in (("x", wide), ("y", tall)):
            axis: Axis = getattr(panel, which)
            label = getattr(ax, f"get_{which}label")()
            if label:
                text = " ".join(label.split("\n"))
                lines = broken(text, max(6, along / self.points))
                getattr(ax, f"set_{which}label")("\n".join(lines))
            if ax.get_title(loc="left") and which == "x" and panel.title:
                letter = f"{self.head} " if self.head and ax is next(iter(self.axes.values())) else ""
                text = glyphs.drawn(letter + tokens.legible(panel.title))
                room = max(6, along / self.points)
                words = " ".join(cut(word, 2 * room) for word in text.split(" "))
                ax.set_title("\n".join(broken(words, room)), loc="left")
            if not (axis.named and axis.names and axis.shown):
                if axis.ticks is not None and which == "x":
                    self._thin(axis, ax, wide)
                continue
            each = along / len(axis.names)
            drawn = Axis(**{**vars(axis), "names": [glyphs.drawn(str(n)) for n in axis.names]})
            if which == "x":
                found = plots.names_across(drawn, each, smaller(self.points), SMALLEST)
                self.numbered |= found.numbered
                if found.numbered:
                    ax.set_xlabel("\n".join(broken(plots.NUMBERED, max(8, along / self.points))))
            else:
                whole = ax.figure.get_figure(root=True).get_figwidth() * 72
                found = plots.names_down(drawn, each, smaller(self.points), SMALLEST, 0.38 * whole)
            if which in self.plot.shared and not ax.yaxis.get_tick_params().get("labelleft", True) and which == "y":
                continue
            getattr(ax, f"set_{which}ticks")(found.at, labels=found.texts)
            ax.tick_params(axis=which, labelsize=found.size, labelrotation=90 if found.turned else 0)

    def fitted(self) -> list[Any]:
        """What the fit has chosen."""
        return [
            (ax.get_title(loc="left"), own.label.get_text(), [t.get_text() for t in own.get_ticklabels()])
            for ax in self.axes.values() for own in (ax.xaxis, ax.yaxis)
        ]  # fmt: skip

    def _thin(self, axis: Axis, ax: Any, wide: float) -> None:
        """Leave out ticks whose texts would touch."""
        names = [str(n) for n in (axis.names if axis.names is not None else [f"{t:g}" for t in axis.ticks or ()])]
        ticks = np.asarray(axis.ticks, float)
        places = ax.transData.transform(np.stack([ticks, np.full(len(ticks), ax.get_ylim()[0])], 1))[:, 0]
        places = places / ax.figure.dpi * 72
        kept, end = [], -np.inf
        for i in np.argsort(places).tolist():
            half = smaller(self.points) * (width(names[i]) / 2 + 0.25)
            if places[i] - half >= end:
                kept.append(i)
                end = places[i] + half
        ax.set_xticks([list(axis.ticks or ())[i] for i in kept], labels=[glyphs.drawn(names[i]) for i in kept])

    def texts(self, panel: Panel, ax: Any) -> None:
        """Texts of cells, now that it is known how large these are."""
        wide, tall = extent(ax)
        for mark in panel.of(plots.Flow):
            self._name_flow(mark, ax)
        for mark in panel.of(Graph):
            self._name_graph(mark, ax)
        for mark in panel.of(plots.Thumbnails):
            self._place_thumbnails(mark, ax)
        for mark in panel.of(plots.Picture):
            self._texts_of_picture(mark, ax, min(wide / mark.pixels.shape[1], tall / mark.pixels.shape[0]))
        for mark in panel.of(Cells):
            if mark.text is None:
                continue
            rows, columns = mark.values.shape
            each = wide / columns, tall / rows
            drawn = np.vectorize(lambda t: glyphs.drawn(str(t)), otypes=[object])(mark.text)
            fit = plots.cell_texts(drawn, *each, self.points, SMALLEST)
            if fit is None:
                if any(str(t) for t in np.ravel(mark.text)):
                    self.lost = _advice(rows, columns, wide, each)
                continue
            inks = self._inks(mark)
            for r in range(rows):
                for c in range(columns):
                    if fit[1][r, c]:
                        ax.text(c, r, fit[1][r, c], ha="center", va="center", color=inks[r, c], fontsize=fit[0],
                                clip_on=True).set_in_layout(False)  # fmt: skip

    def _texts_of_picture(self, mark: plots.Picture, ax: Any, scale: float) -> None:
        """Texts of a picture's cells, where they can be read; ``scale``: points of a pixel."""
        if mark.text is None or mark.boxes is None or not len(mark.boxes):
            return
        boxes = np.asarray(mark.boxes, float)
        texts = np.array([glyphs.drawn(str(t)) for t in mark.text], object)
        if fit := plots.cell_texts(texts, *(boxes[:, 2:] - boxes[:, :2]).min(0) * scale, self.points, SMALLEST):
            look = {"ha": "center", "va": "center", "fontsize": fit[0], "clip_on": True}
            for (x, y), text, shade in zip((boxes[:, :2] + boxes[:, 2:]) / 2, fit[1], mark.inks(), strict=True):
                if text:
                    ax.text(x, y, text, color=shade, **look).set_in_layout(False)

    def names(self, panel: Panel, ax: Any) -> None:
        """Names beside points, with a line where they stand apart; the legend or caption has what finds no room."""
        if not any(mark.names is not None for mark in panel.of(plots.Points)):
            return
        origin, size = ax.get_window_extent().p0, smaller(self.points)
        scale = 72 / ax.figure.dpi
        found = plots.labels_beside(
            panel, lambda at: (ax.transData.transform(at) - origin) * scale, extent(ax), size, 4.5, 4, typed
        )
        for label in found:
            line = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 1, "shrinkB": 3}
            ax.annotate(
                "\n".join(label.lines), label.at, xytext=label.away, textcoords="offset points", ha="center",
                va="center", fontsize=size, annotation_clip=False, arrowprops=line if label.apart > 9 else None,
            ).set_in_layout(False)  # fmt: skip

    def _entry(self, name: str, handle: Any, look: str, legend: bool = True) -> None:
        """An entry of the legend; ``look``: what tells it apart from others."""
        if name and legend and handle is not None:  # of no points there is none, as on the screen
            shown = glyphs.drawn(tokens.labels([name], 60)[0])
            self.entries.setdefault(shown, handle)
            self.looks.setdefault(shown, look)

    def _inks(self, mark: Cells) -> np.ndarray:
        inks = np.asarray(ink(rgb(stops(mark.scale), np.nan_to_num(self._norm(mark)(mark.values).filled(np.nan)))))
        inks[~np.isfinite(mark.values)] = "#000000"
        return inks

    def _norm(self, mark: Cells) -> Normalize:
        return Normalize(*(self.norms[:2] if self.norms is not None else mark.ends), clip=True)

    # ------------------------------------------------------------ marks

    def _line(self, mark: plots.Line, panel: Panel, ax: Any) -> None:
        x, y, shade = np.asarray(mark.x), np.asarray(mark.y, float), colour(mark.hue)
        if mark.low is not None and mark.high is not None and mark.banded:
            low, high = np.asarray(mark.low, float), np.asarray(mark.high, float)
            if mark.bars:
                _errors(ax, x, y, shade, y_low=low, y_high=high)
            elif np.isfinite(low).any():
                ax.fill_between(x, low, high, color=shade, alpha=0.18, linewidth=0)
        if mark.each is not None:
            each = np.asarray(mark.each, float)
            ax.plot(np.tile(x, len(each)), each.ravel(), "o", ms=2, mew=0, color=shade, alpha=0.45)
        (line,) = ax.plot(x, y, color=shade, ls=DASHES[mark.dash], lw=mark.width * PIXEL * 0.8,
                          marker="o" if mark.markers else None, ms=2.4, mew=0)  # fmt: skip
        self._entry(mark.name, line, f"{shade} {mark.dash}", mark.legend)

    def _areas(self, mark: plots.Areas, panel: Panel, ax: Any) -> None:
        shades = [colour(hue) for hue in mark.hues]
        drawn = ax.stackplot(mark.x, *mark.y, colors=shades, lw=0.3)
        for name, hue, handle in zip(mark.names, mark.hues, drawn, strict=True):
            handle.set_alpha(0.75)
            self._entry(name, handle, f"{colour(hue)} area")

    def _points(self, mark: plots.Points, panel: Panel, ax: Any) -> None:
        x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
        hue, filled, symbol, size = (
            np.broadcast_to(np.asarray(v, object), len(x)) for v in (mark.hue, mark.filled, mark.symbol, mark.size)
        )
        shades = np.array([colour(h) for h in hue], object)
        _errors(ax, x, y, shades, mark.x_low, mark.x_high, mark.y_low, mark.y_high)
        looks: dict[tuple[bool, str], list[int]] = {}
        for i in range(len(x)):
            looks.setdefault((bool(filled[i]), symbol[i]), []).append(i)
        handle = None
        for (full, form), at in sorted(looks.items(), key=lambda own: (not own[0][0], own[0][1])):  # legend: the first
            strokes = form in ("tick", "dash")  # matplotlib knows no edges of theirs
            solid = full or strokes
            drawn = ax.scatter(
                x[at], y[at], (size[at].astype(float) * PIXEL * 0.72) ** 2, marker=MARKERS[form],
                clip_on=False, zorder=3,
                facecolors=shades[at].tolist() if solid else "none", edgecolors=None if solid else shades[at].tolist(),
                linewidths=0.8 if strokes or not full else 0, alpha=0.5 if mark.faint else None,
            )  # fmt: skip
            handle = handle or drawn
        look = " ".join([*shades[:1], *map(str, symbol[:1]), *["open"] * (not all(filled))])
        self._entry(mark.name, handle, look, mark.legend)

    def _bars(self, mark: plots.Bars, panel: Panel, ax: Any) -> None:
        values, at = np.asarray(mark.values, float), np.asarray(mark.at, float)
        shade: Any = colour(mark.hue)
        if mark.colours is not None:
            image = ScalarMappable(Normalize(0, mark.high, clip=True), colormap("sequential"))
            shade = image.to_rgba(np.asarray(mark.colours, float))
            self.images[id(mark)] = image, mark, [ax]
        put = ax.barh if mark.level else ax.bar
        drawn = put(at, values, 0.85, color=shade)
        self._entry(mark.name, drawn, f"{colour(mark.hue)} bars", mark.legend)

    def _cells(self, mark: Cells, panel: Panel, ax: Any) -> None:
        rows, columns = mark.values.shape
        shown = np.ma.masked_invalid(mark.values)
        norm = self._norm(mark)
        if shown.size > MANY:
            image = ax.imshow(shown, colormap(mark.scale), norm, aspect="auto", interpolation="nearest", origin="lower")
        else:
            edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
            image = ax.pcolormesh(
                *edges, shown, cmap=colormap(mark.scale), norm=norm, edgecolors="white", linewidth=0.25
            )
        known = self.images.setdefault(mark.key, (image, mark, []))
        known[2].append(ax)
        inks: Any = self._inks(mark) if mark.marked else None
        if mark.hatched is not None:
            for shade in ("#000000", "#FFFFFF"):
                x, y = plots.diagonals(np.asarray(mark.hatched, bool) & (inks == shade))
                ax.add_collection(LineCollection(np.stack([x, y], -1), colors=shade, linewidths=0.45), autolim=False)
        if mark.framed is not None and np.any(mark.framed):
            x, y = plots.outlines(mark.framed)
            for shade, dash in (("#FFFFFF", "-"), ("#000000", (0, (1, 1)))):  # seen on every colour
                ax.add_collection(LineCollection(np.stack([x, y], -1), colors=shade, linewidths=0.9, linestyles=[dash]))
        for mask, look in (
            (mark.ringed, {"marker": "o", "mfc": "none", "ms": 4.5, "mew": 0.7}),
            (mark.starred, {"marker": "*", "ms": 5, "mew": 0}), (mark.dotted, {"marker": ".", "ms": 3, "mew": 0}),
        ):  # fmt: skip
            for shade in ("#000000", "#FFFFFF") if mask is not None else ():
                y, x = np.nonzero(np.asarray(mask, bool) & (inks == shade))
                ax.plot(x, y, ls="none", color=shade, **{"mec": shade, **look})
        ax.set_xlim(-0.5, columns - 0.5)
        ax.set_ylim(-0.5, rows - 0.5)

    def _rule(self, mark: plots.Rule, panel: Panel, ax: Any) -> None:
        shade, level = colour(mark.hue), mark.axis == "y"
        (ax.axhline if level else ax.axvline)(mark.at, color=shade, ls=DASHES[mark.dash], lw=0.7, zorder=1)
        if mark.name:
            far = mark.end == "high"
            place = (1.0 if far else 0.0, mark.at) if level else (mark.at, 1.0 if far else 0.0)
            where = ax.get_yaxis_transform() if level else ax.get_xaxis_transform()
            self.ruled.append((level, ax.annotate(
                typed(mark.name), place, xycoords=where, xytext=(-3 if far and level else 3, 1),
                textcoords="offset points", ha="right" if far and level else "left", va="bottom", color=shade,
                fontsize=smaller(self.points), path_effects=[withStroke(linewidth=2, foreground="white")],
            )))  # fmt: skip

    def _region(self, mark: plots.Region, panel: Panel, ax: Any) -> None:
        shade = colour(mark.hue)
        corners = np.stack([mark.x, mark.y], 1)
        outline = Polygon(corners, closed=True, fc=to_rgba(shade, 0.22), ec=shade, lw=0.6, zorder=0.5)
        ax.add_patch(outline)
        self._entry(mark.name, outline, f"{shade} region", mark.legend)

    def _flow(self, mark: plots.Flow, panel: Panel, ax: Any) -> None:
        """Streams as bands between columns of nodes, each node as high as what goes through it."""
        base, through, _ = plots.nodes(mark)
        thick, last = 0.05, max((c for c, *_ in mark.nodes), default=0)
        left, right = base + through, base + through
        for a, b, value in sorted(mark.links, key=lambda link: (link[0], link[1])):
            x0, x1 = mark.nodes[a][0] + thick, mark.nodes[b][0] - thick
            y0, y1 = left[a], right[b]
            left[a] -= value
            right[b] -= value
            middle = (x0 + x1) / 2
            verts = [(x0, y0), (middle, y0), (middle, y1), (x1, y1), (x1, y1 - value), (middle, y1 - value),
                     (middle, y0 - value), (x0, y0 - value), (x0, y0)]  # fmt: skip
            codes = [1, 4, 4, 4, 2, 4, 4, 4, 79]
            ax.add_patch(PathPatch(Outline(verts, codes), fc=to_rgba(colour(mark.nodes[a][2]), 0.3), lw=0))
        for (column, _, hue), low, high in zip(mark.nodes, base, through, strict=True):
            ax.add_patch(Rectangle((column - thick, low), 2 * thick, high, fc=colour(hue), lw=0))
        ax.set_xlim(-thick, last + thick)
        ax.set_ylim(float(np.min(base, initial=0)), 0)

    def _name_flow(self, mark: plots.Flow, ax: Any) -> None:
        """Names beside the nodes, where these are as high as type."""
        base, through, gap = plots.nodes(mark)
        wide, tall = extent(ax)
        scale, last = tall / max(-float(np.min(base, initial=0)), 1e-9), max((c for c, *_ in mark.nodes), default=0)
        size = smaller(self.points)
        room = (0.5 - 0.07) * wide / (max(1, last) + 0.1) / size - 0.3  # to the middle between two columns
        for (column, text, _), low, high in zip(mark.nodes, base, through, strict=True):
            if (high + gap) * scale >= 1.2 * size:
                side, away = ("right", -0.07) if column == last else ("left", 0.07)
                shown = cut(typed(text), room)
                ax.text(column + away, low + high / 2, shown, va="center", ha=side, fontsize=size)

    def _table(self, mark: plots.Table, panel: Panel, ax: Any) -> None:
        size, y = smaller(self.points), 0.0
        wide = self.wide or extent(ax)[0]
        starts = np.concatenate([[0], np.cumsum(_shares(mark, wide / size))[:-1]])
        for n, (cells, high) in enumerate(table_lines(mark, wide, size)):
            for start, own in zip(starts, cells, strict=True):
                ax.text(start + 0.004, y + 0.3, "\n".join(own), va="top", fontsize=size, linespacing=1.2,
                        fontweight="bold" if n == 0 else "normal")  # fmt: skip
            y += high
            ax.axhline(y, color="black" if n == 0 else "#d0d0d0", lw=0.5)
        ax.set_xlim(0, 1)
        ax.set_ylim(y, 0)

    def _graph(self, mark: Graph, panel: Panel, ax: Any) -> None:
        """The last frame: on paper nothing moves."""
        x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
        values = np.nan_to_num(np.asarray(mark.values, float)[-1][: len(x)])
        for a, b in mark.edges:
            look = {"arrowstyle": "-|>", "lw": 0.6, "color": GREY, "shrinkA": 6, "shrinkB": 6, "mutation_scale": 6}
            ax.annotate("", (x[b], y[b]), (x[a], y[a]), arrowprops=look)
        image = ScalarMappable(Normalize(0, 1), colormap("sequential"))
        special = {node: (symbol, hue, name) for name, (node, symbol, hue) in mark.special.items()}
        for v in range(len(x)):
            symbol, hue, name = special.get(v, ("circle", GREY, ""))
            (drawn,) = ax.plot(x[v], y[v], MARKERS[symbol], ms=9, mfc=image.to_rgba(values[v]), mec=colour(hue),
                               mew=1.5 if name else 0.5, zorder=3, clip_on=False)  # fmt: skip
            self._entry(name, drawn, f"{colour(hue)} {symbol}")
        ax.margins(0.1, 0.16)
        ax.autoscale_view()  # names are laid out by the limits
        if len(mark.frames) > 1:
            ax.set_title(typed(mark.frames[-1]), loc="left")
        if mark.bar:
            self.images[id(mark)] = image, mark, [ax]

    def _name_graph(self, mark: Graph, ax: Any) -> None:
        """Names above the nodes, cut to the page; of two that would touch, the first."""
        size, scale = smaller(self.points), 72 / ax.figure.dpi
        at = ax.transData.transform(np.stack([np.asarray(mark.x, float), np.asarray(mark.y, float)], 1)) * scale
        page = ax.figure.get_figure(root=True).bbox.width * scale
        taken: list[tuple[float, float, float]] = []
        for (x, y), name in zip(at, mark.names, strict=True):
            text = cut(glyphs.drawn(tokens.labels([name], 16)[0]), 2 * min(x, page - x) / size)
            half = size * width(text) / 2
            if all(abs(x - u) > half + r + 2 or abs(y - v) > 1.3 * size for u, v, r in taken):
                taken.append((x, y, half))
                ax.annotate(
                    text, (x, y), xycoords="figure points", xytext=(0, 7.5), textcoords="offset points", ha="center",
                    fontsize=size,
                ).set_in_layout(False)  # fmt: skip

    def _picture(self, mark: plots.Picture, panel: Panel, ax: Any) -> None:
        image = mark.pixels
        tall, wide = image.shape[:2]
        ax.imshow(image, interpolation="nearest", extent=(0, wide, tall, 0))
        ax.set_axis_off()
        if mark.boxes is None:
            return
        boxes, cells = np.asarray(mark.boxes, float), mark.cells
        scale = ScalarMappable(Normalize(*cells.ends, clip=True), colormap(mark.scale))
        shades = scale.to_rgba(cells.values[0])
        shades[:, 3] = np.where(np.isfinite(cells.values[0]), plots.VEIL, 0)
        ax.add_collection(PolyCollection(
            np.stack(plots.corners(boxes), -1), facecolors=shades, edgecolors=(1, 1, 1, 0.45), linewidths=0.3
        ), autolim=False)  # fmt: skip
        if mark.framed is not None and np.any(mark.framed):
            frames = np.stack(plots.corners(boxes[np.asarray(mark.framed, bool)], 0.06), -1)
            for shade, dash in (("#FFFFFF", "-"), ("#000000", (0, (1, 1)))):
                lines = LineCollection(frames, colors=shade, linewidths=0.9, linestyles=[dash])
                ax.add_collection(lines, autolim=False)
        if mark.bar and mark.values is not None:
            self.images.setdefault(mark.key, (scale, mark, []))[2].append(ax)

    def _thumbnails(self, mark: plots.Thumbnails, panel: Panel, ax: Any) -> None:
        """They wait for their room: :meth:`texts`."""

    def _place_thumbnails(self, mark: plots.Thumbnails, ax: Any) -> None:
        wide, tall = extent(ax)
        ends = ax.get_xlim(), ax.get_ylim()
        unit = wide / abs(ends[0][1] - ends[0][0]), tall / abs(ends[1][1] - ends[1][0])  # points
        for image, x, y in zip(mark.images, mark.x, mark.y, strict=True):
            high, across = np.shape(image)[:2]
            size = 0.94 * min(unit[0] / across, mark.high * unit[1] / high)  # points of a pixel
            half = size * across / unit[0] / 2, size * high / unit[1] / 2
            low, top = (y - half[1], y + half[1]) if ends[1][1] > ends[1][0] else (y + half[1], y - half[1])
            ax.imshow(image, extent=(x - half[0], x + half[0], low, top), aspect="auto", zorder=3).set_in_layout(False)
        ax.set(xlim=ends[0], ylim=ends[1])


def _shares(table: plots.Table, room: float) -> np.ndarray:
    """Share of the width of each column: as the table says, but no header is broken."""
    shares = np.asarray(table.widths or [1] * len(table.header), float)
    least = np.array([width(str(h)) * 1.12 + 1.2 for h in table.header]) / room
    shares = np.maximum(shares / shares.sum(), least)
    return shares / shares.sum()


def table_lines(table: plots.Table, wide: float, size: float) -> list[tuple[list[list[str]], float]]:
    """Lines of every cell, and the height of its row in sizes of the type; the header is the first row."""
    rooms = _shares(table, wide / size) * wide / size - 1.0
    found = []
    for row in [list(table.header), *map(list, table.rows)]:
        cells = [broken(typed(t), room, 60) for t, room in zip(row, rooms, strict=True)]
        found.append((cells, max(map(len, cells)) * 1.3 + 0.6))
    return found


def _errors(
    ax: Any, x: np.ndarray, y: np.ndarray, shades: Any, x_low: Any = None, x_high: Any = None, y_low: Any = None,
    y_high: Any = None,
) -> None:  # fmt: skip
    """Intervals at points; ``shades``: a colour, or [point] of them."""
    for low, high, level in ((x_low, x_high, True), (y_low, y_high, False)):
        if low is None or high is None:
            continue
        low, high = np.asarray(low, float), np.asarray(high, float)
        known = np.isfinite(low) & np.isfinite(high)
        put = ax.hlines if level else ax.vlines
        colours = shades if isinstance(shades, str) else np.asarray(shades)[known].tolist()
        put((y if level else x)[known], low[known], high[known], color=colours, lw=0.8)


def _advice(rows: int, columns: int, wide: float, each: tuple[float, float]) -> str:
    """What to do where cells are too small for their tokens."""
    fit = int(wide / (2.6 * SMALLEST))
    if each[1] < SMALLEST / 0.74:
        return f"{rows} rows are too low for type: draw fewer, reading.isel(layer=...).figure(), or give height=."
    part = f"some {fit} would do: draw a part, reading.isel(position=slice(-{fit}, None)).figure(), or " * (fit > 0)
    return (
        f"{columns} columns are too narrow for type, {part}give more width. "
        "figure(text=False) has no tokens and says nothing."
    )
