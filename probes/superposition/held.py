"""Does a state hold the frontier of the search: all nodes at the next distance at once, one of them, or none?

Everything here takes the problems, and logits of their nodes: a ``CandidateBelief`` reading at one layer
(``reading.isel(layer=-1)``), or inner products of your own [problem, place, node].  The state at place t is what
thought t + 1 is made of, so what it should hold is the ring of nodes at distance t + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.results import family
from probes.superposition.belief import entropy_bits, normalised
from probes.superposition.places import places_of
from probes.superposition.problems import DEPTH_GROUPS, STEP_GROUPS, Problem, graphs
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, entropy, nanmean, over
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
    **family("auc_null", about(f"{AUC} another node's, in others' thoughts", "", "high", "null", "auc"), *ENDS),
    **family("auc_other", about(f"{AUC} another node's, from another root", "", "high", "null", "auc"), *ENDS),
    **family("auc_out", about(f"{AUC} that of a node out of reach", better="high"), *ENDS),
    **family("auc_within", about(f"{AUC} that of a node at another distance", better="high"), *ENDS),
    **family("auc_without_top", about(f"{AUC} another node's, without the highest", better="high"), *ENDS),
    **family(
        "auc_within_without_top",
        about(f"{AUC} that of a node at another distance, without the highest", better="high"), *ENDS,
    ),
    **family(
        "auc_reachable", about("how often a reachable node's logit is above one out of reach, without the highest"),
        *ENDS,
    ),
    **family("auc_target", about("how often the target's logit is above another node's"), *ENDS),
    **family("lead", about("lead of the first node over the second, beside the spread"), *ENDS),
    **family("effective", about("candidates held", "candidates"), *ENDS),
    "effective_even": about("candidates held, were all held alike", "candidates", "", "chance", "effective"),
    **family("frontier_mass", about("belief in the frontier", better="high"), *ENDS),
    "frontier_share": about("share of nodes in the frontier", "", "high", "chance", "frontier_mass"),
    **family("held", about("nodes of the frontier held", "nodes", "high"), *ENDS),
    **family("evenness", about("evenness within the frontier", better="high"), *ENDS),
    **family("evenness_belief", about("evenness of belief within the frontier", better="high"), *ENDS),
    **family("size", about("nodes of the frontier", "nodes"), *ENDS),
    "graph": about("graph of the problem", role="label", of="auc"),
}  # fmt: skip
INTERVALS = tuple(name for name in VARIABLES if f"{name}_low" in VARIABLES)
"""What :func:`frontier` gives with an interval."""
COUNTS = ("effective", "held", "size", "effective_even")
EACH = (
    "auc", "auc_null", "auc_other", "auc_within", "auc_without_top", "auc_within_without_top", "auc_reachable",
    "auc_target", "lead", "evenness", "effective",
)  # fmt: skip
"""What it gives of every problem."""
VARIABLES |= {
    f"{name}_each": {**VARIABLES[name], "long_name": f"{VARIABLES[name]['long_name']}, by problem"} for name in EACH
}
CELLS = 2**23
"""Pairs of nodes that are compared at once."""


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
    n, places, width = logit.shape
    group = np.full((n, places, width), -1)
    for i, problem in enumerate(problems):
        for t in range(places):
            own = problem.groups(t + ahead) if by == "depth" else problem.step_groups(t + ahead - 1)
            group[i, t, : len(own)] = own
    members = (group[..., None, :] == np.arange(len(names))[:, None]) & ~np.isnan(logit)[..., None, :]
    count = members.sum(-1)
    found = np.where(members, belief[..., None, :], 0).sum(-1)
    found[np.isnan(belief).all(-1)] = np.nan
    inner = over(np.where(members, logit[..., None, :], 0).sum(-1), count)
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    design = Design(clusters=graphs(problems))
    where, within = design.bootstrap(found, bounds=(0, 1), **settings), design.bootstrap(inner, **settings)
    two = ("place", "group")
    table = xr.Dataset(
        {
            "mass": (("problem", *two), found), "mean": (two, where.value), "mean_low": (two, where.low),
            "mean_high": (two, where.high), "inner": (two, within.value), "inner_low": (two, within.low),
            "inner_high": (two, within.high),
        },
        {"problem": np.arange(n), "place": np.arange(places), "group": np.array(names, object)},
        {"chart": "areas", "interval": where.said("graphs")},
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
    where = Design(clusters=graphs(problems)).bootstrap(found["target"], bounds=(0, 1), **settings)
    three = ("prompt", "layer", "position")
    table = xr.Dataset(
        {
            **{name: (three, x) for name, x in found.items()},
            "target_mean": (three[1:], where.value), "target_mean_low": (three[1:], where.low),
            "target_mean_high": (three[1:], where.high),
        },
        {name: data[name] for name in three},
        {"chart": "depths", "problems": len(problems), "interval": where.said("graphs")},
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
    others: int = 20,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Whether the frontier can be told from the other nodes, and how many of its nodes are held at once.

    Parameters
    ----------
    logit
        A ``CandidateBelief`` reading at one layer, or [problem, place, node].
    problems
        One for each row.  Problems on the same graph are one cluster: graphs are what was sampled.
    ahead
        The state at place t should hold the nodes at distance t + ahead.
    others
        How many other problems' thoughts are read as a control.
    draws, level, seed
        Of the intervals; seed also of which others are read.

    Returns
    -------
    Reading
        By place, means over problems with intervals (_low, _high), and by problem and place (_each).

        auc: how often a frontier node's logit is above another node's.  Beside it auc_null, the same nodes in the
        thoughts of problems on other graphs, at the same place: 0.5 unless numbers or names of nodes tell; and
        auc_other, nodes just as far from another node than the root (depth-matched), mean over all other nodes.
        auc_within, auc_out: against reachable nodes at other distances, and against nodes out of reach.
        auc_without_top, auc_within_without_top: of the frontier without the highest of its nodes.  Where that one alone
        stands out they are 0.5 or below; over noise they are below, since what is left had lost.
        auc_reachable: reachable nodes without the highest of them, against those out of reach; auc_target: the target
        against all other nodes; lead = gap / (gap + spread), of the first node of all before the second, beside the
        standard deviation of all but the first: over 0.5 where one node stands alone.
        evenness = (held - 1) / (size - 1): 0, one node of the frontier or none; 1, all alike; held = exp(entropy) of
        the frontier nodes' shares in its rise above the median of the other nodes (0 for a node below it; held is 0
        where none rises).  Logits may be shifted and scaled: nothing changes.  Over problems with two or more frontier
        nodes.
        effective: exp(entropy) of belief over all nodes; effective_even: if all were held alike; frontier_mass: belief
        in the frontier; frontier_share: the share of nodes it has; evenness_belief: evenness of belief.  These change
        with the scale of the logits.

    Raises
    ------
    InputError
        Where logits and problems do not fit together.
    """
    logit, sources = _checked(logit, problems)
    n, places, width = logit.shape
    logit = np.where(np.isfinite(logit), logit, np.nan)
    graph = graphs(problems)
    donors = np.sort(np.random.default_rng(seed).permutation(n)[: others + 1])
    parts: list[dict[str, np.ndarray]] = []
    step = max(1, CELLS // (width * width))
    for start in range(0, n, step):
        own = slice(start, start + step)
        apart = graph[own, None] != graph[donors]
        parts.append(_compared(logit[own], problems[start : start + step], ahead, logit[donors], apart))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    table, said = _summary(found, Design(clusters=graph), **settings)
    table |= {f"{name}_each": (("problem", "place"), found[name]) for name in EACH}
    table["graph"] = (("problem",), graph)
    coords = {"place": np.arange(places), "problem": np.arange(n)}
    data = described(xr.Dataset(table, coords, {"interval": said}), VARIABLES)
    return derived("superposition.frontier", data, *sources, ahead=ahead, others=others, **settings)


def _summary(found: Mapping[str, np.ndarray], design: Design, **settings: Any) -> tuple[dict[str, Any], str]:
    """Means over problems of values [problem, place], with intervals; and in words how these were made."""
    table, said = {}, ""
    for bounds, names in (((0, 1), [x for x in found if x not in COUNTS]), ((0, np.inf), [*COUNTS])):
        where = design.bootstrap(np.stack([found[name] for name in names], 1), bounds=bounds, **settings)
        said = said or where.said("graphs")
        for i, name in enumerate(names):
            table[name] = (("place",), where.value[i])
            if name in INTERVALS:
                table |= {f"{name}_low": (("place",), where.low[i]), f"{name}_high": (("place",), where.high[i])}
    return table, said


def _compared(
    logit: np.ndarray, problems: Sequence[Problem], ahead: int, theirs: np.ndarray, apart: np.ndarray
) -> dict[str, np.ndarray]:
    """What :func:`frontier` measures of each problem at each place: name -> [problem, place].

    ``theirs`` [other, place, node]: logits of other problems; ``apart`` [problem, other]: which may be read.
    """
    n, places, width = logit.shape
    distance = _distances(problems, width, places - 1 + ahead)
    root, target = (np.array([getattr(p, x) for p in problems]) for x in ("root", "target"))
    depth = np.full((n, width), -1)
    for i, problem in enumerate(problems):
        depth[i, : len(problem.names)] = problem.depth
    reach, node = depth >= 0, np.arange(width)
    found = {name: np.full((n, places), np.nan) for name in (*INTERVALS, "frontier_share", "effective_even")}
    for t in range(places):
        z = logit[:, t]
        there = ~np.isnan(z)
        ring, rest = there & (depth == t + ahead), there & (depth != t + ahead)
        above = _above(z)

        def auc(positive: np.ndarray, negative: np.ndarray, above: np.ndarray = above) -> np.ndarray:
            won = (np.matmul(positive[:, None].astype(np.float32), above)[:, 0] * negative).sum(-1)
            return over(won, positive.sum(-1) * negative.sum(-1))

        within, out = rest & reach, there & ~reach
        left = _without_top(z, ring)
        told = {
            "auc": auc(ring, rest), "auc_within": auc(ring, within), "auc_out": auc(ring, out),
            "auc_without_top": auc(left, rest), "auc_within_without_top": auc(left, within),
            "auc_reachable": auc(_without_top(z, there & reach), out),
            "auc_target": auc(there & (node == target[:, None]), there & (node != target[:, None])),
            "auc_null": _elsewhere(ring, rest, theirs[:, t], apart),
        }  # fmt: skip
        # Rings of the same radius about every other node, without the true frontier's nodes.
        about_others = (distance == t + ahead) & (there & ~ring)[:, None] & (node != root[:, None])[:, :, None]
        beside = rest[:, None] & ~about_others
        won = (np.matmul(about_others.astype(np.float32), above) * beside).sum(-1)
        told["auc_other"] = nanmean(over(won, about_others.sum(-1) * beside.sum(-1)).T)
        behind = np.where(_without_top(z, there), z, np.nan).T
        gap = _of(np.nanmax, z.T) - _of(np.nanmax, behind)
        told["lead"] = over(gap, gap + np.sqrt(nanmean((behind - nanmean(behind)) ** 2)))
        belief = normalised(z)
        middle = _of(np.nanmedian, np.where(rest, z, np.nan).T)
        held, size = _effective(np.where(ring, np.maximum(z - middle[:, None], 0), 0)), ring.sum(-1)
        told["held"] = np.where(size > 1, held, np.nan)
        told["evenness"] = over(np.maximum(held - 1, 0), size - 1)
        told["evenness_belief"] = over(_effective(np.where(ring, belief, 0)) - 1, size - 1)
        told["effective"] = 2 ** entropy_bits(belief)
        told["effective_even"] = there.sum(-1).astype(float)
        told["frontier_mass"] = np.where(ring, np.nan_to_num(belief), 0).sum(-1)
        told["frontier_share"], told["size"] = over(size, there.sum(-1)), size.astype(float)
        some = (size > 0) & rest.any(-1)
        for name, values in told.items():
            found[name][:, t] = np.where(some, values, np.nan)
    return found


def _above(z: np.ndarray) -> np.ndarray:
    """[..., node] -> [..., node, node] 1 where the first is above the second, 1/2 where they tie, 0 else and if NaN."""
    own, other = z[..., :, None], z[..., None, :]
    return (own > other) + np.float32(0.5) * (own == other)


def _elsewhere(ring: np.ndarray, rest: np.ndarray, theirs: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """[problem] AUC of the ring's nodes in others' logits [other, node], mean over those that may be read."""
    there = (~np.isnan(theirs)).astype(np.float32)
    positive, negative = ring.astype(np.float32), rest.astype(np.float32)
    won = np.einsum("nov,nv->no", np.tensordot(positive, _above(theirs), (1, 1)), negative)
    each = over(won, (positive @ there.T) * (negative @ there.T))
    return nanmean(np.where(apart, each, np.nan).T)


def _without_top(z: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The nodes [problem, node] but the highest of them."""
    top = np.where(nodes, z, -np.inf).argmax(-1)
    return nodes & (np.arange(z.shape[1]) != top[:, None])


def _of(statistic: Any, z: np.ndarray) -> np.ndarray:
    """A statistic of what is not NaN over the first axis; NaN where all is."""
    some = ~np.isnan(z).all(0)
    found = np.full(z.shape[1], np.nan)
    if some.any():
        found[some] = statistic(z[:, some], 0)
    return found


def _effective(size: np.ndarray) -> np.ndarray:
    """[..., node] -> exp(entropy) of sizes as shares; 0 where all are 0."""
    total = size.sum(-1)
    return np.where(total > 0, np.exp(entropy(np.nan_to_num(over(size, total[..., None])))), 0)


def _distances(problems: Sequence[Problem], width: int, most: int) -> np.ndarray:
    """[problem, from, to] steps between nodes, up to ``most``; -1: more, or no way."""
    step = np.zeros((len(problems), width, width), np.float32)
    found = np.full(step.shape, -1, np.int16)
    for i, problem in enumerate(problems):
        if problem.edges:
            a, b = np.array(problem.edges).T
            step[i, a, b] = 1
        own = np.arange(len(problem.names))
        found[i, own, own] = 0
    ring = found == 0
    for d in range(1, most + 1):
        ring = (np.matmul(ring.astype(np.float32), step) > 0) & (found < 0)
        found[ring] = d
    return found


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
