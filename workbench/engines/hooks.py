"""Run a PyTorch module with temporary hooks, as far as needed, and leave it as it was found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside a hook once the deepest site has been seen; caught by :func:`run`."""


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of tuples, lists and dicts (model outputs are dicts), in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def hidden(value: Any, width: int | None = None, *, ndim: int = 3) -> Tensor | None:
    """The first floating-point tensor of shape [batch, position, width] in a nest, or None."""
    for tensor in tensors(value):
        if (
            tensor.ndim == ndim
            and tensor.is_floating_point()
            and (width is None or tensor.shape[-1] == width)
        ):
            return tensor
    return None


@contextmanager
def hooked(
    before: dict[nn.Module, Callable] | None = None,
    after: dict[nn.Module, Callable] | None = None,
) -> Iterator[None]:
    """Hooks for the length of a ``with`` block.

    ``before[module](module, args, kwargs)`` runs ahead of a module's forward, ``after[module](module, args,
    kwargs, output)`` behind it.  What they return is ignored, so that a pass stays a pure read.
    """

    def pure(function: Callable) -> Callable:
        def hook(*arguments: Any) -> None:
            function(*arguments)

        return hook

    handles = []
    try:
        for module, function in (before or {}).items():
            handles.append(module.register_forward_pre_hook(pure(function), with_kwargs=True))
        for module, function in (after or {}).items():
            handles.append(module.register_forward_hook(pure(function), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; train/eval flags and random number generators are put back after."""
    training = [m for m in module.modules() if m.training]
    states = random.getstate(), torch.get_rng_state()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if on_gpu else None
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def run(module: nn.Module, inputs: dict[str, Any]) -> Any:
    """One forward pass; None when a hook raised :class:`StopForward`."""
    try:
        return module(**inputs)
    except StopForward:
        return None
