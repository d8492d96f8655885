"""Tokens: what of routing is the token itself, what its neighbours, what its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.results import family
from probes.routing.measures.confounds import CONFOUNDS, confounds
from probes.routing.measures.contrast import Contrast, by_chance
from probes.routing.measures.documents import (
    Clusters,
    Documents,
    chosen,
    clustered,
    counts_of,
    grouped,
    intervals,
    left_out,
    shares,
    token_table,
)
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, Interval, js_divergence, mantel_table, nanmean, over
from workbench.variables import about, described

if TYPE_CHECKING:
    from probes.routing.store import Trace


ENDS = ("low", "high")
VARIABLES = {
    "jaccard": about("Jaccard index of both vocabularies"),
    "contained": about("shared types over the smaller vocabulary"),
    "weighted": about("shared frequency of both vocabularies"),
    "jsd": about("Jensen-Shannon divergence", "nats", short_name="JSD"),
    **family(
        "pearson", about("correlation of divergence and shared vocabulary", better="low"), *ENDS,
    ),
    "mantel_p": about("p of the correlation, by Mantel's permutations", "", "low", "p", "pearson"),
    **family("spearman", about("rank correlation of divergence and shared vocabulary", better="low"), "p"),
    **family(
        "specialisation", about("share of a token id's occurrences that one expert serves", better="high"),
        *ENDS, "null", "excess",
    ),
    "share": about("share of the occurrences that the id's expert serves", better="high"),
    "null": about("share of the occurrences that the id's expert serves, by loads", "", "high", "null", "share"),
    "expert": about("expert that serves the id most", role="label", of="share"),
    "experts": about("experts of the block", "experts", role="count", of="share"),
    "text": about("text of the token id", role="label", of="share"),
    "count": about("occurrences of the token id", role="count", of="share"),
    **family(
        "adjacent", about("share of experts that neighbours have in common", better="high"), *ENDS, "null",
    ),
    **family(
        "again", about("share of experts that two occurrences of a token id have in common", better="high"),
        *ENDS, "null",
    ),
    "uniform": about("share of experts in common, by chance", "", "high", "chance", "adjacent"),
    **family("by_token", about("share of the gate's variance between token ids"), *ENDS, "null"),
    "by_token_raw": about("share of the gate's variance between token ids, not adjusted for their number"),
    **family("by_position", about("share of the gate's variance between positions"), *ENDS),
    **family("by_context", about("share of the gate's variance that neither id nor position explains"), *ENDS),
    **CONFOUNDS,
}  # fmt: skip


def overlap(
    source: Reading | Trace,
    *,
    of: str = "count",
    given: Mapping[Any, Any] | None = None,
    clusters: Clusters = None,
    draws: int = 200,
    permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Vocabulary that labels share, and whether labels that share more are routed more alike.

    Parameters
    ----------
    of
        Which divergence of usage: "count", "weight" or "probability".
    given
        Label -> group (a script, a family): the correlation is then what is left among pairs once it is taken out
        whether a pair is of one group (partial Mantel; Smouse, Long & Sokal 1986).
    clusters
        Documents that count as one, as in :class:`Documents` (default: near-duplicates).
    draws, permutations, level, seed
        Shuffles for what divergence chance gives, permutations for p, and the interval's level.

    Returns
    -------
    Reading
        jaccard, contained (shared types over the smaller vocabulary), weighted (sum of the smaller of both frequencies)
        [label, label_2], of token ids; jsd [label, label_2, block] in nats; pearson, spearman [measure, block]:
        correlation over pairs of labels, pearson with interval (over documents), and mantel_p, spearman_p by Mantel's
        permutations.  Fewer than five labels cannot reach p < 0.05.

    Notes
    -----
    Pairs share labels, so that a correlation's ordinary p would be far too small.  Labels of fewer tokens have a
    smaller vocabulary and a larger divergence by chance, which is a correlation, too: p is therefore of vocabularies of
    as many tokens each (those of the label that has the fewest, drawn at random) and of divergences less what chance
    gives (jsd_null of :func:`probes.routing.measures.divergence`).
    """
    documents = Documents(source, of, clusters=clusters)
    documents.needs_labels("Shared vocabulary", whole=True)
    beside, _ = confounds(documents, seed=seed)
    n = len(documents.names)
    counts: list[dict[int, int]] = [{} for _ in range(n)]
    for rows in _ids(source):
        label = documents.label[rows["document"]]
        for i in range(n):
            for token, times in zip(*np.unique(rows["token"][label == i], return_counts=True), strict=True):
                counts[i][int(token)] = counts[i].get(int(token), 0) + int(times)
    ids = {token: j for j, token in enumerate(sorted({t for own in counts for t in own}))}
    table = np.zeros((n, len(ids)), np.int64)
    for i, own in enumerate(counts):
        table[i, [ids[t] for t in own]] = list(own.values())
    found = _in_common(table)
    rng, least = np.random.default_rng(seed), int(table.sum(1).min())
    even = _in_common(np.stack([rng.multivariate_hypergeometric(own, least, method="marginals") for own in table]))

    def pairs(weights: np.ndarray) -> np.ndarray:
        own = shares(documents.by_label(weights))
        return np.moveaxis(js_divergence(own[..., :, None, :, :], own[..., None, :, :, :]), -1, -3)

    same = None
    if given is not None:
        absent = [x for x in documents.names if x not in {str(k) for k in given}]
        if absent:
            raise InputError(f"given says nothing of the labels {', '.join(absent)}. Name a group for each.")
        group = {str(label): value for label, value in given.items()}
        same = np.array([[float(group[a] == group[b]) for b in documents.names] for a in documents.names])
    values, evened = np.array(list(found.values()), float), np.array(list(even.values()), float)
    apart = pairs(documents.once)
    above = apart.copy()
    for a, b in zip(*np.triu_indices(n, 1), strict=True):
        chance, _ = by_chance(Contrast.of(documents, (a, b)), draws, seed)
        above[:, a, b] = above[:, b, a] = apart[:, a, b] - chance

    def correlation(weights: np.ndarray) -> np.ndarray:
        drawn = pairs(weights)
        r, _ = mantel_table(values, drawn.reshape(-1, n, n), draws=0, given=same)
        return np.moveaxis(r.reshape(len(values), *drawn.shape[:-2]), 0, -2)

    rho, _ = mantel_table(values, apart, draws=0, rank=True, given=same)
    _, p = mantel_table(evened, above, draws=permutations, seed=seed, given=same)
    _, rho_p = mantel_table(evened, above, draws=permutations, seed=seed, rank=True, given=same)
    two, by = ("label", "label_2"), ("measure", "block")
    return documents.table(
        "overlap",
        {
            **{name: (two, values) for name, values in found.items()},
            "jsd": ((*two, "block"), np.moveaxis(apart, 0, -1)),
            **documents.estimate("pearson", by, correlation, level=level, draws=draws, seed=seed, within=(-1, 1)),
            "mantel_p": (by, p), "spearman": (by, rho), "spearman_p": (by, rho_p),
            **beside,
        },
        VARIABLES,
        {"of": of, "given": None if given is None else {str(k): str(v) for k, v in given.items()},
         **chosen(clusters, None), "permutations": permutations, "draws": draws, "level": level, "seed": seed},
        label_2=np.array(documents.names, object), measure=list(found),
    )  # fmt: skip


def _in_common(table: np.ndarray) -> dict[str, np.ndarray]:
    """Measures [label, label] of shared vocabulary, from how often each label has each type."""
    held, share = table > 0, table / table.sum(1, keepdims=True).clip(1)
    both = held.astype(float) @ held.T.astype(float)
    sizes = held.sum(1)
    return {
        "jaccard": both / (sizes[:, None] + sizes[None] - both).clip(1),
        "contained": both / np.minimum(sizes[:, None], sizes[None]).clip(1),
        "weighted": np.array([[np.minimum(a, b).sum() for b in share] for a in share]),
    }


def _ids(source: Reading | Trace) -> Any:
    """Token ids and documents; a reading has them without trace=True."""
    if not isinstance(source, Reading):
        yield from source.shards()
    elif "input_id" in source.data:
        ids = source.data["input_id"].values
        yield {"token": ids[ids >= 0], "document": np.nonzero(ids >= 0)[0]}
    else:
        raise InputError("This reading has no token ids (a trace has: give the Trace itself).")


def vocabulary(
    source: Reading | Trace,
    *,
    of: str | np.ndarray = "input",
    least: int = 10,
    clusters: Clusters = None,
    draws: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """Vocabulary specialisation: of a token id's occurrences, the share that its most frequent expert serves.

    Args:
        of: "input", the token at the position; "next", the one after it; or ids [prompt, position] of your own (say,
            the next token that the model predicts, as ``LogitLens`` reads it in the last layer); below 0: none.
        least: only ids with at least so many occurrences count; a token seen once would score 1 by construction.

    Each is compared with what as many draws of k experts with the block's own loads would show (size-matched null).

    specialisation [block] with interval (jackknife over 20 groups of documents), specialisation_null,
    specialisation_excess: means over token ids; share, null, expert [block, token]; count and, where it
    is known, text [token].  Needs trace=True.
    """
    whole = counts_of(source)
    data = whole.data
    tokens, documents, index = _served(source, of)
    seen, at, count = np.unique(tokens, return_inverse=True, return_counts=True)
    if not (count >= least).any():
        raise InputError(
            f"No token id occurs {least} times among {len(tokens)} tokens. Trace more text, or lower least=."
        )
    experts, (group, text) = data["expert_exists"].values.sum(1), grouped(data, clusters, seed)
    group = group[documents]
    groups = int(group.max()) + 1
    # Of the rest only the loads are needed.
    keep = count >= least
    number, common = np.cumsum(keep) - 1, keep[at]
    seen, count = seen[keep], count[keep]
    rows = np.ravel_multi_index((group[common], number[at[common]]), (groups, len(seen)))
    times = np.bincount(rows, minlength=groups * len(seen)).reshape(groups, -1)
    rng = np.random.default_rng(seed)
    blocks = index.shape[1]
    share, expert, null = (np.zeros((blocks, len(seen))) for _ in range(3))
    without = np.full((groups, blocks), np.nan)
    for b, e in enumerate(experts):
        own = index[:, b]
        load = np.bincount(own[own >= 0], minlength=e) / len(tokens)
        own, row = own[common], np.broadcast_to(rows[:, None], own[common].shape)
        table = np.bincount(row[own >= 0] * e + own[own >= 0], minlength=groups * len(seen) * e).reshape(groups, -1, e)
        every = table.sum(0)
        share[b], expert[b] = every.max(1) / count, every.argmax(1)
        for g in range(groups):
            left = count - times[g]
            if (left > 0).any():
                without[g, b] = np.mean(((every - table[g]).max(1) / left.clip(1))[left > 0])
        # For one size of sample after the other: many ids share a size.
        for n in np.unique(count):
            best = (rng.binomial(n, np.clip(load, 0, 1), size=(draws, e))).max(1) / n
            null[b, count == n] = best.mean()
    mean, two = share.mean(1), ("block", "token")
    ends = _ends(mean, without, level, (0, 1))
    found: dict[str, Any] = {
        "experts": (("block",), experts),
        "specialisation": (("block",), mean), "specialisation_low": (("block",), ends.low),
        "specialisation_high": (("block",), ends.high), "specialisation_null": (("block",), null.mean(1)),
        "specialisation_excess": (("block",), (share - null).mean(1)),
        "share": (two, share), "null": (two, null), "expert": (two, expert.astype(int)),
        "count": (("token",), count),
    }  # fmt: skip
    if "input_token" in data:
        ids, shown = data["input_id"].values.ravel(), data["input_token"].values.ravel()
        texts = dict(zip(ids.tolist(), shown.tolist(), strict=True))
        found["text"] = (("token",), np.array([str(texts.get(i, "")) for i in seen.tolist()], object))
    settings = {"of": of if isinstance(of, str) else "ids", "least": least}
    attrs = {**settings, "chart": "words", **_attrs({"specialisation": ends}, text)}
    table = xr.Dataset(found, {"block": data["block"].values, "token": seen}, attrs)
    settings |= {"draws": draws, "level": level, "seed": seed}
    return derived("routing.vocabulary", described(table, VARIABLES), whole, **settings)


def _served(source: Reading | Trace, of: str | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids to count by, their documents and their experts [tokens, block, slot]."""
    tokens, documents, index = [], [], []
    for rows in token_table(source):
        if "token" not in rows:
            raise InputError("The reading has no token ids (vLLM's arrays have none). Trace the model: read or trace.")
        own, real = rows["token"], np.ones(len(rows["token"]), bool)
        if isinstance(of, str) and of == "next":
            real = np.r_[(rows["document"][1:] == rows["document"][:-1]) & (np.diff(rows["position"]) == 1), False]
            own = np.roll(own, -1)
        elif not isinstance(of, str):
            if not isinstance(source, Reading) or np.shape(of) != source.data["input_id"].shape:
                raise InputError(
                    f"ids of shape {np.shape(of)} are not one for each prompt and position of the reading."
                )
            own = np.asarray(of)[source.data["input_id"].values >= 0]
            real = own >= 0
        elif of != "input":
            raise InputError(f"of={of!r} is unknown. Use 'input', 'next' or ids [prompt, position].")
        tokens.append(own[real])
        documents.append(rows["document"][real])
        index.append(rows["index"][real])
    return np.concatenate(tokens), np.concatenate(documents), np.concatenate(index)


def consistency(
    source: Reading | Trace, *, clusters: Clusters = None, draws: int = 500, level: float = 0.95, seed: int = 0
) -> Reading:
    """How steady routing is: |S and S'| / k of a token's experts and another's.  Needs trace=True.

    adjacent [block]: of neighbours in a document, with interval over documents; adjacent_null: of any two tokens of
    the same document (what shuffling the order gives); again [block]: of two occurrences of a token id in different
    documents, with interval (jackknife over 20 groups of documents); again_null: of any two tokens of different
    documents; uniform [block]: k/E.  k is the slots of a token that reach a routed expert, on average.  NaN where
    there are no such pairs.
    """
    whole = counts_of(source)
    data = whole.data
    documents = data.sizes["prompt"]
    experts = data["expert_exists"].values.sum(1)
    token, document, index = _served(source, "input")
    position = np.concatenate([rows["position"] for rows in token_table(source)])
    follows = (np.diff(document) == 0) & (np.diff(position) == 1)
    length = np.bincount(document, minlength=documents).astype(float)
    ids, at = np.unique(token, return_inverse=True)
    mine, where = np.unique(at.astype(np.int64) * documents + document, return_inverse=True)
    of, once = mine // documents, np.bincount(where).astype(float)
    cluster, _ = clustered(data, clusters)
    group, text = grouped(data, clusters, seed)
    group = group[mine % documents]
    groups = int(group.max()) + 1
    near, near_null = (np.full((documents, len(experts)), np.nan) for _ in range(2))
    again, again_null = np.full(len(experts), np.nan), np.zeros(len(experts))
    without = np.full((groups, len(experts)), np.nan)
    steps = np.bincount(document[:-1][follows], minlength=documents).astype(float)
    k = (index >= 0).sum((0, 2)) / len(index)
    for b, e in enumerate(experts):
        own = index[:, b]
        same = ((own[:-1, :, None] == own[1:, None, :]) & (own[:-1] >= 0)[..., None]).any(-1).sum(-1)
        total = np.bincount(document[:-1][follows], same[follows], minlength=documents)
        near[:, b] = over(total, steps * k[b])
        row, slot = np.nonzero(own >= 0)

        def counted(
            key: np.ndarray, n: int, row: np.ndarray = row, e: int = e, held: np.ndarray = own[row, slot]
        ) -> Any:
            return np.bincount(key[row] * e + held, minlength=n * e).reshape(n, e)

        in_document, in_both = counted(document, documents), counted(where, len(mine))
        near_null[:, b] = np.where(steps > 0, over(_meetings(in_document), length * (length - 1) * k[b]), np.nan)
        again[b], in_id = _again(in_both, once, of, len(ids))
        for g in range(groups):
            without[g, b], _ = _again(in_both[group != g], once[group != g], of[group != g], len(ids))
        apart = len(token) * (len(token) - 1) - (length * (length - 1)).sum()
        again_null[b] = over(_meetings(in_id.sum(0)) - _meetings(in_document).sum(), apart * k[b])
    again = over(again, k)
    ends = _ends(again, over(without, k), level, (0, 1))
    ways = Design(cluster, weights=steps).bootstrap(near, level=level, draws=draws, seed=seed, bounds=(0, 1))
    one = ("block",)
    table = xr.Dataset(
        {
            "adjacent": (one, ways.value), "adjacent_low": (one, ways.low), "adjacent_high": (one, ways.high),
            "adjacent_null": (one, nanmean(near_null, steps[:, None])),
            "again": (one, again), "again_low": (one, ends.low), "again_high": (one, ends.high),
            "again_null": (one, again_null), "uniform": (one, k / experts),
        },
        {"block": data["block"].values},
        _attrs({"adjacent": ways, "again": ends}, text),
    )  # fmt: skip
    return derived("routing.consistency", described(table, VARIABLES), whole, draws=draws, level=level, seed=seed)


def _ends(value: np.ndarray, without: np.ndarray, level: float, bounds: tuple[float, float]) -> Interval:
    """Interval of values [...] that are known without each group of documents [group, ...], too."""
    return Design(n=len(without)).bootstrap(left_out(value, without), level=level, bounds=bounds)


def _attrs(ends: Mapping[str, Interval], text: str) -> dict[str, str]:
    """How intervals were made, and what is said of documents' clusters."""
    found = {name: own.said("documents" if name == "adjacent" else "groups of documents") for name, own in ends.items()}
    return intervals(found) | ({"clusters": text} if text else {})


def _again(count: np.ndarray, once: np.ndarray, of: np.ndarray, ids: int) -> tuple[float, np.ndarray]:
    """Experts that two occurrences of an id in different documents share: mean over ids, by occurrences; counts by id.

    From counts [id and document, expert], occurrences and the id of each.
    """
    table = np.zeros((ids, count.shape[1]))
    np.add.at(table, of, count)
    times = np.bincount(of, once, minlength=ids)
    pairs = times * (times - 1) - np.bincount(of, once * (once - 1), minlength=ids)
    meet = _meetings(table) - np.bincount(of, _meetings(count), minlength=ids)
    return float(nanmean(over(meet, pairs), times)), table


def _meetings(count: np.ndarray) -> np.ndarray:
    """Ordered pairs of different tokens that share an expert, from counts [..., expert]."""
    return (count * (count - 1)).sum(-1)


def context(
    reading: Reading, *, bins: int = 8, clusters: Clusters = None, level: float = 0.95, seed: int = 0
) -> Reading:
    """What of the gate's scores is the token's id, what its place, and what its context.  Needs trace and scores.

    Of the variance of log p over tokens (less each token's mean over experts), summed over the experts: by_token
    [block], between token ids; by_position, what position (in ``bins`` of equal size) explains of the rest; by_context:
    what is left.  They add up to 1.  All are adjusted for the number of groups (epsilon squared; Kelley 1935), so that
    ids or positions that mean nothing explain 0; by_token_null is by_token of shuffled ids, and by_token_raw what is
    usually reported.  Intervals by jackknife over 20 groups of documents.
    """
    if not isinstance(reading, Reading) or not {"gate_probability", "input_id"} <= set(reading.data):
        raise InputError(
            "Context needs every token's gate probabilities (a trace on disk has none). Use workbench.read with "
            "RoutingTracer(trace=True, scores=True)."
        )
    data = reading.data
    rows = next(token_table(reading))
    token, document, place = rows["token"], rows["document"], rows["position"]
    _, ids = np.unique(token, return_inverse=True)
    if (np.bincount(ids) > 1).sum() < 2:
        raise InputError("Hardly a token id occurs twice, so ids cannot be told from contexts. Read more text.")
    edges = np.quantile(place, np.linspace(0, 1, bins + 1)[1:-1])
    spot = np.searchsorted(edges, place, side="right")
    rng = np.random.default_rng(seed)
    names = ("by_token", "by_position", "by_context", "by_token_null", "by_token_raw")
    blocks = data["block"].values
    value = np.zeros((5, len(blocks)))
    group, text = grouped(data, clusters, seed)
    group = group[document]
    without = np.full((group.max() + 1, 5, len(blocks)), np.nan)
    for b in range(len(blocks)):
        real = data["expert_exists"].values[b]
        x = np.log(np.maximum(rows["probability"][:, b, real].astype(np.float32), 1e-7))
        x = x - x.mean(1, keepdims=True)
        shuffled = rng.permutation(ids)
        value[:, b] = _split(x, ids, spot, shuffled)
        for g in range(len(without)):
            kept = np.flatnonzero(group != g)
            if len(kept):
                without[g, :, b] = _split(x[kept], ids[kept], spot[kept], shuffled[kept])
    ends = _ends(value, without, level, (-np.inf, 1))
    found: dict[str, Any] = {name: (("block",), value[i]) for i, name in enumerate(names)}
    for i, name in enumerate(names[:3]):
        found[f"{name}_low"], found[f"{name}_high"] = (("block",), ends.low[i]), (("block",), ends.high[i])
    table = described(xr.Dataset(found, {"block": blocks}, _attrs({"by_token": ends}, text)), VARIABLES)
    return derived("routing.context", table, reading, bins=bins, level=level, seed=seed)


def _split(x: np.ndarray, ids: np.ndarray, spot: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    total = ((x - x.mean(0)) ** 2).sum()
    raw, by_token = _explained(x, ids, total)
    _, null = _explained(x, shuffled, total)
    # Among tokens of one id (both sides less their id's mean), what place explains.
    rest = x - _means(x, ids)
    places = np.eye(int(spot.max()) + 1)[spot][:, 1:]
    places = places - _means(places, ids)
    fitted = places @ np.linalg.lstsq(places, rest, rcond=None)[0]
    free = len(x) - len(np.unique(ids))
    inside, left = (rest**2).sum(), ((rest - fitted) ** 2).sum()
    spent = places.shape[1]
    placed = 1 - (left / (free - spent)) / (inside / free) if free > spent and inside > 0 else 0.0
    by_position = max(0.0, float(placed)) * (1 - by_token)
    return np.array([by_token, by_position, 1 - by_token - by_position, null, raw])


def _means(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Each row's group mean."""
    sums = np.zeros((group.max() + 1, x.shape[1]))
    np.add.at(sums, group, x)
    return (sums / np.bincount(group, minlength=len(sums)).clip(1)[:, None])[group]


def _explained(x: np.ndarray, group: np.ndarray, total: float) -> tuple[float, float]:
    """Share of the sum of squares between groups, raw and adjusted for their number."""
    inside = ((x - _means(x, group)) ** 2).sum()
    n, g = len(x), len(np.unique(group))
    if total <= 0 or n <= g:
        return float("nan"), float("nan")
    return float(1 - inside / total), float(1 - (inside / (n - g)) / (total / (n - 1)))
