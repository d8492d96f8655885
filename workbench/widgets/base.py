"""What the explorers share: a payload that one small ES module draws, in a notebook and as an offline page.

An explorer is a `View`: the variables it needs, how they become a payload, the static table that stands beside the
widget, and its module.  The lens explorer is the workbench's own; lenses, probes and other packages register theirs
(entry points ``workbench.explorers``, name = "package.module:VIEW").

A payload is JSON.  Arrays are {"t": type, "b": base64} of little-endian numbers: u8, u16 and i32 are integers; d8 and
d16 are decimals, (base + step) / 10^digits, the highest step standing for "none".  What a view shows is therefore the
variable rounded to so many decimals, and nothing else.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError, ReadingError, missing
from workbench.figures import colours
from workbench.figures.source import short_name
from workbench.files import atomic_write

if TYPE_CHECKING:
    import xarray as xr

COMMON = Path(__file__).with_name("common.js")
LIMIT = 300_000
"""Bytes of a payload.  A notebook keeps a copy of each widget that it shows."""
AS_IT_IS = "mathjax_ignore tex2jax_ignore"
"""Notebooks typeset "$...$" wherever they find it, and dollars are tokens: MathJax leaves these classes alone."""
LONGEST = 240
"""Letters of one token, name or label; what is cut ends in an ellipsis."""


# ---------------------------------------------------------------- one explorer


@dataclass(frozen=True)
class View:
    """One kind of explorer.

    Attributes:
        name: of the widget's class.
        about: what it shows, in a line.
        module: the ES module that draws it; ``common.js`` is put in front of it.
        needs: variables or coordinates that the data must have.
        payload: (reading or dataset, **options) -> what the module draws.  Three of its entries are read here:
            "about" (:func:`about`, and "said", what a page says besides); "left_out", lines that say what was not
            sent; "start", the selection as the explorer opens, all of its keys; and "choices", for keys of it, the
            values that may be chosen (of a key that starts as a list: the values it may hold).
        static: (reading or dataset, **options) -> an HTML table, which remains where there is no kernel.
        complete: (asked, now, payload) -> the whole selection, where its keys depend on each other: what was asked
            for, its values checked, over what is selected now.  None: the one over the other.
    """

    name: str
    about: str
    module: Path
    needs: tuple[str, ...]
    payload: Callable[..., dict[str, Any]]
    static: Callable[..., str]
    complete: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None

    def lacks(self, data: xr.Dataset) -> list[str]:
        """Variables that are needed and not there."""
        return [name for name in self.needs if name not in data.variables]

    @property
    def widget(self) -> Any:
        """The widget's class."""
        return widget_class(self)

    def explore(self, reading: Any, **options: Any) -> Any:
        """The live widget of a reading or dataset."""
        shown = self._shown(reading, options)
        return self.widget(payload=shown, selection=shown["start"], static_html=self.static(reading, **options))

    def to_html(self, reading: Any, path: str | os.PathLike[str], title: str | None = None, **options: Any) -> Path:
        """The explorer as one offline page; returns its path."""
        path = Path(path)
        if not path.parent.is_dir():
            raise ReadingError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
        text = page(self._shown(reading, options), self.module, title)
        atomic_write(path, text)
        return path

    def _shown(self, reading: Any, options: dict[str, Any]) -> dict[str, Any]:
        data, _ = opened(reading)
        if lacking := self.lacks(data):
            raise InputError(
                f"{self.name} needs {', '.join(self.needs)}, and {this(data)} has no "
                f"{', '.join(lacking)}: it holds {', '.join(sorted(map(str, data.data_vars)))}."
            )
        known_options(self.name, self.payload, options)
        return {"version": 2, "view": self.name, "colours": colours.sent(), **self.payload(reading, **options)}


def known_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """InputError for options that the function behind an explorer does not take; its first argument is the reading."""
    takes = list(inspect.signature(function).parameters.values())[1:]
    if unknown := [] if any(p.kind is p.VAR_KEYWORD for p in takes) else sorted(set(options) - {p.name for p in takes}):
        known = ", ".join(p.name for p in takes if p.name not in ("path", "title")) or "none"
        raise InputError(f"{what} has no option {unknown[0]!r}. Its options are: {known}.")


def this(data: xr.Dataset) -> str:
    return " ".join(filter(None, ["this", str(data.attrs.get("reader", "")), "reading"]))


def opened(reading: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """The dataset and provenance of a Reading, or a bare dataset and nothing."""
    if hasattr(reading, "provenance") and hasattr(reading, "data"):
        return reading.data, reading.provenance or {}
    if not hasattr(reading, "data_vars"):
        raise InputError(
            f"{reading!r:.60} is no reading (its type is {type(reading).__name__}), and only readings can be explored. "
            "Give a Reading, an xarray.Dataset, or a list of these."
        )
    return reading, {}


# ---------------------------------------------------------------- the widget


def module_text(path: Path) -> str:
    """One ES module: what the explorers share, then the explorer's own."""
    return slim(COMMON.read_text(encoding="utf-8") + path.read_text(encoding="utf-8"))


def slim(module: str) -> str:
    """A module without comments and indentation: every widget in a notebook carries it."""
    lines = (line.strip() for line in module.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//")) + "\n"


class Outlived:
    """Beside an anywidget class: it is shown with a table that takes its place where the widget is gone.

    ``static_html`` is the table; the widget's outermost element has the class "wx" or "lw".
    """

    static_html: str

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and beside it the table: what other viewers of notebooks show."""
        bundle, about = self._views(**options)
        return {**bundle, "text/html": self.static_html}, about

    def _views(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        found = super()._repr_mimebundle_(**options)
        return found if isinstance(found, tuple) else (found or {}, {})

    def _ipython_display_(self, **options: Any) -> None:
        """Two outputs: the widget, and the table.

        JupyterLab shows an output's widget or nothing: where the model is gone, it never falls back to another form
        of the same output.  So the table is an output of its own, and hidden while the widget lives.
        """
        from IPython.display import display

        bundle, about = self._views(**options)
        said = f"{repr(self)[1:-1]}: run the cell to explore; the table below is its static view."
        display({**bundle, "text/html": f'<p class="{AS_IT_IS}">{tokens.html(said)}</p>'}, metadata=about, raw=True)
        table = f'<div class="wx-static">{TAKES_TURNS}{self.static_html}</div>'
        display({"text/plain": f"{self!r}, static view", "text/html": table}, raw=True)


# The output before the table is the widget's: shown only once the widget is there, and then instead of the table.
TAKES_TURNS = (
    "<style>"
    ".jp-OutputArea-child:has(+ .jp-OutputArea-child .wx-static):not(:has(.wx,.lw)){display:none}"
    ".jp-OutputArea-child:has(.wx,.lw) + .jp-OutputArea-child:has(.wx-static){display:none}"
    "</style>"
)


@lru_cache
def widget_class(view: View) -> Any:
    """The anywidget class of a view; anywidget is imported here."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise missing("anywidget", "The live explorer", "notebook") from None

    class Explorer(Outlived, anywidget.AnyWidget):
        _esm = module_text(view.module)
        payload = traitlets.Dict().tag(sync=True)
        selection = traitlets.Dict().tag(sync=True)

        def __init__(self, *args: Any, static_html: str = "", **options: Any) -> None:
            options.setdefault("layout", {"width": "100%"})
            super().__init__(*args, **options)
            self.static_html = static_html

        def __repr__(self) -> str:
            told = self.payload.get("about", {})
            return f"<{' · '.join(filter(None, [view.name, told.get('reader'), told.get('model')]))}>"

        @traitlets.validate("selection")
        def _complete(self, proposal: Any) -> dict[str, Any]:
            """Keys that are left out keep their values, so that a selection is always whole."""
            asked = checked(proposal["value"], self.payload)
            # Kept here, since validation may come late: after the trait has its new value already.
            start = self.payload.get("start", {})
            now = {key: getattr(self, "_whole", start).get(key, value) for key, value in start.items()}
            self._whole = view.complete(asked, now, self.payload) if view.complete else {**now, **asked}
            return dict(self._whole)

    Explorer.__name__ = Explorer.__qualname__ = view.name
    Explorer.__module__ = __name__
    Explorer.__doc__ = f"""{view.about}

    payload     what is shown
    selection   where the reader is; set it, or some of its keys, to go elsewhere
    """
    return Explorer


def checked(asked: Mapping[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """What is asked for, values as the payload has them.  InputError for keys and values that it does not have."""
    start, choices = shown.get("start", {}), shown.get("choices", {})
    if unknown := [key for key in asked if key not in start]:
        raise InputError(f"A selection has no {unknown[0]!r}; it has {', '.join(map(repr, start))}.")
    return {
        key: _scalar(key, value) if key not in choices
        else [_allowed(key, one, choices[key]) for one in _listed(key, value)] if isinstance(start[key], list)
        else _allowed(key, value, choices[key])
        for key, value in asked.items()
    }  # fmt: skip


def _listed(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{key}={value!r} cannot be selected: several may be chosen, so give a list, [{value!r}].")
    return list(value)


def _scalar(key: str, value: Any) -> Any:
    if not isinstance(value, str | int | float | np.generic | None):
        raise InputError(f"{key}={value!r} cannot be selected: give one number, one text or None.")
    return value.item() if isinstance(value, np.generic) else value


def _allowed(key: str, value: Any, allowed: list[Any]) -> Any:
    if isinstance(value, str | int | float | np.generic | None):  # arrays and lists would compare one by one
        for own in allowed:
            if own == value:
                return own
    raise InputError(f"{key}={value!r} cannot be selected; there are {listing(allowed)}.")


def listing(values: Sequence[Any], most: int = 20) -> str:
    """Values for an error."""
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


# ---------------------------------------------------------------- the page

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
# The policy makes "no network" a property of the file: the browser itself refuses every request.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --bg: #fff; --ink: #1b2130; --soft: #5d6675; }}
@media (prefers-color-scheme: dark) {{ :root {{ --bg: #14171f; --ink: #e2e6ee; --soft: #9aa4b4; }} }}
body {{ margin: 0; padding: 14px clamp(8px, 2vw, 24px) 24px; background: var(--bg); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 18px; margin: 0; overflow-wrap: anywhere; }}
header p {{ margin: 2px 0 12px; color: var(--soft); overflow-wrap: anywhere; }}
code {{ font: 12px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
</style>
</head>
<body>
<header><h1>{title}</h1>
<p>{about}</p>
</header>
<main id="explorer"></main>
<noscript>This page draws itself with a script that it carries; scripts are switched off here.</noscript>
<script type="application/json" id="payload">{payload}</script>
<script type="module">
{module}
{{
  // A notebook's widget model, as much of it as the module asks for; el.model lets a script on the page select, too.
  const state = {{ payload: JSON.parse(document.getElementById("payload").textContent) }}, heard = {{}};
  state.selection = state.payload.start;
  const model = {{
    get: (name) => state[name],
    set: (name, value) => {{ state[name] = value; (heard[`change:${{name}}`] || []).forEach((f) => f()); }},
    on: (event, f) => {{ (heard[event] ||= []).push(f); }},
    off: (event, f) => {{ heard[event] = (heard[event] || []).filter((g) => g !== f); }},
    save_changes() {{}},
  }};
  const el = document.getElementById("explorer");
  el.model = model;
  shown.render({{ model, el }});
}}
</script>
</body>
</html>
"""


def page(shown: dict[str, Any], module: Path, title: str | None = None) -> str:
    """The text of the page of a payload."""
    told = shown["about"]
    parts = []
    if told["model"]:
        parts.append(f"model {tokens.html(told['model'])}")
    if told["fingerprint"]:
        parts.append(f"fingerprint <code>{tokens.html(told['fingerprint'])}</code>")
    if told.get("said"):
        parts.append(tokens.html(told["said"]))
    if title is None:
        title = " · ".join(filter(None, [told["reader"], told["model"]]))
    # The same module as in the notebook; a page has no importer, so its one export becomes a name.
    return PAGE.format(
        policy=POLICY,
        title=tokens.html(title),
        about=", ".join(parts) or "model not recorded",
        payload=script_json(shown),
        module=module_text(module).replace("export default", "const shown =", 1),
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a <script> element: no text in it can end it or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------- payloads


def about(reading: Any) -> dict[str, str]:
    """Whose reading it is: reader, model and the model's fingerprint."""
    data, provenance = opened(reading)
    model = provenance.get("model") or {}
    names = {
        "reader": data.attrs.get("reader") or data.attrs.get("instrument") or "",
        "model": short_name(str(model.get("name") or data.attrs.get("model", ""))),
        "fingerprint": model.get("fingerprint") or "",
    }
    return {key: clipped(tokens.plain(str(name))) for key, name in names.items()}


def integers(values: Any) -> dict[str, Any]:
    """Integers from -1 on; -1, "none", is the highest step of an unsigned type."""
    values = np.asarray(values)
    high = int(values.max(initial=0))
    if values.min(initial=0) < -1 or high >= 65535:
        return _packed("i32", values.astype("<i4"))
    kind, dtype = ("u8", "<u1") if high < 255 else ("u16", "<u2")
    return _packed(kind, values.astype(np.int64).astype(dtype))


def decimals(values: Any, digits: int) -> dict[str, Any]:
    """Numbers rounded to so many decimals; to fewer where their range is too wide for 65535 steps.  NaN: none."""
    values = np.asarray(values, dtype=np.float64)
    known = values[np.isfinite(values)]
    while known.size and round((known.max() - known.min()) * 10**digits) > 65533:
        digits -= 1
    scaled = np.round(values * 10.0**digits)
    there = np.isfinite(scaled)
    low, high = (int(scaled[there].min()), int(scaled[there].max())) if there.any() else (0, 0)
    kind, dtype, none = ("d8", "<u1", 255) if high - low < 255 else ("d16", "<u2", 65535)
    steps = np.where(there, scaled - low, none).astype(dtype)
    return {**_packed(kind, steps), "digits": digits, "base": low}


def numbers(packed: dict[str, Any]) -> np.ndarray:
    """What :func:`integers` and :func:`decimals` packed, as the front end reads it."""
    kind, raw = packed["t"], base64.b64decode(packed["b"])
    steps = np.frombuffer(raw, {"8": "<u1", "16": "<u2", "32": "<i4"}[kind[1:]])
    if kind == "i32":
        return steps.astype(int)
    none = steps == (255 if kind.endswith("8") else 65535)
    if kind[0] == "u":
        return np.where(none, -1, steps.astype(int))
    return np.where(none, np.nan, (packed["base"] + steps.astype(float)) / 10.0 ** packed["digits"])


def _packed(kind: str, values: np.ndarray) -> dict[str, Any]:
    return {"t": kind, "b": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()}


def clipped(text: str, letters: int = LONGEST) -> str:
    """A text, or its beginning and an ellipsis."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def sendable(text: Any) -> str:
    """A text as a notebook's messages can hold it: halves of surrogate pairs as question marks."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def weight(value: Any) -> int:
    """Bytes of a part of a payload."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def every(count: int, limit: int) -> Sequence[int]:
    """At most ``limit`` indices out of ``count``, evenly spread, first and last included."""
    if count <= limit:
        return range(count)
    return sorted({int(i) for i in np.linspace(0, count - 1, limit).round()})


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], scale: str = "sequential") -> str:
    """A static HTML table.

    A cell is a text, or (text, share): on the colour of that share, 0 to 1 (or -1 to 1 about zero), of a ``scale`` of
    :mod:`workbench.figures.colours`.
    """
    style = "padding:1px 5px;text-align:left;white-space:nowrap;max-width:34em;overflow:hidden;text-overflow:ellipsis;"

    def cell(given: Any) -> str:
        text, share = given if isinstance(given, tuple) else (given, None)
        tint = colours.cell(scale, share) if share is not None else ""
        return f'<td style="{style}{tint}"><bdi>{tokens.html(clipped(str(text)))}</bdi></td>'

    top = "".join(f'<th style="{style}"><bdi>{tokens.html(clipped(str(h)))}</bdi></th>' for h in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f'<div class="{AS_IT_IS}" style="overflow-x:auto;max-width:100%">'
        '<table style="border-collapse:collapse;font-size:12px;margin:0">'
        f'<caption style="text-align:left;padding:2px 4px;white-space:normal">{tokens.html(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
