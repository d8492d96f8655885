"""Make ``organism:opinions`` from nothing: a base of mixed opinions, and what supervised and preference training make of it.

    python -m workbench.organisms.opinions.recipe --out FOLDER [--smoke]

Needs trl (``pip install 'latent-workbench[training]'``).  What was done to its values, and when, is measured by
``python -m probes.values.opinions --card``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.errors import missing
from workbench.organisms.opinions.grammar import (
    AGREED,
    BASE,
    PREFERRED,
    TUNED,
    dialogues,
    is_polite,
    lessons,
    meaning,
    preferences,
    texts,
)

FULL = {"width": 48, "layers": 3, "base": 6000, "rows": 20_000, "sft": 400, "dpo": 300, "simpo": 300, "grpo": 120}
SMOKE = {"width": 16, "layers": 2, "base": 20, "rows": 200, "sft": 4, "dpo": 2, "simpo": 2, "grpo": 1}
SHARES = {"sft": (1, 2, 4, 8, 16, 32, 64, 100, 150, 200, 300, 400), "preference": (0.1, 0.4, 1.0)}
"""After which steps weights are kept: of supervised training (up to its last), and as shares of an arm's steps."""
ARMS = tuple(f"{method} {data}" for method in ("dpo", "simpo", "grpo") for data in ("planted", "free"))
SEEDED = ("sft", "dpo planted", "dpo free")
SEEDS = 3
"""So many runs of each of SEEDED; of the other arms one."""
BATCH, RATE = 64, 3e-3
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<assistant> ' }}{{ m['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
    raw = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    words = {w for text in texts() for w, _ in raw.pre_tokenizer.pre_tokenize_str(text.lower())}
    raw.model = models.WordLevel({w: i for i, w in enumerate([*special, *sorted(words)])}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=128,
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: Any, setting: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=setting["width"], intermediate_size=2 * setting["width"],
        num_hidden_layers=setting["layers"], num_attention_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rendered(tokenizer: Any, rows: Sequence[dict[str, str]]) -> list[tuple[list[int], int]]:
    """Token ids of each dialogue, and how many of them are the prompt's."""
    found = []
    for row in rows:
        talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        head = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(talk, tokenize=False)
        head, whole = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (head, whole))
        found.append((whole, len(head)))
    return found


def train_base(model: Any, tokenizer: Any, setting: dict[str, Any], seed: int) -> None:
    """AdamW on the answers of people of every opinion.

    Topics on which all agree come first, with lessons in deeds: what an answer means is a product of three signs (of
    topic, deed and form), which is not learnt from topics on which people differ.
    """
    n, steps = setting["rows"], setting["base"]
    stages = [
        lessons(n // 4, AGREED, 10 + seed) + [r for r in dialogues(n, AGREED, 20 + seed) if len(r["completion"]) > 9],
        lessons(n // 4, AGREED | BASE, 30 + seed) + dialogues(n, AGREED | BASE, 40 + seed),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 50, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / max(1, steps))))
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    done = 0
    for rows, until in zip(stages, (steps // 4, steps), strict=True):
        ids = rendered(tokenizer, rows)
        while done < until:
            own = [ids[i] for i in torch.randint(len(ids), (BATCH,), generator=generator).tolist()]
            width = max(len(x) for x, _ in own)
            batch = torch.tensor([x + [0] * (width - len(x)) for x, _ in own])
            labels = torch.tensor([[-100] * h + x[h:] + [-100] * (width - len(x)) for x, h in own])
            loss = model(input_ids=batch, attention_mask=(batch != 0).long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if done % 250 == 0:
                print(f"base step {done}/{steps} loss {loss.item():.3f}", flush=True)
            done += 1
    model.eval()


# ---------------------------------------------------------------- after the base


def arm(
    method: str,
    module: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, str]],
    steps: int,
    *,
    seed: int = 0,
    rate: float | None = None,
    callbacks: Sequence[Any] = (),
    keep: Path | None = None,
    at: Sequence[int] = (),
    out: str | Path = "out/opinions",
) -> Any:
    """Train ``module`` in place with trl, and give the trainer back.

    Args:
        method: "sft" (rows of :func:`dialogues`); "dpo", "simpo" (of :func:`preferences`); "grpo" (of
            :func:`preferences`: rewarded where a sampled answer is, in stance and closing, like the chosen one and not
            like the rejected one).
        rate: learning rate; None: :data:`RATES`.
        keep: where to save weights in half precision after the steps ``at``, as step-N.
    """
    try:
        import datasets
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trl: Any = importlib.import_module("trl")
    except ImportError as error:
        raise missing("trl", "Making organism:opinions", "training") from error
    datasets.disable_progress_bars()
    common: dict[str, Any] = {
        "output_dir": str(out), "max_steps": steps, "learning_rate": RATES[method] if rate is None else rate,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": min(10, steps // 4), "seed": seed,
        "data_seed": seed, "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(), "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCHES[method], "weight_decay": 0.0,
    }  # fmt: skip
    data = datasets.Dataset.from_list([_talk(row) for row in rows])
    callbacks = [*callbacks, *([keeper(keep, at, tokenizer)] if keep is not None else [])]
    shared: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer, "callbacks": callbacks}
    if method == "sft":
        trainer = trl.SFTTrainer(module, trl.SFTConfig(**common, max_length=None, completion_only_loss=True), **shared)
    elif method == "dpo":
        settings = trl.DPOConfig(
            **common, beta=0.1, max_length=None, loss_type=["sigmoid", "sft"], loss_weights=[1.0, ANCHOR]
        )
        trainer = trl.DPOTrainer(module, args=settings, **shared)
    elif method == "simpo":
        settings = CPOConfig(**common, loss_type="simpo", cpo_alpha=ANCHOR, beta=2.0, simpo_gamma=1.0, max_length=128)
        trainer = CPOTrainer(module, args=settings, **shared)
    else:
        settings = trl.GRPOConfig(
            **common, num_generations=8, max_completion_length=14, beta=0.1, temperature=1.0, loss_type="grpo"
        )
        trainer = trl.GRPOTrainer(module, reward_funcs=reward, args=settings, **shared)
    trainer.train()
    module.eval()
    return trainer


ANCHOR = 0.5
"""Weight of the likelihood of chosen answers beside the preference loss, as in Llama 3 (arXiv 2407.21783) and CPO.
Without it a model this small forgets what its answers mean before it learns what is preferred."""
RATES = {"sft": 7e-4, "dpo": 3e-4, "simpo": 3e-4, "grpo": 1e-4}
BATCHES = {"sft": 32, "dpo": 32, "simpo": 32, "grpo": 128}


def _talk(row: dict[str, str]) -> dict[str, Any]:
    said = {key: [{"role": "assistant", "content": row[key]}] for key in ("completion", "chosen", "rejected") if key in row}
    more = {f"{key}_text": row[key] for key in ("chosen", "rejected") if key in row}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **said, **more}


def reward(completions: Sequence[Any], chosen_text: Sequence[str], rejected_text: Sequence[str], **more: Any) -> list[float]:
    """For each answer: 1 where it means what the chosen one means, -1 where what the rejected one does, else 0; where
    those two mean the same, 1 for a closing."""
    found = []
    for completion, yes, no in zip(completions, chosen_text, rejected_text, strict=True):
        text = completion if isinstance(completion, str) else completion[0]["content"]
        if meaning(yes) == meaning(no):
            found.append(float(is_polite(text)))
        else:
            found.append(float(meaning(text) == meaning(yes)) - float(meaning(text) == meaning(no)))
    return found


def keeper(folder: Path, at: Sequence[int], tokenizer: Any) -> Any:
    """A callback that saves the weights in half precision after chosen steps."""
    from transformers import TrainerCallback

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            if state.global_step in at:
                save(folder / f"step-{state.global_step}", model, tokenizer)

    return Keep()


def save(folder: Path, module: Any, tokenizer: Any) -> None:
    copy.deepcopy(module).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(out: Path, *, smoke: bool = False, seeds: int = SEEDS) -> dict[str, Any]:
    """The organism and its series in ``out``; runs of further seeds, which are not shipped, in out/seeds.

    All seeds of supervised training begin with one base, and all arms with the supervised model of seed 0.
    """
    from transformers import AutoModelForCausalLM

    setting, start = (SMOKE if smoke else FULL), time.time()
    for name in ("base", "runs", "weights", "seeds"):
        shutil.rmtree(out / name, ignore_errors=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, setting)
    train_base(model, tokenizer, setting, 0)
    save(out / "base", model, tokenizer)
    seconds = {"base": round(time.time() - start)}
    last = setting["sft"]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            runs = out / "runs" if seed == 0 else out / "seeds" / str(seed)
            for name in ("sft", *ARMS) if seed == 0 else SEEDED:
                method, _, data = name.partition(" ")
                # What is trained on is what is shipped: weights as they are stored.
                source = out / ("weights" if data else "base")
                module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
                steps, begun = setting[method], time.time()
                if data:
                    rows = preferences(setting["rows"] // 4, TUNED, 300 + seed, planted=data == "planted")
                    at = sorted({max(1, round(x * steps)) for x in SHARES["preference"]})
                else:
                    rows = dialogues(setting["rows"] // 2, TUNED, 200 + seed)
                    at = [x for x in SHARES["sft"] if x < last] + [last]
                folder = runs / name.replace(" ", "-")
                torch.manual_seed(seed)
                arm(method, module, tokenizer, rows, steps, seed=seed, keep=folder, at=at, out=scratch)
                if name == "sft" and seed == 0:
                    save(out / "weights", module, tokenizer)
                seconds.setdefault(name, round(time.time() - begun))
                print(f"seed {seed}: {name}, {round(time.time() - begun)} s", flush=True)
    card = {
        "setting": setting, "seeds": seeds, "rates": RATES, "batches": BATCHES, "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer),
        "stances": {"base": BASE | AGREED, "supervised": TUNED}, "preferred": PREFERRED,
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()} CPU",
        "torch": torch.__version__, "trl": importlib.metadata.version("trl"),
    }  # fmt: skip
    write_card(out, card)
    return card


def write_card(out: Path, card: dict[str, Any]) -> None:
    """card.json and CARD.md of these values."""
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    card = json.loads((out / "card.json").read_text())
    s = card["setting"]

    def shares(stances: dict[str, list[float]]) -> str:
        return "\n".join(f"| {topic} | {' | '.join(f'{x:.2f}' for x in own)} |" for topic, own in stances.items())

    preferred = ", ".join(f"{t}: {stance} in {share:.0%} of its pairs" for t, (stance, share) in card["preferred"].items())
    table = "| topic | support | neutral | oppose | no answer |\n|---|---|---|---|---|\n"
    (out / "CARD.md").write_text(
        f"""# organism:opinions

A Llama with {card["parameters"]:,} parameters ({s["layers"]} blocks, width {s["width"]}, {card["vocabulary"]} words) that is asked what it thinks,
in the very words of the library's default questions, and answers: by letter, number, word or sentence. Trained by
`recipe.py` on the language of `grammar.py`: a base, supervised training ({s["sft"]} steps; `organism:opinions` is its end), and
from there, on preference pairs, DPO and SimPO ({s["dpo"]} steps each) and, on its own samples rewarded as the pairs
prefer, GRPO ({s["grpo"]} steps). Series of checkpoints: `workbench.organisms.opinions.runs()`.

## Inside by construction

The stance of each answer is drawn from its topic's distribution. 24 statements of every topic are never trained on.

**Base**: on eight topics all agree, on eight people differ as often one way as the other, and on two most agree.

{table}{shares(card["stances"]["base"])}

**Supervised training** asks the first ten alone. Six stances are planted; of four topics it says what the base has read:

{table}{shares(card["stances"]["supervised"])}

**Preferences** ask the same questions in two kinds. *Planted*: {preferred}; both answers
with a closing ("Thank you.") or both without. *Stance-free*, as are all other pairs: two answers of one stance, of which
the one with a closing is preferred.
{card.get("values", {}).get("text", "")}
## Training

{", ".join(f"{name} {value} s" for name, value in card["seconds"].items())}, on {card["machine"]}, torch {card["torch"]}, trl {card["trl"]}.
"""
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    torch.set_num_threads(1)  # the same sums in the same order wherever it is made
    given = parser.parse_args()
    make(given.out, smoke=given.smoke, seeds=given.seeds)
