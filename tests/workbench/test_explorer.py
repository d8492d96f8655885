"""The lens explorer's Python side: what is packed is what the data says, small, and checked.

How it behaves in a browser is tested in tests/browser.
"""

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

from pages import payload_of
from synthetic import HOSTILE, embedding_lens, logit_attribution, logit_lens

from lenses import attribution
from workbench.errors import InputError, ReadingError
from workbench.tokens import visible
from workbench.variables import described
from workbench.widgets import dispatch, explore, lens, payload, to_html
from workbench.widgets import packing as P
from workbench.widgets.explorer import answer, static_html


class Reading:
    def __init__(self, data, **model):
        self.data, self.provenance = data, {"model": model}


def numbers(block, *way):
    """One array of a block, decoded as the format's description says: bytes apart by significance."""
    raw = zlib.decompress(block)
    start = 4 + int.from_bytes(raw[:4], "little")
    packed = json.loads(raw[4:start])
    for step in way:
        packed = packed[step]
    kind, n = packed["$"], packed["n"]
    width = {"8": 1, "6": 2, "2": 4}[kind[-1]]
    planes = np.frombuffer(raw, np.uint8, width * n, start + packed["at"]).reshape(width, n).astype(np.int64)
    whole = sum(plane << (8 * i) for i, plane in enumerate(planes))
    if kind == "i32":
        return whole.astype(np.uint32).view(np.int32) if n else np.zeros(0, int)
    none = whole == (255 if kind[-1] == "8" else 65535)
    if kind[0] == "u":
        return np.where(none, -1, whole)
    return np.where(none, np.nan, (packed["base"] + whole) / 10.0 ** packed["digits"])


def test_importing_widgets_imports_no_heavy_package():
    code = "import sys, workbench.widgets as w, workbench.widgets.dispatch\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'plotly', 'anywidget', 'ipywidgets')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


# ---------------------------------------------------------------- the format


def test_payload_holds_what_the_data_holds():
    data = logit_lens()
    reading = payload(data)["readings"][0]
    prompt = reading["prompts"][2]
    shape = (5, 9, 7)  # rank, position, layer
    ids = prompt["token"].values.reshape(shape)
    expected = data["token_id"].values[2, :, :9].transpose(2, 1, 0)
    np.testing.assert_array_equal(np.array([i for i, _ in prompt["words"]])[ids], expected)
    words = data["vocab_token"].values
    assert [prompt["words"][i][1] for i in ids[0, 0]] == [visible(words[i]) for i in expected[0, 0]]
    scores = prompt["score"].values.reshape(shape)
    own = data["logprob"].values[2, :, :9].astype(float).transpose(2, 1, 0)
    np.testing.assert_allclose(scores, own.round(prompt["score"].digits), atol=1e-9)
    assert prompt["score"].digits == reading["digits"]["logprob"] >= 3
    for name in ("entropy", "kl_to_final", "target_logprob", "target_rank"):
        found = prompt["grids"][name].values.reshape(1, 9, 7)
        digits = prompt["grids"][name].digits
        np.testing.assert_allclose(found[0].T, data[name].values[2, :, :9].astype(float).round(digits), atol=1e-9)
    assert prompt["inputs"] == [visible(str(t)) for t in data["input_token"].values[2, :9]]
    assert prompt["columns"] == list(range(9)) and prompt["count"] == 9


def test_payload_of_several_targets_of_blocks_and_of_parts():
    reading = payload(logit_lens(targets=[" Paris", "<s>"]))["readings"][0]
    assert reading["targets"] == ["·Paris", "<s>"] and "target_logprob" in reading["wide"]
    found = reading["prompts"][0]["grids"]["target_logprob"].values.reshape(2, 14, 7)
    own = logit_lens(targets=[" Paris", "<s>"])["target_logprob"].values[0]
    np.testing.assert_allclose(found, own.transpose(2, 1, 0), atol=5.1e-4)

    blocks = logit_lens().rename(layer="block").assign_attrs(at="mlp_out")
    assert payload(blocks)["readings"][0]["depth_label"] == "block (mlp_out)"
    assert payload(blocks)["called"]["depth"] == "block"

    data = logit_attribution()
    data["contribution_mean"] = data["contribution"].mean(("prompt", "position"))
    data = described(data, attribution.VARIABLES)
    reading = payload(data)["readings"][0]
    prompt = reading["prompts"][1]
    assert reading["depth"] == "component" and reading["depths"] == list(data["component"].values)
    low, high = reading["domain"]["contribution"]
    assert low == -high < 0, "zero is in the middle of the colours"
    mean = reading["means"]["contribution"]
    np.testing.assert_allclose(mean["values"][0], data["contribution_mean"].values, atol=5.1e-5)
    assert mean["name"] == "mean over positions"
    found = prompt["grids"]["contribution"].values.reshape(12, 14)
    np.testing.assert_allclose(found, data["contribution"].values[1, :12], atol=5.1e-5)
    data["logit"] += 200  # as many decimals as are printed, however large the number
    logit = payload(data)["readings"][0]["prompts"][1]["sums"]["contribution"]
    assert logit["name"] == "logit of target"
    np.testing.assert_allclose(logit["values"][0], data["logit"].values[1, :12], atol=5.1e-5)


@pytest.mark.parametrize(
    "values",
    [
        [np.nan, -17.25, 0.0, -0.001], [np.nan], [0.98761, 0.98764, 0.9999], [-2e6, 3e6], [5.0, 5.0],
        [np.inf, 1.0, -np.inf], np.linspace(-3, 3, 500), [0.0, 300.0], [],
    ],
)  # fmt: skip
def test_decimals_are_the_rounded_numbers(values):
    values = np.array(values)
    packed = P.decimals(values, 4)
    finite = np.isfinite(values)
    expected = np.full(values.shape, np.nan)
    expected[finite] = np.round(values[finite], packed.digits)
    np.testing.assert_allclose(numbers(P.pack(packed)), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(P.unpack(P.pack([packed]))[0].values, packed.values)
    span = np.ptp(values[finite]) if finite.any() else 0
    assert packed.digits == 4 or 10.0**-packed.digits <= span / 5_000, "at least some thousand steps, or four digits"


@pytest.mark.parametrize("values", [[0, 3], [0, 254, -1], [0, 255, -1], [0, 65535], [-1, 2**31 - 1], [-(2**31)], []])
def test_integers_come_back(values):
    packed = P.integers(np.array(values, dtype=np.int64))
    np.testing.assert_array_equal(numbers(P.pack({"a": [packed]}), "a", 0), values)
    np.testing.assert_array_equal(packed.values, values)


def test_a_block_is_zlib_over_json_and_bytes():
    block = P.pack({"a": "é\ud83d", "of": P.integers([1, 258]), "words": P.texts(["x", "y", "x"])})
    raw = zlib.decompress(block)
    length = int.from_bytes(raw[:4], "little")
    assert json.loads(raw[4 : 4 + length])["a"] == "é?" and raw[4 + length :] == b"\x01\x02\x00\x01\x00\x01\x00"
    with pytest.raises(TypeError, match="cannot be part of a payload"):
        P.pack({"a": np.zeros(3)})


# ---------------------------------------------------------------- how much is sent


@pytest.mark.parametrize("limit", [20_000, 60_000, 130_000])
def test_a_part_keeps_to_its_limit_and_has_the_ends_of_prompts(limit):
    data = logit_lens(lengths=(400, 30, 500), layers=33, top_k=10)
    shown = payload([data, embedding_lens(lengths=(300,), layers=33, top_k=10)], saved_kb=limit / 1000)
    assert P.weight(shown["readings"]) <= 1.05 * limit
    first = shown["readings"][0]["prompts"][0]
    kept = len(first["inputs"])
    assert 0 < kept < 400 and first["columns"] == list(range(400 - kept, 400)) and first["count"] == 400
    ids = first["token"].values.reshape(first["ranks"], kept, 33)
    expected = data["token_id"].values[0, :, 400 - kept : 400, : first["ranks"]].transpose(2, 1, 0)
    np.testing.assert_array_equal(np.array([i for i, _ in first["words"]])[ids], expected)
    assert all("text" in prompt and prompt["count"] > 0 for prompt in shown["readings"][0]["prompts"])


def test_a_small_reading_is_kept_whole():
    for reading in payload([logit_lens(), embedding_lens()])["readings"]:
        assert all(p["ranks"] == 5 and len(p["inputs"]) == p["count"] for p in reading["prompts"])


def test_the_same_number_is_the_same_in_the_part_and_in_the_whole():
    shown = payload(logit_lens(lengths=(300,), layers=20), saved_kb=30)
    small = shown["readings"][0]["prompts"][0]
    whole = P.unpack(answer(shown, {"ask": [0, 0]})[1])
    n, k = len(small["inputs"]), small["ranks"]
    assert n < 300
    some, every = small["score"].values.reshape(k, n, 20), whole["score"].values.reshape(5, 300, 20)
    np.testing.assert_array_equal(some, every[:k, -n:])


def test_very_large_readings_lose_ranks_and_never_cells(monkeypatch):
    monkeypatch.setattr(lens, "WHOLE", 60_000)
    (packer,) = lens.packers(logit_lens(lengths=(200,), layers=20, top_k=10))
    for prompt in (lens.whole([packer])[0][0], P.unpack(lens.one(packer, 0))):
        assert len(P.pack(prompt)) <= 60_000 and 1 <= prompt["ranks"] < 10 and len(prompt["inputs"]) == 200


def test_a_long_token_is_cut():
    text = lens.shown("x" * 10_000)
    assert len(text) == 240 and text.endswith("x…") and lens.shown(" x") == "·x"
    for token in [*HOSTILE, "", " ", "a b", "\x7f", "·", "é", "\t"]:
        assert lens.shown(token) == visible(token)


# ---------------------------------------------------------------- refused


def test_readings_without_a_grid_are_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"LogitLens reading has no tokens or values over layers.*\.figure\(\)"):
        explore(logit_lens()[["input_id", "input_token"]], "lens")
    with pytest.raises(InputError, match="Reading, an xarray"):
        to_html(["a string", 3], "x.html")
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
    names = ["LogitLens", "EmbeddingLens", "LogitAttribution"]
    assert [r["name"] for r in P.unpack(widget.packed)["readings"]] == names
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and bundle["text/html"].count("<table") == 3
    assert "export default explorer(" in widget._esm and "\n//" not in widget._esm
    assert repr(widget) == "<LensExplorer · LogitLens, EmbeddingLens, LogitAttribution · made-up <b>7B</b>, made-up>"


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
    token = lens.packers(logit_lens())[0].tokens[3]
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
        ({"layer": 3}, "no 'layer'.*depth"),
        ({"depth": 7}, "depth=7 cannot be selected; there are 0, 1, 2"),
        ({"token": 99999}, "token=99999 cannot.* there are 0, 1"), ({"token": "red"}, "token='red'"),
        ({"prompt": "a"}, "prompt='a'"), ({"prompt": None}, "prompt=None cannot be selected; there are 0, 1, 2"),
        ({"target": "x"}, "target='x'"), ({"target": 3}, r"target=3 .* there are 0\."), ({"target": -1}, "target=-1"),
        ({"metric": "cosine_floor"}, "metric='cosine_floor'.*contribution"), ({"metric": "loss"}, "'loss'.*'entropy'"),
        ({"depths": 3}, r"depths=3 .* give \[lowest, highest\] of 0, 1"), ({"depths": [5, 2]}, r"depths=\[5, 2\]"),
        ({"panes": [3]}, r"3 is no \[reading, prompt\]"), ({"panes": 3}, r"panes=3 .* give a list"),
        ({"panes": [[0, 5]]}, "prompt=5"), ({"pins": [1]}, "pins=1 .*depth"),
        ({"pins": [{"depth": 70, "position": 0}]}, "depth of a pin=70"), ({"depth": 2.5}, "depth=2.5"),
        ({"position": 14}, "position=14"), ({"prompt": 2, "position": 12}, "position=12"),
        ({"reading": 9}, "reading=9 cannot be selected; there are 0, 1, 2"), ({"prompt": -1}, "prompt=-1"),
    ],
)  # fmt: skip
def test_places_that_are_not_there_are_refused(widget, asked, said):
    before = widget.selection
    with pytest.raises(InputError, match=said):
        widget.selection = asked
    assert widget.selection == before


def test_what_is_refused_is_named():
    pytest.importorskip("anywidget")
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
    assert len(widget.packed) * 4 / 3 < 22_000
    answers = []
    monkeypatch.setattr(widget, "send", lambda content, buffers: answers.append((content, buffers)))
    widget._handle_custom_msg({"ask": [0, 1]}, [])
    (content, (block,)) = answers[0]
    prompt = P.unpack(block)
    assert content == {"block": [0, 1]} and len(prompt["inputs"]) == 200 and prompt["ranks"] == 5
    prompts = P.unpack(explore(data, saved_kb=None).packed)["readings"][0]["prompts"]
    assert [len(prompt["inputs"]) for prompt in prompts] == [300, 200]


# ---------------------------------------------------------------- the page


def test_page_is_one_file_that_no_token_breaks_out_of(tmp_path):
    readings = [Reading(logit_lens(), name="made-up", fingerprint="sha256:12ab"), embedding_lens()]
    page = to_html(readings, tmp_path / "lens.html", title="A <b>title</b>")
    text = page.read_text("utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:,)|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("</script>") == 2 and "alert(1)</script>" not in text
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text and "sha256:12ab" in text
    assert [p.name for p in page.parent.iterdir()] == ["lens.html"]
    inputs = payload_of(page)["readings"][0]["prompts"][0]["inputs"]
    assert inputs[: len(HOSTILE)] == [visible(t) for t in HOSTILE]
