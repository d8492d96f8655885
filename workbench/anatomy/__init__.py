"""Where a model keeps its blocks, its readout and its residual stream; found by structure, proved by numbers.

No table of model names.  One forward pass on random tokens records which modules run, in which order, and what
flows between them.  From that:

* the *blocks* are the module list whose members carry the residual stream (:mod:`~workbench.anatomy.stream`);
* the *readout* is what turns the state after the last block into logits: the modules that ran after it, the
  constant factors between them, and a bias, scale or softcap behind the unembedding.  It is proved on other tokens
  (:mod:`~workbench.anatomy.proof`);
* what attention and MLP add inside each block (:mod:`~workbench.anatomy.block_writes`) and where tokens are routed to
  experts (:mod:`~workbench.anatomy.moe`) is found when it is first asked for.
"""

from workbench.anatomy.config import reserved_ids, text_config
from workbench.anatomy.constants import unit_roundoff
from workbench.anatomy.description import Anatomy, Proof, Step
from workbench.anatomy.dissection import dissect
from workbench.anatomy.layout import Layout
from workbench.anatomy.probe import accepted
from workbench.anatomy.proof import TOLERANCE, proof_is_current, proof_rests_on
from workbench.anatomy.replay import Replay, brought, head_weights

__all__ = [
    "TOLERANCE",
    "Anatomy",
    "Layout",
    "Proof",
    "Replay",
    "Step",
    "accepted",
    "brought",
    "dissect",
    "head_weights",
    "proof_is_current",
    "proof_rests_on",
    "reserved_ids",
    "text_config",
    "unit_roundoff",
]
