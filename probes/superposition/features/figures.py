"""Figures of feature superposition: directions beside each other, the sweep of sparsities, psi by layer or width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.superposition.features.measures import GRAM_LIMIT, PLATEAUS
from workbench.errors import InputError
from workbench.figures.charts import Chart, heading
from workbench.figures.figure import drawn
from workbench.figures.plot import GREY, Axis, Bars, Cells, Line, Panel, Plot, Points, Rule, whole
from workbench.figures.source import Source
from workbench.variables import title

if TYPE_CHECKING:
    import xarray as xr


@drawn
def gram(data: xr.Dataset, sparsity: float | None = None) -> Plot:
    """W W^T between features beside their norms, coloured by interference: a ``geometry`` or one model of a ``sweep``.

    ``sparsity``: the model of a sweep whose sparsity is nearest; default the sparsest.
    """
    what = "directions of features"
    if "sparsity" in data.dims:
        at = -1 if sparsity is None else int(np.abs(data["sparsity"].values - sparsity).argmin())
        data = data.isel(sparsity=at)
        w = data["W"].transpose("hidden", "feature").values
        table, what = w.T @ w, f"S = {float(data['sparsity']):.3g}"
    else:
        table = data["gram"].values if "gram" in data else np.empty((0, 0))
    n = data.sizes["feature"]
    if len(table) != n or n > GRAM_LIMIT:
        raise InputError(f"{n} features are too many for a table of their pairs; measure up to {GRAM_LIMIT} of them.")
    names = [str(x) for x in data["feature"].values]
    norm, shared = data["norm"].values, data["interference"].values
    # What is hardly represented is full of others, and would take all colours for bars that nobody sees.
    most = max(1.0, float(np.nanmax(np.where(norm > 0.1 * norm.max(), shared, 0))))
    bars = Bars(
        range(n), norm, level=True, colours=shared, bar=title(data["interference"]), high=most,
        hover=[f"feature {names[i]}: norm {norm[i]:.3f}, interference {shared[i]:.3f}" for i in range(n)],
    )  # fmt: skip
    down = Axis("feature", names=names, reversed=True)
    cells = Panel([Cells(table, "diverging", bar="W_i · W_j")], Axis("feature", names=names), down, width=2.4)
    lengths = Panel([bars], Axis("norm", range=(0, None)), down)
    return Plot([cells, lengths], heading(Source(data), what), shared="y")


@drawn
def sharing(data: xr.Dataset, least_norm: float = 0.5) -> Plot:
    """Dimensions per feature over 1/(1-S) of a ``sweep``: D* as a line, each represented feature's D_i as a point.

    Grey points, left of each sparsity's place: random directions of the same norms.  Dotted: known shapes.
    """
    if "sparsity" not in data.dims:
        raise InputError("This figure is over sparsities; give the data of sweep().")
    data = data.sortby("sparsity")
    x = 1 / (1 - data["sparsity"].values)
    kept = data["norm"].values >= least_norm
    at = x[np.nonzero(kept)[0]]
    rng = np.random.default_rng(0)
    room = float(np.diff(np.log(np.unique(x))).min(initial=0.5))  # points stay nearer to their place than to the next
    left, right = (side * rng.uniform(0.02, 0.3, len(at)) * room for side in (-1, 1))
    random, own = (data[name].values[kept] for name in ("dimensionality_random", "dimensionality"))
    marks = [
        Points(at * np.exp(left), random, "random, of the same norms", GREY, size=5, faint=True),
        Points(at * np.exp(right), own, "D_i", 1, size=5, faint=True),
        Line(x, data["dimensions_per_feature"].values, "D* = m / |W|²"),
    ]
    # Two names that would lie on each other stand at different ends.
    low = ("square antiprism", "triangle")
    shapes = [Rule(d, name=f"{name} {d:.3g}", end="low" if name in low else "high") for name, d in PLATEAUS.items()]
    ticks = [m * 10**k for k in range(6) for m in (1, 2, 5) if x.min() / 2 <= m * 10**k <= 2 * x.max()]
    what = "dimensions per feature"
    panel = Panel([*marks, *shapes], Axis("1 / (1 - S)", ticks=ticks, scale="log"), Axis(what, range=(0, 1.08)))
    return Plot([panel], heading(Source(data), what), size=(640, 380))


@drawn
def psi(data: xr.Dataset, over: str | None = None) -> Plot:
    """Effective features per dimension with the interval over documents; dashed: of states turned at random.

    ``over``: "layer", a line for each dictionary; "width", a line for each layer over sizes of dictionaries.  Default:
    "width" where there are more dictionaries than layers.
    """
    layers, names = data["layer"].values, [str(n) for n in data["dictionary"].values]
    over = over or ("width" if len(names) > len(layers) else "layer")
    if over not in ("layer", "width"):
        raise InputError(f"over={over!r} is unknown. Use 'layer' or 'width'.")
    along, other = ("layer", "dictionary") if over == "layer" else ("dictionary", "layer")
    lines = names if over == "layer" else [f"layer {layer}" for layer in layers]
    marks, sizes = [], data["n_features"].values
    for i, name in enumerate(lines):
        own = data.isel({other: i})
        own = own.isel({along: np.flatnonzero(~np.isnan(own["psi"].values))})
        own = own.sortby("layer" if over == "layer" else "n_features")
        x = own["layer" if over == "layer" else "n_features"].values
        value, low, high, features, fvu = (own[n].values for n in ("psi", "psi_low", "psi_high", "F", "fvu"))
        hover = [f"{over} {x[k]:g}: {value[k]:.3f} (F {features[k]:.0f}, FVU {fvu[k]:.3f})" for k in range(len(x))]
        marks.append(Line(x, value, name * (len(lines) > 1), low, high, hue=i, hover=hover))
        if "psi_null" in own:
            marks.append(Line(x, own["psi_null"].values, "turned", hue=i, dash="dash", markers=False, legend=False))
    wide = np.unique(sizes[~np.isnan(sizes)]).astype(int).tolist()
    across = whole("layer", layers) if over == "layer" else Axis("features of the dictionary", ticks=wide, scale="log")
    panel = Panel([*marks, Rule(1)], across, Axis(title(data["psi"]), range=(0, None)))
    return Plot([panel], heading(Source(data), "effective features per dimension (dashed: states turned at random)"))


GRAM = Chart(gram, ("norm", "interference", "dimensionality"))
SHARING = Chart(sharing, ("W", "dimensionality_random", "dimensions_per_feature"))
PSI = Chart(psi, ("psi", "psi_low", "psi_high", "n_features"))
