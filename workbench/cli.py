"""The command line: ``workbench demo | read | info``, and what lenses and probes add to it."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench import plugins
from workbench.errors import InputError, WorkbenchError
from workbench.terminal import DEMO, describe, integers, load_model, make_folder, table, working, write_page


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 1 with the error in one paragraph on standard error."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        parser = _parser()
        chosen = parser.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
        if not hasattr(chosen, "run"):
            parser.print_help()
            return 2
        chosen.run(chosen)
    except (WorkbenchError, ImportError) as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("workbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """``--layers -1,0`` as one word: argparse would take -1,0 for an option."""
    words = list(arguments)
    for i in range(len(words) - 1, 0, -1):
        if words[i - 1] == "--layers" and words[i].startswith("-") and words[i][1:2].isdigit():
            words[i - 1 : i + 1] = [f"--layers={words[i]}"]
    return words


class _Version(argparse.Action):
    """Looked up when asked for: reading the metadata takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"workbench {metadata.version('latent-workbench')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="workbench",
        usage="workbench COMMAND ...",
        formatter_class=style,
        description="Read the hidden states of a language or vision-language model, layer by layer.",
        epilog="Start with:  workbench demo\nMore on one:  workbench read --help",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="workbench")
    about_model = (
        "a hub id (Qwen/Qwen3-0.6B), a folder with config.json and weights, or organism:story (built in, no download; "
        "also organism:polyglot, searcher, opinions)"
    )

    demo = commands.add_parser(
        "demo",
        help="read a few prompts with every reader; make a page",
        formatter_class=style,
        description="Read a handful of prompts through every reader that works on the model.\n"
        "Prints a table; writes an offline page, the reading files and the figures to --out.",
        epilog="example:\n  workbench demo --model Qwen/Qwen3-0.6B --out out/qwen",
    )
    demo.add_argument("--model", default=DEMO, help=f"{about_model}; the default")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="default: out/ and the model's name")
    demo.set_defaults(run=_demo)

    read = commands.add_parser(
        "read",
        help="read prompts of yours",
        formatter_class=style,
        description="Read prompts in one pass and print, for each, the top token at every layer of its last position\n"
        "(attribution: the parts that stand out in its logit).",
        epilog="examples:\n"
        '  workbench read organism:story "the bat flew out of the"\n'
        '  workbench read Qwen/Qwen2.5-VL-3B-Instruct "What is on the plate?" --image plate.jpg --out out/plate\n'
        '  workbench read Qwen/Qwen3-0.6B "The capital of France is" --lens logit --lens embedding --out out/paris\n\n'
        "--out writes one .nc file for each lens (workbench.open(path) in Python) and index.html, an offline page.",
    )
    read.add_argument("model", metavar="MODEL", help=about_model)
    read.add_argument("prompts", metavar="PROMPT", nargs="+", help="text; quote it")
    read.add_argument(
        "--image", action="append", type=Path, metavar="FILE",
        help="a picture for the prompt, or one for each of several prompts, in their order; repeatable",
    )  # fmt: skip
    read.add_argument("--ids", action="store_true", help="the prompts are token ids, such as 5,9,13")
    read.add_argument(
        "--lens",
        action="append",
        metavar="NAME",
        help="logit (default), embedding, attribution, latent, an installed one, or FILE.py:NAME; repeatable",
    )
    read.add_argument("--layers", type=integers, metavar="0,6,-1", help="layers to read; default: all")
    read.add_argument("--top-k", type=int, default=10, metavar="N", help="tokens to keep at each place; default: 10")
    read.add_argument("--targets", action="append", metavar="TOKEN", help="a token to follow: ' red'; repeatable")
    read.add_argument("--bos", metavar="TOKEN", help="put this token before each text; default: as the tokenizer does")
    read.add_argument("--index", type=Path, metavar="PATH", help="the index of contexts that the latent lens looks in")
    read.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU when there is one")
    read.add_argument("--dtype", help="float32, bfloat16, float16 or auto; default: float32 on a CPU")
    read.add_argument("--out", type=Path, metavar="FOLDER", help="a folder for the reading files and the page")
    read.set_defaults(run=_read)

    info = commands.add_parser(
        "info",
        help="a model's anatomy, its proof, which readers work",
        formatter_class=style,
        description="Load a model, prove its readout, and say where its parts are and which readers can work on it.",
    )
    info.add_argument("model", metavar="MODEL", help=about_model)
    info.add_argument("--device", help="cpu, cuda, ...")
    info.add_argument("--dtype", help="float32, bfloat16, float16 or auto")
    info.set_defaults(run=_info)
    for _, register in plugins.loaded("commands", reserved=commands.choices):
        register(commands, style)
    return parser


def _demo(chosen: argparse.Namespace) -> None:
    from workbench.demo import demo

    demo(chosen)


def _read(chosen: argparse.Namespace) -> None:
    import workbench

    names = list(dict.fromkeys(chosen.lens or ["logit"]))
    options = {"layers": chosen.layers, "top_k": chosen.top_k, "targets": chosen.targets, "index": chosen.index}
    lenses = [plugins.make_reader(name, **options) for name in names]
    model = load_model(chosen)
    prompts = [_ids(text) for text in chosen.prompts] if chosen.ids else chosen.prompts
    if chosen.image:
        prompts = _with_images(model, chosen)
    if chosen.out:
        make_folder(chosen.out)
    found = workbench.read(model, prompts, lenses, bos=chosen.bos)
    named = {name.rsplit(":", 1)[-1]: reading for name, reading in zip(names, found, strict=True)}
    for i, reading in enumerate(found):
        if i:
            print()
        table(reading)
    if chosen.out:
        page = write_page(named, chosen.out / "index.html")
        kept = [reading.save(chosen.out / f"{name}.nc") for name, reading in named.items()]
        print("\nWritten:", *filter(None, [page, *kept]), sep="\n  ")


def _with_images(model: Any, chosen: argparse.Namespace) -> list[Any]:
    """Prompts with their pictures: a text that names their place as it is, another as what a user says about them."""
    from workbench.images.pictures import image_token

    if chosen.ids or (len(chosen.prompts) > 1 and len(chosen.image) != len(chosen.prompts)):
        raise InputError(
            f"--image: {len(chosen.image)} pictures for {len(chosen.prompts)} prompts. Give one text and its pictures, "
            "or as many pictures as texts; token ids take none."
        )
    token = image_token(model.processor) if model.processor is not None else None
    found: list[Any] = []
    for i, text in enumerate(chosen.prompts):
        images = chosen.image if len(chosen.prompts) == 1 else [chosen.image[i]]
        if (token and token in text) or not getattr(model.processor, "chat_template", None):
            found.append({"text": text, "images": images})
        else:
            parts = [{"type": "image", "image": image} for image in images]
            found.append([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])
    return found


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--ids: {text!r} is not a list of token ids such as 5,9,13.") from error


def _info(chosen: argparse.Namespace) -> None:
    model = load_model(chosen)
    describe(model)
    good, bad = working(model)
    print(f"  readers      {', '.join(good)}")
    for name in plugins.readers():
        if name not in good:
            print(f"  not {name}: {bad.get(name, 'this model has nothing that it reads')}")


if __name__ == "__main__":
    sys.exit(main())
