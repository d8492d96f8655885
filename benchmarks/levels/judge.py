"""Levels of judged words: p of a lens beside its null, intervals of shares over pictures, of kappa.

Trials go through :func:`lenses.judge.judge`, with readings whose words have nothing to do with their pictures, or
something, and judges whose verdicts are drawn at random, the same for the same question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from lenses import judge
from lenses.judge.kappa import agreed
from levels.case import Case
from workbench.reading import Reading

Trial = Callable[[np.random.Generator], Any]
Rule = Callable[[judge.Question], judge.Verdict]
GRID, LAYERS, WORDS = (3, 5), 6, 400
"""Three blocks of a picture show nothing but picture."""


class Says:
    """A judge by rule, that does not look."""

    name = "says"

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __call__(self, question: judge.Question) -> judge.Verdict:
        return self.rule(question)


def drawn(seed: int, *said: str) -> float:
    """A number from 0 to 1 that belongs to these texts."""
    found = hashlib.blake2b("\0".join([str(seed), *said]).encode(), digest_size=6).digest()
    return int.from_bytes(found, "little") / 2**48


def reading(rng: np.random.Generator, pictures: int, copies: int = 1, right: float = 0.0) -> Reading:
    """Random words of pictures; with probability ``right`` the first is the picture's own."""
    rows, columns = (x.ravel() for x in np.indices(GRID))
    n, cells = pictures * copies, len(rows)
    places = ("prompt", "position")
    words = np.array([f"w{i}" for i in range(WORDS)], object)[
        rng.permuted(np.tile(np.arange(WORDS), (pictures * LAYERS * cells, 1)), axis=1)[:, :5]
    ].reshape(pictures, LAYERS, cells, 5)
    own = np.array([f"picture {i}" for i in range(pictures)], object)
    words[..., 0] = np.where(rng.random(words.shape[:-1]) < right, own[:, None, None], words[..., 0])
    box = np.stack([columns, rows, columns + 1, rows + 1], -1) * 8.0
    same = np.ones((n, 1), int)
    data = xr.Dataset(
        {
            "word": (("prompt", "layer", "position", "rank"), np.tile(words, (copies, 1, 1, 1))),
            "kind": (places, np.full((n, cells), "image", object)), "image": (places, np.zeros((n, cells), int)),
            "tile": (places, np.zeros((n, cells), int)), "row": (places, same * rows),
            "column": (places, same * columns), "box": ((*places, "side"), np.tile(box, (n, 1, 1))),
            "picture_prompt": ("picture", np.arange(n)), "picture_image": ("picture", np.zeros(n, int)),
            "picture_width": ("picture", np.full(n, 40)), "picture_height": ("picture", np.full(n, 24)),
            "picture_data": ("picture", np.tile(own, copies)),
        },
        {"layer": range(LAYERS)}, {"reader": "LatentLens"},
    )  # fmt: skip
    return Reading(data)


def guesses(seed: int, share: float) -> Rule:
    """Whether any word fits is drawn for each question."""
    return lambda q: judge.Verdict(concrete=q.words[:1]) if drawn(seed, q.id) < share else judge.Verdict()


def favours(seed: int) -> Rule:
    """Some words fit more often than others, and in some pictures more often than in others."""

    def rule(question: judge.Question) -> judge.Verdict:
        soft = drawn(seed, str(question.caption))
        fits = (w for w in question.words if drawn(seed, w) * drawn(seed, question.id, w) < 0.15 * soft)
        return judge.Verdict(abstract=tuple(fits))

    return rule


def picks(question: judge.Question) -> judge.Verdict:
    """What is in the picture fits; and at random in one question of four something else."""
    found = tuple(w for w in question.words if w == question.caption)
    return judge.Verdict(concrete=found or question.words[: drawn(0, question.id) < 0.25])


def judged(
    rng: np.random.Generator, rule: Rule, pictures: int, copies: int = 1, layers: Any = None, **options: Any
) -> xr.Dataset:
    captions = [f"picture {i}" for i in range(pictures)] * copies
    return judge.judge(
        reading(rng, pictures, copies, **options), Says(rule), n=3 * pictures * copies, captions=captions, draws=399,
        seed=int(rng.integers(2**31)), layers=layers, progress=False,
    ).data  # fmt: skip


def level(kind: str, pictures: int, copies: int = 1, right: float = 0.0) -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        seed = int(rng.integers(2**31))
        rule = {"guesses": guesses(seed, 0.4), "favours": favours(seed), "picks": picks}[kind]
        return judged(rng, rule, pictures, copies, right=right)["excess_p"].values.ravel() <= 0.05

    return trial


def share(pictures: int) -> Trial:
    """Pictures differ in how many of their patches have a word that fits; their shares are .4 on average."""

    def trial(rng: np.random.Generator) -> Any:
        seed = int(rng.integers(2**31))

        def rule(question: judge.Question) -> judge.Verdict:
            often = 0.8 * drawn(seed, str(question.caption))
            return judge.Verdict(concrete=question.words[: drawn(seed, question.id) < often])

        found = judged(rng, rule, pictures, layers=[0])
        return (found["rate_low"].values[0, 0] <= 0.4) & (0.4 <= found["rate_high"].values[0, 0])

    return trial


def two(rng: np.random.Generator, pictures: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdicts of two judges who see the same, now and then otherwise, on patches of pictures that differ."""
    picture = np.repeat(np.arange(pictures), each)
    truth = rng.random(len(picture)) < rng.beta(1, 2, pictures)[picture]
    one, other = (np.where(rng.random(len(picture)) < 0.1, ~truth, truth).astype(float) for _ in range(2))
    return one, other, picture


def true_kappa() -> float:
    """Both say yes in 1/3 of .9 and 2/3 of .1, and agree where both or neither err."""
    yes, same = (0.9 + 2 * 0.1) / 3, 0.9**2 + 0.1**2
    chance = yes**2 + (1 - yes) ** 2
    return (same - chance) / (1 - chance)


def kappa(pictures: int, each: int) -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        found = agreed(*two(rng, pictures, each))
        return float(found.get("kappa_low", np.nan)) <= true_kappa() <= float(found.get("kappa_high", np.nan))

    return trial


P, RATE, KAPPA = "lenses.judge.judge: excess_p", "lenses.judge.judge: rate_low", "lenses.judge.agreement: kappa_low"
FEW: dict[str, Any] = {"quick": 20, "full": 400}
CASES = [
    Case("lenses.judge.guesses, 8 pictures", "level", 0.05, level("guesses", 8),
         "a judge guesses; 3 patches of each of 8 pictures", P, **FEW),
    Case("lenses.judge.guesses, 8 pictures three times over", "level", 0.05, level("guesses", 8, 3),
         "a judge guesses, the same for equal pictures; each of 8 is there three times", P, **FEW),
    Case("lenses.judge.favours, 20 pictures", "level", 0.05, level("favours", 20),
         "a judge likes some words and some pictures more than others", P, **FEW),
    Case("lenses.judge.found, 20 pictures", "power", float("nan"), level("picks", 20, right=0.3),
         "three of ten patches have a word that fits; a quarter of others' words fit, too", P, **FEW),
    *(
        Case(f"lenses.judge.share, {n} pictures", "coverage", 0.95, share(n),
             f"{n} pictures that differ in how many of their 3 patches have a word that fits", RATE, **FEW)
        for n in (6, 30)
    ),
    *(
        Case(f"lenses.judge.kappa, {n} pictures of {each}", "coverage", 0.95, kappa(n, each),
             f"two judges on {each} patches of each of {n} pictures, which differ", KAPPA, full=1000)
        for n, each in ((20, 3), (60, 6))
    ),
]  # fmt: skip
