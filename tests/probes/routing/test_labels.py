"""Labels beside each other: lists of experts, classes, translations, and decoding, against loops and null models."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.spatial.distance import jensenshannon

import workbench
from probes.routing import RoutingTracer, measures
from probes.routing.measures import labels
from workbench.errors import InputError
from workbench.organisms.polyglot import twins
from workbench.reading import Reading
from workbench.stats import auroc, mantel


@pytest.fixture(scope="module")
def found():
    texts, labels = twins.documents(80, languages=True)
    tracer = RoutingTracer(labels, trace=True, scores=True)
    return workbench.read(twins.planted(), texts, tracer, progress=False)


@pytest.fixture(scope="module")
def nothing():
    texts, labels = twins.documents(80, languages=False)
    tracer = RoutingTracer(labels, trace=True, scores=True)
    return workbench.read(twins.null(), texts, tracer, progress=False)


def test_every_kind_of_usage_has_its_divergence_and_bits_are_nats(found):
    for of, name in (("count", "usage_count"), ("weight", "usage_weight"), ("probability", "usage_probability")):
        table = measures.divergence(found, of=of, draws=5)
        p = found.data[name].values[:, 1]
        p = p / p.sum(-1, keepdims=True)
        for a, b in itertools.combinations(range(4), 2):
            assert float(table["jsd"][a, b, 1]) == pytest.approx(jensenshannon(p[a], p[b]) ** 2, rel=1e-5)
        bits = measures.divergence(found, of=of, unit="bits", draws=5)
        for variable in ("jsd", "jsd_null", "jsd_floor", "mean_jsd"):
            np.testing.assert_allclose(bits[variable] * np.log(2), table[variable], atol=1e-12)
        assert (table.data.attrs["of"], bits["jsd_null"].attrs["units"]) == (of, "bits")
    with pytest.raises(InputError, match="unit='trits' is unknown"):
        measures.divergence(found, unit="trits")
    with pytest.raises(InputError, match="of='logits' is unknown"):
        measures.divergence(found, of="logits")


def test_lists_of_experts_and_classes_by_sets(found):
    count = found.data["usage_count"].values
    table = measures.agreement(found, top=3, draws=50)
    # An expert that is never used is on no list: in the last block a language has two.
    best = [[set(np.argsort(-c[b], kind="stable")[:3]) & set(np.flatnonzero(c[b])) for b in range(2)] for c in count]
    assert min(len(x[1]) for x in best) == 2
    for a, c in itertools.product(range(4), range(4)):
        for b in range(2):
            meet = len(best[a][b] & best[c][b])
            assert float(table["shared"][a, c, b]) == pytest.approx(meet / 3)
            assert float(table["jaccard"][a, c, b]) == pytest.approx(meet / len(best[a][b] | best[c][b]))
    assert table["shared_null"].values.tolist() == [3 / 8, 3 / 8]
    # A random list: the hypergeometric mean.
    assert scipy_stats.hypergeom(8, 3, 3).mean() / 3 == pytest.approx(3 / 8)
    assert (measures.agreement(found, top=2, draws=5)["shared"].values[np.triu_indices(4, 1)][:, 1] == 0).all()
    assert np.isnan(table["shared_p"].values[range(4), range(4)]).all()
    for measure in (measures.agreement, measures.classes):
        with pytest.raises(InputError, match="top=0"):
            measure(found, top=0)
    classes = measures.classes(found, top=2, draws=50)
    assert classes["exclusive"].values[:, 1].tolist() == [2, 2, 2, 2] and int(classes["universal"][1]) == 0
    for i, label in enumerate(found.data["label"].values):
        assert np.flatnonzero(classes["exclusivity"].values[i, 1] > 0.4).tolist() == twins.MAP[label]
    # Of short lists nearly as many are exclusive when labels mean nothing: the count alone says little.
    assert (classes["exclusive_null"].values[:, 1] > 1).all() and (classes["exclusive_p"].values[:, 1] > 0.1).all()


def test_translations_are_compared_sentence_by_sentence(found):
    groups = [i // 4 for i in range(80)]
    table = measures.parallel(found, groups, of="count", draws=100)
    share = found.data["document_count"].values.astype(float)
    share = share / share.sum(-1, keepdims=True)
    each = []
    for g in range(20):
        a, b = share[4 * g, 0], share[4 * g + 1, 0]
        spread = (scipy_stats.entropy(a) + scipy_stats.entropy(b)) / 2
        each.append(jensenshannon(a, b) ** 2 / spread)
    own = table.data.sel(label="L0", label_2="L1").isel(block=0)
    assert float(own["divergence"]) == pytest.approx(np.mean(each)) and int(own["pairs"]) == 20
    assert float(own["divergence_low"]) < np.mean(each) < float(own["divergence_high"])
    # These documents translate nothing: pairing them at random makes no difference.
    assert (table["divergence_p"].values[np.triu_indices(4, 1)] > 0.01).all()
    with pytest.raises(InputError, match="two documents of cluster 0"):
        measures.parallel(found, [0] * 80)
    with pytest.raises(InputError, match="clusters has 3 and there are 80"):
        measures.parallel(found, [1, 2, 3])
    with pytest.raises(InputError, match="no translations to compare"):
        measures.parallel(found, range(80))


def test_meaning_that_routes_is_seen_beside_random_pairings():
    """The same document under four labels routes alike, and others do not."""
    texts, _ = twins.documents(12, languages=False)
    texts, labels = [t for t in texts for _ in range(3)], ["x", "y", "z"] * 12
    reading = workbench.read(twins.null(), texts, RoutingTracer(labels, scores=True), progress=False)
    table = measures.parallel(reading, [i // 3 for i in range(36)], draws=99)
    upper = np.triu_indices(3, 1)
    assert np.abs(table["divergence"].values[upper]).max() < 1e-6
    assert (table["divergence_p"].values[upper] == 0.01).all() and (table["divergence_excess"].values[upper] < 0).all()


def scattered(seed: int, label: np.ndarray, like: Reading) -> Reading:
    """Documents of some lengths whose routing is noise that no label reaches."""
    rng, n = np.random.default_rng(seed), len(label)
    data = like.data.isel(prompt=slice(0, n)).copy(deep=True)
    data["document_count"][:] = rng.multinomial(100, rng.dirichlet(np.full(8, 5.0), size=(n, 2)))
    data["document_label_count"][:] = np.eye(4, dtype=int)[label] * rng.integers(50, 150, n)[:, None]
    return Reading(data)


def test_pairings_of_few_translations_keep_their_level(found):
    """Derangements leave out the very pairing that is tested: with five groups they find something in 11 %."""
    hits, n = np.zeros(2), 150
    for i in range(n):
        reading = scattered(i, np.arange(20) % 4, found)
        p = measures.parallel(reading, np.arange(20) // 4, of="count", draws=59, seed=i)["divergence_p"].values
        hits += (p[0, 1] <= 0.05) + (p[2, 3] <= 0.05)
    assert (hits / (2 * n) <= 0.085).all(), hits
    few = measures.parallel(scattered(0, np.arange(12) % 4, found), np.arange(12) // 4, of="count", draws=20)
    upper = np.triu_indices(4, 1)
    assert np.isnan(few["divergence_p"].values[upper]).all() and not np.isnan(few["divergence"].values[upper]).any()
    # The null is the mean over all pairs of other meanings.
    share = scattered(0, np.arange(12) % 4, found).data["document_count"].values[:, 1] / 100
    apart = [
        jensenshannon(share[4 * i], share[4 * j + 1]) ** 2 / np.mean(scipy_stats.entropy(share[[4 * i, 4 * j + 1]].T))
        for i, j in itertools.permutations(range(3), 2)
    ]
    assert float(few["divergence_null"][0, 1, 1]) == pytest.approx(np.mean(apart))


@pytest.mark.parametrize("groups", ["none", "translations", "sources"])
def test_decoding_noise_is_level_in_every_view(found, groups):
    """A mean of each fold's targets in the scores gave the held-out labels away, the other way round."""
    label = np.arange(40) // 2 % 4 if groups == "sources" else np.arange(40) % 4
    of = {"none": None, "translations": np.arange(40) // 4, "sources": np.arange(40) // 2}[groups]
    hits, macro, n = 0.0, 0.0, 100
    for i in range(n):
        table = measures.decode(scattered(i, label, found), clusters=of, draws=19, seed=i)
        hits = hits + (table["macro_p"].values <= 0.05)
        macro = macro + (table["macro"] - table["macro_null"]).values / n
    print(groups, dict(zip(table["view"].values.tolist(), np.asarray(hits).tolist(), strict=True)), macro)
    assert (np.asarray(hits) <= scipy_stats.binom.ppf(0.999, n, 0.05)).all() and (np.abs(macro) < 0.03).all()


@pytest.mark.parametrize("width", [3, 40])
def test_scores_are_ridge_regression_with_more_and_with_fewer_features_than_documents(width):
    rng = np.random.default_rng(0)
    features, targets, side = rng.random((30, width)), rng.random((30, 2)), np.arange(30) % 3
    scores = labels._ridge(features, side, 3, 0.7)(targets)
    for i in range(30):
        train = side != side[i]
        centre, scale = features[train].mean(0), features[train].std(0).mean()
        x, y = (features[train] - centre) / scale, targets[train] - targets[train].mean(0)
        # Least squares with the penalty as rows of its own.
        rows = np.vstack([x, np.sqrt(0.7) * np.eye(width)])
        weights = np.linalg.lstsq(rows, np.vstack([y, np.zeros((width, 2))]), rcond=None)[0]
        np.testing.assert_allclose(scores[i], (features[i] - centre) / scale @ weights, atol=1e-8)


def test_lift_is_of_either_side_and_ends_where_counts_do(found):
    table = measures.specialisation(found, draws=199)
    lift, count = table["lift"].values, found.data["usage_count"].values
    tokens = found.data["token_count"].values[:, None, None]
    expected = (count / tokens).mean(0) * tokens
    np.testing.assert_allclose(lift, np.log2((count + 0.5) / (expected + 0.5)))
    for label, own in twins.MAP.items():
        rest = [e for e in range(8) if e not in own]
        one = table.data.sel(label=label).isel(block=1)
        assert (one["lift"][own] > 1.5).all() and (one["lift"][rest] < -5).all() and lift.min() > -14
        assert (one["lift_p"] <= 0.05).all()
    null = table["token_share_null"].values.tolist()
    assert null == [2 / 8, 2 / 8]


def test_labels_are_decoded_where_they_route_and_nowhere_else(found, nothing):
    table = measures.decode(found, draws=30)
    macro, p = table["macro"].to_series(), table["macro_p"].to_series()
    assert macro["block 1"] > 0.99 and macro["all"] > 0.99 and p["all"] == pytest.approx(1 / 31)
    assert abs(macro["length"] - 0.5) < 0.15
    assert (table["auroc_low"] <= table["auroc"] + 1e-9).all() and table["macro_null"].values.mean() < 0.6
    null = measures.decode(nothing, draws=30)
    assert float(null["macro"].sel(view="all")) < 0.65 and float(null["macro_p"].sel(view="all")) > 0.02
    with pytest.raises(InputError, match="two folds are the least"):
        measures.decode(found, folds=1)
    with pytest.raises(InputError, match="5 folds need as many clusters"):
        measures.decode(found, clusters=[i % 2 for i in range(80)])


def test_documents_of_one_group_never_stand_on_both_sides():
    """Copies of a document give its label away, unless they are held out together."""
    texts, _ = twins.documents(20, languages=False, tokens=40)
    rng = np.random.default_rng(1)
    of = rng.integers(2, size=20)
    reading = workbench.read(
        twins.null(), [t for t in texts for _ in range(4)],
        RoutingTracer([str(of[i // 4]) for i in range(80)]), progress=False,
    )  # fmt: skip
    leaky, given, found = (
        float(measures.decode(reading, draws=5, strength=0.01, clusters=clusters)["macro"].sel(view="all"))
        for clusters in (False, [i // 4 for i in range(80)], None)
    )
    assert leaky > 0.95 and given < 0.8 and found == given


def test_area_under_the_curve_is_the_rank_sum():
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.standard_normal(60), 1), rng.random(60) < 0.3
    u = scipy_stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auroc(scores, positive) == pytest.approx(u / positive.sum() / (~positive).sum())
    assert np.isnan(auroc(scores, np.zeros(60, bool)))


def test_partial_mantel_is_the_partial_correlation():
    rng = np.random.default_rng(0)
    a, b, z = (rng.random((7, 7)) for _ in range(3))
    a, b, z = (x + x.T for x in (a, b, z))
    i, j = np.triu_indices(7, 1)
    left = [x[i, j] - np.polyval(np.polyfit(z[i, j], x[i, j], 1), z[i, j]) for x in (a, b)]
    r, p = mantel(a, b, given=z, draws=99)
    assert r == pytest.approx(scipy_stats.pearsonr(*left).statistic) and 0 < p <= 1
    assert np.isnan(mantel(a, b, draws=0)[1])


def test_an_unseen_label_is_named(found):
    with pytest.raises(InputError, match="no label 'xx' in the reading; there are L0, L1, L2, L3"):
        measures.Documents(found).number("xx")
    with pytest.raises(InputError, match="no label 'xx'"):
        found.figure("usage", label="xx")
    with pytest.raises(InputError, match="given says nothing of the labels L2, L3"):
        measures.overlap(found, given={"L0": 1, "L1": 1})


def test_translations_that_share_their_length_alone_are_not_near(found):
    """Routing follows a document's length and noise; translations are as long as each other and share nothing else."""
    hits, n, each = 0, 60, 40
    for i in range(n):
        rng = np.random.default_rng(i)
        length = np.repeat(rng.integers(4, 60, each), 2)
        data = found.data.isel(prompt=slice(0, 2 * each), label=slice(0, 2)).copy(deep=True)
        # Short documents use other experts than long ones.
        mean = np.linspace(8, 1, 8) + (length[:, None, None] / 60) * np.linspace(-7, 7, 8)
        share = np.stack([[rng.dirichlet(3 * mean[d, 0]) for _ in range(2)] for d in range(2 * each)])
        data["document_count"][:] = rng.multinomial(100, share)
        data["document_label_count"][:] = np.eye(2, dtype=int)[np.arange(2 * each) % 2] * length[:, None]
        table = measures.parallel(Reading(data), np.arange(2 * each) // 2, of="count", draws=99, seed=i)
        hits += (table["divergence_p"].values[0, 1] <= 0.05).mean()
    assert hits / n <= 0.12, hits / n  # pairings of any length find "meaning" in nearly all


def test_documents_of_unknown_tokens_are_no_translations(found):
    data = found.data.copy(deep=True)
    unknown = np.where(np.arange(80) % 4 == 2, 1.0, 0.1)  # every document of the third label
    data["document_unknown"] = (("prompt",), unknown)
    groups = [i // 4 for i in range(80)]
    whole = measures.parallel(found, groups, of="count", draws=20)
    with pytest.warns(UserWarning, match=r"20 of 80 documents are more than 20% unknown tokens.*\(L2 20\)"):
        table = measures.parallel(Reading(data), groups, of="count", draws=20)
    for name in ("divergence", "divergence_p", "divergence_null"):
        assert np.isnan(table[name].values[2]).all() and np.isnan(table[name].values[:, 2]).all()
        assert not np.isnan(table[name].values[0, 1]).any()
    np.testing.assert_array_equal(table["divergence"].values[0, 1], whole["divergence"].values[0, 1])
    data["document_unknown"][:] = 1.0
    with pytest.warns(UserWarning, match="80 of 80"), pytest.raises(InputError, match="no translations to compare"):
        measures.parallel(Reading(data), groups, of="count", draws=20)


def test_a_reading_and_a_trace_say_which_documents_are_unknown(tmp_path):
    import probes.routing
    from workbench.organisms import folder

    model = workbench.load(str(folder("polyglot")))
    known = next(word for word, i in model.tokenizer.get_vocab().items() if i == 20)
    texts = ["completely foreign words", f"{known} {known} foreign", f"{known} {known}"]
    with pytest.warns(UserWarning, match="2 of 3 prompts are more than 20% unknown tokens"):
        reading = workbench.read(model, texts, RoutingTracer(["x", "y", "z"]), progress=False)
        traced = probes.routing.trace(model, texts, tmp_path / "t", progress=False)
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    share = [np.mean(np.array(own) == model.tokenizer.unk_token_id) for own in ids]
    assert reading.data["document_unknown"].values.tolist() == pytest.approx(share) and share[0] >= 0.75
    assert traced.reading().data["document_unknown"].values.tolist() == pytest.approx(share)
