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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.routing.tracer import document_labels
from workbench.anatomy import TOLERANCE
from workbench.engine.run import read
from workbench.errors import InputError, Refused
from workbench.inputs import Batch, Positions
from workbench.model import Model, load
from workbench.readers import Found, Output, Plan, Reader, Rows, Run, Tap
from workbench.sites import Site
from workbench.variables import about

PROVED = 64  # tokens of each batch
STAGES = ["before", "after"]  # of the mask that leaves top_k adapters
VARIABLES = {
    "weight": about("mean weight of the adapter"),
    "chosen": about("share of tokens with the largest weight"),
    "routing_entropy": about("entropy of a token's routing", "nats"),
    "routing_entropy_uniform": about(
        "entropy of a token's routing, of even weights", "nats", "", "chance", "routing_entropy"
    ),
    "routing_entropy_random": about(
        "entropy of a token's routing, under random prototypes", "nats", "", "null", "routing_entropy"
    ),
    "document_weight": about("mean weight of the adapter in the document"),
    "document_chosen": about("share of the document's tokens with the largest weight"),
    "document_entropy": about("entropy of a token's routing in the document", "nats"),
    "token_count": about("tokens", "tokens", role="count", of="weight"),
    "document_tokens": about("tokens of the document", "tokens", role="count", of="document_weight"),
    "document_label": about("label of the document", role="label"),
    "oracle_adapter": about("number of the label's own adapter", role="label"),
    "proof_error": about("largest difference to the router's own update", better="low"),
    "adapter_weight": about("weight of the adapter"),
    "adapter_id": about("adapter with the largest weight", role="label"),
    "label": about("label", role="label"),
    "adapter": about("adapter", role="label"),
    "stage": about("before or after the mask that leaves the largest weights", role="label"),
    "projection": about("adapted Linear", role="label"),
    "kind": about("kind of the adapted Linear", role="label"),
}


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
    in its dtype.  For 64 tokens of each batch they must give the update that the router itself gave, in every
    projection.

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
    tracer = AdapterTracer(labels, oracle, names, trace)
    found = read(
        model, inputs, [tracer, *readers], batch_size=batch_size, positions=positions, progress=progress,
        padding_side=padding_side,
    )  # fmt: skip
    return found if readers else found[0]


@dataclass(frozen=True, eq=False)
class AdapterTracer(Reader):
    """The reader behind :func:`adapter_routing`, which says what it gives."""

    labels: Any = None
    oracle: Any = None
    names: Any = None
    trace: bool = False

    @property
    def name(self) -> str:
        return "adapter_routing"

    def plan(self, run: Run) -> Plan:
        traced = _Traced(self, run)
        router = traced.found[0].router
        settings = {
            "labels": None, "names": None, "oracle": None if traced.own is None else dict(self.oracle),
            "peft": getattr(sys.modules.get("peft"), "__version__", None), "top_k": router.top_k,
            "temperature": router.temperature, "prototype_seed": router.rng_seed, "not_traced": traced.outside,
            "adapters": dict(zip(router.task_adapter_names, traced.adapters, strict=True)),
            "general_knowledge_subtracted": list(router.gks_adapter_names) if router.use_gks else [],
        }  # fmt: skip
        return Plan(
            [*traced.ends, *traced.taps], traced.outputs(), traced.observe, traced.coords, traced.finish, VARIABLES,
            {"chart": "adapters"}, settings,
        )  # fmt: skip


class _Traced:
    """One run of the tracer: a tap at every router, and what comes of a batch."""

    def __init__(self, tracer: AdapterTracer, run: Run) -> None:
        model = run.model
        every, path = projections(model), model.anatomy.blocks + "."
        self.tracer, self.run = tracer, run
        self.found = [x for x in every if x.block >= 0]
        routed = [name for name, m in model.module.named_modules() if getattr(m, "lora_arrow", None)]
        self.outside = [name for name in routed if not name.startswith(path)]
        if not self.found:
            raise Refused(f"{model.name} has Arrow routers only outside its blocks ({', '.join(self.outside)}).")
        self.adapters = adapter_names(every, tracer.names)
        self.of = document_labels(tracer.labels, len(run.prompts))
        self.own = None if tracer.oracle is None else oracle_adapters(tracer.oracle, self.of, self.adapters)
        # The last state, so that every block runs.
        self.ends = [Site("resid", 0), Site("resid", model.n_layers)]
        self.taps = [self._tap(i, x) for i, x in enumerate(self.found)]
        self.coords: dict[str, Any] = {
            "label": np.array(sorted(set(self.of)), object), "adapter": np.array(self.adapters, object),
            "stage": STAGES, "projection": np.array([x.name for x in self.found], object),
            "block": ("projection", np.array([x.block for x in self.found])),
            "kind": ("projection", np.array([x.kind for x in self.found], object)),
        }  # fmt: skip

    def outputs(self) -> dict[str, Output]:
        document, cells = ("prompt", "projection"), ("prompt", "projection", "position")
        sums: Any = {"dtype": np.float64, "combine": "sum"}
        found = {
            "weights": Output((*document, "adapter"), **sums), "first": Output((*document, "adapter"), **sums),
            "entropy": Output((*document, "stage"), **sums), "random": Output((*document, "stage"), **sums),
            "tokens": Output(("prompt",), dtype=np.int64, combine="sum"),
            "error": Output(document, dtype=np.float64),
        }  # fmt: skip
        if self.tracer.trace:
            found["adapter_weight"] = Output((*cells, "adapter"), dtype=np.float16)
            found["adapter_id"] = Output(cells, dtype=np.int16)
        return found

    def _tap(self, i: int, x: Projection) -> Tap:
        layout = self.run.model.anatomy.layout

        def read(router: nn.Module, args: tuple, kwargs: dict[str, Any], update: Tensor) -> tuple[Tensor, ...]:
            inputs, width = args[0], args[0].shape[-1]
            if layout.axes == "TBW" or layout.prefix:
                raise Refused(
                    f"{x.name} of {self.run.model.name} is given positions of the model's own, or in another order: "
                    "which row is which token is not known."
                )
            # The whole batch, pads too: the same product on other rows would round, and choose, differently.
            tokens = inputs.reshape(-1, width).to(x.router.prototypes)
            similarity = torch.abs(tokens @ x.router.prototypes.T)
            weights, first = _weights(similarity, x.router.top_k, x.router.temperature)
            flat = update.reshape(len(tokens), -1)
            some = slice(None, None, max(1, len(tokens) // PROVED))
            error = self._proved(x, tokens[some], weights[some], flat[some], kwargs)
            length = tokens.float().norm(dim=1, keepdim=True) / width**0.5
            return weights, first, similarity, length, torch.full_like(length, error)

        return Tap(x.router, read, x.name)

    def observe(self, states: Rows, batch: Batch) -> dict[str, Any]:
        noise = self._noise(batch)
        document, at = torch.unique(batch.prompt, return_inverse=True)
        sums: dict[str, list[Tensor]] = {name: [] for name in ("weights", "first", "entropy", "random")}
        placed: dict[str, list[Tensor]] = {"adapter_weight": [], "adapter_id": []}
        errors: list[Tensor] = []
        for x, tap in zip(self.found, self.taps, strict=True):
            weights, first, similarity, length, error = states[tap]
            errors.append(error[:, 0].cpu())
            router, drawn = x.router, noise.to(length.device) * length
            noisy = _weights(drawn, router.top_k, router.temperature)[0]
            entropy, random = (
                _entropies(*v, router.temperature).cpu() for v in ((similarity, weights), (drawn, noisy))
            )
            weights, first = weights.float().cpu(), first.cpu()
            chosen = torch.zeros_like(weights).scatter_(1, first, 1)
            for name, values in (("weights", weights), ("first", chosen), ("entropy", entropy), ("random", random)):
                total = torch.zeros(len(document), values.shape[1], dtype=torch.float64)
                sums[name].append(total.index_add_(0, at, values.double()))
            placed["adapter_weight"].append(weights)
            placed["adapter_id"].append(first[:, 0])
        found: dict[str, Any] = {name: (document, torch.stack(each, 1)) for name, each in sums.items()}
        found |= {"tokens": (batch.prompt, torch.ones_like(batch.prompt)), "error": torch.stack(errors, 1)}
        return found | ({name: torch.stack(each, 1) for name, each in placed.items()} if self.tracer.trace else {})

    def _noise(self, batch: Batch) -> Tensor:
        """[selected, adapter] |standard normal|, which belong to prompt and position and not to the batch."""
        drawn = np.empty((len(batch), len(self.adapters)), np.float32)
        for prompt in set(batch.prompt.tolist()):
            mine = batch.prompt.numpy() == prompt
            drawn[mine] = np.random.default_rng([0, prompt]).standard_normal((mine.sum(), drawn.shape[1]))
        return torch.from_numpy(np.abs(drawn))

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

    def finish(self, found: Found) -> dict[str, Any]:
        names = sorted(set(self.of))
        label = np.array([names.index(x) for x in self.of])
        tokens = found["tokens"]
        documents, labels = {}, {}
        by = (label == np.arange(len(names))[:, None]).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            for name in ("weights", "first", "entropy", "random"):
                documents[name] = (found[name] / tokens[:, None, None]).astype(np.float32)
                labels[name] = np.tensordot(by, found[name], 1) / (by @ tokens)[:, None, None]
        at, stages = ("label", "projection", "adapter"), ("label", "projection", "stage")
        k = [min(x.router.top_k, len(self.adapters)) for x in self.found]
        variables: dict[str, Any] = {
            "weight": (at, labels["weights"]),
            "chosen": (at, labels["first"]),
            "routing_entropy": (stages, labels["entropy"]),
            "routing_entropy_uniform": (stages[1:], np.log([[len(self.adapters), n] for n in k])),
            "routing_entropy_random": (stages, labels["random"]),
            "document_weight": (("prompt", *at[1:]), documents["weights"]),
            "document_chosen": (("prompt", *at[1:]), documents["first"]),
            "document_entropy": (("prompt", *stages[1:]), documents["entropy"]),
            "token_count": (("label",), (by @ tokens).astype(int)),
            "document_tokens": (("prompt",), tokens),
            "document_label": (("prompt",), label),
            "proof_error": (("projection",), np.fmax.reduce(found["error"])),
        }
        if self.own is not None:
            variables["oracle_adapter"] = (("label",), np.array([self.own[x] for x in names]))
        return variables
