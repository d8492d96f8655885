"""How likely a model is to give each of a few answers, read behind the prompt: no decoding, no full logits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import workbench
from probes.values.framings import STANCES
from probes.values.items import columns
from probes.values.prefixes import read_prompts
from workbench.errors import InputError
from workbench.inputs import encode, in_head
from workbench.reading import Reading
from workbench.readout import Readout
from workbench.sites import Site

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run

Pieces = list[list[tuple[int, ...]]]
"""For each answer, the token sequences that give it; no sequence begins with another."""


class ChosenTokens:
    """A reader: log-probabilities (nats) of a few tokens of its own at each place that is read.

    Args:
        ids: [prompt][position][token] ids.  The reading has logprob [prompt, position, token], NaN where there is none.
    """

    def __init__(self, ids: Sequence[Sequence[Sequence[int]]]) -> None:
        width = max(len(own) for places in ids for own in places)
        self._ids = np.full((len(ids), max(map(len, ids)), width), -1, np.int64)
        for p, places in enumerate(ids):
            for s, own in enumerate(places):
                self._ids[p, s, : len(own)] = own

    def sites(self, model: Model) -> list[Site]:
        return [Site("resid", model.n_layers)]

    def begin(self, run: Run) -> None:
        self._readout = Readout(run.model)
        self._logprob = np.full(self._ids.shape, np.nan)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        p, s = batch.prompt.numpy(), batch.slot.numpy()
        features = self._readout.features(batch.take(states))
        ids = torch.from_numpy(self._ids[p, s]).to(features.device)
        logits = self._readout.logits_at(features, ids.clamp_min(0))
        total = self._readout.read(features[None], 1).logsumexp[0]
        found = (logits.double() - total[:, None].double()).masked_fill(ids < 0, torch.nan)
        self._logprob[p, s] = found.cpu().numpy()

    def end(self) -> Reading:
        data = xr.Dataset({"logprob": (("prompt", "position", "token"), self._logprob)})
        return Reading(data, {"reader": {"name": "ChosenTokens"}})


# ---------------------------------------------------------------- prompts


def is_chat(model: Model, chat: bool | None) -> bool:
    """Whether to ask in a chat: as told, or where there is a chat template.  InputError without a tokenizer."""
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, so it cannot be asked in words. Load it with load(..., tokenizer=...)."
        )
    there = bool(getattr(model.tokenizer, "chat_template", None))
    if chat and not there:
        raise InputError(
            f"chat=True, and the tokenizer of {model.name} has no chat template. Use chat=None or False to ask in "
            "plain text, or set tokenizer.chat_template."
        )
    return there if chat is None else chat


def leading(lead: str | None, chat: bool) -> str:
    """What stands between the question and the answer: as told, or a cue in plain text and nothing in a chat."""
    return ("" if chat else "\nAnswer:") if lead is None else lead


def prompt_ids(model: Model, text: str, lead: str, chat: bool) -> list[int]:
    """Token ids of a question up to where its answer begins."""
    tokenizer: Any = model.tokenizer
    if not chat:
        return list(tokenizer(text + lead)["input_ids"])
    # Models that can think aloud first would give all probability to doing so; other templates ignore the switch.
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return list(tokenizer(shown + lead, add_special_tokens=False)["input_ids"])


def behind(model: Model, lead: str, text: str) -> tuple[int, ...]:
    """Token ids of a text as it stands behind the lead, with the space that belongs between them."""
    tokenizer: Any = model.tokenizer
    context = lead or "\n"
    spaced = text if context[-1].isspace() else " " + text
    head = list(tokenizer(context, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(context + spaced, add_special_tokens=False)["input_ids"])
    # A tokenizer that joins lead and answer into one token has no seam: the answer is then taken alone.
    found = (
        whole[len(head) :] if whole[: len(head)] == head else tokenizer(spaced, add_special_tokens=False)["input_ids"]
    )
    return tuple(found)


# ---------------------------------------------------------------- answers as tokens


def answer_pieces(model: Model, answers: Sequence[str], lead: str, tokens: str = "single") -> tuple[list[int], Pieces]:
    """The token sequences that give each answer, and space tokens that belong to the prompt in front of them.

    An answer as it stands behind the lead, and its spellings with and without the space and with a small or capital
    first letter (words alone: "a" is not "A").  A spelling counts for all answers or for none, since one that only some
    answers have as a token would favour them.

    Args:
        tokens: "single", "first" or "whole", see :class:`~probes.values.framings.Framing`.

    Raises InputError for answers that are not in the vocabulary, are several tokens ("single"), begin with the same
    token ("first"), or of which one begins with the whole of another ("whole").
    """
    tokenizer: Any = model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    natural = [behind(model, lead, answer) for answer in answers]
    for answer, ids in zip(answers, natural, strict=True):
        if not ids or unknown in ids:
            raise InputError(
                f"The answer {answer!r} is not in the vocabulary of {model.name}. Give framings in its words."
            )
    space: list[int] = []
    # " 1" is a space and a digit in many vocabularies: the space then is the prompt's last token.
    while (
        min(map(len, natural)) > 1
        and len({x[0] for x in natural}) == 1
        and not tokenizer.decode(natural[0][:1]).strip()
    ):
        space.append(natural[0][0])
        natural = [x[1:] for x in natural]
    if tokens == "first":
        natural = [x[:1] for x in natural]
    several = [a for a, x in zip(answers, natural, strict=True) if len(x) > 1]
    if tokens == "single" and several:
        raise InputError(
            f"The answers {', '.join(map(repr, several))} are several tokens in {model.name}, and the next token alone "
            'does not give their probability. Use tokens="whole" (the product over their tokens), or tokens="first" '
            "where their first tokens differ."
        )
    found: Pieces = [[] for _ in answers]
    if not _added(found, natural):
        raise InputError(
            f"Of the answers {', '.join(map(repr, answers))}, two begin with the same token of {model.name} or one "
            'begins with the whole of another, so they cannot be told apart. Use tokens="whole", or other answers.'
        )
    for case in (str, str.lower, lambda a: a[:1].upper() + a[1:]):
        spelled = [case(a) if len(a) > 1 else a for a in answers]
        forms = [[tuple(tokenizer(s + a, add_special_tokens=False)["input_ids"]) for a in spelled] for s in ("", " ")]
        if tokens == "whole" and not space:
            forms.append([behind(model, lead, a) for a in spelled])
        for number, form in enumerate(forms):
            if tokens == "first":
                form = [x[:1] for x in form]
            if all(x and unknown not in x and (len(x) == 1 or number == 2) for x in form):
                _added(found, form)
    return space, found


def _added(found: Pieces, form: Sequence[tuple[int, ...]]) -> bool:
    """Add one spelling of all answers, unless two answers would overlap in it."""

    def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        n = min(len(a), len(b))
        return a[:n] == b[:n]

    for j, own in enumerate(form):
        others = [x for k, xs in enumerate(found) if k != j for x in (*xs, form[k])]
        if any(overlap(own, x) for x in others):
            return False
    for j, own in enumerate(form):
        if not any(overlap(own, x) for x in found[j]):
            found[j].append(own)
    return True


def answer_logprobs(
    model: Model,
    asked: Sequence[tuple[Sequence[int], Pieces]],
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, dict[str, int]]:
    """[asked, answer] log-probability (nats) that each answer comes next; NaN: fewer answers.  And the pass's cost.

    Args:
        asked: ids of a prompt, and the sequences that give each of its answers.
    """
    prompts: list[list[int]] = []
    nexts: list[list[int]] = []
    places: list[dict[tuple[int, ...], int]] = []
    for ids, pieces in asked:
        tree: dict[tuple[int, ...], dict[int, None]] = {}
        for piece in (x for own in pieces for x in own):
            for k, token in enumerate(piece):
                tree.setdefault(piece[:k], {})[token] = None
        places.append({})
        for begun, following in tree.items():
            places[-1][begun] = len(prompts)
            prompts.append([*ids, *begun])
            nexts.append(list(following))
    logprob, cost = chosen_logprobs(model, prompts, [[own] for own in nexts], batch_size, progress)
    column = [{token: j for j, token in enumerate(own)} for own in nexts]
    found = np.full((len(asked), max(len(pieces) for _, pieces in asked)), np.nan)
    for i, (_, pieces) in enumerate(asked):
        for j, own in enumerate(pieces):
            rows = [[(places[i][x[:k]], token) for k, token in enumerate(x)] for x in own]
            found[i, j] = np.logaddexp.reduce([sum(logprob[r, 0, column[r][t]] for r, t in row) for row in rows])
    return found, cost


def continuation_logprobs(
    model: Model,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, dict[str, int]]:
    """[asked] log-probability (nats, summed over its tokens) of a continuation behind a prompt, both as token ids.  And
    the pass's cost."""
    if not all(len(tail) for _, tail in asked):
        raise InputError("A continuation has no tokens, so there is nothing to score. Give each some text.")
    prompts = [[*head, *tail[:-1]] for head, tail in asked]
    logprob, cost = chosen_logprobs(model, prompts, [[[t] for t in tail] for _, tail in asked], batch_size, progress)
    return np.nansum(logprob[..., 0], 1), cost


def chosen_logprobs(
    model: Model,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[Sequence[Sequence[int]]],
    batch_size: int | None,
    progress: bool,
) -> tuple[np.ndarray, dict[str, int]]:
    """[prompt, position, token] of :class:`ChosenTokens` at each prompt's last ``len(ids[prompt])`` positions, and the
    cost of the pass (:func:`~probes.values.prefixes.read_prompts`)."""
    for token in {token for own in ids for place in own for token in place}:
        in_head(model, token, "An answer's token")
    read = encode(model, [list(prompt) for prompt in prompts], "last")
    for prompt, own in zip(read, ids, strict=True):
        prompt.positions = list(range(len(prompt.ids)))[-len(own) :]
    reading, cost = read_prompts(model, read, ChosenTokens(ids), batch_size=batch_size, progress=progress)
    return reading.data["logprob"].values, cost


# ---------------------------------------------------------------- instruments


class Asker:
    """What instruments share: a digest of their settings, and how they put a question.

    Attributes:
        chat: ask in a chat; None: where the tokenizer has a chat template.
        lead: what stands between question and answer; None: a new line with "Answer:" in plain text, nothing in a chat.
    """

    name = ""
    apart = True
    """A row depends on the model and its own item alone (:mod:`probes.values.parts`)."""

    def __init__(self, chat: bool | None, lead: str | None) -> None:
        self.chat, self.lead = chat, lead

    @property
    def config(self) -> dict[str, Any]:
        """All settings, JSON at heart."""
        return {"chat": self.chat, "lead": self.lead}

    @property
    def settings(self) -> str:
        """16 hex digits that stand for the settings."""
        text = json.dumps([self.name, self.config], sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def opened(self, model: Any, items: Iterable[Any]) -> tuple[Model, list[Any], bool, str]:
        """The model, the items as a list, whether it is asked in a chat, and what leads to the answer.

        Raises InputError where there are no items, or two have one id.
        """
        model, found = workbench.load(model), list(items)
        ids = [str(item.item_id) for item in found]
        if not found:
            raise InputError("There are no items, so there is nothing to ask.")
        if len(set(ids)) < len(ids):
            twice = next(x for x in ids if ids.count(x) > 1)
            raise InputError(f"Two items have the id {twice!r}, and readings refer to items by id. Give each its own.")
        chat = is_chat(model, self.chat)
        return model, found, chat, leading(self.lead, chat)

    def table(self, items: Sequence[Any], variables: Mapping[str, Any], **cost: Any) -> xr.Dataset:
        """The variables by item, and what is known of the items; attributes: how they were asked, what it cost."""
        config = json.dumps(self.config, ensure_ascii=False, default=str)
        attrs = {"instrument": self.name, "settings": self.settings, "config": config, **cost}
        ids = np.array([str(item.item_id) for item in items], object)
        return xr.Dataset(variables, {"item": ids, **columns(items)}, attrs)

    def stances(
        self,
        items: Sequence[Any],
        p: np.ndarray,
        axis: str,
        labels: Sequence[Any],
        more: Mapping[str, Any],
        **cost: Any,
    ) -> xr.Dataset:
        """:meth:`table` of p [item, axis, stance] of the four stances, with mass = 1 - uncommitted."""
        variables = {"p": (("item", axis, "stance"), p), "mass": (("item", axis), 1 - p[..., 3]), **more}
        names = np.array(labels, object if isinstance(labels[0], str) else int)
        return self.table(items, variables, **cost).assign_coords({axis: names, "stance": list(STANCES)})
