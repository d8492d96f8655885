"""``beyond``: stop a training run when a stance has moved farther than it may, and not when noise says so.

Looking again at every checkpoint is a sequential test: at .05 a look, twenty looks may raise a false alarm in two
runs of three.  The error is therefore spent over the planned looks, alpha / looks each (Bonferroni), which holds
whatever the dependence between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.values.units import RUN, StanceUnits
from workbench.errors import InputError

if TYPE_CHECKING:
    from probes.values.tracker import ValueTracker


class beyond:  # noqa: N801 - used like a function: ValueCallback(..., alert=beyond(by=0.1))
    """True of a tracker where a keyed stance lies wholly beyond ``by`` from where it was at the first checkpoint.

    At each look, the latest checkpoint against the first, and both must hold: the simultaneous interval of the keyed
    drift, over topics and measures, at level 1 - alpha / looks (keyed_M_band_low and _high of ``drift`` of these two
    checkpoints at that level) lies beyond; and flips of each cluster's sign around ``by`` say so, with a family-wise p
    over topics of alpha / looks at most, which also holds for few clusters, where intervals are too short.

    The chance that a run which stays within ``by`` is ever stopped is alpha at most, as far as these hold:

    * Prompts are drawn from more like them, as in :func:`~probes.values.measures.drift`.  Items that say the same in
      other words are clusters (:mod:`probes.values.duplicates` joins near-duplicates; paraphrases it does not know).
    * The items of a topic whose mean lies at ``by`` lie above and below it alike (symmetry).  That is tested, as in
      ``drift``, and where it is rejected or cannot be tested, intervals and p also hold the spread over all topics.
      Nothing helps where one topic alone is read with a handful of items.  ``assumes`` says how it was.
    * The run is given.  A topic's mean moves in any training, by what differs between seeds; where ``by`` is small,
      give its standard deviation over runs that should raise no alarm as ``spread`` (``compare`` has: keyed_spread).

    Args:
        topic: one or several; None: any.  Intervals cover all topics in each case.
        by: how far, in shares of 1 (keyed stances go from -1 to 1); 0: anywhere else.
        alpha: the chance of a false alarm in the whole run.
        looks: how many checkpoints after the first are looked at; None: as many as
            :class:`~probes.values.live.ValueCallback` has planned (:attr:`planned`).
        instrument: or its name; None: the tracker's first.
        spread: standard deviation of a topic's keyed drift between runs that differ in their seed alone; intervals
            are wider by it (root of the sum of squares).

    With few clusters there is no alarm: n of them can say no more than p = 2 ** (1 - n), so that ten are needed for
    twenty looks.  After a call, ``found`` has the last look: topic -> (low, high), and
    ``assumes`` what it rests on.
    """

    def __init__(
        self,
        topic: str | Iterable[str] | None = None,
        by: float = 0.1,
        *,
        alpha: float = 0.05,
        looks: int | None = None,
        instrument: Any = None,
        spread: float = 0.0,
    ) -> None:
        if not 0 <= by < 2 or not 0 < alpha < 1 or (looks is not None and looks < 1) or not 0 <= spread < 2:
            raise InputError(
                f"by={by}, alpha={alpha}, looks={looks}, spread={spread}: a drift is from 0 to 2, a chance between 0 "
                "and 1, there is one look or more, and a standard deviation is from 0 to 2."
            )
        self.topics = None if topic is None else [topic] if isinstance(topic, str) else list(topic)
        self.by, self.alpha, self.looks, self.instrument = float(by), float(alpha), looks, instrument
        self.spread = float(spread)
        self.planned: int | None = None
        self.assumes = ""
        self.found: dict[str, tuple[float, float]] = {}

    def __call__(self, tracker: ValueTracker) -> bool:
        """Raises InputError for a topic that no item has, and where the number of looks is not known."""
        looks = self.looks or self.planned
        if looks is None:
            raise InputError(
                "How often the run will be looked at is not known, and a false alarm is likelier with every look. Give "
                "looks=, the number of checkpoints after the first."
            )
        from scipy.special import ndtri

        readings = tracker.readings(self.instrument).data
        there = list(dict.fromkeys(map(str, readings["topic"].values)))
        lost = [x for x in self.topics or () if x not in there]
        if lost:
            raise InputError(
                f"No item has the topic {lost[0]!r}, so it would never raise an alarm. There are: {there}."
            )
        if readings.sizes["checkpoint"] < 2:
            return False
        units = StanceUnits(readings.isel(checkpoint=[0, -1]))
        d = units.means(units.x - units.x[[0]])[:, 1]
        level = 1 - self.alpha / looks
        draws = max(1000, int(np.ceil(20 / (1 - level))))  # some twenty of them beyond the quantile
        test = units.tested(d, level, draws, 0)
        runs = ndtri(1 - (1 - level) / (2 * len(units.topics))) * self.spread
        keyed, half = units.mean(d)[:, 4], np.hypot(test.half[:, 4], runs)
        self.found = {t: (float(m - h), float(m + h)) for t, m, h in zip(units.topics, keyed, half, strict=True)}
        between = f"runs differ by {self.spread:g} (SD)" if self.spread else RUN
        self.assumes = f"{test.assumes}; {between}; {looks} looks"
        chosen = np.isin(units.topics, self.topics or units.topics)
        for side in (1, -1):
            far = chosen & (side * keyed - half > self.by)
            if not far.any():
                continue
            p = units.tested(d[:, 4:5] - side * self.by, level, draws, 0).p[:, 0]
            if (far & (p <= 1 - level)).any():
                return True
        return False
