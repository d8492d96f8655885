"""What results of probes share: how the controls of a value are described, and the pass that a result rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench.reading import Reading
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Prompt
    from workbench.model import Model

ENDINGS = {
    "low": ("low", "{}, lower end of the interval"), "high": ("high", "{}, upper end of the interval"),
    "null": ("null", "{}, where there is nothing to find"), "chance": ("chance", "{}, by chance"),
    "floor": ("floor", "{}, of cases alike"), "random": ("null", "{}, at random"),
    "rotated": ("null", "{}, of states turned at random"),
    "p": ("p", "p of {}"), "q": ("q", "false discovery rate of {}"),
    "corrected": ("value", "{}, less its bias"), "excess": ("value", "{}, above its null"),
}  # fmt: skip
"""Ending of a variable's name -> its role, and what it is called."""


def family(name: str, own: dict[str, Any], *endings: str, **others: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """The attributes (:func:`workbench.variables.about`) of a variable and of those that carry its name and an ending.

    Parameters
    ----------
    name, own
        The variable and its attributes.
    endings
        Those of :data:`ENDINGS` that it has, without the underscore.
    others
        Further ones: ending -> (role, long name).

    Examples
    --------
    >>> family("jsd", about("divergence", "nats"), "low", "p")["jsd_p"]["of"]
    'jsd'
    """
    found = {name: own}
    for ending, (role, title) in ({x: ENDINGS[x] for x in endings} | others).items():
        plain = role in ("p", "q")
        value = role == "value"
        found[f"{name}_{ending}"] = about(
            title.format(own["long_name"]),
            "" if plain else own["units"],
            "low" if plain else own["better"],
            role,
            "" if value else name,
        )
    return found


def ran(model: Model, prompts: Sequence[Prompt]) -> Reading:
    """A pass of a model whose readings were not kept: the source of what was measured in it."""
    from workbench.engine.run import model_step

    data = xr.Dataset(attrs={"model": model.name, "n_layers": model.n_layers})
    return Reading(data, {**model_step(model), "prompts": len(prompts), "prompts_read": len(prompts)})


def of_weights(model: Model) -> Reading:
    """The model itself, as the source of what was measured in its weights without a pass."""
    return ran(model, ())
