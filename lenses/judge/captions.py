"""A judge without a model: a word fits where the picture's caption has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lenses.judge.questions import JudgeError, Question, Verdict
from workbench.errors import InputError

WORDS = re.compile(r"[A-Za-z]{3,}")
# Captions are full of these, and a lens that gives them has said nothing.  Captions address nobody: words of the first
# and second person stay words.
FUNCTION_WORDS = frozenset(
    """
    about above across after again against all along also although among and another any are around because been before
    behind being below beneath beside between beyond both but can could did does doing down during each either else
    ever every few for from had has have having her here hers him his how into its itself just less like may might more
    most much must near neither nor not off once one only onto other others out over own per quite rather same several
    she should since some such than that the their them then there these they this those though three through
    throughout too toward towards two under until upon very was were what when where whether which while who whom whose
    why will with within without would yet
    """.split()
)
ENDINGS = ("ing", "ies", "es", "ed", "s")
LEAST = 3
"""Letters that an ending must leave."""


def stem(word: str) -> str:
    """The word in small letters without its ending: puzzles -> puzzl, puzzle -> puzzle, parties -> part."""
    small = word.lower()
    for ending in ENDINGS:
        if small.endswith(ending) and len(small) - len(ending) >= LEAST:
            return small[: -len(ending)]
    return small


def content(text: str) -> list[str]:
    """Words of three letters or more that mean something by themselves."""
    return [word for word in WORDS.findall(text) if word.lower() not in FUNCTION_WORDS]


@lru_cache(4096)
def stems(text: str) -> frozenset[str]:
    return frozenset(map(stem, content(text)))


class Captions:
    """A word fits where a word with its stem is in the picture's caption.

    It knows the whole picture and no region: what fits is "global".  Give :func:`judge` the captions.  What it calls
    fitting by chance, words of longer captions above all, is in the nulls.

    Parameters
    ----------
    wordnet
        Also synonyms, from WordNet (the package nltk with its data "wordnet").

    Raises
    ------
    ImportError, InputError
        Where ``wordnet=True`` and nltk or its data are not installed.
    """

    def __init__(self, *, wordnet: bool = False) -> None:
        self._wordnet = _loaded() if wordnet else None
        self.name = f"captions: stems{' and synonyms of WordNet' * wordnet}"

    def check(self, questions: Sequence[Question]) -> None:
        if any(question.caption is None for question in questions):
            raise InputError("This judge reads captions, and there are none. Give captions=, one for each picture.")

    def __call__(self, question: Question) -> Verdict:
        if question.caption is None:
            raise JudgeError("A question without a caption came to the judge of captions.")
        known = self._known(question.caption)
        return Verdict(elsewhere=tuple(word for word in question.words if self._known(word) & known))

    def _known(self, text: str) -> frozenset[str]:
        if self._wordnet is None:
            return stems(text)
        return stems(text) | {
            stem(lemma)
            for word in content(text)
            for meaning in self._wordnet.synsets(word.lower())
            for lemma in meaning.lemma_names()
        }


def _loaded() -> Any:
    try:
        from nltk.corpus import wordnet
    except ImportError:
        raise ImportError(
            "Captions(wordnet=True) needs the package nltk, which is not installed. Install it with: pip install nltk, "
            'and its data with: python -c "import nltk; nltk.download(\'wordnet\')"'
        ) from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise InputError(
            "nltk is installed without the data of WordNet. Get it with: "
            'python -c "import nltk; nltk.download(\'wordnet\')"'
        ) from None
    return wordnet
