"""What is wrong with the type of a matplotlib figure, by the extents that matplotlib gives."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from matplotlib.legend import Legend
from matplotlib.text import Text

from workbench.figures.glyphs import SMALLEST


def drawn_texts(figure: Any) -> list[Text]:
    """Every text that is drawn, once; what is hidden or beyond the ends of an axis is not."""
    found: dict[int, Text] = {}
    draw = Text.draw

    def noting(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            found[id(self)] = self
        draw(self, renderer)

    with mock.patch.object(Text, "draw", noting):
        figure.draw_without_rendering()
    return list(found.values())


def shown(figure: Any) -> list[str]:
    """The strings of all texts that are drawn."""
    return [text.get_text() for text in drawn_texts(figure)]


def boxes(figure: Any, texts: list[Text]) -> np.ndarray:
    """[text, 4] left, lower, right, upper edge in points."""
    found = [Text.get_window_extent(text).extents for text in texts]  # an annotation's own includes its arrow
    return np.reshape(found, (-1, 4)) * 72 / figure.dpi


def faults(figure: Any, near: float = 0.5) -> list[str]:
    """Texts over each other, outside of the figure, or too small, and legends over data; ``near``: points of grace."""
    texts = drawn_texts(figure)
    own = boxes(figure, texts)
    said = [f"{text.get_text()!r} at {np.round(box, 1).tolist()}" for text, box in zip(texts, own, strict=True)]
    sizes = [text.get_fontsize() for text in texts]
    found = [f"{size:.2f} pt: {s}" for size, s in zip(sizes, said, strict=True) if size < SMALLEST - 1e-6]
    wide, tall = figure.get_size_inches() * 72
    outside = (own < -near).any(1) | (own[:, 2] > wide + near) | (own[:, 3] > tall + near)
    found += [f"outside of {wide:.1f} x {tall:.1f}: {said[i]}" for i in np.flatnonzero(outside)]
    for i in range(len(own) - 1):
        both = np.minimum(own[i, 2:], own[i + 1 :, 2:]) - np.maximum(own[i, :2], own[i + 1 :, :2])
        found += [f"{said[i]} over {said[i + 1 + j]}" for j in np.flatnonzero((both > near).all(1))]
    return found + _covered(figure)


def _covered(figure: Any) -> list[str]:
    """Legends over axes, and axes over each other."""
    axes = [ax for ax in figure.axes if ax.get_visible()]
    legends = [legend for legend in figure.findobj(Legend) if legend.get_visible()]
    spots = [(f"{type(a).__name__} {n}", a.get_window_extent().padded(-1)) for n, a in enumerate([*axes, *legends])]
    return [
        f"{name} {np.round(box.extents)} over {other} {np.round(beyond.extents)}, in pixels"
        for i, (name, box) in enumerate(spots)
        for other, beyond in spots[i + 1 :]
        if box.overlaps(beyond)
    ]
