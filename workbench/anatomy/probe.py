"""Short passes on random tokens that show a model's structure.  All of the anatomy's passes run here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.anatomy.config import reserved_ids, text_config
from workbench.engine.hooks import StopForward, hooked, run, tensors
from workbench.errors import Refused
from workbench.fingerprint import execution_device


def probe_inputs(module: nn.Module, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Two random prompts of different length in one right-padded batch, and the mask of their real positions.

    Special tokens are avoided: an image placeholder or a pad inside a prompt changes what the model does.
    """
    config = text_config(module)
    embedding = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    rows = getattr(embedding, "num_embeddings", None) or getattr(config, "vocab_size", None)
    if not isinstance(rows, int):
        raise Refused(
            f"{type(module).__name__} has no input embedding over a vocabulary. "
            "A lens needs a model that reads token ids and gives logits over tokens."
        )
    special = set(reserved_ids(module.config)) if hasattr(module, "config") else set()
    limit = min(rows, getattr(config, "vocab_size", rows) or rows)
    allowed = [i for i in range(limit) if i not in special] if limit < 4096 else None
    generator = torch.Generator().manual_seed(seed)
    lengths = (11, 7)
    if allowed is None:
        ids = torch.randint(limit // 8, limit // 2, (2, lengths[0]), generator=generator)
        for bad in special:
            ids[ids == bad] = limit // 2 + 1
    else:
        ids = torch.tensor(allowed)[torch.randint(0, len(allowed), (2, lengths[0]), generator=generator)]
    mask = torch.ones_like(ids)
    mask[1, lengths[1] :] = 0
    pad = getattr(config, "pad_token_id", None)
    ids[1, lengths[1] :] = pad if isinstance(pad, int) and 0 <= pad < limit else int(ids[1, 0])
    device = execution_device(module)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return inputs, mask.bool().to(device)


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that this model's forward takes, with caching switched off where it has a switch.

    A forward that hands on what it does not name takes what that of the model inside names.
    """
    parameters = dict(inspect.signature(module.forward).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        inner = getattr(module, "model", None)
        own = inspect.signature(inner.forward).parameters if isinstance(inner, nn.Module) else {}
        parameters = {**own, **dict.fromkeys(("input_ids", "attention_mask")), **parameters}
    kept = {k: v for k, v in inputs.items() if k in parameters}
    if "use_cache" in inspect.signature(module.forward).parameters:
        kept["use_cache"] = False
    return kept


def probe(
    module: nn.Module,
    inputs: dict[str, Any],
    before: dict[nn.Module, Callable] | None = None,
    after: dict[nn.Module, Callable] | None = None,
) -> Any:
    """One pass with hooks, on those of the inputs that the model's forward takes."""
    with hooked(before, after):
        return run(module, accepted(module, inputs))


def in_front(module: nn.Module, block: nn.Module, inputs: dict[str, Any], find: Callable[[Any], Any]) -> Any:
    """What ``find`` gives of a block's inputs, in a pass that ends there; None where the block is not reached."""
    seen: list[Any] = []

    def stop(m: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(find((args, kwargs)))
        raise StopForward

    probe(module, inputs, before={block: stop})
    return seen[0] if seen else None


def alone(inputs: dict[str, Tensor], real: Tensor) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Each prompt of a right-padded batch by itself, without its pads, and the mask of its positions."""
    lengths = real.sum(1).tolist()
    return [({k: v[i : i + 1, :n] for k, v in inputs.items()}, real[i : i + 1, :n]) for i, n in enumerate(lengths)]


@dataclass
class Event:
    """One module call: when it began and ended, the float tensors it took, and the first one it gave."""

    name: str
    begin: int
    end: int = -1
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None


def record(module: nn.Module, inputs: dict[str, Any], keep: Any) -> tuple[list[Event], Tensor]:
    """Run once; list the calls of all submodules in order, keeping tensors only of those ``keep(name)``."""
    events: list[Event] = []
    open_events: dict[int, list[Event]] = {}
    clock = 0
    names = {m: n for n, m in module.named_modules() if n}

    def begin(m: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal clock
        clock += 1
        event = Event(names[m], clock)
        if keep(event.name):
            # Cloned: models add to the stream in place.
            event.inputs = [
                t.detach().clone() for t in tensors((args, kwargs)) if t.is_floating_point() and t.ndim >= 2
            ]
        events.append(event)
        open_events.setdefault(id(m), []).append(event)

    def end(m: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        nonlocal clock
        clock += 1
        event = open_events[id(m)].pop()
        event.end = clock
        found = next((t for t in tensors(output) if t.is_floating_point() and t.ndim >= 2), None)
        if found is not None:
            event.output = found.detach().clone() if keep(event.name) else found[:0]

    output = probe(module, inputs, {m: begin for m in names}, {m: end for m in names})
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise Refused(
            f"{type(module).__name__} gives no logits ({type(output).__name__}). A lens shows a state as a "
            "distribution over tokens, so load the model with its language-model head (AutoModelForCausalLM)."
        )
    return events, logits.detach()


def rows_of(tensor: Tensor, real: Tensor) -> Tensor:
    """The real positions of [batch, position, width] or [batch * position, width], as [rows, width]."""
    if tensor.shape[:2] == real.shape:
        return tensor[real]
    if tensor.ndim == 2 and tensor.shape[0] == real.numel():
        return tensor[real.flatten()]
    return tensor.reshape(-1, tensor.shape[-1])
