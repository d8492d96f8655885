"""Charts of prompts with pictures: a picture with what its patches say, and patches with their words by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.figures import plot as plots
from workbench.figures.figure import drawn
from workbench.figures.plot import Axis, Cells, Panel, Picture, Plot, Thumbnails
from workbench.figures.said import hovers, ids, on_scale, prompt_title
from workbench.figures.source import Source
from workbench.variables import aimed

if TYPE_CHECKING:
    import xarray as xr

NO_COLOUR = "no colour: not above the floor"
AROUND = 1
"""How many times its own size is shown around a patch, on every side."""


@drawn
def overlay(
    data: xr.Dataset,
    prompt: int = 0,
    layer: int | str | Sequence[int | str] | None = None,
    value: str | None = None,
    *,
    picture: int = 0,
    tile: int | None = None,
    word: str | None = None,
    target: int | str | None = None,
    text: bool = True,
    floor: bool = True,
) -> Plot:
    """A picture with a colour on every patch that is above the floor, and its top token where there is room.

    layer    which layer (or block), by its number, or several, a panel each; default: the last
    value    what the colour shows: any variable over depth and position; default: the score of the top token
    picture  which picture of the prompt
    tile     0 the whole picture, 1, 2, ... its crops; default: the first that there is
    word     the colour shows the score of the first of the top tokens (or of the words that contexts end in) that holds
             this text; patches without one have no colour
    target   which target, by text or number, for variables over targets
    text     whether patches show their top token
    floor    whether patches whose value is not above the floor of its layer stay without a colour
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    own, shown, at = patches.chosen(source, prompt, picture, tile, "overlay")
    rows = [_row(source, one) for one in (layer if isinstance(layer, list | tuple) else [layer])]
    value = value or source.score or next(iter(source.values()), None)
    if value is None or not source.has(value):
        raise InputError(f"overlay(value={value!r}): this reading holds {source.grids()}. Choose one of these.")
    grid = source.grid(value, prompt, target)
    if word is not None:
        value, grid = _of_word(source, prompt, word, rows, at)
    drawn_as, ticks = on_scale(source, value, grid)
    least = source.floor(value, "image") if floor else None
    if least is not None:
        drawn_as = np.where(grid <= least[:, None], np.nan, drawn_as)  # what has no floor is shown
    there = drawn_as[np.ix_(rows, at)]
    ends = (float(np.nanmin(there, initial=np.inf)), float(np.nanmax(there, initial=-np.inf)))
    low, high = ends if np.isfinite(ends).all() else (0.0, 1.0)
    image = shown.pixels()
    boxes = own.box[at] * np.tile([image.shape[1] / shown.width, image.shape[0] / shown.height], 2)
    sinks = source.sinks(prompt)
    top = ids(source, prompt)[:, :, 0] if text and source.has("token_id") and word is None else None
    told = hovers(source, prompt, value, grid, rows, at.tolist()) if at.size * len(rows) <= plots.HOVER_CELLS else None
    panels = []
    for n, row in enumerate(rows):
        words = None if top is None else [tokens.visible(source.text(i)) if i >= 0 else "" for i in top[row, at]]
        mark = Picture(
            image, boxes, drawn_as[row, at], source.scale(value), low, high, bar=source.title(value, short=True),
            ticks=ticks, text=words, framed=sinks[row, at], hover=None if told is None else told[n],
        )  # fmt: skip
        panels.append(Panel([mark], title=f"{source.depth} {source.depths[row]}" * (len(rows) > 1)))
    said = source.title(value)
    if "target" in source.data[value].dims:
        said = aimed(said, source.aim(source.target(target, prompt), prompt))
    if word is not None:
        said = f"{said} of {tokens.visible(word)} where it is in the top {source.data.sizes['rank']}"
    of = [f"picture {picture}" * bool(own.image.max() > 0), f"tile {own.tile[at[0]]}" * (len(own.tiles(picture)) > 1)]
    where = f"{source.depth} {source.depths[rows[0]]}" * (len(rows) == 1)
    marks = [NO_COLOUR * (least is not None)]
    marks += [f"dotted frame: {source.sink_said}" * bool(sinks[np.ix_(rows, at)].any())]
    title = prompt_title(source, ", ".join(filter(None, [said, where, *of, *marks])), prompt)
    return Plot(panels, title, columns=len(panels) if len(panels) < 4 else 2 + (len(panels) > 4), shows=[value])


def _row(source: Source, layer: int | str | None) -> int:
    """The index of a depth, given by its number; of None, the last."""
    known = [str(d) for d in source.depths]
    if layer is None:
        return len(known) - 1
    if isinstance(layer, int | np.integer) and layer < 0 and -len(known) <= layer:
        return len(known) + int(layer)
    if str(layer) not in known:
        raise InputError(f"{source.depth} {layer!r} was not read. This reading holds {', '.join(known)}.")
    return known.index(str(layer))


def _of_word(source: Source, prompt: int, word: str, rows: Sequence[int], at: np.ndarray) -> tuple[str, np.ndarray]:
    """The score's name, and [depth, position] the score of the first rank that holds a word; NaN for none."""
    if not source.has("token_id") or source.score is None:
        raise InputError("overlay(word=...): this reading holds no tokens with scores. Choose a value= instead.")
    own, score = ids(source, prompt), source.data[source.score].isel(prompt=prompt)
    scores = score.transpose(source.depth, "position", "rank").values[:, source.positions(prompt)].astype(float)
    held = [int(i) for i in np.unique(own) if i >= 0 and word.lower() in source.text(i).lower()]
    hit = np.isin(own, held) | (_words(source, prompt, word) if source.has("sentence") else False)
    if not hit[np.ix_(rows, at)].any():
        used, many = np.unique(own[np.ix_(rows, at)][..., 0], return_counts=True)
        most = [tokens.visible(source.text(int(i))) for i in used[np.argsort(-many)][:8] if i >= 0]
        said = f"overlay(word={word!r}): no patch has it in its top {own.shape[2]}."
        raise InputError(f"{said} Most have {', '.join(most)}.")
    first = hit.argmax(-1)[..., None]
    return source.score, np.where(hit.any(-1), np.take_along_axis(scores, first, -1)[..., 0], np.nan)


def _words(source: Source, prompt: int, word: str) -> np.ndarray:
    """[depth, position, rank] whether the whole word that a context's token is in holds a text."""
    real, order = source.positions(prompt), (source.depth, "position", "rank")
    names = ("sentence", "char_start", "char_end")
    sentence, start, end = (source.data[n].isel(prompt=prompt).transpose(*order).values[:, real] for n in names)
    flat = zip(sentence.ravel().tolist(), start.ravel().tolist(), end.ravel().tolist(), strict=True)
    keys = [(str(text), int(a), int(b)) for text, a, b in flat]
    known = {key: word.lower() in _whole_word(*key).lower() for key in set(keys)}
    return np.reshape([known[key] for key in keys], sentence.shape)


def _whole_word(sentence: str, start: int, end: int) -> str:
    before, after = re.search(r"\w*$", sentence[:start]), re.match(r"\w*", sentence[end:])
    return (before[0] if before else "") + sentence[start:end] + (after[0] if after else "")


@drawn
def rows_of_patches(
    data: xr.Dataset,
    patch: Sequence[tuple[int, int] | int] | None = None,
    prompt: int = 0,
    *,
    picture: int = 0,
    tile: int | None = None,
    layer: Sequence[int | str] | None = None,
    top: int = 3,
) -> Plot:
    """Some patches, a row each: what is around it, and its top tokens at every layer; coloured where above the floor.

    patch    (row, column) of each, or its number along the grid; default: five at even distances
    picture  which picture of the prompt
    tile     0 the whole picture, 1, 2, ... its crops; default: the first that there is
    layer    some layers; default: all that were read
    top      how many tokens
    """
    source = Source(data)
    prompt = source.prompt(prompt)
    own, shown, at = patches.chosen(source, prompt, picture, tile, "patches")
    if not source.has("token_id") or source.score is None:
        raise InputError("patches: this reading holds no tokens with scores. Draw a value of it with overlay.")
    rows = list(range(len(source.depths))) if layer is None else [_row(source, one) for one in layer]
    if patch is None:
        chosen = at[np.unique(np.linspace(0, len(at) - 1, min(7, len(at) + 2)).round()[1:-1].astype(int))]
    else:
        chosen = np.array([_patch(own, at, one) for one in patch], int)
    top = min(max(1, top), int(source.data.sizes["rank"]))
    score = source.data[source.score].isel(prompt=prompt).transpose(source.depth, "position", "rank")
    values = score.values[:, source.positions(prompt)].astype(float)[np.ix_(rows, chosen, range(top))]
    found = ids(source, prompt)[np.ix_(rows, chosen, range(top))]
    # [layer, patch, rank] -> rows of patches and ranks, a first column for the picture
    table = np.moveaxis(values, 0, -1).reshape(len(chosen) * top, len(rows))
    words = np.vectorize(lambda i: tokens.visible(source.text(i)) if i >= 0 else "", otypes=[object])(found)
    words = np.moveaxis(words, 0, -1).reshape(table.shape)
    if (floor := source.floor(source.score, "image")) is not None:
        table = np.where(table <= floor[rows], np.nan, table)
    first = np.full((len(table), 1), np.nan)
    told = hovers(source, prompt, source.score, source.grid(source.score, prompt), rows, chosen.tolist())
    hover = [["", *(told[d][n // top] for d in range(len(rows)))] for n in range(len(table))]
    cells = Cells(
        np.hstack([first, table]), source.scale(source.score), bar=source.title(source.score, short=True),
        text=np.hstack([np.full(first.shape, "", object), words]), hover=hover,
    )  # fmt: skip
    middle, pixels = (top - 1) / 2, shown.pixels()
    crops = Thumbnails(
        [_crop(pixels, shown, own.box[i]) for i in chosen], [0] * len(chosen),
        [n * top + middle for n in range(len(chosen))],
        top,
    )  # fmt: skip
    named = [own.short(i) if r == int(middle) else "" for i in chosen for r in range(top)]
    down = Axis("row, column", names=named, reversed=True)
    across = Axis(source.depth_label, names=["", *(str(source.depths[row]) for row in rows)])
    said = [f"the top {top} at {len(chosen)} patches" + f" of picture {picture}" * bool(own.image.max() > 0)]
    said += [NO_COLOUR * (floor is not None)]
    title = prompt_title(source, ", ".join(filter(None, said)), prompt)
    return Plot([Panel([cells, crops], across, down)], title, shows=[source.score])


def _patch(own: patches.Seen, at: np.ndarray, patch: Any) -> int:
    """The position of a patch that is named by row and column, or by its number."""
    if isinstance(patch, int | np.integer) and -len(at) <= patch < len(at):
        return int(at[patch])
    if isinstance(patch, list | tuple) and len(patch) == 2:
        for i in at.tolist():
            if (own.row[i], own.column[i]) == tuple(patch):
                return i
    rows, columns = own.row[at].max() + 1, own.column[at].max() + 1
    grid = f"rows 0 to {rows - 1} and columns 0 to {columns - 1}" if rows > 0 else f"numbers 0 to {len(at) - 1}"
    raise InputError(f"patches(patch=...): there is no patch {patch!r} here. The grid has {grid}.")


def _crop(pixels: np.ndarray, picture: patches.Picture, box: np.ndarray) -> np.ndarray:
    """A patch with what is around it, in a frame, from the pixels of the picture's thumbnail."""
    tall, wide = pixels.shape[:2]
    scale = np.tile([wide / picture.width, tall / picture.height], 2)
    left, top, right, bottom = (box * scale).round().astype(int)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    side = max(right - left, bottom - top)
    x0, y0 = max(0, left - AROUND * side), max(0, top - AROUND * side)
    x1, y1 = min(wide, right + AROUND * side), min(tall, bottom + AROUND * side)
    part = pixels[y0:y1, x0:x1]
    zoom = max(1, round(120 / max(part.shape[:2])))
    part = part.repeat(zoom, 0).repeat(zoom, 1)
    l, t, r, b = ((v - o) * zoom for v, o in ((left, x0), (top, y0), (right, x0), (bottom, y0)))
    for shade, out in ((255, 2), (0, 1)):  # white around black: seen on everything
        for a, c in ((t - out, l - out), (b + out - 1, l - out)):
            part[min(max(a, 0), len(part) - 1), max(c, 0) : r + out] = shade
        for a, c in ((t - out, l - out), (t - out, r + out - 1)):
            part[max(a, 0) : b + out, min(max(c, 0), part.shape[1] - 1)] = shade
    return part
