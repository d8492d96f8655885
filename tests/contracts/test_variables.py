"""Every variable of every result says what it is; and a lens of a third party is shown by that alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench
from lenses import EmbeddingLens, LatentLens, LogitAttribution, LogitLens
from lenses.latent import ContextIndex, logit_agreement
from lenses.latent.hubness import hubness, hubs
from lenses.latent.senses import senses
from workbench.figures import chart
from workbench.organisms.story.grammar import stories
from workbench.reading import Reading
from workbench.variables import ROLES, about, completed, controls_of, described, lacking
from workbench.widgets import dispatch, lens

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workbench"))
from synthetic import embedding_lens, logit_attribution, logit_lens

PROMPTS = ["Mara lives in the", "one two"]


@pytest.fixture(scope="module")
def story():
    return workbench.load("organism:story")


@pytest.fixture(scope="module")
def index(story, tmp_path_factory):
    texts = [s.text for s in stories(60, 5)]
    path = tmp_path_factory.mktemp("variables") / "index"
    return ContextIndex.build(story, texts, path, contexts_per_token=4, progress=False)


def read(story, reader):
    return workbench.read(story, PROMPTS, reader, progress=False)


def agreement(story, index):
    return logit_agreement(*workbench.read(story, PROMPTS, [LatentLens(index), LogitLens()], progress=False))


# Results that readers do not give as they are (those: test_readers.py): name -> function(story, index).
RESULTS = {
    "embedding, bare": lambda story, index: read(story, EmbeddingLens(floors=False)),
    "attribution, targets": lambda story, index: read(story, LogitAttribution(targets=[" a", " the"])),
    "latent, bare": lambda story, index: read(story, LatentLens(index, floors=False)),
    "search": lambda story, index: index.search(np.random.default_rng(0).normal(size=(3, story.d_model))),
    "hubness": lambda story, index: hubness(index, calibrations=["none", "csls"]),
    "hubs": lambda story, index: hubs(read(story, LatentLens(index)), hubs=4),
    "agreement": agreement,
    "senses": lambda story, index: senses(story, queries=10, corpus=40),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_variable_says_what_it_is(name, story, index, tmp_path):
    found = RESULTS[name](story, index)
    data = getattr(found, "data", found)
    assert lacking(data) == []
    texts = [n for n, c in data.coords.items() if c.dtype.kind in "OUS"]
    assert [n for n in texts if data[n].attrs.get("role") != "label"] == [], "labels of dimensions"
    held = {v.attrs["role"] for v in data.data_vars.values()}
    assert "value" in held and held <= set(ROLES)
    if isinstance(found, Reading):
        kept = workbench.open(found.save(tmp_path / "x.nc")).data
        for n in data.variables:
            assert dict(kept[n].attrs) == dict(data[n].attrs), f"{n} keeps in a file what it says"


# ---------------------------------------------------------------- a lens of a third party


def speed_lens(prompts=2, layers=4, positions=5):
    """What another package's lens gives: one value, its null and its floor, under names that nobody here knows."""
    rng = np.random.default_rng(0)
    dims = ("prompt", "layer", "position")
    shape = (prompts, layers, positions)
    data = xr.Dataset(
        {
            "celerity": (dims, rng.uniform(1, 2, shape)),
            "quiet": (dims, rng.uniform(0, 1, shape)),
            "input_id": (("prompt", "position"), np.ones((prompts, positions), int)),
            "input_token": (("prompt", "position"), np.full((prompts, positions), " a", object)),
        },
        {"layer": range(layers)},
        {"reader": "SpeedLens", "model": "made-up"},
    )
    variables = {
        "celerity": about("speed of the state", "norms per layer", "low", short_name="speed"),
        "quiet": about("speed of states of shuffled prompts", "norms per layer", role="null", of="celerity",
                       short_name="shuffled prompts"),
        "input_id": about("id of the input token", role="label"),
        "input_token": about("input token", role="label", of="input_id"),
    }  # fmt: skip
    return described(data, variables)


def test_a_grid_of_a_third_party_is_in_figures_and_captions():
    data = speed_lens()
    heat = chart(data, "heatmap").plot
    (cells,) = heat.panels[0].marks
    assert cells.bar == "speed (norms per layer)" and "speed of the state" in heat.title
    (entropy,) = chart(logit_lens(), "heatmap", value="entropy").plot.panels[0].marks
    assert cells.scale == entropy.scale, "low is the strong end of both"
    for kind in ("curves", "trajectory"):
        (panel,) = chart(data, kind).plot.panels
        assert panel.y.label.endswith("(norms per layer)")
        assert [line for line in panel.marks if line.dash == "dot"], "its null"
    caption = chart(data, "curves").caption()
    assert "Null: speed of states of shuffled prompts." in caption and "names no null" not in caption


def test_a_grid_of_a_third_party_is_a_metric_of_the_explorer():
    packer = lens.Packer("x", speed_lens())
    assert packer.metrics == ["celerity"]
    known = packer.head()["variables"]
    assert known["celerity"]["name"] == "speed" and known["celerity"]["colours"] == "reversed"
    assert known["celerity"]["nulls"] == ["quiet"] and known["quiet"]["role"] == "null"
    assert "speed of the state" in dispatch.static_html(speed_lens())
    both = logit_lens(lengths=(5, 5), layers=4).merge(speed_lens()[["celerity", "quiet"]], compat="override")
    assert lens.Packer("x", both).metrics[-1] == "celerity", "beside those of a lens with tokens"


# ---------------------------------------------------------------- readings that say nothing, as of version 0.1.0


@pytest.mark.parametrize("make", [logit_lens, embedding_lens, logit_attribution])
def test_what_says_nothing_is_called_by_its_bare_names(make):
    data = make().drop_attrs(deep=True).assign_attrs(reader="Old", model="made-up")
    if "cosine_floor_shuffled" in data:  # some said a part of it
        data["cosine_floor_shuffled"].attrs = {"role": "floor", "of": "cosine", "long_name": "95th percentile"}
    told = completed(data)
    assert lacking(told) == [] and completed(told) is told
    assert all("units" not in v.attrs for v in data.variables.values()), "what was given is left as it is"
    chart(data)
    lens.Packer("x", data).head()
    score = next(n for n in ("logprob", "cosine", "contribution") if n in data)
    assert told[score].attrs["long_name"] == score and lens.Packer("x", data).metrics
    dispatch.static_html(data)


def test_suffixes_tell_the_controls_of_what_says_nothing():
    names = ["rate", "rate_low", "rate_high", "rate_chance", "rate_floor_shuffled", "rate_p_low", "rate_p", "low"]
    names += ["x_q"]
    data = completed(xr.Dataset({name: ("layer", np.ones(3)) for name in names}))
    assert controls_of(data, "rate") == {
        "low": ["rate_low"], "high": ["rate_high"], "chance": ["rate_chance"], "floor": ["rate_floor_shuffled"],
        "p": ["rate_p"],
    }  # fmt: skip
    assert controls_of(data, "rate_p") == {"low": ["rate_p_low"]}
    assert data["low"].attrs["role"] == data["x_q"].attrs["role"] == "value", "they stand behind no other's name"
