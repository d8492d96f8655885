"""Sequences that grow while they are read: the model's own words, or vectors in the place of words.

Each pass shows one new column of a batch of sequences; since later inputs cannot change earlier states, one pass over
the whole sequence would show the same numbers.  Keys and values are kept between passes where that has been shown to
change nothing, and the whole sequence is run each time where not.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy import TOLERANCE
from workbench.engine.drivers import FEATURES, Hooks, Pass, token_budget
from workbench.engine.hooks import hooked, untouched
from workbench.errors import InputError, Refused
from workbench.inputs import Batch, Prompt, collate, plan

if TYPE_CHECKING:
    from workbench.model import Model


class Growing:
    """A batch of sequences that grow at their ends, left-padded.

    Attributes
    ----------
    logits : Tensor
        [batch, vocabulary] float32, of the last column.
    state : Tensor
        [batch, width] of the last column, behind the final norm.
    """

    def __init__(self, model: Model, inputs: dict[str, Any], *, cached: bool, embeds: bool) -> None:
        self.model, self.cached = model, cached
        self.mask = inputs["attention_mask"]
        self.embeds = embeds
        ids = inputs["input_ids"]
        self.fed = model.module.get_input_embeddings()(ids) if embeds else ids
        self.takes = set(inspect.signature(model.module.forward).parameters)
        self.past: Any = None

    @property
    def width(self) -> int:
        """Columns so far."""
        return self.fed.shape[1]

    def start(self) -> Any:
        return self._forward(self.fed)

    def feed(self, column: Tensor, going: Tensor | None = None) -> Any:
        """One more column: ids [batch], or vectors [batch, width].

        A row that is not ``going`` gets a column that nothing attends to.
        """
        going = torch.ones(len(self.mask), device=self.mask.device) if going is None else going
        self.mask = torch.cat([self.mask, going.to(self.mask)[:, None]], 1)
        self.fed = torch.cat([self.fed, column[:, None].to(self.fed)], 1)
        return self._forward(self.fed[:, -1:] if self.cached else self.fed)

    def _forward(self, shown: Tensor) -> Any:
        given: dict[str, Any] = {"inputs_embeds" if self.embeds else "input_ids": shown, "attention_mask": self.mask}
        if "position_ids" in self.takes:
            given["position_ids"] = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -shown.shape[1] :]
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = 1
        if "use_cache" in self.takes:
            given["use_cache"] = self.cached
        if self.cached and self.past is not None:
            given["past_key_values"] = self.past
        anatomy, layout = self.model.anatomy, self.model.anatomy.layout
        last = self.model.blocks[anatomy.last_block]

        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._last = layout.find(output)

        with hooked(after={last: keep}):
            output = self.model.module(**given)
        self.past = getattr(output, "past_key_values", None) if self.cached else None
        self.logits = output.logits[:, -1].float()
        return output

    @property
    def state(self) -> Tensor:
        return self.model.replay.features(self._last[:, -1])


class Rollout(Hooks):
    """What drives sequences that grow: the prompts in one pass, then column after column.

    ``prompts`` have the positions to be shown of the first pass; new columns come in the slots behind them.  Made for
    one run: what is noted of a sequence is kept by the number of its prompt.
    """

    embeds = False
    alone = False
    """Whether sequences must run one at a time."""
    looks = True
    """Whether the last column is run, which only those want who look at it."""

    def __init__(self, model: Model, prompts: Sequence[Prompt], steps: int, *, cached: bool | None = None) -> None:
        super().__init__(model, prompts, "left")
        self.steps, limit = steps, model.anatomy.pad_limit
        self.begun = [len(prompt.ids) for prompt in prompts]
        longest = max(self.begun) + steps
        # Keys of a cache would keep the rotary frequencies of shorter prompts.
        exact = (limit is None or longest <= limit) and cache_is_exact(model, embeds=self.embeds)
        self.cached = exact if cached is None else cached

    def supports(self, feature: str) -> bool:
        return feature in FEATURES and feature != "shards"

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        # Room for what they grow to.
        own = [Prompt([0] * (self.begun[i] + self.steps), "") for i in members]
        pads = self.model.anatomy.pad_width("left")
        size = 1 if self.alone else batch_size
        found = plan(own, token_budget(self.model), size, pads)
        return [[members[k] for k in some] for some in found]

    def begin(self, members: list[int]) -> None:
        """A batch begins (again): forget what was noted of its members."""

    def next(self, members: list[int], place: int, grown: Growing, going: Tensor) -> tuple[Tensor, Tensor] | None:
        """The column of step ``place``, and which rows go on with it; None: there is no such step for any of them."""
        raise NotImplementedError

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        self.begin(members)
        first = collate(self.model, self.prompts, members, "left")
        if not self.supports("whole"):
            first.first = None
        grown = Growing(self.model, first.inputs, cached=self.cached, embeds=self.embeds)
        yield Pass(first, grown.start)
        going = torch.ones(len(members), dtype=torch.bool)
        slots = [len(self.prompts[i].positions) for i in members]
        for place in range(self.steps):
            found = self.next(members, place, grown, going)
            if found is None:
                continue
            column, going = found
            if place == self.steps - 1 and not self.looks:
                return
            width = 1 if grown.cached else grown.width + 1
            rows = going.nonzero()[:, 0]
            mine = torch.tensor(members)[rows]
            batch = Batch(
                members, {}, (rows * width + width - 1).to(self.model.device), mine,
                torch.tensor(slots)[rows] + place, torch.tensor([self.begun[i] for i in members])[rows] + place,
                column.long().cpu()[rows] if column.ndim == 1 else torch.zeros(len(rows), dtype=torch.long),
            )  # fmt: skip
            yield Pass(batch, partial(grown.feed, column, going.to(self.model.device) if self.embeds else None))


class Writing(Rollout):
    """The model writes: each row's next token is drawn by its own random number.

    Parameters
    ----------
    uniform
        [prompt, step] numbers in [0, 1): which token of the distribution is drawn.
    temperature, top_k, top_p
        Of the distribution; temperature 0: the likeliest token.
    ends
        Ids that end a text.

    Attributes
    ----------
    written : list[list[int]]
        Of each prompt, the ids that were written, with the one that ended it.
    """

    def __init__(
        self, model: Model, prompts: Sequence[Prompt], uniform: np.ndarray, *, temperature: float = 1.0,
        top_k: int | None = None, top_p: float = 1.0, ends: Sequence[int] = (), cached: bool | None = None,
    ) -> None:  # fmt: skip
        writes(model, max((len(prompt.ids) for prompt in prompts), default=0) + uniform.shape[1])
        super().__init__(model, prompts, uniform.shape[1], cached=cached)
        self.uniform, self.ends = uniform, torch.tensor(sorted(ends), dtype=torch.long)
        self.choose = partial(drawn, temperature=temperature, top_k=top_k, top_p=top_p)
        self.written: list[list[int]] = [[] for _ in prompts]

    def begin(self, members: list[int]) -> None:
        for i in members:
            self.written[i] = []
            del self.prompts[i].ids[self.begun[i] :]

    def next(self, members: list[int], place: int, grown: Growing, going: Tensor) -> tuple[Tensor, Tensor] | None:
        u = torch.from_numpy(self.uniform[members, place]).to(grown.logits.device)
        column = self.choose(grown.logits, u)
        own = column.cpu()
        if place:
            last = torch.tensor([self.written[i][-1] for i in members])
            going = going & ~torch.isin(last, self.ends)
            if not bool(going.any()):
                return None
        for row, i in enumerate(members):
            if going[row]:
                self.written[i].append(int(own[row]))
                self.prompts[i].ids.append(int(own[row]))
        return column, going


def drawn(logits: Tensor, u: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """[batch] token ids: the first whose cumulative probability exceeds the row's own number ``u`` [batch].

    Parameters
    ----------
    logits
        [batch, vocabulary] float32.
    temperature
        0: the likeliest token.
    top_k, top_p
        Keep only the likeliest so many tokens; only those before which the cumulative probability is below top_p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    if top_k is not None or top_p < 1:
        ordered, ids = p.sort(-1, descending=True)
        kept = ordered.cumsum(-1) - ordered < top_p
        if top_k is not None:
            kept[:, top_k:] = False
        p = torch.zeros_like(p).scatter_(-1, ids, ordered * kept)
    cumulative = p.cumsum(-1)
    # right=True: a token of probability 0 is never chosen, also by the number 0.
    chosen = torch.searchsorted(cumulative, u.double()[:, None] * cumulative[:, -1:], right=True)
    return chosen[:, 0].clamp_max(logits.shape[-1] - 1)


def uniforms(prompts: Sequence[Sequence[int]], draws: int, steps: int, seed: int) -> np.ndarray:
    """[prompt * draw, step] numbers in [0, 1) that belong to a prompt's tokens and the number of the draw.

    They do not depend on the other prompts; a prompt that comes again goes on with further draws.
    """
    found, times = [], {}
    for ids in prompts:
        for _ in range(draws):
            k = times[tuple(ids)] = times.get(tuple(ids), -1) + 1
            key = hashlib.blake2b(f"{seed} {k} ".encode() + np.array(ids, "<i8").tobytes(), digest_size=16).digest()
            found.append(np.random.default_rng(int.from_bytes(key, "little")).random(steps))
    return np.array(found).reshape(-1, steps)


def endings(model: Model) -> list[int]:
    """Tokens that end a text."""
    own = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, (list, tuple)) else [own]
    return sorted({x for x in (*own, getattr(model.tokenizer, "eos_token_id", None)) if isinstance(x, int)})


def writes(model: Model, length: int) -> None:
    """Refused for a model that cannot write, InputError where it would pass the end of its context."""
    module: Any = model.module
    able = getattr(module, "can_generate", None)
    if (callable(able) and not able()) or getattr(module.config, "is_encoder_decoder", False):
        raise Refused(
            f"{model.name} ({type(module).__name__}) does not continue texts: it is an encoder, or has one. Read it "
            "with workbench.read."
        )
    if model.context_length is not None and length > model.context_length:
        raise InputError(
            f"The longest prompt and what is written behind it are {length} tokens, and {model.name} reads at most "
            f"{model.context_length}. Write less (max_new_tokens), or cut the prompt."
        )


# ---------------------------------------------------------------- proofs


def cache_is_exact(model: Model, *, embeds: bool) -> bool:
    """Whether sequences that grow give the same logits with the model's cache as without; asked once."""
    model.renew()
    key = f"cache is exact, embeds={embeds}"
    if key not in model.known:
        model.known[key] = _cache_is_exact(model, embeds)
    return model.known[key]


def probe_prompts(model: Model) -> list[Prompt]:
    """Two prompts of different length, with room for three more tokens."""
    generator = torch.Generator().manual_seed(0)
    room = min(7, (model.context_length or 99) - 3)
    lengths = (room, max(2, room - 3))
    drawn = [torch.randint(3, min(96, model.vocab_size), (n,), generator=generator).tolist() for n in lengths]
    return [Prompt(own, "", positions=[len(own) - 1]) for own in drawn]


def _cache_is_exact(model: Model, embeds: bool) -> bool:
    takes = set(inspect.signature(model.module.forward).parameters)
    if not {"past_key_values", "use_cache"} <= takes or model.anatomy.layout.prefix:
        return False
    prompts = probe_prompts(model)
    column: Callable[[int], Tensor] = (
        (lambda n: model.token_vectors[5:9].float().mean(0).expand(n, -1).to(model.device))
        if embeds
        else (lambda n: torch.full((n,), 5, device=model.device))
    )

    def logits(members: list[int], cached: bool) -> Tensor:
        grown = Growing(model, collate(model, prompts, members, "left").inputs, cached=cached, embeds=embeds)
        grown.start()
        for _ in range(2):
            grown.feed(column(len(members)))
        return grown.logits

    together = [[0, 1]] if "left" in model.anatomy.pad_sides else [[0], [1]]
    with untouched(model.module):
        alone = torch.cat([logits([i], cached=False) for i in range(len(prompts))])
        try:
            found = torch.cat([logits(members, cached=True) for members in together])
        except Exception:  # a cache of its own kind: without it, then
            return False
    return apart(found, alone) <= TOLERANCE.get(model.dtype, 1e-4)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest of ``b``."""
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
