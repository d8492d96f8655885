"""A model's way with pictures, proved by numbers: which positions a picture fills, what each shows, what can be read.

Proved when the first prompt with a picture comes, on pictures of coloured noise:

* which positions the picture changes in front of the first block: those are its visual tokens;
* that the readout gives the model's own logits on a prompt with a picture, too;
* whether blocks read what the block before gave, or visual features are added in between (deepstack);
* whether prompts with pictures may share a batch, padded on either side;
* that noise in the cell that a token is said to show changes that token most.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy.probe import in_front, probe
from workbench.anatomy.proof import TOLERANCE, readout_error
from workbench.chats import by_template
from workbench.engine.hooks import untouched
from workbench.errors import InputError, Refused
from workbench.images.geometry import Size, Unplaced, tiles
from workbench.images.joining import alone
from workbench.images.layout import Places, Visual, hypotheses, unplaced
from workbench.images.pictures import Picture, image_token, noise

if TYPE_CHECKING:
    from PIL.Image import Image

    from workbench.model import Model

STARTS = re.compile(r"(vision_start|image_start|boi)_token_(id|index)")
PROBES = 16
CHANCE = 1e-4
"""How likely it may be that tokens without a place hit as often as those of a layout that is taken."""
TRIES = 3
"""Pictures on which the layout of tokens is tried, before there is held to be none."""
PICTURES: tuple[Size, ...] = ((224, 160), (112, 80), (56, 40))
"""Sizes of the pictures of the proof; smaller ones where the larger does not fit into the model's context."""


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
    begins
        The token that begins a picture, which the config names and the model's template writes; None: none.
    """

    error: float
    tokens: tuple[int, ...]
    added: tuple[int, ...]
    pad_sides: tuple[str, ...]
    begins: int | None = None


class Vision:
    """How pictures get into one model.  Raises Refused where they cannot be read rightly.

    Attributes
    ----------
    proof
        What was proved.
    example
        The text with a place for one picture, and the size of the picture, that it was proved on.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.processor = model, model.processor
        self._named = True
        """Whether texts name the places of their pictures."""
        self._rules: dict[Any, str] = {}
        self._failed: dict[Any, int] = {}
        self._known: dict[Any, Places] = {}
        with untouched(model.module):
            self.example = text, size = self._example()
            self.proof = self._prove(text, size)
        if self.proof.tokens:
            # The layout, too, on a picture of an ordinary size: what comes first may be too small to tell.
            given = self.process(text, [noise(size, 0)], "the example")
            self._places(text, given, [size], int(np.isin(given["input_ids"][0], self.proof.tokens).sum()), True)

    def describe(self) -> dict[str, Any]:
        """The proof as plain values, for provenance."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.proof).items()}
        return plain | {"layout": sorted(set(self._rules.values()))}

    # ---------------------------------------------------------------- what the processor gives

    def process(self, text: str, images: Sequence[Image], what: str, special: bool = True) -> dict[str, Any]:
        """What the processor gives for one prompt, without the attention mask.  InputError where it cannot."""
        token = image_token(self.processor)
        if token and text.count(token) not in (0, len(images)):  # some processors leave out what is too much
            raise InputError(self._said(text, images, what, ValueError()))
        options: dict[str, Any] = {} if special else {"add_special_tokens": False}
        if "mm_token_type_ids" in self.processor.model_input_names:
            options["return_mm_token_type_ids"] = True  # some models want them, and their processors give them if asked
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
        if has is not None and has != len(images) and (has or self._named):
            return (
                f"{what} has {len(images)} picture(s) and its text names {has}: write {token!r} in the text once for "
                'each, where it belongs, or give a chat with parts {"type": "image", "image": picture}.'
            )
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        return (
            f"{what} has picture(s) of {sizes} pixels, and the processor of {self.model.name} "
            f"({type(self.processor).__name__}) does not take them: {type(error).__name__}: {str(error)[:300]}"
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
        begun = int((np.r_[-1, ids][at[np.diff(at, prepend=-2) > 1]] == self.proof.begins).sum())
        if self.proof.begins is not None and begun < len(pictures):
            self._told_of_start(what, len(pictures) - begun)
        return Visual(at, self._places(text, given, sizes, len(at), special), pictures)

    def _told_of_start(self, what: str, lacking: int) -> None:
        if "start_told" in self.model.known:
            return
        self.model.known["start_told"] = True
        known = self.model.tokenizer
        start = known.convert_ids_to_tokens(self.proof.begins) if known is not None else self.proof.begins
        warnings.warn(
            f"{what} has {lacking} picture(s) without {start!r} in front. The template of {self.model.name} begins "
            "every picture with it, and without it the model is not as it was trained. Write it in the text, or give "
            "a chat.",
            stacklevel=2,
        )

    def _places(self, text: str, given: Mapping[str, Any], sizes: list[Size], count: int, special: bool) -> Places:
        key = (tuple(sizes), text.count(image_token(self.processor) or "\0"), count)
        if key in self._known:
            return self._known[key]

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
        if len(self._known) > 256:
            self._known.clear()
        self._known[key] = places
        return places

    def _chosen(
        self, ways: list[Places], cropped: bool, text: str, sizes: list[Size], special: bool
    ) -> Places | None:
        """The layout that was proved for pictures of this kind, cut into tiles or not; proved here where it is new."""
        if cropped in self._rules:
            rule = self._rules[cropped]
            return next((way for way in ways if way.rule == rule), None)
        tried: list[Places] = []
        hits = 0
        for way in ways:
            if any(_same(way, other) for other in tried):
                continue
            tried.append(way)
            with untouched(self.model.module):
                holds, own = self._holds(way, text, sizes, special)
            hits = max(hits, own)
            if holds:
                self._rules[cropped] = way.rule
                return way
        self._told(
            "no grid of tokens was found that holds on the model"
            + (f" (noise in a cell changed its token most in {hits} of {PROBES} trials)" if tried else "")
        )
        self._failed[cropped] = self._failed.get(cropped, 0) + 1
        if self._failed[cropped] >= TRIES:
            self._rules[cropped] = "none"
        return None

    def _told(self, reason: str) -> None:
        if "vision_told" in self.model.known:
            return
        self.model.known["vision_told"] = True
        warnings.warn(
            f"The visual tokens of {self.model.name} have no known place in their picture: {reason.rstrip('.')}. "
            "Their states are read all the same; rows, columns and boxes are left out (-1, the whole picture).",
            stacklevel=2,
        )

    # ---------------------------------------------------------------- the proof

    def _prove(self, text: str, size: Size) -> VisionProof:
        model = self.model
        inputs = self._inputs(text, [noise(size, 0)])
        ids = inputs["input_ids"][0].cpu().numpy()
        one, two = self._front(inputs), self._front(self._inputs(text, [noise(size, 1)]))
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
        first = int(np.argmax(changed))
        before = int(ids[first - 1]) if tokens and first else None
        begins = before if before in _starts(model.module.config) else None
        return VisionProof(error, tokens, added, self._sides(text, size), begins)

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
                    self._named = (image_token(self.processor) or "\0") in text
                    return text, size
                reasons.append(f"a picture of {size[0]} x {size[1]} takes more than the {limit} tokens of its context")
        raise Refused(
            f"No prompt with one picture could be made for {self.model.name}: " + "; ".join(dict.fromkeys(reasons[:3]))
        )

    def _inputs(self, text: str, images: Sequence[Any], special: bool = True) -> dict[str, Any]:
        return alone(self.process(text, images, "the probe", special), self.model)

    def _front(self, inputs: Mapping[str, Any]) -> Tensor:
        """[position, width] states in front of the first block."""
        model, n = self.model, inputs["input_ids"].shape[1]
        state = self._ran(lambda: in_front(model.module, model.blocks[0], dict(inputs), model.anatomy.layout.find))
        if state is None or state.shape[:2] != (1, n):
            shape = None if state is None else tuple(state.shape)
            raise Refused(
                f"With a picture {self.model.name} has states of shape {shape} in front of its first block for {n} "
                "input ids: visual states stand where no id does, so positions and tokens cannot be matched."
            )
        return state[0].float()

    def _ran(self, forward: Callable[[], Any]) -> Any:
        """What a pass gives; Refused where it fails."""
        try:
            return forward()
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Refused(
                f"A forward pass of {self.model.name} on a prompt with a picture fails with {type(error).__name__}: "
                f"{str(error)[:300]}"
            ) from error

    def _matters(self, text: str, size: Size) -> bool:
        def logits(seed: int) -> Tensor:
            inputs = self._inputs(text, [noise(size, seed)])
            return self._ran(lambda: probe(self.model.module, inputs)).logits

        one, two = logits(0), logits(1)
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

        before = {m: enters(i) for i, m in enumerate(model.blocks)}
        after = {m: leaves(i) for i, m in enumerate(model.blocks)}
        logits = self._ran(lambda: probe(model.module, dict(inputs), before, after)).logits
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
            return batch.take(probe(self.model.module, batch.inputs).logits).float()

        good, apart = [], torch.cat([last([i], "right") for i in (0, 1)])
        for side in self.model.anatomy.pad_sides:
            try:
                found = last([0, 1], side)
            except (torch.OutOfMemoryError, KeyboardInterrupt):
                raise
            except Exception:  # what a model cannot run together runs one by one
                continue
            share = (found - apart).abs().max() / apart.abs().max()
            if share <= TOLERANCE.get(self.model.dtype, 1e-4):
                good.append(side)
        return tuple(good)

    def _holds(self, way: Places, text: str, sizes: list[Size], special: bool) -> tuple[bool, int]:
        """Whether noise in a token's cell changes that token most, more often than chance would; and how often."""
        tokens = np.flatnonzero(way.shows)
        crops = tokens[way.tile[tokens] > 0]  # the whole picture shows what its crops show
        tokens = crops if len(crops) else tokens
        if not len(tokens):
            return False, 0
        order = np.random.default_rng(0).permutation(tokens)
        base = [noise(size, 10 + i) for i, size in enumerate(sizes)]
        before = self._inputs(text, base, special)
        at = np.isin(before["input_ids"][0].cpu().numpy(), self.proof.tokens)
        one = self._front(before)[at]
        if len(one) != len(way):
            return False, 0
        hits = 0
        for trial in range(PROBES):
            token = int(order[trial % len(order)])
            painted = [image.copy() for image in base]
            left, top, right, bottom = way.box[token]
            box = (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
            patch = noise((box[2] - box[0], box[3] - box[1]), 50 + trial, cells=2)
            painted[way.image[token]].paste(patch, box[:2])
            two = self._front(self._inputs(text, painted, special))[at]
            moved = (two - one).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-12)
            hits += int(moved.argmax()) == token
            if _tail(hits, trial + 1, 1 / len(way)) <= CHANCE:
                return True, hits
        return False, hits


def _same(one: Places, two: Places) -> bool:
    return np.array_equal(one.tile, two.tile) and np.allclose(one.box, two.box, atol=0.5, equal_nan=True)


def _tail(hits: int, trials: int, chance: float) -> float:
    """The probability of at least so many hits by chance."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, trials, chance))


def _starts(config: Any) -> list[int]:
    """Ids of tokens that begin a picture, as the config names them."""
    return [v for k, v in vars(config).items() if STARTS.fullmatch(k) and isinstance(v, int)]


def examples(processor: Any) -> list[str]:
    """Texts with a place for one picture, likely ones first."""
    found = []
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    if getattr(processor, "chat_template", None):
        try:
            found.append(by_template(processor, chat))
        except Exception:  # a template that wants a system turn, say
            pass
    token = image_token(processor)
    return [*found, *([f"{token} What is it?"] if token else []), "What is it?"]
