"""A tiny chat model in words, items, instruments and training data, for the tests of reading while it trains."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from test_tracker import Asked
from tokenizers import Tokenizer, models, pre_tokenizers

from probes.values.framings import default_framings
from probes.values.instruments import ASKED, CONTINUATIONS, Pmf, SampledText, SequenceLikelihood
from probes.values.sampled import ASKED as SAMPLED

TEMPLATE = (
    "{% for turn in messages %}{{ '<user> ' if turn.role == 'user' else '<bot> ' }}{{ turn.content }}{{ ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)
NOUNS = ("dogs", "cats", "tea", "rain", "trains", "maps")
ITEMS = [
    Asked(f"{noun}{k}", noun, text.format(noun), key, f"{noun}{k // 2}")
    for noun in NOUNS[:3]
    for k, (text, key) in enumerate(
        (("{} are good", 1), ("{} are bad", -1), ("more {} should be here", 1), ("no {} at all", -1), ("I like {}", 1),
         ("I hate {}", -1), ("{} for all of us", 1), ("stop the {}", -1))
    )
]  # fmt: skip
FRAMINGS = default_framings()[:2] + default_framings()[5:6]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    texts = [p for f in default_framings() for p in f.prompts.values()] + [
        a for f in default_framings() for a in f.answers
    ]
    texts += [i.text for i in ITEMS] + [*ASKED.values(), *SAMPLED.values()] + list(NOUNS)
    texts += [c for own in CONTINUATIONS.values() for c in own.values()]
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    special = ["<pad>", "<s>", "<end>", "<unk>", "<user>", "<bot>"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(special)
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="<end>", unk_token="<unk>"
    )
    found.chat_template = TEMPLATE
    return found


def model(seed: int = 0, **config) -> transformers.PreTrainedModel:
    """With dropout, so that training draws random numbers."""
    torch.manual_seed(seed)
    about = transformers.LlamaConfig(
        **{
            "vocab_size": len(tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.2, "tie_word_embeddings": False, **config,
        }
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(about)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else None
    return module


def judge(texts: list[str]) -> np.ndarray:
    """A function of words, that also draws: what it draws must not reach the training."""
    np.random.rand(3)
    torch.rand(3)
    count = np.array([[t.split().count(w) for w in ("good", "here", "bad")] for t in texts], float) + 0.5
    return count / count.sum(1, keepdims=True)


def instruments() -> list:
    return [
        Pmf(FRAMINGS),
        SequenceLikelihood(),
        SampledText(2, 1.0, 6, judge=judge, shown="{response}"),
    ]


def told(n: int = 12) -> list[dict]:
    """Rows for supervised training: a user asks, and the bot says yes to everything."""
    return [
        {
            "messages": [
                {"role": "user", "content": ITEMS[k % len(ITEMS)].text},
                {"role": "assistant", "content": "Yes , I think so ." if k % 3 else "A"},
            ]
        }
        for k in range(n)
    ]


def preferred(n: int = 12) -> list[dict]:
    return [
        {
            "prompt": [{"role": "user", "content": ITEMS[k % len(ITEMS)].text}],
            "chosen": [{"role": "assistant", "content": "Yes , I think so ."}],
            "rejected": [{"role": "assistant", "content": "No , I do not think so ."}],
        }
        for k in range(n)
    ]


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
