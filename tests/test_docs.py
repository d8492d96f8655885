"""The documentation does what it says: its code prints what stands below it, and its tables name what is there."""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import workbench
from workbench.reading import Reading
from workbench.widgets.packing import unpack

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

# ---------------------------------------------------------------- code

WITH_CODE = [
    "index.md", "reading.md", "figures.md", "judge.md", "vocabulary.md", "add/lens.md", "add/probe.md", "add/chart.md",
    "add/instrument.md", "testing.md",
]  # fmt: skip
FENCE = re.compile(r"(?:<!-- file: (\S+) -->\n)?^(`{3,})(\w+)\n(.*?)^\2$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


class Page:
    """A page's code, run in order in one namespace; blocks that are files are written to the folder and imported."""

    def __init__(self, name: str, folder: Path, text: str | None = None) -> None:
        self.names: dict[str, Any] = {"__name__": "page"}
        printed = None
        for file, _, language, code in FENCE.findall(text or (DOCS / name).read_text("utf-8")):
            if file:
                (folder / file).write_text(code, "utf-8")
            if language == "python" and file:
                module = imported(folder / file)
                self.names |= {k: v for k, v in vars(module).items() if not k.startswith("_")}
            elif language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code, name, "exec"), self.names)
                printed = out.getvalue()
            elif language == "text" and printed is not None:
                assert_same(printed, code, name)
                printed = None


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(printed: str, shown: str, where: str) -> None:
    """The same words, and decimals as near as another machine's rounding leaves them."""
    own, said = printed.strip().splitlines(), shown.strip().splitlines()
    assert len(own) == len(said), f"{where} prints\n{printed}\nand shows\n{shown}"
    for a, b in zip(own, said, strict=True):
        same = NUMBER.sub("#", a).rstrip() == NUMBER.sub("#", b).rstrip()
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=False):
            same &= x == y or abs(float(x) - float(y)) <= (0.02 if "." in y else 0)
        assert same, f"{where} prints\n{a}\nand shows\n{b}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield lambda name: Page(name, tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]  # two tests import files of the same names


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_prints_what_is_shown(run, name):
    run(name)


def test_the_page_of_the_vocabulary_tells_all_of_it():
    from workbench.variables import CONTROLS, FIELDS, ROLES, SCALES

    text = (DOCS / "vocabulary.md").read_text("utf-8")
    head, roles, _, rest = re.split(r"(?m)^## (?:Roles|Scales|Names that are given)\n", text)
    rows = {row[0]: row[1:] for row in re.findall(r"(?m)^\| `([\w-]+)` \|(?: `(\w+)` \|| +\|)? (.*) \|$", text)}
    assert set(FIELDS) <= set(re.findall(r"(?m)^\| `(\w+)` \|", head))
    assert {name: rows[name][1] for name in ROLES} == ROLES
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", roles)) == set(ROLES)
    assert {name: suffix for name, (suffix, _) in rows.items() if suffix} == {name: f"_{name}" for name in CONTROLS}
    assert {name: rows[name][1] for name in SCALES} == SCALES


def test_the_page_of_testing_has_all_checks():
    from workbench.testing import CHECKS

    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (DOCS / "testing.md").read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == CHECKS


def test_the_page_of_charts_names_every_mark():
    from workbench.figures.plot import Mark

    text = (DOCS / "add/chart.md").read_text("utf-8")
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", text)) == {kind.__name__ for kind in Mark.__subclasses__()}


def test_all_pages_with_code_are_run():
    found = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if "```python" in p.read_text("utf-8")}
    assert found == set(WITH_CODE)


README = re.split(r"(?m)^(?=## )", (ROOT / "README.md").read_text("utf-8"))
CHAPTERS = {text.splitlines()[0].removeprefix("## "): text for text in README if "```python" in text}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_chapter_of_the_readme_runs_by_itself(chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Page(chapter, tmp_path, CHAPTERS[chapter])


def test_what_is_shown_is_compared():
    assert_same("a 0.51 nats\n", "a 0.50 nats", "here")
    for other in ("a 0.60 nats", "b 0.51 nats", "a 0.51 nats\nmore", "a 1 nats"):
        with pytest.raises(AssertionError):
            assert_same("a 0.51 nats\n", other, "here")


def test_a_lens_in_a_package_of_its_own_is_found(run, tmp_path):
    """The page's lens, chart and explorer, installed with the entry points that the page prints."""
    page = run("add/lens.md")
    declared = [tomllib.loads(code) for _, _, language, code in blocks("add/lens.md") if language == "toml"]
    groups = {group: own for one in declared for group, own in one["project"]["entry-points"].items()}
    assert set(groups) == {"workbench.readers", "workbench.charts", "workbench.explorers"}
    info = tmp_path / "turn-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: turn\nVersion: 0.1\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items()) for group, own in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    reading = workbench.read("organism:story", "Mara lives in", page.names["TurnLens"](), progress=False)
    lines = reading.figure().plot.panels[0].marks  # by its attribute, through the entry point
    assert [line.name for line in lines] == ["own position", "another position (null)"]
    html = reading.to_html("turn.html", kind="turn").read_text()
    packed = re.findall(r'id="payload">([^<]*)<', html)[0]
    assert unpack(base64.b64decode(packed))["view"] == "TurnExplorer"
    assert "http" not in html.split("<body>")[1].replace("http://www.w3.org", "")
    command = ["-m", "workbench.cli", "read", "organism:story", "Mara lives in", "--lens", "turn", "--out", "out"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    out = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    kept = workbench.open("out/turn.nc").data
    np.testing.assert_allclose(kept["cosine"], reading.data["cosine"], atol=1e-5)
    # A dense reference: cosines of the states themselves.
    from lenses import States

    states = workbench.read("organism:story", "Mara lives in", States(), progress=False).data["state"].values[0]
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    np.testing.assert_allclose(kept["cosine"][0], (unit * unit[-1]).sum(-1), atol=1e-5)
    np.testing.assert_allclose(kept["cosine_null"][0], (unit * np.roll(unit[-1], 1, 0)).sum(-1), atol=1e-5)


def blocks(name: str) -> list[tuple[str, str, str, str]]:
    return FENCE.findall((DOCS / name).read_text("utf-8"))


def test_a_reading_opens_without_torch(run, tmp_path):
    run("index.md")
    asked = "import sys, workbench; workbench.open('story.nc').frame(); print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_the_page_of_installation_names_what_there_is():
    text = (DOCS / "index.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = text[text.index("Optional parts:") : text.index("With conda")]
    assert set(re.findall(r"`([\w-]+)`", listed)) == set(project["optional-dependencies"]) - {"all"}
    assert project["requires-python"] == ">=3.11" and "Python 3.11 or newer" in text
    environment = (ROOT / "environment.yml").read_text("utf-8")
    assert "name: latent-workbench" in environment and "CONDA_OVERRIDE_CUDA=12.8" in environment
    commands = re.search(r"`workbench (demo [^`]*)`", text)
    assert commands is not None
    from workbench.cli import _parser

    known = next(a.choices for a in _parser()._actions if getattr(a, "choices", None))
    assert set(commands[1].split(" | ")) == set(known)


# ---------------------------------------------------------------- the site


def tool(name: str) -> ModuleType:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    return imported(ROOT / "scripts" / name)


class Config:
    """As much of mkdocs' configuration as the hooks ask for."""

    def __init__(self, folder: Path) -> None:
        self.config_file_path, self.nav = (
            str(folder / "mkdocs.yml"),
            [{"Home": "index.md"}, {"Notebooks": ["notebooks.md"]}],
        )
        self.site_dir = str(folder / "site")


def notebook(path: Path, *cells: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": list(cells), "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return path


def code(source: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_notebooks_join_the_navigation_where_there_are_some(tmp_path):
    pages = tool("pages.py")
    alone = [{"Home": "index.md"}, {"Notebooks": ["notebooks.md"]}]
    assert pages.on_config(Config(tmp_path)).nav == alone  # no folder
    (tmp_path / "notebooks").mkdir()
    assert pages.on_config(Config(tmp_path)).nav == alone  # an empty one
    notebook(
        tmp_path / "notebooks" / "01_first.ipynb", {"cell_type": "markdown", "source": ["# The `first`\n", "text"]}
    )
    notebook(tmp_path / "notebooks" / "02_second.ipynb", code("1"))
    found = pages.on_config(Config(tmp_path)).nav[1]["Notebooks"]
    assert found == ["notebooks.md", {"The first": "notebooks/01_first.md"}, {"02_second": "notebooks/02_second.md"}]


def test_a_notebook_becomes_a_page_with_its_saved_outputs(tmp_path):
    pages = tool("pages.py")
    links = "[card](../workbench/organisms/story/CARD.md), [next](two.ipynb), [code](../x.py), [paper](https://x.org)"
    html = "<script src='https://cdn.example/x.js'></script><table>\n\n<tr><td>*7*</td></tr></table>"
    printed = {"output_type": "stream", "name": "stdout", "text": ["```\n"]}
    progress = {"output_type": "stream", "name": "stderr", "text": "progress 10 %"}
    table = {"output_type": "execute_result", "data": {"text/html": html, "text/plain": "plain"}, "metadata": {}}
    picture = {"image/png": "UE5H", "text/plain": "<Figure 'a'>"}
    figure = {"output_type": "display_data", "data": picture, "metadata": {"image/png": {"width": 300}}}
    said = {"cell_type": "markdown", "source": ["# One\n", links]}
    path = notebook(tmp_path / "one.ipynb", said, code("1", printed, progress), code("2", table), code("3", figure))
    text, pictures = pages.as_page(path)
    assert "[card](../organisms.md#organismstory), [next](two.md), code, [paper](https://x.org)" in text
    assert "````text\n```\n````" in text and "progress" not in text  # a fence longer than what it holds
    assert "<td>*7*</td>" in text and "cdn.example" not in text and "plain" not in text and "\n\n<tr>" not in text
    assert pictures == {"one-3-0.png": b"PNG"} and 'src="one-3-0.png" alt="&lt;Figure' in text and 'width="300"' in text


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ("<link rel='stylesheet' href='//fonts.example/css'>", True),
        ('<style>@import "https://fonts.example/css";</style>', True),
        ('<style>a{background:url("https://example.org/a.png")}</style>', True),
        ('<a href="https://arxiv.org/abs/2602.00462">paper</a>', False),
        ('<script src="assets/x.js"></script><svg xmlns="http://www.w3.org/2000/svg"/>', False),
        ('<code>&lt;script src="https://cdn.example/x.js"&gt;</code>', False),
    ],
)
def test_a_site_that_would_fetch_something_is_refused(tmp_path, html, fetches):
    pages = tool("pages.py")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text(html)
    with pytest.raises(Exception, match="on the network") if fetches else contextlib.nullcontext():
        pages.on_post_build(config=Config(tmp_path))


def test_docstrings_keep_their_lines_where_they_have_columns():
    docstrings = tool("docstrings.py")
    import griffe

    module = griffe.visit("m", Path("m.py"), "def other(): ...\ndef f(): ...")
    text = (
        "Runs on\nhere, see :func:`other` and ``x < 1``.\n\nArgs:\n    a: one\n        more of it\n\n    b: two\n\n"
        "name   what it is\nother  what that is, and   more\nthird  the   same"
    )
    blocks = docstrings._Writer(module["f"]).written(text).split("\n\n", 1)
    assert blocks[0] == (
        '<p>Runs on here, see <autoref identifier="m.other" optional><code>other</code></autoref> and '
        '<code class="lw-code">x &lt; 1</code>.</p>'
    )
    assert '<p class="lw-section">Args:</p>' in blocks[1]
    assert '<div class="lw-kept">a: one\n    more of it\n\nb: two</div>' in blocks[1]
    assert '<div class="lw-kept">name   what it is\nother  what' in blocks[1]


PUBLIC = (
    "workbench", "lenses", "lenses.judge", "lenses.latent", "probes.routing", "probes.routing.measures",
    "probes.routing.adapters", "probes.superposition", "probes.superposition.features",
)  # fmt: skip


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_has_its_place_in_the_api(package):
    text = "\n".join(path.read_text("utf-8") for path in (DOCS / "api").glob("*.md"))
    there = {line.split()[-1] for line in text.splitlines() if line.startswith("::: ")}
    own = importlib.import_module(package)
    for name in own.__all__:
        homes = {f"{package}.{name}", f"{package.split('.')[0]}.{name}"}
        assert there & homes, f"docs/api: {package}.{name} is on no page"


def test_white_box_functions_are_in_the_api():
    from probes.values import white

    text = (DOCS / "api" / "values.md").read_text("utf-8")
    for name in white.__all__:
        assert re.search(rf"^::: probes\.values\.white\.\S*\b{name}$", text, re.MULTILINE), name


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of a checkout without notebooks, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "mkdocs.yml", "scripts", "benchmarks", "workbench", "lenses", "probes"):
        (folder / name).symlink_to(ROOT / name)
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder / "build" / "docs"


def test_the_site_has_the_cards_and_the_docstrings(site):
    from workbench.organisms import names

    cards = (site / "organisms.html").read_text("utf-8")
    for name in names():
        assert f'id="organism{name}"' in cards
    assert "Best layer for each word" in cards  # the end of a card, too
    api = (site / "api" / "lenses.html").read_text("utf-8")
    assert 'id="lenses.LatentLens"' in api and "95th percentile of the best similarity" in api
    assert "There are no notebooks" in (site / "notebooks.html").read_text("utf-8")


@pytest.mark.browser
def test_search_works_without_a_server(site):
    from browsers import browser

    if browser() is None:
        pytest.skip("no Chrome or Chromium to open the page with")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            str(browser()), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom",
            f"{(site / 'index.html').as_uri()}?q=hubness",
        ]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, timeout=90).stdout.decode()
    assert "numbers/lenses.html" in shown[shown.index("md-search-result__list") :]


# ---------------------------------------------------------------- tables

SPANS = re.compile(r"((?:`[^`]+`[ ,]*)+)\[([^\]]*)\]")
Documented = dict[str, tuple[str, ...]]


def documented(page: str) -> dict[str, Documented]:
    """Heading -> variable -> dimensions, of the tables of a page of numbers."""
    found: dict[str, Documented] = {}
    for part in re.split(r"^## ", (DOCS / "numbers" / page).read_text("utf-8"), flags=re.MULTILINE)[1:]:
        own = found[part.splitlines()[0].strip("` ")] = {}
        for line in part.splitlines():
            if line.startswith("| `"):
                cells = [cell.strip() for cell in line.strip("|\n").split("|")]
                assert len(cells) == 5 and all(cells), f"{page}: a cell is empty in {line}"
                for name, dims in named(cells[0]).items():
                    assert own.setdefault(name, dims) == dims
    return found


def named(cell: str) -> Documented:
    """A cell such as `jsd` `_low` [a, b], `_p` [b] -> jsd and jsd_low [a, b], jsd_p [b]."""
    found: Documented = {}
    stems: list[str] = []
    for spans, dims in SPANS.findall(cell):
        names = re.findall(r"`([^`]+)`", spans)
        if not names[0].startswith("_"):
            stems = [name for name in names if not name.startswith("_")]
            found |= dict.fromkeys(stems, axes(dims))
        ends = [name for name in names if name.startswith("_")]
        found |= {stem + end: axes(dims) for stem in stems for end in ends}
    return found


def axes(dims: str) -> tuple[str, ...]:
    return tuple(dim.strip() for dim in dims.split(",") if dim.strip())


def test_rows_are_read_as_the_page_explains():
    assert named("`a`, `b` `_low` [x, y], `_p` [x], `c` []") == {
        "a": ("x", "y"), "b": ("x", "y"), "a_low": ("x", "y"), "b_low": ("x", "y"), "a_p": ("x",), "b_p": ("x",),
        "c": (),
    }  # fmt: skip


SOURCES: dict[str, Callable[[], xr.Dataset]] = {}
"""Heading of a table -> what the code really gives there, on a small model."""


def source(heading: str) -> Callable[[Callable[[], xr.Dataset]], Callable[[], xr.Dataset]]:
    def keep(function: Callable[[], xr.Dataset]) -> Callable[[], xr.Dataset]:
        SOURCES[heading] = function
        return function

    return keep


PAGES = ("lenses.md", "routing.md", "superposition.md", "values.md")
COMMON, LEVELS = "Every reading", "Measured levels"
SECTIONS = [
    (page, heading) for page in PAGES for heading in documented(page) if heading not in (COMMON, LEVELS)
]


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=[heading for _, heading in SECTIONS])
def test_tables_name_what_is_there_and_all_of_it(page, heading):
    found, table = SOURCES[heading](), documented(page)[heading]
    data = found.data if isinstance(found, Reading) else found
    there = {str(name): tuple(map(str, v.dims)) for name, v in data.variables.items()}
    for name, dims in table.items():
        assert name in there, f"{page}, {heading}: there is no {name}; there are {', '.join(there)}"
        assert there[name] == dims, f"{page}, {heading}: {name} has the dimensions {there[name]}"
    beside = documented("lenses.md")[COMMON] if "input_id" in there else {}
    for name, dims in beside.items():
        assert name in table or there.get(name, dims) == dims
    missing = {str(name) for name in data.data_vars} - set(table) - set(beside)
    assert not missing, f"docs/numbers/{page}, {heading}: no row says what {', '.join(sorted(missing))} is"


def test_every_source_has_a_table():
    assert {heading for _, heading in SECTIONS} == set(SOURCES)


def test_constants_on_the_pages_are_those_of_the_code():
    from lenses import logit, nulls
    from lenses.latent import lens as latent
    from probes.routing.measures import documents as routed
    from probes.superposition import verdicts
    from workbench import sinks

    text = {page: (DOCS / "numbers" / page).read_text("utf-8") for page in PAGES}
    assert text["lenses.md"].count(f"({nulls.ROWS[0]} to {nulls.ROWS[1]} of them, or `draws`)") == 2
    assert f"up to {logit.NULLS} (`draws`) are drawn" in text["lenses.md"]
    assert f"at most {latent.RANDOM} states of prompts of random tokens" in text["lenses.md"]
    assert f"NaN below {nulls.FEWEST}" in text["lenses.md"]
    assert f"beyond {sinks.LEAST:g} to {sinks.MOST:g} times the layer's median" in text["lenses.md"]
    assert f"jackknife over {routed.GROUPS} groups of documents" in text["routing.md"]
    assert f"evenness above {verdicts.EVEN}; and the share of problems" in text["superposition.md"]
    assert f"estimated at {verdicts.MOST} or more." in text["superposition.md"]
    assert f"leads alone (`lead` above {verdicts.LEAD})" in text["superposition.md"]
    assert all(word in text["superposition.md"] for word in verdicts.WORDS)


STORY = ["Mara lives in", "The bat flew out of the dark"]


@cache
def organism(name: str) -> workbench.Model:
    return workbench.load(f"organism:{name}")


@cache
def folder() -> Path:
    import atexit

    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def index() -> Any:
    from lenses import ContextIndex
    from workbench.organisms.story.grammar import stories

    texts = [story.text for story in stories(30, seed=5)]
    return ContextIndex.build(organism("story"), texts, folder() / "story.index", progress=False)


@cache
def lens_readings() -> dict[str, Any]:
    import lenses

    readers = [
        lenses.LogitLens(), lenses.EmbeddingLens(), lenses.LatentLens(index()), lenses.LogitAttribution(),
        lenses.States(), lenses.TokenDrift(),
    ]  # fmt: skip
    found = workbench.read(organism("story"), STORY, readers, progress=False)
    return {type(reader).__name__: reading for reader, reading in zip(readers, found, strict=True)}


for _name in ("LogitLens", "EmbeddingLens", "LatentLens", "LogitAttribution", "States", "TokenDrift"):
    SOURCES[f"lenses.{_name}"] = lambda name=_name: lens_readings()[name].data


@source("ContextIndex.search")
def _search() -> xr.Dataset:
    return index().search(lens_readings()["States"].data["state"].values[1, 3])


@source("hubness")
def _hubness() -> xr.Dataset:
    from lenses.latent.hubness import hubness

    return hubness(index(), hubs=3).data


@source("hubs")
def _hubs() -> xr.Dataset:
    from lenses.latent.hubness import hubs

    return hubs(lens_readings()["LatentLens"], hubs=3).data


@source("lenses.latent.logit_agreement")
def _logit_agreement() -> xr.Dataset:
    from lenses.latent import logit_agreement

    return logit_agreement(lens_readings()["LatentLens"], lens_readings()["LogitLens"]).data


@cache
def mosaics() -> dict[str, Any]:
    """Patches of pictures that are mosaics, what a judge and people say of them, and their agreement."""
    from mosaics import NONSENSE, Says, Sees, reading, tables, yes

    from lenses import judge

    own, options = reading(tables(6)), {"n": 6, "random": NONSENSE, "progress": False, "draws": 50}
    people = judge.judge(own, Says(yes), **options)
    return {
        "sample": judge.sample(own, n=6), "judge": judge.judge(own, Sees(), **options),
        "agreement": judge.agreement(judge.judge(own, Sees(), **options), people),
    }  # fmt: skip


for _name in ("sample", "judge", "agreement"):
    SOURCES[f"judge.{_name}"] = lambda name=_name: mosaics()[name].data


@source("judge.replay")
def _replay() -> xr.Dataset:
    from lenses import judge

    def write(name: str, content: Any) -> None:
        (folder() / f"{name}.json").write_text(json.dumps(content))

    ids = range(6)
    same = {"caption": "a red house", "candidates": ["red"], "model": "m"}
    write("data", [{"id": i, "index": i // 2, **same} for i in ids])
    write("humans", [{"annotator": "a", "instance": i, "words": ["red"] * (i % 2)} for i in ids])
    lists = [{"concrete_words": ["red"] * (i % 3), "abstract_words": [], "global_words": []} for i in ids]
    write("judge", {"results": [{"instance_id": i, "gpt_response": own} for i, own in enumerate(lists)]})
    return judge.replay(folder(), draws=20).data


@cache
def documents() -> tuple[list[str], list[str]]:
    from workbench.organisms.polyglot.grammar import documents

    return [text for x in "abc" for text in documents(8, x, seed=1)], [x for x in "abc" for _ in range(8)]


@cache
def routing() -> Any:
    from probes.routing import RoutingTracer

    texts, labels = documents()
    tracer = RoutingTracer(labels=labels, trace=True, scores=True, pairs=True)
    return workbench.read(organism("polyglot"), texts, tracer, progress=False)


SOURCES["probes.routing.RoutingTracer"] = lambda: routing().data


def _measure(name: str, *more: Callable[[], Any], **options: Any) -> None:
    def table() -> xr.Dataset:
        from probes.routing import measures

        return getattr(measures, name)(routing(), *(x() for x in more), **options)

    SOURCES[f"measures.{name}"] = table


for _name in (
    "usage", "gate", "balance", "divergence", "information", "specialisation", "agreement", "classes", "decode",
    "differences", "vocabulary", "consistency", "coactivation", "flow", "select",
):  # fmt: skip
    _measure(_name, draws=20)
_measure("reordering", lambda: organism("polyglot"), draws=20)
_measure("overlap", draws=20, permutations=50)
_measure("parallel", lambda: [i % 8 for i in range(24)], draws=20)
_measure("context")
_measure("paths")


@source("measures.geometry")
def _router_geometry() -> xr.Dataset:
    from probes.routing import measures

    return measures.geometry(organism("polyglot"), draws=10)


@source("measures.saturation")
def _saturation() -> xr.Dataset:
    from probes.routing import measures

    return measures.saturation([routing(), routing()], floor=routing(), draws=20)


@source("measures.router_drift")
def _router_drift() -> xr.Dataset:
    from probes.routing import measures

    return measures.router_drift({0: organism("polyglot"), 1: organism("polyglot")})


def _of_routing(name: str, *given: Any, **options: Any) -> None:
    def table() -> xr.Dataset:
        import probes.routing

        return getattr(probes.routing, name)(organism("polyglot"), documents()[0][:4], *given, **options)

    SOURCES[f"probes.routing.{name}"] = table


_of_routing("effect", {3: [1]}, sets=2, draws=50)
_of_routing("regret", 3, routes=2, draws=50)
_of_routing("contributions", draws=20)
_of_routing("functional", clusters=8, draws=20)


def test_effects_adds_what_the_page_says():
    from probes.routing import effects

    claims = {"a": (documents()[0][:4], {3: [1]})}
    both = set(effects(organism("polyglot"), claims, sets=2, draws=50).data.data_vars)
    more = {"documents", "nll", "experts", "q", "q_random", "backed"}
    assert both == more | set(documented("routing.md")["probes.routing.effect"])


def test_the_page_names_what_labels_by_token_add():
    from probes.routing import RoutingTracer
    from workbench.inputs import encode

    texts = documents()[0][:4]
    ids = [prompt.ids for prompt in encode(organism("polyglot"), texts)]
    labels = [[str(i % 2) for i in range(len(own))] for own in ids]
    tracer = RoutingTracer(labels=labels, scores=True)
    data = workbench.read(organism("polyglot"), texts, tracer, progress=False).data
    text = (DOCS / "numbers" / "routing.md").read_text("utf-8")
    listed = text[text.index("Where labels are by token") : text.index("## `measures.usage`")]
    assert {name for name in data if str(name).startswith("part_")} == set(re.findall(r"`(part_\w+)`", listed))


@source("probes.routing.shared")
def _shared() -> xr.Dataset:
    import transformers

    from probes.routing import shared

    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, shared_expert_intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1, max_position_embeddings=32,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    return shared(workbench.load(module, name="tiny"), [[5, 6, 7], [8, 9]], draws=20)


@cache
def arrow() -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed, and Arrow routers are PEFT's")
    import transformers

    def base() -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=32,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()

    paths = []
    for i in range(2):
        own = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        paths.append(str(folder() / f"adapter-{i}"))
        peft.get_peft_model(base(), own).save_pretrained(paths[-1])
    config = peft.ArrowConfig(top_k=1, router_temperature=1.0, rng_seed=0)
    return workbench.load(peft.create_arrow_model(base(), paths, config), name="arrow")


ORACLE = {"a": "task_0", "b": "task_1"}
TASKS = [[3 + i, 5, 7 + i, 9] for i in range(6)], ["a", "b"] * 3


@cache
def adapted() -> Any:
    from probes.routing.adapters import adapter_routing

    return adapter_routing(arrow(), *TASKS, oracle=ORACLE, trace=True, progress=False)


SOURCES["adapters.adapter_routing"] = lambda: adapted().data


def _of_adapters(name: str, *given: Callable[[], Any], **options: Any) -> None:
    def table() -> xr.Dataset:
        import probes.routing.adapters

        return getattr(probes.routing.adapters, name)(*(x() for x in given), **options)

    SOURCES[f"adapters.{name}"] = table


for _name in ("usage", "oracle_rate", "agreement"):
    _of_adapters(_name, adapted, draws=20)
_of_adapters("gram", arrow, draws=20)
_of_adapters("compare", arrow, lambda: TASKS[0], lambda: TASKS[1], lambda: ORACLE, draws=20)


@cache
def thoughts() -> Any:
    from lenses import States
    from probes.superposition import CandidateBelief, SoftThought, think

    own, belief = questions(), CandidateBelief(questions().names, mass=True)
    return think(organism("searcher"), own.prompts, SoftThought(2), readers=[belief, States()], then="=")


@cache
def questions() -> Any:
    from probes.superposition.searcher import Questions

    return Questions(12)


SOURCES["probes.superposition.think"] = lambda: thoughts().data
SOURCES["probes.superposition.CandidateBelief"] = lambda: thoughts().readings[0].data


def _of_thoughts(name: str, given: Callable[[], tuple[Any, ...]], **options: Any) -> None:
    def table() -> xr.Dataset:
        import probes.superposition

        return getattr(probes.superposition, name)(*given(), **options)

    SOURCES[f"probes.superposition.{name}"] = table


def _logits() -> tuple[Any, ...]:
    return thoughts().readings[0].data["logit"].values[:, -1, :2], questions().problems


def _used() -> tuple[Any, ...]:
    from probes.superposition import ContinuousThought

    own = questions()
    return organism("searcher"), own.prompts, own.problems, own.names, ContinuousThought(3)


def _verdict() -> Any:
    from probes.superposition import frontier, use, verdict

    return verdict(frontier(*_logits()), use(*_used(), then="=", draws=20))


_of_thoughts("mass", _logits)
_of_thoughts("focus", lambda: (thoughts().readings[0], questions().problems))
_of_thoughts("frontier", _logits)
_of_thoughts("use", _used, then="=", draws=20)
SOURCES["probes.superposition.verdict"] = lambda: _verdict().reading.data
_of_thoughts("entity_belief", lambda: (organism("searcher"), questions().prompts[:2], ["n1", "n2"]))
_of_thoughts("soft_versus_hard", lambda: (organism("story"), STORY))
_of_thoughts("mixture_entropy", lambda: (organism("story"), STORY, (1, 2)), mixtures=2)
_of_thoughts(
    "decode_frontier",
    lambda: (thoughts().readings[1].data["state"].values[:, :, :2], questions().problems),
    seeds=1,
    steps=3,
)


class Dictionary:
    """Random directions as a sparse autoencoder."""

    def __init__(self) -> None:
        width = organism("story").d_model
        self.rows = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0)) / width**0.5

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.rows.T).relu()

    def decode(self, activations: torch.Tensor) -> torch.Tensor:
        return activations @ self.rows


@source("features.DictionaryFeatures")
def _dictionary() -> xr.Dataset:
    from probes.superposition.features import DictionaryFeatures

    reader = DictionaryFeatures({3: Dictionary()}, draws=20)
    return workbench.read(organism("story"), STORY, reader, progress=False).data


def _of_features(name: str, *given: Any, **options: Any) -> None:
    def table() -> xr.Dataset:
        import probes.superposition.features

        return getattr(probes.superposition.features, name)(*given, **options)

    SOURCES[f"features.{name}"] = table


ROWS = np.random.default_rng(0).standard_normal((6, 3))
_of_features("geometry", ROWS, draws=5)
_of_features("plateaus", ROWS, draws=5)
_of_features("effective_features", np.abs(ROWS), hidden=3, rotated=np.abs(ROWS[:2]), draws=20)
_of_features("sweep", 4, 2, [0.0, 0.9], steps=5, batch=16)


@cache
def statements() -> Any:
    from probes.values.items import Items
    from probes.values.opinions import items

    every = items()
    kinds = [(topic, key) for topic in every.topics[:2] for key in (1, -1)]
    return Items(x for kind in kinds for x in [i for i in every if (i.topic, i.polarity) == kind][:3])


@cache
def tracked() -> Any:
    from probes.values.framings import letter_framings
    from probes.values.instruments import Pmf, SampledText, SequenceLikelihood
    from probes.values.tracker import ValueTracker
    from probes.values.white import WhiteBox
    from workbench.organisms.opinions import grammar, runs

    text = SampledText(2, 1.0, 6, judge=grammar.judge, shown="{response}")
    instruments = [Pmf(), SequenceLikelihood(), text, WhiteBox(letter_framings(), draws=30)]
    steps = sorted(runs()["sft"].items())[::3][:4]
    return ValueTracker(folder() / "values", statements(), instruments).run(dict(steps), progress=False)


def _instrument(name: str) -> xr.Dataset:
    """One checkpoint, as the instrument gave it; without ``checkpoint``, which the tracker adds."""
    return tracked().table(name).data.isel(checkpoint=0, drop=True)


SOURCES["instruments.Pmf"] = lambda: _instrument("pmf")
SOURCES["instruments.SequenceLikelihood"] = lambda: _instrument("sequence")
SOURCES["instruments.SampledText"] = lambda: _instrument("sampled")
SOURCES["white.WhiteBox"] = lambda: _instrument("whitebox")


@cache
def chosen() -> tuple[Any, Any]:
    from probes.values.choices import Choices
    from probes.values.items import Item, Items

    items = Items(
        Item(f"q{i}", "gardens", "Which is better?", kind="choice", options=("a", "b"), shares={"us": (0.5, 0.5)})
        for i in range(3)
    )
    return Choices(letters=("A", "B")).read(organism("opinions"), items, progress=False), items


SOURCES["choices.Choices"] = lambda: chosen()[0].data


@source("choices.likeness")
def _likeness() -> xr.Dataset:
    from probes.values.choices import likeness

    return likeness(*chosen(), ordinal=True, draws=20).data


def _of_drift(name: str, given: Callable[[], tuple[Any, ...]], **options: Any) -> None:
    def table() -> xr.Dataset:
        from probes.values import measures

        return getattr(measures, name)(*given(), **options).data

    SOURCES[f"values.{name}"] = table


def _readings(name: str = "pmf") -> Any:
    return tracked().readings(name)


_of_drift("stance", lambda: (_readings(),), draws=20)
_of_drift("drift", lambda: (_readings(),), draws=20)
_of_drift("convergence", lambda: (_readings(), 0.1), draws=20)
_of_drift("resampling_null", lambda: (_readings("sampled"), _readings("sampled")), draws=20)
_of_drift("sides", lambda: (_readings(),))


@source("values.compare")
def _compare() -> xr.Dataset:
    from probes.values.measures import compare

    runs = dict.fromkeys("abcd", _readings())
    arms, alone = (compare(runs, arm=arm, draws=20).data for arm in (dict(zip("abcd", "ooot", strict=True)), None))
    return xr.merge([arms, alone], compat="override", combine_attrs="override", join="outer")


_of_drift("agreement", lambda: ({name: _readings(name) for name in ("pmf", "sequence")},), draws=20)


@source("values.data_gap")
def _data_gap() -> xr.Dataset:
    import warnings

    from probes.values.measures import data_gap

    given = xr.Dataset({"keyed": ("topic", [0.1, 0.2])}, {"topic": list(statements().topics)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two topics show nothing, and it says so
        return data_gap(given, _readings(), draws=20).data


@source("judge_errors.confusion")
def _confusion() -> xr.Dataset:
    return _known().data


def _known() -> Any:
    from probes.values.judge_errors import confusion

    def judge(texts: list[str]) -> np.ndarray:
        return np.array([np.roll([0.8, 0.1, 0.1], "sno".index(text)) for text in texts])

    return confusion(judge, [("s", "support"), ("n", "neutral"), ("o", "oppose")] * 2)


@source("judge_errors.corrected")
def _corrected() -> xr.Dataset:
    from probes.values.judge_errors import corrected

    return corrected(_readings("sampled").isel(checkpoint=0), _known(), draws=20).data


def _of_white(name: str, **options: Any) -> None:
    def table() -> xr.Dataset:
        from probes.values import white

        return getattr(white, name)(tracked().table("whitebox"), **options).data

    SOURCES[f"white.{name}"] = table


for _name in ("margins", "projections", "directions", "behaviour"):
    _of_white(_name, draws=20)
_of_white("similarity")


@source("white.weights")
def _weights() -> xr.Dataset:
    from probes.values.white import weights
    from workbench.organisms.opinions import runs

    return weights(dict(sorted(runs()["sft"].items())[:3])).data


@source("greatest_good.scores")
def _greatest_good() -> xr.Dataset:
    from probes.values import greatest_good
    from probes.values.items import Item, Items

    items = Items(Item(f"g{i}", ("IB", "IH")[i % 2], x.text, 1) for i, x in enumerate(statements()[:8]))
    same = dict.fromkeys((0, 1), "organism:opinions")
    return greatest_good.study(folder() / "ggb", same, items, draws=20, progress=False).data
