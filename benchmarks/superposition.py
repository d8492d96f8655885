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

import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers
from measure import arguments, in_turn, machine, multiples, written

import workbench
from lenses import LogitLens
from probes.superposition import CandidateBelief, ContinuousThought, think


def main() -> None:
    given = arguments(__doc__, "two layers, two rounds", rounds=5).parse_args()
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
    seconds = in_turn(runs, 2 if given.quick else given.rounds, given.device)
    result = {
        **machine(given.device), "thoughts_seconds": round(statistics.median(seconds["thoughts"]), 3),
        "of_thoughts": multiples(seconds, "thoughts"),
    }  # fmt: skip
    for name, value in result.items():
        print(f"  {name:<20} {value}")
    written(result, given.out)


if __name__ == "__main__":
    main()
