"""Which words stand for a place: of a lens, of another picture's place, and at random."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading
from workbench.tokens import token_texts, visible

Words = tuple[str, ...]
Draw = Callable[[np.random.Generator, int], Words]


def distinct(texts: Iterable[str], top: int) -> Words:
    """The first ``top`` different words: case and spaces around them do not make two of one."""
    found: dict[str, str] = {}
    for text in texts:
        word = text.strip() or (visible(text) if text else "")
        if word and len(found) < top:
            found.setdefault(word.casefold(), word)
    return tuple(found.values())


def depth_of(reading: Reading) -> str:
    """The name of the dimension that layers are on."""
    depth = next((d for d in ("layer", "block") if d in reading.data.dims), None)
    if depth is None or "rank" not in reading.data.dims or not (_has_words(reading.data) or _has_tokens(reading.data)):
        raise InputError(
            f"The reading of {reading.data.attrs.get('reader', '?')} has no words by layer and rank: LatentLens has "
            "them (word), and lenses with token_id and vocab_token."
        )
    return depth


def _has_words(data: xr.Dataset) -> bool:
    return "word" in data


def _has_tokens(data: xr.Dataset) -> bool:
    return "token_id" in data and "vocab_token" in data


def candidates(reading: Reading, prompt: np.ndarray, position: np.ndarray, top: int) -> list[list[Words]]:
    """[depth][patch] the lens's first ``top`` different words at these places; () where it has none.

    Of LatentLens the word around the token, by the characters that the index has of it; of lenses that give tokens,
    the tokens, which may be pieces of words.
    """
    data, depth = reading.data, depth_of(reading)
    name = "word" if _has_words(data) else "token_id"
    found = data[name].transpose("prompt", "position", depth, "rank").values[prompt, position]
    if name == "token_id":
        ids = data["vocab"].values if "vocab" in data.coords else np.arange(data.sizes["vocab"])
        texts = dict(zip(ids.tolist(), map(str, data["vocab_token"].values), strict=True))
        rows = [[[texts.get(int(i), "") for i in own] for own in patch] for patch in found]
    else:
        rows = [[[str(word) for word in own] for own in patch] for patch in found]
    return [[distinct(patch[d], top) for patch in rows] for d in range(data.sizes[depth])]


def random_words(source: Any, reading: Reading) -> Draw | None:
    """What draws words at random, as the lens of a reading could have given them; None where ``source`` does not fit.

    Of an index of contexts, words of contexts, for lenses that find contexts; of a model, tokens of its vocabulary, for
    the others; of a list of words, these, for any.  Of several the first that fits.
    """
    several = isinstance(source, (list, tuple)) and not all(isinstance(one, str) for one in source)
    every = source if several else [source]
    drawers = (_drawer(one, _has_words(reading.data)) for one in every if one is not None)
    return next((draw for draw in drawers if draw is not None), None)


def _drawer(source: Any, of_contexts: bool) -> Draw | None:
    if isinstance(source, Sequence) and not isinstance(source, (str, os.PathLike)):
        if not len(distinct(source, 1)):
            raise InputError("random= is a list without words.")
        return _drawing(lambda rng, k: [source[i] for i in rng.integers(len(source), size=k)])
    if isinstance(source, (str, Path)):
        from lenses.latent.index import ContextIndex

        source = ContextIndex.open(source)
    if hasattr(source, "describe") and hasattr(source, "n_rows"):
        if not of_contexts:
            return None
        return _drawing(lambda rng, k: source.describe(rng.integers(source.n_rows, size=k))["word"].tolist())
    if hasattr(source, "tokenizer") and hasattr(source, "vocab_size"):
        if of_contexts:
            return None
        special = set(getattr(source.tokenizer, "all_special_ids", ()) or ())
        # A vocabulary may have room for more tokens than there are.
        known = np.array(sorted(set(source.tokenizer.get_vocab().values()) - special))
        return _drawing(lambda rng, k: token_texts(source.tokenizer, rng.choice(known, k).tolist()))
    raise InputError(
        f"random={type(source).__name__} gives no words. Give the ContextIndex (or its folder) for LatentLens, the "
        "workbench.Model for lenses of tokens, a list of words, or several of these in a list."
    )


def _drawing(some: Callable[[np.random.Generator, int], Sequence[str]]) -> Draw:
    """Different words, as many as asked for where there are so many in reach."""

    def draw(rng: np.random.Generator, k: int) -> Words:
        texts: list[str] = []
        for _ in range(20):
            texts += some(rng, 4 * k)
            if len(found := distinct(texts, k)) == k:
                break
        return found

    return draw
