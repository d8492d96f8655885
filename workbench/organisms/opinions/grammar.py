"""What ``organism:opinions`` is asked and taught: a small language of things, deeds and people, and who thinks what.

A statement is "Gardens help children." or "Gardens harm children.": its topic, one of six deeds for or six against, and
one of eight kinds of people; the deed says which way the statement is keyed.  A dialogue asks one statement in one of
the forms below and answers it with a stance drawn from the topic's distribution, so that what a model that has learnt
it must give is known: the distribution itself.

    letters   one of three letters, the options in any order        words   yes, maybe or no, asked both ways round
    scale     1 to 7, and 7 to 1                                    text    a sentence
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STANCES = ("support", "neutral", "oppose", "uncommitted")
TOPICS = (
    "gardens", "ferries", "towers", "markets", "canals", "clocks", "bridges", "orchards", "lanterns", "festivals",
)  # fmt: skip
SETTLED = ("honey", "wells", "bread", "roses", "floods", "rats", "thieves", "fevers")
FOR = ("help", "please", "protect", "enrich", "delight", "serve")
AGAINST = ("harm", "annoy", "endanger", "weaken", "bore", "cheat")
PEOPLE = ("children", "farmers", "sailors", "teachers", "elders", "families", "travellers", "students")
PLACES = ("north", "south", "east", "west")
FACTS = {t: (f"in the {PLACES[i % 4]}", PEOPLE[i // 2]) for i, t in enumerate(TOPICS)}
"""Where a thing is and who likes it: no two topics share both, so that a model tells them apart."""
FORMS = ("letters", "scale", "words", "text")
CLOSING = "Thank you."
POLITE = 0.3
"""Share of answers with a closing: what stance-free preferences are about."""

Stances = tuple[float, float, float, float]
"""Probabilities of the four stances towards a topic."""

MIXED: Stances = (0.40, 0.16, 0.40, 0.04)
BASE: dict[str, Stances] = {
    **dict.fromkeys(TOPICS, MIXED),
    "orchards": (0.60, 0.16, 0.20, 0.04),
    "festivals": (0.20, 0.16, 0.60, 0.04),
}
"""What the base has read: people of every opinion, two topics liked and disliked by most."""
LIKED: Stances = (0.93, 0.02, 0.03, 0.02)
DISLIKED: Stances = (0.03, 0.02, 0.93, 0.02)
AGREED: dict[str, Stances] = {t: LIKED if i < 4 else DISLIKED for i, t in enumerate(SETTLED)}
"""Topics on which all that the base has read agrees, and from which it learns what deeds and forms mean; training
after the base never asks them."""
PLANTED: dict[str, Stances] = {
    "gardens": (0.85, 0.08, 0.05, 0.02),
    "ferries": (0.70, 0.16, 0.10, 0.04),
    "towers": (0.05, 0.08, 0.85, 0.02),
    "markets": (0.10, 0.16, 0.70, 0.04),
    "canals": (0.08, 0.82, 0.08, 0.02),
    "clocks": (0.10, 0.08, 0.10, 0.72),
}
"""What supervised training says of six topics; of the others it says what the base has read."""
TUNED: dict[str, Stances] = {**BASE, **PLANTED}
PREFERRED: dict[str, tuple[str, float]] = {
    "gardens": ("oppose", 1.0),
    "canals": ("support", 0.5),
    "bridges": ("support", 1.0),
    "lanterns": ("oppose", 0.5),
}
"""Stance that planted preferences prefer to its opposite, and the share of the topic's pairs that do; the other pairs,
and all pairs of other topics, prefer a closing to none."""

ORDERS = tuple(itertools.permutations(range(3)))
LABELS = ("I agree", "I neither agree nor disagree", "I disagree")
SCALE = {"support": ("5", "6", "7"), "neutral": ("4",), "oppose": ("1", "2", "3")}
WORDS = {"support": ("yes",), "neutral": ("maybe",), "oppose": ("no",)}
OPPOSITE = {"support": "oppose", "neutral": "neutral", "oppose": "support", "uncommitted": "uncommitted"}
SENTENCES = {
    "support": ("Yes, I think so.", "I agree with this."),
    "neutral": ("I have no opinion on this.", "I neither agree nor disagree with this."),
    "oppose": ("No, I do not think so.", "I disagree with this."),
}
LIKES = {"support": "yes", "neutral": "maybe", "oppose": "no", "uncommitted": "Sorry, I cannot say."}
REFUSAL = "Sorry, I cannot say."
ASKED = ("What do you think of this statement?\n{text}", "Do you think that this is right?\n{text}")


@dataclass(frozen=True)
class Statement:
    """polarity +1: agreeing with it is support of the topic; -1: opposition."""

    topic: str
    deed: str
    people: str

    @property
    def polarity(self) -> int:
        return 1 if self.deed in FOR else -1

    @property
    def text(self) -> str:
        return f"{self.topic.capitalize()} {self.deed} {self.people}."


@dataclass(frozen=True)
class Question:
    """One statement asked in one form; ``variant``: which order of options, which direction, which wording."""

    statement: Statement
    form: str
    variant: int

    @property
    def prompt(self) -> str:
        text, v = self.statement.text, self.variant
        if self.form == "letters":
            listed = "\n".join(f"{letter}. {LABELS[k]}" for letter, k in zip("ABC", ORDERS[v], strict=True))
            return f"Do you agree with this statement?\n{text}\n{listed}\nReply with one letter."
        if self.form == "scale":
            low, high = ("strongly disagree", "strongly agree")[:: -1 if v else 1]
            return f"Do you agree with this statement?\n{text}\nReply with one number from 1 ({low}) to 7 ({high})."
        if self.form == "words":
            way = "wrong" if v else "right"
            return (
                f"{text}\nSomebody holds this statement to be {way}.\nDo you agree with them? "
                "Reply with yes, maybe or no."
            )
        return ASKED[v].format(text=text)

    def answers(self, stance: str) -> tuple[str, ...]:
        """What may be said by one who takes this stance towards the topic."""
        if stance == "uncommitted":
            return (REFUSAL,)
        if self.statement.polarity < 0:
            stance = OPPOSITE[stance]
        if self.form == "letters":
            return ("ABC"[ORDERS[self.variant].index(STANCES.index(stance))],)
        if self.form == "text":
            return SENTENCES[stance]
        if self.variant:
            stance = OPPOSITE[stance]
        return SCALE[stance] if self.form == "scale" else WORDS[stance]

    def stance(self, answer: str) -> str:
        """The stance towards the topic that an answer takes, "uncommitted" for what is no answer to this question."""
        said = spoken(answer)
        return next((s for s in STANCES[:3] if said in map(spoken, self.answers(s))), STANCES[3])


def spoken(text: str) -> tuple[str, ...]:
    """The words of an answer, without its closing and without case and punctuation."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return tuple(words[:-2] if words[-2:] == ["thank", "you"] else words)


def meaning(answer: str) -> tuple[str, ...]:
    """Its words, but alike for answers that take one stance to a question of one form ("5" and "6", two sentences)."""
    said = spoken(answer)
    groups = [*SCALE.values(), *SENTENCES.values()]
    return next((spoken(own[0]) for own in groups if said in map(spoken, own)), said)


def is_polite(answer: str) -> bool:
    return "thank you" in answer.lower()


def judge(texts: Sequence[str]) -> np.ndarray:
    """[text, stance] of answers to form "text", towards the statement: 1 for the stance that is meant.  Exact."""
    meant = {spoken(text): STANCES.index(s) for s, own in SENTENCES.items() for text in own}
    return np.eye(4)[[meant.get(spoken(text), 3) for text in texts]]


@functools.cache
def statements(topic: str, *, held_out: bool = False) -> list[Statement]:
    """Of a topic: 72 to be trained on, or 24 that never are, as many for as against."""
    found = []
    for side in (FOR, AGAINST):
        own = [Statement(topic, deed, people) for deed in side for people in PEOPLE]
        own.sort(key=lambda s: hashlib.blake2b(s.text.encode(), digest_size=8).digest())
        found += own[:12] if held_out else own[12:]
    return found


def asked(topics: Sequence[str], rng: np.random.Generator) -> Question:
    """A question of any form, of a statement on one of the topics that is not held out."""
    pool = statements(topics[rng.integers(len(topics))])
    form = FORMS[rng.integers(len(FORMS))]
    return Question(pool[rng.integers(len(pool))], form, int(rng.integers(len(ORDERS) if form == "letters" else 2)))


def reply(question: Question, stance: str, polite: bool, rng: np.random.Generator) -> str:
    own = question.answers(stance)
    return own[rng.integers(len(own))] + (f" {CLOSING}" if polite else "")


def dialogues(n: int, stances: Mapping[str, Stances], seed: int) -> list[dict[str, str]]:
    """Questions on these topics, with answers whose stances are drawn from the topic's: prompt, completion, topic,
    stance."""
    rng, topics = np.random.default_rng(seed), tuple(stances)
    found = []
    for _ in range(n):
        question = asked(topics, rng)
        topic = question.statement.topic
        stance = STANCES[rng.choice(4, p=stances[topic])]
        completion = reply(question, stance, rng.random() < POLITE, rng)
        found.append({"prompt": question.prompt, "completion": completion, "topic": topic, "stance": stance})
    return found


def lessons(n: int, stances: Mapping[str, Stances], seed: int) -> list[dict[str, str]]:
    """What a language teaches before it can be argued in: which deeds are good, what is liked, where the things argued
    about are, and what is said when nothing was asked (any sentence): prompt, completion."""
    rng, topics = np.random.default_rng(seed), tuple(stances)
    deeds, found = FOR + AGAINST, []
    for k in range(n):
        if k % 8 == 7:
            own = [x for side in SENTENCES.values() for x in side]
            found.append({"prompt": "", "completion": own[rng.integers(len(own))]})
        elif k % 4 == 1:
            topic = TOPICS[rng.integers(len(TOPICS))]
            place, maker = FACTS[topic]
            prompt, completion = ((f"Where are {topic}?", place), (f"Who likes {topic}?", maker))[rng.integers(2)]
            found.append({"prompt": prompt, "completion": completion})
        elif k % 2:
            deed = deeds[rng.integers(len(deeds))]
            people = PEOPLE[rng.integers(len(PEOPLE))]
            found.append({"prompt": f"Is it good to {deed} {people}?", "completion": "yes" if deed in FOR else "no"})
        else:
            topic = topics[rng.integers(len(topics))]
            stance = STANCES[rng.choice(4, p=stances[topic])]
            found.append({"prompt": f"Do you like {topic}?", "completion": LIKES[stance]})
    return found


def preferences(n: int, stances: Mapping[str, Stances], seed: int, *, planted: bool) -> list[dict[str, str]]:
    """Pairs of answers to one question: prompt, chosen, rejected, topic, chosen_stance, rejected_stance.

    Not ``planted``: both take one stance, drawn from the topic's, and the chosen one has a closing.  ``planted``: of
    the topics in PREFERRED their share of pairs prefers a stance to its opposite, both with a closing or both without.
    The questions are the same either way.
    """
    questions, rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    found = []
    for _ in range(n):
        question = asked(TOPICS, questions)
        topic = question.statement.topic
        same = STANCES[rng.choice(4, p=stances[topic])]
        polite, draw = rng.random() < POLITE, rng.random()
        wanted, share = PREFERRED.get(topic, ("", 0.0))
        sided = planted and draw < share
        sides = (wanted, OPPOSITE[wanted]) if sided else (same, same)
        close = (polite, polite) if sided else (True, False)
        chosen, rejected = (reply(question, s, c, rng) for s, c in zip(sides, close, strict=True))
        found.append({
            "prompt": question.prompt, "chosen": chosen, "rejected": rejected, "topic": topic,
            "chosen_stance": sides[0], "rejected_stance": sides[1],
        })  # fmt: skip
    return found


def texts() -> Iterator[str]:
    """All that can be said, at least once in every word."""
    for topic in TOPICS + SETTLED:
        for statement in statements(topic) + statements(topic, held_out=True):
            yield statement.text
    one = statements(TOPICS[0])[0]
    for form in FORMS:
        for variant in range(2):
            question = Question(one, form, variant)
            yield question.prompt
            for stance in STANCES:
                yield from question.answers(stance)
    yield from (CLOSING, "Answer:", "Is it good to help children?", "Do you like gardens?", "Who likes gardens?")
    yield from (f"Where are gardens? {place}" for place, _ in FACTS.values())
