"""Sentences from wherever they are, one at a time: text, JSON lines, CSV, parquet, ``datasets``, any iterable.

Nothing here holds more than one block of a file, so a corpus may be larger than memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.errors import InputError, missing
from workbench.textfiles import table, text_lines
from workbench.tokens import whole

COLUMNS = ("text", "sentence", "caption", "content", "phrase")
"""Names under which tables usually hold their text; the first that is there is taken."""

Corpus = str | os.PathLike[str] | Iterable[str]


def sentences(corpus: Corpus, column: str | None = None) -> Iterator[str]:
    """The sentences of a corpus, stripped, empty ones left out.

    Args:
        corpus: a file (.txt with a sentence on each line, .jsonl, .csv, .tsv, .parquet; text also .gz), a folder of
            such files, the name of a ``datasets`` set ("name", "name:split" or "name/config:split"), or any iterable
            of strings.
        column: where tables and JSON objects have the text; default: the first of ``COLUMNS`` that is there.

    Raises InputError for a file that is not there, of an unknown kind, without text, or in an encoding that is not
    known (:mod:`workbench.textfiles`).
    """
    for number, text in enumerate(_raw(corpus, column), 1):
        if not isinstance(text, str):
            raise InputError(
                f"The corpus gave a {type(text).__name__} where a sentence was expected. Give strings, or name the "
                "column that holds them with column=."
            )
        text = whole(text, f"Sentence {number} of the corpus").strip()
        if text:
            yield text


def size(corpus: Corpus) -> int | None:
    """How many sentences there are at most, where that can be told at little cost."""
    if not isinstance(corpus, (str, os.PathLike)):
        return len(corpus) if hasattr(corpus, "__len__") else None  # type: ignore[arg-type]
    path = Path(corpus).expanduser()
    files = [p for p in path.rglob("*") if p.is_file() and _kind(p) in _READERS] if path.is_dir() else [path]
    counts = [_lines(file) if file.is_file() else None for file in files]
    return None if None in counts else sum(counts)  # type: ignore[arg-type]


def _lines(file: Path) -> int | None:
    """Lines of a text file, rows of a parquet file; unknown for what is compressed."""
    if file.suffix == ".parquet":
        return _parquet_file(file).metadata.num_rows
    if file.suffix == ".gz":
        return None
    with file.open("rb") as raw:
        return 1 + sum(part.count(b"\n") for part in iter(lambda: raw.read(1 << 20), b""))


def _raw(corpus: Corpus, column: str | None) -> Iterable[Any]:
    if not isinstance(corpus, (str, os.PathLike)):
        if not isinstance(corpus, Iterable):
            raise InputError(f"A corpus is a file, a folder, a data set's name or an iterable, not {corpus!r}.")
        return corpus
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in _READERS)
        if not files:
            raise InputError(f"The folder {path} holds no corpus file ({', '.join(_READERS)}).")
        return (text for file in files for text in _READERS[_kind(file)](file, column))
    if path.is_file():
        if _kind(path) not in _READERS:
            raise InputError(f"{path} is not of a kind that is known: {', '.join(_READERS)} (text also as .gz).")
        return _READERS[_kind(path)](path, column)
    if path.suffix or str(corpus).startswith((".", "/", "~")):
        raise InputError(f"There is no corpus at {path}.")
    return _dataset(str(corpus), column)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _text(path: Path, column: str | None) -> Iterator[str]:
    return text_lines(path)


def _jsonl(path: Path, column: str | None) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise InputError(f"Line {number} of {path} is not JSON: {error}") from error
        if isinstance(item, dict):
            column = column or _pick(item, str(path))
            item = item.get(column)
        if item is not None:
            yield item


def _csv(path: Path, column: str | None) -> Iterator[str]:
    names, rows = table(path, "\t" if _kind(path) == ".tsv" else ",")
    column = _pick(names, str(path), column)
    yield from (row[column] or "" for row in rows)


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing("pyarrow", "Reading parquet", "latent") from error
    return parquet.ParquetFile(path)


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    file = _parquet_file(path)
    column = _pick(file.schema_arrow.names, str(path), column)
    for batch in file.iter_batches(8192, columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _dataset(name: str, column: str | None) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise missing("datasets", f"Reading the data set {name!r} (there is no such file)", "latent") from error
    place, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(place, split=split or "train", streaming=True)
    except Exception as error:  # the library raises many kinds: not there, no network, no such split
        raise InputError(
            f"{name!r} is no file here, and as a data set it could not be loaded: {error}. Give a path, or "
            "'name:split' of a data set."
        ) from error
    for row in rows:
        column = column or _pick(row, name)
        if row[column] is not None:
            yield row[column]


def _pick(names: Iterable[str], place: str, wanted: str | None = None) -> str:
    names = list(names)
    for name in (wanted,) if wanted else COLUMNS:
        if name in names:
            return str(name)
    asked = f"no column {wanted!r}" if wanted else f"none of the columns {', '.join(COLUMNS)}"
    raise InputError(f"{place} has {asked}; it has: {', '.join(map(str, names))}. Name one with column=.")


_READERS = {".txt": _text, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
