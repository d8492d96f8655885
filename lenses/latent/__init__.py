"""The LatentLens family: what a hidden state means, said by the contexts whose states lie nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from lenses.latent.agreement import logit_agreement
    from lenses.latent.index import ContextIndex
    from lenses.latent.lens import LatentLens
    from lenses.latent.published import import_published
    from lenses.latent.store import IndexRefused

__all__ = ["ContextIndex", "IndexRefused", "LatentLens", "import_published", "logit_agreement"]

__getattr__ = lazy.names(
    __name__,
    {
        "ContextIndex": "index",
        "IndexRefused": "store",
        "LatentLens": "lens",
        "logit_agreement": "agreement",
        "import_published": "published",
    },
)


def __dir__() -> list[str]:
    return __all__
