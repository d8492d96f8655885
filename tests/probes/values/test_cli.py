"""``workbench values``: from folders of checkpoints to a table and figures."""

from __future__ import annotations

import argparse
import shutil

import pytest
import xarray as xr

from probes.values import cli
from probes.values.cli import checkpoints
from probes.values.instruments import Pmf, SequenceLikelihood
from probes.values.items import Items, own
from probes.values.measures import agreement
from probes.values.tracker import ValueTracker
from workbench.cli import main
from workbench.errors import InputError
from workbench.organisms import folder


def test_a_series_is_read_shown_drawn_and_compared(tmp_path, capsys):
    for step in (5, 10):
        shutil.copytree(folder("story"), tmp_path / "run" / f"checkpoint-{step}")
    items = own().select(topic="zoos")
    items.save_csv(tmp_path / "items.csv")
    given = ["--items", str(tmp_path / "items.csv")]
    for name in ("a", "b"):
        main(["values", "run", str(tmp_path / name), "0=organism:story", str(tmp_path / "run"), *given])
    assert "3 checkpoints of 24 items" in capsys.readouterr().out
    main(["values", "show", str(tmp_path / "a"), *given])
    shown = capsys.readouterr().out
    # The same weights three times: nothing moved.
    assert "zoos" in shown and "+0.000 [+0.000, +0.000]  p = 1.000" in shown and "*" not in shown
    main(["values", "figure", str(tmp_path / "a"), *given])
    assert {f.stem for f in (tmp_path / "a" / "figures").glob("*.html")} == {"trajectories", "drifts", "times", "sides"}
    main(["values", "compare", str(tmp_path / "a"), str(tmp_path / "b"), *given])
    assert "p = 1.000" in capsys.readouterr().out


def test_several_instruments_are_shown_with_their_agreement(tmp_path, capsys):
    items = own().select(topic=["zoos", own().topics[1]])
    items = Items(item for k, item in enumerate(items) if k % 4 == 0)
    items.save_csv(tmp_path / "items.csv")
    given = ["--items", str(tmp_path / "items.csv")]
    here, there = str(tmp_path / "a"), str(tmp_path / "b")
    asked = ["--instruments", "pmf,sequence"]
    main(["values", "run", here, "0=organism:story", "10=organism:story", *asked, *given])
    main(["values", "run", there, "0=organism:story", "10=organism:story", *given])
    tracker = ValueTracker(tmp_path / "a", items, [Pmf(), SequenceLikelihood()])
    assert [key.split(" ")[0] for key in tracker.kept] == ["pmf", "sequence"]
    capsys.readouterr()
    main(["values", "show", here, *given])
    shown = capsys.readouterr().out
    pair = tracker.agreement().data.sel(pair="pmf - sequence", checkpoint=10)
    assert f"pmf - sequence               at 10: {float(pair['spearman']):+.2f}" in shown
    assert "\npmf\n" in "\n" + shown and "\nsequence\n" in shown
    main(["values", "show", there, *given])
    assert "agreement" not in capsys.readouterr().out
    # The tracker's table is that of the two instruments' readings.
    want = agreement({name: tracker.readings(name) for name in ("pmf", "sequence")}).data
    xr.testing.assert_identical(tracker.agreement().data, want)
    assert ValueTracker(tmp_path / "b", items, [Pmf()]).agreement() is None
    main(["values", "figure", here, *given])
    names = {f"{kind}-{name}" for kind in ("trajectories", "drifts", "times", "sides") for name in ("pmf", "sequence")}
    assert {f.stem for f in (tmp_path / "a" / "figures").glob("*.html")} == {*names, "agreement"}
    # Two runs: what both were asked.
    main(["values", "figure", here, there, "--out", str(tmp_path / "out"), *given])
    made = {f.stem for f in (tmp_path / "out").glob("*.html")}
    assert made == {"trajectories", "runs", "drifts", "times", "sides", "agreement"}
    capsys.readouterr()
    main(["values", "compare", here, there, *given])
    assert f"{here} - {there} (pmf)" in capsys.readouterr().out
    main(["values", "run", str(tmp_path / "c"), "0=organism:story", "--instruments", "sequence", *given])
    with pytest.raises(InputError, match="were not asked the same"):
        cli._compare(
            argparse.Namespace(path=tmp_path / "b", others=[tmp_path / "c"], items=str(tmp_path / "items.csv"))
        )
    with pytest.raises(InputError, match="no instrument 'vibes'"):
        cli._tracker(tmp_path / "d", "own", "pmf,vibes")


def test_what_is_no_series_is_named(tmp_path):
    with pytest.raises(InputError, match="neither STEP=MODEL nor a folder"):
        checkpoints([str(tmp_path)])
    (tmp_path / "checkpoint-7").mkdir()
    assert checkpoints([str(tmp_path), "3=a/b"]) == {7: str(tmp_path / "checkpoint-7"), 3: "a/b"}
