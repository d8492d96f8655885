"""Which experts serve what: the routing that really happened in a mixture of experts, with nulls and intervals."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.routing.interventions import effect, intervene
    from probes.routing.store import Trace, from_vllm, trace
    from probes.routing.tracer import RoutingTracer

__all__ = ["RoutingTracer", "Trace", "effect", "from_vllm", "intervene", "trace"]

_HOMES = {
    "RoutingTracer": "tracer",
    "Trace": "store",
    "effect": "interventions",
    "from_vllm": "store",
    "intervene": "interventions",
    "trace": "store",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"probes.routing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'probes.routing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
