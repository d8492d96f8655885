"""Lenses: what a hidden state says.  Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from lenses.attribution import LogitAttribution
    from lenses.drift import TokenDrift
    from lenses.embedding import EmbeddingLens
    from lenses.latent import ContextIndex, LatentLens
    from lenses.logit import LogitLens
    from workbench.readers import States

__all__ = ["ContextIndex", "EmbeddingLens", "LatentLens", "LogitAttribution", "LogitLens", "States", "TokenDrift"]

__getattr__ = lazy.names(
    __name__,
    {
        "LogitLens": "logit",
        "EmbeddingLens": "embedding",
        "LogitAttribution": "attribution",
        "LatentLens": "latent",
        "ContextIndex": "latent",
        "States": "workbench.readers",
        "TokenDrift": "drift",
    },
)


def __dir__() -> list[str]:
    return __all__
