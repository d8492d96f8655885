"""How a payload travels: one compressed block of text and numbers.

The same block is the widget's trait (in a notebook as base64), the answer to a question over the comm, and what an
offline page holds.  Inflated (zlib) it is

    4 bytes, the length of the JSON | JSON, UTF-8 | the bytes of all columns

A payload is a dict that JSON can hold, and columns anywhere in it: numbers that :func:`integers` or :func:`decimals`
made.  In the JSON a column is {"$": type, "at": offset of its first byte, "n": count}.  Its bytes stand apart by
significance, all low bytes first, which is what makes them compress.  u8, u16 and i32 are integers; the highest step
of an unsigned type is -1, "none".  d8 and d16 are decimals, (base + step) / 10^digits, the highest step "none".  What a
view shows is therefore the variable rounded to so many decimals, and nothing else.  Where a column says "by", only its
first so many steps are themselves: each of the others is how far the one that far before is above it, modulo the type
(scores fall from rank to rank, mostly by little).  A list that is :class:`Shared` travels as a column of numbers that
says "shared": they are places in the list "$shared" of the payload, which has each different text or tuple once.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TYPES = {"u8": "<u1", "u16": "<u2", "i32": "<i4", "d8": "<u1", "d16": "<u2"}
NONE = {"8": 255, "6": 65535}
"""The step that says "none", by the last figure of an unsigned type."""


@dataclass(frozen=True, eq=False)
class Column:
    """Numbers of a payload: steps of a type, and for decimals what a step is."""

    kind: str
    steps: np.ndarray
    base: int = 0
    digits: int = 0
    by: int = 0

    @property
    def values(self) -> np.ndarray:
        """The numbers as the front end reads them; -1 or NaN where there is none."""
        if self.kind == "i32":
            return self.steps.astype(int)
        steps = self.steps.astype(int)
        if self.by:
            rows = steps.reshape(-1, self.by)
            fallen = np.cumsum(np.concatenate([0 * rows[:1], rows[1:]]), 0)
            steps = ((rows[0] - fallen) % (NONE[self.kind[-1]] + 1)).ravel()
        none = steps == NONE[self.kind[-1]]
        if self.kind[0] == "u":
            return np.where(none, -1, steps)
        return np.where(none, np.nan, (self.base + steps) / 10.0**self.digits)


class Shared(list[Any]):
    """A list of texts, or of lists of these, many of which other lists of the payload hold, too."""


def integers(values: Any) -> Column:
    """Integers from -1 ("none") on."""
    values = np.asarray(values).ravel()
    high = int(values.max(initial=0))
    kind = "i32" if values.min(initial=0) < -1 or high >= 65535 else "u8" if high < 255 else "u16"
    return Column(kind, values.astype(np.int64).astype(TYPES[kind]))


def decimals(values: Any, digits: int, ends: tuple[float, float] | None = None, by: int = 0) -> Column:
    """Numbers rounded to so many decimals, or to as many as 65534 steps hold; NaN and infinities are none.

    ``ends``: the least and the greatest of the whole variable, where only a part of it is sent, so that a number is
    rounded in the same way in every part.  ``by``: each number travels as what it differs by from the one so many
    before, of which their count is a multiple; 0: as it is.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    there = np.isfinite(values)
    if ends is None:
        ends = (values[there].min(), values[there].max()) if there.any() else (0.0, 0.0)
    digits = places(*ends, digits)
    base = math.floor(ends[0] * 10.0**digits)
    kind = "d8" if ends[1] * 10.0**digits - base < 254 else "d16"
    none = NONE[kind[-1]]
    steps = np.full(values.shape, none, TYPES[kind])
    steps[there] = np.clip(np.round(values[there] * 10.0**digits) - base, 0, none - 1)
    if by and steps.size > by:
        steps[by:] = steps[:-by] - steps[by:]
    return Column(kind, steps, base, digits, by if steps.size > by else 0)


def places(low: float, high: float, most: int) -> int:
    """Decimals, at most so many, with which low..high has no more than 65533 steps."""
    return most if high - low <= 0 else min(most, math.floor(math.log10(65533 / (high - low))))


def texts(values: Iterable[str]) -> dict[str, Any]:
    """A table of texts, each different one once."""
    found: dict[str, int] = {}
    at = [found.setdefault(text, len(found)) for text in values]
    return {"texts": list(found), "at": integers(at)}


def pack(payload: Any) -> bytes:
    """The block of a payload."""
    numbers = bytearray()
    shared: dict[Any, int] = {}

    def told(own: Any) -> Any:
        if isinstance(own, Shared):
            keys = (tuple(one) if isinstance(one, list | tuple) else one for one in own)
            return place(integers([shared.setdefault(key, len(shared)) for key in keys])) | {"shared": True}
        if isinstance(own, Mapping):
            return {key: told(one) for key, one in own.items()}
        return [told(one) for one in own] if isinstance(own, list | tuple) else own

    def place(column: Any) -> dict[str, Any]:
        if not isinstance(column, Column):
            raise TypeError(f"{column!r:.60} cannot be part of a payload: give JSON values, integers() or decimals().")
        steps = column.steps
        head = {"$": column.kind, "at": len(numbers), "n": steps.size}
        numbers.extend(steps.view(np.uint8).reshape(steps.size, steps.itemsize).T.tobytes())
        head |= {"base": column.base, "digits": column.digits} if column.kind[0] == "d" else {}
        return head | ({"by": column.by} if column.by else {})

    sent = told(payload)
    if shared:
        sent = {**(sent if isinstance(sent, dict) else {"of": sent}), "$shared": list(shared)}
    text = json.dumps(sent, default=place, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    head = text.encode("utf-8", "replace")
    return zlib.compress(len(head).to_bytes(4, "little") + head + numbers, 3)  # 9 takes twice as long for 1 % less


def unpack(block: bytes) -> Any:
    """The payload of a block, as the front end has it."""
    raw = zlib.decompress(block)
    start = 4 + int.from_bytes(raw[:4], "little")

    lists: list[tuple[Shared, Column]] = []

    def column(found: dict[str, Any]) -> Any:
        if "$" not in found:
            return found
        if found.pop("shared", False):
            lists.append((Shared(), column(found)))
            return lists[-1][0]
        kind, size = found["$"], np.dtype(TYPES[found["$"]]).itemsize
        planes = np.frombuffer(raw, np.uint8, size * found["n"], start + found["at"]).reshape(size, -1)
        steps = np.ascontiguousarray(planes.T).view(TYPES[kind]).ravel()
        return Column(kind, steps, found.get("base", 0), found.get("digits", 0), found.get("by", 0))

    payload = json.loads(raw[4:start], object_hook=column)
    known = payload.pop("$shared", []) if lists else []
    for own, numbers in lists:
        own.extend(known[i] for i in numbers.values)
    return payload


def weight(value: Any) -> int:
    """Bytes of a part of a payload in a saved notebook: compressed, as base64."""
    return math.ceil(len(pack(value)) * 4 / 3)
