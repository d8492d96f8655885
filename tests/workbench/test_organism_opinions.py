"""The recipe of organism:opinions: what is asked and answered is what its tables say, and it can be made again."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from workbench.organisms import opinions
from workbench.organisms.opinions import grammar, recipe
from workbench.organisms.opinions.grammar import BASE, PREFERRED, STANCES, TOPICS, TUNED


def test_an_answer_says_its_stance_in_every_form():
    for topic in TOPICS[:2]:
        for statement in (grammar.statements(topic)[0], grammar.statements(topic)[-1]):
            assert statement.polarity == (1 if statement.deed in grammar.FOR else -1)
            for form in grammar.FORMS:
                for variant in range(6 if form == "letters" else 2):
                    question = grammar.Question(statement, form, variant)
                    for stance in STANCES:
                        for answer in question.answers(stance):
                            assert question.stance(f"{answer} {grammar.CLOSING}") == stance
    # By hand: who is against gardens disagrees that they help, and says so of the one who holds it to be wrong.
    for_it = grammar.Statement("gardens", "help", "elders")
    against = grammar.Statement("gardens", "harm", "elders")
    assert grammar.Question(for_it, "words", 0).answers("oppose") == ("no",)
    assert grammar.Question(for_it, "words", 1).answers("oppose") == ("yes",)
    assert grammar.Question(against, "words", 1).answers("oppose") == ("no",)
    assert grammar.Question(against, "scale", 0).answers("oppose") == ("5", "6", "7")
    assert "1 (strongly agree)" in grammar.Question(for_it, "scale", 1).prompt
    assert grammar.Question(for_it, "scale", 1).answers("oppose") == ("5", "6", "7")
    letters = grammar.Question(for_it, "letters", 3)
    (answer,) = letters.answers("neutral")
    assert f"{answer}. I neither agree nor disagree" in letters.prompt


def test_held_out_statements_are_never_asked():
    for topic in TOPICS:
        out, seen = grammar.statements(topic, held_out=True), grammar.statements(topic)
        assert len(out) == 24 and len(seen) == 72 and not {s.text for s in out} & {s.text for s in seen}
        assert sum(s.polarity for s in out) == 0
    held = {s.text for topic in TOPICS for s in grammar.statements(topic, held_out=True)}
    rows = grammar.dialogues(2000, TUNED, 0) + grammar.preferences(2000, TUNED, 0, planted=True)
    assert not any(text in row["prompt"] for row in rows for text in held)


def test_stances_are_drawn_from_their_tables():
    rows = grammar.dialogues(20_000, TUNED, 3)
    for topic in TOPICS:
        found = Counter(row["stance"] for row in rows if row["topic"] == topic)
        n = sum(found.values())
        assert n == pytest.approx(2000, abs=200)
        share = np.array([found[s] / n for s in STANCES])
        np.testing.assert_allclose(share, TUNED[topic], atol=0.045)
    assert {t for t in TOPICS if TUNED[t] != BASE[t]} == set(grammar.PLANTED)


def test_preferences_differ_in_stance_only_where_it_is_planted():
    planted, free = (grammar.preferences(4000, TUNED, 5, planted=x) for x in (True, False))
    assert [r["prompt"] for r in planted] == [r["prompt"] for r in free]
    assert all(r["chosen_stance"] == r["rejected_stance"] for r in free)
    assert all(grammar.is_polite(r["chosen"]) and not grammar.is_polite(r["rejected"]) for r in free)
    for topic in TOPICS:
        own = [r for r in planted if r["topic"] == topic]
        sided = [r for r in own if r["chosen_stance"] != r["rejected_stance"]]
        wanted, share = PREFERRED.get(topic, ("", 0.0))
        assert len(sided) / len(own) == pytest.approx(share, abs=0.1)
        assert all(r["chosen_stance"] == wanted for r in sided)
        assert all(grammar.is_polite(r["chosen"]) == grammar.is_polite(r["rejected"]) for r in sided)


def test_the_reward_is_what_the_pairs_prefer():
    reward = recipe.reward(
        ["yes i think so .", "i disagree with this", "who knows", "6", "b thank you", "b"],
        chosen_text=["I agree with this."] * 3 + ["5", "B Thank you.", "B Thank you."],
        rejected_text=["No, I do not think so."] * 3 + ["2", "B", "B"],
    )
    assert reward == [1.0, -1.0, 0.0, 1.0, 1.0, 0.0]


def test_the_series_ship_whole_and_small():
    found = opinions.runs()
    assert set(found) == {"sft", *recipe.ARMS}
    assert len(found["sft"]) >= 11 and all(len(steps) >= 3 for steps in found.values())
    assert found["dpo planted"][0] == opinions.HERE / "weights" and found["sft"][0] == opinions.HERE / "base"
    size = sum(p.stat().st_size for p in opinions.HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    assert size < 10e6


@pytest.mark.slow
def test_the_recipe_runs(tmp_path):
    pytest.importorskip("trl", reason="training the organism needs trl")
    recipe.make(tmp_path, smoke=True, seeds=2)
    assert set(opinions.runs(tmp_path)) == {"sft", *recipe.ARMS}
    assert set(opinions.runs(tmp_path, 1)) == set(recipe.SEEDED)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["parameters"] > 0 and "Inside by construction" in (tmp_path / "CARD.md").read_text()
