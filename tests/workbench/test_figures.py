"""Charts say what the data says: the numbers, names and controls of their plots."""

import subprocess
import sys
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
from workbench.figures import CHARTS, Bars, Cells, Line, chart
from workbench.figures.source import Source
from workbench.stats import Design
from workbench.variables import described


def lines(figure, panel=0):
    return figure.plot.panels[panel].of(Line)


def cells(figure, panel=0):
    return figure.plot.panels[panel].of(Cells)[0]


def test_importing_figures_imports_no_renderer():
    code = "import sys, workbench.figures; sys.exit(any(m in sys.modules for m in ('plotly', 'torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_chart_chooses_what_fits_and_says_what_does():
    assert cells(chart(logit_lens())).values.shape == (7, 14)
    assert chart(logit_attribution()).plot.panels[0].of(Bars)
    with pytest.raises(InputError, match=r"position and component.*heatmap.*trajectory.*curves"):
        chart(logit_lens(), "attribution")
    with pytest.raises(InputError, match=r"'heatmap' has no option 'layers'. It takes: prompt: int = 0.*isel"):
        chart(logit_lens(), layers=[1])
    with pytest.raises(InputError, match=r"heatmap\(positions=\[1\]\): give 'text', 'image', 'all'.*isel"):
        chart(logit_lens(), positions=[1])
    with pytest.raises(InputError, match=r"this reading has text positions"):
        chart(logit_lens(), positions="image")
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
    shown = cells(chart(data, "heatmap", prompt=2, value=value)).values
    found = data[value].values[2, :, :9]
    found = found[..., 0] if value == "logprob" else np.log10(found + 1) if value == "target_rank" else found
    np.testing.assert_allclose(shown, found, rtol=1e-6)
    assert chart(data.isel(layer=[0, 5])).plot.panels[0].y.names == ["0", "5"]


def test_heatmap_of_blocks_and_wide_prompts():
    data = logit_lens().rename(layer="block").assign_attrs(at="attn_out")
    assert chart(data).plot.panels[0].y.label == "block (attn_out)"
    wide = chart(logit_lens(lengths=(400,), layers=20))
    assert cells(wide).text is None and len(wide.to_json()) < 400_000, "no texts where none could be read"
    assert cells(chart(embedding_lens())).bar.startswith("cosine")


def test_every_label_is_escaped_on_the_screen():
    for figure in (chart(logit_lens()), chart(logit_lens(targets=HOSTILE[:3]), "trajectory")):
        assert "<script" not in figure.to_json() and "<s>" not in figure.to_json().replace("\\u003c", "<")
        assert "&lt;b&gt;7B" in figure.layout.title.text and "<b>7B" in figure.plot.title


def test_trajectory_targets_and_null():
    data = logit_lens(targets=[" Paris", " Rome"])
    own, null = lines(chart(data, "trajectory", position=2, targets=[" Rome"]))
    assert (own.name, null.name) == ("·Rome", "null: other positions' states")
    assert own.hue == null.hue and (own.dash, null.dash) == ("solid", "dot")
    np.testing.assert_array_equal(own.y, data["target_logprob"].sel(target=" Rome").values[0, :, 2])
    np.testing.assert_array_equal(null.y, data["target_logprob_null"].sel(target=" Rome").values[0, :, 2])
    both = lines(chart(data, "trajectory", position=2))
    assert [t.name for t in both if t.legend] == ["·Paris", "·Rome", "null: other positions' states"]
    with pytest.raises(InputError, match=r"' Oslo' is not in this reading.*Paris"):
        chart(logit_lens(targets=[" Paris"]), "trajectory", targets=[" Oslo"])
    with pytest.raises(InputError, match=r"prompt 2 has 9 positions.*-9 to 8"):
        chart(logit_lens(), "trajectory", prompt=2, position=9)


def test_curves_average_real_positions_and_show_few_prompts_as_points():
    data = logit_lens()
    figure = chart(data, "curves", value="entropy")
    (line,) = lines(figure)
    per_prompt = np.array([np.nanmean(data["entropy"].values[p], axis=1) for p in range(3)])
    np.testing.assert_allclose(line.y, np.mean(per_prompt, axis=0), rtol=1e-5)
    np.testing.assert_allclose(line.each, per_prompt, rtol=1e-5)
    assert not line.banded and "points: each of 3 prompts" in figure.plot.title
    low, high = stats.t.interval(0.95, 2, per_prompt.mean(0), stats.sem(per_prompt))
    np.testing.assert_allclose([line.low, line.high], [low, high], rtol=1e-4)
    assert f"[{low[0]:.3f}, {high[0]:.3f}]" in line.hover[0] and "t over 3 prompts" in line.hover[0]
    (one,) = lines(chart(data.isel(prompt=[0]), "curves", value="entropy"))
    assert one.each is None and not np.isfinite(one.low).any(), "one prompt has no band"


def test_curves_of_more_prompts_have_a_band():
    data = logit_lens(lengths=(9,) * 12)
    figure = chart(data, "curves", value="entropy", seed=3)
    (line,) = lines(figure)
    per_prompt = np.nanmean(data["entropy"].values, axis=2)
    found = Design(n=12).bootstrap(per_prompt, seed=3)
    expected = found.low, per_prompt.mean(0), found.high
    np.testing.assert_allclose((line.low, line.y, line.high), expected, rtol=1e-5)
    assert "95% band: bootstrap-t over 12 prompts" in figure.plot.title


def test_curves_draw_the_null_of_what_has_one():
    data = logit_lens(targets=[" Paris", " Rome"])
    figure = chart(data, "curves", value=["target_logprob", "entropy"], target=" Rome")
    nulls = [[line for line in lines(figure, i) if line.dash == "dot"] for i in (0, 1)]
    per_prompt = [np.nanmean(data["target_logprob_null"].sel(target=" Rome").values[p], axis=1) for p in range(3)]
    np.testing.assert_allclose(nulls[0][0].y, np.mean(per_prompt, axis=0), rtol=1e-5)
    assert list(map(len, nulls)) == [1, 0] and "dotted: null" in figure.plot.title
    for other in (chart(data, "curves", value="entropy"), chart(logit_lens(), "curves", value="entropy")):
        assert {line.dash for line in lines(other)} == {"solid"} and "null" not in other.plot.title


def test_curves_keep_the_hues_of_targets_to_the_targets():
    figure = chart(logit_lens(targets=[" Paris", " Rome"]), "curves")
    hues = [{line.hue % 8 for line in lines(figure, i) if line.dash == "solid"} for i in (0, 1)]
    assert list(map(len, hues)) == [2, 1] and not hues[0] & hues[1]


def test_attribution_bars_sum_to_the_logit():
    data = logit_attribution()
    bars = chart(data, prompt=1, position=3).plot.panels[0].of(Bars)
    assert sum(np.sum(b.values) for b in bars) == pytest.approx(float(data["logit"][1, 3]), rel=1e-5)


def test_hovers_say_where_a_position_stands_in_its_prompt():
    data = logit_lens().isel(position=[8])
    data = data.assign_coords(position=[0])
    assert "(#8)" in cells(chart(data, prompt=2)).hover[0][0]
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
