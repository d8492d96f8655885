"""Graph problems (which of two nodes can be reached from the root?), and what a thought about one may hold.

Depths are breadth-first distances.  The nodes at the ends of all walks of k steps are another set, which with cycles
and short cuts holds nodes that were reached before (half of it and more in ProsQA from the third step on).
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.textfiles import text_of

DEPTH_GROUPS = ("not reachable", "reachable", "frontier", "optimal")
STEP_GROUPS = ("correct next", "wrong neighbour", "target", "other")


@dataclass(frozen=True)
class Problem:
    """A directed graph with a root, a target that it reaches, and a negative target that it does not.

    Attributes:
        edges: pairs of node numbers, from and to.
        names: what each node is called in the text.
        steps: the nodes of the path from the root (without it) to the target; () where none is given.
        text: the question, where there is one.

    Raises InputError where the target is the root or out of its reach, and where the negative target is in reach.
    """

    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    negative: int
    names: tuple[str, ...]
    steps: tuple[int, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        used = {v for edge in self.edges for v in edge} | {self.root, self.target, self.negative}
        if used and not (0 <= min(used) and max(used) < len(self.names)):
            raise InputError(f"The graph has nodes {min(used)} to {max(used)}, and {len(self.names)} names for them.")
        if self.target == self.root:
            raise InputError(f"The target is the root ({self.names[self.root]}), so there is nothing to search for.")
        if self.depth[self.target] < 0:
            raise InputError(
                f"No way leads from the root {self.names[self.root]} to the target {self.names[self.target]}: the "
                "graph is disconnected there, and no thought could reach it."
            )
        if self.depth[self.negative] >= 0:
            raise InputError(
                f"The negative target {self.names[self.negative]} can be reached from the root, so both answers are "
                "right."
            )

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Problem:
        """From a record with the fields of ProsQA: edges, root, target, neg_target, and what else it has."""
        try:
            edges, root = record["edges"], int(record["root"])
            target, negative = int(record["target"]), int(record["neg_target"])
        except KeyError as error:
            raise InputError(f"A problem needs edges, root, target and neg_target; {error} is missing.") from error
        edges = ast.literal_eval(edges) if isinstance(edges, str) else edges
        edges = tuple((int(a), int(b)) for a, b in edges)
        size = max([root, target, negative, *(v for e in edges for v in e)]) + 1
        names = tuple(record.get("names") or record.get("idx_to_symbol") or map(str, range(size)))
        steps = record.get("steps") or ()
        if steps and isinstance(steps[0], str):  # "Sally is a scrompus."
            number = {name: i for i, name in enumerate(names)}
            steps = [number[step.rstrip(".").split()[-1]] for step in steps]
        return cls(edges, root, target, negative, names, tuple(int(v) for v in steps), record.get("question", ""))

    @cached_property
    def depth(self) -> np.ndarray:
        """[nodes] distance from the root; -1: out of reach."""
        return self._distances(self.edges, self.root)

    @cached_property
    def to_target(self) -> np.ndarray:
        """[nodes] distance to the target; -1: it cannot be reached."""
        return self._distances([(b, a) for a, b in self.edges], self.target)

    def _distances(self, edges: Iterable[tuple[int, int]], start: int) -> np.ndarray:
        out: dict[int, list[int]] = {}
        for a, b in edges:
            out.setdefault(a, []).append(b)
        found = np.full(len(self.names), -1)
        found[start], ring, d = 0, [start], 0
        while ring:
            d += 1
            ring = sorted({w for v in ring for w in out.get(v, ()) if found[w] < 0})
            found[ring] = d
        return found

    @property
    def length(self) -> int:
        """Steps from the root to the target."""
        return int(self.depth[self.target])

    def groups(self, step: int) -> np.ndarray:
        """[nodes] number into :data:`DEPTH_GROUPS` after ``step`` steps; the groups partition the nodes.

        not reachable: not within so many steps; reachable: in fewer; frontier: in just as many; optimal: those of the
        frontier that lie on a shortest way to the target (Zhu et al. 2025, arXiv 2505.12514, by distance, not walks).
        """
        found = np.where(self.depth < 0, 0, np.where(self.depth < step, 1, np.where(self.depth == step, 2, 0)))
        on_way = (self.depth == step) & (self.to_target >= 0) & (step + self.to_target == self.length)
        return np.where(on_way, 3, found)

    def step_groups(self, step: int) -> np.ndarray:
        """[nodes] number into :data:`STEP_GROUPS` for the step that comes after ``step`` steps along the path.

        correct next: the path's next node; wrong neighbour: another successor of the node the path is at; target;
        other (arXiv 2604.06374).  Where the next node is the target it counts as target; behind the end all is other.
        """
        if not self.steps:
            raise InputError("The problem has no path (steps), so the correct next node is not known. Use groups().")
        way = (self.root, *self.steps)
        found = np.full(len(self.names), 3)
        if step < len(self.steps):
            found[[b for a, b in self.edges if a == way[step]]] = 1
            found[way[step + 1]] = 0
        found[self.target] = 2
        return found


def graphs(problems: Sequence[Problem]) -> np.ndarray:
    """[problem] the number of its graph: problems with the same edges are questions about one, and no independent
    sample."""
    number: dict[frozenset[tuple[int, int]], int] = {}
    return np.array([number.setdefault(frozenset(problem.edges), len(number)) for problem in problems])


def load_prosqa(path: str | os.PathLike[str]) -> list[Problem]:
    """Problems from a JSON file in ProsQA's format (facebookresearch/coconut, or its symbolic variant)."""
    try:
        records = json.loads(text_of(path))
    except ValueError as error:
        raise InputError(f"{path} is no file of problems ({error}).") from error
    return [Problem.of(record) for record in records]
