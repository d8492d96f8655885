"""Items that say nearly the same: how similar texts are, and near-duplicates joined to one cluster."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from probes.values.items import Item, Items, relabelled
from probes.values.wording import Wording, wording
from workbench.errors import InputError
from workbench.stats.arrays import linked

THRESHOLD = 0.8
"""Texts as similar as this are near-duplicates, where nothing else is said."""


class Joined(list[Any]):
    """Items whose clusters are final: :func:`joined` leaves them as they are."""


def joined(items: Iterable[Any], threshold: float | None = THRESHOLD) -> Joined:
    """Items, or anything like them, with near-duplicates in one cluster: what instruments and trackers ask.

    Parameters
    ----------
    items
        With item_id, text and cluster.  What was joined before stays as it is.
    threshold
        As in :func:`cluster`; None: clusters as the items have them.
    """
    if isinstance(items, Joined):
        return items
    found = list(items)
    if threshold is None:
        return Joined(found)
    return Joined(_named(item, name) for item, name in zip(found, _clusters(found, threshold), strict=True))


def told(clusters: Sequence[Any] | np.ndarray) -> str:
    """``"24 items in 18 clusters of near-duplicates"``; "" where each item is a cluster of its own."""
    number = len({str(name) for name in clusters})
    return "" if number == len(clusters) else f"{len(clusters)} items in {number} clusters of near-duplicates"


def _named(item: Any, cluster: str) -> Any:
    if getattr(item, "cluster", None) == cluster:
        return item
    found = copy.copy(item)
    object.__setattr__(found, "cluster", cluster)  # items are frozen
    return found


def cluster(items: Iterable[Item], threshold: float = THRESHOLD) -> Items:
    """The same items, near-duplicates at ``threshold`` in one cluster (single linkage, across topics).

    Near-duplicates say the same in almost the same words.  Paraphrases in other words are not found, and are clusters
    only where the items say so.

    Opposite wordings of one sentence are joined too: their answers depend on each other, whatever their keys.
    Clusters that items share already stay together.  A cluster is called by its first item's cluster.
    """
    items = items if isinstance(items, Items) else Items(items)
    names = _clusters(items, threshold)
    return relabelled(items, {item.item_id: name for item, name in zip(items, names, strict=True)})


def _clusters(items: Sequence[Any], threshold: float) -> list[str]:
    """The cluster of each item."""
    own = [str(getattr(item, "cluster", "") or item.item_id) for item in items]
    read = [wording(item.text, getattr(item, "kind", "statement") == "question") for item in items]
    named = list(dict.fromkeys(own))
    number = {name: i for i, name in enumerate(named)}
    pairs = ((number[own[i]], number[own[j]]) for i, j, _ in close_pairs(items, read, threshold))
    first = linked(len(named), pairs)
    return [named[first[number[name]]] for name in own]


def similarity(texts: Iterable[str]) -> np.ndarray:
    """[text, text] cosine of tf-idf vectors of the character 2- to 4-grams of words, word edges included.

    Weights are 1 + log(count), times log((1 + n) / (1 + texts with it)) + 1, as elsewhere; what all texts share
    counts least.  Time and memory grow with the square of the number of texts (2,000: seconds; 16 MB).
    """
    texts = list(texts)
    rows, columns, values, index = [], [], [], {}
    for row, text in enumerate(texts):
        counts: dict[str, int] = {}
        for word in text.lower().split():
            padded = f" {word} "
            for n in (2, 3, 4):
                for k in range(max(len(padded) - n + 1, 0)):
                    counts[padded[k : k + n]] = counts.get(padded[k : k + n], 0) + 1
        for gram, count in counts.items():
            rows.append(row)
            columns.append(index.setdefault(gram, len(index)))
            values.append(1 + np.log(count))
    row, column, value = np.array(rows, int), np.array(columns, int), np.array(values)
    spread = np.bincount(column, minlength=len(index))
    value = value * (np.log((1 + len(texts)) / (1 + spread)) + 1)[column]
    value = value / np.maximum(np.sqrt(np.bincount(row, value**2, len(texts))), 1e-12)[row]
    # Grams of one text only add to its length; the others go block by block, so that memory stays with the result.
    kept = spread[column] > 1
    row, column, value = row[kept], column[kept], value[kept].astype(np.float32)
    _, column = np.unique(column, return_inverse=True)
    order = np.argsort(column, kind="stable")
    row, column, value = row[order], column[order], value[order]
    result = np.zeros((len(texts), len(texts)), np.float32)
    step = 2048
    for start in range(0, int(column[-1]) + 1 if len(column) else 0, step):
        part = slice(*np.searchsorted(column, [start, start + step]))
        block = np.zeros((len(texts), step), np.float32)
        block[row[part], column[part] - start] = value[part]
        result += block @ block.T
    np.fill_diagonal(result, 1)
    return np.minimum(result, 1)


def close_pairs(items: Sequence[Any], read: list[Wording], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of similar texts without exchanged words, first item first."""
    if not 0 < threshold <= 1:
        raise InputError(f"The threshold is {threshold}; a similarity lies in (0, 1]. 0.8 is the default.")
    texts = [" ".join((r.canonical, *getattr(item, "options", ()))) for item, r in zip(items, read, strict=True)]
    found = np.triu(similarity(texts), 1)
    for i, j in zip(*np.nonzero(found >= threshold), strict=True):
        if not _swapped(read[i].words, read[j].words):
            yield int(i), int(j), float(found[i, j])


def _swapped(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether content words were exchanged for others: "I would like to feel calm" is not "... strong".

    Words that look alike are one (typing errors), and so are words that only one text has (additions); an exchange
    of less than 15 % of the words is none.
    """
    only, other = a - b, b - a
    only = {w for w in only if not get_close_matches(w, other, 1, 0.75)}
    other = {w for w in other if not get_close_matches(w, a - b, 1, 0.75)}
    return bool(only and other) and min(len(only), len(other)) / min(len(a), len(b)) >= 0.15
