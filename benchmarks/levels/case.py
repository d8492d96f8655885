"""One claim of a level, and the simulation that tries it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

KINDS = {
    "level": "p-value at most the nominal, where there is nothing to find",
    "familywise": "any cell of a result is found, where there is nothing to find",
    "fdr": "share of what is found that is false",
    "coverage": "the interval holds the true value",
    "power": "what is there is found: no nominal rate",
}


@dataclass(frozen=True)
class Case:
    """A claim and its simulation.

    Attributes
    ----------
    name
        ``family.number.situation``.
    kind
        One of :data:`KINDS`.
    nominal
        The claimed rate: at most this for levels, at least this for coverage; NaN for power.
    trial
        Of a random generator: whether the claim was made (level), the truth covered (coverage), the thing found
        (power), in one simulated data set; or several such, of as many cells; or a share.
    what, where
        The situation in words, and the public function with the variable that is simulated.
    quick, full
        Trials in the tests, and in the table.
    labelled
        What the reading itself says where the rate is not the nominal one, and cannot be.
    before
        The rate of version 0.1.0, where it is known.
    """

    name: str
    kind: Literal["level", "familywise", "fdr", "coverage", "power"]
    nominal: float
    trial: Callable[[np.random.Generator], Any]
    what: str = ""
    where: str = ""
    quick: int = 200
    full: int = 1000
    labelled: str = ""
    before: float | None = None


@dataclass(frozen=True)
class Rate:
    """How often, of how many independent trials, with the exact interval (Clopper & Pearson 1934)."""

    rate: float
    low: float
    high: float
    trials: int

    def holds(self, case: Case) -> bool:
        """Whether the trials are compatible with the claim."""
        if case.kind == "power":
            return True
        return self.high >= case.nominal if case.kind == "coverage" else self.low <= case.nominal


def measured(case: Case, trials: int, seed: int, level: float = 0.95, seconds: float = float("inf")) -> Rate:
    """The rate of a case.  Trials with several cells or a share count by their means (interval: t over trials).

    ``seconds``: no further trials after so many, once there are as many as in the tests.
    """
    shares, start = [], time.perf_counter()
    for i in range(trials):
        if i >= case.quick and time.perf_counter() - start > seconds:
            break
        # Trials are the same whatever their number, and differ between cases.
        rng = np.random.default_rng([seed, i, *case.name.encode()])
        shares.append(float(np.mean(np.asarray(case.trial(rng), float))))
    return rate_of(shares, level)


def rate_of(shares: Sequence[float], level: float = 0.95) -> Rate:
    """The rate of trials, each 0 or 1 or a share; NaN ones are left out."""
    from scipy.stats import binomtest, t

    values = np.asarray(shares)
    values = values[~np.isnan(values)]
    n, mean = len(values), float(values.mean()) if len(values) else float("nan")
    if np.isin(values, (0, 1)).all() and n:
        ends = binomtest(int(values.sum()), n).proportion_ci(level)
        return Rate(mean, float(ends.low), float(ends.high), n)
    half = float(t.ppf((1 + level) / 2, max(n - 1, 1)) * values.std(ddof=1) / n**0.5) if n > 1 else float("nan")
    return Rate(mean, max(0.0, mean - half), min(1.0, mean + half), n)
