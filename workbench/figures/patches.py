"""Which part of which picture each position of a prompt shows, for every view of a reading of prompts with pictures.

    seen(source, prompt)        the prompt's positions: kind, image, tile, row, column and box of each; None without any
    pictures(source, prompt)    the pictures themselves, by their number in the prompt
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError, ReadingError
from workbench.images.labels import PICTURES, PLACES

if TYPE_CHECKING:
    from workbench.figures.source import Source


@dataclass(frozen=True, eq=False)
class Seen:
    """The positions of one prompt: kind ("text", "image", "padding"), and where in which picture each is.

    ``box`` is [position, (left, top, right, bottom)] in pixels of the original picture; NaN where nothing is shown.
    """

    kind: np.ndarray
    image: np.ndarray
    tile: np.ndarray
    row: np.ndarray
    column: np.ndarray
    box: np.ndarray

    def of(self, image: int, tile: int | None = None) -> np.ndarray:
        """Indices of the positions that show a part of a picture; of one tile, or of all."""
        mine = (self.image == image) & (self.kind == "image") & np.isfinite(self.box).all(1)
        return np.flatnonzero(mine if tile is None else mine & (self.tile == tile))

    def tiles(self, image: int) -> list[int]:
        """The tiles of a picture, 0 (the whole) first."""
        return np.unique(self.tile[self.of(image)]).tolist()

    def called(self, i: int) -> str:
        """Where a position is, in words; "" for a text."""
        if self.image[i] < 0:
            return ""
        parts = [f"picture {self.image[i]}"] if self.image.max() > 0 else []
        if self.tile[self.image == self.image[i]].max() > 0:
            parts.append(f"tile {self.tile[i]}" if self.tile[i] > 0 else "whole picture")
        if self.kind[i] != "image":
            return ", ".join([*parts, "a token that shows nothing"])
        if self.row[i] < 0:
            return ", ".join([*parts, f"token {int((self.of(self.image[i], self.tile[i]) < i).sum())}"])
        return ", ".join([*parts, f"row {self.row[i]}", f"column {self.column[i]}"])

    def short(self, i: int) -> str:
        """The same where there is little room: "3,5"; of a further tile "2:3,5"."""
        tile = f"{self.tile[i]}:" if self.tile[i] > 0 else ""
        return tile + (f"{self.row[i]},{self.column[i]}" if self.row[i] >= 0 else "·")


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt: a data URI of its thumbnail, and the size of the original."""

    src: str
    width: int
    height: int

    def pixels(self) -> np.ndarray:
        """[height, width, 3] bytes of the thumbnail."""
        from PIL import Image

        try:
            return np.asarray(Image.open(io.BytesIO(base64.b64decode(self.src.partition(",")[2]))).convert("RGB"))
        except OSError as error:
            raise ReadingError(
                f"The thumbnail of a picture in this reading cannot be opened ({error}): picture_data is to hold data "
                "URIs of JPEG or PNG files. Read the prompt again."
            ) from None


def pictured(source: Source) -> bool:
    """Whether prompts of the reading have pictures."""
    return source.data.sizes.get("picture", 0) > 0 and all(name in source.data.variables for name in PLACES)


def seen(source: Source, prompt: int) -> Seen | None:
    """The positions of a prompt, as :meth:`Source.positions` gives them; None where it has no picture."""
    if not pictured(source):
        return None
    at = source.positions(prompt)
    kind, image, tile, row, column, box = (_of(source, name, prompt)[at] for name in PLACES)
    found = Seen(kind.astype(str), image.astype(int), tile.astype(int), row.astype(int), column.astype(int), box)
    return found if (found.image >= 0).any() else None


def _of(source: Source, name: str, prompt: int) -> np.ndarray:
    order = ("prompt", "position", "side") if name == "box" else ("prompt", "position")
    return source.data[name].transpose(*order).values[prompt]


def pictures(source: Source, prompt: int) -> dict[int, Picture]:
    """The pictures of a prompt by their number in it."""
    if not pictured(source):
        return {}
    data = source.data
    rows: Any = zip(*(data[name].values.tolist() for name in PICTURES), strict=True)
    return {int(i): Picture(str(src), int(w), int(h)) for p, i, w, h, src in rows if p == prompt}


def chosen(source: Source, prompt: int, image: int, tile: int | None, who: str) -> tuple[Seen, Picture, np.ndarray]:
    """A picture of a prompt and the positions of one of its tiles.  InputError says what there is."""
    own, known = seen(source, prompt), pictures(source, prompt)
    if own is None or not known:
        raise InputError(f"{who}: prompt {prompt} of this reading has no picture. Read one with an image.")
    if image not in known:
        raise InputError(
            f"{who}(picture={image!r}): prompt {prompt} has picture {', '.join(map(str, sorted(known)))}, "
            "counted within a prompt. Those of another one: prompt=..."
        )
    tiles = own.tiles(image)
    if not tiles:
        raise InputError(f"{who}: no position of picture {image} was read. Read with positions=\"image\" or \"all\".")
    if (tile := tiles[0] if tile is None else tile) not in tiles:
        raise InputError(f"{who}(tile={tile!r}): picture {image} has tile {', '.join(map(str, tiles))}.")
    return own, known[image], own.of(image, tile)
