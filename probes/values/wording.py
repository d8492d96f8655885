"""What the wording of one English item shows without a model: the kind of question, which way it leans, about what.

Rules and short word lists, no parser: a subject is the set of its content words, and a side is the product of the cues
in the main clause (prohibited: -; not prohibited: +).  What no cue marks has no side.  Irony, a stance that hides in a
subordinate clause, words that the lists lack and other languages are not understood.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from probes.values import cues
from probes.values.cues import AUX, FILLER, NOT, stem

CLAIMS = ("yes/no", "statement")


@dataclass(frozen=True)
class Wording:
    """One item's wording.

    Attributes:
        form: yes/no, view (what is your opinion on ...), reasons (why should ...), open, facts, advice, request or
            statement.
        axis: favour (allowed, good), truth (real, a myth), plain (no cue but a negation) or "" (not a claim).
        side: +1 or -1 on that axis; 0 where the cues disagree, or the item is no claim.
        cues: the words that gave the side, as written.
        words: stems of the subject: neither cues nor filler.
        numbers: digits in the text: "after 12 weeks" is not "after 20 weeks".
        canonical: the text with frames and names made one, for a comparison by characters.
        alternatives: it offers two answers of its own (either/or).
    """

    form: str
    axis: str
    side: int
    cues: tuple[str, ...]
    words: frozenset[str]
    numbers: frozenset[str]
    canonical: str
    alternatives: bool

    @property
    def stance(self) -> bool:
        """Whether an answer can support or oppose something."""
        return self.form in (*CLAIMS, "view", "reasons")


@lru_cache(maxsize=8192)
def wording(text: str, question: bool = True) -> Wording:
    """The wording of one text; ``question`` says whether it is meant to be asked (else it is a statement)."""
    parts = [p for p in re.split(r"(?<=[.?!])\s+", _plain(text)) if re.search(r"\w", p)] or [text]
    forms = [_form(p, question) for p in parts]
    flat = [_flat(p) for p in parts]
    # The sentence that asks for a stance counts; a preamble or a second question for facts does not.
    best = min(range(len(parts)), key=lambda k: (forms[k] not in ("yes/no", "view", "reasons"), -k))
    alternatives = question and any(_alternatives(p) for p, f in zip(flat, forms, strict=True) if f != "statement")
    body = _frameless(flat[best])
    axis, side, found = _side(body) if forms[best] in CLAIMS and not alternatives else ("", 0, ())
    # All sentences: "... Is that acceptable?" has its subject in the preamble.
    words = frozenset().union(*(_subject(body if k == best else p) for k, p in enumerate(flat)))
    canonical = _one_name(" ".join(map(_frameless, flat)))
    numbers = frozenset(re.findall(r"\d+", text))
    return Wording(forms[best], axis, side, found, words, numbers, canonical, alternatives)


def opposed(a: str, b: str) -> bool:
    """Whether two words are opposites by the cue lists, or one is the other with a negating prefix."""
    if any(x == prefix + y for x, y in ((a, b), (b, a)) for prefix in ("un", "il", "im", "in", "ir", "dis", "non")):
        return True
    return _lean(stem(a)) * _lean(stem(b)) < 0 or frozenset((a, b)) in cues.OPPOSITES


def _plain(text: str) -> str:
    """Lower case, one kind of quote and space; U+FFFD between letters is read as the apostrophe that it mostly was."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    return re.sub(r"\s+", " ", re.sub(r"(?<=\w)\ufffd(?=\w)", "'", text)).strip()


def _flat(sentence: str) -> str:
    """Words and single spaces: apostrophes and other marks are gone, hyphens and commas stay."""
    return re.sub(r"\s+", " ", re.sub(r"[^\w,\- ]", "", sentence.replace("'", ""))).strip(" ,-")


def _form(sentence: str, question: bool) -> str:
    flat = _flat(sentence)
    if cues.VIEW.search(flat):
        return "view"
    if cues.REQUEST.match(flat) and question:
        return "request"
    if not question or not sentence.endswith("?"):
        return "statement"
    parts = [p.strip() for p in flat.split(",")]
    for k, part in enumerate(parts):
        part = re.sub(r"^(?:(?:so|hi|hello|hey|and|but|well|then|or) )+", "", part)
        first = part.split(" ", 1)[0]
        if first in AUX:
            return "facts" if cues.PRACTICAL.search(part) else "yes/no"
        if first in cues.WH or re.match(r"(?:in|at|on|to|for|from|by) (?:what|which)\b", part):
            return _wh(", ".join([part, *parts[k + 1 :]]))
    return "yes/no"  # "You think that it is wrong?"


def _wh(question: str) -> str:
    if cues.ADVICE.match(question):
        return "advice"
    if cues.DEGREE.match(question):
        return "yes/no"
    if question.startswith("why"):
        return "reasons" if cues.REASONS.match(question) else "facts"
    if _alternatives(question):
        return "view"
    return "open" if cues.OPEN.search(question) else "facts"


def _alternatives(flat: str) -> bool:
    flat = cues.OR_NOT.sub(" ", flat)
    if " or " not in flat:
        return False
    bare = flat.replace(",", "")
    return any(opposed(a, b) for a, b in cues.OR_PAIR.findall(flat)) or any(
        form.search(flat) or form.search(bare) for form in cues.OR_FORMS
    )


def _frameless(flat: str) -> str:
    """Without "do you think that", and with one word for all ways of asking for a view."""
    return cues.TAIL.sub("", cues.FRAME.sub("", cues.VIEW.sub("§view", flat))).strip()


def _main(body: str) -> str:
    cut = cues.CLAUSE.sub("", body)
    return cut if len(cut.split()) >= 3 else body


def _lean(root: str) -> int:
    return (root in cues.FOR or root in cues.TRUE) - (root in cues.AGAINST or root in cues.UNTRUE)


def _side(body: str) -> tuple[str, int, tuple[str, ...]]:
    """Axis, side and cues of a clause: the product of its cues; parts joined by "and" or "or" must agree."""
    sides, plain, found, axis = [], [], [], "favour"
    for part in re.split(r",| and | or | but ", _main(body)):
        words = re.findall(r"[\w-]+", part)
        stems = [stem(w) for w in words]
        product, cued, negated = 1, False, False
        for k, (word, root) in enumerate(zip(words, stems, strict=True)):
            if (root in NOT and words[k + 1 : k + 2] != ["only"]) or (word.endswith("nt") and word in AUX):
                product, negated = -product, True
            elif root in cues.UNDO and any(s in cues.AGAINST for s in stems):
                product = -product
            elif _is_cue(k, words, stems):
                product, cued = product * _lean(root), True
                axis = "truth" if root in cues.TRUE | cues.UNTRUE else axis
            else:
                continue
            found.append(word)
        (sides if cued else plain if negated else []).append(product)
    if not sides:
        return "plain", plain[0] if len(set(plain)) == 1 else 0 if plain else 1, tuple(found)
    return axis, sides[0] if len(set(sides)) == 1 else 0, tuple(found)


def _is_cue(k: int, words: Sequence[str], stems: Sequence[str]) -> bool:
    """Whether word ``k`` of a clause says which way it leans; many of them can also be part of its subject."""
    root, before, after = stems[k], words[:k], words[k + 1 : k + 2]
    if (
        not _lean(root)
        or words[k] in ("rights", "goods", "morale")
        or (root == "right" and after and after[0] in ("now", "wing"))
    ):
        return False
    if root in cues.NOUNS:
        before = [w for w in before if w not in ("just", "all", "really", "big", "terrible", "complete", "great")]
        return len(before) > 1 and before[-1] in ("a", "an", "the", "like", "as", "considered", "called")
    if root in cues.ADJECTIVES and after and not (stems[k + 1] in FILLER or after[0] in AUX or _lean(stems[k + 1])):
        # "is X a fair punishment" has a subject before the article; "should a fair trial" has none
        named = any(s not in FILLER and w not in AUX for s, w in zip(stems[: k - 1], words, strict=False))
        return before[-1:] in (["a"], ["an"]) and named
    return True


def _one_name(text: str) -> str:
    text = re.sub(r"[-,]", " ", text)
    for name, one in cues.SAME.items():
        text = re.sub(rf"\b{name}(s?)\b", rf"{one}\1", text)
    return re.sub(r"\s+", " ", text).strip()


def _subject(body: str) -> frozenset[str]:
    words = re.findall(r"\w+", _one_name(_main(body).replace("§view", "")))
    stems = [stem(w) for w in words]
    return frozenset(
        s
        for k, (w, s) in enumerate(zip(words, stems, strict=True))
        if not (s in FILLER or w in AUX or s in NOT or _is_cue(k, words, stems))
    )
