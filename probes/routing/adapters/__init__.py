"""Routing over LoRA adapters, by PEFT's Arrow: which adapter serves which token, and what that is worth."""

from probes.routing.adapters.measures import agreement, compare, gram, oracle_rate, prototypes, usage, weighted
from probes.routing.adapters.tracing import Projection, adapter_routing, projections

__all__ = [
    "Projection",
    "adapter_routing",
    "agreement",
    "compare",
    "gram",
    "oracle_rate",
    "projections",
    "prototypes",
    "usage",
    "weighted",
]
