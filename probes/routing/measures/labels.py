"""Labels beside each other: how far apart their routing is, and which experts are whose."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import family
from probes.routing.measures.documents import Documents, shares, with_interval
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import auroc, bootstrap_interval, entropy, fdr, js_divergence, nanmean, over, p_value
from workbench.tokens import UNKNOWN
from workbench.variables import about

if TYPE_CHECKING:
    from probes.routing.store import Trace


ENDS = ("low", "high")
JSD = "Jensen-Shannon divergence"
VARIABLES = {
    **family("jsd", about(JSD, "nats", "high"), *ENDS, "corrected", "null", "excess", "p", "q"),
    "jsd_floor": about(f"{JSD}, of halves of one label's documents", "nats", "high", "floor", "jsd"),
    **family(
        "mean_jsd", about(f"mean {JSD} between labels", "nats", "high"), *ENDS, "corrected", "null", "p",
        floor=("floor", "{}, of halves of one label's documents"),
    ),
    **family(
        "information", about("information of an expert on the label, over H(label)", better="high"),
        *ENDS, "corrected", "null", "excess", "p",
    ),
    **family("token_share", about("share of a label's tokens that the expert serves"), *ENDS, "null"),
    **family("lift", about("token share over the labels' mean", "bits", "high"), "p", "q"),
    **family(
        "shared", about("share of experts on both lists"), *ENDS, "null", "p",
        shuffled=("null", "{}, labels shuffled among documents"),
    ),
    "jaccard": about("Jaccard index of both lists of experts"),
    "exclusivity": about("share of the expert's use that is the label's", better="high"),
    **family("exclusive", about("experts of one label alone", "experts", "high"), *ENDS, "null", "p"),
    **family("universal", about("experts of all labels", "experts", "low"), *ENDS, "null", "p"),
    **family(
        "divergence", about(f"{JSD} of translations over their mean entropy", better="low"),
        *ENDS, "null", "excess", "p",
    ),
    "pairs": about("translations compared", role="count", of="divergence"),
    **family("auroc", about("area under the ROC curve of the label", better="high"), *ENDS),
    **family("macro", about("mean area under the ROC curve", better="high"), *ENDS, "null", "p"),
    **family(
        "difference", about("largest difference of expert shares between two labels", better="high"),
        shuffled=("null", "{}, labels shuffled among their documents"),
    ),
    "pair_labels": about("labels of the pair", role="label", of="difference"),
}  # fmt: skip


def divergence(
    source: Reading | Trace,
    *,
    of: str = "count",
    unit: str = "nats",
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Jensen-Shannon divergence between the expert usage of labels, in nats or in bits (``unit``).

    of: "count", shares of the slots (arXiv 2605.29714, its code); "probability", mean gate probabilities (its text);
    or "weight".

    jsd [label, label_2, block] with interval; jsd_null: its mean with labels shuffled among documents (what documents
    of one kind differ by); jsd_excess: what is left above it; jsd_p: permutation p of each pair and block, and jsd_q:
    its false discovery rate over all of them; jsd_floor [label, block]: between random halves of a label's documents
    (half as many as a pair of labels has, so that chance alone gives them about twice its share).
    mean_jsd [block] over pairs, with interval, null, p and floor (the mean of the labels').
    jsd and mean_jsd are as counted, and comparable with null and floor: all are too high, the more so the fewer the
    documents; _corrected is less that bias.
    """
    documents = Documents(source, of)
    documents.needs_labels("Divergence")
    n, scale = len(documents.names), _unit(unit)

    def pairs(weights: np.ndarray) -> np.ndarray:
        share = shares(documents.by_label(weights))
        return js_divergence(share[..., :, None, :, :], share[..., None, :, :, :]) / scale

    upper = np.triu_indices(n, 1)
    observed = pairs(documents.once)
    resampled = documents.resampled(pairs, draws, seed)
    null = documents.shuffled(pairs, draws, seed + 1)
    p = p_value(observed, null)
    p[np.arange(n), np.arange(n)] = np.nan
    q = np.full_like(p, np.nan)
    q[upper] = fdr(p[upper])
    q = np.where(np.isnan(q), q.swapaxes(0, 1), q)
    mean, mean_null = observed[upper].mean(0), null[:, upper[0], upper[1]].mean(1)
    three, within = ("label", "label_2", "block"), (0, np.log(2) / scale)
    floor = _halves(documents, draws, seed) / scale
    return documents.table(
        "divergence",
        {
            **with_interval("jsd", three, observed, resampled, level, within),
            "jsd_null": (three, null.mean(0)), "jsd_excess": (three, observed - null.mean(0)),
            "jsd_p": (three, p), "jsd_q": (three, q),
            "jsd_floor": (("label", "block"), floor),
            **with_interval("mean_jsd", ("block",), mean, resampled[:, upper[0], upper[1]].mean(1), level, within),
            "mean_jsd_null": (("block",), mean_null.mean(0)), "mean_jsd_p": (("block",), p_value(mean, mean_null)),
            "mean_jsd_floor": (("block",), nanmean(floor)),
        },
        {name: {**x, "units": unit if x["units"] else ""} for name, x in VARIABLES.items()},
        {"of": of, "unit": unit, "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object),
    )  # fmt: skip


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
            values.append(js_divergence(shares(a), shares(b)))
        found[i] = np.mean(values, 0)
    return found


def information(
    source: Reading | Trace, *, of: str = "count", draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """I(label; expert) / H(label), labels balanced: how much of the label one slot's expert tells.

    information [block] with interval, information_null (labels shuffled among documents), information_excess and
    information_p.  It is as counted and so too high, as its null is; information_corrected is less that bias.
    """
    documents = Documents(source, of)
    documents.needs_labels("Information")

    def gained(weights: np.ndarray) -> np.ndarray:
        share = shares(documents.by_label(weights))
        return (entropy(share.mean(-3)) - entropy(share).mean(-2)) / np.log(len(documents.names))

    observed, one = gained(documents.once), ("block",)
    null = documents.shuffled(gained, draws, seed + 1)
    return documents.table(
        "information",
        {
            **with_interval("information", one, observed, documents.resampled(gained, draws, seed), level, (0, 1)),
            "information_null": (one, null.mean(0)), "information_excess": (one, observed - null.mean(0)),
            "information_p": (one, p_value(observed, null)),
        },
        VARIABLES,
        {"of": of, "draws": draws, "level": level, "seed": seed},
    )  # fmt: skip


def specialisation(source: Reading | Trace, *, draws: int = 500, level: float = 0.95, seed: int = 0) -> Reading:
    """Share of a label's tokens that an expert serves, P(expert in slots | label), and its lift over the labels' mean.

    token_share [label, block, expert] with interval and its uniform value (token_share_null: slots of a token that
    reach an expert, over E); lift = log2 of it over the mean of all labels, both with half a slot more; lift_p, of so
    high or so low a lift (two-sided) when labels are shuffled among documents; lift_q: false discovery rate over all
    cells.  p is at least 2 / (1 + draws), and q that times the cells over those found: where few of many cells are
    thought to differ, ``draws`` must be several times as many as cells.
    """
    documents = Documents(source)

    def tokens(weights: np.ndarray) -> np.ndarray:
        return (weights @ documents.tokens)[..., None, None]

    def per_token(weights: np.ndarray) -> np.ndarray:
        return over(documents.by_label(weights), tokens(weights))

    def lift(weights: np.ndarray) -> np.ndarray:
        share, n = per_token(weights), tokens(weights)
        return np.log2((share * n + 0.5) / (share.mean(-3, keepdims=True) * n + 0.5))

    observed = lift(documents.once)
    null = documents.shuffled(lift, draws, seed + 1)
    sided = np.minimum(1, 2 * np.minimum(p_value(observed, null), p_value(-observed, -null)))
    p = np.where(documents.exists, sided, np.nan)
    three = ("label", "block", "expert")
    return documents.table(
        "specialisation",
        {
            **with_interval(
                "token_share", three, per_token(documents.once), documents.resampled(per_token, draws, seed), level
            ),
            "token_share_null": (("block",), documents.active() / documents.experts),
            "lift": (three, observed), "lift_p": (three, p), "lift_q": (three, fdr(p)),
        },
        VARIABLES,
        {"draws": draws, "level": level, "seed": seed},
    )  # fmt: skip


def _listed(documents: Documents, count: np.ndarray, m: np.ndarray) -> np.ndarray:
    """[..., label, block, expert] whether an expert is among the m [block] most used of a label; the unused never."""
    order = (-np.where(documents.exists, count, -1)).argsort(-1, kind="stable").argsort(-1, kind="stable")
    return (order < m[:, None]) & (count > 0)


def _top(documents: Documents, top: int | None, default: np.ndarray) -> np.ndarray:
    """[block] the length of a label's list."""
    if top is not None and top < 1:
        raise InputError(f"top={top}: a list has one expert or more.")
    return np.minimum(default if top is None else top, documents.experts)


def agreement(
    source: Reading | Trace, *, top: int | None = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """Whether labels have the same most used experts: overlap of their lists of the ``top`` (default k) experts.

    shared [label, label_2, block] = |A and B| / top with interval, jaccard; shared_null = top / E, two lists at random
    (hypergeometric mean), shared_shuffled: labels shuffled among documents; shared_p, one-sided: of lists as far apart
    as these among shuffled labels.  An expert that a label never uses is on no list.
    """
    documents = Documents(source)
    documents.needs_labels("Agreement")
    m = _top(documents, top, documents.k)

    def meet(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = documents.by_label(weights)
        held = _listed(documents, count, m).astype(float)
        known = np.where(np.isnan(count).any(-1), np.nan, held.sum(-1))
        return np.einsum("...abe,...cbe->...acb", held, held), known[..., :, None, :] + known[..., None, :, :]

    def shared(weights: np.ndarray) -> np.ndarray:
        both, sizes = meet(weights)
        return both / m + 0 * sizes

    observed, (both, sizes) = shared(documents.once), meet(documents.once)
    null = documents.shuffled(shared, draws, seed + 1)
    p = np.where(np.eye(len(documents.names), dtype=bool)[..., None], np.nan, p_value(-observed, -null))
    three = ("label", "label_2", "block")
    return documents.table(
        "agreement",
        {
            **with_interval("shared", three, observed, documents.resampled(shared, draws, seed), level),
            "jaccard": (three, over(both, sizes - both)), "shared_null": (("block",), m / documents.experts),
            "shared_shuffled": (three, null.mean(0)), "shared_p": (three, p),
        },
        VARIABLES,
        {"top": top, "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def classes(
    source: Reading | Trace,
    *,
    top: int | None = None,
    threshold: float = 0.4,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Experts that are one label's and experts that are everyone's.

    Only the ``top`` (default 2k) experts of a label in a block count for it.  exclusivity [label, block, expert]: the
    label's share of what such labels give the expert; exclusive [label, block]: experts where it is above
    ``threshold``; universal [block]: experts that are among the top of all labels.  Both with interval and mean under
    shuffled labels (_null).  exclusive_p: of as many exclusive experts or more, universal_p: of as few universal ones
    or fewer; both small where labels have experts of their own.
    """
    documents = Documents(source)
    documents.needs_labels("Exclusivity")
    m = _top(documents, top, 2 * documents.k)

    def exclusivity(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = _listed(documents, count, m)
        own = np.where(best, shares(count), 0)
        return own / np.maximum(own.sum(-3, keepdims=True), 1e-300), best

    def counts(weights: np.ndarray) -> np.ndarray:
        count = documents.by_label(weights)
        own, best = exclusivity(count)
        # What a label without documents drawn has is not known, nor then what all have.
        lost = np.where(np.isnan(count).any(-1), np.nan, 0)
        each = (own > threshold).sum(-1) + lost
        return np.concatenate([each, (best.all(-3).sum(-1) + lost.sum(-2))[..., None, :]], -2)

    observed, drawn = counts(documents.once), documents.resampled(counts, draws, seed)
    null = documents.shuffled(counts, draws, seed + 1)
    p = p_value(observed, null)
    two, one = ("label", "block"), ("block",)
    return documents.table(
        "classes",
        {
            "exclusivity": (("label", "block", "expert"), exclusivity(documents.by_label())[0]),
            **with_interval("exclusive", two, observed[:-1], drawn[:, :-1], level),
            "exclusive_null": (two, null.mean(0)[:-1]), "exclusive_p": (two, p[:-1]),
            **with_interval("universal", one, observed[-1], drawn[:, -1], level),
            "universal_null": (one, null.mean(0)[-1]), "universal_p": (one, p_value(-observed, -null)[-1]),
        },
        VARIABLES,
        {"top": top, "threshold": threshold, "draws": draws, "level": level, "seed": seed},
    )  # fmt: skip


def parallel(
    source: Reading | Trace,
    groups: Sequence[Any],
    *,
    of: str = "probability",
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Divergence between translations: documents that say the same thing, pair by pair (after arXiv 2510.04694).

    Args:
        groups: for each document what it says (a sentence's number); a label has each at most once.
        of: "probability" (needs scores=True), "count" or "weight".

    divergence [label, label_2, block]: mean over the groups that both labels have (three or more) of JSD(q, q') over
    the mean entropy of q and q', with q the usage of one document; 0: alike.  With interval (groups drawn again) and
    divergence_null: the mean between documents of other meanings; divergence_excess = divergence - null (below 0:
    meaning routes); divergence_p, one-sided: how often translations paired at random are as near (five groups or more,
    else NaN: fewer have too few pairings).  Translations are as long as each other, and routing varies with length: so
    null and p pair documents with others of about their translation's length (ten groups or more; with fewer, with
    any).  pairs [label, label_2].

    Documents that are mostly unknown tokens (document_unknown above a fifth) say nothing that could be translated: they
    are left out with a warning, and where fewer than three groups remain a pair of labels is NaN.
    """
    documents = Documents(source, of)
    documents.needs_labels("Divergence of translations", whole=True)
    if len(groups) != len(documents.label):
        raise InputError(f"groups has {len(groups)} and there are {len(documents.label)} documents. Give one for each.")
    names = {x: j for j, x in enumerate(sorted({str(g) for g in groups}))}
    at = np.full((len(documents.names), len(names)), -1)
    for i, (label, group) in enumerate(zip(documents.label, groups, strict=True)):
        j = names[str(group)]
        if at[label, j] >= 0:
            raise InputError(
                f"Label {documents.names[label]!r} has two documents of group {group!r} ({at[label, j]} and {i}), so "
                "it is not known which translates which. Number them apart."
            )
        at[label, j] = i
    if "document_unknown" in documents.data:
        lost = documents.data["document_unknown"].values > UNKNOWN
        if lost.any():
            each = {name: int(lost[documents.label == i].sum()) for i, name in enumerate(documents.names)}
            named = [f"{name} {n}" for name, n in each.items() if n]
            warnings.warn(
                f"{int(lost.sum())} of {len(lost)} documents are more than {UNKNOWN:.0%} unknown tokens and were left "
                f"out ({', '.join(named)}): the tokenizer lacks their words, "
                "so they say nothing that a translation could share.",
                stacklevel=2,
            )
            at[documents.label[lost], [names[str(g)] for g, out in zip(groups, lost, strict=True) if out]] = -1
    share = shares(documents.count)
    spread = entropy(share)
    rng, n = np.random.default_rng(seed), len(documents.names)
    shape = (n, n, len(documents.blocks))
    value, low, high, null, p = (np.full(shape, np.nan) for _ in range(5))
    pairs = np.zeros((n, n), int)

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return js_divergence(share[a], share[b]) / np.maximum((spread[a] + spread[b]) / 2, 1e-300)

    for x, y in zip(*np.triu_indices(n, 1), strict=True):
        both = np.flatnonzero((at[x] >= 0) & (at[y] >= 0))
        pairs[x, y] = pairs[y, x] = len(both)
        if len(both) < 3:
            continue
        a, b = at[x, both], at[y, both]
        each = apart(a, b)
        mean = each.mean(0)
        alike = _alike(documents.tokens[b])
        # Each meaning beside each other one of like length: all turns of the list, or ``draws`` of them.
        turns = rng.permutation(np.arange(1, min(map(len, alike))))[:draws]
        other = np.mean([apart(a, b[_moved(alike, lambda own, k=k: np.roll(own, k))]).mean(0) for k in turns], 0)
        chance = np.full(len(mean), np.nan)
        if len(both) >= 5:
            drawn = [apart(a, b[_moved(alike, rng.permutation)]).mean(0) for _ in range(draws)]
            chance = p_value(-mean, -np.stack(drawn))
        own = (mean, *bootstrap_interval(each, level=level, draws=draws, seed=seed), other, chance)
        for table, found in zip((value, low, high, null, p), own, strict=True):
            table[x, y] = table[y, x] = found
    if not (pairs >= 3).any():
        raise InputError("No two labels share three groups, so there are no translations to compare.")
    three = ("label", "label_2", "block")
    return documents.table(
        "parallel",
        {
            "divergence": (three, value), "divergence_low": (three, low), "divergence_high": (three, high),
            "divergence_null": (three, null), "divergence_excess": (three, value - null), "divergence_p": (three, p),
            "pairs": (three[:2], pairs),
        },
        VARIABLES,
        {"of": of, "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def _alike(length: np.ndarray) -> list[np.ndarray]:
    """The numbers of documents in sets of five to nine of about one length; in one set where all are as long."""
    sets = 1 if (length == length[0]).all() else max(1, len(length) // 5)
    return [np.sort(own) for own in np.array_split(length.argsort(kind="stable"), sets)]


def _moved(sets: list[np.ndarray], move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[documents] which document is in the place of each, each set moved within itself."""
    found = np.empty(sum(map(len, sets)), int)
    for own in sets:
        found[own] = move(own)
    return found


def differences(source: Reading | Trace, *, draws: int = 199, seed: int = 0) -> Reading:
    """The largest difference of expert shares between two labels, over all blocks and experts, for each pair.

    difference [pair], difference_shuffled [pair, draw]: the same in every shuffle of the pair's documents.  A
    difference of a block and an expert is beyond chance (family-wise) where few shuffles reach it.
    pair_labels [pair, side].
    """
    documents = Documents(source)
    documents.needs_labels("A difference", whole=True)
    pairs = list(itertools.combinations(range(len(documents.names)), 2))
    largest = np.full((len(pairs), draws + 1), np.nan)  # the first as it is
    for i, (a, b) in enumerate(pairs):
        own = np.flatnonzero(np.isin(documents.label, (a, b)))
        count = documents.count[own]
        rng, is_a = np.random.default_rng([seed, a, b]), documents.label[own] == a
        total, slots = count.sum(0), count.sum(2)
        flat = count.reshape(len(own), -1).astype(np.float32)

        def gaps(first: np.ndarray, total=total, slots=slots, flat=flat) -> np.ndarray:
            picked = first.astype(np.float32)
            a, n = (picked @ flat).reshape(-1, *total.shape), (picked @ slots)[..., None]
            rest, m = total.astype(np.float32) - a, slots.sum(0)[:, None] - n
            return np.abs(a / np.maximum(n, 1) - rest / np.maximum(m, 1)).reshape(len(picked), -1).max(1)

        largest[i, 0] = gaps(is_a[None])[0]
        for start in range(1, draws + 1, 20):
            order = rng.permuted(np.tile(is_a, (min(20, draws + 1 - start), 1)), axis=1)
            largest[i, start : start + len(order)] = gaps(order)
    names = np.array(documents.names, object)
    return documents.table(
        "differences",
        {
            "difference": (("pair",), largest[:, 0]), "difference_shuffled": (("pair", "draw"), largest[:, 1:]),
            "pair_labels": (("pair", "side"), names[np.array(pairs, int).reshape(-1, 2)]),
        },
        VARIABLES,
        {"draws": draws, "seed": seed},
    )  # fmt: skip


def decode(
    source: Reading | Trace,
    *,
    of: str = "count",
    groups: Sequence[Any] | None = None,
    folds: int = 5,
    strength: float = 1.0,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Whether a document's label can be read off its routing, by ridge regression on documents held out.

    Features are square roots of expert shares.  Documents of one group (of one source, or translations of one text)
    are never on both sides of a split; labels are spread evenly over the folds.

    auroc [view, label]: one label against the others, for each block (views "block 3", ...) and all together ("all"),
    with interval over documents; macro [view], their mean, with macro_null and macro_p of shuffled labels.  Labels are
    shuffled as they could have fallen: within groups that hold several, else among whole groups, and within a fold.
    Two views hold what is not the experts' names: "length" (the document's log length alone) and "unnamed" (shares in
    order of size: how even routing is, whoever serves).  They say what of "all" is no specialisation.
    """
    documents = Documents(source, of)
    documents.needs_labels("Decoding", whole=True)
    label, n = documents.label, len(documents.names)
    given = [str(g) for g in (range(len(label)) if groups is None else groups)]
    if len(given) != len(label):
        raise InputError(f"groups has {len(given)} and there are {len(label)} documents. Give one for each.")
    if folds < 2:
        raise InputError(f"folds={folds}: documents are held out, so two folds are the least.")
    named, group = np.unique(given, return_inverse=True)
    if len(named) < folds:
        raise InputError(f"{folds} folds need as many groups of documents, and there are {len(named)}.")
    rng = np.random.default_rng(seed)
    side = _folds(label, group, folds, rng)
    # A document without a routed slot has no features.
    share = np.sqrt(np.nan_to_num(shares(documents.count)))
    views = {f"block {b}": share[:, i] for i, b in enumerate(documents.blocks)}
    views["all"] = share.reshape(len(label), -1)
    views["length"] = np.log(documents.tokens)[:, None]
    views["unnamed"] = np.sort(share, -1).reshape(len(label), -1)

    def areas(scores: np.ndarray, label: np.ndarray, of: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.array([auroc(scores[of, i], label[of] == i) for i in range(n)])

    found, drawn, null = [], [], []
    orders = [_shuffled(label, group, side, rng) for _ in range(draws)]
    members = [np.flatnonzero(label == i) for i in range(n)]
    picks = [np.concatenate([rng.choice(own, len(own)) for own in members]) for _ in range(draws)]
    alone = [len(own) < 2 for own in members]
    for features in views.values():
        held_out = _ridge(features, side, folds, strength)
        scores = held_out(np.eye(n)[label])
        found.append(areas(scores, label))
        drawn.append([np.where(alone, np.nan, areas(scores, label, pick)) for pick in picks])
        null.append([np.nanmean(areas(held_out(np.eye(n)[order]), order)) for order in orders])
    value, drawn, null = np.array(found), np.array(drawn).swapaxes(0, 1), np.array(null).T
    macro = np.nanmean(value, 1)
    return documents.table(
        "decode",
        {
            **with_interval("auroc", ("view", "label"), value, drawn, level),
            **with_interval("macro", ("view",), macro, drawn.mean(2), level),
            "macro_null": (("view",), null.mean(0)), "macro_p": (("view",), p_value(macro, null)),
        },
        VARIABLES,
        {"of": of, "folds": folds, "strength": strength, "draws": draws, "level": level, "seed": seed},
        view=np.array(list(views), object),
    )  # fmt: skip


def _folds(label: np.ndarray, group: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """[documents] the fold of each: groups in random order, those of the same labels dealt out in turn."""
    held = np.zeros((group.max() + 1, label.max() + 1), int)
    np.add.at(held, (group, label), 1)
    order = rng.permutation(len(held))
    order = order[np.lexsort(held[order].T)]
    fold = np.empty(len(held), int)
    fold[order] = np.arange(len(held)) % folds
    return fold[group]


def _shuffled(label: np.ndarray, group: np.ndarray, side: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels in another order: within each group that holds several, else among whole groups of the same fold."""
    found = label.copy()
    first = np.full(group.max() + 1, -1)
    first[group] = label
    several = np.zeros(len(first), bool)
    several[group[first[group] != label]] = True
    fold = np.empty(len(first), int)
    fold[group] = side
    for i in np.unique(fold):
        whole = np.flatnonzero((fold == i) & ~several)
        first[whole] = first[rng.permutation(whole)]
    found = first[group]
    for g in np.flatnonzero(several):
        own = np.flatnonzero(group == g)
        found[own] = label[rng.permutation(own)]
    return found


def _ridge(features: np.ndarray, side: np.ndarray, folds: int, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Targets [documents, labels] -> scores of documents by a ridge regression fitted to the other folds.

    Scores are of targets less their mean in the fold's training documents: that mean is lower for the very labels that
    were held out, and would rank documents by it.  They are linear in the targets, so shuffled ones cost one product.
    """
    parts = []
    for i in range(folds):
        test, train = np.flatnonzero(side == i), np.flatnonzero(side != i)
        x = features[train]
        centre, scale = x.mean(0), x.std(0).mean() + 1e-12
        x, z = (x - centre) / scale, (features[test] - centre) / scale
        if x.shape[1] < len(x):
            maps = [x.T, np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), z.T).T]
        else:
            maps = [np.linalg.solve(x @ x.T + strength * np.eye(len(x)), x @ z.T).T]
        parts.append((test, train, maps))

    def held_out(targets: np.ndarray) -> np.ndarray:
        scores = np.empty(targets.shape)
        for test, train, maps in parts:
            own = targets[train] - targets[train].mean(0)
            for linear in maps:
                own = linear @ own
            scores[test] = own
        return scores

    return held_out
