"""What the fingerprint of a model counts: every weight that a forward pass uses, and what is put between them.

Each element counts, by an integer sum that is the same on every device and for every way of spreading a model over
devices:  sum over 64-bit words of  odd random number x (word + its upper half)  mod 2**64,  by rows of 2**16 words.
One changed element always changes it; several changed ones go unseen with a chance of about 2**-33.

Weights count by value: in float32, so that a bfloat16 checkpoint is one model in both.  Of PEFT's adapters those count
that act (on, and not merged), with their scaling, under names that do not say what they were called; so a model whose
adapters are off is its base, and a merged one is the model that merging gives (its weights are rounded once more than
those of an active adapter, which is another fingerprint).  Parametrised weights count as what they come to.  Forward
hooks count by their code and the tensors and numbers that it holds.  Tables that follow from the config (rotary
frequencies) count roughly, since they are computed anew on each device.
"""

from __future__ import annotations

import functools
import json
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import Refused

DIGITS = 20
"""Version 0.1.0 had 16, of weights sampled evenly."""
WORDS = 2**16
LIBRARIES = {
    "torch", "transformers", "accelerate", "peft", "nnsight", "transformer_lens", "workbench", "lenses", "probes",
}  # fmt: skip
"""Whose own hooks change nothing: they record, or move weights to where they are needed."""


class _Same:
    """Equal for one object alone, and for none once it is gone (numbers of objects are given again)."""

    def __init__(self, of: Any) -> None:
        self.of = weakref.ref(of)

    def __eq__(self, other: object) -> bool:
        mine = self.of()
        return mine is not None and isinstance(other, _Same) and mine is other.of()


@dataclass(frozen=True)
class Weight:
    """A tensor that a forward pass uses: under the name it has without adapters, and where it lies."""

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    adapter: bool = False
    """Whether it is an adapter's own, beside a weight of the base."""

    @property
    def token(self) -> tuple[Any, ...]:
        """Changes when the tensor is replaced, or changed in place; cheap to make."""
        t = self.tensor
        # Tensors made in inference mode count no changes.
        version = t._version if not t.is_inference() else None if t.is_meta else checksum(t)
        return self.name, _Same(t), None if t.is_meta else t.data_ptr(), version, tuple(t.shape), t.dtype, str(t.device)

    def value(self) -> Tensor:
        """The tensor; fetched where accelerate has offloaded it."""
        if not self.tensor.is_meta:
            return self.tensor.detach()
        if not offloaded(self.owner):
            raise Refused(f"{self.name} is on the meta device, and nothing says where its values are.")
        hook: Any = self.owner._hf_hook
        with torch.no_grad():
            hook.pre_forward(self.owner)
            try:
                return getattr(self.owner, self.attribute).detach().clone()
            finally:
                hook.post_forward(self.owner, None)


def offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps this module's own weights elsewhere and brings them for each forward pass."""
    return any(getattr(hook, "offload", False) for hook in hooks_of(module))


def hooks_of(module: nn.Module) -> list[Any]:
    """accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def execution_device(module: nn.Module) -> torch.device:
    """Where a module takes its input: where its first weights are, or are brought to."""
    for part in module.modules():
        brought = [getattr(hook, "execution_device", None) for hook in hooks_of(part)]
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if not tensor.is_meta:
                return tensor.device
            if any(where is not None for where in brought):
                return torch.device(next(where for where in brought if where is not None))
    return torch.device("cpu")


def placed(module: nn.Module) -> list[str]:
    """Where accelerate keeps the weights that it brings for each pass: "cpu", "disk", both or nowhere."""
    found = set()
    for part in module.modules():
        for hook in hooks_of(part):
            if getattr(hook, "offload", False) and any(p.is_meta for p in part.parameters(recurse=False)):
                held = hook.weights_map
                while hasattr(held, "dataset"):
                    held = held.dataset
                found.add("disk" if getattr(held, "save_folder", None) else "cpu")
    return sorted(found)


# ---------------------------------------------------------------- adapters


def acting(layer: Any) -> list[str]:
    """Names of the PEFT adapters that change what this module gives; merged ones are in its weights already."""
    if getattr(layer, "disable_adapters", True) or getattr(layer, "merged", False):
        return []
    held = {key for _, keys in _held(layer) for key in keys}
    return [name for name in layer.active_adapters if name in held]


def adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that PEFT has wrapped, or put in place of others."""
    for path, layer in module.named_modules():
        if hasattr(layer, "adapter_layer_names") and hasattr(layer, "active_adapters"):
            yield path, layer


def _held(layer: Any) -> Iterator[tuple[str, list[str]]]:
    """Where a wrapped module keeps its adapters, and their names."""
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
        container = _at(layer, attribute)
        if isinstance(container, nn.Module) and hasattr(container, "keys"):
            yield attribute, list(container.keys())


def _at(layer: Any, attribute: str) -> Any:
    for part in attribute.split("."):
        layer = getattr(layer, part, None)
    return layer


def _saved(layer: Any) -> bool:
    """Whether PEFT has put a whole copy beside the module (``modules_to_save``)."""
    return isinstance(getattr(layer, "modules_to_save", None), nn.ModuleDict)


def _mixes(layer: Any, names: list[str]) -> bool:
    """Whether an adapter that acts uses what others hold (Arrow's router)."""
    return any(name in getattr(layer, "lora_arrow", {}) for name in names)


def _renamed(module: nn.Module) -> tuple[dict[str, str | None], list[str]]:
    """Prefix of a name -> what stands for it, None where it has no effect; and notes on the adapters that act."""
    found: dict[str, str | None] = {}
    notes = []
    for path, layer in adapted(module):
        own = acting(layer)
        saved = _saved(layer)
        for attribute, keys in _held(layer):
            for key in keys:
                prefix = f"{path}.{attribute}.{key}".lstrip(".")
                if saved:
                    found[prefix] = path if key in own else None
                elif key in own:
                    found[prefix] = f"{path}.{attribute}.{own.index(key)}".lstrip(".")
                else:
                    found[prefix] = prefix if _mixes(layer, own) else None
        if saved:
            found[f"{path}.original_module".lstrip(".")] = None if own else path
        if own and not saved:
            scaling = getattr(layer, "scaling", {})
            variants = getattr(layer, "lora_variant", {})
            kinds = [type(variants[name]).__name__ for name in own if name in variants]
            notes.append(f"{path} {type(layer).__name__} {[scaling.get(name) for name in own]} {kinds}")
    return found, notes


def adapters(module: nn.Module) -> list[str]:
    """What provenance says of the adapters: name, with "merged" where they are in the weights."""
    found = {}
    for _, layer in adapted(module):
        for name in acting(layer):
            found[name] = name
        for name in getattr(layer, "merged_adapters", None) or []:
            found.setdefault(name, f"{name} (merged)")
    prompts = getattr(module, "prompt_encoder", None)
    if isinstance(prompts, nn.ModuleDict):
        found |= {name: name for name in prompts if name in getattr(module, "active_adapters", [])}
    return sorted(found.values())


# ---------------------------------------------------------------- what there is


def weights(module: nn.Module) -> Iterator[Weight]:
    """Parameters and persistent buffers that a forward pass uses, each under every name that it has."""
    renamed, _ = _renamed(module)
    beside = {
        id(tensor)
        for _, layer in adapted(module)
        if not _saved(layer)
        for attribute, _ in _held(layer)
        for tensor in _at(layer, attribute).parameters()
    }
    plain = plain_names(module)
    for path, owner in module.named_modules(remove_duplicate=False):
        if ".parametrizations." in f".{path}.":
            continue
        parametrised = getattr(owner, "parametrizations", {})
        kept = [*owner._parameters, *(b for b in owner._buffers if b not in owner._non_persistent_buffers_set)]
        for attribute in [*kept, *parametrised]:
            with torch.no_grad():
                tensor = getattr(owner, attribute)
            if tensor is not None:
                name = _name(f"{path}.{attribute}" if path else attribute, renamed)
                if name is not None:
                    yield Weight(plain(name), tensor, owner, attribute, id(tensor) in beside)


def _name(full: str, renamed: dict[str, str | None]) -> str | None:
    parts = full.split(".")
    for n in range(1, len(parts) + 1) if renamed else ():
        start = ".".join(parts[:n])
        if start in renamed:
            rest = ".".join(parts[n:])
            new = renamed[start]
            return None if new is None else ".".join(filter(None, (new, rest)))
    return full


def plain_names(module: nn.Module) -> Callable[[str], str]:
    """A function that takes out of names, and paths of modules, what PEFT and torch.compile wrap around a model."""
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    prefix = next((f".{path}." for path, m in module.named_modules() if m is base and path), ".")

    def plain(name: str) -> str:
        name = "." + f".{name}.".removeprefix(prefix).removeprefix(".")
        for wrapped in ("._orig_mod.", ".token_adapter.base_layer.", ".base_layer."):
            name = name.replace(wrapped, ".")
        return name.strip(".")

    return plain


def _notes(module: nn.Module) -> Iterator[str | Tensor]:
    """What is no weight and changes what a forward pass gives."""
    yield from sorted(_renamed(module)[1])
    config = getattr(module, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    fixed = not any(kind in str(rope) for kind in ("dynamic", "longrope"))  # those change with each prompt's length
    for path, owner in module.named_modules():
        for attribute in sorted(owner._non_persistent_buffers_set):
            buffer = owner._buffers.get(attribute)
            if buffer is not None and buffer.is_floating_point() and not buffer.is_meta:
                if buffer.ndim == 0 or (buffer.ndim == 1 and fixed):
                    size = buffer.detach().double().cpu()
                    steps = (4 * size.abs().clamp_min(1e-30).log2() + 0.1234).floor() * size.sign()
                    yield f"{attribute} {steps.tolist()}"
        for function in own_hooks(owner):
            yield f"hook {path}"
            yield from _held_by(function)


def own_hooks(module: nn.Module) -> list[Any]:
    """Hooks and replaced forwards of a module that are not those of a library."""
    given = vars(module).get("forward")
    every = (*module._forward_pre_hooks.values(), *module._forward_hooks.values(), given)
    return [function for function in every if function is not None and not _library(function)]


def _library(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    where = getattr(function, "__module__", None) or type(function).__module__
    return where.split(".")[0] in LIBRARIES


def _held_by(value: Any, depth: int = 0) -> Iterator[str | Tensor]:
    """The code of a function, and the tensors and numbers that it holds.

    Not what lists, dicts and counters hold: recorders fill them, and would be another model after each pass.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, (str, bytes, int, float, complex, type(None))):
        yield repr(value)
    elif isinstance(value, (tuple, frozenset)) and depth < 9:
        for item in value:
            yield from _held_by(item, depth + 1)
    elif isinstance(value, types.CodeType):
        yield f"{value.co_code.hex()} {value.co_names}"
        yield from _held_by(value.co_consts, depth + 1)
    elif isinstance(value, functools.partial):
        yield from _held_by((value.func, value.args, tuple(value.keywords.values())), depth + 1)
    elif isinstance(value, types.MethodType):
        yield from _held_by((value.__func__, value.__self__), depth + 1)
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        used = [value.__globals__.get(name) for name in value.__code__.co_names]
        if depth < 9:
            yield from _held_by((value.__code__, value.__defaults__, *cells, *used), depth + 1)
    else:
        yield type(value).__qualname__
        if not isinstance(value, (nn.Module, type, types.ModuleType)):
            for held in getattr(value, "__dict__", {}).values():
                if isinstance(held, (Tensor, np.ndarray, float)):
                    yield from _held_by(held, depth + 1)


# ---------------------------------------------------------------- counting


class Counted:
    """Everything that a fingerprint counts, gathered but not yet counted."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = sorted(weights(module), key=lambda w: w.name)
        self.notes = list(_notes(module))

    def token(self) -> Any:
        """Equal as long as nothing has changed, as far as can be said without counting.

        Seen: other tensors, operations in place (optimisers, ``with torch.no_grad()``), adapters, hooks; and through
        ``.data``, which torch keeps no account of, changes of a whole tensor, row or column.
        """
        held = [x if isinstance(x, str) else checksum(x) for x in self.notes]
        sample = []
        for weight in self.weights:
            if not weight.tensor.is_meta and weight.tensor.numel():
                sample.append(_exact(_crossed(weight.tensor.detach())))
        return [w.token for w in self.weights], held, _together(sample)

    def into(self, digest: Any) -> None:
        """Add it all to a hash of hashlib's."""
        done: dict[int, bytes] = {}
        for weight in self.weights:
            digest.update(f"{weight.name}{tuple(weight.tensor.shape)}".encode())
            if weight.tensor.numel():
                if id(weight.tensor) not in done:
                    done[id(weight.tensor)] = checksum(weight.value())
                digest.update(done[id(weight.tensor)])
        for note in self.notes:
            digest.update(note.encode() if isinstance(note, str) else checksum(note))


def _exact(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values.to(torch.int64).double()


def _crossed(tensor: Tensor) -> Tensor:
    """One element of every row and one of every column."""
    matrix = tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
    return matrix[_diagonal(*matrix.shape, matrix.device)]


@functools.lru_cache(64)
def _diagonal(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    along = torch.arange(max(rows, columns), device=device)
    return along % rows, along % columns


def _together(sample: list[Tensor]) -> bytes:
    """Few transfers: one for each device."""
    by: dict[torch.device, list[Tensor]] = {}
    for values in sample:
        by.setdefault(values.device, []).append(values)
    return b"".join(torch.cat(own).cpu().numpy().tobytes() for own in by.values())


def checksum(tensor: Tensor) -> bytes:
    """Over every element; the same on every device."""
    flat = tensor.detach()
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.reshape(-1)
    wide = flat.dtype == torch.float64 and not torch.equal(flat, flat.float().double())
    real = flat.is_floating_point() and not wide
    numbers = _numbers(flat.device)
    # Pieces that stay in a core's cache; on a GPU pieces that fill it.
    step = (2 if real else 1) * WORDS * (4 if flat.device.type == "cpu" else 512)
    sums = []
    for lo in range(0, len(flat), step):
        piece = flat[lo : lo + step]
        if real:
            piece = piece.float()
            if len(piece) % 2 or piece.storage_offset() % 2:
                piece = torch.cat([piece, piece.new_zeros(len(piece) % 2)])
            words = piece.contiguous().view(torch.int64)
        else:
            words = piece.contiguous().view(torch.int64) if wide else piece.to(torch.int64)
        whole = len(words) // WORDS * WORDS
        for part in (words[:whole].view(-1, WORDS), words[whole:].view(1, -1)):
            if part.numel():
                mixed = (part >> 32).add_(part).mul_(numbers[: part.shape[1]])
                sums.append(mixed.sum(1))
    return f"{'float64' if wide else real}".encode() + torch.cat(sums).cpu().numpy().astype("<i8").tobytes()


@functools.cache
def _numbers(device: torch.device) -> Tensor:
    """Odd 64-bit numbers, always the same ones."""
    return torch.from_numpy(np.random.PCG64(0).random_raw(WORDS).view(np.int64) | 1).to(device)


def of_config(config: Any) -> bytes:
    """A config without what says where, by whom and for which dtype it was saved."""
    return json.dumps(_settled(config.to_dict()), sort_keys=True, default=str).encode() if config is not None else b""


def _settled(config: dict) -> dict:
    loose = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
    return {
        str(key): _settled(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in loose and not str(key).startswith("_")
        # Weights of a GGUF file are dequantised: they are what they are, wherever they came from.
        and not (key == "quantization_config" and value.get("quant_method") == "gguf")
    }

