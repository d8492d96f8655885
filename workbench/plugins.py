"""What packages add to the workbench: readers, commands, demos, charts, explorers and measures, by entry points.

    [project.entry-points."workbench.readers"]
    mine = "my_package.module:MyReader"

Ours are found in the same way.  A plug-in that cannot be imported is reported once and left out, so that one broken
package does not take the others with it.  A name that two packages take is an error: whichever came first would win,
and results would depend on the order of installation.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.errors import InputError, PluginError

GROUPS = ("readers", "commands", "demos", "charts", "explorers", "measures")
OWN = "latent-workbench"
_reported: set[tuple[str, str]] = set()


def points(group: str, reserved: Iterable[str] = ()) -> dict[str, metadata.EntryPoint]:
    """The entry points of a group by name; nothing is imported.

    Parameters
    ----------
    group
        One of :data:`GROUPS`.
    reserved
        Names that the workbench itself has in this group without an entry point.

    Raises
    ------
    PluginError
        For a name that is taken twice; it names both distributions.
    """
    assert group in GROUPS, group
    found: dict[str, metadata.EntryPoint] = {}
    reserved = set(reserved)
    for point in metadata.entry_points(group=f"workbench.{group}"):
        if point.name in reserved or point.name in found:
            other = found.get(point.name)
            first = OWN if other is None else f"{_distribution(other)} ({other.value})"
            raise PluginError(
                f"The name {point.name!r} of workbench.{group} is taken twice: by {first} and by "
                f"{_distribution(point)} ({point.value}). Uninstall one of them, or rename the entry point in the "
                "package that is yours."
            )
        found[point.name] = point
    return found


def load(group: str, name: str, reserved: Iterable[str] = ()) -> Any:
    """One plug-in by name.

    Raises
    ------
    PluginError
        When it is not installed or cannot be imported.
    """
    known = points(group, reserved)
    if name not in known:
        raise PluginError(f"No package adds {name!r} to workbench.{group}. Installed: {', '.join(known) or 'none'}.")
    try:
        return known[name].load()
    except Exception as error:
        raise PluginError(_broken(group, known[name], error)) from error


def loaded(
    group: str, reserved: Iterable[str] = (), only: Iterable[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """The plug-ins of a group that can be imported, one by one: (name, object).

    ``only``: these names of them.  A broken one is left out, with a RuntimeWarning the first time.

    Raises
    ------
    PluginError
        For a name that is taken twice.
    """
    for name, point in points(group, reserved).items():
        if only is not None and name not in only:
            continue
        try:
            value = point.load()
        except Exception as error:
            if (group, name) not in _reported:
                _reported.add((group, name))
                warnings.warn(f"{_broken(group, point, error)} It is left out.", RuntimeWarning, stacklevel=3)
            continue
        yield name, value


# ---------------------------------------------------------------- readers


def readers() -> list[str]:
    """Names of the installed readers; the logit lens first: it is what most people look for."""
    return sorted(points("readers"), key=lambda name: (name != "logit", name))


def make_reader(name: str, **options: Any) -> Any:
    """One reader by its name, given those of the options that it takes.

    Parameters
    ----------
    name
        Of an installed reader; or where it is, "my_package.module:MyLens" or "path/to/file.py:MyLens".

    Raises
    ------
    InputError
        For a name that is not installed, and where an option is missing that the reader cannot do without.
    PluginError
        For a reader that cannot be imported.
    """
    if ":" in name:
        return made(name, _located(*name.rsplit(":", 1)), options)
    known = readers()
    if name not in known:
        raise InputError(
            f"There is no lens {name!r}. Installed: {', '.join(sorted(known)) or 'none'}; one of your own is named by "
            "its file, norm.py:NormLens."
        )
    return made(name, load("readers", name), options)


def _located(where: str, name: str) -> Any:
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)  # dataclasses look their module up
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, name)
    except Exception as error:
        raise PluginError(f"{where}:{name} cannot be imported ({type(error).__name__}: {error}).") from error


def made(name: str, kind: Any, options: dict[str, Any]) -> Any:
    """A reader of a class, given those of the options that it takes; a reader that is one already is itself."""
    if not callable(kind):
        return kind
    takes = inspect.signature(kind).parameters
    lacking = [k for k, p in takes.items() if p.default is p.empty and options.get(k) is None]
    if lacking:
        if lacking[0] in options or lacking[0] == "index":
            raise InputError(f"The {name} lens needs --{lacking[0]} (workbench read --help).")
        raise InputError(
            f"The {name} lens cannot do without {lacking[0]!r}, which the command line does not know. Give it a "
            "default, or name an instance in its file: FILE.py:MINE."
        )
    return kind(**{k: v for k, v in options.items() if k in takes and v is not None})

# ---------------------------------------------------------------- common


def _broken(group: str, point: metadata.EntryPoint, error: Exception) -> str:
    return (
        f"{point.name!r} of workbench.{group} ({point.value}), which {_distribution(point)} adds, cannot be imported: "
        f"{type(error).__name__}: {error}."
    )


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a package without metadata"
