"""Figures as files and in notebooks: what venues take, what is refused, pictures that stay small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import QuadMesh
from matplotlib.image import AxesImage

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

import gallery
from extents import faults
from extents import shown as said
from synthetic import embedding_lens, logit_attribution, logit_lens

import workbench
from workbench.errors import InputError
from workbench.figures import Cells, ExportError, Figure, Line, Panel, Picture, Plot, chart, paper
from workbench.figures.charts import Chart
from workbench.figures.output import LIMIT


def media(pdf: bytes) -> list[float]:
    ((wide, tall),) = re.findall(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)", pdf)
    return [float(wide), float(tall)]


@pytest.mark.parametrize("venue, column, text", [
    ("neurips", 5.5, 5.5), ("iclr", 5.5, 5.5), ("icml", 3.25, 6.75), ("acl", 7.7 / 2.54, 16 / 2.54),
    ("84mm", 84 / 25.4, 84 / 25.4), (3.5, 3.5, 3.5), ("240pt", 240 / 72.27, 240 / 72.27),
])  # fmt: skip
def test_pages_are_exactly_as_wide_as_the_venue_says(tmp_path, venue, column, text):
    figure = chart(logit_lens(), "curves")
    for width, inches in (("column", column), ("text", text)):
        pdf = paper(venue).save(figure, tmp_path / "x.pdf", width).read_bytes()
        assert media(pdf)[0] == pytest.approx(inches * 72, abs=0.01)
    svg = ElementTree.parse(paper(venue).save(figure, tmp_path / "x.svg")).getroot()
    assert svg.get("width").endswith("pt") and float(svg.get("width")[:-2]) == pytest.approx(column * 72, abs=0.01)
    assert media(paper(venue).save(figure, tmp_path / "x.pdf", height=2.2).read_bytes())[1] == pytest.approx(158.4)


def test_what_is_no_width(tmp_path):
    with pytest.raises(InputError, match=r"no venue.*acl, iclr, icml, neurips.*no width"):
        paper("nips")
    with pytest.raises(InputError, match=r"not a width in inches"):
        paper(240)
    with pytest.raises(InputError, match=r"less than 6 points"):
        paper("icml", points=5)
    with pytest.raises(ValueError, match="column"):
        chart(logit_lens()).save(tmp_path / "x.svg", width="page")
    with pytest.raises(ValueError, match="venue"):
        chart(logit_lens()).save(tmp_path / "x.svg", width="text", venue="arxiv")


@pytest.mark.parametrize("kind", ["heatmap", "attribution"])
def test_files_are_vectors_with_truetype_fonts_and_equal_for_equal_figures(tmp_path, kind):
    data = embedding_lens() if kind == "heatmap" else logit_attribution()
    for suffix in ("pdf", "svg"):
        a, b = (chart(data).save(tmp_path / f"{n}.{suffix}", venue="acl").read_bytes() for n in "ab")
        assert a == b, suffix
    pdf, svg = (tmp_path / "a.pdf").read_bytes(), (tmp_path / "a.svg").read_text("utf-8")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/Subtype /Image" not in pdf
    assert "<image" not in svg and "<!--" not in re.sub("<!-- .{1,40}? -->", "", svg)
    with BytesIO(chart(data).save(tmp_path / "x.png", width=3, dpi=200).read_bytes()) as file:
        from PIL import Image

        assert Image.open(file).width == 600
    page = chart(data).save(tmp_path / "x.html").read_text("utf-8")
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']?(https?:)?//""", page)
    many = Figure(Plot([Panel([Cells(np.random.default_rng(0).random((150, 200)))])])).matplotlib(venue="icml")
    assert many.findobj(AxesImage)[0].get_array().shape == (150, 200) and not many.findobj(QuadMesh)


def test_what_cannot_be_saved(tmp_path):
    figure = chart(logit_lens())
    with pytest.raises(ExportError, match=r"'\.gif'.*\.pdf, \.svg, \.png, \.html"):
        figure.save(tmp_path / "x.gif")
    with pytest.raises(ExportError, match="no folder.*Create it"):
        figure.save(tmp_path / "no" / "x.pdf")
    with pytest.raises(ExportError, match="plotly alone.*Plot"):
        Figure().save(tmp_path / "x.pdf")
    with pytest.raises(ExportError, match="a picture"):
        paper("icml").grid([[figure]]).save(tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


REBUILD = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = None      # importing either is an error from here on
import workbench
folder, names = sys.argv[1], sys.argv[2].split()
captions = []
for name in names:
    figure = workbench.open(f"{folder}/{name}.nc").figure()
    figure.save(f"{folder}/{name}.pdf", venue="acl")
    captions.append(figure.caption())
print(json.dumps(captions))
"""


def test_figures_are_rebuilt_from_files_without_the_model_and_without_programs(tmp_path):
    readings = {name: getattr(gallery, name)() for name in ("lens", "near", "attributed", "latent")}
    for name, own in readings.items():
        own.save(tmp_path / f"{name}.nc")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REBUILD, str(tmp_path), " ".join(readings)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, env={"PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(list(tmp_path.glob("*.pdf"))) == len(readings)
    assert json.loads(run.stdout) == [own.figure().caption() for own in readings.values()]


def test_figures_leave_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    drawn = chart(logit_lens()).matplotlib(venue="icml")
    assert isinstance(drawn, mpl.figure.Figure) and drawn.get_figwidth() == 3.25 and not plt.get_fignums()
    assert mpl.rcParams["pdf.fonttype"] == 3, "the default, under which it is written here"
    file = BytesIO()
    drawn.savefig(file, format="pdf")
    assert b"/FontFile2" in file.getvalue() and b"/Type3" not in file.getvalue() and dict(mpl.rcParams) == before


def test_displays_are_small_pictures_that_say_what_they_show():
    figures = gallery.lens_figures()
    rng = np.random.default_rng(0)
    noise = Picture(rng.random((900, 900, 3)))
    sheet = paper("icml").grid([[figures["heatmap"], figures["curves"]]])
    own = [figures[name] for name in ("heatmap", "curves", "attribution")]
    for shown in (*own, sheet, Figure(Plot([Panel([noise])], "noise", size=(900, 900)))):
        bundle, about = shown._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "image/png"} and sum(map(len, bundle.values())) <= LIMIT
        assert b64decode(bundle["image/png"]).startswith(b"\x89PNG") and about["image/png"]["alt"]
    for name, own in gallery.readings().items():
        bundle = own._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html"} and sum(map(len, bundle.values())) <= LIMIT, name
        assert "<script" not in bundle["text/html"] and re.search("<table|<img", bundle["text/html"]), name


def test_copies_of_a_figure_keep_its_plot():
    import copy
    import pickle

    figure = gallery.lens().figure("curves")
    for other in (copy.deepcopy(figure), pickle.loads(pickle.dumps(figure)), Figure(figure)):
        assert said(other.matplotlib(venue="acl")) == said(figure.matplotlib(venue="acl"))
        assert other.caption() == figure.caption() and len(other.data) == len(figure.data)


def test_a_chart_of_ones_own_is_drawn_on_both(monkeypatch):
    def spread(data: Any, rank: int = 0) -> Plot:
        """Highest and lowest score of a layer."""
        scores = data["cosine"].isel(rank=rank)
        ends = [getattr(scores, end)(("prompt", "position")).values for end in ("min", "mean", "max")]
        line = Line(data["layer"].values, ends[1], "mean", low=ends[0], high=ends[2])
        return Plot([Panel([line], "layer", "cosine")], title=f"spread of rank {rank}")

    monkeypatch.setitem(workbench.figures.charts.CHARTS, "spread", Chart(spread, needs=("cosine",)))
    figure = gallery.near().figure("spread", rank=1)
    assert figure.layout.title.text and {"layer", "cosine"} <= set(said(figure.matplotlib(venue="icml")))
    assert figure.caption().startswith("Spread of rank 1. Model:") and faults(figure.matplotlib()) == []
    with pytest.raises(InputError, match=r"no option 'size'. It takes: rank: int = 0"):
        gallery.near().figure("spread", size=3)
