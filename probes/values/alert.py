"""``beyond``: stop a training run when a stance has moved farther than it may, and not when noise says so.

Looking again at every checkpoint is a sequential test: at .05 a look, twenty looks may raise a false alarm in two
runs of three.  The error is therefore spent over the planned looks, alpha / looks each (Bonferroni), which holds
whatever the dependence between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.values.units import StanceUnits
from workbench.errors import InputError

if TYPE_CHECKING:
    from probes.values.tracker import ValueTracker


class beyond:  # noqa: N801 - used like a function: ValueCallback(..., alert=beyond(by=0.1))
    """True of a tracker where a keyed stance lies wholly beyond ``by`` from where it was at the first checkpoint.

    At each look, the latest checkpoint against the first, and both must hold: the simultaneous interval of the keyed
    drift, over topics and measures, at level 1 - alpha / looks (keyed_M_band_low and _high of ``drift`` of these two
    checkpoints at that level) lies beyond; and flips of each cluster's sign around ``by`` say so, with a family-wise p
    over topics of alpha / looks at most, which also holds for few clusters, where intervals are too short.

    The chance that a run which stays within ``by`` is ever stopped is alpha at most; the run is given, and prompts are
    taken for drawn from more like them, as in :func:`~probes.values.measures.drift`.

    Args:
        topic: one or several; None: any.  Intervals cover all topics in each case.
        by: how far, in shares of 1 (keyed stances go from -1 to 1); 0: anywhere else.
        alpha: the chance of a false alarm in the whole run.
        looks: how many checkpoints after the first are looked at; None: as many as
            :class:`~probes.values.live.ValueCallback` has planned (:attr:`planned`).
        instrument: or its name; None: the tracker's first.

    With few clusters there is no alarm: n of them can say no more than p = 2 ** (1 - n), so that ten are needed for
    twenty looks.  After a call, ``found`` has the last look: topic -> (low, high).
    """

    def __init__(
        self,
        topic: str | Iterable[str] | None = None,
        by: float = 0.1,
        *,
        alpha: float = 0.05,
        looks: int | None = None,
        instrument: Any = None,
    ) -> None:
        if not 0 <= by < 2 or not 0 < alpha < 1 or (looks is not None and looks < 1):
            raise InputError(
                f"by={by}, alpha={alpha}, looks={looks}: a drift is from 0 to 2, a chance between 0 and 1, and "
                "there is one look or more."
            )
        self.topics = None if topic is None else [topic] if isinstance(topic, str) else list(topic)
        self.by, self.alpha, self.looks, self.instrument = float(by), float(alpha), looks, instrument
        self.planned: int | None = None
        self.found: dict[str, tuple[float, float]] = {}

    def __call__(self, tracker: ValueTracker) -> bool:
        """Raises InputError for a topic that no item has, and where the number of looks is not known."""
        looks = self.looks or self.planned
        if looks is None:
            raise InputError(
                "How often the run will be looked at is not known, and a false alarm is likelier with every look. Give "
                "looks=, the number of checkpoints after the first."
            )
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
        keyed, half = units.mean(d)[:, 4], units.tested(d, draws, 0, level)[1][:, 4]
        self.found = {t: (float(m - h), float(m + h)) for t, m, h in zip(units.topics, keyed, half, strict=True)}
        chosen = np.isin(units.topics, self.topics or units.topics)
        for side in (1, -1):
            p = units.tested(d[:, 4:5] - side * self.by, draws, 0, level)[0][:, 0]
            if (chosen & (side * keyed - half > self.by) & (p <= 1 - level)).any():
                return True
        return False
