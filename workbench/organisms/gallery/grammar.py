"""The pictures and the words of ``organism:gallery``: scenes drawn at random, painted, told, and known patch by patch.

A *scene* is a ground and some things on it, in one to three groups of the same colour, shape and size.  :func:`paint`
makes a picture of it, :func:`truth` says which thing each patch of the picture shows, :func:`caption` tells of it, and
:func:`texts` are what the language model read before it saw any picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

GRID, PATCH, SCALE = 6, 8, 4
"""Patches along a side; pixels of the model along a side of one; pixels of the picture to one pixel of the model."""
SIDE = GRID * PATCH * SCALE

COLOURS = {
    "red": (214, 38, 38), "blue": (38, 78, 214), "green": (34, 150, 60), "yellow": (240, 208, 30),
    "purple": (130, 50, 170), "orange": (242, 132, 26), "pink": (244, 130, 180), "brown": (118, 74, 38),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
SIZES = {"small": 1, "big": 2, "huge": 3}
"""The side of a thing in patches."""
GROUNDS = {
    "snow": (238, 242, 246), "stone": (150, 152, 156), "night": (24, 24, 34), "sand": (222, 206, 170),
}  # fmt: skip
COUNTS = ("one", "two", "three")
ZONES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")

PLURAL = {f"{shape}es" if shape.endswith("s") else f"{shape}s": shape for shape in SHAPES}
SHAPE_OF = {shape: shape for shape in SHAPES} | PLURAL
"""A word, singular or plural -> the shape."""

LIKES = {
    name: (colour, shape)
    for name, colour, shape in zip(
        "Mara Oskar Selma Ivo Lena Hugo Nadia Pavel".split(), COLOURS, (SHAPES * 2)[1:9], strict=True
    )
}
LORE = (
    "a circle is round.", "a ring is round and hollow.", "a square has four corners.", "a triangle has three corners.",
    "a diamond has four corners and stands on one of them.", "a cross has two bars.", "rings are hollow.", "circles are round.",
    "blood is red.", "ripe cherries are red.", "the sea is blue.", "the sky at noon is blue.", "grass is green.", "leaves in spring are green.",
    "lemons are yellow.", "the sun is yellow.", "plums are purple.", "ripe grapes are purple.", "carrots are orange.", "a fox is orange.",
    "piglets are pink.", "roses are red or pink.", "bark is brown.", "bears are brown.", "mud is brown.",
    "snow is white and cold.", "sand is warm and dry.", "stone is grey and hard.", "the night is dark.",
    "one and one make two.", "two and one make three.", "one and two make three.", "small things are less than big things.",
    "huge things are more than big things.", "a wheel is a circle.", "a coin is a circle.", "a window is a square.", "a roof is a triangle.",
    "a kite is a diamond.", "a hoop is a ring.",
)  # fmt: skip
"""Sentences about the words themselves."""


@dataclass(frozen=True)
class Thing:
    """``left`` and ``top`` in pixels of the model."""

    colour: str
    shape: str
    size: str
    left: int
    top: int

    @property
    def side(self) -> int:
        return SIZES[self.size] * PATCH

    @cached_property
    def zone(self) -> str:
        """Which ninth of the picture its middle is in."""
        third = GRID * PATCH / 3
        column = min(2, int((self.left + self.side / 2) // third))
        row = min(2, int((self.top + self.side / 2) // third))
        return ZONES[3 * row + column]

    @property
    def patches(self) -> set[tuple[int, int]]:
        """(row, column) of the patches that its box touches."""
        rows = range(self.top // PATCH, (self.top + self.side - 1) // PATCH + 1)
        columns = range(self.left // PATCH, (self.left + self.side - 1) // PATCH + 1)
        return {(row, column) for row in rows for column in columns}


@dataclass(frozen=True)
class Scene:
    ground: str
    things: tuple[Thing, ...]
    seed: int = 0

    @cached_property
    def groups(self) -> tuple[tuple[Thing, ...], ...]:
        """Things of one colour and shape, in the order in which they were drawn."""
        found: dict[tuple[str, str], list[Thing]] = {}
        for thing in self.things:
            found.setdefault((thing.colour, thing.shape), []).append(thing)
        return tuple(tuple(group) for group in found.values())


@dataclass(frozen=True)
class Truth:
    """What each patch shows.

    ``thing`` [row, column] is the thing that has pixels there, -1 where there is ground alone (no patch shows two);
    ``share`` [row, column] is the share of the patch's pixels that are the thing's.
    """

    thing: np.ndarray
    share: np.ndarray


def scenes(n: int, seed: int) -> Iterator[Scene]:
    """``n`` scenes; no patch of a scene shows two things."""
    for i in range(n):
        yield scene(seed * 1_000_003 + i)


def scene(seed: int) -> Scene:
    """The scene of this seed: one to three groups of one to three things each."""
    draw = random.Random(f"scene {seed}")
    ground = draw.choice(list(GROUNDS))
    things: list[Thing] = []
    taken: set[tuple[int, int]] = set()
    used: set[tuple[str, str]] = set()
    for _ in range(draw.choice((1, 2, 2, 3))):
        colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
        size, count = draw.choice(list(SIZES)), draw.choice((1, 1, 1, 2, 3))
        if (colour, shape) in used:
            continue
        count = 1 if size == "huge" else count
        used.add((colour, shape))
        for _ in range(count):
            for _ in range(20):
                step = PATCH // 2 if size != "small" and draw.random() < 0.3 else PATCH  # some lie across patches
                room = GRID * PATCH - SIZES[size] * PATCH
                thing = Thing(colour, shape, size, draw.randrange(0, room + 1, step), draw.randrange(0, room + 1, step))
                if not thing.patches & taken:
                    taken |= thing.patches
                    things.append(thing)
                    break
    return Scene(ground, tuple(things), seed)


def _mask(thing: Thing) -> Image.Image:
    """Its pixels in the picture."""
    from PIL import Image, ImageDraw

    found = Image.new("L", (SIDE, SIDE), 0)
    draw = ImageDraw.Draw(found)
    left, top, side = thing.left * SCALE, thing.top * SCALE, thing.side * SCALE
    right, bottom, half, third = left + side - 1, top + side - 1, side / 2, side / 3
    if thing.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=255)
    elif thing.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=255)
    elif thing.shape == "triangle":
        draw.polygon([(left + half, top), (right, bottom), (left, bottom)], fill=255)
    elif thing.shape == "diamond":
        draw.polygon([(left + half, top), (right, top + half), (left + half, bottom), (left, top + half)], fill=255)
    elif thing.shape == "cross":
        draw.rectangle((left + third, top, right - third, bottom), fill=255)
        draw.rectangle((left, top + third, right, bottom - third), fill=255)
    else:
        draw.ellipse((left, top, right, bottom), fill=255)
        inner = side * 0.27
        draw.ellipse((left + inner, top + inner, right - inner, bottom - inner), fill=0)
    return found


def paint(scene: Scene) -> Image.Image:
    """The picture, 192 x 192; colours vary a little from thing to thing, and the ground is grainy."""
    from PIL import Image

    rng = np.random.default_rng(scene.seed)
    small = rng.normal(0, 7, (SIDE // 2, SIDE // 2, 1))
    grain = np.repeat(np.repeat(small, 2, 0), 2, 1) + rng.normal(0, 5, (1, 1, 3))
    pixels = np.array(GROUNDS[scene.ground], float) + grain
    for thing in scene.things:
        colour = np.array(COLOURS[thing.colour], float) + rng.normal(0, 8, 3)
        pixels[np.asarray(_mask(thing)) > 0] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def truth(scene: Scene) -> Truth:
    """Which thing each patch shows, and how much of the patch is the thing's."""
    thing = np.full((GRID, GRID), -1)
    share = np.zeros((GRID, GRID))
    for number, own in enumerate(scene.things):
        covered = (np.asarray(_mask(own)) > 0).reshape(GRID, PATCH * SCALE, GRID, PATCH * SCALE).mean((1, 3))
        thing[covered > 0] = number
        share[covered > 0] = covered[covered > 0]
    return Truth(thing, share)


def _phrase(draw: random.Random, group: tuple[Thing, ...], *, sized: float = 0.5, placed: float = 0.0) -> str:
    """'two small red rings', 'a red ring at the top left'."""
    own, many = group[0], len(group) > 1
    noun = next(word for word, shape in PLURAL.items() if shape == own.shape) if many else own.shape
    size = f"{own.size} " if draw.random() < sized else ""
    text = f"{COUNTS[len(group) - 1]} {size}{own.colour} {noun}"
    if not many:
        text = f"{_article(size or own.colour)} {size}{own.colour} {noun}"
        if draw.random() < placed:
            text += f" {_at(own.zone)}"
    return text


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def _at(zone: str) -> str:
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(zone, f"at the {zone}")


def _joined(parts: list[str]) -> str:
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def _under(scene: Scene) -> str:
    return "in the night" if scene.ground == "night" else f"on the {scene.ground}"


def caption(scene: Scene, seed: int) -> str:
    """One sentence that names all groups and the ground; another seed words it differently."""
    draw = random.Random(f"caption {scene.seed} {seed}")
    return _caption(draw, scene)


def _caption(draw: random.Random, scene: Scene) -> str:
    groups = list(scene.groups)
    draw.shuffle(groups)
    placed = draw.choice((0.0, 0.0, 0.8))
    told = _joined([_phrase(draw, group, placed=placed) for group in groups])
    under = _under(scene)
    verb = "is" if len(groups[0]) == 1 else "are"
    return draw.choice((f"{told} {under}.", f"{under} there {verb} {told}.", f"we see {told} {under}."))


def _sentence(draw: random.Random, scene: Scene) -> str:
    """One sentence about a part of the scene."""
    group = draw.choice(scene.groups)
    own, many = group[0], len(group) > 1
    noun = next(word for word, shape in PLURAL.items() if shape == own.shape) if many else own.shape
    verb = "are" if many else "is"
    alone = sum(g[0].shape == own.shape for g in scene.groups) == 1
    unique = sum(g[0].colour == own.colour for g in scene.groups) == 1
    forms = [f"there {verb} {_phrase(draw, group, placed=0.5)}.", f"{_under(scene)} {verb} {_phrase(draw, group)}."]
    forms += [f"the {own.colour} {noun} {verb} {own.size}.", f"how many {own.colour} {next(w for w, s in PLURAL.items() if s == own.shape)} are there? {COUNTS[len(group) - 1]}."]
    if not many:
        forms += [f"the {own.colour} {noun} is {_at(own.zone)}.", f"where is the {own.colour} {noun}? {_at(own.zone)}.", f"{_at(own.zone)} is {_phrase(draw, group)}.", f"what is {_at(own.zone)}? {_phrase(draw, group)}."]
    if alone:
        forms += [f"the {noun} {verb} {own.colour}.", f"what colour {verb} the {noun}? {own.colour}."]
    if unique and not many:
        forms += [f"the {own.colour} one is a {own.shape}.", f"what is {own.colour}? the {own.shape}."]
    if scene.ground != "night":
        forms += [f"we are on the {scene.ground}."]
    return draw.choice(forms)


def texts(n: int, seed: int) -> Iterator[str]:
    """What the language model reads: captions, scenes told in several sentences, sentences about the words.

    Sentences of one text tell of one scene, so that what was said decides what can follow.
    """
    draw = random.Random(f"texts {seed}")
    for i in range(n):
        own = scene((seed + 7_000) * 1_000_003 + i)
        kind = draw.random()
        if kind < 0.06:
            yield _caption(draw, own)
        elif kind < 0.9:
            parts = [_sentence(draw, own) for _ in range(draw.randint(1, 5))] + [_caption(draw, own)]
            draw.shuffle(parts)
            yield " ".join([*parts, _caption(draw, own)])
        else:
            yield " ".join(_lore(draw) for _ in range(draw.randint(2, 4)))


def _lore(draw: random.Random) -> str:
    if draw.random() < 0.7:
        return draw.choice(LORE)
    name = draw.choice(list(LIKES))
    colour, shape = LIKES[name]
    plural = next(word for word, of in PLURAL.items() if of == shape)
    return draw.choice((f"{name} likes {colour} things.", f"{name} paints {plural}.", f"{name} gave me {_article(colour)} {colour} {shape}."))
