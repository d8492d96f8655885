"""``check_reader``: whether a reader keeps what every reader promises, in one line of a test.

    from workbench.testing import check_reader

    def test_my_lens():
        check_reader(MyLens(), "organism:story")

Nothing here knows any reader: what a value may depend on follows from its dimensions and its role
(:mod:`workbench.variables`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import workbench
from workbench.anatomy import reserved_ids
from workbench.engine import loop
from workbench.engine.tower import Through
from workbench.errors import InputError, WorkbenchError
from workbench.inputs import Positions, Prompt, embedded, encode
from workbench.model import Model
from workbench.readers import Plan
from workbench.reading import Reading
from workbench.variables import CONTROLS, lacking

CHECKS = {
    "again": "a second run of the same object gives the same, and leaves it and the model as they were",
    "states": "observe leaves the states that it is shown as they are",
    "batches": "neither the size of a batch nor what is beside a prompt in it changes a value",
    "padding": "nor does the side of the pads",
    "order": "nor the order of the prompts",
    "alone": "a prompt reads alone as among others",
    "positions": "a position reads alone as among others",
    "chunk": "how much of the vocabulary is looked at in one go changes nothing (readers with a field `chunk`)",
    "memory": "a batch that ran out of memory and ran again in halves is counted once",
    "interrupt": "Ctrl-C gives the prompts read so far on request, and leaves the model as it was",
    "resume": "a run that is kept in a folder and goes on after Ctrl-C comes to the very same",
    "file": "a file keeps every value, attribute and step of provenance",
    "metadata": "every variable and label says what it is",
    "provenance": "the reading names the reader and its settings",
    "shown": "the reading is printed, tabulated and, where a chart fits, drawn with a caption",
    "twin": "the same model elsewhere (on a GPU) reads the same",
}


class ContractBroken(AssertionError):
    """A reader does not keep what every reader promises.

    Attributes
    ----------
    check
        Which of :data:`CHECKS`.
    variable
        The first variable that differs; None where it is not about one.
    place
        Where in it the difference is largest: dimension -> label, number of the prompt or slot.
    difference
        The largest, of numbers; of whole numbers and texts how many differ.
    """

    def __init__(
        self, check: str, said: str, variable: str | None = None, place: Mapping[str, Any] | None = None,
        difference: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(f"{check}: {said} (The contract: {CHECKS[check]}.)")
        self.check, self.variable, self.place, self.difference = check, variable, dict(place or {}), difference


def check_reader(
    reader: Any,
    model: Any,
    inputs: Sequence[Any] | None = None,
    *,
    positions: Positions = "all",
    skip: Sequence[str] = (),
    close: float | None = None,
    ties: float = 0.0,
    twin: Model | None = None,
) -> Reading:
    """Check that a reader's values depend on the prompts alone, and its reading says all that it should.

    The reader runs over a few short prompts some twenty times.

    Parameters
    ----------
    reader
        A reader; or, where its settings name prompts (a label for each), a function that makes one for some of the
        inputs, from a list of their numbers.
    model
        What :func:`workbench.load` takes, as small as there is one.
    inputs
        At least three prompts, as :func:`workbench.read` takes them.  None: seven lists of random token ids
        (:func:`inputs_for`): different lengths, one of them twice, one of one token, one with a token that returns.
    positions
        As of :func:`workbench.read`; other than "all" for readers that need them so; then without that check.
    skip
        Names of :data:`CHECKS` that are left out.  Say why where you leave out one.
    close
        What counts as rounding: |difference| <= close * (|value| + 1), or less where the whole variable is small.
        None: half the square root of the rounding of the model's dtype (1.7e-4 in fp32, 0.04 in bf16).
    ties
        Share of whole numbers and texts that a rounding may turn: of two neighbours as near, either is the first.
    twin
        The same model elsewhere, such as on a GPU: it must read the same.

    Returns
    -------
    Reading
        Of all inputs, for checks of one's own.

    Raises
    ------
    ContractBroken
        An AssertionError that names the check, the variable, the place and the largest difference.
    InputError
        For a check that does not exist, and fewer than three prompts.

    Examples
    --------
    >>> from lenses import LogitLens
    >>> check_reader(LogitLens(), "organism:story").sizes["prompt"]  # doctest: +SKIP
    7
    """
    unknown = set(skip) - set(CHECKS)
    if unknown:
        raise InputError(f"There is no check {sorted(unknown)[0]!r}. There are {', '.join(CHECKS)}.")
    model = workbench.load(model, progress=False)
    given = inputs_for(model) if inputs is None else [inputs] if isinstance(inputs, str) else list(inputs)
    if len(given) < 3:
        raise InputError(f"{len(given)} prompts are too few to tell what depends on what. Give 3 or more.")
    trial = _Trial(reader, model, given, positions, close, ties, twin)
    for name in CHECKS:
        if name not in skip:
            getattr(trial, f"check_{name}")()
    return trial.plain


def inputs_for(model: Model) -> list[list[int]]:
    """Prompts of a model's vocabulary, without its special tokens; see :func:`check_reader`."""
    size = min(embedded(model), model.vocab_size)
    special = {*(getattr(model.tokenizer, "all_special_ids", None) or []), *reserved_ids(model.module.config)}
    usual = np.setdiff1d(np.arange(size), list(special))
    rng = np.random.default_rng(0)
    longest = max(3, min(12, (model.context_length or 12) - 1))
    first, short, long, other = ([int(i) for i in rng.choice(usual, min(n, longest))] for n in (7, 3, 12, 5))
    a, b, c = (int(i) for i in rng.choice(usual, 3, replace=False))
    return [short, first, long, [a], [b, c, b, b][:longest], list(first), other]


class _Watched:
    """A reader whose ``observe`` is looked at, or fails, as a check wants."""

    def __init__(self, reader: Any, around: Callable[[Any, Any, Any], Any] | None = None) -> None:
        self._reader, self._around = reader, around
        self.planned, self.prompts = False, set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def plan(self, run: Any) -> Plan:
        plan = self._reader.plan(run)
        self.planned = True

        def observe(states: Any, batch: Any) -> Any:
            self.prompts.update(batch.prompts)
            if self._around is None:
                return plan.observe(states, batch)
            return self._around(plan.observe, states, batch)

        return dataclasses.replace(plan, observe=observe)


class _Trial:
    """A reader on trial: what it gives over all inputs, and one method for each check."""

    def __init__(
        self, reader: Any, model: Model, inputs: list[Any], positions: Positions, close: float | None,
        ties: float, twin: Model | None,
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.positions, self.twin = model, inputs, positions, twin
        self.rounding = torch.finfo(model.dtype).eps
        self.close, self.ties = self.rounding**0.5 / 2 if close is None else close, ties
        self.many = not callable(getattr(reader, "plan", None))
        self._given = reader
        self.all = list(range(len(inputs)))
        self.reader = self.made(self.all)
        self.seen, self.prompts = _shown(self.reader, model, inputs, positions)
        self.fields = _fields(self.reader)
        self._read(self.reader)  # what is found once for a model is there from here on
        self.state = _state(model)
        self.plain = self._read(self.reader)

    def made(self, numbers: list[int]) -> Any:
        return self._given(numbers) if self.many else self._given

    def _read(self, reader: Any, numbers: list[int] | None = None, model: Model | None = None, **how: Any) -> Reading:
        given = self.inputs if numbers is None else [self.inputs[i] for i in numbers]
        how = {"positions": self.positions, "progress": False, **how}
        return workbench.read(model or self.model, given, reader, **how)

    # ---------------------------------------------------------------- the reader itself

    def check_again(self) -> None:
        self.same("again", self._read(self.reader), what="A second run of the same object gives")
        now = _fields(self.reader)
        for name in sorted({*self.fields, *now}):
            if name not in self.fields or name not in now or not _equal(self.fields[name], now[name]):
                raise ContractBroken("again", f"a run changed the field {name!r} of {self._name}.", name)
        if dataclasses.is_dataclass(self.reader) and not self.reader.__dataclass_params__.frozen:  # type: ignore
            raise ContractBroken("again", f"{self._name} is a dataclass that is not frozen: @dataclass(frozen=True).")
        self.unchanged("again", "A run")

    def check_states(self) -> None:
        def around(observe: Any, states: Any, batch: Any) -> Any:
            seen = dict(states)
            before = copy.deepcopy(list(_tensors(list(seen.values()))))
            found = observe(states, batch)
            for site, value in seen.items():
                for tensor in _tensors(value):
                    if not _equal(before.pop(0), tensor):
                        raise ContractBroken("states", f"observe() of {self._name} writes to the states at {site}.")
            return found

        self._read(_Watched(self.reader, around))

    # ---------------------------------------------------------------- how prompts are run

    def check_batches(self) -> None:
        for size in (1, 2, len(self.inputs)):
            self.same("batches", self._read(self.reader, batch_size=size), what=f"batch_size={size} gives")
        if self.many:
            return
        for i, own in enumerate(self.inputs):
            for k in range(i):
                if self.inputs[k] == own:
                    what = f"prompt {i}, the same as prompt {k}, gives"
                    self.same("batches", self.plain, [(i, k)], what=what)

    def check_padding(self) -> None:
        if "left" in self.model.anatomy.pad_sides:
            found = self._read(self.reader, padding_side="left", batch_size=len(self.inputs))
            self.same("padding", found, what="padding_side='left' gives")
        for name, variable in self.plain.data.data_vars.items():
            if not {"prompt", "position"} <= set(variable.dims) or variable.dtype.kind != "f":
                continue
            for i, prompt in enumerate(self.prompts):
                beyond = variable.isel(prompt=i, position=slice(len(prompt.positions), None))
                if np.isfinite(beyond.values).any():
                    said = f"{name!r} has values of prompt {i} beyond its {len(prompt.positions)} positions; say NaN."
                    raise ContractBroken("padding", said, str(name), {"prompt": i})

    def check_order(self) -> None:
        order = [*self.all[1::2], *self.all[::2]][::-1]
        found = self._read(self.made(order), order)
        pairs = [(order.index(i), i) for i in self.all]
        self.same("order", found, pairs, what=f"prompts in the order {order} give", summed=None)

    def check_alone(self) -> None:
        lengths = [len(p.ids) for p in self.prompts]
        for i in sorted({int(np.argmin(lengths)), int(np.argmax(lengths))}):
            found = self._read(self.made([i]), [i])
            self.same("alone", found, [(0, i)], what=f"prompt {i} alone gives")

    def check_positions(self) -> None:
        if self.positions != "all":
            return
        for positions in ("last", slice(0, 2)):
            _, prompts = _shown(self.reader, self.model, self.inputs, positions)
            found = self._read(self.reader, positions=positions)
            self.same(
                "positions", found, [(i, i) for i in self.all], [p.positions for p in prompts],
                what=f"positions={positions!r} gives",
            )  # fmt: skip

    def check_chunk(self) -> None:
        if dataclasses.is_dataclass(self.reader) and any(f.name == "chunk" for f in dataclasses.fields(self.reader)):
            other = dataclasses.replace(self.reader, chunk=7)  # type: ignore[type-var]
            self.same("chunk", self._read(other), what="chunk=7 gives")

    def check_memory(self) -> None:
        failed: list[int] = []

        def around(observe: Any, states: Any, batch: Any) -> Any:
            found = observe(states, batch)  # first: what it may count, it has counted
            if not failed and len(batch.prompts) > 1:
                failed.append(1)
                raise torch.OutOfMemoryError("as if the device were full")
            return found

        found = self._read(_Watched(self.reader, around), batch_size=len(self.inputs))
        self.same("memory", found, what="after a batch that ran out of memory")

    # ---------------------------------------------------------------- interrupts

    def check_interrupt(self) -> None:
        watched = _Watched(self.reader)
        try:
            with _interrupted(self.model, watched):
                self._read(watched, batch_size=1)
        except KeyboardInterrupt:
            self.unchanged("interrupt", "Ctrl-C")
        else:
            raise ContractBroken("interrupt", f"{self._name} swallowed a KeyboardInterrupt.")
        watched = _Watched(self.reader)
        with _interrupted(self.model, watched):
            found = self._read(watched, batch_size=1, partial=True)
        done, said = sorted(watched.prompts), found.provenance.get("prompts_read")
        if len(done) != 2 or said != 2:
            said = f"2 prompts were run, {len(done)} were shown to {self._name}, provenance says {said}."
            raise ContractBroken("interrupt", said)
        self.same("interrupt", found, [(i, i) for i in done], what="a partial reading has")
        rest = [i for i in self.all if i not in done]
        for name, variable in found.data.data_vars.items():
            if "prompt" not in variable.dims or variable.attrs.get("role") != "value":
                continue
            own, whole = (x.isel(prompt=rest).values for x in (variable, self.plain.data[name]))
            empty = own == "" if own.dtype.kind in "OUS" else (own == 0) | (own == -1) | np.isnan(own)
            # What is the same without a pass was made from the prompt.
            made_up = ~(empty | (own == whole if own.shape == whole.shape else False))
            if made_up.any():
                at = np.argwhere(made_up)[0]
                place = {"prompt": rest[int(at[variable.dims.index("prompt")])]}
                said = f"{name!r} of a partial reading has values of prompt {place['prompt']}, which was not read."
                raise ContractBroken("interrupt", said, str(name), place)
        # What is summed over prompts is what they come to by themselves.
        alone = self._read(self.made(done), done)
        self.same("interrupt", found, [], expected=alone, what="sums of a partial reading are", summed=True)

    def check_resume(self) -> None:
        with mock.patch.object(loop, "SHARD_TOKENS", 1), tempfile.TemporaryDirectory() as folder:
            if _stores(self.reader, self.model, self.inputs, self.positions):
                return
            straight = _Watched(self.reader)
            with _counted(self.model, straight) as all_passes:
                whole = self._read(straight, batch_size=1, out=Path(folder) / "whole")
            watched = _Watched(self.reader)
            with _interrupted(self.model, watched), contextlib.suppress(KeyboardInterrupt):
                self._read(watched, batch_size=1, out=Path(folder) / "parts")
            again = _Watched(self.reader)
            with _counted(self.model, again) as passes:
                found = self._read(again, batch_size=1, out=Path(folder) / "parts")
            if len(passes) != len(all_passes) - 2:
                said = f"{len(passes)} passes after an interrupt behind 2 of {len(all_passes)}: it did not go on."
                raise ContractBroken("resume", said)
            self.identical("resume", found, whole, "A resumed run", apart=("date",))
            self.same("resume", whole, what="a run that is kept in a folder gives")
            self.identical("resume", workbench.open(Path(folder) / "parts"), found, "The folder, opened,")

    # ---------------------------------------------------------------- what the reading says

    def check_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                opened = workbench.open(self.plain.save(Path(folder) / "reading.nc"))
            except Exception as error:
                raise ContractBroken("file", f"it cannot be kept: {type(error).__name__}: {error}") from error
        self.identical("file", opened, self.plain, "A file")

    def check_metadata(self) -> None:
        data = self.plain.data
        if found := lacking(data):
            raise ContractBroken("metadata", f"variables do not say what they are: {'; '.join(found)}.")
        silent = [n for n, c in data.coords.items() if c.dtype.kind in "OUS" and c.attrs.get("role") != "label"]
        if silent:
            said = f"the labels {silent[0]!r} do not say what they are: about(..., role='label') in the plan's table."
            raise ContractBroken("metadata", said, str(silent[0]))

    def check_provenance(self) -> None:
        told = self.plain.provenance.get("reader")
        if not isinstance(told, Mapping) or told.get("name") != self._name:
            said = f"the reading does not name its reader {self._name!r}, but {told!r:.80}."
            raise ContractBroken("provenance", said)
        _, plan = self._planned()
        for name, value in self.reader.settings().items():
            if value is not None and name not in told and name not in plan.settings:
                raise ContractBroken("provenance", f"the reading does not say {name}={value!r:.40}.", name)
        for key in ("model", "versions", "prompts", "prompts_read"):
            if key not in self.plain.provenance:
                raise ContractBroken("provenance", f"the reading does not tell {key!r}.")

    def check_shown(self) -> None:
        from workbench.figures.charts import charts

        reading, doing = self.plain, "repr()"
        try:
            assert repr(reading)
            doing = "frame()"
            assert len(reading.frame())
            fitting = [name for name, chart in charts().items() if not chart.lacks(reading.data)]
            if "chart" in reading.data.attrs or fitting:
                doing = "figure()"
                figure = reading.figure()
                doing = "figure().matplotlib()"
                figure.matplotlib("column")
                doing = "figure().caption()"
                assert figure.caption()
        except ContractBroken:
            raise
        except Exception as error:
            said = f"{doing} of the reading fails: {type(error).__name__}: {error}"
            raise ContractBroken("shown", said) from error

    def check_twin(self) -> None:
        if self.twin is not None:
            self.same("twin", self._read(self.made(self.all), model=self.twin), what=f"on {self.twin.device} gives")

    # ---------------------------------------------------------------- comparing

    @property
    def _name(self) -> str:
        return getattr(self.reader, "name", type(self.reader).__name__)

    def _planned(self) -> tuple[Any, Plan]:
        return _plan(self.reader, self.seen, self.prompts)

    def unchanged(self, check: str, after: str) -> None:
        for (what, before), now in zip(self.state.items(), _state(self.model).values(), strict=True):
            if before != now:
                raise ContractBroken(check, f"{after} leaves other {what} than were there before.")

    def same(
        self, check: str, found: Reading, prompts: list[tuple[int, int]] | None = None,
        positions: list[list[int]] | None = None, *, what: str, expected: Reading | None = None,
        summed: bool | None = False,
    ) -> None:  # fmt: skip
        """ContractBroken where a reading has other values than that of all inputs.

        prompts: (here, there) numbers of those to compare; None: all, and what is over all prompts, too.
        positions: for each prompt those that were read here; None: as there.
        summed: what has no prompts, alone (True) or as well (None).
        """
        mine, other = found.data, (expected or self.plain).data
        whole = prompts is None
        for name, variable in other.variables.items():
            dims, role = set(variable.dims), variable.attrs.get("role", "label")
            by_prompt = "prompt" in dims
            if not whole:
                # Controls are drawn at random, from the prompts that there are; a sink is one beside the others.
                if name in other.dims or role in (*CONTROLS, "mask"):
                    continue
                if by_prompt and (summed or (positions is not None and "position" not in dims)):
                    continue
                if not by_prompt and (summed is False or role != "value" or not _alike(mine, other, str(name))):
                    continue
            if name not in mine.variables:
                raise ContractBroken(check, f"{what} no {name!r}.", str(name))
            here, there = xr.DataArray(mine.variables[name]), xr.DataArray(variable)
            for dim in dims - {"prompt", "position"}:  # of fewer prompts there may be fewer labels
                if not whole and dim in mine.coords and dim in other.coords and not mine[dim].equals(other[dim]):
                    there = there.isel({dim: np.flatnonzero(np.isin(other[dim].values, mine[dim].values))})
            if whole or not by_prompt:
                self._compare(check, what, str(name), here, there, {}, other)
                continue
            for a, b in prompts or ():
                x, y, read = here.isel(prompt=a), there.isel(prompt=b), self.prompts[b].positions
                if "position" in dims:
                    slots = [read.index(at) for at in (read if positions is None else positions[b])]
                    x, y = x.isel(position=slice(len(slots))), y.isel(position=slots)
                self._compare(check, what, str(name), x, y, {"prompt": b}, other)

    def _compare(
        self, check: str, what: str, name: str, found: xr.DataArray, expected: xr.DataArray, place: dict[str, Any],
        data: xr.Dataset,
    ) -> None:  # fmt: skip
        a, b = found.values, expected.values
        if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
            said = f"{name!r} has the shape {a.shape} ({a.dtype}) where {what.removesuffix(' gives')}, not {b.shape}"
            raise ContractBroken(check, f"{said} ({b.dtype}).", name, place)
        if not a.size:
            return
        if a.dtype.kind in "fc":
            with np.errstate(invalid="ignore"):
                apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a.astype(float) - b))
                apart = np.where(np.isnan(apart), np.inf, apart)
                size = np.abs(np.where(np.isfinite(b), b, 0)).astype(float)
            # What is small beside the states that it was made from is not known any better than these.
            close, least = max(self.close, 2 * np.finfo(a.dtype).eps), min(self.close, 100 * self.rounding)
            wrong = apart > np.maximum(close * (size + min(1.0, size.max())), least)
            difference = float(apart.max())
        else:
            apart = (a != b).astype(float)
            wrong, difference = apart > 0, float(apart.sum())
            if difference <= self.ties * a.size:
                return
        if wrong.any():
            at = np.unravel_index(int(np.argmax(np.where(wrong, apart, -1))), a.shape)
            for dim, i in zip(expected.dims, at, strict=True):
                labels = data.coords[dim].values if dim in data.coords else None
                known = labels is not None and dim not in ("prompt", "position") and i < len(labels)
                label: Any = labels[i] if labels is not None and known else int(i)
                place[str(dim)] = label.item() if hasattr(label, "item") else label
            shown = ", ".join(f"{k} {v}" for k, v in place.items()) or "its only place"
            said = f"{what} another {name!r}: {a[at]} instead of {b[at]} at {shown}; "
            if a.dtype.kind in "fc":
                said += f"the largest difference is {difference:.3g}, in {int(wrong.sum())} of {a.size} places."
            else:
                said += f"{int(difference)} of {a.size} places differ."
            raise ContractBroken(check, said, name, place, difference)

    def identical(self, check: str, found: Reading, expected: Reading, what: str, apart: tuple[str, ...] = ()) -> None:
        """ContractBroken where two readings are not the same to the last bit."""
        for name in sorted({*map(str, found.data.variables), *map(str, expected.data.variables)}):
            if (name in found.data.variables) != (name in expected.data.variables):
                raise ContractBroken(check, f"{what} loses or adds {name!r}.", name)
            a, b = found.data.variables[name], expected.data.variables[name]
            kinds = [x.dtype if x.dtype.kind not in "OUS" else "text" for x in (a, b)]
            if not a.equals(b) or kinds[0] != kinds[1]:
                wrong = np.inf if a.shape != b.shape else float(np.sum(~_same(a.values, b.values)))
                said = f"{what} has another {name!r}: {a.dtype} {a.shape}, {wrong:g} places differ."
                raise ContractBroken(check, said, name, difference=wrong)
            if not _equal(dict(a.attrs), dict(b.attrs)):
                raise ContractBroken(check, f"{what} has other attributes of {name!r}: {a.attrs}, not {b.attrs}.", name)
        if not _equal(dict(found.data.attrs), dict(expected.data.attrs)):
            said = f"{what} has other attributes: {found.data.attrs}, not {expected.data.attrs}."
            raise ContractBroken(check, said)
        steps = [[{k: v for k, v in s.items() if k not in apart} for s in r.provenance] for r in (found, expected)]
        if steps[0] != steps[1]:
            changed = next(
                (k for a, b in zip(*steps, strict=False) for k in {*a, *b} if a.get(k) != b.get(k)), "number of steps"
            )
            shown = [next((s[changed] for s in own if changed in s), None) for own in steps]
            said = f"{what} has another provenance: {changed} {shown[0]!r:.80}, not {shown[1]!r:.80}."
            raise ContractBroken(check, said)


def _plan(reader: Any, model: Model, prompts: list[Prompt]) -> tuple[Any, Plan]:
    from workbench.readers import Run

    run = Run(model, prompts, list(range(max(len(p.positions) for p in prompts))))
    return run, reader.plan(run)


def _shown(reader: Any, model: Model, inputs: Any, positions: Positions) -> tuple[Any, list[Prompt]]:
    """The model and the prompts as a reader sees them: those of its stream."""
    if getattr(reader, "stream", "text") == "text":
        return model, encode(model, inputs, positions)
    through = Through(model, encode(model, inputs), positions)
    return through.model, through.prompts


def _stores(reader: Any, model: Model, inputs: Any, positions: Positions) -> bool:
    """Whether a reader keeps what it finds on its own, so that out= refuses it."""
    try:
        return _plan(reader, *_shown(reader, model, inputs, positions))[1].store is not None
    except WorkbenchError:
        return False


def _alike(a: xr.Dataset, b: xr.Dataset, name: str) -> bool:
    """Whether a variable is over the same labels in both."""
    if name not in a.variables or a[name].sizes != b[name].sizes:
        return False
    return all(a[d].equals(b[d]) for d in b[name].dims if d in b.coords and d in a.coords)


@contextlib.contextmanager
def _counted(model: Model, watched: _Watched, stop: int | None = None) -> Iterator[list[int]]:
    """The passes that a run makes of its prompts; in one of them a hook raises KeyboardInterrupt."""
    passes: list[int] = []

    def interrupt(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    def capture(*args: Any, **options: Any) -> Any:
        passes.extend([1] * watched.planned)
        if len(passes) != stop:
            return own(*args, **options)
        handle = model.module.register_forward_pre_hook(interrupt)
        try:
            return own(*args, **options)
        finally:
            handle.remove()

    own = loop.capture
    with mock.patch.object(loop, "capture", capture):
        yield passes


def _interrupted(model: Model, watched: _Watched) -> Any:
    """Ctrl-C at the start of the third batch."""
    return _counted(model, watched, 3)


def _state(model: Model) -> dict[str, Any]:
    """What a run must leave as it was."""
    parts = list(model.module.modules())
    return {
        "hooks": [[*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks] for m in parts],
        "train/eval modes": [m.training for m in parts],
        "random states of torch": torch.get_rng_state().tolist(),
        "random states of Python": random.getstate(),
        "random states of NumPy": repr(np.random.get_state()),  # noqa: NPY002 - it is the global one that is asked for
        "gradient modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "weights": [(p.data_ptr(), p._version) for p in model.module.parameters()],
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _fields(reader: Any) -> dict[str, Any]:
    """Copies of what a reader holds; large things of other kinds (an index) themselves."""

    def kept(value: Any) -> Any:
        if isinstance(value, (dict, list, set)):
            held = value.values() if isinstance(value, dict) else value
            return copy.copy(value) if any(map(_heavy, held)) else copy.deepcopy(value)
        return value.copy() if isinstance(value, np.ndarray) else value.clone() if isinstance(value, Tensor) else value

    return {name: kept(value) for name, value in vars(reader).items()} if hasattr(reader, "__dict__") else {}


def _heavy(value: Any) -> bool:
    return not isinstance(value, (str, int, float, bool, tuple, list, dict, set, type(None)))


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b)) if a.dtype.kind in "fc" and b.dtype.kind in "fc" else a == b


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and bool(np.all(_same(a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a is b or bool(a == b)
