"""Text files in every encoding that says what it is; others refused with the line."""

import codecs
import csv
import gzip
import json

import pytest

from lenses.latent import corpus
from probes.superposition.problems import load_prosqa
from probes.values import items
from workbench.errors import InputError
from workbench.textfiles import table, text_lines, text_of

SAID = ["Ein Satz über Bäume.", "zwei", "日本語 🙂"]
WAYS = {
    "utf-8": "utf-8", "with a mark": "utf-8-sig", "utf-16": "utf-16",
    "utf-16-be": (codecs.BOM_UTF16_BE, "utf-16-be"), "utf-32": "utf-32",
    "utf-32-be": (codecs.BOM_UTF32_BE, "utf-32-be"),
}  # fmt: skip


def coded(text, way):
    how = WAYS[way]
    return text.encode(how) if isinstance(how, str) else how[0] + text.encode(how[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_corpus_is_read_by_its_mark(tmp_path, way, end):
    texts = {
        "a.txt": end.join([SAID[0], "", "  " + SAID[1] + " ", SAID[2], ""]),
        "b.jsonl": "".join(json.dumps({"text": s}, ensure_ascii=False) + end for s in SAID),
        "c.csv": f"text,n{end}" + "".join(f'"{s}",1{end}' for s in SAID),
        "d.tsv": f"text\tn{end}" + "".join(f"{s}\t1{end}" for s in SAID),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(coded(text, way))
        assert list(corpus.sentences(tmp_path / name)) == SAID, name
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(coded("\n".join(SAID), way)))
    assert list(corpus.sentences(tmp_path / "e.txt.gz")) == SAID


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.tsv"])
def test_another_encoding_is_refused_with_its_line(tmp_path, name):
    lines = ['"eins"', '"zwei"', '"für"'] if name == "a.jsonl" else ["text", "zwei", "für"]
    (tmp_path / name).write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(InputError, match="Line 3 of .* the byte 0xfc at character [12], which is no UTF-8.*latin-1"):
        list(corpus.sentences(tmp_path / name))


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "bare.txt").write_bytes("some words".encode("utf-16-le"))
    (tmp_path / "cut.txt").write_bytes(codecs.BOM_UTF16_LE + "some words".encode("utf-16-le")[:-1])
    (tmp_path / "short.txt.gz").write_bytes(gzip.compress(b"some words" * 999)[:-9])
    for name, says in (("bare.txt", "NUL"), ("cut.txt", "cannot be read"), ("short.txt.gz", "cannot be read"),
                       ("none.txt", "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            list(text_lines(tmp_path / name))
    (tmp_path / "one.txt").write_bytes(b"a\0b\nc\n")  # a NUL among words is a character like others
    assert list(text_lines(tmp_path / "one.txt")) == ["a\0b\n", "c\n"]


def test_half_a_surrogate_pair_in_a_corpus_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('"fine"\n"half \\ud83d"\n')
    for given in (tmp_path / "a.jsonl", ["fine", "half \ud83d"]):
        with pytest.raises(InputError, match="Sentence 2 of the corpus holds .* at character 5"):
            list(corpus.sentences(given))


def test_long_fields_are_read_and_the_limit_of_others_stays(tmp_path):
    long = "word " * 40_000  # csv stops at 131,072 characters by itself
    (tmp_path / "a.csv").write_text(f'n,text\n1,"{long}"\n2,short\n', "utf-8-sig")
    before = csv.field_size_limit()
    assert list(corpus.sentences(tmp_path / "a.csv")) == [long.strip(), "short"]
    names, rows = table(tmp_path / "a.csv")
    assert names == ["n", "text"] and [r["n"] for r in rows] == ["1", "2"]
    assert csv.field_size_limit() == before


def test_items_and_problems_are_read_alike(tmp_path):
    rows = "topic,text,polarity\nBäume,Ein Satz über Bäume.,1\n"
    problem = [{"edges": [[0, 1]], "root": 0, "target": 1, "neg_target": 2, "idx_to_symbol": ["ä", "b", "c"]}]
    for way in WAYS:
        (tmp_path / "i.csv").write_bytes(coded(rows, way))
        assert [(i.topic, i.text) for i in items.load_csv(tmp_path / "i.csv")] == [("Bäume", "Ein Satz über Bäume.")]
        (tmp_path / "p.json").write_bytes(coded(json.dumps(problem, ensure_ascii=False), way))
        assert load_prosqa(tmp_path / "p.json")[0].names == ("ä", "b", "c")
        assert text_of(tmp_path / "i.csv") == rows
    (tmp_path / "i.json").write_text('[{"a": "\\ud83d"}]')
    with pytest.raises(InputError, match="A text of item x holds .* one half of a surrogate pair"):
        items.Item("x", "topic", json.loads(text_of(tmp_path / "i.json"))[0]["a"])
    (tmp_path / "i.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(InputError, match="table of items.*Line 2"):
        items.load_csv(tmp_path / "i.csv")
