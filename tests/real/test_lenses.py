"""What lenses say of a real language model, beside transformers itself, and beside nulls."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitLens, States

SHARED = Path(__file__).resolve().parents[3] / "shared/data/latentlens/concepts.txt"
LAYERS = [8, 16, 24]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    if not SHARED.is_file():
        pytest.skip("the sentences of the LatentLens package are not beside this checkout (../shared/data/latentlens)")
    return sorted({line.strip() for line in SHARED.read_text("utf-8").splitlines() if 15 < len(line) < 45})


@pytest.fixture(scope="module")
def held(lines) -> list[str]:
    return [lines[i] for i in np.random.default_rng(1).permutation(len(lines))[:200]]


@pytest.fixture(scope="module")
def index(real_model, lines, held, tmp_path_factory) -> ContextIndex:
    """Sentences with the word "bank", and some without."""
    rest = [line for line in lines if line not in set(held)]
    banks = [line for line in rest if " bank" in line and " banked" not in line]
    corpus = banks + rest[:: len(rest) // 250]
    path = tmp_path_factory.mktemp("real") / "index"
    return ContextIndex.build(real_model, corpus, path, layers=LAYERS, contexts_per_token=200, progress=False)


def test_the_last_layers_top_token_is_the_models_own(real_model, held):
    """At every position of 200 sentences, against a plain forward pass of each."""
    read = workbench.read(real_model, held, LogitLens(-1, top_k=2), progress=False).data
    seen = 0
    for i, text in enumerate(held):
        with torch.no_grad():
            logits = real_model.module(**real_model.tokenizer(text, return_tensors="pt")).logits[0]
        own = logits.log_softmax(-1).topk(2)
        n = len(logits)
        clear = (own.values[:, 0] - own.values[:, 1] > 1e-4).numpy()
        found = read.isel(prompt=i, layer=0, position=slice(n))
        assert (found.token_id.values[clear, 0] == own.indices[clear, 0].numpy()).all()
        np.testing.assert_allclose(found.logprob.values[:, 0], own.values[:, 0], atol=2e-4)
        seen += n
    assert seen > 1200


def test_padding_batches_and_chunks_change_nothing(real_model, held):
    texts = held[:4]
    first = workbench.read(real_model, texts, [LogitLens(LAYERS), EmbeddingLens(LAYERS)], progress=False)
    for options, chunk in (
        ({"batch_size": 1}, None), ({"padding_side": "left"}, None), ({"batch_size": 4}, 5000),
    ):  # fmt: skip
        lenses = [LogitLens(LAYERS, chunk=chunk), EmbeddingLens(LAYERS, chunk=chunk)]
        for one, other in zip(first, workbench.read(real_model, texts, lenses, progress=False, **options), strict=True):
            for name, value in one.data.data_vars.items():
                if value.dtype.kind == "f":
                    # Log-probabilities of -10 and norms of 20,000 are compared with what they are a part of.
                    np.testing.assert_allclose(
                        other.data[name], value, rtol=1e-4, atol=1e-4, err_msg=f"{name} {options}"
                    )
            assert (one.data.sink == other.data.sink).all()


def test_the_first_position_is_a_sink_and_floors_do_not_see_it(real_model, held):
    layers = [0, 1, 12, 16, 20, 24, 28]
    reading = workbench.read(real_model, held[:24], [States(layers), EmbeddingLens(layers, top_k=1)], progress=False)
    states = torch.from_numpy(reading[0]["state"].values)
    norm = states.norm(dim=-1).numpy()
    usual = np.nanmedian(norm[:, :, 1:], axis=(0, 2))
    sink = reading[0].data.sink.values
    assert (norm[:, 2:, 0] > 20 * usual[2:]).all(), "the model has massive activations at the first position"
    assert (sink == (norm > 5 * usual[None, :, None])).all() and not sink[:, :2].any()
    # One word alone: there is no other position to tell by.
    alone = workbench.read(real_model, "Paris", LogitLens(layers, top_k=1), progress=False).data
    assert alone.sink.values[0, 2:, 0].all() and not alone.sink.values[0, :2].any()
    # With sinks in it the covariance has one direction; its nearest embedding would be the floor at every layer.
    assert reading[1].data.cosine_floor_shuffled.values[2:].max() < 0.22
    mixed = states[:, 4].flatten(0, 1)
    mixed = mixed[~mixed[:, 0].isnan()]
    share = torch.linalg.svdvals(mixed - mixed.mean(0))[:2] ** 2
    assert share[0] / share[1] > 100


def test_bank_and_bank(real_model, index):
    """Money for one bank, a river for the other, in the words of the nearest contexts."""
    prompts = ["She went to deposit the money in the bank.", "They had a picnic on the bank of the river."]
    data = workbench.read(real_model, prompts, LatentLens(index, LAYERS, top_k=8), progress=False).data
    assert data.attrs["self_matches_left_out"] >= 2  # the first words, of which many sentences begin with
    money = {"money", "loan", "account", "accounts", "deposit", "deposited", "robber", "cash", "teller", "manager"}
    river = {"river", "riverbank", "stream", "water", "lake", "boat", "grassy", "muddy", "fish"}
    found = []
    for prompt, (mine, others) in enumerate([(money, river), (river, money)]):
        at = int(np.flatnonzero(data.input_token.values[prompt] == " bank")[0])
        here = data.sel(layer=16).isel(prompt=prompt, position=at)
        words = [set(text.lower().replace(".", "").replace(",", "").split()) for text in here.sentence.values]
        found.append((sum(bool(w & mine) for w in words), sum(bool(w & others) for w in words)))
        assert sum(word.startswith("bank") for word in here.word.values) >= 4, here.word.values
    assert found[0][0] > found[1][1] and found[1][0] > found[0][1] == 0, found
    for floor in (data.similarity_floor_shuffled, data.similarity_floor_random):
        assert float(floor.max()) < 0.99
    p = data.similarity_p.sel(layer=16).values
    assert np.isnan(p[:, 0]).all() and 0 < np.nanmin(p) < 0.05


def test_the_readme_prints_what_it_shows(real_folder, lines, tmp_path, monkeypatch, capsys):
    """Its chapter on a real model, with the model and the corpus that are here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concepts.txt").write_bytes(SHARED.read_bytes())
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    chapter = text.split("## The same on a real language model")[1].split("\n## ")[0]
    code = "import workbench\nfrom lenses import LogitLens\n" + "\n".join(re.findall(r"```py\n(.*?)```", chapter, re.S))
    exec(code.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', f"{str(real_folder)!r}, progress=False"), {})
    shown = "".join(re.findall(r"```text\n(.*?)```", chapter, re.S)).split()
    printed = capsys.readouterr().out.split()
    assert len(printed) == len(shown)
    for one, other in zip(printed, shown, strict=True):
        try:  # numbers may be rounded otherwise elsewhere
            assert float(one) == pytest.approx(float(other), abs=0.021)
        except ValueError:
            assert one == other


def test_random_tokens_are_told_from_nothing(real_model, index):
    """Over all cells q < .05 at no more than the nominal rate; p as often as it says."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(20, 49_000, n).tolist() for n in rng.integers(6, 14, 14)]
    lenses = [LatentLens(index, LAYERS, top_k=1), EmbeddingLens(LAYERS, top_k=1)]
    for reading, value in zip(
        workbench.read(real_model, prompts, lenses, progress=False), ("similarity", "cosine"), strict=True
    ):
        p, q = reading.data[f"{value}_p"].values, reading.data[f"{value}_q"].values
        known = ~np.isnan(p)
        assert known.sum() > 300
        assert (q[known] < 0.05).mean() <= 0.05
        assert (p[known] < 0.05).mean() < 0.1, value  # .05, and what 14 prompts leave open


def test_sinks_are_left_out_of_what_is_read_in_bfloat16(real_folder):
    model = workbench.load(real_folder, dtype="bfloat16", progress=False)
    data = workbench.read(model, ["The capital of France is Paris.", "A dog."], LogitLens(top_k=1), progress=False).data
    assert data.sink.values[:, 13:28, 0].all() and not data.sink.values[:, 13:28, 1:].any()
