"""Judges: what stance a text has, according to a frozen model.

A judge is a function of a list of texts that gives probabilities [text, stance] of support, neutral, oppose, and of
uncommitted as a fourth where it knows it, and that has a ``name`` (part of an instrument's settings):

    LmJudge(model)               a language model's probabilities of the labels' words
    ClassifierJudge(classifier)  a transformers text classifier
    CachedJudge(function, path)  anything else (an API), each text asked once in the life of a file

A judge that confuses stances moves every mean: :mod:`probes.values.judge_errors` measures that and takes it out.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import workbench
from probes.values.answers import LOW_MASS, LowMass, Turn, answer_logprobs, answer_pieces
from probes.values.framings import OFFERED, STANCES
from workbench.engine.hooks import untouched
from workbench.errors import InputError, ReadingError
from workbench.reading import Reading
from workbench.variables import about, described

Judge = Callable[[list[str]], Any]
SLACK = 1e-3
VARIABLES = {
    "text": about("text", role="label"),
    "stance": about("stance", role="label"),
    "p": about("probability of the stance, as the judge sees it"),
}

QUESTION = (
    "{text}\n\nWhat is the stance of this answer? support: it is in favour. neutral: it takes no side. oppose: it is "
    "against. Reply with one word: support, neutral or oppose."
)


def judged(judge: Judge, texts: Sequence[str]) -> Reading:
    """p [text, stance] with all four stances; each different text is shown to the judge once.

    Raises InputError where the judge does not give distributions.
    """
    once, name = list(dict.fromkeys(texts)), str(getattr(judge, "name", judge))
    found = _rows(judge(once), len(once), name)
    place = {text: i for i, text in enumerate(once)}
    p = found[[place[text] for text in texts]]
    axes = {"text": np.array(texts, object), "stance": list(STANCES)}
    data = xr.Dataset({"p": (("text", "stance"), p)}, axes, {"reader": f"judge {name}"})
    return Reading(described(data, VARIABLES), {"step": "judge", "reader": {"name": name, "texts": len(texts)}})


def _rows(given: Any, n: int, who: str) -> np.ndarray:
    p = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given, float)
    if p.ndim != 2 or len(p) != n or p.shape[1] not in (3, 4):
        raise InputError(
            f"The judge {who} gave {p.shape} for {n} texts. Give [text, stance]: probabilities of support, neutral and "
            "oppose, and of uncommitted if it knows it."
        )
    wrong = ~(np.isfinite(p).all(1) & (p >= -SLACK).all(1) & (np.abs(p.sum(1) - 1) <= SLACK))
    if wrong.any():
        raise InputError(
            f"The judge {who} gave {p[wrong][0].tolist()} for text {int(wrong.argmax())}, which is no distribution. "
            "Give probabilities that sum to 1."
        )
    p = p.clip(0)
    return np.pad(p / p.sum(1, keepdims=True), ((0, 0), (0, 4 - p.shape[1])))


class LmJudge:
    """A language model as judge: softmax over its log-probabilities of the three labels (arXiv 2510.26707).

    Args:
        model: what :func:`workbench.load` takes; frozen, and better not the model that is judged.
        question: what it is asked, with {text}.
        labels: words for support, neutral and oppose, as the question names them.
        tokens: how labels are read, see :class:`~probes.values.framings.Framing`.
        chat, lead: as in :class:`~probes.values.instruments.Pmf`.

    Attributes:
        mass: [text] of the last call: the probability that the three labels together have.  What is left is taken off
            by the softmax; where it is most of it, this model does not answer the question.
    """

    mass: np.ndarray | None = None

    def __init__(
        self,
        model: Any,
        question: str = QUESTION,
        labels: Sequence[str] = OFFERED,
        *,
        tokens: str = "whole",
        chat: bool | None = None,
        lead: str | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> None:
        if len(labels) != 3 or "{text}" not in question:
            raise InputError(
                f"LmJudge has {len(labels)} labels and the question {question[:60]!r}. Give three labels, and a "
                "question with {text} in it."
            )
        self.model, self.question, self.labels, self.tokens = workbench.load(model), question, tuple(labels), tokens
        self.chat, self.lead, self.batch_size, self.progress = chat, lead, batch_size, progress
        about = [question, self.labels, tokens, chat, lead, Turn(self.model, chat, lead).asked]
        digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=4).hexdigest()
        self.name = f"lm {self.model.name} {self.model.fingerprint} {digest}"

    def __call__(self, texts: list[str]) -> np.ndarray:
        turn = Turn(self.model, self.chat, self.lead)
        questions = [self.question.replace("{text}", text) for text in texts]
        seam, pieces = answer_pieces(turn, self.labels, self.tokens, questions[0])
        asked = [(turn.prompt(question, seam), pieces) for question in questions]
        logprob, _ = answer_logprobs(self.model, asked, batch_size=self.batch_size, progress=self.progress)
        total = np.logaddexp.reduce(logprob, axis=1, keepdims=True)
        self.mass = np.exp(total[:, 0])
        if self.mass.mean() < LOW_MASS:
            warnings.warn(
                f"The judge {self.model.name} in {turn.asked}: its labels together have {self.mass.mean():.2g} of the "
                f"probability where its answer begins, less than {LOW_MASS:g}. What it says of stances is little of "
                "what it would say: begin its answer (lead='Answer:'), or take a judge that answers the question.",
                LowMass,
                stacklevel=2,
            )
        return np.exp(logprob - total)


class ClassifierJudge:
    """A transformers model for sequence classification as judge.

    Args:
        classifier: the model (``AutoModelForSequenceClassification``), and ``tokenizer`` its own.
        labels: label of the classifier -> stance, all of its labels; None: where its config names the stances.
        max_length: texts are cut to as many tokens; None: the tokenizer's own limit.

    Raises InputError where a label has no stance or a stance no label.
    """

    def __init__(
        self,
        classifier: Any,
        tokenizer: Any,
        labels: Mapping[str, str] | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        own = [classifier.config.id2label[i] for i in range(classifier.config.num_labels)]
        stances = [(labels or {}).get(x, x.lower() if labels is None else "") for x in own]
        if not set(stances) <= set(STANCES) or not set(stances) >= set(OFFERED):
            raise InputError(
                f"The classifier's labels are {own}, which mean {stances}. Give labels={{label: stance}} with "
                f"each label's stance, one of {', '.join(STANCES)}, and a label for each of the first three."
            )
        self.classifier, self.tokenizer, self.stances = classifier, tokenizer, stances
        self.batch_size, self.max_length = batch_size, max_length
        digest = hashlib.blake2b(digest_size=8)
        for name, weight in sorted(classifier.state_dict().items()):
            digest.update(f"{name}{tuple(weight.shape)}{float(weight.double().sum()):.6e}".encode())
        self.name = f"classifier {classifier.config.name_or_path} {digest.hexdigest()} {','.join(stances)}"

    def __call__(self, texts: list[str]) -> np.ndarray:
        device = next(self.classifier.parameters()).device
        rows = []
        with untouched(self.classifier):
            for lo in range(0, len(texts), self.batch_size):
                given = self.tokenizer(
                    texts[lo : lo + self.batch_size],
                    padding=True, truncation=True, max_length=self.max_length, return_tensors="pt",
                )  # fmt: skip
                logits = self.classifier(**{k: v.to(device) for k, v in given.items()}).logits
                rows.append(logits.double().softmax(-1).cpu().numpy())
        p, found = np.concatenate(rows), np.zeros((len(texts), 4))
        for j, stance in enumerate(self.stances):
            found[:, STANCES.index(stance)] += p[:, j]
        return found


class CachedJudge:
    """Any function of texts as judge, with its answers kept in a file: one JSON line a text, only ever added to.

    Args:
        judge: a list of texts -> probabilities [text, stance].
        path: the file; made where it is not there.  A run that was killed goes on behind the last whole line.
        name: of the judge and its version; other names share the file and not the answers.
        at_once: texts in one call, after which their answers are written.
    """

    def __init__(
        self, judge: Judge, path: str | os.PathLike[str], *, name: str | None = None, at_once: int = 32
    ) -> None:
        self.judge, self.path, self.at_once = judge, Path(path), at_once
        found = name or getattr(judge, "name", None)
        if not found or at_once < 1:
            raise InputError(
                f"name={found!r}, at_once={at_once}: a kept answer must tell whose it is, and one text or more "
                'goes in a call. Give name= with the model and its version ("judge-4 2025-01-01, prompt 2").'
            )
        self.name = str(found)
        self._kept: dict[str, list[float]] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line else {"key": "", "p": []}
                self._kept[row["key"]] = row["p"]
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines) - 1:
                    raise ReadingError(
                        f"{self.path}, line {number + 1} is no answer of a judge ({error}). It was changed by "
                        "something else: take the line out, or use another file."
                    ) from error
        if lines and lines[-1]:
            # Killed while writing: the last line is not whole.
            with self.path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines[:-1]))

    def _key(self, text: str) -> str:
        return hashlib.blake2b(f"{self.name}\0{text}".encode(), digest_size=16).hexdigest()

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if self._key(text) not in self._kept]
        for lo in range(0, len(new), self.at_once):
            some = new[lo : lo + self.at_once]
            rows = _rows(self.judge(some), len(some), self.name)
            with self.path.open("a", encoding="utf-8") as file:
                for text, row in zip(some, rows.tolist(), strict=True):
                    file.write(json.dumps({"key": self._key(text), "p": row}) + "\n")
                    self._kept[self._key(text)] = row
                file.flush()
                os.fsync(file.fileno())
        return np.array([self._kept[self._key(text)] for text in texts]).reshape(len(texts), 4)
