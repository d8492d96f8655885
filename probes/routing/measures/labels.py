"""Labels beside each other: how far apart their routing is, and which experts are whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.routing.measures.documents import Documents, entropy, interval, jsd, shares, with_interval
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import auroc, bootstrap_interval, fdr, p_value


def divergence(
    reading: Reading, *, of: str = "count", unit: str = "nats", draws: int = 500, seed: int = 0
) -> xr.Dataset:
    """Jensen-Shannon divergence between the expert usage of labels, in nats or in bits (attribute ``unit``).

    of: "count", shares of the slots (arXiv 2605.29714, its code); "probability", mean gate probabilities (its text);
    or "weight".

    jsd [label, label_2, block] with interval; jsd_null: its mean with labels shuffled among documents (what documents
    of one kind differ by); jsd_excess: what is left above it; jsd_p: permutation p of each pair and block, and jsd_q:
    its false discovery rate over all of them; jsd_floor [label, block]: between random halves of a label's documents.
    mean_jsd [block] over pairs, with interval, null and p.
    """
    documents = Documents(reading, of)
    documents.needs_labels("Divergence")
    n, scale = len(documents.names), _unit(unit)

    def pairs(count: np.ndarray) -> np.ndarray:
        share = np.nan_to_num(shares(count))
        return jsd(share[:, None], share[None]) / scale

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
    table = documents.dataset(
        {
            "jsd": (three, observed),
            "jsd_low": (three, low),
            "jsd_high": (three, high),
            "jsd_null": (three, null.mean(0)),
            "jsd_excess": (three, observed - null.mean(0)),
            "jsd_p": (three, p),
            "jsd_q": (three, q),
            "jsd_floor": (("label", "block"), _halves(documents, draws, seed) / scale),
            "mean_jsd": (("block",), mean),
            "mean_jsd_low": (("block",), m_low),
            "mean_jsd_high": (("block",), m_high),
            "mean_jsd_null": (("block",), mean_null.mean(0)),
            "mean_jsd_p": (("block",), p_value(mean, mean_null)),
        },
        label_2=np.array(documents.names, object),
    )
    return table.assign_attrs(unit=unit)


def _unit(unit: str) -> float:
    if unit not in ("nats", "bits"):
        raise InputError(f"unit={unit!r} is unknown. Use 'nats' or 'bits'.")
    return 1.0 if unit == "nats" else float(np.log(2))


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


def information(reading: Reading, *, of: str = "count", draws: int = 500, seed: int = 0) -> xr.Dataset:
    """I(label; expert) / H(label), labels balanced: how much of the label one slot's expert tells.

    information [block] with interval, information_null (labels shuffled among documents), information_excess and
    information_p.
    """
    documents = Documents(reading, of)
    documents.needs_labels("Information")

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
    p is at least 1 / (1 + draws), and q that times the cells over those found: where few of many cells are thought to
    differ, ``draws`` must be several times as many as cells.
    """
    documents = Documents(reading)

    def per_token(label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        total = documents.summed(documents.tokens, label, picked)
        return documents.by_label(label, picked) / total[:, None, None].clip(1)

    def lift(share: np.ndarray) -> np.ndarray:
        mean = share.mean(0)
        return np.log2((share + 1e-9) / (mean + 1e-9))

    share = per_token(documents.label, np.ones(len(documents.label)))
    low, high = interval(documents.draws(per_token, draws, seed))
    observed = lift(share)
    null = documents.shuffles(lambda label, picked: lift(per_token(label, picked)), draws, seed + 1)
    p = np.where(documents.exists, p_value(observed, null), np.nan)
    three = ("label", "block", "expert")
    return documents.dataset(
        {
            "token_share": (three, share), "token_share_low": (three, low), "token_share_high": (three, high),
            "token_share_null": (("block",), documents.k / documents.experts),
            "lift": (three, observed), "lift_p": (three, p), "lift_q": (three, fdr(p)),
        }
    )  # fmt: skip


def agreement(reading: Reading, *, top: int | None = None, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """Whether labels have the same most used experts: overlap of their lists of the ``top`` (default k) experts.

    shared [label, label_2, block] = |A and B| / top with interval, jaccard; shared_null = top / E, two lists at random
    (hypergeometric mean), shared_shuffled: labels shuffled among documents; shared_p: of lists as far apart as these
    among shuffled labels.
    """
    documents = Documents(reading)
    documents.needs_labels("Agreement")
    m = np.minimum(documents.k if top is None else np.full_like(documents.k, top), documents.experts)

    def shared(count: np.ndarray) -> np.ndarray:
        order = (-np.where(documents.exists, count, -1)).argsort(-1, kind="stable").argsort(-1, kind="stable")
        held = (order < m[:, None]).astype(float)
        return np.einsum("abe,cbe->acb", held, held) / m

    observed = shared(documents.by_label())
    null = documents.shuffled(shared, draws, seed + 1)
    three = ("label", "label_2", "block")
    return documents.dataset(
        {
            **with_interval("shared", three, observed, documents.bootstrap(shared, draws, seed)),
            "jaccard": (three, observed / (2 - observed)), "shared_null": (("block",), m / documents.experts),
            "shared_shuffled": (three, null.mean(0)), "shared_p": (three, p_value(-observed, -null)),
        },
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def classes(
    reading: Reading, *, top: int | None = None, threshold: float = 0.4, draws: int = 500, seed: int = 0
) -> xr.Dataset:
    """Experts that are one label's and experts that are everyone's.

    Only the ``top`` (default 2k) experts of a label in a block count for it.  exclusivity [label, block, expert]: the
    label's share of what such labels give the expert; exclusive [label, block]: experts where it is above
    ``threshold``; universal [block]: experts that are among the top of all labels.  Both with interval, mean under
    shuffled labels (_null) and p.
    """
    documents = Documents(reading)
    documents.needs_labels("Exclusivity")
    m = np.minimum(2 * documents.k if top is None else np.full_like(documents.k, top), documents.experts)

    def exclusivity(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = np.nan_to_num(shares(count))
        order = (-np.where(documents.exists, share, -1)).argsort(-1, kind="stable").argsort(-1, kind="stable")
        best = order < m[:, None]
        own = share * best
        return own / np.maximum(own.sum(0), 1e-300), best

    def counts(count: np.ndarray) -> np.ndarray:
        own, best = exclusivity(count)
        return np.concatenate([(own > threshold).sum(-1), best.all(0).sum(-1)[None]]).astype(float)

    count = documents.by_label()
    observed, drawn = counts(count), documents.bootstrap(counts, draws, seed)
    null = documents.shuffled(counts, draws, seed + 1)
    p = p_value(observed, null)
    two, one = ("label", "block"), ("block",)
    return documents.dataset(
        {
            "exclusivity": (("label", "block", "expert"), exclusivity(count)[0]),
            **with_interval("exclusive", two, observed[:-1], drawn[:, :-1]),
            "exclusive_null": (two, null.mean(0)[:-1]), "exclusive_p": (two, p[:-1]),
            **with_interval("universal", one, observed[-1], drawn[:, -1]),
            "universal_null": (one, null.mean(0)[-1]), "universal_p": (one, p_value(-observed, -null)[-1]),
        }
    )  # fmt: skip


def parallel(
    reading: Reading, groups: Sequence[Any], *, of: str = "probability", draws: int = 500, seed: int = 0
) -> xr.Dataset:
    """Divergence between translations: documents that say the same thing, pair by pair (after arXiv 2510.04694).

    Args:
        groups: for each document what it says (a sentence's number); a label has each at most once.
        of: "probability" (needs scores=True), "count" or "weight".

    divergence [label, label_2, block]: mean over the groups that both labels have of JSD(q, q') over the mean entropy
    of q and q', with q the usage of one document; 0: alike.  With interval (groups drawn again) and divergence_null:
    the mean when translations are paired at random with documents of another meaning; divergence_p: as near as this
    among such pairings, divergence_excess = divergence - null (below 0: meaning routes).  pairs [label, label_2].
    """
    documents = Documents(reading, of)
    documents.needs_labels("Divergence of translations")
    if documents.mixed:
        raise InputError("Translations are compared by document, and the labels are by token. Give labels by document.")
    if len(groups) != len(documents.label):
        raise InputError(f"groups has {len(groups)} and there are {len(documents.label)} documents. Give one for each.")
    names = sorted({str(g) for g in groups})
    at = np.full((len(documents.names), len(names)), -1)
    for i, (label, group) in enumerate(zip(documents.label, groups, strict=True)):
        j = names.index(str(group))
        if at[label, j] >= 0:
            raise InputError(
                f"Label {documents.names[label]!r} has two documents of group {group!r} ({at[label, j]} and {i}), so "
                "it is not known which translates which. Number them apart."
            )
        at[label, j] = i
    share = shares(documents.count)
    spread = entropy(share)
    rng, n = np.random.default_rng(seed), len(documents.names)
    shape = (n, n, len(documents.blocks))
    value, low, high, null, p = (np.full(shape, np.nan) for _ in range(5))
    pairs = np.zeros((n, n), int)

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return jsd(share[a], share[b]) / np.maximum((spread[a] + spread[b]) / 2, 1e-300)

    for x, y in zip(*np.triu_indices(n, 1), strict=True):
        both = np.flatnonzero((at[x] >= 0) & (at[y] >= 0))
        pairs[x, y] = pairs[y, x] = len(both)
        if len(both) < 3:
            continue
        a, b = at[x, both], at[y, both]
        each = apart(a, b)
        low_, high_ = bootstrap_interval(each, draws=draws, seed=seed)
        other = np.stack([apart(a, b[_deranged(len(b), rng)]).mean(0) for _ in range(draws)])
        mean = each.mean(0)
        own = (mean, low_, high_, other.mean(0), p_value(-mean, -other))
        for table, found in zip((value, low, high, null, p), own, strict=True):
            table[x, y] = table[y, x] = found
    if not (pairs >= 3).any():
        raise InputError("No two labels share three groups, so there are no translations to compare.")
    three = ("label", "label_2", "block")
    return documents.dataset(
        {
            "divergence": (three, value), "divergence_low": (three, low), "divergence_high": (three, high),
            "divergence_null": (three, null), "divergence_excess": (three, value - null), "divergence_p": (three, p),
            "pairs": (three[:2], pairs),
        },
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def _deranged(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order in which nothing stays in its place."""
    order = rng.permutation(n)
    return order[(np.argsort(order) + 1 + rng.integers(n - 1)) % n] if n > 1 else order


def decode(
    reading: Reading,
    *,
    of: str = "count",
    groups: Sequence[Any] | None = None,
    folds: int = 5,
    strength: float = 1.0,
    draws: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Whether a document's label can be read off its routing, by ridge regression on documents held out.

    Features are square roots of expert shares.  Documents of one group (of one source, or translations of one text)
    are never on both sides of a split.

    auroc [view, label]: one label against the others, for each block (views "block 3", ...) and all together ("all"),
    with interval over documents; macro [view], their mean, with macro_null and macro_p of shuffled labels.  Two
    views hold what is not the experts' names: "length" (the document's log length alone) and "unnamed" (shares in
    order of size: how even routing is, whoever serves).  They say what of "all" is no specialisation.
    """
    documents = Documents(reading, of)
    documents.needs_labels("Decoding")
    if documents.mixed:
        raise InputError("Labels are decoded by document, and here they are by token. Give labels by document.")
    label, n = documents.label, len(documents.names)
    own = [str(g) for g in (range(len(label)) if groups is None else groups)]
    if len(own) != len(label):
        raise InputError(f"groups has {len(own)} and there are {len(label)} documents. Give one for each.")
    rng = np.random.default_rng(seed)
    named = rng.permutation(sorted(set(own)))
    if len(named) < folds:
        raise InputError(f"{folds} folds need as many groups of documents, and there are {len(named)}.")
    fold = {name: i % folds for i, name in enumerate(named)}
    side = np.array([fold[g] for g in own])
    share = np.sqrt(np.nan_to_num(shares(documents.count)))
    views = {f"block {b}": share[:, i] for i, b in enumerate(documents.blocks)}
    views["all"] = share.reshape(len(label), -1)
    views["length"] = np.log(documents.tokens)[:, None]
    views["unnamed"] = np.sort(share, -1).reshape(len(label), -1)

    def areas(scores: np.ndarray, label: np.ndarray, of: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.array([auroc(scores[of, i], label[of] == i) for i in range(n)])

    found, drawn, null = [], [], []
    orders = [rng.permutation(label) for _ in range(draws)]
    members = [np.flatnonzero(label == i) for i in range(n)]
    picks = [np.concatenate([rng.choice(own, len(own)) for own in members]) for _ in range(draws)]
    for features in views.values():
        held_out = _ridge(features, side, folds, strength)
        scores = held_out(np.eye(n)[label])
        found.append(areas(scores, label))
        drawn.append([areas(scores, label, pick) for pick in picks])
        null.append([np.nanmean(areas(held_out(np.eye(n)[order]), order)) for order in orders])
    value, drawn, null = np.array(found), np.array(drawn).swapaxes(0, 1), np.array(null).T
    macro = np.nanmean(value, 1)
    return documents.dataset(
        {
            **with_interval("auroc", ("view", "label"), value, drawn),
            **with_interval("macro", ("view",), macro, np.nanmean(drawn, 2)),
            "macro_null": (("view",), null.mean(0)), "macro_p": (("view",), p_value(macro, null)),
        },
        view=np.array(list(views), object),
    )  # fmt: skip


def _ridge(features: np.ndarray, side: np.ndarray, folds: int, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Targets [documents, labels] -> scores of documents by a ridge regression fitted to the other folds.

    Predictions are linear in the targets, so shuffled targets cost one product.
    """
    n = len(side)
    maps = np.zeros((n, n))
    for i in range(folds):
        test, train = np.flatnonzero(side == i), np.flatnonzero(side != i)
        x = features[train]
        centre, scale = x.mean(0), x.std(0).mean() + 1e-12
        x, z = (x - centre) / scale, (features[test] - centre) / scale
        kernel = x @ x.T
        solved = np.linalg.solve(kernel + strength * np.eye(len(train)), np.eye(len(train)) - 1 / len(train))
        maps[np.ix_(test, train)] = z @ x.T @ solved + 1 / len(train)
    return lambda targets: maps @ targets
