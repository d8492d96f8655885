"""Figures: a reading's data as plotly charts, and those charts as files for a paper.

    chart(data)                          the first chart that fits the data
    chart(data, "trajectory", position=5)
    chart(data).save("lens.pdf", width="column", venue="icml")
    paper("icml").grid([[a, b], [c, None]], share="colour").save("figure1.pdf")

Plotly is imported when the first figure is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.figures.charts import CHARTS, Chart, attribution, chart, curves, heatmap, trajectory
    from workbench.figures.drawing import ExportError
    from workbench.figures.figure import Figure
    from workbench.figures.sheet import Paper, Sheet, paper

__all__ = [
    "CHARTS", "Chart", "ExportError", "Figure", "Paper", "Sheet", "attribution", "chart", "curves", "heatmap", "paper",
    "trajectory",
]  # fmt: skip
_HOMES = {"Figure": "figure", "ExportError": "drawing", "Paper": "sheet", "Sheet": "sheet", "paper": "sheet"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"workbench.figures.{_HOMES.get(name, 'charts')}"), name)
    raise AttributeError(f"module 'workbench.figures' has no attribute {name!r}")
