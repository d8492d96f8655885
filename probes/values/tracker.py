"""``ValueTracker``: checkpoints x items x instruments, read into a folder that survives being killed.

    manifest.json                         of :mod:`workbench.store`; the folder is never sealed.  head: items (digest)
    step-00000500/pmf-1a2b3c4d.nc         one instrument's reading of one checkpoint; about: step, key (instrument and
                                          settings), source, and how it was made (fingerprint, seed, asked, seconds ...)
    step-00000500-1/pmf-1a2b3c4d.nc       the same, set aside
    notes.json                            checkpoints that failed, and fingerprints of those that a training run saved

Readings are only ever added.  A run that was killed goes on with the first reading that is missing, and what is there
is never read again; other items or other settings of an instrument are refused or stand beside, never over, the old.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from probes.values.duplicates import THRESHOLD, joined, told
from probes.values.items import columns, fingerprint
from probes.values.parts import read_all
from probes.values.units import AXES
from probes.values.units import opened as as_reading
from workbench.errors import InputError, ReadingError
from workbench.reading import Reading, open_reading
from workbench.store import LAYOUT, Folder, Kind, Locked
from workbench.variables import described

NOTES, OLD = "notes.json", "track.json"
WAIT = 60.0
"""Seconds that a process waits for another one that makes the folder."""
STANCES = ("support", "neutral", "oppose", "uncommitted")


class Instrument(Protocol):
    """What asks: gives a :class:`~workbench.reading.Reading` of ``p`` [item, framing or sample, stance], rows summing
    to 1.

    One whose rows depend on the model and their own item alone says so with ``apart = True``, and is then asked in
    parts, which the processes of a training run share (:mod:`probes.values.parts`).
    """

    name: str

    @property
    def settings(self) -> str: ...

    def read(
        self, model: Any, items: Any, *, batch_size: int | None = None, seed: int = 0, progress: bool = True
    ) -> Any: ...


class ValueTracker:
    """A folder of stance readings.

    Args:
        path: the folder; made where it is not there.
        items: what is asked (``probes.values.Items``, or any sequence of items).
        instruments: how.  More can be used later, in the same folder.
        duplicates: near-duplicate items share a cluster from this similarity on, and count once in every interval and
            test (:func:`probes.values.duplicates.cluster`); None: clusters as the items have them.

    Raises InputError where the folder holds readings of other items.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        items: Sequence[Any],
        instruments: Sequence[Instrument],
        *,
        duplicates: float | None = THRESHOLD,
    ) -> None:
        self.path, self.instruments = Path(path), list(instruments)
        given = list(items)
        self._digest = fingerprint(given)
        self.items = joined(given, duplicates)
        self._told: set[str] = set()
        if not self.items or not self.instruments:
            raise InputError("There is nothing to track: give at least one item and one instrument.")
        start = time.monotonic()
        while True:
            try:
                self._open()
                break
            except Locked:  # every process of a training run comes by here
                if time.monotonic() - start > WAIT:
                    raise
                time.sleep(0.1)
        self._place()

    def __repr__(self) -> str:
        done = sum(bool(own["read"]) for own in self.about["checkpoints"].values())
        asked = told([item.cluster or item.item_id for item in self.items]) or f"{len(self.items)} items"
        return f"ValueTracker({str(self.path)!r}, {asked}, {done} checkpoints read)"

    def run(
        self,
        checkpoints: Mapping[int, Any],
        *,
        skip_failures: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> ValueTracker:
        """Read what is not there yet.

        Args:
            checkpoints: step -> what :func:`workbench.load` takes; a pair (hub id, revision); a pair (base, folder of a
                PEFT adapter), where the second is a folder with adapter_config.json, and a base in memory is left as it
                is; or a function that gives a model.
            skip_failures: a checkpoint that cannot be loaded is recorded (:attr:`failures`) and left out; by default
                its error is raised.
            batch_size: prompts in a batch, 32 by default.  Rows are equal to the last bit where it is.
        """
        from tqdm.auto import tqdm

        self._place()
        todo = [
            (step, source, instrument)
            for step, source in sorted(checkpoints.items())
            for instrument in self.instruments
            if not self.there(step, instrument)
        ]
        with tqdm(total=len(todo), unit="reading", desc="values", disable=not progress, delay=1.0) as bar:
            loaded: tuple[int, Any] | None = None
            for step, source, instrument in todo:
                own = self.about["checkpoints"].setdefault(
                    str(step), {"source": _named(source), "read": {}, "failed": ""}
                )
                if loaded is None or loaded[0] != step:
                    loaded = None  # the one before goes before the next comes
                    try:
                        loaded = (step, opened(source))
                    except Exception as error:
                        own["failed"] = f"{type(error).__name__}: {error}"
                        self._save()
                        if not skip_failures:
                            raise
                        loaded = (step, None)
                if loaded[1] is not None:
                    self._read(step, loaded[1], instrument, batch_size, seed)
                bar.update()
        return self

    def add(
        self, step: int, instrument: Instrument, reading: Reading | xr.Dataset, source: str = "live", **about: Any
    ) -> None:
        """Keep a reading that was made elsewhere (in training, say) as this step's.

        Raises InputError where it was asked in another way (chat template or plain text) than the readings that are
        there; warns once of an instrument whose answers have little of the probability.
        """
        reading = as_reading(reading)
        data = reading.data
        if asked := data.attrs.get("asked"):
            self.held(step, instrument, asked)
            about = {"asked": asked, **about}
        if "mass" in data and instrument.name not in self._told:
            from probes.values.answers import LowMass, tell_of_mass

            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", LowMass)
                tell_of_mass(data, getattr(instrument, "shares", False))
            for warning in said:
                self._told.add(instrument.name)
                warnings.warn(f"Step {step}: {warning.message}", LowMass, stacklevel=3)
        own = self.about["checkpoints"].setdefault(str(step), {"source": source, "read": {}, "failed": ""})
        file, key = self._file(step, instrument), f"{instrument.name} {instrument.settings}"
        kept = Reading(data.assign_attrs(instrument=instrument.name, settings=instrument.settings), reading.provenance)
        with self.folder.lock() as folder:
            folder.write(file, kept.save, {"step": step, "key": key, "source": own["source"], **about})
        own["read"][key] = {"file": file, **about}
        if own["failed"]:
            own["failed"] = ""
            self._save()

    def held(self, step: int, instrument: Instrument, asked: str) -> None:
        """InputError where this instrument's other readings here were asked in another chat template, or in none."""
        key = f"{instrument.name} {instrument.settings}"
        for other, own in self.about["checkpoints"].items():
            before = own["read"].get(key, {}).get("asked", asked)
            if before != asked and int(other) != step:
                raise InputError(
                    f"{self.path} has step {other} by {instrument.name} in {before}, and step {step} would be asked in "
                    f"{asked}: what differs could be the way of asking. Hold it fixed over the series: chat=False asks "
                    "all in plain text; or give all checkpoints one tokenizer with one chat template "
                    "(workbench.load(checkpoint, tokenizer=...))."
                )

    def there(self, step: int, instrument: Instrument) -> bool:
        """Whether this instrument's reading of this step is in the folder."""
        own = self.about["checkpoints"].get(str(step))
        read = own and own["read"].get(f"{instrument.name} {instrument.settings}")
        return bool(read) and (self.path / read["file"]).exists()

    def fingerprint(self, step: int) -> str | None:
        """Of the model that was read at this step or, without a reading, was saved then; None where neither was."""
        own = self.about["checkpoints"].get(str(step), {"read": {}})
        found = [read["fingerprint"] for read in own["read"].values() if read.get("fingerprint")]
        return found[0] if found else self.about["saved"].get(str(step))

    def saved(self, step: int, fingerprint: str) -> None:
        """Note which model a training run saved at this step, to know it again when it goes on from there."""
        self.about["saved"][str(step)] = fingerprint
        self._save()

    def set_aside(self, step: int) -> None:
        """Leave a step's readings out, and keep their files beside: a run that went on from before came to others."""
        number = next(n for n in range(1, 10**6) if not (self.path / f"step-{step:08d}-{n}").exists())
        with self.folder.lock() as folder:
            for read in self.about["checkpoints"][str(step)]["read"].values():
                part, name = folder.part(read["file"]), read["file"].replace("/", f"-{number}/")
                about = {**part.entry["about"], "aside": number}
                folder.write(name, lambda file, part=part: shutil.copyfile(part.path, file), about)
                folder.remove(read["file"])
        self._load()

    @property
    def failures(self) -> dict[int, str]:
        """Checkpoints that could not be loaded, and why."""
        return {int(step): own["failed"] for step, own in self.about["checkpoints"].items() if own["failed"]}

    @property
    def steps(self) -> list[int]:
        """Checkpoints with at least one reading."""
        return sorted(int(step) for step, own in self.about["checkpoints"].items() if own["read"])

    def readings(self, instrument: Instrument | str | None = None) -> Reading:
        """``p`` [checkpoint, item, sample, stance] of one instrument (or its name), with topic, polarity and cluster;
        and ``mass`` [checkpoint, item, sample], where it gives one.  Attribute ``asked``: in which chat template, or in
        plain text.

        Framings are samples here.  Checkpoints that this instrument has not read are left out.  The provenance has a
        step for each checkpoint, with what it does not share with the others.
        """
        name, found = self._found(instrument)
        both = ["p", "mass"] if all("mass" in own for own in found.values()) else ["p"]
        tables = [_sampled(own.data[both]).reset_coords(drop=True) for own in found.values()]
        data = xr.concat(
            tables, "checkpoint", data_vars="all", coords="minimal", compat="override", join="exact",
            combine_attrs="override",
        )  # fmt: skip
        data = data.transpose("checkpoint", "item", "sample", ...)
        return self._series("tracker.readings", name, found, data)

    def table(self, instrument: Instrument | str | None = None) -> Reading:
        """All that one instrument gave, [checkpoint, ...], with topic, polarity and cluster."""
        name, found = self._found(instrument)
        drop = ["topic", "polarity", "cluster"]
        data = xr.concat(
            [own.data.drop_vars(drop, errors="ignore") for own in found.values()], "checkpoint", data_vars="all",
            coords="minimal", compat="override", join="exact", combine_attrs="override",
        )  # fmt: skip
        return self._series("tracker.table", name, found, data)

    @property
    def kept(self) -> list[str]:
        """What gave stances here: "name settings" of each instrument that has a reading of stances."""
        files = {key: read["file"] for own in self.about["checkpoints"].values() for key, read in own["read"].items()}
        found = []
        for key, file in files.items():
            if (self.path / file).exists():
                with xr.open_dataset(self.path / file, engine="h5netcdf") as data:
                    found += [key] if "p" in data and {"item", "stance"} <= set(data["p"].dims) else []
        return found

    def agreement(self, **options: Any) -> Reading | None:
        """How far this folder's instruments say the same of its items (:func:`probes.values.measures.agreement`); None
        where there is but one, or no two have read the same checkpoint."""
        from probes.values.measures import agreement

        runs = {named: self.readings(key) for named, key in brief(self.kept).items()}
        steps = [set(data["checkpoint"].values.tolist()) for data in runs.values()]
        if not any(a & b for i, a in enumerate(steps) for b in steps[:i]):
            return None
        return agreement(runs, **options)

    # ---------------------------------------------------------------- inside

    def _series(self, step: str, name: str, found: dict[int, Reading], data: xr.Dataset) -> Reading:
        """One reading of checkpoints, whose provenance says once what they have in common."""
        reads = (pair for own in self.about["checkpoints"].values() for pair in own["read"].items())
        asked = {read.get("asked", "") for key, read in reads if name in (key, key.split(" ")[0])} - {""}
        sources = {k: _shared(self.about["checkpoints"][str(k)]["source"]) for k in found}
        steps = _common({k: (sources[k], own) for k, own in found.items()})
        called = list(dict.fromkeys(own["model"]["name"] for own in steps if own["step"] == "checkpoint"))
        model = called[0] if len(called) == 1 else f"{called[0]} … {called[-1]} ({len(found)} checkpoints)"
        data = data.assign_coords(checkpoint=list(found)).assign(columns(self.items))
        data.attrs = {"model": model, "instrument": name, "asked": ", ".join(sorted(asked))}
        if said := told(data["cluster"].values):
            data.attrs["duplicates"] = said
        last = {"step": step, "settings": {"instrument": name}, "model": {**steps[0].get("model", {}), "name": model}}
        return Reading(described(data, AXES), [*steps, last])

    def _found(self, instrument: Instrument | str | None) -> tuple[str, dict[int, Reading]]:
        """What an instrument (or its name) is called here, and its readings by step, in their order."""
        chosen = self.instruments[0] if instrument is None else instrument
        name = chosen if isinstance(chosen, str) else f"{chosen.name} {chosen.settings}"
        found: dict[int, Reading] = {}
        for step, own in self.about["checkpoints"].items():
            for key, read in own["read"].items():
                if key == name or key.split(" ")[0] == name:
                    file = self.path / read["file"]
                    if not file.exists():
                        raise ReadingError(f"{file} is missing. Run the tracker again: the rest is kept.")
                    found[int(step)] = _opened(file)
        if not found:
            raise InputError(f"{self.path} has no reading of {name!r}. Run the tracker first.")
        return name, dict(sorted(found.items()))

    def _place(self) -> None:
        """Tells instruments that keep something for a whole series (a baseline, say) where to."""
        for instrument in self.instruments:
            if hasattr(instrument, "keep_in"):
                instrument.keep_in(self.path)

    def _read(self, step: int, model: Any, instrument: Instrument, batch_size: int | None, seed: int) -> None:
        if hasattr(instrument, "asked"):
            self.held(step, instrument, instrument.asked(model))  # before anything is spent on it
        start = time.perf_counter()
        reading = read_all(instrument, model, self.items, batch_size, seed)
        about = {
            "seconds": round(time.perf_counter() - start, 2), "fingerprint": model.fingerprint, "seed": seed,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        self.add(step, instrument, reading, self.about["checkpoints"][str(step)]["source"], **about)

    def _file(self, step: int, instrument: Instrument) -> str:
        name = re.sub(r"[^A-Za-z0-9_.=+@,-]", "-", instrument.name)
        own = instrument.settings if name == instrument.name else f"{instrument.name} {instrument.settings}"
        return f"step-{step:08d}/{name}-{hashlib.blake2b(own.encode(), digest_size=4).hexdigest()}.nc"

    def _open(self) -> None:
        """The folder, made where it is not there; readings of version 0.1.0 are taken over."""
        head = {"items": self._digest}
        try:
            self.folder = Folder.open(self.path, KIND, partial=True)
        except ReadingError:
            with Folder.create_or_resume(self.path, head, KIND) as self.folder:  # says what is wrong, if not that
                pass
        if self.folder.head != head:
            raise InputError(
                f"{self.path} holds readings of other items than the {len(self.items)} given. Their numbers cannot be "
                "compared: use another folder."
            )
        if (self.path / OLD).exists():
            with Folder.create_or_resume(self.path, head, KIND) as self.folder:
                _take_over(self.folder)
        self._load()

    def _load(self) -> None:
        folder = self.folder
        notes = json.loads(folder.path(NOTES).read_text()) if NOTES in folder.done else {}
        self.about: dict[str, Any] = {
            "checkpoints": {k: {**own, "read": {}} for k, own in notes.get("failed", {}).items()},
            "saved": notes.get("saved", {}),
        }
        for file in (name for name in folder.done if name != NOTES):
            about = dict(folder.part(file).entry["about"])
            step, key, source = about.pop("step"), about.pop("key"), about.pop("source")
            if "aside" in about:
                self.about.setdefault("aside", []).append({"step": step, "key": key, "file": file, **about})
            else:
                own = self.about["checkpoints"].setdefault(str(step), {"source": source, "read": {}, "failed": ""})
                own["read"][key] = {"file": file, **about}

    def _save(self) -> None:
        failed = {k: {n: own[n] for n in ("source", "failed")} for k, own in self.about["checkpoints"].items()}
        notes = {"failed": {k: own for k, own in failed.items() if own["failed"]}, "saved": self.about["saved"]}
        with self.folder.lock() as folder:
            folder.write(NOTES, lambda name: Path(name).write_text(json.dumps(notes)))


def brief(keys: Sequence[str]) -> dict[str, str]:
    """What instruments are called for short -> "name settings": the name alone, where no two have it."""
    names = [key.split(" ")[0] for key in keys]
    return {name if names.count(name) == 1 else key: key for name, key in zip(names, keys, strict=True)}


def opened(source: Any) -> Any:
    """A model from what a checkpoint may be."""
    import workbench

    if callable(source) and not hasattr(source, "forward"):
        return workbench.load(source())
    if isinstance(source, tuple) and len(source) == 2:
        base, second = source
        if (Path(str(second)) / "adapter_config.json").exists():
            return workbench.load(base, adapter=str(second))
        return workbench.load(base, revision=str(second))
    return workbench.load(source)


def _sampled(data: xr.Dataset) -> xr.Dataset:
    return data.rename(framing="sample").drop_vars("sample") if "framing" in data.dims else data


def _named(source: Any) -> str:
    if isinstance(source, tuple):
        return "@".join(map(str, source))
    return str(source) if isinstance(source, (str, os.PathLike)) else getattr(source, "name", type(source).__name__)


def _shared(source: str) -> str:
    """A checkpoint's source as it may leave this machine: of a local folder its name."""
    return Path(source).name if Path(source).is_absolute() else source


def _opened(file: Path) -> Reading:
    """One instrument's reading of one checkpoint.  Version 0.1.0 kept them as bare netCDF files, without provenance."""
    try:
        return open_reading(file)
    except ReadingError:
        with suppress(Exception), xr.open_dataset(file, engine="h5netcdf") as data:  # damaged: as above
            if "workbench_format" not in data.attrs and {"name", "settings"} <= set(data.attrs):
                from probes.values.answers import VARIABLES

                return Reading(described(data.load(), VARIABLES))
        raise


def _common(found: Mapping[int, tuple[str, Reading]]) -> list[dict[str, Any]]:
    """Steps of a series of checkpoints, (source, reading) by step: what all have in common, then a step "checkpoint"
    for each with the rest, then what followed."""
    first = {k: dict(own.provenance[0]) if own.provenance else {} for k, (_, own) in found.items()}
    model = {k: own.pop("model", {}) for k, own in first.items()}
    shared, same = _same(list(first.values())), _same(list(model.values()))
    steps: list[dict[str, Any]] = [{"step": "read", **shared, "model": same}]
    for k, (source, _) in found.items():
        own = {name: value for name, value in first[k].items() if name not in shared}
        rest = {name: value for name, value in model[k].items() if name not in same}
        named = {"name": source, **{name: model[k][name] for name in ("name", "fingerprint") if name in model[k]}}
        steps.append({**own, "step": "checkpoint", "checkpoint": k, "source": source, "model": {**rest, **named}})
    for _, reading in found.values():
        steps += [own for own in reading.provenance[1:] if own not in steps]
    return steps


def _same(dicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them hold."""
    return {k: v for k, v in dicts[0].items() if all(k in own and own[k] == v for own in dicts)}


def _version_1(path: Path) -> dict[str, Any] | None:
    """What a folder is of that version 0.1.0 made; its readings are taken over when a tracker opens it."""
    if not (path / OLD).is_file():
        return None
    there = json.loads((path / OLD).read_text())
    head = {"items": there["items"]}
    return {"layout": LAYOUT, "format": there["format"], "version": KIND.version, "state": "open", "head": head}


KIND = Kind("latent-workbench values", 2, _version_1)


def _take_over(folder: Folder) -> None:
    """Make parts of the readings that version 0.1.0 listed in track.json."""
    there = json.loads((folder.root / OLD).read_text())
    rows = [(int(step), own, {}) for step, own in there["checkpoints"].items()]
    rows += [(own["step"], own, {"aside": own["number"]}) for own in there.get("aside", [])]
    for step, own, aside in rows:
        for key, read in own["read"].items():
            about = {"step": step, "key": key, "source": own["source"], **read, **aside}
            name = about.pop("file").replace("/", f"-{aside['aside']}/" if aside else "/")
            if (folder.root / name).exists():
                folder.keep(name, about)
    failed = {step: {n: own[n] for n in ("source", "failed")} for step, own, _ in rows if own["failed"]}
    notes = {"failed": failed, "saved": there.get("saved", {})}
    folder.write(NOTES, lambda name: Path(name).write_text(json.dumps(notes)))
    (folder.root / OLD).unlink()
