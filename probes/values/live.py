"""Reading values while a model trains, with the numbers that its saved checkpoints would give.

    trainer = SFTTrainer(..., callbacks=[ValueCallback(tracker)])

Works with ``transformers.Trainer`` and what is built on it (trl), in one process or several (DDP).  The model is left
as it was found, so that training ends in the weights that it would have ended in.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from probes.values.answers import Asker
from probes.values.measures import stance
from probes.values.parts import joined, parts, read_part
from probes.values.processes import agreed, gathered, place
from probes.values.training import as_saved, whole
from workbench.errors import InputError

if TYPE_CHECKING:
    from probes.values.tracker import Instrument, ValueTracker
    from workbench.reading import Reading


SHARE = 0.1
"""Of the training's own time: what reading may take by default, and beyond which it warns."""


def log_spaced(last: int, per_decade: int = 5) -> list[int]:
    """0, 1, 2, 3, 4, 6, 10, 16, ... up to ``last``: supervised training moves values early."""
    grown = [round(10 ** (k / per_decade)) for k in range(int(per_decade * np.log10(max(1, last))) + 1)]
    return sorted({0, *grown, last})


class ValueCallback(TrainerCallback):
    """Reads the tracker's items with its instruments at chosen steps of a training run.

    Args:
        tracker: where readings go; what is in it is not read again.
        tokenizer: of the model; None: the trainer's own (``processing_class``).
        at: the steps to read after, besides the first and the last, which are always read.  Step 0 is the model before
            training, as it is: with a new LoRA adapter that is the base, and with an adapter that was trained before,
            base and adapter.
        every: in place of ``at``: each so many steps.  Without either, steps are log-spaced, and as many of them are
            read as :data:`SHARE` of the training's time allows.
        batch_size: of the reading, 32 by default; seed: of instruments that draw.
        budget: how much longer reading may make the training, as a share of it; None: :data:`SHARE` (10 %) where
            neither ``at`` nor ``every`` is given, and no limit where one is.  The cost of a reading is measured at the
            first, the training's from its own steps; a step that would bring the whole run beyond is left out
            (:attr:`skipped`), but never the first and the last.
        alert: a function of the tracker, called after each reading; what it gives that is true stops the training.
            :func:`probes.values.alert.beyond` is one.
        log: a function of values and step, to show them elsewhere: ``lambda values, step: wandb.log(values)``.

    The rows are those of ``ValueTracker.run`` over the saved checkpoints, to the last bit where both compute alike: the
    same device, dtype of the weights, attention, TF32 setting and batch_size.  Adapters are read beside their base, not
    merged, there and here.  Several processes share the items, and rank 0 decides, writes and calls ``alert``; a judge
    that keeps its answers in a file needs one for each process.

    A run that is resumed goes on in its folder, which knows what was saved while it was read (:meth:`on_save`); steps
    that it comes to again with other weights are read again, and the old rows set aside.  The keyed stance of each
    topic (support and oppose where nothing is keyed), with its 95 % interval, goes into ``trainer.state.log_history``
    as "values/instrument/topic", the mass of the answers as "values/instrument/mass", and what reading took so far as
    "values/seconds"; the trainer's reporters are not told, since a callback has no way to them.  At the end what was
    read and what it took is written beside the trainer's progress; a warning comes as soon as reading is going to take
    more than the budget (or :data:`SHARE`) of the training's own time.

    Raises, in all processes: Refused for weights that are spread over processes (FSDP, ZeRO-3); InputError where the
    folder is another run's, and where there is no tokenizer to ask with.
    """

    def __init__(
        self,
        tracker: ValueTracker,
        tokenizer: Any = None,
        *,
        at: Iterable[int] | None = None,
        every: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        budget: float | None = None,
        alert: Callable[[ValueTracker], Any] | None = None,
        log: Callable[[dict[str, float], int], Any] | None = None,
    ) -> None:
        if budget is not None and not 0 < budget < 1:
            raise InputError(f"budget={budget} is no share of the training time. Use a number between 0 and 1.")
        if every is not None and (at is not None or every < 1):
            raise InputError(f"every={every} with at={at}. Give one of them; every is 1 step or more.")
        if budget is None and at is None and every is None:
            budget = SHARE
        self.tracker, self.tokenizer, self.at = tracker, tokenizer, None if at is None else {int(x) for x in at}
        self.every, self._asks_with = every, tokenizer
        self.batch_size, self.seed, self.budget, self.alert, self.log = batch_size, seed, budget, alert, log
        self.planned: list[int] = []
        self.skipped: list[int] = []
        self.stopped: int | None = None
        """The step after which the alert stopped the training."""
        self.seconds, self._took = 0.0, 0.0
        self._start, self._end = time.perf_counter(), None
        self._last, self._model = -1, None
        self._first, self._final, self._warned = 0, 0, False

    # ---------------------------------------------------------------- what the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        first, last = int(state.global_step), int(state.max_steps)
        self._start, self._end, self._last = time.perf_counter(), None, -1
        self.seconds, self._took, self.skipped, self.stopped = 0.0, 0.0, [], None
        self._first, self._final, self._warned = first, last, False
        steps = range(0, last + 1, self.every) if self.every else log_spaced(last) if self.at is None else self.at
        self.planned = sorted({0, last, *(x for x in steps if 0 <= x <= last)})
        given = more.get("processing_class")
        self._asks_with = getattr(given, "tokenizer", given) if self.tokenizer is None else self.tokenizer
        asked = next((x.name for x in self.tracker.instruments if isinstance(x, Asker)), None)
        if asked and not callable(getattr(self._asks_with, "decode", None)):
            raise InputError(
                f"There is no tokenizer, and {asked} asks in words: the trainer's processing_class is "
                f"{'missing' if given is None else 'a ' + type(given).__name__}. Give it to the trainer "
                "(Trainer(..., processing_class=tokenizer)) or to the callback "
                "(ValueCallback(tracker, tokenizer=tokenizer))."
            )
        if hasattr(self.alert, "planned"):
            self.alert.planned = max(1, len({*self.planned, *self.tracker.steps}) - 1)  # type: ignore[union-attr]
        with as_saved(model, self._asks_with):
            gathered(lambda: self._load(model))
            agreed(lambda: self._known(first, self._model.fingerprint))
        wanted = agreed(lambda: first in self.planned or not self.tracker.steps)
        self._visit(state, control, model, wanted, forced=True)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        step = int(state.global_step)
        self._visit(state, control, model, step in self.planned, forced=step == int(state.max_steps))

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        # Stopped early: after this the trainer may load the best weights, which are another step's.
        self._visit(state, control, model, bool(control.should_training_stop), forced=True)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        step = int(state.global_step)
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            self._visit(state, control, model, True, forced=True)
        elif self._last != step:
            self.skipped.append(step)
        self._end = time.perf_counter()
        if place()[0] == 0:
            from tqdm.auto import tqdm

            tqdm.write(self.summary())  # where the trainer's progress and its own summary are
            self._tell_of_cost(self.overhead)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Notes which weights were saved, so that a run that goes on from them is known to be this one."""
        if place()[0] == 0 and self._model is not None:
            self.tracker.saved(int(state.global_step), self._model.fingerprint)

    # ---------------------------------------------------------------- what it says

    @property
    def overhead(self) -> float:
        """Seconds of reading over seconds of everything else since training began, in this process."""
        now = time.perf_counter() if self._end is None else self._end
        return self.seconds / max(1e-9, now - self._start - self.seconds)

    def summary(self) -> str:
        """What was read, and what it took."""
        steps = [step for step in self.tracker.steps if step <= self._last]
        asked = ", ".join(instrument.name for instrument in self.tracker.instruments)
        lines = [
            f"Values: {len(self.tracker.items)} items by {asked}, read at {len(steps)} steps: "
            f"{', '.join(map(str, steps))}.",
            f"Reading took {self.seconds:.1f} s, {100 * self.overhead:.1f} % of the training's own time"
            + ("." if self.budget is None else f" (budget: {100 * self.budget:.1f} %)."),
        ]
        if self.skipped:
            lines.append(f"Left out: steps {', '.join(map(str, self.skipped))}.")
        if self.stopped is not None:
            lines.append(f"The alert stopped the training after step {self.stopped}.")
            if assumes := getattr(self.alert, "assumes", ""):
                lines.append(f"It assumes: {assumes}.")
        return "\n".join(lines)

    # ---------------------------------------------------------------- inside

    def _load(self, module: Any) -> None:
        """Proved anew each time: what training changes could be where the readout was proved to be."""
        import workbench

        whole(module)
        self._model = workbench.load(module, tokenizer=self._asks_with)

    def _known(self, step: int, fingerprint: str) -> None:
        """InputError where the tracker's folder is of another run than the one that begins or goes on at this step."""
        steps = self.tracker.steps
        if not steps:
            return
        where = f"{self.tracker.path} holds readings of steps {', '.join(map(str, steps[:5]))}"
        where += ", ..." * (len(steps) > 5)
        if step == 0 and steps[-1] > 0:
            raise InputError(
                f"{where}, and this run begins at step 0. Rows of two runs in one folder would be taken for one: use "
                "another folder, or resume the run (resume_from_checkpoint)."
            )
        known = self.tracker.fingerprint(step)
        if known is None:
            raise InputError(
                f"{where}, and nothing there knows step {step}, from which this run goes on: they may be of another. "
                f"If not, read that checkpoint first (tracker.run({{{step}: folder}})); otherwise use another folder."
            )
        if known != fingerprint:
            raise InputError(
                f"{where}; the model of step {step} is {known} there and {fingerprint} here: this is another run, or "
                "the same in another dtype or without its adapter. Use another folder."
            )

    def _visit(self, state: Any, control: Any, module: Any, wanted: bool, *, forced: bool) -> None:
        """Read this step, if it is wanted, not there yet, and within the budget; the same in every process."""
        step = int(state.global_step)
        if not wanted or step == self._last:
            return
        start, tracker = time.perf_counter(), self.tracker
        with as_saved(module, self._asks_with):
            if not agreed(lambda: forced or self._affordable(step)):
                self.skipped.append(step)
                return
            gathered(lambda: self._load(module))
            about = {"fingerprint": self._model.fingerprint, "seed": self.seed}
            todo = [tracker.instruments[k] for k in agreed(lambda: self._todo(step, about["fingerprint"]))]
            for instrument in todo:
                shares = gathered(lambda instrument=instrument: self._share(instrument))
                tables = {k: table for own in shares for k, table in own.items()}
                agreed(lambda i=instrument, t=tables: tracker.add(step, i, joined(i, tracker.items, t), **about))
            self._last = step
            self.skipped = [x for x in self.skipped if x != step]
            if todo:
                agreed(lambda: self._show(step, state, todo))
                alert = self.alert
                if alert is not None and agreed(lambda: bool(alert(tracker))):
                    self.stopped = step
                    control.should_training_stop = True
        self._took = time.perf_counter() - start
        self.seconds += self._took
        if place()[0] == 0 and self._first < step < self._final:
            left = sum(x > step for x in self.planned) if self.budget is None else 1
            self._tell_of_cost((self.seconds + left * self._took) / max(1e-9, self._whole(step)))

    def _whole(self, step: int) -> float:
        """Seconds that the training itself is going to take, by what its steps so far took."""
        own = time.perf_counter() - self._start - self.seconds
        return own * (self._final - self._first) / max(1, step - self._first)

    def _affordable(self, step: int) -> bool:
        """Whether the run stays within the budget with this reading and the last, each as long as the one before."""
        if self.budget is None or all(self.tracker.there(step, x) for x in self.tracker.instruments):
            return True
        return self.seconds + 2 * self._took <= self.budget * self._whole(step)

    def _tell_of_cost(self, share: float) -> None:
        """Warn, once a run, where reading takes a larger share of the training's time than it should."""
        most = SHARE if self.budget is None else self.budget
        if share <= most or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"Reading values makes this run {100 * share:.0f} % longer (more than {100 * most:.0f} %): one reading "
            f"takes {self._took:.1f} s, and {len(self.planned)} steps are planned. Read fewer items or framings, or "
            "fewer steps (every=, at=[] for the first and the last alone, budget=).",
            stacklevel=2,
        )

    def _todo(self, step: int, fingerprint: str) -> list[int]:
        """Numbers of the instruments that have not read this step."""
        tracker = self.tracker
        if step in tracker.steps and tracker.fingerprint(step) != fingerprint:
            warnings.warn(
                f"{tracker.path} has step {step} of other weights: the run that came so far before did not come to "
                "these, to the last bit. Its rows are set aside, and the step is read again.",
                stacklevel=2,
            )
            tracker.set_aside(step)
        return [k for k, instrument in enumerate(tracker.instruments) if not tracker.there(step, instrument)]

    def _share(self, instrument: Instrument) -> dict[int, Reading]:
        """This process's parts of a reading, by their number."""
        rank, count = place()
        items, cuts = self.tracker.items, parts(instrument, self.tracker.items)
        mine = range(rank, len(cuts), count)
        return {k: read_part(instrument, self._model, items, cuts[k], self.batch_size, self.seed) for k in mine}

    def _show(self, step: int, state: Any, instruments: Iterable[Instrument]) -> None:
        """The stances of this step into the trainer's history, and to ``log``."""
        values: dict[str, float] = {}
        kept = self.tracker.kept  # others give no stances
        for instrument in (x for x in instruments if f"{x.name} {x.settings}" in kept):
            now = stance(self.tracker.readings(instrument).sel(checkpoint=[step])).data.isel(checkpoint=0)
            for topic in now["topic"].values:
                name, one = f"values/{instrument.name}/{topic}", now.sel(topic=topic)
                shown = {name: (one, "keyed")}
                if np.isnan(one["keyed"]):
                    shown = {f"{name}/{side}": (one.sel(stance=side), "v") for side in ("support", "oppose")}
                for key, (cell, column) in shown.items():
                    values |= {key + end: float(cell[column + end]) for end in ("", "_low", "_high")}
            if "mass" in now:
                values[f"values/{instrument.name}/mass"] = float(now["mass"].mean())
        values = {key: value for key, value in values.items() if value == value}
        if self._first < step:  # at the first step there is nothing to compare with
            values["values/seconds"] = round(self.seconds, 3)
        state.log_history.append({**values, "epoch": state.epoch, "step": step})
        if self.log is not None:
            self.log(values, step)
