"""Figures of thoughts: what they hold, where in the model, and what the answer owes to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from probes.superposition.places import called_as
from probes.superposition.problems import Problem
from workbench import tokens
from workbench.errors import InputError
from workbench.figures.charts import Chart
from workbench.figures.figure import Figure, drawn
from workbench.figures.plot import Areas, Axis, Cells, Graph, Hue, Line, Panel, Plot, Points, Rule, whole
from workbench.stats.design import FEW
from workbench.variables import title as titled

HUES: dict[str, Hue] = {
    "frontier": 0, "optimal": 2, "reachable": 4, "not reachable": "#999999",
    "correct next": 0, "target": 2, "wrong neighbour": 1, "other": "#999999",
}  # fmt: skip


@drawn
def areas(table: xr.Dataset, title: str = "belief over thoughts") -> Plot:
    """How belief is shared among groups of nodes from thought to thought (a table of :func:`mass`)."""
    groups, places = [str(g) for g in table["group"].values], table["place"].values
    shares = table["mean"].transpose("group", "place").values
    mark = Areas(places, shares, groups, [HUES[name] for name in groups])
    return Plot([Panel([mark], whole("thoughts so far", places), Axis("belief", range=(0, 1)))], title)


@drawn
def inner(table: xr.Dataset, title: str = "logits of nodes by group") -> Plot:
    """Mean logit of the nodes of every group from thought to thought (a table of :func:`mass`)."""
    groups = [str(g) for g in table["group"].values]
    lines = [_line(table.sel(group=name), "inner", "place", name, HUES[name]) for name in groups]
    return Plot([Panel(lines, whole("thoughts so far", table["place"].values), titled(table["inner"]))], title)


@drawn
def depths(table: xr.Dataset, title: str = "belief in the target") -> Plot:
    """Belief in the target by layer and thought, mean over problems (a table of :func:`focus`)."""
    n = table.attrs["problems"]
    shares = table["target_mean"].transpose("layer", "position").values
    panel = _believed(shares, Axis("layer", names=_names(table, "layer")), "thoughts so far", table)
    return Plot([panel], f"{title}, mean over {n} problems" if n > 1 else title)


@drawn
def belief(data: xr.Dataset, prompt: int = 0, layer: int = -1) -> Plot:
    """Belief in every candidate from place to place, of one prompt at one layer."""
    own, count = data.isel(prompt=prompt).sel(layer=int(data["layer"].values[layer])), data.sizes["prompt"]
    shares = own["belief"].transpose("candidate", "position").values
    candidates = Axis("candidate", names=[str(n) for n in own["candidate_name"].values], reversed=True)
    title = f"belief at layer {int(own['layer'])}, prompt {prompt % count}" + f" of {count}" * (count > 1)
    return Plot([_believed(shares, candidates, "position", data)], title)


@drawn
def uses(table: xr.Dataset, title: str = "what the answer owes to the thoughts") -> Plot:
    """Change of the target's log-odds under every intervention (a table of :func:`use`), and the accuracy left."""
    own = table.sel(condition=[c for c in table["condition"].values if str(c) != "plain"])
    down = Axis(names=_names(own, "condition"), reversed=True)
    panels = []
    for name, across, rule in (
        ("effect", Axis(titled(table["effect"])), Rule(0, "x", dash="solid")),
        ("accuracy", Axis(f"{titled(table['accuracy'])} (dotted: with thoughts)", range=(0, 1)),
         Rule(float(table["accuracy"].sel(condition="plain")), "x")),
    ):  # fmt: skip
        value, low, high = (own[f"{name}{end}"].values for end in ("", "_low", "_high"))
        panels.append(Panel([rule, Points(value, range(len(value)), x_low=low, x_high=high)], across, down))
    return Plot(panels, title, shared="y")


@drawn
def soft(table: xr.Dataset, title: str = "mixture beside its largest token") -> Plot:
    """Soft against hard by layer: KL of the lens's distributions, beside what another token would make of it."""
    lines = [
        _line(table, name, "layer", called, hue)
        for hue, (name, called) in enumerate((("kl", "largest token"), ("kl_second", "second token")))
        if not np.isnan(table[name].values).all()
    ]
    up = Axis(titled(table["kl"]), range=(0, None))
    return Plot([Panel(lines, whole("layer", table["layer"].values), up)], title)


@drawn
def entropies(table: xr.Dataset, title: str = "entropy by layer") -> Plot:
    """Entropy of the logit lens at the thought, fed soft and fed hard (a table of :func:`soft_versus_hard`)."""
    lines = [_line(table, f"entropy_{name}", "layer", name, hue) for hue, name in enumerate(("soft", "hard"))]
    up = Axis("entropy (nats)", range=(0, None))
    return Plot([Panel(lines, whole("layer", table["layer"].values), up)], title)


@partial(drawn, several=True)
def mixtures(
    tables: Mapping[Any, xr.Dataset] | xr.Dataset, title: str = "entropy behind a mixture of k tokens"
) -> Plot:
    """Entropy against the number of tokens in the mixture (:func:`mixture_entropy`), a line for each checkpoint."""
    named = {"": tables} if isinstance(tables, xr.Dataset) else tables
    lines = [_line(table, "entropy", "size", str(name), hue) for hue, (name, table) in enumerate(named.items())]
    even = max(float(table["entropy_even"]) for table in named.values())
    sizes = np.unique(np.concatenate([table["size"].values for table in named.values()])).tolist()
    across = Axis("tokens in the mixture", ticks=sizes, scale="log")
    up = Axis(titled(next(iter(named.values()))["entropy"]), range=(0, None))
    return Plot([Panel([*lines, Rule(even, name="even", dash="dash")], across, up)], title)


def graph(problem: Problem, belief: np.ndarray, title: str = "", *, then: str | Sequence[str] = ()) -> Figure:
    """The problem's graph, nodes as light as the belief in them is great, with a slider from thought to thought.

    Columns are distances from the root, and nodes out of its reach stand below.  The target is a square, the other
    answer (the problem's negative) a diamond, both with a thick rim.

    Args:
        belief: [place, node], from before the first thought on.
        then: the token, or tokens, fed behind the last thought, as in :func:`think`: the last places are theirs, and
            no thoughts.

    Raises InputError where belief has fewer nodes than the problem, or no place is left for a thought.
    """
    belief = np.atleast_2d(np.asarray(belief, float))
    if belief.shape[1] < len(problem.names):
        raise InputError(f"The problem has {len(problem.names)} nodes and belief {belief.shape[1]}. Give one for each.")
    fed = [then] if isinstance(then, str) else list(then)
    thoughts = len(belief) - 1 - len(fed)
    if thoughts < 0:
        raise InputError(
            f"then names {len(fed)} tokens behind the thoughts, and belief has {len(belief)} places, which are to "
            "begin before the first thought. Give belief at all of them, or fewer tokens."
        )
    places = [called_as(t, "") for t in range(thoughts + 1)] + [f"answer, after {tokens.visible(x)}" for x in fed]
    x, y = _places(problem)
    answers: dict[str, tuple[int, str, Hue]] = {
        "target": (problem.target, "square", 2), "other answer": (problem.negative, "diamond", 1),
    }  # fmt: skip
    mark = Graph(x, y, problem.names, problem.edges, belief[:, : len(x)], places, answers, "belief")
    asked = f"{problem.names[problem.root]}: {problem.names[problem.target]} or {problem.names[problem.negative]}?"
    return Figure(Plot([Panel([mark], Axis(shown=False), Axis(shown=False))], title or asked))


def _places(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Columns by distance from the root; nodes out of reach below, by the longest way that leads to them."""
    x, y = np.zeros((2, len(problem.names)))
    reached = problem.depth >= 0
    column = np.where(reached, problem.depth, 0)
    for _ in range(len(problem.names)):
        for a, b in problem.edges:
            if not reached[b] and not reached[a] and a != b:
                column[b] = max(column[b], min(column[a] + 1, len(problem.names)))
    for row, own in ((1, reached), (-1, ~reached)):
        for c in np.unique(column[own]):
            nodes = np.flatnonzero(own & (column == c))
            x[nodes] = c
            y[nodes] = row * (0.5 + np.arange(len(nodes)))
    return x, y


def _line(table: xr.Dataset, name: str, over: str, called: str, hue: Hue) -> Line:
    """A variable with its interval, and its units themselves where they are fewer than :data:`FEW`."""
    value, low, high = (table[f"{name}{end}"].values for end in ("", "_low", "_high"))
    each = table[f"{name}_each"].transpose(..., over).values if f"{name}_each" in table else None  # earlier lack it
    if each is not None and len(each) >= FEW:
        each = None
    return Line(table[over].values, value, called, low, high, hue=hue, each=each)


def _believed(shares: np.ndarray, rows: Axis, places: str, data: xr.Dataset) -> Panel:
    """[row, place] shares of belief."""
    return Panel([Cells(shares, low=0, high=1, bar="belief")], Axis(places, names=_names(data, "position")), rows)


def _names(data: xr.Dataset, dim: str) -> list[str]:
    return [str(x) for x in data[dim].values]


BELIEF = Chart(belief, ("belief", "candidate_name"))
DEPTHS = Chart(depths, ("target_mean",), "superposition.focus", ("belief", "candidate_name"))
AREAS = Chart(areas, ("mean", "inner"))
INNER = Chart(inner, ("mean", "inner"))
USES = Chart(uses, ("logodds", "effect", "accuracy"))
SOFT = Chart(soft, ("kl", "kl_second"))
ENTROPIES = Chart(entropies, ("entropy_soft", "entropy_hard"))
MIXTURES = Chart(mixtures, ("entropy_each", "entropy_even"))
