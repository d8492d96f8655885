"""Where a model keeps its blocks, its readout and its residual stream; found by structure, proved by numbers.

No table of model names.  One forward pass on random tokens records which modules run, in which order, and what
flows between them.  From that:

* the *blocks* are the module list whose members carry the residual stream;
* the *readout* is what turns the state after the last block into logits: the modules that ran after it, the
  constant factors between them, and a bias, scale or softcap behind the unembedding.

What attention and MLP add inside each block is found in :mod:`workbench.parts`, when it is first asked for.

The readout is then replayed on a second, fresh batch (two prompts of different length, padded) and must give
the model's own logits.  If it does not, the model is refused: a lens through a wrong readout is silently wrong.
The batch runs padded on either side, and each prompt alone: only a side on which pads change nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engines.hooks import Layout, StopForward, hooked, run, spliced, tensors, untouched
from workbench.errors import Refused
from workbench.fingerprint import execution_device, weights
from workbench.weights import effective_linear

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest |replayed - own| logit, as a share of the largest |own| logit.

Half precisions are looser because the same matrix product rounds differently for another batch shape."""


@dataclass(frozen=True)
class Step:
    """One module on the way from the last block to the logits: its input is ``scale`` x what came before."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Proof:
    """What was compared: the replayed readout against the model's own logits, on tokens not used to find it."""

    error: float
    tolerance: float
    positions: int
    dtype: str
    states_continuous: bool


@dataclass(frozen=True)
class Anatomy:
    """Paths (as in ``module.get_submodule``) and constants of one model; see :func:`dissect`."""

    architecture: str
    blocks: str
    n_layers: int
    d_model: int
    vocab_size: int
    embedding: str | None
    steps: tuple[Step, ...]
    unembedding: str
    scale: float = 1.0
    softcap: float | None = None
    masked: tuple[int, ...] = ()
    tied_function: bool = False
    last_block: int = -1
    layout: Layout = Layout(0)
    own_tail: bool = False
    pad_sides: tuple[str, ...] = ()
    pad_limit: int | None = None
    proof: Proof = field(default=Proof(math.nan, math.nan, 0, "", False))

    def describe(self) -> dict[str, Any]:
        """The anatomy as plain values, for provenance and for ``workbench info``."""
        plain = {"steps": [asdict(step) for step in self.steps], "masked": list(self.masked)}
        return {**asdict(self), **plain, "pad_sides": list(self.pad_sides)}

    @property
    def pads(self) -> bool:
        """Whether padding was proved to change nothing on either side; :attr:`pad_sides` has the sides proved."""
        return set(self.pad_sides) == {"right", "left"}

    def pad_width(self, side: str) -> float:
        """How wide a batch with pads on this side may be: 0 where they change something, infinite where never.

        Up to ``pad_limit`` where the rotary frequencies change with the longest prompt of a batch (LongRoPE).
        """
        if side not in self.pad_sides:
            return 0
        return math.inf if self.pad_limit is None else self.pad_limit

    @property
    def formula(self) -> str:
        """The readout in one line, e.g. ``30 * tanh(lm_head(norm(state)) / 30)``."""
        text = "state"
        if self.own_tail:
            return f"{self.architecture}'s own way from {self.blocks}[{self.last_block}] to {self.unembedding}"
        for step in self.steps:
            text = f"{step.path}({'' if step.scale == 1 else f'{step.scale:.6g} * '}{text})"
        if self.scale != 1:
            text = f"{self.scale:.6g} * {text}"
        return text if self.softcap is None else f"{self.softcap:.6g} * tanh({text} / {self.softcap:.6g})"


# --- prompts of random tokens -------------------------------------------------------------------------------


def _probe_inputs(module: nn.Module, seed: int) -> tuple[dict[str, Tensor], Tensor]:
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


def reserved_ids(config: Any) -> list[int]:
    """Every ``*_token_id`` in a config and its sub-configs."""
    found: list[int] = []
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            found += [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]
        elif hasattr(value, "to_dict"):
            found += reserved_ids(value)
    return found


def text_config(module: nn.Module) -> Any:
    """The config of the part that writes text: sub-configs of vision-language models are looked into."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return config


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that this model's forward takes, with caching switched off where it has a switch."""
    import inspect

    parameters = inspect.signature(module.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    usual = ("input_ids", "attention_mask") if open_ended else ()
    kept = {k: v for k, v in inputs.items() if k in parameters or k in usual}
    if "use_cache" in parameters:
        kept["use_cache"] = False
    return kept


# --- finding ------------------------------------------------------------------------------------------------


@dataclass
class _Event:
    """One module call: when it began and ended, the float tensors it took, and the first one it gave."""

    name: str
    begin: int
    end: int = -1
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None


def _record(module: nn.Module, inputs: dict[str, Any], keep: Any) -> tuple[list[_Event], Tensor]:
    """Run once; list the calls of all submodules in order, keeping tensors only of those ``keep(name)``."""
    events: list[_Event] = []
    open_events: dict[int, list[_Event]] = {}
    clock = 0
    names = {m: n for n, m in module.named_modules() if n}

    def begin(m: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal clock
        clock += 1
        event = _Event(names[m], clock)
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

    with hooked({m: begin for m in names}, {m: end for m in names}):
        output = module(**inputs)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise Refused(
            f"{type(module).__name__} gives no logits ({type(output).__name__}). A lens shows a state as a "
            "distribution over tokens, so load the model with its language-model head (AutoModelForCausalLM)."
        )
    return events, logits.detach()


def _find_blocks(module: nn.Module, events: list[_Event]) -> tuple[str, list[str]]:
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


def _find_unembedding(module: nn.Module, events: list[_Event], vocabulary: int) -> str | None:
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


def unit_roundoff(*dtypes: torch.dtype) -> float:
    """The largest relative error of one rounding to any of these floating-point types."""
    return max(torch.finfo(dtype).eps for dtype in dtypes) / 2


def _row_share(difference: Tensor, of: Tensor) -> float:
    """The largest |difference| of any row, as a share of the largest |number| of that row in ``of``; [rows, columns].

    Row by row: one row far larger than the others (a massive activation) would hide what is wrong with them.
    """
    largest = of.abs().amax(-1).clamp_min(1e-30)
    return float((difference.abs().amax(-1) / largest).max())


def _ratio(x: Tensor, y: Tensor, numbers: list[float] | None = None, u: float | None = None) -> float | None:
    """The constant s with y = s x, or None when there is none; ``numbers`` as in :func:`_constants`.

    Fitted to rows of one size, then asked of every element: a product and a change of type are each off by at most
    ``u`` (default: of the types of x and y) of what they give, so 6 u |s x| is more than rounding can do.
    """
    if x.shape != y.shape:
        if x.numel() != y.numel() or x.shape[-1] != y.shape[-1]:
            return None
        y = y.reshape(x.shape)
    u = unit_roundoff(x.dtype, y.dtype) if u is None else u
    least = max(torch.finfo(t.dtype).tiny * torch.finfo(t.dtype).eps for t in (x, y))
    x, y = x.double(), y.double()
    if torch.equal(x, y):
        return 1.0
    weight = 1 / (x * x).sum(-1, keepdim=True).clamp_min(1e-60)
    norm = (weight * x * x).sum()
    if not torch.isfinite(norm) or norm == 0:
        return None
    fitted = float((weight * x * y).sum() / norm)
    for s in _constants(fitted, numbers or [], 6 * u):
        if s and bool(((y - s * x).abs() <= 6 * u * (s * x).abs() + least).all()):
            return s
    return None


def _config_numbers(config: Any) -> list[float]:
    """Every float or small integer in a config and its sub-configs, and simple combinations used as factors."""
    numbers: list[float] = []
    for value in vars(config).values() if config is not None else ():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            numbers.append(float(value))
        elif hasattr(value, "to_dict"):
            numbers += _config_numbers(value)
    return numbers


def _constants(fitted: float, numbers: list[float], error: float) -> list[float]:
    """What a fitted constant may be exactly, likeliest first: 1, a config value, its inverse or root, a ratio of two.

    ``error``: how far, as a share, the fit may be off.  Ratios of two are so many that one is always near, so they
    count only within 1e-5.  The fitted value itself comes last.
    """
    ratios = [a / b for a in numbers for b in numbers] if len(numbers) < 200 else []
    found = []
    for exact, near in (
        ([1.0], max(error, 1e-5)),
        (numbers, max(error, 1e-5)),
        ([*(1 / n for n in numbers), *(math.sqrt(abs(n)) for n in numbers)], max(error, 1e-5)),
        (ratios, 1e-5),
    ):
        nearest = min(exact, key=lambda e: abs(e - fitted), default=math.inf)
        if abs(nearest - fitted) <= near * abs(fitted):
            found.append(nearest)
    return [*found, fitted]


def _fit_output(
    raw: Tensor, own: Tensor, numbers: list[float], u: float
) -> tuple[float, float | None, tuple[int, ...]]:
    """Scale, softcap and masked columns with  own = softcap * tanh(scale * raw / softcap).

    Args: ``raw``, ``own`` [positions, vocabulary]; ``u``: the unit roundoff of the model's type.  A softcap is two
    products and a tanh; since x / cosh(x)^2 <= tanh(x), a share of u on the way in is at most that share of the
    result, and 16 u |own| leaves room for a tanh that is off by some units in the last place.

    Raises Refused when no such constants exist.
    """
    raw, own = raw.double(), own.double()
    floor = own <= torch.finfo(torch.float32).min / 2
    floor |= own <= torch.finfo(torch.bfloat16).min / 2
    masked = floor.all(0)
    if masked.any():
        raw, own = raw[:, ~masked], own[:, ~masked]
    columns = tuple(masked.nonzero()[:, 0].tolist())
    s = _ratio(raw, own, numbers, u)
    if s is not None:
        return s, None, columns
    found = []
    for cap in {n for n in numbers if n > 0 and n >= float(own.abs().max()) * (1 - u)}:
        inner = cap * torch.atanh((own / cap).clamp(-1 + 1e-12, 1 - 1e-12))
        # Near the cap atanh loses digits, so the factor is fitted where tanh is still steep.
        steep = own.abs() < 0.8 * cap
        if steep.sum() < 8:
            continue
        fitted = float((raw[steep] * inner[steep]).sum() / (raw[steep] ** 2).sum())
        for s in _constants(fitted, numbers, 16 * u):
            off = (cap * torch.tanh(s * raw / cap) - own).abs()
            if bool((off <= 16 * u * own.abs() + 1e-30).all()):
                found.append((float((off * off).mean()), s, cap))
                break
    if found:
        # In half precision a neighbouring number of the config may pass, too: the nearest is the one.
        _, s, cap = min(found)
        return s, cap, columns
    raise Refused(
        "The logits are not a constant scale or softcap of the unembedding's output. "
        "Something else happens behind the unembedding that a lens would silently leave out."
    )


def dissect(module: nn.Module) -> Anatomy:
    """Find the anatomy of a model and prove its readout.

    Raises:
        Refused: with the nearest reason, when a part is not found or the replayed readout is not the model's.
    """
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"{type(module).__name__} is an encoder-decoder: its logits depend on two streams. "
            "Only decoder-only models (and encoders with a token head) are read."
        )
    away = _nowhere(module)
    if away:
        raise Refused(
            f"Weights of {type(module).__name__} are not in memory ({', '.join(away[:3])}: on the meta device), and no "
            "hook of accelerate brings them for a forward pass. What is computed with them would be whatever memory "
            "holds: load the model with its weights, or offload it with accelerate (device_map=, cpu_offload)."
        )
    with untouched(module):
        inputs, real = _probe_inputs(module, seed=0)
        inputs = accepted(module, inputs)
        if "input_ids" not in inputs:
            raise Refused(f"The forward of {type(module).__name__} takes no input_ids, so text cannot be read.")
        try:
            module(**inputs)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Refused(
                f"A plain forward pass of {type(module).__name__} on text alone fails with "
                f"{type(error).__name__}: {str(error)[:300]}. A model that cannot run on token ids cannot be read."
            ) from error
        found = _dissect(module, inputs, real)
        try:
            return _prove(module, found)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if isinstance(error, Refused) or found.own_tail or found.tied_function:
                raise _unproved(found, error) from error
        # A chain of modules that cannot be called on states alone: the model's own code may be.
        found = replace(found, own_tail=True, steps=())
        try:
            return _prove(module, found)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _unproved(found, error) from error


def _unproved(found: Anatomy, error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    return Refused(
        f"What {found.architecture} does behind its last block cannot be run on states alone "
        f"({type(error).__name__}: {str(error)[:200]}): its logits need more than the last state. "
        "A lens that left the rest out would be silently wrong."
    )


def _dissect(module: nn.Module, inputs: dict[str, Any], real: Tensor) -> Anatomy:
    kind = type(module).__name__
    events, logits = _record(module, inputs, keep=lambda name: False)
    if logits.ndim != 3 or logits.shape[:2] != real.shape:
        raise Refused(
            f"The logits of {kind} have shape {tuple(logits.shape)} for input ids {tuple(real.shape)}: there is "
            "not one distribution for each position, so states and logits cannot be matched."
        )
    vocabulary = logits.shape[-1]
    path, ran = _find_blocks(module, events)
    last_end = max(e.end for e in events if e.name == ran[-1])
    unembedding = _find_unembedding(module, events, vocabulary)
    tail = [e.name for e in events if e.begin > last_end]
    # Outermost calls only: a head that is a module of modules is one step.
    outer = [n for n in tail if not any(n.startswith(o + ".") for o in tail)]
    wanted = set(outer) | {unembedding, *ran}
    events, logits = _record(module, inputs, keep=lambda name: name in wanted)
    by_name = {event.name: event for event in events}

    outputs = [by_name[name].output for name in ran]
    last = outputs[-1]
    layout = None if last is None else Layout.guess(last, *real.shape)
    if last is None or layout is None:
        shape = None if last is None else tuple(last.shape)
        raise Refused(
            f"{ran[-1]} of {kind} gives states of shape {shape} for {real.shape[0]} prompts of {real.shape[1]} tokens: "
            "there is not one residual state for each position."
        )
    continuous = all(
        any(
            t.shape == o.shape and torch.equal(layout.read(t)[real], layout.read(o)[real]) for t in by_name[name].inputs
        )
        for o, name in zip(outputs[:-1], ran[1:], strict=True)
        if o is not None and o.shape == last.shape
    )
    numbers = _config_numbers(getattr(module, "config", None))
    functional = unembedding is None
    steps, raw = _follow(module, by_name, outer, unembedding, last, layout, real, numbers)
    own_tail = False
    if raw is None and functional:
        # No module gives the logits: perhaps the tied embedding matrix does, in a function.
        unembedding, raw = _tied(module, by_name, steps, last, layout, vocabulary)
    if raw is None and not functional:
        # Not a chain of modules.  The model's own code can still be run on states put in place of the last
        # block's output; whether that depends on nothing else is for the proof to say.
        own_tail, steps, raw = True, [], by_name[str(unembedding)].output
    if raw is None or unembedding is None:
        raise Refused(_tail_reason(kind, ran[-1], outer, unembedding))
    raw_rows = _rows(raw, real).float()
    own_rows = logits[real].float()
    if raw_rows.shape != own_rows.shape:
        raise Refused(
            f"{unembedding} of {kind} gives {tuple(raw_rows.shape)} numbers and the logits are "
            f"{tuple(own_rows.shape)}: the logits come from somewhere else as well."
        )
    scale, softcap, masked = _fit_output(raw_rows, own_rows, numbers, unit_roundoff(raw.dtype, logits.dtype))
    embedding = module.get_input_embeddings()
    where = next((n for n, m in module.named_modules() if m is embedding), None)
    return Anatomy(
        architecture=kind,
        blocks=path,
        n_layers=len(module.get_submodule(path)),
        d_model=layout.width,
        vocab_size=vocabulary,
        embedding=where,
        steps=tuple(steps),
        unembedding=str(unembedding),
        scale=scale,
        softcap=softcap,
        masked=masked,
        tied_function=functional,
        last_block=[name for name, _ in module.get_submodule(path).named_children()].index(ran[-1].rsplit(".", 1)[1]),
        layout=layout,
        own_tail=own_tail,
        proof=Proof(math.nan, math.nan, 0, str(last.dtype).removeprefix("torch."), continuous),
    )


def _follow(
    module: nn.Module,
    by_name: dict[str, _Event],
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
        here = _rows(state, real)
        scale = next((r for t in event.inputs if (r := _ratio(here, _rows(t, real), numbers)) is not None), None)
        if scale is None:
            continue
        if unembedding is not None and (name == unembedding or unembedding.startswith(name + ".")):
            return [*steps, Step(name, scale)], by_name[unembedding].output
        same = scale == 1 and event.output.shape == state.shape and torch.equal(event.output, state)
        if not same:  # dropout and identity modules are no steps
            steps.append(Step(name, scale))
            state = event.output
    return steps, None


def _tied(
    module: nn.Module, by_name: dict[str, _Event], steps: list[Step], last: Tensor, layout: Layout, vocabulary: int
) -> tuple[str | None, Tensor | None]:
    """The input embeddings as unembedding, and the logits that they give; None, None where shapes do not fit."""
    embedding = module.get_input_embeddings()
    state = by_name[steps[-1].path].output if steps else layout.read(last)
    weight = getattr(embedding, "weight", None)
    if state is None or not isinstance(weight, Tensor) or weight.shape != (vocabulary, state.shape[-1]):
        return None, None
    return next(n for n, m in module.named_modules() if m is embedding), nn.functional.linear(state, weight)


def _rows(tensor: Tensor, real: Tensor) -> Tensor:
    """The real positions of [batch, position, width] or [batch * position, width], as [rows, width]."""
    if tensor.shape[:2] == real.shape:
        return tensor[real]
    if tensor.ndim == 2 and tensor.shape[0] == real.numel():
        return tensor[real.flatten()]
    return tensor.reshape(-1, tensor.shape[-1])


def _tail_reason(kind: str, last: str, outer: list[str], unembedding: str | None) -> str:
    ran = ", ".join(outer[:6]) or "no module"
    return (
        f"The way from {last} to the logits of {kind} is not understood: after the last block ran {ran}, and "
        f"following the state through them did not reach the unembedding ({unembedding or 'none found'}). "
        "A lens that guessed the missing step would be silently wrong."
    )


# --- replay and proof ---------------------------------------------------------------------------------------


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

            with hooked(after={block: keep for block in blocks}):
                module(**accepted(module, _probe_inputs(module, seed=3)[0]))
        ids = _probe_inputs(module, seed=3)[0]["input_ids"][:1, :1].expand(1, len(states))
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
    import inspect

    return next(iter(inspect.signature(module.forward).parameters))


def _device(module: nn.Module, like: Tensor) -> torch.device:
    parameter = next(module.parameters(), None)
    return like.device if parameter is None or parameter.is_meta else parameter.device


def proof_is_current(module: nn.Module, anatomy: Anatomy, proved: Any) -> bool:
    """Whether what the proof rests on is as it was when :func:`proof_rests_on` gave ``proved``."""
    return proof_rests_on(module, anatomy) == proved


def proof_rests_on(module: nn.Module, anatomy: Anatomy) -> tuple[Any, ...]:
    """What turns the last states into logits, as far as a proof would notice a change; cheap to ask for.

    The modules of the readout and those around the blocks, by identity; their hooks and replaced forwards; the
    constants of the config; and, where the unembedding is more than one linear layer (an adapter, a parametrisation),
    its weights and switches.  The weights of a plain one may change: they are read anew for every reading.
    """
    path = dict.fromkeys([*(step.path for step in anatomy.steps), anatomy.unembedding])
    outer = [module]
    for name in anatomy.blocks.split(".")[:-1]:
        outer.append(outer[-1].get_submodule(name))
    head = module.get_submodule(anatomy.unembedding)
    found: list[Any] = [tuple(_config_numbers(getattr(module, "config", None)))]
    for m in outer:  # what is given to these may change as it likes: it is part of the prompt
        found += [id(m), tuple(m._forward_hooks), id(vars(m).get("forward"))]
        found += [_version(t) for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    for name in path:
        for m in module.get_submodule(name).modules():
            found += [id(m), tuple(m._forward_hooks), tuple(m._forward_pre_hooks), id(vars(m).get("forward"))]
    if type(head) not in (nn.Linear, nn.Embedding) and not hasattr(head, "_hf_hook"):
        for m in head.modules():
            switches = {k: v for k, v in vars(m).items() if k != "training"}
            found.append(repr({k: v for k, v in switches.items() if _is_plain(v)}))
        found += [(_version(t), *_sample(t)) for t in (*head.parameters(), *head.buffers())]
    return tuple(found)


def _version(tensor: Tensor) -> tuple[int, int, int]:
    return id(tensor), 0 if tensor.is_meta else tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> list[float]:
    """Some elements: an optimizer that writes to memory directly raises no version."""
    if tensor.is_meta or not tensor.numel():
        return []
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 256)].double().nan_to_num().tolist()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str, type(None)))


def _prove(module: nn.Module, anatomy: Anatomy) -> Anatomy:
    """Replay the readout on fresh tokens; the anatomy with its proof, or Refused.

    The tokens are two prompts of different length in one batch, padded on the right.  They then run padded on the
    left, and each alone: pads are proved on a side where neither prompt's logits or last states depend on them.
    """
    inputs, real = _probe_inputs(module, seed=1)
    lengths = real.sum(1).tolist()
    last = list(module.get_submodule(anatomy.blocks).children())[anatomy.last_block]

    def look(given: dict[str, Tensor], where: Tensor) -> tuple[Tensor, Tensor]:
        """The last states and the logits at the real positions."""
        seen: list[Tensor] = []

        def take(m: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            state = anatomy.layout.find(output)
            if state is not None:
                seen.append(state.detach().clone())

        with hooked(after={last: take}):
            logits = module(**accepted(module, given)).logits
        return seen[-1][where.to(seen[-1].device)], logits[where.to(logits.device)].float()

    rows, own = look(inputs, real)
    features = Replay(module, anatomy).features(rows)
    weight, bias = head_weights(module, anatomy)
    features, own = features.to(weight.device), own.to(weight.device)
    logits = nn.functional.linear(features, weight, bias).float() * anatomy.scale
    if anatomy.softcap is not None:
        logits = anatomy.softcap * torch.tanh(logits / anatomy.softcap)
    if anatomy.masked:
        logits[:, list(anatomy.masked)] = own[:, list(anatomy.masked)]
    keep = ~(own.abs() >= torch.finfo(torch.bfloat16).max / 4)  # what the model masks; NaN stays, and fails
    error = _row_share((logits - own).masked_fill(~keep, 0), own.masked_fill(~keep, 0))
    dtype = rows.dtype
    tolerance = TOLERANCE.get(dtype, 1e-4)
    if not anatomy.proof.states_continuous:
        raise Refused(
            f"In {anatomy.architecture} a block of {anatomy.blocks} does not read what the block before it gave. "
            "The states at the borders are not one residual stream, so reading them layer by layer would mislead."
        )
    if not error <= tolerance:
        raise Refused(
            f"The readout found for {anatomy.architecture} is not the model's: on fresh tokens "
            f"{anatomy.formula} differs from its own logits by {error:.1e} of the largest logit "
            f"(allowed: {tolerance:.0e} in {dtype}). A lens through it would be silently wrong."
        )
    alone = [look({k: v[i : i + 1, :n] for k, v in inputs.items()}, real[i : i + 1, :n]) for i, n in enumerate(lengths)]
    alone = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    shares: dict[str, float] = {}
    for side in ("right", "left"):
        try:
            padded = (rows, own) if side == "right" else look(*_left(inputs, real))
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception:  # a model that cannot run so is not padded so
            continue
        (states, z), (own_states, own_z) = padded, alone
        masked = ~keep.to(z.device)
        shares[side] = max(
            _row_share(states.float() - own_states.float(), own_states.float()),
            _row_share((z - own_z).masked_fill(masked, 0), own_z.masked_fill(masked, 0)),
        )
    # Sparse attention picks its keys among the pads, too, but only in prompts longer than its budget of keys.
    sparse = any(name.startswith("index_topk") and value for name, value in vars(text_config(module)).items())
    sides = tuple(side for side, share in shares.items() if share <= tolerance and not sparse)
    proof = replace(anatomy.proof, error=error, tolerance=tolerance, positions=int(real.sum()))
    return replace(anatomy, proof=proof, pad_sides=sides, pad_limit=_rope_limit(text_config(module)))


def _rope_limit(config: Any) -> int | None:
    """The length beyond which the rotary frequencies of a whole batch are others, by its longest row; None: none.

    Prompts of the proof are too short to show it.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for kind in (rope, *(own for own in rope.values() if isinstance(own, dict))):  # one for each type of layer
        if (kind.get("rope_type") or kind.get("type")) in ("dynamic", "longrope", "su"):
            named = (kind.get("original_max_position_embeddings"), vars(config).get("original_max_position_embeddings"))
            found += [next((n for n in named if n), vars(config).get("max_position_embeddings"))]
    return min((n for n in found if n), default=None)


def _left(inputs: dict[str, Tensor], real: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A right-padded batch with its pads in front, as :func:`workbench.inputs.collate` puts them."""
    width = real.shape[1]
    shift = [width - n for n in real.sum(1).tolist()]
    moved = {k: torch.stack([row.roll(s) for row, s in zip(v, shift, strict=True)]) for k, v in inputs.items()}
    mask = moved["attention_mask"]
    return {**moved, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}, mask.bool()


def head_weights(module: nn.Module, anatomy: Anatomy) -> tuple[Tensor, Tensor | None]:
    """The unembedding matrix [vocabulary, features] and its bias, as the proof and every readout multiply with them.

    Raises Refused where they are not known (:mod:`workbench.weights`).
    """
    head = module.get_submodule(anatomy.unembedding)
    if anatomy.tied_function:  # a function multiplies with what is stored
        return next(w.value() for w in weights(head) if w.attribute == "weight"), None
    return effective_linear(head)


def _nowhere(module: nn.Module, path: str = "") -> list[str]:
    """Weights on the meta device that nothing brings; one product with such a tensor gives unwritten memory."""
    hook: Any = getattr(module, "_hf_hook", None)
    bringing = [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", False)]
    if any(h.place_submodules for h in bringing):
        return []
    own = [path + name for name, p in module.named_parameters(recurse=False) if p.is_meta and not bringing]
    return own + [name for n, child in module.named_children() for name in _nowhere(child, f"{path}{n}.")]


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


