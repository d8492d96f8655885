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


def marks(figure):
    """The marks of a figure of one panel."""
    (panel,) = figure.plot.panels
    return panel.marks


def test_every_registered_chart_of_a_trace_draws_what_it_says_it_shows(found):
    mine = {name: chart for name, chart in charts().items() if chart.measure.startswith("routing.")}
    assert set(mine) >= {
        "usage", "entropy", "gate", "words", "divergence", "layers", "overlap", "gaps", "coactivation", "flow",
    }  # fmt: skip
    for name, chart in mine.items():
        measured = chart.measured(found, {})
        figure = measured.figure(name)
        assert figure.plot.title.startswith("planted · ") and figure.data and figure.matplotlib("column").axes
        assert set(figure.plot.shows) <= set(measured.data.data_vars)


def test_numbers_of_the_figures_are_those_of_the_measures(found):
    usage = measures.usage(found, draws=50).data
    (cells,) = marks(found.figure("usage", label="L2"))
    own = usage.sel(label="L2")
    np.testing.assert_array_equal(cells.values, own["share"])
    inside = (own["share"] >= own["band_low"]) & (own["share"] <= own["band_high"])
    assert 0 < int(inside.sum()) < inside.size
    np.testing.assert_array_equal(cells.hatched, inside)
    *lines, even = marks(found.figure("entropy", draws=50))
    assert [line.name for line in lines] == ["L0", "L1", "L2", "L3"]
    np.testing.assert_array_equal([line.y for line in lines], usage["entropy_corrected"])
    np.testing.assert_allclose(even.y, np.log(twins.EXPERTS))
    jsd = measures.divergence(found).data.isel(block=1)
    (cells,) = marks(found.figure("divergence"))
    below = np.tril_indices(4, -1)
    np.testing.assert_array_equal(cells.values[below], jsd["jsd"].values[below])
    np.testing.assert_array_equal(cells.ringed[below], jsd["jsd_q"].values[below] < 0.05)
    assert np.isnan(cells.values[np.triu_indices(4)]).all() and not cells.ringed[np.triu_indices(4)].any()
    np.testing.assert_allclose(marks(found.figure("gate", label="L0"))[0].values.sum(1), 1)
    (points,), own = marks(found.figure("overlap")), measures.overlap(found).data.isel(block=1)
    at = points.names.index("L1-L3")
    assert len(points.names) == 6 and points.y[at] == own["jsd"].sel(label="L1", label_2="L3")
    (table,), served = marks(found.figure("words", block=1)), measures.vocabulary(found, least=10)["expert"].values[1]
    assert [row[0] for row in table.rows] == [str(e) for e in range(twins.EXPERTS)]
    assert all(int(row[2]) <= int((served == e).sum()) for e, row in enumerate(table.rows))
    (flow,), count = marks(found.figure("flow")), measures.flow(found)["count"].values[0]
    drawn = {(flow.nodes[a][1], flow.nodes[b][1]): much for a, b, much in flow.links}
    assert drawn == {(f"0.{a}", f"1.{b}"): count[a, b] for a, b in np.argwhere(count >= 0.02 * count.sum())}


def test_stars_stand_where_an_intervention_backs_the_claim(found):
    backed = table(L0=({1: [0, 1], 7: [2]}, True), L1=({1: [2]}, False), L2=({1: [4]}, False))
    # Of another label's experts, of claims that fail and of blocks that were not read, nothing is marked.
    for label, stars in (("L0", [(1, 0), (1, 1)]), ("L1", []), ("L2", []), ("L3", [])):
        (cells,) = marks(found.figure("usage", label=label, effects=backed))
        assert [tuple(at) for at in np.argwhere(cells.starred)] == stars
    everyone = table(common=({0: [3]}, True))  # no label's name: a claim of all of them
    assert marks(found.figure("usage", label="L3", effects=everyone))[0].starred[0, 3]
    gaps = found.figure("gaps", effects=backed)
    names = gaps.plot.panels[0].x.names
    stars = {names[x] for points in marks(gaps)[:-1] for x in np.array(points.x)[np.array(points.symbol) == "star"]}
    assert stars == {"0", "1"}
    forest = figures.forest(backed)
    assert ["★" in name for name in forest.plot.panels[0].y.names] == [True, False, False]
    assert [len(points.x) for points in marks(forest)[1:]] == [9, 9, 3]
    for draw in (figures.forest, lambda table: found.figure("gaps", effects=table)):
        with pytest.raises(InputError, match="no 'backed'.*probes.routing.effects"):
            draw(backed.drop_vars("backed"))


def test_figures_of_several_readings_take_the_measures_table(found):
    kept = measures.saturation([found, found], ["early", "late"], floor=found)
    *lines, chance, noise = marks(figures.saturation(kept))
    assert [line.name for line in lines] == ["block 0", "block 1"]
    assert (chance.name, noise.name) == ("chance", "noise") and chance.at < noise.at
    free = figures.saturation(kept, value="divergence").plot.panels[0]
    assert free.y.range == (0, None) and [mark.name for mark in free.marks] == ["block 0", "block 1", "noise"]
    apart = measures.parallel(found, [i // 4 for i in range(60)], draws=20)
    lines = marks(figures.parallel(apart, reference="L0"))
    assert [line.name for line in lines if line.legend] == ["L0-L1", "L0-L2", "L0-L3"]
    for line, ending in zip(lines, ("", "_null"), strict=False):
        np.testing.assert_array_equal(line.y, apart[f"divergence{ending}"].sel(label="L0", label_2="L1"))
    assert [line.dash for line in lines[:2]] == ["solid", "dash"]


def test_a_line_lies_within_its_band():
    texts, labels = twins.documents(16, languages=False, tokens=30)
    few = workbench.read(twins.null(), texts, RoutingTracer(labels), progress=False)
    banded = [line for name in ("layers", "entropy") for line in marks(few.figure(name)) if line.low is not None]
    assert len(banded) == 5
    for line in banded:
        assert (line.low <= line.y + 1e-9).all() and (line.y <= line.high + 1e-9).all(), line.name


def test_what_is_not_there_is_named(found):
    for name, wrong, says in (
        ("divergence", {"block": 15}, "Block 15 is not in the reading"), ("gaps", {"block": 2}, "Block 2 is not"),
        ("words", {"block": -3}, "Block -3 is not"), ("overlap", {"measure": "x"}, "Use one of jaccard"),
        ("gate", {"label": "xx"}, "no label 'xx'.*L0, L1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            found.figure(name, **wrong)
    assert found.figure("divergence", block=-1).plot.title == found.figure("divergence").plot.title
    with pytest.raises(InputError, match="no 'kl'"):
        figures.saturation(measures.saturation([found, found], ["early", "late"], floor=found), value="kl")
    with pytest.raises(InputError, match="no label 'xx'"):
        figures.parallel(measures.parallel(found, [i // 4 for i in range(60)], draws=20), reference="xx")
