"""Time and memory of a stretch of a benchmark, what it ran on, and where its numbers go."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch


def resident(what: str = "VmRSS") -> float:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 2**10


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
