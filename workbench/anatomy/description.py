"""What is known of a model's structure, as plain values: paths, constants and the proof."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from workbench.anatomy.layout import Layout


@dataclass(frozen=True)
class Step:
    """One module on the way from the last block to the logits: its input is ``scale`` x what came before."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Proof:
    """What was compared: the replayed readout against the model's own logits, on tokens not used to find it."""

    error: float
    tolerance: float
    positions: int
    dtype: str
    states_continuous: bool


@dataclass(frozen=True)
class Anatomy:
    """Paths (as in ``module.get_submodule``) and constants of one model; see :func:`dissect`."""

    architecture: str
    blocks: str
    n_layers: int
    d_model: int
    vocab_size: int
    embedding: str | None
    steps: tuple[Step, ...]
    unembedding: str
    scale: float = 1.0
    softcap: float | None = None
    masked: tuple[int, ...] = ()
    tied_function: bool = False
    last_block: int = -1
    layout: Layout = Layout(0)
    own_tail: bool = False
    pad_sides: tuple[str, ...] = ()
    pad_limit: int | None = None
    proof: Proof = field(default=Proof(math.nan, math.nan, 0, "", False))

    def describe(self) -> dict[str, Any]:
        """The anatomy as plain values, for provenance and for ``workbench info``."""
        plain = {"steps": [asdict(step) for step in self.steps], "masked": list(self.masked)}
        return {**asdict(self), **plain, "pad_sides": list(self.pad_sides)}

    @property
    def pads(self) -> bool:
        """Whether padding was proved to change nothing on either side; :attr:`pad_sides` has the sides proved."""
        return set(self.pad_sides) == {"right", "left"}

    def pad_width(self, side: str) -> float:
        """How wide a batch with pads on this side may be: 0 where they change something, infinite where never.

        Up to ``pad_limit`` where the rotary frequencies change with the longest prompt of a batch (LongRoPE).
        """
        if side not in self.pad_sides:
            return 0
        return math.inf if self.pad_limit is None else self.pad_limit

    @property
    def formula(self) -> str:
        """The readout in one line, e.g. ``30 * tanh(lm_head(norm(state)) / 30)``."""
        text = "state"
        if self.own_tail:
            return f"{self.architecture}'s own way from {self.blocks}[{self.last_block}] to {self.unembedding}"
        for step in self.steps:
            text = f"{step.path}({'' if step.scale == 1 else f'{step.scale:.6g} * '}{text})"
        if self.scale != 1:
            text = f"{self.scale:.6g} * {text}"
        return text if self.softcap is None else f"{self.softcap:.6g} * tanh({text} / {self.softcap:.6g})"
