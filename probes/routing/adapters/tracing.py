"""Routing over LoRA adapters: the weights that PEFT's Arrow router gives to named adapters in every adapted Linear.

Arrow (Ostapenko et al. 2024, arXiv 2405.11157) trains no router.  An adapter's prototype p in a Linear is the top right
singular vector of its update BA, and a token x weighs the adapters by softmax(|x . p| / temperature) over the ``top_k``
largest.  So each Linear routes by itself: a model has as many routers as adapted Linears (*projections*).

    reading = adapter_routing(model, texts, labels, oracle={"fr": "task_0", "de": "task_1"})

What it says, beside chance, is for :mod:`probes.routing.adapters.measures`.  ``model`` is
``workbench.load(create_arrow_model(...), tokenizer=...)``.

With general-knowledge subtraction (use_gks) PEFT changes the adapters' weights for good in the first pass, that of
``load``: all here is about adapters after it.  For before and after, build the model twice, with use_gks=False and
True, and trace both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.routing.tracer import document_labels
from workbench.anatomy import TOLERANCE
from workbench.engine.hooks import hooked
from workbench.errors import InputError, Refused
from workbench.inputs import Batch, Positions
from workbench.model import Model, load
from workbench.reader import Reader, Run, read
from workbench.reading import Reading
from workbench.sites import Site

STAGES = ["before", "after"]  # of the mask that leaves top_k adapters


@dataclass(frozen=True)
class Projection:
    """An adapted Linear: "3.self_attn.q_proj" is self_attn.q_proj of block 3.  Outside the blocks: block -1."""

    name: str
    block: int
    kind: str
    router: Any
    """PEFT's ArrowLoraLinearLayer: prototypes [adapter, width], top_k, temperature."""
    linear: Any


def projections(model: Model) -> list[Projection]:
    """Every Linear with an Arrow router, in the order of the model's modules.

    Raises Refused for models without one, and where adapters serve tokens in another way than through it.
    """
    found: list[Projection] = []
    modules: list[tuple[str, Any]] = list(model.module.named_modules())
    held = {str(a) for _, m in modules if hasattr(m, "lora_A") for a in m.lora_A}
    path = model.anatomy.blocks + "."
    order = [name for name, _ in model.module.get_submodule(model.anatomy.blocks).named_children()]
    for name, linear in modules:
        if not getattr(linear, "lora_arrow", None):
            continue
        active, merged = list(linear.active_adapters), list(getattr(linear, "merged_adapters", []))
        if len(active) != 1 or active[0] not in linear.lora_arrow or merged or linear.disable_adapters:
            state = "disabled" if linear.disable_adapters else f"{active} active and {merged} merged"
            raise Refused(
                f"In {name} of {model.name} the adapters are {state}, so Arrow's weights are not all that serves a "
                "token. Make the router the only active adapter: set_adapter('arrow_router')."
            )
        router, inside = linear.lora_arrow[active[0]], name.startswith(path)
        if not (inside or router._protos_ready):
            continue  # a vision tower: it did not run on text
        new = router.use_gks and (not router.gks_done or router.gks_added_adapter_names)
        if new or not router._protos_ready:
            raise Refused(
                f"The adapters in {name} of {model.name} have changed since the model last ran, and its next pass "
                "would rewrite them (prototypes, general-knowledge subtraction). Load the changed model again: "
                "workbench.load(module)."
            )
        size = router.prototypes.float().norm(dim=1)
        if not bool((size > 0.5).all()):
            lost = router.task_adapter_names[int((~(size > 0.5)).nonzero()[0, 0])]
            raise Refused(
                f"Adapter {lost!r} has no prototype in {name} of {model.name}: its update is zero there (not trained "
                "yet?), and tokens are routed to it by nothing. Train it or delete it."
            )
        place, _, kind = name.removeprefix(path).partition(".") if inside else ("", "", name)
        label = f"{order.index(place)}.{kind}" if inside else name
        found.append(Projection(label, order.index(place) if inside else -1, kind, router, linear))
    if not found:
        what = f"LoRA adapters ({', '.join(sorted(held))}) but no Arrow router" if held else "no LoRA adapters"
        raise Refused(
            f"{model.name} has {what}: no token is routed among adapters. Join adapters with "
            "peft.create_arrow_model(base, paths, ArrowConfig(...)), and load what it gives."
        )
    lists = {tuple(x.router.task_adapter_names) for x in found}
    if len(lists) > 1:
        raise Refused(
            f"The projections of {model.name} hold different adapters ({' and '.join(map(str, sorted(lists)[:2]))}): "
            "weights could not be compared between them. Give every adapter the same target modules."
        )
    return found


def adapter_names(found: list[Projection], names: Sequence[str] | None) -> list[str]:
    own = list(found[0].router.task_adapter_names)
    given = own if names is None else [str(n) for n in names]
    if isinstance(names, str) or len(given) != len(own) or len(set(given)) < len(given):
        raise InputError(
            f"names={names!r} does not name the {len(own)} adapters ({', '.join(own)}) once each, in order."
        )
    return given


def oracle_adapters(oracle: Mapping[Any, str], labels: list[str], adapters: list[str]) -> dict[str, int]:
    """Label -> number of its adapter."""
    given = {str(k): str(v) for k, v in oracle.items()}
    for label, adapter in given.items():
        if adapter not in adapters:
            raise InputError(f"oracle gives {label!r} the adapter {adapter!r}; the model has {', '.join(adapters)}.")
    lacking = sorted(set(labels) - set(given))
    if lacking:
        raise InputError(f"oracle has no adapter for the label {lacking[0]!r}. Give label -> adapter for every label.")
    return {label: adapters.index(given[label]) for label in sorted(set(labels))}


def _weights(similarity: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """|x . p| [tokens, adapter] -> weights and the first adapter [tokens, 1], as in ArrowLoraLinearLayer.forward."""
    top, index = torch.topk(similarity, k, dim=1)
    score = similarity.new_full(similarity.shape, float("-inf")).scatter_(1, index, top)
    return torch.softmax(score / temperature, dim=1), index[:, :1]


def mixed(router: Any, tokens: Tensor, weights: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """[tokens, out]: the adapters' updates under weights [tokens or 1, adapter], from what the router was given."""
    names = router.task_adapter_names
    found = tokens.new_zeros(len(tokens), kwargs["lora_B"][names[0]].weight.shape[0])
    for e, name in enumerate(names):
        if bool(weights[:, e].any()):
            a, b = (kwargs[m][name].weight.to(tokens) for m in ("lora_A", "lora_B"))
            found += weights[:, e, None] * kwargs["scaling"][name] * (tokens @ a.T @ b.T)
    return found


def _entropies(similarity: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """[tokens, stage] nats."""
    full = torch.softmax(similarity.float() / temperature, 1)
    return torch.stack([-torch.special.xlogy(p, p).sum(1) for p in (full, weights.float())], 1)


# ---------------------------------------------------------------- the pass


def adapter_routing(
    model: Any,
    inputs: Any,
    labels: Sequence[Any] | None = None,
    *,
    oracle: Mapping[Any, str] | None = None,
    names: Sequence[str] | None = None,
    trace: bool = False,
    readers: Sequence[Reader] = (),
    positions: Positions = "all",
    batch_size: int | None = None,
    progress: bool = True,
    padding_side: str = "right",
) -> Any:
    """Which adapters serve which tokens in every projection, in one pass; every prompt is a document.

    The weights are no module's output: they are computed again from the input of each router, by PEFT's own steps and
    in its dtype.  In the first batch they must give the update that the router itself gave, in every projection.

    Args:
        labels: one for each prompt (a language, a task); None: all are "all".
        oracle: label -> the adapter that was trained for it.
        names: what to call the adapters, in the router's order; None: PEFT's names (task_0, task_1, ...).
        trace: also keep every token's weights; :func:`agreement` needs them.
        readers: others that look on in the same pass; then a tuple is returned, this reading first.

    The reading's variables:
        weight, chosen [label, projection, adapter]: mean weight over tokens; share of tokens with the largest weight.
        routing_entropy [label, projection, stage] (nats): mean entropy of a token's softmax over all adapters
            ("before" the top-k mask) and of its weights ("after"); routing_entropy_uniform [projection, stage]: ln N
            and ln k; routing_entropy_random: under prototypes of random direction, where x . p is normal with deviation
            |x| / sqrt(width) (drawn anew for every token, so it is the mean over such prototypes).
        document_weight, document_chosen, document_entropy [prompt, projection, ...]: the same by document.
        token_count [label], document_tokens, document_label [prompt]; oracle_adapter [label]: number of its adapter.
        proof_error [projection]: largest |computed - own| update, as a share of the largest own one.
        adapter_weight [prompt, projection, position, adapter] float16, adapter_id [prompt, projection, position]: the
            adapter with the largest weight; with trace=True; NaN and -1: no token.

    Adapted Linears outside the blocks (projections of embeddings or images) are left out, and named in the provenance.

    Raises Refused where :func:`projections` does, where the computed weights are not the router's, and where a
    projection does not run once for every token (experts, vision towers).
    """
    model = load(model)
    tracer = _Tracer(model, labels, oracle, names, trace)
    with hooked(after=tracer.hooks):
        found = read(
            model, inputs, [tracer, *readers], batch_size=batch_size, positions=positions, progress=progress,
            padding_side=padding_side,
        )  # fmt: skip
    return found if readers else found[0]


class _Tracer:
    """The reader behind :func:`adapter_routing`; its two sites frame the blocks, where its hooks sit."""

    def __init__(self, model: Model, labels: Any, oracle: Any, names: Any, trace: bool) -> None:
        every, path = projections(model), model.anatomy.blocks + "."
        self.found = [x for x in every if x.block >= 0]
        routed = [name for name, m in model.module.named_modules() if getattr(m, "lora_arrow", None)]
        self.outside = [name for name in routed if not name.startswith(path)]
        if not self.found:
            raise Refused(f"{model.name} has Arrow routers only outside its blocks ({', '.join(self.outside)}).")
        self.adapters = adapter_names(every, names)
        self.labels, self.oracle, self.trace = labels, oracle, trace
        self.hooks = {x.router: self._hook(i, x) for i, x in enumerate(self.found)}
        self.batch: Batch | None = None

    def sites(self, model: Model) -> list[Site]:
        return [Site("resid", 0), Site("resid", model.n_layers)]

    def begin(self, run: Run) -> None:
        self.run = run
        self.of = document_labels(self.labels, len(run.prompts))
        self.own = None if self.oracle is None else oracle_adapters(self.oracle, self.of, self.adapters)
        shape = (len(run.prompts), len(self.found), len(self.adapters))
        self.weight, self.chosen = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        self.entropy, self.random = torch.zeros(2, *shape[:2], 2, dtype=torch.float64)
        self.error = np.full(len(self.found), np.nan)
        if self.trace:
            self.each = run.empty(shape[1:2], np.float16, after=shape[2:])
            self.first = run.empty(shape[1:2], np.int16)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        self.batch = batch if site.index == 0 else None
        if self.batch is None:
            missed = [x.name for i, x in enumerate(self.found) if (_Tracer, id(self), i) not in batch.scratch]
            if missed:
                raise Refused(
                    f"{missed[0]} of {self.run.model.name} did not run on these inputs: nothing is routed there."
                )

    def _hook(self, i: int, x: Projection) -> Callable[..., None]:
        def hook(router: nn.Module, args: tuple, kwargs: dict[str, Any], update: Tensor) -> None:
            if self.batch is not None:
                self._saw(i, x, args[0], kwargs, update, self.batch)

        return hook

    def _saw(self, i: int, x: Projection, inputs: Tensor, kwargs: dict[str, Any], update: Tensor, batch: Batch) -> None:
        rows, key = batch.inputs["input_ids"].numel(), (_Tracer, id(self), i)
        name, layout = self.run.model.name, self.run.model.anatomy.layout
        if inputs.shape[:-1].numel() != rows or layout.axes == "TBW" or layout.prefix or key in batch.scratch:
            raise Refused(
                f"{x.name} of {name} ran on {tuple(inputs.shape)} for {rows} token ids, or more than once: which row "
                "is which token is not known. Adapters in experts and in vision towers cannot be traced."
            )
        batch.scratch[key] = True
        router, width = x.router, inputs.shape[-1]
        # The whole batch, pads too: the same product on other rows would round, and choose, differently.
        tokens = inputs.reshape(-1, width).to(router.prototypes)
        similarity = torch.abs(tokens @ router.prototypes.T)
        weights, first = (batch.take(v) for v in _weights(similarity, router.top_k, router.temperature))
        similarity, tokens = batch.take(similarity), batch.take(tokens)
        if np.isnan(self.error[i]) and len(tokens):
            self.error[i] = self._proved(x, tokens, weights, batch.take(update), kwargs)
        noise = self._noise(batch).to(tokens.device) * tokens.float().norm(dim=1, keepdim=True) / width**0.5
        noisy = _weights(noise, router.top_k, router.temperature)[0]
        entropy, random = (_entropies(*v, router.temperature).cpu() for v in ((similarity, weights), (noise, noisy)))
        weights, first = weights.float().cpu(), first.cpu()

        def commit() -> None:
            for total, values in (
                (self.weight, weights), (self.chosen, torch.zeros_like(weights).scatter_(1, first, 1)),
                (self.entropy, entropy), (self.random, random),
            ):  # fmt: skip
                total[:, i].index_add_(0, batch.prompt, values.double())
            if self.trace:
                self.each[batch.prompt.numpy(), i, batch.slot.numpy()] = weights.numpy()
                self.first[batch.prompt.numpy(), i, batch.slot.numpy()] = first[:, 0].numpy()

        batch.done.append(commit)

    def _noise(self, batch: Batch) -> Tensor:
        """[selected, adapter] |standard normal|, which belong to prompt and position and not to the batch."""
        key = (_Tracer, id(self), "noise")
        if key not in batch.scratch:
            drawn = np.empty((len(batch), len(self.adapters)), np.float32)
            for prompt in set(batch.prompt.tolist()):
                mine = batch.prompt.numpy() == prompt
                drawn[mine] = np.random.default_rng([0, prompt]).standard_normal((mine.sum(), drawn.shape[1]))
            batch.scratch[key] = torch.from_numpy(np.abs(drawn))
        return batch.scratch[key]

    def _proved(self, x: Projection, tokens: Tensor, weights: Tensor, update: Tensor, kwargs: dict[str, Any]) -> float:
        own = update.float()
        error = float((mixed(x.router, tokens.float(), weights.float(), kwargs) - own).abs().max())
        error, allowed = error / float(own.abs().max().clamp_min(1e-30)), TOLERANCE.get(tokens.dtype, 1e-4)
        if not error <= allowed:
            raise Refused(
                f"The weights computed for {x.name} of {self.run.model.name} do not give its own update: they differ "
                f"by {error:.1e} of the largest (allowed: {allowed:.0e} in {tokens.dtype}). This router weighs "
                "adapters in another way than PEFT 0.21's Arrow, so its weights are not known."
            )
        return error

    def end(self) -> Reading:
        names = sorted(set(self.of))
        label = np.array([names.index(x) for x in self.of])
        tokens = np.array([len(p.positions) for p in self.run.prompts])
        sums = {"weight": self.weight, "chosen": self.chosen, "entropy": self.entropy, "random": self.random}
        documents, labels = {}, {}
        by = (label == np.arange(len(names))[:, None]).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            for name, total in sums.items():
                documents[name] = (total.numpy() / tokens[:, None, None]).astype(np.float32)
                labels[name] = np.tensordot(by, total.numpy(), 1) / (by @ tokens)[:, None, None]
        at, stages = ("label", "projection", "adapter"), ("label", "projection", "stage")
        k = [min(x.router.top_k, len(self.adapters)) for x in self.found]
        uniform = np.log([[len(self.adapters), n] for n in k])
        variables: dict[str, Any] = {
            "weight": (at, labels["weight"]),
            "chosen": (at, labels["chosen"]),
            "routing_entropy": (stages, labels["entropy"]),
            "routing_entropy_uniform": (stages[1:], uniform),
            "routing_entropy_random": (stages, labels["random"]),
            "document_weight": (("prompt", *at[1:]), documents["weight"]),
            "document_chosen": (("prompt", *at[1:]), documents["chosen"]),
            "document_entropy": (("prompt", *stages[1:]), documents["entropy"]),
            "token_count": (("label",), (by @ tokens).astype(int)),
            "document_tokens": (("prompt",), tokens),
            "document_label": (("prompt",), label),
            "proof_error": (("projection",), self.error),
        }
        if self.own is not None:
            variables["oracle_adapter"] = (("label",), np.array([self.own[x] for x in names]))
        if self.trace:
            variables["adapter_weight"] = (("prompt", "projection", "position", "adapter"), self.each)
            variables["adapter_id"] = (("prompt", "projection", "position"), self.first)
        coords = {
            "label": np.array(names, object), "adapter": np.array(self.adapters, object), "stage": STAGES,
            "projection": np.array([x.name for x in self.found], object),
            "block": ("projection", np.array([x.block for x in self.found])),
            "kind": ("projection", np.array([x.kind for x in self.found], object)),
        }  # fmt: skip
        data = self.run.dataset(variables, coords, reader="adapter_routing", chart="adapters")
        router = self.found[0].router
        about = {
            "name": "adapter_routing", "trace": self.trace, "oracle": self.own and dict(self.oracle),
            "peft": getattr(sys.modules.get("peft"), "__version__", None), "top_k": router.top_k,
            "temperature": router.temperature, "prototype_seed": router.rng_seed, "not_traced": self.outside,
            "adapters": dict(zip(router.task_adapter_names, self.adapters, strict=True)),
            "general_knowledge_subtracted": list(router.gks_adapter_names) if router.use_gks else [],
        }  # fmt: skip
        return Reading(data, {"reader": about})
