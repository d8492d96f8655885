"""Which patches are judged, against tables whose whole blocks are counted out in the test."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
from mosaics import CELL, TEXT, reading, tables

from lenses import judge
from workbench.errors import InputError
from workbench.reading import Reading


def places(found: Reading) -> list[tuple]:
    return list(zip(*(found.data[name].values.tolist() for name in ("picture", "tile", "row", "column")), strict=True))


def every(readings, **options) -> set[tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(places(judge.sample(readings, n=100_000, **options)))


def test_all_layers_and_lenses_have_the_same_patches():
    """In the published evaluator one generator runs on from layer to layer: layers after the first have others."""
    cells = tables(6)
    both = reading(cells, share=(0.0, 0.5, 1.0)), reading(cells, share=(0.2, 0.1, 0.0), lens="LogitLens", seed=9)
    whole = places(judge.sample(both, n=12, seed=42))
    for part in (both[0], both[1], both[0].isel(layer=[2]), both[1].isel(layer=[1, 0]), both[::-1]):
        assert places(judge.sample(part, n=12, seed=42)) == whole
    assert places(judge.sample(both, n=12, seed=42)) == whole, "whatever was drawn before"
    assert places(judge.sample(both, n=12, seed=43)) != whole
    assert places(judge.sample(both, n=5, seed=42)) == whole[:5]


def test_the_order_of_prompts_does_not_matter():
    cells = tables(7)
    one = judge.sample(reading(cells), n=10, seed=1)
    order = [3, 6, 0, 2, 5, 1, 4]
    other = judge.sample(reading([cells[i] for i in order]), n=10, seed=1)
    assert [(order[p], *rest) for p, *rest in places(other)] == places(one)


def test_pictures_take_turns():
    counts = Counter(p for p, *_ in places(judge.sample(reading(tables(6)), n=15)))
    assert sorted(counts.values()) == [2, 2, 2, 3, 3, 3]
    assert sorted(p for p, *_ in places(judge.sample(reading(tables(6)), n=6))) == list(range(6))


@pytest.mark.parametrize("grid, padded", [((5, 7), ()), ((3, 9), ()), ((8, 8), (0, 1, 7)), ((9, 4), (4,))])
def test_blocks_show_nothing_but_picture(grid, padded):
    rows, columns = grid
    own = reading(tables(1, grid), padded=padded)
    good = {
        (0, 0, r, c)
        for r in range(rows)
        for c in range(columns)
        if {r - 1, r, r + 1} <= set(range(rows)) - set(padded) and 0 < c < columns - 1
    }
    assert every(own) == good
    found = judge.sample(own, n=1).data
    position, row, column = (int(found[name].values[0]) for name in ("position", "row", "column"))
    assert position == TEXT + row * columns + column
    box = [(column - 1) * CELL, (row - 1) * CELL, (column + 2) * CELL, (row + 2) * CELL]
    assert found["block_box"].values[0].tolist() == box


@pytest.mark.parametrize("clipped", [False, True])
def test_patches_that_are_half_padding_are_in_no_block(clipped):
    """6 x 6 cells over a picture that is 6 cells wide and 3.5 high, shifted by a cell and a half: row 0 shows nothing,
    and row 1 hangs over the picture's edge, whether its boxes are cut there or not."""

    def boxes(p, t, r, c):
        top, bottom = (r - 1.5) * CELL, (r - 0.5) * CELL
        if clipped:
            top, bottom = np.clip([top, bottom], 0, 3.5 * CELL)
        return c * CELL, top, (c + 1) * CELL, bottom

    own = reading(tables(1, (6, 6)), padded=(0,), boxes=boxes, sizes=[(6 * CELL, int(3.5 * CELL))])
    # Rows 2, 3, 4 are whole; row 1 begins at -.5 cells, row 5 ends at 4.5 of 3.5.
    assert every(own) == {(0, 0, 3, c) for c in range(1, 5)}


def test_cells_that_are_no_whole_pixels_keep_their_place():
    """27 x 27 patches on 512 pixels: the published mask has cells of 18 pixels, 486 in all, its boxes of 512 / 27."""

    def boxes(p, t, r, c):
        return tuple(512 / 27 * np.array([c, r, c + 1, r + 1]))

    own = reading(tables(1, (27, 27)), boxes=boxes, sizes=[(512, 512)])
    assert every(own) == {(0, 0, r, c) for r in range(1, 26) for c in range(1, 26)}
    with pytest.warns(UserWarning, match="625 have a block"):
        data = judge.sample(own, n=1000).data
    expected = 512 / 27 * np.stack([data["column"] - 1, data["row"] - 1, data["column"] + 2, data["row"] + 2], -1)
    np.testing.assert_allclose(data["block_box"], expected, atol=1e-3)
    assert float(data["block_box"].max()) == pytest.approx(512, abs=1e-3)
    asked = []
    last = judge.sample(own, n=625).isel(patch=[int(data["column"].values.argmax())])
    with pytest.warns(UserWarning, match="no null of other pictures"):
        judge.judge(own, Keeps(asked), patches=last, progress=False)
    assert max(q.box[2] for q in asked) == pytest.approx(512, abs=1e-3), "to the edge of what the judge sees"


class Keeps:
    name = "keeps"

    def __init__(self, asked):
        self.asked = asked

    def __call__(self, question):
        self.asked.append(question)
        return judge.Verdict()


def test_a_block_is_of_one_crop():
    cells = tables(2, (4, 4))
    crops = tables(4, (3, 5), seed=1)

    def boxes(p, t, r, c):
        # A crop shows the whole picture in cells of its own: 64 pixels are 4 of the whole's, or 5 across and 3 down.
        across, down = (16, 16) if t == 0 else (64 / 5, 64 / 3)
        return c * across, r * down, (c + 1) * across, (r + 1) * down

    own = reading(cells, tiles=lambda p: crops[2 * p : 2 * p + 2], boxes=boxes)
    whole = {(p, 0, r, c) for p in range(2) for r in (1, 2) for c in (1, 2)}
    parts = {(p, t, 1, c) for p in range(2) for t in (1, 2) for c in (1, 2, 3)}
    assert every(own) == whole
    assert every(own, tile=2) == {place for place in parts if place[1] == 2}
    assert every(own, tile=None) == whole | parts


def test_a_picture_that_is_there_twice_has_the_same_patches_twice():
    cells = tables(3)
    data = judge.sample(reading([*cells, cells[0]]), n=8, seed=3).data
    by = {p: [] for p in range(4)}
    for p, row, column in zip(*(data[n].values.tolist() for n in ("picture", "row", "column")), strict=True):
        by[p].append((row, column))
    assert by[0] == by[3] and len(set(data["picture_key"].values.tolist())) == 3


def test_larger_and_single_blocks():
    own = reading(tables(1, (6, 7)))
    assert every(own, block=5) == {(0, 0, r, c) for r in (2, 3) for c in (2, 3, 4)}
    assert len(every(own, block=1)) == 42


def test_what_cannot_be_sampled_is_told():
    own = reading(tables(2, (2, 9)))
    with pytest.raises(InputError, match="3 x 3 patches.*tile 0: 2 x 9"):
        judge.sample(own)
    with pytest.raises(InputError, match="in tile 1"):
        judge.sample(reading(tables(2)), tile=1)
    for options in ({"block": 2}, {"n": 0}, {"block": 0}):
        with pytest.raises(InputError, match="odd"):
            judge.sample(own, **options)
    with pytest.raises(InputError, match="has no picture_prompt.*workbench.read"):
        judge.sample(Reading(own.data.drop_vars(["picture_prompt"])))
    with pytest.raises(InputError, match="2 prompts and a picture of prompt 2"):
        judge.sample(Reading(reading(tables(3)).data.isel(prompt=[0, 1])))
    with pytest.raises(InputError, match="differs between the readings"):
        judge.sample([reading(tables(2)), reading(tables(2, seed=5))])
    with pytest.raises(InputError, match="no reading"):
        judge.sample([])
    with pytest.warns(UserWarning, match="100 patches were asked for, and 30"):
        assert judge.sample(reading(tables(2))).data.sizes["patch"] == 30
