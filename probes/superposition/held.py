"""Does a state hold the frontier of the search: all nodes at the next distance at once, one of them, or none?

Everything here takes the problems, and logits of their nodes [problem, place, node]: the "logit" of a
``CandidateBelief`` reading at one layer, or inner products of your own.  The state at place t is what thought t + 1 is
made of, so what it should hold is the ring of nodes at distance t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.superposition.belief import entropy_bits, normalised
from probes.superposition.problems import DEPTH_GROUPS, STEP_GROUPS, Problem
from workbench.errors import InputError
from workbench.stats import auroc, bootstrap_interval


def mass(logit: np.ndarray, problems: Sequence[Problem], *, by: str = "depth", ahead: int = 1) -> xr.Dataset:
    """How belief is shared among groups of nodes: what a stacked figure draws.

    Args:
        by: "depth": not reachable, reachable, frontier, optimal (:meth:`Problem.groups`); "step": correct next, wrong
            neighbour, target, other (:meth:`Problem.step_groups`).
        ahead: place t is compared with step t + ahead.

    Returns: mass [problem, place, group], which adds up to 1; mean [place, group] with interval over problems;
    inner [place, group]: mean logit of the group's nodes (the inner product with their unembedding, where there is no
    more to the readout).
    """
    logit = _checked(logit, problems)
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
                found[i, t, g] = np.nansum(belief[i, t, :size][group == g])
                inner[i, t, g] = np.nanmean(logit[i, t, :size][group == g]) if (group == g).any() else np.nan
    low, high = bootstrap_interval(found)
    i_low, i_high = bootstrap_interval(inner)
    two = ("place", "group")
    return xr.Dataset(
        {
            "mass": (("problem", *two), found), "mean": (two, found.mean(0)), "mean_low": (two, low),
            "mean_high": (two, high), "inner": (two, _mean(inner)), "inner_low": (two, i_low),
            "inner_high": (two, i_high),
        },
        {"problem": np.arange(n), "place": np.arange(places), "group": np.array(names, object)},
    )  # fmt: skip


def frontier(
    logit: np.ndarray, problems: Sequence[Problem], *, ahead: int = 1, draws: int = 20, seed: int = 0
) -> xr.Dataset:
    """Whether the frontier can be told from the other nodes, and how many of its nodes are held at once.

    Returns, by place, means over problems with 95 % intervals over problems (_low, _high):
        auc: how often a frontier node's logit is above another node's.  Beside it auc_null, with the frontier of
            another problem's graph (shuffled graphs; ``draws`` of them): 0.5 if nothing but the graph is in it; and
            auc_other: of nodes just as far from another node than the root (depth-matched).
        auc_out, auc_within: against nodes out of reach, and against reachable ones at other distances.
        effective: exp of the entropy of belief over all nodes, the number of candidates held; effective_even: if all
            were held alike.  frontier_mass: belief in the frontier; frontier_share: the share of nodes it has.
        held: exp of the entropy within the frontier, of ``size`` nodes; evenness = (held - 1) / (size - 1): 0, one of
            them; 1, all alike.  Over problems with two or more frontier nodes.
    """
    logit = _checked(logit, problems)
    n, places, width = logit.shape
    belief = normalised(logit)
    rings = np.zeros((n, places, width), bool)
    reach = np.zeros((n, width), bool)
    there = np.array(np.isfinite(logit).all(1))
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
        others = [j for j in rng.permutation(n)[: draws + 1] if j != i][:draws]
        starts = rng.permutation(len(problems[i].names))
        for t in range(places):
            ring, own, own_belief = rings[i, t] & there[i], logit[i, t], belief[i, t]
            rest = there[i] & ~ring
            if not ring.any() or not rest.any():
                continue
            found["auc"][i, t] = _auc(own, ring, rest)
            found["auc_out"][i, t] = _auc(own, ring, there[i] & ~reach[i])
            found["auc_within"][i, t] = _auc(own, ring, reach[i] & ~ring & there[i])
            null = [_auc(own, rings[j, t] & there[i], there[i] & ~rings[j, t]) for j in others]
            found["auc_null"][i, t] = _mean(np.array(null)) if null else np.nan
            found["auc_other"][i, t] = _other(problems[i], own, ring, there[i], starts, t + ahead)
            found["effective"][i, t] = 2 ** entropy_bits(own_belief)
            found["effective_even"][i, t] = there[i].sum()
            found["frontier_mass"][i, t] = np.nansum(own_belief[ring])
            found["frontier_share"][i, t] = ring.sum() / there[i].sum()
            found["size"][i, t] = ring.sum()
            if ring.sum() >= 2:
                held = 2 ** entropy_bits(own_belief[ring] / max(np.nansum(own_belief[ring]), 1e-300))
                found["held"][i, t], found["evenness"][i, t] = held, (held - 1) / (ring.sum() - 1)
    table: dict[str, Any] = {}
    for name, values in found.items():
        table[name] = (("place",), _mean(values))
        if name in names:
            low, high = bootstrap_interval(values)
            table[f"{name}_low"], table[f"{name}_high"] = (("place",), low), (("place",), high)
    for name in ("auc", "evenness"):
        table[f"{name}_each"] = (("problem", "place"), found[name])
    return xr.Dataset(table, {"place": np.arange(places), "problem": np.arange(n)})


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


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is there."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)


def _checked(logit: np.ndarray, problems: Sequence[Problem]) -> np.ndarray:
    logit = np.asarray(logit, float)
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
    return logit
