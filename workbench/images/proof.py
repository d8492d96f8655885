"""A model's way with pictures, proved by numbers: which positions a picture fills, what each shows, what can be read.

Proved when the first prompt with a picture comes, on pictures of coloured noise:

* which positions the picture changes in front of the first block: those are its visual tokens;
* that the readout gives the model's own logits on a prompt with a picture, too;
* whether blocks read what the block before gave, or visual features are added in between (deepstack);
* whether prompts with pictures may share a batch, padded on either side;
* that noise in the cell that a token is said to show changes that token most.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy.probe import accepted
from workbench.anatomy.proof import readout_error
from workbench.engine.hooks import StopForward, hooked, run, untouched
from workbench.errors import InputError, Refused
from workbench.images.geometry import Size, Unplaced, tiles
from workbench.images.joining import placed
from workbench.images.layout import Places, hypotheses, unplaced
from workbench.images.pictures import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from workbench.model import Model

PROBES = 8
CHANCE = 1e-3
"""How likely it may be that tokens without a place hit as often as those of a layout that is taken."""
PICTURES: tuple[Size, ...] = ((224, 160), (112, 80), (56, 40))
"""Sizes of the pictures of the proof; smaller ones where the larger does not fit into the model's context."""


@dataclass(frozen=True)
class Visual:
    """The visual tokens of one prompt.

    Attributes
    ----------
    at
        [token] their positions.
    places
        What each shows.
    pictures
        The prompt's pictures; [] where only a processor's output was given.
    """

    at: np.ndarray
    places: Places
    pictures: Sequence[Picture] = ()

    @property
    def shown(self) -> np.ndarray:
        """Positions of the tokens that show a part of a picture."""
        return self.at[self.places.shows]


@dataclass(frozen=True)
class VisionProof:
    """What was found about a model's way with pictures.

    Attributes
    ----------
    error
        Of the readout on a prompt with a picture, as a share of the largest logit.
    tokens
        Ids that stand for visual tokens; () where pictures enter by cross-attention alone.
    added
        Layers at which visual features are added to the stream between blocks (deepstack).  A state of layer l is what
        block l reads, so it has them.
    pad_sides
        Sides on which prompts with pictures may be padded, so that they share a batch.
    """

    error: float
    tokens: tuple[int, ...]
    added: tuple[int, ...]
    pad_sides: tuple[str, ...]


class Vision:
    """How pictures get into one model.  Raises Refused where they cannot be read rightly."""

    def __init__(self, model: Model) -> None:
        self.model, self.processor = model, model.processor
        self._rules: dict[Any, str] = {}
        self._tiles: dict[Any, Any] = {}
        with untouched(model.module):
            self.proof = self._prove()

    def describe(self) -> dict[str, Any]:
        """The proof as plain values, for provenance."""
        return asdict(self.proof) | {"layout": sorted(set(self._rules.values()))}

    # ---------------------------------------------------------------- what the processor gives

    def process(self, text: str, images: Sequence[Image], what: str, special: bool = True) -> dict[str, Any]:
        """What the processor gives for one prompt, without the attention mask.  InputError where it cannot."""
        options = {} if special else {"add_special_tokens": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                given = dict(self.processor(text=[text], images=list(images), return_tensors="pt", **options))
            except Exception as error:
                raise InputError(self._said(text, images, what, error)) from error
        given.pop("attention_mask", None)
        return given

    def _said(self, text: str, images: Sequence[Any], what: str, error: Exception) -> str:
        token = image_token(self.processor)
        has = text.count(token) if token else None
        if has is not None and has != len(images):
            return (
                f"{what} has {len(images)} picture(s) and its text names {has}: write {token!r} in the text once for "
                'each, where it belongs, or give a chat with parts {"type": "image", "image": picture}.'
            )
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        return (
            f"The processor of {self.model.name} ({type(self.processor).__name__}) does not take {what} with "
            f"picture(s) of {sizes}: {type(error).__name__}: {str(error)[:300]}"
        )

    # ---------------------------------------------------------------- one prompt

    def visual(
        self, text: str, pictures: Sequence[Picture], given: Mapping[str, Any], what: str, special: bool
    ) -> Visual:
        """The visual tokens of a prompt that :meth:`process` made."""
        ids = np.asarray(given["input_ids"])[0]
        at = np.flatnonzero(np.isin(ids, self.proof.tokens))
        sizes = [(p.width, p.height) for p in pictures]
        if not len(at):
            if self.proof.tokens:
                token = image_token(self.processor)
                raise InputError(
                    f"{what} has {len(pictures)} picture(s), and no position of it is one of theirs: the text has no "
                    f"place for them. " + (f"Write {token!r} where each belongs, or give" if token else "Give") + " a "
                    'chat with parts {"type": "image", "image": picture}.'
                )
            return Visual(at, unplaced(0, sizes), pictures)
        return Visual(at, self._places(text, given, sizes, len(at), special), pictures)

    def _places(self, text: str, given: Mapping[str, Any], sizes: list[Size], count: int, special: bool) -> Places:
        key = (tuple(sizes), text.count(image_token(self.processor) or "\0"), count)
        if key in self._tiles:
            return self._tiles[key]

        def again(images: list[Any]) -> dict[str, Any]:
            return self.process(text, images, "the probe", special)

        try:
            found = tiles(again, sizes)
            ways = list(hypotheses(self.model.module, given, found, sizes, count))
            places = self._chosen(ways, len(found) > len(sizes), text, sizes, special)
        except Unplaced as reason:
            places = None
            self._told(str(reason))
        if places is None:
            places = unplaced(count, sizes)
        if len(self._tiles) > 256:
            self._tiles.clear()
        self._tiles[key] = places
        return places

    def _chosen(
        self, ways: list[Places], cropped: bool, text: str, sizes: list[Size], special: bool
    ) -> Places | None:
        """The layout that was proved for pictures of this kind, cut into tiles or not; proved here where it is new."""
        if cropped in self._rules:
            rule = self._rules[cropped]
            return next((way for way in ways if way.rule == rule), None)
        with untouched(self.model.module):
            scores = [(self._hits(way, text, sizes, special), way) for way in ways]
        best = max(scores, key=lambda one: one[0][0], default=None)
        if best is None or _tail(*best[0]) > CHANCE:
            hits = f" (noise in a cell changed its token most in {best[0][0]} of {PROBES} trials)" if best else ""
            self._told(f"no grid of tokens was found that holds on the model{hits}")
            self._rules[cropped] = "none"
            return None
        self._rules[cropped] = best[1].rule
        return best[1]

    def _told(self, reason: str) -> None:
        if "vision_told" in self.model.known:
            return
        self.model.known["vision_told"] = True
        warnings.warn(
            f"The visual tokens of {self.model.name} have no known place in their picture: {reason}. Their states are "
            "read all the same; rows, columns and boxes are left out (-1, the whole picture).",
            stacklevel=2,
        )

    # ---------------------------------------------------------------- the proof

    def _prove(self) -> VisionProof:
        model = self.model
        text, size = self._example()
        inputs = self._inputs(text, [noise(size, 0)])
        ids = inputs["input_ids"][0].cpu().numpy()
        one, two = (self._front(self._inputs(text, [noise(size, seed)])) for seed in (0, 1))
        changed = (one != two).any(-1).cpu().numpy()
        tokens = tuple(sorted({int(i) for i in ids[changed]}))
        if tokens and len(ids[changed]) < 0.5 * np.isin(ids, tokens).sum():
            raise Refused(
                f"In {model.name} a picture fills some of the positions that have the ids {tokens[:4]} and not others, "
                "so which positions are visual tokens cannot be told."
            )
        error, added = self._readout(inputs)
        if not tokens and not self._matters(text, size):
            raise Refused(
                f"A picture changes nothing in {model.name} on the prompt {text!r}: its states say nothing about one."
            )
        return VisionProof(error, tokens, added, self._sides(text, size))

    def _example(self) -> tuple[str, Size]:
        """A text with a place for one picture, and the size of one that fits."""
        limit, reasons = self.model.context_length, []
        for text in examples(self.processor):
            for size in PICTURES:
                try:
                    given = self.process(text, [noise(size, 0)], "the example")
                except InputError as error:
                    reasons.append(str(error))
                    break
                if limit is None or given["input_ids"].shape[1] <= limit:
                    return text, size
                reasons.append(f"a picture of {size[0]} x {size[1]} takes more than the {limit} tokens of its context")
        raise Refused(
            f"No prompt with one picture could be made for {self.model.name}: " + "; ".join(dict.fromkeys(reasons[:3]))
        )

    def _inputs(self, text: str, images: Sequence[Any], special: bool = True) -> dict[str, Any]:
        given = self.process(text, images, "the probe", special)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        return placed(given, self.model)

    def _front(self, inputs: Mapping[str, Any]) -> Tensor:
        """[position, width] states in front of the first block."""
        seen: list[Tensor] = []

        def stop(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            state = self.model.anatomy.layout.find((args, kwargs))
            if state is not None:
                seen.append(state.detach().clone())
            raise StopForward

        with hooked({self.model.blocks[0]: stop}):
            self._run(inputs)
        n = inputs["input_ids"].shape[1]
        if not seen or seen[0].shape[:2] != (1, n):
            shape = tuple(seen[0].shape) if seen else None
            raise Refused(
                f"With a picture {self.model.name} has states of shape {shape} in front of its first block for {n} "
                "input ids: visual states stand where no id does, so positions and tokens cannot be matched."
            )
        return seen[0][0].float()

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        try:
            return run(self.model.module, accepted(self.model.module, dict(inputs)))
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Refused(
                f"A forward pass of {self.model.name} on a prompt with a picture fails with {type(error).__name__}: "
                f"{str(error)[:300]}"
            ) from error

    def _matters(self, text: str, size: Size) -> bool:
        one, two = (self._run(self._inputs(text, [noise(size, seed)])).logits for seed in (0, 1))
        return bool((one != two).any())

    def _readout(self, inputs: Mapping[str, Any]) -> tuple[float, tuple[int, ...]]:
        """Error of the readout, and the layers at which features are added between blocks."""
        model, layout = self.model, self.model.anatomy.layout
        last = model.anatomy.last_block
        entering: dict[int, Tensor] = {}
        leaving: dict[int, Tensor] = {}

        def enters(block: int) -> Any:
            def hook(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                state = layout.find((args, kwargs))
                if state is not None:
                    entering[block] = state.detach().clone()

            return hook

        def leaves(block: int) -> Any:
            def hook(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
                state = layout.find(output)
                if state is not None:
                    leaving[block] = state.detach().clone()

            return hook

        with hooked(
            {m: enters(i) for i, m in enumerate(model.blocks)}, {m: leaves(i) for i, m in enumerate(model.blocks)}
        ):
            logits = self._run(inputs).logits
        if last not in leaving or logits.shape[:2] != leaving[last].shape[:2]:
            raise Refused(f"With a picture, states and logits of {model.name} have different positions.")
        error, tolerance = readout_error(
            model.module, model.anatomy, leaving[last].flatten(0, 1), logits.flatten(0, 1).float()
        )
        if not error <= tolerance:
            raise Refused(
                f"On a prompt with a picture the readout of {model.name} differs from its own logits by {error:.1e} of "
                f"the largest logit (allowed: {tolerance:.0e}): its visual path goes around the residual stream. Text "
                "alone can be read."
            )
        added = [
            block + 1 for block, state in sorted(leaving.items())
            if block + 1 in entering and not torch.equal(state, entering[block + 1])
        ]  # fmt: skip
        return error, tuple(added)

    def _sides(self, text: str, size: Size) -> tuple[str, ...]:
        """The sides on which a batch of two prompts of different length and pictures gives what each alone gives."""
        from workbench.inputs import Prompt, collate

        smaller = (max(8, size[0] // 2), max(8, size[1] * 3 // 4))
        prompts = []
        for words, shape in ((text, size), (text + " and", smaller)):
            given = self.process(words, [noise(shape, 2)], "the probe")
            ids = given.pop("input_ids")[0].tolist()
            prompts.append(Prompt(ids, words, given, positions=list(range(len(ids)))))

        def last(members: list[int], side: str) -> Tensor:
            batch = collate(self.model, prompts, members, side, check=False)
            output = run(self.model.module, accepted(self.model.module, batch.inputs))
            return batch.take(output.logits).float()

        from workbench.anatomy.proof import TOLERANCE

        good, alone = [], torch.cat([last([i], "right") for i in (0, 1)])
        for side in self.model.anatomy.pad_sides:
            try:
                found = last([0, 1], side)
            except (torch.OutOfMemoryError, KeyboardInterrupt):
                raise
            except Exception:  # what a model cannot run together runs one by one
                continue
            share = (found - alone).abs().max() / alone.abs().max()
            if share <= TOLERANCE.get(self.model.dtype, 1e-4):
                good.append(side)
        return tuple(good)

    def _hits(self, way: Places, text: str, sizes: list[Size], special: bool) -> tuple[int, float]:
        """How often noise in a token's cell changes that token most, and how likely a hit is without a layout."""
        tokens = np.flatnonzero(way.shows)
        crops = tokens[way.tile[tokens] > 0]
        tokens = crops if len(crops) else tokens
        if not len(tokens):
            return 0, 1.0
        order = np.random.default_rng(0).permutation(tokens)
        hits, chances = 0, []
        for trial in range(PROBES):
            token = int(order[trial % len(order)])
            base = [noise(size, 10 + trial) for size in sizes]
            painted = [image.copy() for image in base]
            left, top, right, bottom = way.box[token]
            box = (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
            patch = noise((box[2] - box[0], box[3] - box[1]), 50 + trial, cells=2)
            painted[way.image[token]].paste(patch, box[:2])
            before, after = (self._inputs(text, images, special) for images in (base, painted))
            at = np.isin(before["input_ids"][0].cpu().numpy(), self.proof.tokens)
            one, two = self._front(before)[at], self._front(after)[at]
            if len(one) != len(way):
                return 0, 1.0
            moved = ((two - one).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-12)).cpu().numpy()
            hits += int(moved.argmax()) == token
            chances.append(1 / len(moved))
        return hits, float(np.mean(chances))


def _tail(hits: int, chance: float) -> float:
    """The probability of at least so many hits by chance."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, PROBES, chance))


def image_token(processor: Any) -> str | None:
    """What a text has in the place of a picture; None where the processor does not say."""
    for owner, name in ((processor, "boi_token"), (processor, "image_token"), (processor.tokenizer, "image_token")):
        token = getattr(owner, name, None)
        # Gemma's texts name the token that begins a picture, and its processor writes those that stand for patches.
        if name == "boi_token" and not hasattr(processor, "full_image_sequence"):
            continue
        if token is not None:
            return str(getattr(token, "content", token))
    return None


def examples(processor: Any) -> list[str]:
    """Texts with a place for one picture, likely ones first."""
    found = []
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    if getattr(processor, "chat_template", None):
        try:
            found.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template that wants a system turn, say
            pass
    token = image_token(processor)
    return [*found, *([f"{token} What is it?"] if token else []), "What is it?"]


def noise(size: Size, seed: int, cells: int = 8) -> Image:
    """A picture of coloured squares, so many to its shorter side, in random colours."""
    from PIL import Image

    side = max(1, min(size) // cells)
    shape = (-(-size[1] // side), -(-size[0] // side), 3)
    colours = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    large = colours.repeat(side, 0).repeat(side, 1)[: size[1], : size[0]]
    return Image.fromarray(np.ascontiguousarray(large))
