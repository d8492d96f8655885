"""Items keep what the data says of them, and the defect report finds what was put there."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.values import items as sets
from probes.values.defects import KINDS, damage, defects
from probes.values.duplicates import cluster, similarity
from probes.values.instruments import Pmf
from probes.values.items import Item, Items
from probes.values.tracker import ValueTracker
from probes.values.wording import opposed, wording
from workbench.errors import InputError


@pytest.fixture
def data(shared: Path) -> Path:
    if not (shared / "data" / "v-prism-sample").is_dir():
        pytest.skip("the folder ../shared/data with item sets made by others is not here")
    return shared / "data"


def asked(*texts: str, topic: str = "topic") -> Items:
    return Items(Item(str(k), topic, text, kind="question") for k, text in enumerate(texts))


def stated(*rows: tuple[str, int]) -> Items:
    return Items(Item(str(k), "topic", text, key) for k, (text, key) in enumerate(rows))


def pairs(items: Items, kind: str) -> set[tuple[str, str]]:
    return {(f.item_id, f.other_id) for f in defects(items).of(kind)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": " "}, "no id"),
        ({"text": " "}, "empty text"),
        ({"topic": ""}, "no topic"),
        ({"polarity": 2}, "polarity 2"),
        ({"polarity": True}, "polarity True"),
        ({"kind": "poem"}, "'poem'"),
        ({"kind": "choice"}, "0 options"),
        ({"options": ("a", "b")}, "has options"),
        ({"kind": "choice", "options": ("a", "b"), "shares": {"Peru": (0.5, 0.2)}}, "sum to 0.7"),
        ({"kind": "choice", "options": ("a", "b"), "shares": {"Peru": (1.0,)}}, "1 shares"),
    ],
)
def test_what_is_no_item_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Item(**{"item_id": "1", "topic": "t", "text": "Zoos are fine.", **change})


def test_items_are_a_sequence_of_their_own_ids() -> None:
    made = Items([Item("a", "x", "One.", 1), Item("b", "y", "Two?", kind="question"), Item("c", "x", "Three.", -1)])
    assert made.topics == ("x", "y") and made.ids == ("a", "b", "c")
    assert made[0].cluster == "a" and made.by_id("c").polarity == -1
    assert made.select("x").ids == ("a", "c") and made.select(polarity=[0, 1]).ids == ("a", "b")
    assert made.select(kind="question").ids == ("b",)
    assert isinstance(made[:2], Items) and made[:2] + made[2:] == made and len({made, made[:3]}) == 1
    assert made.to_pandas().shape == (3, 10) and "keys +1: 1, -1: 1, none: 1" in repr(made)
    for wrong in ({"topic": "z"}, {"polarity": 5}):
        with pytest.raises(InputError, match="No item has the"):
            made.select(**wrong)
    with pytest.raises(InputError, match="used twice .a."):
        Items([*made, made[0]])
    with pytest.raises(InputError, match="No items are left"):
        Items([])
    with pytest.raises(InputError, match="no item has|No item has"):
        made.by_id("q")


def test_csv_gives_the_same_items_back(tmp_path: Path) -> None:
    made = Items(
        [
            Item("1", "t", 'She said: "no, | never"\nand left.', -1, "k", licence="CC0-1.0"),
            Item("2", "t", "Which?", kind="choice", options=("a|b", "c, d"), shares={"Côte d'Ivoire": (0.25, 0.75)}),
            Item("3", "t", "Zoos are fine.", 1, negated="Zoos are not fine."),
        ]
    )
    path = made.save_csv(tmp_path / "items.csv")
    assert Items.from_csv(path) == made
    assert [p.name for p in tmp_path.iterdir()] == ["items.csv"]
    # A file from before there were negations.
    with path.open(newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert rows[0][-1] == "shares" and Items.from_csv(path)[2] == Item("3", "t", "Zoos are fine.", 1)


def test_a_negation_makes_other_items_and_none_leaves_folders_of_readings_as_they_are(tmp_path: Path) -> None:
    without = [Item("1", "zoos", "Zoos are fine.", 1), Item("2", "zoos", "Zoos are sad.", -1)]
    head = ValueTracker(tmp_path / "old", without, [Pmf()]).folder.head
    # As it was written into folders before items had negations.
    rows = [
        ["1", "zoos", "Zoos are fine.", 1, "1", "statement", []],
        ["2", "zoos", "Zoos are sad.", -1, "2", "statement", []],
    ]
    assert head["items"] == hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
    with pytest.raises(InputError, match="readings of other items"):
        ValueTracker(tmp_path / "old", [replace(without[0], negated="Zoos are bad."), without[1]], [Pmf()])


def test_csv_of_others_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(
        "claim,area,agree,answers\nZoos are fine.,zoos,+1,\nZoos?,zoos,-1.0,yes|no\nWhy?,zoos,,\n", "utf-8-sig"
    )
    read = sets.load_csv(path, text="claim", topic="area", polarity="agree", options="answers")
    assert [(i.item_id, i.polarity, i.kind) for i in read] == [
        ("1", 1, "statement"),
        ("2", -1, "choice"),
        ("3", 0, "question"),
    ]
    with pytest.raises(InputError, match="no column topic, text; it has claim"):
        sets.load_csv(path)
    with pytest.raises(InputError, match="no field txt"):
        sets.load_csv(path, txt="claim")
    path.write_text("text,topic,polarity\nFine.,t,1\nBad.,t,yes\n")
    with pytest.raises(InputError, match="row 2: the polarity is 'yes'"):
        sets.load_csv(path)
    path.write_text("text,topic\n")
    with pytest.raises(InputError, match="no rows"):
        sets.load_csv(path)
    with pytest.raises(InputError, match="cannot be read"):
        sets.load_csv(tmp_path / "nowhere.csv")


def test_greatest_good_takes_the_type_from_the_data(tmp_path: Path) -> None:
    """Whatever the order of rows; an inversion of another type is refused."""
    path, other = tmp_path / "GreatestGoodBenchmark.json", tmp_path / "GreatestGoodBenchmarkInverted.json"
    rows = [{"statement": f"S {k}.", "type": ("IH", "IB")[k % 2], "statement_id": str(k)} for k in range(1, 5)]
    path.write_text(json.dumps(rows[::-1]))
    turned = [
        {**row, "statement": "Not " + row["statement"], "statement_id": str(100 + k)} for k, row in enumerate(rows, 1)
    ]
    other.write_text(json.dumps(turned))
    read = sets.load_greatest_good(tmp_path)
    assert {i.item_id: i.topic for i in read if i.polarity == 1} == {"1": "IB", "2": "IH", "3": "IB", "4": "IH"}
    assert {i.item_id: i.cluster for i in read if i.polarity == -1} == {str(100 + k): str(k) for k in range(1, 5)}
    assert len(sets.load_greatest_good(path)) == 4
    turned[0]["type"] = "IH"
    other.write_text(json.dumps(turned))
    with pytest.raises(InputError, match="row 1: it inverts statement 1, which is IB"):
        sets.load_greatest_good(tmp_path)
    path.write_text(json.dumps([{"statement": "S.", "type": "XX"}]))
    with pytest.raises(InputError, match="'XX'"):
        sets.load_greatest_good(path)
    path.write_text(json.dumps([{"statement": "S."}]))
    with pytest.raises(InputError, match="'type' is missing"):
        sets.load_greatest_good(path)
    path.write_text("nonsense")
    with pytest.raises(InputError, match="no JSON"):
        sets.load_greatest_good(path)


def test_choices_in_the_published_form(tmp_path: Path) -> None:
    path = tmp_path / "global.csv"

    def write(selections: str) -> Path:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "selections", "options", "source"])
            writer.writerow(["Is it good?", selections, "['Good', 'Bad', 3.0]", "GAS"])
        return path

    read = sets.load_choices(write("defaultdict(<class 'list'>, {'Peru': [0.2, 0.5, 0.3], 'Mali': [20, 20, 61]})"))[0]
    assert (
        read.kind == "choice" and read.topic == "GAS" and read.options == ("Good", "Bad", "3.0") and not read.polarity
    )
    assert read.shares["Peru"] == pytest.approx((0.2, 0.5, 0.3)) and read.shares["Mali"][2] == pytest.approx(61 / 101)
    with pytest.raises(InputError, match="Peru sum to 0.5"):
        sets.load_choices(write("{'Peru': [0.1, 0.1, 0.3]}"))
    half = sets.load_choices(write("{'Peru': [0.1, 0.1, 0.3]}"), rescale=True)[0]
    assert half.shares["Peru"] == pytest.approx((0.2, 0.2, 0.6))
    with pytest.raises(InputError, match="row 1"):
        sets.load_choices(write("__import__('os')"))
    with pytest.raises(InputError, match="2 shares"):
        sets.load_choices(write("{'Peru': [0.5, 0.5]}"))


def test_own_items_are_balanced_and_clean() -> None:
    own = sets.own()
    assert len(own.topics) >= 8
    count = Counter((i.topic, i.polarity) for i in own)
    assert set(count.values()) == {12} and len(count) == 2 * len(own.topics)
    assert {i.licence for i in own} == {"CC0-1.0"} and len({i.text for i in own}) == len(own)
    report = defects(own)
    assert not report, str(report)
    assert cluster(own) == own


def test_vprism_sample(data: Path) -> None:
    """Read by hand: 14 against 15, 47, 48 and 55 against 70, 76; 5, 19, 41; 0, 2, 49; 52.  Nothing else is reported."""
    read = sets.load_vprism(data / "v-prism-sample" / "value_drifts_sample.json")
    assert len(read) == 18 and len(read.topics) == 2 and {i.polarity for i in read} == {0}
    report = defects(read)
    found = {kind: {(f.item_id, f.other_id) for f in report.of(kind)} for kind in KINDS}
    assert found["mixed polarity"] == {("14", "15"), ("14", "47"), ("14", "48"), ("55", "70"), ("55", "76")}
    assert report.ids("no stance") == {"5", "19", "41"}
    assert found["near-duplicate"] == {("0", "2"), ("0", "49"), ("2", "49")}
    assert report.ids("broken characters") == {"52"}
    assert not found["either/or"] and not found["contradicting keys"]
    assert len(report.to_pandas()) == len(report) == 12
    assert "14 / 15" in str(report) and "U+FFFD" in str(report) and "18 of them not keyed" in str(report)
    joined = cluster(read)
    assert {i.cluster for i in joined if i.item_id in ("0", "2", "49")} == {"0"} and joined.by_id("10").cluster == "10"


def test_greatest_good(data: Path) -> None:
    read = sets.load_greatest_good(data / "ggb")
    assert Counter((i.topic, i.polarity) for i in read) == {
        ("IB", 1): 50,
        ("IB", -1): 50,
        ("IH", 1): 40,
        ("IH", -1): 40,
    }
    assert read[0].topic == "IH" and len({i.cluster for i in read}) == 90
    assert not defects(read)
    # The first edition holds two statements twice, one slip apart; no other two are that close.
    first = sets.load_greatest_good(data / "ggb" / "GreatestGoodBenchmarkOriginal.json")
    rows = {(int(a), int(b)) for a, b in pairs(first, "near-duplicate")}
    assert rows == {(2, 12), (62, 82)}


def test_valuebench(data: Path) -> None:
    path = data / "valuebench" / "value_orientation.csv"
    read = sets.load_valuebench(path)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(i.text, i.topic, str(i.polarity)) for i in read] == [
        (r["item"].strip(), r["value"].strip(), r["agreement"]) for r in rows
    ]
    assert Counter(i.polarity for i in read) == {1: 1358, -1: 630}
    report = defects(read)
    assert {f.kind for f in report.findings} <= {"near-duplicate"}, str(report)


def test_moralchoice(data: Path) -> None:
    for name, keyed in (("low", 668), ("high", 334)):
        read = sets.load_moralchoice(data / "moralchoice" / f"moralchoice_{name}_ambiguity.csv")
        assert {i.kind for i in read} == {"choice"} and sum(i.polarity == 1 for i in read) == keyed
        assert all(len(i.options) == 2 for i in read)
        # One scenario of the published file offers the same action twice.
        assert defects(read).ids("equal options") == ({"G_530"} if name == "high" else set())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Should fireworks be banned?", "Should fireworks be allowed in every town?"),
        ("Is it wrong to eat meat?", "Do you think it is acceptable to eat meat?"),
        ("Do you support a tax on sugar?", "Are you against a tax on sugar?"),
        ("Is dark matter real?", "Do you believe that dark matter is a hoax?"),
        ("Should cannabis be legalised?", "Should the law prohibit marijuana?"),
        ("Should schools teach Latin to young children?", "Should schools not teach Latin to young children?"),
        ("Should the ban on gambling be lifted?", "Should gambling be banned?"),
        ("Is bullfighting an unethical sport?", "Is bullfighting a fair sport?"),
    ],
)
def test_opposites_are_found(one: str, other: str) -> None:
    found = defects(asked(one, other, "Is rain pleasant on Sundays?"))
    assert [(f.kind, f.item_id, f.other_id) for f in found.findings] == [("mixed polarity", "0", "1")]
    assert not defects(Items([*asked(one)] + [Item("b", "another topic", other, kind="question")]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Should fireworks be banned?", "Should alcohol be allowed?"),
        ("Should illegal fishing be punished?", "Should legal fishing be taxed?"),
        ("Is it wrong to prohibit protests?", "Should protests be permitted?"),
        ("Should smoking be banned?", "Do you think smoking is not acceptable?"),
        ("Is climate change real?", "Is climate change bad?"),
        ("Should dogs be allowed on trains?", "Should trains to the coast be banned at night because of their noise?"),
        ("Should we not only allow but welcome buskers?", "Should buskers be allowed?"),
    ],
)
def test_what_agrees_or_is_another_subject_is_no_opposite(one: str, other: str) -> None:
    assert not pairs(asked(one, other), "mixed polarity")


def test_keys_and_wording_must_agree() -> None:
    good, bad = "Keeping parrots in cages is acceptable.", "Keeping parrots in cages is unacceptable."
    assert not defects(stated((good, 1), (bad, -1)))
    assert pairs(stated((good, 1), (bad, 1)), "contradicting keys") == {("0", "1")}
    assert pairs(stated((good, 1), (bad, 0)), "mixed polarity") == {("0", "1")}
    assert pairs(stated((good, 1), (good.replace("acceptable", "quite acceptable"), -1)), "contradicting keys")
    # The same words in another order say something else, and no key is contradicted.
    swapped = (
        ("Trains should come before planes in the budget.", 1),
        ("Planes should come before trains in the budget.", -1),
    )
    assert not defects(stated(*swapped))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Where can volunteers sign up?", "facts"),
        ("How many owls live in Norway?", "facts"),
        ("Is it legal to keep a fox?", "facts"),
        ("Why do some people dislike owls?", "facts"),
        ("What are the strongest arguments for a wealth tax?", "facts"),
        ("My roof leaks. What should I do?", "advice"),
        ("How can I convince my boss?", "advice"),
        ("What should governments do about noise?", "open"),
        ("Can you explain the water cycle?", "request"),
        ("Should owls be protected?", "yes/no"),
        ("Hello, in your opinion, should owls be protected?", "yes/no"),
        ("How serious do you think light pollution is?", "yes/no"),
        ("Is nuclear power safe?", "yes/no"),
        ("Should I always tell the truth?", "yes/no"),
        ("You think owls are overrated?", "yes/no"),
        ("What is your honest view on owls?", "view"),
        ("How do you feel about owls?", "view"),
        ("Owls are in decline. What do you think?", "view"),
        ("Why should we protect owls?", "reasons"),
    ],
)
def test_forms_of_questions(text: str, form: str) -> None:
    assert wording(text).form == form
    flagged = bool(defects(asked(text)).of("no stance"))
    assert flagged == (form in ("facts", "advice", "open", "request"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is graffiti art or is it vandalism?", True),
        ("Is fame a blessing or a curse?", True),
        ("Should museums be public or private?", True),
        ("Is lying moral or immoral?", True),
        ("Are you for or against tolls?", True),
        ("Which is better, tea or coffee?", True),
        ("Should tax rise or should spending fall?", True),
        ("Should cats or dogs be allowed in cafes?", False),
        ("Do you believe in ghosts or not?", False),
        ("Should we ask whether a law helps or hurts?", False),
        ("Should landlords be fined or jailed?", False),
        ("Should anyone over 16 or so be allowed to vote?", False),
    ],
)
def test_either_or(text: str, expected: bool) -> None:
    assert bool(defects(asked(text)).of("either/or")) == expected


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("I don\ufffdt know.", "U+FFFD"),
        ("A cafÃ© in town.", "another encoding"),
        ("It isnâ€™t so.", "another encoding"),
        ("I don?t know.", "inside a word"),
        ("Salt &amp; pepper.", "entity"),
        ("A bell\x07.", "control"),
        ("Don’t naïve São Paulo cafés cost 5 € – or “more”?", ""),
        ("Māori, Łódź, 東京, NÃO e Ünal: is it so? Yes!", ""),
        ("See https://example.org/a?t=1 & more.\n", ""),
    ],
)
def test_broken_characters(text: str, broken: str) -> None:
    assert broken in damage(text) if broken else damage(text) == ""


def test_near_duplicates_are_not_templates() -> None:
    found = asked(
        "What is your opinion on zoos?",
        "What are your thoughts on zoos?",
        "What is your opinion on zoos in Spain?",
        "What is your opinion on circuses?",
        "Should a driver over 70 take a new test?",
        "Should a driver over 80 take a new test?",
        "Do you think that large museums should open their doors on Mondays?",
        "Should large museums open their doors on monday?",
    )
    assert pairs(found, "near-duplicate") == {("0", "1"), ("6", "7")}
    joined = cluster(found)
    assert [i.cluster for i in joined][:4] == ["0", "0", "2", "3"] and joined[7].cluster == "6"
    assert cluster(joined) == joined and len({i.cluster for i in cluster(found, 1.0)}) == 7
    for wrong in (0, 1.5):
        with pytest.raises(InputError, match="threshold"):
            cluster(found, wrong)


def test_clusters_that_were_there_stay() -> None:
    made = Items(
        [
            Item("a", "t", "Owls are wise birds of the night.", 1, "k"),
            Item("b", "t", "Bread is cheap.", 1, "k"),
            Item("c", "u", "Owls are wise birds of the night!", 1),
        ]
    )
    assert {i.cluster for i in cluster(made)} == {"k"}
    assert "other topic: u" in defects(made).findings[0].why


def test_similarity_is_the_dense_cosine() -> None:
    """Against the formula written out, with no blocks and nothing left out."""
    texts = ["owls hoot", "owls hoot hoot", "a bread", "owl", ""]
    grams = [[f" {w} "[k : k + n] for w in t.split() for n in (2, 3, 4) for k in range(len(w) + 3 - n)] for t in texts]
    names = sorted({g for each in grams for g in each})
    count = np.array([[each.count(g) for g in names] for each in grams], float)
    weight = np.where(count > 0, 1 + np.log(np.maximum(count, 1)), 0)
    weight *= np.log((1 + len(texts)) / (1 + (count > 0).sum(0))) + 1
    weight /= np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), 1e-12)
    expected = weight @ weight.T
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(similarity(texts), expected, atol=1e-5)


def test_opposite_words() -> None:
    assert (
        opposed("legal", "illegal") and opposed("fair", "unfair") and opposed("real", "fake") and opposed("good", "bad")
    )
    assert not opposed("cats", "dogs") and not opposed("fined", "jailed")


def test_report_of_an_unknown_kind() -> None:
    report = defects(asked("Should owls be protected?"))
    assert not report and "No defect was found" in str(report) and report.to_pandas().empty
    with pytest.raises(InputError, match="no kind of defect"):
        report.of("typo")
