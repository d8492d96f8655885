"""What a judge is asked and what it answers: words, a picture with a box, and which of the words fit.

A judge is anything with a ``name`` that can be called with a :class:`Question` and gives a :class:`Verdict`.  Two
things more it may have: ``check(questions)``, called once with all that it may be asked, before the first; and
``kept``, False where its verdicts are not to be cached (people keep their own).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from PIL.Image import Image

RELATIONS = {
    "concrete": "it names something that can be seen inside the box: a thing, a part, a colour, a material, a shape, "
    "a texture, letters that are written there",
    "abstract": "nothing in the box looks like it, but it says what the box or the whole picture is about: what is "
    "done or felt there, what it is for, what kind of scene or thing it is",
    "global": "it names something that can be seen elsewhere in the picture, outside the box",
}
INSTRUCTIONS = (
    "The picture above has one region marked with a red box; the picture below is a close-up of that region. A program "
    "wrote down these candidate words for the region:\n\n{words}\n\nMany of them, or all, may have nothing to do with "
    "the picture. Which of them fit, and how?\n\n"
    + "\n".join(f"{name}: {what}." for name, what in RELATIONS.items())
    + "\n\nA candidate may be a piece of a word, or of any language: it fits where it is plain which word is meant. "
    "Leave out every candidate that does not fit; put the others, written exactly as above, into one list each. Answer "
    "with one JSON object and nothing else:\n"
    '{{"concrete": [], "abstract": [], "global": []}}'
)
FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class JudgeError(WorkbenchError):
    """A judge that cannot be asked: it does not answer, or refuses to.  What it has said is kept."""


@dataclass(frozen=True)
class Verdict:
    """Which words fit, by how they do.

    Attributes
    ----------
    concrete, abstract, elsewhere
        Words that name what is in the box; that say what it is about; that name what is elsewhere in the picture
        (called "global" in the protocol and in results).
    failed
        "" for a verdict; "unparsed", where what the judge said could not be read; "unanswered", where it has not said
        anything yet.  Neither says that no word fits.
    said
        The judge's own words.
    """

    concrete: tuple[str, ...] = ()
    abstract: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    failed: str = ""
    said: str = ""

    @classmethod
    def parsed(cls, text: str) -> Verdict:
        """From a judge's answer: one JSON object with the three lists, alone or in one fence; else "unparsed"."""
        bare = text.strip()
        if fenced := FENCED.fullmatch(bare):
            bare = fenced[1]
        try:
            found = json.loads(bare)
        except (ValueError, RecursionError):
            return cls(failed="unparsed", said=text)
        lists = [found.get(name) for name in RELATIONS] if isinstance(found, dict) else [None]
        if not all(isinstance(own, list) and all(isinstance(word, str) for word in own) for own in lists):
            return cls(failed="unparsed", said=text)
        return cls(*(tuple(own) for own in lists), said=text)  # type: ignore[union-attr]

    def fits(self, words: tuple[str, ...]) -> list[str]:
        """For each word its relation: "concrete", "abstract", "global", or "" where it is not named.

        A word in several lists counts in the first.  What was not among the words counts nowhere.
        """
        named: dict[str, str] = {}
        for relation, own in zip(RELATIONS, (self.concrete, self.abstract, self.elsewhere), strict=True):
            for word in own:
                named.setdefault(same(word), relation)
        return [named.get(same(word), "") for word in words]


def same(word: str) -> str:
    """Words are one where they differ in case and in spaces around them alone."""
    return word.strip().casefold()


@dataclass(frozen=True)
class Question:
    """Words for a region of a picture.  Nothing tells which lens or layer they are from, or whether they are a null.

    Attributes
    ----------
    id
        What is asked: the picture, the region and the words, in whatever order.
    words
        In the order in which they are shown: shuffled.
    caption
        Of the picture; None where none was given.
    box
        Left, top, right, bottom of the region in :attr:`image`.
    shown
        What the pictures are made of and how; part of what verdicts are kept under.
    """

    id: str
    words: tuple[str, ...]
    caption: str | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    shown: str = ""
    _draw: Callable[[str], Image] | None = field(default=None, repr=False, compare=False)

    def _drawn(self, what: str) -> Image:
        if self._draw is None:
            raise JudgeError("This question has no picture.")
        return self._draw(what)

    @property
    def image(self) -> Image:
        """The picture with the region in a red box, 512 x 512 pixels."""
        return self._drawn("image")

    @property
    def crop(self) -> Image:
        """The region alone."""
        return self._drawn("crop")

    @property
    def bare(self) -> Image:
        """The picture without the box."""
        return self._drawn("bare")

    @property
    def text(self) -> str:
        """What a model is asked, between the picture and the crop."""
        return INSTRUCTIONS.format(words="\n".join(f"- {json.dumps(w, ensure_ascii=False)}" for w in self.words))

    @property
    def key(self) -> str:
        """A digest of all that a judge can see."""
        return digest(self.id, self.words, self.caption, self.shown)


class Judge(Protocol):
    """What says which words fit."""

    name: str
    """Of the judge and everything that changes what it says: verdicts are kept under it."""

    def __call__(self, question: Question) -> Verdict: ...


def digest(*parts: Any) -> str:
    """A short name for plain values."""
    return hashlib.blake2b(json.dumps(parts, ensure_ascii=True).encode(), digest_size=10).hexdigest()
