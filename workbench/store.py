"""One resumable folder under all long work: what was finished before a kill is never done again, and never wrong.

    manifest.json     format, version: what kind of folder this is, and the version of that kind
                      head: what it is of (model, inputs, settings ...): the same work has the same head
                      state: "open" while parts are added, then "sealed"
                      files: part -> its entry        extra: what is known at the end               (once sealed)
                      layout: version of this page    crc32: of the manifest's other fields
    journal.jsonl     while it is written: who writes, who also holds a lock on this file; and a line for each part
    NAME or DIR/NAME  the parts, as whoever writes them likes

An entry is ``{"bytes": size, "block": bytes of a block, "crc32": checksums of its blocks, 8 hex digits each}``, and
``about`` where something was said of the part.  A line of the journal is an entry with its ``name``; the name alone
says that the file is no part yet, or no longer.

A part is written under a temporary name; then its entry goes into the journal; then it is renamed into place.  So every
part on disk has its entry, a part that is replaced has both, and a part counts where it is as one of its entries says.
Sealing puts the entries into the manifest, whose rename is the one moment at which the folder becomes finished; what is
left over goes after it.  A sealed folder can be revised: its parts stay as they are and count until new ones are sealed
in their place.  Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from workbench.errors import InputError, ReadingError
from workbench.files import atomic_write, checksums

LAYOUT, MANIFEST, JOURNAL = 1, "manifest.json", "journal.jsonl"
BLOCK = 1 << 20
"""Bytes under one checksum."""

_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.=+@,-]{0,199}"
_NAME = re.compile(rf"({_FILE}/)?{_FILE}")
_TEMPORARY = re.compile(rf"\.{_FILE}\.[a-z0-9_]{{8}}(\.[^.]*)?")  # as atomic_write names them
_ABSENT = object()
_CURE = "Restore it from a copy, or run the work again (a finished folder has to be deleted first)."

Entry = dict[str, Any]
Manifest = dict[str, Any]


class Locked(ReadingError):
    """Another process writes this folder."""


class Kind(NamedTuple):
    """A kind of folder: the name of its format, and the version that is written and up to which it is read.

    ``old`` gives the manifest of a folder from before this page as this page would have it; None where there is none.
    """

    format: str
    version: int
    old: Callable[[Path], Manifest | None] | None = None


class Folder:
    """A folder of parts that survives being killed.  Made by :meth:`create_or_resume`, :meth:`open` or :meth:`revise`.

    A folder that is written is locked until :meth:`seal` or :meth:`close`; use it in a ``with`` statement.  Attributes:
    ``root``, ``sealed``, and ``version``, ``head`` and ``extra`` as the manifest has them.
    """

    def __init__(self, root: Path, kind: Kind, manifest: Manifest, lines: dict[str, list[Entry]],
                 journal: IO[bytes] | None = None) -> None:  # fmt: skip
        self.root, self.kind, self._journal = root, kind, journal
        self._adopt(manifest)
        self._parts = {name: Checked(root / name, entry) for name, entry in self._files.items()}
        for name in (x for x in lines if x not in self._files):
            for entry in reversed(lines[name]):
                with suppress(ReadingError):
                    (part := Checked(root / name, entry)).verify()
                    self._parts[name] = part
                    break

    # ---------------------------------------------------------------- opening

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike[str], head: Mapping[str, Any], kind: Kind) -> Folder:
        """The folder of this work at a path, new or as far as it came; sealed where it is finished.

        Parts of an open folder are read once, to see that they are whole.  ``head`` is what decides the content of the
        parts, in what JSON can hold.

        Raises InputError where the folder is of other work (the first field in which heads differ is named) or holds
        other files; ReadingError where it is of another format or a newer version, is damaged, cannot be written, or
        has another writer.
        """
        root, head = Path(path), _plain(head, "head")
        fresh = {"layout": LAYOUT, "format": kind.format, "version": kind.version, "state": "open", "head": head}

        if (there := _manifest(root, kind)) is None:
            _make(root)
        else:
            _same(root, there, fresh)
        sealed = there is not None and there["state"] == "sealed"
        folder = cls(root, kind, there, {}) if sealed else cls._locked(root, kind, fresh)
        if folder.sealed:
            folder._tidy()
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: Kind, *, partial: bool = False) -> Folder:
        """A finished folder, for reading; with ``partial=True`` also what there is of an unfinished one.

        The size of every part is checked here, its content when it is read.  Raises ReadingError where there is none,
        or it is unfinished, damaged, of another format, or of a newer version.
        """
        root = Path(path)
        lines = _lines(root)  # before the manifest: sealing writes that one first, and then removes the journal
        if (there := _manifest(root, kind)) is None:
            raise ReadingError(f"There is no {kind.format} at {root}: it has no {MANIFEST}.")
        if there["state"] == "open" and not partial:
            raise ReadingError(
                f"The {kind.format} at {root} is not finished: {sum(map(bool, lines.values()))} parts are there. Run "
                "the same call again; it goes on from there."
            )
        return cls(root, kind, there, lines if there["state"] == "open" else {})

    @classmethod
    def revise(cls, path: str | os.PathLike[str], kind: Kind) -> Folder:
        """A finished folder, to add parts to and to seal anew; goes on with a revision that was interrupted.

        The parts that are sealed cannot be written; :meth:`seal` leaves out those that are not to stay.
        """
        return cls._locked(Path(path), kind, cls.open(path, kind)._manifest)

    @classmethod
    def _locked(cls, root: Path, kind: Kind, fresh: Manifest) -> Folder:
        journal = _journal(root)
        try:
            _sweep(root)
            _same(root, there := _manifest(root, kind) or fresh, fresh)
            if there["state"] == "open" and not (root / MANIFEST).exists():
                _save(root, there)
            return cls(root, kind, there, _lines(root), journal)
        except BaseException:
            journal.close()
            raise

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        return f"Folder({str(self.root)!r}, {self.kind.format}, {state}, {len(self._parts)} parts)"

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lock(self) -> Folder:
        """Write again what was closed, in a ``with`` statement: for who writes now and then over a long time."""
        if not self.sealed and self._journal is None:
            self._journal = _journal(self.root)
        return self

    def close(self) -> None:
        """Let other writers in.  What was written stays."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # ---------------------------------------------------------------- reading

    @property
    def done(self) -> KeysView[str]:
        """Names of the finished parts: a live view."""
        return self._parts.keys()

    def part(self, name: str) -> Checked:
        """A finished part, which is checked as it is read."""
        if name not in self._parts:
            known = sorted(self._parts)
            named = ", ".join(known[:5] + ["..."] * (len(known) > 5)) or "none yet"
            raise InputError(f"{self.root} has no part {name!r}. It has: {named}.")
        return self._parts[name]

    def path(self, name: str) -> Path:
        """Where a finished part is, once its content was checked."""
        self.part(name).verify()
        return self.root / name

    def verify(self) -> None:
        """Read every part again.  Raises ReadingError for one that is missing or damaged."""
        for part in self._parts.values():
            Checked(part.path, part.entry).verify()

    # ---------------------------------------------------------------- writing

    def write(self, name: str, write: Callable[[str], Any], about: Mapping[str, Any] | None = None) -> Path:
        """Make a part, or replace it: ``write(temporary name)`` writes the file, and it is whole or not there.

        ``about`` is what should be known of it: ``part(name).entry["about"]``.

        Raises InputError for a name with other characters than ASCII letters, digits and ``_.=+@,-``, and where the
        folder is not open or the part is sealed; ReadingError where it cannot be written, as on a full disk.
        """
        path, entry, own = self._place(name), {}, _about(about)

        def written(temporary: str) -> None:
            write(temporary)
            entry.update(measured(Path(temporary)), **own)
            self._note({"name": name, **entry})

        _written(path, written)
        self._parts[name] = Checked(path, entry, whole=True)
        return path

    def place(self, name: str) -> Path:
        """Where to fill a file in place, over several calls if need be; :meth:`keep` then makes a part of it."""
        path = self._place(name)
        self._note({"name": name})
        self._parts.pop(name, None)
        return path

    def keep(self, name: str, about: Mapping[str, Any] | None = None) -> None:
        """Make a part of a file that was filled in place."""
        path = self._place(name)
        for own in (path, path.parent):
            _fsync(own)
        entry = {**measured(path), **_about(about)}
        self._note({"name": name, **entry})
        self._parts[name] = Checked(path, entry, whole=True)

    def remove(self, name: str) -> None:
        """Take a part out."""
        self.place(name).unlink(missing_ok=True)

    def seal(self, extra: Mapping[str, Any] | None = None, *, parts: Iterable[str] | None = None,
             head: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        """Finish: nothing can be added any more, and the folder equals one that was written without a break.

        Only ``parts`` stay, where they are given.  A revision that makes another work of the folder gives its ``head``.
        Sealing again with the same ``extra`` does nothing.
        """
        extra = _plain(extra or {}, "extra")
        if self.sealed and self._journal is None and extra == self.extra:
            return
        self._writable()
        files = {name: Checked(self.root / name, self.part(name).entry).entry for name in sorted(parts or self._parts)}
        for name in self._parts.keys() - files.keys():
            self._note({"name": name})  # whoever finds the journal removes them
        manifest = {
            "layout": LAYOUT, "format": self.kind.format, "version": self.kind.version, "state": "sealed",
            "head": self.head if head is None else _plain(head, "head"), "files": files, "extra": extra,
        }  # fmt: skip
        _save(self.root, manifest)
        self._adopt(manifest)
        self._parts = {name: self._parts[name] for name in files}
        self._tidy()

    # ---------------------------------------------------------------- inside

    def _adopt(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.version, self.head, self.sealed = manifest["version"], manifest["head"], manifest["state"] == "sealed"
        self.extra, self._files = manifest.get("extra", {}), manifest.get("files", {})

    def _writable(self) -> None:
        if self._journal is None:
            state = "finished, so nothing can be added" if self.sealed else "not open for writing"
            raise InputError(f"{self.root} is {state}. Use Folder.create_or_resume, or choose another folder.")

    def _place(self, name: str) -> Path:
        """Where a part goes, in a folder that is there."""
        self._writable()
        if not _NAME.fullmatch(name) or name in (MANIFEST, JOURNAL):
            raise InputError(
                f"A part cannot be called {name!r}. Use up to 200 ASCII letters, digits and _.=+@,- beginning with a "
                f"letter, a digit or _, with at most one folder before it, and neither {MANIFEST} nor {JOURNAL}."
            )
        if name in self._files:
            raise InputError(f"{self.root / name} is sealed and cannot be written. Seal the folder without it first.")
        path = self.root / name
        if not path.parent.is_dir():
            with _told(path):
                path.parent.mkdir()
            _fsync(self.root)
        return path

    def _note(self, line: dict[str, Any]) -> None:
        assert self._journal is not None
        with _told(self.root / JOURNAL):
            _append(self._journal, line)
            os.fsync(self._journal.fileno())

    def _tidy(self) -> None:
        """Remove what a finished folder does not need; a call that was killed may not have come to it."""
        with suppress(ReadingError, OSError):  # somebody else does it, or it is on a medium that cannot be written
            if (self.root / JOURNAL).exists():
                self._journal = self._journal or _journal(self.root)
                sealed = (_manifest(self.root, self.kind) or {})["files"]  # nobody changes it from here on
                for name in _lines(self.root).keys() - sealed.keys():
                    (self.root / name).unlink(missing_ok=True)
                    if "/" in name:
                        with suppress(OSError):  # while there are others
                            (self.root / name).parent.rmdir()
                _sweep(self.root)
                (self.root / JOURNAL).unlink()
        self.close()


class Checked:
    """A file with its entry: its size is checked at once, each block when it is first read.

    Raises ReadingError where the file is missing or damaged.
    """

    def __init__(self, path: Path, entry: Entry, *, whole: bool = False) -> None:
        self.path, self.entry = path, entry
        try:
            size, self._block, blocks = path.stat().st_size, entry["block"], len(entry["crc32"]) // 8
            if size != entry["bytes"] or blocks != -(-size // self._block):
                raise ReadingError(f"{path} is damaged: it has {size} bytes instead of {entry['bytes']}. {_CURE}")
        except OSError as error:
            raise ReadingError(f"{path} is missing ({error.strerror}). {_CURE}") from error
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ReadingError(f"{path} has an entry that says nothing: {entry}. {_CURE}") from error
        self._known = np.full(blocks, whole)

    @cached_property
    def bytes(self) -> np.ndarray:
        """The file's bytes, mapped, not yet checked."""
        return np.memmap(self.path, np.uint8, "r") if self.entry["bytes"] else np.zeros(0, np.uint8)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes start..stop, checked."""
        for i in range(start // self._block, -(-stop // self._block)):
            if not self._known[i]:
                self._check(i, zlib.crc32(self.bytes[i * self._block : (i + 1) * self._block]))
        return self.bytes[start:stop]

    def whole(self) -> bytes:
        """All of it, checked."""
        return self.read(0, self.entry["bytes"]).tobytes()

    def verify(self) -> None:
        """Check what was not read yet, without a map of it."""
        if not self._known.all():
            for i, crc in enumerate(_checksums(self.path, self._block)):
                self._check(i, crc)

    def _check(self, i: int, crc: int) -> None:
        if self.entry["crc32"][8 * i : 8 * i + 8] != f"{crc:08x}":
            raise ReadingError(f"{self.path} is damaged: block {i} does not have its checksum. {_CURE}")
        self._known[i] = True


def measured(path: Path) -> Entry:
    """The entry of a file."""
    crc = "".join(f"{one:08x}" for one in _checksums(path, BLOCK))
    return {"bytes": path.stat().st_size, "block": BLOCK, "crc32": crc}


def _checksums(path: Path, block: int) -> list[int]:
    """CRC-32 of each block of a file."""
    try:
        return checksums(path, block)
    except OSError as error:
        raise ReadingError(f"{path} cannot be read: {error}. {_CURE}") from error


def _journal(root: Path) -> IO[bytes]:
    """The journal, for one writer at a time: the system lets go of the lock when the process ends, however it ends."""
    path, writer = root / JOURNAL, f"process {os.getpid()} on {platform.node()}"
    while True:
        with _told(root):
            file = open(path, "ab", buffering=0)
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            found = re.findall(rb'{"writer": "([^"]*)"}', path.read_bytes() if path.exists() else b"")
            holder = found[-1].decode("utf-8", "replace") if found else "another process"
            own = " (this one: close its Folder first)" if holder == writer else ""
            raise Locked(
                f"{root} is being written by {holder}{own}. Two writers would spoil each other's parts: wait until it "
                "ends, or choose another folder."
            ) from error
        except (ImportError, OSError) as error:
            warnings.warn(
                f"{root} is on a file system without locks ({error}): make sure that no other process writes there.",
                stacklevel=4,
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the writer before removed it between our opening and locking
    with suppress(OSError):  # a full disk: the name of the writer is for people
        _append(file, {"writer": writer})
    return file


def _append(file: IO[bytes], line: dict[str, Any]) -> None:
    # The line break before it ends what a call that failed or was killed has left.
    file.write(b"\n" + json.dumps(line).encode() + b"\n")


def _lines(root: Path) -> dict[str, list[Entry]]:
    """The entries of each name in the journal, in the order in which they were made."""
    found: dict[str, list[Entry]] = {}
    with suppress(OSError):
        for line in (root / JOURNAL).read_bytes().split(b"\n"):
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # torn or damaged: no entry
                entry = json.loads(line)
                if _NAME.fullmatch(name := entry.pop("name")):
                    found.setdefault(name, []).extend([entry] if entry else [])
    return found


def _make(root: Path) -> None:
    """The folder, refused where it holds what no Folder has put there."""
    with _told(root):
        root.mkdir(parents=True, exist_ok=True)
        other = next((x.name for x in sorted(root.iterdir()) if x.name != JOURNAL and x.name[0] != "."), None)
    if other is not None and not (root / MANIFEST).exists():
        raise InputError(f"{root} holds other files ({other}) and no {MANIFEST}. Choose a new or an empty folder.")


def _sweep(root: Path) -> None:
    """Remove temporary files that killed processes have left; only for who has the lock."""
    for file in [*root.glob(".*"), *root.glob("*/.*")]:
        if _TEMPORARY.fullmatch(file.name):
            with suppress(OSError):
                file.unlink()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReadingError(f"{path} cannot be written: {error}. Make room, or choose another folder.") from error


def _written(path: Path, write: Callable[[str], Any]) -> None:
    atomic_write(path, write)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    """Bring a file, or the names that were made in a folder, to the disk."""
    with _told(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _crc(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in manifest.items() if k != "crc32"}, sort_keys=True).encode())


def _save(root: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({**manifest, "crc32": _crc(manifest)}, indent=1) + "\n"
    _written(root / MANIFEST, lambda name: Path(name).write_text(text, "utf-8"))


def _manifest(root: Path, kind: Kind) -> Manifest | None:
    """The manifest of a folder of this kind, without its checksum; None where there is none."""
    file = root / MANIFEST
    try:
        old = kind.old or (lambda root: None)
        found = json.loads(file.read_text("utf-8")) if (written := file.is_file()) else old(root)
        if found is None:
            return None
        if found["format"] != kind.format:
            raise ReadingError(f"{root} holds a {found['format']!r}, not a {kind.format!r}. Choose another folder.")
        if found["version"] > kind.version or found.get("layout", LAYOUT) > LAYOUT:
            raise ReadingError(
                f"The {kind.format} at {root} has version {found['version']} and this workbench knows up to "
                f"{kind.version}: upgrade latent-workbench."
            )
        if written and found.pop("crc32") != _crc(found):
            raise ValueError("it was changed or damaged, for it does not have its own checksum")
        if written and "layout" not in found:
            found = old(root) or found
        if not all(map(_NAME.fullmatch, found.get("files", ()))):
            raise ValueError("it names files that cannot be parts")
        return found
    except ReadingError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadingError(f"{file} cannot be read ({type(error).__name__}: {error}). {_CURE}") from error


def _plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """As JSON gives it back."""
    try:
        return json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"The {what} has to be text, numbers, lists and dicts, as JSON can hold: {error}.") from error


def _about(about: Mapping[str, Any] | None) -> Entry:
    return {} if about is None else {"about": _plain(about, "about")}


def _same(root: Path, there: dict[str, Any], fresh: dict[str, Any]) -> None:
    """InputError unless a folder is of the work that is to be done."""
    if there["state"] == "open" and there["version"] < fresh["version"]:
        raise InputError(
            f"{root} was begun in version {there['version']} of {there['format']} and this workbench writes version "
            f"{fresh['version']}. Choose another folder, or finish it with the workbench that began it."
        )
    if other := _difference(there["head"], fresh["head"]):
        field, *values = other
        old, new = ("absent" if x is _ABSENT else json.dumps(x, ensure_ascii=False) for x in values)
        start = max(0, next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0) - 30)
        old, new = (x if len(x) <= 60 else f"{'...' * (start > 0)}{x[start : start + 60]}..." for x in (old, new))
        raise InputError(
            f"{root} holds other work: {field} there is {old}, and here {new}. Choose another folder, or delete that "
            "one first."
        )


def _difference(old: Any, new: Any, at: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two heads differ, and both its values."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = ((f"{at}.{k}" if at else k, old.get(k, _ABSENT), new.get(k, _ABSENT)) for k in {**new, **old})
        return next((found for key, a, b in pairs if (found := _difference(a, b, key))), None)
    return None if old == new and isinstance(old, bool) == isinstance(new, bool) else (at, old, new)
