"""A plotly figure that can be saved for a paper and shown without leaving megabytes in a notebook."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.errors import WorkbenchError
from workbench.figures import theme
from workbench.reading import write_whole

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "chrome-headless-shell", "microsoft-edge", "brave-browser",
)  # fmt: skip
MAC_BROWSERS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FORMATS = ("pdf", "svg", "png", "html")


class ExportError(WorkbenchError):
    """A figure that cannot be written in the form that was asked for."""


class Figure(go.Figure):
    """A plotly Figure with `.save()` and a static, small rich display.

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

        width      "column", "text" or inches; with a width the paper template is used (8 pt type).  Without
                   one the figure is written as it is on the screen.
        venue      "icml", "neurips", "iclr", "acl": whose column and text widths
        height     inches; by default the figure's own proportions
        template   any registered plotly template, in place of the one above
        scale      pixels per unit of a .png; default 300 dots per inch on paper, 2 on the screen
        """
        path = Path(path)
        kind = path.suffix.lower().lstrip(".")
        if kind not in FORMATS:
            raise ExportError(
                f"A figure cannot be saved as {path.suffix or 'a file without suffix'!r} ({path}). "
                f"Name the file with one of: {', '.join('.' + f for f in FORMATS)}."
            )
        if not path.parent.is_dir():
            raise ExportError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
        figure = self.sized(width, venue, height, template)
        if kind == "html":
            content = figure.to_html(include_plotlyjs=True, full_html=True).encode()
        else:
            scale = scale or (300 / theme.PIXELS_PER_INCH if width is not None else 2.0)
            content = render(figure, kind, scale=scale if kind == "png" else 1.0)
        write_whole(path, lambda name: Path(name).write_bytes(content))
        return path

    def sized(
        self,
        width: str | float | None = None,
        venue: str | None = None,
        height: float | None = None,
        template: str | None = None,
    ) -> Figure:
        """A copy at a size on paper (inches), with cell texts and margins that fit it."""
        from workbench.figures.charts import fit_cells

        theme.register()
        figure = Figure(self)
        own_width, own_height = _size(self)
        tall = height * theme.PIXELS_PER_INCH if height is not None else None
        if width is not None:
            wide = theme.inches(width, venue) * theme.PIXELS_PER_INCH
            figure.layout = _without(
                figure.layout, "margin", "title", "width", "height"
            )  # papers have captions
            figure.update_layout(
                width=wide,
                height=tall
                or wide * float(np.clip(own_height / own_width, 0.75 if wide < 400 else 0.3, 1.2)),
                template=template or "workbench_paper",
            )
        else:
            figure.update_layout(template=template or self.layout["template"], height=tall or own_height)
        fit_cells(figure, tall)
        return figure

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> Any:
        """A PNG where a browser can draw it, else plotly's own data if that is small; always text."""
        bundle: dict[str, Any] = {"text/plain": repr(self)}
        try:
            bundle["image/png"] = render(self, "png", scale=2.0)
        except WorkbenchError:
            data = self.to_plotly_json()
            if len(self.to_json() or "") < 300_000:
                bundle["application/vnd.plotly.v1+json"] = data
            return bundle
        width, height = _size(self)
        return bundle, {"image/png": {"width": width, "height": height}}

    def _repr_html_(self) -> None:  # plotly's own is the interactive page again
        return None

    def __repr__(self) -> str:
        traces: Any = self.data
        kinds = sorted({trace.type for trace in traces})
        title = self.layout["title"].text or ""
        return f"<Figure {title!r}: {len(traces)} trace(s), {', '.join(kinds)}; .save(path) .show()>"


def browser() -> str | None:
    """The path of a Chrome or Chromium: BROWSER_PATH, then PATH, then where installers leave it."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if os.access(named, os.X_OK) else None
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    if sys.platform == "darwin":
        for place in MAC_BROWSERS:
            if os.access(place, os.X_OK):
                return place
    try:  # the copy that plotly_get_chrome downloads, and Windows' registry
        from choreographer.browsers.chromium import Chromium

        found = Chromium.find_browser(skip_local=False)
    except Exception:  # a search; not finding one is an answer
        return None
    return str(found) if found and os.access(found, os.X_OK) else None


def render(figure: go.Figure, kind: str, scale: float = 1.0) -> bytes:
    """The figure as bytes of "pdf", "svg" or "png", drawn by a headless browser; no network is used."""
    found = browser()
    if found is None:
        named = os.environ.get("BROWSER_PATH")
        raise ExportError(
            f"No Chrome or Chromium was found{f' (BROWSER_PATH={named} is no program)' if named else ''}; "
            f"plotly draws {kind} files with one. Install it (`apt install chromium`, or `plotly_get_chrome` "
            "without root rights), or set BROWSER_PATH to it. Or save the figure as .html, or save the "
            "reading and draw it on another machine: workbench.open(file).figure().save(...)."
        )
    try:
        import kaleido
    except ImportError:
        raise ExportError(
            'Saving figures needs the package "kaleido" (1.0 or newer), which is not installed. '
            "Install it with: pip install kaleido. Or save the figure as .html."
        ) from None
    width, height = _size(figure)
    try:
        content = kaleido.calc_fig_sync(
            figure.to_dict(),
            opts={"format": kind, "scale": scale, "width": width, "height": height},
            kopts={"path": found, "mathjax": False},  # MathJax would come from the network
        )
    except Exception as error:  # kaleido and choreographer raise many kinds
        raise ExportError(
            f"The browser {found} could not draw the figure as {kind} ({type(error).__name__}: {error}). "
            f"Check that `{found} --headless --no-sandbox --version` works, set BROWSER_PATH to another one, "
            "or save as .html."
        ) from error
    return bytes(content)


def _size(figure: go.Figure) -> tuple[float, float]:
    """Pixels, with what plotly takes where a figure names none."""
    layout: Any = figure.layout
    return layout.width or 700, layout.height or 450


def _without(layout: Any, *names: str) -> dict[str, Any]:
    return {name: part for name, part in layout.to_plotly_json().items() if name not in names}
