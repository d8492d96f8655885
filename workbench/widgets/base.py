"""What the explorers share: a payload that one small ES module draws, in a notebook and as an offline page.

An explorer is a `View`: the variables it needs, how they become a payload, the static table that stands beside the
widget, and its module.  The lens explorer is the workbench's own; lenses, probes and other packages register theirs
(entry points ``workbench.explorers``, name = "package.module:VIEW [variable, variable]": the variables in brackets say
what it needs without being imported).

A payload is a dict of JSON values and columns of numbers (:mod:`workbench.widgets.packing`).
"""

from __future__ import annotations

import base64
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError, ReadingError, missing
from workbench.figures import colours
from workbench.figures.source import short_name
from workbench.files import atomic_write
from workbench.widgets.packing import decimals as decimals
from workbench.widgets.packing import integers as integers
from workbench.widgets.packing import pack
from workbench.widgets.packing import texts as texts
from workbench.widgets.packing import weight as weight

if TYPE_CHECKING:
    import xarray as xr

COMMON, PAGE = (Path(__file__).with_name(name) for name in ("common.js", "page.html"))
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

    Attributes
    ----------
    name
        Of the widget's class.
    about
        What one sees, in a sentence: pages say it below their title.
    module
        The ES module that draws it; ``common.js`` is put in front of it.
    needs
        Variables or coordinates that the data must have; the entry point repeats them in brackets.
    payload
        (reading or dataset, \\*\\*options) -> what the module draws.  These of its entries are read here:

        * "about" (:func:`about`, and "said", what a page says besides); "left_out", lines that say what was not sent;
        * "start", the selection as the explorer opens, all of its keys; "choices", for keys of it, the values that may
          be chosen (of a key that starts as a list: the values it may hold), absent where `complete` checks all by
          itself; "called", for keys of it, the name that they have in the address of a page (None: not in it);
        * "held", what stays in Python, for `complete` and `answer`.
    static
        (reading or dataset, \\*\\*options) -> an HTML table, which remains where there is no kernel.
    complete
        (asked, now, payload) -> the whole selection, where its keys depend on each other: what was asked for, its
        values checked, over what is selected now.  None: the one over the other.
    several
        Whether it shows several readings, as a list or a mapping of names to them.
    lacking
        (dataset) -> what it lacks, where that is more than missing names.
    answer
        (payload, question) -> (content, block): what the module gets that asks for more (``ask``).
    page
        Options of `payload` that are others on a page than in a notebook, as pairs.
    """

    name: str
    about: str
    module: Path
    needs: tuple[str, ...]
    payload: Callable[..., dict[str, Any]]
    static: Callable[..., str]
    complete: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    several: bool = False
    lacking: Callable[[xr.Dataset], list[str]] | None = None
    answer: Callable[[dict[str, Any], Any], tuple[Any, bytes]] | None = None
    page: tuple[tuple[str, Any], ...] = ()

    def lacks(self, data: xr.Dataset) -> list[str]:
        """What is needed and not there."""
        lost = [name for name in self.needs if name not in data.variables]
        return lost or (self.lacking(data) if self.lacking else [])

    @property
    def widget(self) -> Any:
        """The widget's class."""
        return widget_class(self)

    def explore(self, reading: Any, **options: Any) -> Any:
        """The live widget of a reading or dataset."""
        return self.widget(reading, **options)

    def to_html(self, reading: Any, path: str | os.PathLike[str], title: str | None = None, **options: Any) -> Path:
        """The explorer as one offline page; returns its path."""
        path = Path(path)
        if not path.parent.is_dir():
            raise ReadingError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
        atomic_write(path, self.page_text(reading, title, **options))
        return path

    def page_text(self, reading: Any, title: str | None = None, **options: Any) -> str:
        """The text of the page."""
        shown = self.shown(reading, {**dict(self.page), **options})
        told = shown["about"]
        facts = [
            f"model {tokens.html(told['model'])}" if told["model"] else "model not recorded",
            f"fingerprint <code>{tokens.html(told['fingerprint'])}</code>" if told["fingerprint"] else "",
            tokens.html(told.get("said", "")),
        ]
        title = title or " · ".join(filter(None, [told["reader"], told["model"]]))
        parts = {
            "title": tokens.html(clipped(tokens.plain(title))),
            "about": tokens.html(self.about), "facts": ", ".join(filter(None, facts)),
            "payload": base64.b64encode(packed(shown)).decode(),
            # The same module as in the notebook; a page has no importer, so its one export becomes a name.
            "module": module_text(self.module).replace("export default", "const shown =", 1),
        }  # fmt: skip
        return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], PAGE.read_text(encoding="utf-8"))

    def shown(self, readings: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The payload.  InputError for data that lacks something, and for options that there are not."""
        for reading in each(readings):
            data, _ = opened(reading)
            if lost := self.lacks(data):
                raise InputError(
                    f"{self.name} needs {', '.join(self.needs or lost)}, and {this(data)} has no {', '.join(lost)}: it "
                    f"holds {', '.join(sorted(map(str, data.data_vars)))}. Use .figure() or .frame() for it."
                )
        parameters = inspect.signature(self.payload).parameters
        takes, others = list(parameters)[1:], any(own.kind is own.VAR_KEYWORD for own in parameters.values())
        if unknown := [] if others else sorted(set(options) - set(takes)):
            raise InputError(
                f"{self.name} has no option {unknown[0]!r}. Its options are: {', '.join(takes) or 'none'}."
            )
        return {"view": self.name, "colours": colours.sent(), **self.payload(readings, **options)}


def packed(shown: Mapping[str, Any]) -> bytes:
    """The block of what :meth:`View.shown` gave."""
    return pack({key: value for key, value in shown.items() if key != "held"})


def are_several(readings: Any) -> bool:
    """Whether these are readings, and not one."""
    return isinstance(readings, list | tuple) or (isinstance(readings, Mapping) and not hasattr(readings, "dims"))


def each(readings: Any) -> list[Any]:
    """One reading or several as a list."""
    if not are_several(readings):
        return [readings]
    return list(readings.values() if isinstance(readings, Mapping) else readings)


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
    """One ES module: what the explorers share, then the explorer's own, without comments and indentation.

    Every widget in a notebook carries it.
    """
    lines = (line.strip() for part in (COMMON, path) for line in part.read_text(encoding="utf-8").splitlines())
    lines = (re.sub(r"(?<=[;{}(,]) // [^\"'`]*$", "", line) for line in lines)
    return "\n".join(line for line in lines if line and not line.startswith("//")) + "\n"


# The output before the table is the widget's: shown only once the widget is there, and then instead of the table.
TAKES_TURNS = (
    "<style>"
    ".jp-OutputArea-child:has(+ .jp-OutputArea-child .wx-static):not(:has(.wx)){display:none}"
    ".jp-OutputArea-child:has(.wx) + .jp-OutputArea-child:has(.wx-static){display:none}"
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

    class Explorer(anywidget.AnyWidget):
        _esm = module_text(view.module)
        packed = traitlets.Bytes().tag(sync=True)
        selection = traitlets.Dict().tag(sync=True)

        def __init__(self, reading: Any, *, layout: Any = None, **options: Any) -> None:
            self.payload = view.shown(reading, options)
            self._static = lambda: view.static(reading, **options)
            start = self.payload["start"]
            super().__init__(packed=packed(self.payload), selection=start, layout=layout or {"width": "100%"})
            if view.answer:
                self.on_msg(self._answer)

        def __repr__(self) -> str:
            told = self.payload["about"]
            return f"<{' · '.join(filter(None, [view.name, told['reader'], told['model']]))}>"

        @cached_property
        def static_html(self) -> str:
            """The table that takes the widget's place."""
            return self._static()

        def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            """The widget, and beside it the table: what other viewers of notebooks show."""
            found = super()._repr_mimebundle_(**options)
            bundle, about = found if isinstance(found, tuple) else (found or {}, {})
            return {**bundle, "text/html": self.static_html}, about

        def _ipython_display_(self, **options: Any) -> None:
            """Two outputs: the widget, and the table.

            JupyterLab shows an output's widget or nothing: where the model is gone, it never falls back to another
            form of the same output.  So the table is an output of its own, and hidden while the widget lives.
            """
            from IPython.display import display

            bundle, about = self._repr_mimebundle_(**options)
            said = f"{repr(self)[1:-1]}: run the cell to explore; the table below is its static view."
            display({**bundle, "text/html": f'<p class="{AS_IT_IS}">{tokens.html(said)}</p>'}, metadata=about, raw=True)
            table = f'<div class="wx-static">{TAKES_TURNS}{self.static_html}</div>'
            display({"text/plain": f"{self!r}, static view", "text/html": table}, raw=True)

        def _answer(self, _: Any, question: Any, __: Any) -> None:
            assert view.answer is not None
            content, block = view.answer(self.payload, question)
            self.send(content, [block])

        @traitlets.validate("selection")
        def _complete(self, proposal: Any) -> dict[str, Any]:
            """Keys that are left out keep their values, so that a selection is always whole."""
            asked = checked(proposal["value"], self.payload)
            # Kept here, since validation may come late: after the trait has its new value already.
            start = self.payload["start"]
            now = {key: getattr(self, "_whole", start).get(key, value) for key, value in start.items()}
            self._whole = view.complete(asked, now, self.payload) if view.complete else {**now, **asked}
            return dict(self._whole)

    Explorer.__name__ = Explorer.__qualname__ = view.name
    Explorer.__module__ = __name__
    Explorer.__doc__ = f"""{view.about}

    Parameters
    ----------
    reading
        A Reading or dataset{", a list of them, or a mapping of names to them" if view.several else ""}; options of
        the explorer by name.

    Attributes
    ----------
    selection
        Where the reader is; set it, or some of its keys, to go elsewhere.
    payload
        What is shown.
    """
    return Explorer


def checked(asked: Mapping[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """What is asked for, values as the payload has them.  InputError for keys and values that it does not have."""
    if "choices" not in shown:
        return dict(asked)
    start, choices = shown["start"], shown["choices"]
    if unknown := [key for key in asked if key not in start]:
        raise InputError(f"A selection has no {unknown[0]!r}; it has {', '.join(map(repr, start))}.")
    return {
        key: _scalar(key, value) if key not in choices
        else [allowed(key, one, choices[key]) for one in listed(key, value)] if isinstance(start[key], list)
        else allowed(key, value, choices[key])
        for key, value in asked.items()
    }  # fmt: skip


def listed(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{key}={value!r} cannot be selected: several may be chosen, so give a list, [{value!r}].")
    return list(value)


def _scalar(key: str, value: Any) -> Any:
    if not isinstance(value, str | int | float | np.generic | None):
        raise InputError(f"{key}={value!r} cannot be selected: give one number, one text or None.")
    return value.item() if isinstance(value, np.generic) else value


def allowed(key: str, value: Any, known: Sequence[Any]) -> Any:
    """The value among those that there are."""
    if isinstance(value, str | int | float | np.generic | None):  # arrays and lists would compare one by one
        for own in known:
            if own == value:
                return own
    raise InputError(f"{key}={value!r} cannot be selected; there are {listing(known)}.")


def listing(values: Sequence[Any], most: int = 20) -> str:
    """Values for an error."""
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


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


def clipped(text: str, letters: int = LONGEST) -> str:
    """A text, or its beginning and an ellipsis."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def sendable(text: Any) -> str:
    """A text as a notebook's messages can hold it: halves of surrogate pairs as question marks."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def contexts(sentences: Any, starts: Any, ends: Any, there: Any = True, reach: int = 160) -> dict[str, Any]:
    """Sentences as [before, word, after], cut to what is near the word: each different one once, and which is where.

    ``starts``, ``ends``: the characters of each sentence whose word is marked; ``there``: where there is one at all;
    ``reach``: letters that are kept on either side.
    """
    rows = zip(*(np.ravel(own).tolist() for own in (sentences, starts, ends)), strict=True)
    seen: dict[tuple[str, int, int], int] = {}
    at = np.array([seen.setdefault((str(text), int(a), int(b)), len(seen)) for text, a, b in rows], int)
    order = np.argsort(-np.bincount(at, minlength=len(seen)), kind="stable")  # small numbers for frequent ones compress
    keys = list(seen)
    parts = [[clipped(_running(part)) for part in tokens.around(*keys[i], reach)] for i in order.tolist()]
    return {"texts": parts, "at": integers(np.where(np.ravel(there), np.argsort(order)[at], -1))}


def _running(text: str) -> str:
    """Running text, letter by letter, so that parts add up to the whole: breaks are spaces, controls made visible."""
    return text if text.isprintable() else "".join(" " if c.isspace() else tokens.plain(c) for c in text)


def every(count: int, limit: int) -> Sequence[int]:
    """At most ``limit`` indices out of ``count``, evenly spread, first and last included."""
    if count <= limit:
        return range(count)
    return sorted({int(i) for i in np.linspace(0, count - 1, limit).round()})


# ---------------------------------------------------------------- the table

TABLE = (
    "<style>.wx-still table{border-collapse:collapse;font-size:12px;margin:0}.wx-still caption{text-align:left;"
    "padding:2px 4px;white-space:normal;caption-side:top}.wx-still td,.wx-still th{padding:1px 5px!important;"
    "text-align:left!important;white-space:pre!important;max-width:34em;overflow:hidden;text-overflow:ellipsis;"
    "border:0}</style>"
)


def table(
    said: str | Sequence[str],
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    scale: str = "sequential",
    foot: bool = False,
) -> str:
    """A static HTML table.

    Parameters
    ----------
    said
        The caption, or its parts.
    head
        Names of the columns; `foot`: below them instead of above.
    rows
        A cell is a text, or (text, share): on the colour of that share, 0 to 1 (or -1 to 1 about zero), of a `scale` of
        :mod:`workbench.figures.colours`.  A row that begins with a text is named by it.
    """

    def cell(given: Any, first: bool) -> str:
        text, share = given if isinstance(given, tuple) else (given, None)
        own = f'<bdi dir="ltr">{tokens.html(clipped(str(text)))}</bdi>'
        if share is None:
            return f'<th scope="row">{own}</th>' if first else f"<td>{own}</td>"
        return f'<td style="{colours.cell(scale, share)}">{own}</td>'

    caption = said if isinstance(said, str) else " · ".join(filter(None, said))
    names = "".join(f'<th scope="col"><bdi dir="ltr">{tokens.html(clipped(str(h)))}</bdi></th>' for h in head)
    body = "".join(f"<tr>{''.join(cell(own, not i) for i, own in enumerate(row))}</tr>" for row in rows)
    parts = [f"<tbody>{body}</tbody>", f"<tfoot><tr>{names}</tr></tfoot>"] if foot else [
        f"<thead><tr>{names}</tr></thead>", f"<tbody>{body}</tbody>"
    ]  # fmt: skip
    return (
        f'<div class="wx-still {AS_IT_IS}" style="overflow-x:auto;max-width:100%">{TABLE}'
        f"<table><caption>{tokens.html(clipped(tokens.plain(caption), 600))}</caption>{''.join(parts)}</table></div>"
    )
