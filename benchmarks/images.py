"""Lenses at the positions of pictures: how often a model runs, what memory it takes, how long neighbours are searched.

    python benchmarks/images.py [PART ...] [--quick] [--device cuda] [--out FILE]

    passes   100 pictures through LogitLens, EmbeddingLens and LatentLens: how often each prompt goes through the
             language model, for one lens and for all; and the passes of the nulls, for themselves
    memory   peak resident memory of a reading of 100 to 800 pictures of 336 x 336 pixels, beside that of keeping all
             of their pixels
    search   the nearest contexts of the visual tokens of a picture, in 4 layers of an index: ours | FAISS flat |
             the bare product

Models are LLaVA of random weights (CLIP tower, patches of 14 pixels).  Parts add their results to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import Measured, arguments, in_turn, machine, multiples, written

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens, LogitLens, States
from workbench.images import given
from workbench.images.pictures import noise

TEXT = "USER: <image> What is it? ASSISTANT:"
PATCH = 14


@cache
def stories(n: int) -> list[str]:
    from workbench.organisms.story.grammar import stories

    return list(dict.fromkeys(story.text for story in stories(n, 5)))


def llava(width: int, layers: int, side: int, device: str) -> workbench.Model:
    """A LLaVA of random weights with a processor, whose words are those of made-up stories."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    from workbench.organisms.story.recipe import make_tokenizer

    tokenizer = make_tokenizer(stories(300), 1024)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    tower = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=side,
        patch_size=PATCH,
    )  # fmt: skip
    language = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=2048,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=language, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    module = transformers.LlavaForConditionalGeneration(config).eval()
    images = LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return workbench.load(module, tokenizer=tokenizer, processor=processor, name="LLaVA, random", device=device)


def saved(folder: Path, n: int, side: int) -> list[Path]:
    """Pictures of noise as files, so that none lies in memory but where it is read."""
    folder.mkdir(exist_ok=True)
    found = [folder / f"{i}.png" for i in range(n)]
    for i, path in enumerate(found):
        if not path.exists():
            noise((side, side), i).save(path)
    return found


def prompts(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"text": TEXT, "images": path} for path in paths]


# ---------------------------------------------------------------- passes


def part_passes(work: Path, quick: bool, device: str) -> dict[str, Any]:
    n = 8 if quick else 100
    model, ran = llava(128, 4, 112, device), []
    # Before the index: hooks are part of what runs, and so of the model that built it.
    model.blocks[0].register_forward_pre_hook(
        lambda m, args, kwargs: ran.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
    )
    index = ContextIndex.build(model, stories(100), work / "passes", layers=[1, 2, 3], progress=False)
    asked = prompts(saved(work / "small", n, 112))

    def counted(readers: Any) -> tuple[int, int]:
        """Calls of the first block, and prompts that went through it."""
        ran.clear()
        workbench.read(model, asked, readers, progress=False)
        return len(ran), sum(ran)

    def lenses(floors: bool) -> list[Any]:
        return [LogitLens(top_k=5), EmbeddingLens(top_k=5, floors=floors), LatentLens(index, floors=floors)]

    # What is found out about a model once (which positions look ahead, what norms are usual) is no pass of a reading.
    workbench.read(model, asked[:1], lenses(True), progress=False)
    one, three, tested = counted(LogitLens(top_k=5)), counted(lenses(False)), counted(lenses(True))
    return {
        "pictures": n, "tokens of a picture": (112 // PATCH) ** 2,
        "prompts through the language model, one lens / pictures": one[1] / n,
        "prompts through the language model, three lenses / pictures": three[1] / n,
        "passes, three lenses / one lens": three[0] / one[0],
        "prompts of the nulls of three lenses / pictures": round((tested[1] - three[1]) / n, 3),
    }  # fmt: skip


# ---------------------------------------------------------------- memory


def part_memory(work: Path, quick: bool, device: str) -> dict[str, Any]:
    counts, side = ((4, 8), 112) if quick else ((100, 200, 400, 800), 336)
    saved(work / "large", max(counts), side)
    found: dict[str, Any] = {}
    for n in counts:
        for name, held in (("", given.HELD), (", all pixels kept", 2**60)):
            if name and n < max(counts):
                continue
            asked = ["--pictures", f"{n},{side},{held}", "--work", str(work), "--device", device]
            ran = subprocess.run([sys.executable, __file__, *asked], check=True, capture_output=True, text=True)
            found[f"extra_MB of {n} pictures{name}"] = round(json.loads(ran.stdout.splitlines()[-1])["extra"])
    pixels = 3 * 4 * side * side / 2**20
    most = max(counts)
    return {
        "picture_pixels_MB": round(pixels, 2), "kept_MB_at_most": given.HELD / 2**20, **found,
        f"{most} pictures, bounded / all kept": round(
            found[f"extra_MB of {most} pictures"] / found[f"extra_MB of {most} pictures, all pixels kept"], 3
        ),
        f"{most} pictures / {most // 2} pictures": round(
            found[f"extra_MB of {most} pictures"] / found[f"extra_MB of {most // 2} pictures"], 3
        ),
    }  # fmt: skip


def one_reading(n: int, side: int, held: int, work: Path, device: str) -> dict[str, float]:
    given.HELD = held
    model = llava(64, 2, side, device)
    asked = prompts(saved(work / "large", n, side))
    lens = [EmbeddingLens([1], top_k=1, floors=False)]
    workbench.read(model, asked[:2], lens, progress=False)
    with Measured() as used:
        workbench.read(model, asked, lens, progress=False)
    return {"extra": used.extra, "seconds": used.seconds}


# ---------------------------------------------------------------- search


def part_search(work: Path, quick: bool, device: str) -> dict[str, Any]:
    layers = [1, 2, 3, 4]
    model = llava(128 if quick else 768, 5, 112 if quick else 336, device)
    index = ContextIndex.build(
        model, stories(50 if quick else 700), work / "search", layers=layers, contexts_per_token=10**6, progress=False
    )
    (path, *_) = saved(work / "queries", 1, 336)
    state = workbench.read(model, prompts([path]), States([2]), positions="image", progress=False).data.state.values
    queries = torch.from_numpy(state[0, 0]).to(device)
    unit = torch.nn.functional.normalize(queries, dim=1)
    bare = [index.store.matrix(layer).gather(np.arange(len(index))).to(device) for layer in layers]
    bare = [torch.nn.functional.normalize(rows.float(), dim=1) for rows in bare]

    def product() -> None:
        for rows in bare:
            for lo in range(0, len(rows), 16384):
                torch.mm(unit, rows[lo : lo + 16384].T)

    cases: dict[str, Callable[[], Any]] = {"ours": lambda: index.nearest(queries, 5), "product": product}
    if device == "cpu":  # the wheel of faiss knows no GPU
        import faiss

        flat = [faiss.IndexFlatIP(index.d_model) for _ in bare]
        for own, rows in zip(flat, bare, strict=True):
            own.add(rows.numpy())  # pyright: ignore[reportCallIssue]
        cases["faiss"] = lambda: [f.search(unit.numpy(), 5) for f in flat]  # pyright: ignore[reportCallIssue]
    spent: dict[str, list[float]] = {name: [] for name in cases}

    def counted(name: str) -> None:
        before = time.process_time()
        cases[name]()
        spent[name].append(time.process_time() - before)

    seconds = in_turn({name: partial(counted, name) for name in cases}, 2 if quick else 7, device)
    # Of all threads: on a machine that others use, too, clocks say little.
    busy = {name: statistics.median(own[1:]) for name, own in spent.items()}
    return {
        "queries": len(queries), "layers": len(layers), "rows": len(index), "width": index.d_model,
        **{f"{name}_seconds": round(statistics.median(s), 3) for name, s in seconds.items()},
        **{f"ours / {peer}": multiples(seconds, peer)["ours"] for peer in cases if peer != "ours"},
        **{f"ours / {peer}, CPU seconds": round(busy["ours"] / busy[peer], 3) for peer in cases if peer != "ours"},
    }  # fmt: skip


PARTS = {"passes": part_passes, "memory": part_memory, "search": part_search}


def main() -> None:
    parser = arguments(__doc__, "small, to see that it runs; its ratios say little")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--work", type=Path, help="where pictures and indices are kept (default: removed at the end)")
    parser.add_argument("--pictures", help=argparse.SUPPRESS)
    given_ = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if unknown := [p for p in given_.parts if p not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if given_.pictures:
        n, side, held = map(int, given_.pictures.split(","))
        print(json.dumps(one_reading(n, side, held, given_.work, given_.device)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given_.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for part in given_.parts or PARTS:
            said = PARTS[part](work, given_.quick, given_.device)
            print(f"\n{part}")
            for name, value in said.items():
                print(f"  {name:<58} {value}", flush=True)
            whole = json.loads(given_.out.read_text()) if given_.out and given_.out.exists() else {}
            on = machine(given_.device)
            about = f"{on['device']}, {on['threads']} threads, torch {on['torch']}"
            written({**whole, part: {"machine": about, **said}}, given_.out)


if __name__ == "__main__":
    main()
