"""What the benchmarks share: their arguments, cases timed in turn, peak memory, what it ran on, where numbers go."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Seconds = dict[str, list[float]]


def arguments(doc: str | None, quick: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """--quick, --device and --out, which every benchmark takes; --rounds where cases run in turn."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def finish(device: str) -> None:
    """Wait for what was begun on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def in_turn(cases: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> Seconds:
    """Seconds of each case in each round; rounds of all cases, so that a busy machine hurts all alike."""
    seconds: Seconds = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, run in cases.items():
            finish(device)
            start = time.perf_counter()
            run()
            finish(device)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def multiples(seconds: Seconds, of: str, digits: int = 3) -> dict[str, float]:
    """Each case over a peer or floor: the median of the ratios of neighbours in one round."""
    return {
        name: round(statistics.median(a / b for a, b in zip(own, seconds[of], strict=True)), digits)
        for name, own in seconds.items()
    }


def resident(what: str = "VmRSS") -> float:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 2**10


def extra_on_gpu(run: Callable[[], Any]) -> float:
    """MB at the peak of the GPU's allocator above what was held before."""
    finish("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    finish("cuda")
    return (torch.cuda.max_memory_allocated() - before) / 2**20


class Measured:
    """Seconds, and MB of peak resident memory above what was held before (Linux)."""

    def __enter__(self) -> Measured:
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.start = before, time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.start
        self.extra = resident("VmHWM") - self.before


def machine(device: str) -> dict[str, Any]:
    """What numbers depend on: the GPU's name or the kind of CPU, threads, torch's version."""
    named = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return {"device": named, "threads": torch.get_num_threads(), "torch": torch.__version__}


def written(result: dict[str, Any], out: Path | None) -> None:
    """Write a result as JSON, where a file was asked for."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
