"""What commands have in common: loading what was asked for, and readings as tables in a terminal."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import plugins

DEMO = "organism:story"
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


def working(model: Any, folder: Path | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Readers that can work on this model, by name; and why the others cannot.

    ``folder`` is where a reader that needs more than a model (an index) may make a small one for show.
    """
    from workbench.errors import WorkbenchError
    from workbench.inputs import Prompt
    from workbench.readers import Run

    run = Run(model, [Prompt([0], "", positions=[0])], [0])
    good, bad = {}, {}
    for name in plugins.readers():
        try:
            kind = plugins.load("readers", name)
            if not getattr(kind, "applies", lambda model: True)(model):
                continue  # routing in a dense model: there is nothing that could be refused
            show = getattr(kind, "demo", None)
            reader = show(model, folder / name) if show and folder else plugins.made(name, kind, {})
            reader.plan(run)
            good[name] = reader
        except WorkbenchError as error:
            bad[name] = str(error)
    return good, bad


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``, before any work that would be lost without it."""
    from workbench.errors import ReadingError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadingError(f"The folder {out} cannot be made: {error.strerror}.") from error


def write_page(named: dict[str, Any], path: Path) -> Path | None:
    """The explorer of all readings that have something over layers and positions (an attribution is a figure)."""
    from workbench.widgets.explorer import VIEW

    grids = [one for one in named.values() if "component" not in one.data.dims and not VIEW.lacks(one.data)]
    return VIEW.to_html(grids, path) if grids else None


def facts(model: Any) -> dict[str, str]:
    """What a model is, and how well its readout was proved."""
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
    if hasattr(model.processor, "image_processor"):
        rows["pictures"] = _pictures(model)
    return rows


def _pictures(model: Any) -> str:
    """How pictures get into a model, and how well that was proved; or why they cannot be read."""
    from workbench.errors import Refused
    from workbench.images.pictures import image_token

    try:
        proof = model.vision.proof
    except Refused as reason:
        return f"not read: {reason}"
    token = image_token(model.processor)
    ways = [
        f"{token!r} in a text for each" if token else "one with each text",
        *([] if proof.tokens else ["they enter by cross-attention, and fill no position"]),
        *([f"features are added to the stream at layers {', '.join(map(str, proof.added))}"] if proof.added else []),
        f"readout replayed on a prompt with one: off by {proof.error:.1e}",
    ]
    return "; ".join(ways)


def describe(model: Any) -> None:
    for name, value in facts(model).items():
        print(f"  {name:<12} {value}")
    print()


def table(reading: Any) -> None:
    """What a reading says of the last position of every prompt, as tables; nothing for readings of other kinds."""
    from workbench.figures.source import Source
    from workbench.tokens import visible

    source = Source(reading.data)
    data, name, axis = source.data, source.reader, source.depth
    if "input_id" not in data:
        return
    lasts = [int((row >= 0).sum()) - 1 for row in data["input_id"].values]
    values = [n for n in source.values() if "rank" not in data[n].dims]
    aimed = [n for n in values if "target" in data[n].dims]
    if "token_id" in data and axis and (score := source.score):
        log_prob = source.about(score).get("scale") == "log-prob"

        def top(p: int, i: int) -> tuple[str, str]:
            place = {"prompt": p, axis: i, "position": lasts[p], "rank": 0}
            value = float(data[score].isel(place))
            value = math.exp(value) if log_prob else value
            return visible(source.text(data["token_id"].isel(place).item())), f"{value:.2f}"

        said = "probability" if log_prob else source.called(score, short=True)
        _print(data, f"{name}: top token at the last position, with its {said}", axis, top)
    elif axis and values and not aimed:  # a lens without tokens
        _values(source, values[0], values[1:], lasts, {})
    for t in range(data.sizes["target"]) if aimed else ():
        print()
        _values(source, aimed[0], aimed[1:], lasts, {"target": t})
    for value in source.by_component()[:1]:
        for t in range(data.sizes.get("target", 1)):
            if t:
                print()
            _parts(source, value, t, lasts)
    if "usage_count" in data:
        _usage(data, name)


def _values(source: Any, first: str, more: list[str], lasts: list[int], where: dict[str, int]) -> None:
    """One value at the last positions, layer by layer, with the others behind it; their nulls in brackets."""
    from workbench.tokens import visible
    from workbench.variables import aimed

    data, axis = source.data, source.depth
    target = visible(source.targets(0, 0)[where["target"]]) if where else "target"

    def told(name: str, place: dict[str, int]) -> str:
        x = data[name].isel(place).item()
        known = [n for n in source.controls(name, "null") if set(data[n].dims) <= set(place)]
        nulls = [data[n].isel({dim: place[dim] for dim in data[n].dims}).item() for n in known]
        text = f"{x}" if isinstance(x, int) else f"{x:.2f}"
        return text + "".join(f" ({null:.2f})" for null in nulls if not math.isnan(null))

    def cell(p: int, i: int) -> tuple[str, str]:
        place = {"prompt": p, axis: i, "position": lasts[p], **where}
        return told(first, place), " ".join(told(name, place) for name in more)

    names = aimed(", ".join(source.title(name) for name in (first, *more)), target)
    null = "; in brackets: the null" if any(source.controls(name, "null") for name in (first, *more)) else ""
    _print(data, f"{source.reader}: {names} at the last position{null}", axis, cell)


def _usage(data: Any, name: str, shown: int = 6) -> None:
    """The experts that serve most slots, block by block."""
    count, exists = data["usage_count"].values.sum(0), data["expert_exists"].values
    print(f"{name}: share of slots of the busiest experts, over {int(data['token_count'].sum())} tokens (evenly: 1/E)")
    for own, there, block in zip(count, exists, data["block"].values, strict=True):
        best = own.argsort()[::-1][: min(shown, int(there.sum()))]
        said = "  ".join(f"{e}: {own[e] / max(1, own.sum()):.0%}" for e in best)
        print(f"  block {block:<4} {said}   (1/{int(there.sum())} = {1 / there.sum():.0%})")


def neighbours(data: Any) -> None:
    """The contexts nearest to the first prompt's last token, layer by layer."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from workbench import tokens
    from workbench.figures.source import Source

    source = Source(data)
    score = str(source.score)
    floors = {source.called(n, short=True): data[n].values for n in source.controls(score, "floor")}
    data = data.isel(prompt=0)
    data = data.isel(position=int((data["input_id"].values >= 0).sum()) - 1)
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="")
    before = tokens.plain(str(data["prompt_text"].item()))
    table.title = Text(f"nearest contexts of the last token of: {before}")
    for name in ("layer", source.called(score, short=True), "from layer"):
        table.add_column(name, justify="right")
    table.add_column("context", ratio=1)
    depth = "layer" if "layer" in data.dims else "block"
    for i in range(data.sizes[depth]):
        for rank in range(data.sizes["rank"]):
            one = data.isel({depth: i, "rank": rank})
            if int(one["context"]) < 0:
                continue
            start, end = int(one["char_start"]), int(one["char_end"])
            parts = [tokens.plain(t) for t in tokens.around(str(one["sentence"].item()), start, end, 40)]
            value = float(one[score])
            above = all(value > floor[i] for floor in floors.values())
            table.add_row(
                "" if rank else str(data[depth].values[i]), f"{value:.3f}{' ' if above else '-'}",
                str(int(one["index_layer"])), Text.assemble(parts[0], (parts[1], "bold reverse"), parts[2]),
            )  # fmt: skip
    Console().print(table)
    if floors:
        print(f"- : not above what {' or '.join(floors)} reach at this layer")


def _parts(source: Any, value: str, target: int, lasts: list[int]) -> None:
    """The parts that stand out most against their null, such as their own mean."""
    import numpy as np

    from workbench.tokens import visible
    from workbench.variables import aimed

    data = source.data.isel(target=target) if "target" in source.data.dims else source.data
    null = next(iter(source.controls(value, "null")), None)
    mean = data[null].values if null else np.zeros(data.sizes["component"])
    every = data[value].transpose("prompt", "position", "component").values
    rows = [every[p, last] for p, last in enumerate(lasts)]
    order = [abs(row - mean).argsort()[::-1] for row in rows]
    count = min(SHOWN_PARTS, len(mean))

    def part(p: int, i: int) -> tuple[str, str]:
        c = order[p][count - 1 - i]
        return str(data["component"].values[c]), f"{rows[p][c]:+.2f}" + (f" ({mean[c]:+.2f})" if null else "")

    of = visible(str(data["target"].item())) if "target" in data.coords else "the top token"
    what, beside = aimed(source.called(value), of), f" ({source.called(null, short=True)})" if null else ""
    title = f"{source.reader}: parts that stand out in the {what} at the last position{beside}"
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
