"""The explorer: what is sent is what the data says, and the page works alone in a browser."""

import base64
import json
import re
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import HOSTILE, embedding_lens, logit_attribution, logit_lens

from workbench.errors import InputError, ReadingError
from workbench.tokens import visible
from workbench.widgets import payload, static_html, to_html
from workbench.widgets.explorer import MODULE
from workbench.widgets.packing import quantised

try:
    from workbench.figures.export import browser

    BROWSER = browser()
except ImportError:
    BROWSER = None
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium to open the page with")


class Reading:
    def __init__(self, data, **model):
        self.data, self.provenance = data, {"model": model}


def numbers(packed):
    raw = base64.b64decode(packed["b"])
    if packed["t"] != "q16":
        return np.frombuffer(raw, {"i16": "<i2", "i32": "<i4"}[packed["t"]])
    steps = np.frombuffer(raw, "<u2").astype(float)
    return np.where(steps == 65535, np.nan, packed["lo"] + steps * (packed["hi"] - packed["lo"]) / 65534)


def load(page, script="", size="1400,900"):
    """The page's DOM as text after `script` ran in it, and what the browser wrote to its console."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        late = f'<script type="module">{script}</script>' if script else ""
        file.write_text(page.read_text("utf-8").replace("</body>", late + "</body>"), "utf-8")
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile", f"--window-size={size}", "--virtual-time-budget=3000",
            "--enable-logging=stderr", "--dump-dom", file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=90)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode("utf-8"), console


def cells(dom):
    return [unescape(t) for t in re.findall(r'class="lw-cell[^>]*>([^<]*)</div>', dom)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    readings = [Reading(logit_lens(), name="made-up", fingerprint="sha256:12ab"), embedding_lens()]
    return to_html(readings, folder / "lens.html", title="A <b>title</b>")


def test_importing_widgets_imports_no_heavy_package():
    code = "import sys, workbench.widgets as w, workbench.widgets.page\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'plotly', 'anywidget', 'ipywidgets')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_module_is_small_and_alone():
    text = MODULE.read_text("utf-8")
    assert len(text.encode()) <= 60 * 1024
    assert not re.search(
        r"\bimport\b\s*[({'\"*a-z]|fetch\(|XMLHttpRequest|innerHTML|https?://(?!www\.w3\.org/2000/svg)", text
    )
    assert text.count("export default") == 1 and "</" not in text


def test_payload_holds_what_the_data_holds():
    data = logit_lens()
    sent = payload([("lens", data)])["readings"][0]
    prompt = sent["prompts"][2]
    shape = (7, 9, 5)
    ids = numbers(prompt["token"]).reshape(shape)
    np.testing.assert_array_equal(np.array(sent["vocab_id"])[ids], data["token_id"].values[2, :, :9])
    np.testing.assert_allclose(
        numbers(prompt["score"]).reshape(shape), data["logprob"].values[2, :, :9], atol=2e-4
    )
    ranks = numbers(prompt["grids"]["target_rank"]).reshape(7, 9)
    np.testing.assert_array_equal(ranks, data["target_rank"].values[2, :, :9])
    assert prompt["inputs"] == [visible(str(t)) for t in data["input_token"].values[2, :9]]
    json.dumps(sent, allow_nan=False)


def test_payload_of_several_targets_and_of_blocks():
    sent = payload([("lens", logit_lens(targets=[" Paris", "<s>"]))])["readings"][0]
    assert sent["targets"] == ["·Paris", "<s>"] and "target_logprob" in sent["wide"]
    assert numbers(sent["prompts"][0]["grids"]["target_logprob"]).size == 2 * 7 * 14
    blocks = logit_lens().rename(layer="block").assign_attrs(at="mlp_out")
    assert payload([("lens", blocks)])["readings"][0]["depth_label"] == "block (mlp_out)"


def test_quantised_keeps_none_and_four_digits():
    values = np.array([np.nan, -17.25, 0.0, -0.001])
    np.testing.assert_allclose(numbers(quantised(values)), values, atol=17.25e-4)
    assert np.isnan(numbers(quantised(np.array([np.nan])))).all()


def test_readings_without_a_grid_are_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"LogitAttribution.*\.figure\(\)"):
        payload([("x", logit_attribution())])
    with pytest.raises(InputError, match="Reading, an xarray"):
        to_html(["a string"], "x.html")
    with pytest.raises(ReadingError, match="no folder"):
        to_html(logit_lens(), "/no/such/folder/x.html")


def test_static_table_is_escaped_small_and_says_what_it_leaves_out():
    table = static_html(logit_lens(lengths=(60, 3), layers=40))
    assert "<script" not in table and "<s>" not in table and "&lt;s&gt;" in table
    assert "13 of 40 layers" in table and "first 24 of 60 positions" in table and "prompt 0 of 2" in table
    assert len(table) < 80_000


def test_widget_carries_the_payload_and_a_table():
    pytest.importorskip("anywidget")
    from workbench.widgets import LensExplorer, explore

    widget = explore([logit_lens(), embedding_lens()])
    assert isinstance(widget, LensExplorer)
    assert [r["name"] for r in widget.payload["readings"]] == ["LogitLens", "EmbeddingLens"]
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<table" in bundle["text/html"]
    widget.selection = {"reading": 0, "prompt": 1, "depth": 3, "position": 2}
    assert widget._esm.strip().endswith("export default { render };")


def test_page_is_one_file_that_no_token_breaks_out_of(page):
    text = page.read_text("utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:,)|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("</script>") == 2 and "alert(1)</script>" not in text
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text and "sha256:12ab" in text
    assert [p.name for p in page.parent.iterdir()] == ["lens.html"]


@needs_browser
def test_page_shows_every_cell_and_no_error(page):
    dom, console = load(page)
    assert console == []
    data = logit_lens()
    words = dict(zip(data["vocab"].values.tolist(), data["vocab_token"].values, strict=True))
    top = data["token_id"].values[0, ::-1, :, 0]
    assert cells(dom) == [visible(words[i]) for i in top.ravel().tolist()]
    assert all(visible(t) in unescape(dom) for t in HOSTILE)


@needs_browser
def test_page_answers_to_keys_metrics_search_and_pins(page):
    script = """
      const grid = document.querySelector(".lw-grid"), wait = () => new Promise((r) => setTimeout(r, 150));
      const key = (k) => grid.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
      key("Home"); key("ArrowRight"); key("ArrowDown"); key("p"); await wait();
      document.body.dataset.head = document.querySelector(".lw-panel h3 span").textContent;
      document.body.dataset.pins = document.querySelectorAll(".lw-pins span").length;
      const show = document.querySelector("select[aria-label=show]"), first = '[data-row="0"][data-at="0"]';
      show.value = "entropy"; show.dispatchEvent(new Event("change")); await wait();
      document.body.dataset.entropy = document.querySelector(first).textContent;
      const search = document.querySelector("input[type=search]");
      search.value = "<s>"; search.dispatchEvent(new Event("input")); await wait();
      document.body.dataset.hits = document.querySelectorAll(".lw-cell.hit").length;
      const reading = document.querySelector("select");
      reading.value = "1"; reading.dispatchEvent(new Event("change")); await wait();
      document.body.dataset.facts = document.querySelector(".lw-facts").textContent;
    """
    dom, console = load(page, script)
    assert console == []
    said = {k: unescape(v) for k, v in re.findall(r'data-(\w+)="([^"]*)"', dom)}
    data = logit_lens()
    assert said["head"] == "layer 5, after <s> #1" and said["pins"] == "1"
    assert said["entropy"] == f"{float(data['entropy'][0, 0, 0]):.2f}"
    assert int(said["hits"]) == int((data["token_id"].values[0, :, :, 0] == HOSTILE.index("<s>")).sum())
    assert said["facts"].startswith("cosine floor 0.12")


@needs_browser
def test_long_prompts_draw_only_what_is_in_sight(tmp_path):
    file = to_html(logit_lens(lengths=(2000,), layers=81, top_k=5), tmp_path / "long.html")
    script = """
      const grid = document.querySelector(".lw-grid"), wait = () => new Promise((r) => setTimeout(r, 150));
      for (let i = 0; i < 5; i++) {
        grid.scrollLeft = i * 9000; grid.dispatchEvent(new Event("scroll")); await wait();
      }
      document.body.dataset.first = document.querySelector(".lw-in").title.split("#")[1];
      document.body.dataset.cells = document.querySelectorAll(".lw-cell").length;
    """
    dom, console = load(file, script)
    assert console == []
    count = int(re.findall(r'data-cells="(\d+)"', dom)[0])
    assert 200 < count < 1500
    assert int(re.findall(r'data-first="(\d+)"', dom)[0]) > 500, "the cells follow the scroll bar"


@needs_browser
def test_page_fits_a_phone(page):
    script = "document.body.dataset.over = document.documentElement.scrollWidth - innerWidth;"
    dom, console = load(page, script, size="500,900")
    assert console == [] and int(re.findall(r'data-over="(-?\d+)"', dom)[0]) <= 0
    assert "lw-body narrow" in dom
