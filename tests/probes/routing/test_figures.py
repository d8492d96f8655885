"""Figures show the measures' numbers, and mark as backed what an intervention backs and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

import workbench
from probes.routing import RoutingTracer, figures, measures
from workbench.errors import InputError
from workbench.figures.charts import charts
from workbench.organisms.polyglot import twins


@pytest.fixture(scope="module")
def found():
    texts, labels = twins.documents(60, languages=True, tokens=30)
    tracer = RoutingTracer(labels, trace=True, scores=True, pairs=True)
    return workbench.read(twins.planted(), texts, tracer, progress=False)


def table(**claims: tuple[dict[int, list[int]], bool]) -> xr.Dataset:
    """Effects as they come from probes.routing.effects: experts of each claim, and whether they are missed."""
    n = len(claims)
    experts, backed = zip(*claims.values(), strict=True)
    one = {
        "delta": np.full(n, 0.2),
        "delta_low": np.full(n, 0.1),
        "delta_high": np.full(n, 0.3),
        "q_random": np.full(n, 0.01),
        "backed": backed,
    }
    draws = ("claim", "draw"), np.zeros((n, 3))
    made = {name: ("claim", np.array(values)) for name, values in one.items()}
    made |= {"experts": ("claim", [json.dumps(e) for e in experts]), "delta_random": draws, "delta_replaced": draws}
    return xr.Dataset(made, {"claim": list(claims)}, {"model": "planted"})


def test_every_registered_chart_of_a_trace_draws_from_one_call(found):
    mine = [name for name, chart in charts().items() if chart.measure.startswith("routing.")]
    assert set(mine) >= {
        "usage", "entropy", "gate", "words", "divergence", "layers", "overlap", "gaps", "coactivation", "flow",
    }  # fmt: skip
    for name in mine:
        figure = found.figure(name)
        assert figure.data and figure.layout.width >= 480 and str(figure.layout.title.text).startswith("planted")


def test_numbers_of_the_figures_are_those_of_the_measures(found):
    usage = measures.usage(found, draws=50)
    np.testing.assert_allclose(found.figure("usage", label="L2").data[0].z, usage["share"].sel(label="L2"))
    lines = {line.name: line for line in found.figure("entropy").data if line.name}
    np.testing.assert_allclose(lines["L1"].y, usage["entropy_corrected"].sel(label="L1"), atol=0.01)
    np.testing.assert_allclose(lines["even"].y, np.log(twins.EXPERTS))
    z = np.array(found.figure("divergence").data[0].z, float)
    below = np.tril_indices(4, -1)
    np.testing.assert_allclose(z[below], measures.divergence(found, draws=5)["jsd"].values[..., 1][below])
    np.testing.assert_allclose(np.array(found.figure("gate", label="L0").data[0].z).sum(1), 1)
    words = found.figure("words", block=1).data[0].cells["values"]
    tokens = measures.vocabulary(found, least=10)
    assert [int(e) for e in words[0]] == list(range(twins.EXPERTS))
    served = [int((tokens["expert"].values[1] == e).sum()) for e in range(twins.EXPERTS)]
    assert all(int(shown) <= n for shown, n in zip(words[2], served, strict=True))


def test_shares_that_chance_gives_are_hatched(found):
    usage = measures.usage(found, draws=0).data.sel(label="L0")
    inside = (usage["share"] >= usage["band_low"]) & (usage["share"] <= usage["band_high"])
    assert 0 < int(inside.sum()) < inside.size
    np.testing.assert_array_equal(np.array(found.figure("usage").data[0].text) == "///", inside)


def test_stars_stand_where_an_intervention_backs_the_claim(found):
    backed = table(L0=({1: [0, 1]}, True), L1=({1: [2]}, False), L2=({1: [4]}, False))
    stars = found.figure("usage", label="L0", effects=backed).data[1]
    assert stars.marker.symbol == "star" and list(zip(stars.y, stars.x, strict=True)) == [("1", 0), ("1", 1)]
    # Of another label's experts, and of claims that fail, nothing is marked.
    for label in ("L1", "L2", "L3"):
        assert len(found.figure("usage", label=label, effects=backed).data) == 1
    gaps = found.figure("gaps", effects=backed)
    stars = {text for line in gaps.data for text, s in zip(line.text, line.marker.symbol, strict=True) if s == "star"}
    assert stars == {"0", "1"}
    forest = figures.forest(backed)
    assert ["★" in name for name in forest.layout.yaxis.ticktext] == [True, False, False]
    assert [len(x.x) for x in forest.data] == [9, 9, 3]
    for draw in (figures.forest, lambda table: found.figure("gaps", effects=table)):
        with pytest.raises(InputError, match="no 'backed'.*probes.routing.effects"):
            draw(backed.drop_vars("backed"))


def test_figures_of_several_readings_take_the_measures_table(found):
    kept = measures.saturation([found, found], ["early", "late"], floor=found)
    figure = figures.saturation(kept)
    assert [line.name for line in figure.data if line.name] == ["block 0", "block 1"]
    assert {a.text for a in figure.layout.annotations} == {"chance", "noise"}
    apart = measures.parallel(found, [i // 4 for i in range(60)], draws=20)
    figure = figures.parallel(apart, reference="L0")
    solid = [line for line in figure.data if line.name and line.line.dash is None]
    assert [line.name for line in solid] == ["L0-L1", "L0-L2", "L0-L3"]
    np.testing.assert_allclose(solid[0].y, apart["divergence"].sel(label="L0", label_2="L1"))
    with pytest.raises(InputError, match="no label 'xx'"):
        figures.parallel(apart, reference="xx")


def test_a_line_lies_within_its_band():
    texts, labels = twins.documents(16, languages=False, tokens=30)
    few = workbench.read(twins.null(), texts, RoutingTracer(labels), progress=False)
    for name in ("layers", "entropy"):
        figure = few.figure(name)
        bands, lines = ([x for x in figure.data if (x.fill == "toself") == filled] for filled in (True, False))
        for band, line in zip(bands, lines, strict=False):
            high, low = np.array(band.y)[:2], np.array(band.y)[2:][::-1]
            assert (low <= np.array(line.y) + 1e-9).all() and (np.array(line.y) <= high + 1e-9).all(), name


def test_what_is_not_there_is_named(found):
    for name, wrong, says in (
        ("divergence", {"block": 15}, "Block 15 is not in the reading"), ("gaps", {"block": 2}, "Block 2 is not"),
        ("words", {"block": -3}, "Block -3 is not"), ("overlap", {"measure": "x"}, "Use one of jaccard"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            found.figure(name, **wrong)
    assert found.figure("divergence", block=-1).layout.title.text == found.figure("divergence").layout.title.text
    table = measures.saturation([found, found], ["early", "late"], floor=found)
    free = figures.saturation(table, value="divergence")
    assert free.layout.yaxis.range is None and {a.text for a in free.layout.annotations} == {"noise"}
    with pytest.raises(InputError, match="no 'kl'"):
        figures.saturation(table, value="kl")
