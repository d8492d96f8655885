"""What charts say of a reading in words, and how its numbers come on a scale: titles, names of positions, hovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.figures import plot as plots
from workbench.figures.source import Source

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("text", "image", "all")


def heading(source: Source, what: str, *others: Source) -> str:
    """A title: reader, model, and what is shown, of one reading or several."""
    readers = dict.fromkeys(str(s.data.attrs.get("reader", "")) for s in (source, *others))
    models = dict.fromkeys(s.model for s in (source, *others))
    return " · ".join(filter(None, [*(", ".join(filter(None, own)) for own in (readers, models)), what]))


def prompt_title(source: Source, what: str, prompt: int) -> str:
    count = source.data.sizes.get("prompt", 1)
    return heading(source, what + (f" · prompt {prompt} of {count}" if count > 1 else ""))


def of_kind(data: xr.Dataset, wanted: str | None, who: str) -> tuple[Source, str]:
    """The reading's "text" or "image" positions, or "all", and what a title says of it; "" where there are no pictures.

    None: the texts, or, where none was read, the patches.
    """
    if wanted not in (None, *KINDS):
        raise InputError(
            f"{who}(positions={wanted!r}): give {', '.join(map(repr, KINDS))}. A part of a reading is drawn as "
            "reading.isel(position=...).figure()."
        )
    source = Source(data)
    pictured = patches.pictured(source)
    found = set(np.ravel(source.data["kind"].values).tolist()) if pictured else {"text"}
    there = [own for own in KINDS if own in found]
    wanted = wanted or (there[0] if there else "all")
    if wanted not in (*there, "all"):
        raise InputError(f"{who}(positions={wanted!r}): this reading has {' and '.join(there)} positions.")
    if not pictured or wanted == "all":
        return source, ""
    return Source(data, wanted), f"{wanted} positions" * (len(there) > 1 or wanted == "image")


def names_of_positions(source: Source, prompt: int) -> list[str]:
    """Names of a prompt's positions: their tokens, of patches row and column."""
    own, inputs = patches.seen(source, prompt), source.inputs(prompt)
    return [
        own.short(i) if own is not None and own.image[i] >= 0 else tokens.visible(text) for i, text in enumerate(inputs)
    ]


def at_position(source: Source, prompt: int, column: int) -> str:
    """Where a position is: "after red (#3)", or "at row 3, column 5 (#17)" of a picture."""
    own = patches.seen(source, prompt)
    patch = own.called(column) if own is not None else ""
    place = f"at {patch}" if patch else f"after {tokens.visible(source.inputs(prompt)[column])}"
    return f"{place} (#{source.places(prompt)[column]})"


def on_scale(source: Source, value: str, grid: np.ndarray) -> tuple[np.ndarray, tuple[list[float], list[str]] | None]:
    """Numbers as they are drawn, and the ticks of their colour bar where these are not the numbers themselves."""
    if source.about(value).get("scale") != "log":
        return grid, None
    return np.log10(grid + 1), plots.log_ticks(float(np.nanmax(np.log10(grid + 1), initial=0.3)))


def ids(source: Source, prompt: int) -> np.ndarray:
    """token_id of one prompt as [depth, real position, rank]."""
    found = source.data["token_id"].isel(prompt=prompt).transpose(source.depth, "position", "rank")
    return found.values[:, source.positions(prompt)]


def hovers(
    source: Source, prompt: int, value: str, grid: np.ndarray, rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> list[list[str]]:  # fmt: skip
    """What hovering a cell tells: place, value, and the five nearest tokens; of some rows and columns, or of all."""
    own = ids(source, prompt)[:, :, :5] if source.has("token_id") else None
    score, scores = source.score, None
    if own is not None and score is not None:
        found = source.data[score].isel(prompt=prompt).transpose(source.depth, "position", "rank")
        scores = found.values[:, source.positions(prompt), :5]
    name = source.title(value)
    said, sinks = contexts(source, prompt), source.sinks(prompt)
    found = {end: source.controls(score, end) if score else [] for end in ("p", "q")}
    tests = {end: source.grid(names[0], prompt) for end, names in found.items() if names}
    where = [at_position(source, prompt, p) for p in range(grid.shape[1])]
    found_rows = []
    for d in range(len(source.depths)) if rows is None else rows:
        row = []
        for p in range(grid.shape[1]) if columns is None else columns:
            lines = [f"{source.depth} {source.depths[d]}, {where[p]}"]
            if not np.isnan(grid[d, p]):
                lines.append(f"{name}: {grid[d, p]:.4g}")
            if sinks[d, p]:
                lines.append(source.sink_said)
            if known := [f"{end} {v[d, p]:.3g}" for end, v in tests.items() if not np.isnan(v[d, p])]:
                lines.append(f"nearest: {', '.join(known)}")
            if own is not None:
                for rank, token_id in enumerate(own[d, p]):
                    if token_id >= 0:
                        number = f"  {scores[d, p, rank]:.3g}" if scores is not None else ""
                        text = said(d, p, rank) or tokens.visible(source.text(token_id))
                        lines.append(f"{rank}. {text}{number}")
            row.append("\n".join(lines))
        found_rows.append(row)
    return found_rows


def contexts(source: Source, prompt: int) -> Callable[[int, int, int], str]:
    """The sentence of a neighbour with its word in brackets, by (depth, position, rank); "" where there is none."""
    if not source.has("sentence"):
        return lambda d, p, rank: ""
    real = source.positions(prompt)
    found = {
        name: source.data[name].isel(prompt=prompt).transpose(source.depth, "position", "rank").values[:, real]
        for name in ("sentence", "char_start", "char_end")
    }

    def said(d: int, p: int, rank: int) -> str:
        text, start, end = (found[name][d, p, rank] for name in ("sentence", "char_start", "char_end"))
        before, word, after = (tokens.plain(t) for t in tokens.around(str(text), start, end, 30))
        return f"{before}⟨{word}⟩{after}"

    return said


