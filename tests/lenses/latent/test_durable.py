"""Builds that are killed, files that are damaged: the same bytes in the end, or a refusal; never another answer."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from plainly import tree

from lenses import ContextIndex
from workbench.errors import WorkbenchError

KILLS = 25
# A process that has imported everything but run nothing forks a child for each build, and kills it.
KILLER = textwrap.dedent("""
    import json, os, random, shutil, signal, sys, time
    import torch, transformers, pyarrow.parquet
    import workbench, lenses.latent.index, workbench.organisms.story.grammar
    from lenses.latent import build
    build.JOURNAL_SECONDS = 0.05
    folder, trials, corpus = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    def start(path):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            model = workbench.load("organism:story")
            open(path + ".ready", "w").close()
            lenses.latent.index.ContextIndex.build(
                model, corpus, path, contexts_per_token=20, batch_tokens=64, progress=False)
            os._exit(0)
        return pid

    took = 1e9
    for name in ("/whole", "/twice"):  # the quicker of two: a busy moment is not how long it takes
        os.waitpid(start(folder + name), 0)
        took = min(took, time.time() - os.path.getmtime(folder + name + ".ready"))
    draw, report = random.Random(0), []
    for trial in range(trials):
        path = f"{folder}/{trial}"
        kills = 0
        for attempt in range(2):
            if os.path.exists(path + ".ready"):
                os.remove(path + ".ready")
            pid = start(path)
            while not os.path.exists(path + ".ready"):
                time.sleep(0.002)
            time.sleep(draw.random() * took * (0.9 if attempt == 0 else 0.5))
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            if draw.random() < 0.5:
                break
        assert os.waitpid(start(path), 0)[1] == 0
        report.append(kills)
    print(json.dumps({"took": took, "kills": report}))
""")


@pytest.mark.slow
def test_a_build_killed_at_any_moment_ends_with_the_same_bytes(sentences, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences), "utf-8")
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(KILLS), str(corpus)], capture_output=True, text=True,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    kills = json.loads(run.stdout.splitlines()[-1])["kills"]
    assert sum(k > 0 for k in kills) >= 0.2 * KILLS  # the others were done before; how many is a matter of load
    whole = tree(tmp_path / "whole")
    assert whole and all(tree(tmp_path / str(trial)) == whole for trial in range(KILLS))


def test_a_build_stopped_by_hand_goes_on(story, sentences, index, tmp_path, monkeypatch):
    """Half of pass two is done once, not twice."""
    from lenses.latent import build

    monkeypatch.setattr(build, "JOURNAL_SECONDS", 0.0)
    calls, real = [], build._put

    def counting(*arguments):
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(build, "_put", counting)
    with pytest.raises(KeyboardInterrupt):
        ContextIndex.build(story, sentences, tmp_path / "x", contexts_per_token=20, progress=False)
    with pytest.raises(WorkbenchError, match="not finished"):
        ContextIndex.open(tmp_path / "x")
    calls[:] = [1] * 100
    ContextIndex.build(story, sentences, tmp_path / "x", contexts_per_token=20, progress=False)
    second = len(calls) - 100
    assert tree(tmp_path / "x") == tree(index.path)
    ContextIndex.build(story, sentences, tmp_path / "x", contexts_per_token=20, progress=False)
    assert len(calls) - 100 == second
    ContextIndex.build(story, sentences, tmp_path / "y", contexts_per_token=20, progress=False)
    whole = len(calls) - 100 - second
    assert whole - 60 <= second < whole - 40  # what was written of the step that was stopped is written again
    assert tree(tmp_path / "y") == tree(index.path)


def damage(path, draw: random.Random) -> str:
    """Spoil one thing in a copy of an index."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file()]
    data = [p for p in files if p.name != "manifest.json"]
    file = draw.choice(files)
    kind = draw.choice(["cut", "flip", "flip", "remove", "swap", "manifest", "grow", "zero"])
    if kind == "cut":
        os.truncate(file, draw.randrange(file.stat().st_size))
    elif kind == "flip":
        raw = bytearray(file.read_bytes())
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)
    elif kind == "remove":
        file.unlink()
    elif kind == "swap":
        a, b = draw.sample(data, 2)
        hold = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(hold)
    elif kind == "manifest":
        file = path / "manifest.json"
        manifest = json.loads(file.read_text())
        change = draw.choice(["head", "extra", "files", "format", "version", "state", "layout"])
        manifest[change] = draw.choice([None, 1, -5, "x", [], {}, [0], 10**12])
        file.write_text(json.dumps(manifest))
    elif kind == "grow":
        with file.open("ab") as out:
            out.write(b"\0" * draw.randrange(1, 5000))
    else:
        raw = bytearray(file.read_bytes())
        at = draw.randrange(len(raw))
        raw[at : at + 200] = bytes(len(raw[at : at + 200]))
        file.write_bytes(raw)
    return f"{kind} {file.name}"


def test_two_hundred_damaged_copies_are_refused_or_searched_correctly(index, dense, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(index.path, source)
    ContextIndex.open(source).accelerate("ivf-sq8", progress=False)
    queries = dense[4][::100]
    truth = ContextIndex.open(source).search(queries, 5)
    near = ContextIndex.open(source).search(queries, 5, method="approximate")
    draw, refused = random.Random(1), 0
    for trial in range(200):
        copy = tmp_path / "copy"
        shutil.copytree(source, copy)
        what = damage(copy, draw)
        try:
            opened = ContextIndex.open(copy)
            found = opened.search(queries, 5)
            quick = opened.search(queries, 5, method="approximate")
        except WorkbenchError as error:
            assert str(copy) in str(error), what
            refused += 1
        else:
            assert found.identical(truth.assign_attrs(found.attrs)), (trial, what)
            assert quick.identical(near.assign_attrs(quick.attrs)), (trial, what)
        shutil.rmtree(copy)
    assert refused > 150


def test_a_full_disk_is_said_before_the_work(story, sentences, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(WorkbenchError, match="GB free"):
        ContextIndex.build(story, sentences, tmp_path / "x", progress=False)


def test_states_that_mean_nothing_stop_the_build(sentences, tmp_path):
    import workbench
    from workbench.errors import StateError

    model = workbench.load("organism:story")
    with torch.no_grad():
        model.module.model.layers[2].mlp.down_proj.weight[0, 0] = np.nan
    with pytest.raises(StateError, match="layer 3|layer 4"):
        ContextIndex.build(model, sentences, tmp_path / "x", progress=False)
