"""How loud the expert that serves every token is beside those that tokens are routed to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.routing.outputs import Blocks, each_batch, layers_of, ratio, same
from workbench.anatomy.moe import MoE
from workbench.engine.hooks import tensors
from workbench.errors import Refused
from workbench.inputs import Batch, encode

if TYPE_CHECKING:
    from workbench.model import Model

SHARED = ("shared_expert", "shared_experts", "shared_mlp")
"""What transformers' models call the expert that serves every token; behind it, where there is one, ..._gate."""


def shared(
    model: Model,
    inputs: Any,
    blocks: Blocks = None,
    *,
    batch_size: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How loud the shared expert, which serves every token, is beside the routed ones.

    Both are taken as they are added to each other, gates and factors included: a fit of the mixture's own output by
    the two must leave nothing over.

    Returns:
        [block], with 95 % bootstrap over documents (_low, _high): shared, routed: mean Euclidean norm over tokens;
        ratio of the two means; gate: mean of the shared expert's sigmoid gate (NaN where there is none).

    Raises Refused for models without a shared expert, and where the sum cannot be proved.
    """
    prompts, layers = encode(model, inputs), _layers(model, blocks)
    # [0: shared, 1: routed, 2: gate, 3: tokens]
    sums = np.zeros((4, len(prompts), len(layers)))
    factors: dict[int, tuple[float, float]] = {}
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any = None) -> None:
            kept[name] = next(tensors((args, kwargs) if name == "stream" else output)).clone()

        return hook

    def hooks(batch: Batch) -> tuple[dict, dict]:
        before: dict[nn.Module, Callable] = {}
        after: dict[nn.Module, Callable] = {}

        def mixed(i: int, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            seen = {name: batch.take(value).float() for name, value in kept.items()}
            kept.clear()
            whole = batch.take(next(tensors(output)))
            gate = seen["gate"].sigmoid() if "gate" in seen else torch.full((len(batch), 1), torch.nan)
            parts = seen["routed"], seen["shared"] * gate if "gate" in seen else seen["shared"]
            if i not in factors:
                factors[i] = _fit(model, layers[i], whole - seen["stream"] if "stream" in seen else whole, *parts)
            routed, own = (abs(x) * part.norm(dim=1) for x, part in zip(factors[i], parts, strict=True))
            for j, values in enumerate((own, routed, gate[:, 0], torch.ones_like(own))):
                np.add.at(sums[j], (batch.prompt.numpy(), i), values.double().cpu().numpy())

        for i, layer in enumerate(layers):
            expert = _shared_of(model, layer)
            parent = _common(layer.name, expert)
            after[model.module.get_submodule(layer.name)] = keep("routed")
            after[model.module.get_submodule(expert)] = keep("shared")
            if gate := _submodule(model, f"{expert}_gate"):
                after[gate] = keep("gate")
            # Where the two meet in the block itself (Granite), the stream before them is in its output, too.
            block = parent == f"{model.anatomy.blocks}.{layer.block}"
            if block and (norm := _submodule(model, f"{parent}.post_attention_layernorm")):
                before[norm] = keep("stream")
            after[model.module.get_submodule(parent)] = lambda *a, i=i: mixed(i, *a)
        return before, after

    each_batch(model, prompts, batch_size, hooks)
    own, routed, gate, tokens = sums
    found: dict[str, Any] = {}
    means = {"shared": (own, tokens), "routed": (routed, tokens), "ratio": (own, routed), "gate": (gate, tokens)}
    for name, (over, under) in means.items():
        for end, value in zip(("", "_low", "_high"), ratio(over, under, draws, seed), strict=True):
            found[name + end] = (("block",), value)
    attrs = {"model": model.name, "documents": len(prompts)}
    return xr.Dataset(found, {"block": [x.block for x in layers]}, attrs)


def _layers(model: Model, blocks: Blocks) -> list[MoE]:
    """The blocks asked for; None: all that have a shared expert."""
    found = [b for b, x in model.moe.items() if _shared_of(model, x)]
    if not found:
        raise Refused(
            f"{model.name} has no shared expert beside routed ones (a module named {', '.join(SHARED)}), so there is "
            "nothing to compare."
        )
    layers = layers_of(model, found if blocks is None else blocks)
    if bare := [x.block for x in layers if x.block not in found]:
        raise Refused(f"{model.name}: block {bare[0]} has no shared expert. Blocks that have one: {found}.")
    return layers


def _shared_of(model: Model, layer: MoE) -> str:
    """Path of the shared expert nearest to a block's experts, or ""."""
    block = f"{model.anatomy.blocks}.{layer.block}"
    names = [n for n, _ in model.module.get_submodule(block).named_modules() if n.rsplit(".", 1)[-1] in SHARED]
    return max((f"{block}.{n}" for n in names), key=lambda n: len(_common(n, layer.name)), default="")


def _common(a: str, b: str) -> str:
    """The module that holds both."""
    parts = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        parts.append(x)
    return ".".join(parts)


def _fit(model: Model, layer: MoE, mixed: Tensor, routed: Tensor, own: Tensor) -> tuple[float, float]:
    """Factors of the routed and the shared part in their mixture; Refused where there is more to it."""
    if not mixed.shape == routed.shape == own.shape:
        shapes = [list(x.shape[1:]) for x in (mixed, routed, own)]
        raise Refused(
            f"{model.name}: in block {layer.block} the mixture, its routed and its shared part are {shapes} wide, so "
            "they cannot be compared. Leave this block out: blocks=[...]."
        )
    parts = torch.stack([routed.flatten(), own.flatten()], 1).double().cpu()
    factors = torch.linalg.lstsq(parts, mixed.flatten().double().cpu()[:, None]).solution[:, 0]
    total = (parts @ factors).view(mixed.shape).to(mixed.device)
    same(model, layer, mixed, total.float(), "the routed and the shared part", "they are mixed to")
    return float(factors[0]), float(factors[1])


def _submodule(model: Model, path: str) -> nn.Module | None:
    try:
        return model.module.get_submodule(path)
    except AttributeError:
        return None
