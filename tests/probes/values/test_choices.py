"""Questions of several options: brute force on a tiny model, scipy's distances, answers whose likeness is planted."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from test_instruments import ITEMS, behind_prompt, word_model

import workbench
from probes.values.choices import Choices, likeness
from probes.values.instruments import Pmf
from probes.values.items import Item, load_choices
from workbench.errors import InputError

QUESTIONS = [
    Item("q2", "dogs", "The dog is", kind="choice", options=("good", "bad")),
    Item("q3", "dogs", "The cat sees", kind="choice", options=("a dog", "a cat", "a ball")),
    Item("q4", "cats", "Every dog should be in", kind="choice", options=("the house", "here", "it", "the big ball")),
]


@pytest.fixture(scope="module")
def words() -> workbench.Model:
    return word_model(scale=5.0, extra=("D", "E", "F"))


@pytest.mark.parametrize("orders", ["cyclic", "all"])
def test_probabilities_of_options_are_brute_force_enumeration(words, orders):
    """Every order written out, one forward pass each, the softmax over the whole vocabulary."""
    data = Choices(orders=orders).read(words, QUESTIONS, progress=False).data
    for item in QUESTIONS:
        n, rows, mass = len(item.options), [], []
        for order in itertools.permutations(range(n)):
            if orders == "cyclic" and any((b - a) % n != 1 for a, b in itertools.pairwise(order)):
                continue
            lines = "".join(f"{'ABCD'[k]}. {item.options[o]}\n" for k, o in enumerate(order))
            text = f"{item.text}\nWhich would you choose?\n{lines}Reply with one letter.\nAnswer:"
            p = behind_prompt(words, words.tokenizer(text)["input_ids"])
            letters = np.array([float(p[words.tokenizer.convert_tokens_to_ids(x)]) for x in "ABCD"[:n]])
            row = np.empty(n)
            for k, o in enumerate(order):
                row[o] = letters[k] / letters.sum()
            rows.append(row)
            mass.append(letters.sum())
        assert len(rows) == (n if orders == "cyclic" else np.prod(range(1, n + 1)))
        got = data.sel(item=item.item_id)
        np.testing.assert_allclose(got["p_option"][:n], np.mean(rows, 0), atol=1e-6)
        assert np.isnan(got["p_option"][n:]).all()
        assert float(got["mass"]) == pytest.approx(np.mean(mass), abs=1e-6)
        assert float(got["order_tv"]) == pytest.approx(np.abs(rows - np.mean(rows, 0)).sum(1).mean() / 2, abs=1e-6)
    assert data["order_tv"].max() > 0.01  # the letters matter to this model, so that averaging has something to do


def test_the_order_in_which_options_are_given_changes_nothing(words):
    """Over all orders none is first: p of an option is the same to float error, wherever it stood in the item."""
    item = QUESTIONS[2]
    want = dict(zip(item.options, Choices(orders="all").read(words, [item])["p_option"].values[0], strict=True))
    for order in [(1, 0, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)]:
        given = replace(item, options=tuple(item.options[k] for k in order))
        found = Choices(orders="all").read(words, [given])["p_option"].values[0]
        np.testing.assert_allclose(found, [want[option] for option in given.options], atol=1e-7)
    # Of cyclic orders that holds for turning the list round in a circle.
    cyclic = Choices().read(words, [item])["p_option"].values[0]
    turned = Choices().read(words, [replace(item, options=item.options[1:] + item.options[:1])])["p_option"].values[0]
    np.testing.assert_allclose(turned, np.roll(cyclic, -1), atol=1e-7)


@pytest.mark.parametrize("habit", ["A", "C"])
def test_a_model_that_always_says_one_letter_chooses_nothing(habit):
    data = Choices().read(word_model({habit: 200.0}, extra=("D", "E", "F")), QUESTIONS[1:], progress=False).data
    np.testing.assert_allclose(data["p_option"].values[0, :3], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(data["p_option"].values[1], 1 / 4, atol=1e-6)
    assert (data["mass"] > 0.99).all()
    # One order says all for one option, and the mean 1/n each: (1 - 1/n + (n - 1)/n) / 2.
    np.testing.assert_allclose(data["order_tv"], [2 / 3, 3 / 4], atol=1e-4)


def test_what_is_no_choice_or_has_too_many_orders_is_refused(words):
    with pytest.raises(InputError, match="is a statement with 0 options"):
        Choices().read(words, ITEMS)
    with pytest.raises(InputError, match="leave it out, or give more letters"):
        Choices(letters="AB").read(words, QUESTIONS)
    many = replace(QUESTIONS[0], options=tuple(f"option {k}" for k in range(6)))
    with pytest.raises(InputError, match="720 orders"):
        Choices(orders="all").read(words, [many])
    with pytest.raises(InputError, match="unknown. Use 'cyclic'"):
        Choices(orders="some")
    with pytest.raises(InputError, match="lacks {text} or {options}"):
        Choices("{text}")
    with pytest.raises(InputError, match="between 3 options"):
        Pmf().read(words, QUESTIONS[1:2])
    assert len({Choices().settings, Choices(orders="all").settings, Choices(letters="abcd").settings}) == 3


# ---------------------------------------------------------------- likeness


def survey(n: int, rng: np.random.Generator, sizes=(2, 3, 5)) -> tuple[list[Item], np.ndarray]:
    """n questions with shares of two groups, and probabilities that are the first group's."""
    items, p = [], np.full((n, max(sizes)), np.nan)
    for i in range(n):
        k = sizes[i % len(sizes)]
        ours, theirs = rng.dirichlet(np.ones(k), 2)
        shares = {"ours": tuple(ours), "theirs": tuple(theirs)} if i % 4 else {"ours": tuple(ours)}
        options = tuple(f"o{j}" for j in range(k))
        items.append(Item(f"i{i}", "GAS", f"Question {i}?", kind="choice", options=options, shares=shares))
        p[i, :k] = ours
    return items, p


def read_as(items: list[Item], p: np.ndarray) -> xr.Dataset:
    names = {"item": [i.item_id for i in items], "cluster": ("item", np.array([i.cluster for i in items], object))}
    variables = {"p_option": (("item", "option"), p), "mass": ("item", np.linspace(0.2, 0.9, len(items)))}
    return xr.Dataset(variables, names)


def test_likeness_is_one_less_the_distances_of_scipy():
    rng = np.random.default_rng(0)
    items, p = survey(40, rng)
    p = np.where(np.isnan(p), np.nan, p**2 + 0.05)
    p /= np.nansum(p, 1, keepdims=True)
    found = likeness(read_as(items, p), items, ordinal=[i.item_id for i in items if len(i.options) == 5], draws=50).data
    for group in ("ours", "theirs"):
        similar, aligned, even = [], [], []
        for i, item in enumerate(items):
            if group not in item.shares:
                continue
            k, q = len(item.options), np.array(item.shares[group])
            similar.append(1 - jensenshannon(p[i, :k], q, 2))
            even.append(1 - jensenshannon(np.full(k, 1 / k), q, 2))
            if k == 5:
                aligned.append(1 - wasserstein_distance(range(k), range(k), p[i, :k], q) / (k - 1))
        own = found.sel(group=group)
        assert float(own["similarity"]) == pytest.approx(np.mean(similar))
        assert float(own["similarity_uniform"]) == pytest.approx(np.mean(even))
        assert float(own["alignment"]) == pytest.approx(np.mean(aligned))
        assert int(own["questions"]) == len(similar) and int(own["ordinal_questions"]) == len(aligned)
        mass = [m for m, i in zip(np.linspace(0.2, 0.9, 40), items, strict=True) if group in i.shares]
        assert float(own["mass"]) == pytest.approx(np.mean(mass))
    assert np.isnan(likeness(read_as(items, p), items, draws=20)["alignment"]).all()


def test_the_null_knows_who_was_asked_the_question():
    """Answers that are one group's are nearer to it than shuffled shares are; nearer to an independent group, not."""
    items, p = survey(120, np.random.default_rng(1))
    found = likeness(read_as(items, p), items, ordinal=True, draws=500).data
    ours, theirs = found.sel(group="ours"), found.sel(group="theirs")
    assert float(ours["similarity"]) == pytest.approx(1) and float(ours["similarity_p"]) == pytest.approx(1 / 501)
    assert float(ours["alignment_p"]) == pytest.approx(1 / 501)
    for name in ("similarity", "alignment"):
        assert ours[f"{name}_null"] < 0.8 and abs(theirs[name] - theirs[f"{name}_null"]) < 0.06
        assert theirs[f"{name}_low"] < theirs[name] < theirs[f"{name}_high"]
    false = 0
    for seed in range(80):
        items, p = survey(30, np.random.default_rng(100 + seed))
        own = likeness(read_as(items, p), items, draws=99, seed=seed).data.sel(group="theirs")
        false += bool(own["similarity_p"] <= 0.05)
    assert false <= 10  # of 80 at 5 %: more than 10 are as rare as 1 in 1000


def test_a_duplicate_counts_once():
    items, p = survey(12, np.random.default_rng(2))
    copies = [replace(items[1], item_id=f"copy {k}", cluster=items[1].cluster) for k in range(30)]
    even = p * 0 + 1 / (~np.isnan(p)).sum(1, keepdims=True)
    once = likeness(read_as(items, even), items, draws=20).data
    twice = likeness(read_as(items + copies, np.concatenate([even, np.repeat(even[1:2], 30, 0)])), items + copies).data
    np.testing.assert_allclose(twice["similarity"], once["similarity"])
    np.testing.assert_allclose(once["similarity"], once["similarity_uniform"])


def test_a_survey_in_the_published_form_is_read_asked_and_compared(tmp_path, words):
    path = tmp_path / "global.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "selections", "options", "source"])
        for k, item in enumerate(QUESTIONS):
            n = len(item.options)
            shares = {"Peru": np.eye(n)[k % n].tolist(), "Mali": [1 / n] * n}
            writer.writerow([item.text, f"defaultdict(<class 'list'>, {shares})", str(list(item.options)), "GAS"])
    items = load_choices(path)
    table = likeness(Choices().read(words, items, progress=False).data, items, draws=50).data
    assert table["group"].values.tolist() == ["Peru", "Mali"] and table["questions"].values.tolist() == [3, 3]
    assert float(table["similarity_uniform"].sel(group="Mali")) == pytest.approx(1)
    with pytest.raises(InputError, match="nobody to compare with"):
        likeness(Choices().read(words, QUESTIONS, progress=False), QUESTIONS)
    with pytest.raises(InputError, match="the items do not"):
        likeness(Choices().read(words, QUESTIONS, progress=False), items)
