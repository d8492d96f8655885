"""What it costs to do without experts, or without the router's own choice, beside chance.

No observational statistic of routing says by itself that an expert matters (arXiv 2606.10703): what an expert is
claimed to be for should be shown by what happens without it, beside experts of the same load, beside other routes of
the same compute, and beside the same model before it has learned anything.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import family, ran
from probes.routing.interventions import Experts, by_block, checked, intervene, listed
from probes.routing.matched import alike
from workbench.anatomy.moe import moe_of
from workbench.engine.hooks import neutral
from workbench.engine.run import observe
from workbench.errors import InputError
from workbench.inputs import Batch, Prompt, encode
from workbench.readers import Output, Plan
from workbench.reading import Reading, derived
from workbench.readout import Readout
from workbench.sites import Site
from workbench.stats import Design, draws_for, fdr, least_q, over, p_value
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.model import Model

SMALLEST = 1e-3
"""Nats a token, a perplexity 0.1 % higher: costs below it are of no interest.  Models that have learned nothing show
effects of some 1e-4, which documents enough make as sure as any other."""
CALIPER = 0.5
"""Loads within a factor of two."""
ENDS, NATS = ("low", "high"), "nats a token"
VARIABLES = {
    **family(
        "delta", about("cost of dropping the experts", NATS, "high"), *ENDS,
        random=("null", "cost of dropping others near in load"),
        replaced=("null", "cost of giving their slots to random others"),
        untrained=("null", "{}, in a model that has learned nothing"),
    ),
    **family(
        "excess", about("cost above that of dropping others", NATS, "high"), *ENDS,
        untrained=("null", "{}, in a model that has learned nothing"),
    ),
    **family("replaced", about("mean cost of giving the slots to random others", NATS, "high"), *ENDS),
    **family("slots", about("slots lost", "slots"), random=("null", "slots that others lose")),
    "sets": about("other sets that were dropped", "sets", role="count", of="delta_random"),
    "possible": about("other sets near in load", "sets", role="count", of="delta_random"),
    "shared": about("experts that another set has in common with the claim", "experts", role="count", of="delta_random"),
    "p": about("p of the excess, over documents", "", "low", "p", "excess"),
    "q": about("false discovery rate of the excess, over documents", "", "low", "q", "excess"),
    "p_random": about("p of the cost, over sets", "", "low", "p", "delta"),
    "p_random_least": about("least p that so many sets can give"),
    "q_random": about("false discovery rate of the cost, over sets", "", "low", "q", "delta"),
    "documents": about("documents", role="count", of="delta"),
    "nll": about("loss of the model", NATS, "low"),
    "experts": about("experts dropped, by block (JSON)", role="label", of="delta"),
    "backed": about("whether the experts are missed", role="mask"),
}  # fmt: skip
REGRET_VARIABLES = {
    **family("nll", about("loss of the model", NATS, "low"), random=("null", "{}, under random routes")),
    **family("regret", about("loss less that under random routes", NATS, "low"), *ENDS),
    "p": about("p of the regret, over documents", "", "low", "p", "regret"),
    **family("regret_best", about("loss less that under each document's best random route", NATS, "low"), *ENDS),
}
OWN = ("documents", "nll", "experts")
"""Attributes of one claim that are variables of a table of several."""


@neutral()
def document_nll(model: Model, inputs: Any, *, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nats and number of predicted tokens of each document, under whatever is being done to the model."""
    return _nll(model, encode(model, inputs), batch_size)


def _nll(
    model: Model, prompts: list[Prompt], batch_size: int | None, loads: Mapping[int, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and predicted tokens of each document; slots of each expert are added to ``loads``, block -> [expert]."""
    last, readout, loads = Site("resid", model.n_layers), Readout(model), loads or {}

    def look(states: dict[Any, Any], batch: Batch) -> dict[str, Any]:
        ids = [prompts[p].ids[at + 1 : at + 2] for p, at in zip(batch.prompt, batch.position, strict=True)]
        some = torch.tensor([i for i, own in enumerate(ids) if own], dtype=torch.long)
        found: dict[str, Any] = {}
        if len(some):
            target = torch.tensor([own for own in ids if own], device=readout.weight.device)
            rows = states[last].index_select(0, some.to(states[last].device))
            found["nats"] = batch.prompt[some], -_said(readout, rows, target)
        for block, own in loads.items():
            index = states[Site("experts", block)].index.cpu().numpy().ravel()
            found[str(block)] = np.bincount(index[(index >= 0) & (index < len(own))], minlength=len(own))
        return found

    outputs = {"nats": Output(("prompt",), dtype=np.float64, combine="sum")}
    outputs |= {str(b): Output((f"expert of {b}",), dtype=np.int64, combine="sum") for b in loads}
    sites = [last, *(Site("experts", block) for block in loads)]
    plan = Plan(sites, outputs, look, {f"expert of {b}": len(own) for b, own in loads.items()})
    found = observe(model, prompts, plan, batch_size=batch_size)
    for block, own in loads.items():
        own += found[str(block)]
    return found["nats"], np.array([len(prompt.ids) - 1 for prompt in prompts])


def _said(readout: Readout, rows: Tensor, target: Tensor) -> Tensor:
    """[rows] log-probability (nats) of each row's own token [rows, 1]."""
    said = readout.read(readout.features(rows)[None], 1, targets=target).target_logprob
    assert said is not None
    return said[0, :, 0].double()


# ---------------------------------------------------------------- what follows from costs


@dataclass(frozen=True)
class Costs:
    """What a claim rests on: nats that each document loses.

    Attributes
    ----------
    tokens
        [document] predicted tokens, which documents are weighted by.
    own, others, routes
        [document] when the experts are dropped; [set, document] when other sets are; [route, document] when the
        experts' slots go to random others.
    possible
        How many other sets there are; None: those in ``others``.
    clusters
        [document] labels of documents that count as one (near-duplicates); None: each is its own.
    """

    tokens: np.ndarray
    own: np.ndarray
    others: np.ndarray
    routes: np.ndarray
    possible: int | None = None
    clusters: Sequence[Any] | None = None

    def told(self, level: float = 0.95, draws: int = 2000, seed: int = 0) -> xr.Dataset:
        """Costs in nats a token with intervals over documents, p over documents and p over sets."""
        design, total = _design(self.tokens, self.clusters), self.tokens.sum()
        none = np.full(len(self.tokens), np.nan)
        excess = self.own - self.others.mean(0) if len(self.others) else none
        replaced = self.routes.mean(0) if len(self.routes) else none
        found = _intervals(design, {"delta": self.own, "excess": excess, "replaced": replaced}, level, draws, seed)
        found["delta_random"] = ("draw",), self.others.sum(1) / total
        found["delta_replaced"] = ("route",), self.routes.sum(1) / total
        sets = len(self.others)
        found["sets"], found["possible"] = sets, sets if self.possible is None else self.possible
        found["p"] = float(design.flip(_each(design, excess), draws=draws, seed=seed).p)
        p = p_value(self.own.sum() / total, self.others.sum(1) / total) if sets else np.nan
        found["p_random"], found["p_random_least"] = float(p), 1 / (1 + sets) if sets else np.nan
        return found


def judged(
    costs: Mapping[str, Costs], *, smallest: float = SMALLEST, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> xr.Dataset:
    """The table of :func:`effects` from costs that were measured elsewhere, name of the claim -> costs.

    Parameters
    ----------
    costs
        As :class:`Costs` says.
    smallest, level, draws, seed
        As :func:`effects` says.
    """
    return _table(list(costs), [own.told(level, draws, seed) for own in costs.values()], smallest, level)


def _table(names: list[str], rows: list[xr.Dataset], smallest: float, level: float) -> xr.Dataset:
    """Claims beside each other, with the false discovery rate over them, and which are backed."""
    said = sorted({row.attrs["interval"] for row in rows})
    for size in ("draw", "route"):
        most = max(row.sizes[size] for row in rows)
        rows = [row.pad({size: (0, most - row.sizes[size])}, constant_values=np.nan) for row in rows]
    rows = [row.assign({n: row.attrs[n] for n in OWN if n in row.attrs}).drop_attrs() for row in rows]
    table = xr.concat(rows, "claim").assign_coords(claim=np.array(names, object))
    table["q"], table["q_random"] = ("claim", fdr(table["p"].values)), ("claim", fdr(table["p_random"].values))
    lower = np.minimum(table["delta_low"], table["excess_low"])
    table["backed"] = (table["q_random"] <= 1 - level + 1e-12) & (lower >= smallest)
    _warn(table, level)
    return table.assign_attrs(interval="; ".join(said), smallest=smallest, level=level)


def _warn(table: xr.Dataset, level: float) -> None:
    """Say where no claim of the table could be backed by itself, and what would help."""
    names, claims = [str(name) for name in table["claim"].values], table.sizes["claim"]
    needed, lines = draws_for(1 - level, claims), []
    for name, sets, possible in zip(names, table["sets"].values, table["possible"].values, strict=True):
        if sets >= needed:
            continue
        if not sets:
            lines.append(
                f"{name!r} has no other experts of nearly the load of its own: no p, and no star. Widen the caliper "
                "(caliper=1: experts of any load)."
            )
            continue
        said = f"{name!r} stands beside {sets} other sets: p_random is {1 / (1 + sets):.2g} or more"
        if claims > 1:
            said += f", and q_random {least_q(int(sets), claims):.2g} or more where no other of {claims} claims holds"
        cure = f"give sets={needed}" if possible >= needed else f"these are {'all' if sets == possible else 'nearly all'} near in load: widen the caliper (caliper=1: experts of any load)"
        lines.append(f"{said}; {cure}")
    if lines:
        warnings.warn(f"Too few sets for a level of {1 - level:.2g}. " + " ".join(lines), stacklevel=4)
