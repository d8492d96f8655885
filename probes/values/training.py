"""A model in the middle of its training: read as its saved checkpoint would be, and left as it was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.errors import Refused

ADAPTERS = ("_active_adapter", "active_adapter", "_disable_adapters", "_adapters_disabled")
"""Where PEFT's modules keep which adapter is on (0.21)."""
SIDES = ("padding_side", "truncation_side")
SHARDED = {"FullyShardedDataParallel": "FSDP", "FSDPModule": "FSDP2"}


def whole(module: nn.Module) -> None:
    """Refused where a process holds pieces of the weights: FSDP, DeepSpeed ZeRO-3, tensor parallelism."""
    found = next((SHARDED[c.__name__] for m in module.modules() for c in type(m).__mro__ if c.__name__ in SHARDED), "")
    for parameter in module.parameters():
        if found:
            break
        # ZeRO-3 leaves empty tensors behind, and marks them.
        found = "DeepSpeed ZeRO-3" if hasattr(parameter, "ds_id") else found
        found = "DTensor, parallel" if type(parameter.data).__name__ == "DTensor" else found
        found = "on the meta device" if parameter.is_meta else found
    if found:
        raise Refused(
            f"The weights of this {type(module).__name__} are spread over processes ({found}), and each holds pieces "
            "of them: a reading of those would be of no model. Save checkpoints instead, and read them apart from the "
            "training: ValueTracker(...).run({step: folder, ...})."
        )


@contextmanager
def as_saved(module: nn.Module, tokenizer: Any = None) -> Iterator[None]:
    """In this block the model computes as the checkpoint that is saved now would; after it, nothing has changed.

    Without the autocast that mixed precision wraps around ``forward`` (bf16 is what trl trains in by default): a
    checkpoint is loaded without.  Put back, also after an error: random states (python, numpy, torch, CUDA), train or
    eval mode of each module, requires_grad and gradients of each parameter, adapters that are on or off, the sides on
    which the tokenizer pads and cuts.  Weights and the optimizer are not looked after: instruments do not write.
    """
    modules, parameters = list(module.modules()), list(module.parameters())
    modes = [m.training for m in modules]
    needs = [(p.requires_grad, p.grad) for p in parameters]
    adapters = [{k: _copied(vars(m)[k]) for k in ADAPTERS if k in vars(m)} for m in modules]
    sides = {k: getattr(tokenizer, k) for k in SIDES if hasattr(tokenizer, k)}
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if on_gpu else None
    own, mixed = vars(module).get("_original_forward"), vars(module).get("forward")
    try:
        if own is not None and mixed is not None:
            module.forward = own
        for p in parameters:
            p.grad = None  # out of reach of anything that would add to it
        yield
    finally:
        if own is not None and mixed is not None:
            module.forward = mixed
        for m, training, on in zip(modules, modes, adapters, strict=True):
            m.training = training
            for key in ADAPTERS:
                vars(m).pop(key, None)
            vars(m).update(on)
        for p, (wanted, grad) in zip(parameters, needs, strict=True):
            p.requires_grad_(wanted)
            p.grad = grad
        for key, value in sides.items():
            setattr(tokenizer, key, value)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
