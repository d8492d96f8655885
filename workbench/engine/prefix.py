"""Runs beginnings that prompts share once: what follows is run behind their keys and values.

The framings of one set of items repeat a long instruction, and the continuations of one item its whole text.  Keys and
values of a shared beginning are kept (transformers' ``DynamicCache``) and what follows is run behind them.  A later
token cannot change an earlier one's keys and values, so the states are those of whole prompts, to rounding.

That holds for attention, full or sliding, alone: other caches (recurrent, hybrid, compressed) are not touched.  And it
is tested at the start of every run, on two of its prompts: where their states in parts are not those of whole
prompts, all are run whole.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.anatomy import TOLERANCE, text_config
from workbench.engine.capture import capture
from workbench.engine.drivers import FEATURES, Hooks, Pass, token_budget
from workbench.engine.hooks import StopForward, hooked, run, untouched
from workbench.inputs import Prompt, collate
from workbench.sites import Site

if TYPE_CHECKING:
    from workbench.model import Model

LEAST = 16
"""Tokens: shorter beginnings are not worth a pass of their own; nor are fewer prompts, because of the test."""
SHARE = 0.2
"""A group is run in parts where it saves at least so much of its tokens."""


class Prefix(Hooks):
    """Prompts behind their shared beginnings, where that saves enough and is proved exact; the others whole.

    Attributes
    ----------
    saved
        After a run, how many tokens were not run, those of the test taken off.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt], padding_side: str = "right") -> None:
        super().__init__(model, prompts, "right")
        limit, longest = model.anatomy.pad_limit, max((len(p.ids) for p in prompts), default=0)
        # Keys of a beginning would keep the rotary frequencies of shorter prompts.
        able = _cached(model) is not None and (limit is None or longest <= limit)
        able = able and not any(p.extras for p in prompts) and all(p.positions for p in prompts)
        # What is read must be behind the shared part.
        groups = shared([p.ids[: p.positions[0]] for p in prompts]) if able else []
        self.heads = [tuple(prompts[members[0]].ids[:depth]) for members, depth in groups]
        self.head = {i: g for g, (members, _) in enumerate(groups) for i in members}
        self.rests = {i: self._rest(i) for i in self.head}
        self._held: tuple[dict[int, int], Any] = ({}, None)
        self._ran = 0
        self._total = 0
        self._proof: bool | None = None

    @property
    def saved(self) -> int:
        return max(0, self._total - self._ran)

    def supports(self, feature: str) -> bool:
        return feature in FEATURES and feature != "whole"

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        self._total += sum(len(self.prompts[i].ids) for i in members)
        parts = self._parted([i for i in members if i in self.head], token_budget(self.model), batch_size)
        if self._proof is None:
            with untouched(self.model.module):
                self._proof = len(self.head) >= LEAST and self._proved([parts[0][0], parts[0][-1]])
            if not self._proof:
                self.head = {}
        parts = parts if self._proof else []
        return [*parts, *super().batches([i for i in members if i not in self.head], batch_size)]

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        yield self._pass(members, parted=members[0] in self.head)

    def forget(self) -> None:
        self._held = ({}, None)

    def _pass(self, members: list[int], *, parted: bool) -> Pass:
        self._ran += sum(len((self.rests if parted else self.prompts)[i].ids) for i in members)
        if not parted:
            return Pass(collate(self.model, self.prompts, members))
        batch = collate(self.model, self.rests, members)
        depth = self._depth(members[0])
        batch.position, batch.first = batch.position + depth, None
        self._hold(members)
        return Pass(batch, partial(self._behind, batch, depth, [self._held[0][self.head[i]] for i in members]))

    def _rest(self, i: int) -> Prompt:
        prompt, depth = self.prompts[i], len(self.heads[self.head[i]])
        return Prompt(prompt.ids[depth:], prompt.text, positions=[p - depth for p in prompt.positions])

    def _parted(self, members: Sequence[int], budget: int, batch_size: int | None) -> list[list[int]]:
        """Batches of prompts whose shared beginnings have one length, so that no pad comes to stand inside a row."""
        order = sorted(members, key=lambda i: (-self._depth(i), self.head[i], -len(self.rests[i].ids), i))
        batches: list[list[int]] = []
        longest = 0
        for i in order:
            current = batches[-1] if batches else None
            if current and self._depth(current[0]) == self._depth(i):
                width = max(longest, len(self.rests[i].ids))
                # Keys and values of whole rows are held, whatever is run of them.
                held = (len(current) + 1) * (self._depth(i) + width)
                if len(current) < batch_size if batch_size else held <= budget:
                    current.append(i)
                    longest = width
                    continue
            batches.append([i])
            longest = len(self.rests[i].ids)
        return batches

    def _depth(self, i: int) -> int:
        return len(self.heads[self.head[i]])

    def _hold(self, members: list[int]) -> None:
        """Have the keys and values of the members' beginnings."""
        groups = sorted({self.head[i] for i in members})
        if all(g in self._held[0] for g in groups):
            return
        cache = _cached(self.model)
        ids = torch.tensor([self.heads[g] for g in groups], device=self.model.device)
        self._forward(ids, torch.ones_like(ids), cache)
        self._held = ({g: row for row, g in enumerate(groups)}, cache)
        self._ran += ids.numel()

    def _behind(self, batch: Any, depth: int, rows: list[int]) -> None:
        """Run the rests of prompts behind their beginnings."""
        # Layers replace their tensors when they grow: the held ones stay as they are.
        cache = copy.copy(self._held[1])
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(torch.tensor(rows, device=self.model.device))
        mask = batch.inputs["attention_mask"]
        self._forward(batch.inputs["input_ids"], torch.cat([mask.new_ones(len(rows), depth), mask], 1), cache)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> None:
        """As far as the last block, whose hooks come first."""

        def stop(*_: Any) -> None:
            raise StopForward

        last = self.model.blocks[self.model.anatomy.last_block]
        with hooked(after={last: stop}):
            run(
                self.model.module,
                {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True},
            )

    def _proved(self, members: list[int]) -> bool:
        """Whether parts give the states that whole prompts do, on these prompts."""
        site, seen = Site("resid", self.model.n_layers), []
        try:
            for parted in (False, True):
                batch, forward = self._pass(members, parted=parted)
                seen.append(capture(self.model, batch, {site: [0]}, [batch.rows], forward).states[site][0].float())
        except Exception:  # whatever a model that knows nothing of such caches raises: it is then run whole
            return False
        apart = (seen[0] - seen[1]).abs().max() / seen[0].abs().max().clamp_min(1e-30)
        return bool(apart <= TOLERANCE.get(self.model.dtype, 1e-4))


def shared(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Groups of prompts that begin alike, and how many tokens each shares: those that save the most.

    A group is all prompts with one beginning, and a prompt is in one group at most: of nested beginnings (instruction;
    instruction and item) those are taken that leave the fewest tokens to run, found by joining neighbours in sorted
    order from the longest beginning down.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    total = [0]
    for i in order:
        total.append(total[-1] + len(prompts[i]))
    alike = [common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    # Of each open beginning: its length, its first prompt, and what groups inside it save.
    stack: list[tuple[int, int, int, list[tuple[int, int, int]]]] = [(0, 0, 0, [])]
    for end, depth in enumerate([*alike, 0], 1):
        first, best, chosen = end - 1, 0, []
        while stack[-1][0] > depth:
            long, first, inside, groups = stack.pop()
            best, chosen = best + inside, groups + chosen
            own = (end - first - 1) * long
            if long >= LEAST and own >= SHARE * (total[end] - total[first]) and own >= best:
                best, chosen = own, [(first, end, long)]
        if stack[-1][0] == depth:
            long, begun, inside, groups = stack.pop()
            first, best, chosen = begun, best + inside, groups + chosen
        stack.append((depth, first, best, chosen))
    return [(order[first:end], depth) for first, end, depth in stack[0][3]]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cached(model: Model) -> Any:
    """An empty cache of keys and values for this model; None where it keeps anything else, or might."""
    module: Any = model.module
    layout = model.anatomy.layout
    base = module.get_base_model() if hasattr(module, "get_base_model") else module  # inside an adapter
    takes = inspect.signature(base.forward).parameters
    config = text_config(base)
    if (
        not {"past_key_values", "use_cache", "attention_mask"} <= set(takes)
        or getattr(config, "is_encoder_decoder", False)
        or "right" not in model.anatomy.pad_sides
        or layout.prefix
        or layout.axes != "BTW"
    ):
        return None
    cache = transformers.DynamicCache(config=config)
    kinds = {type(layer) for layer in cache.layers}
    return cache if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else None
