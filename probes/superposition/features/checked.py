"""A dictionary tried out before it is used: what it gives, whether rows stay apart, where its features point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.errors import InputError, StateError

CELLS = 2**24  # numbers of activations held at once


class Dictionary(Protocol):
    """What is asked of a dictionary: activations [tokens, features] of states [tokens, hidden], and states again."""

    def encode(self, x: Tensor, /) -> Tensor: ...
    def decode(self, activations: Tensor, /) -> Tensor: ...


def rotation(width: int, *, seed: int = 0) -> Tensor:
    """[width, width] a random orthogonal matrix, all alike probable (Mezzadri 2007)."""
    q, r = torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return (q * r.diagonal().sign()).float()


def directions(dictionary: Dictionary, hidden: int) -> Tensor:
    """[features, hidden] the decoder's direction of each feature, for :func:`~.measures.geometry`.

    Raises InputError for a dictionary that is none (:class:`DictionaryFeatures`) or whose decode is not linear.
    """
    found = Checked(dictionary, hidden, "This dictionary", torch.device("cpu"))
    return torch.cat(list(found.directions()))


class Checked:
    """A dictionary that was tried out: in float32 on the given device outside, wherever it lives inside.

    Its features' number, and decode(0), are found by asking it.
    """

    def __init__(self, given: Any, width: int, where: str, device: torch.device) -> None:
        lacking = [n for n in ("encode", "decode") if not callable(getattr(given, n, None))]
        if lacking or isinstance(given, type):
            raise InputError(
                f"{where} is {str(given):.80}, which {f'has no {lacking[0]}()' if lacking else 'is a class'}. Give an "
                "object with encode(states) -> activations and decode(activations) -> states."
            )
        self.given, self.where, self.width, self.device = given, where, width, device
        parameters = getattr(given, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        self._place = (first.device, first.dtype) if isinstance(first, Tensor) else (device, torch.float32)
        rows = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device)
        self.features = 0
        activations = self.encode(rows)
        self.features = activations.shape[1]
        self.apart(rows, activations)
        self.centre = self.decode(torch.zeros(1, self.features, device=device))[0]

    def apart(self, rows: Tensor, activations: Tensor) -> None:
        """Raise InputError if a few rows alone are encoded to something else than beside each other."""
        few = range(min(4, len(rows)))
        alone = torch.cat([self.encode(rows[i : i + 1]) for i in few])
        beside = activations[: len(few)]
        # A tie that rounding breaks the other way moves a feature or two; a choice over the batch moves many.
        allowed = 0.01 if self._place[1] == torch.float32 else 0.1
        if float((alone - beside).abs().sum()) > allowed * float(beside.abs().sum() + alone.abs().sum()):
            raise InputError(
                f"{self.where} encodes a state differently beside other states: its result would depend on how tokens "
                "were batched. A BatchTopK autoencoder needs its threshold instead (often .eval()), and no dropout."
            )

    def encode(self, rows: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, features]."""
        return self._asked("encode", rows, self.features or None)

    def decode(self, activations: Tensor) -> Tensor:
        """[tokens, features] -> [tokens, hidden]."""
        return self._asked("decode", activations, self.width)

    def directions(self) -> Iterator[Tensor]:
        """Decoder directions [up to 1024, hidden] of all features in turn: what one unit of each adds."""
        step = max(1, min(1024, CELLS // self.features))
        trial = torch.rand(2, self.features, generator=torch.Generator().manual_seed(1)).to(self.device)
        once, whole = self.decode(trial) - self.centre, self.decode(trial.sum(0, keepdim=True))[0] - self.centre
        if not torch.allclose(once.sum(0), whole, rtol=0.02, atol=0.02 * float(whole.abs().max())):
            raise InputError(
                f"{self.where} does not decode a sum of activations to the sum of what they decode to, so its features "
                "have no directions. Give scale=False, or a decode that only applies the decoder's matrix and bias."
            )
        for start in range(0, self.features, step):
            size = min(step, self.features - start)
            one = torch.zeros(size, self.features, device=self.device)
            one[torch.arange(size), start + torch.arange(size)] = 1
            yield self.decode(one) - self.centre

    def _asked(self, name: str, x: Tensor, width: int | None) -> Tensor:
        device, dtype = self._place
        try:
            with torch.no_grad():
                found = getattr(self.given, name)(x.to(device, dtype))
        except Exception as error:  # another library's object: whatever it raises means the same here
            raise InputError(
                f"{self.where} cannot {name} [{', '.join(map(str, x.shape))}] ({type(error).__name__}: {error}). The "
                f"model's states are {self.width} wide: is this dictionary of this model?"
            ) from error
        if (
            not isinstance(found, Tensor)
            or found.ndim != 2
            or len(found) != len(x)
            or found.shape[1] != (width or found.shape[1])
        ):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"{self.where}: {name} of [{', '.join(map(str, x.shape))}] gave {got}, and a tensor "
                f"[{len(x)}, {width or 'features'}] is needed. Is this dictionary of this model and this kind of site?"
            )
        if not torch.isfinite(found).all():
            raise StateError(f"{self.where}: {name} gave NaN or infinity. Check its weights and its dtype ({dtype}).")
        return found.to(self.device, torch.float32)
