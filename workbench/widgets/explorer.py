"""The lens explorer: tokens over layers and positions of one or several readings, one cell at a time in detail.

Two sizes travel.  What a notebook saves is cut to `saved_kb`; the rest stays in the kernel, and the front end asks for
a prompt when it is looked at.  Without a kernel the saved part is explored, where the notebook kept the widget's
state, and the table is read, where it did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import tokens
from workbench.errors import InputError
from workbench.figures import patches
from workbench.variables import aimed
from workbench.widgets import lens
from workbench.widgets.base import View, allowed, each, every, listed, listing, opened, table
from workbench.widgets.lens import COMPONENT, Packer, label

if TYPE_CHECKING:
    import xarray as xr

    from workbench.figures.source import Source

TABLE_ROWS, TABLE_COLUMNS, TABLE_LETTERS = 13, 24, 24
SAVED_KB = 118
NEEDED = "tokens or values over layers and positions"


def lacking(data: xr.Dataset) -> list[str]:
    """What of tokens or values over depth and position, or over parts and position, is not there."""
    source = lens.source_of(data)
    there = lens.ranked(source) or source.values()
    return [] if there and data.sizes.get("prompt") and data.sizes.get("position") else [NEEDED]


def leads(data: xr.Dataset) -> bool:
    """Whether a reading that fits was made for just this view: there are tokens, or parts."""
    source = lens.source_of(data)
    return source.has("token_id") or source.depth == COMPONENT


def payload(readings: Any, *, top_k: int | None = None, saved_kb: int | None = SAVED_KB) -> dict[str, Any]:
    """What the explorer shows of one reading or dataset, a list, or a mapping of names to them.

    Parameters
    ----------
    top_k
        Tokens for each cell; all that the reading has by default, or as many as 6 MB hold.
    saved_kb
        How much of it a saved notebook may hold; the live widget asks the kernel for the rest.  None: all.
    """
    packers = lens.packers(readings, top_k)
    prompts = lens.whole(packers) if saved_kb is None else lens.part(packers, saved_kb * 1000)
    shown = [{**packer.head(), "prompts": own} for packer, own in zip(packers, prompts, strict=True)]
    names = {
        key: ", ".join(dict.fromkeys(filter(None, (own[of] for own in shown))))
        for key, of in (("reader", "name"), ("model", "model"), ("fingerprint", "fingerprint"))
    }  # fmt: skip
    sent = {
        f"the top {own['prompts'][0]['ranks']} of the {own['ranks']} ranks that {own['reader']} kept": None
        for own in shown if own["prompts"][0].get("ranks", 0) < own["ranks"]
    }  # fmt: skip
    return {
        "about": {**names, "said": ", ".join(sent) if saved_kb is None else ""},
        "readings": shown,
        "pictures": packers[0].album.sent(saved_kb is None),
        "start": _start(packers),
        "called": {"depth": packers[0].depth, "panes": None},
        "held": packers,
    }


def answer(shown: dict[str, Any], question: Any) -> tuple[Any, bytes]:
    """A prompt that was not sent whole."""
    reading, prompt = _place(shown["held"], *question["ask"])
    return {"block": [reading, prompt]}, lens.one(shown["held"][reading], prompt)


# ---------------------------------------------------------------- where the reader is


def _start(packers: Sequence[Packer]) -> dict[str, Any]:
    first = packers[0]
    return {
        "reading": 0, "prompt": 0, "depth": _depths(first)[-1], "position": first.home(0),
        "token": None, "metric": first.metrics[0], "target": 0, "depths": None,
        "panes": [[0, 0]] if len(packers) == 1 else None, "pins": [],
    }  # fmt: skip


def complete(asked: dict[str, Any], now: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The selection, of which all is in the readings; what another reading or prompt does not have is dropped."""
    packers, found = shown["held"], {**now, **asked}
    if unknown := [key for key in asked if key not in now]:
        depth = " Layers, blocks and components are its 'depth'." if unknown[0] in ("layer", "block", COMPONENT) else ""
        raise InputError(f"A selection has no {unknown[0]!r}; it has {', '.join(map(repr, now))}.{depth}")
    before, place = [now["reading"], now["prompt"]], _place(packers, found["reading"], found["prompt"])
    panes = None if found["panes"] is None else [_pane(packers, pane) for pane in _pairs(found["panes"])]
    if panes and place not in [pane[:2] for pane in panes]:
        if "panes" in asked and not {"reading", "prompt"} & set(asked):
            place = panes[0][:2]
        else:
            panes = _moved(packers, panes, before, place)
    packer, depths, columns = packers[place[0]], _depths(packers[place[0]]), packers[place[0]].columns(place[1])
    metrics = list(dict.fromkeys(name for own in packers for name in own.metrics))
    targets = max(int(own.data.sizes.get("target", 1)) for own in packers)
    elsewhere = now if place != before else {}
    return {
        "reading": place[0],
        "prompt": place[1],
        "depth": _own("depth", found, depths, elsewhere),
        "position": _own("position", found, columns, elsewhere),
        "token": _token(packers, packer, now, asked),
        "metric": allowed("metric", found["metric"], metrics),
        "target": allowed("target", found["target"], range(targets)),
        "depths": _ends(depths, found["depths"], "depths" in asked),
        "panes": [place] if panes == [] else panes,
        "pins": [_pin(packers, pin) for pin in listed("pins", found["pins"])],
    }


def _depths(packer: Packer) -> list[int | str]:
    return [int(d) if isinstance(d, int | np.integer) else str(d) for d in packer.source.depths]


def _place(packers: Sequence[Packer], reading: Any, prompt: Any) -> list[int]:
    reading = allowed("reading", reading, range(len(packers)))
    return [reading, allowed("prompt", prompt, range(packers[reading].count))]


def _own(name: str, found: dict[str, Any], held: list[Any], left: dict[str, Any]) -> Any:
    """A coordinate.  ``left``: the selection of another prompt, whose cell need not be in this one."""
    if found[name] not in held and name in left and found[name] == left[name]:
        return held[-1]  # another prompt was asked for, and no place in it
    return allowed(name, found[name], held)


def _moved(packers: Sequence[Packer], panes: list[Any], before: list[int], place: list[int]) -> list[list[Any]]:
    """The panes once the reader is at `place`: its reading's pane goes there, with those that showed the same text."""
    shown = [pane[:2] for pane in panes]
    alike = [pane for pane in shown if pane[0] == place[0]]
    own = before if before in shown and (before in alike or not alike) else [*alike, shown[0]][0]
    moved = []
    for i, pane in enumerate(panes):
        if pane[0] != own[0] == place[0] and pane[1] == _same_text(packers, own, pane[0]):
            pane = [pane[0], _same_text(packers, place, pane[0], pane[1]), *pane[2:]]
        if i == shown.index(own) or (pane[2:] and pane[:2] == own and place[0] == own[0]):  # another layer of the same
            pane = [*place, *(pane[2:] if place[0] == own[0] else [])]
        moved.append(pane)
    return moved


def _same_text(packers: Sequence[Packer], place: list[int], reading: int, default: int | None = None) -> int | None:
    """The prompt of another reading with the same text; the one of the same number where there are several."""
    text, other = packers[place[0]].source.prompt_text(place[1]), packers[reading]
    order = [i for i in (place[1], *range(other.count)) if i < other.count]
    return next((i for i in order if other.source.prompt_text(i) == text), default)


def _token(packers: Sequence[Packer], packer: Packer, now: dict[str, Any], asked: dict[str, Any]) -> int | None:
    """The token that is followed; none where the reader has come to another model, which has other ids."""
    before = now["token"] if packers[now["reading"]].model == packer.model else None
    token = asked.get("token", before)
    if token is None or token == before:
        return token
    return allowed("token", token, [*packer.tokens, *(own for other in packers for own in other.tokens)])


def _ends(known: list[Any], ends: Any, asked: bool) -> list[Any] | None:
    """[lowest, highest]; None where another reading's ends are not in this one."""
    if isinstance(ends, list | tuple) and len(ends) == 2 and all(end in known for end in ends):
        low, high = map(known.index, ends)
        if low <= high:
            return [known[low], known[high]]
    if ends is not None and asked:
        raise InputError(f"depths={ends!r} cannot be selected: give [lowest, highest] of {listing(known)}.")
    return None


def _pin(packers: Sequence[Packer], pin: Any) -> dict[str, Any]:
    if not isinstance(pin, dict):
        raise InputError(f'pins={pin!r} cannot be selected: a pin is {{"reading", "prompt", "depth", "position"}}.')
    reading, prompt = _place(packers, pin.get("reading", 0), pin.get("prompt", 0))
    depth = allowed("depth of a pin", pin.get("depth"), _depths(packers[reading]))
    position = allowed("position of a pin", pin.get("position"), packers[reading].columns(prompt))
    return {"reading": reading, "prompt": prompt, "depth": depth, "position": position}


def _pairs(panes: Any) -> list[Any]:
    if wrong := [p for p in listed("panes", panes) if not isinstance(p, list | tuple) or len(p) not in (2, 3)]:
        raise InputError(
            f"panes={panes!r} cannot be selected: {wrong[0]!r} is no [reading, prompt], and no [reading, prompt, "
            "depth] of a pane that keeps its layer."
        )
    return list(panes)


def _pane(packers: Sequence[Packer], pane: Sequence[Any]) -> list[Any]:
    """[reading, prompt], and the layer that the pane keeps while others move, where it keeps one."""
    place = _place(packers, *pane[:2])
    return [*place, *(allowed("depth of a pane", depth, _depths(packers[place[0]])) for depth in pane[2:])]


# ---------------------------------------------------------------- without a script


def static(readings: Any, **options: Any) -> str:
    """A table for each of the first readings."""
    own = each(readings)
    more = f"<p>{len(own) - 3} more readings are left out here.</p>" if len(own) > 3 else ""
    return "".join(static_html(opened(reading)[0], options.get("prompt", 0)) for reading in own[:3]) + more


def static_html(data: xr.Dataset, prompt: int = 0) -> str:
    """A small HTML table of the top tokens of one prompt, layers rising upwards; no script, no kernel.

    Large readings are thinned to what fits; the caption says so.  Readings without tokens (attributions) show the
    numbers of their first value.
    """
    source = lens.source_of(data)
    data = source.data
    prompt = source.prompt(prompt)
    real, inputs, where = source.positions(prompt), source.inputs(prompt), patches.seen(source, prompt)
    if where is not None:
        inputs = [where.short(i) if where.image[i] >= 0 else text for i, text in enumerate(inputs)]
    rows, columns = every(len(source.depths), TABLE_ROWS), range(len(real))[-TABLE_COLUMNS:]
    numbers = not source.has("token_id")
    score = source.values()[0] if numbers else source.score
    scale = source.scale(score) if score else "sequential"
    shades = source.grid(score, prompt) if score else np.full((len(source.depths), len(real)), np.nan)
    if numbers:
        texts = [[f"{x:.2f}" if np.isfinite(x) else "" for x in row] for row in shades]
    else:
        ids = data["token_id"].isel(prompt=prompt, rank=0).transpose(source.depth, "position").values[:, real]
        texts = [[_short(source.text(i)) if i >= 0 else "" for i in row] for row in ids.tolist()]
    finite = shades[np.isfinite(shades)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    most = max(abs(low), abs(high)) or 1.0
    if scale == "diverging":
        low, high, shares = -most, most, shades / most
    else:
        shares = (shades - low) / (high - low) if high > low else shades - low + 1
    lines = [
        [label(str(source.depths[row])), *((texts[row][c], float(shares[row, c])) for c in columns)]
        for row in reversed(rows)
    ]
    left_out = [
        f"{len(rows)} of {len(source.depths)} {source.depth}s" if len(rows) < len(source.depths) else "",
        f"the last {len(columns)} of {len(real)} positions" if len(columns) < len(real) else "",
        f"prompt {prompt} of {data.sizes['prompt']}" if data.sizes["prompt"] > 1 else "",
    ]
    what = aimed(source.called(str(score)), _whose(source, prompt)) if numbers else "top token"
    colour = f"colour: {source.called(score, short=True)} {low:.2f} to {high:.2f}" if score else ""
    said = [source.reader, source.model, what, *left_out, colour]
    return table(said, [source.depth, *(_short(inputs[c]) for c in columns)], lines, scale, foot=True)


def _short(text: str) -> str:
    return tokens.visible(text if len(text) <= TABLE_LETTERS else text[:TABLE_LETTERS] + "…")


def _whose(source: Source, prompt: int) -> str:
    """The first target, whose values the table shows."""
    ids = source.data["target_id"] if source.has("target_id") else None
    if ids is not None and "position" in ids.dims and len(set(ids.values[prompt][source.positions(prompt)])) > 1:
        return "each position's own target"
    return lens.shown(source.targets(prompt, source.positions(prompt)[0])[0])


VIEW = View(
    "LensExplorer",
    "Each cell is what a layer holds at one token of the prompt, and of a picture each patch is a token: words run "
    "along the bottom, the last layer is on top, and the colour says how strong it is. Choose a cell or a patch for "
    "its detail.",
    Path(__file__).with_name("lens_explorer.js"),
    (),
    payload,
    static,
    complete,
    several=True,
    lacking=lacking,
    answer=answer,
    page=(("saved_kb", None),),
)
