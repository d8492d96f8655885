"""Which of two nodes can be reached from the root? Graphs in two halves, with the fields of ProsQA.

Each half is a layered graph: its root, then `depth` layers of two or more nodes, every node with a parent in the layer
before it, and a few more edges between neighbouring layers. One half's root is asked about; the target lies in that
half and the other candidate, at the same depth, in the other. The halves are drawn alike, so all that can be seen
without following edges from the root (degrees, depths, names, order) is the same for both candidates.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """How large a graph is; `depth` is the longest path, and the number of thoughts that a model gets."""

    nodes: int
    edges: int
    depth: int


SIZE = Size(nodes=14, edges=14, depth=3)
NODES, EDGES, DEPTH = SIZE.nodes, SIZE.edges, SIZE.depth
THOUGHTS = DEPTH
SHORTEST = 2
"""Paths are this long or longer: a path of one step could be read off an edge."""
MARKS = ("<pad>", "<bos>", "|", "?", ":", "=", "<pause>", "<eos>")


def words(size: Size = SIZE) -> list[str]:
    """The vocabulary, in the order of token ids."""
    return [*MARKS, *(f"n{i}" for i in range(size.nodes))]


@dataclass(frozen=True)
class Graph:
    """Edges in the order in which they are told, and the two halves, each as its layers from the root down."""

    edges: list[list[int]]
    halves: list[list[list[int]]]


def half(draw: random.Random, own: list[int], edges: int, depth: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Layers and edges of one half, on nodes of these names."""
    widths = [2] * depth
    for _ in range(len(own) - 1 - 2 * depth):
        widths[draw.randrange(depth)] += 1
    layers, at = [own[:1]], 1
    for width in widths:
        layers.append(own[at : at + width])
        at += width
    pairs = list(zip(layers, layers[1:], strict=False))
    found = [(draw.choice(before), node) for before, layer in pairs for node in layer]
    # Every parent is one layer up: all paths to a node have its depth, so that walks and shortest paths agree.
    spare = sorted({(s, t) for before, layer in pairs for s in before for t in layer} - set(found))
    return layers, found + draw.sample(spare, edges - len(found))


def graph(draw: random.Random, size: Size = SIZE) -> Graph:
    """Two halves of one distribution; names of nodes and order of edges at random."""
    names = list(range(size.nodes))
    draw.shuffle(names)
    edges: list[list[int]] = []
    halves = []
    for own in (names[: size.nodes // 2], names[size.nodes // 2 :]):
        layers, found = half(draw, own, size.edges // 2, size.depth)
        halves.append(layers)
        edges += [[s, t] for s, t in found]
    draw.shuffle(edges)
    return Graph(edges, halves)


def question(graph: Graph, draw: random.Random) -> dict[str, Any]:
    """One problem on this graph: edges, root, target, neg_target, candidates as told, and the steps of one path."""
    here, there = draw.sample(graph.halves, 2)
    depth = draw.randint(SHORTEST, len(here) - 1)
    (root,), target, neg_target = here[0], draw.choice(here[depth]), draw.choice(there[depth])
    path = [target]
    while path[0] != root:
        path.insert(0, draw.choice([s for s, t in graph.edges if t == path[0]]))
    return {
        "edges": graph.edges, "root": root, "target": target, "neg_target": neg_target, "steps": path[1:],
        "candidates": draw.sample([target, neg_target], 2),
    }  # fmt: skip


def questions(graph: Graph, draw: random.Random, n: int) -> list[dict[str, Any]]:
    """n questions on one graph."""
    return [question(graph, draw) for _ in range(n)]


def walks(graph: Graph, draw: random.Random, steps: int, n: int) -> list[dict[str, Any]]:
    """Walks of so many steps from n nodes that have one, different nodes while there are; two nodes at random stand
    where candidates would.

    What the stages before the answer are trained on: they ask for the search alone, with nothing to guess from.
    """
    after: dict[int, list[int]] = {}
    for s, t in graph.edges:
        after.setdefault(s, []).append(t)
    # left[k]: the nodes from which k more steps can be made
    left = [{node for layers in graph.halves for layer in layers for node in layer}]
    for _ in range(steps):
        left.append({s for s, found in after.items() if left[-1] & set(found)})
    names, starts = sorted(left[0]), sorted(left[steps])
    draw.shuffle(starts)
    found = []
    for i in range(n):
        path = [starts[i % len(starts)]]
        for k in reversed(range(steps)):
            path.append(draw.choice([t for t in after[path[-1]] if t in left[k]]))
        one = {"edges": graph.edges, "root": path[0], "target": path[-1], "steps": path[1:]}
        found.append(one | {"candidates": draw.sample(names, 2)})
    return found


def problem(seed: int | str | random.Random, size: Size = SIZE) -> dict[str, Any]:
    """The problem of a seed."""
    draw = seed if isinstance(seed, random.Random) else random.Random(f"searcher {seed}")
    return question(graph(draw, size), draw)


def problems(n: int, seed: int, size: Size = SIZE) -> Iterator[dict[str, Any]]:
    """The first n problems of a seed."""
    draw = random.Random(f"searcher problems {seed}")
    for _ in range(n):
        yield problem(draw, size)


def prompt(problem: dict[str, Any]) -> str:
    """`<bos> n3 n5 | n5 n7 | ... | ? nC1 nC2 : nROOT`: every edge is closed by `|`."""
    edges = " ".join(f"n{s} n{t} |" for s, t in problem["edges"])
    one, other = problem["candidates"]
    return f"<bos> {edges} ? n{one} n{other} : n{problem['root']}"


def chain(problem: dict[str, Any]) -> str:
    """The prompt with its chain of thought: `... : nROOT n1 n2 n3 = nTARGET`."""
    return f"{prompt(problem)} {' '.join(f'n{s}' for s in problem['steps'])} = n{problem['target']}"


def depths(problem: dict[str, Any], start: int | None = None) -> dict[int, int]:
    """Steps from the root (or from `start`) to every node that can be reached: the layers of a search in breadth."""
    found = {problem["root"] if start is None else start: 0}
    front = set(found)
    while front:
        front = {t for s, t in problem["edges"] if s in front} - set(found)
        found |= dict.fromkeys(front, max(found.values()) + 1)
    return found
