"""Pictures as files, complete or not there at all, and as outputs of a notebook, which stay small."""

from __future__ import annotations

import os
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from workbench import tokens
from workbench.errors import WorkbenchError
from workbench.files import atomic_write

FORMATS = ("pdf", "svg", "png", "html")
LIMIT = 300_000
"""Bytes that one output may leave in a notebook."""
SCREEN_DPI, SCREEN_POINTS = 96, 9.0
"""Of a picture in a notebook: an inch is as many pixels, its type 12 of them."""


class ExportError(WorkbenchError):
    """A figure that cannot be written."""


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


def written(figure: Any, path: str | os.PathLike[str], dpi: float) -> Path:
    """Write a matplotlib figure as .pdf, .svg or .png in one piece."""
    path = checked(path)
    kind = path.suffix.lower().lstrip(".")
    if kind == "html":
        raise ExportError("A figure on paper is a picture: save it as .pdf, .svg or .png; single figures as .html.")
    file = BytesIO()
    figure.savefig(file, format=kind, dpi=dpi)
    atomic_write(path, file.getvalue())
    return path


def bundled(figure: Any, text: str, alt: str) -> Any:
    """What a notebook keeps of a figure: a picture of at most :data:`LIMIT` bytes with its alt text, and a line."""
    wide, tall = figure.get_size_inches()
    dpi, most = 2.0 * SCREEN_DPI, LIMIT - 2 * len(text)
    while True:
        drawn, file = BytesIO(), BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        # 256 colours are enough for a picture that is to be looked at, and a third of its bytes.
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        share = most / (4 * len(file.getvalue()) / 3)
        if share >= 1 or dpi <= 24:
            break
        dpi = max(24, 0.9 * dpi * share**0.5)
    size = {"width": round(wide * SCREEN_DPI), "height": round(tall * SCREEN_DPI), "alt": tokens.legible(alt)}
    return {"text/plain": text, "image/png": b64encode(file.getvalue()).decode()}, {"image/png": size}
