"""Hubs of an index: contexts that are near to everything, and layers that answer whatever is asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lenses.latent.search import CALIBRATIONS, SAMPLE
from workbench.engine.hooks import neutral
from workbench.reading import Reading, derived
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
