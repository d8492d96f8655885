"""The chart of :class:`lenses.TokenDrift`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.charts import Chart, heading
from workbench.figures.figure import drawn
from workbench.figures.plot import Axis, Line, Mark, Panel, Plot, whole
from workbench.figures.source import Source

if TYPE_CHECKING:
    import xarray as xr

NULLS = (("drift_mean_null", "dash"), ("drift_mean_null_prompts", "dot"))


@drawn
def token_drift(data: xr.Dataset) -> Plot:
    """How much of what it came in with a state still holds, and how long it is, by depth and kind of position.

    Left: cosine with the position's own state at layer 0; dashed: with those of other positions of the prompt, dotted:
    of other prompts.  Right: geometric mean of the norms.  Bands: intervals over prompts.  The hover tells how many
    positions are sinks, which are in no mean.
    """
    source = Source(data)
    data, depths = source.data, source.depths
    drift: list[Mark] = []
    norm: list[Mark] = []
    shown = [str(m) for m in data["modality"].values]
    bands = set()
    for hue, modality in enumerate(shown):
        known = [str(name) for name in data.data_vars if "modality" in data[name].dims]
        own = {name: data[name].sel(modality=modality).values for name in known}
        if not np.isfinite(own["norm_mean"]).any():
            continue
        sinks = [f"{int(n):,} sinks left out" if n else "" for n in own["sink_count"]]
        for name, panel in (("drift_mean", drift), ("norm_mean", norm)):
            ends = own[f"{name}_low"], own[f"{name}_high"]
            banded = bool(np.isfinite(ends).any())
            if banded:
                bands.add(f"{data[f'{name}_low'].attrs.get('interval', '')}")
            hover = [
                "\n".join(filter(None, [_told(source, name, modality, d, v, low, high), sink]))
                for d, v, low, high, sink in zip(depths, own[name], *ends, sinks, strict=True)
            ]
            low, high = ends if banded else (None, None)
            panel.append(Line(depths, own[name], modality, low, high, hue, hover=hover, legend=panel is drift))
        for name, dash in NULLS:
            if np.isfinite(own[name]).any():
                called = f"{modality}: {source.called(name, short=True)}"
                drift.append(Line(depths, own[name], called, hue=hue, dash=dash, markers=False, width=1.5))
    across = whole(source.depth_label, depths)
    lengths = np.concatenate([np.ravel(line.y) for line in norm if isinstance(line, Line)] or [np.ones(1)])
    wide = np.nanmax(lengths) > 30 * np.nanmin(lengths)
    panels = [
        Panel(drift, across, source.title("drift_mean", short=True)),
        Panel(norm, across, Axis(source.title("norm", short=True), scale="log" if wide else "linear")),
    ]
    band = f"band: 95 % ({', '.join(sorted(bands))})" if bands else ""
    said = ", ".join(filter(None, ["what is left of layer 0", band, source.sinks_left_out()]))
    return Plot(panels, heading(source, said), shows=["drift_mean", "norm"])


def _told(source: Source, name: str, modality: str, depth: int, value: float, low: float, high: float) -> str:
    ends = f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) else ""
    return f"{source.depth} {depth}, {modality}\n{source.title(name, short=True)}: {value:.3g}{ends}"


TOKEN_DRIFT = Chart(token_drift, needs=("drift_mean", "drift_mean_null", "norm_mean"))
