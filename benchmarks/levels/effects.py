"""Claims about experts (:func:`probes.routing.effects`): how often a star is given where experts are exchangeable.

Most cases simulate the costs of sets of experts and judge them as ``effects`` does
(:func:`probes.routing.costs.judged`); two run it whole, over small mixtures of experts that have learned nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import xarray as xr

from levels.case import Case
from probes.routing.costs import Costs, judged
from probes.routing.matched import alike

LEVEL, DRAWS = 0.05, 199
LAWS: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(0, 0.01, n),
    "skewed": lambda rng, n: 0.01 * rng.exponential(1, n) ** 2,
    "sparse": lambda rng, n: np.where(rng.random(n) < 0.1, 0.05, 0.0) + rng.normal(0, 1e-5, n),
}
"""What dropping an expert costs, in nats a token."""


def together(own: np.ndarray, how: str) -> np.ndarray:
    """[expert, document] costs of a set's experts -> [document] cost of the set."""
    if how == "redundant":  # the others do what one did, until all are gone
        return own.min(0)
    return own.sum(0) if how == "additive" else np.sqrt(np.abs(own).sum(0))


def claimed(
    rng: np.random.Generator, *, size: int, claims: int, sets: int | None, experts: int = 64, law: str = "normal",
    how: str = "additive", documents: int = 12, blocks: int = 1, caliper: float = 0.5, spread: float = 0.5,
    planted: int = 0, strength: float = 0.02, by_load: bool = False, most: bool = False,
) -> dict[str, Costs]:  # fmt: skip
    """Claims of ``size`` experts drawn at random in each of ``blocks`` blocks; with ``most`` the most used.

    ``by_load``: what an expert costs goes with its load.  ``planted``: so many of the claims are of experts that cost
    ``strength`` nats a token more.
    """
    tokens = rng.integers(20, 300, documents)
    load = {b: rng.lognormal(0, spread, experts) for b in range(blocks)}
    mean = {b: LAWS[law](rng, experts) * (load[b] if by_load else 1) for b in load}
    own = {}
    for i in range(claims):
        claim = {
            b: (np.argsort(-own)[:size] if most else rng.choice(experts, size, replace=False)).tolist()
            for b, own in load.items()
        }
        each = {b: mean[b][:, None] + rng.normal(0, 0.01, (experts, documents)) for b in load}
        if i < planted:
            for b, chosen in claim.items():
                each[b][chosen] += strength
        family = alike(claim, load, caliper)
        others = family.draw(sets or 20 * claims - 1, int(rng.integers(2**31)))
        cost = [together(np.concatenate([each[b][one[b]] for b in load]), how) * tokens for one in (claim, *others)]
        rows = np.array(cost[1:]).reshape(len(others), documents)
        own[f"claim {i}"] = Costs(tokens, cost[0], rows, np.zeros((0, documents)), family.others)
    return own


def table(rng: np.random.Generator, smallest: float = 0.0, **settings: Any) -> xr.Dataset:
    with warnings.catch_warnings(action="ignore"):  # of too few sets
        return judged(claimed(rng, **settings), smallest=smallest, draws=DRAWS)


def p_of_sets(rng: np.random.Generator, **settings: Any) -> float:
    (costs,) = claimed(rng, claims=1, **settings).values()
    return float(costs.told(draws=20)["p_random"] <= LEVEL) if len(costs.others) else math.nan


def any_star(rng: np.random.Generator, **settings: Any) -> bool:
    return bool(table(rng, **settings)["backed"].any())


def false_share(rng: np.random.Generator, planted: int, **settings: Any) -> float:
    star = table(rng, planted=planted, **settings)["backed"].values
    return float(star[planted:].sum() / max(1, star.sum()))


def found_share(rng: np.random.Generator, planted: int, **settings: Any) -> float:
    return float(table(rng, planted=planted, **settings)["backed"].values[:planted].mean())


def documents(
    rng: np.random.Generator, n: int, true: float, *, skewed: bool = False, copies: int = 1, told: bool = True
) -> tuple[Costs, float]:
    """Costs of documents of unequal length, each there ``copies`` times, and the mean that other documents have."""
    tokens = rng.integers(20, 300, n)
    each = true + 0.02 * (rng.exponential(1, n) - 1 if skewed else rng.normal(size=n))
    tokens, each = np.repeat(tokens, copies), np.repeat(each, copies)
    clusters = np.repeat(np.arange(n), copies).tolist() if told else None
    nothing = np.zeros((1, len(tokens)))
    return Costs(tokens, each * tokens, nothing, nothing[:0], clusters=clusters), true


def covers(rng: np.random.Generator, **settings: Any) -> bool:
    costs, true = documents(rng, true=0.01, **settings)
    found = costs.told(draws=999, seed=int(rng.integers(2**31)))
    return bool(found["delta_low"] <= true <= found["delta_high"])


def p_of_documents(rng: np.random.Generator, **settings: Any) -> bool:
    costs, _ = documents(rng, true=0.0, **settings)
    return bool(costs.told(draws=499, seed=int(rng.integers(2**31)))["p"] <= LEVEL)


def above_smallest(rng: np.random.Generator, n: int, **settings: Any) -> bool:
    """A claim that costs the smallest effect of interest and no more, with its experts above all others."""
    costs, _ = documents(rng, n, true=0.01, **settings)
    costs = Costs(costs.tokens, costs.own, np.zeros((19, n)), costs.routes)
    return bool(judged({"claim": costs}, smallest=0.01, draws=999, seed=int(rng.integers(2**31)))["backed"][0])


@lru_cache(maxsize=1)
def _config() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.OlmoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=16, num_experts_per_tok=2, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip


def untrained(rng: np.random.Generator, *, chosen: str, smallest: float) -> bool:
    """Whether any of three claims about a model that has learned nothing is starred.

    ``chosen``: "at random", or "by load": each label's most used experts, as one would who looks for specialists.
    """
    import torch
    import transformers

    import workbench
    from probes.routing import RoutingTracer, effects

    torch.manual_seed(int(rng.integers(2**31)))
    model = workbench.load(transformers.OlmoeForCausalLM(_config()).eval(), name="untrained")
    texts = rng.integers(3, 64, (30, 16)).tolist()
    labels = [f"L{i % 3}" for i in range(30)]
    load = workbench.read(model, texts, RoutingTracer(labels), progress=False).data["usage_count"]
    claims = {}
    for i, (label, size) in enumerate(zip(("L0", "L1", "L2"), (1, 2, 4), strict=True)):
        own = load.sel(label=label).values[1] / load.sum("label").values[1].clip(1)
        experts = np.argsort(-own)[:size] if chosen == "by load" else rng.choice(16, size, replace=False)
        claims[label] = (texts[i::3], {1: experts.tolist()})
    seed = int(rng.integers(2**31))
    with warnings.catch_warnings(action="ignore"):
        found = effects(model, claims, smallest=smallest, routes=0, caliper=0.75, draws=DRAWS, seed=seed)
    return bool(found["backed"].any())


STAR = "probes.routing.effects: backed"
SETS = "probes.routing.effects: p_random"
AS_MANY = "p of skewed costs is right as documents become many; no star rests on it"


def case(name: str, kind: Any, nominal: float, trial: Any, what: str, where: str, **more: Any) -> Case:
    more = {"quick": 20 if where == STAR else 100, **more}
    return Case(f"effects.{name}", kind, nominal, trial, what=what, where=where, **more)


CASES = [
    *(
        case(
            f"p_random.{size}{'' if blocks == 1 else f'-in-{blocks}-blocks'}-{law}-{how}", "level", LEVEL,
            partial(p_of_sets, size=size, sets=19, law=law, how=how, blocks=blocks),
            f"exchangeable experts, claims of {size}{'' if blocks == 1 else f' in each of {blocks} blocks'}, "
            f"costs {law} and {how}", SETS, **more,
        )
        for size, blocks, law, how, more in (
            (1, 1, "normal", "additive", {}), (1, 1, "skewed", "additive", {}), (2, 1, "sparse", "additive", {}),
            (2, 1, "normal", "additive", {"before": 0.098}), (4, 1, "normal", "additive", {"before": 0.128}),
            (4, 1, "skewed", "damped", {}), (2, 3, "normal", "additive", {}), (2, 1, "skewed", "redundant", {}),
            (8, 1, "normal", "damped", {}),
        )
    ),
    case("p_random.7-of-8", "level", LEVEL, partial(p_of_sets, size=7, experts=8, sets=19, caliper=1, blocks=2),
         "exchangeable experts, claims of 7 of 8 experts in each of two blocks", SETS),
    case("p_random.all-others", "level", LEVEL, partial(p_of_sets, size=1, experts=24, sets=199, spread=0.2),
         "exchangeable experts, one claimed, all of the others taken", SETS),
    case("backed.8-sets", "level", LEVEL, partial(any_star, size=1, claims=1, sets=8),
         "one claim, 8 sets", STAR, before=0.127),
    case("backed.ten-claims", "fdr", LEVEL, partial(any_star, size=2, claims=10, sets=None),
         "ten claims of two exchangeable experts: any star", STAR, before=51 / 60),
    case("backed.ten-claims-19-sets", "fdr", LEVEL, partial(any_star, size=2, claims=10, sets=19),
         "ten claims of two exchangeable experts, 19 sets: any star", STAR, before=32 / 50),
    case("backed.four-experts", "level", LEVEL, partial(any_star, size=4, claims=1, sets=19, law="skewed"),
         "one claim of four exchangeable experts, skewed costs", STAR, before=0.25),
    case("backed.costs-by-load", "fdr", LEVEL,
         partial(any_star, size=1, claims=4, sets=None, experts=256, law="skewed", by_load=True),
         "four claims at random where costs go with load", STAR),
    case("p_random.most-used-caliper-0.25", "level", LEVEL,
         partial(p_of_sets, size=2, sets=19, law="skewed", by_load=True, most=True, caliper=0.25),
         "costs go with load and nothing else, the two most used experts claimed, loads within a quarter", SETS),
    case("p_random.most-used-caliper-0.5", "level", LEVEL,
         partial(p_of_sets, size=2, sets=19, law="skewed", by_load=True, most=True),
         "the same, loads within a half (the default)", SETS,
         labelled="slots and slots_random: the claim loses more of them, so that part of the excess is the load"),
    case("backed.half-hold", "fdr", LEVEL, partial(false_share, size=2, claims=10, planted=5, sets=None),
         "five claims of ten hold: share of false stars", STAR),
    case("backed.power-half-hold", "power", math.nan,
         partial(found_share, size=2, claims=6, planted=3, sets=None, smallest=1e-3),
         "three of six claims hold, each two experts 0.02 nats above 64 of 0 +- 0.01: share of them starred", STAR,
         before=0.91),
    case("backed.power-all-hold", "power", math.nan,
         partial(found_share, size=2, claims=3, planted=3, sets=None, smallest=1e-3),
         "the same, three of three claims hold", STAR, before=0.91),
    case("backed.smallest", "level", LEVEL / 2, partial(above_smallest, n=12),
         "a cost that is just the smallest of interest", STAR),
    case("backed.smallest-skewed", "level", LEVEL / 2, partial(above_smallest, n=40, skewed=True),
         "a cost that is just the smallest of interest, skewed over documents", STAR),
    *(
        case(f"delta.{name}", "coverage", 0.95, partial(covers, **settings), f"documents of unequal length: {what}",
             "probes.routing.effects: delta_low, delta_high")
        for name, what, settings in (
            ("5-documents", "5 documents", {"n": 5}), ("24-documents", "24 documents", {"n": 24}),
            ("copies", "12 documents, each four times, told as clusters", {"n": 12, "copies": 4}),
        )
    ),
    *(
        case(f"p.{name}", "level", LEVEL, partial(p_of_documents, **settings), f"excess over documents: {what}",
             "probes.routing.effects: p", **more)
        for name, what, settings, more in (
            ("12-documents", "symmetric, 12 documents", {"n": 12}, {}),
            ("skewed", "skewed, 40 documents", {"n": 40, "skewed": True}, {"labelled": AS_MANY}),
            ("copies", "12 documents, each four times, told as clusters", {"n": 12, "copies": 4}, {}),
        )
    ),
    case("backed.untrained", "fdr", LEVEL, partial(untrained, chosen="at random", smallest=0.0),
         "models that have learned nothing, three claims at random, no smallest effect: any star", STAR,
         before=7 / 18, quick=4, full=200),
    case("backed.untrained-by-load", "fdr", LEVEL, partial(untrained, chosen="by load", smallest=1e-3),
         "models that have learned nothing, each label's most used experts: any star", STAR, quick=4, full=200),
]  # fmt: skip
