"""Latent Workbench: read the hidden states of language and vision-language models.

    import workbench
    from lenses import LogitLens

    model = workbench.load("organism:story")
    reading = workbench.read(model, ["Mara lives in"], LogitLens())
    reading.figure()

Names are imported when first used, so ``import workbench`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.engine.generate import generate
    from workbench.engine.run import read
    from workbench.model import Model, load
    from workbench.readers import Output, Plan, Reader, Run, States
    from workbench.reading import Reading
    from workbench.reading import open_reading as open
    from workbench.sites import Site

__version__ = "0.1.0"
__all__ = ["Model", "Output", "Plan", "Reader", "Reading", "Run", "Site", "States", "generate", "load", "open", "read"]

_HOMES = {
    "load": ("workbench.model", "load"),
    "Model": ("workbench.model", "Model"),
    "read": ("workbench.engine.run", "read"),
    "generate": ("workbench.engine.generate", "generate"),
    "Output": ("workbench.readers", "Output"),
    "Plan": ("workbench.readers", "Plan"),
    "Reader": ("workbench.readers", "Reader"),
    "Run": ("workbench.readers", "Run"),
    "States": ("workbench.readers", "States"),
    "Reading": ("workbench.reading", "Reading"),
    "open": ("workbench.reading", "open_reading"),
    "Site": ("workbench.sites", "Site"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(import_module(module), attribute)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
