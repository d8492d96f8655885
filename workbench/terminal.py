"""What commands have in common: loading what was asked for, and readings as tables in a terminal."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEMO = "organism:story"
TARGET = ("target_rank", "target_logprob", "target_logprob_null")
SHOWN_PARTS = 6
PROMPTS_ABREAST = 5


def integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,6,-1") from error


def load_model(chosen: argparse.Namespace) -> Any:
    """The model; a device that is not here is said in one line, before anything is loaded."""
    import torch

    import workbench
    from workbench.errors import InputError

    device, dtype = getattr(chosen, "device", None), getattr(chosen, "dtype", None)
    if device is not None:
        try:
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"The device {device!r} cannot be used here: {reason}") from error
    return workbench.load(chosen.model, device=device, dtype=dtype)


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``, before any work that would be lost without it."""
    from workbench.errors import ReadingError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadingError(f"The folder {out} cannot be made: {error.strerror}.") from error


def write_page(named: dict[str, Any], path: Path) -> Path | None:
    """The explorer of all readings that have tokens over depth (an attribution has none: its bars are a figure)."""
    from workbench.widgets.page import to_html

    grids = [reading for reading in named.values() if "token_id" in reading.data]
    return to_html(grids, path) if grids else None


def describe(model: Any) -> None:
    anatomy, proof = model.anatomy, model.anatomy.proof
    size = sum(p.numel() for p in model.module.parameters())
    rows = {
        "model": f"{model.name} ({anatomy.architecture}, {size / 1e6:.1f} M parameters)",
        "fingerprint": model.fingerprint,
        "runs in": ", ".join(
            [
                f"{str(model.dtype).removeprefix('torch.')} on {model.device}",
                *([f"quantised as {model.quantization}"] if model.quantization else []),
                *([f"adapters {', '.join(model.adapters)}"] if model.adapters else []),
                *([f"weights offloaded to {' and '.join(model.offloaded)}"] if model.offloaded else []),
            ]
        ),
        "blocks": f"{anatomy.blocks}: {model.n_layers}; width {model.d_model}; vocabulary {model.vocab_size}; "
        f"context {model.context_length or 'unlimited'}",
        "readout": anatomy.formula,
        "proof": f"replayed on {proof.positions} fresh positions: off by {proof.error:.1e} of the largest logit "
        f"(allowed {proof.tolerance:.0e})",
    }
    if model.moe:
        sizes = sorted({(x.n_experts, x.top_k, x.gate or "unknown gate") for x in model.moe.values()})
        kinds = "; ".join(f"{e} experts, top {k}, {gate}" for e, k, gate in sizes)
        rows["experts"] = f"{kinds}; in {len(model.moe)} of {model.n_layers} blocks"
    for name, value in rows.items():
        print(f"  {name:<12} {value}")
    print()


def table(reading: Any) -> None:
    """What a reading says of the last position of every prompt, as tables; nothing for readings of other kinds."""
    from workbench.tokens import visible

    data = reading.data
    name = data.attrs.get("reader", "reading")
    lasts = [int((row >= 0).sum()) - 1 for row in data["input_id"].values]
    axis = "layer" if "layer" in data.dims else "block"
    if "token_id" in data:
        score = next(s for s in ("logprob", "cosine", "similarity") if s in data)
        texts = dict(zip(data["vocab"].values.tolist(), data["vocab_token"].values, strict=True))

        def top(p: int, i: int) -> tuple[str, str]:
            place = {"prompt": p, axis: i, "position": lasts[p], "rank": 0}
            value = float(data[score].isel(place))
            value = math.exp(value) if score == "logprob" else value
            return visible(texts.get(int(data["token_id"].isel(place)), "")), f"{value:.2f}"

        said = "probability" if score == "logprob" else score
        _print(data, f"{name}: top token at the last position, with its {said}", axis, top)
    for t in range(data.sizes.get("target", 0)) if "target_rank" in data else ():

        def followed(p: int, i: int, t: int = t) -> tuple[str, str]:
            place = {"prompt": p, axis: i, "position": lasts[p], "target": t}
            rank, logprob, null = (data[v].isel(place).item() for v in TARGET)
            return f"{rank}", f"{logprob:.2f}" + ("" if math.isnan(null) else f" ({null:.2f})")

        token = visible(str(data["target"].values[t]))
        print()
        _print(data, f"{name}: rank of {token} (0 = top), its log-probability (null) in nats", axis, followed)
    if "contribution" in data:
        for t in range(data.sizes.get("target", 1)):
            part = data.isel(target=t) if "target" in data.dims else data
            if t:
                print()
            _contributions(part, name, lasts)
    if "usage_count" in data:
        _usage(data, name)


def _usage(data: Any, name: str, shown: int = 6) -> None:
    """The experts that serve most slots, block by block."""
    count, exists = data["usage_count"].values.sum(0), data["expert_exists"].values
    print(f"{name}: share of slots of the busiest experts, over {int(data['token_count'].sum())} tokens (evenly: 1/E)")
    for own, there, block in zip(count, exists, data["block"].values, strict=True):
        best = own.argsort()[::-1][: min(shown, int(there.sum()))]
        said = "  ".join(f"{e}: {own[e] / max(1, own.sum()):.0%}" for e in best)
        print(f"  block {block:<4} {said}   (1/{int(there.sum())} = {1 / there.sum():.0%})")


def neighbours(data: Any, prompt: int = 0, top: int | None = None, layers: int | None = None) -> None:
    """The contexts nearest to a prompt's last token, layer by layer (``layers``: about so many of them)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from workbench import tokens

    data = data.isel(prompt=prompt)
    data = data.isel(position=int((data["input_id"].values >= 0).sum()) - 1)
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="")
    before = tokens.plain(str(data["prompt_text"].item()))
    table.title = Text(f"nearest contexts of the last token of: {before}")
    for name in ("layer", "similarity", "from layer"):
        table.add_column(name, justify="right")
    table.add_column("context", ratio=1)
    depth = "layer" if "layer" in data.dims else "block"
    floors = [data[name].values for name in data if str(name).startswith("similarity_floor")]
    count = data.sizes[depth]
    shown = min(layers or count, count)
    for i in sorted({round(k * (count - 1) / max(1, shown - 1)) for k in range(shown)}):
        for rank in range(min(top or data.sizes["rank"], data.sizes["rank"])):
            one = data.isel({depth: i, "rank": rank})
            if int(one["row"]) < 0:
                continue
            start, end = int(one["char_start"]), int(one["char_end"])
            parts = [tokens.plain(t) for t in tokens.around(str(one["sentence"].item()), start, end, 40)]
            value = float(one["similarity"])
            above = all(value > floor[i] for floor in floors)
            table.add_row(
                "" if rank else str(data[depth].values[i]), f"{value:.3f}{' ' if above else '-'}",
                str(int(one["index_layer"])), Text.assemble(parts[0], (parts[1], "bold reverse"), parts[2]),
            )  # fmt: skip
    Console().print(table)
    if floors:
        print("- : not above what random tokens or shuffled prompts reach at this layer")


def _contributions(data: Any, name: str, lasts: list[int]) -> None:
    """The parts that stand out most against their own mean."""
    from workbench.tokens import visible

    mean = data["contribution_mean"].values
    rows = [data["contribution"].values[p, last] for p, last in enumerate(lasts)]
    order = [abs(row - mean).argsort()[::-1] for row in rows]
    count = min(SHOWN_PARTS, len(mean))

    def part(p: int, i: int) -> tuple[str, str]:
        c = order[p][count - 1 - i]
        return str(data["component"].values[c]), f"{rows[p][c]:+.2f} ({mean[c]:+.2f})"

    target = visible(str(data["target"].item())) if "target" in data.coords else "the top token"
    title = f"{name}: parts that stand out in the logit of {target} at the last position (mean over positions)"
    _print(data, title, "", part, [str(count - i) for i in range(count)])


def _print(
    data: Any, title: str, axis: str, cell: Callable[[int, int], tuple[str, str]], rows: list[str] | None = None
) -> None:
    """A table with a column for each prompt, the deepest layer on top; PROMPTS_ABREAST at a time."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = rows or [str(int(value)) for value in data[axis].values]
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(escape(title), style="italic")
    for first in range(0, data.sizes["prompt"], PROMPTS_ABREAST):
        some = range(first, min(first + PROMPTS_ABREAST, data.sizes["prompt"]))
        table = Table(show_edge=False)
        table.add_column(axis, justify="right", no_wrap=True)
        for p in some:
            shown = " ".join(str(data["prompt_text"].values[p]).split())
            table.add_column(escape("…" + shown[-25:].lstrip() if len(shown) > 26 else shown), overflow="fold")
        for i in range(len(rows) - 1, -1, -1):
            cells = (cell(p, i) for p in some)
            table.add_row(rows[i], *(f"{escape(text)} [dim]{value}[/]" for text, value in cells))
        console.print(table)
