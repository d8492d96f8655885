"""A small index of stories, and what it should hold according to plain transformers."""

from __future__ import annotations

import pytest
import torch
from plainly import states_of

import workbench
from lenses import ContextIndex
from workbench.organisms.story.grammar import stories


@pytest.fixture(scope="session")
def story() -> workbench.Model:
    return workbench.load("organism:story")


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Single sentences, some of them several times, as corpora have them."""
    return [s.strip() + "." for text in stories(120, 5) for s in text.text.split(".") if s.strip()]


@pytest.fixture(scope="session")
def index(story: workbench.Model, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> ContextIndex:
    path = tmp_path_factory.mktemp("latent") / "index"
    return ContextIndex.build(story, sentences, path, contexts_per_token=20, progress=False)


@pytest.fixture(scope="session")
def dense(story: workbench.Model, index: ContextIndex) -> dict[int, torch.Tensor]:
    """[rows, d] of each index layer: each sentence alone, by transformers' own output_hidden_states."""
    return {layer: states_of(story, index, layer) for layer in index.layers}
