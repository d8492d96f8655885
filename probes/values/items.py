"""Items: statements, questions and choices that a model is asked about, with the direction that agreeing supports.

A mean over a topic is a direction only where every item is keyed.  So each item carries its polarity, and a loader
takes it from the data and never from the order of rows; :mod:`probes.values.defects` reports what is wrong with a set.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from workbench.errors import InputError
from workbench.files import atomic_write
from workbench.textfiles import table, text_of
from workbench.tokens import whole
from workbench.variables import about

KINDS = ("statement", "question", "choice")
OWN = Path(__file__).with_name("own.csv")


@dataclass(frozen=True)
class Item:
    """One thing to ask.

    Attributes:
        topic: what it is about; an average is taken over the items of one topic.
        polarity: +1: agreeing (in a choice: the first option) supports the topic's keyed direction; -1: its opposite;
            0: not keyed.
        cluster: near-duplicates share one, and are drawn together in a bootstrap; the item's id where none is given.
        kind: one of :data:`KINDS`.
        licence: of the text, as its source states it.
        options: the answers of a choice, in order.
        shares: group of people -> share of them that chose each option, summing to 1; {} where nobody was asked.
        negated: a text that says the opposite, for framings that ask it; "" where there is none.

    Raises InputError for an empty id, topic or text, an unknown polarity or kind, a choice with fewer than two options,
    options of what is no choice, and shares that do not fit the options.
    """

    item_id: str
    topic: str
    text: str
    polarity: int = 0
    cluster: str = ""
    kind: str = "statement"
    licence: str = "unknown"
    options: tuple[str, ...] = ()
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    negated: str = ""

    def __post_init__(self) -> None:
        if not self.item_id.strip():
            raise InputError(f"An item has no id (text: {self.text[:60]!r}). Readings refer to items by id: give one.")
        if not self.text.strip():
            raise InputError(f"Item {self.item_id} has an empty text, so there is nothing to ask. Leave it out.")
        for text in (self.text, self.negated, *self.options):
            whole(text, f"A text of item {self.item_id}")
        if not self.topic.strip():
            raise InputError(f"Item {self.item_id} has no topic, so no average would hold it. Name one.")
        if isinstance(self.polarity, bool) or self.polarity not in (1, -1, 0):
            raise InputError(
                f"Item {self.item_id} has polarity {self.polarity!r}. It is +1 (agreeing supports the topic's "
                "direction), -1 (its opposite) or 0 (not keyed)."
            )
        if self.kind not in KINDS:
            raise InputError(f"Item {self.item_id} is a {self.kind!r}. It is one of: {', '.join(KINDS)}.")
        if self.kind == "choice" and len(self.options) < 2:
            raise InputError(
                f"Item {self.item_id} is a choice with {len(self.options)} options; two are the least that can be "
                "chosen from. Give options, or make it a question."
            )
        if self.kind != "choice" and self.options:
            raise InputError(f"Item {self.item_id} is a {self.kind} and has options. Make it a choice, or drop them.")
        for group, shares in self.shares.items():
            if len(shares) != len(self.options) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
                raise InputError(
                    f"Item {self.item_id}: {group} has {len(shares)} shares that sum to {sum(shares):.4g}, for "
                    f"{len(self.options)} options. One share per option, summing to 1, is needed to compare with."
                )
        if not self.cluster:
            object.__setattr__(self, "cluster", self.item_id)


class Items(Sequence[Item]):
    """An immutable sequence of items with ids of their own.

    Raises InputError where two items have one id, or where there is no item.
    """

    def __init__(self, items: Iterable[Item]):
        self._items = tuple(items)
        if not self._items:
            raise InputError("No items are left, so there is nothing to ask. Check the file or the selection.")
        twice = [i for i, n in Counter(item.item_id for item in self._items).items() if n > 1]
        if twice:
            raise InputError(
                f"{len(twice)} ids are used twice ({', '.join(twice[:5])}), so readings could not be told apart. "
                "Give each item its own."
            )

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        return Items(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Items) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._items)

    def __add__(self, other: Items) -> Items:
        return Items((*self, *other))

    def __repr__(self) -> str:
        key = Counter(item.polarity for item in self)
        clusters = len({item.cluster for item in self})
        return (
            f"<Items: {len(self)} in {len(self.topics)} topics, {clusters} clusters; "
            f"keys +1: {key[1]}, -1: {key[-1]}, none: {key[0]}>"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().drop(columns=["options", "shares", "negated"]).to_html(max_rows=12, index=False)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics in the order in which they first appear."""
        return tuple(dict.fromkeys(item.topic for item in self))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.item_id for item in self)

    def by_id(self, item_id: str) -> Item:
        """The item of that id."""
        for item in self:
            if item.item_id == item_id:
                return item
        raise InputError(f"No item has the id {item_id!r}. The first ones are: {', '.join(self.ids[:5])}.")

    def select(
        self,
        topic: str | Iterable[str] | None = None,
        *,
        polarity: int | Iterable[int] | None = None,
        kind: str | Iterable[str] | None = None,
    ) -> Items:
        """The items of one or several topics, polarities and kinds.  Raises InputError for one that no item has."""
        kept = list(self)
        for name, wanted in (("topic", topic), ("polarity", polarity), ("kind", kind)):
            if wanted is None:
                continue
            wanted = [wanted] if isinstance(wanted, str | int) else list(wanted)
            there = list(dict.fromkeys(getattr(item, name) for item in self))
            for value in wanted:
                if value not in there:
                    raise InputError(f"No item has the {name} {value!r}. There are: {', '.join(map(str, there[:20]))}.")
            kept = [item for item in kept if getattr(item, name) in wanted]
        return Items(kept)

    def to_pandas(self) -> pd.DataFrame:
        """One row per item, with the fields of :class:`Item` as columns."""
        return pd.DataFrame([{f.name: getattr(item, f.name) for f in fields(Item)} for item in self])

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write all fields (options and shares as JSON); :meth:`from_csv` gives the same items back."""
        path = Path(path)

        def write(name: str) -> None:
            with open(name, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(f.name for f in fields(Item))
                for item in self:
                    row = {f.name: getattr(item, f.name) for f in fields(Item)}
                    row["options"] = json.dumps(item.options, ensure_ascii=False) if item.options else ""
                    row["shares"] = json.dumps(dict(item.shares), ensure_ascii=False) if item.shares else ""
                    writer.writerow(row.values())

        atomic_write(path, write)
        return path

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Items:
        """From a file that :meth:`save_csv` wrote."""
        return load_csv(path)


VARIABLES = {
    "item": about("item", role="label"),
    "topic": about("topic", role="label"),
    "polarity": about("polarity of the item", role="label"),
    "cluster": about("cluster of near-duplicate items", role="label"),
}


def columns(items: Iterable[Any]) -> dict[str, tuple[str, np.ndarray, dict[str, Any]]]:
    """What readings say of each item: topic, polarity and cluster, an item without one being a cluster of its own."""
    known = list(items)
    found = {
        "topic": np.array([item.topic for item in known], object),
        "polarity": np.array([int(item.polarity) for item in known]),
        "cluster": np.array([str(item.cluster or item.item_id) for item in known], object),
    }
    return {name: ("item", values, VARIABLES[name]) for name, values in found.items()}


def fingerprint(items: Iterable[Any]) -> str:
    """16 hex digits over what is asked."""
    known = list(items)
    rows = [[str(i.item_id), i.topic, i.text, int(i.polarity), i.cluster, i.kind, list(i.options)] for i in known]
    for row, item in zip(rows, known, strict=True):
        row += filter(None, [getattr(item, "negated", "")])
    return hashlib.blake2b(json.dumps(rows, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def own() -> Items:
    """The project's own items: everyday topics, 24 keyed statements each, half of either polarity (CC0).

    +1: agreeing speaks for what the topic names.  Written for this purpose, and clean by our own report.
    """
    return load_csv(OWN)


def load_csv(path: str | os.PathLike[str], **columns: str) -> Items:
    """Items from a CSV file with a header.

    Args:
        columns: field of :class:`Item` -> name of the column that holds it, where the two differ:
            ``load_csv("items.csv", text="statement", polarity="agreement")``.

    topic and text are needed.  Without the others: ids are row numbers, polarity is 0, a text that ends in a question
    mark is a question, the licence is unknown.  options are a JSON list, or separated by ``|``; shares are JSON.
    Raises InputError where a column is missing, or a row is no item (with its number).
    """
    known = [f.name for f in fields(Item)]
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise InputError(f"An item has no field {', '.join(unknown)}. Its fields are: {', '.join(known)}.")
    rows = _rows(path)
    missing = [c for c in {"topic": "topic", "text": "text", **columns}.values() if c not in rows[0]]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(rows[0])}. Say which column is which: "
            'load_csv(path, text="statement").'
        )
    found = []
    for number, row in enumerate(rows, 1):
        got = {name: (row.get(columns.get(name, name)) or "").strip() for name in known}
        with _Row(path, number):
            options = got["options"]
            parsed = (
                _list(options) if options.startswith("[") else tuple(filter(None, map(str.strip, options.split("|"))))
            )
            kind = got["kind"] or ("choice" if parsed else "question" if got["text"].endswith("?") else "statement")
            found.append(
                Item(
                    got["item_id"] or str(number),
                    got["topic"],
                    got["text"],
                    _polarity(got["polarity"] or "0"),
                    got["cluster"],
                    kind,
                    got["licence"] or "unknown",
                    parsed,
                    {g: tuple(s) for g, s in json.loads(got["shares"] or "{}").items()},
                    got["negated"],
                )
            )
    return Items(found)


def load_vprism(path: str | os.PathLike[str], *, licence: str = "prompts from PRISM, CC-BY-4.0") -> Items:
    """Questions in V-PRISM's format (McGill-NLP/value-drifts, arXiv 2510.26707): rows {id, input, output, topic}.

    The file is a JSON list, or an object whose lists (such as dev) hold the rows.  The data has no polarity: all are 0.
    """
    data = _json(path)
    lists = [data] if isinstance(data, list) else [v for v in data.values() if isinstance(v, list)]
    found = []
    for number, row in enumerate((row for rows in lists for row in rows), 1):
        with _Row(path, number):
            found.append(Item(str(row["id"]), row["topic"], row["input"].strip(), kind="question", licence=licence))
    return Items(found)


def load_greatest_good(path: str | os.PathLike[str], *, licence: str = "none stated") -> Items:
    """Statements of the Greatest Good Benchmark (Marraffini et al. 2024, arXiv 2503.19598).

    ``path`` is a file, or the folder with GreatestGoodBenchmark.json and, where there is one, ...Inverted.json.
    The topic is the row's ``type``, IB (impartial beneficence) or IH (instrumental harm), never the row's number: the
    public file lists the 40 IH first, and the authors' notebook takes the first 50 for IB.
    polarity +1 is the benchmark's statement, -1 its inversion (statement_id 100 higher), which shares the cluster.
    Raises InputError for another type, and for an inversion whose original is there and has another type.
    """
    path = Path(path)
    names = [path]
    if path.is_dir():
        names = [path / "GreatestGoodBenchmark.json", path / "GreatestGoodBenchmarkInverted.json"]
        names = [names[0], *(n for n in names[1:] if n.is_file())]
    kept: dict[str, Item] = {}
    for name in names:
        inverted = "inverted" in name.stem.lower()
        for number, row in enumerate(_json(name), 1):
            with _Row(name, number):
                if row["type"] not in ("IB", "IH"):
                    raise InputError(f"its type is {row['type']!r}; the benchmark's two are IB and IH")
                item_id = str(row.get("statement_id", number + 100 * inverted))
                twin = kept.get(str(int(item_id) - 100)) if inverted else None
                if twin is not None and twin.topic != row["type"]:
                    raise InputError(
                        f"it inverts statement {twin.item_id}, which is {twin.topic}, and says {row['type']}"
                    )
                key, joined = (-1, twin.item_id if twin else "") if inverted else (1, "")
                if item_id in kept:
                    raise InputError(f"statement {item_id} is there already")
                kept[item_id] = Item(item_id, row["type"], row["statement"].strip(), key, joined, licence=licence)
    return Items(kept.values())


def load_valuebench(path: str | os.PathLike[str], *, licence: str = "MIT (ValueBench)") -> Items:
    """Items of 44 inventories in ValueBench's table value_orientation.csv (Ren et al. 2024, arXiv 2406.04214).

    Columns questionnaire, item, value, agreement.  topic: the value; polarity: agreement (1 or -1); id: questionnaire
    and row.  The same sentence can key several values; such rows share a cluster.
    """
    found, first = [], {}
    for number, row in enumerate(_rows(path), 1):
        with _Row(path, number):
            text, item_id = row["item"].strip(), f"{row['questionnaire']}-{number}"
            joined = first.setdefault(text, item_id)
            key = _polarity(row["agreement"])
            found.append(Item(item_id, row["value"].strip(), text, key, joined, licence=licence))
    return Items(found)


def load_choices(
    path: str | os.PathLike[str], *, rescale: bool = False, licence: str = "CC-BY-NC-SA-4.0 (GlobalOpinionQA)"
) -> Items:
    """Multiple choice as in GlobalOpinionQA (arXiv 2306.16388): columns question, selections, options, source.

    topic: the source (GAS, WVS); options: a Python or JSON list; shares: selections, {country: [share per option]},
    also as the printed defaultdict that the published file holds.  Shares or percentages are scaled to sum to 1 where
    they do so within 5 % (rounding); with ``rescale`` whatever they sum to, as shares among those who answered.
    polarity is 0: nothing keys an option.  Raises InputError for other sums: an answer was left out.
    """
    found = []
    for number, row in enumerate(_rows(path), 1):
        with _Row(path, number):
            options = _list(row["options"])
            given = re.sub(
                r"^\s*defaultdict\(<class 'list'>,\s*(.*)\)\s*$", r"\1", row.get("selections") or "{}", flags=re.S
            )
            shares = {str(group): _shares(group, values, rescale) for group, values in _literal(given).items()}
            found.append(
                Item(
                    str(row.get("item_id") or number),
                    row["source"].strip(),
                    row["question"].strip(),
                    kind="choice",
                    licence=licence,
                    options=options,
                    shares=shares,
                )
            )
    return Items(found)


def load_moralchoice(path: str | os.PathLike[str], *, licence: str = "MIT (MoralChoice)") -> Items:
    """Scenarios with two actions, as in MoralChoice (Scherrer et al. 2023, arXiv 2307.14324).

    text: the context; options: action1, action2; topic: the generation rule as the file spells it.  polarity from the
    labels: +1 where only the second action breaks a rule (a2_... is Yes), -1 where only the first does, else 0.
    """
    found = []
    for number, row in enumerate(_rows(path), 1):
        with _Row(path, number):
            first, second = (any(row[c] == "Yes" for c in row if c.startswith(f"a{n}_")) for n in (1, 2))
            options = (row["action1"].strip(), row["action2"].strip())
            key, rule = int(second) - int(first), row["generation_rule"].strip()
            found.append(Item(row["scenario_id"], rule, row["context"].strip(), key, "", "choice", licence, options))
    return Items(found)


class _Row:
    """Says which row of which file could not be read."""

    def __init__(self, path: str | os.PathLike[str], number: int):
        self.where = f"{path}, row {number}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyError):
            raise InputError(f"{self.where}: the field {error} is missing. Is this the file of another set?") from error
        if isinstance(error, InputError | ValueError | TypeError | SyntaxError | AttributeError):
            raise InputError(f"{self.where}: {error}") from error


def _rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    try:
        rows = list(table(path)[1])
    except InputError as error:
        raise InputError(f"{path} cannot be read as a table of items. {error}") from error
    if not rows:
        raise InputError(f"{path} has no rows. A header and one row per item are needed.")
    return rows


def _json(path: str | os.PathLike[str]) -> Any:
    try:
        data = json.loads(text_of(path))
    except ValueError as error:
        raise InputError(f"{path} is no JSON file of items ({error}).") from error
    if not isinstance(data, list | dict):
        raise InputError(f"{path} holds a {type(data).__name__}; a list of rows, or an object with one, is needed.")
    return data


def _polarity(text: str) -> int:
    number = float(text) if re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", text) else None
    if number not in (1, -1, 0):
        raise InputError(f"the polarity is {text!r}; it is 1 (keyed), -1 (reversed) or 0 (not keyed)")
    return int(number)


def _literal(text: str) -> Any:
    """A Python or JSON value; nothing is run."""
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text.strip())


def _list(text: str) -> tuple[str, ...]:
    return tuple(str(option).strip() for option in _literal(text))


def _shares(group: Any, values: Sequence[float], rescale: bool) -> tuple[float, ...]:
    total = math.fsum(values)
    whole = 100 if total > 50 else 1
    if not total > 0 or min(values) < 0 or not (rescale or abs(total / whole - 1) <= 0.05):
        raise InputError(
            f"the selections of {group} sum to {total:.4g}; shares of all options sum to 1 (percentages to 100), so an "
            "answer was left out. With rescale=True what is there is read as shares among those who answered"
        )
    return tuple(v / total for v in values)


def relabelled(items: Iterable[Item], clusters: Mapping[str, str]) -> Items:
    """The items with new clusters, by item id."""
    return Items(replace(item, cluster=clusters[item.item_id]) for item in items)
