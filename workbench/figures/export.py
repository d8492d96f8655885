"""A plotly figure that can be saved for a paper and shown without leaving megabytes in a notebook."""

from __future__ import annotations

import base64
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.figures import drawing, theme
from workbench.figures.drawing import ExportError, browser
from workbench.files import atomic_write

__all__ = ["FORMATS", "LIMIT", "ExportError", "Figure", "browser"]

FORMATS = ("pdf", "svg", "png", "html")
_SAID: set[str] = set()  # reasons for which figures are shown without a picture
LIMIT = 300_000  # bytes that one output may leave in a notebook
SCALES = (2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25)


class Figure(go.Figure):
    """A plotly Figure with `.save()`, `.caption()` and a static, small rich display.

    Everything that plotly's own figure can do works; `.show()` is the interactive view.
    """

    _ipython_display_: Any = None  # type: ignore[assignment]  # plotly's own would put the whole of plotly.js into the notebook

    def save(
        self,
        path: str | os.PathLike[str],
        width: str | float | None = None,
        venue: str | None = None,
        height: float | None = None,
        template: str | None = None,
        scale: float | None = None,
    ) -> Path:
        """Write a .pdf, .svg, .png or .html file; complete under its name or not there at all.

        width      "column", "text", inches, or a length such as "84mm"; with a width the figure is set for paper (8 pt
                   type, no title, labels fitted).  Without one it is written as it is on the screen.
        venue      "icml", "neurips", "iclr", "acl": whose column and text widths; alone it means its column
        height     inches; by default the figure's own proportions
        template   any registered plotly template, in place of the one for paper or screen
        scale      pixels per unit of a .png; default 300 dots per inch on paper, 2 on the screen

        A .pdf and an .svg hold their fonts.  A character that no font here has is written as its escape (\\u65e5), with
        a warning.  Raises ExportError where there is no browser to draw with or no place to write to.
        """
        path = checked(path)
        from workbench.figures.titles import fitted

        if width is None and venue is not None:
            width = "column"
        if path.suffix.lower() == ".html":
            figure = fitted(self.sized(width, venue, height, template), grow=height is None)
            content = figure.to_html(include_plotlyjs=True, full_html=True)
            atomic_write(path, content)
            return path
        if width is not None:
            from workbench.figures.sheet import paper

            options: dict[str, Any] = {} if template is None else {"template": template}
            return paper(venue, **options).save(self, path, width, height=height, scale=scale)
        figure = Figure(told(self)).update_layout({"template": template} if template else {})
        figure = fitted(figure, grow=height is None)
        wide, own_tall = size(figure)
        tall = height * theme.PIXELS_PER_INCH if height is not None else own_tall
        if tall != own_tall:
            from workbench.figures.charts import fit_cells

            fit_cells(figure, tall)
        return written(path, drawing.draw(figure.to_plotly_json(), wide, tall).svg, wide, tall, scale or 2.0)

    def sized(
        self,
        width: str | float | None = None,
        venue: str | None = None,
        height: float | None = None,
        template: str | None = None,
    ) -> Figure:
        """A copy at a size on paper (inches), with its type; labels are fitted when it is saved, not here."""
        from workbench.figures.charts import fit_cells
        from workbench.figures.typeset import natural_height, typeset

        tall = height * theme.PIXELS_PER_INCH if height is not None else None
        if width is None:
            figure = Figure(self)
            figure.update_layout(template=template or self.layout["template"], height=tall or size(self)[1])
        else:
            wide = theme.inches(width, venue) * theme.PIXELS_PER_INCH
            figure = typeset(self, template=template or "workbench_paper")
            figure.update_layout(width=wide, height=tall or natural_height(self, wide))
        fit_cells(figure, tall)
        return figure

    def caption(self, of: Any = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph: what is shown, of which model, by which reader with which settings and controls.

        of     the reading, dataset or table that the figure is of; known by itself for `reading.figure()`.
        date   end with the day of the reading and the version of the workbench

        Raises InputError where neither the figure nor ``of`` says what the figure is of.
        """
        from workbench.figures.caption import caption

        return caption(self, of, date)

    def describe(self, of: Any) -> Figure:
        """Say what the figure is of (a reading, a dataset or a table), for `caption()`; gives the figure itself."""
        from workbench.figures.caption import about

        meta: Any = self.layout["meta"] if isinstance(self.layout["meta"], dict) else {}
        self.update_layout(meta={**meta, "workbench": {**(meta.get("workbench") or {}), "of": about(of)}})
        return self

    def show(self, *args: Any, **options: Any) -> Any:
        """plotly's interactive view."""
        from workbench.figures.titles import fitted

        return super(Figure, fitted(self)).show(*args, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        """A PNG where a browser can draw it, else plotly's own data if that is small; always text.

        Why there is no PNG is said the first time only.
        """
        from workbench.figures.titles import fitted

        text = repr(self)
        try:
            shown, lost = _translated(self)
            shown = fitted(shown)
            width, height = size(shown)
            svg = drawing.draw(shown.to_plotly_json(), width, height).svg
            if lost:
                text += f"\n{_without_glyphs(lost)}"
            picture, scale = small(svg, width, height, LIMIT - 2 * len(text))
            if scale < 1:
                text += f"\nShown at {scale:.0%} of its size, to stay small; .show() or .save(path) for all of it."
            return {"text/plain": text, "image/png": picture}, {"image/png": {"width": width, "height": height}}
        except WorkbenchError as error:
            bundle: dict[str, Any] = {"text/plain": text if str(error) in _SAID else f"{text}\n{error}"}
            _SAID.add(str(error))
            if len(self.to_json() or "") + len(text) < LIMIT * 0.9:
                bundle["application/vnd.plotly.v1+json"] = self.to_plotly_json()
            return bundle

    def _repr_html_(self) -> None:  # plotly's own is the interactive page again
        return None

    def __repr__(self) -> str:
        from workbench.figures.caption import plain

        traces: Any = self.data
        kinds = sorted({trace.type for trace in traces})
        title = plain(self.layout["title"].text or "")
        return f"<Figure {title!r}: {len(traces)} trace(s), {', '.join(kinds)}; .save(path) .show()>"


def checked(path: str | os.PathLike[str]) -> Path:
    """The path, if a figure can be saved under it; ExportError says why not."""
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise ExportError(
            f"A figure cannot be saved as {path.suffix or 'a file without suffix'!r} ({path}). "
            f"Name the file with one of: {', '.join('.' + f for f in FORMATS)}."
        )
    if not path.parent.is_dir():
        raise ExportError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    return path


def written(path: Path, svg: str, width: float, height: float, scale: float) -> Path:
    """Write an svg (CSS pixels) as .pdf, .svg or .png."""
    kind = path.suffix.lower()
    if kind == ".pdf":
        content = drawing.pdf(svg, width, height)
        if b"/Type3" in content:
            warn(
                f"{path.name} holds fonts of Type 3: colour emoji, or outlines that browsers embed no other way "
                "(Noto Sans CJK's). Venues that take only Type 1 and TrueType refuse it: install a TrueType font for "
                "these characters (Debian: fonts-droid-fallback)."
            )
    elif kind == ".png":
        content = drawing.png(svg, width, height, scale)
    else:
        from workbench.figures.fonts import embedded

        content = embedded(svg).encode()
    atomic_write(path, content)
    return path


def small(svg: str, width: float, height: float, limit: float) -> tuple[bytes, float]:
    """A PNG that takes no more than so many bytes in a notebook (base64), and the scale at which it is."""
    for scale in SCALES:
        picture = drawing.png(svg, width, height, scale)
        if len(base64.b64encode(picture)) <= limit:
            break
    return picture, scale


def told(figure: Figure) -> Figure:
    """The figure as it can be drawn here; a warning names the characters that no font has."""
    found, lost = _translated(figure)
    if lost:
        warn(_without_glyphs(lost))
    return found


def warn(text: str) -> None:
    """A warning that points to the line that asked for the figure."""
    level, frame, here = 1, sys._getframe(), str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _without_glyphs(lost: set[str]) -> str:
    return (
        f"No font on this machine has {' '.join(sorted(lost)[:12])}{' ...' if len(lost) > 12 else ''} "
        f"({len(lost)} character(s)): written as escapes such as {_escape(min(lost))}. Install one that does "
        "(Debian: fonts-droid-fallback for Chinese, Japanese and Korean, fonts-noto-core, fonts-noto-color-emoji) and "
        "draw again."
    )


def _translated(figure: Figure) -> tuple[Figure, set[str]]:
    """The figure with every character that no font here has as its escape, and those characters.

    A box in the place of a character says nothing, and not even that it is wrong.
    """
    content = figure.to_plotly_json()
    lost = drawing.missing({c for text in _strings(content) for c in text if c > "\x7f"})
    if not lost:
        return figure, lost
    from workbench.figures.charts import fit_cells

    found = Figure(_mapped(content, {ord(c): _escape(c) for c in lost}))
    fit_cells(found, size(found)[1])  # escapes are longer than what they stand for
    return found, lost


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _strings(value: Any) -> Iterator[str]:
    """Every text of a figure that may be drawn."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("hovertext", "hovertemplate", "template", "bdata"):
                yield from _strings(part)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        for part in np.ravel(value) if isinstance(value, np.ndarray) else value:
            yield from _strings(part)


def _mapped(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict) and "bdata" in value:  # how plotly writes numbers
        numbers = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        return numbers.reshape([int(n) for n in str(value["shape"]).split(",")]) if "shape" in value else numbers
    if isinstance(value, dict):
        return {key: _mapped(part, table) for key, part in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return [_mapped(part, table) for part in value.tolist()]
    if isinstance(value, list | tuple):
        return [_mapped(part, table) for part in value]
    return value


def size(figure: go.Figure) -> tuple[float, float]:
    """Pixels, with what plotly takes where a figure names none."""
    layout: Any = figure.layout
    return layout.width or 700, layout.height or 450


def without(layout: Any, *names: str) -> dict[str, Any]:
    return {name: part for name, part in layout.to_plotly_json().items() if name not in names}
