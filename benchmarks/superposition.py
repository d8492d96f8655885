"""What looking on costs: thoughts alone, and with every layer read at every thought.

    python benchmarks/superposition.py [--quick] [--device cuda] [--out FILE]

A random GPT-2 small, prompts of 100 tokens, six continuous thoughts, everything in turn in one process; ratios are of
neighbours in one round, medians.

    thoughts    think() without readers
    belief      with CandidateBelief of 24 candidates at all 13 layers
    lens        with LogitLens at all 13 layers, whole vocabulary
    belief_all  with CandidateBelief(mass=True): its share of the whole vocabulary, too
    no_cache    without the key-value cache
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import machine, written

import workbench
from lenses import LogitLens
from probes.superposition import CandidateBelief, ContinuousThought, think


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2 if given.quick else 12)
    model = workbench.load(transformers.GPT2LMHeadModel(config).eval().to(given.device), name="GPT-2 small, random")
    prompts = torch.randint(0, 50_000, (8, 100), generator=torch.Generator().manual_seed(0)).tolist()
    candidates = list(range(100, 124))

    def run(*readers: Callable[[], Any], **options: Any) -> Callable[[], Any]:
        return lambda: think(
            model, prompts, ContinuousThought(6), readers=[r() for r in readers], batch_size=8, **options
        )

    runs = {
        "thoughts": run(), "belief": run(lambda: CandidateBelief(candidates)), "lens": run(lambda: LogitLens(top_k=5)),
        "belief_all": run(lambda: CandidateBelief(candidates, mass=True)), "no_cache": run(cache=False),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range((2 if given.quick else given.rounds) + 1):
        for name, one in runs.items():
            start = time.perf_counter()
            one()
            if given.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratio = {
        name: round(statistics.median(a / b for a, b in zip(own, seconds["thoughts"], strict=True)), 3)
        for name, own in seconds.items()
    }
    result = {
        **machine(given.device), "thoughts_seconds": round(statistics.median(seconds["thoughts"]), 3),
        "of_thoughts": ratio,
    }  # fmt: skip
    for name, value in result.items():
        print(f"  {name:<20} {value}")
    written(result, given.out)


if __name__ == "__main__":
    main()
