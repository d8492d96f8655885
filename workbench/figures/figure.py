"""A plotly figure that can be saved for a paper and shown without leaving megabytes in a notebook."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.figures import caption as captions
from workbench.figures import drawing, theme
from workbench.figures.cells import fit_cells
from workbench.figures.output import LIMIT, checked, size, small, told, translated, without_glyphs, written
from workbench.figures.sheet import paper
from workbench.figures.titles import fitted
from workbench.figures.typeset import natural_height, typeset
from workbench.files import atomic_write

_SAID: set[str] = set()  # reasons for which figures are shown without a picture


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
        if width is None and venue is not None:
            width = "column"
        if path.suffix.lower() == ".html":
            figure = fitted(self.sized(width, venue, height, template), grow=height is None)
            content = figure.to_html(include_plotlyjs=True, full_html=True)
            atomic_write(path, content)
            return path
        if width is not None:
            options: dict[str, Any] = {} if template is None else {"template": template}
            return paper(venue, **options).save(self, path, width, height=height, scale=scale)
        figure = go.Figure(told(self)).update_layout({"template": template} if template else {})
        figure = fitted(figure, grow=height is None)
        wide, own_tall = size(figure)
        tall = height * theme.PIXELS_PER_INCH if height is not None else own_tall
        if tall != own_tall:
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
        tall = height * theme.PIXELS_PER_INCH if height is not None else None
        if width is None:
            figure = Figure(self)
            figure.update_layout(template=template or self.layout["template"], height=tall or size(self)[1])
        else:
            wide = theme.inches(width, venue) * theme.PIXELS_PER_INCH
            figure = Figure(typeset(self, template=template or "workbench_paper"))
            figure.update_layout(width=wide, height=tall or natural_height(self, wide))
        fit_cells(figure, tall)
        return figure

    def caption(self, of: Any = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph: what is shown, of which model, by which reader with which settings and controls.

        of     the reading, dataset or table that the figure is of; known by itself for `reading.figure()`.
        date   end with the day of the reading and the version of the workbench

        Raises InputError where neither the figure nor ``of`` says what the figure is of.
        """
        return captions.caption(self, of, date)

    def describe(self, of: Any) -> Figure:
        """Say what the figure is of (a reading, a dataset or a table), for `caption()`; gives the figure itself."""
        meta: Any = self.layout["meta"] if isinstance(self.layout["meta"], dict) else {}
        self.update_layout(meta={**meta, "workbench": {**(meta.get("workbench") or {}), "of": captions.about(of)}})
        return self

    def show(self, *args: Any, **options: Any) -> Any:
        """plotly's interactive view."""
        return go.Figure.show(fitted(self), *args, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        """A PNG where a browser can draw it, else plotly's own data if that is small; always text.

        Why there is no PNG is said the first time only.
        """
        text = repr(self)
        try:
            shown, lost = translated(self)
            shown = fitted(shown)
            width, height = size(shown)
            svg = drawing.draw(shown.to_plotly_json(), width, height).svg
            if lost:
                text += f"\n{without_glyphs(lost)}"
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
        traces: Any = self.data
        kinds = sorted({trace.type for trace in traces})
        title = captions.plain(self.layout["title"].text or "")
        return f"<Figure {title!r}: {len(traces)} trace(s), {', '.join(kinds)}; .save(path) .show()>"
