"""Readings made up for tests of the views: the documented schema, with texts that break careless views."""

import numpy as np
import xarray as xr

from lenses import attribution, embedding, logit
from workbench import readers
from workbench.variables import described

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<s>",
    "<br>",
    "<b>",
    "&lt;",
    "$x$",
    "%{x}",
    "-->",
    "\u2028",
    "\u202e",
]
WORDS = [
    " the",
    " cat",
    "\n",
    "日",
    "🙂",
    " Paris",
    " Rome",
    "",
    " once",
    "upon",
    "\t",
    "שלום",
    "é",
    "s",
    " of",
    ".",
]
VOCAB = HOSTILE + WORDS


def context(lengths, width, rng):
    prompts = len(lengths)
    ids = rng.integers(0, len(VOCAB), (prompts, width)).astype("int32")
    ids[0, : len(HOSTILE)] = np.arange(len(HOSTILE))[:width]
    for p, n in enumerate(lengths):
        ids[p, n:] = -1
    words = np.array([[VOCAB[i] if i >= 0 else "" for i in row] for row in ids], dtype=object)
    return {
        "input_id": (("prompt", "position"), ids),
        "input_token": (("prompt", "position"), words),
        "input_position": (("prompt", "position"), np.where(ids >= 0, np.arange(width), -1).astype("int32")),
        "prompt_text": (("prompt",), np.array(["".join(r) for r in words], dtype=object)),
        "vocab_token": (("vocab",), np.array(VOCAB, dtype=object)),
    }


def pad(values, lengths, fill):
    for p, n in enumerate(lengths):
        values[p, :, n:] = fill
    return values


def logit_lens(lengths=(14, 12, 9), layers=7, top_k=5, targets=None, seed=0):
    rng = np.random.default_rng(seed)
    width, prompts = max(lengths), len(lengths)
    shape = (prompts, layers, width)
    depth = np.linspace(0, 1, layers)[None, :, None]
    logits = rng.gumbel(size=(*shape, len(VOCAB))) * (1 + 3 * depth[..., None])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logp, axis=-1)[..., :top_k]
    grid = ("prompt", "layer", "position")
    tail = ("target",) if targets else ()
    wide = (*shape, len(targets)) if targets else shape
    lp = np.float32(-8 + 7 * depth + rng.normal(0, 0.6, shape))
    target = np.broadcast_to(lp[..., None], wide) + rng.normal(0, 1, wide) if targets else lp.copy()
    best, noise = np.take_along_axis(logp, order, -1), rng.random(shape)
    null = np.float32(-9 + rng.normal(0, 0.3, wide))
    ranks = np.int32(np.maximum(0, -target * 12 - 10))
    data = xr.Dataset(
        {
            "token_id": ((*grid, "rank"), pad(order.astype("int32"), lengths, -1)),
            "logprob": ((*grid, "rank"), pad(best.astype("float32"), lengths, np.nan)),
            "entropy": (grid, pad(-(np.exp(logp) * logp).sum(-1).astype("float32"), lengths, np.nan)),
            "kl_to_final": (grid, pad(np.float32(4 * (1 - depth) + noise * 0.3), lengths, np.nan)),
            "target_logprob": ((*grid, *tail), pad(np.float32(target), lengths, np.nan)),
            "target_logprob_null": ((*grid, *tail), pad(null, lengths, np.nan)),
            "target_rank": ((*grid, *tail), pad(ranks, lengths, -1)),
            **context(lengths, width, rng),
        },
        {"prompt": range(prompts), "layer": range(layers), "position": range(width), "rank": range(top_k),
         "vocab": range(len(VOCAB))},
        {"reader": "LogitLens", "at": "resid", "model": "made-up <b>7B</b>", "n_layers": layers - 1},
    )  # fmt: skip
    if targets:
        data["target_id"] = (("target",), np.array([VOCAB.index(t) for t in targets], dtype="int32"))
        return described(data.assign_coords(target=list(targets)), readers.VARIABLES | logit.VARIABLES)
    data["target_id"] = (
        ("prompt", "position"),
        np.where(data["input_id"].values >= 0, 15, -1).astype("int32"),
    )
    return described(data, readers.VARIABLES | logit.VARIABLES)


def embedding_lens(lengths=(14, 12, 9), layers=7, top_k=5, seed=1):
    read = logit_lens(lengths, layers, top_k, seed=seed)
    keep = ["token_id", "input_id", "input_token", "input_position", "prompt_text", "vocab_token"]
    data = read[keep]
    data["cosine"] = (read["logprob"].dims, (1 / (1 - read["logprob"].values)).astype("float32"))
    data["cosine_floor_shuffled"] = (("layer",), np.full(layers, 0.12, dtype="float32"))
    data.attrs = {**read.attrs, "reader": "EmbeddingLens"}
    return described(data, embedding.VARIABLES)


def logit_attribution(lengths=(14, 12), blocks=6, seed=2):
    rng = np.random.default_rng(seed)
    names = ["embed", *(f"{k}.{b}" for b in range(blocks) for k in ("attn_out", "mlp_out")), "bias"]
    width = max(lengths)
    values = rng.normal(0, 1, (len(lengths), width, len(names))).astype("float32")
    data = xr.Dataset(
        {
            "contribution": (("prompt", "position", "component"), values),
            "logit": (("prompt", "position"), values.sum(-1)),
            **context(lengths, width, rng),
        },
        {
            "prompt": range(len(lengths)),
            "position": range(width),
            "component": names,
            "vocab": range(len(VOCAB)),
        },
        {"reader": "LogitAttribution", "model": "made-up", "n_layers": blocks},
    )
    data["target_id"] = (("prompt", "position"), np.full((len(lengths), width), 15, dtype="int32"))
    return described(data, readers.VARIABLES | attribution.VARIABLES)
