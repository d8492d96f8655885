"""What a reading says of the pictures in its prompts: labels of positions, and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Prompt

SIDES = ("left", "top", "right", "bottom")
PLACES = ("kind", "image", "tile", "row", "column", "box")
"""What a reading says of each position of a prompt with pictures."""
PICTURES = ("picture_prompt", "picture_image", "picture_width", "picture_height", "picture_data")
"""What it says of each picture."""
VARIABLES = {
    "kind": about("what a position holds: text, image, or padding", role="label", of="input_id"),
    "image": about("which picture of the prompt", role="label", of="input_id"),
    "tile": about("0: the whole picture; crops of it count from 1", role="label", of="input_id"),
    "row": about("row in the grid of the tile's tokens", role="label", of="input_id"),
    "column": about("column in the grid of the tile's tokens", role="label", of="input_id"),
    "box": about("part of the picture that a token shows", "pixels", role="label", of="input_id"),
    "side": about("side of a box", role="label", of="box"),
    "picture_prompt": about("place of the picture's prompt on the axis of prompts", role="label", of="picture"),
    "picture_image": about("which picture of its prompt", role="label", of="picture"),
    "picture_width": about("width of the original", "pixels", role="label", of="picture"),
    "picture_height": about("height of the original", "pixels", role="label", of="picture"),
    "picture_data": about("thumbnail, a JPEG as a data URI", role="label", of="picture"),
}


def labels(prompts: Sequence[Prompt], slots: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates of a reading of these prompts, of which each has at most so many positions.

    Returns
    -------
    The pictures, over the dimension picture; and the labels kind, image, tile, row, column [prompt, position] and box
    [prompt, position, side].  Both empty where no prompt has a picture; no pictures where only a processor's output was
    given.
    """
    if not any(prompt.visual is not None for prompt in prompts):
        return {}, {}
    shape = (len(prompts), slots)
    kind = np.full(shape, "padding", dtype=object)
    numbers = {name: np.full(shape, -1, np.int32) for name in ("image", "tile", "row", "column")}
    box = np.full((*shape, len(SIDES)), np.nan, np.float32)
    pictures = []
    for i, prompt in enumerate(prompts):
        read = np.asarray(prompt.positions, int)
        kind[i, : len(read)] = "text"
        visual = prompt.visual
        if visual is None:
            continue
        pictures += [(i, number, picture) for number, picture in enumerate(visual.pictures)]
        token = {int(position): k for k, position in enumerate(visual.at)}
        found = [(s, token[p]) for s, p in enumerate(read.tolist()) if p in token]
        slot, own = np.array(found, int).reshape(-1, 2).T
        places = visual.places
        kind[i, slot] = np.where(places.shows[own], "image", "padding")
        for name, values in numbers.items():
            values[i, slot] = getattr(places, name)[own]
        box[i, slot] = places.box[own]
    cells = ("prompt", "position")
    coords = {"kind": (cells, kind), **{name: (cells, values) for name, values in numbers.items()}}
    coords |= {"box": ((*cells, "side"), box), "side": list(SIDES)}
    if not pictures:  # of what a processor gave
        return {}, coords
    variables = {
        "picture_prompt": ("picture", np.array([i for i, *_ in pictures], np.int32)),
        "picture_image": ("picture", np.array([number for _, number, _ in pictures], np.int32)),
        "picture_width": ("picture", np.array([p.width for *_, p in pictures], np.int32)),
        "picture_height": ("picture", np.array([p.height for *_, p in pictures], np.int32)),
        "picture_data": ("picture", np.array([p.thumbnail for *_, p in pictures], dtype=object)),
    }
    return variables, {**coords, "picture": np.arange(len(pictures))}
