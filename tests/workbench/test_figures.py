"""Charts say what the data says, survive hostile tokens, and are written whole or not at all."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

from synthetic import HOSTILE, embedding_lens, logit_attribution, logit_lens

from lenses.latent.lens import VARIABLES
from workbench.errors import InputError
from workbench.figures import CHARTS, ExportError, Figure, Line, chart, curves, trajectory
from workbench.figures.drawing import browser
from workbench.figures.source import Source
from workbench.reading import Reading
from workbench.stats import Design
from workbench.variables import described

needs_browser = pytest.mark.skipif(browser() is None, reason="no Chrome or Chromium to draw with")


def test_importing_figures_does_not_import_plotly():
    code = "import sys, workbench.figures; sys.exit('plotly' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_chart_chooses_what_fits_and_says_what_does():
    assert chart(logit_lens()).data[0].type == "heatmap"
    assert chart(logit_attribution()).data[0].type == "bar"
    with pytest.raises(InputError, match=r"position and component.*heatmap.*trajectory.*curves"):
        chart(logit_lens(), "attribution")
    with pytest.raises(InputError, match=r"'heatmap' has no option 'positions'. It takes: prompt: int = 0.*isel"):
        chart(logit_lens(), positions=[1])
    with pytest.raises(InputError, match=r"prompt='a' was asked for"):
        chart(logit_lens(), prompt="a")
    with pytest.raises(InputError, match="no chart 'pie'"):
        chart(logit_lens(), "pie")
    with pytest.raises(InputError, match="No chart fits"):
        chart(logit_lens()[["input_id"]])
    assert set(CHARTS) >= {"heatmap", "trajectory", "curves", "attribution"}


@pytest.mark.parametrize("value", ["logprob", "entropy", "kl_to_final", "target_rank", "target_logprob"])
def test_heatmap_values_and_padding(value):
    data = logit_lens()
    trace = chart(data, "heatmap", prompt=2, value=value).data[0]
    assert np.shape(trace.z) == (7, 9), "padding is no position"
    if value == "entropy":
        np.testing.assert_allclose(trace.z, data["entropy"].values[2, :, :9], atol=1e-3)
    assert list(trace.y) == list(range(7))
    assert chart(data.isel(layer=[0, 5])).layout.yaxis.ticktext == ("0", "5")


def test_heatmap_of_blocks_and_wide_prompts():
    data = logit_lens().rename(layer="block").assign_attrs(at="attn_out")
    figure = chart(data)
    assert figure.layout.yaxis.title.text == "block (attn_out)"
    wide = chart(logit_lens(lengths=(400,), layers=20))
    assert len(wide.data) == 1, "no cell texts where none could be read"
    assert len(wide.to_json()) < 400_000


@pytest.mark.parametrize("length", [3, 30, 120, 130, 180, 400])
def test_tokens_below_a_heatmap_are_all_there_or_none(length):
    data = logit_lens(lengths=(length, 4))
    figure = chart(data)
    ticks = list(figure.layout.xaxis.ticktext)
    told = figure.describe(data).caption()
    if figure.layout.xaxis.title.text is None:
        assert len(ticks) == length and "numbered" not in told
    else:
        assert "tokens do not fit" in figure.layout.xaxis.title.text and "Positions are numbered" in told
        places = [int(t) for t in ticks]
        assert places == list(figure.layout.xaxis.tickvals) and len(set(np.diff(places))) == 1
    assert (figure.layout.xaxis.title.text is None) == (length <= 130)
    assert figure.layout.xaxis.tickfont.size is None or figure.layout.xaxis.tickfont.size >= 8


def test_names_of_components_are_all_there_or_said_to_be_some():
    few, many = chart(logit_attribution()), chart(logit_attribution(blocks=90))
    assert len(few.layout.xaxis.ticktext) == 14 and few.layout.xaxis.title.text == "component"
    assert len(many.layout.xaxis.ticktext) == 91 and many.layout.xaxis.title.text == "component (one of 2 is named)"


def test_every_label_is_escaped():
    for figure in (chart(logit_lens()), chart(logit_lens(targets=HOSTILE[:3]), "trajectory")):
        assert "<script" not in figure.to_json() and "<s>" not in figure.to_json().replace("\\u003c", "<")
        assert "&lt;b&gt;7B" in figure.layout.title.text


def test_trajectory_targets_and_null():
    figure = chart(logit_lens(targets=[" Paris", " Rome"]), "trajectory", position=2, targets=[" Rome"])
    assert [t.name for t in figure.data] == ["·Rome", "null: other positions' states"]
    assert figure.data[1].line.color == figure.data[0].line.color
    both = chart(logit_lens(targets=[" Paris", " Rome"]), "trajectory", position=2)
    said = [t.name for t in both.data if t.showlegend is not False]
    assert said == ["·Paris", "·Rome", "null: other positions' states"]
    assert figure.data[1].line.dash == "dot"
    with pytest.raises(InputError, match=r"' Oslo' is not in this reading.*Paris"):
        chart(logit_lens(targets=[" Paris"]), "trajectory", targets=[" Oslo"])
    with pytest.raises(InputError, match=r"prompt 2 has 9 positions.*-9 to 8"):
        chart(logit_lens(), "trajectory", prompt=2, position=9)


def test_curves_show_few_prompts_as_points_and_more_with_a_band():
    data = logit_lens()
    figure = chart(data, "curves", value="entropy")
    (line,) = figure.plot.panels[0].marks
    per_prompt = np.array([np.nanmean(data["entropy"].values[p], axis=1) for p in range(3)])
    assert "points: each of 3 prompts" in figure.plot.title and line.low is None
    np.testing.assert_allclose(line.each, per_prompt, rtol=1e-5)
    np.testing.assert_allclose(line.y, per_prompt.mean(0), rtol=1e-5)
    low, high = stats.t.interval(0.95, 2, per_prompt.mean(0), stats.sem(per_prompt))
    assert f"[{low[0]:.3f}, {high[0]:.3f}], 95% interval: t over 3 prompts" in line.hover[0]
    (alone,) = chart(data.isel(prompt=[0]), "curves", value="entropy").plot.panels[0].marks
    assert alone.each is None and np.isnan(alone.low).all(), "one prompt has no band"
    many = logit_lens(lengths=(9,) * 12)
    figure = chart(many, "curves", value="entropy", seed=3)
    (line,) = figure.plot.panels[0].marks
    per_prompt = np.nanmean(many["entropy"].values, axis=2)
    found = Design(n=12).bootstrap(per_prompt, seed=3)
    np.testing.assert_allclose([line.low, line.high], [found.low, found.high], rtol=1e-5)
    np.testing.assert_allclose(line.y, per_prompt.mean(0), rtol=1e-5)
    assert "95% band: bootstrap-t over 12 prompts" in figure.plot.title


def test_curves_draw_the_null_of_what_has_one():
    data = logit_lens(targets=[" Paris", " Rome"])
    figure = chart(data, "curves", value=["target_logprob", "entropy"], target=" Rome")
    (line, null), (_,) = (panel.marks for panel in figure.plot.panels)
    per_prompt = [np.nanmean(data["target_logprob_null"].sel(target=" Rome").values[p], axis=1) for p in range(3)]
    np.testing.assert_allclose(null.y, np.mean(per_prompt, axis=0), rtol=1e-5)
    assert (null.dash, null.hue) == ("dot", line.hue) and "dotted: null" in figure.plot.title
    for other in (chart(data, "curves", value="entropy"), chart(logit_lens(), "curves", value="entropy")):
        assert len(other.plot.panels[0].marks) == 1 and "null" not in other.plot.title


def test_curves_keep_the_hues_of_targets_to_the_targets():
    figure = chart(logit_lens(targets=[" Paris", " Rome"]), "curves")
    hues: dict[str, set[str]] = {}
    for line in (line for line in figure.data if line.mode == "lines+markers"):
        hues.setdefault(line.yaxis or "y", set()).add(line.line.color)
    assert len(hues["y"]) == 2 and len(hues["y2"]) == 1 and not hues["y"] & hues["y2"]


def test_attribution_bars_sum_to_the_logit():
    data = logit_attribution()
    figure = chart(data, prompt=1, position=3)
    assert sum(np.sum(t.y) for t in figure.data) == pytest.approx(float(data["logit"][1, 3]), rel=1e-5)


def test_hovers_say_where_a_position_stands_in_its_prompt():
    data = logit_lens().isel(position=[8])
    data = data.assign_coords(position=[0])
    assert "(#8)" in chart(data, prompt=2).data[0].hovertext[0][0]
    assert Source(data).places(2).tolist() == [8] and Source(data.drop_vars("input_position")).places(2).tolist() == [0]


def test_floors_are_beside_the_quartiles_of_the_nearest():
    rng = np.random.default_rng(0)
    dims = ("prompt", "layer", "position", "rank")
    similarity = rng.uniform(size=(3, 4, 6, 2)).astype("float32")
    similarity[2, :, 4:] = np.nan  # a shorter prompt
    random, shuffled = np.array([0.2, 0.4, 0.6, 0.99]), np.array([0.5, np.nan, 0.5, 0.5])
    names = {"similarity_floor_random": ("layer", random), "similarity_floor_shuffled": ("layer", shuffled)}
    layers = {"layer": [0, 3, 6, 9]}
    data = xr.Dataset({"similarity": (dims, similarity), **names}, layers, {"reader": "LatentLens"})
    median, *floors = chart(described(data, VARIABLES), "floors").plot.panels[0].marks
    own = [similarity[:, d, :, 0].ravel() for d in range(4)]
    own = [x[~np.isnan(x)] for x in own]
    np.testing.assert_allclose(median.y, [np.sort(x)[7:9].mean() for x in own], rtol=1e-6)
    for d, x in enumerate(own):
        assert (x < median.low[d]).mean() == (x > median.high[d]).mean() == 0.25
    share = [[(x > floor[d]).mean() for d, x in enumerate(own)] for floor in (random, shuffled)]
    assert f"above random tokens: {share[0][2]:.0%}\nabove shuffled prompts: {share[1][2]:.0%}" in median.hover[2]
    assert [f.name for f in floors] == [
        f"floor: random tokens ({np.mean(share[0]):.0%} above)",
        f"floor: shuffled prompts ({np.mean([share[1][d] for d in (0, 2, 3)]):.0%} above)",
    ]
    assert [f.dash for f in floors] == ["dash", "dashdot"] and len({f.hue for f in floors}) == 1
    np.testing.assert_array_equal(floors[1].y, shuffled)
    near = chart(embedding_lens(), "floors").plot.panels[0].marks
    assert [line.name for line in near[1:]] == ["floor: shuffled prompts (100% above)"]
    with pytest.raises(InputError, match="a floor of its score"):
        chart(data.drop_vars(list(names)), "floors")


def test_leap_tells_the_interval_of_a_share_where_there_is_one():
    dims, share = ("layer", "index"), np.array([[0.25, 0.75], [0.5, 0.5]])
    data = xr.Dataset({"index_layer_share": (dims, share)}, {"layer": [0, 1], "index": [2, 4]})
    assert chart(data, "leap").plot.panels[0].marks[0].hover is None
    data["index_layer_share_low"], data["index_layer_share_high"] = (dims, share - 0.1), (dims, share + 0.1)
    (cells,) = chart(data, "leap").plot.panels[0].marks
    assert cells.hover[0][1] == "layer 0, index layer 4: 75.0% [65.0%, 85.0%]"


def test_source_counts_positions_from_the_end_of_the_prompt():
    data = logit_lens()
    assert Source(data).position(2, -1) == 8
    assert Source(data).text(10**6) == "#1000000"


@needs_browser
@pytest.mark.parametrize("suffix", ["pdf", "svg", "png", "html"])
def test_save(tmp_path, suffix):
    file = chart(logit_lens()).save(tmp_path / f"lens.{suffix}", width="column", venue="acl")
    content = file.read_bytes()
    assert os.listdir(tmp_path) == [f"lens.{suffix}"]
    if suffix == "pdf":
        box = re.search(rb"/MediaBox\s*\[\s*0 [\d.]+ ([\d.]+)", content)
        assert box and float(box[1]) == pytest.approx(7.7 / 2.54 * 72, abs=0.01), "a page as wide as the column"
    if suffix == "svg":
        chart(logit_lens()).save(file)
        texts = [unescape(t) for t in re.findall(r">([^<>]*)</text>", file.read_text())]
        assert {"<s>", "<br>", "&lt;", "$x$"} <= set(texts), "tokens, not tags"
    if suffix == "png":
        assert content.startswith(b"\x89PNG")


@needs_browser
def test_rich_display_is_a_small_picture():
    bundle, meta = chart(logit_lens())._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"} and len(bundle["image/png"]) < 300_000
    assert meta["image/png"]["width"] > 300


def test_without_a_browser_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(ExportError, match=r"apt install chromium.*plotly_get_chrome.*another machine"):
        chart(logit_lens()).save(tmp_path / "x.pdf")
    assert not list(tmp_path.iterdir())
    first, second = (chart(logit_lens())._repr_mimebundle_() for _ in range(2))
    assert "application/vnd.plotly.v1+json" in first and "image/png" not in first
    assert "apt install chromium" in first["text/plain"] and second["text/plain"] == repr(chart(logit_lens()))
    chart(logit_lens()).save(tmp_path / "x.html")


def test_save_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ExportError, match=r"\.pdf, \.svg, \.png, \.html"):
        Figure().save(tmp_path / "x.gif")
    with pytest.raises(ExportError, match="no folder"):
        Figure().save(tmp_path / "no" / "x.pdf")
    with pytest.raises(ValueError, match="column"):
        Figure().save(tmp_path / "x.svg", width="page")
    with pytest.raises(ValueError, match="venue"):
        Figure().save(tmp_path / "x.svg", width="text", venue="arxiv")


def test_embedding_lens_has_its_heatmap():
    assert chart(embedding_lens()).data[0].colorbar.title.text == "cosine"


# ---------------------------------------------------------------- several readings in one chart


def of_model(name, prompts, layers=7):
    data = logit_lens(lengths=(9,) * prompts, layers=layers, targets=[" Paris", " Rome"]).assign_attrs(model=name)
    origin = {"model": {"name": name}, "reader": {"name": "LogitLens", "at": "resid"}, "prompts": prompts}
    return Reading(data, origin)


def test_curves_of_several_readings_are_those_of_each():
    readings = {"base": of_model("small", 12), "tuned": of_model("large", 4, layers=5)}
    asked = ["target_logprob", "entropy"]
    figure = curves(readings, value=asked, target=" Rome")
    alone = [curves(own, value=asked, target=" Rome").plot.panels for own in readings.values()]
    for number, panel in enumerate(figure.plot.panels):
        lines = [m for m in panel.marks if m.dash == "solid"]
        assert [line.name for line in lines] == ["base", "tuned"]
        assert panel.y.label == alone[0][number].y.label and panel.x.ticks == list(range(7))
        for which, line in enumerate(lines):
            own = alone[which][number].marks[0]
            for end in ("x", "y", "low", "high", "each"):
                np.testing.assert_array_equal(getattr(line, end), getattr(own, end))
        assert [m.hue for m in panel.marks if m.dash == "dot"] == [line.hue for line in lines] * (number == 0)
    ours = [panel.of(Line)[0].hue for panel in figure.plot.panels]
    assert ours == [0, 0], "a reading has one hue in all panels"


def test_the_caption_of_several_readings_names_them_and_what_they_have_in_common():
    readings = {"base": of_model("small", 12), "tuned_2": of_model("large", 4)}
    said = curves(readings, value="entropy").caption()
    assert r"Readings: base, tuned\_2. Model: \texttt{small, large}. Reader: LogitLens (at resid)." in said
    assert "bootstrap-t over 12 prompts (base), points: each of 4 prompts (tuned\\_2)" in said
    assert "Data:" not in said, "they are of different numbers of prompts"
    twice = curves({"a": of_model("small", 12), "b": of_model("small", 12)}, value="entropy")
    assert r"Model: \texttt{small}." in twice.caption() and "Data: 12 prompts." in twice.caption()
    assert twice.plot.title.count("12 prompts") == 1


def test_curves_refuse_readings_that_no_axis_has_together():
    one, blocks = of_model("small", 3), of_model("small", 3)
    blocks.data = blocks.data.rename(layer="block").assign_attrs(at="attn_out")
    with pytest.raises(InputError, match=r"b has block \(attn_out\), .* and a has layer"):
        curves({"a": one, "b": blocks}, value="entropy")
    with pytest.raises(InputError, match=r"b does not hold \['entropy'\]"):
        curves({"a": one, "b": Reading(one.data.drop_vars("entropy"))}, value="entropy")
    with pytest.raises(InputError, match="0 readings by name"):
        curves({})
    with pytest.raises(InputError, match="trajectory was given 2 readings by name, and draws one"):
        trajectory({"a": one, "b": one})
    many = curves({f"run {i}": one for i in range(5)}, value="target_logprob")
    assert "the first 8 of 10 lines" in many.plot.title
    named = [m.name for m in many.plot.panels[0].marks if m.dash == "solid"]
    assert named[:3] == ["run 0 · ·Paris", "run 0 · ·Rome", "run 1 · ·Paris"] and len(named) == 8
