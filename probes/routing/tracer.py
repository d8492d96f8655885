"""``RoutingTracer``: counts, for every document and label, which experts a model used, in the one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy.moe import MoE, moe_of
from workbench.errors import InputError, Refused
from workbench.readers import Found, Layers, Output, Plan, Reader, Rows, Run
from workbench.sites import Site
from workbench.tokens import unknown_share
from workbench.variables import about

GATE = ("entropy", "top", "margin", "chosen", "log_sum_square", "moved")
"""Statistics of a token's gate distribution p over E routed experts (identity experts left out), of which k are
chosen: its entropy (nats); its largest value; p of the k-th less p of the next (identity experts among them); the sum
of p over the experts applied; the squared log-sum-exp of the scores (the z-loss, ST-MoE eq. 5); slots whose expert is
not among the gate's own top k (a bias or groups chose it)."""
BINS = 20
VARIABLES = {
    "usage_count": about("slots in which the expert was applied", "slots"),
    "usage_weight": about("sum of the weights applied"),
    "usage_probability": about("mean gate probability"),
    "idle_count": about("slots that reached no routed expert", "slots"),
    "identity_count": about("slots that an identity expert took", "slots"),
    "token_count": about("tokens", "tokens", role="count", of="usage_count"),
    "gate_entropy": about("entropy of the gate", "nats"),
    "gate_histogram": about("tokens by entropy of the gate", "tokens"),
    "document_count": about("slots of the document in which the expert was applied", "slots"),
    "document_weight": about("sum of the weights applied in the document"),
    "document_probability": about("mean gate probability in the document"),
    "document_gate": about("mean statistics of the gate in the document"),
    "document_label_count": about("tokens of the label in the document", "tokens", role="count", of="document_count"),
    "document_unknown": about("share of unknown tokens in the document", better="low"),
    "document_cluster": about("number that near-duplicate documents share", role="label", of="document_count"),
    "part_count": about("slots of the part in which the expert was applied", "slots"),
    "part_weight": about("sum of the weights applied in the part"),
    "part_probability": about("mean gate probability in the part"),
    "part_gate": about("mean statistics of the gate in the part"),
    "part_prompt": about("document of the part", role="label", of="part_count"),
    "part_label": about("label of the part", role="label", of="part_count"),
    "pair_count": about("tokens that both experts serve", "tokens"),
    "flow_count": about("tokens by their strongest expert here and in the next block", "tokens"),
    "expert_exists": about("experts of the block", role="mask"),
    "top_k": about("slots of a token", "slots", role="count", of="usage_count"),
    "module": about("module that routes", role="label"),
    "expert_id": about("expert of the slot", role="label"),
    "expert_weight": about("weight of the slot"),
    "gate_probability": about("gate probability"),
    "label": about("label", role="label"),
    "statistic": about("statistic of the gate", role="label"),
}

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model


@dataclass(frozen=True, eq=False)
class RoutingTracer(Reader):
    """Expert usage by document and by label; every prompt is a document.

    Args:
        labels: one for each prompt (a language, a domain, ...), or for each prompt a list with one for each token;
            None: all prompts are "all".
        blocks: blocks to trace; None: all that have experts.
        trace: also keep, for every token, the experts and weights of every slot.
        scores: also read the router's scores: gate probabilities by document, and statistics of them.  Needs a gate
            whose probabilities are known (softmax or sigmoid of the scores, found when the model is first traced).
            With trace=True every token's gate probabilities are kept, too (2 bytes for each expert and block).
        pairs: count experts that serve a token together, and from block to block.

    The reading's variables:
        usage_count   [label, block, expert]: slots in which the expert was applied, over tokens of the label.
        usage_weight  [label, block, expert]: the sum of the weights of those slots.
        idle_count, identity_count [label, block]: slots that reached no routed expert, and those of them that an
            identity expert took (the rest was skipped or dropped).
        token_count   [label]
        document_count, document_weight [prompt, block, expert]: both for each document (all of its labels).  Tokens
            of a document are not independent: whatever is inferred is inferred over documents.
        document_label_count [prompt, label]: tokens of each label in each document.
        document_unknown [prompt]: share of tokens that are the tokenizer's unknown one.
        part_count, part_weight [part, block, expert], part_prompt, part_label [part]: where labels are by token, the
            tokens of one label in one document.
        usage_probability [label, block, expert], gate_entropy [label, block] (nats), document_probability (mean over
            tokens), document_gate [prompt, block, statistic] (means; :data:`GATE`), gate_histogram [label, block,
            bin]: tokens by entropy / ln E in 20 equal bins; with scores=True.
        pair_count    [block, expert, expert_2]: tokens whose slots hold both; flow_count [block_from, expert,
            expert_2]: strongest expert here and in the next traced block; with pairs=True.
        expert_id, expert_weight [prompt, block, position, slot]: with trace=True; -1 and NaN: no token or no expert.
        gate_probability [prompt, block, position, expert] float16: with trace=True and scores=True.

    Raises Refused for a dense model, for experts that hooks cannot see, and where a token's routing depends on the
    tokens beside it in the batch (capacity limits) unless prompts are read one at a time.
    """

    question = "Which experts do the work?"

    labels: Sequence[Any] | None = None
    _: KW_ONLY
    blocks: Layers = None
    trace: bool = False
    scores: bool = False
    pairs: bool = False

    @staticmethod
    def applies(model: Model) -> bool:
        """Whether the model has experts at all."""
        return bool(model.moe)

    def layers_of(self, model: Model) -> list[MoE]:
        """The experts of the blocks that are traced; Refused where routing cannot be."""
        if not model.moe:
            raise Refused(
                f"{model.name} is a dense model: none of its {model.n_layers} blocks has routed experts, so there is "
                "no routing to trace."
            )
        layers = [moe_of(model, b) for b in numbered(self.blocks, model.n_layers, model.moe)]
        if self.scores:
            for layer in layers:
                if not layer.router or not layer.gate:
                    raise Refused(
                        f"{model.name}: how the router of block {layer.block} makes probabilities of its scores is not "
                        "known (neither softmax nor sigmoid gives the applied weights). Trace without scores=True."
                    )
        return layers

    def plan(self, run: Run) -> Plan:
        traced = _Traced(self, run, self.layers_of(run.model))
        return Plan(
            traced.sites, traced.outputs(), traced.observe, traced.coords, traced.finish, VARIABLES,
            {"chart": "usage"}, {"labels": None, "gate": {str(x.block): x.gate for x in traced.layers}},
        )  # fmt: skip


class _Traced:
    """One run of a tracer: its documents in parts, and what is counted of a batch.

    A part is the tokens of one label in one document: nearly always the document.
    """

    def __init__(self, tracer: RoutingTracer, run: Run, layers: list[MoE]) -> None:
        self.tracer, self.run, self.layers = tracer, run, layers
        self.names, of = _labels(tracer.labels, [p.ids for p in run.prompts])
        parts: list[tuple[int, int]] = []
        self._part = torch.zeros(len(of), len(run.positions), dtype=torch.long)
        for i, (own, p) in enumerate(zip(of, run.prompts, strict=True)):
            number = {label: len(parts) + j for j, label in enumerate(sorted({own[at] for at in p.positions}))}
            parts += [(i, label) for label in number]
            self._part[i, : len(p.positions)] = torch.tensor([number[own[at]] for at in p.positions])
            # What the model writes behind a prompt goes on under the prompt's last label.
            self._part[i, len(p.positions) :] = number[own[p.positions[-1]]] if p.positions else 0
        self.prompt, self.label = np.array(parts).reshape(-1, 2).T
        self.experts, self.slots = max(x.n_experts for x in layers), max(x.top_k for x in layers)
        self.sites = [Site("experts", layer.block) for layer in layers]
        self.sites += [Site("router", layer.block) for layer in layers] * tracer.scores
        blocks = [x.block for x in layers]
        self.coords: dict[str, Any] = {
            "block": blocks, "label": np.array(self.names, object), "expert": self.experts, "expert_2": self.experts,
            "part": len(parts), "kind": 2, "statistic": np.array(GATE, object), "bin": (np.arange(BINS) + 0.5) / BINS,
            "block_from": blocks[:-1], "slot": self.slots,
        }  # fmt: skip

    def outputs(self) -> dict[str, Output]:
        part, cells = ("part", "block", "expert"), ("prompt", "block", "position")
        found = {
            "tokens": Output(("part",), dtype=np.int64, combine="sum"),
            "count": Output(part, dtype=np.int32, combine="sum"),
            "mass": Output(part, combine="sum"),
            "idle": Output(("part", "block", "kind"), dtype=np.int64, combine="sum"),
        }
        if self.tracer.scores:
            found |= {
                "probability": Output(part, combine="sum"),
                "gate": Output(("part", "block", "statistic"), dtype=np.float64, combine="sum"),
                "gate_histogram": Output(("label", "block", "bin"), dtype=np.int64, combine="sum"),
            }
        if self.tracer.pairs:
            both = ("expert", "expert_2")
            found["pair_count"] = Output(("block", *both), dtype=np.int64, combine="sum")
            found["flow_count"] = Output(("block_from", *both), dtype=np.int64, combine="sum")
        if self.tracer.trace:
            found["expert_id"] = Output((*cells, "slot"), dtype=np.int16)
            found["expert_weight"] = Output((*cells, "slot"), dtype=np.float16)
            if self.tracer.scores:
                found["gate_probability"] = Output((*cells, "expert"), dtype=np.float16)
        return found

    def observe(self, states: Rows, batch: Batch) -> dict[str, Any]:
        part = self._part[batch.prompt, batch.slot]
        found, at = torch.unique(part, return_inverse=True)
        each: dict[str, list[Any]] = {}
        first = None
        for layer in self.layers:
            if not layer.causal and len(batch.prompts) > 1:
                raise Refused(
                    f"In {self.run.model.name} a token's routing depends on the others in its batch (block "
                    f"{layer.block}). Read with batch_size=1, so that every prompt is routed as it would be alone."
                )
            routing = states[Site("experts", layer.block)]
            index, weight = routing.index.cpu(), routing.weight.float().cpu()
            before = first
            own, first = self._routed(layer, index, weight, at, len(found), before)
            if self.tracer.scores:
                scores = states[Site("router", layer.block)].float()
                own |= self._scored(layer, scores, index, found, at)
            for name, value in own.items():
                each.setdefault(name, []).append(value)
        values: dict[str, Any] = {"tokens": (part, torch.ones_like(part))}
        for name, parts in each.items():
            if name in ("count", "mass", "idle", "probability", "gate"):
                values[name] = (found, torch.stack(parts, 1))
            else:  # placed [selected, block, ...], or summed over blocks first
                values[name] = torch.stack(parts, 0 if name in ("pair_count", "flow_count") else 1)
        if self.tracer.pairs and "flow_count" not in values:
            values["flow_count"] = np.zeros((0, self.experts, self.experts), np.int64)
        return values

    def _routed(
        self, layer: MoE, index: Tensor, weight: Tensor, at: Tensor, parts: int, before: Tensor | None
    ) -> tuple[dict[str, Any], Tensor | None]:
        """What one block's slots come to, and each token's strongest expert; ``before``: that of the last block."""
        experts = self.experts
        real = (index >= 0) & (index < layer.n_experts)
        expert = index.clamp(0, experts - 1)
        place, size = (at[:, None] * experts + expert)[real], parts * experts
        none = [
            torch.bincount(at, x.sum(1).double(), minlength=parts).long() for x in (~real, index >= layer.n_experts)
        ]
        found: dict[str, Any] = {
            "count": torch.bincount(place, minlength=size).view(-1, experts).int(),
            "mass": torch.bincount(place, weight[real].double(), minlength=size).view(-1, experts).float(),
            "idle": torch.stack(none, 1),
        }
        first = None
        if self.tracer.pairs:
            held = torch.zeros(len(index), experts).scatter_add_(1, expert, real.float()).clamp_max_(1)
            found["pair_count"] = (held.T @ held).long().fill_diagonal_(0)
            first = expert.gather(1, weight.masked_fill(~real, -torch.inf).argmax(1, keepdim=True))[:, 0]
            first = first.masked_fill(~real.any(1), -1)
            if before is not None:
                both = (before >= 0) & (first >= 0)
                flow = torch.bincount(before[both] * experts + first[both], minlength=experts**2)
                found["flow_count"] = flow.view(experts, experts)
        if self.tracer.trace:
            missing = self.slots - index.shape[1]
            pad = torch.nn.functional.pad
            found["expert_id"] = pad(index, (0, missing), value=-1)
            found["expert_weight"] = pad(weight.masked_fill(index < 0, torch.nan), (0, missing), value=torch.nan)
        return found, first

    def _scored(self, layer: MoE, scores: Tensor, index: Tensor, found: Tensor, at: Tensor) -> dict[str, Any]:
        """What one block's router says of the tokens."""
        p = layer.probabilities(scores)
        k, index = min(layer.top_k, p.shape[1]), index.to(p.device)
        best = p.topk(min(k + 1, p.shape[1]), 1)
        held = (index >= 0) & (index < p.shape[1])
        kept = (index[:, :, None] == best.indices[:, None, :k]).any(-1)
        margin = best.values[:, k - 1] - best.values[:, -1]
        if p.shape[1] > layer.n_experts:  # identity experts
            p = p[:, : layer.n_experts]
            p = p / p.sum(1, keepdim=True).clamp_min(1e-30)
        # Masked experts score -infinity: what they add to a sum is nothing.
        entropy = -torch.special.xlogy(p, p).sum(1)
        mine = p.gather(1, index.clamp(0, p.shape[1] - 1)) * ((index >= 0) & (index < p.shape[1]))
        gate = torch.stack(
            [
                entropy, p.amax(1), margin, mine.sum(1), scores.logsumexp(1) ** 2, (held & ~kept).sum(1).float(),
            ], 1,
        ).cpu().double()  # fmt: skip
        p, missing = p.cpu(), self.experts - p.shape[1]
        own = torch.zeros(len(found), p.shape[1]).index_add_(0, at, p)
        totals = torch.zeros(len(found), len(GATE), dtype=torch.float64).index_add_(0, at, gate)
        column = (gate[:, 0] / max(np.log(layer.n_experts), 1e-9) * BINS).long().clamp(0, BINS - 1)
        label = torch.from_numpy(self.label)[found][at]
        bins = torch.bincount(label * BINS + column, minlength=len(self.names) * BINS).view(-1, BINS)
        said = {"probability": torch.nn.functional.pad(own, (0, missing)), "gate": totals, "gate_histogram": bins}
        if self.tracer.trace:
            said["gate_probability"] = torch.nn.functional.pad(p, (0, missing), value=torch.nan)
        return said

    def finish(self, found: Found) -> dict[str, Any]:
        tokens, prompts = found["tokens"], len(self.run.prompts)
        variables = assembled(
            self.names, self.prompt, self.label, prompts, tokens, found["count"], found["mass"], found["idle"],
            self.layers,
        )[0]  # fmt: skip
        if self.tracer.scores:
            by_label, by_prompt = (_summed(x, n) for x, n in ((self.label, len(self.names)), (self.prompt, prompts)))

            def mean(values: np.ndarray, by: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
                return by(values.astype(float)) / by(tokens).clip(1).reshape(-1, 1, 1)

            p, gate = found["probability"], found["gate"]
            three = ("block", "expert")
            variables["usage_probability"] = (("label", *three), mean(p, by_label))
            variables["gate_entropy"] = (("label", "block"), mean(gate, by_label)[..., 0])
            variables["document_probability"] = (("prompt", *three), mean(p, by_prompt).astype(np.float32))
            variables["document_gate"] = (("prompt", "block", "statistic"), mean(gate, by_prompt))
            if "part_count" in variables:
                variables["part_probability"] = (("part", *three), p / tokens.clip(1).reshape(-1, 1, 1))
                variables["part_gate"] = (("part", "block", "statistic"), gate / tokens.clip(1).reshape(-1, 1, 1))
        unknown = [unknown_share(self.run.model.tokenizer, p.ids) for p in self.run.prompts]
        return {**variables, "document_unknown": (("prompt",), np.array(unknown))}


def assembled(
    names: list[str],
    prompt: np.ndarray,
    label: np.ndarray,
    documents: int,
    tokens: np.ndarray,
    count: np.ndarray,
    weight: np.ndarray | None,
    idle: np.ndarray,
    layers: Sequence[Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates of a reading, from counts [part, block, expert] of parts with a prompt and a label.

    ``layers`` have .block, .name, .n_experts and .top_k; ``idle`` is [part, block, (idle, identity)]; ``weight`` None:
    not known, and left out.
    """
    by_label, by_prompt = _summed(label, len(names)), _summed(prompt, documents)
    spread = np.zeros((documents, len(names)), np.int64)
    np.add.at(spread, (prompt, label), tokens)
    idle = by_label(idle)
    one, three = ("block", "expert"), ("label", "block", "expert")
    variables: dict[str, Any] = {
        "usage_count": (three, by_label(count.astype(np.int64))),
        "idle_count": (three[:2], idle[..., 0]),
        "identity_count": (three[:2], idle[..., 1]),
        "token_count": (("label",), spread.sum(0)),
        "document_count": (("prompt", *one), by_prompt(count)),
        "document_label_count": (("prompt", "label"), spread),
        "expert_exists": (one, np.arange(count.shape[2]) < np.array([x.n_experts for x in layers])[:, None]),
        "top_k": (("block",), np.array([x.top_k for x in layers])),
        "module": (("block",), np.array([x.name for x in layers], object)),
    }
    mixed = len(prompt) != len(np.unique(prompt))
    if weight is not None:
        variables["usage_weight"] = (three, by_label(weight.astype(np.float64)))
        variables["document_weight"] = (("prompt", *one), by_prompt(weight))
        variables |= {"part_weight": (("part", *one), weight)} if mixed else {}
    if mixed:
        variables["part_count"] = (("part", *one), count)
        variables["part_prompt"], variables["part_label"] = (("part",), prompt), (("part",), label)
    coords = {
        "block": [x.block for x in layers], "label": np.array(names, object), "expert": np.arange(count.shape[2]),
    }  # fmt: skip
    return variables, coords


def _summed(group: np.ndarray, n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Sums of rows by the group they are in; rows that are groups themselves are handed through."""
    if n == len(group) and (group == np.arange(n)).all():
        return lambda values: values

    def total(values: np.ndarray) -> np.ndarray:
        found = np.zeros((n, *values.shape[1:]), values.dtype)
        np.add.at(found, group, values)
        return found

    return total


def numbered(blocks: int | Iterable[int] | None, n: int, there: Iterable[int]) -> list[int]:
    """Block numbers asked for, sorted; those below 0 count from the last of ``n``; None: all that are ``there``."""
    given = there if blocks is None else [blocks] if isinstance(blocks, (int, np.integer)) else blocks
    found = sorted({int(b) + n * (-n <= b < 0) for b in given})
    if not found:
        raise InputError("No block was asked for: blocks is empty. Leave it out for all that have experts.")
    return found


def document_labels(labels: Sequence[Any] | None, n: int, what: str = "prompts") -> list[str]:
    """One label for each of n documents; None: all are "all"."""
    if labels is None:
        return ["all"] * n
    if isinstance(labels, str) or len(labels) != n:
        given = "one text" if isinstance(labels, str) else f"{len(labels)}"
        raise InputError(f"labels has {given} and there are {n} {what}. Give one label for each of them.")
    if (i := next((i for i, x in enumerate(labels) if isinstance(x, LISTS)), None)) is not None:
        raise InputError(f"Label {i} is a list. Labels by token are for RoutingTracer; here each document has one.")
    return [str(x) for x in labels]


LISTS = (list, tuple, np.ndarray)


def _labels(labels: Sequence[Any] | None, ids: list[list[int]]) -> tuple[list[str], list[list[int]]]:
    """Label names, sorted, and for each token of each prompt the number of its label."""
    if labels is None or len(labels) != len(ids) or not any(isinstance(x, LISTS) for x in labels):
        labels = document_labels(labels, len(ids))
    spread: list[list[str]] = []
    for p, (label, own) in enumerate(zip(labels, ids, strict=True)):
        if isinstance(label, LISTS):
            if len(label) != len(own):
                raise InputError(
                    f"Prompt {p} has {len(own)} tokens and {len(label)} labels. Give one for each token, counting "
                    "those that the tokenizer adds."
                )
            spread.append([str(x) for x in label])
        else:
            spread.append([str(label)] * len(own))
    names = sorted({x for own in spread for x in own})
    number = {name: i for i, name in enumerate(names)}
    return names, [[number[x] for x in own] for own in spread]
