"""Hubs of an index: contexts that are near to everything, and layers that answer whatever is asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lenses.latent.search import CALIBRATIONS, SAMPLE
from workbench.engine.hooks import neutral
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, over
from workbench.variables import about, described

if TYPE_CHECKING:
    from lenses.latent.index import ContextIndex

VARIABLES = {
    "share": about("share of the neighbours from an index layer", short_name="share"),
    "share_rows": about("share of the index's rows in an index layer", role="chance", of="share", short_name="rows"),
    "skewness": about("skewness of the k-occurrence over contexts", better="low", short_name="skewness"),
    "skewness_null": about("skewness with equal chances (binomial)", role="chance", of="skewness"),
    "never_found": about("share of the contexts in no query's neighbours", better="low"),
    "hub_count": about("queries that have the context among their neighbours", "queries"),
    "hub_token": about("token that the hub ends in", role="label", of="hub_count"),
    "hub_sentence": about("sentence of the hub", role="label", of="hub_count"),
    "calibration": about("calibration", role="label", of="skewness"),
}


@neutral()
def hubness(
    index: ContextIndex,
    states: Any = None,
    *,
    calibrations: Iterable[str] = CALIBRATIONS,
    top_k: int = 10,
    hubs: int = 10,
) -> Reading:
    """How unevenly the contexts of an index are found, for each calibration.

    A context's *k-occurrence* is in how many queries' ``top_k`` it stands.  If all were found equally often it would
    be nearly Poisson; a long right tail means hubs (Radovanović et al. 2010, JMLR 11, "Hubs in space").

    Args:
        states: queries [queries, d_model]; default: up to 1,024 of the index's own states, from all layers alike,
            each searched without its own context.
        top_k: neighbours of a query.
        hubs: how many of the most frequent contexts to name.

    Returns:
        share                    [calibration, index]: neighbours from each index layer; sums to 1.
        share_rows               [index]: what chance would give (all layers have the same rows).
        skewness, skewness_null  [calibration]: of the k-occurrence over contexts, and of the binomial that equal
                                 chances give.
        never_found              [calibration]: share of the contexts in no query's neighbours.
        hub_count, hub_token, hub_sentence  [calibration, hub]: the most frequent contexts, and in how many queries.
    """
    layers, names = index.layers, list(calibrations)
    own = np.zeros(0, np.int64)
    if states is None:
        sample = index.sample(SAMPLE)
        states, own = sample.units * sample.norm[:, None], sample.row
    n, k = index.n_rows, min(top_k, max(index.n_rows - 1, 0))
    share = np.zeros((len(names), len(layers)), np.float32)
    skewness, never = np.zeros(len(names)), np.zeros(len(names))
    count = np.zeros((len(names), hubs), np.int64)
    rows = np.full((len(names), hubs), -1, np.int64)
    for c, name in enumerate(names):
        found = index.nearest(states, k + 1 if len(own) else k, calibration=name)
        good = found.row >= 0
        if len(own):  # without itself, and no more than k
            good &= found.row != own[:, None]
            good &= np.cumsum(good, 1) <= k
        share[c] = [(found.layer[good] == layer).sum() for layer in layers]
        times = np.bincount(found.row[good], minlength=n)
        centred = times - times.mean()
        skewness[c] = (centred**3).mean() / max(1e-30, (centred**2).mean() ** 1.5)
        never[c] = (times == 0).mean()
        top = np.argsort(-times, kind="stable")[:hubs]
        rows[c, : len(top)], count[c, : len(top)] = top, times[top]
    share /= share.sum(1, keepdims=True).clip(1)
    trials = len(states) * k
    chance = 1 / max(n, 1)
    null = (1 - 2 * chance) / max(1e-30, (trials * chance * (1 - chance)) ** 0.5)
    named = index.describe(rows)
    both = ("calibration", "hub")
    data = xr.Dataset(
        {
            "share": (("calibration", "index"), share),
            "share_rows": (("index",), np.full(len(layers), 1 / len(layers), np.float32)),
            "skewness": (("calibration",), skewness),
            "skewness_null": (("calibration",), np.full(len(names), null)),
            "never_found": (("calibration",), never),
            "hub_count": (both, count),
            "hub_token": (both, named["token"]),
            "hub_sentence": (both, named["sentence"]),
        },
        {"calibration": names, "index": layers},
        {"queries": len(states), "top_k": k},
    )
    return derived("lenses.latent.hubness", described(data, VARIABLES), index.origin(), top_k=k, queries=len(states))


OF_READING = {
    "share": about("share of the neighbours that are one context", better="low", short_name="share"),
    "share_low": about("95 % interval over prompts", role="low", of="share"),
    "share_high": about("95 % interval over prompts", role="high", of="share"),
    "share_floor": about(
        "95th percentile of the largest share if all contexts were found equally often", role="floor", of="share",
        short_name="equal chances",
    ),
    "tokens": about("tokens that have the context among their neighbours", "tokens"),
    "cells": about("tokens that have neighbours", "tokens", role="count", of="share"),
    "hub_context": about("number of the hub in the index", role="label", of="share"),
    "hub_token": about("token that the hub ends in", role="label", of="share"),
    "hub_sentence": about("sentence of the hub", role="label", of="share"),
    "kind": about("what the tokens are pieces of", role="label", of="share"),
}  # fmt: skip


def hubs(reading: Reading, *, hubs: int = 10) -> Reading:
    """Which contexts are the neighbours of how many tokens of a reading, apart for text and for pictures.

    One context that stands among the neighbours of many tokens, or heads the list at every layer, says more about the
    index than about them.  The same context in several index layers counts as one.

    Parameters
    ----------
    reading
        Of :class:`lenses.LatentLens`.
    hubs
        How many of the most frequent contexts to name.

    Returns
    -------
    Reading
        With [kind, layer, hub], kind "text" or "image" as far as the reading has them, without attention sinks and
        visual tokens that show nothing:
        share                   of all neighbours; the first hub's is the share of the most frequent context
        share_low, share_high   interval over prompts (:meth:`workbench.stats.Design.bootstrap`); NaN with one prompt.
                                The contexts are chosen by the same prompts, so that it is of these contexts alone
        share_floor [kind, layer]   what the largest share stays under in 95 of 100 cases if all contexts of the index
                                were found equally often, each time by itself
        tokens                  how many tokens have the context among their neighbours
        cells [kind, layer]     how many there are
        hub_context, hub_token, hub_sentence   the contexts; -1 and "" where there are fewer

    Raises
    ------
    InputError
        For a reading of another lens.
    """
    data = reading.data
    if "index_layer" not in data or "context" not in data:
        raise InputError("hubs() needs a reading of LatentLens.")
    axis = "layer" if "layer" in data.dims else "block"
    rows = data["context"].transpose("prompt", axis, "position", "rank").values
    held = known_of_index(reading)
    good = np.broadcast_to(data["input_id"].values[:, None] >= 0, rows.shape[:3]).copy()
    if "sink" in data:
        good &= ~data["sink"].transpose("prompt", axis, "position").values.astype(bool)
    shape = data["input_id"].shape
    of = data["kind"].values.astype(str) if "kind" in data.coords else np.full(shape, "text")
    kinds = [kind for kind in ("text", "image") if (of == kind).any()]
    size = (len(kinds), rows.shape[1], hubs)
    share, low, high = (np.full(size, np.nan, np.float32) for _ in range(3))
    tokens, row = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    floor, cells = np.full(size[:2], np.nan, np.float32), np.zeros(size[:2], np.int64)
    named = {name: data[name].transpose("prompt", axis, "position", "rank").values for name in ("token", "sentence")}
    text = {name: np.full(size, "", object) for name in named}
    said = ""
    for k, kind in enumerate(kinds):
        for depth in range(rows.shape[1]):
            some = good[:, depth] & (of == kind)
            own = np.where(some[..., None], rows[:, depth], -1)
            each = [dict(zip(*np.unique(r[r >= 0], return_counts=True), strict=True)) for r in own]
            total = (own >= 0).sum((1, 2))
            cells[k, depth] = (own >= 0).any(-1).sum()
            if not total.sum():
                continue
            every, times = np.unique(own[own >= 0], return_counts=True)
            top = every[np.argsort(-times, kind="stable")[:hubs]]
            counts = np.array([[times_of.get(x, 0) for x in top] for times_of in each])
            n = len(top)
            row[k, depth, :n] = top
            tokens[k, depth, :n] = [(own == x).any(-1).sum() for x in top]
            found = Design(weights=np.broadcast_to(total[:, None], counts.shape)).bootstrap(
                over(counts, total[:, None]), bounds=(0, 1)
            )
            share[k, depth, :n], low[k, depth, :n], high[k, depth, :n] = found.value, found.low, found.high
            said = found.said("prompts")
            floor[k, depth] = _largest(int(total.sum()), held) / total.sum()
            for j, x in enumerate(top):
                p, at, rank = np.argwhere(own == x)[0]
                for name, values in text.items():
                    values[k, depth, j] = str(named[name][p, depth, at, rank])
    dims = ("kind", axis, "hub")
    made = xr.Dataset(
        {
            "share": (dims, share), "share_low": (dims, low, {"interval": said}),
            "share_high": (dims, high, {"interval": said}), "share_floor": (dims[:2], floor),
            "tokens": (dims, tokens), "cells": (dims[:2], cells), "hub_context": (dims, row),
            "hub_token": (dims, text["token"]), "hub_sentence": (dims, text["sentence"]),
        },
        {"kind": kinds, axis: data[axis].values},
        {"contexts": held, "top_k": int(data.sizes["rank"])},
    )  # fmt: skip
    return derived("lenses.latent.hubness.hubs", described(made, OF_READING), reading, hubs=hubs)


def known_of_index(reading: Reading) -> int:
    """How many contexts the index of a LatentLens reading has, by its provenance."""
    for step in reading.provenance:
        told = step.get("reader") if isinstance(step, dict) else None
        if isinstance(told, dict) and isinstance(told.get("index"), dict):
            return int(told["index"]["n_rows"])
    raise InputError("The provenance of this reading does not say which index its neighbours come from.")


def _largest(found: int, contexts: int, level: float = 0.95) -> int:
    """What the largest of ``contexts`` counts stays under that often, of so many neighbours found at random."""
    from scipy.stats import binom

    # The counts of a multinomial are negatively associated: a union bound over them is a bound.
    return int(binom.isf((1 - level) / contexts, found, 1 / contexts))
