"""A table of what ``WhiteBox`` gave, checkpoint by checkpoint, opened for the functions that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from probes.values.units import AXES, Units, opened
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.variables import about, described

VARIABLES: dict[str, Any] = {
    **AXES,
    "layer": about("layer", role="label"),
    "direction": about("stance direction", role="label"),
    "fitted": about("items that the direction was fitted on", role="label"),
    "null": about("null", role="label"),
}


class Series:
    """data: [checkpoint, ...] with checkpoints rising; base: which of them is the baseline; others: the rest.

    Raises InputError for a table that is none of WhiteBox's, and one whose checkpoints have different baselines, or
    whose baseline is not among them.
    """

    def __init__(self, reading: Reading | xr.Dataset) -> None:
        self.reading = opened(reading)
        data = self.reading.data
        if not {"margin", "projection", "baseline"} <= set(data.variables):
            raise InputError(
                'This is no table of what WhiteBox gave. Take tracker.table("whitebox"), with all checkpoints.'
            )
        if "checkpoint" not in data["margin"].dims:
            raise InputError(
                "This is a reading of one checkpoint. Take all of them, with their steps: tracker.table('whitebox')."
            )
        self.data, self.steps = data, data["checkpoint"].values.astype(int)
        baselines = {str(x) for x in data["baseline"].values}
        if len(baselines) > 1:
            raise InputError(
                f"The checkpoints were compared with {len(baselines)} baselines, so their numbers cannot be put beside "
                "each other. Read the series again, into an empty folder, from one first checkpoint."
            )
        own = np.flatnonzero([str(x) in baselines for x in data["fingerprint"].values])
        if not len(own):
            raise InputError(
                f"The baseline ({baselines.pop()}) is not among the checkpoints {self.steps.tolist()}. Put it back: "
                "drifts are from its own reading."
            )
        self.base = int(own[0])
        self.others = np.delete(np.arange(len(self.steps)), self.base)
        self.layers = data["layer"].values.astype(int)
        self.key = data["polarity"].values.astype(float)
        self.units = Units(data["topic"].values, data["cluster"].values)

    def keyed(self, x: np.ndarray) -> np.ndarray:
        """[checkpoint, item, ...] -> [checkpoint, item, 1, ...], of items with a key, signed by it."""
        key = np.where(self.key == 0, np.nan, self.key).reshape(1, -1, *[1] * (x.ndim - 2))
        return (x * key)[:, :, None]

    def moved(self) -> None:
        """InputError unless there is a checkpoint besides the baseline."""
        if not len(self.others):
            raise InputError(
                f"Drift is from the baseline to other checkpoints, and there is {self.steps[0]} alone. Read another."
            )

    def derived(
        self,
        step: str,
        variables: Mapping[str, Any],
        table: Mapping[str, Any],
        coords: Mapping[str, Any],
        order: tuple[str, ...],
        attrs: Mapping[str, Any],
        *sources: Reading,
        **settings: Any,
    ) -> Reading:
        """A result with these variables, described by ``table``, and the coordinates that they need."""
        known = {
            "checkpoint": self.steps, "layer": self.layers, "topic": np.array(self.units.topics, object),
            **{x: self.data[x].values for x in ("direction", "fitted")}, **coords,
        }  # fmt: skip
        used = {name for dims, *_ in variables.values() for name in dims}
        data = xr.Dataset(variables, {k: v for k, v in known.items() if k in used}, attrs)
        data = described(data, {**VARIABLES, **table}).transpose(*order, missing_dims="ignore")
        return derived(f"values.white.{step}", data, self.reading, *sources, **settings)
