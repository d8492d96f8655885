"""Atomic writes: a whole file or the one that was there, and no crumbs."""

import pytest

from workbench.errors import ReadingError
from workbench.files import atomic_write, checksums


@pytest.mark.parametrize("content", ["é\n", "é\n".encode(), lambda name: open(name, "wb").write("é\n".encode())])
def test_text_bytes_and_functions_are_written_alike(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text("before")
    atomic_write(path, content)
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def broken(name):
        open(name, "w").write("half")
        raise OSError("No space left on device")

    with pytest.raises(ReadingError, match="No space left"):
        atomic_write(path, broken)
    with pytest.raises(ReadingError, match="cannot be written"):
        atomic_write(tmp_path / "nowhere" / "a.txt", "text")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_checksum_for_each_block(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"a" * 5 + b"b")
    first = checksums(path, 3)
    path.write_bytes(b"a" * 6)
    assert len(first) == 2 and first[0] == checksums(path, 3)[0] and first[1] != checksums(path, 3)[1]
