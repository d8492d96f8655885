"""The protocol on readings of real passes: a tiny random LLaVA, whose tokens are 4 x 4 cells of a picture."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mosaics import NAMES, Sees, mosaic, tables
from pictured import pictured, text_with_image

import workbench
from lenses import EmbeddingLens, LogitLens, judge


class Looks(Sees):
    """Names every colour in the close-up, whatever the words are."""

    def __call__(self, question):
        every = super().__call__(_with(question, NAMES))
        self.saw = getattr(self, "saw", {}) | {question.id: set(every.concrete)}
        return judge.Verdict()


def _with(question, words):
    from dataclasses import replace

    return replace(question, words=tuple(words))


@pytest.mark.parametrize("originals", [False, True])
def test_the_judge_sees_what_the_tokens_show(originals):
    module, processor = pictured("llava")
    model = workbench.load(module, processor=processor)
    cells = tables(8, (4, 4), seed=2)
    pictures = [mosaic(own, (90, 90)) for own in cells]
    prompts = [{"text": text_with_image(processor), "images": picture} for picture in pictures]
    lenses = [LogitLens(layers=[0, 2], top_k=5), EmbeddingLens(layers=[0, 2], top_k=5, floors=False)]
    readings = workbench.read(model, prompts, lenses, progress=False)
    patches = judge.sample(readings, n=24)
    looks = Looks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge.judge(
            readings, looks, patches=patches, random=model, pictures=pictures if originals else None,
            progress=False, draws=200,
        ).data  # fmt: skip
    assert ("original" in found.attrs["shown"]) == originals and "kept" in found.attrs["shown"]
    places = zip(*(patches[name].values for name in ("picture", "row", "column")), strict=True)
    for patch, (p, r, c) in enumerate(places):
        there = {NAMES[i] for i in np.unique(cells[p][r - 1 : r + 2, c - 1 : c + 2])}
        for question in found["question"].values[..., patch].ravel():
            assert not question or looks.saw[question] == there
    assert found["words"].sel(arm="own").values.min() > 3 and (found["rate"] == 0).all()
    assert found.sizes["lens"] == 2 and found["layer"].values.tolist() == [0, 2]
