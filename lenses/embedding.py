"""The embedding lens: which input embeddings lie nearest to a state, by cosine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError
from workbench.readout import nearest_rows
from workbench.sites import Site, resolve
from workbench.stats import RandomDirections

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

FLOOR_DRAWS = 256


class EmbeddingLens:
    """Nearest input embeddings at every depth, by cosine of the raw state with each row of the matrix.

    Args:
        layers: which layers (or blocks, with another ``at``); None: all.
        top_k: how many tokens to keep.
        at: "resid", "resid_mid", "attn_out" or "mlp_out".

    The reading's variables:
        token_id, cosine   [prompt, layer, position, rank]
        cosine_floor       [layer]: the 95th percentile of the *best* cosine that random directions reach, drawn
                           with the mean and the covariance of the states that were read at that layer.  A
                           neighbour below it says no more than a random state of this layer would.

    Raises InputError when the embeddings are not as wide as the stream.
    """

    def __init__(
        self, layers: int | Iterable[int] | None = None, top_k: int = 10, *, at: str = "resid", chunk: int | None = None
    ) -> None:
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no token. Use 1 or more.")
        self.layers, self.top_k, self.at, self.chunk = layers, top_k, at, chunk

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
        self._random = RandomDirections(depth, run.model.d_model, FLOOR_DRAWS)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        rows = batch.take(states).to(self._weight.device).float()
        self._random.observe(self._wanted.index(site), rows, batch)
        # The matrix is read once for all layers.
        notes = batch.scratch.setdefault(self, {})
        notes[site] = rows
        if len(notes) < len(self._wanted):
            return
        cosine, ids = self._nearest(torch.cat([notes[x] for x in self._wanted]))
        notes.clear()
        p, s, shape = batch.prompt.numpy(), batch.slot.numpy(), (len(self._wanted), len(batch), self._k)
        self._token_id[p, :, s] = ids.view(shape).transpose(0, 1).cpu().numpy()
        self._cosine[p, :, s] = cosine.view(shape).transpose(0, 1).cpu().numpy()

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, d] -> the top_k cosines and token ids."""
        best = nearest_rows(rows, self._weight, self._norms, self._k, self.chunk)
        return best.score, best.id

    def _floor(self) -> np.ndarray:
        """[layers]: 95th percentile of the best cosine of random directions."""
        draws = [self._random.draw(depth).to(self._weight.device) for depth in range(len(self._wanted))]
        return np.array([float(self._nearest(d)[0][:, 0].quantile(0.95)) for d in draws], np.float32)

    def end(self) -> Reading:
        from workbench.reading import Reading

        axis = "layer" if self.at == "resid" else "block"
        dims = ("prompt", axis, "position", "rank")
        data = self._run.dataset(
            {
                "token_id": (dims, self._token_id),
                "cosine": (dims, self._cosine),
                "cosine_floor": ((axis,), self._floor()),
            },
            {axis: [s.index for s in self._wanted], "rank": np.arange(self._k)},
            reader="EmbeddingLens",
            at=self.at,
        )
        settings = {
            "name": "EmbeddingLens", "at": self.at, "top_k": self._k,
            "floor": f"95th percentile of the best cosine of {FLOOR_DRAWS} Gaussian draws with the layer's mean and "
            "covariance",
        }  # fmt: skip
        return Reading(data, {"reader": settings})
