"""What routing over adapters says (:func:`probes.routing.adapters.adapter_routing`), beside what chance gives.

    usage(reading)  oracle_rate(reading)  agreement(reading)    the routing; every number over documents
    gram(model)  prototypes(model)                              what it routes by
    compare(model, texts, labels, oracle)  weighted(model, ..)  what it is worth beside other weights

Tokens of one document are not independent: intervals (``_low``, ``_high``; ``level``) are over documents, of which
near-duplicates count as one (``clusters=``: those of your own; False: none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.results import family, of_weights, ran
from probes.routing.adapters.tracing import adapter_names, mixed, oracle_adapters, projections
from probes.routing.costs import document_nll
from probes.routing.duplicates import near_duplicates, said
from probes.routing.measures.contrast import Contrast, Shares, against_mean, warn_of
from probes.routing.measures.documents import Clusters, clustered, intervals
from probes.routing.tracer import document_labels
from workbench.errors import InputError
from workbench.inputs import encode
from workbench.model import Model
from workbench.reading import Reading, derived
from workbench.stats import Design, Interval, fdr, over, p_value
from workbench.variables import about, described

ENDS = ("low", "high")
SHUFFLED = ("null", "{}, labels shuffled among documents")
VARIABLES = {
    **family("weight", about("mean weight of the adapter"), *ENDS),
    **family("mean_weight", about("mean weight of the adapter, over projections"), *ENDS),
    **family("chosen", about("share of tokens with the largest weight"), *ENDS),
    **family("mean_chosen", about("share of tokens with the largest weight, over projections"), *ENDS),
    "share_null": about("weight and share of tokens by chance", role="null", of="weight"),
    **family("entropy", about("entropy of a token's routing", "nats"), *ENDS, "random"),
    "entropy_null": about("entropy of a token's routing, of even weights", "nats", "", "chance", "entropy"),
    **family("mean_entropy", about("entropy of a token's routing, over projections", "nats"), *ENDS),
    "oracle_adapter": about("number of the label's own adapter", role="label"),
    **family(
        "rate", about("share of tokens whose largest weight is their own adapter's", better="high"),
        *ENDS, "null", "p", "q", shuffled=SHUFFLED,
    ),
    **family("mean_rate", about("share of tokens with their own adapter first", better="high"), *ENDS, "p"),
    **family(
        "probability", about("mean weight of the tokens' own adapter", better="high"),
        *ENDS, "null", "p", "q", shuffled=SHUFFLED,
    ),
    **family("mean_probability", about("mean weight of the tokens' own adapter, in all", better="high"), *ENDS, "p"),
    **family(
        "agreement", about("share of tokens that both projections give to one adapter"),
        *ENDS, "null", null_label=("null", "{}, by labels alone"),
    ),
    **family("agreement_excess", about("agreement of projections above its null"), *ENDS),
    "cosine": about("size of the cosine of two prototypes"),
    "cosine_null": about("size of the cosine of random directions", role="null", of="cosine"),
    "cosine_high": about("size of the cosine that 95 % of random directions are below", role="floor", of="cosine"),
    "cosine_p": about("p of the cosine", "", "low", "p", "cosine"),
    "cosine_q": about("false discovery rate of the cosine", "", "low", "q", "cosine"),
    "exact": about("size of the cosine of the prototype with the update's first direction", better="high"),
    "energy": about("share of the update's squared norm that its first direction has"),
    **family("nll", about("loss", "nats a token", "low"), *ENDS),
    **family("delta", about("loss less that under Arrow", "nats a token"), *ENDS, "p"),
    "document_nats": about("loss of the document", "nats", "low"),
    "document_tokens": about("tokens predicted", role="count", of="document_nats"),
    "document_label": about("label of the document", role="label"),
}  # fmt: skip


class _Documents:
    """Documents of a reading: their labels, and intervals over them."""

    def __init__(self, reading: Reading, draws: int, level: float, seed: int, clusters: Any = None) -> None:
        self.settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
        self.reading, self.data = reading, reading.data
        data = self.data
        if "document_weight" not in data:
            raise InputError("This is no reading of adapter_routing: it has no document_weight.")
        self.label, self.tokens = data["document_label"].values, data["document_tokens"].values
        if not self.tokens.all():
            raise InputError(f"Document {int(self.tokens.argmin())} has no token that was read. Leave it out.")
        self.names, self.adapters = (data[n].values.tolist() for n in ("label", "adapter"))
        self.cluster, self.said = clustered(data, clusters)
        self.design = Design(self.cluster, weights=self.tokens)
        self.methods: dict[str, str] = {}

    def means(self, name: str, dims: tuple[str, ...], values: np.ndarray) -> dict[str, Any]:
        """Means [label, ...] over tokens of documents' values [prompt, ...], with their intervals."""
        return self._ends(name, dims, self.design.bootstrap(values, by=self.label, **self.settings))

    def estimate(
        self, name: str, dims: tuple[str, ...], statistic: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, Any]:
        """A statistic of how often documents are there, [draws, prompt] -> [draws, ...], with its interval."""
        pure = len(np.unique(self.cluster * len(self.names) + self.label)) == len(np.unique(self.cluster))
        design = Design(self.cluster, self.label if pure else None)
        return self._ends(name, dims, design.bootstrap(statistic, **self.settings))

    def by_label(self, values: np.ndarray, times: np.ndarray) -> np.ndarray:
        """[draws, label, ...] means over tokens."""
        there = np.where(self.label == np.arange(len(self.names))[:, None], times[:, None] * self.tokens, 0)
        return np.tensordot(over(there, there.sum(-1, keepdims=True)), values, 1)

    def _ends(self, name: str, dims: tuple[str, ...], found: Interval) -> dict[str, Any]:
        self.methods[name] = found.said("documents")
        return {name: (dims, found.value), f"{name}_low": (dims, found.low), f"{name}_high": (dims, found.high)}

    def table(self, measure: str, variables: dict[str, Any], chart: str | None = None, **coords: Any) -> Reading:
        own = {n: self.data[n] for n in ("label", "adapter", "projection", "stage", "block", "kind")}
        attrs = {"documents": len(self.label)} | ({"chart": chart} if chart else {}) | intervals(self.methods)
        attrs |= {"clusters": self.said} if self.said else {}
        data = xr.Dataset(variables, {**own, **coords}, attrs)
        return derived(f"adapters.{measure}", described(data, VARIABLES), self.reading, **self.settings)


def usage(
    reading: Reading, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """The reading's weight, chosen and entropy by label, with intervals over documents within labels.

    weight, chosen [label, projection, adapter] and their null 1/N (share_null); entropy [label, projection, stage] in
    nats, entropy_null (ln N, ln k) and entropy_random as in the reading; mean_weight, mean_chosen [label, adapter] and
    mean_entropy [label, stage]: over projections; oracle_adapter [label], where it is known.
    """
    documents = _Documents(reading, draws, level, seed, clusters)
    found: dict[str, Any] = {
        "share_null": 1 / len(documents.adapters),
        "entropy_null": reading.data["routing_entropy_uniform"],
        "entropy_random": reading.data["routing_entropy_random"],
    }
    for name, last in (("weight", "adapter"), ("chosen", "adapter"), ("entropy", "stage")):
        values = reading.data[f"document_{name}"].values.astype(float)
        for of, prefix, dims in (
            (values, "", ("label", "projection", last)),
            (values.mean(1), "mean_", ("label", last)),
        ):
            found |= documents.means(prefix + name, dims, of)
    if "oracle_adapter" in reading:
        found["oracle_adapter"] = reading["oracle_adapter"]
    return documents.table("usage", found, chart="adapters")


def oracle_rate(
    reading: Reading, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """How often a label's tokens go to the adapter that was trained for it, and with what weight.

    rate (share of tokens whose largest weight is their own adapter's) and probability (their mean weight for it)
    [label, projection], each with interval, and two nulls: _null, 1/N; and labels shuffled among documents (_shuffled,
    their mean; _p and _q, the false discovery rate over all cells), which an adapter that is everyone's favourite does
    not pass.  mean_rate, mean_probability: over labels and projections.  (MTTL's ``expert_p``.)  p is of how far a
    label is above the mean of all labels, in standard errors
    (:class:`probes.routing.measures.contrast.Contrast`), so that documents of labels may differ in number and length.
    """
    documents = _Documents(reading, draws, level, seed, clusters)
    if "oracle_adapter" not in reading.data:
        raise InputError("The reading knows no label's own adapter. Trace with oracle={label: adapter}.")
    own, n = reading.data["oracle_adapter"].values, len(documents.names)
    labels, two = np.arange(n), ("label", "projection")
    found: dict[str, Any] = {}
    for name, source in (("rate", "chosen"), ("probability", "weight")):
        values = reading.data[f"document_{source}"].values.astype(float)

        def cells(shares: np.ndarray) -> np.ndarray:
            """[draws, label, projection, adapter] -> [draws, label, projection], of each label's own."""
            return shares[:, labels, :, own].swapaxes(0, 1)

        def mean(times: np.ndarray, values: np.ndarray = values, cells: Callable = cells) -> np.ndarray:
            return cells(documents.by_label(values, times)).mean((1, 2))

        def both(shares: Shares, cells: Callable = cells) -> np.ndarray:
            return np.stack([cells(against_mean(shares)), cells(shares.share)], 1)

        # With one label there is nothing to shuffle.
        tokens = documents.tokens.astype(float)
        total = np.broadcast_to(tokens[:, None], values.shape[:2])
        contrast = Contrast(
            values * tokens[:, None, None], total, tokens, documents.label, documents.cluster, fixed=n < 2
        )
        observed, null = contrast.test(both, draws, seed + 1)
        p = p_value(observed[0], null[:, 0])
        found |= documents.means(name, two, values[np.arange(len(values)), :, own[documents.label]])
        found |= documents.estimate(f"mean_{name}", (), mean)
        found |= {f"{name}_null": 1 / len(documents.adapters), f"{name}_shuffled": (two, null[:, 1].mean(0))}
        found |= {f"{name}_p": (two, p), f"{name}_q": (two, fdr(p))}
        found[f"mean_{name}_p"] = p_value(observed[0].mean(), null[:, 0].mean((1, 2)))
        warn_of(f"{name}_q", draws, int((~np.isnan(p)).sum()), contrast.ways())
    return documents.table("oracle_rate", found)


def agreement(
    reading: Reading, *, clusters: Clusters = None, draws: int = 200, level: float = 0.95, seed: int = 0
) -> Reading:
    """How often two projections give a token's largest weight to the same adapter.

    agreement [projection, projection_2] with interval; agreement_null: the product of both projections' shares, summed
    over adapters; agreement_excess above it, with interval; agreement_null_label: the same product within each label,
    which is what labels alone explain.  Needs a reading with trace=True.
    """
    documents = _Documents(reading, draws, level, seed, clusters)
    if "adapter_id" not in reading.data:
        raise InputError("The reading has no token's adapters. Trace with trace=True.")
    first, n = reading.data["adapter_id"].values, len(documents.adapters)
    held = first[..., None] == np.arange(n, dtype=np.int16)
    flat = held.reshape(*held.shape[:2], -1).astype(np.float32)
    same = np.stack([x @ x.T for x in flat]) / documents.tokens[:, None, None]
    share = held.sum(2) / documents.tokens[:, None, None]

    def pooled(values: np.ndarray, times: np.ndarray) -> np.ndarray:
        weight = times * documents.tokens
        return np.tensordot(weight / weight.sum(-1, keepdims=True), values, 1)

    def excess(times: np.ndarray) -> np.ndarray:
        mine = pooled(share, times)
        return pooled(same, times) - mine @ mine.swapaxes(-1, -2)

    two, once = ("projection", "projection_2"), np.ones((1, len(first)))
    mine, by_label = pooled(share, once)[0], documents.by_label(share, once)[0]
    each = np.bincount(documents.label, documents.tokens) / documents.tokens.sum()
    return documents.table(
        "agreement",
        {
            **documents.estimate("agreement", two, lambda times: pooled(same, times)),
            **documents.estimate("agreement_excess", two, excess),
            "agreement_null": (two, mine @ mine.T),
            "agreement_null_label": (two, np.einsum("l,lpa,lqa->pq", each, by_label, by_label)),
        },
        projection_2=reading.data["projection"].values,
    )


# ---------------------------------------------------------------- what it routes by


def prototypes(model: Model, *, names: Sequence[str] | None = None) -> dict[str, xr.DataArray]:
    """The prototypes that the routers hold: projection -> [adapter, width], float32; of unit length, of either sign."""
    found = projections(model)
    adapters = np.array(adapter_names(found, names), object)
    return {
        x.name: xr.DataArray(x.router.prototypes.float().cpu().numpy(), {"adapter": adapters}, ("adapter", "width"))
        for x in found
    }


def gram(model: Model, *, names: Sequence[str] | None = None, draws: int = 9999, seed: int = 0) -> Reading:
    """How alike the adapters' prototypes are: adapters with one prototype cannot be told apart by routing.

    cosine [projection, adapter, adapter_2]: |cos|.  Beside it, directions drawn at random in that width d:
    cosine_null [projection], their expectation sqrt(2 / (pi d)) (less 1/(4 d) of it); cosine_high: 95 % are below;
    cosine_p of each pair, and cosine_q, the false discovery rate over all pairs and projections.  No intervals:
    prototypes are weights, and nothing was sampled.

    exact [projection, adapter]: |cos| of the prototype with the top right singular vector of the adapter's update BA as
    it is now.  Below 1: PEFT's 15 power iterations did not converge (their start is random, so is the routing), or the
    adapter was trained on since.  energy: that singular value's share of the update's squared norm.
    """
    found, held = projections(model), list(prototypes(model, names=names).values())
    n, rng = held[0].sizes["adapter"], np.random.default_rng(seed)
    cosine, p = np.empty((2, len(found), n, n))
    null, high = np.empty((2, len(found)))
    exact, energy = np.empty((2, len(found), n))
    upper = np.triu_indices(n, 1)
    for i, (x, own) in enumerate(zip(found, held, strict=True)):
        unit = own.values / np.linalg.norm(own.values, axis=1, keepdims=True)
        width = unit.shape[1]
        cosine[i] = np.abs(unit @ unit.T)
        # One coordinate of a random unit vector.
        z = rng.standard_normal(draws)
        drawn = np.abs(z) / np.sqrt(z**2 + rng.chisquare(width - 1, draws))
        null[i], high[i] = np.sqrt(2 / (np.pi * width)), np.quantile(drawn, 0.95)
        p[i] = p_value(cosine[i], drawn[:, None, None])
        for e, name in enumerate(x.router.task_adapter_names):
            vector, energy[i, e] = _top(x.linear.lora_A[name].weight, x.linear.lora_B[name].weight)
            exact[i, e] = abs(unit[e] @ vector)
    q = np.full_like(p, np.nan)
    p[:, np.arange(n), np.arange(n)] = np.nan
    q[:, upper[0], upper[1]] = q[:, upper[1], upper[0]] = fdr(p[:, upper[0], upper[1]])
    pair = ("projection", "adapter", "adapter_2")
    adapters = held[0]["adapter"].values
    table = xr.Dataset(
        {
            "cosine": (pair, cosine), "cosine_p": (pair, p), "cosine_q": (pair, q), "cosine_null": (pair[:1], null),
            "cosine_high": (pair[:1], high), "exact": (pair[:2], exact), "energy": (pair[:2], energy),
        },
        {
            "projection": np.array([x.name for x in found], object), "adapter": adapters, "adapter_2": adapters,
            "block": ("projection", [x.block for x in found]), "kind": ("projection", [x.kind for x in found]),
        },
    )  # fmt: skip
    return derived("adapters.gram", described(table, VARIABLES), of_weights(model), draws=draws, seed=seed)


def _top(a: Tensor, b: Tensor) -> tuple[np.ndarray, float]:
    """Top right singular vector [in] of BA, and its share of the squared norm; A [rank, in], B [out, rank]."""
    q, r = torch.linalg.qr(a.detach().double().cpu().T)
    _, s, v = torch.linalg.svd(torch.linalg.qr(b.detach().double().cpu()).R @ r.T)
    return (q @ v[0]).numpy(), float(s[0] ** 2 / (s**2).sum())


# ---------------------------------------------------------------- what it is worth


@contextmanager
def weighted(model: Model, weights: Mapping[str, float], *, names: Sequence[str] | None = None) -> Iterator[None]:
    """Give every token these weights over adapters in every projection, in place of Arrow's, inside a ``with`` block.

    Adapters that are not named get 0; {} is the base model without adapters.  Scalings are kept.  Everything is put
    back after it, also by an error.

    Raises InputError for an adapter that the model does not have, and Refused where :func:`projections` does.
    """
    found = projections(model)
    adapters = adapter_names(found, names)
    unknown = set(weights) - set(adapters)
    if unknown:
        raise InputError(f"There is no adapter {min(unknown)!r} in {model.name}; there are {', '.join(adapters)}.")
    row = torch.tensor([[float(weights.get(a, 0)) for a in adapters]])

    def change(router: nn.Module, args: tuple, kwargs: dict[str, Any], update: Tensor) -> Tensor:
        x = args[0].to(update)
        return mixed(router, x.reshape(-1, x.shape[-1]), row.to(x), kwargs).view_as(update)

    with ExitStack() as stack:
        for x in found:
            stack.callback(x.router.register_forward_hook(change, with_kwargs=True).remove)
        yield


def compare(
    model: Model,
    inputs: Any,
    labels: Sequence[Any] | None = None,
    oracle: Mapping[Any, str] | None = None,
    *,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Nats a token under Arrow's routing, and what other ways to use the same adapters would cost or save.

    routing: "arrow"; "uniform": weight 1/N for every adapter; "oracle": the adapter of the document's label alone;
    "other": beside it, one of the other adapters alone, drawn at random for each document; "base": none.  The two in
    the middle need ``oracle``, a mapping label -> adapter.

    nll [routing], over all predicted tokens, with interval; delta [routing] = nll less Arrow's (positive: Arrow is
    better), with interval, both over the same documents (paired); delta_p: two-sided and family-wise over the routings
    (:meth:`workbench.stats.Design.max_t` of the documents' differences; near-duplicates count as one).

    document_nats [prompt, routing]; document_tokens, document_label [prompt].
    """
    prompts = encode(model, inputs)
    ids, own = [p.ids for p in prompts], document_labels(labels, len(prompts))
    if any(p.extras for p in prompts):
        raise InputError("compare() reads text, and some prompts came with images. Give texts or token ids.")
    short = next((i for i, x in enumerate(ids) if len(x) < 2), None)
    if short is not None:
        raise InputError(f"Document {short} has one token, so none is predicted. Leave it out.")
    adapters = adapter_names(projections(model), names)
    n, rng = len(adapters), np.random.default_rng(seed)

    def under(weights: Mapping[str, float], chosen: Sequence[int] = range(len(ids))) -> np.ndarray:
        with weighted(model, weights, names=names):
            return document_nll(model, [ids[i] for i in chosen], batch_size=batch_size)[0]

    def alone(adapter: np.ndarray) -> np.ndarray:
        nats = np.empty(len(ids))
        for e in np.unique(adapter):
            mine = np.flatnonzero(adapter == e)
            nats[mine] = under({adapters[e]: 1}, mine.tolist())
        return nats

    arrow, tokens = document_nll(model, ids, batch_size=batch_size)
    nats = {"arrow": arrow, "uniform": under(dict.fromkeys(adapters, 1 / n))}
    if oracle is not None:
        of = oracle_adapters(oracle, own, adapters)
        right = np.array([of[x] for x in own])
        nats["oracle"] = alone(right)
        if n > 1:
            nats["other"] = alone((right + rng.integers(1, n, len(right))) % n)
    nats["base"] = under({})
    values = np.stack(list(nats.values()), 1)
    apart = values - values[:, :1]
    cluster = near_duplicates(ids)
    design, alike = Design(cluster, weights=tokens), {"level": level, "draws": draws, "seed": seed}
    loss, delta = (design.bootstrap(x / tokens[:, None], **alike) for x in (values, apart))
    p = design.max_t(apart[:, 1:] / tokens[:, None], draws=draws, seed=seed).p
    one = ("routing",)
    table = xr.Dataset(
        {
            "nll": (one, loss.value), "nll_low": (one, loss.low), "nll_high": (one, loss.high),
            "delta": (one, delta.value), "delta_low": (one, delta.low), "delta_high": (one, delta.high),
            "delta_p": (one, np.r_[np.nan, p]), "document_nats": (("prompt", "routing"), values),
            "document_tokens": (("prompt",), tokens), "document_label": (("prompt",), np.array(own, object)),
        },
        {"routing": list(nats)},
        {"documents": len(ids), "interval": delta.said("documents")}
        | ({"clusters": said(cluster)} if said(cluster) else {}),
    )  # fmt: skip
    settings = {"oracle": None if oracle is None else dict(oracle), "draws": draws, "level": level, "seed": seed}
    return derived("adapters.compare", described(table, VARIABLES), ran(model, prompts), **settings)
