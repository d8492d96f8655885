"""One of two processes that train together, for test_live_processes.py: everything here runs in each.

RANK=0 WORLD_SIZE=2 ... python live_worker.py FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]
torch.set_num_threads(1)

import accelerate  # noqa: E402
from living import FRAMINGS, instruments, model, tokenizer  # noqa: E402
from test_live import ITEMS, Then, ValueCallback, ValueTracker, stop, told, trained  # noqa: E402

import probes.values.live  # noqa: E402
from probes.values.instruments import Pmf  # noqa: E402

RANK = int(os.environ["RANK"])
FOLDER = Path(sys.argv[1])


class Counted(Pmf):
    """Says how many items it was asked for here."""

    def __init__(self):
        super().__init__(FRAMINGS)
        self.asked: list[int] = []

    def read(self, model, items, **more):
        self.asked.append(len(items))
        return super().read(model, items, **more)


class Breaks(Pmf):
    def read(self, model, items, **more):
        if RANK == 1:
            raise RuntimeError("no memory in process 1")
        return super().read(model, items, **more)


class Clock:
    """Stands still, so that reading takes no time; or leaps at each look, so that it takes all time there is."""

    def __init__(self, leaps: bool):
        self.leap, self.now = 1e6 * leaps, 0.0

    def perf_counter(self) -> float:
        self.now += self.leap
        return self.now


def main() -> dict:
    said: dict = {}
    # Items are shared, rows are those of one process, and training does not notice.
    tracker = ValueTracker(FOLDER / "shared", ITEMS, instruments())
    watched = trained(FOLDER / "run", [ValueCallback(tracker, tokenizer(), at=[2])], max_steps=4)
    plain = trained(FOLDER / "plain", [], max_steps=4)
    theirs = plain.model.state_dict()
    said["unnoticed"] = all(torch.equal(v, theirs[k]) for k, v in watched.model.state_dict().items())
    said["wrapped"] = type(watched.model_wrapped).__name__

    counted = Counted()
    count = ValueCallback(ValueTracker(FOLDER / "counted", ITEMS, [counted]), tokenizer(), at=[])
    trained(FOLDER / "x", [count], max_steps=1)
    said["asked"] = counted.asked

    # One process has no time left, and the other has: rank 0 decides.
    real, said["skipped"] = probes.values.live.time, {}
    for busy in (0, 1):
        slow = ValueTracker(FOLDER / f"busy {busy}", ITEMS, [Pmf(FRAMINGS)])
        probes.values.live.time = Clock(RANK == busy)
        budgeted = ValueCallback(slow, tokenizer(), at=[1, 2], budget=1e-6)
        trained(FOLDER / "x", [budgeted], max_steps=3)
        said["skipped"][str(busy)] = budgeted.skipped
    probes.values.live.time = real

    # The alert is true in process 0 alone, and stops both; another callback stops both before the last step.
    alarm = ValueTracker(FOLDER / "alarm", ITEMS, [Pmf(FRAMINGS)])
    alarmed = ValueCallback(alarm, tokenizer(), at=range(9), alert=lambda t: RANK == 0 and len(t.steps) >= 3)
    said["stopped"] = [trained(FOLDER / "x", [alarmed]).state.global_step, alarmed.stopped]
    early = ValueTracker(FOLDER / "early", ITEMS, [Pmf(FRAMINGS)])
    trained(FOLDER / "x", [ValueCallback(early, tokenizer(), at=[]), Then(3, stop)])

    # An error in one is an error in both.
    broken = ValueTracker(FOLDER / "broken", ITEMS, [Breaks(FRAMINGS)])
    try:
        trained(FOLDER / "x", [ValueCallback(broken, tokenizer(), at=[])])
    except Exception as error:
        said["broken"] = f"{type(error).__name__}: {error}"

    # Weights in pieces.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    try:
        ValueCallback(early, tokenizer()).on_train_begin(*told(), model=sharded)
    except Exception as error:
        said["sharded"] = f"{type(error).__name__}: {error}"
    return said


if __name__ == "__main__":
    found = main()
    (FOLDER / f"said-{RANK}.json").write_text(json.dumps(found))
    with contextlib.suppress(RuntimeError):  # the other may be gone already: it has said everything, too
        accelerate.PartialState().wait_for_everyone()
    sys.stdout.flush()
    # gloo's threads outlive the interpreter, which now and then aborts on the way out; everything has been said.
    os._exit(0)
