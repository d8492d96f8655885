"""Indices that version 0.1.0 made: opened, searched, extended and accelerated; changed they become the present kind."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from plainly import tree

from lenses import ContextIndex
from workbench.errors import ReadingError


def as_version_1(index: ContextIndex, path: Path) -> Path:
    """The same index as it was written then: one flat manifest, checksums as lists of numbers."""
    known, folder = index.manifest, f"data-{index.manifest['contexts']}"
    shutil.copytree(index.path / folder, path / folder)
    files = {}
    for name in known["files"]:
        data, block = (path / folder / name).read_bytes(), 3001
        crc = [zlib.crc32(data[i : i + block]) for i in range(0, len(data), block)]
        files[name] = {"bytes": len(data), "block": block, "crc32": crc}
    names = ("n_rows", "n_sentences", "storage", "d_model", "layers", "settings", "model", "special_ids", "corpus")
    body = {
        "format": "latent-workbench context index", "version": 1, "data": folder, **{n: known[n] for n in names},
        "files": files,
    }  # fmt: skip
    crc = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    (path / "manifest.json").write_text(json.dumps({**body, "crc32": crc}, indent=1) + "\n")
    return path


def test_it_is_read_and_known_again(index, dense, story, sentences, tmp_path):
    path = as_version_1(index, tmp_path / "old")
    before, old = tree(path), ContextIndex.open(path)
    now = index.search(dense[4][::60], 5).assign_attrs(index=str(path))
    assert old.search(dense[4][::60], 5).identical(now)
    assert {**old.info(), "path": ""} == {**index.info(), "path": ""}
    assert ContextIndex.merge([path], tmp_path / "merged", progress=False).manifest == index.manifest
    ContextIndex.build(story, sentences, path, contexts_per_token=20, progress=False)
    assert tree(path) == before


def test_what_is_damaged_is_refused(index, dense, tmp_path):
    path = as_version_1(index, tmp_path / "old")
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"n_rows": 1', '"n_rows": 2'))
    with pytest.raises(ReadingError, match="own checksum"):
        ContextIndex.open(path)
    (path / "manifest.json").write_text(text)
    (file,) = path.glob("data-*/layer_004.f16")
    with file.open("r+b") as raw:
        raw.seek(5000)
        raw.write(b"\0\1\2")
    with pytest.raises(ReadingError, match=r"layer_004.f16 is damaged: block 1 "):
        ContextIndex.open(path).search(dense[4][::60], 5)


def test_it_can_be_extended_and_accelerated(index, story, sentences, tmp_path):
    part = ContextIndex.build(story, sentences[:100], tmp_path / "part", contexts_per_token=20, progress=False)
    grown = ContextIndex.open(as_version_1(part, tmp_path / "old")).add(sentences[100:], progress=False)
    assert tree(grown.path) == tree(index.path)
    pytest.importorskip("faiss", reason="an approximate index needs faiss-cpu")
    path = as_version_1(index, tmp_path / "quick")
    for kind in ("ivf-sq8", "hnsw"):
        ContextIndex.open(path).accelerate(kind, progress=False)
    quick = ContextIndex.open(path)
    assert quick.info()["approximate"]["kind"] == "hnsw" and quick.store.folder.version == 2
    assert {k: v for k, v in quick.manifest.items() if k not in ("files", "approximate")} == {
        k: v for k, v in index.manifest.items() if k != "files"
    }
