"""Text files as people have them: UTF-8, with or without a byte order mark, UTF-16 and UTF-32 with one, gzipped.

What is none of these is refused with its line: a text in another encoding would be read as other words.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from workbench.errors import InputError

FIELD = 1 << 24
"""Characters that a field of a table may have: more is a quotation mark that was never closed."""
# The marks of UTF-32 begin with those of UTF-16.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_BYTE = re.compile("[\udc80-\udcff]")


def text_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a text file with their ends, as they are (\\n, \\r\\n or \\r); .gz is unpacked.

    Raises InputError where there is no such file, and for bytes that are no text in the file's encoding.
    """
    path, number = Path(path), 0
    cure = (
        "Save the file as UTF-8, or read it as what it is: "
        f"open({path.name!r}, encoding='latin-1') gives lines, which may be used in place of the file's name."
    )
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if not line.isascii() and (odd := _BYTE.search(line)):
                    raise InputError(
                        f"Line {number} of {path} holds the byte 0x{ord(odd[0]) - 0xDC00:02x} at character "
                        f"{odd.start()}, which is no UTF-8: the file is in another encoding, or damaged. {cure}"
                    )
                yield line
    except UnicodeError as error:
        raise InputError(f"{path} cannot be read behind line {number} ({error}). {cure}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def text_of(path: str | os.PathLike[str]) -> str:
    """The whole of a text file, as :func:`text_lines` reads it."""
    return "".join(text_lines(path))


def table(path: str | os.PathLike[str], delimiter: str = ",") -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The columns of a CSV file with a header, and its rows.

    Raises InputError as :func:`text_lines`, and for what is no table.
    """
    rows = csv.DictReader(text_lines(path), delimiter=delimiter)

    def step(take: Any) -> Any:
        # The limit is of the whole process, so it is put back at once.
        before = csv.field_size_limit(FIELD)
        try:
            return take()
        except csv.Error as error:
            raise InputError(
                f"{path} cannot be read as a table near line {rows.line_num + 1} ({error}). Is a quotation mark not "
                "closed?"
            ) from error
        finally:
            csv.field_size_limit(before)

    return list(step(lambda: rows.fieldnames) or ()), iter(lambda: step(lambda: next(rows, None)), None)


def _opened(path: Path) -> TextIO:
    """The file as text.  Bytes that are no UTF-8 become lone surrogates, so that their line can be told."""
    raw: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    with raw:
        head = raw.read(4096)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and head.count(0) > len(head) // 3:
        raise InputError(
            f"{path} is no text in UTF-8: {head.count(0)} of its first {len(head)} bytes are NUL. It may be UTF-16 "
            "without a byte order mark, or no text at all. Save it as UTF-8."
        )
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, errors=errors, newline="")
    return path.open(encoding=encoding, errors=errors, newline="")
