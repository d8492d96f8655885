"""The documents of a reading: what is resampled and shuffled, and the arithmetic of shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import nanmean, over, quantiles
from workbench.variables import described

if TYPE_CHECKING:
    from probes.routing.store import Trace

Table = Mapping[str, Mapping[str, Any]]
CHARTS = {x: x for x in ("usage", "gate", "divergence", "overlap", "parallel")} | {"select": "gaps"}
"""The chart that draws a measure's result."""
KINDS = ("count", "weight", "probability")
GROUPS = 20
"""Where a table for each document would be too large, documents are left out or drawn again in so many groups."""


class Documents:
    """Expert usage of documents, and their labels.

    Args:
        source: a reading, a trace on disk, or the documents of one (which are then seen another way).
        of: "count": slots; "weight": the weights applied in them; "probability": the gate's full distribution, summed
            over tokens (a reading with scores=True).

    Where labels are by token, a document falls into parts of one label each.  Whole documents are then drawn for
    intervals; labels cannot be shuffled without breaking documents up, so nulls by shuffling, and their p, are NaN.
    """

    def __init__(self, source: Reading | Trace | Documents, of: str = "count") -> None:
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
        tokens = data["document_label_count"].values
        empty = tokens.sum(1) == 0
        if empty.any():
            raise InputError(f"Document {int(np.flatnonzero(empty)[0])} has no token that was read. Leave it out.")
        self.data, self.of = data, of
        self.names = [str(x) for x in data["label"].values]
        self.mixed = "part_count" in data
        self.kind = "part" if self.mixed else "document"
        if self.mixed:
            self.document, self.label = data["part_prompt"].values, data["part_label"].values
        else:
            self.document, self.label = np.arange(len(tokens)), tokens.argmax(1)
        self.tokens = tokens[self.document, self.label].astype(float)
        self.count = data[f"{self.kind}_{of}"].values.astype(float)
        if of == "probability":
            self.count = self.count * self.tokens[:, None, None]
        self.exists = data["expert_exists"].values
        self.blocks = data["block"].values
        self.experts = self.exists.sum(1)
        self.k = data["top_k"].values
        self.once = self._weights(self.label[None], np.ones((1, len(self.label))))[0]
        """[label, part] 1 where a part has the label: the weights of the documents as they are."""

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
        return over(self.data[f"{self.kind}_count"].values.sum((0, 2)), self.tokens.sum())

    def _weights(self, label: np.ndarray, picked: np.ndarray) -> np.ndarray:
        """[draws, label, part] from labels and times drawn [draws, part]."""
        return np.where(label[:, None] == np.arange(len(self.names))[:, None], picked[:, None], 0.0)

    def resampled(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of weights [..., label, part] when documents (of every label) are drawn again.

        A label that one document alone has is not known to vary: its weights are NaN.
        """
        rng = np.random.default_rng(seed)
        owners = [np.unique(self.document[self.label == i]) for i in range(len(self.names))]
        n = int(self.document.max()) + 1
        alone = [i for i, own in enumerate(owners) if len(own) < 2]

        def drawn(m: int) -> np.ndarray:
            times = np.zeros((m, n))
            for own in [np.arange(n)] if self.mixed else owners:
                times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=m)
            picked = times[:, self.document]
            picked[:, np.isin(self.label, alone)] = np.nan
            return self._weights(self.label[None], picked)

        return self._each(statistic, drawn, draws)

    def shuffled(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of weights [..., label, part] when labels are shuffled among documents."""
        rng, once = np.random.default_rng(seed), np.full((1, len(self.label)), np.nan if self.mixed else 1.0)
        return self._each(
            statistic,
            lambda m: self._weights(rng.permuted(np.tile(self.label, (m, 1)), axis=1), once),
            1 if self.mixed else draws,
        )

    def _each(self, statistic: Callable, weights: Callable[[int], np.ndarray], draws: int) -> np.ndarray:
        # Many draws at a time, as many as small arrays hold.
        n, parts = self.once.shape
        most = max(1, int(1e6 / max(n * parts, n * n * self.count[0].size)))
        sizes = [min(most, draws - i) for i in range(0, draws, most)]
        return np.concatenate([statistic(weights(m)) for m in sizes] or [statistic(self.once[None])[:0]])

    def table(
        self, measure: str, variables: dict[str, Any], about: Table, settings: dict[str, Any], /, **coords: Any
    ) -> Reading:
        """The result of a measure: its variables, which ``about`` describes, and where it comes from."""
        axes = {"label": np.array(self.names, object), "block": self.blocks, "expert": self.data["expert"].values}
        attrs = {"documents": len(np.unique(self.document)), "of": self.of}
        attrs |= {"chart": CHARTS[measure]} if measure in CHARTS else {}
        data = xr.Dataset(variables, {**axes, **coords}, attrs)
        return derived(f"routing.{measure}", described(data, about), self.source, **settings)


def with_interval(
    name: str,
    dims: tuple[str, ...],
    value: np.ndarray,
    found: np.ndarray,
    level: float,
    within: tuple[Any, Any] | None = None,
) -> dict[str, Any]:
    """A value and its interval from bootstrap draws of it [draws, ...].

    ``within``: the least and greatest value, of a statistic that is biased in small samples (a divergence, an entropy,
    an information).  Draws of it are biased once more, so that their quantiles miss the truth and even the value: the
    interval is the basic one, quantiles reflected in the value, and a fourth variable, _corrected, is the value less
    its bias (the mean of the draws less the value).
    """
    low, high = quantiles(found, level)
    if within is None:
        return {name: (dims, value), f"{name}_low": (dims, low), f"{name}_high": (dims, high)}
    known = np.where(np.isnan(low), np.nan, found)
    parts = {"_low": 2 * value - high, "_high": 2 * value - low, "_corrected": 2 * value - nanmean(known)}
    return {name: (dims, value), **{f"{name}{x}": (dims, np.clip(values, *within)) for x, values in parts.items()}}


def groups_of(documents: int, seed: int) -> np.ndarray:
    """[documents] a random group of each."""
    return np.random.default_rng(seed).permutation(np.arange(documents) % min(GROUPS, documents))


def jackknife(without: np.ndarray, level: float) -> np.ndarray:
    """Half the width of an interval from a statistic's values [groups, ...] with each group left out."""
    from scipy.special import ndtri

    groups = len(without)
    if groups < 2:
        return np.full(without.shape[1:], np.nan)
    return ndtri((1 + level) / 2) * np.sqrt((groups - 1) * without.var(0))


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
