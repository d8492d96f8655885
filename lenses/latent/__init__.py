"""The LatentLens family: what a hidden state means, said by the contexts whose states lie nearest."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenses.latent.agreement import logit_agreement
    from lenses.latent.index import ContextIndex
    from lenses.latent.lens import LatentLens
    from lenses.latent.published import import_published
    from lenses.latent.store import IndexRefused

__all__ = ["ContextIndex", "IndexRefused", "LatentLens", "import_published", "logit_agreement"]

_HOMES = {
    "ContextIndex": "index",
    "IndexRefused": "store",
    "LatentLens": "lens",
    "logit_agreement": "agreement",
    "import_published": "published",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lenses.latent.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lenses.latent' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
