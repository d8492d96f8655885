"""Files that are complete or not there: atomic writes, folders that survive a power cut, checksums of blocks."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import ReadingError


def atomic_write(path: Path, content: str | bytes | Callable[[str], Any]) -> None:
    """Write a file beside ``path`` and rename it: readers never see half a file.

    Parameters
    ----------
    content
        Text (as UTF-8), bytes, or a function that is called with the temporary name and writes there.

    Raises
    ------
    ReadingError
        When it cannot be written (a full disk, no such folder).  Nothing is left behind.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise ReadingError(f"{path} cannot be written: {error}. The result is still in memory.") from error
    try:
        if callable(content):
            content(temporary)
        else:
            Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ReadingError(
            f"{path} could not be written: {error}. Nothing was left under that name and the result is still in "
            "memory: make room or choose another place, and save again."
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: what was renamed into it is there after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksums(path: Path, block: int) -> list[int]:
    """CRC-32 of each block of a file."""
    with path.open("rb", buffering=0) as file:
        found = []
        while part := file.read(block):
            while len(part) < block and (more := file.read(block - len(part))):
                part += more
            found.append(zlib.crc32(part))
        return found
