"""Charts and payloads of prompts with pictures: numbers stand on the patches that they are of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("plotly")
sys.path.insert(0, str(Path(__file__).parent))

from extents import faults, shown
from image_readings import ASK, VOCAB, found, padded, painted, squashed
from synthetic import HOSTILE, logit_lens

from lenses.latent import figures as latent
from workbench.errors import InputError
from workbench.figures import Cells, Picture, Thumbnails, chart, patches
from workbench.figures.output import bundled
from workbench.figures.source import Source
from workbench.reading import Reading
from workbench.tokens import visible
from workbench.variables import about
from workbench.widgets import explore, lens, payload, to_html
from workbench.widgets import packing as P
from workbench.widgets.explorer import answer, static_html


def pictures(figure):
    return [mark for panel in figure.plot.panels for mark in panel.of(Picture)]


def cells(figure):
    return figure.plot.panels[0].of(Cells)[0]


# ---------------------------------------------------------------- overlay


@pytest.mark.parametrize(("prompt", "size"), [(0, (320, 240)), (1, (300, 200))])
def test_an_overlay_has_each_number_on_the_patch_that_it_is_of(prompt, size):
    """The word of a patch is the colour that is painted there: in the thumbnail it must stand on that colour."""
    data = found(layers=(0, 8))
    (mark,) = pictures(chart(data, "overlay", prompt=prompt, floor=False))
    at = np.flatnonzero(data["kind"].values[prompt] == "image")
    np.testing.assert_array_equal(mark.values, data["similarity"].values[prompt, -1, at, 0])
    assert mark.image.shape[:2] == (size[1], size[0]), "small enough to be its own thumbnail"
    assert mark.boxes.min() >= 0 and (mark.boxes[:, 2:].max(0) == size).all(), "padding is left out"
    seen = 0
    for text, (left, top, right, bottom) in zip(mark.text, mark.boxes, strict=True):
        pixel = mark.image[int((top + bottom) / 2), int((left + right) / 2)].astype(int)
        if text == "·car":
            seen += 1
            assert pixel[0] > 150 and pixel[2] < 90
        elif text == "·grass":
            assert pixel[1] > pixel[0] and pixel[1] > pixel[2]
    assert seen


def test_a_large_picture_is_drawn_from_its_thumbnail():
    data = found(prompts=[[squashed(4, 6, painted(1200, 800)), *ASK]])
    (mark,) = pictures(chart(data, "overlay"))
    assert mark.image.shape[:2] == (224, 336)
    np.testing.assert_allclose(mark.boxes[0], [0, 0, 56, 56])
    np.testing.assert_allclose(mark.boxes[-1], [280, 168, 336, 224])


def test_what_is_not_above_its_floor_has_no_colour():
    data = found()
    floor = float(np.median(data["similarity"].values[0, 1, :48, 0]))
    data["similarity_floor_random"][:] = floor
    data["similarity_floor_shuffled"][:] = 0
    figure = chart(data, "overlay", layer=2)
    (mark,), value = pictures(figure), data["similarity"].values[0, 1, :48, 0]
    np.testing.assert_array_equal(mark.values, np.where(value > floor, value, np.nan))
    assert 0 < np.isnan(mark.values).sum() < 48 and "no colour: not above the floor" in figure.plot.title
    assert np.isfinite(pictures(chart(data, "overlay", layer=2, floor=False))[0].values).all()
    other = chart(data, "overlay", layer=2, value="norm")
    assert np.isfinite(pictures(other)[0].values).all() and "floor" not in other.plot.title, "norms have none"
    assert mark.framed.tolist() == [True] + [False] * 47 and "dotted frame: sink" in figure.plot.title


def test_patches_have_the_floors_that_are_made_of_pictures():
    data = found().drop_vars(["similarity_floor_random"])
    data["similarity_floor_shuffled"] = ("layer", [0.9] * 4, data["similarity_floor_shuffled"].attrs | {"kind": "text"})
    own = about("shuffled patches", role="floor", of="similarity", short_name="shuffled patches", kind="image")
    data["similarity_floor_patches"] = ("layer", np.array([0.1, 0.2, 0.3, 0.4]), own)
    head = payload(data)["readings"][0]
    assert head["floor"] == [0.9] * 4 and head["floor_image"] == [0.1, 0.2, 0.3, 0.4]
    (mark,), value = pictures(chart(data, "overlay")), data["similarity"].values[0, -1, :48, 0]
    np.testing.assert_array_equal(np.isfinite(mark.values), value > 0.4)
    for positions, name in (("text", "shuffled prompts"), ("image", "shuffled patches")):
        _, *floors = latent.floors(data, positions=positions).plot.panels[0].marks
        assert [floor.name.split(" (")[0] for floor in floors] == [f"floor: {name}"]


def test_a_word_has_the_score_of_the_first_rank_that_holds_it():
    data = found()
    ids, score = data["token_id"].values[0, -1, :48], data["similarity"].values[0, -1, :48]
    wanted = np.array([next((s for i, s in zip(*row, strict=True) if "gra" in VOCAB[i]), np.nan)
                       for row in zip(ids, score, strict=True)])  # fmt: skip
    (mark,) = pictures(chart(data, "overlay", word="Gra", floor=False))
    np.testing.assert_array_equal(mark.values, wanted)
    assert 0 < np.isnan(wanted).sum() < 48
    # A context that ends within a word has the whole word: the token " car" of a "cartwheel".
    whole = data.copy()
    whole["sentence"] = data["sentence"].str.replace("a car of", "a cartwheel of")
    car = (ids == VOCAB.index(" car")).any(-1)
    (mark,) = pictures(chart(whole, "overlay", word="cartwheel", floor=False))
    np.testing.assert_array_equal(np.isfinite(mark.values), car)
    with pytest.raises(InputError, match=r"word='zebra'.*no patch has it in its top 5\. Most have ·(sky|grass)"):
        chart(data, "overlay", word="zebra")


def test_layers_beside_each_other_share_their_colours():
    data = found()
    figure = chart(data, "overlay", layer=[0, 4, 8], floor=False)
    ends = {mark.cells.ends for mark in pictures(figure)}
    value = data["similarity"].values[0][[0, 2, 3], :48, 0]
    assert ends == {(value.min(), value.max())} and len(figure.plot.bars()) == 1
    assert [panel.title for panel in figure.plot.panels] == ["layer 0", "layer 4", "layer 8"]
    assert shown(figure.matplotlib(venue="acl")).count("similarity") == 1
    last = pictures(chart(data, "overlay", layer=-1, floor=False))[0]
    np.testing.assert_array_equal(last.values, value[-1])


def test_a_picture_and_a_tile_are_chosen():
    data = found()
    (mark,) = pictures(chart(data, "overlay", prompt=2, picture=1))
    assert len(mark.boxes) == 15
    figure = chart(data, "overlay", prompt=3, tile=4)
    (mark,) = pictures(figure)
    assert len(mark.boxes) == 16 and mark.boxes[:, 0].min() == 168 and "tile 4" in figure.plot.title
    for options, said in (
        ({"prompt": 2, "picture": 2}, "prompt 2 has picture 0, 1"), ({"tile": 1}, "picture 0 has tile 0"),
        ({"layer": 3}, "layer 3 was not read. This reading holds 0, 2, 4, 8"), ({"value": "x"}, "holds .*similarity"),
        ({"prompt": 9}, "holds 4 prompt"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            chart(data, "overlay", **options)
    with pytest.raises(InputError, match="pictures in its prompts"):
        chart(logit_lens(), "overlay")
    with pytest.raises(InputError, match="prompt 1 of this reading has no picture"):
        chart(found(prompts=[[squashed()], ASK]), "overlay", prompt=1)
    with pytest.raises(InputError, match="pictures in its prompts"):
        chart(data.isel(position=slice(-4, None)), "overlay", prompt=3)


def test_thousands_of_patches_are_some_traces_and_some_artists():
    data = found(prompts=[[squashed(45, 50), *ASK]], layers=(0, 8))
    figure = chart(data, "overlay", floor=False)
    assert len(pictures(figure)[0].boxes) == 2250
    assert len(figure.data) < 45 and len(figure.layout.images) == 1
    (ax,) = [ax for ax in figure.matplotlib().axes if ax.get_label() != "<colorbar>"]
    assert len(ax.get_children()) < 40


# ---------------------------------------------------------------- rows of patches


def test_rows_of_patches_have_their_words_by_layer():
    data = found()
    figure = chart(data, "patches", patch=[(4, 6), (1, 1)], layer=[0, 8], top=2)
    table = cells(figure)
    texts = [
        [visible(VOCAB[data["token_id"].values[0, layer, 8 * r + c, rank]]) for layer in (0, 3)]
        for r, c in ((4, 6), (1, 1)) for rank in range(2)
    ]  # fmt: skip
    assert table.text[:, 1:].tolist() == texts
    value = data["similarity"].values[0, [0, 3]][:, [38, 9], :2].transpose(1, 2, 0).reshape(4, 2)
    np.testing.assert_array_equal(table.values[:, 1:], np.where(value > np.float32(0.34), value, np.nan))
    panel = figure.plot.panels[0]
    assert panel.x.names == ["", "0", "8"] and [n for n in panel.y.names if n] == ["4,6", "1,1"]
    car, sun = panel.of(Thumbnails)[0].images
    assert car[60, 60, 0] > 150 > 90 > car[60, 60, 2], "what is painted there"
    assert sun[60, 60, 1] > 150 > 90 > sun[60, 60, 2]
    assert len({text for text in chart(data, "patches").plot.panels[0].y.names if text}) == 5
    with pytest.raises(InputError, match=r"no patch \(9, 9\) here. The grid has rows 0 to 5 and columns 0 to 7"):
        chart(data, "patches", patch=[(9, 9)])


# ---------------------------------------------------------------- alignment


def test_alignment_draws_whatever_shares_there_are_each_beside_its_null():
    data = found()
    figure = latent.alignment(data)
    assert [panel.title for panel in figure.plot.panels] == [
        "share", "null: random tokens", "share at image positions", "null: shuffled patches",
    ]  # fmt: skip
    names = ("index_layer_share", "index_layer_share_null", "index_layer_share_image", "index_layer_share_image_null")
    for panel, name in zip(figure.plot.panels, names, strict=True):
        np.testing.assert_array_equal(panel.marks[0].values, data[name].values)
        assert (panel.x.label, panel.y.label) == ("index layer", "model layer")
    data["mine"] = (("layer", "index"), np.eye(4), about("my own share"))
    data["mine_null"] = (("layer", "index"), np.eye(4), about("chance", role="null", of="mine"))
    assert "my own share" in [panel.title for panel in latent.alignment(data).plot.panels]
    assert latent.ALIGNMENT.lacks(logit_lens())


# ---------------------------------------------------------------- the other charts


def test_other_charts_leave_patches_to_whoever_asks_for_them():
    data = found(prompts=[[squashed(24, 24), *ASK], [padded(), *ASK]])
    table = chart(data)
    assert cells(table).values.shape == (4, 4) and "text positions" in table.plot.title
    assert table.plot.panels[0].x.names == ["Describe", "·this", "·image", "."]
    image = chart(data, prompt=1, positions="image")
    assert cells(image).values.shape == (4, 24) and image.plot.panels[0].x.names[:2] == ["1,0", "1,1"]
    assert cells(chart(data, positions="all")).values.shape == (4, 580)
    alone = data.isel(position=slice(0, 576), prompt=[0])
    assert cells(chart(alone, "heatmap")).values.shape == (4, 576), "there is nothing else"
    assert pictures(chart(alone)), "of patches alone the picture is drawn"
    texts = data["kind"] == "text"
    for positions, mask in (("text", texts), ("image", data["kind"] == "image"), (None, texts)):
        (line,) = chart(data, "curves", value="norm", positions=positions).plot.panels[0].marks[:1]
        mean = data["norm"].where(~data["sink"]).where(mask).mean("position").mean("prompt")
        np.testing.assert_allclose(line.y, mean, rtol=1e-5)
    median = latent.floors(data, positions="image").plot.panels[0].marks[0]
    best = data["similarity"].isel(rank=0).where((data["kind"] == "image") & ~data["sink"])
    np.testing.assert_allclose(median.y, best.median(("prompt", "position")), rtol=1e-5)
    assert "at row 8, column 8 (#200)" in chart(data, "trajectory", position=200).plot.title


# ---------------------------------------------------------------- type, texts


@pytest.mark.parametrize("venue", ["acl", None])
def test_no_text_over_pictures_is_lost_or_means_harm(venue):
    data = found()
    names = [*HOSTILE, *(f"{visible(t)} and much more of the same" for t in VOCAB)]
    data["vocab_token"] = ("vocab", np.array(names[: data.sizes["vocab"]], object))
    for figure in (
        chart(data, "overlay"), chart(data, "overlay", layer=[0, 2, 4, 8]), chart(data, "overlay", prompt=3, tile=2),
        chart(data, "patches"), chart(data, "patches", patch=list(range(9)), top=1), latent.alignment(data),
    ):  # fmt: skip
        assert faults(figure.matplotlib(venue=venue)) == [], figure.plot.title
        told = figure.to_json().replace("\\u003c", "<")
        assert "<script" not in told and "<s>" not in told
    _, about_it = bundled(chart(data, "overlay").matplotlib(), "", chart(data, "overlay").plot.title)
    assert "similarity" in about_it["image/png"]["alt"] and "layer 8" in about_it["image/png"]["alt"]


# ---------------------------------------------------------------- what the explorer is sent


def test_a_payload_says_what_each_position_shows():
    data = found()
    sent = P.unpack(P.pack({"readings": payload(data, saved_kb=None)["readings"]}))
    for p, own in enumerate(sent["readings"][0]["prompts"]):
        real = data["input_id"].values[p] >= 0
        kinds = np.array(["text", "image", "padding"])[own["seen"]["kind"].values]
        np.testing.assert_array_equal(kinds, data["kind"].values[p, real])
        for name in ("image", "tile", "row", "column"):
            np.testing.assert_array_equal(own["seen"][name].values, data[name].values[p, real])
        boxes = own["seen"]["box"].values.reshape(4, -1).T
        np.testing.assert_allclose(boxes, data["box"].values[p, real], atol=0.051)


def test_readings_of_one_pass_share_their_pictures():
    readings = [found(name) for name in ("LogitLens", "LatentLens")]
    shown = payload(readings, saved_kb=None)
    own = list(dict.fromkeys(readings[0]["picture_data"].values))
    assert [picture["src"] for picture in shown["pictures"]] == own and len(own) < 5
    for reading in shown["readings"]:
        assert reading["prompts"][2]["seen"]["pictures"] == {"0": 0, "1": 0}, "the same as in the first prompt"


def test_a_part_has_the_pictures_of_its_prompts_and_the_others_come_with_theirs():
    data = found()
    shown = payload(data, saved_kb=12)
    sent = [picture["src"] != "" for picture in shown["pictures"]]
    assert sent[0] and not sent[-1]
    block = P.unpack(answer(shown, {"ask": [0, 3]})[1])
    last = list(dict.fromkeys(data["picture_data"].values)).index(data["picture_data"].values[-1])
    assert block["sources"] == {str(last): data["picture_data"].values[-1]}
    assert shown["start"]["position"] == 2 * 8 + 3, "in the middle"


def test_panes_keep_layers_of_their_own():
    pytest.importorskip("anywidget")
    widget = explore(found())
    widget.selection = {"panes": [[0, 0], [0, 0, 4]]}
    assert widget.selection["panes"] == [[0, 0], [0, 0, 4]] and widget.selection["depth"] == 8
    widget.selection = {"prompt": 2}
    assert widget.selection["panes"] == [[0, 2], [0, 2, 4]], "both go to the next prompt"
    for asked, said in (([[0, 0, 3]], "depth of a pane=3 .* there are 0, 2, 4, 8"), ([[0]], "is no .reading, prompt.")):
        with pytest.raises(InputError, match=said):
            widget.selection = {"panes": asked}


def test_the_static_table_names_patches_by_row_and_column():
    table = static_html(found(prompts=[[*ASK, squashed(3, 4)]]))
    assert "2,3" in table and "0,0" in table and "image&gt;" not in table


def test_scores_travel_as_what_they_fall_by():
    rng = np.random.default_rng(0)
    for values in (np.sort(rng.random((5, 40)), 0)[::-1], rng.normal(0, 9, (3, 7)), np.full((2, 3), np.nan)):
        values[-1, 0] = np.nan
        packed = P.decimals(values, 3, by=values.shape[1])
        back = P.unpack(P.pack([packed]))[0].values.reshape(values.shape)
        np.testing.assert_allclose(back, np.round(values, packed.digits), atol=1e-9)


def test_what_prompts_share_travels_once():
    lists = [P.Shared([["a", "b"], ["c", "d"]]), P.Shared([["c", "d"], ["a", "b"], ["c", "d"]]), P.Shared(["x", "x"])]
    block = P.pack({"all": lists, "none": P.Shared()})
    assert P.unpack(block) == {"all": [list(own) for own in lists], "none": []}
    assert len(P.pack({"all": [P.Shared(["word" * 50 + str(i) for i in range(99)])] * 9})) < 2 * len(
        P.pack({"all": ["word" * 50 + str(i) for i in range(99)]})
    )


def test_a_page_of_many_patches_is_under_three_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(lens, "PICTURED", 60_000)
    readings = [found(name, [[squashed(24, 24), *ASK]] * 2, layers=range(6)) for name in ("LogitLens", "LatentLens")]
    page = to_html(readings, tmp_path / "page.html")
    assert page.stat().st_size < 60_000 * 4 / 3 + 110_000
    shown = payload(readings, saved_kb=None)
    kept = [own["prompts"][0]["ranks"] for own in shown["readings"]]
    assert all(1 <= ranks < 5 for ranks in kept) and len(shown["readings"][0]["prompts"][0]["inputs"]) == 580
    assert "ranks that" in shown["about"]["said"]


def test_parts_of_a_reading_are_drawn_with_their_own_pictures():
    whole = Reading(found(), {"reader": {"name": "LogitLens"}})
    turned = whole.isel(prompt=[2, 1, 0])
    for place, prompt in enumerate((2, 1, 0)):
        of_part, of_whole = (patches.pictures(Source(r.data), i) for r, i in ((turned, place), (whole, prompt)))
        assert of_part == of_whole and of_whole, "a picture goes with its prompt"
    for part in (whole.isel(prompt=1), whole.isel(prompt=slice(1, None)), whole.sel(prompt=[1])):
        shown = part.figure("overlay").plot.panels[0].marks[0]
        assert np.array_equal(shown.image, patches.pictures(Source(whole.data), 1)[0].pixels())
