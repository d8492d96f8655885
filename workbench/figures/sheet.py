"""Figures for a paper: a venue's widths, type that fits them, panels with letters, one legend or bar for several.

    page = paper("icml")                                      # or "neurips", "iclr", "acl", "84mm", inches
    page.save(reading.figure(), "lens.pdf")                   # a column wide; width="text" for the page
    page.grid([[a, b], [c, None]], share="colour").save("figure1.pdf")

What is written is vectors: text is text, its fonts are in the file, cells of heatmaps are rectangles.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.caption import captions
from workbench.figures.cells import ink
from workbench.figures.drawing import Drawn, draw
from workbench.figures.output import LIMIT, checked, small, told, written
from workbench.figures.typeset import PIXEL, bottom, cropped, entries, fitted, legend, natural_height, typeset

GAP = 10.0  # pixels between panels
ALIGNED = {"t": 0.3, "b": 0.3, "l": 0.2, "r": 0.2}  # share of a panel that aligning its axes may cost it, by side
BAR = 120.0  # pixels in which a colour bar is drawn before what is empty is cut off
OVER = 6.0  # pixels above and below a colour bar, for the ends of its numbers
SHARED = {"colour", "legend"}


def paper(
    venue: str | float | None = None,
    *,
    points: float = 8.0,
    family: str | None = None,
    template: str = "workbench_paper",
) -> Paper:
    """The page of a venue ("neurips", "icml", "iclr", "acl"), or of one width: inches, "84mm", "8.4cm", "240pt".

    points     size of the type, on paper
    family     its font, as in CSS; the first installed one is used and put into the files

    Raises InputError for a venue that is not known and is no length either.
    """
    known = {v for v in theme.WIDTHS if v}
    if venue is None or (isinstance(venue, str) and venue.lower() in known):
        return Paper(theme.inches("column", venue), theme.inches("text", venue), points, family, template)
    try:
        width = theme.inches(venue)
    except ValueError as error:
        raise InputError(
            f"paper({venue!r}): this is no venue whose widths are known ({', '.join(sorted(known))}), and no width "
            f"either: {error}"
        ) from None
    return Paper(width, width, points, family, template)


@dataclass(frozen=True)
class Paper:
    """Widths in inches of a column and of the text of a page, and the type of its figures."""

    column: float
    text: float
    points: float = 8.0
    family: str | None = None
    template: str = "workbench_paper"

    def width(self, width: str | float = "column") -> float:
        """Inches of "column", "text" or any length."""
        return getattr(self, width) if width in ("column", "text") else theme.inches(width)

    def save(
        self,
        figure: go.Figure,
        path: str | os.PathLike[str],
        width: str | float = "column",
        *,
        height: float | None = None,
        scale: float | None = None,
    ) -> Path:
        """Write one figure as .pdf, .svg or .png (300 dots per inch, or ``scale`` per CSS pixel)."""
        checked(path)
        return self.grid([[figure]], width=width, height=height, letters=False).save(path, scale=scale)

    def grid(
        self,
        rows: Sequence[Sequence[go.Figure | None]],
        *,
        width: str | float = "text",
        height: float | None = None,
        share: str | None = None,
        letters: bool | Sequence[str] = True,
    ) -> Sheet:
        """Panels in rows and columns, their axes aligned; None leaves a place empty.

        The same figure in neighbouring places of a row is one panel over all of them.

        height     inches; by default what the panels' own proportions need
        share      "legend": one for all panels; "colour": one colour bar, its range that of all; "colour|legend"
        letters    (a), (b), ... in reading order, none, or texts of your own

        Raises InputError for rows of different lengths, and for panels that cannot share: one name in two looks, or
        colours of two scales or measures.
        """
        if not all(isinstance(row, list | tuple) for row in rows):
            raise InputError("Panels are given as rows of figures: grid([[a, b], [c, None]]), and [[a]] for one.")
        shared = set((share or "").replace(" ", "").split("|")) - {""}
        if shared - SHARED:
            raise InputError(f'share={share!r}: only "colour", "legend" or "colour|legend" can be shared.')
        wide = self.width(width) * theme.PIXELS_PER_INCH
        tall = None if height is None else height * theme.PIXELS_PER_INCH
        places = _places(rows)
        names = _letters(letters, len(places))
        for place, name in zip(places, names or [""] * len(places), strict=True):
            place.letter = name
            place.figure = typeset(told(place.source), self.points, self.family, self.template)
            if found := entries(place.figure):
                place.entries = found
                place.figure.update_layout(showlegend=False)  # it stands above the panel, or above all of them
        figures = [p.figure for p in places]

        parts, top = [], 0.0
        if "legend" in shared:
            strip, top = _one_legend(places, wide)
            parts.append(strip)
        scale = _one_scale(figures) if "colour" in shared else None
        right = _bar(scale, 200, figures[0])[1] + 6 if scale else 0.0

        columns = len(rows[0])
        each = (wide - right - GAP * (columns - 1)) / columns
        for place in places:
            place.width = each * place.span + GAP * (place.span - 1)
            self._head(place)
            place.height = natural_height(place.source, place.width)
        _share_out(places, None if tall is None else tall - top)
        for place in places:
            place.drawn, place.height = fitted(place.figure, place.width, place.height, free=tall is None)
        _align(places, free=tall is None)

        y, edges = top - GAP, []
        for row in _rows(places):
            head, y = max(p.head for p in row), y + GAP
            coloured = [p for p in row if scale and any(p.figure.select_traces({"type": "heatmap"}))]
            for place in row:
                x = place.column * (each + GAP)
                parts.append(_at(cropped(place.drawn.svg, 0, 0, place.width, place.height), x, y + head))
                # Letters stand in line; a panel's own legend stands on its panel.
                parts.append(self._letter(place.letter, x, y))
                parts.append(f'<g transform="translate({x:g},{y + head - place.head:g})">{place.legend}</g>')
                if place in coloured:  # the bar stands beside cells alone
                    edges += [y + head + place.drawn.size["t"], y + head + place.height - place.drawn.size["b"]]
            y += head + max(p.height for p in row)
        if scale:
            svg, own, _ = _bar(scale, max(edges) - min(edges), figures[0])
            parts.append(_at(svg, wide - own, min(edges) - OVER))
        whole = y if tall is None else tall
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{wide:g}" '
            f'height="{whole:g}" viewBox="0 0 {wide:g} {whole:g}"><rect width="100%" height="100%" fill="#ffffff"/>'
            f"{''.join(parts)}</svg>"
        )
        # What is said of a panel is of how it was fitted here.
        sources = [go.Figure(p.source).update_layout(meta=p.figure.layout["meta"]) for p in places]
        return Sheet(svg, wide, whole, sources, names)

    def _head(self, place: _Place) -> None:
        """The letter and the legend of a panel above it: side by side, or below each other where words stand there."""
        line = self.points * PIXEL * 1.5 if place.letter else 0.0
        place.head = line
        if place.entries and len(place.letter) > len("(a)"):
            svg, _, high = legend(place.entries, place.width, place.figure)
            place.head, place.legend = line + high + 2, _at(svg, 0, line)
        elif place.entries:
            svg, _, high = legend(place.entries, place.width - line, place.figure)
            place.head, place.legend = max(line, high + 2), _at(svg, line, 0)

    def _letter(self, text: str, x: float, y: float) -> str:
        size = self.points * PIXEL
        font = escape(self.family or theme.FONT)
        style = f"font-family: {font}; font-size: {size:g}px; font-weight: bold"
        return f'<text x="{x:g}" y="{y + size:g}" style="{style}">{escape(text)}</text>' if text else ""


@dataclass
class Sheet:
    """Panels on paper, as svg (CSS pixels); what `paper().grid()` gives."""

    svg: str
    width: float
    height: float
    figures: list[go.Figure]
    letters: list[str]

    def save(self, path: str | os.PathLike[str], *, scale: float | None = None) -> Path:
        """Write .pdf, .svg or .png (300 dots per inch); complete under its name or not there at all."""
        path = checked(path)
        if path.suffix.lower() == ".html":
            raise InputError("Panels on paper are a picture: save them as .pdf, .svg or .png; single figures as .html.")
        return written(path, self.svg, self.width, self.height, scale or 300 / theme.PIXELS_PER_INCH)

    def caption(self, of: Sequence[Any] | None = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph for all panels (see `Figure.caption`); ``of``: what each panel is of."""
        return captions(self.figures, self.letters, of, date)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        text = repr(self)
        picture, scale = small(self.svg, self.width, self.height, LIMIT - len(text) - 200)
        if scale < 1:
            text += f"\nShown at {scale:.0%} of its size, to stay small; .save(path) for all of it."
        return {"text/plain": text, "image/png": picture}, {"image/png": {"width": self.width, "height": self.height}}

    def __repr__(self) -> str:
        inches = f"{self.width / theme.PIXELS_PER_INCH:.2f} x {self.height / theme.PIXELS_PER_INCH:.2f} inches"
        return f"<Sheet of {len(self.figures)} panel(s), {inches}; .save(path) .caption()>"


# ---------------------------------------------------------------- places


@dataclass
class _Place:
    """One panel: its figure as given and as typeset, where it stands, what is above it, and how it was drawn."""

    source: go.Figure
    row: int
    column: int
    span: int = 1
    figure: go.Figure = None  # type: ignore[assignment]  # these three until they are made
    drawn: Drawn = None  # type: ignore[assignment]
    entries: list[dict[str, Any]] = field(default_factory=list)
    letter: str = ""
    legend: str = ""
    head: float = 0.0
    width: float = 0.0
    height: float = 0.0


def _places(rows: Sequence[Sequence[go.Figure | None]]) -> list[_Place]:
    lengths = [len(row) for row in rows]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise InputError(f"grid() takes rows of the same length; these have {lengths} places. Fill up with None.")
    found: list[_Place] = []
    for r, row in enumerate(rows):
        for c, figure in enumerate(row):
            if figure is None:
                continue
            if not isinstance(figure, go.Figure):
                raise InputError(
                    f"Row {r}, column {c} of the grid holds {type(figure).__name__}. Give figures: reading.figure()."
                )
            if c and figure is row[c - 1]:
                found[-1].span += 1
            else:
                found.append(_Place(figure, r, c))
    if not found:
        raise InputError("There is no figure in this grid, so there is nothing to draw.")
    return found


def _rows(places: list[_Place]) -> list[list[_Place]]:
    return [[p for p in places if p.row == row] for row in sorted({p.row for p in places})]


def _letters(letters: bool | Sequence[str], count: int) -> list[str]:
    if isinstance(letters, bool):
        return [f"({chr(ord('a') + i)})" for i in range(count)] if letters else []
    if len(letters) != count:
        raise InputError(f"letters has {len(letters)} texts for {count} panels. Give one for each.")
    return [str(x) for x in letters]


def _share_out(places: list[_Place], tall: float | None) -> None:
    """Panels of a row are equally high; of a height that is given, rows take in the proportions they would have."""
    rows = _rows(places)
    own = [max(p.height for p in row) for row in rows]
    if tall is not None:
        left = tall - GAP * (len(rows) - 1) - sum(max(p.head for p in row) for row in rows)
        if left < 30 * len(rows):
            raise InputError(
                f"{tall / theme.PIXELS_PER_INCH:.2f} inches are too low for {len(rows)} row(s) of panels: less than a "
                "third of an inch would be left for each. Give more height."
            )
        own = [h * left / sum(own) for h in own]
    for row, height in zip(rows, own, strict=True):
        for place in row:
            place.height = height


def _align(places: list[_Place], free: bool) -> None:
    """The same margins along rows and columns, so that axes stand in line; then panels cut to what is on them."""
    if len(places) > 1:
        for row in _rows(places):
            high = max(p.height for p in row)
            for place in row:
                place.height = high
        plots = [p for p in places if p.drawn.axes]
        for place, margin in [(p, _margins(p, plots)) for p in plots]:
            place.figure.update_layout(height=place.height, margin=margin)
        for place in plots:
            place.drawn = draw(place.figure.to_plotly_json(), place.width, place.height)
    for row in _rows(places) if free else []:
        ends = max(bottom(p.drawn, p.height) for p in row)
        for place in row:
            cut = max(0.0, place.height - ends)
            place.drawn.size["b"] -= cut
            place.height -= cut


def _margins(place: _Place, others: list[_Place]) -> dict[str, float]:
    """The widest margins along a panel's row and column, but for those that would take a large part of the panel."""

    def widest(side: str, room: float, own: list[_Place]) -> float:
        mine = place.drawn.size[side]
        return max(m for p in own if (m := p.drawn.size[side]) <= mine + ALIGNED[side] * room)

    row = [p for p in others if p.row == place.row]
    left = [p for p in others if p.column == place.column]
    right = [p for p in others if p.column + p.span == place.column + place.span]
    return {
        "t": widest("t", place.height, row), "b": widest("b", place.height, row),
        "l": widest("l", place.width, left), "r": widest("r", place.width, right),
    }  # fmt: skip


def _at(svg: str, x: float, y: float) -> str:
    return svg.replace("<svg ", f'<svg x="{x:g}" y="{y:g}" ', 1)


# ---------------------------------------------------------------- what panels share


def _one_legend(places: list[_Place], width: float) -> tuple[str, float]:
    """The legend of all panels, every name once, and how high it is; panels have none of their own any more.

    Raises InputError where a name does not look the same in all panels.
    """

    def look(entry: dict[str, Any]) -> dict[str, str]:
        line, marker = entry.get("line") or {}, entry.get("marker") or {}
        own = {"line": line.get("color"), "dash": line.get("dash"), "marker": marker.get("color"),
               "symbol": marker.get("symbol")}  # fmt: skip
        return {k: v for k, v in own.items() if isinstance(v, str)}

    found: dict[str, dict[str, Any]] = {}
    for number, place in enumerate(places, start=1):
        for entry in place.entries:
            first = found.setdefault(str(entry.get("name", "")), entry)
            if look(first) != look(entry):
                raise InputError(
                    f'share="legend": {entry.get("name", "")!r} is {look(entry)} in panel {number} and {look(first)} '
                    "in one before it, so that one legend would be wrong for one of them. Give it the same look in "
                    "both, or share no legend."
                )
        place.entries = []
    if not found:
        return "", 0.0
    svg, _, high = legend(list(found.values()), width, places[0].figure)
    return _at(svg, 0, 0), high + 4


def _one_scale(figures: list[go.Figure]) -> dict[str, Any] | None:
    """Give the cells of all panels one range of colours; what their bar shows, or None where no panel has cells."""
    coloured: list[list[Any]] = [list(figure.select_traces({"type": "heatmap"})) for figure in figures]
    cells = [trace for own in coloured for trace in own]
    if not cells:
        return None
    if any(bar.marker.colorscale for figure in figures for bar in figure.select_traces({"type": "bar"})):
        raise InputError('share="colour": a panel has a second colour bar, of its bars. Leave that panel out.')
    # Where a figure has several traces of cells, one shows the bar for all of them.
    shown = [t for t in cells if t.showscale is not False]
    first = shown[0] if shown else cells[0]

    def what(trace: Any) -> tuple[Any, ...]:
        return str(trace.colorbar.title.text or "").replace("<br>", " "), trace.colorscale

    for trace in shown:
        if what(trace) != what(first):
            raise InputError(
                f'share="colour": the panels colour different things ({what(first)[0]!r} and {what(trace)[0]!r}), or '
                "in different scales, so one bar cannot stand for both. Draw the same value, or share no colour."
            )
    low = float(min(np.nanmin(t.z) if t.zmin is None else t.zmin for t in cells))
    high = float(max(np.nanmax(t.z) if t.zmax is None else t.zmax for t in cells))
    if centred := any(t.zmid == 0 or (t.zmin is not None and t.zmin == -(t.zmax or 0) < 0) for t in cells):
        low, high = -max(-low, high), max(-low, high)
    for figure, own in zip(figures, coloured, strict=True):
        for trace in own:
            trace.update(zmin=low, zmax=high, zmid=None, showscale=False)
        # Letters in cells stand out from their colour, which is another one now.
        texts: list[Any] = [t for t in figure.select_traces({"mode": "text"}) if t.customdata is not None]
        for trace, text in zip(own, texts, strict=False):
            text.textfont.color = ink(np.asarray(trace.z, float), trace.colorscale, centred, (low, high))
    return {"colorscale": first.colorscale, "cmin": low, "cmax": high, "colorbar": first.colorbar.to_plotly_json()}


def _bar(like: dict[str, Any], length: float, figure: go.Figure) -> tuple[str, float, float]:
    """A colour bar alone: svg, width and height (``OVER`` more than the bar at both ends)."""
    alone, high = go.Figure(), length + 2 * OVER
    bar = {
        **like["colorbar"], "len": 1, "lenmode": "fraction", "x": 0, "xanchor": "left", "xpad": 0, "y": 0.5, "ypad": 0,
        "outlinewidth": 0, "ticks": "outside", "ticklen": 3,
        "title": {**like["colorbar"].get("title", {}), "side": "right"},
    }  # fmt: skip
    marker = {**like, "color": [like["cmin"]], "showscale": True, "colorbar": bar}
    alone.add_scatter(x=[None], y=[None], mode="markers", marker=marker)
    alone.update_layout(
        template=figure.layout["template"], font=figure.layout["font"].to_plotly_json(), width=BAR, height=high,
        margin={"l": 0, "r": BAR - 1, "t": OVER, "b": OVER, "autoexpand": False},
        xaxis={"visible": False}, yaxis={"visible": False},
    )  # fmt: skip
    drawn = draw(alone.to_plotly_json(), BAR, high)
    x, _, wide, _ = drawn.colorbars[0]
    return cropped(drawn.svg, x, 0, wide + 1, high), wide + 1, high
