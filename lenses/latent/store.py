"""An index on disk: a folder of :mod:`workbench.store`, whose parts are described on this page.

    manifest.json           head: what decides the rows (storage, d_model, layers, settings, special_ids, model, corpus,
                            and a digest of the contexts); extra: n_rows, n_sentences and what else is known
    data-DIGEST/
        sentences.parquet   text, token_ids: each sentence once
        contexts.parquet    row -> sentence, position, token_id, char_start, char_end; one table for all layers
        tokens.parquet      token_id, token (its text), occurrences: what the whole corpus held
        layer_008.f16       [rows, d_model] little-endian float16                       (storage="fp16")
        layer_008.i8        [rows, d_model] int8                                        (storage="int8")
        layer_008.scale     [rows] float32: what a row is multiplied with to have unit length
        layer_008.norm      [rows] float32: the length that the state had
        layer_008.faiss     an approximate index, where one was made
        progress.json       the last step that is done, while the states are written

A row is one context; rows have the same number in every layer.  DIGEST names the choice of contexts, so an index
that is extended never touches the files of the finished one: sealing the manifest decides which data folder counts.
Checksums are verified when a block is first read.

int8 codes are of rotated states: random signs, then a Hadamard transform within blocks of up to 256 dimensions
(as in QuIP#, arXiv 2402.04396, for weights).  A rotation changes no cosine, and spreads the few huge dimensions of
real language models over their block; without it they alone would set the scale of a row.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import ReadingError, missing
from workbench.store import MANIFEST, Checked, Folder, Kind

BLOCK = 8192
"""Rows that are read at once."""
STORAGES = {"fp16": ("f16", np.dtype("<f2")), "int8": ("i8", np.dtype("i1"))}
TABLES = ("contexts.parquet", "sentences.parquet", "tokens.parquet")


class IndexRefused(ReadingError):
    """An index that was made by another model, or cannot be used in this way."""


def _version_1(path: Path) -> dict[str, Any] | None:
    """The manifest of an index that version 0.1.0 made, as it would be written now."""
    if not (path / MANIFEST).is_file():
        return None
    there = json.loads((path / MANIFEST).read_text("utf-8"))
    files = {
        f"{there['data']}/{name}": {**entry, "crc32": "".join(f"{crc:08x}" for crc in entry["crc32"])}
        for name, entry in there["files"].items()
    }
    head, extra = divided(there, there["data"].removeprefix("data-"))
    return {"format": KIND.format, "version": 1, "state": "sealed", "head": head, "files": files, "extra": extra}


KIND = Kind("latent-workbench context index", 2, _version_1)
_MODEL, _CORPUS = ("fingerprint", "tokenizer", "n_layers", "dtype"), ("sentences", "tokens", "fingerprint")


def divided(known: dict[str, Any], contexts: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that is known of an index, as head (what decides its rows) and extra of its folder."""
    model, corpus = known["model"], known["corpus"]
    head = {name: known[name] for name in ("settings", "storage", "d_model", "layers", "special_ids")} | {
        "model": {name: model[name] for name in _MODEL},
        "corpus": {name: corpus[name] for name in _CORPUS},
        "contexts": contexts,
    }
    extra = {name: known[name] for name in ("n_rows", "n_sentences", "imported", "approximate") if name in known} | {
        "model": {name: value for name, value in model.items() if name not in _MODEL},
        "corpus": {name: value for name, value in corpus.items() if name not in _CORPUS},
    }
    return head, extra


def joined(folder: Folder) -> dict[str, Any]:
    """All that is known of the index in a folder, and its files by their own names."""
    head, extra = folder.head, folder.extra
    both = {name: {**extra[name], **head[name]} for name in ("model", "corpus")}
    return {**head, **extra, **both, "files": {Path(name).name: folder.part(name).entry for name in folder.done}}


def layer_file(layer: int, kind: str) -> str:
    return f"layer_{layer:03d}.{kind}"


# ---------------------------------------------------------------- encoding


class Encoding:
    """How states become stored rows, and queries what is compared with them."""

    def __init__(self, storage: str, d_model: int) -> None:
        self.suffix, self.dtype = STORAGES[storage]
        self.storage, self.d_model = storage, d_model
        if storage == "int8":
            block = min(256, d_model & -d_model)
            h = torch.ones(1, 1)
            while len(h) < block:
                h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
            self._hadamard = h / block**0.5
            signs = np.random.Generator(np.random.PCG64(0)).integers(0, 2, d_model) * 2 - 1
            self._signs = torch.from_numpy(signs).float()

    def turn(self, states: Tensor) -> Tensor:
        """Into the space in which rows are stored; lengths and angles stay."""
        if self.storage != "int8":
            return states
        block = len(self._hadamard)
        signed = (states * self._signs.to(states.device)).unflatten(-1, (-1, block))
        return (signed @ self._hadamard.to(states.device)).flatten(-2)

    def back(self, states: Tensor) -> Tensor:
        """Out of that space."""
        if self.storage != "int8":
            return states
        block = len(self._hadamard)
        return (states.unflatten(-1, (-1, block)) @ self._hadamard.to(states.device)).flatten(-2) * self._signs.to(
            states.device
        )

    def encode(self, states: Tensor) -> dict[str, np.ndarray]:
        """[rows, d_model] states -> what goes into each of the layer's files."""
        states = states.float()
        norm = states.norm(dim=1)
        unit = self.turn(states / norm.clamp_min(1e-30)[:, None])
        files = {"norm": norm.cpu().numpy().astype("<f4")}
        if self.storage == "int8":
            unit = (unit * (127 / unit.abs().amax(1).clamp_min(1e-30))[:, None]).round_()
        codes = unit.cpu().numpy().astype(self.dtype)
        # Rounding has changed the length; with it given back, a product with a row is a cosine.
        length = torch.from_numpy(codes.astype(np.float32)).norm(dim=1)
        files["scale"] = torch.where(length > 0, 1 / length, 0.0).numpy().astype("<f4")
        files[self.suffix] = codes
        return files

    def files(self) -> dict[str, int]:
        """Bytes that one row takes in each of the layer's files."""
        return {self.suffix: self.dtype.itemsize * self.d_model, "norm": 4, "scale": 4}


# ---------------------------------------------------------------- matrices


class Matrix:
    """The stored rows of one layer."""

    def __init__(self, store: Store, layer: int) -> None:
        self.layer, self.n_rows = layer, store.n_rows
        self.encoding = store.encoding
        self._files = {kind: store.checked(layer_file(layer, kind)) for kind in self.encoding.files()}

    def _array(self, kind: str, start: int, stop: int) -> np.ndarray:
        width = self.encoding.files()[kind]
        return self._files[kind].read(start * width, stop * width)

    def stored(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Rows of one of the layer's files as they are, verified."""
        width = self.encoding.files()[kind]
        for block in np.unique(rows // BLOCK):
            self._array(kind, int(block) * BLOCK, min(int(block + 1) * BLOCK, self.n_rows))
        return self._files[kind].bytes.reshape(-1, width)[rows]

    def codes(self, start: int, stop: int) -> Tensor:
        """Rows as they are stored, turned and without their scale: [stop - start, d_model] float16 or int8."""
        raw = self._array(self.encoding.suffix, start, stop).view(self.encoding.dtype)
        return _tensor(raw).view(-1, self.encoding.d_model)

    def scale(self, start: int, stop: int) -> Tensor:
        """What the codes of each row are multiplied with."""
        return _tensor(self._array("scale", start, stop).view("<f4"))

    @cached_property
    def norm(self) -> Tensor:
        """[rows] the lengths that the states had."""
        return _tensor(self._array("norm", 0, self.n_rows).view("<f4"))

    def units(self, start: int, stop: int) -> Tensor:
        """Unit rows start..stop in float32, turned."""
        return self.codes(start, stop).float() * self.scale(start, stop)[:, None]

    def gather(self, rows: np.ndarray) -> Tensor:
        """Unit rows of these numbers in float32, turned."""
        found = torch.from_numpy(self.stored(self.encoding.suffix, rows).view(self.encoding.dtype)).float()
        return found.mul_(torch.from_numpy(self.stored("scale", rows).view("<f4")))

    def states(self, start: int, stop: int) -> Tensor:
        """The states themselves, as far as storage keeps them."""
        return self.encoding.back(self.units(start, stop)) * self.norm[start:stop, None]


def _tensor(array: np.ndarray) -> Tensor:
    """A read-only array as a tensor that is only read."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.asarray(array))


# ---------------------------------------------------------------- tables


def write_table(file: str, columns: dict[str, Any]) -> None:
    parquet, arrow = _parquet()
    parquet.write_table(arrow.table(columns), file, compression="zstd", row_group_size=1 << 16)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing("pyarrow", "An index of contexts", "latent") from error
    return pyarrow.parquet, pyarrow


# ---------------------------------------------------------------- the whole


class Store:
    """An index's files, opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, Folder.open(path, KIND)
        self.manifest = joined(self.folder)
        self.n_rows: int = self.manifest["n_rows"]
        self.layers: list[int] = self.manifest["layers"]
        self.encoding = Encoding(self.manifest["storage"], self.manifest["d_model"])
        self._matrices: dict[int, Matrix] = {}

    def part(self, name: str) -> str:
        """What a file is called in the folder."""
        return f"data-{self.manifest['contexts']}/{name}"

    def checked(self, name: str) -> Checked:
        return self.folder.part(self.part(name))

    def matrix(self, layer: int) -> Matrix:
        if layer not in self._matrices:
            self._matrices[layer] = Matrix(self, layer)
        return self._matrices[layer]

    def _table(self, name: str) -> Any:
        parquet, arrow = _parquet()
        # In this thread: one of arrow's that lets go of our buffer last, while Python ends, aborts the process.
        with parquet.ParquetFile(arrow.BufferReader(self.checked(name).whole())) as file:
            return file.read(use_threads=False)

    @cached_property
    def contexts(self) -> dict[str, np.ndarray]:
        """sentence, position, token_id, char_start, char_end: [rows] each."""
        table = self._table("contexts.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    @cached_property
    def sentences(self) -> Any:
        """An arrow table: text, token_ids."""
        return self._table("sentences.parquet").combine_chunks()

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """token_id (ascending), token, occurrences: of every token of the corpus."""
        table = self._table("tokens.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    def text(self, sentence: int) -> str:
        return self.sentences["text"][int(sentence)].as_py()

    def token_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """All sentences' token ids one behind the other, and where each begins (and the last ends)."""
        column = self.sentences["token_ids"].chunk(0) if len(self.sentences) else None
        if column is None:
            return np.zeros(0, np.int32), np.zeros(1, np.int64)
        return column.flatten().to_numpy(), column.offsets.to_numpy().astype(np.int64)
