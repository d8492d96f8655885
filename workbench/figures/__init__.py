"""Figures: a reading's data as a plot, drawn by plotly on the screen and by matplotlib on paper.

    chart(reading)                              the first chart that fits
    chart(reading, "trajectory", position=5)
    chart(reading).save("lens.pdf", width="column", venue="icml")
    paper("icml").grid([[a, b], [c, None]], share="colour").save("figure1.pdf")

A chart of one's own is a function from a dataset to a :class:`Plot`: panels with marks of a few kinds.

    def norms(data):
        line = Line(data["layer"].values, data["norm"].mean(("prompt", "position")).values)
        return Plot([Panel([line], whole("layer", data["layer"].values), "norm")], title="norms by layer")

Plotly and matplotlib are imported when the first figure is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import lazy

if TYPE_CHECKING:
    from workbench.figures.charts import CHARTS, Chart, attribution, chart, curves, heatmap, trajectory
    from workbench.figures.figure import Figure, drawn
    from workbench.figures.output import ExportError
    from workbench.figures.page import Paper, Sheet, paper
    from workbench.figures.plot import (
        Areas,
        Axis,
        Bars,
        Cells,
        Flow,
        Graph,
        Line,
        Panel,
        Picture,
        Plot,
        Points,
        Region,
        Rule,
        Table,
        Thumbnails,
        whole,
    )  # fmt: skip

_HOMES = {
    "charts": ("CHARTS", "Chart", "attribution", "chart", "curves", "heatmap", "trajectory"),
    "figure": ("Figure", "drawn"),
    "output": ("ExportError",),
    "page": ("Paper", "Sheet", "paper"),
    "plot": ("Areas", "Axis", "Bars", "Cells", "Flow", "Graph", "Line", "Panel", "Picture", "Plot", "Points", "Region",
             "Rule", "Table", "Thumbnails", "whole"),
}  # fmt: skip
__all__ = [
    "CHARTS", "Areas", "Axis", "Bars", "Cells", "Chart", "ExportError", "Figure", "Flow", "Graph", "Line", "Panel",
    "Paper", "Picture", "Plot", "Points", "Region", "Rule", "Sheet", "Table", "Thumbnails", "attribution", "chart",
    "curves", "drawn", "heatmap", "paper", "trajectory", "whole",
]  # fmt: skip


__getattr__ = lazy.names("workbench.figures", {name: home for home, names in _HOMES.items() for name in names})
