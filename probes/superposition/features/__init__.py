"""Feature superposition: more features than dimensions, in weights and in activations, each number beside its null.

geometry, plateaus, effective_features   of directions and of activations (measures)
DictionaryFeatures, directions           a dictionary's features in use at layers of a model
sweep                                    the toy autoencoder over sparsities
figures                                  gram, sharing, psi
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from probes.superposition.features.checked import directions, rotation
    from probes.superposition.features.dictionary import DictionaryFeatures
    from probes.superposition.features.measures import effective_features, geometry, plateaus
    from probes.superposition.features.toy import sweep

__all__ = ["DictionaryFeatures", "directions", "effective_features", "geometry", "plateaus", "rotation", "sweep"]

__getattr__ = lazy.names(
    __name__,
    {
        "DictionaryFeatures": "dictionary",
        "directions": "checked",
        "effective_features": "measures",
        "geometry": "measures",
        "plateaus": "measures",
        "rotation": "checked",
        "sweep": "toy",
    },
)


def __dir__() -> list[str]:
    return __all__
