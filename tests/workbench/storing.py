"""Long work in a folder, to be killed while it runs: ``python storing.py PATH [seconds that a part takes]``.

``python storing.py PATH --everywhere`` kills it once at every call that changes the disk, and goes on each time.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

from workbench.store import Folder

FORMAT, HEAD, PARTS = "work of a test", {"model": "abc", "settings": {"seed": 3, "layers": [1, 2]}}, 24


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

    with Folder.create_or_resume(path, HEAD, format=FORMAT, version=1) as folder:
        for i in range(parts):
            if part(i) not in folder.done:
                folder.write(part(i), lambda file, i=i: write(file, i))
        folder.seal({"parts": parts})
    return folder


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


CHANGES = ("mkdir", "open", "fsync", "replace", "chmod", "unlink")


def dies_at(number: int, path: Path) -> bool:
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
        work(path, parts=3)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def everywhere(path: Path) -> int:
    """How many deaths there were; each is followed by one more, by work to the end, and by a comparison."""
    work(path / "whole", parts=3)
    whole = files(path / "whole")
    for number in itertools.count():
        own = path / f"killed-{number}"
        died = dies_at(number, own)
        dies_at(number // 2, own)
        work(own, parts=3)
        assert files(own) == whole, number
        if not died:
            return number
    raise AssertionError


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if sys.argv[2:] == ["--everywhere"]:
        print(everywhere(where))
    else:
        print("at work", flush=True)
        work(where, float(sys.argv[2]) if sys.argv[2:] else 0.0)
