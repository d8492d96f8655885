"""The vision tower of a model: its blocks, found by structure, and which of its rows is which patch, found by numbers.

The blocks are a list of modules that runs on the pixels in front of the text model's first block, each member once, and
each on exactly what the one before gave.  A row of their states is a patch where noise in that patch alone changes it
in front of the first block, where nothing is mixed yet: the patches are numbered, and for each binary digit of the
numbers those that have it get noise, and then the others, so that every row spells the number of its patch.  Windows,
packing and class tokens need no rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.anatomy.layout import Layout
from workbench.anatomy.probe import in_front, probe
from workbench.engine.hooks import StopForward, tensors, untouched
from workbench.errors import InputError, Refused
from workbench.images.geometry import Tile, Unplaced, tiles
from workbench.images.joining import alone
from workbench.images.layout import Places, Visual, patch_size, patches, unplaced
from workbench.images.pictures import image_token, noise

if TYPE_CHECKING:
    from workbench.inputs import Prompt
    from workbench.model import Model

MIXED = 0.1
"""Share of a row's change that another patch may make up: a stem of convolutions that overlap does."""


@dataclass(frozen=True)
class Rows(Layout):
    """The states of a tower, however they lie ([tile, patch, width], [patch, width], ...), as one row after another."""

    def find(self, value: Any) -> Tensor | None:
        found = _state(value)
        return None if found is None or found.shape[-1] != self.width else found.reshape(1, -1, self.width)


class Tower:
    """The vision tower of one model.  Raises Refused where its states cannot be read rightly.

    Attributes
    ----------
    path
        Of the list of its blocks.
    blocks
        Those that run, in order.
    width
        Of its states.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[Any, Places] = {}
        self._rows: dict[Any, np.ndarray] = {}
        text, size = model.vision.example
        images = [noise(size, 0)]
        with untouched(model.module):
            given = model.vision.process(text, images, "the example")
            reasons = []
            for self.path, self.blocks, self.width in _chains(model, alone(given, model)):
                try:
                    self._places(text, given, [size], True)
                    return
                except Unplaced as reason:
                    self._rows.clear()
                    reasons.append(f"{self.path}: {str(reason).rstrip('.')}")
        raise Refused(
            f"The vision tower of {model.name} cannot be read: "
            + ("; ".join(reasons[:2]) or "no list of blocks runs on the pixels, each once, on what the one before gave")
            + ". The states of the text model can be."
        )

    def describe(self) -> dict[str, Any]:
        return {"blocks": self.path, "n_layers": len(self.blocks), "d_model": self.width}

    def visual(self, prompt: Prompt) -> Visual:
        """What each row of the tower's states shows, for a prompt with pictures."""
        pictures = prompt.visual.pictures if prompt.visual is not None else ()
        sizes = [(picture.width, picture.height) for picture in pictures]
        key = (tuple(sizes), prompt.text.count(image_token(self.model.processor) or "\0"), len(prompt.ids))
        if key not in self._known:
            held: Any = prompt.extras
            given = held.whole() if hasattr(held, "whole") else dict(held)
            given["input_ids"] = torch.tensor([prompt.ids])
            with untouched(self.model.module):
                try:
                    self._known[key] = self._places(prompt.text, given, sizes, prompt.special)
                except Unplaced:
                    rows = len(self._front(alone(given, self.model)))
                    self._known[key] = unplaced(rows, sizes)
        places = self._known[key]
        return Visual(np.arange(len(places)), places, pictures)

    # ---------------------------------------------------------------- which row is which patch

    def _places(self, text: str, given: Mapping[str, Any], sizes: list[tuple[int, int]], special: bool) -> Places:
        def again(images: list[Any]) -> dict[str, Any]:
            return self.model.vision.process(text, images, "the probe", special)

        found = tiles(again, sizes)
        cells = patches(self.model.module, found, sizes)
        if cells is None:
            raise Unplaced("what it sees of a picture does not divide into patches of the size that its config names")
        # How tiles lie in the processor's output decides on the numbers, and pictures of many sizes have alike ones.
        key = tuple((t.key, t.index, t.height, t.width, None if t.order is None else t.order.tobytes()) for t in found)
        if key not in self._rows:
            self._rows[key] = self._numbers(given, found)
        number = self._rows[key]
        own = number >= 0
        if len(np.unique(number[own])) < own.sum() or own.sum() != len(cells):
            raise Unplaced(
                f"of {len(number)} rows in front of its first block {len(np.unique(number[own]))} are one patch each, "
                f"and the picture has {len(cells)}"
            )
        at = np.where(own, number, 0)

        def taken(values: np.ndarray, fill: Any) -> np.ndarray:
            return np.where(own.reshape(-1, *[1] * (values.ndim - 1)), values[at], fill)

        return Places(
            *(taken(getattr(cells, name), -1) for name in ("image", "tile", "row", "column")),
            taken(cells.box, np.nan), taken(cells.shows, False), cells.rule,
        )  # fmt: skip

    def _numbers(self, given: Mapping[str, Any], found: list[Tile]) -> np.ndarray:
        """[row] the number of its patch, counted tile by tile and row by row; -1: none."""
        patch = patch_size(self.model.module)
        grids = [np.indices((t.height, t.width) if t.patches else (t.height // patch, t.width // patch)) for t in found]
        counts = [grid[0].size for grid in grids]
        first = np.cumsum([0, *counts])
        plain = self._front(alone(given, self.model))
        numbers, total, mixed = np.zeros(len(plain), int), np.zeros(len(plain)), np.zeros(len(plain))
        for digit in range(max(1, int(first[-1] - 1).bit_length())):
            moved = []
            for value in (1, 0):
                other = {key: _copied(own) for key, own in given.items()}
                for tile, start, count in zip(found, first, counts, strict=False):
                    has = ((np.arange(start, start + count) >> digit) & 1) == value
                    _noised(other, tile, has.reshape(-1), patch, 2 * digit + value)
                moved.append((self._front(alone(other, self.model)) - plain).norm(dim=-1).double().cpu().numpy())
            numbers += (moved[0] > moved[1]).astype(int) << digit
            total += np.maximum(*moved)
            mixed += np.minimum(*moved)
        sees = total > 1e-3 * np.median(total[total > 0]) if (total > 0).any() else np.zeros(len(total), bool)
        if (mixed[sees] > MIXED * total[sees]).any():
            raise Unplaced("its rows mix patches in front of its first block")
        return np.where(sees & (numbers < first[-1]), numbers, -1)

    def _front(self, inputs: Mapping[str, Any]) -> Tensor:
        """[row, width] states in front of the first block."""
        state = in_front(self.model.module, self.blocks[0], dict(inputs), _state)
        if state is None:
            raise Refused(f"{self.path} of {self.model.name} did not run on this prompt's pictures.")
        return state.float().reshape(-1, state.shape[-1])


class TowerModel:
    """A model as readers see it whose residual stream is that of its vision tower.  All else is the model's own."""

    stream = "vision"
    tokenizer = None

    def __init__(self, model: Model) -> None:
        self.whole, self.tower = model, model.once("tower", Tower)
        self.blocks, self.n_layers, self.d_model = self.tower.blocks, len(self.tower.blocks), self.tower.width
        self.anatomy = dataclasses.replace(
            model.anatomy, blocks=self.tower.path, n_layers=self.n_layers, d_model=self.d_model,
            last_block=self.n_layers - 1, layout=Rows(self.d_model),
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name in ("embedding", "unembedding", "token_vectors", "parts", "moe", "replay"):
            raise InputError(f"The vision tower of {self.whole.name} has no {name}: it knows no tokens.")
        return getattr(self.whole, name)


# ---------------------------------------------------------------- inside


def _state(value: Any) -> Tensor | None:
    """The first tensor of numbers with a width among a module's inputs or outputs."""
    return next((t for t in tensors(value) if t.is_floating_point() and t.ndim >= 2), None)


def _chains(model: Model, inputs: Mapping[str, Any]) -> list[tuple[str, list[nn.Module], int]]:
    """Lists of blocks that run in front of the text model, each on what the one before gave, in the order they run."""
    text = model.anatomy.blocks
    lists = {
        name: list(own.children())
        for name, own in model.module.named_modules()
        if isinstance(own, (nn.ModuleList, nn.Sequential)) and len(own) > 0 and not f"{name}.".startswith(f"{text}.")
    }
    members = {member for own in lists.values() for member in own}
    calls: dict[nn.Module, list[tuple[int, Tensor | None, Tensor | None]]] = {}
    clock = 0

    def enters(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal clock
        clock += 1
        state = _state((args, kwargs))
        calls.setdefault(module, []).append((clock, None if state is None else state.detach().clone(), None))

    def leaves(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        state = _state(output)
        calls[module][-1] = (*calls[module][-1][:2], None if state is None else state.detach().clone())

    def stop(*_: Any) -> None:
        raise StopForward

    before = {**dict.fromkeys(members, enters), model.blocks[0]: stop}
    probe(model.module, dict(inputs), before, dict.fromkeys(members, leaves))
    found = []
    for name, own in lists.items():
        ran = [member for member in own if member in calls]
        seen = [calls[member][0] for member in ran]
        if not ran or any(len(calls[member]) > 1 for member in ran):
            continue
        if any(x is None or y is None or x.shape != y.shape for _, x, y in seen):
            continue
        given, taken = [y for *_, y in seen[:-1]], [x for _, x, _ in seen[1:]]
        if all(torch.equal(x, y) for x, y in zip(given, taken, strict=True)):  # type: ignore[arg-type]
            found.append((seen[0][0], name, ran, seen[0][1].shape[-1]))  # type: ignore[union-attr]
    several = [name for _, name, ran, _ in found if len(ran) > 1]
    outer = [one for one in found if not any(one[1].startswith(f"{name}.") for name in several)]
    # Lists of one block show no chain: only where there is nothing else.
    outer = [one for one in outer if len(one[2]) > 1] or outer
    return [(name, ran, width) for _, name, ran, width in sorted(outer, key=lambda one: one[0])]


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copied(one) for one in value]
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def _noised(given: Mapping[str, Any], tile: Tile, which: np.ndarray, patch: int, seed: int) -> None:
    """Noise in those patches of a tile, in place."""
    key, _, item = tile.key.partition(".")
    value = given[key][int(item)] if item else given[key]
    generator = torch.Generator().manual_seed(seed)
    image = value[tile.index]
    if tile.patches:
        assert tile.order is not None
        rows = torch.from_numpy(tile.order.ravel()[which])
        image[rows] += torch.randn(len(rows), *image.shape[1:], generator=generator).to(image)
        return
    mask = which.reshape(tile.height // patch, tile.width // patch).repeat(patch, 0).repeat(patch, 1)
    whole = torch.zeros(tile.height, tile.width)
    whole[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask).float()
    channels_last = image.shape[:2] == whole.shape
    whole = whole[..., None] if channels_last else whole
    image += (torch.randn(image.shape, generator=generator) * whole).to(image)
