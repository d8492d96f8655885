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
from workbench.figures.plot import Cells, Flow, Line, Points, Region


@pytest.fixture(scope="module")
def readings() -> xr.Dataset:
    """Three topics, of which one moves."""
    return moving(["moved", "still", "calm"], "moved", 40)


def marks(figure, kind) -> list:
    return [mark for panel in figure.plot.panels for mark in panel.of(kind)]


def test_trajectories_of_one_run_and_of_two(readings):
    table = stance(readings, draws=100)
    one, both = figures.trajectories(table), figures.trajectories({"dpo": table, "ppo": table.data})
    assert [panel.title for panel in one.plot.panels] == ["moved", "still", "calm"]
    for line, topic in zip(marks(one, Line), table["topic"].values, strict=True):
        own = table.data.sel(topic=topic)
        np.testing.assert_array_equal([line.y, line.low, line.high], [own[f"keyed{e}"] for e in ("", "_low", "_high")])
    assert [line.name for line in both.plot.panels[0].of(Line)] == ["dpo", "ppo"]
    with_mass = table.data.assign(mass=table["keyed"] * 0 + 0.5)
    _, mass = figures.trajectories(with_mass).plot.panels[0].of(Line)
    assert mass.dash == "dash" and (mass.y == 0.5).all()
    with pytest.raises(InputError, match="Expected a Reading"):
        figures.trajectories({"dpo": "out/dpo"})
    with pytest.raises(InputError, match="Expected a Reading"):
        figures.drifts("out/dpo")


def test_of_several_runs_a_figure_names_each_and_their_readings_chart_knows_its_model(readings):
    table = stance(readings.assign_attrs(model="the-model"), draws=20)
    assert "dpo, ppo" in figures.trajectories({"dpo": table, "ppo": table}).caption()
    assert table.figure("trajectories").caption() == figures.trajectories(table).caption()


def test_what_is_not_beyond_chance_is_hatched_and_has_no_time(readings):
    table = drift(readings, draws=400).data
    (cells,) = marks(figures.drifts(table), Cells)
    names = [str(t) for t in table["topic"].values]
    assert not cells.hatched[names.index("moved"), -1] and cells.hatched[names.index("still")][1:].all()
    np.testing.assert_array_equal(cells.values, table["keyed_M"].transpose("topic", "checkpoint"))
    # What was not read is not hatched either.
    gone = table.assign(keyed_M=table["keyed_M"].where(table["topic"] != "still"))
    assert not marks(figures.drifts(gone), Cells)[0].hatched[names.index("still")].any()
    times = figures.times(table)
    assert times.plot.panels[0].y.names == ["moved"]
    assert list(marks(times, Points)[0].x) == [float(table["keyed_onset"].sel(topic="moved"))]


def test_items_change_sides_and_none_is_lost(readings):
    (flow,) = marks(figures.sides(sides(readings, topic="moved")), Flow)
    assert sum(count for *_, count in flow.links) == 40
    mean = readings["p"].mean("sample").values[:, :40]
    crossed = int(((mean[0].argmax(-1) == 2) & (mean[-1].argmax(-1) == 0)).sum())
    names = [text.split(":")[0] for _, text, _ in flow.nodes]
    moved = {(names[a], names[b]): count for a, b, count in flow.links}
    assert moved.get(("oppose", "support"), 0) == crossed > 0
    # What is not committed is a side of its own, in a colour of its own.
    silent = readings.copy(deep=True)
    silent["p"][-1, :7] = [0.05, 0.05, 0.05, 0.85]
    (flow,) = marks(figures.sides(sides(silent, topic="moved")), Flow)
    assert [text for _, text, _ in flow.nodes if "refused" in text] == ["uncommitted or refused: 7"]
    hues = [hue for column, _, hue in flow.nodes if column]
    assert len(set(hues)) == len(hues) > 1
    with pytest.raises(InputError, match="There is no checkpoint 7"):
        sides(readings, 7)
    with pytest.raises(InputError, match="There is no topic 'other'"):
        sides(readings, topic="other")


def test_data_and_drift_are_shown_with_their_correlation_and_what_few_topics_can_say(readings):
    training = xr.Dataset({"keyed": ("topic", [0.8, -0.1, 0.1])}, {"topic": ["moved", "still", "calm"]})
    with pytest.warns(UserWarning, match="3 topics"):
        table = data_gap(training, readings, draws=200).data
    figure = figures.gap(table)
    (own,) = marks(figure, Points)
    assert list(own.x) == [0.8, -0.1, 0.1] and list(own.names) == ["moved", "still", "calm"]
    ends = [table[f"drift{end}"] for end in ("", "_band_low", "_band_high")]
    np.testing.assert_array_equal([own.y, own.y_low, own.y_high], ends)
    assert list(own.filled) == [True, False, False]
    (diagonal,) = marks(figure, Line)
    assert list(diagonal.x) == list(diagonal.y)
    assert f"p = {float(table['pearson_p']):.3f}" in figure.plot.title
    assert "3 topics: p is at least 0.17" in figure.plot.note and figure.plot.note in figure.caption()


def test_runs_stand_beside_each_other_by_topic_with_bands_and_the_colour_of_their_arm(readings):
    back = readings.isel(checkpoint=[0, 0]).assign_coords(checkpoint=[0, 40])
    table = compare({"a1": readings, "a2": readings, "b1": back}, arm={"a1": "a", "a2": "a", "b1": "b"}, draws=200).data
    figure = figures.runs(table)
    rows = marks(figure, Points)
    assert [row.name for row in rows] == ["a1", "a2", "b1"]
    assert rows[0].hue == rows[1].hue != rows[2].hue
    assert [row.symbol for row in rows] == ["circle", "square", "circle"], "one shape for each run of an arm"
    for i, row in enumerate(rows):
        ends = [table[f"keyed_M{end}"].isel(run=i) for end in ("", "_band_low", "_band_high")]
        np.testing.assert_array_equal([row.x, row.x_low, row.x_high], ends)
    assert rows[0].filled[0] and not rows[2].filled.any()
    assert figure.plot.panels[0].y.names == ["moved", "still", "calm"]
    # Each run has its place, nearest to its own topic.
    places = np.array([row.y for row in rows])
    assert (places.round() == np.arange(3)).all() and len(np.unique(places)) == 9
    assert figure.data[1].hovertext[1].startswith("a2: still: ")


def test_agreement_is_shown_where_both_instruments_read(readings):
    late = readings.isel(checkpoint=[2, 4])
    table = agreement({"pmf": readings, "sequence": readings, "sampled": late}, draws=100).data
    lines = {line.name: line for line in marks(figures.agreement(table), Line)}
    assert list(lines) == ["pmf - sequence", "pmf - sampled", "sequence - sampled"]
    assert list(lines["pmf - sampled"].x) == [20, 40] and not lines["pmf - sampled"].bars
    own = lines["pmf - sequence"]
    np.testing.assert_allclose(own.y, 1)
    np.testing.assert_array_equal(own.low, table["spearman_low"].sel(pair="pmf - sequence"))
    assert marks(figures.agreement(table.isel(checkpoint=[4])), Line)[0].bars, "a band of one checkpoint is not seen"


def test_the_plane_has_harm_across_and_beneficence_up_and_people_where_they_are():
    rng = np.random.default_rng(0)
    value = np.concatenate([drawn([4.0, 5.5], 50, rng, 0.1), drawn([4.0, 2.5], 40, rng, 0.1)], 1)
    table = scores(scored(value, ["IB"] * 50 + ["IH"] * 40, [f"c{k}" for k in range(90)]), draws=200).data
    figure = figures.plane(table)
    people, own = marks(figure, Points)
    ih, ib = (table.sel(scale=scale) for scale in ("IH", "IB"))
    np.testing.assert_array_equal([own.x, own.y], [ih["score"], ib["score"]])
    np.testing.assert_array_equal([own.x_low, own.y_high], [ih["score_band_low"], ib["score_band_high"]])
    assert list(own.names) == [str(step) for step in table["checkpoint"].values]
    assert (people.x[0], people.y[0]) == (3.31, 3.65)
    grey, ellipse = marks(figure, Region)
    assert (max(ellipse.x), max(ellipse.y)) == pytest.approx((3.31 + 1.22, 3.65 + 1.20), abs=1e-2)
    assert (max(grey.x) - 4, max(grey.y) - 4) == pytest.approx((float(ih["null"].max()), float(ib["null"].max())))
    assert min(grey.y) + max(grey.y) == pytest.approx(8)
    with pytest.raises(InputError, match="no scale IB"):
        figures.plane(table.sel(scale=["IH"]))
