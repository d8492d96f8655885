"""Lenses: what a hidden state says.  Names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenses.attribution import LogitAttribution
    from lenses.embedding import EmbeddingLens
    from lenses.latent import ContextIndex, LatentLens
    from lenses.logit import LogitLens
    from lenses.states import States

__all__ = ["ContextIndex", "EmbeddingLens", "LatentLens", "LogitAttribution", "LogitLens", "States"]

_HOMES = {
    "LogitLens": "logit",
    "EmbeddingLens": "embedding",
    "LogitAttribution": "attribution",
    "LatentLens": "latent",
    "ContextIndex": "latent",
    "States": "states",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lenses.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lenses' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
