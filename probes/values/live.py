"""Reading values while a model trains, with the numbers that its saved checkpoints would give.

    trainer = Trainer(..., callbacks=[ValueCallback(tracker, tokenizer)])

Works with ``transformers.Trainer`` and what is built on it (trl).  Random state, train or eval mode, gradients and
adapters are left as they were found, so that training ends in the weights that it would have ended in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from workbench.errors import InputError

if TYPE_CHECKING:
    from probes.values.tracker import ValueTracker


def log_spaced(last: int, per_decade: int = 5) -> list[int]:
    """0, 1, 2, 3, 4, 6, 10, 16, ... up to ``last``: supervised training moves values early."""
    grown = [round(10 ** (k / per_decade)) for k in range(int(per_decade * np.log10(max(1, last))) + 1)]
    return sorted({0, *grown, last})


class ValueCallback(TrainerCallback):
    """Reads the tracker's items with its instruments at chosen steps of a training run.

    Args:
        tracker: where readings go; steps that are in it are not read again.
        tokenizer: of the model.
        at: the steps to read after; None: log-spaced, and the last.  0 is the model before training.
        batch_size: of the reading.
        budget: share of the time since training began that reading may take.  Beyond it steps are left out, but never
            the first and the last; :attr:`skipped` has them.
        alert: a function of the tracker, called after each reading; what it gives that is true stops the training.
            Give it :func:`probes.values.drift.drift` of ``tracker.readings()`` for a simultaneous bound.

    Only the process of rank 0 reads and writes.
    """

    def __init__(
        self,
        tracker: ValueTracker,
        tokenizer: Any,
        *,
        at: Iterable[int] | None = None,
        batch_size: int | None = None,
        budget: float | None = None,
        alert: Callable[[ValueTracker], Any] | None = None,
    ) -> None:
        if budget is not None and not 0 < budget < 1:
            raise InputError(f"budget={budget} is no share of the training time. Use a number between 0 and 1.")
        self.tracker, self.tokenizer, self.at = tracker, tokenizer, None if at is None else {int(x) for x in at}
        self.batch_size, self.budget, self.alert = batch_size, budget, alert
        self.skipped: list[int] = []
        self.seconds = 0.0
        self._model: Any = None
        self._start = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        self._start = time.perf_counter()
        if self.at is None:
            self.at = set(log_spaced(int(state.max_steps)))
        self._model = None
        self._read(state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        self._read(state, control, model)

    @property
    def overhead(self) -> float:
        """Seconds of reading over seconds of everything else."""
        return self.seconds / max(1e-9, time.perf_counter() - self._start - self.seconds)

    def _read(self, state: Any, control: Any, module: Any) -> None:
        import workbench

        step = int(state.global_step)
        if step not in (self.at or ()) or not state.is_world_process_zero or step in self.tracker.steps:
            return
        ends = step == 0 or step == int(state.max_steps)
        spent = self.seconds / max(1e-9, time.perf_counter() - self._start)
        if self.budget is not None and not ends and spent > self.budget:
            self.skipped.append(step)
            return
        start = time.perf_counter()
        if self._model is None:
            # Proved once: training changes weights, and not where they are.
            self._model = workbench.load(getattr(module, "module", module), tokenizer=self.tokenizer)
        self._model.__dict__.pop("fingerprint", None)
        for instrument in self.tracker.instruments:
            data = instrument.read(self._model, self.tracker.items, batch_size=self.batch_size, progress=False)
            self.tracker.add(step, instrument, data, fingerprint=self._model.fingerprint)
        self.seconds += time.perf_counter() - start
        if self.alert is not None and self.alert(self.tracker):
            control.should_training_stop = True
