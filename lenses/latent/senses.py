"""Lenses on words with two senses, where the sense of every occurrence is known: a calibration on ``organism:story``.

    python -m lenses.latent.senses [--card]        the table; --card writes it into the organism's card

For each occurrence of a two-sense word in held-out stories, a lens reads the state at the word's last token and shows
its five best answers.  Two questions are asked of them:

    word    Do they name the word?  LatentLens: the share of neighbours that are that word.  The token lenses: the
            share of tokens that are one of the word's own.  (A logit lens predicts what comes next, so it need not.)
    sense   Would a reader who knows the corpus tell the sense from them?  Each answer votes: a context that is that
            word, for its recorded sense; a token, by the log odds of standing in sentences of one sense rather than
            the other.  The logit lens's tokens are taken for what they are, predictions: their odds are of standing
            right after the word, and each has the weight of its probability.  No vote is a guess, and counts a half.

Two conditions: contexts with the query's own prefix are never among the neighbours ("new story"); or nothing with
the same clause is, neither as a context nor in the odds ("new clause"), so that the sense must carry over to other
wording.  Where a clause begins with the word nothing tells the sense yet, and 1 is out of every lens's reach.  Only
"new clause" speaks of senses: where these are dealt out to clauses at random, "new story" is nearly as good, since it
is enough to recognise the clause.

Chance: "word" of random contexts or tokens; "sense" with the senses of the corpus shuffled among the occurrences of
each word.  Intervals are over clauses, the unit that repeats: a few hundred occurrences share a hundred clauses, and a
lens that knows one clause knows it in every story.  (Stories drawn again would take the clauses for given, and say how
the rate varies over more stories of the very same clauses.)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import workbench
from lenses.embedding import EmbeddingLens
from lenses.latent.build import Census
from lenses.latent.index import ContextIndex
from lenses.logit import LogitLens
from workbench.errors import InputError
from workbench.organisms.story.grammar import SENSES, Story, stories
from workbench.readers import States
from workbench.reading import Reading
from workbench.stats import Design, Interval
from workbench.variables import about, described

CORPUS_SEED, QUERY_SEED = 5, 2
TOP, SHUFFLES = 5, 10
LENSES = ("LatentLens", "LogitLens", "EmbeddingLens")
MEASURES = ("word", "sense, new story", "sense, new clause")
CLAIM = '"sense, new story" is above chance wherever clauses are recognised; only "new clause" speaks of their senses'
VARIABLES = {
    "rate": about("share of answers that name the word or tell its sense", better="high", short_name="share"),
    "rate_low": about("95 % interval over clauses", role="low", of="rate"),
    "rate_high": about("95 % interval over clauses", role="high", of="rate"),
    "rate_chance": about(
        "share of random answers, or with the senses of the corpus shuffled", role="chance", of="rate"
    ),
    "measure": about("question, and what is left out", role="label", of="rate"),
    "lens": about("lens", role="label", of="rate"),
}


@dataclass(frozen=True)
class Occurrence:
    """A two-sense word in a story."""

    story: int
    word: str
    sense: int
    clause: str
    end: int
    """Where the word ends in the story's text."""


def occurrences(texts: list[Story]) -> list[Occurrence]:
    found = []
    for i, story in enumerate(texts):
        for s in story.senses:
            number = [name for name, _ in SENSES[s.word]].index(s.sense)
            text = story.text.lower()
            fitting = [c for c in SENSES[s.word][number][1] if _at(text, c, s.start, s.word)]
            found.append(Occurrence(i, s.word, number, max(fitting, key=len), s.end))
    return found


def _at(text: str, clause: str, start: int, word: str) -> bool:
    """Does the clause stand in the text so that its word is at ``start``?"""
    own = next(i for i in range(len(clause)) if f" {clause} ".startswith(f" {word} ", i))
    return start >= own and text.startswith(clause.lower(), start - own)


def senses(
    model: Any = None, *, corpus: int | None = None, queries: int = 1500, path: Any = None, index: Any = None
) -> Reading:
    """Word and sense by LatentLens, logit lens and embedding lens, layer by layer, with chance and intervals.

    Args:
        model: default ``organism:story``.
        corpus, queries: how many stories the index is made of (default: 4000), and how many are asked about.
        path: where the index is built; default: a temporary folder.
        index: a :class:`ContextIndex` or the folder of one, in place of a new one: of ``stories(n, seed=5)``, whose
            senses are known.  Its own layers are looked in; a new one has 1 to L.

    Returns:
        A reading with rate, rate_low, rate_high, rate_chance [measure, lens, layer].  Its attribute ``claim`` says
        which measure speaks of senses, ``interval`` how the intervals over clauses were made.

    Raises:
        InputError: an index of other sentences, and ``index`` together with ``corpus`` or ``path``.
        IndexRefused: an index of another model.
    """
    model = workbench.load(model or "organism:story")
    asked = list(stories(queries, QUERY_SEED))
    if index is not None:
        if corpus is not None or path is not None:
            raise InputError("An index has its corpus and its place. Give index=, or corpus= and path=, not both.")
        index = index if isinstance(index, ContextIndex) else ContextIndex.open(index)
        index.check(model)
        return _measure(model, index, _stories_of(index), asked)
    known = list(stories(corpus or 4000, CORPUS_SEED))
    with tempfile.TemporaryDirectory() as temporary:
        index = ContextIndex.build(
            model, [s.text for s in known], path or Path(temporary) / "index", layers=range(1, model.n_layers + 1),
            progress=False,
        )  # fmt: skip
        return _measure(model, index, known, asked)


def _stories_of(index: ContextIndex) -> list[Story]:
    """The stories that an index was built of, with their senses.  Raises InputError for other sentences."""
    made = index.manifest["corpus"]
    known = list(stories(made["sentences"], CORPUS_SEED))
    census = Census()
    census.see([s.text for s in known], 0)
    if census.describe()["fingerprint"] != made["fingerprint"]:
        raise InputError(
            f"The index at {index.path} holds {made['sentences']:,} sentences that are not "
            f"stories({made['sentences']}, seed={CORPUS_SEED}), so the senses of its words are not known. Build it of "
            "these, each story whole, or let senses() build its own."
        )
    return known


def _measure(model: workbench.Model, index: ContextIndex, known: list[Story], asked: list[Story]) -> Reading:
    tokenizer: Any = model.tokenizer
    wanted = occurrences(asked)
    encoded = [tokenizer(s.text, return_offsets_mapping=True) for s in asked]
    place = [_token_at(encoded[o.story]["offset_mapping"], o.end) for o in wanted]
    # A prompt up to each occurrence, so that its last position is the word's last token.
    prompts = [list(encoded[o.story]["input_ids"][: p + 1]) for o, p in zip(wanted, place, strict=True)]
    layers = list(range(model.n_layers + 1))
    readers = [LogitLens(layers, TOP), EmbeddingLens(layers, TOP), States(layers)]
    logit, near, kept = workbench.read(model, prompts, readers, positions="last", progress=False)
    states = torch.from_numpy(kept["state"].values)
    corpus = _Corpus(index, tokenizer, known, np.random.default_rng(0))
    shape = (len(MEASURES), len(LENSES), len(layers))
    each, null = np.full((*shape, len(wanted)), np.nan), np.full((*shape, len(wanted)), np.nan)
    weights = np.exp(logit.data["logprob"].values[:, :, 0])
    answers = {
        "LogitLens": (logit.data["token_id"].values[:, :, 0], weights, "after"),
        "EmbeddingLens": (near.data["token_id"].values[:, :, 0], np.ones_like(weights), "inside"),
    }
    for lens, (token, weight, where) in answers.items():
        j = LENSES.index(lens)
        for q, o in enumerate(wanted):
            own = corpus.tokens_of[o.word]
            each[0, j, :, q] = np.isin(token[q], list(own)).mean(-1)
            null[0, j, :, q] = len(own) / model.vocab_size
            for m, left_out in ((1, ""), (2, o.clause)):
                vote = (weight[q] * corpus.odds(o.word, where, left_out)[:, token[q]]).sum(-1)
                each[m, j, :, q], null[m, j, :, q] = _own_and_chance(vote, o.sense)
    prefixes = [tuple(corpus.same_prefix(ids)) for ids in prompts]
    for m, key in ((1, prefixes), (2, [(o.word, o.clause) for o in wanted])):
        for k, members in _by(key).items():
            without = np.array(k) if m == 1 else corpus.same_clause(*k)
            found = index.nearest(states[members, :, 0].flatten(0, 1), TOP, without=without)
            rows = found.row.reshape(len(members), len(layers), TOP)
            for q, own in zip(members, rows, strict=True):
                right = corpus.word[own] == corpus.number[wanted[q].word]
                vote = np.where(right & (corpus.sense[:, own] >= 0), 2 * corpus.sense[:, own] - 1, 0).sum(-1)
                each[m, 0, :, q], null[m, 0, :, q] = _own_and_chance(vote, wanted[q].sense)
                if m == 1:
                    each[0, 0, :, q] = right.mean(-1)
                    null[0, 0, :, q] = (corpus.word == corpus.number[wanted[q].word]).mean()
    dims = ("measure", "lens", "layer")
    found = over_clauses(each, wanted)
    rates = {"rate": found.value, "rate_low": found.low, "rate_high": found.high, "rate_chance": null.mean(-1)}
    made = xr.Dataset(
        {name: (dims, values) for name, values in rates.items()},
        {"measure": list(MEASURES), "lens": list(LENSES), "layer": layers},
        {
            "model": model.name, "n_layers": model.n_layers, "reader": "senses of known words", "series": "lens",
            "occurrences": len(wanted), "stories": len({o.story for o in wanted}),
            "clauses": len({(o.word, o.clause) for o in wanted}), "contexts": len(index), "corpus": len(known),
            "index_layers": list(index.layers), "interval": found.said("clauses"), "claim": CLAIM,
        },
    )  # fmt: skip
    data = described(made, VARIABLES)
    settings = {"corpus_seed": CORPUS_SEED, "query_seed": QUERY_SEED, "stories": [len(known), len(asked)], "top_k": TOP}
    return Reading(data, {"reader": {"name": "senses", **settings}, "model": {"name": model.name}})


def over_clauses(each: np.ndarray, wanted: list[Occurrence]) -> Interval:
    """Mean over occurrences (last axis) and its 95 % interval, clauses drawn again with all their occurrences."""
    clauses = [f"{o.word}: {o.clause}" for o in wanted]
    return Design(clauses).bootstrap(np.moveaxis(each, -1, 0), bounds=(0, 1))


def _own_and_chance(vote: np.ndarray, sense: int) -> tuple[np.ndarray, np.ndarray]:
    """Votes [1 + shuffles, layers] (above 0: sense 1; 0: a guess) -> how often right, and so with shuffled senses."""
    right = np.where(np.abs(vote) < 1e-9, 0.5, (vote > 0) == (sense == 1))
    return right[0], right[1:].mean(0)


def _by(keys: list[Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return groups


def _token_at(offsets: list[tuple[int, int]], end: int) -> int:
    return next(i for i, (_, e) in enumerate(offsets) if e == end)


class _Corpus:
    """What the recipe knows of the index's contexts, and of how tokens go with senses."""

    def __init__(self, index: ContextIndex, tokenizer: Any, known: list[Story], rng: Any) -> None:
        self.number = {word: i for i, word in enumerate(sorted(SENSES))}
        table, texts = index.store.contexts, index.store.sentences["text"].to_pylist()
        self.story_of = {text: i for i, text in enumerate(texts)}
        flat, starts = index.store.token_ids()
        self.ids = [flat[starts[i] : starts[i + 1]].tolist() for i in range(len(texts))]
        self.by_length: dict[int, dict[tuple[int, ...], list[int]]] = {}
        self.table = table
        n = len(index)
        # One more entry: row -1, no neighbour.
        self.word, self.clause = np.full(n + 1, -1), np.full(n + 1, "", object)
        at = {
            (int(s), int(p)): row for row, (s, p) in enumerate(zip(table["sentence"], table["position"], strict=True))
        }
        self.tokens_of: dict[str, set[int]] = defaultdict(set)
        seen = occurrences(known)
        # The senses as they are, then shuffled within each word.
        labels = np.tile([o.sense for o in seen], (1 + SHUFFLES, 1))
        for members in _by([o.word for o in seen]).values():
            for own in labels[1:]:
                own[members] = own[rng.permutation(members)]
        self.sense = np.full((1 + SHUFFLES, n + 1), -1)
        encoded: dict[int, Any] = {}
        # (word, clause, where, sense in each labelling) -> how often tokens stand there, and how many sentences.
        self._counts: dict[Any, Counter[Any]] = defaultdict(Counter)
        self._odds: dict[Any, np.ndarray] = {}
        for o, own in zip(seen, labels.T, strict=True):
            if o.story not in encoded:
                encoded[o.story] = tokenizer(known[o.story].text, return_offsets_mapping=True)
            ids, offsets = encoded[o.story]["input_ids"], encoded[o.story]["offset_mapping"]
            last = _token_at(offsets, o.end)
            begin = o.end - len(o.word)
            self.tokens_of[o.word] |= {t for t, (a, b) in zip(ids, offsets, strict=True) if a < o.end and b > begin}
            # Tokens of the sentence that the word stands in.
            text = known[o.story].text
            first, stop = text.rfind(".", 0, begin) + 1, text.index(".", o.end) + 1
            inside = {t for t, (a, b) in zip(ids, offsets, strict=True) if a >= first - 1 and b <= stop and b > a}
            for j, sense in enumerate(own.tolist()):
                self._counts[o.word, o.clause, "inside", j, sense].update([*inside, "all"])
                self._counts[o.word, o.clause, "after", j, sense].update([*ids[last + 1 : last + 2], "all"])
            row = at.get((self.story_of.get(text, -1), last))
            if row is not None:
                self.word[row], self.sense[:, row], self.clause[row] = self.number[o.word], own, o.clause
        self._size = len(tokenizer)

    def odds(self, word: str, where: str, left_out: str) -> np.ndarray:
        """[1 + shuffles, vocabulary] log odds of sense 1 for a token ``inside`` the sentence or ``after`` the word.

        0 for tokens that the corpus does not have there; sentences with the clause ``left_out`` do not count.
        """
        key = (word, where, left_out)
        if key not in self._odds:
            clauses = [c for _, own in SENSES[word] for c in own if c != left_out]
            values = np.zeros((1 + SHUFFLES, self._size))
            for j in range(1 + SHUFFLES):
                both = [sum((self._counts[word, c, where, j, s] for c in clauses), Counter()) for s in (0, 1)]
                n = [c.pop("all", 0) for c in both]
                for token in both[0].keys() | both[1].keys():
                    # Drawn towards the share in both senses by one sentence, so that a rare token says little.
                    mean = sum(c[token] for c in both) / sum(n)
                    zero, one = ((c[token] + mean) / (all_ + 1) for c, all_ in zip(both, n, strict=True))
                    values[j, token] = np.log(one / zero)
            self._odds[key] = values
        return self._odds[key]

    def same_prefix(self, ids: list[int]) -> np.ndarray:
        """Rows whose sentence begins with exactly these tokens (and ends its context with them)."""
        n = len(ids)
        if n not in self.by_length:
            groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for row in np.flatnonzero(self.table["position"] == n - 1):
                groups[tuple(self.ids[self.table["sentence"][row]][:n])].append(int(row))
            self.by_length[n] = groups
        return np.array(self.by_length[n].get(tuple(ids), []), np.int64)

    def same_clause(self, word: str, clause: str) -> np.ndarray:
        return np.flatnonzero((self.word[:-1] == self.number[word]) & (self.clause[:-1] == clause))


def table(data: xr.Dataset) -> str:
    """The reading as a table in Markdown."""
    head = "| | " + " | ".join(f"layer {x}" for x in data["layer"].values) + " | chance |"
    rows = [head, "|---" * (len(data["layer"]) + 2) + "|"]
    for measure in data["measure"].values:
        for lens in data["lens"].values:
            own = data.sel(measure=measure, lens=lens)
            cells = [
                f"{r:.2f} [{a:.2f}, {b:.2f}]"
                for r, a, b in zip(own["rate"].values, own["rate_low"].values, own["rate_high"].values, strict=True)
            ]
            chance = own["rate_chance"].values
            rows.append(f"| {measure}: {lens} | " + " | ".join(cells) + f" | {chance.mean():.2f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", action="store_true", help="write the numbers into the organism's card")
    given = parser.parse_args()
    torch.manual_seed(0)
    data = senses().data
    print(table(data))
    if given.card:
        from workbench.organisms import folder
        from workbench.organisms.story.recipe import write_card

        home = folder("story").parent
        card = json.loads((home / "card.json").read_text())
        numbers = {
            name: [[[round(float(x), 3) for x in lens] for lens in measure] for measure in data[name].values]
            for name in ("rate", "rate_low", "rate_high", "rate_chance")
        }
        card["lenses"] = {
            "measure": list(MEASURES), "lens": list(LENSES), "layer": data["layer"].values.tolist(), **numbers,
            **{k: int(data.attrs[k]) for k in ("occurrences", "stories", "clauses", "contexts", "corpus")},
            "table": table(data),
        }  # fmt: skip
        write_card(home, card)


if __name__ == "__main__":
    main()
