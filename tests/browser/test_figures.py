"""Figures and exported notebooks in a real browser, where every label means harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from explored import MARKUP, NASTY
from explored import hostile as hostile_reading

import workbench
from workbench.figures import Figure, chart
from workbench.tokens import plain, visible

SHOTS = Path(__file__).resolve().parents[2] / "out" / "browser"
ALIEN = "img, iframe, object, mjx-container, .plot-container svg a, .plot-container svg [onload], .plot-container s"


def unharmed(page: Any) -> None:
    watched, inner = page.watched, getattr(page, "page", page)
    assert watched.dialogs == [] and watched.outside == [] and watched.errors == []
    assert inner.evaluate("() => window.hacked === undefined")


def named(kind: str) -> Iterator[tuple[str, Figure, list[str]]]:
    """Figures whose labels, experts, topics or candidates are hostile: (name, figure, texts that are seen)."""
    if kind == "lenses":
        tokens = ["<s>", "</b>", "<br>", "$$x^2$$", "&lt;"]
        yield "lens", chart(hostile.logit_lens()), tokens
        yield "latent", chart(hostile.latent_lens()), []
        yield "trajectory", chart(hostile.logit_lens(), "trajectory"), []
    if kind == "routing":
        from probes.routing import RoutingTracer
        from workbench.organisms.polyglot.grammar import documents

        texts = [text for language in "abc" for text in documents(6, language, seed=1)]
        tracer = RoutingTracer(labels=[x for x in "abc" for _ in range(6)], trace=True, scores=True)
        reading = workbench.read(workbench.load("organism:polyglot"), texts, tracer, progress=False)
        data, _, _ = hostile_reading("routing", reading)
        shown = workbench.Reading(data, reading.provenance)
        for name in ("usage", "layers", "entropy", "divergence", "gaps", "overlap"):
            said = [MARKUP + NASTY[0], NASTY[1]] if name in ("entropy", "divergence") else []
            yield f"routing-{name}", shown.figure(name), said
    if kind == "values":
        from probes.values import figures
        from probes.values.measures import drift, stance

        data, _, _ = hostile_reading("drift")
        topics = [MARKUP, NASTY[3]]
        yield "values-trajectories", figures.trajectories(stance(data)), topics
        table = drift(data)
        yield "values-drifts", figures.drifts(table), topics
        yield "values-times", figures.times(table), []
    if kind == "superposition":
        from probes.superposition import CandidateBelief, ContinuousThought, figures, think
        from probes.superposition.searcher import Questions

        questions = Questions(3)
        model = workbench.load("organism:searcher")
        reader = CandidateBelief(questions.names)
        read = think(model, questions.prompts, ContinuousThought(3), readers=[reader], then="=").readings[0]
        data, options, _ = hostile_reading("belief", read, questions.problems)
        seen = [name for name in options["problems"][0].names if len(name) < 20]
        yield "graph", figures.graph(options["problems"][0], data["belief"].values[0, -1]), seen
        yield "belief", workbench.Reading(data, read.provenance).figure("belief"), []


@pytest.mark.parametrize("kind", ["lenses", "routing", "values", "superposition"])
def test_hostile_names_in_figures(file_page, tmp_path, kind):
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name, figure, seen in named(kind):
        page = file_page(figure.save(tmp_path / f"{name}.html"), width=1500)
        page.locator(".plot-container .main-svg").first.wait_for()
        said = page.locator(".plot-container svg text").all_text_contents()
        for text in seen:
            forms = {visible(text), plain(text)}
            assert any(form in s or (s.rstrip("…") in form and s.endswith("…")) for form in forms for s in said), (
                name, text, said,
            )  # fmt: skip
        assert page.locator(ALIEN).count() == 0, name
        squeezed = page.evaluate(
            "() => { const all = [...document.querySelectorAll('.nsewdrag')].map((n) => n.getBoundingClientRect());"
            " return Math.min(...all.map((b) => b.width)); }"
        )
        assert squeezed > 90, (name, "names leave no room for the figure")
        width = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, name
        for point in page.locator(".plot-container .hoverlayer, .plot-container .nsewdrag").all()[:2]:
            box = point.bounding_box()
            if box and box["width"]:  # what is told under the pointer is made of the same texts
                page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
                page.wait_for_timeout(100)
        assert page.locator(ALIEN).count() == 0, name
        page.screenshot(path=SHOTS / f"hostile-figure-{name}.png")
        unharmed(page)


def test_hostile_figures_in_a_notebook(lab):
    cells = [
        "import hostile as h\nfrom explored import hostile\nfrom workbench.figures import chart\nchart(h.logit_lens())",
        "chart(h.latent_lens())",
        "from probes.values import figures\nfrom probes.values.measures import stance\n"
        "figures.trajectories(stance(hostile('drift')[0]))",
    ]
    live = lab.open(cells).run()
    for i in range(len(cells)):
        live.cell(i).locator(".jp-OutputArea-output img, .jp-OutputArea-output svg").first.wait_for()
    unharmed(live)


def test_a_notebook_of_hostile_texts_as_html(lab, file_page, tmp_path):
    """nbconvert's page: its own scripts come from the network, which is cut here; ours must not be needed."""
    from nbconvert import HTMLExporter

    cells = [
        "import hostile\nfrom workbench.widgets import explore\n"
        "explore({hostile.NAME: hostile.logit_lens(), '<b>latent</b>': hostile.latent_lens()})",
        "from explored import hostile as h\ndata, options, _ = h('drift')\nexplore(data, **options)",
        "data, options, _ = h('neighbours')\nexplore(data, **options)",
        "from workbench.figures import chart\nchart(hostile.logit_lens())",
    ]
    page = lab.open(cells).run()
    text, _ = HTMLExporter().from_notebook_node(page.save())
    path = tmp_path / "notebook.html"
    path.write_text(text, encoding="utf-8")
    exported = file_page(path, width=1300)
    tables = exported.locator(".wx-static table")
    tables.nth(2).wait_for()
    exported.wait_for_timeout(1000)
    assert exported.watched.dialogs == []
    assert exported.evaluate("() => window.hacked === undefined")
    statics = exported.locator(".wx-static")
    assert statics.locator("img, script, iframe, object, a, s, mjx-container").count() == 0
    said = "\n".join(statics.all_text_contents())
    for token in ("<s>", "</b>", "$\\LaTeX$", NASTY[0], NASTY[1][:20]):
        assert visible(token) in said or plain(token) in said, token
    for box in filter(None, (node.bounding_box() for node in statics.all())):
        assert box["x"] + box["width"] <= 1300
    exported.screenshot(path=SHOTS / "hostile-nbconvert.png", full_page=True)
