"""Figure of routing over adapters; ``reading.figure("adapters")`` draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.routing.figures import chosen
from workbench.errors import InputError
from workbench.figures import Axis, Cells, Chart, Panel, Plot, drawn
from workbench.figures.charts import heading
from workbench.figures.source import Source

if TYPE_CHECKING:
    import xarray as xr


@drawn
def adapters(table: xr.Dataset, by: str = "label", label: Any = None, value: str = "weight") -> Plot:
    """Mean weight of every adapter: labels x adapters (mean of projections), or projections x adapters of one label.

    by     "label" or "projection"; the latter for ``label`` (default the first)
    value  "weight", or "chosen": share of tokens with the largest weight
    A dot where the interval over documents holds 1/N, what uniform weights give; a ring at a label's own adapter.
    """
    if by not in ("label", "projection") or value not in ("weight", "chosen"):
        raise InputError(f"by={by!r}, value={value!r}: by is 'label' or 'projection', value 'weight' or 'chosen'.")
    (own, whose), one = chosen(table, label), by == "projection"
    shown, name = (own, value) if one else (table, f"mean_{value}")
    values, low, high = (shown[name + end].values for end in ("", "_low", "_high"))
    chance, ringed = 1 / values.shape[1], np.zeros(values.shape, bool)
    if "oracle_adapter" in table:
        ringed[np.arange(len(values)), shown["oracle_adapter"].values] = True
    what = {"weight": "mean weight", "chosen": "share of tokens"}[value]
    cells = Cells(values, low=0, bar=what, dotted=(low <= chance) & (chance <= high), ringed=ringed)
    said = f"{whose}: " * one + f"{what} of adapters (dot: as by chance)"
    across, down = Axis("adapter", names=table["adapter"]), Axis(by, names=table[by], reversed=True)
    return Plot([Panel([cells], across, down)], heading(Source(table), said), shows=[name])


ADAPTERS = Chart(
    adapters, ("mean_weight", "mean_chosen"), "adapters.usage", ("document_weight", "document_chosen")
)
