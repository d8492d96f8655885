"""The chart of a judged reading: how many patches have a word that fits, layer by layer, beside what nulls reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.charts import Chart, heading
from workbench.figures.figure import drawn
from workbench.figures.plot import GREY, Axis, Line, Mark, Panel, Plot, whole
from workbench.figures.source import Source

if TYPE_CHECKING:
    import xarray as xr

LOOKS = ((4, "dash"), (GREY, "dot"))
"""Hue and dash of each null."""


@drawn
def judged(data: xr.Dataset) -> Plot:
    """Share of patches with a word that fits, by layer, with its interval; a panel for each lens.

    Dashed and dotted: the same judge on words of another picture's patch, and on words at random (bands:
    their intervals).  A lens says something where it lies above both.
    """
    source = Source(data)
    depth, lenses, nulls = str(source.depth), source.data["lens"].values, source.data["null"].values
    table = {
        name: source.data[name].transpose("lens", "null", depth, missing_dims="ignore").values
        for name in ("rate", "rate_low", "rate_high", "rate_null", "rate_null_low", "rate_null_high")
    }
    panels = []
    for i, lens in enumerate(lenses):
        marks: list[Mark] = []
        for j, (null, (hue, dash)) in enumerate(zip(nulls, LOOKS, strict=False)):
            level, low, high = (table[f"rate_null{end}"][i, j] for end in ("", "_low", "_high"))
            if np.isfinite(level).any():
                look = {"hue": hue, "dash": dash, "markers": False, "width": 1.5, "legend": i == 0}
                marks.append(Line(source.depths, level, f"null: {null}", low, high, **look))
        own, low, high = (table[f"rate{end}"][i] for end in ("", "_low", "_high"))
        marks.append(Line(source.depths, own, "words of the lens", low, high, hue=0, legend=i == 0))
        up = Axis(source.title("rate", short=True), range=(-0.02, 1.02))
        panels.append(Panel(marks, whole(source.depth_label, source.depths), up, str(lens)))
    pictures = len(set(source.data["picture_key"].values.tolist())) if "picture_key" in source.data else 0
    said = f"{source.data.sizes['patch']} patches of {pictures} pictures" if pictures else ""
    title = heading(source, ", ".join(filter(None, ["patches with a word that fits", said])))
    return Plot(panels, title, columns=min(3, len(panels)), shared="y", shows=["rate"])


JUDGED = Chart(judged, ("rate", "rate_null", "excess"))
