"""A figure: a plot drawn by plotly, which matplotlib draws for paper and for every static picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import xarray as xr

from workbench.errors import InputError
from workbench.figures import caption as captions
from workbench.figures import screen
from workbench.figures.output import SCREEN_DPI, SCREEN_POINTS, ExportError, bundled, checked, written
from workbench.figures.plot import Plot
from workbench.files import atomic_write

if TYPE_CHECKING:
    from workbench.figures.page import PaperFigure

class Figure(go.Figure):
    """A plotly figure that knows what it shows, so that it can be drawn on paper, too.

    Everything that plotly's own figure can do works; `.show()` is the interactive view.  Pictures (`.save`, the display
    in a notebook) are drawn by matplotlib from the same plot: what was changed by plotly's own calls is not in them.

    Attributes
    ----------
    plot
        The description (:class:`workbench.figures.Plot`).
    """

    _ipython_display_: Any = None  # type: ignore[assignment]  # plotly's own would put the whole of plotly.js into the notebook

    def __init__(self, plot: Any = None, *args: Any, of: Any = None, **options: Any) -> None:
        described = plot if isinstance(plot, Plot) else getattr(plot, "_plot", None)
        super().__init__(screen.draw(plot) if isinstance(plot, Plot) else plot, *args, **options)
        self._plot, self._of = described, captions.about(of) if of is not None else getattr(plot, "_of", None)
        self._numbered = False

    @property
    def plot(self) -> Plot:
        """What is shown."""
        if self._plot is None:
            raise ExportError(
                "This figure was put together with plotly alone, so nothing is known that could be drawn on paper. "
                "Make it from a Plot (workbench.figures.Plot), or save it with plotly's own write_image."
            )
        return self._plot

    def matplotlib(
        self,
        width: str | float | None = None,
        venue: str | None = None,
        height: float | None = None,
        *,
        ax: Any = None,
        points: float | None = None,
        family: str | None = None,
    ) -> PaperFigure:
        """The figure as matplotlib's, to be edited and saved like any other.

        Parameters
        ----------
        width, venue, height
            As of :meth:`save`; inches by default as wide as on the screen, with its title.
        ax
            Axes of the author's own to draw into, one for each panel; they are given back, and the rest is left alone.
        points, family
            Size and font of the type.

        Returns
        -------
        PaperFigure
            A ``matplotlib.figure.Figure`` whose ``savefig`` writes TrueType fonts; with ``ax``, what was given.

        Examples
        --------
        >>> import workbench, lenses
        >>> reading = workbench.read("organism:story", "The bell of Tilda is", lenses.LogitLens(), progress=False)
        >>> drawn = reading.figure().matplotlib("column", "icml")
        >>> float(drawn.get_figwidth())
        3.25
        """
        from workbench.figures import axes, page

        if ax is not None:
            return axes.draw_into(self.plot, ax)
        if width is None and venue is not None:
            width = "column"
        if width is None:
            wide = (self.layout["width"] or 700) / SCREEN_DPI
            drawn, _ = page.draw(self.plot, wide, height, points=points or SCREEN_POINTS, family=family, title=True)
        else:
            wide = page.inches(width, venue)
            drawn, self._numbered = page.draw(self.plot, wide, height, points=points or 8.0, family=family)
        return drawn

    def plotly(self, dark: bool = False) -> go.Figure:
        """The interactive figure anew, for a light or a dark page."""
        return screen.draw(self.plot, dark)

    def save(
        self,
        path: str | os.PathLike[str],
        width: str | float | None = None,
        venue: str | None = None,
        height: float | None = None,
        *,
        dpi: float = 300,
        dark: bool = False,
    ) -> Path:
        """Write a .pdf, .svg, .png or .html file; complete under its name or not there at all.

        Parameters
        ----------
        path
            Its suffix says what is written: .html is plotly's own page, the others are drawn by matplotlib.
        width
            "column", "text", inches, or a length such as "84mm"; with a width the figure is set for paper (8 pt type,
            no title).  Without one it is as wide as on the screen, with its title.
        venue
            "icml", "neurips", "iclr", "acl": whose column and text widths; alone it means its column.
        height
            Inches; by default what the content needs.
        dpi
            Of a .png.
        dark
            Of a .html.

        Raises
        ------
        ExportError
            For another suffix, a folder that is not there, and a figure that was put together with plotly alone.

        Notes
        -----
        Text in a .pdf is text in TrueType fonts (DejaVu Sans, and what it lacks from installed fonts); in an .svg it is
        outlines.  A character that no font here has is written as its escape (\\u65e5), with a warning.
        """
        path = checked(path)
        if path.suffix.lower() == ".html":
            atomic_write(path, self.plotly(dark).to_html(include_plotlyjs=True, full_html=True))
            return path
        return written(self.matplotlib(width, venue, height), path, dpi)

    def caption(self, of: Any = None, date: bool = False) -> str:
        """One LaTeX-safe paragraph: what is shown, of which model, by which reader with which settings and controls.

        Parameters
        ----------
        of
            The reading, dataset or table that the figure is of; known by itself for `reading.figure()`.
        date
            End with the day of the reading and the version of the workbench.

        Raises
        ------
        InputError
            Where neither the figure nor ``of`` says what the figure is of.
        """
        return captions.captions([self], [], [of], date)

    def show(self, *args: Any, **options: Any) -> Any:
        """plotly's interactive view."""
        return go.Figure.show(go.Figure(self), *args, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        if self._plot is None:
            return {"text/plain": repr(self), "application/vnd.plotly.v1+json": self.to_plotly_json()}
        return bundled(self.matplotlib(), repr(self), self.plot.title)

    def _repr_html_(self) -> None:  # plotly's own is the interactive page again
        return None

    def __reduce__(self) -> Any:
        return _restored, (self._plot, self._of, self.to_plotly_json())

    def __repr__(self) -> str:
        if self._plot is None:
            return f"<Figure: {len(self.data)} trace(s); .show()>"  # type: ignore[arg-type]
        kinds = dict.fromkeys(type(mark).__name__.lower() for panel in self._plot.panels for mark in panel.marks)
        many = f"{len(self._plot.panels)} panels, " if len(self._plot.panels) > 1 else ""
        return f"<Figure {self._plot.title!r}: {many}{', '.join(kinds)}; .save(path) .matplotlib() .show()>"


def _restored(plot: Plot | None, of: Any, shown: Any) -> Figure:
    figure = Figure(shown)
    figure._plot, figure._of = plot, of
    return figure


def drawn(function: Callable[..., Plot], several: bool = False) -> Callable[..., Figure]:
    """Have a chart (a function from a dataset to a plot) take readings, too; its figure says what it is of.

    ``several``: it can also draw several by name, and is then given their datasets by name.
    """

    @wraps(function)
    def draw(reading: Any, *args: Any, **options: Any) -> Figure:
        if not captions.by_name(reading):
            return Figure(function(dataset(reading), *args, **options), of=reading)
        if not (several and reading):
            raise InputError(
                f"{function.__name__} was given {len(reading)} readings by name, and draws one"
                f"{' or more' * several}. Several in one chart: workbench.figures.curves."
            )
        return Figure(function({name: dataset(own) for name, own in reading.items()}, *args, **options), of=reading)

    return draw


def dataset(reading: Any) -> xr.Dataset:
    """The dataset of a reading; a dataset is its own."""
    data = reading.data if hasattr(reading, "provenance") else reading
    if not isinstance(data, xr.Dataset):
        raise InputError(
            f"Expected a Reading, or an xarray.Dataset like its .data, and got a {type(reading).__name__}. Give what a "
            "reader or a measure gave."
        )
    return data
