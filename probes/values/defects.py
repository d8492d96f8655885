"""What is wrong with a set of items, found before a model is asked.

An average over items of mixed polarity is not a direction, an item that asks for facts has no stance, a duplicate
counts twice, and a broken character is not what a person would type.  Published sets hold all of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

import pandas as pd

from probes.values.duplicates import close_pairs
from probes.values.items import Item, Items
from probes.values.wording import Wording, wording
from workbench.errors import InputError

KINDS = {
    "mixed polarity": "near-paraphrases that lean opposite ways, and no key says so",
    "contradicting keys": "the keys say one thing, the wording another",
    "no stance": "no answer to it would support or oppose anything",
    "near-duplicate": "the same item in other words: one cluster, not two observations",
    "broken characters": "text that was damaged on its way",
    "either/or": "it offers two answers, so that yes has no meaning",
    "equal options": "a choice between things that are the same",
}
NO_STANCE = {
    "facts": "asks for facts, or for the reasons of others",
    "advice": "asks for advice to the person who asks",
    "open": "asks an open question, without a claim to support",
    "request": "asks for a text",
}


@dataclass(frozen=True)
class Finding:
    """One defect: its kind (a key of :data:`KINDS`), the item (and the other one, of a pair), and why."""

    kind: str
    item_id: str
    other_id: str
    topic: str
    why: str


@dataclass(frozen=True)
class Report:
    """What was found in a set of items.  ``str`` of it is to be read; :meth:`frame` has one row per finding."""

    items: Items
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind.  Raises InputError for a kind that does not exist."""
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no kind of defect. Kinds are: {', '.join(KINDS)}.")
        return tuple(f for f in self.findings if f.kind == kind)

    def ids(self, kind: str) -> set[str]:
        """The items that findings of one kind name."""
        return {i for f in self.of(kind) for i in (f.item_id, f.other_id) if i}

    def to_pandas(self) -> pd.DataFrame:
        """Columns kind, topic, item_id, other_id, why, text, other_text; one row per finding."""
        text = {item.item_id: item.text for item in self.items} | {"": ""}
        columns = ["kind", "topic", "item_id", "other_id", "why", "text", "other_text"]
        rows = [
            (f.kind, f.topic, f.item_id, f.other_id, f.why, text[f.item_id], text[f.other_id]) for f in self.findings
        ]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        unkeyed = sum(item.polarity == 0 for item in self.items)
        lines = [f"{len(self.items)} items in {len(self.items.topics)} topics, {unkeyed} of them not keyed."]
        if not self.findings:
            lines.append("No defect was found (by rules and word lists: read a sample yourself).")
        text = {item.item_id: item.text for item in self.items}
        for kind, meaning in KINDS.items():
            found = self.of(kind)
            if not found:
                continue
            named = len(self.ids(kind))
            lines.append(f"\n{kind}: {named} item{'s' * (named != 1)} ({meaning})")
            pairs = [f for f in found if f.other_id]
            for f in found if not pairs else pairs[:12]:
                where = f"{f.item_id} / {f.other_id}" if f.other_id else f.item_id
                lines.append(f"  {where}  {f.why}: {_short(text[f.item_id])}")
                if f.other_id:
                    lines.append(f"  {' ' * len(where)}  against: {_short(text[f.other_id])}")
            if len(pairs) > 12:
                lines.append(f"  and {len(pairs) - 12} more pairs; see to_pandas()")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def defects(items: Iterable[Item], *, threshold: float = 0.8) -> Report:
    """What is wrong with a set of items, by rules that read English.

    mixed polarity: two claims in one topic about one subject (the content words of one are nearly all in the other)
        with opposite cues (legal / prohibited, real / myth, a negation), at least one of them without a key.
    contradicting keys: both keyed, nearly the same words, and cues and keys disagree.
    no stance: a question for facts, advice or a text, or an open question.  Not "what is your opinion on ...".
    near-duplicate: similarity (:mod:`probes.values.duplicates`) >= ``threshold`` without a content word exchanged for
        another, and the same form, side, numbers and keys.
    broken characters: U+FFFD, control characters, UTF-8 read as another encoding, HTML entities, "don?t".
    either/or: a question that offers two answers of its own.
    equal options: a choice with the same option twice.

    Limits.  Word lists and forms of English questions decide, not meaning.  Missed: opposites that the lists lack,
    paraphrases without common words, questions that presuppose their answer (why should we not ...), statements
    without a stance.  A subject of one word ("abortion") pairs every claim about it.  Read what is reported, and a
    sample of what is not.  Choices are checked for duplicates, options and characters alone.
    """
    items = items if isinstance(items, Items) else Items(items)
    read = [wording(item.text, item.kind == "question") for item in items]
    found = [*_opposites(items, read), *_single(items, read), *_duplicates(items, read, threshold)]
    order = list(KINDS)
    return Report(items, tuple(sorted(found, key=lambda f: order.index(f.kind))))


def _duplicates(items: Items, read: list[Wording], threshold: float) -> Iterator[Finding]:
    for i, j, value in close_pairs(items, read, threshold):
        a, b, x, y = read[i], read[j], items[i], items[j]
        alike = (a.form, a.side, a.numbers) == (b.form, b.side, b.numbers)
        if alike and (x.topic != y.topic or x.polarity * y.polarity >= 0):
            why = f"similarity {value:.2f}" + (f", other topic: {y.topic}" if x.topic != y.topic else "")
            yield Finding("near-duplicate", x.item_id, y.item_id, x.topic, why)


def _opposites(items: Items, read: list[Wording]) -> Iterator[Finding]:
    topics: dict[str, list[int]] = {}
    for k, (item, r) in enumerate(zip(items, read, strict=True)):
        if item.kind != "choice" and r.side and r.words:
            topics.setdefault(item.topic, []).append(k)
    for topic, members in topics.items():
        for i, j in combinations(members, 2):
            a, b, x, y = read[i], read[j], items[i], items[j]
            keyed = x.polarity * y.polarity
            same = _same_subject(a, b, strict=bool(keyed))
            if not same or a.numbers != b.numbers and keyed:
                continue
            if (keyed > 0 and a.side != b.side) or (keyed < 0 and a.side == b.side and _same_words(a, b)):
                why = f"the keys are {x.polarity:+d} and {y.polarity:+d}, the wording leans {a.side:+d} and {b.side:+d}"
                yield Finding("contradicting keys", x.item_id, y.item_id, topic, why)
            elif not keyed and a.side != b.side:
                why = " / ".join(f"{r.side:+d} ({', '.join(r.cues) or 'no cue'})" for r in (a, b))
                yield Finding("mixed polarity", x.item_id, y.item_id, topic, why)


def _same_subject(a: Wording, b: Wording, strict: bool) -> bool:
    """Whether two claims are about one thing, on one axis; one without a cue must match in nearly all its words."""
    shared, either = len(a.words & b.words), len(a.words | b.words)
    if strict or "plain" in (a.axis, b.axis):
        return shared >= 2 and shared / either >= 0.75
    return a.axis == b.axis and shared / min(len(a.words), len(b.words)) >= 0.8 and shared / either >= 1 / 3


def _same_words(a: Wording, b: Wording) -> bool:
    """Whether two texts are one but for a slip; "A before B" and "B before A" are not."""
    return SequenceMatcher(None, a.canonical.split(), b.canonical.split(), autojunk=False).ratio() >= 0.9


def _single(items: Items, read: list[Wording]) -> Iterator[Finding]:
    for item, r in zip(items, read, strict=True):
        if item.kind != "choice" and not r.stance:
            yield Finding("no stance", item.item_id, "", item.topic, NO_STANCE[r.form])
        if item.kind == "question" and r.alternatives:
            yield Finding("either/or", item.item_id, "", item.topic, "offers alternatives")
        if len(set(item.options)) < len(item.options):
            yield Finding("equal options", item.item_id, "", item.topic, "the same option twice")
        for text in (item.text, *item.options):
            why = damage(text)
            if why:
                yield Finding("broken characters", item.item_id, "", item.topic, why)
                break


def damage(text: str) -> str:
    """What is broken in a text's characters, in words; "" where nothing is."""
    checks: dict[str, Callable[[str], bool]] = {
        "U+FFFD in the place of a lost character": lambda t: "\ufffd" in t,
        "a control character": lambda t: bool(re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff]", t)),
        "UTF-8 that was read as another encoding": lambda t: any(map(_mojibake, t.split())),
        "an HTML entity": lambda t: bool(re.search(r"&(?:#\d+|#x[\da-f]+|amp|lt|gt|quot|apos|nbsp);", t, re.I)),
        "a question mark inside a word": lambda t: bool(
            re.search(r"(?<![\w/:.])[a-z]+\?(?:t|s|re|ll|ve|m|d)\b", t, re.I)
        ),
    }
    return "; ".join(why for why, broken in checks.items() if broken(text))


def _mojibake(word: str) -> bool:
    """Whether the word's bytes in a Western encoding are UTF-8 of something else, as in "cafÃ©"."""
    if word.isascii():
        return False
    for encoding in ("cp1252", "latin-1"):
        try:
            if word.encode(encoding).decode("utf-8") != word:
                return True
        except UnicodeError:
            continue
    # One cut-off character spoils the strict test; these pairs begin nothing else.
    return bool(re.search(r"â€|Ã[\u0080-\u00bf\u0192\u201a-\u203a]|ðŸ", word))


def _short(text: str, limit: int = 90) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
