"""``workbench demo``: a few prompts through every reader that works on a model, as tables, figures and pages.

What probes have to show (entry points ``workbench.demos``: a function from the folder to {page: what it shows}) comes
with it, each with an organism of its own.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import shutil
from pathlib import Path
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
SHOWN_LAYERS = 4
SHOWN_CHARTS = 3
"""Of each reading."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --bg: #fff; --ink: #1b2130; --soft: #5d6675; --line: #d3d9e3; }}
@media (prefers-color-scheme: dark) {{ :root {{ --bg: #14171f; --ink: #e2e6ee; --soft: #9aa4b4; --line: #3a4252; }} }}
body {{ margin: 0 auto; max-width: 1060px; padding: 18px clamp(8px, 3vw, 32px) 40px; background: var(--bg);
  color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 22px; overflow-wrap: anywhere; }} h2 {{ font-size: 17px; margin-top: 28px; }}
a {{ color: inherit; }} code, pre {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
figure {{ margin: 14px 0 22px; }} figcaption {{ color: var(--soft); }}
img {{ max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 6px; }}
pre {{ overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: 10px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
<h2>To click through</h2>
<ul>{pages}</ul>
<h2>Figures</h2>
{figures}
<h2>In Python</h2>
<pre>{code}</pre>
</body>
</html>
"""


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
    for name, reading in named.items():
        if "sentence" in reading.data:
            print(f"\n{name}, in a small index made for this: {out / name}")
            terminal.neighbours(reading.data, prompt=len(prompts) // 2, top=2, layers=SHOWN_LAYERS)
    kept = [reading.save(out / f"{name}.nc") for name, reading in named.items()]
    pages = {page: _lenses(named)} if (page := terminal.write_page(named, out / "lenses.html")) else {}
    if chosen.model == terminal.DEMO:
        for _, show in plugins.loaded("demos"):
            pages |= show(out)
    figures, failed = _figures(named, out)
    if failed:
        pages[_live_figures(named, out)] = "The figures, drawn by the page itself."
    index = _index(model, prompts, out, pages, figures)
    print("\nWritten:")
    for path in [index, *pages, *(p.with_suffix(".pdf") for p in figures), *kept]:
        print(f"  {path}")
    for line in failed:
        print(f"  {line}")
    yours = '"a prompt of yours"' if model.tokenizer else "--ids 5,9,13"
    first = "first.png" if figures else "first.html"
    opened = f"import workbench; workbench.open({os.fspath(out / 'logit.nc')!r}).figure().save({first!r})"
    print("\nNext:")
    print(f"  open {index} in a browser: all of it, offline")
    if shutil.which("workbench") is None and Path(".venv/bin/activate").is_file():
        print("  . .venv/bin/activate            # once in a terminal, for the lines below")
    print(f"  workbench read {shlex.quote(chosen.model)} {yours} --out out/mine")
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


def _lenses(named: dict[str, Reading]) -> str:
    """What the page of the lenses shows."""
    names = [name for name, reading in named.items() if "token_id" in reading.data]
    beside = ", side by side where there is room" if len(names) > 1 else ""
    return f"Tokens and layers of every prompt: {', '.join(names)}{beside}. Click a cell; / searches, p pins."


def _charts(named: dict[str, Reading]) -> dict[tuple[str, str], str]:
    """(reader, kind) -> what the chart shows: those that fit, first those that were made for such a reading."""
    from workbench.figures.charts import CHARTS, charts

    known, found = charts(), {}
    for name, reading in named.items():
        fitting = sorted((k for k, c in known.items() if not c.lacks(reading.data)), key=lambda k: k in CHARTS)
        for kind in fitting[:SHOWN_CHARTS]:
            said = " ".join((inspect.getdoc(known[kind].function) or kind).split("\n\n")[0].split())
            found[name, kind] = f"{name}: {said[:1].lower()}{said[1:]}"
    return found


def _figures(named: dict[str, Reading], out: Path) -> tuple[dict[Path, str], list[str]]:
    """Figures as svg and pdf, and what each shows; where nothing can draw them, a line that says how to get them."""
    from workbench.figures.drawing import browser

    if browser() is None:
        return {}, [
            "(no .svg and .pdf of the figures: Chrome or Chromium draws them, and none was found; install it, `apt "
            "install chromium` or, without root rights, `plotly_get_chrome`, and run this again)"
        ]
    written: dict[Path, str] = {}
    for (name, kind), said in _charts(named).items():
        figure = named[name].figure(kind)
        try:
            for suffix in ("pdf", "svg"):
                called = name if name == kind else f"{name}-{kind}"
                path = figure.save(out / f"{called}.{suffix}", width="text", venue="neurips")
        except (WorkbenchError, RuntimeError) as error:
            return written, [f"(no .svg and .pdf of the figures: {error})"]
        written[path] = said
    return written, []


def _live_figures(named: dict[str, Reading], out: Path) -> Path:
    """All figures on one page that draws them itself, plotly.js included: it needs no network and nothing installed."""
    from workbench.figures.titles import fitted

    parts = []
    for (name, kind), said in _charts(named).items():
        figure = fitted(named[name].figure(kind))
        drawn = figure.to_html(full_html=False, include_plotlyjs=not parts)
        parts.append(f"{drawn}<p>{tokens.html(said)}</p>")
    path = out / "figures.html"
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Figures</title>'
    text = f"{head}</head><body style=\"font-family:sans-serif\">{''.join(parts)}</body></html>"
    atomic_write(path, text)
    return path


def _index(model: Any, prompts: list[Any], out: Path, pages: dict[Path, str], figures: dict[Path, str]) -> Path:
    """The page that leads to all others."""
    read = "; ".join(tokens.html(tokens.plain(str(prompt))) for prompt in prompts)
    links = "".join(f'<li><a href="{p.name}">{p.name}</a>: {tokens.html(said)}</li>' for p, said in pages.items())
    shown = "".join(
        f'<figure><img src="{p.name}" alt="{tokens.html(said)}"><figcaption>{tokens.html(said)} '
        f'<a href="{p.with_suffix(".pdf").name}">pdf</a></figcaption></figure>'
        for p, said in figures.items()
    )
    code = f"import workbench\nlens = workbench.open({os.fspath(out / 'logit.nc')!r})    # needs no torch\n"
    code += "lens.figure(prompt=1)\nlens.explore()\nlens.frame()"
    text = PAGE.format(
        title=tokens.html(f"What {tokens.plain(model.name)} holds, layer by layer"), pages=links,
        figures=shown or "<p>They are on a page of their own, above: nothing here could draw them as pictures.</p>",
        about=f"{model.n_layers} layers, width {model.d_model}, vocabulary {model.vocab_size}. Read: {read}",
        code=tokens.html(code),
    )  # fmt: skip
    path = out / "index.html"
    atomic_write(path, text)
    return path
