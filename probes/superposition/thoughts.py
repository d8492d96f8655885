"""Latent thoughts: vectors that a model feeds back to itself in the place of words, with readers looking on.

A *thought* is an input embedding that is no token's.  ``think`` reads the prompts, lets a policy make the thoughts one
after the other, and feeds the tokens of ``then`` after them.  Places are counted in thoughts: place 0 is the prompt's
last token, place t the t-th thought, and the places after those are the tokens of ``then``.  The state at place t is
what thought t + 1 is made of, and reading it is reading that thought before it is fed.

Any reader of the workbench can look on.  It sees every place once, in a batch of its own, while the model runs with its
cache; since later inputs cannot change earlier states, a pass over the whole sequence would show it the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.anatomy import TOLERANCE
from workbench.engine.hooks import neutral, untouched
from workbench.engine.rollout import Growing, Rollout, apart, probe_prompts
from workbench.engine.run import run_readers
from workbench.errors import InputError, Refused
from workbench.inputs import Prompt, collate, embeddable, encode, text_ids
from workbench.model import Model
from workbench.readers import Reader, Run, settled
from workbench.reading import Reading

Edit = Callable[[int, Tensor, list[int]], Tensor]
"""(place of the thought, thoughts [batch, width], index of each row's prompt) -> the thoughts to feed instead."""


@dataclass
class Step:
    """What a policy makes the next thought of.

    place: the thought's number, from 1.  state [batch, width]: of the last place, behind the final norm.  logits
    [batch, vocabulary], of the last place.  prompts: index of each row's prompt.  draw: random numbers of each row that
    do not depend on its batch: draw(shape) -> [batch, *shape] uniform in (0, 1).
    """

    model: Model
    place: int
    state: Tensor
    logits: Tensor
    prompts: list[int]
    draw: Callable[..., Tensor]


class Policy(Protocol):
    """How thoughts are made."""

    @property
    def n(self) -> int:
        """Thoughts at most."""
        ...

    @property
    def stops(self) -> bool:
        """Whether a row may stop before the others; such rows are thought one at a time."""
        ...

    def next(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The next thoughts [batch, width], and what is to be noted of them, {name: [batch, ...]}."""
        ...

    def stopped(self, notes: list[dict[str, Tensor]]) -> Tensor | None:
        """[batch] whether a row has thought enough, from the notes so far; None: nobody stops early."""
        ...


@dataclass(frozen=True)
class ContinuousThought:
    """The last state behind the final norm is fed back as it is (Coconut, Hao et al. 2024, arXiv 2412.06769).

    n: thoughts; 0 is the model without thoughts.  scale: a factor on each thought (models that were trained otherwise).
    """

    n: int
    scale: float = 1.0
    stops = False

    def next(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        width = step.model.token_vectors.shape[1]
        if step.state.shape[1] != width:
            raise Refused(
                f"{step.model.name}: states behind the final norm have width {step.state.shape[1]} and input "
                f"embeddings {width}, so a state cannot be fed back. Use SoftThought."
            )
        return step.state * self.scale, {}

    def stopped(self, notes: list[dict[str, Tensor]]) -> Tensor | None:
        return None


@dataclass(frozen=True)
class SoftThought:
    """A mixture of token embeddings by the model's own next-token probabilities (Soft Thinking, arXiv 2505.15778).

    Args:
        n: thoughts at most.
        temperature, top_k, top_p, min_p: cut the distribution, in this order.
        keep: at most so many tokens in the mixture, their weights renormalised.  1: greedy decoding.
        stop_entropy, patience: a row stops once the entropy of its distribution, uncut and at temperature 1, has been
            below ``stop_entropy`` nats for ``patience`` thoughts running.  None: never.
        gumbel: None, or the temperature of a Gumbel-softmax over the tokens kept: log p + noise, over it.

    Notes: token_id, weight [prompt, thought, rank]; mixture_entropy, entropy [prompt, thought] in nats, of the weights
    and of the uncut distribution.
    """

    n: int
    temperature: float = 0.6
    top_k: int | None = 30
    top_p: float = 0.95
    min_p: float = 0.001
    keep: int = 10
    stop_entropy: float | None = None
    patience: int = 256
    gumbel: float | None = None

    @property
    def stops(self) -> bool:
        return self.stop_entropy is not None

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.keep < 1 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise InputError(
                f"temperature={self.temperature}, keep={self.keep}, top_p={self.top_p}, min_p={self.min_p}: the "
                "temperature must be above 0, keep at least 1, top_p in (0, 1] and min_p in [0, 1]."
            )

    def next(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        uncut = step.logits.log_softmax(-1)
        p, ids = (step.logits / self.temperature).softmax(-1).sort(-1, descending=True)
        kept = torch.ones_like(p, dtype=torch.bool)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        # A token stays while the mass before it is below top_p: the first one always does.
        kept &= p.cumsum(-1) - p < self.top_p
        kept &= p >= self.min_p * p[:, :1]
        kept[:, self.keep :] = False
        width = min(self.keep, p.shape[1])
        weight, ids, kept = p[:, :width], ids[:, :width], kept[:, :width]
        if self.gumbel is not None:
            noise = -(-step.draw(width).to(weight).clamp(1e-12, 1 - 1e-7).log()).log()
            weight = ((weight.clamp_min(1e-30).log() + noise) / self.gumbel).masked_fill(~kept, -torch.inf).softmax(-1)
        weight = weight * kept
        weight = weight / weight.sum(-1, keepdim=True)
        notes = {
            "token_id": ids, "weight": weight, "mixture_entropy": torch.special.entr(weight).sum(-1),
            "entropy": torch.special.entr(uncut.exp()).sum(-1),
        }  # fmt: skip
        return mixed(step.model, ids, weight), notes

    def stopped(self, notes: list[dict[str, Tensor]]) -> Tensor | None:
        if self.stop_entropy is None or len(notes) < self.patience:
            return None
        return torch.stack([x["entropy"] < self.stop_entropy for x in notes[-self.patience :]]).all(0)


@dataclass(frozen=True)
class ForcedMixture:
    """Thoughts that are chosen beforehand: the mean of the embeddings of given tokens (arXiv 2604.06374, its test f).

    Args:
        tokens: for each thought the token ids of its mixture; [thought][token], or [prompt][thought][token].
    """

    tokens: Sequence[Any]
    stops = False

    def __post_init__(self) -> None:
        rows = [list(x) for x in self.tokens] if self._own else [list(self.tokens)]
        if len({len(row) for row in rows}) > 1 or any(not len(ids) for row in rows for ids in row):
            raise InputError(
                "ForcedMixture takes token ids for each thought, at least one, and as many thoughts for every prompt: "
                "[[5, 6], [7]] or, by prompt, [[[5], [6]], [[7], [8]]]."
            )

    @property
    def n(self) -> int:
        return max((len(own) for own in self.tokens), default=0) if self._own else len(self.tokens)

    @property
    def _own(self) -> bool:
        first = self.tokens[0] if len(self.tokens) else ()
        return len(first) > 0 and not isinstance(first[0], (int, np.integer))

    def next(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = [(self.tokens[p] if self._own else self.tokens)[step.place - 1] for p in step.prompts]
        rows = []
        for ids in chosen:
            at = torch.tensor([embeddable(step.model, [int(i) for i in ids], "A thought")], device=step.state.device)
            rows.append(mixed(step.model, at, torch.full(at.shape, 1 / at.shape[1], device=at.device)))
        return torch.cat(rows), {}

    def stopped(self, notes: list[dict[str, Tensor]]) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Given:
    """Thoughts that are there already: vectors [prompt, thought, width], such as another run's; NaN: it had stopped."""

    vectors: Any = field(repr=False)

    @property
    def n(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def stops(self) -> bool:
        return bool(np.isnan(np.asarray(self.vectors)).any())

    def next(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        table = np.asarray(self.vectors)
        rows = table[step.prompts, step.place - 1]
        after = table[step.prompts, step.place] if step.place < table.shape[1] else np.full_like(rows, np.nan)
        last = torch.from_numpy(np.isnan(after).any(-1))
        return torch.as_tensor(rows, dtype=step.state.dtype, device=step.state.device), {"last": last}

    def stopped(self, notes: list[dict[str, Tensor]]) -> Tensor | None:
        return notes[-1]["last"]


def mixed(model: Model, ids: Tensor, weight: Tensor) -> Tensor:
    """[batch, width]: input embeddings of tokens [batch, k], added up with weights [batch, k]."""
    rows = model.module.get_input_embeddings()(ids)
    return (rows * weight.to(rows.dtype)[..., None]).sum(1)


@dataclass
class Thoughts:
    """What was thought.

    data: vector [prompt, thought, width], the thoughts as they were fed (NaN behind a row's stop); length [prompt];
    and the policy's notes.  readings: one for each reader, whose positions are places (0: the prompt's last token).
    """

    data: xr.Dataset
    readings: tuple[Reading, ...]

    @property
    def vectors(self) -> np.ndarray:
        """[prompt, thought, width]"""
        return self.data["vector"].values


@neutral()
def think(
    model: Model,
    inputs: Any,
    policy: Policy,
    *,
    readers: Sequence[Reader] = (),
    then: str | Sequence[int] | None = None,
    edit: Edit | None = None,
    batch_size: int | None = None,
    cache: bool | None = None,
    seed: int = 0,
) -> Thoughts:
    """Let a model think, and look on.

    Args:
        inputs: prompts as :func:`workbench.read` takes them (no images).
        policy: ContinuousThought, SoftThought, ForcedMixture, Given, or your own.
        readers: what looks on, at every place.
        then: text or token ids that are fed after the thoughts; the answer is read at their last place.
        edit: changes thoughts before they are fed; later ones are made of what follows from it.
        cache: whether the model's key-value cache is used; None: where it has been shown to change nothing.

    The model is left as it was found, and nothing depends on the batches.

    Raises InputError where prompt, thoughts and ``then`` do not fit the context; Refused for models that take no
    embeddings, or whose results with them or with a cache are not their own.
    """
    takes_embeddings(model)
    prompts = encode(model, inputs, "last")
    if any(p.extras for p in prompts):
        raise InputError("Thoughts are for text: prompts with images cannot be continued with embeddings.")
    after = token_ids(model, then)
    places = policy.n + 1 + len(after)
    limit = model.context_length
    longest = max(len(p.ids) for p in prompts)
    if limit is not None and longest + policy.n + len(after) > limit:
        raise InputError(
            f"A prompt of {longest} tokens, {policy.n} thoughts and {len(after)} tokens after them are "
            f"{longest + policy.n + len(after)}, and {model.name} reads at most {limit}. Think less, or cut the prompt."
        )
    if isinstance(policy, Given) and len(policy.vectors) != len(prompts):
        raise InputError(f"There are {len(prompts)} prompts and thoughts for {len(policy.vectors)}.")
    if isinstance(policy, Given) and policy.n and np.isnan(np.asarray(policy.vectors)[:, 0]).any():
        raise InputError(
            "A prompt's first given thought is NaN. Leave such prompts out, or read them without thoughts."
        )
    # To a reader a thought is a position behind the prompt, with a stand-in for its token.
    stand_in = prompts[0].ids[-1]
    extended = [
        Prompt([*p.ids, *[stand_in] * policy.n, *after], p.text, positions=[len(p.ids) - 1 + t for t in range(places)])
        for p in prompts
    ]
    drives = _Thinking(model, prompts, policy, after, edit, cache, seed)
    run = Run(model, extended, list(range(places)))
    told = {"policy": repr(policy), "then": list(after), "seed": seed, "cache": drives.cached}
    readings = run_readers(
        run, [settled(reader) for reader in readers], drives, batch_size=batch_size, progress=False,
        more={"step": "think", "thoughts": told}, verb="thinking",
    )  # fmt: skip
    for reading in readings:
        _named(reading, drives.length, policy.n)
    return Thoughts(drives.dataset(), tuple(readings))


def token_ids(model: Model, then: str | Sequence[int] | None) -> list[int]:
    if then is None:
        return []
    if not isinstance(then, str):
        return embeddable(model, [int(i) for i in then], "then=")
    return text_ids(model, then, f"then={then!r}")


def _named(reading: Reading, length: np.ndarray, n: int) -> None:
    """Thoughts are no tokens, and places are no positions of the text."""
    data = reading.data
    if "input_id" not in data:
        return
    for t in range(1, n + 1):
        data["input_id"].values[:, t] = -1
        data["input_token"].values[:, t] = np.where(length >= t, f"thought {t}", "")


class _Thinking(Rollout):
    """The prompts, a policy's thoughts, and the tokens after them."""

    embeds = True

    def __init__(
        self, model: Model, prompts: list[Prompt], policy: Policy, after: list[int], edit: Edit | None,
        cached: bool | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, prompts, policy.n + len(after), cached=cached)
        self.policy, self.after, self.edit, self.seed = policy, after, edit, seed
        # A row that has stopped would leave holes in the others' batch, which not every model looks past.
        self.alone = getattr(policy, "stops", True)
        self.length = np.zeros(len(prompts), int)
        self.vectors: dict[int, list[np.ndarray]] = {}
        self.notes: dict[str, dict[int, list[np.ndarray]]] = {}

    def supports(self, feature: str) -> bool:
        # Thoughts are no tokens: what is usual of tokens says nothing of them.
        return feature != "whole" and super().supports(feature)

    def begin(self, members: list[int]) -> None:
        self._noted: list[dict[str, Tensor]] = []
        for i in members:
            self.length[i] = 0
            for own in (self.vectors, *self.notes.values()):
                own.pop(i, None)

    def next(self, members: list[int], place: int, grown: Growing, going: Tensor) -> tuple[Tensor, Tensor] | None:
        t, n = place + 1, self.policy.n
        if t > n:
            ids = torch.full((len(members),), self.after[t - n - 1], device=self.model.device)
            return self.model.module.get_input_embeddings()(ids), torch.ones(len(members), dtype=torch.bool)
        if self._noted and (enough := self.policy.stopped(self._noted)) is not None:
            going = going & ~enough.cpu()
        if not bool(going.any()):
            return None
        step = Step(self.model, t, grown.state, grown.logits, members, self._draws(members, t))
        vector, noted = self.policy.next(step)
        if self.edit is not None:
            vector = self.edit(t, vector, members).to(vector)
        for row, i in enumerate(members):
            if going[row]:
                self.length[i] = t
                self.vectors.setdefault(i, []).append(vector[row].float().cpu().numpy())
                for name, values in noted.items() if not isinstance(self.policy, Given) else ():
                    self.notes.setdefault(name, {}).setdefault(i, []).append(values[row].float().cpu().numpy())
        self._noted.append(noted)
        return vector, going

    def _draws(self, members: list[int], place: int) -> Callable[..., Tensor]:
        def draw(*shape: int) -> Tensor:
            rows = [
                np.random.Generator(np.random.Philox(key=[self.seed, i * 100_003 + place])).random(shape, np.float32)
                for i in members
            ]
            return torch.from_numpy(np.stack(rows))

        return draw

    def dataset(self) -> xr.Dataset:
        prompts, n = len(self.prompts), self.policy.n
        width = self.model.token_vectors.shape[1]
        vectors = np.full((prompts, n, width), np.nan, np.float32)
        for i, own in self.vectors.items():
            vectors[i, : len(own)] = own
        found: dict[str, Any] = {
            "vector": (("prompt", "thought", "width"), vectors), "length": (("prompt",), self.length),
        }  # fmt: skip
        for name, by_prompt in self.notes.items():
            shape = next(iter(by_prompt.values()))[0].shape
            table = np.full((prompts, n, *shape), np.nan, np.float32)
            for i, own in by_prompt.items():
                table[i, : len(own)] = own
            if name.endswith("_id"):
                table = np.nan_to_num(table, nan=-1).astype(np.int32)
            found[name] = (("prompt", "thought", "rank")[: table.ndim], table)
        coords = {"prompt": np.arange(prompts), "thought": np.arange(1, n + 1)}
        return xr.Dataset(found, coords, {"model": self.model.name, "policy": repr(self.policy)})


def takes_embeddings(model: Model) -> None:
    """Refused unless embeddings in the place of ids give the model's own logits; asked once."""
    model.renew()
    if "takes embeddings" in model.known:
        return
    if "inputs_embeds" not in inspect.signature(model.module.forward).parameters:
        raise Refused(f"{model.name} takes no inputs_embeds, so nothing but tokens can be fed to it.")
    if model.anatomy.layout.prefix or model.anatomy.layout.axes != "BTW":
        raise Refused(f"{model.name} puts positions of its own before the prompt: where a thought stands is not known.")
    tolerance, prompts = TOLERANCE.get(model.dtype, 1e-4), probe_prompts(model)
    with untouched(model.module):
        for i in range(len(prompts)):
            inputs = collate(model, prompts, [i], "left").inputs
            ids, embeds = (Growing(model, inputs, cached=False, embeds=x) for x in (False, True))
            ids.start()
            embeds.start()
            error = apart(embeds.logits, ids.logits)
            if not error <= tolerance:
                raise Refused(
                    f"{model.name}: its own input embeddings fed as inputs_embeds change its logits by {error:.1e} of "
                    f"the largest (allowed: {tolerance:.0e}), so a thought would not mean what an embedding means."
                )
    model.known["takes embeddings"] = True
