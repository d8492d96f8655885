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
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitAttribution, LogitLens
from probes.routing import RoutingTracer
from probes.superposition import CandidateBelief
from probes.superposition.features import DictionaryFeatures
from probes.values.answers import ChosenTokens
from probes.values.white.capture import AnswerStates
from workbench import Output, Plan, Reader, States
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
