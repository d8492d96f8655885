"""Names of points that do not lie on each other: beside the point, or apart from it at the end of a line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import plotly.graph_objects as go

from workbench import tokens

# Names are placed for a plot in a column of paper, the smallest that they are read on; the screen has more room.
PLOT = np.array([235.0, 165.0])  # pixels
SIZE = 10.0  # of the type
LETTER, LINE = 0.58 * SIZE, 1.25 * SIZE
POINT = 6.0  # from the middle of a mark to its name
FAR = (14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 100.0, 125.0, 155.0, 190.0)
NEAR, TURNS = 7, 32
LETTERS, LINES = 26, 6  # of one name, at most: those of points that coincide stand in one
GREY = "#8c8c8c"


def name_points(
    figure: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    across: tuple[float, float],
    up: tuple[float, float],
    avoid: np.ndarray | None = None,
) -> int:
    """Write a name at every point of a figure, and set its ranges; gives the number of points without room for one.

    Points whose marks cover each other share a label with all their names, the uppermost first: none is moved.  Labels
    further off than a point's side have a line to it.

    x, y        [point] in the units of the axes
    across, up  ranges of the axes
    avoid       [n, 2] places that labels keep off if they can: lines and error bars
    """
    figure.update_xaxes(range=list(across)).update_yaxes(range=list(up))
    low, high = np.array([across[0], up[0]], float), np.array([across[1], up[1]], float)
    scale = PLOT / (high - low)
    at = (np.stack([x, y], 1).astype(float) - low) * scale
    soft = np.zeros((0, 2)) if avoid is None else (np.asarray(avoid, float) - low) * scale
    known = np.isfinite(at).all(1)  # the others are not drawn
    groups: list[list[int]] = []
    for i in sorted(np.flatnonzero(known).tolist(), key=lambda i: -at[i, 1]):
        same = next((own for own in groups if np.abs(at[own[0]] - at[i]).max() < POINT), None)
        groups.append([i]) if same is None else same.append(i)
    marks = np.array([at[own[0]] for own in groups]).reshape(-1, 2)
    rows = [_rows([names[i] for i in own]) for own in groups]
    sizes = [np.array([max(map(len, own)) * LETTER, len(own) * LINE]) for own in rows]
    found = _placed(marks, sizes, soft)
    for own, written, place in zip(groups, rows, found, strict=True):
        if place is None:
            continue
        middle, apart = place
        text = {
            "text": "<br>".join(map(tokens.plotly, written)), "align": "left", "font": {"size": SIZE},
            "x": float(x[own[0]]), "y": float(y[own[0]]), "xref": "x", "yref": "y",
        }  # fmt: skip
        if apart:
            tail = low + middle / scale
            figure.add_annotation(
                **text, showarrow=True, ax=tail[0], ay=tail[1], axref="x", ayref="y", arrowhead=0, arrowwidth=0.75,
                arrowcolor=GREY, standoff=POINT - 1,
            )  # fmt: skip
        else:  # anchored at the point, wherever type and plot have other proportions
            side = np.sign(np.round(middle - at[own[0]])).astype(int).tolist()
            figure.add_annotation(
                **text, showarrow=False, xshift=side[0] * POINT, yshift=side[1] * POINT,
                xanchor=("right", "center", "left")[side[0] + 1], yanchor=("top", "middle", "bottom")[side[1] + 1],
            )  # fmt: skip
    unnamed = sum(len(own) for own, place in zip(groups, found, strict=True) if place is None)
    return unnamed


def _rows(names: Sequence[str]) -> list[str]:
    """Names in one label, in rows; of very many, the first and how many there are besides."""
    rows: list[str] = [""]
    for i, name in enumerate(names):
        part = name + ("," if i < len(names) - 1 else "")
        if rows[-1] and len(rows[-1]) + 1 + len(part) > LETTERS:
            if len(rows) == LINES:
                return [*rows[:-1], f"and {len(names) - i + rows[-1].count(',')} more"]
            rows.append("")
        rows[-1] = f"{rows[-1]} {part}".strip()
    return rows


Place = tuple[np.ndarray, bool]
"""The middle of a label, and whether it is apart from its point, at the end of a line."""


def _placed(marks: np.ndarray, sizes: list[np.ndarray], soft: np.ndarray) -> list[Place | None]:
    """Places of all labels, None where there is no room; of several orders of placing, that which leaves out least."""
    far = np.abs(marks[:, None] - marks).max(-1)
    crowd = (far < 60).sum(1)
    # A label at the side of one of several points that are closer than a line would shut in the others.
    close = (far < LINE).sum(1) > 1
    best: list[Place | None] = []
    # The most crowded first, or from the top with names as far up as they can be, or from below.
    orders = ((-crowd, 0.0), (-marks[:, 1], np.pi / 2), (marks[:, 1], -np.pi / 2))
    ways = product((False, True), orders, (np.ones(len(marks), bool), ~close))
    for cross, (order, towards), free in ways:  # lines cross where there is no other way
        found = _in_turn(np.argsort(order, kind="stable").tolist(), towards, free, cross, marks, sizes, soft)
        if not best or found.count(None) < best.count(None):
            best = found
        if None not in best:
            break
    return best


def _in_turn(
    order: list[int],
    towards: float,
    free: np.ndarray,
    cross: bool,
    marks: np.ndarray,
    sizes: list[np.ndarray],
    soft: np.ndarray,
) -> list[Place | None]:
    """Labels one after the other.

    ``towards``: the angle at which a label is put first; ``free``: which may stand at the side of their points;
    ``cross``: lines may.
    """
    turns = towards + np.pi * np.array(sorted(np.arange(-TURNS // 2, TURNS // 2) / (TURNS // 2), key=abs))
    rays = np.stack([np.cos(turns), np.sin(turns)], 1)
    found: list[Place | None] = [None] * len(marks)
    boxes, lines = np.zeros((0, 4)), np.zeros((0, 2, 2))  # of labels: left, lower, right, upper; of lines: both ends
    for g in order:
        others = np.delete(marks, g, 0)
        place = _place(marks[g], sizes[g], rays, boxes, lines, others, soft, bool(free[g]))
        if place is not None:
            middle, line = place
            found[g] = middle, len(line) > 0
            boxes = np.concatenate([boxes, np.r_[middle - sizes[g] / 2, middle + sizes[g] / 2][None]])
            if len(line) and not cross:
                lines = np.concatenate([lines, line[None, [0, -1]]])
    return found


def _place(
    point: np.ndarray,
    size: np.ndarray,
    rays: np.ndarray,
    boxes: np.ndarray,
    lines: np.ndarray,
    others: np.ndarray,
    soft: np.ndarray,
    free: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The middle of a label and places along the line to it (none at the point's side), the nearest that is free."""
    passed = np.concatenate([others, *(np.linspace(*ends, 25) for ends in lines)])
    sides = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]) if free else np.zeros((0, 2), int)
    apart = [point + (far + size / 2) * ray for far in FAR for ray in rays]
    middles = np.array([*(point + (POINT + size / 2) * sides), *apart])
    inside = np.flatnonzero(np.all((middles - size / 2 >= 1) & (middles + size / 2 <= PLOT - 1), axis=1))
    # On what it should keep off, before it is far away.
    for kept_off, until in ((soft, len(sides) + NEAR * TURNS), (soft[:0], len(middles))):
        for n in inside[inside < until].tolist():
            low, high = middles[n] - size / 2, middles[n] + size / 2
            if np.any(np.all((boxes[:, :2] < high + 2) & (boxes[:, 2:] > low - 2), axis=1)):
                continue
            if _within(np.concatenate([passed, kept_off]), low - 3, high + 3).any():
                continue
            steps = point + np.linspace(0, 1, 25)[:, None] * (middles[n] - point)
            line = steps[~_within(steps, low, high)] if n >= len(sides) else steps[:0]
            if any(_within(line, box[:2] - 1, box[2:] + 1).any() for box in boxes):
                continue
            if np.any(np.abs(line[:, None] - others).max(-1) < POINT / 2):
                continue
            if len(line):
                along = np.any(np.abs(line[:, None] - kept_off).max(-1) < 2.5, axis=1)
                if along.mean() > 0.4 or _crosses(line[0], line[-1], lines):
                    continue  # along an error bar, or across another line
            return middles[n], line
    return None


def _crosses(start: np.ndarray, end: np.ndarray, lines: np.ndarray) -> bool:
    """Whether a line crosses one of those that are there."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.asarray((b - a)[..., 0] * (c - a)[..., 1] > (b - a)[..., 1] * (c - a)[..., 0])

    a, b = lines[:, 0], lines[:, 1]
    return bool(np.any((side(a, b, start) != side(a, b, end)) & (side(start, end, a) != side(start, end, b))))


def _within(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.all((points > low) & (points < high), axis=-1)
