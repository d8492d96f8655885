"""organism:gallery: its pictures show what is said of them, its card is true, its recipe works."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
import transformers

import workbench
from lenses import LogitLens
from workbench.organisms import folder, names
from workbench.organisms.gallery import PROMPT, recipe
from workbench.organisms.gallery.grammar import (
    COLOURS,
    GRID,
    GROUNDS,
    PATCH,
    SCALE,
    SHAPE_OF,
    SIDE,
    caption,
    paint,
    scenes,
    texts,
    truth,
)  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """The shipped folder through transformers alone."""
    where = folder("gallery")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(where, dtype=torch.float32).eval()
    card = json.loads((where.parent / "card.json").read_text())
    return model, transformers.AutoProcessor.from_pretrained(where), card


def nearest_colour(pixels):
    """Which of the palette's colours, things' and grounds', each pixel is nearest to."""
    names = [*COLOURS, *GROUNDS]
    palette = np.array([*COLOURS.values(), *GROUNDS.values()], float)
    found = ((pixels[..., None, :].astype(float) - palette) ** 2).sum(-1).argmin(-1)
    return np.array(names, object)[found]


def test_patches_show_what_the_truth_says():
    """Found again in the pixels, not by the grammar that painted them."""
    agree = total = 0
    cell = PATCH * SCALE
    for scene in scenes(60, seed=31):
        seen, known = nearest_colour(np.asarray(paint(scene))), truth(scene)
        for row in range(GRID):
            for column in range(GRID):
                part = seen[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
                number = known.thing[row, column]
                wanted = scene.things[number].colour if number >= 0 else scene.ground
                share = (part == wanted).mean()
                expected = known.share[row, column] if number >= 0 else 1
                agree += abs(share - expected) < 0.12
                total += 1
    assert agree / total > 0.97


def test_no_patch_shows_two_things_and_things_differ():
    for scene in scenes(300, seed=32):
        taken = [patch for thing in scene.things for patch in thing.patches]
        assert scene.things and len(taken) == len(set(taken))
        assert all(0 <= t.left <= SIDE / SCALE - t.side and 0 <= t.top <= SIDE / SCALE - t.side for t in scene.things)


def test_captions_name_all_groups_and_the_ground():
    counts = {"a": 1, "an": 1, "two": 2, "three": 3}
    for scene in scenes(300, seed=33):
        text = caption(scene, 0)
        found = re.findall(rf"\b(an?|two|three) (?:\w+ )?({'|'.join(COLOURS)}) ({'|'.join(SHAPE_OF)})\b", text)
        told = Counter({(colour, SHAPE_OF[noun]): counts[n] for n, colour, noun in found})
        assert told == Counter((thing.colour, thing.shape) for thing in scene.things), text
        assert scene.ground in text


def test_pictures_and_texts_are_seeded_and_held_out_ones_are_others():
    one, again = (list(scenes(20, 1)) for _ in range(2))
    assert one == again and not set(one) & set(scenes(200, 2))
    assert np.array_equal(np.asarray(paint(one[3])), np.asarray(paint(again[3])))
    assert list(texts(20, 1)) == list(texts(20, 1)) != list(texts(20, 2))


def test_it_is_an_ordinary_small_folder(plain):
    model, processor, card = plain
    where = folder("gallery")
    assert "gallery" in names() and sum(f.stat().st_size for f in where.iterdir()) < 6e6
    assert {f.suffix for f in where.iterdir()} <= {".json", ".safetensors", ".jinja"}
    inputs = processor(images=paint(next(scenes(1, 40))), text=PROMPT, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == GRID * GRID
    loaded = workbench.load("organism:gallery")
    assert loaded.n_layers == card["setting"]["layers"] and loaded.processor is not None


def test_each_content_word_is_one_token(plain):
    tokenizer = plain[1].tokenizer
    for word in (*COLOURS, *SHAPE_OF, *GROUNDS):
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


@torch.no_grad()
def test_the_card_is_true(plain):
    """Captions written by transformers' own generate, from pictures through its own processor."""
    model, processor, card = plain
    own = list(scenes(60, recipe.HELD_OUT_SEED))
    inputs = processor(images=[paint(s) for s in own], text=[PROMPT] * len(own), return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    said = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    pattern = rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPE_OF)})\b"
    right = named = by_chance = 0
    things = [{(t.colour, t.shape) for t in s.things} for s in own]
    for i, text in enumerate(said):
        pairs = {(colour, SHAPE_OF[noun]) for colour, noun in re.findall(pattern, text)}
        named += len(pairs)
        right += len(pairs & things[i])
        by_chance += len(pairs & things[i - 1])
    error = math.sqrt(0.25 / named)
    assert right / named == pytest.approx(card["pairs_that_are_named_and_there"], abs=3 * error)
    assert right / named > by_chance / named + 0.4


def test_visual_tokens_name_what_their_patches_show_and_no_other_picture_does():
    """The map of patches, found again in what the model says: rows and columns of the reading against the truth."""
    model = workbench.load("organism:gallery")
    own = list(scenes(24, recipe.HELD_OUT_SEED))
    prompts = [{"text": PROMPT, "images": paint(scene)} for scene in own]
    data = workbench.read(model, prompts, LogitLens([0], top_k=1), positions="image", progress=False).data
    words = np.vectorize(lambda i: model.tokenizer.decode([i]).strip())(data["token_id"].values[:, 0, :, 0])
    row, column = data["row"].values, data["column"].values
    rates = {}
    for name, shift in (("own", 0), ("another", 1)):
        right = []
        for i in range(len(own)):
            scene = own[i - shift]
            known = truth(scene)
            for word, r, c in zip(words[i], row[i], column[i], strict=True):
                if known.share[r, c] >= 0.5:
                    thing = scene.things[known.thing[r, c]]
                    right.append(word == thing.colour or SHAPE_OF.get(word) == thing.shape)
        rates[name] = np.mean(right)
    assert rates["own"] > 0.7 and rates["another"] < 0.3
    cell = PATCH * SCALE
    box = np.stack([column * cell, row * cell, (column + 1) * cell, (row + 1) * cell], -1)
    assert np.allclose(data["box"].values, box, atol=1)


@torch.no_grad()
def test_only_the_connector_learned_from_pictures():
    """The language model and the vision tower are, after the captions, what they were before."""
    setting = {**recipe.SMOKE, "text_steps": 2, "sight_steps": 2, "caption_steps": 3}
    read = list(texts(200, 1))
    tokenizer = recipe.make_tokenizer(read)
    own = list(scenes(20, 1))
    seen = recipe.pixels(own)
    with torch.enable_grad():
        language = recipe.train_language(tokenizer, recipe.pack(tokenizer, read, 96), setting, 0)
        model = recipe.join(language, recipe.train_sight(own, seen, setting, 0), tokenizer.image_token_id, 0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        recipe.train_connector(model, tokenizer, own, seen, setting, 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    assert torch.equal(model.model.language_model.embed_tokens.weight, language.model.embed_tokens.weight)


def test_a_language_model_of_others_takes_the_place_of_the_small_one(tmp_path):
    found = recipe.twin(tmp_path, str(folder("story")), pictures=24, sight_steps=2, steps=3, batch=4, measured=4)
    assert math.isfinite(found["after"]["caption_loss_nats_per_token"])
    model = workbench.load(str(tmp_path / "weights"))
    assert model.n_layers == 6 and model.vocab_size == 1344  # the tokens of organism:story, and the image's
    prompt = {"text": PROMPT, "images": paint(next(scenes(1, 40)))}
    data = workbench.read(model, prompt, LogitLens([0], top_k=1), positions="image", progress=False).data
    assert data.sizes["position"] == GRID * GRID


def test_the_smoke_recipe_learns(tmp_path):
    card = recipe.make(tmp_path, smoke=True)
    assert card["text_loss_nats_per_token"] < 0.5 * math.log(card["vocabulary"])
    assert card["caption_loss_nats_per_token"] < card["text_loss_nats_per_token"] + 0.5
    workbench.load(str(tmp_path / "weights"))
    assert "measured" in (tmp_path / "CARD.md").read_text().lower()
