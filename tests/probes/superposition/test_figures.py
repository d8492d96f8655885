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


def test_areas_and_lines_are_the_means(problems):
    table = mass(made(problems, "all", 0), problems)
    figure = figures.areas(table)
    np.testing.assert_allclose(np.sum([line.y for line in figure.data], 0), 1)
    assert {line.name: tuple(line.y) for line in figure.data}["frontier"] == tuple(
        table["mean"].sel(group="frontier").values
    )
    lines = {line.name: line.y for line in figures.inner(table).data if line.name}
    np.testing.assert_allclose(lines["optimal"], table["inner"].sel(group="optimal"))


def test_belief_in_the_target_by_layer(problems):
    model = workbench.load(tiny("gpt2"))
    prompts = [[5, 6, 7 + i] for i in range(12)]
    names = [[10 + v for v in range(16)]] * 12
    reading = workbench.read(model, prompts, CandidateBelief(names), progress=False)
    figure = figures.depths(focus(reading, problems))
    belief = reading.data["belief"].values
    mean = np.mean([belief[i, :, :, p.target] for i, p in enumerate(problems)], 0)
    np.testing.assert_allclose(figure.data[0].z, mean)
    shown = reading.figure("belief", prompt=3)
    np.testing.assert_allclose(np.array(shown.data[0].z), belief[3, -1].T)
    table = use(model, prompts, problems, names, ContinuousThought(1), then=[4])
    drawn = figures.uses(table)
    np.testing.assert_allclose(drawn.data[0].x, table["effect"].values[1:])
    assert len(drawn.layout.yaxis.ticktext) == table.data.sizes["condition"] - 1


def test_mixtures_and_soft_thoughts_are_drawn():
    model = workbench.load(tiny("llama"))
    table = soft_versus_hard(model, [[5, 6], [7, 8]], SoftThought(1, temperature=2.0, keep=3))
    np.testing.assert_allclose([d.y for d in figures.soft(table).data if d.name == "largest token"][0], table["kl"])
    assert [d.name for d in figures.entropies(table).data if d.name] == ["soft", "hard"]
    tables = {"early": mixture_entropy(model, [[5, 6]], sizes=(1, 2), mixtures=2)}
    assert "early" in [d.name for d in figures.mixtures(tables).data]


def test_the_graph_has_every_node_once_and_a_step_for_every_thought(problems):
    problem = problems[0]
    belief = normalised(made(problems, "all", 0))[0]
    figure = figures.graph(problem, belief)
    nodes, named = figure.data[:3], figure.data[3:]
    assert [d.visible for d in nodes] == [True, False, False]
    # The two answers are told by their shapes, and the legend names these at every step.
    symbols = list(nodes[0].marker.symbol)
    assert symbols.pop(max(problem.target, problem.negative)) and symbols.pop(min(problem.target, problem.negative))
    assert set(symbols) == {"circle"}
    assert [d.marker.symbol for d in named] == [
        nodes[0].marker.symbol[problem.target], nodes[0].marker.symbol[problem.negative]
    ] == ["square", "diamond"]  # fmt: skip
    assert [d.name for d in named] == ["target", "other answer"]
    steps = figure.layout.sliders[0].steps
    assert [s.label for s in steps] == ["no thought yet", "1 thought", "2 thoughts"]
    assert [s.args[0]["visible"] for s in steps] == [(np.arange(3) == i).tolist() + [True] * 2 for i in range(3)]
    # What is fed behind the thoughts is no thought.
    for then in ("=", ["="]):
        steps = figures.graph(problem, belief, then=then).layout.sliders[0].steps
        assert [s.label for s in steps] == ["no thought yet", "1 thought", "answer, after ="]
    with pytest.raises(InputError, match="3 tokens behind the thoughts, and belief has 3 places"):
        figures.graph(problem, belief, then=["a", "b", "c"])
    assert len({*zip(figure.data[0].x, figure.data[0].y, strict=True)}) == len(problem.names)
    np.testing.assert_allclose(figure.data[1].customdata, belief[1])
    full = figures.graph(problem, np.eye(16)[:1]).data[0].marker
    assert full.color[0] == 1 and set(full.color[1:]) == {0} and (full.cmin, full.cmax) == (0, 1)
    arrows = [a for a in figure.layout.annotations if a.showarrow]
    assert len(arrows) == len(problem.edges) and len(figure.layout.sliders[0].steps) == 3
    reached = problem.depth >= 0
    np.testing.assert_array_equal(np.array(figure.data[0].x)[reached], problem.depth[reached])
    with pytest.raises(InputError, match="16 nodes and belief 3"):
        figures.graph(problem, np.zeros((2, 3)))
