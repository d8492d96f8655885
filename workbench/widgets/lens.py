"""Readings over depth and position as the lens explorer's front end takes them, prompt by prompt.

A notebook holds a part (:func:`part`): every reading's first prompt, and more while there is room.  The rest stays in
the kernel, and is packed when it is asked for (:func:`one`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.figures.patches import Picture
from workbench.figures.source import Source, short_name
from workbench.widgets.base import LONGEST, are_several, clipped, contexts, each, opened
from workbench.widgets.packing import Column, Shared, decimals, integers, pack, places, weight

if TYPE_CHECKING:
    import xarray as xr

WHOLE = 4_200_000  # bytes of one block; as base64 under 6 MB.  Beyond it fewer ranks are sent, never fewer cells.
PICTURED = 2_150_000  # of readings with pictures, whose pages are to be under 3 MB
KINDS = ("text", "image", "padding")
COMPONENT = "component"


def whole(packers: Sequence[Packer]) -> list[list[dict[str, Any]]]:
    """All prompts of each reading; with fewer ranks where they would pass 6 MB, with pictures 3 MB."""
    album = packers[0].album
    if not album.pictures:
        return _fitting(packers, lambda keep: _every(packers, keep), WHOLE)[0]
    room = PICTURED - len(pack(album.sent()))
    if len(pack(found := _every(packers, max(packer.top_k for packer in packers)))) <= room:
        return found
    album.digits = 2  # rather than fewer ranks
    return _fitting(packers, lambda keep: _every(packers, keep), room)[0]


def _every(packers: Sequence[Packer], ranks: int) -> list[list[dict[str, Any]]]:
    return [[own.prompt(p, ranks) for p in range(own.count)] for own in packers]


def one(packer: Packer, prompt: int) -> bytes:
    """The block of one prompt with its pictures; with fewer ranks where it would pass 6 MB."""
    own = packer.pictures[prompt].values()
    sources = {"sources": {str(i): packer.album.pictures[i].src for i in own}} if own else {}
    return _fitting([packer], lambda keep: {**packer.prompt(prompt, keep), **sources}, WHOLE)[1]


def _fitting(packers: Sequence[Packer], made: Callable[[int], Any], room: int) -> tuple[Any, bytes]:
    most = max(1, *(packer.top_k for packer in packers))
    block = pack(found := made(most))
    if len(block) <= room:
        return found, block
    fits = 0
    while most - fits > 1:
        tried = pack(own := made(middle := (fits + most) // 2))
        if len(tried) > room and middle > 1:
            most = middle
        else:
            fits, found, block = middle, own, tried
    return found, block


def part(packers: Sequence[Packer], limit: int) -> list[list[dict[str, Any]]]:
    """Prompts of each reading that take at most about `limit` bytes in a saved notebook, for the first look and later.

    Every reading gets an equal share.  Its first prompt comes first: whole, or with fewer ranks, or with its last
    positions only.  Further prompts follow while there is room.  Pictures come with the prompts that show them, once
    for all readings.
    """
    parts, album = [], packers[0].album
    room = limit - sum(weight(packer.head()) for packer in packers)
    for left, packer in zip(range(len(packers), 0, -1), packers, strict=True):
        share, prompts = room // left, list[dict[str, Any]]()
        for p in range(packer.count):
            new = [i for i in packer.pictures[p].values() if i not in album.held]
            seen = sum(len(album.pictures[i].src) for i in new)  # base64 in a block is as large as itself
            if share <= (seen if p else 0) or (found := _within(packer, p, share - seen, cut=p == 0)) is None:
                break
            share -= (used := weight(found) + seen)
            room -= used
            album.held.update(new)
            prompts.append(found)
        parts.append(prompts + [packer.stub(p) for p in range(len(prompts), packer.count)])
    return parts


def _within(packer: Packer, p: int, room: int, cut: bool) -> dict[str, Any] | None:
    fewest = (1,) if packer.pictures[p] else ()  # rather than half of a picture
    for ranks in dict.fromkeys(min(k, packer.top_k) for k in (packer.top_k, 5, 3, *fewest)):
        if packer.raw(p, ranks) < 8 * room and weight(found := packer.prompt(p, ranks)) <= room:
            return found
    if not cut:
        return None
    low, high = 1, len(packer.source.positions(p))  # `low` is taken whether it fits or not: something is to be seen
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        fits = packer.raw(p, ranks, middle) < 8 * room and weight(packer.prompt(p, ranks, middle)) <= room
        low, high = (middle, high) if fits else (low, middle)
    return packer.prompt(p, ranks, low)


# ---------------------------------------------------------------- one reading


class Album:
    """The pictures of all readings that are explored together, each different one once.

    held    numbers of those that are sent with the first block; the others come with their prompts
    digits  decimals of what is told of them at most
    """

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.held: set[int] = set()
        self.digits = 3

    def number(self, picture: Picture) -> int:
        if picture not in self.pictures:
            self.pictures.append(picture)
        return self.pictures.index(picture)

    def sent(self, all_of_them: bool = True) -> list[dict[str, Any]]:
        return [
            {"src": own.src * (all_of_them or i in self.held), "width": own.width, "height": own.height}
            for i, own in enumerate(self.pictures)
        ]


class Packer:
    """One reading, packed prompt by prompt.

    depth     "layer" or "block"; for attributions "component", whose rows are the parts that write to the stream
    call      the reading in a line of Python
    pictures  of each prompt, number in the prompt -> number in the album
    """

    def __init__(
        self, name: str, reading: Any, top_k: int | None = None, call: str = "reading", album: Album | None = None
    ) -> None:
        self.name, self.call = name, call
        self.album = album or Album()
        data, self.provenance = opened(reading)
        self.source = source_of(data)
        self.data = self.source.data
        self.depth = str(self.source.depth)
        self.count = int(self.data.sizes["prompt"])
        self.ranks = int(self.data.sizes["rank"]) if self.source.has("token_id") else 0
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}: the explorer shows the nearest tokens, so at least one. Give 1 or more.")
        self.top_k = min(top_k or self.ranks, self.ranks)
        model = self.provenance.get("model") or {}
        self.model = label(short_name(str(model.get("name") or self.source.model)))
        self.fingerprint = label(str(model.get("fingerprint") or ""))
        own = (patches.pictures(self.source, p) for p in range(self.count))
        self.pictures = [{i: self.album.number(picture) for i, picture in found.items()} for found in own]

    @property
    def score(self) -> str | None:
        return self.source.score if self.ranks else None

    @cached_property
    def grids(self) -> dict[str, np.ndarray]:
        """name -> [prompt, target, depth, position]: values, what they are compared with cell by cell, and sinks.

        Labels whose order means something (the index layer that a context is from) are those of the first rank.
        """
        names = [n for n in self.source.grids() if "rank" not in self.data[n].dims]
        names += self.ordered
        if self.source.has("sink") and self.depth in self.data["sink"].dims:
            names.append("sink")
        found = {}
        for name in names:
            grid = self.data[name]
            grid = grid.isel(rank=0) if "rank" in grid.dims else grid
            grid = grid if "target" in grid.dims else grid.expand_dims("target")
            found[name] = grid.transpose("prompt", "target", self.depth, "position").values
        return found

    @property
    def metrics(self) -> list[str]:
        """What its cells can show."""
        top = ["top"] if self.ranks else []
        if self.score:
            top += [*(["probability"] if self._log_prob(self.score) else []), self.score]
        tests = [name for name in self.grids if self.source.about(name)["role"] in ("p", "q")]
        return [*top, *(name for name in self.source.values() if name in self.grids), *self.ordered, *tests]

    @property
    def ordered(self) -> list[str]:
        """Labels over depth and position whose order means something."""
        wanted = {"prompt", self.depth, "position"}
        found = [str(n) for n, v in self.data.data_vars.items() if v.attrs.get("scale") == "order"]
        return [n for n in found if wanted <= set(self.data[n].dims) <= {*wanted, "rank"}]

    def _log_prob(self, name: str) -> bool:
        return self.source.about(name).get("scale") == "log-prob"

    @cached_property
    def shown(self) -> dict[str, dict[str, Any]]:
        """What the front end knows of each variable and metric: name, units, colours, and what it is compared with."""
        found: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys([*filter(None, [self.score]), *self.grids]):
            own, source = self.source.about(name), self.source
            found[name] = {
                "name": label(source.called(name, short=True)), "units": label(str(own["units"])), "role": own["role"],
                "colours": source.scale(name), "log": own.get("scale") == "log", "log_prob": self._log_prob(name),
                "whole": self.data[name].dtype.kind in "iu",
                "nulls": [n for n in source.controls(name, "null") if n in self.grids],
            }  # fmt: skip
        plain = {"units": "", "role": "value", "log": False, "log_prob": False, "whole": False, "nulls": []}
        score = found.get(self.score or "", {**plain, "colours": "sequential"})
        if self.ranks:
            found["top"] = {**score, "name": "top token"}
        if "probability" in self.metrics:
            found["probability"] = {**plain, "colours": score["colours"], "name": "probability"}
        return found

    @cached_property
    def tokens(self) -> list[int]:
        """Ids of the tokens in its cells."""
        ids = np.unique(self.data["token_id"].values) if self.ranks else np.zeros(0, dtype=int)
        return ids[ids >= 0].tolist()

    def columns(self, prompt: int) -> list[int]:
        """The `position` coordinates of a prompt's own tokens."""
        real = self.source.positions(prompt)
        own = self.data["position"].values[real] if "position" in self.data.coords else real
        return [int(i) for i in own]

    def home(self, prompt: int) -> int:
        """Where a look at a prompt begins: in the middle of its first picture, or else at its last token."""
        columns, where = self.columns(prompt), patches.seen(self.source, prompt)
        if where is None or not self.pictures[prompt]:
            return columns[-1]
        image = min(where.image[where.image >= 0])
        if not (tiles := where.tiles(image)):
            return columns[-1]
        at, own = where.of(image, tiles[0]), self.album.pictures[self.pictures[prompt][image]]
        middle = (where.box[at, :2] + where.box[at, 2:]) / 2 - (own.width / 2, own.height / 2)
        return columns[at[np.hypot(*middle.T).argmin()]]

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each variable over the whole reading."""
        found = {g: _range(v[v >= 0] if v.dtype.kind == "i" else v) for g, v in self.grids.items()}
        if self.score:
            found[self.score] = _range(self.data[self.score].values)
        return found

    @cached_property
    def domain(self) -> dict[str, tuple[float, float]]:
        """The ends of each variable's colours: for scores, those of the top rank."""
        top = {self.score: _range(self.data[self.score].isel(rank=0).values)} if self.score else {}
        ends = {**self.ranges, **top}
        even = {n: max(map(abs, both)) for n, both in ends.items() if self.source.scale(n) == "diverging"}
        return {**ends, **{name: (-most, most) for name, most in even.items()}}

    def head(self) -> dict[str, Any]:
        """What holds for all prompts of the reading."""
        source, parts, pictured = self.source, self.depth == COMPONENT, patches.pictured(self.source)
        return {
            "name": label(self.name),
            "call": self.call,
            "reader": label(source.reader),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "depth": self.depth,
            "depth_label": label(source.depth_label) if not parts else COMPONENT,
            "depths": [label(str(d)) for d in source.depths] if parts else [int(d) for d in source.depths],
            "ranks": self.ranks,
            "top_k": self.top_k,
            "score": self.score,
            "metrics": self.metrics,
            "variables": self.shown,
            "followed": self.source.followed,
            "domain": {name: [float(x) for x in ends] for name, ends in self.domain.items()},
            "digits": {name: places(*ends, self._most(*ends)) for name, ends in self.ranges.items()},
            "wide": [g for g, v in self.grids.items() if v.shape[1] > 1],
            "targets": [] if source.own_targets or "target" not in self.data.coords else self.targets(0),
            "floor": _floor(source, "text"),
            "means": self._means("text"),
            **({"floor_image": _floor(source, "image"), "means_image": self._means("image")} if pictured else {}),
            "sink": label(source.sink_said),
        }

    def targets(self, p: int) -> list[str]:
        return [shown(t) for t in self.source.targets(p, 0)]

    def _means(self, kind: str) -> dict[str, dict[str, Any]]:
        """Value -> its null by depth alone, [target][depth], with its name: what a position's is compared with."""
        means = {}
        for name in self.metrics:
            for null in self.source.controls(name, "null") if name in self.grids else ():
                found = self.data[null]
                if self.source.holds_for(null, kind) and {self.depth} <= set(found.dims) <= {self.depth, "target"}:
                    found = found if "target" in found.dims else found.expand_dims("target")
                    rows, digits = found.transpose("target", self.depth).values, self._most(*self.ranges[name])
                    values = [[_float(x, digits) or 0.0 for x in row] for row in rows]
                    means[name] = {"name": label(self.source.called(null, short=True)), "values": values}
        return means

    def stub(self, p: int) -> dict[str, Any]:
        """A prompt that is not sent: its text (where there are not too many to list) and its length."""
        text = self.source.prompt_text(p) if self.count <= 300 else ""
        text = tokens.visible(text[:60]).replace(tokens.SPACE, " ") if text else f"prompt {p}"
        own = {"targets": self.targets(p)} if self.source.own_targets else {}
        return {"text": text, "count": len(self.source.positions(p)), **own}

    def raw(self, p: int, ranks: int, last: int | None = None) -> int:
        """Bytes of the prompt's numbers before compression, about."""
        cells = len(self.source.depths) * min(last or 10**9, len(self.source.positions(p)))
        said = 6 if self.source.has("sentence") else 0
        return cells * (ranks * (4 + said) + sum(2 * g.shape[1] for g in self.grids.values()))

    def prompt(self, p: int, ranks: int, last: int | None = None) -> dict[str, Any]:
        """One prompt.

        ranks   tokens for each cell, from the top
        last    how many positions to keep, counted from the end; all by default
        """
        source, data = self.source, self.data
        ranks = min(ranks, self.top_k)
        real = source.positions(p)
        inputs = source.inputs(p)
        keep = slice(max(0, len(real) - last) if last else 0, None)
        real, inputs = real[keep], inputs[keep]
        own = source.places(p)[keep]
        sent: dict[str, Any] = {
            **self.stub(p),
            "ranks": ranks,
            "inputs": [shown(t) for t in inputs],
            "positions": [int(i) for i in own],
            "columns": self.columns(p)[keep],
            "grids": {},
        }
        if (where := patches.seen(source, p)) is not None:
            sent["seen"] = self._seen(where, p, keep)
        for name, values in self.grids.items():
            one_prompt = values[p][:, :, real].transpose(0, 2, 1)
            exact = values.dtype.kind in "iu"
            sent["grids"][name] = integers(one_prompt) if exact else self._decimals(name, one_prompt)
        targets = np.zeros(0, dtype=int)
        if source.has("target_id") and set(data["target_id"].dims) == {"prompt", "position"}:
            targets = data["target_id"].transpose("prompt", "position").values[p][real]
            sent["target"] = [int(t) for t in targets]
        sums = {name: source.about(name).get("sums_to") for name in source.values()}
        for name, total in sums.items():
            if total and source.has(total):
                found = data[total] if "target" in data[total].dims else data[total].expand_dims("target")
                found = found.transpose("prompt", "target", "position").values[p][:, real]
                sent.setdefault("sums", {})[name] = {
                    "name": label(source.called(total)), "values": [[_float(x) for x in row] for row in found],
                }  # fmt: skip
        held = self._tokens(sent, p, real, ranks) if ranks else []
        known = set(held)
        held += [i for i in np.unique(targets).tolist() if i >= 0 and i not in known]
        sent["words"] = Shared([i, shown(self.source.text(i))] for i in held)
        return sent

    def _tokens(self, sent: dict[str, Any], p: int, real: np.ndarray, ranks: int) -> list[int]:
        """Tokens, their scores and their sentences, [rank, position, depth]; returns the ids by their numbers.

        Where a context always ends in the same token, it is told of the context and not of each cell.
        """
        ids = self._ranked("token_id", p, real, ranks)
        used, many = np.unique(ids[ids >= 0], return_counts=True)
        order = np.argsort(-many, kind="stable")  # small numbers for frequent ones compress
        numbers = np.argsort(order)
        sent["token"] = integers(np.where(ids < 0, -1, numbers[np.searchsorted(used, ids) % max(1, len(used))]))
        if self.score:
            scores = self._ranked(self.score, p, real, ranks)
            sent["score"] = self._decimals(self.score, scores, scores[0].size)
        if self.source.has("sentence") and "rank" in self.data["sentence"].dims:
            said = sent["said"] = self._said(p, real, ranks)
            at, token = said["at"].values, sent["token"].values
            ends = np.full(len(said["texts"]), -1)
            ends[at[at >= 0]] = token[at >= 0]
            if ((at < 0) == (token < 0)).all() and (ends[at] == token)[at >= 0].all():
                said["token"] = integers(ends)
                del sent["token"]
        return used[order].tolist()

    def _ranked(self, name: str, p: int, real: np.ndarray, ranks: int) -> np.ndarray:
        found = self.data[name].isel(prompt=p, rank=slice(ranks)).transpose("rank", "position", self.depth)
        return found.values[:, real]

    def _decimals(self, name: str, values: np.ndarray, by: int = 0) -> Column:
        return decimals(values, self._most(*self.ranges[name]), self.ranges[name], by)

    def _most(self, low: float, high: float) -> int:
        """Decimals that a variable is sent with at most: of pictures there are many numbers, so these are shorter."""
        most = _most(low, high)
        return min(self.album.digits, 3 if high - low <= 2 else 2) if most == 4 and self.album.pictures else most

    def _seen(self, own: patches.Seen, p: int, keep: slice) -> dict[str, Any]:
        """Which part of which picture each position shows; boxes as all left ends, then all upper ends, ..."""
        box = own.box[keep]
        return {
            "pictures": {str(i): number for i, number in self.pictures[p].items()},
            "kind": integers([KINDS.index(kind) for kind in own.kind[keep]]),
            **{name: integers(getattr(own, name)[keep]) for name in ("image", "tile", "row", "column")},
            "box": decimals(box.T, 1, _range(own.box), len(box)),
        }

    def _said(self, p: int, real: np.ndarray, ranks: int) -> dict[str, Any]:
        """Neighbours in their sentences, and where they came from."""
        names = ("sentence", "char_start", "char_end")
        said = contexts(*(self._ranked(name, p, real, ranks) for name in names), reach=90)
        said["texts"] = Shared(said["texts"])
        if self.source.has("index_layer"):
            said["layer"] = integers(self._ranked("index_layer", p, real, ranks))
        return said


def packers(readings: Any, top_k: int | None = None) -> list[Packer]:
    """A packer for each reading.  Raises InputError where there is none."""
    found = each(readings)
    if not found:
        raise InputError("There is no reading to explore in an empty list. Give a Reading, or several.")
    if are_several(readings) and not isinstance(readings, list | tuple):
        names = [str(name) for name in readings]
        calls = [f"readings[{name!r}]" for name in readings]
    else:
        names = _names(found)
        calls = [f"readings[{i}]" for i in range(len(found))] if are_several(readings) else ["reading"]
    album = Album()
    return [Packer(name, own, top_k, call, album) for name, own, call in zip(names, found, calls, strict=True)]


def _names(readings: Sequence[Any]) -> list[str]:
    """What readings without names are called: after their readers, then their models, then their numbers."""
    sources = [Source(opened(reading)[0]) for reading in readings]
    sites = [str(source.data.attrs.get("at", "resid")) for source in sources]
    names = [source.reader + f" at {at}" * (at != "resid") for source, at in zip(sources, sites, strict=True)]
    names = [n + f" · {s.model}" * (names.count(n) > 1 and bool(s.model)) for n, s in zip(names, sources, strict=True)]
    seen = [names[:i].count(name) for i, name in enumerate(names)]
    return [name + f" ({count + 1})" * bool(count) for name, count in zip(names, seen, strict=True)]


def source_of(data: xr.Dataset) -> Source:
    """The dataset as a Source; its depth is the component where there is no layer and no block."""
    source = Source(data)
    if source.depth is None and COMPONENT in data.dims:
        source.depth, source.depths = COMPONENT, np.asarray(data[COMPONENT].values)
    return source


def ranked(source: Source) -> bool:
    """Whether it has tokens over depth and position."""
    return source.has("token_id") and {"prompt", source.depth, "position", "rank"} <= set(source.data["token_id"].dims)


def _floor(source: Source, kind: str) -> list[float | None] | None:
    """For each depth, the highest of the score's floors for positions of a kind; a score below it says nothing."""
    found = source.floor(source.score, kind) if source.score else None
    return None if found is None else [_float(f) for f in found]


# ---------------------------------------------------------------- texts and numbers


def shown(token: str) -> str:
    """A token's text made visible."""
    if token.isascii() and token.isprintable() and 0 < len(token) <= LONGEST:  # most are, and there are many
        return token.replace(" ", tokens.SPACE)
    return clipped(tokens.visible(token[: LONGEST + 1]))


def label(text: str) -> str:
    """A name from outside (a model, a file, a target), without characters that nobody sees."""
    return clipped(tokens.plain(text))


def _float(x: Any, digits: int = 4) -> float | None:
    """A number with at least the four decimals that the front end may print."""
    return round(float(x), max(digits, 4)) if np.isfinite(x) else None


def _range(values: np.ndarray) -> tuple[float, float]:
    values = np.asarray(values)[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _most(low: float, high: float) -> int:
    """4 decimals, or more where the range is tiny, but not one number everywhere, or next to it."""
    return 9 if 1e-6 <= high - low <= 0.01 else 4
