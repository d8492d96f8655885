"""A reading as the explorer's front end takes it: token texts once, numbers as base64 of small integers.

An array is {"t": "i16" | "i32", "b": base64} for integers, or {"t": "q16", "lo", "hi", "b": base64} for
numbers in 65535 steps from lo to hi (better than four digits of the variable's range), 65535 standing for
"none".  Little-endian.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures.source import Source, short_name

if TYPE_CHECKING:
    import xarray as xr

SCORES = ("logprob", "cosine", "similarity")
GRIDS = ("entropy", "kl_to_final", "target_rank", "target_logprob", "target_logprob_null")
NONE = 65535
MAX_ENTRIES = 2_000_000  # token entries in all; beyond it fewer ranks are sent, never fewer cells


def payload(readings: Iterable[tuple[str, Any]], top_k: int | None = None) -> dict[str, Any]:
    """What the explorer shows, as plain JSON values, from (name, dataset or reading) pairs.

    top_k   ranks to send for each cell; by default as many as there are, fewer for very large readings
    """
    return {"version": 1, "readings": [_reading(name, data, top_k) for name, data in readings]}


def as_pairs(readings: Any) -> list[tuple[str, Any]]:
    """(name, reading) pairs from one reading or dataset, several, or a mapping of names to them."""
    if isinstance(readings, dict):
        return [(str(name), reading) for name, reading in readings.items()]
    if not isinstance(readings, list | tuple):
        readings = [readings]
    names: list[str] = []
    for reading in readings:
        data, _ = opened(reading)
        name = str(data.attrs.get("reader", "reading"))
        if data.attrs.get("at", "resid") != "resid":
            name += f" at {data.attrs['at']}"
        names.append(name)
    counts = {name: names.count(name) for name in names}
    models = [Source(opened(r)[0]).model for r in readings]
    names = [f"{n} · {m}" if counts[n] > 1 and m else n for n, m in zip(names, models, strict=True)]
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return list(zip(names, readings, strict=True))


def opened(reading: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """The dataset and provenance of a Reading, or a bare dataset and nothing."""
    if hasattr(reading, "provenance") and hasattr(reading, "data"):
        return reading.data, reading.provenance or {}
    if not hasattr(reading, "data_vars"):
        raise InputError(
            f"A {type(reading).__name__} cannot be explored. Give a Reading, an xarray.Dataset, or a list of "
            "these."
        )
    return reading, {}


def gridded(data: xr.Dataset) -> Source:
    """The dataset as a Source, refused unless it has tokens over depth and position."""
    source = Source(data)
    if source.depth is None or not source.has("token_id") or data.sizes.get("prompt", 0) == 0:
        raise InputError(
            f"The explorer shows tokens over layers and positions, and this {source.reader} reading has "
            f"none: it holds {sorted(map(str, data.data_vars))}. Use .figure() or .frame() for it."
        )
    return source


def _reading(name: str, reading: Any, top_k: int | None) -> dict[str, Any]:
    data, provenance = opened(reading)
    source = gridded(data)
    depth = str(source.depth)
    order = ("prompt", depth, "position", "rank")
    ids = data["token_id"].transpose(*order).values
    keep = min(top_k or ids.shape[3], ids.shape[3])
    if top_k is None:
        keep = max(1, min(keep, MAX_ENTRIES // max(ids[..., 0].size, 1)))
    ids = ids[..., :keep]

    used = np.unique(np.concatenate([ids.ravel(), *(_target_ids(source))]))
    used = used[used >= 0]
    texts = [tokens.visible(source.text(i)) for i in used]
    if "token" in data and "vocab_token" not in data:  # readings that carry each token's text in place
        own = dict(
            zip(ids.ravel().tolist(), data["token"].transpose(*order).values[..., :keep].ravel(), strict=True)
        )
        texts = [tokens.visible(str(own[i])) if i in own else f"#{i}" for i in used.tolist()]

    score = next((s for s in SCORES if source.has(s) and "rank" in data[s].dims), None)
    scores = data[score].transpose(*order).values[..., :keep] if score else None
    grids: dict[str, np.ndarray] = {}
    for grid in GRIDS:
        if source.has(grid) and {depth, "position"} <= set(data[grid].dims):
            found = data[grid].expand_dims("target") if "target" not in data[grid].dims else data[grid]
            grids[grid] = found.transpose("prompt", "target", depth, "position").values
    domain = {g: _range(v if g != "target_rank" else v[v >= 0]) for g, v in grids.items()}
    if score and scores is not None:
        domain[score] = _range(scores[..., 0])

    model = provenance.get("model") or {}
    return {
        "name": name,
        "reader": source.reader,
        "model": short_name(str(model.get("name") or source.model)),
        "fingerprint": str(model.get("fingerprint") or ""),
        "depth": depth,
        "depth_label": source.depth_label,
        "depths": [int(d) for d in source.depths],
        "top_k": keep,
        "ranks": int(data.sizes["rank"]),
        "score": score,
        "domain": domain,
        "wide": [g for g, v in grids.items() if v.shape[1] > 1],
        "targets": [tokens.visible(str(t)) for t in data["target"].values] if "target" in data.coords else [],
        "floor": _floor(source),
        "vocab": texts,
        "vocab_id": used.tolist(),
        "prompts": [_prompt(source, p, ids, used, scores, grids) for p in range(data.sizes["prompt"])],
    }


def _prompt(
    source: Source,
    p: int,
    ids: np.ndarray,
    used: np.ndarray,
    scores: np.ndarray | None,
    grids: dict[str, np.ndarray],
) -> dict[str, Any]:
    real, data = source.positions(p), source.data
    inputs = source.inputs(p)
    positions = data["input_position"].values[p][real] if source.has("input_position") else real
    text = source.prompt_text(p)
    packed: dict[str, Any] = {
        "text": tokens.visible(text).replace(tokens.SPACE, " ") if text else f"prompt {p}",
        "inputs": [tokens.visible(t) for t in inputs],
        "positions": [int(i) for i in positions],
        "columns": [int(i) for i in (data["position"].values[real] if "position" in data.coords else real)],
        "token": integers(_index(ids[p][:, real], used)),
        "score": quantised(scores[p][:, real]) if scores is not None else None,
        "grids": {},
    }
    for name, values in grids.items():
        own = values[p][:, :, real]
        packed["grids"][name] = integers(own) if name == "target_rank" else quantised(own)
    if source.has("target_id") and set(data["target_id"].dims) == {"prompt", "position"}:
        packed["target"] = _index(
            data["target_id"].transpose("prompt", "position").values[p][real], used
        ).tolist()
    if source.has("sentence") and "rank" in data["sentence"].dims:
        packed["said"] = _said(source, p, real, ids.shape[3])
    return packed


def _said(source: Source, p: int, real: np.ndarray, keep: int) -> dict[str, Any]:
    """Each neighbour as [text before, its word, text after], each different one once, and where it came from."""

    def at(name: str) -> np.ndarray:
        found = source.data[name].transpose("prompt", str(source.depth), "position", "rank")
        return found.values[p][:, real, :keep].ravel()

    shown: dict[tuple[str, int, int], int] = {}
    places = [
        shown.setdefault((str(text), int(a), int(b)), len(shown))
        for text, a, b in zip(at("sentence"), at("char_start"), at("char_end"), strict=True)
    ]
    packed: dict[str, Any] = {
        "texts": [[tokens.plain(part) for part in tokens.around(*key)] for key in shown],
        "at": integers(np.array(places)),
    }
    if source.has("index_layer"):
        packed["layer"] = integers(at("index_layer"))
    return packed


def _floor(source: Source) -> list[float | None] | None:
    """For each depth, the highest of the floors that the reading carries; a score below it says nothing."""
    names = [n for n in ("cosine_floor", "similarity_floor_random", "similarity_floor_shuffled") if source.has(n)]
    if not names:
        return None
    floors = np.stack([source.data[n].values.astype(float) for n in names])
    highest = np.where(np.isnan(floors).all(0), np.nan, np.max(np.nan_to_num(floors, nan=-np.inf), axis=0))
    return [None if np.isnan(f) else float(f"{f:.4g}") for f in highest]


def _target_ids(source: Source) -> list[np.ndarray]:
    if not source.has("target_id"):
        return []
    return [source.data["target_id"].values.ravel()]


def _index(ids: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Token ids as places in the list of used ids; -1 stays -1."""
    if used.size == 0:
        return np.full(ids.shape, -1)
    return np.where(ids < 0, -1, np.searchsorted(used, ids))


def _range(values: np.ndarray) -> list[float]:
    values = values[np.isfinite(values)]
    return [float(f"{values.min():.4g}"), float(f"{values.max():.4g}")] if values.size else [0.0, 1.0]


def integers(values: np.ndarray) -> dict[str, Any]:
    small = values.size == 0 or (values.max() < 2**15 and values.min() >= -(2**15))
    raw = np.ascontiguousarray(values, dtype="<i2" if small else "<i4")
    return {"t": "i16" if small else "i32", "b": base64.b64encode(raw.tobytes()).decode()}


def quantised(values: np.ndarray) -> dict[str, Any]:
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    low = float(values[finite].min()) if finite.any() else 0.0
    high = float(values[finite].max()) if finite.any() else 0.0
    span = (high - low) or 1.0
    steps = np.full(values.shape, NONE, dtype="<u2")
    steps[finite] = np.round((values[finite] - low) / span * (NONE - 1))
    return {"t": "q16", "lo": low, "hi": low + span, "b": base64.b64encode(steps.tobytes()).decode()}


def script_json(value: Any) -> str:
    """JSON that is safe inside a <script> element: no token text can end it or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def every(count: int, limit: int) -> Sequence[int]:
    """At most `limit` indices out of `count`, evenly spread, first and last included."""
    if count <= limit:
        return range(count)
    return sorted({int(i) for i in np.linspace(0, count - 1, limit).round()})
