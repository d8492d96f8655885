"""Which experts serve what: the routing that really happened in a mixture of experts, with nulls and intervals.

RoutingTracer, trace, from_vllm      what happened: counts in the one pass, every token's experts on disk
measures                             what it says
intervene, effect, effects, regret   what it is worth
contributions, functional, shared    what experts say, and how loudly
adapters                             routing over LoRA adapters
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from probes.routing.costs import effect, effects, regret
    from probes.routing.interventions import intervene
    from probes.routing.outputs import contributions, functional
    from probes.routing.shared_experts import shared
    from probes.routing.store import Trace, from_vllm, trace
    from probes.routing.tracer import RoutingTracer

__all__ = [
    "RoutingTracer",
    "Trace",
    "contributions",
    "effect",
    "effects",
    "from_vllm",
    "functional",
    "intervene",
    "regret",
    "shared",
    "trace",
]

__getattr__ = lazy.names(
    __name__,
    {
        "RoutingTracer": "tracer",
        "Trace": "store",
        "contributions": "outputs",
        "effect": "costs",
        "effects": "costs",
        "from_vllm": "store",
        "functional": "outputs",
        "intervene": "interventions",
        "regret": "costs",
        "shared": "shared_experts",
        "trace": "store",
    },
)


def __dir__() -> list[str]:
    return __all__
