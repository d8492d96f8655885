"""Docstrings as the API pages show them: prose runs on, and what is indented keeps its lines and columns.

The docstrings here are plain text, written to be read in a terminal: aligned columns, hanging indents, shapes in
brackets.  Parsers of docstring styles would take those apart, so they are shown as they are.  Two things of
reStructuredText are known: ``code``, and :func:`name`, which becomes a link where the site has the name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)\.?([^`]+)`")
CODE = re.compile(r"``([^`]+)``")


class Docstrings(griffe.Extension):
    """Turns every docstring into the HTML that the page shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None and not isinstance(obj.docstring, _Shown):
            obj.docstring = _Shown(_Writer(obj).written(obj.docstring.value), parent=obj)


class _Shown(griffe.Docstring):
    """One that is HTML already."""


class _Writer:
    """Docstrings of one object, in which names are looked up."""

    def __init__(self, of: griffe.Object) -> None:
        self.of = of

    def written(self, text: str) -> str:
        """<p> for prose; <div> with its lines kept for what is indented or stands in columns."""
        return "\n\n".join(self._blocks(text.strip("\n").splitlines()))

    def _blocks(self, lines: list[str]) -> Iterator[str]:
        prose: list[str] = []
        kept: list[str] = []
        for line in [*lines, ""]:
            indented = line.startswith(" ")
            if kept and line.strip() and not indented:
                yield self._kept(kept)
                kept = []
            if indented or (kept and not line.strip()):
                if prose:
                    yield self._prose(prose)
                    prose = []
                kept.append(line)
            elif line.strip():
                prose.append(line)
            elif prose:
                yield self._prose(prose)
                prose = []
        if any(line.strip() for line in kept):
            yield self._kept(kept)

    def _prose(self, lines: list[str]) -> str:
        if sum("   " in line for line in lines) > 1:
            return self._kept(lines)
        if len(lines) == 1 and re.fullmatch(r"[A-Z]\w+:", lines[0]):
            return f'<p class="lw-section">{lines[0]}</p>'
        return f"<p>{self._inline(' '.join(lines))}</p>"

    def _kept(self, lines: list[str]) -> str:
        margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        text = "\n".join(line[margin:] for line in lines).rstrip()
        return f'<div class="lw-kept">{self._inline(text, "span")}</div>'

    def _inline(self, text: str, tag: str = "code") -> str:
        text = html.escape(text, quote=False)
        text = CODE.sub(rf'<{tag} class="lw-code">\1</{tag}>', text)
        return ROLE.sub(self._linked, text)

    def _linked(self, found: re.Match[str]) -> str:
        name = found[2]
        shown = f"<code>{name.rsplit('.', 1)[-1] if found[1] else name}</code>"
        first, _, rest = name.partition(".")
        try:
            target = ".".join(filter(None, (self.of.resolve(first), rest)))
        except griffe.NameResolutionError:
            target = name
        return f'<autoref identifier="{target}" optional>{shown}</autoref>'
