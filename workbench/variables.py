"""What a variable of a reading is: the vocabulary that figures, explorers, captions and tables read.

Each variable of each result carries five attributes, so that nothing that shows it has to know its name:

    units        "nats", "bits", "tokens", ...; "" for what is a pure number, a label or a text
    long_name    what an axis or a legend says, without the units
    better       "high" or "low": which end speaks for what is measured; "" where neither does
    role         what kind of number it is, one of :data:`ROLES`
    of           the variable that it is the control, the bound or the label of; "" for a value

Two more are optional: ``short_name``, what a colour bar, a selector or a legend says where there is little room (of a
control: what it is taken from, "shuffled prompts"), and ``scale``, one of :data:`SCALES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from workbench.errors import InputError

ROLES = {
    "value": "what was measured",
    "null": "the same quantity where there is nothing to find: its mean or median over comparable cases",
    "floor": "what a given share (95 %) of comparable cases without anything to find stay under",
    "chance": "what follows from counting alone: a uniform guess, independent draws",
    "low": "the lower end of an interval",
    "high": "the upper end of an interval",
    "p": "p-value of one cell",
    "q": "p-value adjusted for the number of cells",
    "label": "names, ids and texts that say what a cell is",
    "mask": "true or false: which cells count, which are left out",
    "count": "how many cases a value rests on",
}
SCALES = {
    "log": "drawn logarithmically, log10(1 + x): ranks and counts of many sizes",
    "log-prob": "the natural logarithm of a probability, shown as the probability where a share is easier to read",
    "diverging": "zero means something: colours are centred on it",
    "order": "whole numbers of a label whose order means something (a layer), so that colours may show them",
}
"""What ``scale`` may say of a variable (where nothing else is said: linear)."""
CONTROLS = ("null", "floor", "chance", "low", "high", "p", "q")
"""Roles that say how far a value is to be trusted, and so name what they are ``of``."""
FIELDS = ("units", "long_name", "better", "role", "of")


def about(
    long_name: str, units: str = "", better: str = "", role: str = "value", of: str = "", **more: Any
) -> dict[str, Any]:
    """The attributes of one variable.

    Parameters
    ----------
    long_name, units, better, role, of
        As the module says.
    more
        Further attributes (``short_name="..."``, ``scale="log"``, ``reason="..."``).

    Raises
    ------
    InputError
        For a role or direction that does not exist, and a control that does not name its variable.

    Examples
    --------
    >>> about("entropy of the prediction", "nats", "low")["units"]
    'nats'
    """
    if role not in ROLES:
        raise InputError(f"role={role!r} is unknown. Use one of {', '.join(ROLES)}.")
    if better not in ("high", "low", ""):
        raise InputError(f"better={better!r} is unknown. Use 'high', 'low' or '' (neither).")
    if more.get("scale", "log") not in SCALES:
        raise InputError(f"scale={more['scale']!r} is unknown. Use one of {', '.join(SCALES)}, or none.")
    if role in CONTROLS and not of:
        raise InputError(f"role={role!r} without of=: name the variable that {long_name!r} is the {role} of.")
    return {"units": units, "long_name": long_name, "better": better, "role": role, "of": of, **more}


def described(data: xr.Dataset, table: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """The dataset with the attributes of ``table`` (name -> :func:`about`) on those of its variables that it names.

    Attributes that a variable has already are kept where the table says nothing.
    """
    for name, attributes in table.items():
        if name in data.variables:
            data[name].attrs = {**data[name].attrs, **attributes}
    return data


def lacking(data: xr.Dataset) -> list[str]:
    """Data variables that do not say what they are, each with what is missing; [] where all do."""
    found = []
    for name, variable in data.data_vars.items():
        missing = [field for field in FIELDS if field not in variable.attrs]
        role, of = variable.attrs.get("role"), variable.attrs.get("of")
        if not missing and not variable.attrs["long_name"]:
            missing = ["long_name (it is empty)"]
        if role is not None and role not in ROLES:
            missing.append(f"a known role (it is {role!r})")
        if of and of not in data.variables:
            missing.append(f"the variable {of!r} that it is the {role} of")
        if missing:
            found.append(f"{name}: {', '.join(missing)}")
    return found


def completed(data: xr.Dataset) -> xr.Dataset:
    """The dataset with attributes for variables that have none, or not all: of version 0.1.0, or put together by hand.

    Their long name is the bare name.  One that is called like another with ``_null``, ``_floor``, ``_chance``,
    ``_low``, ``_high``, ``_p`` or ``_q`` behind it (``cosine_floor_shuffled``) is that one's control; texts and whole
    numbers over ranks are labels, truth values masks, and the rest values.
    """
    lacks = [str(name) for name, v in data.data_vars.items() if not set(FIELDS) <= set(v.attrs)]
    if not lacks:
        return data
    data = data.copy()
    for name in lacks:
        variable = data[name]
        role, of = variable.attrs.get("role", ""), variable.attrs.get("of", "")
        if role not in ROLES or (role in CONTROLS and not of):
            role, of = _by_suffix(name, data)
        if not role and variable.dtype.kind == "b":
            role = "mask"
        elif not role:
            whole = variable.dtype.kind in "iu" and ("rank" in variable.dims or name.endswith("_id"))
            role = "label" if whole or variable.dtype.kind not in "fiu" else "value"
        variable.attrs = {**about(name, role=role, of=of), **variable.attrs, "role": role, "of": of}
    return data


def _by_suffix(name: str, data: xr.Dataset) -> tuple[str, str]:
    """Role and ``of`` that the name of a variable without attributes tells; empty where it tells none."""
    parts = name.split("_")
    for i in range(len(parts) - 1, 0, -1):
        if parts[i] in CONTROLS and (of := "_".join(parts[:i])) in data.data_vars:
            return parts[i], of
    return "", ""


def called(variable: xr.DataArray, short: bool = False) -> str:
    """The long name of a variable, or with ``short`` the short one where there is one; else its bare name."""
    names = (variable.attrs.get("short_name") if short else "", variable.attrs.get("long_name"), variable.name)
    return str(next(name for name in names if name))


def aimed(text: str, target: str) -> str:
    """A long name or title with the token in place of the word "target"."""
    return re.sub(r"\btarget\b", lambda _: target, text)


def title(variable: xr.DataArray, short: bool = False) -> str:
    """What an axis or a colour bar says: the name with its units, "entropy (nats)"."""
    shown, units = called(variable, short), variable.attrs.get("units", "")
    return f"{shown} ({units})" if units else shown


def controls_of(data: xr.Dataset, name: str, roles: Iterable[str] = CONTROLS) -> dict[str, list[str]]:
    """The controls of a variable, role -> names, in the order of the dataset."""
    found: dict[str, list[str]] = {}
    for other, variable in data.data_vars.items():
        role = variable.attrs.get("role", "")
        if variable.attrs.get("of") == name and role in roles:
            found.setdefault(role, []).append(str(other))
    return found
