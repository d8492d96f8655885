"""The published agreement, from the data in ../shared; and small verdicts whose kappa is worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

import workbench
from lenses import judge
from lenses.judge.kappa import agreed
from workbench.errors import ReadingError
from workbench.variables import lacking


@pytest.fixture(scope="module")
def replayed():
    from conftest import SHARED

    folder = SHARED / "data" / "latentlens-judge"
    if not folder.is_dir():
        pytest.skip("the published verdicts in ../shared/data/latentlens-judge are not here")
    return judge.replay(folder)


def test_judge_and_people_agree_as_published(replayed):
    """correlation_results_final.json of the authors: kappa .659, accuracy .847; captions: as recomputed elsewhere."""
    data = replayed.data
    for pair, kappa, accuracy in (
        ("judge and people", 0.659, 0.847), ("captions and people", 0.500, 0.800), ("captions and judge", 0.543, 0.825),
    ):  # fmt: skip
        own = data.sel(pair=pair)
        assert float(own["kappa"]) == pytest.approx(kappa, abs=6e-4)
        assert float(own["accuracy"]) == pytest.approx(accuracy, abs=6e-4)
        assert own["questions"] == 360 and own["pictures"] == 60
        assert own["kappa_low"] < own["kappa"] < own["kappa_high"] and 0.1 < own["kappa_high"] - own["kappa_low"] < 0.3
    people = [str(pair) for pair in data["pair"].values if str(pair).startswith("annotator")]
    assert [round(float(data["kappa"].sel(pair=pair)), 2) for pair in people] == [0.67, 0.75, 0.67]
    rates = dict(zip(data["scorer"].values.tolist(), data["rate"].values.round(3).tolist(), strict=True))
    assert rates == {"judge": 0.325, "people": 0.35, "captions": 0.167}


def test_the_scorer_by_captions_beats_captions_of_other_pictures(replayed):
    """Recomputed elsewhere from 200 shuffles: .095 [.073, .118]."""
    data = replayed.data
    null = data.sel(shuffled="patches")
    for name, value in (("", 0.095), ("_low", 0.073), ("_high", 0.118)):
        assert float(null[f"captions_rate_null{name}"]) == pytest.approx(value, abs=0.004)
    assert (data["captions_rate"].round(3) == 0.167).all() and (data["captions_rate_p"] < 0.002).all()


def test_the_replay_says_what_it_is(replayed, tmp_path):
    assert lacking(replayed.data) == []
    kept = workbench.open(replayed.save(tmp_path / "replay.nc")).data
    assert kept.drop_attrs(deep=False).identical(replayed.data.drop_attrs(deep=False))
    assert replayed.data["model_rate"].shape == (3, 9)
    from lenses.judge.published import told

    assert "judge and people" in told(replayed) and "0.659" in told(replayed)


def test_what_is_not_the_published_data_is_told(tmp_path):
    with pytest.raises(ReadingError, match="data.json cannot be read.*humans.json"):
        judge.replay(tmp_path)
    for name in ("data", "humans", "judge"):
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(ReadingError, match="does not hold the published verdicts"):
        judge.replay(tmp_path)


def test_majorities_and_lists_are_read_as_they_were_made(tmp_path):
    same = {"caption": "A red house", "candidates": ["red"], "model": "m"}
    rows = [{"id": f"i{k}", "index": k // 2, **same} for k in range(6)]
    said = [["red"], [], ["red"], [], [], ["red"]]
    chose = {"i0": "yy", "i1": "yn", "i2": "nny", "i3": "n", "i4": "nn", "i5": "y"}
    humans = [
        {"annotator": f"a{j}", "instance": instance, "words": ["red"] * (vote == "y")}
        for instance, votes in chose.items()
        for j, vote in enumerate(votes)
    ]
    results = [
        {"instance_id": f"i{k}", "gpt_response": {"interpretable": False, "concrete_words": [], **rest}}
        for k, own in enumerate(said)
        for rest in [{"abstract_words": [], "global_words": own}]
    ]
    for name, content in (("data", rows), ("humans", humans), ("judge", {"results": results})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    own = judge.replay(tmp_path, draws=50).data.sel(pair="judge and people")
    # People: yes, a tie is yes, no, no, no, yes; the judge, by its lists alone: yes, no, yes, no, no, yes.
    assert float(own["accuracy"]) == pytest.approx(4 / 6)
    assert float(own["kappa"]) == pytest.approx((4 / 6 - 1 / 2) / (1 / 2))


def test_kappa_of_a_table_worked_out_by_hand():
    """Cohen 1960's form: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = .7, p_e = .5, kappa .4."""
    one = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]).astype(float)
    other = np.repeat([1, 0, 1, 0], [20, 5, 10, 15]).astype(float)
    found = agreed(one, other, np.arange(50))
    assert found["kappa"] == pytest.approx(0.4) and found["accuracy"] == pytest.approx(0.7)
    assert found["accuracy_chance"] == pytest.approx(0.5) and found["questions"] == 50
    # The delta method's standard error of kappa (Fleiss, Cohen & Everitt 1969) is .127 here.
    half = (found["kappa_high"] - found["kappa_low"]) / 2
    assert half == pytest.approx(2.01 * 0.127, rel=0.08)
    missing = np.where(np.arange(50) % 2, np.nan, one)
    assert agreed(missing, other, np.arange(50))["questions"] == 25
    # Each question four times over, of the same picture: nothing is surer.
    again = agreed(np.tile(one, 4), np.tile(other, 4), np.tile(np.arange(50), 4))
    assert again["kappa_low"] == pytest.approx(found["kappa_low"], abs=1e-9)


def test_two_that_agree_throughout_have_no_interval_of_kappa():
    one = np.array([1.0, 0.0] * 10)
    found = agreed(one, one, np.arange(20))
    assert found["kappa"] == 1 and "kappa_low" not in found
    assert found["accuracy_low"] == pytest.approx(0.025 ** (1 / 20))  # Clopper & Pearson
