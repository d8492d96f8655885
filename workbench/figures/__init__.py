"""Figures: a reading's data as plotly charts, and those charts as files for a paper.

    chart(data)                          the first chart that fits the data
    chart(data, "trajectory", position=5)
    chart(data).save("lens.pdf", width="column", venue="icml")

Plotly is imported when the first figure is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.figures.charts import CHARTS, Chart, attribution, chart, curves, heatmap, trajectory
    from workbench.figures.export import ExportError, Figure

__all__ = [
    "CHARTS", "Chart", "ExportError", "Figure", "attribution", "chart", "curves", "heatmap", "trajectory",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "export" if name in ("Figure", "ExportError") else "charts"
        return getattr(import_module(f"workbench.figures.{home}"), name)
    raise AttributeError(f"module 'workbench.figures' has no attribute {name!r}")
