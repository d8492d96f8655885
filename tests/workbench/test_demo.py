"""The demo's page: questions, answers that are the saved readings' own numbers, pictures and links."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from pages import payload_of
from tiny import saved

import workbench
from workbench.cli import main
from workbench.demo import Shown, answered
from workbench.errors import Refused
from workbench.reading import Reading
from workbench.variables import about

HOSTILE = '<script>alert("w3")</script>'
WORDS = ["<pad>", "<s>", "</s>", HOSTILE, "&amp;", *(f"w{i}" for i in range(92))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a tokenizer of 97 words, two of which are markup."""
    return saved(tmp_path_factory.mktemp("demo") / "tiny <b>model", WORDS)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo writes of hostile prompts."""
    out = tmp_path_factory.mktemp("out") / "a b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.demo.PLAIN_PROMPTS", (f"w5 w7 {HOSTILE} &amp; w9", "w1 w2 w3", "w4 w8"))
        assert main(["demo", "--model", str(folder), "--out", str(out)]) == 0
    return out


class Page(HTMLParser):
    """The tags of a page with their attributes, and the texts of headings, paragraphs and code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h1", "h2", "h3", "p", "pre", "dd"):
            self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.texts:
            tag, text = self.texts[-1]
            self.texts[-1] = tag, text + data

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def test_every_link_leads_to_a_file_and_every_file_is_linked(made: Path) -> None:
    page = Page(made / "index.html")
    linked = {a[key] for _, a in page.tags for key in ("href", "src") if key in a}
    assert all((made / str(name)).is_file() for name in linked)
    assert {path.name for path in made.iterdir() if path.is_file()} == linked | {"index.html"}
    assert {path.suffix for path in made.iterdir()} == {".html", ".svg", ".pdf", ".nc", ""}  # without: the small index


def test_pictures_have_words_and_headings_are_no_file_names(made: Path) -> None:
    page = Page(made / "index.html")
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert {a["src"] for a in pictures} == {path.name for path in made.glob("*.svg")}
    assert len(pictures) == 6 and all(len(a["alt"] or "") > 20 for a in pictures)
    headings = page.of("h1") + page.of("h2") + page.of("h3")
    assert headings and not [text for text in headings if re.search(r"\.(html|svg|pdf|nc)\b", text)]
    assert all(text.endswith("?") for text in page.of("h3"))


def test_hostile_texts_are_texts_and_nothing_is_loaded(made: Path) -> None:
    text, page = (made / "index.html").read_text(encoding="utf-8"), Page(made / "index.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert HOSTILE in page.of("h1")[0] and "&amp;" in page.of("h1")[0] and "tiny <b>model" in page.of("p")[0]
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")


def test_the_code_of_the_page_draws_its_pictures(made: Path) -> None:
    blocks = [text for text in Page(made / "index.html").of("pre") if text.startswith("import")]
    assert len(blocks) == 6
    for block in blocks:
        exec(block, {})


def test_answers_are_the_numbers_of_the_saved_readings(made: Path) -> None:
    page = Page(made / "index.html")
    text = " ".join(page.of("p"))
    logit, followed = (workbench.open(made / f"{name}.nc").data for name in ("logit", "prediction"))
    last = int((logit["input_id"][0] >= 0).sum()) - 1
    top = logit["token_id"].values[0, :, last, 0]
    first = max([i + 1 for i in range(len(top)) if top[i] != top[-1]], default=0)
    where = f"from layer {first} of 4 on" if first < 4 else "only in the last, 4"
    x, null = (np.exp(followed[f"target_logprob{end}"].values[0, :, last, 0]) for end in ("", "_null"))
    less = "which is no more than" if x[first] - null[first] < 0.005 else "where"
    shown = [f"{v:.2f}" if v >= 0.005 else "under 0.01" for v in (x[-1], x[first], null[first])]
    assert (
        f"with probability {shown[0]}. Layer by layer it is on top {where}: {shown[1]} there, {less} other positions' "
        f"states give it {shown[2]} (median)."
    ) in text
    parts = workbench.open(made / "attribution.nc").data.isel(prompt=0, position=last)
    c = int(parts["contribution"].argmax("component"))
    one, mean = float(parts["contribution"][c]), float(parts["contribution_mean"][c])
    beside = f"{mean:.3g}{'' if one > mean else ' (not beyond it)'}"
    assert f" = {one:.3g}; mean contribution over positions = {beside}." in text
    for name, score in (("embedding", "cosine"), ("latent", "similarity")):
        q = workbench.open(made / f"{name}.nc").data[f"{score}_q"]
        assert int(q.notnull().sum()) > 0
        assert f"beyond chance in {int((q <= 0.05).sum()) or 'none'} of {int(q.notnull().sum())} states" in text
        assert f"q\u00a0=\u00a0{float(q.min()):.2g}" in text


def grid(top: list[list[int]], **more: object) -> Reading:
    """A reading of one prompt with these top tokens, layers x positions."""
    ids = np.array(top)[None, :, :, None]
    data = xr.Dataset(
        {
            "token_id": (("prompt", "layer", "position", "rank"), ids, about("top token", role="label", of="score")),
            "score": (("prompt", "layer", "position", "rank"), np.ones(ids.shape), about("score")),
            **more,
        },
        attrs={"reader": "Lens", "model": "made"},
    )  # fmt: skip
    return Reading(data)


def test_agreement_no_better_than_chance_is_called_that() -> None:
    lens = SimpleNamespace(question="When?")
    # Half way, the tokens of other positions are on top; in the last but one layer each position has its own.
    said = answered(lens, grid([[5] * 4, [2, 1, 4, 3], [1, 2, 3, 9], [1, 2, 3, 4]])).answer
    assert "Of 4 positions, 75% in layer 2 have" in said and "no more" not in said
    said = answered(lens, grid([[5] * 4, [2, 1, 4, 3], [2, 1, 4, 3], [1, 2, 3, 4]])).answer
    assert "0% in layer 2 (no more than chance) have" in said and "of other positions, 33%." in said
    assert "nothing to compare" in answered(lens, grid([[1], [1]])).answer


@pytest.mark.parametrize(("better", "null", "beyond"), [("high", 3.0, False), ("high", 1.0, True), ("low", 3.0, True)])
def test_a_value_that_is_not_beyond_its_null_is_called_that(better: str, null: float, beyond: bool) -> None:
    class Lens:
        """How long a state is."""

    cells = ("prompt", "layer", "position")
    data = xr.Dataset({
        "norm": (cells, np.full((1, 2, 3), 2.0), about("length", better=better)),
        "norm_null": (("layer",), [9.0, null], about("median length", role="null", of="norm")),
    })  # fmt: skip
    shown = answered(Lens(), Reading(data))
    assert shown.question == "How long a state is."
    assert shown.answer.endswith(f"length = 2; median length = {null:.3g}{'' if beyond else ' (not beyond it)'}.")


def test_cells_beyond_their_null_are_counted_or_there_are_none() -> None:
    def said(q: list[float]) -> str:
        cells = ("prompt", "layer", "position")
        values = np.array(q)[None, None]
        return answered(SimpleNamespace(question="Near?"), grid(
            [[1, 2, 3]], score_q=(cells, values, about("q of the score", role="q", of="score")),
            input_id=(("prompt", "position"), [[7, 8, 9]], about("input", role="label")),
        )).answer  # fmt: skip

    assert "beyond chance in 2 of 3 states" in said([0.04, 0.01, 0.3]) and "Clearest is “#8”" in said([0.04, 0.01, 0.3])
    assert "in none of 2 states" in said([np.nan, 0.2, 0.3]) and "Closest to it is “#8”" in said([np.nan, 0.2, 0.3])
    assert said([np.nan] * 3).startswith("No state was tested")


def test_a_mixture_of_experts_is_told_its_least_even_block(tmp_path: Path) -> None:
    from probes.routing import RoutingTracer

    model = workbench.load("organism:polyglot")
    reading = workbench.read(model, [[5, 9, 13, 7], [8, 4, 6]], RoutingTracer(), progress=False)
    shown = answered(RoutingTracer(), reading)
    count = reading["usage_count"].values[0]
    load = (count / count.sum(-1, keepdims=True)).max(-1) * count.shape[-1]
    said = f"Least even is block {int(load.argmax())}: its busiest expert serves {load.max():.2f} times its even share;"
    assert shown.answer.startswith(said) and re.search(r"at random, \d\.\d\d times\.$", shown.answer)
    shown.reading.figure(shown.chart)


@pytest.mark.parametrize("example, view, pages", [
    ("probes.routing.polyglot", "RoutingExplorer", 1), ("probes.superposition.searcher", "BeliefExplorer", 3),
    ("probes.values.opinions", "DriftExplorer", 1),
])  # fmt: skip
def test_what_probes_add_to_the_demo(tmp_path: Path, example: str, view: str, pages: int) -> None:
    (point,) = [p for p in metadata.entry_points(group="workbench.demos") if p.value == f"{example}:example"]
    shown: Shown = point.load()(tmp_path)
    assert sorted(shown.pages.values()) == sorted(tmp_path.iterdir()) and len(shown.pages) == pages
    assert {payload_of(page)["view"] for page in shown.pages.values()} == {view}
    shown.reading.figure(shown.chart)
    data = shown.reading.data
    if view == "RoutingExplorer":
        said = [f"{float(data[f'mean_jsd_{end}'].max()):.3f}" for end in ("corrected", "low", "high")]
        said = ["In 4 of 4 blocks", "{} nats [{}, {}]".format(*said), f"{float(data['mean_jsd_null'][-1]):.3f}"]
    elif view == "BeliefExplorer":
        lost = data.sel(condition="edit optimal")
        ends = (float(lost[name]) for name in ("effect", "effect_low", "effect_high"))
        said = ["from scratch: held and used; {:+.1f} [{:+.1f}, {:+.1f}]".format(*ends)]
    else:
        moved = data["keyed_M_p"].isel(checkpoint=-1) <= 0.05
        strayed = [str(t) for t in data["topic"].values[-4:] if bool(moved.sel(topic=t))]
        said = ["6 of the 6", "this one run: " + strayed[0]]
        assert shown.answer.count("[") == len(strayed)
    assert not [text for text in said if text not in shown.answer]


def test_demo_says_what_to_do_next_and_goes_on_without_a_reader_that_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise Refused("not with these states")

    monkeypatch.setattr("lenses.embedding.nearest_rows", refuse)
    assert main(["demo", "--model", str(folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "embedding cannot read this model: not with these states" in said and said.count("cannot read") == 1
    assert f"workbench read '{folder}' \"a prompt of yours\"" in said  # quoted: the name has a space
    named = {"prediction", "logit", "attribution", "latent", "drift"}
    files = {f"{name}.{end}" for name in named for end in ("nc", "pdf", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "lenses.html", "latent", *files}
