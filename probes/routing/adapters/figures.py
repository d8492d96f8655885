"""Figure of routing over adapters; ``reading.figure("adapters")`` draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.results import drawn
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.charts import Chart
from workbench.figures.figure import Figure
from workbench.figures.source import short_name

if TYPE_CHECKING:
    import xarray as xr


@drawn
def adapters(table: xr.Dataset, by: str = "label", label: Any = None, value: str = "weight") -> Figure:
    """Mean weight of every adapter: labels x adapters (mean of projections), or projections x adapters of one label.

    by     "label" or "projection"; the latter for ``label`` (default the first)
    value  "weight", or "chosen": share of tokens with the largest weight
    A dot where the interval over documents holds 1/N, what uniform weights give; a ring at a label's own adapter.
    """
    if by not in ("label", "projection") or value not in ("weight", "chosen"):
        raise InputError(f"by={by!r}, value={value!r}: by is 'label' or 'projection', value 'weight' or 'chosen'.")
    labels, names = ([str(x) for x in table[n].values] for n in ("label", "adapter"))
    if label is not None and str(label) not in labels:
        raise InputError(f"There is no label {label!r}; there are {', '.join(labels)}.")
    i = labels.index(str(label)) if label is not None else 0
    name = value if by == "projection" else f"mean_{value}"
    shown, low, high = (table[name + x].values for x in ("", "_low", "_high"))
    if by == "projection":
        rows, (shown, low, high) = [str(x) for x in table["projection"].values], (x[i] for x in (shown, low, high))
    else:
        rows = labels
    chance = 1 / len(names)
    marks = np.where((low <= chance) & (chance <= high), "·", "").astype(object)
    if "oracle_adapter" in table:
        own = table["oracle_adapter"].values
        at = (np.arange(len(rows)), own) if by == "label" else (np.arange(len(rows)), np.full(len(rows), own[i]))
        marks[at] = "○" + marks[at]
    what = {"weight": "mean weight", "chosen": "share of tokens"}[value]
    one = f" (label {i + 1} of {len(labels)})" if len(labels) > 1 else ""
    whose = f"{labels[i]}{one}: {what}" if by == "projection" else what
    theme.register()
    figure = Figure()
    title = f"{short_name(str(table.attrs.get('model', '')))} · {whose} of adapters (dot: as by chance)"
    figure.update_layout(template="workbench", title_text=tokens.plotly(title))
    figure.add_heatmap(
        z=shown, x=tokens.labels(names), y=tokens.labels(rows), colorscale=theme.stops("sequential"),
        zmin=0, colorbar={"title": {"text": what}}, text=marks, texttemplate="%{text}",
        hovertemplate="%{y}, %{x}: %{z:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="adapter", type="category")
    figure.update_yaxes(title_text=by, type="category", autorange="reversed")
    width, height = 260 + 48 * len(names), 150 + (18 if by == "projection" else 30) * len(rows)
    figure.update_layout(width=float(np.clip(width, 480, 1400)), height=float(np.clip(height, 260, 1200)))
    return figure


ADAPTERS = Chart(
    adapters, ("mean_weight", "mean_chosen"), "adapters.usage", ("document_weight", "document_chosen")
)
