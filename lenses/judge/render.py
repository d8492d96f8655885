"""A picture as a judge sees it: as the model saw it, with a red box around a region, and the region alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 512
"""Pixels on a side of the picture that a judge sees."""
CLOSE = 256
"""Pixels on the longer side of the region alone."""
WIDTH, ALPHA, RED = 3, 30, (255, 0, 0)
"""Of the box: width of its line in pixels, and how much of 255 its filling covers."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seen:
    """The part of a picture that a model saw, and how it lies in a square of ``SIZE`` pixels.

    Attributes
    ----------
    region
        Left, top, right, bottom in pixels of the original picture.
    scale
        Pixels of the square for each of the original, across and down: cells of the model's grid are square, as they
        were to the model, so that these differ where it saw the picture squashed.
    """

    region: Box
    scale: tuple[float, float]

    @classmethod
    def of(cls, boxes: np.ndarray, cell: np.ndarray, size: tuple[float, float]) -> Seen:
        """From all boxes [token, side] of a picture, the width and height of a cell, and the picture's size."""
        left, top = np.clip(boxes[:, :2].min(0), 0, size)
        right, bottom = np.clip(boxes[:, 2:].max(0), 0, size)
        per = 1 / np.asarray(cell, float)
        per = per * SIZE / max((right - left) * per[0], (bottom - top) * per[1])
        return cls((float(left), float(top), float(right), float(bottom)), (float(per[0]), float(per[1])))

    @property
    def proportions(self) -> str:
        """"kept", or by how much they were changed."""
        ratio = self.scale[0] / self.scale[1]
        return "kept" if abs(ratio - 1) < 0.02 else f"width x {ratio:.2f}"

    @property
    def _margin(self) -> tuple[float, float]:
        left, top, right, bottom = self.region
        return (SIZE - (right - left) * self.scale[0]) / 2, (SIZE - (bottom - top) * self.scale[1]) / 2

    def place(self, box: Sequence[float]) -> Box:
        """Where a box of the original picture lies in the square; exact, in parts of pixels."""
        (a, b), (x, y) = self.scale, self._margin
        left, top = self.region[:2]
        l, t, r, d = (float(v) for v in box)
        return (l - left) * a + x, (t - top) * b + y, (r - left) * a + x, (d - top) * b + y

    def drawn(self, picture: Image, size: tuple[float, float]) -> Image:
        """The square, black around the picture."""
        from PIL import Image

        square, (x, y) = Image.new("RGB", (SIZE, SIZE)), self._margin
        left, top, right, bottom = self._of(picture, self.region, size)
        wide, high = (max(1, round(SIZE - 2 * margin)) for margin in (x, y))
        part = picture.convert("RGB").resize((wide, high), Image.Resampling.LANCZOS, (left, top, right, bottom))
        square.paste(part, (round(x), round(y)))
        return square

    def close(self, picture: Image, size: tuple[float, float], box: Sequence[float]) -> Image:
        """A box of the original picture alone, in the square's proportions."""
        from PIL import Image

        l, t, r, d = self.place(box)
        by = CLOSE / max(r - l, d - t)
        sizes = max(1, round((r - l) * by)), max(1, round((d - t) * by))
        inside = self._of(picture, np.clip(box, (0, 0, 0, 0), (*size, *size)), size)
        return picture.convert("RGB").resize(sizes, Image.Resampling.BICUBIC, inside)

    def _of(self, picture: Image, box: Any, size: tuple[float, float]) -> Box:
        """A box in pixels of the original, in those of the picture at hand (which may be its thumbnail)."""
        a, b = picture.width / size[0], picture.height / size[1]
        l, t, r, d = (float(v) for v in box)
        return (
            min(max(l * a, 0), picture.width - 1), min(max(t * b, 0), picture.height - 1),
            min(max(r * a, 1), picture.width), min(max(d * b, 1), picture.height),
        )  # fmt: skip


def marked(square: Image, box: Box) -> Image:
    """The square with a red box, its inside tinted."""
    from PIL import Image, ImageDraw

    layer = Image.new("RGBA", square.size)
    edges = [round(v) for v in box]
    ImageDraw.Draw(layer).rectangle(edges, fill=(*RED, ALPHA), outline=(*RED, 255), width=WIDTH)
    return Image.alpha_composite(square.convert("RGBA"), layer).convert("RGB")


def uri(picture: Image, form: str = "PNG", **options: Any) -> str:
    """The picture as a data URI."""
    kept = io.BytesIO()
    picture.save(kept, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(kept.getvalue()).decode()}"
