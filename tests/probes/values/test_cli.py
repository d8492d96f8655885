"""``workbench values``: from folders of checkpoints to a table and figures."""

from __future__ import annotations

import shutil

import pytest

from probes.values.cli import checkpoints
from probes.values.items import own
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


def test_what_is_no_series_is_named(tmp_path):
    with pytest.raises(InputError, match="neither STEP=MODEL nor a folder"):
        checkpoints([str(tmp_path)])
    (tmp_path / "checkpoint-7").mkdir()
    assert checkpoints([str(tmp_path), "3=a/b"]) == {7: str(tmp_path / "checkpoint-7"), 3: "a/b"}
