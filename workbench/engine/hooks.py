"""Run a PyTorch module with temporary hooks, as far as needed, and leave it as it was found."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


@contextmanager
def hooked(
    before: dict[nn.Module, Callable] | None = None,
    after: dict[nn.Module, Callable] | None = None,
) -> Iterator[None]:
    """Hooks for the length of a ``with`` block.

    ``before[module](module, args, kwargs)`` runs ahead of a module's forward, ``after[module](module, args,
    kwargs, output)`` behind it.  What they return is ignored, so that a pass stays a pure read.  Only what this thread
    runs is seen.
    """

    mine = threading.get_ident()

    def pure(function: Callable) -> Callable:
        def hook(*arguments: Any) -> None:
            if threading.get_ident() == mine:  # another thread may run the model meanwhile, for itself
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


_turn = threading.RLock()


@contextmanager
def neutral() -> Iterator[None]:
    """PyTorch as it is when nobody has set anything, for what is computed beside the model and in it.

    Default dtype fp32 and default device cpu; no autocast, inference mode or gradients; compiled modules run as they
    are written, since a graph that was compiled before knows no hooks.  All is put back after.  What chooses how
    products round (TF32, ``torch.set_float32_matmul_precision``, deterministic algorithms) is the user's and stays.

    Threads take turns: most of this, and the random state, is the whole process's.

    Also a decorator: ``@neutral()``.
    """
    with _turn, ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        for kind in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode in a :func:`neutral` PyTorch; train/eval flags and random states are put back after.

    accelerate's mixed precision (a Trainer's ``bf16=True``) is an autocast around a module's own forward, and is left
    out in the same way.
    """
    with neutral():
        training = [m for m in module.modules() if m.training]
        states = random.getstate(), torch.get_rng_state()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        cuda = torch.cuda.get_rng_state_all() if on_gpu else None
        cast = [(m, vars(m)["forward"]) for m in module.modules() if {"forward", "_original_forward"} <= vars(m).keys()]
        try:
            module.eval()
            for m, _ in cast:
                m.forward = m._original_forward
            yield
        finally:
            for m, forward in cast:
                m.forward = forward
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


@contextmanager
def spliced(blocks: list[nn.Module], last: int, state: Tensor, sample: dict[int, Any]) -> Iterator[None]:
    """Make blocks pass their input on and block ``last`` give ``state``, for the length of a ``with`` block.

    ``sample[i]`` is what block i once gave: where that was a tuple, a tuple is given again.
    """

    def shaped(i: int, value: Tensor) -> Any:
        given = sample.get(i)
        return (value, *[None] * (len(given) - 1)) if isinstance(given, tuple) else value

    def skip(i: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return shaped(i, state if i == last else next(t for t in tensors((args, kwargs)) if t.is_floating_point()))

        return forward

    own = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for i, block in enumerate(blocks):
            block.forward = skip(i)
        yield
    finally:
        for block, forward in own:
            if forward is None:
                del block.forward
            else:
                block.forward = forward
