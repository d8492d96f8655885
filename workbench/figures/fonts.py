"""Fonts inside an svg: for every font that its text is drawn in, the few glyphs that it uses.

Without them an svg names fonts and hopes; another machine draws other ones, and labels that fitted no longer do.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape, unescape
from typing import Any
from xml.etree import ElementTree

from workbench.figures import drawing

_STYLE = re.compile(r"font-family:\s*([^;]+)")
_SVG = "{http://www.w3.org/2000/svg}"
Look = tuple[str, str, str]
"""font-family as it is written, weight, style."""


def embedded(svg: str) -> str:
    """The svg with its fonts in it (WOFF, as data) and named first wherever text asks for a font.

    Raises ExportError without fontTools, and where a font's file cannot be read.
    """
    try:
        from fontTools import subset
        from fontTools.ttLib import TTCollection, TTFont
    except ImportError:
        raise drawing.ExportError(
            'Fonts are put into an svg by the package "fonttools", which is not installed. Install it with: pip '
            "install fonttools. Or save the figure as .pdf."
        ) from None

    rules: list[str] = []
    families: dict[str, list[str]] = {}
    for (family, weight, style), text in sorted(_texts(svg).items()):
        left = set(text)
        for name in drawing.faces("".join(sorted(left)), family, weight, style):
            content = drawing.font(name)
            if content is None:
                raise drawing.ExportError(
                    f"The font {name} cannot be read, so it cannot be put into the svg. Save the figure as .pdf, which "
                    "holds its fonts."
                )
            file = io.BytesIO(content)
            if content[:4] == b"ttcf":
                own = next(f for f in TTCollection(file).fonts if f["name"].getDebugName(6) == name)
            else:
                own = TTFont(file)
            held = {c for c in left if ord(c) in own.getBestCmap()}
            if not held:
                continue
            left -= held
            called = str(own["name"].getBestFamilyName())
            options = subset.Options(hinting=False, layout_features=[], notdef_outline=True, ignore_missing_glyphs=True)
            options.flavor, options.name_IDs = "woff", [1, 2]
            options.drop_tables += ["FFTM"]
            cut = subset.Subsetter(options)
            cut.populate(text="".join(held))
            cut.subset(own)
            out = io.BytesIO()
            own.flavor = "woff"
            own.save(out)
            data = base64.b64encode(out.getvalue()).decode()
            rules.append(
                f"@font-face{{font-family:'{called}';font-weight:{weight};font-style:{style};"
                f"src:url(data:font/woff;base64,{data}) format('woff')}}"
            )
            families.setdefault(family, [])
            if called not in families[family]:
                families[family].append(called)

    def named(match: re.Match[str]) -> str:
        family = unescape(match[1]).strip()
        first = ", ".join(f"'{f}'" for f in families.get(family, []))
        return f"font-family: {escape(', '.join(filter(None, [first, family])), quote=False)}"

    start = svg.index(">") + 1
    return f"{svg[:start]}<style>{''.join(rules)}</style>{_STYLE.sub(named, svg[start:])}"


def _texts(svg: str) -> dict[Look, str]:
    """The characters that are drawn in each look."""
    found: dict[Look, set[str]] = {}

    def walk(node: Any, look: Look) -> None:
        rules = [rule.partition(":") for rule in node.get("style", "").split(";")]
        style = {name.strip(): value.strip() for name, _, value in rules}
        family, weight, slant = look
        weight = style.get("font-weight", weight)
        weight = {"normal": "400", "bold": "700"}.get(weight) or weight
        look = (style.get("font-family", family), weight, style.get("font-style", slant))
        if node.tag in (f"{_SVG}text", f"{_SVG}tspan"):
            found.setdefault(look, set()).update(node.text or "")
        for child in node:
            walk(child, look)
            if node.tag in (f"{_SVG}text", f"{_SVG}tspan"):
                found.setdefault(look, set()).update(child.tail or "")

    walk(ElementTree.fromstring(svg), ("sans-serif", "400", "normal"))
    return {look: "".join(sorted(c for c in chars if c.isprintable())) for look, chars in found.items() if chars}
