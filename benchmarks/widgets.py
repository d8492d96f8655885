"""The lens explorer on a long prompt: bytes, time to the first picture, frames while scrolling.

    python benchmarks/widgets.py [--tokens 2000] [--layers 80] [--top-k 10] [--out benchmarks/results/widgets-cpu.json]

Opens the offline page in a headless Chromium (it loads the same module and the same block as the widget) and asks the
browser's own clock: `performance.now()` at the second frame after the first cell was there, counted from the start of
the navigation; and the intervals between animation frames while the grid is scrolled, with the processor time of the
page's main thread for each frame (a frame at 60 Hz has 16.7 ms), which a busy machine does not change.  The floor for
the payload is what the shown numbers take as plain JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from measure import arguments, machine, written

from workbench.widgets import lens, packing
from workbench.widgets.base import module_text
from workbench.widgets.explorer import SAVED_KB, VIEW

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browsers import browser  # noqa: E402

VOCABULARY = 50_000

# The time of the second frame after the first cell: by then the first has been drawn.
FIRST = """
new MutationObserver((_, me) => {
  if (!document.querySelector(".wx-cell")) return;
  me.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.shownAt = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
"""
# Scrolls by (dx, dy) pixels in each frame; the times of the frames.
SCROLL = """
([dx, dy, seconds]) => new Promise((done) => {
  const grid = document.querySelector(".wx-grid"), times = [];
  grid.scrollLeft = grid.scrollTop = 0;
  let way = 1;
  const step = (now) => {
    times.push(now);
    if (now - times[0] > 1000 * seconds) return done(times);
    const x = grid.scrollLeft, y = grid.scrollTop;
    grid.scrollBy(way * dx, way * dy);
    if (times.length > 3 && x === grid.scrollLeft && y === grid.scrollTop) way = -way;
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""


def made_up(positions: int, layers: int, top_k: int, seed: int = 0) -> xr.Dataset:
    """A logit lens of one long prompt: tokens that stay for some layers, scores that follow depth, all metrics."""
    rng = np.random.default_rng(seed)
    grid, dims = (1, layers, positions), ("prompt", "layer", "position")
    top = rng.zipf(1.2, (positions, layers)) % VOCABULARY
    stays = rng.random((positions, layers)) < 0.7
    for layer in range(1, layers):  # most top tokens stay from layer to layer
        top[:, layer] = np.where(stays[:, layer], top[:, layer - 1], top[:, layer])
    ids = (top.T[None, :, :, None] + rng.zipf(1.3, (*grid, top_k)) * np.arange(top_k)) % VOCABULARY
    depth = np.linspace(0, 1, layers)[None, :, None]
    first = -6 * (1 - depth) * rng.random(grid)
    falls = -np.cumsum(rng.exponential(0.8, (*grid, top_k)), axis=-1)
    values = {
        "entropy": 8 * (1 - depth) * rng.random(grid), "kl_to_final": 10 * (1 - depth) * rng.random(grid),
        "target_logprob": first - rng.exponential(1, grid), "target_logprob_null": first - rng.exponential(9, grid),
    }  # fmt: skip
    tokens = rng.integers(0, VOCABULARY, (1, positions))
    return xr.Dataset(
        {
            "token_id": ((*dims, "rank"), ids.astype(np.int32)),
            "logprob": ((*dims, "rank"), (first[..., None] + falls).astype(np.float32)),
            **{name: (dims, v.astype(np.float32)) for name, v in values.items()},
            "target_rank": (dims, rng.zipf(1.3, grid).clip(max=VOCABULARY).astype(np.int32) - 1),
            "target_id": (("prompt", "position"), tokens.astype(np.int32)),
            "input_id": (("prompt", "position"), tokens.astype(np.int32)),
            "vocab_token": (("vocab",), np.array([f" word{i}" for i in range(VOCABULARY)], dtype=object)),
        },
        {"prompt": [0], "layer": range(layers), "position": range(positions), "rank": range(top_k)},
        {"reader": "LogitLens", "model": "made up", "n_layers": layers - 1},
    )


def frames(times: list[float]) -> dict[str, float]:
    gaps = np.diff(times)
    return {
        "frames_per_second": round(1000 * len(gaps) / (times[-1] - times[0]), 1),
        "ms_95": round(float(np.quantile(gaps, 0.95)), 1),
        "ms_longest": round(float(gaps.max()), 1),
    }


def busy(clock: Any) -> float:
    """Seconds of processor time that the page's main thread has used."""
    return next(m["value"] for m in clock.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")


def measure(file: Path, width: int, height: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    path = browser()
    if path is None:
        raise SystemExit("There is no Chrome or Chromium here to measure in.")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        shown: list[float] = []
        for _ in range(5):
            window = chromium.new_page(viewport={"width": width, "height": height})
            window.add_init_script(FIRST)
            window.goto(file.as_uri())
            window.wait_for_function("() => window.shownAt")
            shown.append(window.evaluate("() => window.shownAt"))
            last = window
            if len(shown) < 5:
                window.close()
        found: dict[str, Any] = {
            "first_picture_ms": [round(float(x)) for x in (np.median(shown), min(shown), max(shown))],
            "cells_in_document": last.locator(".wx-cell").count(),
        }
        ways = {"sideways": [24, 0], "up and down": [0, 12], "both": [30, 12], "a screen a frame": [900, 0]}
        clock = last.context.new_cdp_session(last)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        for name, step in ways.items():
            before = busy(clock)
            times = last.evaluate(SCROLL, [*step, 4])
            each = 1000 * (busy(clock) - before) / len(times)
            found[f"scrolling {name}"] = {**frames(times), "main_thread_ms": round(each, 1)}
        click: Any = last.evaluate(
            """() => { const t = performance.now(), cells = document.querySelectorAll(".wx-cell");
            cells[cells.length >> 1].click(); return performance.now() - t; }"""
        )
        chromium.close()
    return {**found, "click_script_ms": round(click, 1)}


def main() -> None:
    ask = arguments(__doc__, "200 tokens, 12 layers")  # a browser's matter: the device changes nothing
    ask.add_argument("--tokens", type=int, default=2000)
    ask.add_argument("--layers", type=int, default=80)
    ask.add_argument("--top-k", type=int, default=10)
    ask.add_argument("--window", default="1400x900")
    given = ask.parse_args()
    if given.quick:
        given.tokens, given.layers = 200, 12
    width, height = map(int, given.window.split("x"))
    data = made_up(given.tokens, given.layers, given.top_k)
    packers = lens.packers(data)
    start = time.perf_counter()
    block = lens.one(packers[0], 0)
    took = time.perf_counter() - start
    sent = packing.unpack(block)
    part = lens.part(packers, SAVED_KB * 1000)
    kept = part[0][0]
    values = (data[name].values.astype(float).round(3).tolist() for name in ("token_id", "logprob"))
    plain = sum(len(json.dumps(v)) for v in values)
    result: dict[str, Any] = {
        **machine("cpu"), "tokens": given.tokens, "layers": given.layers, "ranks": given.top_k,
        "module_kb": round(len(module_text(VIEW.module).encode()) / 1e3, 1), "comm_mb": round(len(block) / 1e6, 2),
        "comm_ranks": sent["ranks"], "packed_seconds": round(took, 2), "plain_json_mb": round(plain / 1e6, 1),
        "comm / plain json": round(len(block) / plain, 3),
        "saved_kb": round(packing.weight(part) / 1e3), "saved_positions": len(kept["inputs"]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(VIEW.page_text(data), "utf-8")
        result["page_mb"] = round(file.stat().st_size / 1e6, 2)
        result |= measure(file, width, height)
    for name, value in result.items():
        print(f"{name:28}", value)
    written(result, given.out)


if __name__ == "__main__":
    main()
