"""The all-layer logit lens with all its statistics, against a plain forward, a floor, and its peers.

    python benchmarks/lens.py [--quick] [--device cuda] [--out FILE]

Random models of the size of GPT-2 small and of a 150M Llama, one prompt of 128 and of 512 tokens.  Everything
is timed in turn in one process (a round of all, several rounds, medians), so that a busy machine hurts all
alike; peak memory is taken in a process of its own for each (on a GPU from its allocator).  Multiples are of one
plain forward pass.  On a GPU: 1,024 tokens, and a Llama of 1.2 billion parameters with 128,256 tokens beside the two.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import arguments, extra_on_gpu, in_turn, machine, multiples, resident, written

import workbench
from lenses import EmbeddingLens, LogitLens
from workbench.errors import InputError

LLAMAS = {"llama-150M": (32_000, 768, 2048, 14, 12), "llama-1B": (128_256, 2048, 8192, 16, 32)}


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name.startswith("gpt2"):
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=4 if name == "gpt2-quick" else 12))
        norm = module.transformer.ln_f
    else:
        vocabulary, width, inner, depth, heads = LLAMAS[name]
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=depth,
            num_attention_heads=heads, num_key_value_heads=heads if name == "llama-150M" else 8,
            tie_word_embeddings=name != "llama-150M",
        )  # fmt: skip
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
    with torch.device(device):  # made where it runs: a CPU takes long over a billion random numbers
        module = build(name)
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


class _Look(workbench.Reader):
    """A reader that only looks at layer 3: what a pass that stops early costs."""

    def plan(self, run: Any) -> workbench.Plan:
        site = workbench.Site("resid", 3)

        def observe(states: Any, batch: Any) -> dict[str, Any]:
            states[site].norm(dim=-1)
            return {}

        return workbench.Plan([site], {}, observe)


def timed(name: str, length: int, device: str, rounds: int, memory: bool) -> dict[str, Any]:
    runs = cases(name, length, device)
    seconds = in_turn(runs, rounds, device)
    plain = statistics.median(seconds["plain"])
    row: dict[str, Any] = {"model": name, "tokens": length, "plain_seconds": round(plain, 4)}
    row["of_plain"] = {case: round(statistics.median(s) / plain, 2) for case, s in seconds.items()}
    for case, other in (("lens", "floor"), ("lens bf16", "lens"), ("embedding", "lens")):
        if case in seconds:
            row[f"{case} / {other}"] = multiples(seconds, other)[case]
    if not memory:
        extra = {}
    elif device == "cuda":
        extra = {case: extra_on_gpu(run) for case, run in runs.items()}
    else:
        own = {case: peak(name, length, case) for case in runs if case != "layer 3"}
        extra = {case: own[case] - own["plain"] for case in own}
    row["extra_MB"] = {case: round(MB) for case, MB in extra.items() if case not in ("plain", "layer 3")}
    return row


def peak(name: str, length: int, case: str) -> float:
    """MB of resident memory at the peak of one case, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, str(length), case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = arguments(__doc__, "four layers of GPT-2 at 128 tokens, two rounds, no memory", rounds=7)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if given.peak:
        name, length, case = given.peak
        runs = cases(name, int(length), given.device, only=case)
        # What a first pass allocates for good, and imports, are nobody's extra.
        runs["plain"]()
        workbench.read(build_small(), [[3, 4]], LogitLens(), progress=False)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here (Linux)
        runs[case]()
        print(resident("VmHWM"))
        return
    sizes = [(n, t) for n in ("gpt2", "llama-150M") for t in (128, 512)]
    if given.device == "cuda":
        sizes = [("gpt2", 1024), ("llama-150M", 1024), ("llama-1B", 1024)]
    sizes = [("gpt2-quick", 128)] if given.quick else sizes
    rows = []
    for name, length in sizes:
        row = timed(name, length, given.device, 2 if given.quick else given.rounds, not given.quick)
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
