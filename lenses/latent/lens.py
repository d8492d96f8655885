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
from lenses.states import States
from workbench.errors import InputError
from workbench.reader import read
from workbench.sites import Site, resolve
from workbench.stats import RandomDirections, bootstrap_interval

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.reader import Run
    from workbench.reading import Reading

AT_ONCE = 4096
"""States that wait before the index is read for all of them together."""
DRAWS = 100
SHUFFLED = 128
"""Places whose states under shuffled contexts are searched, at each layer."""


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
        floors: compute the two floors (a further pass over at most 128 positions, and 100 draws for each layer).
        foreign: read a model with an index that another one built.

    The reading's variables, [prompt, layer, position, rank]:
        similarity, index_layer, token_id, token, next_token_id, next_token, sentence, token_position, word,
        char_start, char_end, row: as :meth:`ContextIndex.search` gives them
    and their controls:
        similarity_floor_random    [layer]: the 95th percentile of the best similarity that random states with the
                                   mean and covariance of this layer's states reach.
        similarity_floor_shuffled  [layer]: the same of states of these prompts with their tokens in random order.
                                   A neighbour below a floor says no more than such a state would.
        index_layer_share          [layer, index]: how often neighbours come from each index layer; _low and _high are
                                   the 95 % bootstrap interval over prompts (NaN with fewer than two prompts).
        index_layer_share_null     [layer, index]: the same for the random states: what the index alone prefers.

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
    ) -> None:
        if top_k < 1:
            raise InputError(f"top_k={top_k} keeps no neighbour. Use 1 or more.")
        if calibration not in CALIBRATIONS:
            raise InputError(f"calibration={calibration!r} is unknown. Use one of {', '.join(CALIBRATIONS)}.")
        self.index = index if isinstance(index, ContextIndex) else ContextIndex.open(index)
        self.layers, self.top_k, self.at = layers, top_k, at
        self.floors, self.foreign = floors, foreign
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
        self._random = RandomDirections(depth[0], run.model.d_model, DRAWS) if self.floors else None

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        depth = self._wanted.index(site)
        rows = batch.take(states).float()
        place = batch.prompt.numpy(), batch.slot.numpy()
        if self._random is not None:
            self._random.observe(depth, rows, batch)
        batch.done.append(lambda: self._waiting.append((depth, *place, rows)))
        if depth == len(self._wanted) - 1:
            batch.done.append(self._search)

    def _search(self, at_least: int = AT_ONCE) -> None:
        """Look up the states that wait, when there are enough of them to be worth a pass over the index."""
        if sum(len(rows) for *_, rows in self._waiting) < at_least:
            return
        for_all = torch.cat([rows for *_, rows in self._waiting])
        found = self._nearest(for_all)
        at = 0
        for depth, prompt, slot, rows in self._waiting:
            part = slice(at, at + len(rows))
            self._similarity[prompt, depth, slot] = found.similarity[part]
            self._layer[prompt, depth, slot] = found.layer[part]
            self._row[prompt, depth, slot] = found.row[part]
            at += len(rows)
        self._waiting = []

    def _nearest(self, states: Tensor) -> Found:
        """Neighbours; none for a state of zeros, which has no direction (the embedding of a pad, say)."""
        some = (states != 0).any(1).cpu().numpy()
        shape = (len(states), self.top_k)
        found = Found(np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int32), np.full(shape, -1))
        if some.any():
            held = self.index.nearest(states[torch.from_numpy(some).to(states.device)], self.top_k, **self._options)
            found.similarity[some], found.layer[some], found.row[some] = held.similarity, held.layer, held.row
        return found

    # ---------------------------------------------------------------- controls

    def _floor_random(self) -> tuple[np.ndarray, Found]:
        assert self._random is not None
        found = self._nearest(torch.cat([self._random.draw(d) for d in range(len(self._wanted))]))
        best = found.similarity[:, 0].reshape(-1, DRAWS)
        return np.nanquantile(best, 0.95, axis=1).astype(np.float32), found

    def _floor_shuffled(self) -> np.ndarray:
        """One more pass, over prompts whose tokens stand in random order (leading special tokens stay in front)."""
        special = set(self.index.manifest["special_ids"])
        rng = np.random.default_rng(0)
        shuffled: list[list[int]] = []
        inner: list[slice] = []
        for prompt in self._run.prompts:
            head = next((i for i, t in enumerate(prompt.ids) if t not in special), len(prompt.ids))
            room = SHUFFLED - sum(s.stop - s.start for s in inner)
            if room > 0 and not prompt.extras and len(prompt.ids) - head > 1:
                shuffled.append(prompt.ids[:head] + rng.permutation(prompt.ids[head:]).tolist())
                inner.append(slice(head, min(len(prompt.ids), head + room)))
        if not shuffled:
            return np.full(len(self._wanted), np.nan, np.float32)
        states = States([s.index for s in self._wanted], at=self.at)
        read(self._run.model, shuffled, states, progress=False)
        found = torch.cat([states.found[i, :, at] for i, at in enumerate(inner)], 1)
        best = self._nearest(found.flatten(0, 1)).similarity[:, 0].reshape(len(found), -1)
        return np.nanquantile(best, 0.95, axis=1).astype(np.float32)

    def end(self) -> Reading:
        from workbench.reading import Reading

        self._search(at_least=1)
        axis = "layer" if self.at == "resid" else "block"
        dims = ("prompt", axis, "position", "rank")
        variables: dict[str, Any] = {
            "similarity": (dims, self._similarity),
            "index_layer": (dims, self._layer),
            **{name: (dims, values) for name, values in self.index.describe(self._row).items()},
            "index_layer_share": ((axis, "index"), self._share(np.moveaxis(self._layer, 1, 0))),
        }
        for end, bound in zip(("low", "high"), self._share_interval(), strict=True):
            variables[f"index_layer_share_{end}"] = ((axis, "index"), bound.astype(np.float32))
        if self.floors and self._similarity.size:
            random, found = self._floor_random()
            variables["similarity_floor_random"] = ((axis,), random)
            variables["similarity_floor_shuffled"] = ((axis,), self._floor_shuffled())
            null = found.layer.reshape(len(self._wanted), -1)
            variables["index_layer_share_null"] = ((axis, "index"), self._share(null))
        coords = {
            axis: [s.index for s in self._wanted], "rank": np.arange(self.top_k), "index": np.array(self._looked_in()),
        }  # fmt: skip
        data = self._run.dataset(variables, coords, reader="LatentLens", at=self.at)
        # The ids are those of the index's tokenizer, which with foreign=True need not be the model's.
        data["vocab_token"] = (("vocab",), self.index.token_texts(data["vocab"].values))
        made = self.index.manifest
        settings = {
            "name": "LatentLens", "at": self.at, "top_k": self.top_k, **self._options, "foreign": self.foreign,
            "index_layers": self._looked_in(),
            "index": {k: made[k] for k in ("data", "n_rows", "corpus", "settings", "storage")}
            | {"model": {k: v for k, v in made["model"].items() if k != "source"}},
            "floors": f"95th percentile of the best similarity: {DRAWS} Gaussian draws with the layer's mean and "
            f"covariance; at most {SHUFFLED} states of the prompts with their tokens in random order",
            "interval": "95 % percentile bootstrap over prompts, of index_layer_share",
        }  # fmt: skip
        settings.pop("layers")
        if self._options["method"] == "approximate":
            settings["recall_at_10"] = made["approximate"]["recall_at_10"]
        return Reading(data, {"reader": settings})

    def _looked_in(self) -> list[int]:
        return self.index.chosen_layers(self._options["layers"])

    def _share_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Two [depth, index]: prompts are resampled, and each counts as much as it has neighbours."""
        own = np.stack([self._share(layers) for layers in self._layer])
        weight = (self._layer >= 0).sum((2, 3))[..., None].astype(float)
        return bootstrap_interval(own, weight)

    def _share(self, layers: np.ndarray) -> np.ndarray:
        """[depth, ...] index layers of neighbours -> [depth, index] shares that add up to 1."""
        flat = layers.reshape(len(layers), -1)
        counts = np.stack([(flat == x).sum(1) for x in self._looked_in()], 1)
        return (counts / counts.sum(1, keepdims=True).clip(1)).astype(np.float32)
