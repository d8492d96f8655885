"""How a token is shown to a person.

A vocabulary entry is stored in its tokenizer's own alphabet ("Ġthe", "▁the", "<0xE6>", "##ing").  This file
turns ids into the text that they stand for, joins characters that a tokenizer has split across tokens, and
escapes the result for the places it is drawn in.  Nothing else in the workbench formats token text.

    token_texts(tok, [262, 198])      [" the", "\\n"]       raw text, for data
    visible(" the\\n")                 "·the↵"             for people
    html(...)  plotly(...)  latex(...)                     escaped for one medium; visible() first, for tokens
"""

from __future__ import annotations

import html as _html
import json
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from workbench.errors import InputError

CONTINUED = "⋯"  # this token holds further bytes of a character that an earlier token began
SPACE, NEWLINE, TAB, EMPTY = "·", "↵", "⇥", "∅"

UNKNOWN = 0.2
"""Share of unknown tokens above which what is read of a text is not of what it says."""
_HALF = re.compile("[\ud800-\udfff]")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_RTL = {"R", "AL", "AN"}
_JOINERS = "\u200c\u200d"
_ISOLATE, _POP = "\u2068", "\u2069"


# ---------------------------------------------------------------- ids to text


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The raw text of each id on its own, leading space kept.

    Bytes that are no whole character by themselves are written ⟨E6⟩.  Special tokens are given verbatim.  An
    id that the tokenizer does not know (padded vocabularies have them), or any id without a tokenizer, is
    "#123"; a negative id means "no token" and is "".
    """
    return [_decode(p) if isinstance(p, bytes) else p for p in _pieces(tokenizer, ids)]


def joined_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of each id of one sequence, characters that span tokens joined.

    The first token of a split character carries the whole character; in the others "⋯" stands where the rest
    of its bytes are.  Leaving the marks out, the texts concatenate to what the sequence says.
    """
    pieces = _pieces(tokenizer, ids)
    texts: list[str] = [""] * len(pieces)
    start = 0
    while start < len(pieces):
        piece = pieces[start]
        if isinstance(piece, str):
            texts[start] = piece
            start += 1
            continue
        stop = start
        while stop < len(pieces) and isinstance(pieces[stop], bytes):
            stop += 1
        texts[start:stop] = _join([p for p in pieces[start:stop] if isinstance(p, bytes)])
        start = stop
    return texts


def _join(run: list[bytes]) -> list[str]:
    """Texts of consecutive byte pieces: each character goes to the piece that holds its first byte."""
    owner = [i for i, piece in enumerate(run) for _ in piece]
    texts = [""] * len(run)
    at = 0
    for text, width in _characters(b"".join(run)):
        first = owner[at]
        texts[first] += text
        for other in dict.fromkeys(owner[at + 1 : at + width]):
            if other != first:
                texts[other] += CONTINUED
        at += width
    return texts


def _decode(raw: bytes) -> str:
    return "".join(text for text, _ in _characters(raw))


def _characters(raw: bytes) -> Iterable[tuple[str, int]]:
    """(text, number of bytes) of each UTF-8 character; a byte that belongs to none is ⟨E6⟩."""
    at = 0
    while at < len(raw):
        lead = raw[at]
        width = (
            1
            if lead < 0x80
            else 2
            if lead >> 5 == 6
            else 3
            if lead >> 4 == 14
            else 4
            if lead >> 3 == 30
            else 0
        )
        try:
            if not width:
                raise UnicodeDecodeError("utf-8", raw, at, at + 1, "not a first byte")
            text = raw[at : at + width].decode("utf-8")
        except UnicodeDecodeError:
            text, width = f"⟨{lead:02X}⟩", 1
        yield text, width
        at += width


def _pieces(tokenizer: Any, ids: Iterable[int]) -> list[str | bytes]:
    """Each id as bytes; as str where its text is not to be joined (special and unknown tokens)."""
    numbers = [int(i) for i in ids]
    if tokenizer is None:
        return ["" if i < 0 else f"#{i}" for i in numbers]
    spelling = _Spelling(tokenizer)
    known: dict[int, str | bytes] = {}
    for i in numbers:
        if i not in known:
            known[i] = spelling.piece(i)
    return [known[i] for i in numbers]


class _Spelling:
    """How one tokenizer writes bytes in its vocabulary entries."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.added = _added_tokens(tokenizer)
        self.special = set(getattr(tokenizer, "all_special_ids", ()) or ())
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None and hasattr(tokenizer, "id_to_token"):
            backend = tokenizer  # a bare tokenizers.Tokenizer
        parts = list(_components(getattr(backend, "decoder", None)))
        if not parts:  # some files carry no decoder; the pre-tokenizer then tells the alphabet
            parts = list(_components(getattr(backend, "pre_tokenizer", None)))
        kinds = {part.get("type") for part in parts}

        self.byte_level = "ByteLevel" in kinds or hasattr(tokenizer, "byte_decoder")
        self.sentencepiece = hasattr(tokenizer, "sp_model")
        self.byte_fallback = self.sentencepiece or "ByteFallback" in kinds
        self.raw_bytes = type(tokenizer).__name__.startswith(("ByT5", "Perceiver"))  # one chr() per byte
        self.space = "▁" if self.sentencepiece else None
        for part in parts:
            if part.get("type") == "Metaspace":
                self.space = part.get("replacement", "▁")
            elif part.get("type") == "Replace" and part.get("content") == " ":
                self.space = part.get("pattern", {}).get("String", self.space)
        self.word_end = _word_end(backend)

    def piece(self, token: int) -> str | bytes:
        if token < 0:
            return ""
        entry = self._entry(token)
        if entry is None:
            return f"#{token}"
        if isinstance(entry, bytes):  # tiktoken-style vocabularies
            return entry
        if token in self.special:
            return entry
        if token in self.added:
            text = self.added[token]
            return text if text.strip("▁") or self.space != "▁" else text.replace("▁", " ")
        if self.raw_bytes and len(entry) == 1 and ord(entry) < 256:
            return bytes([ord(entry)])
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(entry)):
            return bytes([int(match[1], 16)])
        if self.word_end and entry.endswith(self.word_end):
            return self._bytes(entry[: -len(self.word_end)]) + b" "
        return self._bytes(entry)

    def _bytes(self, entry: str) -> bytes:
        if self.byte_level:
            table = _byte_alphabet()
            return b"".join(
                bytes([table[c]]) if c in table else c.encode("utf-8", "surrogatepass") for c in entry
            )
        if self.space:
            entry = entry.replace(self.space, " ")
        return entry.encode("utf-8", "surrogatepass")

    def _entry(self, token: int) -> str | bytes | None:
        if hasattr(self.tokenizer, "convert_ids_to_tokens"):
            try:
                entry = self.tokenizer.convert_ids_to_tokens(token)
            except (IndexError, KeyError, OverflowError, ValueError):
                return None
        else:
            entry = self.tokenizer.id_to_token(token)
        if isinstance(entry, list):
            entry = entry[0] if entry else None
        return entry if isinstance(entry, str | bytes) else None


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    """id -> text of the tokens added on top of the vocabulary; these are spelled as they are read."""
    table = getattr(tokenizer, "added_tokens_decoder", None)
    if table is None and hasattr(tokenizer, "get_added_tokens_decoder"):
        table = tokenizer.get_added_tokens_decoder()
    return {int(i): getattr(t, "content", str(t)) for i, t in (table or {}).items()}


def _components(part: Any) -> Iterable[dict[str, Any]]:
    """Every step of a decoder or pre-tokenizer of the `tokenizers` package, as its own JSON tells them."""
    if part is None:
        return
    try:
        stack = [json.loads(part.__getstate__())]
    except (AttributeError, TypeError, ValueError):
        return
    while stack:
        step = stack.pop()
        if isinstance(step, dict):
            yield step
            for key in ("decoders", "pretokenizers"):
                stack.extend(step.get(key) or ())


def _word_end(backend: Any) -> str | None:
    """The mark that ends a word in BPE vocabularies such as CLIP's ("</w>"), or None."""
    mark = getattr(getattr(backend, "model", None), "end_of_word_suffix", None)
    return mark if isinstance(mark, str) and mark else None


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: character -> byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in plain}
    spare = (b for b in range(256) if b not in set(plain))
    table.update({chr(256 + n): b for n, b in enumerate(spare)})
    return table


def unknown_id(tokenizer: Any) -> int | None:
    """The token that stands for what a tokenizer does not know; None where it knows every text."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", tokenizer), "model", None)
    name = getattr(model, "unk_token", None)
    if name is not None:
        return model.token_to_id(name)
    # Vocabularies of bytes have no such token, whatever the settings name.
    return None if hasattr(model, "unk_token") else getattr(tokenizer, "unk_token_id", None)


def unknown_share(tokenizer: Any, ids: Iterable[int]) -> float:
    """Share of unknown tokens among token ids; one that begins a text is no word."""
    unknown, ids = unknown_id(tokenizer), list(ids)
    if unknown is None or not ids:
        return 0.0
    words = ids[ids[0] == unknown == getattr(tokenizer, "bos_token_id", None) :]
    return sum(i == unknown for i in words) / max(1, len(words))


def whole(text: str, what: str) -> str:
    """The text; InputError where it holds half of a surrogate pair, which no tokenizer can read."""
    if not text.isascii() and (found := _HALF.search(text)):
        raise InputError(
            f"{what} holds {found[0]!r} at character {found.start()}, one half of a surrogate pair, which is no "
            "Unicode text and no token. Mend the text: "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        )
    return text


# ---------------------------------------------------------------- text to the eye


def visible(text: str) -> str:
    """Text with everything that the eye would miss made visible.

    Spaces are "·", newlines "↵", tabs "⇥", nothing at all is "∅".  Control, invisible and unassigned
    characters are written as escapes (and so are "·", "↵", "⇥" where they are the text itself).  A leading
    combining mark is put on "◌"; text that runs right to left is isolated, so that it cannot reorder its
    neighbours.
    """
    if text == "":
        return EMPTY
    out = []
    for at, char in enumerate(text):
        if char == " ":
            out.append(SPACE)
        elif char == "\n":
            out.append(NEWLINE)
        elif char == "\t":
            out.append(TAB)
        elif char in (SPACE, NEWLINE, TAB):
            out.append(_escape(char))
        elif char in _JOINERS and 0 < at < len(text) - 1:  # inside an emoji or an Indic cluster
            out.append(char)
        elif unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zs", "Zl", "Zp"):
            out.append(_escape(char))
        elif at == 0 and unicodedata.category(char).startswith("M"):
            out.append("◌" + char)
        else:
            out.append(char)
    shown = "".join(out)
    if any(unicodedata.bidirectional(char) in _RTL for char in shown):
        return _ISOLATE + shown + _POP
    return shown


def _escape(char: str) -> str:
    named = {"\r": "\\r", "\0": "\\0", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v", "\x1b": "\\e"}
    if char in named:
        return named[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain(text: str) -> str:
    """Running text for a view: spaces stay spaces, breaks become spaces, control characters become visible."""
    return _legible(" ".join(text.replace("\t", " ").splitlines()) if text else "")


def _legible(text: str, keep: str = "") -> str:
    """Control, invisible and unassigned characters as escapes, but for those in ``keep`` and joiners inside a text."""

    def stays(at: int, char: str) -> bool:
        inside = char in _JOINERS and 0 < at < len(text) - 1
        return inside or char in keep or unicodedata.category(char)[0] != "C"

    return "".join(char if stays(at, char) else _escape(char) for at, char in enumerate(text))


def word_span(text: str, start: int, end: int) -> tuple[int, int]:
    """The word around the characters start..end of a text, as start and end.

    A word is a run of letters, digits, marks and underscores, with an apostrophe where it stands between two of
    them.  Where words are not written apart (Chinese, Japanese, Thai, ...) the characters given stay as they are.
    """

    def within(i: int) -> bool:
        if not 0 <= i < len(text):
            return False
        if text[i] in "'\u2019":
            return 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
        letter = text[i].isalnum() or text[i] == "_" or unicodedata.category(text[i]).startswith("M")
        return letter and not _unspaced(text[i])

    if end > start and within(start):
        while within(start - 1):
            start -= 1
    if end > start and within(end - 1):
        while within(end):
            end += 1
    return start, end


def around(text: str, start: int, end: int, reach: int = 90) -> tuple[str, str, str]:
    """A sentence as (before, word, after), cut to what is near to the word around these characters."""
    a, b = word_span(text, start, end) if end > start else (0, 0)
    before, after = text[:a], text[b:]
    if len(before) > reach:
        before = "…" + before[-reach:]
    if len(after) > reach:
        after = after[:reach] + "…"
    return before, text[a:b], after


# Thai and Lao, Burmese, Khmer, Japanese kana, Chinese characters.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def _unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)


# ---------------------------------------------------------------- text to one medium


def html(text: str) -> str:
    """Escaped for HTML, in element content and in quoted attributes."""
    return _html.escape(text, quote=True)


def plotly(text: str) -> str:
    """Escaped for plotly, which reads `<s>`, `<b>`, `<br>`, `&lt;` and `$…$` in any label as markup."""
    return legible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def legible(text: str) -> str:
    """A name from anywhere on one line: breaks are spaces, control characters escapes."""
    return _legible(text.replace("\r\n", " ").replace("\n", " ").replace("\r", " "), _ISOLATE + _POP)


def labels(names: Iterable[Any], longest: int = 28) -> list[str]:
    """Names for the axes and legends of a figure: legible, and cut where they would leave no room for it.

    Different names stay different: what the cut made alike is numbered, so that categories are never merged.
    """
    found, seen = [], dict[str, int]()
    for name in map(str, names):
        cut = name if len(name) <= longest else name[: longest - 1] + _POP * name.startswith(_ISOLATE) + "…"
        seen[cut] = seen.get(cut, 0) + 1
        again = cut != name and seen[cut] > 1
        found.append(legible(f"{cut} ({seen[cut]})" if again else cut))
    return found


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "-": "-{}", "`": r"\textasciigrave{}", "'": "'{}",
    SPACE: r"\textperiodcentered{}", NEWLINE: r"\(\hookleftarrow\)", TAB: r"\(\mapsto\)",
    EMPTY: r"\(\emptyset\)",
    CONTINUED: r"\(\cdots\)", "⟨": r"\(\langle\)", "⟩": r"\(\rangle\)", _ISOLATE: "", _POP: "",
}  # fmt: skip


def latex(text: str) -> str:
    """Escaped for LaTeX text mode; ligatures (--, '') are kept from forming."""
    return "".join(_LATEX.get(char, char) for char in text)
