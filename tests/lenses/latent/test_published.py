"""Caches of the published package: taken over without running code, with what is wrong in them said."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch

import workbench
from lenses import ContextIndex
from lenses.latent import IndexRefused, LatentLens, import_published
from workbench.errors import InputError

LAYERS = [1, 3]


def cache(story, sentences, folder, *, side="right", layers=LAYERS):
    """What the published builder makes, written out: positions counted from the left of a padded batch."""
    tokenizer = workbench.load("organism:story").tokenizer
    tokenizer.padding_side = side
    made = {layer: ([], []) for layer in layers}
    seen = set()
    for at in range(0, len(sentences), 16):
        texts = sentences[at : at + 16]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            hidden = story.module(**batch, output_hidden_states=True).hidden_states
        for s, ids in enumerate(batch["input_ids"]):
            for p in range(2, int(batch["attention_mask"][s].sum())):
                prefix = tuple(ids[: p + 1].tolist())
                if prefix in seen:
                    continue
                seen.add(prefix)
                row = {
                    "token_str": tokenizer.decode([ids[p]]),
                    "token_id": int(ids[p]),
                    "caption": texts[s],
                    "position": p,
                }
                for layer, (states, rows) in made.items():
                    states.append(torch.nn.functional.normalize(hidden[layer][s, p], dim=0).half())
                    rows.append(row)
    for layer, (states, rows) in made.items():
        (folder / f"layer_{layer}").mkdir(parents=True)
        torch.save(
            {"embeddings": torch.stack(states), "metadata": rows}, folder / f"layer_{layer}" / "embeddings_cache.pt"
        )
    return made


@pytest.fixture(scope="module")
def some(sentences):
    return list(dict.fromkeys(sentences))[:80]


def test_rows_and_labels_are_the_caches(story, some, tmp_path):
    made = cache(story, some, tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = import_published(tmp_path / "cache", tmp_path / "index", model=story)
    assert index.layers == LAYERS and len(index) == len(made[1][0])
    query = torch.stack(made[3][0]).float()
    found = index.search(query, 1, layers=3, special=True, model=story)
    np.testing.assert_allclose(found.similarity.values, 1, atol=1e-3)
    for name, key in (("sentence", "caption"), ("token_position", "position"), ("token_id", "token_id")):
        own = [row[key] for row in made[3][1]]
        # Two contexts whose states agree to the last bit may stand for each other.
        assert np.mean(found[name].values[:, 0] == own) > 0.95
    for text, a, b, word in zip(
        *(found[n].values[:, 0] for n in ("sentence", "char_start", "char_end", "word")), strict=True
    ):
        assert text[a:b] in word
    assert workbench.read(story, "Mara lives in", LatentLens(index, 3), progress=False).data.context.values.min() >= -1


def test_the_left_padding_defect_is_said(story, some, tmp_path):
    right = cache(story, some, tmp_path / "right")
    left = cache(story, some, tmp_path / "left", side="left")
    assert len(left[1][0]) < 0.8 * len(right[1][0])
    with pytest.warns(UserWarning, match="pads on the left"):
        import_published(tmp_path / "left", tmp_path / "index", model=story)
    with pytest.warns(UserWarning, match="padding or other marks"):
        import_published(tmp_path / "left", tmp_path / "other")


def test_layers_with_different_rows_are_aligned_and_said(story, some, tmp_path):
    made = cache(story, some, tmp_path / "cache")
    file = tmp_path / "cache" / "layer_3" / "embeddings_cache.pt"
    states, rows = torch.stack(made[3][0]), made[3][1]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[5:]
    torch.save({"embeddings": states[order], "metadata": [rows[i] for i in order]}, file)
    with pytest.warns(UserWarning, match="do not hold the same rows"):
        index = import_published(tmp_path / "cache", tmp_path / "index", model=story)
    assert len(index) == len(order)
    # Row i is one context in every layer.
    at = [(r["caption"], r["position"]) for r in made[1][1]]
    for row in range(0, len(index), 37):
        text = index.store.text(index.store.contexts["sentence"][row])
        old = at.index((text, int(index.store.contexts["position"][row])))
        for layer in LAYERS:
            unit = index.store.matrix(layer).gather(np.array([row]))[0]
            assert float(unit @ made[layer][0][old].float()) == pytest.approx(1, abs=1e-3)


def test_no_code_of_the_caches_maker_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "cache" / "layer_1").mkdir(parents=True)
    torch.save(
        {"embeddings": torch.zeros(1, 4), "metadata": [Trap()]}, tmp_path / "cache" / "layer_1" / "embeddings_cache.pt"
    )
    with pytest.raises(InputError, match="not opened in a way that would run code"):
        import_published(tmp_path / "cache", tmp_path / "index")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["another model", "another numbering"])
def test_states_of_another_model_or_numbering_are_refused(story, some, tmp_path, how):
    cache(story, some, tmp_path / "cache")
    if how == "another numbering":
        os.rename(tmp_path / "cache" / "layer_3", tmp_path / "cache" / "layer_5")
        model = story
    else:
        torch.manual_seed(1)
        model = workbench.load(type(story.module)(story.module.config).eval(), tokenizer=story.tokenizer, name="other")
    with pytest.raises(IndexRefused, match="are not those of"):
        import_published(tmp_path / "cache", tmp_path / "index", model=model)
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_without_a_model_it_is_only_read_as_foreign_and_cannot_grow(story, some, tmp_path):
    cache(story, some, tmp_path / "cache")
    index = import_published(tmp_path / "cache", tmp_path / "index")
    with pytest.raises(IndexRefused, match="does not say which model made it"):
        workbench.read(story, "Mara lives in", LatentLens(index), progress=False)
    assert (
        workbench.read(story, "Mara lives in", LatentLens(index, foreign=True), progress=False).data.context.max()
        >= 0
    )
    with pytest.raises(IndexRefused, match="was imported"):
        ContextIndex.merge([tmp_path / "index"], tmp_path / "merged")


@pytest.mark.parametrize("make", ["nothing", "half"])
def test_a_folder_without_a_whole_cache_says_so(tmp_path, make):
    if make == "half":
        (tmp_path / "layer_1").mkdir()
        (tmp_path / "layer_1" / "embeddings_cache.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"caches of the layers \[\], not any" if make == "nothing" else "is damaged"):
        import_published(tmp_path, tmp_path / "index")


def test_same_neighbours_as_the_published_package(story, some, tmp_path):
    """Same sentences in both, right padding: the same rows and the same ten neighbours; left: ours stay."""
    latentlens = pytest.importorskip(
        "latentlens", reason="the published package is not installed (pip install --no-deps)"
    )
    tokenizer = workbench.load("organism:story").tokenizer
    options = {"layers": LAYERS, "max_contexts_per_token": 10**6, "model": story.module, "show_progress": False}
    theirs = latentlens.build_index("", list(some), tokenizer=tokenizer, **options)
    theirs.save(tmp_path / "theirs")
    theirs = latentlens.ContextualIndex.from_directory(tmp_path / "theirs")
    ours = ContextIndex.build(
        story, some, tmp_path / "ours", layers=LAYERS, contexts_per_token=10**6, first_position=2, progress=False
    )
    assert len(ours) * 2 == len(theirs)
    queries = (
        torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
        + ours.store.matrix(3).gather(np.arange(50)) * 8
    )
    mine = ours.search(queries, 10, distinct=False, special=True)
    agree = []
    for q, neighbours in enumerate(theirs.search(queries, 10)):
        own = {
            (s, p, x)
            for s, p, x in zip(*(mine[n].values[q] for n in ("sentence", "token_position", "index_layer")), strict=True)
        }
        other = {(n.caption, n.position, n.contextual_layer) for n in neighbours}
        near = [n.similarity for n in neighbours]
        np.testing.assert_allclose(mine.similarity.values[q], near, atol=1e-3)
        agree.append(len(own & other) / 10)
    # The package keeps the first of several sentences with one prefix, and we the one of least hash.
    assert np.mean(agree) > 0.7
    tokenizer.padding_side = "left"
    fewer = latentlens.build_index("", list(some), tokenizer=tokenizer, **options)
    assert len(fewer) < 0.8 * len(theirs)
