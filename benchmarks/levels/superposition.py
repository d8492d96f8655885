"""Verdicts over made-up thoughts, whose truth is built in, and the intervals of what is held, used and in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import xarray as xr

from levels.case import Case
from probes.superposition.features import effective_features, geometry
from probes.superposition.held import frontier
from probes.superposition.problems import Problem
from probes.superposition.verdicts import verdict
from workbench.reading import Reading
from workbench.stats import Design

NODES, PLACES, POOL = 24, 3, 600
WHERE = "probes.superposition.verdict: word"


def tree(seed: int) -> Problem:
    """Two halves of 12 nodes, each a random branching graph; the second is out of reach."""
    rng = np.random.default_rng(seed)
    names, edges = rng.permutation(NODES), []
    for half in (names[: NODES // 2], names[NODES // 2 :]):
        for j in range(1, len(half)):
            edges += [(p, int(half[j])) for p in {int(half[(j - 1) // 2]), int(half[rng.integers(j)])}]
    root, other, called = int(names[0]), int(names[-1]), tuple(map(str, range(NODES)))
    depth = Problem(tuple(edges), root, int(names[1]), other, called).depth
    return Problem(tuple(edges), root, int(depth.argmax()), other, called)


@cache
def trees() -> list[Problem]:
    return [tree(i) for i in range(POOL)]


def rings(problem: Problem) -> list[np.ndarray]:
    return [np.flatnonzero(problem.depth == t + 1) for t in range(PLACES)]


def thoughts(
    rng: np.random.Generator, problems: list[Problem], kind: str, size: float, noise: Callable | float = 1.0
) -> np.ndarray:
    """Logits [problem, place, node]: noise, and what the kind puts there."""
    draw = noise if callable(noise) else lambda shape: rng.normal(0, noise, shape)
    z = draw((len(problems), PLACES, NODES))
    for i, p in enumerate(problems):
        full = rng.random() < 0.4
        for t, ring in enumerate(rings(p)):
            one = rng.choice(ring, 1) if len(ring) else ring
            way = ring[(p.to_target[ring] >= 0) & (t + 1 + p.to_target[ring] == p.length)][:1]
            put = {
                "noise": ring[:0], "full": ring, "one": one, "way": way, "reachable": p.depth >= 0,
                "third": ring if t == 1 else ring[:0], "target": [p.target], "part": ring if full else one,
            }[kind]  # fmt: skip
            z[i, t, put] += size
    return z


def judged(
    kind: str, size: float = 3.0, n: int = 100, *, scale: float = 1.0, noise: float = 1.0, times: int = 1,
    skewed: bool = False,
) -> Callable[[np.random.Generator], str]:  # fmt: skip
    """The word for so many problems; ``times``: each is there so often, with the same thoughts."""

    def trial(rng: np.random.Generator) -> str:
        problems = [trees()[i] for i in rng.choice(POOL, n, replace=False)]
        own = (lambda shape: rng.exponential(size=shape)) if skewed else noise
        z = scale * thoughts(rng, problems, kind, size, own)
        held = frontier(np.concatenate([z] * times), problems * times, others=10, draws=9)
        return verdict(held, draws=399, seed=int(rng.integers(2**31))).word

    return trial


def says(*words: str, **world) -> Callable[[np.random.Generator], bool]:
    word = judged(**world)
    return lambda rng: word(rng).startswith(words)


def claims(**world) -> Callable[[np.random.Generator], bool]:
    word = judged(**world)
    return lambda rng: word(rng) != "absent"


def false(name: str, what: str, before: float | None, *words: str, quick: int = 15, **world) -> Case:
    """Never "held", where it is not."""
    trial = says(*(words or ("held",)), **world)
    return Case(f"superposition.verdict.{name}", "level", 0.05, trial, what, WHERE, quick, 1000, before=before)


def power(name: str, what: str, before: float | None, *words: str, quick: int = 8, **world) -> Case:
    trial = says(*(words or ("held",)), **world)
    return Case(f"superposition.verdict.{name}", "power", np.nan, trial, what, WHERE, quick, 300, before=before)


# ---------------------------------------------------------------- intervals


def covered(n: int, size: float = 1.0, times: int = 1) -> Callable[[np.random.Generator], list[bool]]:
    """AUC, AUC without the top and evenness of problems drawn from :func:`trees`, of which all have the same shift."""
    truth = expected(size)

    def trial(rng: np.random.Generator) -> list[bool]:
        problems = [trees()[i] for i in rng.choice(POOL, n, replace=False)]
        z = thoughts(rng, problems, "full", size)
        seed = int(rng.integers(2**31))
        held = frontier(np.concatenate([z] * times), problems * times, others=1, draws=399, seed=seed)
        return [
            bool(held[f"{name}_low"][t] <= truth[name][t] <= held[f"{name}_high"][t])
            for name in truth for t in range(PLACES) if not np.isnan(held[f"{name}_low"][t])
        ]  # fmt: skip

    return trial


@cache
def expected(size: float) -> dict[str, np.ndarray]:
    """The means over very many thoughts of all trees."""
    rng, names = np.random.default_rng(0), ("auc", "auc_without_top", "evenness")
    tables = [frontier(thoughts(rng, trees(), "full", size), trees(), others=1, draws=2) for _ in range(20)]
    return {name: np.mean([table[name].values for table in tables], 0) for name in names}


def accuracy(share: float, n: int) -> Callable[[np.random.Generator], bool]:
    """What ``use`` makes of right answers."""

    def trial(rng: np.random.Generator) -> bool:
        found = Design(n=n).bootstrap((rng.random(n) < share).astype(float)[:, None], bounds=(0, 1))
        return bool(found.low[0] <= share <= found.high[0])

    return trial


def effect(n: int, skewed: bool) -> Callable[[np.random.Generator], bool]:
    """``use``'s p of a change of log-odds whose mean is 0."""

    def trial(rng: np.random.Generator) -> bool:
        change = rng.exponential(size=n) - 1 if skewed else rng.normal(size=n)
        return bool(Design(n=n).max_t(change, draws=399, seed=int(rng.integers(2**31))).p <= 0.05)

    return trial


def used(n: int, matter: float, skewed: bool = False) -> Callable[[np.random.Generator], bool]:
    """Whether held thoughts are called used: all is held, and log-odds fall by so much on average."""

    def trial(rng: np.random.Generator) -> bool:
        problems = [trees()[i] for i in rng.choice(POOL, n, replace=False)]
        held = frontier(thoughts(rng, problems, "full", 3), problems, others=10, draws=9)
        noise = (lambda: rng.exponential(2, n) - 2) if skewed else (lambda: rng.normal(0, 2, n))
        odds = {"plain": np.full(n, 4.0), "resampled": 4 - matter + noise()}
        odds |= {"edit not reachable": 4 + noise(), "edit optimal": 4 - matter + noise()}
        table = xr.Dataset({"logodds": (("condition", "problem"), np.stack([*odds.values()]))}, {"condition": [*odds]})
        return verdict(held, Reading(table), draws=399, seed=int(rng.integers(2**31))).word == "held and used"

    return trial


def features(documents: int, rare: float = 0.5) -> Callable[[np.random.Generator], bool]:
    """Effective features of documents whose features have known shares."""
    share = np.random.default_rng(1).dirichlet(np.full(60, 1.0))
    truth = np.exp(-(share * np.log(share)).sum())

    def trial(rng: np.random.Generator) -> bool:
        found = effective_features(rng.gamma(rare, share / rare, (documents, 60)), draws=399)
        return bool(found["F_low"] <= truth <= found["F_high"])

    return trial


def arranged(name: str) -> Callable[[np.random.Generator], bool]:
    """Random directions of varied lengths, called arranged."""

    def trial(rng: np.random.Generator) -> bool:
        rows = rng.standard_normal((24, 8))
        rows *= rng.lognormal(0, 0.5, (24, 1)) / np.linalg.norm(rows, axis=1, keepdims=True)
        draws = 499 if name.endswith("q") else 39
        return bool((geometry(rows, draws=draws, seed=int(rng.integers(2**31)))[name] <= 0.05).any())

    return trial


ONE = ("held", "some")
"""What must not be said where one node stands out: that the frontier is held, anywhere."""

SKEWED = "effect_p assumes symmetric changes, or many problems: right for skewed changes as these become many"

CASES = [
    # ------------------------------------------------ nothing there: no word but "absent"
    *(
        Case(
            f"superposition.verdict.noise.{n}-problems", "level", 0.05, claims(kind="noise", size=0, n=n),
            f"noise alone, {n} problems: any word but absent", WHERE, 30, before=before,
        )
        for n, before in ((100, 0.0), (10, 1 / 150), (5, 2 / 150))
    ),
    Case(
        "superposition.verdict.noise.skewed", "level", 0.05, claims(kind="noise", size=0, n=25, skewed=True),
        "exponential noise, 25 problems: any word but absent", WHERE, 30,
    ),
    Case(
        "superposition.verdict.noise.duplicated", "level", 0.05, claims(kind="noise", size=0, n=12, times=4),
        "noise alone, 12 problems each four times: any word but absent", WHERE, 30,
    ),
    # ------------------------------------------------ one node: the frontier is held nowhere
    *(
        false(f"way.{size}", f"one node on the way to the answer, +{size} nats: held, or held in part", 1.0, *ONE,
              kind="way", size=size)
        for size in (1, 2, 3, 4, 6)
    ),
    *(
        false(f"one.{size}", f"one random frontier node, +{size} nats: held, or held in part", 1.0, *ONE, kind="one",
              size=size)
        for size in (1, 2, 3)
    ),
    false("one.5-problems", "one random frontier node, +3 nats, 5 problems: held, or held in part", None, *ONE,
          kind="one", n=5),
    false("one.duplicated", "the same, 12 problems each four times: held, or held in part", None, *ONE,
          kind="one", n=12, times=4),
    # ------------------------------------------------ part of the truth: not held
    false("reachable", "all reachable nodes, +2 nats: held, or held in part", 1.0, *ONE, kind="reachable", size=2),
    false("third", "the frontier in one thought of three: held", 1.0, kind="third"),
    false("part", "40 % of problems full, the others one node: held", 1.0, kind="part"),
    false("part.25-problems", "the same of 25 problems: held", None, kind="part", n=25),
    false("part.10-problems", "the same of 10 problems: held", None, kind="part", n=10),
    false("part.clear", "the same, nearly without noise: held", 1.0, kind="part", size=6, noise=0.3),
    # ------------------------------------------------ the word that is right
    power("way.4.word", "one node on the way, +4 nats: collapsed", 1.0, "collapsed", kind="way", size=4),
    power("way.4.x20.word", "the same, logits x20: collapsed", None, "collapsed", kind="way", size=4, scale=20),
    power("target.4.word", "the answer alone at every place, +4 nats: collapsed", 0.0, "collapsed",
          kind="target", size=4),
    power("one.2.word", "one random frontier node, +2 nats: one node", 0.0, "one node", kind="one", size=2),
    power("reachable.word", "all reachable nodes, +2 nats: reachability without steps", 0.0, "reachability",
          kind="reachable", size=2),
    power("third.word", "the frontier in one thought of three: some places only", 0.0, "some places", kind="third"),
    power("part.word", "40 % of problems full: some problems only", 0.0, "some problems", kind="part"),
    # ------------------------------------------------ power: the frontier is there
    *(
        power(f"full.{size:g}", f"the whole frontier, +{size:g} nats: held", before, kind="full", size=size)
        for size, before in ((3.0, 1.0), (2.0, 1.0), (1.5, 1.0), (1.0, 1.0), (0.7, 1.0))
    ),
    *(
        power(f"full.x{scale}", f"the whole frontier, +3 nats, logits x{scale}: held", before, kind="full", scale=scale)
        for scale, before in ((10, 0.0), (20, 0.0))
    ),
    *(
        power(f"full.{n}-problems", f"the whole frontier, +3 nats, {n} problems: held", 1.0, kind="full", n=n)
        for n in (25, 10, 6)
    ),
    # ------------------------------------------------ used
    Case(
        "superposition.used.level", "level", 0.05, used(25, 0.0),
        "held, and the answer owes nothing to it: used", WHERE, 15,
    ),
    Case("superposition.used.skewed", "level", 0.05, used(25, 0.0, True), "the same, skewed changes: used", WHERE, 15),
    Case(
        "superposition.used.power", "power", np.nan, used(25, 2.0), "held, log-odds fall by 2 nats (SD 2): used", WHERE,
        8, 300,
    ),
    # ------------------------------------------------ intervals
    *(
        Case(
            f"superposition.frontier.{n}-problems", "coverage", 0.95, covered(n),
            f"AUC, AUC without the top node and evenness of {n} problems",
            "probes.superposition.frontier: auc_low, auc_high", 40, before=before,
            labelled="interval: t over 5 graphs, of AUCs that end at 1" if n == 5 else "",
        )
        for n, before in ((5, 0.82), (12, None), (50, None))
    ),
    Case(
        "superposition.frontier.duplicated", "coverage", 0.95, covered(12, times=3), "12 problems each three times",
        "probes.superposition.frontier: auc_low, auc_high", 40,
    ),
    *(
        Case(
            f"superposition.use.accuracy.{n}", "coverage", 0.95, accuracy(share, n), f"{share:.0%} right, {n} problems",
            "probes.superposition.use: accuracy_low, accuracy_high",
        )
        for n, share in ((10, 0.95), (40, 0.98), (100, 0.5))
    ),
    *(
        Case(
            f"superposition.use.effect.{'skewed' if skewed else 'symmetric'}.{n}", "level", 0.05, effect(n, skewed),
            f"changes of mean 0, {'exponential' if skewed else 'normal'}, {n} problems",
            "probes.superposition.use: effect_p",
            labelled=SKEWED if skewed else "",
        )
        for n in (8, 25, 100) for skewed in (False, True)
    ),
    *(
        Case(
            f"superposition.features.F.{n}-documents", "coverage", 0.95, features(n),
            f"60 features, {n} documents",
            "probes.superposition.features.effective_features: F_low, F_high", before=before,
            labelled="attribute interval: covers 91 to 94 % in place of 95 % below 100 documents",
        )
        for n, before in ((5, 0.90), (12, 0.95), (80, 0.91))
    ),
    *(
        Case(
            f"superposition.features.geometry.{name}", "level", 0.05, arranged(name),
            "24 random directions of varied lengths in 8 dimensions", f"probes.superposition.features.geometry: {name}",
            100,
        )
        for name in ("capacity_p", "coherence_p", "rank_p", "interference_q")
    ),
]  # fmt: skip
