"""A trained probe for which nodes a state holds, with what a probe finds anywhere (control tasks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from probes.results import family
from probes.superposition.problems import Problem, graphs
from workbench.engine.hooks import neutral
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, auroc, nanmean
from workbench.variables import about, described

ENDS, AUC = ("low", "high"), "area under the ROC curve of the frontier"
VARIABLES = {
    "auc": about(f"{AUC}, by seed", better="high"),
    "control": about(f"{AUC}, by seed, trained on others' frontiers", "", "high", "null", "auc"),
    "selectivity": about(f"{AUC} above its control, by seed", better="high"),
    **family("auc_mean", about(AUC, better="high"), *ENDS),
    **family("control_mean", about(f"{AUC}, trained on others' frontiers", "", "high", "null", "auc_mean"), *ENDS),
    **family("selectivity_mean", about(f"{AUC} above its control", better="high"), *ENDS),
}


@neutral()
def decode_frontier(
    states: Reading | np.ndarray,
    problems: Sequence[Problem],
    nodes: Sequence[Sequence[Any]] | None = None,
    *,
    ahead: int = 1,
    kinds: Sequence[str] = ("linear", "mlp"),
    seeds: int = 3,
    held_out: float = 0.3,
    hidden: int = 128,
    steps: int = 300,
    decay: float = 1e-2,
    draws: int = 1000,
    level: float = 0.95,
) -> Reading:
    """Can the frontier be decoded from states by a probe that was trained on other graphs?

    Args:
        states: [problem, layer, place, width], or the reading of ``States`` at every place of ``think``.
        nodes: what each problem's nodes are called (token ids, names); the probe has one output for each name, so names
            must mean the same in all problems.  None: their numbers.
        kinds: "linear", or "mlp" with one layer of ``hidden`` units.
        held_out: share of problems that are tested on; identical graphs never stand on both sides.

    Returns, [kind, seed, layer, place]: auc, over the nodes of held-out problems, frontier against others; control, of
    a probe trained alike on frontiers that were shuffled among the problems and tested on theirs: what can be learned
    of the names alone; selectivity = auc - control (Hewitt & Liang 2019).  auc_mean and so on: means over problems,
    each its mean over the seeds that held it out, with intervals over graphs (_low, _high).  They say how far other
    problems would change the number of these probes; the seeds beside each other, what other training would.
    """
    sources = (states,) if isinstance(states, Reading) else ()
    if isinstance(states, Reading):
        states = states["state"].transpose("prompt", "layer", "position", ...).values
    states = np.asarray(states, np.float32)
    if states.ndim != 4 or len(states) != len(problems):
        raise InputError(
            f"states has shape {states.shape} and there are {len(problems)} problems. Give [problem, layer, place, "
            "width]."
        )
    if unknown := set(kinds) - {"linear", "mlp"}:
        raise InputError(f"kinds={sorted(unknown)} are unknown. Use 'linear' and 'mlp'.")
    named = [[str(x) for x in (own if nodes is None else nodes[i])] for i, own in enumerate(_numbers(problems))]
    outputs = sorted({x for own in named for x in own})
    column = {name: j for j, name in enumerate(outputs)}
    n, layers, places, _ = states.shape
    here = np.zeros((n, len(outputs)), bool)
    ring = np.zeros((n, places, len(outputs)), bool)
    for i, problem in enumerate(problems):
        at = [column[x] for x in named[i]]
        here[i, at] = True
        for t in range(places):
            ring[i, t, at] = problem.depth == t + ahead
    graph = graphs(problems)
    shape = (len(kinds), seeds, layers, places)
    each = {name: np.full((n, *shape), np.nan) for name in ("auc", "control")}
    for s in range(seeds):
        rng = np.random.default_rng(s)
        different = int(graph.max()) + 1
        test = np.isin(graph, rng.permutation(different)[: max(1, round(held_out * different))])
        if test.all() or not test.any():
            raise InputError(f"{n} problems have too few different graphs to hold some out. Give more problems.")
        order = rng.permutation(n)
        shuffled = np.empty(n, int)
        shuffled[order] = np.roll(order, 1)  # nobody keeps its own
        for t in range(places):
            known = np.isfinite(states[:, :, t]).all((1, 2))
            if not ring[known, t].any() or (known & ~test).sum() < 4 or not (known & test).any():
                continue
            for name, truth, there in (("auc", ring[:, t], here), ("control", ring[shuffled, t], here[shuffled])):
                for k, kind in enumerate(kinds):
                    scores = _trained(
                        states[known, :, t], truth[known], there[known], test[known], kind, hidden, steps, decay, s
                    )
                    for l in range(layers):
                        for i, r in enumerate(np.flatnonzero(test & known)):
                            each[name][r, k, s, l, t] = auroc(scores[l, i, there[r]], truth[r, there[r]])
    each["selectivity"] = each["auc"] - each["control"]
    dims = ("kind", "seed", "layer", "place")
    design, table, said = Design(clusters=graph), {}, ""
    for name, values in each.items():
        table[name] = (dims, nanmean(values))
        bounds = (-1, 1) if name == "selectivity" else (0, 1)
        own = nanmean(values.transpose(2, 0, 1, 3, 4))
        where = design.bootstrap(own, bounds=bounds, draws=draws, level=level)
        for end, value in (("", where.value), ("_low", where.low), ("_high", where.high)):
            table[f"{name}_mean{end}"] = (("kind", "layer", "place"), value)
        said = said or where.said("graphs")
    coords = {"kind": list(kinds), "seed": np.arange(seeds), "layer": np.arange(layers)}
    data = xr.Dataset(table, coords, {"interval": said})
    settings: dict[str, Any] = {"ahead": ahead, "held_out": held_out, "hidden": hidden, "steps": steps, "decay": decay}
    settings |= {"draws": draws, "level": level}
    return derived("superposition.decode_frontier", described(data, VARIABLES), *sources, **settings)


def _numbers(problems: Sequence[Problem]) -> list[range]:
    return [range(len(p.names)) for p in problems]


def _trained(
    states: np.ndarray,
    truth: np.ndarray,
    there: np.ndarray,
    test: np.ndarray,
    kind: str,
    hidden: int,
    steps: int,
    decay: float,
    seed: int,
) -> np.ndarray:
    """[layer, held out, output] scores of probes for all layers at once, trained on the other problems."""
    x = torch.from_numpy(states).transpose(0, 1)  # [layer, problem, width]
    train, held = torch.from_numpy(~test), torch.from_numpy(test)
    centre, spread = x[:, train].mean(1, keepdim=True), x[:, train].std(1, keepdim=True).clamp_min(1e-6)
    x = (x - centre) / spread
    y, seen = torch.from_numpy(truth[~test]).float(), torch.from_numpy(there[~test]).float()
    layers, _, width = x.shape
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        sizes = [width, truth.shape[1]] if kind == "linear" else [width, hidden, truth.shape[1]]
        parameters = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            parameters += [nn.Parameter(torch.randn(layers, a, b) * a**-0.5), nn.Parameter(torch.zeros(layers, 1, b))]
        optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=decay)

        def scores(z: torch.Tensor) -> torch.Tensor:
            z = torch.baddbmm(parameters[1], z, parameters[0])
            return z if kind == "linear" else torch.baddbmm(parameters[3], z.relu(), parameters[2])

        own, weight = x[:, train], seen.expand(layers, -1, -1)
        for _ in range(steps):
            optimiser.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(
                scores(own), y.expand(layers, -1, -1), weight=weight, reduction="sum"
            )
            (loss / weight.sum()).backward()
            optimiser.step()
        return scores(x[:, held]).detach().numpy()
