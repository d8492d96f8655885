"""How figures look: three plotly templates, and the widths of venues; colours of numbers: colours.py."""

from __future__ import annotations

import re
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from workbench.figures.colours import DIVERGING, HUES, HUES_DARK, SEQUENTIAL, stops

__all__ = [
    "DIVERGING", "FONT", "HATCH", "HUES", "HUES_DARK", "LENGTHS", "PIXELS_PER_INCH", "SEQUENTIAL", "WIDTHS", "faded",
    "inches", "register", "stops",
]  # fmt: skip

FONT = "Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"

# Widths in inches, from the venues' style files: neurips_2026.sty and iclr2027_conference.sty (one column of 5.5in),
# icml2025.sty (6.75in, 0.25in between columns), acl.sty (A4 less 2.5cm on both sides, 0.6cm between columns).
WIDTHS: dict[str | None, dict[str, float]] = {
    None: {"column": 3.25, "text": 6.75},
    "icml": {"column": 3.25, "text": 6.75},
    "neurips": {"column": 5.5, "text": 5.5},
    "iclr": {"column": 5.5, "text": 5.5},
    "acl": {"column": 7.7 / 2.54, "text": 16 / 2.54},
}
LENGTHS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27, "bp": 1 / 72, "px": 1 / 96}  # pt: TeX's own
HATCH = "///"  # the text of a heatmap's cell that is not beyond chance; drawn as hatching where figures are saved
PIXELS_PER_INCH = 96  # CSS pixels; a PDF of w pixels is w/96 inches wide


def inches(width: str | float, venue: str | None = None) -> float:
    """A width in inches from "column", "text", a number of inches, or a length such as "84mm" or "240pt"."""
    given = width
    length = re.fullmatch(r"\s*([\d.]+)\s*([a-z]{2})\s*", width) if isinstance(width, str) else None
    if length and length[2] in LENGTHS:
        width = float(length[1]) * LENGTHS[length[2]]
    if isinstance(width, int | float):
        if not 0.5 <= width <= 40:
            raise ValueError(
                f"width={given!r} is not a width in inches that a page has (0.5 to 40). "
                f'For millimetres write "{width:g}mm"; for pixels divide by 96.'
            )
        return float(width)
    key = venue.lower() if venue else None
    if key not in WIDTHS:
        raise ValueError(
            f"No widths are known for the venue {venue!r}; known are {[v for v in WIDTHS if v]}. "
            "Give width in inches."
        )
    if width not in WIDTHS[key]:
        meant = f' For the venue give width="column", venue="{width}".' if str(width).lower() in WIDTHS else ""
        raise ValueError(
            f'width={width!r} is neither "column" nor "text". Choose one, or give inches as a number or "84mm".{meant}'
        )
    return WIDTHS[key][width]


def register() -> None:
    """Make "workbench", "workbench_dark" and "workbench_paper" known to plotly; cheap when done."""
    if "workbench_paper" in pio.templates:
        return
    pio.templates["workbench"] = _template("#FFFFFF", "#1F2430", "#DDE1E8", HUES, 12)
    pio.templates["workbench_dark"] = _template("#14171F", "#DDE2EC", "#343B49", HUES_DARK, 12)
    # 8 pt type: one step under the 9-10 pt captions of the venues above.
    paper: Any = _template("#FFFFFF", "#000000", "#D0D0D0", HUES, 8 * PIXELS_PER_INCH / 72).to_plotly_json()
    paper["layout"].update(
        margin={"l": 6, "r": 6, "t": 6, "b": 6},  # axes take what they need beside it
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 34, "tracegroupgap": 0},
    )
    for axis in ("xaxis", "yaxis"):  # half a point
        paper["layout"][axis] |= {"linewidth": 0.67, "tickwidth": 0.67, "ticklen": 3, "title": {"standoff": 4}}
    paper["data"]["scatter"] = [{"line": {"width": 4 / 3}, "marker": {"size": 4}}]  # one point
    pio.templates["workbench_paper"] = go.layout.Template(paper)


def faded(colour: str, opacity: float = 0.18) -> str:
    """A hue as the ground of an interval, or of points behind a line."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _template(ground: str, ink: str, line: str, hues: list[str], size: float) -> go.layout.Template:
    axis = {
        "showgrid": False, "zeroline": False, "showline": True, "linecolor": ink, "linewidth": 1,
        "ticks": "outside", "ticklen": 4, "tickcolor": ink, "automargin": True, "title": {"standoff": 8},
    }  # fmt: skip
    bar = {"thickness": 10, "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "title": {"side": "right"}}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": size, "color": ink},
            "paper_bgcolor": ground,
            "plot_bgcolor": ground,
            "colorway": hues,
            "colorscale": {
                "sequential": SEQUENTIAL,
                "sequentialminus": SEQUENTIAL[::-1],
                "diverging": DIVERGING,
            },
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 56, "r": 16, "t": 48, "b": 48},
            "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": size + 2}},
            "hoverlabel": {"align": "left", "namelength": -1},
            "legend": {"bgcolor": "rgba(0,0,0,0)", "bordercolor": line},
            "bargap": 0.15,
        },
        data={"heatmap": [{"colorbar": bar}]},
    )
