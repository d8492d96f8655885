"""For or against, layer by layer."""

from __future__ import annotations

import numpy as np
import xarray as xr

from probes.values.units import RUN, family
from probes.values.white.series import Series
from workbench.reading import Reading
from workbench.stats import nanmean, quantiles
from workbench.variables import about

EXACT = 1e-5
"""Share of a framing's margin below which the mean over framings is rounding: margins that cancel are 0."""


VARIABLES = {
    **family("margin", "stance margin", "nats", ends=("low", "high", "p")),
    **family("M", "stance margin less the baseline's", "nats", ends=("low", "high", "p")),
    **family("depth", "commitment depth", "layers", ends=("low", "high")),
    "depth_sure": about("first layer from which on each margin is different from 0", "layers"),
}


def margins(data: Reading | xr.Dataset, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Reading:
    """The stance margin of every layer, and from which layer on the stance is settled.

    An item's margin is the log-odds of support against opposition where the answer begins, under the logit lens (final
    norm and unembedding at every layer; nostalgebraist 2020), in nats, averaged over its framings and signed by its
    polarity: above 0, towards the topic's direction.  At the last layer it is the model's own.  What a lens says of
    earlier layers is in the last layer's words: a margin of 0 there is no proof that nothing is known yet.

    Args:
        data: ``tracker.table("whitebox")``.
        level: of intervals; a margin is different from 0 where margin_p <= 1 - level.

    Returns:
        margin [checkpoint, topic, layer]: mean over clusters; _low, _high: bootstrap over clusters; _p: signs of
            clusters flipped, the largest |T| over topics, checkpoints and layers (one family).
        M: margin less the baseline's, paired, with _low, _high and _p likewise; NaN at the baseline.
        depth [checkpoint, topic]: commitment depth, the first layer from which on the margin's sign is the last
            layer's; NaN where the last layer's margin is not different from 0, since there is then no stance to commit
            to.  _low, _high: of the draws.
        depth_sure [checkpoint, topic]: the first layer from which on each margin is different from 0, too: the sign of
            a small margin at a low layer may be right by chance, and depth then comes out too low.
    """
    series = Series(data)
    units, base = series.units, series.base
    raw = series.data["margin"].transpose("checkpoint", "item", "framing", "layer").values
    mean = nanmean(np.moveaxis(raw, 2, 0))
    size = nanmean(np.moveaxis(np.abs(raw), 2, 0))
    x = series.keyed(np.where(np.abs(mean) <= EXACT * size, 0.0, mean))
    d = units.means(x)
    own, star = units.interval(d, level, draws, seed), units.again(d, draws, seed)
    value, low, high = own.value, own.low, own.high
    test = units.tested(d, level, draws, seed)
    p = test.p
    dims = ("topic", "checkpoint", "layer")
    found = {"margin": (dims, value), "margin_low": (dims, low), "margin_high": (dims, high), "margin_p": (dims, p)}
    change = x - x[[base]]
    d, m_p = units.means(change), np.full(value.shape, np.nan)
    if len(series.others):
        m_p[:, series.others] = units.tested(d[:, series.others], level, draws, seed).p
    moved = units.interval(d, level, draws, seed)
    found |= {"M": (dims, moved.value), "M_low": (dims, moved.low), "M_high": (dims, moved.high), "M_p": (dims, m_p)}
    sure = p[..., -1] <= 1 - level + 1e-12
    ends = quantiles(_settled(star, series.layers), level)
    for name, depth in zip(("depth", "depth_low", "depth_high"), (_settled(value, series.layers), *ends), strict=True):
        found[name] = (dims[:2], np.where(sure, depth, np.nan))
    firm = np.where(p <= 1 - level + 1e-12, value, 0.0)
    found["depth_sure"] = (dims[:2], _settled(firm, series.layers))
    attrs = {"level": level, "draws": draws, "baseline": int(series.steps[base])}
    attrs |= {"interval": own.said("clusters of items"), "assumes": f"{test.assumes}; {RUN}"}
    order, asked = ("checkpoint", "topic", "layer"), {"level": level, "draws": draws, "seed": seed}
    return series.derived("margins", found | units.counts(), VARIABLES, {}, order, attrs, **asked)


def _settled(margin: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Margins [..., layer] -> the first layer from which on their sign is the last one's; NaN where that is 0."""
    sign = np.sign(margin)
    same = (sign == sign[..., -1:])[..., ::-1]
    length = np.logical_and.accumulate(same, -1).sum(-1)
    return np.where(np.abs(sign[..., -1]) == 1, layers[np.minimum(len(layers) - length, len(layers) - 1)], np.nan)
