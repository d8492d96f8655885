"""Where in a picture each visual token is, against the models themselves and against formulas written out here."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

import images
import numpy as np
import pytest
import zoo
from pictured import PINPOINTS, SIZE, drawn, loaded, text_with_image
from PIL import Image

EXACT = {
    "llava": (32, 32), "vipllava": (32, 32), "llava_next": (64, 64), "llava_onevision": (64, 64),
    "granite4_vision": (64, 64), "qwen2_vl": (64, 48), "qwen2_5_vl": (64, 48), "qwen3_vl": (64, 48),
    "paddleocr_vl": (64, 48), "hunyuan_vl": (64, 48), "video_llama_3": (48, 24), "glm4v": (64, 48),
    "glm5_next": (96, 64), "gemma3": (32, 32), "paligemma": (32, 32), "idefics3": (96, 64), "internvl": (64, 32),
    "aya_vision": (64, 32), "ovis2": (64, 64), "granite_docling": (64, 32), "mistral3": (96, 64),
    "lighton_ocr": (96, 64), "deepseek_vl": (32, 32), "fuyu": (70, 40), "minicpmv4_6": (64, 64),
}  # fmt: skip
"""A picture that each processor leaves at its size, so that each of its pixels is one of what the model is given."""
ALL = (*EXACT, "gemma4", "got_ocr2")
SHAPES = ((200, 150), (90, 300), (61, 47))


@pytest.fixture(scope="module")
def models():
    """Each type once, when it is first asked for."""
    known = {}
    return lambda name: known.setdefault(name, loaded(name)) if name not in known else known[name]


def reading(model, *pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return images.read(model, model.processor, *pictures)


def visual(model, *pictures):
    data = reading(model, *pictures)
    return data.isel(position=np.flatnonzero(data.kind.values == "image"))


def entries(model, picture):
    """[entry] all that the processor makes of a picture."""
    given = images.processed(model.processor, text_with_image(model.processor), [picture])
    return np.concatenate([value.numpy().ravel() for value in images.pixels(given).values()])


def painted(size, box, inside, outside):
    picture = Image.new("RGB", size, outside)
    picture.paste(inside, tuple(int(v) for v in np.round(box)))
    return picture


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", SHAPES[:2])
def test_every_visual_token_has_one_place(models, name, size):
    model = models(name)
    picture = drawn(*size)
    given = images.processed(model.processor, text_with_image(model.processor), [picture])
    data = reading(model, picture)
    own = data.isel(position=np.flatnonzero(data.image.values >= 0))
    ids = given["input_ids"][0].numpy()
    assert (ids == np.bincount(own.input_id.values).argmax()).sum() == len(own.position)
    assert set(own.kind.values) <= {"image", "padding"}
    shown = own.isel(position=np.flatnonzero(own.kind.values == "image"))
    places = list(zip(*(shown[c].values for c in ("tile", "row", "column")), strict=True))
    assert len(set(places)) == len(places) and min(map(min, places)) >= 0
    box = shown.box.values
    assert (box[:, :2] >= 0).all() and (box[:, 2:] <= np.array(size) + 1e-3).all() and (box[:, :2] < box[:, 2:]).all()
    # The tiles of crops, and the whole picture alone, leave no part of the picture out but what a crop cuts off.
    if name not in ("llava", "vipllava"):
        seen = np.zeros(size[::-1], bool)
        for left, top, right, bottom in np.round(box).astype(int):
            seen[top:bottom, left:right] = True
        assert seen[2:-2, 2:-2].mean() > 0.97


@pytest.mark.parametrize("name", EXACT)
def test_a_picture_black_but_for_a_cell_changes_the_pixels_of_that_cell_alone(models, name):
    model, size = models(name), EXACT[name]
    tokens = visual(model, Image.new("RGB", size, "gray"))
    tile = tokens.tile.values
    tokens = tokens.isel(position=np.flatnonzero(tile == 0 if tile.max() == 0 else tile > 0))
    black, white = (entries(model, Image.new("RGB", size, colour)) for colour in ("black", "white"))
    given = images.processed(model.processor, text_with_image(model.processor), [drawn(*size)])
    found = images.sights(model, given, tokens.position.values)
    assert found is not None
    seen, image = found
    covered = np.zeros(len(black), int)
    for own, box in zip(seen, tokens.box.values, strict=True):
        inside = image == np.bincount(image, weights=own).argmax()
        now = entries(model, painted(size, box, "white", "black"))
        changed = (now != black) & inside
        assert (now[changed] == white[changed]).all()  # all of the cell, and not a mixture
        assert own[changed].mean() > 2 * own[inside & ~changed].mean()  # and the model sees it there
        covered += changed
    mine = np.isin(image, image[covered > 0])
    assert (covered[mine & (black != white)] == 1).all() and (covered[~mine] == 0).all()


def distance(model, size, expected):
    """How far the boxes are from those expected, in pixels."""
    found = visual(model, drawn(*size)).box.values
    assert len(found) == len(expected)
    return np.abs(found - np.array(expected)).max()


def cells(rows, columns, box):
    """Boxes of a grid over a rectangle, row by row."""
    left, top, right, bottom = box
    wide, high = (right - left) / columns, (bottom - top) / rows
    return [
        (left + c * wide, top + r * high, left + (c + 1) * wide, top + (r + 1) * high)
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip


FOUR = ((200, 150), (150, 330), (301, 97), (61, 47))


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_squashed_pictures(models, size):
    assert distance(models("paligemma"), size, cells(4, 4, (0, 0, *size))) < 1
    assert distance(models("gemma3"), size, cells(2, 2, (0, 0, *size))) < 1


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_centre_crops(models, size):
    width, height = size
    w, h = (SIZE * n // min(size) for n in size)
    left, top = (w - SIZE) // 2, (h - SIZE) // 2
    box = (left * width / w, top * height / h, (left + SIZE) * width / w, (top + SIZE) * height / h)
    assert distance(models("llava"), size, cells(4, 4, box)) < 1


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_padded_pictures(models, size):
    scale = SIZE / max(size)
    wide, high = (max(round(n * scale), 14) for n in size)
    left, top = (SIZE - wide) // 2, (SIZE - high) // 2
    expected = []
    for x0, y0, x1, y1 in cells(4, 4, (0, 0, SIZE, SIZE)):
        x0, x1 = (min(max((x - left) / wide, 0), 1) * size[0] for x in (x0, x1))
        y0, y1 = (min(max((y - top) / high, 0), 1) * size[1] for y in (y0, y1))
        if x1 > x0 and y1 > y0:
            expected.append((x0, y0, x1, y1))
    assert distance(models("deepseek_vl"), size, expected) < 1


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paddleocr_vl"])
@pytest.mark.parametrize("size", FOUR[:2])
def test_boxes_of_grids_of_whole_patches(models, name, size):
    """Qwen2-VL's smart_resize, as published."""
    width, height = size
    side, least, most = 16, 4 * 16**2, 24 * 16**2
    w, h = max(side, round(width / side) * side), max(side, round(height / side) * side)
    if w * h > most:
        beta = math.sqrt(width * height / most)
        w, h = math.floor(width / beta / side) * side, math.floor(height / beta / side) * side
    elif w * h < least:
        beta = math.sqrt(least / (width * height))
        w, h = math.ceil(width * beta / side) * side, math.ceil(height * beta / side) * side
    assert distance(models(name), size, cells(h // side, w // side, (0, 0, width, height))) < 1


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_rows_that_end_in_a_break(models, size):
    """Pixtral: no longer than six tokens to a side, rounded up to whole ones."""
    width, height = size
    ratio = max(max(size) / 96, 1)
    columns, rows = (math.ceil(math.floor(n / ratio) / 16) for n in size)
    assert distance(models("mistral3"), size, cells(rows, columns, (0, 0, width, height))) < 1


@pytest.mark.parametrize("name", ["internvl", "aya_vision"])
@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_crops_ahead_of_a_thumbnail(models, name, size):
    """InternVL's dynamic preprocessing, as published: the grid of the nearest shape, and the whole picture last."""
    width, height = size
    grids = sorted(((i, j) for i in range(1, 7) for j in range(1, 7) if i * j <= 6), key=lambda g: g[0] * g[1])
    best, least = (1, 1), math.inf
    for i, j in grids:
        off = abs(width / height - i / j)
        if off < least or (off == least and width * height > 0.5 * SIZE**2 * i * j):
            best, least = (i, j), off
    expected = [c for tile in cells(best[1], best[0], (0, 0, *size)) for c in cells(2, 2, tile)]
    if best != (1, 1):
        expected += cells(2, 2, (0, 0, *size))
    assert distance(models(name), size, expected) < 1
    tile = visual(models(name), drawn(*size)).tile.values
    assert (tile[-4:] == 0).all() and (np.diff(tile[:-4]) >= 0).all() and (tile[:-4] > 0).all()


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_rows_and_columns_of_tiles_ahead_of_the_whole(models, size):
    """Idefics3: the longer side to 96 pixels, both sides up to whole tiles of 32, the whole picture last."""
    width, height = size
    if width >= height:
        w, h = 96, int(96 / (width / height))
        h += h % 2
    else:
        w, h = int(96 * (width / height)), 96
        w += w % 2
    columns, rows = math.ceil(w / SIZE), math.ceil(h / SIZE)
    expected = [c for tile in cells(rows, columns, (0, 0, *size)) for c in cells(2, 2, tile)]
    assert distance(models("idefics3"), size, expected + cells(2, 2, (0, 0, *size))) < 1


@pytest.mark.parametrize("size", FOUR)
def test_boxes_of_a_mosaic_without_its_padding(models, size):
    """LLaVA-NeXT: the resolution that keeps most of the picture, padded evenly; the padding's tokens are cut off."""
    width, height = size
    best, most, waste = (0, 0), 0, math.inf
    for high, wide in PINPOINTS:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        if kept > most or (kept == most and wide * high - kept < waste):
            best, most, waste = (high, wide), kept, wide * high - kept
    high, wide = best
    if wide / width < high / height:
        w, h = wide, min(math.ceil(height * wide / width), high)
    else:
        w, h = min(math.ceil(width * high / height), wide), high
    left, top = (wide - w) // 2, (high - h) // 2
    rows, columns = high // 8, wide // 8
    cut_rows = cut_columns = 0
    if width / height > columns / rows:
        cut_rows = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut_columns = (columns - int(round(width * (rows / height), 7))) // 2
    expected = cells(4, 4, (0, 0, *size))
    for row in range(cut_rows, rows - cut_rows):
        for column in range(cut_columns, columns - cut_columns):
            x0, x1 = (min(max((8 * c - left) / w, 0), 1) * width for c in (column, column + 1))
            y0, y1 = (min(max((8 * r - top) / h, 0), 1) * height for r in (row, row + 1))
            expected.append((x0, y0, x1, y1))
    # Its first tile is of another size than the rest, in the paper's order the whole picture.
    found = visual(models("llava_next"), drawn(*size))
    assert len(found.position) == len(expected)
    assert np.abs(found.box.values - np.array(expected))[:16].max() < 1 + max(size) / SIZE / 4
    assert np.abs(found.box.values - np.array(expected))[16:].max() < 1


@pytest.mark.parametrize("name", ALL)
def test_noise_in_a_cell_changes_its_token_most(models, name):
    model = models(name)
    rng = np.random.default_rng(0)
    hits = trials = 0
    for size in SHAPES:
        picture = drawn(*size)
        tokens = visual(model, picture)
        text = text_with_image(model.processor)
        before = images.entering(model, images.processed(model.processor, text, [picture]))
        for k in rng.permutation(len(tokens.position))[:4]:
            left, top, right, bottom = np.round(tokens.box.values[k]).astype(int)
            values = np.asarray(picture).copy()
            shape = (bottom - top, right - left, 3)
            values[top:bottom, left:right] = rng.integers(0, 256, (1, 1, 3)) ^ (values[top:bottom, left:right] & 127)
            assert min(shape) > 0
            after = images.entering(model, images.processed(model.processor, text, [Image.fromarray(values)]))
            moved = np.abs(after - before).reshape(len(before), -1)[tokens.position.values].sum(1)
            moved = moved / np.abs(before).reshape(len(before), -1)[tokens.position.values].sum(1)
            moved[tokens.tile.values != tokens.tile.values[k]] = 0  # the whole picture shows what its crops show
            hits, trials = hits + (moved.argmax() == k), trials + 1
    assert hits > trials / 2  # rows and columns exchanged, a quarter would


@pytest.mark.parametrize("name", [
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "idefics3", "internvl", "mistral3", "hunyuan_vl", "gemma4",
    "minicpmv4_6",
])
def test_two_pictures_have_the_places_of_each(models, name):
    model = models(name)
    pictures = [drawn(200, 150), drawn(61, 97, seed=1)]
    both = visual(model, *pictures)
    for i, picture in enumerate(pictures):
        alone, own = visual(model, picture), both.isel(position=np.flatnonzero(both.image.values == i))
        for place in ("tile", "row", "column"):
            assert (alone[place].values == own[place].values).all()
        assert np.abs(alone.box.values - own.box.values).max() < 1


@pytest.mark.parametrize("size", [(5, 4), (4, 40), (400, 4), (31, 29)])
@pytest.mark.parametrize("name", ["llava", "paligemma", "deepseek_vl", "internvl"])
def test_small_and_narrow_pictures_have_a_place_or_none(models, name, size):
    tokens = visual(models(name), drawn(*size))
    box = tokens.box.values
    assert (box >= 0).all() and (box[:, 2:] <= np.array(size) + 1e-3).all()
    none = tokens.row.values < 0
    assert (none.all() and (box == [0, 0, *size]).all()) or not none.any()


def test_resamplers_have_no_places(models):
    model = loaded("idefics2")
    with pytest.warns(UserWarning, match="no known place"):
        data = images.read(model, model.processor, drawn(80, 60))
    own = data.isel(position=np.flatnonzero(data.kind.values == "image"))
    assert len(own.position) == 4 and (own.row.values == -1).all() and (own.column.values == -1).all()
    assert (own.box.values == [0, 0, 80, 60]).all()


def test_coverage_names_every_type_and_none_is_wrong():
    path = Path(images.__file__).with_suffix(".csv")
    with path.open() as file:
        rows = {row["model_type"]: row for row in csv.DictReader(file)}
    assert list(rows) == zoo.image_text()
    assert {row["status"] for row in rows.values()} <= {"exact", "near", "read", "no places", "refused", "not built"}
    assert all(row["detail"] for row in rows.values() if row["status"] != "exact")
    assert {rows[name]["status"] for name in ALL} <= {"exact", "near"}


def test_features_that_are_added_between_blocks_are_found(models):
    """Qwen3-VL and Granite Vision add visual features behind blocks 0 and 1, too; Qwen2-VL adds none."""
    added = {name: models(name).vision.proof.added for name in ("qwen3_vl", "granite4_vision", "qwen2_vl")}
    assert added == {"qwen3_vl": (1, 2), "granite4_vision": (1, 2), "qwen2_vl": ()}
