"""The lens explorer in a notebook: an anywidget over one small ES module, with a static table beside it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import missing
from workbench.widgets.packing import SCORES, as_pairs, every, gridded, opened, payload

if TYPE_CHECKING:
    import xarray as xr

MODULE = Path(__file__).with_name("lens_explorer.js")
TABLE_ROWS, TABLE_COLUMNS = 13, 24


def explore(readings: Any, *, top_k: int | None = None) -> Any:
    """A live explorer of one reading or dataset, a list, or a mapping of names to them."""
    pairs = as_pairs(readings)
    return _widget_class()(
        payload=payload(pairs, top_k),
        static_html=static_html(opened(pairs[0][1])[0]),
    )


@lru_cache(maxsize=1)
def _widget_class() -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise missing("anywidget", "The live explorer", "notebook") from None

    class LensExplorer(anywidget.AnyWidget):
        """Tokens x layers to walk through.  `selection` says where the reader is, and sets it.

        payload     what is shown, from workbench.widgets.payload()
        selection   {"reading", "prompt", "depth", "position", "token", "metric", "pins"}; depth and position
                    are the coordinates in the dataset, reading and prompt are indices, token is an id
        """

        _esm = MODULE.read_text(encoding="utf-8")
        payload = traitlets.Dict().tag(sync=True)
        selection = traitlets.Dict().tag(sync=True)

        def __init__(self, *args: Any, static_html: str = "", **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._static_html = static_html

        def _repr_mimebundle_(self, **options: Any) -> Any:
            """The widget, and beside it a plain table: what remains in a notebook without a kernel."""
            shown = super()._repr_mimebundle_(**options)
            bundle, metadata = shown if isinstance(shown, tuple) else (shown or {}, {})
            if self._static_html:
                bundle = {**bundle, "text/html": self._static_html}
            return bundle, metadata

    LensExplorer.__qualname__ = "LensExplorer"
    return LensExplorer


def __getattr__(name: str) -> Any:
    if name == "LensExplorer":
        return _widget_class()
    raise AttributeError(f"module 'workbench.widgets.explorer' has no attribute {name!r}")


def static_html(data: xr.Dataset, prompt: int = 0) -> str:
    """A small HTML table of the top tokens of one prompt, layers rising upwards; no script, no kernel.

    Large readings are thinned to what fits; the caption says so.  Raises InputError where there are no tokens
    to show.
    """
    source = gridded(data)
    prompt = source.prompt(prompt)
    real, inputs = source.positions(prompt), source.inputs(prompt)
    rows, columns = every(len(source.depths), TABLE_ROWS), range(min(len(real), TABLE_COLUMNS))
    ids = data["token_id"].isel(prompt=prompt, rank=0).transpose(source.depth, "position").values[:, real]
    score = next((s for s in SCORES if source.has(s)), None)
    shades = source.grid(score, prompt) if score else np.full(ids.shape, np.nan)
    low, high = (np.nanmin(shades), np.nanmax(shades)) if np.isfinite(shades).any() else (0.0, 1.0)
    cell = "padding:1px 4px;text-align:center;white-space:pre;"
    cell += "max-width:9em;overflow:hidden;text-overflow:ellipsis;"
    lines = []
    for row in reversed(rows):
        tds = []
        for column in columns:
            share = (shades[row, column] - low) / ((high - low) or 1)
            tint = f"background:rgba(33,145,140,{0.6 * share:.2f});" if np.isfinite(share) else ""
            text = tokens.html(tokens.visible(source.text(ids[row, column]))) if ids[row, column] >= 0 else ""
            tds.append(f'<td style="{cell}{tint}"><bdi>{text}</bdi></td>')
        lines.append(f'<tr><th scope="row">{source.depths[row]}</th>{"".join(tds)}</tr>')
    foot = "".join(
        f'<th style="{cell}"><bdi>{tokens.html(tokens.visible(inputs[c]))}</bdi></th>' for c in columns
    )
    left_out = []
    if len(rows) < len(source.depths):
        left_out.append(f"{len(rows)} of {len(source.depths)} {source.depth}s")
    if len(columns) < len(real):
        left_out.append(f"the first {len(columns)} of {len(real)} positions")
    if (count := data.sizes["prompt"]) > 1:
        left_out.append(f"prompt {prompt} of {count}")
    said = " · ".join(filter(None, [source.reader, source.model, "top token", *left_out]))
    if score:
        said += f" (shade: {score} {low:.2f} to {high:.2f})"
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:12px">'
        f'<caption style="text-align:left;padding:2px 4px">{tokens.html(said)}</caption>'
        f"<tbody>{''.join(lines)}</tbody>"
        f"<tfoot><tr><th>{tokens.html(str(source.depth))}</th>{foot}</tr></tfoot></table></div>"
    )
