"""One figure at its size on paper: type, lines and margins of a paper, and labels that neither overlap nor leave it.

What a label needs is not guessed: the figure is drawn, what is written on it is measured, and it is drawn again with
titles broken into lines, margins that hold what stuck out and numbers left out of axes that are too full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.figures import drawing, theme
from workbench.figures.cells import fit_cells, lost_texts
from workbench.figures.drawing import Drawn
from workbench.figures.output import warn, without

PIXEL = theme.PIXELS_PER_INCH / 72  # CSS pixels of one point
THIN = 2 / 3  # lines of 2 px on the screen are 1 pt on paper, axes of 1 px half a point
LINES = [
    "line.width", "marker.line.width", "error_x.width", "error_x.thickness", "error_y.width", "error_y.thickness",
]  # fmt: skip
ROUNDS = 6
TALLEST = 9 * theme.PIXELS_PER_INCH  # a page of letter paper less its margins

Legend = tuple[str, float, float]
"""svg, width and height of a legend alone."""


def typeset(
    figure: go.Figure, points: float = 8.0, family: str | None = None, template: str = "workbench_paper"
) -> go.Figure:
    """A copy in a paper's type and lines, without title (papers have captions), sliders, size and margins."""
    theme.register()
    found = go.Figure(figure)
    found.layout = without(found.layout, "title", "width", "height", "margin", "sliders", "updatemenus")
    largest = points * PIXEL
    found.update_layout(template=template, font={"size": largest} | ({"family": family} if family else {}))
    # Plotly's own titles are a fifth larger than their numbers; here numbers are a point smaller than titles.
    ends = {"title": {"font": {"size": largest}}, "tickfont": {"size": largest - PIXEL}}
    found.update_xaxes(ends).update_yaxes(ends)
    for trace in _traces(found):
        holds = "text" in (getattr(trace, "mode", None) or "") and trace.textposition in (None, "middle center")
        _thinner(trace, LINES if holds else [*LINES, "marker.size"])  # marks around a text keep their size
        _smaller(trace, "textfont.size", largest)
        for bar in _colorbars(trace):
            bar.update(ends | {"thickness": 8})
        if trace.type == "table":
            _wide_columns(trace, largest)
    for shape in found.layout["shapes"]:
        _thinner(shape, ["line.width"])
    for note in found.layout["annotations"]:
        _thinner(note, ["arrowwidth", "standoff", "startstandoff"])
        _smaller(note, "font.size", largest)
    _unwrapped_colours(found)
    return found


def _traces(figure: go.Figure) -> tuple[Any, ...]:
    return figure.data  # type: ignore[return-value]  # plotly gives a tuple of traces


def _thinner(part: Any, names: list[str]) -> None:
    for name in names:
        if name in part and part[name] is not None:
            part[name] = np.multiply(part[name], THIN).tolist()


def _smaller(part: Any, name: str, largest: float) -> None:
    if name in part and isinstance(part[name], int | float):
        part[name] = min(part[name], largest)


def _wide_columns(table: Any, letter: float) -> None:
    """Columns of a table at least as wide as their longest word; what is left goes by the table's own shares."""
    heads, cells = table.header.values, table.cells.values
    words = [" ".join(map(str, [head, *own])).split() for head, own in zip(heads, cells, strict=True)]
    least = [max((len(unescape(w)) for w in own), default=1) * 0.62 * letter + 18 for own in words]
    shares = np.array(table.columnwidth or np.ones(len(words)), float)
    # Plotly's widths are shares of the whole, which is not known here: what is small is raised to its words.
    table.columnwidth = np.maximum(np.array(least), shares / shares.max() * max(least) * 3).tolist()


def _unwrapped_colours(figure: go.Figure) -> None:
    """Colours that plotly would give by a trace's number, written out: a legend apart from its figure needs them."""
    hues = figure.layout["template"].layout.colorway or theme.HUES
    for i, trace in enumerate(_traces(figure)):
        if trace.type in ("scatter", "bar") and trace.marker.color is None:
            if trace.type == "bar":
                trace.marker.color = hues[i % len(hues)]
            elif trace.line.color is None:
                trace.line.color = hues[i % len(hues)]


# ---------------------------------------------------------------- fitting


def natural_height(figure: go.Figure, width: float) -> float:
    """Height in pixels that a figure takes at a width on paper: by its proportions on the screen, within bounds."""
    layout: Any = figure.layout
    own = (layout.height or 450) / (layout.width or 700)
    if width < 400:  # a column, or one of several panels
        return width * float(np.clip(own, 0.62 if width > 250 else 0.8, 1.2))
    return width * float(np.clip(0.75 * own, 0.3, 0.6))


def fitted(figure: go.Figure, width: float, height: float, free: bool) -> tuple[Drawn, float]:
    """Draw a typeset figure so that its labels fit; ``free``: its height may change.  Gives the height, too.

    Warns where labels overlap still, names are left out of an axis, or tokens out of cells.
    """
    cells = isinstance(figure.layout["meta"], dict) and "inputs" in (figure.layout["meta"].get("workbench") or {})
    drawn = None
    if any(trace.type == "table" for trace in _traces(figure)):
        height = _table_height(figure, width) if free else height
    for turn in range(ROUNDS):
        figure.update_layout(width=width, height=height)
        if cells:
            fit_cells(figure, None if free else height, drawn.axes["xaxis"]["length"] if drawn else None)
            height = float(figure.layout["height"])
        drawn = drawing.draw(figure.to_plotly_json(), width, height)
        taller = _taller(drawn, height) if free and not cells else height
        if taller > height:
            height = taller
            continue
        if cells and turn == 0:  # now the room for cells is known
            continue
        if not (
            _every_name(figure, drawn)
            or _break_titles(figure, drawn, width, height)
            or _thin_ticks(figure, drawn)
            or _make_room(figure, drawn)
        ):
            break
    assert drawn is not None
    if crowded := overlapping(drawn):
        pairs = "; ".join(f"{a!r} and {b!r}" for a, b in crowded[:3])
        pairs += f" and {len(crowded) - 3} more pairs" * (len(crowded) > 3)
        warn(
            f"Labels overlap at a width of {width / theme.PIXELS_PER_INCH:.2f} inches: {pairs}. Give the figure more "
            "width or height."
        )
    if cells:
        if said := lost_texts(figure, drawn.axes["xaxis"]["length"]):
            inches = width / theme.PIXELS_PER_INCH
            warn(f"Tokens are left out of the cells at a width of {inches:.2f} inches. {said}")
    return drawn, height


def bottom(drawn: Drawn, height: float) -> float:
    """Where the lowest thing on a figure ends, with a little air."""
    ends = [box[1] + box[3] for box in (t["box"] for t in drawn.texts)]
    ends += [height - drawn.size["b"] + 4] * bool(drawn.axes or not drawn.table)
    ends += [box[1] + box[3] for box in [*drawn.table, *drawn.colorbars]]
    return min(height, max(ends) + 3)


def _table_height(figure: go.Figure, width: float) -> float:
    """Tables have the height of their rows: drawn once on a page that is long enough for all of them."""
    drawn = drawing.draw(figure.update_layout(width=width, height=4000).to_plotly_json(), width, 4000)
    return bottom(drawn, 4000) + drawn.size["b"] + 2


def _taller(drawn: Drawn, height: float) -> float:
    """The height at which the names along a vertical axis do not touch, up to a page."""
    needed = height
    for name, axis in drawn.axes.items():
        shown = _ticks(drawn, name)
        if name.startswith("y") and axis.get("names") and shown:
            line = max(t["box"][3] for t in shown)
            needed = max(needed, height - axis["length"] + line * axis["names"] * 1.02)
    return min(needed, TALLEST)


def _ticks(drawn: Drawn, axis: str) -> list[dict[str, Any]]:
    return [t for t in drawn.texts if t["kind"] == "tick" and t["axis"] == axis]


def _every_name(figure: go.Figure, drawn: Drawn) -> bool:
    """Names are all shown, where plotly would leave out every second one without a word."""
    changed = False
    for name, axis in drawn.axes.items():
        if 0 < len(_ticks(drawn, name)) < axis["names"] and (own := figure.layout[name]).dtick is None:
            if own.tickvals is None:
                own.update(tickmode="linear", tick0=0, dtick=1)
                changed = True
    return changed


def _break_titles(figure: go.Figure, drawn: Drawn, width: float, height: float) -> bool:
    """Titles of axes and colour bars that are longer than their place, with one more line."""
    changed = False
    for text in drawn.texts:
        x, y, w, h = text["box"]
        if text["kind"] == "title":
            axis = drawn.axes[text["axis"]]
            across = text["axis"].startswith("x")
            beside = [a for n, a in drawn.axes.items() if n[0] == text["axis"][0] and a["offset"] != axis["offset"]]
            middle = axis["offset"] + axis["length"] / 2
            room = 2 * min(middle, (width if across else height) - middle)
            if beside:
                room = min(room, 2 * min(abs(a["offset"] + a["length"] / 2 - middle) for a in beside) / 2 - 2)
            if (w if across else h) > room:
                changed |= _another_line(figure.layout[text["axis"]].title)
        elif text["kind"] == "colorbar title" and (y < 0 or y + h > height):
            for bar in (bar for trace in _traces(figure) for bar in _colorbars(trace)):
                if _plain(bar.title.text) == text["text"]:
                    changed |= _another_line(bar.title)
        elif text["kind"] == "annotation":
            note = figure.layout["annotations"][text["index"]]
            if note.xref == "paper" and note.xanchor == "center":  # the title of one of several panels
                own = [a for n, a in drawn.axes.items() if n[0] == "x" and a["offset"] < x + w / 2]
                if own and w > 1.05 * max(own, key=lambda a: a["offset"])["length"]:
                    changed |= _another_line(note)
    return changed


def _plain(text: str | None) -> str:
    return unescape((text or "").replace("<br>", ""))


def _colorbars(trace: Any) -> Iterator[Any]:
    """The colour bars that a trace shows."""
    if trace.type == "heatmap":
        yield trace.colorbar
    marker = getattr(trace, "marker", None)
    if getattr(marker, "colorscale", None) and marker.colorbar.to_plotly_json():
        yield marker.colorbar


def _another_line(title: Any) -> bool:
    """Break a text into one line more than it has, evenly; False where it has no further word to break at."""
    lines = (title.text or "").split("<br>")
    words = " ".join(lines).split(" ")
    if len(words) <= len(lines):
        return False
    best = _even(words, len(lines) + 1)
    title.text = "<br>".join(best)
    return True


def _even(words: list[str], lines: int) -> list[str]:
    """Words in so many lines, the longest as short as can be."""
    if lines == 1:
        return [" ".join(words)]
    found: list[str] = []
    for at in range(1, len(words) - lines + 2):
        tried = [" ".join(words[:at]), *_even(words[at:], lines - 1)]
        if not found or max(map(len, tried)) < max(map(len, found)):
            found = tried
    return found


def _thin_ticks(figure: go.Figure, drawn: Drawn) -> bool:
    """Every second, third, ... label of an axis whose labels touch."""
    changed = False
    for name in drawn.axes:
        shown = sorted(_ticks(drawn, name), key=lambda t: t["box"][0 if name.startswith("x") else 1])
        step = max((_step(a, b, name) for a, b in zip(shown, shown[1:], strict=False)), default=1)
        if step == 1:
            continue
        axis = figure.layout[name]
        if axis.tickvals is not None:
            kept = _apart(shown, name) if len(shown) == len(axis.tickvals) else range(0, len(axis.tickvals), step)
            if axis.ticktext is not None:
                axis.ticktext = [axis.ticktext[i] for i in kept]
            axis.tickvals = [axis.tickvals[i] for i in kept]
        elif axis.dtick == 1:
            axis.dtick = step
        elif axis.nticks == max(2, len(shown) // step):
            continue
        else:
            axis.nticks = max(2, len(shown) // step)
        if drawn.axes[name].get("names"):
            warn(
                f"There is no room for all {drawn.axes[name]['names']} names along an axis: some are left out. Give "
                "the figure more width or height."
            )
        changed = True
    return changed


def _apart(shown: list[dict[str, Any]], axis: str) -> list[int]:
    """Numbers of the labels that stay, where each one that touches the last that stays goes; they need not be even."""
    rising = shown if axis.startswith("x") else shown[::-1]
    kept = [0]
    for i in range(1, len(rising)):
        if _step(rising[kept[-1]], rising[i], axis) == 1:
            kept.append(i)
    return kept


def _step(a: dict[str, Any], b: dict[str, Any], axis: str) -> int:
    """How many labels apart two neighbours' labels would have to be in order not to touch."""
    along = 0 if axis.startswith("x") else 1
    apart = max(0.5, abs(b["box"][along] - a["box"][along]))
    turn = math.radians(abs(a["angle"]))
    letter = a["size"] * 1.1
    if math.sin(turn) > 0.05 and along == 0:
        return max(1, math.ceil(letter / (apart * math.sin(turn)) - 0.05))
    # Labels of different lengths: centre to centre, half of each.
    middle = abs((b["box"][along] + b["box"][along + 2] / 2) - (a["box"][along] + a["box"][along + 2] / 2))
    needed = (a["box"][2] + b["box"][2]) / 2 + 3 if along == 0 else letter * 0.9
    return max(1, math.ceil(needed / max(middle, 0.5) - 0.02))


def _make_room(figure: go.Figure, drawn: Drawn) -> bool:
    """Margins that hold what is written beyond the page's edge."""
    width, height = float(figure.layout["width"]), float(figure.layout["height"])
    over = dict.fromkeys("lrtb", 0.0)
    for text in drawn.texts:
        if text["kind"] == "table":
            continue
        x, y, w, h = text["box"]
        turned = text["kind"] in ("title", "colorbar title") and h > w
        over["l"], over["r"] = max(over["l"], -x), max(over["r"], x + w - width)
        if not turned:
            over["t"], over["b"] = max(over["t"], -y), max(over["b"], y + h - height)
    wanted = {side: drawn.size[side] + far + 1 for side, far in over.items() if far > 0.5}
    if wanted:
        figure.update_layout(margin=wanted)
    return bool(wanted)


def overlapping(drawn: Drawn) -> list[tuple[str, str]]:
    """Pairs of texts that are drawn over each other; slanted ones are left out."""
    level = [t for t in drawn.texts if abs(t["angle"]) % 90 < 1 and t["kind"] != "table"]
    boxes = np.array([t["box"] for t in level]).reshape(-1, 4)
    # A box of type is higher than its letters.
    inner = 0.15 * np.minimum(boxes[:, 2], boxes[:, 3])
    low, high = boxes[:, :2] + inner[:, None], boxes[:, :2] + boxes[:, 2:] - inner[:, None]
    both = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low) > 0.5).all(-1)
    return [(level[i]["text"], level[j]["text"]) for i, j in zip(*np.nonzero(np.triu(both, 1)), strict=True)]


# ---------------------------------------------------------------- legends


def entries(figure: go.Figure) -> list[dict[str, Any]]:
    """The traces that a figure's legend names, as plotly would: all with names, if there are two or one asks for it.

    Empty for legends of other traces than lines, marks and bars: those stay where plotly puts them.
    """
    own = [t for t in _traces(figure) if t.visible in (None, True) and t.type not in ("heatmap", "table", "sankey")]
    named = [t for t in own if t.showlegend is not False and (t.name or t.showlegend)]
    asked = any(t.showlegend for t in own) or figure.layout["showlegend"]
    if figure.layout["showlegend"] is False or not (len(named) > 1 or (named and asked)):
        return []
    if any(t.type not in ("scatter", "bar") for t in named):
        return []
    return [t.to_plotly_json() for t in named]


KEPT = ("type", "mode", "name", "line", "marker", "fill", "fillcolor", "stackgroup", "legendgroup", "legendrank")


def legend(found: list[dict[str, Any]], width: float, like: go.Figure) -> Legend:
    """A legend alone, in as many lines as it needs at that width."""
    figure = go.Figure()
    figure.update_layout(
        template=like.layout["template"], font=like.layout["font"].to_plotly_json(), width=width, height=600,
        margin={"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0}, showlegend=True,
        xaxis={"visible": False}, yaxis={"visible": False},
        legend={"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top",
                "itemwidth": 34, "tracegroupgap": 0, "borderwidth": 0, "bgcolor": "rgba(255,255,255,1)"},
    )  # fmt: skip
    for entry in found:
        kept = {name: entry[name] for name in KEPT if name in entry}
        for name in ("size", "symbol", "color"):  # of many marks the first
            value = (kept.get("marker") or {}).get(name)
            if isinstance(value, list | tuple | np.ndarray):
                kept["marker"] = {**kept["marker"], name: value[0] if len(value) else None}
        figure.add_trace({**kept, "x": [None], "y": [None], "showlegend": True})
    drawn = drawing.draw(figure.to_plotly_json(), width, 600)
    if drawn.legend is None:
        return "", 0.0, 0.0
    x, y, w, h = drawn.legend
    return cropped(drawn.svg, x, y, w, h), w, h


def cropped(svg: str, x: float, y: float, width: float, height: float) -> str:
    """A part of an svg as an svg of its own."""
    head, body = svg[: svg.index(">")], svg[svg.index(">") :]
    kept = " ".join(p for p in head.split(" ") if p.startswith(("<svg", "xmlns")))
    return f'{kept} width="{width:g}" height="{height:g}" viewBox="{x:g} {y:g} {width:g} {height:g}"{body}'
