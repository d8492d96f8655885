"""``workbench index``: what a user types, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import workbench
from lenses import ContextIndex
from workbench.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "some stories.txt"
    path.write_text("\n".join(sentences[:150]))
    return path


@pytest.fixture(scope="module")
def built(corpus: Path) -> Path:
    path = corpus.parent / "story.index"
    assert main(["index", "build", "organism:story", str(corpus), str(path), "--layers", "2,-2"]) == 0
    return path


def test_info_says_what_the_index_holds(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "info", str(built)]) == 0
    said = capsys.readouterr().out
    index = ContextIndex.open(built)
    for fact in (
        f"{len(index):,} in",
        "layers [2, 5]",
        "organism:story, width 128",
        "150 sentences",
        "approximate  none",
    ):
        assert fact in said
    assert index.manifest["model"]["fingerprint"] in said


def test_info_ends_as_it_should(built: Path) -> None:
    """Threads that still hold a table when Python ends would abort the process, every second time."""
    said = f"from workbench.cli import main; raise SystemExit(main(['index', 'info', {str(built)!r}]))"
    for _ in range(4):
        ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


def test_search_prints_neighbours_layer_by_layer(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "one two three"
    assert main(["index", "search", str(built), "organism:story", text, "--layers", "2,4", "--top-k", "2"]) == 0
    said = capsys.readouterr().out
    model, index = workbench.load("organism:story"), ContextIndex.open(built)
    from lenses import LatentLens

    data = workbench.read(model, text, LatentLens(index, [2, 4], 2), positions="last", progress=False).data
    for value in data.similarity.values.ravel():
        assert f"{value:.3f}" in said or f"{value:.2f}" in said
    assert "three" in said


def test_built_in_parts_added_to_and_merged(
    corpus: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = corpus.read_text().splitlines()
    for name, part in (("a", lines[:60]), ("b", lines[60:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(part))
        command = ["index", "build", "organism:story", str(tmp_path / f"{name}.txt"), str(tmp_path / name)]
        assert main([*command, "--layers", "2,-2"]) == 0
    assert main(["index", "merge", str(tmp_path / "both"), str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["index", "add", str(tmp_path / "a"), str(tmp_path / "b.txt")]) == 0
    whole = ContextIndex.open(built).manifest
    for path in (tmp_path / "both", tmp_path / "a"):
        assert ContextIndex.open(path).manifest["files"] == whole["files"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["index", "info", "{tmp}/none"], "There is no latent-workbench context index at"),
        (["index", "build", "organism:story", "{tmp}/none.txt", "{tmp}/x"], "There is no corpus at"),
        (["index", "search", "{built}", "organism:story", "one", "--calibration", "magic"], "'magic' is unknown"),
        (["index", "search", "{built}", "organism:story", "one", "--approximate"], "has no approximate index"),
        (["index", "import", "{tmp}", "{tmp}/y"], "holds caches of the layers [], not any"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    words: list[str], reason: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(tmp=tmp_path, built=built) for word in words]) == 1
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said


def test_read_takes_the_lens_with_its_index(built: Path, tmp_path: Path) -> None:
    command = [
        "read",
        "organism:story",
        "Mara lives in",
        "--lens",
        "latent",
        "--index",
        str(built),
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    data = workbench.open(tmp_path / "latent.nc").data
    assert (data.context.values >= 0).any() and "similarity_floor_random" in data
