"""One resumable folder under all long work: what was finished before a kill is never done again, and never wrong.

    manifest.json   format, version: what kind of folder this is, and the version of that kind
                    head: what it is of (model, inputs, settings ...): the same work has the same head
                    state: "open" while parts are added, then "sealed"
                    files: name -> the entry of each part        extra: what is known at the end     (once sealed)
                    layout: version of this page                 crc32: of the manifest's other fields
    journal.jsonl   a line for each part, while the folder is open: its name and its entry
    NAME            the parts, as whoever writes them likes
    .lock           process id and host of the writer, while there is one

An entry is ``{"bytes": size, "block": bytes of a block, "crc32": checksums of its blocks, 8 hex digits each}``.

A part is written under a temporary name; then its entry goes into the journal; then it is renamed into place.  So every
part on disk has its entry, a part that is replaced has both, and a part counts where it is as one of its entries says.
A torn line of the journal is no entry.  Sealing puts the entries into the manifest, whose rename is the one moment at
which the folder becomes finished; what is left over goes after it.  Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
import zlib
from collections.abc import Callable, KeysView, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from workbench.errors import InputError, ReadingError
from workbench.files import atomic_write, checksums, fsync_folder

LAYOUT = 1
MANIFEST, JOURNAL, LOCK = "manifest.json", "journal.jsonl", ".lock"
BLOCK = 1 << 20
"""Bytes under one checksum."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,199}")
_TEMPORARY = re.compile(rf"\.{_NAME.pattern}\.[a-z0-9_]{{8}}(\.[^.]*)?")  # as atomic_write names them
_ABSENT = object()

Entry = dict[str, Any]


class Folder:
    """A folder of parts that survives being killed.  Made by :meth:`create_or_resume` or :meth:`open`.

    A folder that is written is locked until :meth:`seal` or :meth:`close`; use it in a ``with`` statement.

    Attributes
    ----------
    root : Path
        Where it is.
    format, version, head, extra
        As the manifest has them; ``extra`` is empty until the folder is sealed.
    sealed : bool
        Whether it is finished.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: _Lock | None = None) -> None:
        self.root, self._lock = path, lock
        self._adopt(manifest)
        entries, self._end = ({}, 0) if self.sealed else _journal(path)
        self._checked: set[str] = set()
        self._done: dict[str, Entry] = {}
        for name, entry in manifest.get("files", {}).items():
            self._done[name] = entry
            self._sized(name)
        for name, own in entries.items():
            if entry := next((x for x in reversed(own) if _is(path / name, x)), None):
                self._done[name] = entry
                self._checked.add(name)

    # ---------------------------------------------------------------- opening

    @classmethod
    def create_or_resume(
        cls, path: str | os.PathLike[str], head: Mapping[str, Any], *, format: str, version: int
    ) -> Folder:
        """The folder of this work at a path, new or as far as it came; sealed where it is finished.

        Parts that are there are read once, to see that they are whole.

        Parameters
        ----------
        head : mapping
            What decides the content of the parts, in what JSON can hold.
        format : str
            Name of the kind of folder.
        version : int
            Version of that kind that is written.

        Raises
        ------
        InputError
            The folder is of other work (the first field in which heads differ is named), or holds other files.
        ReadingError
            It is of another format or a newer version, is damaged, cannot be written, or has another writer.
        """
        path, head = Path(path), _plain(head, "head")
        fresh = {"layout": LAYOUT, "format": format, "version": version, "state": "open", "head": head}
        there, lock = _manifest(path, format, version), None
        if there is None or there["state"] == "open":
            if there is None:
                _make(path)
            lock = _Lock(path)
        try:
            if lock is not None:
                _sweep(path)
                there = _manifest(path, format, version)  # nobody changes it from here on
                if there is None:
                    _save(path, there := fresh)
            _same(path, there, fresh)
            folder = cls(path, there, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if folder.sealed:
            folder._tidy()
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, format: str, version: int, partial: bool = False) -> Folder:
        """A finished folder, for reading; with ``partial=True`` also what there is of an unfinished one.

        The size of every part is checked here, its content when :meth:`path` first gives its path.

        Raises
        ------
        ReadingError
            There is none, it is unfinished or damaged, of another format, or of a newer version than ``version``.
        """
        path = Path(path)
        there = _manifest(path, format, version)
        if there is None:
            raise ReadingError(f"There is no {format} at {path}: it has no {MANIFEST}.")
        if there["state"] == "open" and not partial:
            raise ReadingError(
                f"The {format} at {path} is not finished: {len(_journal(path)[0])} parts are there. Run the same call "
                "again; it goes on from there."
            )
        folder = cls(path, there)
        if not folder.sealed and _manifest(path, format, version) != there:  # finished while it was being opened
            return cls.open(path, format=format, version=version, partial=partial)
        return folder

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        return f"Folder({str(self.root)!r}, {self.format}, {state}, {len(self.done)} parts)"

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other writers in.  What was written stays."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---------------------------------------------------------------- reading

    @property
    def done(self) -> KeysView[str]:
        """Names of the finished parts: a live view."""
        return self._done.keys()

    def path(self, name: str) -> Path:
        """Where a finished part is, once its content was checked."""
        if name not in self._done:
            known = sorted(self._done)
            named = ", ".join(known[:5] + ["..."] * (len(known) > 5)) or "none yet"
            raise InputError(f"{self.root} has no part {name!r}. It has: {named}.")
        if name not in self._checked:
            self._sized(name)
            if not _is(self.root / name, self._done[name]):
                raise ReadingError(f"{self.root / name} is damaged: it does not have its checksums. {self._cure}")
            self._checked.add(name)
        return self.root / name

    def verify(self) -> None:
        """Read every part again.  Raises ReadingError for the first that is missing or damaged."""
        self._checked.clear()
        for name in self._done:
            self.path(name)

    # ---------------------------------------------------------------- writing

    def write(self, name: str, write: Callable[[str], Any]) -> Path:
        """Make a part, or replace it: ``write(temporary name)`` writes the file, and it is whole or not there.

        Raises
        ------
        InputError
            The name has other characters than ASCII letters, digits and ``_.=+@,-``, or the folder is not open.
        ReadingError
            It cannot be written, e.g. because the disk is full.
        """
        self._writable()
        if not _NAME.fullmatch(name) or name in (MANIFEST, JOURNAL):
            raise InputError(
                f"A part cannot be called {name!r}. Use up to 200 ASCII letters, digits and _.=+@,- without a path, "
                f"beginning with a letter, a digit or _, and neither {MANIFEST} nor {JOURNAL}."
            )
        entry: Entry = {}

        def written(temporary: str) -> None:
            write(temporary)
            entry.update(measured(Path(temporary)))
            self._note({"name": name, **entry})

        _written(self.root / name, written)
        self._done[name] = entry
        self._checked.add(name)
        return self.root / name

    def seal(self, extra: Mapping[str, Any] | None = None) -> None:
        """Finish: nothing can be added any more, and the folder equals one that was written without a break.

        Sealing again with the same ``extra`` does nothing.
        """
        extra = _plain(extra or {}, "extra")
        if self.sealed and extra == self.extra:
            return
        self._writable()
        for name in self._done:
            self._sized(name)
        files = {name: self._done[name] for name in sorted(self._done)}
        manifest = {**self._about, "state": "sealed", "files": files, "extra": extra}
        _save(self.root, manifest)
        self._adopt(manifest)
        self._tidy()
        self.close()

    # ---------------------------------------------------------------- inside

    def _adopt(self, manifest: dict[str, Any]) -> None:
        self._about = manifest
        self.format, self.version, self.head = manifest["format"], manifest["version"], manifest["head"]
        self.sealed, self.extra = manifest["state"] == "sealed", manifest.get("extra", {})

    def _writable(self) -> None:
        if self.sealed:
            raise InputError(f"{self.root} is finished, so nothing can be added. Choose another folder.")
        if self._lock is None:
            raise InputError(f"{self.root} is not open for writing. Use Folder.create_or_resume.")

    @property
    def _cure(self) -> str:
        if self.sealed:
            return "Restore it from a copy, or delete the folder and run the work again."
        return "Run the work again: it is then written anew, and the rest is kept."

    def _sized(self, name: str) -> None:
        """ReadingError unless a part is there and of its size."""
        try:
            found = (self.root / name).stat().st_size
        except OSError as error:
            raise ReadingError(f"{self.root / name} is missing ({error.strerror}). {self._cure}") from error
        if found != (size := self._done[name]["bytes"]):
            raise ReadingError(f"{self.root / name} is damaged: it has {found} bytes instead of {size}. {self._cure}")

    def _note(self, entry: Entry) -> None:
        data = json.dumps(entry).encode() + b"\n"
        with open(self.root / JOURNAL, "ab") as file:
            file.truncate(self._end)  # what a call that failed or was killed has left
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(data)

    def _tidy(self) -> None:
        """Remove what a finished folder does not need; a call that was killed may not have come to it."""
        if not any((self.root / name).exists() for name in (JOURNAL, LOCK)):
            return
        with suppress(ReadingError):  # somebody else does it, or it is on a medium that cannot be written
            lock = self._lock or _Lock(self.root)
            for name in _journal(self.root)[0].keys() - self._done.keys():
                with suppress(OSError):
                    (self.root / name).unlink()
            _sweep(self.root)
            with suppress(OSError):
                (self.root / JOURNAL).unlink(missing_ok=True)
            lock.release()


def measured(path: Path) -> Entry:
    """The entry of a file: its size and checksums."""
    return {"bytes": path.stat().st_size, "block": BLOCK, "crc32": _digits(path, BLOCK)}


def _digits(path: Path, block: int) -> str:
    """The checksums of a file's blocks, in 8 hex digits each."""
    return "".join(f"{crc:08x}" for crc in checksums(path, block))


class _Lock:
    """One writer at a time.  The system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path / LOCK, os.getpid()
        self._holder = f"process {self.process} on {platform.node()}"
        while True:
            try:
                self._file: IO[bytes] = open(self.path, "ab+", buffering=0)
            except OSError as error:
                raise ReadingError(f"{path} cannot be written: {error}. Choose another folder.") from error
            self._take()
            with suppress(OSError):
                if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                    break
            self._file.close()  # the writer before removed it between our opening and locking
        with suppress(OSError):  # a full disk: the name of the holder is for people
            self._file.truncate(0)
            self._file.write(self._holder.encode())

    def _take(self) -> None:
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read(300).decode("utf-8", "replace").strip() or "another process"
            self._file.close()
            own = " (this one: close its Folder first)" if holder == self._holder else ""
            raise ReadingError(
                f"{self.path.parent} is being written by {holder}{own}. Two writers would spoil each other's parts: "
                "wait until it ends, or choose another folder."
            ) from error
        except (ImportError, OSError) as error:
            warnings.warn(
                f"{self.path.parent} is on a file system without locks ({error}): make sure that no other process "
                "writes there.",
                stacklevel=4,
            )

    def release(self) -> None:
        if not self._file.closed and self.process == os.getpid():  # not what a fork has copied
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._file.close()


def _make(path: Path) -> None:
    """The folder, refused where it holds what no Folder has put there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        other = next((x.name for x in sorted(path.iterdir()) if not x.name.startswith(".")), None)
    except OSError as error:
        raise ReadingError(f"{path} cannot be written: {error}. Choose another folder.") from error
    if other is not None and not (path / MANIFEST).exists():
        raise InputError(f"{path} holds other files ({other}) and no {MANIFEST}. Choose a new or an empty folder.")


def _is(path: Path, entry: Entry) -> bool:
    """Whether a file is there and is what its entry says."""
    try:
        return path.stat().st_size == entry["bytes"] and _digits(path, entry["block"]) == entry["crc32"]
    except OSError:
        return False


def _sweep(path: Path) -> None:
    """Remove temporary files that killed processes have left; only for who has the lock."""
    for file in path.iterdir():
        if _TEMPORARY.fullmatch(file.name):
            with suppress(OSError):
                file.unlink()


def _well_formed(name: Any, entry: Any) -> bool:
    """Whether this is an entry; it was read from a file that anybody may have made."""
    return (
        isinstance(name, str) and _NAME.fullmatch(name) is not None and isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int) and isinstance(entry.get("block"), int) and entry["block"] > 0
        and isinstance(entry.get("crc32"), str)
    )  # fmt: skip


def _journal(path: Path) -> tuple[dict[str, list[Entry]], int]:
    """The entries of each name, in the order in which they were made, and where the last whole line ends."""
    try:
        data = (path / JOURNAL).read_bytes()
    except OSError:
        return {}, 0
    found: dict[str, list[Entry]] = {}
    end = data.rfind(b"\n") + 1
    for line in data[:end].split(b"\n"):
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged: its part is written again
            entry = json.loads(line)
            name = entry.pop("name")
            if _well_formed(name, entry):
                found.setdefault(name, []).append(entry)
    return found, end


def _crc(manifest: dict[str, Any]) -> int:
    body = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _save(path: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, "crc32": _crc(manifest)}, indent=1) + "\n"
    _written(path / MANIFEST, lambda name: Path(name).write_text(text, "utf-8"))


def _written(path: Path, write: Callable[[str], Any]) -> None:
    atomic_write(path, write)
    try:
        fsync_folder(path.parent)
    except OSError as error:
        raise ReadingError(f"{path} may not have come to the disk: {error}. Run the work again.") from error


def _manifest(path: Path, format: str, version: int) -> dict[str, Any] | None:
    """The manifest of a folder of this format, without its checksum; None where there is none."""
    file = path / MANIFEST
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["format"] != format:
            raise ReadingError(f"{path} holds a {found['format']!r}, not a {format!r}. Choose another folder.")
        if found["version"] > version or found.get("layout", LAYOUT) > LAYOUT:
            raise ReadingError(
                f"The {format} at {path} has version {found['version']} and this workbench knows up to {version}: "
                "upgrade latent-workbench."
            )
        if found.pop("crc32") != _crc(found):
            raise ValueError("it was changed or damaged, for it does not have its own checksum")
        if not all(_well_formed(*pair) for pair in found.get("files", {}).items()):
            raise ValueError("it names files that cannot be parts")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ReadingError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadingError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Restore it from a copy, or delete the folder "
            "and run the work again."
        ) from error


def _plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """As JSON gives it back."""
    try:
        return json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The {what} of a folder is kept as JSON, which cannot hold this: {error}. Use text, numbers, lists and "
            "dicts of them."
        ) from error


def _same(path: Path, there: dict[str, Any], fresh: dict[str, Any]) -> None:
    """InputError unless a folder is of the work that is to be done."""
    if there["state"] == "open" and there["version"] < fresh["version"]:
        raise InputError(
            f"{path} was begun in version {there['version']} of {there['format']} and this workbench writes version "
            f"{fresh['version']}. Choose another folder, or finish it with the workbench that began it."
        )
    if other := _difference(there["head"], fresh["head"]):
        field, old, new = other
        raise InputError(
            f"{path} holds other work: its {field} is {_short(old)}, and here it is {_short(new)}. Choose another "
            "folder, or delete that one first."
        )


def _difference(old: Any, new: Any, at: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two heads differ, and both its values."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {f"{at}.{k}" if at else k: (old.get(k, _ABSENT), new.get(k, _ABSENT)) for k in {**new, **old}}
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {f"{at}[{i}]": pair for i, pair in enumerate(zip(old, new, strict=True))}
    else:
        return None if old == new and isinstance(old, bool) == isinstance(new, bool) else (at, old, new)
    return next((found for key, (a, b) in pairs.items() if (found := _difference(a, b, key))), None)


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
