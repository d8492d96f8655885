"""Time and memory of a stretch of a benchmark."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


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
