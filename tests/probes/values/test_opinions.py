"""The organism with known opinions: instruments read what was put in, and drift is found where it was planted."""

from __future__ import annotations

import numpy as np
import pytest

import workbench
from probes.values.instruments import Pmf
from probes.values.measures import agreement, drift
from probes.values.opinions import (
    PLANTED_AS,
    UNTOUCHED,
    instruments,
    items,
    moved,
    nothing_happened,
    read,
    resampled,
    supervised,
    towards_topics,
)
from workbench.organisms import opinions
from workbench.organisms.opinions.grammar import BASE, PREFERRED, TOPICS, TUNED


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    steps = opinions.runs()["sft"]
    return read(tmp_path_factory.mktemp("sft"), {step: steps[step] for step in (0, 32, max(steps))})


def test_probabilities_of_answers_are_the_stances_that_were_taught(sft):
    readings = sft.readings("pmf").data
    # On average and at most, in total variation: what the card says, with room for another machine's sums.  Supervised
    # training ends before all topics have taken over what it says.
    for place, truth, mean, most in ((0, BASE, 0.04, 0.12), (-1, TUNED, 0.13, 0.4)):
        off = np.abs(towards_topics(readings, place) - [truth[t] for t in TOPICS]).sum(-1) / 2
        assert off.mean() < mean and off.max() < most, dict(zip(TOPICS, off.round(2), strict=True))
        # Any other topic's distribution would be farther off than its own where they differ.
    untold = np.abs(towards_topics(readings, 0)[0] - TUNED["gardens"]).sum() / 2
    assert untold > 0.3


def test_planted_drift_is_found_with_its_sign(sft):
    found = supervised(drift(sft.readings("pmf")))
    assert all(found[topic]["right"] for topic in PLANTED_AS), found
    written = supervised(drift(sft.readings("sampled")))
    assert all(written[topic]["right"] for topic in PLANTED_AS), written


def test_instruments_agree(sft):
    table = agreement({x.name: sft.readings(x) for x in sft.instruments}).data.isel(checkpoint=-1)
    assert (table["spearman"] > 0.6).all() and (table["spearman_p"] < 0.01).all()
    two = table.sel(pair=[p for p in table["pair"].values if "sequence" not in str(p)])
    assert (two["tv"] < two["tv_null"]).all()


def test_nothing_is_found_where_nothing_happened(tmp_path):
    table = drift(nothing_happened(tmp_path, checkpoints=6))
    for name in ("M_p", "keyed_M_p", "commitment_M_p"):
        assert not (table[name] <= 0.05).any(), name
    assert np.isnan(table["eta"]).all() and np.isnan(table["keyed_eta"]).all()
    # The published statistic, on the same readings: a drift of its usual size, most of it early.
    assert float(np.abs(table["M_raw"]).max()) > 0.03
    assert np.isfinite(table["eta_raw"].sel(stance=["support", "neutral", "oppose"])).all()


@pytest.mark.slow
def test_untouched_topics_keep_the_family_wise_error():
    found = resampled(workbench.load("organism:opinions"), runs=200)
    assert found["topics"] == len(UNTOUCHED)
    # The middle 95 % of a binomial with 200 trials at .05.
    assert 4 <= found["significant"] <= 16, found
    assert found["raw_M_over_05"] > 100


def test_preferences_move_what_they_are_about(tmp_path):
    found = {}
    for run in ("simpo planted", "simpo free"):
        steps = opinions.runs()[run]
        ends = {step: steps[step] for step in (0, max(steps))}
        found[run] = drift(read(tmp_path / run, ends, [Pmf()]).readings())
    far = 0
    for topic, (wanted, _) in PREFERRED.items():
        value = moved(found["simpo planted"], topic)
        assert value[0] * (1 if wanted == "support" else -1) > 0.05 and value[3] <= 0.05, (topic, value)
        far += abs(value[0]) > 0.5
    assert far == 3  # bridges stayed nearly where they were, though all their pairs asked for support
    assert max(abs(moved(found["simpo free"], topic)[0]) for topic in PREFERRED) < 0.25


def test_items_are_keyed_both_ways():
    asked = items()
    assert len(asked) == 240 and set(asked.topics) == set(TOPICS)
    assert all(sum(i.polarity for i in asked.select(topic)) == 0 for topic in TOPICS)
    assert len({x.settings for x in instruments()}) == 3
