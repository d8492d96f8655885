"""``read(..., out=folder)`` is killed and interrupted at random moments, and goes on to the very same reading."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import workbench
import workbench.errors
from lenses import ContextIndex

HERE = Path(__file__).with_name("killed.py")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    from workbench.organisms.story.grammar import stories

    path = tmp_path_factory.mktemp("killed") / "index"
    model = workbench.load("organism:story", progress=False)
    ContextIndex.build(model, [story.text for story in stories(40, 5)], path, progress=False)
    return path


def run(kind: str, folder: Path, index: Path, kill: tuple[int, float] | None = None) -> float | None:
    """Run to the end, and say how long it took; or send a signal so many seconds after the model is loaded."""
    command = [sys.executable, "-W", "ignore", str(HERE), kind, str(folder), str(index)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "loaded\n", process.communicate()[1]
    start = time.monotonic()
    if kill is not None:
        time.sleep(kill[1])
        process.send_signal(kill[0])
    out, errors = process.communicate()
    if kill is None:
        assert out == "finished\n", errors
        return time.monotonic() - start
    return None


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_run_that_is_killed_ends_as_one_that_was_not(kind, index, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    seconds = run(kind, whole, index)
    rng = random.Random(kind)
    for n in range(6):
        run(kind, torn, index, (signal.SIGINT if n % 3 == 2 else signal.SIGKILL, rng.random() * seconds))
    run(kind, torn, index)
    assert {p.suffix for p in torn.iterdir()} == {".nc", ".json"}, os.listdir(torn)
    first, second = (workbench.open(folder) for folder in (whole, torn))
    first, second = (x if isinstance(x, tuple) else (x,) for x in (first, second))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a.data.variables) == set(b.data.variables)
        for name in a.data.variables:
            np.testing.assert_array_equal(a.data[name].values, b.data[name].values, err_msg=f"{a!r} {name}")
        assert a.data.attrs == b.data.attrs and a.provenance["reader"] == b.provenance["reader"]


def test_a_folder_of_another_run_is_refused(index, tmp_path):
    model = workbench.load("organism:story", progress=False)
    workbench.read(model, ["one two"], workbench.States(), out=tmp_path / "a", progress=False)
    with pytest.raises(workbench.errors.InputError, match="digest"):
        workbench.read(model, ["one three"], workbench.States(), out=tmp_path / "a", progress=False)
    with pytest.raises(workbench.errors.InputError, match="readers"):
        workbench.read(model, ["one two"], workbench.States(layers=[1]), out=tmp_path / "a", progress=False)
