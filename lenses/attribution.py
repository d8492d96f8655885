"""Direct logit attribution: what each attention and MLP output adds to a target's logit.

The final state is the sum of what every part wrote (Elhage et al. 2021).  With the final norm's scale held at
its own value at each position, the norm is linear, so a logit is a sum of contributions, to the last digit:

    logit = sum_c  w . (g * (c - mean c)) / sigma   + b          (mean c only for LayerNorm)

which is checked at every position, against what rounding can do there and no more.  A model that adds in a type with
unit roundoff u is off by at most u |h| at each of its sums, h being the stream behind it; over the sums of a pass that
adds up, where something massive (2e4 times the rest) swallows what is added to it.  What the features of the stream
are off by is independent, so of their sum only the root of the squares is allowed, twice.  The logit is the one before
any softcap (a softcap is not a sum).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.nulls import of_kinds
from lenses.targets import Followed, Targets
from workbench.anatomy import brought, unit_roundoff
from workbench.anatomy.block_writes import parts_of
from workbench.errors import InputError, Refused
from workbench.readers import Found, Output, Plan, Reader, Rows, Run
from workbench.readout import Readout
from workbench.sinks import IMAGE, TEXT, kinds_read
from workbench.sites import Site
from workbench.stats import nanmean
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model

VARIABLES = {
    "contribution": about("contribution to the logit of target", scale="diverging", sums_to="logit"),
    "contribution_mean": about(
        "mean contribution over positions", role="null", of="contribution", short_name="mean over positions"
    ),
    "contribution_mean_image": about(
        "mean contribution over pieces of pictures", role="null", of="contribution",
        short_name="mean over pieces of pictures", kind="image",
    ),
    "logit": about("logit of target"),
    "remainder": about("logit of target less its contributions: rounding", scale="diverging"),
    "component": about("part of the model", role="label", of="contribution"),
    "target_id": about("target", role="label", of="logit"),
    "target": about("target", role="label", of="target_id"),
}
MEANS = {TEXT: "contribution_mean", IMAGE: "contribution_mean_image"}


@dataclass(frozen=True, eq=False)
class LogitAttribution(Reader):
    """Contribution of the embeddings and of every block's attention and MLP to a target's logit.

    Args:
        targets: None: the model's own top token at each position; "next": the prompt's next token; a token (text
            or id); a list of them, which adds the dimension ``target``; or a list of lists, one for each prompt and
            all of one length (``target_id`` is then [prompt, target], and ``target`` only a number).

    The reading's variables:
        contribution   [prompt, position, component] (+ target): "embed", "attn_out.0", "mlp_out.0", ..., "bias";
                       they add up to ``logit``, but for ``remainder``
        contribution_mean   [component] (+ target): the mean over all positions read, the baseline for one position;
                       attention sinks are left out.  Where pictures are read it is over text alone, and
                       contribution_mean_image over the tokens that show a part of one
        logit          [prompt, position] (+ target), before any softcap
        remainder      [prompt, position] (+ target): logit less the sum of its contributions, which is rounding; in
                       half precision it can be large where the stream holds massive activations (first positions)
        sink           [prompt, position]: attention sinks in the final state (:mod:`workbench.sinks`)

    Raises Refused when it is not known how a block writes to the stream (:mod:`workbench.anatomy.block_writes`), the
    final norm is neither LayerNorm nor RMSNorm, or visual features of pictures are added between blocks (deepstack);
    InputError for targets as :class:`LogitLens` does.
    """

    question = "Which part of the model writes the answer?"

    targets: Targets = None

    def plan(self, run: Run) -> Plan:
        model = run.model
        refuse_features_in_between(run)
        parts = [Site(k, b) for b in range(model.n_layers) for k in ("attn_out", "mlp_out") if parts_of(model, b)]
        first, final = Site("resid", 0), Site("resid", model.n_layers)
        readout, followed, norm = Readout(model), Followed(run, self.targets), _Norm(model)
        components = ["embed", *(f"{s.kind}.{s.index}" for s in parts), "bias"]

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            last = states[final]
            features = readout.features(last)
            targets = followed.at(batch)
            if targets is None:
                targets = readout.final(features, 1).statistics.token_id[0, :, :1]
            targets = targets.to(readout.weight.device)
            masked = torch.isin(targets, readout.masked)
            if masked.any():
                raise InputError(
                    f"Target token {int(targets[masked][0])} is masked by {model.name}: its logit is minus infinity, "
                    "which is no sum of contributions. Leave it out of the targets."
                )
            every = [states[site].to(readout.weight.device).float() for site in (first, *parts)]
            split = _split(norm, readout, last.to(readout.weight.device).float(), features, targets, every, batch)
            missing = targets < 0
            return {
                "followed": targets[:, 0],
                "contribution": split[0].masked_fill(missing[:, None], torch.nan),
                "logit": split[1].masked_fill(missing, torch.nan),
                "remainder": split[2].masked_fill(missing, torch.nan),
            }

        places = ("prompt", "position")
        outputs = {
            "contribution": Output((*places, "component", "target")), "logit": Output((*places, "target")),
            "remainder": Output((*places, "target")), "followed": Output(places, dtype=np.int32),
        }  # fmt: skip

        def finish(found: Found) -> dict[str, Any]:
            contribution = found["contribution"]
            sink = run.norms.sinks_at([final], contribution.shape[1])[:, 0]
            of = kinds_read(model, run.prompts, contribution.shape[1])
            means = {}
            for kind, name in MEANS.items():
                if kind == TEXT or (of == kind).any():
                    known = np.where((sink | (of != kind))[..., None, None], np.nan, contribution)
                    mean = nanmean(known.reshape(-1, *contribution.shape[2:]))
                    means[name] = (("component", "target"), mean.astype(np.float32))
            own = {
                "contribution": (outputs["contribution"].dims, contribution),
                **means,
                "logit": (outputs["logit"].dims, found["logit"]),
                "remainder": (outputs["remainder"].dims, found["remainder"]),
            }
            if not followed.listed:
                own = {name: (dims[:-1], array[..., 0]) for name, (dims, array) in own.items()}
            return {**own, "sink": (places, sink), **followed.labels(found["followed"])}

        coords = {"component": np.array(components, object), "target": followed.names}
        settings = {"logit": "before any softcap"}
        return Plan([first, final, *parts], outputs, observe, coords, finish, of_kinds(VARIABLES, run), {}, settings)


def refuse_features_in_between(run: Run) -> None:
    """Raise Refused where visual features come into the stream between blocks: no part of the sum has them."""
    shown = [i for i, p in enumerate(run.prompts) if p.visual is not None and len(p.visual.pictures)]
    added = run.model.vision.proof.added if shown else ()
    if added:
        raise Refused(
            f"On prompts with pictures {run.model.name} adds visual features to the stream between blocks (in front of "
            f"blocks {', '.join(map(str, added))}), which neither the embeddings nor a block wrote: a sum over these "
            "would leave them out. Attribute prompts without pictures, or read states with another lens."
        )


def _split(
    norm: _Norm, readout: Readout, last: Tensor, features: Tensor, targets: Tensor, parts: list[Tensor], batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """contribution [rows, component, target], logit and remainder [rows, target] of what was written to the stream."""
    rows = readout.weight[targets.clamp_min(0)].float()  # [rows, n, f]
    scale, centre, shift = norm.linear(last, features, readout)
    given = readout.bias[targets.clamp_min(0)].float() * readout.scale if readout.bias is not None else 0.0
    bias = torch.einsum("rnf,f->rn", rows, shift) + given
    kept, room = [], torch.zeros_like(scale)
    stream = torch.zeros_like(scale)
    for c in parts:
        stream = stream + c
        room += stream.abs() + c.abs()
        kept.append(torch.einsum("rnf,rf->rn", rows, scale * (c - c.mean(-1, keepdim=True) if centre else c)))
    contribution = torch.stack([*kept, bias], 1)
    logit = torch.einsum("rnf,rf->rn", rows, features) + given
    remainder = logit - contribution.sum(1)
    if centre:
        room += room.mean(-1, keepdim=True)
    u, own = unit_roundoff(norm.model.dtype), unit_roundoff(torch.float32)
    squared = torch.einsum("rnf,rf->rn", rows**2, (u * scale * room) ** 2 + (u * features) ** 2)
    # Our own sums run in fp32, whatever the model's type, over the width and then over the parts.
    allowed = 2 * squared.sqrt() + 2 * u * logit.abs() + 32 * own * contribution.abs().sum(1)
    if not bool((remainder.abs() <= allowed).all()):
        worst = int((remainder.abs() / allowed.clamp_min(1e-30)).amax(1).argmax())
        raise Refused(
            f"The contributions of {norm.model.name} do not add up to its logits: at prompt "
            f"{int(batch.prompt[worst])}, position slot {int(batch.slot[worst])} they are off by "
            f"{float(remainder[worst].abs().max()):.1e}, where rounding explains "
            f"{float(allowed[worst].max()):.1e}. Something else writes to its residual stream, so an attribution "
            "would leave it out."
        )
    return contribution, logit, remainder


class _Norm:
    """The final norm of a model, which is linear once its scale is known."""

    def __init__(self, model: Model) -> None:
        self.model = model
        steps = model.anatomy.steps[:-1]
        if len(steps) > 1 or model.anatomy.steps[-1].path != model.anatomy.unembedding:
            raise Refused(f"{model.name} reads out through {model.anatomy.formula}, which is not linear in the state.")
        self.module = model.module.get_submodule(steps[0].path) if steps else None
        self.scale = model.anatomy.steps[-1].scale * (steps[0].scale if steps else 1.0)

    def linear(self, states: Tensor, features: Tensor, readout: Readout) -> tuple[Tensor, bool, Tensor]:
        """The final norm as  scale * (state [- its mean]) + shift, with its scale as it is at each row.

        scale [rows, d], shift [f].  Solved from what the norm is known to give: which of weight, 1 + weight and
        no weight, with or without centring, reproduces the features.
        """
        norm = self.module
        if norm is None:
            return torch.full_like(states, self.scale * readout.scale), False, torch.zeros_like(features[0])
        with brought(norm):
            weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        head = self.model.anatomy.steps[-1].scale * readout.scale
        shift = torch.zeros_like(features[0]) if not isinstance(bias, Tensor) else bias.detach().float() * head
        gains: list[Any] = [torch.ones_like(features[0])]
        if isinstance(weight, Tensor) and weight.ndim == 1:
            gains = [weight.detach().float(), 1 + weight.detach().float()]
        for centre in (False, True):
            x = states - states.mean(-1, keepdim=True) if centre else states
            for gain in gains:
                direction = x * gain
                wanted = features - shift
                # A state of zeros (an embedded pad) has no direction, and contributes nothing.
                length = (direction**2).sum(-1, keepdim=True).clamp_min(1e-30)
                factor = (direction * wanted).sum(-1, keepdim=True) / length
                # Row by row: a massive activation would hide what is wrong with the other rows.
                error = ((factor * direction - wanted).abs().amax(-1) / wanted.abs().amax(-1).clamp_min(1e-30)).max()
                if error < (3e-2 if self.model.dtype in (torch.float16, torch.bfloat16) else 1e-4):
                    return factor * gain, centre, shift
        raise Refused(
            f"The final norm of {self.model.name} ({type(norm).__name__}) is neither a LayerNorm nor an RMSNorm "
            "in numbers, so logits cannot be split into contributions."
        )
