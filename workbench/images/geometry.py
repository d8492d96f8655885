"""Which part of a picture each number that a processor makes was read from, found without knowing the processor.

Pictures whose brightness is a place are passed through it, all of the size in question: black and white tell what each
number makes of 0 and 255 (and, where both give the same, that it shows no part of the picture: padding); a ramp from
left to right then gives its x, one from top to bottom its y, and a grey of its own for each picture tells which of
several it is from.  Whatever a processor does to place things, crops, pads, scales, cuts into tiles or patches, comes
out as one affine map for each tile.  What is no affine map is refused.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.errors import Refused

Size = tuple[int, int]
"""Width and height of a picture."""
LEVEL = 1.0
"""Ramps are of 255 steps: an entry is known to about one."""
ORDINARY = 0.6
"""Share of the entries of a tile that must lie on the fitted map; those at edges, where resizing invents, need not."""
MOST_MERGED = 8
"""Patches along one side of a block that becomes one token, at most."""
LEAST = 4
"""Pixels that a side of a picture must have, to have places."""


class Unplaced(Refused):
    """No map from the picture to what the vision tower sees is found; the states are the model's all the same."""


@dataclass(frozen=True)
class Tile:
    """One image that the vision tower sees: a whole picture, or a crop of it.

    Attributes
    ----------
    key
        Which of the processor's outputs it is in.
    index
        Which image of that output it is.
    picture
        Of the prompt.
    height, width
        In units of its own: pixels of [channels, height, width], or patches where the processor cuts into patches.
    patches
        Whether the units are patches.
    used
        (height, width) of the part, from its upper left corner, that shows the picture; behind it a tile may be filled
        up to the size of others.
    x, y
        ``(scale, offset)``: the place ``scale * u + offset`` in the original picture of a place u in the tile.
    shown
        [height, width] which of its units show a part of the picture; the others are padding.
    order
        [height, width] number of each patch in the processor's output; None for pixels.
    """

    key: str
    index: tuple[int, ...]
    picture: int
    height: int
    width: int
    patches: bool
    used: tuple[int, int]
    x: tuple[float, float]
    y: tuple[float, float]
    shown: np.ndarray
    order: np.ndarray | None = None

    def box(self, left: Any, top: Any, right: Any, bottom: Any) -> np.ndarray:
        """[..., 4] left, top, right, bottom in the original picture of a rectangle in the tile."""
        (ax, bx), (ay, by) = self.x, self.y
        return np.stack(np.broadcast_arrays(ax * left + bx, ay * top + by, ax * right + bx, ay * bottom + by), -1)


def tiles(process: Callable[[list[Any]], Mapping[str, Any]], sizes: Sequence[Size]) -> list[Tile]:
    """The tiles that a processor makes of pictures of these sizes, in the order of its output.

    Parameters
    ----------
    process
        Gives the processor's output for as many pictures.

    Raises
    ------
    Refused
        Where the map from picture to output is no affine one for each tile.
    """
    if min(min(size) for size in sizes) < LEAST:
        raise Unplaced(f"A picture with a side of less than {LEAST} pixels has no places that could be told apart.")
    made = [process(painted) for painted in _painted(sizes)]
    black, white, across, down, *own = map(_numbers, made)
    found: list[Tile] = []
    for key, low in black.items():
        high = white.get(key)
        if high is None or high.shape != low.shape:
            raise Unplaced(f"The processor gives {key} other shapes for pictures of equal size: it has no fixed map.")
        span = high - low
        typical = np.abs(span).max(initial=0)
        if not typical:
            continue
        # An entry that is more padding than picture says no place.
        scale = np.where(np.abs(span) > 0.5 * typical, span, np.nan)
        places = [(one[key] - low) / scale for one in (across, down, *own)]
        grids = _grids(low.shape, made[0])
        for i, (index, form) in enumerate(_parts(key, low.shape)):
            found += _tiles_of(key, index, form, grids[i] if grids else [], places, sizes)
    if not found:
        raise Unplaced("Nothing that the processor gives depends on the picture.")
    return _slivers_scaled(found)


def _slivers_scaled(found: list[Tile]) -> list[Tile]:
    """Tiles that show too little of the picture to say its scale have that of the others in the same output."""

    def known(line: str, tile: Tile) -> list[float]:
        near = [t for t in found if (t.key, t.picture) == (tile.key, tile.picture)]
        return [getattr(t, line)[0] for t in near if not math.isnan(getattr(t, line)[0])]

    for i, tile in enumerate(found):
        for line, size in (("x", tile.width), ("y", tile.height)):
            scale, middle = getattr(tile, line)
            if math.isnan(scale):
                others = known(line, tile)
                if not others:
                    raise Unplaced("The picture is too small to say where what the processor gives comes from.")
                # Where in the tile the sliver lies is not told: its place is that of all of the tile.
                scale = float(np.median(others))
                found[i] = tile = replace(tile, **{line: (scale, middle - scale * size / 2)})
    return found


def _painted(sizes: Sequence[Size]) -> Iterator[list[Any]]:
    from PIL import Image

    def ramp(size: Size, axis: int) -> Image.Image:
        # Dithered: rounded up or down in turn, so that means over rows and columns are finer than one of 255 steps.
        width, height = size
        column, row = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
        rises = (column + 0.5) / width if axis == 0 else (row + 0.5) / height
        grey = 255 * rises + (row * 0.6180340 + column * 0.7548777) % 1
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")

    yield [Image.new("RGB", s, "black") for s in sizes]
    yield [Image.new("RGB", s, "white") for s in sizes]
    yield [ramp(s, 0) for s in sizes]
    yield [ramp(s, 1) for s in sizes]
    if len(sizes) > 1:
        yield [Image.new("RGB", s, (round(255 * (i + 1) / (len(sizes) + 1)),) * 3) for i, s in enumerate(sizes)]


def _numbers(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The floating-point outputs as arrays; lists of tensors of several sizes one by one."""
    found: dict[str, np.ndarray] = {}

    def take(key: str, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for i, one in enumerate(value):
                take(f"{key}.{i}", one)
        elif hasattr(value, "is_floating_point"):
            if value.is_floating_point() and value.ndim >= 2:
                found[key] = _cut_up(value.detach().float().cpu().numpy(), given)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim >= 2:
            found[key] = _cut_up(value.astype(np.float32), given)

    for key, value in given.items():
        take(key, value)
    return found


def _cut_up(values: np.ndarray, given: Mapping[str, Any]) -> np.ndarray:
    """Patches in a row, [1, channels, side, patches * side], or each an image of its own, as [patches, numbers]."""
    count = sum(h * w for h, w in _sides(given))
    if values.ndim == 4 and count and values.shape == (1, 3, values.shape[2], count * values.shape[2]):
        return np.moveaxis(values[0].reshape(3, values.shape[2], count, -1), 2, 0).reshape(count, -1)
    return values.reshape(count, -1) if values.ndim == 4 and values.shape[:2] == (count, 3) else values


def _sides(given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of patches of each tile, where a processor says them."""
    for name in ("image_grid_thw", "target_sizes"):
        if name in given:
            return [(int(h), int(w)) for *_, h, w in np.asarray(given[name]).reshape(-1, 3 if "thw" in name else 2)]
    return []


def _grids(shape: tuple[int, ...], given: Mapping[str, Any]) -> list[list[tuple[int, int]]]:
    """The same for each batch of patches in one output; [] where they are not told."""
    sides = _sides(given)
    if len(shape) == 2 and sum(h * w for h, w in sides) == shape[0]:
        return [sides]
    if len(shape) == 3 and "spatial_shapes" in given:  # each filled up to the same number of patches
        shapes = [(int(h), int(w)) for h, w in np.asarray(given["spatial_shapes"]).reshape(-1, 2)]
        return [[one] for one in shapes] if len(shapes) == shape[0] else []
    return []


def _parts(key: str, shape: tuple[int, ...]) -> Iterator[tuple[Any, str]]:
    """Index and form of each image, or batch of patches, in an output: "chw", "hwc" or "patches"."""
    # Only what is one of a list has no axis for the pictures: [3, n, m] of a tensor are three batches of patches.
    form, rest = "patches", shape[:-2]
    if len(shape) > 3 or (len(shape) == 3 and "." in key):
        one, two, three = shape[-3:]
        if one == 3 and min(two, three) > 4:
            form, rest = "chw", shape[:-3]
        elif three == 3 and min(one, two) > 4:
            form, rest = "hwc", shape[:-3]
    for index in itertools.product(*map(range, rest)):
        yield index, form


def _tiles_of(
    key: str, index: Any, form: str, grids: list[tuple[int, int]], places: list[np.ndarray], sizes: Sequence[Size]
) -> list[Tile]:
    axis = {"chw": 0, "hwc": -1, "patches": -1}[form]
    shown = ~np.isnan(places[0][index]).all(axis)
    # NaN where less than all of it shows a place.
    x, y, *which = (values[index].mean(axis, dtype=np.float64) for values in places)
    known = np.where(shown, 0.0, np.nan)
    if which:
        own = places[2][index]
        sums, counts = np.nansum(own, axis), np.maximum((~np.isnan(own)).sum(axis), 1)
        known = np.where(shown, np.round(sums / counts * (len(sizes) + 1)) - 1, np.nan)
    if not shown.any():
        return []  # all padding: a tile that is there to fill a batch

    def most(values: np.ndarray) -> int:
        return int(np.median(values[~np.isnan(values)])) if not np.isnan(values).all() else -1

    if form != "patches":
        picture = most(known)
        return [Tile(key, index, picture, *x.shape, False, _used(x), *_maps(x, y, sizes[picture]), shown)]
    # Where a part of a patch is padding its place is that of the rest: enough to tell its row and column.
    rough = [np.nansum(v, -1) / np.maximum((~np.isnan(v)).sum(-1), 1) for v in (places[0][index], places[1][index])]
    rough = [np.where(shown, v, np.nan) for v in rough]
    made: list[Tile] = []
    start = 0
    for high, wide in grids:
        own = np.arange(start, start + high * wide)
        start += high * wide
        picture = most(known[own])
        if picture >= 0:
            grid = own[_numbered(rough[0][own], rough[1][own], high, wide)]
            made.append(_of_patches(key, index, picture, grid, x, y, shown, sizes))
    if grids:
        return made
    for picture in range(len(sizes)):
        for own in _runs(np.flatnonzero(known == picture), *rough):
            grid = own[_arranged(rough[0][own], rough[1][own], sizes[picture])]
            made.append(_of_patches(key, index, picture, grid, x, y, shown, sizes))
    return made


def _of_patches(
    key: str, index: Any, picture: int, grid: np.ndarray, x: np.ndarray, y: np.ndarray, shown: np.ndarray,
    sizes: Sequence[Size],
) -> Tile:  # fmt: skip
    lines = _maps(x[grid], y[grid], sizes[picture])
    return Tile(key, index, picture, *grid.shape, True, grid.shape, *lines, shown[grid], order=grid)


def _numbered(x: np.ndarray, y: np.ndarray, high: int, wide: int) -> np.ndarray:
    """[height, width] which patch stands where: row by row, or row by row of blocks that become one token."""

    def uneven(grid: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # rows that are padding from end to end
            return float(np.nanmean(np.nanstd(x[grid], 0)) + np.nanmean(np.nanstd(y[grid], 1)))

    ways = []
    for m in range(1, MOST_MERGED + 1):
        if high % m == 0 and wide % m == 0:
            blocks = np.arange(high * wide).reshape(high // m, wide // m, m, m)
            ways.append(blocks.transpose(0, 2, 1, 3).reshape(high, wide))
    return min(ways, key=uneven)


def _used(places: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(~np.isnan(places))
    return int(rows.max()) + 1, int(columns.max()) + 1


def _runs(rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Patches of one picture, cut where one tile ends and the next begins: where a place comes again."""
    runs: list[list[int]] = []
    seen: set[tuple[float, float]] = set()
    for row in rows:
        place = (round(float(x[row]), 4), round(float(y[row]), 4))
        if not runs or place in seen:
            runs.append([])
            seen = set()
        seen.add(place)
        runs[-1].append(row)
    return [np.array(own) for own in runs]


def _arranged(x: np.ndarray, y: np.ndarray, size: Size) -> np.ndarray:
    """[height, width] which patch stands where, by the places of their centres."""
    rows, columns = _ranks(y), _ranks(x)
    grid = np.full((rows.max() + 1, columns.max() + 1), -1)
    grid[rows, columns] = np.arange(len(x))
    if grid.size != len(x) or (grid < 0).any():
        raise Unplaced(
            f"The processor cuts a picture of {size[0]} x {size[1]} pixels into {len(x)} patches that lie on no grid "
            f"({len(grid)} rows and {grid.shape[1]} columns were seen)."
        )
    return grid


def _ranks(values: np.ndarray) -> np.ndarray:
    """Which of the distinct places each value is at, from the least."""
    order = np.argsort(values, kind="stable")
    steps = np.diff(values[order])
    widest = steps.max(initial=0)
    ranks = np.zeros(len(values), int)
    ranks[order[1:]] = np.cumsum(steps > widest / 3) if widest > 1e-6 else 0
    return ranks


def _maps(x: np.ndarray, y: np.ndarray, size: Size) -> tuple[tuple[float, float], tuple[float, float]]:
    """The affine maps of a grid [height, width] whose places are shares of the picture; in pixels of the picture."""
    found = []
    for places, n, axis in ((x, size[0], 0), (y, size[1], 1)):
        known = ~np.isnan(places)
        count = known.sum(axis)
        mean = np.where(count, np.where(known, places, 0).sum(axis) / np.maximum(count, 1), np.nan)
        some = places.compress(count > 0, 1 - axis)
        # Not from end to end: along the edge of a padding the resizing rings.
        low, high = np.nanquantile(some, [0.1, 0.9], axis=axis)
        if np.median(high - low) > max(6 / 255, 1.5 / n):
            raise Unplaced("The processor turns or shears the picture before the vision tower.")
        found.append(_line(mean, n))
    return found[0], found[1]


def _line(places: np.ndarray, n: int) -> tuple[float, float]:
    """``(scale, offset)`` in pixels, of places that are shares of n pixels, one for each unit of the grid."""
    at = np.arange(len(places)) + 0.5
    known = ~np.isnan(places)
    # Beyond the centres of the outermost pixels a resized picture is constant; resizing ripples by part of a pixel.
    near = max(1.5 * LEVEL / 255, 0.2 / n)
    inner = known & (places > 0.5 / n + near) & (places < 1 - 0.5 / n - near)
    use = inner if inner.sum() >= 2 else known
    if use.sum() < 2:
        return math.nan, float(np.nanmean(places) * n) - 0.0 * at[0]  # a sliver: scaled as its neighbours are
    for _ in range(4):
        scale, offset = np.polyfit(at[use], places[use], 1)
        on = inner & (np.abs(places - scale * at - offset) <= near)
        if on.sum() < 2 or (on == use).all():
            break
        use = on
    if inner.sum() >= 4 and (on.sum() < ORDINARY * inner.sum() or scale <= 0):
        raise Unplaced(
            "The processor does not just crop, pad and scale the picture: places in its output do not lie on a line."
        )
    return float(scale * n), float(offset * n)


__all__ = ["Size", "Tile", "Unplaced", "tiles"]
