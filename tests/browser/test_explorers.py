"""The explorers of probes and lenses in a real browser: in JupyterLab, hidden first, without a kernel, in the dark."""

from __future__ import annotations

import ast
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from explored import hostile, neighbours, stances
from looks import CONTRAST, SAID
from synthetic import logit_lens

import probes.values.measures
import workbench
from workbench.widgets import dispatch

SHOTS = Path(__file__).resolve().parents[2] / "out" / "browser"
NAMES = ("routing", "belief", "drift", "neighbours")
DRAWN = ".wx-heat rect[role=gridcell], .wx-space .wx-line"
MAKE = {
    "routing": "import workbench\nexplorer = workbench.open({path!r}).explore()",
    "belief": "import workbench\nfrom probes.superposition.searcher import Questions\n"
    "explorer = workbench.open({path!r}).explore(problems=Questions(4).problems)",
    "drift": "from explored import stances\nfrom workbench.widgets import explore\n"
    "data, texts = stances()\nexplorer = explore(data, items=texts)",
    "neighbours": "from explored import neighbours\nfrom workbench.widgets import explore\n"
    "explorer = explore(neighbours(), 'neighbours')",
}
SET = {  # a selection from Python, and what the view says then
    "routing": ({"block": 1, "expert": 5}, ".wx-facts", "block 1, expert 5"),
    "belief": ({"position": 2, "layer": 1}, ".wx-panel h3", "2 thoughts, layer 1"),
    "drift": ({"topic": "topic 1", "from": 100, "to": 300}, "h3", "Items from 100 to 300, topic 1"),
    "neighbours": ({"text": "Schläger", "index_layers": [4]}, "[role=status]", "of 105 neighbours"),
}
CELL = ".wx-heat rect[role=gridcell]"
CLICKS = {  # marks that are clicked one after the other, each of which changes what is said
    "routing": [f"{CELL} >> nth=5", ".wx-token >> nth=3", f"{CELL} >> nth=20"],
    "belief": [".wx-node >> nth=4", f"{CELL} >> nth=2", ".wx-list li >> nth=3"],
    "drift": [f"{CELL} >> nth=7", ".wx-items > li >> nth=1"],
    "neighbours": [".wx-space .wx-line >> nth=3", ".wx-chips button >> nth=1", ".wx-space .wx-line >> nth=0"],
}
KEY = {  # what is focused, the key, and the part of the selection that it changes
    "routing": (".wx-heat svg >> nth=0", "ArrowRight", "expert"),
    "belief": (".wx-heat svg", "ArrowLeft", "position"),
    "drift": (".wx-grip >> nth=0", "ArrowRight", "from"),
    "neighbours": (".wx-table", "ArrowDown", "rank"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Readings by name, and the files of those that a model made."""
    from probes.routing import RoutingTracer
    from probes.superposition import CandidateBelief, ContinuousThought, think
    from probes.superposition.searcher import Questions
    from workbench.organisms.polyglot.grammar import documents

    folder = tmp_path_factory.mktemp("readings")
    texts = [text for language in "abc" for text in documents(4, language, seed=1)]
    tracer = RoutingTracer(labels=[language for language in "abc" for _ in range(4)], trace=True)
    routing = workbench.read(workbench.load("organism:polyglot"), texts, tracer, progress=False)
    questions = Questions(4)
    belief = CandidateBelief(questions.names)
    model = workbench.load("organism:searcher")
    found = think(model, questions.prompts, ContinuousThought(3), readers=[belief], then="=").readings[0]
    data, items = stances()
    return {
        "routing": (routing, {}, routing.save(folder / "routing.nc")),
        "belief": (found, {"problems": questions.problems}, found.save(folder / "belief.nc")),
        "drift": (data, {"items": items}, None),
        "neighbours": (neighbours(), {"kind": "neighbours"}, None),
    }


def unharmed(page: Any) -> None:
    assert page.watched.dialogs == [] and page.watched.outside == [] and page.watched.errors == []


def explorer_in(page: Any, cell: int = 0) -> Any:
    found = page.cell(cell).locator(".wx")
    found.locator(DRAWN).first.wait_for(state="attached")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_live_in_a_notebook_and_without_a_kernel(lab, saved, name):
    dark = name in ("belief", "neighbours")
    make = MAKE[name].format(path=str(saved[name][2])) + "\nexplorer"
    page = lab.open([make, "'after'"], dark=dark, width=1300).run()
    explorer = explorer_in(page)
    assert page.cell(0).locator(".wx-static").is_hidden(), "while the widget lives, it is alone"

    def selection() -> dict[str, Any]:
        return ast.literal_eval(page.python("print(dict(explorer.selection))"))

    given, where, says = SET[name]
    page.python(f"explorer.selection = {given!r}")
    explorer.locator(where, has_text=says).first.wait_for()
    assert given.items() <= selection().items()

    focus, key, part = KEY[name]
    before = selection()
    explorer.locator(focus).press(key)
    explorer.locator(focus).press("d")  # two of them would delete the cell
    explorer.locator(focus).press("d")
    page.page.wait_for_function("() => true")
    page.python("import time; time.sleep(0.3)")
    assert selection()[part] != before[part]
    assert page.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.cells.length") == 2
    assert explorer.evaluate(CONTRAST) == []
    ground = explorer.evaluate("(root) => getComputedStyle(root).backgroundColor")
    assert (sum(int(x) for x in ground.removeprefix("rgb(").rstrip(")").split(",")) < 200) == dark
    page.shot(f"{name}-lab-{'dark' if dark else 'light'}")
    unharmed(page)

    page.reload(kernel=False)
    table = page.cell(0).locator(".wx-static table")
    table.wait_for()
    assert page.cell(0).locator(".wx").count() == 0
    assert "Error displaying widget" not in page.cell(0).inner_text()
    assert table.locator("tbody tr").count() >= 3
    page.shot(f"{name}-static-{'dark' if dark else 'light'}")


def test_a_selection_from_python_is_what_is_shown_until_the_kernel_is_gone(lab, saved):
    page = lab.open([MAKE["routing"].format(path=str(saved["routing"][2])) + "\nexplorer"], width=1300).run()
    explorer = explorer_in(page)
    menus = """(root) => [...root.querySelectorAll("select")].filter((n) => n.getClientRects().length)
      .map((n) => n.value.split(":")[0])"""

    def shows(asked: dict[str, Any], *seen: str) -> None:
        page.python(f"explorer.selection = {asked!r}")
        page.page.wait_for_timeout(200)
        assert explorer.evaluate(menus) == list(seen)
        now = ast.literal_eval(page.python("print(dict(explorer.selection))"))
        told = [now["label"], now["compare"] or "–", now["prompt"], now["compare_prompt"]]
        assert [str(x) for x in told if x is not None] == list(seen)

    shows({"prompt": 9}, "c", "–", "9")
    shows({"block": 1}, "c", "–", "9")
    shows({"label": "b"}, "b", "–", "4")
    shows({"compare_prompt": 10}, "b", "c", "4", "10")
    shows({"expert": 2}, "b", "c", "4", "10")
    assert "compare='b' would stand beside itself" in page.python("explorer.selection = {'compare': 'b'}")
    explorer.locator(".wx-token").nth(3).click()
    shows({"position": 5}, "b", "c", "4", "10")
    assert explorer.locator(".wx-token.on").get_attribute("data-at") == "5"
    assert page.page.evaluate("() => document.activeElement.classList.contains('wx-token')"), "redrawn, and not lost"
    page.shot("routing-two-light")
    assert explorer.locator(".wx-gone").is_hidden()
    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    explorer.locator(".wx-gone").wait_for(state="visible")
    explorer.locator(".wx-token").nth(1).click()
    assert explorer.locator(".wx-token.on").get_attribute("data-at") == "1", "the view itself still answers"
    page.shot("routing-gone-light")
    unharmed(page)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_click_says_the_same_live_saved_and_as_a_page(lab, file_page, saved, tmp_path, name):
    reading, options, path = saved[name]
    page = lab.open([MAKE[name].format(path=str(path)) + "\nexplorer"], save_widgets=True, width=1300).run()
    offline = file_page(dispatch.to_html(reading, tmp_path / "page.html", **options), width=1300)
    offline.locator(DRAWN).first.wait_for(state="attached")
    live, said = explorer_in(page), ""
    for mark in CLICKS[name]:
        before = live.evaluate(SAID)
        live.locator(mark).click()
        offline.locator(".wx").locator(mark).click()
        said = live.evaluate(SAID)
        assert said != before
        assert offline.locator(".wx").evaluate(SAID) == said
    mark = CLICKS[name][0]
    live.locator(mark).hover()
    said = live.evaluate(SAID)
    page.reload(kernel=False)
    again = explorer_in(page)
    page.page.mouse.move(0, 0)
    again.locator(mark).hover()
    assert again.locator(".wx-gone").is_visible(), "nobody hears what is chosen now, and that is said"
    again.locator(".wx-gone").evaluate("(line) => line.remove()")
    assert again.evaluate(SAID).splitlines() == said.splitlines(), "as it was left, without a kernel"
    unharmed(offline)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_texts_live_and_without_a_kernel(lab, saved, name):
    path = saved[name][2]
    make = (
        f"import workbench\nfrom explored import hostile\nfrom workbench.widgets import explore\nname = {name!r}\n"
        f"reading = workbench.open({str(path)!r}) if {path is not None} else None\nproblems = None\n"
        "if name == 'belief':\n    from probes.superposition.searcher import Questions\n"
        "    problems = Questions(4).problems\n"
        "data, options, _ = hostile(name, reading, problems)\nexplorer = explore(data, **options)\nexplorer"
    )
    reading, options, _ = saved[name]
    _, _, seen = hostile(name, reading, options.get("problems"))
    page = lab.open([make, "'after'"], width=1300, height=1400).run()
    explorer = explorer_in(page)
    text = explorer.evaluate("(root) => root.textContent")
    assert [one for one in seen if one not in text] == []
    for mark in CLICKS[name]:
        explorer.locator(mark).click()
    cell = page.cell(0)
    bad = "img, script, iframe, object, embed, a[href], s, mjx-container, title:not(svg title)"
    for when in ("live", "static"):
        page.page.wait_for_timeout(1200 if when == "static" else 300)  # typesetting comes late
        assert cell.locator(".jp-OutputArea").locator(bad).count() == 0
        around, inner = cell.locator(".jp-OutputArea").bounding_box(), cell.locator(".wx, .wx-static").all()
        for box in filter(None, (node.bounding_box() for node in inner)):
            assert box["x"] + box["width"] <= around["x"] + around["width"] + 1
        page.shot(f"hostile-{name}-{when}")
        unharmed(page)
        assert page.page.evaluate("() => window.hacked === undefined")
        if when == "live":
            page.reload(kernel=False)
            cell = page.cell(0)
            cell.locator(".wx-static table").wait_for()


def test_hidden_in_tabs_at_first_all_of_them_are_drawn_when_shown(lab, saved):
    code = ["import ipywidgets", "found = []"]
    for name in NAMES:
        code += [MAKE[name].format(path=str(saved[name][2])), "found.append(ipywidgets.VBox([explorer]))"]
    code += ["tab = ipywidgets.Tab([ipywidgets.HTML('nothing here'), *found])", "tab"]
    page = lab.open(["\n".join(code)], width=1200).run()
    names = page.page.locator(".lm-TabBar-tab.p-TabBar-tab, .jupyter-widget-tab .lm-TabBar-tab")
    for i in range(1, 5):
        names.nth(i).click()
        shown = page.cell(0).locator(".wx").nth(i - 1)
        shown.locator(DRAWN).first.wait_for(state="attached")
        page.page.wait_for_function(
            "([i, what]) => { const root = document.querySelectorAll('.jp-Cell .wx')[i];"
            " const first = root.querySelector('.wx-heat svg, .wx-space').getBoundingClientRect();"
            " return root.clientWidth > 400 && first.width > 100 && root.querySelector(what); }",
            arg=[i - 1, DRAWN],
        )
        page.shot(f"tab-{NAMES[i - 1]}")
    unharmed(page)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [390, 900, 1500])
def test_a_page_fits_is_readable_and_is_drawn_when_shown(file_page, saved, tmp_path, name, width):
    reading, options, _ = saved[name]
    path = dispatch.to_html(reading, tmp_path / "page.html", **options)
    if width == 900:
        path.write_text(path.read_text("utf-8").replace('<main id="explorer">', '<main id="explorer" hidden>'), "utf-8")
    page = file_page(path, width=width, dark=width == 900)
    if width == 900:
        page.wait_for_timeout(200)
        page.evaluate("() => { document.getElementById('explorer').hidden = false; }")
    page.locator(DRAWN).first.wait_for(state="attached")
    page.wait_for_function(
        "() => document.querySelector('.wx-heat svg, .wx-space').getBoundingClientRect().width > 100"
    )
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator(".wx").evaluate(CONTRAST) == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}-page-{width}.png", full_page=True)
    unharmed(page)


@pytest.mark.parametrize("name", NAMES)
def test_every_control_is_reached_by_tab_and_shows_its_ring(file_page, saved, tmp_path, name):
    reading, options, _ = saved[name]
    page = file_page(dispatch.to_html(reading, tmp_path / "page.html", **options))
    page.locator(DRAWN).first.wait_for(state="attached")
    reached, seen = set(), []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const n = document.activeElement, s = getComputedStyle(n), halo = n.querySelector?.('.halo');"
            " return [n.tagName, n.getAttribute('aria-label') || n.textContent.slice(0, 30),"
            "  s.outlineStyle !== 'none' || (halo && getComputedStyle(halo).stroke !== 'none')]; }"
        )
        if found[0] == "BODY" or (found[0], found[1]) in reached:
            break
        reached.add((found[0], found[1]))
        seen.append(found)
    assert all(ring for _, _, ring in seen), [x for x in seen if not x[2]]
    said = " | ".join(label for _, label, _ in seen)
    wanted = {
        "routing": ["label", "beside", "block", "experts by block", "expert 0", "document", "#0, block 3"],
        "belief": ["prompt", "one place back", "play", "place", "layer", "belief ", "belief by layer and place"],
        "drift": ["show", "topic", "topics by checkpoint", "from checkpoint", "to checkpoint", "find in items"],
        "neighbours": ["prompt", "rank", "similarity from", "find in contexts", "all index layers", "neighbours;"],
    }[name]
    assert [w for w in wanted if w not in said] == []


# ---------------------------------------------------------------- what a page can do


def address(page: Any) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(page.evaluate("() => location.hash.slice(1)")))


def selected(page: Any) -> dict[str, Any]:
    return page.evaluate("() => document.getElementById('explorer').model.get('selection')")


LINKS = {  # what is opened, and what of it the selection holds after a move
    "routing": ("label=b&prompt=5&block=1&expert=2", {"label": "b", "prompt": 5, "block": 1}, ".wx-heat svg >> nth=0"),
    "belief": ("prompt=2&layer=1&position=3&node=n4", {"prompt": 2, "layer": 1, "node": "n4"}, ".wx-heat svg"),
    "drift": ("topic=topic 1&from=100&to=300", {"topic": "topic 1", "from": 200, "to": 300}, ".wx-grip >> nth=0"),
    "neighbours": ("only_layer=5&prompt=1&layer=5&position=4&rank=2", {"only_layer": 5}, ".wx-table"),
    "lens": ("prompt=1&layer=3&position=4&metric=entropy", {"prompt": 1, "depth": 3, "metric": "entropy"}, ".wx-grid"),
}


@pytest.mark.parametrize("name", LINKS)
def test_the_address_opens_a_place_and_follows_what_is_chosen(file_page, saved, tmp_path, name):
    reading, options, _ = saved[name] if name in saved else (logit_lens(), {}, None)
    path = dispatch.to_html(reading, tmp_path / "page.html", **options)
    asked, kept, focus = LINKS[name]
    page = file_page(path, at=asked)
    page.locator(f"{DRAWN}, .wx-cell").first.wait_for(state="attached")
    page.locator(focus).press("ArrowRight")
    now, told = selected(page), address(page)
    assert kept.items() <= now.items()
    assert all(str(now["depth" if key == "layer" and "depth" in now else key]) == value for key, value in told.items())
    assert {"prompt", "position"} & set(told) or name == "drift"
    again = file_page(path, at=urllib.parse.urlencode(told))
    again.locator(f"{DRAWN}, .wx-cell").first.wait_for(state="attached")
    assert again.locator(".wx").evaluate(SAID) == page.locator(".wx").evaluate(SAID), "the link says the same"
    unharmed(page)
    page.evaluate("() => { location.hash = '#prompt=999&layer=x&block=77&position=none&__proto__=1&topic=no"
                  "&depths=x&target=x&token=x&pins=3&panes=7&index_layers=x&least=x&text=5&sort=no&metric=no'; }")
    page.locator(focus).press("ArrowLeft")
    unharmed(page)


@pytest.mark.parametrize("name", LINKS)
def test_what_is_shown_is_copied_as_the_line_that_draws_it(file_page, saved, tmp_path, name):
    reading, options, _ = saved[name] if name in saved else (logit_lens(), {}, None)
    page = file_page(dispatch.to_html(reading, tmp_path / "page.html", **options), at=LINKS[name][0])
    page.locator(f"{DRAWN}, .wx-cell").first.wait_for(state="attached")
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    page.locator(LINKS[name][2]).press("c")
    page.wait_for_function("() => window.copied")
    line = page.evaluate("() => window.copied")
    assert page.locator(".wx-done").inner_text() == f"copied: {line}"
    assert line == {
        "routing": 'reading.figure("usage", label="b")', "belief": 'reading.figure("belief", prompt=2, layer=1)',
        "drift": 'probes.values.measures.drift(readings).figure("drifts")',
        "neighbours": 'reading.figure("heatmap", value="similarity", prompt=1)',
        "lens": 'reading.figure("heatmap", prompt=1, value="entropy")',
    }[name]  # fmt: skip
    reading = reading if hasattr(reading, "figure") else workbench.Reading(reading, {})
    assert eval(line, {"probes": probes, "reading": reading, "readings": reading}) is not None
    page.get_by_role("button", name="copy link").click()
    page.wait_for_function("() => window.copied.startsWith('file:')")
    assert page.evaluate("() => window.copied === location.href")
    page.locator(LINKS[name][2]).press("?")
    assert "Escape" in page.locator(".wx-keys").inner_text()
    unharmed(page)


@pytest.mark.parametrize(("width", "panes"), [(390, 3), (1280, 3)])
def test_three_checkpoints_stand_beside_each_other_or_below(file_page, tmp_path, width, panes):
    steps = {f"step {n}": logit_lens(seed=n) for n in (1000, 4000, 16000)}
    page = file_page(dispatch.to_html(steps, tmp_path / "steps.html"), width=width, dark=True)
    page.locator(".wx-cell").first.wait_for()
    titles = page.locator("select.wx-title").evaluate_all("(all) => all.map((n) => n.selectedOptions[0].textContent)")
    assert titles == list(steps)
    lefts = {round(box["x"]) for box in (grid.bounding_box() for grid in page.locator(".wx-grid").all())}
    assert len(lefts) == (1 if width == 390 else 3)
    assert page.locator(".wx-panel:visible").count() == (1 if width == 390 else 3)
    assert page.locator(".wx-scale:visible").count() == 1, "one scale for all"
    page.locator(".wx-pane").nth(1).locator(".wx-cell").first.click()
    page.locator(".wx-pane").nth(1).locator(".wx-grid").press("c")
    assert page.locator(".wx-done").inner_text().endswith("readings['step 4000'].figure(\"heatmap\", prompt=0)")
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.locator(".wx").evaluate(CONTRAST) == []
    unharmed(page)


def test_a_browser_that_cannot_inflate_is_told(file_page, tmp_path):
    path = dispatch.to_html(neighbours(), tmp_path / "old.html", kind="neighbours")
    path.write_text(path.read_text("utf-8").replace("<head>", "<head><script>delete DecompressionStream</script>"))
    page = file_page(path)
    page.get_by_text("cannot unpack").wait_for()
    assert page.locator(".wx").count() == 0
    unharmed(page)


def test_whoever_wants_no_motion_gets_steps(file_page, saved, tmp_path):
    reading, options, _ = saved["belief"]
    page = file_page(dispatch.to_html(reading, tmp_path / "still.html", **options))
    page.locator(DRAWN).first.wait_for(state="attached")
    moves = "() => getComputedStyle(document.querySelector('.disc')).transitionDuration"
    assert page.evaluate(moves) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moves) == "0s"
    page.get_by_role("button", name="play", exact=True).click()
    assert selected(page)["position"] == 1
    assert page.get_by_role("button", name="pause").count() == 0, "one step, and nothing runs"
    unharmed(page)
