"""``RoutingTracer``: counts, for every document and label, which experts a model used, in the one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError, Refused
from workbench.moe import MoE, Routing, moe_of
from workbench.reading import Reading
from workbench.sites import Site

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run


class RoutingTracer:
    """Expert usage by document and by label; every prompt is a document.

    Args:
        labels: one for each prompt (a language, a domain, ...), or for each prompt a list with one for each token;
            None: all prompts are "all".
        blocks: blocks to trace; None: all that have experts.
        trace: also keep, for every token, the experts and weights of every slot.
        scores: also read the router's scores: mean gate probabilities and their entropy.  Needs a gate whose
            probabilities are known (softmax or sigmoid of the scores, found when the model is first traced).
        pairs: count experts that serve a token together, and from block to block.

    The reading's variables:
        usage_count   [label, block, expert]: slots in which the expert was applied, over tokens of the label.
        usage_weight  [label, block, expert]: the sum of the weights of those slots.
        idle_count    [label, block]: slots that reached no routed expert (skipped, dropped, identity experts).
        token_count   [label]
        document_count [prompt, block, expert]: usage_count of each document (all of its labels).  Tokens of a document
            are not independent: whatever is inferred is inferred over documents.
        document_label_count [prompt, label]: tokens of each label in each document.
        usage_probability [label, block, expert], gate_entropy [label, block] (nats): with scores=True.
        pair_count    [block, expert, expert_2]: tokens whose slots hold both; flow_count [block_from, expert,
            expert_2]: strongest expert here and in the next traced block; with pairs=True.
        expert_id, expert_weight [prompt, block, position, slot]: with trace=True; -1 and NaN: no token or no expert.

    Raises Refused for a dense model, for experts that hooks cannot see, and where a token's routing depends on the
    tokens beside it in the batch (capacity limits) unless prompts are read one at a time.
    """

    def __init__(
        self,
        labels: Sequence[Any] | None = None,
        *,
        blocks: int | Iterable[int] | None = None,
        trace: bool = False,
        scores: bool = False,
        pairs: bool = False,
    ) -> None:
        self.labels, self.blocks = labels, blocks
        self.trace, self.scores, self.pairs = trace, scores, pairs

    @staticmethod
    def applies(model: Model) -> bool:
        """Whether the model has experts at all."""
        return bool(model.moe)

    # ---------------------------------------------------------------- the reader

    def sites(self, model: Model) -> list[Site]:
        if not model.moe:
            raise Refused(
                f"{model.name} is a dense model: none of its {model.n_layers} blocks has routed experts, so there is "
                "no routing to trace."
            )
        n = model.n_layers
        wanted = [self.blocks] if isinstance(self.blocks, int) else self.blocks
        chosen = sorted(model.moe) if wanted is None else sorted({b % n if -n <= b < n else b for b in wanted})
        self.layers: list[MoE] = [moe_of(model, b) for b in chosen]
        if self.scores:
            for layer in self.layers:
                if not layer.router or not layer.gate:
                    raise Refused(
                        f"{model.name}: how the router of block {layer.block} makes probabilities of its scores is not "
                        "known (neither softmax nor sigmoid gives the applied weights). Trace without scores=True."
                    )
        sites = [Site("experts", layer.block) for layer in self.layers]
        return sites + [Site("router", layer.block) for layer in self.layers] * self.scores

    def begin(self, run: Run) -> None:
        self._run = run
        self._names, of = _labels(self.labels, [p.ids for p in run.prompts])
        self._of = [torch.tensor([own[i] for i in p.positions]) for own, p in zip(of, run.prompts, strict=True)]
        blocks, experts = len(self.layers), max(x.n_experts for x in self.layers)
        labels = len(self._names)
        self._count = torch.zeros(labels, blocks, experts, dtype=torch.long)
        self._weight = torch.zeros(labels, blocks, experts, dtype=torch.float64)
        self._idle = torch.zeros(labels, blocks, dtype=torch.long)
        self._tokens = torch.zeros(len(run.prompts), labels, dtype=torch.long)
        self._documents = torch.zeros(len(run.prompts), blocks, experts, dtype=torch.int32)
        self._probability = torch.zeros(labels, blocks, experts, dtype=torch.float64)
        self._entropy = torch.zeros(labels, blocks, dtype=torch.float64)
        self._pairs = torch.zeros(blocks * self.pairs, experts, experts, dtype=torch.long)
        self._flow = torch.zeros(max(0, blocks - 1) * self.pairs, experts, experts, dtype=torch.long)
        if self.trace:
            slots = max(x.top_k for x in self.layers)
            self._id = run.empty([blocks], np.int16, after=[slots])
            self._slot_weight = run.empty([blocks], np.float16, after=[slots])

    def observe(self, site: Site, states: Any, batch: Batch) -> None:
        i = next(i for i, x in enumerate(self.layers) if x.block == site.index)
        layer = self.layers[i]
        if not layer.causal and len(batch.prompts) > 1:
            raise Refused(
                f"In {self._run.model.name} a token's routing depends on the others in its batch (block {site.index}). "
                "Read with batch_size=1, so that every prompt is routed as it would be alone."
            )
        label = batch.scratch.get((RoutingTracer, id(self)))
        if label is None:
            # Rows stand prompt by prompt, in the order of each prompt's positions.
            label = torch.cat([self._of[p] for p in dict.fromkeys(batch.prompt.tolist())])
            batch.scratch[RoutingTracer, id(self)] = label
            batch.done.append(lambda: self._count_tokens(batch.prompt, label))
        if isinstance(states, Routing):
            self._routed(
                i, layer, batch.take(states.index).cpu(), batch.take(states.weight).float().cpu(), label, batch
            )
        else:
            self._scored(i, layer, batch.take(states).float(), label, batch)

    def _count_tokens(self, prompt: Tensor, label: Tensor) -> None:
        self._tokens.index_put_((prompt, label), torch.ones_like(label), accumulate=True)

    def _routed(self, i: int, layer: MoE, index: Tensor, weight: Tensor, label: Tensor, batch: Batch) -> None:
        real = (index >= 0) & (index < layer.n_experts)
        experts = self._count.shape[2]
        expert = index.clamp(0, experts - 1)
        place = label[:, None] * experts + expert
        size = len(self._names) * experts
        count = torch.bincount(place[real], minlength=size).view(-1, experts)
        mass = torch.bincount(place[real], weight[real].double(), minlength=size).view(-1, experts)
        idle = torch.bincount(label, (~real).sum(1).double(), minlength=len(self._names)).long()
        found, at = torch.unique(batch.prompt, return_inverse=True)
        mine = torch.bincount((at[:, None] * experts + expert)[real], minlength=len(found) * experts)
        pairs = flow = None
        if self.pairs:
            held = torch.zeros(len(index), experts).scatter_add_(1, expert, real.float()).clamp_max_(1)
            pairs = (held.T @ held).long().fill_diagonal_(0)
            first = expert.gather(1, weight.masked_fill(~real, -torch.inf).argmax(1, keepdim=True))[:, 0]
            first = first.masked_fill(~real.any(1), -1)
            before = batch.scratch.get((RoutingTracer, id(self), "first", i - 1))
            batch.scratch[RoutingTracer, id(self), "first", i] = first
            if before is not None:
                both = (before >= 0) & (first >= 0)
                flow = torch.bincount(before[both] * experts + first[both], minlength=experts**2).view(experts, experts)

        def commit() -> None:
            self._count[:, i] += count
            self._weight[:, i] += mass
            self._idle[:, i] += idle
            self._documents[found, i] += mine.view(len(found), experts).int()
            if pairs is not None:
                self._pairs[i] += pairs
            if flow is not None:
                self._flow[i - 1] += flow
            if self.trace:
                k = index.shape[1]
                prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
                self._id[prompt, i, slot, :k] = index.numpy()
                self._slot_weight[prompt, i, slot, :k] = torch.where(index >= 0, weight, torch.nan).numpy()

        batch.done.append(commit)

    def _scored(self, i: int, layer: MoE, scores: Tensor, label: Tensor, batch: Batch) -> None:
        p = layer.probabilities(scores)[:, : self._count.shape[2]].cpu().double()
        entropy = -torch.special.xlogy(p, p).sum(1)
        own = torch.zeros(len(self._names), p.shape[1], dtype=torch.float64).index_add_(0, label, p)
        total = torch.bincount(label, entropy, minlength=len(self._names))

        def commit() -> None:
            self._probability[:, i, : own.shape[1]] += own
            self._entropy[:, i] += total

        batch.done.append(commit)

    # ---------------------------------------------------------------- the result

    def end(self) -> Reading:
        tokens = self._tokens.sum(0)
        where = ("label", "block", "expert")
        known = np.arange(self._count.shape[2]) < np.array([x.n_experts for x in self.layers])[:, None]
        variables: dict[str, Any] = {
            "usage_count": (where, self._count.numpy()),
            "usage_weight": (where, self._weight.numpy()),
            "idle_count": (where[:2], self._idle.numpy()),
            "token_count": (("label",), tokens.numpy()),
            "document_count": (("prompt", "block", "expert"), self._documents.numpy()),
            "document_label_count": (("prompt", "label"), self._tokens.numpy()),
            "expert_exists": (("block", "expert"), known),
            "top_k": (("block",), np.array([x.top_k for x in self.layers])),
            "module": (("block",), np.array([x.name for x in self.layers], object)),
        }
        if self.scores:
            each = tokens.clamp_min(1)[:, None].double()
            variables["usage_probability"] = (where, (self._probability / each[..., None]).numpy())
            variables["gate_entropy"] = (where[:2], (self._entropy / each).numpy())
        if self.pairs:
            variables["pair_count"] = (("block", "expert", "expert_2"), self._pairs.numpy())
            variables["flow_count"] = (("block_from", "expert", "expert_2"), self._flow.numpy())
        if self.trace:
            slots = ("prompt", "block", "position", "slot")
            variables["expert_id"] = (slots, self._id)
            variables["expert_weight"] = (slots, self._slot_weight)
        blocks = [x.block for x in self.layers]
        coords = {
            "block": blocks, "label": np.array(self._names, object), "expert": np.arange(self._count.shape[2]),
            **({"block_from": blocks[:-1]} if self.pairs else {}),
        }  # fmt: skip
        data = self._run.dataset(variables, coords, reader="RoutingTracer", chart="usage")
        settings = {"name": "RoutingTracer", "trace": self.trace, "scores": self.scores, "pairs": self.pairs}
        return Reading(data, {"reader": {**settings, "gate": {x.block: x.gate for x in self.layers}}})


def _labels(labels: Sequence[Any] | None, ids: list[list[int]]) -> tuple[list[str], list[list[int]]]:
    """Label names, sorted, and for each token of each prompt the number of its label."""
    if labels is None:
        return ["all"], [[0] * len(i) for i in ids]
    if isinstance(labels, str) or len(labels) != len(ids):
        given = "one text" if isinstance(labels, str) else f"{len(labels)}"
        raise InputError(f"labels has {given} and there are {len(ids)} prompts. Give one label for each prompt.")
    spread: list[list[str]] = []
    for p, (label, own) in enumerate(zip(labels, ids, strict=True)):
        if isinstance(label, (list, tuple, np.ndarray)):
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
