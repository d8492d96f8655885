"""Nearest rows by exact streaming over an index, or by FAISS with exact re-ranking.

Exact search reads each layer's rows once, block by block, multiplies them with all queries and keeps a running
top k; memory is the block's, whatever the size of the index.  Every score, calibrated or not, is the product of
one vector for the query with the stored row, then shifted and scaled by one number for the row:

    none      cos(q, x)
    centre    cos(q - m, x - m), with m the mean state of the index layer
    z-score   cos((q - m) / s, (x - m) / s), with s the standard deviation of each dimension
    csls      2 cos(q, x) - r(x) - r(q): less what each side has in common with its own nearest neighbours
              (Conneau et al. 2018, eq. 1), so that hubs, near to everything, lose their advantage
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lenses.latent.store import BLOCK, Matrix, Store, layer_file
from workbench.errors import InputError, StateError, missing
from workbench.readout import Best
from workbench.variables import about

VARIABLES = {
    "similarity": about("similarity of the nearest context", better="high", short_name="similarity"),
    "index_layer": about(
        "layer of the index that the context is from", role="label", of="similarity", short_name="index layer",
        scale="order",
    ),
    "token_id": about("token that the context ends in", role="label", of="similarity"),
    "token": about("token that the context ends in, as text", role="label", of="token_id"),
    "next_token_id": about("token that follows the context in its sentence", role="label", of="similarity"),
    "next_token": about("token that follows the context, as text", role="label", of="next_token_id"),
    "sentence": about("sentence of the context", role="label", of="similarity"),
    "token_position": about("place of the context's token in its sentence", role="label", of="sentence"),
    "word": about("word of the context's token", role="label", of="sentence"),
    "char_start": about("first character of the context's token in its sentence", role="label", of="sentence"),
    "char_end": about("end of the context's token in its sentence", role="label", of="sentence"),
    "context": about("number of the context in the index", role="label", of="similarity"),
}
CALIBRATIONS = ("none", "centre", "z-score", "csls")
CSLS_NEIGHBOURS = 10
SAMPLE = 1024
"""Rows, spread over the layers, that stand for queries where hubness is measured."""
QUERIES_AT_ONCE = 1024
OUTLIER = 10.0
"""Rows this many times as long as the layer's median are left out of its mean and spread."""


@dataclass(frozen=True)
class Found:
    """[queries, k] each; where there are fewer than k rows, layer and row are -1 and the similarity NaN."""

    similarity: np.ndarray
    layer: np.ndarray
    row: np.ndarray


def checked_queries(states: Any, d_model: int) -> Tensor:
    """[queries, d_model] float32.  Raises InputError for another width, StateError for a state without direction."""
    queries = states if isinstance(states, Tensor) else torch.as_tensor(np.asarray(states))
    queries = queries.detach()
    queries = queries[None] if queries.ndim == 1 else queries
    if queries.ndim != 2 or queries.shape[1] != d_model or not len(queries):
        raise InputError(
            f"The states have shape {tuple(queries.shape)} and the index holds states of width {d_model}. "
            f"Give [queries, {d_model}]."
        )
    queries = queries.float()
    norm = queries.norm(dim=1)
    good = torch.isfinite(queries).all(1) & (norm > 1e-12) & torch.isfinite(norm)
    if not bool(good.all()):
        row = int((~good).nonzero()[0, 0])
        what = "NaN" if queries[row].isnan().any() else "infinity" if queries[row].isinf().any() else "only zeros"
        if what == "only zeros" and (queries[row] != 0).any():
            what = f"numbers of about {float(queries[row].abs().max()):.0e}, whose squares float32 does not hold"
        raise StateError(
            f"State {row} holds {what}: it has no direction, so nothing is near to it. Leave it out, or find out "
            "where it comes from."
        )
    return queries


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class Sample:
    """Unit states of some rows of all layers, and which they are."""

    units: Tensor
    norm: Tensor
    layer: np.ndarray
    row: np.ndarray


class Scale:
    """How the scores of one layer are made under one calibration."""

    def __init__(self, matrix: Matrix, calibration: str, sample: Sample | None) -> None:
        self.matrix, self.calibration = matrix, calibration
        self.mean = self.spread = self.length = self.hub = None
        if calibration in ("centre", "z-score"):
            self._moments()
        elif calibration == "csls":
            assert sample is not None
            self._hubs(sample)

    def _moments(self) -> None:
        """The layer's mean and spread, and each row's length in the calibrated space; in two passes over the rows.

        Massive activations (mostly at the first position) are a hundred times as long as other states: with one row
        in a hundred of them, mean and spread would be theirs.  They are left out of both.
        """
        matrix, n = self.matrix, self.matrix.n_rows
        usual = matrix.norm <= OUTLIER * matrix.norm.median() if n else torch.ones(0, dtype=torch.bool)
        count = max(int(usual.sum()), 1)
        total, squares = torch.zeros(2, matrix.encoding.d_model, dtype=torch.float64)
        for lo in range(0, n, BLOCK):
            x = matrix.states(lo, min(lo + BLOCK, n))[usual[lo : lo + BLOCK]].double()
            total += x.sum(0)
            squares += (x * x).sum(0)
        mean = total / count
        self.mean = mean.float()
        if self.calibration == "z-score":
            spread = (squares / count - mean**2).clamp_min(0).sqrt()
            # A dimension that never varies says nothing; it must not be divided by zero.
            self.spread = spread.clamp_min(1e-6 * float(spread.max()) + 1e-30).float()
        self.length = torch.cat(
            [self._moved(matrix.states(lo, min(lo + BLOCK, n))).norm(dim=1) for lo in range(0, n, BLOCK)]
        ).clamp_min(1e-12)

    def _moved(self, states: Tensor) -> Tensor:
        moved = states - self.mean.to(states.device)
        return moved if self.spread is None else moved / self.spread.to(states.device)

    def _hubs(self, sample: Sample) -> None:
        """[rows] each row's mean cosine with its nearest neighbours among the sample."""
        n, parts = self.matrix.n_rows, []
        turned = self.matrix.encoding.turn(sample.units)
        k = min(CSLS_NEIGHBOURS, len(turned) - 1)
        own = torch.from_numpy(np.flatnonzero(sample.layer == self.matrix.layer))
        rows = torch.from_numpy(sample.row)[own]
        for lo in range(0, n, BLOCK):
            hi = min(lo + BLOCK, n)
            cosine = self.matrix.units(lo, hi) @ turned.T
            # A row that is in the sample itself is no neighbour of its own.
            here = (rows >= lo) & (rows < hi)
            cosine[rows[here] - lo, own[here]] = -1
            parts.append(cosine.topk(k, 1).values.mean(1))
        self.hub = torch.cat(parts) if parts else torch.zeros(0)

    def query(self, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is multiplied with the stored rows, and what is then taken off for each query."""
        turn = self.matrix.encoding.turn
        if self.mean is None:
            return turn(normalize(queries, dim=1)), None
        vector = normalize(self._moved(queries), dim=1)
        if self.spread is not None:
            vector = vector / self.spread.to(queries.device)
        return turn(vector), vector @ self.mean.to(queries.device)

    def finish(self, scores: Tensor, shift: Tensor | None, start: int, stop: int) -> Tensor:
        """Products of query vectors and unit rows -> scores, in place."""
        if self.mean is not None and self.length is not None and shift is not None:
            scores *= self.matrix.norm[start:stop].to(scores.device)
            scores -= shift[:, None]
            scores /= self.length[start:stop].to(scores.device)
        if self.hub is not None:
            scores *= 2
            scores -= self.hub[start:stop].to(scores.device)
        return scores


# ---------------------------------------------------------------- exact


Pairs = tuple[np.ndarray, np.ndarray]
"""Numbers of queries and of rows, in ascending order of the rows."""


def exact(
    scale: Scale, queries: Tensor, k: int, hidden: np.ndarray, barred: Pairs | None = None
) -> tuple[Tensor, Tensor]:
    """The k best rows of one layer: scores and row numbers [queries, k], on the queries' device.

    ``hidden``: ascending numbers of rows that are never found; ``barred``: rows that one query each does not find.
    """
    matrix = scale.matrix
    vector, shift = scale.query(queries)
    best = Best(len(queries), k, queries.device)
    cosines = Best(len(queries), CSLS_NEIGHBOURS, queries.device) if scale.hub is not None else None
    space = torch.empty(BLOCK, vector.shape[1], device=queries.device)
    product = torch.empty(min(QUERIES_AT_ONCE, len(queries)), BLOCK, device=queries.device)
    for lo in range(0, matrix.n_rows, BLOCK):
        hi = min(lo + BLOCK, matrix.n_rows)
        rows = space[: hi - lo].copy_(matrix.codes(lo, hi)).mul_(matrix.scale(lo, hi).to(queries.device)[:, None])
        skip = torch.from_numpy(hidden[np.searchsorted(hidden, lo) : np.searchsorted(hidden, hi)] - lo)
        query, row = barred or (hidden[:0], hidden[:0])
        here = slice(*np.searchsorted(row, (lo, hi)))
        query, row = query[here], row[here] - lo
        for q in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(q, min(q + QUERIES_AT_ONCE, len(queries)))
            scores = product[: part.stop - q].view(-1)[: (part.stop - q) * (hi - lo)].view(-1, hi - lo)
            torch.mm(vector[part], rows.T, out=scores)
            if cosines is not None:
                cosines.see(part, scores, lo)
            scores = scale.finish(scores, None if shift is None else shift[part], lo, hi)
            if len(skip):
                scores[:, skip.to(scores.device)] = -torch.inf
            if len(query):
                mine = (query >= part.start) & (query < part.stop)
                pair = torch.from_numpy(query[mine] - q), torch.from_numpy(row[mine])
                scores[pair[0].to(scores.device), pair[1].to(scores.device)] = -torch.inf
            best.see(part, scores, lo)
    if cosines is not None:
        held = cosines.score.isfinite()
        best.score -= (cosines.score.where(held, 0.0).sum(1) / held.sum(1).clamp_min(1))[:, None]
    return best.score, torch.where(best.score.isfinite(), best.id, -1)


def merge(layers: list[int], scores: list[Tensor], rows: list[Tensor], k: int, distinct: bool) -> Found:
    """The best k over all layers; with ``distinct`` a context counts once, in the layer where it is nearest.

    Exact: a context among the k best is, in its best layer, among that layer's k best.
    """
    score = torch.cat(scores, 1).cpu()
    row = torch.cat(rows, 1).cpu()
    layer = torch.cat([torch.full_like(r, x) for x, r in zip(layers, rows, strict=True)], 1).cpu()
    # Ties go to the lower layer, then the lower row: never to chance.
    score, order = score.sort(dim=1, descending=True, stable=True)
    row, layer = row.gather(1, order), layer.gather(1, order)
    if distinct and len(layers) > 1:
        by_row, at = row.sort(dim=1, stable=True)
        double = torch.zeros_like(row, dtype=torch.bool)
        double[:, 1:] = by_row[:, 1:] == by_row[:, :-1]
        double = torch.zeros_like(double).scatter(1, at, double)
        score = score.masked_fill(double, -torch.inf)
        score, order = score.sort(dim=1, descending=True, stable=True)
        row, layer = row.gather(1, order), layer.gather(1, order)
    pad = max(0, k - score.shape[1])
    score, row, layer = score[:, :k], row[:, :k], layer[:, :k]
    empty = ~score.isfinite()
    filled = (score.masked_fill(empty, torch.nan), layer.masked_fill(empty, -1), row.masked_fill(empty, -1))
    parts = [
        np.pad(x.numpy(), ((0, 0), (0, pad)), constant_values=v) for x, v in zip(filled, (np.nan, -1, -1), strict=True)
    ]
    return Found(parts[0].astype(np.float32), parts[1].astype(np.int32), parts[2].astype(np.int64))


# ---------------------------------------------------------------- approximate

KINDS = {"ivf-pq": 16, "ivf-sq8": 4, "hnsw": 4}
"""Candidates that are ranked exactly, for each neighbour wanted: more where the codes say less."""
MORE = (1, 4, 16)
"""How many times as many candidates are tried where the recall wanted is not reached without."""
CHECKED = 256
"""Queries of each sort with which recall is measured."""


def faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing("faiss-cpu", "An approximate index", "latent") from error
    return faiss


def make_approximate(matrix: Matrix, kind: str, whole: bool = False) -> Any:
    """A FAISS index (unit rows, numbered as the index's own) over one layer.

    "ivf-pq" codes the half of the directions in which rows vary most, or with ``whole`` all of them.
    """
    library = faiss()
    n, d = matrix.n_rows, matrix.encoding.d_model
    lists = max(1, min(int(4 * n**0.5), n // 39))  # FAISS wants 39 points for each centroid
    kept = d if whole or d < 128 else d // 4 * 2
    recipe = {
        # Half of the directions and four bits for each find the candidates at the speed of FAISS's fast scan.
        "ivf-pq": f"PCAR{kept},IVF{lists},PQ{kept}x4fs",
        "ivf-sq8": f"IVF{lists},SQ8",
        "hnsw": "HNSW32,SQ8",
    }[kind]
    # Between unit vectors the nearest has the highest cosine, and moving the origin (as PCA does) changes nothing.
    index = library.index_factory(d, recipe, library.METRIC_L2)
    rng = np.random.Generator(np.random.PCG64(0))
    sample = np.sort(rng.choice(n, min(n, 64 * lists, 200_000), replace=False))
    index.train(matrix.gather(sample).numpy())
    for lo in range(0, n, 8 * BLOCK):
        index.add(matrix.units(lo, min(lo + 8 * BLOCK, n)).numpy())
    return index


def set_effort(index: Any, effort: int) -> None:
    """nprobe of an inverted file, efSearch of a graph."""
    library = faiss()
    inverted = library.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.nprobe = effort
    else:
        library.downcast_index(index).hnsw.efSearch = effort


def approximate(
    index: Any,
    candidates: int,
    matrix: Matrix,
    queries: Tensor,
    k: int,
    hidden: np.ndarray,
    barred: Pairs | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidates from FAISS (so many for each neighbour), then their exact cosines from the stored rows."""
    vector = matrix.encoding.turn(normalize(queries.cpu(), dim=1))
    _, rows = index.search(vector.numpy(), min(matrix.n_rows, candidates * max(k, 10)))
    rows = torch.from_numpy(rows)
    bad = (rows < 0) | torch.from_numpy(np.isin(rows.numpy(), hidden))
    if barred is not None:
        keys = np.arange(len(rows))[:, None] * matrix.n_rows + rows.numpy()
        bad |= torch.from_numpy(np.isin(keys, barred[0] * matrix.n_rows + barred[1]))
    score = torch.empty(rows.shape)
    step = max(1, 2**23 // (rows.shape[1] * vector.shape[1]))
    for q in range(0, len(rows), step):
        part = rows[q : q + step].clamp_min(0)
        found = matrix.gather(part.flatten().numpy()).view(*part.shape, -1)
        score[q : q + step] = torch.bmm(found, vector[q : q + step, :, None])[..., 0]
    score, at = score.masked_fill(bad, -torch.inf).topk(min(k, rows.shape[1]), 1)
    return score, torch.where(score.isfinite(), rows.gather(1, at), -1)


@dataclass(frozen=True)
class Tuned:
    """What approximate search of one layer costs, and the recall@10 that was measured with it."""

    effort: int
    candidates: int
    recall: float


def made_and_tuned(kind: str, store: Store, layer: int, target: float) -> tuple[Any, Tuned]:
    """An approximate index of one layer that reaches the recall wanted, or else the best that was found."""
    index = make_approximate(store.matrix(layer), kind)
    if kind != "ivf-pq":
        return index, tune(index, kind, store, layer, target)
    found = tune(index, kind, store, layer, target, more=MORE[:1])
    if found.recall < target:
        # States of other layers may differ most where the rows of this one vary least, in the half left out.
        index = make_approximate(store.matrix(layer), kind, whole=True)
        found = tune(index, kind, store, layer, target)
    return index, found


def tune(
    index: Any, kind: str, store: Store, layer: int, target: float, k: int = 10, more: tuple[int, ...] | None = None
) -> Tuned:
    """The fewest candidates, then the least effort, that reach the recall wanted; or else the best that was found.

    Measured with rows of this layer (each without itself) and with rows of the farthest other layer, which are as
    foreign as queries get; the worse of the two counts.
    """
    matrix, rng = store.matrix(layer), np.random.Generator(np.random.PCG64(1))
    other = max(store.layers, key=lambda x: abs(x - layer))
    sets = []
    for source in dict.fromkeys((layer, other)):
        picked = np.sort(rng.choice(store.n_rows, min(CHECKED, store.n_rows), replace=False))
        queries = store.matrix(source).encoding.back(store.matrix(source).gather(picked))
        truth = exact(Scale(matrix, "none", None), queries, k + 1, np.zeros(0, np.int64))[1]
        sets.append((queries, truth, picked if source == layer else None))
    inverted = faiss().try_extract_index_ivf(index)
    # All lists of an inverted file: what is then not found, the codes have hidden.
    limit = min(4096, 2 * max(1, int(store.n_rows**0.5))) if inverted is None else inverted.nlist

    def measure(effort: int, candidates: int) -> float:
        set_effort(index, effort)
        return min(_recall(partial(approximate, index, candidates, matrix), *each, k) for each in sets)

    found = Tuned(limit, 0, -1.0)
    for times in more or MORE:
        candidates = KINDS[kind] * times
        now = Tuned(limit, candidates, measure(limit, candidates))
        found = max(found, now, key=lambda x: x.recall)
        if found.recall >= target or candidates * k >= store.n_rows:
            break
    if found.recall < target:
        return found
    # The least effort that does, between a half that does not and the double that does.
    low, high = 0, found
    effort = 1
    while effort < high.effort:
        now = Tuned(effort, found.candidates, measure(effort, found.candidates))
        if now.recall >= target:
            high = now
        else:
            low, effort = effort, 2 * effort
    while high.effort - low > max(1, high.effort // 8):
        middle = (low + high.effort) // 2
        now = Tuned(middle, found.candidates, measure(middle, found.candidates))
        if now.recall >= target:
            high = now
        else:
            low = middle
    return high


def _recall(find: Any, queries: Tensor, truth: Tensor, own: np.ndarray | None, k: int) -> float:
    found = find(queries, k + 1, np.zeros(0, np.int64))[1]
    hits = total = 0
    for i, (a, b) in enumerate(zip(found.tolist(), truth.tolist(), strict=True)):
        right = [x for x in b if x >= 0 and (own is None or x != own[i])][:k]
        hits += len(set(right) & {x for x in a if own is None or x != own[i]})
        total += len(right)
    return hits / max(1, total)


def approximate_file(layer: int) -> str:
    return layer_file(layer, "faiss")
