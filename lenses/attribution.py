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

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.targets import Followed, Targets
from workbench.anatomy import brought, unit_roundoff
from workbench.anatomy.block_writes import parts_of
from workbench.errors import InputError, Refused
from workbench.readout import Readout
from workbench.sinks import SINK_ATTRIBUTES
from workbench.sites import Site
from workbench.stats import nanmean
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

VARIABLES = {
    "contribution": about("contribution to the logit of target", scale="diverging", sums_to="logit"),
    "contribution_mean": about(
        "mean contribution over positions", role="null", of="contribution", short_name="mean over positions"
    ),
    "logit": about("logit of target"),
    "remainder": about("logit of target less its contributions: rounding", scale="diverging"),
    "component": about("part of the model", role="label", of="contribution"),
    "target_id": about("target", role="label", of="logit"),
    "target": about("target", role="label", of="target_id"),
}


class LogitAttribution:
    """Contribution of the embeddings and of every block's attention and MLP to a target's logit.

    Args:
        targets: None: the model's own top token at each position; "next": the prompt's next token; a token (text
            or id); a list of them, which adds the dimension ``target``; or a list of lists, one for each prompt and
            all of one length (``target_id`` is then [prompt, target], and ``target`` only a number).

    The reading's variables:
        contribution   [prompt, position, component] (+ target): "embed", "attn_out.0", "mlp_out.0", ..., "bias";
                       they add up to ``logit``, but for ``remainder``
        contribution_mean   [component] (+ target): the mean over all positions read, the baseline for one position;
                       attention sinks are left out
        logit          [prompt, position] (+ target), before any softcap
        remainder      [prompt, position] (+ target): logit less the sum of its contributions, which is rounding; in
                       half precision it can be large where the stream holds massive activations (first positions)
        sink           [prompt, position]: attention sinks in the final state (:mod:`workbench.sinks`)

    Raises Refused when it is not known how a block writes to the stream (:mod:`workbench.anatomy.block_writes`) or the
    final norm is neither LayerNorm nor RMSNorm; InputError for targets as :class:`LogitLens` does.
    """

    def __init__(self, targets: Targets = None) -> None:
        self.targets = targets

    def sites(self, model: Model) -> list[Site]:
        self._parts = [
            Site(kind, b) for b in range(model.n_layers) for kind in ("attn_out", "mlp_out") if parts_of(model, b)
        ]
        self._ends = [Site("resid", 0), Site("resid", model.n_layers)]
        return [*self._ends, *self._parts]

    def begin(self, run: Run) -> None:
        self._run, model = run, run.model
        self._readout = Readout(model)
        self._followed = Followed(run, self.targets)
        self._components = ["embed", *(f"{s.kind}.{s.index}" for s in self._parts), "bias"]
        n = self._followed.count
        self._contribution = run.empty(after=[len(self._components), n])
        self._logit, self._remainder = run.empty(after=[n]), run.empty(after=[n])
        steps = model.anatomy.steps[:-1]
        if len(steps) > 1 or model.anatomy.steps[-1].path != model.anatomy.unembedding:
            raise Refused(f"{model.name} reads out through {model.anatomy.formula}, which is not linear in the state.")
        self._norm = model.module.get_submodule(steps[0].path) if steps else None
        self._scale = model.anatomy.steps[-1].scale * (steps[0].scale if steps else 1.0)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        notes = batch.scratch.setdefault(self, {})
        notes[site] = batch.take(states).to(self._readout.weight.device).float()
        if len(notes) == len(self._parts) + 2:
            self._read(notes, batch)
            notes.clear()

    def _read(self, notes: dict[Site, Tensor], batch: Batch) -> None:
        readout = self._readout
        last = notes[self._ends[1]]
        features = readout.features(last.to(self._run.model.dtype))
        targets = self._followed.at(batch)
        if targets is None:
            targets = readout.final(features, 1).statistics.token_id[0, :, :1]
        targets = targets.to(last.device)
        self._followed.note(batch, targets)
        masked = torch.isin(targets, readout.masked)
        if masked.any():
            raise InputError(
                f"Target token {int(targets[masked][0])} is masked by {self._run.model.name}: its logit is minus "
                "infinity, which is no sum of contributions. Leave it out of the targets."
            )
        rows = readout.weight[targets.clamp_min(0)].float()  # [rows, n, f]
        scale, centre, shift = self._linear(last, features)
        given = readout.bias[targets.clamp_min(0)].float() * readout.scale if readout.bias is not None else 0.0
        bias = torch.einsum("rnf,f->rn", rows, shift) + given
        parts = [notes[self._ends[0]], *(notes[s] for s in self._parts)]
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
        u, own = unit_roundoff(self._run.model.dtype), unit_roundoff(torch.float32)
        squared = torch.einsum("rnf,rf->rn", rows**2, (u * scale * room) ** 2 + (u * features) ** 2)
        # Our own sums run in fp32, whatever the model's type, over the width and then over the parts.
        allowed = 2 * squared.sqrt() + 2 * u * logit.abs() + 32 * own * contribution.abs().sum(1)
        if not bool((remainder.abs() <= allowed).all()):
            worst = int((remainder.abs() / allowed.clamp_min(1e-30)).amax(1).argmax())
            raise Refused(
                f"The contributions of {self._run.model.name} do not add up to its logits: at prompt "
                f"{int(batch.prompt[worst])}, position slot {int(batch.slot[worst])} they are off by "
                f"{float(remainder[worst].abs().max()):.1e}, where rounding explains "
                f"{float(allowed[worst].max()):.1e}. Something else writes to its residual stream, so an attribution "
                "would leave it out."
            )
        missing = (targets < 0).cpu().numpy()
        p, s = batch.prompt.numpy(), batch.slot.numpy()
        self._contribution[p, s] = np.where(missing[:, None], np.nan, contribution.cpu().numpy())
        self._logit[p, s] = np.where(missing, np.nan, logit.cpu().numpy())
        self._remainder[p, s] = np.where(missing, np.nan, remainder.cpu().numpy())

    def _linear(self, states: Tensor, features: Tensor) -> tuple[Tensor, bool, Tensor]:
        """The final norm as  scale * (state [- its mean]) + shift, with its scale as it is at each row.

        scale [rows, d], shift [f].  Solved from what the norm is known to give: which of weight, 1 + weight and
        no weight, with or without centring, reproduces the features.
        """
        norm, readout = self._norm, self._readout
        if norm is None:
            return torch.full_like(states, self._scale * readout.scale), False, torch.zeros_like(features[0])
        with brought(norm):
            weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        head = self._run.model.anatomy.steps[-1].scale * readout.scale
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
                if error < (3e-2 if self._run.model.dtype in (torch.float16, torch.bfloat16) else 1e-4):
                    return factor * gain, centre, shift
        raise Refused(
            f"The final norm of {self._run.model.name} ({type(norm).__name__}) is neither a LayerNorm nor an RMSNorm "
            "in numbers, so logits cannot be split into contributions."
        )

    def end(self) -> Reading:
        from workbench.reading import Reading

        sink = self._run.norms.sinks(self._ends[1])
        mean = nanmean(
            np.where(sink[..., None, None], np.nan, self._contribution).reshape(-1, *self._contribution.shape[2:])
        )
        variables: dict[str, Any] = {}
        for name, array, dims in (
            ("contribution", self._contribution, ("prompt", "position", "component")),
            ("contribution_mean", mean, ("component",)),
            ("logit", self._logit, ("prompt", "position")),
            ("remainder", self._remainder, ("prompt", "position")),
        ):
            variables[name] = ((*dims, "target"), array) if self._followed.listed else (dims, array[..., 0])
        variables["sink"] = (("prompt", "position"), sink, SINK_ATTRIBUTES)
        labels, coords = self._followed.labels()
        coords["component"] = np.array(self._components, dtype=object)
        data = described(self._run.dataset({**variables, **labels}, coords, reader="LogitAttribution"), VARIABLES)
        return Reading(data, {"reader": {"name": "LogitAttribution", "logit": "before any softcap"}})
