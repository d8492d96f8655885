"""A folder of parts: killed, interrupted, damaged, contended, full; it ends as one that was written without a break."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from storing import HEAD, KIND, PARTS, content, files, part, work

from workbench import store
from workbench.errors import InputError, ReadingError
from workbench.store import BLOCK, Folder, Kind

STORING = Path(__file__).with_name("storing.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What work without a break leaves."""
    path = tmp_path_factory.mktemp("whole") / "x"
    work(path)
    return files(path)


def begun(path, parts=5):
    with Folder.create_or_resume(path, HEAD, KIND) as folder:
        for i in range(parts):
            folder.write(part(i), lambda file, i=i: Path(file).write_bytes(content(i)))
    return path


def resume(path, head=HEAD, **kind):
    return Folder.create_or_resume(path, head, KIND._replace(**kind))


def opened(path, partial=False, **kind):
    return Folder.open(path, KIND._replace(**kind), partial=partial)


def started(path, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(STORING.parents[2])}
    return subprocess.Popen(
        [sys.executable, STORING, path, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip


def stopped(path, how, chance):
    """Start work, stop it at a random moment of it, and say what it told."""
    process = started(path, 0.004)
    assert process.stdout.readline() == "at work\n"
    time.sleep(chance.uniform(0, 0.06))
    process.send_signal(how)
    return process.communicate(timeout=60)[1], process.returncode


def test_the_folder_is_as_its_page_says(tmp_path, whole):
    assert set(whole) == {"manifest.json", *map(part, range(PARTS))}
    manifest = json.loads(whole["manifest.json"])
    assert manifest["format"] == KIND.format and manifest["version"] == 1 and manifest["state"] == "sealed"
    assert manifest["head"] == HEAD and manifest["extra"] == {"parts": PARTS}
    folder = resume(tmp_path / "x")
    folder.write("big", lambda file: Path(file).write_bytes(b"a" * BLOCK + b"123456789"))
    writer, line = map(json.loads, filter(None, (tmp_path / "x" / "journal.jsonl").read_text().split("\n")))
    # cbf43926 is the check value of CRC-32 in its definition.
    assert line["bytes"] == BLOCK + 9 and line["block"] == BLOCK and line["crc32"][8:] == "cbf43926"
    assert writer["writer"].startswith(f"process {os.getpid()} on ")
    assert not folder.sealed and list(folder.done) == ["big"]
    folder.seal()
    assert folder.sealed and opened(tmp_path / "x").path("big").stat().st_size == BLOCK + 9


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_twenty_times_at_random_moments(tmp_path, whole, how):
    chance, path, came = random.Random(int(how)), tmp_path / "x", []
    for _ in range(20 if how == signal.SIGKILL else 8):
        said, code = stopped(path, how, chance)
        assert code in (-how, 0), said
        if (path / "manifest.json").exists():
            came.append(len(opened(path, partial=True).done))
    assert came == sorted(came) and came[-1] > 0
    assert work(path).sealed
    assert files(path) == whole


def test_killed_at_every_change_of_the_disk(tmp_path):
    process = started(tmp_path, "--everywhere")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert all(int(deaths) > 30 for deaths in out.split())


def test_finished_parts_are_not_written_again(tmp_path):
    begun(tmp_path / "x")
    before = (tmp_path / "x" / part(2)).stat().st_mtime_ns
    work(tmp_path / "x")
    assert (tmp_path / "x" / part(2)).stat().st_mtime_ns == before


@pytest.mark.parametrize("cut", [2, 7, 60])
def test_a_torn_line_of_the_journal_is_none(tmp_path, whole, cut):
    journal = begun(tmp_path / "x") / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    with resume(tmp_path / "x") as folder:
        assert sorted(folder.done) == [part(i) for i in range(4)]
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


@pytest.mark.parametrize("line", [b"\0" * 40, b"[1]", b'{"name": "../passwd", "bytes": 1}', b'{"name": 3}', b"\xff"])
def test_a_damaged_line_of_the_journal_is_none(tmp_path, whole, line):
    journal = begun(tmp_path / "x") / "journal.jsonl"
    lines = [line for line in journal.read_bytes().split(b"\n") if line]
    journal.write_bytes(b"\n".join([*lines[:3], line, *lines[4:], b""]))
    with resume(tmp_path / "x") as folder:
        assert sorted(folder.done) == [part(i) for i in (0, 1, 3, 4)]
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "one bit": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_part_of_an_open_folder_is_written_again(tmp_path, whole, damage):
    damage(begun(tmp_path / "x") / part(3))
    assert part(3) not in opened(tmp_path / "x", partial=True).done
    with resume(tmp_path / "x") as folder:
        assert sorted(folder.done) == [part(i) for i in (0, 1, 2, 4)]
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_part_of_a_sealed_folder_is_an_error(tmp_path, damage):
    work(tmp_path / "x")
    late = opened(tmp_path / "x")
    damage(tmp_path / "x" / part(3))
    for use in (
        lambda: opened(tmp_path / "x").path(part(3)), lambda: opened(tmp_path / "x").verify(),
        lambda: resume(tmp_path / "x").verify(), lambda: late.path(part(3)),
    ):  # fmt: skip
        with pytest.raises(ReadingError, match=part(3)):
            use()
    assert late.path(part(4)).read_bytes() == content(4)


def test_a_part_that_vanishes_before_the_seal_is_an_error(tmp_path):
    begun(tmp_path / "x")
    with resume(tmp_path / "x") as folder:
        (tmp_path / "x" / part(1)).unlink()
        with pytest.raises(ReadingError, match=part(1)):
            folder.seal()
        assert not folder.sealed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, 'model there is "abc", and here "other"'),
        ({"settings": {"seed": 4, "layers": [1, 2]}}, "settings.seed there is 3, and here 4"),
        ({"settings": {"seed": 3, "layers": [1, 5]}}, r"settings.layers there is \[1, 2\], and here \[1, 5\]"),
        ({"settings": {"seed": 3}}, r"settings.layers there is \[1, 2\], and here absent"),
        ({"text": "x" * 500}, r"text there is absent, and here \"x{59}\.\.\."),
    ],
)
@pytest.mark.parametrize("fill", [begun, work])
def test_other_work_is_refused(tmp_path, change, said, fill):
    fill(tmp_path / "x")
    before = files(tmp_path / "x")
    with pytest.raises(InputError, match=said):
        resume(tmp_path / "x", {**HEAD, **change})
    assert files(tmp_path / "x") == before


def test_the_same_head_in_other_words_is_the_same(tmp_path):
    begun(tmp_path / "x")
    resume(tmp_path / "x", {"settings": {"layers": (1, 2), "seed": 3}, "model": "abc"}).close()
    with pytest.raises(InputError, match="JSON"):
        resume(tmp_path / "x", {"model": {1, 2}})
    with pytest.raises(InputError, match="JSON"):
        resume(tmp_path / "y", {"share": float("nan")})
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("fill", [begun, work])
def test_versions_and_formats(tmp_path, fill):
    with resume(tmp_path / "new", version=2) as folder:
        folder.seal()
    fill(tmp_path / "x")
    for call in (resume, opened):
        with pytest.raises(ReadingError, match="has version 2 and this workbench knows up to 1: upgrade"):
            call(tmp_path / "new")
        with pytest.raises(ReadingError, match="not a 'another'"):
            call(tmp_path / "x", format="another")
    if fill is work:
        assert opened(tmp_path / "x", version=2).version == 1
        assert resume(tmp_path / "x", version=2).version == 1
    else:
        with pytest.raises(InputError, match="begun in version 1"):
            resume(tmp_path / "x", version=2)


def test_a_damaged_manifest_is_an_error(tmp_path):
    work(tmp_path / "x")
    file = tmp_path / "x" / "manifest.json"
    text = file.read_text()
    changed = (text.replace('"seed": 3', '"seed": 4'), text.replace(part(3), "../" + part(3)))
    for wrong in (text[:-20], *changed, "[]", "{}"):
        file.write_text(wrong)
        for call in (resume, opened):
            with pytest.raises(ReadingError, match="manifest.json"):
                call(tmp_path / "x")


def test_an_unfinished_folder_opens_in_part_only(tmp_path):
    begun(tmp_path / "x")
    with pytest.raises(ReadingError, match="not finished: 5 parts"):
        opened(tmp_path / "x")
    folder = opened(tmp_path / "x", partial=True)
    assert len(folder.done) == 5 and folder.path(part(1)).read_bytes() == content(1)
    with pytest.raises(InputError, match="not open for writing"):
        folder.write("more", lambda file: None)
    with pytest.raises(InputError, match="no part 'more'"):
        folder.path("more")
    with pytest.raises(ReadingError, match="There is no"):
        opened(tmp_path / "nothing")


def test_one_writer_at_a_time(tmp_path, whole):
    first = resume(tmp_path / "x")
    with pytest.raises(ReadingError, match=rf"process {os.getpid()} on .*\(this one"):
        resume(tmp_path / "x")
    assert opened(tmp_path / "x", partial=True).done == set()  # readers need no lock
    other = started(tmp_path / "x")
    said = other.communicate(timeout=60)[1]
    assert other.returncode == 1 and f"is being written by process {os.getpid()} on " in said
    first.close()
    with pytest.raises(InputError, match="not open for writing"):
        first.write("late", lambda file: None)
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


def test_a_killed_writer_leaves_no_lock(tmp_path, whole):
    process = started(tmp_path / "x", 5)
    assert process.stdout.readline() == "at work\n"
    while not (tmp_path / "x" / "manifest.json").exists():
        time.sleep(0.005)
    with pytest.raises(ReadingError, match=f"by process {process.pid} on "):
        resume(tmp_path / "x")
    process.kill()
    process.communicate(timeout=60)
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(tmp_path, whole, monkeypatch, call):
    """Fails at each call in turn; the same Folder goes on when there is room again, or another one does."""
    real, left = getattr(os, call), [0]

    def full(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(os, call, full)
    for number in range(1, 12):
        path, left[0] = tmp_path / f"x{number}", number
        try:
            folder = resume(path)
        except ReadingError as error:
            assert "No space left" in str(error)
            folder = resume(path)
        with folder:
            for i in range(3):
                try:
                    folder.write(part(i), lambda file, i=i: Path(file).write_bytes(content(i)))
                except ReadingError as error:
                    assert "No space left" in str(error) and part(i) not in folder.done
                    if number % 2:
                        folder.write(part(i), lambda file, i=i: Path(file).write_bytes(content(i)))
        left[0] = 0
        work(path)
        assert files(path) == whole


def test_a_full_disk_in_the_middle_of_a_line(tmp_path, whole, monkeypatch):
    begun(tmp_path / "x", 2)
    with resume(tmp_path / "x") as folder:
        with pytest.raises(ReadingError, match="No space left"), monkeypatch.context() as patch:

            def torn(file, line):
                file.write(b"\n" + json.dumps(line).encode()[:-9])
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(store, "_append", torn)
            folder.write(part(2), lambda file: Path(file).write_bytes(content(2)))
        assert part(2) not in folder.done
        folder.write(part(2), lambda file: Path(file).write_bytes(content(2)))
    with resume(tmp_path / "x") as folder:
        assert len(folder.done) == 3
    work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """As on a medium that is read-only; root may write into a folder without permission, so the calls refuse."""
    begun(tmp_path / "open"), work(tmp_path / "sealed")
    (tmp_path / "sealed" / "journal.jsonl").write_text('\n{"writer": "process 1 on another"}\n')  # a killed writer's

    def refuses(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    def reads(file, mode="r", *args, **options):
        return refuses() if set(mode) & set("wa+") else real(file, mode, *args, **options)

    real = open
    monkeypatch.setattr("builtins.open", reads)
    for name in ("mkdir", "open", "unlink", "replace"):
        monkeypatch.setattr(os, name, refuses)
    for path in ("open", "new"):
        with pytest.raises(ReadingError, match="cannot be written: .*Read-only"):
            resume(tmp_path / path)
    folder = resume(tmp_path / "sealed")
    assert folder.sealed and len(folder.done) == PARTS and folder.path(part(0))
    assert len(opened(tmp_path / "open", partial=True).done) == 5


def test_sealing_twice(tmp_path, whole):
    folder = work(tmp_path / "x")
    folder.seal({"parts": PARTS})
    again = resume(tmp_path / "x")
    again.seal({"parts": PARTS})
    assert again.extra == {"parts": PARTS} and files(tmp_path / "x") == whole
    for call in (lambda: again.seal({"parts": 1}), lambda: again.write("more", lambda file: None)):
        with pytest.raises(InputError, match="is finished"):
            call()


def test_what_killed_work_left_is_removed_and_other_files_stay(tmp_path):
    path = begun(tmp_path / "x")
    leftover = [f".{part(7)}.ab_12cd9.bin", ".manifest.json.k3k3k3k3.json"]
    other = [".DS_Store", "notes.txt", ".gitignore"]
    for name in leftover + other:
        (path / name).write_text("x")
    (path / part(9)).write_bytes(b"half")  # its entry came into the journal before the rename of another content
    with (path / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"name": part(9), "bytes": 9, "block": BLOCK, "crc32": "00000000"}) + "\n")
    with resume(path) as folder:
        assert not set(leftover) & set(files(path))
        (path / leftover[0]).write_text("of a call that was interrupted")
        folder.seal()
    assert set(files(path)) == {"manifest.json", *other, *map(part, range(5))}


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        resume(tmp_path)
    assert set(files(tmp_path)) == {"thesis.tex"}
    with pytest.raises(ReadingError, match="cannot be written"):
        resume(tmp_path / "thesis.tex")


def test_a_part_can_be_replaced_and_is_then_one_or_the_other(tmp_path):
    path = begun(tmp_path / "x")
    old = shutil.copy(path / part(1), tmp_path / "old")
    with resume(path) as folder:
        folder.write(part(1), lambda file: Path(file).write_text("new"))
        assert folder.path(part(1)).read_text() == "new"
    assert part(1) in opened(path, partial=True).done
    shutil.copy(old, path / part(1))  # as if killed between the entry and the rename
    with resume(path) as folder:
        assert part(1) in folder.done
        folder.seal()
    opened(path).verify()


def test_an_interrupted_part_leaves_nothing(tmp_path):
    with resume(tmp_path / "x") as folder:

        def interrupted(file):
            Path(file).write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            folder.write("a", interrupted)
        assert not folder.done
    assert set(files(tmp_path / "x")) == {"manifest.json", "journal.jsonl"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/", "/a", "a/.b", "a/b/c", "../a", "a\\b", ".a", "é", "a b", "a\n", "-a", "x" * 201,
     "manifest.json", "journal.jsonl"],
)  # fmt: skip
def test_names_that_are_refused(tmp_path, name):
    with resume(tmp_path / "x") as folder, pytest.raises(InputError, match="cannot be called"):
        folder.write(name, lambda file: Path(file).write_text("x"))
    assert set(files(tmp_path / "x")) == {"manifest.json", "journal.jsonl"}


def test_without_locks_it_warns(tmp_path, monkeypatch, whole):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="without locks"):
        work(tmp_path / "x")
    assert files(tmp_path / "x") == whole


def replaced(path, parts, head, die=None):
    """A sealed folder made into one of other parts, or as far as ``die`` lets it come."""
    with Folder.revise(path, KIND) as folder:
        for i in parts:
            if f"new/{part(i)}" not in folder.done:
                folder.write(f"new/{part(i)}", lambda file, i=i: Path(file).write_bytes(content(i)))
                if i == die:
                    raise KeyboardInterrupt
        folder.seal({"parts": len(parts)}, parts=[f"new/{part(i)}" for i in parts], head=head)
    return folder


def deep(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_revision_counts_when_it_is_sealed_and_equals_new_work(tmp_path):
    other = {**HEAD, "model": "other"}
    with resume(tmp_path / "fresh", other) as folder:
        for i in (3, 4, 5):
            folder.write(f"new/{part(i)}", lambda file, i=i: Path(file).write_bytes(content(i)))
        folder.seal({"parts": 3})
    work(tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        replaced(tmp_path / "x", (3, 4, 5), other, die=4)
    before = opened(tmp_path / "x")
    before.verify()
    assert before.head == HEAD and len(before.done) == PARTS and (tmp_path / "x" / "new" / part(4)).exists()
    with Folder.revise(tmp_path / "x", KIND) as folder:
        assert f"new/{part(4)}" in folder.done
        with pytest.raises(InputError, match="is sealed"):
            folder.write(part(1), lambda file: None)
        with pytest.raises(ReadingError, match="this one: close"):
            Folder.revise(tmp_path / "x", KIND)
    made = replaced(tmp_path / "x", (3, 4, 5), other)
    assert made.sealed and made.head == other and opened(tmp_path / "x").extra == {"parts": 3}
    assert deep(tmp_path / "x") == deep(tmp_path / "fresh")
    with pytest.raises(ReadingError, match="There is no"):
        Folder.revise(tmp_path / "nothing", KIND)
    assert not (tmp_path / "nothing").exists()


def test_what_a_killed_revision_left_goes_with_the_next_call(tmp_path, monkeypatch):
    other = {**HEAD, "model": "other"}
    work(tmp_path / "x")
    monkeypatch.setattr(Folder, "_tidy", Folder.close)  # killed behind the rename of the manifest
    replaced(tmp_path / "x", (3,), other)
    monkeypatch.undo()
    assert (tmp_path / "x" / part(0)).exists()
    assert resume(tmp_path / "x", other).done == {f"new/{part(3)}"}
    assert set(deep(tmp_path / "x")) == {"manifest.json", f"new/{part(3)}"}


def test_a_file_filled_in_place_is_a_part_once_it_is_kept(tmp_path, whole):
    with resume(tmp_path / "x") as folder:
        folder.place("here/rows").write_bytes(b"half")
    with resume(tmp_path / "x") as folder:
        assert not folder.done and folder.place("here/rows").read_bytes() == b"half"
        folder.place("here/rows").write_bytes(b"half and half")
        folder.keep("here/rows")
        folder.place("never").write_bytes(b"x")
    with resume(tmp_path / "x") as folder:
        assert folder.done == {"here/rows"}
        folder.seal()
    assert set(deep(tmp_path / "x")) == {"manifest.json", "here/rows"}


def test_a_part_is_checked_block_by_block_as_it_is_read(tmp_path):
    data = bytes(range(256)) * (3 * BLOCK // 256) + b"end"
    with resume(tmp_path / "x") as folder:
        folder.write("big", lambda file: Path(file).write_bytes(data), about={"seconds": 2})
        folder.write("empty", lambda file: Path(file).write_bytes(b""))
        folder.seal()
    with (tmp_path / "x" / "big").open("r+b") as file:
        file.seek(2 * BLOCK + 5)
        file.write(b"\0")
    part = opened(tmp_path / "x").part("big")
    assert part.entry["about"] == {"seconds": 2}
    assert part.read(5, 2 * BLOCK).tobytes() == data[5 : 2 * BLOCK]
    assert part.read(3 * BLOCK, 3 * BLOCK + 3).tobytes() == b"end"
    for use in (lambda: part.read(BLOCK, 2 * BLOCK + 1), part.whole, part.verify):
        with pytest.raises(ReadingError, match="block 2 does not have its checksum"):
            use()
    assert opened(tmp_path / "x").part("empty").whole() == b""


def test_a_folder_from_before_this_page_is_read_by_its_kind(tmp_path):
    def old(path):
        if not (path / "old.json").exists():
            return None
        said = json.loads((path / "old.json").read_text())
        entry = {"bytes": 1, "block": 1, "crc32": "8cdc1683"}
        return {"format": KIND.format, "version": 1, "state": said["state"], "head": HEAD, "files": {"a": entry}}

    kind = Kind(KIND.format, 2, old)
    for state in ("sealed", "open"):
        (tmp_path / state).mkdir()
        (tmp_path / state / "old.json").write_text(json.dumps({"state": state}))
        (tmp_path / state / "a").write_bytes(b"x")
    assert Folder.open(tmp_path / "sealed", kind).path("a").read_bytes() == b"x"
    assert Folder.create_or_resume(tmp_path / "sealed", HEAD, kind).done == {"a"}
    with pytest.raises(InputError, match="begun in version 1"):
        Folder.create_or_resume(tmp_path / "open", HEAD, kind)
    with pytest.raises(ReadingError, match="not finished"):
        Folder.open(tmp_path / "open", kind)
    with Folder.revise(tmp_path / "sealed", kind) as folder:
        folder.write("b", lambda file: Path(file).write_bytes(b"y"))
        folder.seal()
    again = Folder.open(tmp_path / "sealed", kind)
    assert again.version == 2 and again.done == {"a", "b"}
    assert Folder.create_or_resume(tmp_path / "new", HEAD, kind).version == 2


def test_now_and_then_written_and_parts_taken_out(tmp_path):
    folder = Folder.open(begun(tmp_path / "x"), KIND, partial=True)
    with folder.lock():
        folder.write("more", lambda file: Path(file).write_text("x"), about={"step": 1})
        with pytest.raises(store.Locked):
            resume(tmp_path / "x")
        folder.remove(part(0))
    with pytest.raises(InputError, match="not open for writing"):
        folder.remove("more")
    again = opened(tmp_path / "x", partial=True)
    assert list(again.done) == [*map(part, range(1, 5)), "more"] and again.part("more").entry["about"] == {"step": 1}
    assert not (tmp_path / "x" / part(0)).exists()
    with pytest.raises(InputError, match="is finished"), work(tmp_path / "y").lock() as folder:
        folder.remove(part(0))
