"""Making an index: choose from token ids alone, then run only the chosen sentences, no deeper than needed.

The result is a function of the set of sentences, the settings and the model.  Sentences of one length run in batches
of one fixed shape (a batch that is not full is filled up), so that a state has the same bits whichever other sentences
ran beside it: a build that was killed and resumed, shards that were merged, and an
index that was extended end with the same bytes as one uninterrupted build on the same kind of machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lenses.latent import corpus as corpora
from lenses.latent.selection import Kept, Selection, batches, sentence_hash
from lenses.latent.store import (
    BLOCK,
    KIND,
    STORAGES,
    TABLES,
    Encoding,
    IndexRefused,
    Store,
    divided,
    layer_file,
    write_table,
)
from workbench.anatomy import text_config
from workbench.engine.drivers import Hooks, Pass
from workbench.engine.run import observe
from workbench.errors import InputError, WorkbenchError
from workbench.inputs import (
    Batch,
    Bos,
    Prompt,
    begun,
    collate,
    embedded,
    first_token,
    own_first,
    tell_of_first_token,
)
from workbench.readers import Plan
from workbench.sites import Site, resolve
from workbench.store import Folder
from workbench.tokens import UNKNOWN, token_texts, unknown_share

if TYPE_CHECKING:
    from workbench.model import Model
    from workbench.readers import Run

TOKENISED_AT_ONCE = 2048
JOURNAL_SECONDS = 5.0
TILE, SHORT = 16, 64
LONG = ("cut", "split", "refuse")
"""What becomes of texts longer than the limit."""
COMMON = ("storage", "d_model", "layers", "settings", "special_ids", "fingerprint", "tokenizer", "dtype")
"""What two indices must have in common to be one: what decides the bits of a row."""


def essence(manifest: dict[str, Any]) -> dict[str, Any]:
    """What decides the bits of an index's rows."""
    flat = {**manifest, **manifest["model"]}
    return {name: flat[name] for name in COMMON}


def called(model: Model) -> dict[str, str]:
    """A model's name, and where it can be loaded from again if the name does not say it."""
    return {"name": model.name} | ({"source": model.source} if model.source not in (None, model.name) else {})


def paper_layers(n_layers: int) -> list[int]:
    """The layers of the LatentLens paper: 1, 2, 4, 8, 16, 24 and the last two before the output's (L-2, L-1)."""
    return sorted({i for i in (1, 2, 4, 8, 16, 24, n_layers - 2, n_layers - 1) if 1 <= i < n_layers}) or [n_layers]


def header(
    model: Model,
    layers: Any,
    contexts_per_token: int,
    seed: int,
    first_position: int,
    max_tokens: int,
    storage: str,
    bos: Bos = None,
    long: str = "cut",
) -> dict[str, Any]:
    """What the manifest says of an index before any sentence is read.  Raises InputError for what cannot be."""
    if contexts_per_token < 1:
        raise InputError(f"contexts_per_token={contexts_per_token} keeps nothing. Use 1 or more.")
    if first_position < 0 or max_tokens < 1:
        raise InputError(f"first_position={first_position} or max_tokens={max_tokens} is below its least value.")
    if storage not in STORAGES:
        raise InputError(f"storage={storage!r} is unknown. Use 'fp16' (the default) or 'int8' (half the size).")
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        raise InputError(
            f"{model.name} has {'no tokenizer' if model.tokenizer is None else 'a tokenizer without offsets'}, so it "
            "cannot be said which characters of a sentence a token stands for. Load it with a fast tokenizer "
            "(tokenizer.json): workbench.load(..., tokenizer=...)."
        )
    if long not in LONG:
        raise InputError(f"long={long!r} is unknown. Use one of {', '.join(map(repr, LONG))}.")
    first = first_token(model, bos)
    sites = resolve(model, "resid", paper_layers(model.n_layers) if layers is None else layers)
    limit = min(max_tokens, model.context_length or max_tokens)
    return {
        "storage": storage,
        "d_model": model.d_model,
        "layers": [site.index for site in sites],
        "settings": {
            "contexts_per_token": contexts_per_token,
            "seed": seed,
            "first_position": first_position,
            "max_tokens": limit,
            # What is as it always was goes without saying, so that older indices stay comparable.
            **({} if first is None else {"bos": first}),
            **({} if long == "cut" else {"long": long}),
        },
        "model": {
            **called(model),
            "fingerprint": model.fingerprint,
            "tokenizer": model.tokenizer_fingerprint,
            "n_layers": model.n_layers,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "special_ids": sorted(set(model.tokenizer.all_special_ids)),
    }


# ---------------------------------------------------------------- pass one: choose


class Census:
    """What was read: sentences, tokens, a fingerprint that does not depend on their order, and what was left out."""

    def __init__(self) -> None:
        self.sentences = self.tokens = self.sum = self.cut = self.lost = 0

    def see(self, texts: Sequence[str], tokens: int) -> None:
        self.sentences += len(texts)
        self.tokens += tokens
        for text in texts:
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
            self.sum = (self.sum + int.from_bytes(digest, "little")) % 2**64

    def add(self, corpus: dict[str, Any]) -> None:
        self.sentences += corpus["sentences"]
        self.tokens += corpus["tokens"]
        self.sum = (self.sum + int(corpus["fingerprint"], 16)) % 2**64
        self.cut += corpus.get("sentences_cut", 0)
        self.lost += corpus.get("tokens_left_out", 0)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one corpus from another."""
        return {"sentences": self.sentences, "tokens": self.tokens, "fingerprint": f"{self.sum:016x}"}

    def describe(self) -> dict[str, Any]:
        return {**self.identity, "sentences_cut": self.cut, "tokens_left_out": self.lost}


def selection(head: dict[str, Any], vocabulary: int, folder: Path) -> Selection:
    given = head["settings"]
    return Selection(
        vocabulary,
        given["contexts_per_token"],
        given["seed"],
        first_position=given["first_position"],
        folder=folder,
    )


def choose(
    model: Model,
    corpus: corpora.Corpus,
    column: str | None,
    chosen: Selection,
    census: Census,
    settings: Mapping[str, Any],
    progress: bool,
) -> None:
    """Tokenise a corpus and feed it to a selection.  Warns of what it does not take as it is."""
    from tqdm.auto import tqdm

    known, limit = embedded(model), settings["max_tokens"]
    first, long = settings.get("bos"), settings.get("long", "cut")
    read, cut, lost, unknown = census.sentences, census.cut, census.lost, 0
    with tqdm(
        total=corpora.size(corpus), unit="sentence", desc="choosing contexts", disable=not progress, delay=1.0
    ) as bar:
        for texts in batches(corpora.sentences(corpus, column), TOKENISED_AT_ONCE):
            seen = len(texts)
            census.see(texts, 0)
            ids = tokenised(model, texts, first)["input_ids"]
            if long == "split" and max(map(len, ids)) > limit:
                cut_up = [
                    [text] if len(own) <= limit else pieces(model, text, limit, first)
                    for text, own in zip(texts, ids, strict=True)
                ]
                texts = [piece for own in cut_up for piece in own]
                ids = tokenised(model, texts, first)["input_ids"]
            over = [len(row) - limit for row in ids if len(row) > limit]
            if over and long == "refuse":
                raise InputError(
                    f"A text of the corpus has {max(over) + limit} tokens, and {limit} are read. Raise max_tokens "
                    "(up to the model's context), or use long='split' or 'cut'."
                )
            census.cut, census.lost = census.cut + len(over), census.lost + sum(over)
            ids = [row[:limit] for row in ids]
            worst = max(max(row, default=0) for row in ids)
            if worst >= known:
                raise InputError(
                    f"The tokenizer gave id {worst} and {model.name} embeds ids 0 to {known - 1}. They may not belong "
                    "together."
                )
            chosen.feed(texts, ids)
            census.tokens += sum(map(len, ids))
            unknown += sum(unknown_share(model.tokenizer, row) > UNKNOWN for row in ids)
            if first is None:
                tell_of_first_token(model, [row for row in ids if row])
            bar.update(seen)
            bar.set_postfix(tokens=census.tokens, refresh=False)
    read, cut, lost = census.sentences - read, census.cut - cut, census.lost - lost
    if cut:
        warnings.warn(
            f"{cut} of {read} texts are longer than {limit} tokens: the {lost} tokens behind those were left out. "
            + ("Raise max_tokens, or split" if limit < (model.context_length or limit + 1) else "Split")
            + " the texts at sentence ends: ContextIndex.build(..., long='split').",
            stacklevel=3,
        )
    if unknown:
        warnings.warn(
            f"{unknown} of {read} texts are more than {UNKNOWN:.0%} unknown tokens for {model.name}: its tokenizer "
            "does not have their words or letters, and contexts of them say nothing.",
            stacklevel=3,
        )


def tell_of_beginnings(manifest: dict[str, Any], run: Run) -> None:
    """Warn where prompts do not begin with the token that the sentences of an index began with."""
    theirs, ids = manifest["settings"].get("bos"), [p.ids[0] for p in run.prompts]
    if theirs is not None and theirs >= 0:
        odd = sum(i != theirs for i in ids)
    elif run.model.tokenizer is None or (theirs is None and run.first is None):
        return
    else:
        own = own_first(run.model)
        usual = own if theirs is None else None  # the first token of the index's sentences
        odd = sum(i != usual for i in ids) if usual is not None else sum(i in (own, run.first) for i in ids)
    if odd:
        begins = {None: "as the tokenizer begins texts", -1: "without a first token"}
        begins = begins.get(theirs, f"with token {theirs}")
        warnings.warn(
            f"{odd} of {len(ids)} prompts begin otherwise than the sentences of the index, which were read {begins}. "
            "States of one text differ with its first token: read with the bos= of the index, or build one with this.",
            stacklevel=3,
        )


def tokenised(model: Model, texts: Sequence[str], first: int | None = None, **options: Any) -> Any:
    """input_ids, and offset_mapping where asked for, of each text, with the first token that the index has.

    A space that a tokenizer puts before a text has no characters in it, whatever offsets the tokenizer gives it.
    """
    tokenizer: Any = model.tokenizer
    found = tokenizer(list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)
    before, after = found["input_ids"], [begun(model, row, first) for row in found["input_ids"]]
    offsets = found.get("offset_mapping", [])
    # Offsets are of the tokens behind the first one, counted from the end.
    offsets = [
        [(0, 0)] * (len(b) - len(a)) + o[max(0, len(a) - len(b)) :] if a != b else o
        for a, b, o in zip(before, after, offsets, strict=False)
    ]
    shared = [
        (o, k, ids[k])
        for ids, o in zip(after, offsets, strict=False)
        for k in range(len(ids) - 1)
        if o[k + 1][0] < o[k][1]
    ]
    used = sorted({i for *_, i in shared})
    blank = {i for i, own in zip(used, token_texts(tokenizer, used), strict=True) if not own.strip()}
    for o, k, i in shared:
        if i in blank:
            o[k] = (o[k][0], o[k][0])
    return {"input_ids": after, "offset_mapping": offsets}


_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")


def pieces(model: Model, text: str, limit: int, first: int | None) -> list[str]:
    """A text in as few pieces as fit the limit, cut at sentence ends.  A sentence that does not fit is left whole."""
    ends = [found.end() for found in _SENTENCE.finditer(text)]
    ends = [end for end in ends if end < len(text)] + [len(text)]
    found: list[str] = []
    begin = at = 0
    while at < len(ends):
        end = ends[at]
        # Tokens of a whole are not the sum of its parts' in every tokenizer, so each whole is counted anew.
        while at + 1 < len(ends):
            longer = tokenised(model, [text[begin : ends[at + 1]].strip()], first)["input_ids"][0]
            if len(longer) > limit:
                break
            at += 1
            end = ends[at]
        found.append(text[begin:end].strip())
        begin, at = end, at + 1
    return [piece for piece in found if piece]


def refeed(store: Store, chosen: Selection, census: Census) -> None:
    """The sentences of a finished index.

    Positions that it did not keep were worse than k others, which are in it: they lose again.
    """
    if store.manifest.get("imported"):
        raise IndexRefused(
            f"The index at {store.path} was imported: how its contexts were chosen is not known, so it can be searched "
            "but not extended or merged. Build an index of its sentences instead."
        )
    census.add(store.manifest["corpus"])
    chosen.occurrences[store.tokens["token_id"]] += store.tokens["occurrences"]
    flat, starts = store.token_ids()
    column = store.sentences["text"]
    for at in range(0, len(starts) - 1, TOKENISED_AT_ONCE):
        stop = min(at + TOKENISED_AT_ONCE, len(starts) - 1)
        chosen.feed(
            column.slice(at, stop - at).to_pylist(),
            [flat[starts[i] : starts[i + 1]] for i in range(at, stop)],
            count=False,
        )


# ---------------------------------------------------------------- pass two: run


def materialise(
    path: Path,
    head: dict[str, Any],
    kept: Kept,
    census: Census,
    tables: dict[str, dict[str, np.ndarray]],
    *,
    model: Model | None,
    sources: Sequence[Store] = (),
    replace: bool = False,
    batch_tokens: int = 512,
    progress: bool = True,
) -> None:
    """Write the index of these contexts to ``path``; rows that a source has are copied, the others computed.

    What an earlier call did for the same contexts is kept.  ``replace`` allows another finished index to be there.
    """
    encoding = Encoding(head["storage"], head["d_model"])
    identity = [essence(head), census.identity, [h.hex() for h in kept.hashes]]
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8)
    digest.update(kept.sentence.astype("<i4").tobytes() + kept.position.astype("<i4").tobytes())
    work, extra = described(head, kept, census, digest.hexdigest())
    revised = replace and Folder.open(path, KIND).head != work
    with Folder.revise(path, KIND) if revised else Folder.create_or_resume(path, work, KIND) as folder:
        if folder.sealed and not revised:
            return
        data = f"data-{work['contexts']}"
        widths = {
            f"{data}/{layer_file(layer, kind)}": width
            for layer in head["layers"]
            for kind, width in encoding.files().items()
        }
        write_tables(folder, data, kept, tables)
        handles = {name: os.open(folder.place(name), os.O_RDWR | os.O_CREAT, 0o666) for name in widths}
        try:
            if any(os.fstat(handle).st_size != widths[name] * len(kept) for name, handle in handles.items()):
                _note(folder, data, {})  # what was done is not there
            for name, handle in handles.items():
                os.ftruncate(handle, widths[name] * len(kept))
            own = {Path(name).name: handle for name, handle in handles.items()}
            _fill(folder, head["layers"], kept, encoding, own, model, sources, batch_tokens, progress, data)
        finally:
            for handle in handles.values():
                os.close(handle)
        for name in widths:
            folder.keep(name)
        folder.seal(extra, parts=[*widths, *(f"{data}/{name}" for name in TABLES)], head=work)


def described(
    head: dict[str, Any], kept: Kept, census: Census, contexts: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and extra of an index's folder; ``contexts`` names the choice of contexts."""
    known = {"n_rows": len(kept), "n_sentences": len(kept.texts), "corpus": census.describe()}
    return divided({**head, **known}, contexts)


def write_tables(folder: Folder, data: str, kept: Kept, tables: dict[str, dict[str, np.ndarray]]) -> None:
    import pyarrow as arrow

    ids = arrow.ListArray.from_arrays(arrow.array(kept.starts.astype(np.int32)), arrow.array(kept.ids))
    rows = {"sentence": kept.sentence, "position": kept.position, "token_id": kept.token_id}
    sentences = {"text": arrow.array(kept.texts, arrow.string()), "token_ids": ids}
    for name, columns in zip(TABLES, ({**rows, **tables["spans"]}, sentences, tables["tokens"]), strict=True):
        if f"{data}/{name}" not in folder.done:
            folder.write(f"{data}/{name}", lambda file, columns=columns: write_table(file, columns))


def token_table(counts: np.ndarray, texts: Callable[[list[int]], list[str]]) -> dict[str, np.ndarray]:
    seen = np.flatnonzero(counts)
    shown = [t.encode("utf-8", "replace").decode() for t in texts(seen.tolist())]
    return {"token_id": seen.astype(np.int32), "token": np.array(shown, object), "occurrences": counts[seen]}


def spans_of(model: Model, kept: Kept, first: int | None = None) -> dict[str, np.ndarray]:
    """The characters of its sentence that each context's token stands for, without the spaces around them."""
    start, end = np.zeros(len(kept), np.int32), np.zeros(len(kept), np.int32)
    rows = np.searchsorted(kept.sentence, np.arange(len(kept.texts) + 1))
    for at in range(0, len(kept.texts), TOKENISED_AT_ONCE):
        texts = kept.texts[at : at + TOKENISED_AT_ONCE]
        encoded = tokenised(model, texts, first, return_offsets_mapping=True)
        for i, text in enumerate(texts, at):
            ids, offsets = encoded["input_ids"][i - at], encoded["offset_mapping"][i - at]
            mine = kept.tokens(i)
            if list(ids[: len(mine)]) != mine:
                raise WorkbenchError(
                    f"The tokenizer of {model.name} split {text!r} in two ways in one build. Its states could not be "
                    "matched with characters; use one version of it throughout."
                )
            for row in range(rows[i], rows[i + 1]):
                start[row], end[row] = inner(text, *offsets[kept.position[row]])
    return {"char_start": start, "char_end": end}


def inner(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without the spaces around them."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, max(start, end - (len(part) - len(part.rstrip())))


def spans_in(kept: Kept, sources: Sequence[Store]) -> dict[str, np.ndarray]:
    """The same from indices that have these contexts."""
    origin, theirs = _origins(kept, sources)
    spans = {}
    for name in ("char_start", "char_end"):
        spans[name] = np.zeros(len(kept), np.int32)
        for s, store in enumerate(sources):
            spans[name][origin == s] = store.contexts[name][theirs[origin == s]]
    return spans


def _fill(
    folder: Folder,
    layers: list[int],
    kept: Kept,
    encoding: Encoding,
    handles: dict[str, int],
    model: Model | None,
    sources: Sequence[Store],
    batch_tokens: int,
    progress: bool,
    data: str,
) -> None:
    """Put every row in its place, going on after the last step that was noted."""

    origin, theirs = _origins(kept, sources)
    copies = [rows for s in range(len(sources)) for rows in _pieces(np.flatnonzero(origin == s))]
    missing = np.flatnonzero(origin < 0)
    if len(missing) and model is None:
        raise IndexRefused(f"{len(missing)} contexts of the merged index are in none of its parts. Build it again.")
    lengths = np.diff(kept.starts)
    shapes = Shapes(model, batch_tokens, int(lengths.max(initial=0))) if model is not None else None
    runs = shapes.runs(np.unique(kept.sentence[missing]), lengths) if shapes is not None else []
    # Another batch size would be another list of steps.
    steps = {"batch_tokens": batch_tokens, "sources": [s.manifest["contexts"] for s in sources]}
    done = _resume(folder, data, steps)
    written = time.monotonic()

    def note(step: int, *, at_once: bool = False) -> None:
        nonlocal written
        if at_once or time.monotonic() - written > JOURNAL_SECONDS:
            for handle in handles.values():
                os.fsync(handle)
            _note(folder, data, {**steps, "done": step})
            written = time.monotonic()

    for step, rows in enumerate(copies):
        if step >= done:
            source = sources[origin[rows[0]]]
            for layer in layers:
                matrix = source.matrix(layer)
                for kind in encoding.files():
                    _put(handles[layer_file(layer, kind)], rows, matrix.stored(kind, theirs[rows]))
            note(step + 1)
    if model is not None and shapes is not None and runs:
        # Steps that are done are left out; the others run in their order.
        left = runs[max(0, done - len(copies)) :]
        steps_done = iter(range(len(copies) + len(runs) - len(left), len(copies) + len(runs)))
        sentences = _Sentences(kept, missing)

        def write(values: Mapping[str, Any], batch: Batch) -> None:
            rows = sentences.rows(batch.prompt.numpy(), batch.position.numpy())
            for layer in layers:
                for kind, encoded in encoding.encode(values[f"layer {layer}"]).items():
                    _put(handles[layer_file(layer, kind)], rows, encoded)
            note(next(steps_done) + 1)

        plan = Plan(
            [Site("resid", layer) for layer in layers], {},
            lambda states, batch: {f"layer {site.index}": rows for site, rows in states.items()}, store=write,
        )  # fmt: skip
        drives = _Shaped(model, sentences, shapes, left)
        observe(model, sentences, plan, drives, positions=0, progress=progress, verb="running")
    note(len(copies) + len(runs), at_once=True)


def _note(folder: Folder, data: str, progress: dict[str, Any]) -> None:
    folder.write(f"{data}/progress.json", lambda name: Path(name).write_text(json.dumps(progress)))


def _resume(folder: Folder, data: str, steps: dict[str, Any]) -> int:
    """How many of these steps are done."""
    name = f"{data}/progress.json"
    found = json.loads(folder.path(name).read_text()) if name in folder.done else {}
    return found.pop("done", 0) if {k: v for k, v in found.items() if k != "done"} == steps else 0


def _origins(kept: Kept, sources: Sequence[Store]) -> tuple[np.ndarray, np.ndarray]:
    """For each row: the source that has it (-1: none), and its number there."""
    origin, theirs = np.full(len(kept), -1, np.int32), np.zeros(len(kept), np.int64)
    if not sources:
        return origin, theirs
    name = {h: i for i, h in enumerate(kept.hashes)}
    keys = kept.sentence.astype(np.int64) << 32 | kept.position
    for s, store in enumerate(sources):
        key = str(store.manifest["settings"]["seed"]).encode()
        flat, starts = store.token_ids()
        mine = np.array(
            [name.get(sentence_hash(flat[starts[i] : starts[i + 1]], key), -1) for i in range(len(starts) - 1)],
            np.int64,
        )
        table = store.contexts
        sentence = mine[table["sentence"]] if len(mine) else np.zeros(0, np.int64)
        have = np.flatnonzero(sentence >= 0)
        at = np.searchsorted(keys, sentence[have] << 32 | table["position"][have])
        at[at == len(keys)] = 0
        good = keys[at] == (sentence[have] << 32 | table["position"][have]) if len(keys) else np.zeros(0, bool)
        at, have = at[good], have[good]
        new = origin[at] < 0
        origin[at[new]], theirs[at[new]] = s, have[new]
    return origin, theirs


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]


class Shapes:
    """How many sentences of a length run at once, and how wide their batch is padded.

    Matrix products go in tiles of rows, and a row in a tile that is cut short may be rounded otherwise.  So a batch
    holds a multiple of TILE tokens: many short sentences, or longer ones padded to the next multiple (beyond the
    longest, so that every batch has padding and takes the same way through the attention).  Heads narrower than a
    tile must begin where vectors do, too: for them short sentences are padded to a multiple of ``grain``.
    """

    def __init__(self, model: Model, batch_tokens: int, longest: int = 0) -> None:
        config = text_config(model.module)
        heads = getattr(config, "num_attention_heads", None) or 1
        head = getattr(config, "head_dim", None) or model.d_model // heads
        self.tokens, self.pads = batch_tokens, model.anatomy.pad_width("right") > longest + TILE
        self.grain = TILE // math.gcd(head, TILE) if self.pads else 1

    def __call__(self, length: int) -> tuple[int, int]:
        """Sentences, width."""
        if length < SHORT or not self.pads:
            width = -(-length // self.grain) * self.grain
            unit = TILE // math.gcd(width, TILE)
            return max(1, round(self.tokens / (width * unit))) * unit, width
        width = (length // TILE + 1) * TILE
        return max(1, self.tokens // width), width

    def runs(self, sentences: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The sentences (sorted by length) in pieces that run together."""
        own = lengths[sentences]
        # Short sentences run with those of their own length only: padded and unpadded ones never together.
        kind = np.where((own < SHORT) | (not self.pads), own, own // TILE * TILE)
        runs = []
        for group in np.split(sentences, np.flatnonzero(np.diff(kind)) + 1):
            if len(group):
                size = self(int(lengths[group[0]]))[0]
                runs += [group[i : i + size] for i in range(0, len(group), size)]
        return runs


class _Sentences(Sequence[Prompt]):
    """The sentences of a build as prompts, made when they are asked for; their positions are those of missing rows."""

    def __init__(self, kept: Kept, missing: np.ndarray) -> None:
        self.kept, self.missing = kept, missing
        self._sentence = kept.sentence[missing]

    def __len__(self) -> int:
        return len(self.kept.texts)

    def _own(self, i: int) -> np.ndarray:
        """Numbers of a sentence's missing rows."""
        return self.missing[np.searchsorted(self._sentence, i) : np.searchsorted(self._sentence, i, "right")]

    def __getitem__(self, i: Any) -> Any:
        return Prompt(self.kept.tokens(i), "", positions=self.kept.position[self._own(i)].tolist())

    def rows(self, sentence: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Row numbers of contexts, given in the order of the batch."""
        found = np.concatenate([self._own(int(i)) for i in dict.fromkeys(sentence.tolist())])
        assert np.array_equal(self.kept.position[found], position)
        return found


class _Shaped(Hooks):
    """Batches of fixed shapes, filled up with copies of their first sentence, so that rounding is the same in each."""

    def __init__(self, model: Model, sentences: _Sentences, shapes: Shapes, runs: list[np.ndarray]) -> None:
        super().__init__(model, sentences)
        self.shapes, self.runs = shapes, runs

    def supports(self, feature: str) -> bool:
        return feature not in ("halving", "shards")

    def batches(self, members: Sequence[int], batch_size: int | None) -> list[list[int]]:
        return [run.tolist() for run in self.runs]

    def passes(self, members: list[int]) -> Generator[Pass, Any, None]:
        prompts = [self.prompts[i] for i in members]
        count, width = self.shapes(len(prompts[0].ids))
        prompts += [Prompt(prompts[0].ids, "") for _ in range(count - len(members))]
        batch = collate(self.model, prompts, list(range(count)), width=width)
        batch.prompts = [*members, *[members[0]] * (count - len(members))]
        batch.prompt = torch.tensor(members)[batch.prompt]
        yield Pass(batch)


def _put(handle: int, rows: np.ndarray, values: np.ndarray) -> None:
    """Write values[i] to row rows[i]; rows ascend."""
    width = values.nbytes // max(1, len(values))
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
        if len(part):
            data = memoryview(np.ascontiguousarray(values[part[0] : part[-1] + 1])).cast("B")
            at = int(rows[part[0]]) * width
            while len(data):
                n = os.pwrite(handle, data, at)
                data, at = data[n:], at + n


def compatible(manifests: Iterable[dict[str, Any]], what: str) -> None:
    """Raise IndexRefused unless these manifests agree on all that decides a row."""
    first, *others = map(essence, manifests)
    for other in others:
        for name in COMMON:
            if first[name] != other[name]:
                raise IndexRefused(
                    f"{what}: they differ in {name!r} ({first[name]} against {other[name]}), so their rows are not "
                    "comparable. Build them with the same model and settings."
                )
