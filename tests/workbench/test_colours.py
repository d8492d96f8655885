"""A number has one colour and one direction, in a figure, an explorer, its page and a static table."""

import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

import gallery
from explored import stances
from matplotlib.collections import QuadMesh
from pages import load, needs_browser
from plotly.colors import sample_colorscale

from workbench.figures import Cells, Flow, Line, chart, colours
from workbench.widgets import base, dispatch, explorer
from workbench.widgets.dispatch import views

# Published colour maps, and which end of them a large number has.  Written out: what is compared has to come from here.
LIGHT_IF_LARGE, LIGHT_IF_SMALL, RED_IF_LARGE = "Viridis", "Viridis_r", "RdBu_r"
LENSES = {
    "logprob": LIGHT_IF_LARGE, "entropy": LIGHT_IF_SMALL, "kl_to_final": LIGHT_IF_SMALL, "target_rank": LIGHT_IF_SMALL,
    "target_logprob": LIGHT_IF_LARGE, "cosine": LIGHT_IF_LARGE, "similarity": LIGHT_IF_LARGE,
    "contribution": RED_IF_LARGE,
}  # fmt: skip


def published(scale, share):
    colour = np.array(sample_colorscale(scale, [share], colortype="tuple")[0])
    return colour * (1 if colour.max() > 1 else 255)


def drawn_as(figure, scale):
    """A figure's cells, whose colours are the published ones on the screen and on paper, from one end to the other."""
    (cells,) = figure.plot.panels[0].of(Cells)[:1]
    axis = next((t.coloraxis for t in figure.data if t.type == "heatmap" and t.coloraxis), None)
    shown = figure.layout[axis] if axis else next(t for t in figure.data if t.type == "heatmap")
    colours_at = [list(stop) for stop in shown.colorscale]
    mesh = figure.matplotlib(venue="icml").findobj(QuadMesh)[0]
    for share in (0, 1):
        same(published(colours_at, share), scale, share)
        same(255 * np.array(mesh.get_cmap()(float(share))[:3]), scale, share)
    low, high = (shown.cmin, shown.cmax) if axis else (shown.zmin, shown.zmax)
    assert (low, high) == pytest.approx(cells.ends) and mesh.get_clim() == pytest.approx(cells.ends)
    return cells


def rgb(css):
    return np.array(re.search(r"rgb\((\d+), ?(\d+), ?(\d+)\)", css).groups(), float)


def same(found, scale, share, near=3):
    np.testing.assert_allclose(found, published(scale, share), atol=near)


def dressed(html):
    """(text, style) of a static table's coloured cells."""
    found = re.findall(r'<td style="([^"]*background:rgb[^"]*)"><bdi[^>]*>(.*?)</bdi>', html)
    return [(unescape(text), style) for style, text in found]


def test_the_scales_are_the_published_ones_and_survive_colour_blindness():
    shares = np.linspace(0, 1, 101)
    for name, scale in (("sequential", "Viridis"), ("reversed", "Viridis_r"), ("diverging", "RdBu_r")):
        own = colours.rgb(colours.SCALES[name], shares)
        np.testing.assert_allclose(own, [published(scale, s) for s in shares], atol=1)
        # What all kinds of colour blindness keep is lightness: it only rises, or falls off to both sides of zero.
        light = (own[::10] / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722]
        ways = np.sign(np.diff(light)).tolist()
        assert ways == {"sequential": [1] * 10, "reversed": [-1] * 10, "diverging": [1] * 5 + [-1] * 5}[name]
    assert colours.ink([[68, 1, 84], [253, 231, 37]]) == ["#FFFFFF", "#000000"]


def readings():
    lens, near = gallery.lens(), gallery.near()
    latent = near.data.rename(cosine="similarity").drop_vars("cosine_floor_shuffled").assign_attrs(reader="LatentLens")
    own = {"cosine": near.data, "similarity": latent, "contribution": gallery.attributed().data}
    return {name: own.get(name, lens.data) for name in LENSES}


def test_front_ends_carry_the_table_and_no_colours_of_their_own():
    lens = dispatch.explore(gallery.lens())
    assert [one.payload["colours"] for one in (lens, dispatch.explore(stances()[0]))] == [colours.sent()] * 2
    for path in [base.COMMON, base.PAGE, *(view.module for view in views().values())]:
        text = path.read_text("utf-8").lower()
        assert not any(hue.lower() in text for hue in colours.SEQUENTIAL[1:-1] + colours.DIVERGING + colours.HUES[:6])


@pytest.mark.parametrize("metric", LENSES)
def test_a_lens_in_its_figure_and_its_table(metric):
    data = readings()[metric]
    if metric != "contribution":  # whose figure is of bars
        drawn_as(chart(data, "heatmap", value=metric), LENSES[metric])
    if metric in ("logprob", "cosine", "similarity", "contribution"):
        styles = [rgb(style) for _, style in dressed(explorer.static_html(data))]
        values = data[metric].isel(prompt=0).values if metric == "contribution" else None
        if values is None:
            assert min(np.abs(s - published(LENSES[metric], 1)).max() for s in styles) <= 1
            assert min(np.abs(s - published(LENSES[metric], 0)).max() for s in styles) <= 1
        else:
            for text, style in dressed(explorer.static_html(data)):
                share = (float(text) / np.nanmax(np.abs(values)) + 1) / 2
                same(rgb(style), LENSES[metric], share, near=6)


@needs_browser
@pytest.mark.parametrize("metric", LENSES)
def test_a_lens_on_its_page(metric, tmp_path):
    path = dispatch.to_html(readings()[metric], tmp_path / "x.html")
    script = (
        "const { model } = document.getElementById('explorer');"
        f"setTimeout(() => model.set('selection', {{ ...model.get('selection'), metric: '{metric}' }}), 300);"
    )
    dom, console = load(path, script, size="1400,900")
    assert not console
    cells = re.findall(r'class="wx-cell[^"]*"[^>]*style="([^"]*background[^"]*)"[^>]*>([^<]+)<', dom)
    cells = [(float(text.replace(",", "")), rgb(style)) for style, text in cells]
    assert len(cells) > 30
    cells.sort(key=lambda cell: cell[0])
    ramp = [published(LENSES[metric], share) for share in np.linspace(0, 1, 401)]
    at = [int(np.argmin([np.abs(r - colour).max() for r in ramp])) for _, colour in cells]
    assert (np.diff(at) >= -2).all() and at[-1] - at[0] > 150, "the greater, the further along the scale"
    if metric == "contribution":
        strong = [(value, where) for (value, _), where in zip(cells, at, strict=True) if abs(value) > 0.1]
        assert all((where > 200) == (value > 0) for value, where in strong)


def drift_cells(dom):
    found = re.findall(r'<rect[^>]*role="gridcell"[^>]*style="fill: ?([^"]*?);?"', dom)
    return [rgb(css) for css in found if "rgb" in css]


@needs_browser
@pytest.mark.parametrize("measure", ["drift", "keyed", "support"])
def test_drift_in_its_figure_its_table_and_its_page(measure, tmp_path):
    from probes.values import figures
    from probes.values.measures import drift, stance

    data, _ = stances()
    scale = LIGHT_IF_LARGE if measure == "support" else RED_IF_LARGE
    if measure == "drift":
        low, high = drawn_as(figures.drifts(drift(data)), scale).ends
        assert low == -high < 0
    if measure == "keyed":
        cells = dressed(dispatch.static_html(data))
        values = [float(text.rstrip("°")) for text, _ in cells]
        assert min(values) < 0 < max(values)
        for value, (_, style) in zip(values, cells, strict=True):
            same(rgb(style), scale, (value / max(map(abs, values)) + 1) / 2, near=5)
    path = dispatch.to_html(data, tmp_path / "x.html")
    script = (
        "const { model } = document.getElementById('explorer');"
        f"setTimeout(() => model.set('selection', {{ ...model.get('selection'), measure: '{measure}' }}), 300);"
    )
    dom, console = load(path, script)
    assert not console
    table = drift(data)["keyed_M"] if measure == "drift" else stance(data)["keyed"]
    if measure == "support":
        table = stance(data)["v"].sel(stance="support")
    topics = list(dict.fromkeys(data["topic"].values))
    values = table.sel(topic=topics).transpose("topic", "checkpoint").values.ravel()
    found = drift_cells(dom)
    shares = values if measure == "support" else (values / np.nanmax(np.abs(values)) + 1) / 2
    for share, colour in zip(shares[~np.isnan(shares)], found, strict=True):
        same(colour, scale, share, near=4)


@needs_browser
def test_routing_and_belief_in_figures_tables_and_pages(tmp_path):
    routed, believed = gallery.routed(), gallery.believed()
    for reading, kind, high in ((routed, "usage", None), (believed, "belief", 1.0)):
        cells = drawn_as(reading.figure(kind), LIGHT_IF_LARGE)
        assert cells.ends[0] == 0 and cells.high == high
        cells = [(text, rgb(style)) for text, style in dressed(dispatch.static_html(reading))]
        values = [float(t.rstrip("%")) / (100 if "%" in t else 1) for t, _ in cells]
        for value, (_, colour) in zip(values, cells, strict=True):
            same(colour, LIGHT_IF_LARGE, value / (high or max(values)), near=9)
    names = list(routed.data["label"].values)
    script = (
        "const { model } = document.getElementById('explorer');"
        f"setTimeout(() => model.set('selection', {{ ...model.get('selection'), compare: '{names[1]}' }}), 300);"
    )
    dom, _ = load(dispatch.to_html(routed, tmp_path / "x.html"), script)
    count = routed.data["usage_count"].transpose("label", "block", "expert").values.astype(float)
    share = count / count.sum(-1, keepdims=True)
    gap = (share[0] - share[1])[::-1].ravel()
    own, other, less = np.array_split(np.array(drift_cells(dom)), 3)
    for values, found in ((share[0], own), (share[1], other)):
        for value, colour in zip(values[::-1].ravel(), found, strict=True):
            same(colour, LIGHT_IF_LARGE, value / share[:2].max(), near=4)
    for value, colour in zip(gap, less, strict=True):
        same(colour, RED_IF_LARGE, (value / np.abs(gap).max() + 1) / 2, near=4)
    dom, _ = load(dispatch.to_html(believed, tmp_path / "y.html"))
    fills = re.findall(r'class="disc"[^>]*style="fill: ?(rgb[^;]*);', dom)
    belief = believed.data["belief"].values[0, -1, 0]
    for value, css in zip(belief, fills, strict=True):
        same(rgb(css), LIGHT_IF_LARGE, value, near=4)


def test_stances_and_floors_have_one_hue_everywhere():
    from probes.values import figures
    from probes.values.explorer import SIDES
    from probes.values.measures import sides

    nodes = figures.sides(sides(stances()[0])).plot.panels[0].of(Flow)[0].nodes
    assert {text.split(":")[0].split(" or")[0]: hue for _, text, hue in nodes} == SIDES
    assert dispatch.explore(stances()[0]).payload["stances"] == SIDES
    for reading in (gallery.latent(), gallery.near()):
        floors = [line for line in reading.figure("floors").plot.panels[0].of(Line) if line.name.startswith("floor")]
        assert floors and {line.hue for line in floors} == {colours.FLOOR}
        assert len({line.dash for line in floors}) == len(floors)
