"""Which contexts an index keeps, decided from token ids alone.

A *context* is a sentence up to and including one of its tokens: in a causal model nothing else decides the state
there.  Each token id keeps at most ``k`` contexts: those whose sentences have the smallest seeded hash (bottom-k
sampling; Cohen & Kaplan 2007), with the earlier position where a sentence has the token twice.  The hash is of the
sentence's content, so the choice depends neither on the order of the sentences, nor on batches, nor on how the
corpus was cut into shards; and because all tokens rank sentences alike, they share them, and fewer have to run.

Two selections with the same settings merge exactly: what is among the k smallest of all is among the k smallest of
its own part.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BUFFER = 1 << 19
"""Candidates held before the worse ones are dropped."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Kept:
    """The contexts chosen, in their one order: sentences by length and hash, then positions."""

    texts: list[str]
    ids: np.ndarray
    """The token ids of all sentences, one behind the other; sentence i is ids[starts[i] : starts[i + 1]]."""
    starts: np.ndarray
    hashes: list[bytes]
    sentence: np.ndarray
    """[rows] index into texts."""
    position: np.ndarray
    token_id: np.ndarray

    def __len__(self) -> int:
        return len(self.sentence)

    def tokens(self, sentence: int) -> list[int]:
        return self.ids[self.starts[sentence] : self.starts[sentence + 1]].tolist()


class Selection:
    """Feed it sentences as token ids; :meth:`finish` gives the contexts to keep.

    Memory is bounded by what is kept and a buffer: the sentences themselves wait in a temporary file.
    """

    def __init__(self, vocabulary: int, k: int, seed: int = 0, *, first_position: int = 0, folder: Any = None) -> None:
        self.k, self.first_position = k, first_position
        self._key = str(seed).encode()
        self._spool = tempfile.TemporaryFile(dir=folder, buffering=0)
        self._end = 0
        self._lately: dict[int, tuple[str, np.ndarray]] = {}
        # Of each sentence in the spool: where it starts, its bytes of text, its tokens, its hash.
        self._where = np.zeros((0, 3), np.int64)
        self._hashes = np.zeros((0, 2), np.uint64)
        self._rows = _Rows.none()
        self._buffer: list[_Rows] = []
        self._buffered = 0
        # The worst hash that could still be kept, for each token.
        self._limit = np.full(vocabulary, np.iinfo(np.uint64).max, np.uint64)
        self.occurrences = np.zeros(vocabulary, np.int64)
        self._known: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def feed(self, texts: Sequence[str], ids: Sequence[Sequence[int]], *, count: bool = True) -> None:
        """Sentences with their token ids.  ``count=False`` leaves the occurrences alone (sentences seen before)."""
        pairs = [(text, np.asarray(i, np.int32)) for text, i in zip(texts, ids, strict=True) if len(i)]
        if not pairs:
            return
        lengths = np.array([len(i) for _, i in pairs])
        digests = [sentence_hash(i, self._key) for _, i in pairs]
        hashes = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
        token = np.concatenate([i for _, i in pairs])
        start = np.cumsum(lengths) - lengths
        position = np.arange(len(token)) - np.repeat(start, lengths)
        owner = np.repeat(np.arange(len(pairs)), lengths)
        prefix = _prefix_keys(token, position, start, lengths)
        if count:
            np.add.at(self.occurrences, token, 1)
        alive = (hashes[owner, 0] <= self._limit[token]) & (position >= self.first_position)
        alive[alive] = ~self._already(prefix[alive], position[alive], owner[alive], pairs, hashes)
        used = np.unique(owner[alive])
        if not len(used):
            return
        number = np.full(len(pairs), -1, np.int32)
        number[used] = np.arange(len(used)) + len(self._where)
        self._write([pairs[i] for i in used], hashes[used])
        owner = owner[alive]
        self._buffer.append(_Rows(token[alive], prefix[alive], position[alive].astype(np.int32), number[owner]))
        self._buffered += len(owner)
        if self._buffered > BUFFER:
            self._compact()

    def finish(self) -> Kept:
        """The contexts to keep, in their one order."""
        self._compact()
        order = np.lexsort((self._hashes[:, 1], self._hashes[:, 0], self._where[:, 2]))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        sentence = rank[self._rows.sentence]
        rows = np.lexsort((self._rows.position, sentence))
        read = [self._read(number) for number in order]
        return Kept(
            [text for text, _ in read],
            np.concatenate([ids for _, ids in read]) if read else np.zeros(0, np.int32),
            np.r_[0, np.cumsum(self._where[order, 2])],
            [h.tobytes() for h in self._hashes[order].astype(">u8")],
            sentence[rows].astype(np.int32),
            self._rows.position[rows],
            self._rows.token[rows],
        )

    # ---------------------------------------------------------------- the bottom k

    def _compact(self) -> None:
        """Drop doubles and all but the k best contexts of each token."""
        rows = self._renumbered(_Rows.join([self._rows, *self._buffer]))
        self._buffer, self._buffered = [], 0
        high, low = self._hashes[rows.sentence].T
        order = np.lexsort((rows.sentence, low, high, rows.position, rows.prefix, rows.token))
        rows = rows.take(order[self._distinct(rows.take(order))])
        high, low = self._hashes[rows.sentence].T
        rows = rows.take(np.lexsort((rows.position, low, high, rows.token)))
        first = np.r_[True, rows.token[1:] != rows.token[:-1]] if len(rows.token) else np.zeros(0, bool)
        begin = np.flatnonzero(first)
        place = np.arange(len(rows.token)) - np.repeat(begin, np.diff(np.r_[begin, len(rows.token)]))
        full = place == self.k - 1
        self._limit[rows.token[full]] = self._hashes[rows.sentence[full], 0]
        self._rows = self._renumbered(rows.take(np.flatnonzero(place < self.k)))
        by_prefix = np.argsort(self._rows.prefix, kind="stable")
        self._known = (self._rows.prefix[by_prefix], by_prefix)

    def _distinct(self, rows: _Rows) -> np.ndarray:
        """Which of rows sorted by (token, prefix, position, hash) are the first of their context.

        Equal keys only raise the suspicion: the token ids decide.
        """
        same = (
            (rows.token[1:] == rows.token[:-1])
            & (rows.prefix[1:] == rows.prefix[:-1])
            & (rows.position[1:] == rows.position[:-1])
        )
        keep = np.r_[True, ~same][: len(rows.token)]
        first = np.maximum.accumulate(np.where(keep, np.arange(len(keep)), 0))
        seen: list[np.ndarray] = []
        group = -1
        for i in np.flatnonzero(~keep):
            if _exact(rows.position[i]):
                continue  # the key is the prefix itself
            if first[i] != group:
                group, seen = first[i], [self._prefix(rows, first[i])]
            prefix = self._prefix(rows, i)
            if not any(np.array_equal(prefix, other) for other in seen):
                keep[i] = True
                seen.append(prefix)
        return keep

    def _prefix(self, rows: _Rows, i: int) -> np.ndarray:
        return self._read(rows.sentence[i])[1][: rows.position[i] + 1]

    def _already(
        self, prefix: np.ndarray, position: np.ndarray, owner: np.ndarray, pairs: list, hashes: np.ndarray
    ) -> np.ndarray:
        """Which candidates are contexts that were kept before, from the same or a better sentence."""
        keys, places = self._known
        found = np.zeros(len(prefix), bool)
        at = np.searchsorted(keys, prefix)
        for i in np.flatnonzero(keys[np.minimum(at, len(keys) - 1)] == prefix) if len(keys) else ():
            for j in range(at[i], len(keys)):
                if keys[j] != prefix[i] or found[i]:
                    break
                row, (text, ids) = places[j], pairs[owner[i]]
                if self._rows.position[row] != position[i]:
                    continue
                mine, other = tuple(self._hashes[self._rows.sentence[row]]), tuple(hashes[owner[i]])
                if mine < other:
                    end = position[i] + 1
                    found[i] = _exact(position[i]) or np.array_equal(self._prefix(self._rows, row), ids[:end])
                elif mine == other:  # of equal sentences the smaller text is the one shown
                    found[i] = self._read(self._rows.sentence[row])[0] <= text
        return found

    # ---------------------------------------------------------------- the spool

    def _write(self, pairs: list[tuple[str, np.ndarray]], hashes: np.ndarray) -> None:
        texts = [text.encode("utf-8", "surrogatepass") for text, _ in pairs]
        sizes = np.array([[len(t), len(i)] for t, (_, i) in zip(texts, pairs, strict=True)], np.int64)
        total = sizes[:, 0] + 4 * sizes[:, 1]
        offsets = self._end + np.cumsum(total) - total
        self._spool.write(b"".join(t + i.tobytes() for t, (_, i) in zip(texts, pairs, strict=True)))
        self._end += int(total.sum())
        self._where = np.concatenate([self._where, np.column_stack([offsets, sizes])])
        self._hashes = np.concatenate([self._hashes, hashes])

    def _read(self, number: int) -> tuple[str, np.ndarray]:
        """Text and token ids of a sentence in the spool."""
        number = int(number)
        if number not in self._lately:
            if len(self._lately) >= 1 << 14:
                self._lately.clear()
            offset, text, tokens = self._where[number].tolist()
            raw = os.pread(self._spool.fileno(), text + 4 * tokens, offset)
            self._lately[number] = raw[:text].decode("utf-8", "surrogatepass"), np.frombuffer(raw[text:], np.int32)
        return self._lately[number]

    def _renumbered(self, rows: _Rows) -> _Rows:
        """Number the sentences that are still needed anew; equal ones become one, with the smallest text."""
        used, inverse = np.unique(rows.sentence, return_inverse=True)
        order = np.lexsort((self._hashes[used, 1], self._hashes[used, 0]))
        hashes = self._hashes[used[order]]
        new = np.r_[True, (hashes[1:] != hashes[:-1]).any(1)][: len(order)]
        group = np.empty(len(order), np.int32)
        group[order] = np.cumsum(new) - 1
        chosen = used[order][new]
        for i in np.flatnonzero(~new):
            g = group[order[i]]
            chosen[g] = min((chosen[g], used[order[i]]), key=lambda n: self._read(n)[0])
        self._where, self._hashes = self._where[chosen], self._hashes[chosen]
        self._lately.clear()
        return _Rows(rows.token, rows.prefix, rows.position, group[inverse])


@dataclass(frozen=True)
class _Rows:
    """Candidates: token id, prefix key, position, sentence number."""

    token: np.ndarray
    prefix: np.ndarray
    position: np.ndarray
    sentence: np.ndarray

    @classmethod
    def none(cls) -> _Rows:
        empty = np.zeros(0, np.int32)
        return cls(empty, np.zeros(0, np.uint64), empty, empty)

    @classmethod
    def join(cls, parts: list[_Rows]) -> _Rows:
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__dataclass_fields__))

    def take(self, at: np.ndarray) -> _Rows:
        return _Rows(self.token[at], self.prefix[at], self.position[at], self.sentence[at])


def sentence_hash(ids: np.ndarray, key: bytes) -> bytes:
    """16 bytes of a sentence's token ids: its place in the order, and its name."""
    return hashlib.blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=16, key=key).digest()


def _exact(position: int) -> bool:
    return position < 2


def _prefix_keys(token: np.ndarray, position: np.ndarray, start: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[tokens] a 64-bit key of each prefix: the ids themselves up to two tokens, a polynomial hash beyond."""
    with np.errstate(over="ignore"):
        mixed = token.astype(np.uint64) + np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(15))) * _MIX
        mixed ^= mixed >> np.uint64(29)
        powers = np.cumprod(np.full(int(lengths.max()), 0xD6E8FEB86659FD93, np.uint64))
        total = np.cumsum(mixed * powers[position], dtype=np.uint64)
        key = total - np.repeat(np.r_[np.uint64(0), total[start[1:] - 1]], lengths)
    short = token.astype(np.uint64) + np.uint64(1)
    second = position == 1
    key[position == 0] = short[position == 0]
    key[second] = short[second] | (short[np.flatnonzero(second) - 1] << np.uint64(32))
    return key


def batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
