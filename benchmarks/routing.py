"""What tracing costs: against a plain forward pass, and against router logits with top k.

    python benchmarks/routing.py [--quick] [--device cuda] [--out FILE]
    python benchmarks/routing.py --million [--out FILE]     a trace of a million tokens: disk and memory

A random OLMoE with 64 experts, top 8, in 8 blocks of width 512 (on a GPU 16 of 2,048, the size of OLMoE-1B-7B), over
documents of 256 tokens.  Everything runs in turn
in one process, several rounds, medians; ratios are of neighbours in one round.

    plain      the model's forward pass, batch by batch
    logits     the same with output_router_logits=True, and top k of them (not always the routing that happened)
    counts     RoutingTracer: counts by label and document
    pairs      with co-activation and flow
    trace      with every token's experts and weights in memory
    disk       trace() to shards on disk
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import Measured, arguments, in_turn, machine, multiples, written

import workbench
from probes.routing import RoutingTracer, trace


def model_of(device: str, quick: bool) -> workbench.Model:
    torch.manual_seed(0)
    width, inner, depth = (128, 128, 4) if quick else (2048, 1024, 16) if device == "cuda" else (512, 256, 8)
    config = transformers.OlmoeConfig(
        vocab_size=5000, hidden_size=width, intermediate_size=inner, num_hidden_layers=depth,
        num_attention_heads=8, num_key_value_heads=8, num_experts=64,
        num_experts_per_tok=8, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device(device):
        module = transformers.OlmoeForCausalLM(config).eval()
    return workbench.load(module, name="OLMoE, random")


def cases(model: workbench.Model, documents: torch.Tensor, size: int, work: Path) -> dict[str, Callable[[], Any]]:
    labels = [f"L{i % 4}" for i in range(len(documents))]
    ids = documents.tolist()
    on_device = documents.to(model.device)

    def plain() -> None:
        with torch.no_grad():
            for rows in on_device.split(size):
                model.module(input_ids=rows, use_cache=False)

    def logits() -> None:
        with torch.no_grad():
            for rows in on_device.split(size):
                out = model.module(input_ids=rows, use_cache=False, output_router_logits=True)
                for scores in out.router_logits:
                    scores.topk(8, -1).indices.cpu()

    def read(**options: Any) -> Callable[[], Any]:
        return lambda: workbench.read(model, ids, RoutingTracer(labels, **options), batch_size=size, progress=False)

    def disk() -> None:
        shutil.rmtree(work / "trace", ignore_errors=True)
        trace(model, ids, work / "trace", labels=labels, batch_size=size, progress=False)

    return {
        "plain": plain, "logits": logits, "counts": read(), "pairs": read(pairs=True), "trace": read(trace=True),
        "disk": disk,
    }  # fmt: skip


def million(tokens: int = 1_000_000, length: int = 500) -> dict[str, Any]:
    """A trace on disk of a million tokens through 16 blocks, 64 experts, top 8: what it takes above the plain passes.

    The model is narrow, since neither disk nor memory of a trace depends on its width.
    """
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=50_000, hidden_size=32, intermediate_size=16, num_hidden_layers=16, num_attention_heads=2,
        num_key_value_heads=2, num_experts=64, num_experts_per_tok=8, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = workbench.load(transformers.OlmoeForCausalLM(config).eval(), name="OLMoE, random, narrow")
    ids = torch.randint(3, 50_000, (tokens // length, length), generator=torch.Generator().manual_seed(0))
    labels = [f"L{i % 4}" for i in range(len(ids))]
    documents = ids.tolist()
    with torch.no_grad():
        for rows in ids[:64].split(8):
            model.module(input_ids=rows, use_cache=False)
    with tempfile.TemporaryDirectory() as temporary:
        with Measured() as tracing:
            traced = trace(model, documents, Path(temporary) / "trace", labels=labels, batch_size=8, progress=False)
        size = sum(f.stat().st_size for f in (Path(temporary) / "trace").iterdir())
        with Measured() as counting:
            traced.reading()
    return {
        "tokens": ids.numel(), "documents": len(ids), "seconds": round(tracing.seconds, 1),
        "disk_MB": round(size / 1e6, 1), "extra_MB_tracing": round(tracing.extra, 1),
        "extra_MB_counting_again": round(counting.extra, 1),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "a smaller model, two rounds", rounds=5)
    parser.add_argument("--million", action="store_true", help="disk and memory of a trace of a million tokens")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if given.million:
        report({"million": million()}, given.out)
        return
    model = model_of(given.device, given.quick)
    documents = torch.randint(3, 5000, (16, 256), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        runs = cases(model, documents, 8, work)
        seconds = in_turn(runs, 2 if given.quick else given.rounds, given.device)
        size = sum(f.stat().st_size for f in (work / "trace").iterdir())
    slots = len(model.moe) * 8
    per_token = size / documents.numel()
    result = {
        **machine(given.device), "tokens": documents.numel(),
        "plain_seconds": round(statistics.median(seconds["plain"]), 3), "of_plain": multiples(seconds, "plain"),
        "disk_bytes_per_token": round(per_token, 1),
        "disk_MB_per_million_tokens_of_16_blocks_top_8": round((per_token - 12) / slots * 16 * 8 + 12),
    }  # fmt: skip
    report(result, given.out)


def report(result: dict[str, Any], out: Path | None) -> None:
    """Print figures, and add them to those that are in the file."""
    for name, value in result.items():
        print(f"  {name:<46} {value}")
    there = json.loads(out.read_text()) if out and out.exists() else {}
    written({**there, **result}, out)


if __name__ == "__main__":
    main()
