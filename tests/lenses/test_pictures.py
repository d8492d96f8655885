"""What lenses say at the positions of pictures, beside transformers itself, and beside nulls of their own kind."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pictured as recipes
import pytest
import torch
from pictured import drawn, loaded, text_with_image
from PIL import Image

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitAttribution, LogitLens, States, nulls
from lenses.latent.hubness import hubs
from workbench.errors import InputError, Refused
from workbench.images import cells, given
from workbench.images.pictures import Picture
from workbench.inputs import encode, with_pictures
from workbench.sinks import Norms
from workbench.sites import Site

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # behind the tests

from levels.case import rate_of  # noqa: E402


@cache
def vision(name: str) -> workbench.Model:
    return loaded(name)


def shown(model, *images, text="a red ball", **more):
    return [{"text": text_with_image(model.processor, text=text, **more), "images": image} for image in images]


def read(model, prompts, readers, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # q that no cell can reach
        return workbench.read(model, prompts, readers, progress=False, **options)


def hidden(model, prompt):
    """transformers' own hidden_states of one encoded prompt, [layer, position, width], and its inputs."""
    inputs = {"input_ids": torch.tensor([prompt.ids]), **dict(prompt.extras)}
    with torch.no_grad():
        found = model.module(**inputs, attention_mask=torch.ones(1, len(prompt.ids)), output_hidden_states=True)
    return torch.stack(found.hidden_states)[:, 0], inputs


def speckled(rng, width=50, height=40):
    """Pixels each by itself: in any order as likely."""
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---------------------------------------------------------------- null pictures


def visual_of(boxes, size, rows, columns, tile=None):
    n = len(boxes)
    tile = np.zeros(n, int) if tile is None else tile
    places = SimpleNamespace(
        image=np.zeros(n, int), tile=tile, row=rows, column=columns, box=np.array(boxes, np.float32),
        shows=np.ones(n, bool),
    )  # fmt: skip
    return SimpleNamespace(places=places, pictures=[Picture(Image.new("RGB", size))])


def test_a_shuffled_picture_has_every_cell_once_and_nothing_else_is_moved():
    """4 x 3 cells of one colour each, in a frame that no token shows."""
    rows, columns = (i.ravel() for i in np.indices((3, 4)))
    colours = np.arange(12) * 20
    pixels = np.full((3 * 10 + 6, 4 * 10 + 8, 3), 255, np.uint8)
    boxes = []
    for r, c, colour in zip(rows, columns, colours, strict=True):
        left, top = 4 + 10 * c, 3 + 10 * r
        pixels[top : top + 10, left : left + 10] = colour
        boxes.append((left, top, left + 10, top + 10))
    visual = visual_of(boxes, (48, 36), rows, columns)
    visual.pictures = [Picture(pixels)]
    orders = set()
    for seed in range(5):
        (made,) = (np.asarray(image) for image in cells.shuffled(visual, seed))
        inside = made[3:33, 4:44, 0].reshape(3, 10, 4, 10)
        assert (inside == inside[:, :1, :, :1]).all()
        orders.add(tuple(inside[:, 0, :, 0].ravel().tolist()))
        made = made.copy()
        made[3:33, 4:44] = pixels[3:33, 4:44]
        np.testing.assert_array_equal(made, pixels)
        again = np.asarray(cells.shuffled(visual, seed)[0])
        np.testing.assert_array_equal(again[3:33, 4:44, 0].reshape(3, 10, 4, 10), inside)
    assert len(orders) == 5 and all(sorted(order) == colours.tolist() for order in orders)


def test_cells_of_a_mosaic_are_squares_as_small_as_what_its_crops_show():
    whole = [(x, y, x + 20, y + 20) for y in (0, 20) for x in (0, 20, 40)]
    crops = [(x, y, x + 5, y + 5) for y in range(0, 40, 5) for x in range(0, 60, 5)]
    tile = np.r_[np.zeros(len(whole), int), np.ones(len(crops), int)]
    visual = visual_of(whole + crops, (60, 40), np.zeros(len(tile), int), np.zeros(len(tile), int), tile)
    found = cells.boxes(visual, 0)
    assert len(found) == 12 * 8 and ((found[:, 2:] - found[:, :2]) == 5).all()
    # Without places: as many as there are tokens.
    lost = visual_of([(0, 0, 60, 40)] * 24, (60, 40), np.full(24, -1), np.full(24, -1))
    assert cells.boxes(lost, 0).tolist() == [
        [10 * c, 10 * r, 10 * c + 10, 10 * r + 10] for c in range(6) for r in range(4)
    ]


def test_other_pictures_come_in_the_size_of_their_place():
    own, other = (Picture(Image.new("RGB", size, colour)) for size, colour in (((30, 50), "red"), ((80, 20), "blue")))
    (made,) = cells.exchanged(SimpleNamespace(pictures=[own]), [other], 3)
    assert made.size == (30, 50) and made.getcolors() == [(1500, (0, 0, 255))]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_null_states_are_those_of_null_prompts_at_the_places_of_pictures(name, monkeypatch):
    """Against transformers on each null prompt alone."""
    model, seen, states_at = vision(name), [], nulls.states_at
    monkeypatch.setattr(nulls, "states_at", lambda m, v, s, c, **o: seen.append((v, c)) or states_at(m, v, s, c, **o))
    run = workbench.engine.run.Run(model, encode(model, shown(model, drawn(), drawn(60, 60, 1))), [])
    sites = [Site("resid", 0), Site("resid", 2)]
    found = nulls.picture_nulls(run, sites, 300)
    assert list(found) == ["patches", "noise", "others"]
    assert all(len(variants) >= nulls.PICTURES[name] for name, (variants, _) in zip(found, seen, strict=True))
    for null, (variants, chosen) in zip(found.values(), seen, strict=True):
        own = variants[0]
        assert own.ids in [p.ids for p in run.prompts]
        at = null.position[1][null.prompt[1] == 0]
        assert set(at) <= set(own.visual.shown.tolist()) and set(at) <= set(chosen[0].tolist()) and len(at)
        states = hidden(model, own)[0]
        for depth, layer in enumerate((0, 2)):
            rows = null.states[depth][torch.from_numpy(null.prompt[depth] == 0)]
            where = null.position[depth][null.prompt[depth] == 0]
            torch.testing.assert_close(rows, states[layer, where], atol=1e-4, rtol=1e-4)


def test_text_beside_a_picture_has_a_null_of_its_own_in_which_the_picture_stays(monkeypatch):
    model, seen, states_at = vision("llava"), [], nulls.states_at
    monkeypatch.setattr(nulls, "states_at", lambda m, v, s, c, **o: seen.append((v, c)) or states_at(m, v, s, c, **o))
    (prompt,) = encode(model, shown(model, drawn()))
    run = workbench.engine.run.Run(model, [prompt], [])
    null = nulls.null_states(run, [Site("resid", 1)])
    ((variants, chosen),) = seen
    for variant, places in zip(variants, chosen, strict=True):
        assert sorted(variant.ids) == sorted(prompt.ids) and variant.ids != prompt.ids
        np.testing.assert_array_equal(np.array(variant.ids)[prompt.visual.at], np.array(prompt.ids)[prompt.visual.at])
        assert torch.equal(variant.extras["pixel_values"], prompt.extras["pixel_values"])
        assert not set(places) & set(prompt.visual.at.tolist())
    assert len(null.states[0]) >= nulls.FEWEST


# ---------------------------------------------------------------- p and floors by kind


def test_pieces_of_pictures_are_ranked_among_their_own_null_and_text_among_its():
    rng = np.random.default_rng(0)
    visual = SimpleNamespace(at=np.array([1, 2, 3]), shown=np.array([1, 3]), pictures=[None])
    prompt = SimpleNamespace(ids=[5, 9, 9, 9, 6], positions=[0, 1, 2, 3, 4], visual=visual)
    model = SimpleNamespace(tokenizer=None, module=SimpleNamespace(config=None))
    run = SimpleNamespace(model=model, prompts=[prompt], positions=range(5), norms=Norms(model, [prompt]))
    best = rng.random((1, 1, 5)).astype(np.float32)
    scores = {name: rng.random(40) + shift for name, shift in (("shuffled", 0), ("patches", 0.3), ("noise", 5))}
    null = SimpleNamespace(prompts=[[7] * 40], prompt=[np.zeros(40, int)], position=[np.arange(40)], reason="")
    found = {name: (null, [own]) for name, own in scores.items()}
    data = nulls.tested("score", best, run, [Site("resid", 1)], found)
    p = data["score_p"][1][0, 0]
    for at in (1, 3):
        assert p[at] == pytest.approx((1 + (scores["patches"] >= best[0, 0, at]).sum()) / 41)
    assert np.isnan(p[2]) and not np.isnan(p[[0, 4]]).any()  # a visual token that shows nothing
    for name, own in scores.items():
        assert data[f"score_floor_{name}"][1][0] == pytest.approx(np.sort(own)[38])
    # Each kind is adjusted for its own number of cells: two.
    q = data["score_q"][1][0, 0]
    for at in ([0, 4], [1, 3]):
        assert q[at].max() == pytest.approx(p[at].max())
        assert q[at].min() == pytest.approx(min(2 * p[at].min(), p[at].max()))


LEVELS = {"llava": (6, 6), "qwen2_vl": (4, 4), "gemma3": (4, 4)}


@pytest.mark.parametrize("name", LEVELS)
def test_p_of_pieces_of_noise_holds_its_level(name):
    """Pixels in random order are exchangeable with themselves in another: nothing is to be found in them."""
    model, shares = vision(name), []
    times, most = LEVELS[name]
    for trial in range(times):
        rng = np.random.default_rng(trial)
        # Few and many pictures, of several sizes, and one of them several times.
        images = [speckled(rng, 40 + 4 * i, 40) for i in range([1, most, most][trial % 3])]
        images = images[:1] * most if trial % 3 == 2 else images
        data = read(model, shown(model, *images), EmbeddingLens([1, 2, 4], top_k=1), positions="image").data
        p = data.cosine_p.values
        assert not np.isnan(p[np.broadcast_to((data.kind.values == "image")[:, None], p.shape)]).any()
        shares.append(float((p[~np.isnan(p)] <= 0.05).mean()))
    assert rate_of(shares, 0.9999).low <= 0.05, shares


def test_a_picture_alone_has_no_other_and_says_so():
    model = vision("llava")
    data = read(model, shown(model, drawn()), EmbeddingLens([2])).data
    assert np.isnan(data.cosine_floor_others).all() and "one picture" in data.cosine_floor_others.attrs["reason"]
    names = ["cosine_floor_patches", "cosine_floor_noise", "cosine_floor_others", "cosine_floor_shuffled"]
    assert [data[n].attrs["kind"] for n in names] == ["image"] * 3 + ["text"]
    assert all(data[n].attrs["role"] == "floor" and data[n].attrs["of"] == "cosine" for n in names)
    assert "shuffled patches" in data.cosine_p.attrs["long_name"]
    two = read(model, shown(model, drawn(), drawn(seed=1)), EmbeddingLens([2])).data
    assert not any(np.isnan(two[n]).any() for n in names)
    same = read(model, shown(model, drawn(), drawn()), EmbeddingLens([2])).data
    assert np.isnan(same.cosine_floor_others).all()
    plain = read(model, ["a red ball"], EmbeddingLens([2])).data
    assert not {"cosine_floor_patches", "cosine_floor_noise"} & set(plain)


def test_what_shows_nothing_is_in_no_null_and_is_no_sink():
    model = vision("llava_next")  # has a learned vector behind each row
    (reading, latent) = read(
        model, shown(model, drawn(64, 30)), [EmbeddingLens([1, 3]), LogitLens([1, 3], targets=[40])]
    )
    padding = np.broadcast_to((reading.data.kind.values == "padding")[:, None], reading.data.cosine_p.shape)
    image = np.broadcast_to((reading.data.kind.values == "image")[:, None], padding.shape)
    assert padding.any() and np.isnan(reading.data.cosine_p.values[padding]).all()
    assert not np.isnan(reading.data.cosine_p.values[image]).any()
    assert not reading.data.sink.values[padding].any()
    p = latent.data.target_logprob_p.values[..., 0]
    assert np.isnan(p[padding]).all() and not np.isnan(p[image]).any()


def test_a_target_at_a_piece_of_a_picture_is_compared_with_pieces_of_pictures():
    """Against the log-probabilities of the reading itself, one after the other."""
    model, target = vision("llava"), 40
    prompts = shown(model, drawn(), drawn(seed=1))
    data = read(model, prompts, LogitLens([2], targets=[target]), positions="all").data
    value, kind = data.target_logprob.values[:, 0, :, 0], data.kind.values
    assert not data.sink.any()
    for p, at in ((0, 4), (1, 9), (0, int(np.flatnonzero(kind[0] == "text")[-1]))):
        same = kind == kind[p, at]
        same[p, at] = False
        others = value[same]
        assert data.target_logprob_null.values[p, 0, at, 0] == pytest.approx(float(np.median(others)), abs=1e-4)
        if len(others) >= nulls.FEWEST:
            expected = (1 + (others >= value[p, at] - 1e-5).sum()) / (1 + len(others))
            assert data.target_logprob_p.values[p, 0, at, 0] == pytest.approx(expected, abs=1e-6)


def test_no_model_is_asked_for_the_next_piece_of_a_picture():
    model = vision("llava")
    data = read(model, shown(model, drawn()), LogitLens([2], targets="next")).data
    kind, target = data.kind.values[0], data.target_id.values[0]
    followed = np.r_[kind[1:] == "image", True]
    assert followed.sum() > 10 and (target[followed] == -1).all()
    np.testing.assert_array_equal(target[~followed], data.input_id.values[0][1:][~followed[:-1]])


def test_sinks_are_beyond_what_is_usual_for_their_kind():
    """A connector that writes forty times as much makes no sink of a picture; one token among its others is one."""
    model = vision("llava")
    prompts = [{"text": f"see {text_with_image(model.processor)}", "images": drawn()}]
    (prompt,) = encode(model, prompts)
    at, image = int(prompt.visual.at[5]), np.isin(np.arange(len(prompt.ids)), prompt.visual.at)
    connector, scale = model.module.model.multi_modal_projector, torch.full((16, 1), 40.0)
    handle = connector.register_forward_hook(lambda module, args, out: out * scale)
    try:
        loud = read(model, prompts, States([0])).data
        scale[5] = 4000
        one = read(model, prompts, EmbeddingLens([0])).data
    finally:
        handle.remove()
    norm = np.linalg.norm(loud.state.values[0, 0], axis=-1)
    assert np.median(norm[image]) > 20 * np.median(norm[~image]) and not loud.sink.any()
    assert np.flatnonzero(one.sink.values[0, 0]).tolist() == [at]
    assert np.isnan(one.cosine_p.values[0, 0, at]) and not np.isnan(one.cosine_p.values[0, 0, at + 1])


# ---------------------------------------------------------------- against transformers


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava"])
def test_layer_0_is_what_enters_the_first_block_and_cosines_are_with_the_model_s_own_embeddings(name):
    """Gemma-like models scale embeddings, and some scale the connector's output back: hidden_states[0] has both."""
    model = vision(name)
    prompts = shown(model, drawn())
    states, near = read(model, prompts, [States([0, 1]), EmbeddingLens([0, 1], floors=False)])
    (prompt,) = encode(model, prompts)
    dense, _ = hidden(model, prompt)
    torch.testing.assert_close(torch.tensor(states.data.state.values[0]), dense[:2], atol=1e-5, rtol=1e-4)
    ids = torch.arange(model.embedding.shape[0])
    with torch.no_grad():
        matrix = model.module.get_input_embeddings()(ids)
    cosine = torch.nn.functional.cosine_similarity(dense[:2, :, None], matrix[None, None], dim=-1)
    cosine[..., list(model.vision.proof.tokens)] = -2
    best = cosine.topk(10, dim=-1)
    np.testing.assert_allclose(near.data.cosine.values[0], best.values, atol=1e-5)
    assert (near.data.token_id.values[0] == best.indices.numpy()).mean() > 0.99
    # Text is its own token there: the scale is the one of the pictures' surroundings.
    text = near.data.kind.values[0] == "text"
    np.testing.assert_array_equal(near.data.token_id.values[0, 0, text, 0], near.data.input_id.values[0, text])


def test_ids_that_stand_for_pictures_are_never_neighbours():
    model = vision("llava")
    module = model.module.get_input_embeddings()
    (prompt,) = encode(model, shown(model, drawn()))
    token, before = prompt.ids[prompt.visual.at[0]], module.weight.detach().clone()
    states = hidden(model, prompt)[0][0, prompt.visual.at[3]]
    with torch.no_grad():
        module.weight[token] = states
    try:
        own = workbench.load(model.module, tokenizer=model.tokenizer, processor=model.processor)
        data = read(own, shown(own, drawn()), EmbeddingLens([0], floors=False)).data
    finally:
        with torch.no_grad():
            module.weight.copy_(before)
    assert (data.token_id.values != token).all() and data.cosine.values[0, 0, int(prompt.visual.at[3]), 0] < 0.99


@cache
def deep() -> workbench.Model:
    known = recipes.RECIPES["qwen3_vl"]
    recipes.RECIPES["qwen3_vl"] = dataclasses.replace(
        known, config={"vision_config": {"deepstack_visual_indexes": [0, 1]}}
    )
    try:
        return loaded("qwen3_vl")
    finally:
        recipes.RECIPES["qwen3_vl"] = known


def test_features_that_are_added_between_blocks_are_in_what_the_next_block_reads():
    """transformers' hidden_states are what blocks gave; the features of the tower come on top of them."""
    model = deep()
    assert model.vision.proof.added == (1, 2)
    prompts = shown(model, drawn())
    (prompt,) = encode(model, prompts)
    dense, inputs = hidden(model, prompt)
    with torch.no_grad():
        tower = model.module.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    added = [features[0] for features in tower.deepstack_features]
    state = torch.tensor(read(model, prompts, States([0, 1, 2, 3])).data.state.values[0])
    wanted = dense[:4].clone()
    for layer, features in zip((1, 2), added, strict=True):
        assert features.abs().max() > 1e-2
        wanted[layer, prompt.visual.at] += features
    torch.testing.assert_close(state, wanted, atol=1e-5, rtol=1e-4)


def test_attribution_refuses_features_that_no_block_wrote():
    model = deep()
    with pytest.raises(Refused, match=r"in front of blocks 1, 2.*would leave them out"):
        read(model, shown(model, drawn()), LogitAttribution())
    text = read(model, ["a red ball"], LogitAttribution()).data
    np.testing.assert_allclose(text.contribution.sum("component") + text.remainder, text.logit, atol=1e-4)


def test_attribution_sums_to_the_logit_at_pieces_of_pictures_and_has_their_mean_apart():
    model = vision("llava")
    data = read(model, shown(model, drawn()), LogitAttribution(targets=[40])).data
    (prompt,) = encode(model, shown(model, drawn()))
    with torch.no_grad():
        logits = model.module(
            input_ids=torch.tensor([prompt.ids]), **dict(prompt.extras), attention_mask=torch.ones(1, len(prompt.ids))
        ).logits[0, :, 40]
    np.testing.assert_allclose(data.contribution.sum("component").values[0, :, 0], logits, atol=1e-3)
    image = data.kind.values[0] == "image"
    for name, own in (("contribution_mean_image", image), ("contribution_mean", ~image)):
        own = own & ~data.sink.values[0]
        np.testing.assert_allclose(data[name].values, data.contribution.values[0, own].mean(0), atol=1e-5)


# ---------------------------------------------------------------- LatentLens

TEXTS = ["a red ball", "the dog ran to the ball", "red red wine", "a dog and a cat", "the cat sat", "ball games"] * 2


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return ContextIndex.build(
        vision("llava"), TEXTS, tmp_path_factory.mktemp("pictures") / "index", layers=[1, 2, 3], progress=False
    )


def test_an_index_of_texts_is_of_the_model_s_own_language_part(index):
    """Against the language model alone, a sentence at a time."""
    model = vision("llava")
    index.check(model)
    language, tokenizer = model.module.model.language_model, model.processor.tokenizer
    for layer in index.layers:
        rows = index.store.matrix(layer).states(0, len(index))
        for sentence in sorted(set(TEXTS)):
            ids = tokenizer(sentence)["input_ids"]
            with torch.no_grad():
                dense = language(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
            found = index.describe(np.arange(len(index)))
            own = np.flatnonzero(found["sentence"] == sentence)
            where = found["token_position"][own]
            torch.testing.assert_close(torch.as_tensor(rows)[own].float(), dense[where], atol=2e-3, rtol=2e-3)
    with pytest.raises(Exception, match="another"):
        index.check(vision("llava_next"))


@pytest.fixture(scope="module")
def latent(index):
    model = vision("llava")
    prompts = shown(model, drawn(), drawn(seed=1), drawn(seed=2))
    return read(model, prompts, [LatentLens(index, top_k=4), States()])


def test_shares_of_index_layers_are_of_one_kind_each(index, latent):
    data = latent[0].data
    assert not data.sink.any()
    special = np.isin(data.input_id.values, vision("llava").tokenizer.all_special_ids)
    for name, own in (("index_layer_share_image", data.kind.values == "image"), ("index_layer_share", ~special)):
        own = own & (data.kind.values == ("image" if name.endswith("image") else "text"))
        for depth in range(data.sizes["layer"]):
            counted = np.array([(data.index_layer.values[:, depth][own] == x).sum() for x in index.layers])
            np.testing.assert_allclose(data[name].values[depth], counted / counted.sum(), atol=1e-6)
        assert (data[f"{name}_low"] <= data[name] + 1e-6).all() and (data[name] <= data[f"{name}_high"] + 1e-6).all()
        np.testing.assert_allclose(data[f"{name}_null"].sum("index"), 1, atol=1e-5)
    assert data.index_layer_share_image_null.attrs["short_name"] == "pictures of noise"
    kinds = {name: variable.attrs.get("kind") for name, variable in data.data_vars.items()}
    assert {name for name, kind in kinds.items() if kind == "text"} == {
        "similarity_floor_shuffled", "similarity_floor_random", "index_layer_share", "index_layer_share_low",
        "index_layer_share_high", "index_layer_share_null",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "image"} == {
        *(f"similarity_floor_{name}" for name in ("patches", "noise", "others")),
        *(f"index_layer_share_image{end}" for end in ("", "_low", "_high", "_null")),
    }
    assert not np.isnan(data.similarity_floor_patches).any() and not np.isnan(data.similarity_floor_others).any()


def test_neighbours_at_pieces_of_pictures_are_those_of_a_dense_search(index, latent):
    data, states = latent[0].data, latent[1].data.state.values
    every = torch.cat([torch.as_tensor(index.store.matrix(x).states(0, len(index))).float() for x in index.layers])
    for p, layer, at in ((0, 1, 3), (1, 2, 7), (2, 4, 12)):
        assert data.kind.values[p, at] == "image"
        cosine = torch.nn.functional.cosine_similarity(torch.tensor(states[p, layer, at])[None], every)
        best = cosine.view(len(index.layers), -1).amax(0).sort(descending=True).values[:4]
        np.testing.assert_allclose(data.similarity.values[p, layer, at], best, atol=1e-4)


def test_one_context_at_several_index_layers_is_one_neighbour_of_a_visual_token(index):
    """A defect of the published search: the same context at several layers fills the first five places."""
    model = vision("llava")
    prompts = shown(model, drawn())
    found = read(model, prompts, [LatentLens(index, distinct=d, floors=False) for d in (True, False)])
    order = ("prompt", "position", "layer", "rank")
    image = found[0].data.kind.values == "image"
    once, often = (
        np.mean([len(set(own)) for own in reading.data.context.transpose(*order).values[image].reshape(-1, 5)])
        for reading in found
    )
    assert once == 5 and often < 5


def test_a_visual_token_of_zeros_has_no_neighbours(index):
    """A defect of the published pipeline: features of padding are zero, near to nothing, and get neighbours anyway."""
    model = vision("llava")
    (prompt,) = encode(model, shown(model, drawn()))
    at = int(prompt.visual.at[5])

    connector = model.module.model.multi_modal_projector
    handle = connector.register_forward_hook(lambda m, a, out: out.index_fill(-2, torch.tensor([5]), 0))
    try:
        latent, near = read(
            model, shown(model, drawn()),
            [LatentLens(index, [0, 2], floors=False, foreign=True), EmbeddingLens([0, 2], floors=False)],
        )  # fmt: skip
    finally:
        handle.remove()
    context = latent.data.context.values[0]
    assert (context[0, at] == -1).all() and np.isnan(latent.data.similarity.values[0, 0, at]).all()
    assert (context[1, at] >= 0).all() and (context[0, at + 1] >= 0).all()
    assert (near.data.token_id.values[0, 0, at] == -1).all()


def test_hubs_are_counted_by_kind(index, latent):
    """Against loops, on a reading and on one whose visual tokens have one caption in a fifth of their neighbours."""
    reading = latent[0]
    planted = workbench.Reading(reading.data.copy(deep=True), reading.provenance)
    rows = planted.data.context.values
    image = planted.data.kind.values == "image"
    rng = np.random.default_rng(0)
    for p, at in np.argwhere(image):
        if rng.random() < 0.95:
            rows[p, 2, at, 0] = 7
    for given_, depth in ((reading, 1), (planted, 2)):
        data, found = given_.data, hubs(given_, hubs=3).data
        assert found.kind.values.tolist() == ["text", "image"]
        for kind in ("text", "image"):
            own = data.context.values[:, depth][data.kind.values == kind]  # [token, rank]
            own = own[~data.sink.values[:, depth][data.kind.values == kind]]
            counted = {x: int((own == x).sum()) for x in np.unique(own[own >= 0])}
            here = found.sel(kind=kind).isel(layer=depth)
            first = max(counted.values())
            assert here.share.values[0] == pytest.approx(first / sum(counted.values()), abs=1e-6)
            for row, share, tokens in zip(here.hub_context.values, here.share.values, here.tokens.values, strict=True):
                assert share == pytest.approx(counted[row] / sum(counted.values()), abs=1e-6)
                assert tokens == sum(row in set(line) for line in own)
            assert int(here.cells) == len(own)
    top = hubs(planted, hubs=1).data.sel(kind="image").isel(layer=2, hub=0)
    assert 0.2 < float(top.share) < 0.35 and int(top.hub_context) == 7
    with pytest.raises(InputError, match="LatentLens"):
        hubs(latent[1])


def test_the_floor_of_hubs_is_what_the_largest_of_equal_chances_stays_under():
    from lenses.latent.hubness import _largest

    rng = np.random.default_rng(0)
    for found, contexts in ((200, 50), (1000, 5000)):
        largest = rng.multinomial(found, np.full(contexts, 1 / contexts), 2000).max(1)
        assert (largest > _largest(found, contexts)).mean() <= 0.05 + 0.015


# ---------------------------------------------------------------- what is kept


def test_pixels_of_many_pictures_are_made_again_and_the_reading_is_the_same(monkeypatch):
    """Beyond the limit prompts keep what is little alone; before and behind it readings are equal to the last bit."""
    model = vision("llava")
    prompts = shown(model, *(drawn(seed=i) for i in range(4)))
    held = given.Given._held
    kept = read(model, prompts, States([2]), batch_size=2).data.state.values
    size = encode(model, prompts[:1])[0].extras["pixel_values"].nbytes
    monkeypatch.setattr(given, "LITTLE", 100)
    monkeypatch.setattr(given, "HELD", held + 2 * size)
    known = encode(model, prompts)
    assert given.Given._held == held + 2 * size  # two of four are kept
    assert [sorted(p.extras) for p in known] == [["pixel_values"]] * 4
    assert workbench.inputs.digest(known) == workbench.inputs.digest(encode(model, prompts))
    calls, process = [], model.vision.process
    monkeypatch.setattr(model.vision, "process", lambda *a, **o: calls.append(a) or process(*a, **o))
    del known
    assert given.Given._held == held
    again = read(model, prompts, States([2]), batch_size=2).data.state.values
    np.testing.assert_array_equal(kept, again)
    assert len(calls) == 4 + 2  # each once for its ids, and two once more for their batch


def test_a_prompt_with_other_pictures_must_have_the_same_places():
    model = vision("qwen2_vl")
    (prompt,) = encode(model, shown(model, drawn()))
    same = with_pictures(model, prompt, lambda: [drawn(seed=3)])
    assert same.ids == prompt.ids and not torch.equal(same.extras["pixel_values"], prompt.extras["pixel_values"])
    with pytest.raises(Refused, match="other pictures of the same sizes"):
        with_pictures(model, prompt, lambda: [drawn(120, 40)])
