"""The choice of contexts against one written out in full, under every order, batch size and hash."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lenses.latent import corpus, selection
from lenses.latent.selection import Selection, sentence_hash


def by_hand(texts, ids, k, seed, first):
    """{(sentence hash, position, token, text)}: every context once, then the k smallest of each token."""
    best, shown = {}, {}
    for text, sentence in zip(texts, ids, strict=True):
        name = sentence_hash(np.array(sentence), str(seed).encode())
        shown[name] = min(text, shown.get(name, text))
        for p in range(first, len(sentence)):
            context = tuple(sentence[: p + 1])
            best[context] = min((name, p), best.get(context, (name, p)))
    of_token: dict[int, list] = {}
    for context, place in best.items():
        of_token.setdefault(context[-1], []).append(place)
    return {(h, p, token, shown[h]) for token, places in of_token.items() for h, p in sorted(places)[:k]}


def ours(texts, ids, k, seed, first, chunk):
    chosen = Selection(40, k, seed, first_position=first)
    for at in range(0, len(ids), chunk):
        chosen.feed(texts[at : at + chunk], ids[at : at + chunk])
    kept = chosen.finish()
    return chosen, {
        (kept.hashes[s], p, t, kept.texts[s])
        for s, p, t in zip(kept.sentence.tolist(), kept.position.tolist(), kept.token_id.tolist(), strict=True)
    }


@pytest.mark.parametrize("collide", [False, True], ids=["hash", "every hash collides"])
@pytest.mark.parametrize("trial", range(12))
def test_choice_is_the_bottom_k_of_distinct_contexts(monkeypatch, trial, collide):
    draw = random.Random(trial)
    own = selection._prefix_keys
    if collide:
        monkeypatch.setattr(
            selection, "_prefix_keys", lambda t, p, s, n: np.where(p < 2, own(t, p, s, n), np.uint64(7))
        )
    monkeypatch.setattr(selection, "BUFFER", draw.choice([10, 100, 10000]))
    top = 40 if trial % 2 else 8  # few token ids: many equal prefixes and many equal sentences
    ids = [[1] + [draw.randrange(2, top) for _ in range(draw.randrange(9))] for _ in range(300)]
    texts = [f"{draw.randrange(3)} {sentence}" for sentence in ids]
    k, first = draw.choice([1, 2, 5, 50]), draw.choice([0, 0, 2])
    chosen, found = ours(texts, ids, k, trial, first, draw.choice([1, 7, 300]))
    assert found == by_hand(texts, ids, k, trial, first)
    counted = np.bincount([t for sentence in ids for t in sentence], minlength=40)
    np.testing.assert_array_equal(chosen.occurrences, counted)


def test_order_batches_and_shards_do_not_matter(monkeypatch):
    monkeypatch.setattr(selection, "BUFFER", 200)
    draw = random.Random(5)
    ids = [[1] + [draw.randrange(2, 30) for _ in range(draw.randrange(12))] for _ in range(500)]
    texts = [str(sentence) for sentence in ids]
    whole = ours(texts, ids, 4, 0, 0, 64)[1]
    order = draw.sample(range(500), 500)
    assert ours([texts[i] for i in order], [ids[i] for i in order], 4, 0, 0, 7)[1] == whole
    both = Selection(40, 4, 0)
    for shard in (order[:130], order[130:]):
        part = Selection(40, 4, 0)
        part.feed([texts[i] for i in shard], [ids[i] for i in shard])
        kept = part.finish()
        both.feed(kept.texts, [kept.tokens(i) for i in range(len(kept.texts))])
    kept = both.finish()
    assert {(kept.hashes[s], p) for s, p in zip(kept.sentence, kept.position, strict=True)} == {r[:2] for r in whole}
    assert ours(texts, ids, 4, 1, 0, 64)[1] != whole  # another seed, another choice


def test_sentences_of_every_kind_of_corpus(tmp_path):
    said = ["One sentence.", "Two, with a comma and é.", "Three"]
    (tmp_path / "a.txt").write_text("\n".join(["  One sentence. ", "", *said[1:]]), "utf-8")
    (tmp_path / "b.jsonl").write_text("".join(f'{{"id": 1, "caption": "{t}"}}\n' for t in said), "utf-8")
    (tmp_path / "c.csv").write_text("id,sentence\n" + "".join(f'1,"{t}"\n' for t in said), "utf-8")
    import gzip

    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"n": [1, 2, 3], "content": said}), tmp_path / "d.parquet")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress("\n".join(said).encode()))
    for name in ("a.txt", "b.jsonl", "c.csv", "d.parquet", "e.txt.gz"):
        assert list(corpus.sentences(tmp_path / name)) == said, name
    assert list(corpus.sentences(tmp_path / "b.jsonl", "caption")) == said
    assert len(list(corpus.sentences(tmp_path))) == 15
    assert list(corpus.sentences(t for t in said)) == said


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none.txt", "no corpus at"),
        (lambda p: (p / "x.pdf", (p / "x.pdf").write_text("x"))[0], "not of a kind"),
        (lambda p: (p / "x.csv", (p / "x.csv").write_text("id,b\n1,2\n"))[0], "it has: id, b"),
        (lambda p: (p / "x.jsonl", (p / "x.jsonl").write_text("{nonsense\n"))[0], "Line 1"),
        (lambda p: ["good", 3], "gave a int"),
        (lambda p: 7, "A corpus is a file"),
    ],
)
def test_a_corpus_that_cannot_be_read_says_why(tmp_path, make, says):
    with pytest.raises(workbench_error(), match=says):
        list(corpus.sentences(make(tmp_path)))


def workbench_error():
    from workbench.errors import InputError

    return InputError
