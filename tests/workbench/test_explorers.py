"""The explorers of probes and lenses: what they show is what the data says, and the pages answer to keys alone."""

import itertools
import json
import re
import subprocess
import sys
import tomllib
from html import unescape
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import xarray as xr
from explored import SENTENCES, hostile, neighbours, stances
from pages import load, needs_browser
from synthetic import logit_lens

import workbench
from workbench.errors import InputError, ReadingError
from workbench.tokens import plain, visible
from workbench.widgets import base, dispatch

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "lens": ROOT / "workbench/widgets/lens_explorer.js", "routing": ROOT / "probes/routing/explorer.js",
    "belief": ROOT / "probes/superposition/explorer.js",
    "drift": ROOT / "probes/values/explorer.js", "neighbours": ROOT / "lenses/latent/explorer.js",
}  # fmt: skip
NAMES = {
    "lens": "LensExplorer", "routing": "RoutingExplorer", "belief": "BeliefExplorer", "drift": "DriftExplorer",
    "neighbours": "NeighbourTable",
}  # fmt: skip
SAID = """
  const el = document.getElementById("explorer"), model = el.model, out = {};
  const wait = (ms = 150) => new Promise((r) => setTimeout(r, ms));
  const key = (node, key, more = {}) => node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
  const all = (what) => [...el.querySelectorAll(what)], one = (what) => el.querySelector(what);
  const pick = (what, i) => { const node = one(what); node.selectedIndex = i; node.dispatchEvent(new Event("change")); };
  const set = (more) => model.set("selection", { ...model.get("selection"), ...more });
  const css = (name) => getComputedStyle(one(".wx")).getPropertyValue(name);
  const end = () => { out.hacked = String(window.hacked); document.body.dataset.out = JSON.stringify(out); };
"""  # noqa: E501


def numbers(column):
    """An array of a payload, as the front end reads it."""
    return column.values


def said(page, script, **options):
    """What a script on a page put into `out`; fails where the console has an error."""
    dom, console = load(page, SAID + script + "\nend();", budget=8000, **options)
    assert console == []
    return json.loads(unescape(re.findall(r'data-out="([^"]*)"', dom)[0]))


def view(name):
    return dispatch.views()[name]


def completes(name):
    found = view(name).complete
    assert found is not None
    return found


# ---------------------------------------------------------------- readings


@pytest.fixture(scope="module")
def routing():
    from probes.routing import RoutingTracer
    from workbench.organisms.polyglot.grammar import documents

    texts = [text for language in "abc" for text in documents(6, language, seed=1)]
    tracer = RoutingTracer(labels=[language for language in "abc" for _ in range(6)], trace=True)
    return workbench.read(workbench.load("organism:polyglot"), texts, tracer, progress=False)


@pytest.fixture(scope="module")
def thoughts():
    from probes.superposition import CandidateBelief, ContinuousThought, think
    from probes.superposition.searcher import Questions

    questions = Questions(6)
    model = workbench.load("organism:searcher")
    belief = CandidateBelief(questions.names, mass=True)
    found = think(model, questions.prompts, ContinuousThought(3), readers=[belief], then="=")
    return found.readings[0], questions.problems


@pytest.fixture(scope="module")
def pages(routing, thoughts, tmp_path_factory):
    """One page of each explorer."""
    folder = tmp_path_factory.mktemp("pages")
    data, texts = stances()
    return {
        "lens": dispatch.to_html(logit_lens(), folder / "lens.html"),
        "routing": routing.to_html(folder / "routing.html"),
        "belief": thoughts[0].to_html(folder / "belief.html", problems=thoughts[1]),
        "drift": dispatch.to_html(data, folder / "drift.html", items=texts),
        "neighbours": dispatch.to_html(neighbours(), folder / "neighbours.html", kind="neighbours"),
    }


# ---------------------------------------------------------------- what all of them are


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_small_and_alone(name):
    text = base.module_text(MODULES[name])
    assert len(text.encode()) <= (100 if name == "lens" else 60) * 1024
    assert not re.search(
        r"\bimport\b\s*[({'\"*a-z]|fetch\(|XMLHttpRequest|innerHTML|insertAdjacent|https?://(?!www\.w3\.org/2000/svg)",
        text,
    )
    assert text.count("export default") == 1 and "</" not in text
    assert "://" not in base.PAGE.read_text("utf-8")
    assert view(name).module == MODULES[name] and view(name).name == NAMES[name]


def test_the_first_explorer_that_fits_is_taken(routing, thoughts):
    pytest.importorskip("anywidget")
    from workbench import widgets

    assert isinstance(routing.explore(), widgets.RoutingExplorer)
    assert isinstance(thoughts[0].explore(), widgets.BeliefExplorer)
    assert isinstance(widgets.explore(stances()[0]), widgets.DriftExplorer)
    found = (
        neighbours().isel(prompt=0, layer=0).rename(position="query").drop_vars(["query", "input_token", "token_id"])
    )
    assert isinstance(widgets.explore(found), widgets.NeighbourTable)
    assert isinstance(widgets.explore(neighbours(), "neighbours"), widgets.NeighbourTable)
    assert isinstance(widgets.explore(logit_lens()), widgets.LensExplorer)


def test_asking_which_explorers_fit_imports_no_probe():
    """With the entry points of pyproject.toml, which name what each needs; installed ones may be older."""
    code = """
        import sys, tomllib
        from importlib import metadata
        import numpy as np, xarray as xr
        points = tomllib.load(open("pyproject.toml", "rb"))["project"]["entry-points"]
        metadata.entry_points = lambda group: [metadata.EntryPoint(k, v, group) for k, v in points[group].items()]
        from workbench.widgets.dispatch import fitting, static_html
        dims = ("prompt", "layer", "position", "rank")
        data = xr.Dataset({"token_id": (dims, np.zeros((1, 2, 3, 1), int)), "score": (dims, np.ones((1, 2, 3, 1)))})
        static_html(data)
        near = data.assign(dict.fromkeys(("similarity", "index_layer", "sentence", "char_start", "char_end"), data.score))
        print(fitting(data), fitting(near), fitting(near.drop_vars("token_id")), fitting(data[[]]))
        print([name for name in sys.modules if name.split(".")[0] in ("probes", "lenses", "torch")])
    """  # noqa: E501
    out = subprocess.run([sys.executable, "-c", dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout == (
        "['lens'] ['lens', 'neighbours'] ['neighbours', 'lens'] []\n[]\n"
    ), out.stdout + out.stderr
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    for name, value in points["workbench.explorers"].items():
        assert metadata.EntryPoint(name, value, "workbench.explorers").extras == list(view(name).needs)


def test_what_no_explorer_shows_is_refused_with_what_each_needs():
    needs = r"NormLens.*lens needs tokens or values.*routing needs usage_count.*\.figure\(\)"
    with pytest.raises(InputError, match=needs):
        dispatch.explore(xr.Dataset({"norm": (("prompt", "layer"), np.ones((1, 2)))}, attrs={"reader": "NormLens"}))
    with pytest.raises(InputError, match="no explorer 'routes'; there are lens,.*routing"):
        dispatch.explore(logit_lens(), "routes")
    with pytest.raises(InputError, match="NeighbourTable needs.*has no similarity"):
        dispatch.explore(logit_lens(), "neighbours")
    with pytest.raises(InputError, match="one reading at a time, and 2"):
        dispatch.explore([neighbours(), neighbours()], "neighbours")
    with pytest.raises(InputError, match="Reading, an xarray"):
        dispatch.explore("a string")
    with pytest.raises(ReadingError, match="no folder"):
        dispatch.to_html(stances()[0], "/no/such/folder/x.html")


def test_a_selection_is_whole_and_only_what_there_is(routing):
    pytest.importorskip("anywidget")
    widget = routing.explore()
    assert widget.selection == {
        "label": "a", "compare": None, "prompt": 0, "compare_prompt": None, "block": 3, "expert": None,
        "position": None, "compare_position": None,
    }  # fmt: skip
    widget.selection = {"block": 1}
    widget.selection = {"expert": 5, "compare": "c"}
    assert (widget.selection["block"], widget.selection["expert"], widget.selection["compare"]) == (1, 5, "c")
    with pytest.raises(InputError, match="block=9 cannot be selected; there are 0, 1, 2, 3"):
        widget.selection = {"block": 9}
    with pytest.raises(InputError, match="no 'layer'; it has 'label'"):
        widget.selection = {"layer": 1}
    assert widget.selection["block"] == 1
    table = dispatch.explore(neighbours(), "neighbours")
    with pytest.raises(InputError, match="index_layers=2"):
        table.selection = {"index_layers": [1, 2]}


REFUSED = {
    "routing": [
        ({"position": 9999}, "position=9999 cannot be selected; document 0 has tokens at 0, 1, "),
        ({"position": "x"}, "position='x' cannot"), ({"position": True}, "position=True"),
        ({"compare_position": 1}, "no tokens are there"), ({"block": [0, 1]}, r"block=\[0, 1\] cannot.*are 0, 1, 2, 3"),
        ({"position": [1]}, "give one number"), ({"expert": 8}, "expert=8"), ({"label": None}, "label=None"),
        ({"compare": "a"}, "beside itself; beside it there can be None, 'b', 'c'"),
        ({"compare_prompt": 1}, "compare='a' would stand beside itself"),
        ({"label": "b", "prompt": 17}, "prompt=17 is of label 'c', not 'b'"),
    ],
    "belief": [({"node": "n99"}, "node='n99' cannot"), ({"layer": None}, "layer=None"), ({"prompt": 6}, "prompt=6")],
    "drift": [
        ({"from": 400, "to": 0}, "from=400 is behind to=0.*Swap"), ({"topic": ["topic 1"]}, "topic="),
        ({"topic": "topic 1", "item": "item-0"}, "item='item-0' is of topic 'topic 0', not 'topic 1'"),
    ],
    "neighbours": [
        ({"least": "x"}, r"least='x' is no similarity.*0\.\d+ to"), ({"least": True}, "least=True"),
        ({"least": float("nan")}, "least=nan"), ({"text": 5}, "text=5 cannot be looked for"),
        ({"index_layers": 4}, r"give a list, \[4\]"), ({"prompt": [0, 1]}, "prompt="), ({"sort": "none"}, "sort="),
        ({"prompt": 1, "position": 6}, "no neighbour at prompt=1, layer=0, position=6, rank=0"),
        ({"only_prompt": 0, "prompt": 1}, "only_prompt=0 hides the row at prompt=1"),
    ],
}  # fmt: skip


@pytest.fixture
def live(routing, thoughts):
    """live(name): a widget with nothing chosen."""
    pytest.importorskip("anywidget")
    make = {
        "routing": routing.explore, "belief": lambda: thoughts[0].explore(problems=thoughts[1]),
        "drift": lambda: dispatch.explore(stances()[0]),
        "neighbours": lambda: dispatch.explore(neighbours(), "neighbours"),
    }  # fmt: skip
    return lambda name: make[name]()


def test_ten_explorers_in_a_notebook_are_small(routing, thoughts):
    """The widgets' state as a notebook keeps it, and the outputs beside it."""
    embed = pytest.importorskip("ipywidgets.embed")
    long = [logit_lens(lengths=(200, 100), layers=33, top_k=10), logit_lens(lengths=(400,), layers=80, top_k=10)]
    texts = {f"item-{i}": f"A statement of some length, number {i}, about what is good." for i in range(400)}
    readings = [
        (long, {}), (long[1], {}), (long[0], {}), (routing, {}), (routing, {"label": "b"}),
        (thoughts[0], {"problems": thoughts[1]}), (stances(steps=12, topics=20, items=20)[0], {"items": texts}),
        (stances()[0], {}), (neighbours(prompts=4, positions=60), {"kind": "neighbours"}),
        (neighbours(), {"kind": "neighbours"}),
    ]  # fmt: skip
    widgets = [dispatch.explore(reading, **options) for reading, options in readings]
    state = len(json.dumps(embed.embed_data(views=widgets)))
    tables = [len(json.dumps(widget.static_html)) for widget in widgets]
    assert max(tables) < 300_000 and state + sum(tables) < 3_000_000


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_view_cannot_show_is_refused_with_what_there_is(live, name):
    widget = live(name)
    before = widget.selection
    for asked, says in REFUSED[name]:
        with pytest.raises(InputError, match=says):
            widget.selection = asked
        assert widget.selection == before
    widget.selection = {key: np.int64(value) for key, value in before.items() if type(value) is int}
    assert json.dumps(widget.selection) == json.dumps(before)


def test_labels_documents_and_tokens_of_a_selection_agree(live):
    widget, keys = live("routing"), ("label", "prompt", "position", "compare", "compare_prompt", "compare_position")

    def told(**asked):
        widget.selection = asked
        return tuple(widget.selection[key] for key in keys)

    assert told(prompt=13, position=5) == ("c", 13, 5, None, None, None)
    assert told(block=1) == ("c", 13, 5, None, None, None)
    assert told(compare="b", compare_position=2) == ("c", 13, 5, "b", 6, 2)
    saved = widget.selection
    assert told(compare_prompt=8) == ("c", 13, 5, "b", 8, None)
    assert told(**saved) == ("c", 13, 5, "b", 6, 2)
    assert told(label="b") == ("b", 6, None, None, None, None), "what was beside is now chosen"
    assert told(compare_prompt=2) == ("b", 6, None, "a", 2, None)
    assert told(prompt=3) == ("a", 3, None, None, None, None)
    assert told(compare_prompt=17, prompt=8) == ("b", 8, None, "c", 17, None)
    assert told(compare_prompt=None) == ("b", 8, None, None, None, None)
    assert told(**{**widget.selection, "label": "a"}) == ("a", 0, None, None, None, None)
    assert told(**saved) == ("c", 13, 5, "b", 6, 2)
    with widget.hold_trait_notifications():  # as messages from the front end are taken
        widget.selection = {**widget.selection, "prompt": 1}
    assert told() == ("a", 1, 5, "b", 6, 2)


def test_an_expert_that_a_block_lacks_is_left(routing):
    shown = view("routing").payload(routing)
    shown["exists"] = [8, 4, 8, 8]
    complete, start = completes("routing"), {**shown["start"], "expert": 6}
    assert complete({"block": 1}, start, shown)["expert"] is None
    with pytest.raises(InputError, match="expert=6 is not in block 1; it has 0 to 3"):
        complete({"expert": 6}, {**start, "block": 1, "expert": None}, shown)


def test_an_item_is_of_its_topic_and_a_range_runs_forward(live):
    widget = live("drift")

    def told(**asked):
        widget.selection = asked
        return tuple(widget.selection[key] for key in ("topic", "item", "from", "to"))

    assert told(item="item-7") == (None, "item-7", 0, 400)
    assert told(topic="topic 1") == ("topic 1", "item-7", 0, 400)
    assert told(item="item-0") == ("topic 0", "item-0", 0, 400)
    assert told(topic="topic 2") == ("topic 2", None, 0, 400)
    assert told(to=200) == ("topic 2", None, 0, 200) and told(**{"from": 300}) == ("topic 2", None, 300, 300)
    assert told(to=100) == ("topic 2", None, 100, 100)


def test_a_node_is_one_of_the_prompts(thoughts):
    reading, problems = thoughts
    shown = view("belief").payload(reading, problems=problems)
    shown["names"].append([*shown["names"][0][:-1], "other"])
    shown["prompts"][1]["names"] = len(shown["names"]) - 1
    complete, start = completes("belief"), shown["start"]
    assert complete({"prompt": 1}, {**start, "node": "n3"}, shown)["node"] == "n3"
    assert complete({"prompt": 1}, {**start, "node": "n13"}, shown)["node"] is None
    with pytest.raises(InputError, match="node='other' is not in prompt 0; it has 'n0'"):
        complete({"node": "other"}, start, shown)


def test_a_chosen_row_is_always_in_the_table(live):
    data, widget = neighbours(), live("neighbours")
    axes = ("prompt", "layer", "position", "rank")

    def told(**asked):
        widget.selection = asked
        return tuple(widget.selection[key] for key in axes)

    assert told(prompt=1) == (1, 0, 3, 0), "what is not named is the first"
    assert told(layer=2, rank=3) == (1, 2, 3, 3)
    assert told(rank=None) == (None, None, None, None)
    assert told(only_prompt=1, only_layer=5) == (None, None, None, None)
    assert told(rank=2) == (1, 5, 3, 2) and widget.selection["only_layer"] == 5
    assert told(prompt=0) == (0, 5, 3, 2) and widget.selection["only_prompt"] is None, "it would hide the row"
    assert widget.selection["only_layer"] == 5
    row = data.sel(prompt=0, layer=5, position=3, rank=2)
    own, other = int(row["index_layer"]), next(x for x in (1, 4, 9) if x != int(row["index_layer"]))
    floor, score, word = 0.6, float(row["similarity"]), str(row["sentence"].values)[3:9].upper()
    for key, kept, hides in (
        ("index_layers", [own], [other]), ("least", score - 0.01, score + 0.01), ("text", word, "nowhere"),
        ("text", " W0", " w1"), ("only_rank", 2, 1), ("above_floor", score > floor, True),
    ):  # fmt: skip
        start = widget.payload["start"][key]
        assert told(prompt=0, layer=5, position=3, rank=2) == (0, 5, 3, 2)
        assert told(**{key: kept}) == (0, 5, 3, 2)
        if key != "above_floor" or score <= floor:
            assert told(**{key: hides}) == (None, None, None, None), f"{key} hides the row, and leaves it"
            assert told(prompt=0, layer=5, position=3, rank=2) == (0, 5, 3, 2)
            assert widget.selection[key] == start, f"the row clears {key}"
        widget.selection = {key: start}


@pytest.mark.parametrize("name", MODULES)
def test_beside_the_widget_stands_an_escaped_table(name, routing, thoughts):
    pytest.importorskip("anywidget")
    reading = {
        "lens": logit_lens(), "routing": routing, "belief": thoughts[0], "drift": stances()[0],
        "neighbours": neighbours(),
    }[name]  # fmt: skip
    bundle, _ = view(name).explore(reading)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<table" in bundle["text/html"]
    assert len(bundle["text/html"]) < 60_000
    if hasattr(reading, "provenance") and name != "neighbours":
        assert reading._repr_mimebundle_()["text/html"] == bundle["text/html"]


def test_static_tables_hold_the_numbers(routing, thoughts):
    table = view("belief").static(thoughts[0])
    own = thoughts[0].data["belief"].values[0, -1]
    rows = dict(re.findall(r"<tr><th[^>]*><bdi[^>]*>(n\d+)</bdi></th>(.*?)</tr>", table))
    assert len(rows) == 14
    for v in range(14):
        assert re.findall(r"<bdi[^>]*>([\d.]+)</bdi>", rows[f"n{v}"]) == [f"{x:.2f}" for x in own[:, v]]
    assert re.findall(r'<th scope="col"><bdi[^>]*>([^<]*)</bdi>', table) == [
        "candidate", "no thought yet", "1 thought", "2 thoughts", "3 thoughts", "answer, after =",
    ]  # fmt: skip
    assert "an even share is 12.5%" in view("routing").static(routing)


# ---------------------------------------------------------------- routing


def test_the_routing_explorer_opens_with_a_label_and_its_table_shows_it(routing):
    names = [str(x) for x in routing.data["label"].values]
    count = routing.data["usage_count"].transpose("label", "block", "expert").values
    for i, name in enumerate(names):
        widget = routing.explore(label=name)
        assert widget.selection["label"] == name
        assert routing.data["document_label_count"].values[widget.selection["prompt"]].argmax() == i
        assert f"label {name}" in widget.static_html
        share = count[i, -1] / count[i, -1].sum()
        row = re.search(r"<tbody><tr>(.*?)</tr>", widget.static_html)
        assert row
        assert re.findall(r"(\d+)%", row[1]) == [f"{100 * s:.0f}" for s in share]
    with pytest.raises(InputError, match="no label 'xx'"):
        routing.explore(label="xx")
    with pytest.raises(InputError, match="does not fit.*larger limit"):
        routing.explore(label=names[-1], limit=1)


def test_routing_shares_are_counted_from_the_trace(routing):
    shown = view("routing").payload(routing)
    ids = routing.data["expert_id"].transpose("prompt", "block", "position", "slot").values
    share = numbers(shown["share"]).reshape(3, 4, 8)
    for label in range(3):
        for block in range(4):
            own = ids[6 * label : 6 * label + 6, block]
            counts = np.bincount(own[own >= 0], minlength=8)
            np.testing.assert_allclose(share[label, block], counts / counts.sum(), atol=6e-5)
    assert [d["prompt"] for d in shown["traced"]] == list(range(18)) and shown["left_out"] == []
    one = shown["traced"][7]
    np.testing.assert_array_equal(
        numbers(one["expert"]).reshape(ids[7].shape), -np.sort(-ids[7], axis=-1) * 0 + _strong(routing, 7)
    )
    words = [shown["vocab"][i] for i in numbers(one["token"])]
    assert words == [visible(str(t)) for t in routing.data["input_token"].values[7]]


def _strong(routing, prompt):
    """[block, position, slot] experts, the strongest first."""
    axes = ("block", "position", "slot")
    ids, weight = (routing.data[n][prompt].transpose(*axes).values for n in ("expert_id", "expert_weight"))
    return np.take_along_axis(ids, np.argsort(-weight.astype(float), -1, kind="stable"), -1)


def test_differences_are_tested_for_all_blocks_and_experts_of_a_pair():
    from probes.routing import RoutingTracer, measures
    from workbench.organisms.polyglot.grammar import documents

    texts = [*documents(6, "a", seed=3), *documents(6, "c", seed=3)]
    reading = workbench.read(
        workbench.load("organism:polyglot"), texts, RoutingTracer(labels=[*"aaaaaacccccc"]), progress=False
    )
    shown = view("routing").payload(reading)
    table = measures.differences(reading)
    p = numbers(shown["difference_p"])
    np.testing.assert_allclose(p, table["difference_p"].values.ravel(), atol=6e-4)
    assert p.min() < 0.05 and shown["pairs"] == [[0, 1]]
    assert shown["left_out"] == ["each token's experts (the reading was made without trace=True)"]


def test_a_large_trace_says_what_it_leaves_out(routing):
    small = view("routing").payload(routing, limit=16_000)
    assert base.weight(small) < 17_000
    assert any("of 18 documents" in text for text in small["left_out"])
    assert {d["label"] for d in small["traced"]} == {0, 1, 2}, "at least one document of each label"
    chosen = view("routing").payload(routing, documents=[4, 2])
    assert [d["prompt"] for d in chosen["traced"]] == [2, 4]
    with pytest.raises(InputError, match="no document 18"):
        view("routing").payload(routing, documents=[18])


@needs_browser
def test_routing_answers_to_keys_and_says_what_the_data_says(pages, routing):
    script = """
      await wait();
      const token = one(".wx-token"); token.focus();
      key(token, "ArrowRight"); key(document.activeElement, "ArrowRight"); await wait();
      out.token = document.activeElement.title; out.path = one(".wx-path").textContent;
      out.rings = all(".wx-heat")[0].querySelectorAll(".wx-ring").length;
      pick('select[aria-label="beside"]', 2);
      await wait();
      const grid = all(".wx-heat svg")[2]; grid.focus(); key(grid, "ArrowDown"); key(grid, "Home"); await wait();
      out.selection = model.get("selection"); out.facts = one(".wx-facts:not(output)").textContent;
      const active = document.getElementById(grid.getAttribute("aria-activedescendant"));
      out.label = active.getAttribute("aria-label");
      set({ prompt: 13, block: 0, expert: null, compare: null }); await wait();
      out.documents = one('select[aria-label="document"]').value; out.labels = one('select[aria-label="label"]').value;
      out.numbers = all(".wx-token small").map((n) => n.textContent);
      out.hatched = all(".wx-hatch").length;
    """
    out = said(pages["routing"], script)
    data = routing.data
    first = _strong(routing, 0)[:, 2]
    weight = data["expert_weight"].values[0, 3, 2].astype(float)
    assert out["token"].endswith(
        f"#2, block 3: expert {first[3, 0]} {weight.max():.2f}, expert {first[3, 1]} {weight.min():.2f}"
    )
    assert out["rings"] == 8 and out["path"].startswith(f"block 3{first[3, 0]}")
    assert out["selection"]["compare"] == "c" and out["selection"]["block"] == 2 and out["selection"]["expert"] == 0
    share = {x: data["usage_count"].sel(label=x, block=2).values for x in "ac"}
    a, c = (share[x][0] / share[x].sum() for x in "ac")
    assert f"difference {100 * (round(a, 4) - round(c, 4)):.1f} points" in out["facts"] and "chance" in out["facts"]
    shown = view("routing").payload(routing)
    cells = (3, *data["usage_count"].shape[1:])
    p = numbers(shown["difference_p"]).reshape(cells)[shown["pairs"].index([0, 2]), 2, 0]
    assert f"p = {p:.3f}" in out["facts"] and f"p {p:.3f}" in out["label"]
    assert out["documents"].startswith("13: ") and out["labels"] == "c"
    assert out["numbers"] == [str(e) for e in _strong(routing, 13)[0, :, 0]]


@needs_browser
def test_routing_marks_its_block_and_what_is_chosen_can_be_left(pages):
    script = """
      await wait();
      const mark = (i) => [...all(".wx-heat svg")[i].querySelectorAll(":scope > rect")].pop(), chosen = () => all(".wx-token.on").length;
      const said = () => { const s = model.get("selection"); return [s.expert, s.position]; };
      out.row = [Number(mark(0).getAttribute("width")), Number(all(".wx-heat svg")[0].getAttribute("width"))];
      out.legend = all("p.wx-hint").map((n) => n.textContent).join(" ");
      const token = all(".wx-token")[3]; token.click(); out.on = [chosen(), ...said()];
      token.click(); out.off = [chosen(), ...said()];
      token.click(); all(".wx-key button")[2].click(); await wait(50); out.both = said(); out.expert = all("p.wx-hint").map((n) => n.textContent).join(" ");
      key(one(".wx-heat svg"), "Escape"); out.first = said(); key(one(".wx-heat svg"), "Escape"); out.then = said();
      all(".wx-key button")[2].click(); const clear = one('button[aria-label="show all experts"]'); clear.focus(); clear.click(); await wait();
      out.focus = document.activeElement.tagName;
      const again = all(".wx-token")[2]; again.focus(); set({ block: 1 }); await wait(); out.place = document.activeElement.dataset.at;
    """  # noqa: E501
    out = said(pages["routing"], script)
    assert out["row"][0] >= out["row"][1] - 1, "the block on show is marked"
    assert "Small number and colour of a token: its first expert" in out["legend"] and "its weight" in out["legend"]
    assert out["on"] == [1, None, 3] and out["off"] == [0, None, None] and "tokens of expert 2" in out["expert"]
    assert (out["both"], out["first"], out["then"]) == ([2, 3], [2, None], [None, None])
    assert out["focus"] != "BODY" and out["place"] == "2"


# ---------------------------------------------------------------- belief


def test_belief_stands_beside_the_same_nodes_in_other_prompts_states(thoughts):
    reading, problems = thoughts
    shown = view("belief").payload(reading, problems=problems)
    belief = reading.data["belief"].values  # [prompt, layer, place, node]
    for i, one in enumerate(shown["prompts"]):
        np.testing.assert_allclose(numbers(one["belief"]).reshape(belief[i].shape), belief[i], atol=6e-5)
        others = [j for j in range(6) if j != i]
        for place in range(3):
            ring = [v for v in range(14) if problems[i].depth[v] == place + 1]
            null = np.mean([belief[j, :, place][:, ring].sum(-1) for j in others], axis=0)
            own = numbers(one["null"]["frontier"]).reshape(belief.shape[1:3])[:, place]
            np.testing.assert_allclose(own, null, atol=6e-5)
        target = np.mean([belief[j, ..., problems[i].target] for j in others], axis=0)
        np.testing.assert_allclose(numbers(one["null"]["target"]).reshape(target.shape), target, atol=6e-5)
    assert shown["places"][shown["prompts"][0]["places"]] == [
        [0, visible(str(reading.data["input_token"].values[0, 0]))], [1, ""], [2, ""], [3, ""], [3, "="],
    ]  # fmt: skip


def test_a_graph_runs_from_left_to_right_and_no_two_nodes_meet(thoughts):
    from probes.superposition import Problem
    from probes.superposition.explorer import layered

    loop = Problem(((0, 1), (1, 2), (2, 1), (3, 4), (4, 3), (5, 5)), 0, 2, 4, tuple("abcdef"))
    for problem in [*thoughts[1], loop]:
        x, y = layered(problem)
        assert all(x[b] > x[a] for a, b in problem.edges if 0 <= problem.depth[a] < problem.depth[b])
        spots = {(round(a, 3), round(b, 3)) for a, b in zip(x, y, strict=True)}
        assert len(spots) == len(problem.names) and 0 <= x.min() and x.max() <= 1 and 0 <= y.min() and y.max() <= 1


def test_problems_of_other_nodes_are_refused(thoughts):
    reading, problems = thoughts
    with pytest.raises(InputError, match="6 prompts and 2 problems"):
        view("belief").payload(reading, problems=problems[:2])
    renamed = reading.data.assign(candidate_name=reading.data["candidate_name"].astype(object) + "!")
    with pytest.raises(InputError, match="nodes of problem 0 are n0.*candidates of its prompt n0!"):
        view("belief").payload(renamed, problems=problems)
    shown = view("belief").payload(reading, problems=problems, limit=4000)
    assert shown["left_out"] == [f"the last {6 - len(shown['prompts'])} of 6 prompts (.isel(prompt=...) chooses)"]


@needs_browser
def test_belief_steps_plays_and_is_walked_by_keys(pages, thoughts):
    reading, problems = thoughts
    script = """
      await wait();
      const named = (n) => one(`button[aria-label="${n}"]`), place = one('input[aria-label="place"]');
      out.first = place.getAttribute("aria-valuetext");
      named("one place on").click(); named("one place on").click(); await wait();
      out.head = one(".wx-panel h3").textContent; out.facts = one(".wx-panel .wx-facts").textContent; out.two = model.get("selection");
      out.rings = all(".wx-node").filter((n) => n.querySelector(".halo").getAttribute("stroke") !== "none").map((n) => n.querySelector("title").textContent);
      out.radii = all(".wx-node .disc").map((n) => Number(n.getAttribute("r")));
      named("to the last place").click(); await wait();
      out.last = place.getAttribute("aria-valuetext"); out.after = one(".wx-panel .wx-facts").textContent;
      named("to the prompt").click(); named("play").click(); await wait(1300);
      out.playing = model.get("selection").position; named("pause").click(); await wait(1300); out.paused = model.get("selection").position;
      const node = one('.wx-node[tabindex="0"]'); node.focus(); key(node, "ArrowRight"); await wait();
      out.node = model.get("selection").node; out.focus = document.activeElement.getAttribute("aria-label");
      model.set("selection", { prompt: 3, layer: 1, position: 2, node: "n7" }); await wait();
      out.chosen = one(".wx-node.on title").textContent; out.shown = one(".wx-panel h3").textContent;
    """  # noqa: E501
    out = said(pages["belief"], script)
    own, problem = reading.data["belief"].values[0, -1], problems[0]
    assert out["first"] == "no thought yet" and out["last"] == "answer, after ="
    assert out["head"] == "2 thoughts, layer 2" and out["two"]["position"] == 2
    ring = [f"n{v}" for v in range(14) if problem.depth[v] == 3]
    assert sorted(out["rings"]) == sorted(ring)
    assert f"frontier {own[2, [int(v[1:]) for v in ring]].sum():.2f}" in out["facts"]
    assert f"target {own[2, problem.target]:.2f}" in out["facts"] and "whole vocabulary" in out["facts"]
    assert "frontier" not in out["after"], "behind the last thought there is no further ring"
    np.testing.assert_allclose(out["radii"], 6 + 17 * np.sqrt(np.round(own[2], 4)), atol=1e-6)
    assert 1 <= out["playing"] <= 2 and out["paused"] == out["playing"]
    assert out["node"] == "n1" and out["focus"].startswith("n1: belief")
    assert out["chosen"] == "n7" and out["shown"] == "2 thoughts, layer 1"


@needs_browser
def test_a_node_can_be_left_its_name_is_whole_and_its_chart_stays(pages, thoughts, tmp_path):
    script = """
      await wait();
      const node = () => model.get("selection").node, click = (n) => n.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const disc = all(".wx-node")[4]; click(disc); out.on = node(); click(disc); out.off = node();
      all(".wx-list li")[0].click(); out.listed = node(); all(".wx-list li")[0].click(); out.unlisted = node();
      click(disc); key(disc, "Escape"); out.escaped = node(); click(disc);
      pick('select[aria-label="belief in"]', 1); set({ position: 2 }); await wait(); out.chart = one('select[aria-label="belief in"]').value;
      set({ prompt: 2 }); await wait(); out.kept = one(".wx-node.on title").textContent; disc.focus();
      out.prompts = [...one('select[aria-label="prompt"]').options].map((n) => n.textContent);
    """  # noqa: E501
    out = said(pages["belief"], script)
    assert out["on"] == "n4" and out["listed"] and out["chart"] == "the target" and out["kept"] == "n4"
    assert [out[key] for key in ("off", "unlisted", "escaped")] == [None] * 3
    for i, text in enumerate(out["prompts"]):
        whole, end = plain(str(thoughts[0].data["prompt_text"].values[i])), text.split("…", 1)[1]
        assert whole.endswith(" " + end) and 30 < len(end) < 60

    bare = thoughts[0].data.copy()
    names = [f"candidate number {i}" for i in range(bare.sizes["candidate"])]
    bare["candidate_name"] = (("prompt", "candidate"), np.array([names] * bare.sizes["prompt"], object))
    inside = """
      await wait();
      for (const [name, i] of [["left", 0], ["again", 7]]) {
        const node = all(".wx-node")[i]; node.dispatchEvent(new MouseEvent("click", { bubbles: true })); await wait(50);
        const frame = one(".wx-graph").getBoundingClientRect();
        out[name] = Math.min(...all(".wx-graph text").flatMap((n) => { const b = n.getBoundingClientRect(); return [b.top - frame.top, frame.bottom - b.bottom, b.left - frame.left, frame.right - b.right]; }));
      }
    """  # noqa: E501
    out = said(dispatch.to_html(bare, tmp_path / "bare.html"), inside, size="700,900")
    assert out["left"] >= 0 and out["again"] >= 0


# ---------------------------------------------------------------- drift


def test_drift_shows_means_over_clusters_and_the_given_test():
    from probes.values.measures import drift

    data, texts = stances()
    shown = view("drift").payload(data, items=texts)
    p, polarity = data["p"].mean("sample").values, data["polarity"].values
    keyed = polarity * (p[..., 0] - p[..., 2])
    first = np.nanmean([np.nanmean(keyed[:, :2], 1), *keyed[:, 2:6].T], 0)  # items 0 and 1 are one cluster
    got = numbers(shown["measures"]["keyed"]["value"]).reshape(3, 5)
    # Item 3 was not read at checkpoint 200: its cluster is left out there.
    np.testing.assert_allclose(got[0], first, atol=6e-4)
    table = drift(data)
    np.testing.assert_allclose(
        numbers(shown["measures"]["drift"]["p"]).reshape(3, 5), table["keyed_M_p"].values.T, atol=6e-4, equal_nan=True
    )
    assert shown["start"]["measure"] == "drift" and shown["texts"][4] == "Statement number 4."
    assert np.isnan(numbers(shown["p"]).reshape(5, 18, 3)[2, 3]).all()
    with pytest.raises(InputError, match="'item-2' has no text"):
        view("drift").payload(data, items={k: v for k, v in texts.items() if k != "item-2"})
    with pytest.raises(InputError, match="other topics or checkpoints"):
        view("drift").payload(data.isel(checkpoint=slice(3)), drift=table)
    one = view("drift").payload(data.isel(checkpoint=[0]))
    assert one["start"]["measure"] == "keyed" and "drift" not in one["measures"]


def test_samples_that_do_not_fit_are_named():
    data, texts = stances(steps=5, topics=3, items=6, samples=8)
    full, small = (view("drift").payload(data, items=texts, limit=limit) for limit in (300_000, 2_500))
    assert full["n_samples"] == 8 and full["left_out"] == []
    assert "samples" not in small and "without their noise" in small["left_out"][0]


@needs_browser
@pytest.mark.parametrize("size, beside", [("1400,900", True), ("800,900", False)])
def test_drift_shows_items_beside_the_map_where_there_is_room(pages, size, beside):
    script = """
      await wait();
      const map = () => one(".wx-map").getBoundingClientRect(), list = one(".wx-items").getBoundingClientRect();
      Object.assign(out, { map: [map().right, map().bottom], list: [list.left, list.top], wide: document.documentElement.scrollWidth, room: innerWidth });
      for (const i of [2, 1, 0]) { pick("select", i); await wait(50); }
      out.again = [map().right, map().bottom];
      out.told = document.querySelector(".facts span").textContent;
    """  # noqa: E501
    out = said(pages["drift"], script, size=size)
    assert (out["list"][0] > out["map"][0]) == beside and (out["list"][1] > out["map"][1]) != beside
    assert out["wide"] <= out["room"] and out["again"][0] == out["map"][0]
    assert out["told"] == "model not recorded, pmf {}, 5 checkpoints from 0 to 400"


@needs_browser
def test_drift_range_by_keys_and_items_with_their_noise(pages):
    data, texts = stances()
    script = """
      await wait();
      const grid = one(".wx-heat svg"), grips = all(".wx-grip");
      out.hatched = all(".wx-hatch").length; grid.focus(); key(grid, "ArrowDown"); key(grid, "ArrowDown"); await wait();
      out.topic = model.get("selection").topic;
      key(grid, "Home"); key(grid, "ArrowRight", { shiftKey: true }); key(grid, "ArrowRight", { shiftKey: true }); await wait();
      out.brushed = model.get("selection"); out.cell = one("p.wx-facts").textContent;
      grips[0].focus(); key(grips[0], "ArrowRight"); grips[1].focus(); key(grips[1], "End"); await wait();
      out.range = model.get("selection"); out.now = grips[1].getAttribute("aria-valuetext");
      model.set("selection", { ...model.get("selection"), topic: null, from: 0, to: 400 }); await wait();
      out.items = all(".wx-items > li").map((n) => [n.querySelector(".wx-said").textContent, n.querySelector(".wx-change").textContent]);
      out.stack = one(".wx-items > li .wx-stack").title;
      const row = one('.wx-items > li[tabindex="0"]'); row.focus(); key(row, "ArrowDown"); await wait();
      out.item = model.get("selection").item; out.years = all(".wx-years > div").length;
      const find = one('input[type="search"]'); find.value = "number 7."; find.dispatchEvent(new Event("input")); await wait();
      out.found = all(".wx-items > li .wx-said").map((n) => n.textContent);
      out.drawn = grid.getBoundingClientRect().width;
    """  # noqa: E501
    out = said(pages["drift"], script)
    assert out["topic"] == "topic 1" and out["brushed"]["from"] == 0 and out["brushed"]["to"] == 200
    assert out["cell"].startswith("topic 1, checkpoint 200: keyed drift +") and " p " in out["cell"]
    assert out["range"]["from"] == 100 and out["range"]["to"] == 400 and out["now"] == "checkpoint 400"
    p = data["p"].values
    shown = view("drift").payload(data, items=texts)
    table = numbers(shown["measures"]["drift"]["p"])
    assert out["hatched"] == (table > 0.05).sum()

    mean = np.round(np.nanmean(p[[0, 4]], 2)[..., :3], 3)
    mean = np.concatenate([mean, 1 - mean.sum(-1, keepdims=True)], -1)
    far = np.abs(mean[1] - mean[0]).sum(-1) / 2
    gaps = np.round(p[4], 2)[..., :3] - np.round(p[0], 2)[..., :3]
    gaps = np.concatenate([gaps, -gaps.sum(-1, keepdims=True)], -1)
    signs = np.array(list(itertools.product([1, -1], repeat=4)))
    null = np.abs(np.einsum("ps,isq->piq", signs, gaps) / 4).sum(-1) / 2  # each way to swap, and its mirror image
    p_item = (null >= null[0] - 1e-9).mean(0)
    order = np.argsort(-far, kind="stable")
    assert [text for text, _ in out["items"]] == [texts[f"item-{i}"] for i in order]
    for i, (_, change) in zip(order, out["items"], strict=True):
        value, chance, p = map(float, re.fullmatch(r"([\d.]+)chance ([\d.]+), p ([\d.]+)", change).groups())
        np.testing.assert_allclose([value, chance, p], [far[i], null[:, i].mean(), p_item[i]], atol=0.0051)
    assert out["stack"].startswith(f"support {mean[0, order[0], 0]:.2f}")
    assert out["item"] == f"item-{order[1]}" and out["years"] == 5
    assert out["found"] == ["Statement number 7."] and out["drawn"] > 100


@needs_browser
def test_drift_tells_the_cell_shows_the_item_and_one_checkpoint_as_one(tmp_path):
    data, texts = stances(topics=4, items=20)
    script = """
      await wait();
      const grid = one(".wx-heat svg"), told = () => { const s = model.get("selection"); return [s.topic, s.checkpoint, s.from, s.to, s.item]; };
      const box = grid.getBoundingClientRect(), wide = box.width / 5, high = box.height / 4;
      grid.dispatchEvent(new MouseEvent("click", { bubbles: true, clientX: box.left + 1.5 * wide, clientY: box.top + 2.5 * high }));
      out.cell = told(); out.says = one("p.wx-facts").textContent;
      set({ topic: null, item: "item-33" }); await wait();
      const list = one(".wx-items").getBoundingClientRect(), item = one(".wx-items .on").getBoundingClientRect();
      out.seen = item.top >= list.top && item.top < list.bottom; out.scrolled = one(".wx-items").scrollTop;
      out.axis = one(".wx-axis").textContent; out.hints = all("p.wx-hint").map((n) => n.textContent).join(" ");
      one(".wx-items .on").focus(); one(".wx-items .on").click(); await wait(); out.left = told(); out.focus = document.activeElement.className + document.activeElement.tagName;
      set({ item: "item-33" }); await wait(); key(one(".wx-items .on"), "Escape"); out.escaped = told();
      set({ item: "item-33" }); await wait(); pick('select[aria-label="topic"]', 1); out.other = told();
      pick('select[aria-label="topic"]', 0); set({ from: 200, to: 200 }); await wait();
      out.title = one("h3").textContent; out.changes = all(".wx-change").map((n) => n.textContent).join("");
      out.one = all("p.wx-hint").map((n) => n.textContent).join(" "); out.stacks = one(".wx-items > li").querySelectorAll(".wx-stack").length;
      const [a, b] = all(".wx-grip"); out.apart = a.getBoundingClientRect().right <= b.getBoundingClientRect().left + 1;
      key(b, "ArrowLeft"); out.pushed = told(); key(a, "End"); out.end = told();
      const find = one('input[type="search"]'); set({ item: "item-33" }); find.value = "number 7."; find.dispatchEvent(new Event("input")); out.hidden = told();
      set({ item: "item-33" }); await wait(); out.query = find.value; out.shown = all(".wx-items .on").length;
      pick('select[aria-label="show"]', [...one('select[aria-label="show"]').options].findIndex((n) => n.value === "commitment")); out.commitment = one(".wx-map .wx-hint:not(span)").textContent;
    """  # noqa: E501
    out = said(dispatch.to_html(data, tmp_path / "drift.html", items=texts), script)
    assert out["cell"] == ["topic 2", 100, 0, 400, None] and out["says"].startswith("topic 2, checkpoint 100: ")
    assert out["seen"] and out["scrolled"] > 0 and out["axis"] == "0checkpoint400"
    assert "total variation" in out["hints"] and "towards the topic's direction" in out["hints"]
    assert out["left"][-1] is None and out["escaped"][-1] is None and out["focus"].endswith("LI")
    assert out["other"] == ["topic 0", 100, 0, 400, None], "an item of another topic is left"
    assert out["title"] == "Items at 200: the first 60 of 80" and out["changes"] == "" and out["stacks"] == 1
    assert "one checkpoint" in out["one"] and out["apart"]
    assert out["pushed"][2:4] == [100, 100] and out["end"][2:4] == [400, 400]
    assert out["hidden"][-1] is None and out["query"] == "" and out["shown"] == 1
    assert "a side is taken" in out["commitment"]


# ---------------------------------------------------------------- neighbours


def test_neighbours_mark_the_word_wherever_it_stands():
    data = neighbours()
    shown = view("neighbours").payload(data)
    texts, which, layers = shown["context"]["texts"], numbers(shown["context"]["at"]), numbers(shown["index_layer"])
    np.testing.assert_array_equal(layers, data["index_layer"].values.ravel())
    for n, code in enumerate(data["token_id"].values.ravel()):
        if layers[n] < 0:
            assert which[n] == -1
            continue
        sentence, word = SENTENCES[code]
        assert texts[which[n]][1] == word and "".join(texts[which[n]]) == " ".join(sentence.split())
    floors = numbers(shown["floors"]["shuffled prompts"]["values"])
    np.testing.assert_allclose(floors, [0.7, 0.55, 0.4], atol=6e-5)
    with pytest.raises(InputError, match="over query and rank; these are over"):
        view("neighbours").payload(data.isel(prompt=0))


def test_a_state_stands_where_it_stands_in_its_prompt_whatever_was_selected():
    data = neighbours(prompts=2, positions=1).assign_coords(position=[0])
    data["index_layer"].values[:] = 4
    data["input_position"] = (("prompt", "position"), np.array([[7], [11]]))
    data["similarity"].values[:] = 0.1
    data["similarity"].values[1, 0, 0, 0] = 0.9
    shown = view("neighbours").payload(data)
    assert numbers(shown["place"]).tolist() == [7, 11] and shown["values"]["position"] == [0]
    first = view("neighbours").static(data).split("<tbody>")[1].split("</tr>")[0]
    assert "11 ·w0" in first.replace("<bdi>", "") and ">0 " not in first


def test_long_sentences_are_cut_around_the_word_and_large_readings_by_rank_first():
    text = "before " * 900 + "middle" + " after" * 900
    data = neighbours(sentences=[(text, "middle"), ("short middle", "middle")])
    shown = view("neighbours").payload(data)
    for before, word, after in shown["context"]["texts"]:
        assert word in ("middle", "") and len(before) <= 161 and len(after) <= 161
    assert {before[:1] for before, _, _ in shown["context"]["texts"]} >= {"…", "s"}
    small = view("neighbours").payload(neighbours(prompts=3, positions=40), limit=3_000)
    assert base.weight(small) < 3_600 + 2 * len(json.dumps(small["choices"]))
    assert small["values"]["rank"] == [0] and "4 of 5 ranks (.isel(rank=...) chooses)" in small["left_out"]
    assert any("prompts" in text for text in small["left_out"])


@needs_browser
def test_neighbours_sort_filter_and_walk(pages):
    script = """
      await wait();
      const grid = one(".wx-table"), heads = () => all('[role="columnheader"]'), column = (n) => heads().find((h) => h.textContent.startsWith(n));
      out.count = one('[role="status"]').textContent; out.sort = column("similarity").getAttribute("aria-sort");
      grid.focus(); key(grid, "ArrowDown"); key(grid, "ArrowDown"); await wait();
      out.second = model.get("selection"); out.active = document.getElementById(grid.getAttribute("aria-activedescendant")).textContent;
      out.panel = one("section.wx-panel").textContent; out.mark = one(".wx-whole mark").textContent;
      column("index layer").querySelector("button").click(); await wait();
      out.asc = all(".wx-space .wx-line").map((n) => Number(n.dataset.row)); out.by = model.get("selection").sort;
      const chip = all(".wx-chips button").find((b) => b.textContent.startsWith("4")); chip.click(); await wait();
      out.four = one('[role="status"]').textContent; out.layers = model.get("selection").index_layers;
      const tick = one('input[type="checkbox"]'); tick.checked = true; tick.dispatchEvent(new Event("change")); await wait();
      out.above = one('[role="status"]').textContent;
      model.set("selection", { ...model.get("selection"), index_layers: [], above_floor: false, text: "schläger", least: 0.5 }); await wait();
      out.found = one('[role="status"]').textContent; out.marks = all(".wx-say mark").map((n) => n.textContent);
    """  # noqa: E501
    out = said(pages["neighbours"], script)
    data = neighbours()
    score, layer = data["similarity"].values, data["index_layer"].values
    floor = np.array([0.7, 0.55, 0.6])[None, :, None, None]
    best = np.argsort(-np.nan_to_num(score), axis=None, kind="stable")
    at = np.unravel_index(best[1], score.shape)
    assert out["count"] == f"{(layer >= 0).sum()} of {(layer >= 0).sum()} neighbours" and out["sort"] == "descending"
    chosen = [data[axis].values[i] for axis, i in zip(("prompt", "layer", "position", "rank"), at, strict=True)]
    assert [out["second"][a] for a in ("prompt", "layer", "position", "rank")] == chosen
    assert out["active"].startswith(f"{score[at]:.3f}") and "floor of random tokens" in out["panel"]
    assert out["mark"] == SENTENCES[data["token_id"].values[at]][1]
    rising = np.argsort(np.where(layer < 0, 99, layer), axis=None, kind="stable")
    assert out["asc"] == rising[: len(out["asc"])].tolist() and out["by"] == "index_layer"
    total = (layer >= 0).sum()
    assert out["four"] == f"{(layer == 4).sum()} of {total} neighbours" and out["layers"] == [4]
    assert out["above"] == f"{((layer == 4) & (score > floor)).sum()} of {total} neighbours"
    hits = (data["token_id"].values == 1) & (layer >= 0) & (np.round(score, 4) >= 0.5)
    assert out["found"] == f"{hits.sum()} of {total} neighbours" and set(out["marks"]) == {"Schläger"}


@needs_browser
def test_menus_of_neighbours_are_told_and_rows_are_left(pages):
    script = """
      await wait();
      const told = () => { const s = model.get("selection"); return [s.only_prompt, s.prompt, s.rank]; }, line = () => one(".wx-space .wx-line");
      pick('select[aria-label="prompt"]', 2); out.only = told(); line().click(); out.row = told();
      line().click(); out.again = told(); line().click(); key(one(".wx-table"), "Escape"); out.escaped = told();
      line().click(); pick('select[aria-label="prompt"]', 1); out.left = told(); out.panel = one("section.wx-panel").textContent;
      set({ only_prompt: 1, only_rank: 3, text: 5, least: "x", index_layers: 4 }); await wait();
      out.menus = all(".wx-tools select").map((n) => n.value); out.count = one('[role="status"]').textContent;
    """  # noqa: E501
    out = said(pages["neighbours"], script)
    assert out["only"] == [1, None, None] and out["row"][:2] == [1, 1] and out["left"] == [0, None, None]
    assert out["again"] == out["escaped"] == [1, None, None] and out["panel"].startswith("Choose a row")
    assert out["menus"] == ["1", "all layers", "3"] and out["count"].startswith("0 of"), "no text has a 5"


# ---------------------------------------------------------------- pages, and texts that mean harm


@pytest.mark.parametrize("name", MODULES)
def test_a_page_is_one_file_without_network(name, pages):
    text = pages[name].read_text("utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=\"(?!data:,)|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("</script>") == 2 and base.module_text(MODULES[name]).split("export default")[0] in text


@needs_browser
@pytest.mark.parametrize("name", REFUSED)
def test_no_text_runs_disappears_or_breaks_the_page(name, routing, thoughts, tmp_path):
    reading, problems = {"routing": (routing, None), "belief": thoughts}.get(name, (None, None))
    data, options, seen = hostile(name, reading, problems)
    page = dispatch.to_html(data, tmp_path / "hostile.html", **options)
    script = """
      await wait();
      out.alien = all("img, a, script, iframe, object, u, s, em, title:not(svg title)").length;
      out.bold = all("b").filter((n) => !n.parentNode.classList.contains("wx-bar")).length;
      out.text = el.textContent; out.title = document.title;
      out.over = document.documentElement.scrollWidth - innerWidth;
      out.marks = all(".wx-line").filter((n) => n.dataset.row).map((n) => [Number(n.dataset.row), n.querySelector("mark").textContent]);
      out.tall = Math.max(...all(".wx-token, .wx-line, .wx-items > li, .wx-list li, .wx-heat-rows > div").map((n) => n.getBoundingClientRect().height));
    """  # noqa: E501
    for size in ("1400,900", "500,900"):
        out = said(page, script, size=size)
        assert out["hacked"] == "undefined" and out["alien"] == 0 and out["bold"] == 0
        assert out["over"] <= 0 and out["tall"] < 260
        assert [text for text in seen if text not in out["text"]] == []
        for row, word in out["marks"]:
            at = np.unravel_index(row, data["sentence"].shape)
            whole, a, b = str(data["sentence"].values[at]), data["char_start"].values[at], data["char_end"].values[at]
            first = "".join(" " if c.isspace() else plain(c) for c in whole[a : min(b, a + 20)])
            assert first in word, "the marked word holds the token"
        assert "onerror" in out["title"] and "\0" not in out["title"]
