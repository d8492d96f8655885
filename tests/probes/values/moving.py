"""Readings of topics of which one moves, made up: what figures of values over training are drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr


def moving(topics: Sequence[str], moved: str, each: int) -> xr.Dataset:
    """Answers to ``each`` items on every topic in four framings over five checkpoints; support of one topic rises."""
    rng = np.random.default_rng(0)
    names = np.repeat(topics, each).astype(object)
    n = len(names)
    base = rng.normal(0, 0.6, n)
    rows = []
    for t in range(5):
        z = (base + 0.5 * t * (names == moved))[:, None] + rng.normal(0, 0.3, (n, 4))
        support = 0.9 / (1 + np.exp(-z))
        rows.append(np.stack([support, 0.05 + 0 * z, 0.9 - support, 0.05 + 0 * z], -1))
    return xr.Dataset(
        {
            "p": (("checkpoint", "item", "sample", "stance"), np.stack(rows)), "topic": ("item", names),
            "polarity": ("item", np.ones(n, int)), "cluster": ("item", np.array([f"c{i}" for i in range(n)], object)),
        },
        {
            "checkpoint": [0, 10, 20, 30, 40], "item": [f"i{i}" for i in range(n)],
            "stance": ["support", "neutral", "oppose", "uncommitted"],
        },
        {"model": "made-up_7B", "instrument": "Pmf"},
    )  # fmt: skip
