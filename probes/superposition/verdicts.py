"""One word for what thoughts hold, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from probes.results import family
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import bootstrap_interval
from workbench.variables import about, described

EVEN = 0.2
"""Evenness within the frontier from which more than one of its nodes counts as held: of four nodes, held as if 1.6."""
LITTLE = 0.5
"""Nats of log-odds: a fall that is known to be smaller counts as no use."""
ONE = 1.5
"""Candidates in all (exp of entropy) below which a state holds one thing."""

ENDS = ("low", "high")
VARIABLES = {
    **family(
        "auc", about("how often a frontier node's logit is above another node's", better="high"), *ENDS,
        null_high=("floor", "{}, of other graphs"),
    ),
    **family(
        "evenness", about("evenness within the frontier", better="high"), *ENDS,
        line=("floor", "{}, of one node held"),
    ),
    **family("effective", about("candidates held", "candidates"), *ENDS, line=("floor", "{}, of one thing held")),
    **family("necessary", about("change of log-odds with another problem's thoughts", "nats", "low"), *ENDS),
    **family("specific", about("change of log-odds without the branch to the target", "nats", "low"), *ENDS),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What :func:`verdict` says.

    word: "held and used", "held but unused", "collapsed" or "absent".  sure: whether no interval straddles the line
    that decided.  evidence: sentences, each with its numbers.  reading: these numbers.
    """

    word: str
    sure: bool
    evidence: tuple[str, ...]
    reading: Reading = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.word}{'' if self.sure else ' (not sure)'}\n" + "\n".join(f"  {line}" for line in self.evidence)


def verdict(
    held: Reading,
    used: Reading | None = None,
    *,
    places: Any = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Whether thoughts hold several answers at once, and whether the answer rests on it.

    Args:
        held: of :func:`frontier`.
        used: of :func:`use`; None: a model whose thoughts were not intervened on (then never "used").
        places: which places to judge; None: all those where half the problems or more have two frontier nodes.

    held: the frontier is told from other nodes better than any other graph's (auc above auc_null, intervals apart) and
    its nodes are held together (evenness above :data:`EVEN`).  collapsed: evenness below, or one candidate alone.
    absent: neither a frontier nor a single candidate.  used: the answer gets worse with another problem's thoughts
    (necessary), and worse when the branch to the target is taken from them than when a node out of reach is (specific).
    """
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    each, evenness = held["auc_each"].values, held["evenness_each"].values
    if places is None:
        places = np.flatnonzero((~np.isnan(evenness)).mean(0) >= 0.5)
    places = np.atleast_1d(np.asarray(places, int))
    if not len(places):
        raise InputError(
            "At no place do half of the problems have two frontier nodes, so there is nothing to hold at once. Give "
            "problems that branch."
        )
    auc, auc_low, auc_high = _mean(each[:, places], settings)
    null_high = float(held["auc_null_high"].values[places].mean())
    even, even_low, even_high = _mean(evenness[:, places], settings)
    effective, few, many = _mean(held["effective_each"].values[:, places], settings)
    if np.isnan([auc_low, null_high, even_low, few]).any():
        raise InputError(
            f"{len(each)} problems give no interval, and a verdict without one means nothing. Give two problems or "
            "more that branch at these places."
        )
    numbers: dict[str, float] = {
        "auc": auc, "auc_low": auc_low, "auc_high": auc_high, "auc_null_high": null_high, "evenness": even,
        "evenness_low": even_low, "evenness_high": even_high, "evenness_line": EVEN, "effective": effective,
        "effective_low": few, "effective_high": many, "effective_line": ONE,
    }  # fmt: skip

    def judged(word: str, sure: bool, *lines: str) -> Verdict:
        table = described(xr.Dataset(numbers, attrs={"word": word, "sure": int(sure)}), VARIABLES)
        sources = [held] if used is None else [held, used]
        asked = {"places": places.tolist(), **settings}
        return Verdict(word, sure, lines, derived("superposition.verdict", table, *sources, **asked))

    decodable, together, single = auc_low > null_high, even > EVEN, effective < ONE
    lines = [
        f"frontier told from other nodes: AUC {auc:.3f} [{auc_low:.3f}, {auc_high:.3f}], other graphs {null_high:.3f}",
        f"evenness within the frontier: {even:.3f} [{even_low:.3f}, {even_high:.3f}] (0: one node, 1: all alike)",
        f"candidates held in all: {effective:.2f} [{few:.2f}, {many:.2f}]",
    ]
    sure = not (auc_low <= null_high < auc) and not even_low <= EVEN <= even_high and not few <= ONE <= many
    if not together or single or not decodable:
        word = "collapsed" if single or (decodable and not together) else "absent"
        return judged(word, sure, *lines)
    if used is None:
        return judged("held but unused", False, *lines, "no intervention was made, so no use is shown")
    what = "with another problem's thoughts"
    necessary, clear, necessary_line, change = _fewer(used, "resampled", "plain", what, settings)
    numbers |= {f"necessary{end}": value for end, value in zip(("", "_low", "_high"), change, strict=True)}
    if "edit optimal" not in used["condition"].values:
        return judged("held but unused", False, *lines, necessary_line, "no branch was edited, so no use is shown")
    what = "without the branch to the target, beside one out of reach"
    specific, plain, specific_line, change = _fewer(used, "edit optimal", "edit not reachable", what, settings)
    numbers |= {f"specific{end}": value for end, value in zip(("", "_low", "_high"), change, strict=True)}
    word = "held and used" if necessary and specific else "held but unused"
    # That a use was not seen is sure only where its interval leaves room for little.
    sure = sure and (word == "held and used" or (clear if not necessary else plain))
    return judged(word, sure, *lines, necessary_line, specific_line)


def _mean(values: np.ndarray, settings: dict[str, Any]) -> tuple[float, float, float]:
    """Of problems, each the mean of its places, with interval."""
    rows = values[~np.isnan(values).all(1)]
    own = np.nanmean(rows, 1)
    low, high = bootstrap_interval(own[:, None], **settings)
    return float(own.mean()), float(low[0]), float(high[0])


def _fewer(
    used: Reading, worse: str, than: str, what: str, settings: dict[str, Any]
) -> tuple[bool, bool, str, tuple[float, float, float]]:
    """Whether the log-odds fall; whether, if not, they are known to fall by less than :data:`LITTLE`; the line; and
    the fall with its interval."""
    change = used["logodds"].sel(condition=worse).values - used["logodds"].sel(condition=than).values
    change = change[~np.isnan(change)]
    if len(change) < 2:
        raise InputError(
            f"{len(change)} problems could be compared {what}: no interval, no verdict. Give more problems."
        )
    low, high = (float(x[0]) for x in bootstrap_interval(change[:, None], **settings))
    line = f"log-odds of the target {what}: {change.mean():+.2f} [{low:+.2f}, {high:+.2f}] nats, {len(change)} problems"
    return high < 0, low > -LITTLE, line, (float(change.mean()), low, high)
