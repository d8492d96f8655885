"""Every public verb gives a reading: its variables say what they are, it is saved whole, captioned, drawn as it is."""

from __future__ import annotations

import tomllib
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import xarray as xr
from older import as_version_1

import workbench
from probes import values
from probes.values import figures, greatest_good, opinions, white
from probes.values.framings import letter_framings
from probes.values.items import Item, Items
from probes.values.judged import judged
from probes.values.tracker import _opened
from workbench.organisms.opinions import grammar, runs
from workbench.reading import Reading
from workbench.variables import lacking

FEW = {"draws": 20}


@cache
def home() -> Path:
    return Path(mkdtemp())


@cache
def statements() -> Items:
    every = opinions.items()
    kinds = [(topic, key) for topic in every.topics[:2] for key in (1, -1)]
    return Items(x for kind in kinds for x in [i for i in every if (i.topic, i.polarity) == kind][:3])


@cache
def series() -> dict[int, Any]:
    return dict(sorted(runs()["sft"].items())[::3][:4])


@cache
def tracked() -> values.ValueTracker:
    text = values.SampledText(2, 1.0, 6, judge=grammar.judge, shown="{response}")
    box = values.WhiteBox(letter_framings(), draws=30)
    asks = [values.Pmf(letter_framings()), values.SequenceLikelihood(), text, box]
    return values.ValueTracker(home() / "track", statements(), asks).run(series(), progress=False)


@cache
def model() -> Any:
    return workbench.load("organism:opinions")


@cache
def questions() -> Items:
    shares = {"us": (0.5, 0.5), "them": (0.9, 0.1)}
    asked = ("Which is better?", "Which is worse?", "Which is right?")
    return Items(
        Item(f"q{i}", "t", x, kind="choice", options=("a", "b"), shares=shares) for i, x in enumerate(asked)
    )


def judge(texts: list[str]) -> np.ndarray:
    return np.array([np.roll([0.8, 0.1, 0.1], "sno".index(text[0])) for text in texts])


def pmf() -> Reading:
    return tracked().readings("pmf")


def known() -> Reading:
    return values.confusion(judge, [(f"{s[0]}{k}", s) for s in ("support", "neutral", "oppose") for k in range(2)])


def beneficence() -> Items:
    return Items(Item(f"g{i}", ("IB", "IH")[i % 2], x.text, 1) for i, x in enumerate(statements()[:8]))


def inside() -> Reading:
    return tracked().table("whitebox")


MADE = {
    "Pmf": lambda: values.Pmf(letter_framings()).read(model(), statements(), progress=False),
    "SequenceLikelihood": lambda: values.SequenceLikelihood().read(model(), statements(), progress=False),
    "SampledText": lambda: tracked().instruments[2].read(model(), statements(), progress=False),
    "WhiteBox": lambda: values.WhiteBox(letter_framings(), draws=10).read(model(), statements(), progress=False),
    "Choices": lambda: values.Choices(letters=("A", "B")).read(model(), questions(), progress=False),
    "likeness": lambda: values.likeness(MADE["Choices"](), questions(), ordinal=True, **FEW),
    "judged": lambda: judged(judge, ["so", "no", "so"]),
    "confusion": known,
    "corrected": lambda: values.corrected(tracked().readings("sampled").isel(checkpoint=0), known(), **FEW),
    "readings": pmf,
    "readings sampled": lambda: tracked().readings("sampled"),
    "table": lambda: tracked().table("pmf"),
    "table sampled": lambda: tracked().table("sampled"),
    "table whitebox": inside,
    "stance": lambda: values.stance(pmf(), **FEW),
    "drift": lambda: values.drift(pmf(), **FEW),
    "convergence": lambda: values.convergence(pmf(), 0.1, **FEW),
    "resampling_null": lambda: values.resampling_null(*[tracked().readings("sampled")] * 2, **FEW),
    "sides": lambda: values.sides(pmf()),
    "compare": lambda: values.compare(dict.fromkeys("abc", pmf()), arm=dict.fromkeys("abc", "one"), **FEW),
    "data_gap": lambda: values.data_gap(
        xr.Dataset({"keyed": ("topic", [0.1, 0.2])}, {"topic": list(statements().topics)}), pmf(), **FEW
    ),
    "agreement": lambda: tracked().agreement(**FEW),
    "margins": lambda: white.margins(inside(), **FEW),
    "projections": lambda: white.projections(inside(), **FEW),
    "directions": lambda: white.directions(inside(), **FEW),
    "behaviour": lambda: white.behaviour(inside(), pmf(), **FEW),
    "similarity": lambda: white.similarity(inside()),
    "weights": lambda: white.weights(series()),
    "scores": lambda: greatest_good.study(
        home() / "ggb", dict.fromkeys((0, 1), model()), beneficence(), progress=False, **FEW
    ),
}  # fmt: skip
"""What each public verb gives."""


@cache
def made(name: str) -> Reading:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MADE[name]()


@pytest.mark.parametrize("name", MADE)
def test_a_reading_says_what_it_is_where_from_and_is_saved_whole(name, tmp_path):
    reading = made(name)
    assert isinstance(reading, Reading) and lacking(reading.data) == []
    bare = [n for n, x in reading.data.coords.items() if n not in ("option", "half", "draw", "again", "answer", "text")]
    bare = [n for n in bare if "long_name" not in reading.data[n].attrs]
    assert not bare, "coordinates without a name"
    steps = [step["step"] for step in reading.provenance]
    assert steps[0] == ("judge" if name in ("judged", "confusion") else "read")
    if steps[0] == "read":
        first = reading.provenance[0]
        assert reading.provenance["model"]["name"]
        assert {"versions", "date"} <= {key for step in reading.provenance for key in step}
        assert first["model"]["dtype"] == "float32"
    again = workbench.open(reading.save(tmp_path / "x.nc"))
    xr.testing.assert_identical(again.data, reading.data)
    assert lacking(again.data) == [] and [s["step"] for s in again.provenance] == steps


def test_an_instrument_says_what_was_asked_and_how():
    asked = values.Pmf(letter_framings())
    step = made("Pmf").provenance[-1]
    assert step["step"] == "instrument" and step["instrument"]["settings"] == asked.settings
    assert step["reader"] == {"name": "pmf", "items": 12, "asked": asked.asked(model())}
    assert [f["name"] for f in step["instrument"]["config"]["framings"]] == [f.name for f in asked.framings]
    # In parts, as a tracker reads, it is the same step.
    assert step in pmf().provenance


def test_provenance_has_one_step_for_each_checkpoint_and_goes_on_to_the_caption():
    moved = made("drift")
    own = [step for step in moved.provenance if step["step"] == "checkpoint"]
    assert [step["checkpoint"] for step in own] == list(series())
    assert len({step["model"]["fingerprint"] for step in own}) == len(own)
    assert all(workbench.load(series()[s["checkpoint"]]).fingerprint == s["model"]["fingerprint"] for s in own[:2])
    assert "versions" in moved.provenance[0] and not any("versions" in step for step in own), "said once"
    last = moved.provenance[-1]
    assert last["step"] == "values.drift" and last["settings"]["draws"] == 20 and len(last["of"]) == 1
    said = figures.drifts(moved).caption()
    assert "4 checkpoints" in said and "Reader: pmf" in said and "Keyed drift" in said


DRAWN = {
    "trajectories": "stance", "drifts": "drift", "times": "drift", "sides": "sides", "gap": "data_gap",
    "runs": "compare", "agreement": "agreement", "plane": "scores", "margins": "margins", "directions": "directions",
    "behaviour": "behaviour", "weights": "weights",
}  # fmt: skip


@pytest.mark.parametrize("kind", DRAWN)
def test_every_figure_knows_what_it_is_of_and_its_chart_fits_that_alone(kind):
    reading = made(DRAWN[kind])
    figure = getattr(figures, kind)(reading)
    assert "Model:" in figure.caption() and not figures.CHARTS[kind].lacks(reading.data)
    assert reading.figure(kind).caption() == figure.caption()
    others = {name for other, name in DRAWN.items() if name != DRAWN[kind]}
    assert all(figures.CHARTS[kind].lacks(made(name).data) for name in others)


NUMBERS = {
    "trajectories": "keyed", "drifts": "keyed_M", "sides": "changed", "gap": "drift", "runs": "keyed_M",
    "agreement": "spearman", "plane": "score", "margins": "margin", "directions": "rotation", "behaviour": "r",
    "weights": "change",
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_figure_draws_the_numbers_of_its_table(kind):
    reading = made(DRAWN[kind])
    shown: list[float] = []
    for mark in (mark for panel in getattr(figures, kind)(reading).plot.panels for mark in panel.marks):
        for part in ("x", "y", "values"):
            shown += np.ravel(getattr(mark, part, ())).tolist()
        shown += [count for *_, count in getattr(mark, "links", ())]
    table = reading[NUMBERS[kind]]
    table = table.sel(fitted="pooled") if kind == "directions" else table
    wanted = table.values[np.isfinite(table.values)]
    assert len(wanted) and np.isin(wanted[wanted != 0].round(12), np.round(shown, 12)).all()


def test_a_track_of_version_0_1_0_still_opens(tmp_path):
    asks = values.Pmf(letter_framings())
    tracker = values.ValueTracker(tmp_path, statements(), [asks])
    tracker.run({0: "organism:opinions"}, progress=False)
    now = tracker.readings().data
    (file,) = tmp_path.rglob("pmf-*.nc")
    old = _opened(file).data.drop_attrs().assign_attrs(name=asks.name, settings=asks.settings)
    file.unlink()
    old.to_netcdf(file, engine="h5netcdf")  # as it was written then
    as_version_1(tracker)
    again = values.ValueTracker(tmp_path, statements(), [asks]).readings()
    xr.testing.assert_equal(again.data, now)
    assert lacking(again.data) == [] and lacking(values.drift(pmf(), **FEW).data) == []
    assert again.provenance["checkpoint"] == 0 and again.provenance[1]["source"] == "organism:opinions"


def test_the_public_names_are_there():
    assert all(callable(getattr(values, name)) for name in values.__all__) and dir(values) == values.__all__


def test_every_chart_is_registered():
    own = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    found = own["project"]["entry-points"]["workbench.charts"]
    assert {name: f"probes.values.figures:{name.upper()}" for name in figures.CHARTS}.items() <= found.items()
    assert all(getattr(figures, name.upper()) is chart for name, chart in figures.CHARTS.items())
