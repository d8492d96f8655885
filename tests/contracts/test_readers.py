"""Every reader keeps what readers promise, on a plain model and on an odd one; and a reader that does not is caught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from make_believe_cuda import MakeBelieveCuda
from tiny import tiny

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitAttribution, LogitLens, TokenDrift
from probes.routing import RoutingTracer
from probes.superposition import CandidateBelief
from probes.superposition.features import DictionaryFeatures
from probes.values.answers import ChosenTokens
from probes.values.white.capture import AnswerStates
from workbench import Output, Plan, Reader, States
from workbench.errors import InputError
from workbench.organisms.story.grammar import stories
from workbench.sites import resolve
from workbench.testing import CHECKS, ContractBroken, check_reader, inputs_for
from workbench.variables import about

STORIES = ["Mara lives in the", "The dog", "Mara lives in the", "The bell of Tilda is red. The bell", "The"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made: dict[str, workbench.Model] = {}

    def model(name: str, device: str = "cpu") -> workbench.Model:
        key = f"{name} {device}"
        if key not in made or device != "cpu":
            if name == "story":
                return made.setdefault(key, workbench.load("organism:story", device=device))
            module = zoo.build(name) if name in ("qwen2_moe", "deepseek_v3") else tiny(name)
            made[key] = workbench.load(module, name=name, device=device)
        return made[key]

    return model


class Sparse:
    """A dictionary of random directions."""

    def __init__(self, width: int, features: int = 64) -> None:
        self.w = torch.randn(features, width, generator=torch.Generator().manual_seed(0))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w.T.to(x.device)).relu()

    def decode(self, a: torch.Tensor) -> torch.Tensor:
        return a @ self.w.to(a.device) / len(self.w)


def routed(numbers: list[int]) -> RoutingTracer:
    return RoutingTracer([f"L{i % 2}" for i in numbers], trace=True, scores=True, pairs=True)


def answering(numbers: list[int]) -> AnswerStates:
    answers = [{"support": [5 + i], "neutral": [20], "oppose": [30 + i, 41]} for i in numbers]
    return AnswerStates([i // 2 for i in numbers], answers)


# name -> (the reader or what makes one for some prompts, models, options).  A new reader is one line here.
PLAIN = ("llama", "gemma2")
READERS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "LogitLens": (LogitLens(), PLAIN, {}),
    "LogitLens, next": (LogitLens([1, -1], targets="next", top_k=3), ("gpt2",), {}),
    "LogitLens, targets": (lambda own: LogitLens(targets=[[5 + i, 90 - i] for i in own]), ("cohere",), {}),
    "LogitLens, blocks": (LogitLens(at="mlp_out", compare=False), ("granite",), {}),
    "EmbeddingLens": (EmbeddingLens(), PLAIN, {}),
    "LogitAttribution": (LogitAttribution(), PLAIN, {}),
    "States": (States(), PLAIN, {}),
    "TokenDrift": (TokenDrift(), PLAIN, {}),
    "RoutingTracer": (RoutingTracer(), ("deepseek_v3",), {}),
    "RoutingTracer, traced": (routed, ("qwen2_moe",), {}),
    "CandidateBelief": (CandidateBelief([5, 9, 40], mass=True), PLAIN, {}),
    "CandidateBelief, own": (lambda own: CandidateBelief([[5 + i, 60] for i in own]), ("gpt2",), {}),
    "DictionaryFeatures": (DictionaryFeatures({1: Sparse(32), 3: Sparse(32, 40)}, rotations=1, draws=20), PLAIN, {}),
    "ChosenTokens": (lambda own: ChosenTokens([[[5, 9 + i]] * 12 for i in own]), PLAIN, {}),
    "AnswerStates": (answering, PLAIN, {"positions": "last"}),
}  # fmt: skip


@pytest.mark.parametrize("name, where", [(name, where) for name, (_, models, _) in READERS.items() for where in models])
def test_reader_keeps_its_promises(name, where, models):
    reader, _, options = READERS[name]
    check_reader(reader, models(where), **options)


@pytest.fixture(scope="module")
def index(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("contract") / "index"
    texts = [s.text for s in stories(40, 5)]
    return ContextIndex.build(models("story"), texts, path, contexts_per_token=4, layers=[2, 5], progress=False)


@pytest.mark.parametrize("method", ["exact", "centre"])
def test_latent_lens_keeps_its_promises(models, index, method):
    calibration = "centre" if method == "centre" else "none"
    lens = LatentLens(index, [0, 3, -1], 3, calibration=calibration, self_matches=method == "centre")
    check_reader(lens, models("story"), STORIES, ties=0.01)


def test_adapter_tracer_keeps_its_promises(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed, and Arrow routers are PEFT's")
    from test_adapters import arrow, documents

    from probes.routing.adapters.tracing import AdapterTracer

    ids, labels = documents(5)

    def tracer(numbers):
        return AdapterTracer([labels[i] for i in numbers], None, None, trace=True)

    model = workbench.load(arrow(tmp_path), name="arrow")
    # document_label numbers the labels that there are, and a prompt alone has one.
    check_reader(tracer, model, ids, skip=["alone"])
    check_reader(AdapterTracer(), model, ids)


# ---------------------------------------------------------------- elsewhere


TWINS = ("LogitLens", "LogitLens, next", "EmbeddingLens", "LogitAttribution", "States", "TokenDrift", "CandidateBelief",
         "DictionaryFeatures", "ChosenTokens", "AnswerStates", "RoutingTracer, traced")  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_reader_gives_on_a_device_what_it_gives_on_the_cpu(name, models):
    reader, where, options = READERS[name]
    others = [check for check in CHECKS if check != "twin"]
    with MakeBelieveCuda():
        twin = models(where[-1], "cuda")
        assert twin.device.type == "cuda"
        check_reader(reader, models(where[-1]), **options, skip=others, close=1e-6, twin=twin)


# ---------------------------------------------------------------- readers that break a promise


@dataclass(frozen=True, eq=False)
class Norms(Reader):
    """A sound reader: norms of the states, their sum over all tokens, and how many there are."""

    chunk: int | None = None

    def plan(self, run):
        sites = resolve(run.model, "resid", [1, 3])

        def observe(states, batch):
            norms = torch.stack([states[site].norm(dim=-1) for site in sites], 1)
            return {"norm": norms, "total": norms.sum(0).double(), "tokens": len(batch)}

        outputs = {
            "norm": Output(("prompt", "layer", "position"), about("norm of the state", "stream units")),
            "total": Output(("layer",), about("sum of norms", "stream units"), dtype=np.float64, combine="sum"),
            "tokens": Output((), about("tokens", "tokens"), dtype=np.int64, combine="sum"),
        }
        return Plan(sites, outputs, observe)


class Broken(Norms):
    """Norms with one thing done otherwise: ``change(reader, observe)`` gives another observe."""

    def plan(self, run):
        plan = super().plan(run)
        observe = plan.observe
        return replace(plan, observe=lambda states, batch: self.wrong(observe, states, batch))

    def wrong(self, observe, states, batch):
        return observe(states, batch)


class CountsPads(Broken):
    def wrong(self, observe, states, batch):
        return observe(states, batch) | {"tokens": batch.inputs["input_ids"].numel()}


class OfItsBatch(Broken):
    def wrong(self, observe, states, batch):
        found = observe(states, batch)
        return found | {"norm": found["norm"] / found["norm"].max()}


class OfTheSide(Broken):
    """Looks for a prompt's first token in column 0."""

    def wrong(self, observe, states, batch):
        found, width = observe(states, batch), batch.inputs["input_ids"].shape[1]
        return found | {"norm": found["norm"] + (batch.rows % width)[:, None]}


class BeyondItsEnd(Norms):
    def plan(self, run):
        said = {"zeros": about("norm, 0 where there is none")}
        dims = ("prompt", "layer", "position")
        return replace(
            super().plan(run), about=said, finish=lambda found: {"zeros": (dims, np.nan_to_num(found["norm"]))}
        )


class OfItsNumber(Broken):
    def wrong(self, observe, states, batch):
        found = observe(states, batch)
        return found | {"norm": found["norm"] * (1 + 0.1 * batch.prompt[:, None])}


class OfTheOthers(Norms):
    """Divides by the mean over all prompts, and calls it a value."""

    def plan(self, run):
        plan = super().plan(run)
        dims, said = plan.outputs["norm"].dims, {"relative": about("norm over the mean norm")}
        return replace(
            plan, about=said, finish=lambda found: {"relative": (dims, found["norm"] / np.nanmean(found["norm"]))}
        )


class OfItsSlot(Broken):
    def wrong(self, observe, states, batch):
        found = observe(states, batch)
        return found | {"norm": found["norm"] + batch.slot[:, None]}


class OfItsChunk(Broken):
    def wrong(self, observe, states, batch):
        found = observe(states, batch)
        return found | {"norm": found["norm"] + (self.chunk or 0)}


class WritesToStates(Broken):
    def wrong(self, observe, states, batch):
        next(iter(states.values())).mul_(2)
        return observe(states, batch)


class AddsUpItself(Norms):
    """Keeps what a batch came to in the plan: counted twice where it runs again, lost where a run goes on."""

    def plan(self, run):
        plan, seen = super().plan(run), []

        def observe(states, batch):
            seen.append(len(batch))
            return {k: v for k, v in plan.observe(states, batch).items() if k != "tokens"}

        outputs = {k: v for k, v in plan.outputs.items() if k != "tokens"}
        told = {"tokens": about("tokens", "tokens")}
        tokens = {"finish": lambda found: {"tokens": ((), sum(seen))}, "about": told}
        return replace(plan, outputs=outputs, observe=observe, **tokens)


class KeepsBetweenRuns(Broken):
    seen = []

    def wrong(self, observe, states, batch):
        self.seen.append(1)
        found = observe(states, batch)
        return found | {"norm": found["norm"] + len(self.seen)}


class ChangesItself(Norms):
    def plan(self, run):
        object.__setattr__(self, "runs", getattr(self, "runs", 0) + 1)
        return super().plan(run)


@dataclass
class Thawed(Reader):
    layer: int = 1

    plan = Norms.plan


class LeavesAHook(Norms):
    def plan(self, run):
        run.model.module.register_forward_hook(lambda *a: None)
        return super().plan(run)


class Draws(Norms):
    def plan(self, run):
        np.random.random()  # noqa: NPY002 - that is what is wrong with it
        return super().plan(run)


class FillsWhatWasNotRead(Norms):
    def plan(self, run):
        plan, said = super().plan(run), {"most": about("largest norm", "stream units")}

        def finish(found):
            most = np.nan_to_num(found["norm"]).max((1, 2))
            return {"most": (("prompt",), np.where(most > 0, most, 7.0))}

        return replace(plan, about=said, finish=finish)


class ClaimsAll(Norms):
    """Says of a partial reading that it is whole."""

    def reading(self, run, plan, found, origin):
        reading = super().reading(run, plan, found, origin)
        reading.provenance[0]["prompts_read"] = len(run.prompts)
        return reading


class SaysNothing(Norms):
    def plan(self, run):
        plan = super().plan(run)
        return replace(plan, finish=lambda found: {"mean": (("layer",), np.nanmean(found["norm"], (0, 2)))})


class SilentLabels(Norms):
    def plan(self, run):
        plan, said = super().plan(run), {"by_sort": about("something of each sort")}
        coords = {"sort": np.array(["a", "b"], object)}
        return replace(plan, about=said, coords=coords, finish=lambda found: {"by_sort": (("sort",), np.ones(2))})


class Nameless(Norms):
    def reading(self, run, plan, found, origin):
        return workbench.Reading(super().reading(run, plan, found, origin).data, origin)


class HidesASetting(Norms):
    chunk: int | None = 5

    def reading(self, run, plan, found, origin):
        reading = super().reading(run, plan, found, origin)
        del reading.provenance[0]["reader"]["chunk"]
        return reading


class CannotBeKept(Norms):
    """Files hold no table in an attribute."""

    def plan(self, run):
        return replace(super().plan(run), attrs={"layers": {"first": 1}})


class CannotBeSpelt(Norms):
    """An attribute that a file gives back as something else."""

    def plan(self, run):
        return replace(super().plan(run), attrs={"said": "a\0b"})


class CannotBeTold(Norms):
    """A setting that a file gives back as something else."""

    def reading(self, run, plan, found, origin):
        reading = super().reading(run, plan, found, origin)
        reading.provenance[0]["reader"]["layers"] = (1, 3)
        return reading


class HasNoSuchChart(Norms):
    def plan(self, run):
        return replace(super().plan(run), attrs={"chart": "norms"})


BROKEN = [
    (CountsPads(), "batches", "tokens"), (OfItsBatch(), "batches", "norm"), (OfTheSide(), "padding", "norm"),
    (BeyondItsEnd(), "padding", "zeros"), (OfItsNumber(), "order", "norm"), (OfTheOthers(), "alone", "relative"),
    (OfItsSlot(), "positions", "norm"), (OfItsChunk(), "chunk", "norm"), (WritesToStates(), "states", None),
    (AddsUpItself(), "memory", "tokens"), (AddsUpItself(), "resume", "tokens"), (KeepsBetweenRuns(), "again", "norm"),
    (ChangesItself(), "again", "runs"), (Thawed(), "again", None), (LeavesAHook(), "again", None),
    (Draws(), "again", None), (FillsWhatWasNotRead(), "interrupt", "most"), (ClaimsAll(), "interrupt", None),
    (SaysNothing(), "metadata", None), (SilentLabels(), "metadata", "sort"), (Nameless(), "provenance", None),
    (HidesASetting(5), "provenance", "chunk"), (CannotBeKept(), "file", None), (CannotBeSpelt(), "file", None),
    (CannotBeTold(), "file", None), (HasNoSuchChart(), "shown", None), (OfItsBatch(), "twin", "norm"),
]  # fmt: skip


@pytest.mark.parametrize("reader, check, variable", BROKEN, ids=[f"{type(r).__name__}, {c}" for r, c, _ in BROKEN])
def test_broken_reader_is_caught_by_its_check(reader, check, variable):
    model = workbench.load(tiny("llama"), name="llama")
    twin = workbench.load(tiny("llama", seed=1), name="llama") if check == "twin" else None
    with pytest.raises(ContractBroken, match=f"^{check}: ") as caught:
        check_reader(reader, model, skip=[c for c in CHECKS if c != check], twin=twin)
    assert caught.value.check == check and caught.value.variable == variable


def test_every_check_is_shown_to_catch_something():
    assert {check for _, check, _ in BROKEN} == set(CHECKS)


def test_sound_reader_passes_every_check(llama):
    reading = check_reader(Norms(), llama, twin=llama)
    assert isinstance(reading, workbench.Reading)
    assert int(reading["tokens"]) == sum(map(len, inputs_for(llama)))
    for inputs in ([[5, 6], [7], [8, 9, 10]], [[5, 6, 7, 8]] * 3):
        check_reader(Norms(), llama, inputs)


def test_message_names_the_variable_the_place_and_the_difference(llama):
    with pytest.raises(ContractBroken) as caught:
        check_reader(OfItsNumber(), llama, skip=["batches", "alone"])
    found = caught.value
    assert isinstance(found, AssertionError) and found.check == "order" and found.variable == "norm"
    assert set(found.place) == {"prompt", "layer", "position"} and found.place["layer"] in (1, 3)
    assert (found.difference or 0) > 1 and "largest difference" in str(found) and "at prompt" in str(found)


def test_what_cannot_be_checked_is_an_error(llama):
    with pytest.raises(InputError, match="no check 'speed'"):
        check_reader(Norms(), llama, skip=["speed"])
    with pytest.raises(InputError, match="2 prompts are too few"):
        check_reader(Norms(), llama, [[5], [6, 7]])


def test_prompts_are_made_for_any_model(llama, models):
    for model in (llama, models("story")):
        ids = inputs_for(model)
        assert len(ids) == 7 and ids == inputs_for(model)
        assert len({len(own) for own in ids}) >= 5 and ids[1] == ids[5] and len(ids[3]) == 1
        assert len(set(ids[4])) < len(ids[4]) and 0 not in sum(ids, [])


def test_every_registered_reader_is_checked():
    points = metadata.entry_points(group="workbench.readers")
    own = {p.value.split(":")[1] for p in points if p.value.split(".")[0] in ("lenses", "probes")}
    assert own <= {name.split(",")[0] for name in READERS} | {"LatentLens"}
