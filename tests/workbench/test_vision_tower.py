"""States of vision towers against transformers' own, and which row shows which patch."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pictured import drawn, loaded, text_with_image
from PIL import Image
from torch import nn

import workbench
from lenses import LogitLens, TokenDrift
from lenses.drift_figures import token_drift
from workbench.errors import InputError, Refused
from workbench.images.tower import Tower
from workbench.readers import States
from workbench.testing import check_reader

TYPES = ("llava", "gemma3", "paligemma", "idefics3", "qwen2_vl", "qwen2_5_vl", "mistral3", "llava_next")


@pytest.fixture(scope="module")
def models():
    known = {}
    return lambda name: known.setdefault(name, loaded(name)) if name not in known else known[name]


def given(model, *pictures):
    return {"text": text_with_image(model.processor, len(pictures)), "images": list(pictures)}


def read(model, inputs, reader=None, **options):
    return workbench.read(model, inputs, reader or States(stream="vision"), progress=False, **options).data


def own_states(model, inputs):
    """[layer, row, width] of the tower's hidden states by transformers' own account; the last one raw."""
    found = dict(model.processor(text=[inputs["text"]], images=[inputs["images"]], return_tensors="pt"))
    inner = model.module.model
    tower = next(getattr(inner, name) for name in ("vision_tower", "visual", "vision_model") if hasattr(inner, name))
    blocks = next(own for own in tower.modules() if isinstance(own, nn.ModuleList) and len(own) > 1)
    last = []
    hook = blocks[-1].register_forward_hook(lambda m, a, out: last.append(out[0] if isinstance(out, tuple) else out))
    pixels = found["pixel_values"]
    try:
        with torch.no_grad():
            if "image_grid_thw" in found:
                states = tower(pixels, grid_thw=found["image_grid_thw"], output_hidden_states=True).hidden_states
            elif "image_sizes" in found and pixels.ndim == 4:
                states = tower(pixels, image_sizes=found["image_sizes"], output_hidden_states=True).hidden_states
            else:
                pixels = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
                states = tower(pixels, output_hidden_states=True).hidden_states
    finally:
        hook.remove()
    states = [state.reshape(-1, state.shape[-1]) for state in (*states[: len(blocks)], last[0])]
    return torch.stack(states).numpy()


@pytest.mark.parametrize("name", TYPES)
def test_states_are_transformers_own(models, name):
    model = models(name)
    inputs = given(model, drawn(90, 70))
    data = read(model, inputs)
    theirs = own_states(model, inputs)
    assert data["layer"].values.tolist() == list(range(len(theirs)))
    np.testing.assert_allclose(data["state"].values[0], theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", TYPES)
def test_a_patch_that_changes_moves_its_own_row_most(models, name):
    """In front of the first block nothing is mixed: the picture is painted where a row is said to look."""
    model, picture = models(name), drawn(128, 96)
    before = read(model, given(model, picture), States(0, stream="vision"))
    shown = np.flatnonzero(before["kind"].values[0] == "image")
    assert len({tuple(x) for x in np.stack([before[c].values[0, shown] for c in ("tile", "row", "column")], 1)}) == len(
        shown
    )
    tile = before["tile"].values[0]
    for position in np.random.default_rng(0).choice(shown, 5, replace=False):
        left, top, right, bottom = before["box"].values[0, position]
        painted = picture.copy()
        middle = (round(float(left + right) / 2), round(float(top + bottom) / 2))
        painted.paste(Image.effect_noise((3, 3), 200).convert("RGB"), (middle[0] - 1, middle[1] - 1))
        after = read(model, given(model, painted), States(0, stream="vision"))
        moved = np.linalg.norm(after["state"].values[0, 0] - before["state"].values[0, 0], axis=-1)
        rivals = np.flatnonzero(tile == tile[position])  # another tile may show the same place
        assert rivals[moved[rivals].argmax()] == position


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_packed_patches_are_where_the_model_put_them(models, name):
    """In merged cells of 2 x 2 patches, cell by cell; of Qwen2.5 the cells window by window."""
    model = models(name)
    inputs = given(model, drawn(90, 70))
    grid = model.processor(text=[inputs["text"]], images=[inputs["images"]], return_tensors="pt")["image_grid_thw"]
    wide, count = int(grid[0, 2]) // 2, int(grid.prod())
    tower = model.module.model.visual
    cells = np.arange(count // 4)
    if hasattr(tower, "get_window_index"):
        cells = np.array(tower.get_window_index(grid)[0])
        assert (cells != np.arange(count // 4)).any()
    at = np.arange(count)
    cell, inner = cells[at // 4], at % 4
    data = read(model, inputs)
    assert data["row"].values[0].tolist() == (cell // wide * 2 + inner // 2).tolist()
    assert data["column"].values[0].tolist() == (cell % wide * 2 + inner % 2).tolist()


def test_class_tokens_and_padding_show_nothing(models):
    data = read(models("llava"), given(models("llava"), drawn()))
    assert data["kind"].values[0].tolist() == ["padding"] + ["image"] * 16
    assert np.isnan(data["box"].values[0, 0]).all() and data["row"].values[0, 0] == -1
    assert data["row"].values[0, 1:].tolist() == np.repeat(range(4), 4).tolist()
    wide = read(models("llava_next"), given(models("llava_next"), drawn(150, 70)))
    kinds = wide["kind"].values[0].reshape(-1, 17)
    assert (kinds[:, 0] == "padding").all() and (kinds[:, 1:] == "padding").any(), "a tile that is padded"


def test_several_prompts_and_pictures_and_both_streams_in_one_call(models):
    model = models("idefics3")
    one, two = drawn(90, 70), drawn(40, 60, seed=1)
    inputs = [given(model, one), given(model, two, one)]
    text, tower, drift = workbench.read(
        model, inputs, [States(), States(stream="vision"), TokenDrift(stream="vision")], progress=False
    )
    assert text.data.sizes["layer"] == model.n_layers + 1 and tower.data.sizes["layer"] == 3
    np.testing.assert_allclose(text.data["state"].values, read(model, inputs, States())["state"].values, atol=1e-6)
    for prompt, single in enumerate(inputs):
        alone = read(model, single)
        n = alone.sizes["position"]
        np.testing.assert_allclose(tower.data["state"].values[prompt, :, :n], alone["state"].values[0], atol=1e-6)
        assert (tower.data["kind"].values[prompt, n:] == "padding").all()
    assert tower.data["picture_prompt"].values.tolist() == [0, 1, 1]
    assert set(tower.data["image"].values[1]) >= {0, 1}
    state = tower.data["state"].values.astype(float)
    norm = np.linalg.norm(state, axis=-1)
    np.testing.assert_allclose(drift.data["norm"].values, norm, rtol=1e-5)
    cosine = (state * state[:, :1]).sum(-1) / norm / norm[:, :1]
    np.testing.assert_allclose(drift.data["drift"].values, cosine, atol=1e-5)
    assert drift.data["modality"].values.tolist() == ["image"]
    assert tower.provenance["tower"]["n_layers"] == 2 and "tower" not in text.provenance
    assert [line.name for line in token_drift(drift).plot.panels[1].marks] == ["image"]


def test_positions_layers_saving_and_going_on(models, tmp_path):
    model = models("llava")
    inputs = [given(model, drawn(seed=i)) for i in range(3)]
    whole = read(model, inputs)
    image = read(model, inputs, positions="image")
    np.testing.assert_array_equal(image["state"].values, whole["state"].values[:, :, 1:])
    assert read(model, inputs, positions=[0, -1])["input_position"].values.tolist() == [[0, 16]] * 3
    assert read(model, inputs, States(-1, stream="vision"))["layer"].values.tolist() == [2]
    kept = workbench.read(model, inputs, States(stream="vision"), out=tmp_path / "run", progress=False)
    again = workbench.read(model, inputs, States(stream="vision"), out=tmp_path / "run", progress=False)
    for found in (kept, again, workbench.open(tmp_path / "run")):
        np.testing.assert_array_equal(found.data["state"].values, whole["state"].values)
        assert found.data["kind"].equals(whole["kind"])
    with pytest.raises(InputError, match="out= keeps one run"):
        read(model, inputs, [States(), States(stream="vision")], out=tmp_path / "two")


def test_what_the_tower_cannot_be_asked(models):
    model = models("llava")
    picture = given(model, drawn())
    raw = model.processor(text=[picture["text"]], images=[drawn()], return_tensors="pt")
    for inputs, reader, options, says in (
        ("a ball", States(stream="vision"), {}, "Prompt 0 has no picture, and stream"),
        ([picture, "a ball"], States(stream="vision"), {}, "Prompt 1 has no picture"),
        (raw, States(stream="vision"), {}, "does not tell the pictures"),
        (picture, States(stream="vision"), {"positions": "text"}, "no positions of text"),
        (picture, States(stream="vision", at="mlp_out"), {}, "is of the text model"),
        (picture, States(7, stream="vision"), {}, "layer 7 does not exist: llava has layers 0 to 2"),
        (picture, States(stream="sound"), {}, "stream='sound' is unknown"),
    ):
        with pytest.raises(InputError, match=says), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(model, inputs, reader, **options)
    assert LogitLens().stream == "text", "readers that have no such field read text"


def test_a_tower_whose_rows_mix_patches_or_whose_blocks_do_not_follow_is_refused():
    def parts() -> tuple[workbench.Model, Any]:
        model = loaded("llava")
        return model, model.module.get_submodule("model.vision_tower")

    model, tower = parts()
    forward = tower.encoder.layers[1].forward
    tower.encoder.layers[1].forward = lambda states, *args, **kwargs: forward(states * 1.5, *args, **kwargs)
    assert model.once("tower", Tower).path.endswith("encoder.layers")  # what a block does inside is its own business
    model, tower = parts()
    embeddings = tower.embeddings
    plain = embeddings.forward
    embeddings.forward = lambda *args, **kwargs: (lambda x: x + x.roll(1, 1))(plain(*args, **kwargs))
    with pytest.raises(Refused, match="vision tower of llava cannot be read: .*mix patches"):
        model.once("tower", Tower)
    model, tower = parts()
    for block in tower.encoder.layers:
        block.register_forward_hook(lambda m, args, out: out * 1.01 if isinstance(out, torch.Tensor) else out)
        block.register_forward_pre_hook(lambda m, args: (args[0] + 0.1, *args[1:]))
    with pytest.raises(Refused, match="vision tower of llava cannot be read"):
        model.once("tower", Tower)


@pytest.mark.parametrize("reader", [States(stream="vision"), TokenDrift(stream="vision"), TokenDrift()])
def test_readers_of_pictures_keep_their_promises(models, reader):
    model, words = models("llava"), ("a red", "two of them are", "b c d e f g", "one")
    prompts = [
        {"text": text_with_image(model.processor, 1, text), "images": drawn(30 + 10 * i, 40, seed=i)}
        for i, text in enumerate(words)
    ]
    check_reader(reader, model, prompts)


def test_a_patch_with_a_massive_activation_is_a_sink():
    model = loaded("gemma3")
    with torch.no_grad():
        model.module.get_submodule("model.vision_tower.embeddings.position_embedding").weight[5] *= 2000
    inputs = [given(model, drawn(seed=i)) for i in range(3)]
    data = read(model, inputs, TokenDrift(stream="vision"))
    assert (data["sink"].values == (np.arange(16) == 5)).all()
    assert (data["sink_count"].values == 3).all() and (data["norm_mean"].values < 100).all()


def test_verbs_that_continue_texts_refuse_the_tower(models):
    with pytest.raises(InputError, match="has a pass of its own"):
        workbench.generate(models("llava"), "a ball", States(stream="vision"), max_new_tokens=1, progress=False)
