"""Which tokens the pass that is running holds, row by row; and random numbers that belong to tokens, not to batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import InputError, Refused

Rows = Tensor | Callable[[Tensor], Tensor] | None


class Pass:
    """The tokens of the pass that is running, as hooks on the model see them."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.tokens: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            return
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -ids.shape[1] :].bool()
        # Each row's tokens from column 0 on: the padding side must change nothing.
        self.order = (~real).byte().argsort(dim=1, stable=True)
        self.tokens = ids.gather(1, self.order).masked_fill(~real.gather(1, self.order), -1)

    def leave(self, *_: Any) -> None:
        self.tokens = None

    leave.only_looks = True  # type: ignore[attr-defined]

    def own(self, x: Tensor) -> Tensor | None:
        """[rows, 1] bool: which rows of x [..., width] are changed; None: all."""
        if self.rows is None:
            return None
        if isinstance(self.rows, Tensor):
            return self.rows.to(x.device).view(-1, 1)
        tokens = self._known()
        chosen = self.rows(tokens.clone())
        if not isinstance(chosen, Tensor) or chosen.shape != tokens.shape or chosen.dtype != torch.bool:
            found = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
            raise InputError(
                f"rows= gave {found} for input_ids {list(tokens.shape)}, so it is not known which tokens to change. "
                "Return bool of the same shape."
            )
        return self._flat(chosen.to(tokens.device) & (tokens >= 0), x)[:, None]

    def noise(self, x: Tensor, width: int, block: int, kind: int) -> Tensor:
        """[rows, width] uniform in [0, 1), float32; a function of seed, block, kind and each row's tokens so far."""
        tokens = self._known()
        places = torch.arange(tokens.shape[1], device=tokens.device)
        so_far = _mix(_mix(tokens) + places).cumsum(1)
        salt = _mix(torch.tensor((self.seed * 4096 + block) * 4 + kind))
        key = _mix(self._flat(so_far, x) ^ salt.to(x.device))
        bits = _mix(key[:, None] + _GOLDEN * torch.arange(1, width + 1, device=x.device))
        return ((bits >> 40) & (2**24 - 1)).float() * 2.0**-24

    def _known(self) -> Tensor:
        if self.tokens is None:
            raise InputError(
                "The model ran without input_ids (embeddings, or a part of it alone), so it is not known which tokens "
                "these are. Run the whole model on token ids, or use drop=, force= or steer= with rows as a tensor."
            )
        return self.tokens

    def _flat(self, values: Tensor, x: Tensor) -> Tensor:
        """[batch, length] in the order of tokens -> [rows] as the model holds them."""
        if values.numel() != x.numel() // x.shape[-1]:
            raise Refused(
                f"A part that routes was called with {x.numel() // x.shape[-1]} rows for {values.numel()} tokens, so "
                "it is not known which row is which token. Use drop=, force= or steer= without a function in rows=."
            )
        return torch.empty_like(values).scatter_(1, self.order, values).flatten().to(x.device)


_GOLDEN = -0x61C8864680B583EB


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64: numbers that differ in one bit give numbers that differ in half of them."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))
