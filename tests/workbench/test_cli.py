"""The command line, in process: what it prints, what it writes, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import saved, tiny

import workbench
from workbench.cli import main

WORDS = ["<pad>", "<s>", "</s>", "[b]", *(f"w{i}" for i in range(93))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a tokenizer of 97 words, one of which is markup to a terminal."""
    return saved(tmp_path_factory.mktemp("cli") / "tiny model", WORDS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model without a tokenizer."""
    path = tmp_path_factory.mktemp("cli") / "bare"
    tiny("gpt2").save_pretrained(path)
    return path


def rows(text: str) -> dict[int, list[str]]:
    """The first table's rows: number -> cells."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        head, *cells = (part.strip() for part in line.split("│"))
        if cells and head.isdigit():
            found.setdefault(int(head), cells)
    return found


def test_read_prints_what_the_model_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(folder), "w3 w7 w1", "w5"]) == 0
    table = rows(capsys.readouterr().out)
    assert sorted(table, reverse=True) == list(table) == [4, 3, 2, 1, 0]
    model = workbench.load(folder)
    for column, text in enumerate(["w3 w7 w1", "w5"]):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        chances = model.module(ids).logits[0, -1].softmax(-1).detach()
        token, chance = table[4][column].split()
        assert token == WORDS[int(chances.argmax())]
        assert float(chance) == pytest.approx(float(chances.max()), abs=0.006)


def test_read_puts_a_first_token(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(folder), "w3 w7", "--bos", "w5", "--out", str(tmp_path)]) == 0
    reading = workbench.open(tmp_path / "logit.nc")
    assert reading.data["input_token"].values[0].tolist() == ["w5", "w3", "w7"]
    assert main(["read", str(folder), "w3 w7", "--bos", "nothing like it"]) == 1
    assert "not one token" in capsys.readouterr().err


def test_read_writes_what_opens_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    chosen = ["--lens", "logit", "--lens", "embedding", "--lens", "attribution", "--lens", "logit"]
    assert main(["read", str(folder), "w3 [b] w1", *chosen, "--layers", "-1,0", "--top-k", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"index.html", "logit.nc", "embedding.nc", "attribution.nc"}
    assert all(str(path) in said for path in out.iterdir())
    assert "[b]" in said  # a token, not markup
    lens = workbench.open(out / "logit.nc").data
    assert sorted(lens["layer"].values.tolist()) == [0, 4] and lens.sizes["rank"] == 3
    parts = workbench.open(out / "attribution.nc").data
    np.testing.assert_allclose(parts["contribution"].sum("component"), parts["logit"], rtol=1e-3, atol=1e-3)
    strongest = abs(parts["contribution"] - parts["contribution_mean"])[0, -1]
    assert str(strongest["component"].values[int(strongest.values.argmax())]) in said


def test_attribution_alone_makes_no_empty_page(folder: Path, tmp_path: Path) -> None:
    assert main(["read", str(folder), "w3 w4", "--lens", "attribution", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["attribution.nc"]


def test_targets_come_with_their_null(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--targets", "w9", "--targets", "[b]", "--out", str(tmp_path)]
    assert main(["read", str(folder), "w3 w4 w5", *wanted]) == 0
    said = capsys.readouterr().out
    assert "rank of w9" in said and "rank of [b]" in said
    last = workbench.open(tmp_path / "logit.nc").data.isel(prompt=0, position=-1, layer=-1, target=0)
    rank, logprob, null = (last[f"target_{name}"].item() for name in ("rank", "logprob", "logprob_null"))
    assert f"{rank} {logprob:.2f} ({null:.2f})" in said


def test_many_prompts_stay_legible(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(folder), *(f"w{i} w{i + 1}" for i in range(12)), "--layers", "4"]) == 0
    said = capsys.readouterr().out
    assert all(f"w{i} w{i + 1}" in said for i in range(12))
    assert max(map(len, said.splitlines())) <= 110


def test_ids_where_there_is_no_text(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(bare), "hello"]) == 1
    assert "no tokenizer" in capsys.readouterr().err
    assert main(["read", str(bare), "5,9,13", "7 8", "--ids", "--out", str(tmp_path)]) == 0
    ids = workbench.open(tmp_path / "logit.nc").data["input_id"].values
    assert ids[0].tolist() == [5, 9, 13] and ids[1, :2].tolist() == [7, 8]


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    said = capsys.readouterr().out
    for fact in ("LlamaForCausalLM", "model.layers: 4; width 32; vocabulary 97; context 64", "logit, ", "lm_head"):
        assert fact in said
    assert workbench.load(folder).fingerprint in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["read", "{folder}", ""], "empty"),
        (["read", "{folder}", "w1", "--lens", "nonsense"], "There is no lens 'nonsense'. Installed: attribution"),
        (["read", "{folder}", "w1", "--layers", "99"], "layer 99 does not exist"),
        (["read", "{folder}", "w1", "--top-k", "0"], "top_k=0"),
        (["read", "{folder}", "w1", "--targets", "w1 w2"], "is 2 tokens"),
        (["read", "{folder}", "w1", "--device", "nonsense"], "The device 'nonsense' cannot be used here"),
        (["read", "{folder}", "w1", "--dtype", "nonsense"], "dtype 'nonsense'"),
        (["read", "{folder}", "w1", "--ids"], "not a list of token ids"),
        (["read", "{folder}", "w1", "--out", "{folder}/config.json/x"], "cannot be made"),
        (["read", "{folder}/none", "w1"], "There is no folder"),
        (["info", "{folder}/.."], "no config.json"),
        (["info", "organism:nonsense"], "no organism 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said_in_one_paragraph(
    folder: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(folder=folder) for word in words]) == 1
    said = capsys.readouterr()
    assert reason in said.err.split("workbench: ", 1)[1]  # before it, transformers' own progress bar
    assert "Traceback" not in said.err and not said.out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out
    for words, said in ((["--version"], "workbench 0"), (["read", "--help"], "usage: workbench read")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0 and capsys.readouterr().out.startswith(said)
    with pytest.raises(SystemExit) as stop:
        main(["read", "x", "y", "--layers", "one"])
    assert stop.value.code == 2 and "whole numbers such as 0,6,-1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stories260K", "induction-gpt2", "rwkv4-tiny"])
def test_info_on_models_trained_by_others(shared: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(shared / "models" / name)]) == 0
    said = capsys.readouterr().out
    assert "readers      logit" in said
    assert ("not attribution" in said) == (name == "rwkv4-tiny")  # its blocks are no two additions


def test_a_story_model_is_sure_of_the_comma(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(shared / "models" / "stories260K"), "Once upon a time"]) == 0
    token, chance = rows(capsys.readouterr().out)[5][0].split()
    assert token == "," and float(chance) > 0.9
