"""The all-layer logit lens with all its statistics, against a plain forward, a floor, and its peers.

    python benchmarks/lens.py [--quick] [--device cuda] [--out FILE]

Random models of the size of GPT-2 small and of a 150M Llama, one prompt of 128 and of 512 tokens.  Everything
is timed in turn in one process (a round of all, several rounds, medians), so that a busy machine hurts all
alike; peak memory is taken in a process of its own for each.  Multiples are of one plain forward pass.

    floor    plain forward + one product with the unembedding per layer: what any exact lens must compute
    dense    hidden states of all layers, [layers, tokens, vocabulary] log-softmax, and the same statistics
    tl       TransformerLens: run_with_cache + accumulated residuals + unembedding (logits only, no statistics)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import machine, written

import workbench
from lenses import EmbeddingLens, LogitLens
from workbench.errors import InputError


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        norm = module.transformer.ln_f
    else:
        config = transformers.LlamaConfig(
            vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=14, num_attention_heads=12
        )
        module = transformers.LlamaForCausalLM(config)
        norm = module.model.norm
    with torch.no_grad():
        norm.weight.mul_(12)  # logits as spread as a trained model's
    return module.eval()


def build_small() -> Any:
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99)
    return workbench.load(transformers.GPT2LMHeadModel(config).eval())


def dense(module: Any, ids: torch.Tensor) -> None:
    """The lens as it is usually written."""
    out = module(input_ids=ids, output_hidden_states=True)
    norm = module.transformer.ln_f if hasattr(module, "transformer") else module.model.norm
    # The last entry of transformers' hidden_states is normed already.
    normed = [norm(h[0]) for h in out.hidden_states[:-1]] + [out.hidden_states[-1][0]]
    logprob = torch.stack([module.lm_head(h) for h in normed]).log_softmax(-1)
    probability = logprob.exp()
    logprob.topk(10, -1)
    -(probability * logprob).sum(-1)
    (probability[-1] * (logprob[-1] - logprob)).sum(-1)
    target = logprob[-1].argmax(-1).expand(len(logprob), -1)[..., None]
    (logprob > logprob.gather(-1, target)).sum(-1)


def transformer_lens(module: Any) -> Callable[[torch.Tensor], None]:
    """Accumulated residuals through the bridge's own final norm and unembedding."""
    from transformer_lens.model_bridge import TransformerBridge

    module.config.architectures = [type(module).__name__]
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(model_name=folder, hf_model=module, device="cpu", tokenizer=None)

    def run(ids: torch.Tensor) -> None:
        _, cache = bridge.run_with_cache(ids)
        states = cache.accumulated_resid(layer=-1, incl_mid=False)
        bridge.unembed(bridge.ln_final(states[:, 0]))

    return run


def cases(name: str, length: int, device: str, only: str | None = None) -> dict[str, Callable[[], Any]]:
    module = build(name).to(device)
    ids = torch.randint(0, 30000, (1, length), generator=torch.Generator().manual_seed(1)).to(device)
    model = workbench.load(module, name=name)
    _ = model.fingerprint
    depth, width = model.n_layers + 1, model.d_model
    states = torch.randn(length, width, device=device)
    weight = module.lm_head.weight
    prompt = ids.tolist()

    def plain() -> None:
        with torch.no_grad():
            module(input_ids=ids, use_cache=False)

    def floor() -> None:
        with torch.no_grad():
            module(input_ids=ids, use_cache=False)
            for _ in range(depth):
                states @ weight.T

    def lens(precision: str) -> None:
        workbench.read(model, prompt, LogitLens(precision=precision), progress=False)

    def naive() -> None:
        with torch.no_grad():
            dense(module, ids)

    found: dict[str, Callable[[], Any]] = {
        "plain": plain,
        "floor": floor,
        "lens": lambda: lens("fp32"),
        "embedding": lambda: workbench.read(model, prompt, EmbeddingLens(), progress=False),
        "dense": naive,
        "layer 3": lambda: workbench.read(model, prompt, _Look(), progress=False),
    }
    try:
        lens("bf16")
        found["lens bf16"] = lambda: lens("bf16")
    except InputError as error:  # it is refused where it is not faster
        print(f"lens bf16 is refused: {error}", file=sys.stderr)
    if name == "gpt2" and device == "cpu" and only in (None, "tl"):
        try:
            tl = transformer_lens(module)
            tl(ids)
            found["tl"] = lambda: torch.no_grad()(tl)(ids)
        except Exception as error:  # a peer that does not run here is said to, not left out silently
            print(f"tl does not run here: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return found


class _Look:
    """A reader that only looks at layer 3: what a pass that stops early costs."""

    def sites(self, model: Any) -> list[workbench.Site]:
        return [workbench.Site("resid", 3)]

    def begin(self, run: Any) -> None:
        pass

    def observe(self, site: Any, states: torch.Tensor, batch: Any) -> None:
        batch.take(states).norm(dim=-1)

    def end(self) -> Any:
        import xarray

        return workbench.Reading(xarray.Dataset())


def timed(name: str, length: int, device: str, rounds: int) -> dict[str, Any]:
    runs = cases(name, length, device)
    seconds: dict[str, list[float]] = {case: [] for case in runs}
    for i in range(rounds + 1):
        for case, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if i:  # the first round warms up
                seconds[case].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain"])
    row: dict[str, Any] = {"model": name, "tokens": length, "plain_seconds": round(plain, 4)}
    row["of_plain"] = {case: round(statistics.median(s) / plain, 2) for case, s in seconds.items()}
    # Ratios of neighbours in one round, then the median: slow phases of the machine cancel.
    for case, other in (("lens", "floor"), ("lens bf16", "lens"), ("embedding", "lens")):
        if case in seconds:
            pairs = [a / b for a, b in zip(seconds[case], seconds[other], strict=True)]
            row[f"{case} / {other}"] = round(statistics.median(pairs), 3)
    return row


def peak(name: str, length: int, device: str, case: str) -> float:
    """MB at the peak of one case, in a process of its own (the GPU's allocator, or resident memory)."""
    command = [sys.executable, __file__, "--peak", name, str(length), case, "--device", device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="GPT-2 at 128 tokens, two rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if given.peak:
        name, length, case = given.peak
        runs = cases(name, int(length), given.device, only=case)
        # What a first pass allocates for good, and imports, are nobody's extra.
        runs["plain"]()
        workbench.read(build_small(), [[3, 4]], LogitLens(), progress=False)
        if given.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here (Linux)
        runs[case]()
        if given.device == "cuda":
            print(torch.cuda.max_memory_allocated() / 2**20)
        else:
            status = Path("/proc/self/status").read_text()
            print(int(status.split("VmHWM:")[1].split()[0]) / 2**10)
        return
    sizes = [("gpt2", 128)] if given.quick else [(n, t) for n in ("gpt2", "llama-150M") for t in (128, 512)]
    rows = []
    for name, length in sizes:
        row = timed(name, length, given.device, 2 if given.quick else given.rounds)
        base = peak(name, length, given.device, "plain")
        row["extra_MB"] = {
            case: round(peak(name, length, given.device, case) - base)
            for case in row["of_plain"]
            if case not in ("plain", "layer 3")
        }
        rows.append(row)
        print(f"\n{name}, {length} tokens; plain forward {row['plain_seconds']} s")
        for case in row["of_plain"]:
            extra = row["extra_MB"].get(case, "")
            print(f"  {case:<10} {row['of_plain'][case]:>6} x plain   {extra:>6} MB above plain")
        print("  " + "   ".join(f"{name} {ratio}" for name, ratio in row.items() if " / " in name))
    result = {**machine(given.device), "rows": rows}
    print(json.dumps(result))
    written(result, given.out)


if __name__ == "__main__":
    main()
