"""Readings made up for tests of the explorers: their numbers are known, or can be counted by hand."""

import itertools

import numpy as np
import xarray as xr
from synthetic import HOSTILE

from lenses.latent.lens import VARIABLES
from workbench.tokens import visible
from workbench.variables import described
from workbench.widgets.base import clipped

LONG = "longest" * 1429
MARKUP = "<b>x</b><br>&lt;"  # what plotly and browsers would read as markup
NASTY = [
    "<script>window.hacked=1</script>", "<img src=x onerror=\"window.hacked=2\">", "</b>", "$\\LaTeX$", "\"'`", "a\0b",
    "שלום עולם", "\u202egnp.exe", "\r\n", "constructor", "__proto__", LONG, *HOSTILE,
]  # fmt: skip


def stances(steps=5, topics=3, items=6, samples=4, seed=0):
    """Readings of items, two in one cluster, with a topic that moves; and their texts."""
    rng = np.random.default_rng(seed)
    n = topics * items
    topic = np.repeat([f"topic {i}" for i in range(topics)], items).astype(object)
    polarity = np.tile([1, -1], n // 2)
    names = [f"item-{i}" for i in range(n)]
    cluster = np.array(names, object)
    cluster[1] = cluster[0]
    logits = rng.normal(0, 0.7, (1, n, 1, 4)) + rng.normal(0, 0.3, (steps, n, samples, 4))
    push = np.linspace(0, 2, steps)[:, None, None] * (topic == "topic 1")[:, None] * polarity[:, None]
    logits[..., 0] += push
    logits[..., 2] -= push
    p = np.exp(logits)
    p /= p.sum(-1, keepdims=True)
    p[2, 3] = np.nan
    data = xr.Dataset(
        {
            "p": (("checkpoint", "item", "sample", "stance"), p), "topic": ("item", topic),
            "polarity": ("item", polarity), "cluster": ("item", cluster),
        },
        {
            "checkpoint": np.arange(steps) * 100, "item": np.array(names, object),
            "stance": ["support", "neutral", "oppose", "uncommitted"],
        },
        {"instrument": "pmf {}"},
    )  # fmt: skip
    return data, {name: f"Statement number {i}." for i, name in enumerate(names)}


SENTENCES = [
    ("The bat flew out of the dark.", "bat"), ("Er traf den Ball mit dem Schläger.", "Schläger"),
    ("one 🙂 two 🙂 three", "three"), ("שלום עולם", "עולם"), ("tab\there\nand a break", "break"),
]  # fmt: skip


def neighbours(prompts=2, layers=3, positions=4, ranks=5, sentences=SENTENCES, floors=True):
    rng = np.random.default_rng(0)
    dims = ("prompt", "layer", "position", "rank")
    which = rng.integers(len(sentences), size=(prompts, layers, positions, ranks))
    text = np.array([s for s, _ in sentences], object)[which]
    start = np.array([s.index(w) for s, w in sentences])[which]
    size = np.array([len(w) for _, w in sentences])[which]
    similarity = -np.sort(-rng.uniform(0.2, 1, which.shape), axis=-1)
    index_layer = rng.choice([1, 4, 9], which.shape)
    for array, none in ((similarity, np.nan), (index_layer, -1)):
        array[1, :, -1] = none  # a shorter prompt
    words = np.array([[f" w{i}" for i in range(positions)]] * prompts, object)
    data = xr.Dataset(
        {
            "similarity": (dims, similarity), "index_layer": (dims, index_layer), "sentence": (dims, text),
            "char_start": (dims, start), "char_end": (dims, start + size), "token_id": (dims, which),
            "input_token": (("prompt", "position"), words),
        },
        {
            "prompt": range(prompts), "layer": [0, 2, 5][:layers], "position": np.arange(positions) + 3,
            "rank": range(ranks),
        },
        {"reader": "LatentLens", "model": "made-up"},
    )  # fmt: skip
    if floors:
        data["similarity_floor_random"] = (("layer",), np.linspace(0.5, 0.6, layers))
        data["similarity_floor_shuffled"] = (("layer",), np.linspace(0.7, 0.4, layers))
    return described(data, VARIABLES)


def hostile(name, reading=None, problems=None):
    """A reading whose every text is one of NASTY, how it is explored, and the texts that have to be seen.

    ``reading`` of a RoutingTracer with three labels for "routing", of a CandidateBelief with ``problems`` for "belief".
    """
    model = "<img src=x onerror=window.hacked=9> \0 \ud83d"
    if name == "routing":
        prompts, positions = reading.data["input_token"].shape
        words = np.array(list(itertools.islice(itertools.cycle(NASTY), positions)), object)
        labels = np.array([MARKUP + NASTY[0], NASTY[1], NASTY[3] + LONG], object)
        data = reading.data.assign_coords(label=labels).assign_attrs(model=model)
        data["input_token"] = (("prompt", "position"), np.tile(words, (prompts, 1)))
        data["prompt_text"] = (("prompt",), np.array([NASTY[1] + LONG] * prompts, object))
        return data, {}, [clipped(visible(t)) for t in NASTY]
    if name == "belief":
        own = [t for t in NASTY if t.strip()][:14]
        prompts = reading.data.sizes["prompt"]
        data = reading.data.assign_attrs(model=model)
        data["candidate_name"] = (("prompt", "candidate"), np.array([own] * prompts, object))
        data["prompt_text"] = (("prompt",), np.array([NASTY[1] + LONG] * prompts, object))
        graphs = [type(p)(p.edges, p.root, p.target, p.negative, tuple(own)) for p in problems]
        return data, {"problems": graphs}, [clipped(visible(t)) for t in own]
    if name == "drift":
        data, _ = stances()
        topic = np.array([MARKUP, NASTY[3], LONG], object)
        data["topic"] = ("item", np.repeat(topic, 6))
        data = data.assign_coords(item=np.array([f"{t} {i}" for i, t in enumerate(NASTY[:18])], object))
        texts = {item: text or "-" for item, text in zip(data["item"].values, NASTY, strict=False)}
        return data.assign_attrs(model=model), {"items": texts}, [NASTY[0], NASTY[2], NASTY[3], NASTY[6], MARKUP]
    sentences = [(f"{a} before {t} after {a}", t) for t, a in zip(NASTY, NASTY[1:], strict=False) if t != a and t]
    sentences = [(s, t) for s, t in sentences if s.index(t) == s.index(" before ") + 8 or t not in s[:9]]
    data = neighbours(sentences=sentences, ranks=9).assign_attrs(model=model)
    data["input_token"] = (("prompt", "position"), np.array([NASTY[:4]] * 2, object))
    return data, {"kind": "neighbours"}, [visible(t) for t in NASTY[:3]]
