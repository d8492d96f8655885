"""Which patches are judged: places whose block of patches is all picture, the same for every layer and every lens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError, warn
from workbench.images.labels import PICTURES, PLACES, SIDES
from workbench.reading import Reading, derived
from workbench.variables import about, described

VARIABLES = {
    "prompt": about("prompt", role="label"),
    "position": about("position", "tokens", role="label"),
    "picture": about("picture, of all in the reading", role="label"),
    "tile": about("tile of the picture", role="label"),
    "row": about("row in the tile", role="label"),
    "column": about("column in the tile", role="label"),
    "box": about("box of the patch in the picture", "pixels", role="label"),
    "block_box": about("box of the patch and its neighbours in the picture", "pixels", role="label"),
    "picture_key": about("what the picture is; equal pictures have equal ones", role="label"),
    "side": about("side of a box", role="label"),
}
SLACK = 0.01, 0.15
"""A patch shows picture all over where its box is as wide and high as its tile's others: so much of a cell, and so many
pixels, are what boxes are known to."""


def sample(
    readings: Reading | Sequence[Reading], n: int = 100, seed: int = 0, block: int = 3, *, tile: int | None = 0
) -> Reading:
    """Patches to be judged: their block of ``block`` x ``block`` patches shows nothing but picture.

    One patch of each picture in turn, until there are ``n``.  Which they are depends on the pictures and the seed: not
    on the order of prompts, on layers or lenses, nor on what was drawn before.  So all layers and lenses that are
    compared have the same patches.  (In the published scripts a generator runs on from layer to layer, so that each is
    judged on other patches.)

    Parameters
    ----------
    readings
        A reading of prompts with pictures, or the readings of several lenses from one pass.
    n
        How many.  Fewer, with a warning, where there are no more.
    seed
        Another one gives other patches.
    block
        Patches on a side of the block, odd.
    tile
        0: the whole picture; 1, 2, ...: that crop; None: any.  A block is of one tile.

    Returns
    -------
    Reading
        [patch]: prompt, position, picture, tile, row, column, picture_key; box and block_box [patch, side], in pixels
        of the original picture, as exact as the reading has them (cells of 512 / 27 pixels, say).

    Raises
    ------
    InputError
        For readings without pictures or of other places than the first, and where no block is all picture.

    Examples
    --------
    >>> patches = judge.sample(readings, n=100)                                           # doctest: +SKIP
    >>> found = judge.judge(readings, judge.Captions(), patches=patches, captions=texts)  # doctest: +SKIP
    """
    every = [readings] if isinstance(readings, Reading) else list(readings)
    if not every:
        raise InputError("There is no reading to sample patches of. Give one or more.")
    data = same_places(every)
    if n < 1 or block < 1 or block % 2 == 0:
        raise InputError(f"n={n}, block={block}: n is 1 or more, and block odd (3: the patch and those around it).")
    keys = picture_keys(data)
    own = {
        picture: sorted(
            _blocks(data, picture, block, tile), key=lambda place, key=key: _drawn(seed, key, *place[1:4])
        )
        for picture, key in enumerate(keys)
    }
    order = sorted(own, key=lambda i: (_drawn(seed, keys[i]), _told(data, i)))
    chosen = [(picture, own[picture][turn]) for turn in range(n) for picture in order if turn < len(own[picture])]
    if not chosen:
        raise InputError(
            f"No patch has {block} x {block} patches that show nothing but picture"
            f"{'' if tile is None else f' in tile {tile}'}. The pictures' grids are {_grids(data)}. Choose a smaller "
            "block=, or another tile= (None: any)."
        )
    if len(chosen) < n:
        warn(f"{n} patches were asked for, and {len(chosen)} have a block that shows nothing but picture: these it is.")
    return _reading(chosen[:n], data, keys, every[0], {"n": n, "seed": seed, "block": block, "tile": tile})


def _reading(
    chosen: list[tuple[int, tuple[int, int, int, int, np.ndarray, np.ndarray]]], data: xr.Dataset, keys: list[str],
    source: Reading, asked: dict[str, Any],
) -> Reading:  # fmt: skip
    columns = {
        name: ("patch", np.array([place[i] for _, place in chosen]))
        for i, name in enumerate(("position", "tile", "row", "column"))
    }
    columns |= {
        "picture": ("patch", np.array([picture for picture, _ in chosen])),
        "prompt": ("patch", np.array([int(data["picture_prompt"].values[picture]) for picture, _ in chosen])),
        "picture_key": ("patch", np.array([keys[picture] for picture, _ in chosen], object)),
        "box": (("patch", "side"), np.stack([place[4] for _, place in chosen])),
        "block_box": (("patch", "side"), np.stack([place[5] for _, place in chosen])),
    }
    found = xr.Dataset({name: columns[name] for name in VARIABLES if name in columns}, {"side": list(SIDES)})
    found.attrs = {"reader": "judge.sample", **{k: v for k, v in asked.items() if v is not None}}
    return derived("judge.sample", described(found, VARIABLES), Reading(xr.Dataset(), source.provenance), **asked)


def same_places(readings: Sequence[Reading]) -> xr.Dataset:
    """The dataset of the first; InputError where readings have no pictures, or other tokens at some place."""
    first = readings[0].data
    for reading in readings:
        if lacks := [name for name in (*PLACES, *PICTURES) if name not in reading.data.variables]:
            raise InputError(
                f"The reading of {reading.data.attrs.get('reader', '?')} has no {', '.join(lacks)}, so nothing says "
                "which token shows what. Read prompts with pictures: "
                'workbench.read(model, {"text": "<image> ...", "images": picture}, ...).'
            )
        for name in (*PLACES, "picture_data"):
            one, other = first[name].values, reading.data[name].values
            if one.shape != other.shape or not _equal(one, other):
                raise InputError(
                    f"{name} differs between the readings of {first.attrs.get('reader', '?')} and "
                    f"{reading.data.attrs.get('reader', '?')}: they are of other prompts, pictures or models. Judge "
                    "readings of one pass together, and others apart."
                )
    prompts = first["picture_prompt"].values
    if len(prompts) and prompts.max() >= first.sizes["prompt"]:
        raise InputError(
            f"The reading has {first.sizes['prompt']} prompts and a picture of prompt {prompts.max()}: it is a part of "
            "another, in which prompts were numbered otherwise. Choose prompts with reading.isel(prompt=...)."
        )
    return first


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def picture_keys(data: xr.Dataset) -> list[str]:
    """[picture] a digest of each picture: of its size and its thumbnail."""
    columns = zip(*(data[name].values for name in PICTURES[2:]), strict=True)
    return [hashlib.blake2b(f"{w} {h} {text}".encode(), digest_size=8).hexdigest() for w, h, text in columns]


def _told(data: xr.Dataset, picture: int) -> tuple[str, int]:
    """What tells equal pictures apart, wherever they stand: the text of their prompt and their place in it."""
    prompt = int(data["picture_prompt"].values[picture])
    text = str(data["prompt_text"].values[prompt]) if "prompt_text" in data else ""
    return text, int(data["picture_image"].values[picture])


def _drawn(seed: int, key: str, *place: Any) -> str:
    """A number that a generator of this seed would give to a place, whatever else is drawn."""
    said = f"{seed} {key} {' '.join(str(int(x)) for x in place)}"
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def tokens_of(data: xr.Dataset, picture: int) -> np.ndarray:
    """Slots on the position axis of the tokens that show a part of a picture."""
    prompt, image = (int(data[name].values[picture]) for name in ("picture_prompt", "picture_image"))
    kind, which = data["kind"].values[prompt].astype(str), data["image"].values[prompt]
    shows = (kind == "image") & (which == image) & np.isfinite(boxes(data)[prompt]).all(-1)
    return np.flatnonzero(shows)


def boxes(data: xr.Dataset) -> np.ndarray:
    """[prompt, position, side]"""
    return data["box"].transpose("prompt", "position", "side").values.astype(float)


def _blocks(data: xr.Dataset, picture: int, block: int, tile: int | None) -> Iterator[Any]:
    """(position, tile, row, column, box, box of the block) of the centres of whole blocks."""
    slots = tokens_of(data, picture)
    prompt = int(data["picture_prompt"].values[picture])
    size = [float(data[name].values[picture]) for name in ("picture_width", "picture_height")]
    own = boxes(data)[prompt][slots]
    tiles, rows, columns = (data[name].values[prompt][slots].astype(int) for name in ("tile", "row", "column"))
    for one in np.unique(tiles if tile is None else tiles[tiles == tile]):
        here = np.flatnonzero(tiles == one)
        whole = here[_whole(own[here], size) & (rows[here] >= 0) & (columns[here] >= 0)]
        if not len(whole):
            continue
        at = np.full((rows[whole].max() + 1, columns[whole].max() + 1), -1)
        at[rows[whole], columns[whole]] = whole
        if min(at.shape) < block:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(at, (block, block))
        for r, c in np.argwhere((windows >= 0).all((2, 3))):
            among, centre = own[windows[r, c].ravel()], at[r + block // 2, c + block // 2]
            around = np.concatenate([among[:, :2].min(0), among[:, 2:].max(0)])
            yield int(slots[centre]), int(one), int(rows[centre]), int(columns[centre]), own[centre], around


def _whole(box: np.ndarray, size: list[float]) -> np.ndarray:
    """[cell] which boxes of a tile show picture all over: as large as the others, and nowhere beyond its edge."""
    extent = box[:, 2:] - box[:, :2]
    cell = np.median(extent, axis=0)
    slack = SLACK[0] * cell + SLACK[1]
    inside = (box[:, :2] >= -slack).all(1) & (box[:, 2:] <= np.array(size) + slack).all(1)
    return np.asarray(inside & (extent >= cell - slack).all(1))


def _grids(data: xr.Dataset) -> str:
    """Rows x columns of the pictures' tiles, in words."""
    found: dict[str, set[str]] = {}
    for picture in range(data.sizes["picture"]):
        prompt, slots = int(data["picture_prompt"].values[picture]), tokens_of(data, picture)
        for tile in np.unique(data["tile"].values[prompt][slots]):
            here = slots[data["tile"].values[prompt][slots] == tile]
            rows, columns = (data[name].values[prompt][here] for name in ("row", "column"))
            grid = f"{len(np.unique(rows))} x {len(np.unique(columns))}" if rows.max() >= 0 else "without places"
            found.setdefault("crops" if tile else "tile 0", set()).add(grid)
    return "; ".join(f"{what}: {', '.join(sorted(own))}" for what, own in found.items()) or "without any token"
