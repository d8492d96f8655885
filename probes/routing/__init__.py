"""Which experts serve what: the routing that really happened in a mixture of experts, with nulls and intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from probes.routing.interventions import effect, intervene
    from probes.routing.store import Trace, from_vllm, trace
    from probes.routing.tracer import RoutingTracer

__all__ = ["RoutingTracer", "Trace", "effect", "from_vllm", "intervene", "trace"]

__getattr__ = lazy.names(
    __name__,
    {
        "RoutingTracer": "tracer",
        "Trace": "store",
        "effect": "interventions",
        "from_vllm": "store",
        "intervene": "interventions",
        "trace": "store",
    },
)


def __dir__() -> list[str]:
    return __all__
