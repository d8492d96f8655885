"""How much each expert serves, how sure the gate is, and how even the load is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import family
from probes.routing.measures.documents import Clusters, Documents, shares
from probes.routing.tracer import GATE
from workbench.reading import Reading
from workbench.stats import entropy, over, p_value, ranks
from workbench.variables import about

if TYPE_CHECKING:
    from probes.routing.store import Trace

TWO, THREE = ("label", "block"), ("label", "block", "expert")
ENDS = ("low", "high")
VARIABLES = {
    **family("share", about("share of slots", short_name="share"), *ENDS),
    **family("weight_share", about("share of the weights applied"), *ENDS),
    **family("probability_share", about("share of the gate's probability"), *ENDS),
    "band_low": about("share of slots by chance, lower end", role="null", of="share"),
    "band_high": about("share of slots by chance, upper end", role="floor", of="share"),
    **family(
        "entropy", about("entropy of expert usage", "nats"), *ENDS, "corrected", "null",
        uniform=("chance", "{}, of even loads"),
    ),
    "effective_experts": about("effective number of experts", "experts"),
    **family("cv", about("coefficient of variation of the loads"), "null"),
    **family("gini", about("Gini coefficient of the loads"), "null"),
    **family("max_violation", about("largest load over its even share, less 1"), "null"),
    **family("dead", about("experts with less than a hundredth of their share", "experts"), "null"),
    **family("idle", about("share of slots that reached no routed expert"), *ENDS),
    "identity": about("share of slots that an identity expert took"),
}
GATE_VARIABLES = {
    **family("entropy_share", about("entropy of the gate over ln E"), *ENDS, "null"),
    **family("top", about("largest gate probability"), *ENDS, "null"),
    **family("margin", about("gate probability of the k-th expert less that of the next"), *ENDS, "null"),
    **family("chosen", about("gate probability of the experts applied"), *ENDS, "null"),
    **family(
        "information", about("information between token and expert", "nats", "high"), *ENDS, "corrected", "null"
    ),
    **family(
        "document_information", about("information between document and expert", "nats", "high"), *ENDS, "corrected"
    ),
    "histogram": about("share of tokens by entropy of the gate", short_name="tokens"),
}
BALANCE_VARIABLES = {
    **family("aux_loss", about("load-balancing loss", better="low"), *ENDS, "corrected", "null"),
    **family("z_loss", about("z-loss of the router", "nats²", "low"), *ENDS),
    "aux_loss_pooled": about("load-balancing loss of loads averaged over blocks", better="low"),
}
REORDERING_VARIABLES = {
    **family("moved", about("share of slots whose expert is not among the gate's own top k"), *ENDS, "null"),
    "bias": about("selection bias of the router"),
    **family("bias_load", about("rank correlation of selection bias and load"), "p"),
}


def usage(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """How the slots of each label are shared among the experts.

    share [label, block, expert]: of slots, weight_share: of the weights applied in them, probability_share: of the
    gate's full distribution (each where it is known), with interval; band_low, band_high: ``level`` of the shares of
    one expert if as many slots went to experts at random, a token's to different ones (a normal band).
    entropy [label, block] of share in nats, with interval; it is as counted, too low where slots are few
    (entropy_corrected is less that bias, as documents drawn again show it), and effective_experts exp(entropy).
    Imbalance of share: cv, gini, max_violation = max share * E - 1 (Wang et al. 2024), dead: experts with less than a
    hundredth of their share; what as many random slots give for each and for entropy (_null).
    idle [label, block]: slots that reached no routed expert, with interval; identity: those that an identity expert
    took.
    """
    from scipy.special import ndtri

    documents = Documents(source, clusters=clusters)
    data, found = documents.data, {}
    for of in ("count", "weight", "probability"):
        if f"document_{of}" in data:
            own, name = Documents(documents, of), "share" if of == "count" else f"{of}_share"
            found |= own.shares(name, THREE, level=level, draws=draws if of == "count" else min(draws, 200), seed=seed)
            documents.methods |= own.methods
    e, k = documents.experts[None, :].astype(float), documents.k[None, :]
    slots = documents.by_label().sum(-1)
    tokens = data["token_count"].values[:, None]
    # How much less than independent slots those of one token vary, since it is given no expert twice.
    apart = over(1 - np.maximum(1, over(slots, tokens)) / e, 1 - 1 / e)
    spread = ndtri((1 + level) / 2) * np.sqrt(over(apart * (1 - 1 / e), e * slots))
    found["band_low"], found["band_high"] = (TWO, np.maximum(0, 1 / e - spread)), (TWO, 1 / e + spread)
    rng = np.random.default_rng(seed)
    names = ("entropy", "cv", "gini", "max_violation", "dead")
    own, null = ({name: np.full(slots.shape, np.nan) for name in names} for _ in range(2))
    share = found["share"][1]
    for i, b in zip(*np.nonzero(slots > 0), strict=True):
        n = documents.experts[b]
        random = rng.multinomial(int(slots[i, b]), np.full(n, 1 / n), size=200) / slots[i, b]
        random = np.clip(1 / n + (random - 1 / n) * np.sqrt(np.nan_to_num(apart[i, b])), 0, 1)
        for name, value in _imbalance(random).items():
            null[name][i, b] = value.mean()
        for name, value in _imbalance(share[i, b, :n]).items():
            own[name][i, b] = value
    for name in names:
        found[name], found[f"{name}_null"] = (TWO, own[name]), (TWO, null[name])
    found |= documents.estimate(
        "entropy", TWO, lambda w: entropy(shares(documents.by_label(w))), level=level, draws=draws, seed=seed,
        within=(0, np.log(e)), biased=True,
    )  # fmt: skip
    found["entropy_uniform"] = (("block",), np.log(documents.experts))
    found["effective_experts"] = (TWO, np.exp(own["entropy"]))
    all_slots = documents.tokens[:, None] * documents.k
    found |= documents.means(
        "idle", TWO, 1 - documents.count.sum(-1) / all_slots, all_slots, level=level, draws=min(draws, 200), seed=seed,
        bounds=(0, 1),
    )  # fmt: skip
    found["identity"] = (TWO, over(data["identity_count"].values, tokens * k))
    return documents.table("usage", found, VARIABLES, {"draws": draws, "level": level, "seed": seed})


def _imbalance(share: np.ndarray) -> dict[str, np.ndarray]:
    """Of shares [..., expert]."""
    n = share.shape[-1]
    ordered = np.sort(share, -1)
    return {
        "entropy": entropy(share),
        "cv": share.std(-1) * n,
        "gini": (2 * (np.arange(1, n + 1) * ordered).sum(-1) / np.maximum(ordered.sum(-1), 1e-300) - (n + 1)) / n,
        "max_violation": share.max(-1) * n - 1,
        "dead": (share < 0.01 / n).sum(-1).astype(float),
    }


def gate(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """How sure the gate is of each token, and how much its choice depends on the token.  Needs scores=True.

    Means over tokens [label, block], each with interval and what a gate gives that is the same for every expert
    (_null): entropy_share H(p) / ln E (1); top, the largest p (1/E); margin, p of the k-th less the next (0); chosen,
    p summed over the experts applied (as many as they are, over E).
    information [label, block]: H(mean p) - mean H(p) in nats, what token and expert tell of each other; 0 for a gate
    that ignores its token.  It splits into document_information, between documents, and the rest, within them.  That
    part has no null: documents whose tokens are of one kind show some of it, too.
    histogram [label, block, bin]: share of tokens by H(p) / ln E.
    """
    documents = Documents(source, "probability", clusters=clusters)
    sums = documents.data[f"{documents.kind}_gate"].values * documents.tokens[:, None, None]
    e = documents.experts.astype(float)
    each = entropy(documents.count / documents.tokens[:, None, None]) * documents.tokens[:, None]

    def means(weights: np.ndarray) -> np.ndarray:
        total = (weights @ documents.tokens)[..., None]
        mean = over(np.tensordot(weights, sums, 1), total[..., None])
        whole = entropy(over(documents.by_label(weights), total[..., None]))
        of = {name: mean[..., i] for i, name in enumerate(GATE)}
        between = whole - over(np.tensordot(weights, each, 1), total)
        parts = of["entropy"] / np.log(np.maximum(e, 2)), of["top"], of["margin"], of["chosen"]
        return np.stack([*parts, whole - of["entropy"], between], -1)

    nulls = {
        "entropy_share": np.ones(len(e)), "top": 1 / e, "margin": 0 * e, "chosen": documents.active() / e,
        "information": 0 * e, "document_information": None,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for i, (name, null) in enumerate(nulls.items()):
        biased = "information" in name
        found |= documents.estimate(
            name, TWO, lambda w, i=i: means(w)[..., i], level=level, draws=draws, seed=seed,
            within=(0, np.log(e)) if biased else None, biased=biased,
        )  # fmt: skip
        if null is not None:
            found[f"{name}_null"] = (("block",), null)
    found["histogram"] = ((*TWO, "bin"), shares(documents.data["gate_histogram"].values))
    return documents.table(
        "gate", found, GATE_VARIABLES, {"draws": draws, "level": level, "seed": seed}, bin=documents.data["bin"].values
    )


def balance(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """Load-balancing loss and z-loss of every block by itself.  Needs scores=True.

    aux_loss [block] = E sum_e f_e P_e with f the shares of slots and P the mean gate probability over all documents
    (Switch, eq. 4); 1 if either is even (aux_loss_null).  z_loss [block]: mean squared log-sum-exp of the scores
    (ST-MoE, eq. 5).  Both with interval.  aux_loss_pooled (a number): of f and P averaged over the blocks first, as
    transformers computes it (there times k), which hides what evens out between blocks.
    """
    gates = Documents(source, "probability", clusters=clusters)
    documents = Documents(gates)
    squares = documents.data[f"{documents.kind}_gate"].values[..., GATE.index("log_sum_square")]
    e = documents.experts

    def losses(weights: np.ndarray) -> np.ndarray:
        f, p = (shares(x.by_label(weights).sum(-3)) for x in (documents, gates))
        weight = weights.sum(-2) * documents.tokens
        return np.stack([e * (f * p).sum(-1), weight @ squares / weight.sum(-1, keepdims=True)], -2)

    settings = {"level": level, "draws": draws, "seed": seed}
    f, p = (shares(x.count.sum(0)).mean(0) for x in (documents, gates))
    return documents.table(
        "balance",
        {
            **documents.estimate(
                "aux_loss", ("block",), lambda w: losses(w)[..., 0, :], within=(0, e), biased=True, **settings
            ),
            "aux_loss_null": (("block",), np.ones(len(e))),
            **documents.estimate("z_loss", ("block",), lambda w: losses(w)[..., 1, :], within=(0, np.inf), **settings),
            "aux_loss_pooled": float(e.max() * (f * p).sum()),
        },
        BALANCE_VARIABLES,
        {"draws": draws, "level": level, "seed": seed},
    )  # fmt: skip


def reordering(
    source: Reading | Trace, model: Any = None, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95,
    seed: int = 0,
) -> Reading:  # fmt: skip
    """What selection biases and groups change: slots whose expert is not among the gate's own top k.

    moved [label, block]: share of slots, with interval; 0 (_null) where routing is the top k of the scores, as most
    tools take it to be.  Needs scores=True.  With ``model`` and a router that has a bias for each expert: bias [block,
    expert], bias_load [block]: Spearman's correlation of bias and load, bias_load_p over permutations of the experts.
    """
    documents = Documents(source, "probability", clusters=clusters)
    own = documents.data[f"{documents.kind}_gate"].values[..., GATE.index("moved")] * documents.tokens[:, None]
    slots = documents.tokens[:, None] * documents.k
    settings = {"draws": draws, "level": level, "seed": seed}
    found = documents.means("moved", TWO, own / slots, slots, bounds=(0, 1), **settings)
    found["moved_null"] = (("block",), np.zeros(len(documents.blocks)))
    if model is None:
        return documents.table("reordering", found, REORDERING_VARIABLES, settings)
    load = documents.data["usage_count"].values.sum(0).astype(float)
    biases, r, p = np.full(load.shape, np.nan), *np.full((2, len(load)), np.nan)
    rng = np.random.default_rng(seed)
    for b, block in enumerate(documents.blocks):
        n = int(documents.experts[b])
        bias = selection_bias(model, int(block))
        if bias is None:
            continue
        biases[b, :n] = bias[:n]
        x, y = (ranks(v) - (n + 1) / 2 for v in (bias[:n], load[b, :n]))
        scale = max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-300)
        r[b] = float(x @ y) / scale
        null = np.array([rng.permutation(x) @ y for _ in range(999)]) / scale
        p[b] = p_value(np.abs(r[b]), np.abs(null))
    found |= {"bias": (("block", "expert"), biases), "bias_load": (("block",), r), "bias_load_p": (("block",), p)}
    return documents.table("reordering", found, REORDERING_VARIABLES, settings)


def selection_bias(model: Any, block: int) -> np.ndarray | None:
    """[experts] what a router adds to its scores for the selection alone; None where there is no such thing."""
    from workbench.anatomy.moe import moe_of

    layer = moe_of(model, block)
    if not layer.router:
        return None
    parent = layer.router.rsplit(".", 1)[0]
    for path in (layer.router, parent):
        module = model.module.get_submodule(path)
        for name, value in [*module.named_buffers(), *module.named_parameters()]:
            if (
                re.search(r"(correction|expert|routing|selection|score)_bias", name)
                and value.numel() >= layer.n_experts
            ):
                return value.detach().double().cpu().numpy().ravel()
    return None
