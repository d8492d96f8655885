"""One run of many readers into a folder, for test_killed.py to kill: python killed.py MODEL FOLDER INDEX."""

import sys
from pathlib import Path

import torch

import workbench
from lenses import EmbeddingLens, LatentLens, LogitAttribution, LogitLens, States
from probes.routing import RoutingTracer
from probes.superposition import CandidateBelief
from probes.superposition.features import DictionaryFeatures
from workbench.engine import loop, saved
from workbench.organisms.polyglot import twins
from workbench.organisms.story.grammar import stories

TEXTS = [story.text for story in stories(24, 7)]


class Dictionary:
    """A small autoencoder with seeded weights."""

    def __init__(self, width: int) -> None:
        self.weight = torch.randn(width, 64, generator=torch.Generator().manual_seed(0)) / width**0.5

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).relu()

    def decode(self, a: torch.Tensor) -> torch.Tensor:
        return a @ self.weight.T


def job(kind: str, index: str):
    """Model, inputs and readers of one run."""
    if kind == "moe":
        documents, labels = twins.documents(24, languages=True, tokens=30)
        return twins.planted(), documents, [RoutingTracer(labels, trace=True, scores=True, pairs=True)]
    model = workbench.load("organism:story", progress=False)
    readers = [
        LogitLens(targets="next"), EmbeddingLens(), LogitAttribution(), LatentLens(index), States(layers=[2]),
        CandidateBelief([5, 9, 13], mass=True), DictionaryFeatures({3: Dictionary(model.d_model)}, rotations=1),
    ]  # fmt: skip
    return model, TEXTS, readers


def main(kind: str, folder: str, index: str) -> None:
    loop.SHARD_TOKENS = saved.SHARD_TOKENS = 48
    model, inputs, readers = job(kind, index)
    print("loaded", flush=True)
    workbench.read(model, inputs, readers, out=folder, batch_size=2, progress=False)
    print("finished", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
    assert Path(sys.argv[2]).is_dir()
