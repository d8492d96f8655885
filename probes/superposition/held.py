"""Does a state hold the frontier of the search: all nodes at the next distance at once, one of them, or none?

Everything here takes the problems, and logits of their nodes: a ``CandidateBelief`` reading at one layer
(``reading.isel(layer=-1)``), or inner products of your own [problem, place, node].  The state at place t is what
thought t + 1 is made of, so what it should hold is the ring of nodes at distance t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.results import family
from probes.superposition.belief import entropy_bits, normalised
from probes.superposition.places import places_of
from probes.superposition.problems import DEPTH_GROUPS, STEP_GROUPS, Problem
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import auroc, bootstrap_interval, nanmean
from workbench.variables import about, described

ENDS, AUC = ("low", "high"), "how often a frontier node's logit is above"
MASS_VARIABLES = {
    "mass": about("belief in the group"),
    **family("mean", about("mean belief in the group"), *ENDS),
    **family("inner", about("mean logit of the group's nodes", "nats"), *ENDS),
}
FOCUS_VARIABLES = {
    **family("frontier", about("belief in the frontier", better="high"), "null"),
    **family("target", about("belief in the target", better="high"), "null"),
    **family("target_mean", about("mean belief in the target", better="high"), *ENDS),
}
VARIABLES = {
    **family("auc", about(f"{AUC} another node's", better="high"), *ENDS),
    **family("auc_null", about(f"{AUC} another node's, of other graphs", "", "high", "null", "auc"), *ENDS),
    **family("auc_other", about(f"{AUC} another node's, from another root", "", "high", "null", "auc"), *ENDS),
    **family("auc_out", about(f"{AUC} that of a node out of reach", better="high"), *ENDS),
    **family("auc_within", about(f"{AUC} that of a node at another distance", better="high"), *ENDS),
    **family("effective", about("candidates held", "candidates"), *ENDS),
    "effective_even": about("candidates held, were all held alike", "candidates", "", "chance", "effective"),
    **family("frontier_mass", about("belief in the frontier", better="high"), *ENDS),
    "frontier_share": about("share of nodes in the frontier", "", "high", "chance", "frontier_mass"),
    **family("held", about("nodes of the frontier held", "nodes", "high"), *ENDS),
    **family("evenness", about("evenness within the frontier", better="high"), *ENDS),
    **family("size", about("nodes of the frontier", "nodes"), *ENDS),
    "auc_each": about(f"{AUC} another node's, by problem", better="high"),
    "evenness_each": about("evenness within the frontier, by problem", better="high"),
    "effective_each": about("candidates held, by problem", "candidates"),
}


def mass(
    logit: Reading | np.ndarray,
    problems: Sequence[Problem],
    *,
    by: str = "depth",
    ahead: int = 1,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """How belief is shared among groups of nodes: what a stacked figure draws.

    Args:
        by: "depth": not reachable, reachable, frontier, optimal (:meth:`Problem.groups`); "step": correct next, wrong
            neighbour, target, other (:meth:`Problem.step_groups`).
        ahead: place t is compared with step t + ahead.

    Returns: mass [problem, place, group], which adds up to 1; mean [place, group] with interval over problems;
    inner [place, group]: mean logit of the group's nodes (the inner product with their unembedding, where there is no
    more to the readout).
    """
    logit, sources = _checked(logit, problems)
    names = {"depth": DEPTH_GROUPS, "step": STEP_GROUPS}.get(by)
    if names is None:
        raise InputError(f"by={by!r} is unknown. Use 'depth' or 'step'.")
    belief = normalised(logit)
    n, places, _ = logit.shape
    found, inner = np.full((2, n, places, len(names)), np.nan)
    for i, problem in enumerate(problems):
        for t in range(places):
            step = t + ahead
            group = problem.groups(step) if by == "depth" else problem.step_groups(step - 1)
            size = len(problem.names)
            for g in range(len(names)):
                if np.isnan(belief[i, t]).all():
                    continue
                found[i, t, g] = np.nansum(belief[i, t, :size][group == g])
                inner[i, t, g] = np.nanmean(logit[i, t, :size][group == g]) if (group == g).any() else np.nan
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    low, high = bootstrap_interval(found, **settings)
    i_low, i_high = bootstrap_interval(inner, **settings)
    two = ("place", "group")
    table = xr.Dataset(
        {
            "mass": (("problem", *two), found), "mean": (two, nanmean(found)), "mean_low": (two, low),
            "mean_high": (two, high), "inner": (two, nanmean(inner)), "inner_low": (two, i_low),
            "inner_high": (two, i_high),
        },
        {"problem": np.arange(n), "place": np.arange(places), "group": np.array(names, object)},
        {"chart": "areas"},
    )  # fmt: skip
    settings |= {"by": by, "ahead": ahead}
    return derived("superposition.mass", described(table, MASS_VARIABLES), *sources, **settings)


def focus(
    belief: Reading,
    problems: Sequence[Problem],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Belief in each problem's frontier and target, at every layer and place.

    Args:
        belief: of ``CandidateBelief``, a prompt for each problem; candidates are the nodes, by their names or else in
            the order of their numbers.

    Returns: frontier, target [prompt, layer, position], and their _null, what the same places of other prompts believe
    of these very nodes (mean over the prompts with the same candidates; NaN where there is none); target_mean [layer,
    position] with interval over problems.  Behind the last thought there is no frontier.
    """
    data = belief.data
    values = data["belief"].transpose("prompt", "layer", "position", "candidate").values.astype(float)
    names = data["candidate_name"].transpose("prompt", "candidate").values
    if len(problems) != len(values):
        raise InputError(f"There are {len(values)} prompts and {len(problems)} problems. Give one for each prompt.")
    found = {x: np.full(values.shape[:3], np.nan) for x in ("frontier", "target", "frontier_null", "target_null")}
    for i, problem in enumerate(problems):
        at = _nodes(problem, [str(x) for x in names[i]])
        others = [j for j in range(len(values)) if j != i and (names[j] == names[i]).all()]
        for end, own in (("", values[i]), ("_null", values[others].mean(0) if others else None)):
            if own is None:
                continue
            found[f"target{end}"][i] = own[..., at[problem.target]]
            for k, (thoughts, token) in enumerate(places_of(data, i)):
                ring = at[np.flatnonzero(problem.depth == thoughts + 1)] if thoughts is not None else []
                if len(ring) and (k == 0 or not token):
                    found[f"frontier{end}"][i, :, k] = own[:, k, ring].sum(-1)
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    low, high = bootstrap_interval(found["target"], **settings)
    three = ("prompt", "layer", "position")
    table = xr.Dataset(
        {
            **{name: (three, x) for name, x in found.items()},
            "target_mean": (three[1:], nanmean(found["target"])), "target_mean_low": (three[1:], low),
            "target_mean_high": (three[1:], high),
        },
        {name: data[name] for name in three}, {"chart": "depths", "problems": len(problems)},
    )  # fmt: skip
    return derived("superposition.focus", described(table, FOCUS_VARIABLES), belief, **settings)


def _nodes(problem: Problem, candidates: list[str]) -> np.ndarray:
    """[node] which candidate each is."""
    own = [str(name) for name in problem.names]
    if set(own) <= set(candidates):
        return np.array([candidates.index(name) for name in own])
    if len(own) > len(candidates):
        raise InputError(f"A problem has {len(own)} nodes and there are {len(candidates)} candidates. Give every node.")
    return np.arange(len(own))


def frontier(
    logit: Reading | np.ndarray,
    problems: Sequence[Problem],
    *,
    ahead: int = 1,
    graphs: int = 20,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Whether the frontier can be told from the other nodes, and how many of its nodes are held at once.

    Returns, by place, means over problems with intervals over problems (_low, _high):
        auc: how often a frontier node's logit is above another node's.  Beside it auc_null, with the frontiers of
            other problems' graphs (``graphs`` of them), their nodes renamed at random: 0.5 by construction of the
            graph alone; and
            auc_other: of nodes just as far from another node than the root (depth-matched).
        auc_out, auc_within: against nodes out of reach, and against reachable ones at other distances.
        effective: exp of the entropy of belief over all nodes, the number of candidates held; effective_even: if all
            were held alike.  frontier_mass: belief in the frontier; frontier_share: the share of nodes it has.
        held: exp of the entropy within the frontier, of ``size`` nodes; evenness = (held - 1) / (size - 1): 0, one of
            them; 1, all alike.  Over problems with two or more frontier nodes.
    """
    logit, sources = _checked(logit, problems)
    n, places, width = logit.shape
    belief = normalised(logit)
    rings = np.zeros((n, places, width), bool)
    reach = np.zeros((n, width), bool)
    there = np.array(np.isfinite(logit))
    for i, problem in enumerate(problems):
        size = len(problem.names)
        reach[i, :size] = problem.depth >= 0
        for t in range(places):
            rings[i, t, :size] = problem.depth == t + ahead
    rng = np.random.default_rng(seed)
    names = (
        "auc",
        "auc_null",
        "auc_other",
        "auc_out",
        "auc_within",
        "effective",
        "frontier_mass",
        "held",
        "evenness",
        "size",
    )
    found = {name: np.full((n, places), np.nan) for name in (*names, "frontier_share", "effective_even")}
    for i in range(n):
        others = [j for j in rng.permutation(n)[: graphs + 1] if j != i][:graphs]
        starts = rng.permutation(len(problems[i].names))
        for t in range(places):
            seen = there[i, t]
            ring, own, own_belief = rings[i, t] & seen, logit[i, t], belief[i, t]
            rest = seen & ~ring
            if not ring.any() or not rest.any():
                continue
            found["auc"][i, t] = _auc(own, ring, rest)
            found["auc_out"][i, t] = _auc(own, ring, seen & ~reach[i])
            found["auc_within"][i, t] = _auc(own, ring, reach[i] & ~ring & seen)
            null = [_auc(own, other, seen & ~other) for other in _shuffled(seen, [rings[j, t] for j in others], rng)]
            found["auc_null"][i, t] = nanmean(np.array(null)) if null else np.nan
            found["auc_other"][i, t] = _other(problems[i], own, ring, seen, starts, t + ahead)
            found["effective"][i, t] = 2 ** entropy_bits(own_belief)
            found["effective_even"][i, t] = seen.sum()
            found["frontier_mass"][i, t] = np.nansum(own_belief[ring])
            found["frontier_share"][i, t] = ring.sum() / seen.sum()
            found["size"][i, t] = ring.sum()
            if ring.sum() >= 2:
                held = 2 ** entropy_bits(own_belief[ring] / max(np.nansum(own_belief[ring]), 1e-300))
                found["held"][i, t], found["evenness"][i, t] = held, (held - 1) / (ring.sum() - 1)
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    table: dict[str, Any] = {}
    for name, values in found.items():
        table[name] = (("place",), nanmean(values))
        if name in names:
            low, high = bootstrap_interval(values, **settings)
            table[f"{name}_low"], table[f"{name}_high"] = (("place",), low), (("place",), high)
    for name in ("auc", "evenness", "effective"):
        table[f"{name}_each"] = (("problem", "place"), found[name])
    data = described(xr.Dataset(table, {"place": np.arange(places), "problem": np.arange(n)}), VARIABLES)
    return derived("superposition.frontier", data, *sources, ahead=ahead, graphs=graphs, **settings)


def _shuffled(seen: np.ndarray, rings: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """As many of these nodes as each ring has, at random: numbers mean nothing from graph to graph."""
    nodes, found = np.flatnonzero(seen), []
    for ring in rings:
        size = min(int(ring.sum()), len(nodes) - 1)
        if size > 0:
            other = np.zeros(len(seen), bool)
            other[rng.choice(nodes, size, replace=False)] = True
            found.append(other)
    return found


def _auc(logit: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    if not positive.any() or not negative.any():
        return float("nan")
    both = positive | negative
    return auroc(logit[both], positive[both])


def _other(
    problem: Problem, logit: np.ndarray, ring: np.ndarray, there: np.ndarray, starts: np.ndarray, step: int
) -> float:
    """AUC of a ring as far from another node, without the true frontier's nodes."""
    for start in starts:
        if start == problem.root:
            continue
        distance = problem._distances(problem.edges, int(start))
        other = np.zeros(len(logit), bool)
        other[: len(distance)] = distance == step
        other &= there & ~ring
        if other.any():
            return _auc(logit, other, there & ~other & ~ring)
    return float("nan")


def _checked(
    given: Reading | np.ndarray, problems: Sequence[Problem]
) -> tuple[np.ndarray, tuple[Reading, ...]]:
    """Logits [problem, place, node], and the reading that they are of."""
    if isinstance(given, Reading):
        if "logit" not in given or given["logit"].sizes.get("layer", 1) != 1:
            raise InputError(
                "A reading must be of CandidateBelief, at one layer, and this one is not. Give reading.isel(layer=-1)."
            )
        whole = given["logit"].transpose("prompt", ..., "position", "candidate").values
        logit: np.ndarray = whole.reshape(len(whole), *whole.shape[-2:]).astype(float)
    else:
        logit = np.asarray(given, float)
    if logit.ndim != 3 or len(logit) != len(problems):
        raise InputError(
            f"logit has shape {logit.shape} and there are {len(problems)} problems. Give [problem, place, node], of "
            "one layer."
        )
    most = max(len(p.names) for p in problems)
    if logit.shape[2] < most:
        raise InputError(
            f"A problem has {most} nodes and logit {logit.shape[2]} of them. Give every node as a candidate."
        )
    return logit, (given,) if isinstance(given, Reading) else ()
