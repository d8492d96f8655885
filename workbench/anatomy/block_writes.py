"""How each block writes to the residual stream; found by structure, proved by numbers.

A block's attention (or mixer) and its MLP add to the stream:  out = in + a * attention + b * mlp.  Which modules
these are, behind which post-norm, and with which residual multiplier, is solved from one recorded pass: the
pair of module outputs and coefficients that gives the block's own change.  BLOOM-like modules that return the
stream itself (their "attention output" already holds the residual) are recognised and reduced to what they add.

The sum is checked element by element, on every row, against what rounding can do and no more.  A model that adds in
a type with unit roundoff u rounds at most four times on its way (each of the two products, each of the two sums), each
time by at most u of a number that is no larger than  |in| + |a attention| + |b mlp|  (to first order in u).  So

    | out - (in + a attention + b mlp) |  <=  ROUNDINGS u ( |in| + |a attention| + |b mlp| )      at every element

holds for every true block, with ROUNDINGS = 6: the four, one for a module output that was rounded when it was handed
on, one for our own sum where the model runs in fp64.  u is that of the coarsest type among the tensors recorded.  An
element of a massive activation (2e4 times the others) is thereby allowed its own, larger rounding, and lends none of
it to the others; the coefficients are fitted to rows of one size, so that it does not outweigh them either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.anatomy.config import config_numbers
from workbench.anatomy.constants import constants, unit_roundoff
from workbench.anatomy.probe import probe_inputs, record
from workbench.engine.hooks import untouched
from workbench.errors import Refused
from workbench.sites import Site

if TYPE_CHECKING:
    from workbench.model import Model

ROUNDINGS = 6
"""How often the largest rounding error may have happened on the way through a block; derived above."""


@dataclass(frozen=True)
class Write:
    """What one part adds to the stream: ``scale * output(path)``; or the output minus the stream before it."""

    path: str
    scale: float = 1.0
    total: bool = False


@dataclass(frozen=True)
class Parts:
    """The two writes of one block.  ``parallel``: both read the same state, so there is no state between them."""

    attn: Write
    mlp: Write
    parallel: bool


def find_writes(model: Model) -> list[Parts | str]:
    """For each block its :class:`Parts`, or the reason why they are not known."""
    module, width = model.module, model.d_model
    if model.anatomy.layout.axes != "BTW" or model.anatomy.layout.prefix:
        return [f"block {i} carries its states as {model.anatomy.layout.axes}" for i in range(model.n_layers)]
    prefix = model.anatomy.blocks + "."
    with untouched(module):
        inputs, real = probe_inputs(module, seed=2)
        # The names of modules at most three below a block: deeper ones are projections inside the parts.
        events, _ = record(
            module,
            inputs,
            keep=lambda name: name.startswith(prefix) and name.removeprefix(prefix).count(".") <= 3,
        )
    numbers = config_numbers(getattr(module, "config", None))
    found: list[Parts | str] = []
    for index in range(model.n_layers):
        block = f"{prefix}{index}"
        inside = [e for e in events if e.name.startswith(block + ".") and e.output is not None]
        own = next((e for e in events if e.name == block), None)
        if own is None or own.output is None:
            found.append(f"block {index} did not run on text")
            continue
        states = next((t for t in own.inputs if t.shape == own.output.shape), None)
        if states is None:
            found.append(f"block {index} takes and gives states of different shape")
            continue
        outputs = [
            (e.name.removeprefix(block + "."), e.output[real])
            for e in inside
            if e.output is not None and e.output.shape == own.output.shape and e.output.shape[-1] == width
        ]
        taken = [t[real] for e in inside for t in e.inputs if t.shape == own.output.shape]
        found.append(_solve(index, states[real], own.output[real], outputs, taken, numbers))
    return found


def _solve(
    index: int,
    start: Tensor,
    end: Tensor,
    outputs: list[tuple[str, Tensor]],
    taken: list[Tensor],
    numbers: list[float],
) -> Parts | str:
    """The parts of one block, from [rows, width] tensors: its ends, what its modules gave, and what they took."""
    u = unit_roundoff(start.dtype, end.dtype, *(t.dtype for _, t in outputs))
    least = max(torch.finfo(t.dtype).tiny * torch.finfo(t.dtype).eps for t in (start, end))  # of subnormal numbers
    start, end = start.double(), end.double()
    outputs = [(name, t.double()) for name, t in outputs]
    taken = [t.double() for t in taken]

    def is_sum(total: Tensor, *terms: Tensor) -> bool:
        room = torch.stack([t.abs() for t in terms]).sum(0)
        return bool(((total - sum(terms)).abs() <= ROUNDINGS * u * room + least).all())

    # Rows of one size: the rounding of each then weighs the same in the fit.
    weight = 1 / (start.norm(dim=-1, keepdim=True) + end.norm(dim=-1, keepdim=True)).clamp_min(1e-300)
    change = ((end - start) * weight).flatten()
    pairs = []
    for i, (first, a) in enumerate(outputs):
        for second, m in outputs[i + 1 :]:
            if first.startswith(second + ".") or second.startswith(first + "."):
                continue
            basis = torch.stack([(a * weight).flatten(), (m * weight).flatten()], 1)
            length = basis.norm(dim=0)
            if not bool((length > 0).all()):
                continue
            basis = basis / length
            if abs(float(basis[:, 0] @ basis[:, 1])) > 1 - 1e-10:
                continue
            fitted = torch.linalg.lstsq(basis, change[:, None]).solution[:, 0] / length
            if float(fitted.abs().min()) <= 1e-3:
                continue
            # How far rounding can turn the fit, as a share of each coefficient.
            errors = (ROUNDINGS * u * len(start) ** 0.5 / (fitted.abs() * length)).clamp(max=0.05)
            likely = [constants(c, numbers, e) for c, e in zip(fitted.tolist(), errors.tolist(), strict=True)]
            for alpha, beta in product(*likely):
                if is_sum(end, start, alpha * a, beta * m):
                    # The shallowest modules, and plain addition before fitted factors.
                    cost = (first.count(".") + second.count("."), abs(alpha - 1) + abs(beta - 1))
                    pairs.append((cost, first, alpha, a, second, beta))
                    break
    if pairs:
        _, first, alpha, a, second, beta = min(pairs, key=lambda p: p[0])
        one, two = Write(first, alpha), Write(second, beta)
        if _is_mlp(first) and not _is_mlp(second):
            one, two = two, one
            alpha, a = beta, next(t for name, t in outputs if name == second)
        # Sequential: some module takes the state between the two.
        between = (t for t in taken if not torch.equal(t, start))
        return Parts(one, two, not any(is_sum(t, start, alpha * a) for t in between))
    for second, total in outputs:
        if not torch.equal(total, end):
            continue
        for first, middle in outputs:
            if first != second and any(torch.equal(t, middle) for t in taken) and not torch.equal(middle, end):
                # Both add to the stream: a norm, too, gives what some module takes.
                adds = any(is_sum(middle, start, t) for _, t in outputs)
                if adds and _is_mlp(second) and not torch.equal(middle, start) and not first.startswith(second):
                    return Parts(Write(first, total=True), Write(second, total=True), False)
    return (
        f"block {index} is not its input plus two module outputs (a norm behind the addition, as in BERT or GPT-1, "
        "or a single mixer): what attention and MLP add to the stream is not defined"
    )


def _is_mlp(name: str) -> bool:
    return any(word in name.lower() for word in ("mlp", "ffn", "feed_forward", "feedforward", "ff_", "moe", "fc2"))


def block_writes(model: Model) -> list[Parts | str]:
    """What :func:`find_writes` gives; found once, until the model is proved again."""
    if "parts" not in model.known:
        model.known["parts"] = find_writes(model)
    return model.known["parts"]


def parts_of(model: Model, block: int) -> Parts:
    """The parts of one block; Refused with the reason when they are not known."""
    found = block_writes(model)[block]
    if isinstance(found, str):
        raise Refused(f"{model.name}: {found}. Read the residual stream (at='resid') instead.")
    return found


def add_hooks(
    model: Model,
    sites: set[Site],
    show: Callable[[Site, Tensor | None], None],
    before: dict[nn.Module, Callable],
    after: dict[nn.Module, Callable],
) -> None:
    """Hooks for resid_mid, attn_out and mlp_out: [batch, position, width], exactly what is added to the stream."""
    layout = model.anatomy.layout
    for block in sorted({site.index for site in sites}):
        kinds = {site.kind for site in sites if site.index == block}
        parts = parts_of(model, block)
        if parts.parallel and "resid_mid" in kinds:
            raise Refused(
                f"{model.name}: attention and MLP of block {block} read the same state and are added together, so "
                "there is no state between them. Read at='attn_out' and at='mlp_out'."
            )
        module = model.blocks[block]
        stream: dict[str, Tensor] = {}

        def entering(m: nn.Module, args: tuple, kwargs: dict, stream: dict = stream) -> None:
            states = layout.find((args, kwargs))
            if states is not None:
                # A copy: some models add to the stream in place.
                stream["start"] = states.clone()

        def attention(
            m: nn.Module, a: tuple, k: dict, output: Any, stream: dict = stream, block: int = block,
            write: Write = parts.attn, kinds: set[str] = kinds,
        ) -> None:  # fmt: skip
            out = layout.find(output)
            assert out is not None, "a part that gave a state when it was proved"
            added = out - stream["start"] if write.total else out if write.scale == 1 else out * write.scale
            if parts_total(write, kinds):
                stream["middle"] = stream["start"] + added
            if "attn_out" in kinds:
                show(Site("attn_out", block), added)
            if "resid_mid" in kinds:
                show(Site("resid_mid", block), stream["middle"])

        def mlp(
            m: nn.Module, a: tuple, k: dict, output: Any, stream: dict = stream, block: int = block,
            write: Write = parts.mlp,
        ) -> None:  # fmt: skip
            out = layout.find(output)
            assert out is not None, "a part that gave a state when it was proved"
            added = out - stream["middle"] if write.total else out if write.scale == 1 else out * write.scale
            show(Site("mlp_out", block), added)

        _join(before, module, entering)
        if kinds & {"attn_out", "resid_mid"} or parts.mlp.total:
            after[module.get_submodule(parts.attn.path)] = attention
        if "mlp_out" in kinds:
            after[module.get_submodule(parts.mlp.path)] = mlp


def parts_total(write: Write, kinds: set[str]) -> bool:
    """Whether the state between the parts is needed: asked for, or to tell what the second part adds."""
    return write.total or "resid_mid" in kinds


def _join(hooks: dict[nn.Module, Callable], module: nn.Module, function: Callable) -> None:
    """Run both hooks where a module has one already; the copy comes first, the other may end the pass."""
    other = hooks.get(module)
    if other is None:
        hooks[module] = function
        return

    def both(*arguments: Any) -> None:
        function(*arguments)
        other(*arguments)

    hooks[module] = both
