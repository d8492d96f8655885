"""What one process of a training run decides for all, and what all give to one: no process waits for another for ever.

Every process calls these functions in the same order.  An error in any of them is raised in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from workbench.errors import ReadingError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's rank, and how many processes train."""
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def agreed(decide: Callable[[], T]) -> T:
    """What ``decide`` gives in the process of rank 0, in all of them."""
    rank, count = place()
    own = _tried(decide) if rank == 0 else (None, None)
    told = [(own[0], _said(own[1]))]
    if count > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(told, from_process=0)
    if own[1] is not None:
        raise own[1]
    value, wrong = told[0]
    if wrong:
        raise ReadingError(f"The process of rank 0 could not go on: {wrong}")
    return value  # type: ignore[return-value]


def gathered(make: Callable[[], T]) -> list[T]:
    """What ``make`` gives in each process, by rank, in all of them."""
    _, count = place()
    value, error = _tried(make)
    every = [(value, _said(error))]
    if count > 1:
        from accelerate.utils import gather_object

        every = gather_object(every)
    if error is not None:
        raise error
    for rank, (_, wrong) in enumerate(every):
        if wrong:
            raise ReadingError(f"The process of rank {rank} could not go on: {wrong}")
    return [found for found, _ in every]  # type: ignore[misc]


def _tried(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _said(error: Exception | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"
