"""A plot on the screen: plotly, interactive, light or dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from workbench import tokens
from workbench.figures import plot as plots
from workbench.figures.colours import DIVERGING, HUES, HUES_DARK, SEQUENTIAL, ink, rgb, stops
from workbench.figures.glyphs import broken, cut, width
from workbench.figures.plot import GREY, INK, Axis, Cells, Graph, Panel, Plot, colour

FONT = "Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"
TYPE = 12
"""Pixels of the type."""
WIDEST, TALLEST = 1400.0, 1200.0
DASHES = {"solid": None, "dash": "dash", "dot": "dot", "dashdot": "dashdot", "longdash": "longdash"}
SYMBOLS = {
    "circle": "circle", "square": "square", "diamond": "diamond", "triangle": "triangle-up", "cross": "cross",
    "x": "x", "star": "star", "tick": "line-ns", "dash": "line-ew",
}  # fmt: skip


@lru_cache(maxsize=1)
def register() -> None:
    """Make the templates "workbench" and "workbench_dark" known to plotly."""
    pio.templates["workbench"] = _template("#FFFFFF", "#1F2430", "#DDE1E8", HUES)
    pio.templates["workbench_dark"] = _template("#14171F", "#DDE2EC", "#343B49", HUES_DARK)


def _template(ground: str, text: str, line: str, hues: list[str]) -> go.layout.Template:
    axis = {
        "showgrid": False, "zeroline": False, "showline": True, "linecolor": text, "linewidth": 1,
        "ticks": "outside", "ticklen": 4, "tickcolor": text, "automargin": True, "title": {"standoff": 8},
    }  # fmt: skip
    bar = {"thickness": 10, "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "title": {"side": "right"}}
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": TYPE, "color": text},
            "paper_bgcolor": ground, "plot_bgcolor": ground, "colorway": hues,
            "colorscale": {"sequential": SEQUENTIAL, "sequentialminus": SEQUENTIAL[::-1], "diverging": DIVERGING},
            "xaxis": axis, "yaxis": axis,
            "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": TYPE + 2}},
            "hoverlabel": {"align": "left", "namelength": -1},
            "legend": {"bgcolor": "rgba(0,0,0,0)", "bordercolor": line, "orientation": "h"},
        },
        data={"heatmap": [{"colorbar": bar}]},
    )  # fmt: skip


def faded(shade: str, opacity: float = 0.18) -> str:
    """A colour as the ground of an interval."""
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def draw(plot: Plot, dark: bool = False) -> go.Figure:
    """The plot as a plotly figure."""
    register()
    return _Screen(plot, dark).figure


class _Screen:
    """One plot while it is drawn."""

    def __init__(self, plot: Plot, dark: bool) -> None:
        self.plot, self.dark = plot, dark
        rows, columns = plot.rows(), max(len(row) for row in plot.rows())
        bars = [*plot.bars(), *(m for p in plot.panels for m in p.marks if _own_bar(m))]
        self.bars = bars
        wide, tall = (TYPE * side for side in plot.room())
        left, right = TYPE * max(plots.beside(row[0]) for row in rows) + 10, 24.0 + 86 * bool(bars)
        wide += 10 - left
        if plot.size:
            wide, tall = plot.size[0] - left - right, plot.size[1]
        wide = float(np.clip(wide, 420 - left - right, WIDEST - left - right))
        tall = float(min(tall, TALLEST))
        lines = broken(tokens.legible(plot.title), (wide + left + right - 24) / (TYPE + 2)) if plot.title else []
        notes = broken(tokens.legible(plot.note), (wide + left + right - 24) / TYPE) if plot.note else []
        top = 14.0 + 19 * len(lines) + 16 * len(notes) + 20 * any(p.title for p in plot.panels) + 6
        weights = [max((row[c].width for row in rows if c < len(row)), default=1) for c in range(columns)]
        # Axis labels and ticks stand between the panels.
        labels = max((plots.beside(p) for row in rows for p in row[1:]), default=0.0)
        between = TYPE * (1.5 if "y" in plot.shared else labels + 0.8) / wide * (columns > 1)
        under = (TYPE * (1.2 if "x" in plot.shared else 4) + 22) / tall * (len(rows) > 1)
        self.size = (wide - between * wide * (columns - 1)) / sum(weights), tall / len(rows) * (1 - under)
        self.weights = weights
        kinds = {plots.Table: "table", plots.Flow: "domain"}
        grid = [
            [{"type": next((kinds[type(m)] for m in row[c].marks if type(m) in kinds), "xy")} if c < len(row) else None
             for c in range(columns)] for row in rows
        ]  # fmt: skip
        titles = [
            tokens.plotly(cut(tokens.legible(panel.title), (self.size[0] * weight + between * wide) / TYPE))
            for row in rows for panel, weight in zip(row, weights, strict=False)
        ]  # fmt: skip
        self.figure = go.Figure(make_subplots(
            len(rows), columns, specs=grid, column_widths=weights, horizontal_spacing=min(between, 0.9 / columns),
            vertical_spacing=min(under, 0.9 / len(rows)),
            subplot_titles=titles if any(titles) else None,
        ))  # fmt: skip
        self.named: set[str] = set()
        self.turned = 0.0  # pixels of turned names, or of a slider, below the panels
        for r, row in enumerate(rows):
            for c, panel in enumerate(row):
                self._panel(panel, r, c, last=r == len(rows) - 1 or c >= len(rows[r + 1]))
        title = "<br>".join([
            *map(tokens.plotly, lines), *(f'<span style="font-size:{TYPE}px">{tokens.plotly(n)}</span>' for n in notes)
        ])  # fmt: skip
        below, under_legend = self._below(wide)
        self.figure.update_layout(
            template="workbench_dark" if dark else "workbench", width=round(wide + left + right), hovermode="closest",
            height=round(top + tall + below), margin={"l": left, "r": right, "t": top, "b": below},
            title={"text": title or None, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14, "l": 12}},
            legend={"y": -under_legend / tall, "yanchor": "top", "x": 0, "traceorder": "normal"},
            showlegend=bool(self.named), barmode="overlay",
        )  # fmt: skip
        for note in self.figure.layout.annotations[: len(plot.panels)] if any(titles) else ():
            note.font.size = TYPE

    def _below(self, wide: float) -> tuple[float, float]:
        """Pixels below the panels, and from there to the legend: of what axes and legend take."""
        last = [p for p in self.plot.panels if any(isinstance(m, plots.Flow | plots.Table) for m in p.marks)]
        axes = 46.0 if len(last) < len(self.plot.panels) else 8.0
        axes += self.turned
        entries = sum(46 + TYPE * width(str(n)) for n in self.named)
        return axes + 22 * int(np.ceil(entries / max(1, wide))) * bool(self.named) + 6, axes

    # ------------------------------------------------------------ panels and axes

    def _panel(self, panel: Panel, r: int, c: int, last: bool) -> None:
        self.at: dict[str, Any] = {"row": r + 1, "col": c + 1}
        wide, tall = self.size[0] * self.weights[c], self.size[1]
        if not any(isinstance(m, plots.Flow | plots.Table) for m in panel.marks):
            self._axis(panel, "x", wide, tall, labelled=last or "x" not in self.plot.shared)
            self._axis(panel, "y", wide, tall, labelled=c == 0 or "y" not in self.plot.shared)
        for mark in panel.marks:
            getattr(self, f"_{type(mark).__name__.lower()}")(mark, panel)
        if any(isinstance(m, plots.Points) and m.names is not None for m in panel.marks):
            self._names(panel, wide, tall)

    def _axis(self, panel: Panel, which: str, wide: float, tall: float, labelled: bool) -> None:
        axis: Axis = getattr(panel, which)
        given: dict[str, Any] = {"title": {"text": tokens.plotly(axis.label) if labelled else ""}}
        if axis.ticks is not None:
            texts = axis.names if axis.names is not None else [f"{t:g}" for t in axis.ticks]
            given |= {"tickvals": list(axis.ticks), "ticktext": [tokens.plotly(str(t)) for t in texts]}
        elif axis.names is not None:
            n = max(1, len(axis.names))
            if which == "x":
                found = plots.names_across(axis, wide / n, TYPE, 8)
                given["tickangle"] = -90 if found.turned else 0
                given["tickfont"] = {"size": found.size}
                self.turned = max(self.turned, TYPE * max(map(width, found.texts), default=0) * found.turned)
                if found.numbered:
                    given["title"] = {"text": plots.NUMBERED}
            else:
                found = plots.names_down(axis, tall / n, TYPE, 8, 0.45 * wide + 60)
            given |= {"tickvals": found.at, "ticktext": [tokens.plotly(t) for t in found.texts]}
            given["range"] = [n - 0.5, -0.5] if axis.reversed else [-0.5, n - 0.5]
        elif axis.scale == "whole":
            given["tickformat"] = "d"
        if axis.scale == "log":
            given["type"] = "log"
        if axis.range is not None and axis.names is None or axis.ticks is not None and axis.range is not None:
            ends = [None if e is None else float(np.log10(e)) if axis.scale == "log" else e for e in axis.range]
            if None in ends:  # plotly forgets a range with one open end where axes make room for their labels
                given["autorangeoptions"] = dict(zip(("minallowed", "maxallowed"), ends, strict=True))
                given |= {"autorange": "reversed"} if axis.reversed else {}
            else:
                given["range"] = ends[::-1] if axis.reversed else ends
        elif axis.reversed and axis.names is None:
            given["autorange"] = "reversed"
        if not axis.shown or panel.of(Graph) or panel.of(plots.Picture):  # pixels say nothing
            given |= {"visible": False}
        if which in self.plot.shared and not labelled and len(self.plot.panels) > 1:
            given["showticklabels"] = False
        if which in self.plot.shared:
            first = self.figure.get_subplot(1, 1)
            own = self.figure.get_subplot(self.at["row"], self.at["col"])
            if own.xaxis is not first.xaxis:
                given["matches"] = which
        if panel.of(Cells):
            given |= {"showline": False, "ticks": ""}
        if panel.square:
            given |= {"constrain": "domain"} | ({"scaleanchor": "x"} if which == "y" else {})
        getattr(self.figure, f"update_{which}axes")(**given, **self.at)

    def _shade(self, hue: Any) -> str:
        return colour(hue, self.dark)

    def _entry(self, mark: Any) -> dict[str, Any]:
        """Name and legend entry of a mark: each name once."""
        text = tokens.plotly(tokens.labels([mark.name], 60)[0]) if mark.name else ""
        shown = bool(text) and mark.legend and text not in self.named
        if shown:
            self.named.add(text)
        return {"name": text, "showlegend": shown, "legendgroup": text or None}

    def _add(self, trace: Any) -> None:
        self.figure.add_trace(trace, **self.at)

    # ------------------------------------------------------------ marks

    def _line(self, mark: plots.Line, panel: Panel) -> None:
        x, y, shade = np.asarray(mark.x), np.asarray(mark.y, float), self._shade(mark.hue)
        if not len(x):  # an entry of the legend alone
            x, y = np.array([np.nan]), np.array([np.nan])
        entry = self._entry(mark)
        group = entry["legendgroup"]
        low, high = (None if e is None else np.asarray(e, float) for e in (mark.low, mark.high))
        if low is not None and high is not None and mark.banded and not mark.bars:
            known = np.isfinite(low) & np.isfinite(high)
            if known.any():
                self._add(go.Scatter(
                    x=np.r_[x[known], x[known][::-1]], y=np.r_[high[known], low[known][::-1]], mode="lines",
                    fill="toself", fillcolor=faded(shade), line={"width": 0}, hoverinfo="skip", showlegend=False,
                    legendgroup=group,
                ))  # fmt: skip
        if mark.each is not None:
            each = np.asarray(mark.each, float)
            self._add(go.Scatter(
                x=np.tile(x, len(each)), y=each.ravel(), mode="markers", showlegend=False, legendgroup=group,
                marker={"size": 4, "color": faded(shade, 0.45)}, customdata=np.repeat(np.arange(len(each)), len(x)),
                hovertemplate="%{customdata}: %{y:.4g}<extra></extra>",
            ))  # fmt: skip
        hover = mark.hover if mark.hover is not None else _said(mark, panel, x, y, low, high)
        self._add(go.Scatter(
            x=x, y=y, mode="lines+markers" if mark.markers else "lines", marker={"size": 4, "color": shade},
            line={"color": shade, "width": mark.width, "dash": DASHES[mark.dash]}, **entry,
            error_y=_error(y, low, high, shade) if mark.bars else None, **_hover(hover),
        ))  # fmt: skip

    def _areas(self, mark: plots.Areas, panel: Panel) -> None:
        x = np.asarray(mark.x)
        for name, y, hue in zip(mark.names, np.asarray(mark.y, float), mark.hues, strict=True):
            own = plots.Line(x, y, name)
            self._add(go.Scatter(
                x=x, y=y, mode="lines", stackgroup="one", line={"width": 0.5, "color": self._shade(hue)},
                **self._entry(own), **_hover(_said(own, panel, x, y, None, None)),
            ))  # fmt: skip

    def _points(self, mark: plots.Points, panel: Panel) -> None:
        x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
        hue, filled, symbol, size = (np.broadcast_to(np.asarray(v, object), len(x)) for v in (
            mark.hue, mark.filled, mark.symbol, mark.size))  # fmt: skip
        shades = [faded(self._shade(h), 0.45) if mark.faint else self._shade(h) for h in hue]
        solid = [bool(f) and s not in ("tick", "dash") for s, f in zip(symbol, filled, strict=True)]
        looks = [SYMBOLS[s] + "-open" * (not f) for s, f in zip(symbol, solid, strict=True)]
        errors = {}
        for which, at, low, high in (("x", x, mark.x_low, mark.x_high), ("y", y, mark.y_low, mark.y_high)):
            if low is not None:
                # Bars of one trace have one colour.
                errors[f"error_{which}"] = _error(at, low, high, shades[0] if len(set(shades)) == 1 else GREY)
        hover = mark.hover if mark.hover is not None else _said(mark, panel, x, y, mark.y_low, mark.y_high)
        line = {"width": [0 if f else 1.5 for f in solid], "color": shades}
        self._add(go.Scatter(
            x=x, y=y, mode="markers",
            marker={"size": size.tolist(), "symbol": looks, "color": shades, "line": line, "opacity": 1},
            cliponaxis=False, **self._entry(mark), **errors, **_hover(hover),
        ))  # fmt: skip

    def _bars(self, mark: plots.Bars, panel: Panel) -> None:
        values, at = np.asarray(mark.values, float), list(mark.at)
        marker: dict[str, Any] = {"color": self._shade(mark.hue)}
        if mark.colours is not None:
            marker = {
                "color": np.asarray(mark.colours, float), "colorscale": stops("sequential"), "cmin": 0,
                "cmax": mark.high, "showscale": bool(mark.bar), "colorbar": self._bar(mark, mark.bar),
            }  # fmt: skip
        x, y = (values, np.asarray(at)) if mark.level else (np.asarray(at), values)
        hover = mark.hover or _said(mark, panel, x, y, None, None)
        self._add(go.Bar(
            x=x, y=y, orientation="h" if mark.level else "v",
            width=0.85, marker=marker, **self._entry(mark), **_hover(hover),
        ))  # fmt: skip

    def _bar(self, mark: Any, title: str) -> dict[str, Any]:
        """A colour bar; several stand one above the other."""
        n = len(self.bars)
        place = next((k for k, m in enumerate(self.bars) if m is mark or _key(m) == _key(mark)), 0)
        bar: dict[str, Any] = {
            "title": {"text": "<br>".join(map(tokens.plotly, broken(title, max(10, self.size[1] / TYPE / max(1, n)))))
                      , "side": "right"}, "x": 1.01, "thickness": 10, "outlinewidth": 0,
        }  # fmt: skip
        return bar | ({"len": 0.94 / n, "y": 1 - (place + 0.5) / n, "yanchor": "middle"} if n > 1 else {})

    def _cells(self, mark: Cells, panel: Panel) -> None:
        low, high = mark.ends
        bar = self._bar(mark, mark.bar)
        if mark.ticks is not None:
            bar |= {"tickvals": list(mark.ticks[0]), "ticktext": list(mark.ticks[1])}
        first = bool(mark.bar) and not any(getattr(t, "meta", None) == str(mark.key) for t in self.figure.data)
        rows, columns = mark.values.shape
        wide = self.size[0] * self.weights[self.at["col"] - 1] / max(1, columns)
        tall = self.size[1] / max(1, rows)
        gap = 0.5 if wide > 6 and tall > 6 else 0
        hover = mark.hover
        if hover is None and mark.values.size <= plots.HOVER_CELLS:
            hover = _cell_hovers(mark, panel)
        self._add(go.Heatmap(
            z=np.round(mark.values, 4), x=list(range(columns)), y=list(range(rows)), zmin=low, zmax=high,
            colorscale=stops(mark.scale), showscale=first, colorbar=bar if first else None, meta=str(mark.key),
            xgap=gap, ygap=gap, hoverongaps=mark.hover is not None,  # a chart's own texts say why there is no value
            hovertext=None if hover is None else [list(map(_lines, row)) for row in hover],
            hovertemplate="%{hovertext}<extra></extra>" if hover is not None else "%{z:.4g}<extra></extra>",
        ))  # fmt: skip
        inks: Any = self._inks(mark) if mark.marked or mark.text is not None else None
        if mark.text is not None and (fit := plots.cell_texts(mark.text, wide, tall, TYPE, 7)):
            at_y, at_x = np.indices(mark.values.shape)
            # A trace of its own: a heatmap's texts have one colour, and here each must stand out from its cell.
            self._add(go.Scatter(
                x=at_x.ravel(), y=at_y.ravel(), mode="text", hoverinfo="skip", showlegend=False,
                text=[tokens.plotly(str(t)) for t in fit[1].ravel()],
                textfont={"color": inks.ravel().tolist(), "size": fit[0]},
            ))  # fmt: skip
        if mark.hatched is not None:
            for shade in ("#000000", "#FFFFFF"):
                x, y = plots.diagonals(np.asarray(mark.hatched, bool) & (inks == shade))
                self._segments(x, y, shade, 0.8)
        if mark.framed is not None and np.any(mark.framed):
            for shade, dash in (("#FFFFFF", None), ("#000000", "dot")):  # seen on every colour
                self._segments(*plots.outlines(mark.framed), shade, 1.5, dash)
        side = min(wide, tall)
        for mask, symbol, share in (
            (mark.ringed, "circle-open", 0.55), (mark.starred, "star", 0.6), (mark.dotted, "circle", 0.2)
        ):  # fmt: skip
            if mask is not None and np.any(mask):
                y, x = np.nonzero(mask)
                look = {"symbol": symbol, "size": float(np.clip(share * side, 3, 14)), "color": inks[y, x].tolist()}
                self._add(go.Scatter(x=x, y=y, mode="markers", marker=look, hoverinfo="skip", showlegend=False))

    def _inks(self, mark: Cells) -> np.ndarray:
        """What stands out from each cell."""
        inks = np.asarray(ink(rgb(stops(mark.scale), np.nan_to_num(mark.shares, nan=0.0))))
        inks[~np.isfinite(mark.values)] = self._shade(INK)
        return inks

    def _segments(self, x: np.ndarray, y: np.ndarray, shade: str, thick: float, dash: str | None = None) -> None:
        """Lines of cells, in one trace."""
        if len(x):
            x, y = (np.pad(v, ((0, 0), (0, 1)), constant_values=np.nan).ravel() for v in (x, y))
            line = {"color": shade, "width": thick, "dash": dash}
            self._add(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))

    def _rule(self, mark: plots.Rule, panel: Panel) -> None:
        line = {"color": self._shade(mark.hue), "width": 1, "dash": DASHES[mark.dash]}
        put = self.figure.add_hline if mark.axis == "y" else self.figure.add_vline
        given: dict[str, Any] = {}
        if mark.name:
            sides = ("top", "right" if mark.end == "high" else "left")
            given = {"annotation_text": tokens.plotly(mark.name), "annotation_position": " ".join(sides),
                     "annotation_xshift": 4 if mark.axis == "y" and mark.end == "low" else 0,
                     "annotation_font": {"size": 10, "color": self._shade(mark.hue)}}  # fmt: skip
        put(mark.at, line=line, exclude_empty_subplots=False, **given, **self.at)  # it may be the first mark

    def _region(self, mark: plots.Region, panel: Panel) -> None:
        shade = self._shade(mark.hue)
        self._add(go.Scatter(
            x=mark.x, y=mark.y, mode="lines", fill="toself", line={"color": shade, "width": 1}, hoverinfo="skip",
            fillcolor=faded(shade, 0.25), **self._entry(mark),
        ))  # fmt: skip

    def _flow(self, mark: plots.Flow, panel: Panel) -> None:
        source, target, value = (list(v) for v in zip(*mark.links, strict=True)) if mark.links else ([], [], [])
        shades = [self._shade(hue) for *_, hue in mark.nodes]
        base, through, _ = plots.nodes(mark)  # plotly's own order is another than the chart's
        last, deep = max((c for c, *_ in mark.nodes), default=0), -min(base, default=-1.0)
        self._add(go.Sankey(
            node={
                "label": [tokens.plotly(text) for _, text, _ in mark.nodes], "color": shades, "pad": 8, "thickness": 12,
                "x": [np.clip(c / max(1, last), 0.001, 0.999) for c, *_ in mark.nodes],
                "y": np.clip(-(base + through / 2) / deep, 0.001, 0.999),
            },
            link={"source": source, "target": target, "value": value, "color": [faded(shades[s], 0.3) for s in source]},
        ))  # fmt: skip

    def _table(self, mark: plots.Table, panel: Panel) -> None:
        columns = list(zip(*mark.rows, strict=True)) or [[] for _ in mark.header]
        ground, line = ("#14171F", "#343B49") if self.dark else ("#FFFFFF", "#DDE1E8")
        look = {"align": "left", "fill": {"color": ground}, "line": {"color": line}}
        self._add(go.Table(
            columnwidth=list(mark.widths) or None,
            header={"values": [f"<b>{tokens.plotly(h)}</b>" for h in mark.header], **look},
            cells={"values": [[tokens.plotly(t) for t in column] for column in columns], "height": 22, **look},
        ))  # fmt: skip

    def _graph(self, mark: Graph, panel: Panel) -> None:
        x, y, values = np.asarray(mark.x, float), np.asarray(mark.y, float), np.asarray(mark.values, float)
        size = 24
        for a, b in mark.edges:
            self.figure.add_annotation(
                x=x[b], y=y[b], ax=x[a], ay=y[a], xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
                arrowhead=2, arrowwidth=1, arrowcolor=GREY, standoff=size / 2, startstandoff=size / 2,
            )  # fmt: skip
        looks = {node: (symbol, hue) for node, symbol, hue in mark.special.values()}
        symbols = [SYMBOLS[looks.get(v, ("circle", 0))[0]] for v in range(len(x))]
        rims = [self._shade(looks[v][1]) if v in looks else GREY for v in range(len(x))]
        names = [tokens.plotly(n) for n in tokens.labels(mark.names, 16)]
        for place, own in enumerate(values):
            shown = np.nan_to_num(own[: len(x)])
            self._add(go.Scatter(
                x=x, y=y, mode="markers+text", text=names, textposition="top center", textfont={"size": 10},
                visible=place == 0, cliponaxis=False, showlegend=False, customdata=shown,
                hovertemplate="%{text}: %{customdata:.3f}<extra></extra>",
                marker={
                    "size": [1.15 * size if s == "diamond" else size for s in symbols], "opacity": 1, "color": shown,
                    "colorscale": stops("sequential"), "cmin": 0, "cmax": 1, "showscale": bool(mark.bar),
                    "colorbar": self._bar(mark, mark.bar), "symbol": symbols,
                    "line": {"width": [3 if v in looks else 1 for v in range(len(x))], "color": rims},
                },
            ))  # fmt: skip
        for name, (_, symbol, hue) in mark.special.items():
            self._add(go.Scatter(
                x=[None], y=[None], mode="markers", **self._entry(plots.Line([], [], name)),
                marker={"symbol": SYMBOLS[symbol], "size": 10, "color": "rgba(0,0,0,0)",
                        "line": {"width": 2, "color": self._shade(hue)}},
            ))  # fmt: skip
        if len(values) > 1:
            steps = [
                {"label": tokens.plotly(frame), "method": "restyle",
                 "args": [{"visible": [q == p for q in range(len(values))] + [True] * len(mark.special)}]}
                for p, frame in enumerate(mark.frames)
            ]  # fmt: skip
            self.figure.update_layout(sliders=[{"currentvalue": {"prefix": ""}, "pad": {"t": 44, "l": 20, "r": 45},
                                                "steps": steps}])  # fmt: skip
            self.turned = max(self.turned, 90.0)  # the slider's own room

    def _picture(self, mark: plots.Picture, panel: Panel) -> None:
        image = mark.pixels
        tall, wide = image.shape[:2]
        self.figure.add_layout_image(
            source=_source(image), x=0, y=0, sizex=wide, sizey=tall, sizing="stretch", layer="below",
            exclude_empty_subplots=False, **self.at,
        )  # fmt: skip
        name = self.figure.get_subplot(self.at["row"], self.at["col"]).xaxis.plotly_name.replace("axis", "")
        self.figure.update_xaxes(range=[0, wide], constrain="domain", **self.at)
        self.figure.update_yaxes(range=[tall, 0], constrain="domain", scaleanchor=name, **self.at)
        boxes = np.zeros((0, 4)) if mark.boxes is None else np.asarray(mark.boxes, float)
        cells, middles = mark.cells, (boxes[:, :2] + boxes[:, 2:]) / 2
        known = [getattr(trace, "meta", None) for trace in self.figure.data]
        if mark.bar and mark.values is not None and str(mark.key) not in known:
            low, high = cells.ends
            bar = self._bar(mark, mark.bar)
            if mark.ticks is not None:
                bar |= {"tickvals": list(mark.ticks[0]), "ticktext": list(mark.ticks[1])}
            self._add(go.Scatter(
                x=[None], y=[None], mode="markers", showlegend=False, meta=str(mark.key),
                marker={"color": [low], "cmin": low, "cmax": high, "colorscale": stops(mark.scale), "showscale": True,
                        "colorbar": bar},
            ))  # fmt: skip
        # As many traces as there are steps of colour, not as there are cells: of these there may be thousands.
        steps = np.where(np.isfinite(cells.shares[0]), np.round(32 * np.nan_to_num(cells.shares[0])), -1).astype(int)
        for step in np.unique(steps[steps >= 0]).tolist():
            shade = "#{:02x}{:02x}{:02x}".format(*rgb(stops(mark.scale), step / 32))
            own = plots.corners(boxes[steps == step])
            x, y = (np.pad(v, ((0, 0), (0, 1)), constant_values=np.nan).ravel() for v in own)
            self._add(go.Scatter(
                x=x, y=y, mode="lines", fill="toself", fillcolor=faded(shade, plots.VEIL), line={"width": 0},
                hoverinfo="skip", showlegend=False,
            ))  # fmt: skip
        self._segments(*plots.corners(boxes), "rgba(255,255,255,0.45)", 0.5)
        inks = mark.inks()
        if mark.framed is not None and np.any(mark.framed):
            for shade, dash in (("#FFFFFF", None), ("#000000", "dot")):
                self._segments(*plots.corners(boxes[np.asarray(mark.framed, bool)], 0.06), shade, 1.5, dash)
        if mark.text is not None and len(boxes):
            scale = min(self.size[0] * self.weights[self.at["col"] - 1] / wide, self.size[1] / tall)
            each = (boxes[:, 2:] - boxes[:, :2]).min(0) * scale
            if fit := plots.cell_texts(np.asarray(mark.text, object), *each, TYPE, 7):
                self._add(go.Scatter(
                    x=middles[:, 0], y=middles[:, 1], mode="text", hoverinfo="skip", showlegend=False,
                    text=[tokens.plotly(str(t)) for t in fit[1]], textfont={"color": inks.tolist(), "size": fit[0]},
                ))  # fmt: skip
        if mark.hover is not None:
            self._add(go.Scatter(
                x=middles[:, 0], y=middles[:, 1], mode="markers", marker={"size": 12, "opacity": 0}, showlegend=False,
                **_hover(mark.hover),
            ))  # fmt: skip

    def _thumbnails(self, mark: plots.Thumbnails, panel: Panel) -> None:
        for image, x, y in zip(mark.images, mark.x, mark.y, strict=True):
            self.figure.add_layout_image(
                source=_source(image), x=x, y=y, sizex=0.94, sizey=0.94 * mark.high, sizing="contain",
                xanchor="center", yanchor="middle", layer="above", exclude_empty_subplots=False, **self.at,
            )  # fmt: skip

    def _names(self, panel: Panel, wide: float, tall: float) -> None:
        """Names beside points, where there is room for them; the hover has all."""
        spans = []
        for which in "xy":
            given = getattr(panel, which).range
            at = np.concatenate([np.asarray(getattr(m, which), float) for m in panel.of(plots.Points)])
            low, high = (float(np.nanmin(at)), float(np.nanmax(at))) if np.isfinite(at).any() else (0.0, 1.0)
            pad = 0.06 * ((high - low) or 1.0)
            first, last = given or (None, None)
            ends = [low - pad if first is None else first, high + pad if last is None else last]
            spans.append(ends)
            getattr(self.figure, f"update_{which}axes")(range=ends, **self.at)  # labels are placed for these
        low, size = np.array([s[0] for s in spans]), np.array([max(s[1] - s[0], 1e-9) for s in spans])
        found = plots.labels_beside(panel, lambda at: (at - low) / size * (wide, tall), (wide, tall), 10.4, 7, 5)
        for label in found:
            (x, y), apart = label.away, label.apart > 12
            where = {"ax": x, "ay": -y} if apart else {"xshift": x, "yshift": y}
            self.figure.add_annotation(
                x=label.at[0], y=label.at[1], showarrow=apart, arrowhead=0, arrowwidth=0.75, arrowcolor=GREY,
                standoff=5, text="<br>".join(map(tokens.plotly, label.lines)), align="left", font={"size": 10},
                **where, **self.at,
            )  # fmt: skip


def _key(mark: Any) -> Any:
    return mark.key if isinstance(mark, Cells | plots.Picture) else id(mark)


def _own_bar(mark: Any) -> bool:
    """Whether a mark has a colour bar that it shares with no other."""
    return not isinstance(mark, Cells | plots.Picture) and bool(getattr(mark, "bar", ""))


def _source(image: Any) -> str:
    """Pixels as a data URI."""
    from PIL import Image

    out, own = io.BytesIO(), Image.fromarray(np.asarray(image, np.uint8))
    kind = "png" if own.mode == "RGBA" else "jpeg"
    own.save(out, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _error(at: Any, low: Any, high: Any, shade: str) -> dict[str, Any]:
    low, high = np.asarray(low, float), np.asarray(high, float)
    return {
        "type": "data", "array": _length(high - at), "arrayminus": _length(at - low), "symmetric": False,
        "color": shade, "thickness": 1, "width": 3,
    }  # fmt: skip


def _length(ends: np.ndarray) -> np.ndarray:
    """Of bars: none where an interval has no end (too few units to say)."""
    return np.where(np.isfinite(ends), ends, 0).clip(0)


def _hover(texts: Sequence[str]) -> dict[str, Any]:
    """Texts of points, as they are."""
    return {"hovertext": list(map(_lines, texts)), "hovertemplate": "%{hovertext}<extra></extra>"}


def _lines(text: str) -> str:
    return "<br>".join(map(tokens.plotly, str(text).split("\n")))


def _value(axis: Axis, value: Any) -> str:
    """A value on an axis in words."""
    if not np.isfinite(value):
        return ""
    if axis.named and round(value) in range(len(axis.names or ())):  # the nearest: several marks may share a name
        return str((axis.names or ())[round(value)])
    return f"{axis.label.split(' (')[0]} {value:.5g}".strip()


def _said(mark: Any, panel: Panel, x: np.ndarray, y: np.ndarray, low: Any, high: Any) -> list[str]:
    """What hovering a point tells: its name, where it is, its value and the interval."""
    found = []
    across, down = panel.x, panel.y
    assert isinstance(across, Axis) and isinstance(down, Axis)
    if down.named and not across.named:  # values run across, from names
        across, down, x, y = down, across, y, x
        low, high = getattr(mark, "x_low", None), getattr(mark, "x_high", None)
    names = getattr(mark, "names", None)
    for i in range(len(x)):
        who = str(names[i]) if names is not None and names[i] else mark.name
        value = _value(down, y[i]) if down.named else f"{float(y[i]):.4g}"
        text = f"{who}: " * bool(who) + f"{_value(across, x[i])}: {value}"
        if low is not None and high is not None and np.isfinite(low[i]) and np.isfinite(high[i]):
            text += f" [{float(low[i]):.4g}, {float(high[i]):.4g}]"
        found.append(text)
    return found


def _cell_hovers(mark: Cells, panel: Panel) -> list[list[str]]:
    """Names of row and column, and the value."""
    across, down = panel.x, panel.y
    assert isinstance(across, Axis) and isinstance(down, Axis)
    rows, columns = (
        [f"{axis.label} {_value(axis, i)}".strip() for i in range(n)]
        for axis, n in zip((down, across), mark.values.shape, strict=True)
    )
    return [
        [f"{row}, {column}: {v:.4g} {mark.bar}".strip() for column, v in zip(columns, values, strict=True)]
        for row, values in zip(rows, mark.values, strict=True)
    ]
