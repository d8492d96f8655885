"""The embedding lens: which input embeddings lie nearest to a state, by cosine."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.nulls import FEWEST, ROWS, floors, left_out, null_states, p_and_q
from workbench.errors import InputError
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.readout import nearest_rows
from workbench.sites import resolve
from workbench.stats import RandomDirections
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch

FLOOR_DRAWS = 100
VARIABLES = {
    "token_id": about("nearest token", role="label", of="cosine"),
    "cosine": about("cosine of the nearest token", better="high", short_name="cosine"),
    "cosine_floor": about(
        "95th percentile of the best cosine of random directions", role="floor", of="cosine",
        short_name="random directions",
    ),
    "cosine_floor_shuffled": about(
        "95th percentile of the best cosine in shuffled prompts", role="floor", of="cosine",
        short_name="shuffled prompts",
    ),
    "cosine_p": about(
        "p of the nearest token among states of shuffled prompts", better="low", role="p", of="cosine",
        short_name="p of nearest",
    ),
    "cosine_q": about(
        "p of the nearest token, adjusted for the number of cells", better="low", role="q", of="cosine",
        short_name="q of nearest",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class EmbeddingLens(Reader):
    """Nearest input embeddings at every depth, by cosine of the raw state with each row of the matrix.

    Args:
        layers: which layers (or blocks, with another ``at``); None: all.
        top_k: how many tokens to keep.
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        floors: compute floors and p-values (a further pass over as many tokens, or 1024).

    The reading's variables:
        token_id, cosine   [prompt, layer, position, rank]
        cosine_floor       [layer]: the 95th percentile of the *best* cosine that random directions reach, drawn
                           with the mean and the covariance of the states that were read at that layer, sinks left
                           out.  A neighbour below it says no more than a random direction would.
        cosine_floor_shuffled   [layer]: the same of states of these prompts with their tokens in random order: what a
                           token's own embedding gives without a context.
        cosine_p, cosine_q [prompt, layer, position]: rank p-value of the best cosine among the shuffled states, less
                           what its token reaches in any context (:func:`lenses.nulls.p_and_q`), and the same over all
                           cells of the reading (Benjamini-Hochberg).
        sink               [prompt, layer, position]: attention sinks (:mod:`workbench.sinks`).  They, special tokens
                           and pieces of images are in no floor and have no p; NaN where fewer than 20 null states are
                           left (attribute ``reason``).

    Raises InputError when the embeddings are not as wide as the stream.
    """

    layers: Layers = None
    top_k: int = 10
    _: KW_ONLY
    at: str = "resid"
    floors: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k={self.top_k} keeps no token. Use 1 or more.")

    def plan(self, run: Run) -> Plan:
        wanted, weight = resolve(run.model, self.at, self.layers), run.model.embedding
        # Norms once; the matrix itself stays as the model has it.
        norms = torch.cat([part.float().norm(dim=1) for part in weight.split(4096)]).clamp_min(1e-12)
        k, axis = min(self.top_k, len(weight)), "layer" if self.at == "resid" else "block"
        cells, random = ("prompt", axis, "position"), RandomDirections(FLOOR_DRAWS)

        def nearest(rows: Tensor) -> tuple[Tensor, Tensor]:
            """[rows, d] -> the top_k cosines and token ids."""
            best = nearest_rows(rows.to(weight.device).float(), weight, norms, k, self.chunk)
            return best.score, best.id

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            # The matrix is read once for all layers.
            every = torch.stack([states[site].to(weight.device).float() for site in wanted])
            rows = every.flatten(0, 1)
            cosine, ids = nearest(rows)
            nothing = ~(rows != 0).any(1, keepdim=True)  # a state of zeros has no direction
            shape = (len(wanted), len(batch), k)
            return {
                "token_id": ids.masked_fill(nothing, -1).view(shape).transpose(0, 1),
                "cosine": cosine.masked_fill(nothing, math.nan).view(shape).transpose(0, 1),
                **(random.observed(every.transpose(0, 1), batch) if self.floors else {}),
            }

        def finish(found: Found) -> dict[str, Any]:
            cosine = found["cosine"]
            if not self.floors or not cosine.size:
                return {}
            out = left_out(run, wanted)
            drawn = [random.draw(found, depth, out[:, depth]) for depth in range(len(wanted))]
            null = null_states(run, wanted)
            # The matrix is read once for all of them.
            best = nearest(torch.cat([*drawn, *null.states]))[0][:, 0].cpu().numpy()
            count = sum(map(len, drawn))
            directions = np.split(best[:count], np.cumsum([len(draws) for draws in drawn])[:-1])
            scores = null.split(best[count:])
            p, q = p_and_q(cosine[..., 0], run, null, scores, out)
            reason = {"reason": null.reason}
            few = "" if all(map(len, drawn)) else f"fewer than {FEWEST} states that are no sinks"
            return {
                "cosine_floor": ((axis,), floors(directions), {"reason": few}),
                "cosine_floor_shuffled": ((axis,), floors(scores), reason),
                "cosine_p": (cells, p, reason),
                "cosine_q": (cells, q, reason),
            }

        outputs = {
            "token_id": Output((*cells, "rank"), dtype=np.int32),
            "cosine": Output((*cells, "rank")),
            **(random.outputs(axis) if self.floors else {}),
        }
        settings = {
            "top_k": k, "chunk": None,
            "floor": f"95th percentile of the best cosine of {FLOOR_DRAWS} Gaussian draws with the layer's mean and "
            f"covariance, and of at most {ROWS[1]} states of the prompts with their tokens in random order; sinks are "
            "left out",
            "p": "rank among the shuffled states, less what a token reaches in any context; q: over all cells",
        }  # fmt: skip
        coords = {axis: [site.index for site in wanted], "rank": k, "width": run.model.d_model}
        return Plan(wanted, outputs, observe, coords, finish, VARIABLES, {"at": self.at}, settings)
