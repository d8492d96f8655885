"""How much each expert serves, how sure the gate is, and how even the load is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from probes.routing.measures.documents import Documents, entropy, interval, shares, with_interval
from probes.routing.tracer import GATE
from workbench.reading import Reading
from workbench.stats import p_value, ranked

TWO, THREE = ("label", "block"), ("label", "block", "expert")


def usage(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """How the slots of each label are shared among the experts.

    share [label, block, expert]: of slots, weight_share: of the weights applied in them, probability_share: of the
    gate's full distribution (where it was read), each with interval; band_low, band_high: 95 % of the shares of one
    expert if a router chose k of E at random for as many tokens (a normal band of the hypergeometric choice).
    entropy [label, block] of share in nats with the Miller-Madow correction and interval, and effective_experts
    exp(entropy).  Imbalance of share: cv, gini, max_violation = max share * E - 1 (Wang et al. 2024), dead: experts
    with less than a hundredth of their share; what a random router gives for each and for entropy (_null).
    idle [label, block]: slots that reached no routed expert, with interval; identity: those that an identity expert
    took.
    """
    documents = Documents(reading)
    count = documents.by_label()
    share = shares(count)
    found: dict[str, Any] = {}
    drawn = documents.bootstrap(shares, draws, seed)
    found |= with_interval("share", THREE, share, drawn)
    for of in ("weight", "probability"):
        if f"document_{of}" in reading.data:
            other = Documents(reading, of)
            found |= with_interval(
                f"{of}_share", THREE, shares(other.by_label()), other.bootstrap(shares, min(draws, 200), seed)
            )
    e, k = documents.experts[None, :], documents.k[None, :]
    tokens = reading.data["token_count"].values[:, None].clip(1)
    spread = 1.96 * np.sqrt(k / e * (1 - k / e) / tokens) / k
    found["band_low"], found["band_high"] = (TWO, np.maximum(0, 1 / e - spread)), (TWO, 1 / e + spread)
    rng = np.random.default_rng(seed)
    names = ("entropy", "cv", "gini", "max_violation", "dead")
    null = {name: np.zeros(share.shape[:2]) for name in names}
    own = {name: np.full(share.shape[:2], np.nan) for name in names}
    bias = ((count > 0).sum(-1) - 1) / (2 * np.maximum(1, count.sum(-1)))
    for i in range(share.shape[0]):
        for b, n in enumerate(documents.experts):
            slots = int(count[i, b].sum())
            random = rng.multinomial(slots, np.full(n, 1 / n), size=200) / max(1, slots)
            for name, value in _imbalance(random).items():
                null[name][i, b] = value.mean()
            for name, value in _imbalance(share[i, b, :n]).items():
                own[name][i, b] = value
    own["entropy"] = own["entropy"] + bias
    null["entropy"] = np.minimum(null["entropy"] + (e - 1) / (2 * np.maximum(1, count.sum(-1))), np.log(e))
    for name in names:
        found[name], found[f"{name}_null"] = (TWO, own[name]), (TWO, null[name])
    low, high = interval(entropy(drawn))
    found |= {"entropy_low": (TWO, low + bias), "entropy_high": (TWO, high + bias)}
    found["entropy_uniform"] = (("block",), np.log(documents.experts))
    found["effective_experts"] = (TWO, np.exp(own["entropy"]))

    def idle(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        slots = documents.summed(documents.tokens, label, picked)[:, None] * documents.k
        return 1 - documents.by_label(label, picked).sum(-1) / slots.clip(1)

    found |= with_interval(
        "idle", TWO, idle(documents.label, np.ones(len(documents.label))), documents.draws(idle, min(draws, 200), seed)
    )
    found["identity"] = (TWO, reading.data["identity_count"].values / (tokens * k))
    return documents.dataset(found)


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


def gate(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """How sure the gate is of each token, and how much its choice depends on the token.  Needs scores=True.

    Means over tokens [label, block], each with interval and what a gate gives that is the same for every expert
    (_null): entropy_share H(p) / ln E (1); top, the largest p (1/E); margin, p of the k-th less the next (0); chosen,
    p summed over the experts applied (k/E).
    information [label, block]: H(mean p) - mean H(p) in nats, what token and expert tell of each other; 0 for a gate
    that ignores its token.  It splits into document_information, between documents, and the rest, within them.
    histogram [label, block, bin]: share of tokens by H(p) / ln E.
    """
    documents = Documents(reading, "probability")
    part = "part_gate" if documents.mixed else "document_gate"
    sums = documents.data[part].values * documents.tokens[:, None, None]
    e, k = documents.experts.astype(float), documents.k
    each = entropy(documents.count / documents.tokens[:, None, None]) * documents.tokens[:, None]

    def means(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        total = documents.summed(documents.tokens, label, picked)[:, None].clip(1)
        mean = documents.summed(sums, label, picked) / total[..., None]
        whole = entropy(documents.by_label(label, picked) / total[..., None])
        of = {name: mean[..., i] for i, name in enumerate(GATE)}
        between = whole - documents.summed(each, label, picked) / total
        return np.stack(
            [
                of["entropy"] / np.log(np.maximum(e, 2)), of["top"], of["margin"], of["chosen"],
                whole - of["entropy"], between,
            ]
        )  # fmt: skip

    names = ("entropy_share", "top", "margin", "chosen", "information", "document_information")
    nulls = (np.ones(len(e)), 1 / e, 0 * e, k / e, 0 * e, 0 * e)
    value = means(documents.label, np.ones(len(documents.label)))
    drawn = documents.draws(means, draws, seed)
    found: dict[str, Any] = {}
    for i, (name, null) in enumerate(zip(names, nulls, strict=True)):
        found |= with_interval(name, TWO, value[i], drawn[:, i])
        found[f"{name}_null"] = (("block",), null)
    histogram = reading.data["gate_histogram"].values
    found["histogram"] = ((*TWO, "bin"), histogram / histogram.sum(-1, keepdims=True).clip(1))
    return documents.dataset(found, bin=reading.data["bin"].values)


def balance(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Load-balancing loss and z-loss of every block by itself.  Needs scores=True.

    aux_loss [block] = E sum_e f_e P_e with f the shares of slots and P the mean gate probability over all documents
    (Switch, eq. 4); 1 if either is even (aux_loss_null).  z_loss [block]: mean squared log-sum-exp of the scores
    (ST-MoE, eq. 5).  Both with interval.  aux_loss_pooled (a number): of f and P averaged over the blocks first, as
    transformers computes it (there times k), which hides what evens out between blocks.
    """
    documents, gates = Documents(reading), Documents(reading, "probability")
    squares = documents.data["part_gate" if documents.mixed else "document_gate"].values[
        ..., GATE.index("log_sum_square")
    ]
    e = documents.experts

    def losses(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        f = shares(np.tensordot(picked, documents.count, 1))
        p = shares(np.tensordot(picked, gates.count, 1))
        weight = picked * documents.tokens
        return np.stack([e * (f * p).sum(-1), weight @ squares / weight.sum()])

    once = np.ones(len(documents.label))
    value, drawn = losses(documents.label, once), documents.draws(losses, draws, seed)
    f, p = (shares(x.count.sum(0)).mean(0) for x in (documents, gates))
    return documents.dataset(
        {
            **with_interval("aux_loss", ("block",), value[0], drawn[:, 0]),
            "aux_loss_null": (("block",), np.ones(len(e))),
            **with_interval("z_loss", ("block",), value[1], drawn[:, 1]),
            "aux_loss_pooled": float(e.max() * (f * p).sum()),
        }
    )  # fmt: skip


def reordering(reading: Reading, model: Any = None, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """What selection biases and groups change: slots whose expert is not among the gate's own top k.

    moved [label, block]: share of slots, with interval; 0 (_null) where routing is the top k of the scores, as most
    tools take it to be.  Needs scores=True.  With ``model`` and a router that has a bias for each expert: bias [block,
    expert], bias_load [block]: Spearman's correlation of bias and load, bias_load_p over permutations of the experts.
    """
    documents = Documents(reading, "probability")
    own = documents.data["part_gate" if documents.mixed else "document_gate"].values[..., GATE.index("moved")]

    def moved(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        total = documents.summed(documents.tokens, label, picked)[:, None].clip(1)
        return documents.summed(own * documents.tokens[:, None], label, picked) / total / documents.k

    once = np.ones(len(documents.label))
    found = with_interval("moved", TWO, moved(documents.label, once), documents.draws(moved, draws, seed))
    found["moved_null"] = (("block",), np.zeros(len(documents.blocks)))
    if model is None:
        return documents.dataset(found)
    load = reading.data["usage_count"].values.sum(0).astype(float)
    biases, r, p = np.full(load.shape, np.nan), *np.full((2, len(load)), np.nan)
    rng = np.random.default_rng(seed)
    for b, block in enumerate(documents.blocks):
        n = int(documents.experts[b])
        bias = selection_bias(model, int(block))
        if bias is None:
            continue
        biases[b, :n] = bias[:n]
        x, y = (ranked(v - 0.0) - (n - 1) / 2 for v in (bias[:n], load[b, :n]))
        scale = max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-300)
        r[b] = float(x @ y) / scale
        null = np.array([rng.permutation(x) @ y for _ in range(999)]) / scale
        p[b] = p_value(np.abs(r[b]), np.abs(null))
    found |= {"bias": (("block", "expert"), biases), "bias_load": (("block",), r), "bias_load_p": (("block",), p)}
    return documents.dataset(found)


def selection_bias(model: Any, block: int) -> np.ndarray | None:
    """[experts] what a router adds to its scores for the selection alone; None where there is no such thing."""
    from workbench.moe import moe_of

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
