"""Readings whose texts break careless views: every string that reaches a reader is one of these."""

from __future__ import annotations

import numpy as np
import xarray as xr

LONG = "longest" * 1429  # ten thousand letters without a place to break
TOKENS = [
    "<script>window.hacked = 1; alert(1)</script>",
    "</script><script>window.hacked = 2; alert(2)</script>",
    "</style></title></textarea><script>window.hacked = 3</script>",
    "<img src=x onerror=\"window.hacked = 4; alert('img')\">",
    "<svg/onload=window.hacked=5>",
    "<a href=\"javascript:window.hacked=6\">link</a>",
    "<s>",
    "</b>",
    "<b>",
    "<br>",
    "<!--",
    "-->",
    "]]>",
    "&lt;",
    "&amp;nbsp;",
    "$\\LaTeX$",
    "$$x^2$$",
    "\\(x\\)",
    "$",
    "${window.hacked = 7}",
    "{{7*7}}",
    "%{x}",
    "\"",
    "'",
    "`",
    "\\",
    "\x00",
    "a\x00b",
    "\x1b[31m",
    "⟨E6⟩⟨97⟩",  # bytes of a split character, as tokens.token_texts writes them
    "日⋯",
    "שלום עולם",
    "\u202egnp.exe",
    "\u2066",
    "\u200b",
    "z\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309\u030a\u030b\u030c\u030d\u030e",
    "\u0301",
    "\r\n",
    "\n\n\n",
    "\t",
    " ",
    "",
    "constructor",
    "__proto__",
    LONG,
]  # fmt: skip
NAME = "<img src=x onerror=alert('name')> $\\LaTeX$ \x00 \u202e \ud83d"  # \ud83d: half a character
LAYERS, TOP_K = 4, 3


def _context() -> dict:
    n = len(TOKENS)
    ids = np.arange(n, dtype=np.int32)[None]
    return {
        "input_id": (("prompt", "position"), ids),
        "input_token": (("prompt", "position"), np.array([TOKENS], dtype=object)),
        "prompt_text": (("prompt",), np.array(["".join(TOKENS)], dtype=object)),
        "vocab_token": (("vocab",), np.array(TOKENS, dtype=object)),
    }


def _ranked() -> np.ndarray:
    """[prompt, layer, position, rank]: at layer 0 each position's top token is the position's own."""
    n = len(TOKENS)
    layer, position, rank = np.ogrid[:LAYERS, :n, :TOP_K]
    return ((position + 5 * layer + 7 * rank) % n).astype(np.int32)[None]


def _coords() -> dict:
    n = len(TOKENS)
    return {"prompt": [0], "layer": range(LAYERS), "position": range(n), "rank": range(TOP_K), "vocab": range(n)}


def logit_lens() -> xr.Dataset:
    ids = _ranked()
    grid, n = ("prompt", "layer", "position"), len(TOKENS)
    scores = -np.linspace(0.1, 6, ids.size).reshape(ids.shape).astype(np.float32)
    targets = [TOKENS[0], TOKENS[3], "$\\LaTeX$", LONG]
    wide = np.stack([scores[..., 0] - i for i in range(len(targets))], -1)
    data = xr.Dataset(
        {
            "token_id": ((*grid, "rank"), ids),
            "logprob": ((*grid, "rank"), scores),
            "entropy": (grid, -scores[..., 0]),
            "target_logprob": ((*grid, "target"), wide),
            "target_id": (("target",), np.array([TOKENS.index(t) for t in targets], dtype=np.int32)),
            **_context(),
        },
        _coords(),
        {"reader": "LogitLens", "model": NAME, "n_layers": LAYERS - 1},
    )
    assert n == data.sizes["position"]
    return data.assign_coords(target=targets)


def latent_lens() -> xr.Dataset:
    """Contexts: each sentence holds its token in the middle, between two others."""
    ids = _ranked()
    dims, n = ("prompt", "layer", "position", "rank"), len(TOKENS)
    sentences = [f"{TOKENS[(i + 1) % n]} before {TOKENS[i]} after {TOKENS[(i + 2) % n]}" for i in range(n)]
    start = [len(TOKENS[(i + 1) % n]) + len(" before ") for i in range(n)]
    end = [start[i] + len(TOKENS[i]) for i in range(n)]
    return xr.Dataset(
        {
            "token_id": (dims, ids),
            "similarity": (dims, np.linspace(0.9, 0.2, ids.size).reshape(ids.shape).astype(np.float32)),
            "sentence": (dims, np.array(sentences, dtype=object)[ids]),
            "char_start": (dims, np.array(start)[ids]),
            "char_end": (dims, np.array(end)[ids]),
            "index_layer": (dims, (ids % LAYERS).astype(np.int32)),
            "similarity_floor_random": (("layer",), np.full(LAYERS, 0.2, dtype=np.float32)),
            **_context(),
        },
        _coords(),
        {"reader": "LatentLens", "model": NAME, "n_layers": LAYERS - 1},
    )
