"""Everything that runs a model, as functions of a device: tests ask that each gives on a GPU what it gives on the CPU.

A case is ``case(device, folder)`` and returns tables and arrays.  :data:`CASES` names it, and says which readers it
puts on the device; a reader that no case has is a failing test (test_same_as_cpu.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import living
import numpy as np
import torch
import transformers
import zoo
from pictured import drawn, pictured, text_with_image
from tiny import prompts, tiny

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitAttribution, LogitLens, States, TokenDrift
from lenses.latent import logit_agreement
from lenses.latent.hubness import hubness
from lenses.latent.search import CALIBRATIONS
from probes.routing import RoutingTracer, contributions, effects, functional, intervene, measures, regret, shared, trace
from probes.routing import adapters as adapting
from probes.superposition import (
    CandidateBelief,
    ContinuousThought,
    ForcedMixture,
    SoftThought,
    answers,
    decode_frontier,
    entity_belief,
    frontier,
    mass,
    mixture_entropy,
    soft_versus_hard,
    think,
    use,
    verdict,
)
from probes.superposition.features import DictionaryFeatures, sweep
from probes.superposition.searcher import Questions, policy
from probes.values.framings import default_framings
from probes.values.instruments import Pmf, SampledText, SequenceLikelihood
from probes.values.judged import ClassifierJudge, LmJudge
from probes.values.live import ValueCallback
from probes.values.tracker import ValueTracker
from probes.values.white import WhiteBox, margins, projections, weights
from workbench.organisms.polyglot import twins
from workbench.organisms.searcher import regimes
from workbench.organisms.searcher.grammar import THOUGHTS
from workbench.organisms.story.grammar import stories
from workbench.readout import Readout

TEXTS = ["The dog ran to the house.", "A cat sat", "She said that the bank of the river was far away."]
IDS = prompts(5)


@dataclass(frozen=True)
class Case:
    run: Callable[[str, Path], Any]
    readers: tuple[str, ...]
    close: float
    """Largest difference on a true GPU, absolute and as a share: fp32 sums in another order; indices keep fp16."""


CASES: dict[str, Case] = {}


def case(*readers: str, close: float = 5e-4) -> Callable[[Any], Any]:
    def named(run: Any) -> Any:
        CASES[run.__name__] = Case(run, readers, close)
        return run

    return named


def placed(module: Any, device: str, **options: Any) -> workbench.Model:
    return workbench.load(module, device=device, **options)


def moved(model: workbench.Model, device: str) -> workbench.Model:
    return placed(model.module, device, tokenizer=model.tokenizer, name=model.name)


def story(device: str, dtype: str = "float32") -> workbench.Model:
    return workbench.load("organism:story", device=device, dtype=dtype)


def read(model: workbench.Model, inputs: Any, *readers: Any, **options: Any) -> list[Any]:
    found = workbench.read(model, inputs, list(readers), progress=False, **options)
    return [r.data for r in (found if isinstance(found, tuple) else (found,))]


# ---------------------------------------------------------------- lenses


@case("LogitLens")
def logit(device: str, folder: Path) -> Any:
    lenses = [LogitLens(at=at, targets="next", top_k=3) for at in ("resid", "resid_mid", "attn_out", "mlp_out")]
    lenses += [LogitLens(targets=[" dog", " cat"]), LogitLens(targets=[[" dog"]] * 3), LogitLens(compare=False)]
    lenses += [LogitLens([1, 3], chunk=64), LogitLens(-1)]
    found = read(story(device), TEXTS, *lenses)
    for name in ("gemma2", "cohere", "granite", "gpt2"):  # softcap, scales, and biases
        found += read(placed(tiny(name), device), IDS, LogitLens(), positions="last", batch_size=2)
    return found


@case("LogitLens", close=0.05)
def logit_bf16(device: str, folder: Path) -> Any:
    with mock.patch.object(Readout, "gain", lambda self: 2.0):  # on a CPU bf16 may not be faster
        data = read(story(device, "bfloat16"), TEXTS, LogitLens(precision="bf16", top_k=1))[0]
    return data[["entropy", "target_logprob"]]


@case("EmbeddingLens")
def embedding(device: str, folder: Path) -> Any:
    return read(story(device), TEXTS, EmbeddingLens(), EmbeddingLens([0, 2], 3))


@case("TokenDrift")
def drift(device: str, folder: Path) -> Any:
    return read(story(device), TEXTS, TokenDrift(), TokenDrift([0, 2]))


@case("LogitAttribution")
def attribution(device: str, folder: Path) -> Any:
    readers = [LogitAttribution(), LogitAttribution("next"), LogitAttribution([" dog", " cat"])]
    return read(story(device), TEXTS, *readers) + read(placed(tiny("gpt2"), device), IDS, LogitAttribution())


@case("States")
def states(device: str, folder: Path) -> Any:
    return read(story(device), TEXTS, States(), States([1, 2])) + read(story(device), TEXTS, States(), positions=[0, 1])


@functools.cache
def corpus() -> list[str]:
    return [s.strip() + "." for text in stories(25, 5) for s in text.text.split(".") if s.strip()]


@case("LatentLens", close=5e-3)
def latent(device: str, folder: Path) -> Any:
    model = story(device)
    index = ContextIndex.build(model, corpus()[:80], folder / "index", contexts_per_token=10, progress=False)
    index.add(corpus()[80:], model=model, progress=False)
    index = ContextIndex(index.path, model)
    kinds = [LatentLens(index, calibration=c) for c in CALIBRATIONS]
    found = read(model, TEXTS, *kinds, LatentLens(index, [1, 2], index_layers=[2], distinct=False), LogitLens())
    held = torch.from_numpy(workbench.read(model, TEXTS, States(2), progress=False)["state"].values)
    queries = held.flatten(0, -2)
    queries = queries[~queries.isnan().any(1)].to(device)
    found += [index.search(queries, 4), hubness(index, queries)]
    found += [index.search(queries.cpu(), 4, device=device)]
    pair = workbench.read(model, TEXTS, [LatentLens(index), LogitLens()], progress=False)
    found.append(logit_agreement(*pair).data)
    states = [index.store.matrix(layer).states(0, len(index)) for layer in index.layers]
    return [found, [x.numpy() for x in states]]


@case("LatentLens", close=5e-3)
def latent_approximate(device: str, folder: Path) -> Any:
    model = story(device)
    index = ContextIndex.build(model, corpus(), folder / "index", layers=[2], progress=False)
    index.accelerate(progress=False)
    lens = LatentLens(ContextIndex(index.path, model), 2, method="approximate", floors=False)
    return read(model, TEXTS, lens)[0][["similarity"]]


@case("LatentLens", close=5e-3)
def latent_int8(device: str, folder: Path) -> Any:
    model = story(device)
    index = ContextIndex.build(model, corpus(), folder / "index", layers=[2, 4], storage="int8", progress=False)
    return read(model, TEXTS, LatentLens(index, floors=False))[0][["similarity"]]


# ---------------------------------------------------------------- routing


def polyglot(device: str) -> tuple[workbench.Model, list[list[int]], list[str]]:
    return moved(twins.planted(), device), *twins.documents(16, languages=True, tokens=20)


@case("RoutingTracer")
def routing(device: str, folder: Path) -> Any:
    model, texts, labels = polyglot(device)
    full = RoutingTracer(labels, trace=True, scores=True, pairs=True)
    reading = workbench.read(model, texts, full, progress=False)
    on_disk = trace(model, texts, folder / "trace", labels=labels, progress=False)
    told = [getattr(measures, name)(reading, draws=20) for name in ("usage", "balance", "coactivation", "flow", "gate")]
    told += [measures.geometry(model, draws=5), measures.reordering(reading, model, draws=5), measures.paths(reading)]
    told += [measures.router_drift({"early": moved(twins.null(), device), "late": model})]
    others = [
        read(placed(zoo.build(name), device), IDS, RoutingTracer(trace=True, scores=True))[0]
        for name in ("qwen2_moe", "deepseek_v3", "longcat_flash")
    ]
    return [reading.data, on_disk.reading().data, told, others]


@case()
def routing_effects(device: str, folder: Path) -> Any:
    model, texts, labels = polyglot(device)
    experts = {1: [0, 1]}
    found = [
        effects(model, {"L0": (texts[::4], experts), "both": (texts, {0: [1], 1: [2]})}, sets=2, caliper=1, draws=20),
        regret(model, texts[:6], 1, routes=2, draws=20), functional(model, texts, clusters=5, top=2, draws=5),
        contributions(model, texts, labels, draws=5),
        shared(placed(zoo.build("qwen2_moe"), device), IDS, draws=5),
    ]  # fmt: skip
    kinds: list[dict[str, Any]] = [
        {"drop": experts}, {"replace": experts}, {"force": {1: [3, 4]}}, {"force": {1: "random"}},
        {"steer": {1: {2: 0.5}}}, {"jitter": 0.1}, {"drop": experts, "renormalise": False},
    ]  # fmt: skip
    for kind in kinds:
        try:
            with intervene(model, **kind):
                found += read(model, texts[:4], LogitLens(top_k=1))
        except workbench.errors.WorkbenchError as error:  # what a model does not allow, it allows on no device
            found.append(type(error).__name__)
    return found


@case("AdapterTracer")
def adapters(device: str, folder: Path) -> Any:
    from test_adapters import LABELS, ORACLE, arrow, documents

    model = placed(arrow(folder), device, name="arrow")
    ids, labels = documents()
    reading = adapting.adapter_routing(model, ids, labels, oracle=ORACLE, trace=True, progress=False)
    found = [reading.data, adapting.usage(reading, draws=5), adapting.oracle_rate(reading, draws=5)]
    found += [adapting.agreement(reading, draws=5), adapting.gram(model, draws=9), adapting.prototypes(model)]
    found.append(adapting.compare(model, ids, labels, ORACLE, draws=5))
    with adapting.weighted(model, {f"task_{i}": 1 / len(LABELS) for i in range(len(LABELS))}):
        found += read(model, ids[:3], LogitLens(top_k=1))
    return found


# ---------------------------------------------------------------- superposition


@case("CandidateBelief")
def thoughts(device: str, folder: Path) -> Any:
    found: list[Any] = []
    questions = Questions(6)
    for regime, path in regimes().items():
        model = workbench.load(str(path), device=device, dtype="float32")
        how = policy(regime, model)
        belief = CandidateBelief(questions.names, mass=True)
        thought = think(model, questions.prompts, how, readers=[belief, LogitLens(top_k=2), States()], then="=")
        logit = thought.readings[0].data["logit"].values[:, -1, :THOUGHTS]
        held = frontier(logit, questions.problems, others=3)
        used = use(
            model, questions.prompts, questions.problems, questions.names, how, then="=", mirrored=questions.mirrored,
            draws=20,
        )  # fmt: skip
        found += [thought.data, [r.data for r in thought.readings], held, mass(logit, questions.problems), used]
        found += [verdict(held, used).word, thought.vectors]
        found.append(answers(model, questions.prompts, questions.problems, questions.names, how, then="="))
    return found


@case("CandidateBelief")
def thoughts_plain(device: str, folder: Path) -> Any:
    model = story(device)
    found: list[Any] = []
    for how in (ContinuousThought(2), SoftThought(2, keep=4), ForcedMixture([[5, 6], [7]])):
        for options in ({}, {"cache": False, "batch_size": 1}):
            thought = think(model, TEXTS, how, readers=[CandidateBelief([" dog", " cat"])], seed=3, **options)
            found += [thought.data, thought.readings[0].data]
    found.append(entity_belief(model, TEXTS, [" dog ran", " cat"]))
    return found


@case("States", "soft._Entropy")
def soft(device: str, folder: Path) -> Any:
    model = story(device)
    return [soft_versus_hard(model, TEXTS), mixture_entropy(model, TEXTS, (1, 2), mixtures=2)]


@case()
def decoded(device: str, folder: Path) -> Any:
    """Of arrays: on the CPU wherever the model was."""
    questions = Questions(40)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((40, 2, 2, 8)).astype(np.float32)
    return [decode_frontier(states, questions.problems, seeds=1, steps=5), sweep(4, 2, [0.0, 0.9], steps=5, batch=16)]


class Sparse:
    """A dictionary of random directions, on the device of the model or, as often, on the CPU."""

    def __init__(self, width: int, device: str) -> None:
        self.w = torch.randn(3 * width, width, generator=torch.Generator().manual_seed(0)).to(device)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(self.w.device) @ self.w.T).relu()

    def decode(self, a: torch.Tensor) -> torch.Tensor:
        return a.to(self.w.device) @ self.w / len(self.w)


@case("DictionaryFeatures")
def dictionary(device: str, folder: Path) -> Any:
    model = story(device)
    host, there = (Sparse(model.d_model, where) for where in ("cpu", device))
    return read(model, TEXTS, DictionaryFeatures({1: there, 3: {"a": host, "b": there}}, rotations=1, draws=10))


# ---------------------------------------------------------------- values


@case("ChosenTokens")
def pmf(device: str, folder: Path) -> Any:
    model = placed(living.model().eval(), device, tokenizer=living.tokenizer())
    long = [replace(item, text=f"{living.ITEMS[0].text} for all of us " * 6 + item.text) for item in living.ITEMS]
    parted = Pmf(living.FRAMINGS).read(model, long, progress=False)
    assert parted.data.attrs["prefix_tokens_saved"], "what prompts share is run once, or the model's cache failed here"
    asked = [Pmf(default_framings()[:1], chat=False), SequenceLikelihood()]
    found = [i.read(model, living.ITEMS[:6], progress=False, **how) for i in asked for how in ({}, {"batch_size": 2})]
    return [parted, parted.data.attrs["prefix_tokens_saved"], found]


@case()
def sampled(device: str, folder: Path) -> Any:
    model = placed(living.model().eval(), device, tokenizer=living.tokenizer())
    options = {"shown": "{response}", "judge": living.judge}
    written = SampledText(2, 1.0, 6, **options)
    return [written.read(model, living.ITEMS[:6], progress=False, seed=1)]


@case("ChosenTokens")
def judges(device: str, folder: Path) -> Any:
    tokenizer = living.tokenizer()
    model = placed(living.model().eval(), device, tokenizer=tokenizer)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=3, pad_token_id=0, id2label=dict(enumerate(("support", "neutral", "oppose"))),
    )  # fmt: skip
    classifier = transformers.LlamaForSequenceClassification(config).eval().to(device)
    texts = [item.text for item in living.ITEMS[:5]]
    asked = LmJudge(model, labels=("Yes", "A", "No"), question="{text}")
    return [asked(texts), ClassifierJudge(classifier, tokenizer)(texts)]


@case("AnswerStates")
def white_box(device: str, folder: Path) -> Any:
    made = {s: placed(living.model(s).eval(), device, tokenizer=living.tokenizer()) for s in (0, 1)}
    tracker = ValueTracker(folder / "series", living.ITEMS, [WhiteBox(default_framings()[:2], draws=20)])
    inside = tracker.run(made, progress=False).table("whitebox")
    return [inside, margins(inside, draws=20), projections(inside, draws=20), weights(made)]


@case("LogitLens", "EmbeddingLens", "LatentLens", "LogitAttribution", "States", "TokenDrift")
def images(device: str, folder: Path) -> Any:
    """Pictures of several sizes in one batch: pixels, grids of patches, crops."""
    found = []
    for kind in ("llava", "qwen2_5_vl", "llava_next"):
        made, processor = pictured(kind)
        model = placed(made, device, tokenizer=processor.tokenizer, processor=processor)
        prompts = [
            {"text": text_with_image(processor), "images": drawn(50, 40)},
            {"text": text_with_image(processor, 2), "images": [drawn(40, 90), drawn(64, 64)]},
        ]
        readers = [LogitLens(), EmbeddingLens(), States(), TokenDrift()]
        readers += [States(stream="vision"), TokenDrift(stream="vision")]
        if kind == "llava":
            index = ContextIndex.build(model, ["a red ball", "the dog ran"], folder / "index", progress=False)
            readers += [LatentLens(index, [1, 3]), LogitAttribution()]
        found += workbench.read(model, prompts, readers, progress=False)
    return found


@case("ChosenTokens")
def tracker(device: str, folder: Path) -> Any:
    made = {s: placed(living.model(s).eval(), device, tokenizer=living.tokenizer()) for s in (0, 1)}
    run = ValueTracker(folder / "series", living.ITEMS[:8], living.instruments()).run(made, progress=False)
    return [run.table(i) for i in run.instruments]


@case("ChosenTokens", close=1e-3)
def callback(device: str, folder: Path) -> Any:
    """Reading while it trains, without dropout, which draws other numbers on another device."""
    module, words = living.model(attention_dropout=0.0), living.tokenizer()
    rows = [{"input_ids": words(i.text + " Yes")["input_ids"]} for i in living.ITEMS]
    run = ValueTracker(folder / "live", living.ITEMS[:4], [Pmf(living.FRAMINGS)])
    options = transformers.TrainingArguments(
        str(folder / "run"), max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=device == "cpu", optim="adamw_torch", learning_rate=1e-4, seed=0, logging_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(
        module, options, transformers.DataCollatorForLanguageModeling(words, mlm=False), rows,
        processing_class=words, callbacks=[ValueCallback(run, words, at=[1])],
    )  # fmt: skip
    trainer.train()
    assert next(module.parameters()).device.type == device
    return [run.readings(i) for i in run.instruments]
