"""Approximate search of states such as language models have: nearly all of each is one direction that all share."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lenses import ContextIndex
from lenses.latent import search as searching
from lenses.latent.store import KIND, layer_file
from workbench.store import Folder

pytest.importorskip("faiss", reason="an approximate index needs faiss-cpu")
LAYERS, WIDTH, HUGE = (1, 4), 128, 3.0
"""The shared direction is three times as long as all else: cosines within a layer are about .9, as in real models."""


def basis(layer: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(layer)))[0]


def anisotropic(layer: int, rows: int) -> torch.Tensor:
    """A shared direction, and around it states whose directions vary 30-fold in size.

    The shared direction lies where the other layer's states vary least: there they look the same to a short code, and
    differ all the same in how near they are to this layer's.
    """
    g = torch.Generator().manual_seed(10 + layer)
    own = torch.randn(rows, WIDTH, generator=g) * torch.logspace(0, -1.5, WIDTH) @ basis(layer)
    (other,) = set(LAYERS) - {layer}
    return own + HUGE * own.norm(dim=1).mean() * normalize(basis(other)[WIDTH // 2 :].sum(0), dim=0)


@pytest.fixture(scope="module")
def states(story, sentences, tmp_path_factory):
    """An index whose rows are such states, and the states."""
    home = tmp_path_factory.mktemp("anisotropic")
    made = ContextIndex.build(story, sentences, home / "built", layers=LAYERS, contexts_per_token=20, progress=False)
    found = {layer: anisotropic(layer, len(made)) for layer in LAYERS}
    codes = {
        made.store.part(layer_file(layer, kind)): values.tobytes()
        for layer, own in found.items()
        for kind, values in made.store.encoding.encode(own).items()
    }
    there = made.store.folder
    with Folder.create_or_resume(home / "index", there.head, KIND) as folder:
        for name in there.done:
            data = codes.get(name) or there.part(name).whole()
            folder.write(name, lambda file, data=data: Path(file).write_bytes(data))
        folder.seal(there.extra)
    return home / "index", found


def dense_recall(index: ContextIndex, states: dict[int, torch.Tensor], layer: int, source: int) -> float:
    """Of states of one layer among the rows of another (or itself): share of the ten of largest cosine found."""
    queries = states[source][3::7]
    cosine = normalize(queries.double(), dim=1) @ normalize(states[layer].double(), dim=1).T
    truth = cosine.topk(10).indices.tolist()
    found = index.nearest(queries, 10, layers=layer, special=True, method="approximate").row.tolist()
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)]))


def made(path, kind):
    """The index accelerated, and whether it warned."""
    index = ContextIndex.open(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        index.accelerate(kind, progress=False)
    return index, any("less of the ten nearest" in str(w.message) for w in said)


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-sq8", "hnsw"])
def test_the_recall_that_is_told_is_found_for_states_of_the_layer_and_of_another(states, kind):
    path, found = states
    index, warned = made(path, kind)
    told = index.info()["approximate"]["recall_at_10"]
    assert warned == (min(told.values()) < 0.99)
    # A graph may never lead to the rows that are farthest out, which are the nearest of another layer's states.
    assert kind == "hnsw" or not warned
    for layer, other in (LAYERS, LAYERS[::-1]):
        own, foreign = (dense_recall(index, found, layer, source) for source in (layer, other))
        # Told is the worse of the two, of other states; rows are stored in fp16.
        assert min(own, foreign) == pytest.approx(told[str(layer)], abs=0.03), (layer, own, foreign)
        assert own > 0.98


def test_directions_in_which_rows_hardly_vary_are_coded_where_queries_differ_in_them(states, monkeypatch):
    path, found = states
    monkeypatch.setattr(searching, "MORE", (1,))
    enough, warned = made(path, "ivf-pq")
    assert not warned and dense_recall(enough, found, 1, 4) > 0.98
    half = searching.make_approximate
    monkeypatch.setattr(searching, "make_approximate", lambda matrix, kind, whole=False: half(matrix, kind))
    few, warned = made(path, "ivf-pq")
    assert warned and dense_recall(few, found, 1, 4) < 0.96
