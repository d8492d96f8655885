"""For which architectures pictures can be read, and whether the place of each visual token is right.

Each image-text architecture of transformers is built tiny and random with a processor (``pictured.py``), loaded, and a
prompt with a picture read.  Then the places in the reading are compared with the model's own truth, which no rule of
the workbench takes part in: the gradient of a token's state with respect to the processor's output says what the token
sees, and what the processor's output becomes when a box of the picture is painted anew says what the box shows.

    python tests/images.py [--only NAME ...]        writes their rows of tests/images.csv
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Ahead of transformers: types whose image processor exists for torchvision only.
    import make_believe_torchvision  # noqa: F401

import numpy as np
import pictured
import torch
import transformers
import zoo
from PIL import Image

import workbench
from lenses import LogitLens
from workbench.errors import InputError, Refused

FIELDS = [
    "model_type", "class", "status", "layout", "whole", "learned", "tokens", "tiles", "error", "added", "pads",
    "detail",
]  # fmt: skip
SIZES = ((200, 150), (150, 330), (300, 90), (95, 97))
"""Wide, tall, a strip, and one of no even number: each cell has several pixels, so that boxes can be painted."""

NEAR = "strided convolutions reach into neighbouring cells: "


def examine(model_type: str) -> dict[str, Any]:
    """One row.

    Status: exact; near (some tokens see a neighbour of their cell more than their cell); read (cross-attention);
    no places (read, but which part a token shows is not said); refused; WRONG; not built.
    """
    row: dict[str, Any] = {"model_type": model_type}
    try:
        module, processor = pictured.pictured(model_type)
    except zoo.CannotBuild as reason:
        return {**row, "status": "not built", "detail": str(reason)}
    row["class"] = type(module).__name__
    counts, tiles, reasons, near, placed = [], [], [], [], 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = workbench.load(module, processor=processor, name=model_type)
            proof = model.vision.describe()
        except Refused as reason:
            return {**row, "status": "refused", "detail": str(reason)}
    reasons += [str(w.message) for w in said if "no known place" in str(w.message)]
    row |= {"error": f"{proof['error']:.0e}", "added": " ".join(map(str, proof["added"])),
            "pads": " ".join(proof["pad_sides"])}  # fmt: skip
    for size in SIZES:
        picture = pictured.drawn(*size)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                data = read(model, processor, picture)
            except (Refused, InputError) as reason:
                return {**row, "status": "refused", "detail": f"{size[0]} x {size[1]}: {reason}"}
        reasons += [str(w.message) for w in said if "no known place" in str(w.message)]
        here = data.kind.values == "image"
        counts.append(int(here.sum()))
        own = data.tile.values[here]
        tiles.append(len(np.unique(own)))
        row |= {"tokens": " ".join(map(str, counts)), "tiles": " ".join(map(str, tiles))}
        if (data.row.values[here] < 0).all():
            continue
        if tiles[-1] > 1:
            row["whole"] = {True: "first", False: "last"}.get(bool(own[0] == 0)) if 0 in (own[0], own[-1]) else "none"
        if ((data.kind.values == "padding") & (data.image.values >= 0) & (data.row.values < 0)).any():
            row["learned"] = "yes"
        wrong = disagreement(model, processor, picture, data)
        if wrong and wrong.startswith(NEAR):
            near.append(wrong)
        elif wrong:
            return {**row, "status": "WRONG", "detail": f"{size[0]} x {size[1]}: {wrong}"}
        placed += 1
    if not sum(counts):
        return {**row, "status": "read", "detail": "pictures enter by cross-attention: there are no visual tokens"}
    row["layout"] = "; ".join(rule for rule in model.vision.describe()["layout"] if rule != "none")
    status = "no places" if placed < len(SIZES) else "near" if near else "exact"
    return {**row, "status": status, "detail": " ".join((reasons + near)[:1])}


def read(model: workbench.Model, processor: Any, *pictures: Image.Image) -> Any:
    """The reading of one prompt with these pictures: its kinds, rows, columns and boxes."""
    item = {"text": pictured.text_with_image(processor, len(pictures)), "images": list(pictures)}
    return workbench.read(model, [item], LogitLens(layers=[0], top_k=1), progress=False).data.isel(prompt=0)


def processed(processor: Any, text: str, pictures: list[Image.Image]) -> dict[str, Any]:
    asked = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
    given = dict(processor(text=[text], images=pictures, return_tensors="pt", **asked))
    return {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}


def pixels(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a processor makes of pictures: its outputs that are numbers of floating point."""
    flat = {f"{k}.{i}": v for k, own in given.items() if isinstance(own, list) for i, v in enumerate(own)} | given
    return {k: v for k, v in flat.items() if isinstance(v, torch.Tensor) and v.is_floating_point() and v.ndim >= 2}


def entering(model: workbench.Model, given: dict[str, Any]) -> np.ndarray:
    """[position, width] states ahead of block 0."""
    with torch.no_grad():
        return _ahead(model, given).numpy()


def _ahead(model: workbench.Model, given: dict[str, Any]) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def keep(block: Any, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs.get("hidden_states", args[0] if args else None))

    block = list(model.module.get_submodule(model.anatomy.blocks).children())[0]
    hook = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.module(**given)
    finally:
        hook.remove()
    state = seen[0][0]
    # Some models have several streams: [position, stream, width], or [stream, position, width].
    return state if len(state) == given["input_ids"].shape[1] else state.transpose(0, 1)


def sights(
    model: workbench.Model, given: dict[str, Any], positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """[token, entry] how much the state ahead of block 0 depends on each number that the processor gave.

    And [entry] which image of the processor's output each is in.  None where a code book is in between.
    """
    inputs = pixels(given)
    for value in inputs.values():
        value.requires_grad_(True)
    state = _ahead(model, given)
    if not state.requires_grad:
        return None
    wanted = list(inputs.values())
    generator = torch.Generator().manual_seed(0)
    rows = []
    for position in positions:
        total = [torch.zeros_like(v) for v in wanted]
        for _ in range(3):
            ahead = torch.randn(state.shape[1:], generator=generator)
            own = torch.autograd.grad((state[position] * ahead).sum(), wanted, retain_graph=True, allow_unused=True)
            total = [t if g is None else t + g.abs() for t, g in zip(total, own, strict=True)]
        rows.append(np.concatenate([t.detach().numpy().ravel() for t in total]))
    images = [
        np.full(v.shape, i, dtype=int) + (
            1000 * np.arange(int(np.prod(v.shape[:-3])), dtype=int).reshape(*v.shape[:-3], 1, 1, 1)
            if v.ndim > 3 and v.shape[-3] == 3 and min(v.shape[-2:]) > pictured.PATCH else 0
        )
        for i, v in enumerate(wanted)
    ]  # fmt: skip
    return np.stack(rows), np.concatenate([i.ravel() for i in images])


def repainted(picture: Image.Image, box: np.ndarray) -> Image.Image:
    """The picture with the colours of a box inverted."""
    values = np.asarray(picture).copy()
    left, top, right, bottom = (round(float(v)) for v in box)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    values[top:bottom, left:right] = 255 * (values[top:bottom, left:right] < 128)
    return Image.fromarray(values)


def disagreement(model: workbench.Model, processor: Any, picture: Image.Image, data: Any) -> str | None:
    """How the places in a reading differ from what the model itself sees; None where they do not."""
    text = pictured.text_with_image(processor)
    at = np.flatnonzero((data.kind.values == "image") & (data.row.values >= 0))
    boxes, tile = data.box.values[at], data.tile.values[at]
    given = processed(processor, text, [picture])
    before = np.concatenate([v.numpy().ravel() for v in pixels(given).values()])
    shows = []
    for box in boxes:
        values = pixels(processed(processor, text, [repainted(picture, box)])).values()
        moved = np.abs(np.concatenate([v.numpy().ravel() for v in values]) - before)
        shows.append(moved > 0.3 * moved.max())
    found = sights(model, given, at)
    if found is None:
        return _codes(model, processor, picture, at, boxes)
    seen, image = found
    shown = np.stack(shows).astype(np.float32)
    right, other = np.zeros(len(at), bool), np.zeros(len(at), int)
    for one in np.unique(image):  # a model with two towers sees a place sharply in one of them
        mass = seen[:, image == one].sum(1) > 0.002 * seen.sum(1)
        share = seen[:, image == one] @ shown[:, image == one].T
        share[tile[:, None] != tile[None]] = 0  # another tile may show the same part of the picture
        best = share.argmax(1)
        right |= mass & (best == np.arange(len(at)))
        other[mass] = best[mass]
    misses = [(k, int(other[k])) for k in np.flatnonzero(~right)]
    if not misses:
        return None
    row, column = (data[name].values[at] for name in ("row", "column"))
    near = all(max(abs(row[k] - row[q]), abs(column[k] - column[q])) <= 1 for k, q in misses)
    k, q = misses[0]
    return (NEAR if near and 3 * len(misses) <= len(at) else "") + (
        f"{len(misses)} of {len(at)} tokens see another cell most: the one said to be at tile {tile[k]}, row {row[k]}, "
        f"column {column[k]} sees that of tile {tile[q]}, row {row[q]}, column {column[q]}"
    )


def _codes(
    model: workbench.Model, processor: Any, picture: Image.Image, at: np.ndarray, boxes: np.ndarray
) -> str | None:
    """The same for models whose pictures become entries of a code book: which token's entry changes most often."""
    text = pictured.text_with_image(processor)
    rng = np.random.default_rng(0)
    changed = np.zeros((len(at), len(at)))
    before = entering(model, processed(processor, text, [picture]))[at]
    for k, box in enumerate(boxes):
        left, top, right, bottom = (round(float(v)) for v in box)
        for _ in range(8):
            values = np.asarray(picture).copy()
            values[top:bottom, left:right] = rng.integers(0, 256, 3)
            after = entering(model, processed(processor, text, [Image.fromarray(values)]))[at]
            changed[k] += (after != before).any(-1)
    # Some entries change with anything: what counts is that one changes more than it does with other boxes.
    own = changed - changed.mean(0)
    hits = int((own.argmax(1) == np.arange(len(at))).sum())
    return None if hits >= 0.7 * len(at) else f"the entries of {len(at) - hits} of {len(at)} tokens change with others"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny products: more threads only wait for each other
    path = Path(__file__).parent / "images.csv"
    known = {row["model_type"]: row for row in csv.DictReader(path.open())} if path.exists() else {}
    for model_type in zoo.image_text():
        if chosen.only and model_type not in chosen.only:
            continue
        row = examine(model_type)
        known[model_type] = {**row, "detail": " ".join(str(row.get("detail", "")).split())[:400]}
        print(f"{row['status']:<10} {model_type:<24} {row.get('tokens', ''):<18} {row.get('detail', '')}", flush=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known[name] for name in zoo.image_text() if name in known)
    print(dict(Counter(row["status"] for row in known.values())))


if __name__ == "__main__":
    main()
