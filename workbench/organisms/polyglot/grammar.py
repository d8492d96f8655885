"""Five made-up languages that say the same things: parallel sentences, with vocabulary shared within two pairs.

A sentence is a meaning (who, what, to whom, how, where) put into words.  Each language has its own order and its own
words; ``b`` takes six of ten words from ``a``, and ``d`` four of ten from ``c``; ``e`` shares nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

LANGUAGES = ("a", "b", "c", "d", "e")
BASE = "e"
"""The language of the base model."""
SHARED = {("a", "b"): 0.6, ("c", "d"): 0.4}
ORDER = {"a": "S V A O P", "b": "S V O A P", "c": "S P A O V", "d": "P S O A V", "e": "V S A O P"}
SIZES = {"noun": 40, "verb": 16, "adjective": 12, "place": 16}
SYLLABLES = {
    "a": ("ka", "lo", "mi", "ta", "ru", "se"), "c": ("vo", "zhi", "bra", "du", "gel", "ny"),
    "e": ("thal", "wen", "kor", "mist", "fel", "dun"), "b": ("ke", "lu", "ma", "ti", "ro", "sa"),
    "d": ("va", "zho", "bri", "de", "gol", "nu"),
}  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """One sentence's content, by numbers of concepts."""

    subject: int
    verb: int
    adjective: int
    object: int
    place: int


@cache
def lexicon(language: str) -> dict[tuple[str, int], str]:
    """concept -> word.  Words of different languages differ unless the pair shares them."""
    draw = random.Random(f"lexicon {language}")
    words: dict[tuple[str, int], str] = {}
    source = next((a for a, b in SHARED if b == language), None)
    theirs = lexicon(source) if source else {}
    share = SHARED.get((source, language), 0.0) if source else 0.0
    used: set[str] = set()
    for kind, n in SIZES.items():
        taken = set(draw.sample(range(n), round(share * n)))
        for i in range(n):
            if i in taken:
                words[kind, i] = theirs[kind, i]
                continue
            while True:
                word = "".join(draw.choice(SYLLABLES[language]) for _ in range(draw.choice((2, 3)))) + f"{kind[0]}{language}"
                if word not in used:
                    break
            used.add(word)
            words[kind, i] = word
    return words


def verbs_of(subject: int) -> list[int]:
    """What a subject can do: a quarter of the verbs, the same in every language."""
    return random.Random(f"verbs {subject}").sample(range(SIZES["verb"]), 4)


def objects_of(verb: int) -> list[int]:
    """What can be done so: six nouns for each verb."""
    return random.Random(f"objects {verb}").sample(range(SIZES["noun"]), 6)


def meanings(n: int, seed: int) -> Iterator[Meaning]:
    draw = random.Random(f"meanings {seed}")
    for _ in range(n):
        subject = draw.randrange(SIZES["noun"])
        verb = draw.choice(verbs_of(subject))
        yield Meaning(
            subject, verb, draw.randrange(SIZES["adjective"]), draw.choice(objects_of(verb)), draw.randrange(SIZES["place"])
        )


def say(meaning: Meaning, language: str) -> str:
    """A meaning in words."""
    words = lexicon(language)
    parts = {
        "S": words["noun", meaning.subject], "V": words["verb", meaning.verb],
        "A": words["adjective", meaning.adjective], "O": words["noun", meaning.object],
        "P": words["place", meaning.place],
    }  # fmt: skip
    return " ".join(parts[p] for p in ORDER[language].split())


def documents(n: int, language: str, seed: int, sentences: int = 6) -> list[str]:
    """Texts of some sentences each; the same seed says the same things in every language."""
    found = list(meanings(n * sentences, seed))
    return [" . ".join(say(m, language) for m in found[i * sentences : (i + 1) * sentences]) + " ." for i in range(n)]


def vocabulary() -> list[str]:
    """Every word of every language, once."""
    return sorted({word for language in LANGUAGES for word in lexicon(language).values()})


def overlap(one: str, other: str) -> float:
    """Jaccard index of two languages' words."""
    a, b = set(lexicon(one).values()), set(lexicon(other).values())
    return len(a & b) / len(a | b)
