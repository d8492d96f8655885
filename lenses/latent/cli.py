"""``workbench index build | info | search | add | merge | import``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from workbench.terminal import integers, load_model, neighbours


def register(commands: Any, style: Any) -> None:
    """Add the command to the workbench's own (entry points of group ``workbench.commands`` are called so)."""
    index = commands.add_parser(
        "index",
        help="build and search an index of contexts (LatentLens)",
        formatter_class=style,
        description="An index of contexts: what LatentLens compares hidden states with.",
        epilog="example:\n"
        "  workbench index build organism:story stories.txt story.index\n"
        '  workbench index search story.index organism:story "he took the money to the bank"',
    )
    actions = index.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        parser.set_defaults(run=run)
        return parser

    corpus = "a .txt (a sentence on each line), .jsonl, .csv, .tsv or .parquet file, a folder of them, or NAME:SPLIT"
    build = action("build", _build, "build an index; run it again to go on with an interrupted build")
    build.add_argument("model", metavar="MODEL", help="a hub id, a folder, or organism:story")
    build.add_argument("corpus", metavar="CORPUS", help=corpus)
    build.add_argument("path", metavar="PATH", type=Path, help="a folder for the index")
    build.add_argument("--layers", type=integers, metavar="1,2,-1", help="default: 1,2,4,8,16,24 and the last two")
    build.add_argument("--contexts-per-token", type=int, default=50, metavar="N", help="default: 50")
    build.add_argument("--storage", choices=("fp16", "int8"), default="fp16", help="int8 takes half the room")
    build.add_argument("--seed", type=int, default=0, metavar="N")
    build.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of a line; default: 512")
    build.add_argument("--long", choices=("cut", "split", "refuse"), default="cut", help="longer lines; default: cut")
    build.add_argument("--bos", metavar="TOKEN", help="put this token before each line; default: as the tokenizer does")
    build.add_argument("--column", metavar="NAME", help="the column that holds the text")
    build.add_argument("--approximate", metavar="KIND", help="also make an ivf-sq8, ivf-pq or hnsw index")
    _machine(build)

    info = action("info", _info, "say what an index holds")
    info.add_argument("path", metavar="PATH", type=Path)

    search = action("search", _search, "find the contexts nearest to the last token of a text, layer by layer")
    search.add_argument("path", metavar="PATH", type=Path)
    search.add_argument("model", metavar="MODEL", help="the model that the index was built with")
    search.add_argument("text", metavar="TEXT", help="quote it")
    search.add_argument("--layers", type=integers, metavar="0,6,-1", help="layers of the model; default: all")
    search.add_argument("--top-k", type=int, default=3, metavar="N", help="default: 3")
    search.add_argument("--bos", metavar="TOKEN", help="put this token before the text; default: as the tokenizer does")
    search.add_argument("--calibration", default="none", help="none, centre, z-score or csls")
    search.add_argument("--approximate", action="store_true", help="use the approximate index")
    _machine(search)

    add = action("add", _add, "extend an index with more sentences")
    add.add_argument("path", metavar="PATH", type=Path)
    add.add_argument("corpus", metavar="CORPUS", help=corpus)
    add.add_argument("--model", help="default: the model that the index names")
    add.add_argument("--column", metavar="NAME")
    _machine(add)

    merge = action("merge", _merge, "make one index of several that were built apart")
    merge.add_argument("path", metavar="PATH", type=Path, help="a folder for the new index")
    merge.add_argument("parts", metavar="PART", type=Path, nargs="+")

    published = action("import", _import, "take over a cache of the published package (layer_N/embeddings_cache.pt)")
    published.add_argument("source", metavar="SOURCE", help="its folder, or a hub id")
    published.add_argument("path", metavar="PATH", type=Path, help="a folder for the index")
    published.add_argument("--model", help="the model that made it; its states are then checked")
    published.add_argument("--storage", choices=("fp16", "int8"), default="fp16")
    _machine(published)


def _machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU when there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto; default: float32 on a CPU")


def _build(chosen: argparse.Namespace) -> None:
    from lenses.latent import ContextIndex

    index = ContextIndex.build(
        load_model(chosen), chosen.corpus, chosen.path, layers=chosen.layers,
        contexts_per_token=chosen.contexts_per_token, seed=chosen.seed, storage=chosen.storage,
        max_tokens=chosen.max_tokens, column=chosen.column, approximate=chosen.approximate, long=chosen.long,
        bos=chosen.bos,
    )  # fmt: skip
    _describe(index)


def _info(chosen: argparse.Namespace) -> None:
    from lenses.latent import ContextIndex

    _describe(ContextIndex.open(chosen.path))


def _add(chosen: argparse.Namespace) -> None:
    from lenses.latent import ContextIndex

    index = ContextIndex.open(chosen.path)
    chosen.model = chosen.model or index.model_source
    _describe(index.add(chosen.corpus, model=load_model(chosen), column=chosen.column))


def _merge(chosen: argparse.Namespace) -> None:
    from lenses.latent import ContextIndex

    _describe(ContextIndex.merge(chosen.parts, chosen.path))


def _import(chosen: argparse.Namespace) -> None:
    from lenses.latent import import_published

    model = load_model(chosen) if chosen.model else None
    _describe(import_published(chosen.source, chosen.path, model=model, storage=chosen.storage))


def _describe(index: Any) -> None:
    known = index.info()
    corpus, settings, made = known["corpus"], known["settings"], known["model"]
    rows = {
        "index": f"{known['path']}, {known['bytes'] / 1e6:.1f} MB, {known['storage']}",
        "contexts": f"{known['contexts']:,} in {known['sentences']:,} sentences, each at layers {known['layers']}",
        "model": f"{made['name']}, width {known['width']}, fingerprint {made['fingerprint'] or 'unknown (imported)'}",
        "corpus": f"{corpus['sentences']:,} sentences, {corpus['tokens']:,} tokens; {known['sentences_run']:.1%} of "
        "the sentences had to run",
        "tokens": f"{known['tokens_seen']:,} different ones; {known['tokens_with_all_contexts']:,} have all "
        f"{settings['contexts_per_token']} contexts",
        "approximate": "none",
    }
    if known["approximate"]:
        found = known["approximate"]
        worst = min(found["recall_at_10"].values())
        rows["approximate"] = f"{found['kind']}, recall@10 measured on it: {worst:.3f} or better in every layer"
        if worst < found["wanted"]:
            rows["approximate"] += f" ({found['wanted']:g} was wanted)"
    for name, value in rows.items():
        print(f"  {name:<12} {value}")


def _search(chosen: argparse.Namespace) -> None:
    import workbench
    from lenses.latent import LatentLens

    lens = LatentLens(
        chosen.path, chosen.layers, chosen.top_k, calibration=chosen.calibration,
        method="approximate" if chosen.approximate else "exact",
    )  # fmt: skip
    neighbours(workbench.read(load_model(chosen), chosen.text, lens, bos=chosen.bos).data)
