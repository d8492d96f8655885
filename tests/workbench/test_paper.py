"""Figures on paper: type that can be read, tokens that stay tokens, several in one; no browser, no pixels."""

from __future__ import annotations

import inspect
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

import gallery
from extents import drawn_texts, faults
from extents import shown as said
from plotly.colors import sample_colorscale
from synthetic import embedding_lens, logit_attribution, logit_lens

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import Axis, Bars, Cells, Figure, Line, Panel, Plot, Points, Rule, chart, glyphs, paper
from workbench.figures.charts import charts
from workbench.figures.plot import together
from workbench.reading import Reading

NASTY = ["$x$", "\\frac", "<b>", "&lt;", "a\nb", "%{x}", "\u202eabc", "שלום", "\u200b", "e\u0301", "\u0301", "👩‍👧",
         "日本語", "العربية", "_{a}^{b}", "</script>"]  # fmt: skip
LONG = "a token of no less than sixty letters, of which this is number"


def renamed(data: Any, words: list[str]) -> Any:
    """The same reading of a tokenizer with other words."""
    vocab = np.array([words[i % len(words)] for i in range(data.sizes["vocab"])], object)
    ids = data["input_id"].values
    inputs = ("prompt", "position"), np.where(ids >= 0, vocab[ids], "")
    data = data.assign(vocab_token=("vocab", vocab), input_token=inputs)
    return data.assign_coords(target=[words[i] for i in range(data.sizes["target"])]) if "target" in data.dims else data


def reading(data: Any, model: str = "made-up_7B") -> Reading:
    return Reading(data.assign_attrs(model=model), {**gallery.ORIGIN, "reader": {"name": data.attrs["reader"]}})


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return gallery.gallery()


# ---------------------------------------------------------------- type


def test_the_gallery_holds_every_figure(figures):
    """Whoever adds a chart or a figure function adds it here, so that it is looked at on paper, too."""
    import probes.routing.figures
    import probes.superposition.features.figures
    import probes.superposition.figures
    import probes.values.figures

    kinds = set(charts())
    modules = probes.routing, probes.superposition, probes.superposition.features, probes.values
    for module in (m.figures for m in modules):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__annotations__.get("return") == "Plot":
                kinds.add(name)
    assert len(kinds) > 30 and kinds <= set(figures), f"no figure of {kinds - set(figures)} in gallery.py"


@pytest.mark.parametrize("venue, width", [("acl", 7.7 / 2.54), ("icml", 3.25), ("neurips", 5.5), (None, None)])
def test_no_text_of_any_figure_is_lost_hidden_or_too_small(figures, venue, width):
    found = {}
    for name in figures if venue in ("acl", None) else gallery.lens_figures():
        drawn = figures[name].matplotlib(venue=venue)
        assert width is None or drawn.get_figwidth() == pytest.approx(width), name
        found[name] = faults(drawn)
    assert not any(found.values()), {name: own for name, own in found.items() if own}


SHAPES = {
    "one position": {"lengths": (1,)}, "many positions": {"lengths": (200, 4)}, "one layer": {"layers": 1},
    "many layers": {"layers": 80}, "one cell": {"lengths": (1,), "layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["heatmap", "curves", "trajectory"])
@pytest.mark.parametrize("case", [*SHAPES, "long names", "hostile tokens"])
def test_no_text_is_lost_whatever_the_shape_and_the_names(kind, case):
    data = logit_lens(**SHAPES.get(case, {}), targets=None if case in SHAPES else [" Paris", " Rome", "日"])
    if case == "long names":
        data = renamed(data, [f"{LONG} {i}" for i in range(26)])
    if case == "hostile tokens":
        data = renamed(data, NASTY)
    figure = reading(data, "organisation/" + "a-very-long-name-" * 5).figure(kind)
    assert faults(figure.matplotlib(venue="acl")) == faults(figure.matplotlib()) == []


def test_no_text_of_bars_and_marks_is_lost():
    rng = np.random.default_rng(0)
    x = np.r_[np.zeros(8), rng.normal(0.5, 0.03, 4), np.full(7, 0.9)]
    y = np.r_[0.2 + 0.03 * np.arange(8), rng.normal(0.3, 0.03, 4), np.full(7, 0.85)]
    lines = [Line(range(40), rng.normal(i, 0.3, 40), f"line {i} of a long name", hue=i) for i in range(8)]
    shares, three = rng.random((3, 3)), Axis("expert", names=["first", "second", "third"])
    for figure in (
        chart(logit_attribution(blocks=90)),
        chart(logit_attribution().assign_coords(component=[f"{LONG} {i}" for i in range(14)])),
        Figure(Plot([Panel([*lines, *(Rule(i, name=f"rule {i:.1f}") for i in (0.5, 0.6))], "x", "y")])),
        Figure(Plot([Panel([Points(x, y, "runs", names=[f"name{i}" for i in range(19)])], "x", "y")])),
        Figure(Plot([Panel(lines, Axis("n", scale="log"), "y", title=f"topic {i} of 9") for i in range(9)], columns=3)),
        Figure(Plot([Panel([Cells(shares, bar="share of tokens going there")], three, three), Panel(lines, "x", "y")])),
        Figure(Plot([Panel([Bars(range(60), rng.random(60), colours=rng.random(60), bar="dimensions per feature")],
                           Axis("feature", names=[f"name {i}" for i in range(60)]), "norm")])),
    ):  # fmt: skip
        for venue in ("icml", None):
            assert faults(figure.matplotlib(venue=venue)) == []


def test_faults_are_found():
    figure = mpl.figure.Figure((2, 2))
    figure.text(0.9, 0.5, "leaves the figure", fontsize=5)
    figure.text(0.1, 0.2, "one")
    figure.text(0.1, 0.21, "two")
    figure.subplots().plot([1], label="a")
    figure.legend(loc="center")
    found = "\n".join(faults(figure))
    for part in ("5.00 pt: 'leaves the figure'", "outside of", "'one' at .* over 'two'", "Axes 0 .* over Legend"):
        assert re.search(part, found), (part, found)


def test_tokens_that_do_not_fit_are_numbered_all_or_none():
    for length, numbered in ((12, False), (120, True)):
        figure = chart(reading(logit_lens(lengths=(length,))))
        texts = said(figure.matplotlib("column", "icml"))
        assert ("Positions are numbered" in figure.caption()) == ("</script><scri…" not in texts) == numbered
        places = [int(t) for t in texts if t.isdigit()]
        assert not numbered or len(set(np.diff([p for p in places if p % 10 == 0]))) <= 2


def test_texts_of_cells_that_do_not_fit_are_said_and_a_part_has_them(tmp_path):
    wide = Reading(logit_lens(lengths=(30,)))
    with pytest.warns(UserWarning, match=r"30 columns .* some (\d+) would do") as heard:
        wide.figure().save(tmp_path / "x.pdf", venue="icml")
    (fit,) = map(int, re.findall(r"some (\d+) would do", str(heard[-1].message)))
    cells = len(said(wide.isel(position=slice(-fit, None)).figure().matplotlib(venue="icml")))
    bare = len(said(wide.figure(text=False).matplotlib(venue="icml")))
    assert cells > fit * wide.data.sizes["layer"] > bare


def test_lines_break_between_parts_then_words_then_letters():
    assert glyphs.broken("one · two · three", 6) == ["one · two ·", "three"]
    assert glyphs.broken("some words without parts", 8) == ["some words", "without parts"]
    lines = glyphs.broken("a" * 40, 8)
    assert "".join(lines) == "a" * 40 and max(map(glyphs.width, lines)) <= 8
    short = glyphs.cut("a" * 40, 8)
    assert glyphs.cut("abc", 9) == "abc" and short.endswith("a…") and glyphs.width(short) <= 8
    one = together(np.zeros(9), np.zeros(9), [f"n{i}" for i in range(9)], 1)
    assert one == ["n0, n1, n2, n3, n4, n5 and 3 more", *[""] * 8]


# ---------------------------------------------------------------- hostile tokens


def test_tokens_stay_tokens_and_are_never_boxes():
    """`$...$` is no formula, `<b>` no tag; a character that no font here has is written as its escape."""
    words = [*NASTY, "\U00013000", " naïve", "日"]
    data = renamed(logit_lens(lengths=(len(words),)), words)
    data["input_token"].values[0] = words
    with pytest.warns(UserWarning, match="No font on this machine has") if glyphs.missing(words) else nullcontext():
        figure = chart(data.isel(layer=slice(0, 4)), "heatmap")
        drawn = figure.matplotlib(36)
    for text in drawn_texts(drawn):
        held = [FT2Font(findfont(FontProperties(family=name))) for name in text.get_fontfamily()]
        lost = [c for c in text.get_text() if c != "\n" and not any(font.get_char_index(ord(c)) for font in held)]
        assert not lost, (text.get_text(), lost)
        assert not text.get_parse_math()
    shown = said(drawn)
    for word in words:
        assert glyphs.drawn(tokens.visible(word)) in shown, word
    assert {"$x$", "\\frac", "<b>", "&lt;", "a↵b", "%{x}", "\\u202eabc", "\\u200b"} <= set(shown)
    names = figure.layout.xaxis.ticktext
    assert "&lt;b&gt;" in names and "&amp;lt;" in names and "&#36;x&#36;" in names, "plotly has a markup of its own"
    assert glyphs.missing(["aé·↵∅…日"]) <= {"日"}


# ---------------------------------------------------------------- matplotlib


def test_a_figure_is_drawn_into_the_authors_axes():
    before, lines = dict(mpl.rcParams), chart(logit_lens(targets=[" Paris", " Rome"]), "curves")
    host = mpl.figure.Figure((9, 3))
    left, right, other = host.subplots(1, 3)
    other.plot([1, 2])
    sizes = host.get_size_inches().copy()
    assert chart(logit_lens()).matplotlib(ax=left) is left
    with pytest.raises(InputError, match=r"1 axes for 2 panels.*plt.subplots\(1, 2\)"):
        lines.matplotlib(ax=right)
    pair = host.subplots(1, 2)
    assert lines.matplotlib(ax=pair) is pair and [len(ax.lines) > 1 for ax in pair] == [True, True]
    assert len(other.lines) == 1 and (host.get_size_inches() == sizes).all() and dict(mpl.rcParams) == before
    assert left.findobj(QuadMesh) and left.get_ylabel() == "layer"


# ---------------------------------------------------------------- colours and hatching


def test_cells_have_the_colours_of_the_scale_and_chance_is_hatched():
    rng = np.random.default_rng(0)
    for scale, published in (("sequential", "Viridis"), ("reversed", "Viridis_r"), ("diverging", "RdBu_r")):
        values, hatched = rng.normal(size=(3, 5)), rng.random((3, 5)) > 0.5
        drawn = Figure(Plot([Panel([Cells(values, scale, hatched=hatched)])])).matplotlib(venue="icml")
        (mesh,) = drawn.findobj(QuadMesh)
        reach = np.abs(values).max()
        low, high = (-reach, reach) if scale == "diverging" else (values.min(), values.max())
        shares = ((values - low) / (high - low)).ravel().clip(1e-9, 1)
        wanted = sample_colorscale(published, shares.tolist(), colortype="tuple")
        np.testing.assert_allclose(mesh.get_facecolor()[:, :3], wanted, atol=0.02)
        middles = {tuple(np.round(np.mean(s, 0))) for c in drawn.findobj(LineCollection) for s in c.get_segments()}
        assert middles == {(c, r) for r, c in zip(*np.nonzero(hatched), strict=True)}


# ---------------------------------------------------------------- several in one


def spots(sheet: Any) -> list[Any]:
    """Boxes of the panels in points."""
    figure = sheet.matplotlib()
    figure.draw_without_rendering()
    scale = mpl.transforms.Affine2D().scale(72 / figure.dpi)
    return [ax.get_window_extent().transformed(scale) for ax in figure.axes if ax.get_label() != "<colorbar>"]


def test_panels_share_one_legend_and_stand_in_line():
    data = logit_lens(targets=[" Paris", " Rome"])
    own = [chart(data, "trajectory", position=i) for i in (2, 3, 4)]
    sheet = paper("neurips").grid([own[:2], [own[2], None]], share="legend")
    shown = said(sheet.matplotlib())
    assert [shown.count(t) for t in ("(a)", "(b)", "(c)", "(d)", "·Paris", "layer")] == [1, 1, 1, 0, 1, 3]
    a, b, c = spots(sheet)
    assert abs(a.y0 - b.y0) < 0.5 and abs(a.y1 - b.y1) < 0.5 and abs(a.x0 - c.x0) < 0.5 and c.y1 < a.y0
    assert sheet.matplotlib().get_figwidth() == 5.5 and faults(sheet.matplotlib()) == []
    apart = paper("neurips").grid([own], letters=["before any thought", "ii", "iii"])
    shown = said(apart.matplotlib())
    assert shown.count("·Rome") == 3 and "ii" in shown and faults(apart.matplotlib()) == []
    mixed = spots(paper("icml").grid([[chart(data, "heatmap"), own[0]]]))
    assert abs(mixed[0].y0 - mixed[1].y0) < 0.5 and abs(mixed[0].y1 - mixed[1].y1) < 0.5


def test_one_panel_over_two_places_and_a_height():
    lines, heat, bars = chart(logit_lens(), "curves", value="entropy"), chart(logit_lens()), chart(logit_attribution())
    sheet = paper("icml").grid([[lines, lines], [heat, bars]], height=4.5)
    top, left, right = spots(sheet)
    assert tuple(sheet.matplotlib().get_size_inches()) == (6.75, 4.5)
    assert top.x0 < left.x1 and top.x1 > right.x0 and faults(sheet.matplotlib()) == []


def test_panels_share_one_range_of_colours():
    own = [chart(logit_lens(), "heatmap", value="entropy", prompt=i) for i in range(2)]
    drawn = paper("acl").grid([own], share="colour").matplotlib()
    meshes = [m for m in drawn.findobj(QuadMesh) if m.axes.get_xlabel() or m.axes.get_yticks().size > 1][:2]
    values = np.concatenate([figure.plot.panels[0].marks[0].values.ravel() for figure in own])
    assert {m.get_clim() for m in meshes} == {(values.min(), values.max())} and said(drawn).count("entropy (nats)") == 1
    apart = paper("acl").grid([own]).matplotlib()
    assert said(apart).count("entropy (nats)") == 2 and faults(drawn) == faults(apart) == []


def test_what_cannot_be_shared_or_placed():
    page, a = paper("icml"), chart(logit_lens(targets=[" Paris", " Rome"]), "trajectory")
    with pytest.raises(InputError, match=r"rows of the same length.*\[2, 1\].*None"):
        page.grid([[a, a], [a]])
    with pytest.raises(InputError, match="no figure"):
        page.grid([[None]])
    with pytest.raises(InputError, match="holds Dataset"):
        page.grid([[logit_lens()]])
    with pytest.raises(InputError, match=r'share=.color.: only "colour"'):
        page.grid([[a]], share="color")
    with pytest.raises(InputError, match=r"'entropy.*'cosine.*one bar cannot stand for both"):
        page.grid([[chart(logit_lens(), "heatmap", value="entropy"), chart(embedding_lens())]], share="colour")
    other = Plot([Panel([Line([0, 1], [0, 1], "·Paris", hue="#123456")])])
    with pytest.raises(InputError, match=r"'·Paris' is .*#123456.*in panel 2 and"):
        page.grid([[a, other]], share="legend")
    with pytest.raises(InputError, match="too low for 2"):
        page.grid([[a], [a]], height=0.7)
    with pytest.raises(InputError, match=r"2 texts for 1 panels"):
        page.grid([[a]], letters=["a", "b"])



