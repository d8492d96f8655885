"""What reading values costs: 550 items in six framings, against plain forward passes over the same tokens.

    python benchmarks/values.py [--quick] [--framings greatest_good,default] [--clock cpu] [--device cuda] [--out FILE]

A random GPT-2 small with its whole vocabulary; the tokenizer is trained on the prompts themselves, so that prompts are
short and what does not grow with them weighs more.  The items are read in blocks of 16, as a tracker reads them, each
block by every case in turn, so that a busy machine hurts all alike; each case reads all items once, and ratios are
medians over blocks.  With --clock cpu the seconds are this process's on one thread, where others share the machine.

    hidden   the model's hidden states in the same batches and order, no logits: the floor of any such reading
    last     plain forward, logits of the last position alone
    full     plain forward, logits of all positions
    whole    Pmf with every prompt run whole: tokens, answers found in the vocabulary, normaliser, table
    parts    Pmf as it is: what prompts share at their beginnings is run once
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from measure import arguments, finish, machine, written
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import workbench
from probes.values.answers import Turn, answer_pieces
from probes.values.framings import Framing, default_framings, greatest_good_framings
from probes.values.instruments import Pmf
from probes.values.items import Item, own
from workbench.engine import prefix
from workbench.engine.drivers import token_budget
from workbench.inputs import collate, encode, plan

FRAMINGS = {"greatest_good": greatest_good_framings, "default": lambda: default_framings()[:6]}
LEAD = "\nAnswer:"
BLOCK = 16


def items(n: int) -> list[Item]:
    """n statements: the project's own, and what people say of them."""
    found = list(own())
    found += [replace(i, item_id=f"{i.item_id}-said", text=f"As many would say: {i.text}") for i in own()]
    found += [replace(i, item_id=f"{i.item_id}-few", text=f"Few would doubt this: {i.text}") for i in own()]
    return found[:n]


def tokenizer(texts: list[str], size: int) -> transformers.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)


@contextmanager
def whole_prompts() -> Iterator[None]:
    """Nothing is shared."""
    least, prefix.LEAST = prefix.LEAST, 10**9
    try:
        yield
    finally:
        prefix.LEAST = least


def cases(model: workbench.Model, framings: tuple[Framing, ...], some: list[Item]) -> dict[str, Callable[[], Any]]:
    module: Any = model.module
    asked = []
    for framing in framings:
        turn, shown = Turn(model, False), [framing.shown(item) for item in some]
        seam, _ = answer_pieces(turn, framing.answers, framing.tokens or "single", shown[0])
        asked += [turn.prompt(question, seam) for question in shown]
    prompts = encode(model, asked, "last")
    batches = [collate(model, prompts, members).inputs for members in plan(prompts, token_budget(model), None)]

    def plain(run: Callable[..., Any], **options: Any) -> Callable[[], None]:
        def passes() -> None:
            with torch.no_grad():
                for inputs in batches:
                    run(**inputs, use_cache=False, **options)

        return passes

    def reading() -> Any:
        return Pmf(framings).read(model, some, progress=False)

    def whole() -> Any:
        with whole_prompts():
            return reading()

    return {
        "hidden": plain(module.transformer), "last": plain(module, logits_to_keep=1), "full": plain(module),
        "whole": whole, "parts": reading,
    }  # fmt: skip


def measured(
    model: workbench.Model, name: str, given: list[Item], blocks: int, clock: Callable[[], float]
) -> dict[str, Any]:
    framings = FRAMINGS[name]()
    seconds: dict[str, list[float]] = {}
    about: dict[str, int] = {"tokens": 0, "prefix_tokens_saved": 0}
    apart = 0.0
    for block in range(-1, blocks):
        # A first small block warms up.
        some = given[block::blocks] if block >= 0 else given[:2]
        results = {}
        for case, run in cases(model, framings, some).items():
            start = clock()
            results[case] = run()
            finish(model.device.type)
            if block >= 0:
                seconds.setdefault(case, []).append(clock() - start)
        if block >= 0:
            apart = max(apart, float(np.abs(results["parts"]["p"] - results["whole"]["p"]).max()))
            for key in about:
                about[key] += results["parts"].data.attrs[key]
            print(f"  {name} {block + 1}/{blocks}", {k: round(v[-1], 2) for k, v in seconds.items()}, flush=True)
    prompts = len(given) * len(framings)
    row: dict[str, Any] = {
        "framings": name, "items": len(given), "prompts": prompts, "blocks": blocks,
        "tokens_per_prompt": round(about["tokens"] / prompts, 1),
        "saved": round(about["prefix_tokens_saved"] / about["tokens"], 3),
        "largest_difference_in_p": apart, "hidden_seconds": round(sum(seconds["hidden"]), 1),
    }  # fmt: skip
    for floor in ("hidden", "last", "full"):
        row[f"of_{floor}"] = {
            case: round(statistics.median(a / b for a, b in zip(own, seconds[floor], strict=True)), 3)
            for case, own in seconds.items()
        }
    return row


def main() -> None:
    parser = arguments(__doc__, "two layers, 48 items in three blocks")
    parser.add_argument("--framings", default=",".join(FRAMINGS))
    parser.add_argument("--items", type=int, default=550)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    clock = time.perf_counter
    if given.clock == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    asked = items(48 if given.quick else given.items)
    blocks = max(3, -(-len(asked) // BLOCK))
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2 if given.quick else 12)
    module = transformers.GPT2LMHeadModel(config).eval().to(given.device)
    with torch.no_grad():
        module.transformer.ln_f.weight.mul_(12)  # logits as spread as a trained model's
    texts = [f.shown(i) + LEAD for n in FRAMINGS for f in FRAMINGS[n]() for i in asked]
    texts += [" 1 2 3 4 5 6 7 A B C yes no maybe"] * 9
    model = workbench.load(module, tokenizer=tokenizer(texts, config.vocab_size), name="GPT-2 small, random")
    rows = [measured(model, name, asked, blocks, clock) for name in given.framings.split(",")]
    for row in rows:
        about = f"{row['prompts']} prompts of {row['tokens_per_prompt']} tokens, {row['saved']:.0%} of them not run"
        print(f"\n{row['framings']}: {about}")
        for case in row["of_hidden"]:
            print(f"  {case:<8}" + "".join(f"{row[f'of_{f}'][case]:>8} x {f}" for f in ("hidden", "last", "full")))
        print(f"  largest difference in p between whole and parts: {row['largest_difference_in_p']:.1e}")
    result = {**machine(given.device), "clock": given.clock, "rows": rows}
    print(json.dumps(result))
    written(result, given.out)


if __name__ == "__main__":
    main()
