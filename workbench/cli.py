"""The command line: ``workbench demo | read | info``."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

DEMO = "organism:story"
PLAIN_PROMPTS = (
    "Once upon a time, there was a little girl named",
    "The capital of France is",
    "She opened the door and saw a",
    "One two three four five",
)
"""For a user's own model: the first is a story, the second a fact, the last a count."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 1 with the error in one paragraph on standard error."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not hasattr(chosen, "run"):
        parser.print_help()
        return 2
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        chosen.run(chosen)
    except (ValueError, ImportError) as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("workbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="workbench",
        formatter_class=style,
        description="Read the hidden states of a language model, layer by layer.",
        epilog="Start with:  workbench demo",
    )
    commands = parser.add_subparsers(title="commands", metavar="")
    about_model = (
        "a hub id (Qwen/Qwen3-0.6B), a folder with config.json and weights, or organism:story (built in, no download)"
    )

    demo = commands.add_parser(
        "demo",
        help="read a handful of prompts through every reader and make a page of it",
        formatter_class=style,
        description="Read a handful of prompts through every reader that works on the model.\n"
        "Prints a table; writes an offline page, the reading files and the figures to --out.",
        epilog="example:\n  workbench demo --model Qwen/Qwen3-0.6B --out out/qwen",
    )
    demo.add_argument("--model", default=DEMO, help=f"{about_model}; default: {DEMO}")
    demo.add_argument("--out", default="out/demo", type=Path, help="where to write; default: out/demo")
    demo.set_defaults(run=_demo)

    read = commands.add_parser(
        "read",
        help="read prompts of yours",
        formatter_class=style,
        description="Read prompts in one pass and print, for each, the top token at every layer of its last position.",
        epilog="examples:\n"
        '  workbench read organism:story "the bat flew out of the"\n'
        '  workbench read Qwen/Qwen3-0.6B "The capital of France is" --lens logit --lens embedding --out out/paris\n\n'
        "--out writes one .nc file for each lens (workbench.open(path) in Python) and index.html, an offline page.",
    )
    read.add_argument("model", metavar="MODEL", help=about_model)
    read.add_argument("prompts", metavar="PROMPT", nargs="+", help="text; quote it")
    read.add_argument(
        "--lens",
        action="append",
        metavar="NAME",
        help="logit (default), embedding, attribution, or an installed one; repeatable",
    )
    read.add_argument("--layers", type=_integers, metavar="0,6,-1", help="layers to read; default: all")
    read.add_argument("--top-k", type=int, default=10, help="tokens to keep at each place; default: 10")
    read.add_argument("--targets", action="append", metavar="TOKEN", help="a token whose rank to follow; repeatable")
    read.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU when there is one")
    read.add_argument("--dtype", help="float32, bfloat16, float16 or auto; default: float32 on a CPU")
    read.add_argument("--out", type=Path, help="a folder for the reading files and the page")
    read.set_defaults(run=_read)

    info = commands.add_parser(
        "info",
        help="what the workbench knows of a model: anatomy, proof, which readers can work",
        formatter_class=style,
        description="Load a model, prove its readout, and say where its parts are and which readers can work on it.",
    )
    info.add_argument("model", metavar="MODEL", help=about_model)
    info.add_argument("--device", help="cpu, cuda, ...")
    info.add_argument("--dtype", help="float32, bfloat16, float16 or auto")
    info.set_defaults(run=_info)
    return parser


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,6,-1") from error


def readers() -> dict[str, Any]:
    """Installed readers by name: the entry points of group ``workbench.readers``, ours and third parties'."""
    points = metadata.entry_points(group="workbench.readers")
    # The logit lens first: it is what most people look for.
    return {point.name: point for point in sorted(points, key=lambda p: (p.name != "logit", p.name))}


def _make(name: str, **options: Any) -> Any:
    """One reader by its name, given those of the options that it takes."""
    import inspect

    from workbench.errors import InputError

    known = readers()
    if name not in known:
        raise InputError(f"There is no lens {name!r}. Installed: {', '.join(sorted(known)) or 'none'}.")
    kind = known[name].load()
    takes = inspect.signature(kind).parameters
    return kind(**{k: v for k, v in options.items() if k in takes and v is not None})


def _working(model: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Readers that can work on this model, by name; and why the others cannot."""
    good, bad = {}, {}
    for name in readers():
        try:
            reader = _make(name)
            reader.sites(model)
            if name == "embedding":
                _ = model.embedding
            good[name] = reader
        except ValueError as error:
            bad[name] = str(error)
    return good, bad


def _prompts(model: Any, source: str) -> list[Any]:
    if source == DEMO:
        from workbench.organisms.story import DEMO_PROMPTS

        return list(DEMO_PROMPTS)
    if model.tokenizer is None:
        # Ids in steps: something to look at where there is no text.
        return [[(7 * i + j * j) % model.vocab_size for j in range(8)] for i in range(3)]
    limit = model.context_length
    return [p for p in PLAIN_PROMPTS if limit is None or len(model.tokenizer(p)["input_ids"]) <= limit] or ["a"]


def _demo(chosen: argparse.Namespace) -> None:
    import workbench

    model = workbench.load(chosen.model)
    good, bad = _working(model)
    prompts = _prompts(model, chosen.model)
    found = workbench.read(model, prompts, list(good.values()))
    named = dict(zip(good, found, strict=True))
    _describe(model)
    for name, reason in bad.items():
        print(f"  {name} cannot read this model: {reason}\n")
    _table(named["logit"])
    paths = _write(named, chosen.out)
    notes = _figures(named, chosen.out)
    print("\nWritten:")
    for path in [*paths, *notes]:
        print(f"  {path}")
    print("\nNext:")
    print(f"  open {chosen.out / 'index.html'} in a browser (it works offline)")
    print(f'  workbench read {chosen.model} "a prompt of yours" --out out/mine')
    print(f"  python -c \"import workbench; print(workbench.open('{chosen.out / 'logit.nc'}').frame())\"")
    if chosen.model == DEMO:
        print("  make demo MODEL=<a hub id or a folder>")
    print("  make lab")


def _read(chosen: argparse.Namespace) -> None:
    import workbench

    names = list(dict.fromkeys(chosen.lens or ["logit"]))
    options = {"layers": chosen.layers, "top_k": chosen.top_k, "targets": chosen.targets}
    lenses = [_make(name, **options) for name in names]
    model = workbench.load(chosen.model, device=chosen.device, dtype=chosen.dtype)
    found = workbench.read(model, chosen.prompts, lenses)
    named = dict(zip(names, found, strict=True))
    for reading in found:
        _table(reading)
    if chosen.out:
        print("\nWritten:", *_write(named, chosen.out), sep="\n  ")


def _info(chosen: argparse.Namespace) -> None:
    import workbench

    model = workbench.load(chosen.model, device=chosen.device, dtype=chosen.dtype)
    _describe(model)
    good, bad = _working(model)
    print(f"  readers      {', '.join(good)}")
    for name, reason in bad.items():
        print(f"  not {name}: {reason}")


def _describe(model: Any) -> None:
    anatomy, proof = model.anatomy, model.anatomy.proof
    size = sum(p.numel() for p in model.module.parameters())
    rows = {
        "model": f"{model.name} ({anatomy.architecture}, {size / 1e6:.1f} M parameters)",
        "fingerprint": model.fingerprint,
        "runs in": f"{str(model.dtype).removeprefix('torch.')} on {model.device}",
        "blocks": f"{anatomy.blocks}: {model.n_layers}; width {model.d_model}; vocabulary {model.vocab_size}; "
        f"context {model.context_length or 'unlimited'}",
        "readout": anatomy.formula,
        "proof": f"replayed on {proof.positions} fresh positions: off by {proof.error:.1e} of the largest logit "
        f"(allowed {proof.tolerance:.0e})",
    }
    for name, value in rows.items():
        print(f"  {name:<12} {value}")
    print()


def _table(reading: Any) -> None:
    """The top tokens of the last position of every prompt, layer by layer."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from workbench.tokens import visible

    data = reading.data
    if "token_id" not in data:
        return
    axis = "layer" if "layer" in data.dims else "block"
    score = "logprob" if "logprob" in data else "cosine"
    texts = dict(zip(data["vocab"].values.tolist(), data["vocab_token"].values, strict=True))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    title = f"{data.attrs['reader']}: top token at the last position, with its "
    title += "probability" if score == "logprob" else "cosine"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column(axis, justify="right", no_wrap=True)
    lasts = [int((data["input_id"].values[p] >= 0).sum()) - 1 for p in range(data.sizes["prompt"])]
    for p in range(data.sizes["prompt"]):
        shown = str(data["prompt_text"].values[p])
        table.add_column(escape("…" + shown[-25:] if len(shown) > 26 else shown), overflow="fold")
    for i in range(data.sizes[axis] - 1, -1, -1):
        cells = []
        for p, last in enumerate(lasts):
            place = {"prompt": p, axis: i, "position": last, "rank": 0}
            token = texts.get(int(data["token_id"].isel(place)), "")
            value = float(data[score].isel(place))
            value = 2.718281828459045**value if score == "logprob" else value
            cells.append(f"{escape(visible(token))} [dim]{value:.2f}[/]")
        table.add_row(str(int(data[axis].values[i])), *cells)
    console.print(table)


def _write(named: dict[str, Any], out: Path) -> list[Path]:
    from workbench.errors import ReadingError
    from workbench.widgets.page import to_html

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadingError(f"The folder {out} cannot be made: {error}.") from error
    paths = [reading.save(out / f"{name}.nc") for name, reading in named.items()]
    page = out / "index.html"
    # The page shows tokens over depth; an attribution has no such grid (its bars are among the figures).
    to_html([reading for reading in named.values() if "token_id" in reading.data], page)
    return [page, *paths]


def _figures(named: dict[str, Any], out: Path) -> list[Path | str]:
    """The figures of a demo as svg and pdf; where no browser can draw them, one line that says so."""
    wanted = {
        "layers": ("logit", "heatmap"),
        "trajectory": ("logit", "trajectory"),
        "curves": ("logit", "curves"),
        "neighbours": ("embedding", "heatmap"),
        "attribution": ("attribution", "attribution"),
    }
    written: list[Path | str] = []
    for title, (name, kind) in wanted.items():
        if name not in named:
            continue
        figure = named[name].figure(kind)
        try:
            for suffix in ("svg", "pdf"):
                written.append(Path(figure.save(out / f"{title}.{suffix}", width="text")))
        except (ValueError, RuntimeError) as error:
            return [*written, f"(no static figures: {error})"]
    return written


if __name__ == "__main__":
    sys.exit(main())
