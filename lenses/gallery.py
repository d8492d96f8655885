"""What lenses name at the patches of ``organism:gallery``, where it is known what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import workbench
from lenses import EmbeddingLens, LogitLens
from workbench.demo import Shown
from workbench.organisms.gallery import PROMPT
from workbench.organisms.gallery.grammar import SHAPE_OF, Scene, paint, scenes, truth
from workbench.reading import Reading
from workbench.stats import Design


def right_words(scene: Scene, least: float = 0.5) -> list[set[str]]:
    """[patch] the words for colour and shape of the thing that covers at least so much of it; none elsewhere."""
    known, found = truth(scene), []
    for thing, share in zip(known.thing.ravel(), known.share.ravel(), strict=True):
        own = scene.things[thing] if share >= least else None
        shapes = {word for word, shape in SHAPE_OF.items() if own is not None and shape == own.shape}
        found.append(shapes | {own.colour} if own is not None else set())
    return found


def hits(words: np.ndarray, own: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """How often words [picture, patch] name the colour or shape of what covers the patch.

    Returns
    -------
    [picture] the share of the patches on things whose word is right; and the same held against the other pictures.
    """
    right = [right_words(scene) for scene in own]
    n = len(own)

    def share(picture: int, of: int) -> float:
        known = [(word, names) for word, names in zip(words[picture], right[of], strict=True) if names]
        return float(np.mean([word in names for word, names in known])) if known else np.nan

    found = np.array([[share(i, j) for j in range(n)] for i in range(n)])
    return np.diag(found), np.nanmean(np.where(np.eye(n, dtype=bool), np.nan, found), 1)


def top_words(reading: Reading, layer: int, of: str = "token") -> np.ndarray:
    """[picture, position] the first token of a lens, without its space; of LatentLens its word or next token."""
    data = reading.data.sel(layer=layer).isel(rank=0)
    if of != "token":
        return np.array([[text.strip() for text in row] for row in data[of].values.tolist()])
    texts = dict(zip(data["vocab"].values.tolist(), data["vocab_token"].values.tolist(), strict=True))
    return np.array([[texts[i].strip() for i in row] for row in data["token_id"].values.tolist()])


def example(out: Path) -> Shown:
    """For ``workbench demo``: how often the words at visual tokens are those of what they show, and the explorer."""
    from workbench.widgets import to_html

    model, own = workbench.load("organism:gallery"), list(scenes(12, seed=11))
    prompts: list[Any] = [{"text": PROMPT, "images": paint(scene)} for scene in own]
    logit, near = workbench.read(model, prompts, [LogitLens(), EmbeddingLens()], positions="image", progress=False)
    said = []
    for layer in (0, model.n_layers):
        share, chance = hits(top_words(logit, layer), own)
        known = ~np.isnan(share)
        interval = Design(clusters=np.flatnonzero(known)).bootstrap(share[known], bounds=(0, 1))
        said.append(
            f"{float(interval.value):.0%} [{float(interval.low):.0%}, {float(interval.high):.0%}] in layer {layer} "
            f"(held against other pictures: {np.nanmean(chance):.0%})"
        )
    page = to_html({"LogitLens": logit, "EmbeddingLens": near}, out / "pictures.html")
    return Shown(
        "What do the visual tokens of a picture mean?",
        f"At patches that a thing covers, the logit lens names its colour or its shape in {said[0]} and {said[1]}.",
        logit.isel(prompt=[0], layer=[0]), "overlay",
        "The top word at each patch of a picture, as it enters the first block.",
        {"Explore pictures patch by patch": page},
    )  # fmt: skip
