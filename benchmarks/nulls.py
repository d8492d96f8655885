"""Are the nulls of the lenses calibrated on a real language model, and what passes them?

    python benchmarks/nulls.py --index out/concepts.index [--corpus concepts.txt] [--sentences 20500] [--out FILE]

Builds an index of short sentences of a corpus (or opens the one that is there), and reads with LatentLens and
EmbeddingLens:

    sentences        of the corpus that are not in the index
    shuffled         the same with their tokens in random order
    random tokens    strings of tokens drawn from the whole vocabulary
    random context   a word of the sentences among tokens as frequent as in the index

Printed for each: the share of places above the floor of shuffled prompts, with p < .05, and with q < .05.  For the last
three the nominal rate is .05, and 0 to .05 for q.  An interval is over prompts (95 %).
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, written

import workbench
from lenses import ContextIndex, EmbeddingLens, LatentLens
from workbench.errors import ReadingError
from workbench.stats import Design

LAYERS = [8, 16, 24, 29]
FUNCTION = set(
    "the a an of in on at to and or with by for from is are was were be been this that it its his her their they he "
    "she as has have had not but which who will would can could".split()
)


def corpus(path: Path, sentences: int) -> tuple[list[str], list[str]]:
    """Sentences for the index, and 1,000 that are not in it."""
    lines = sorted({line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()})
    random.Random(0).shuffle(lines)
    short = [line for line in lines if len(line) <= 100]
    return short[:sentences], short[sentences : sentences + 1000]


def kinds(model: Any, index: ContextIndex, held: list[str], n: int) -> dict[str, list[list[int]]]:
    rng = np.random.default_rng(1)
    ids = [model.tokenizer(text)["input_ids"] for text in held[:n]]
    table, special = index.store.tokens, set(model.tokenizer.all_special_ids)
    weight = np.where(np.isin(table["token_id"], list(special)), 0, table["occurrences"]).astype(float)
    usual = [i for i in range(model.vocab_size) if i not in special]

    def among(own: list[int]) -> list[int]:
        drawn = rng.choice(table["token_id"], len(own), p=weight / weight.sum()).tolist()
        at = int(rng.integers(1, len(own)))
        return [*drawn[:at], own[at], *drawn[at + 1 :]]

    return {
        "sentences": ids,
        "shuffled": [rng.permutation(own).tolist() for own in ids],
        "random tokens": [rng.choice(usual, len(own)).tolist() for own in ids],
        "random context": [among(own) for own in ids],
    }


def row(data: Any, name: str, value: str, layer: int, places: np.ndarray) -> dict[str, Any]:
    here = data.sel(layer=layer)
    p, q = here[f"{value}_p"].values, here[f"{value}_q"].values
    known = ~np.isnan(p) & places
    above = here[value].values[..., 0] > float(here[f"{value}_floor_shuffled"])
    each = np.array([above[i][known[i]].mean() if known[i].any() else np.nan for i in range(len(p))])
    found = Design(weights=known.sum(1)).bootstrap(each, bounds=(0, 1))
    return {
        "prompts": name, "layer": layer, "places": int(known.sum()),
        "above_floor": round(float(above[known].mean()), 3),
        "low": round(float(found.low), 3), "high": round(float(found.high), 3),
        "p_below_05": round(float((p[known] < 0.05).mean()), 3), "q_below_05": int((q[known] < 0.05).sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(Path.home() / ".cache/latent-workbench/SmolLM2-135M-Instruct"))
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/latentlens/concepts.txt"))
    parser.add_argument("--index", type=Path, default=Path("out/concepts.index"))
    parser.add_argument("--sentences", type=int, default=20_500)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.corpus.is_file():
        sys.exit(
            f"There is no corpus at {options.corpus}. Give a text file with a sentence on each line: --corpus FILE."
        )
    model = workbench.load(options.model, progress=False)
    inside, held = corpus(options.corpus, options.sentences)
    try:
        index = ContextIndex.open(options.index)
    except ReadingError:  # none yet, or not finished
        index = ContextIndex.build(model, inside, options.index, layers=LAYERS, batch_tokens=2048)
    table = index.store.tokens
    common = table["token_id"][table["occurrences"] >= 20]
    rows = []
    for name, prompts in kinds(model, index, held, options.prompts).items():
        lenses = [LatentLens(index, LAYERS, top_k=1), EmbeddingLens(LAYERS, top_k=1)]
        for reading, value in zip(
            workbench.read(model, prompts, lenses, progress=False), ("similarity", "cosine"), strict=True
        ):
            data = reading.data
            text = np.vectorize(str.strip)(data.input_token.values.astype(str))
            often = np.isin(data.input_id.values, common)
            word = np.vectorize(lambda t: t.isalpha() and t.lower() not in FUNCTION)(text)
            for which, places in {"": np.ones(word.shape, bool), ", content words seen 20 times": word & often}.items():
                for layer in LAYERS:
                    found = row(data, name + which, value, layer, places)
                    rows.append({"lens": data.attrs["reader"], **found})
                    print(rows[-1], flush=True)
    about = {"index": {"sentences": index.manifest["n_sentences"], "contexts": index.n_rows, "layers": index.layers}}
    written({"machine": machine(model.device.type), "model": model.name, **about, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
