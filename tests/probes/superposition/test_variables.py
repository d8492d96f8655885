"""Every result of superposition says what it is: variables, provenance, caption, file, and its figure's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from test_belief import graph, made
from tiny import tiny

import workbench
from lenses import States
from probes.superposition import (
    CandidateBelief,
    ContinuousThought,
    decode_frontier,
    entity_belief,
    focus,
    frontier,
    mass,
    mixture_entropy,
    soft_versus_hard,
    think,
    use,
    verdict,
)
from probes.superposition.features import DictionaryFeatures, effective_features, figures, geometry, plateaus, sweep
from workbench.errors import InputError
from workbench.figures import Panel, Plot
from workbench.figures.caption import captions
from workbench.variables import lacking

PROMPTS = [[5, 6, 7 + i] for i in range(6)]


@pytest.fixture(scope="module")
def model():
    return workbench.load(tiny("gpt2"))


@pytest.fixture(scope="module")
def problems():
    return [graph(i, nodes=16) for i in range(6)]


@pytest.fixture(scope="module")
def names():
    return [[10 + v for v in range(16)]] * 6


@pytest.fixture(scope="module")
def thought(model, names):
    return think(model, PROMPTS, ContinuousThought(2), readers=[CandidateBelief(names, mass=True), States()], then=[4])


def check(reading, tmp_path, sources=0, ran=True):
    """What holds of every result; gives the figure that it is drawn in, or None."""
    assert lacking(reading.data) == []
    first, last = reading.provenance[0], reading.provenance[-1]
    assert last["step"].rpartition(".")[2] == reading.data.attrs["measure"] and len(last["of"]) == sources
    assert not ran or first["model"]["name"] == reading.data.attrs["model"]
    assert captions([Plot([Panel([])])], [], [reading])
    again = workbench.open(reading.save(tmp_path / "result.nc"))
    xr.testing.assert_equal(again.data, reading.data)
    assert lacking(again.data) == []
    if "chart" not in reading.data.attrs:
        return None
    figure = reading.figure()
    assert figure.caption() == figure.caption(reading)
    return figure


def marks(figure):
    return figure.plot.panels[0].marks


def test_readers_say_what_their_variables_are(thought):
    belief = thought.readings[0]
    assert [x for x in lacking(belief.data) if not x.startswith(("input_", "prompt_text", "sink"))] == []


def test_what_is_held_comes_from_the_belief(thought, problems, tmp_path):
    belief = thought.readings[0]
    with pytest.raises(InputError, match="at one layer"):
        frontier(belief, problems)
    last = belief.isel(layer=-1).sel(position=slice(0, 1))
    table = mass(last, problems, draws=50)
    (shares,) = marks(check(table, tmp_path, 1))
    np.testing.assert_array_equal(shares.y, table["mean"].values.T)
    held = frontier(last, problems, draws=50)
    check(held, tmp_path, 1)
    array = frontier(belief["logit"].values[:, -1, :2], problems, draws=50)
    xr.testing.assert_equal(held.data.drop_attrs(), array.data.drop_attrs())
    assert held.provenance[0]["model"] == belief.provenance["model"]


def test_belief_in_the_target_is_beside_other_prompts(thought, problems, tmp_path):
    belief = thought.readings[0]
    table = focus(belief, problems, draws=50)
    figure = check(table, tmp_path, 1)
    q = belief["belief"].values.astype(float)
    own = np.stack([q[i, ..., p.target] for i, p in enumerate(problems)])
    np.testing.assert_allclose(table["target"], own)
    np.testing.assert_allclose(table["target_mean"], own.mean(0))
    np.testing.assert_array_equal(marks(figure)[0].values, table["target_mean"])
    again = belief.figure("depths", problems=problems, draws=50)
    np.testing.assert_array_equal(marks(again)[0].values, table["target_mean"])
    others = np.stack([np.delete(q, i, 0).mean(0)[..., p.target] for i, p in enumerate(problems)])
    np.testing.assert_allclose(table["target_null"], others)
    for i, p in enumerate(problems):
        for t in range(3):
            ring = np.flatnonzero(p.depth == t + 1)
            expected = q[i, :, t, ring].sum(0) if len(ring) else np.full(q.shape[1], np.nan)
            np.testing.assert_allclose(table["frontier"].values[i, :, t], expected)
    assert np.isnan(table["frontier"].values[:, :, 3]).all()  # behind the last thought there is no further ring
    with pytest.raises(InputError, match="6 prompts and 5 problems"):
        focus(belief, problems[:5])


def test_a_verdict_has_its_numbers(problems, model, names, tmp_path):
    held = frontier(made(problems, "all", 0), problems)
    used = use(model, PROMPTS, problems, names, ContinuousThought(2), then=[4], draws=50)
    figure = check(used, tmp_path)
    np.testing.assert_array_equal(marks(figure)[1].x, used["effect"].values[1:])
    found = verdict(held, used)
    check(found.reading, tmp_path, 2, ran=False)
    assert [x["step"] for x in found.reading.provenance][-1] == "superposition.verdict"
    assert f"AUC {float(found.reading['auc'][0]):.3f}" in found.evidence[1] and found.decided_by in found.evidence
    said = found.reading.data.attrs
    assert (said["word"], said["decided_by"]) == (found.word, found.decided_by)


def test_what_runs_the_model_begins_with_the_model(model, thought, problems, names, tmp_path):
    check(entity_belief(model, PROMPTS[:2], [10, 11]), tmp_path)
    soft = soft_versus_hard(model, PROMPTS, draws=50)
    figure = check(soft, tmp_path)
    np.testing.assert_array_equal(marks(figure)[0].y, soft["kl"])
    np.testing.assert_array_equal(marks(soft.figure("entropies"))[0].y, soft["entropy_soft"])
    mixed = mixture_entropy(model, PROMPTS[:2], (1, 2), mixtures=2, draws=50)
    figure = check(mixed, tmp_path)
    np.testing.assert_array_equal(marks(figure)[0].y, mixed["entropy"])
    states = thought.readings[1].sel(position=slice(0, 1))
    check(decode_frontier(states, problems, names, seeds=1, steps=3, kinds=["linear"]), tmp_path, 1)


def test_features(model, tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 3))
    figure = check(geometry(rows, draws=5), tmp_path, ran=False)
    np.testing.assert_allclose(marks(figure)[0].values, rows @ rows.T)
    check(plateaus(rows, draws=5), tmp_path, ran=False)
    check(effective_features(np.abs(rows), hidden=3, rotated=np.abs(rows[:2]), draws=9), tmp_path, ran=False)
    toy = sweep(4, 2, [0.0, 0.9], steps=5, batch=16)
    figure = check(toy, tmp_path, ran=False)
    represented = toy["norm"].values >= 0.5
    random, own, *_ = marks(figure)
    np.testing.assert_array_equal(random.y, toy["dimensionality_random"].values[represented])
    np.testing.assert_array_equal(own.y, toy["dimensionality"].values[represented])


def test_a_dictionarys_features(model):
    class Rows:
        rows = np.random.default_rng(0).standard_normal((40, model.d_model)).astype(np.float32)

        def encode(self, x):
            return (x @ x.new_tensor(self.rows.T)).relu()

        def decode(self, a):
            return a @ a.new_tensor(self.rows)

    reader = DictionaryFeatures({1: Rows()}, draws=9)
    reading = workbench.read(model, PROMPTS, reader, progress=False)
    assert lacking(reading.data) == []
    np.testing.assert_allclose(reading["psi_null"], reading["psi_rotated"].mean("draw"))
    figure = figures.psi(reading)
    np.testing.assert_array_equal(marks(figure)[1].y, reading["psi_null"].values[0])
    assert figure.caption() == reading.figure("psi").caption()
