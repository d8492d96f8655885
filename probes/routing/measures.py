"""What a routing trace says, each number with its null and its interval.  Documents are the unit of inference.

Every function takes a :class:`RoutingTracer` reading and gives an xarray Dataset with the measure's name, ``_low`` and
``_high`` (95 % bootstrap over documents, within labels) and ``_null`` (what chance gives) or ``_p``.  Tokens of one
document are not independent: intervals and tests that take them for such are several times too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import fdr, mantel, max_statistic_p, p_value


class Documents:
    """Expert counts of documents, each of which has one label."""

    def __init__(self, reading: Reading) -> None:
        data = reading.data
        if "document_count" not in data:
            raise InputError("This is no reading of RoutingTracer: it has no document_count.")
        share = data["document_label_count"].values
        if ((share > 0).sum(1) > 1).any():
            raise InputError(
                "Some documents have tokens of several labels, and documents are what is resampled. Give labels by "
                "document, or cut the documents where the label changes."
            )
        self.data = data
        self.names = [str(x) for x in data["label"].values]
        empty = share.sum(1) == 0
        if empty.any():
            raise InputError(f"Document {int(np.flatnonzero(empty)[0])} has no token that was read. Leave it out.")
        self.label = share.argmax(1)
        self.count = data["document_count"].values.astype(float)
        self.exists = data["expert_exists"].values
        self.blocks = data["block"].values
        self.experts = self.exists.sum(1)
        self.k = data["top_k"].values

    def by_label(self, label: np.ndarray | None = None, picked: np.ndarray | None = None) -> np.ndarray:
        """[label, block, expert] counts, under other labels or with documents drawn ``picked`` times."""
        label = self.label if label is None else label
        weight = np.zeros((len(self.names), len(label)))
        weight[label, np.arange(len(label))] = 1 if picked is None else picked
        return np.tensordot(weight, self.count, 1)

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """How often each document is drawn when every label's documents are drawn again with replacement."""
        picked = np.zeros(len(self.label))
        for i in range(len(self.names)):
            own = np.flatnonzero(self.label == i)
            np.add.at(picked, rng.choice(own, len(own)), 1)
        return picked

    def bootstrap(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of [label, block, expert] counts; NaN where a label has one document."""
        if np.bincount(self.label, minlength=len(self.names)).min() < 2:
            return np.full((1, *statistic(self.by_label()).shape), np.nan)
        rng = np.random.default_rng(seed)
        return np.stack([statistic(self.by_label(picked=self.resample(rng))) for _ in range(draws)])

    def shuffled(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic when labels are shuffled among documents."""
        rng = np.random.default_rng(seed)
        return np.stack([statistic(self.by_label(rng.permutation(self.label))) for _ in range(draws)])

    def dataset(self, variables: dict[str, Any], **coords: Any) -> xr.Dataset:
        axes = {"label": np.array(self.names, object), "block": self.blocks, "expert": self.data["expert"].values}
        return xr.Dataset(
            variables, {**axes, **coords}, {"documents": len(self.label), "model": self.data.attrs["model"]}
        )


def interval(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval over bootstrap draws [draws, ...]."""
    if np.isnan(found).all():
        return found[0], found[0]
    low, high = np.nanquantile(found, [0.025, 0.975], axis=0)
    return low, high


def shares(count: np.ndarray) -> np.ndarray:
    """Counts [..., expert] -> shares of the slots that reached an expert."""
    total = count.sum(-1, keepdims=True)
    return np.divide(count, total, out=np.full_like(count, np.nan, dtype=float), where=total > 0)


def entropy(share: np.ndarray) -> np.ndarray:
    """[..., expert] -> nats."""
    return -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), -1)


def jsd(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence over the last axis, in nats (at most ln 2); divide by ln 2 for bits."""
    return np.maximum(0, entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


# ---------------------------------------------------------------- one label at a time


def usage(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """How the slots of each label are shared among the experts.

    share [label, block, expert] with interval; band_low, band_high: 95 % of the shares of one expert if a router chose
    k of E at random for as many tokens (a normal band of the hypergeometric choice); entropy [label, block] in nats
    with the Miller-Madow correction; effective experts exp(entropy); imbalance: cv, max_violation = max share * E - 1
    (Wang et al. 2024), dead: experts with less than a hundredth of their share, and what a random router gives for
    each (_null).
    """
    documents = Documents(reading)
    count = documents.by_label()
    share = shares(count)
    low, high = interval(documents.bootstrap(shares, draws, seed))
    e, k = documents.experts[None, :], documents.k[None, :]
    tokens = reading.data["token_count"].values[:, None].clip(1)
    spread = 1.96 * np.sqrt(k / e * (1 - k / e) / tokens) / k
    rng = np.random.default_rng(seed)
    null = {name: np.zeros(share.shape[:2]) for name in ("cv", "max_violation", "dead")}
    for i in range(share.shape[0]):
        for b in range(share.shape[1]):
            n = int(documents.experts[b])
            slots = int(count[i, b].sum())
            found = rng.multinomial(slots, np.full(n, 1 / n), size=200) / max(1, slots)
            for name, value in _imbalance(found, n).items():
                null[name][i, b] = value.mean()
    own = [_imbalance(share[:, b, : int(n)], int(n)) for b, n in enumerate(documents.experts)]
    two = ("label", "block")
    bias = ((count > 0).sum(-1) - 1) / (2 * np.maximum(1, count.sum(-1)))
    found = {
        "share": (("label", "block", "expert"), share),
        "share_low": (("label", "block", "expert"), low),
        "share_high": (("label", "block", "expert"), high),
        "band_low": (two, np.maximum(0, 1 / e - spread)),
        "band_high": (two, 1 / e + spread),
        "entropy": (two, entropy(share) + bias),
        "entropy_uniform": (("block",), np.log(documents.experts)),
        "effective_experts": (two, np.exp(entropy(share) + bias)),
    }
    e_low, e_high = interval(documents.bootstrap(lambda c: entropy(shares(c)), draws, seed))
    found |= {"entropy_low": (two, e_low + bias), "entropy_high": (two, e_high + bias)}
    for name in null:
        found[name] = (two, np.stack([x[name] for x in own], 1))
        found[f"{name}_null"] = (two, null[name])
    return documents.dataset(found)


def _imbalance(share: np.ndarray, n: int) -> dict[str, np.ndarray]:
    return {
        "cv": share.std(-1) * n,
        "max_violation": share.max(-1) * n - 1,
        "dead": (share < 0.01 / n).sum(-1).astype(float),
    }


# ---------------------------------------------------------------- labels against each other


def divergence(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Jensen-Shannon divergence between the expert usage of labels, from counts of slots, in nats.

    jsd [label, label_2, block] with interval; jsd_null: its mean with labels shuffled among documents (what documents
    of one kind differ by); jsd_excess: what is left above it; jsd_p: permutation p of each pair and block, and jsd_q:
    its false discovery rate over all of them; jsd_floor [label, block]: between random halves of a label's documents.
    mean_jsd [block] over pairs, with interval, null and p.  In bits: divide by ln 2.
    """
    documents = Documents(reading)
    n = len(documents.names)
    if n < 2:
        raise InputError("Divergence is between labels, and the reading has one. Trace with labels=.")

    def pairs(count: np.ndarray) -> np.ndarray:
        share = np.nan_to_num(shares(count))
        return jsd(share[:, None], share[None])

    upper = np.triu_indices(n, 1)
    observed = pairs(documents.by_label())
    resampled = documents.bootstrap(pairs, draws, seed)
    low, high = interval(resampled)
    null = documents.shuffled(pairs, draws, seed + 1)
    p = p_value(observed, null)
    p[np.arange(n), np.arange(n)] = np.nan
    q = np.full_like(p, np.nan)
    q[upper] = fdr(p[upper])
    q = np.where(np.isnan(q), q.swapaxes(0, 1), q)
    mean, mean_null = observed[upper].mean(0), null[:, upper[0], upper[1]].mean(1)
    m_low, m_high = interval(resampled[:, upper[0], upper[1]].mean(1))
    three = ("label", "label_2", "block")
    return documents.dataset(
        {
            "jsd": (three, observed),
            "jsd_low": (three, low),
            "jsd_high": (three, high),
            "jsd_null": (three, null.mean(0)),
            "jsd_excess": (three, observed - null.mean(0)),
            "jsd_p": (three, p),
            "jsd_q": (three, q),
            "jsd_floor": (("label", "block"), _halves(documents, draws, seed)),
            "mean_jsd": (("block",), mean),
            "mean_jsd_low": (("block",), m_low),
            "mean_jsd_high": (("block",), m_high),
            "mean_jsd_null": (("block",), mean_null.mean(0)),
            "mean_jsd_p": (("block",), p_value(mean, mean_null)),
        },
        label_2=np.array(documents.names, object),
    )


def _halves(documents: Documents, draws: int, seed: int) -> np.ndarray:
    """[label, block] mean divergence between random halves of a label's documents."""
    rng = np.random.default_rng(seed)
    found = np.full((len(documents.names), len(documents.blocks)), np.nan)
    for i in range(len(documents.names)):
        own = np.flatnonzero(documents.label == i)
        if len(own) < 4:
            continue
        values = []
        for _ in range(min(draws, 100)):
            order = rng.permutation(own)
            half = len(own) // 2
            a, b = documents.count[order[:half]].sum(0), documents.count[order[half : 2 * half]].sum(0)
            values.append(jsd(np.nan_to_num(shares(a)), np.nan_to_num(shares(b))))
        found[i] = np.mean(values, 0)
    return found


def information(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """I(label; expert) / H(label), labels balanced: how much of the label one slot's expert tells.

    information [block] with interval, information_null (labels shuffled among documents), information_excess and
    information_p.
    """
    documents = Documents(reading)

    def gained(count: np.ndarray) -> np.ndarray:
        share = np.nan_to_num(shares(count))
        return (entropy(share.mean(0)) - entropy(share).mean(0)) / np.log(max(2, len(documents.names)))

    observed = gained(documents.by_label())
    low, high = interval(documents.bootstrap(gained, draws, seed))
    null = documents.shuffled(gained, draws, seed + 1)
    found = {
        "information": observed, "information_low": low, "information_high": high,
        "information_null": null.mean(0), "information_excess": observed - null.mean(0),
        "information_p": p_value(observed, null),
    }  # fmt: skip
    return documents.dataset({name: (("block",), value) for name, value in found.items()})


def specialisation(reading: Reading, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Share of a label's tokens that an expert serves, P(expert in slots | label), and its lift over the labels' mean.

    token_share [label, block, expert] with interval and its uniform value k/E (token_share_null); lift = log2 of it
    over the mean of all labels; lift_p: labels shuffled among documents, lift_q: false discovery rate over all cells.
    """
    documents = Documents(reading)
    tokens = reading.data["document_label_count"].values.sum(1).astype(float)

    def per_token(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        count = documents.by_label(label, picked)
        total = np.zeros(len(documents.names))
        np.add.at(total, label, tokens * picked)
        return count / total[:, None, None].clip(1)

    def lift(share: np.ndarray) -> np.ndarray:
        mean = share.mean(0)
        return np.log2((share + 1e-9) / (mean + 1e-9))

    once = np.ones(len(tokens))
    share = per_token(documents.label, once)
    rng, found, null = np.random.default_rng(seed), [], []
    for _ in range(draws):
        found.append(per_token(documents.label, documents.resample(rng)))
        null.append(lift(per_token(rng.permutation(documents.label), once)))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    observed = lift(share)
    p = np.where(documents.exists, p_value(observed, np.stack(null)), np.nan)
    three = ("label", "block", "expert")
    return documents.dataset(
        {
            "token_share": (three, share), "token_share_low": (three, low), "token_share_high": (three, high),
            "token_share_null": (("block",), documents.k / documents.experts),
            "lift": (three, observed), "lift_p": (three, p), "lift_q": (three, fdr(p)),
        }
    )  # fmt: skip


def select(
    reading: Reading, *, level: float = 0.05, shared: int = 5, blocks: Any = None, draws: int = 1000, seed: int = 0
) -> xr.Dataset:
    """The experts of each label by activation gap, with a threshold that chance passes in ``level`` of all analyses.

    A gap is the highest share among the labels less the second (arXiv 2605.29714).  Its threshold is not chosen by
    hand but from the largest gap anywhere when labels are shuffled among documents (max-statistic).

    gap, gap_p (family-wise) [block, expert], owner [block, expert]: the label with the highest share; selected
    [label, block, expert]; stability: how often a selected expert is selected again in bootstraps of the documents;
    shared [block, expert]: the ``shared`` experts with the highest mean share; threshold (attribute).
    """
    documents = Documents(reading)
    if len(documents.names) < 2:
        raise InputError("A gap is between labels, and the reading has one. Trace with labels=.")
    wanted = np.ones(len(documents.blocks), bool)
    if blocks is not None:
        wanted = np.isin(documents.blocks, [b % (max(documents.blocks) + 1) for b in np.atleast_1d(blocks)])

    def gaps(count: np.ndarray) -> np.ndarray:
        ordered = np.sort(np.nan_to_num(shares(count)), 0)
        return np.where(documents.exists & wanted[:, None], ordered[-1] - ordered[-2], 0)

    count = documents.by_label()
    observed = gaps(count)
    null = documents.shuffled(gaps, draws, seed)
    threshold = float(np.quantile(null.reshape(len(null), -1).max(1), 1 - level))
    owner = np.nan_to_num(shares(count)).argmax(0)
    chosen = observed > threshold

    def picks(count: np.ndarray) -> np.ndarray:
        own = np.nan_to_num(shares(count)).argmax(0)
        return (gaps(count) > threshold) & (own == np.arange(len(documents.names))[:, None, None])

    rng = np.random.default_rng(seed + 1)
    kept = [picks(documents.by_label(picked=documents.resample(rng))) for _ in range(200)]
    selected = chosen & (owner == np.arange(len(documents.names))[:, None, None])
    mean = np.where(documents.exists, np.nan_to_num(shares(count)).mean(0), -1)
    best = np.argsort(-mean, 1)[:, :shared]
    common = np.zeros_like(chosen)
    common[np.arange(len(best))[:, None], best] = True
    two, three = ("block", "expert"), ("label", "block", "expert")
    found = documents.dataset(
        {
            "gap": (two, observed), "gap_p": (two, max_statistic_p(observed, null)),
            "owner": (two, np.array(documents.names, object)[owner]), "selected": (three, selected),
            "stability": (three, np.where(selected, np.mean(kept, 0), np.nan)),
            "shared": (two, common & wanted[:, None]),
        }
    )  # fmt: skip
    found.attrs.update(threshold=threshold, level=level)
    return found


def export(selection: xr.Dataset, model: Any = None) -> dict[str, Any]:
    """A selection as plain values for a fine-tuning script: label -> block -> experts, and the shared ones.

    With ``model`` also what share of its parameters each label's experts are (parameter_share).
    """
    blocks = selection["block"].values.tolist()
    plan = {
        "model": selection.attrs["model"],
        "threshold": selection.attrs["threshold"],
        "level": selection.attrs["level"],
        "selected": {
            str(label): {
                str(b): np.flatnonzero(selection["selected"].sel(label=label, block=b).values).tolist() for b in blocks
            }
            for label in selection["label"].values
        },
        "shared": {str(b): np.flatnonzero(selection["shared"].sel(block=b).values).tolist() for b in blocks},
    }
    if model is not None:
        each = {b: _parameters(model, b) for b in blocks}
        total = sum(p.numel() for p in model.module.parameters())
        plan["parameter_share"] = {
            label: sum(len(own[str(b)]) * each[b] for b in blocks) / total for label, own in plan["selected"].items()
        }
    return plan


def _parameters(model: Any, block: int) -> int:
    """Parameters of one expert."""
    layer = model.moe[block]
    module = model.module.get_submodule(layer.name if layer.before else layer.name.rsplit(".", 1)[0] + ".experts")
    return sum(p.numel() for p in module.parameters()) // layer.n_experts


def overlap(reading: Reading, *, draws: int = 200, permutations: int = 9999, seed: int = 0) -> xr.Dataset:
    """Vocabulary that labels share, and whether labels that share more are routed more alike.

    jaccard, contained (shared types over the smaller vocabulary), weighted (sum of the smaller of both frequencies)
    [label, label_2], of token ids; pearson, spearman [measure, block]: correlation of each with the divergence of
    usage over pairs of labels, and mantel_p, spearman_p by Mantel's permutations.  Pairs share labels, so that a
    correlation's ordinary p would be far too small.  Fewer than five labels cannot reach p < 0.05.
    """
    documents = Documents(reading)
    ids, n = reading.data["input_id"].values, len(documents.names)
    size = int(ids.max()) + 1
    table = np.zeros((n, size))
    for i in range(n):
        own = ids[documents.label == i]
        table[i] = np.bincount(own[own >= 0], minlength=size)
    held, share = table > 0, table / table.sum(1, keepdims=True).clip(1)
    both = (held[:, None] & held[None]).sum(-1)
    sizes = held.sum(1)
    found = {
        "jaccard": both / (sizes[:, None] + sizes[None] - both).clip(1),
        "contained": both / np.minimum(sizes[:, None], sizes[None]).clip(1),
        "weighted": np.minimum(share[:, None], share[None]).sum(-1),
    }
    apart = divergence(reading, draws=draws, seed=seed)["jsd"].values
    shape = (len(found), len(documents.blocks))
    r, p, rho, rho_p = (np.full(shape, np.nan) for _ in range(4))
    for m, values in enumerate(found.values()):
        for b in range(shape[1]):
            r[m, b], p[m, b] = mantel(values, apart[..., b], draws=permutations, seed=seed)
            rho[m, b], rho_p[m, b] = mantel(values, apart[..., b], draws=permutations, seed=seed, rank=True)
    two, by = ("label", "label_2"), ("measure", "block")
    return documents.dataset(
        {
            **{name: (two, values) for name, values in found.items()}, "jsd": ((*two, "block"), apart),
            "pearson": (by, r), "mantel_p": (by, p), "spearman": (by, rho), "spearman_p": (by, rho_p),
        },
        label_2=np.array(documents.names, object), measure=list(found),
    )  # fmt: skip


# ---------------------------------------------------------------- experts among themselves


def coactivation(reading: Reading) -> xr.Dataset:
    """P(expert_2 in a token's slots | expert is), over all pairs of slots; a uniform router gives (k-1)/(E-1).

    given [block, expert, expert_2]; given_null [block]; pmi = log2 of it over expert_2's own token share.
    """
    data = reading.data
    if "pair_count" not in data:
        raise InputError("The reading has no pairs. Trace with pairs=True.")
    pairs = data["pair_count"].values.astype(float)
    own = data["usage_count"].values.sum(0).astype(float)
    tokens = float(data["token_count"].values.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        given = pairs / own[..., None]
        pmi = np.log2(given / (own[:, None] / tokens))
    k, e = data["top_k"].values, data["expert_exists"].values.sum(1)
    where = ("block", "expert", "expert_2")
    return xr.Dataset(
        {"given": (where, given), "pmi": (where, pmi), "given_null": (("block",), (k - 1) / np.maximum(1, e - 1))},
        {"block": data["block"].values, "expert": data["expert"].values, "expert_2": data["expert"].values},
        {"model": data.attrs["model"]},
    )


def flow(reading: Reading) -> xr.Dataset:
    """Where a token's strongest expert leads in the next traced block: P(next | here) and their mutual information.

    follows [block_from, expert, expert_2]; information [block_from] in nats and information_null, what counts of
    independent experts would show for want of tokens ((E-1)(E'-1)/2N; Miller 1955).
    """
    data = reading.data
    if "flow_count" not in data:
        raise InputError("The reading has no flow. Trace with pairs=True, and at least two blocks.")
    count = data["flow_count"].values.astype(float)
    total = count.sum((1, 2), keepdims=True)
    joint = count / np.maximum(total, 1)
    a, b = joint.sum(2), joint.sum(1)
    mutual = entropy(a) + entropy(b) - entropy(joint.reshape(len(joint), -1))
    null = ((a > 0).sum(1) - 1) * ((b > 0).sum(1) - 1) / (2 * np.maximum(total[:, 0, 0], 1))
    follows = np.divide(
        count, count.sum(2, keepdims=True), out=np.zeros_like(count), where=count.sum(2, keepdims=True) > 0
    )
    return xr.Dataset(
        {
            "follows": (("block_from", "expert", "expert_2"), follows),
            "information": (("block_from",), mutual),
            "information_null": (("block_from",), null),
        },
        {"block_from": data["block_from"].values, "expert": data["expert"].values, "expert_2": data["expert"].values},
        {"model": data.attrs["model"]},
    )


def vocabulary(reading: Reading, *, least: int = 10, draws: int = 100, seed: int = 0) -> xr.Dataset:
    """Vocabulary specialisation: of a token id's occurrences, the share that its most frequent expert serves.

    Only ids with at least ``least`` occurrences count; a token seen once would score 1 by construction.  Each is
    compared with what as many draws of k experts with the block's own loads would show (size-matched null).

    specialisation [block], specialisation_null, specialisation_excess: means over token ids; share, null, expert
    [block, token]; count [token].  Needs trace=True.
    """
    data = reading.data
    if "expert_id" not in data:
        raise InputError("Vocabulary specialisation needs each token's experts. Trace with trace=True.")
    ids = data["input_id"].values
    real = ids >= 0
    seen, at, count = np.unique(ids[real], return_inverse=True, return_counts=True)
    keep = count >= least
    if not keep.any():
        raise InputError(
            f"No token id occurs {least} times among {real.sum()} tokens. Trace more text, or lower least=."
        )
    e = len(data["expert"])
    slots = data["expert_id"].transpose("block", "prompt", "position", "slot").values[:, real]
    rng = np.random.default_rng(seed)
    share, expert, null = (np.zeros((len(slots), int(keep.sum()))) for _ in range(3))
    for b, own in enumerate(slots):
        table = np.zeros((len(seen), e))
        for slot in own.T:
            good = (slot >= 0) & (slot < e)
            np.add.at(table, (at[good], slot[good]), 1)
        load = table.sum(0) / max(1, len(at))
        share[b] = table[keep].max(1) / count[keep]
        expert[b] = table[keep].argmax(1)
        # For one size of sample after the other: many ids share a size.
        for n in np.unique(count[keep]):
            best = (rng.binomial(n, np.clip(load, 0, 1), size=(draws, e))).max(1) / n
            null[b, count[keep] == n] = best.mean()
    two = ("block", "token")
    return xr.Dataset(
        {
            "specialisation": (("block",), share.mean(1)),
            "specialisation_null": (("block",), null.mean(1)),
            "specialisation_excess": (("block",), (share - null).mean(1)),
            "share": (two, share), "null": (two, null), "expert": (two, expert.astype(int)),
            "count": (("token",), count[keep]),
        },
        {"block": data["block"].values, "token": seen[keep]},
        {"model": data.attrs["model"], "least": least},
    )  # fmt: skip


def saturation(readings: list[Reading], names: list[Any] | None = None, final: int = -1) -> xr.Dataset:
    """Of a token's experts at a checkpoint, the share that it has at the final one, too: |S_t and S_T| / k (OLMoE).

    saturation [checkpoint, block] with interval over documents, and its chance value k/E.  All readings must be of the
    same prompts with trace=True.
    """
    last = readings[final].data
    rows, low, high = [], [], []
    from workbench.stats import bootstrap_interval

    for reading in readings:
        data = reading.data
        if "expert_id" not in data or data["input_id"].shape != last["input_id"].shape:
            raise InputError("Saturation compares traces (trace=True) of the same prompts.")
        if not bool((data["input_id"].values == last["input_id"].values).all()):
            raise InputError("Saturation compares traces of the same prompts, and these are of different ones.")
        a, b = data["expert_id"].values, last["expert_id"].values
        same = ((a[..., :, None] == b[..., None, :]) & (a[..., :, None] >= 0)).any(-1).sum(-1)
        held = (b >= 0).sum(-1)
        each = np.divide(same, held, out=np.full(same.shape, np.nan), where=held > 0)
        tokens = (~np.isnan(each)).sum(2)
        means = np.nansum(each, 2) / np.maximum(tokens, 1)
        rows.append(np.nansum(each, (0, 2)) / tokens.sum(0))
        bounds = bootstrap_interval(means, tokens[:, 0].astype(float))
        low.append(bounds[0])
        high.append(bounds[1])
    k, e = last["top_k"].values, last["expert_exists"].values.sum(1)
    two = ("checkpoint", "block")
    return xr.Dataset(
        {
            "saturation": (two, np.array(rows)), "saturation_low": (two, np.array(low)),
            "saturation_high": (two, np.array(high)), "saturation_null": (("block",), k / e),
        },
        {"checkpoint": list(names or range(len(readings))), "block": last["block"].values},
    )  # fmt: skip
