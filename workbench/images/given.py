"""What a processor gave for a prompt, kept while all of it is little; else made again from the pictures."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

HELD = 2**28
"""Bytes of pixels that all prompts together keep: those of about 200 pictures of LLaVA-1.5."""
LITTLE = 2**16
"""What has no more bytes than this (grids, sizes, kinds of tokens) is always kept."""


class Given(Mapping[str, Any]):
    """The inputs of one prompt beside its ids, by name.

    Parameters
    ----------
    values
        What the processor gave.
    again
        Gives the same once more.
    """

    _held = 0

    def __init__(self, values: Mapping[str, Any], again: Callable[[], Mapping[str, Any]]) -> None:
        self._again, self._names = again, tuple(values)
        size = {name: _bytes(value) for name, value in values.items()}
        large = sum(size[name] for name in size if size[name] > LITTLE)
        fits = Given._held + large <= HELD
        self._kept = {name: value for name, value in values.items() if fits or size[name] <= LITTLE}
        if fits and large:
            Given._held += large
            weakref.finalize(self, _let_go, large).atexit = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Any:
        return self._kept[name] if name in self._kept else self.whole()[name]

    def whole(self) -> dict[str, Any]:
        """All of it, made once where it is not kept."""
        missing = [name for name in self._names if name not in self._kept]
        made = self._again() if missing else {}
        return {name: self._kept[name] if name in self._kept else made[name] for name in self._names}


def _let_go(size: int) -> None:
    Given._held -= size


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 0))
