"""Instruments: three ways to ask a model for its stance, each giving a distribution over stances for every item.

    Pmf                 probabilities of the next token over offered answers; prefill only
    SequenceLikelihood  how much likelier an item makes a sentence of each stance; prefill only
    SampledText         what is written, judged by a frozen judge (:mod:`probes.values.sampled`)

``instrument.read(model, items)`` gives a :class:`~workbench.reading.Reading` of p [item, framing or sample, stance],
over the stances support, neutral, oppose and uncommitted, rows summing to 1, and of mass [item, framing or sample], the
probability that all answers together have where the answer begins (what is not normalised away); topic, polarity and
cluster [item] stand beside.  Attributes: instrument, settings (a digest that changes with any setting; the provenance
has all of them), asked ("plain text", or "chat template" with a digest of it: models with a chat template are asked in
it, unless chat=False), and for the first two tokens, of
all prompts, and prefix_tokens_saved, of those that shared beginnings spared (:mod:`probes.values.prefixes`).

They disagree with each other, and none is the truth: the first token and the text often differ (Wang et al. 2024, arXiv
2402.14499), all vary with wording (Shen et al. 2025, arXiv 2507.13490).  Report their agreement with every result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from probes.values.answers import (
    Asker,
    Pieces,
    Seam,
    Turn,
    answer_logprobs,
    answer_pieces,
    continuation_logprobs,
)
from probes.values.framings import (
    OFFERED,
    TOKENS,
    Framing,
    default_framings,
    filled,
    greatest_good_framings,
    with_negation,
)
from probes.values.sampled import SampledText
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.variables import about, described

__all__ = [
    "Framing",
    "Pmf",
    "SampledText",
    "SequenceLikelihood",
    "default_framings",
    "greatest_good_framings",
    "with_negation",
]


class Pmf(Asker):
    """The probability mass function over offered answers, read off the next token.

    Args:
        framings: ways to ask; None: :func:`~probes.values.framings.default_framings`.
        tokens: how answers of several tokens are read: "single" (None: an error names them), "first" or "whole"; a
            framing's own word comes first.
        chat: ask in a chat, the question as the user's turn and the answer at the beginning of the assistant's; None:
            where the tokenizer has a chat template.
        lead: what stands between question and answer; None: a new line with "Answer:" in plain text, nothing in a chat.
            In a chat it begins the assistant's turn: lead="Answer:" helps small models that would rather begin with
            "I" or "The".

    What is not on an offered answer (refusals, thinking aloud, other spellings) is "uncommitted": where the mass is
    small, the stances are of little that the model would say, and below a mean of .5 a warning says so.  ``read`` gives
    besides:
        p_answer [item, framing, answer]: over the offered answers alone, in the framing's order; answer_text [framing,
            answer].
        value [item, framing]: its expected value on the framing's scale, reversals undone; NaN without a scale.
    All framings of all items are one pass.  ``seed`` is taken for the other instruments' sake: nothing is drawn.
    """

    name = "pmf"
    variables = {
        "p_answer": about("probability among the answers offered"),
        "value": about("expected value on the framing's scale"),
        "answer_text": about("answer", role="label"),
    }

    def __init__(
        self,
        framings: Iterable[Framing] | None = None,
        tokens: str | None = None,
        *,
        chat: bool | None = None,
        lead: str | None = None,
    ) -> None:
        self.framings = default_framings() if framings is None else tuple(framings)
        names = [framing.name for framing in self.framings]
        if not names or len(set(names)) < len(names):
            raise InputError(f"The framings are called {names}. Give at least one, and each its own name.")
        if tokens not in (None, *TOKENS):
            raise InputError(f"tokens={tokens!r} is unknown. Use one of: {', '.join(TOKENS)}.")
        super().__init__(chat, lead)
        self.tokens = tokens or "single"

    @property
    def config(self) -> dict[str, Any]:
        framings = [asdict(framing) for framing in self.framings]
        return {"framings": framings, "tokens": self.tokens, **super().config}

    def read(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Reading:
        """Ask every item in every framing.  Raises InputError for items and answers that cannot be asked."""
        items, turn = self.opened(model, items)
        asked: list[tuple[list[int], Pieces]] = []
        places: list[tuple[int, int]] = []
        for f, framing in enumerate(self.framings):
            some = [i for i, item in enumerate(items) if not framing.negated or getattr(item, "negated", "")]
            if not some:
                raise InputError(
                    f"Framing {framing.name!r} asks the items' negations, and no item has any. Give items with an "
                    "attribute 'negated' (a text), or leave the framing out."
                )
            shown = [framing.shown(items[i]) for i in some]
            seam, pieces = answer_pieces(turn, framing.answers, framing.tokens or self.tokens, shown[0])
            for i, question in zip(some, shown, strict=True):
                asked.append((turn.prompt(question, seam), pieces))
                places.append((i, f))
        found, cost = answer_logprobs(turn.model, asked, batch_size=batch_size, progress=progress)
        shape = len(items), len(self.framings)
        p = np.full((*shape, 4), np.nan)
        answer, value = np.full((*shape, found.shape[1]), np.nan), np.full(shape, np.nan)
        for (i, f), row in zip(places, found, strict=True):
            framing = self.framings[f]
            own = row[: len(framing.answers)]
            for k, stance in enumerate(OFFERED):
                p[i, f, k] = sum(np.exp(x) for x, s in zip(own, framing.meanings, strict=True) if s == stance)
            # Rounding of the normaliser can leave a sum a hair above 1.
            p[i, f, :3] /= max(1.0, p[i, f, :3].sum())
            p[i, f, 3] = 1 - p[i, f, :3].sum()
            answer[i, f, : len(own)] = np.exp(own - np.logaddexp.reduce(own))
            if framing.values:
                value[i, f] = answer[i, f, : len(own)] @ np.array(framing.scale)
        p[..., 3] = p[..., 3].clip(0)
        texts = np.full((shape[1], found.shape[1]), "", object)
        for f, framing in enumerate(self.framings):
            texts[f, : len(framing.answers)] = framing.answers
        more = {
            "p_answer": (("item", "framing", "answer"), answer),
            "value": (("item", "framing"), value),
            "answer_text": (("framing", "answer"), texts),
        }
        return self.stances(items, p, "framing", [x.name for x in self.framings], more, turn, **cost)


Continuations = Mapping[str, str] | Mapping[str, Mapping[str, str]]

CONTINUATIONS = {
    "think": {
        "support": "Yes, I think so.",
        "neutral": "I have no opinion on this.",
        "oppose": "No, I do not think so.",
    },
    "agree": {
        "support": "I agree with this.",
        "neutral": "I neither agree nor disagree with this.",
        "oppose": "I disagree with this.",
    },
}
ASKED = {
    "statement": "Do you think that this is right?\n{text}",
    "question": "{text}",
    "choice": "{text}\nWould you choose: {first}\nrather than: {second}",
}


class SequenceLikelihood(Asker):
    """How much likelier the item makes a sentence of each stance, by length and by what it is anywhere.

    p(stance) = softmax of [ log p(c | x) - log p(c | empty) ] / |c|, with c the stance's sentence, |c| its tokens and x
    the item.  Of the instruments without decoding, likelihoods of sequences vary least with wording (Shen et al. 2025).

    Args:
        continuations: stance -> sentence for support, neutral and oppose; or name -> such a set for several (each is a
            framing); None: two sets.
        prompts: kind of item -> template, as in a framing.
        empty: the text that stands for no item; None: the beginning-of-sequence token alone; in a chat an empty turn.
        chat, lead: as in :class:`Pmf`.

    A softmax over what is offered leaves nothing over: uncommitted is 0 by construction.  mass is what all three
    sentences together have of the probability, word for word: of whole sentences it is small, and p is a comparison
    between them, not a share of what would be said.  ``read`` gives
    besides, in nats a token: logprob [item, framing, answer] and logprob_empty [framing, answer]; answer: stances.
    """

    name = "sequence"
    shares = False
    variables = {
        "logprob": about("log-probability of the sentence behind the item", "nats a token"),
        "logprob_empty": about(
            "log-probability of the sentence behind no item", "nats a token", role="null", of="logprob"
        ),
        "answer": about("stance of the sentence", role="label"),
    }

    def __init__(
        self,
        continuations: Continuations | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        empty: str | None = None,
        chat: bool | None = None,
        lead: str | None = None,
    ) -> None:
        given: Mapping[str, Any] = CONTINUATIONS if continuations is None else continuations
        if given and all(isinstance(x, str) for x in given.values()):
            given = {"given": given}
        for name, own in given.items():
            if not isinstance(own, Mapping) or set(own) != set(OFFERED) or not all(x.strip() for x in own.values()):
                raise InputError(
                    f"The continuations {name!r} are {own!r}. Give one sentence each for {', '.join(OFFERED)}."
                )
        if not given:
            raise InputError("There are no continuations, so there is nothing to score. Give one for each stance.")
        self.continuations = {name: dict(own) for name, own in given.items()}
        self.prompts = dict(ASKED if prompts is None else prompts)
        super().__init__(chat, lead)
        self.empty = empty

    @property
    def config(self) -> dict[str, Any]:
        own = {"continuations": self.continuations, "prompts": self.prompts, "empty": self.empty}
        return {**own, **super().config}

    def read(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Reading:
        """Score every stance's sentence behind every item."""
        items, turn = self.opened(model, items)
        texts = [own[stance].strip() for own in self.continuations.values() for stance in OFFERED]
        asked = [filled(self.prompts, item, "SequenceLikelihood") for item in items]
        seam, tails = turn.seam(texts, asked[0])
        heads = [self._empty(turn, seam), *(turn.prompt(question, seam) for question in asked)]
        pairs = [(head, tail) for head in heads for tail in tails]
        total, cost = continuation_logprobs(turn.model, pairs, batch_size=batch_size, progress=progress)
        lengths = np.array([len(tail) for tail in tails])
        logprob = (total.reshape(len(heads), -1) / lengths).reshape(len(heads), -1, 3)
        score = logprob[1:] - logprob[0]
        p = np.exp(score - score.max(-1, keepdims=True))
        p = np.concatenate([p / p.sum(-1, keepdims=True), np.zeros((*p.shape[:2], 1))], -1)
        more = {
            "logprob": (("item", "framing", "answer"), logprob[1:]),
            "logprob_empty": (("framing", "answer"), logprob[0]),
            "mass": (("item", "framing"), np.exp(total.reshape(len(heads), -1, 3)[1:]).sum(-1)),
        }
        found = self.stances(items, p, "framing", list(self.continuations), more, turn, **cost)
        return Reading(described(found.data.assign_coords(answer=list(OFFERED)), self.variables), found.provenance)

    def _empty(self, turn: Turn, seam: Seam) -> list[int]:
        """The prompt that holds no item."""
        model: Any = turn.model
        if turn.chat:
            return turn.prompt(self.empty or "", seam)
        if self.empty is not None and (found := list(model.tokenizer(self.empty)["input_ids"])):
            return found
        first = (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
        there = next((x for x in first if isinstance(x, int) and self.empty is None), None)
        if there is None:
            raise InputError(
                f"The tokenizer of {model.name} has no token that begins a text, and a sentence has no probability "
                'behind nothing at all. Give empty=, a text that says nothing of any item (a line break, "Answer:").'
            )
        return [there]
