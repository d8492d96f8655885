"""``RoutingTracer``: counts, for every document and label, which experts a model used, in the one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy.moe import MoE, Routing, moe_of
from workbench.errors import InputError, Refused
from workbench.reading import Reading
from workbench.sites import Site
from workbench.tokens import unknown_share

GATE = ("entropy", "top", "margin", "chosen", "log_sum_square", "moved")
"""Statistics of a token's gate distribution p over E routed experts (identity experts left out), of which k are
chosen: its entropy (nats); its largest value; p of the k-th less p of the next (identity experts among them); the sum
of p over the experts applied; the squared log-sum-exp of the scores (the z-loss, ST-MoE eq. 5); slots whose expert is
not among the gate's own top k (a bias or groups chose it)."""
BINS = 20

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
        self.layers: list[MoE] = [moe_of(model, b) for b in numbered(self.blocks, model.n_layers, model.moe)]
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
        # A part is the tokens of one label in one document: nearly always the document.
        self._parts: list[tuple[int, int]] = []
        self._part = torch.zeros(len(of), max(len(p.positions) for p in run.prompts), dtype=torch.long)
        for i, (own, p) in enumerate(zip(of, run.prompts, strict=True)):
            number = {label: len(self._parts) + j for j, label in enumerate(sorted({own[at] for at in p.positions}))}
            self._parts += [(i, label) for label in number]
            self._part[i, : len(p.positions)] = torch.tensor([number[own[at]] for at in p.positions])
        parts, blocks, experts = len(self._parts), len(self.layers), max(x.n_experts for x in self.layers)
        self._label = torch.tensor([label for _, label in self._parts])
        self._tokens = torch.zeros(parts, dtype=torch.long)
        self._count = torch.zeros(parts, blocks, experts, dtype=torch.int32)
        self._weight = torch.zeros(parts, blocks, experts)
        self._idle = torch.zeros(parts, blocks, 2, dtype=torch.long)
        scored = parts * self.scores
        self._probability = torch.zeros(scored, blocks, experts)
        self._gate = torch.zeros(scored, blocks, len(GATE), dtype=torch.float64)
        self._histogram = torch.zeros(len(self._names) * self.scores, blocks, BINS, dtype=torch.long)
        self._pairs = torch.zeros(blocks * self.pairs, experts, experts, dtype=torch.long)
        self._flow = torch.zeros(max(0, blocks - 1) * self.pairs, experts, experts, dtype=torch.long)
        if self.trace:
            slots = max(x.top_k for x in self.layers)
            self._id = run.empty([blocks], np.int16, after=[slots])
            self._slot_weight = run.empty([blocks], np.float16, after=[slots])
            if self.scores:
                self._token_probability = run.empty([blocks], np.float16, after=[experts])

    def observe(self, site: Site, states: Any, batch: Batch) -> None:
        i = next(i for i, x in enumerate(self.layers) if x.block == site.index)
        layer = self.layers[i]
        if not layer.causal and len(batch.prompts) > 1:
            raise Refused(
                f"In {self._run.model.name} a token's routing depends on the others in its batch (block {site.index}). "
                "Read with batch_size=1, so that every prompt is routed as it would be alone."
            )
        part = batch.scratch.get((RoutingTracer, id(self)))
        if part is None:
            part = self._part[batch.prompt, batch.slot]
            batch.scratch[RoutingTracer, id(self)] = part
            batch.done.append(lambda: self._tokens.index_add_(0, part, torch.ones_like(part)))
        if isinstance(states, Routing):
            index, weight = batch.take(states.index).cpu(), batch.take(states.weight).float().cpu()
            self._routed(i, layer, index, weight, part, batch)
        else:
            # A router runs before its experts; what it says of them waits until they are known.
            batch.scratch[RoutingTracer, id(self), "scores", i] = batch.take(states).float()

    def _routed(self, i: int, layer: MoE, index: Tensor, weight: Tensor, part: Tensor, batch: Batch) -> None:
        real = (index >= 0) & (index < layer.n_experts)
        experts = self._count.shape[2]
        expert = index.clamp(0, experts - 1)
        found, at = torch.unique(part, return_inverse=True)
        place, size = (at[:, None] * experts + expert)[real], len(found) * experts
        count = torch.bincount(place, minlength=size).view(-1, experts)
        mass = torch.bincount(place, weight[real].double(), minlength=size).view(-1, experts)
        none = [torch.bincount(at, x.sum(1).double()).long() for x in (~real, index >= layer.n_experts)]
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
        scores = batch.scratch.pop((RoutingTracer, id(self), "scores", i), None)
        if scores is not None:
            self._scored(i, layer, scores, index, found, at, batch)

        def commit() -> None:
            self._count[found, i] += count.int()
            self._weight[found, i] += mass.float()
            self._idle[found, i] += torch.stack(none, 1)
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

    def _scored(
        self, i: int, layer: MoE, scores: Tensor, index: Tensor, found: Tensor, at: Tensor, batch: Batch
    ) -> None:
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
        p = p.cpu()
        own = torch.zeros(len(found), p.shape[1]).index_add_(0, at, p)
        totals = torch.zeros(len(found), len(GATE), dtype=torch.float64).index_add_(0, at, gate)
        column = (gate[:, 0] / max(np.log(layer.n_experts), 1e-9) * BINS).long().clamp(0, BINS - 1)
        bins = torch.bincount(self._label[found][at] * BINS + column, minlength=len(self._names) * BINS).view(-1, BINS)

        def commit() -> None:
            self._probability[found, i, : own.shape[1]] += own
            self._gate[found, i] += totals
            self._histogram[:, i] += bins
            if self.trace:
                prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
                self._token_probability[prompt, i, slot, : p.shape[1]] = p.numpy()

        batch.done.append(commit)

    # ---------------------------------------------------------------- the result

    def end(self) -> Reading:
        prompt, label = np.array(self._parts).reshape(-1, 2).T
        variables, coords = assembled(
            self._names, prompt, label, len(self._run.prompts), self._tokens.numpy(), self._count.numpy(),
            self._weight.numpy(), self._idle.numpy(), self.layers,
        )  # fmt: skip
        if self.scores:
            tokens = self._tokens.numpy()
            by_label, by_prompt = (
                _summed(x, n) for x, n in ((label, len(self._names)), (prompt, len(self._run.prompts)))
            )

            def mean(values: np.ndarray, by: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
                return by(values.astype(float)) / by(tokens).clip(1).reshape(-1, 1, 1)

            p, gate = self._probability.numpy(), self._gate.numpy()
            three = ("block", "expert")
            variables["usage_probability"] = (("label", *three), mean(p, by_label))
            variables["gate_entropy"] = (("label", "block"), mean(gate, by_label)[..., 0])
            variables["document_probability"] = (("prompt", *three), mean(p, by_prompt).astype(np.float32))
            variables["document_gate"] = (("prompt", "block", "statistic"), mean(gate, by_prompt))
            if "part_count" in variables:
                variables["part_probability"] = (("part", *three), p / tokens.clip(1).reshape(-1, 1, 1))
                variables["part_gate"] = (("part", "block", "statistic"), gate / tokens.clip(1).reshape(-1, 1, 1))
            variables["gate_histogram"] = (("label", "block", "bin"), self._histogram.numpy())
            coords["statistic"] = np.array(GATE, object)
            coords["bin"] = (np.arange(BINS) + 0.5) / BINS
        if self.pairs:
            variables["pair_count"] = (("block", "expert", "expert_2"), self._pairs.numpy())
            variables["flow_count"] = (("block_from", "expert", "expert_2"), self._flow.numpy())
            coords["block_from"] = coords["block"][:-1]
        unknown = [unknown_share(self._run.model.tokenizer, p.ids) for p in self._run.prompts]
        variables["document_unknown"] = (("prompt",), np.array(unknown))
        if self.trace:
            slots = ("prompt", "block", "position", "slot")
            variables["expert_id"] = (slots, self._id)
            variables["expert_weight"] = (slots, self._slot_weight)
            if self.scores:
                variables["gate_probability"] = ((*slots[:3], "expert"), self._token_probability)
        data = self._run.dataset(variables, coords, reader="RoutingTracer", chart="usage")
        settings = {"name": "RoutingTracer", "trace": self.trace, "scores": self.scores, "pairs": self.pairs}
        return Reading(data, {"reader": {**settings, "gate": {x.block: x.gate for x in self.layers}}})


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
