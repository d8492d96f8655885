"""Mixtures of experts: where a model routes tokens to experts, and which it really fed.

What a router prints is not what happens: selection biases, groups, masks and skipped experts come behind it.  So the
routing is read where the experts are called, from the indices and weights that they are given.  An experts module is
known by the arguments of its forward; a few architectures that dispatch otherwise have an adapter here.  Each layer
is proved when it is first asked for: rows of two prompts padded into one batch route as they do alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.anatomy.probe import alone, probe, probe_inputs, rows_of
from workbench.engine.hooks import hooked, untouched
from workbench.errors import Refused
from workbench.weights import aside

if TYPE_CHECKING:
    from workbench.model import Model

INDEX = ("top_k_index", "router_indices", "top_k_indices", "topk_indices", "selected_experts", "router_mask")
WEIGHT = ("top_k_weights", "routing_weights", "topk_weights", "router_probs")


class Routing(NamedTuple):
    """The experts that tokens were given to, as the experts module received them."""

    index: Tensor
    """[rows, k] expert numbers; -1 where a slot reached no expert (skipped, or dropped for want of capacity)."""
    weight: Tensor
    """[rows, k] what each expert's output (in a few models its input) is multiplied with; 0 where index is -1."""


@dataclass(frozen=True)
class MoE:
    """One mixture-of-experts layer.

    Attributes:
        block: the module index of its block.
        name: path of the module at which the routing is read.
        router: path of the router, or "" where its scores are not known.
        n_experts: routed experts (shared ones are always on, and never counted).
        n_identity: experts beyond those that pass their input on (LongCat's "zero" experts); numbers >= n_experts.
        top_k: slots of a token.
        causal: whether a token's routing depends on nothing but the tokens before it.
    """

    block: int
    name: str
    router: str
    n_experts: int
    n_identity: int
    top_k: int
    causal: bool
    read: Callable[[nn.Module, tuple, dict, Any], Routing | None]
    scores: Callable[[Any], Tensor | None]
    before: bool
    """Whether ``read`` looks at the module's inputs (else at its outputs)."""
    gate: str = ""
    """What makes probabilities of the scores: "softmax", "sigmoid", "none" (they are probabilities), "": not known."""

    def probabilities(self, scores: Tensor) -> Tensor:
        """[rows, experts] gate scores -> the full gate distribution; rows sum to 1."""
        p = _GATES[self.gate](scores.float())
        return p / p.sum(-1, keepdim=True)


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda s: s.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda s: s,
}


class Call:
    """An experts call seen by a hook: its arguments by name, so that an intervention can replace them."""

    def __init__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.names = list(inspect.signature(type(module).forward).parameters)[1:]
        self.args, self.kwargs = args, kwargs
        self.index = next(n for n in self.names if n in INDEX)
        self.weight = next(n for n in self.names if n in WEIGHT)

    def get(self, name: str) -> Tensor:
        return self.kwargs[name] if name in self.kwargs else self.args[self.names.index(name)]

    def replaced(self, index: Tensor, weight: Tensor) -> tuple[tuple, dict]:
        """The arguments with another routing."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in ((self.index, index), (self.weight, weight)):
            if name in kwargs:
                kwargs[name] = value
            else:
                args[self.names.index(name)] = value
        return tuple(args), kwargs


def takes_routing(module: nn.Module) -> bool:
    """Whether a module is called with expert indices and weights."""
    try:
        names = set(inspect.signature(type(module).forward).parameters)
    except (TypeError, ValueError):
        return False
    return bool(names & set(INDEX)) and bool(names & set(WEIGHT))


# ---------------------------------------------------------------- reading a call


def _from_call(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Routing | None:
    call = Call(module, args, kwargs)
    index, weight = call.get(call.index), call.get(call.weight)
    if index.ndim == 3:  # a mask [rows, 1, experts]: Switch and NLLB
        return _from_mask(index, weight)
    if weight.shape != index.shape:  # weights of all experts, to be picked from
        weight = weight.gather(-1, index)
    return _clean(index.reshape(-1, index.shape[-1]), weight.reshape(-1, weight.shape[-1]))


def _clean(index: Tensor, weight: Tensor) -> Routing:
    """A slot of weight 0 reaches no expert, whatever number stands there (Zaya's skip expert, dropped tokens)."""
    index = index.long()
    return Routing(index.masked_fill(weight == 0, -1), weight)


def _from_mask(mask: Tensor, weight: Tensor) -> Routing:
    mask = mask.reshape(-1, mask.shape[-1])
    k = max(1, int((mask != 0).sum(1).max())) if len(mask) else 1
    index = mask.to(torch.float32).topk(k, 1).indices
    held = mask.gather(1, index) != 0
    weight = weight.reshape(len(mask), -1)
    weight = weight.gather(1, index) if weight.shape[1] == mask.shape[1] else weight.expand(-1, k)
    return _clean(index, weight * held)


def _llama4(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Routing:
    # Scores of all experts, zero but for the chosen; they multiply what goes into the experts.
    weight, index = output[0].topk(module.top_k, 1)
    return _clean(index, weight)


def _jetmoe(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Routing:
    order, _, gates, sizes, logits = output
    expert = torch.repeat_interleave(
        torch.arange(len(sizes), device=order.device), torch.tensor(sizes).to(order.device)
    )
    index, weight = torch.empty_like(order), torch.empty_like(gates)
    index[order], weight[order] = expert, gates
    return _clean(index.view(len(logits), -1), weight.view(len(logits), -1))


def _doge(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Routing:
    # Product keys: an expert is a pair of keys, and its score the sum of theirs.
    (x, y), (i, j) = output[1].topk(module.num_keys, dim=-1)
    scores = (x[..., None] + y[..., None, :]).flatten(-2)
    pairs = (i[..., None] * module.num_keys + j[..., None, :]).flatten(-2)
    best, at = scores.topk(module.top_k, dim=-1)
    weight = best.softmax(-1)
    return _clean(pairs.gather(-1, at), weight / weight.sum(-1, keepdim=True) if module.norm_topk_prob else weight)


ADAPTERS: dict[str, tuple[Callable[..., Routing], int]] = {
    "Llama4Router": (_llama4, 1), "JetMoeTopKGating": (_jetmoe, 4), "DogeCDMoE": (_doge, 1),
}  # fmt: skip
"""Router classes whose output tells the routing, and which of its outputs are the scores."""


# ---------------------------------------------------------------- finding


def routed_experts(model: Model) -> dict[int, MoE]:
    """The mixture-of-experts layers of a model, by block, proved; found once, until the model is proved again."""
    if "moe" not in model.known:
        layers = find_moe(model)
        model.known["moe"] = prove(model, layers) if layers else layers
    return model.known["moe"]


def find_moe(model: Model) -> dict[int, MoE]:
    """The mixture-of-experts layers of a model, by block.  Empty for a dense model."""
    found: dict[int, MoE] = {}
    kinds = _router_kinds(model.module)
    for block, module in enumerate(model.blocks):
        prefix = f"{model.anatomy.blocks}.{block}"
        idle = aside(module)
        layers = [_layer(kinds, block, prefix, name, m, module) for name, m in module.named_modules() if m not in idle]
        layers = [layer for layer in layers if layer is not None]
        if len(layers) > 1:
            # JetMoE routes its attention, too: the feed-forward part is the block's.  Of a model with experts for
            # images and for text, those for text.
            own = [x for x in layers if ".mlp." in x.name and ".vision" not in x.name]
            if len(own) != 1:
                raise Refused(
                    f"{model.name}: block {block} has several groups of experts ({', '.join(x.name for x in layers)})."
                )
            layers = own
        if layers:
            found[block] = layers[0]
    return found


def _layer(
    kinds: dict[str, int], block: int, prefix: str, name: str, module: nn.Module, inside: nn.Module
) -> MoE | None:
    path = f"{prefix}.{name}"
    if takes_routing(module):
        router, at = _router(kinds, prefix, inside)
        n, identity = _experts(module)
        if n:
            return MoE(block, path, router, n, identity, 0, True, _from_call, partial(_pick, at), True)
    elif type(module).__name__ in ADAPTERS:
        read, at = ADAPTERS[type(module).__name__]
        return MoE(block, path, path, int(module.num_experts), 0, 0, True, read, partial(_pick, at), False)
    return None


def _experts(module: nn.Module) -> tuple[int, int]:
    """Routed and identity experts of an experts module."""
    identity = int(getattr(module, "zero_expert_num", 0) or 0)
    for name in ("num_routed_experts", "num_experts", "n_routed_experts", "num_local_experts"):
        if isinstance(value := getattr(module, name, None), int) and value > 0:
            return value, identity
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and len(module):
        return len(module), 0
    sizes = [p.shape[0] for p in module.parameters() if p.ndim == 3]
    return (sizes[0], identity) if sizes else (0, 0)


def _router_kinds(module: nn.Module) -> dict[str, int]:
    """Router classes of a model, and which of their outputs transformers records as router logits."""
    kinds: dict[str, int] = {}
    for part in module.modules():
        recorded = (getattr(type(part), "_can_record_outputs", None) or {}).get("router_logits")
        for entry in recorded if isinstance(recorded, list) else [recorded] if recorded else []:
            kind = getattr(entry, "target_class", entry)
            kinds[kind.__name__] = getattr(entry, "index", 0)
    return kinds


def _router(kinds: dict[str, int], prefix: str, inside: nn.Module) -> tuple[str, int]:
    """Path of the router in a block, and which of its outputs are its scores; "" if unknown."""
    idle = aside(inside)
    for name, module in inside.named_modules():
        if type(module).__name__ in kinds and not takes_routing(module) and module not in idle:
            return f"{prefix}.{name}", kinds[type(module).__name__]
    return "", 0


def _pick(at: int, output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = output[at] if isinstance(output, (tuple, list)) and len(output) > at else None
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


# ---------------------------------------------------------------- the proof


def prove(model: Model, layers: dict[int, MoE]) -> dict[int, MoE]:
    """Run two prompts of different length in one batch and each alone.

    Layers that route differently are marked (``causal=False``): capacity, or a router that mixes tokens.  Raises
    Refused where the rows are not one for each token.
    """
    module = model.module
    inputs, real = probe_inputs(module, seed=4)
    padded = "right" in model.anatomy.pad_sides
    seen: list[dict[int, Routing]] = []
    scores: dict[int, Tensor] = {}
    with untouched(module):
        for given, where in [(inputs, real) if padded else alone(inputs, real)[0], *alone(inputs, real)]:
            caught: dict[int, Routing] = {}

            def catch(block: int, value: Any, caught: dict = caught, where: Tensor = where) -> None:
                if isinstance(value, Routing):
                    caught.setdefault(block, value)
                elif value is not None and not seen:
                    scores[block] = rows_of(value, where)

            probe(module, given, *hooks(model, layers, catch, dict.fromkeys(layers, {"experts", "router"})))
            for block, routing in caught.items():
                if len(routing.index) != where.numel():
                    raise Refused(
                        f"{model.name}: the experts of block {block} were called with {len(routing.index)} rows for "
                        f"{where.numel()} tokens, so it cannot be said which token went where."
                    )
            seen.append({b: Routing(rows_of(r.index, where), rows_of(r.weight, where)) for b, r in caught.items()})
    proved = {}
    for block, layer in layers.items():
        if block not in seen[0]:
            raise Refused(
                f"{model.name}: the experts of block {block} ({layer.name}) were not called in a forward pass where "
                "hooks could see it. A compiled model or a fused kernel may do that; load it without them."
            )
        each = [torch.cat([s[block][i] for s in seen[1:]]) for i in (0, 1)]
        both = seen[0][block] if padded else Routing(*each)
        causal = both.index.shape == each[0].shape and bool(
            (_sorted(both.index) == _sorted(each[0])).float().mean() > 0.99
        )
        gate = _gate(seen[0][block], scores[block]) if block in scores else ""
        proved[block] = replace(layer, top_k=int(both.index.shape[1]), causal=causal, gate=gate)
    return proved


def _gate(routing: Routing, scores: Tensor) -> str:
    """Which function of the scores the applied weights are proportional to."""
    real = (routing.index >= 0).all(1) & (routing.index < scores.shape[1]).all(1)
    index, weight = routing.index[real], routing.weight[real].float()
    scores = scores[real].float()
    if not len(index):
        return ""
    order = ["none"] if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(len(scores))) else []
    for name in [*order, "softmax", "sigmoid"]:
        ratio = weight / _GATES[name](scores).gather(1, index).clamp_min(1e-30)
        # One slot alone is proportional to everything: there the weight must be the probability, or 1.
        steady = ratio / ratio.mean(1, keepdim=True) if ratio.shape[1] > 1 else ratio
        if bool(((steady - 1).abs() < 2e-3).all()) or (ratio.shape[1] == 1 and bool((weight == 1).all())):
            return name
    return ""


def _sorted(index: Tensor) -> Tensor:
    return index.sort(1).values


# ---------------------------------------------------------------- hooks


def hooks(
    model: Model,
    layers: dict[int, MoE],
    show: Callable[[int, Any], None],
    kinds: dict[int, set[str]],
) -> tuple[dict[nn.Module, Callable], dict[nn.Module, Callable]]:
    """Hooks that call ``show(block, Routing or scores [rows, experts])`` for the blocks in ``kinds``."""
    before: dict[nn.Module, Callable] = {}
    after: dict[nn.Module, Callable] = {}
    for block, wanted in kinds.items():
        layer = layers[block]
        module = model.module.get_submodule(layer.name)

        def entering(m: nn.Module, args: tuple, kwargs: dict, block: int = block, layer: MoE = layer) -> None:
            show(block, layer.read(m, args, kwargs, None))

        def leaving(
            m: nn.Module, args: tuple, kwargs: dict, output: Any, block: int = block, layer: MoE = layer,
            wanted: set[str] = wanted,
        ) -> None:  # fmt: skip
            if "router" in wanted:
                scores = layer.scores(output)
                show(block, None if scores is None else scores.reshape(-1, scores.shape[-1]))
            if "experts" in wanted and not layer.before:
                show(block, layer.read(m, args, kwargs, output))

        if "experts" in wanted and layer.before:
            before[module] = entering
        if "router" in wanted and layer.router:
            after[model.module.get_submodule(layer.router)] = leaving
        elif "experts" in wanted and not layer.before:
            after[module] = leaving
    return before, after


@contextmanager
def record(module: nn.Module) -> Iterator[dict[str, list[Routing]]]:
    """Every routing decision of any module, for the length of a ``with`` block: name -> one Routing for each call.

    For passes that are not the workbench's: ``generate()`` (the prompt's call first, then one for each step), training
    (a layer that is recomputed for its gradient counts once), encoder-decoders.  Rows are those of the call, padding
    included.
    """
    found: dict[str, list[Routing]] = {}
    before: dict[nn.Module, Callable] = {}
    after: dict[nn.Module, Callable] = {}

    def keep(name: str, routing: Routing | None) -> None:
        # Gradient checkpointing runs a block again inside the backward pass.
        if routing is not None and torch._C._current_graph_task_id() == -1:
            found.setdefault(name, []).append(Routing(routing.index.detach(), routing.weight.detach()))

    for name, part in module.named_modules():
        if takes_routing(part):
            before[part] = lambda m, a, k, name=name: keep(name, _from_call(m, a, k, None))
        elif type(part).__name__ in ADAPTERS:
            read = ADAPTERS[type(part).__name__][0]
            after[part] = lambda m, a, k, out, name=name, read=read: keep(name, read(m, a, k, out))
    if not before and not after:
        raise Refused(f"{type(module).__name__} has no experts that are called with indices and weights.")
    with hooked(before, after):
        yield found


def moe_of(model: Model, block: int) -> MoE:
    """The experts of one block (below 0: counted from the last); Refused where there are none."""
    block = int(block)
    block += model.n_layers * (-model.n_layers <= block < 0)
    layers = routed_experts(model)
    if block not in layers:
        sparse = sorted(layers)
        raise Refused(
            f"{model.name}: block {block} has no routed experts. "
            + (f"Blocks with experts: {sparse}." if sparse else "No block has: it is a dense model.")
        )
    return layers[block]
