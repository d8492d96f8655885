"""Checkpoints beside each other: how soon the final routing is there, and how far routers move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.results import family, of_weights
from probes.routing.measures.documents import Clusters, Documents, clustered, intervals
from probes.routing.measures.experts import routed_blocks, router_rows
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, over
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.model import Model


ENDS, NOISE = ("low", "high"), ("floor", "{}, of the final checkpoint under noise")
VARIABLES = {
    **family("saturation", about("share of the final experts", better="high"), *ENDS, "null", floor=NOISE),
    **family("top", about("share of tokens with the final first expert", better="high"), *ENDS, "null", floor=NOISE),
    **family("weighted", about("share of the final weights", better="high"), *ENDS, floor=NOISE),
    **family("divergence", about("KL of the gate from the final one", "nats", "low"), *ENDS, floor=NOISE),
}
DRIFT_VARIABLES = {
    **family("cosine", about("cosine of an expert's router row with its final one", better="high"), "null"),
    "cosine_spread": about("standard deviation of the cosine of unrelated rows", "", "high", "floor", "cosine"),
    "matched": about("share of router rows nearest to their own final one", better="high"),
    "change": about("change of the router over its final norm", better="low"),
}


def saturation(
    readings: Sequence[Reading],
    names: Sequence[Any] | None = None,
    final: int = -1,
    *,
    floor: Reading | None = None,
    clusters: Clusters = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Of a token's experts at a checkpoint, the share that it has at the final one, too: |S_t and S_T| / k (OLMoE).

    Args:
        readings: of the same prompts with trace=True, one for each checkpoint.
        floor: the final checkpoint once more under noise (``intervene(model, jitter=...)``), or of another seed:
            what falls short of 1 by no more than its does is no change.

    saturation [checkpoint, block]; top, the same of the strongest expert alone; weighted, the weights that experts
    have in common (sum of the smaller, over the final ones' sum); each with interval over documents.  divergence:
    KL(p_t || p_T) of the gate's distributions in nats, where the readings have them (scores=True).  saturation_null =
    k/E (k less slots that reached no routed expert), top_null = 1/E; saturation_floor, top_floor, weighted_floor,
    divergence_floor [block] with ``floor``.
    """
    if not readings:
        raise InputError("There is no checkpoint to compare: the list of readings is empty.")
    for reading in [*readings, *([] if floor is None else [floor])]:
        if not isinstance(reading, Reading) or not {"expert_id", "input_id"} <= set(reading.data):
            raise InputError(
                "Saturation compares readings with trace=True (of workbench.read) of the same prompts; a trace on disk "
                "or counts alone will not do."
            )
    last = readings[final].data
    cluster, text = clustered(last, clusters)
    methods: dict[str, str] = {}
    rows = [_compared(reading.data, last, cluster, methods, draws, level, seed) for reading in readings]
    names = list(range(len(readings))) if names is None else list(names)
    if len(names) != len(readings):
        raise InputError(f"There are {len(readings)} readings and {len(names)} names. Name each.")
    found: dict[str, Any] = {
        name: (("checkpoint", "block"), np.stack([row[name] for row in rows]))
        for name in rows[0] if all(name in row for row in rows)
    }  # fmt: skip
    documents = Documents(readings[final])
    found |= {
        "saturation_null": (("block",), documents.active() / documents.experts),
        "top_null": (("block",), 1 / documents.experts),
    }
    if floor is not None:
        row = _compared(floor.data, last, cluster, {}, draws, level, seed)
        for name in ("saturation", "top", "weighted", "divergence"):
            if name in row:
                found[f"{name}_floor"] = (("block",), row[name])
    attrs = {"chart": "saturation", **intervals(methods)} | ({"clusters": text} if text else {})
    table = xr.Dataset(found, {"checkpoint": names, "block": last["block"].values}, attrs)
    sources = [*readings, *([] if floor is None else [floor])]
    settings = {"final": final, "floor": floor is not None, "draws": draws, "level": level, "seed": seed}
    return derived("routing.saturation", described(table, VARIABLES), *sources, **settings)


def _compared(
    data: xr.Dataset, last: xr.Dataset, cluster: np.ndarray, methods: dict[str, str], draws: int, level: float,
    seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    if not np.array_equal(data["input_id"].values, last["input_id"].values):
        raise InputError("Saturation compares traces of the same prompts, and these are of different ones.")
    if data["block"].values.tolist() != last["block"].values.tolist():
        raise InputError("Saturation compares traces of the same blocks, and these are of different ones.")
    parts: dict[str, list[np.ndarray]] = {}
    for b in range(data.sizes["block"]):
        for name, each in _shared(data.isel(block=b), last.isel(block=b)).items():
            parts.setdefault(name, []).append(each)
    found = {}
    for name, values in parts.items():
        each = np.stack(values, 1)  # [prompt, block, position]
        tokens = (~np.isnan(each)).sum(2).astype(float)
        ends = Design(cluster, weights=tokens).bootstrap(
            over(np.nansum(each, 2), tokens), level=level, draws=draws, seed=seed,
            bounds=(0, np.inf if name == "divergence" else 1),
        )  # fmt: skip
        found[name], found[f"{name}_low"], found[f"{name}_high"] = ends.value, ends.low, ends.high
        methods[name] = ends.said("documents")
    return found


def _shared(data: xr.Dataset, last: xr.Dataset) -> dict[str, np.ndarray]:
    """[prompt, position] of one block; NaN where there is no token, or it has no expert at the end."""
    a, b = (np.where(d["expert_id"] < d["expert_exists"].values.sum(), d["expert_id"], -1) for d in (data, last))
    meet = (a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0)
    held = (b >= 0).sum(-1)
    x, y = (
        np.where(i >= 0, np.nan_to_num(d["expert_weight"].values.astype(np.float32)), 0)
        for i, d in ((a, data), (b, last))
    )

    def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=(held > 0) & (bottom > 0))

    # Among weights of 0, a slot that has an expert is the stronger.
    first = [
        np.take_along_axis(i, np.where(i >= 0, w, -1).argmax(-1)[..., None], -1)[..., 0] for i, w in ((a, x), (b, y))
    ]
    found = {
        "saturation": ratio(meet.any(-1).sum(-1).astype(float), held.astype(float)),
        "top": np.where(held > 0, (first[0] == first[1]) & (first[0] >= 0), np.nan),
        "weighted": ratio((np.minimum(x[..., :, None], y[..., None, :]) * meet).sum((-1, -2)), y.sum(-1)),
    }
    if "gate_probability" in data and "gate_probability" in last:
        p, q = (np.maximum(d["gate_probability"].values.astype(np.float32), 1e-7) for d in (data, last))
        found["divergence"] = np.where(held > 0, np.nansum(p * np.log(p / q), -1), np.nan)
    return found


def router_drift(models: Mapping[Any, Model], final: Any = None) -> Reading:
    """How far each router's weights are from those of the final checkpoint (default the last one named).

    cosine [checkpoint, block, expert] of an expert's row with its own at the end; matched [checkpoint, block]: share of
    rows that are nearest to their own (1 unless experts changed places); change [checkpoint, block]: norm of the
    difference over the final norm.  cosine_null [block] = 0: unrelated rows, spread by 1 / sqrt(width).
    """
    names = list(models)
    if len(names) < 2:
        raise InputError("Drift is between checkpoints, and there is one. Give two or more.")
    if final is not None and final not in names:
        raise InputError(f"There is no checkpoint {final!r}; there are {', '.join(map(str, names))}.")
    last = models[names[-1] if final is None else final]
    blocks = routed_blocks(last)
    e = max(last.moe[b].n_experts for b in blocks)
    cosine = np.full((len(names), len(blocks), e), np.nan)
    matched, change = (np.full((len(names), len(blocks)), np.nan) for _ in range(2))
    for i, name in enumerate(names):
        for j, block in enumerate(blocks):
            rows, end = router_rows(models[name], block), router_rows(last, block)
            if rows.shape != end.shape:
                raise InputError(
                    f"Checkpoint {name!r} has a router of shape {rows.shape} in block {block}, and the final one "
                    f"{end.shape}. Drift is between checkpoints of one model."
                )
            a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (rows, end))
            cosine[i, j, : len(a)] = (a * b).sum(1)
            matched[i, j] = ((a @ b.T).argmax(1) == np.arange(len(a))).mean()
            change[i, j] = np.linalg.norm(rows - end) / np.linalg.norm(end)
    table = xr.Dataset(
        {
            "cosine": (("checkpoint", "block", "expert"), cosine), "matched": (("checkpoint", "block"), matched),
            "change": (("checkpoint", "block"), change), "cosine_null": (("block",), np.zeros(len(blocks))),
            "cosine_spread": (("block",), np.full(len(blocks), last.d_model**-0.5)),
        },
        {"checkpoint": names, "block": blocks, "expert": np.arange(e)},
    )  # fmt: skip
    sources = [of_weights(model) for model in models.values() if model is not last]
    return derived("routing.router_drift", described(table, DRIFT_VARIABLES), *sources, of_weights(last))
