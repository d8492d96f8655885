"""Figures show the tables' numbers."""

from __future__ import annotations

import numpy as np
import pytest
from test_belief import graph, made
from tiny import tiny

import workbench
from probes.superposition import (
    CandidateBelief,
    SoftThought,
    figures,
    focus,
    mass,
    mixture_entropy,
    soft_versus_hard,
    use,
)
from probes.superposition.belief import normalised
from probes.superposition.thoughts import ContinuousThought
from workbench.errors import InputError


@pytest.fixture(scope="module")
def problems():
    return [graph(i, nodes=16) for i in range(12)]


def marks(figure, panel=0):
    return figure.plot.panels[panel].marks


def test_areas_and_lines_are_the_means(problems):
    table = mass(made(problems, "all", 0), problems)
    (shares,) = marks(figures.areas(table))
    np.testing.assert_allclose(np.sum(shares.y, 0), 1)
    own = dict(zip(shares.names, zip(shares.y, shares.hues, strict=True), strict=True))
    np.testing.assert_array_equal(own["frontier"][0], table["mean"].sel(group="frontier"))
    lines = {line.name: line for line in marks(figures.inner(table))}
    assert {name: line.hue for name, line in lines.items()} == {name: hue for name, (_, hue) in own.items()}
    np.testing.assert_array_equal(lines["optimal"].y, table["inner"].sel(group="optimal"))
    np.testing.assert_array_equal(lines["optimal"].high, table["inner_high"].sel(group="optimal"))


def test_belief_in_the_target_by_layer(problems):
    model = workbench.load(tiny("gpt2"))
    prompts = [[5, 6, 7 + i] for i in range(12)]
    names = [[10 + v for v in range(16)]] * 12
    reading = workbench.read(model, prompts, CandidateBelief(names), progress=False)
    (cells,) = marks(figures.depths(focus(reading, problems)))
    belief = reading.data["belief"].values
    mean = np.mean([belief[i, :, :, p.target] for i, p in enumerate(problems)], 0)
    np.testing.assert_allclose(cells.values, mean)
    np.testing.assert_allclose(marks(reading.figure("belief", prompt=3))[0].values, belief[3, -1].T)
    table = use(model, prompts, problems, names, ContinuousThought(1), then=[4])
    figure = figures.uses(table)
    for panel, name in enumerate(("effect", "accuracy")):
        rule, points = marks(figure, panel)
        np.testing.assert_allclose(points.x, table[name].values[1:])
        np.testing.assert_allclose(points.x_low, table[f"{name}_low"].values[1:])
        assert rule.at == (0 if name == "effect" else table["accuracy"].values[0])
    assert figure.plot.panels[0].y.names == table["condition"].values[1:].tolist()


def test_mixtures_and_soft_thoughts_are_drawn():
    model = workbench.load(tiny("llama"))
    table = soft_versus_hard(model, [[5, 6], [7, 8]], SoftThought(1, temperature=2.0, keep=3))
    line = marks(figures.soft(table))[0]
    np.testing.assert_allclose(line.y, table["kl"])
    np.testing.assert_array_equal(line.each, table["kl_each"])  # of two prompts each is shown
    assert [line.name for line in marks(figures.entropies(table))] == ["soft", "hard"]
    few = mixture_entropy(model, [[5, 6]], sizes=(1, 2), mixtures=2)
    many = mixture_entropy(model, [[5, 6 + i] for i in range(8)], sizes=(1, 2), mixtures=2)
    figure = figures.mixtures({"early": few, "late": many})
    early, late, even = marks(figure)
    assert (early.name, late.name, even.at) == ("early", "late", float(few["entropy_even"]))
    np.testing.assert_array_equal(early.each, few["entropy_each"].values.T)
    assert late.each is None
    assert "Readings: early, late. Model:" in figure.caption()
    with pytest.raises(InputError, match="areas was given 2 readings by name, and draws one"):
        figures.areas({"early": few, "late": many})


def test_the_graph_has_every_node_once_and_a_frame_for_every_thought(problems):
    problem = problems[0]
    belief = normalised(made(problems, "all", 0))[0]
    (mark,) = marks(figures.graph(problem, belief))
    assert mark.frames == ["no thought yet", "1 thought", "2 thoughts"]
    np.testing.assert_allclose(mark.values, belief[:, : len(problem.names)])
    assert [node for node, *_ in mark.special.values()] == [problem.target, problem.negative]
    assert {name: symbol for name, (_, symbol, _) in mark.special.items()} == {
        "target": "square", "other answer": "diamond",
    }  # fmt: skip
    assert (mark.names, mark.edges) == (problem.names, problem.edges)
    assert len({*zip(mark.x, mark.y, strict=True)}) == len(problem.names)
    reached = problem.depth >= 0
    np.testing.assert_array_equal(mark.x[reached], problem.depth[reached])
    # What is fed behind the thoughts is no thought.
    for then in ("=", ["="]):
        (mark,) = marks(figures.graph(problem, belief, then=then))
        assert mark.frames == ["no thought yet", "1 thought", "answer, after ="]
    with pytest.raises(InputError, match="3 tokens behind the thoughts, and belief has 3 places"):
        figures.graph(problem, belief, then=["a", "b", "c"])
    with pytest.raises(InputError, match="16 nodes and belief 3"):
        figures.graph(problem, np.zeros((2, 3)))
