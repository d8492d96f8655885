"""Long work in a folder, to be killed while it runs: ``python storing.py PATH [seconds that a part takes]``.

``python storing.py PATH --everywhere`` kills it once at every call that changes the disk, and goes on each time.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workbench.errors import ReadingError
from workbench.store import Folder, Kind

OTHER = {"model": "other"}
KIND, HEAD, PARTS = Kind("work of a test", 1), {"model": "abc", "settings": {"seed": 3, "layers": [1, 2]}}, 24


def content(i: int) -> bytes:
    return bytes((i * 31 + k * k) % 251 for k in range(2000 + 100 * i))


def part(i: int) -> str:
    return f"part-{i:03d}.bin"


def work(path: Path, seconds: float = 0.0, parts: int = PARTS) -> Folder:
    def write(file: str, i: int) -> None:
        with open(file, "wb") as out:
            for piece in (content(i)[:900], content(i)[900:]):
                out.write(piece)
                out.flush()
                time.sleep(seconds / 2)

    with Folder.create_or_resume(path, HEAD, KIND) as folder:
        for i in range(parts):
            if part(i) not in folder.done:
                folder.write(part(i), lambda file, i=i: write(file, i))
        folder.seal({"parts": parts})
    return folder


def revised(path: Path) -> None:
    """Work, made into other work: one part as before, one filled in place, one that is only there meanwhile."""
    try:
        head = Folder.open(path / "x", KIND).head
    except ReadingError:  # there is none yet, or not all of it
        head = work(path / "x", parts=2).head
    if head == OTHER:
        Folder.create_or_resume(path / "x", OTHER, KIND)
        return
    with Folder.revise(path / "x", KIND) as folder:
        if "new/progress" not in folder.done:
            folder.place("new/rows").write_bytes(content(3))
            folder.write("new/progress", lambda file: Path(file).write_text("all"))
        folder.keep("new/rows")
        folder.write("new/" + part(4), lambda file: Path(file).write_bytes(content(4)))
        folder.seal({"parts": 3}, parts=[part(1), "new/rows", "new/" + part(4)], head=OTHER)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


CHANGES = ("mkdir", "open", "fsync", "replace", "chmod", "unlink")


def dies_at(number: int, path: Path, done: Callable[[Path], object]) -> bool:
    """Whether work that dies before its ``number``-th change of the disk (counted from 0) has died."""
    child = os.fork()
    if child == 0:
        calls = itertools.count()

        def counted(function):
            def call(*args, **options):
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return call

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        done(path)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def everywhere(path: Path, done: Callable[[Path], object]) -> int:
    """How many deaths there were; each is followed by one more, by work to the end, and by a comparison."""
    for name in ("whole", *map(str, range(1000))):
        (path / name).mkdir(parents=True)
        if name != "whole":
            died = dies_at(int(name), path / name, done)
            dies_at(int(name) // 2, path / name, done)
        done(path / name)
        if name != "whole":
            assert files(path / name) == files(path / "whole"), name
            if not died:
                return int(name)
    raise AssertionError


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if sys.argv[2:] == ["--everywhere"]:
        print(everywhere(where / "work", lambda path: work(path / "x", parts=3)))
        print(everywhere(where / "revised", revised))
    else:
        print("at work", flush=True)
        work(where, float(sys.argv[2]) if sys.argv[2:] else 0.0)
