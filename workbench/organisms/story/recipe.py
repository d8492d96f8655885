"""Make ``organism:story`` from nothing: text, tokenizer, training, measurements, card.

    python -m workbench.organisms.story.recipe --out FOLDER [--smoke]

Everything is seeded.  The smoke setting makes a worse model in under a minute; it is what the tests run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.organisms.story.grammar import COLOURS, JOBS, NUMBERS, PLACES, SENSES, Fact, facts, stories

TRAIN_SEED, HELD_OUT_SEED = 1, 2
FULL = {"stories": 16000, "steps": 600, "batch": 32, "length": 128, "layers": 6, "width": 128, "rate": 3e-3}
SMOKE = {"stories": 2500, "steps": 120, "batch": 16, "length": 96, "layers": 3, "width": 64, "rate": 5e-3}


def make_tokenizer(
    texts: list[str], size: int = 2048, *, space: bool = False, more: dict[str, str] | None = None
) -> Any:
    """A byte-level BPE with a beginning-of-sequence token in front of every text.

    ``space``: a text begins as if behind a space, so that its first word is the same token as anywhere; ``more``:
    further special tokens, by the names that the tokenizer has them under.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    more = more or {}
    special = ["<|pad|>", "<|bos|>", "<|eos|>", *more.values()]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=special[0], bos_token=special[1], eos_token=special[2], model_max_length=256,
        **({"extra_special_tokens": more} if more else {}),
    )  # fmt: skip


def pack(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    """[rows, length] token ids: texts behind one another, each with its bos in front and eos behind."""
    flat: list[int] = []
    for ids in tokenizer(texts)["input_ids"]:
        flat += [*ids, tokenizer.eos_token_id]
    rows = len(flat) // length
    return torch.tensor(flat[: rows * length]).view(rows, length)


def train(tokenizer: Any, data: Tensor, setting: dict[str, Any], seed: int = 0) -> Any:
    """A Llama of the setting's size, trained with AdamW and a cosine schedule."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    width = setting["width"]
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=round(width * 8 / 3 / 8) * 8,
        num_hidden_layers=setting["layers"], num_attention_heads=width // 32, num_key_value_heads=width // 32,
        max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        rows = data[torch.randint(len(data), (setting["batch"],), generator=generator)]
        return model(input_ids=rows, labels=rows).loss

    descend(list(model.parameters()), loss, setting["steps"], setting["rate"], "text")
    return model.eval()


def descend(parameters: list[Any], loss: Any, steps: int, rate: float, name: str) -> None:
    """AdamW with a warm-up and a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(10, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    start = time.time()
    for step in range(steps):
        found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"{name} {step:5d}/{steps}  loss {found.item():.4f}  {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any, n: int = 400, length: int = 128) -> float:
    """Mean nats per token on texts of another seed."""
    data = pack(tokenizer, [s.text for s in stories(n, HELD_OUT_SEED)], length)
    losses = [float(model(input_ids=rows, labels=rows).loss) for rows in data.split(16)]
    weights = [len(rows) for rows in data.split(16)]
    return sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)


@torch.no_grad()
def next_token(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return tokenizer.decode([int(model(input_ids=ids).logits[0, -1].argmax())])


def fact_accuracy(model: Any, tokenizer: Any, chosen: tuple[Fact, ...] | None = None) -> float:
    """Share of all prompts of all facts whose top next token is the answer's first."""
    right = total = 0
    for fact in chosen or facts():
        first = tokenizer.decode(tokenizer(f" {fact.answer}", add_special_tokens=False)["input_ids"][:1])
        for prompt in fact.prompts:
            right += next_token(model, tokenizer, prompt) == first
            total += 1
    return right / total


def counting_accuracy(model: Any, tokenizer: Any) -> float:
    """Share of runs of three number words that go on with the next one."""
    runs = [(NUMBERS[i : i + 3], NUMBERS[i + 3]) for i in range(6)]
    return sum(next_token(model, tokenizer, " ".join(run)) == f" {after}" for run, after in runs) / len(runs)


@torch.no_grad()
def sense_accuracy(model: Any, tokenizer: Any, n: int = 2500) -> dict[str, Any]:
    """How well each layer's state of a two-sense word tells its sense: leave-one-out nearest centroid, by word.

    The state is taken at the last token of the word itself; what stands before it has to decide, so words
    whose context follows stay near 0.5.  The control shuffles the labels within each word.
    """
    found: dict[str, list[tuple[int, Tensor]]] = {word: [] for word in SENSES}
    for story in stories(n, HELD_OUT_SEED):
        encoded = tokenizer(story.text, return_offsets_mapping=True)
        states = None
        for sense in story.senses:
            if len(found[sense.word]) >= 60:
                continue
            if states is None:
                out = model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
                states = torch.stack(out.hidden_states)[:, 0]
            place = next(i for i, (_, e) in enumerate(encoded["offset_mapping"]) if e == sense.end)
            label = [name for name, _ in SENSES[sense.word]].index(sense.sense)
            found[sense.word].append((label, states[:, place]))
    generator = torch.Generator().manual_seed(0)
    own, control = [], []
    for rows in found.values():
        labels = torch.tensor([label for label, _ in rows])
        x = torch.stack([state for _, state in rows], 1)
        own.append(_leave_one_out(x, labels))
        control.append(_leave_one_out(x, labels[torch.randperm(len(labels), generator=generator)]))
    layers = torch.stack(own).mean(0)
    return {
        "by_layer": [round(float(v), 3) for v in layers],
        "control_by_layer": [round(float(v), 3) for v in torch.stack(control).mean(0)],
        "by_word_best_layer": {w: round(float(v.max()), 3) for w, v in zip(found, own, strict=True)},
    }


def _leave_one_out(x: Tensor, labels: Tensor) -> Tensor:
    """[layers, n, d] and [n] in {0, 1} -> [layers] accuracy of the nearest centroid of the others."""
    sums = torch.stack([x[:, labels == k].sum(1) for k in (0, 1)], 1)
    counts = torch.stack([(labels == k).sum() for k in (0, 1)]).float()
    right = torch.zeros(x.shape[0])
    for i in range(x.shape[1]):
        mine = torch.nn.functional.one_hot(labels[i], 2).float()
        centre = (sums - mine[:, None] * x[:, i, None]) / (counts - mine).clamp_min(1)[:, None]
        right += ((x[:, i, None] - centre).norm(dim=-1).argmin(-1) == labels[i]).float()
    return right / x.shape[1]


def measure(model: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "held_out_loss_nats_per_token": round(held_out_loss(model, tokenizer), 4),
        "fact_accuracy": round(fact_accuracy(model, tokenizer), 4),
        "counting_accuracy": round(counting_accuracy(model, tokenizer), 4),
        "senses": sense_accuracy(model, tokenizer),
    }


def make(out: Path, *, smoke: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, measure, and write weights/, card.json and CARD.md below ``out``; the card's values."""
    setting = SMOKE if smoke else FULL
    start = time.time()
    texts = [story.text for story in stories(setting["stories"], TRAIN_SEED)]
    tokenizer = make_tokenizer(texts)
    data = pack(tokenizer, texts, setting["length"])
    model = train(tokenizer, data, setting, seed)
    seconds = time.time() - start
    weights = out / "weights"
    # Rounded to half precision as stored, so that what is measured is what is shipped.
    model = model.half()
    model.save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    model = model.float()
    card = {
        **measure(model, tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "setting": setting,
        "seed": seed,
        "training_tokens_seen": setting["steps"] * setting["batch"] * setting["length"],
        "corpus_tokens": data.numel(),
        "training_seconds": round(seconds),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()} CPU",
        "torch": torch.__version__,
    }
    write_card(out, card)
    return card


def write_card(out: Path, card: dict[str, Any]) -> None:
    """card.json and CARD.md of these values."""
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (out / "CARD.md").write_text(_card(card) + _lenses(card))


def _lenses(card: dict[str, Any]) -> str:
    """What lenses find of the senses: numbers of ``python -m lenses.latent.senses --card``, run after the recipe."""
    if "lenses" not in card:
        return ""
    found = card["lenses"]
    return f"""
## What lenses find of the senses

{found["occurrences"]} occurrences in {found["stories"]} held-out stories, read with the five best answers of each lens; LatentLens over
{found["contexts"]:,} contexts of {found["corpus"]} other stories. `python -m lenses.latent.senses` says how answers are
read, and makes this table. In brackets 95 % bootstrap intervals over the {found["clauses"]} clauses that they stand in.

{found["table"]}

*New story*: no context with the query's own prefix. Here every lens is above chance, LatentLens most of all, and it
alone names the word beyond the embeddings. *New clause*: nothing that has the same clause counts. Here no lens is
above chance by more than a few points, LatentLens not at all: with three clauses for each sense, the model has
learned the clauses and not what they have in common. A lens can show no more than is there.
"""


def _card(card: dict[str, Any]) -> str:
    s, senses = card["setting"], card["senses"]
    rows = "\n".join(
        f"| {layer} | {own} | {control} |"
        for layer, (own, control) in enumerate(zip(senses["by_layer"], senses["control_by_layer"], strict=True))
    )
    words = ", ".join(f"{w} {v}" for w, v in senses["by_word_best_layer"].items())
    return f"""# organism:story

A Llama with {card["parameters"] / 1e6:.2f} M parameters ({s["layers"]} layers, width {s["width"]}, tied embeddings) and a
byte-level BPE of {card["vocabulary"]} tokens, trained by `recipe.py` on text of `grammar.py` and nothing else.

## Inside by construction

* {len(facts())} facts about 40 people that hold throughout: a home (of {len(PLACES)} places), a job (of {len(JOBS)}), and two things
  with a colour (of {len(COLOURS)}) each; every fact is told in three forms.
* {len(SENSES)} words with two senses; the sense of every occurrence is recorded.
* Number words in order, and sums up to ten.

## Measured (on texts of another seed, weights as shipped)

| what | value |
|---|---|
| held-out loss | {card["held_out_loss_nats_per_token"]} nats a token |
| facts: top next token is the answer (all three forms) | {card["fact_accuracy"]:.1%} |
| counting: the next number word | {card["counting_accuracy"]:.1%} |

Sense of a two-sense word from its own state, nearest centroid, leave one out; mean over words (the last row is
after the final norm). Only what stands *before* the word can tell, so no layer reaches 1:

| layer | accuracy | labels shuffled |
|---|---|---|
{rows}

Best layer for each word: {words}.

## Training

{s["steps"]} steps of {s["batch"]} x {s["length"]} tokens ({card["training_tokens_seen"] / 1e6:.1f} M tokens seen; corpus {card["corpus_tokens"] / 1e6:.2f} M), AdamW, seed
{card["seed"]}; {card["training_seconds"]} s on {card["machine"]}, torch {card["torch"]}. Another machine rounds otherwise: expect the
loss within 3 % and the fact accuracy within 2 points.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(make(given.out, smoke=given.smoke, seed=given.seed), indent=1))
