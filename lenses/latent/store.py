"""An index on disk: one folder, described on this page.

    manifest.json           what the index is, and the size and CRC-32 checksums of every file below
    data-DIGEST/
        sentences.parquet   text, token_ids: each sentence once
        contexts.parquet    row -> sentence, position, token_id, char_start, char_end; one table for all layers
        tokens.parquet      token_id, token (its text), occurrences: what the whole corpus held
        layer_008.f16       [rows, d_model] little-endian float16                       (storage="fp16")
        layer_008.i8        [rows, d_model] int8                                        (storage="int8")
        layer_008.scale     [rows] float32: what a row is multiplied with to have unit length
        layer_008.norm      [rows] float32: the length that the state had
        layer_008.faiss     an approximate index, where one was made

A row is one context; rows have the same number in every layer.  DIGEST names the choice of contexts, so an index
that is being built or extended never touches the files of the finished one: the manifest, written last and renamed
into place, decides which data folder counts.  Nothing is pickled.  Checksums are per block of rows and are verified
when a block is first read.

int8 codes are of rotated states: random signs, then a Hadamard transform within blocks of up to 256 dimensions
(as in QuIP#, arXiv 2402.04396, for weights).  A rotation changes no cosine, and spreads the few huge dimensions of
real language models over their block; without it they alone would set the scale of a row.
"""

from __future__ import annotations

import json
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, missing
from workbench.files import atomic_write

FORMAT = "latent-workbench context index"
VERSION = 1
BLOCK = 8192
"""Rows (of matrices) or KiB (of other files) under one checksum."""
STORAGES = {"fp16": ("f16", np.dtype("<f2")), "int8": ("i8", np.dtype("i1"))}


class IndexRefused(WorkbenchError):
    """An index that is damaged, unfinished, from a newer version, or made by another model."""


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


# ---------------------------------------------------------------- files and their checksums


class Checked:
    """A file whose blocks are verified when they are first read."""

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        self.path, self.block, self._crc = path, int(entry["block"]), entry["crc32"]
        self._done = np.zeros(len(self._crc), bool)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise IndexRefused(
                f"The index lacks its file {path.name} ({error}). Without it no search would be complete; restore it "
                "or build the index again."
            ) from error
        if found != entry["bytes"] or len(self._crc) != -(-found // self.block):
            raise IndexRefused(
                f"{path} has {found} bytes and its manifest says {entry['bytes']}: it was cut short or is another "
                "file. Restore it or build the index again."
            )

    @cached_property
    def bytes(self) -> np.ndarray:
        """The file's bytes, mapped, not yet verified."""
        if not self._crc:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes start..stop, verified."""
        for i in range(start // self.block, -(-stop // self.block)):
            if not self._done[i]:
                part = self.bytes[i * self.block : (i + 1) * self.block]
                if zlib.crc32(part) != self._crc[i]:
                    raise IndexRefused(
                        f"{self.path} is damaged: block {i} does not have the checksum of its manifest. Nothing read "
                        "from it could be trusted; restore the file or build the index again."
                    )
                self._done[i] = True
        return self.bytes[start:stop]

    def whole(self) -> bytes:
        return self.read(0, len(self.bytes)).tobytes()


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


def write_table(path: Path, columns: dict[str, Any]) -> None:
    parquet, arrow = _parquet()
    table = arrow.table(columns)
    atomic_write(path, lambda name: parquet.write_table(table, name, compression="zstd", row_group_size=1 << 16))


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing("pyarrow", "An index of contexts", "latent") from error
    return pyarrow.parquet, pyarrow


# ---------------------------------------------------------------- the whole


def seal(manifest: dict[str, Any]) -> str:
    """The manifest's text, with the checksum of everything else in it."""
    body = {k: v for k, v in manifest.items() if k != "crc32"}
    return json.dumps({**body, "crc32": zlib.crc32(json.dumps(body, sort_keys=True).encode())}, indent=1) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the index at a folder.  Raises IndexRefused with what is wrong with it."""
    file = path / "manifest.json"
    if not file.is_file():
        if any(path.glob("data-*")):
            raise IndexRefused(
                f"The index at {path} was not finished. Run the same build again: it goes on from there."
            )
        raise IndexRefused(f"There is no index at {path}: it has no manifest.json.")
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise IndexRefused(f"{file} does not describe an index of contexts but {manifest['format']!r}.")
        if manifest["version"] > VERSION:
            raise IndexRefused(
                f"The index at {path} has format version {manifest['version']} and this workbench reads up to "
                f"{VERSION}: upgrade latent-workbench."
            )
        whole = manifest == json.loads(seal(manifest))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, IndexRefused):
            raise
        raise IndexRefused(f"{file} cannot be read ({type(error).__name__}: {error}); restore it.") from error
    if not whole:
        raise IndexRefused(
            f"{file} was changed or damaged: it does not have its own checksum. What it says of the files could be "
            "wrong; restore it or build the index again."
        )
    return manifest


class Store:
    """An index's files, opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.folder = path / self.manifest["data"]
        self.n_rows: int = self.manifest["n_rows"]
        self.layers: list[int] = self.manifest["layers"]
        self.encoding = Encoding(self.manifest["storage"], self.manifest["d_model"])
        self._files = {name: Checked(self.folder / name, entry) for name, entry in self.manifest["files"].items()}
        self._matrices: dict[int, Matrix] = {}

    def checked(self, name: str) -> Checked:
        return self._files[name]

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
