"""``workbench demo``: a few prompts through every reader that works on a model, on one page of questions and answers.

Answers are made of the numbers of this run and their controls, by what variables say they are.  What probes have to
show comes with it (entry points ``workbench.demos``: a function from the folder, where it writes explorers, to a
:class:`Shown`).
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import os
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from workbench import plugins, terminal, tokens
from workbench.errors import WorkbenchError
from workbench.figures.source import Source
from workbench.files import atomic_write
from workbench.reading import Reading
from workbench.variables import aimed

PLAIN_PROMPTS = (
    "Once upon a time, there was a little girl named",
    "The capital of France is",
    "She opened the door and saw a",
    "One two three four five",
)
"""For a user's own model: the first is a story, the second a fact, the last a count."""
TEMPLATE = Path(__file__).with_name("demo.html")
FOLLOWED = "prediction"
WIDTHS = {"pdf": "text", "svg": 4.4}
"""Of a picture's files: for a paper, and for the page, where its type has to be legible on a phone, too (inches)."""


@dataclass(frozen=True)
class Shown:
    """One thing that the demo's page shows.

    Parameters
    ----------
    question, answer
        One line; and a sentence or two with numbers of this run and their controls, computed from its readings.
    reading, chart
        The picture is ``reading.figure(chart)``; the reading is saved beside the page.
    seen
        What one sees in the picture; by default what the chart says of itself.
    pages
        Explorers in the demo's folder, by what the link to each says.
    """

    question: str
    answer: str
    reading: Reading
    chart: str | None = None
    seen: str = ""
    pages: Mapping[str, Path] = field(default_factory=dict)


def demo(chosen: argparse.Namespace) -> None:
    """Read, print and write; ``chosen``: model and out of the command line."""
    model = terminal.load_model(chosen)
    out: Path = chosen.out or Path("out") / re.sub(r"[^\w.-]+", "-", model.name)
    terminal.make_folder(out)
    good, bad = terminal.working(model, out)
    prompts = _prompts(model, chosen.model)
    named, late = _read_all(model, prompts, good)
    terminal.describe(model)
    for name, reason in (bad | late).items():
        print(f"  {name} cannot read this model: {reason}\n")
    terminal.table(named["logit"])
    page = terminal.write_page(named, out / "lenses.html")
    lenses = {FOLLOWED: _followed(model, prompts, named["logit"])}
    lenses |= {name: answered(good[name], reading) for name, reading in named.items()}
    for name, shown in lenses.items():
        if page and Source(shown.reading.data).values():
            lenses[name] = replace(shown, pages={"Open the explorer": page})
    probes = {name: show(out) for name, show in plugins.loaded("demos")} if chosen.model == terminal.DEMO else {}
    for name, shown in (lenses | probes).items():
        print(f"\n{name}: {shown.question}\n  {shown.answer}")
    yours = f"workbench read {shlex.quote(chosen.model)} "
    yours += '"a prompt of yours" --out out/mine' if model.tokenizer else "--ids 5,9,13 --out out/mine"
    index = _index(model, out, lenses, probes, yours)
    print(f"\nNext:\n  open {index} in a browser: all of it, offline\n  {yours}")
    if Path("Makefile").is_file():
        print("  make demo MODEL=<a hub id or a folder>\n  make lab")


def _prompts(model: Any, source: str) -> list[Any]:
    if source == terminal.DEMO:
        from workbench.organisms.story import DEMO_PROMPTS

        return list(DEMO_PROMPTS)
    if model.tokenizer is None:
        # Ids in steps: something to look at where there is no text.
        return [[(7 * i + j * j) % model.vocab_size for j in range(8)] for i in range(3)]
    limit = model.context_length
    return [p for p in PLAIN_PROMPTS if limit is None or len(model.tokenizer(p)["input_ids"]) <= limit] or ["a"]


def _read_all(model: Any, prompts: list[Any], good: dict[str, Any]) -> tuple[dict[str, Reading], dict[str, str]]:
    """All readers in one pass.  When one of them refuses on the way, each alone; and the reasons of those that did."""
    import workbench

    try:
        return dict(zip(good, workbench.read(model, prompts, list(good.values())), strict=True)), {}
    except WorkbenchError:
        named, bad = {}, {}
        for name in good:
            try:
                named[name] = workbench.read(model, prompts, good[name])
            except WorkbenchError as error:
                if name == "logit":
                    raise
                bad[name] = str(error)
        return named, bad


# ---------------------------------------------------------------- answers


def _followed(model: Any, prompts: list[Any], logit: Reading) -> Shown:
    """The first prompt's prediction, followed through the layers: from where on it leads."""
    import workbench

    source = Source(logit.data)
    ends = [[int(source.grid("token_id", p)[-1, -1])] for p in range(len(prompts))]
    with warnings.catch_warnings(action="ignore"):  # that so few positions make no small q, which is not used here
        reading = workbench.read(model, prompts, plugins.make_reader("logit", targets=ends), progress=False)
    top, own = source.grid("token_id", 0)[:, -1], Source(reading.data)
    score = str(own.followed)
    value, null = (np.exp(own.grid(name, 0, 0)[:, -1]) for name in (score, *own.controls(score, "null")[:1]))
    first = len(top) - len(list(itertools.takewhile(lambda token: token == top[-1], top[::-1])))
    said, depth = _token(source, top[-1]), source.depths
    where = f"from layer {depth[first]} of {depth[-1]} on" if first < len(top) - 1 else f"only in the last, {depth[-1]}"
    answer = f"{said}, with probability {_odds(value[-1])}. Layer by layer it is on top {where}"
    if not np.isnan(null[first]):
        less = "which is no more than" if value[first] - null[first] < 0.005 else "where"  # what two digits tell
        answer += f": {_odds(value[first])} there, {less} other positions' states give it {_odds(null[first])} (median)"
    question = f"What follows {_text(source, 0)}, and in which layer is that settled?"
    seen = f"Log-probability of {said}, layer by layer; dotted: its median in the states of other positions."
    return Shown(question, f"{answer}.", reading, "trajectory", seen)


def answered(reader: Any, reading: Reading) -> Shown:
    """The question of a reader, and what its reading answers: at one place, at the first prompt's last position."""
    from workbench.figures.charts import CHARTS, charts

    source = Source(reading.data)
    question, score = getattr(reader, "question", _first(type(reader))), source.score
    if score and (q := source.controls(score, "q")):
        own = (kind for kind, chart in charts().items() if kind not in CHARTS and not chart.lacks(reading.data))
        return Shown(question, _beyond(source, score, q[0]), reading, next(own, None))
    if score and source.depth and "token_id" in reading:
        return Shown(question, _early(source), reading, "heatmap")
    if "usage_count" in reading:
        used = plugins.load("measures", "routing.usage")(reading).data
        own = used.isel(_greatest(used["max_violation"]))
        load, null = 1 + float(own["max_violation"]), 1 + float(own["max_violation_null"])
        said = f"Least even is block {int(own['block'])}: its busiest expert serves {load:.2f} times its even share; "
        said += f"as many slots given out at random, {null:.2f} times{' (not beyond it)' if load <= null else ''}."
        return Shown(question, said, reading, "usage")
    end = {"prompt": 0, "position": source.position(0, -1) if "position" in source.data.dims else 0, "rank": 0}
    if parts := source.by_component():
        end["component"] = int(source.data[parts[0]].isel(end, missing_dims="ignore").argmax("component"))
        said = f"After {_text(source, 0)} {source.data['component'].values[end['component']]} comes first: "
        said += _beside(source, parts[0], end)
        return Shown(question, f"{said}.", reading, "attribution")
    if not (values := source.values()):
        return Shown(question, f"{repr(reading).splitlines()[0].strip('<>')}.", reading)
    data = source.data
    beside = (v for v in values for null in source.controls(v, "null") if set(data[null].dims) <= set(data[v].dims))
    said = _beside(source, next(beside, values[0]), {**end, source.depth: -1})
    return Shown(question, f"After {_text(source, 0)}, in the last layer: {said}.", reading)


def _beside(source: Source, name: str, at: Mapping[Any, int]) -> str:
    """A value at one place, and the nulls and floors that it has there."""
    here = source.data.isel(at, missing_dims="ignore")
    value = float(here[name])
    said = [f"{source.called(name)} = {value:.3g}"]
    for control in (*source.controls(name, "null"), *source.controls(name, "floor")):
        if here[control].ndim:  # of a summary, not of one place
            continue
        null = float(here[control])
        beyond = value < null if source.about(name)["better"] == "low" else value > null
        said.append(f"{source.called(control)} = {null:.3g}{'' if beyond else ' (not beyond it)'}")
    told = "; ".join(said)
    return aimed(told, _token(source, here["target_id"])) if "target_id" in here else told


def _beyond(source: Source, score: str, q: str) -> str:
    """How many states have a score beyond its null, and which stands out most."""
    values, data = source.data[q], source.data
    tested, found = int(values.notnull().sum()), int((values <= 0.05).sum())
    if not tested:
        return f"No state was tested: {source.about(q).get('reason') or 'it has no null here'}."
    above = data[score].isel(rank=0) - sum(data[floor].fillna(0) for floor in source.controls(score, "floor")[-1:])
    at = _greatest(above.where(values == values.min()))
    own = data.isel({**at, "rank": 0})
    near = _token(source, own["token_id"])
    if "sentence" in own:
        parts = tokens.around(str(own["sentence"].item()), int(own["char_start"]), int(own["char_end"]), 40)
        near += f" in “{tokens.plain(''.join(parts)).strip()}”"
    null = source.called((source.controls(score, "p") or [q])[0])
    return (
        f"The {source.called(score)} is beyond chance in {found or 'none'} of {tested} states ({null}, false discovery "
        f"rate 5%). {'Clearest' if found else 'Closest to it'} is {_token(source, own['input_id'])} of "
        f"{_text(source, at['prompt'])} in {source.depth} {source.depths[at[source.depth]]}, next to {near}: "
        f"{source.called(score, short=True)} {float(own[score]):.2f}, q\u00a0=\u00a0{float(own[q]):.2g}."
    )


def _early(source: Source) -> str:
    """At how many positions the last layer's top token is there half way and just before the end, beside chance."""
    prompts = range(source.data.sizes["prompt"])
    top = np.concatenate([source.grid("token_id", p)[:, ~source.sinks(p).any(0)] for p in prompts], 1)
    n, told, chances = top.shape[1], [], []
    if n < 2:
        return "Fewer than two positions are no attention sinks: there is nothing to compare."
    for i in dict.fromkeys((len(top) // 2, max(0, len(top) - 2))):
        same = (top[i] == top[-1]).sum()
        chance = ((top[i][:, None] == top[-1]).sum() - same) / (n * (n - 1))
        less = " (no more than chance)" if same / n <= chance else ""
        told.append(f"{same / n:.0%} in layer {source.depths[i]}{less}")
        chances.append(f"{chance:.0%}")
    left = f" ({said})" if (said := source.sinks_left_out()) else ""
    return (
        f"Of {n} positions{left}, {' and '.join(told)} have the last layer's top token already; by chance, with the "
        f"tokens of other positions, {' and '.join(chances)}."
    )


def _greatest(values: Any) -> dict[Any, int]:
    return {dim: int(i) for dim, i in values.argmax(values.dims).items()}


def _first(documented: Any) -> str:
    return " ".join((inspect.getdoc(documented) or documented.__name__).split("\n\n")[0].split())


def _odds(x: float) -> str:
    return f"{x:.2f}" if x >= 0.005 or x == 0 else "under 0.01"


def _token(source: Source, id: Any) -> str:
    return f"“{tokens.visible(source.text(int(id)))}”"


def _text(source: Source, prompt: int) -> str:
    return f"“{tokens.plain(source.prompt_text(prompt))}”"


# ---------------------------------------------------------------- the page


def _entry(name: str, shown: Shown, out: Path) -> str:
    """A question with its answer, the ways in and its picture; the reading and the picture are saved."""
    from workbench.figures.charts import charts

    html, path = tokens.html, shown.reading.save(out / f"{name}.nc")
    answer = html(re.sub(r"(?<=[\s\[])-(?=\d)", "\u2212", shown.answer))  # a minus, not a hyphen
    links = [f'<a class="go" href="{page.name}">{html(said)}</a>' for said, page in shown.pages.items()]
    chart = charts().get(shown.chart or "")
    seen = html(shown.seen or (chart and _first(chart.function)) or shown.question)
    try:
        for end, width in WIDTHS.items():
            shown.reading.figure(shown.chart).save(out / f"{name}.{end}", width=width, venue="neurips")
        files = {"pdf": "PDF", "svg": "SVG", "nc": "Data"}
        figure = f'<figure><a href="{name}.svg"><img src="{name}.svg" alt="{seen}"></a>'
        figure += f"<figcaption>{seen}</figcaption></figure>"
    except WorkbenchError as error:
        files, figure = {"nc": "Data"}, f"<p>No picture: {html(str(error))}</p>"
    links += [f'<a href="{name}.{end}" aria-label="{said} of {name}">{said}</a>' for end, said in files.items()]
    code = f"import workbench\nworkbench.open({os.fspath(path)!r}).figure({shown.chart!r})"
    return (
        f'<article id="{name}"><div><p class="of">{html(name)}</p><h3>{html(shown.question)}</h3><p>{answer}</p></div>'
        f'{figure}<div><p class="ways">{"".join(links)}</p><pre>{html(code)}</pre></div></article>'
    )


def _index(model: Any, out: Path, lenses: dict[str, Shown], probes: dict[str, Shown], yours: str) -> Path:
    """The page that leads to all others."""
    html, source = tokens.html, Source(lenses["logit"].reading.data)
    hero, *seen = (_entry(name, shown, out) for name, shown in lenses.items())
    found = [_entry(name, shown, out) for name, shown in probes.items()]
    top, score = source.grid("token_id", 0)[:, -1], source.grid(str(source.score), 0)[:, -1]
    layers = ""
    for token, run in itertools.groupby(range(len(top)), key=lambda i: top[i]):
        ends = [(every := list(run))[0], every[-1]]
        span = "–".join(dict.fromkeys(str(source.depths[i]) for i in ends))
        odds = " → ".join(dict.fromkeys(_odds(math.exp(score[i])) for i in ends))
        layers += f'<li style="flex-grow: {len(every)}"><b>{html(tokens.visible(source.text(int(token))))}</b>'
        layers += f"<span>layer {span} · {odds}</span></li>"
    prompt, follows = source.prompt_text(0), source.text(int(top[-1]))
    word = follows.removeprefix(" ") or follows  # the space before it is between the two
    facts = terminal.facts(model) | {"prompts": "; ".join(_text(source, p) for p in range(source.data.sizes["prompt"]))}
    parts = {
        "title": html(f"{tokens.plain(prompt + follows)} · {tokens.plain(model.name)}, layer by layer"),
        "name": html(tokens.plain(model.name)), "prompt": html(tokens.plain(prompt)) + " " * (word != follows),
        "token": html(tokens.visible(word)), "layers": layers, "hero": hero, "lenses": "".join(seen),
        "probes": "".join(["<h2>What the probes find</h2><p>In organisms, small models whose recipe put there what is "
                           "looked for.</p>", *found]) if found else "",
        "facts": "".join(f"<dt>{html(key)}</dt><dd>{html(value)}</dd>" for key, value in facts.items()),
        "code": html(f"{yours}\nworkbench demo --model <a hub id or a folder>"),
    }  # fmt: skip
    atomic_write(out / "index.html", Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts))
    return out / "index.html"
