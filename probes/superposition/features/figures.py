"""Figures of feature superposition: directions beside each other, the sweep of sparsities, psi by layer or width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.results import drawn
from probes.superposition.features.measures import GRAM_LIMIT, PLATEAUS
from workbench import tokens
from workbench.errors import InputError
from workbench.figures import theme
from workbench.figures.charts import Chart
from workbench.figures.figure import Figure
from workbench.figures.source import short_name

if TYPE_CHECKING:
    import xarray as xr

GREY = "#888888"


@drawn
def gram(data: xr.Dataset, sparsity: float | None = None) -> Figure:
    """W W^T between features beside their norms, coloured by interference: a ``geometry`` or one model of a ``sweep``.

    ``sparsity``: the model of a sweep whose sparsity is nearest; default the sparsest.
    """
    title = "directions of features"
    if "sparsity" in data.dims:
        at = -1 if sparsity is None else int(np.abs(data["sparsity"].values - sparsity).argmin())
        data = data.isel(sparsity=at)
        w = data["W"].transpose("hidden", "feature").values
        table, title = w.T @ w, f"S = {float(data['sparsity']):.3g}"
    else:
        table = data["gram"].values if "gram" in data else np.empty((0, 0))
    n = data.sizes["feature"]
    if len(table) != n or n > GRAM_LIMIT:
        raise InputError(f"{n} features are too many for a table of their pairs; measure up to {GRAM_LIMIT} of them.")
    names = [str(x) for x in data["feature"].values]
    # What is hardly represented is full of others, and would take all colours for bars that nobody sees.
    norm = data["norm"].values
    most = max(1.0, float(np.nanmax(np.where(norm > 0.1 * norm.max(), data["interference"].values, 0))))
    figure = _figure(data, title)
    figure.add_heatmap(
        z=np.round(table, 4), x=names, y=names, colorscale=theme.stops("diverging"), zmid=0, xaxis="x", yaxis="y",
        colorbar={"title": {"text": "W_i · W_j"}, "x": 1.02, "y": 0.76, "len": 0.48},
        hovertemplate="features %{y}, %{x}: %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        y=names, x=data["norm"].values, orientation="h", xaxis="x2", yaxis="y", showlegend=False,
        marker={
            "color": data["interference"].values, "colorscale": theme.stops("sequential"), "cmin": 0, "cmax": most,
            "colorbar": {"title": {"text": "interference", "side": "right"}, "x": 1.02, "y": 0.24, "len": 0.48,
                         "thickness": 10, "outlinewidth": 0},
        },
        hovertemplate="feature %{y}: norm %{x:.3f}, interference %{marker.color:.3f}<extra></extra>",
    )  # fmt: skip
    step = max(1, n // 20)
    ticks = {"type": "category", "tickvals": names[::step]}
    figure.update_layout(
        xaxis={**ticks, "domain": [0, 0.68], "title": {"text": "feature"}},
        xaxis2={"domain": [0.72, 1], "title": {"text": "norm"}, "rangemode": "tozero", "anchor": "y"},
        yaxis={**ticks, "autorange": "reversed", "title": {"text": "feature"}},
    )
    return _sized(figure, 320 + 14 * n, 200 + 10 * n)


@drawn
def sharing(data: xr.Dataset, least_norm: float = 0.5) -> Figure:
    """Dimensions per feature over 1/(1-S) of a ``sweep``: D* as a line, each represented feature's D_i as a point.

    Grey points, left of each sparsity's place: random directions of the same norms.  Dotted: known shapes.
    """
    if "sparsity" not in data.dims:
        raise InputError("This figure is over sparsities; give the data of sweep().")
    data = data.sortby("sparsity")
    x = 1 / (1 - data["sparsity"].values)
    rng = np.random.default_rng(0)
    width = float(np.diff(np.log(np.unique(x))).min(initial=0.5))  # points stay nearer to their place than to the next
    figure = _figure(data, "dimensions per feature")
    for j, (name, values, hue) in enumerate(
        (
            ("random, of the same norms", data["dimensionality_random"].values, GREY),
            ("D_i", data["dimensionality"].values, theme.HUES[1]),
        )
    ):
        kept = data["norm"].values >= least_norm
        at, _ = np.nonzero(kept)
        shift = (rng.uniform(0.02, 0.3, len(at)) * (-1) ** (j + 1)) * width
        figure.add_scatter(
            x=x[at] * np.exp(shift), y=values[kept], mode="markers", name=name,
            marker={"size": 4, "color": hue, "opacity": 0.45}, hovertemplate="%{y:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=data["dimensions_per_feature"].values, name="D* = m / |W|²", mode="lines+markers",
        line={"color": theme.HUES[0], "width": 2}, hovertemplate="1/(1-S) %{x:.2f}: %{y:.3f}<extra>D*</extra>",
    )  # fmt: skip
    for name, value in PLATEAUS.items():
        # Two names that would lie on each other stand at different ends.
        side = "bottom right" if name in ("square antiprism", "triangle") else "top right"
        figure.add_hline(
            y=value, line={"dash": "dot", "width": 1, "color": GREY}, annotation_text=f"{name} {value:.3g}",
            annotation_position=side, annotation_font={"size": 9, "color": GREY},
        )  # fmt: skip
    ticks = [m * 10**k for k in range(6) for m in (1, 2, 5)]
    figure.update_xaxes(title_text="1 / (1 - S)", type="log", tickvals=ticks)
    figure.update_yaxes(title_text="dimensions per feature", range=[0, 1.08])
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    return _sized(figure, 640, 460)


@drawn
def psi(data: xr.Dataset, over: str | None = None) -> Figure:
    """Effective features per dimension with the interval over documents; dashed: of states turned at random.

    ``over``: "layer", a line for each dictionary; "width", a line for each layer over sizes of dictionaries.  Default:
    "width" where there are more dictionaries than layers.
    """
    layers, names = data["layer"].values, [str(n) for n in data["dictionary"].values]
    over = over or ("width" if len(names) > len(layers) else "layer")
    if over not in ("layer", "width"):
        raise InputError(f"over={over!r} is unknown. Use 'layer' or 'width'.")
    figure = _figure(data, "effective features per dimension (dashed: states turned at random)")
    lines = names if over == "layer" else [f"layer {layer}" for layer in layers]
    for i, name in enumerate(lines):
        own, hue = data.isel({"dictionary" if over == "layer" else "layer": i}), theme.HUES[i % len(theme.HUES)]
        x = layers if over == "layer" else own["n_features"].values
        order = np.argsort(x)
        order = order[~np.isnan(own["psi"].values[order])]
        x, own = x[order], own.isel({"layer" if over == "layer" else "dictionary": order})
        low, high = own["psi_low"].values, own["psi_high"].values
        figure.add_scatter(
            x=[*x, *x[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", line={"width": 0},
            fillcolor=theme.faded(hue), hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=own["psi"].values, name=tokens.labels([name])[0], mode="lines+markers",
            line={"color": hue, "width": 2},
            showlegend=len(lines) > 1, customdata=np.stack([own["F"].values, own["fvu"].values], 1),
            hovertemplate=f"{over} %{{x}}: %{{y:.3f}} (F %{{customdata[0]:.0f}}, FVU %{{customdata[1]:.3f}})",
        )  # fmt: skip
        if "psi_null" in own:
            figure.add_scatter(
                x=x, y=own["psi_null"].values, mode="lines", line={"color": hue, "dash": "dash"},
                name="turned", showlegend=False, hovertemplate="%{y:.3f}<extra>turned</extra>",
            )  # fmt: skip
    figure.add_hline(y=1, line={"dash": "dot", "width": 1, "color": GREY})
    if over == "layer":
        figure.update_xaxes(title_text="layer", tickvals=layers[:: max(1, len(layers) // 12)])
    else:
        sizes = np.unique(data["n_features"].values[~np.isnan(data["n_features"].values)]).astype(int)
        figure.update_xaxes(
            title_text="features of the dictionary", type="log", tickvals=sizes, ticktext=sizes.astype(str)
        )
    figure.update_yaxes(title_text="psi = F / hidden width", rangemode="tozero")
    return _sized(figure, 560, 380)


def _figure(data: xr.Dataset, what: str) -> Figure:
    theme.register()
    figure = Figure()
    name = short_name(str(data.attrs.get("model", "")))
    figure.update_layout(template="workbench", title_text=tokens.plotly(" · ".join(x for x in (name, what) if x)))
    return figure


def _sized(figure: Figure, width: float, height: float) -> Figure:
    figure.update_layout(width=float(np.clip(width, 480, 1400)), height=float(np.clip(height, 260, 1200)))
    return figure


GRAM = Chart(gram, ("norm", "interference", "dimensionality"))
SHARING = Chart(sharing, ("W", "dimensionality_random", "dimensions_per_feature"))
PSI = Chart(psi, ("psi", "psi_low", "psi_high", "n_features"))
