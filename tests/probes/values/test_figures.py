"""Figures show the tables' numbers, and hatch what is not beyond chance."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from probes.values import figures
from probes.values.drift import drift, stance
from workbench.errors import InputError


@pytest.fixture(scope="module")
def readings() -> xr.Dataset:
    """Three topics, of which one moves; forty items each, four framings, five checkpoints."""
    rng = np.random.default_rng(0)
    topics = np.repeat(["moved", "still", "calm"], 40).astype(object)
    base = rng.normal(0, 0.6, 120)
    rows = []
    for t in range(5):
        own = base + 0.5 * t * (topics == "moved")
        z = own[:, None] + rng.normal(0, 0.3, (120, 4))
        support = 0.9 / (1 + np.exp(-z))
        rows.append(np.stack([support, 0.05 + 0 * z, 0.9 - support, 0.05 + 0 * z], -1))
    return xr.Dataset(
        {
            "p": (("checkpoint", "item", "sample", "stance"), np.stack(rows)), "topic": ("item", topics),
            "polarity": ("item", np.ones(120, int)),
            "cluster": ("item", np.array([f"c{i}" for i in range(120)], object)),
        },
        {
            "checkpoint": [0, 10, 20, 30, 40], "item": [f"i{i}" for i in range(120)],
            "stance": ["support", "neutral", "oppose", "uncommitted"],
        },
    )  # fmt: skip


def test_trajectories_of_one_run_and_of_two(readings):
    table = stance(readings, draws=100)
    lines = [line for line in figures.trajectories(table).data if line.hoverinfo != "skip"]
    for line, topic in zip(lines, table["topic"].values, strict=True):
        np.testing.assert_allclose(line.y, table["keyed"].sel(topic=topic))
    both = figures.trajectories({"dpo": table, "ppo": table})
    assert [line.name for line in both.data if line.showlegend] == ["dpo", "ppo"]


def test_what_is_not_beyond_chance_is_hatched_and_has_no_time(readings):
    table = drift(readings, draws=400)
    figure = figures.drifts(table)
    hatched = np.array(figure.data[0].text) == "///"
    names = [str(t) for t in table["topic"].values]
    assert not hatched[names.index("moved"), -1] and hatched[names.index("still")][1:].all()
    np.testing.assert_allclose(figure.data[0].z, table["keyed_M"].transpose("topic", "checkpoint"))
    assert list(figures.times(table).data[0].y) == ["moved"]


def test_items_change_sides_and_none_is_lost(readings):
    figure = figures.sides(readings, topic="moved")
    flow = figure.data[0].link
    assert sum(flow.value) == 40
    mean = readings["p"].mean("sample").values[:, :40]
    crossed = int(((mean[0].argmax(-1) == 2) & (mean[-1].argmax(-1) == 0)).sum())
    shown = {(s, t): v for s, t, v in zip(flow.source, flow.target, flow.value, strict=True)}
    assert shown.get((2, 4), 0) == crossed > 0
    with pytest.raises(InputError, match="There is no checkpoint 7"):
        figures.sides(readings, 7)
    with pytest.raises(InputError, match="There is no topic 'other'"):
        figures.sides(readings, topic="other")
