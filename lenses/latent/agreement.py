"""Where LatentLens and the logit lens say the same: a check of one lens by the other."""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, over
from workbench.variables import about, described

VARIABLES = {
    "rate": about(
        "share of positions where the logit lens's top token is among the neighbours'", better="high",
        short_name="share",
    ),
    "rate_low": about("interval over prompts", role="low", of="rate"),
    "rate_high": about("interval over prompts", role="high", of="rate"),
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
            rate_low, rate_high   interval over prompts, which count as much as they have positions
                              (:meth:`workbench.stats.Design.bootstrap`; attribute ``interval``); NaN with one prompt.
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
    measures = {"token": "token_id", "next token": "next_token_id"}
    each, chance = np.full((len(real), len(measures), len(layers)), np.nan), np.zeros((len(measures), len(layers)))
    for m, name in enumerate(measures.values()):
        neighbours = a[name].sel({axis: layers}).transpose(*order).values
        hit = (neighbours == said[..., None]).any(-1) & (said >= 0)
        each[:, m] = over((hit & real[:, None]).sum(2), real.sum(1, keepdims=True))
        chance[m] = [_by_chance(said[:, i][real], neighbours[:, i][real], hit[:, i][real]) for i in range(len(layers))]
    found = Design(weights=real.sum(1)).bootstrap(each, level=level, bounds=(0, 1))
    dims = ("measure", axis)
    data = xr.Dataset(
        {
            "rate": (dims, found.value), "rate_low": (dims, found.low), "rate_high": (dims, found.high),
            "rate_chance": (dims, chance),
        },
        {"measure": list(measures), axis: layers},
        {"reader": "agreement with the logit lens", "interval": found.said("prompts")},
    )  # fmt: skip
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
