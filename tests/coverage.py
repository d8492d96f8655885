"""Which architectures load with a proved readout; every other one must be refused, and none be read wrongly.

Each architecture of transformers' causal and image-text-to-text mappings is built tiny and random (``zoo.py``),
loaded, and its lens compared with the model's own logits on prompts that the loader never saw: the last layer
with a plain forward pass, each earlier one with a pass in which the blocks above it are skipped.  Two prompts of
different length are read in one batch, padded on either side, and compared with each prompt alone.

    python tests/coverage.py [--only NAME ...]        writes tests/coverage.csv when nothing is left out
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
import zoo

import workbench
from lenses import LogitLens
from workbench.errors import Refused

FIELDS = ["kind", "model_type", "class", "status", "blocks", "readout", "proof", "pads", "detail"]


def examine(kind: str, model_type: str) -> dict[str, Any]:
    """One row: status is proved, refused, WRONG (loaded, but the lens disagrees), error, or not built."""
    row: dict[str, Any] = {"kind": kind, "model_type": model_type}
    try:
        module = zoo.build(model_type, kind)
    except zoo.CannotBuild as reason:
        return {**row, "status": "not built", "detail": str(reason)}
    row["class"] = type(module).__name__
    try:
        model = workbench.load(module, name=model_type)
    except Refused as reason:
        return {**row, "status": "refused", "detail": str(reason)}
    except Exception as error:
        return {**row, "status": "error", "detail": f"load: {type(error).__name__}: {error}"}
    row |= {"blocks": model.anatomy.blocks, "readout": model.anatomy.formula}
    row["proof"] = f"{model.anatomy.proof.error:.1e}"
    row["pads"] = " ".join(model.anatomy.pad_sides)
    try:
        wrong = disagreement(model)
    except Exception as error:
        return {**row, "status": "error", "detail": f"read: {type(error).__name__}: {error}"}
    return {**row, "status": "WRONG" if wrong else "proved", "detail": wrong or ""}


def disagreement(model: workbench.Model) -> str | None:
    """How the lens differs from the model's own logits and its own streams; None where it does not."""
    for side, lengths in (("right", (13, 9)), ("left", (13, 9)), ("left", (33, 9))):
        wrong, prompts, data = _disagreement_at_the_top(model, side, lengths)
        if wrong:
            return f"{wrong}, padded on the {side}"
        if lengths == (13, 9):
            first = data.isel(prompt=0, position=slice(len(prompts[0])))
            if wrong := _disagreement_below(model, prompts[0], first):
                return f"{wrong}, padded on the {side}"
    return None


def _disagreement_at_the_top(
    model: workbench.Model, side: str, lengths: tuple[int, int]
) -> tuple[str | None, list[list[int]], Any]:
    """The last layer of two prompts in one batch, against each of them alone."""
    given, real = zoo.inputs(model.module, seed=5, lengths=lengths)
    prompts = [ids[mask].tolist() for ids, mask in zip(given["input_ids"], real, strict=True)]
    # Each prompt on its own, so that padding can hide nothing.
    own = [
        zoo.logits(model.module, {"input_ids": (ids := torch.tensor([p])), "attention_mask": torch.ones_like(ids)})
        for p in prompts
    ]
    data = workbench.read(
        model, prompts, LogitLens(top_k=5), batch_size=2, progress=False, padding_side=side
    ).data
    for p, mask in enumerate(real):
        mine, lens = own[p][0].log_softmax(-1), data.isel(prompt=p, position=slice(int(mask.sum())))
        last = lens.sel(layer=model.n_layers)
        theirs = mine.gather(-1, torch.tensor(last.token_id.values).long())
        off = float((theirs - torch.tensor(last.logprob.values)).abs().max())
        if not off < 1e-3:
            return f"log-probabilities of the last layer are off by {off:.2g}", prompts, data
        best = mine.max(-1).values - theirs[:, 0]
        if float(best.max()) > 1e-3:
            return "another top token at the last layer", prompts, data
        first = lens.sel(layer=0).logprob.values
        if abs(first - last.logprob.values).max() < 1e-6:
            return "layer 0 reads the same as the last layer", prompts, data
    return None, prompts, data


def _disagreement_below(model: workbench.Model, prompt: list[int], data: Any) -> str | None:
    """The same for the layers below the last, whose truth is the model with every later block skipped.

    Nothing of the workbench takes part but the path of the blocks: each skipped block runs and gives back what
    it was given, so the model's own code reads that state.
    """
    ids = torch.tensor([prompt])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    blocks = list(model.module.get_submodule(model.anatomy.blocks).children())
    for layer in range(model.n_layers):
        kept: dict[Any, torch.Tensor] = {}

        def keep(block: Any, args: tuple, kwargs: dict, kept: dict = kept) -> None:
            # Cloned: models add to the stream in place.
            named = kwargs.get("hidden_states")
            kept[block] = (named if named is not None else _first(args)).clone()

        def undo(block: Any, args: tuple, output: Any, kept: dict = kept) -> Any:
            if isinstance(output, torch.Tensor):
                return kept[block]
            where = next(i for i, part in enumerate(output) if part is _first(output))
            return (*output[:where], kept[block], *output[where + 1 :])

        hooks = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in blocks[layer:]]
        hooks += [b.register_forward_hook(undo) for b in blocks[layer:]]
        try:
            own = zoo.logits(model.module, given)[0].log_softmax(-1)
        finally:
            for hook in hooks:
                hook.remove()
        lens = data.sel(layer=layer)
        off = (own.gather(-1, torch.tensor(lens.token_id.values).long()) - torch.tensor(lens.logprob.values)).abs()
        if not float(off.max()) < 1e-3:
            return f"log-probabilities of layer {layer} are off by {float(off.max()):.2g}"
    return None


def _first(parts: Any) -> torch.Tensor:
    """The first float tensor with rows among the arguments or outputs of a block."""
    return next(p for p in parts if isinstance(p, torch.Tensor) and p.is_floating_point() and p.ndim >= 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny products: more threads only wait for each other
    rows = []
    for kind, types in (("causal", zoo.causal()), ("image_text", zoo.image_text())):
        for model_type in types:
            if chosen.only and model_type not in chosen.only:
                continue
            row = examine(kind, model_type)
            rows.append(row)
            if chosen.only or row["status"] != "proved":
                said = row.get("detail") or row.get("readout")
                print(f"{row['status']:<10} {kind:<10} {model_type:<26} {said}", flush=True)
    for kind in ("causal", "image_text"):
        print(kind, dict(Counter(r["status"] for r in rows if r["kind"] == kind)))
    if not chosen.only:
        with (Path(__file__).parent / "coverage.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({**r, "detail": " ".join(str(r.get("detail", "")).split())[:400]} for r in rows)


if __name__ == "__main__":
    main()
