"""A few words for what thoughts hold, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probes.results import family
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, nanmean
from workbench.variables import about, described

EVEN = 0.2
"""Evenness within the frontier from which more than one of its nodes counts as held: of four nodes, held as if 1.6."""
LEAD = 0.5
"""The first node leads the second by as much as the others spread: from here on one node stands alone."""
MOST = 0.8
"""Held is what this share of problems hold, or more, by estimate; fewer: "some problems only"."""
LITTLE = 0.5
"""Nats of log-odds: a fall that is known to be smaller counts as no use."""

ENDS = ("low", "high")


class Line(NamedTuple):
    """What is asked of each place: the interval of a number lies above a line."""

    name: str
    minus: str
    line: float
    said: str


REQUIRED = (
    Line("auc", "", 0.5, "frontier above all other nodes: AUC"),
    Line("auc", "auc_null", 0.0, "frontier above the same nodes in other problems' thoughts: AUC less theirs"),
    Line("auc", "auc_other", 0.0, "frontier above nodes as far from another root: AUC less theirs"),
    Line("auc_within", "", 0.5, "frontier above reachable nodes at other distances: AUC"),
    Line("auc_without_top", "", 0.5, "frontier without its highest node, above all other nodes: AUC"),
    Line("auc_within_without_top", "", 0.5, "frontier without its highest node, above reachable ones: AUC"),
    Line("evenness", "", EVEN, "evenness within the frontier (0: one node, 1: all alike)"),
)
"""What is held has all of these at every place.  In this order: the first that fails is what decides."""
BESIDE = (
    Line("auc_reachable", "", 0.5, "reachable nodes without their highest, above those out of reach: AUC"),
    Line("auc_target", "", 0.5, "target above all other nodes: AUC"),
    Line("lead", "", LEAD, "lead of the first node over the second (0.5: the spread of the others)"),
)
"""What tells the other words apart, all places together."""
ALL = "all"
WITHOUT_TOP = 4
SHARE = "share of problems whose frontier without its highest node stands out:"

VARIABLES = {
    **family("auc", about("how often a frontier node's logit is above another node's", better="high"), *ENDS),
    **family("above_null", about("AUC of the frontier less that in others' thoughts", better="high"), *ENDS),
    **family("above_other", about("AUC of the frontier less that from another root", better="high"), *ENDS),
    **family("auc_within", about("AUC of the frontier beside reachable nodes", better="high"), *ENDS),
    **family("auc_without_top", about("AUC of the frontier without its highest node", better="high"), *ENDS),
    **family(
        "auc_within_without_top",
        about("AUC of the frontier without its highest node, beside reachable nodes", better="high"), *ENDS,
    ),
    **family(
        "evenness", about("evenness within the frontier", better="high"), *ENDS,
        line=("floor", "{}, of one node held"),
    ),
    **family("auc_reachable", about("AUC of reachable nodes without their highest"), *ENDS),
    **family("auc_target", about("AUC of the target"), *ENDS),
    **family(
        "lead", about("lead of the first node over the second, beside the spread"), *ENDS,
        line=("floor", "{}, of one node alone"),
    ),
    **family(
        "holding", about("share of problems whose frontier without its highest node stands out", better="high"), *ENDS,
        line=("floor", "{}, of most problems"),
    ),
    **family("agreement", about("correlation of a problem's places in that"), *ENDS),
    **family("necessary", about("change of log-odds with another problem's thoughts", "nats", "low"), *ENDS),
    **family("specific", about("change of log-odds without the branch to the target", "nats", "low"), *ENDS),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What :func:`verdict` says.

    Attributes
    ----------
    word
        One of :data:`WORDS`.
    sure
        Whether no number lies on the other side of the line that decided, too near to it for its interval to show it.
    decided_by
        The sentence of the evidence that decided: of what is held the one nearest to its line, of what is not the
        first that fails.
    evidence
        All sentences, each with its numbers and the line that they have to be above; of the places in the order that
        the first sentence says.
    reading
        These numbers, by place and for all places together ("all").
    """

    word: str
    sure: bool
    decided_by: str
    evidence: tuple[str, ...]
    reading: Reading = field(repr=False, compare=False)

    def __str__(self) -> str:
        head = f"{self.word}{'' if self.sure else ' (not sure)'}\n  decided by: {self.decided_by}"
        return "\n".join([head, *(f"  {line}" for line in self.evidence)])


WORDS = {
    "held and used": "the frontier is held at each place, and the answer rests on it",
    "held but unused": "the frontier is held at each place, and nothing shows that the answer rests on it",
    "some problems only": "held on average, and by fewer than most problems",
    "some places only": "held at some of the places",
    "one node": "one node stands out, of the frontier or the target, and the rest of the frontier does not",
    "reachability without steps": "reachable nodes stand out, and the frontier does not among them",
    "collapsed": "one node of the frontier, or the target, stands alone before all others",
    "absent": "none of these",
}
"""What a verdict says, and what it means."""


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

    Parameters
    ----------
    held
        Of :func:`frontier`.
    used
        Of :func:`use`; None: a model whose thoughts were not intervened on (then never "used").
    places
        Which places to judge; None: all those where half the problems or more have two frontier nodes.
    draws, level, seed
        Of the intervals, which are over graphs.

    Returns
    -------
    Verdict

    Raises
    ------
    InputError
        Where no place branches, or where there are too few graphs for an interval.

    Notes
    -----
    "Held" takes, at each place for itself, an interval above the line of everything in :data:`REQUIRED`: the frontier
    beside all other nodes, beside the same nodes in other problems' thoughts, beside nodes as far from another root,
    and beside the reachable nodes at other distances; the latter and the first without the frontier's highest node;
    and evenness.  That all are required is an intersection-union test (Berger 1982): each is made at the level, and so
    is the claim.  Then the problems: of those that hold nothing but one node, half or more have their frontier without
    it below other nodes, so that 1 - 2 x (share of problems where it is) estimates how many hold (Storey 2002); the
    estimate must be :data:`MOST` or more, and sure is what is known to be more than half.  A code so weak that single
    problems do not show it fails here, too: that all problems hold it weakly, and that some hold it, is told apart
    where the places of a problem agree.

    "Some places only" takes all of it somewhere, at a level that is shared among the places.  The other words are
    about the mean of places: "collapsed" where the frontier or the target stands out and one node leads alone (lead
    above :data:`LEAD`), or where evenness fails; "reachability without steps" and "one node" as :data:`WORDS` says.
    All numbers that decide stay what they are when logits are shifted or scaled.

    used: the answer gets worse with another problem's thoughts (necessary), and worse when the branch to the target is
    taken from them than when a node out of reach is (specific).
    """
    settings: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    branching = ~np.isnan(held["auc_without_top_each"].values)
    if places is None:
        places = np.flatnonzero(branching.mean(0) >= 0.5)
    places = np.atleast_1d(np.asarray(places, int))
    if not len(places):
        raise InputError(
            "At no place do half of the problems have two frontier nodes, so there is nothing to hold at once. Give "
            "problems that branch."
        )
    design = Design(clusters=held["graph"].values)
    found = _Found(held, design, places, settings)
    called = [*map(str, held["place"].values[places]), ALL]
    numbers: dict[str, Any] = {}
    for i, line in enumerate((*REQUIRED, *BESIDE)):
        name = _named(line)
        ends = zip(("", "_low", "_high"), (found.value[i], found.low[i], found.high[i]), strict=True)
        numbers |= {f"{name}{end}": (("place",), values) for end, values in ends}
    numbers |= {"evenness_line": EVEN, "lead_line": LEAD, "holding_line": MOST}
    for name, three in (("holding", found.holding), ("agreement", found.agreement)):
        numbers |= {f"{name}{end}": x for end, x in zip(("", "_low", "_high"), three, strict=True)}
    word, sure, decided = found.word()
    where = f"place{'s' * (len(places) > 1)} {', '.join(called[:-1])}"
    evidence = [f"{where}, in this order; intervals: {found.said}", *found.sentences]
    change = _Use(used, design, settings) if used is not None else None
    if change is not None:
        evidence += change.sentences
        numbers |= change.numbers
    else:
        evidence.append("no intervention was made, so no use is shown")
    if word == "held":
        both = change is not None and change.necessary and change.specific
        word = "held and used" if both else "held but unused"
        if not both:
            sure = sure and change is not None and change.clear
            decided = evidence[-1] if change is None else change.decided
    attrs = {"word": word, "sure": int(sure), "decided_by": decided, "interval": found.said}
    table = described(xr.Dataset(numbers, {"place": called}, attrs), VARIABLES)
    asked = {"places": places.tolist(), **settings}
    source = derived("superposition.verdict", table, *[x for x in (held, used) if x is not None], **asked)
    return Verdict(word, sure, decided, tuple(evidence), source)


def _named(line: Line) -> str:
    return line.minus.replace("auc_", "above_") or line.name


class _Found:
    """The numbers of :data:`REQUIRED` and :data:`BESIDE`, [line, place], the last place being all together."""

    def __init__(self, held: Reading, design: Design, places: np.ndarray, settings: dict[str, Any]) -> None:
        self.design, self.settings, self.called = design, settings, [str(held["place"].values[p]) for p in places]
        each = []
        for line in (*REQUIRED, *BESIDE):
            own = held[f"{line.name}_each"].values[:, places]
            own = own - held[f"{line.minus}_each"].values[:, places] if line.minus else own
            each.append(np.concatenate([own, _over_places(own)[:, None]], 1))
        rest = each[WITHOUT_TOP]
        self.line = np.array([line.line for line in (*REQUIRED, *BESIDE)])[:, None]
        self.value, self.low, self.high, self.said = self._intervals(each, settings)
        if np.isnan(self.low[: len(REQUIRED)]).any():
            name = REQUIRED[int(np.isnan(self.low[: len(REQUIRED)]).any(1).argmax())].said
            raise InputError(
                f"{design.n} graphs give no interval of this: {name}. A verdict without one means nothing. Give two "
                "graphs or more that branch at these places, with nodes at other distances."
            )
        self.each, self.passed = each, self.low > self.line
        self.sentences = [self._sentence(i) for i in range(len(each))]
        self.holding, self.agreement = self._holding(rest[:, -1]), self._agreement(rest[:, :-1])
        self.sentences += [
            f"{SHARE} {_three(*self.holding, 2)} (line {MOST:g})",
            f"agreement of a problem's places about it (correlation): {_three(*self.agreement, 2)}",
        ]

    def _intervals(self, each: list[np.ndarray], settings: dict[str, Any]) -> tuple[np.ndarray, ...]:
        """Value, low, high [line, place]; shares that are 0 or 1 in every problem have exact intervals."""
        signed = np.array([bool(line.minus) for line in (*REQUIRED, *BESIDE)])
        value, low, high = np.empty((3, len(each), each[0].shape[1]))
        said = ""
        for kind, bounds in ((~signed, (0, 1)), (signed, (-1, 1))):
            own = np.stack([x for x, chosen in zip(each, kind, strict=True) if chosen], 1)
            where = self.design.bootstrap(own, bounds=bounds, **settings)
            value[kind], low[kind], high[kind] = where.value, where.low, where.high
            said = said or where.said("graphs")
        return value, low, high, said  # type: ignore[return-value]

    def _sentence(self, i: int) -> str:
        places = range(len(self.called)) if i < len(REQUIRED) else [len(self.called)]
        line = (*REQUIRED, *BESIDE)[i]
        sign = "+" if line.minus else ""
        told = "; ".join(_three(self.value[i, p], self.low[i, p], self.high[i, p], 3, sign) for p in places)
        return f"{line.said} {told} (line {line.line:g})"

    def _holding(self, rest: np.ndarray) -> tuple[float, float, float]:
        """Estimated share of problems that hold more than one node, with interval, from their AUC without the top."""
        below = np.where(np.isnan(rest), np.nan, rest <= 0.5)
        where = self.design.bootstrap(below, bounds=(0, 1), **self.settings)
        share, low, high = (1 - 2 * float(x) for x in (where.value, where.high, where.low))
        return max(share, 0.0), max(low, 0.0), max(high, 0.0)

    def _agreement(self, rest: np.ndarray) -> tuple[float, float, float]:
        """Mean correlation of two places over problems, with interval (given the variances); NaN at one place."""
        apart = rest - self.design.mean(rest)
        pairs = [apart[:, i] * apart[:, j] for j in range(rest.shape[1]) for i in range(j)]
        if not pairs or not (variance := float(np.nanmean(apart**2))):
            return np.nan, np.nan, np.nan
        own = _over_places(np.stack(pairs, 1)) / variance
        where = self.design.bootstrap(own, bounds=(-1, 1), **self.settings)
        return float(where.value), float(where.low), float(where.high)

    def word(self) -> tuple[str, bool, str]:
        """The word ("held" for both of its kinds), whether it is sure, and the sentence that decided."""
        n, last = len(REQUIRED), len(self.called)
        above = self.value > self.line
        passed, together = self.passed[:n, :last], self.passed[:, last]
        few, apart = self.holding[0] < MOST, self.holding[2] < MOST and bool(self.agreement[1] > 0)
        share, first = self.sentences[-2], self.sentences[int((~passed).any(1).argmax())]
        if passed.all() and few:
            return "some problems only", apart, share
        if passed.all():
            tight = ((self.value - self.line) / (self.value - self.low + 1e-300))[:n, :last]
            return "held", self.holding[1] > 0.5, self.sentences[int(tight.min(1).argmin())]
        # Claims about some of the places, whichever they are, and about their mean share the level.
        settings = {**self.settings, "level": 1 - (1 - self.settings["level"]) / (last + 1)}
        strict = (self._intervals(self.each, settings)[1] > self.line)[:n]
        if strict[:, :last].all(0).any():
            return "some places only", not above[:n, :last].all(), first
        if strict[:6, last].all():
            if not together[6]:
                return "collapsed", not above[6, last], self.sentences[6]
            return ("some problems only", apart, share) if few else ("some places only", False, first)
        told, within = together[:3].all(), together[3]
        reachable, target, alone = together[n:]
        one = not above[4:6, last].all()
        if (told or target) and alone:
            return "collapsed", one, self.sentences[n + 2]
        if reachable and not within:
            return "reachability without steps", not above[3, last], self.sentences[3]
        if (told and within) or target:
            return "one node", one, self.sentences[5 if together[4] else 4]
        failed = int((~together[:4]).argmax())
        return "absent", not above[:4, last].all(), self.sentences[failed]


def _over_places(values: np.ndarray) -> np.ndarray:
    """[problem, place] -> [problem] mean of what is not NaN."""
    return nanmean(values.T)


def _three(value: float, low: float, high: float, digits: int = 3, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


class _Use:
    """How the log-odds fall when thoughts are swapped, and when a branch is taken from them."""

    def __init__(self, used: Reading, design: Design, settings: dict[str, Any]) -> None:
        self.sentences: list[str] = []
        self.numbers: dict[str, float] = {}
        self.necessary = self.specific = False
        what = "with another problem's thoughts"
        self.necessary, small = self._fewer("necessary", used, "resampled", "plain", what, design, settings)
        self.clear, self.decided = small or self.necessary, self.sentences[0]
        if "edit optimal" not in used["condition"].values:
            self.sentences.append("no branch was edited, so no use is shown")
            self.clear, self.decided = False, self.sentences[-1]
            return
        what = "without the branch to the target, beside one out of reach"
        edits = "edit optimal", "edit not reachable"
        self.specific, plain = self._fewer("specific", used, *edits, what, design, settings)
        if self.necessary:
            self.clear, self.decided = plain, self.sentences[1]

    def _fewer(
        self, name: str, used: Reading, worse: str, than: str, what: str, design: Design, settings: dict[str, Any]
    ) -> tuple[bool, bool]:
        """Whether the log-odds fall; whether, if not, they are known to fall by less than :data:`LITTLE`."""
        change = used["logodds"].sel(condition=worse).values - used["logodds"].sel(condition=than).values
        where = design.bootstrap(change, **settings)
        value, low, high = (float(x) for x in (where.value, where.low, where.high))
        known = int((~np.isnan(change)).sum())
        if np.isnan(low):
            raise InputError(f"{known} problems could be compared {what}: no interval, no verdict. Give more problems.")
        self.numbers |= {name: value, f"{name}_low": low, f"{name}_high": high}
        self.sentences.append(
            f"log-odds of the target {what}: {_three(value, low, high, 2, '+')} nats, {known} problems"
        )
        return high < 0, low > -LITTLE
