"""Are the thoughts used?  What becomes of the answer when they are taken away, swapped, or robbed of one branch.

An answer is read as the log-odds of the target against the negative target alone: a model without its thoughts is off
its track and may say anything else, which would make every ablation look fatal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import family, ran
from probes.superposition.belief import CandidateBelief, pieces
from probes.superposition.problems import Problem, graphs
from probes.superposition.thoughts import ContinuousThought, Edit, Given, Policy, think
from workbench.errors import InputError
from workbench.inputs import encode
from workbench.model import Model
from workbench.reading import Reading, derived
from workbench.stats import Design
from workbench.variables import about, described

EDITS = ("optimal", "other frontier", "not reachable")
ENDS = ("low", "high")
VARIABLES = {
    "logodds": about("log-odds of the target", "nats", "high"),
    **family("accuracy", about("share of answers that are right", better="high"), *ENDS),
    **family("free_accuracy", about("share of first choices that are right", better="high"), *ENDS),
    **family("effect", about("change of the target's log-odds", "nats", "low"), *ENDS, "p"),
}
VARIABLES["effect_p"]["assumes"] = "symmetric changes, or many problems: right for skewed changes as these become many"


def answers(
    model: Model,
    inputs: Any,
    problems: Sequence[Problem],
    names: Sequence[Sequence[str]],
    policy: Policy,
    *,
    then: str | Sequence[int] | None = None,
    edit: Edit | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds of target against negative [problem], whether the whole vocabulary's first choice is the target, and
    the thoughts that were fed [problem, thought, width].  ``names``: each problem's nodes as the model writes them."""
    if then is None and getattr(policy, "stops", True):
        raise InputError("Rows stop at different thoughts, so the answer stands at no common place. Give then=.")
    pairs = [[own[p.target], own[p.negative]] for own, p in zip(names, problems, strict=True)]
    belief = CandidateBelief(pairs, layers=[-1], mass=True)
    found = think(model, inputs, policy, readers=[belief], then=then, edit=edit, batch_size=batch_size, seed=seed)
    data = found.readings[0].data.isel(layer=0, position=-1)
    logit, top = data["logit"].values, data["first_id"].values
    target = np.array([pieces(model, own[0])[0] for own in pairs])
    return logit[:, 0] - logit[:, 1], top == target, found.vectors


def use(
    model: Model,
    inputs: Sequence[Any],
    problems: Sequence[Problem],
    names: Sequence[Sequence[str]],
    policy: Policy,
    *,
    then: str | Sequence[int] | None = None,
    mirrored: Sequence[Any] | None = None,
    edits: bool = True,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """The answer with the thoughts, and without them or with others.

    Args:
        inputs: the prompts; names: for each problem its nodes as the model writes them, in the order of their numbers.
        then: what is fed after the thoughts; the answer is the next token.
        mirrored: for each problem a prompt with the same graph and another root, from which the negative target can
            be reached and the target cannot: its thoughts are transplanted.  None: not done.
        edits: also remove single nodes from the thoughts (twice as many passes as all else).

    Conditions:
        plain; deleted: no thoughts at all; mean: each thought in its mean over the other problems; resampled: another
        problem's thoughts; mirrored: those of ``mirrored``.
        edit optimal, edit other frontier, edit not reachable: from every thought the direction of one node is taken
        (of its input embedding and of its row of the unembedding), later thoughts are made of what is left.  Thought t
        loses a node at distance t that lies on a way to the target; one that does not; one out of reach (the control).

    Returns: logodds [condition, problem]; accuracy (log-odds above 0, chance 0.5), free_accuracy (first choice of the
    whole vocabulary) and effect = mean of logodds less plain, over the problems where the edit was possible,
    [condition], with intervals over graphs (exact ones of accuracy, where each problem has a graph of its own).
    effect_p: two-sided, of each condition for itself; the larger of sign flips and the studentised bootstrap, which is
    right for symmetric changes of any number and for skewed ones of many.
    """
    if len(problems) < 2:
        raise InputError("Another problem's thoughts take two problems or more, and there is one.")
    if len(inputs) != len(problems) or len(names) != len(problems):
        raise InputError(f"There are {len(inputs)} prompts, {len(problems)} problems and {len(names)} lists of names.")
    settings: dict[str, Any] = {"then": then, "batch_size": batch_size, "seed": seed}

    def run(policy: Policy, **more: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return answers(model, inputs, problems, names, policy, **settings, **more)

    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    odds, right, vectors = run(policy)
    found["plain"] = odds, right
    found["deleted"] = run(ContinuousThought(0))[:2]
    n = len(problems)
    there = ~np.isnan(vectors).any(-1, keepdims=True)
    total, count = np.nansum(vectors, 0, keepdims=True), there.sum(0, keepdims=True)
    others = (total - np.nan_to_num(vectors)) / np.maximum(count - there, 1)
    # A problem that stopped early has as many mean thoughts as it had thoughts; where nobody else thought, its own.
    found["mean"] = run(Given(np.where(there, np.where(count - there > 0, others, vectors), np.nan)))[:2]
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    donor = np.empty(n, int)
    donor[order] = np.roll(order, 1)
    found["resampled"] = run(Given(vectors[donor]))[:2]
    if mirrored is not None:
        theirs = think(model, mirrored, policy, batch_size=batch_size, seed=seed).vectors
        found["mirrored"] = run(Given(theirs))[:2]
    if edits:
        for kind in EDITS:
            chosen = [_victims(p, kind, policy.n, np.random.default_rng([seed, i])) for i, p in enumerate(problems)]
            odds_, right_, _ = run(policy, edit=_remover(model, names, chosen))
            possible = np.array([any(v >= 0 for v in own) for own in chosen])
            found[f"edit {kind}"] = np.where(possible, odds_, np.nan), right_
    odds = np.stack([x for x, _ in found.values()])
    right = np.where(np.isnan(odds), np.nan, np.stack([x for _, x in found.values()]).astype(float))
    won = np.where(np.isnan(odds), np.nan, odds > 0)
    change = odds - odds[0]
    table: dict[str, Any] = {"logodds": (("condition", "problem"), odds)}
    design, said = Design(clusters=graphs(problems)), []
    for name, values in (("accuracy", won), ("free_accuracy", right), ("effect", change)):
        bounds = (-np.inf, np.inf) if name == "effect" else (0, 1)
        where = design.bootstrap(values.T, level=level, draws=draws, seed=seed, bounds=bounds)
        for end, own in (("", where.value), ("_low", where.low), ("_high", where.high)):
            table[name + end] = (("condition",), own)
        said.append(f"{name}: {where.said('graphs')}")
    # Each condition is a question of its own: p is of one, not of all together.
    p = [float(design.max_t(row, level=level, draws=draws, seed=seed).p) for row in change]
    table["effect_p"] = (("condition",), np.array(p))
    coords = {"condition": np.array(list(found), object), "problem": np.arange(n)}
    attrs = {"chart": "uses", "interval": "; ".join(said)}
    data = described(xr.Dataset(table, coords, attrs), VARIABLES)
    source = ran(model, encode(model, inputs, "last"))
    asked = {"policy": repr(policy), "then": then, "draws": draws, "level": level, "seed": seed}
    return derived("superposition.use", data, source, **asked)


def _victims(problem: Problem, kind: str, n: int, rng: np.random.Generator) -> list[int]:
    """For each thought the node that it loses; -1: none of that kind."""
    found = []
    for t in range(1, n + 1):
        group = problem.groups(t)
        at = {"optimal": group == 3, "other frontier": group == 2, "not reachable": problem.depth < 0}[kind]
        at = at & (np.arange(len(at)) != problem.negative)
        nodes = np.flatnonzero(at)
        found.append(int(rng.choice(nodes)) if len(nodes) else -1)
    return found


def _remover(model: Model, names: Sequence[Sequence[str]], chosen: list[list[int]]) -> Edit:
    table = model.token_vectors
    rows, _ = model.unembedding
    same = rows.shape == table.shape

    def remove(place: int, thoughts: Tensor, prompts: list[int]) -> Tensor:
        found = thoughts.float().clone()
        for row, i in enumerate(prompts):
            node = chosen[i][place - 1]
            if node < 0:
                continue
            token = pieces(model, names[i][node])[0]
            span = torch.stack([table[token].float(), rows[token].float()] if same else [table[token].float()])
            basis = torch.linalg.svd(span, full_matrices=False)
            kept = basis.Vh[basis.S > 1e-6 * basis.S[0]].to(found.device)
            found[row] -= (found[row] @ kept.T) @ kept
        return found

    return remove
