"""Questions with several options, asked without a judge, and how like the answers are to those of people.

``Choices`` gives the probability of every option, ``likeness`` compares it with the shares that an item carries for
groups of people: GlobalOpinionQA (Durmus et al. 2023, arXiv 2306.16388; ``items.load_choices``), OpinionQA (Santurkar
et al. 2023, arXiv 2303.17548).
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.values.answers import Asker, Pieces, Seam, answer_logprobs, answer_pieces
from probes.values.units import family, opened
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, js_divergence, p_value
from workbench.variables import about, described

MOST = 120
"""Orders of one question; all orders of five options are as many."""
VARIABLES = {
    "group": about("group of people", role="label"),
    "questions": about("questions that were compared", "questions", role="count"),
    "ordinal_questions": about("questions with options in order that were compared", "questions", role="count"),
    "mass": about("probability of the letters", better="high"),
    **family("similarity", "similarity to the group's answers", better="high", ends=("low", "high", "null", "p")),
    "similarity_uniform": about("similarity of answering evenly", role="chance", of="similarity"),
    **family("alignment", "alignment with the group's answers", better="high", ends=("low", "high", "null", "p")),
    "alignment_uniform": about("alignment of answering evenly", role="chance", of="alignment"),
}
"""Of :func:`likeness`."""
PROMPT = "{text}\nWhich would you choose?\n{options}\nReply with one letter."


class Choices(Asker):
    """The probability of each of a question's options: the next token over lettered options, over orders of them.

    Args:
        prompt: with {text} and {options}, the lettered list.
        orders: "cyclic": each option is once in each place, under each letter; "all": every order.
        letters: labels, as many as the longest list of options.
        tokens, chat, lead: as in :class:`~probes.values.instruments.Pmf`.

    ``read`` takes items of kind choice and gives [item]:
        p_option [item, option]: the mean over orders of the probability among the letters; NaN behind the last option.
        mass: mean probability of all letters, spellings included; 1 - mass is refusal, thinking aloud, other words.
        order_tv: mean total variation of single orders from p_option: what labels and places alone move.
    Attributes as other instruments'.  Nothing is drawn, and no text is made.
    """

    name = "choices"
    variables = {
        "p_option": about("probability of the option"),
        "mass": about("probability of all letters", better="high"),
        "order_tv": about("total variation by the order of options", role="floor", of="p_option"),
    }

    def __init__(
        self,
        prompt: str = PROMPT,
        orders: str = "cyclic",
        letters: Sequence[str] = string.ascii_uppercase,
        *,
        tokens: str = "single",
        chat: bool | None = None,
        lead: str | None = None,
    ) -> None:
        if orders not in ("cyclic", "all"):
            raise InputError(f"orders={orders!r} is unknown. Use 'cyclic' or 'all'.")
        if "{text}" not in prompt or "{options}" not in prompt:
            raise InputError(f"The prompt {prompt[:60]!r} lacks {{text}} or {{options}}, so nothing would be asked.")
        super().__init__(chat, lead)
        self.prompt, self.orders, self.letters, self.tokens = prompt, orders, tuple(letters), tokens

    @property
    def config(self) -> dict[str, Any]:
        own = {k: getattr(self, k) for k in ("prompt", "orders", "letters", "tokens")}
        return {**own, **super().config}

    def read(
        self, model: Any, items: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Reading:
        """Ask every item in every order.  Raises InputError for items without options, or with too many."""
        items, turn = self.opened(model, items)
        known: dict[int, tuple[Seam, Pieces]] = {}
        asked: list[tuple[list[int], Pieces]] = []
        places: list[tuple[int, tuple[int, ...]]] = []
        for i, item in enumerate(items):
            n = len(item.options)
            labels = self._labels(item)
            for order in self._orders(item):
                shown = "\n".join(f"{label}. {item.options[k]}" for label, k in zip(self.letters, order, strict=False))
                text = self.prompt.replace("{options}", shown).replace("{text}", item.text)
                if n not in known:
                    known[n] = answer_pieces(turn, labels, self.tokens, text)
                seam, pieces = known[n]
                asked.append((turn.prompt(text, seam), pieces))
                places.append((i, order))
        found, cost = answer_logprobs(turn.model, asked, batch_size=batch_size, progress=progress)
        each: list[list[np.ndarray]] = [[] for _ in items]
        mass: list[list[float]] = [[] for _ in items]
        for (i, order), row in zip(places, found, strict=True):
            own = row[: len(order)]
            total = np.logaddexp.reduce(own)
            # Back from letters to options.
            each[i].append(np.exp(own - total)[np.argsort(order)])
            mass[i].append(min(1.0, float(np.exp(total))))
        p = np.full((len(items), max(known)), np.nan)
        tv = np.empty(len(items))
        for i, rows in enumerate(each):
            mean = np.mean(rows, 0)
            p[i, : len(mean)], tv[i] = mean, np.abs(np.array(rows) - mean).sum(1).mean() / 2
        variables = {
            "p_option": (("item", "option"), p),
            "mass": ("item", np.array([np.mean(own) for own in mass])),
            "order_tv": ("item", tv),
        }
        return self.table(items, variables, turn, prompts=len(asked), **cost)

    def _labels(self, item: Any) -> tuple[str, ...]:
        n = len(item.options)
        if item.kind != "choice" or not 2 <= n <= len(self.letters):
            raise InputError(
                f"Item {item.item_id} is a {item.kind} with {n} options. Choices asks for one of 2 to "
                f"{len(self.letters)} options: leave it out, or give more letters."
            )
        return self.letters[:n]

    def _orders(self, item: Any) -> list[tuple[int, ...]]:
        n = len(item.options)
        if self.orders == "cyclic":
            return [tuple((k + shift) % n for k in range(n)) for shift in range(n)]
        if math.factorial(n) > MOST:
            raise InputError(
                f"Item {item.item_id} has {n} options, and these have {math.factorial(n)} orders (at most {MOST} are "
                'asked). Use orders="cyclic": each option is in each place as often.'
            )
        return list(itertools.permutations(range(n)))


def likeness(
    reading: Reading | xr.Dataset,
    items: Iterable[Any],
    *,
    ordinal: Collection[str] | bool = False,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """How like a model's answers are to those of groups of people, over the questions that a group was asked.

    Args:
        reading: of :class:`Choices`.
        items: the same items, with shares.
        ordinal: ids of the items whose options are in order, or True for all: only they have a Wasserstein distance.

    Returns by group of people:
        similarity: mean of 1 - Jensen-Shannon distance, the root of the divergence in bits, so that 0 is disjoint and 1
            equal (Durmus et al. 2023, section 3).
        alignment: mean of 1 - W / (n - 1), with W the 1-Wasserstein distance between the n options in order (Santurkar
            et al. 2023, section 4); NaN where no item is ordinal.
            Of both: _low and _high (clusters of questions drawn again), _uniform (what answering evenly would give),
            _null (what the same answers would give if each question's shares were another's with as many options), and
            _p (how often that null reaches the value, one-sided: answers that know the question).
        questions, ordinal_questions: how many were compared.  mass: of the letters, over those questions.
    A group's own shares hold what it was offered: "don't know" counts where it is an option.  Likeness to a group does
    not say that a model holds its views: all groups may be nearer than chance, and the differences between them small.

    Raises InputError where the items are not those of the reading, or none has shares.
    """
    reading = opened(reading)
    found = {str(item.item_id): item for item in items}
    ids = [str(x) for x in reading["item"].values]
    if lacking := sorted(set(ids) - set(found)):
        raise InputError(f"The reading has item {lacking[0]!r}, and the items do not. Give the items that were read.")
    asked = [found[name] for name in ids]
    groups = list(dict.fromkeys(group for item in asked for group in item.shares))
    if not groups:
        raise InputError("No item has shares, so there is nobody to compare with. Load a survey: items.load_choices.")
    size = np.array([len(item.options) for item in asked])
    in_order = np.full(len(asked), ordinal) if isinstance(ordinal, bool) else np.isin(ids, list(ordinal))
    _, cluster = np.unique(reading["cluster"].values.astype(str), return_inverse=True)
    p, mass = reading["p_option"].values, reading["mass"].values
    rows = []
    for group in groups:
        there = np.array([group in item.shares for item in asked])
        q = np.full(p.shape, np.nan)
        for i in np.flatnonzero(there):
            q[i, : size[i]] = asked[i].shares[group]
        row = {"questions": there.sum(), "ordinal_questions": (there & in_order).sum(), "mass": mass[there].mean()}
        for name, like, own in (("similarity", similarity, there), ("alignment", alignment, there & in_order)):
            found = _compared(like, p[own], q[own], size[own], cluster[own], level, draws, seed)
            row |= {name + end: value for end, value in found.items()}
        rows.append(row)
    columns = {name: ("group", np.array([row[name] for row in rows])) for name in rows[0]}
    data = xr.Dataset(columns, {"group": groups}, {"level": level, "draws": draws})
    chosen = ordinal if isinstance(ordinal, bool) else sorted(ordinal)
    settings = {"ordinal": chosen, "level": level, "draws": draws, "seed": seed}
    return derived("values.likeness", described(data, VARIABLES), reading, **settings)


def _compared(
    like: Callable[[np.ndarray, np.ndarray], np.ndarray],
    p: np.ndarray,
    q: np.ndarray,
    size: np.ndarray,
    cluster: np.ndarray,
    level: float,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Of answers and shares [question, option], a cluster of duplicates counted once."""
    if not len(p):
        return dict.fromkeys(("", "_low", "_high", "_uniform", "_null", "_p"), float("nan"))
    _, unit, count = np.unique(cluster, return_inverse=True, return_counts=True)
    weight = 1 / count[unit] / len(count)
    rng = np.random.default_rng(seed)
    value = like(p, q)
    even = np.where(np.isnan(q), np.nan, 1 / size[:, None])
    # Shares change places among questions with as many options.
    null = np.zeros(draws)
    for n in np.unique(size):
        own = np.flatnonzero(size == n)
        table = like(p[own, None, :n], q[None, own, :n])
        other = rng.permuted(np.tile(np.arange(len(own)), (draws, 1)), axis=1)
        null += table[np.arange(len(own)), other] @ weight[own]
    own = Design(n=len(count)).bootstrap(np.bincount(unit, value) / count, level=level, draws=draws, seed=seed)
    found = {
        "": value @ weight, "_low": np.maximum(own.low, 0), "_high": np.minimum(own.high, 1),
        "_uniform": like(even, q) @ weight, "_null": null.mean(),
        "_p": p_value(value @ weight, null),
    }  # fmt: skip
    return {end: float(number) for end, number in found.items()}


def similarity(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """1 - Jensen-Shannon distance in bits, over the last axis; options that are not there are NaN."""
    return 1 - np.sqrt(js_divergence(np.nan_to_num(p), np.nan_to_num(q)) / np.log(2))


def alignment(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """1 - 1-Wasserstein distance over its largest value (options in order, one apart), over the last axis."""
    n = (~np.isnan(p + q)).sum(-1)
    return 1 - np.abs(np.cumsum(np.nan_to_num(p - q), -1)).sum(-1) / (n - 1)
