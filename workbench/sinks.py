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
TEXT, IMAGE, PADDING = 0, 1, 2
"""What a position holds; padding is a visual token that shows no part of its picture."""
ENOUGH = 16
"""With fewer positions than this, the typical norm is taken from a pass over random tokens."""
SINK_ATTRIBUTES = about(
    "attention sink: a norm beyond 5 to 20 times the layer's median", role="mask", source="workbench.sinks"
)
BINS, _OCTAVE, _LEAST = 4096, 32, -40
"""Norms are counted in bins of 1/32 octave, from 2^-40: medians of any number of positions in little memory."""


class Norms:
    """The norms of the states that a pass shows, at each site, and which positions are sinks by them.

    A position is a sink where its norm is beyond ``limit`` times the median over the positions of its kind (text, or
    image) at that site, first positions of prompts left out of the median.  Visual tokens that show nothing (padding,
    learned vectors) say nothing of what is usual, and are no sinks.  It is

        limit = min(20, max(5, 2 * ninth decile / median)).

    The median is over all positions that ran, whichever were asked for, and does not depend on batches or padding.

    Attributes
    ----------
    usual
        ``usual(sites) -> {site: counts}`` over prompts of random tokens, asked where prompts are too short to say what
        is usual; the engine sets it.
    """

    usual: Callable[[list[Site]], dict[Site, np.ndarray]]

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        self.model, self.prompts = model, prompts
        self._norm: dict[Site, np.ndarray] = {}
        self._counts: dict[Site, np.ndarray] = {}
        self._known: dict[int, np.ndarray] = {}

    def _kinds(self, prompt: int) -> np.ndarray:
        if prompt not in self._known:
            self._known[prompt] = kinds(self.model, self.prompts[prompt])
        return self._known[prompt]

    def measured(self, norms: dict[Site, Tensor], batch: Batch) -> dict[str, np.ndarray]:
        """Of [batch, padded length] norms at each site: norm [selected, site], and counts [site, kind, bin]."""
        mask = batch.inputs.get("attention_mask")
        every = torch.stack(list(norms.values())).cpu().numpy() if norms else np.zeros((0, 0, 0), np.float32)
        mine = every.reshape(len(every), -1)[:, batch.rows.cpu().numpy()]
        if isinstance(mask, Tensor) and mask.shape == every.shape[1:] and batch.whole:
            real = mask.cpu().numpy().astype(bool)
            counted, of = [], []
            for row, prompt in enumerate(batch.prompts):
                own = every[:, row, real[row]][:, 1:]
                kind = self._kinds(prompt)[1:]
                kind = kind if len(kind) == own.shape[1] else np.full(own.shape[1], TEXT)
                counted.append(own[:, kind != PADDING])
                of.append(kind[kind != PADDING])
            values, of = np.concatenate(counted, 1), np.concatenate(of)
        else:
            values, of = mine, np.full(mine.shape[1], TEXT)
        with np.errstate(divide="ignore", invalid="ignore"):
            bins = np.floor((np.log2(values) - _LEAST) * _OCTAVE)
        bins = np.nan_to_num(bins, nan=0, neginf=0, posinf=BINS - 1).clip(0, BINS - 1).astype(int)
        counts = [np.bincount(of * BINS + own, minlength=2 * BINS).reshape(2, BINS) for own in bins]
        return {"norm": mine.T, "counts": np.array(counts, np.int64).reshape(-1, 2, BINS)}

    def take(self, sites: Sequence[Site], norm: np.ndarray, counts: np.ndarray) -> None:
        """What all batches came to: norm [prompt, site, position], NaN where nothing was read; counts as above."""
        for i, site in enumerate(sites):
            self._norm[site], self._counts[site] = norm[:, i], counts[i]

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
        """Counts at a site over prompts of random tokens, kept with the model."""
        kept = self.model.__dict__.setdefault("_usual_norms", {})
        token = self.model.fingerprint
        missing = [s for s in self._counts if (token, s) not in kept]
        if missing:
            kept |= {(token, s): counts for s, counts in self.usual(missing).items()}
        return kept[token, site]

    def sinks(self, site: Site) -> np.ndarray:
        """[prompt, slot] whether each position that was read is a sink there."""
        norm, limits = self._norm[site], np.r_[self.limit(site), np.inf]
        kind = np.full(norm.shape, TEXT)
        for i, prompt in enumerate(self.prompts):
            if prompt.extras:
                kind[i, : len(prompt.positions)] = self._kinds(i)[prompt.positions]
        with np.errstate(invalid="ignore"):
            return norm > limits[kind]


    def sinks_at(self, sites: Sequence[Site], slots: int) -> np.ndarray:
        """[prompt, site, slot] whether each position that was read is a sink; False at sites that were not measured."""
        none = np.zeros((len(self.prompts), slots), bool)
        return np.stack([self.sinks(site) if site in self else none for site in sites], 1)


def _limit(counts: np.ndarray, otherwise: Any) -> float:
    if counts.sum() < ENOUGH:
        usual = otherwise()
        if usual is None:
            return np.inf
        counts = counts + usual
    # Bins of zeros (pads that a model embeds as zeros, say) are no norms.
    share = np.cumsum(counts * (np.arange(BINS) > 0))
    if not share[-1]:
        return np.inf
    middle, high = (2.0 ** ((np.searchsorted(share, q * share[-1]) + 0.5) / _OCTAVE + _LEAST) for q in (0.5, 0.9))
    return middle * min(MOST, max(LEAST, SPREAD * high / middle))


def random_prompts(model: Model) -> list[list[int]]:
    """64 random tokens that are neither special nor reserved, in prompts of up to 16: what is usual in this model."""
    n = min(getattr(model.module.get_input_embeddings(), "num_embeddings", model.vocab_size), model.vocab_size)
    special = {*(getattr(model.tokenizer, "all_special_ids", None) or []), *reserved_ids(model.module.config)}
    length = min(16, model.context_length or 16)
    drawn = np.random.default_rng(0).integers(0, n, (64 // length, length))
    return [[int(i) for i in row if int(i) not in special] or [0] for row in drawn]


def kinds(model: Model, prompt: Prompt) -> np.ndarray:
    """[position] :data:`TEXT`, :data:`IMAGE` (a piece of an image, a video or a sound), or :data:`PADDING`."""
    found = np.full(len(prompt.ids), TEXT)
    if prompt.visual is not None:
        found[prompt.visual.at] = np.where(prompt.visual.places.shows, IMAGE, PADDING)
    elif prompt.extras:
        found[np.isin(prompt.ids, placeholder_ids(model))] = IMAGE
    return found


def kinds_read(model: Model, prompts: Sequence[Prompt], slots: int) -> np.ndarray:
    """[prompt, slot] the kind of each position that is read; PADDING behind a prompt's last one."""
    found = np.full((len(prompts), slots), PADDING)
    for i, prompt in enumerate(prompts):
        found[i, : len(prompt.positions)] = kinds(model, prompt)[prompt.positions]
    return found


def placeholder_ids(model: Model) -> list[int]:
    """Token ids that stand for pieces of images, videos or sounds, by the names they have in the configuration."""
    config = getattr(model.module, "config", None)
    named = vars(config).items() if config is not None else ()
    return [value for name, value in named if PLACEHOLDER.fullmatch(name) and isinstance(value, int)]
