"""What readers' outputs of many batches come to: placed, summed or concatenated, and parts of it on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.readers import Found, Output, Plan

if TYPE_CHECKING:
    from workbench.inputs import Batch


class Collected:
    """The arrays of one plan over some of a run's prompts.

    Parameters
    ----------
    plan
        Whose outputs.
    sizes
        Size of each dimension, over the whole run.
    members
        Numbers of the prompts that it is over, ascending; None: all.
    """

    def __init__(self, plan: Plan, sizes: Mapping[str, int], members: Sequence[int] | None = None) -> None:
        self.plan = plan
        self.members = None if members is None else np.asarray(members)
        self.sizes = dict(sizes) if members is None else {**sizes, "prompt": len(members)}
        self._arrays: dict[str, np.ndarray] = {}
        self._rows: dict[str, list[np.ndarray]] = {}
        for name, output in plan.outputs.items():
            if output.combine == "concat":
                self._rows[name] = []
            else:
                # Sums are over all prompts, whichever are read here.
                sizes_ = self.sizes if output.combine == "place" else sizes
                missing = [dim for dim in output.dims if dim not in sizes_]
                if missing:
                    raise WorkbenchError(
                        f"Output {name!r} has the dimension {missing[0]!r}, whose size is not known. Name it in coords."
                    )
                fill = output.fill if output.combine == "place" else 0
                shape = [sizes_[dim] for dim in output.dims]
                self._arrays[name] = np.full(shape, _blank(output) if fill is None else fill, output.dtype)

    def add(self, values: Mapping[str, Any], batch: Batch) -> None:
        """What ``observe`` gave for a batch; all of it, or WorkbenchError and nothing."""
        unknown = set(values) - set(self.plan.outputs)
        if unknown:
            raise WorkbenchError(
                f"observe() gave {sorted(unknown)[0]!r}, which is no output. Outputs: {', '.join(self.plan.outputs)}."
            )
        outputs = self.plan.outputs
        left = [n for n, a in self._arrays.items() if outputs[n].combine == "place" and a.size and n not in values]
        if left:
            raise WorkbenchError(f"observe() left out {left[0]!r}, which the plan names as an output of every row.")
        prompt, slot = batch.prompt.numpy(), batch.slot.numpy()
        if self.members is not None:
            prompt = np.searchsorted(self.members, prompt)
        for name, value in values.items():
            output = self.plan.outputs[name]
            if output.combine == "place":
                self._place(name, output, _array(value), prompt, slot)
            elif output.combine == "sum":
                if isinstance(value, tuple):
                    index, rows = map(_array, value)
                    if len(np.unique(index)) == len(index):
                        self._arrays[name][index] += rows.astype(self._arrays[name].dtype, copy=False)
                    else:
                        np.add.at(self._arrays[name], index, rows)
                else:
                    self._arrays[name] += _array(value).astype(self._arrays[name].dtype, copy=False)
            else:
                self._rows[name].append(_array(value).astype(output.dtype, copy=False))
        self._cut()

    def _place(self, name: str, output: Output, value: np.ndarray, prompt: np.ndarray, slot: np.ndarray) -> None:
        array, dims = self._arrays[name], output.dims
        places = [dims.index(dim) for dim in ("prompt", "position") if dim in dims]
        expected = tuple(n for i, n in enumerate(array.shape) if i not in places)
        if len(value) != len(prompt) or value.shape[1:] != expected:
            rest = ", ".join(["selected", *(d for d in dims if d not in ("prompt", "position"))])
            raise WorkbenchError(
                f"observe() gave {name!r} the shape {value.shape}; expected [{rest}] = {(len(prompt), *expected)}."
            )
        moved = np.moveaxis(array, places, range(len(places)))
        moved[(prompt, slot)[: len(places)]] = value

    def _cut(self, *, always: bool = False) -> None:
        """Order concatenated rows by their keys, and drop what is not kept, when enough have come to be worth it."""
        keys = [name for name in self._rows if self.plan.outputs[name].key]
        keep = min((o.keep for o in self.plan.outputs.values() if o.keep), default=None)
        if not keys:
            return
        rows = sum(map(len, self._rows[keys[0]]))
        if not always and (keep is None or rows < 2 * keep or len(self._rows[keys[0]]) < 2):
            return
        whole = {name: self._whole(name) for name in self._rows}
        order = np.lexsort([whole[name] for name in reversed(keys)])[:keep]
        self._rows = {name: [array[order]] for name, array in whole.items()}

    def _whole(self, name: str) -> np.ndarray:
        parts = self._rows[name]
        if parts:
            return np.concatenate(parts) if len(parts) > 1 else parts[0]
        output = self.plan.outputs[name]
        return np.zeros((0, *(self.sizes[dim] for dim in output.dims[1:])), output.dtype)

    def found(self) -> Found:
        """The arrays, by output."""
        self._cut(always=True)
        return {name: self._arrays[name] if name in self._arrays else self._whole(name) for name in self.plan.outputs}

    # ---------------------------------------------------------------- parts

    def part(self) -> dict[str, np.ndarray]:
        """What :meth:`merge` of another takes: the arrays, of sums only the rows that are not zero."""
        found: dict[str, np.ndarray] = {}
        for name, array in self.found().items():
            if self.plan.outputs[name].combine == "sum" and array.ndim:
                rows = np.flatnonzero(array.reshape(len(array), -1).any(1))
                found[f"{name}.rows"], array = rows, array[rows]
            found[name] = np.asarray(array, order="C")
        return found

    def merge(self, part: Mapping[str, np.ndarray], members: Sequence[int]) -> None:
        """Take in a part over the prompts ``members``."""
        where = np.asarray(members) if self.members is None else np.searchsorted(self.members, members)
        for name, output in self.plan.outputs.items():
            array = part[name]
            if output.combine == "place":
                np.moveaxis(self._arrays[name], output.dims.index("prompt"), 0)[where] = np.moveaxis(
                    array, output.dims.index("prompt"), 0
                )
            elif output.combine == "sum":
                rows = part.get(f"{name}.rows")
                self._arrays[name][rows if rows is not None else ...] += array
            else:
                self._rows[name].append(array)
        self._cut()


def _blank(output: Output) -> Any:
    kind = np.dtype(output.dtype).kind
    return np.nan if kind in "fc" else -1 if kind == "i" else 0


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach()
        return (value.float() if value.dtype.itemsize == 2 and value.is_floating_point() else value).cpu().numpy()
    return np.asarray(value)
