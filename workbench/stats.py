"""Nulls and intervals that lenses and probes share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.inputs import Batch


class RandomDirections:
    """Draws of random states with the mean and covariance of the states that were seen, at several depths.

    A draw is mean + sum_i g_i (x_i - mean) / sqrt(n), with g_i standard normal: given the states it is Gaussian
    with exactly their covariance, and no [d, d] matrix is ever held.  The g_i of a place belong to its prompt and
    position, so the draws do not depend on how prompts were batched.
    """

    def __init__(self, depths: int, width: int, draws: int, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed
        self._weighted = torch.zeros(depths, draws, width)
        self._weights = torch.zeros(depths, draws)
        self._sum = torch.zeros(depths, width)
        self._count = [0] * depths

    def observe(self, depth: int, rows: Tensor, batch: Batch) -> None:
        """States [selected, width] of a batch at one depth; counted once the batch is done."""
        g = batch.scratch.get((RandomDirections, self.draws, self.seed))
        if g is None:
            found, at = np.unique(batch.prompt.numpy(), return_inverse=True)
            g = torch.empty(len(at), self.draws)
            for i, prompt in enumerate(found):
                own = np.random.Generator(np.random.Philox(key=[self.seed, int(prompt)]))
                mine = torch.from_numpy(at == i)
                g[mine] = torch.from_numpy(own.standard_normal((int(mine.sum()), self.draws), np.float32))
            batch.scratch[(RandomDirections, self.draws, self.seed)] = g
        rows = rows.float()
        weighted, total = (g.to(rows.device).T @ rows).cpu(), rows.sum(0).cpu()

        def commit() -> None:
            self._weighted[depth] += weighted
            self._weights[depth] += g.sum(0)
            self._sum[depth] += total
            self._count[depth] += len(rows)

        batch.done.append(commit)

    def draw(self, depth: int) -> Tensor:
        """[draws, width] float32."""
        n = max(1, self._count[depth])
        mean = self._sum[depth] / n
        return mean + (self._weighted[depth] - self._weights[depth][:, None] * mean) / n**0.5


def bootstrap_interval(
    values: np.ndarray, weights: np.ndarray | None = None, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the weighted mean over the first axis: [units, ...] -> lower [...], upper [...].

    Units are what was sampled (prompts, documents), never the tokens inside them.  NaN: no value in that unit.
    With fewer than two units there is no interval, and both bounds are NaN.
    """
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    w = np.where(np.isnan(values), 0.0, weights.reshape(-1, *[1] * (values.ndim - 1)))
    x = np.nan_to_num(values) * w
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.tensordot(counts, x, 1) / np.tensordot(counts, w, 1)
    lower, upper = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return lower, upper
