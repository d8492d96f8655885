"""The blocks and the unembedding of a model, and the way between them, found in one recorded pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.anatomy.config import text_config
from workbench.anatomy.constants import ratio
from workbench.anatomy.description import Step
from workbench.anatomy.layout import Layout
from workbench.anatomy.probe import Event, rows_of
from workbench.errors import Refused


def find_blocks(module: nn.Module, events: list[Event]) -> tuple[str, list[str]]:
    """The path of the block list, and the paths of its members that ran, in order."""
    config = text_config(module)
    declared = {
        value
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
        if isinstance(value := getattr(config, key, None), int)
    }
    calls: dict[str, int] = {}
    for event in events:
        calls[event.name] = calls.get(event.name, 0) + 1
    order = {event.name: event.begin for event in events}
    candidates = []
    for name, child in module.named_modules():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)) or not len(child):
            continue
        ran = [f"{name}.{key}" for key, _ in child.named_children() if f"{name}.{key}" in calls]
        if not ran:
            continue
        size = sum(p.numel() for p in child.parameters())
        candidates.append((len(child) in declared, size, name, ran))
    # Only lists that are not inside a member of another list: experts and heads live in lists, too.
    outer = [c for c in candidates if not any(c[2].startswith(o[2] + ".") for o in candidates)]
    outer = [c for c in (outer or candidates) if len(c[3]) > 1 or c[0]]
    if not outer:
        raise Refused(
            f"No list of blocks ran in {type(module).__name__}: no nn.ModuleList whose members each run once. "
            "Without blocks there is no residual stream to read layer by layer."
        )
    _, _, path, ran = max(outer)
    again = [name for name in ran if calls[name] > 1]
    if again:
        raise Refused(
            f"{again[0]} ran {calls[again[0]]} times in one forward pass of {type(module).__name__}. "
            "A layer number would then name several states; recurrent depth is not supported."
        )
    if [order[name] for name in ran] != sorted(order[name] for name in ran):
        raise Refused(f"The members of {path} run out of order, so layer numbers would not follow depth.")
    return path, ran


def find_unembedding(module: nn.Module, events: list[Event], vocabulary: int) -> str | None:
    """The path of the module that gives one number per token, or None when a function does it."""
    named = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    ran = [event.name for event in events]
    for name, child in module.named_modules():
        if named is not None and child is named and name in ran:
            return name
    for name in reversed(ran):
        weight = getattr(module.get_submodule(name), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[0] == vocabulary:
            if not isinstance(module.get_submodule(name), nn.Embedding):
                return name
    return None


def follow(
    module: nn.Module,
    by_name: dict[str, Event],
    outer: list[str],
    unembedding: str | None,
    last: Tensor,
    layout: Layout,
    real: Tensor,
    numbers: list[float],
) -> tuple[list[Step], Tensor | None]:
    """Follow the last state through the modules that ran behind it, up to the unembedding.

    Returns the steps and what the unembedding gave; None for the latter when the way was lost.
    """
    steps: list[Step] = []
    state = layout.read(last) if layout.streams == 1 else last
    for name in outer:
        event = by_name[name]
        if event.output is None:
            continue
        here = rows_of(state, real)
        scale = next((r for t in event.inputs if (r := ratio(here, rows_of(t, real), numbers)) is not None), None)
        if scale is None:
            continue
        if unembedding is not None and (name == unembedding or unembedding.startswith(name + ".")):
            return [*steps, Step(name, scale)], by_name[unembedding].output
        same = scale == 1 and event.output.shape == state.shape and torch.equal(event.output, state)
        if not same:  # dropout and identity modules are no steps
            steps.append(Step(name, scale))
            state = event.output
    return steps, None


def tied(
    module: nn.Module, by_name: dict[str, Event], steps: list[Step], last: Tensor, layout: Layout, vocabulary: int
) -> tuple[str | None, Tensor | None]:
    """The input embeddings as unembedding, and the logits that they give; None, None where shapes do not fit."""
    embedding = module.get_input_embeddings()
    state = by_name[steps[-1].path].output if steps else layout.read(last)
    weight = getattr(embedding, "weight", None)
    if state is None or not isinstance(weight, Tensor) or weight.shape != (vocabulary, state.shape[-1]):
        return None, None
    return next(n for n, m in module.named_modules() if m is embedding), nn.functional.linear(state, weight)


def tail_reason(kind: str, last: str, outer: list[str], unembedding: str | None) -> str:
    ran = ", ".join(outer[:6]) or "no module"
    return (
        f"The way from {last} to the logits of {kind} is not understood: after the last block ran {ran}, and "
        f"following the state through them did not reach the unembedding ({unembedding or 'none found'}). "
        "A lens that guessed the missing step would be silently wrong."
    )
