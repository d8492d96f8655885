"""Everything that needs a GPU, in one go of at most eight minutes: tests marked gpu, and benchmarks at their GPU sizes.

    python scripts/gpu.py [PART ...] [--again] [--minutes 8] [--results FOLDER]      on a machine with a CUDA device
    python scripts/gpu.py --rehearse                                                anywhere: the same parts, tiny

Each part runs in a process of its own with a time limit, and what came of it is written when it ends: numbers to
benchmarks/results/NAME-DEVICE.json, how it went to gpu-DEVICE.json beside them.  A second call goes on with what is
missing or failed; --again starts anew.  Nothing is fetched: a part whose packages are not here is skipped, with the
reason.  The end is a summary; the exit code is 0 when no part failed or was left undone.

A rehearsal writes into build/gpu-rehearsal and runs tests on the make-believe device and benchmarks on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SLOW = 10
"""How much slower a machine may be, with a core or two that others use, on which this is rehearsed."""


@dataclass(frozen=True)
class Part:
    limit: int
    """Seconds; a rehearsal has SLOW times as many."""
    command: list[str]
    rehearsal: list[str]
    needs: tuple[str, ...] = ()


def marked() -> list[str]:
    """Test files with a test for a GPU: others need not be collected, and what they import need not be here."""
    found = (p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text("utf-8"))
    return [str(p.relative_to(ROOT)) for p in found]


def benchmark(name: str, limit: int, *more: str) -> Part:
    script = [f"benchmarks/{name}.py"]
    return Part(limit, [*script, *more, "--device", "cuda"], [*script, *more, "--quick"], ("transformers", "xarray"))


def parts() -> dict[str, Part]:
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    little = "same_as_on_the_cpu and (embedding or states) or two_devices or make_believe"
    return {
        "tests": Part(
            170, [*pytest, "-m", "gpu", *marked()],
            [*pytest, "tests/device/test_make_believe.py", "tests/device/test_same_as_cpu.py", "-k", little],
            ("pytest", "transformers", "xarray"),
        ),
        "lens": benchmark("lens", 90),
        "latent": benchmark("latent", 90, "build", "search"),
        "values": benchmark("values", 50, "--framings", "greatest_good"),
        "routing": benchmark("routing", 40),
        "superposition": benchmark("superposition", 30),
    }  # fmt: skip


def device() -> str | None:
    """The GPU's name as part of a file's, nvidia-h200; None where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return None
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def run(command: list[str], limit: float, log: Path) -> tuple[str, float]:
    """What came of a command ("passed" or why not) and its seconds; its whole family ends with its time."""
    start = time.monotonic()
    there = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**there, **offline}, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            said = "passed" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            said = f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return said, time.monotonic() - start


def main() -> int:
    doc = __doc__ or ""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = parts()
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all ({', '.join(every)})")
    parser.add_argument("--again", action="store_true", help="also the parts that are finished")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it")
    parser.add_argument("--results", type=Path, help="where results go")
    parser.add_argument("--rehearse", action="store_true", help="tiny, without a GPU")
    given = parser.parse_args()
    if unknown := sorted(set(given.parts) - set(every)):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(every)}")
    name = "rehearsal" if given.rehearse else device()
    if name is None:
        print("There is no CUDA device here: nothing was run. `scripts/gpu.py --rehearse` tries the parts on the CPU.")
        return 1
    folder = (given.results or ROOT / ("build/gpu-rehearsal" if given.rehearse else "benchmarks/results")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Told to end, it takes the part that runs with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end = time.monotonic() + given.minutes * 60 * (SLOW if given.rehearse else 1)
    summary = folder / f"gpu-{name}.json"
    done: dict[str, Any] = json.loads(summary.read_text()) if summary.exists() else {}
    for part, about in every.items():
        if given.parts and part not in given.parts:
            continue
        if not given.again and done.get(part, {}).get("came") == "passed":
            print(f"{part:<14} is finished", flush=True)
            continue
        done[part] = one(part, about, name, folder, end, given.rehearse)
        whole = summary.with_suffix(".part")
        whole.write_text(json.dumps(done, indent=1) + "\n")
        whole.replace(summary)
        print(f"{part:<14} {done[part]['came']}, {done[part]['seconds']} s", flush=True)
        if not done[part]["came"].startswith(("passed", "skipped")):
            print("    " + "\n    ".join(done[part]["tail"]), flush=True)
    chosen = [p for p in every if not given.parts or p in given.parts]
    bad = [p for p in chosen if not done[p]["came"].startswith(("passed", "skipped"))]
    skipped = [p for p in chosen if done[p]["came"].startswith("skipped")]
    print(f"{name}: {len(chosen) - len(bad) - len(skipped)} passed", end="")
    print(f", {len(skipped)} skipped ({', '.join(skipped)})" if skipped else "", end="")
    print(f", {len(bad)} failed ({', '.join(bad)})" if bad else "", f"- {summary}", flush=True)
    return 1 if bad else 0


def one(part: str, about: Part, name: str, folder: Path, end: float, rehearse: bool) -> dict[str, Any]:
    """Run a part; what is kept of it."""
    if missing := [x for x in about.needs if importlib.util.find_spec(x) is None]:
        return {"came": f"skipped: {', '.join(missing)} is not installed", "seconds": 0, "tail": []}
    left = end - time.monotonic()
    if left < 5:
        return {"came": "not begun: the time is up; call again", "seconds": 0, "tail": []}
    # Numbers of a part that fails half-way must not stand under the device's name.
    out, log = folder / f"{part}-{name}.json", folder / f"{part}-{name}.log"
    fresh = out.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    command = about.rehearsal if rehearse else about.command
    writes = command[0].startswith("benchmarks/")
    limit = min(about.limit * (SLOW if rehearse else 1), left)
    came, seconds = run([*command, *(["--out", str(fresh)] if writes else [])], limit, log)
    tail = log.read_text("utf-8", "replace").splitlines()[-15:]
    log.unlink()
    if came == "passed" and writes:
        fresh.replace(out)
    fresh.unlink(missing_ok=True)
    return {"came": came, "seconds": round(seconds), "tail": tail if came != "passed" else tail[-1:]}


if __name__ == "__main__":
    sys.exit(main())
