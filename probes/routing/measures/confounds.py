"""What else documents of different labels differ in: their length, and their share of unknown tokens."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np

from probes.routing.measures.contrast import Contrast
from probes.routing.measures.documents import Documents
from workbench.stats import Design, over, p_value
from workbench.tokens import UNKNOWN
from workbench.variables import about

CONFOUNDS = {
    "length": about("tokens of a document, mean over documents of the label", "tokens", role="count", of="label"),
    "length_p": about("p of routing that follows the length of documents, within labels", "", "low", "p", "length"),
    "unknown": about("share of unknown tokens, mean over documents of the label", better="low"),
    "unknown_p": about("p of routing that follows the share of unknown tokens", "", "low", "p", "unknown"),
    "spread": about("variance between documents of the label, over that of as many independent slots"),
}
"""Described beside the p of every measure that compares labels."""
SURE, UNLIKE, FEW = 0.05, 10, 8


class Confounded(UserWarning):
    """Labels differ in something else that routing follows, so that their p says nothing of the labels."""


def confounds(documents: Documents, *, draws: int = 199, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """Variables that go beside a p, and [label, label] True where a pair of labels has none.

    Pairs of labels whose documents have no length (no share of unknown tokens) in common are named in the table's
    attribute "confounded", whether they have a p or not; so are those of which documents of one vary more than ten
    times as much as the other's, since p of few or very skewed documents is then too small (twice its nominal value,
    simulated with 30 documents each).

    A pair of labels is not compared where its documents have no length in common (the longest of one are shorter than
    the shortest of the other) and routing follows length within labels, at p <= .05: what is the label's and what the
    length's is then not told apart by any statistic of these documents.  The same of the share of unknown tokens; and
    where all documents of one label are more than a fifth unknown tokens and none of the other's are, whatever routing
    does within labels.

    That routing follows length: the sum over experts of (sum x r)^2 over the sum of (sum x^2 r^2), with x a document's
    log length less its label's mean and r its count less its slots times its label's share, compared with lengths
    shuffled among the documents of each label (studentised: DiCiccio & Romano 2017).
    """
    n = len(documents.names)
    found: dict[str, Any] = {}
    refused, why, named = np.zeros((n, n), bool), [], []
    if documents.mixed or n < 2:
        return found, refused
    spread = Contrast.of(documents).spread()
    found["spread"] = (("label",), spread)
    for a, b in itertools.combinations(range(n), 2):
        if max(spread[a], spread[b]) > UNLIKE * min(spread[a], spread[b]):
            more, less = (a, b) if spread[a] > spread[b] else (b, a)
            named.append(
                f"{documents.names[more]} and {documents.names[less]}: documents of the first vary "
                f"{spread[more] / spread[less]:.0f} times as much"
            )
    sides = {"length": np.asarray(documents.length, float)}
    if "document_unknown" in documents.data:
        sides["unknown"] = documents.data["document_unknown"].values[documents.document]
    for name, values in sides.items():
        each = [values[documents.label == i] for i in range(n)]
        found[name] = (("label",), np.array([own.mean() if len(own) else np.nan for own in each]))
        p = _follows(documents, np.log(values) if name == "length" else values, draws, seed)
        found[f"{name}_p"] = p
        for a, b in itertools.combinations(range(n), 2):
            x, y = sorted((each[a], each[b]), key=lambda own: own.min(initial=np.inf))
            if not len(x) or not len(y) or x.max() >= y.min():
                continue
            what = "length" if name == "length" else "share of unknown tokens"
            fewest = min(len(np.unique(documents.cluster[documents.label == i])) for i in (a, b))
            named.append(f"{documents.names[a]} and {documents.names[b]}: no {what} in common")
            if name == "length" and fewest < FEW:
                named[-1] += f" and {fewest} documents of one, so that a p of .05 may stand for .09"
            lost = name == "unknown" and x.max() <= UNKNOWN < y.min()
            if lost or p <= SURE:
                refused[a, b] = refused[b, a] = True
                how = "one is of unknown tokens" if lost else f"routing follows it within labels (p = {p:.2g})"
                why.append(f"{named[-1]}, and {how}")
    documents.notes |= {"confounded": "; ".join(named)} if named else {}
    if why:
        warnings.warn(
            f"No p for {len(why)} of {n * (n - 1) // 2} pairs of labels ({'; '.join(why[:3])}"
            f"{', ...' if len(why) > 3 else ''}): what is the label's and what is not cannot be told apart. "
            "Read documents that are alike in it.",
            Confounded,
            stacklevel=4,
        )
    return found, refused


def _follows(documents: Documents, x: np.ndarray, draws: int, seed: int) -> float:
    """p of counts that follow x [document] within labels; NaN where it does not vary there."""
    _, first, piece = np.unique(documents.cluster, return_index=True, return_inverse=True)
    piece = piece.reshape(-1)
    if len(np.unique(piece * len(documents.names) + documents.label)) > len(first):
        return float("nan")  # texts that several labels share
    label = documents.label[first]

    def summed(values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(first), *values.shape[1:]))
        np.add.at(total, piece, values)
        return total

    count, slots = summed(documents.count), summed(documents.count.sum(-1))
    size = np.bincount(label, minlength=len(documents.names))
    x = over(np.bincount(piece, x), np.bincount(piece))
    x = x - over(np.bincount(label, x, len(size)), size)[label]
    if not (np.abs(x) > 1e-9).sum() > 2:
        return float("nan")
    by = np.eye(len(size))[label]
    share = over(np.tensordot(by.T, count, 1), (by.T @ slots)[..., None])
    residual = (count - slots[..., None] * np.nan_to_num(share)[label]).reshape(len(first), -1)
    # Labels are strata: the number of a document, shuffled within its label.
    order = Design(n=len(first), strata=label).relabel(np.arange(len(first)), draws, seed)
    moved = x[np.concatenate([np.arange(len(first))[None], order])]
    statistic = over(((moved @ residual) ** 2).sum(-1), (moved**2 @ residual**2).sum(-1))
    return float(p_value(statistic[0], statistic[1:]))
