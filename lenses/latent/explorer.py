"""Neighbours as a table: every context that a LatentLens reading or a search of the index found, its word marked.

    latent.explore("neighbours")                              a reading of LatentLens
    widgets.explore(index.search(states))                     what ContextIndex.search gives

Each similarity stands beside the layer's floor, the higher of the two that LatentLens measures: below it a neighbour
says no more than one of random tokens, or of shuffled prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.figures.source import Source
from workbench.widgets import base as kit

if TYPE_CHECKING:
    import xarray as xr

LONGEST_SENTENCE = 400
ROW_BYTES = 12
"""Of the numbers of one neighbour, about, in base64."""
STATIC_ROWS = 24


def payload(reading: Any, *, limit: int = kit.LIMIT) -> dict[str, Any]:
    """What is shown of a reading of :class:`~lenses.LatentLens`, or of what ``ContextIndex.search`` returned.

    ``selection``: prompt, layer (or block), position (the coordinate) and rank of the row that is chosen (of a search:
    query and rank), all None where none is.  What is shown: only_prompt, only_layer, only_rank (None: all),
    index_layers ([]: all), above_floor, least (a similarity, or None) and text; in the order of sort, the name of a
    column, and descending.  A chosen row is always shown: choosing one clears the filters that hide it, and a filter
    that hides it leaves it.

    Parameters
    ----------
    limit
        Bytes of the payload, about.  Beyond it fewer ranks are sent, then fewer prompts (queries), layers and
        positions; what was left out is named under the table.
    """
    data, _ = kit.opened(reading)
    axes = _axes(data)
    data = data.transpose(*axes, ...)
    left_out: list[str] = []
    chosen = _fitting(data, axes, limit, left_out)
    data = data.isel(chosen)
    layers, source = data["index_layer"].values, Source(data)
    depth = next((a for a in axes if a in ("layer", "block")), None)
    shown: dict[str, Any] = {
        "about": {**kit.about(reading), "reader": kit.about(reading)["reader"] or "ContextIndex.search"},
        "axes": axes,
        "values": {a: _coordinate(data, a) for a in axes},
        "depth": depth,
        "score": "similarity" if data.attrs.get("calibration", "none") == "none" else data.attrs["calibration"],
        "similarity": kit.decimals(np.where(layers >= 0, data["similarity"].values, np.nan), 4),
        "index_layer": kit.integers(layers),
        "context": kit.contexts(*(data[name].values for name in ("sentence", "char_start", "char_end")), layers >= 0),
        "index_layers": [int(x) for x in np.unique(layers[layers >= 0])],
        "floors": {
            source.called(name, short=True): {"of": source.data[name].attrs.get("kind", ""), "values": column}
            for name in _floors(source, depth) for column in [kit.decimals(data[name].values, 4)]
        },
    }  # fmt: skip
    if patches.pictured(source) and "position" in axes:
        kinds = data["kind"].transpose("prompt", "position").values.ravel()
        shown["kind"] = kit.integers(np.where(kinds == "image", 1, 0))
    cells = tuple(a for a in axes if a != "rank")
    shown["tests"] = {
        end: kit.decimals(data[f"similarity_{end}"].values, 4)
        for end in ("p", "q") if f"similarity_{end}" in data and data[f"similarity_{end}"].dims == cells
    }  # fmt: skip
    if "sink" in data and data["sink"].dims == cells:
        shown["sink"], shown["sink_said"] = kit.integers(data["sink"].values.astype(int)), Source(data).sink_said
    if "input_token" in data and "position" in axes:
        shown["input"] = kit.texts(_called(source))
        if "input_position" in data:  # the coordinate need not say where in its prompt a state stands
            shown["place"] = kit.integers(data["input_position"].values)
    if depth and "index_layer_share_null" in data:
        index = data["index"].values.tolist()
        shown["shares"] = {
            int(x): [round(float(data[name].values[:, index.index(x)].mean()), 3)
                     for name in ("index_layer_share", "index_layer_share_null")]
            for x in shown["index_layers"] if x in index
        }  # fmt: skip
    else:
        shown["shares"] = {}
    floor = bool(shown["floors"])
    columns = ["similarity", *(["over"] if floor else []), *axes, "index_layer", "word"]
    values = {a: [None, *shown["values"][a]] for a in axes}
    only = {f"only_{a}": values[a] for a in axes if a != "position"}
    return {
        **shown,
        "columns": columns,
        "left_out": left_out,
        "start": {
            **dict.fromkeys(axes), **dict.fromkeys(only), "sort": "similarity", "descending": True, "index_layers": [],
            "above_floor": False, "least": None, "text": "",
        },
        "choices": {
            **values, **only, "sort": columns, "descending": [True, False],
            "index_layers": shown["index_layers"], "above_floor": [True, False] if floor else [False],
        },
    }  # fmt: skip


def complete(asked: dict[str, Any], now: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The selection, whose row is whole, and in the table."""
    new = {key for key, value in asked.items() if value != now[key]}
    whole, axes, start = {**now, **asked}, shown["axes"], shown["start"]
    scores = shown["similarity"].values
    if not isinstance(whole["text"], str):
        raise InputError(f"text={whole['text']!r} cannot be looked for: give a text, '' for every row.")
    least = whole["least"]
    if least is not None and (isinstance(least, bool | str) or not np.isfinite(least)):
        between = f"{np.nanmin(scores):.3f} to {np.nanmax(scores):.3f}" if np.isfinite(scores).any() else "none"
        raise InputError(f"least={least!r} is no {shown['score']}: give a number (here they are {between}), or None.")
    named = [a for a in axes if a in new and whole[a] is not None]
    if not named and any(whole[a] is None for a in axes):
        return {**whole, **dict.fromkeys(axes)}
    for a in axes:  # named in part: what is not, is of the row before, or the first that is shown
        if whole[a] is None:
            only = whole.get(f"only_{a}")
            whole[a] = shown["values"][a][0] if only is None else only
    at = tuple(shown["values"][a].index(whole[a]) for a in axes)
    n = int(np.ravel_multi_index(at, [len(shown["values"][a]) for a in axes]))
    if shown["index_layer"].values[n] < 0:
        raise InputError(f"There is no neighbour at {', '.join(f'{a}={whole[a]}' for a in axes)}: a shorter prompt.")
    hiding = _hiding(whole, shown, n, at, float(scores[n]))
    if not named:
        return {**whole, **dict.fromkeys(axes)} if hiding else whole
    if wrong := [key for key in hiding if key in new]:
        raise InputError(
            f"{wrong[0]}={whole[wrong[0]]!r} hides the row at {', '.join(f'{a}={whole[a]}' for a in axes)}. Set one of "
            "them, and the other follows."
        )
    return {**whole, **{key: start[key] for key in hiding}}


def _hiding(whole: dict[str, Any], shown: dict[str, Any], n: int, at: tuple[int, ...], score: float) -> list[str]:
    """Filters that keep a row out of the table, as the front end filters."""
    axes, own = shown["axes"], dict(zip(shown["axes"], at, strict=True))
    found = [key for a in axes if whole.get(key := f"only_{a}") not in (None, whole[a])]
    if whole["index_layers"] and shown["index_layer"].values[n] not in whole["index_layers"]:
        found.append("index_layers")
    kind = "text"
    if "kind" in shown and shown["kind"].values[own["prompt"] * len(shown["values"]["position"]) + own["position"]]:
        kind = "image"
    known = [floor["values"] for floor in shown["floors"].values() if floor["of"] in ("", kind)]
    floors = [column.values[own[shown["depth"]]] for column in known]
    if whole["above_floor"] and not score > np.nanmax([-np.inf, *floors]):
        found.append("above_floor")
    if whole["least"] is not None and score < whole["least"]:
        found.append("least")
    text = whole["text"].lower()
    there = text in "".join(shown["context"]["texts"][shown["context"]["at"].values[n]]).lower()
    if "input" in shown:
        spot = own["prompt"] * len(shown["values"]["position"]) + own["position"]
        there |= text.replace(" ", "·") in shown["input"]["texts"][shown["input"]["at"].values[spot]].lower()
    return found if there else [*found, "text"]


def _floors(source: Source, depth: str | None) -> list[str]:
    """The floors of the similarity by depth."""
    known = source.controls("similarity", "floor")
    return [name for name in known if depth and source.data[name].dims == (depth,)]


def _called(source: Source) -> list[str]:
    """What each position is called, prompt after prompt: its token, of a patch its row and column."""
    data, found = source.data, []
    for p in range(data.sizes["prompt"]):
        names = [kit.clipped(tokens.visible(str(t))) for t in data["input_token"].values[p]]
        own = patches.seen(source, p)
        for i, at in enumerate(source.positions(p) if own is not None else ()):
            if own is not None and own.image[i] >= 0:
                names[at] = own.short(i)
        found += names
    return found


def _axes(data: xr.Dataset) -> list[str]:
    found = [str(d) for d in data["similarity"].dims]
    for order in (("prompt", "layer", "position", "rank"), ("prompt", "block", "position", "rank"), ("query", "rank")):
        if sorted(order) == sorted(found):
            return list(order)
    raise InputError(
        f"Neighbours are over prompt, layer (or block), position and rank, or over query and rank; these are over "
        f"{', '.join(found)}. Give a LatentLens reading, or what ContextIndex.search returns."
    )


def _coordinate(data: xr.Dataset, axis: str) -> list[int]:
    return [int(x) for x in (data[axis].values if axis in data.coords else range(data.sizes[axis]))]


def _fitting(data: xr.Dataset, axes: list[str], limit: int, left_out: list[str]) -> dict[str, Any]:
    """What fits into so many bytes: fewer ranks, then fewer prompts or queries, layers, positions."""
    _, code = np.unique(data["sentence"].values.astype(str), return_inverse=True)
    code = code.reshape(data["sentence"].shape)
    length = np.zeros(int(code.max(initial=0)) + 1)
    bytes_of = [min(len(str(s).encode("utf-8", "replace")), LONGEST_SENTENCE) for s in data["sentence"].values.ravel()]
    np.maximum.at(length, code.ravel(), bytes_of)
    chosen: dict[str, Any] = {a: np.arange(data.sizes[a]) for a in axes}

    def fits() -> bool:
        own = code[np.ix_(*(chosen[a] for a in axes))]
        return own.size * ROW_BYTES + length[np.unique(own)].sum() < 0.9 * limit

    for axis in ("rank", "prompt", "query", "layer", "block", "position"):
        if axis not in axes or fits():
            continue
        full = data.sizes[axis]
        low, high = 1, full - 1
        while low < high:  # the most that fits
            middle = (low + high + 1) // 2
            chosen[axis] = np.array(kit.every(full, middle) if axis in ("layer", "block") else range(middle))
            low, high = (middle, high) if fits() else (low, middle - 1)
        chosen[axis] = np.array(kit.every(full, low) if axis in ("layer", "block") else range(low))
        plural = {"query": "queries"}.get(axis, f"{axis}s")
        left_out.append(f"{full - len(chosen[axis])} of {full} {plural} (.isel({axis}=...) chooses)")
    return {a: own for a, own in chosen.items() if len(own) < data.sizes[a]}


def static(reading: Any, **options: Any) -> str:
    """The nearest neighbours of all: similarity, place, word and sentence."""
    data, _ = kit.opened(reading)
    axes = _axes(data)
    data = data.transpose(*axes, ...)
    similarity = np.where(data["index_layer"].values >= 0, data["similarity"].values, np.nan)
    best = np.argsort(-np.nan_to_num(similarity, nan=-np.inf), axis=None, kind="stable")[:STATIC_ROWS]
    source, rows = Source(data), []
    ends = [end for end in ("p", "q") if f"similarity_{end}" in data]
    tests = [data[f"similarity_{end}"].transpose(*axes[:-1]) for end in ends]
    for flat in best:
        at = np.unravel_index(flat, similarity.shape)
        if np.isnan(similarity[at]):
            continue
        before, word, after = tokens.around(
            str(data["sentence"].values[at]), int(data["char_start"].values[at]), int(data["char_end"].values[at]), 40
        )
        where = [str(_coordinate(data, a)[i]) for a, i in zip(axes, at, strict=True)]
        if "position" in axes and source.has("input_token"):
            place = at[0], at[axes.index("position")]
            if source.has("input_position"):
                where[axes.index("position")] = str(data["input_position"].values[place])
            where[axes.index("position")] += f" {tokens.visible(str(data['input_token'].values[place]))}"
        rows.append([
            (f"{similarity[at]:.3f}", float(similarity[at])), *(f"{t.values[at[:-1]]:.2g}" for t in tests), *where,
            str(int(data["index_layer"].values[at])),
            f"{tokens.plain(before)}[{tokens.plain(word)}]{tokens.plain(after)}",
        ])  # fmt: skip
    told = kit.about(reading)
    count = int((~np.isnan(similarity)).sum())
    said = [told["reader"] or "ContextIndex.search", told["model"], f"the nearest {len(rows)} of {count} neighbours"]
    known = [source.data[n].values for n in _floors(source, source.depth)]
    floors = [np.nanmax(own) for own in known if np.isfinite(own).any()]
    said.append(f"highest floor {max(floors):.3f}" if floors else "no floor was measured")
    head = ["similarity", *(f"{end} of the nearest" for end in ends), *axes, "index layer", "context"]
    return kit.table(said, head, rows)


VIEW = kit.View(
    "NeighbourTable",
    "The contexts whose hidden states are nearest to each state of the prompt, the word marked in its sentence; a tick "
    "marks the floor, below which a neighbour says no more than chance.",
    Path(__file__).with_name("explorer.js"),
    ("similarity", "index_layer", "sentence", "char_start", "char_end"),
    payload,
    static,
    complete,
)
explore, to_html = VIEW.explore, VIEW.to_html
