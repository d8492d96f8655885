"""The lens explorer in a real JupyterLab: live, without a kernel, in layouts, and with texts that mean harm."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import xarray as xr
from synthetic import embedding_lens, logit_attribution, logit_lens

from workbench.tokens import visible
from workbench.widgets import lens, to_html
from workbench.widgets.lens import shown

SHOTS = Path(__file__).parents[2] / "out" / "browser"
MAKE = """
from synthetic import embedding_lens, logit_attribution, logit_lens
from workbench.widgets import explore
explorer = explore(logit_lens())
explorer
"""


def explorer_in(page: Any, cell: int = 0) -> Any:
    """The live explorer of a cell, once it is drawn."""
    found = page.cell(cell).locator(".wx")
    found.locator(".wx-cell").first.wait_for()
    return found


def at(explorer: Any, row: int, column: int) -> Any:
    """The cell of a row (counted from the deepest shown) and a column that are in sight, from 1, as ARIA counts."""
    return explorer.locator(f".wx-row[aria-rowindex='{row}'] .wx-cell[aria-colindex='{column + 1}']")


def detail(explorer: Any) -> list[str]:
    """What the panel says, line by line."""
    return [line for line in explorer.locator(".wx-panel").first.inner_text().splitlines() if line.strip()]


def selection(page: Any) -> dict[str, Any]:
    return ast.literal_eval(page.python("print(dict(explorer.selection))"))


def unharmed(page: Any) -> None:
    """Nothing in the page ran, asked or fetched what a token said."""
    watched = page.watched
    inner = getattr(page, "page", page)
    assert watched.dialogs == [] and watched.outside == [] and watched.errors == []
    assert inner.evaluate("() => window.hacked === undefined")


# ---------------------------------------------------------------- live


def test_a_click_changes_the_detail_and_reaches_python(lab):
    page = lab.open([MAKE, "print(explorer.selection)"]).run()
    explorer = explorer_in(page)
    before = detail(explorer)
    at(explorer, 3, 4).click()  # seven layers: the third from the top is layer 4; the fourth column is position 3
    explorer.locator(".wx-panel h3", has_text="layer 4").wait_for()
    after = detail(explorer)
    assert after != before and after[0].startswith("layer 4, at <b> #3")

    data = logit_lens().isel(prompt=0).sel(layer=4, position=3)
    words = dict(zip(data["vocab"].values.tolist(), data["vocab_token"].values, strict=True))
    assert [visible(words[i]) for i in data["token_id"].values.tolist()] == [
        text.inner_text() for text in explorer.locator(".wx-bars .wx-one").all()
    ]
    numbers = [float(text.inner_text()) for text in explorer.locator(".wx-bars .wx-num").all()]
    np.testing.assert_allclose(numbers, data["logprob"].values, atol=5.1e-4)

    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    page.command("notebook:run-cell")
    page.idle()
    said = ast.literal_eval(page.cell(1).locator(".jp-OutputArea-output pre").inner_text())
    assert (said["reading"], said["prompt"], said["depth"], said["position"]) == (0, 0, 4, 3)
    assert said["token"] is None, "nobody follows one"
    page.shot("live-light")
    unharmed(page)


def test_python_sets_the_selection_and_the_view_follows(lab):
    page = lab.open([MAKE]).run()
    explorer = explorer_in(page)
    page.python("explorer.selection = {'prompt': 1, 'depth': 2, 'position': 5, 'metric': 'entropy'}")
    explorer.locator(".wx-panel h3", has_text="layer 2").wait_for()
    entropy = float(logit_lens()["entropy"].sel(prompt=1, layer=2, position=5))
    assert float(explorer.locator(".wx-cell.on").inner_text()) == pytest.approx(entropy, abs=0.0056)
    assert explorer.locator("select[aria-label=show]").input_value() == "entropy"
    assert selection(page)["panes"] == [[0, 1]]
    said = page.python("explorer.selection = {'depth': 99}")
    assert "InputError" in said and "99" in said and selection(page)["depth"] == 2
    unharmed(page)


def test_two_views_of_one_widget_agree(lab):
    page = lab.open([MAKE, "explorer"]).run()
    first, second = explorer_in(page, 0), explorer_in(page, 1)
    page.cell(0)
    at(first, 2, 2).click()
    second.locator(".wx-panel h3", has_text="layer 5").wait_for()
    assert detail(first) == detail(second)
    unharmed(page)


def test_keys_move_in_the_grid_and_not_in_the_notebook(lab):
    page = lab.open([MAKE, "1"]).run()
    explorer = explorer_in(page)
    at(explorer, 2, 2).click()
    cell = page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex")
    for key, place in (
        ("ArrowUp", (6, 1)), ("ArrowDown", (5, 1)), ("ArrowRight", (5, 2)), ("ArrowLeft", (5, 1)), ("Home", (5, 0)),
        ("End", (5, 13)),
    ):  # fmt: skip
        page.page.keyboard.press(key)
        explorer.locator(".wx-panel h3", has_text=f"#{place[1]}").wait_for()
        now = selection(page)
        assert (now["depth"], now["position"]) == place, key
    for key in "xb":  # in the notebook: cut this cell, one more below
        page.page.keyboard.press(key)
    assert page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length") == 2
    page.page.keyboard.press("p")
    explorer.locator(".wx-card").wait_for()
    assert selection(page)["pins"] == [{"reading": 0, "prompt": 0, "depth": 5, "position": 13}]
    page.page.keyboard.press("Enter")  # into the detail ...
    assert page.page.evaluate("() => document.activeElement.closest('.wx-bars') !== null")
    page.page.keyboard.press("Escape")  # ... and back
    page.page.keyboard.press("/")
    assert page.page.evaluate("() => document.activeElement.type") == "search"
    assert page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCellIndex") == cell
    assert page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.mode") == "command"
    unharmed(page)


def test_a_screen_reader_finds_a_grid(lab):
    page = lab.open([MAKE]).run()
    explorer = explorer_in(page)
    at(explorer, 1, 1).click()
    told = explorer.locator(".wx-grid").aria_snapshot()
    assert 'grid "LogitLens, layer by position.' in told and "- columnheader" in told and '- rowheader "6"' in told
    assert len(re.findall(r"- '?gridcell", told)) == 7 * 14 and "[selected]" in told
    grid = explorer.locator(".wx-grid")
    assert grid.get_attribute("aria-rowcount") == "8" and grid.get_attribute("aria-colcount") == "15"
    active = grid.get_attribute("aria-activedescendant")
    assert page.page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    unnamed = explorer.locator("button, select, input").evaluate_all(
        "(all) => all.filter((n) => n.offsetParent && !(n.getAttribute('aria-label') || n.textContent.trim())).length"
    )
    assert unnamed == 0
    assert "layer 6" in explorer.locator("[aria-live=polite]").inner_text()


def test_hidden_in_a_tab_at_first_and_in_boxes(lab):
    layouts = (
        "import ipywidgets as w\n"
        "one, two, three = (explore(logit_lens(lengths=(n,), layers=14)) for n in (14, 60, 30))\n"
        "tab = w.Tab([w.Label('nothing'), one], titles=['a', 'b'])\n"
        "w.VBox([w.Label('above'), w.HBox([two, w.Label('right')]), tab, w.Accordion([three])])"
    )
    page = lab.open([MAKE.replace("explorer\n", "", 1) + "\nNone", layouts], height=1700).run()
    cell = page.cell(1)
    two = cell.locator(".widget-hbox .wx").first
    two.locator(".wx-cell").first.wait_for()
    label, box = cell.get_by_text("right", exact=True).bounding_box(), two.bounding_box()
    assert box["width"] > 700 and box["x"] + box["width"] <= label["x"] + 1
    assert cell.locator(".widget-tab .wx-cell:visible").count() == 0
    cell.locator(".widget-tab .lm-TabBar-tab").nth(1).click()
    one = cell.locator(".widget-tab .wx")
    one.locator(".wx-cell.on:visible").wait_for()
    grid, chosen = one.locator(".wx-grid").bounding_box(), one.locator(".wx-cell.on").bounding_box()
    assert grid["width"] > 500 and grid["height"] > 100
    assert grid["x"] <= chosen["x"] and chosen["x"] + chosen["width"] <= grid["x"] + grid["width"] + 1
    panel = one.locator(".wx-panel").bounding_box()
    assert panel["x"] >= grid["x"] + grid["width"], "laid out for the width that it was given when shown"
    at(one, 1, 3).click()
    one.locator(".wx-panel h3", has_text="#2").wait_for()
    page.shot("layouts-light")
    unharmed(page)


def test_several_readings_side_by_side(lab):
    make = "explorer = explore([logit_lens(), embedding_lens(), logit_attribution()])\nexplorer"
    page = lab.open([MAKE.replace("explorer\n", "", 1), make], width=1700).run()
    explorer = explorer_in(page, 1)
    assert explorer.locator(".wx-pane").count() == 3, "as many as there is room for"
    boxes = [pane.bounding_box() for pane in explorer.locator(".wx-pane").all()]
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2 and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    at(explorer.locator(".wx-pane").nth(0), 2, 11).click()
    heads = explorer.locator(".wx-panel h3")
    heads.nth(1).get_by_text("layer 5").wait_for()
    third = explorer.locator(".wx-pane").nth(2)
    third.get_by_role("button", name="close this pane").click()
    explorer.get_by_role("button", name="show another reading").click()
    third.locator(".wx-panel h3", has_text="component").wait_for()
    assert selection(page)["panes"] == [[0, 0], [1, 0], [2, 0]]
    explorer.get_by_role("button", name="dim the cells").click()
    same = int((logit_lens()["token_id"][0, ..., 0] == embedding_lens()["token_id"][0, ..., 0]).sum())
    page.page.wait_for_timeout(300)
    second = explorer.locator(".wx-pane").nth(1)
    assert second.locator(".wx-cell.dim").count() <= same < second.locator(".wx-cell").count()
    page.shot("side-by-side-light")
    third.get_by_role("button", name="close this pane").click()
    assert selection(page)["panes"] == [[0, 0], [1, 0]]
    page.python("explorer.selection = {'panes': [[0, 0], [0, 1]], 'reading': 0, 'prompt': 1}")
    explorer.locator(".wx-pane.in select[aria-label=prompt]").get_by_text("1:").wait_for(state="attached")
    assert explorer.locator(".wx-pane.in select[aria-label=prompt]").input_value() == "1"
    unharmed(page)


def selected(page: Any) -> dict[str, Any]:
    """The selection in an offline page."""
    return page.evaluate("() => document.getElementById('explorer').model.get('selection')")


def focused(page: Any) -> str:
    """What has the keyboard: its classes and its text."""
    return page.evaluate("() => `${document.activeElement.className} ${document.activeElement.textContent}`")


def attribution_of_two() -> Any:
    """Contributions to two targets, and what they add up to."""
    parts = [logit_attribution(lengths=(14, 12, 9), seed=seed).drop_vars("target_id") for seed in (2, 3)]
    data = parts[0].assign({n: xr.concat([part[n] for part in parts], "target") for n in ("contribution", "logit")})
    data["logit"] += 12
    data["target_id"] = (("target",), np.array([15, 16], dtype="int32"))
    return data.assign_coords(target=[" red", " blue"])


def test_an_attribution_says_whose_logit_in_the_panel_in_pins_and_aloud(file_page, tmp_path):
    data = attribution_of_two()
    page = file_page(to_html(data, tmp_path / "parts.html"))
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    explorer.locator("select[aria-label=target]").select_option(label="·blue")
    at(explorer, 2, 5).click()
    explorer.locator(".wx-grid").press("p")
    here = data.sel(prompt=0, position=4, target=" blue")
    of = here["contribution"].to_series()
    assert explorer.locator(".wx-card h3").inner_text().startswith("prompt 0 · component mlp_out.5, at")
    assert "logit of ·blue" in explorer.locator(".wx-card h3").inner_text()
    strong = of.reindex(of.abs().sort_values(ascending=False).index)
    for box, n in ((".wx-card", 5), (".wx-panel", 12)):
        shown = explorer.locator(f"{box} .wx-num").all_inner_texts()
        np.testing.assert_allclose([float(x) for x in shown], strong[:n], atol=5.1e-4)
    facts = explorer.locator(".wx-panel .wx-facts").all_inner_texts()
    assert facts[0].startswith(f"contribution to the logit of ·blue {of['mlp_out.5']:.3f}")
    assert f"logit of ·blue {float(here['logit']):.3f}" in facts[0]
    assert facts[1] == "contribution to the logit of ·blue by component"
    at(explorer, 4, 5).click()
    live = f"contribution to the logit of ·blue {of['mlp_out.4']:.3f}"
    assert live in explorer.locator("[aria-live]").inner_text()
    explorer.locator(".wx-card .wx-bars button").nth(1).click()  # a line of the card goes to its part
    assert selected(page)["depth"] == strong.index[1] and "wx-go" not in focused(page)
    assert focused(page).endswith(f"{strong.index[1]}{strong.iloc[1]:.3f}"), "and stays under the keyboard"
    explorer.locator(".wx-depth", has_text="embed").click()
    explorer.locator(".wx-in").nth(7).click()
    assert (selected(page)["depth"], selected(page)["position"]) == ("embed", 7)
    explorer.locator(".wx-panel svg circle").nth(3).click(force=True)  # its line lies over it
    assert selected(page)["depth"] == "attn_out.1"
    assert explorer.get_by_role("searchbox").count() == 0, "there are no tokens to find"
    page.screenshot(path=SHOTS / "page-attribution.png", full_page=True)
    unharmed(page)


def test_a_token_is_followed_until_it_is_let_go(file_page, tmp_path):
    data = logit_lens()
    page = file_page(to_html(data, tmp_path / "lens.html"))
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    at(explorer, 1, 5).click()
    assert selected(page)["token"] is None
    explorer.locator(".wx-bars button").nth(1).click()
    token = int(data["token_id"].sel(prompt=0, layer=6, position=4, rank=1))
    text = visible(str(data["vocab_token"].values[token]))
    chip = explorer.get_by_role("button", name=f"following {text} ×")
    chip.wait_for()
    pressed = "() => document.activeElement.getAttribute('aria-pressed')"
    assert page.evaluate(pressed) == "true", "the keyboard is still on the bar"
    grid = explorer.locator(".wx-grid")
    for key in ("ArrowRight", "ArrowDown", "Home"):
        grid.press(key)
    assert (selected(page)["token"], selected(page)["position"]) == (token, 0)
    assert f" of {text} by layer" in explorer.locator(".wx-panel").inner_text()
    explorer.locator("select[aria-label=prompt]").select_option("1")
    assert selected(page)["token"] == token and chip.is_visible()
    grid.press("Escape")
    assert selected(page)["token"] is None and chip.is_hidden()

    explorer.locator("select[aria-label=prompt]").select_option("0")
    explorer.locator("select[aria-label=show]").select_option("entropy")
    at(explorer, 1, 14).click()  # the corner where a ring is cut most easily
    at(explorer, 3, 5).hover()
    here = data.sel(prompt=0, layer=4, position=4)
    top = visible(str(data["vocab_token"].values[int(here["token_id"][0])]))
    said = f"{top}, log-prob {float(here['logprob'][0]):.3f} nats; entropy {float(here['entropy']):.4f} nats"
    assert explorer.locator(".wx-hover").inner_text().endswith(said)
    assert float(at(explorer, 3, 5).inner_text()) == round(float(here["entropy"]), 4), "rounded once"
    here = data.sel(prompt=0, layer=6, position=13)
    assert f"log-prob of ·Paris {float(here['target_logprob']):.3f} nats (null" in " ".join(detail(explorer))
    assert "log-prob (nats); bars: probability" in detail(explorer)
    ring = explorer.locator(".wx-cell.on").evaluate("(n) => parseFloat(getComputedStyle(n).outlineOffset)")
    assert ring <= -2, "inside its cell, where the grid's edge does not cut it"

    grid.press("p")
    explorer.locator(".wx-panel h3 button", has_text="unpin").focus()
    page.keyboard.press("Enter")
    assert focused(page).strip() == "pin"
    grid.press("p")
    explorer.locator(".wx-card").get_by_role("button", name="unpin").focus()
    page.keyboard.press("Enter")
    assert focused(page).startswith("wx-grid"), "with the last card gone, the grid"
    grid.press("?")
    assert "Escape" in explorer.locator(".wx-keys").inner_text()
    grid.press("?")
    assert explorer.locator(".wx-keys").is_hidden()
    unharmed(page)


@pytest.mark.parametrize(("width", "panes"), [(900, 2), (1700, 3)])
def test_readings_are_opened_where_there_is_room_and_go_on_together(file_page, tmp_path, width, panes):
    lens, near, parts = logit_lens(), embedding_lens(), attribution_of_two()
    for other in (near, parts):
        other["prompt_text"] = ("prompt", [f"{i}, the same text" for i in range(3)])
    lens["prompt_text"] = near["prompt_text"]
    page = file_page(to_html([lens, near, parts], tmp_path / "three.html"), width=width)
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    assert explorer.locator(".wx-pane").count() == panes
    explorer.locator("select[aria-label=prompt]").first.select_option("1")
    together = [[i, 1] for i in range(panes)]
    assert selected(page)["panes"] == together
    explorer.get_by_role("button", name="show another reading").click()
    assert selected(page)["panes"] == [*together, [2, 1] if panes == 2 else [0, 0]], "the first that is not shown yet"
    explorer.locator(".wx-pane").last.get_by_role("button", name="close").click()
    assert selected(page)["panes"] == together and focused(page).startswith("wx-grid")
    page.evaluate("() => document.getElementById('explorer').model.set('selection', {reading: 0, prompt: 2})")
    prompts = explorer.locator("select[aria-label=prompt]").evaluate_all("(all) => all.map((s) => s.value)")
    assert prompts == ["2"] * panes
    page.screenshot(path=SHOTS / f"page-readings-{width}.png", full_page=True)
    unharmed(page)


def test_another_model_is_walked_through_alongside(file_page, tmp_path):
    """The same depth as a share, the same place in the text where a tokenizer cuts it differently."""
    one = logit_lens(lengths=(8,), layers=13).assign_attrs(model="large")
    other = logit_lens(lengths=(11,), layers=7).assign_attrs(model="small")
    pieces = {"a": ["<s>", "The", " cat", " sat", " on", " the", " mat", "."],
              "b": ["Th", "e", " cat", " s", "at", " on", " t", "he", " m", "at", "."]}  # fmt: skip
    for data, words in ((one, pieces["a"]), (other, pieces["b"])):
        data["input_token"][0] = words
        data["prompt_text"][0] = "The cat sat on the mat."
    page = file_page(to_html([one, other], tmp_path / "models.html"), width=1600)
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    first, second = explorer.locator(".wx-pane").nth(0), explorer.locator(".wx-pane").nth(1)
    for row, column, head in (
        (1, 8, "layer 6, at . #10"), (7, 3, "layer 3, at ·cat #2"), (13, 4, "layer 0, at at #4"),
        (5, 6, "layer 4, at he #7"), (13, 2, "layer 0, at e #1"),
    ):  # fmt: skip
        at(first, row, column).click()
        assert second.locator("h3 span").inner_text() == head
    at(second, 4, 10).click()  # layer 3 of 6 is layer 6 of 12; "at" ends " mat"
    assert first.locator("h3 span").inner_text() == "layer 6, at ·mat #6"
    unharmed(page)


def test_a_part_stands_beside_a_whole_at_the_same_place(file_page, tmp_path, monkeypatch):
    """What a notebook kept: of one reading the last positions only, of the other all of them."""
    monkeypatch.setattr(lens, "whole", lambda packers: lens.part(packers, 40_000))
    data = logit_lens(lengths=(90,), layers=24, top_k=8)
    few = data[["token_id", "input_id", "input_token", "input_position", "prompt_text", "vocab_token"]].isel(rank=[0])
    page = file_page(to_html([data, few.assign_attrs(reader="Few")], tmp_path / "part.html"), width=1600)
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    first, second = explorer.locator(".wx-pane").nth(0), explorer.locator(".wx-pane").nth(1)
    kept = int(first.locator(".wx-grid").get_attribute("aria-colcount")) - 1
    assert 8 <= kept < 90 and second.locator(".wx-grid").get_attribute("aria-colcount") == "91"
    assert f"the last {kept} of 90 positions" in explorer.locator(".wx-note").inner_text()
    at(first, 1, kept - 1).click()
    heads = [head.inner_text() for head in explorer.locator("h3 span").all()]
    assert heads[0] == heads[1] and heads[0].endswith("#88")
    at(second, 2, 90).click()
    heads = [head.inner_text() for head in explorer.locator("h3 span").all()]
    assert heads[0] == heads[1] and heads[0].endswith("#89")
    unharmed(page)


def test_opened_again_while_the_kernel_lives(lab):
    page = lab.open([MAKE]).run()
    at(explorer_in(page), 3, 4).click()
    page.reload(kernel=True)
    explorer = explorer_in(page)
    explorer.locator(".wx-panel h3", has_text="layer 4, at <b> #3").wait_for()
    assert page.cell(0).locator(".wx-static").is_hidden()
    at(explorer, 2, 2).click()
    explorer.locator(".wx-panel h3", has_text="layer 5").wait_for()
    assert selection(page)["depth"] == 5


def test_metrics_search_zoom_and_following(lab):
    page = lab.open([MAKE]).run()
    explorer, data = explorer_in(page), logit_lens().isel(prompt=0)
    words = data["vocab_token"].values
    wanted = " Paris"
    explorer.get_by_role("searchbox").fill("Paris")
    hit = data["token_id"].values == list(words).index(wanted)
    explorer.get_by_role("status").get_by_text(f"{hit.any(-1).sum()} cells, {hit[..., 0].sum()} on top").wait_for()
    page.page.wait_for_timeout(200)
    assert explorer.locator(".wx-cell.hit").count() == hit[..., 0].sum()
    assert explorer.locator(".wx-cell.near").count() == hit.any(-1).sum() - hit[..., 0].sum()
    explorer.get_by_role("searchbox").press("Enter")
    explorer.get_by_role("status").get_by_text("1 of").wait_for()
    explorer.get_by_role("searchbox").fill("")

    show = explorer.locator("select[aria-label=show]")
    names = [option.get_attribute("value") for option in show.locator("option").all()]
    assert names == ["top", "probability", "logprob", "entropy", "kl_to_final", "target_logprob", "target_rank"]
    at(explorer, 1, 1).click()
    for name in names[1:]:
        show.select_option(name)
        page.page.wait_for_function(f"() => document.querySelector('.wx-cell.on') && {json.dumps(name)}")
        page.page.wait_for_timeout(150)
        here = data.sel(layer=6, position=0)
        value = here["logprob"][0] if name in ("probability", "logprob") else here[name]
        value = np.exp(float(value)) if name == "probability" else float(value)
        assert float(explorer.locator(".wx-cell.on").inner_text()) == pytest.approx(value, abs=0.0056), name
    show.select_option("top")

    explorer.locator("select[aria-label^=lowest]").select_option(label="2")
    explorer.locator("select[aria-label^=highest]").select_option(label="4")
    page.page.wait_for_timeout(200)
    assert explorer.locator(".wx-depth").all_inner_texts() == ["4", "3", "2"]
    assert selection(page)["depths"] == [2, 4]
    page.python("explorer.selection = {'depths': None}")
    page.page.wait_for_timeout(300)
    assert explorer.locator(".wx-depth").count() == 7

    at(explorer, 1, 5).click()
    follow = explorer.locator(".wx-bars button").nth(1)
    follow.click()
    explorer.locator(".wx-bars button[aria-pressed=true]").wait_for()
    token = data["token_id"].sel(layer=6, position=4).values[1]
    assert selection(page)["token"] == token
    there = (data["token_id"].sel(position=4) == token).any("rank").sum()
    assert explorer.locator(".wx-panel svg circle").count() == int(there)
    unharmed(page)


def test_a_long_prompt_is_sent_when_it_is_looked_at(lab):
    make = "explorer = explore(logit_lens(lengths=(900, 700), layers=40))\nexplorer"
    page = lab.open([MAKE.replace("explorer\n", "", 1), make]).run()
    explorer = explorer_in(page, 1)
    page.page.wait_for_function("() => document.querySelector('.wx-note').textContent === ''")  # all is here
    grid = explorer.locator(".wx-grid")
    assert grid.get_attribute("aria-colcount") == "901"
    assert 100 < explorer.locator(".wx-cell").count() < 1500, "only what is in sight is drawn"
    grid.evaluate("(g) => { g.scrollLeft = 0; }")
    explorer.locator(".wx-in", has_text="</script>").first.wait_for()
    explorer.locator("select[aria-label=prompt]").select_option("1")
    explorer.locator(".wx-panel h3", has_text="#699").wait_for()
    assert grid.get_attribute("aria-colcount") == "701"
    assert len(ast.literal_eval(page.python("print(list(explorer.packed))"))) < 100_000
    unharmed(page)


# ---------------------------------------------------------------- without a kernel


def test_without_a_kernel_the_table_is_there(lab):
    page = lab.open([MAKE, "print('after')"]).run()
    explorer_in(page)
    assert page.cell(0).locator(".wx-static").is_hidden(), "while the widget lives, it is alone"
    page.reload(kernel=False)
    table = page.cell(0).locator(".wx-static table")
    table.wait_for()
    assert page.cell(0).locator(".wx").count() == 0
    page.page.wait_for_timeout(1500)  # JupyterLab finds out late that the widget is gone, and says so in its place
    assert page.cell(0).locator(".jp-OutputArea-child:visible").count() == 1, "the table alone, no failed widget"
    rows = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    data = logit_lens()
    words = data["vocab_token"].values
    assert rows == [[visible(words[i]) for i in line] for line in data["token_id"].values[0, ::-1, :, 0]]
    page.shot("no-kernel-light")


def test_with_its_state_saved_the_widget_works_without_a_kernel(lab):
    page = lab.open([MAKE], save_widgets=True).run()
    explorer = explorer_in(page)
    at(explorer, 4, 5).click()
    explorer.locator(".wx-panel h3", has_text="layer 3").wait_for()
    before = detail(explorer)
    page.reload(kernel=False)
    explorer = explorer_in(page)
    explorer.locator(".wx-panel h3", has_text="layer 3").wait_for()
    assert detail(explorer) == before, "the selection is part of the state"
    at(explorer, 2, 2).click()
    explorer.locator(".wx-panel h3", has_text="layer 5").wait_for()
    assert page.cell(0).locator(".wx-static").is_hidden()


def test_the_same_click_says_the_same_in_all_views(lab, file_page, tmp_path):
    page = lab.open([MAKE], save_widgets=True).run()
    explorer = explorer_in(page)
    offline = file_page(to_html(logit_lens(), tmp_path / "lens.html"))
    offline.locator(".wx-cell").first.wait_for()
    for row, column in ((1, 1), (3, 5), (7, 14), (4, 10)):
        depth, position = 7 - row, column - 1
        at(explorer, row, column).click()
        explorer.locator(".wx-panel h3", has_text=f"layer {depth}").wait_for()
        clicked = detail(explorer)
        at(offline.locator(".wx"), row, column).click()
        assert detail(offline.locator(".wx")) == clicked and len(clicked) > 10
        page.python("explorer.selection = {'depth': 0, 'position': 7}")
        explorer.locator(".wx-panel h3", has_text="layer 0").wait_for()
        page.python(f"explorer.selection = {{'depth': {depth}, 'position': {position}}}")
        explorer.locator(".wx-panel h3", has_text=f"layer {depth}, ").wait_for()
        explorer.locator(".wx-panel h3", has_text=f"#{position}").wait_for()
        assert detail(explorer) == clicked, "set from Python"
    last = detail(explorer)
    page.reload(kernel=False)
    explorer = explorer_in(page)
    at(explorer, 4, 10).click()
    assert detail(explorer) == last, "saved, without a kernel"


def test_ten_saved_explorers_are_small(lab):
    import nbformat
    from nbclient import NotebookClient

    big = "explore([logit_lens(lengths=(200, 100), layers=33, top_k=10), embedding_lens(lengths=(200,), layers=33)])"
    cells = [MAKE, *[big] * 10]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    paths = [str(Path(__file__).parents[1] / "workbench"), str(Path(__file__).parents[2])]
    notebook.cells[0].source = f"import sys; sys.path[:0] = {paths}\n" + MAKE
    NotebookClient(notebook, kernel_name="python3").execute()  # keeps the widgets' state
    text = nbformat.writes(notebook)
    assert len(text.encode()) < 3_000_000
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    explorers = [state for state in states.values() if state["model_module"] == "anywidget"]
    assert len(explorers) == 11 and max(len(json.dumps(state)) for state in explorers) < 300_000
    for cell in notebook.cells:
        for output in cell.outputs:
            assert len(json.dumps(output)) < 300_000
    page = lab.open(notebook, name="ten")  # from somebody else: not trusted, so no widget and no style
    tables = page.cell(0).locator("table")
    tables.first.wait_for()
    assert page.cell(0).locator("td").count() == 7 * 14
    page.shot("untrusted-light")
    unharmed(page)


# ---------------------------------------------------------------- texts that mean harm

HOSTILE = """
import hostile
from workbench.widgets import explore
explorer = explore({hostile.NAME: hostile.logit_lens(), "<b>latent</b>": hostile.latent_lens()})
explorer
"""
EXPECTED = [shown(token) for token in hostile.TOKENS]


def short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def all_there_and_in_place(explorer: Any) -> None:
    """Every token is in its cell, every cell in its slot, and nothing reaches beyond the explorer."""
    pane = explorer.locator(".wx-pane").first
    grid = pane.locator(".wx-grid")
    texts: dict[int, str] = {}
    lefts = list(range(0, grid.evaluate("(g) => g.scrollWidth"), 300))
    for turn, left in enumerate(3 * lefts):  # a busy machine may draw later than it is looked at
        if turn >= len(lefts) and len(texts) == len(EXPECTED):
            break
        grid.evaluate("(g, x) => { g.scrollLeft = x; g.dispatchEvent(new Event('scroll')); }", left)
        pane.page.wait_for_timeout(120)
        found = pane.evaluate(
            """(p) => [...p.querySelectorAll(".wx-row")].at(-1) && [...p.querySelectorAll(".wx-row")].flatMap((row) =>
              [...row.querySelectorAll(".wx-cell")].map((c) => [+row.getAttribute("aria-rowindex"),
                +c.getAttribute("aria-colindex") - 2, c.textContent, c.offsetLeft, c.offsetWidth, c.offsetHeight,
                c.childElementCount]))"""
        )
        for row, column, text, x, wide, high, children in found:
            assert (high, children) == (21, 0) and (x - 46) % (wide + 1) == 0
            if row == hostile.LAYERS:
                texts[column] = text
    assert [texts[i] for i in range(len(EXPECTED))] == [short(text) for text in EXPECTED]
    inside = explorer.evaluate(
        """(root) => {
          const box = root.getBoundingClientRect();
          const all = root.querySelectorAll(".wx-panel, .wx-panel *, .wx-tools *, .wx-head *, .wx-card *");
          const out = [...all].filter((n) => {
            const b = n.getBoundingClientRect();
            return b.width && (b.left < box.left - 1 || b.right > box.right + 1);
          });
          return [root.scrollWidth - root.clientWidth, out.length,
            root.querySelectorAll("img, script, iframe, object, embed, a, s, b, br, mjx-container").length,
            getComputedStyle(root).direction];
        }"""
    )
    assert inside == [0, 0, 0, "ltr"]


def through_details(explorer: Any) -> None:
    """The detail of every position, each at least once as a token, as a target and in a sentence."""
    grid = explorer.locator(".wx-grid").first
    explorer.locator(".wx-pane").first.locator(".wx-cell").first.click()
    grid.press("Home")
    for _ in range(hostile.LAYERS):
        grid.press("ArrowDown")
    for i, token in enumerate(EXPECTED):
        head = explorer.locator(".wx-panel h3").first.inner_text()
        assert head.startswith(f"layer 0, at {token if len(token) <= 240 else token[:240] + '…'} #{i}"), token
        top = explorer.locator(".wx-pane").first.locator(".wx-bars .wx-one").first
        assert top.text_content() == token
        marks = explorer.locator(".wx-pane").nth(1).locator(".wx-said mark").first.text_content()
        assert len(marks) <= 300
        grid.press("ArrowRight")


def test_hostile_texts_in_the_live_widget_and_after_it(lab):
    page = lab.open([HOSTILE, "1"], width=1300, height=1400).run()
    explorer = explorer_in(page)
    all_there_and_in_place(explorer)
    through_details(explorer)
    explorer.locator(".wx-grid").first.press("p")
    explorer.locator(".wx-card").wait_for()
    for i in range(4):
        explorer.locator("select[aria-label=target]").first.select_option(str(i))
    explorer.get_by_role("searchbox").fill("<script>")
    all_there_and_in_place(explorer)
    page.shot("hostile-light")
    unharmed(page)
    for trusted in (True, False):
        if trusted:
            page.reload(kernel=False)
        else:
            notebook = page.save()
            for cell in notebook.cells:
                cell.metadata.pop("trusted", None)
            notebook.cells[1].source = "'changed elsewhere'"
            notebook.cells[0].outputs[1].data["text/html"] += "<p>changed elsewhere</p>"  # the signature no longer fits
            page = lab.open(notebook, name="foreign")
        table = page.cell(0).locator(".wx-still table").first
        table.wait_for()
        page.page.wait_for_timeout(1500)  # typesetting comes late
        foot = table.locator("tfoot th").all_text_contents()[1:]
        cut = [t if len(t) <= 24 else t[:24] + "…" for t in hostile.TOKENS[-24:]]
        assert foot == [visible(t) for t in cut]
        assert page.cell(0).locator("mjx-container, img, script, iframe, s").count() == 0
        output = page.cell(0).locator(".jp-OutputArea").bounding_box()
        around = page.cell(0).locator(".wx-still").first.bounding_box()
        assert around["x"] + around["width"] <= output["x"] + output["width"] + 1
        page.shot(f"hostile-static-{'trusted' if trusted else 'foreign'}")
        unharmed(page)


def test_hostile_texts_in_the_page(file_page, tmp_path):
    readings = {hostile.NAME: hostile.logit_lens(), "<b>latent</b>": hostile.latent_lens()}
    page = file_page(to_html(readings, tmp_path / "hostile.html", title=hostile.NAME))
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    all_there_and_in_place(explorer)
    through_details(explorer)
    page.screenshot(path=SHOTS / "hostile-page.png")
    unharmed(page)


# ---------------------------------------------------------------- how it looks

CONTRAST = """
(root) => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c[3] > 0.5) return c;
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  for (const node of root.querySelectorAll("*")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.getClientRects().length || node.closest(".wx-live, style, option, .dim")) continue;
    const style = getComputedStyle(node), a = light(parse(node instanceof SVGElement ? style.fill : style.color));
    const b = light(ground(node)), ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.className.baseVal ?? node.className, node.textContent.slice(0, 20), ratio]);
  }
  return low;
}
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_readable_in_both_themes(lab, dark):
    make = "explorer = explore([logit_lens(), embedding_lens()])\nexplorer"
    page = lab.open([MAKE.replace("explorer\n", "", 1), make, "logit_lens_reading = None"], dark=dark).run()
    page.page.emulate_media(color_scheme="light" if dark else "dark")  # JupyterLab's theme decides, not the system's
    explorer = explorer_in(page, 1)
    explorer.locator(".wx-grid").first.press("p")
    explorer.locator(".wx-card").wait_for()
    assert page.page.evaluate("() => document.body.dataset.jpThemeLight") == str(not dark).lower()
    ground = explorer.evaluate("(root) => getComputedStyle(root).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark
    assert explorer.evaluate(CONTRAST) == []
    page.shot(f"theme-{'dark' if dark else 'light'}")
    page.reload(kernel=False)
    table = page.cell(1).locator(".wx-static")
    table.locator("td").first.wait_for()
    page.shot(f"theme-static-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("width", [420, 900, 1600])
def test_it_fits_its_window(file_page, tmp_path, width):
    readings = [logit_lens(lengths=(40, 12), layers=30), embedding_lens(lengths=(40, 12), layers=30)]
    page = file_page(to_html(readings, tmp_path / "fits.html"), width=width, dark=width == 900)
    explorer = page.locator(".wx")
    explorer.locator(".wx-cell").first.wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    outside = explorer.evaluate(
        "(root) => [...root.querySelectorAll('.wx-tools *, .wx-head *, .wx-panel *')].filter((n) =>"
        " n.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert outside == 0
    chosen, grid = (explorer.locator(name).first.bounding_box() for name in (".wx-cell.on", ".wx-grid"))
    assert chosen["x"] + chosen["width"] <= grid["x"] + grid["width"] and chosen["y"] >= grid["y"]
    axis = explorer.locator(".wx-axis").first.bounding_box()
    below = grid["y"] + grid["height"] - axis["y"] - axis["height"]
    assert 0 <= below < 20, "the prompt stays in sight below the layers"
    page.screenshot(path=SHOTS / f"page-{width}.png", full_page=True)
    unharmed(page)
