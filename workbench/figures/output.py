"""Figures as files: written in one piece, small enough for a notebook, with an escape for what no font here has."""

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

from workbench.figures import drawing
from workbench.figures.cells import fit_cells
from workbench.figures.drawing import ExportError
from workbench.figures.fonts import embedded
from workbench.files import atomic_write

FORMATS = ("pdf", "svg", "png", "html")
LIMIT = 300_000  # bytes that one output may leave in a notebook
SCALES = (2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25)


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


def told(figure: go.Figure) -> go.Figure:
    """The figure as it can be drawn here; a warning names the characters that no font has."""
    found, lost = translated(figure)
    if lost:
        warn(without_glyphs(lost))
    return found


def warn(text: str) -> None:
    """A warning that points to the line that asked for the figure."""
    level, frame, here = 1, sys._getframe(), str(Path(__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def without_glyphs(lost: set[str]) -> str:
    return (
        f"No font on this machine has {' '.join(sorted(lost)[:12])}{' ...' if len(lost) > 12 else ''} "
        f"({len(lost)} character(s)): written as escapes such as {_escape(min(lost))}. Install one that does "
        "(Debian: fonts-droid-fallback for Chinese, Japanese and Korean, fonts-noto-core, fonts-noto-color-emoji) and "
        "draw again."
    )


def translated(figure: go.Figure) -> tuple[go.Figure, set[str]]:
    """The figure with every character that no font here has as its escape, and those characters.

    A box in the place of a character says nothing, and not even that it is wrong.
    """
    content = figure.to_plotly_json()
    lost = drawing.missing({c for text in _strings(content) for c in text if c > "\x7f"})
    if not lost:
        return figure, lost
    found = go.Figure(_mapped(content, {ord(c): _escape(c) for c in lost}))
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
