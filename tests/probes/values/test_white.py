"""White-box companions: against plain loops over states, planted changes, and runs in which nothing moves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from safetensors.torch import load_file, save_file
from scipy import stats
from test_tracker import Asked
from tokenizers import Tokenizer, models, pre_tokenizers

import workbench
from probes.values import figures, white
from probes.values.framings import Framing, letter_framings, scale_framings, word_framings
from probes.values.instruments import Pmf
from probes.values.tracker import ValueTracker
from probes.values.units import Units
from probes.values.white import WhiteBox
from probes.values.white.groups import Groups
from probes.values.white.measured import Chance, along, axes, kernels, measured
from probes.values.white.similarity import cka, shuffled
from workbench.errors import InputError, ReadingError
from workbench.figures.plot import Cells, Line, Points

NOUNS = ("dogs", "cats", "tea", "rain")
SAYS = tuple(
    (f"{text} {end}", key)
    for text in ("are", "are always", "can only be so very", "seem to all of us to be")
    for end, key in (("good", 1), ("bad", -1))
)
ITEMS = [Asked(f"{n}{k}", n, f"{n} {text}", key) for n in NOUNS for k, (text, key) in enumerate(SAYS)]
LETTERS = letter_framings()
BARE = Framing("bare", {"statement": "{text}"}, ("A", "B"), ("support", "oppose"))
"""Prompts end in words of the items, so that even embeddings differ where they are read."""


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    framings = (*LETTERS, *scale_framings(), *word_framings())
    texts = [x for f in framings for x in (*f.prompts.values(), *f.answers)] + [i.text for i in ITEMS] + ["Answer:"]
    words = sorted({w for text in texts for w, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)})
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<s>", "<unk>", *words])}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")


TOKENIZER = tokenizer()


def gpt2(seed: int = 0, layers: int = 2, *, tied: bool = False) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=layers, n_head=4, n_positions=64, tie_word_embeddings=tied
    )
    module = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def loaded(module: torch.nn.Module, name: str = "tiny") -> workbench.Model:
    return workbench.load(module, tokenizer=TOKENIZER, name=name)


def changed(change, seed: int = 0):
    """A checkpoint: a fresh model to which something was done."""

    def source():
        module = gpt2(seed)
        with torch.no_grad():
            change(module)
        return loaded(module)

    return source


def nothing(module) -> None: ...


def plain_states(module, ids: list[int]) -> tuple[np.ndarray, torch.Tensor]:
    """[layer, width] at the last token, from transformers itself, and the logits behind it."""
    seen = {}
    handle = module.transformer.h[-1].register_forward_hook(
        lambda m, a, out: seen.update(last=out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        out = module(input_ids=torch.tensor([ids]), output_hidden_states=True)
    handle.remove()
    states = [h[0, -1] for h in out.hidden_states[:-1]] + [seen["last"].reshape(-1, 32)[-1]]
    return torch.stack(states).numpy(), out.logits[0, -1].double()


# ---------------------------------------------------------------- tables of synthetic states


def table(states, topic, key, cluster=None, label=None, *, draws=99, seed=0, said=None, margin=None, only=None):
    """What a tracker would give of states [checkpoint, item, layer, width].  ``only``: one part of it, for speed."""
    states = np.asarray(states, np.float32)
    steps, n, layers, _ = states.shape
    cluster = [f"c{i}" for i in range(n)] if cluster is None else cluster
    key = np.asarray(key)
    label = key if label is None else np.asarray(label)
    groups = Groups(Units(list(topic), list(cluster)), label, key)
    rows = []
    for t in range(steps):
        if only is None:
            found = measured(states[t], states[0], groups, draws=draws, seed=seed)
        else:
            chance = Chance(groups, draws, seed)
            own = [only(kernels(states[t, :, l], states[0, :, l], groups), chance) for l in range(layers)]
            found = {
                "projection": (("item", "layer", "direction"), np.stack([x["projection"] for x in own], 1)),
                "null_projection": (
                    ("null", "direction", "draw", "layer", "topic_name"),
                    np.stack([x["null_projection"] for x in own], 3),
                ),
            }
        rows.append(xr.Dataset(found).assign_coords(axes(groups)))
    said = np.zeros((steps, n)) if said is None else said
    margin = np.zeros((steps, n, 1, layers)) if margin is None else margin
    p = np.stack([0.5 + said / 2, 0 * said, 0.5 - said / 2, 0 * said], -1)[:, :, None]
    data = xr.concat(rows, "checkpoint", data_vars="all", coords="minimal", compat="override", join="exact")
    return data.assign_coords(
        checkpoint=10 * np.arange(steps), layer=np.arange(layers), item=[f"i{i}" for i in range(n)], framing=["f"],
        stance=["support", "neutral", "oppose", "uncommitted"],
    ).assign(
        margin=(("checkpoint", "item", "framing", "layer"), margin), p=(("checkpoint", "item", "framing", "stance"), p),
        label=(("checkpoint", "item"), np.tile(label, (steps, 1))), topic=("item", np.array(topic, object)),
        polarity=("item", key), cluster=("item", np.array(cluster, object)),
        baseline=("checkpoint", ["w0"] * steps), fingerprint=("checkpoint", [f"w{t}" for t in range(steps)]),
    )  # fmt: skip


def untidy(seed=0, width=7, layers=2, steps=2):
    """Three topics (one with a single label), clusters of two, of both labels, in two topics, and an item unkeyed."""
    rng = np.random.default_rng(seed)
    topic = ["x"] * 9 + ["y"] * 8 + ["z"] * 3
    key = [1, 1, 1, -1, -1, 0, 1, -1, 1, 1, 1, -1, -1, 1, -1, -1, -1, 1, 1, 1]
    cluster = "xa xa xb xc xd xf xe xe both ya yb yc yc yd both ye ye zl zm zn".split()
    states = rng.standard_normal((steps, 20, layers, width)) + 3
    return states, topic, np.array(key), cluster


def spans(topic, key, cluster):
    """{topic: {side: {cluster: items}}}"""
    found: dict = {}
    for i, (t, k, c) in enumerate(zip(topic, key, cluster, strict=True)):
        if k:
            found.setdefault(t, {1: {}, -1: {}})[k].setdefault(c, []).append(i)
    return {t: own for t, own in found.items() if min(len(own[1]), len(own[-1])) > 1}


def plain_directions(states, topic, key, cluster, without=None):
    """{topic: (direction, share)} of states [item, width], by loops, without a cluster."""
    found = {}
    for t, own in spans(topic, key, cluster).items():
        sides = {
            s: [np.mean([states[i] for i in items], 0) for c, items in own[s].items() if c != without] for s in (1, -1)
        }
        n = {s: len(own[s]) for s in (1, -1)}
        found[t] = np.mean(sides[1], 0) - np.mean(sides[-1], 0), n[1] * n[-1] / (n[1] + n[-1])
    total = sum(share for _, share in found.values())
    return {t: (w, share / total) for t, (w, share) in found.items()}


def pooled(directions):
    return sum(share * w for w, share in directions.values())


# ---------------------------------------------------------------- states, margins


@pytest.mark.parametrize("tied", [False, True])
def test_states_and_margins_are_those_of_plain_passes(tied):
    module = gpt2(tied=tied)
    model, framings = loaded(module), (*LETTERS, *scale_framings())
    box = WhiteBox(framings, draws=20)
    found = box.read(model, ITEMS[:6], progress=False, batch_size=4).data
    assert box._base is not None
    for i, item in enumerate(ITEMS[:6]):
        mean = []
        for f, framing in enumerate(framings):
            ids = TOKENIZER(framing.shown(item) + "\nAnswer:")["input_ids"]
            states, logits = plain_states(module, ids)
            mean.append(states)
            own: dict = {"support": [], "neutral": [], "oppose": []}
            for answer, stance in zip(framing.answers, framing.stances, strict=True):
                own[stance].append(TOKENIZER.convert_tokens_to_ids(answer))
            for l in range(3):
                lens = logits
                if l < 2:
                    with torch.no_grad():
                        lens = module.lm_head(module.transformer.ln_f(torch.from_numpy(states[l]))).double()
                margin = lens[own["support"]].logsumexp(0) - lens[own["oppose"]].logsumexp(0)
                assert float(found["margin"][i, f, l]) == pytest.approx(float(margin), abs=1e-4)
            p = logits.softmax(-1)
            for stance, tokens in own.items():
                assert float(found["p"][i, f].sel(stance=stance)) == pytest.approx(float(p[tokens].sum()), abs=1e-6)
        np.testing.assert_allclose(box._base["states"].values[i], np.mean(mean, 0), atol=1e-4)


def test_it_is_an_instrument_whose_p_is_that_of_pmf(tmp_path):
    asked = [Pmf(LETTERS), WhiteBox(LETTERS, draws=20)]
    tracker = ValueTracker(tmp_path, ITEMS, asked).run({0: changed(nothing), 5: changed(nothing, 1)}, progress=False)
    np.testing.assert_allclose(tracker.readings("whitebox")["p"], tracker.readings("pmf")["p"], atol=1e-6)
    assert tracker.table("whitebox")["margin"].dims == ("checkpoint", "item", "framing", "layer")


def test_batches_and_chosen_layers_change_nothing():
    model = loaded(gpt2())
    whole = WhiteBox(LETTERS, draws=20).read(model, ITEMS, progress=False).data
    parts = WhiteBox(LETTERS, [-2], draws=20).read(model, ITEMS, progress=False, batch_size=3).data
    assert parts["layer"].values.tolist() == [1, 2]
    for name in ("margin", "projection", "null_projection", "cka"):
        np.testing.assert_allclose(parts[name], whole[name].sel(layer=[1, 2]), atol=2e-4)


def test_answers_that_no_layer_can_be_asked_for_are_refused():
    model = loaded(gpt2())
    long = Framing("long", {"statement": "{text}"}, ("strongly agree", "B"), ("support", "oppose"))
    with pytest.raises(InputError, match="'long' cannot be read inside"):
        WhiteBox([long]).read(model, ITEMS, progress=False)
    one = Framing("one sided", {"statement": "{text}"}, ("A", "B"), ("support", "neutral"))
    with pytest.raises(InputError, match="no answer that opposes"):
        WhiteBox([one]).read(model, ITEMS, progress=False)
    with pytest.raises(InputError, match="label for 'nobody'"):
        WhiteBox([BARE], labels={"nobody": 1}).read(model, ITEMS, progress=False)
    with pytest.raises(InputError, match="Labels are"):
        WhiteBox([BARE], labels={"dogs0": 2})


# ---------------------------------------------------------------- directions, by loops


def test_projections_and_scores_are_those_of_loops_that_leave_a_cluster_out():
    states, topic, key, cluster = untidy()
    data = table(states, topic, key, cluster, draws=5)
    usable = spans(topic, key, cluster)
    assert sorted(usable) == ["x", "y"]

    def others(x, i):  # mean of the topic's groups without the item's cluster
        own = {(topic[j], cluster[j], key[j]) for j in range(20) if topic[j] == topic[i] and key[j]}
        own = [g for g in own if g[1] != cluster[i]]
        means = [np.mean([x[j] for j in range(20) if (topic[j], cluster[j], key[j]) == g], 0) for g in own]
        return np.mean(means, 0)

    for l in range(2):
        h0, ht = states[0, :, l], states[1, :, l]
        whole = {k: plain_directions(h, topic, key, cluster) for k, h in (("fixed", h0), ("refit", ht))}
        found = {name: np.full((20, 2), np.nan) for name in ("before", "after", "fixed", "refit")}
        for i in range(20):
            for kind, h in (("fixed", h0), ("refit", ht)):
                left = plain_directions(h, topic, key, cluster, without=cluster[i])
                options = [(pooled(left), pooled(whole[kind]))]
                options += [(left[topic[i]][0], whole[kind][topic[i]][0])] if topic[i] in usable else []
                for d, (w, full) in enumerate(options):
                    w = w / np.linalg.norm(full)
                    found[kind][i, d] = (ht[i] - others(ht, i)) @ w
                    if kind == "fixed":
                        found["before"][i, d] = (h0[i] - others(h0, i)) @ w
                        found["after"][i, d] = (ht[i] - others(h0, i)) @ w
        for kind in ("fixed", "refit"):
            np.testing.assert_allclose(data[f"{kind}_score"][1, :, l], found[kind], atol=1e-4)
        for d in range(2):
            cells = [
                [found["before"][i, d] for i in range(20) if topic[i] == t and key[i] == s]
                for t in "xyz" for s in (1, -1)
            ]  # fmt: skip
            for i in range(20):
                own = cells if d == 0 else [cells[2 * "xyz".index(topic[i]) + k] for k in (0, 1)]
                square = sum(np.sum((np.array(c) - np.mean(c)) ** 2) for c in own if len(c))
                sd = np.sqrt(square / sum(len(c) - 1 for c in own if len(c)))
                for t, name in enumerate(("before", "after")):
                    np.testing.assert_allclose(data["projection"][t, i, l, d], found[name][i, d] / sd, atol=1e-4)


def test_drift_of_projections_is_the_mean_over_clusters_and_its_null_the_same_with_other_labels():
    states, topic, key, cluster = untidy(steps=3)
    data = table(states, topic, key, cluster, draws=40)
    found = white.projections(data, draws=50).data
    x = data["projection"].values
    for t, d in itertools.product((1, 2), (0, 1)):
        for name in "xyz":
            means: dict = {}
            for i in range(20):
                if topic[i] == name and key[i]:
                    means.setdefault(cluster[i], []).append(key[i] * (x[t, i, 0, d] - x[0, i, 0, d]))
            value = np.mean([np.mean(v) for v in means.values()])
            cell = found["D"].isel(checkpoint=t, direction=d, layer=0).sel(topic=name)
            np.testing.assert_allclose(cell, value, atol=1e-5)
    # A null draw is what the table of permuted labels would be.
    groups = Groups(Units(topic, cluster), key, key)
    labels, keys = groups.shuffled(40, 0)
    np.testing.assert_array_equal(labels, keys)  # together: a permuted key beside a true label would be no null
    for own in groups.own:
        assert (np.sort(labels[:, own], 1) == np.sort(groups.label[own])).all()
    k = next(k for k in range(40) if (labels[k] != groups.label).any())
    mixed = table(states, topic, keys[k][groups.group], cluster, labels[k][groups.group], draws=5)
    if spans(topic, labels[k][groups.group], cluster).keys() == spans(topic, key, cluster).keys():
        own = white.projections(mixed, draws=20)["D"].sel(topic=["x", "y"])
        null = data["null_projection"].isel(null=0, draw=k).rename(topic_name="topic").sel(topic=["x", "y"])
        np.testing.assert_allclose((null - null[0]).transpose(*own.dims), own, atol=1e-4)


def test_prompts_that_only_make_the_direction_do_not_change_places_with_those_that_are_projected():
    label, key = np.array([1, -1] * 6 + [0] * 6), np.array([0] * 12 + [1] * 6)
    groups = Groups(Units(["t"] * 18, [str(i) for i in range(18)]), label, key)
    labels, keys = groups.shuffled(50, 0)
    assert (
        (keys == groups.key).all() and ((labels == 0) == (groups.label == 0)).all() and (labels != groups.label).any()
    )


def test_gaussian_directions_have_the_covariance_of_the_states():
    rng = np.random.default_rng(0)
    states = (rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + 4)[:, None]
    topic, key = ["a"] * 30 + ["b"] * 30, np.tile([1, -1], 30)
    groups = Groups(Units(topic, [str(i) for i in range(60)]), key, key)
    chance = Chance(groups, 20000, 0)
    within = np.concatenate([states[:30, 0] - states[:30, 0].mean(0), states[30:, 0] - states[30:, 0].mean(0)])
    made = chance.random[0] @ (groups.average @ states[:, 0])
    covariance = within.T @ within
    assert np.abs(np.cov(made.T) - covariance).max() < 0.05 * np.abs(covariance).max()
    assert np.abs(made.mean(0)).max() < 0.05 * np.sqrt(covariance.max())


def test_fair_products_are_the_mean_over_all_halves_and_the_ceiling_is_spearman_brown():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 8, 6)) + 0.7 * np.array([1, 1, 1, 1, -1, -1, -1, -1])[:, None]
    key = np.array([1] * 4 + [-1] * 4)
    data = table(np.stack([a, b])[:, :, None], ["t"] * 8, key, draws=5)
    turn = data["turn"].isel(again=0, layer=0).sel(fitted="t")
    for name, x, y in (("across", b, a), ("now", b, b), ("baseline", a, a)):
        halves = []
        for plus in itertools.combinations(range(4), 2):
            for minus in itertools.combinations(range(4, 8), 2):
                first = x[list(plus)].mean(0) - x[list(minus)].mean(0)
                rest = [i for i in range(8) if i not in plus + minus]
                halves.append(first @ (y[rest[:2]].mean(0) - y[rest[2:]].mean(0)))
        at = turn.isel(checkpoint=1) if name != "baseline" else turn.isel(checkpoint=0)
        np.testing.assert_allclose(at.sel(product=f"{name} fair"), np.mean(halves), atol=1e-5)
        full = (x[:4].mean(0) - x[4:].mean(0)) @ (y[:4].mean(0) - y[4:].mean(0))
        np.testing.assert_allclose(at.sel(product=name), full, atol=1e-5)
    # With many items and halves of random clusters: 2 r / (1 + r) of the mean cosine of halves.
    key = np.tile([1, -1], 100)
    x = rng.standard_normal((200, 40)) + 0.15 * key[:, None] * np.eye(40)[0] * 4
    cosines = []
    for _ in range(300):
        order = np.concatenate([rng.permutation(np.flatnonzero(key == s)).reshape(2, 50) for s in (1, -1)], 1)
        w = [x[half[:50]].mean(0) - x[half[50:]].mean(0) for half in order]
        cosines.append(w[0] @ w[1] / np.linalg.norm(w[0]) / np.linalg.norm(w[1]))
    r = np.mean(cosines)
    found = white.directions(table(x[None, :, None], ["t"] * 200, key, draws=20), draws=20).data
    assert float(found["ceiling"].sel(fitted="t").isel(checkpoint=0, layer=0)) == pytest.approx(
        2 * r / (1 + r), abs=0.01
    )


def test_fair_products_with_clusters_in_two_topics_and_of_both_labels():
    states, topic, key, cluster = untidy()
    turn = table(states, topic, key, cluster, draws=3)["turn"].isel(again=0, layer=0, checkpoint=1)
    # Where pairs are left out, a mean that all states share does not cancel: the baseline's is taken away.
    a, b = (x - states[0, :, 0].mean(0) for x in (states[1, :, 0], states[0, :, 0]))
    own = spans(topic, key, cluster)
    share = {t: s for t, (_, s) in plain_directions(b, topic, key, cluster).items()}
    total = 0.0
    for t, u in itertools.product(own, own):
        value = 0.0
        for s, r in itertools.product((1, -1), (1, -1)):
            pairs = [
                np.mean([a[i] for i in left], 0) @ np.mean([b[j] for j in right], 0)
                for c, left in own[t][s].items() for d, right in own[u][r].items() if c != d
            ]  # fmt: skip
            value += s * r * np.mean(pairs)
        if t == u:
            centred = turn.sel(fitted=t, product="across fair")
            np.testing.assert_allclose(centred, value, atol=1e-3)
        total += share[t] * share[u] * value
    np.testing.assert_allclose(turn.sel(fitted="pooled", product="across fair"), total, atol=1e-3)


def test_auc_is_a_count_of_pairs_of_a_topic():
    states, topic, key, cluster = untidy()
    data = table(states, topic, key, cluster, draws=5)
    found = white.directions(data, draws=50).data
    for kind, d, name in itertools.product(("fixed", "refit"), (0, 1), "xy"):
        score = data[f"{kind}_score"].values[1, :, 0, d]
        top = bottom = 0.0
        for i, j in itertools.product(range(20), range(20)):
            if topic[i] == topic[j] == name and key[i] == 1 and key[j] == -1:
                n = [
                    sum(cluster[k] == cluster[m] and topic[k] == name and key[k] == key[m] for k in range(20))
                    for m in (i, j)
                ]
                top += (score[i] > score[j]) / n[0] / n[1]
                bottom += 1 / n[0] / n[1]
        cell = found["auc"].sel(kind=kind, topic=name).isel(checkpoint=1, direction=d, layer=0)
        assert float(cell) == pytest.approx(top / bottom)
    assert found["auc"].sel(topic="z").isnull().all()


def test_left_out_scores_of_noise_lean_to_no_side():
    """Leaving items out makes scores of noise lean, unless the centre is left out of, too; many dimensions show it."""
    rng = np.random.default_rng(2)
    key = np.array([1] * 6 + [-1] * 10)
    aucs = []
    for seed in range(60):
        x = rng.standard_normal((1, 16, 1, 300)) + 5
        found = white.directions(table(x, ["t"] * 16, key, draws=2, seed=seed), draws=2).data
        aucs.append(float(found["auc"].sel(kind="fixed", direction="own topic")[0, 0, 0]))
    assert abs(np.mean(aucs) - 0.5) < 2.6 * np.std(aucs) / np.sqrt(60)


# ---------------------------------------------------------------- similarity


def test_cka_is_the_published_formula():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((9, 5)) + 2, rng.standard_normal((9, 4))
    y[:, 0] += x[:, 0]
    a, b = x - x.mean(0), y - y.mean(0)
    plain = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka(x @ x.T, y @ y.T)[0] == pytest.approx(plain)

    def unbiased(k, l):  # HSIC_1 as a mean over ordered quadruples of different rows
        four = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(9), 4)]
        return np.mean(four)

    k, l = x @ x.T, y @ y.T
    expected = unbiased(k, l) / np.sqrt(unbiased(k, k) * unbiased(l, l))
    assert cka(k, l, debiased=True)[0] == pytest.approx(expected)
    order = rng.permutation(9)
    for got, debiased in zip(shuffled(k, l, order[None]), (False, True), strict=True):
        assert got[0] == pytest.approx(cka(k, l[np.ix_(order, order)], debiased=debiased)[0])
    half = np.array([[1, 1, 0, 1, 1, 0, 1, 0, 0]])
    some = np.flatnonzero(half[0])
    for debiased in (False, True):
        inside = cka(k[np.ix_(some, some)], l[np.ix_(some, some)], debiased=debiased)[0]
        assert cka(k, l, half, debiased=debiased)[0] == pytest.approx(inside)


def test_unrelated_states_are_alike_by_cka_and_unlike_by_the_debiased():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 40, 1, 400))
    found = white.similarity(table(x, ["t"] * 40, np.tile([1, -1], 20), draws=3)).data.isel(checkpoint=1, layer=0)
    assert found["cka"] > 0.8 and abs(found["cka_debiased"]) < 0.1
    assert found["cka_p"] > 0.02 and found["cka_null"] > 0.8
    assert found["cka_debiased_low"] < 0 < found["cka_debiased_high"]


# ---------------------------------------------------------------- planted changes of a model


def turned_by(degrees):
    """Embeddings turned in every plane (0, 1), (2, 3), ...: w . Rw = cos |w|^2 for any w."""
    a = np.deg2rad(degrees)
    turn = torch.block_diag(*[torch.tensor([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])] * 16).float()

    def change(module):
        for table in (module.transformer.wte, module.transformer.wpe):
            table.weight.copy_(table.weight @ turn)

    return change


def test_a_planted_rotation_is_found_with_its_angle(tmp_path):
    box = WhiteBox([BARE], [0], draws=100, lead="")
    series = {0: changed(nothing), 1: changed(turned_by(40)), 2: changed(turned_by(90))}
    tracker = ValueTracker(tmp_path, ITEMS, [box]).run(series, progress=False)
    found = white.directions(tracker.table().data, draws=50).data.sel(layer=0, fitted="pooled")
    np.testing.assert_allclose(found["cosine"], np.cos(np.deg2rad([0, 40, 90])), atol=1e-3)
    np.testing.assert_allclose(found["rotation"], np.cos(np.deg2rad([0, 40, 90])), atol=1e-3)
    assert (found["rotation_low"] <= found["rotation"] + 1e-6).all()
    np.testing.assert_allclose(white.similarity(tracker.table().data)["cka"].sel(layer=0), 1, atol=1e-5)
    refit = white.directions(tracker.table().data, draws=50)["mean_auc"].sel(layer=0, kind="refit", direction="pooled")
    np.testing.assert_allclose(refit, refit[0])


def test_a_planted_shift_is_found_with_its_size_and_place(tmp_path):
    """A constant added to what block 0 writes: layers 1 and on move, by its product with the direction."""
    shift = torch.randn(32, generator=torch.Generator().manual_seed(5))
    items = [Asked(i.item_id, i.topic, i.text, 1) for i in ITEMS]
    box = WhiteBox([BARE], labels={i.item_id: i.polarity for i in ITEMS}, draws=99, lead="")
    series = {0: changed(nothing), 7: changed(lambda m: m.transformer.h[0].mlp.c_proj.bias.add_(shift))}
    # The loops below leave out one item; these statements say nearly the same, and would share clusters.
    tracker = ValueTracker(tmp_path, items, [box], duplicates=None).run(series, progress=False)
    found = white.projections(tracker.table().data, draws=200).data.sel(checkpoint=7, direction="pooled")
    np.testing.assert_allclose(found["D"].sel(layer=0), 0, atol=1e-6)
    module = gpt2()
    states = np.stack([plain_states(module, TOKENIZER(i.text)["input_ids"])[0][1] for i in items])
    topic, label, own = [i.topic for i in items], [i.polarity for i in ITEMS], [i.item_id for i in items]
    full = np.linalg.norm(pooled(plain_directions(states, topic, label, own)))
    before, moved = [], []
    for i in range(len(items)):
        w = pooled(plain_directions(states, topic, label, own, without=own[i])) / full
        rest = np.mean([states[j] for j in range(len(items)) if topic[j] == topic[i] and j != i], 0)
        before.append((states[i] - rest) @ w)
        moved.append(float(shift.numpy() @ w))
    before = np.array(before).reshape(4, 8)
    sd = np.sqrt(((before - before.mean(1, keepdims=True)) ** 2).sum() / 28)
    np.testing.assert_allclose(found["D"].sel(layer=1), np.reshape(moved, (4, 8)).mean(1) / sd, rtol=2e-3)
    # All items move alike here: that clusters agree is beyond chance, and that this direction is special is not.
    assert float(found["D_p"].sel(layer=1).max()) < 0.05


def test_where_nothing_changes_nothing_is_found(tmp_path):
    box = WhiteBox([BARE, *LETTERS], draws=60, lead="")
    tracker = ValueTracker(tmp_path, ITEMS, [box]).run({t: changed(nothing) for t in (0, 3, 9, 20)}, progress=False)
    data = tracker.table().data
    moved = white.projections(data, draws=100).data
    assert (moved["D"].fillna(0) == 0).all() and (moved["D_low"].fillna(0) == 0).all()
    for name in ("D_p", "D_null_p", "D_battery_p", "overall_battery_p"):
        assert (moved[name].fillna(1) == 1).all() and moved[name].notnull().any()
    turned = white.directions(data, draws=50).data
    sure = turned["rotation"].notnull()
    assert sure.any() and np.allclose(turned["rotation"].values[sure.values], 1, atol=1e-5)
    assert (turned["auc_lost"].fillna(0) == 0).all()
    alike = white.similarity(data).data
    assert np.allclose(alike["cka"].values, 1) and np.allclose(alike["cka_debiased"].values, 1)
    assert np.allclose(alike["cka_low"].values, 1)
    table = white.margins(data, draws=100).data
    assert (table["M"].fillna(0) == 0).all() and (table["M_p"].fillna(1) == 1).all() and table["M_p"].notnull().any()
    with pytest.raises(InputError, match="there is 0 alone"):
        white.projections(data.isel(checkpoint=[0]))


def test_a_habit_of_saying_one_letter_is_no_stance(tmp_path):
    word = TOKENIZER.convert_tokens_to_ids("A")

    def habit(module):  # the letter's row, along the mean of what the final norm gives
        module.lm_head.weight[word] += module.transformer.ln_f.bias * 3

    tracker = ValueTracker(tmp_path, ITEMS, [WhiteBox(LETTERS, draws=20)])
    data = tracker.run({0: changed(nothing), 1: changed(habit)}, progress=False).table().data
    single = data["margin"].diff("checkpoint").isel(layer=-1)
    assert float(np.abs(single).max()) > 1
    moved = white.margins(data, draws=50)["M"].isel(layer=-1, checkpoint=1)
    assert float(np.abs(moved).max()) < 0.5 * float(np.abs(single).max())
    first = white.margins(data, draws=50).data
    # The state of layer 0 is that of the word before the answer: the same in every prompt, at its own position.
    assert float(np.abs(first["margin"].sel(layer=0)).max()) < 1.0


# ---------------------------------------------------------------- margins


def test_margins_depth_and_their_tests_where_the_truth_is_known():
    rng = np.random.default_rng(6)
    topic, key = np.repeat(["early", "late", "none"], 20).tolist(), np.tile([1, -1], 30)
    curve = {"early": [0, 1, 1, 2, 2], "late": [-1, -1, -1, -2, 2], "none": [1, -1, 0, 1, 0]}
    x = np.array([curve[t] for t in topic], float)[None, :, None] * key[None, :, None, None]
    margin = np.repeat(x, 3, 0) + 0.3 * rng.standard_normal((3, 60, 2, 5))
    margin[2, :20] += key[:20, None, None] * np.array([0, 0, 0, -4.0, -4.0])  # "early" changes its mind
    margin[..., 0] = key[None, :, None] * np.array([3.0, -3.0])  # layer 0: framings cancel, to rounding
    margin[:, :, 0, 0] += 1e-7 * key
    data = table(rng.standard_normal((3, 60, 5, 3)), topic, key, margin=margin[:, :, :1], draws=3)
    data = (
        data.drop_vars("margin")
        .drop_dims("framing")
        .assign(margin=(("checkpoint", "item", "framing", "layer"), margin))
    )
    found = white.margins(data, draws=400).data
    keyed = (margin.mean(2) * key[None, :, None]).reshape(3, 3, 20, 5).mean(2)
    np.testing.assert_allclose(found["margin"], keyed, atol=1e-6)
    assert (found["margin"].sel(layer=0) == 0).all() and (found["margin_p"].sel(layer=0) == 1).all()
    depth = found["depth"].sel(topic=["early", "late"]).values.tolist()
    assert depth == [[1, 4], [1, 4], [3, 4]]
    assert found["depth"].sel(topic="none").isnull().all()
    assert (found["depth_low"].sel(topic="late") == 4).all()
    assert float(found["M_p"].sel(checkpoint=20, topic="early", layer=[3, 4]).max()) <= 0.05
    still = found["M_p"].sel(checkpoint=10).values
    assert (still > 0.05).all() and found["M"].isel(checkpoint=0).values.max() == 0
    low, high = found["margin_low"].sel(topic="early", layer=3), found["margin_high"].sel(topic="early", layer=3)
    half = stats.t.ppf(0.975, 19) * (margin.mean(2)[0, :20, 3] * key[:20]).std(ddof=1) / np.sqrt(20)
    assert float(high[0] - low[0]) == pytest.approx(2 * half, rel=0.2)


# ---------------------------------------------------------------- what is more than chance


def drifting(seed, *, steps=2, items=32, layers=3, width=12, apart=0.0, trend=0.3, walk=0.1, decay=0.5):
    """States of two topics that all drift: one common way, each item's own, and at random; labels have no part in it.

    ``apart``: how far labels are apart from the start; ``decay``: how fast the SD of dimensions falls.
    """
    rng = np.random.default_rng([seed, 5])
    topic, key = np.repeat(["a", "b"], items // 2).tolist(), np.tile([1, -1], items // 2)
    spectrum = (1.0 + np.arange(width)) ** -decay
    base = rng.standard_normal((items, layers, width)) * spectrum
    base += 2 * rng.standard_normal((2, layers, width)).repeat(items // 2, 0)
    base += apart * key[:, None, None] * rng.standard_normal((1, layers, width)) * spectrum
    common, own = (rng.standard_normal((n, layers, width)) * spectrum for n in (1, items))
    noise = np.cumsum(rng.standard_normal((steps, items, layers, width)), 0) * spectrum * walk
    t = np.arange(steps)[:, None, None, None]
    return base + trend * t * (common + 0.3 * own) + (t > 0) * noise, topic, key


def test_the_battery_finds_drift_along_labels_that_mean_nothing_as_rarely_as_it_says():
    """200 series whose labels mean nothing: the exact null within the binomial interval of its level, all together
    not above it; and 100 with labels that states tell apart from the start."""
    found = {}
    for apart, runs in ((0.0, 200), (1.0, 100)):
        p = []
        for seed in range(runs):
            states, topic, key = drifting(seed, layers=2, apart=apart)
            data = table(states, topic, key, draws=59, seed=seed, only=along)
            series = white.projections(data, draws=3).data.isel(checkpoint=-1, direction=0)
            p.append([*series["overall_null_p"].min("layer").values, float(series["overall_battery_p"].min())])
        found[apart] = (np.array(p) <= 0.05).sum(0), runs
    (shuffled_labels, *_, every), runs = found[0.0]
    assert stats.binom.ppf(0.025, runs, 0.05) <= shuffled_labels <= stats.binom.ppf(0.975, runs, 0.05)
    assert every <= stats.binom.ppf(0.975, runs, 0.05)
    assert found[1.0][0][-1] <= stats.binom.ppf(0.975, found[1.0][1], 0.05)


def test_a_drift_along_the_stance_direction_passes_the_battery():
    states, topic, key = drifting(0, steps=3, width=128, apart=0.2, decay=0)
    w = np.stack([states[0, key == 1, l].mean(0) - states[0, key == -1, l].mean(0) for l in range(3)])
    states[2, :16, 1] -= 0.5 * key[:16, None] * w[1]
    found = white.projections(table(states, topic, key, draws=199), draws=300).data
    found = found.sel(checkpoint=20, direction="pooled")
    at = found.sel(topic="a")
    assert float(at["D_battery_p"].sel(layer=1)) <= 0.02 and float(at["D_p"].sel(layer=1)) <= 0.05
    assert float(at["D"].sel(layer=1)) < 0 and float(at["D_high"].sel(layer=1)) < 0
    assert (
        float(found.sel(topic="b")["D_battery_p"].min()) > 0.05
        and float(at["D_battery_p"].sel(layer=[0, 2]).min()) > 0.05
    )


def test_where_all_trends_random_directions_correlate_as_highly_and_that_is_said():
    """The published trap: r above .9 between projections and behaviour, and nothing in it."""
    states, topic, key = drifting(3, steps=8, apart=1.0, trend=0.0, walk=0.03)
    rng = np.random.default_rng(7)
    t = np.arange(8) / 7
    # Every item moves its own way, evenly; and so does what is said.
    states = states + 1.5 * t[:, None, None, None] * rng.standard_normal((1, 32, 3, 12))
    said = t[:, None] * key * np.where(np.array(topic) == "a", 0.5, 0.2) + 0.02 * rng.standard_normal((8, 32))
    found = white.behaviour(table(states, topic, key, draws=199, said=said), draws=50).data
    best = found["topic_r"].sel(topic="a")
    assert float(np.abs(best).max()) > 0.9
    published = found["topic_r_null_high"].sel(topic="a", null=["shuffled labels", "gaussian"])
    assert float(published.min()) > 0.95
    assert float(found["topic_r_battery_p"].sel(topic="a").min()) > 0.05
    assert float(found["effective"].sel(topic="a").min()) < 5
    assert float(found["r_battery_p"].min()) > 0.05


def test_projections_that_go_with_behaviour_up_and_down_are_found():
    states, topic, key = drifting(6, steps=10, width=256, apart=0.15, trend=0.2, walk=0.5, decay=0)
    wave = np.sin(1.9 * np.arange(10))
    w = np.stack([states[0, key == 1, l].mean(0) - states[0, key == -1, l].mean(0) for l in range(3)])
    sides = np.where(np.array(topic) == "a", 1, -0.5)
    states[:, :, 1] += (wave[:, None] * sides * key)[..., None] * w[1] * 0.2
    said = 0.4 * wave[:, None] * sides * key + 0.02 * np.random.default_rng(8).standard_normal((10, 32))
    data = table(states, topic, key, draws=199, said=said)
    found = white.behaviour(data, draws=100).data
    assert float(found["r"].sel(layer=1)) > 0.9 and float(found["r_low"].sel(layer=1)) > 0.8
    assert float(found["r_battery_p"].sel(layer=1)) <= 0.02
    steps = white.behaviour(data, changes=True, draws=50).data
    assert steps.sizes["checkpoint"] == 9 and float(steps["r_battery_p"].sel(layer=1)) <= 0.02
    # By hand: means of both over the items of a topic, signed.
    x = white.projections(data, draws=5)["D"].sel(direction="pooled", layer=1).isel(checkpoint=slice(1, None)).values
    y = ((said - said[0]) * key).reshape(10, 2, 16).mean(2)[1:]
    assert float(found["r"].sel(layer=1)) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-4)
    spoken = data.rename(framing="sample").drop_vars("sample")[["p", "topic", "polarity", "cluster"]]
    turned_round = white.behaviour(data, spoken.isel(item=slice(None, None, -1)), draws=5).data
    np.testing.assert_allclose(turned_round["r"], found["r"])
    with pytest.raises(InputError, match="fewer than 3"):
        white.behaviour(data.isel(checkpoint=[0, 1, 2]), draws=5)
    with pytest.raises(InputError, match="not of the same items"):
        white.behaviour(data, spoken.assign_coords(item=[f"other {i}" for i in range(32)]), draws=5)
    with pytest.raises(InputError, match="no direction 'sideways'"):
        white.behaviour(data, direction="sideways")


# ---------------------------------------------------------------- the folder


def test_a_series_is_read_once_and_gone_on_with_and_keeps_no_states_but_the_baseline(tmp_path):
    series = {0: changed(nothing), 5: changed(nothing, 1), 9: changed(nothing, 2)}
    whole = ValueTracker(tmp_path / "whole", ITEMS, [WhiteBox(LETTERS, draws=30)]).run(series, progress=False)
    whole = whole.table().data
    part = tmp_path / "part"
    ValueTracker(part, ITEMS, [WhiteBox(LETTERS, draws=30)]).run({0: series[0]}, progress=False)
    tracker = ValueTracker(part, ITEMS, [WhiteBox(LETTERS, draws=30)]).run(series, progress=False)
    xr.testing.assert_identical(tracker.table().data, whole)
    assert len(list(part.glob("baseline-*.nc"))) == 1
    with xr.open_dataset(next(part.glob("step-00000005/*.nc")), engine="h5netcdf") as kept:
        assert "width" not in kept.dims
    # One instrument for two series: each has its own baseline.
    box = WhiteBox(LETTERS, draws=30)
    trackers = [ValueTracker(tmp_path / name, ITEMS, [box]) for name in "ab"]
    trackers[0].run({0: series[0]}, progress=False)
    trackers[1].run({0: series[5]}, progress=False)
    assert trackers[0].table()["baseline"].values != trackers[1].table()["baseline"].values


def test_what_does_not_belong_together_is_refused(tmp_path):
    file = tmp_path / "base.nc"
    box = WhiteBox([BARE], draws=5, baseline=file)
    box.read(changed(nothing)(), ITEMS, progress=False)
    with pytest.raises(InputError, match="other items"):
        WhiteBox([BARE], draws=5, baseline=file).read(changed(nothing)(), ITEMS[:-1], progress=False)
    with pytest.raises(InputError, match="other settings"):
        WhiteBox([BARE], draws=6, baseline=file).read(changed(nothing)(), ITEMS, progress=False)
    with pytest.raises(InputError, match="another shape"):
        WhiteBox([BARE], draws=5, baseline=file).read(loaded(gpt2(layers=3)), ITEMS, progress=False)
    file.write_bytes(b"no file")
    with pytest.raises(ReadingError, match="cannot be opened"):
        WhiteBox([BARE], draws=5, baseline=file).read(changed(nothing)(), ITEMS, progress=False)
    states, topic, key, cluster = untidy(steps=3)
    data = table(states, topic, key, cluster, draws=3)
    with pytest.raises(InputError, match="2 baselines"):
        white.projections(data.assign(baseline=("checkpoint", ["w0", "w0", "w1"])))
    with pytest.raises(InputError, match="not among the checkpoints"):
        white.similarity(data.isel(checkpoint=[1, 2]))
    with pytest.raises(InputError, match="no table"):
        white.margins(data.drop_vars("projection"))
    with pytest.raises(InputError, match="no stance direction"):
        white.directions(table(states, topic, np.abs(key), cluster, draws=3))


# ---------------------------------------------------------------- weights


def saved(folder: Path, module, **options) -> str:
    module.save_pretrained(folder, **options)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def series_of(n: int, tied: bool = False):
    module = gpt2(tied=tied)
    found = []
    for t in range(n):
        torch.manual_seed(100 + t)
        with torch.no_grad():
            for name, p in module.named_parameters():
                if t and "h.0.mlp" not in name:
                    p.add_(0.01 * t * torch.randn_like(p))
            module.transformer.h[1].ln_1.bias.zero_() if t == 0 else None
            module.transformer.h[1].ln_1.weight.zero_() if t == 0 else None
            module.transformer.h[1].ln_2.bias.zero_() if t == 0 else None
            module.transformer.h[1].ln_2.weight.zero_() if t == 0 else None
        found.append({k: v.clone() for k, v in module.state_dict().items()})
    return module, found


@pytest.mark.parametrize("tied", [False, True])
def test_weights_move_as_state_dicts_say(tmp_path, tied):
    module, dicts = series_of(5, tied)
    sources = {}
    for t, own in enumerate(dicts):
        module.load_state_dict(own)
        shards = {"max_shard_size": "20KB"} if t == 2 else {}
        sources[10 * t] = saved(tmp_path / str(t), module, **shards)
    assert (tmp_path / "2" / "model.safetensors.index.json").exists()
    found = white.weights(sources).data
    parts = {
        "embedding": ["transformer.wte.weight", "transformer.wpe.weight"],
        "block 0 attention": [k for k in dicts[0] if ".h.0.attn." in k],
        "block 1 mlp": [k for k in dicts[0] if ".h.1.mlp." in k],
        "block 0 norm": [k for k in dicts[0] if ".h.0.ln_" in k],
        "norm": [k for k in dicts[0] if ".ln_f." in k],
        "unembedding": ["lm_head.weight"],
        "all": [k for k in dicts[0] if not (tied and k == "lm_head.weight")],
    }
    assert ("unembedding" in found["module"].values) is not tied
    if tied:
        del parts["unembedding"]
    for name, keys in parts.items():
        flat = [torch.cat([own[k].double().ravel() for k in keys]) for own in dicts]
        own = found.sel(module=name)
        assert int(own["parameters"]) == len(flat[0])
        for t in range(1, 4):
            assert float(own["change"][t]) == pytest.approx(
                float((flat[t] - flat[0]).norm() / flat[0].norm()), rel=1e-6
            )
            assert float(own["update"][t]) == pytest.approx(
                float((flat[t] - flat[t - 1]).norm() / flat[0].norm()), rel=1e-6
            )
        for t in (2, 3):
            a, b = flat[t] - flat[t - 1], flat[t - 1] - flat[t - 2]
            assert float(own["cosine"][t]) == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)

    def in_memory(t):
        module.load_state_dict(dicts[t])
        return loaded(module)

    xr.testing.assert_allclose(white.weights({10 * t: lambda t=t: in_memory(t) for t in range(5)}).data, found)
    if tied:  # a file may hold a shared weight under its other name, and need no model to be understood
        stored = {k: v for k, v in dicts[1].items() if k != "transformer.wte.weight"}
        (tmp_path / "other").mkdir()
        save_file(stored, tmp_path / "other" / "model.safetensors")
        again = white.weights({**sources, 10: str(tmp_path / "other")}).data
        xr.testing.assert_allclose(again, found)
    assert (found["change"].sel(module="block 0 mlp") == 0).all()
    assert found["cosine"].sel(module="block 0 mlp").isnull().all()
    assert found["reason"].sel(module="block 0 mlp").values[2] == "the weights did not move between two checkpoints"
    assert found["change"].sel(module="block 1 norm").isnull().all()
    assert "are 0 at the first" in str(found["reason"].sel(module="block 1 norm").values[2])


def test_weights_of_models_in_memory_and_of_adapters_are_those_of_the_merged(tmp_path):
    peft = pytest.importorskip("peft")
    base = saved(tmp_path / "base", gpt2())
    torch.manual_seed(9)
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    adapted = peft.get_peft_model(gpt2(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = white.weights({0: base, 1: (base, str(tmp_path / "adapter"))}).data
    merged = adapted.merge_and_unload()
    other = white.weights({0: changed(nothing), 1: lambda: loaded(merged)}).data
    np.testing.assert_allclose(found["change"], other["change"], rtol=1e-5)
    assert float(found["change"].sel(module="block 0 attention")[1]) > 0.01
    assert float(found["change"].sel(module="block 0 mlp")[1]) == 0
    magnitude = peft.LoraConfig(
        r=2, target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True, init_lora_weights=False
    )
    peft.get_peft_model(gpt2(), magnitude).save_pretrained(tmp_path / "dora")
    moved = white.weights({0: base, 1: (base, str(tmp_path / "dora"))}).data
    with_magnitude = peft.PeftModel.from_pretrained(gpt2(), str(tmp_path / "dora")).merge_and_unload()
    other = white.weights({0: changed(nothing), 1: lambda: loaded(with_magnitude)}).data
    np.testing.assert_allclose(moved["change"], other["change"], rtol=1e-4, atol=1e-7)


def test_weights_of_modules_that_were_saved_whole_are_those_of_the_merged(tmp_path):
    peft = pytest.importorskip("peft")
    base = saved(tmp_path / "base", gpt2())
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_f"])
    adapted = peft.get_peft_model(gpt2(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    found = white.weights({0: base, 1: (base, str(tmp_path / "adapter"))}).data
    other = white.weights({0: changed(nothing), 1: lambda: loaded(adapted.merge_and_unload())}).data
    np.testing.assert_allclose(found["change"], other["change"], rtol=1e-5)
    assert float(found["change"].sel(module="norm")[1]) > 0.1


def test_weights_of_other_models_are_refused(tmp_path):
    base, other = saved(tmp_path / "a", gpt2()), saved(tmp_path / "b", gpt2(layers=1))
    with pytest.raises(InputError, match="has no parameter"):
        white.weights({0: base, 1: other})
    wide = load_file(tmp_path / "a" / "model.safetensors")
    wide["transformer.wpe.weight"] = torch.zeros(70, 32)
    (tmp_path / "c").mkdir()
    save_file(wide, tmp_path / "c" / "model.safetensors")
    with pytest.raises(InputError, match=r"\(70, 32\) at checkpoint 1"):
        white.weights({0: base, 1: str(tmp_path / "c")})
    with pytest.raises(InputError, match="there are 1"):
        white.weights({0: base})


# ---------------------------------------------------------------- a real series, figures


def test_a_real_series_moves(shared, tmp_path):
    home = shared / "models" / "arthur-char"
    if not home.is_dir():
        pytest.skip("../shared/models/arthur-char is not here")
    steps = {25: "epoch25", 75: "epoch75", 125: "epoch125", 200: "epoch200"}
    sources = {step: str(home / name) for step, name in steps.items()}
    framings = [
        Framing(n, {"statement": "{text}"}, a, ("support", "oppose"))
        for n, a in (("yn", ("y", "n")), ("ny", ("n", "y")))
    ]
    items = [Asked(f"{n}{k}", n, f"{n} {text}? ", key) for n in NOUNS for k, (text, key) in enumerate(SAYS)]
    tracker = ValueTracker(tmp_path, items, [WhiteBox(framings[:1], draws=99)]).run(sources, progress=False)
    data = tracker.table().data
    alike = white.similarity(data).data
    assert (alike["cka"].isel(checkpoint=0) > 0.9999).all() and float(alike["cka"].isel(checkpoint=-1).min()) < 0.95
    assert (alike["cka_high"].isel(checkpoint=-1) < 1).all()
    moved = white.projections(data, draws=100).data
    assert float(np.abs(moved["D"].isel(checkpoint=-1)).max()) > 0.2
    turned = white.directions(data, draws=100).data
    assert float(turned["cosine"].sel(fitted="pooled").isel(checkpoint=-1, layer=-1)) < 0.9
    changes = white.weights(sources)["change"].sel(module="all").values
    assert changes[0] == 0 and (changes[1:] > 0.5).all()
    assert np.isfinite(white.margins(data, draws=100)["margin"]).all()


def test_figures_show_the_numbers_and_hatch_what_is_chance(tmp_path):
    states, topic, key = drifting(4, steps=5, apart=1.0)
    rng = np.random.default_rng(0)
    margin = rng.standard_normal((5, 32, 1, 3)) * 0.1
    margin[2:, :16, :, 2] += key[:16, None]
    said = 0.1 * np.cumsum(rng.standard_normal((5, 32)), 0)
    data = table(states, topic, key, draws=30, said=said, margin=margin)
    table_m = white.margins(data, draws=200).data
    maps = [panel.of(Cells)[0] for panel in figures.margins(table_m).plot.panels]
    assert len(maps) == 2 and maps[0].ends == maps[1].ends
    for t, own in enumerate(maps):
        np.testing.assert_array_equal(own.values, table_m["margin"].isel(topic=t).transpose("layer", "checkpoint"))
        sure = table_m["margin_p"].isel(topic=t).transpose("layer", "checkpoint").values <= 0.05
        assert (own.hatched == ~sure).all()
    assert not maps[0].hatched[2, 2:].any() and maps[1].hatched.all()
    moved = figures.margins(table_m, drift=True).plot.panels[0].of(Cells)[0].values
    np.testing.assert_array_equal(moved, table_m["M"][:, 0].T)
    # The line of settled layers stands at the rows of these.
    skipped = table_m.assign_coords(layer=[0, 4, 8]).assign(depth_sure=xr.full_like(table_m["depth_sure"], 6))
    (line,) = figures.margins(skipped).plot.panels[0].of(Line)
    assert (line.y == 1.5).all()
    turned = white.directions(data, draws=30).data
    turns, fixed, refit = (panel.of(Line) for panel in figures.directions(turned).plot.panels)
    np.testing.assert_array_equal(turns[0].y, turned["rotation"].sel(fitted="pooled", layer=0))
    for kind, lines in (("fixed", fixed), ("refit", refit)):
        own = turned.sel(kind=kind, direction="pooled", layer=0)
        np.testing.assert_array_equal([lines[0].y, lines[0].high], [own["mean_auc"], own["mean_auc_high"]])
    with pytest.raises(InputError, match="no direction of 'c'"):
        figures.directions(turned, fitted="c")
    linked = white.behaviour(data, draws=30).data
    left, right = figures.behaviour(linked, layer=1).plot.panels
    nulls, *points = left.of(Points)
    assert [own.name for own in points] == ["a", "b"]
    for own in points:
        np.testing.assert_array_equal(own.x, linked["said"].sel(topic=own.name))
        np.testing.assert_array_equal(own.y, linked["projected"].sel(topic=own.name, layer=1))
    low = linked["projected_null_low"].sel(layer=1).min("null").transpose(*linked["said"].dims)
    np.testing.assert_array_equal([nulls.x, nulls.y_low], [linked["said"].values.ravel(), low.values.ravel()])
    (own,) = right.of(Points)
    np.testing.assert_array_equal(own.y, linked["r"])
    assert list(own.filled) == list(linked["r_battery_p"].values <= 0.05 + 1e-12)
    with pytest.raises(InputError, match="no layer 9"):
        figures.behaviour(linked, layer=9)
    moved = white.weights({0: changed(nothing), 1: changed(nothing, 1), 2: changed(nothing, 2)}).data
    (cells,) = figures.weights(moved).plot.panels[0].marks
    np.testing.assert_array_equal(cells.values, moved["change"].T)
    (cells,) = figures.weights(moved, value="cosine").plot.panels[0].marks
    assert cells.ends == (-1, 1) and "the first checkpoint has no update" in cells.hover[0][0]
    with pytest.raises(InputError, match="not in the table"):
        figures.weights(moved, value="size")


def test_memory_holds_one_checkpoint_of_states(monkeypatch):
    """What is kept of a checkpoint does not grow with the width of the model."""
    sizes = []
    for width in (8, 64):
        states = np.random.default_rng(0).standard_normal((1, 16, 2, width))
        data = table(states, ["t"] * 16, np.tile([1, -1], 8), draws=10)
        sizes.append(sum(x.nbytes for x in data.data_vars.values()))
    assert sizes[0] == sizes[1]
