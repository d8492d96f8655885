"""``ContextIndex``: the states of many words in their sentences, to be searched by nearness."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from lenses.latent import build as building
from lenses.latent import search as searching
from lenses.latent.corpus import Corpus
from lenses.latent.search import Found, Sample, Scale
from lenses.latent.selection import Kept
from lenses.latent.store import KIND, IndexRefused, Store
from workbench.engine.hooks import neutral
from workbench.errors import InputError
from workbench.inputs import Bos
from workbench.reading import Reading
from workbench.store import Folder
from workbench.tokens import token_texts, word_span
from workbench.variables import described

if TYPE_CHECKING:
    from workbench.model import Model

Path_ = str | os.PathLike[str]


class ContextIndex:
    """States of a model at chosen contexts, on disk, with the sentences they come from.

    Make one with :meth:`build`, :meth:`merge` or ``lenses.latent.import_published``; :meth:`open` opens it.  The method
    is LatentLens (arXiv 2602.00462); layers are numbered as there (0 = embeddings, l = after l blocks).

    Attributes:
        path: the folder.
        layers: the layers whose states are stored.
        n_rows: contexts, each of which has a row in every layer.
        manifest: everything that is known of the index (settings, model, corpus, recall).
    """

    def __init__(self, path: Path_, model: Model | None = None) -> None:
        self.path = Path(path)
        self._model = model
        self._open()

    def _open(self) -> None:
        self.store = Store(self.path)
        self.manifest = self.store.manifest
        self.layers = list(self.store.layers)
        self.n_rows = self.store.n_rows
        self.d_model: int = self.manifest["d_model"]
        self._scales: dict[tuple[int, str], Scale] = {}
        self._faiss: dict[int, Any] = {}
        self._special: np.ndarray | None = None
        self._beginnings: dict[bool, tuple[np.ndarray, np.ndarray]] = {}
        self._warned: set[int] = set()

    def __repr__(self) -> str:
        return (
            f"ContextIndex({str(self.path)!r}, {self.n_rows:,} contexts in {self.manifest['n_sentences']:,} sentences, "
            f"layers {self.layers}, width {self.d_model}, {self.manifest['storage']}, "
            f"model {self.manifest['model']['name']!r})"
        )

    @property
    def model_source(self) -> str:
        """The hub id or the folder of the model that built it."""
        made = self.manifest["model"]
        return made.get("source", made["name"])

    def __len__(self) -> int:
        return self.n_rows

    # ---------------------------------------------------------------- making

    @classmethod
    @neutral()
    def build(
        cls,
        model: Any,
        corpus: Corpus,
        path: Path_,
        *,
        layers: Iterable[int] | None = None,
        contexts_per_token: int = 50,
        seed: int = 0,
        storage: str = "fp16",
        first_position: int = 0,
        max_tokens: int = 512,
        column: str | None = None,
        batch_tokens: int | None = None,
        approximate: str | None = None,
        progress: bool = True,
        bos: Bos = None,
        long: str = "cut",
    ) -> ContextIndex:
        """Build the index of a corpus, or go on with a build that was interrupted.

        Pass one only tokenises, and chooses at most ``contexts_per_token`` contexts for each token id by a seeded hash
        of their sentences.  Pass two runs the chosen sentences, as deep as the deepest layer, without unembedding.

        Args:
            model: a :class:`workbench.Model`, or anything :func:`workbench.load` takes.
            corpus: a file (.txt, .jsonl, .csv, .tsv, .parquet), a folder of them, the name of a ``datasets`` set, or an
                iterable of sentences.
            path: a folder for the index.
            layers: default: those of the paper, {1, 2, 4, 8, 16, 24, L-2, L-1}.
            storage: "fp16", or "int8" for about half the size.
            first_position: contexts before this position are left out (the published package leaves out 0 and 1).
            max_tokens: the longest text that is read (or the model's context, where that is shorter).
            column: where tables have the text.
            batch_tokens: tokens that run at once; default 512 on a CPU, 8192 on a GPU.
            approximate: also make an approximate index ("ivf-sq8", "ivf-pq" or "hnsw"); see :meth:`accelerate`.
            bos: the first token of each text, as in :func:`workbench.read`.
            long: what becomes of longer texts: "cut": what is behind max_tokens is left out, with a warning and counted
                in the manifest (``corpus``: sentences_cut, tokens_left_out); "split": they are cut into pieces at
                sentence ends; "refuse".

        Raises:
            InputError: a corpus that cannot be read, settings that cannot be, or another index at the path.
            StateError: the model gave NaN or infinity.
        """
        model = _loaded(model)
        head = building.header(model, layers, contexts_per_token, seed, first_position, max_tokens, storage, bos, long)
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        census = building.Census()
        chosen = building.selection(head, _vocabulary(model), path)
        building.choose(model, corpus, column, chosen, census, head["settings"], progress)
        _write(path, head, chosen, census, model, batch_tokens=batch_tokens, progress=progress)
        index = cls(path, model)
        return index.accelerate(approximate) if approximate else index

    @classmethod
    def open(cls, path: Path_) -> ContextIndex:
        """Open an index.  Raises ReadingError when it is damaged, unfinished or newer than this workbench."""
        return cls(path)

    @neutral()
    def add(
        self, corpus: Corpus, *, model: Any = None, column: str | None = None, batch_tokens: int | None = None,
        progress: bool = True,
    ) -> ContextIndex:  # fmt: skip
        """Extend the index with more sentences: what one build of all of them would have given.

        States that stay are copied; only new contexts run.  ``model`` is loaded from where it came when not given.
        An approximate index is dropped, because it no longer fits: make it again with :meth:`accelerate`.
        """
        model = _loaded(model or self._model or self.model_source)
        self.check(model)
        census = building.Census()
        chosen = building.selection(self.manifest, _vocabulary(model), self.path)
        building.refeed(self.store, chosen, census)
        building.choose(model, corpus, column, chosen, census, self.manifest["settings"], progress)
        head = {k: self.manifest[k] for k in ("storage", "d_model", "layers", "settings", "model", "special_ids")}
        _write(
            self.path,
            head,
            chosen,
            census,
            model,
            [self.store],
            batch_tokens=batch_tokens,
            replace=True,
            progress=progress,
        )
        self._model = model
        self._open()
        return self

    @classmethod
    def merge(cls, paths: Sequence[Path_], path: Path_, *, progress: bool = True) -> ContextIndex:
        """One index of several that were built apart (on other machines): equal to the build of all their sentences.

        Raises IndexRefused when they differ in model, tokenizer, layers or settings.
        """
        if not paths:
            raise InputError("There is nothing to merge: no index was given.")
        stores = [Store(Path(p)) for p in paths]
        building.compatible([s.manifest for s in stores], f"{paths[0]} and the others cannot become one")
        # In the order of their contents, so that the order in which they are named makes no difference.
        stores.sort(key=lambda s: (s.manifest["model"]["name"], s.manifest["contexts"]))
        first = stores[0].manifest
        head = {k: first[k] for k in ("storage", "d_model", "layers", "settings", "model", "special_ids")}
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        census = building.Census()
        largest = max((int(s.tokens["token_id"].max(initial=0)) for s in stores), default=0)
        chosen = building.selection(head, largest + 1, path)
        for store in stores:
            building.refeed(store, chosen, census)
        _write(path, head, chosen, census, None, stores, progress=progress)
        return cls(path)

    @neutral()
    def accelerate(self, kind: str = "ivf-pq", *, recall: float = 0.99, progress: bool = True) -> ContextIndex:
        """Make an approximate index of every layer beside the rows, for ``search(method="approximate")``.

        Candidates from FAISS are ranked again by their exact similarity.  Their number and the effort (nprobe or
        efSearch) are the least that reach ``recall`` among the ten nearest, measured on this index; :meth:`info`
        shows what was measured.  Where no number of candidates reaches it a warning names the layers, and
        :meth:`search` warns when it looks in one of them.

        Args:
            kind: "ivf-pq" (the fastest and smallest), "ivf-sq8", or "hnsw", a graph, which may never lead to the
                nearest rows of states unlike its own (those of a far layer).
            recall: what share of the ten nearest shall be found, above 0 and up to 1.
        """
        if not 0 < recall <= 1:
            raise InputError(f"recall={recall} is not a share of neighbours to find. Use a number up to 1, e.g. 0.99.")
        if kind not in searching.KINDS:
            raise InputError(f"There is no approximate index {kind!r}. Use one of {', '.join(searching.KINDS)}.")
        from tqdm.auto import tqdm

        faiss = searching.faiss()
        files = {layer: self.store.part(searching.approximate_file(layer)) for layer in self.layers}
        rows = [name for name in self.store.folder.done if name not in files.values()]
        if self.manifest.get("approximate"):
            with Folder.revise(self.path, KIND) as folder:
                folder.seal({k: v for k, v in folder.extra.items() if k != "approximate"}, parts=rows)
            self._open()
        effort, candidates, measured = {}, {}, {}
        with Folder.revise(self.path, KIND) as folder:
            for layer, name in tqdm(files.items(), desc=f"{kind} index", disable=not progress, delay=1.0):
                # A little more than asked for: the queries to come are not the ones measured with.
                index, found = searching.made_and_tuned(kind, self.store, layer, min(1.0, recall + 0.003))
                effort[str(layer)], candidates[str(layer)] = found.effort, found.candidates
                measured[str(layer)] = math.floor(found.recall * 1e4) / 1e4
                folder.write(name, lambda file, index=index: faiss.write_index(index, file))
            made = {
                "kind": kind, "effort": effort, "candidates": candidates, "recall_at_10": measured, "wanted": recall,
            }  # fmt: skip
            folder.seal({**folder.extra, "approximate": made}, parts=[*rows, *files.values()])
        self._open()
        self._warn_missed(self.layers)
        return self

    def _warn_missed(self, layers: Iterable[int]) -> None:
        """Warn, once for each opened index, of layers whose approximate search finds less than was wanted."""
        made = self.manifest["approximate"]
        missed = {x: r for x in layers if (r := made["recall_at_10"][str(x)]) < made["wanted"]}
        if not missed or missed.keys() <= self._warned:
            return
        self._warned |= missed.keys()
        said = ", ".join(f"{r:.3f} at layer {x}" for x, r in missed.items())
        others = " or ".join(repr(kind) for kind in searching.KINDS if kind not in (made["kind"], "hnsw"))
        warnings.warn(
            f"The approximate index ({made['kind']}) finds less of the ten nearest than the {made['wanted']:g} that "
            f"was asked for: {said}. Neighbours found with it are not all the nearest ones. Use method='exact' there, "
            f"or make it again with kind={others}.",
            stacklevel=3,
        )

    # ---------------------------------------------------------------- use

    def check(self, model: Model, *, foreign: bool = False) -> None:
        """Raise IndexRefused unless the index was built with this model and tokenizer.

        ``foreign=True`` only asks for the same width: states of another model, e.g. a fine-tuned one, are then read
        with this one's.
        """
        mine = self.manifest["model"]
        if model.d_model != self.d_model:
            raise IndexRefused(
                f"The index holds states of width {self.d_model} ({mine['name']}) and {model.name} is {model.d_model} "
                "wide."
            )
        if foreign:
            return
        for what, theirs in (("tokenizer", model.tokenizer_fingerprint), ("fingerprint", model.fingerprint)):
            if mine[what] is None:
                raise IndexRefused(
                    f"The index at {self.path} does not say which model made it (it was imported without one). Import "
                    "it with model=, which checks it, or use foreign=True."
                )
            if mine[what] != theirs:
                if what == "fingerprint" and len(mine[what]) != len(theirs):
                    raise IndexRefused(
                        f"The index at {self.path} was built by version 0.1.0, whose fingerprints were counted from a "
                        "part of the weights: whether it was this model cannot be said. Build it again, or say "
                        "foreign=True if you know that it was."
                    )
                thing = "tokenizer" if what == "tokenizer" else "weights or configuration"
                raise IndexRefused(
                    f"The index was built with another {thing}: {mine['name']} ({what} {mine[what]}), not {model.name} "
                    f"({theirs}). Nearness between states of two models need not mean anything. Build an index with "
                    "this model, or say foreign=True if reading one model with another's states is what you want."
                )

    @neutral()
    def nearest(
        self,
        states: Any,
        top_k: int = 5,
        *,
        layers: int | Iterable[int] | None = None,
        calibration: str = "none",
        distinct: bool = True,
        special: bool = False,
        without: Any = None,
        method: str = "exact",
        device: Any = None,
        barred: searching.Pairs | None = None,
    ) -> Found:
        """Numbers of the nearest rows; the arguments are those of :meth:`search`.

        ``barred``: pairs of a query and a row (:meth:`same_beginnings`) that this query does not find.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no neighbour. Use 1 or more.")
        if calibration not in searching.CALIBRATIONS:
            raise InputError(f"calibration={calibration!r} is unknown. Use one of {', '.join(searching.CALIBRATIONS)}.")
        if method not in ("exact", "approximate"):
            raise InputError(f"method={method!r} is unknown. Use 'exact' or 'approximate'.")
        if method == "approximate" and calibration != "none":
            raise InputError(
                f"The approximate index knows plain cosines only; search {calibration!r} with method='exact'."
            )
        queries = searching.checked_queries(states, self.d_model)
        queries = queries.to(device) if device is not None else queries
        wanted = self.chosen_layers(layers)
        hidden = np.zeros(0, np.int64) if special else self._hidden
        if without is not None:
            hidden = np.union1d(hidden, np.asarray(without, np.int64))
        if barred is not None:
            order = np.argsort(barred[1], kind="stable")
            barred = barred[0][order], barred[1][order]
        k = min(top_k, self.n_rows)
        if method == "approximate" and self.manifest.get("approximate"):
            self._warn_missed(wanted)
        scores, rows = [], []
        with torch.no_grad():
            for layer in wanted if k else ():
                if method == "approximate":
                    quick, made = self._quick(layer), self.manifest["approximate"]
                    # Indexes made before the number was tuned do not say it.
                    many = made.get("candidates", {}).get(str(layer), searching.KINDS[made["kind"]])
                    found = searching.approximate(quick, many, self.store.matrix(layer), queries, k, hidden, barred)
                else:
                    found = searching.exact(self._scale(layer, calibration), queries, k, hidden, barred)
                scores.append(found[0])
                rows.append(found[1])
        if not scores:
            scores, rows, wanted = [torch.zeros(len(queries), 0)], [torch.zeros(len(queries), 0).long()], wanted[:1]
        return searching.merge(wanted, scores, rows, top_k, distinct)

    def search(
        self,
        states: Any,
        top_k: int = 5,
        *,
        layers: int | Iterable[int] | None = None,
        calibration: str = "none",
        distinct: bool = True,
        special: bool = False,
        without: Any = None,
        method: str = "exact",
        device: Any = None,
        model: Model | None = None,
    ) -> xr.Dataset:
        """The nearest contexts of each state, over all index layers together.

        Args:
            states: [queries, d_model] or [d_model]; a tensor or an array.
            layers: index layers to look in; None: all.
            calibration: "none" (cosine), "centre", "z-score" or "csls" (:mod:`lenses.latent.search`).
            distinct: a context counts once, in the layer where it is nearest.
            special: also find contexts that end in a special token (beginning of sequence and the like).
            without: numbers of rows that are not to be found (the queries' own contexts, say).
            method: "exact", or "approximate" where :meth:`accelerate` made such an index.
            device: where to compute, e.g. "cuda"; default: where the states are.
            model: where the states come from, if it shall be checked that the index fits.

        Returns:
            dims (query, rank): similarity, index_layer, token_id, token, next_token_id, next_token, sentence,
            token_position, word, char_start, char_end, context.  Where there are fewer contexts than asked for, numbers
            are -1, similarities NaN and texts empty.

        Raises:
            StateError: a state with NaN, infinity or only zeros; the message names its row.
            InputError: states of another width, layers that are not stored.
            IndexRefused: damaged files, or an index of another model.
        """
        if model is not None:
            self.check(model)
        found = self.nearest(
            states, top_k, layers=layers, calibration=calibration, distinct=distinct, special=special, without=without,
            method=method, device=device,
        )  # fmt: skip
        dims = ("query", "rank")
        variables = {
            "similarity": (dims, found.similarity),
            "index_layer": (dims, found.layer),
            **{name: (dims, values) for name, values in self.describe(found.row).items()},
        }
        attrs: dict[str, Any] = {"index": str(self.path), "calibration": calibration, "method": method}
        if method == "approximate":
            made = self.manifest["approximate"]
            attrs["recall_at_10"] = min(made["recall_at_10"][str(x)] for x in self.chosen_layers(layers))
            attrs["recall_wanted"] = made["wanted"]
        return described(xr.Dataset(variables, {"rank": np.arange(top_k)}, attrs), searching.VARIABLES)

    def origin(self) -> Reading:
        """The index itself, as the source of what is found in it."""
        made = self.manifest
        known = {name: made[name] for name in ("contexts", "n_rows", "corpus", "settings", "storage")}
        model = {k: v for k, v in made["model"].items() if k != "source"}
        name = {"model": model["name"]} if model.get("name") else {}
        return Reading(xr.Dataset(attrs=name), {"step": "index", "index": known, "model": model})

    def same_beginnings(
        self, prompts: Sequence[Sequence[int]], query: np.ndarray, position: np.ndarray, *, whole: bool = False
    ) -> searching.Pairs:
        """Which rows hold the very state of a position, because their sentence begins with the same tokens.

        Args: token ids of prompts; for each state that is looked up the prompt [states] it is of and its position.
        Special tokens in front are no part of a beginning.  whole: of a model that also looks ahead, where states are
        the same only if the whole sentence is.

        Returns: pairs of a state and a row.
        """
        if whole not in self._beginnings:
            flat, starts = self.store.token_ids()
            hashes = _beginnings(flat, starts, self.manifest["special_ids"], whole)
            table = self.store.contexts
            # An import without a model has no token ids.
            own = hashes[starts[table["sentence"]] + table["position"]] if len(flat) else np.zeros(0, np.uint64)
            order = np.argsort(own, kind="stable")
            self._beginnings[whole] = own[order], order
        own, order = self._beginnings[whole]
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in prompts])]).astype(np.int64)
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in prompts])
        wanted = _beginnings(flat, starts, self.manifest["special_ids"], whole)[starts[query] + position]
        low, high = np.searchsorted(own, wanted), np.searchsorted(own, wanted, "right")
        count = high - low
        state = np.repeat(np.arange(len(wanted)), count)
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        return state, order[place]

    def describe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What the contexts of these row numbers are; arrays of the same shape (-1: no row)."""
        used = np.unique(rows)
        used = used[used >= 0]
        table = self.store.contexts
        sentence, position = table["sentence"][used], table["position"][used]
        start, end = table["char_start"][used], table["char_end"][used]
        numbers, at = np.unique(sentence, return_inverse=True)
        texts = self.store.sentences["text"].take(numbers).to_pylist() if len(numbers) else []
        texts = [texts[i] for i in at]
        flat, starts = self.store.token_ids()
        after = starts[sentence] + position + 1
        # An import without a model has no token ids, and so nothing that follows.
        flat = np.append(flat, np.int32(-1))
        following = np.where(after < starts[sentence + 1], flat[np.minimum(after, len(flat) - 1)], -1)
        words = []
        for text, a, b in zip(texts, start, end, strict=True):
            a, b = word_span(text, int(a), int(b))
            words.append(text[a:b])
        columns: dict[str, Any] = {
            "token_id": table["token_id"][used],
            "token": self.token_texts(table["token_id"][used]),
            "next_token_id": following.astype(np.int32),
            "next_token": self.token_texts(following),
            "sentence": np.array(texts, object),
            "token_position": position,
            "word": np.array(words, object),
            "char_start": start,
            "char_end": end,
        }
        place = np.searchsorted(used, rows)
        found = {}
        for name, values in columns.items():
            blank = "" if values.dtype == object else -1
            found[name] = np.append(values, np.array([blank], values.dtype))[np.where(rows >= 0, place, -1)]
        return {**found, "context": rows.astype(np.int32)}

    def info(self) -> dict[str, Any]:
        """Size, model, corpus coverage and recall, as a dict of plain values."""
        tokens, kept = self.store.tokens, np.bincount(self.store.contexts["token_id"]) if self.n_rows else np.zeros(1)
        settings = self.manifest["settings"]
        size = sum(entry["bytes"] for entry in self.manifest["files"].values())
        seen = len(tokens["token_id"])
        return {
            "path": str(self.path),
            "contexts": self.n_rows,
            "sentences": self.manifest["n_sentences"],
            "layers": self.layers,
            "width": self.d_model,
            "storage": self.manifest["storage"],
            "bytes": size,
            "model": self.manifest["model"],
            "settings": settings,
            "corpus": self.manifest["corpus"],
            "sentences_run": self.manifest["n_sentences"] / max(1, self.manifest["corpus"]["sentences"]),
            "tokens_seen": seen,
            "tokens_with_all_contexts": int((kept >= settings["contexts_per_token"]).sum()),
            "approximate": self.manifest.get("approximate"),
        }

    @neutral()
    def sample(self, n: int, seed: int = 2) -> Sample:
        """About ``n`` of the stored states (unit length), from all layers alike, and which they are."""
        each = min(-(-n // len(self.layers)), self.n_rows)
        rng = np.random.Generator(np.random.PCG64(seed))
        rows = [np.sort(rng.choice(self.n_rows, each, replace=False)) for _ in self.layers]
        found = [self.store.matrix(layer) for layer in self.layers]
        units = torch.cat([m.encoding.back(m.gather(r)) for m, r in zip(found, rows, strict=True)])
        norm = torch.cat([m.norm[torch.from_numpy(r)] for m, r in zip(found, rows, strict=True)])
        return Sample(units, norm, np.repeat(self.layers, each), np.concatenate(rows))

    # ---------------------------------------------------------------- within

    @property
    def _hidden(self) -> np.ndarray:
        """Ascending rows of special tokens."""
        if self._special is None:
            self._special = np.flatnonzero(np.isin(self.store.contexts["token_id"], self.manifest["special_ids"]))
        return self._special

    def chosen_layers(self, layers: int | Iterable[int] | None) -> list[int]:
        """Index layers by their numbers, or all.  Raises InputError for one that is not stored."""
        if layers is None:
            return self.layers
        wanted = [layers] if isinstance(layers, int) else list(layers)
        for layer in wanted:
            if layer not in self.layers:
                raise InputError(
                    f"The index holds layers {self.layers}, not {layer}. Build it with layers=[..., {layer}]."
                )
        return sorted(set(wanted))

    def _scale(self, layer: int, calibration: str) -> Scale:
        if (layer, calibration) not in self._scales:
            sample = self.sample(searching.SAMPLE) if calibration == "csls" else None
            self._scales[layer, calibration] = Scale(self.store.matrix(layer), calibration, sample)
        return self._scales[layer, calibration]

    def _quick(self, layer: int) -> Any:
        made = self.manifest.get("approximate")
        if not made:
            raise InputError(f"The index at {self.path} has no approximate index. Make one with .accelerate().")
        if layer not in self._faiss:
            faiss = searching.faiss()
            raw = self.store.checked(searching.approximate_file(layer)).whole()
            index = faiss.deserialize_index(np.frombuffer(raw, np.uint8))
            searching.set_effort(index, made["effort"][str(layer)])
            self._faiss[layer] = index
        return self._faiss[layer]

    def token_texts(self, ids: np.ndarray) -> np.ndarray:
        """Texts of token ids of the corpus; "" for ids that it does not have."""
        table = self.store.tokens
        at = np.searchsorted(table["token_id"], ids)
        at[at == len(table["token_id"])] = 0
        good = table["token_id"][at] == ids if len(table["token_id"]) else np.zeros(len(ids), bool)
        return np.where(good, table["token"][at], "") if len(table["token"]) else np.full(len(ids), "", object)


def _beginnings(flat: np.ndarray, starts: np.ndarray, special: Iterable[int], whole: bool = False) -> np.ndarray:
    """[tokens] for each token a 64-bit hash of its sentence up to and with it; special tokens in front do not count.

    ``whole``: also of the sentence to its end.
    """
    found = np.zeros(len(flat), np.uint64)
    length, state = np.diff(starts), np.zeros(len(starts) - 1, np.uint64)
    special = np.isin(flat, list(special))
    alive, step = np.flatnonzero(length > 0), 0
    started = np.zeros(len(length), bool)
    while len(alive):
        at = starts[alive] + step
        started[alive] |= ~special[at]
        mixed = (state[alive] + flat[at].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        state[alive] = np.where(started[alive], mixed, state[alive])
        found[at] = state[alive]
        step += 1
        alive = alive[length[alive] > step]
    return found ^ np.repeat(state * np.uint64(0xBF58476D1CE4E5B9), length) if whole else found


def _write(
    path: Path,
    head: dict[str, Any],
    chosen: Any,
    census: Any,
    model: Model | None,
    sources: Sequence[Store] = (),
    *,
    batch_tokens: int | None = None,
    replace: bool = False,
    progress: bool = True,
) -> None:
    """Finish a selection and write its index, with the tables that need a tokenizer or the sources'."""
    kept: Kept = chosen.finish()
    if model is not None:
        batch_tokens = batch_tokens or (8192 if model.device.type == "cuda" else 512)
        spans = building.spans_of(model, kept, head["settings"].get("bos"))
        texts = lambda ids: token_texts(model.tokenizer, ids)  # noqa: E731
    else:
        spans = building.spans_in(kept, sources)
        known = {i: t for s in sources for i, t in zip(s.tokens["token_id"].tolist(), s.tokens["token"], strict=True)}
        texts = lambda ids: [known[i] for i in ids]  # noqa: E731
    tables = {"spans": spans, "tokens": building.token_table(chosen.occurrences, texts)}
    room = shutil.disk_usage(path).free
    need = len(kept) * len(head["layers"]) * head["d_model"] * (2 if head["storage"] == "fp16" else 1)
    if need > room:
        raise InputError(
            f"The index takes {need / 1e9:.1f} GB and {path} has {room / 1e9:.1f} GB free. Use storage='int8', fewer "
            "layers or a smaller contexts_per_token."
        )
    building.materialise(
        path, head, kept, census, tables, model=model, sources=sources, replace=replace,
        batch_tokens=batch_tokens or 512, progress=progress,
    )  # fmt: skip


def _loaded(model: Any) -> Model:
    from workbench.model import load

    return load(model)


def _vocabulary(model: Model) -> int:
    return max(len(model.tokenizer) if model.tokenizer is not None else 0, model.vocab_size)
