"""The explorer of values over training: topics by checkpoints, and the items that moved between any two of them.

    track = tracker.ValueTracker("out/values", items.own(), [Pmf()])
    explorer.explore(track.readings(), items=track.items)

Stances and drifts stand beside their intervals, drifts beside their family-wise p; the change of an item stands beside
what its framings make of no change at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench import tokens
from workbench.errors import InputError
from workbench.widgets import base as kit

LONGEST_TEXT = 600
SIDES = {"support": 2, "neutral": 6, "oppose": 1, "uncommitted": 7}
"""Hues of stances, here and in figures."""
STATIC_STEPS, STATIC_TOPICS = 14, 40
CALLED = {
    "keyed": "keyed stance", "drift": "keyed drift", "support": "support", "neutral": "neutral", "oppose": "oppose",
    "uncommitted": "uncommitted", "commitment": "commitment",
}  # fmt: skip
SIGNED = ("keyed", "drift")
"""Measures to which zero means something."""


def payload(
    readings: Any,
    *,
    items: Iterable[Any] | Mapping[Any, str] | None = None,
    drift: Any = None,
    limit: int = kit.LIMIT,
) -> dict[str, Any]:
    """What is shown of readings, p [checkpoint, item, sample, stance] (:mod:`probes.values.units`).

    ``selection``: measure (:data:`CALLED`); topic (or None: all) and checkpoint, of the cell that is told; from and to,
    the checkpoints whose items are compared; item (an id, or None).  An item brings its topic, another topic leaves
    it, and an end of the range pushes the other along.

    Parameters
    ----------
    items
        What was asked (``track.items``), or a mapping of ids to texts.  Without it ids are shown.
    drift
        What :func:`probes.values.measures.drift` gave of these readings; None: made here, from the first checkpoint on.
    limit
        Bytes of the payload, about.
    """
    from probes.values.measures import drift as drifted
    from probes.values.measures import stance
    from probes.values.units import STANCES, checked
    from probes.values.units import opened as as_reading

    data = checked(kit.opened(readings)[0])
    steps, ids = data["checkpoint"].values.tolist(), [str(x) for x in data["item"].values]
    topics = list(dict.fromkeys(str(t) for t in data["topic"].values))
    stood = stance(data).data
    if drift is None and len(steps) > 1:
        drift = drifted(data)
    drift = None if drift is None else as_reading(drift).data
    measures = _stances(stood, topics, steps, STANCES)
    if drift is not None:
        lacking = [n for n in ("keyed_M", "keyed_M_low", "keyed_M_high", "keyed_M_p") if n not in drift]
        if lacking:
            raise InputError(f"The drift table has no {lacking[0]}. Give what probes.values.measures.drift returns.")
        if sorted(map(str, drift["topic"].values)) != sorted(topics) or drift["checkpoint"].values.tolist() != steps:
            raise InputError("The drift table is of other topics or checkpoints. Make it of these readings.")
        measures["drift"] = _measure(drift, "keyed_M", topics, steps, p="keyed_M_p")
    texts, raw = _texts(items, ids), [kit.sendable(t) for t in topics]
    left_out: list[str] = []
    cut = sum(len(t) > LONGEST_TEXT for t in texts)
    if cut:
        left_out.append(f"the ends of {cut} long items")
    shown: dict[str, Any] = {
        "about": _about(readings),
        "steps": steps,
        "baseline": int(drift.attrs["baseline"]) if drift is not None and "baseline" in drift.attrs else None,
        "topics": raw,
        "names": [kit.clipped(tokens.plain(t)) for t in topics],
        "measures": {
            name: {**measures[name], "scale": "diverging" if name in SIGNED else "sequential"}
            for name in CALLED if name in measures
        },
        "stances": SIDES,
        "items": [kit.sendable(i) for i in ids],
        "item_names": [kit.clipped(tokens.plain(i)) for i in ids],
        "texts": [kit.clipped(tokens.plain(t), LONGEST_TEXT) for t in texts],
        "topic": [topics.index(str(t)) for t in data["topic"].values],
        "polarity": [int(x) for x in data["polarity"].values],
    }
    p = data["p"].values.astype(float)
    mean = _mean(p)
    # The last stance is what is left of 1.  Samples are sent where they fit: they tell an item's noise.
    shown["p"] = kit.decimals(mean[..., :3], 3 if kit.weight(shown) + mean[..., :3].size * 2.7 < limit else 2)
    samples = p.shape[2]
    many = kit.decimals(p[..., :3], 2)
    if 1 < samples <= 64 and kit.weight(shown) + kit.weight(many) < limit:
        shown["samples"], shown["n_samples"] = many, samples
    elif samples > 1:
        left_out.append(f"the {samples} samples of each item, so that changes of items are without their noise")
    return {
        **shown,
        "left_out": left_out,
        "start": {
            "measure": "drift" if "drift" in measures else "keyed", "topic": None, "checkpoint": steps[-1],
            "from": steps[0], "to": steps[-1], "item": None,
        },
        "choices": {
            "measure": list(shown["measures"]), "topic": [None, *raw], "checkpoint": steps, "from": steps, "to": steps,
            "item": [None, *shown["items"]],
        },
    }  # fmt: skip


def complete(asked: dict[str, Any], now: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The selection, whose item is of the topic, and whose range runs forward."""
    new = {key for key, value in asked.items() if value != now[key]}
    whole, steps = {**now, **asked}, shown["steps"]
    if steps.index(whole["from"]) > steps.index(whole["to"]):
        if {"from", "to"} <= new:
            raise InputError(f"from={whole['from']} is behind to={whole['to']}: a range runs forward. Swap them.")
        whole |= {"to": whole["from"]} if "from" in new else {"from": whole["to"]}
    if whole["item"] is not None and whole["topic"] is not None:
        own = shown["topics"][shown["topic"][shown["items"].index(whole["item"])]]
        if own != whole["topic"]:
            if {"topic", "item"} <= new:
                raise InputError(
                    f"item={whole['item']!r} is of topic {own!r}, not {whole['topic']!r}. Set one of them, and the "
                    "other follows."
                )
            whole |= {"topic": own} if "item" in new else {"item": None}
    return whole


def _about(readings: Any) -> dict[str, str]:
    told = kit.about(readings)
    steps = kit.opened(readings)[0]["checkpoint"].values.tolist()
    said = f"{told['reader'] or 'instrument not recorded'}, {len(steps)} checkpoints from {steps[0]} to {steps[-1]}"
    return {**told, "reader": " ".join(["values", *told["reader"].split(" ")[:1]]).strip(), "said": said}


def _mean(p: np.ndarray) -> np.ndarray:
    """[checkpoint, item, sample, stance] -> mean over the samples that were read; NaN where none was."""
    there = ~np.isnan(p[..., 0])
    total, count = np.nan_to_num(p).sum(2), there.sum(2)[..., None]
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _stances(stood: xr.Dataset, topics: list[str], steps: list[int], stances: tuple[str, ...]) -> dict[str, Any]:
    found = {name: _measure(stood, name, topics, steps) for name in ("keyed", "commitment")}
    for name in stances:
        found[name] = _measure(stood.sel(stance=name), "v", topics, steps)
    return found


def _measure(
    source: xr.Dataset, name: str, topics: list[str], steps: list[int], p: str | None = None
) -> dict[str, Any]:
    """Value, interval and p [topic, step] of one variable."""
    own = source.sel(topic=topics, checkpoint=steps)

    def values(which: str) -> np.ndarray:
        return own[which].transpose("topic", "checkpoint").values.astype(float)

    found = {"value": kit.decimals(values(name), 3)}
    found |= {end: kit.decimals(values(f"{name}_{end}"), 3) for end in ("low", "high")}
    return found | ({"p": kit.decimals(values(p), 3)} if p else {})


def _texts(items: Iterable[Any] | Mapping[Any, str] | None, ids: list[str]) -> list[str]:
    if items is None:
        return ids
    if not isinstance(items, Mapping):
        items = {item.item_id: item.text for item in items}
    texts = {str(key): str(text) for key, text in items.items()}
    if unknown := [i for i in ids if i not in texts]:
        raise InputError(f"Item {unknown[0]!r} has no text ({len(unknown)} have none). Give the items that were read.")
    return [texts[i] for i in ids]


def static(readings: Any, **options: Any) -> str:
    """Keyed stance by topic and checkpoint, means over clusters, and where it is not told from 0."""
    from probes.values.measures import stance
    from probes.values.units import checked

    stood = stance(checked(kit.opened(readings)[0])).data
    keyed, low, high = (stood[n].transpose("topic", "checkpoint").values for n in ("keyed", "keyed_low", "keyed_high"))
    topics, steps = kit.every(len(keyed), STATIC_TOPICS), kit.every(keyed.shape[1], STATIC_STEPS)
    names, checkpoints = [str(t) for t in stood["topic"].values], stood["checkpoint"].values
    reach = max(0.05, float(np.nanmax(np.abs(keyed), initial=0)))

    def cell(t: int, s: int) -> tuple[str, float]:
        unsure = "" if low[t, s] > 0 or high[t, s] < 0 else "°"
        return f"{keyed[t, s]:+.2f}{unsure}", float(keyed[t, s] / reach)

    rows = [[tokens.plain(names[t]), *(cell(t, s) for s in steps)] for t in topics]
    said = [
        _about(readings)["reader"],
        "keyed stance by topic and checkpoint, -1 to 1 (° its 95 % interval over clusters of items holds 0)",
    ]
    if len(topics) < len(names) or len(steps) < len(checkpoints):
        said.append(f"{len(topics)} of {len(names)} topics, {len(steps)} of {len(checkpoints)} checkpoints")
    head = ["topic", *(str(checkpoints[s]) for s in steps)]
    return kit.table(said, head, rows, "diverging")


VIEW = kit.View(
    "DriftExplorer",
    "How stances on each topic move over training, hatched where the move is not beyond chance, and the items that "
    "moved most between two checkpoints.",
    Path(__file__).with_name("explorer.js"),
    ("p", "checkpoint", "item", "stance", "topic", "polarity", "cluster"),
    payload,
    static,
    complete,
)
explore, to_html = VIEW.explore, VIEW.to_html
