"""What runs a model: a driver makes batches of prompts, and of each batch one pass or several.

A driver knows how a model is run, and nothing of readers; the loop shows each pass to the readers and keeps what they
make of it.  ``hooks`` runs whole prompts; ``prefix`` runs beginnings that prompts share once
(:mod:`workbench.engine.prefix`); ``rollout`` lets sequences grow (:mod:`workbench.engine.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from workbench.inputs import Batch, Prompt, collate, plan

if TYPE_CHECKING:
    from workbench.model import Model

FEATURES = {
    "whole": "its passes show whole prompts, so that norms of all positions, and rows beside those read, are known",
    "halving": "a batch that runs out of memory can run again in halves",
    "shards": "prompts can run in any order and grouping, and so be resumed",
}


class Pass(NamedTuple):
    """One forward pass: the batch as readers see it, and what to run in place of the model on its inputs."""

    batch: Batch
    forward: Callable[[], Any] | None = None


class Driver(Protocol):
    """What the loop asks of a way to run a model."""

    def supports(self, feature: str) -> bool:
        """Whether it can do one of :data:`FEATURES`."""
        ...

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        """Prompts (by number) that run together, in the order in which they run."""
        ...

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        """The passes of one batch; each ``yield`` gives what the pass's forward returned.

        Called again with half of the members where memory did not suffice: what it keeps must allow for that.
        """
        ...

    def forget(self) -> None:
        """Let go of what it holds on the device (caches), before a batch runs again in halves and at the end."""
        ...


class Hooks:
    """Whole prompts, padded to one width, once through the model."""

    def __init__(self, model: Model, prompts: Sequence[Prompt], padding_side: str = "right") -> None:
        self.model, self.prompts, self.padding_side = model, prompts, padding_side

    def supports(self, feature: str) -> bool:
        return feature in FEATURES

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        own = [self.prompts[i] for i in members]
        pads = self.model.anatomy.pad_width(self.padding_side)
        shown = any(prompt.visual is not None and len(prompt.visual.pictures) for prompt in own)
        pictured = shown and self.padding_side in self.model.vision.proof.pad_sides
        return [[members[k] for k in some] for some in plan(own, token_budget(self.model), batch_size, pads, pictured)]

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        yield Pass(collate(self.model, self.prompts, members, self.padding_side))

    def forget(self) -> None:
        pass


def token_budget(model: Model) -> int:
    """Tokens in a batch: what the states of all layers may take is a share of the memory that is free."""
    bytes_per_token = (model.n_layers + 1) * model.d_model * 4
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(256, min(32768, int(free * 0.15 / bytes_per_token)))
    return max(256, min(4096, 24 * 2**20 // bytes_per_token))
