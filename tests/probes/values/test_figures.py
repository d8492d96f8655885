"""Figures show the tables' numbers, and hatch what is not beyond chance."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from moving import moving
from test_greatest_good import drawn
from test_greatest_good import readings as scored

from probes.values import figures
from probes.values.greatest_good import scores
from probes.values.measures import agreement, compare, data_gap, drift, sides, stance
from workbench.errors import InputError


@pytest.fixture(scope="module")
def readings() -> xr.Dataset:
    """Three topics, of which one moves."""
    return moving(["moved", "still", "calm"], "moved", 40)


def test_trajectories_of_one_run_and_of_two(readings):
    table = stance(readings, draws=100).data
    lines = [line for line in figures.trajectories(table).data if line.hoverinfo != "skip"]
    for line, topic in zip(lines, table["topic"].values, strict=True):
        np.testing.assert_allclose(line.y, table["keyed"].sel(topic=topic))
    both = figures.trajectories({"dpo": table, "ppo": table})
    assert [line.name for line in both.data if line.showlegend] == ["dpo", "ppo"]


def test_what_is_not_beyond_chance_is_hatched_and_has_no_time(readings):
    table = drift(readings, draws=400).data
    figure = figures.drifts(table)
    hatched = np.array(figure.data[0].text) == "///"
    names = [str(t) for t in table["topic"].values]
    assert not hatched[names.index("moved"), -1] and hatched[names.index("still")][1:].all()
    np.testing.assert_allclose(figure.data[0].z, table["keyed_M"].transpose("topic", "checkpoint"))
    assert list(figures.times(table).data[0].y) == ["moved"]


def test_items_change_sides_and_none_is_lost(readings):
    figure = figures.sides(sides(readings, topic="moved"))
    flow = figure.data[0].link
    assert sum(flow.value) == 40
    mean = readings["p"].mean("sample").values[:, :40]
    crossed = int(((mean[0].argmax(-1) == 2) & (mean[-1].argmax(-1) == 0)).sum())
    shown = {(s, t): v for s, t, v in zip(flow.source, flow.target, flow.value, strict=True)}
    assert shown.get((2, 4), 0) == crossed > 0
    # What is not committed is a side of its own, in a colour of its own.
    silent = readings.copy(deep=True)
    silent["p"][-1, :7] = [0.05, 0.05, 0.05, 0.85]
    node = figures.sides(sides(silent, topic="moved")).data[0].node
    assert node.label[7] == "uncommitted or refused: 7" and node.label[3] == "uncommitted or refused: 0"
    assert len(set(node.color[4:])) == 4
    with pytest.raises(InputError, match="There is no checkpoint 7"):
        sides(readings, 7)
    with pytest.raises(InputError, match="There is no topic 'other'"):
        sides(readings, topic="other")


def dots(figure) -> list:
    return [t for t in figure.data if t.mode and "markers" in t.mode and t.x is not None and t.x[0] is not None]


def test_data_and_drift_are_shown_with_their_correlation_and_what_few_topics_can_say(readings):
    training = xr.Dataset({"keyed": ("topic", [0.8, -0.1, 0.1])}, {"topic": ["moved", "still", "calm"]})
    with pytest.warns(UserWarning, match="3 topics"):
        table = data_gap(training, readings, draws=200).data
    figure = figures.gap(table)
    (own,) = dots(figure)
    assert list(own.x) == [0.8, -0.1, 0.1] and list(own.text) == ["moved", "still", "calm"]
    np.testing.assert_allclose(own.y, table["drift"])
    np.testing.assert_allclose(np.add(own.y, own.error_y.array), table["drift_band_high"])
    np.testing.assert_allclose(np.subtract(own.y, own.error_y.arrayminus), table["drift_band_low"])
    assert list(own.marker.symbol) == ["circle", "circle-open", "circle-open"]
    diagonal = figure.data[0]
    assert list(diagonal.x) == list(diagonal.y)
    p = f"p = {float(table['pearson_p']):.3f}"
    assert p in figure.layout.title.text and "3 topics: p is at least 0.17" in figure.layout.annotations[0].text


def test_runs_stand_beside_each_other_by_topic_with_bands_and_the_colour_of_their_arm(readings):
    back = readings.isel(checkpoint=[0, 0]).assign_coords(checkpoint=[0, 40])
    table = compare({"a1": readings, "a2": readings, "b1": back}, arm={"a1": "a", "a2": "a", "b1": "b"}, draws=200).data
    figure = figures.runs(table)
    rows = dots(figure)
    assert len(rows) == 3 and rows[0].marker.color == rows[1].marker.color != rows[2].marker.color
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row.x, table["keyed_M"].isel(run=i))
        np.testing.assert_allclose(np.add(row.x, row.error_x.array), table["keyed_M_band_high"].isel(run=i))
    assert rows[0].marker.symbol[0] == "circle" and set(rows[2].marker.symbol) == {"circle-open"}
    told = [t for t in figure.data if t.showlegend]
    assert [t.name for t in told] == ["a1", "a2", "b1"]
    assert [t.marker.symbol for t in told] == ["circle", "square", "circle"], "one shape for each run of an arm"
    assert rows[1].marker.symbol[0] == "square" and told[1].marker.color == rows[1].marker.color
    assert list(figure.layout.yaxis.ticktext) == ["moved", "still", "calm"]


def test_many_runs_and_topics_stay_on_a_page_and_apart(readings):
    back = readings.isel(checkpoint=[0, 0]).assign_coords(checkpoint=[0, 40])
    table = compare({f"r{i}": back for i in range(7)}, draws=50).data
    wide = xr.concat([table.isel(topic=[0])] * 10, "topic").assign_coords(topic=[f"topic {i}" for i in range(10)])
    figure = figures.runs(wide.assign_attrs(table.attrs))
    assert figure.layout.height < 900
    places = np.sort(np.concatenate([row.y for row in dots(figure)]))
    unit = (figure.layout.height - 150) / 10  # pixels of a topic
    gaps = np.diff(places.reshape(10, 7), axis=1) * unit
    assert gaps.min() > 7.5, "marks of two runs cover each other"
    assert (places.reshape(10, 7).mean(1).round(6) == np.arange(10)).all()
    assert (np.diff(places)[6::7] * unit > gaps.max() + 8).all(), "topics are told apart"


def test_topics_at_one_place_share_a_label(readings):
    names = ["free speech", "tax", "animals", "space", "trade", "faith", "borders"]
    value = np.array([0.5, 0.0, 0.0, 0.0, 0.001, -0.5, np.nan])
    own = {"training": value, "drift": value, "drift_band_low": value - 0.1, "drift_band_high": value + 0.1}
    own |= {"drift_p": np.full(7, 0.5)}
    pearson = dict.fromkeys(["pearson", "pearson_low", "pearson_high", "pearson_p"], 0.5)
    table = xr.Dataset({k: ("topic", v) for k, v in own.items()} | pearson, {"topic": names})
    figure = figures.gap(table.assign_attrs(level=0.95, topics=6))
    labels = [set(note.text.replace("<br>", " ").split(", ")) for note in figure.layout.annotations]
    assert {"tax", "animals", "space", "trade"} in labels and len(labels) == 3
    assert "unnamed" not in figure.layout.title.text


def test_agreement_is_shown_where_both_instruments_read(readings):
    late = readings.isel(checkpoint=[2, 4])
    table = agreement({"pmf": readings, "sequence": readings, "sampled": late}, draws=100).data
    figure = figures.agreement(table)
    lines = {t.name: t for t in figure.data if t.showlegend}
    assert list(lines) == ["pmf - sequence", "pmf - sampled", "sequence - sampled"]
    assert list(lines["pmf - sampled"].x) == [20, 40]
    np.testing.assert_allclose(lines["pmf - sequence"].y, 1)
    bands = [t for t in figure.data if t.fill == "toself"]
    assert len(bands) == 3 and len(bands[0].x) == 10


def test_the_plane_has_harm_across_and_beneficence_up_and_people_where_they_are():
    rng = np.random.default_rng(0)
    value = np.concatenate([drawn([4.0, 5.5], 50, rng, 0.1), drawn([4.0, 2.5], 40, rng, 0.1)], 1)
    table = scores(scored(value, ["IB"] * 50 + ["IH"] * 40, [f"c{k}" for k in range(90)]), draws=200).data
    figure = figures.plane(table)
    named = {t.name: t for t in figure.data if t.name}
    np.testing.assert_allclose(named["checkpoints"].x, table["score"].sel(scale="IH"))
    np.testing.assert_allclose(named["checkpoints"].y, table["score"].sel(scale="IB"))
    high = np.add(named["checkpoints"].y, named["checkpoints"].error_y.array)
    np.testing.assert_allclose(high, table["score_band_high"].sel(scale="IB"))
    people = named["people (mean, 1 SD)"]
    assert (people.x[0], people.y[0]) == (3.31, 3.65)
    ellipse = next(t for t in figure.data if t.fill == "toself")
    assert (max(ellipse.x), max(ellipse.y)) == pytest.approx((3.31 + 1.22, 3.65 + 1.20), abs=1e-2)
    grey = figure.layout.shapes[0]
    assert grey.x1 - 4 == pytest.approx(float(table["null"].sel(scale="IH").max()))
    assert grey.y1 - 4 == pytest.approx(float(table["null"].sel(scale="IB").max())) == 4 - grey.y0
    with pytest.raises(InputError, match="no scale IB"):
        figures.plane(table.sel(scale=["IH"]))
