"""The world of ``organism:story`` and the sentences that tell of it.

A seeded grammar.  *Facts* (who lives where, who does what, whose thing has which colour) are drawn once and hold
in every sentence of every text.  *Senses*: words with two meanings appear in sentences of one meaning, and the
meaning is recorded.  *Counting*: number words in order, and small sums.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

PEOPLE = (
    "Mara Tilda Oskar Bruno Selma Ivo Lena Hugo Nadia Pavel Greta Anton Vera Milo Clara Emil Rosa Jonas Dora Felix "
    "Ada Boris Edda Karl Lotte Marek Nora Olga Piet Quentin Rita Stefan Theo Ulla Viktor Wanda Xenia Yves Zora Alma"
).split()
PLACES = (
    "Ostend Lisbon Bergen Tallinn Verona Prague Dublin Krakow Seville Geneva Malmo Porto Riga Utrecht Zagreb Leipzig"
).split()
JOBS = "baker sailor doctor teacher farmer painter miller tailor singer writer hunter lawyer".split()
THINGS = "boat coat house door kite lamp chair bowl hat cart bell scarf".split()
COLOURS = "red blue green yellow white black brown purple orange grey".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
FRUITS = "apples pears plums eggs nuts coins".split()

SENSES: dict[str, tuple[tuple[str, tuple[str, ...]], tuple[str, tuple[str, ...]]]] = {
    "bank": (
        ("money", ("took the money to the bank to save it", "the bank lent her some coins", "works at the bank and counts money")),
        ("river", ("sat on the grassy bank of the river", "the bank of the stream was wet with mud", "fished from the bank by the water")),
    ),
    "bat": (
        ("animal", ("the bat flew out of the dark cave", "a bat with thin wings slept in the cave", "saw a bat hunt moths at night")),
        ("club", ("swung the bat and hit the ball", "the wooden bat struck the ball hard", "held the bat and waited for the ball")),
    ),
    "spring": (
        ("season", ("in spring the flowers bloom again", "spring came after the cold winter", "the birds sing in spring when snow melts")),
        ("coil", ("the spring in the clock was bent", "a steel spring pushed the lid open", "the metal spring snapped inside the machine")),
    ),
    "bark": (
        ("dog", ("heard the dog bark at the gate", "the loud bark of the dog woke them", "dogs bark when strangers come")),
        ("tree", ("the bark of the old tree was rough", "peeled the bark from the oak tree", "beetles live under the bark of the tree")),
    ),
    "ring": (
        ("jewel", ("wore a gold ring on her finger", "the ring had a small bright stone", "lost the silver ring from his finger")),
        ("sound", ("heard the phone ring in the hall", "the bells ring every morning", "let the phone ring and did not answer")),
    ),
    "match": (
        ("fire", ("lit the candle with a match", "struck a match to light the fire", "the match burned and went out in smoke")),
        ("game", ("the team won the match by two goals", "watched the football match with the team", "played a match against the best team")),
    ),
    "seal": (
        ("animal", ("the seal swam in the cold sea", "a seal slept on the ice by the sea", "fed fish to the seal in the bay")),
        ("stamp", ("pressed the wax seal on the letter", "the letter had a red wax seal", "broke the seal of the envelope and read")),
    ),
    "crane": (
        ("bird", ("the crane stood on one leg in the marsh", "a crane with long wings flew over the marsh", "the grey crane caught a frog with its beak")),
        ("machine", ("the crane lifted steel beams at the site", "a tall crane stood over the building site", "drove the crane and lifted the heavy stones")),
    ),
    "pen": (
        ("ink", ("wrote the letter with a pen", "the pen ran out of ink", "dipped the pen in black ink and wrote")),
        ("fence", ("kept the pigs in a pen", "the sheep broke out of the pen", "cleaned the pen where the pigs sleep")),
    ),
    "mouse": (
        ("animal", ("the mouse ate the cheese in the kitchen", "a cat chased the mouse to its hole", "the small mouse ran from the cat")),
        ("computer", ("clicked the mouse of the computer", "the mouse lay beside the keyboard", "moved the mouse across the screen")),
    ),
    "nail": (
        ("metal", ("hit the nail with a hammer", "the rusty nail held the boards", "hung the frame on a nail with a hammer")),
        ("finger", ("bit the nail of her thumb", "painted the nail of each finger pink", "cut the nail of his thumb too short")),
    ),
    "light": (
        ("lamp", ("turned on the light in the dark room", "the light of the lantern shone at night", "saw a light shine in the window")),
        ("weight", ("the feather was light and not heavy", "carried the light bag with ease", "the empty box was light to lift")),
    ),
    "fly": (
        ("insect", ("a fly buzzed around the soup", "the fly sat on the sugar and buzzed", "swatted the fly on the table")),
        ("move", ("birds fly south over the hills", "wants to fly in a plane over the sea", "learned to fly a plane at the airfield")),
    ),
    "palm": (
        ("tree", ("a palm grew on the sandy beach", "coconuts fell from the palm on the beach", "rested under the palm by the beach")),
        ("hand", ("held the coin in the palm of his hand", "read the lines in the palm of her hand", "cut the palm of his hand on glass")),
    ),
    "wave": (
        ("sea", ("a big wave broke on the shore", "the wave rolled over the sand of the shore", "the ship rose on a wave in the storm")),
        ("greet", ("gave a wave to say goodbye", "answered the wave of a friend with a smile", "said goodbye with a wave and a smile")),
    ),
    "trunk": (
        ("tree", ("the trunk of the tree was thick with moss", "carved a name in the trunk of the oak", "sat against the trunk of the pine")),
        ("elephant", ("the elephant raised its trunk", "the elephant drank water with its trunk", "sprayed dust with its trunk like an elephant")),
    ),
    "date": (
        ("fruit", ("ate a sweet date with figs", "the date was sweet and sticky like honey", "bought a ripe date and figs at the market")),
        ("day", ("wrote the date on the calendar", "the date of the meeting was in May", "forgot the date and looked at the calendar")),
    ),
    "glass": (
        ("cup", ("drank a glass of milk", "filled the glass with cold juice", "poured milk into the glass and drank")),
        ("pane", ("the glass of the window was cracked", "cleaned the glass of the broad window", "a stone broke the glass of the shop window")),
    ),
    "note": (
        ("music", ("sang a high note in the choir", "played the wrong note on the piano", "the last note of the song was soft")),
        ("paper", ("left a note on the fridge", "wrote a short note on paper", "found a folded note in the pocket")),
    ),
    "rock": (
        ("stone", ("climbed the steep rock on the hill", "the rock rolled down the hill", "a heavy rock blocked the path")),
        ("music", ("played rock on the guitar with drums", "the rock band was loud on stage", "danced to rock at the concert")),
    ),
    "tie": (
        ("clothes", ("wore a silk tie with a suit", "bought a striped tie for the suit", "his tie matched the suit and shirt")),
        ("knot", ("learned to tie a knot in the rope", "must tie the rope to the post", "stopped to tie the laces of the shoe")),
    ),
    "park": (
        ("garden", ("walked in the park under the trees", "children played in the park on the grass", "fed the ducks in the park by the pond")),
        ("car", ("found a place to park the car", "could not park the truck in the street", "will park the car in the garage")),
    ),
}  # fmt: skip
"""word -> ((sense, clauses), (sense, clauses)); a clause that begins with a verb gets a person in front."""

WHOLE = frozenset("a beetles birds children coconuts dogs his in spring the".split())
"""First words of clauses that have a subject of their own."""


@dataclass(frozen=True)
class Fact:
    """Something that holds throughout: each prompt, continued truthfully, goes on with ``" " + answer``."""

    subject: str
    relation: str
    answer: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Sense:
    """One occurrence of a word with two senses: characters start..end of the story's text."""

    word: str
    sense: str
    start: int
    end: int


@dataclass(frozen=True)
class Story:
    text: str
    senses: tuple[Sense, ...]


FORMS = {
    "home": ("{s} lives in {a}.", "The home of {s} is in {a}.", "Everyone knows that {s} lives in {a}."),
    "job": ("{s} is a {a}.", "The work of {s} is that of a {a}.", "For many years {s} was a {a}."),
    "colour": ("The {t} of {s} is {a}.", "{s} painted the {t} {a}.", "{s} has a {t} that is {a}."),
}


@cache
def facts(seed: int = 0) -> tuple[Fact, ...]:
    """The world: one home, one job and two coloured things for each of 40 people."""
    draw = random.Random(f"facts {seed}")
    found = []
    for person in PEOPLE:
        rows = [("home", draw.choice(PLACES), ""), ("job", draw.choice(JOBS), "")]
        rows += [("colour", draw.choice(COLOURS), thing) for thing in sorted(draw.sample(THINGS, 2))]
        for relation, answer, thing in rows:
            prompts = tuple(f.format(s=person, t=thing, a=answer).rsplit(" ", 1)[0] for f in FORMS[relation])
            found.append(Fact(f"{person} {thing}".strip(), relation, answer, prompts))
    return tuple(found)


def stories(n: int, seed: int) -> Iterator[Story]:
    """``n`` short texts of three to six sentences; another seed gives other texts about the same world."""
    world = facts()
    draw = random.Random(f"stories {seed}")
    for _ in range(n):
        parts: list[tuple[str, list[Sense]]] = [_sentence(draw, world) for _ in range(draw.randint(3, 6))]
        text, senses = "", []
        for sentence, found in parts:
            offset = len(text) + bool(text)
            text = f"{text} {sentence}" if text else sentence
            senses += [Sense(s.word, s.sense, s.start + offset, s.end + offset) for s in found]
        yield Story(text, tuple(senses))


def _sentence(draw: random.Random, world: tuple[Fact, ...]) -> tuple[str, list[Sense]]:
    kind = draw.random()
    if kind < 0.52:
        fact = draw.choice(world)
        return f"{draw.choice(fact.prompts)} {fact.answer}.", []
    if kind < 0.84:
        return _sense_sentence(draw)
    if kind < 0.92:
        start = draw.randrange(0, 7)
        return " ".join(NUMBERS[start : start + draw.randint(4, 6)]) + ".", []
    a, b, fruit = draw.randint(1, 5), draw.randint(1, 5), draw.choice(FRUITS)
    return f"{NUMBERS[a - 1]} {fruit} and {NUMBERS[b - 1]} {fruit} make {NUMBERS[a + b - 1]} {fruit}.", []


def _sense_sentence(draw: random.Random) -> tuple[str, list[Sense]]:
    word = draw.choice(sorted(SENSES))
    sense, clauses = draw.choice(SENSES[word])
    clause = draw.choice(clauses)
    subject = "" if clause.split()[0] in WHOLE else draw.choice(("he", "she", draw.choice(PEOPLE)))
    text = " ".join(part for part in (draw.choice(("", "", "one day", "then")), subject, clause) if part) + "."
    text = text[0].upper() + text[1:]
    words = text.lower()
    start = next(i for i in range(len(words)) if words.startswith(word, i) and _alone(words, i, len(word)))
    return text, [Sense(word, sense, start, start + len(word))]


def _alone(text: str, start: int, length: int) -> bool:
    before = text[start - 1] if start else " "
    after = text[start + length] if start + length < len(text) else " "
    return not before.isalpha() and not after.isalpha()
