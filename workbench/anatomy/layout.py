"""How a model lays out its residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.engine.hooks import tensors


@dataclass(frozen=True)
class Layout:
    """How a model lays out the residual stream, and how that becomes [batch, position, width].

    axes: "BTW" (nearly all), "TBW" (positions first), "BTSW" or "SBTW" (S parallel streams, which together are
    the state: width = streams * stream width).  prefix: positions of the model's own in front of the prompt's.
    """

    width: int
    axes: str = "BTW"
    streams: int = 1
    prefix: int = 0

    @classmethod
    def guess(cls, tensor: Tensor, batch: int, length: int) -> Layout | None:
        """From a state of a probe whose prompt length is no other size in the model's way."""
        shape = tuple(tensor.shape)
        match shape:
            case (b, t, w) if b == batch and t >= length:
                return cls(w, prefix=t - length)
            case (t, b, w) if b == batch and t == length:
                return cls(w, "TBW")
            case (b, t, s, w) if b == batch and t == length:
                return cls(s * w, "BTSW", s)
            case (s, b, t, w) if b == batch and t == length:
                return cls(s * w, "SBTW", s)
        return None

    def read(self, tensor: Tensor) -> Tensor:
        """The model's own layout -> [batch, position, width]."""
        match self.axes:
            case "TBW":
                return tensor.transpose(0, 1)
            case "BTSW":
                return tensor.flatten(2)
            case "SBTW":
                return tensor.permute(1, 2, 0, 3).flatten(2)
        return tensor[:, self.prefix :] if self.prefix else tensor

    def write(self, states: Tensor) -> Tensor:
        """[batch, position, width] -> the model's own layout; positions of its own are zeros."""
        match self.axes:
            case "TBW":
                return states.transpose(0, 1)
            case "BTSW":
                return states.unflatten(2, (self.streams, -1))
            case "SBTW":
                return states.unflatten(2, (self.streams, -1)).permute(2, 0, 1, 3)
        if self.prefix:
            return torch.cat([states.new_zeros(len(states), self.prefix, self.width), states], 1)
        return states

    def find(self, value: Any) -> Tensor | None:
        """The state among a module's inputs or outputs, as [batch, position, width]; None if there is none."""
        for tensor in tensors(value):
            if (
                tensor.ndim == len(self.axes)
                and tensor.is_floating_point()
                and tensor.shape[-1] * self.streams == self.width
                and (self.streams == 1 or tensor.shape[self.axes.index("S")] == self.streams)
            ):
                return self.read(tensor)
        return None
