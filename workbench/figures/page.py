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
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as MatplotlibFigure

from workbench.errors import InputError, warn
from workbench.figures import axes, glyphs
from workbench.figures import plot as plots
from workbench.figures.caption import captions
from workbench.figures.glyphs import SMALLEST, broken
from workbench.figures.output import bundled, written
from workbench.figures.plot import Axis, Cells, Panel, Plot

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
        with axes.settings(*self.drawn_with):
            super().savefig(fname, transparent=transparent, **options)

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=144)
        return file.getvalue()


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
        raise InputError(f"points={points}: venues refuse type of less than {SMALLEST:g} points. Give 6 or more.")
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
        return written(self.figure, path, dpi)

    def caption(self, of: Sequence[Any] | None = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph for all panels (see `Figure.caption`); ``of``: what each panel is of."""
        return captions(self.panels, self.letters, of, date, self.numbered)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        return bundled(self.figure, repr(self), "; ".join(p.title for p in self.plots))

    def __repr__(self) -> str:
        wide, tall = self.figure.get_size_inches()
        size = f"{wide:.2f} x {tall:.2f} inches"
        return f"<Sheet of {len(self.plots)} panel(s), {size}; .save(path) .caption() .matplotlib()>"


def draw(plot: Plot, wide: float, tall: float | None = None, *, points: float = 8.0, family: str | None = None,
         title: bool = False) -> tuple[PaperFigure, bool]:  # fmt: skip
    """The plot as a matplotlib figure of so many inches, and whether its positions are numbered."""
    sheet = _sheet(Paper(wide, wide, points, family), [[plot]], wide, tall, set(), False, title)
    return sheet.figure, sheet.numbered[0]


def without_glyphs(texts: list[str]) -> str:
    """What to say where no font has some characters of a plot's texts; "" where all are there."""
    lost = glyphs.missing(texts)
    if not lost:
        return ""
    return (
        f"No font on this machine has {' '.join(sorted(lost)[:12])}{' ...' if len(lost) > 12 else ''} "
        f"({len(lost)} character(s)): written as escapes such as {glyphs.escape(min(lost))}. Install one that does "
        "(Debian: fonts-droid-fallback for Chinese, Japanese and Korean, fonts-noto-core) and draw again."
    )


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
    every = [axes.texts(plot) for plot in own]
    for texts in every:
        if said := without_glyphs(texts):
            warn(said)
    everything = [text for texts in every for text in texts]
    with axes.settings(page.points, everything, page.family):
        norms = _one_scale(own) if "colour" in shared else None
        # A warning stands in a figure of its own; in one of several, in the caption.
        heads = [text for text, shown in ((own[0].title, title), (own[0].note, len(places) == 1)) if shown and text]
        room = wide * 72 / page.points - 1
        head = [line for text in heads for line in broken(axes.typed(text), room)]
        if tall is not None and tall < 0.5 * len(rows):
            raise InputError(f"{tall:.2f} inches are too low for {len(rows)} row(s) of panels. Give more height.")
        figure = PaperFigure(figsize=(wide, tall or PAGE), layout="constrained")
        figure.drawn_with = page.points, everything, page.family
        grid = figure.add_gridspec(len(rows), len(rows[0]))
        hosts = []
        for (plot, r, c, span), letter in zip(places, names or [""] * len(places), strict=True):
            host = axes.Host(figure, plot, page.points, norms)
            host.build(grid[r, c : c + span], alone=len(places) == 1)
            if letter:
                host.letter(letter)
            hosts.append(host)
        if "legend" in shared:
            _one_legend(figure, hosts, wide)
        else:
            for host in hosts:
                host.legend(below=bool(head))  # a title stands above: both would be put into one place
        if norms is not None:
            low, high, scale, bar = norms
            coloured = [host.axes[id(p)] for host in hosts for p in host.plot.panels if p.of(Cells)]
            image = ScalarMappable(Normalize(low, high), axes.colormap(scale))
            hosts[0].titled.append((axes.add_bar(figure, image, coloured, None), bar, None))
        else:
            for host in hosts:
                host.bars(host.axes)
        if head:
            figure.suptitle("\n".join(head), x=0.01, ha="left")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*collapsed to zero")
            try:
                _settle(figure, grid, [place[1] for place in places], hosts, tall is None)
            except UserWarning:
                raise InputError(
                    f"{wide:.2f} x {figure.get_figheight():.2f} inches are too little for what is around the panels. "
                    "Give more width= or height=, or draw a part."
                ) from None
        for host in hosts:
            for panel in host.plot.panels:
                host.texts(panel, host.axes[id(panel)])
                host.names(panel, host.axes[id(panel)])
            host.part()
            host.say_lost()
    panels = [rows[r][c] for _, r, c, _ in places]
    return Sheet(figure, panels, own, names, [host.numbered for host in hosts])


def _settle(figure: Any, grid: Any, at: Sequence[int], hosts: Sequence[axes.Host], grows: bool) -> None:
    """Names take room, which decides which names fit; when these stay, rows become as high as panels like to be."""
    before, grown = None, 0 if grows else 2
    for _ in range(10):
        figure.get_layout_engine().execute(figure)
        for host in hosts:
            for panel in host.plot.panels:
                host.fit(panel, host.axes[id(panel)], *axes.extent(host.axes[id(panel)]))
            host.move_legend()
            for bar in host.titled:
                axes.fit_bar(*bar, host.points)
        now = [host.fitted() for host in hosts]
        if now == before:
            if grown == 2 or abs(_grow(figure, grid, at, hosts)) < 1:
                break
            grown += 1
        before = now
    figure.draw_without_rendering()


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


def _grow(figure: Any, grid: Any, at: Sequence[int], hosts: Sequence[axes.Host]) -> float:
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


def _liked(panel: Panel, host: axes.Host, wide: float) -> float:
    """Points that a panel likes to be high, so many points wide."""
    x, y = plots.room(panel)
    assert isinstance(panel.y, Axis)
    if tables := panel.of(plots.Table):
        size = axes.smaller(host.points)
        return sum(high for _, high in axes.table_lines(tables[0], host.wide, size)) * size
    if (cells := panel.of(Cells)) and cells[0].text is None:  # no higher than wide, but for the names of their rows
        rows, columns = cells[0].values.shape
        return max(6 * host.points, min(max(6, y) * host.points, rows * max(1.2 * wide / columns, 1.2 * SMALLEST)))
    if cells or panel.of(plots.Flow) or panel.y.named:
        return max(6, y) * host.points
    return max(8 * host.points, min(wide * y / min(x, 48), y * host.points))


def _one_legend(figure: Any, hosts: Sequence[axes.Host], wide: float) -> None:
    """The legend of all, every name once; InputError where a name does not look the same everywhere."""
    found: dict[str, Any] = {}
    looks: dict[str, str] = {}
    for number, host in enumerate(hosts, start=1):
        for name, look in host.looks.items():
            if looks.setdefault(name, look) != look:
                raise InputError(
                    f'share="legend": {name!r} is {look} in panel {number} and {looks[name]} in one before it, so that '
                    "one legend would be wrong for one of them. Give it the same look in both, or share no legend."
                )
        found = host.entries | found
    if found:
        axes.add_legend(figure, found, wide * 72 - 6, hosts[0].points, loc="outside upper left")


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
