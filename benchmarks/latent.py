"""LatentLens indices: build and search against the published package, plain FAISS, and floors.

    python benchmarks/latent.py [PART ...] [--quick] [--device cuda] [--out FILE]

    build      20,000 sentences, a random GPT-2 small: ours | floor (forward passes of the chosen sentences alone);
               memory, disk, int8; and 2,000 of them by both ours and the published package, which on a CPU keeps the
               states of every batch that a row comes from, and would need more than 24 GB for all
    corpus     pass one over the whole corpus: which share of its sentences has to run, by contexts per token
    search     1,000 queries over 8 layers of 100,000 rows x 768: ours | FAISS flat | the bare product
    million    1,000,000 rows: the approximate index against exact search, with its recall on held-out states
    lines      memory of pass one over one and ten million made-up lines
    agreement  the same rows in both: top-10 neighbours with right padding, and what left padding does

The published package is ``latentlens`` 0.1.0 with its own concepts.txt (117,125 sentences).  It is installed without
dependencies into a folder of its own, .envs/latentlens; where it cannot be, build and search run on made-up stories and
without this peer, and the numbers say so.  With --device cuda models, queries and floors are on the GPU.  States for
search and million are those of a model of width
768 that was trained on the corpus for some minutes: hidden states of a random model have no structure to be found.
Parts add their results to FILE.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import Measured, arguments, extra_on_gpu, finish, in_turn, machine, multiples, written

import workbench
from lenses import ContextIndex
from lenses.latent import build as building
from lenses.latent import search as searching
from lenses.latent.selection import Kept, Selection
from lenses.latent.store import BLOCK, KIND, TABLES, Encoding, layer_file
from workbench.store import Folder

HERE = Path(__file__).resolve().parents[1]
PUBLISHED = HERE / ".envs" / "latentlens"
STORIES = 60_000
"""Made up where the published corpus is not."""


# ---------------------------------------------------------------- what is measured with


def published() -> Any:
    """The published package."""
    if not (PUBLISHED / "latentlens").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PUBLISHED)]
        subprocess.run([*pip, "latentlens==0.1.0"], check=True, capture_output=True)
    if str(PUBLISHED) not in sys.path:
        sys.path.append(str(PUBLISHED))
    import latentlens

    return latentlens


@functools.cache
def there() -> bool:
    """Whether the published package is here, or can be fetched."""
    try:
        published()
    except (subprocess.CalledProcessError, ImportError) as error:
        print(f"without the published package: {type(error).__name__}", file=sys.stderr)
        return False
    return True


@functools.cache
def concepts() -> list[str]:
    """The published corpus; where it is not, made-up stories."""
    if not there():
        from workbench.organisms.story.grammar import stories

        return list(dict.fromkeys(story.text for story in stories(STORIES, 5)))
    text = (PUBLISHED / "latentlens" / "data" / "concepts.txt").read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def some(n: int) -> list[str]:
    return random.Random(0).sample(concepts(), min(n, len(concepts())))


def corpus_name() -> str:
    return "concepts.txt" if there() else "made-up stories"


def tokenizer(size: int, folder: Path, padding_side: str = "right") -> Any:
    """A byte-level BPE of the corpus with a beginning-of-sequence token; made once."""
    file = folder / f"bpe-{size}.json"
    if not file.exists():
        from workbench.organisms.story.recipe import make_tokenizer

        made = make_tokenizer(concepts(), size).backend_tokenizer
        # Several benchmarks may start together.
        made.save(str(file.with_suffix(".part")))
        file.with_suffix(".part").replace(file)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>",
        padding_side=padding_side, model_max_length=512,
    )  # fmt: skip


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------- build


def part_build(work: Path, quick: bool, device: str) -> dict[str, Any]:
    texts = some(200 if quick else 20_000)
    tok = tokenizer(50257, work)
    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=4 if quick else 12, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    ).eval()
    model = workbench.load(module, tokenizer=tok, name="GPT-2 small, random", device=device)
    _ = model.fingerprint, model.tokenizer_fingerprint
    ContextIndex.build(model, texts[:64], work / "warm", progress=False)
    # Pass one alone says what has to run.
    head = building.header(model, None, 50, 0, 0, 512, "fp16")
    chosen = building.selection(head, len(tok), work)
    building.choose(model, texts, None, chosen, building.Census(), head["settings"], False)
    kept: Kept = chosen.finish()
    floor = _Floor(module, kept, max(head["layers"]), device)
    said: dict[str, Any] = {
        "corpus": corpus_name(), "sentences": len(texts), "layers": head["layers"], "contexts": len(kept),
        "sentences_run": round(len(kept.texts) / len(texts), 4),
    }  # fmt: skip
    # The floor in quarters around the builds, so that slow phases of the machine hurt both.
    alone = floor.seconds(0, 4) + floor.seconds(1, 4)
    shutil.rmtree(work / "fp16", ignore_errors=True)
    with Measured() as ours:
        index = ContextIndex.build(model, texts, work / "fp16", progress=False)
    alone += floor.seconds(2, 4) + floor.seconds(3, 4)
    rows, text = len(index) * len(index.layers) * 768 * 2, sum(len(t.encode()) for t in kept.texts)
    eight = _in_int8(index, work / "int8")
    queries = _held_out(model, kept, [0, model.n_layers // 2, model.n_layers - 1])
    exact, coded = (i.search(queries, 10, distinct=False) for i in (index, eight))
    same = _overlap(exact, coded)
    few = texts[: len(texts) // 10]
    shutil.rmtree(work / "few", ignore_errors=True)
    with Measured() as part:
        ContextIndex.build(model, few, work / "few", progress=False)
    said |= {
        "floor_seconds": round(alone, 1),
        "ours_seconds": round(ours.seconds, 1),
        "ours / floor": round(ours.seconds / alone, 3),
        "ours_extra_MB": round(ours.extra),
        f"ours_seconds_of_{len(few)}": round(part.seconds, 1),
        "disk / (fp16 rows + sentences)": round(bytes_of(index.path) / (rows + text), 4),
        "int8 disk / (fp16 rows + sentences)": round(bytes_of(eight.path) / (rows + text), 4),
        "int8 keeps of the exact top 10": round(same, 4),
    }
    if there():
        with Measured() as theirs:
            other = published().build_index("", list(few), model=module, tokenizer=tok, show_progress=False)
        said |= {
            f"published_seconds_of_{len(few)}": round(theirs.seconds, 1),
            "published / ours, the same sentences": round(theirs.seconds / part.seconds, 2),
            "published / ours, by sentence": round(theirs.seconds / len(few) / (ours.seconds / len(texts)), 2),
            f"published_extra_MB_of_{len(few)}": round(theirs.extra),
            "published_rows": len(other) // len(index.layers),
        }
    return said


def _in_int8(index: ContextIndex, path: Path) -> ContextIndex:
    """The same rows as storage="int8" keeps them."""
    shutil.rmtree(path, ignore_errors=True)
    encoding, there = Encoding("int8", index.d_model), index.store.folder
    with Folder.create_or_resume(path, {**there.head, "storage": "int8"}, KIND) as folder:
        for table in TABLES:
            name = index.store.part(table)
            folder.write(name, lambda file, name=name: shutil.copyfile(there.path(name), file))
        for layer in index.layers:
            matrix = index.store.matrix(layer)
            names = {kind: index.store.part(layer_file(layer, kind)) for kind in encoding.files()}
            for lo in range(0, len(index), BLOCK):
                for kind, values in encoding.encode(matrix.states(lo, min(lo + BLOCK, len(index)))).items():
                    with folder.place(names[kind]).open("wb" if lo == 0 else "ab") as file:
                        file.write(values.tobytes())
            for name in names.values():
                folder.keep(name)
        folder.seal(there.extra)
    return ContextIndex.open(path)


class _Floor:
    """The chosen sentences through the model as deep as needed, without unembedding, and nothing else."""

    def __init__(self, module: Any, kept: Kept, depth: int, device: str) -> None:
        self.module, self.depth, self.device = module, depth, device
        lengths = np.diff(kept.starts)
        self.batches: list[torch.Tensor] = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            size = max(1, (512 if device == "cpu" else 16_384) // int(length))
            ids = [torch.tensor([kept.tokens(i) for i in rows[j : j + size]]) for j in range(0, len(rows), size)]
            self.batches += [rows.to(device) for rows in ids]

    def seconds(self, first: int, step: int) -> float:
        body = self.module.transformer
        blocks, body.h = body.h, body.h[: self.depth]
        try:
            start = time.perf_counter()
            with torch.no_grad():
                for ids in self.batches[first::step]:
                    body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            finish(self.device)
            return time.perf_counter() - start
        finally:
            body.h = blocks


def _held_out(model: workbench.Model, kept: Kept, layers: list[int], n: int = 500) -> torch.Tensor:
    """States of sentences that are not in the index: every second word left out."""
    from lenses import States

    texts = [" ".join(t.split()[::2]) for t in kept.texts[:: max(1, len(kept.texts) // n)]][:n]
    states = States(layers)
    workbench.read(model, texts, states, positions="last", progress=False)
    return states.found.flatten(0, -2)


def _overlap(a: Any, b: Any) -> float:
    """Share of the neighbours (index layer, row) of a that b has, too."""
    keys = [x["index_layer"].values.astype(np.int64) << 40 | x["context"].values for x in (a, b)]
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(*keys, strict=True)]))


# ---------------------------------------------------------------- corpus


def part_corpus(work: Path, quick: bool, device: str) -> dict[str, Any]:
    texts, tok = (some(5000) if quick else concepts()), tokenizer(50257, work)
    said: dict[str, Any] = {"sentences": len(texts)}
    with Measured() as used:
        ids = [i for at in range(0, len(texts), 2048) for i in tok(texts[at : at + 2048])["input_ids"]]
    said["tokenising_seconds"] = round(used.seconds, 1)
    for k in (5, 20, 50):
        chosen = Selection(len(tok), k, folder=work)
        start = time.perf_counter()
        for at in range(0, len(texts), 2048):
            chosen.feed(texts[at : at + 2048], ids[at : at + 2048])
        kept = chosen.finish()
        said[f"{k} contexts per token"] = {
            "contexts": len(kept),
            "sentences_run": round(len(kept.texts) / len(texts), 4),
            "tokens_run": round(len(kept.ids) / sum(map(len, ids)), 4),
            "choosing_seconds": round(time.perf_counter() - start, 1),
        }
    return said


# ---------------------------------------------------------------- search


def trained(work: Path, quick: bool, device: str) -> workbench.Model:
    """A Llama of width 768 and three blocks, trained on the corpus for some minutes (kept in ``work``)."""
    folder = work / "trained"
    if not folder.is_dir():
        from workbench.organisms.story.recipe import pack, train

        tok = tokenizer(8192, work)
        # For the time of an exact search the states may be anyone's: there is no training on a GPU.
        steps = 1 if device == "cuda" else 3 if quick else 400
        setting = {"stories": 0, "steps": steps, "batch": 8, "length": 96, "layers": 3, "width": 768}
        begin = time.perf_counter()
        module = train(tok, pack(tok, some(40_000), 96), {**setting, "rate": 6e-4})
        print(f"trained for {time.perf_counter() - begin:.0f} s")
        module.save_pretrained(folder)
        tok.save_pretrained(folder)
    return workbench.load(folder, device=device, dtype="float32")


def trained_rows(work: Path, quick: bool, device: str) -> tuple[ContextIndex, torch.Tensor]:
    """An index of a million states of the trained model (after two of its blocks), and 1,000 held-out states."""
    model, texts = trained(work, quick, device), list(concepts())
    rng = random.Random(1)
    rng.shuffle(texts)
    n = 300 if quick else 68_000
    index = ContextIndex.build(model, texts[:n], work / "million", layers=[2], contexts_per_token=10**6, progress=False)
    from lenses import States

    states = States(2)
    workbench.read(model, texts[-100:], states, progress=False)
    held = states.found.flatten(0, -2)
    held = held[~held.isnan().any(1)]
    pick = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:1000]
    return index, held[pick].contiguous().to(device)


def part_search(work: Path, quick: bool, device: str) -> dict[str, Any]:
    index, queries = trained_rows(work, quick, device)
    layers = 8
    matrix, n = index.store.matrix(2), min(2000 if quick else 100_000, len(index) // layers)
    eight = work / "eight"
    if not eight.is_dir():
        _rows_as_layers(index, eight, n, layers, len(index) // layers)
    ours = ContextIndex.open(eight)
    starts = [i * (len(index) // layers) for i in range(layers)]
    bare = [matrix.gather(np.arange(at, at + n)).to(device) for at in starts]
    unit = torch.nn.functional.normalize(queries, dim=1)

    def product() -> None:
        for rows in bare:
            for lo in range(0, n, BLOCK):
                unit @ rows[lo : lo + BLOCK].T

    cases: dict[str, Callable[[], Any]] = {"ours": lambda: ours.nearest(queries, 10), "product": product}
    if device == "cpu":  # the wheel of faiss knows no GPU
        import faiss

        flat = [faiss.IndexFlatIP(768) for _ in bare]
        for own, rows in zip(flat, bare, strict=True):
            own.add(rows.numpy())  # pyright: ignore[reportCallIssue]
        bare = [torch.from_numpy(faiss.rev_swig_ptr(f.get_xb(), n * 768).reshape(n, 768)) for f in flat]
        cases["faiss"] = lambda: [f.search(unit.numpy(), 10) for f in flat]  # pyright: ignore[reportCallIssue]
    seconds = in_turn(cases, 2 if quick else 7, device)
    extra = _anonymous(eight, queries, work) if device == "cpu" else extra_on_gpu(cases["ours"])
    return {
        "corpus": corpus_name(), "queries": len(queries), "layers": layers, "rows": n, "width": 768,
        **{f"{name}_seconds": round(statistics.median(s), 3) for name, s in seconds.items()},
        **{f"ours / {peer}": multiples(seconds, peer)["ours"] for peer in cases if peer != "ours"},
        "extra_MB_above_mapped_files" if device == "cpu" else "extra_MB_on_the_GPU": round(extra),
    }  # fmt: skip


def _rows_as_layers(index: ContextIndex, path: Path, n: int, layers: int, apart: int) -> None:
    """An index of ``layers`` layers out of parts of a long one."""
    store = index.store
    start = np.zeros(n, np.int32)
    kept = Kept(["x"], np.zeros(1, np.int32), np.array([0, 1]), [], start, start, start + 5)
    spans = {"char_start": start, "char_end": start}
    tokens = building.token_table(np.eye(1, 6, 5, dtype=np.int64)[0], lambda ids: ["x" for _ in ids])
    head = {k: index.manifest[k] for k in ("storage", "d_model", "settings", "model", "special_ids")}
    work, extra = building.described({**head, "layers": list(range(layers))}, kept, building.Census(), "made")
    with Folder.create_or_resume(path, work, KIND) as folder:
        building.write_tables(folder, "data-made", kept, {"spans": spans, "tokens": tokens})
        for layer in range(layers):
            rows = np.arange(layer * apart, layer * apart + n)
            for kind in store.encoding.files():
                stored = store.matrix(2).stored(kind, rows).tobytes()
                name = f"data-made/{layer_file(layer, kind)}"
                folder.write(name, lambda file, stored=stored: Path(file).write_bytes(stored))
        folder.seal(extra)


def _anonymous(path: Path, queries: torch.Tensor, work: Path) -> float:
    """MB of memory that is no file's, at the peak of a search in a process of its own."""
    np.save(work / "queries.npy", queries.numpy())
    script = f"""
import threading, time, numpy, torch
from pathlib import Path
from lenses import ContextIndex
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 2**10
index, queries = ContextIndex.open({str(path)!r}), torch.from_numpy(numpy.load({str(work / "queries.npy")!r}))
torch.mm(queries, queries.T)
index.nearest(queries[:2], 10, layers=0)
before = peak = anonymous()
stop = False
def watch():
    global peak
    while not stop:
        peak = max(peak, anonymous())
        time.sleep(.002)
thread = threading.Thread(target=watch); thread.start()
index.nearest(queries, 10)
stop = True; thread.join()
print(peak - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=HERE)
    return float(done.stdout.split()[-1])


# ---------------------------------------------------------------- a million


def part_million(work: Path, quick: bool, device: str, kind: str = "ivf-pq") -> dict[str, Any]:
    index, queries = trained_rows(work, quick, device)
    start = time.perf_counter()
    index.accelerate(kind, progress=False)
    made = time.perf_counter() - start
    truth = index.nearest(queries, 10)
    found = index.nearest(queries, 10, method="approximate")
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.row, found.row, strict=True)])
    seconds: dict[str, list[float]] = {"exact": [], "approximate": []}
    for _ in range(3 if quick else 5):
        for method, spent in seconds.items():
            start = time.perf_counter()
            index.nearest(queries, 10, method=method)
            spent.append(time.perf_counter() - start)
    exact, quicker = (float(np.median(s)) for s in seconds.values())
    known = index.manifest["approximate"]
    file = index.store.checked(searching.approximate_file(2)).path
    return {
        "rows": len(index), "queries": len(queries), "width": 768, "kind": kind, "effort": known["effort"]["2"],
        "recall@10 measured when it was made": known["recall_at_10"]["2"],
        "recall@10 of held-out states": round(float(recall), 4),
        "exact_seconds": round(exact, 3), "approximate_seconds": round(quicker, 3),
        "exact / approximate": round(exact / quicker, 1),
        "seconds_to_make": round(made), "file_MB": round(file.stat().st_size / 1e6),
    }  # fmt: skip


# ---------------------------------------------------------------- lines


def part_lines(work: Path, quick: bool, device: str) -> dict[str, Any]:
    sizes = (20_000, 200_000) if quick else (1_000_000, 10_000_000)
    said: dict[str, Any] = {}
    for n in sizes:
        command = [sys.executable, __file__, "--lines", str(n), "--work", str(work)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        said[f"{n:,} lines"] = json.loads(out.splitlines()[-1])
    return said


def pass_one(n: int, work: Path) -> dict[str, Any]:
    """Made-up lines of six words out of 5,000 through pass one, in this process."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(5000)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tok = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=5000)
    model = workbench.load(transformers.GPT2LMHeadModel(config).eval(), tokenizer=tok)
    first, chosen = (Selection(5000, 50, folder=work) for _ in range(2))
    settings = {"max_tokens": 512}
    building.choose(model, list(_lines(5000)), None, first, building.Census(), settings, False)
    with Measured() as used:
        building.choose(model, _lines(n), None, chosen, building.Census(), settings, False)
        kept = chosen.finish()
    return {
        "seconds": round(used.seconds), "extra_MB": round(used.extra), "contexts": len(kept),
        "kept_MB": round(sum(v.nbytes for v in (kept.ids, kept.starts, kept.sentence, kept.position, kept.token_id))
                         / 2**20),
    }  # fmt: skip


def _lines(n: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for at in range(0, n, 10_000):
        for row in rng.integers(0, 5000, (min(10_000, n - at), 6)).tolist():
            yield " ".join(f"w{i}" for i in row)


# ---------------------------------------------------------------- agreement


def part_agreement(work: Path, quick: bool, device: str) -> dict[str, Any]:
    latentlens = published()
    story = workbench.load("organism:story")
    texts = some(200 if quick else 1500)
    layers, said = [1, 2, 4, 5], {}
    held = [" ".join(t.split()[::2]) for t in some(1900)[-300:]]
    from lenses import States

    states = States(3)
    workbench.read(story, held, states, positions="last", progress=False)
    queries = states.found[:, 0, 0]
    indices = {}
    for side in ("right", "left"):
        tok: Any = story.tokenizer
        tok.padding_side = side
        theirs = latentlens.build_index(
            "", list(texts), layers=layers, max_contexts_per_token=10**6, model=story.module, tokenizer=tok,
            show_progress=False,
        )  # fmt: skip
        # As it is published and loaded: float16 rows, like ours.
        theirs.save(work / f"published-{side}")
        theirs = latentlens.ContextualIndex.from_directory(work / f"published-{side}")
        path = work / f"agreement-{side}"
        shutil.rmtree(path, ignore_errors=True)
        # Its own rules: no cap here, and positions 0 and 1 left out.
        ours = ContextIndex.build(
            story, texts, path, layers=layers, contexts_per_token=10**6, first_position=2, max_tokens=512,
            progress=False,
        )  # fmt: skip
        indices[side] = ours.path
        mine = ours.search(queries, 11, distinct=False, special=True)
        agree = total = 0
        worst = 0.0
        for q, found in enumerate(theirs.search(queries, 11)):
            own = {
                (str(s), int(p), int(x)): float(v)
                for s, p, x, v in zip(*(mine[name].values[q] for name in (
                    "sentence", "token_position", "index_layer", "similarity")), strict=True)
            }  # fmt: skip
            for rank, f in enumerate(found[:10]):
                # A neighbour as near as the eleventh may stand on either side of the cut.
                tie = found[10].similarity >= f.similarity - 1e-6
                # The package keeps the first sentence of those with one prefix, we the one of least hash.
                hit = _same(f, own)
                agree += tie or hit is not None
                total += 1
                worst = max(worst, abs(float(mine["similarity"].values[q, rank]) - f.similarity))
        said[f"padding {side}"] = {
            "rows of ours": len(ours), "rows of the package": len(theirs) // len(layers),
            "top-10 agreement": round(agree / total, 5), "largest difference of similarity": round(worst, 6),
        }  # fmt: skip
    story.tokenizer.padding_side = "right"  # pyright: ignore[reportOptionalMemberAccess]
    a, b = (sorted(p.rglob("layer_*")) for p in indices.values())
    said["ours: same bytes for both padding sides"] = all(
        x.read_bytes() == y.read_bytes() for x, y in zip(a, b, strict=True)
    )
    return said


def _same(found: Any, own: dict[tuple[str, int, int], float]) -> float | None:
    for (sentence, position, layer), value in own.items():
        if (position, layer) == (found.position, found.contextual_layer) and (
            sentence == found.caption or abs(value - found.similarity) < 1e-5
        ):
            return value
    return None


# ---------------------------------------------------------------- all


PARTS = {
    "agreement": part_agreement,
    "corpus": part_corpus,
    "build": part_build,
    "search": part_search,
    "million": part_million,
    "lines": part_lines,
}
NEEDS_PUBLISHED = ("agreement", "corpus")
ON_GPU = ("build", "search")


def main() -> None:
    parser = arguments(__doc__, "small, to see that it runs; its ratios say little")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all; on a GPU {' and '.join(ON_GPU)}")
    parser.add_argument("--work", type=Path, help="where models and indices are kept (default: removed at the end)")
    parser.add_argument("--lines", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    global STORIES
    STORIES = 3000 if given.quick else STORIES
    transformers.logging.set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if unknown := [p for p in given.parts if p not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if given.lines:
        print(json.dumps(pass_one(given.lines, given.work)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for part in given.parts or (PARTS if given.device == "cpu" else ON_GPU):
            if part in NEEDS_PUBLISHED and not there():
                print(f"\n{part}: skipped, it is about the published package")
                continue
            said = PARTS[part](work, given.quick, given.device)
            print(f"\n{part}")
            for name, value in said.items():
                print(f"  {name:<38} {value}", flush=True)
            whole = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
            on = machine(given.device)
            about = f"{on['device']}, {on['threads']} threads, torch {on['torch']}"
            written({**whole, part: {"machine": about, **said}}, given.out)


if __name__ == "__main__":
    main()
