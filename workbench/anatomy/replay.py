"""The readout run on states alone, through the model's own modules."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.anatomy.description import Anatomy
from workbench.anatomy.probe import accepted, probe, probe_inputs
from workbench.engine.hooks import StopForward, hooked, run, spliced, tensors
from workbench.fingerprint import weights
from workbench.weights import effective_linear


class Replay:
    """The readout's way from states to the unembedding's input, through the model's own modules."""

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        self._module, self._anatomy = module, anatomy
        self._steps = [(module.get_submodule(step.path), step.scale) for step in anatomy.steps]
        self._head = module.get_submodule(anatomy.unembedding)
        self._sample: dict[int, Any] | None = None

    def features(self, states: Tensor) -> Tensor:
        """[rows, width] states after any block -> [rows, features], what the unembedding matrix multiplies."""
        if self._anatomy.own_tail:
            return torch.cat([self._own(rows) for rows in states.split(32)])
        x = states.unsqueeze(0)
        if self._anatomy.layout.streams > 1:
            x = self._anatomy.layout.write(x)
        for step, scale in self._steps:
            x = x if scale == 1 else x * scale
            if step is self._head:
                break
            if not self._anatomy.tied_function and any(m is self._head for m in step.modules()):
                x = self._into_head(step, x)
                break
            x = next(tensors(step(x.to(_device(step, x)))))
        return x.reshape(-1, x.shape[-1])

    def _own(self, states: Tensor) -> Tensor:
        """The model's own code behind the last block, with every block skipped and the states put in its place."""
        module, anatomy = self._module, self._anatomy
        blocks = list(module.get_submodule(anatomy.blocks).children())
        if self._sample is None:
            # What each block gives (a tensor or a tuple), from one short pass.
            self._sample = {}

            def keep(m: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
                self._sample[blocks.index(m)] = output  # type: ignore[index]

            probe(module, probe_inputs(module, seed=3)[0], after={block: keep for block in blocks})
        ids = probe_inputs(module, seed=3)[0]["input_ids"][:1, :1].expand(1, len(states))
        inputs = accepted(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        given = anatomy.layout.write(states.unsqueeze(0))
        with spliced(blocks, anatomy.last_block, given, self._sample):
            x = self._into_head(module, None, inputs)
        return x.reshape(-1, x.shape[-1])[-len(states) :]

    def _into_head(self, step: nn.Module, x: Tensor | None, inputs: dict[str, Any] | None = None) -> Tensor:
        """Run a composite module only as far as the unembedding inside it, and take what that is given."""
        seen: list[Tensor] = []

        def take(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.append(next(tensors((args, kwargs))))
            raise StopForward

        with hooked({self._head: take}):
            run(step, {_first_argument(step): x} if inputs is None else inputs)
        return seen[0]


def _first_argument(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))


def _device(module: nn.Module, like: Tensor) -> torch.device:
    parameter = next(module.parameters(), None)
    return like.device if parameter is None or parameter.is_meta else parameter.device


def head_weights(module: nn.Module, anatomy: Anatomy) -> tuple[Tensor, Tensor | None]:
    """The unembedding matrix [vocabulary, features] and its bias, as the proof and every readout multiply with them.

    Raises Refused where they are not known (:mod:`workbench.weights`).
    """
    head = module.get_submodule(anatomy.unembedding)
    if anatomy.tied_function:  # a function multiplies with what is stored
        return next(w.value() for w in weights(head) if w.attribute == "weight"), None
    return effective_linear(head)


@contextmanager
def brought(module: nn.Module) -> Iterator[None]:
    """With the weights of a module that accelerate offloads brought to where it runs."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
