"""Cells with texts in them: fitted to the room there is, and what to do where there is too little."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from workbench import tokens
from workbench.figures import colours, theme

NUMBERED = "place in the prompt (its tokens do not fit here)"
SMALLEST = 8.0
"""Pixels of the smallest type on paper: 6 points."""


def ink(
    values: np.ndarray, colorscale: Any, centred: bool, ends: tuple[float, float] | None = None
) -> list[str]:
    """Black or white for each cell, whichever stands out more from its colour; ``ends``: of the colour scale."""
    low, high = ends or (np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf))
    if centred:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    shares = np.nan_to_num((values - low) / ((high - low) or 1), nan=1.0).clip(0, 1)
    stops = [stop if isinstance(stop, str) else list(stop) for stop in colorscale]
    found = np.asarray(sample_colorscale(stops, shares.ravel().tolist(), colortype="tuple"))
    return colours.ink(found * (1 if np.max(found, initial=0) > 1 else 255))


def lost_texts(figure: go.Figure, plot: float) -> str | None:
    """What to do where cells `plot` pixels wide in all are too small for their tokens; None where all are shown."""
    layout: Any = figure.layout
    lost = [t for t in figure.select_traces({"type": "scatter", "mode": "text"}) if t.text is None]
    if not lost or not any(lost[0].customdata):
        return None
    columns, rows = len(layout.meta["workbench"]["inputs"]), len(layout.meta["workbench"]["depths"])
    fit = int(plot / (4 * 0.57 * SMALLEST + 3))
    if columns <= fit:
        return f"{rows} rows are too low for type: draw fewer, reading.isel(layer=...).figure(), or give height=."
    part = f"some {fit} would do: draw a part, reading.isel(position=slice(-{fit}, None)).figure(), or " * (fit > 0)
    return (
        f"{columns} columns are too narrow for type, {part}give more width. "
        "figure(text=False) has no tokens and says nothing."
    )


def fit_cells(figure: go.Figure, height: float | None = None, plot: float | None = None) -> None:
    """Fit a heatmap to its width: cell texts cut or dropped, nothing overlapping.

    All tokens stand below the cells or, where they do not fit, none: a row with every second one would read as a text.
    Then places are numbered, and the axis and the caption say so.

    height   pixels; by default what the layers and the labels need.  Figures without cells stay as they are.
    plot     pixels that the cells have side by side, where that is known from a drawing
    """
    layout: Any = figure.layout
    meta = (layout.meta or {}).get("workbench") if isinstance(layout.meta, dict) else None
    if not meta or "inputs" not in meta:
        return
    inputs, depths = meta["inputs"], meta["depths"]
    rows = max(len(depths), 1)
    paper = _is_paper(layout)
    font = layout.xaxis.tickfont.size or (8 * theme.PIXELS_PER_INCH / 72 if paper else 12)
    letter = 0.6 * font
    cell_width = (plot or layout.width - (100 if paper else 150)) / max(len(inputs), 1)

    if cell_width < 1.15 * font:  # down to 6 points before labels are left out
        font = float(np.clip(cell_width / 1.15, SMALLEST, font))
        letter = 0.6 * font
        figure.update_xaxes(tickfont_size=font)
    numbered = cell_width < round(1.15 * font, 3) - 0.001
    at, flat = list(range(len(inputs))), True
    if numbered:
        places = meta["places"]
        room = (letter * len(str(max(places))) + 8) / cell_width
        step = next(s for n in range(9) for s in (10**n, 2 * 10**n, 5 * 10**n) if s >= room)
        at = [i for i in at if places[i] % step == 0]
        labels, below = [str(places[i]) for i in at], 3.8 * font
    else:
        longest = int(np.clip(cell_width / letter, 1, 100))
        flat = all(_columns(text) <= longest for text in inputs)
        labels = [_cut(text, longest if flat else 14) for text in inputs]
        below = 2.2 * font if flat else letter * max(map(_columns, labels), default=1) + 14
    figure.update_layout(meta={**layout.meta, "workbench": {**meta, "numbered": numbered}})
    figure.update_xaxes(title_text=NUMBERED if numbered else None)
    above = 8 if paper else 44 + 18 * (layout.title.text or "").count("<br>")
    if height is None:
        cell = 14 if paper else 20
        height = float(np.clip(above + below + cell * rows, 130 if paper else 220, 700 if paper else 1100))
    cell_height = (height - above - below) / rows
    figure.update_layout(height=height, margin={"t": above, "b": below})
    figure.update_xaxes(
        tickvals=at,
        ticktext=[tokens.plotly(t) for t in labels],
        tickangle=0 if flat else -90,
        automargin=False,
        range=[-0.5, len(inputs) - 0.5],
    )
    skip = max(1, int(np.ceil(font * 1.3 / cell_height)))
    figure.update_yaxes(
        tickvals=list(range(0, rows, skip)),
        ticktext=[str(d) for d in depths[::skip]],
        range=[-0.5, rows - 0.5],
    )

    size, least = min(font, cell_height * 0.72), SMALLEST if paper else 6
    letters = int((cell_width - 3) / (0.57 * size)) if size >= least else 0
    if letters < 4 and size > least + 1:  # a smaller type before no text at all
        size = least + (not paper)
        letters = int((cell_width - 3) / (0.57 * size))
    for trace in figure.select_traces({"type": "scatter", "mode": "text"}):
        readable = letters >= 4
        trace.text = [tokens.plotly(_cut(str(t), letters)) for t in trace.customdata] if readable else None
        trace.textfont.size = max(size, 1)
        trace.visible = readable


def _is_paper(layout: Any) -> bool:
    size = layout.template.layout.font.size
    return size is not None and size < 11.5


def _columns(text: str) -> int:
    """Width in letters: East Asian wide characters and emoji count double, combining marks not at all."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _cut(text: str, letters: int) -> str:
    if _columns(text) <= letters:
        return text
    out = ""
    for char in text:
        if _columns(out + char) > letters - 1:
            break
        out += char
    if out.startswith("\u2068"):  # close the isolate that visible() opened
        out += "\u2069"
    return out + "…"
