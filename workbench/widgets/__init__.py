"""Views that answer to the mouse and the keyboard, in a notebook, and the same as one offline page.

    explore(reading)                    the live widget: the first explorer that fits, or explore(reading, "neighbours")
    to_html([reading, other], "x.html") one file, no network

LensExplorer is here; explorers of lenses and probes are beside them (entry points ``workbench.explorers``), and their
classes are found here by name, too.  anywidget and ipywidgets are imported when the first live widget is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.widgets.base import View
    from workbench.widgets.dispatch import explore, static_html, to_html, views
    from workbench.widgets.explorer import payload

    LensExplorer: Any

__all__ = ["LensExplorer", "View", "explore", "payload", "static_html", "to_html", "views"]


def __getattr__(name: str) -> Any:
    if name == "LensExplorer":
        return import_module("workbench.widgets.explorer").VIEW.widget
    if name in __all__:
        home = {"payload": "explorer", "View": "base"}.get(name, "dispatch")
        return getattr(import_module(f"workbench.widgets.{home}"), name)
    if name.endswith(("Explorer", "Table")):
        from workbench.widgets.dispatch import views

        for view in views().values():
            if view.name == name:
                return view.widget
    raise AttributeError(f"module 'workbench.widgets' has no attribute {name!r}")
