"""Random states like those that were seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.readers import Found, Output

if TYPE_CHECKING:
    from workbench.inputs import Batch


class RandomDirections:
    """Draws of random states with the mean and covariance of the states that were seen, at several depths.

    A random sample of at most ``KEPT`` positions is held.  A draw is mean + sum_i g_i (x_i - mean) / sqrt(n) with g_i
    standard normal: given the sample it is Gaussian with exactly its covariance, and no [d, d] matrix is ever held.
    Which positions are kept goes by a hash of prompt and position: the draws do not depend on batches.
    """

    KEPT, FEWEST = 512, 20

    def __init__(self, draws: int, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def outputs(self, axis: str) -> dict[str, Output]:
        """What a plan has among its outputs, for states [sample, axis, width]."""
        key: Any = {"combine": "concat", "key": True, "keep": self.KEPT}
        return {
            "sample_priority": Output(("sample",), dtype=np.float64, **key),
            "sample_prompt": Output(("sample",), dtype=np.int64, **key),
            "sample_slot": Output(("sample",), dtype=np.int64, **key),
            "sample_state": Output(("sample", axis, "width"), combine="concat", keep=self.KEPT),
        }

    def observed(self, states: Tensor, batch: Batch) -> dict[str, Any]:
        """What ``observe`` gives of states [selected, depth, width]."""
        prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
        priority = np.empty(len(prompt))
        for one in np.unique(prompt):
            own = np.random.Generator(np.random.Philox(key=[self.seed, int(one)]))
            mine = prompt == one
            priority[mine] = own.random(int(slot[mine].max()) + 1)[slot[mine]]
        some = np.lexsort((slot, prompt, priority))[: self.KEPT]
        return {
            "sample_priority": priority[some], "sample_prompt": prompt[some], "sample_slot": slot[some],
            "sample_state": states[torch.from_numpy(some).to(states.device)].float(),
        }  # fmt: skip

    def draw(self, found: Found, depth: int, left_out: np.ndarray) -> Tensor:
        """[draws, width] float32 from the states that are not in ``left_out`` [prompt, slot]; [0, width] if too few."""
        states = torch.from_numpy(found["sample_state"][:, depth])
        states = states[torch.from_numpy(~left_out[found["sample_prompt"], found["sample_slot"]])]
        if len(states) < self.FEWEST:
            return states[:0]
        g = np.random.default_rng(self.seed).standard_normal((self.draws, len(states)), np.float32)
        mean = states.mean(0)
        return mean + torch.from_numpy(g) @ (states - mean) / len(states) ** 0.5
