"""The documents of a reading: what is resampled and shuffled, and the arithmetic of shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from probes.routing.duplicates import near_duplicates, said
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, Interval, over
from workbench.variables import described

if TYPE_CHECKING:
    from probes.routing.store import Trace

Table = Mapping[str, Mapping[str, Any]]
Clusters = Sequence[Any] | np.ndarray | bool | None
Statistic = Callable[[np.ndarray], np.ndarray]
CHARTS = {x: x for x in ("usage", "gate", "divergence", "overlap", "parallel")} | {"select": "gaps"}
"""The chart that draws a measure's result."""
KINDS = ("count", "weight", "probability")
GROUPS = 20
"""Where a table for each document would be too large, documents are left out or drawn again in so many groups."""


class Documents:
    """Expert usage of documents, and their labels: the rows of a :class:`workbench.stats.Design`.

    Parameters
    ----------
    source
        A reading, a trace on disk, or the documents of one (which are then seen another way).
    of
        "count": slots; "weight": the weights applied in them; "probability": the gate's full distribution, summed over
        tokens (a reading with scores=True).
    clusters
        Which documents were not sampled independently, a label of any kind for each [prompt]; they are drawn, shuffled
        and held out together.  None: near-duplicates (:func:`probes.routing.duplicates.near_duplicates`); False: each
        document by itself.
    tokens
        A number, or "equal" (those of the shortest document): so many tokens are kept of each document, drawn at random
        (its slots in each block, hypergeometrically); documents with fewer are left out.  None: all.
    seed
        Of that draw.

    Raises
    ------
    InputError
        For a reading of something else, an unknown ``of``, arrays that do not fit, and tokens= where counts of whole
        documents are not known.

    Notes
    -----
    Where labels are by token, a document falls into parts of one label each.  Whole documents are then drawn for
    intervals; labels cannot be shuffled without breaking documents up, so nulls by shuffling, and their p, are NaN.
    """

    def __init__(
        self, source: Reading | Trace | Documents, of: str = "count", *, clusters: Clusters = None,
        tokens: int | str | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.source = counts_of(source)
        data = self.source.data
        if "document_count" not in data:
            raise InputError("This is no reading of RoutingTracer: it has no document_count.")
        if of not in KINDS:
            raise InputError(f"of={of!r} is unknown. Use one of {', '.join(KINDS)}.")
        if f"document_{of}" not in data:
            raise InputError(
                "The reading has no weights: what it was made from names experts alone. Use of='count'."
                if of == "weight"
                else "There are no gate probabilities (a trace on disk has none). Use workbench.read with "
                "RoutingTracer(scores=True)."
            )
        each = data["document_label_count"].values
        empty = each.sum(1) == 0
        if empty.any():
            raise InputError(f"Document {int(np.flatnonzero(empty)[0])} has no token that was read. Leave it out.")
        self.data, self.of = data, of
        self.names = [str(x) for x in data["label"].values]
        self.mixed = "part_count" in data
        self.kind = "part" if self.mixed else "document"
        if self.mixed:
            self.document, self.label = data["part_prompt"].values, data["part_label"].values
        else:
            self.document, self.label = np.arange(len(each)), each.argmax(1)
        self.tokens = each[self.document, self.label].astype(float)
        self.length = self.tokens
        self.count = data[f"{self.kind}_{of}"].values.astype(float)
        if of == "probability":
            self.count = self.count * self.tokens[:, None, None]
        self.exists = data["expert_exists"].values
        self.blocks = data["block"].values
        self.experts = self.exists.sum(1)
        self.k = data["top_k"].values
        own = isinstance(source, Documents) and clusters is None
        found, self.said = (source.by_document, source.said) if own else clustered(data, clusters)
        self.by_document: np.ndarray = found
        """[prompt] the cluster of each document of the reading."""
        self._active = over(data[f"{self.kind}_count"].values.sum((0, 2)), self.tokens.sum())
        self.kept = ""
        if tokens is not None:
            self._equalise(tokens, seed)
        self.cluster = self.by_document[self.document]
        self.once = self._weights(self.label[None], np.ones((1, len(self.label))))[0]
        """[label, part] 1 where a part has the label: the weights of the documents as they are."""
        self.methods: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def _equalise(self, tokens: int | str, seed: int) -> None:
        """Keep so many tokens of each document, and leave out those that have fewer."""
        if self.mixed or self.of != "count":
            what = "labels are by token" if self.mixed else f"of={self.of!r} is no count of slots"
            raise InputError(f"tokens={tokens!r} thins the slots of whole documents, and {what}. Leave tokens= out.")
        least = int(self.tokens.min())
        n = least if tokens == "equal" else tokens
        if isinstance(n, str) or n < 1:
            raise InputError(f"tokens={tokens!r} is unknown. Use a number of tokens from 1 on, or 'equal'.")
        some = np.flatnonzero(self.tokens >= n)
        if lost := [name for i, name in enumerate(self.names) if not (self.label[some] == i).any()]:
            raise InputError(
                f"No document of {', '.join(map(repr, lost))} has {n} tokens. Use tokens={least} or fewer, or 'equal'."
            )
        out = len(self.tokens) - len(some)
        self.kept = f"{n} tokens of each document" + f" ({out} that have fewer are left out)" * bool(out)
        rng = np.random.default_rng([seed, n])
        self.document, self.label, self.length = self.document[some], self.label[some], self.tokens[some]
        given = np.rint(self.count[some]).astype(np.int64)
        slots = given.sum(-1)
        wanted = np.rint(slots * (n / self.length[:, None])).astype(np.int64)
        self.count = given.astype(float)
        for at in zip(*np.nonzero(wanted < slots), strict=True):
            self.count[at] = rng.multivariate_hypergeometric(given[at], wanted[at], method="marginals")
        self.tokens = np.full(len(some), float(n))

    def number(self, label: Any) -> int:
        """Which label this is."""
        if str(label) not in self.names:
            raise InputError(f"There is no label {str(label)!r} in the reading; there are {', '.join(self.names)}.")
        return self.names.index(str(label))

    def needs_labels(self, what: str, *, whole: bool = False) -> None:
        """Two labels or more; ``whole``: of documents and not of tokens."""
        if len(self.names) < 2:
            raise InputError(f"{what} is between labels, and the reading has one. Trace with labels=.")
        if whole and self.mixed:
            raise InputError(f"{what} is between labels of documents, and here labels are by token. Label documents.")

    def by_label(self, weights: np.ndarray | None = None) -> np.ndarray:
        """[..., label, block, expert] counts; ``weights`` [..., label, part]: how often each part is there."""
        return np.tensordot(self.once if weights is None else weights, self.count, 1)

    def active(self) -> np.ndarray:
        """[block] slots of a token that reached a routed expert, on average."""
        return self._active

    def _weights(self, label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        """[draws, label, part] from labels and times drawn [draws, part]."""
        return np.where(label[:, None] == np.arange(len(self.names))[:, None], picked[:, None], 0.0)

    # ------------------------------------------------------------ intervals

    @cached_property
    def design(self) -> Design:
        """Documents in clusters, drawn within labels where no cluster has several."""
        clusters = len(np.unique(self.cluster))
        pure = len(np.unique(self.cluster * len(self.names) + self.label)) == clusters
        return Design(self.cluster, self.label if pure and not self.mixed else None)

    def means(
        self, name: str, dims: tuple[str, ...], values: np.ndarray, weights: np.ndarray, *, level: float, draws: int,
        seed: int, bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> dict[str, Any]:  # fmt: skip
        """Means [label, ...] of parts' values [part, ...], weighted, with their intervals over documents."""
        design = Design(self.cluster, weights=np.where(np.isnan(weights), 0, weights))
        found = design.bootstrap(values, by=self.label, level=level, draws=draws, seed=seed, bounds=bounds)
        self._noted(name, found)
        parts = []
        for part in (found.value, found.low, found.high):
            whole = np.full((len(self.names), *part.shape[1:]), np.nan)
            whole[: len(part)] = part
            parts.append(whole)
        return dict(zip((name, f"{name}_low", f"{name}_high"), ((dims, x) for x in parts), strict=True))

    def shares(
        self, name: str, dims: tuple[str, ...], *, level: float, draws: int, seed: int, tokens: bool = False
    ) -> dict[str, Any]:
        """Shares of slots [label, block, expert] (``tokens``: of tokens) with their intervals."""
        slots = np.broadcast_to(self.tokens[:, None], self.count.shape[:2]) if tokens else self.count.sum(-1)
        each = over(self.count, slots[..., None])
        return self.means(name, dims, each, slots, level=level, draws=draws, seed=seed, bounds=(0, 1))

    def estimate(
        self, name: str, dims: tuple[str, ...], statistic: Statistic, *, level: float, draws: int, seed: int,
        within: tuple[Any, Any] | None = None, biased: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """A statistic of weights [..., label, part] with its interval, over documents drawn within labels.

        ``biased``: in small samples, as a divergence, an entropy and an information are; see :func:`corrected`.
        """
        found = self.design.bootstrap(
            lambda times: self._each(statistic, np.broadcast_to(self.label, times.shape), times), level=level,
            draws=draws, seed=seed, reflect=biased,
        )  # fmt: skip
        self._noted(name, found)
        ends = corrected(found) if biased else {"_low": found.low, "_high": found.high}
        kept = {x: np.clip(part, *(within or (None, None))) for x, part in ends.items()}
        return {f"{name}{x}": (dims, part) for x, part in ({"": np.asarray(statistic(self.once))} | kept).items()}

    def drawn(self, statistic: Statistic, draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of weights [..., label, part] when documents are drawn again."""
        times = self.design.resample(draws, seed)
        return self._each(statistic, np.broadcast_to(self.label, times.shape), times)

    def shuffled(
        self, statistic: Statistic, draws: int, seed: int, among: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """[draws, ...] of a statistic of weights [..., label, part] when labels are shuffled among clusters.

        ``among``: these labels alone, whose documents keep out of the others'.
        """
        once = np.ones((1, len(self.label)))
        if self.mixed or not draws:
            return np.full((1, *np.shape(statistic(self.once))), np.nan)
        rows = np.arange(len(self.label)) if among is None else np.flatnonzero(np.isin(self.label, among))
        label = np.tile(self.label, (draws, 1))
        label[:, rows] = Design(self.cluster[rows]).relabel(self.label[rows], draws, seed)
        return self._each(statistic, label, np.broadcast_to(once, label.shape))

    def even(self, seed: int) -> Documents:
        """The same documents with as many tokens each, for statistics that cannot be studentised; see ``tokens``."""
        same = self.mixed or self.kept or (self.tokens == self.tokens[0]).all()
        return self if same else Documents(self, self.of, tokens="equal", seed=seed)

    def _each(self, statistic: Statistic, label: np.ndarray, times: np.ndarray) -> np.ndarray:
        # As many draws at a time as small arrays hold.
        n, parts = self.once.shape
        step = max(1, int(1e6 / max(n * parts, n * n * self.count[0].size)))
        found = [
            np.asarray(statistic(self._weights(label[i : i + step], times[i : i + step])))
            for i in range(0, len(times), step)
        ]
        return np.concatenate(found)

    def _noted(self, name: str, found: Interval) -> None:
        several = self.design.n < len(np.unique(self.document))
        self.methods[name] = found.said("clusters of documents" if several else "documents")

    # ------------------------------------------------------------ the result

    def table(
        self, measure: str, variables: dict[str, Any], about: Table, settings: dict[str, Any], /, **coords: Any
    ) -> Reading:
        """The result of a measure: its variables, which ``about`` describes, and where it comes from."""
        axes = {"label": np.array(self.names, object), "block": self.blocks, "expert": self.data["expert"].values}
        attrs: dict[str, Any] = {"documents": len(np.unique(self.document)), "of": self.of}
        attrs |= {"chart": CHARTS[measure]} if measure in CHARTS else {}
        attrs |= intervals(self.methods)
        attrs |= {"clusters": self.said} if self.said else {}
        attrs |= ({"tokens": self.kept} if self.kept else {}) | self.notes
        data = xr.Dataset(variables, {**axes, **coords}, attrs)
        return derived(f"routing.{measure}", described(data, about), self.source, **settings)


def chosen(clusters: Clusters, tokens: int | str | None) -> dict[str, Any]:
    """The settings of documents, as provenance keeps them."""
    given = clusters if clusters is None or isinstance(clusters, bool) else [str(x) for x in clusters]
    return {"clusters": given, "tokens": tokens}


def corrected(found: Interval) -> dict[str, np.ndarray]:
    """_corrected, _low and _high of a statistic that is biased in small samples.

    _corrected is the value less its bias.  The interval is about it, and reaches as far beyond the value as counted on
    that side: how large the bias is is itself not sure.
    """
    high, low = found.high + np.maximum(found.bias, 0), found.low + np.minimum(found.bias, 0)
    return {"_low": low, "_high": high, "_corrected": np.where(np.isnan(low), np.nan, found.value - found.bias)}


def intervals(methods: Mapping[str, str]) -> dict[str, str]:
    """The attribute that says how intervals were made: one text where all variables' were made alike."""
    alike = len({*methods.values()}) == 1
    text = next(iter(methods.values())) if alike else "; ".join(f"{name}: {how}" for name, how in methods.items())
    return {"interval": text} if methods else {}


def clustered(data: xr.Dataset, clusters: Clusters = None) -> tuple[np.ndarray, str]:
    """[prompt] the cluster of each document, and what is said of them."""
    usage = data["document_count" if "document_count" in data else "document_weight"]
    n = len(usage)
    if clusters is False:
        return np.arange(n), "near-duplicate documents were not looked for"
    if clusters is not None and clusters is not True:
        given = [str(x) for x in np.asarray(clusters, object)]
        if len(given) != n:
            raise InputError(f"clusters has {len(given)} and there are {n} documents. Give one for each.")
        found = np.unique(given, return_inverse=True)[1].reshape(-1)
        return found, f"{n} documents in {int(found.max()) + 1} clusters, as given"
    if "document_cluster" in data:
        found = data["document_cluster"].values
    elif "input_id" in data:
        ids = data["input_id"].values.astype(np.int64)
        found = _near_duplicates(ids.tobytes(), ids.shape)
    else:
        # Counts alone: the same text has the same usage everywhere.
        found = np.unique(usage.values.reshape(n, -1), axis=0, return_inverse=True)[1].reshape(-1)
    return found, said(found)


@lru_cache(maxsize=4)
def _near_duplicates(ids: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Of ids [prompt, position], -1 where there is none; once for a reading, however many measures ask."""
    return near_duplicates(own[own >= 0] for own in np.frombuffer(ids, np.int64).reshape(shape))


def grouped(data: xr.Dataset, clusters: Clusters, seed: int) -> tuple[np.ndarray, str]:
    """[prompt] a random group of each document, those of a cluster in one, and what is said of clusters."""
    cluster, text = clustered(data, clusters)
    _, cluster = np.unique(cluster, return_inverse=True)
    n = int(cluster.max()) + 1
    return np.random.default_rng(seed).permutation(np.arange(n) % min(GROUPS, n))[cluster], text


def left_out(value: np.ndarray, without: np.ndarray) -> Statistic:
    """A statistic of groups [draws, group] that is known for all of them, and without each [group, ...]."""

    def statistic(times: np.ndarray) -> np.ndarray:
        return np.stack([value if row.all() else without[int(row.argmin())] for row in times])

    return statistic


def shares(count: np.ndarray) -> np.ndarray:
    """Counts [..., expert] -> shares of the slots that reached an expert; NaN where none did."""
    return over(count, count.sum(-1, keepdims=True))


def token_table(source: Reading | Trace) -> Iterator[dict[str, np.ndarray]]:
    """Every token of a reading with trace=True, or of a trace on disk shard by shard.

    document, position [tokens], token where ids are known; index [tokens, block, slot]: -1 where there is no routed
    expert (so for identity experts); weight, probability [tokens, block, expert] where the reading has them.
    """
    if not isinstance(source, Reading):
        experts = np.array(source.about["experts"])[:, None]
        for rows in source.shards():
            yield {**rows, "index": np.where(rows["index"] < experts, rows["index"], -1)}
        return
    data = source.data
    if "expert_id" not in data:
        raise InputError("The reading has no token's experts. Trace with trace=True.")
    real = data["input_id" if "input_id" in data else "input_position"].values >= 0
    order, experts = ("prompt", "position", "block"), data["expert_exists"].values.sum(1)[:, None]
    index = data["expert_id"].transpose(*order, "slot").values[real]
    found = {
        "document": np.nonzero(real)[0],
        "position": data["input_position"].values[real],
        "index": np.where(index < experts, index, -1),
    }
    if "input_id" in data:
        found["token"] = data["input_id"].values[real]
    for name, of, last in (("weight", "expert_weight", "slot"), ("probability", "gate_probability", "expert")):
        if of in data:
            found[name] = data[of].transpose(*order, last).values[real]
    yield found


def counts_of(source: Reading | Trace | Documents) -> Reading:
    """The counts of a reading, or of a trace on disk."""
    if isinstance(source, Documents):
        return source.source
    if not isinstance(source, Reading) and not hasattr(source, "reading"):
        raise InputError(f"This is a {type(source).__name__}, and no reading of RoutingTracer or trace on disk.")
    return source if isinstance(source, Reading) else source.reading()
