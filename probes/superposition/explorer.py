"""The explorer of thoughts: a graph, its nodes as large and light as the belief in them is great.

    found = think(model, questions.prompts, ContinuousThought(3), readers=[CandidateBelief(questions.names)], then="=")
    found.readings[0].explore(problems=questions.problems)

Without problems the candidates stand in a circle, and there is no frontier.  Belief in the frontier and in the target
stands beside what the same states of other prompts believe of these very nodes, and beside an even belief.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.superposition.places import called_as, places_of
from workbench import tokens
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.widgets import base as kit

if TYPE_CHECKING:
    from probes.superposition.problems import Problem

SWEEPS = 8
STATIC_NODES = 24


def payload(reading: Any, *, problems: Sequence[Problem] | None = None, limit: int = kit.LIMIT) -> dict[str, Any]:
    """What is shown of a reading of :class:`~probes.superposition.CandidateBelief`.

    ``selection``: prompt; layer; position, the place as the reading numbers it (thoughts so far; those behind the last
    thought are the tokens fed after it); node, the name of a candidate, or None.  Another prompt keeps the node where
    it is one of its candidates.

    Parameters
    ----------
    problems
        One for each prompt, whose names are the candidates.
    limit
        Bytes of the payload, about.  Prompts that do not fit are counted under the widget.

    Raises
    ------
    InputError
        Where problems and prompts do not fit together.
    """
    from probes.superposition.held import focus

    data, provenance = kit.opened(reading)
    belief = data["belief"].transpose("prompt", "layer", "position", "candidate").values.astype(float)
    names = data["candidate_name"].transpose("prompt", "candidate").values
    if problems is not None and len(problems) != len(belief):
        raise InputError(f"There are {len(belief)} prompts and {len(problems)} problems. Give one for each prompt.")
    left_out: list[str] = []
    beside: Reading | None = None
    shown: dict[str, Any] = {
        "about": kit.about(reading),
        "layers": data["layer"].values.tolist(),
        "positions": data["position"].values.tolist(),
        "mass": "mass" in data,
    }
    room, kept, lists, place_names = limit - kit.weight(shown), [], {}, {}
    for i in range(len(belief)):
        real = [k for k, name in enumerate(names[i]) if str(name)]
        own = [str(names[i][k]) for k in real]
        graph = _graph(problems[i], own, i) if problems is not None else _circle(len(own))
        places = places_of(data, i)
        new = sum(2 * len(n) + 8 for n in own) if tuple(own) not in lists else 0
        one: dict[str, Any] = {
            "text": kit.clipped(tokens.plain(str(data["prompt_text"].values[i]))) if "prompt_text" in data else "",
            "belief": kit.decimals(belief[i][..., real], 4),
            "names": lists.setdefault(tuple(own), len(lists)),
            "places": place_names.setdefault(tuple(map(tuple, places)), len(place_names)),
            **graph,
        }
        if "mass" in data:
            one["mass"] = kit.decimals(data["mass"].transpose("prompt", "layer", "position").values[i], 4)
        if problems is not None:
            beside = beside if beside is not None else focus(Reading(data, provenance), problems)
            one["null"] = {x: kit.decimals(beside[f"{x}_null"].values[i], 4) for x in ("frontier", "target")}
        room -= kit.weight(one) + new
        if room < 0 and kept:
            break
        kept.append(one)
    if len(kept) < len(belief):
        left_out.append(f"the last {len(belief) - len(kept)} of {len(belief)} prompts (.isel(prompt=...) chooses)")
    lists = {own: i for own, i in lists.items() if i <= max(one["names"] for one in kept)}
    choices: dict[str, Any] = {
        "prompt": list(range(len(kept))), "layer": shown["layers"], "position": shown["positions"],
        "node": [None, *dict.fromkeys(kit.sendable(name) for own in lists for name in own)],
    }  # fmt: skip
    return {
        **shown,
        "prompts": kept,
        "names": [[kit.sendable(name) for name in own] for own in lists],
        "shown": [[kit.clipped(tokens.visible(name)) for name in own] for own in lists],
        "places": [list(map(list, own)) for own in place_names],
        "left_out": left_out,
        "start": {"prompt": 0, "layer": shown["layers"][-1], "position": shown["positions"][0], "node": None},
        "choices": choices,
    }


def complete(asked: dict[str, Any], now: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The selection, whose node is one of the prompt's."""
    whole = {**now, **asked}
    own = shown["names"][shown["prompts"][whole["prompt"]]["names"]]
    if whole["node"] is not None and whole["node"] not in own:
        if whole["node"] != now["node"]:
            raise InputError(f"node={whole['node']!r} is not in prompt {whole['prompt']}; it has {kit.listing(own)}.")
        whole["node"] = None
    return whole


def _graph(problem: Problem, names: list[str], prompt: int) -> dict[str, Any]:
    """Edges, special nodes, distances and places of a problem's graph, nodes in the order of the candidates."""
    own = [str(name) for name in problem.names]
    if sorted(own) != sorted(names):
        raise InputError(
            f"The nodes of problem {prompt} are {', '.join(own[:6])}, ... and the candidates of its prompt "
            f"{', '.join(names[:6])}, .... Read CandidateBelief with the names of the problems' nodes."
        )
    number = {name: i for i, name in enumerate(names)}
    to = [number[name] for name in own]
    order = np.argsort(to)
    x, y = layered(problem)
    return {
        "edges": kit.integers(np.array([to[v] for edge in problem.edges for v in edge], int)),
        "root": to[problem.root], "target": to[problem.target], "negative": to[problem.negative],
        "depth": kit.integers(problem.depth[order]), "to_target": kit.integers(problem.to_target[order]),
        "x": kit.decimals(x[order], 3), "y": kit.decimals(y[order], 3),
    }  # fmt: skip


def _circle(n: int) -> dict[str, Any]:
    angle = 2 * np.pi * np.arange(n) / max(1, n) - np.pi / 2
    return {
        "edges": kit.integers(np.zeros(0, int)), "root": -1, "target": -1, "negative": -1,
        "depth": kit.integers(np.full(n, -1)), "to_target": kit.integers(np.full(n, -1)),
        "x": kit.decimals(0.5 + 0.5 * np.cos(angle), 3), "y": kit.decimals(0.5 + 0.5 * np.sin(angle), 3),
    }  # fmt: skip


def layered(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Where nodes stand, from 0 to 1: columns by distance from the root; those out of its reach in a band below.

    Within a column nodes are ordered by the mean place of their neighbours, a few times over, so that few edges cross
    (the barycentre method of Sugiyama et al. 1981).
    """
    n, reached = len(problem.names), problem.depth >= 0
    column = np.where(reached, problem.depth, 0)
    for _ in range(n):  # out of reach: by the longest way that leads there; in a cycle, n at most
        for a, b in problem.edges:
            if not reached[a] and not reached[b] and a != b:
                column[b] = max(column[b], min(column[a] + 1, n))
    x, y = column / max(1, column.max()), np.zeros(n)
    bands = [own for own in (reached, ~reached) if own.any()]
    heights = [max(np.bincount(column[own])) for own in bands]
    near: list[list[int]] = [[] for _ in range(n)]
    for a, b in problem.edges:
        near[a].append(b)
        near[b].append(a)
    for sweep in range(SWEEPS):
        columns = np.unique(column)
        for c in columns if sweep % 2 == 0 else columns[::-1]:
            top = 0.0
            for own, height in zip(bands, heights, strict=True):
                nodes = np.flatnonzero(own & (column == c)).tolist()
                nodes.sort(key=lambda v: (np.mean([y[w] for w in near[v]]) if near[v] else y[v], v))
                for k, v in enumerate(nodes):
                    y[v] = top + (k + 0.5) * height / len(nodes)
                top += height + 0.5
    return x, y / (sum(heights) + 0.5 * (len(bands) - 1))


def static(reading: Any, **options: Any) -> str:
    """Belief in every candidate from place to place, of the first prompt at the last layer."""
    data, _ = kit.opened(reading)
    own = data["belief"].transpose("prompt", "layer", "position", "candidate").values[0, -1]
    names = [str(x) for x in data["candidate_name"].values[0]]
    best = np.argsort(-np.nan_to_num(own).max(0))[:STATIC_NODES]
    best = np.sort(best[[bool(names[k]) for k in best]])
    places = kit.every(len(own), 12)
    called = places_of(data, 0)
    head = ["candidate", *(called_as(*called[k]) for k in places)]
    rows = [[tokens.visible(names[v]), *((f"{own[k, v]:.2f}", float(own[k, v])) for k in places)] for v in best]
    told = kit.about(reading)
    said = [told["reader"], told["model"], f"belief at layer {data['layer'].values[-1]}, prompt 0"]
    if data.sizes["prompt"] > 1:
        said.append(f"one of {data.sizes['prompt']} prompts")
    if len(best) < sum(map(bool, names)):
        said.append(f"{len(best)} of {sum(map(bool, names))} candidates")
    said.append(f"an even belief is {1 / max(1, sum(map(bool, names))):.2f}")
    return kit.table(said, head, rows)


VIEW = kit.View(
    "BeliefExplorer",
    "How much the model believes in each candidate after every thought: the larger and lighter a node, the greater the "
    "belief. Play steps through the thoughts.",
    Path(__file__).with_name("explorer.js"),
    ("belief", "candidate_name"),
    payload,
    static,
    complete,
)
explore, to_html = VIEW.explore, VIEW.to_html
