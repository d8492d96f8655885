"""Full routing traces on disk: every token's experts and weights, in a folder of :mod:`workbench.store`.

    manifest.json             head: what was traced: model, documents, blocks, experts; extra: unknown, of each document
                              the share of tokens that the tokenizer does not know
    shard-00000.safetensors   index [tokens, blocks, slots] int16 (-1: no expert), weight float16 (absent where it is
                          not known), token [tokens] int32, document [tokens] int32, position [tokens] int32

A shard holds whole documents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from probes.routing.duplicates import near_duplicates
from probes.routing.tracer import RoutingTracer, assembled, document_labels
from workbench.errors import InputError
from workbench.inputs import encode
from workbench.reading import Reading
from workbench.store import Folder, Kind, measured
from workbench.tokens import unknown_share

if TYPE_CHECKING:
    from workbench.model import Model

SHARD_TOKENS = 16_384


def _version_1(path: Path) -> dict[str, Any] | None:
    """The manifest of a trace that version 0.1.0 made (trace.json), as it would be written now."""
    if not (path / "trace.json").is_file():
        return None
    head = json.loads((path / "trace.json").read_text())
    shards, unknown = head.pop("shards"), head.pop("unknown", None)
    for name, digest in shards.items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest() != digest:
                raise ValueError(f"{name} is damaged")
    whole = shards and _last(path / max(shards)) + 1 == head["documents"]
    return {
        "format": head.pop("format"), "version": head.pop("version"), "state": "sealed" if whole else "open",
        "head": head, "files": {name: measured(path / name) for name in sorted(shards)},
        "extra": {} if unknown is None else {"unknown": unknown},
    }  # fmt: skip


KIND = Kind("latent-workbench routing trace", 2, _version_1)


def trace(
    model: Model,
    inputs: Any,
    path: str | os.PathLike[str],
    *,
    labels: Sequence[Any] | None = None,
    blocks: Any = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Trace:
    """Trace documents to a folder, or go on with a trace of the same documents that was interrupted.

    Args:
        labels: one for each document.

    Raises InputError when the folder holds a trace of another model or of other documents.
    """
    from tqdm.auto import tqdm

    from workbench.engine.run import read

    prompts = encode(model, inputs)
    names = document_labels(labels, len(prompts), "documents")
    layers = RoutingTracer(blocks=blocks).layers_of(model)
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(np.array([len(prompt.ids), *prompt.ids], "<i4").tobytes())
    head = {
        "model": model.name, "fingerprint": model.fingerprint,
        "documents": len(prompts), "digest": digest.hexdigest(), "shard_tokens": SHARD_TOKENS,
        "labels": None if labels is None else names, "blocks": [x.block for x in layers], "n_layers": model.n_layers,
        "experts": [x.n_experts for x in layers], "top_k": [x.top_k for x in layers],
        "modules": [x.name for x in layers],
    }  # fmt: skip
    unknown = [unknown_share(model.tokenizer, prompt.ids) for prompt in prompts]
    shards = _shards([len(p.ids) for p in prompts])
    with (
        Folder.create_or_resume(path, head, KIND) as folder,
        tqdm(
            total=sum(len(p.ids) for p in prompts), unit="tok", desc="tracing", disable=not progress, delay=1.0
        ) as bar,
    ):
        for number, members in enumerate(shards):
            name = f"shard-{number:05d}.safetensors"
            if name not in folder.done:
                ids = [prompts[i].ids for i in members]
                own = RoutingTracer(blocks=blocks, trace=True)
                data = read(model, ids, own, batch_size=batch_size, progress=False).data
                folder.write(name, lambda file, data=data, members=members: _write(file, data, members))
            bar.update(sum(len(prompts[i].ids) for i in members))
        if not folder.sealed:
            folder.seal({"unknown": unknown})
    return Trace(path)


class Trace:
    """A trace on disk.  ``.reading()`` counts it anew under any labels; ``.shards()`` yields its arrays."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Folder.open(path, KIND)
        self.folder.verify()
        self.path, self.about = self.folder.root, {**self.folder.head, **self.folder.extra}

    def __repr__(self) -> str:
        return f"Trace({str(self.path)!r}, {self.about['documents']} documents of {self.about['model']})"

    def shards(self) -> Iterator[dict[str, np.ndarray]]:
        """One shard after the other: index, weight, token, document, position."""
        from safetensors.numpy import load_file

        for name in sorted(self.folder.done):
            yield load_file(self.folder.path(name))

    def reading(self, labels: Sequence[Any] | None = None) -> Reading:
        """The counts of :class:`RoutingTracer`, under these labels or those of the trace.

        Memory is one shard's, and the token ids (by which near-duplicates are known).
        """
        a = self.about
        given = a["labels"] if labels is None else labels
        ids = [np.zeros(0, np.int32)] * a["documents"]

        def shards() -> Iterator[dict[str, np.ndarray]]:
            for shard in self.shards():
                for document in np.unique(shard["document"]).tolist():
                    ids[document] = shard["token"][shard["document"] == document]
                yield shard

        found = counted(
            shards(), a["documents"], given, a["blocks"], a["experts"], a["top_k"], model=a["model"],
            modules=a["modules"], n_layers=a.get("n_layers"),
        )  # fmt: skip
        if "unknown" in a:
            found.data["document_unknown"] = (("prompt",), np.array(a["unknown"]))
        found.data["document_cluster"] = (("prompt",), near_duplicates(ids))
        return found


def counted(
    shards: Any,
    documents: int,
    labels: Sequence[Any] | None,
    blocks: Sequence[int],
    experts: Sequence[int],
    top_k: Sequence[int],
    *,
    model: str = "",
    modules: Sequence[str] | None = None,
    n_layers: int | None = None,
) -> Reading:
    """The reading of a trace that is given in shards."""
    own = document_labels(labels, documents, "documents")
    names = sorted(set(own))
    e = max(experts)
    count, mass = (np.zeros((documents, len(blocks), e), kind) for kind in (np.int32, np.float32))
    tokens, idle = np.zeros(documents, np.int64), np.zeros((documents, len(blocks), 2), np.int64)
    weighted = True
    for shard in shards:
        weighted &= "weight" in shard
        document, index = shard["document"], shard["index"]
        tokens += np.bincount(document, minlength=documents)
        for b in range(len(blocks)):
            real = (index[:, b] >= 0) & (index[:, b] < experts[b])
            where = np.broadcast_to(document[:, None], real.shape)
            np.add.at(count[:, b], (where[real], index[:, b][real]), 1)
            for at, none in enumerate((~real, index[:, b] >= experts[b])):
                idle[:, b, at] += np.bincount(document, none.sum(1), minlength=documents).astype(np.int64)
            if "weight" in shard:
                np.add.at(mass[:, b], (where[real], index[:, b][real]), shard["weight"][:, b][real].astype(np.float32))
    layers = [Layer(*x) for x in zip(blocks, modules or [""] * len(blocks), experts, top_k, strict=True)]
    prompts = np.arange(documents)
    variables, coords = assembled(
        names, prompts, np.array([names.index(x) for x in own]), documents, tokens, count, mass if weighted else None,
        idle, layers,
    )  # fmt: skip
    about = {"model": model, "reader": "RoutingTracer", "chart": "usage"}
    about |= {} if n_layers is None else {"n_layers": n_layers}
    data = xr.Dataset(variables, {**coords, "prompt": prompts}, about)
    return Reading(data, {"reader": {"name": "RoutingTracer", "from": "trace"}, "model": {"name": model}})


class Layer(NamedTuple):
    """What a reading says of a block's experts."""

    block: int
    name: str
    n_experts: int
    top_k: int


def from_vllm(
    routed: Sequence[np.ndarray],
    *,
    n_experts: int,
    labels: Sequence[Any] | None = None,
    blocks: Sequence[int] | None = None,
    model: str = "",
) -> Reading:
    """A reading of routed experts that vLLM returned (``--enable-return-routed-experts``).

    Args:
        routed: for each document [tokens, layers, k] integers; -1: a slot that reached no expert.
        n_experts: experts of a layer; not in the arrays.
        blocks: which blocks the layers are; default 0, 1, ...: wrong where the first blocks are dense.

    There are no weights, gate probabilities or token ids in them, so measures of those are refused.  Raises InputError
    for arrays that do not fit together or name experts that are not there.
    """
    arrays = [np.asarray(x) for x in routed]
    if not arrays:
        raise InputError("There is no document: routed is empty.")
    for i, x in enumerate(arrays):
        if x.ndim != 3 or not len(x) or x.shape[1:] != arrays[0].shape[1:]:
            raise InputError(
                f"Document {i} has shape {x.shape}; each must be [tokens, layers, k], with the same layers and k."
            )
        if x.dtype.kind not in "iu":
            raise InputError(f"Document {i} has numbers of type {x.dtype}; experts are integers.")
        if x.max() >= n_experts or x.min() < -1:
            wrong = x.max() if x.max() >= n_experts else x.min()
            raise InputError(
                f"Document {i} names expert {wrong} and there are {n_experts}, numbered from 0 (-1: none)."
            )
    depth, k = arrays[0].shape[1:]
    if blocks is not None and len(blocks) != depth:
        raise InputError(f"The arrays have {depth} layers and blocks names {len(blocks)}.")
    shards = ({"index": x, "document": np.full(len(x), i)} for i, x in enumerate(arrays))
    reading = counted(
        shards,
        len(arrays),
        labels,
        list(range(depth) if blocks is None else blocks),
        [n_experts] * depth,
        [k] * depth,
        model=model,
    )
    longest = max(map(len, arrays))
    index = np.full((len(arrays), depth, longest, k), -1, np.int16)
    position = np.full((len(arrays), longest), -1, np.int32)
    for i, x in enumerate(arrays):
        index[i, :, : len(x)], position[i, : len(x)] = x.swapaxes(0, 1), np.arange(len(x))
    reading.data["expert_id"] = (("prompt", "block", "position", "slot"), index)
    reading.data["input_position"] = (("prompt", "position"), position)
    return reading


def _shards(lengths: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    size = 0
    for i, n in enumerate(lengths):
        if found[-1] and size + n > SHARD_TOKENS:
            found.append([])
            size = 0
        found[-1].append(i)
        size += n
    return [x for x in found if x]


def _write(file: str, data: xr.Dataset, members: list[int]) -> None:
    from safetensors.numpy import save_file

    real = data["input_id"].values >= 0
    order = ("prompt", "position", "block", "slot")
    prompt = np.broadcast_to(np.array(members, np.int32)[:, None], real.shape)
    arrays = {
        "index": data["expert_id"].transpose(*order).values[real],
        "weight": data["expert_weight"].transpose(*order).values[real],
        "token": data["input_id"].values[real].astype(np.int32),
        "document": prompt[real],
        "position": data["input_position"].values[real].astype(np.int32),
    }
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, file)


def _last(file: Path) -> int:
    """Number of the last document in a shard."""
    from safetensors import safe_open

    with safe_open(file, "np") as raw:
        own = raw.get_slice("document")
        return int(own[own.get_shape()[0] - 1 :][0])
