"""Two processes that train together (gloo, DDP): they share the reading, agree, and never wait for each other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from living import ITEMS, instruments, model, tokenizer
from test_live import self_contained

import workbench
from probes.values.tracker import ValueTracker

pytestmark = pytest.mark.slow  # two processes start, and each imports everything
WORKER = Path(__file__).with_name("live_worker.py")
PATIENCE = 300
"""Seconds after which the processes are taken to wait for each other for ever."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder where two processes trained, and what each said."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    logs = [folder / f"log-{rank}.txt" for rank in (0, 1)]
    processes = []
    for rank in (0, 1):
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with logs[rank].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )
    try:
        codes = [process.wait(timeout=PATIENCE) for process in processes]
    except subprocess.TimeoutExpired:
        codes = ["waited for ever"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return folder, [json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1)]


def test_rows_are_those_of_one_process_and_training_does_not_notice(ran, tmp_path):
    folder, said = ran
    assert [x["unnoticed"] for x in said] == [True, True] and said[0]["wrapped"] == "DistributedDataParallel"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there
    try:
        sources = {
            0: lambda: workbench.load(model(), tokenizer=tokenizer()),
            **{step: self_contained(folder / "run" / f"checkpoint-{step}") for step in (2, 4)},
        }
        offline = ValueTracker(tmp_path, ITEMS, instruments()).run(sources, progress=False)
    finally:
        torch.set_num_threads(threads)
    live = ValueTracker(folder / "shared", ITEMS, instruments())
    assert live.steps == [0, 2, 4] and len(list(live.path.rglob("*.nc"))) == 9
    for instrument in instruments():
        np.testing.assert_array_equal(live.readings(instrument)["p"].values, offline.readings(instrument)["p"].values)


def test_each_process_reads_its_share(ran):
    _, said = ran
    # 24 items in two parts, at step 0 and at step 1.
    assert [x["asked"] for x in said] == [[12, 12], [12, 12]]


def test_rank_0_decides_for_all(ran):
    folder, said = ran
    # Where rank 0 has no time, steps are left out, and what rank 1 has does not count.
    assert said[0]["skipped"] == said[1]["skipped"] == {"0": [1, 2], "1": []}
    assert said[0]["stopped"] == said[1]["stopped"] == [2, 2]

    def steps(name):
        return ValueTracker(folder / name, ITEMS, instruments()).steps

    assert steps("busy 0") == [0, 3] and steps("busy 1") == [0, 1, 2, 3]
    assert steps("alarm") == [0, 1, 2] and steps("early") == [0, 3]


def test_an_error_in_one_process_is_raised_in_both(ran):
    _, said = ran
    assert said[1]["broken"] == "RuntimeError: no memory in process 1"
    assert said[0]["broken"].startswith("ReadingError: The process of rank 1 could not go on: RuntimeError: no memory")


def test_sharded_weights_are_refused_in_every_process(ran):
    _, said = ran
    assert all(x["sharded"].startswith("Refused: The weights of this ") for x in said)
    assert all("are spread over processes (FSDP2)" in x["sharded"] for x in said)
