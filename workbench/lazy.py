"""Packages whose names are imported when first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def names(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``: ``homes`` says in which of its modules (or module with dots) each name lives."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in homes:
            home = homes[name]
            return getattr(import_module(home if "." in home else f"{package}.{home}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
