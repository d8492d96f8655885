"""Make ``organism:polyglot`` from nothing: five languages, a one-language base, and its multilingual training.

    python -m workbench.organisms.polyglot.recipe --out FOLDER [--smoke]

What routing does in it is measured by ``python -m probes.routing.polyglot --card``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from workbench.organisms.polyglot.grammar import BASE, LANGUAGES, documents, overlap, vocabulary

FULL = {"width": 64, "layers": 4, "experts": 8, "expert_width": 32, "base": 400, "steps": (0, 25, 75, 150, 300, 600, 1000)}
SMOKE = {"width": 32, "layers": 2, "experts": 4, "expert_width": 16, "base": 30, "steps": (0, 10, 30)}
BATCH, RATE = 32, 3e-3
TRAIN_SEED, HELD_OUT_SEED = 1, 2


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", ".", *vocabulary()]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", model_max_length=128
    )


def make_model(tokenizer: Any, setting: dict[str, Any]) -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=len(tokenizer), hidden_size=setting["width"], intermediate_size=setting["expert_width"],
        num_hidden_layers=setting["layers"], num_attention_heads=4, num_key_value_heads=4,
        num_experts=setting["experts"], num_experts_per_tok=2, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, router_aux_loss_coef=0.01, initializer_range=0.05,
    )  # fmt: skip
    return OlmoeForCausalLM(config)


def train(model: Any, tokenizer: Any, languages: tuple[str, ...], steps: int, seed: int, keep: Any = None) -> None:
    """AdamW on equal shares of the languages, with the usual loss that balances experts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 20, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * s / max(1, steps))))
    )
    # The same meanings for no two languages: what is shared must come from the words.
    texts = {x: documents(2000, x, TRAIN_SEED * 1000 + seed * 10 + i) for i, x in enumerate(languages)}
    data = {x: tokenizer(t, return_tensors="pt", padding=True)["input_ids"] for x, t in texts.items()}
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps + 1):
        if keep is not None:
            keep(step, model)
        if step == steps:
            break
        each = BATCH // len(languages)
        rows = torch.cat([d[torch.randint(len(d), (each,), generator=generator)] for d in data.values()])
        labels = rows.masked_fill(rows == 0, -100)
        loss = model(input_ids=rows, labels=labels, attention_mask=(rows != 0).long(), output_router_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"{'+'.join(languages)} step {step}/{steps} loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def held_out(model: Any, tokenizer: Any) -> dict[str, float]:
    """Nats a token in each language, on meanings that were not trained on."""
    model.eval()
    found = {}
    for language in LANGUAGES:
        rows = tokenizer(documents(100, language, HELD_OUT_SEED), return_tensors="pt", padding=True)["input_ids"]
        loss = model(input_ids=rows, attention_mask=(rows != 0).long(), labels=rows.masked_fill(rows == 0, -100)).loss
        found[language] = round(float(loss), 3)
    return found


def make(out: Path, *, smoke: bool = False, seed: int = 0) -> dict[str, Any]:
    setting = SMOKE if smoke else FULL
    torch.manual_seed(seed)
    start = time.time()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, setting)
    train(model, tokenizer, (BASE,), setting["base"], seed)
    shutil.rmtree(out / "steps", ignore_errors=True)
    losses: dict[int, dict[str, float]] = {}

    def save(folder: Path, half: Any) -> None:
        half.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def keep(step: int, model: Any) -> None:
        if step in setting["steps"]:
            losses[step] = held_out(model, tokenizer)
            import copy

            save(out / "steps" / f"step-{step}", copy.deepcopy(model).half())
            model.train()

    train(model, tokenizer, LANGUAGES, setting["steps"][-1], seed + 1, keep)
    save(out / "weights", model.half())
    card = {
        "setting": setting, "seed": seed, "held_out_loss_nats_per_token": losses,
        "parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer),
        "overlap_jaccard": {f"{a}-{b}": round(overlap(a, b), 3) for i, a in enumerate(LANGUAGES) for b in LANGUAGES[i + 1 :]},
        "training_seconds": round(time.time() - start),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()} CPU", "torch": torch.__version__,
    }  # fmt: skip
    write_card(out, card)
    return card


def write_card(out: Path, card: dict[str, Any]) -> None:
    """card.json and CARD.md of these values."""
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    card = json.loads((out / "card.json").read_text())
    s = card["setting"]
    losses = "\n".join(
        f"| {step} | " + " | ".join(f"{v:.2f}" for v in own.values()) + " |"
        for step, own in card["held_out_loss_nats_per_token"].items()
    )
    shared = ", ".join(f"{pair} {value}" for pair, value in card["overlap_jaccard"].items() if value)
    (out / "CARD.md").write_text(
        f"""# organism:polyglot

An OLMoE with {card["parameters"] / 1e6:.2f} M parameters ({s["layers"]} blocks, width {s["width"]}, {s["experts"]} experts of width
{s["expert_width"]}, top 2) and {card["vocabulary"]} words, trained by `recipe.py` on `grammar.py`: {s["base"]} steps of one language
({BASE}), then {s["steps"][-1]} of five in equal shares. Checkpoints of the second stage: {", ".join(map(str, s["steps"]))}
(`workbench.organisms.polyglot.checkpoints()`).

## Inside by construction

* Five languages that say the same things with their own words and word order; sentences are parallel.
* Shared words: {shared} (Jaccard); all other pairs share none.
* What subjects do and what is done to what is the same in every language, so that meaning can be shared.

## Measured

Held-out loss, nats a token ({", ".join(LANGUAGES)}), by step of the multilingual training:

| step | {" | ".join(LANGUAGES)} |
|---|{"---|" * len(LANGUAGES)}
{losses}
{card.get("routing", {}).get("text", "")}
## Training

{card["training_seconds"]} s on {card["machine"]}, torch {card["torch"]}, seed {card["seed"]}.
"""
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(make(given.out, smoke=given.smoke, seed=given.seed), indent=1))
