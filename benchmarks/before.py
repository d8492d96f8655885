"""This tree beside an earlier one: the same public calls in both, in turn, in one run.

    python benchmarks/before.py --revision REVISION [--model FOLDER] [--quick] [--rounds 5] [--out FILE]

A process for each tree (the earlier one is a checkout of the revision in a temporary folder) runs a case after the
other has run it, so that a busy machine hurts both alike; ratios are medians over rounds of this tree's seconds over
the earlier one's, and of the peak of memory above what was held before.

    lens 128, lens 512   LogitLens over eight prompts of so many tokens
    index                ContextIndex.build over made-up stories
    trace                RoutingTracer with trace=True over the documents of organism:polyglot
    pmf                  Pmf over 550 items in the default framings
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = ("lens 128", "lens 512", "index", "trace", "pmf")


def cases(model_name: str, quick: bool) -> dict[str, Callable[[], Any]]:
    """Made where the tree that is measured is the one imported."""
    from dataclasses import replace

    import numpy as np

    import workbench
    from lenses import ContextIndex, LogitLens
    from probes.routing import RoutingTracer
    from probes.values.instruments import Pmf
    from probes.values.items import own
    from workbench.organisms.polyglot import twins
    from workbench.organisms.story.grammar import stories

    if model_name:
        model = workbench.load(model_name, progress=False)
    else:
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32_000, hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=1024,
        )  # fmt: skip
        model = workbench.load(transformers.LlamaForCausalLM(config).eval(), name="random llama", progress=False)
    story = workbench.load("organism:story", progress=False)
    moe = twins.planted()
    rng = np.random.default_rng(0)
    texts = [s.text for s in stories(60 if quick else 400, 5)]
    documents = twins.documents(60 if quick else 600, languages=True, tokens=100)[0]
    items = [replace(i, item_id=f"{i.item_id}-{k}", text=f"{lead}{i.text}") for k, lead in enumerate(
        ("", "As many would say: ", "Few would doubt this: ")) for i in own()][: 50 if quick else 550]  # fmt: skip

    def lens(length: int) -> Callable[[], Any]:
        size = min(model.vocab_size, 40_000)
        prompts = rng.integers(100, size, (8, length)).tolist()
        return lambda: workbench.read(model, prompts, LogitLens(), progress=False)

    def index() -> None:
        folder = tempfile.mkdtemp()
        try:
            ContextIndex.build(story, texts, Path(folder) / "index", progress=False)
        finally:
            shutil.rmtree(folder)

    return {
        "lens 128": lens(128), "lens 512": lens(512), "index": index,
        "trace": lambda: workbench.read(moe, documents, RoutingTracer(trace=True), progress=False),
        "pmf": lambda: Pmf().read(story, items, progress=False),
    }  # fmt: skip


def worker(model: str, quick: bool) -> None:
    """Runs the cases named on standard input, and says of each what it took."""
    from measure import Measured

    known = cases(model, quick)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        with Measured() as took:
            known[line.strip()]()
        print(json.dumps([took.seconds, took.extra]), flush=True)


class Tree:
    """A process that imports one tree."""

    def __init__(self, root: Path, chosen: argparse.Namespace) -> None:
        here = Path(__file__).resolve()
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{here.parent}", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(here), "--worker", "--model", chosen.model, *["--quick"] * chosen.quick]
        self.process = subprocess.Popen(
            command, env=environment, cwd=root, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"The process stopped with status {self.process.wait()}.")
        return json.loads(line)

    def run(self, case: str) -> tuple[float, float]:
        print(case, file=self.process.stdin, flush=True)
        return tuple(self._answer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="v0.1.0")
    parser.add_argument("--model", default="", help="what the lens reads; default: a random Llama of 8 layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return worker(chosen.model, chosen.quick)
    here, folder = Path(__file__).resolve().parents[1], Path(tempfile.mkdtemp())
    checkout = ["git", "-C", here, "worktree", "add", "-q", "--detach", folder / "before", chosen.revision]
    subprocess.run(checkout, check=True)
    try:
        trees = Tree(here, chosen), Tree(folder / "before", chosen)
        found: dict[str, Any] = {}
        for case in [chosen.only] if chosen.only else CASES:
            rounds = [[tree.run(case) for tree in trees] for _ in range(1 + chosen.rounds)][1:]
            seconds, memory = ([(now[i], then[i]) for now, then in rounds] for i in (0, 1))
            found[case] = {
                "seconds": round(statistics.median(a for a, _ in seconds), 3),
                "times the earlier seconds": round(statistics.median(a / b for a, b in seconds), 3),
                "megabytes": round(statistics.median(a for a, _ in memory), 1),
                "earlier megabytes": round(statistics.median(b for _, b in memory), 1),
            }
            print(f"{case:10}", *(f"{name} {value};" for name, value in found[case].items()), flush=True)
    finally:
        subprocess.run(["git", "-C", here, "worktree", "remove", "--force", folder / "before"], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    if chosen.out:
        name = Path(chosen.model).name or "random llama"
        about = {"revision": chosen.revision, "model": name, "date": time.strftime("%Y-%m-%d")}
        chosen.out.write_text(json.dumps({**about, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
