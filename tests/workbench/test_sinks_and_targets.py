"""Figures and explorers leave no sink and no target unsaid: made-up readings whose numbers are counted by hand."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

from explored import neighbours
from pages import load, needs_browser
from synthetic import embedding_lens, logit_attribution, logit_lens

from lenses import embedding
from workbench.errors import InputError
from workbench.figures import chart
from workbench.variables import described
from workbench.widgets import dispatch, lens

WHERE = ("prompt", "layer", "position")
SAID = "sink: norm beyond 20 x the layer's median"


def with_sinks(data, depths=slice(2, 5), extremes=True):
    """The first position of every prompt is a sink at some depths; what stands there would ruin every mean."""
    sink = np.zeros([data.sizes[d] for d in WHERE], bool)
    sink[:, depths, 0] = True
    data = data.copy(deep=True)
    data["sink"] = (WHERE, sink, {"long_name": "attention sink", "threshold": 20.0})
    for name in ("entropy", "target_logprob", "target_logprob_null", "cosine", "similarity") if extremes else ():
        if name in data:
            mask = xr.DataArray(sink, dims=WHERE)
            data[name] = data[name].where(~mask, 1e6).transpose(*data[name].dims)
    return data


def title(figure):
    return figure.plot.title


def marks(figure, panel=0):
    return figure.plot.panels[panel].marks


# ---------------------------------------------------------------- sinks


def test_means_over_positions_are_without_sinks_and_say_how_many():
    data = with_sinks(logit_lens(targets=[" Paris", " Rome"]))
    figure = chart(data, "curves", value=["target_logprob", "entropy"])
    assert all("3 sink positions left out" in said for said in (title(figure), figure.caption()))
    for line in (*marks(figure), *marks(figure, 1)):
        assert np.nanmax(np.abs(line.y)) < 100
    (own,) = marks(figure, 1)
    values = np.where(data["sink"].values, np.nan, data["entropy"].values)
    np.testing.assert_allclose(own.y, np.nanmean(np.nanmean(values, axis=2), axis=0), rtol=1e-6)
    assert "sink" not in title(chart(logit_lens(), "curves"))
    one = data.isel(prompt=[0], position=[0])
    (line,) = marks(chart(one, "curves", value="entropy"))
    assert np.isnan(line.y[2:5]).all() and not np.isnan(line.y[:2]).any()
    with pytest.raises(InputError, match="sinks are left out"):
        chart(with_sinks(one, slice(None)), "curves", value="entropy")


def test_floors_are_beside_states_that_are_no_sinks():
    data = with_sinks(embedding_lens())
    figure = chart(data, "floors")
    assert "35 positions" in title(figure) and "3 sink positions left out" in title(figure)
    median, floor = marks(figure)
    best = np.where(data["sink"].values, np.nan, data["cosine"].values[..., 0])
    np.testing.assert_allclose(median.y, np.nanmedian(best.transpose(1, 0, 2).reshape(7, -1), axis=1), rtol=1e-6)
    assert np.max(median.high) < 2 and floor.name.startswith("floor")


def test_a_heatmap_frames_sinks_and_its_hover_says_why():
    data = with_sinks(logit_lens(), extremes=False)
    figure = chart(data, "heatmap", prompt=1)
    (cells,) = marks(figure)
    np.testing.assert_array_equal(np.argwhere(cells.framed), [[2, 0], [3, 0], [4, 0]])
    assert f"dotted frame: {SAID}" in title(figure)
    hovers = cells.hover
    assert [SAID in row[0] for row in hovers] == [False, False, True, True, True, False, False]
    assert not any(SAID in text for row in hovers for text in row[1:])
    assert not marks(chart(logit_lens()))[0].framed.any()
    assert "a sink" in title(chart(data, "trajectory", position=0)) and "sink" not in title(chart(data, "trajectory"))


def test_hovers_have_p_and_q_of_the_nearest():
    data = embedding_lens()
    for end, value in (("p", 0.0123), ("q", 0.0456)):
        data[f"cosine_{end}"] = (WHERE, np.full([data.sizes[d] for d in WHERE], value))
    assert "nearest: p 0.0123, q 0.0456" in marks(chart(data))[0].hover[0][0]
    assert lens.Packer("x", data).metrics == ["top", "cosine", "cosine_p", "cosine_q"]


@needs_browser
def test_the_lens_explorer_says_sink_p_and_q_in_the_detail(tmp_path):
    data = with_sinks(embedding_lens(), extremes=False)
    shape = [data.sizes[d] for d in WHERE]
    data["cosine_p"] = (WHERE, np.full(shape, 0.0123))
    data["cosine_q"] = (WHERE, np.full(shape, 0.0456))
    data = described(data, embedding.VARIABLES)
    told = {}
    for depth in (3, 6):
        script = (
            "const { model } = document.getElementById('explorer'); setTimeout(() => model.set('selection', "
            f"{{ ...model.get('selection'), depth: {depth}, position: 0 }}), 300);"
        )
        dom, console = load(dispatch.to_html(data, tmp_path / f"{depth}.html"), script)
        assert not console
        panel = re.search(r'<section class="wx-panel".*?</section>', dom, re.DOTALL)[0]
        told[depth] = re.sub("<[^>]*>", " ", panel)
        assert len(re.findall(r'class="wx-cell[^"]* sink', dom)) == 3
    assert SAID in told[3] and SAID not in told[6]
    assert all("p of nearest 0.0123" in text and "q of nearest 0.0456" in text for text in told.values())


@needs_browser
def test_the_table_of_neighbours_says_sink_p_and_q(tmp_path):
    data = neighbours()
    for end in "pq":
        shape = [data.sizes[d] for d in WHERE]
        data[f"similarity_{end}"] = (WHERE, np.arange(np.prod(shape)).reshape(shape) / 100)
    data = with_sinks(data, slice(1, 2), extremes=False)
    for layer, sink in ((2, True), (5, False)):
        script = (
            "const { model } = document.getElementById('explorer'); setTimeout(() => model.set('selection', "
            f"{{ ...model.get('selection'), prompt: 1, layer: {layer}, position: 3, rank: 2 }}), 300);"
        )
        dom, console = load(dispatch.to_html(data, tmp_path / f"{layer}.html", kind="neighbours"), script)
        assert not console
        said = re.search(r'aria-label="the chosen neighbour".*?</section>', dom, re.DOTALL)[0]
        p = float(data["similarity_p"].sel(prompt=1, layer=layer, position=3))
        assert f"p of the nearest {p:.4f}" in said and f"q of the nearest {p:.4f}" in said
        assert (SAID in said) == sink
    table = dispatch.static_html(data, "neighbours")
    assert "p of the nearest" in table and "q of the nearest" in table
    assert "of the nearest" not in dispatch.static_html(neighbours(), "neighbours")


# ---------------------------------------------------------------- dimensions


def test_curves_draw_every_target_and_name_it():
    targets = [" Paris", " Rome", "日"]
    data = logit_lens(targets=targets)
    figure = chart(data, "curves", value=["target_logprob", "target_rank", "entropy"])
    own, ranks = ([m for m in marks(figure, panel) if m.dash == "solid"] for panel in (0, 1))
    assert [line.name for line in own] == ["·Paris", "·Rome", "日"]
    assert [(line.name, line.hue) for line in own] == [(line.name, line.hue) for line in ranks]
    for i, line in enumerate(own):
        each = [np.nanmean(data["target_logprob"].values[p, ..., i], axis=1) for p in range(3)]
        np.testing.assert_allclose(line.y, np.mean(each, axis=0), rtol=1e-5)
    (entropy,) = marks(figure, 2)
    assert len({entropy.hue, *(line.hue for line in own)}) == 4
    one = chart(data, "curves", value="target_rank", target=" Rome")
    assert "target ·Rome" in title(one) and r"target \textperiodcentered{}Rome" in one.caption()
    assert "target" not in title(chart(data, "curves", value="entropy"))


def test_more_targets_than_hues_are_counted():
    data = logit_lens(targets=[" Paris", " Rome", "日"]).isel(target=[0, 1, 2] * 4)
    data = data.assign_coords(target=[f"t{i}" for i in range(12)])
    for kind, options in (("curves", {"value": "target_rank"}), ("trajectory", {})):
        figure = chart(data, kind, **options)
        assert [m.name for m in marks(figure) if re.fullmatch(r"t\d+", m.name)] == [f"t{i}" for i in range(8)]
        assert "the first 8 of 12 targets" in title(figure)


def test_what_shows_one_of_several_says_which():
    data = logit_lens(targets=[" Paris", " Rome"])
    assert "log-probability of ·Rome (target 2 of 2)" in title(chart(data, value="target_logprob", target=1))
    assert "rank of ·Paris (target 1 of 2)" in title(chart(data, value="target_rank"))
    assert all("prompt 1 of 3" in title(chart(data, kind, prompt=1)) for kind in ("heatmap", "trajectory"))
    assert "(#4)" in title(chart(data, "trajectory", position=4))
    parts = logit_attribution()
    assert "prompt 1 of 2" in title(chart(parts, prompt=1)) and "(#3)" in title(chart(parts, position=3))
    two = parts.copy()
    for name in ("contribution", "logit"):
        two[name] = parts[name].expand_dims(target=["a", "b"])
    two["target_id"] = ("target", [15, 16])
    assert "target 2 of 2" in title(chart(two, target=1)) and "logit of b" in title(chart(two, target=1))


def test_rates_draw_all_series_of_all_dimensions():
    rng = np.random.default_rng(0)
    dims, shape = ("measure", "lens", "size", "layer"), (2, 2, 3, 4)
    rate = rng.uniform(size=shape)
    found = {"rate": rate, "rate_low": rate - 0.1, "rate_high": rate + 0.1, "rate_chance": np.full(shape, 0.5)}
    data = xr.Dataset(
        {k: (dims, v) for k, v in found.items()},
        {"measure": ["m", "n"], "lens": ["a", "b"], "size": [1, 2, 3], "layer": range(4)},
    )
    for panel, own in enumerate(rate):
        lines = {line.name: line for line in marks(chart(data, "rates"), panel) if line.dash == "solid"}
        assert list(lines) == [f"{lens} · {size}" for lens in "ab" for size in (1, 2, 3)]
        np.testing.assert_array_equal(lines["b · 2"].y, own[1, 1])
        np.testing.assert_array_equal(lines["b · 2"].low, own[1, 1] - 0.1)


@needs_browser
@pytest.mark.parametrize("places, numbered", [(4, False), (40, True)])
def test_tokens_below_a_map_of_belief_are_all_there_or_none(places, numbered, tmp_path):
    rng = np.random.default_rng(0)
    belief = rng.dirichlet(np.ones(3), size=(1, 2, places))
    words = np.array([[f"tok{i:02}" for i in range(places)]], object)
    data = xr.Dataset(
        {"belief": (("prompt", "layer", "position", "candidate"), belief),
         "input_token": (("prompt", "position"), words),
         "candidate_name": (("prompt", "candidate"), np.array([["a", "b", "c"]], object))},
        {"layer": [0, 1], "position": range(places), "candidate": range(3)},
    )  # fmt: skip
    script = (
        "const { model } = document.getElementById('explorer');"
        "setTimeout(() => model.set('selection', { ...model.get('selection'), node: 'a' }), 300);"
    )
    dom, _ = load(dispatch.to_html(data, tmp_path / "x.html"), script)
    names = re.search(r'class="wx-heat-names".*?class="wx-heat-title">([^<]*)<', dom, re.DOTALL)
    shown = re.findall(r">([^<>]+)</div>", names[0].split('class="wx-heat-title"')[0])
    if numbered:
        assert all(text.isdigit() for text in shown) and "numbered" in names[1]
    else:
        assert shown == list(words[0])
