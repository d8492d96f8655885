"""Readings made up for tests of the explorers: their numbers are known, or can be counted by hand."""

import numpy as np
import xarray as xr


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
    return data
