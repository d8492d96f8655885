"""Tokens: what of routing is the token itself, what its neighbours, what its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.routing.measures.documents import (
    Documents,
    counts_of,
    groups_of,
    jackknife,
    jsd,
    shares,
    token_table,
    with_interval,
)
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.stats import bootstrap_interval, mantel

if TYPE_CHECKING:
    from probes.routing.store import Trace


def overlap(
    source: Reading | Trace,
    *,
    of: str = "count",
    given: Mapping[Any, Any] | None = None,
    draws: int = 200,
    permutations: int = 9999,
    seed: int = 0,
) -> xr.Dataset:
    """Vocabulary that labels share, and whether labels that share more are routed more alike.

    Args:
        of: which divergence of usage: "count", "weight" or "probability".
        given: label -> group (a script, a family): the correlation is then what is left among pairs once it is taken
            out whether a pair is of one group (partial Mantel; Smouse, Long & Sokal 1986).

    jaccard, contained (shared types over the smaller vocabulary), weighted (sum of the smaller of both frequencies)
    [label, label_2], of token ids; jsd [label, label_2, block] in nats; pearson, spearman [measure, block]:
    correlation over pairs of labels, pearson with interval (documents drawn again), and mantel_p, spearman_p by
    Mantel's permutations.  Pairs share labels, so that a correlation's ordinary p would be far too small.  Fewer than
    five labels cannot reach p < 0.05.
    """
    reading = counts_of(source)
    documents = Documents(reading, of)
    documents.needs_labels("Shared vocabulary")
    n = len(documents.names)
    counts: list[dict[int, int]] = [{} for _ in range(n)]
    if documents.mixed:
        raise InputError("Shared vocabulary is between labels of documents, and here they are by token.")
    for rows in _ids(source):
        label = documents.label[rows["document"]]
        for i in range(n):
            for token, times in zip(*np.unique(rows["token"][label == i], return_counts=True), strict=True):
                counts[i][int(token)] = counts[i].get(int(token), 0) + int(times)
    ids = {token: j for j, token in enumerate(sorted({t for own in counts for t in own}))}
    table = np.zeros((n, len(ids)))
    for i, own in enumerate(counts):
        table[i, [ids[t] for t in own]] = list(own.values())
    held, share = table > 0, table / table.sum(1, keepdims=True).clip(1)
    both = held.astype(float) @ held.T.astype(float)
    sizes = held.sum(1)
    found = {
        "jaccard": both / (sizes[:, None] + sizes[None] - both).clip(1),
        "contained": both / np.minimum(sizes[:, None], sizes[None]).clip(1),
        "weighted": np.array([[np.minimum(a, b).sum() for b in share] for a in share]),
    }

    def pairs(count: np.ndarray) -> np.ndarray:
        own = np.nan_to_num(shares(count))
        return jsd(own[:, None], own[None])

    apart, drawn = pairs(documents.by_label()), documents.bootstrap(pairs, draws, seed)
    same = None
    if given is not None:
        absent = [x for x in documents.names if x not in {str(k) for k in given}]
        if absent:
            raise InputError(f"given says nothing of the labels {', '.join(absent)}. Name a group for each.")
        group = {str(label): value for label, value in given.items()}
        same = np.array([[float(group[a] == group[b]) for b in documents.names] for a in documents.names])
    shape = (len(found), len(documents.blocks))
    r, p, rho, rho_p = (np.full(shape, np.nan) for _ in range(4))
    boot = np.full((len(drawn), *shape), np.nan)
    for m, values in enumerate(found.values()):
        for b in range(shape[1]):
            r[m, b], p[m, b] = mantel(values, apart[..., b], draws=permutations, seed=seed, given=same)
            rho[m, b], rho_p[m, b] = mantel(values, apart[..., b], draws=permutations, seed=seed, rank=True, given=same)
            boot[:, m, b] = [mantel(values, x[..., b], draws=0, given=same)[0] for x in drawn]
    two, by = ("label", "label_2"), ("measure", "block")
    return documents.dataset(
        {
            **{name: (two, values) for name, values in found.items()}, "jsd": ((*two, "block"), apart),
            **with_interval("pearson", by, r, boot), "mantel_p": (by, p), "spearman": (by, rho),
            "spearman_p": (by, rho_p),
        },
        label_2=np.array(documents.names, object), measure=list(found),
    )  # fmt: skip


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
    source: Reading | Trace, *, of: str | np.ndarray = "input", least: int = 10, draws: int = 100, seed: int = 0
) -> xr.Dataset:
    """Vocabulary specialisation: of a token id's occurrences, the share that its most frequent expert serves.

    Args:
        of: "input", the token at the position; "next", the one after it; or ids [prompt, position] of your own (say,
            the next token that the model predicts, as ``LogitLens`` reads it in the last layer); below 0: none.
        least: only ids with at least so many occurrences count; a token seen once would score 1 by construction.

    Each is compared with what as many draws of k experts with the block's own loads would show (size-matched null).

    specialisation [block] with interval (jackknife over 20 groups of documents), specialisation_null,
    specialisation_excess: means over token ids; share, null, expert [block, token]; count [token].  Needs trace=True.
    """
    data = counts_of(source).data
    tokens, documents, index = _served(source, of)
    seen, at, count = np.unique(tokens, return_inverse=True, return_counts=True)
    keep = count >= least
    if not keep.any():
        raise InputError(
            f"No token id occurs {least} times among {len(tokens)} tokens. Trace more text, or lower least=."
        )
    e = data.sizes["expert"]
    group = groups_of(data.sizes["prompt"], seed)[documents]
    groups = int(group.max()) + 1
    times = np.zeros((groups, len(seen)))
    np.add.at(times, (group, at), 1)
    rng = np.random.default_rng(seed)
    blocks = index.shape[1]
    share, expert, null = (np.zeros((blocks, int(keep.sum()))) for _ in range(3))
    without = np.full((groups, blocks), np.nan)
    for b in range(blocks):
        table = np.zeros((groups, len(seen), e), np.float32)
        for slot in index[:, b].T:
            good = (slot >= 0) & (slot < e)
            np.add.at(table, (group[good], at[good], slot[good]), 1)
        whole = table.sum(0)
        load = whole.sum(0) / max(1, len(tokens))
        share[b], expert[b] = whole[keep].max(1) / count[keep], whole[keep].argmax(1)
        for g in range(groups):
            left = (count - times[g])[keep]
            without[g, b] = np.mean(((whole - table[g])[keep].max(1) / left.clip(1))[left > 0])
        # For one size of sample after the other: many ids share a size.
        for n in np.unique(count[keep]):
            best = (rng.binomial(n, np.clip(load, 0, 1), size=(draws, e))).max(1) / n
            null[b, count[keep] == n] = best.mean()
    spread = jackknife(without)
    mean, two = share.mean(1), ("block", "token")
    return xr.Dataset(
        {
            "specialisation": (("block",), mean), "specialisation_low": (("block",), mean - spread),
            "specialisation_high": (("block",), mean + spread), "specialisation_null": (("block",), null.mean(1)),
            "specialisation_excess": (("block",), (share - null).mean(1)),
            "share": (two, share), "null": (two, null), "expert": (two, expert.astype(int)),
            "count": (("token",), count[keep]),
        },
        {"block": data["block"].values, "token": seen[keep]},
        {"model": data.attrs["model"], "least": least, "of": of if isinstance(of, str) else "ids"},
    )  # fmt: skip


def _served(source: Reading | Trace, of: str | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids to count by, their documents and their experts [tokens, block, slot]."""
    tokens, documents, index = [], [], []
    for rows in token_table(source):
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


def consistency(source: Reading | Trace, *, draws: int = 500, seed: int = 0) -> xr.Dataset:
    """How steady routing is: |S and S'| / k of a token's experts and another's.  Needs trace=True.

    adjacent [block]: of neighbours in a document, with interval over documents; adjacent_null: of any two tokens of
    the same document (what shuffling the order gives); again [block]: of two occurrences of a token id in different
    documents, with interval over ids; again_null: of any two tokens; uniform [block]: k/E.
    """
    data = counts_of(source).data
    k, e, documents = data["top_k"].values, data["expert_exists"].values.sum(1), data.sizes["prompt"]
    token, document, index = _served(source, "input")
    position = np.concatenate([rows["position"] for rows in token_table(source)])
    follows = (np.diff(document) == 0) & (np.diff(position) == 1)
    length = np.bincount(document, minlength=documents).astype(float)
    ids, at = np.unique(token, return_inverse=True)
    mine, where = np.unique(at.astype(np.int64) * documents + document, return_inverse=True)
    times, once = np.bincount(at).astype(float), np.bincount(where).astype(float)
    # Pairs of occurrences in different documents.
    pairs = times * (times - 1) - np.bincount(mine // documents, once * (once - 1), minlength=len(ids))
    near, near_null = (np.full((documents, len(k)), np.nan) for _ in range(2))
    again, again_null = np.full((len(ids), len(k)), np.nan), np.zeros(len(k))
    steps = np.bincount(document[:-1][follows], minlength=documents)
    for b in range(len(k)):
        own = index[:, b]
        real = (own >= 0) & (own < e[b])
        same = ((own[:-1, :, None] == own[1:, None, :]) & real[:-1, :, None]).any(-1).sum(-1)
        total = np.bincount(document[:-1][follows], same[follows], minlength=documents)
        near[:, b] = np.divide(total, steps * k[b], out=np.full(documents, np.nan), where=steps > 0)
        in_document, in_id, in_both = (np.zeros((n, e[b])) for n in (documents, len(ids), len(mine)))
        row, slot = np.nonzero(real)
        for table, key in ((in_document, document), (in_id, at), (in_both, where)):
            np.add.at(table, (key[row], own[row, slot]), 1)
        meet = length * (length - 1) * k[b]
        near_null[:, b] = np.divide(
            _meetings(in_document), meet, out=np.full(documents, np.nan), where=(meet > 0) & (steps > 0)
        )
        other = _meetings(in_id) - np.bincount(mine // documents, _meetings(in_both), minlength=len(ids))
        again[:, b] = np.divide(other, pairs * k[b], out=np.full(len(ids), np.nan), where=pairs > 0)
        all_ = in_id.sum(0)
        again_null[b] = (all_ * (all_ - 1)).sum() / max(1, len(token) * (len(token) - 1)) / k[b]
    found: dict[str, Any] = {}
    for name, values, weight in (("adjacent", near, steps.astype(float)), ("again", again, times * (pairs > 0))):
        low, high = bootstrap_interval(values, weight, draws=draws, seed=seed)
        mean = np.nansum(values * weight[:, None], 0) / max(1e-300, weight.sum())
        found |= {name: (("block",), mean), f"{name}_low": (("block",), low), f"{name}_high": (("block",), high)}
    return xr.Dataset(
        {
            **found,
            "adjacent_null": (("block",), np.nansum(near_null * steps[:, None], 0) / max(1, steps.sum())),
            "again_null": (("block",), again_null), "uniform": (("block",), k / e),
        },
        {"block": data["block"].values},
        {"model": data.attrs["model"]},
    )  # fmt: skip


def _meetings(count: np.ndarray) -> np.ndarray:
    """Ordered pairs of different tokens that share an expert, from counts [..., expert]."""
    return (count * (count - 1)).sum(-1)


def context(reading: Reading, *, bins: int = 8, seed: int = 0) -> xr.Dataset:
    """What of the gate's scores is the token's id, what its place, and what its context.  Needs trace and scores.

    Of the variance of log p over tokens (less each token's mean over experts), summed over the experts: by_token
    [block], between token ids; by_position, what position (in ``bins`` of equal size) explains of the rest; by_context:
    what is left.  They add up to 1.  All are adjusted for the number of groups (epsilon squared; Kelley 1935), so that
    ids or positions that mean nothing explain 0; by_token_null is by_token of shuffled ids, and by_token_raw what is
    usually reported.  Intervals by jackknife over 20 groups of documents.
    """
    data = reading.data
    if "gate_probability" not in data:
        raise InputError("The reading has no token's gate probabilities. Trace with trace=True and scores=True.")
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
    group = groups_of(data.sizes["prompt"], seed)[document]
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
    spread = jackknife(without)
    found: dict[str, Any] = {name: (("block",), value[i]) for i, name in enumerate(names)}
    for i, name in enumerate(names[:3]):
        found[f"{name}_low"] = (("block",), value[i] - spread[i])
        found[f"{name}_high"] = (("block",), value[i] + spread[i])
    return xr.Dataset(found, {"block": blocks}, {"model": data.attrs["model"]})


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
