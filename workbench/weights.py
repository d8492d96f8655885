"""The matrices that a model really multiplies with, whatever is wrapped around them; proved by running the module.

``module.weight`` is not always that matrix: beside it may stand an adapter (LoRA, DoRA, retrained tokens), a factor
(Gemma's embeddings), a hook, a quantisation, or nothing, where accelerate has offloaded it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.hooks import untouched
from workbench.errors import Refused
from workbench.fingerprint import acting, adapted, execution_device, offloaded, own_hooks, weights

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest |x W + b - module(x)| as a share of the largest |module(x)|.

Half precisions are looser: an adapter's product is rounded at every step, and otherwise than the sum of both."""
ROWS = 1024


def effective_linear(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W [out, in] and b [out] or None with  module(x) = x W.T + b, for Linear-like modules of any kind.

    The stored tensors where they are what is used; else a new matrix, read off the module's own forward pass on unit
    vectors.  Raises Refused where the module is no such product.
    """
    _present(module)
    plain = _plain(module)
    with untouched(module):
        if plain:
            stored = {w.attribute: w.value() for w in weights(module)}
            weight, bias = stored["weight"], stored.get("bias")
            weight = weight.T if type(module).__name__ == "Conv1D" else weight
        else:
            width, dtype, device = _takes(module)
            bias = _out(module(torch.zeros(1, 1, width, dtype=dtype, device=device)))[0]
            columns = []
            for lo in range(0, width, ROWS):
                n = min(ROWS, width - lo)
                unit = torch.zeros(1, n, width, dtype=dtype, device=device)
                unit[0, :, lo : lo + n].fill_diagonal_(1)
                columns.append(_out(module(unit)) - bias)
            weight = torch.cat(columns).T.contiguous()
            bias = bias if bool(bias.any()) else None
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight)
        own = _out(module(x))
        _prove(module, nn.functional.linear(x[0].to(own.device), weight.to(own.device), bias), own)
    return weight, bias


def effective_weight(module: nn.Module) -> Tensor:
    """The matrix of a Linear [out, in], or what an Embedding gives for each id [ids, width]."""
    n = _ids(module)
    if n is None:
        return effective_linear(module)[0]
    _present(module)
    with untouched(module):
        if _plain(module):
            weight = next(w.value() for w in weights(module) if w.attribute == "weight")
            ids = torch.linspace(0, n - 1, min(n, 64), device=weight.device).long()
            _prove(module, weight[ids], _out(module(ids[None])))
            return weight
        device = _takes(module)[2]
        chunks = torch.arange(n, device=device).split(ROWS * 8)
        return torch.cat([_out(module(ids[None])) for ids in chunks])


def merged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a module's weights, with what PEFT's adapters make of them; the module is left as it is.

    An adapted layer is merged in a copy of its own, one at a time, and the copy must give what the layer gives.
    """
    layers = [layer for _, layer in adapted(module) if acting(layer) and hasattr(layer, "merge")]
    owners = {id(part): layer for layer in reversed(layers) for part in layer.modules()}  # the outermost has the word
    copied: tuple[Any, dict[tuple[int, str], Any], dict[int, Any]] = (None, {}, {})
    seen = set()
    for weight in weights(module):
        layer = owners.get(id(weight.owner))
        if layer is None:
            found = weight
        else:
            if copied[0] is not layer:
                memo: dict[int, Any] = {}
                twin = _merged(layer, memo)
                copied = layer, {(id(w.owner), w.attribute): w for w in weights(twin)}, memo
            # What is the adapter's own has no place in the merged layer.
            found = copied[1].get((id(copied[2].get(id(weight.owner))), weight.attribute))
        if found is not None and weight.name not in seen:
            seen.add(weight.name)
            yield weight.name, found.value()


def outermost(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, with what PEFT has wrapped around it."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        module = root.get_submodule(".".join(parts[:n]))
        if hasattr(module, "adapter_layer_names") and hasattr(module, "active_adapters"):
            return module
    return root.get_submodule(path)


def aside(module: nn.Module) -> set[nn.Module]:
    """Modules that do not run, since PEFT runs others in their place: originals, copies of adapters that are off."""
    found: set[nn.Module] = set()
    for _, layer in adapted(module):
        kept = getattr(layer, "modules_to_save", None)
        if isinstance(kept, nn.ModuleDict):
            on = acting(layer)
            idle = [*([layer.original_module] if on else []), *(m for name, m in kept.items() if name not in on)]
            found |= {part for one in idle for part in one.modules()}
    return found


def _merged(layer: Any, memo: dict[int, Any]) -> nn.Module:
    _present(layer)
    try:
        twin = copy.deepcopy(layer, memo)
        for _, inner in list(adapted(twin)):
            if acting(inner) and hasattr(inner, "merge"):
                inner.merge()
    except Exception as error:
        raise Refused(
            f"What the adapter makes of the weights of a {type(layer).__name__} is not known here ({error}). "
            "Merge it (merge_and_unload), save the model, and give that."
        ) from error
    with untouched(layer), untouched(twin):
        n = _ids(layer)
        width, dtype, device = _takes(layer)
        if n is not None:
            x = torch.linspace(0, n - 1, min(n, 64), device=device).long()[None]
        else:
            x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        try:
            own = _out(layer(x))
        except Exception:  # experts, which want more than states: PEFT's own merging is all there is
            return twin
        _prove(layer, _out(twin(x)), own)
    return twin


def _plain(module: nn.Module) -> bool:
    """Whether a module's forward is torch's own, on its stored weight."""
    return (
        (type(module) in (nn.Linear, nn.Embedding) or type(module).__name__ == "Conv1D")
        and not own_hooks(module)
        and module.weight.is_floating_point()
    )


def _present(module: nn.Module) -> None:
    """Refused where weights are nowhere: a product with them would be unwritten memory."""
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_meta and not offloaded(part):
                raise Refused(
                    f"The weights of {type(module).__name__}{'.' + name if name else ''} are on the meta device, and "
                    "nothing brings them for a forward pass. Load the model with its weights."
                )


def _ids(module: nn.Module) -> int | None:
    """How many ids an embedding takes; None for any other module."""
    inner = module
    while not isinstance(inner, nn.Embedding):
        # What PEFT wraps: layers around layers, modules saved beside their originals.
        following = getattr(inner, "base_layer", None) or getattr(inner, "original_module", None)
        if not isinstance(following, nn.Module):
            return getattr(inner, "num_embeddings", None)
        inner = following
    return inner.num_embeddings


def _takes(module: Any) -> tuple[int, torch.dtype, torch.device]:
    """Width, dtype and device of what a module takes."""
    parameters = [*module.parameters(), *module.buffers()]
    # Of quantised modules the codes are the largest, beside scales of other shapes.
    matrix = max((p for p in parameters if p.ndim >= 2), key=lambda p: p.numel(), default=None)
    width = getattr(module, "in_features", None) or (None if matrix is None else matrix.shape[-1])
    if width is None:
        raise Refused(f"A {type(module).__name__} has no matrix that could be read off it.")
    dtype = next((p.dtype for p in parameters if p.is_floating_point() and p.element_size() > 1), torch.float32)
    return int(width), dtype, execution_device(module)


def _out(output: Any) -> Tensor:
    """[rows, width] from what a module gave for [1, rows, ...]."""
    output = output[0] if isinstance(output, (tuple, list)) else output
    return output.detach().reshape(-1, output.shape[-1])


def _prove(module: nn.Module, mine: Tensor, own: Tensor) -> None:
    allowed, kept = TOLERANCE.get(own.dtype, 1e-4), own.isfinite()
    mine, own = mine.to(own.device)[kept].double(), own[kept].double()
    error = float((mine - own).abs().max() / own.abs().max().clamp_min(1e-30)) if len(own) else 0.0
    if not error <= allowed:
        raise Refused(
            f"The matrix found for a {type(module).__name__} is not what it multiplies with: its output differs by "
            f"{error:.1e} of the largest (allowed: {allowed:.0e}). What it does is no product with one matrix."
        )
