"""Which explorer shows a reading: the one that is asked for by name, or the first that fits.

    explore(reading)                        the live widget: the first explorer that fits what the reading holds
    explore(reading, "neighbours")          one of them by name
    to_html(reading, "x.html")              the same module and payload as one file, no network
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import plugins
from workbench.errors import InputError
from workbench.widgets import explorer
from workbench.widgets.base import View, are_several, opened, this

if TYPE_CHECKING:
    import xarray as xr

OWN = {"lens": explorer.VIEW}


def explore(readings: Any, kind: str | None = None, **options: Any) -> Any:
    """The live explorer of a reading or dataset.

    Parameters
    ----------
    readings
        A reading or dataset.  Several, as a list or a mapping of names to them, are the lens explorer's.
    kind
        Which explorer (:func:`views`); None: the first that fits.
    options
        Of that explorer.

    Raises
    ------
    InputError
        Where no explorer fits, or the one that is asked for does not.
    """
    view, readings = _chosen(readings, kind)
    return view.explore(readings, **options)


def to_html(
    readings: Any, path: str | os.PathLike[str], title: str | None = None, *, kind: str | None = None, **options: Any
) -> Path:
    """The same as one offline page; returns its path."""
    view, readings = _chosen(readings, kind)
    return view.to_html(readings, path, title, **options)


def static_html(reading: Any, kind: str | None = None, **options: Any) -> str:
    """The table that stands beside the widget.  InputError where no explorer fits."""
    view, reading = _chosen(reading, kind)
    return view.static(reading, **options)


def views() -> dict[str, View]:
    """All explorers by name; the packages that add them are imported."""
    return OWN | dict(plugins.loaded("explorers", reserved=OWN))


def fitting(data: xr.Dataset) -> list[str]:
    """Names of the explorers that fit, the one that is taken first.

    Nothing is imported for it where entry points name the variables that a view needs; a view whose entry point names
    none is loaded, and asked.
    """
    points = plugins.points("explorers", reserved=OWN)
    silent = [name for name, point in points.items() if not point.extras]
    asked = dict(plugins.loaded("explorers", reserved=OWN, only=silent))
    known = set(map(str, data.variables))
    fits = [
        name for name, point in points.items()
        if (known.issuperset(point.extras) if point.extras else name in asked and not asked[name].lacks(data))
    ]  # fmt: skip
    own = [name for name, view in OWN.items() if not view.lacks(data)]
    return own + fits if explorer.leads(data) else fits + own


def _chosen(readings: Any, kind: str | None) -> tuple[View, Any]:
    """The view, and what it shows."""
    if isinstance(readings, list | tuple) and len(readings) == 1:
        readings = readings[0]
    several = are_several(readings)
    if kind is None and not several:
        data = opened(readings)[0]
        for name in fitting(data):
            if view := OWN.get(name) or dict(plugins.loaded("explorers", reserved=OWN, only=[name])).get(name):
                return view, readings
        needs = "; ".join(f"{name} needs {', '.join(view.needs)}" for name, view in views().items() if view.needs)
        raise InputError(
            f"No explorer fits {this(data)}: it holds {sorted(map(str, data.data_vars))}, but lens needs "
            f"{explorer.NEEDED}; {needs}. Use .figure() or .frame() for it."
        )
    kind = kind or "lens"
    if kind not in (known := [*OWN, *plugins.points("explorers", reserved=OWN)]):
        raise InputError(f"There is no explorer {kind!r}; there are {', '.join(known)}.")
    view = OWN.get(kind) or plugins.load("explorers", kind, reserved=OWN)
    if several and not view.several:
        raise InputError(f"The explorer {kind!r} shows one reading at a time, and {len(readings)} were given.")
    return view, readings
