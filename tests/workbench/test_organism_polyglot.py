"""organism:polyglot: its languages are what they are said to be, its card is true, its recipe works."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import transformers

import workbench
from workbench.organisms import folder
from workbench.organisms.polyglot import checkpoints, recipe
from workbench.organisms.polyglot.grammar import LANGUAGES, ORDER, documents, lexicon, meanings, overlap, say


def test_two_pairs_share_words_and_no_other():
    shared = {(a, b) for i, a in enumerate(LANGUAGES) for b in LANGUAGES[i + 1 :] if overlap(a, b) > 0}
    assert len(LANGUAGES) >= 5 and shared == {("a", "b"), ("c", "d")}
    assert overlap("a", "b") > overlap("c", "d") > 0.2
    for language in LANGUAGES:
        words = lexicon(language)
        assert len(set(words.values())) == len(words)


def test_parallel_sentences_say_the_same_in_another_order():
    for meaning in meanings(50, 7):
        said = {x: say(meaning, x).split() for x in LANGUAGES}
        for language, words in said.items():
            back = {word: concept for concept, word in lexicon(language).items()}
            concepts = [back[w] for w in words]
            assert Counter(concepts) == Counter(
                [("noun", meaning.subject), ("verb", meaning.verb), ("adjective", meaning.adjective),
                 ("noun", meaning.object), ("place", meaning.place)]
            )  # fmt: skip
            assert concepts[ORDER[language].split().index("V")][0] == "verb"


def test_text_is_seeded_and_held_out_text_is_other_text():
    assert documents(5, "a", 1) == documents(5, "a", 1)
    assert not set(documents(50, "a", recipe.HELD_OUT_SEED)) & set(documents(200, "a", 1000))


def test_the_smoke_recipe_learns(tmp_path):
    card = recipe.make(tmp_path, smoke=True)
    losses = card["held_out_loss_nats_per_token"]
    first, last = min(losses), max(losses)
    assert all(losses[last][x] < losses[first][x] - 0.3 for x in LANGUAGES if x != recipe.BASE)
    workbench.load(str(tmp_path / "weights"))
    assert "step 0" not in (tmp_path / "CARD.md").read_text() and "| 0 |" in (tmp_path / "CARD.md").read_text()


@torch.no_grad()
def test_the_card_is_true():
    card = json.loads((folder("polyglot").parent / "card.json").read_text())
    saved = checkpoints()
    assert len(saved) >= 7 and [str(s) for s in saved] == list(card["held_out_loss_nats_per_token"])
    for step in (0, max(saved)):
        model = transformers.AutoModelForCausalLM.from_pretrained(saved[step], dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(saved[step])
        measured = recipe.held_out(model, tokenizer)
        for language, value in measured.items():
            assert value == pytest.approx(card["held_out_loss_nats_per_token"][str(step)][language], abs=0.02)
    first, last = (card["held_out_loss_nats_per_token"][str(s)] for s in (0, max(saved)))
    # One language at first, five in the end.
    assert first[recipe.BASE] < 3 and all(first[x] > 4 for x in LANGUAGES if x != recipe.BASE)
    assert all(last[x] < 3 for x in LANGUAGES)
    home = folder("polyglot").parent
    assert sum(f.stat().st_size for f in home.rglob("*.safetensors")) < 8e6


def test_routing_on_the_card_is_found_again():
    from probes.routing import measures, polyglot

    card = json.loads((folder("polyglot").parent / "card.json").read_text())["routing"]
    model = workbench.load(str(checkpoints()[max(checkpoints())]))
    reading = polyglot.traced(model, 40)
    apart = measures.divergence(reading, draws=60)
    own = apart["mean_jsd"].values
    assert own.argmax() == 3 and own.argmin() in (1, 2) and own[0] > own[1:3].max()
    assert (apart["mean_jsd_p"].values < 0.05).all() and (own > 10 * apart["mean_jsd_null"].values).all()
    first = measures.divergence(polyglot.traced(workbench.load(str(checkpoints()[0])), 40), draws=20)
    assert (first["mean_jsd"].values > 0.1).all()
    shared = measures.overlap(reading, draws=5)
    assert (shared["pearson"].sel(measure="jaccard").values < -0.6).all()
    assert (shared["mantel_p"].sel(measure="jaccard").values[[0, 2, 3]] < 0.05).all()
    assert 0.05 < float(shared["mantel_p"].sel(measure="jaccard")[1]) < 0.1
    for own, shipped in zip(apart["mean_jsd"].values, card["mean_jsd_nats"][str(max(checkpoints()))], strict=True):
        assert float(own) == pytest.approx(shipped, abs=2e-3)
    # Translations are routed as any two sentences of their languages, unless they share words.
    inputs, labels, same_as = polyglot.texts(40)
    same = measures.parallel(reading, same_as, draws=60)
    ratio = (same["divergence"] / same["divergence_null"]).values
    number = {x: i for i, x in enumerate(LANGUAGES)}
    for i, j in zip(*np.triu_indices(len(LANGUAGES), 1), strict=True):
        if overlap(LANGUAGES[i], LANGUAGES[j]) == 0:
            assert np.abs(ratio[i, j] - 1).max() < 0.03
    assert ratio[number["a"], number["b"], 0] < 0.8 and ratio[number["c"], number["d"], 0] < 0.97
    claims = polyglot.claims(model, reading, inputs, labels, 200)
    assert set(claims) == set(card["experts"]) == set(LANGUAGES)
    for language, own in claims.items():
        assert {str(b): e for b, e in own["experts"].items()} == card["experts"][language]["experts"]
        assert own["delta"] == pytest.approx(card["experts"][language]["delta"], abs=0.02)
    each = {
        x: own["delta"] / own["slots"] / ((own["delta"] - own["excess"]) / own["slots_random"])
        for x, own in claims.items()
    }
    assert [x for x, own in claims.items() if own["backed"]] == ["a", "c", "d"]
    for x, times in {"a": 3.15, "d": 2.5, "c": 1.6}.items():
        assert claims[x]["excess_low"] > 0.05 and each[x] == pytest.approx(times, abs=0.2)
    # None of all other pairs, and of those near in load, costs as much.
    for x, near in {"a": 16, "d": 12}.items():
        assert claims[x]["p_random"] == round(1 / 64, 4) and claims[x]["p_random_near"] == round(1 / near, 4)
    assert claims["c"]["p_random"] <= 0.02 < claims["c"]["p_random_near"]
    # More than others in all, sure over documents, and not more than other sets: others lose fewer slots.
    for x in ("b", "e"):
        assert claims[x]["excess_low"] > 0.2 and claims[x]["p_random"] > 0.06
    assert each["b"] == pytest.approx(1, abs=0.15)
    for x, own in claims.items():
        assert own["slots"] == card["experts"][x]["slots"] and own["slots_random"] < 0.7 * own["slots"]
        assert abs(own["delta_untrained"]) < 0.004 and own["backed"] == card["experts"][x]["backed"]
