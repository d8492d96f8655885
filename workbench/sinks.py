"""Which positions are attention sinks: their states are so much longer than the others that they swamp every mean.

Real language models have *massive activations* (Sun et al. 2024, arXiv 2402.17762): at the first position, and
sometimes at a delimiter, a few dimensions of the residual stream are hundreds of times as large as anywhere else.  Such
a position serves the attention as a place to look at when there is nothing to look for (Xiao et al. 2023, arXiv
2309.17453); its state says next to nothing about its token.  One of them among a hundred positions turns a mean, a
covariance or a random direction into the direction of the sink.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy import reserved_ids
from workbench.reading import Reading
from workbench.sites import Site
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch, Prompt
    from workbench.model import Model

LEAST, MOST = 5.0, 20.0
"""Between which multiples of the layer's median norm the limit lies, beyond which a position is a sink."""
SPREAD = 2.0
"""Between these: so many times the norm that all but a tenth of the positions stay under.  A layer where norms are
merely spread (where kinds of words differ sixfold, say) has no sinks."""
PLACEHOLDER = re.compile(r"(image|video|audio|sound|img_context|video_context|sound_context)_token_(id|index)")
ENOUGH = 16
"""With fewer positions than this, the typical norm is taken from a pass over random tokens."""
SINK_ATTRIBUTES = about(
    "attention sink: a norm beyond 5 to 20 times the layer's median", role="mask", source="workbench.sinks"
)
_BINS, _OCTAVE, _LEAST = 4096, 32, -40
"""Norms are counted in bins of 1/32 octave, from 2^-40: medians of any number of positions in little memory."""


class Norms:
    """The norms of the states that a pass shows, at each site, and which positions are sinks by them.

    A position is a sink where its norm is beyond ``limit`` times the median over the positions of its kind (text, or
    image) at that site, first positions of prompts left out of the median, with

        limit = min(20, max(5, 2 * ninth decile / median)).

    The median is over all positions that ran, whichever were asked for, and does not depend on batches or padding.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt], positions: int, read: Callable[..., Any]) -> None:
        """``read``: :func:`workbench.read`, which this module cannot import: a reading counts the norms of its pass."""
        self.model, self.prompts, self._read = model, prompts, read
        self._shape = (len(prompts), positions)
        self._norm: dict[Site, np.ndarray] = {}
        self._counts: dict[Site, np.ndarray] = {}
        self._kinds = [image_positions(model, prompt) for prompt in prompts]

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        """Live states [batch, padded length, width]; counted once the batch is done."""
        norm = torch.linalg.vector_norm(states.detach(), dim=-1, dtype=torch.float32)
        mask = batch.inputs.get("attention_mask")
        whole = isinstance(mask, Tensor) and mask.shape == norm.shape and batch.first is not None

        def commit() -> None:
            # A pass may end early or run again in halves: nothing is kept of a batch that failed.
            found = norm.cpu().numpy()
            mine = found.reshape(-1)[batch.rows.cpu().numpy()]
            prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
            if site not in self._norm:
                self._norm[site] = np.full(self._shape, np.nan, np.float32)
                self._counts[site] = np.zeros((2, _BINS), np.int64)
            self._norm[site][prompt, slot] = mine
            if whole:
                real = mask.cpu().numpy().astype(bool)  # type: ignore[union-attr]
                for row, index in enumerate(batch.prompts):
                    own = found[row][real[row]]
                    image = self._kinds[index] if len(self._kinds[index]) == len(own) else np.zeros(len(own), bool)
                    self._count(site, own[1:], image[1:])
            else:
                self._count(site, mine, np.zeros(len(mine), bool))

        batch.done.append(commit)

    def _count(self, site: Site, norms: np.ndarray, image: np.ndarray) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            bins = np.floor((np.log2(norms) - _LEAST) * _OCTAVE)
        bins = np.nan_to_num(bins, nan=0, neginf=0, posinf=_BINS - 1).clip(0, _BINS - 1).astype(int)
        np.add.at(self._counts[site], (image.astype(int), bins), 1)

    def counts(self, site: Site) -> np.ndarray:
        """[bin] how many text positions have norms in each bin."""
        return self._counts[site][0]

    def __contains__(self, site: Site) -> bool:
        return site in self._norm

    def limit(self, site: Site) -> np.ndarray:
        """[text, image] norms beyond which a position is a sink; infinite where no position says what is usual."""
        counts = self._counts[site]
        return np.array([_limit(counts[0], lambda: self._usual(site)), _limit(counts[1], lambda: None)])

    def _usual(self, site: Site) -> np.ndarray:
        """Counts at a site over prompts of random tokens: what is usual, where prompts are too short to say."""
        kept = self.model.__dict__.setdefault("_usual_norms", {})
        token = self.model.fingerprint
        missing = [s for s in self._counts if (token, s) not in kept]
        if missing:
            kept |= {(token, s): counts for s, counts in _usual(self.model, missing, self._read).items()}
        return kept[token, site]

    def sinks(self, site: Site) -> np.ndarray:
        """[prompt, slot] whether each position that was read is a sink there."""
        limits = self.limit(site)
        image = np.zeros(self._shape, bool)
        for i, prompt in enumerate(self.prompts):
            if self._kinds[i].any():
                image[i, : len(prompt.positions)] = self._kinds[i][prompt.positions]
        with np.errstate(invalid="ignore"):
            return self._norm[site] > np.where(image, limits[1], limits[0])


def _limit(counts: np.ndarray, otherwise: Any) -> float:
    if counts.sum() < ENOUGH:
        usual = otherwise()
        if usual is None:
            return np.inf
        counts = counts + usual
    # Bins of zeros (pads that a model embeds as zeros, say) are no norms.
    share = np.cumsum(counts * (np.arange(_BINS) > 0))
    if not share[-1]:
        return np.inf
    middle, high = (2.0 ** ((np.searchsorted(share, q * share[-1]) + 0.5) / _OCTAVE + _LEAST) for q in (0.5, 0.9))
    return middle * min(MOST, max(LEAST, SPREAD * high / middle))


def _usual(model: Model, sites: list[Site], read: Callable[..., Any]) -> dict[Site, np.ndarray]:
    n = min(getattr(model.module.get_input_embeddings(), "num_embeddings", model.vocab_size), model.vocab_size)
    special = {*(getattr(model.tokenizer, "all_special_ids", None) or []), *reserved_ids(model.module.config)}
    length = min(16, model.context_length or 16)
    drawn = np.random.default_rng(0).integers(0, n, (64 // length, length))
    prompts = [[int(i) for i in row if int(i) not in special] or [0] for row in drawn]
    reader = _Counted(sites)
    read(model, prompts, reader, progress=False)
    return reader.counts


class _Counted:
    """A reader of nothing but the norms, which the pass itself counts."""

    def __init__(self, sites: list[Site]) -> None:
        self._sites = sites

    def sites(self, model: Model) -> list[Site]:
        return self._sites

    def begin(self, run: Any) -> None:
        self._run = run

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        pass

    def end(self) -> Any:
        self.counts = {site: self._run.norms.counts(site) for site in self._sites}
        return Reading(self._run.dataset({}, {}))


def image_positions(model: Model, prompt: Prompt) -> np.ndarray:
    """[position] whether a position holds a piece of an image, a video or a sound instead of text."""
    if not prompt.extras:
        return np.zeros(len(prompt.ids), bool)
    return np.isin(prompt.ids, placeholder_ids(model))


def placeholder_ids(model: Model) -> list[int]:
    """Token ids that stand for pieces of images, videos or sounds, by the names they have in the configuration."""
    config = getattr(model.module, "config", None)
    named = vars(config).items() if config is not None else ()
    return [value for name, value in named if PLACEHOLDER.fullmatch(name) and isinstance(value, int)]
