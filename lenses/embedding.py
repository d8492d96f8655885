"""The embedding lens: which input embeddings lie nearest to a state, by cosine."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses import nulls
from workbench.errors import InputError
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.readout import nearest_rows
from workbench.sinks import placeholder_ids
from workbench.sites import resolve
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch

def stand_ins(run: Run) -> list[int]:
    """Token ids that stand for pieces of images, videos or sounds."""
    shown = any(prompt.visual is not None and len(prompt.visual.pictures) for prompt in run.prompts)
    found = run.model.vision.proof.tokens if shown else ()
    return sorted({*placeholder_ids(run.model), *found})


VARIABLES = {
    "token_id": about("nearest token", role="label", of="cosine"),
    "cosine": about("cosine of the nearest token", better="high", short_name="cosine"),
    **nulls.variables("cosine", "token"),
}


@dataclass(frozen=True, eq=False)
class EmbeddingLens(Reader):
    """Nearest input embeddings at every depth, by cosine of the raw state with each row of the matrix.

    Args:
        layers: which layers (or blocks, with another ``at``); None: all.
        top_k: how many tokens to keep.
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        floors: compute the floor and p-values (a further pass over as many tokens, or 1024).
        draws: null states at each depth; None: three for each place that is read, from 512 to 4096, as far as
            the further pass gives them.  With more, p can be smaller.

    The reading's variables:
        token_id, cosine   [prompt, layer, position, rank]
        cosine_floor_shuffled   [layer]: the 95th percentile of the *best* cosine in states of these prompts with their
                           tokens in random order, at the positions that are read: what a token's own embedding gives
                           without a context.  A neighbour below it says no more than that.
        cosine_p, cosine_q [prompt, layer, position]: rank p-value of the best cosine among the same states, less what
                           its token reaches in any context (:func:`lenses.nulls.tested`), and the same over all cells
                           of the reading (Benjamini-Hochberg).
        sink               [prompt, layer, position]: attention sinks (:mod:`workbench.sinks`).  They, special tokens
                           and visual tokens that show nothing are in no floor and have no p; NaN where fewer than 20
                           null states are left (attribute ``reason``).
    Where pictures are read their tokens have floors of their own, and the one above is of text alone:
        cosine_floor_patches    [layer]: of the pictures with their cells in random order; cosine_p and cosine_q of
                           visual tokens are ranks among these states
        cosine_floor_noise      [layer]: of pictures of coloured noise
        cosine_floor_others     [layer]: of other prompts' pictures in the places of these; NaN with one picture

    Ids that stand for pieces of pictures, videos or sounds are never neighbours: what replaces them is what enters the
    stream, and their own rows are as training left them.  Other special tokens (which are embedded) are.

    Raises InputError when the embeddings are not as wide as the stream.
    """

    question = "Which token of the vocabulary does a state lie next to?"

    layers: Layers = None
    top_k: int = 10
    _: KW_ONLY
    at: str = "resid"
    floors: bool = True
    draws: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k={self.top_k} keeps no token. Use 1 or more.")
        nulls.checked(self.draws)

    def plan(self, run: Run) -> Plan:
        wanted, weight = resolve(run.model, self.at, self.layers), run.model.embedding
        # Norms once; the matrix itself stays as the model has it.
        norms = torch.cat([part.float().norm(dim=1) for part in weight.split(4096)]).clamp_min(1e-12)
        never = torch.tensor([i for i in stand_ins(run) if i < len(weight)], dtype=torch.long, device=weight.device)
        k, axis = min(self.top_k, len(weight) - len(never)), "layer" if self.at == "resid" else "block"
        cells = ("prompt", axis, "position")

        def nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
            """[rows, d] -> the top_k cosines and token ids."""
            best = nearest_rows(rows.to(weight.device).float(), weight, norms, k + len(never), self.chunk)
            if not len(never):
                return best.score, best.id
            order = torch.isin(best.id, never).byte().argsort(dim=1, stable=True)[:, :k]
            return best.score.gather(1, order), best.id.gather(1, order)

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            # The matrix is read once for all layers.
            rows = torch.cat([states[site].to(weight.device).float() for site in wanted])
            cosine, ids = nearest(rows)
            nothing = ~(rows != 0).any(1, keepdim=True)  # a state of zeros has no direction
            shape = (len(wanted), len(batch), k)
            return {
                "token_id": ids.masked_fill(nothing, -1).view(shape).transpose(0, 1),
                "cosine": cosine.masked_fill(nothing, math.nan).view(shape).transpose(0, 1),
            }

        def finish(found: Found) -> dict[str, Any]:
            cosine = found["cosine"]
            if not self.floors or not cosine.size:
                return {}
            known = {"shuffled": nulls.null_states(run, wanted, self.draws)}
            known |= nulls.picture_nulls(run, wanted, self.draws)
            scored = {
                name: (null, null.split(nearest(torch.cat(null.states))[0][:, 0].cpu().numpy()))
                for name, null in known.items()
            }
            return nulls.tested("cosine", cosine[..., 0], run, wanted, scored)

        outputs = {"token_id": Output((*cells, "rank"), dtype=np.int32), "cosine": Output((*cells, "rank"))}
        settings = {"top_k": k, "chunk": None, **nulls.settings(run)}
        coords = {axis: [site.index for site in wanted], "rank": k}
        return Plan(wanted, outputs, observe, coords, finish, nulls.of_kinds(VARIABLES, run), {"at": self.at}, settings)
