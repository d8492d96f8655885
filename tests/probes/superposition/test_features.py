"""Feature superposition: against loops written out, known geometry, and streams whose features were put there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import prompts, tiny

import workbench
from probes.superposition.features import (
    DictionaryFeatures,
    directions,
    effective_features,
    figures,
    geometry,
    plateaus,
    rotation,
    sweep,
    toy,
)
from probes.superposition.features.measures import (
    PLATEAUS,
    coherence,
    dimensionality,
    effective_rank,
    interference,
    welch,
)
from workbench.errors import InputError, StateError
from workbench.figures import Line

D = 32


def polygon(n: int) -> np.ndarray:
    turn = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(turn), np.sin(turn)], 1)


# ---------------------------------------------------------------- directions


def test_measures_are_those_of_loops():
    w = np.random.default_rng(0).standard_normal((7, 4))
    cosines = []
    for i in range(7):
        own = w[i] / np.linalg.norm(w[i])
        between = sum((own @ w[j]) ** 2 for j in range(7) if j != i)
        capacity = (w[i] @ w[i]) ** 2 / sum((w[i] @ w[j]) ** 2 for j in range(7))
        assert interference(w)[i] == pytest.approx(between)
        assert dimensionality(w)[i] == pytest.approx(capacity)
        cosines += [abs(own @ w[j]) / np.linalg.norm(w[j]) for j in range(7) if j != i]
    assert coherence(w) == pytest.approx(max(cosines))
    table = geometry(w, draws=20)
    np.testing.assert_allclose(table["gram"], w @ w.T)
    assert float(table["dimensions_per_feature"]) == pytest.approx(4 / sum(x**2 for row in w for x in row))
    assert float(table["capacity"]) <= 4 and float(table["coherence"]) >= float(table["welch"])


@pytest.mark.parametrize("rows, expected", [
    (np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0], 1),
    (np.r_[np.eye(5), -np.eye(5)], 1 / 2),
    (polygon(3), 2 / 3),
    (polygon(5), 2 / 5),
    (np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]), 3 / 4),
])  # fmt: skip
def test_known_shapes(rows, expected):
    np.testing.assert_allclose(dimensionality(np.asarray(rows, float)), expected)
    found = plateaus(rows, draws=200)
    assert (found["share"].values[:, np.isclose(found["dimensionality"], expected)] == 1).all()
    assert effective_rank(np.asarray(rows, float)) == pytest.approx(np.shape(rows)[1])


def test_welch_is_reached_by_a_simplex_alone():
    simplex = np.eye(6) - 1 / 6
    basis = np.linalg.svd(simplex)[2][:5]
    assert coherence(simplex @ basis.T) == pytest.approx(welch(6, 5)) == pytest.approx(1 / 5)
    assert coherence(np.random.default_rng(0).standard_normal((6, 5))) > welch(6, 5) + 0.05
    assert welch(5, 5) == 0


def test_random_directions_pass_for_random_and_arranged_ones_do_not():
    rng = np.random.default_rng(0)
    p = np.stack([
        [float(table[f"{name}_p"]) for name in ("capacity", "coherence", "rank")]
        for table in (geometry(rng.standard_normal((24, 8)) * 3, draws=39, seed=i) for i in range(60))
    ])  # fmt: skip
    # Norms that vary raise no p: the draws have the same ones.
    assert (p < 0.05).mean(0).max() <= 0.15 and 0.3 < p.mean() < 0.7
    pairs = geometry(np.r_[np.eye(8), -np.eye(8)], draws=99)
    # Pairs fill the space as evenly as anything, at the cost of the largest coherence there is.
    assert float(pairs["capacity_p"]) == 0.01 and float(pairs["rank_p"]) == 0.01 and float(pairs["coherence_p"]) == 1
    found = plateaus(np.r_[np.eye(8), -np.eye(8)], draws=99).data.sel(within=0.02, plateau="antipodal pair")
    assert float(found["share"]) == 1 and float(found["share_null"]) < 0.1 and float(found["share_p"]) == 0.01
    # The null of interference: each of the others gives its squared norm / width.
    np.testing.assert_allclose(pairs["interference_null"], 15 / 8, rtol=0.1)


def test_a_feature_of_no_length_is_left_out():
    table = geometry(np.r_[np.eye(3), np.zeros((1, 3))], draws=20)
    assert np.isnan(table["dimensionality"].values).tolist() == [False, False, False, True]
    assert float(table["capacity"]) == pytest.approx(3) and float(table["coherence"]) == 0


@pytest.mark.parametrize("given, match", [
    (np.ones(3), "features, hidden"), (np.full((2, 2), np.nan), "NaN"), (np.zeros((2, 2)), "zero"),
])  # fmt: skip
def test_directions_that_are_none(given, match):
    with pytest.raises(InputError, match=match):
        geometry(given)


# ---------------------------------------------------------------- effective features


def test_effective_features_of_a_known_distribution():
    share = 0.5 ** np.arange(1, 11)
    share[-1] *= 2  # sums to 1
    h = -(share * np.log(share)).sum()
    found = effective_features(np.outer([1.0, 2, 5], share) * [[1], [-1], [1]], hidden=4)
    assert float(found["F"]) == pytest.approx(np.exp(h)) and float(found["psi"]) == pytest.approx(np.exp(h) / 4)
    np.testing.assert_allclose(found["share"], share)
    # Every row has the same shares, so no resample differs.
    assert float(found["F_low"]) == pytest.approx(float(found["F_high"]))
    assert float(effective_features(np.ones((5, 12)))["F"]) == pytest.approx(12)


def test_intervals_are_over_documents():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), 50)
    own = rng.dirichlet(np.full(20, 0.3), 12)
    tokens = rng.poisson(own[documents] * 10).astype(float)
    by_document = effective_features(tokens, units=documents)
    by_token = effective_features(tokens)
    assert float(by_document["F"]) == float(by_token["F"])
    wide, narrow = (float(x["F_high"] - x["F_low"]) for x in (by_document, by_token))
    assert wide > 4 * narrow and by_document.data.attrs["units"] == 12
    assert np.isnan(float(effective_features(tokens, units=np.zeros(600))["F_low"]))


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.full(60, 1.0))
    truth, held = np.exp(-(share * np.log(share)).sum()), 0
    for i in range(100):
        documents = rng.gamma(0.5, share / 0.5, (80, 60))
        found = effective_features(documents, draws=200, seed=i)
        held += float(found["F_low"]) <= truth <= float(found["F_high"])
    assert held >= 85


@pytest.mark.parametrize("given, options, match", [
    (np.ones(3), {}, "shape"), (np.full((2, 2), np.inf), {}, "infinity"), (np.zeros((2, 2)), {}, "ever active"),
    (np.ones((2, 2)), {"units": [1]}, "units"), (np.ones((2, 2)), {"rotated": np.ones((1, 3))}, "rotated"),
])  # fmt: skip
def test_activations_that_are_none(given, options, match):
    with pytest.raises(InputError, match=match):
        effective_features(given, **options)


# ---------------------------------------------------------------- the toy autoencoder


def test_gradients_are_those_of_autograd():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 2, 5, generator=g, requires_grad=True)
    b = torch.randn(3, 1, 5, generator=g, requires_grad=True)
    x, weight = torch.rand(3, 11, 5, generator=g), torch.rand(5, generator=g)
    out = torch.relu(torch.einsum("kmf,kmg,kbg->kbf", w, w, x) + b)
    ((out - x).square() * weight).sum(2).mean(1).sum().backward()
    own = toy._gradients(w.detach(), b.detach(), x, weight)
    torch.testing.assert_close(own[0], w.grad)
    torch.testing.assert_close(own[1], b.grad)


def test_samples_have_the_sparsity_asked_for():
    x = toy._samples(torch.tensor([1.0, 0.25]), 20_000, 4, torch.Generator().manual_seed(0))
    for i, p in enumerate((1.0, 0.25)):
        active = x[i][x[i] > 0]
        assert len(active) / x[i].numel() == pytest.approx(p, abs=0.01) and active.mean() == pytest.approx(
            0.5, abs=0.01
        )


@pytest.fixture(scope="module")
def trained():
    return sweep(5, 2, [0.6, 0.9], steps=1500, batch=256, rate=2e-2, restarts=6, seed=0)


def test_five_features_in_two_dimensions_become_pairs_then_a_pentagon(trained):
    kept = trained["norm"].values > 0.5
    assert kept.sum(1).tolist() == [4, 5]
    np.testing.assert_allclose(trained["dimensionality"].values[0][kept[0]], 1 / 2, atol=0.02)
    np.testing.assert_allclose(trained["dimensionality"].values[1], 2 / 5, atol=0.02)
    assert (trained["loss"] < trained["loss_orthogonal"]).all()
    w = trained["W"].values.astype(float)
    np.testing.assert_allclose(trained["dimensions_per_feature"], 2 / (w**2).sum((1, 2)))
    np.testing.assert_allclose(trained["interference"].values[1], interference(w[1].T))


def test_a_model_does_not_depend_on_those_beside_it(trained):
    alone = sweep(5, 2, [0.9], steps=1500, batch=256, rate=2e-2, restarts=6, seed=0)
    np.testing.assert_allclose(alone["W"][0], trained["W"][1], atol=1e-3)
    other = sweep(5, 2, [0.9], steps=20, seed=1)
    assert not np.allclose(other["W"], sweep(5, 2, [0.9], steps=20, seed=2)["W"])
    np.testing.assert_array_equal(other["W"], sweep(5, 2, [0.9], steps=20, seed=1)["W"])


def test_dense_features_keep_the_most_important():
    found = sweep(5, 2, [0.0], importance=[1, 0.8, 0.2, 0.1, 0.05], steps=1500, batch=256, rate=1e-2)
    norm = found["norm"].values[0]
    np.testing.assert_allclose(norm[:2], 1, atol=0.05)
    assert (norm[2:] < 0.25).all()
    # Without superposition the loss is that of the three that are left out: variance 1/12 each.
    assert float(found["loss_orthogonal"][0]) == pytest.approx(0.35 / 12)
    assert float(found["loss"][0]) == pytest.approx(0.35 / 12, rel=0.1)


@pytest.mark.parametrize("options, match", [
    ({"sparsities": [1.0]}, "from 0 to below 1"), ({"sparsities": []}, "at least one"), ({"features": 0}, "1 or more"),
    ({"importance": [1.0]}, "importance"), ({"importance": [-1.0] * 5}, "importance"),
])  # fmt: skip
def test_sweeps_that_are_none(options, match):
    with pytest.raises(InputError, match=match):
        sweep(**{"features": 5, "hidden": 2, "sparsities": [0.5], **options})


def test_divergence_is_told():
    with pytest.raises(StateError, match="smaller rate"):
        sweep(5, 2, [0.5], steps=50, rate=1e18)


# ---------------------------------------------------------------- dictionaries at layers of a model


class Linear:
    """What is positive along given directions, and their sum; ``length`` scales the decoder up, activations down."""

    def __init__(self, rows: torch.Tensor, centre: torch.Tensor | float = 0.0, length: float = 1.0) -> None:
        self.rows, self.centre, self.length = rows, centre, length

    def encode(self, x):
        a = (x - self.centre) @ self.rows.T
        return a * (a > 1e-4) / self.length

    def decode(self, a):
        return a @ self.rows * self.length + self.centre


def signed(q: torch.Tensor) -> torch.Tensor:
    """Twice as many features as dimensions, whose ReLU gives every state back: each axis and its opposite."""
    return torch.cat([q, -q])


PLANTED = signed(rotation(D, seed=7).T)


@pytest.fixture(scope="module")
def planted() -> tuple[workbench.Model, torch.Tensor]:
    """A model whose layer 0 is made of few features of PLANTED each, and [token, feature] what they are."""
    module = tiny("gpt2")
    g = torch.Generator().manual_seed(5)
    axis = torch.stack([torch.randperm(D, generator=g)[:3] for _ in range(97)])
    side = torch.randint(0, 2, axis.shape, generator=g)
    # Features are of very different size, so that many are hardly in use.
    amount = (0.5 + torch.rand(axis.shape, generator=g)) * 4 * 0.85**axis
    activations = torch.zeros(97, 2 * D).scatter_(1, axis + D * side, amount)
    with torch.no_grad():
        module.transformer.wte.weight.copy_(activations @ PLANTED)
        module.transformer.wpe.weight.zero_()
    return workbench.load(module, name="planted"), activations


def read(model, dictionaries, ids=None, **options):
    passing = {k: options.pop(k) for k in ("batch_size", "padding_side", "positions") if k in options}
    reader = DictionaryFeatures(dictionaries, **{"draws": 50, **options})
    return workbench.read(model, ids or prompts(), reader, progress=False, **passing)


def test_planted_features_are_found_where_they_are(planted):
    model, activations = planted
    data = read(model, {0: Linear(PLANTED)}).data.isel(layer=0, dictionary=0)
    total = sum(activations[t] for row in prompts() for t in row)
    share = total[total > 0] / total.sum()
    f = float(torch.exp(-(share * share.log()).sum()))
    assert float(data["F"]) == pytest.approx(f, rel=1e-4) and float(data["psi"]) == pytest.approx(f / D, rel=1e-4)
    assert float(data["l0"]) == pytest.approx(3) and float(data["fvu"]) == pytest.approx(0, abs=1e-8)
    assert int(data["dead"]) == int((total == 0).sum())
    assert float(data["F_low"]) < f * 1.1 and float(data["F_high"]) > f
    # Turned states excite everything: the dictionary is about these states.
    assert float(data["psi_rotated"].min()) > 1.3 * float(data["psi_high"])


def test_a_dictionary_of_random_directions_is_seen_as_such(planted):
    rows = torch.nn.functional.normalize(torch.randn(200, D, generator=torch.Generator().manual_seed(0)), dim=1)
    data = read(planted[0], {0: Linear(rows)}, rotations=8).data.isel(layer=0, dictionary=0)
    assert float(data["psi"]) > 4  # superposition, were it not for the control
    low, high = (float(x) for x in data["psi_rotated"].quantile([0, 1], "draw"))
    assert 0.97 * low < float(data["psi"]) < 1.03 * high
    assert float(data["fvu"]) > 1 > float(data["fvu_pca"])


@pytest.fixture(scope="module")
def gpt2():
    return workbench.load(tiny("gpt2"), name="gpt2")


def test_the_stream_is_that_of_a_loop(gpt2):
    g = torch.Generator().manual_seed(2)
    one, two = Linear(torch.randn(50, D, generator=g) * 0.1, torch.randn(D, generator=g)), Linear(PLANTED)
    data = read(gpt2, {2: {"a": one, "b": two}, -1: {"a": one}}).data
    assert data["layer"].values.tolist() == [2, 4] and np.isnan(float(data["psi"].sel(layer=4, dictionary="b")))
    with torch.no_grad():
        states = [gpt2.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0] for ids in prompts()]
    x = torch.cat(states).double()
    for name, of in (("a", one), ("b", two)):
        own = data.sel(layer=2, dictionary=name)
        a = of.encode(x.float()).double()
        size = (a.abs().mean(0) * of.rows.norm(dim=1)).numpy()
        np.testing.assert_allclose(own["mean_activation"].values[: len(size)], size, rtol=1e-4, atol=1e-5)
        p = size[size > 0] / size.sum()
        assert float(own["F"]) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
        variance = (x - x.mean(0)).square().sum()
        assert float(own["fvu"]) == pytest.approx(float((x - of.decode(a.float())).square().sum() / variance), abs=1e-4)
        power = torch.linalg.svdvals(x - x.mean(0)) ** 2
        l0 = float((a > 0).sum(1).double().mean())
        assert float(own["l0"]) == pytest.approx(l0)
        assert float(own["fvu_pca"]) == pytest.approx(float(power[round(l0) :].sum() / power.sum()), abs=1e-5)
        assert int(own["token_count"]) == len(x) == sum(map(len, prompts()))


def test_units_of_activations_do_not_matter_and_documents_do(gpt2):
    one, scaled = (read(gpt2, {2: Linear(PLANTED, length=x)}).data for x in (1.0, 50.0))
    np.testing.assert_allclose(scaled["mean_activation"], one["mean_activation"], rtol=1e-4)
    raw = read(gpt2, {2: Linear(PLANTED, length=50.0)}, scale=False).data
    np.testing.assert_allclose(raw["mean_activation"] * 50, one["mean_activation"], rtol=1e-4)
    together = read(gpt2, {2: Linear(PLANTED)}, documents=["a"] * 9).data.isel(layer=0, dictionary=0)
    assert np.isnan(float(together["psi_low"])) and float(together["psi"]) == pytest.approx(one["psi"].item(), rel=1e-5)
    assert together.attrs["documents"] == 1


def test_directions_of_a_dictionary():
    rows = torch.randn(20, D)
    torch.testing.assert_close(directions(Linear(rows, torch.ones(D), 2.0), D), rows * 2, atol=1e-5, rtol=1e-5)


def test_a_reading_is_saved_and_drawn(gpt2, tmp_path):
    reading = read(gpt2, {1: [Linear(PLANTED), Linear(PLANTED[:40])], 3: [Linear(PLANTED), Linear(PLANTED[:40])]})
    again = workbench.open(reading.save(tmp_path / "features.nc"))
    assert again.data["dictionary"].values.tolist() == ["64", "40"]
    assert float(again.data["n_features"].sel(layer=1, dictionary="40")) == 40
    for over, lines in (("layer", ["64", "40"]), ("width", ["layer 1", "layer 3"])):
        (panel,) = figures.psi(again.data, over).plot.panels
        assert [line.name for line in panel.of(Line) if line.legend] == lines
    assert not figures.PSI.lacks(again.data)
    without = read(gpt2, {1: Linear(PLANTED)}, rotations=0)
    assert "psi_rotated" not in without.data
    without.save(tmp_path / "without.nc")
    figures.psi(without.data)


class Broken(Linear):
    def __init__(self, **methods) -> None:
        super().__init__(PLANTED)
        self.__dict__.update(methods)


class BatchTopK(Linear):
    def encode(self, x):
        a = super().encode(x)
        return a * (a >= a.flatten().topk(5 * len(x)).values[-1])


@pytest.mark.parametrize("given, match, error", [
    ({}, "names no dictionary", InputError),
    ({1: object()}, r"dictionary of layer 1 .* no encode", InputError),
    ({1: Linear}, "is a class", InputError),
    ({1: {"a": Linear(torch.ones(4, 9))}}, "dictionary 'a' of layer 1 cannot encode", InputError),
    ({1: Broken(encode=lambda x: x[0])}, "encode of", InputError),
    ({1: Broken(encode=lambda x: (x, x))}, "gave tuple", InputError),
    ({1: Broken(decode=lambda a: a)}, "decode of", InputError),
    ({1: Broken(encode=lambda x: x / 0)}, "NaN or infinity", StateError),
    ({1: Broken(decode=lambda a: (a @ PLANTED) ** 2)}, "scale=False", InputError),
    ({1: BatchTopK(PLANTED)}, "beside other states", InputError),
    ({1: Linear(PLANTED), -4: Linear(PLANTED)}, "twice", InputError),
    ({1: [Linear(PLANTED), Linear(PLANTED)]}, "Name them", InputError),
    ({1: []}, "no dictionary", InputError),
    ({9: Linear(PLANTED)}, "layer 9 does not exist", InputError),
])  # fmt: skip
def test_dictionaries_that_are_none(gpt2, given, match, error):
    with pytest.raises(error, match=match):
        read(gpt2, given)


def test_documents_must_name_every_prompt(gpt2):
    with pytest.raises(InputError, match="names 2 prompts"):
        read(gpt2, {1: Linear(PLANTED)}, documents=[0, 1])


# ---------------------------------------------------------------- figures


def test_figures_show_what_was_measured(trained):
    (cells,), (bars,) = (panel.marks for panel in figures.gram(trained, sparsity=0.6).plot.panels)
    w = trained["W"].values[0]
    np.testing.assert_allclose(cells.values, w.T @ w)
    np.testing.assert_array_equal(bars.values, trained["norm"][0])
    np.testing.assert_array_equal(bars.colours, trained["interference"][0])
    table = geometry(np.eye(4), draws=5)
    assert len(figures.gram(table).plot.panels) == 2 and not figures.GRAM.lacks(table.data)
    random, own, line, *shapes = figures.sharing(trained).plot.panels[0].marks
    np.testing.assert_allclose(line.x, [2.5, 10])
    np.testing.assert_array_equal(own.y, trained["dimensionality"].values[trained["norm"].values >= 0.5])
    assert np.all(random.x < own.x) and {rule.at for rule in shapes} == {*PLATEAUS.values()}
    assert not figures.SHARING.lacks(trained.data)
    with pytest.raises(InputError, match="sweep"):
        figures.sharing(table)
    with pytest.raises(InputError, match="too many"):
        figures.gram(geometry(np.ones((1025, 2)), draws=1))
