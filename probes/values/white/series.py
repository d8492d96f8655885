"""A table of what ``WhiteBox`` gave, checkpoint by checkpoint, opened for the functions that read it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from probes.values.units import Units
from probes.values.white.groups import units_of
from workbench.errors import InputError

TABLE = ("checkpoint", "topic", "layer")


class Series:
    """data: [checkpoint, ...] with checkpoints rising; base: which of them is the baseline; others: the rest.

    Raises InputError for a table that is none of WhiteBox's, and one whose checkpoints have different baselines, or
    whose baseline is not among them.
    """

    def __init__(self, data: xr.Dataset) -> None:
        if not isinstance(data, xr.Dataset) or not {"margin", "projection", "baseline"} <= set(data.variables):
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
        self.units: Units = units_of(
            data["topic"].values.tolist(), self.key.astype(int).tolist(), data["cluster"].values.tolist(),
            self.steps.tolist(),
        )  # fmt: skip

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

    def dataset(self, variables: dict[str, tuple], **about: object) -> xr.Dataset:
        """The variables with their coordinates, topics and checkpoints first."""
        known = {
            "checkpoint": self.steps, "layer": self.layers, "topic": np.array(self.units.topics, object),
            **{x: self.data[x].values for x in ("direction", "fitted")},
        }  # fmt: skip
        used = {name for dims, *_ in variables.values() for name in dims}
        return xr.Dataset(variables, {k: v for k, v in known.items() if k in used}, about)
