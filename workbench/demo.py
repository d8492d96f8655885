"""``workbench demo``: a few prompts through every reader that works on a model, on one page of questions and answers.

A reader says what its reading shows in a method ``shown(reading)``; what probes have to show comes with it, each with an
organism of its own (entry points ``workbench.demos``: a function from the folder, where it writes its explorers).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from workbench import plugins, terminal, tokens
from workbench.errors import WorkbenchError
from workbench.files import atomic_write
from workbench.reading import Reading

PLAIN_PROMPTS = (
    "Once upon a time, there was a little girl named",
    "The capital of France is",
    "She opened the door and saw a",
    "One two three four five",
)
"""For a user's own model: the first is a story, the second a fact, the last a count."""
TEMPLATE = Path(__file__).with_name("demo.html")
FOLLOWED = "prediction"
WIDTHS = {".pdf": "text", ".svg": "text", "-narrow.svg": "column"}
"""The picture's files by the end of their names: for a paper, for the page, for a phone."""


@dataclass(frozen=True)
class Shown:
    """One thing that the demo's page shows.

    Parameters
    ----------
    question
        What was asked, in one line.
    answer
        A sentence or two with the numbers of this run, computed from its readings, and their control.
    reading
        What the picture is of.  It is saved beside the page.
    seen
        What one sees in the picture, in one sentence.
    chart
        The kind of figure (``reading.figure(chart, **options)``); None: the first that fits.
    options
        Of the chart.
    pages
        Explorers in the demo's folder, by what the link to each says.
    """

    question: str
    answer: str
    reading: Reading
    seen: str
    chart: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pages: Mapping[str, Path] = field(default_factory=dict)

    def code(self, saved: Path) -> str:
        """Two lines of Python that draw the picture."""
        kind = [repr(self.chart)] if self.chart else []
        given = ", ".join([*kind, *(f"{name}={value!r}" for name, value in self.options.items())])
        return f"import workbench\nworkbench.open({os.fspath(saved)!r}).figure({given})"


def demo(chosen: argparse.Namespace) -> None:
    """Read, print and write; ``chosen``: model and out of the command line."""
    model = terminal.load_model(chosen)
    out: Path = chosen.out or Path("out") / re.sub(r"[^\w.-]+", "-", model.name)
    terminal.make_folder(out)
    good, bad = terminal.working(model, out)
    prompts = _prompts(model, chosen.model)
    named, late = _read_all(model, prompts, good)
    bad |= late
    terminal.describe(model)
    for name, reason in bad.items():
        print(f"  {name} cannot read this model: {reason}\n")
    terminal.table(named["logit"])
    page = terminal.write_page(named, out / "lenses.html")
    shown = {FOLLOWED: _followed(model, prompts, named["logit"])}
    for name, reading in named.items():
        said = good[name].shown(reading) if hasattr(good[name], "shown") else plainly(good[name], reading)
        inside = page and "position" in reading.data.dims and "component" not in reading.data.dims
        shown[name] = dataclasses.replace(said, pages={"Open the explorer": page}) if inside else said
    probes = {name: show(out) for name, show in plugins.loaded("demos")} if chosen.model == terminal.DEMO else {}
    pictures = {name: _saved(name, said, out) for name, said in (shown | probes).items()}
    index = _index(model, chosen.model, out, shown, probes, pictures)
    for name, said in (shown | probes).items():
        print(f"\n{name}: {said.question}\n  {said.answer}")
    yours = '"a prompt of yours"' if model.tokenizer else "--ids 5,9,13"
    print("\nNext:")
    print(f"  open {index} in a browser: all of it, offline")
    if shutil.which("workbench") is None and Path(".venv/bin/activate").is_file():
        print("  . .venv/bin/activate            # once in a terminal, for the lines below")
    print(f"  workbench read {shlex.quote(chosen.model)} {yours} --out out/mine")
    opened = f"import workbench; workbench.open({os.fspath(out / 'logit.nc')!r}).figure().save('first.png')"
    print(f'  python -c "{opened}"')
    if Path("Makefile").is_file():
        if chosen.model == terminal.DEMO:
            print("  make demo MODEL=<a hub id or a folder>")
        print("  make lab")


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


def share(x: float) -> str:
    """A probability in a sentence."""
    return f"{x:.2f}" if x >= 0.005 or x == 0 else "under 0.01"


def token(source: Any, id: float) -> str:
    """A token in a sentence."""
    return f"“{tokens.visible(source.text(int(id)))}”"


def text(source: Any, prompt: int) -> str:
    """A prompt in a sentence."""
    return f"“{tokens.plain(source.prompt_text(prompt))}”"


def _tops(source: Any) -> tuple[Any, Any]:
    """Top token and its probability at each depth of the first prompt's last position."""
    return source.grid("token_id", 0)[:, -1].astype(int), source.grid(source.score, 0)[:, -1]


def _followed(model: Any, prompts: list[Any], logit: Reading) -> Shown:
    """The first prompt's prediction, followed through the layers: where it takes the lead for good."""
    import numpy as np

    import workbench
    from workbench.figures.source import Source

    source = Source(logit.data)
    ends = [[int(source.grid("token_id", p)[-1, -1])] for p in range(len(prompts))]
    reading = workbench.read(model, prompts, plugins.make_reader("logit", targets=ends), progress=False)
    top, _ = _tops(source)
    last = len(top) - 1
    settled = last + 1 - int(np.argmin(np.append(top[::-1] == top[-1], False)))
    own = Source(reading.data)
    value = np.exp(own.grid(own.followed, 0, 0)[:, -1])
    null = np.exp(own.grid(own.controls(own.followed, "null")[0], 0, 0)[settled, -1])
    said = token(source, top[-1])
    where, there = f"from layer {source.depths[settled]} of {source.depths[-1]} on", f", with {share(value[settled])} there"
    if settled == last:
        where, there = f"in the last layer alone ({source.depths[-1]})", ""
    answer = f"{said}, with probability {share(value[-1])}. Read out layer by layer it leads {where}{there}"
    if not math.isnan(null):
        least = "no more than" if value[settled] <= null else "where"
        answer += f", {least} the states of other positions give it {share(null)} (median)"
    return Shown(
        f"What follows {text(source, 0)}, and at which layer is that settled?", f"{answer}.", reading,
        f"Log-probability of {said} at the last position, layer by layer; dotted: its median in other positions' states.",
        "trajectory", {"prompt": 0, "position": -1},
    )  # fmt: skip


def plainly(reader: Any, reading: Reading) -> Shown:
    """What can be said of any reading: its first value at the first prompt's last position, beside its null or floor."""
    import inspect

    from workbench.figures.source import Source

    source = Source(reading.data)
    question = " ".join((inspect.getdoc(type(reader)) or source.reader).split("\n\n")[0].split())
    name = next((n for n in source.values() if "rank" not in source.data[n].dims), source.score)
    if name is None:
        return Shown(question, repr(reading).split("\n")[0].strip("<>") + ".", reading, "The reading's first figure.")

    def last(name: str) -> float:
        return float(source.grid(name, 0)[-1, -1])

    x, better = last(name), source.about(name).get("better")
    controls = [f"{source.called(name)} of {text(source, 0)}: {x:.3g} in layer {source.depths[-1]}, at the last position"]
    for control in [*source.controls(name, "null"), *source.controls(name, "floor")]:
        beyond = last(control) < x if better != "low" else x < last(control)
        controls.append(f"{source.called(control)}: {last(control):.3g}{'' if beyond or not better else ', not beyond it'}")
    return Shown(question, "; ".join(controls) + ".", reading, f"{source.title(name)}, layer by layer.")


# ---------------------------------------------------------------- the page


def _saved(name: str, shown: Shown, out: Path) -> bool:
    """Save the reading and its picture; False, and the reason printed, where there can be no picture."""
    shown.reading.save(out / f"{name}.nc")
    try:
        for end, width in WIDTHS.items():
            figure = shown.reading.figure(shown.chart, **shown.options)
            figure.save(out / f"{name}{end}", width=width, venue="neurips" if width == "text" else "icml")
    except WorkbenchError as error:
        print(f"  (no picture of {name}: {error})")
        return False
    return True


def _entry(name: str, shown: Shown, out: Path, picture: bool) -> str:
    """A question with its answer, the ways in, and its picture."""
    html = tokens.html
    ways = [f'<a class="go" href="{page.name}">{html(said)}</a>' for said, page in shown.pages.items()]
    ends = {"PDF": "pdf", "SVG": "svg", "Reading": "nc"} if picture else {"Reading": "nc"}
    ways += [f'<a href="{name}.{end}" aria-label="{html(name)}: {said}">{said}</a>' for said, end in ends.items()]
    seen = html(shown.seen)
    figure = f"""<figure><a href="{name}.svg"><picture><source media="(max-width: 560px)" srcset="{name}-narrow.svg">
<img src="{name}.svg" alt="{seen}"></picture></a><figcaption>{seen}</figcaption></figure>""" * picture
    return f"""<article id="{name}"><div>
<p class="of">{html(f"{name} · {tokens.plain(str(shown.reading.data.attrs.get('model', '')))}")}</p>
<h3>{html(shown.question)}</h3><p>{html(shown.answer)}</p>
<p class="ways">{"".join(ways)}</p><pre tabindex="0">{html(shown.code(out / f"{name}.nc"))}</pre></div>{figure}</article>"""


def _index(
    model: Any, given: str, out: Path, shown: dict[str, Shown], probes: dict[str, Shown], pictures: dict[str, bool]
) -> Path:
    """The page that leads to all others."""
    import itertools

    from workbench.figures.source import Source

    html, source = tokens.html, Source(shown["logit"].reading.data)
    entries = {name: _entry(name, said, out, pictures[name]) for name, said in (shown | probes).items()}
    hero = entries.pop(FOLLOWED)
    top, score = _tops(source)
    layers = ""
    for _, run in itertools.groupby(range(len(top)), key=lambda i: top[i]):
        run = list(run)
        span = "–".join(str(source.depths[i]) for i in dict.fromkeys((run[0], run[-1])))
        odds = " → ".join(share(math.exp(score[i])) for i in dict.fromkeys((run[0], run[-1])))
        layers += f"<li><b>{html(token(source, top[run[0]])[1:-1])}</b><span>layer {span} · {odds}</span></li>"
    prompt, follows = tokens.plain(source.prompt_text(0)), token(source, top[-1])[1:-1]
    parts = {"What the lenses see": ("Each lens reads the same states, of the same pass.", shown)}
    if probes:
        parts["What the probes find"] = ("On organisms: small models whose recipe put there what is looked for.", probes)
    sections = "".join(
        f"<h2>{title}</h2><p>{about}</p>" + "".join(entries[name] for name in named if name in entries)
        for title, (about, named) in parts.items()
    )
    facts = terminal.facts(model) | {"prompts": "; ".join(text(source, p) for p in range(source.data.sizes["prompt"]))}
    atomic_write(
        out / "index.html",
        Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=html(f"{prompt} {follows}: {tokens.plain(model.name)}, layer by layer"),
            about=html(f"Latent Workbench · {tokens.plain(model.name)} · {model.n_layers} layers"),
            prompt=html(prompt), token=html(follows), layers=layers, hero=hero, sections=sections,
            facts="".join(f"<dt>{html(k)}</dt><dd>{html(v)}</dd>" for k, v in facts.items()),
            code=html(f'workbench read {shlex.quote(given)} "a prompt of yours" --out out/mine\n'
                      "workbench demo --model <a hub id or a folder>"),
        ),
    )  # fmt: skip
    return out / "index.html"
