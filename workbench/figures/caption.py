"""What a figure is of, in a sentence or two for LaTeX: model, reader and settings, prompts, nulls and intervals.

Nothing is made up: what the reading's provenance does not say is not in the caption.  Nulls, floors, chance levels and
intervals are those that the reading's variables say they are (:mod:`workbench.variables`) of what is shown, and what
the figure says of itself; where there is none, the caption says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures.source import short_name
from workbench.variables import CONTROLS, called, controls_of

if TYPE_CHECKING:
    from workbench.figures.plot import Plot

# Settings of these names are about a control; its variables tell of it, and they only where variables tell nothing.
SETTINGS = {*CONTROLS, "level", *(f"{what}{s}" for what in ("null", "floor", "control", "interval") for s in ("", "s"))}
COUNTED = {"null_positions"}
"""What came of a reading and is no setting: the same reader on other prompts would seem another one."""
# What pdfLaTeX has no letter for, or another one.
SYMBOLS = {
    "…": r"\ldots{}", "–": "--", "—": "---", "−": r"\(-\)", "‖": r"\(\Vert\)", "×": r"\(\times\)", "±": r"\(\pm\)",
    "≥": r"\(\geq\)", "≤": r"\(\leq\)", "≈": r"\(\approx\)", "→": r"\(\rightarrow\)", "★": r"\(\star\)",
    "○": r"\(\circ\)", "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}", "“": "``", "”": "''", "’": "'{}",
    "‘": "`{}", "∞": r"\(\infty\)", "Δ": r"\(\Delta\)", "λ": r"\(\lambda\)", "ψ": r"\(\psi\)", "◌": r"\(\circ\)",
}  # fmt: skip
LETTERS = re.compile("[\x20-\x7e\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f]")  # T1 has these


def captions(
    figures: Sequence[Any],
    letters: Sequence[str],
    of: Sequence[Any] | None = None,
    date: bool = False,
    numbered: Sequence[bool] | None = None,
) -> str:
    """One paragraph for one figure or several panels; what they have in common is said once.

    ``figures``: figures, or the plots in them; ``of``: what each is of; ``numbered``: whether places stand for tokens.
    """
    given = list(of) if of is not None else [None] * len(figures)
    if len(given) != len(figures):
        raise InputError(f"of= has {len(given)} readings for {len(figures)} panels. Give one for each, or None.")
    known = [_known(figure, own, date) for figure, own in zip(figures, given, strict=True)]
    drawn = [getattr(figure, "plot", figure) for figure in figures]
    shown = [_shown(plot, own) for plot, own in zip(drawn, known, strict=True)]
    origins = [_origin(own, plot) for own, plot in zip(known, drawn, strict=True)]
    for i, figure in enumerate(figures):
        if numbered[i] if numbered is not None else getattr(figure, "_numbered", False):
            origins[i].append("Positions are numbered, since their tokens do not fit.")
    common = [s for s in origins[0] if all(s in other for other in origins)]
    parts = []
    for i, own in enumerate(origins):
        name = rf"\textbf{{{latex(letters[i])}}} " if letters else ""
        parts.append(name + " ".join(filter(None, [_sentence(shown[i]), *(s for s in own if s not in common)])))
    return " ".join([*parts, *common])


def by_name(of: Any) -> bool:
    """Whether these are several readings by name, and not one (a dataset is a mapping, too)."""
    return isinstance(of, Mapping) and not hasattr(of, "attrs")


def about(of: Any) -> dict[str, Any]:
    """What a caption needs of a reading, a dataset or a table, as plain values (they travel inside the figure).

    Of several by name: what is the same of all, their names, and the models, readers and controls of each.
    """
    if by_name(of):
        return _about_several({str(name): about(own) for name, own in of.items()})
    data = getattr(of, "data", of)
    attrs, provenance = dict(getattr(data, "attrs", {})), getattr(of, "provenance", None) or {}
    model = provenance.get("model") or {}
    reader = {k: v for k, v in (provenance.get("reader") or {}).items() if k not in COUNTED}
    found = {
        "model": short_name(str(model.get("name") or attrs.get("model") or "")),
        "fingerprint": model.get("fingerprint"), "dtype": model.get("dtype"),
        "reader": reader.pop("name", None) or attrs.get("reader") or attrs.get("instrument") or attrs.get("measure"),
        "settings": {k: v for k, v in reader.items() if isinstance(v, str | int | float) and str(v)},
        "prompts": provenance.get("prompts"), "prompts_read": provenance.get("prompts_read"),
        "documents": _plain(attrs.get("documents")), "corpus": _corpus(reader),
        "date": str(provenance.get("date") or "")[:10], "provenance": bool(provenance),
        "version": (provenance.get("versions") or {}).get("latent-workbench"),
        "controls": _controls(data),
    }  # fmt: skip
    return {k: v for k, v in found.items() if v not in (None, "", {})}


def _about_several(known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    first, *others = known.values()
    found = {k: v for k, v in first.items() if all(own.get(k) == v for own in others)} | {"readings": list(known)}
    for key in ("model", "reader"):
        found[key] = ", ".join(dict.fromkeys(own[key] for own in known.values() if key in own))
    said = [(name, text) for own in known.values() for name, texts in own.get("controls", {}).items() for text in texts]
    return found | {"controls": {name: [t for n, t in dict.fromkeys(said) if n == name] for name, _ in said}}


def _controls(data: Any) -> dict[str, list[str]]:
    """Variable -> what it is compared with, "null: ...", from the roles of those of the others that say them."""
    found: dict[str, list[str]] = {}
    for name in map(str, getattr(data, "data_vars", ())):
        said, absent = [], {}
        for role, names in controls_of(data, name).items():
            kind = "interval" if role in ("low", "high") else role
            for own in (data[n] for n in names):
                if own.dtype.kind != "f" or not np.isnan(own.values).all():
                    if kind == "interval":  # both ends in one sentence
                        how = own.attrs.get("interval") or data.attrs.get("interval")
                        said.append(f"interval of {called(data[name])}" + (f": {how}" if how else ""))
                    else:
                        said.append(called(own) if role in ("p", "q") else f"{kind}: {called(own)}")
                elif own.attrs.get("reason"):
                    absent.setdefault(own.attrs["reason"], {})[kind] = None
        said += [f"no {_listed(kinds)}: {reason}" for reason, kinds in absent.items()]
        if said:
            found[name] = list(dict.fromkeys(said))
    return found


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def latex(text: str) -> str:
    """Text for LaTeX (any engine); what T1 fonts do not have is written as its code, U+65E5."""
    out = []
    for part in re.split(f"([{''.join(SYMBOLS)}])", text):
        if part in SYMBOLS:
            out.append(SYMBOLS[part])
            continue
        for char in part:
            shown = tokens.latex(char)
            out.append(shown if shown != char or LETTERS.fullmatch(char) else rf"\texttt{{U+{ord(char):04X}}}")
    return re.sub(r"([-'`])\{\}(?!\1)", r"\1", "".join(out))  # alone they make no ligature


def _known(figure: Any, of: Any, date: bool) -> dict[str, Any]:
    found = about(of) if of is not None else getattr(figure, "_of", None)
    if not found or not (found.get("model") or found.get("reader")):
        raise InputError(
            "This figure does not know what it is of, so its caption could not say. Give the reading or the table that "
            "it was drawn from: figure.caption(reading)."
        )
    return found if date else {k: v for k, v in found.items() if k != "date"}


def _shown(plot: Plot, known: dict[str, Any]) -> str:
    """The plot's own title, less what the rest of the caption says."""
    parts = [p for p in plot.title.split(" · ") if p and p not in (known.get("model"), known.get("reader"))]
    return ", ".join(parts)


def _sentence(text: str) -> str:
    return latex(text[:1].upper() + text[1:]) + "." if text else ""


def _origin(known: dict[str, Any], plot: Plot) -> list[str]:
    shows, own = plot.shows, list(plot.controls)
    found, of = [], known.get("controls", {})
    if readings := known.get("readings"):
        found.append(f"Readings: {latex(', '.join(readings))}.")
    if model := known.get("model"):
        more = [rf"fingerprint \texttt{{{latex(known['fingerprint'])}}}"] if known.get("fingerprint") else []
        more += [latex(known["dtype"])] if known.get("dtype") else []
        found.append(rf"Model: \texttt{{{latex(model)}}}" + (f" ({', '.join(more)})." if more else "."))
    settings = dict(known.get("settings", {}))
    told = {k: settings.pop(k) for k in list(settings) if k in SETTINGS}
    if reader := known.get("reader"):
        given = ", ".join(f"{latex(k.replace('_', ' '))} {latex(_said(v))}" for k, v in settings.items())
        found.append(f"Reader: {latex(str(reader))}" + (f" ({given})." if given else "."))
    count, read = known.get("prompts"), known.get("prompts_read")
    if count is not None:
        part = f"{read} of {count}" if read not in (None, count) else str(count)
        found.append(f"Data: {part} prompt{'s' * (part != '1')}.")
    elif documents := known.get("documents"):
        found.append(f"Data: {documents} document{'s' * (documents != 1)}.")
    if corpus := known.get("corpus"):
        found.append(f"Contexts: {latex(corpus)}.")
    said = own + [text for name in (of if shows is None else shows) for text in of.get(name, [])]
    if not said and not of:
        said = [f"{k.replace('_', ' ')}: {_said(v)}" for k, v in told.items()]
    found += [_sentence(text.rstrip(".")) for text in dict.fromkeys([*said, plot.note]) if text not in plot.title]
    if known.get("provenance") and not said:
        found.append("The reading names no null and no interval of what is shown.")
    if known.get("date"):
        with_ = f" with latent-workbench {latex(known['version'])}" if known.get("version") else ""
        found.append(f"Read on {known['date']}{with_}.")
    return found


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value != value.strip():  # a space that would not be seen
        return f"'{value}'"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _corpus(reader: dict[str, Any]) -> str | None:
    """An index's contexts, where the reader looked things up in one."""
    index = reader.get("index")
    if not isinstance(index, dict) or "n_rows" not in index:
        return None
    corpus = index.get("corpus")
    sentences = corpus.get("sentences") if isinstance(corpus, dict) else None
    return f"{index['n_rows']:,} states" + (f" chosen from {sentences:,} sentences" if sentences else "")
