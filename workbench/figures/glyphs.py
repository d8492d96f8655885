"""Texts as type: how wide they are, where they break, and what stands for a character that no font has.

The type is DejaVu Sans, which matplotlib brings along: a figure is the same on every machine.  What DejaVu does not
have (Chinese, Japanese, Korean, Devanagari, ...) is taken from installed fonts, and else written as its escape.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import accumulate

from matplotlib import font_manager, ft2font

FAMILY = "DejaVu Sans"
SMALLEST = 6.0
"""Points of the smallest type on paper."""
_EM = 100
_NO_TEXT = ("Last Resort", "cm", "STIXNon", "STIXSize")
"""Families of formulas and placeholders: what they have at a code point need not be that letter."""
_PLAIN = (400, "normal", "regular", "book", "medium")
_FORMAT = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f]")
"""Marks that are never seen: they shape or order what is around them."""


@lru_cache(maxsize=1)
def _dejavu() -> ft2font.FT2Font:
    font = ft2font.FT2Font(font_manager.findfont(FAMILY))
    font.set_size(_EM, 72)
    return font


@lru_cache(maxsize=1)
def _charmap() -> frozenset[int]:
    return frozenset(_dejavu().get_charmap())


@lru_cache(maxsize=4096)
def family(char: str) -> str | None:
    """The installed family that has a character; None where there is none."""
    if ord(char) in _charmap():
        return FAMILY
    for name in _installed():
        font = _font(name)
        if font is not None and font.get_char_index(ord(char)):
            return name
    return None


@lru_cache(maxsize=1)
def _installed() -> list[str]:
    """Families of text, those made for many scripts first."""
    names = {
        entry.name for entry in font_manager.fontManager.ttflist
        if not entry.name.startswith(_NO_TEXT) and entry.style == "normal" and entry.weight in _PLAIN
    }  # fmt: skip
    return sorted(names, key=lambda name: (not name.startswith(("Noto Sans", "Droid Sans")), name))


@lru_cache(maxsize=64)
def _font(name: str) -> ft2font.FT2Font | None:
    """The file that matplotlib takes for a family; None where a PDF would not take it as TrueType."""
    path = font_manager.findfont(font_manager.FontProperties(family=name), rebuild_if_missing=False)
    try:
        return ft2font.FT2Font(path) if _truetype(path) else None
    except (OSError, RuntimeError):  # a file that cannot be read
        return None


def _truetype(path: str) -> bool:
    """Whether a font has TrueType outlines: others become Type 3 in a PDF, which venues refuse."""
    with open(path, "rb") as file:
        return file.read(4) in (b"\x00\x01\x00\x00", b"true", b"ttcf")


def families(texts: list[str]) -> list[str]:
    """The families that these texts need beside DejaVu Sans."""
    found = [family(char) for char in sorted(set("".join(texts))) if char > "\x7f"]
    return list(dict.fromkeys(name for name in found if name and name != FAMILY))


def missing(texts: list[str]) -> set[str]:
    """Characters that no font here has."""
    return {c for c in set("".join(texts)) if c > "\x7f" and not _FORMAT.match(c) and family(c) is None}


def drawn(text: str) -> str:
    """The text with an escape, such as \\\\u65e5, for every character that no font here has."""
    if text.isascii():
        return text
    out = []
    for char in text:
        if char <= "\x7f" or family(char):
            out.append(char)
        elif not _FORMAT.match(char):
            out.append(escape(char))
    return "".join(out)


def escape(char: str) -> str:
    """How a character is written that no font has."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


# ---------------------------------------------------------------- measures, in sizes of the type


def width(text: str) -> float:
    """How wide a text is, in sizes of its type."""
    return sum(map(_advance, text))


@lru_cache(maxsize=8192)
def _advance(char: str) -> float:
    if ord(char) in _charmap():
        glyph = _dejavu().load_char(ord(char), flags=ft2font.LoadFlags.NO_HINTING)
        return glyph.linearHoriAdvance / 65536 / _EM
    if unicodedata.combining(char) or _FORMAT.match(char):
        return 0.0
    return 1.05 if unicodedata.east_asian_width(char) in "WF" else 0.8


def cut(text: str, room: float) -> str:
    """The text, or as much of it as there is room for and an ellipsis."""
    if width(text) <= room:
        return text
    out, left = "", room - width("…")
    for char in text:
        left -= _advance(char)
        if left < 0:
            break
        out += char
    return out + "\u2069" * out.startswith("\u2068") + "…"  # closes the isolate of a text that runs right to left


def broken(text: str, room: float, most: int = 6) -> list[str]:
    """Lines no wider than ``room``: broken between parts (" · ", ", ", " ("), words, behind "_", or anywhere.

    A text of more than about ``most`` lines is cut.
    """
    text = cut(text, most * room)
    lines: list[str] = []
    line = ""
    for part in re.split(r"(?<=[·,]) | (?=\()", text):
        if line and width(line) > 0.4 * room and width(f"{line} {part}") > room:
            lines.append(line)
            line = ""
        for word in [part] if width(f"{line} {part}".strip()) <= room else part.split(" "):
            if line and width(f"{line} {word}") > room:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
            while width(line) > room and len(line) > 1:
                head = max(1, sum(end <= room for end in accumulate(map(_advance, line))))
                head = line.rfind("_", 1, head) + 1 or head
                lines.append(line[:head])
                line = line[head:]
    return [*lines, line]
