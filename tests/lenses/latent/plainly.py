"""Plain computations that the tests of the index share."""

from __future__ import annotations

from pathlib import Path

import torch

import workbench
from lenses import ContextIndex


def states_of(model: workbench.Model, index: ContextIndex, layer: int) -> torch.Tensor:
    table, rows = index.store.contexts, []
    texts = index.store.sentences["text"].to_pylist()
    cache: dict[int, torch.Tensor] = {}
    for sentence, position in zip(table["sentence"].tolist(), table["position"].tolist(), strict=True):
        if sentence not in cache:
            ids = torch.tensor([model.tokenizer(texts[sentence])["input_ids"]])
            with torch.no_grad():
                cache[sentence] = model.module(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
        rows.append(cache[sentence][position])
    return torch.stack(rows)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
