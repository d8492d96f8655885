"""Figures on paper, judged by other programs: poppler reads the PDFs, an XML parser the svgs, fontTools the fonts."""

from __future__ import annotations

import base64
import inspect
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

import gallery
from fontTools.ttLib import TTFont
from plotly.colors import sample_colorscale

import workbench
from workbench.errors import InputError
from workbench.figures import Figure, drawing, naming, paper, theme, titles
from workbench.figures.charts import charts
from workbench.figures.drawing import browser
from workbench.figures.naming import name_points
from workbench.figures.output import LIMIT, size
from workbench.figures.titles import broken, fitted
from workbench.reading import Reading

pytestmark = pytest.mark.skipif(browser() is None, reason="no Chrome or Chromium to draw with")
needs_poppler = pytest.mark.skipif(
    not shutil.which("pdffonts"), reason="no poppler-utils (pdffonts, pdfinfo, pdftotext, pdftoppm) to read PDFs with"
)
SVG = "{http://www.w3.org/2000/svg}"


def told(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def page(pdf: Path) -> tuple[float, float]:
    """Width and height in points, of one page."""
    info = told("pdfinfo", pdf)
    assert re.search(r"Pages:\s+1\n", info)
    found = re.search(r"Page size:\s+([\d.]+) x ([\d.]+) pts", info)
    assert found
    return float(found[1]), float(found[2])


def words(pdf: Path) -> list[tuple[str, tuple[float, ...]]]:
    """Every word of a PDF and its box (x0, y0, x1, y1) in points from the page's upper left corner."""
    found = re.findall(
        r'xMin="(\S+)" yMin="(\S+)" xMax="(\S+)" yMax="(\S+)">(.*?)</word>', told("pdftotext", "-bbox", pdf, "-")
    )
    return [(unescape(text), tuple(map(float, box))) for *box, text in found]


def texts(svg: Path) -> list[str]:
    return ["".join(t.itertext()) for t in ElementTree.parse(svg).iter(f"{SVG}text")]


def named(figure: Figure) -> set[str]:
    """Words of the titles and names that a figure on paper must show, as plain text."""
    layout = figure.to_plotly_json()["layout"]
    said = [
        axis["title"]["text"]
        for n, axis in layout.items()
        if re.match("[xy]axis", n) and axis.get("title", {}).get("text")
    ]
    for trace in figure.to_plotly_json()["data"]:
        bar = trace.get("colorbar", {}).get("title", {}).get("text")
        said += [bar] * (bool(bar) and trace.get("showscale") is not False)
        said += [trace.get("name", "")] * (trace.get("showlegend") is True)
    return {unescape(word) for text in said for word in text.replace("<br>", " ").split()}


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return gallery.gallery()


@pytest.fixture(scope="module")
def saved(figures, tmp_path_factory) -> dict[str, tuple[Path, Path, list[str]]]:
    """Every figure a column of ICML wide: .pdf, .svg, and what was warned of."""
    folder, made = tmp_path_factory.mktemp("paper"), {}
    for i, (name, figure) in enumerate(figures.items()):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            sheet = paper("icml").grid([[figure]], width="column", letters=False)
            files = sheet.save(folder / f"{i}.pdf"), sheet.save(folder / f"{i}.svg")
        made[name] = (*files, [str(w.message) for w in heard])
    return made


# ---------------------------------------------------------------- widths


@pytest.mark.parametrize("venue, column, text", [
    ("neurips", 5.5, 5.5), ("iclr", 5.5, 5.5), ("icml", 3.25, 6.75), ("acl", 7.7 / 2.54, 16 / 2.54),
    ("84mm", 84 / 25.4, 84 / 25.4), (3.5, 3.5, 3.5), ("240pt", 240 / 72.27, 240 / 72.27),
])  # fmt: skip
@needs_poppler
def test_pages_are_exactly_as_wide_as_the_venue_says(tmp_path, venue, column, text):
    figure = gallery.lens().figure("curves")
    for width, inches in (("column", column), ("text", text)):
        assert page(paper(venue).save(figure, tmp_path / "x.pdf", width))[0] == pytest.approx(inches * 72, abs=0.05)
        svg = ElementTree.parse(paper(venue).save(figure, tmp_path / "x.svg", width)).getroot()
        assert float(svg.get("width", 0)) == pytest.approx(inches * 96, abs=0.05)
    assert page(paper(venue).save(figure, tmp_path / "x.pdf", height=2.2)) == pytest.approx(
        (column * 72, 158.4), abs=0.05
    )


def test_what_is_no_width():
    with pytest.raises(InputError, match=r"no venue.*acl, iclr, icml, neurips.*no width"):
        paper("nips")
    with pytest.raises(InputError, match=r"not a width in inches"):
        paper(240)
    with pytest.raises(ValueError, match="column"):
        paper("icml").width("page")


# ---------------------------------------------------------------- every figure


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
            if not name.startswith("_") and function.__annotations__.get("return") == "Figure":
                kinds.add(name)
    assert kinds <= set(figures), f"no figure of {kinds - set(figures)} in tests/workbench/gallery.py"


@needs_poppler
def test_fonts_are_in_the_pdf_and_are_truetype(saved):
    for name, (pdf, _, heard) in saved.items():
        rows = told("pdffonts", pdf).splitlines()[2:]
        assert rows, name
        for row in rows:
            embedded, subset, unicode = row.split()[-5:-2]
            # Colour emoji, where a font has them, come as Type 3 alone; who submits the paper has to know.
            assert embedded == unicode == "yes" and (subset == "yes" or "Type 3" in row), (name, row)
        assert any("Type 3" in row for row in rows) == any("Type 3" in text for text in heard), (name, rows)


@needs_poppler
def test_every_pdf_is_one_page_as_wide_as_the_column(saved):
    for name, (pdf, _, _) in saved.items():
        width, height = page(pdf)
        assert width == pytest.approx(3.25 * 72, abs=0.05) and 60 < height < 9.1 * 72, name


@needs_poppler
def test_labels_are_text_on_the_page_and_not_over_each_other(saved, figures):
    for name, (pdf, svg, heard) in saved.items():
        width, height = page(pdf)
        found = words(pdf)
        level, sizes = set(), set()
        for text in ElementTree.parse(svg).iter(f"{SVG}text"):
            turned = sum(map(float, re.findall(r"rotate\(([-\d.]+)", text.get("transform", ""))))
            level |= set("".join(text.itertext()).split()) if turned % 90 == 0 else set()
            sizes |= set(map(float, re.findall(r"font-size: ([\d.]+)px", ElementTree.tostring(text, "unicode"))))
        assert 6 * 96 / 72 <= min(sizes) and max(sizes) <= 8.01 * 96 / 72, (name, sizes, "type of 6 to 8 points")
        lacking = named(figures[name]) - {word for word, _ in found}
        # Characters that no font has are there as escapes.
        assert not {w for w in lacking if not drawing.missing(w)}, name
        for word, (x0, y0, x1, y1) in filter(_measured, found):
            assert x0 > -0.6 and y0 > -0.6 and x1 < width + 0.6 and y1 < height + 0.6, (name, word)
        found = [(word, box) for word, box in found if word in level]  # boxes of slanted words say little
        over = _overlaps(found)
        assert not over, (name, over)
        assert not any("overlap" in text for text in heard), (name, heard)


def _measured(word: tuple[str, tuple[float, ...]]) -> bool:
    """Poppler does not know how large ideographs and emoji are whose font is of Type 3."""
    return max(word[0]) < "\u2e80"


def _overlaps(found: list[tuple[str, tuple[float, ...]]]) -> list[tuple[str, str]]:
    """Words over each other."""
    known = list(filter(_measured, found))
    return [(a, b) for i, (a, p) in enumerate(known) for b, q in known[i + 1 :] if _over(p, q) > 0.3]


def _over(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Share of the smaller box that both cover."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(0.0, sides[0]) * max(0.0, sides[1]) / max(min(area), 1e-9)


@needs_poppler
def test_titles_are_within_their_figures_on_the_screen(tmp_path):
    data = gallery.logit_lens(lengths=(3, 4), targets=[" Paris"]).assign_attrs(model="organisation/a-model-of-13B")
    reading = Reading(data, gallery.ORIGIN)
    for kind, options in (("heatmap", {}), ("curves", {}), ("curves", {"value": "target_logprob"})):
        figure = reading.figure(kind, **options)
        file = figure.save(tmp_path / "x.pdf")
        width = page(file)[0]
        title = figure.layout.title.text.split()
        above = [(word, box) for word, box in words(file) if box[3] < fitted(figure).layout.margin.t * 0.75]
        assert [word for word, _ in above] == title and not _overlaps(above), "the plot stands below all lines"
        boxes = [box for _, box in above]
        assert all(0 <= x0 and 0 <= y0 and x1 <= width for x0, y0, x1, _ in boxes), (kind, options)
        assert len({round(box[1]) for box in boxes}) > 1
        assert "<br>" not in figure.layout.title.text and "a-model-of-13B ." not in figure.caption()


def test_no_text_of_any_figure_leaves_the_screen(figures):
    """With a name of a model as long as they are, whatever fonts are installed."""
    for name, figure in figures.items():
        figure = Figure(figure)
        long = "LogitAttribution · organisation/a-model-of-135M-Instruct"
        figure.layout.title.text = f"{long} · {figure.layout.title.text}"
        shown = fitted(figure)
        width, height = size(shown)
        assert width == size(figure)[0]
        for text in drawing.draw(shown.to_plotly_json(), width, height).texts:
            x, y, w, h = text["box"]
            if text["kind"] != "table":
                assert x > -1 and y > -1 and x + w < width + 1 and y + h < height + 1, (name, text)


def test_titles_break_between_parts_then_words_then_letters_and_never_in_markup():
    assert broken("one · two · three", 9) == ["one · two ·", "three"] == broken("one · two ·<br>three", 9)
    assert broken("some words without parts", 8) == ["some words", "without parts"]
    assert "".join(broken("a" * 40, 8)) == "a" * 40 and max(map(titles.width, broken("a" * 40, 8))) <= 8
    assert broken("&lt;" * 30, 8) == ["&lt;" * 8] * 3 + ["&lt;" * 6]
    lines = broken('x <span style="a b">y</span> ' * 4, 6)
    assert len(lines) > 1 and all(re.fullmatch("[xy ]*", re.sub("<span style=\"a b\">|</span>", "", x)) for x in lines)
    assert titles.width("<b>日</b>") == titles.width("日") > titles.width("m") >= titles.width("i")


def test_the_measure_of_titles_is_an_upper_bound():
    """Of the widest font that figures ask for, where it is installed: by the advances that its own file has."""
    found = subprocess.run(["fc-list", ":family=DejaVu Sans:style=Book", "file"], capture_output=True, text=True)
    if not (path := found.stdout.partition(":")[0].strip()):
        pytest.skip("DejaVu Sans is not installed")
    font = TTFont(path)
    advance, names, em = font["hmtx"], font.getBestCmap(), font["head"].unitsPerEm
    for text in ("what adds to the logit of ·red, 12.8", "HuggingFaceTB/SmolLM2-135M-Instruct", "ΔKL · МОСКВА · ±3 %"):
        real = sum(advance[names[ord(c)]][0] for c in text) / em
        assert real <= titles.width(text) <= 1.45 * real, text
    for char in map(chr, range(33, 127)):
        assert advance[names[ord(char)]][0] / em <= titles.width(char) + 1e-9, char


@needs_poppler
def test_names_of_points_stand_apart_and_are_all_there(tmp_path):
    """Points in a heap, in a column and in one place, as pairs of languages that share no words are."""
    rng = np.random.default_rng(0)
    x = np.r_[np.zeros(8), rng.normal(0.5, 0.03, 4), np.full(7, 0.9), np.nan]
    y = np.r_[0.2 + 0.03 * np.arange(8), rng.normal(0.3, 0.03, 4), np.full(7, 0.85), 0.5]
    names = [f"name{i}" for i in range(len(x))]
    for width in (3.25, None):
        figure = Figure().add_scatter(x=x, y=y, mode="markers").update_layout(width=520, height=400)
        assert name_points(figure, x, y, names, (-0.05, 1), (0, 1)) == 0
        found = words(figure.save(tmp_path / "x.pdf", width=width))
        written = [(word.strip(","), box) for word, box in found if word.startswith("name")]
        assert sorted(word for word, _ in written) == sorted(names[:-1])
        assert not _overlaps(found)
        # Each label is at its point, or there is a line to it: its head is where the point is.
        for note in figure.layout.annotations:
            own = [names.index(name) for name in note.text.replace("<br>", " ").split(", ")]
            assert np.hypot((x[own] - note.x) * 235 / 1.05, (y[own] - note.y) * 165).max() < 9, "pixels"
            assert (np.diff(y[own]) <= 0).all()
            assert note.showarrow == (note.ax is not None)
    # Where there is no room, names are left out, and how many is said.
    figure = Figure()
    x, y = rng.random((2, 90))
    left = name_points(figure, x, y, [f"a long name {i}" for i in range(90)], (0, 1), (0, 1))
    assert left == 90 - sum(note.text.count("a long name") for note in figure.layout.annotations) > 0


def test_a_label_of_very_many_says_how_many_more():
    assert naming._rows(["a-b", "c-d"]) == ["a-b, c-d"]
    rows = naming._rows([f"label {i}" for i in range(50)])
    assert len(rows) == naming.LINES and max(map(len, rows)) <= naming.LETTERS
    more = re.fullmatch(r"and (\d+) more", rows[-1])
    assert more and int(more[1]) + sum(row.count("label") for row in rows) == 50


def test_svgs_are_vectors_with_their_fonts(saved, figures):
    from fontTools.ttLib import TTFont

    for name, (_, svg, _) in saved.items():
        content = svg.read_text()
        root = ElementTree.fromstring(content)
        assert float(root.get("width", 0)) == pytest.approx(312), name
        assert not list(root.iter(f"{SVG}image")) and "foreignObject" not in content, (name, "cells are rectangles")
        faces = re.findall(r"@font-face\{font-family:'([^']+)';font-weight:\d+[^}]*base64,([^)]+)\)", content)
        held = {}
        for family, data in faces:
            with TTFont(io.BytesIO(base64.b64decode(data))) as font:
                held.setdefault(family, set()).update(map(chr, font.getBestCmap()))
        assert faces and all(f"'{family}'" in content.split("</style>")[1] for family in held), name
        shown = {c for text in texts(svg) for c in text if c.isprintable()}
        assert not shown - set().union(*held.values()), name
        said = {word for text in texts(svg) for word in text.split()}
        lacking = named(figures[name]) - said
        # In an svg the lines of a broken title stand together.
        assert not {w for w in lacking if not drawing.missing(w) and not any(w in text for text in texts(svg))}, name


@needs_poppler
def test_words_in_the_place_of_letters_stand_clear_of_legends(figures, tmp_path):
    sheet = paper("icml").grid(
        [[figures["trajectory"], figures["rates"]]], letters=["before any thought", "after three of them"]
    )
    found = words(sheet.save(tmp_path / "words.pdf"))
    assert {"before", "thought", "after", "them"} <= {word for word, _ in found}
    heads = [box for word, box in found if word in ("thought", "them")]
    others = [box for word, box in found if word in ("·Paris", "·Rome", "logit", "latent")]
    assert others and max(box[3] for box in heads) <= min(box[1] for box in others) + 0.5


@needs_poppler
def test_tokens_that_do_not_fit_are_said_and_a_part_has_them(tmp_path):
    from synthetic import logit_lens

    wide = workbench.Reading(logit_lens(lengths=(30,)))
    with pytest.warns(UserWarning) as heard:
        wide.figure().save(tmp_path / "wide.pdf", width="column", venue="icml")
    said = "\n".join(str(w.message) for w in heard)
    found = re.search(r"Tokens are left out .* 3.25 inches. 30 columns .* some (\d+) would do", said)
    assert found, said
    fit = int(found[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Tokens are left out")
        wide.figure(text=False).save(tmp_path / "bare.pdf", width="column", venue="icml")
        part = wide.isel(position=slice(-fit, None))
        part.figure().save(tmp_path / "part.pdf", width="column", venue="icml")
    counts = [len(words(tmp_path / name)) for name in ("bare.pdf", "part.pdf")]
    assert counts[1] > fit * part.data.sizes["layer"]


@needs_poppler
def test_tokens_stay_tokens(saved):
    """`$...$` is no formula, `<s>` no tag; a character that no font here has is its escape, and a warning says so."""
    pdf, svg, heard = saved["cosine"]
    shown = [word for word, _ in words(pdf)]
    assert {"<s>", "<br>", "&lt;", "$x$", "%{x}", "-->"} <= set(shown) and {"<s>", "$x$"} <= set(texts(svg))
    assert "mathjax" not in svg.read_text().lower()
    here = {c: not told("fc-list", f":charset={ord(c):x}").strip() for c in "日🙂"} if shutil.which("fc-list") else {}
    for char, lost in here.items():
        assert (char in drawing.missing("日🙂a")) == lost
    if here.get("🙂"):
        assert "\\U0001f642" in shown and any("🙂" in text and "fonts-" in text for text in heard)
    assert not drawing.missing("aé·↵∅…")


def test_a_character_without_a_font_is_never_a_box(tmp_path):
    rare = "\U00013000"  # an Egyptian hieroglyph
    if not drawing.missing(rare):
        pytest.skip("a font on this machine has Egyptian hieroglyphs")
    figure = Figure().add_scatter(x=[1, 2], y=[1, 2], name=f"<{rare}>".replace("<", "&lt;"), showlegend=True)
    with pytest.warns(UserWarning, match=r"No font on this machine has \U00013000 .*\\U00013000.*fonts-") as heard:
        svg = figure.save(tmp_path / "x.svg", width="column")
    assert heard[0].filename == __file__, "the warning points here, not into the library"
    assert "<\\U00013000>" in texts(svg) and rare not in svg.read_text()
    text = figure._repr_mimebundle_()[0]["text/plain"]
    assert "\\U00013000" in text and rare in text


# ---------------------------------------------------------------- colours and hatching


def fills(svg: Path | str) -> list[str]:
    """Fills of a heatmap's cells, row by row."""
    content = svg if isinstance(svg, str) else svg.read_text()
    root = ElementTree.fromstring(content)
    return [r.get("fill", "") for g in root.iter(f"{SVG}g") if g.get("class") == "hm" for r in g.iter(f"{SVG}rect")]


def expected(z: np.ndarray, scale: str, low: float, high: float) -> np.ndarray:
    shares = ((np.asarray(z, float) - low) / (high - low)).ravel()
    return np.array(sample_colorscale(scale, shares.clip(1e-9, 1).tolist(), colortype="tuple")) * 255


def rgb(fill: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", fill)]


def test_cells_have_the_colours_of_the_scale(saved, figures):
    z = np.array(figures["entropy of the lens"].data[0].z, float)
    got = np.array([rgb(f) for f in fills(saved["entropy of the lens"][1])])
    np.testing.assert_allclose(got, expected(z, "Viridis_r", z.min(), z.max()), atol=2)
    pairs = np.array(figures["divergence"].data[0].z, float)
    assert len(fills(saved["divergence"][1])) == np.isfinite(pairs).sum(), "no cell where there is no number"


@needs_poppler
def test_diverging_colours_are_centred_and_what_is_chance_is_hatched(saved, figures, tmp_path):
    pdf, svg, _ = saved["drifts"]
    cells = figures["drifts"].data[0]
    z, hatched = np.array(cells.z, float), np.array(cells.text) == theme.HATCH
    reach = np.abs(z).max()
    got = np.array([rgb(f) for f in fills(svg)])
    np.testing.assert_allclose(got, expected(z, "RdBu_r", -reach, reach), atol=2)
    assert (got[z.ravel() == 0] == 247).all(), "0 is the middle of the scale"
    root = ElementTree.parse(svg).getroot()
    marks = [p for p in root.iter(f"{SVG}path") if p.get("class") == "hatch"]
    assert len(marks) == hatched.sum() and 0 < hatched.sum() < hatched.size
    assert theme.HATCH not in told("pdftotext", pdf, "-")
    # On the printed page: lines across hatched cells, one even colour in the others.
    from PIL import Image

    told("pdftoppm", "-r", 300, "-png", "-singlefile", pdf, tmp_path / "page")
    with Image.open(tmp_path / "page.png") as image:
        dots = np.asarray(image.convert("RGB"), float)
    boxes = _cells(svg)
    for (x, y, w, h), lines in zip(boxes, hatched.ravel(), strict=True):
        k = 300 / 96
        inner = dots[int((y + 2) * k) : int((y + h - 2) * k), int((x + 2) * k) : int((x + w - 2) * k)]
        assert (np.ptp(inner, axis=(0, 1)).max() > 40) == lines


def _cells(svg: Path) -> list[tuple[float, ...]]:
    """Boxes of the cells in pixels of the whole svg: browsers' own arithmetic of nested svgs and groups, by hand."""
    found: list[tuple[float, ...]] = []

    def walk(node: ElementTree.Element, x: float, y: float, cells: bool) -> None:
        if node.tag == f"{SVG}svg" and node.get("x"):
            x, y = x + float(node.get("x", 0)), y + float(node.get("y", 0))
        if move := re.match(r"translate\(([-\d.]+),\s*([-\d.]+)\)", node.get("transform", "")):
            x, y = x + float(move[1]), y + float(move[2])
        if cells and node.tag == f"{SVG}rect":
            own = [float(node.get(k, 0)) for k in ("x", "y", "width", "height")]
            found.append((x + own[0], y + own[1], own[2], own[3]))
        for child in node:
            walk(child, x, y, cells or node.get("class") == "hm")

    walk(ElementTree.parse(svg).getroot(), 0, 0, False)
    return found


def test_very_many_cells_are_one_dot_each():
    z = np.random.default_rng(0).random((150, 200))
    figure = Figure().add_heatmap(z=z, colorscale="Viridis", zmin=0, zmax=1, showscale=False)
    svg = paper("icml").grid([[figure]], letters=False).svg
    image = next(ElementTree.fromstring(svg).iter(f"{SVG}image"))
    from PIL import Image

    data = next(v for k, v in image.attrib.items() if k.endswith("href")).split("base64,")[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        dots = np.asarray(picture.convert("RGB"), float)
    assert dots.shape == (150, 200, 3), "as many dots as numbers, the first row below"
    np.testing.assert_allclose(dots[::-1].reshape(-1, 3), expected(z, "Viridis", 0, 1), atol=2)


# ---------------------------------------------------------------- panels


@needs_poppler
def test_panels_share_one_legend_and_stand_in_line(tmp_path):
    own = [gallery.lens().figure("trajectory", prompt=i) for i in range(3)]
    sheet = paper("neurips").grid([own[:2], [own[2], None]], share="legend")
    found = words(sheet.save(tmp_path / "x.pdf"))
    shown = [word for word, _ in found]
    assert [shown.count(w) for w in ("(a)", "(b)", "(c)", "(d)")] == [1, 1, 1, 0]
    assert shown.count("·Paris") == shown.count("·Rome") == 1 and shown.count("layer") == 3
    assert page(tmp_path / "x.pdf")[0] == pytest.approx(396, abs=0.05)
    at = {word: box for word, box in found if word in ("(a)", "(b)", "(c)")}
    assert at["(a)"][1] == pytest.approx(at["(b)"][1], abs=0.1) and at["(a)"][0] == pytest.approx(at["(c)"][0], abs=0.1)
    titles = sorted((box for word, box in found if word == "layer"), key=lambda b: (b[1], b[0]))
    assert titles[0][1] == pytest.approx(titles[1][1], abs=0.5) and titles[2][1] > titles[0][1] + 50
    assert titles[0][0] == pytest.approx(titles[2][0], abs=0.5), "axes of a column begin at the same place"
    wide, narrow = (Figure().add_scatter(x=[0, 1], y=[0, top]) for top in (1, 1e6))
    for figure, name in ((wide, "alpha"), (narrow, "beta")):
        figure.update_layout(template="workbench", xaxis_title=name, yaxis_tickformat=",")
    middle = {w: box[0] + box[2] for w, box in words(paper(2).grid([[wide], [narrow]]).save(tmp_path / "z.pdf"))}
    assert middle["alpha"] == pytest.approx(middle["beta"], abs=1), "one has longer numbers beside it"
    alone = words(paper("neurips").grid([own]).save(tmp_path / "y.pdf"))
    assert [word for word, _ in alone].count("·Rome") == 3
    bold = [row for row in told("pdffonts", tmp_path / "x.pdf").splitlines() if "Bold" in row]
    assert bold and "yes yes yes" in bold[0]


@needs_poppler
def test_panels_share_one_range_of_colours(tmp_path):
    own = [gallery.lens().figure("heatmap", value="entropy", prompt=i) for i in range(2)]
    sheet = paper("acl").grid([own], share="colour")
    file = sheet.save(tmp_path / "x.pdf")
    shown = [word for word, _ in words(file)]
    assert shown.count("entropy") == 1 and page(file)[0] == pytest.approx(16 / 2.54 * 72, abs=0.05)
    assert not _overlaps(words(file)), "the bar's title stands beside its numbers"
    z = np.concatenate([np.array(f.data[0].z, float).ravel() for f in own])
    got = np.array([rgb(f) for f in fills(sheet.svg)])
    np.testing.assert_allclose(got, expected(z, "Viridis_r", z.min(), z.max()), atol=2)
    apart = np.array([rgb(f) for f in fills(paper("acl").grid([own]).svg)])
    assert (apart != got).any(), "each by itself has its own range"
    signed = gallery.gallery()["drifts"]
    reach = np.abs(np.array(signed.data[0].z, float)).max()
    both = paper("acl").grid([[signed, Figure(signed)]], share="colour")
    np.testing.assert_allclose(
        [rgb(f) for f in fills(both.svg)][:15],
        expected(np.array(signed.data[0].z), "RdBu_r", -reach, reach),
        atol=2,
    )


def test_a_shared_bar_stands_beside_cells_alone():
    lens = gallery.lens()
    cells, lines = lens.figure("heatmap", value="entropy"), lens.figure("curves")

    def bar(rows: list[list[Figure]]) -> tuple[float, float]:
        """Upper and lower end of the colour bar."""
        sheet = paper("acl").grid(rows, share="colour", letters=False)
        svg = ElementTree.fromstring(sheet.svg).findall(f"{SVG}svg")[-1]
        return float(svg.get("y", 0)), float(svg.get("y", 0)) + float(svg.get("height", 0))

    alone = bar([[cells, Figure(cells)]])
    for rows in ([[cells, Figure(cells)], [lines, lines]], [[cells, lines]]):
        assert np.ptp(bar(rows)) < 1.4 * np.ptp(alone)
    below = bar([[lines, lines], [cells, Figure(cells)]])
    assert below[0] > alone[1] and np.ptp(below) == pytest.approx(np.ptp(alone), rel=0.4)


@needs_poppler
def test_one_panel_over_two_places_and_a_height(tmp_path):
    a, b, c = (gallery.gallery()[name] for name in ("curves", "rates", "attribution"))
    file = paper("icml").grid([[a, a], [b, c]], height=4.5, letters=["i", "ii", "iii"]).save(tmp_path / "x.pdf")
    assert page(file) == pytest.approx((486, 324), abs=0.05)
    found = words(file)
    assert {"i", "ii", "iii"} <= {word for word, _ in found}
    right = max(box[2] for word, box in found if word == "layer" and box[1] < 162)
    assert right > 330, "the first panel reaches over both columns"


def test_what_cannot_be_shared_or_placed(figures):
    page_, a = paper("icml"), figures["trajectory"]
    with pytest.raises(InputError, match=r"rows of the same length.*\[2, 1\].*None"):
        page_.grid([[a, a], [a]])
    with pytest.raises(InputError, match="no figure"):
        page_.grid([[None]])
    with pytest.raises(InputError, match="holds Dataset"):
        page_.grid([[gallery.lens().data]])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r'share=.color.: only "colour"'):
        page_.grid([[a]], share="color")
    with pytest.raises(InputError, match=r"'share'.*'tokens'.*one bar cannot stand for both"):
        page_.grid([[figures["usage"], figures["gate"]]], share="colour")
    with pytest.raises(InputError, match="second colour bar"):
        page_.grid([[figures["gram"]]], share="colour")
    other = Figure(a)
    other.data[0].line.color = "#123456"
    with pytest.raises(InputError, match=r"'·Paris' is .*#123456.*in panel 2 and"):
        page_.grid([[a, other]], share="legend")
    with pytest.raises(InputError, match="too low for 2"):
        page_.grid([[a], [a]], height=0.7)
    with pytest.raises(InputError, match=r"2 texts for 1 panels"):
        page_.grid([[a]], letters=["a", "b"])


# ---------------------------------------------------------------- captions


def test_captions_say_what_the_reading_says():
    said = (
        r"Log-prob of target after \textless{}b\textgreater{} (\#3), prompt 0 of 3. Model: \texttt{made-up\_7B} "
        r"(fingerprint \texttt{0f1e2d3c4b5a6978}, bfloat16). Reader: LogitLens (at resid, top k 5, precision fp32). "
        "Data: 3 prompts. Null: median log-probability of target under the states of other positions."
    )
    figure, dated = gallery.lens().figure("trajectory", position=3), " Read on 2026-01-02 with latent-workbench 0.1.0."
    assert figure.caption() == said and figure.caption(date=True) == said + dated
    shown = "LogitLens · made-up_7B · log-prob of target after <b> (#3) · prompt 0 of 3"
    assert repr(figure).startswith(f"<Figure '{shown}': ")
    bare = gallery.attributed().figure().caption()
    assert "names no null and no interval of what is shown" in bare and "Null" not in bare
    part = Reading(gallery.lens().data, {**gallery.ORIGIN, "prompts_read": 2}).figure().caption()
    assert "Data: 2 of 3 prompts." in part
    from probes.routing.figures import forest

    table = gallery.effects()
    said = r"What dropping experts costs. Model: \texttt{planted}. Data: 60 documents."
    assert forest(table).caption(table) == forest(table).caption() == said
    with pytest.raises(InputError, match=r"does not know what it is of.*figure.caption\(reading\)"):
        Figure().caption()


OWN = "target_logprob"


def test_captions_of_panels_say_once_what_is_common():
    lens, near = gallery.lens(), gallery.near()
    panels = [lens.figure("curves", value=OWN), lens.figure("heatmap", prompt=2, value=OWN)]
    text = paper("icml").grid([panels]).caption()
    assert text.startswith(
        r"\textbf{(a)} Mean over positions, points: each of 3 prompts, dotted: null. \textbf{(b)} Log-prob"
    )
    assert text.count("Model:") == text.count("Null:") == 1 and "Read on" not in text
    sheet = paper("icml").grid([panels])
    assert sheet.caption(date=True) == text + " Read on 2026-01-02 with latent-workbench 0.1.0."
    mixed = paper("icml").grid([[lens.figure("curves"), near.figure()]]).caption()
    assert mixed.count("Reader:") == 2 and mixed.count("fingerprint") == 1


HOSTILE = r"50% of $x$ & #1_{a}^{b} ~ \textbf <s> | `q' -- 日 é … ★"


def test_captions_are_safe_in_latex(tmp_path):
    figure = gallery.lens().figure("curves")
    figure.update_layout(title_text=HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;"))
    text = figure.caption()
    for char in "%$&#_^~":
        assert not re.search(rf"(?<!\\){re.escape(char)}", re.sub(r"\\\(.*?\\\)", "", text)), char
    depth = np.cumsum([(c == "{") - (c == "}") for c in re.sub(r"\\[{}]", "", text)])
    assert depth.min() >= 0 and depth[-1] == 0
    assert "--" not in text and r"\texttt{U+65E5}" in text and "é" in text
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex; the escapes were checked, the typesetting was not")
    picture = gallery.lens().figure("curves").save(tmp_path / "figure.pdf", width="column", venue="icml")
    (tmp_path / "x.tex").write_text(
        "\\documentclass{article}\\usepackage{graphicx}\\usepackage[T1]{fontenc}\\begin{document}\\pagestyle{empty}"
        f"\\noindent\\includegraphics{{{picture.name}}}\n\n{text}\\end{{document}}"
    )
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "Missing character" not in run.stdout, run.stdout[-2000:]
    if shutil.which("pdftotext"):
        read = told("pdftotext", "-raw", tmp_path / "x.pdf", "-").replace("\n", " ")
        assert "50% of $x$ & #1_{a}^{b}" in read and "U+65E5" in read and "layer" in read


# ---------------------------------------------------------------- without the model


REBUILD = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = None      # importing either is an error from here on
import workbench
from workbench.figures import paper
folder, lenses, rest = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
made = []
for name in lenses:
    reading = workbench.open(f"{folder}/{name}.nc")
    made.append(reading.figure())
    reading.figure().save(f"{folder}/{name}.pdf", width="column", venue="acl")
sheet = paper("acl").grid([made[:2], made[2:4]])
sheet.save(f"{folder}/sheet.pdf")
captions = [figure.caption() for figure in made]
assert sys.modules["torch"] is None
del sys.modules["torch"], sys.modules["transformers"]           # these measure with torch, but ask no model
for name in rest:
    reading = workbench.open(f"{folder}/{name}.nc")
    reading.figure().save(f"{folder}/{name}.svg", width="column")
    captions.append(reading.figure().caption())
print(json.dumps(captions))
"""


def test_figures_are_rebuilt_from_saved_readings_without_the_model(tmp_path):
    lenses, rest = ["lens", "near", "attributed", "latent", "senses"], ["routed", "adapted", "believed", "featured"]
    readings = gallery.readings()
    for name in lenses + rest:
        readings[name].save(tmp_path / f"{name}.nc")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REBUILD, str(tmp_path), " ".join(lenses), " ".join(rest)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert {f.suffix for f in tmp_path.iterdir()} == {".nc", ".pdf", ".svg"} and len(list(tmp_path.iterdir())) == 19
    captions = __import__("json").loads(run.stdout)
    for name, told_ in zip(lenses + rest, captions, strict=True):
        assert told_ == workbench.open(tmp_path / f"{name}.nc").figure().caption()
        assert readings[name].figure().caption() == told_, "the caption survives the file"


# ---------------------------------------------------------------- rich display


def stored(bundle: dict) -> int:
    """Bytes that an output leaves in a notebook."""
    return sum(len(v) * 4 // 3 if isinstance(v, bytes) else len(str(v)) for v in bundle.values())


def test_every_reading_and_figure_is_shown_small_and_static(figures):
    for name, figure in figures.items():
        bundle, _ = figure._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "image/png"} and stored(bundle) <= LIMIT, name
    for name, reading in gallery.readings().items():
        bundle = reading._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"} and stored(bundle) <= LIMIT, name
        assert "<script" not in bundle["text/html"] and (
            "<table" in bundle["text/html"] or "<img" in bundle["text/html"]
        )
    sheet = paper("icml").grid([[figures["heatmap"], figures["curves"]]])
    bundle, _ = sheet._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"} and stored(bundle) <= LIMIT


def test_a_figure_with_very_many_points_is_shown_smaller_and_says_so():
    rng = np.random.default_rng(0)
    hues = [f"rgb({r},{g},{b})" for r, g, b in rng.integers(0, 255, (12000, 3))]
    figure = Figure().add_scatter(
        x=rng.random(12000), y=rng.random(12000), mode="markers", marker={"color": hues, "size": 5}
    )
    figure.update_layout(width=1200, height=900)
    bundle, meta = figure._repr_mimebundle_()
    assert stored(bundle) <= LIMIT and re.search(r"Shown at \d+% of its size.*\.save\(path\)", bundle["text/plain"])
    assert meta["image/png"] == {"width": 1200, "height": 900}
    from PIL import Image

    with Image.open(io.BytesIO(bundle["image/png"])) as picture:
        assert picture.width < 1200


def test_a_reading_without_a_table_shows_its_figure():
    html = gallery.senses()._repr_mimebundle_()["text/html"]
    data = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert data and base64.b64decode(data[1]).startswith(b"\x89PNG") and "&lt;Reading senses" in html


# ---------------------------------------------------------------- the browser


def test_one_browser_draws_everything_and_is_replaced_when_it_dies(figures, tmp_path, monkeypatch):
    figures["curves"].save(tmp_path / "a.svg")
    first = drawing._current
    figures["usage"].save(tmp_path / "b.pdf", width="column")
    assert first is not None and drawing._current is first
    os.kill(first._kaleido.subprocess.pid, signal.SIGKILL)
    time.sleep(0.2)
    figures["curves"].save(tmp_path / "c.svg")
    assert drawing._current is not first and texts(tmp_path / "c.svg") == texts(tmp_path / "a.svg")
    drawing.close()
    assert drawing._current is None
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "IDLE", 0.1)
        figures["curves"].save(tmp_path / "e.svg")
        for _ in range(100):
            if drawing._current is None:
                break
            time.sleep(0.1)
        assert drawing._current is None, "a browser without work is closed"
    figures["curves"].save(tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_what_plotly_cannot_draw_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_fresh", _Failing)
    with pytest.raises(drawing.ExportError, match=r"could not draw this figure: .*boom.*\.html"):
        Figure().save(tmp_path / "x.pdf")
    assert not list(tmp_path.iterdir())


class _Failing:
    known: dict = {}

    def ask(self, expression: str):
        raise drawing.DrawingError("Error: boom")
