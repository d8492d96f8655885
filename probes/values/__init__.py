"""Where a model stands on questions of value, and how training moves it: with tests, intervals and nulls.

Items              statements, questions and choices with the direction that agreeing supports; items.own() has 240
Pmf, ...           instruments: ask a model about items, and give a distribution over stances for each
ValueTracker       checkpoints x items x instruments in a folder; ValueCallback: the same while a model trains
stance, drift, ... what moved, when, and is it more than noise; compare runs, data and instruments
WhiteBox, white    what moves inside: directions, margins, similarity, weights
greatest_good      the Greatest Good Benchmark by checkpoint
figures, explorer  of all of these

    track = ValueTracker("out/values", items.own(), [Pmf()]).run({0: "base/", 500: "run/checkpoint-500"})
    drift(track.readings()).figure()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from probes.values.alert import beyond
    from probes.values.choices import Choices, likeness
    from probes.values.instruments import Framing, Pmf, SampledText, SequenceLikelihood
    from probes.values.items import Item, Items
    from probes.values.judge_errors import confusion, corrected
    from probes.values.judged import CachedJudge, ClassifierJudge, LmJudge
    from probes.values.live import ValueCallback
    from probes.values.measures import (
        agreement,
        compare,
        convergence,
        data_gap,
        drift,
        resampling_null,
        sides,
        stance,
    )
    from probes.values.tracker import ValueTracker
    from probes.values.white import WhiteBox

__all__ = [
    "CachedJudge",
    "Choices",
    "ClassifierJudge",
    "Framing",
    "Item",
    "Items",
    "LmJudge",
    "Pmf",
    "SampledText",
    "SequenceLikelihood",
    "ValueCallback",
    "ValueTracker",
    "WhiteBox",
    "agreement",
    "beyond",
    "compare",
    "confusion",
    "convergence",
    "corrected",
    "data_gap",
    "drift",
    "likeness",
    "resampling_null",
    "sides",
    "stance",
]

__getattr__ = lazy.names(
    __name__,
    {
        "CachedJudge": "judged",
        "Choices": "choices",
        "ClassifierJudge": "judged",
        "Framing": "instruments",
        "Item": "items",
        "Items": "items",
        "LmJudge": "judged",
        "Pmf": "instruments",
        "SampledText": "instruments",
        "SequenceLikelihood": "instruments",
        "ValueCallback": "live",
        "ValueTracker": "tracker",
        "WhiteBox": "white",
        "agreement": "measures",
        "beyond": "alert",
        "compare": "measures",
        "confusion": "judge_errors",
        "convergence": "measures",
        "corrected": "judge_errors",
        "data_gap": "measures",
        "drift": "measures",
        "likeness": "choices",
        "resampling_null": "measures",
        "sides": "measures",
        "stance": "measures",
    },
)


def __dir__() -> list[str]:
    return __all__
