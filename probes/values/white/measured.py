"""What is kept of the states of one checkpoint, beside those of the baseline: small arrays, and never the states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.values.white.groups import DIRECTIONS, Groups
from probes.values.white.similarity import cka, shuffled
from workbench.stats import over
from workbench.variables import about

NULLS = ("shuffled labels", "gaussian")
PRODUCTS = ("across", "across fair", "now", "now fair", "baseline", "baseline fair")
HALVES = 200
"""Half-samples, and shuffles, of CKA."""
VARIABLES: dict[str, Any] = {
    "layer": about("layer", role="label"),
    "direction": about("stance direction", role="label"),
    "null": about("null", role="label"),
    "topic_name": about("topic", role="label"),
    "fitted": about("items that the direction was fitted on", role="label"),
    "product": about("product of two directions", role="label"),
    "projection": about("projection on the baseline's stance direction", "SD"),
    "null_projection": about(
        "keyed mean projection on directions that mean nothing", "SD", role="null", of="projection"
    ),
    "fixed_score": about("projection on the baseline's direction, centred by topic"),
    "refit_score": about("projection on this checkpoint's direction, centred by topic"),
    "turn": about("inner products of directions"),
    "cka": about("CKA with the baseline"),
    "cka_half": about("CKA with the baseline, of half of the clusters"),
    "cka_shuffled": about("CKA with the baseline's clusters shuffled", role="null", of="cka"),
    "cka_debiased": about("debiased CKA with the baseline"),
    "cka_debiased_half": about("debiased CKA with the baseline, of half of the clusters"),
    "cka_debiased_shuffled": about(
        "debiased CKA with the baseline's clusters shuffled", role="null", of="cka_debiased"
    ),
}


def measured(now: np.ndarray, base: np.ndarray, groups: Groups, *, draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """Variables of one checkpoint from states [item, layer, width] of its own and of the baseline.

    On fixed directions, those of the baseline, of length 1; an item's direction leaves out the item's cluster:
        projection [item, layer, direction], less the baseline's topic mean, in SDs (pooled, within topic and key) of
            the baseline's projections.
        null_projection [null, direction, draw, layer, topic]: keyed means of the same on directions that mean nothing,
            each in its own SDs.  "shuffled labels": labels and keys permuted within topics, and all else the same.
            "gaussian": sum_g x_g (h_g - topic mean), x_g standard normal, which are directions of N(0, S), S being the
            baseline's covariance within topics; keys are the true ones.
        fixed_score, refit_score [item, layer, direction]: centred by the topic's mean at this checkpoint, on the
            direction of the baseline and on that of this checkpoint.
    Directions themselves, the first being the value and the others clusters drawn again, within topics:
        turn [again, fitted, layer, product]: plain and fair products (:meth:`Groups.products`) of this checkpoint's
            direction and the baseline's, this one's with itself, and the baseline's with itself.
    Of the mean states of clusters:
        cka, cka_debiased [layer]; _half [half, layer]: of random halves of the clusters; _shuffled [half, layer]: the
            baseline's states being those of another cluster of the topic.
    """
    chance = Chance(groups, draws, seed)
    found = [
        {**along(one, chance), **turned(one, chance), **alike(one, chance)}
        for one in (kernels(now[:, l], base[:, l], groups) for l in range(now.shape[1]))
    ]
    dims = {
        **dict.fromkeys(("projection", "fixed_score", "refit_score"), ("item", "layer", "direction")),
        "null_projection": ("null", "direction", "draw", "layer", "topic_name"),
        "turn": ("again", "fitted", "layer", "product"),
        **dict.fromkeys(("cka", "cka_debiased"), ("layer",)),
        **dict.fromkeys([f"{x}_{y}" for x in ("cka", "cka_debiased") for y in ("half", "shuffled")], ("half", "layer")),
    }
    return {name: (own, np.stack([x[name] for x in found], own.index("layer"))) for name, own in dims.items()}


def axes(groups: Groups) -> dict[str, Any]:
    """Names along the axes of :func:`measured`."""
    return {
        "direction": list(DIRECTIONS), "null": list(NULLS), "topic_name": np.array(groups.topics, object),
        "fitted": np.array(["pooled", *groups.topics], object), "product": list(PRODUCTS),
    }  # fmt: skip


class Chance:
    """What is drawn, once for all layers and alike at all checkpoints."""

    def __init__(self, groups: Groups, draws: int, seed: int) -> None:
        units, rng = groups.units, np.random.default_rng([seed, 13])
        self.groups = groups
        self.labels, keys = groups.shuffled(draws, seed)
        self.key = groups.key[None, groups.group]
        """[1, item], and under each null [draw, item]:"""
        self.keys = dict(zip(NULLS, (keys[:, groups.group], np.repeat(self.key, draws, 0)), strict=True))
        self.random = _gaussian(groups, draws, seed), np.ones((draws, len(groups.topics)))
        """Weights [draw, group] and shares [draw, topic] of Gaussian directions."""
        again = units.design.resample(draws, seed)
        self.times = np.concatenate([np.ones((1, len(units.topic))), again])[:, groups.unit]
        """[again, group]"""
        order = np.argsort(rng.random((HALVES, units.clusters)), 1)
        chosen = np.zeros((HALVES, units.clusters))
        np.put_along_axis(chosen, order[:, : -(-units.clusters // 2)], 1, 1)
        self.halves = chosen[:, units.cluster]
        """[half, unit] of 0 and 1: random halves of the clusters."""
        self.orders = np.tile(np.arange(len(units.topic)), (HALVES, 1))
        """[half, unit]: in each other's places, within topics."""
        for t in range(len(groups.topics)):
            own = np.flatnonzero(units.topic == t)
            self.orders[:, own] = rng.permuted(self.orders[:, own], axis=1)


def _gaussian(groups: Groups, draws: int, seed: int) -> np.ndarray:
    weights = np.random.default_rng([seed, 12]).standard_normal((draws, len(groups.label)))
    for own in groups.own:
        weights[:, own] -= weights[:, own].mean(1, keepdims=True)
        if len(own) < 2:
            weights[:, own] = 0
    return weights


@dataclass
class Kernels:
    """Inner products of the states of one layer, less the baseline's mean state: [item, group] with a group's mean
    state at the right, and (_gg) [group, group].

    across: this checkpoint's with the baseline's; within: this one's with its own; start: the baseline's with its own.
    means: of clusters, [unit, width], at this checkpoint and at the baseline.
    """

    across: np.ndarray
    within: np.ndarray
    start: np.ndarray
    across_gg: np.ndarray
    within_gg: np.ndarray
    start_gg: np.ndarray
    means: tuple[np.ndarray, np.ndarray]


def kernels(now: np.ndarray, base: np.ndarray, groups: Groups) -> Kernels:
    """From states [item, width], in double precision.

    States that differ by rounding alone (each prompt ends in the same token, and this is its embedding) are made equal.
    """
    states = []
    for x in (now, base):
        x = x.astype(np.float64)
        mean = x.mean(0)
        equal = np.linalg.norm(x - mean) <= 1e-6 * np.linalg.norm(x)
        states.append(np.broadcast_to(mean, x.shape) if equal else x)
    ht, h0 = (x - states[1].mean(0) for x in states)
    gt, g0 = groups.average @ ht, groups.average @ h0
    found = ht @ g0.T, ht @ gt.T, h0 @ g0.T
    units = groups.units.unit
    members = np.equal.outer(np.arange(len(groups.units.topic)), units) / np.bincount(units)[:, None]
    return Kernels(*found, *(groups.average @ x for x in found), (members @ ht, members @ h0))


def along(one: Kernels, chance: Chance) -> dict[str, np.ndarray]:
    """projection, fixed_score, refit_score [item, direction] and null_projection [null, direction, draw, topic]."""
    groups = chance.groups
    offset = groups.others @ one.start_gg
    at, origin, real = one.across - offset, one.start - offset, groups.label[None]
    size = _lengths(groups, one.start_gg, *groups.contrast(real))
    scale = groups.scale(groups.held_out(origin, real) / size, chance.key)
    own = _lengths(groups, one.within_gg, *groups.contrast(real))
    found = {
        "projection": (groups.held_out(at, real) / size / scale)[0],
        "fixed_score": (groups.held_out(one.across - groups.others @ one.across_gg, real) / size)[0],
        "refit_score": (groups.held_out(one.within - groups.others @ one.within_gg, real) / own)[0],
    }
    null = []
    for name in NULLS:
        if name == "gaussian":
            size = _lengths(groups, one.start_gg, *chance.random)
            before, after = (groups.projected(x, *chance.random) / size for x in (origin, at))
        else:
            size = _lengths(groups, one.start_gg, *groups.contrast(chance.labels))
            before, after = (groups.held_out(x, chance.labels) / size for x in (origin, at))
        keys = chance.keys[name]
        null.append(np.moveaxis(groups.keyed_means(after / groups.scale(before, keys), keys), -1, 0))
    found["null_projection"] = np.stack(null)
    return {name: x.astype(np.float32) for name, x in found.items()}


def _lengths(groups: Groups, kernel: np.ndarray, weights: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Of the direction that each item is projected on: [draw, item, direction]."""
    pooled, own = groups.lengths(kernel, weights, share)
    return np.stack([np.repeat(pooled[:, None], len(groups.item_topic), 1), own[:, groups.item_topic]], -1)


def turned(one: Kernels, chance: Chance) -> dict[str, np.ndarray]:
    """turn [again, fitted, product]."""
    pairs = (chance.groups.products(x, chance.times) for x in (one.across_gg, one.within_gg, one.start_gg))
    return {"turn": np.stack([x for pair in pairs for x in pair], -1).astype(np.float32)}


def alike(one: Kernels, chance: Chance) -> dict[str, np.ndarray]:
    """cka, cka_debiased; _half, _shuffled [half]."""
    k, l = (x @ x.T for x in one.means)
    found = {}
    mixed = shuffled(k, l, chance.orders)
    for name, other in zip(("cka", "cka_debiased"), mixed, strict=True):
        debiased = name == "cka_debiased"
        found[name] = cka(k, l, debiased=debiased)[0]
        found[f"{name}_half"] = cka(k, l, chance.halves, debiased=debiased).astype(np.float32)
        found[f"{name}_shuffled"] = other.astype(np.float32)
    return found


def rotations(turn: np.ndarray) -> dict[str, np.ndarray]:
    """Products [..., product] of :func:`measured` -> cosine, ceiling, rotation [...].

    cosine      w_t . w_0 / (|w_t| |w_0|), of directions from the same items.
    ceiling     root of r_t r_0, with r = w^A . w^B (fair) / |w|^2: how far directions from other items would agree had
                nothing moved.  r is the mean cosine of directions from two halves of the clusters, stepped up to all
                of them by Spearman and Brown, 2 r_half / (1 + r_half): with |w|^2 = m + s / n, of which m is common to
                all items and s / n is peculiar to these n, r_half = m / (m + 2 s / n), and r = m / (m + s / n).
    rotation    w_t^A . w_0^B / root of (w_t^A . w_t^B) (w_0^A . w_0^B): the cosine of directions from different items
                over its ceiling, which corrects for attenuation (Spearman 1904) and is an estimate of the cosine
                between directions from all items that there could be.  1 where nothing moved; noise can carry it over.

    cosine / ceiling is no such estimate, although it looks like one: items that are peculiar at the baseline are so
    later, too, and with nothing moved it is 1 / r.  NaN where directions of different items do not agree at all.
    """
    plain, fair = turn[..., ::2].astype(float), turn[..., 1::2].astype(float)
    length = np.sqrt(np.maximum(0, plain[..., 1] * plain[..., 2]))
    both = np.where((fair[..., 1] > 0) & (fair[..., 2] > 0), fair[..., 1] * fair[..., 2], np.nan)
    return {
        "cosine": over(plain[..., 0], length),
        "ceiling": over(np.sqrt(both), length),
        "rotation": over(fair[..., 0], np.sqrt(both)),
    }
