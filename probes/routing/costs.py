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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import family, ran
from probes.routing.duplicates import near_duplicates, said
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
CONTROLS = 8
"""Other sets in an untrained twin, whose mean is all that is told of them."""
ENDS, NATS = ("low", "high"), "nats a token"
VARIABLES = {
    **family(
        "delta", about("cost of dropping the experts", NATS, "high"), *ENDS,
        random=("null", "cost of dropping other sets"),
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
    "possible": about("other sets that there are", "sets", role="count", of="delta_random"),
    "shared": about("experts that the set shares with the claim", "experts", role="count", of="delta_random"),
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
Clusters = Sequence[Any] | Literal[False] | None
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
        sets, total = len(self.others), self.tokens.sum()
        nothing = np.full(len(self.tokens), np.nan)
        excess = self.own - self.others.mean(0) if sets else nothing
        replaced = self.routes.mean(0) if len(self.routes) else nothing
        design = Design(self.clusters, weights=self.tokens)
        found, how = _intervals(
            design, {"delta": self.own, "excess": excess, "replaced": replaced}, level=level, draws=draws, seed=seed
        )
        found["delta_random"] = ("draw",), self.others.sum(1) / total
        found["delta_replaced"] = ("route",), self.routes.sum(1) / total
        found["sets"], found["possible"] = sets, sets if self.possible is None else self.possible
        found["p"] = float(design.max_t(over(excess, self.tokens), level=level, draws=draws, seed=seed).p)
        found["p_random"] = float(p_value(self.own.sum(), self.others.sum(1))) if sets else np.nan
        found["p_random_least"] = 1 / (1 + sets) if sets else np.nan
        return xr.Dataset(found, attrs={"interval": how})


def _intervals(design: Design, nats: Mapping[str, np.ndarray], **settings: Any) -> tuple[dict[str, Any], str]:
    """Nats of documents -> nats a token with the ends of intervals over documents, and how these were made."""
    each = np.stack([over(values, design.weights) for values in nats.values()], 1)
    interval = design.bootstrap(each, **settings)
    found: dict[str, Any] = {}
    for i, name in enumerate(nats):
        for end, values in (("", interval.value), ("_low", interval.low), ("_high", interval.high)):
            found[name + end] = float(values[i])
    there = interval._replace(units=interval.units[interval.units > 0])  # of no sets or routes there is no mean
    return found, there.said("documents" if design.n == design.rows else "clusters of documents")


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
    table = _table(list(costs), [own.told(level, draws, seed) for own in costs.values()], smallest, level)
    _warn(table, level, 3)
    return table


def _table(names: list[str], rows: list[xr.Dataset], smallest: float, level: float) -> xr.Dataset:
    """Claims beside each other, with the false discovery rate over them, and which are backed."""
    most = {size: max(row.sizes[size] for row in rows) for size in ("draw", "route")}

    def beside(name: Any) -> tuple[tuple[Any, ...], np.ndarray]:
        dims = rows[0][name].dims
        values = [row[name].values for row in rows]
        if dims:  # NaN behind the last set or route of a claim that has fewer
            values = [np.r_[own, np.full(most[str(dims[0])] - len(own), np.nan)] for own in values]
        return ("claim", *dims), np.stack(values)

    own: dict[str, Any] = {str(name): beside(name) for name in rows[0].data_vars}
    own |= {name: ("claim", [row.attrs[name] for row in rows]) for name in OWN if name in rows[0].attrs}
    table = xr.Dataset(own, {"claim": np.array(names, object)})
    table["q"], table["q_random"] = ("claim", fdr(table["p"].values)), ("claim", fdr(table["p_random"].values))
    lower = np.minimum(table["delta_low"], table["excess_low"])
    table["backed"] = (table["q_random"] <= 1 - level + 1e-12) & (lower >= smallest)
    for name in ("interval", "clusters"):
        if how := sorted({row.attrs[name] for row in rows if name in row.attrs}):
            table.attrs[name] = "; ".join(how)
    return table.assign_attrs(smallest=smallest, level=level)


def _warn(table: xr.Dataset, level: float, stack: int) -> None:
    """Say where no claim of the table could be backed by itself, and what would help."""
    claims = table.sizes["claim"]
    needed = draws_for(1 - level, claims)
    alone, more, narrow = [], [], []
    for name, sets, possible in zip(table["claim"].values, table["sets"].values, table["possible"].values, strict=True):
        if not sets:
            alone.append(f"{name!r}")
        elif sets < needed:
            least = f"{name!r} ({sets}: at least {least_q(int(sets), claims):.2g})"
            (more if possible >= needed else narrow).append(least)
    said = []
    if more:
        said.append(f"Give sets={needed} for {', '.join(more)}.")
    if narrow:
        said.append(
            f"The caliper holds no more for {', '.join(narrow)}: widen it (caliper=1: experts of any load), or make "
            "fewer claims."
        )
    if alone:
        said.append(
            f"{', '.join(alone)}: no other experts of nearly that load, so no p and no star. Widen the caliper "
            "(caliper=1: experts of any load)."
        )
    if said:
        of = f"q_random of one of {claims} claims" if claims > 1 else "p_random"
        warnings.warn(f"Too few sets for {of} to reach {1 - level:.2g}. " + " ".join(said), stacklevel=stack)


@neutral()
def effect(
    model: Model,
    inputs: Any,
    experts: Experts,
    *,
    loads: xr.DataArray | None = None,
    caliper: float = CALIPER,
    sets: int | None = None,
    routes: int = 8,
    control: Model | str | None = None,
    clusters: Clusters = None,
    renormalise: bool = True,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """What dropping experts costs in nats a token, beside dropping as many others and beside other routes.

    Parameters
    ----------
    inputs
        Documents.
    experts
        Block -> experts.
    loads
        [block, expert] slots to match other experts by; None: those in these documents themselves.  (Loads over other
        documents do not match: experts chosen for a label serve more of its documents than others do.)
    caliper
        By what share of the larger one the loads of an expert and of another that stands for it may differ: with 0.5
        the larger is at most twice the smaller.  1: experts of any load, where a block has few.
    sets
        How many other sets of experts are dropped; each takes a pass over the documents.  None: as many as p_random
        needs to reach 1 - ``level`` (19 for 0.95).
    routes
        How many random routes.
    control
        "untrained": the same claim in a model of the same configuration with fresh weights
        (:meth:`workbench.Model.untrained`), as delta_untrained and excess_untrained, which takes the memory of the
        model once more, and its passes; or another model (an early checkpoint).
    clusters
        [document] labels of documents that were not sampled independently and count as one: passages of one book.
        None: near-duplicates (:func:`probes.routing.duplicates.near_duplicates`); False: each document by itself.
    draws, level, seed
        Of intervals and p over documents.

    Returns
    -------
    Reading
        Costs in nats a token, over all predicted tokens, with intervals over documents (_low, _high; the attribute
        ``interval`` says how these were made):

        delta: what dropping the experts costs; delta_random [draw]: what dropping each of ``sets`` other sets costs,
        drawn evenly, without repeats, from all sets of as many experts near in load (``possible`` of them;
        :class:`probes.routing.matched.Family`).  NaN behind the last, where there are not as many as asked for.
        A set may share experts with the claim: ``shared`` [draw].
        slots, slots_random [draw]: slots that each loses in these documents.  Where slots_random are fewer, part of an
        excess is the load, and ``replaced`` is the fairer comparison.
        excess: delta less the mean of delta_random; sets that share experts with the claim make it smaller.
        delta_replaced [route], replaced: what it costs when the experts' slots go to random others with their weights,
        so that the compute stays; and the mean.  Near delta: these experts are missed, and not just the slots.
        p: two-sided, of the documents' excess: the larger p of sign flips and of a studentised bootstrap
        (:meth:`workbench.stats.Design.max_t`), right for skewed costs, too.  It describes these sets (would other
        documents show an excess over them?), and says nothing of other sets.
        p_random: one-sided: the rank of delta among the sets, p_random_least or more.  Would other sets cost as much?
        Exact for claims of any size if experts near in load are exchangeable.
        The attribute experts is JSON: {"block": [expert, ...]}.

    Warns
    -----
    UserWarning
        Where so few sets are near in load, or were asked for, that p_random cannot reach 1 - ``level``.

    Raises
    ------
    InputError
        For experts that are not there, and where there is no other set of as many, whatever its load.
    """
    found = _effect(
        model, inputs, experts, sets=draws_for(1 - level, 1) if sets is None else sets, loads=loads, caliper=caliper,
        routes=routes, control=_control(model, control), clusters=clusters, renormalise=renormalise,
        batch_size=batch_size, draws=draws, level=level, seed=seed,
    )  # fmt: skip
    _warn(found.data.expand_dims(claim=["the claim"]), level, 4)
    return found


def _effect(
    model: Model, inputs: Any, experts: Experts, *, sets: int, loads: xr.DataArray | None, caliper: float, routes: int,
    control: Model | None, clusters: Clusters, renormalise: bool, batch_size: int | None, draws: int,
    level: float, seed: int,
) -> Reading:  # fmt: skip
    experts = _asked(model, experts)
    prompts = encode(model, inputs)
    cluster, note = _clusters(prompts, clusters)
    passes = {"caliper": caliper, "renormalise": renormalise, "batch_size": batch_size, "seed": seed}
    costs, extra, plain = _measured(model, prompts, experts, loads=loads, sets=sets, routes=routes, **passes)
    table = Costs(clusters=cluster, **costs).told(level, draws, seed).assign(extra)
    table = table.pad(draw=(0, sets - table.sizes["draw"]), constant_values=np.nan)
    if control is not None:
        null, *_ = _measured(control, prompts, experts, loads=None, sets=min(sets, CONTROLS), routes=0, **passes)
        own, others, total = null["own"].sum(), null["others"].sum(1), null["tokens"].sum()
        table["delta_untrained"] = own / total
        table["excess_untrained"] = (own - others.mean()) / total if len(others) else np.nan
    nll = float(plain.sum() / costs["tokens"].sum())
    attrs = {"documents": len(plain), "nll": nll, "experts": json.dumps(experts), **note}
    settings = {
        "experts": experts, "sets": sets, "routes": routes, "caliper": caliper, "renormalise": renormalise,
        "loads": loads is not None, "clusters": _kind(clusters), "control": control and control.name,
        "draws": draws, "level": level, "seed": seed,
    }  # fmt: skip
    return derived("routing.effect", described(table.assign_attrs(attrs), VARIABLES), ran(model, prompts), **settings)


def _asked(model: Model, experts: Experts) -> dict[int, list[int]]:
    """Experts by block, once each, after a look at whether there are others."""
    found = {block: sorted(set(listed(own, block))) for block, own in by_block(model, experts).items()}
    found = {block: own for block, own in found.items() if own}
    if not found:
        raise InputError("No expert is named, so there is nothing to drop. Give {block: [expert, ...]}.")
    every = {block: checked(model, block, own).n_experts for block, own in found.items()}
    if all(len(own) == every[block] for block, own in found.items()):
        raise InputError(
            f"These are all experts of block {', '.join(map(str, found))}, so that there is no other set of as many to "
            "compare with. Name some of them."
        )
    return found


def _measured(
    model: Model, prompts: list[Prompt], experts: Mapping[int, list[int]], *, loads: xr.DataArray | None, sets: int,
    routes: int, caliper: float, renormalise: bool, batch_size: int | None, seed: int,
) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:  # fmt: skip
    """What documents lose, which sets there were, and the nats of documents as they are."""
    total = {block: np.zeros(moe_of(model, block).n_experts) for block in experts}
    matched = total if loads is None else _given(loads, total)
    plain, tokens = _nll(model, prompts, batch_size, total)
    alternatives = alike(experts, matched, caliper)
    chosen = alternatives.draw(sets, seed)

    def cost(**change: Any) -> np.ndarray:
        with intervene(model, renormalise=renormalise, **change):
            return _nll(model, prompts, batch_size)[0] - plain

    def lost(dropped: Mapping[int, list[int]]) -> float:
        return float(sum(total[block][own].sum() for block, own in dropped.items()))

    def stacked(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack(rows) if rows else np.zeros((0, len(plain)))

    costs = {
        "tokens": tokens, "possible": alternatives.others, "own": cost(drop=experts),
        "others": stacked([cost(drop=other) for other in chosen]),
        "routes": stacked([cost(replace=experts, seed=seed + i) for i in range(routes)]),
    }  # fmt: skip
    shared = [sum(len({*own} & {*experts[block]}) for block, own in other.items()) for other in chosen]
    extra = {
        "slots": lost(experts), "slots_random": ("draw", np.array([lost(other) for other in chosen])),
        "shared": ("draw", np.array(shared, float)),
    }  # fmt: skip
    return costs, extra, plain


def _clusters(prompts: list[Prompt], clusters: Clusters) -> tuple[Any, dict[str, str]]:
    """[document] the cluster of each, and what an attribute says of it."""
    if clusters is None:
        found = near_duplicates(prompt.ids for prompt in prompts)
        return found, {"clusters": said(found)} if said(found) else {}
    if clusters is False:
        return None, {"clusters": "near-duplicate documents were not looked for"}
    if len(clusters) != len(prompts):
        raise InputError(f"clusters has {len(clusters)} labels for {len(prompts)} documents. Give one for each.")
    return clusters, {"clusters": f"{len(prompts)} documents in {len({*map(str, clusters)})} clusters, as given"}


def _kind(clusters: Clusters) -> str:
    return "near-duplicates" if clusters is None else "none" if clusters is False else "as given"


def _given(loads: xr.DataArray, like: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Loads of the blocks."""
    if not isinstance(loads, xr.DataArray) or loads.dims != ("block", "expert"):
        found = loads.dims if isinstance(loads, xr.DataArray) else type(loads).__name__
        raise InputError(
            f"loads is {found} and must be a DataArray (block, expert): reading.data['usage_count'].sum('label')."
        )
    there = loads["block"].values.tolist()
    if absent := [block for block in like if block not in there]:
        raise InputError(f"loads has the blocks {there}, and not {absent[0]}.")
    return {block: loads.sel(block=block).values[: len(own)].astype(float) for block, own in like.items()}


def _control(model: Model, control: Model | str | None) -> Model | None:
    if not isinstance(control, str):
        return control
    if control != "untrained":
        raise InputError(f"control={control!r} is unknown. Use 'untrained', or give a model.")
    return model.untrained()


@neutral()
def effects(
    model: Model,
    claims: Mapping[str, tuple[Any, Experts]],
    *,
    smallest: float = SMALLEST,
    sets: int | None = None,
    control: Model | str | None = None,
    clusters: Mapping[str, Sequence[Any]] | Literal[False] | None = None,
    level: float = 0.95,
    **settings: Any,
) -> Reading:
    """:func:`effect` of several claims, name -> (documents, experts), as one table: what a forest plot draws.

    Parameters
    ----------
    smallest
        The smallest effect of interest, in nats a token.
    sets
        As in :func:`effect`.  None: as many as let one claim of the table be backed where no other holds (19 for one
        claim, 99 for five).  With fewer, several claims must hold together.
    control
        As in :func:`effect`; one model for all claims.
    clusters
        Claim -> [document] labels, as in :func:`effect`, or False.
    level
        Of intervals; and 1 - ``level`` is the false discovery rate of the star.
    settings
        Further ones of :func:`effect`.

    Returns
    -------
    Reading
        The variables of effect with the dimension ``claim``, and documents, nll, experts (JSON) of each;
        q, q_random: p and p_random with the false discovery rate over the claims (Benjamini & Hochberg).
        backed: whether the experts are missed: q_random is 1 - ``level`` or less, and delta_low and excess_low are
        ``smallest`` or more.

    Warns
    -----
    UserWarning
        Where a claim has too few sets for q_random to reach 1 - ``level`` by itself: with how many it could.

    Raises
    ------
    InputError
        As :func:`effect`, before any pass; for a table without claims, and clusters of a claim that is not there.
    """
    if not claims:
        raise InputError("There is no claim to test: the table is empty. Give {name: (documents, experts)}.")
    if absent := set(clusters or ()) - set(claims):
        raise InputError(f"clusters names the claim {sorted(absent)[0]!r}, and there are {', '.join(claims)}.")
    for _, experts in claims.values():
        _asked(model, experts)
    given: dict[str, Any] = {
        "loads": None, "caliper": CALIPER, "routes": 8, "renormalise": True, "batch_size": None, "draws": 2000,
        "seed": 0, **settings, "sets": draws_for(1 - level, len(claims)) if sets is None else sets, "level": level,
        "control": _control(model, control),
    }  # fmt: skip
    found = [
        _effect(model, inputs, experts, clusters=False if clusters is False else (clusters or {}).get(name), **given)
        for name, (inputs, experts) in claims.items()
    ]
    table = described(_table(list(claims), [x.data for x in found], smallest, level), VARIABLES)
    _warn(table, level, 4)
    return derived("routing.effects", table.assign_attrs(chart="forest"), *found, smallest=smallest, level=level)


@neutral()
def regret(
    model: Model,
    inputs: Any,
    block: int,
    *,
    routes: int = 8,
    clusters: Clusters = None,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """What the router's own choice in one block is worth, in nats a token, beside random routes of the same compute.

    Every token of the block is given k experts drawn at random, with the weights of its own choice rank by rank.
    After the counterfactual routes of Yoon et al. 2026 (arXiv 2605.07260), who re-route one token at a time, draw
    near the router's scores, and look where a sampled route is better.

    Parameters
    ----------
    inputs
        Documents.
    routes
        How many random routes.
    clusters
        As in :func:`effect`.
    draws, level, seed
        Of intervals and p over documents.

    Returns
    -------
    Reading
        nll: of the model; nll_random [route]: under random routes.
        regret: nll less the mean of nll_random; below 0: the router chooses better than chance.  With an interval
        over documents (_low, _high; the attribute ``interval`` says how it was made) and p (two-sided, as of
        :func:`effect`).
        regret_best: nll less the best draw of each document.  Above 0: some random route was better; it grows with
        ``routes``, since the least of many is low by chance.
    """
    block, prompts = moe_of(model, block).block, encode(model, inputs)
    plain, tokens = _nll(model, prompts, batch_size)
    taken = []
    for i in range(routes):
        with intervene(model, force={block: "random"}, seed=seed + i):
            taken.append(_nll(model, prompts, batch_size)[0])
    cluster, note = _clusters(prompts, clusters)
    random, total, design = np.stack(taken), tokens.sum(), Design(cluster, weights=tokens)
    settings: dict[str, Any] = {"level": level, "draws": draws, "seed": seed}
    nats = {"regret": plain - random.mean(0), "regret_best": plain - random.min(0)}
    found, how = _intervals(design, nats, **settings)
    found |= {"nll": plain.sum() / total, "nll_random": ("route", random.sum(1) / total)}
    found["p"] = float(design.max_t(over(nats["regret"], tokens), **settings).p)
    attrs = {"block": block, "documents": len(plain), "interval": how} | note
    table = described(xr.Dataset(found, attrs=attrs), REGRET_VARIABLES)
    settings |= {"clusters": _kind(clusters)}
    return derived("routing.regret", table, ran(model, prompts), block=block, routes=routes, **settings)
