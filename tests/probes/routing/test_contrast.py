"""Labels tested against each other: against scipy, and against what documents of one kind differ by."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy import stats as scipy_stats
from scipy.sparse.csgraph import connected_components

import workbench
from probes.routing import RoutingTracer, measures, trace
from probes.routing.duplicates import near_duplicates, said
from probes.routing.measures import contrast
from probes.routing.measures.confounds import Confounded
from probes.routing.store import Layer
from probes.routing.tracer import assembled
from workbench.errors import InputError
from workbench.organisms.polyglot import twins
from workbench.reading import Reading

K = 2


def made(count: np.ndarray, label: np.ndarray, unknown: np.ndarray | None = None) -> Reading:
    """A reading of slots [document, expert], two for each token."""
    count, n = np.asarray(count)[:, None], len(label)
    layers = [Layer(0, "", count.shape[2], K)]
    variables, coords = assembled(
        [f"L{i}" for i in range(max(label) + 1)], np.arange(n), np.asarray(label), n, count.sum((1, 2)) // K, count,
        None, np.zeros((n, 1, 2), int), layers,
    )  # fmt: skip
    if unknown is not None:
        variables["document_unknown"] = (("prompt",), unknown)
    return Reading(xr.Dataset(variables, {**coords, "prompt": np.arange(n)}, {"model": "made"}))


def drawn(rng: np.random.Generator, tokens: np.ndarray, mean: np.ndarray, spread: float | None = None) -> np.ndarray:
    each = [mean if spread is None else rng.dirichlet(spread * mean) for _ in tokens]
    return np.array([rng.multinomial(K * n, p) for n, p in zip(tokens, each, strict=True)])


MEAN = np.array([0.3, 0.2, 0.15, 0.12, 0.1, 0.07, 0.04, 0.02])
QUIET = pytest.mark.filterwarnings("ignore")


# ---------------------------------------------------------------- near-duplicates


def test_near_duplicates_are_all_pairs_with_most_of_their_shingles_in_common():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        documents = []
        for _ in range(12):
            text = rng.integers(0, 6, 30)
            documents.append(text)
            for _ in range(2):
                other, some = text.copy(), rng.integers(30, size=rng.integers(3))
                other[some] = rng.integers(6, size=len(some))
                documents.append(other[rng.integers(3) :])
        sets = [{tuple(x[i : i + 5]) for i in range(len(x) - 4)} for x in documents]
        alike = np.array([[len(a & b) / len(a | b) >= 0.8 for b in sets] for a in sets])
        n, labels = connected_components(alike)
        found = near_duplicates(documents)
        assert len({*zip(found.tolist(), labels.tolist(), strict=True)}) == n == found.max() + 1 < 36
    assert near_duplicates([[1, 2], [3], [1, 2], [2, 1], []]).tolist() == [0, 1, 0, 2, 3]
    assert said(np.array([0, 0, 1, 2])) == "2 of 4 documents are near-duplicates: 3 clusters"
    assert said(np.arange(4)) == ""


def test_a_reading_and_a_trace_know_their_near_duplicates(tmp_path):
    texts, labels = twins.documents(12, languages=True, tokens=40)
    texts, labels = [*texts, *texts[:3], [*texts[4][:39], 5]], [*labels, *labels[:3], labels[4]]
    model, expected = twins.planted(), [*range(12), 0, 1, 2, 4]
    reading = workbench.read(model, texts, RoutingTracer(labels), progress=False)
    traced = trace(model, texts, tmp_path / "t", labels=labels, progress=False).reading()
    for own in (reading, traced):
        assert own.data["document_cluster"].values.tolist() == expected
    table = measures.usage(reading, draws=20)
    assert table.data.attrs["clusters"] == "8 of 16 documents are near-duplicates: 12 clusters"
    assert "clusters of documents" in table.data.attrs["interval"]
    older = Reading(reading.data.drop_vars("document_cluster"))
    assert measures.Documents(older).by_document.tolist() == expected
    # Counts alone: the same usage everywhere.
    bare = Reading(older.data.drop_vars(["input_id"]))
    assert len(set(measures.Documents(bare).by_document.tolist())) == 13
    assert measures.Documents(reading, clusters=False).design.n == 16
    assert measures.Documents(reading, clusters=[i % 5 for i in range(16)]).design.n == 5
    with pytest.raises(InputError, match="clusters has 2 and there are 16 documents"):
        measures.Documents(reading, clusters=[1, 2])


@QUIET
def test_documents_that_are_there_twice_say_no_more_than_once():
    rng, label = np.random.default_rng(0), np.repeat([0, 1], 8)
    count = drawn(rng, rng.integers(40, 90, 16), MEAN, 30.0)
    once, twice = made(count, label), made(np.repeat(count, 2, 0), np.repeat(label, 2))
    for measure, names in (
        (measures.divergence, ("jsd", "jsd_p", "jsd_low", "jsd_high", "mean_jsd_p")),
        (measures.information, ("information_p",)), (measures.specialisation, ("lift_p", "token_share_low")),
        (measures.select, ("gap_p",)), (measures.differences, ("difference_p",)),
        (measures.classes, ("exclusive_p",)), (measures.agreement, ("shared_p",)),
    ):  # fmt: skip
        a, b = (measure(reading, draws=99) for reading in (once, twice))
        for name in names:
            np.testing.assert_allclose(a[name].values, b[name].values, atol=1e-9, err_msg=name)
        assert b.data.attrs["clusters"] == "32 of 32 documents are near-duplicates: 16 clusters"
    alone = measures.divergence(twice, draws=99, clusters=False)
    assert float(alone["jsd_p"][0, 1, 0]) != float(measures.divergence(once, draws=99)["jsd_p"][0, 1, 0])


# ---------------------------------------------------------------- studentised


def test_of_two_experts_and_equal_lengths_the_statistic_is_welchs_t():
    """Both experts' variances are one number, which moderating leaves as it is."""
    rng = np.random.default_rng(1)
    first = rng.binomial(100, rng.beta(3, 7, 17))
    label = np.repeat([0, 1], [6, 11])
    documents = measures.Documents(made(np.stack([first, 100 - first], 1), label), clusters=False)
    own = contrast.Contrast.of(documents)
    t = scipy_stats.ttest_ind(first[label == 0], first[label == 1], equal_var=False).statistic
    now = own.shares(own.label[None])
    assert contrast.gap(now)[0, 0].tolist() == pytest.approx([abs(t)] * 2)
    assert contrast.apart(now)[0, 0] == pytest.approx(2 * t**2)
    assert np.abs(contrast.against_mean(now)[0, :, 0]).ravel().tolist() == pytest.approx([abs(t)] * 4)


def test_p_of_a_pair_is_scipys_permutation_test_of_welchs_t():
    rng, label = np.random.default_rng(2), np.repeat([0, 1], [4, 5])
    first = rng.binomial(100, rng.beta(3, 7, 9))

    def welch(x, y, axis):
        return np.abs(scipy_stats.ttest_ind(x, y, equal_var=False, axis=axis).statistic)

    every = scipy_stats.permutation_test(
        (first[:4], first[4:]), welch, alternative="greater", n_resamples=np.inf, vectorized=True
    ).pvalue
    reading = made(np.stack([first, 100 - first], 1), label)
    p = float(measures.divergence(reading, draws=9999)["jsd_p"][0, 1, 0])
    assert p == pytest.approx(every, abs=4 * np.sqrt(every * (1 - every) / 9999))
    assert float(measures.information(reading, draws=9999)["information_p"][0]) == pytest.approx(p, abs=0.02)


@QUIET
def test_a_pair_is_tested_among_its_own_documents():
    rng = np.random.default_rng(3)
    count = drawn(rng, rng.integers(40, 90, 16), MEAN, 30.0)
    far = drawn(rng, np.full(24, 200), MEAN[::-1], 30.0)
    label = np.repeat([0, 1], 8)
    alone = measures.divergence(made(count, label), draws=199)
    among = measures.divergence(made(np.vstack([count, far]), np.r_[label, np.repeat([2, 3, 4], 8)]), draws=199)
    for name in ("jsd", "jsd_p", "jsd_null", "jsd_excess"):
        np.testing.assert_array_equal(alone[name].values[0, 1], among[name].values[0, 1])
    assert float(among["mean_jsd_p"][0]) < 0.01


@QUIET
def test_length_that_goes_with_the_label_is_no_difference():
    """Five documents of 30 tokens against 50 of 300, alike: without studentising, nearly all are found."""
    hits, above, n = np.zeros(6), 0, 120
    label, tokens = np.repeat([0, 1], [5, 50]), np.repeat([30, 300], [5, 50])
    for i in range(n):
        rng = np.random.default_rng(i)
        reading = made(drawn(rng, tokens, rng.dirichlet(np.ones(8))), label)
        apart = measures.divergence(reading, draws=59, seed=i)
        above += float(apart["jsd_excess"][0, 1, 0]) > 0
        hits += [
            float(apart["mean_jsd_p"][0]) <= 0.05,
            measures.select(reading, draws=59, seed=i)["selected"].values.any(),
            np.nanmin(measures.specialisation(reading, draws=399, seed=i)["lift_q"]) <= 0.05,
            np.nanmin(measures.differences(reading, draws=59, seed=i)["difference_p"]) <= 0.05,
            float(measures.agreement(reading, draws=59, seed=i)["shared_p"][0, 1, 0]) <= 0.05,
            float(measures.classes(reading, draws=59, seed=i)["universal_p"][0]) <= 0.05,
        ]
    assert (hits <= scipy_stats.binom.ppf(0.999, n, 0.05)).all(), hits
    assert 0.3 < above / n < 0.7


# ---------------------------------------------------------------- as many tokens of each


def test_tokens_are_thinned_as_a_hypergeometric_draw_and_the_same_every_time():
    count = np.array([[60, 30, 10], [120, 60, 20], [4, 10, 6]])
    reading = made(count, np.array([0, 1, 1]))
    drawn = np.array([measures.Documents(reading, tokens=20, seed=i).count[:, 0] for i in range(300)])
    assert (drawn.sum(-1) == 40).all() and drawn.shape == (300, 2, 3)
    expected = scipy_stats.multivariate_hypergeom(count[0], 40)
    error = np.sqrt(np.diag(expected.cov()) / 300)
    assert (np.abs(drawn[:, 0].mean(0) - expected.mean()) < 4 * error).all()
    again = measures.Documents(reading, tokens=20, seed=7)
    np.testing.assert_array_equal(again.count[:, 0], drawn[7])
    assert again.kept == "20 tokens of each document (1 that have fewer are left out)"
    equal = measures.Documents(reading, tokens="equal")
    assert (equal.count.sum(-1) == 20).all() and equal.length.tolist() == [50, 100, 10]
    np.testing.assert_array_equal(equal.count[2, 0], count[2])
    for wrong, says in ((60, "No document of 'L0'"), (0, "tokens=0"), ("all", "tokens='all'")):
        with pytest.raises(InputError, match=says):
            measures.Documents(reading, tokens=wrong)


@QUIET
def test_thinned_documents_are_said_in_the_result():
    rng, label = np.random.default_rng(5), np.repeat([0, 1], 6)
    reading = made(drawn(rng, rng.integers(20, 90, 12), MEAN, 30.0), label)
    table = measures.divergence(reading, tokens="equal", draws=19)
    least = int(reading.data["document_label_count"].values.sum(1).min())
    assert table.data.attrs["tokens"] == f"{least} tokens of each document"
    assert table.provenance["settings"]["tokens"] == "equal"


# ---------------------------------------------------------------- what else labels differ in


def test_labels_without_a_length_in_common_have_no_p_where_routing_follows_length():
    rng, label = np.random.default_rng(6), np.repeat([0, 1], 20)
    tokens = np.r_[rng.integers(20, 60, 20), rng.integers(80, 240, 20)]
    slope = np.exp(np.outer(np.log(tokens / 70), np.linspace(-1, 1, 8))) * MEAN
    follows = np.array([rng.multinomial(K * n, p / p.sum()) for n, p in zip(tokens, slope, strict=True)])
    with pytest.warns(Confounded, match=r"1 of 1 pairs of labels \(L0 and L1: no length in common, and routing"):
        table = measures.divergence(made(follows, label), draws=99)
    assert np.isnan(table["jsd_p"].values).all() and np.isnan(table["mean_jsd_p"].values).all()
    assert not np.isnan(table["jsd_low"].values).any() and float(table["length_p"]) <= 0.05
    assert table["length"].values.tolist() == pytest.approx([tokens[:20].mean(), tokens[20:].mean()])
    for measure, name in (
        (measures.select, "gap_p"), (measures.specialisation, "lift_p"), (measures.information, "information_p"),
        (measures.differences, "difference_p"), (measures.agreement, "shared_p"), (measures.classes, "universal_p"),
    ):  # fmt: skip
        with pytest.warns(Confounded):
            assert np.isnan(measure(made(follows, label), draws=99)[name].values).all(), name
    # Lengths alone are no reason, but are said.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Confounded)
        plain = measures.divergence(made(drawn(rng, tokens, MEAN), label), draws=99)
    assert plain.data.attrs["confounded"] == "L0 and L1: no length in common" and float(plain["length_p"]) > 0.05
    assert not np.isnan(float(plain["mean_jsd_p"][0]))


def test_a_label_of_unknown_tokens_is_not_compared():
    rng, label = np.random.default_rng(7), np.repeat([0, 1, 2], 8)
    unknown = np.where(label == 2, 0.9, 0.05)
    reading = made(drawn(rng, rng.integers(40, 90, 24), MEAN), label, unknown)
    with pytest.warns(Confounded, match="2 of 3 pairs .*L0 and L2: no share of unknown tokens in common, and one"):
        table = measures.divergence(reading, draws=99)
    known = ~np.isnan(table["jsd_p"].values[..., 0])
    assert known.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert table["unknown"].values.tolist() == pytest.approx([0.05, 0.05, 0.9])


def test_spread_is_the_variance_over_that_of_independent_slots():
    rng, label = np.random.default_rng(8), np.repeat([0, 1], 40)
    tokens = np.full(80, 100)
    count = np.vstack([drawn(rng, tokens[:40], MEAN), drawn(rng, tokens[40:], MEAN, 20.0)])
    spread = measures.divergence(made(count, label), draws=19, clusters=False)["spread"].values
    # Dirichlet and multinomial: 1 + (n - 1) / (concentration + 1), of n slots.
    assert spread[0] == pytest.approx(1, abs=0.25) and spread[1] == pytest.approx(1 + 199 / 21, rel=0.25)


# ---------------------------------------------------------------- what can be significant


def test_too_few_draws_and_too_few_documents_are_said():
    rng = np.random.default_rng(9)
    label = np.arange(20) % 2
    reading = made(drawn(rng, np.full(20, 60), MEAN), label)
    with pytest.warns(contrast.TooFew, match=r"jsd_q: with draws=9, .* one of 1 can be is 0.1,.* Use draws=19"):
        measures.divergence(reading, draws=9)
    with pytest.warns(contrast.TooFew, match=r"lift_q: with draws=99, .* one of 16 can be is 0.16,.* Use draws=319"):
        measures.specialisation(reading, draws=99)
    with pytest.warns(contrast.TooFew, match="gap_p: with draws=9"):
        measures.select(reading, draws=9)
    few = made(drawn(rng, np.full(6, 60), MEAN), label[:6])
    with pytest.warns(contrast.TooFew, match=r"could have fallen in 10 ways.* is 0.1, above 0.05. Read more documents"):
        measures.divergence(few, draws=999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in (measures.divergence, measures.specialisation, measures.select):
            measure(reading)


def test_a_label_of_one_document_has_no_experts_of_its_own():
    rng = np.random.default_rng(10)
    count = drawn(rng, np.full(9, 60), MEAN)
    with pytest.raises(InputError, match="Label 'L1' has one document"):
        measures.select(made(count, np.r_[np.zeros(8, int), 1]))
    table = measures.divergence(made(count, np.r_[np.zeros(8, int), 1]), draws=19)
    assert np.isnan(table["jsd_p"].values).all() and not np.isnan(table["jsd"].values).any()


@QUIET
def test_a_difference_between_documents_that_do_not_vary_is_found():
    """The planted router sends every document of a language to its own two experts: no variance at all."""
    count = np.zeros((16, 8), int)
    for i, label in enumerate(np.arange(16) % 2):
        count[i, [2 * label, 2 * label + 1]] = 50 + i
    table = measures.select(made(count, np.arange(16) % 2), draws=999, clusters=False)
    picked = table["selected"].values[:, 0]
    assert [np.flatnonzero(x).tolist() for x in picked] == [[0, 1], [2, 3]]
