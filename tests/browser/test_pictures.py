"""Prompts with pictures in the lens explorer: patches are chosen on the picture, by mouse and by keys, in all panes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_readings import SENTENCES, found
from looks import CONTRAST, SAID

from workbench.tokens import visible
from workbench.widgets import to_html

SHOTS = Path(__file__).resolve().parents[2] / "out" / "browser"
LENSES = ("LogitLens", "EmbeddingLens", "LatentLens")
# Of a canvas, how strongly each box [left, top, right, bottom] of a picture so wide is coloured, beside its word.
COLOURED = """
(canvas, [boxes, wide]) => {
  const g = canvas.getContext("2d"), scale = canvas.width / wide;
  const at = (a, b) => (a + 0.2 * (b - a)) * scale;
  return boxes.map(([l, t, r, b]) => g.getImageData(at(l, r), at(t, b), 1, 1).data[3]);
}
"""


def opened(file_page: Any, path: Path, readings: Any, **options: Any) -> Any:
    page = file_page(to_html(readings, path), **options)
    page.locator(".wx-mosaic:visible").first.wait_for()
    page.locator(".wx-at:visible").first.wait_for()
    return page


def selected(page: Any) -> dict[str, Any]:
    return page.evaluate("() => document.getElementById('explorer').model.get('selection')")


def unharmed(page: Any) -> None:
    assert page.watched.dialogs == [] and page.watched.outside == [] and page.watched.errors == []


def click(mosaic: Any, row: float, column: float, rows: int, columns: int, **options: Any) -> None:
    """Click into the middle of a cell of a grid that lies over the whole picture."""
    box = mosaic.bounding_box()
    spot = {"x": (column + 0.5) / columns * box["width"], "y": (row + 0.5) / rows * box["height"]}
    mosaic.click(position=spot, **options)


def words(data: Any, **where: Any) -> list[str]:
    vocab = data["vocab_token"].values
    return [visible(str(vocab[i])) for i in data.sel(**where)["token_id"].values.tolist()]


def test_a_click_on_a_patch_says_what_all_lenses_say_there(file_page, tmp_path):
    readings = [found(name) for name in LENSES]
    page = opened(file_page, tmp_path / "lenses.html", readings, width=1500)
    assert page.locator(".wx-mosaic:visible").count() == 3, "a picture for each lens"
    assert selected(page)["position"] == 2 * 8 + 3, "it opens in the middle of the picture"
    click(page.locator(".wx-mosaic").nth(1), 4, 5, 6, 8)
    here = {"prompt": 0, "layer": 8, "position": 4 * 8 + 5}
    assert {"depth": 8, "position": 37, "prompt": 0}.items() <= selected(page).items()
    for pane, data in zip(page.locator(".wx-pane").all(), readings, strict=True):
        assert pane.locator(".wx-panel h3").inner_text().startswith("layer 8, row 4, column 5 #37")
        assert pane.locator(".wx-bars .wx-one").all_inner_texts() == words(data, **here)
        assert "x 200–240, y 160–200 of 320 × 240 pixels" in pane.locator(".wx-panel .wx-facts").first.inner_text()
    latent, data = page.locator(".wx-pane").nth(2), readings[2].sel(**here)
    sentence, start, end = (data[name].values[0] for name in ("sentence", "char_start", "char_end"))
    assert sentence == SENTENCES[" car"][0], "of which the word stands in it twice"
    said = latent.locator(".wx-said").first
    assert said.locator("mark").inner_text() == sentence[start:end] and said.locator("mark").count() == 1
    before = said.evaluate("(p) => p.firstChild.data")
    assert before == sentence[:start], "marked where it stands, not where it stands first"
    assert said.locator("small").inner_text() == f"index layer {int(data['index_layer'][0])}"
    assert "similarity floor 0.340" in latent.locator(".wx-panel .wx-facts").first.inner_text()
    page.get_by_role("searchbox").fill("car")
    page.wait_for_timeout(250)
    scales = page.locator(".wx-under .wx-scale").all_inner_texts()
    assert len({scale.split("top 5")[1] for scale in scales}) == 3, "each score has a scale of its own"
    unharmed(page)


def test_keys_go_from_patch_to_patch_and_from_layer_to_layer(file_page, tmp_path):
    page = opened(file_page, tmp_path / "keys.html", found())
    mosaic = page.locator(".wx-mosaic").first
    click(mosaic, 1, 1, 6, 8)
    for key, at in (
        ("ArrowRight", (8, 1, 2)), ("ArrowDown", (8, 2, 2)), ("Home", (8, 2, 0)), ("End", (8, 2, 7)),
        ("ArrowRight", (8, 2, 7)), ("ArrowUp", (8, 1, 7)), ("PageDown", (4, 1, 7)), ("ArrowLeft", (4, 1, 6)),
        ("PageUp", (8, 1, 6)),
    ):  # fmt: skip
        page.keyboard.press(key)
        now = selected(page)
        assert (now["depth"], now["position"]) == (at[0], 8 * at[1] + at[2]), key
    told = mosaic.locator("[role=gridcell]")
    assert told.get_attribute("aria-label") == "row 1, column 6" and told.get_attribute("aria-selected") == "true"
    assert mosaic.get_attribute("aria-activedescendant") == told.get_attribute("id")
    page.keyboard.press("p")
    assert selected(page)["pins"] == [{"reading": 0, "prompt": 0, "depth": 8, "position": 14}]
    assert page.locator(".wx-kept").count() == 1 and page.locator(".wx-card .wx-crop").count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.closest('.wx-bars') !== null")
    page.locator(".wx-strip button").nth(1).click()
    assert selected(page)["depth"] == 2 and page.locator(".wx-strip button[aria-current=true]").count() == 1
    page.locator("input[aria-label=layer]").fill("3")
    assert selected(page)["depth"] == 8
    unharmed(page)


def test_a_word_is_coloured_where_a_lens_says_it(file_page, tmp_path):
    data = found()
    page = opened(file_page, tmp_path / "words.html", data)
    boxes = data["box"].values[0, :48].tolist()
    look = page.locator(".wx-mosaic canvas").first

    def coloured() -> np.ndarray:
        page.wait_for_timeout(250)
        return np.array(look.evaluate(COLOURED, [boxes, 320]))

    assert (coloured() > 0).all(), "the similarity of every patch"
    page.get_by_role("searchbox").fill("sun")
    sun = list(data["vocab_token"].values).index(" sun")
    there = (data["token_id"].sel(prompt=0, layer=8).values[:48] == sun).any(-1)
    assert 0 < there.sum() < 48
    np.testing.assert_array_equal(coloured() > 0, there)
    assert "similarity of “sun”" in page.locator(".wx-under").inner_text()
    page.get_by_role("searchbox").fill("")

    best = data["similarity"].sel(prompt=0, layer=4, rank=0).values[:48]
    floor = np.sort(best)[20] + 1e-4
    page = opened(file_page, tmp_path / "floor.html", data.assign(similarity_floor_shuffled=("layer", [floor] * 4)))
    look = page.locator(".wx-mosaic canvas").first
    page.get_by_role("button", name="fade what is not above the floor").click()
    page.locator(".wx-strip button").nth(2).click()
    above, strength = best > floor, coloured()
    assert above.sum() == 27 and strength[above].min() > 2 * strength[~above].max()

    metrics = page.locator("select[aria-label=show] option").evaluate_all("(all) => all.map((o) => o.value)")
    assert {"top", "similarity", "norm", "index_layer", "similarity_p"} <= set(metrics)
    page.locator("select[aria-label=show]").select_option("norm")
    assert "length of the state" in page.locator(".wx-under").inner_text()
    unharmed(page)


def test_two_layers_stand_beside_each_other(file_page, tmp_path):
    page = opened(file_page, tmp_path / "layers.html", found(prompts=None), width=1400)
    page.get_by_role("button", name="the same beside this").click()
    assert selected(page)["panes"] == [[0, 0], [0, 0, 8]]
    page.locator(".wx-pane").first.locator(".wx-strip button").nth(1).click()
    click(page.locator(".wx-pane").first.locator(".wx-mosaic"), 0, 0, 6, 8)
    heads = page.locator(".wx-panel h3 > span:not(.wx-crop)").all_inner_texts()
    assert [h.split(" #")[0] for h in heads] == ["layer 2, row 0, column 0", "layer 8, row 0, column 0"]
    click(page.locator(".wx-pane").nth(1).locator(".wx-mosaic"), 5, 7, 6, 8)
    assert selected(page)["position"] == 47 and selected(page)["panes"] == [[0, 0], [0, 0, 8]]
    asked = {"prompt": 1, "depth": 8, "panes": [[0, 1], [0, 1, 4]]}
    page.evaluate("(asked) => document.getElementById('explorer').model.set('selection', asked)", asked)
    heads = page.locator(".wx-panel h3 > span:not(.wx-crop)").all_inner_texts()
    assert [h.split(",")[0] for h in heads] == ["layer 8", "layer 4"]
    unharmed(page)


def test_several_pictures_and_their_tiles(file_page, tmp_path):
    data = found()
    page = opened(file_page, tmp_path / "tiles.html", data)
    page.locator("select[aria-label=prompt]").select_option("2")
    thumbs = page.locator(".wx-thumbs button:visible")
    assert thumbs.count() == 2 and page.locator("select[aria-label=grid]:visible").count() == 0
    thumbs.nth(1).click()
    second = np.flatnonzero(data["image"].values[2] == 1)
    assert selected(page)["position"] in second and thumbs.nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator(".wx-mosaic").get_attribute("aria-label") == "patches of picture 1, 3 by 5"
    assert page.locator(".wx-panel h3").inner_text().startswith("layer 8, picture 1, row 1")

    page.locator("select[aria-label=prompt]").select_option("3")
    tiles = page.locator("select[aria-label=grid]")
    assert tiles.locator("option").count() == 5
    tiles.select_option(index=4)
    at = selected(page)["position"]
    assert int(data["tile"][3, at]) == 4
    click(page.locator(".wx-mosaic"), 5, 5, 8, 8)
    chosen = data.isel(prompt=3, position=selected(page)["position"])
    assert (int(chosen["tile"]), int(chosen["row"]), int(chosen["column"])) == (4, 1, 1)
    before = selected(page)["position"]
    click(page.locator(".wx-mosaic"), 0, 0, 8, 8)
    assert selected(page)["position"] == before, "another tile lies there, and this one does not"
    page.locator("select[aria-label=prompt]").select_option("1")
    box = page.locator(".wx-mosaic").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(1.5, rel=0.02), "the picture, without the padding around it"
    unharmed(page)


def test_in_the_table_a_picture_is_the_column_of_its_patch(file_page, tmp_path):
    data = found()
    page = opened(file_page, tmp_path / "table.html", data)
    texts = int((data["kind"].values[0] == "text").sum())
    grid = page.locator(".wx-grid")
    assert grid.get_attribute("aria-colcount") == str(1 + texts + 1)
    assert page.locator(".wx-in").first.inner_text() == "2,3"
    click(page.locator(".wx-mosaic"), 4, 6, 6, 8)
    assert page.locator(".wx-in").first.inner_text() == "4,6"
    top = [words(data, prompt=0, layer=layer, position=38)[0] for layer in (8, 4, 2, 0)]
    cells = page.locator(".wx-cell[aria-colindex='2']")
    page.wait_for_timeout(200)
    assert sorted(cells.all_inner_texts()) == sorted(top)
    grid.press("ArrowRight")
    assert selected(page)["position"] == 48, "the first token behind the picture"
    grid.press("ArrowLeft")
    assert selected(page)["position"] == 38, "and back to the patch"
    page.get_by_role("button", name="a column for each patch").click()
    assert grid.get_attribute("aria-colcount") == str(1 + texts + 48)
    grid.press("ArrowRight")
    assert selected(page)["position"] == 39
    unharmed(page)


def test_two_models_are_compared_at_the_same_place_of_the_picture(file_page, tmp_path):
    from image_readings import ASK, squashed

    fine = found(prompts=[[squashed(12, 16), *ASK]])
    coarse = found(prompts=[["Describe", squashed(3, 4), *ASK]]).assign_attrs(model="another")
    page = opened(file_page, tmp_path / "models.html", {"fine": fine, "coarse": coarse}, width=1500)
    click(page.locator(".wx-mosaic").first, 10, 13, 12, 16)
    heads = page.locator(".wx-panel h3 > span:not(.wx-crop)").all_inner_texts()
    assert heads[0].startswith("layer 8, row 10, column 13") and heads[1].startswith("layer 8, row 2, column 3")
    page.locator(".wx-pane").first.locator(".wx-grid").press("End")
    heads = page.locator(".wx-panel h3 > span:not(.wx-crop)").all_inner_texts()
    assert all(head.startswith("layer 8, at .") for head in heads), "the same token of the text"
    unharmed(page)


@pytest.mark.parametrize(("width", "dark"), [(390, True), (390, False), (1000, False)])
def test_it_fits_a_phone_and_can_be_read(file_page, tmp_path, width, dark):
    page = opened(file_page, tmp_path / "fits.html", [found(name) for name in LENSES], width=width, dark=dark)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator(".wx").evaluate(CONTRAST) == []
    if width == 390:
        assert page.locator(".wx-mosaic:visible").count() == 1 and page.locator(".wx-panel:visible").count() == 3
        page.get_by_role("button", name="show this reading over the picture").first.click()
        assert selected(page)["reading"] == 1 and page.locator(".wx-mosaic:visible").count() == 1
    outside = page.locator(".wx").evaluate(
        "(root) => [...root.querySelectorAll('.wx-tools *, .wx-head *, .wx-panel *, .wx-look *')].filter((n) =>"
        " n.getClientRects().length && n.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert outside == 0
    page.screenshot(path=SHOTS / f"pictures-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    unharmed(page)


def test_a_picture_that_is_none_is_not_fetched(file_page, tmp_path):
    data = found()
    data["picture_data"][0] = "https://example.org/x.png"
    data["picture_data"][1] = 'data:image/png;base64,AA");background:url(https://example.org/y.png'
    page = opened(file_page, tmp_path / "none.html", data)
    assert page.locator(".wx-mosaic img:visible").count() == 0
    click(page.locator(".wx-mosaic"), 0, 0, 6, 8)
    assert selected(page)["position"] == 0, "patches are chosen all the same"
    page.locator("select[aria-label=prompt]").select_option("1")
    page.wait_for_timeout(200)
    unharmed(page)


def test_what_is_over_the_picture_is_copied_as_its_figure(file_page, tmp_path):
    data = found()
    page = opened(file_page, tmp_path / "copied.html", data, at="prompt=3&layer=4&position=18&metric=norm")
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    before = page.locator(".wx").evaluate(SAID)
    page.locator(".wx-mosaic").press("c")
    page.wait_for_function("() => window.copied")
    line = page.evaluate("() => window.copied")
    tile = int(data["tile"][3, 18])
    assert line == f'reading.figure("overlay", layer=4, prompt=3, tile={tile}, value="norm")'
    from workbench import Reading

    assert eval(line, {"reading": Reading(data, {})}).plot.panels
    assert f"tile {tile}" in before
    unharmed(page)


def test_live_a_picture_comes_with_its_prompt(lab):
    make = (
        "from image_readings import found\nfrom workbench.widgets import explore\n"
        "explorer = explore(found(), saved_kb=12)\nexplorer"
    )
    page = lab.open([make], width=1300).run()
    explorer = page.cell(0).locator(".wx")
    explorer.locator(".wx-mosaic img:visible").wait_for()
    explorer.locator("select[aria-label=prompt]").select_option("3")
    explorer.locator(".wx-mosaic img:visible").wait_for()
    explorer.locator("select[aria-label=grid]:visible").wait_for()
    page.python("explorer.selection = {'prompt': 0, 'depth': 2, 'position': 5}")
    explorer.locator(".wx-panel h3", has_text="layer 2, row 0, column 5").wait_for()
    explorer.locator(".wx-mosaic").press("ArrowDown")
    explorer.locator(".wx-panel h3", has_text="row 1, column 5").wait_for()
    page.python("import time; time.sleep(0.3)")
    assert ast.literal_eval(page.python("print(dict(explorer.selection))"))["position"] == 13
    unharmed(page)
