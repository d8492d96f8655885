"""What lenses name at visual tokens, where it is known what every patch shows: a calibration on ``organism:gallery``.

    python benchmarks/gallery.py [--pictures 200] [--captions 4000] [--connectors 20] [--quick] [--card]
                                 [--out benchmarks/results/gallery.json] [--figure FILE.png]

Each visual token of held-out pictures is read at every layer by LatentLens (over captions of other pictures), LogitLens
and EmbeddingLens, which answer with five words each.  Of a patch that a thing covers by half or more, the answer is

    right       a word is the thing's colour or shape         wrong    words of the kind, but none of them is
    elsewhere   the part of wrong that is true of another thing in the picture
    nothing     no word is a colour or a shape

of the first word alone, and of any of the five (as the paper's judge counts).  Chance is the same answers held against
the things of the other pictures, so that a lens that names many colours has a higher one; ``beside`` holds them against
the other things of the same picture.  Intervals are over pictures (95 %): patches of one picture are no new evidence.

Controls, where nothing may be found:

    exchanged   the visual tokens are those of another picture: the level of the test itself
    shuffled    a connector whose weights are shuffled within each matrix; the mean over connectors, since any one of
                them may turn red into "red" by luck
    permuted    the trained connector with its outputs' dimensions in another order: the same clusters and lengths

And what could be found: a linear probe of the same states, fitted on other pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, written
from torch import Tensor

import workbench
from lenses import ContextIndex
from workbench.organisms.gallery.grammar import (
    COLOURS,
    GRID,
    GROUNDS,
    SHAPE_OF,
    SHAPES,
    Scene,
    caption,
    scenes,
    truth,
)
from workbench.organisms.gallery.recipe import HELD_OUT_SEED, pixels
from workbench.stats import Design

CORPUS_SEED, PROBE_SEED = 5, 6
TOP = 5
LENSES = ("LatentLens", "LogitLens", "EmbeddingLens")
SAME_WORDS = ("LogitLens, words of the corpus", "EmbeddingLens, words of the corpus")
"""The token lenses with no other candidates than LatentLens has: tokens that are somewhere in its corpus."""
PAPER = {
    "OLMo + CLIP": (72.3, 34.3, 57.1), "OLMo + SigLIP": (68.8, 36.4, 43.4), "OLMo + DINOv2": (78.3, 29.7, 49.6),
    "Llama 3 + CLIP": (79.7, 28.8, 38.7), "Llama 3 + SigLIP": (62.3, 7.1, 24.0), "Llama 3 + DINOv2": (77.4, 7.2, 22.2),
    "Qwen2 + CLIP": (76.1, 25.0, 14.4), "Qwen2 + SigLIP": (74.3, 10.8, 9.1), "Qwen2 + DINOv2": (79.9, 16.2, 8.8),
}  # fmt: skip
"""LatentLens, LogitLens, EmbeddingLens: per cent of patches that a judge finds interpretable, mean over nine layers
(arXiv 2602.00462, the models with a frozen language model)."""

CODES = {
    **{word: i for i, word in enumerate(COLOURS)},
    **{word: len(COLOURS) + SHAPES.index(shape) for word, shape in SHAPE_OF.items()},
    **{word: len(COLOURS) + len(SHAPES) + i for i, word in enumerate(GROUNDS)},
}
"""Word -> what it names: colours, then shapes, then grounds."""
ALL = len(COLOURS) + len(SHAPES) + len(GROUNDS)


@dataclass(frozen=True)
class Patches:
    """Some patches of pictures, and what they show: arrays [patch]."""

    picture: np.ndarray
    place: np.ndarray
    labels: tuple[np.ndarray, ...]
    """Codes of what is true of it: colour and shape, or the ground alone."""

    def states(self, states: Tensor) -> Tensor:
        """[picture, layer, place, width] -> [patch, layer, width]."""
        return states[self.picture, :, self.place]


def patches(own: list[Scene], low: float, high: float) -> Patches:
    """Patches of which a thing covers a share within [low, high)."""
    found = []
    for i, scene in enumerate(own):
        known = truth(scene)
        for place, (thing, share) in enumerate(zip(known.thing.flat, known.share.flat, strict=True)):
            if thing >= 0 and low <= share < high:
                found.append((i, place, CODES[scene.things[thing].colour], CODES[scene.things[thing].shape]))
    picture, place, colour, shape = np.array(found).T
    return Patches(picture, place, (colour, shape))


def grounds(own: list[Scene]) -> Patches:
    """Patches without any thing."""
    found = [(i, j, CODES[s.ground]) for i, s in enumerate(own) for j, t in enumerate(truth(s).thing.flat) if t < 0]
    picture, place, ground = np.array(found).T
    return Patches(picture, place, (ground,))


# What lenses answer ----------------------------------------------------------------------------------------------


@torch.no_grad()
def visual_tokens(module: Any, own: list[Scene]) -> Tensor:
    """[picture, place, width] what the connector gives."""
    parts = [
        torch.stack(list(module.get_image_features(pixel_values=part.float(), return_dict=True).pooler_output))
        for part in pixels(own).split(64)
    ]
    return torch.cat(parts)


@torch.no_grad()
def states_of(module: Any, tokenizer: Any, tokens: Tensor) -> Tensor:
    """[picture, layer, place, width] the states at visual tokens, the last one before the final norm."""
    language = module.model.language_model
    kept: list[Tensor] = []

    def keep(_: Any, given: Any, made: Any) -> None:
        kept.append((made[0] if isinstance(made, tuple) else made)[:, 1:])

    hooks = [block.register_forward_hook(keep) for block in language.layers]
    found = []
    try:
        begin = module.get_input_embeddings()(torch.tensor([tokenizer.bos_token_id]))
        for part in tokens.split(64):
            kept.clear()
            language(inputs_embeds=torch.cat([begin.expand(len(part), 1, -1), part], 1), use_cache=False)
            found.append(torch.stack([part, *kept], 1))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


class Lenses:
    """The words' codes that each lens answers with, from states: computed densely, with the model's own modules."""

    def __init__(self, model: Any, index: ContextIndex, corpus: list[str]) -> None:
        self.index, self.module = index, model.module
        tokenizer = model.tokenizer
        self.code = np.array([CODES.get(tokenizer.decode([i]).strip(), -1) for i in range(model.vocab_size)])
        self.unused = torch.ones(model.vocab_size, dtype=torch.bool)
        self.unused[torch.tensor(sorted({i for ids in tokenizer(corpus)["input_ids"] for i in ids}))] = False

    @torch.no_grad()
    def __call__(self, states: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """[patch, layer, width] -> lens -> codes [patch, layer, rank], and the layers of LatentLens's contexts."""
        n, layers, width = states.shape
        found = self.index.nearest(states.reshape(-1, width), TOP)
        words = self.index.describe(found.row)["word"]
        latent = np.vectorize(lambda w: CODES.get(w, -1), otypes=[int])(words).reshape(n, layers, TOP)
        logits = self.module.lm_head(self.module.model.language_model.norm(states))
        rows = torch.nn.functional.normalize(self.module.get_input_embeddings().weight, dim=-1)
        cosines = torch.nn.functional.normalize(states, dim=-1) @ rows.T
        answers = {"LatentLens": latent}
        for name, scores in zip(LENSES[1:], (logits, cosines), strict=True):
            answers[name] = self.code[scores.topk(TOP).indices.numpy()]
        for name, scores in zip(SAME_WORDS, (logits, cosines), strict=True):
            answers[name] = self.code[scores.masked_fill(self.unused, -torch.inf).topk(TOP).indices.numpy()]
        return answers, np.asarray(found.layer).reshape(n, layers, TOP)


# What is right ---------------------------------------------------------------------------------------------------


def named(codes: np.ndarray, top: int) -> np.ndarray:
    """[patch, layer, rank] -> [patch, layer, code] whether one of the first ``top`` words names it."""
    found = np.zeros((*codes.shape[:2], ALL), bool)
    for rank in range(top):
        at = np.nonzero(codes[:, :, rank] >= 0)
        found[(*at, codes[:, :, rank][at])] = True
    return found


def judged(codes: np.ndarray, where: Patches, top: int) -> dict[str, np.ndarray]:
    """[patch, layer] right, wrong, elsewhere, nothing; and how often the answers hold of other pictures or things."""
    said, n = named(codes, top), len(where.picture)
    kind = slice(0, len(COLOURS) + len(SHAPES)) if len(where.labels) == 2 else slice(len(COLOURS) + len(SHAPES), ALL)
    some = said[:, :, kind].any(-1)
    rows = np.arange(n)
    hits = [said[rows, :, label] for label in where.labels]
    right = np.any(hits, 0)
    # Distinct sets of labels, how many patches of each picture have them, and whether an answer holds of each.
    sets, own = np.unique(np.stack(where.labels, 1), axis=0, return_inverse=True)
    counts = np.zeros((where.picture.max() + 1, len(sets)))
    np.add.at(counts, (where.picture, own), 1)
    holds = np.any([said[:, :, sets[:, i]] for i in range(sets.shape[1])], 0)  # [patch, layer, set]
    others = counts.sum(0) - counts[where.picture]
    chance = (holds * (others / others.sum(1, keepdims=True))[:, None]).sum(-1)
    near = (counts > 0)[where.picture]
    near[rows, own] = False
    some_near = near.any(1)
    beside = np.where(
        some_near[:, None], (holds * near[:, None]).sum(-1) / np.maximum(near.sum(1), 1)[:, None], np.nan
    )
    elsewhere = ~right & (holds & near[:, None]).any(-1)
    found = {
        "right": right, "wrong": some & ~right, "elsewhere": elsewhere, "nothing": ~some,
        "chance": chance, "above": right - chance,
        "right_of_several": np.where(some_near[:, None], right, np.nan), "beside": beside,
    }  # fmt: skip
    if len(hits) == 2:
        found |= {"colour": hits[0], "shape": hits[1], "both": hits[0] & hits[1]}
    return {name: np.asarray(value, float) for name, value in found.items()}


def rates(codes: dict[str, np.ndarray], where: Patches) -> list[dict[str, Any]]:
    """One row for each lens, number of words and layer, and one of all layers together, with intervals over pictures."""
    rows = []
    over = Design(clusters=where.picture)
    for lens, own in codes.items():
        for top in (1, TOP):
            found = judged(own, where, top)
            values = np.stack([np.c_[x, x.mean(1)] for x in found.values()], -1)  # [patch, layer + 1, what]
            ends = over.bootstrap(values, draws=1000, bounds=(-1, 1))
            for layer in range(values.shape[1]):
                row: dict[str, Any] = {"lens": lens, "top": top, "layer": layer if layer < own.shape[1] else "mean"}
                for i, name in enumerate(found):
                    row[name] = rounded(ends.value[layer, i])
                    if name in ("right", "above", "right_of_several"):
                        row[f"{name}_low"], row[f"{name}_high"] = rounded(ends.low[layer, i]), rounded(ends.high[layer, i])
                rows.append(row)
    return rows


def ahead(codes: dict[str, np.ndarray], where: Patches) -> list[dict[str, Any]]:
    """LatentLens less each other lens on the same patches: of what is right, and of what is right beyond chance."""
    rows, over = [], Design(clusters=where.picture)
    for top in (1, TOP):
        found = {lens: judged(own, where, top) for lens, own in codes.items()}
        for other in codes:
            if other == "LatentLens":
                continue
            for what in ("right", "above"):
                gap = found["LatentLens"][what] - found[other][what]
                ends = over.bootstrap(np.c_[gap, gap.mean(1)])
                for layer in range(gap.shape[1] + 1):
                    rows.append({
                        "over": other, "top": top, "of": what, "layer": layer if layer < gap.shape[1] else "mean",
                        "ahead": rounded(ends.value[layer]), "low": rounded(ends.low[layer]), "high": rounded(ends.high[layer]),
                    })  # fmt: skip
    return rows


def rounded(value: Any) -> float:
    return round(float(value), 4)


# Controls --------------------------------------------------------------------------------------------------------


def shuffled(module: Any, seed: int) -> Any:
    """The connector with the entries of each of its tensors in another order."""
    made = copy.deepcopy(module.model.multi_modal_projector)
    generator = torch.Generator().manual_seed(seed)
    for tensor in made.parameters():
        flat = tensor.data.flatten()
        tensor.data = flat[torch.randperm(len(flat), generator=generator)].view_as(tensor)
    return made


def with_connector(module: Any, connector: Any, own: list[Scene]) -> Tensor:
    before = module.model.multi_modal_projector
    try:
        module.model.multi_modal_projector = connector
        return visual_tokens(module, own)
    finally:
        module.model.multi_modal_projector = before


def controls(module: Any, tokenizer: Any, lenses: Lenses, own: list[Scene], tokens: Tensor, where: Patches, n: int) -> list:
    """For each control, lens and number of words: what is right beyond chance, and how often its interval leaves 0 out."""
    rng = np.random.default_rng(0)

    def exchanged(seed: int) -> Tensor:
        order = rng.permutation(len(tokens))
        while (order == np.arange(len(tokens))).any():
            order = rng.permutation(len(tokens))
        return tokens[order]

    def permuted(seed: int) -> Tensor:
        return tokens[:, :, torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(seed))]

    makes = {"exchanged": exchanged, "shuffled": lambda seed: with_connector(module, shuffled(module, seed), own), "permuted": permuted}
    rows, over = [], Design(clusters=where.picture)
    for name, make in makes.items():
        above: dict[tuple[str, int], list[np.ndarray]] = {}
        right: dict[tuple[str, int], list[np.ndarray]] = {}
        left_out: dict[tuple[str, int], list[np.ndarray]] = {}
        for seed in range(n):
            answers, _ = lenses(where.states(states_of(module, tokenizer, make(seed))))
            for lens in LENSES:
                for top in (1, TOP):
                    found = judged(answers[lens], where, top)
                    ends = over.bootstrap(found["above"])
                    above.setdefault((lens, top), []).append(ends.value)
                    right.setdefault((lens, top), []).append(found["right"].mean(0))
                    left_out.setdefault((lens, top), []).append((ends.low > 0) | (ends.high < 0))
            print(name, seed, flush=True)
        for (lens, top), values in above.items():
            each = np.stack(values)  # [connector, layer]
            ends = Design(n=len(each)).bootstrap(np.c_[each, each.mean(1)])
            out = Design(n=len(each)).bootstrap(np.stack(left_out[lens, top]).mean(1))
            rows.append({
                "control": name, "lens": lens, "top": top, "n": n,
                "right": [rounded(x) for x in np.stack(right[lens, top]).mean(0)],
                "above": [rounded(x) for x in ends.value[:-1]],
                "above_mean": rounded(ends.value[-1]), "low": rounded(ends.low[-1]), "high": rounded(ends.high[-1]),
                "low_by_layer": [rounded(x) for x in ends.low[:-1]], "high_by_layer": [rounded(x) for x in ends.high[:-1]],
                "intervals_without_0": rounded(out.value), "intervals_without_0_low": rounded(out.low),
                "intervals_without_0_high": rounded(out.high),
            })  # fmt: skip
    return rows


def probe(states: Tensor, where: Patches, known: Tensor, of: Patches) -> list[dict[str, Any]]:
    """How often a ridge regression of the labels, fitted on ``known``, is right: what there is to be found at all."""
    rows = []
    for layer in range(states.shape[1]):
        fit, test = of.states(known)[:, layer].double(), where.states(states)[:, layer].double()
        mean, scale = fit.mean(0), fit.std(0) + 1e-6
        fit, test = ((torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], 1)) for x in (fit, test))
        row: dict[str, Any] = {"layer": layer}
        for name, label, truth_ in zip(("colour", "shape"), of.labels, where.labels, strict=True):
            one = torch.nn.functional.one_hot(torch.from_numpy(label), ALL).double()
            weight = torch.linalg.solve(fit.T @ fit + 10 * torch.eye(fit.shape[1]), fit.T @ one)
            row[name] = rounded((test @ weight).argmax(1).eq(torch.from_numpy(truth_)).double().mean())
        rows.append(row)
    return rows


def study(model: Any, n: int, captions: int, connectors: int) -> dict[str, Any]:
    own = list(scenes(n, HELD_OUT_SEED))
    corpus = [caption(s, 0) for s in scenes(captions, CORPUS_SEED)]
    module, tokenizer = model.module, model.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        index = ContextIndex.build(model, corpus, folder, layers=range(1, model.n_layers + 1), progress=False)
        lenses = Lenses(model, index, corpus)
        tokens = visual_tokens(module, own)
        states = states_of(module, tokenizer, tokens)
        things = patches(own, 0.5, 2)
        result: dict[str, Any] = {
            "pictures": n, "captions": captions, "contexts": len(index), "index_layers": list(index.layers),
            "patches": len(things.picture), "patches_in_part": 0, "patches_of_ground": 0,
            "labels": {"colours": list(COLOURS), "shapes": list(SHAPES), "grounds": list(GROUNDS)},
        }  # fmt: skip
        answers, layers = lenses(things.states(states))
        share = np.stack([(layers == x).mean((0, 2)) for x in index.layers], 1)
        result |= {
            "things": rates(answers, things), "ahead": ahead(answers, things),
            "index_layer_share": [[rounded(x) for x in row] for row in share],
        }  # fmt: skip
        for name, where in {"in_part": patches(own, 0.02, 0.5), "of_ground": grounds(own)}.items():
            # Some of the many ground patches: whole pictures, since they are the unit.
            kept = where.picture < (n if name == "in_part" else max(20, n // 4))
            some = Patches(where.picture[kept], where.place[kept], tuple(x[kept] for x in where.labels))
            result[f"patches_{name}"] = int(kept.sum())
            result[name] = rates(lenses(some.states(states))[0], some)
        others = list(scenes(n, PROBE_SEED))
        fitted = states_of(module, tokenizer, visual_tokens(module, others))
        result["probe"] = probe(states, things, fitted, patches(others, 0.5, 2))
        result["controls"] = controls(module, tokenizer, lenses, own, tokens, things, connectors)
    return result


def table(rows: list[dict[str, Any]], top: int, lenses: tuple[str, ...] = LENSES) -> str:
    """Right by layer with its interval and chance, in Markdown."""
    layers = [r["layer"] for r in rows if r["lens"] == lenses[0] and r["top"] == top]
    lines = ["| | " + " | ".join("mean" if x == "mean" else f"layer {x}" for x in layers) + " |", "|---" * (len(layers) + 1) + "|"]
    for lens in lenses:
        own = [r for r in rows if r["lens"] == lens and r["top"] == top]
        lines.append(f"| {lens} | " + " | ".join(f"{r['right']:.2f} [{r['right_low']:.2f}, {r['right_high']:.2f}]" for r in own) + " |")
        lines.append("| wrong, nothing | " + " | ".join(f"{r['wrong']:.2f}, {r['nothing']:.2f}" for r in own) + " |")
        lines.append("| chance | " + " | ".join(f"{r['chance']:.2f}" for r in own) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:gallery")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--captions", type=int, default=4000)
    parser.add_argument("--connectors", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a few pictures, captions and connectors")
    parser.add_argument("--card", action="store_true", help="write the numbers into the organism's card")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--figure", type=Path, help="a PNG or PDF beside the published means")
    given = parser.parse_args()
    if given.quick:
        given.pictures, given.captions, given.connectors = 30, 400, 2
    model = workbench.load(given.model, progress=False)
    result = {"machine": machine(model.device.type), "model": model.name, **study(model, given.pictures, given.captions, given.connectors)}
    for top in (1, TOP):
        print(f"\nfirst {top}\n" + table(result["things"], top, (*LENSES, *SAME_WORDS)))
    for row in result["ahead"]:
        if row["layer"] == "mean":
            print(row)
    for row in result["controls"]:
        print({k: v for k, v in row.items() if "by_layer" not in k})
    print(result["probe"])
    written(result, given.out)


if __name__ == "__main__":
    main()
