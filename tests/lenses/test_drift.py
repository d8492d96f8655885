"""TokenDrift against cosines and norms that are written out, with text and with pictures."""

import numpy as np
import pytest
import torch
from pictured import drawn, pictured, text_with_image
from tiny import prompts

import workbench
from lenses import States, TokenDrift
from lenses.drift_figures import token_drift

TEXT, IMAGE = 0, 1


def unit(states):
    return states / np.linalg.norm(states, axis=-1, keepdims=True)


def written_out(states, ids, kind):
    """Of [layer, position, width] of one prompt: drift and its null [layer, position], pair by pair."""
    drift, null = (np.full(states.shape[:2], np.nan) for _ in range(2))
    for layer in range(len(states)):
        for i in range(states.shape[1]):
            drift[layer, i] = unit(states[layer, i]) @ unit(states[0, i])
            others = [
                unit(states[layer, i]) @ unit(states[0, j])
                for j in range(states.shape[1])
                if kind[j] == kind[i] >= 0 and j != i and not (kind[i] == TEXT and ids[j] == ids[i])
            ]
            null[layer, i] = np.mean(others) if others else np.nan
    return drift, null


@pytest.fixture(scope="module")
def seen():
    """A reading of three prompts with pictures and one without, and the states of the same pass."""
    module, processor = pictured("llava_next")
    model = workbench.load(module, tokenizer=processor.tokenizer, processor=processor, name="seen")
    text = text_with_image(processor)
    inputs = [{"text": text, "images": drawn(60, 40 + 20 * i, seed=i)} for i in range(3)] + ["a red ball, a red cup"]
    return workbench.read(model, inputs, [TokenDrift(), States()], progress=False)


def parts(states, prompt):
    """[layer, position, width] states, ids and kinds of one prompt."""
    real = states["input_id"].values[prompt] >= 0
    kind = states["kind"].values[prompt][real]
    kind = np.where(kind == "image", IMAGE, np.where(kind == "text", TEXT, -1))
    return states["state"].values[prompt][:, real].astype(float), states["input_id"].values[prompt][real], kind


def test_every_place_is_what_the_definition_says(seen):
    drift, states = (reading.data for reading in seen)
    for prompt in range(4):
        state, ids, kind = parts(states, prompt)
        own, null = written_out(state, ids, kind)
        n = len(ids)
        np.testing.assert_allclose(drift["norm"].values[prompt, :, :n], np.linalg.norm(state, axis=-1), rtol=1e-5)
        np.testing.assert_allclose(drift["drift"].values[prompt, :, :n], own, atol=1e-5)
        np.testing.assert_allclose(drift["drift_null"].values[prompt, :, :n], null, atol=1e-5)
        assert np.isnan(drift["norm"].values[prompt, :, n:]).all()
    assert (parts(states, 0)[2] == -1).any(), "a model with learned newlines has visual tokens that show nothing"


def test_means_are_by_kind_without_sinks_and_what_shows_nothing(seen):
    drift, states = (reading.data for reading in seen)
    assert drift["modality"].values.tolist() == ["text", "image"]
    for modality in (TEXT, IMAGE):
        pooled, where = [], []
        for prompt in range(4):
            state, ids, kind = parts(states, prompt)
            own, null = written_out(state, ids, kind)
            sink = drift["sink"].values[prompt, :, : len(ids)]
            rows = np.stack([own, null, np.log(np.linalg.norm(state, axis=-1))])
            pooled.append(np.where(sink, np.nan, rows)[..., kind == modality])
            where += [prompt] * int((kind == modality).sum())
        values = np.concatenate(pooled, -1)
        assert not np.isnan(values[0]).all() and len(set(where)) == (4 if modality == TEXT else 3)
        mean = np.nanmean(values, -1)
        named = drift.isel(modality=modality)
        np.testing.assert_allclose(named["drift_mean"], mean[0], atol=1e-5)
        np.testing.assert_allclose(named["drift_mean_null"], mean[1], atol=1e-5)
        np.testing.assert_allclose(named["drift_excess"], np.nanmean(values[0] - values[1], -1), atol=1e-5)
        np.testing.assert_allclose(named["norm_mean"], np.exp(mean[2]), rtol=1e-5)
        assert (named["drift_excess_low"] <= named["drift_excess"]).all()
        assert (named["norm_mean_low"] < named["norm_mean_high"]).any()
    assert drift["drift_mean_low"].attrs["interval"] == "t over 3 prompts"


def test_the_null_of_other_prompts_is_the_mean_over_all_pairs(seen):
    drift, states = (reading.data for reading in seen)
    for modality in (TEXT, IMAGE):
        each = []
        for prompt in range(4):
            state, _, kind = parts(states, prompt)
            others = [(s, k) for s, _, k in (parts(states, q) for q in range(4) if q != prompt)]
            start = np.concatenate([unit(s[0])[k == modality] for s, k in others])
            each.append((unit(state[:, kind == modality]) @ start.T).mean(-1))
        np.testing.assert_allclose(
            drift["drift_mean_null_prompts"].values[:, modality], np.concatenate(each, 1).mean(1), atol=1e-5
        )


def test_text_alone_and_single_prompts(llama):
    data = workbench.read(llama, prompts(1), TokenDrift([1, -1]), progress=False).data
    assert data["layer"].values.tolist() == [1, llama.n_layers] and data["modality"].values.tolist() == ["text"]
    assert np.isnan(data["drift_mean_low"]).all() and np.isnan(data["drift_mean_null_prompts"]).all()
    assert np.isfinite(data["drift_mean"]).all()
    last = workbench.read(llama, prompts(3), TokenDrift(), positions="last", progress=False).data
    assert np.isnan(last["drift_null"]).all(), "there is no other position"
    assert np.isfinite(last["drift"]).all() and np.isfinite(last["drift_mean_null_prompts"]).all()


def test_a_state_that_keeps_its_direction_and_one_that_is_all_others(llama):
    """Blocks that write nothing leave a cosine of 1; where positions have one direction, drift is its own null."""
    quiet = workbench.load("organism:story", name="quiet")
    with torch.no_grad():
        for block in quiet.blocks:
            for name, p in block.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    p.zero_()
    quiet.prove()
    texts = ["Mara lives in", "one two three four"]
    data = workbench.read(quiet, texts, TokenDrift(), progress=False).data
    np.testing.assert_allclose(data["drift_mean"], 1, atol=1e-6)
    assert (data["drift_excess"] > 0.3).all()
    np.testing.assert_allclose(data["norm"][:, 0], data["norm"][:, -1])


def test_sampled_prompts_are_a_few_of_many(llama, monkeypatch):
    monkeypatch.setattr("lenses.drift.OTHERS", 3)
    many = prompts(9)
    some = workbench.read(llama, many, TokenDrift(), progress=False).data
    three = workbench.read(llama, [many[0], many[4], many[8]], TokenDrift(), progress=False).data
    np.testing.assert_allclose(some["drift_mean_null_prompts"], three["drift_mean_null_prompts"], atol=1e-6)


def test_the_chart_shows_kinds_with_their_nulls(seen):
    plot = token_drift(seen[0]).plot
    drift, norm = (panel.marks for panel in plot.panels)
    assert [(m.name, m.dash) for m in drift] == [
        ("text", "solid"), ("text: other positions", "dash"), ("text: other prompts", "dot"),
        ("image", "solid"), ("image: other positions", "dash"), ("image: other prompts", "dot"),
    ]  # fmt: skip
    assert [m.hue for m in drift] == [0, 0, 0, 1, 1, 1] and [m.hue for m in norm] == [0, 1]
    np.testing.assert_array_equal(drift[0].y, seen[0].data["drift_mean"][:, 0])
    np.testing.assert_array_equal(norm[1].low, seen[0].data["norm_mean_low"][:, 1])
    caption = token_drift(seen[0]).caption()
    assert "layer-0 states of other positions of its kind" in caption and "3 prompts" in caption
