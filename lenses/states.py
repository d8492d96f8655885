"""A reader that only keeps the states, for work of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.reading import Reading
from workbench.sites import Site, resolve
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run

VARIABLES = {"state": about("hidden state")}


class States:
    """The states themselves, ``.found`` [prompt, layer, position, d_model] float32 after the pass; NaN: no token."""

    def __init__(self, layers: int | Iterable[int] | None = None, *, at: str = "resid") -> None:
        self.layers, self.at = layers, at

    def sites(self, model: Model) -> list[Site]:
        self._wanted = resolve(model, self.at, self.layers)
        return self._wanted

    def begin(self, run: Run) -> None:
        self._run = run
        self.found = torch.from_numpy(run.empty([len(self._wanted)], after=[run.model.d_model]))

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        self.found[batch.prompt, self._wanted.index(site), batch.slot] = batch.take(states).float().cpu()

    def end(self) -> Reading:
        axis = "layer" if self.at == "resid" else "block"
        data = self._run.dataset(
            {"state": (("prompt", axis, "position", "width"), self.found.numpy())},
            {axis: [s.index for s in self._wanted], "width": np.arange(self.found.shape[-1])},
            reader="States",
            at=self.at,
        )
        return Reading(described(data, VARIABLES), {"reader": {"name": "States", "at": self.at}})
