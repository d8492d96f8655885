"""Labels beside each other: how far apart their routing is, and which experts are whose."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import family
from probes.routing.measures.confounds import CONFOUNDS, confounds
from probes.routing.measures.contrast import Contrast, against_mean, apart, by_chance, gap, warn_of
from probes.routing.measures.documents import Clusters, Documents, chosen, shares
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import Design, auroc, entropy, fdr, js_divergence, nanmean, over, p_value, step_down
from workbench.tokens import UNKNOWN
from workbench.variables import about

if TYPE_CHECKING:
    from probes.routing.store import Trace


ENDS = ("low", "high")
JSD = "Jensen-Shannon divergence"
VARIABLES = {
    **family("jsd", about(JSD, "nats", "high", short_name="JSD"), *ENDS, "corrected", "null", "excess", "p", "q"),
    "jsd_floor": about(f"{JSD}, of halves of one label's documents", "nats", "high", "floor", "jsd"),
    **family(
        "mean_jsd", about(f"mean {JSD} between labels", "nats", "high", short_name="JSD"),
        *ENDS, "corrected", "null", "p",
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
        "divergence",
        about(f"{JSD} of translations over their mean entropy", better="low", short_name="JSD / mean entropy"),
        *ENDS, "null", "excess", "p",
    ),
    "pairs": about("translations compared", role="count", of="divergence"),
    **family("auroc", about("area under the ROC curve of the label", better="high"), *ENDS),
    **family("macro", about("mean area under the ROC curve", better="high"), *ENDS, "null", "p"),
    "difference": about("expert's share of the first label less that of the second"),
    "difference_p": about("family-wise p of the difference of expert shares", "", "low", "p", "difference"),
    "pair_labels": about("labels of the pair", role="label", of="difference"),
    **CONFOUNDS,
}  # fmt: skip


def divergence(
    source: Reading | Trace,
    *,
    of: str = "count",
    unit: str = "nats",
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Jensen-Shannon divergence between the expert usage of labels.

    Parameters
    ----------
    of
        "count", shares of the slots (arXiv 2605.29714, its code); "probability", mean gate probabilities (its text);
        or "weight".
    unit
        "nats" or "bits".
    clusters, tokens
        As in :class:`Documents`: documents that count as one (default: near-duplicates), and tokens kept of each.
    draws, level, seed
        Of the shuffles, of the interval, of both.

    Returns
    -------
    Reading
        jsd [label, label_2, block] with interval; jsd_null: what documents of one kind differ by, as few and as long as
        the pair's; jsd_excess: what is left above it; jsd_p: permutation p of each pair and block, and jsd_q: its
        false discovery rate over all of them; jsd_floor [label, block]: between random halves of a label's documents
        (half as many as a pair of labels has, so that chance alone gives them about twice its share).  mean_jsd [block]
        over pairs, with interval, null, p and floor (the mean of the labels').  jsd and mean_jsd are as counted, and
        comparable with null and floor: all are too high, the more so the fewer the documents; _corrected is less that
        bias.  length, unknown [label] and length_p, unknown_p: :func:`confounds`.

    Notes
    -----
    The p of a pair is of its own documents, labels shuffled among those alone: what other labels do says nothing of it.
    What is compared is studentised (:class:`probes.routing.measures.contrast.Contrast`), so that documents of a label
    may be fewer, shorter or more unlike than another's.  jsd_null is the mean of shuffles, times what the labels' own
    documents vary by over what shuffled ones do.  p is NaN where a label has one document (cluster), and where labels
    are told apart by length or unknown tokens alone.
    """
    documents = Documents(source, of, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("Divergence")
    n, scale = len(documents.names), _unit(unit)
    beside, refused = confounds(documents, seed=seed)
    upper = np.triu_indices(n, 1)

    def pairs(weights: np.ndarray) -> np.ndarray:
        share = shares(documents.by_label(weights))
        return js_divergence(share[..., :, None, :, :], share[..., None, :, :, :]) / scale

    def mean(weights: np.ndarray) -> np.ndarray:
        return pairs(weights)[..., upper[0], upper[1], :].mean(-2)

    shape = (n, n, len(documents.blocks))
    null, p, ways = np.full(shape, np.nan), np.full(shape, np.nan), 1.0
    for a, b in zip(*upper, strict=True):
        pair = Contrast.of(documents, (a, b))
        chance, own = by_chance(pair, draws, seed + 1)
        ways = max(ways, pair.ways())
        null[a, b] = null[b, a] = chance / scale
        if not refused[a, b]:
            p[a, b] = p[b, a] = own
    null[np.arange(n), np.arange(n)] = 0 if np.isfinite(null).any() else np.nan
    every = Contrast.of(documents)
    mean_p = p_value(*every.test(apart, draws, seed + 1))
    q = np.full_like(p, np.nan)
    q[upper] = fdr(p[upper])
    q = np.where(np.isnan(q), q.swapaxes(0, 1), q)
    warn_of("jsd_q", draws, int((~np.isnan(p[upper])).sum()), ways)
    three, within = ("label", "label_2", "block"), (0, np.log(2) / scale)
    floor = _halves(documents, draws, seed) / scale
    settings = {"level": level, "draws": draws, "seed": seed, "within": within, "biased": True}
    return documents.table(
        "divergence",
        {
            **documents.estimate("jsd", three, pairs, **settings),
            "jsd_null": (three, null), "jsd_excess": (three, pairs(documents.once) - null),
            "jsd_p": (three, p), "jsd_q": (three, q),
            "jsd_floor": (("label", "block"), floor),
            **documents.estimate("mean_jsd", ("block",), mean, **settings),
            "mean_jsd_null": (("block",), null[upper].mean(0)),
            "mean_jsd_p": (("block",), np.where(refused.any(), np.nan, mean_p)),
            "mean_jsd_floor": (("block",), nanmean(floor)),
            **beside,
        },
        {name: {**x, "units": unit if x["units"] == "nats" else x["units"]} for name, x in VARIABLES.items()},
        {"of": of, "unit": unit, **chosen(clusters, tokens), "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def _unit(unit: str) -> float:
    if unit not in ("nats", "bits"):
        raise InputError(f"unit={unit!r} is unknown. Use 'nats' or 'bits'.")
    return 1.0 if unit == "nats" else float(np.log(2))


def _halves(documents: Documents, draws: int, seed: int) -> np.ndarray:
    """[label, block] mean divergence between random halves of a label's documents (of whole clusters)."""
    rng = np.random.default_rng(seed)
    found = np.full((len(documents.names), len(documents.blocks)), np.nan)
    for i in range(len(documents.names)):
        own = np.flatnonzero(documents.label == i)
        cluster = np.unique(documents.cluster[own], return_inverse=True)[1].reshape(-1)
        n = int(cluster.max(initial=-1)) + 1
        if n < 4:
            continue
        half = n // 2
        order = rng.permuted(np.tile(np.arange(n), (min(draws, 100), 1)), axis=1)[:, cluster]
        sides = ((order < half).astype(float), ((order >= half) & (order < 2 * half)).astype(float))
        if len(order):
            found[i] = js_divergence(*(shares(np.tensordot(x, documents.count[own], 1)) for x in sides)).mean(0)
    return found


def information(
    source: Reading | Trace,
    *,
    of: str = "count",
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """I(label; expert) / H(label), labels balanced: how much of the label one slot's expert tells.

    Parameters
    ----------
    of, clusters, tokens, draws, level, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        information [block] with interval, information_null (of labels that mean nothing, as in :func:`divergence`),
        information_excess and information_p: the test of mean_jsd_p.  It is as counted and so too high, as its null is;
        information_corrected is less that bias.
    """
    documents = Documents(source, of, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("Information")
    beside, refused = confounds(documents, seed=seed)
    scale = np.log(len(documents.names))

    def gained(weights: np.ndarray) -> np.ndarray:
        share = shares(documents.by_label(weights))
        return (entropy(share.mean(-3)) - entropy(share).mean(-2)) / scale

    one = ("block",)
    every = Contrast.of(documents)
    null, p = by_chance(every, draws, seed + 1)
    warn_of("information_p", draws, 1, every.ways())
    return documents.table(
        "information",
        {
            **documents.estimate(
                "information", one, gained, level=level, draws=draws, seed=seed, within=(0, 1), biased=True
            ),
            "information_null": (one, null / scale), "information_excess": (one, gained(documents.once) - null / scale),
            "information_p": (one, np.where(refused.any(), np.nan, p)),
            **beside,
        },
        VARIABLES,
        {"of": of, **chosen(clusters, tokens), "draws": draws, "level": level, "seed": seed},
    )  # fmt: skip


def specialisation(
    source: Reading | Trace,
    *,
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Share of a label's tokens that an expert serves, P(expert in slots | label), and its lift over the labels' mean.

    Parameters
    ----------
    clusters, tokens, draws, level, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        token_share [label, block, expert] with interval and its uniform value (token_share_null: slots of a token that
        reach an expert, over E); lift = log2 of it over the mean of all labels, both with half a slot more; lift_p, of
        a share as far from that mean, in standard errors, when labels are shuffled among documents (two-sided);
        lift_q: false discovery rate over all cells.  A warning says how many draws let a single cell be found.
    """
    documents = Documents(source, clusters=clusters, tokens=tokens, seed=seed)
    beside, refused = confounds(documents, seed=seed)
    n = (documents.once @ documents.tokens)[:, None, None]
    share = over(documents.by_label(), n)
    lift = np.log2((share * n + 0.5) / (share.mean(0) * n + 0.5))
    p = np.full(lift.shape, np.nan)
    if len(documents.names) > 1:
        every = Contrast.of(documents, by_token=True)
        p = p_value(*(np.abs(x) for x in every.test(against_mean, draws, seed + 1)))
        p = np.where(documents.exists & ~np.asarray(refused.any(1))[:, None, None], p, np.nan)
        warn_of("lift_q", draws, int((~np.isnan(p)).sum()), every.ways())
    three = ("label", "block", "expert")
    return documents.table(
        "specialisation",
        {
            **documents.shares("token_share", three, level=level, draws=min(draws, 500), seed=seed, tokens=True),
            "token_share_null": (("block",), documents.active() / documents.experts),
            "lift": (three, lift), "lift_p": (three, p), "lift_q": (three, fdr(p)),
            **beside,
        },
        VARIABLES,
        {**chosen(clusters, tokens), "draws": draws, "level": level, "seed": seed},
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
    source: Reading | Trace,
    *,
    top: int | None = None,
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Whether labels have the same most used experts: overlap of their lists of the ``top`` (default k) experts.

    Parameters
    ----------
    clusters, tokens, draws, level, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        shared [label, label_2, block] = |A and B| / top with interval, jaccard; shared_null = top / E, two lists at
        random (hypergeometric mean); shared_shuffled: labels shuffled among the pair's documents; shared_p, one-sided:
        of lists as far apart as these among shuffled ones.  An expert that a label never uses is on no list.

    Notes
    -----
    A list of few tokens is far from every other by chance, and cannot be studentised: shared_p and shared_shuffled are
    of documents of as many tokens each, those of the shortest (``tokens="equal"``), where their lengths differ.
    """
    documents = Documents(source, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("Agreement")
    beside, refused = confounds(documents, seed=seed)
    even, m = documents.even(seed), _top(documents, top, documents.k)

    def meet(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        held = _listed(documents, count, m).astype(float)
        known = np.where(np.isnan(count).any(-1), np.nan, held.sum(-1))
        return np.einsum("...abe,...cbe->...acb", held, held), known[..., :, None, :] + known[..., None, :, :]

    def shared(count: np.ndarray) -> np.ndarray:
        both, sizes = meet(count)
        return both / m + 0 * sizes

    observed, (both, sizes) = shared(even.by_label()), meet(documents.by_label())
    n = len(documents.names)
    null, p = np.full((2, *observed.shape), np.nan)
    for a, b in zip(*np.triu_indices(n, 1), strict=True):

        def own(weights: np.ndarray, pair: tuple[int, int] = (a, b)) -> np.ndarray:
            return shared(even.by_label(weights[..., pair, :]))[..., 0, 1, :]

        drawn = even.shuffled(own, draws, seed + 1, (a, b))
        null[a, b] = null[b, a] = drawn.mean(0)
        p[a, b] = p[b, a] = np.where(refused[a, b], np.nan, p_value(-observed[a, b], -drawn))
    three = ("label", "label_2", "block")
    return documents.table(
        "agreement",
        {
            **documents.estimate(
                "shared", three, lambda w: shared(documents.by_label(w)), level=level, draws=draws, seed=seed,
                within=(0, 1),
            ),
            "jaccard": (three, over(both, sizes - both)), "shared_null": (("block",), m / documents.experts),
            "shared_shuffled": (three, null), "shared_p": (three, p),
            **beside,
        },
        VARIABLES,
        {"top": top, **chosen(clusters, tokens), "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object),
    )  # fmt: skip


def classes(
    source: Reading | Trace,
    *,
    top: int | None = None,
    threshold: float = 0.4,
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Experts that are one label's and experts that are everyone's.

    Parameters
    ----------
    top
        Only so many (default 2k) experts of a label in a block count for it.
    threshold
        Exclusivity above which an expert is a label's own.
    clusters, tokens, draws, level, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        exclusivity [label, block, expert]: the label's share of what such labels give the expert; exclusive [label,
        block]: experts where it is above ``threshold``; universal [block]: experts that are among the top of all
        labels.  Both with interval and mean under shuffled labels (_null).  exclusive_p: of as many exclusive experts
        or more, universal_p: of as few universal ones or fewer; both small where labels have experts of their own.

    Notes
    -----
    Null and p are of documents of as many tokens each, where their lengths differ (as in :func:`agreement`).
    """
    documents = Documents(source, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("Exclusivity")
    beside, refused = confounds(documents, seed=seed)
    even, m = documents.even(seed), _top(documents, top, 2 * documents.k)

    def exclusivity(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = _listed(documents, count, m)
        own = np.where(best, shares(count), 0)
        return own / np.maximum(own.sum(-3, keepdims=True), 1e-300), best

    def counts(of: Documents, weights: np.ndarray) -> np.ndarray:
        count = of.by_label(weights)
        own, best = exclusivity(count)
        # What a label without documents drawn has is not known, nor then what all have.
        lost = np.where(np.isnan(count).any(-1), np.nan, 0)
        each = (own > threshold).sum(-1) + lost
        return np.concatenate([each, (best.all(-3).sum(-1) + lost.sum(-2))[..., None, :]], -2)

    observed = counts(even, even.once)
    null = even.shuffled(lambda w: counts(even, w), draws, seed + 1)
    p, fewer = (np.where(refused.any(), np.nan, p_value(x * observed, x * null)) for x in (1, -1))
    two, one = ("label", "block"), ("block",)
    settings = {"level": level, "draws": draws, "seed": seed, "within": (0, None)}
    return documents.table(
        "classes",
        {
            "exclusivity": (("label", "block", "expert"), exclusivity(documents.by_label())[0]),
            **documents.estimate("exclusive", two, lambda w: counts(documents, w)[..., :-1, :], **settings),
            "exclusive_null": (two, null.mean(0)[:-1]), "exclusive_p": (two, p[:-1]),
            **documents.estimate("universal", one, lambda w: counts(documents, w)[..., -1, :], **settings),
            "universal_null": (one, null.mean(0)[-1]), "universal_p": (one, fewer[-1]),
            **beside,
        },
        VARIABLES,
        {
            "top": top, "threshold": threshold, **chosen(clusters, tokens), "draws": draws, "level": level,
            "seed": seed,
        },
    )  # fmt: skip


def parallel(
    source: Reading | Trace,
    clusters: Sequence[Any],
    *,
    of: str = "probability",
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Divergence between translations: documents that say the same thing, pair by pair (after arXiv 2510.04694).

    Parameters
    ----------
    clusters
        For each document what it says (a sentence's number); a label has each at most once.
    of
        "probability" (needs scores=True), "count" or "weight".
    draws, level, seed
        Of the pairings, of the interval, of both.

    Returns
    -------
    Reading
        divergence [label, label_2, block]: mean over the clusters that both labels have (three or more) of JSD(q, q')
        over the mean entropy of q and q', with q the usage of one document; 0: alike.  With interval (clusters drawn
        again) and divergence_null: the mean between documents of other meanings; divergence_excess = divergence - null
        (below 0: meaning routes); divergence_p, one-sided: how often translations paired at random are as near (five
        clusters or more, else NaN: fewer have too few pairings).  pairs [label, label_2].

    Notes
    -----
    Translations are as long as each other, and routing varies with length: so null and p pair documents with others of
    about their translation's length (ten clusters or more; with fewer, with any).  Documents that are mostly unknown
    tokens (document_unknown above a fifth) say nothing that could be translated: they are left out with a warning, and
    where fewer than three clusters remain a pair of labels is NaN.
    """
    documents = Documents(source, of, clusters=clusters)
    documents.needs_labels("Divergence of translations", whole=True)
    names = {x: j for j, x in enumerate(sorted({str(g) for g in clusters}))}
    at = np.full((len(documents.names), len(names)), -1)
    for i, (label, cluster) in enumerate(zip(documents.label, clusters, strict=True)):
        j = names[str(cluster)]
        if at[label, j] >= 0:
            raise InputError(
                f"Label {documents.names[label]!r} has two documents of cluster {cluster!r} ({at[label, j]} and {i}), "
                "so it is not known which translates which. Number them apart."
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
            at[documents.label[lost], [names[str(g)] for g, out in zip(clusters, lost, strict=True) if out]] = -1
    share = shares(documents.count)
    spread = entropy(share)
    rng, n = np.random.default_rng(seed), len(documents.names)
    shape = (n, n, len(documents.blocks))
    value, low, high, null, p = (np.full(shape, np.nan) for _ in range(5))
    pairs = np.zeros((n, n), int)
    methods: dict[str, str] = {}

    def unlike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return js_divergence(share[a], share[b]) / np.maximum((spread[a] + spread[b]) / 2, 1e-300)

    for x, y in zip(*np.triu_indices(n, 1), strict=True):
        both = np.flatnonzero((at[x] >= 0) & (at[y] >= 0))
        pairs[x, y] = pairs[y, x] = len(both)
        if len(both) < 3:
            continue
        a, b = at[x, both], at[y, both]
        each = unlike(a, b)
        mean = each.mean(0)
        alike = _alike(documents.tokens[b])
        # Each meaning beside each other one of like length: all turns of the list, or ``draws`` of them.
        turns = rng.permutation(np.arange(1, min(map(len, alike))))[:draws]
        other = np.mean([unlike(a, b[_moved(alike, lambda own, k=k: np.roll(own, k))]).mean(0) for k in turns], 0)
        chance = np.full(len(mean), np.nan)
        if len(both) >= 5:
            drawn = [unlike(a, b[_moved(alike, rng.permutation)]).mean(0) for _ in range(draws)]
            chance = p_value(-mean, -np.stack(drawn))
        ends = Design(n=len(each)).bootstrap(each, level=level, draws=draws, seed=seed, bounds=(0, np.inf))
        methods[f"{documents.names[x]} and {documents.names[y]}"] = ends.said("translations")
        own = (mean, ends.low, ends.high, other, chance)
        for table, found in zip((value, low, high, null, p), own, strict=True):
            table[x, y] = table[y, x] = found
    if not (pairs >= 3).any():
        raise InputError("No two labels share three clusters, so there are no translations to compare.")
    documents.methods = methods
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


def differences(
    source: Reading | Trace,
    *,
    clusters: Clusters = None,
    tokens: int | str | None = None,
    draws: int = 199,
    seed: int = 0,
) -> Reading:
    """Differences of expert shares between two labels, each with a p that holds for all of the pair's together.

    Parameters
    ----------
    clusters, tokens, draws, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        difference [pair, block, expert]: the first label's share less the second's; difference_p: family-wise over the
        pair's blocks and experts, of differences in units of their standard errors when labels are shuffled among the
        pair's documents (step-down max-T).  pair_labels [pair, side].
    """
    documents = Documents(source, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("A difference", whole=True)
    beside, refused = confounds(documents, seed=seed)
    pairs = list(itertools.combinations(range(len(documents.names)), 2))
    share = shares(documents.by_label())
    p, ways = np.full((len(pairs), *share.shape[1:]), np.nan), 1.0
    for i, (a, b) in enumerate(pairs):
        pair = Contrast.of(documents, (a, b))
        ways = max(ways, pair.ways())
        observed, null = pair.test(gap, draws, seed + i)
        if not refused[a, b]:
            p[i] = step_down(np.where(documents.exists, observed, np.nan), null)
    warn_of("difference_p", draws, 1, ways)
    names, at = np.array(documents.names, object), np.array(pairs, int).reshape(-1, 2)
    three = ("pair", "block", "expert")
    return documents.table(
        "differences",
        {
            "difference": (three, share[at[:, 0]] - share[at[:, 1]]), "difference_p": (three, p),
            "pair_labels": (("pair", "side"), names[at]),
            **beside,
        },
        VARIABLES,
        {**chosen(clusters, tokens), "draws": draws, "seed": seed},
    )  # fmt: skip


def decode(
    source: Reading | Trace,
    *,
    of: str = "count",
    clusters: Clusters = None,
    tokens: int | str | None = None,
    folds: int = 5,
    strength: float = 1.0,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Whether a document's label can be read off its routing, by ridge regression on documents held out.

    Parameters
    ----------
    clusters
        Documents of one cluster (of one source, translations of one text; default: near-duplicates) are never on both
        sides of a split; False: each by itself.
    folds, strength
        How often a part is held out, and the penalty of the regression.
    of, tokens, draws, level, seed
        As in :func:`divergence`.

    Returns
    -------
    Reading
        auroc [view, label]: one label against the others, for each block (views "block 3", ...) and all together
        ("all"), with interval over documents; macro [view], their mean, with macro_null and macro_p of shuffled labels.
        Two views hold what is not the experts' names: "length" (the document's log length alone) and "unnamed" (shares
        in order of size: how even routing is, whoever serves).  They say what of "all" is no specialisation.

    Notes
    -----
    Features are square roots of expert shares.  Labels are spread evenly over the folds.  They are shuffled as they
    could have fallen: within clusters that hold several, else among whole clusters, and within a fold.
    """
    documents = Documents(source, of, clusters=clusters, tokens=tokens, seed=seed)
    documents.needs_labels("Decoding", whole=True)
    beside, _ = confounds(documents, seed=seed)
    label, n = documents.label, len(documents.names)
    if folds < 2:
        raise InputError(f"folds={folds}: documents are held out, so two folds are the least.")
    named, group = np.unique(documents.cluster, return_inverse=True)
    if len(named) < folds:
        raise InputError(f"{folds} folds need as many clusters of documents, and there are {len(named)}.")
    rng = np.random.default_rng(seed)
    side = _folds(label, group, folds, rng)
    # A document without a routed slot has no features.
    share = np.sqrt(np.nan_to_num(shares(documents.count)))
    views = {f"block {b}": share[:, i] for i, b in enumerate(documents.blocks)}
    views["all"] = share.reshape(len(label), -1)
    views["length"] = np.log(documents.length)[:, None]
    views["unnamed"] = np.sort(share, -1).reshape(len(label), -1)

    held, null = [], []
    orders = [_shuffled(label, group, side, rng) for _ in range(draws)]
    for features in views.values():
        held_out = _ridge(features, side, folds, strength)
        held.append(held_out(np.eye(n)[label]))
        null.append([
            np.nanmean([auroc(scores[:, i], order == i) for i in range(n)])
            for order in orders for scores in [held_out(np.eye(n)[order])]
        ])  # fmt: skip
    null = np.array(null).T

    def areas(weights: np.ndarray) -> np.ndarray:
        times = weights.sum(-2)
        return np.stack(
            [np.stack([_area(own[:, i], label == i, times) for i in range(n)], -1) for own in held], -2
        )

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.nanmean(areas(weights), -1)

    settings = {"level": level, "draws": draws, "seed": seed, "within": (0, 1)}
    macro = mean(documents.once)
    warn_of("macro_p", draws, 1, np.inf)
    return documents.table(
        "decode",
        {
            **documents.estimate("auroc", ("view", "label"), areas, **settings),
            **documents.estimate("macro", ("view",), mean, **settings),
            "macro_null": (("view",), null.mean(0)), "macro_p": (("view",), p_value(macro, null)),
            **beside,
        },
        VARIABLES,
        {
            "of": of, **chosen(clusters, tokens), "folds": folds, "strength": strength, "draws": draws, "level": level,
            "seed": seed,
        },
        view=np.array(list(views), object),
    )  # fmt: skip


def _area(scores: np.ndarray, positive: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[...] area under the ROC curve when documents are there ``times`` [..., document]; NaN without both kinds."""
    yes, no = scores[positive], scores[~positive]
    order = no.argsort(kind="stable")
    there = np.cumsum(times[..., ~positive][..., order], -1)
    there = np.concatenate([np.zeros((*there.shape[:-1], 1)), there], -1)
    left, right = (np.searchsorted(no[order], yes, side) for side in ("left", "right"))
    own = times[..., positive]
    # Ties count half.
    won = (own * (there[..., left] + there[..., right]) / 2).sum(-1)
    return over(won, own.sum(-1) * there[..., -1])


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
