"""Readings of pictures whose every cell is known: a mosaic of coloured squares, and lenses that name them or do not."""

from __future__ import annotations

import base64
import io

import numpy as np
import xarray as xr
from PIL import Image

from lenses.judge import Verdict
from workbench.reading import Reading
from workbench.variables import about, described

COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "yellow": (240, 220, 40),
    "white": (250, 250, 250), "black": (10, 10, 10), "purple": (140, 40, 160), "orange": (250, 140, 20),
}  # fmt: skip
NAMES = list(COLOURS)
NONSENSE = [f"w{i}x" for i in range(200)]
CELL = 16
TEXT = 2
"""Text tokens before and behind a picture's."""


def mosaic(cells: np.ndarray, cell: tuple[int, int] = (CELL, CELL)) -> Image.Image:
    """The picture of a table of colours (numbers of ``NAMES``); ``cell``: width and height."""
    shades = np.array([COLOURS[name] for name in NAMES], np.uint8)[cells]
    return Image.fromarray(shades.repeat(cell[1], 0).repeat(cell[0], 1))


def uri(picture: Image.Image) -> str:
    kept = io.BytesIO()
    picture.save(kept, "PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def tables(pictures: int, grid: tuple[int, int] = (5, 7), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(len(NAMES), size=(pictures, *grid)))


def reading(
    cells: list[np.ndarray], *, words=None, share=(1.0,), lens="LatentLens", top_k=5, seed=0, padded=(), boxes=None,
    sizes=None, cell=(CELL, CELL), tiles=None,
) -> Reading:  # fmt: skip
    """What a lens gives for prompts with one mosaic each.

    words       (picture, layer, row, column) -> texts in order of rank; None: with probability ``share[layer]`` the
                cell's colour among nonsense, else nonsense alone
    padded      rows of the grid whose tokens are padding
    boxes       (picture, tile, row, column) -> box in pixels; None: of squares of ``cell``
    tiles       (picture) -> tables of the crops behind the whole picture
    """
    rng = np.random.default_rng(seed)
    tiles = tiles or (lambda picture: [])
    every = [[own, *tiles(p)] for p, own in enumerate(cells)]
    width = 2 * TEXT + max(sum(t.size for t in own) for own in every)
    shape = (len(cells), width)
    found = {
        "kind": np.full(shape, "padding", object), "image": np.full(shape, -1), "tile": np.full(shape, -1),
        "row": np.full(shape, -1), "column": np.full(shape, -1), "input_id": np.full(shape, -1),
    }  # fmt: skip
    box = np.full((*shape, 4), np.nan, np.float32)
    ranks = np.full((len(cells), len(share), width, top_k), "", object)
    for p, own in enumerate(every):
        slot = TEXT
        found["kind"][p, :TEXT] = "text"
        for t, table in enumerate(own):
            for r, c in np.ndindex(*table.shape):
                found["kind"][p, slot] = "padding" if t == 0 and r in padded else "image"
                for name, value in (("image", 0), ("tile", t), ("row", r), ("column", c), ("input_id", 9)):
                    found[name][p, slot] = value
                at = (c * cell[0], r * cell[1], (c + 1) * cell[0], (r + 1) * cell[1])
                box[p, slot] = at if boxes is None else boxes(p, t, r, c)
                for layer, how in enumerate(share):
                    if words is not None:
                        texts = words(p, layer, r, c)
                    else:
                        texts = rng.choice(NONSENSE, top_k, replace=False).tolist()
                        if rng.random() < how:
                            texts[rng.integers(top_k)] = NAMES[table[r, c]]
                    ranks[p, layer, slot, : len(texts)] = texts
                slot += 1
        found["kind"][p, slot : slot + TEXT] = "text"
        found["input_id"][p, [*range(TEXT), *range(slot, slot + TEXT)]] = 1
    places, dims = ("prompt", "position"), ("prompt", "layer", "position", "rank")
    data = xr.Dataset({name: (places, values) for name, values in found.items()})
    data["box"] = (*places, "side"), box
    sizes = sizes or [(own.shape[1] * cell[0], own.shape[0] * cell[1]) for own in cells]
    pictures = [mosaic(own, cell) for own in cells]
    data = data.assign(
        prompt_text=("prompt", np.array(["<image> what"] * len(cells), object)),
        picture_prompt=("picture", np.arange(len(cells))), picture_image=("picture", np.zeros(len(cells), int)),
        picture_width=("picture", np.array([w for w, _ in sizes])),
        picture_height=("picture", np.array([h for _, h in sizes])),
        picture_data=("picture", np.array([uri(own) for own in pictures], object)),
    ).assign_coords(layer=range(len(share)), side=["left", "top", "right", "bottom"])  # fmt: skip
    if lens == "LatentLens":
        data["word"] = dims, ranks
    else:
        texts = sorted(set(ranks.ravel().tolist()) - {""})
        ids = {text: 100 + i for i, text in enumerate(texts)}
        data["token_id"] = dims, np.vectorize(lambda text: ids.get(text, -1))(ranks).astype(int)
        data = data.assign_coords(vocab=list(ids.values()))
        data["vocab_token"] = "vocab", np.array(texts, object)
    data.attrs = {"reader": lens, "model": "mosaic"}
    labels = {name: about(name, role="label") for name in data.data_vars}
    return Reading(described(data, labels), {"model": {"name": "mosaic"}})


class Sees:
    """A judge that knows colours: a word fits if a cell of the close-up has its colour."""

    def __init__(self, name: str = "sees", block: int = 3) -> None:
        self.name, self.block, self.asked = name, block, []

    def __call__(self, question) -> Verdict:
        self.asked.append(question)
        crop = np.asarray(question.crop).astype(int)
        at = [((np.arange(self.block) + 0.5) * n / self.block).astype(int) for n in crop.shape[:2]]
        seen = crop[np.ix_(*at)].reshape(-1, 3)
        there = {
            NAMES[int(np.abs(np.array(list(COLOURS.values())) - pixel).sum(1).argmin())] for pixel in seen
        }
        return Verdict(concrete=tuple(word for word in question.words if word in there))


class Says:
    """A judge that answers by rule, without looking."""

    def __init__(self, rule, name: str = "says") -> None:
        self.rule, self.name, self.asked = rule, name, []

    def __call__(self, question) -> Verdict:
        self.asked.append(question)
        return self.rule(question)


def yes(question) -> Verdict:
    return Verdict(concrete=question.words[:1])
