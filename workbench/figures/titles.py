"""Titles that stay in their picture: broken into lines by a measure that no installed font changes.

The measure is an upper bound: the widths of DejaVu Sans, the widest of the fonts that figures ask for.  What is drawn
in another one is a little narrower, and never wider.
"""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from typing import Any

import plotly.graph_objects as go

from workbench.figures.output import size

NARROW, WIDE = set(" .,:;'|!iljI()[]/\\·ft-rJ\u2068\u2069"), set("mwMW@%&…—#=+<>~^")
LINE = 1.3  # of the type's size
EDGE = 12.0  # pixels between a title and the picture's edges
UNITS = re.compile(r"<[^>]*>|&[^;\s]{1,8};|.", re.DOTALL)


def width(text: str) -> float:
    """At most how wide a text is, in sizes of its type; markup has no width."""
    return sum(map(_letter, unescape(re.sub(r"<[^>]*>", "", text))))


def _letter(char: str) -> float:
    if char in NARROW:
        return 0.42
    if char.isascii():
        return 1.0 if char in WIDE else 0.79 if char.isupper() else 0.64
    return 0.0 if unicodedata.combining(char) else 1.1 if unicodedata.east_asian_width(char) in "WF" else 1.0


def broken(text: str, room: float) -> list[str]:
    """Lines no wider than ``room`` sizes of the type: broken between parts, else words, else letters."""
    lines = []
    for given in re.split(r"<br ?/?>", text):
        line = ""
        for part in re.split(r"(?<=[·,]) (?![^<>]*>)", given):
            if width(line) > 0.4 * room and width(f"{line} {part}") > room:
                lines.append(line)
                line = ""
            for word in [part] if width(f"{line} {part}".strip()) <= room else re.split(r" (?![^<>]*>)", part):
                if line and width(f"{line} {word}") > room:
                    lines.append(line)
                    line = ""
                line = f"{line} {word}" if line else word
                while width(line) > room:
                    head = _head(line, room)
                    lines.append(head)
                    line = line[len(head) :]
        lines.append(line)
    return lines


def _head(word: str, room: float) -> str:
    """As many letters of a word as there is room for, at least one."""
    head = ""
    for unit in UNITS.findall(word):
        if head and width(head + unit) > room:
            break
        head += unit
    return head


def fitted(figure: go.Figure, grow: bool = True) -> go.Figure:
    """A copy whose titles are within it; the figure itself where they are.  ``grow``: in height, by the lines added."""
    found: Any = go.Figure(figure)
    layout, (wide, tall) = found.layout, size(figure)
    changed = False
    if layout.title.text:
        type_size = _size(layout.title.font, layout.template.layout.title.font, 17)
        lines = broken(layout.title.text, (wide - 2 * EDGE) / type_size)
        if len(lines) > 1:
            more = LINE * type_size * (len(lines) - 1)
            top = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 16}}
            layout.title.update(text="<br>".join(lines), **top)
            above = layout.margin.t if layout.margin.t is not None else layout.template.layout.margin.t
            layout.margin.t = (100 if above is None else above) + more
            layout.height = tall + more if grow else tall
            changed = True
    for axis in [*found.select_xaxes(), *found.select_yaxes()]:
        changed |= _axis(found, axis, wide, tall)
    return found if changed else figure


def _axis(figure: Any, axis: Any, wide: float, tall: float) -> bool:
    """Make smaller, or break, the title of an axis that is longer than the axis; True where it is."""
    if not axis.title.text or axis.visible is False:
        return False
    across = axis.plotly_name.startswith("x")
    margin, default = figure.layout.margin, figure.layout.template.layout.margin
    near, far = ("l", "r") if across else ("t", "b")
    ends = [margin[side] if margin[side] is not None else default[side] or 80 for side in (near, far)]
    if across:  # plotly makes room for the names along the other axis
        names = [str(t) for own in figure.select_yaxes() for t in own.ticktext or ()]
        names += [y for trace in figure.data for y in _texts(trace)]
        ends[0] = max([ends[0], *(12 * width(t) + 12 for t in names)])
        ends[1] = max(ends[1], 90 if any(t.type == "heatmap" for t in figure.data) else 0)
    low, high = axis.domain or (0, 1)
    room = ((wide if across else tall) - sum(ends)) * (high - low)
    plain = figure.layout.template.layout.font.size or 12
    text, type_size, room = axis.title.text, _size(axis.title.font, None, 1.2 * plain), max(room, 80)
    longest = max(map(width, re.split(r"<br ?/?>", text))) * type_size
    if longest <= room:
        return False
    smaller = max(0.75 * type_size, type_size * room / longest)
    lines = broken(text, room / smaller)
    axis.title.update(text="<br>".join(lines), font={"size": smaller})
    legend, more = figure.layout.legend, LINE * smaller * (len(lines) - 1)
    if across and more and (legend.y or 0) < 0:  # it stands below the axis
        legend.y -= more / (tall - sum(margin[s] or default[s] or 80 for s in "tb"))
        figure.layout.height = (figure.layout.height or tall) + more * (figure.layout.height is not None)
    return True


def _texts(trace: Any) -> list[str]:
    values = getattr(trace, "y", None)
    return [v for v in values if isinstance(v, str)] if values is not None else []


def _size(own: Any, template: Any, default: float) -> float:
    return own.size or (template.size if template is not None else None) or default
