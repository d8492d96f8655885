"""Token drift: how long the state at a position is, and how much of what it came in with it still holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.sinks import IMAGE, PADDING, TEXT, kinds, kinds_read
from workbench.sites import Site, resolve
from workbench.stats import Design
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch

CELLS = ("prompt", "layer", "position")
OTHERS = 32
"""Prompts that the null of other prompts is taken over, at most: evenly spaced ones, where there are more."""
VARIABLES = {
    "norm": about("length of the state", "stream units"),
    "norm_mean": about(
        "geometric mean of the lengths of its kind", "stream units", role="null", of="norm", short_name="usual length"
    ),
    "norm_mean_low": about("interval over prompts", "stream units", role="low", of="norm_mean"),
    "norm_mean_high": about("interval over prompts", "stream units", role="high", of="norm_mean"),
    "drift": about("cosine with the position's own state at layer 0", short_name="cosine with layer 0"),
    "drift_null": about(
        "mean cosine with layer-0 states of other positions of its kind in the prompt", role="null", of="drift",
        short_name="other positions",
    ),
    "drift_mean": about("cosine with the position's own state at layer 0, mean", short_name="cosine with layer 0"),
    "drift_mean_low": about("interval over prompts", role="low", of="drift_mean"),
    "drift_mean_high": about("interval over prompts", role="high", of="drift_mean"),
    "drift_mean_null": about(
        "mean cosine with layer-0 states of other positions of its kind in the prompt", role="null", of="drift_mean",
        short_name="other positions",
    ),
    "drift_mean_null_prompts": about(
        "mean cosine with layer-0 states of its kind in other prompts", role="null", of="drift_mean",
        short_name="other prompts",
    ),
    "drift_excess": about("cosine with its own state at layer 0, less that with other positions'", scale="diverging"),
    "drift_excess_low": about("interval over prompts", role="low", of="drift_excess"),
    "drift_excess_high": about("interval over prompts", role="high", of="drift_excess"),
    "sink_count": about("attention sinks", "positions", role="count", of="norm_mean"),
    "modality": about("what positions hold", role="label", of="drift_mean"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TokenDrift(Reader):
    """Norms of states, and token drift: the cosine of each state with the same position's state at layer 0.

    At layer 0 a state is what its position came in with: the embedding of a token, or the connector's output for a
    piece of a picture.  A cosine near 1 says that it still is; a cosine no larger than with what *other* positions of
    its kind came in with says that nothing of its own is left (in this direction).  States of one layer are alike, so
    the second is the larger the more anisotropic they are, and the first says nothing without it.

    Parameters
    ----------
    layers
        Which layers; None: all.  Layer 0 is looked at in any case.
    stream
        "text", or "vision": states of the vision tower, where layer 0 is in front of its first block.

    Notes
    -----
    The reading's variables:

    norm, drift : [prompt, layer, position]
    drift_null : [prompt, layer, position]
        Mean cosine with the layer-0 states of the prompt's other positions that are read and of the same kind (text or
        image); for text those of other tokens.  NaN where there is none.
    norm_mean, sink_count : [layer, modality]
        Geometric mean of the norms, and how many positions are attention sinks (:mod:`workbench.sinks`).
    drift_mean, drift_mean_null, drift_excess : [layer, modality]
        Means of drift, of its null, and of the difference.
    drift_mean_null_prompts : [layer, modality]
        Mean cosine with all layer-0 states of the kind in *other* prompts, over at most 32 prompts.
    ..._low, ..._high
        Intervals over prompts (:meth:`workbench.stats.Design.bootstrap`; attribute ``interval``); NaN with one prompt.

    Means leave out sinks, and visual tokens that show no part of a picture.

    Examples
    --------
    >>> workbench.read(model, prompts, TokenDrift()).figure()  # doctest: +SKIP
    """

    question = "How much of what it came in with does a state still hold?"

    layers: Layers = None
    stream: str = "text"

    def plan(self, run: Run) -> Plan:
        sites, first = resolve(run.model, "resid", self.layers), Site("resid", 0)
        every = np.unique(np.concatenate([kinds(run.model, prompt) for prompt in run.prompts]))
        modalities = tuple(name for name, kind in (("text", TEXT), ("image", IMAGE)) if kind in every) or ("image",)
        spaced = np.linspace(0, len(run.prompts) - 1, min(OTHERS, len(run.prompts))).round().astype(int)
        others = np.full(len(run.prompts), -1)
        others[spaced] = np.arange(len(spaced))

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            start = states[first].float()
            kind, same = _kinds(run, batch, modalities)
            start = start / start.norm(dim=-1, keepdim=True)  # NaN: a state of zeros has no direction
            mean = _mean_of_others(start, batch.prompt, kind, same)
            number, count = torch.from_numpy(others)[batch.prompt], len(spaced) * len(modalities)
            group = torch.where((number >= 0) & (kind >= 0), number * len(modalities) + kind, count)
            found: dict[str, list[Tensor]] = {"norm": [], "drift": [], "drift_null": [], "sum": []}
            for site in sites:
                state = states[site].float()
                norm = state.norm(dim=-1)
                unit = state / norm[:, None]
                found["norm"].append(norm)
                found["drift"].append((unit * start).sum(-1))
                found["drift_null"].append((unit * mean).sum(-1))
                found["sum"].append(_summed(unit, group, count))
            rows = {name: torch.stack(found[name], 1) for name in ("norm", "drift", "drift_null")}
            shape = (len(spaced), len(modalities), len(sites), -1)
            here = torch.unique(group[group < count] // len(modalities))
            sums = torch.stack(found["sum"], 1).reshape(shape)[here.to(start.device)]
            starts = _summed(start, group, count).reshape(shape[:2] + (-1,))[here.to(start.device)]
            counts = torch.bincount(group, minlength=count + 1)[:count].reshape(shape[:2])[here]
            return {**rows, "sum": (here, sums), "start": (here, starts), "count": (here, counts)}

        def finish(found: Found) -> dict[str, Any]:
            return _finished(run, sites, modalities, found)

        many = ("other", "modality")
        outputs = {
            "norm": Output(CELLS), "drift": Output(CELLS), "drift_null": Output(CELLS),
            "sum": Output((*many, "layer", "width"), combine="sum"), "start": Output((*many, "width"), combine="sum"),
            "count": Output(many, dtype=np.int64, combine="sum"),
        }  # fmt: skip
        coords = {
            "layer": [site.index for site in sites], "modality": list(modalities), "other": len(spaced),
            "width": run.model.d_model,
        }  # fmt: skip
        wanted = sorted({first, *sites})
        return Plan(wanted, outputs, observe, coords, finish, VARIABLES, {"at": "resid", "chart": "token_drift"})


def _numbers(modalities: tuple[str, ...]) -> np.ndarray:
    """[kind] number of the modality of positions of each kind; -1: visual tokens that show nothing."""
    known = {TEXT: "text", IMAGE: "image"}
    return np.array([modalities.index(known[k]) if known.get(k) in modalities else -1 for k in range(PADDING + 1)])


def _kinds(run: Run, batch: Batch, modalities: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Of each row its modality, and what it is the same as: its token, or for a piece of a picture its position."""
    numbers = _numbers(modalities)
    known = {prompt: numbers[kinds(run.model, run.prompts[prompt])] for prompt in batch.prompts}
    places = zip(batch.prompt.tolist(), batch.position.tolist(), strict=True)
    # What a model is writing is not yet in its prompt, and text.
    kind = torch.tensor([int(known[p][at]) if at < len(known[p]) else 0 for p, at in places], dtype=torch.long)
    text = torch.tensor([name == "text" for name in modalities] + [False])
    return kind, torch.where(text[kind], batch.input_ids, batch.position)


def _mean_of_others(start: Tensor, prompt: Tensor, kind: Tensor, same: Tensor) -> Tensor:
    """[row, width] mean of the rows of the same prompt and kind that are not the same as each; NaN: there is none."""
    group = torch.unique(torch.stack([prompt, kind], 1), dim=0, return_inverse=True)[1]
    alike = torch.unique(torch.stack([group, same], 1), dim=0, return_inverse=True)[1]
    total, own = (_summed(start, x, int(x.max()) + 1)[x.to(start.device)] for x in (group, alike))
    left = torch.bincount(group)[group] - torch.bincount(alike)[alike]
    left = torch.where((left > 0) & (kind >= 0), left, math.nan).to(start.device)
    return (total - own) / left[:, None]


def _summed(rows: Tensor, group: Tensor, count: int) -> Tensor:
    """[count, width] sums of the rows of each group; rows without a direction, and of other groups, are left out."""
    found = rows.new_zeros(count + 1, rows.shape[1])
    return found.index_add_(0, group.to(rows.device), torch.nan_to_num(rows))[:count]


def _finished(run: Run, sites: list[Site], modalities: tuple[str, ...], found: Found) -> dict[str, Any]:
    norm = found["norm"]
    kind = _numbers(modalities)[kinds_read(run.model, run.prompts, norm.shape[2])]
    sink = run.norms.sinks_at(sites, norm.shape[2])
    made: dict[str, list[np.ndarray]] = {}
    said: dict[str, str] = {}
    for modality in range(len(modalities)):
        prompt, slot = np.nonzero(kind == modality)
        out = sink[prompt, :, slot]
        none = np.full(len(sites), np.nan, np.float32)
        made.setdefault("sink_count", []).append(out.sum(0))
        with np.errstate(divide="ignore"):
            rows = {name: np.where(out, np.nan, found[name][prompt, :, slot]) for name in ("drift", "drift_null")}
            length = np.where(out, np.nan, norm[prompt, :, slot])
            rows |= {"norm": np.log(np.where(length > 0, length, np.nan))}
        rows["excess"] = rows["drift"] - rows["drift_null"]
        design = Design(prompt) if len(prompt) else None
        for name, called in (("norm", "norm_mean"), ("drift", "drift_mean"), ("excess", "drift_excess")):
            interval = None if design is None else design.bootstrap(rows[name])
            for end in ("value", "low", "high"):
                values = none if interval is None else getattr(interval, end)
                values = np.exp(values) if name == "norm" else values
                made.setdefault(called if end == "value" else f"{called}_{end}", []).append(values)
            if interval is not None:
                said[called] = interval.said("prompts")
        made.setdefault("drift_mean_null", []).append(none if design is None else design.mean(rows["drift_null"]))
        made.setdefault("drift_mean_null_prompts", []).append(
            _elsewhere(found["sum"][:, modality], found["start"][:, modality], found["count"][:, modality])
        )
    return {
        name: (("layer", "modality"), np.stack(values, 1), {"interval": said.get(name.rpartition("_")[0], "")})
        if name.endswith(("_low", "_high")) else (("layer", "modality"), np.stack(values, 1))
        for name, values in made.items()
    }  # fmt: skip


def _elsewhere(sums: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[layer] mean over states of the mean cosine of each with the layer-0 states of the other prompts.

    Parameters
    ----------
    sums, starts, counts
        Of each prompt: sums of unit states [prompt, layer, width] and of unit layer-0 states [prompt, width], and how
        many there are.
    """
    some = counts > 0
    sums, starts, counts = sums[some].astype(float), starts[some].astype(float), counts[some]
    if len(counts) < 2:
        return np.full(sums.shape[1], np.nan)
    rest = (starts.sum(0) - starts) / (counts.sum() - counts)[:, None]
    return np.einsum("plw,pw->l", sums, rest) / counts.sum()
