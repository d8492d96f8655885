"""Where LatentLens and the logit lens say the same: a check of one lens by the other."""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import bootstrap_interval
from workbench.variables import about, described

VARIABLES = {
    "rate": about(
        "share of positions where the logit lens's top token is among the neighbours'", better="high",
        short_name="share",
    ),
    "rate_low": about("bootstrap interval over prompts", role="low", of="rate"),
    "rate_high": about("bootstrap interval over prompts", role="high", of="rate"),
    "rate_chance": about("share with the neighbours of every other position", role="chance", of="rate"),
    "measure": about("token of the neighbour", role="label", of="rate"),
}  # fmt: skip


def logit_agreement(latent: Reading, logit: Reading, *, level: float = 0.95) -> Reading:
    """How often the logit lens's top token is among the tokens of the nearest contexts, layer by layer.

    Args:
        latent: a reading of :class:`LatentLens`.
        logit: one of :class:`LogitLens`, of the same prompts; layers that only one of them has are left out.
        level: of the interval.

    Returns:
        A reading with, [measure, layer]:
            rate              share of positions where the logit lens's top token is the token that a neighbour ends
                              in (measure "token") or the token that follows it in its sentence ("next token").
            rate_low, rate_high   bootstrap interval over prompts; NaN with one prompt.
            rate_chance       the same share when each position is given the neighbours of every other one in turn
                              (of all prompts): agreement that does not depend on the state.
    """
    a, b = latent.data, logit.data
    if "next_token_id" not in a or "logprob" not in b:
        raise InputError("logit_agreement() compares a reading of LatentLens with one of LogitLens, in this order.")
    if a["input_id"].shape != b["input_id"].shape or not bool((a["input_id"].values == b["input_id"].values).all()):
        raise InputError("The two readings are of different prompts or positions. Read both in one pass.")
    axis = "layer" if "layer" in a.dims else "block"
    if axis not in b.dims:
        raise InputError("One reading is of layers and the other of blocks. Read both at the same sites.")
    layers = [x for x in a[axis].values.tolist() if x in b[axis].values]
    order = ("prompt", axis, "position", "rank")
    said = b["token_id"].sel({axis: layers}).transpose(*order).values[..., 0]
    real = b["input_id"].values >= 0
    rate = np.zeros((2, len(layers)))
    low, high, chance = np.full_like(rate, np.nan), np.full_like(rate, np.nan), np.full_like(rate, np.nan)
    measures = {"token": "token_id", "next token": "next_token_id"}
    for m, name in enumerate(measures.values()):
        neighbours = a[name].sel({axis: layers}).transpose(*order).values
        hit = (neighbours == said[..., None]).any(-1) & (said >= 0)
        for i in range(len(layers)):
            each = [hit[p, i][real[p]] for p in range(len(real))]
            sizes = np.array([len(e) for e in each], float)
            means = np.array([e.mean() if len(e) else np.nan for e in each])
            rate[m, i] = np.concatenate(each).mean()
            low[m, i], high[m, i] = bootstrap_interval(means, sizes, level=level)
            chance[m, i] = _by_chance(said[:, i][real], neighbours[:, i][real], hit[:, i][real])
    dims = ("measure", axis)
    data = xr.Dataset(
        {"rate": (dims, rate), "rate_low": (dims, low), "rate_high": (dims, high), "rate_chance": (dims, chance)},
        {"measure": list(measures), axis: layers},
        {"reader": "agreement with the logit lens"},
    )
    return derived("lenses.latent.logit_agreement", described(data, VARIABLES), latent, logit, level=level)


def _by_chance(said: np.ndarray, neighbours: np.ndarray, hit: np.ndarray) -> float:
    """Mean over ordered pairs of different positions of "the token said at one is among the other's neighbours"."""
    n = len(said)
    if n < 2:
        return float("nan")
    ordered = np.sort(neighbours, axis=1)
    first = np.c_[np.ones((n, 1), bool), ordered[:, 1:] != ordered[:, :-1]] & (ordered >= 0)
    held = np.bincount(ordered[first], minlength=int(said.max(initial=0)) + 1)
    return float((np.where(said >= 0, held[said.clip(0)], 0) - hit).sum() / (n * (n - 1)))
