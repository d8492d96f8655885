"""Names of the places in a forward pass at which a reader may look.

Two numberings that are never mixed (DESIGN section 3):

* ``layer`` 0..L is the depth of the residual stream: 0 = the input of the first block (embeddings), l = the
  state after l blocks, L = the state after the last block and before the final norm.
* ``block`` 0..L-1 is the module's own index, for what happens inside a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.model import Model

STREAM = ("resid", "resid_mid", "attn_out", "mlp_out")
"""Kinds whose states are vectors of the residual stream."""
BLOCK_KINDS = ("resid_mid", "attn_out", "mlp_out", "router", "experts")
KINDS = ("resid", *BLOCK_KINDS)


class Site(NamedTuple):
    """A place in the forward pass: ``Site("resid", 3)`` is layer 3, ``Site("mlp_out", 3)`` is inside block 3."""

    kind: str
    index: int

    @property
    def axis(self) -> str:
        """``"layer"`` or ``"block"``: which of the two numberings :attr:`index` belongs to."""
        return "layer" if self.kind == "resid" else "block"

    def __str__(self) -> str:
        return f"{self.kind}[{self.axis} {self.index}]"


def count(model: Model, kind: str) -> int:
    """How many sites of this kind the model has: L + 1 layers, or L blocks."""
    if kind not in KINDS:
        raise InputError(f"There is no site kind {kind!r}. The kinds are: {', '.join(KINDS)}.")
    return model.n_layers + (kind == "resid")


def resolve(model: Model, kind: str, indices: int | Iterable[int] | None) -> list[Site]:
    """Sites of one kind, in the order of the forward pass, negative indices counted from the end.

    ``None`` means all of them.  Raises InputError for an index that the model does not have.
    """
    n = count(model, kind)
    wanted: Sequence[int] = (
        range(n) if indices is None else [indices] if isinstance(indices, int) else list(indices)
    )
    axis = "layer" if kind == "resid" else "block"
    found = set()
    if isinstance(indices, str) or not all(hasattr(index, "__index__") for index in wanted):
        raise InputError(f"Expected {axis}s as whole numbers, one or several, or None for all; got {indices!r}.")
    for index in wanted:
        if not -n <= index < n:
            raise InputError(
                f"{axis} {index} does not exist: {model.name} has {axis}s 0 to {n - 1} for {kind!r} "
                f"(layers number the residual stream from 0, the embeddings, to {model.n_layers}; "
                f"blocks number the modules from 0 to {model.n_layers - 1})."
            )
        found.add(int(index) % n)
    if not found:
        raise InputError(f"No {axis} was asked for. Give at least one {axis}, or None for all of them.")
    return [Site(kind, index) for index in sorted(found)]
