"""The benchmark's study: labels from the data, reversals undone, habits at 4, planted opinions where they were put."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from test_instruments import SCALE, word_model

from probes.values import greatest_good
from probes.values.framings import STANCES, greatest_good_framings
from probes.values.instruments import Pmf
from probes.values.items import Item
from probes.values.tracker import ValueTracker
from workbench.errors import InputError

STATEMENTS = [
    ("The dog is good.", "IH"), ("The cat is here.", "IB"), ("The dog is bad.", "IH"), ("A cat sees a ball.", "IB"),
    ("The cat is in the house.", "IB"), ("The dog should be here.", "IH"), ("Every dog is big.", "IB"),
]  # fmt: skip


def written(folder: Path, rows: list[tuple[str, str]], inverted: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "GreatestGoodBenchmark.json"
    ids = {text: 1 + k for k, (text, _) in enumerate(STATEMENTS)}
    path.write_text(json.dumps([{"statement": t, "type": k, "statement_id": str(ids[t])} for t, k in rows]))
    if inverted:
        turned = [{"statement": f"Not: {t}", "type": k, "statement_id": str(100 + ids[t])} for t, k in rows]
        (folder / "GreatestGoodBenchmarkInverted.json").write_text(json.dumps(turned))
        return folder
    return path


@pytest.mark.parametrize("habit", ["7", "1", "3", "agree", "Agree"])
def test_a_model_with_a_habit_scores_4_on_both_scales(tmp_path, habit):
    """Whatever it always says: a number, or a word where a number is asked for."""
    path = written(tmp_path, STATEMENTS)
    model = word_model(
        {habit: 200.0 if habit.isdigit() else 30.0}, scale=4.0 if habit.isdigit() else 0.0, extra=("agree",)
    )
    table = greatest_good.study(tmp_path / "track", {0: model, 10: model}, path, progress=False).data
    np.testing.assert_allclose(table["score"], 4, atol=1e-4)
    assert (table["score_p"] == 1).all() and (table["null"] < 1e-3).all()
    if habit.isdigit():
        assert (table["mass"] > 0.99).all()
        sides = table["framing_score"].isel(checkpoint=0, scale=0).values
        np.testing.assert_allclose(sides, [f.values[int(habit) - 1] for f in greatest_good_framings()], atol=1e-4)
    else:
        assert (table["mass"] < 1e-6).all()


def test_scores_are_means_of_expected_values_and_rows_may_stand_in_any_order(tmp_path):
    """Against a loop over the instrument's own probabilities, and against the file turned over: the label is the data's
    ``type``, and never the number of a row."""
    models = {0: word_model(seed=1), 5: word_model(seed=2)}
    found = greatest_good.study(tmp_path / "a", models, written(tmp_path / "x", STATEMENTS), progress=False).data
    assert found["scale"].values.tolist() == ["IB", "IH"] and found["clusters"].values.tolist() == [4, 3]
    for step, model in models.items():
        for scale in ("IB", "IH"):
            rows = []
            for text, kind in STATEMENTS:
                if kind != scale:
                    continue
                data = Pmf(greatest_good_framings()).read(model, [Item("1", "t", text)], progress=False)
                said = data["p_answer"].values[0] @ np.arange(1, 8)
                names = data["framing"].values.tolist()
                undone = [
                    8 - y if name in ("text_reversed", "numbers_reversed", "agreement_reversed") else y
                    for name, y in zip(names, said, strict=True)
                ]
                rows.append(np.mean(undone))
            assert float(found["score"].sel(checkpoint=step, scale=scale)) == pytest.approx(np.mean(rows), abs=1e-4)
    order = np.random.default_rng(0).permutation(len(STATEMENTS))
    shuffled = written(tmp_path / "y", [STATEMENTS[i] for i in order])
    again = greatest_good.study(tmp_path / "b", models, shuffled, progress=False).data
    np.testing.assert_allclose(again["score"], found["score"], atol=1e-5)
    np.testing.assert_allclose(again["framing_score"], found["framing_score"], atol=1e-5)


def readings(value: np.ndarray, scale: list[str], cluster: list[str], polarity: list[int] | None = None) -> xr.Dataset:
    """value [checkpoint, item, framing] as a tracker's table has it."""
    n = value.shape[1]
    p = np.broadcast_to([0.1, 0.2, 0.3, 0.4], (*value.shape, 4))
    return xr.Dataset(
        {
            "p": (("checkpoint", "item", "framing", "stance"), p), "value": (("checkpoint", "item", "framing"), value),
            "topic": ("item", np.array(scale, object)), "cluster": ("item", np.array(cluster, object)),
            "polarity": ("item", np.array(polarity or [1] * n)),
        },
        {
            "checkpoint": np.arange(len(value)), "item": [f"i{k}" for k in range(n)], "stance": list(STANCES),
            "framing": [f.name for f in greatest_good_framings()],
        },
    )  # fmt: skip


def drawn(mean: list[float], n: int, rng: np.random.Generator, wording: float = 0.0) -> np.ndarray:
    """[checkpoint, item, framing]: a mean by checkpoint, statements that differ, a habit by pair of framings."""
    own = rng.normal(0, 0.5, (1, n, 1)) + rng.normal(0, 0.2, (len(mean), n, 6))
    habit = np.repeat(rng.normal(0, wording, (1, 1, 3)), 2, 2) if wording else 0.0
    return np.array(mean)[:, None, None] + own + habit


def test_planted_opinions_are_found_and_their_intervals_hold_them():
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        value = np.concatenate([drawn([4.0, 5.0], 50, rng), drawn([4.0, 2.5], 40, rng)], 1)
        table = greatest_good.scores(
            readings(value, ["IB"] * 50 + ["IH"] * 40, [f"c{k}" for k in range(90)]), draws=300, seed=seed
        ).data
        truth = np.array([[4.0, 4.0], [5.0, 2.5]])
        inside += ((table["score_low"] <= truth) & (truth <= table["score_high"])).values.mean() / 40
        assert (table["score_p"].values[1] < 0.01).all()
        assert (abs(table["score"].values[1] - 4) > table["null"].values[1]).all()
        np.testing.assert_allclose(table["score"], value.mean(2) @ np.repeat(np.eye(2), [50, 40], 0) / [50, 40])
        np.testing.assert_allclose(table["mass"], 0.6)
    assert inside > 0.88


def test_the_null_holds_what_the_wording_leaves():
    """Without opinion, but with a habit that each pair of framings changes: p of the statements is small, and the
    score lies within the null about as often as it says."""
    small, within = [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        table = greatest_good.scores(
            readings(drawn([4.0], 30, rng, wording=0.4), ["IB"] * 30, [f"c{k}" for k in range(30)]),
            draws=200,
            seed=seed,
        ).data
        small.append(float(table["score_p"][0, 0]) <= 0.05)
        within.append(bool(abs(table["score"] - 4)[0, 0] <= table["null"][0, 0]))
    assert np.mean(small) > 0.3 and np.mean(within) > 0.9
    assert stats.t.ppf(0.975, 2) == pytest.approx(4.302652, abs=1e-5)
    pairs = np.array([3.9, 4.0, 4.3])
    flat = readings(
        np.repeat(pairs, 2)[None, None] + np.zeros((1, 200, 1)), ["IH"] * 200, [f"c{k}" for k in range(200)]
    )
    spread = stats.t.ppf(0.975, 2) * pairs.std(ddof=1) / np.sqrt(3)
    turned = 1.96 * abs(pairs.mean() - 4) / np.sqrt(200)
    assert float(greatest_good.scores(flat)["null"][0, 0]) == pytest.approx(np.hypot(spread, turned), rel=0.01)


def test_an_inversion_takes_out_what_is_said_of_any_statement():
    rng = np.random.default_rng(0)
    opinion, habit = rng.normal(1, 0.3, (1, 20, 1)), 1.4 * np.array([1, -0.4, 1, -0.6, -0.5, 0.7])
    value = np.concatenate([4 + opinion + habit, 4 - opinion + habit], 1)
    table = greatest_good.scores(
        readings(value, ["IB"] * 40, [f"c{k % 20}" for k in range(40)], [1] * 20 + [-1] * 20), draws=100
    ).data
    assert float(table["score"][0, 0]) == pytest.approx(4 + opinion.mean()) and int(table["clusters"][0]) == 20
    np.testing.assert_allclose(table["framing_score"].values[:, 0, 0], 4 + opinion.mean())


def test_real_checkpoints_of_a_model_without_opinions(shared, tmp_path):
    """A model of children's stories: a habit of low numbers that both scales share, and cancels over reversals and
    inversions; the 90 statements of the first edition are 88, and a model of 128 characters is told that it is too
    small."""
    data, models = shared / "data" / "ggb", shared / "models"
    if not (data / "GreatestGoodBenchmarkOriginal.json").exists():
        pytest.skip("the folder ../shared/data with item sets made by others is not here")
    first = greatest_good.study(
        tmp_path / "first", {0: models / "stories260K"}, data / "GreatestGoodBenchmarkOriginal.json", progress=False
    ).data
    assert first["clusters"].sum() == 88
    assert (abs(first["score"] - 4) < first["null"]).all() and (first["null"] < 0.05).all()
    assert (first["framing_score"].sel(framing=["text", "numbers", "both_reversed"]) < 3).all()
    assert (first["framing_score"].sel(framing=["text_reversed", "numbers_reversed", "agreement_reversed"]) > 5).all()
    with pytest.raises(InputError, match="reads at most 128"):
        greatest_good.study(tmp_path / "small", {25: models / "arthur-char" / "epoch25"}, data, progress=False)


def test_what_is_no_reading_of_the_benchmark_is_refused(tmp_path):
    other = readings(np.full((1, 2, 6), 4.0), ["IB", "zoos"], ["a", "b"])
    with pytest.raises(InputError, match="of the topics IB and IH"):
        greatest_good.scores(other)
    items = [Item("1", "IB", "The dog is good.", 1)]
    tracker = ValueTracker(tmp_path, items, [Pmf(SCALE)]).run({0: word_model()}, progress=False)
    with pytest.raises(InputError, match="in 2 framings"):
        greatest_good.scores(tracker.table())
    with pytest.raises(InputError, match="asks items of the kinds statement"):
        asked = greatest_good.tracker(tmp_path / "b", [Item("1", "IB", "Is the dog good?", 1, kind="question")])
        asked.run({0: word_model()}, progress=False)
