"""The folder of readings: killed, it goes on; nothing twice, nothing missing, nothing overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from older import as_version_1
from tiny import tiny

import workbench
from probes.values.tracker import STANCES, ValueTracker
from workbench.errors import InputError, ReadingError

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Asked:
    item_id: str
    topic: str
    text: str
    polarity: int = 1
    cluster: str = ""
    kind: str = "statement"
    options: tuple = ()


@dataclass
class Fixed:
    """An instrument whose answers follow from the model and the item."""

    name: str = "fixed"
    settings: str = "v1"
    wait: float = 0.0

    def read(self, model, items, *, batch_size=None, seed=0, progress=True):
        time.sleep(self.wait)
        size = float(next(model.module.parameters()).abs().sum())
        rng = np.random.default_rng([int(size * 1000) % 2**31, seed])
        p = rng.dirichlet(np.ones(4), (len(items), 3))
        return xr.Dataset(
            {"p": (("item", "framing", "stance"), p)},
            {"item": [i.item_id for i in items], "framing": ["a", "b", "c"], "stance": list(STANCES)},
        )


ITEMS = [Asked(f"i{k}", f"topic {k % 3}", f"text {k}", 1 - 2 * (k % 2), f"c{k // 2}") for k in range(500)]


def models(n: int = 3) -> dict:
    return {100 * k: (lambda k=k: workbench.load(tiny("gpt2", seed=k), name=f"step {k}")) for k in range(n)}


def test_readings_come_back_as_they_were_given(tmp_path):
    tracker = ValueTracker(tmp_path, ITEMS, [Fixed()]).run(models(), progress=False)
    data = tracker.readings().data
    assert data["p"].dims == ("checkpoint", "item", "sample", "stance") and data["checkpoint"].values.tolist() == [
        0,
        100,
        200,
    ]
    for k in range(3):
        own = Fixed().read(workbench.load(tiny("gpt2", seed=k)), ITEMS)
        np.testing.assert_allclose(data["p"].sel(checkpoint=100 * k).values, own["p"].values)
    assert data["topic"].values[:4].tolist() == ["topic 0", "topic 1", "topic 2", "topic 0"]
    assert data["polarity"].values[:2].tolist() == [1, -1] and data["cluster"].values[3] == "c1"
    again = ValueTracker(tmp_path, ITEMS, [Fixed()])
    xr.testing.assert_identical(again.readings().data, data)
    assert again.readings("fixed").data.equals(data) and again.steps == [0, 100, 200]


def test_what_is_there_is_not_read_again_and_other_settings_stand_beside(tmp_path):
    ValueTracker(tmp_path, ITEMS, [Fixed()]).run(models(), progress=False)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nc")}
    ValueTracker(tmp_path, ITEMS, [Fixed(), Fixed(settings="v2")]).run(models(4), progress=False)
    after = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nc")}
    assert len(before) == 3 and len(after) == 8 and all(after[f] == t for f, t in before.items())
    with pytest.raises(InputError, match="readings of other items"):
        ValueTracker(tmp_path, ITEMS[:-1], [Fixed()])
    with pytest.raises(InputError, match="no reading of 'other'"):
        ValueTracker(tmp_path, ITEMS, [Fixed()]).readings("other")


def test_a_checkpoint_that_fails_is_recorded_and_skipped_only_on_request(tmp_path):
    broken = {**models(2), 50: str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match="There is no folder"):
        ValueTracker(tmp_path / "a", ITEMS, [Fixed()]).run(broken, progress=False)
    tracker = ValueTracker(tmp_path / "b", ITEMS, [Fixed()]).run(broken, skip_failures=True, progress=False)
    assert list(tracker.failures) == [50] and "There is no folder" in tracker.failures[50] and tracker.steps == [0, 100]
    # Once it can be loaded it is read, and no longer a failure.
    tracker.run({50: models(1)[0]}, progress=False)
    assert not tracker.failures and tracker.steps == [0, 50, 100]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    script = (
        "import sys; sys.path[:0] = ['tests', 'tests/probes/values']\n"
        "from test_tracker import *\n"
        "ValueTracker(sys.argv[1], ITEMS, [Fixed(wait=0.15)]).run(models(12), progress=False)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "killed"
    for pause in (2.6, 3.1, 3.4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole = ValueTracker(tmp_path / "whole", ITEMS, [Fixed()]).run(models(12), progress=False)
    resumed = ValueTracker(folder, ITEMS, [Fixed()]).run(models(12), progress=False)
    xr.testing.assert_identical(resumed.readings().data, whole.readings().data)
    rows = resumed.readings()["p"]
    assert rows.sizes["checkpoint"] == 12 and rows.sizes["item"] == 500 and not bool(rows.isnull().any())
    assert len(list(folder.rglob("*.nc"))) == 12


def test_a_reading_of_training_is_kept_like_any_other(tmp_path):
    tracker = ValueTracker(tmp_path, ITEMS, [Fixed()]).run(models(1), progress=False)
    live = Fixed().read(workbench.load(tiny("gpt2", seed=1)), ITEMS)
    tracker.add(100, tracker.instruments[0], live)
    offline = ValueTracker(tmp_path / "offline", ITEMS, [Fixed()]).run(models(2), progress=False)
    np.testing.assert_array_equal(tracker.readings()["p"].values, offline.readings()["p"].values)


def test_a_folder_of_version_1_is_taken_over_and_gone_on_with(tmp_path):
    broken = {**models(2), 50: str(tmp_path / "nowhere")}
    tracker = ValueTracker(tmp_path / "x", ITEMS, [Fixed()]).run(broken, skip_failures=True, progress=False)
    tracker.saved(70, "abc")
    tracker.set_aside(100)
    tracker.run({100: models(2)[100]}, progress=False)
    before, data = tracker.about, tracker.readings().data
    path = as_version_1(tracker)
    written = {f: f.stat().st_mtime_ns for f in path.rglob("*.nc")}
    with pytest.raises(InputError, match="readings of other items"):
        ValueTracker(path, ITEMS[:-1], [Fixed()])
    again = ValueTracker(path, ITEMS, [Fixed()])
    assert again.steps == [0, 100] and list(again.failures) == [50] and again.fingerprint(70) == "abc"
    xr.testing.assert_identical(again.readings().data, data)
    assert [x["file"] for x in again.about["aside"]] == [x["file"] for x in before["aside"]] and len(written) == 3
    again.run(models(3), progress=False)
    assert again.steps == [0, 100, 200] and not (path / "track.json").exists()
    assert {f: t for f, t in ((f, f.stat().st_mtime_ns) for f in path.rglob("*.nc")) if f in written} == written
    assert ValueTracker(path, ITEMS, [Fixed()]).about == again.about


def test_a_damaged_reading_is_read_again(tmp_path):
    tracker = ValueTracker(tmp_path, ITEMS, [Fixed()]).run(models(2), progress=False)
    data = tracker.readings().data
    file = next(tmp_path.glob("step-00000100/*.nc"))
    file.write_bytes(file.read_bytes()[:-40])
    again = ValueTracker(tmp_path, ITEMS, [Fixed()])
    assert again.steps == [0]
    xr.testing.assert_identical(again.run(models(2), progress=False).readings().data, data)


def test_two_trackers_write_by_turns_and_not_at_once(tmp_path):
    trackers = [ValueTracker(tmp_path, ITEMS, [Fixed()]) for _ in range(2)]
    for k, tracker in enumerate(trackers):
        tracker.add(k, tracker.instruments[0], Fixed().read(workbench.load(tiny("gpt2")), ITEMS))
    assert ValueTracker(tmp_path, ITEMS, [Fixed()]).steps == [0, 1]
    with trackers[0].folder.lock(), pytest.raises(ReadingError, match="is being written by"):
        trackers[1].saved(5, "abc")


def test_near_duplicates_share_a_cluster_unless_told_otherwise(tmp_path):
    texts = ["I like tea very much.", "I like tea very, very much.", "Rain is a nuisance for farmers."]
    items = [Asked(f"i{k}", "tea" if k < 2 else "rain", text) for k, text in enumerate(texts)]
    model = models(1)
    tracker = ValueTracker(tmp_path / "a", items, [Fixed()]).run(model, progress=False)
    data = tracker.readings().data
    assert data["cluster"].values.tolist() == ["i0", "i0", "i2"]
    assert data.attrs["duplicates"] == "3 items in 2 clusters of near-duplicates"
    assert "3 items in 2 clusters of near-duplicates" in repr(tracker)
    assert tracker.table().data["cluster"].values.tolist() == ["i0", "i0", "i2"]
    # The folder is of the items as they were given, and opens however they are clustered.
    plain = ValueTracker(tmp_path / "a", items, [Fixed()], duplicates=None).readings().data
    assert plain["cluster"].values.tolist() == ["i0", "i1", "i2"] and "duplicates" not in plain.attrs
    np.testing.assert_array_equal(plain["p"], data["p"])
