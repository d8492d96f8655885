"""How likely a model is to give each of a few answers, read behind the prompt: no decoding, no full logits."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import workbench
from probes.values.duplicates import joined, told
from probes.values.framings import STANCES
from probes.values.items import VARIABLES as OF_ITEMS
from probes.values.items import columns, fingerprint
from workbench.engine.prefix import Prefix, common
from workbench.engine.run import model_step, observe
from workbench.errors import InputError
from workbench.inputs import encode, in_head, tell_of_unknown_tokens
from workbench.readers import Output, Plan, Reader, Rows, Run
from workbench.reading import Reading
from workbench.readout import Readout
from workbench.sites import Site
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model

Pieces = list[list[tuple[int, ...]]]
"""For each answer, the token sequences that give it; no sequence begins with another."""


@dataclass(frozen=True, eq=False)
class ChosenTokens(Reader):
    """A reader: log-probabilities (nats) of a few tokens of its own at each place that is read.

    Args:
        ids: [prompt][position][token] ids.  The reading has logprob [prompt, position, token], NaN where there is none.
    """

    ids: Sequence[Sequence[Sequence[int]]]

    def plan(self, run: Run) -> Plan:
        width = max(len(own) for places in self.ids for own in places)
        chosen = np.full((len(self.ids), max(map(len, self.ids)), width), -1, np.int64)
        for p, places in enumerate(self.ids):
            for s, own in enumerate(places):
                chosen[p, s, : len(own)] = own
        site, readout = Site("resid", run.model.n_layers), Readout(run.model)

        def observe(states: Rows, batch: Batch) -> dict[str, Tensor]:
            features = readout.features(states[site])
            ids = torch.from_numpy(chosen[batch.prompt.numpy(), batch.slot.numpy()]).to(features.device)
            logits = readout.logits_at(features, ids.clamp_min(0))
            total = readout.read(features[None], 1).logsumexp[0]
            found = (logits.double() - total[:, None].double()).masked_fill(ids < 0, torch.nan)
            return {"logprob": found}

        output = Output(("prompt", "position", "token"), about("log-probability", "nats", "high"), dtype=np.float64)
        return Plan([site], {"logprob": output}, observe, {"token": width}, settings={"ids": None})


# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Seam:
    """Where prompts end and answers begin, in tokens of the whole text.

    cut: how many tokens at a prompt's end hold the beginning of the answer, too (a space), and are left to the answer.
    space: tokens that begin all answers alike and say nothing, and belong to the prompt.
    answer, tail: one of the answers, and its tokens behind both.
    """

    cut: int
    space: tuple[int, ...]
    answer: str
    tail: tuple[int, ...]


class Turn:
    """How one model is asked: what stands around a question, and where its answer begins.

    Args:
        chat: in the tokenizer's chat template, the question as the user's turn and the answer as the assistant's; None:
            where there is a template.
        lead: what stands between question and answer, in a chat the beginning of the assistant's turn; None: a new line
            with "Answer:" in plain text, nothing in a chat.

    Attributes:
        asked: "chat template" with a digest of it, or "plain text".  Readings that differ in it do not compare.

    Raises InputError without a tokenizer, and for ``chat=True`` without a template.
    """

    def __init__(self, model: Model, chat: bool | None = None, lead: str | None = None) -> None:
        tokenizer: Any = model.tokenizer
        if tokenizer is None:
            raise InputError(
                f"{model.name} has no tokenizer, so it cannot be asked in words. Load it with load(..., tokenizer=...)."
            )
        template = getattr(tokenizer, "chat_template", None)
        if chat and not template:
            raise InputError(
                f"chat=True, and the tokenizer of {model.name} has no chat template. Use chat=None or False to ask in "
                "plain text, or set tokenizer.chat_template."
            )
        self.model, self.chat = model, bool(template) if chat is None else chat
        self.lead = ("" if self.chat else "\nAnswer:") if lead is None else lead
        digest = hashlib.blake2b(json.dumps(template, default=str).encode(), digest_size=4).hexdigest()
        self.asked = f"chat template {digest}" if self.chat else "plain text"
        self._first = [] if self.chat else _first_tokens(tokenizer)
        if self.chat and not self.lead:
            self.gap = _gap(self._rendered)
        else:
            self.gap = "" if self.lead[-1:].isspace() else " "

    def text(self, question: str) -> str:
        """All that the model is given, up to where its answer begins."""
        return (self._rendered(question) if self.chat else question) + self.lead

    def ids(self, question: str) -> list[int]:
        """Its tokens, as they are without an answer."""
        return self._encoded(self.text(question))

    def seam(self, answers: Sequence[str], question: str = "") -> tuple[Seam, list[tuple[int, ...]]]:
        """Where answers begin, and the tokens of each, found in the whole text behind a question.

        Raises InputError for answers that the model has no tokens or no logits for, and a lead that the tokenizer joins
        with them.
        """
        ids = self.ids(question)
        whole = [self._encoded(self.text(question) + self.gap + answer) for answer in answers]
        shared = min(common(ids, own) for own in whole)
        tails = [tuple(own[shared:]) for own in whole]
        unknown = getattr(self.model.tokenizer, "unk_token_id", None)
        for answer, tail in zip(answers, tails, strict=True):
            if not tail or (unknown is not None and unknown in tail):
                raise InputError(
                    f"The answer {answer!r} is not in the vocabulary of {self.model.name}. Give framings in its words."
                )
            if beyond := [token for token in tail if token >= self.model.vocab_size]:
                raise InputError(
                    f"The answer {answer!r} has the token id {beyond[0]}, and {self.model.name} gives logits for the "
                    f"ids 0 to {self.model.vocab_size - 1}: a token was added to the tokenizer and not to the model. "
                    "Give other answers, or resize the model (resize_token_embeddings) and train the new token."
                )
        lost = self.model.tokenizer.decode(ids[shared:]) if shared < len(ids) else ""  # type: ignore[union-attr]
        if lost.strip():
            raise InputError(
                f"The tokenizer of {self.model.name} joins the end of the prompt, {lost!r}, and the answer "
                f"{answers[0]!r} into one token, so the answer has no probability of its own. Give another lead=, one "
                "that ends in a colon or a line break."
            )
        space: list[int] = []
        # " 1" is a space and a digit in many vocabularies: the space then is the prompt's last token.
        while (
            min(map(len, tails)) > 1
            and len({tail[0] for tail in tails}) == 1
            and not self.model.tokenizer.decode(tails[0][:1]).strip()  # type: ignore[union-attr]
        ):
            space.append(tails[0][0])
            tails = [tail[1:] for tail in tails]
        return Seam(len(ids) - shared, tuple(space), answers[0], tails[0]), tails

    def prompt(self, question: str, seam: Seam) -> list[int]:
        """Tokens of a question up to where its answer begins.

        Raises InputError where the whole text, with an answer, has other tokens than the parts.
        """
        ids = self.ids(question)
        found = [*ids[: len(ids) - seam.cut], *seam.space]
        if self._encoded(self.text(question) + self.gap + seam.answer) != [*found, *seam.tail]:
            raise InputError(
                f"With the answer {seam.answer!r} behind it, {question[-60:]!r} has other tokens in {self.model.name} "
                "than without: its end and the answer are joined. Give another lead=, one that ends in a colon or a "
                "line break."
            )
        return found

    def spelled(self, gap: str, answers: Sequence[str], seam: Seam, question: str = "") -> list[tuple[int, ...]]:
        """The tokens of each answer where ``gap`` stands before it; () where the prompt would have other tokens."""
        ids = self.ids(question)
        head = [*ids[: len(ids) - seam.cut], *seam.space]
        whole = [self._encoded(self.text(question) + gap + answer) for answer in answers]
        return [tuple(own[len(head) :]) if own[: len(head)] == head else () for own in whole]

    def _rendered(self, *turns: str) -> str:
        """The chat up to the assistant's turn, or with it."""
        chat = [{"role": role, "content": x} for role, x in zip(("user", "assistant"), turns, strict=False)]
        # Models that can think aloud first would give all probability to doing so; other templates ignore the switch.
        return self.model.tokenizer.apply_chat_template(  # type: ignore[union-attr]
            chat, tokenize=False, add_generation_prompt=len(turns) == 1, enable_thinking=False
        )

    def _encoded(self, text: str) -> list[int]:
        """A template writes special tokens itself; before plain text stand those that the tokenizer puts there."""
        tokenizer: Any = self.model.tokenizer
        return [*self._first, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _first_tokens(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text.  (What some put behind it would end the text before the answer.)"""
    with_them = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    starts = (k for k in range(len(with_them)) if with_them[k : k + len(bare)] == bare)
    return with_them[: next(starts, 0)]


def _gap(rendered: Callable[..., str]) -> str:
    """The white space that a template writes before what the assistant says: none, or a space ("[/INST] Yes")."""
    begun, said = rendered("Is it?"), "Yes"
    try:
        whole = rendered("Is it?", said)
    except Exception:  # templates are programs, and some know no such chat
        whole = ""
    gap, found, _ = whole[len(begun) :].partition(said)
    if whole.startswith(begun) and found and not gap.strip():
        return gap
    return " " if begun[-1:].isalnum() or begun[-1:] == ":" else ""


# ---------------------------------------------------------------- answers as tokens


def answer_pieces(
    turn: Turn, answers: Sequence[str], tokens: str = "single", question: str = ""
) -> tuple[Seam, Pieces]:
    """Where answers begin, and the token sequences that give each of them, as they stand behind a question.

    An answer as the model would write it there, and its spellings with and without the space and with a small or
    capital first letter (words alone: "a" is not "A").  A spelling counts for all answers or for none, since one that
    only some answers have as a token would favour them.

    Args:
        tokens: "single", "first" or "whole", see :class:`~probes.values.framings.Framing`.
        question: one of those that are asked.

    Raises InputError for answers that are not in the vocabulary, are several tokens ("single"), begin with the same
    token ("first"), or of which one begins with the whole of another ("whole").
    """
    name, unknown = turn.model.name, getattr(turn.model.tokenizer, "unk_token_id", None)
    seam, natural = turn.seam(answers, question)
    if tokens == "first":
        natural = [x[:1] for x in natural]
    several = [a for a, x in zip(answers, natural, strict=True) if len(x) > 1]
    if tokens == "single" and several:
        raise InputError(
            f"The answers {', '.join(map(repr, several))} are several tokens in {name}, and the next token alone "
            'does not give their probability. Use tokens="whole" (the product over their tokens), or tokens="first" '
            "where their first tokens differ."
        )
    found: Pieces = [[] for _ in answers]
    if not _added(found, natural):
        raise InputError(
            f"Of the answers {', '.join(map(repr, answers))}, two begin with the same token of {name} or one "
            'begins with the whole of another, so they cannot be told apart. Use tokens="whole", or other answers.'
        )
    for case in (str, str.lower, lambda a: a[:1].upper() + a[1:]):
        spelled = [case(a) if len(a) > 1 else a for a in answers]
        for gap in dict.fromkeys(("", " ", turn.gap)):
            form = turn.spelled(gap, spelled, seam, question)
            if tokens == "first":
                form = [x[:1] for x in form]
            long = tokens == "whole" and gap == turn.gap and not seam.space
            if all(x and unknown not in x and max(x) < turn.model.vocab_size and (len(x) == 1 or long) for x in form):
                _added(found, form)
    return seam, found


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
    cost of the pass: tokens, of all prompts; prefix_tokens_saved, of those that were not run."""
    for token in {token for own in ids for place in own for token in place}:
        in_head(model, token, "An answer's token")
    read = encode(model, [list(prompt) for prompt in prompts], "last")
    for prompt, own in zip(read, ids, strict=True):
        prompt.positions = list(range(len(prompt.ids)))[-len(own) :]
    drives = Prefix(model, read)
    found = observe(model, read, ChosenTokens(ids), drives, batch_size=batch_size, progress=progress)
    cost = {"tokens": sum(len(p.ids) for p in read), "prefix_tokens_saved": drives.saved}
    return found["logprob"], cost


# ---------------------------------------------------------------- what is said of a reading

LOW_MASS = 0.5
"""Below this mean mass a reading warns: more than half of what the model would say is none of the answers offered."""


class LowMass(UserWarning):
    """The answers offered are little of what the model would say."""


def tell_of_mass(data: xr.Dataset, shares: bool = True) -> None:
    """Warn where the answers offered have less than :data:`LOW_MASS` of the probability, on average."""
    mass, asked = data["mass"], data.attrs.get("asked", "")
    if not shares or not float(mass.mean()) < LOW_MASS:
        return
    more = ""
    if "framing" in mass.dims and mass.sizes["framing"] > 1:
        own = mass.mean([d for d in mass.dims if d != "framing"]).to_series()
        more = f" ({own.min():.2g} in {own.idxmin()} to {own.max():.2g} in {own.idxmax()})"
    warnings.warn(
        f"{data.attrs.get('instrument', 'An instrument')} in {asked}: all answers offered together have "
        f"{float(mass.mean()):.2g} of the probability where the answer begins{more}, less than {LOW_MASS:g}. The rest "
        "counts as uncommitted, and the stances are of little that this model would say. Begin its answer "
        "(lead='Answer:'), ask it the other way (chat=), keep the framings that it answers, or let it write "
        "(SampledText).",
        LowMass,
        stacklevel=4,
    )


UNKNOWN = 0.5
"""Items of which a larger share is unknown tokens are not in the model's language."""


# ---------------------------------------------------------------- instruments

VARIABLES: dict[str, Any] = {
    **OF_ITEMS,
    "framing": about("framing", role="label"),
    "sample": about("sample", role="label"),
    "stance": about("stance", role="label"),
    "p": about("probability of the stance"),
    "mass": about("probability of all answers offered", better="high"),
}
"""Of every instrument."""
COST = ("tokens", "prefix_tokens_saved")
"""Attributes of a reading that add up over its parts."""


class Asker:
    """What instruments share: a digest of their settings, and how they put a question.

    An instrument names what it gives besides stances in :attr:`variables` (name -> :func:`workbench.variables.about`).

    Attributes:
        chat, lead: as in :class:`Turn`.
    """

    name = ""
    apart = True
    """A row depends on the model and its own item alone (:mod:`probes.values.parts`)."""
    shares = True
    """Stances are shares of what the model would say, so that a low mass is worth a warning."""
    variables: Mapping[str, Mapping[str, Any]] = {}

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

    def asked(self, model: Any) -> str:
        """In what a model is asked: :attr:`Turn.asked`."""
        return Turn(model, self.chat, self.lead).asked

    def opened(self, model: Any, items: Iterable[Any]) -> tuple[list[Any], Turn]:
        """The items, near-duplicates in one cluster, and how the model is asked (``turn.model`` is the model).

        Raises InputError where there are no items, or two have one id.
        """
        model, found = workbench.load(model), joined(items)
        names = [str(item.item_id) for item in found]
        if not found:
            raise InputError("There are no items, so there is nothing to ask.")
        if len(set(names)) < len(names):
            twice = next(x for x in names if names.count(x) > 1)
            raise InputError(f"Two items have the id {twice!r}, and readings refer to items by id. Give each its own.")
        turn = Turn(model, self.chat, self.lead)
        ids = [model.tokenizer(item.text, add_special_tokens=False)["input_ids"] for item in found]
        tell_of_unknown_tokens(model, ids, "items", UNKNOWN, names=names, stacklevel=4)
        return found, turn

    def table(
        self,
        items: Sequence[Any],
        variables: Mapping[str, Any],
        turn: Turn,
        coords: Mapping[str, Any] | None = None,
        *,
        source: Reading | None = None,
        prompts: int | None = None,
        **cost: Any,
    ) -> Reading:
        """The variables by item, and what is known of the items; attributes: how they were asked, what it cost.

        Parameters
        ----------
        source
            The reading that the variables were made of, if a pass of the model gave one; else its step is made here,
            for so many ``prompts`` (as many as items, by default).

        Warns where the mean of ``mass`` is below :data:`LOW_MASS`.
        """
        attrs = {"model": turn.model.name, "instrument": self.name, "settings": self.settings, "asked": turn.asked}
        ids = np.array([str(item.item_id) for item in items], object)
        known = columns(items)
        if said := told(known["cluster"][1]):
            attrs["duplicates"] = said
        found = xr.Dataset(variables, {"item": ids, **known, **(coords or {})}, {**attrs, **cost})
        described(found, {**VARIABLES, **self.variables})
        if "mass" in found:
            tell_of_mass(found, self.shares)
        own = {**model_step(turn.model), "prompts": prompts or len(items)}
        steps = source.provenance if source is not None else [own]
        return Reading(found, [*steps, self.step(items, asked=turn.asked, **cost)])

    def step(self, items: Sequence[Any], **more: Any) -> dict[str, Any]:
        """This instrument's step of a provenance: its settings, what was asked, and what it cost."""
        cost = {name: more.pop(name) for name in COST if name in more}
        config = json.loads(json.dumps(self.config, default=str))
        return {
            "step": "instrument", "reader": {"name": self.name, "items": len(items), **more},
            "instrument": {"settings": self.settings, "config": config}, "items": fingerprint(items), "cost": cost,
        }  # fmt: skip

    def stances(
        self,
        items: Sequence[Any],
        p: np.ndarray,
        axis: str,
        labels: Sequence[Any],
        more: Mapping[str, Any],
        turn: Turn,
        source: Reading | None = None,
        **cost: Any,
    ) -> Reading:
        """:meth:`table` of p [item, axis, stance] of the four stances, with mass = 1 - uncommitted unless it is among
        ``more``."""
        variables = {"p": (("item", axis, "stance"), p), "mass": (("item", axis), 1 - p[..., 3]), **more}
        names = np.array(labels, object if isinstance(labels[0], str) else int)
        coords, asked = {axis: names, "stance": list(STANCES)}, int((~np.isnan(p[..., 0])).sum())
        return self.table(items, variables, turn, coords, source=source, prompts=asked, **cost)
