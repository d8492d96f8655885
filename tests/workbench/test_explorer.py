"""The lens explorer's Python side: what is packed is what the data says, small, and checked.

How it behaves in a browser is tested in tests/browser.
"""

import base64
import json
import re
import subprocess
import sys
import zlib
from html import unescape
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import HOSTILE, embedding_lens, logit_attribution, logit_lens

from lenses import attribution
from workbench.errors import InputError, ReadingError
from workbench.tokens import visible
from workbench.variables import described
from workbench.widgets import dispatch, payload
from workbench.widgets import packing as P
from workbench.widgets.explorer import MODULE, explore, static_html
from workbench.widgets.page import to_html


class Reading:
    def __init__(self, data, **model):
        self.data, self.provenance = data, {"model": model}


def numbers(packed, prompt, raw):
    """One array, decoded as the format's description says: bytes apart by significance."""
    width = {"u16": 2, "u32": 4, "i32": 4, "d16": 2}[packed["t"]]
    start, n = prompt["from"] + packed["at"], packed["n"]
    planes = np.frombuffer(raw[start : start + width * n], np.uint8).reshape(width, n).astype(np.int64)
    whole = sum(plane << (8 * i) for i, plane in enumerate(planes))
    if packed["t"] == "i32":
        whole = whole.astype(np.uint32).view(np.int32)
    if packed["t"] != "d16":
        return whole
    return np.where(whole == 65535, np.nan, (packed["base"] + whole) / 10.0 ** packed["digits"])


def test_importing_widgets_imports_no_heavy_package():
    code = "import sys, workbench.widgets as w, workbench.widgets.page\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'plotly', 'anywidget', 'ipywidgets')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_module_is_small_and_alone():
    text = MODULE.read_text("utf-8")
    assert len(text.encode()) <= 60_000
    assert not re.search(
        r"\bimport\b\s*[({'\"*a-z]|fetch\(|XMLHttpRequest|innerHTML|https?://(?!www\.w3\.org/2000/svg)", text
    )
    assert text.count("export default") == 1 and "</" not in text


# ---------------------------------------------------------------- the format


def test_payload_holds_what_the_data_holds():
    data = logit_lens()
    sent = payload([("lens", data)])
    reading, raw = sent["readings"][0], sent["numbers"]
    prompt = reading["prompts"][2]
    shape = (5, 9, 7)  # rank, position, layer
    ids = numbers(prompt["token"], prompt, raw).reshape(shape) - 1
    expected = data["token_id"].values[2, :, :9].transpose(2, 1, 0)
    np.testing.assert_array_equal(np.array(prompt["vocab_id"])[ids], expected)
    words = data["vocab_token"].values
    assert [prompt["vocab"][i] for i in ids[0, 0]] == [visible(words[i]) for i in expected[0, 0]]
    scores = numbers(prompt["score"], prompt, raw).reshape(shape)
    own = data["logprob"].values[2, :, :9].astype(float).transpose(2, 1, 0)
    np.testing.assert_allclose(scores, own.round(prompt["score"]["digits"]), atol=1e-9)
    assert prompt["score"]["digits"] == reading["digits"]["logprob"] >= 3
    for name in ("entropy", "kl_to_final", "target_logprob", "target_rank"):
        found = numbers(prompt["grids"][name], prompt, raw).reshape(1, 9, 7)
        digits = prompt["grids"][name].get("digits", 0)
        np.testing.assert_allclose(found[0].T, data[name].values[2, :, :9].astype(float).round(digits), atol=1e-9)
    assert prompt["inputs"] == [visible(str(t)) for t in data["input_token"].values[2, :9]]
    assert prompt["columns"] == list(range(9)) and prompt["count"] == 9
    json.dumps(reading, allow_nan=False)


def test_payload_of_several_targets_of_blocks_and_of_parts():
    sent = payload([("lens", logit_lens(targets=[" Paris", "<s>"]))])
    reading = sent["readings"][0]
    assert reading["targets"] == ["·Paris", "<s>"] and "target_logprob" in reading["wide"]
    prompt = reading["prompts"][0]
    found = numbers(prompt["grids"]["target_logprob"], prompt, sent["numbers"]).reshape(2, 14, 7)
    own = logit_lens(targets=[" Paris", "<s>"])["target_logprob"].values[0]
    np.testing.assert_allclose(found, own.transpose(2, 1, 0), atol=5.1e-4)

    blocks = logit_lens().rename(layer="block").assign_attrs(at="mlp_out")
    assert payload([("lens", blocks)])["readings"][0]["depth_label"] == "block (mlp_out)"

    data = logit_attribution()
    data["contribution_mean"] = data["contribution"].mean(("prompt", "position"))
    data = described(data, attribution.VARIABLES)
    sent = payload([("parts", data)])
    reading, prompt = sent["readings"][0], sent["readings"][0]["prompts"][1]
    assert reading["depth"] == "component" and reading["depths"] == list(data["component"].values)
    low, high = reading["domain"]["contribution"]
    assert low == -high < 0, "zero is in the middle of the colours"
    mean = reading["means"]["contribution"]
    np.testing.assert_allclose(mean["values"][0], data["contribution_mean"].values, atol=5.1e-5)
    assert mean["name"] == "mean over positions"
    found = numbers(prompt["grids"]["contribution"], prompt, sent["numbers"]).reshape(12, 14)
    np.testing.assert_allclose(found, data["contribution"].values[1, :12], atol=5.1e-5)
    data["logit"] += 200  # as many decimals as are printed, however large the number
    logit = payload([("parts", data)])["readings"][0]["prompts"][1]["sums"]["contribution"]
    assert logit["name"] == "logit of target"
    np.testing.assert_allclose(logit["values"][0], data["logit"].values[1, :12], atol=5.1e-5)


@pytest.mark.parametrize(
    "values",
    [
        [np.nan, -17.25, 0.0, -0.001], [np.nan], [0.98761, 0.98764, 0.9999], [-2e6, 3e6], [5.0, 5.0],
        [np.inf, 1.0, -np.inf],
    ],
)  # fmt: skip
def test_decimals_are_the_rounded_numbers(values):
    values, out = np.array(values), bytearray()
    finite = values[np.isfinite(values)]
    ends = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    packed = P.decimals(out, values, *ends)
    found = numbers(packed, {"from": 0}, bytes(out))
    expected = np.full(values.shape, np.nan)
    expected[np.isfinite(values)] = np.round(finite, packed["digits"])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    span = ends[1] - ends[0]
    assert 10.0 ** -packed["digits"] <= max(span / 5_000, 1e-4), "at least some thousand steps, or four digits"


@pytest.mark.parametrize("values", [[0, 65535], [0, 65536, 2**31 - 1], [-1, 5, -(2**31)], []])
def test_integers_come_back(values):
    out = bytearray()
    packed = P.integers(out, np.array(values, dtype=np.int64))
    np.testing.assert_array_equal(numbers(packed, {"from": 0}, bytes(out)), values)


def test_a_block_is_zlib_over_json_and_bytes():
    block = P.packed({"a": "é"}, b"\x01\x02")
    raw = zlib.decompress(block)
    length = int.from_bytes(raw[:4], "little")
    assert json.loads(raw[4 : 4 + length]) == {"a": "é"} and raw[4 + length :] == b"\x01\x02"


# ---------------------------------------------------------------- how much is sent


def saved_size(block):
    return len(base64.b64encode(block))


@pytest.mark.parametrize("limit", [20_000, 60_000, 130_000])
def test_a_part_keeps_to_its_limit_and_has_the_ends_of_prompts(limit):
    data = logit_lens(lengths=(400, 30, 500), layers=33, top_k=10)
    packers = P.packers([data, embedding_lens(lengths=(300,), layers=33, top_k=10)])
    block = P.part(packers, limit)
    assert saved_size(block) <= 1.05 * limit
    sent = P.unpacked(block)
    first = sent["readings"][0]["prompts"][0]
    kept = len(first["inputs"])
    assert 0 < kept < 400 and first["columns"] == list(range(400 - kept, 400)) and first["count"] == 400
    ids = numbers(first["token"], first, sent["numbers"]).reshape(first["ranks"], kept, 33) - 1
    expected = data["token_id"].values[0, :, 400 - kept : 400, : first["ranks"]].transpose(2, 1, 0)
    np.testing.assert_array_equal(np.array(first["vocab_id"])[ids], expected)
    assert all("text" in prompt and prompt["count"] > 0 for prompt in sent["readings"][0]["prompts"])


def test_a_small_reading_is_kept_whole():
    packers = P.packers([logit_lens(), embedding_lens()])
    sent = P.unpacked(P.part(packers, 130_000))
    for reading in sent["readings"]:
        assert all(p["ranks"] == 5 and len(p["inputs"]) == p["count"] for p in reading["prompts"])


def test_the_same_number_is_the_same_in_the_part_and_in_the_whole():
    data = logit_lens(lengths=(300,), layers=20)
    (packer,) = P.packers(data)
    part, whole = P.unpacked(P.part([packer], 30_000)), P.unpacked(P.one(packer, 0))
    small = part["readings"][0]["prompts"][0]
    whole = {**whole, "from": 0}
    n, k = len(small["inputs"]), small["ranks"]
    some = numbers(small["score"], small, part["numbers"]).reshape(k, n, 20)
    every = numbers(whole["score"], whole, whole["numbers"]).reshape(5, 300, 20)
    np.testing.assert_array_equal(some, every[:k, -n:])


def test_very_large_readings_lose_ranks_and_never_cells(monkeypatch):
    monkeypatch.setattr(P, "WHOLE", 60_000)
    (packer,) = P.packers(logit_lens(lengths=(200,), layers=20, top_k=10))
    for block in (P.whole([packer]), P.one(packer, 0)):
        sent = P.unpacked(block)
        prompt = sent["readings"][0]["prompts"][0] if "readings" in sent else sent
        assert len(block) <= 60_000 and 1 <= prompt["ranks"] < 10 and len(prompt["inputs"]) == 200


def test_a_long_token_is_cut_and_counted():
    text = P.shown("x" * 10_000)
    assert len(text) < 260 and "10,000 letters" in text and P.shown(" x") == "·x"
    for token in [*HOSTILE, "", " ", "a b", "\x7f", "·", "é", "\t"]:
        assert P.shown(token) == visible(token)


# ---------------------------------------------------------------- refused


def test_readings_without_a_grid_are_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"LogitLens.*none.*\.figure\(\)"):
        payload([("x", logit_lens()[["input_id", "input_token"]])])
    with pytest.raises(InputError, match="Reading, an xarray"):
        to_html(["a string"], "x.html")
    with pytest.raises(InputError, match="empty list"):
        to_html([], "x.html")
    with pytest.raises(InputError, match="top_k=0"):
        to_html(logit_lens(), "x.html", top_k=0)
    with pytest.raises(ReadingError, match="no folder"):
        to_html(logit_lens(), "/no/such/folder/x.html")


# ---------------------------------------------------------------- the table


def rows_of(table):
    body = re.search(r"<tbody>(.*?)</tbody>", table)[1]
    return [
        [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in body.split("</tr>")[:-1]
    ]


def test_static_table_is_escaped_small_and_says_what_it_leaves_out():
    data = logit_lens(lengths=(60, 3), layers=40)
    table = static_html(data)
    assert "<script" not in table and "<s>" not in table and "&lt;s&gt;" in table
    assert "13 of 40 layers" in table and "last 24 of 60 positions" in table and "prompt 0 of 2" in table
    assert len(table) < 80_000
    words = data["vocab_token"].values
    top = data["token_id"].values[0, -1, -24:, 0]
    assert rows_of(table)[0] == [visible(words[i])[:24] + "…" * (len(words[i]) > 24) for i in top]


def test_static_table_of_an_attribution_shows_contributions():
    data = logit_attribution()
    rows = rows_of(static_html(data))
    assert rows[-1] == [f"{x:.2f}" for x in data["contribution"].values[0, :, 0]]
    assert "contribution to the logit of ·Paris" in static_html(data)
    data["target_id"][0, 3] = 2
    assert "contribution to the logit of each position's own target" in unescape(static_html(data))


# ---------------------------------------------------------------- the widget


@pytest.fixture
def widget():
    pytest.importorskip("anywidget")
    return explore([logit_lens(), embedding_lens(), logit_attribution()])


def test_widget_carries_the_readings_and_a_table(widget):
    from workbench.widgets import LensExplorer

    assert isinstance(widget, LensExplorer)
    sent = P.unpacked(widget.packed)
    assert [r["name"] for r in sent["readings"]] == ["LogitLens", "EmbeddingLens", "LogitAttribution"]
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and bundle["text/html"].count("<table") == 3
    assert widget._esm.strip().endswith("export default { render };") and "\n//" not in widget._esm
    assert repr(widget) == "<LensExplorer of LogitLens, EmbeddingLens, LogitAttribution>"


def test_display_is_the_widget_and_then_a_table_that_outlives_it(widget, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **options: shown.append(bundle))
    widget._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0] and "text/html" in shown[0]
    assert set(shown[1]) == {"text/html", "text/plain"} and "<table" in shown[1]["text/html"]
    assert sum(len(json.dumps(bundle)) for bundle in shown) < 150_000


def test_selection_is_whole_from_the_start_and_stays_so(widget):
    start = {
        "reading": 0, "prompt": 0, "depth": 6, "position": 13, "token": None, "metric": "top", "target": 0,
        "depths": None, "panes": None, "pins": [],
    }  # fmt: skip
    assert widget.selection == start
    widget.selection = {"depth": np.int64(3), "position": 2}
    assert widget.selection == {**start, "depth": 3, "position": 2}
    widget.selection = {"panes": [[0, 0], [1, 0]]}
    widget.selection = {"prompt": 2}  # nine positions: the last one, as nothing else was asked for
    assert widget.selection["panes"] == [[0, 2], [1, 0]] and widget.selection["position"] == 2
    widget.selection = {"prompt": 0, "position": 13}
    widget.selection = {"prompt": 2}
    assert widget.selection["position"] == 8
    widget.selection = {"reading": 2, "prompt": 0}
    assert widget.selection["depth"] == "bias" and widget.selection["panes"] == [[2, 0], [1, 0]]
    widget.selection = {"pins": [{"reading": 0, "prompt": 1, "depth": 2, "position": 3}], "depth": "attn_out.3"}
    assert widget.selection["depth"] == "attn_out.3" and len(widget.selection["pins"]) == 1
    json.dumps(widget.selection)


def test_what_another_reading_does_not_have_is_dropped_and_the_rest_stays():
    pytest.importorskip("anywidget")
    widget = explore([logit_lens(layers=7), logit_lens(layers=3).assign_attrs(model="small"), logit_attribution()])
    token = P.packers(logit_lens())[0].tokens[3]
    widget.selection = {"depths": [2, 4], "token": token, "metric": "entropy"}
    widget.selection = {"position": 3}
    assert widget.selection["token"] == token, "followed until it is let go"
    widget.selection = {"reading": 1}
    kept = ("depths", "token", "metric", "depth")
    assert [widget.selection[name] for name in kept] == [None, None, "entropy", 2]
    widget.selection = {"panes": [[2, 0], [0, 1]]}
    assert (widget.selection["reading"], widget.selection["depth"]) == (2, "bias"), "the first that is shown"
    widget.selection = {"panes": [[0, 1], [2, 0]]}
    assert (widget.selection["reading"], widget.selection["panes"]) == (2, [[0, 1], [2, 0]]), "still shown"
    assert explore(logit_attribution()).selection["metric"] == "contribution"


def test_readings_that_show_one_prompt_go_to_the_next_together():
    pytest.importorskip("anywidget")
    lens, near, other = logit_lens(), embedding_lens(), embedding_lens(seed=5)
    near["prompt_text"] = lens["prompt_text"]
    other["prompt_text"] = ("prompt", lens["prompt_text"].values[::-1])
    widget = explore([lens, near, other])
    widget.selection = {"panes": [[0, 0], [1, 0], [2, 0], [0, 1]]}
    widget.selection = {"prompt": 2}
    assert widget.selection["panes"] == [[0, 2], [1, 2], [2, 0], [0, 1]], "[2, 0] showed another text"
    widget.selection = {"prompt": 0}
    assert widget.selection["panes"] == [[0, 0], [1, 0], [2, 2], [0, 1]]
    widget.selection = {"reading": 1, "prompt": 1}
    assert widget.selection["panes"] == [[0, 1], [1, 1], [2, 1], [0, 1]], "the pane of that reading"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"layer": 3}, "no .'layer'.*depth"),
        ({"depth": 7}, "depth 7 is not in prompt 0 of LogitLens.*0, 1, 2"),
        ({"token": 99999}, "token 99999 is in no cell.*LogitLens has: 0, 1"),
        ({"token": "red"}, "token 'red' is not the id"),
        ({"prompt": "a"}, "prompt 'a' is not the index"),
        ({"prompt": None}, "prompt None is not the index"),
        ({"target": "x"}, "target 'x' is not the index"),
        ({"target": 3}, "no target 3; LogitLens has 1"),
        ({"target": -1}, "no target -1"),
        ({"metric": "cosine_floor"}, "no metric 'cosine_floor'.*contribution"),
        ({"depths": 3}, r"depths 3 are not \[lowest, highest\]"),
        ({"panes": [3]}, r"3 in panes is no \[reading, prompt\]"),
        ({"panes": 3}, "panes 3 is no list"),
        ({"pins": [1]}, "the pin 1 is no .*depth"),
        ({"depth": 2.5}, "depth 2.5"),
        ({"position": 14}, "position 14"),
        ({"prompt": 2, "position": 12}, "position 12"),
        ({"reading": 9}, "no reading 9; there are 3"),
        ({"prompt": -1}, "no prompt -1; it has 3"),
        ({"metric": "loss"}, "no metric 'loss'.*entropy"),
        ({"depths": [5, 2]}, r"depths \[5, 2\]"),
        ({"panes": [[0, 5]]}, "no prompt 5"),
        ({"pins": [{"depth": 70, "position": 0}]}, "pin"),
    ],
)
def test_places_that_are_not_there_are_refused(widget, asked, said):
    before = widget.selection
    with pytest.raises(InputError, match=said):
        widget.selection = asked
    assert widget.selection == before


def test_what_is_refused_is_named():
    pytest.importorskip("anywidget")
    last = logit_lens().isel(position=[13]).assign_coords(position=[0]).isel(prompt=[0])
    with pytest.raises(InputError, match=r"position 13 .*coordinates: 0 \(place 13 in the prompt\)"):
        explore(last).selection = {"position": 13}
    two = explore(logit_lens(targets=[" Paris", " Rome"]))
    two.selection = {"target": 1}
    with pytest.raises(InputError, match=r"LogitLens has 2, from 0 on: ·Paris, ·Rome"):
        two.selection = {"target": 2}
    for make in (dispatch.explore, lambda *a, **k: dispatch.to_html(*a, "x.html", **k)):
        with pytest.raises(InputError, match="no option 'foo'.*top_k"):
            make(logit_lens(), foo=1)
    with pytest.raises(InputError, match="No explorer fits this reading: it holds"):
        dispatch.explore(logit_lens()[["target_id"]].drop_attrs())
    with pytest.raises(InputError, match=r"3 is no reading \(its type is int\)"):
        dispatch.explore(3)


def test_a_prompt_is_sent_when_it_is_asked_for(monkeypatch):
    pytest.importorskip("anywidget")
    data = logit_lens(lengths=(300, 200), layers=30)
    widget = explore(data, saved_kb=20)
    assert saved_size(widget.packed) < 21_000
    answers = []
    monkeypatch.setattr(widget, "send", lambda content, buffers: answers.append((content, buffers)))
    widget._handle_custom_msg({"ask": [0, 1]}, [])
    (content, (block,)) = answers[0]
    prompt = P.unpacked(block)
    assert content == {"block": [0, 1]} and len(prompt["inputs"]) == 200 and prompt["ranks"] == 5
    assert explore(data, saved_kb=None).packed == P.whole(P.packers(data))


# ---------------------------------------------------------------- the page


def test_page_is_one_file_that_no_token_breaks_out_of(tmp_path):
    readings = [Reading(logit_lens(), name="made-up", fingerprint="sha256:12ab"), embedding_lens()]
    page = to_html(readings, tmp_path / "lens.html", title="A <b>title</b>")
    text = page.read_text("utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:,)|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("</script>") == 2 and "alert(1)</script>" not in text
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text and "sha256:12ab" in text
    assert [p.name for p in page.parent.iterdir()] == ["lens.html"]
    packed = json.loads(re.search(r'id="payload">([^<]*)<', text)[1])["packed"]
    inputs = P.unpacked(base64.b64decode(packed))["readings"][0]["prompts"][0]["inputs"]
    assert inputs[: len(HOSTILE)] == [visible(t) for t in HOSTILE]
