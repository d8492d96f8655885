"""Act on the routing: drop, replace, force, steer or jitter.  What it costs is told by :mod:`probes.routing.costs`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.routing.rows import Pass, Rows
from workbench.anatomy.moe import Call, MoE, moe_of
from workbench.errors import InputError, Refused
from workbench.weights import merged, outermost

if TYPE_CHECKING:
    from workbench.model import Model

Experts = Mapping[int, Iterable[int]]


@contextmanager
def intervene(
    model: Model,
    *,
    drop: Experts | None = None,
    replace: Experts | None = None,
    force: Mapping[int, Iterable[int] | str] | None = None,
    steer: Mapping[int, Mapping[int, float]] | None = None,
    jitter: float | Mapping[int, float] | None = None,
    renormalise: bool = True,
    rows: Rows = None,
    seed: int = 0,
) -> Iterator[None]:
    """Change the routing of every pass inside a ``with`` block; everything is put back after it, also by an error.

    Args:
        drop: block -> experts whose slots are lost.  With ``renormalise`` the weights that remain are raised so that
            their sum stays; a token that loses all of its slots gets nothing from routed experts.
        replace: block -> experts whose slots go, with their weights, to random experts that are not named and do not
            serve the token already: a route of the same compute without them.
        force: block -> experts (as many as there are slots) that every token is given, with the weights its own
            choice had, rank by rank; or "random": as many different experts drawn for each token.
        steer: block -> {expert: amount added to its score}, before the model's own selection.
        jitter: relative width e, for all blocks with experts or as block -> e: what a router is given is multiplied
            by uniform(1 - e, 1 + e), element by element (the input jitter of Switch Transformers, arXiv 2101.03961).
            With e = 2**-8, the rounding of bfloat16, it is a floor: routing that moves less has not moved.
        rows: which tokens are changed; None: all.  A function of input_ids [batch, length] that gives bool [batch,
            length] is asked in every pass.  It sees the tokens of each prompt from column 0 on, whatever the padding
            side, and -1 behind them; pads are never changed.  Or [rows] bool, for one flattened batch.
        seed: of the random choices.  They are a hash of seed, block and the tokens up to this one, so that a token
            in its context draws the same in any batch.  In cached generation both see the tokens of one call.

    Applied in the order force, replace, drop.  Raises Refused for blocks without experts, for models whose experts
    are not called with indices and weights, and for steering routers whose scores are not a linear function of the
    state; InputError for experts that are not there, or too few to choose others from.
    """
    if isinstance(jitter, (int, float)):
        if not model.moe:
            raise Refused(f"{model.name} is a dense model: it has no routers whose input could be jittered.")
        jitter = dict.fromkeys(model.moe, jitter)
    drop, replace, force, steer, widths = (by_block(model, x) for x in (drop, replace, force, steer, jitter))
    with ExitStack() as stack:
        now = Pass(rows, seed)
        stack.callback(model.module.register_forward_pre_hook(now.enter, with_kwargs=True).remove)
        stack.callback(model.module.register_forward_hook(now.leave, always_call=True).remove)
        for block in sorted({*drop, *replace, *force}):
            given = force.get(block)
            if isinstance(given, str) and given != "random":
                raise InputError(f"force={given!r} is unknown. Name experts, or use 'random'.")
            given = given if given is None or given == "random" else listed(given, block)
            lost, moved = (sorted(set(listed(x.get(block, ()), block))) for x in (drop, replace))
            layer = checked(model, block, [*lost, *moved, *(given if isinstance(given, list) else [])])
            if not layer.before:
                raise Refused(
                    f"{model.name}: block {block} dispatches tokens inside its router ({layer.name}), so slots cannot "
                    "be dropped, replaced or forced. Steer its scores instead."
                )
            if isinstance(given, list) and len(given) != layer.top_k:
                raise InputError(f"Block {block} gives each token {layer.top_k} experts and force names {len(given)}.")
            if isinstance(given, list) and len(set(given)) < len(given):
                raise InputError(f"force names an expert of block {block} twice: {given}. A token has each once.")
            if moved and layer.n_experts - len(moved) < layer.top_k:
                raise InputError(
                    f"Block {block} has {layer.n_experts} experts and replace names {len(moved)}: the others are fewer "
                    f"than the {layer.top_k} slots of a token. Name fewer."
                )
            change = _changer(now, layer, given, moved, lost, renormalise)
            part = model.module.get_submodule(layer.name)
            stack.callback(part.register_forward_pre_hook(change, with_kwargs=True).remove)
        for block, amounts in steer.items():
            layer = checked(model, block, amounts)
            router = outermost(model.module, layer.router) if layer.router else None
            shift = None if router is None else _shift(router, amounts, layer)
            if router is None or shift is None:
                raise Refused(
                    f"{model.name}: the scores of block {block} are not one linear map of the state, so they cannot be "
                    "steered from outside. Use drop= or force=."
                )
            stack.callback(router.register_forward_pre_hook(_adder(now, shift), with_kwargs=True).remove)
        for block, width in widths.items():
            layer = moe_of(model, block)
            # A router that is the experts, too, with scores of a kind not known: noise would reach what they read.
            if not layer.router or (not layer.before and not layer.gate):
                raise Refused(
                    f"{model.name}: block {block} has no router of its own that is known, so its input cannot be "
                    "jittered. Name other blocks: jitter={block: width}."
                )
            router = model.module.get_submodule(layer.router)
            stack.callback(router.register_forward_pre_hook(_jitterer(now, block, width), with_kwargs=True).remove)
        yield


def by_block(model: Model, given: Mapping[int, Any] | None) -> dict[int, Any]:
    """The same by block number; below 0: counted from the last."""
    found: dict[int, Any] = {}
    for block, value in (given or {}).items():
        number = moe_of(model, block).block
        if number in found:
            raise InputError(f"Block {number} is named twice, once as {block}.")
        found[number] = value
    return found


def listed(experts: Any, block: int) -> list[int]:
    if isinstance(experts, str) or not isinstance(experts, Iterable):
        raise InputError(f"The experts of block {block} are {experts!r}. Give a list: {{{block}: [3, 5]}}.")
    return [int(e) for e in experts]


def checked(model: Model, block: int, experts: Iterable[int]) -> MoE:
    layer = moe_of(model, block)
    for expert in experts:
        if not 0 <= expert < layer.n_experts:
            raise InputError(f"Block {block} has experts 0 to {layer.n_experts - 1}, and not {expert}.")
    return layer


def _changer(
    now: Pass, layer: MoE, given: list[int] | str | None, moved: list[int], lost: list[int], renormalise: bool
) -> Any:
    n = layer.n_experts

    def change(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = Call(module, args, kwargs)
        index, weight = call.get(call.index), call.get(call.weight)
        if index.ndim != 2 or weight.shape != index.shape:
            raise Refused(f"{type(module).__name__} is called with masks and not with slots: it cannot be changed so.")
        new, scaled = index, weight
        if given == "random":
            drawn = now.noise(index, n, layer.block, 0).argsort(1)[:, : index.shape[1]]
            # Identity experts cost nothing: their slots stay what they are, for the same compute.
            new = torch.where(index < n, drawn.to(index.dtype), index)
        elif given is not None:
            # The heaviest slot of a token gets the first expert named, and so on.
            rank = weight.argsort(1, descending=True).argsort(1)
            new = torch.tensor(given, device=index.device, dtype=index.dtype)[rank]
        if moved:
            held = torch.isin(new, torch.tensor(moved, device=new.device))
            taken = torch.zeros(len(new), n + 1, dtype=torch.bool, device=new.device)
            taken = taken.scatter_(1, new.long().clamp(0, n), True)[:, :n]
            taken[:, moved] = True
            others = now.noise(index, n, layer.block, 1).masked_fill(taken, 2).argsort(1)
            # The first slot of a token to be replaced gets the first of the others, and so on.
            new = torch.where(held, others.gather(1, (held.cumsum(1) - 1).clamp_min(0)).to(new.dtype), new)
        if lost:
            held = ~torch.isin(new, torch.tensor(lost, device=new.device))
            scaled = weight * held
            if renormalise:
                left = scaled.sum(1, keepdim=True)
                scaled = torch.where(left != 0, scaled * (weight.sum(1, keepdim=True) / left), scaled)
        own = now.own(index)
        if own is not None:
            new, scaled = torch.where(own, new, index), torch.where(own, scaled, weight)
        return call.replaced(new, scaled)

    return change


def _shift(router: nn.Module, amounts: Mapping[int, float], layer: MoE) -> Tensor | None:
    """A state that, added to a router's input, adds these amounts to its scores and nothing to the others."""
    matrix = next((p for _, p in merged(router) if p.ndim == 2 and p.shape[0] >= layer.n_experts), None)
    if matrix is None:
        return None
    wanted = torch.zeros(matrix.shape[0], dtype=torch.float64)
    for expert, amount in amounts.items():
        wanted[expert] = amount
    own = matrix.detach().double().cpu()
    shift = torch.linalg.lstsq(own, wanted[:, None]).solution[:, 0]
    if float((own @ shift - wanted).abs().max()) > 1e-6 * float(wanted.abs().max().clamp_min(1e-12)):
        return None
    # The proof: two states through the router itself.
    x = torch.randn(3, matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix)
    try:
        with torch.no_grad():
            before, after = layer.scores(router(x)), layer.scores(router(x + shift.to(matrix)))
    except Exception:  # a router that wants more than states
        return None
    if before is None or after is None:
        return None
    moved = (after - before).double().cpu()[:, : len(wanted)]
    return shift if bool((moved - wanted).abs().max() < 1e-2 * max(1e-6, float(wanted.abs().max()))) else None


def _adder(now: Pass, shift: Tensor) -> Any:
    def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x, own = args[0], now.own(args[0])
        moved = x + (shift.to(x) if own is None else own.view(*x.shape[:-1], 1) * shift.to(x))
        return (moved, *args[1:]), kwargs

    return add


def _jitterer(now: Pass, block: int, width: float) -> Any:
    def jitter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x, own = args[0], now.own(args[0])
        noise = 2 * now.noise(x, x.shape[-1], block, 2) - 1
        scale = 1 + width * (noise if own is None else noise * own)
        return ((x * scale.view_as(x)).to(x.dtype), *args[1:]), kwargs

    return jitter
