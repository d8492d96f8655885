"""Two small mixtures of experts whose routing is known by construction, to calibrate a measure on.

``planted()`` routes by language in its last block, where each language has two experts of its own (:data:`MAP`);
``null()`` has frozen random routers that no language reaches, so whatever is found of labels in it is a false finding.
Both are made on the spot from a seed.  Their documents have a topic each, so that the tokens of one are alike, as in
real text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.model import Model

LANGUAGES, WORDS, EXPERTS, WIDTH = 4, 30, 8, 64
MAP = {f"L{i}": [2 * i, 2 * i + 1] for i in range(LANGUAGES)}
"""The last block's experts of each language in the planted twin."""


def planted() -> Model:
    """Languages have two experts each in block 1, and none of their own in block 0."""
    return _model(planted=True)


def null() -> Model:
    """No router sees a language."""
    return _model(planted=False)


def _model(*, planted: bool) -> Model:
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    import workbench

    config = OlmoeConfig(
        vocab_size=3 + LANGUAGES * WORDS, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, num_experts=EXPERTS, num_experts_per_tok=2,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.05,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = OlmoeForCausalLM(config).eval()
        directions = torch.linalg.qr(torch.randn(WIDTH, LANGUAGES)).Q.T
        table = module.model.embed_tokens.weight
        table.copy_(torch.randn_like(table))
        # Languages show in the embeddings in both models ...
        language = torch.arange(LANGUAGES).repeat_interleave(WORDS)
        table[3:] += 12 * directions[language]
        for layer in module.model.layers:
            w = layer.mlp.gate.weight
            w.copy_(torch.randn_like(w) * 0.5)
            # ... and no router looks at them,
            w -= w @ directions.T @ directions
        if planted:  # but the last one of the planted model.
            module.model.layers[-1].mlp.gate.weight += 3 * directions[torch.arange(EXPERTS) // 2]
    return workbench.load(module, name="planted" if planted else "null")


def documents(n: int, *, languages: bool, tokens: int = 60, seed: int = 0) -> tuple[list[list[int]], list[str]]:
    """Token ids and labels.  Each document draws its words from a topic of its own.

    ``languages``: a document has the words of its label's language; else all words, and its label means nothing.
    """
    rng = np.random.default_rng(seed)
    found, labels = [], []
    for i in range(n):
        language = i % LANGUAGES
        own = WORDS if languages else LANGUAGES * WORDS
        topic = rng.dirichlet(np.full(own, 0.1))
        start = 3 + language * WORDS if languages else 3
        found.append((start + rng.choice(own, tokens, p=topic)).tolist())
        labels.append(f"L{language}")
    return found, labels
