"""Do the words that a lens gives for a piece of a picture fit it?  Any judge, the same patches for all, with nulls.

    sample       patches of pictures whose neighbourhood is all picture; the same for every layer and lens
    judge        asks a judge about the words there, and about words that have nothing to do with the picture
    agreement    kappa and accuracy of two judges, of a model and people above all
    replay       the published agreement of judge and people, recomputed from its data

Judges are functions of a :class:`Question` that give a :class:`Verdict`, and have a ``name``: :class:`Endpoint`
(a model behind an address), :class:`LocalModel`, :class:`Person`, :class:`Captions` (no model at all), or yours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from lenses.judge.captions import Captions
    from lenses.judge.endpoint import Endpoint
    from lenses.judge.kappa import agreement
    from lenses.judge.local import LocalModel
    from lenses.judge.people import Person
    from lenses.judge.places import sample
    from lenses.judge.protocol import judge
    from lenses.judge.published import replay
    from lenses.judge.questions import Judge, Question, Verdict

__all__ = [
    "Captions", "Endpoint", "Judge", "LocalModel", "Person", "Question", "Verdict", "agreement", "judge", "replay",
    "sample",
]  # fmt: skip

__getattr__ = lazy.names(
    __name__,
    {
        "sample": "places",
        "judge": "protocol",
        "agreement": "kappa",
        "replay": "published",
        "Question": "questions",
        "Verdict": "questions",
        "Judge": "questions",
        "Endpoint": "endpoint",
        "LocalModel": "local",
        "Person": "people",
        "Captions": "captions",
    },
)


def __dir__() -> list[str]:
    return __all__
