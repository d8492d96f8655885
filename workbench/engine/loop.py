"""The loop that runs models for readers: batches, halving, progress, interrupts, shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.engine.capture import capture
from workbench.engine.collect import Collected
from workbench.engine.drivers import Driver
from workbench.engine.hooks import untouched
from workbench.errors import InputError
from workbench.inputs import Batch, Prompt
from workbench.readers import Output, Plan, Run
from workbench.sinks import BINS, Norms
from workbench.sites import STREAM, Site

if TYPE_CHECKING:
    from workbench.model import Model

SHARD_TOKENS, SHARDS = 2048, 1000
"""Tokens of a shard of a run that is saved as it goes, and how many shards there are at most."""


@dataclass
class Result:
    """What a run came to: the arrays of each plan, and how many prompts were read."""

    found: list[dict[str, np.ndarray]]
    done: int = 0


@dataclass
class Store:
    """Where finished shards of a run are kept: which are there, how to load one, how to save one."""

    done: set[str]
    load: Callable[[str], dict[str, np.ndarray]]
    save: Callable[[str, dict[str, np.ndarray]], None]


def collect(
    model: Model,
    prompts: Sequence[Prompt],
    plans: Sequence[Plan],
    driver: Driver,
    *,
    positions: int,
    norms: Norms | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    partial: bool = False,
    store: Store | None = None,
    verb: str = "reading",
) -> Result:
    """Run the prompts and collect what the plans' ``observe`` makes of them.

    Parameters
    ----------
    positions
        Size of the position axis.
    norms
        Takes the norms of the stream's states, where the driver shows whole prompts.
    partial
        Return what was read so far on Ctrl-C.
    store
        Keep finished shards, and leave out those that are there.

    Returns
    -------
    Result
    """
    from tqdm.auto import tqdm

    wanted = {site for plan in plans for site in plan.sites if isinstance(site, Site) and site.kind in STREAM}
    measured = sorted(wanted) if norms is not None and driver.supports("whole") else []
    job = _Job(model, prompts, list(plans), driver, positions, norms, measured)
    if store is not None and (any(plan.store for plan in plans) or not driver.supports("shards")):
        raise InputError("out= cannot be resumed with a reader that stores on its own, or with this engine.")
    shards = [None] if store is None else _shards(prompts)
    whole, done = job.empty(None), 0

    def tokens(members: Iterable[int]) -> int:
        return sum(len(prompts[i].ids) for i in members)

    queue = driver.batches(range(len(prompts)), batch_size) if store is None else []
    total = tokens(i for batch in queue for i in batch) if store is None else tokens(range(len(prompts)))
    with (
        untouched(model.module),
        tqdm(total=total, unit="tok", desc=f"{verb} {model.name}", disable=not progress, delay=1.0) as bar,
    ):
        try:
            for number, members in enumerate(shards):
                name = f"shard-{number:05d}"
                if store is not None and members is not None and name in store.done:
                    _merge(whole, store.load(name), members)
                    done += len(members)
                    bar.update(tokens(members))
                    continue
                into = whole if members is None else job.empty(members)
                queue = queue if members is None else driver.batches(members, batch_size)
                try:
                    for ran in job.run(queue, into):
                        done += len(ran)
                        bar.update(tokens(ran))
                except KeyboardInterrupt:
                    if partial:
                        job.flush(into)
                        if members is not None:
                            _merge(whole, _part(into), members)
                    raise
                if store is not None and members is not None:
                    part = _part(into)
                    store.save(name, part)
                    _merge(whole, part, members)
        except KeyboardInterrupt:
            if not partial:
                raise
        finally:
            driver.forget()
    found = [own.found() for own in whole]
    if measured and norms is not None:
        norms.take(measured, **found.pop())
    return Result(found, done)


class _Job:
    """One run: what is wanted of each pass, and by whom."""

    def __init__(
        self, model: Model, prompts: Sequence[Prompt], plans: list[Plan], driver: Driver, positions: int,
        norms: Norms | None, measured: list[Site],
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.plans, self.driver = model, prompts, plans, driver
        self.norms, self.measured, self.positions = norms, measured, positions
        # A view is a set of rows: the positions that are read, and for some plans further ones.
        also = [plan.also for plan in plans if len(plan.also)]
        self.views = [_View(()), *map(_View, also)]
        at = iter(range(1, len(self.views)))
        self.view = [next(at) if len(plan.also) else 0 for plan in plans]
        self.wanted: dict[Any, set[int]] = {}
        self.last: dict[tuple[Any, int], int] = {}
        for i, plan in enumerate(plans):
            for site in plan.sites:
                self.wanted.setdefault(site, set()).add(self.view[i])
                self.last[site, self.view[i]] = i
        self.waiting: dict[int, _Waiting] = {i: _Waiting() for i, plan in enumerate(plans) if plan.gather}

    def empty(self, members: Sequence[int] | None) -> list[Collected]:
        """Nothing yet, over all prompts or some of them; the norms' come last."""
        made = []
        for plan in self.plans:
            sizes = {name: value if isinstance(value, int) else len(value) for name, value in plan.coords.items()}
            made.append(Collected(plan, {plan.axis: len(Run.depths(plan)), **sizes, **self._sizes}, members))
        if self.measured:
            made.append(Collected(_NORMS, {"site": len(self.measured), "kind": 2, "bin": BINS, **self._sizes}, members))
        return made

    @property
    def _sizes(self) -> dict[Any, int]:
        return {"prompt": len(self.prompts), "position": self.positions}

    def run(self, queue: list[list[int]], into: list[Collected]) -> Iterator[list[int]]:
        """Run batch after batch, and yield the members of each once it is kept."""
        while queue:
            batch = queue.pop(0)
            try:
                commits = self._batch(batch, into)
            except (torch.OutOfMemoryError, MemoryError):
                self.driver.forget()
                waited = any(waiting.rows for waiting in self.waiting.values())
                if (len(batch) == 1 and not waited) or not self.driver.supports("halving"):
                    raise
                torch.cuda.empty_cache()
                self.flush(into)  # what waits takes memory, too
                # Shorter batches from here on: the rest of the queue is as large as the one that failed.
                rest, queue = [batch, *queue], []
                for own in rest:
                    middle = (len(own) + 1) // 2
                    queue += [half for half in (own[:middle], own[middle:]) if half]
                continue
            for commit in commits:
                commit()
            yield batch
        self.flush(into)

    def _batch(self, members: list[int], into: list[Collected]) -> list[Callable[[], None]]:
        """Run one batch; what to do once all of it succeeded."""
        commits: list[Callable[[], None]] = []
        passes, output = self.driver.passes(members), None
        shown: tuple[list[Batch], dict[Any, dict[int, Any]]] | None = None
        while True:
            try:
                batch, forward = passes.send(output)
            except StopIteration:
                break
            if shown is not None:
                # Only now: what a sequence goes on with is known after the pass that chose it.
                self._observe(*shown, into, commits)
            views = [view.of(batch) for view in self.views]
            found = capture(
                self.model, batch, self.wanted, [view.rows for view in views], forward, norms=bool(self.measured)
            )
            output, shown = found.output, (views, found.states)
            if self.measured and self.norms is not None:
                norms = {site: found.norms[site] for site in self.measured}
                commits.append(_adding(into[-1], self.norms.measured(norms, batch), batch))
            del found
        if shown is not None:
            self._observe(*shown, into, commits)
        return commits

    def _observe(
        self, views: list[Batch], states: dict[Any, dict[int, Any]], into: list[Collected],
        commits: list[Callable[[], None]],
    ) -> None:  # fmt: skip
        for i, plan in enumerate(self.plans):
            view = self.view[i]
            # The last to look at a state lets go of it.
            own = {
                site: states[site].pop(view) if self.last[site, view] == i else states[site][view]
                for site in plan.sites
            }
            batch = views[view]
            if i not in self.waiting:
                commits.append(self._adding(i, plan.observe(own, batch), batch, into))
                continue
            waiting = self.waiting[i]
            if waiting.rows + len(batch) < plan.gather:
                commits.append(lambda w=waiting, s=own, b=batch: w.add(s, b))
            else:
                joined = waiting.joined(own, batch)
                commits.append(self._adding(i, plan.observe(*joined), joined[1], into))
                commits.append(waiting.clear)

    def _adding(self, i: int, values: Mapping[str, Any], batch: Batch, into: list[Collected]) -> Callable[[], None]:
        store = self.plans[i].store
        if store is not None:
            return lambda: store(values, batch)
        return _adding(into[i], values, batch)

    def flush(self, into: list[Collected]) -> None:
        """Show readers what waits for them: in parts, by prompts, where memory does not suffice."""
        for i, waiting in self.waiting.items():
            queue = [waiting.joined()] if waiting.rows else []
            waiting.clear()
            while queue:
                states, batch = queue.pop(0)
                try:
                    values = self.plans[i].observe(dict(states), batch)
                except (torch.OutOfMemoryError, MemoryError):
                    if len(batch.prompts) == 1:
                        raise
                    torch.cuda.empty_cache()
                    queue = [*_halves(states, batch), *queue]
                    continue
                self._adding(i, values, batch, into)()


def _adding(own: Collected, values: Mapping[str, Any], batch: Batch) -> Callable[[], None]:
    return lambda: own.add(values, batch)


class _View:
    """The rows of a batch that a plan looks at: the selected ones, and behind them further ones."""

    def __init__(self, also: Sequence[tuple[int, int]]) -> None:
        self.also = also
        self.by_prompt: dict[int, list[int]] = {}
        for k, (prompt, _) in enumerate(also):
            self.by_prompt.setdefault(prompt, []).append(k)

    def of(self, batch: Batch) -> Batch:
        if not self.by_prompt:
            return batch
        known = {key: i for i, key in enumerate(zip(batch.prompt.tolist(), batch.position.tolist(), strict=True))}
        which, where, more = [], [], []
        for row, prompt in enumerate(batch.prompts):
            for k in self.by_prompt.get(prompt, ()):
                key = (prompt, self.also[k][1])
                if key not in known:
                    if batch.first is None:  # a pass of parts of prompts has no other states
                        continue
                    known[key] = len(batch) + len(more)
                    more.append(int(batch.first[row]) + key[1])
                which.append(k)
                where.append(known[key])
        rows = torch.cat([batch.rows, torch.tensor(more, dtype=torch.long, device=batch.rows.device)])
        return dataclasses.replace(
            batch, rows=rows, also=np.array(which, np.int64), also_row=np.array(where, np.int64)
        )


@dataclass
class _Waiting:
    """Rows of several batches that are shown to a reader together."""

    parts: list[tuple[dict[Any, Any], Batch]] = field(default_factory=list)
    rows: int = 0

    def add(self, states: dict[Any, Any], batch: Batch) -> None:
        self.parts.append((states, batch))
        self.rows += len(batch)

    def clear(self) -> None:
        self.parts, self.rows = [], 0

    def joined(self, *more: Any) -> tuple[dict[Any, Any], Batch]:
        parts = [*self.parts, more] if more else self.parts
        if len(parts) == 1:
            return parts[0]
        states = {site: _joined([own[site] for own, _ in parts]) for site in parts[0][0]}
        batches = [batch for _, batch in parts]
        prompts = [p for b in batches for p in b.prompts]
        return states, Batch(prompts, {}, torch.zeros(0, dtype=torch.long), **_columns(batches))


def _halves(states: dict[Any, Any], batch: Batch) -> list[tuple[dict[Any, Any], Batch]]:
    """The rows of the first half of a batch's prompts, and those of the others."""
    middle, found = (len(batch.prompts) + 1) // 2, []
    for prompts in (batch.prompts[:middle], batch.prompts[middle:]):
        rows = torch.isin(batch.prompt, torch.tensor(prompts)).nonzero()[:, 0]
        own = {site: _taken(value, rows) for site, value in states.items()}
        found.append((own, Batch(prompts, {}, torch.zeros(0, dtype=torch.long), **_columns([batch], rows))))
    return [(own, part) for own, part in found if len(part)]


def _columns(batches: list[Batch], rows: Any = slice(None)) -> dict[str, Tensor]:
    names = ("prompt", "slot", "position", "input_ids")
    return {name: torch.cat([getattr(b, name) for b in batches])[rows] for name in names}


def _taken(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    return type(value)(*(_taken(column, rows) for column in value))


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    return type(values[0])(*(torch.cat(column) for column in zip(*values, strict=True)))


_NORMS = Plan(
    (),
    {
        "norm": Output(("prompt", "site", "position")),
        "counts": Output(("site", "kind", "bin"), dtype=np.int64, combine="sum"),
    },
    lambda states, batch: {},
)
"""What :class:`workbench.sinks.Norms` makes of every pass."""


def _shards(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompts in a row, as many as make a shard; the same however often a run is resumed."""
    found: list[list[int]] = []
    most = size = max(SHARD_TOKENS, -(-sum(len(prompt.ids) for prompt in prompts) // SHARDS))
    for i, prompt in enumerate(prompts):
        if size + len(prompt.ids) > most:
            found.append([])
            size = 0
        found[-1].append(i)
        size += len(prompt.ids)
    return found


def _part(collected: list[Collected]) -> dict[str, np.ndarray]:
    return {f"{i}.{name}": array for i, own in enumerate(collected) for name, array in own.part().items()}


def _merge(whole: list[Collected], part: Mapping[str, np.ndarray], members: Sequence[int]) -> None:
    for i, own in enumerate(whole):
        mark = f"{i}."
        own.merge({name[len(mark) :]: array for name, array in part.items() if name.startswith(mark)}, members)
