"""A plot on paper: matplotlib, at a venue's widths, in type that fits; no browser.

    page = paper("icml")                                      # or "neurips", "iclr", "acl", "84mm", inches
    page.save(reading.figure(), "lens.pdf")                   # a column wide; width="text" for the page
    page.grid([[a, b], [c, None]], share="colour").save("figure1.pdf")

Figures are vectors with TrueType fonts; cells of heat-maps are rectangles.  What is drawn is a matplotlib figure, to
be edited like any other: `reading.figure().matplotlib()`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.patches import PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy

from workbench import tokens
from workbench.errors import InputError, warn
from workbench.figures import glyphs
from workbench.figures import plot as plots
from workbench.figures.colours import ink, rgb, stops
from workbench.figures.glyphs import SMALLEST, broken, cut, width
from workbench.figures.plot import GREY, Axis, Cells, Graph, Panel, Plot, colour

# Widths in inches, from the venues' style files: neurips_2026.sty and iclr2027_conference.sty (one column of 5.5in),
# icml2025.sty (6.75in, 0.25in between columns), acl.sty (A4 less 2.5cm on both sides, 0.6cm between columns).
WIDTHS: dict[str | None, dict[str, float]] = {
    None: {"column": 3.25, "text": 6.75},
    "icml": {"column": 3.25, "text": 6.75},
    "neurips": {"column": 5.5, "text": 5.5},
    "iclr": {"column": 5.5, "text": 5.5},
    "acl": {"column": 7.7 / 2.54, "text": 16 / 2.54},
}
LENGTHS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27, "bp": 1 / 72, "px": 1 / 96}  # pt: TeX's own
PAGE = 9.0
"""Inches: no figure is higher."""
PIXEL = 0.75
"""Points of a pixel of the screen, in which plots give widths of lines and sizes of points."""
DASHES = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.6)), "dashdot": (0, (4, 1.6, 1, 1.6)), "longdash": (0, (7, 2))}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "P", "x": "X", "star": "*", "tick": "|",
           "dash": "_"}  # fmt: skip
MANY = 6_000
"""Cells beyond which a heat-map is an image in the file, one dot a cell."""


def inches(width: str | float, venue: str | None = None) -> float:
    """A width in inches from "column", "text", a number of inches, or a length such as "84mm" or "240pt"."""
    given = width
    length = re.fullmatch(r"\s*([\d.]+)\s*([a-z]{2})\s*", width) if isinstance(width, str) else None
    if length and length[2] in LENGTHS:
        width = float(length[1]) * LENGTHS[length[2]]
    if isinstance(width, int | float):
        if not 0.5 <= width <= 40:
            raise ValueError(
                f"width={given!r} is not a width in inches that a page has (0.5 to 40). "
                f'For millimetres write "{width:g}mm"; for pixels divide by 96.'
            )
        return float(width)
    key = venue.lower() if venue else None
    if key not in WIDTHS:
        raise ValueError(
            f"No widths are known for the venue {venue!r}; known are {[v for v in WIDTHS if v]}. "
            "Give width in inches."
        )
    if width not in WIDTHS[key]:
        meant = f' For the venue give width="column", venue="{width}".' if str(width).lower() in WIDTHS else ""
        raise ValueError(
            f'width={width!r} is neither "column" nor "text". Choose one, or give inches as a number or "84mm".{meant}'
        )
    return WIDTHS[key][width]


def settings(points: float, texts: list[str], family: str | None = None) -> AbstractContextManager[None]:
    """matplotlib's settings while a figure is made or written."""
    line = 0.6
    return mpl.rc_context({
        "font.family": [*([family] if family else []), glyphs.FAMILY, *glyphs.families(texts)], "font.size": points,
        "axes.titlesize": points, "axes.labelsize": points, "xtick.labelsize": points - 1, "ytick.labelsize": points - 1,
        "legend.fontsize": points - 1, "figure.titlesize": points, "axes.titleweight": "normal",
        "text.parse_math": False, "text.usetex": False, "axes.unicode_minus": True, "axes.formatter.use_mathtext": False,
        "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "workbench",
        "axes.linewidth": line, "xtick.major.width": line, "ytick.major.width": line, "xtick.major.size": 2.5,
        "ytick.major.size": 2.5, "xtick.minor.visible": False, "ytick.minor.visible": False, "xtick.direction": "out",
        "ytick.direction": "out", "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "axes.titlepad": 3, "axes.labelpad": 2, "legend.frameon": False, "legend.borderaxespad": 0.3,
        "legend.handlelength": 1.8, "legend.columnspacing": 1.2, "legend.handletextpad": 0.5, "legend.borderpad": 0.1,
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "savefig.bbox": None,
        "axes.grid": False, "text.color": "black", "axes.labelcolor": "black", "xtick.color": "black",
        "ytick.color": "black", "axes.edgecolor": "black", "figure.dpi": 144, "lines.solid_capstyle": "butt",
        "figure.constrained_layout.h_pad": 0.02, "figure.constrained_layout.w_pad": 0.02, "axes.axisbelow": False,
    })  # fmt: skip


class PaperFigure(MatplotlibFigure):
    """A matplotlib figure which is written with the settings that it was drawn with, and shows itself."""

    drawn_with: tuple[float, list[str], str | None] = (8.0, [], None)

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """As matplotlib's, with TrueType fonts and without a date, so that equal figures are equal files."""
        kind = options.get("format") or (Path(fname).suffix[1:] if isinstance(fname, str | os.PathLike) else "png")
        if kind in ("pdf", "svg"):
            about = {"CreationDate": None} if kind == "pdf" else {"Date": None}
            options["metadata"] = {**about, **(options.get("metadata") or {})}
        options.setdefault("dpi", 300)
        with settings(*self.drawn_with):
            super().savefig(fname, transparent=transparent, **options)

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=144)
        return file.getvalue()


# ---------------------------------------------------------------- one page


def paper(venue: str | float | None = None, *, points: float = 8.0, family: str | None = None) -> Paper:
    """The page of a venue ("neurips", "icml", "iclr", "acl"), or of one width: inches, "84mm", "8.4cm", "240pt".

    Parameters
    ----------
    venue
        Its name, or a width.
    points
        Size of the type; ticks and legends are a point smaller, and nothing is below 6.
    family
        An installed font family in the place of DejaVu Sans, which stays the fallback.

    Raises
    ------
    InputError
        For a venue that is not known and is no length either, and type of less than 6 points.

    Examples
    --------
    >>> paper("icml").column
    3.25
    """
    if not points >= SMALLEST:
        raise InputError(f"points={points}: type of less than {SMALLEST:g} points is refused by venues. Give 6 or more.")
    known = {v for v in WIDTHS if v}
    if venue is None or (isinstance(venue, str) and venue.lower() in known):
        return Paper(inches("column", venue), inches("text", venue), points, family)
    try:
        own = inches(venue)
    except ValueError as error:
        raise InputError(
            f"paper({venue!r}): this is no venue whose widths are known ({', '.join(sorted(known))}), and no width "
            f"either: {error}"
        ) from None
    return Paper(own, own, points, family)


@dataclass(frozen=True)
class Paper:
    """Widths in inches of a column and of the text of a page, and the type of its figures."""

    column: float
    text: float
    points: float = 8.0
    family: str | None = None

    def width(self, width: str | float = "column") -> float:
        """Inches of "column", "text" or any length."""
        return getattr(self, width) if width in ("column", "text") else inches(width)

    def save(
        self,
        figure: Any,
        path: str | os.PathLike[str],
        width: str | float = "column",
        *,
        height: float | None = None,
        dpi: float = 300,
    ) -> Path:
        """Write one figure as .pdf, .svg or .png."""
        return self.grid([[figure]], width=width, height=height, letters=False).save(path, dpi=dpi)

    def grid(
        self,
        rows: Sequence[Sequence[Any]],
        *,
        width: str | float = "text",
        height: float | None = None,
        share: str | None = None,
        letters: bool | Sequence[str] = True,
    ) -> Sheet:
        """Figures in rows and columns, their axes aligned; None leaves a place empty.

        The same figure in neighbouring places of a row stands over all of them.

        Parameters
        ----------
        rows
            Figures of `reading.figure()`, or plots; rows of the same length.
        width, height
            "column", "text", inches or a length; the height by default what the figures' own proportions need.
        share
            "legend": one for all; "colour": one colour bar, its range that of all; "colour|legend".
        letters
            (a), (b), ... in reading order, none, or texts of your own.

        Raises
        ------
        InputError
            For rows of different lengths, and for figures that cannot share: one name in two looks, or colours of two
            scales or measures.
        """
        if not all(isinstance(row, list | tuple) for row in rows):
            raise InputError("Panels are given as rows of figures: grid([[a, b], [c, None]]), and [[a]] for one.")
        shared = set((share or "").replace(" ", "").split("|")) - {""}
        if shared - {"colour", "legend"}:
            raise InputError(f'share={share!r}: only "colour", "legend" or "colour|legend" can be shared.')
        return _sheet(self, rows, self.width(width), height, shared, letters)


@dataclass
class Sheet:
    """Figures on paper; what `paper().grid()` gives."""

    figure: PaperFigure
    panels: list[Any]
    plots: list[Plot]
    letters: list[str]
    numbered: list[bool]

    def matplotlib(self) -> PaperFigure:
        """The matplotlib figure, to be edited."""
        return self.figure

    def save(self, path: str | os.PathLike[str], *, dpi: float = 300) -> Path:
        """Write .pdf, .svg or .png; complete under its name or not there at all."""
        from workbench.figures.figure import written

        return written(self.figure, path, dpi)

    def caption(self, of: Sequence[Any] | None = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph for all panels (see `Figure.caption`); ``of``: what each panel is of."""
        from workbench.figures.caption import captions

        return captions(self.panels, self.letters, of, date, self.numbered)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        from workbench.figures.figure import bundled

        return bundled(self.figure, repr(self), "; ".join(p.title for p in self.plots))

    def __repr__(self) -> str:
        wide, tall = self.figure.get_size_inches()
        return f"<Sheet of {len(self.plots)} panel(s), {wide:.2f} x {tall:.2f} inches; .save(path) .caption() .matplotlib()>"


def draw(plot: Plot, wide: float, tall: float | None = None, *, points: float = 8.0, family: str | None = None,
         title: bool = False) -> tuple[PaperFigure, bool]:  # fmt: skip
    """The plot as a matplotlib figure of so many inches, and whether its positions are numbered."""
    sheet = _sheet(Paper(wide, wide, points, family), [[plot]], wide, tall, set(), False, title)
    return sheet.figure, sheet.numbered[0]


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
        host = _Host(given[0].figure, plot, points)
        for panel, ax in zip(plot.panels, given, strict=True):
            host.panel(panel, ax)
            box = ax.get_window_extent()
            host.fit(panel, ax, box.width / ax.figure.dpi * 72, box.height / ax.figure.dpi * 72)
            host.names(panel, ax)
        host.bars(dict(zip(map(id, plot.panels), given, strict=True)))
        if host.entries:
            ax = given[0]
            ax.legend(list(host.entries.values()), list(host.entries), loc="best")
    return axes


def texts(plot: Plot) -> list[str]:
    """Every text of a plot."""
    found: list[str] = [plot.title, plot.note]

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
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


def without_glyphs(plot: Plot) -> str:
    """What to say where no font has some characters of a plot; "" where all are there."""
    lost = glyphs.missing(texts(plot))
    if not lost:
        return ""
    return (
        f"No font on this machine has {' '.join(sorted(lost)[:12])}{' ...' if len(lost) > 12 else ''} "
        f"({len(lost)} character(s)): written as escapes such as {glyphs.escape(min(lost))}. Install one that does "
        "(Debian: fonts-droid-fallback for Chinese, Japanese and Korean, fonts-noto-core) and draw again."
    )


# ---------------------------------------------------------------- layout


def _sheet(
    page: Paper,
    rows: Sequence[Sequence[Any]],
    wide: float,
    tall: float | None,
    shared: set[str],
    letters: bool | Sequence[str],
    title: bool = False,
) -> Sheet:
    places = _places(rows)
    own = [place[0] for place in places]
    names = _letters(letters, len(places))
    for plot in own:
        if said := without_glyphs(plot):
            warn(said)
    everything = [t for plot in own for t in texts(plot)]
    with settings(page.points, everything, page.family):
        norms = _one_scale(own) if "colour" in shared else None
        # A warning stands in a figure of its own; in one of several, in the caption.
        heads = [text for text, shown in ((own[0].title, title), (own[0].note, len(places) == 1)) if shown and text]
        room = wide * 72 / page.points - 1
        head = [line for text in heads for line in broken(glyphs.drawn(tokens.legible(text)), room)]
        if tall is not None and tall < 0.5 * len(rows):
            raise InputError(f"{tall:.2f} inches are too low for {len(rows)} row(s) of panels. Give more height.")
        figure = PaperFigure(figsize=(wide, tall or PAGE), layout="constrained")
        figure.drawn_with = page.points, everything, page.family
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr]
        grid = figure.add_gridspec(len(rows), len(rows[0]))
        hosts, axes = [], []
        for (plot, r, c, span), letter in zip(places, names or [""] * len(places), strict=True):
            host = _Host(figure, plot, page.points, norms)
            host.build(grid[r, c : c + span], alone=len(places) == 1)
            if letter:
                host.letter(letter)
            hosts.append(host)
            axes += [ax for ax in host.axes.values()]
        if "legend" in shared:
            _one_legend(figure, hosts, wide)
        else:
            for host in hosts:
                host.legend(below=bool(head))  # a title stands above: both would be put into one place
        if norms is not None:
            low, high, scale, bar = norms
            coloured = [host.axes[id(p)] for host in hosts for p in host.plot.panels if p.of(Cells)]
            image = ScalarMappable(Normalize(low, high), _map(scale))
            hosts[0].titled.append((_bar(figure, image, coloured, None), bar, None))
        else:
            for host in hosts:
                host.bars(host.axes)
        if head:
            figure.suptitle("\n".join(head), x=0.01, ha="left")
        # Names take room, which decides which names fit; when these stay, rows become as high as panels like to be.
        names_before, grown = None, 0 if tall is None else 2
        for _ in range(7):
            figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
            for host in hosts:
                for panel in host.plot.panels:
                    host.fit(panel, host.axes[id(panel)], *_points(host.axes[id(panel)]))
                host.move_legend()
                for bar in host.titled:
                    _fit_bar(*bar, page.points)
            names_now = [host.fitted() for host in hosts]
            if names_now == names_before:
                if grown == 2 or abs(_grow(figure, grid, [place[1] for place in places], hosts)) < 1:
                    break
                grown += 1
            names_before = names_now
        figure.draw_without_rendering()
        for host in hosts:
            for panel in host.plot.panels:
                host.texts(panel, host.axes[id(panel)])
                host.names(panel, host.axes[id(panel)])
            host.part()
            host.say_lost()
    panels = [rows[r][c] for _, r, c, _ in places]
    return Sheet(figure, panels, own, names, [host.numbered for host in hosts])


def _points(ax: Any) -> tuple[float, float]:
    """Width and height of axes in points."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi * 72, box.height / ax.figure.dpi * 72


def _places(rows: Sequence[Sequence[Any]]) -> list[tuple[Plot, int, int, int]]:
    """Plot, row, column and columns of each figure."""
    lengths = [len(row) for row in rows]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise InputError(f"grid() takes rows of the same length; these have {lengths} places. Fill up with None.")
    found: list[tuple[Plot, int, int, int]] = []
    for r, row in enumerate(rows):
        for c, figure in enumerate(row):
            if figure is None:
                continue
            plot = getattr(figure, "plot", figure)
            if not isinstance(plot, Plot):
                raise InputError(
                    f"Row {r}, column {c} of the grid holds {type(figure).__name__}. Give figures: reading.figure()."
                )
            if c and figure is row[c - 1]:
                found[-1] = (*found[-1][:3], found[-1][3] + 1)
            else:
                found.append((plot, r, c, 1))
    if not found:
        raise InputError("There is no figure in this grid, so there is nothing to draw.")
    return found


def _letters(letters: bool | Sequence[str], count: int) -> list[str]:
    if isinstance(letters, bool):
        return [f"({chr(ord('a') + i)})" for i in range(count)] if letters else []
    if len(letters) != count:
        raise InputError(f"letters has {len(letters)} texts for {count} panels. Give one for each.")
    return [str(x) for x in letters]


def _grow(figure: Any, grid: Any, at: Sequence[int], hosts: Sequence[_Host]) -> float:
    """Make the rows of a grid as high as their panels like to be, and give the points more; ``at``: rows of hosts."""
    wide, tall = figure.get_size_inches() * 72
    lack, held = np.full(grid.nrows, -np.inf), np.zeros(grid.nrows)
    for r, host in zip(at, hosts, strict=True):
        spots = {id(panel): host.axes[id(panel)].get_position(original=True) for panel in host.plot.panels}
        lack[r] = max(lack[r], sum(
            max(_liked(p, host, spots[id(p)].width * wide) - spots[id(p)].height * tall
                for p in [p for p in row if p.of(Cells)] or row)  # bars beside cells are as high as these
            for row in host.rows))  # fmt: skip
        held[r] = max(held[r], (max(s.y1 for s in spots.values()) - min(s.y0 for s in spots.values())) * tall)
    lack[np.isinf(lack)] = 0  # a row without a figure
    grid.set_height_ratios(np.maximum(held + lack, 1).tolist())
    figure.set_figheight(min(PAGE, (tall + lack.sum()) / 72))
    return lack.sum()


def _liked(panel: Panel, host: _Host, wide: float) -> float:
    """Points that a panel likes to be high, so many points wide."""
    x, y = plots.room(panel)
    assert isinstance(panel.y, Axis)
    if tables := panel.of(plots.Table):
        size = host.points - 1
        return sum(high for _, high in _lines(tables[0], host.wide, size)) * size
    if (cells := panel.of(Cells)) and cells[0].text is None:  # no higher than wide, but for the names of their rows
        rows, columns = cells[0].values.shape
        return max(6 * host.points, min(max(6, y) * host.points, rows * max(1.2 * wide / columns, 1.2 * SMALLEST)))
    if cells or panel.of(plots.Flow) or (panel.y.names is not None and panel.y.ticks is None):
        return max(6, y) * host.points
    return max(8 * host.points, min(wide * y / min(x, 48), y * host.points))


def _legend_columns(names: Sequence[str], wide: float, points: float) -> int:
    """As many columns as fit into so many points."""
    size = points - 1
    for n in range(len(names), 0, -1):
        # matplotlib fills columns downwards, the first ones higher by one, and each is as wide as its widest name.
        columns = np.array_split([size * (max(map(width, t.split("\n"))) + 3.7) for t in names], n)
        if sum(own.max() for own in columns) <= wide:
            return n
    return 1


def _legend(into: Any, entries: dict[str, Any], wide: float, points: float, **place: Any) -> Any:
    """A legend of at most so many points: in as many columns as fit, too long names in several lines."""
    names = ["\n".join(broken(name, wide / (points - 1) - 3.7)) for name in entries]
    return into.legend(list(entries.values()), names, ncols=_legend_columns(names, wide, points), **place)


def _one_legend(figure: Any, hosts: Sequence[_Host], wide: float) -> None:
    """The legend of all, every name once; InputError where a name does not look the same everywhere."""
    found: dict[str, Any] = {}
    for number, host in enumerate(hosts, start=1):
        for name, handle in host.entries.items():
            if name in found and _look(found[name]) != _look(handle):
                raise InputError(
                    f'share="legend": {name!r} is {_look(handle)} in panel {number} and {_look(found[name])} '
                    "in one before it, so that one legend would be wrong for one of them. Give it the same look in "
                    "both, or share no legend."
                )
            found.setdefault(name, handle)
    if found:
        _legend(figure, found, wide * 72 - 6, hosts[0].points, loc="outside upper left")


def _look(handle: Any) -> dict[str, str]:
    """What tells entries of a legend apart."""
    own = {}
    if hasattr(handle, "get_marker"):
        own = {"marker": str(handle.get_marker()), "dash": str(handle.get_linestyle())}
    shade = handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
    return {"colour": mpl.colors.to_hex(shade), **own}


def _one_scale(own: Sequence[Plot]) -> tuple[float, float, str, str] | None:
    """Ends, scale and title of the bar of all cells; None where there are none."""
    cells = [mark for plot in own for panel in plot.panels for mark in panel.of(Cells)]
    if not cells:
        return None
    if any(m.colours is not None for plot in own for panel in plot.panels for m in panel.of(plots.Bars)):
        raise InputError('share="colour": a panel has a second colour bar, of its bars. Leave that panel out.')
    if any(c.ticks is not None for c in cells) and len({str(c.ticks) for c in cells}) > 1:
        cells = [Cells(**{**vars(c), "ticks": None}) for c in cells]
    first = cells[0]
    for mark in cells:
        if (mark.bar, mark.scale) != (first.bar, first.scale):
            raise InputError(
                f'share="colour": the panels colour different things ({first.bar!r} and {mark.bar!r}), or in different '
                "scales, so one bar cannot stand for both. Draw the same value, or share no colour."
            )
    ends = np.array([mark.ends for mark in cells])
    return float(ends[:, 0].min()), float(ends[:, 1].max()), first.scale, first.bar


def _map(scale: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(scale, stops(scale), 256)


def _bar(figure: Any, image: Any, axes: Any, ticks: Any) -> Any:
    bar = figure.colorbar(image, ax=axes, aspect=24, pad=0.015, fraction=0.06)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.ax.tick_params(width=0.6, length=2)
    if ticks is not None:
        bar.set_ticks(list(ticks[0]), labels=list(ticks[1]))
    elif bar.vmax - bar.vmin < 2e-6:  # of one value
        bar.set_ticks([bar.vmin], labels=[f"{bar.vmin:.3g}"])
    return bar


def _fit_bar(bar: Any, title: str, ticks: Any, points: float) -> None:
    """Its title no longer than it is, and no more ticks than stand apart."""
    tall = _points(bar.ax)[1]
    bar.set_label("\n".join(broken(glyphs.drawn(title), max(6, tall / points))))
    if ticks is None and bar.vmax - bar.vmin >= 2e-6:
        bar.locator = MaxNLocator(int(np.clip(tall / (2 * points), 1, 5)))
        bar.update_ticks()


# ---------------------------------------------------------------- one plot


class _Host:
    """One plot in a figure, a part of one, or axes."""

    def __init__(self, into: Any, plot: Plot, points: float, norms: Any = None) -> None:
        self.into, self.plot, self.points, self.norms = into, plot, points, norms
        self.axes: dict[int, Any] = {}
        self.entries: dict[str, Any] = {}
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
        most = max(1, int(self.wide / (68 if "y" in self.plot.shared else 94)))
        panels, columns = list(self.plot.panels), min(most, self.plot.columns or len(self.plot.panels))
        self.rows = rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
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
            _legend(self.into, self.entries, self.wide - 6, self.points, loc=where)
            return
        # Of one plot among several: it may be wider than the panel that it stands above, so that its height alone counts.
        ax = next(iter(self.axes.values()))
        self.above = _legend(ax, self.entries, self.wide - 6, self.points, loc="lower left")
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
                self.titled.append((_bar(self.into, image, beside, ticks), mark.bar, ticks))

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
            ax.set_title("\n".join(broken(glyphs.drawn(tokens.legible(panel.title)), 8)), loc="left")
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
        getattr(ax, f"set_{which}label")(glyphs.drawn(tokens.legible(axis.label)))
        if axis.scale == "log":
            getattr(ax, f"set_{which}scale")("log")
            own.set_minor_locator(NullLocator())
            own.set_major_formatter(lambda value, _: f"{value:g}")  # matplotlib's own are formulas
        elif axis.scale == "whole":
            own.set_major_locator(MaxNLocator(6, integer=True))
        set_limits = getattr(ax, f"set_{which}lim")
        if axis.ticks is not None:
            names = axis.names if axis.names is not None else [f"{t:g}" for t in axis.ticks]
            own.set_major_locator(FixedLocator(list(axis.ticks)))
            own.set_ticks(list(axis.ticks), labels=[glyphs.drawn(tokens.legible(str(n))) for n in names])
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
                words = " ".join(cut(word, room) for word in text.split(" "))
                ax.set_title("\n".join(broken(words, room)), loc="left")
            if axis.names is None or axis.ticks is not None or not axis.shown or not axis.names:
                if axis.ticks is not None and which == "x":
                    self._thin(axis, ax, wide)
                continue
            each = along / len(axis.names)
            drawn = Axis(**{**vars(axis), "names": [glyphs.drawn(str(n)) for n in axis.names]})
            if which == "x":
                found = plots.names_across(drawn, each, self.points - 1, SMALLEST)
                self.numbered |= found.numbered
                if found.numbered:
                    ax.set_xlabel("\n".join(broken(plots.NUMBERED, max(8, along / self.points))))
            else:
                whole = ax.figure.get_figure(root=True).get_figwidth() * 72
                found = plots.names_down(drawn, each, self.points - 1, SMALLEST, 0.38 * whole)
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
        places = ax.transData.transform(np.stack([np.asarray(axis.ticks, float), np.full(len(names), ax.get_ylim()[0])], 1))[:, 0]
        places = places / ax.figure.dpi * 72
        kept, end = [], -np.inf
        for i in np.argsort(places).tolist():
            half = (self.points - 1) * (width(names[i]) / 2 + 0.25)
            if places[i] - half >= end:
                kept.append(i)
                end = places[i] + half
        ax.set_xticks([list(axis.ticks or ())[i] for i in kept], labels=[glyphs.drawn(names[i]) for i in kept])

    def texts(self, panel: Panel, ax: Any) -> None:
        """Texts of cells, now that it is known how large these are."""
        wide, tall = _points(ax)
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

    def names(self, panel: Panel, ax: Any) -> None:
        """Names beside points, with a line where they stand apart; the legend or caption has what finds no room."""
        marks = [m for m in panel.of(plots.Points) if m.names is not None]
        if not marks:
            return
        at = np.concatenate([np.stack([np.asarray(m.x, float), np.asarray(m.y, float)], 1) for m in marks])
        scale = 72 / ax.figure.dpi
        origin = ax.get_window_extent().p0
        points = (ax.transData.transform(at) - origin) * scale
        size = max(SMALLEST, self.points - 1.5)
        shown = plots.together(points[:, 0], points[:, 1], [n for m in marks for n in m.names or ()], 4)
        lines = [broken(glyphs.drawn(tokens.legible(t)), 20) if t else [] for t in shown]
        sizes = np.array([[size * max(map(width, own)) if own else 0, 1.25 * size * len(own)] for own in lines])
        avoid = (ax.transData.transform(plots.obstacles(panel)) - origin) * scale
        for i, place in enumerate(plots.placed(points, sizes, _points(ax), 4.5, avoid)):
            if place is None:
                continue
            far = (np.abs(np.array(place) - points[i]) - sizes[i] / 2).max() > 9
            ax.annotate(
                "\n".join(lines[i]), at[i], xytext=np.array(place) - points[i], textcoords="offset points", ha="center",
                va="center", fontsize=size, annotation_clip=False,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 1, "shrinkB": 3} if far else None,
            ).set_in_layout(False)  # fmt: skip

    def _entry(self, name: str, handle: Any, legend: bool = True) -> None:
        if name and legend:
            self.entries.setdefault(glyphs.drawn(tokens.labels([name], 60)[0]), handle)

    def _inks(self, mark: Cells) -> np.ndarray:
        inks = np.asarray(ink(rgb(stops(mark.scale), np.nan_to_num(self._norm(mark)(mark.values).filled(np.nan)))))
        inks[~np.isfinite(mark.values)] = "#000000"
        return inks

    def _norm(self, mark: Cells) -> Normalize:
        return Normalize(*(self.norms[:2] if self.norms is not None else mark.ends), clip=True)

    # ------------------------------------------------------------ marks

    def _line(self, mark: plots.Line, panel: Panel, ax: Any) -> None:
        x, y, shade = np.asarray(mark.x), np.asarray(mark.y, float), colour(mark.hue)
        if mark.low is not None and mark.high is not None:
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
        self._entry(mark.name, line, mark.legend)

    def _areas(self, mark: plots.Areas, panel: Panel, ax: Any) -> None:
        shades = [colour(hue) for hue in mark.hues]
        for name, handle in zip(mark.names, ax.stackplot(mark.x, *mark.y, colors=shades, lw=0.3), strict=True):
            handle.set_alpha(0.75)
            self._entry(name, handle)

    def _points(self, mark: plots.Points, panel: Panel, ax: Any) -> None:
        x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
        n = len(x)
        hue, filled, symbol, size = (np.broadcast_to(np.asarray(v, object), n) for v in (
            mark.hue, mark.filled, mark.symbol, mark.size))  # fmt: skip
        ends = {k: np.asarray(v, float) for k in ("x_low", "x_high", "y_low", "y_high") if (v := getattr(mark, k)) is not None}
        looks: dict[Any, list[int]] = {}
        for i in range(n):
            looks.setdefault((hue[i], bool(filled[i]), symbol[i], float(size[i])), []).append(i)
        alpha = 0.5 if mark.faint else 1.0
        handle = None
        for (h, full, s, side), at in looks.items():
            shade = colour(h)
            _errors(ax, x[at], y[at], shade, **{k: v[at] for k, v in ends.items()})
            (drawn,) = ax.plot(
                x[at], y[at], MARKERS[s], ms=side * PIXEL * 0.72, mfc=shade if full else "none", mec=shade, alpha=alpha,
                mew=0.8 if not full or s in ("tick", "dash") else 0, clip_on=False, zorder=3,
            )  # fmt: skip
            handle = handle if handle is not None and not full else drawn
        if n == 0:
            (handle,) = ax.plot([], [], MARKERS["circle" if not isinstance(mark.symbol, str) else mark.symbol],
                                ms=4, color=colour(mark.hue if isinstance(mark.hue, int | str) else 0))  # fmt: skip
        self._entry(mark.name, handle, mark.legend)

    def _bars(self, mark: plots.Bars, panel: Panel, ax: Any) -> None:
        values, at = np.asarray(mark.values, float), np.asarray(mark.at, float)
        shade: Any = colour(mark.hue)
        if mark.colours is not None:
            image = ScalarMappable(Normalize(0, mark.high, clip=True), _map("sequential"))
            shade = image.to_rgba(np.asarray(mark.colours, float))
            self.images[id(mark)] = image, mark, [ax]
        put = ax.barh if mark.level else ax.bar
        drawn = put(at, values, 0.85, color=shade)
        self._entry(mark.name, drawn, mark.legend)

    def _cells(self, mark: Cells, panel: Panel, ax: Any) -> None:
        rows, columns = mark.values.shape
        shown = np.ma.masked_invalid(mark.values)
        norm = self._norm(mark)
        if shown.size > MANY:
            image = ax.imshow(shown, cmap=_map(mark.scale), norm=norm, aspect="auto", interpolation="nearest", origin="lower")
        else:
            edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
            image = ax.pcolormesh(*edges, shown, cmap=_map(mark.scale), norm=norm, edgecolors="white", linewidth=0.25)
        known = self.images.setdefault(mark.key, (image, mark, []))
        known[2].append(ax)
        inks = self._inks(mark)
        if mark.hatched is not None:
            for shade in ("#000000", "#FFFFFF"):
                x, y = plots.diagonals(np.asarray(mark.hatched, bool) & (inks == shade))
                ax.add_collection(LineCollection(np.stack([x, y], -1), colors=shade, linewidths=0.45), autolim=False)
        if mark.framed is not None and np.any(mark.framed):
            x, y = plots.outlines(mark.framed)
            for shade, dash in (("#FFFFFF", "-"), ("#000000", (0, (1, 1)))):  # seen on every colour
                ax.add_collection(LineCollection(np.stack([x, y], -1), colors=shade, linewidths=0.9, linestyles=[dash]))
        for which, look in (("ringed", {"marker": "o", "mfc": "none", "ms": 4.5, "mew": 0.7}),
                            ("starred", {"marker": "*", "ms": 5, "mew": 0}), ("dotted", {"marker": ".", "ms": 3, "mew": 0})):  # fmt: skip
            mask = getattr(mark, which)
            if mask is not None:
                for shade in ("#000000", "#FFFFFF"):
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
                glyphs.drawn(tokens.legible(mark.name)), place, xycoords=where, xytext=(-1 if far and level else 1, 1),
                textcoords="offset points", ha="right" if far and level else "left", va="bottom", color=shade,
                fontsize=max(SMALLEST, self.points - 1.5),
            )))  # fmt: skip

    def _region(self, mark: plots.Region, panel: Panel, ax: Any) -> None:
        shade = colour(mark.hue)
        outline = Polygon(np.stack([mark.x, mark.y], 1), closed=True, fc=to_rgba(shade, 0.22), ec=shade, lw=0.6, zorder=0.5)
        ax.add_patch(outline)
        self._entry(mark.name, outline, mark.legend)

    def _flow(self, mark: plots.Flow, panel: Panel, ax: Any) -> None:
        """Streams as bands between columns of nodes, each node as high as what goes through it."""
        columns = max((c for c, *_ in mark.nodes), default=0) + 1
        out, into = np.zeros((2, len(mark.nodes)))
        for a, b, value in mark.links:
            out[a] += value
            into[b] += value
        through = np.maximum(out, into)
        held = [[i for i, (c, *_) in enumerate(mark.nodes) if c == column] for column in range(columns)]
        most, deepest = max(through[own].sum() for own in held), max(map(len, held))
        gap = 0.5 * most / max(1, deepest)
        base = np.zeros(len(mark.nodes))
        for own in held:
            top = 0.0
            for i in own:
                top -= through[i]
                base[i] = top
                top -= gap
        thick = 0.05
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
        size = max(SMALLEST, self.points - 1)
        last, room = columns - 1, max(8.0, _points(ax)[0] / columns / size - 1)
        for i, (column, text, hue) in enumerate(mark.nodes):
            ax.add_patch(Rectangle((column - thick, base[i]), 2 * thick, through[i], fc=colour(hue), lw=0))
            lines = broken(glyphs.drawn(tokens.legible(text)), room)
            ax.text(column + 1.4 * thick if column < last else column - 1.4 * thick, base[i] + through[i] / 2,
                    "\n".join(lines), va="center", ha="left" if column < last else "right", fontsize=size)  # fmt: skip
        ax.set_xlim(-thick, columns - 1 + thick)
        ax.set_ylim(float(np.min(base, initial=0)), 0)

    def _table(self, mark: plots.Table, panel: Panel, ax: Any) -> None:
        size, y = self.points - 1, 0.0
        wide = self.wide or _points(ax)[0]
        starts = np.concatenate([[0], np.cumsum(_shares(mark, wide / size))[:-1]])
        for n, (cells, high) in enumerate(_lines(mark, wide, size)):
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
            ax.annotate("", (x[b], y[b]), (x[a], y[a]), arrowprops={
                "arrowstyle": "-|>", "lw": 0.6, "color": GREY, "shrinkA": 6, "shrinkB": 6, "mutation_scale": 6})  # fmt: skip
        image = ScalarMappable(Normalize(0, 1), _map("sequential"))
        special = {node: (symbol, hue, name) for name, (node, symbol, hue) in mark.special.items()}
        for v in range(len(x)):
            symbol, hue, name = special.get(v, ("circle", GREY, ""))
            (drawn,) = ax.plot(x[v], y[v], MARKERS[symbol], ms=9, mfc=image.to_rgba(values[v]), mec=colour(hue),
                               mew=1.5 if name else 0.5, zorder=3, clip_on=False)  # fmt: skip
            self._entry(name, drawn)
            ax.annotate(glyphs.drawn(tokens.labels([mark.names[v]], 16)[0]), (x[v], y[v]), xytext=(0, 7.5), ha="center",
                        textcoords="offset points", fontsize=max(SMALLEST, self.points - 1.5))  # fmt: skip
        ax.margins(0.08, 0.16)
        ax.autoscale_view()  # names are laid out by the limits
        if len(mark.frames) > 1:
            ax.set_title(glyphs.drawn(tokens.legible(mark.frames[-1])), loc="left")
        if mark.bar:
            self.images[id(mark)] = image, mark, [ax]

    def _picture(self, mark: plots.Picture, panel: Panel, ax: Any) -> None:
        image = np.asarray(mark.image)
        ax.imshow(image, interpolation="nearest")
        ax.set_axis_off()
        if mark.boxes is None:
            return
        values = np.full(len(mark.boxes), np.nan) if mark.values is None else np.asarray(mark.values, float)
        cells = Cells(values[None], mark.scale, mark.low, mark.high, mark.bar)
        scale = ScalarMappable(Normalize(*cells.ends, clip=True), _map(mark.scale))
        for (x0, y0, x1, y1), value in zip(np.asarray(mark.boxes, float), values, strict=True):
            shade = (*scale.to_rgba(value)[:3], 0.55) if np.isfinite(value) else "none"
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fc=shade, ec="white", lw=0.3))
        if mark.bar and mark.values is not None:
            self.images[id(mark)] = scale, mark, [ax]


def _shares(table: plots.Table, room: float) -> np.ndarray:
    """Share of the width of each column: as the table says, but no header is broken."""
    shares = np.asarray(table.widths or [1] * len(table.header), float)
    least = np.array([width(str(h)) * 1.12 + 1.2 for h in table.header]) / room
    shares = np.maximum(shares / shares.sum(), least)
    return shares / shares.sum()


def _lines(table: plots.Table, wide: float, size: float) -> list[tuple[list[list[str]], float]]:
    """Lines of every cell, and the height of its row in sizes of the type; the header is the first row."""
    rooms = _shares(table, wide / size) * wide / size - 1.0
    found = []
    for row in [list(table.header), *map(list, table.rows)]:
        cells = [broken(glyphs.drawn(tokens.legible(str(t))), room) for t, room in zip(row, rooms, strict=True)]
        found.append((cells, max(map(len, cells)) * 1.3 + 0.6))
    return found


def _errors(ax: Any, x: np.ndarray, y: np.ndarray, shade: str, x_low: Any = None, x_high: Any = None, y_low: Any = None,
            y_high: Any = None) -> None:  # fmt: skip
    """Intervals at points."""
    for low, high, level in ((x_low, x_high, True), (y_low, y_high, False)):
        if low is not None and high is not None:
            known = np.isfinite(low) & np.isfinite(high)
            put = ax.hlines if level else ax.vlines
            put((y if level else x)[known], low[known], high[known], color=shade, lw=0.8)


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


__all__ = ["LENGTHS", "WIDTHS", "Paper", "PaperFigure", "Sheet", "cut", "draw", "draw_into", "inches", "paper", "warnings"]
