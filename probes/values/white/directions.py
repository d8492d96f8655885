"""The stance direction over training: what moves along it, whether it still holds, how far it has turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from probes.values.units import RUN, family
from probes.values.white.groups import Groups
from probes.values.white.measured import rotations
from probes.values.white.series import Series
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import nanmean, over, p_value, quantiles
from workbench.variables import about

KINDS = ("fixed", "refit")
NULLS = ("shuffled labels", "gaussian", "shuffled keys")


def tested(name: str, long_name: str, units: str = "", **more: Any) -> dict[str, Any]:
    """Attributes of what is compared with directions that mean nothing."""
    return {
        f"{name}_null_p": about(f"p of {long_name}, by null", role="p", of=name),
        f"{name}_battery_p": about(f"p of {long_name}, the largest of the nulls'", role="p", of=name),
        f"{name}_null_high": about(f"quantile of {long_name} on null directions", units, role="floor", of=name),
    }  # fmt: skip


PROJECTIONS = {
    **family("D", "projection drift", "SD", ends=("low", "high", "p")),
    **tested("D", "projection drift", "SD"),
    **family("overall", "projection drift, mean over topics", "SD", ends=("low", "high")),
    **tested("overall", "projection drift, mean over topics", "SD"),
}
DIRECTION_VARIABLES = {
    "kind": about("direction: the baseline's, or fitted anew", role="label"),
    **family("auc", "AUC of the direction", better="high", ends=("low", "high")),
    **family("auc_lost", "AUC of the refitted direction less the baseline's", ends=("low", "high")),
    **family("mean_auc", "AUC of the direction, mean over topics", better="high", ends=("low", "high")),
    **family("mean_auc_lost", "AUC lost, mean over topics", ends=("low", "high")),
    **family("cosine", "cosine with the baseline's direction", ends=("low", "high")),
    **family("ceiling", "cosine that directions of other items would have", ends=("low", "high")),
    **family("rotation", "cosine of directions, corrected for attenuation", ends=("low", "high")),
}
DIRECTION_VARIABLES["mean_auc"]["short_name"] = "AUC"
DIRECTION_VARIABLES["rotation"]["short_name"] = "cosine"
SIMILARITY = {
    key: value
    for name, said in (("cka", "CKA with the baseline"), ("cka_debiased", "debiased CKA with the baseline"))
    for key, value in family(name, said, ends=("low", "high", "null", "null_high", "p")).items()
}


def projections(data: Reading | xr.Dataset, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Reading:
    """How far states move along the baseline's stance direction, and whether what means nothing shows as much.

    An item's state is projected on the direction, of length 1, to which its own cluster did not contribute: on one that
    it helped to make, it would lie too far out at the baseline, and any change at all would look like a way back.

    Args:
        data: ``tracker.table("whitebox")``.

    Returns:
        D [checkpoint, direction, topic, layer]: mean keyed projection less the baseline's, in SDs (pooled, within topic
            and key) of the baseline's projections; direction: that of all topics, or the topic's own.  _low, _high:
            bootstrap over clusters.
        D_p: is it more than 0?  Signs of clusters flipped, the largest |T| over topics, checkpoints and layers.
        D_null_p [null, checkpoint, direction, topic, layer]: is it more than where labels mean nothing?  |D| against
            the largest |D| over layers of each draw, so that the layer which shows most is compared with layers that
            show most.  One family is the layers: several checkpoints and topics are several tests.
        D_battery_p: the largest of the nulls' p, and the one to report.
        D_null_high [null, checkpoint, direction, topic]: the ``level`` quantile of those largest.
        overall [checkpoint, direction, layer]: the mean over topics, with overall_low, _null_p and so on.

    Each null alone is passed too easily somewhere.
        shuffled labels: directions of permuted labels, signed by them.  What any split of these prompts would show;
            exact where labels mean nothing.  Where states tell them apart at the baseline, a permuted direction is not
            like the true one.
        gaussian: directions of N(0, S).  What any direction shows that varies as much among these prompts; but none of
            them was found with the labels that sign the projections.
        shuffled keys: the true direction, and projections signed by permuted keys.  What drift shows that has nothing
            to do with them.
    A change of scale of all states moves every projection that was not 0: look at AUC beside (:func:`directions`),
    which it leaves alone.
    """
    series = Series(data)
    series.moved()
    change, null = moves(series)
    units, others = series.units, series.others
    d = units.means(change)
    own, star = units.interval(d, level, draws, seed), units.again(d, draws, seed)
    value, low, high = own.value, own.low, own.high
    test = units.tested(d[:, others], level, draws, seed)
    p = np.full(value.shape, np.nan)
    p[:, others] = test.p
    largest = _largest(null)
    null_p, bound = _beyond(np.moveaxis(value, 2, -1), largest, level)
    overall, overall_star = nanmean(value), nanmean(np.moveaxis(star, 1, 0))
    overall_low, overall_high = quantiles(overall_star, level)
    # The mean over topics of each draw, and then its largest over layers.
    averaged = _largest(nanmean(np.moveaxis(null, 2, 0)))
    overall_null_p, overall_bound = _beyond(np.moveaxis(overall, 1, -1), averaged, level)
    dims, short = ("topic", "checkpoint", "layer", "direction"), ("checkpoint", "layer", "direction")
    against = ("null", "topic", "checkpoint", "direction", "layer")
    found = {
        "D": (dims, value), "D_low": (dims, low), "D_high": (dims, high), "D_p": (dims, p),
        "D_null_p": (against, null_p), "D_null_high": (against[:-1], bound),
        "D_battery_p": (against[1:], null_p.max(0)),
        "overall": (short, overall), "overall_low": (short, overall_low), "overall_high": (short, overall_high),
        "overall_null_p": (("null", "checkpoint", "direction", "layer"), overall_null_p),
        "overall_null_high": (("null", "checkpoint", "direction"), overall_bound),
        "overall_battery_p": (("checkpoint", "direction", "layer"), overall_null_p.max(0)),
    }  # fmt: skip
    for name in found:
        # At the baseline itself there is nothing to test.
        if name.endswith(("_p", "_null_high")):
            axis = found[name][0].index("checkpoint")
            np.moveaxis(found[name][1], axis, 0)[series.base] = np.nan
    asked = {"level": level, "draws": draws, "seed": seed}
    attrs = {
        "level": level, "draws": draws, "nulls": series.data.sizes["draw"], "baseline": int(series.steps[series.base]),
        "interval": own.said("clusters of items"), "assumes": f"{test.assumes}; {RUN}",
    }  # fmt: skip
    order, coords = ("null", "checkpoint", "direction", "topic", "layer"), {"null": list(NULLS)}
    return series.derived("projections", found | units.counts(), PROJECTIONS, coords, order, attrs, **asked)


def moves(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Changes of projections from the baseline: of items, keyed [checkpoint, item, 1, layer, direction], and keyed
    means under each of ``NULLS`` [null, draw, topic, checkpoint, layer, direction].

    Raises InputError where no topic has a direction.
    """
    data = series.data
    x = data["projection"].transpose("checkpoint", "item", "layer", "direction").values.astype(float)
    if np.isnan(x).all():
        raise InputError(
            "No topic has two clusters or more of each label, so there is no stance direction. Ask items of both "
            "polarities, or give WhiteBox(labels=...)."
        )
    order = ("null", "draw", "topic_name", "checkpoint", "layer", "direction")
    null = data["null_projection"].transpose(*order).values
    null = null - null[:, :, :, [series.base]]
    x = x - x[[series.base]]
    return series.keyed(x), np.concatenate([null, _other_keys(series, x, null.shape[1])[None]])


def _other_keys(series: Series, change: np.ndarray, draws: int) -> np.ndarray:
    """Changes [checkpoint, item, layer, direction] -> their keyed means when keys are permuted within topics, among
    groups of items of one cluster and key: [draw, topic, checkpoint, layer, direction]."""
    units, key = series.units, series.key.astype(int)
    groups = Groups(units, key, key)
    keys = groups.shuffled(draws, 0)[1][:, groups.group]
    shape = (draws, len(units.topics), *change.shape[:1], *change.shape[2:])
    found = np.full(shape, np.nan, np.float32)
    for l in range(change.shape[2]):
        for d in range(change.shape[3]):
            there = (key != 0) & ~np.isnan(change[:, :, l, d]).any(0)
            members = np.bincount(units.unit[there], minlength=len(units.topic))
            weight = there * over(1, members)[units.unit]
            for t in range(len(units.topics)):
                own = np.flatnonzero((units.item_topic == t) & there)
                if len(own):
                    clusters = (members[units.topic == t] > 0).sum()
                    found[:, t, :, l, d] = (keys[:, own] * weight[own]) @ change[:, own, l, d].T / clusters
    return found


def _largest(null: np.ndarray) -> np.ndarray:
    """[null, draw, ..., layer, direction] -> the largest |D| over layers [null, draw, ..., direction]."""
    size = np.where(np.isnan(null), -1, np.abs(null)).max(-2)
    return np.where(size < 0, np.nan, size)


def _beyond(value: np.ndarray, largest: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """|value| [..., direction, layer] against maxima [null, draw, ..., direction] -> p [null, ..., direction, layer],
    and the ``level`` quantile of the maxima [null, ..., direction]."""
    p = np.stack([p_value(np.abs(value), np.broadcast_to(x[..., None], (len(x), *value.shape))) for x in largest])
    return p, np.stack([np.quantile(x, level, axis=0) for x in largest])


def directions(data: Reading | xr.Dataset, *, level: float = 0.95, draws: int = 500, seed: int = 0) -> Reading:
    """Does the baseline's stance direction still tell the two labels apart, and how far has the direction turned?

    A direction that was found once can stop working while the information stays (or the reverse: Du et al. 2025, arXiv
    2504.02904, of truthfulness and refusal), so the fixed one stands beside one fitted anew.

    Returns:
        auc [checkpoint, kind, direction, topic, layer]: how often an item labelled +1 lies farther along the direction
            than one of its topic labelled -1 (ties count half; .5: the direction says nothing), each projected on a
            direction to which its own cluster did not contribute, and clusters counted once.  kind: "fixed", the
            baseline's direction (transfer), or "refit", this checkpoint's.  _low, _high: bootstrap over clusters.
        auc_lost [checkpoint, direction, topic, layer]: refit less fixed, with _low and _high.
        mean_auc, mean_auc_lost: means over topics, with _low and _high.
        cosine, ceiling, rotation [checkpoint, fitted, layer], each with _low and _high: see
            :func:`probes.values.white.measured.rotations`.  fitted: all topics ("pooled"), or one.  rotation is 1 where
            the direction is where it was; NaN where it is too uncertain to say.
    """
    series = Series(data)
    moves(series)
    steps, layers = len(series.steps), len(series.layers)
    shape = (2, 2, len(series.units.topics), layers)
    value, ends = np.full((steps, *shape), np.nan), np.full((2, steps, *shape), np.nan)
    lost, lost_ends = np.full((steps, *shape[1:]), np.nan), np.full((2, steps, *shape[1:]), np.nan)
    mean, mean_ends = np.full((steps, 2, 2, layers), np.nan), np.full((2, steps, 2, 2, layers), np.nan)
    gone, gone_ends = np.full((steps, 2, layers), np.nan), np.full((2, steps, 2, layers), np.nan)
    times = np.concatenate([np.ones((1, len(series.units.topic))), series.units.design.resample(draws, seed)])
    for t in range(steps):
        found = np.stack([_aucs(series, t, kind, times) for kind in KINDS], 1)  # [draw, kind, direction, topic, layer]
        for target, bounds, x in (
            (value, ends, found),
            (lost, lost_ends, found[:, 1] - found[:, 0]),
            (mean, mean_ends, nanmean(np.moveaxis(found, 3, 0))),
            (gone, gone_ends, nanmean(np.moveaxis(found[:, 1] - found[:, 0], 2, 0))),
        ):
            target[t], bounds[:, t] = x[0], quantiles(x[1:], level)
    dims = ("checkpoint", "kind", "direction", "topic", "layer")
    found = {}
    for name, own, x, bounds in (
        ("auc", dims, value, ends),
        ("auc_lost", dims[:1] + dims[2:], lost, lost_ends),
        ("mean_auc", dims[:3] + dims[4:], mean, mean_ends),
        ("mean_auc_lost", ("checkpoint", "direction", "layer"), gone, gone_ends),
    ):
        found |= {name: (own, x), f"{name}_low": (own, bounds[0]), f"{name}_high": (own, bounds[1])}
    turned = rotations(series.data["turn"].transpose("again", "checkpoint", "fitted", "layer", "product").values)
    for name, x in turned.items():
        low, high = quantiles(x[1:], level)
        sure = np.isnan(x[1:]).mean(0) <= 1 - level  # else one of the ends is not known
        own = ("checkpoint", "fitted", "layer")
        found |= {name: (own, x[0]), f"{name}_low": (own, np.where(sure, low, np.nan))}
        found |= {f"{name}_high": (own, np.where(sure, high, np.nan))}
    attrs, coords = {"level": level, "draws": draws}, {"kind": list(KINDS)}
    said = {"interval": f"percentile over {series.units.clusters} clusters of items, within topics"}
    found |= series.units.counts()
    return series.derived("directions", found, DIRECTION_VARIABLES, coords, (...,), attrs | said, **attrs, seed=seed)


def _aucs(series: Series, t: int, kind: str, times: np.ndarray) -> np.ndarray:
    """[draw, direction, topic, layer] with clusters there ``times`` [draw, unit]."""
    units, label = series.units, series.data["label"].transpose("checkpoint", "item").values[t]
    score = series.data[f"{kind}_score"].transpose("checkpoint", "item", "layer", "direction").values[t]
    # Items of a cluster share its one vote.
    n = np.array([((units.unit == u) & (label == s)).sum() for u, s in zip(units.unit, label, strict=True)])
    weight = times[:, units.unit] / n
    found = np.full((len(times), score.shape[2], len(units.topics), score.shape[1]), np.nan)
    for topic in range(len(units.topics)):
        plus, minus = (np.flatnonzero((units.item_topic == topic) & (label == s)) for s in (1, -1))
        if not len(plus) or not len(minus):
            continue
        pairs = over(weight[:, plus].sum(1) * weight[:, minus].sum(1), 1)
        for d in range(score.shape[2]):
            for l in range(score.shape[1]):
                a, b = score[plus, l, d][:, None], score[minus, l, d]
                if np.isnan(a).any() or np.isnan(b).any():
                    continue
                ahead = (a > b) + 0.5 * (a == b)
                found[:, d, topic, l] = over(((weight[:, plus] @ ahead) * weight[:, minus]).sum(1), pairs)
    return found


def similarity(reading: Reading | xr.Dataset, *, level: float = 0.95) -> Reading:
    """Linear CKA of the states of clusters with the baseline's, layer by layer.

    Returns, for cka (|H_t'H_0|_F^2 / (|H_t'H_t|_F |H_0'H_0|_F) of centred states) and cka_debiased (with HSIC_1: where
    there are more dimensions than prompts, cka is near 1 for unrelated states, too):
        cka [checkpoint, layer]
        cka_low, cka_high: from random halves of the clusters, without replacement, whose spread is that of the whole
            (McCarthy 1969); a bootstrap would put a cluster beside itself, which looks like agreement.
        cka_null, cka_null_high: mean and ``level`` quantile when each cluster's baseline is another cluster's of its
            topic: what topics alone give.  cka_p: how often that reaches the value.
    """
    series, dims, found = Series(reading), ("checkpoint", "layer"), {}
    data = series.data
    for name in ("cka", "cka_debiased"):
        value, drawn = data[name].transpose(*dims).values, (data[f"{name}_{x}"] for x in ("half", "shuffled"))
        half, mixed = (x.transpose("half", *dims).values.astype(float) for x in drawn)
        low, high = quantiles(half - nanmean(half), level)
        found |= {
            name: (dims, value), f"{name}_low": (dims, value + low),
            f"{name}_high": (dims, np.minimum(1, value + high)), f"{name}_null": (dims, nanmean(mixed)),
            f"{name}_null_high": (dims, np.quantile(mixed, level, axis=0)), f"{name}_p": (dims, p_value(value, mixed)),
        }  # fmt: skip
    return series.derived("similarity", found, SIMILARITY, {}, (...,), {"level": level}, level=level)
