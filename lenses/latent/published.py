"""Caches that the published LatentLens code wrote (``layer_N/embeddings_cache.pt``), taken over without pickle.

What is known to go wrong in them is looked for and said: rows that differ between layers, rows of padding or
beginning-of-sequence tokens where a position of the sentence was meant (the published package takes the positions of
a left-padded batch for those of a right-padded one), and labels that do not fit the sentence.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lenses.latent import build as building
from lenses.latent.index import ContextIndex
from lenses.latent.selection import Kept
from lenses.latent.store import BLOCK, KIND, Encoding, IndexRefused, layer_file
from workbench.errors import InputError
from workbench.store import Folder

if TYPE_CHECKING:
    from workbench.model import Model

CHECKED = 64
"""Rows whose states are computed again when a model is given."""
NEAR = 0.99


def import_published(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    layers: Sequence[int] | None = None,
    storage: str = "fp16",
) -> ContextIndex:
    """An index of a published cache.

    Args:
        source: a folder with layer_N/embeddings_cache.pt, or the hub id of a repository of such.
        path: a folder for the index.
        model: the model that made the cache.  Its states are compared with the cache's at up to 64 contexts, and its
            tokenizer gives the characters of each token; without it words are not known beyond their tokens, and the
            index can only be used with ``foreign=True``.
        layers: which of the layers to take; None: all.

    Warns (UserWarning) of rows that differ between layers and of the padding defect.

    Raises:
        InputError: no cache there, or one that needs code to be unpickled.
        IndexRefused: the states are not those of the model.
    """
    folder = _folder(source)
    files = {int(p.parent.name.split("_")[1]): p for p in folder.glob("layer_*/embeddings_cache.pt")}
    wanted = sorted(files) if layers is None else sorted(layers)
    if not wanted or (lacking := [i for i in wanted if i not in files]):
        raise InputError(f"{folder} holds caches of the layers {sorted(files)}, not {lacking if wanted else 'any'}.")
    caches = {layer: _load(files[layer]) for layer in wanted}
    rows, meta = _aligned(caches)
    if model is not None:
        from workbench.model import load

        model = load(model)
    kept, spans = _contexts(meta, model)
    width = int(caches[wanted[0]]["embeddings"].shape[1])
    if model is not None:
        _compare(model, caches, rows, kept, spans)
    head = {
        "storage": storage,
        "d_model": width,
        "layers": wanted,
        "settings": {"contexts_per_token": len(meta), "seed": 0, "first_position": 0, "max_tokens": 512},
        "model": {
            **(building.called(model) if model else {"name": str(source)}),
            "fingerprint": model.fingerprint if model else None,
            "tokenizer": model.tokenizer_fingerprint if model else None,
            "n_layers": model.n_layers if model else None,
            "dtype": None,
        },
        "special_ids": sorted(set(model.tokenizer.all_special_ids)) if model else _special(meta),
        "imported": True,
    }
    digest = hashlib.blake2b(repr([wanted, storage, meta]).encode(), digest_size=8).hexdigest()
    census = building.Census()
    census.see(kept.texts, len(kept.ids))
    work, extra = building.described(head, kept, census, digest)
    encoding = Encoding(storage, width)
    with Folder.create_or_resume(path, work, KIND) as folder:
        if folder.sealed:
            raise InputError(f"{path} already holds an index. Choose another path, or delete it first.")
        for layer in wanted:
            names = {kind: f"data-{digest}/{layer_file(layer, kind)}" for kind in encoding.files()}
            opened = {kind: folder.place(name).open("wb") for kind, name in names.items()}
            for lo in range(0, len(kept), BLOCK):
                states = caches[layer]["embeddings"][torch.from_numpy(rows[layer][lo : lo + BLOCK])]
                for kind, values in encoding.encode(states).items():
                    opened[kind].write(values.tobytes())
            for kind, file in opened.items():
                file.close()
                folder.keep(names[kind])
        building.write_tables(folder, f"data-{digest}", kept, {"spans": spans, "tokens": _tokens(meta, kept, model)})
        folder.seal(extra)
    return ContextIndex(path, model)


def _folder(source: str | os.PathLike[str]) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InputError(f"There is no folder {source}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["layer_*/embeddings_cache.pt", "metadata.json"]))
    except Exception as error:  # no network, no such repository: many kinds
        raise InputError(f"{source} is no folder here and could not be downloaded: {error}") from error


def _load(file: Path) -> dict[str, Any]:
    """A cache by torch's loader that runs no code."""
    try:
        cache = torch.load(file, map_location="cpu", weights_only=True)
        embeddings, metadata = cache["embeddings"], cache["metadata"]
        assert embeddings.ndim == 2 and len(embeddings) == len(metadata)
        assert all(isinstance(m, dict) and "token_str" in m and "caption" in m for m in metadata)
    except Exception as error:  # the loader raises many kinds for damaged or foreign files
        raise InputError(
            f"{file} is not a cache of tensors and plain values, or is damaged ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'wrong contents'}). It is not opened in a way that "
            "would run code of its maker's."
        ) from error
    return cache


def _key(m: dict[str, Any]) -> tuple[str, int, str]:
    return m["caption"], int(m.get("position", -1)), m["token_str"]


def _aligned(caches: dict[int, dict[str, Any]]) -> tuple[dict[int, np.ndarray], list[dict[str, Any]]]:
    """Rows that every layer has, in the first layer's order, and their labels."""
    first, *others = caches
    keys = {layer: [_key(m) for m in cache["metadata"]] for layer, cache in caches.items()}
    if all(keys[layer] == keys[first] for layer in others):
        n = np.arange(len(keys[first]))
        return dict.fromkeys(caches, n), caches[first]["metadata"]
    places = {layer: {key: i for i, key in reversed(list(enumerate(own)))} for layer, own in keys.items()}
    shared = [key for key in places[first] if all(key in places[layer] for layer in others)]
    shared.sort(key=places[first].__getitem__)
    sizes = {layer: len(own) for layer, own in keys.items()}
    warnings.warn(
        f"The layers of this cache do not hold the same rows ({sizes}), so a context has no state in some of them. "
        f"The {len(shared)} contexts that all layers have were taken.",
        stacklevel=3,
    )
    rows = {layer: np.array([own[key] for key in shared], np.int64) for layer, own in places.items()}
    return rows, [caches[first]["metadata"][i] for i in rows[first]]


_MARK = re.compile(r"^(<[^<>\s]{1,24}>|\[(PAD|CLS|SEP|UNK|MASK)\])$")


def _special(meta: list[dict[str, Any]]) -> list[int]:
    return sorted({int(m["token_id"]) for m in meta if "token_id" in m and _MARK.match(m["token_str"])})


def _contexts(meta: list[dict[str, Any]], model: Model | None) -> tuple[Kept, dict[str, np.ndarray]]:
    """The contexts in the cache's own order, with their characters where a tokenizer tells them."""
    numbers: dict[str, int] = {}
    sentence = np.array([numbers.setdefault(m["caption"], len(numbers)) for m in meta], np.int32)
    position = np.array([int(m.get("position", -1)) for m in meta], np.int32)
    token = np.array([int(m.get("token_id", -1)) for m in meta], np.int32)
    texts = list(numbers)
    spans = {"char_start": np.zeros(len(meta), np.int32), "char_end": np.zeros(len(meta), np.int32)}
    ids: list[list[int]] = [[] for _ in texts]
    odd = sum(bool(_MARK.match(m["token_str"])) for m in meta)
    wrong = 0
    if model is not None:
        encoded = building.tokenised(model, texts, return_offsets_mapping=True)
        ids = [list(i) for i in encoded["input_ids"]]
        for row, (s, p, t) in enumerate(zip(sentence.tolist(), position.tolist(), token.tolist(), strict=True)):
            if 0 <= p < len(ids[s]) and ids[s][p] == t:
                spans["char_start"][row], spans["char_end"][row] = building.inner(
                    texts[s], *encoded["offset_mapping"][s][p]
                )
            else:
                wrong += 1
    if wrong or odd:
        said = [f"{wrong} are not the token that stands at their position"] * bool(wrong)
        said += [f"{odd} are padding or other marks"] * bool(odd)
        warnings.warn(
            f"Of {len(meta)} rows, {' and '.join(said)}. That is what the published builder makes of a tokenizer that "
            "pads on the left: about half of the contexts are missing, too. Build the index again from its sentences.",
            stacklevel=3,
        )
    starts = np.r_[0, np.cumsum([len(i) for i in ids])].astype(np.int64)
    flat = np.array([t for i in ids for t in i], np.int32)
    return Kept(texts, flat, starts, [], sentence, position, token), spans


def _tokens(meta: list[dict[str, Any]], kept: Kept, model: Model | None) -> dict[str, np.ndarray]:
    from workbench.tokens import token_texts

    own = {int(m["token_id"]): m["token_str"] for m in meta if "token_id" in m}
    counts = np.zeros(max([*own, *kept.ids.tolist()], default=0) + 1, np.int64)
    np.add.at(counts, kept.ids if len(kept.ids) else kept.token_id[kept.token_id >= 0], 1)
    counts[list(own)] = np.maximum(counts[list(own)], 1)
    return building.token_table(
        counts, lambda ids: token_texts(model.tokenizer, ids) if model else [own.get(i, "") for i in ids]
    )


def _compare(
    model: Model,
    caches: dict[int, dict[str, Any]],
    rows: dict[int, np.ndarray],
    kept: Kept,
    spans: dict[str, np.ndarray],
) -> None:
    """Compute states of a few contexts again.  Raises IndexRefused unless they are the cache's."""
    import workbench
    from workbench.readers import States

    good = np.flatnonzero(spans["char_end"] > spans["char_start"])
    good = good[np.linspace(0, len(good) - 1, min(CHECKED, len(good))).astype(int)] if len(good) else good
    if not len(good):
        raise IndexRefused(
            f"No row of this cache is the token of {model.name} at its position, so the cache cannot be checked "
            "against it. It was made with another tokenizer, or is damaged throughout."
        )
    for layer in caches:
        if layer > model.n_layers:
            raise IndexRefused(
                f"The cache has layer {layer} and {model.name} has {model.n_layers}: another model made it."
            )
    prompts = [kept.tokens(kept.sentence[i])[: kept.position[i] + 1] for i in good]
    states = workbench.read(model, prompts, States(list(caches)), positions="last", progress=False)["state"].values
    for depth, layer in enumerate(caches):
        theirs = caches[layer]["embeddings"][torch.from_numpy(rows[layer][good])].float()
        cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(states[:, depth, 0]), theirs, dim=1)
        if float(cosine.median()) < NEAR:
            raise IndexRefused(
                f"The cache's states of layer {layer} are not those of {model.name}: at {len(good)} contexts the "
                f"median cosine is {float(cosine.median()):.3f}. Another model, or another numbering of layers, made "
                "it."
            )
