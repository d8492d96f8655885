"""Views that answer to the mouse: the lens explorer in a notebook, and the same as one offline page.

    explore(reading)                    the live widget
    to_html([reading, other], "x.html") one file, no network

anywidget and ipywidgets are imported when the first live widget is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.widgets.explorer import LensExplorer, explore, payload, static_html
    from workbench.widgets.page import to_html

__all__ = ["LensExplorer", "explore", "payload", "static_html", "to_html"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "page" if name == "to_html" else "explorer"
        return getattr(import_module(f"workbench.widgets.{home}"), name)
    raise AttributeError(f"module 'workbench.widgets' has no attribute {name!r}")
