"""LatentLens: the contexts whose states lie nearest to a state, over all layers of an index (arXiv 2602.00462)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lenses.latent.build import tell_of_beginnings
from lenses.latent.index import ContextIndex
from lenses.latent.search import CALIBRATIONS, Found
from lenses.latent.search import VARIABLES as NEIGHBOURS
from lenses.nulls import ROWS, Null, floors, left_out, looks_ahead, null_states, p_and_q
from workbench.errors import InputError
from workbench.sites import Site, resolve
from workbench.stats import bootstrap_interval
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

AT_ONCE = 4096
"""States that wait before the index is read for all of them together."""
RANDOM = 100
"""States of random tokens that are searched at each layer."""
VARIABLES = {
    **NEIGHBOURS,
    "similarity_floor_random": about(
        "95th percentile of the best similarity of random tokens", role="floor", of="similarity",
        short_name="random tokens",
    ),
    "similarity_floor_shuffled": about(
        "95th percentile of the best similarity in shuffled prompts", role="floor", of="similarity",
        short_name="shuffled prompts",
    ),
    "similarity_p": about(
        "p of the nearest context among states of shuffled prompts", better="low", role="p", of="similarity",
        short_name="p of nearest",
    ),
    "similarity_q": about(
        "p of the nearest context, adjusted for the number of cells", better="low", role="q", of="similarity",
        short_name="q of nearest",
    ),
    "index_layer_share": about("share of the neighbours from an index layer", short_name="share"),
    "index_layer_share_low": about(
        "95 % bootstrap interval over prompts", role="low", of="index_layer_share"
    ),
    "index_layer_share_high": about(
        "95 % bootstrap interval over prompts", role="high", of="index_layer_share"
    ),
    "index_layer_share_null": about(
        "share of the neighbours of random tokens", role="null", of="index_layer_share", short_name="random tokens"
    ),
}  # fmt: skip


class LatentLens:
    """Nearest contexts of every state, found in the same pass as any other lens.

    Args:
        index: a :class:`ContextIndex` or the folder of one.  It must have been built with the model that is read.
        layers: layers of the model to read (or blocks, with another ``at``); None: all.
        top_k: how many contexts to keep.
        index_layers: layers of the index to look in; None: all of them together, as in the paper.
        calibration: "none", "centre", "z-score" or "csls" (:mod:`lenses.latent.search`).
        distinct: a context counts once, in the index layer where it is nearest.
        method: "exact" or "approximate".
        at: "resid", "resid_mid", "attn_out" or "mlp_out".
        floors: compute floors and p-values (two further passes; 356 to 1124 of their states are searched a layer).
        foreign: read a model with an index that another one built.
        without: numbers of rows that are never found.
        self_matches: also find contexts whose sentence begins with the very tokens of the prompt, up to the position
            that is read (in a model that looks ahead: whose sentence is the prompt).  Their states are equal to the
            prompt's by construction and say nothing, so that they are left out by default; the attribute
            ``self_matches_left_out`` counts the positions that have any.

    The reading's variables, [prompt, layer, position, rank]:
        similarity, index_layer, token_id, token, next_token_id, next_token, sentence, token_position, word,
        char_start, char_end, row: as :meth:`ContextIndex.search` gives them
    and their controls:
        similarity_floor_shuffled  [layer]: the 95th percentile of the best similarity of states of these prompts with
                                   their tokens in random order.  A neighbour below it says no more than a context
                                   without order would.
        similarity_p               [prompt, layer, position]: rank p-value of the best neighbour among the same states,
                                   less what its token reaches in any context (:func:`lenses.nulls.p_and_q`)
        similarity_q               the same over all cells of the reading (Benjamini-Hochberg)
        similarity_floor_random    [layer]: as the other floor, of prompts of random tokens (as frequent as in the
                                   index's corpus)
        sink                       [prompt, layer, position]: attention sinks (:mod:`workbench.sinks`).  They, special
                                   tokens and pieces of images are in no null and have no p; floors and p are NaN where
                                   fewer than 20 null states are left (attribute ``reason``).
        index_layer_share          [layer, index]: how often neighbours come from each index layer; _low and _high are
                                   the 95 % bootstrap interval over prompts (NaN with fewer than two prompts).
                                   Sinks are left out.
        index_layer_share_null     [layer, index]: the same for the states of random tokens: what the index alone
                                   prefers.

    Raises IndexRefused when the index is damaged or was built with another model.
    """

    def __init__(
        self,
        index: ContextIndex | str | os.PathLike[str],
        layers: int | Iterable[int] | None = None,
        top_k: int = 5,
        *,
        index_layers: int | Iterable[int] | None = None,
        calibration: str = "none",
        distinct: bool = True,
        method: str = "exact",
        at: str = "resid",
        floors: bool = True,
        foreign: bool = False,
        without: Iterable[int] | None = None,
        self_matches: bool = False,
    ) -> None:
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no neighbour. Use 1 or more.")
        if calibration not in CALIBRATIONS:
            raise InputError(f"calibration={calibration!r} is unknown. Use one of {', '.join(CALIBRATIONS)}.")
        self.index = index if isinstance(index, ContextIndex) else ContextIndex.open(index)
        self.layers, self.top_k, self.at = layers, top_k, at
        self.floors, self.foreign, self.self_matches = floors, foreign, self_matches
        self.without = None if without is None else np.unique(np.fromiter(without, np.int64))
        self._options: dict[str, Any] = {
            "layers": index_layers, "calibration": calibration, "distinct": distinct, "method": method,
        }  # fmt: skip

    @classmethod
    def demo(cls, model: Model, folder: Any) -> LatentLens:
        """The lens over a small index of made-up stories, built in ``folder`` (an index that is there is replaced)."""
        from workbench.organisms.story.grammar import stories

        small = sum(p.numel() for p in model.module.parameters()) < 5e6
        texts = [story.text for story in stories(1500 if small else 150, 5)]
        if (folder / "manifest.json").exists():
            shutil.rmtree(folder)
        return cls(ContextIndex.build(model, texts, folder))

    def sites(self, model: Model) -> list[Site]:
        self.index.check(model, foreign=self.foreign)
        self._wanted = resolve(model, self.at, self.layers)
        return self._wanted

    def begin(self, run: Run) -> None:
        self._run = run
        tell_of_beginnings(self.index.manifest, run)
        depth = [len(self._wanted)]
        self._similarity = run.empty(depth, after=[self.top_k])
        self._layer = run.empty(depth, np.int32, after=[self.top_k])
        self._row = run.empty(depth, np.int64, after=[self.top_k])
        self._waiting: list[tuple[int, np.ndarray, np.ndarray, Tensor]] = []
        # Token ids of another tokenizer cannot be compared.
        own = run.model.tokenizer_fingerprint == self.index.manifest["model"]["tokenizer"]
        self._barring = own and not self.self_matches
        self._ahead = self._barring and looks_ahead(run.model)
        self._matched = np.zeros((len(run.prompts), len(run.positions)), bool)

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        depth = self._wanted.index(site)
        rows = batch.take(states).float()
        place = batch.prompt.numpy(), batch.slot.numpy()
        batch.done.append(lambda: self._waiting.append((depth, *place, rows)))
        if depth == len(self._wanted) - 1:
            batch.done.append(self._search)

    def _search(self, at_least: int = AT_ONCE) -> None:
        """Look up the states that wait, when there are enough of them to be worth a pass over the index."""
        if sum(len(rows) for *_, rows in self._waiting) < at_least:
            return
        states = torch.cat([rows for *_, rows in self._waiting])
        prompt, slot = (np.concatenate([waiting[i] for waiting in self._waiting]) for i in (1, 2))
        prompts = self._run.prompts
        position = np.array([prompts[p].positions[s] for p, s in zip(prompt, slot, strict=True)], np.int64)
        found, matched = self._nearest(states, [p.ids for p in prompts], prompt, position)
        self._matched[prompt, slot] |= matched
        at = 0
        for depth, prompt, slot, rows in self._waiting:
            part = slice(at, at + len(rows))
            self._similarity[prompt, depth, slot] = found.similarity[part]
            self._layer[prompt, depth, slot] = found.layer[part]
            self._row[prompt, depth, slot] = found.row[part]
            at += len(rows)
        self._waiting = []

    def _nearest(
        self, states: Tensor, prompts: list[list[int]], prompt: np.ndarray, position: np.ndarray
    ) -> tuple[Found, np.ndarray]:
        """Neighbours of states [n, width] of these prompts and positions, and which have self-matches [n].

        None for a state of zeros, which has no direction (the embedding of a pad, say).
        """
        some = (states != 0).any(1).cpu().numpy()
        shape, matched = (len(states), self.top_k), np.zeros(len(states), bool)
        found = Found(np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int32), np.full(shape, -1))
        if some.any():
            barred = None
            if self._barring:
                barred = self.index.same_beginnings(prompts, prompt[some], position[some], whole=self._ahead)
            if barred is not None:
                matched[np.flatnonzero(some)[barred[0]]] = True
            held = self.index.nearest(
                states[torch.from_numpy(some).to(states.device)], self.top_k, barred=barred, without=self.without,
                **self._options,
            )  # fmt: skip
            found.similarity[some], found.layer[some], found.row[some] = held.similarity, held.layer, held.row
        return found, matched

    # ---------------------------------------------------------------- controls

    def _scores(self, null: Null) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each depth the best similarity [rows] of its null states, and the index layers [rows, rank]."""
        found, _ = self._nearest(
            torch.cat(null.states), null.prompts, np.concatenate(null.prompt), np.concatenate(null.position)
        )
        return null.split(found.similarity[:, 0]), null.split(found.layer)

    def _drawn(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Token ids, as frequent as in the index's corpus."""
        table = self.index.store.tokens
        known = self._run.model.module.get_input_embeddings().num_embeddings
        good = ~np.isin(table["token_id"], self.index.manifest["special_ids"]) & (table["token_id"] < known)
        weight = np.where(good, table["occurrences"], 0).astype(float)
        return rng.choice(table["token_id"], n, p=weight / weight.sum())

    def _controls(self, axis: str) -> dict[str, Any]:
        shuffled = null_states(self._run, self._wanted)
        random = null_states(self._run, self._wanted, RANDOM, draw=self._drawn, seed=1)
        (scores, _), (lowest, layers) = self._scores(shuffled), self._scores(random)
        p, q = p_and_q(self._similarity[..., 0], self._run, shuffled, scores, left_out(self._run, self._wanted))
        cells = ("prompt", axis, "position")
        of = {"of": "similarity", "reason": shuffled.reason}
        share = np.stack([self._share(one[None])[0] for one in layers])
        return {
            "similarity_floor_random": (
                (axis,), floors(lowest), {"role": "floor", "of": "similarity", "reason": random.reason,
                "long_name": "95th percentile of the best similarity of random tokens"},
            ),
            "similarity_floor_shuffled": (
                (axis,), floors(scores), {"role": "floor", **of,
                "long_name": "95th percentile of the best similarity in shuffled prompts"},
            ),
            "similarity_p": (cells, p, {"role": "p", **of, "long_name": "p among states of shuffled prompts"}),
            "similarity_q": (cells, q, {"role": "q", **of, "long_name": "p, adjusted for the number of cells"}),
            "index_layer_share_null": ((axis, "index"), share),
        }  # fmt: skip

    def end(self) -> Reading:
        from workbench.reading import Reading

        self._search(at_least=1)
        ordinary = np.where(left_out(self._run, self._wanted)[..., None], -1, self._layer)
        axis = "layer" if self.at == "resid" else "block"
        dims = ("prompt", axis, "position", "rank")
        variables: dict[str, Any] = {
            "similarity": (dims, self._similarity),
            "index_layer": (dims, self._layer),
            **{name: (dims, values) for name, values in self.index.describe(self._row).items()},
            "index_layer_share": ((axis, "index"), self._share(np.moveaxis(ordinary, 1, 0))),
        }
        for end, bound in zip(("low", "high"), self._share_interval(ordinary), strict=True):
            variables[f"index_layer_share_{end}"] = ((axis, "index"), bound.astype(np.float32))
        if self.floors and self._similarity.size:
            variables |= self._controls(axis)
        coords = {
            axis: [s.index for s in self._wanted], "rank": np.arange(self.top_k), "index": np.array(self._looked_in()),
        }  # fmt: skip
        data = self._run.dataset(
            variables, coords, reader="LatentLens", at=self.at, self_matches_left_out=int(self._matched.sum())
        )
        # The ids are those of the index's tokenizer, which with foreign=True need not be the model's.
        data["vocab_token"] = data["vocab_token"].copy(data=self.index.token_texts(data["vocab"].values))
        made = self.index.manifest
        settings = {
            "name": "LatentLens", "at": self.at, "top_k": self.top_k, **self._options, "foreign": self.foreign,
            "index_layers": self._looked_in(),
            "index": {k: made[k] for k in ("data", "n_rows", "corpus", "settings", "storage")}
            | {"model": {k: v for k, v in made["model"].items() if k != "source"}},
            "floors": f"95th percentile of the best similarity of at most {RANDOM} states of random tokens, and of at "
            f"most {ROWS[1]} states of the prompts with their tokens in random order; sinks left out",
            "p": "rank among the shuffled states, less what a token reaches in any context; q: over all cells",
            "self_matches": "found" if not self._barring else "left out",
            "without": 0 if self.without is None else len(self.without),
            "interval": "95 % percentile bootstrap over prompts, of index_layer_share",
        }  # fmt: skip
        settings.pop("layers")
        if self._options["method"] == "approximate":
            settings["recall_at_10"] = made["approximate"]["recall_at_10"]
        return Reading(described(data, VARIABLES), {"reader": settings})

    def _looked_in(self) -> list[int]:
        return self.index.chosen_layers(self._options["layers"])

    def _share_interval(self, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two [depth, index]: prompts are resampled, and each counts as much as it has neighbours."""
        own = np.stack([self._share(layers) for layers in neighbours])
        weight = (neighbours >= 0).sum((2, 3))[..., None].astype(float)
        return bootstrap_interval(own, weight)

    def _share(self, layers: np.ndarray) -> np.ndarray:
        """[depth, ...] index layers of neighbours -> [depth, index] shares that add up to 1."""
        flat = layers.reshape(len(layers), -1)
        counts = np.stack([(flat == x).sum(1) for x in self._looked_in()], 1)
        return (counts / counts.sum(1, keepdims=True).clip(1)).astype(np.float32)
