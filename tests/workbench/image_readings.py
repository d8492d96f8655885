"""Readings of prompts with pictures, made up for tests of the views: laid out as readings are, with contents to see.

A prompt is a list of texts (one token each) and of :class:`Seen` pictures, whose visual tokens stand where the picture
stands.  What the lenses "find" at a patch goes by the colour that is painted there, clearer at deeper layers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image, ImageDraw
from synthetic import HOSTILE

from lenses import embedding, logit
from lenses.latent import lens as latent
from workbench import readers
from workbench.variables import about, described

SIDES = ("left", "top", "right", "bottom")
PAINTED = {" sky": (120, 170, 230), " grass": (70, 150, 60), " sun": (250, 210, 60), " car": (200, 40, 40)}
NOISE = [" the", " of", "s", " and", ",", " photo", "日", " Paris", *HOSTILE[:6]]
VOCAB = [*PAINTED, *NOISE, "<image>", "Describe", " this", " image", "."]
SENTENCES = {
    " sky": ("The sky above the field is blue.", 3), " grass": ("A dog runs in green grass.", 20),
    " sun": ("The sun sets; sun and sea.", 14), " car": ("A red car, a car of a child.", 13),
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A picture in a prompt: its pixels, and the grids of tokens that it is cut into.

    tiles    (rows, columns, left, top, right, bottom): the part of the picture that each grid lies over; where the
             part is larger than the picture, the tokens beyond it are padding
    newline  a token behind each row of a crop (a tile after the first), as of LLaVA-NeXT
    loose    so many tokens without a grid, as of a resampler: each shows all of the picture
    """

    image: Image.Image
    tiles: Sequence[tuple[int, int, float, float, float, float]] = ()
    newline: bool = False
    loose: int = 0


def painted(width: int = 320, height: int = 240) -> Image.Image:
    """Sky over grass, the sun at the upper left, a car at the lower right."""
    image = Image.new("RGB", (width, height), PAINTED[" sky"])
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height // 2, width, height), fill=PAINTED[" grass"])
    draw.ellipse((0.05 * width, 0.05 * height, 0.3 * width, 0.4 * height), fill=PAINTED[" sun"])
    draw.rectangle((0.6 * width, 0.6 * height, 0.92 * width, 0.85 * height), fill=PAINTED[" car"])
    return image


def squashed(rows: int = 6, columns: int = 8, image: Image.Image | None = None) -> Seen:
    image = image or painted()
    return Seen(image, [(rows, columns, 0, 0, *image.size)])


def padded(side: int = 6) -> Seen:
    """A wide picture in a square of black."""
    image = painted(300, 200)
    return Seen(image, [(side, side, 0, -50, 300, 250)])


def cropped(side: int = 4) -> Seen:
    """The whole picture, and its four quarters, each row of which ends in a newline token."""
    image = painted(400, 300)
    quarters = [(side, side, x, y, x + 200, y + 150) for y in (0, 150) for x in (0, 200)]
    return Seen(image, [(side, side, 0, 0, 400, 300), *quarters], newline=True)


ASK = ["Describe", " this", " image", "."]
PROMPTS: list[list[str | Seen]] = [
    [squashed(), *ASK], [padded(), *ASK], [squashed(4, 4), " and", squashed(3, 5), *ASK], [cropped(), *ASK],
]  # fmt: skip


def thumbnail(image: Image.Image, most: int = 336) -> str:
    small, out = image.convert("RGB"), io.BytesIO()
    small.thumbnail((most, most))
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _cells(seen: Seen) -> list[tuple[str, int, int, int, tuple[float, ...]]]:
    """(kind, tile, row, column, box) of each visual token of a picture."""
    width, height = seen.image.size
    found: list[tuple[str, int, int, int, tuple[float, ...]]] = []
    for tile, (rows, columns, x0, y0, x1, y1) in enumerate(seen.tiles):
        wide, tall = (x1 - x0) / columns, (y1 - y0) / rows
        for r in range(rows):
            for c in range(columns):
                left, top = max(0, x0 + c * wide), max(0, y0 + r * tall)
                right, bottom = min(width, x0 + (c + 1) * wide), min(height, y0 + (r + 1) * tall)
                there = right > left and bottom > top
                box = (left, top, right, bottom) if there else (np.nan,) * 4
                found.append(("image" if there else "padding", tile, r, c, box))
            if seen.newline and tile:
                found.append(("padding", tile, -1, -1, (np.nan,) * 4))
    return found + [("image", 0, -1, -1, (0.0, 0.0, float(width), float(height)))] * seen.loose


def _under(image: Image.Image, box: tuple[float, ...]) -> int:
    """The word of VOCAB that is painted at the middle of a box; -1 for none."""
    if not np.isfinite(box).all():
        return -1
    pixel = np.array(image.getpixel((int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2))), int)
    far = [np.abs(pixel - np.array(colour)).sum() for colour in PAINTED.values()]
    return int(np.argmin(far))


def context(prompts: Sequence[Sequence[str | Seen]]) -> tuple[xr.Dataset, np.ndarray]:
    """Tokens, places and pictures of the prompts, and [prompt, position] the word painted at each place (-1: none)."""
    rows: list[list[tuple]] = []
    pictures = []
    for p, prompt in enumerate(prompts):
        row, n = [], 0
        for part in prompt:
            if isinstance(part, str):
                row.append((part, "text", -1, -1, -1, -1, (np.nan,) * 4, -1))
                continue
            for kind, tile, r, c, box in _cells(part):
                row.append(("<image>", kind, n, tile, r, c, box, _under(part.image, box)))
            pictures.append((p, n, *part.image.size, thumbnail(part.image)))
            n += 1
        rows.append(row)
    width = max(map(len, rows))
    none = ("", "padding", -1, -1, -1, -1, (np.nan,) * 4, -1)
    whole = [row + [none] * (width - len(row)) for row in rows]
    token, kind, image, tile, r, c, box, word = (list(zip(*row, strict=True)) for row in zip(*map(tuple, (
        zip(*row, strict=True) for row in whole)), strict=True))  # fmt: skip
    token = np.array(token, object).T
    two = ("prompt", "position")
    ids = np.array([[VOCAB.index(t) if t else -1 for t in row] for row in token], "int32")
    seen = [list(own) for own in zip(*pictures, strict=True)] or [[]] * 5
    data = xr.Dataset(
        {
            "input_id": (two, ids), "input_token": (two, token),
            "input_position": (two, np.where(ids >= 0, np.arange(width), -1).astype("int32")),
            "prompt_text": ("prompt", np.array(
                ["".join("<image>" if isinstance(t, Seen) else t for t in row) for row in prompts], object)),
            "vocab_token": ("vocab", np.array(VOCAB, object)),
            "picture_prompt": ("picture", np.array(seen[0], int)), "picture_image": ("picture", np.array(seen[1], int)),
            "picture_width": ("picture", np.array(seen[2], int)),
            "picture_height": ("picture", np.array(seen[3], int)),
            "picture_data": ("picture", np.array(seen[4], object)),
        },
        {
            "prompt": range(len(prompts)), "position": range(width), "vocab": range(len(VOCAB)), "side": list(SIDES),
            "kind": (two, np.array(kind, object).T), "image": (two, np.array(image).T),
            "tile": (two, np.array(tile).T), "row": (two, np.array(r).T), "column": (two, np.array(c).T),
            "box": ((*two, "side"), np.moveaxis(np.array(box), 0, 1).astype("float32")),
        },
    )  # fmt: skip
    return data, np.array(word).T


def found(
    name: str = "LatentLens", prompts: Sequence[Sequence[str | Seen]] | None = None,
    layers: Sequence[int] = (0, 2, 4, 8), top_k: int = 5, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """A reading of LogitLens, EmbeddingLens or LatentLens over prompts with pictures."""
    rng = np.random.default_rng(seed + len(name))
    data, word = context(PROMPTS if prompts is None else prompts)
    n, width = word.shape
    dims = ("prompt", "layer", "position")
    depth = np.linspace(0, 1, len(layers))[None, :, None]
    there = data["input_id"].values >= 0
    ranked = rng.random((n, len(layers), width, len(VOCAB) - 5))
    hit = np.arange(len(VOCAB) - 5) == word[:, None, :, None]
    ranked = np.where(hit, ranked + 2 * depth[..., None] - 0.2, ranked)
    order = np.argsort(-ranked, -1)[..., :top_k].astype("int32")
    best = np.sort(ranked, -1)[..., ::-1][..., :top_k] / 3.2
    grid = np.broadcast_to(there[:, None, :], best.shape[:3])
    ids = np.where(grid[..., None], order, -1)
    score = np.where(grid[..., None], best, np.nan).astype("float32")
    sinks = np.zeros(grid.shape, bool)
    sinks[..., 0] = True
    settings = {"reader": name, "at": "resid", "model": "made-up <b>VLM</b>", "n_layers": max(layers)}
    data = data.assign_coords(layer=list(layers), rank=range(top_k)).assign_attrs(settings)
    data["token_id"] = ((*dims, "rank"), ids)
    table = dict(readers.VARIABLES)
    if name == "LogitLens":
        entropy = np.where(grid, 3 * (1 - best[..., 0]), np.nan).astype("float32")
        data["logprob"] = ((*dims, "rank"), np.log(np.clip(score, 1e-3, 1)))
        data["entropy"] = (dims, entropy)
        table |= logit.VARIABLES
    elif name == "EmbeddingLens":
        data["cosine"] = ((*dims, "rank"), score)
        data["cosine_floor_shuffled"] = ("layer", np.full(len(layers), 0.32, "float32"))
        table |= embedding.VARIABLES
    else:
        texts = [SENTENCES.get(w, (f"one {w.strip() or '?'} and two", 4)) for w in VOCAB]
        starts = np.array([s for _, s in texts])
        ends = starts + np.array([max(1, len(w.strip())) for w in VOCAB])
        data["similarity"] = ((*dims, "rank"), score)
        data["sentence"] = ((*dims, "rank"), np.where(ids < 0, "", np.array([t for t, _ in texts], object)[ids]))
        data["char_start"], data["char_end"] = ((*dims, "rank"), starts[ids]), ((*dims, "rank"), ends[ids])
        near = np.clip(np.arange(len(layers))[None, :, None, None] + rng.integers(0, 2, ids.shape), 0, len(layers) - 1)
        data["index_layer"] = ((*dims, "rank"), np.where(ids < 0, -1, np.array(layers)[near]).astype("int32"))
        data["norm"] = (dims, np.where(grid, 5 + 40 * sinks + rng.random(grid.shape), np.nan).astype("float32"))
        data["sink"] = (dims, sinks)
        data["similarity_p"] = (dims, np.where(grid, 1 - best[..., 0], np.nan).astype("float32"))
        for floor, height in (("random", 0.3), ("shuffled", 0.34)):
            data[f"similarity_floor_{floor}"] = ("layer", np.full(len(layers), height, "float32"))
        data = data.assign_coords(index=list(layers))
        for share in ("index_layer_share", "index_layer_share_image"):
            for null in ("", "_null"):
                made = rng.random((len(layers), len(layers))) ** 2 + 2 * np.eye(len(layers)) * (not null)
                data[share + null] = (("layer", "index"), made / made.sum(1, keepdims=True))
        table |= latent.VARIABLES | {
            "norm": about("length of the state", "stream units"),
            "index_layer_share_image": about("share of the neighbours of image positions from an index layer",
                                             short_name="share at image positions"),
            "index_layer_share_image_null": about("share of the neighbours of shuffled patches", role="null",
                                                  of="index_layer_share_image", short_name="shuffled patches"),
        }  # fmt: skip
    return described(data, table)
