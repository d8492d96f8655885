"""Near-duplicate documents: they were not sampled independently, and count as one cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from workbench.stats.arrays import linked

SHINGLE, ALIKE = 5, 0.8
"""Tokens of a shingle, and the Jaccard index of two documents' shingles from which on they are near-duplicates."""


def near_duplicates(documents: Iterable[Sequence[int] | np.ndarray]) -> np.ndarray:
    """The cluster of each document: those that are near-duplicates, directly or by way of others, share a number.

    Parameters
    ----------
    documents
        The token ids of each.

    Returns
    -------
    ndarray
        [documents] ints, the first document's cluster 0, new ones in order.

    Notes
    -----
    Two documents are near-duplicates where the sets of their runs of five tokens (of all their tokens where they have
    fewer) have a Jaccard index of at least .8, the bounds of Lee et al. (2022), "Deduplicating training data makes
    language models better".  All such pairs are found: those with that much in common share one of the rarest
    shingles (prefix filter; Chaudhuri, Ganti & Kaushik 2006), and only pairs that do are compared.
    """
    same: dict[bytes, int] = {}
    at = []  # of each document, the number of its text
    for ids in documents:
        at.append(same.setdefault(np.asarray(ids, np.int64).tobytes(), len(same)))
    texts = [np.frombuffer(key, np.int64) for key in same]
    text = linked(len(texts), _pairs([_shingles(ids) for ids in texts]))
    _, first, number = np.unique(text[at], return_index=True, return_inverse=True)
    return first.argsort().argsort()[number.reshape(-1)] if len(at) else np.zeros(0, int)


def _shingles(ids: np.ndarray) -> frozenset[bytes]:
    n = min(SHINGLE, len(ids))
    runs = np.lib.stride_tricks.sliding_window_view(ids, n) if n else np.zeros((0, 1), np.int64)
    return frozenset(run.tobytes() for run in runs)


def _pairs(sets: list[frozenset[bytes]]) -> Iterable[tuple[int, int]]:
    """Pairs of sets with a Jaccard index of ``ALIKE`` or more."""
    often: dict[bytes, int] = defaultdict(int)
    for own in sets:
        for x in own:
            often[x] += 1
    holders: dict[bytes, list[int]] = defaultdict(list)
    for i, own in enumerate(sets):
        # Of so many shingles, two sets that are alike share at least ALIKE: one of the others' rarest is among them.
        least = int(np.ceil(ALIKE * len(own) - 1e-9))
        compared = set()
        for x in sorted(own, key=lambda x: (often[x], x))[: len(own) - least + 1]:
            for j in holders[x]:
                if j not in compared:
                    compared.add(j)
                    meet = len(own & sets[j])
                    if meet >= ALIKE * (len(own) + len(sets[j]) - meet) - 1e-9:
                        yield j, i
            holders[x].append(i)


def said(clusters: np.ndarray) -> str:
    """``"12 of 60 documents are near-duplicates: 52 clusters"``; nothing where there are none."""
    size = np.bincount(np.unique(clusters, return_inverse=True)[1].reshape(-1))
    several = int(size[size > 1].sum())
    return f"{several} of {len(clusters)} documents are near-duplicates: {len(size)} clusters" if several else ""
