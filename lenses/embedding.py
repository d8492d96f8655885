"""The embedding lens: which input embeddings lie nearest to a state, by cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.nulls import FEWEST, ROWS, floors, left_out, null_states, p_and_q
from workbench.errors import InputError
from workbench.readout import nearest_rows
from workbench.sites import Site, resolve
from workbench.stats import RandomDirections
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

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


class EmbeddingLens:
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

    def __init__(
        self, layers: int | Iterable[int] | None = None, top_k: int = 10, *, at: str = "resid", floors: bool = True,
        chunk: int | None = None,
    ) -> None:  # fmt: skip
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no token. Use 1 or more.")
        self.layers, self.top_k, self.at, self.floors, self.chunk = layers, top_k, at, floors, chunk

    def sites(self, model: Model) -> list[Site]:
        self._wanted = resolve(model, self.at, self.layers)
        return self._wanted

    def begin(self, run: Run) -> None:
        self._run = run
        weight = run.model.embedding
        self._weight = weight
        # Norms once; the matrix itself stays as the model has it.
        self._norms = torch.cat([part.float().norm(dim=1) for part in weight.split(4096)]).clamp_min(1e-12)
        self._k = min(self.top_k, len(weight))
        depth = len(self._wanted)
        self._token_id = run.empty([depth], np.int32, after=[self._k])
        self._cosine = run.empty([depth], after=[self._k])
        self._random = RandomDirections(depth, FLOOR_DRAWS)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        rows = batch.take(states).to(self._weight.device).float()
        if self.floors:
            self._random.observe(self._wanted.index(site), rows, batch)
        # The matrix is read once for all layers.
        notes = batch.scratch.setdefault(self, {})
        notes[site] = rows
        if len(notes) < len(self._wanted):
            return
        every = torch.cat([notes[x] for x in self._wanted])
        cosine, ids = self._nearest(every)
        nothing = ~(every != 0).any(1, keepdim=True)  # a state of zeros has no direction
        cosine, ids = cosine.masked_fill(nothing, math.nan), ids.masked_fill(nothing, -1)
        notes.clear()
        p, s, shape = batch.prompt.numpy(), batch.slot.numpy(), (len(self._wanted), len(batch), self._k)
        self._token_id[p, :, s] = ids.view(shape).transpose(0, 1).cpu().numpy()
        self._cosine[p, :, s] = cosine.view(shape).transpose(0, 1).cpu().numpy()

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, d] -> the top_k cosines and token ids."""
        best = nearest_rows(rows, self._weight, self._norms, self._k, self.chunk)
        return best.score, best.id

    def _best(self, states: Tensor) -> np.ndarray:
        return self._nearest(states.to(self._weight.device))[0][:, 0].cpu().numpy()

    def _controls(self, axis: str) -> dict[str, Any]:
        out = left_out(self._run, self._wanted)
        random = [self._random.draw(depth, out[:, depth]) for depth in range(len(self._wanted))]
        null = null_states(self._run, self._wanted)
        # The matrix is read once for all of them.
        best = self._best(torch.cat([*random, *null.states]))
        best, scores = best[: sum(map(len, random))], null.split(best[sum(map(len, random)) :])
        random = np.split(best, np.cumsum([len(draws) for draws in random])[:-1])
        p, q = p_and_q(self._cosine[..., 0], self._run, null, scores, out)
        cells, of = ("prompt", axis, "position"), {"of": "cosine", "reason": null.reason}
        few = "" if all(map(len, random)) else f"fewer than {FEWEST} states that are no sinks"
        return {
            "cosine_floor": (
                (axis,), floors(random), {"role": "floor", "of": "cosine", "reason": few,
                "long_name": "95th percentile of the best cosine of random directions"},
            ),
            "cosine_floor_shuffled": (
                (axis,), floors(scores), {"role": "floor", **of,
                "long_name": "95th percentile of the best cosine in shuffled prompts"},
            ),
            "cosine_p": (cells, p, {"role": "p", **of, "long_name": "p among states of shuffled prompts"}),
            "cosine_q": (cells, q, {"role": "q", **of, "long_name": "p, adjusted for the number of cells"}),
        }  # fmt: skip

    def end(self) -> Reading:
        from workbench.reading import Reading

        axis = "layer" if self.at == "resid" else "block"
        dims = ("prompt", axis, "position", "rank")
        data = self._run.dataset(
            {
                "token_id": (dims, self._token_id),
                "cosine": (dims, self._cosine),
                **(self._controls(axis) if self.floors and self._cosine.size else {}),
            },
            {axis: [s.index for s in self._wanted], "rank": np.arange(self._k)},
            reader="EmbeddingLens",
            at=self.at,
        )
        settings = {
            "name": "EmbeddingLens", "at": self.at, "top_k": self._k,
            "floor": f"95th percentile of the best cosine of {FLOOR_DRAWS} Gaussian draws with the layer's mean and "
            f"covariance, and of at most {ROWS[1]} states of the prompts with their tokens in random order; sinks are "
            "left out",
            "p": "rank among the shuffled states, less what a token reaches in any context; q: over all cells",
        }  # fmt: skip
        return Reading(described(data, VARIABLES), {"reader": settings})
