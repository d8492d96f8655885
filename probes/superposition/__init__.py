"""Does a thought hold several answers at once, and does the answer rest on it?

think, ContinuousThought, SoftThought, ForcedMixture, Given    thoughts, with any reader looking on
CandidateBelief, entity_belief                                 what states believe of declared candidates
Problem, load_prosqa                                           graph problems and their groups of nodes
mass, focus, frontier, decode_frontier                         what is held, beside what chance holds
answers, use                                                   what the answer owes to it
verdict                                                        one word for both, with its evidence
soft_versus_hard, mixture_entropy                              mixtures of tokens in any model
features                                                       superposition of features: toy models, dictionaries
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from probes.superposition.belief import CandidateBelief, entity_belief
    from probes.superposition.decoding import decode_frontier
    from probes.superposition.held import focus, frontier, mass
    from probes.superposition.problems import Problem, load_prosqa
    from probes.superposition.soft import mixture_entropy, soft_versus_hard
    from probes.superposition.thoughts import ContinuousThought, ForcedMixture, Given, SoftThought, Thoughts, think
    from probes.superposition.used import answers, use
    from probes.superposition.verdicts import Verdict, verdict

__all__ = [
    "CandidateBelief",
    "ContinuousThought",
    "ForcedMixture",
    "Given",
    "Problem",
    "SoftThought",
    "Thoughts",
    "Verdict",
    "answers",
    "decode_frontier",
    "entity_belief",
    "focus",
    "frontier",
    "load_prosqa",
    "mass",
    "mixture_entropy",
    "soft_versus_hard",
    "think",
    "use",
    "verdict",
]

__getattr__ = lazy.names(
    __name__,
    {
        "CandidateBelief": "belief",
        "ContinuousThought": "thoughts",
        "ForcedMixture": "thoughts",
        "Given": "thoughts",
        "Problem": "problems",
        "SoftThought": "thoughts",
        "Thoughts": "thoughts",
        "Verdict": "verdicts",
        "answers": "used",
        "decode_frontier": "decoding",
        "entity_belief": "belief",
        "focus": "held",
        "frontier": "held",
        "load_prosqa": "problems",
        "mass": "held",
        "mixture_entropy": "soft",
        "soft_versus_hard": "soft",
        "think": "thoughts",
        "use": "used",
        "verdict": "verdicts",
    },
)


def __dir__() -> list[str]:
    return __all__
