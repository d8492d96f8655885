"""The documents of a reading: what is resampled and shuffled, and the arithmetic of shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading

if TYPE_CHECKING:
    from probes.routing.store import Trace

KINDS = ("count", "weight", "probability")
GROUPS = 20
"""Where a table for each document would be too large, documents are left out or drawn again in so many groups."""


class Documents:
    """Expert usage of documents, and their labels.

    Args:
        of: "count": slots; "weight": the weights applied in them; "probability": the gate's full distribution, summed
            over tokens (a reading with scores=True).

    Where labels are by token, a document falls into parts of one label each.  Whole documents are then drawn for
    intervals; labels cannot be shuffled without breaking documents up, so nulls by shuffling, and their p, are NaN.
    """

    def __init__(self, reading: Reading, of: str = "count") -> None:
        data = reading.data
        if "document_count" not in data:
            raise InputError("This is no reading of RoutingTracer: it has no document_count.")
        if of not in KINDS:
            raise InputError(f"of={of!r} is unknown. Use one of {', '.join(KINDS)}.")
        if f"document_{of}" not in data:
            raise InputError("The reading has no gate probabilities. Trace with scores=True.")
        tokens = data["document_label_count"].values
        empty = tokens.sum(1) == 0
        if empty.any():
            raise InputError(f"Document {int(np.flatnonzero(empty)[0])} has no token that was read. Leave it out.")
        self.data, self.of = data, of
        self.names = [str(x) for x in data["label"].values]
        self.mixed = "part_count" in data
        if self.mixed:
            self.document, self.label = data["part_prompt"].values, data["part_label"].values
        else:
            self.document, self.label = np.arange(len(tokens)), tokens.argmax(1)
        self.tokens = tokens[self.document, self.label].astype(float)
        self.count = data[f"{'part' if self.mixed else 'document'}_{of}"].values.astype(float)
        if of == "probability":
            self.count = self.count * self.tokens[:, None, None]
        self.exists = data["expert_exists"].values
        self.blocks = data["block"].values
        self.experts = self.exists.sum(1)
        self.k = data["top_k"].values

    def number(self, label: Any) -> int:
        """Which label this is."""
        if str(label) not in self.names:
            raise InputError(f"There is no label {str(label)!r} in the reading; there are {', '.join(self.names)}.")
        return self.names.index(str(label))

    def needs_labels(self, what: str) -> None:
        if len(self.names) < 2:
            raise InputError(f"{what} is between labels, and the reading has one. Trace with labels=.")

    def summed(
        self, values: np.ndarray, label: np.ndarray | None = None, picked: np.ndarray | None = None
    ) -> np.ndarray:
        """[part, ...] -> [label, ...] sums, under other labels or with documents drawn ``picked`` times."""
        label = self.label if label is None else label
        weight = np.zeros((len(self.names), len(label)))
        weight[label, np.arange(len(label))] = 1 if picked is None else picked
        return np.tensordot(weight, values, 1)

    def by_label(self, label: np.ndarray | None = None, picked: np.ndarray | None = None) -> np.ndarray:
        """[label, block, expert] counts."""
        return self.summed(self.count, label, picked)

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """How often each part is drawn when the documents (of every label) are drawn again with replacement."""
        if self.mixed:
            n = int(self.document.max()) + 1
            return np.bincount(rng.integers(n, size=n), minlength=n)[self.document].astype(float)
        picked = np.zeros(len(self.label))
        for i in range(len(self.names)):
            own = np.flatnonzero(self.label == i)
            np.add.at(picked, rng.choice(own, len(own)), 1)
        return picked

    def draws(self, statistic: Callable[[np.ndarray, np.ndarray], Any], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic(label, picked) over resampled documents; NaN where a label has one document."""
        rng, once = np.random.default_rng(seed), np.ones(len(self.label))
        if np.bincount(self.label, minlength=len(self.names)).min() < 2:
            return np.full((1, *np.shape(statistic(self.label, once))), np.nan)
        return np.stack([statistic(self.label, self.resample(rng)) for _ in range(draws)])

    def shuffles(self, statistic: Callable[[np.ndarray, np.ndarray], Any], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic(label, picked) when labels are shuffled among documents."""
        rng, once = np.random.default_rng(seed), np.ones(len(self.label))
        if self.mixed:
            return np.full((1, *np.shape(statistic(self.label, once))), np.nan)
        return np.stack([statistic(rng.permutation(self.label), once) for _ in range(draws)])

    def bootstrap(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of [label, block, expert] counts over resampled documents."""
        return self.draws(lambda label, picked: statistic(self.by_label(label, picked)), draws, seed)

    def shuffled(self, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int) -> np.ndarray:
        """[draws, ...] of a statistic of [label, block, expert] counts when labels are shuffled among documents."""
        return self.shuffles(lambda label, picked: statistic(self.by_label(label, picked)), draws, seed)

    def dataset(self, variables: dict[str, Any], **coords: Any) -> xr.Dataset:
        axes = {"label": np.array(self.names, object), "block": self.blocks, "expert": self.data["expert"].values}
        about = {"documents": len(np.unique(self.document)), "model": self.data.attrs["model"], "of": self.of}
        return xr.Dataset(variables, {**axes, **coords}, about)


def with_interval(name: str, dims: tuple[str, ...], value: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Three variables: a value, and its interval from draws of it."""
    low, high = interval(found)
    return {name: (dims, value), f"{name}_low": (dims, low), f"{name}_high": (dims, high)}


def interval(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval over bootstrap draws [draws, ...]."""
    if np.isnan(found).all():
        return found[0], found[0]
    low, high = np.nanquantile(found, [0.025, 0.975], axis=0)
    return low, high


def groups_of(documents: int, seed: int) -> np.ndarray:
    """[documents] a random group of each."""
    return np.random.default_rng(seed).permutation(np.arange(documents) % min(GROUPS, documents))


def jackknife(without: np.ndarray) -> np.ndarray:
    """Half the width of a 95 % interval from a statistic's values [groups, ...] with each group left out."""
    groups = len(without)
    if groups < 2:
        return np.full(without.shape[1:], np.nan)
    return 1.96 * np.sqrt((groups - 1) * without.var(0))


def shares(count: np.ndarray) -> np.ndarray:
    """Counts [..., expert] -> shares of the slots that reached an expert."""
    total = count.sum(-1, keepdims=True)
    return np.divide(count, total, out=np.full_like(count, np.nan, dtype=float), where=total > 0)


def entropy(share: np.ndarray) -> np.ndarray:
    """[..., expert] -> nats."""
    return -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), -1)


def jsd(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence over the last axis, in nats (at most ln 2); divide by ln 2 for bits."""
    return np.maximum(0, entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


def token_table(source: Reading | Trace) -> Iterator[dict[str, np.ndarray]]:
    """Every token of a reading with trace=True, or of a trace on disk shard by shard.

    token, document, position [tokens]; index, weight [tokens, block, slot]: -1 and NaN where there is no expert;
    probability [tokens, block, expert] where the reading has it.
    """
    if not isinstance(source, Reading):
        yield from source.shards()
        return
    data = source.data
    if "expert_id" not in data:
        raise InputError("The reading has no token's experts. Trace with trace=True.")
    real = data["input_id"].values >= 0
    document, _ = np.nonzero(real)
    order = ("prompt", "position", "block")
    found = {
        "token": data["input_id"].values[real],
        "document": document,
        "position": data["input_position"].values[real],
        "index": data["expert_id"].transpose(*order, "slot").values[real],
        "weight": data["expert_weight"].transpose(*order, "slot").values[real],
    }
    if "gate_probability" in data:
        found["probability"] = data["gate_probability"].transpose(*order, "expert").values[real]
    yield found


def counts_of(source: Reading | Trace) -> Reading:
    """The counts of a reading, or of a trace on disk."""
    return source if isinstance(source, Reading) else source.reading()
