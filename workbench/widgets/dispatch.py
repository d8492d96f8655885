"""Which explorer shows a reading: the lens explorer, or the first of the installed ones that fits.

    explore(reading)                        the live widget: the first explorer that fits what the reading holds
    explore(reading, "neighbours")          one of them by name
    to_html(reading, "x.html")              the same module and payload as one file, no network
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import plugins
from workbench.errors import InputError
from workbench.widgets import explorer, page
from workbench.widgets.base import View, known_options, opened, this
from workbench.widgets.packing import COMPONENT, gridded

if TYPE_CHECKING:
    import xarray as xr


def explore(readings: Any, kind: str | None = None, **options: Any) -> Any:
    """The live explorer of a reading or dataset: ``kind`` (:func:`views`, or "lens"), or the first that fits.

    Several readings, as a list or a mapping of names to them, are the lens explorer's.
    """
    view, reading = _chosen(readings, kind)
    if view is None:
        known_options("The lens explorer", explorer.explore, options)
        return explorer.explore(readings, **options)
    return view.explore(reading, **options)


def to_html(
    readings: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    *,
    kind: str | None = None,
    **options: Any,
) -> Path:
    """The same as one offline page; returns its path."""
    view, reading = _chosen(readings, kind)
    if view is None:
        known_options("The lens explorer's page", page.to_html, options)
        return Path(page.to_html(readings, path, title, **options))
    return view.to_html(reading, path, title, **options)


def static_html(reading: Any, kind: str | None = None, **options: Any) -> str:
    """The table that stands beside the widget.  InputError where no explorer fits."""
    view, reading = _chosen(reading, kind)
    if view is None:
        return explorer.static_html(opened(reading)[0], **options)
    return view.static(reading, **options)


def views() -> dict[str, View]:
    """All explorers besides the lens explorer, by name."""
    return dict(plugins.loaded("explorers", reserved=["lens"]))


def _chosen(readings: Any, kind: str | None) -> tuple[View | None, Any]:
    """The view, None for the lens explorer, and the reading it shows."""
    if isinstance(readings, list | tuple) and len(readings) == 1:
        readings = readings[0]
    several = isinstance(readings, list | tuple) or (isinstance(readings, Mapping) and not hasattr(readings, "dims"))
    if kind == "lens" or (kind is None and (several or _has_cells(opened(readings)[0], tokens=True))):
        return None, readings
    if several:
        raise InputError(f"The explorer {kind!r} shows one reading at a time, and {len(readings)} were given.")
    data, known = opened(readings)[0], views()
    if kind is None:
        fitting = [view for view in known.values() if not view.lacks(data)]
        if fitting or _has_cells(data):
            return next(iter(fitting), None), readings
        needs = "; ".join(f"{name} needs {', '.join(view.needs)}" for name, view in known.items())
        raise InputError(
            f"No explorer fits {this(data)}: it holds "
            f"{sorted(map(str, data.data_vars))}, but lens needs tokens or values over layers and positions; {needs}. "
            "Use .figure() or .frame() for it."
        )
    if kind not in known:
        raise InputError(f"There is no explorer {kind!r}; there are lens, {', '.join(known)}.")
    return known[kind], readings


def _has_cells(data: xr.Dataset, tokens: bool = False) -> bool:
    """Whether there is what the lens explorer shows: values over depth and position, or over parts and position.

    ``tokens``: whether it was made for just that: there are tokens, or parts, besides.
    """
    try:
        source = gridded(data)
    except InputError:
        return False
    return not tokens or source.depth == COMPONENT or source.has("token_id")
