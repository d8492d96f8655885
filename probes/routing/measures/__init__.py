"""What a routing trace says, each number with its null and its interval.  Documents are the unit of inference.

Every function takes a :class:`RoutingTracer` reading (or a :class:`Trace` on disk, where that has what it needs) and
gives a Reading with the measure's name, ``_low`` and ``_high`` (``level``, over documents) and ``_null`` (what
chance gives) or ``_p``; where few documents bias a statistic, ``_corrected`` is less that bias.  Attributes say what
each variable is, how intervals were made and which documents are near-duplicates (which count as one; ``clusters=``);
the provenance says what it was computed from.  NaN: not known.
Tokens of one document are not independent: intervals and tests that take them for such are several times too narrow.
``reading.frame(dims)`` is a tidy pandas table of any of them.

    how much each expert serves     usage  gate  balance  reordering
    labels beside each other        divergence  information  specialisation  agreement  classes  parallel  decode
                                    differences
    experts of a label, for export  select  export
    tokens                          vocabulary  overlap  consistency  context
    experts beside each other       coactivation  flow  paths  geometry
    checkpoints beside each other   saturation  router_drift
"""

from probes.routing.measures.checkpoints import router_drift, saturation
from probes.routing.measures.documents import Documents
from probes.routing.measures.experts import coactivation, flow, geometry, paths
from probes.routing.measures.labels import (
    agreement,
    classes,
    decode,
    differences,
    divergence,
    information,
    parallel,
    specialisation,
)
from probes.routing.measures.selection import export, select
from probes.routing.measures.tokens import consistency, context, overlap, vocabulary
from probes.routing.measures.usage import balance, gate, reordering, usage

__all__ = [
    "Documents",
    "agreement",
    "balance",
    "classes",
    "coactivation",
    "consistency",
    "context",
    "decode",
    "differences",
    "divergence",
    "export",
    "flow",
    "gate",
    "geometry",
    "information",
    "overlap",
    "parallel",
    "paths",
    "reordering",
    "router_drift",
    "saturation",
    "select",
    "specialisation",
    "usage",
    "vocabulary",
]
