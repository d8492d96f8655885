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
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitLens
from workbench.organisms import folder
from workbench.organisms.gallery import PROMPT
from workbench.organisms.gallery.grammar import (
    COLOURS,
    GRID,
    GROUNDS,
    SHAPE_OF,
    SHAPES,
    Scene,
    caption,
    paint,
    scenes,
    truth,
)
from workbench.organisms.gallery.recipe import HELD_OUT_SEED, pixels, write_card
from workbench.readers import States
from workbench.stats import Design

CORPUS_SEED, PROBE_SEED = 5, 6
TOP = 5
LENSES = ("LatentLens", "LogitLens", "EmbeddingLens")
SAME_WORDS = ("LogitLens, words of the corpus", "EmbeddingLens, words of the corpus")
"""The token lenses with no other candidates than LatentLens has: tokens that are somewhere in its corpus."""
NEXT = "LatentLens, the next word"
"""Not the word that a context ends in, but the one that comes after it: what its state was about to say."""
CALIBRATED = {f"LatentLens, {name}": name for name in ("centre", "z-score", "csls")}
BOTH = "LatentLens, both centred"
"""Contexts less the mean of their layer, visual tokens less the mean of all visual tokens at theirs."""
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

    def of(self, values: Any) -> Any:
        """[picture, layer, place, ...] -> [patch, layer, ...]."""
        return values[self.picture, :, self.place]


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


def codes_of(model: Any) -> np.ndarray:
    """[vocabulary] what each token names, -1 where it is nothing of the kind."""
    return np.array([CODES.get(model.tokenizer.decode([i]).strip(), -1) for i in range(model.vocab_size)])


def named_by(words: np.ndarray) -> np.ndarray:
    """What words name, as codes of the same shape."""
    return np.vectorize(lambda word: CODES.get(word.strip(), -1), otypes=[int])(words)


class Lenses:
    """The words' codes that each lens answers with, from states: computed densely, with the model's own modules."""

    def __init__(self, model: Any, index: ContextIndex, corpus: list[str]) -> None:
        self.index, self.module = index, model.module
        tokenizer = model.tokenizer
        self.code = codes_of(model)
        contexts = index.store.contexts["token_id"]
        self.words = index.describe(np.arange(len(contexts)))["word"].astype(object)
        self.words[np.isin(contexts, tokenizer.all_special_ids)] = ""
        self.unused = torch.ones(model.vocab_size, dtype=torch.bool)
        self.unused[torch.tensor(sorted({i for ids in tokenizer(corpus)["input_ids"] for i in ids}))] = False

    @torch.no_grad()
    def __call__(self, states: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """[patch, layer, width] -> lens -> codes [patch, layer, rank], and the layers of LatentLens's contexts."""
        latent, following, layers = self.latent(states)
        logits = self.module.lm_head(self.module.model.language_model.norm(states))
        rows = torch.nn.functional.normalize(self.module.get_input_embeddings().weight, dim=-1)
        cosines = torch.nn.functional.normalize(states, dim=-1) @ rows.T
        answers = {"LatentLens": latent, NEXT: following}
        for name, scores in zip(LENSES[1:], (logits, cosines), strict=True):
            answers[name] = self.code[scores.topk(TOP).indices.numpy()]
        for name, scores in zip(SAME_WORDS, (logits, cosines), strict=True):
            answers[name] = self.code[scores.masked_fill(self.unused, -torch.inf).topk(TOP).indices.numpy()]
        return answers, layers

    @torch.no_grad()
    def lengths(self) -> list[float]:
        """Of the captions' embeddings, and of contexts at the index's layers."""
        rows = self.module.get_input_embeddings().weight[~self.unused]
        own = [self.index.store.matrix(layer).states(0, len(self.words)) for layer in self.index.layers]
        return [float(x.norm(dim=-1).mean()) for x in (rows, *own)]

    def both_centred(self, states: Tensor, mean: Tensor) -> np.ndarray:
        """[patch, layer, width] and the mean of visual tokens [layer, width] -> codes [patch, layer, rank]."""
        queries = torch.nn.functional.normalize((states - mean).flatten(0, 1), dim=-1)
        rows = [self.index.store.matrix(layer).states(0, len(self.words)) for layer in self.index.layers]
        best = torch.full((len(queries), len(self.words)), -torch.inf)
        for own in rows:  # a context counts once, in the layer where it is nearest
            best = torch.maximum(best, queries @ torch.nn.functional.normalize(own - own.mean(0), dim=-1).T)
        best[:, self.words == ""] = -torch.inf
        return named_by(self.words[best.topk(TOP).indices.numpy()]).reshape(*states.shape[:2], TOP)

    def latent(self, states: Tensor, calibration: str = "none") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[patch, layer, width] -> codes of words, of the words after them, and layers [patch, layer, rank]."""
        shape = (*states.shape[:2], TOP)
        found = self.index.nearest(states.reshape(-1, states.shape[-1]), TOP, calibration=calibration)
        about = self.index.describe(found.row)
        return tuple(x.reshape(shape) for x in (named_by(about["word"]), named_by(about["next_token"]), found.layer))


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
    """A row for each lens, number of words and layer, and one of all layers together, with intervals over pictures."""
    rows, over = [], Design(clusters=where.picture)
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
                        row |= {f"{name}_low": rounded(ends[1][layer, i]), f"{name}_high": rounded(ends[2][layer, i])}
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
                    value, low, high = (rounded(x[layer]) for x in ends[:3])
                    at = layer if layer < gap.shape[1] else "mean"
                    rows.append(
                        {"over": other, "top": top, "of": what, "layer": at, "ahead": value, "low": low, "high": high}
                    )
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


def controls(
    module: Any, tokenizer: Any, lenses: Lenses, own: list[Scene], tokens: Tensor, where: Patches, n: int
) -> list[dict[str, Any]]:
    """For each control, lens and number of words: what is right beyond chance, and how often an interval lacks 0."""
    rng = np.random.default_rng(0)

    def exchanged(_: int) -> Tensor:
        order = rng.permutation(len(tokens))
        while (order == np.arange(len(tokens))).any():
            order = rng.permutation(len(tokens))
        return tokens[order]

    def permuted(seed: int) -> Tensor:
        return tokens[:, :, torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(seed))]

    def other(seed: int) -> Tensor:
        return with_connector(module, shuffled(module, seed), own)

    rows, over = [], Design(clusters=where.picture)
    for name, make in {"exchanged": exchanged, "shuffled": other, "permuted": permuted}.items():
        found: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for seed in range(n):
            answers, _ = lenses(where.of(states_of(module, tokenizer, make(seed))))
            for lens in (*LENSES, NEXT):
                for top in (1, TOP):
                    what = judged(answers[lens], where, top)
                    ends = over.bootstrap(what["above"])
                    lacks = (ends.low > 0) | (ends.high < 0)
                    found.setdefault((lens, top), []).append((what["right"].mean(0), ends.value, lacks))
        for (lens, top), each in found.items():
            right, above, lacks = (np.stack(x).astype(float) for x in zip(*each, strict=True))  # [connector, layer]
            ends = Design(n=n).bootstrap(np.c_[above, above.mean(1)])
            value, low, high = ([rounded(v) for v in x] for x in ends[:3])
            without = Design(n=n).bootstrap(lacks.mean(1), bounds=(0, 1))
            rows.append({
                "control": name, "lens": lens, "top": top, "n": n, "right": [rounded(x) for x in right.mean(0)],
                "above_by_layer": value[:-1], "low_by_layer": low[:-1], "high_by_layer": high[:-1],
                "above": value[-1], "low": low[-1], "high": high[-1], "without_0": rounded(without.value),
                "without_0_low": rounded(without.low), "without_0_high": rounded(without.high),
            })  # fmt: skip
            print({k: v for k, v in rows[-1].items() if "by_layer" not in k}, flush=True)
    return rows


def probe(states: Tensor, where: Patches, known: Tensor, of: Patches) -> list[dict[str, Any]]:
    """How often a ridge regression of the labels, fitted on ``known``, is right: what there is to be found at all."""
    rows = []
    for layer in range(states.shape[1]):
        fit, test = of.of(known)[:, layer].double(), where.of(states)[:, layer].double()
        mean, scale = fit.mean(0), fit.std(0) + 1e-6
        fit, test = ((torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], 1)) for x in (fit, test))
        row: dict[str, Any] = {"layer": layer}
        for name, label, truth_ in zip(("colour", "shape"), of.labels, where.labels, strict=True):
            one = torch.nn.functional.one_hot(torch.from_numpy(label), ALL).double()
            weight = torch.linalg.solve(fit.T @ fit + 10 * torch.eye(fit.shape[1]), fit.T @ one)
            row[name] = rounded((test @ weight).argmax(1).eq(torch.from_numpy(truth_)).double().mean())
        rows.append(row)
    return rows


def asked(model: Any, index: ContextIndex, own: list[Scene]) -> tuple[dict[str, np.ndarray], np.ndarray, Tensor]:
    """In one pass: lens -> codes [picture, layer, place, rank], layers of LatentLens's contexts, and the states."""
    prompts = [{"text": PROMPT, "images": paint(scene)} for scene in own]
    every = range(model.n_layers + 1)
    readers = [LatentLens(index, every, TOP), LogitLens(every, TOP), EmbeddingLens(every, TOP), States(every)]
    latent, logit, near, kept = (
        r.data.transpose("prompt", "layer", "position", ...)
        for r in workbench.read(model, prompts, readers, positions="image", progress=False)
    )
    for axis in ("row", "column"):  # the place in the grid is the place among the positions
        assert (latent[axis].values.reshape(-1, GRID, GRID) == np.indices((GRID, GRID))[int(axis == "column")]).all()
    code = codes_of(model)
    answers = {
        "LatentLens": named_by(latent["word"].values),
        NEXT: named_by(latent["next_token"].values),
        "LogitLens": code[logit["token_id"].values],
        "EmbeddingLens": code[near["token_id"].values],
    }
    return answers, latent["index_layer"].values, torch.from_numpy(kept["state"].values)


def texts_of(model: Any, texts: list[str]) -> Tensor:
    """[1, layer, token, width] states of the tokens of texts, the first token of each left out."""
    found = workbench.read(model, texts, States(range(model.n_layers + 1)), progress=False).data["state"]
    states = torch.from_numpy(found.transpose("prompt", "layer", "position", ...).values)[:, :, 1:]
    there = states.isfinite().all(-1).all(1)  # [prompt, position]: texts are not equally long
    return states.transpose(1, 2)[there].transpose(0, 1)[None]


def kept(states: Tensor) -> list[float]:
    return [rounded(x) for x in torch.cosine_similarity(states, states[:, :1], dim=-1).mean((0, 2))]


def study(model: Any, n: int, captions: int, connectors: int) -> dict[str, Any]:
    own = list(scenes(n, HELD_OUT_SEED))
    corpus = [caption(s, 0) for s in scenes(captions, CORPUS_SEED)]
    module, tokenizer = model.module, model.tokenizer
    kinds = {"things": patches(own, 0.5, 2), "in_part": patches(own, 0.02, 0.5), "of_ground": grounds(own)}
    with tempfile.TemporaryDirectory() as place:
        index = ContextIndex.build(model, corpus, place, layers=range(1, model.n_layers + 1), progress=False)
        lenses = Lenses(model, index, corpus)
        answers, layers, states = asked(model, index, own)
        things = kinds["things"]
        dense, _ = lenses(things.of(states))
        share = np.stack([(things.of(layers) == x).mean((0, 2)) for x in index.layers], 1)
        result: dict[str, Any] = {
            "pictures": n, "captions": captions, "contexts": len(index), "index_layers": list(index.layers),
            "patches": {name: len(where.picture) for name, where in kinds.items()},
            # The lenses of one pass against the same computed densely, with the model's own modules.
            "same_as_dense": {x: rounded((dense[x] == things.of(answers[x])).mean()) for x in answers},
            # How long visual tokens are, and states of text (layer 0: embeddings of the captions' tokens).
            "length": {
                "visual": [rounded(x) for x in states.norm(dim=-1).mean((0, 2))],
                "text": [rounded(x) for x in lenses.lengths()],
            },
            # How much of its direction at layer 0 a state still has: mean cosine.
            "direction_kept": {"visual": kept(states), "text": kept(texts_of(model, corpus[:100]))},
            "index_layer_share": [[rounded(x) for x in row] for row in share],
        }  # fmt: skip
        for name, where in kinds.items():
            here = {lens: where.of(x) for lens, x in answers.items()}
            if name == "things":
                here |= {lens: dense[lens] for lens in SAME_WORDS}
                here |= {lens: lenses.latent(things.of(states), how)[0] for lens, how in CALIBRATED.items()}
                here[BOTH] = lenses.both_centred(things.of(states), states.mean((0, 2)))
                result["ahead"] = ahead(here, where)
            result[name] = rates(here, where)
        others = list(scenes(n, PROBE_SEED))
        fitted = states_of(module, tokenizer, visual_tokens(module, others))
        result["probe"] = probe(states, things, fitted, patches(others, 0.5, 2))
        half = own[: max(1, n // 2)]  # many forward passes: half of the pictures
        result["controls"] = controls(
            module, tokenizer, lenses, half, visual_tokens(module, half), patches(half, 0.5, 2), connectors
        )
    return result


def table(rows: list[dict[str, Any]], top: int, lenses: tuple[str, ...] = LENSES) -> str:
    """Right by layer with its interval and chance, in Markdown."""
    layers = [r["layer"] for r in rows if r["lens"] == lenses[0] and r["top"] == top]
    lines = [["", *("mean" if x == "mean" else f"layer {x}" for x in layers)], ["---"] * (len(layers) + 1)]
    for lens in lenses:
        own = [r for r in rows if r["lens"] == lens and r["top"] == top]
        lines.append([lens, *(f"{r['right']:.2f} [{r['right_low']:.2f}, {r['right_high']:.2f}]" for r in own)])
        lines.append(["wrong, nothing", *(f"{r['wrong']:.2f}, {r['nothing']:.2f}" for r in own)])
        lines.append(["chance", *(f"{r['chance']:.2f}" for r in own)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def into_card(result: dict[str, Any]) -> None:
    """Writes the tables into the organism's card, with what they say."""
    home = folder("gallery").parent
    card = json.loads((home / "card.json").read_text())
    card["lenses"] = {"text": said(result, json.loads(UNTIED.read_text()))}
    write_card(home, card)


def said(result: dict[str, Any], untied: dict[str, Any]) -> str:
    gaps = {(r["over"], r["top"], r["of"]): r for r in result["ahead"] if r["layer"] == "mean"}
    probed = ["| | " + " | ".join(f"layer {r['layer']}" for r in result["probe"]) + " |"]
    probed += ["|---" * (len(result["probe"]) + 1) + "|"]
    probed += [f"| {x} | " + " | ".join(f"{r[x]:.2f}" for r in result["probe"]) + " |" for x in ("colour", "shape")]
    nothing = ["| | | right beyond chance | intervals that lack 0 |", "|---|---|---|---|"]
    for r in result["controls"]:
        if r["top"] == TOP:
            lacks = f"{r['without_0']:.3f} [{r['without_0_low']:.3f}, {r['without_0_high']:.3f}]"
            own = [r["control"], r["lens"], f"{r['above']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"]
            nothing.append(f"| {' | '.join(own)} | {lacks if r['control'] == 'exchanged' else ''} |")
    ahead_of = ["| LatentLens less | right | right beyond chance |", "|---|---|---|"]
    for top in (1, TOP):
        for lens in (*LENSES[1:], *SAME_WORDS, NEXT, *CALIBRATED, BOTH):
            cells = [gaps[lens, top, of] for of in ("right", "above")]
            numbers = " | ".join(f"{r['ahead']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]" for r in cells)
            ahead_of.append(f"| {lens}, {'first word' if top == 1 else f'any of {top}'} | {numbers} |")
    shown = (*LENSES, NEXT)
    means, other = (
        {r["lens"]: r for r in x["things"] if (r["top"], r["layer"]) == (TOP, "mean")} for x in (result, untied)
    )
    gap = next(
        r for r in untied["ahead"] if (r["over"], r["top"], r["of"], r["layer"]) == ("LogitLens", TOP, "above", "mean")
    )
    parts = {
        "patches": f"{result['patches']['things']:,}", "pictures": result["pictures"],
        "captions": f"{result['captions']:,}", "contexts": f"{result['contexts']:,}",
        "any": table(result["things"], TOP, shown), "first": table(result["things"], 1, shown),
        "probe": "\n".join(probed), "controls": "\n".join(nothing), "ahead": "\n".join(ahead_of),
        "times": result["controls"][0]["n"], "visual": result["length"]["visual"], "text": result["length"]["text"],
        "latent": means["LatentLens"], "logit": means["LogitLens"], "embedding": means["EmbeddingLens"],
        "next": means[NEXT], "both": means[BOTH], "kept": result["direction_kept"],
        "other": {x: other[lens] for x, lens in zip(("latent", "logit", "embedding"), LENSES, strict=True)}, "gap": gap,
        "steps": untied["made_with"].partition("--set ")[2],
    }  # fmt: skip
    return CARD.format(**parts)


CARD = """
## What lenses name at visual tokens

{patches} patches of {pictures} held-out pictures that a thing covers by half or more, read at every layer;
LatentLens over {contexts} contexts of {captions} captions of other pictures. `python benchmarks/gallery.py` says how
answers are read, and makes these tables. *Right*: a word is the thing's colour or shape; *wrong*: words of the kind,
none of which is; *nothing*: no such word. Chance: the same answers held against the things of other pictures. In
brackets 95 % intervals over pictures.

Any of five words (as the paper's judge counts):

{any}

The first word alone:

{first}

Means over layers, on the same patches; "words of the corpus": with no other candidates than tokens of the captions:

{ahead}

What is there to be found, by a linear probe of the same states that was fitted on other pictures:

{probe}

Where nothing may be found ({times} times each, any of five words, mean over layers): visual tokens of another picture
(exchanged; nominal rate of intervals that lack 0: .05), a connector whose weights are shuffled, and the connector's
outputs in another order (intervals over connectors, since one of them may turn red into "red" by luck).

{controls}

*Is LatentLens ahead where truth is known?* Here it is far behind: {latent[right]:.2f} by any of five words (chance
{latent[chance]:.2f}), LogitLens {logit[right]:.2f} ({logit[chance]:.2f}), EmbeddingLens {embedding[right]:.2f}
({embedding[chance]:.2f}). The paper's judge puts them the other way round: .74, .22 and .30, means of nine models. What
differs, as far as it was measured:

* This language model has one matrix for embeddings and head, and the connector writes visual tokens along its rows,
  {visual[0]:.0f} long where an embedding is {text[0]:.1f}. The blocks hardly turn anything so long: after the first
  block visual tokens have a cosine of {kept[visual][1]:.2f} with what they were at layer 0, and {kept[visual][4]:.2f}
  at layer 4, where states of text have {kept[text][1]:.2f} and {kept[text][4]:.2f}. So visual tokens stay words of the
  vocabulary, and lie where no state of text does.
* Models of the paper have a head of their own. With one (`--set {steps}`: trained for less long), read in 100 pictures:
  LatentLens {other[latent][right]:.2f} (chance {other[latent][chance]:.2f}), LogitLens {other[logit][right]:.2f}
  ({other[logit][chance]:.2f}), EmbeddingLens {other[embedding][right]:.2f} ({other[embedding][chance]:.2f}). LatentLens
  is then before LogitLens, as in the paper, by {gap[ahead]:.2f} [{gap[low]:.2f}, {gap[high]:.2f}] beyond chance, and
  EmbeddingLens before both.
* What LatentLens finds are contexts like "a big": a colour or shape is about to be said, and which one is not shared
  (*the next word*: {next[right]:.2f}, chance {next[chance]:.2f}). Less the means of both, visual tokens' and contexts',
  LatentLens finds {both[right]:.2f} (chance {both[chance]:.2f}), and is still behind.
* Chance is high where five words may name any of eight colours and six shapes: a lens that says nothing but colours is
  "right" half the time. A rate without its chance says little, for each of the lenses.

Small models, each trained once: they show that the order of the lenses hangs on how a model is made, not what holds of
large ones.
"""


UNTIED = Path(__file__).parent / "results" / "gallery-untied.json"
"""The same of a model with a head of its own; its ``made_with`` says how it was made."""


def figure(result: dict[str, Any]) -> Any:
    """Right by layer and lens, with chance, for one word and for five; and the published means over layers."""
    from workbench.figures import Axis, Figure, Line, Panel, Plot, Points, whole

    panels = []
    for top, title in ((TOP, f"gallery: any of {TOP} words"), (1, "gallery: the first word")):
        marks: list[Any] = []
        for hue, lens in enumerate(LENSES):
            own = [r for r in result["things"] if (r["lens"], r["top"]) == (lens, top) and r["layer"] != "mean"]
            at = [r["layer"] for r in own]
            right, low, high, chance = ([r[x] for r in own] for x in ("right", "right_low", "right_high", "chance"))
            marks.append(Line(at, right, lens, low, high, hue=hue, legend=top == TOP))
            marks.append(Line(at, chance, "chance", hue=hue, dash="dash", markers=False, width=1, legend=False))
        panels.append(Panel(marks, whole("layer", at), Axis("share of patches", range=(-0.02, 1.02)), title))
    spread = np.linspace(-0.15, 0.15, len(PAPER))
    marks = [
        Points(hue + spread, [x[hue] / 100 for x in PAPER.values()], lens, hue=hue, hover=list(PAPER), legend=False)
        for hue, lens in enumerate(LENSES)
    ]
    panels.append(
        Panel(marks, Axis("", names=list(LENSES)), Axis("", range=(-0.02, 1.02)), "published: nine models, by a judge")
    )
    said = "patches of things named right · bands: 95 % over pictures · dashed: chance"
    return Figure(Plot(panels, f"organism:gallery · {said}", shared="y"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:gallery")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--captions", type=int, default=4000)
    parser.add_argument("--connectors", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a few pictures, captions and connectors")
    parser.add_argument("--card", action="store_true", help="write the numbers into the organism's card")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--figure", type=Path, help="a PNG or PDF beside the published means")
    given = parser.parse_args()
    if given.quick:
        given.pictures, given.captions, given.connectors = 30, 400, 2
    model = workbench.load(given.model, progress=False)
    found = study(model, given.pictures, given.captions, given.connectors)
    result = {"machine": machine(model.device.type), "model": model.name, **found}
    for top in (1, TOP):
        print(f"\nfirst {top}\n" + table(result["things"], top, (*LENSES, NEXT, *SAME_WORDS, *CALIBRATED, BOTH)))
    for row in result["ahead"]:
        if row["layer"] == "mean":
            print(row)
    print(result["probe"], result["same_as_dense"])
    written(result, given.out)
    if given.figure:
        figure(result).save(given.figure)
    if given.card:
        into_card(result)


if __name__ == "__main__":
    main()
