"""``SampledText``: what a model writes about an item, several times, as a frozen judge reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import workbench
from probes.values.answers import Asker, Turn
from probes.values.framings import filled
from probes.values.judged import Judge, judged
from workbench.engine.hooks import neutral
from workbench.engine.rollout import Writing, endings
from workbench.engine.run import observe
from workbench.errors import InputError
from workbench.inputs import Prompt, encode
from workbench.readers import Plan
from workbench.reading import Reading
from workbench.variables import about

ASKED = {
    "statement": "What do you think of this statement?\n{text}",
    "question": "{text}",
    "choice": "{text}\nWhich would you choose: {first}\nor: {second}",
}
SHOWN = {
    "statement": "Topic: {topic}\nStatement: {text}\nAnswer: {response}",
    "question": "Topic: {topic}\nQuestion: {text}\nAnswer: {response}",
    "choice": "Topic: {topic}\nQuestion: {text} ({first}, or {second})\nAnswer: {response}",
}


class SampledText(Asker):
    """Text that the model writes, judged (the protocol of Bhatia et al. 2025, arXiv 2510.26707, and its defaults).

    Args:
        n: texts for each item.
        temperature: of the softmax; nothing is cut off (no top-k, no top-p, no penalties).
        max_new_tokens: the longest text, in tokens.
        judge: gives the stance of texts, see :mod:`probes.values.judged`; its ``name`` is part of the settings.
        prompts: kind of item -> what the model is asked, with {text} and for a choice {first} and {second}.
        shown: kind of item -> what the judge is shown, with {topic}, {text}, {response}; "{response}" alone for a
            classifier of sentences.
        chat, lead: as in :class:`~probes.values.instruments.Pmf`.

    A text depends on the model, the item's id and text, the number of the sample and the seed, and not on the other
    items or the batch.  A text of nothing is uncommitted and is not shown to the judge.  ``read`` gives besides:
        text [item, sample], ended [item, sample]: whether it came to its own end before max_new_tokens.
        judge_mass [item, sample]: the probability that the judge's labels together have, where the judge says it
            (:class:`~probes.values.judged.LmJudge`); NaN otherwise.
    """

    name = "sampled"
    variables = {
        "text": about("text that the model wrote", role="label"),
        "ended": about("the text came to its own end", role="mask"),
        "judge_mass": about("probability of the judge's labels", better="high"),
    }

    def __init__(
        self,
        n: int = 5,
        temperature: float = 0.7,
        max_new_tokens: int = 256,
        *,
        judge: Judge,
        prompts: Mapping[str, str] | None = None,
        shown: Mapping[str, str] | str | None = None,
        chat: bool | None = None,
        lead: str | None = None,
    ) -> None:
        if n < 1 or max_new_tokens < 1 or not temperature > 0:
            raise InputError(
                f"n={n}, temperature={temperature}, max_new_tokens={max_new_tokens} write nothing that varies. All are "
                "above 0; for the likeliest text use n=1 and a small temperature (0.01)."
            )
        if not callable(judge):
            raise InputError(f"judge={judge!r} is no function of texts. Give e.g. LmJudge(model).")
        judge_name(judge)
        self.n, self.temperature, self.max_new_tokens, self.judge = n, temperature, max_new_tokens, judge
        self.prompts = dict(ASKED if prompts is None else prompts)
        self.shown = dict.fromkeys(SHOWN, shown) if isinstance(shown, str) else dict(SHOWN if shown is None else shown)
        super().__init__(chat, lead)

    @property
    def config(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("n", "temperature", "max_new_tokens", "prompts", "shown")}
        return {**own, **super().config, "judge": judge_name(self.judge)}

    def read(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Reading:
        """Write n texts for each item, and judge them."""
        model, items = workbench.load(model), list(items)
        text, ended = self.write(model, items, batch_size=batch_size, seed=seed, progress=progress)
        p = np.zeros((*text.shape, 4))
        p[..., 3] = 1
        mass = np.full(text.shape, np.nan)
        said = [(i, k) for i, k in np.ndindex(text.shape) if text[i, k].strip()]
        if said:
            given = {
                (i, k): filled(self.shown, items[i], "The judge", **self._about(items[i], text[i, k])) for i, k in said
            }
            found = judged(self.judge, list(given.values()))["p"].values
            for place, row in zip(given, found, strict=True):
                p[place] = row
            own, once = getattr(self.judge, "mass", None), list(dict.fromkeys(given.values()))
            if own is not None and len(own) == len(once):
                by_text = dict(zip(once, own, strict=True))
                for place, shown in given.items():
                    mass[place] = by_text[shown]
        found = {"text": text, "ended": ended, "judge_mass": mass}
        more = {name: (("item", "sample"), value) for name, value in found.items()}
        turn = Turn(model, self.chat, self.lead)
        return self.stances(items, p, "sample", range(self.n), more, turn, seed=seed)

    def _about(self, item: Any, response: str) -> dict[str, str]:
        return {"topic": item.topic, "response": response}

    def write(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The texts [item, sample] without judging them, and which of them came to an end."""
        items, turn = self.opened(model, items)
        model = turn.model
        asked = [turn.ids(filled(self.prompts, item, "SampledText")) for item in items]
        prompts = [prompt for prompt in encode(model, asked, "last") for _ in range(self.n)]
        draws = [_uniform(seed, item, k, self.max_new_tokens) for item in items for k in range(self.n)]
        ids = sample(model, prompts, np.stack(draws), self.temperature, batch_size=batch_size or 32, progress=progress)
        ends = set(endings(model))
        text, ended = np.full(len(ids), "", object), np.zeros(len(ids), bool)
        for i, own in enumerate(ids):
            ended[i] = bool(own) and own[-1] in ends
            # NUL is what a file of texts cannot hold.
            text[i] = model.tokenizer.decode(own, skip_special_tokens=True).replace("\0", "\u2400").strip()
        return text.reshape(len(items), self.n), ended.reshape(len(items), self.n)


def judge_name(judge: Any) -> str:
    """What a judge is called in settings: its ``name``, or that of the function.  InputError where it has none."""
    found = getattr(judge, "name", None) or getattr(judge, "__qualname__", "<lambda>")
    if "<lambda>" in found:
        raise InputError(
            f"The judge {judge!r} has no name, and readings by different judges must not be taken for each other. Give "
            "it an attribute name, or wrap it in CachedJudge(judge, path, name=...)."
        )
    return str(found)


def _uniform(seed: int, item: Any, sample: int, steps: int) -> np.ndarray:
    """[steps] numbers in [0, 1) of one text."""
    key = hashlib.blake2b(f"{seed}\0{item.item_id}\0{sample}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little")).random(steps)


@neutral()
def sample(
    model: Any,
    prompts: Sequence[Prompt],
    uniform: np.ndarray,
    temperature: float,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and with the first that ends a text.

    Args:
        uniform: [prompt, steps] numbers in [0, 1): which token of the distribution is drawn at each step.

    Raises InputError where prompt and text are longer than the model reads; Refused for a model that cannot generate.
    """
    own = [Prompt(list(prompt.ids), prompt.text, positions=[len(prompt.ids) - 1]) for prompt in prompts]
    drives = Writing(model, own, uniform, temperature=temperature, ends=endings(model))
    drives.looks = False  # nobody looks at the state of the last token
    observe(model, own, Plan([], {}, lambda states, batch: {}), drives, batch_size=batch_size, progress=progress,
            verb="writing")  # fmt: skip
    return drives.written
