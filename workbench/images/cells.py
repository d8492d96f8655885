"""Pictures like those of a prompt that show nothing of what these show: cells in random order, noise, another's.

All have the sizes of the originals, so that a processor makes the same tokens of them, and each of its places is the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.images.pictures import noise

if TYPE_CHECKING:
    from PIL.Image import Image

    from workbench.images.layout import Visual
    from workbench.images.pictures import Picture

SAID = {"patches": "its cells in random order", "noise": "pictures of noise", "others": "another's pictures"}


def boxes(visual: Visual, image: int) -> np.ndarray:
    """[cell, 4] left, top, right, bottom in whole pixels: what is moved as one piece when a picture is shuffled.

    The parts that its tokens show.  Of a picture that is cut into several tiles, whose tokens show parts of different
    sizes, and where no token has a place: the squares of a grid, as large as the smallest parts, or as many as there
    are tokens.
    """
    places, picture = visual.places, visual.pictures[image]
    own = (places.image == image) & places.shows
    size = np.array([picture.width, picture.height])
    if not own.any():
        return np.zeros((0, 4), int)
    if (places.row[own] >= 0).all() and len(np.unique(places.tile[own])) == 1:
        found = np.round(places.box[own]).astype(int)
    else:
        placed = own & (places.row >= 0)
        if placed.any():
            side = np.median(places.box[placed, 2:] - places.box[placed, :2], axis=0)
            small = places.box[placed & (places.tile == places.tile[placed].max())]
            side = np.minimum(side, np.median(small[:, 2:] - small[:, :2], axis=0)).min()
        else:
            side = np.sqrt(size.prod() / own.sum())
        x, y = (np.unique(np.round(np.linspace(0, n, max(1, round(n / side)) + 1)).astype(int)) for n in size)
        row, column = (i.ravel() for i in np.indices((len(y) - 1, len(x) - 1)))
        found = np.stack([x[column], y[row], x[column + 1], y[row + 1]], 1)
    return np.unique(found[(found[:, 2:] > found[:, :2]).all(1)], axis=0)


def shuffled(visual: Visual, seed: int) -> list[Image]:
    """The pictures of a prompt, each with its cells in random order; what no token shows stays as it is."""
    from PIL import Image

    rng, made = np.random.default_rng(seed), []
    for image, picture in enumerate(visual.pictures):
        old = np.asarray(picture.rgb)
        new, own = old.copy(), boxes(visual, image)
        for (left, top, right, bottom), k in zip(own, rng.permutation(len(own)), strict=True):
            # Cells differ by a pixel, at borders by more: a window of the size that is needed, without resampling.
            high, wide = bottom - top, right - left
            y, x = min(own[k, 1], len(old) - high), min(own[k, 0], old.shape[1] - wide)
            new[top:bottom, left:right] = old[y : y + high, x : x + wide]
        made.append(Image.fromarray(new))
    return made


def noisy(visual: Visual, seed: int) -> list[Image]:
    """Pictures of coloured squares, 16 to the shorter side."""
    return [noise((p.width, p.height), seed + i, cells=16) for i, p in enumerate(visual.pictures)]


def exchanged(visual: Visual, others: Sequence[Picture], seed: int) -> list[Image]:
    """Other pictures, scaled and cut to the sizes of these; the seed says which comes first."""
    from PIL import Image, ImageOps

    def fitted(other: Any, picture: Picture) -> Image.Image:
        return ImageOps.fit(other.rgb, (picture.width, picture.height), Image.Resampling.BICUBIC)

    return [fitted(others[(seed + i) % len(others)], picture) for i, picture in enumerate(visual.pictures)]
