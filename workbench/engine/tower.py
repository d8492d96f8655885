"""Runs the vision tower for readers of its stream: one prompt's pictures in a pass that ends where the text begins."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.capture import ran
from workbench.engine.drivers import FEATURES, Pass
from workbench.engine.hooks import StopForward, hooked
from workbench.errors import InputError
from workbench.images.tower import TowerModel
from workbench.inputs import Batch, Positions, Prompt, collate, selected

if TYPE_CHECKING:
    from workbench.model import Model


class Through:
    """A driver of the vision tower.

    Attributes
    ----------
    model
        As readers of this stream see it.
    prompts
        Their positions are the rows of the tower's states, as the tower has them.

    Raises
    ------
    InputError
        For a prompt without pictures.
    Refused
        Where the tower's states cannot be read rightly.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt], positions: Positions = "all") -> None:
        bare = [i for i, p in enumerate(prompts) if p.visual is None or not len(p.visual.pictures)]
        if bare:
            given = bool(prompts[bare[0]].extras)
            raise InputError(
                f"Prompt {bare[0]} has no picture"
                + (" (what a processor made does not tell the pictures)" if given else "")
                + ', and stream="vision" reads the vision tower. Give prompts with pictures alone to this reader.'
            )
        if positions == "text":
            raise InputError('The vision tower has no positions of text. Use positions="all" or "image".')
        self.model = TowerModel(model)
        self._texts = list(prompts)
        self.prompts = [self._prompt(i, prompt, positions) for i, prompt in enumerate(prompts)]

    def _prompt(self, index: int, prompt: Prompt, positions: Positions) -> Prompt:
        visual = self.model.tower.visual(prompt)
        made = Prompt(list(range(len(visual.at))), prompt.text, prompt.extras, visual, prompt.special)
        made.positions = selected(positions, made, index)
        return made

    def supports(self, feature: str) -> bool:
        return feature in FEATURES and feature != "halving"

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        return [[i] for i in members]

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        (i,) = members
        prompt, whole = self.prompts[i], self.model.whole
        at = torch.tensor(prompt.positions, dtype=torch.long)
        mask = torch.ones(1, len(prompt.ids), dtype=torch.long)
        batch = Batch(
            [i], {"attention_mask": mask}, at.to(self.model.device), torch.full_like(at, i), torch.arange(len(at)), at,
            at, torch.zeros(1, dtype=torch.long, device=self.model.device),
        )  # fmt: skip

        def forward() -> None:
            def stop(*_: Any) -> None:
                raise StopForward

            with hooked({whole.blocks[0]: stop}):
                ran(whole, collate(whole, self._texts, [i]).inputs, [i])

        yield Pass(batch, forward)

    def forget(self) -> None:
        pass
