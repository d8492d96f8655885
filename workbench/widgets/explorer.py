"""The lens explorer in a notebook: an anywidget over one small ES module, with a static table beside it.

Two sizes travel.  What a notebook saves is cut to `saved_kb`; the rest stays in the kernel, and the front end asks for
a prompt when it is looked at.  Without a kernel the saved part is explored, where the notebook kept the widget's
state, and the table is read, where it did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError, missing
from workbench.widgets import packing
from workbench.widgets.base import AS_IT_IS, Outlived, slim
from workbench.widgets.packing import COMPONENT, SCORES, Packer, every, gridded
from workbench.widgets.packing import payload as payload

if TYPE_CHECKING:
    import xarray as xr

MODULE = Path(__file__).with_name("lens_explorer.js")
TABLE_ROWS, TABLE_COLUMNS, TABLE_LETTERS = 13, 24, 24
SAVED_KB = 130
METRICS = ("top", "probability", *SCORES, *packing.GRIDS[:-2], packing.GRIDS[-1])


def explore(readings: Any, *, top_k: int | None = None, saved_kb: int | None = SAVED_KB) -> Any:
    """A live explorer of one reading or dataset, a list, or a mapping of names to them.

    top_k      tokens for each cell; all that the reading has by default (fewer where one prompt would pass 6 MB)
    saved_kb   how much of it a saved notebook may hold; the live widget asks the kernel for the rest.  None: all
    """
    return _widget_class()(readings, top_k=top_k, saved_kb=saved_kb)


@lru_cache(maxsize=1)
def _widget_class() -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise missing("anywidget", "The live explorer", "notebook") from None

    class LensExplorer(Outlived, anywidget.AnyWidget):
        """Tokens x layers to walk through.

        selection   where the reader is, readable and settable: a dict of
                    "reading", "prompt"      indices
                    "depth", "position"      coordinates in the dataset (for attributions, depth is a component)
                    "token"                  id of the token that is followed; by default the cell's top token
                    "metric"                 what cells show: "top", "probability", or a variable's name
                    "target"                 index of a target, where several were asked for
                    "depths"                 [lowest, highest] depth shown, or None
                    "panes"                  [[reading, prompt], ...], what is shown side by side
                    "pins"                   [{"reading", "prompt", "depth", "position"}, ...]
                    Set any of these; the others stay.  Raises InputError for a place that is not in the readings.
        """

        _esm = slim(MODULE.read_text(encoding="utf-8"))
        packed = traitlets.Bytes().tag(sync=True)
        selection = traitlets.Dict().tag(sync=True)

        def __init__(
            self, readings: Any, *, top_k: int | None = None, saved_kb: int | None = SAVED_KB, **options: Any
        ) -> None:
            self._packers = packing.packers(readings, top_k)
            block = packing.whole(self._packers) if saved_kb is None else packing.part(self._packers, saved_kb * 1000)
            options.setdefault("layout", {"width": "100%"})
            super().__init__(packed=block, selection=_start(self._packers), **options)
            self.on_msg(self._answer)

        @traitlets.validate("selection")
        def _checked(self, proposal: Any) -> dict[str, Any]:
            return completed(self._packers, self.selection, proposal["value"])

        def _answer(self, _: Any, asked: Any, __: Any) -> None:
            """The front end asks for a prompt that was not sent whole."""
            reading, prompt = _place(self._packers, *asked["ask"])
            block = packing.one(self._packers[reading], prompt)
            self.send({"block": [reading, prompt]}, [block])

        def __repr__(self) -> str:
            return f"<LensExplorer of {', '.join(packing.label(packer.name) for packer in self._packers)}>"

        @property
        def static_html(self) -> str:
            """The table that takes the widget's place."""
            return _table(self._packers)

    LensExplorer.__qualname__ = "LensExplorer"
    return LensExplorer


def __getattr__(name: str) -> Any:
    if name == "LensExplorer":
        return _widget_class()
    raise AttributeError(f"module 'workbench.widgets.explorer' has no attribute {name!r}")


# ---------------------------------------------------------------- where the reader is


def _start(packers: Sequence[Packer]) -> dict[str, Any]:
    first = packers[0]
    others = [[i, 0] for i, packer in enumerate(packers[1:2], 1)]
    return {
        "reading": 0, "prompt": 0, "depth": _plain(first.source.depths[-1]), "position": _columns(first, 0)[-1],
        "token": None, "metric": "top", "target": 0, "depths": None, "panes": [[0, 0], *others], "pins": [],
    }  # fmt: skip


def _plain(depth: Any) -> int | str:
    return int(depth) if isinstance(depth, int | np.integer) else str(depth)


def _columns(packer: Packer, prompt: int) -> list[int]:
    """The `position` coordinates of a prompt's own tokens."""
    real = packer.source.positions(prompt)
    own = packer.data["position"].values[real] if "position" in packer.data.coords else real
    return [int(i) for i in own]


def completed(packers: Sequence[Packer], now: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` over what holds now, every place in it checked.

    Raises InputError for keys, readings, prompts, depths, positions and metrics that are not there.
    """
    if unknown := set(asked) - set(known := _start(packers)):
        raise InputError(f"selection has no {sorted(unknown)}. It has: {', '.join(known)}.")
    found = {**known, **now, **asked}
    place = _place(packers, found["reading"], found["prompt"])
    packer, prompt = packers[place[0]], place[1]
    depths = [_plain(d) for d in packer.source.depths]
    columns = _columns(packer, prompt)
    moved = place != [now.get("reading", 0), now.get("prompt", 0)]
    for name, held in (("depth", depths), ("position", columns)):
        if found[name] in held:
            found[name] = _plain(found[name])
        elif moved and found[name] == now.get(name):  # another prompt was asked for, and no place in it
            found[name] = held[-1]
        else:
            raise InputError(
                f"selection: {name} {found[name]!r} is not in prompt {prompt} of {packer.name}. "
                f"Choose from {_some(held)}."
            )
    if found["metric"] not in METRICS:
        raise InputError(f"selection: there is no metric {found['metric']!r}. There are: {', '.join(METRICS)}.")
    if found["depths"] is not None:
        ends = [_plain(d) for d in found["depths"]]
        if len(ends) != 2 or not set(ends) <= set(depths) or depths.index(ends[0]) > depths.index(ends[1]):
            raise InputError(f"selection: depths {ends} are not [lowest, highest] of {_some(depths)}.")
        found["depths"] = ends
    panes = [_place(packers, *pane) for pane in found["panes"]] or [place]
    if place not in panes:  # the pane that the reader is in goes where the reader goes
        before = [now.get("reading", 0), now.get("prompt", 0)]
        panes[panes.index(before) if before in panes else 0] = place
    token, target = found["token"], found["target"]
    return {
        **found, "reading": place[0], "prompt": place[1], "panes": panes, "target": int(target),
        "token": None if token is None else int(token), "pins": [_pin(packers, pin) for pin in found["pins"]],
    }  # fmt: skip


def _pin(packers: Sequence[Packer], pin: dict[str, Any]) -> dict[str, Any]:
    reading, prompt = _place(packers, pin.get("reading", 0), pin.get("prompt", 0))
    depths = [_plain(d) for d in packers[reading].source.depths]
    if pin.get("depth") not in depths or pin.get("position") not in _columns(packers[reading], prompt):
        raise InputError(f"selection: the pin {pin} is at no depth and position of {packers[reading].name}.")
    return {"reading": reading, "prompt": prompt, "depth": _plain(pin["depth"]), "position": int(pin["position"])}


def _place(packers: Sequence[Packer], reading: Any, prompt: Any) -> list[int]:
    reading, prompt = int(reading), int(prompt)
    if not 0 <= reading < len(packers):
        raise InputError(f"selection: there is no reading {reading}; there are {len(packers)}, counted from 0.")
    if not 0 <= prompt < packers[reading].count:
        name, count = packers[reading].name, packers[reading].count
        raise InputError(f"selection: {name} has no prompt {prompt}; it has {count}, counted from 0.")
    return [reading, prompt]


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 12 else f"{values[0]}, {values[1]}, ... {values[-1]}"


# ---------------------------------------------------------------- without a script


def _table(packers: Sequence[Packer]) -> str:
    tables = [static_html(packer.data) for packer in packers[:3]]
    more = f"<p>{len(packers) - 3} more readings are left out here.</p>" if len(packers) > 3 else ""
    return "".join(tables) + more


def static_html(data: xr.Dataset, prompt: int = 0) -> str:
    """A small HTML table of the top tokens of one prompt, layers rising upwards; no script, no kernel.

    Large readings are thinned to what fits; the caption says so.  Attributions show their contributions.  Raises
    InputError where there is neither.
    """
    source = gridded(data)
    prompt = source.prompt(prompt)
    real, inputs = source.positions(prompt), source.inputs(prompt)
    rows, columns = every(len(source.depths), TABLE_ROWS), range(len(real))[-TABLE_COLUMNS:]
    parts = source.depth == COMPONENT
    score = "contribution" if parts else next((s for s in SCORES if source.has(s)), None)
    shades = source.grid(score, prompt) if score else np.full((len(source.depths), len(real)), np.nan)
    if parts:
        texts = [[f"{x:.2f}" if np.isfinite(x) else "" for x in row] for row in shades]
    else:
        ids = data["token_id"].isel(prompt=prompt, rank=0).transpose(source.depth, "position").values[:, real]
        own = _own_texts(data, source, prompt)
        texts = [[own.get(i, source.text(i)) if i >= 0 else None for i in row] for row in ids.tolist()]
    finite = shades[np.isfinite(shades)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    held = '<bdi dir="ltr" style="white-space:nowrap">'
    lines = []
    for row in reversed(rows):
        tds = "".join(
            f"<td{_tint(shades[row, c], low, high, parts)}>{held}{_cell(texts[row][c], parts)}</bdi></td>"
            for c in columns
        )
        lines.append(f'<tr><th scope="row">{tokens.html(packing.label(str(source.depths[row])))}</th>{tds}</tr>')
    foot = "".join(f'<th scope="col">{held}{_cell(inputs[c])}</bdi></th>' for c in columns)
    left_out = []
    if len(rows) < len(source.depths):
        left_out.append(f"{len(rows)} of {len(source.depths)} {source.depth}s")
    if len(columns) < len(real):
        left_out.append(f"the last {len(columns)} of {len(real)} positions")
    if (count := data.sizes["prompt"]) > 1:
        left_out.append(f"prompt {prompt} of {count}")
    what = "contribution to the logit" if parts else "top token"
    said = " · ".join(filter(None, [source.reader, source.model, what, *left_out]))
    if score:
        said += f" (shade: {score} {low:.2f} to {high:.2f})"
    return (
        f'<div class="lw-table {AS_IT_IS}" style="overflow-x:auto;max-width:100%">{TABLE_STYLE}'
        f'<table style="border-collapse:collapse;font-size:12px;margin:0">'
        f'<caption style="text-align:left;padding:2px 4px;white-space:normal">{tokens.html(packing.label(said))}'
        f"</caption><tbody>{''.join(lines)}</tbody>"
        f'<tfoot><tr><th scope="row">{tokens.html(str(source.depth))}</th>{foot}</tr></tfoot></table></div>'
    )


TABLE_STYLE = (
    "<style>.lw-table td,.lw-table th{padding:1px 5px!important;text-align:center!important;white-space:pre!important;"
    "max-width:11em;overflow:hidden;text-overflow:ellipsis;border:0}</style>"
)


def _tint(value: float, low: float, high: float, signed: bool) -> str:
    if not np.isfinite(value):
        return ""
    if signed:
        share = value / (max(abs(low), abs(high)) or 1)
        red, green, blue = (178, 24, 43) if share > 0 else (33, 102, 172)
        return f' style="background:rgba({red},{green},{blue},{0.55 * abs(share):.2f})"'
    share = (value - low) / ((high - low) or 1)
    return f' style="background:rgba(33,145,140,{0.6 * share:.2f})"'


def _cell(text: str | None, number: bool = False) -> str:
    if text is None:
        return ""
    short = text if len(text) <= TABLE_LETTERS else text[:TABLE_LETTERS] + "…"
    return tokens.html(short if number else tokens.visible(short))


def _own_texts(data: xr.Dataset, source: Any, prompt: int) -> dict[int, str]:
    """Texts of readings that carry each token's text in place, by id."""
    if "token" not in data or "vocab_token" in data:
        return {}
    first = data[["token_id", "token"]].isel(prompt=prompt, rank=0)
    ids, texts = (first[n].transpose(source.depth, "position").values.ravel() for n in ("token_id", "token"))
    return {int(i): str(t) for i, t in zip(ids, texts, strict=True)}
