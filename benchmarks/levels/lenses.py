"""Levels of lenses: p and q of a nearest neighbour and of a target, floors, intervals over prompts and clauses.

Trials read random tokens with a tiny model of random weights, through :func:`workbench.read`: such prompts are
exchangeable with themselves in another order, so that nothing is to be found in them.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import workbench
from levels.case import Case
from workbench.variables import about, described

Trial = Callable[[np.random.Generator], Any]

WORDS, LAYERS = 101, [1, 2]
SHAPES = {
    "4 tokens": [4], "6 tokens": [6], "12 tokens": [12], "6 prompts of 8": [8] * 6, "4 to 40 tokens": [4, 4, 4, 40],
}  # fmt: skip
BEFORE = {"4 tokens": 0.198, "6 tokens": 0.147, "12 tokens": 0.107}
PERCENTILE = {2: 0.51, 3: 0.74, 5: 0.83, 8: 0.88, 20: 0.92}
SMALL = "the chart shows each prompt as a point, and no band"
SKEWED = "the title says bootstrap-t: few skewed values cannot be covered as often as claimed"


# ---------------------------------------------------------------- what is read


@cache
def model() -> workbench.Model:
    """Two layers of random weights over a vocabulary of words; attention that moves what a state is."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return workbench.load(module, tokenizer=PreTrainedTokenizerFast(tokenizer_object=raw), progress=False)


def temporary() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def index() -> Any:
    from lenses import ContextIndex

    texts = [" ".join(f"w{i}" for i in ids) for ids in drawn(np.random.default_rng(9), [4, 6, 8, 11] * 15)]
    return ContextIndex.build(model(), texts, temporary() / "index", layers=[0, *LAYERS], progress=False)


def drawn(rng: np.random.Generator, lengths: list[int]) -> list[list[int]]:
    return [rng.integers(1, WORDS, n).tolist() for n in lengths]


def read(lens: Any, prompts: list[list[int]], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # q that no cell can reach
        return workbench.read(model(), prompts, lens, progress=False, **options)


def made(kind: str) -> tuple[Any, str]:
    """A lens and the value that it tests."""
    from lenses import EmbeddingLens, LatentLens, LogitLens

    if kind == "similarity":
        return LatentLens(index(), LAYERS, top_k=1), kind
    if kind == "cosine":
        return EmbeddingLens(LAYERS, top_k=1), kind
    return LogitLens(LAYERS, top_k=1, targets={"next": "next", "given": [5]}[kind]), "target_logprob"


def p_of(kind: str, lengths: list[int], positions: Any = "all") -> Trial:
    """Which cells have p <= .05."""

    def trial(rng: np.random.Generator) -> Any:
        lens, value = made(kind)
        p = read(lens, drawn(rng, lengths), positions=positions).data[f"{value}_p"].values
        return p[~np.isnan(p)] <= 0.05

    return trial


def q_of(kind: str, lengths: list[int], positions: Any = "all") -> Trial:
    """Whether any cell has q <= .05."""

    def trial(rng: np.random.Generator) -> bool:
        lens, value = made(kind)
        return bool((read(lens, drawn(rng, lengths), positions=positions).data[f"{value}_q"].values <= 0.05).any())

    return trial


def above(floor: str) -> Trial:
    """Which cells are above a floor."""

    def trial(rng: np.random.Generator) -> Any:
        lens, value = made(floor.split("_")[0])
        prompts = drawn(rng, [8] * 6)
        if floor.endswith("random"):  # of tokens as frequent as in the index
            table = index().store.tokens
            share = table["occurrences"] / table["occurrences"].sum()
            prompts = [rng.choice(table["token_id"], 8, p=share).tolist() for _ in prompts]
        data = read(lens, prompts).data
        return (data[value].isel(rank=0) > data[floor]).values.ravel()

    return trial


def of_stories(rng: np.random.Generator) -> Any:
    """Which words of stories are nearer to an embedding than in shuffled stories, at the last layer."""
    from lenses import EmbeddingLens
    from workbench.organisms.story.grammar import stories

    texts = [story.text for story in stories(12, int(rng.integers(1000, 2**31)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        story = workbench.load("organism:story", progress=False)
        p = workbench.read(story, texts, EmbeddingLens([6], top_k=1), progress=False).data["cosine_p"].values
    return p[~np.isnan(p)] <= 0.05


# ---------------------------------------------------------------- intervals


def band(shape: str, n: int, depths: int = 20) -> Trial:
    """At which depths the interval of the chart "curves" over so many prompts holds the mean."""
    from workbench.figures import chart

    def trial(rng: np.random.Generator) -> Any:
        size = (n, depths, 1)
        values = rng.normal(size=size) if shape == "normal" else rng.exponential(size=size) - 1
        known = about("a value", short_name="value")
        data = described(xr.Dataset({"value": (("prompt", "layer", "position"), values)}), {"value": known})
        data = data.assign_coords(layer=np.arange(depths)).assign(
            input_id=(("prompt", "position"), np.zeros((n, 1), int)),
            input_position=(("prompt", "position"), np.zeros((n, 1), int)),
            input_token=(("prompt", "position"), np.full((n, 1), "a", object)),
        )
        line = chart(data, "curves", value="value", draws=999, seed=int(rng.integers(2**31))).plot.panels[0].marks[0]
        return (line.low <= 0) & (0 <= line.high)

    return trial


@cache
def population(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of index layers [layer, index] and agreement [measure, layer] over many prompts."""
    latent, agreement = both(drawn(np.random.default_rng(seed), [4, 9] * 150))
    return latent["index_layer_share"].values, agreement["rate"].values


def both(prompts: list[list[int]]) -> tuple[Any, Any]:
    from lenses import LatentLens, LogitLens
    from lenses.latent import logit_agreement

    lenses = [LatentLens(index(), LAYERS, top_k=20, floors=False), LogitLens(LAYERS, top_k=1)]
    latent, logit = read(lenses, prompts)
    return latent.data, logit_agreement(latent, logit).data


def shares(n: int) -> Trial:
    """Which shares of index layers lie in their interval."""

    def trial(rng: np.random.Generator) -> Any:
        truth = population(0)[0]
        data = both(drawn(rng, rng.choice([4, 9], n).tolist()))[0]
        held = (data["index_layer_share_low"].values <= truth) & (truth <= data["index_layer_share_high"].values)
        return held[(truth > 0.02) & (truth < 0.98)]

    return trial


def agreement(n: int) -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        truth = population(0)[1]
        data = both(drawn(rng, rng.choice([4, 9], n).tolist()))[1]
        return ((data["rate_low"].values <= truth) & (truth <= data["rate_high"].values)).ravel()

    return trial


@cache
def asked(stories_: int) -> list[Any]:
    from lenses.latent.senses import occurrences
    from workbench.organisms.story.grammar import stories

    return occurrences(list(stories(stories_, 2)))


def clauses(count: int, shape: str) -> Trial:
    """Answers that each clause has of its own, in the stories that :func:`lenses.latent.senses.senses` asks about."""
    from lenses.latent.senses import over_clauses

    def trial(rng: np.random.Generator) -> bool:
        wanted = asked(count)
        _, clause = np.unique([f"{o.word}: {o.clause}" for o in wanted], return_inverse=True)
        own = rng.random(clause.max() + 1) < 0.7
        if shape == "graded":
            own = rng.beta(2, 1, clause.max() + 1)
        truth = 0.7 if shape == "known or not" else 2 / 3
        found = over_clauses(own[clause].astype(float), wanted)
        return bool(found.low <= truth <= found.high)

    return trial


@cache
def stories_index() -> Any:
    from lenses import ContextIndex
    from workbench.organisms.story.grammar import stories

    texts = [story.text for story in stories(200, 5)]
    story = workbench.load("organism:story", progress=False)
    return ContextIndex.build(story, texts, temporary() / "stories", layers=[3, 6], progress=False)


def label_free(measure: str) -> Trial:
    """Senses that mean nothing: three clauses of each word, at random, are one.  Does the last layer tell it?"""

    def trial(rng: np.random.Generator) -> bool:
        from lenses.latent import senses as module
        from workbench.organisms.story.grammar import SENSES

        sense = {
            (word, clause): int(k >= 3)
            for word, known in SENSES.items()
            for k, clause in enumerate(rng.permutation([c for _, own in known for c in own]))
        }
        real = module.occurrences

        def relabelled(texts: Any) -> list[Any]:
            found = real(texts)
            return [module.Occurrence(o.story, o.word, sense[o.word, o.clause], o.clause, o.end) for o in found]

        module.occurrences = relabelled
        try:
            data = module.senses("organism:story", index=stories_index(), queries=60).data
        finally:
            module.occurrences = real
        own = data.sel(measure=measure, lens="LatentLens").isel(layer=-1)
        return bool(own["rate_low"] > own["rate_chance"])

    return trial


# ---------------------------------------------------------------- cases

READ: dict[str, int] = {"quick": 40, "full": 300}
WHERE = {
    "similarity": "lenses.LatentLens: similarity", "cosine": "lenses.EmbeddingLens: cosine",
    "next": 'lenses.LogitLens(targets="next"): target_logprob',
    "given": "lenses.LogitLens(targets=[5]): target_logprob",
}  # fmt: skip
LAST = {"6 prompts of 12, last position": ([12] * 6, "last"), "second position": ([12] * 6, [1])}
TARGETS = {"24 tokens": [24], "6 prompts of 8": [8] * 6, "12 prompts of 12": [12] * 12}
NEIGHBOURS = {name: (lengths, "all") for name, lengths in SHAPES.items()} | LAST
TESTED = {"similarity": NEIGHBOURS, "cosine": NEIGHBOURS} | {
    kind: {name: (lengths, "all") for name, lengths in TARGETS.items()} for kind in ("next", "given")
}

CASES: list[Case] = [
    *(
        Case(
            f"lenses.{kind}_p.{name}", "level", 0.05, p_of(kind, *shape), f"random tokens, {name}",
            f"{WHERE[kind]}_p", **READ,
            before=BEFORE.get(name) if kind == "similarity" else None,
        )
        for kind, shapes in TESTED.items() for name, shape in shapes.items()
    ),
    *(
        Case(
            f"lenses.{kind}_q.any cell", "familywise", 0.05, q_of(kind, [8] * 6),
            "random tokens, 6 prompts of 8: any cell", f"{WHERE[kind]}_q", **READ,
            before=0.8 if kind == "similarity" else None,
        )
        for kind in TESTED
    ),
    *(
        Case(
            f"lenses.{floor}.random tokens", "level", 0.05, above(floor), "random tokens, 6 prompts of 8", where,
            **READ,
        )
        for floor, where in {
            "similarity_floor_shuffled": "lenses.LatentLens: similarity_floor_shuffled",
            "similarity_floor_random": "lenses.LatentLens: similarity_floor_random",
            "cosine_floor_shuffled": "lenses.EmbeddingLens: cosine_floor_shuffled",
        }.items()
    ),
    Case(
        "lenses.cosine_p.stories", "power", float("nan"), of_stories, "12 stories of organism:story, last layer",
        f"{WHERE['cosine']}_p", quick=15, full=60, before=0.255,
    ),
    *(
        Case(
            f"lenses.curves.{shape}, {n} prompts", "coverage", 0.95, band(shape, n), f"{n} prompts, {shape}",
            'reading.figure("curves")', before=PERCENTILE[n] if shape == "normal" else None, quick=30, full=200,
            labelled="" if shape == "normal" else SMALL if n < 8 else SKEWED,
        )
        for shape in ("normal", "exponential") for n in (2, 3, 5, 8, 20)
    ),
    *(
        Case(
            f"lenses.index_layer_share.{n} prompts", "coverage", 0.95, shares(n),
            f"{n} prompts of 4 or 9 random tokens", "lenses.LatentLens: index_layer_share_low", **READ,
        )
        for n in (5, 12)
    ),
    *(
        Case(
            f"lenses.agreement.{n} prompts", "coverage", 0.95, agreement(n), f"{n} prompts of 4 or 9 random tokens",
            "lenses.latent.logit_agreement: rate_low", **READ,
        )
        for n in (5, 12)
    ),
    *(
        Case(
            f"lenses.senses.{shape}, {count} stories", "coverage", 0.95, clauses(count, shape),
            f"occurrences of {count} stories share clauses, which are {shape}", "lenses.latent.senses: rate_low",
            before=0.835 if count == 600 and shape == "known or not" else None,
        )
        for count in (60, 600) for shape in ("known or not", "graded")
    ),
    *(
        Case(
            f"lenses.senses.label-free, {measure.removeprefix('sense, ')}", "level", 0.025, label_free(measure),
            "clauses are given senses at random: the sense is told above chance at the last layer",
            "lenses.latent.senses: rate_low > rate_chance", quick=5, full=full, labelled=labelled,
        )
        for measure, full, labelled in (
            ("sense, new clause", 200, ""),
            ("sense, new story", 40, "only new clauses speak of senses (attribute claim)"),
        )
    ),
]  # fmt: skip
