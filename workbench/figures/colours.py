"""Which colours a number has: one table for figures, explorers, pages and static tables, so that all say the same.

    scale(data["entropy"].attrs)     "reversed": small is the strong end (``better="low"``)
    cell("diverging", -0.5)          CSS of a table's cell, half way down from zero
    sent()                           the table, for the payloads of explorers

Three scales: "sequential", the greater the lighter; "reversed", the smaller the lighter; "diverging", red above zero
and blue below, the stronger the darker.  Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Okabe & Ito (2008): hues that stay apart for colour-blind readers; and lighter ones, for dark grounds.
HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000"]
HUES_DARK = ["#56B4E9", "#E69F00", "#2FC99B", "#E5A3C8", "#F0E442", "#FF8A4C", "#9AA4B2", "#FFFFFF"]
FLOOR = 1
"""The hue of floors: what a number has to be beyond."""

# As plotly has them: Viridis, and RdBu reversed.
SEQUENTIAL = [
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
]  # fmt: skip
DIVERGING = [
    "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b",
    "#67001f",
]  # fmt: skip
SCALES = {"sequential": SEQUENTIAL, "reversed": SEQUENTIAL[::-1], "diverging": DIVERGING}


def scale(about: Mapping[str, Any]) -> str:
    """The scale of a variable with these attributes (:mod:`workbench.variables`)."""
    if about.get("scale") == "diverging":
        return "diverging"
    return "reversed" if about.get("better") == "low" else "sequential"


def stops(scale: str) -> list[str]:
    """The colours of a scale from its lowest value to its highest, at even distances."""
    return SCALES[scale]


def rgb(colours: list[str], shares: Any) -> np.ndarray:
    """[..., 3] whole numbers 0 to 255 at shares 0 to 1 of a scale."""
    known = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours])
    at = np.asarray(shares, float).clip(0, 1) * (len(colours) - 1)
    return np.stack([np.interp(at, np.arange(len(colours)), part) for part in known.T], -1).round().astype(int)


def ink(colours: Any) -> Any:
    """Black or white, whichever stands out more from each colour [..., 3]: WCAG's contrasts cross at 0.179."""
    luminance = (np.asarray(colours, float) / 255) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.179, "#000000", "#FFFFFF").tolist()


def cell(scale: str, share: float) -> str:
    """CSS of a cell at a share of a scale, 0 to 1, or -1 to 1 about zero ("diverging"); "" for NaN."""
    if np.isnan(share):
        return ""
    found = rgb(stops(scale), (share + 1) / 2 if scale == "diverging" else share)
    return f"background:rgb({','.join(map(str, found.tolist()))});color:{ink(found)};"


def sent() -> dict[str, Any]:
    """The table for the front ends."""
    return {"hues": HUES, "dark": HUES_DARK, "floor": FLOOR, "scales": SCALES}
