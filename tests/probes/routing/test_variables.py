"""Every result of routing says what it is: variables, provenance, caption, file, and the figure of the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zoo

import workbench
from probes.routing import RoutingTracer, adapters, contributions, effect, effects, functional, measures, regret, shared
from workbench.figures.caption import about
from workbench.organisms.polyglot import twins
from workbench.variables import lacking

DRAWS = {"draws": 9}


@pytest.fixture(scope="module")
def model():
    return twins.planted()


@pytest.fixture(scope="module")
def texts():
    return twins.documents(24, languages=True, tokens=20)


@pytest.fixture(scope="module")
def found(model, texts):
    tracer = RoutingTracer(texts[1], trace=True, scores=True, pairs=True)
    return workbench.read(model, texts[0], tracer, progress=False)


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """A model that routes over adapters, its documents, each label's own adapter and the reading."""
    pytest.importorskip("peft", reason="peft is not installed, and Arrow routers are PEFT's")
    from test_adapters import ORACLE, arrow, documents

    own = workbench.load(arrow(tmp_path_factory.mktemp("arrow")), name="planted")
    given = documents(6)
    return own, given, ORACLE, adapters.adapter_routing(own, *given, oracle=ORACLE, trace=True, progress=False)


CONTEXT = ("input_", "prompt_text", "sink")  # what every reader's reading has besides


def test_readers_say_what_their_variables_are(found, routed, texts, model):
    by_token = [[label] * len(text) for text, label in zip(*texts, strict=True)]
    by_token[0] = ["L0"] * 5 + ["L1"] * (len(texts[0][0]) - 5)
    parts = workbench.read(model, texts[0], RoutingTracer(by_token, scores=True), progress=False)
    for reading in (found, routed[-1], parts):
        assert [x for x in lacking(reading.data) if not x.startswith(CONTEXT)] == []


MEASURES = {
    **dict.fromkeys(
        ("usage", "gate", "balance", "divergence", "information", "specialisation", "agreement", "classes", "decode",
         "differences", "select", "coactivation", "flow", "consistency"), DRAWS,
    ),
    "vocabulary": {"least": 5}, "overlap": {"permutations": 9, **DRAWS}, "context": {}, "paths": {},
}  # fmt: skip


def check(reading, sources, tmp_path):
    """What holds of every result; gives the figure that it is drawn in, or None."""
    assert lacking(reading.data) == []
    *before, last = reading.provenance
    assert last["step"].rpartition(".")[2] == reading.data.attrs["measure"] and len(last["of"]) == sources
    assert reading.provenance["model"]["name"] == reading.data.attrs["model"] and "prompts" in before[0]
    assert about(reading)["model"] == reading.data.attrs["model"]
    again = workbench.open(reading.save(tmp_path / "result.nc"))
    xr.testing.assert_equal(again.data, reading.data)
    assert lacking(again.data) == []
    assert [x["step"] for x in again.provenance] == [x["step"] for x in reading.provenance]
    if "chart" not in reading.data.attrs:
        return None
    figure = reading.figure()
    assert figure.caption() == figure.caption(reading)
    return figure


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_says_what_its_numbers_are(found, tmp_path, name):
    reading = getattr(measures, name)(found, **MEASURES[name])
    check(reading, 1, tmp_path)
    assert reading.provenance[0] == found.provenance[0] and reading.provenance["reader"]["name"] == "RoutingTracer"
    settings = reading.provenance["settings"]
    assert {**settings, **MEASURES[name]} == settings


def test_measures_of_several_sources_keep_them_all(found, model, tmp_path):
    figure = check(measures.saturation([found, found], ["a", "b"], floor=found, **DRAWS), 3, tmp_path)
    assert figure is not None
    parallel = measures.parallel(found, [i // 4 for i in range(24)], **DRAWS)
    figure = check(parallel, 1, tmp_path)
    np.testing.assert_array_equal(figure.plot.panels[0].marks[0].y, parallel["divergence"].values[0, 1])
    check(measures.reordering(found, model, **DRAWS), 1, tmp_path)
    check(measures.geometry(model, draws=5), 0, tmp_path)
    check(measures.router_drift({0: twins.null(), 1: model}), 0, tmp_path)


@pytest.mark.parametrize(
    ("chart", "measure", "options", "shown"),
    [
        ("usage", "usage", {"label": "L1"}, lambda t: t["share"].sel(label="L1")),
        ("gate", "gate", {"label": "L1"}, lambda t: t["histogram"].sel(label="L1")),
        ("divergence", "divergence", {"block": 0}, lambda t: t["jsd"].isel(block=0)),
        ("coactivation", "coactivation", {"block": 0}, lambda t: t["lift"].isel(block=0)),
    ],
)
def test_the_figure_of_a_trace_is_that_of_the_table(found, chart, measure, options, shown):
    """Measured by the figure or before it, with the measure's settings: the same numbers, drawn and printed."""
    for settings in ({}, {"draws": 30, "level": 0.8, "seed": 3}):
        table = getattr(measures, measure)(found, **settings)
        at_once, of_table = found.figure(chart, **options, **settings), table.figure(chart, **options)
        for figure in (at_once, of_table):
            values, own = figure.plot.panels[0].marks[0].values, shown(table).values
            there = np.isfinite(values) & np.isfinite(own)
            assert there.any()
            np.testing.assert_array_equal(values[there], own[there])
        assert at_once.plot.title == of_table.plot.title


def test_bands_and_lines_are_the_measures_own(found):
    table = measures.divergence(found)
    lines = {line.name: line for line in found.figure("layers").plot.panels[0].marks}
    for name, ending in (
        ("labels, less bias", "_corrected"), ("labels, as counted", ""), ("halves of one label", "_floor"),
        ("labels shuffled among documents", "_null"),
    ):  # fmt: skip
        np.testing.assert_array_equal(lines[name].y, table[f"mean_jsd{ending}"])
    for end in ("low", "high"):
        np.testing.assert_array_equal(getattr(lines["labels, less bias"], end), table[f"mean_jsd_{end}"])
    (panel,) = found.figure("gaps", draws=50).plot.panels
    selected, order = measures.select(found, draws=50), [int(x) for x in panel.x.names]
    np.testing.assert_array_equal(panel.marks[-1].y, selected["threshold"].values[-1][order])
    for points in panel.marks[:-1]:
        own = [order[x] for x in points.x]
        np.testing.assert_array_equal(points.y, selected["gap"].values[-1][own])
        assert set(selected["owner"].values[-1][own]) <= {points.name}
    with pytest.raises(workbench.errors.InputError, match="no option 'drawz'.*routing.divergence"):
        found.figure("divergence", drawz=3)


def test_levels_are_those_asked_for(found):
    for name in ("usage", "gate", "specialisation", "information", "coactivation", "consistency"):
        narrow, wide = (getattr(measures, name)(found, draws=60, level=level).data for level in (0.5, 0.95))
        lows = [n for n in narrow if str(n).endswith("_low") and narrow[n].attrs["role"] == "low"]
        assert lows
        for low in lows:
            a, b = (x[low.replace("_low", "_high")] - x[low] for x in (narrow, wide))
            assert bool((a <= b + 1e-9).where(~np.isnan(a), True).all()), (name, low)


def test_what_runs_the_model_begins_with_the_model(model, texts, tmp_path):
    some = texts[0][:6]
    claims = {"a": (some, {1: [0, 1]}), "b": (some, {1: [2]})}
    figure = check(effects(model, claims, sets=2, **DRAWS), 2, tmp_path)
    _, *points = figure.plot.panels[0].marks
    assert [one.name for one in points] == ["other sets", "replaced at random", "dropped"]
    for reading in (
        effect(model, some, {1: [0]}, sets=2, **DRAWS), regret(model, some, 1, routes=2, **DRAWS),
        contributions(model, some, **DRAWS), functional(model, some, clusters=5, **DRAWS),
    ):  # fmt: skip
        check(reading, 0, tmp_path)
        assert reading.provenance["prompts"] == 6
    check(shared(workbench.load(zoo.build("qwen2_moe")), [[5, 6, 7], [8, 9]], **DRAWS), 0, tmp_path)


def test_results_of_adapters(routed, tmp_path):
    own, given, oracle, reading = routed
    figure = check(adapters.usage(reading, **DRAWS), 1, tmp_path)
    (cells,) = figure.plot.panels[0].marks
    np.testing.assert_array_equal(cells.values, adapters.usage(reading, **DRAWS)["mean_weight"])
    for found in (adapters.oracle_rate(reading, **DRAWS), adapters.agreement(reading, **DRAWS)):
        check(found, 1, tmp_path)
    check(adapters.gram(own, **DRAWS), 0, tmp_path)
    check(adapters.compare(own, *given, oracle, **DRAWS), 0, tmp_path)
