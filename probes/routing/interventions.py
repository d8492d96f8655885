"""Doing something to the routing: drop, force or steer experts during a pass, and what that costs beside chance.

No observational statistic of routing says by itself that an expert matters (arXiv 2606.10703): what an expert is
claimed to be for should be shown by what happens without it, beside experts of the same load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from workbench.anatomy import accepted
from workbench.engines.hooks import untouched
from workbench.errors import InputError, Refused
from workbench.inputs import collate, encode, plan
from workbench.moe import Call, MoE, moe_of
from workbench.reader import token_budget

if TYPE_CHECKING:
    from workbench.model import Model

Experts = Mapping[int, Iterable[int]]


@contextmanager
def intervene(
    model: Model,
    *,
    drop: Experts | None = None,
    force: Experts | None = None,
    steer: Mapping[int, Mapping[int, float]] | None = None,
    renormalise: bool = True,
    rows: Tensor | None = None,
) -> Iterator[None]:
    """Change the routing of every pass inside a ``with`` block; everything is put back after it, also by an error.

    Args:
        drop: block -> experts whose slots are lost.  With ``renormalise`` the weights that remain are raised so that
            their sum stays; a token that loses all of its slots gets nothing from routed experts.
        force: block -> experts (as many as there are slots) that every token is given, with the weights its own
            choice had, rank by rank.
        steer: block -> {expert: amount added to its score}, before the model's own selection.
        rows: [rows] bool, which rows of the flattened batch are changed; None: all.

    Raises Refused for blocks without experts, for models whose experts are not called with indices and weights, and
    for steering routers whose scores are not a linear function of the state.
    """
    with ExitStack() as stack:
        for block in sorted({*(drop or {}), *(force or {})}):
            layer = _checked(model, block, [*(drop or {}).get(block, ()), *(force or {}).get(block, ())])
            if not layer.before:
                raise Refused(
                    f"{model.name}: block {block} dispatches tokens inside its router ({layer.name}), so slots cannot "
                    "be dropped or forced. Steer its scores instead."
                )
            lost = torch.tensor(sorted((drop or {}).get(block, ())), dtype=torch.long)
            given = list(force[block]) if force and block in force else None
            if given is not None and len(given) != layer.top_k:
                raise InputError(f"Block {block} gives each token {layer.top_k} experts and force names {len(given)}.")
            change = _changer(lost, given, renormalise, rows)
            part = model.module.get_submodule(layer.name)
            handle = part.register_forward_pre_hook(change, with_kwargs=True)
            stack.callback(handle.remove)
        for block, amounts in (steer or {}).items():
            layer = _checked(model, block, amounts)
            router = model.module.get_submodule(layer.router) if layer.router else None
            shift = None if router is None else _shift(router, amounts, layer)
            if router is None or shift is None:
                raise Refused(
                    f"{model.name}: the scores of block {block} are not one linear map of the state, so they cannot be "
                    "steered from outside. Use drop= or force=."
                )
            handle = router.register_forward_pre_hook(_adder(shift, rows), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _checked(model: Model, block: int, experts: Iterable[int]) -> MoE:
    layer = moe_of(model, block)
    for expert in experts:
        if not 0 <= expert < layer.n_experts:
            raise InputError(f"Block {block} has experts 0 to {layer.n_experts - 1}, and not {expert}.")
    return layer


def _changer(lost: Tensor, given: list[int] | None, renormalise: bool, rows: Tensor | None) -> Any:
    def change(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = Call(module, args, kwargs)
        index, weight = call.get(call.index), call.get(call.weight)
        if index.ndim != 2 or weight.shape != index.shape:
            raise Refused(f"{type(module).__name__} is called with masks and not with slots: it cannot be changed so.")
        new, scaled = index, weight
        if given is not None:
            # The heaviest slot of a token gets the first expert named, and so on.
            rank = weight.argsort(1, descending=True).argsort(1)
            new = torch.tensor(given, device=index.device, dtype=index.dtype)[rank]
        if len(lost):
            held = ~torch.isin(new, lost.to(new.device))
            scaled = weight * held
            if renormalise:
                left = scaled.sum(1, keepdim=True)
                scaled = torch.where(left != 0, scaled * (weight.sum(1, keepdim=True) / left), scaled)
        if rows is not None:
            own = rows.to(index.device)[:, None]
            new, scaled = torch.where(own, new, index), torch.where(own, scaled, weight)
        return call.replaced(new, scaled)

    return change


def _shift(router: nn.Module, amounts: Mapping[int, float], layer: MoE) -> Tensor | None:
    """A state that, added to a router's input, adds these amounts to its scores and nothing to the others."""
    matrix = next((p for p in router.parameters() if p.ndim == 2 and p.shape[0] >= layer.n_experts), None)
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


def _adder(shift: Tensor, rows: Tensor | None) -> Any:
    def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x = args[0]
        own = shift.to(x)
        if rows is not None:
            own = rows.to(x.device).view(*x.shape[:-1], 1) * own
        return (x + own, *args[1:]), kwargs

    return add


# ---------------------------------------------------------------- what it costs


def document_nll(model: Model, inputs: Any, *, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nats and number of predicted tokens of each document, under whatever is being done to the model."""
    prompts = encode(model, inputs)
    nats, tokens = np.zeros(len(prompts)), np.array([len(p.ids) - 1 for p in prompts])
    with untouched(model.module):
        for members in plan(prompts, token_budget(model), batch_size, model.anatomy.pads):
            batch = collate(model, prompts, members)
            logits = model.module(**accepted(model.module, batch.inputs)).logits
            for row, i in enumerate(members):
                n = len(prompts[i].ids)
                ids = torch.tensor(prompts[i].ids[1:], device=logits.device)
                own = logits[row, : n - 1].float().log_softmax(-1)
                nats[i] = -float(own.gather(1, ids[:, None]).sum())
    return nats, tokens


def effect(
    model: Model,
    inputs: Any,
    experts: Experts,
    *,
    loads: xr.DataArray | None = None,
    draws: int = 8,
    renormalise: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """What dropping experts costs in nats a token, beside dropping as many others of the nearest load.

    Args:
        inputs: documents.
        experts: block -> experts.
        loads: [block, expert] usage to match by (``usage_count`` summed over labels); None: random experts.
        draws: random sets of experts.

    Returns:
        delta: mean increase over documents, weighted by tokens, with a paired bootstrap interval (delta_low,
        delta_high); delta_random [draw] of the other sets; excess = delta less their mean, with interval.
    """
    plain, tokens = document_nll(model, inputs)
    rng = np.random.default_rng(seed)

    def cost(chosen: Experts) -> np.ndarray:
        with intervene(model, drop=chosen, renormalise=renormalise):
            return document_nll(model, inputs)[0] - plain

    own = cost(experts)
    others = np.stack([cost(_matched(model, experts, loads, rng)) for _ in range(draws)])
    picks = rng.integers(len(plain), size=(resamples, len(plain)))
    weight = tokens[picks].sum(1)

    def interval(values: np.ndarray) -> np.ndarray:
        return np.quantile(values[picks].sum(1) / weight, [0.025, 0.975])

    total = tokens.sum()
    low, high = interval(own)
    e_low, e_high = interval(own - others.mean(0))
    return xr.Dataset(
        {
            "delta": own.sum() / total, "delta_low": low, "delta_high": high,
            "delta_random": (("draw",), others.sum(1) / total),
            "excess": (own - others.mean(0)).sum() / total, "excess_low": e_low, "excess_high": e_high,
        },
        attrs={"documents": len(plain), "nll": float(plain.sum() / total), "experts": str(dict(experts))},
    )  # fmt: skip


def _matched(
    model: Model, experts: Experts, loads: xr.DataArray | None, rng: np.random.Generator
) -> dict[int, list[int]]:
    """As many other experts in each block: each the nearest in load among a random half of those that are left."""
    found: dict[int, list[int]] = {}
    for block, chosen in experts.items():
        chosen = list(chosen)
        rest = [e for e in range(moe_of(model, block).n_experts) if e not in chosen]
        if len(rest) < len(chosen):
            raise InputError(f"Block {block} has no {len(chosen)} other experts to compare with.")
        load = None if loads is None else loads.sel(block=block).values.astype(float)
        picked: list[int] = []
        for expert in chosen:
            left = [e for e in rest if e not in picked]
            some = rng.choice(left, max(1, (len(left) + 1) // 2), replace=False)
            near = some if load is None else some[np.argsort(np.abs(load[some] - load[expert]), kind="stable")]
            picked.append(int(near[0]))
        found[block] = picked
    return found
