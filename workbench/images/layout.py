"""Which visual token of a prompt shows which cell of which tile.

Most models give each tile of a picture a grid of tokens, row by row, tile by tile: then the number of tokens says how
many pixels (or patches) a cell has.  Some cut off padding and put a learned vector behind each row: those say
themselves where their features go (``pack_image_features``), and are asked.  A resampler's tokens have no place.
What was found here is a hypothesis until :mod:`workbench.images.proof` has tried it on the model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from workbench.images.geometry import Size, Tile

if TYPE_CHECKING:
    from workbench.images.pictures import Picture

MOST = 16
"""Pixels of a patch, or patches of a token, along one side, at most as many times the least."""


@dataclass(frozen=True)
class Places:
    """Where the visual tokens of a prompt are, in their order; -1 and NaN where a token has no place.

    Attributes
    ----------
    image, tile, row, column
        [token].  Tile 0 is the whole picture; crops count from 1.
    box
        [token, 4] left, top, right, bottom in pixels of the original picture, cut at its borders.
    shows
        [token] whether a token shows any part of its picture: not where it is all padding, or a learned vector.
    rule
        How they were found.
    """

    image: np.ndarray
    tile: np.ndarray
    row: np.ndarray
    column: np.ndarray
    box: np.ndarray
    shows: np.ndarray
    rule: str

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Visual:
    """The visual tokens of one prompt.

    Attributes
    ----------
    at
        [token] their positions.
    places
        What each shows.
    pictures
        The prompt's pictures; [] where only a processor's output was given.
    """

    at: np.ndarray
    places: Places
    pictures: Sequence[Picture] = ()

    @property
    def shown(self) -> np.ndarray:
        """Positions of the tokens that show a part of a picture."""
        return self.at[self.places.shows]


def unplaced(count: int, sizes: Sequence[Size]) -> Places:
    """Tokens that each may show any part of their picture: in equal shares, where there are several.

    Without sizes it is not known of which picture, either.
    """
    n = len(sizes)
    none = np.full(count, -1)
    if not n:
        return Places(none, none, none, none, np.full((count, 4), np.nan, np.float32), np.ones(count, bool), "none")
    image = np.repeat(np.arange(n), count // n) if count % n == 0 else np.zeros(count, int)
    whole = np.array([(0, 0, *sizes[i]) for i in image], np.float32).reshape(-1, 4)
    return Places(image, np.zeros(count, int), none, none, whole, np.ones(count, bool), "none")


def hypotheses(
    module: nn.Module, given: Mapping[str, Any], tiles: Sequence[Tile], sizes: Sequence[Size], count: int
) -> Iterator[Places]:
    """Ways to place ``count`` visual tokens, likely ones first.

    Parameters
    ----------
    given
        What the processor gave for the prompt.
    tiles
        Of the prompt's pictures, in the order of the processor's output.
    """
    packed = _packed(module, given, tiles, sizes, count)
    if packed is not None:
        yield packed
    keys = list(dict.fromkeys(tile.key.partition(".")[0] for tile in tiles))
    # Two outputs are whole pictures and their crops, or one picture at two resolutions.
    for chosen in [[key] for key in keys] + ([keys, keys[::-1]] if len(keys) > 1 else []):
        own = [tile for key in chosen for tile in tiles if tile.key.partition(".")[0] == key]
        own.sort(key=lambda tile: tile.picture)
        joined = f", {' then '.join(chosen)}" if len(chosen) > 1 else ""
        for grids, rule in _grids(own, count, patch_size(module)):
            for order, said in _orders(own):
                yield _placed([own[i] for i in order], [grids[i] for i in order], sizes, rule + said + joined)


def patch_size(module: nn.Module) -> int:
    """Pixels of a patch of the vision tower, as its config has it; 1 where it does not say."""
    config = getattr(module, "config", None)
    for part in (getattr(config, "vision_config", None), config):
        size = getattr(part, "patch_size", None)
        size = size[0] if isinstance(size, (list, tuple)) and size else size
        if isinstance(size, int) and size > 0:
            return size
    return 1


def patches(module: nn.Module, tiles: Sequence[Tile], sizes: Sequence[Size]) -> Places | None:
    """Places of the patches of a vision tower, tile by tile, row by row; None where tiles are no whole patches."""
    grids = [_grid(tile, 1, patch_size(module), False, {}) for tile in tiles]
    known = [grid for grid in grids if grid is not None]
    return _placed(tiles, known, sizes, "patches") if len(known) == len(tiles) else None


@dataclass(frozen=True)
class Grid:
    """Tokens of one tile: rows and columns, the height and width of a cell in units of the tile, learned vectors."""

    rows: int
    columns: int
    high: float
    wide: float
    row_ends: int = 0
    ahead: int = 0
    behind: int = 0

    def __len__(self) -> int:
        return self.ahead + self.rows * (self.columns + self.row_ends) + self.behind


LEARNED = {
    "": {}, ", a vector behind each row": {"row_ends": 1},
    ", a vector behind each row, one ahead and one behind": {"row_ends": 1, "ahead": 1, "behind": 1},
}  # fmt: skip
"""Where models put learned vectors, that show nothing, into the tokens of a picture."""


def _grids(tiles: Sequence[Tile], count: int, patch: int) -> Iterator[tuple[list[Grid], str]]:
    """Grids of tokens for each tile that come to ``count`` in all."""
    for said, learned in LEARNED.items():
        for k in range(1, MOST + 1):
            for used in (False, True):  # smaller pictures are filled up to the size of the largest, with fewer tokens
                found = [_grid(tile, k, patch, used, learned) for tile in tiles]
                if all(grid is not None for grid in found) and sum(map(len, found)) == count:  # type: ignore[arg-type]
                    yield found, f"cells of {k} x {k} patches{said}"  # type: ignore[misc]
                    break
    # Pooled to a fixed number, which need not divide the patches.
    side = math.isqrt(count // len(tiles)) if count % len(tiles) == 0 else 0
    if side and side * side * len(tiles) == count and all(tile.height == tile.width for tile in tiles):
        yield [Grid(side, side, tile.height / side, tile.width / side) for tile in tiles], f"pooled to {side} x {side}"


def _grid(tile: Tile, k: int, patch: int, used: bool, learned: Mapping[str, int]) -> Grid | None:
    """Tokens of k x k patches for all of a tile, or for the part of it that is used; None where they do not fit."""
    if tile.patches:
        patch = 1
    cell = k * patch
    if used:
        return None if tile.patches else Grid(*(-(-n // cell) for n in tile.used), cell, cell, **learned)
    high, wide = tile.height // patch, tile.width // patch  # what is left over after the last patch is not seen
    return None if high % k or wide % k or not high * wide else Grid(high // k, wide // k, cell, cell, **learned)


def _orders(tiles: Sequence[Tile]) -> Iterator[tuple[list[int], str]]:
    """In which order the tiles' tokens may come: the processor's; or the whole picture before or behind its crops."""
    usual = list(range(len(tiles)))
    yield usual, ""
    by_picture: dict[int, list[int]] = {}
    for i, tile in enumerate(tiles):
        by_picture.setdefault(tile.picture, []).append(i)
    if any(len(own) > 1 for own in by_picture.values()):
        yield [i for own in by_picture.values() for i in (*own[1:], own[0])], ", first tile last"
        yield [i for own in by_picture.values() for i in (own[-1], *own[:-1])], ", last tile first"


def _placed(tiles: Sequence[Tile], grids: Sequence[Grid], sizes: Sequence[Size], rule: str) -> Places:
    numbers = _numbers(tiles, sizes)
    made: list[tuple[np.ndarray, ...]] = []
    for tile, number, grid in zip(tiles, numbers, grids, strict=True):
        row, column = np.indices((grid.rows, grid.columns + grid.row_ends))
        learned = column >= grid.columns
        row, column, learned = (
            np.pad(values.ravel(), (grid.ahead, grid.behind), constant_values=fill)
            for values, fill in ((row, 0), (column, 0), (learned, True))
        )
        left, top = column * grid.wide, row * grid.high
        box = tile.box(left, top, left + grid.wide, top + grid.high)
        shows = ~learned & _any(tile.shown, left, top, grid)
        row, column = (np.where(learned, -1, place) for place in (row, column))
        made.append((np.full(row.shape, tile.picture), np.full(row.shape, number), row, column, box, shows))
    image, number, row, column, box, shows = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return _cut(image, number, row, column, box, shows, sizes, rule)


def _any(shown: np.ndarray, left: Any, top: Any, grid: Grid) -> np.ndarray:
    """Which cells have anything that shows a part of the picture."""
    sums = np.pad(shown.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y0, y1 = (np.clip(v, 0, shown.shape[0]).astype(int) for v in (np.floor(top), np.ceil(top + grid.high)))
    x0, x1 = (np.clip(v, 0, shown.shape[1]).astype(int) for v in (np.floor(left), np.ceil(left + grid.wide)))
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0] > 0


def _numbers(tiles: Sequence[Tile], sizes: Sequence[Size]) -> list[int]:
    """0 for a tile that shows all of its picture, or the only one; the others of a picture count from 1."""
    found, crops, had = [], {}, set()
    alone = {t.picture for t in tiles if sum(o.picture == t.picture for o in tiles) == 1}
    for tile in tiles:
        width, height = sizes[tile.picture]
        left, top, right, bottom = tile.box(0, 0, tile.width, tile.height)
        margin = 0.02 * max(width, height) + 1
        whole = left <= margin and top <= margin and right >= width - margin and bottom >= height - margin
        if tile.picture in alone or (whole and tile.picture not in had):
            had.add(tile.picture)
            found.append(0)
        else:
            crops[tile.picture] = crops.get(tile.picture, 0) + 1
            found.append(crops[tile.picture])
    return found


def _cut(
    image: np.ndarray, tile: np.ndarray, row: np.ndarray, column: np.ndarray, box: np.ndarray, shows: np.ndarray,
    sizes: Sequence[Size], rule: str,
) -> Places:  # fmt: skip
    """Boxes cut at the borders of their picture; what is outside of it shows nothing."""
    ends = np.array([(*size, *size) for size in sizes], float)[image]
    cut = np.clip(box, 0, ends)
    with np.errstate(invalid="ignore"):
        shows = shows & (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    cut[~shows] = np.nan
    return Places(image, tile, row, column, cut.astype(np.float32), shows, rule)


def _packed(
    module: nn.Module, given: Mapping[str, Any], tiles: Sequence[Tile], sizes: Sequence[Size], count: int
) -> Places | None:
    """Where a model's own ``pack_image_features`` puts the features of each cell; None where it has none.

    It is given places in place of features, and a learned vector that is NaN.
    """
    inner = next((m for m in (getattr(module, "model", None), module) if hasattr(m, "pack_image_features")), None)
    if inner is None or "image_sizes" not in given or any(tile.patches for tile in tiles):
        return None
    for k in (1, 2, 3, 4):
        found = _packed_by(inner, module.config, given, tiles, sizes, k * patch_size(module))
        if found is not None and len(found) == count:
            return found
    return None


def _packed_by(
    inner: nn.Module, config: Any, given: Mapping[str, Any], tiles: Sequence[Tile], sizes: Sequence[Size], cell: int
) -> Places | None:
    """The same where a token has ``cell`` pixels to each side."""
    features, numbers = [], []
    for picture in range(len(sizes)):
        own = {tile.index[-1]: tile for tile in tiles if tile.picture == picture}
        if not own:
            return None
        first = own[min(own)]
        rows, columns = first.height // cell, first.width // cell
        row, column = (x.ravel() for x in np.indices((rows, columns)))
        # Places, and whether a part of the picture is there.
        boxes = np.full((max(own) + 1, rows * columns, 5), np.nan)
        for i, tile in own.items():
            left, top = column * cell, row * cell
            boxes[i, :, :4] = tile.box(left, top, left + cell, top + cell)
            boxes[i, :, 4] = _any(tile.shown, left, top, Grid(rows, columns, cell, cell))
        features.append(torch.from_numpy(boxes).float())
        numbers.append((rows * columns if len(boxes) > 1 else 0, columns))
    takes = inspect.signature(inner.pack_image_features).parameters
    known = {
        "image_features": features, "image_sizes": torch.as_tensor(given["image_sizes"]),
        "vision_feature_select_strategy": "full", "image_newline": torch.full((5,), math.nan),
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None) or "anyres_max_9",
    }  # fmt: skip
    try:
        found = inner.pack_image_features(**{k: v for k, v in known.items() if k in takes})
    except (TypeError, ValueError, RuntimeError):
        return None
    found = found[0] if isinstance(found, tuple) else found
    if any(packed.ndim != 2 or packed.shape[1] != 5 for packed in found):
        return None
    made: list[tuple[np.ndarray, ...]] = []
    for picture, (packed, (base, across)) in enumerate(zip(found, numbers, strict=True)):
        own = packed.numpy()
        ends = np.isnan(own[:, 4])
        whole = base or len(own) - int(ends[-1])
        at = np.arange(len(own))
        # Behind the whole picture come its crops as one mosaic, whose rows end in the learned vector.
        starts = np.r_[whole, np.flatnonzero(ends) + 1]
        line = np.cumsum(ends) - ends
        row = np.where(at < whole, at // across, line)
        column = np.where(at < whole, at % across, at - starts[np.minimum(line, len(starts) - 1)])
        row, column = (np.where(ends, -1, place) for place in (row, column))
        box = np.concatenate([own[:whole, :4], _spaced(own[whole:, :4])])
        tile = np.where(at < whole, 0, 1 if base else 0)
        made.append((np.full(len(own), picture), tile, row, column, box, own[:, 4] > 0))
    return _cut(*map(np.concatenate, zip(*made, strict=True)), sizes, "the model's own packing")  # type: ignore[arg-type]


def _spaced(boxes: np.ndarray) -> np.ndarray:
    """Boxes of a mosaic that may have been shrunk: about their centres, as large as the distance to the next."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    known = ~np.isnan(centre).any(1)
    size = (boxes[known, 2:] - boxes[known, :2]).mean(0) if known.any() else np.zeros(2)
    steps = []
    for axis in (0, 1):
        distinct = np.unique(np.round(centre[known, axis], 2))
        gaps = np.diff(distinct)
        gaps = gaps[gaps > 0.25 * size[axis]]
        steps.append(np.median(gaps) if len(gaps) else size[axis])
    half = np.array(steps) / 2
    return np.concatenate([centre - half, centre + half], 1)
