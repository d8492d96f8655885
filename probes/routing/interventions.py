"""Doing something to the routing: drop, replace, force, steer or jitter, and what that costs beside chance.

No observational statistic of routing says by itself that an expert matters (arXiv 2606.10703): what an expert is
claimed to be for should be shown by what happens without it, beside experts of the same load and beside other routes
of the same compute.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.results import family, ran
from probes.routing.rows import Pass, Rows
from workbench.anatomy.moe import Call, MoE, moe_of
from workbench.engine.hooks import neutral
from workbench.engine.run import observe
from workbench.errors import InputError, Refused
from workbench.inputs import Batch, Prompt, encode
from workbench.readers import Output, Plan
from workbench.reading import Reading, derived
from workbench.readout import Readout
from workbench.sites import Site
from workbench.stats import bootstrap_interval, fdr, p_value, sign_flip_p
from workbench.variables import about, described
from workbench.weights import merged, outermost

if TYPE_CHECKING:
    from workbench.model import Model

Experts = Mapping[int, Iterable[int]]
ENDS, NATS = ("low", "high"), "nats a token"
VARIABLES = {
    **family(
        "delta", about("cost of dropping the experts", NATS, "high"), *ENDS,
        random=("null", "cost of dropping others near in load"),
        replaced=("null", "cost of giving their slots to random others"),
    ),
    **family("excess", about("cost above that of dropping others", NATS, "high"), *ENDS),
    **family("replaced", about("mean cost of giving the slots to random others", NATS, "high"), *ENDS),
    **family("slots", about("slots lost", "slots"), "random"),
    "sets": about("sets of others", role="count", of="delta_random"),
    "p": about("p of the excess, over documents", "", "low", "p", "excess"),
    "q": about("false discovery rate of the excess", "", "low", "q", "excess"),
    "p_random": about("p of the cost, over sets", "", "low", "p", "delta"),
    "q_random": about("false discovery rate of the cost, over sets", "", "low", "q", "delta"),
    "documents": about("documents", role="count", of="delta"),
    "nll": about("loss of the model", NATS, "low"),
    "experts": about("experts dropped, by block (JSON)", role="label", of="delta"),
    "backed": about("whether the experts are missed", role="mask"),
}  # fmt: skip
REGRET_VARIABLES = {
    **family("nll", about("loss of the model", NATS, "low"), random=("null", "{}, under random routes")),
    **family("regret", about("loss less that under random routes", NATS, "low"), *ENDS),
    "p": about("p of the regret, over documents", "", "low", "p", "regret"),
    **family("regret_best", about("loss less that under each document's best random route", NATS, "low"), *ENDS),
}


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
    drop, replace, force, steer, widths = (_by_block(model, x) for x in (drop, replace, force, steer, jitter))
    with ExitStack() as stack:
        now = Pass(rows, seed)
        stack.callback(model.module.register_forward_pre_hook(now.enter, with_kwargs=True).remove)
        stack.callback(model.module.register_forward_hook(now.leave, always_call=True).remove)
        for block in sorted({*drop, *replace, *force}):
            given = force.get(block)
            if isinstance(given, str) and given != "random":
                raise InputError(f"force={given!r} is unknown. Name experts, or use 'random'.")
            given = given if given is None or given == "random" else _listed(given, block)
            lost, moved = (sorted(set(_listed(x.get(block, ()), block))) for x in (drop, replace))
            layer = _checked(model, block, [*lost, *moved, *(given if isinstance(given, list) else [])])
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
            layer = _checked(model, block, amounts)
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


def _by_block(model: Model, given: Mapping[int, Any] | None) -> dict[int, Any]:
    """The same by block number; below 0: counted from the last."""
    found: dict[int, Any] = {}
    for block, value in (given or {}).items():
        number = moe_of(model, block).block
        if number in found:
            raise InputError(f"Block {number} is named twice, once as {block}.")
        found[number] = value
    return found


def _listed(experts: Any, block: int) -> list[int]:
    if isinstance(experts, str) or not isinstance(experts, Iterable):
        raise InputError(f"The experts of block {block} are {experts!r}. Give a list: {{{block}: [3, 5]}}.")
    return [int(e) for e in experts]


def _checked(model: Model, block: int, experts: Iterable[int]) -> MoE:
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


# ---------------------------------------------------------------- what it costs


@neutral()
def document_nll(model: Model, inputs: Any, *, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nats and number of predicted tokens of each document, under whatever is being done to the model."""
    return _nll(model, encode(model, inputs), batch_size)


def _nll(
    model: Model, prompts: list[Prompt], batch_size: int | None, loads: Mapping[int, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and predicted tokens of each document; slots of each expert are added to ``loads``, block -> [expert]."""
    last, readout, loads = Site("resid", model.n_layers), Readout(model), loads or {}

    def look(states: dict[Any, Any], batch: Batch) -> dict[str, Any]:
        ids = [prompts[p].ids[at + 1 : at + 2] for p, at in zip(batch.prompt, batch.position, strict=True)]
        some = torch.tensor([i for i, own in enumerate(ids) if own], dtype=torch.long)
        found: dict[str, Any] = {}
        if len(some):
            target = torch.tensor([own for own in ids if own], device=readout.weight.device)
            rows = states[last].index_select(0, some.to(states[last].device))
            found["nats"] = batch.prompt[some], -_said(readout, rows, target)
        for block, own in loads.items():
            index = states[Site("experts", block)].index.cpu().numpy().ravel()
            found[str(block)] = np.bincount(index[(index >= 0) & (index < len(own))], minlength=len(own))
        return found

    outputs = {"nats": Output(("prompt",), dtype=np.float64, combine="sum")}
    outputs |= {str(b): Output((f"expert of {b}",), dtype=np.int64, combine="sum") for b in loads}
    sites = [last, *(Site("experts", block) for block in loads)]
    plan = Plan(sites, outputs, look, {f"expert of {b}": len(own) for b, own in loads.items()})
    found = observe(model, prompts, plan, batch_size=batch_size)
    for block, own in loads.items():
        own += found[str(block)]
    return found["nats"], np.array([len(prompt.ids) - 1 for prompt in prompts])


def _said(readout: Readout, rows: Tensor, target: Tensor) -> Tensor:
    """[rows] log-probability (nats) of each row's own token [rows, 1]."""
    said = readout.read(readout.features(rows)[None], 1, targets=target).target_logprob
    assert said is not None
    return said[0, :, 0].double()


def _mean(values: np.ndarray, tokens: np.ndarray, **settings: Any) -> tuple[float, float, float]:
    """Nats of documents -> nats a token, and the ends of its interval when documents are drawn again."""
    with np.errstate(invalid="ignore"):
        low, high = bootstrap_interval(values / tokens, tokens, **settings)
    return float(values.sum() / tokens.sum()), float(low), float(high)


@neutral()
def effect(
    model: Model,
    inputs: Any,
    experts: Experts,
    *,
    loads: xr.DataArray | None = None,
    sets: int = 8,
    renormalise: bool = True,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """What dropping experts costs in nats a token, beside dropping as many others and beside other routes.

    Args:
        inputs: documents.
        experts: block -> experts.
        loads: [block, expert] slots to match other experts by; None: those in these documents themselves.  (Loads over
            other documents, too, do not match: experts chosen for a label serve more of its documents than others do.)
        sets: how many random sets of experts, and random routes.
        draws, level, seed: of the bootstrap over documents and of the signs flipped.

    Returns:
        All but p in nats a token, weighted by tokens, with paired bootstrap over documents (_low, _high):
        delta: what dropping the experts costs; delta_random [draw]: what dropping other sets costs, no two of them the
        same: the variable ``sets`` says how many, and behind them is NaN where there are not as many as asked for.
        slots, slots_random [draw]: slots that each loses in these documents.  Others of the same load may not be
        there: where slots_random are fewer, part of an excess is the load, and ``replaced`` is the fairer comparison.
        excess: delta less the mean of delta_random.
        delta_replaced [draw], replaced: what it costs when the experts' slots go to random others with their weights,
            so that the compute stays; and the mean.  Near delta: these experts are missed, and not just the slots.
        p: two-sided, paired by document: the signs of the documents' excess are flipped at random.  Would other
            documents show an excess over these sets?
        p_random: one-sided: how many sets reach delta; at least 1 / (1 + sets).  Would other sets cost as much?
        The attribute experts is JSON: {"block": [expert, ...]}.
    """
    experts = {block: sorted(set(_listed(own, block))) for block, own in _by_block(model, experts).items()}
    for block, own in experts.items():
        _checked(model, block, own)
    if not any(experts.values()):
        raise InputError("No expert is named, so there is nothing to drop. Give {block: [expert, ...]}.")
    rng, total = np.random.default_rng(seed), {b: np.zeros(moe_of(model, b).n_experts) for b in experts}
    matched = None if loads is None else _given(loads, total)
    prompts = encode(model, inputs)
    plain, tokens = _nll(model, prompts, batch_size, total)
    chosen = _matched(experts, matched or total, sets, rng)
    settings: dict[str, Any] = {"level": level, "draws": draws, "seed": seed}

    def cost(**change: Any) -> np.ndarray:
        with intervene(model, renormalise=renormalise, **change):
            return _nll(model, prompts, batch_size)[0] - plain

    def padded(values: Any) -> tuple[tuple[str], np.ndarray]:
        return ("draw",), np.concatenate([values, np.full(sets - len(values), np.nan)])

    def lost(chosen: Mapping[int, list[int]]) -> float:
        return float(sum(total[block][own].sum() for block, own in chosen.items()))

    own = cost(drop=experts)
    others = np.stack([cost(drop=other) for other in chosen])
    routes = np.stack([cost(replace=experts, seed=seed + i) for i in range(sets)])
    found: dict[str, Any] = {}
    for name, values in (("delta", own), ("excess", own - others.mean(0)), ("replaced", routes.mean(0))):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = _mean(values, tokens, **settings)
    every = tokens.sum()
    found["delta_random"] = padded(others.sum(1) / every)
    found["delta_replaced"] = (("draw",), routes.sum(1) / every)
    found["slots"], found["slots_random"], found["sets"] = lost(experts), padded([lost(x) for x in chosen]), len(chosen)
    found["p"] = sign_flip_p(own - others.mean(0), draws, seed)
    found["p_random"] = p_value(own.sum() / every, others.sum(1) / every)
    attrs = {"documents": len(plain), "nll": float(plain.sum() / every), "experts": json.dumps(experts)}
    settings |= {"experts": experts, "sets": sets, "renormalise": renormalise, "loads": loads is not None}
    table = described(xr.Dataset(found, attrs=attrs), VARIABLES)
    return derived("routing.effect", table, ran(model, prompts), **settings)


def _given(loads: xr.DataArray, like: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Loads of the blocks."""
    if not isinstance(loads, xr.DataArray) or loads.dims != ("block", "expert"):
        found = loads.dims if isinstance(loads, xr.DataArray) else type(loads).__name__
        raise InputError(
            f"loads is {found} and must be a DataArray (block, expert): reading.data['usage_count'].sum('label')."
        )
    there = loads["block"].values.tolist()
    if absent := [block for block in like if block not in there]:
        raise InputError(f"loads has the blocks {there}, and not {absent[0]}.")
    return {block: loads.sel(block=block).values[: len(own)].astype(float) for block, own in like.items()}


def effects(model: Model, claims: Mapping[str, tuple[Any, Experts]], **settings: Any) -> Reading:
    """:func:`effect` of several claims, name -> (documents, experts), as one table: what a forest plot draws.

    The variables of effect with the dimension ``claim``, and documents, nll, experts (JSON) of each;
    q, q_random: p and p_random with the false discovery rate over the claims (Benjamini-Hochberg).
    backed: whether the experts are missed: delta is above every delta_random, excess_low above 0 and q below 0.05.
    """
    if not claims:
        raise InputError("There is no claim to test: the table is empty. Give {name: (documents, experts)}.")
    found = [effect(model, inputs, experts, **settings) for inputs, experts in claims.values()]
    own = ("documents", "nll", "experts")
    rows = [x.data.assign({n: x.data.attrs[n] for n in own if n in x.data.attrs}).drop_attrs() for x in found]
    table = xr.concat(rows, "claim").assign_coords(claim=np.array(list(claims), object))
    table["q"], table["q_random"] = ("claim", fdr(table["p"].values)), ("claim", fdr(table["p_random"].values))
    beyond = table["delta"] > table["delta_random"].max("draw")
    table["backed"] = beyond & (table["excess_low"] > 0) & (table["q"] < 0.05)
    return derived("routing.effects", described(table, VARIABLES).assign_attrs(chart="forest"), *found)


@neutral()
def regret(
    model: Model,
    inputs: Any,
    block: int,
    *,
    routes: int = 8,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """What the router's own choice in one block is worth, in nats a token, beside random routes of the same compute.

    Every token of the block is given k experts drawn at random, with the weights of its own choice rank by rank.
    After the counterfactual routes of Yoon et al. 2026 (arXiv 2605.07260), who re-route one token at a time, draw
    near the router's scores, and look where a sampled route is better.

    Returns:
        nll: of the model; nll_random [draw]: under random routes.
        regret: nll less the mean of nll_random; below 0: the router chooses better than chance.  With paired
            bootstrap over documents (_low, _high) and p (two-sided, signs of documents flipped).
        regret_best: nll less the best draw of each document.  Above 0: some random route was better; it grows with
            ``routes``, since the least of many is low by chance.
    """
    block, prompts = moe_of(model, block).block, encode(model, inputs)
    plain, tokens = _nll(model, prompts, batch_size)
    taken = []
    for i in range(routes):
        with intervene(model, force={block: "random"}, seed=seed + i):
            taken.append(_nll(model, prompts, batch_size)[0])
    random, total = np.stack(taken), tokens.sum()
    settings: dict[str, Any] = {"level": level, "draws": draws, "seed": seed}
    found: dict[str, Any] = {"nll": plain.sum() / total, "nll_random": (("draw",), random.sum(1) / total)}
    for name, values in (("regret", plain - random.mean(0)), ("regret_best", plain - random.min(0))):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = _mean(values, tokens, **settings)
    found["p"] = sign_flip_p(plain - random.mean(0), draws, seed)
    table = described(xr.Dataset(found, attrs={"block": block, "documents": len(plain)}), REGRET_VARIABLES)
    return derived("routing.regret", table, ran(model, prompts), block=block, routes=routes, **settings)


def _matched(
    experts: Mapping[int, list[int]], loads: Mapping[int, np.ndarray], draws: int, rng: np.random.Generator
) -> list[dict[int, list[int]]]:
    """At most ``draws`` different sets of as many other experts in each block; all there are, if they are so few.

    Else each expert of a set is the nearest in load among a random half of those that are left.
    """
    rest = {b: [e for e in range(len(loads[b])) if e not in own] for b, own in experts.items()}
    for block, own in experts.items():
        if len(rest[block]) < len(own):
            raise InputError(f"Block {block} has no {len(own)} other experts to compare with.")
    if math.prod(math.comb(len(rest[b]), len(own)) for b, own in experts.items()) <= draws:
        every = itertools.product(*(itertools.combinations(rest[b], len(own)) for b, own in experts.items()))
        return [{b: list(x) for b, x in zip(experts, one, strict=True)} for one in every]
    found: dict[str, dict[int, list[int]]] = {}
    for _ in range(50 * draws):
        if len(found) == draws:
            break
        one: dict[int, list[int]] = {}
        for block, chosen in experts.items():
            picked: list[int] = []
            for expert in chosen:
                left = [e for e in rest[block] if e not in picked]
                some = rng.choice(left, (len(left) + 1) // 2, replace=False)
                picked.append(int(some[np.abs(loads[block][some] - loads[block][expert]).argmin()]))
            one[block] = sorted(picked)
        found.setdefault(str(one), one)
    return list(found.values())
