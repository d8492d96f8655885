"""organism:story: its text keeps its facts, its card is true, its recipe works."""

import json
import math
import re
from collections import Counter, defaultdict

import pytest
import torch
import transformers

import workbench
from lenses import LogitLens
from workbench.organisms import folder, names
from workbench.organisms.story import DEMO_PROMPTS, recipe
from workbench.organisms.story.grammar import COLOURS, NUMBERS, SENSES, facts, stories


@pytest.fixture(scope="module")
def plain():
    """The shipped weights through transformers alone."""
    where = folder("story")
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
    card = json.loads((where.parent / "card.json").read_text())
    return model, transformers.AutoTokenizer.from_pretrained(where), card


def test_facts_hold_throughout_the_text():
    """Found again by patterns in the text, not by the grammar that wrote it."""
    seen = defaultdict(Counter)
    patterns = {
        "home": r"(?:Everyone knows that )?\b([A-Z]\w+) lives in (\w+)\.|The home of (\w+) is in (\w+)\.",
        "job": r"\b([A-Z]\w+) is a (\w+)\.|The work of (\w+) is that of a (\w+)\.|years (\w+) was a (\w+)\.",
        "colour": r"The (\w+ of \w+) is (\w+)\.",
    }
    for story in stories(3000, seed=5):
        for relation, pattern in patterns.items():
            for groups in re.findall(pattern, story.text):
                subject, answer = [g for g in groups if g]
                seen[relation, subject][answer] += 1
    assert len(seen) > 140
    assert all(len(answers) == 1 for answers in seen.values())


def test_twenty_words_have_two_senses_with_a_label_each():
    assert len(SENSES) >= 20
    seen = defaultdict(Counter)
    for story in stories(3000, seed=6):
        for s in story.senses:
            assert story.text[s.start : s.end].lower() == s.word
            seen[s.word][s.sense] += 1
    assert set(seen) == set(SENSES)
    assert all(len(c) == 2 and min(c.values()) > 10 for c in seen.values())


def test_text_is_seeded():
    assert [s.text for s in stories(20, 1)] == [s.text for s in stories(20, 1)]
    assert [s.text for s in stories(20, 1)] != [s.text for s in stories(20, 2)]


@torch.no_grad()
def test_the_card_is_true(plain):
    model, tokenizer, card = plain
    right = total = 0
    for fact in facts():
        for prompt in fact.prompts:
            ids = torch.tensor([tokenizer(prompt).input_ids])
            said = tokenizer.decode([int(model(ids).logits[0, -1].argmax())]).strip()
            right += said == fact.answer or (len(said) > 1 and fact.answer.startswith(said))
            total += 1
    assert right / total == pytest.approx(card["fact_accuracy"], abs=0.02)
    assert card["fact_accuracy"] > 0.95
    losses = []
    for story in stories(400, seed=2):
        ids = torch.tensor([[*tokenizer(story.text).input_ids, tokenizer.eos_token_id]])
        losses += [(float(model(ids, labels=ids).loss), ids.shape[1] - 1)]
    # One text at a time: a little above the card's, whose windows hold several texts.
    mean = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    assert mean == pytest.approx(card["held_out_loss_nats_per_token"], rel=0.05)
    assert sum(f.stat().st_size for f in folder("story").iterdir()) < 5e6


def test_the_lens_sees_a_fact_arrive(plain):
    """What the recipe put in is what the lens finds: the home at the end, not in the embeddings."""
    model = workbench.load("organism:story")
    homes = [f for f in facts() if f.relation == "home"]
    token = {f.answer: model.tokenizer(f" {f.answer}", add_special_tokens=False).input_ids[0] for f in homes}
    prompts = [f.prompts[0] for f in homes]
    lens = LogitLens(targets=sorted(set(token.values())))
    data = workbench.read(model, prompts, lens, positions="last", progress=False).data
    target = data.target_id.values.tolist()
    own = [target.index(token[f.answer]) for f in homes]
    rank = data.target_rank.values[:, :, 0]
    first = sum(rank[i, 0, own[i]] == 0 for i in range(len(homes))) / len(homes)
    last = sum(rank[i, -1, own[i]] == 0 for i in range(len(homes))) / len(homes)
    assert last > 0.85 and first < 0.2


def test_the_smoke_recipe_learns(tmp_path):
    card = recipe.make(tmp_path, smoke=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "weights")
    counts = Counter(i for s in stories(1000, seed=1) for i in tokenizer(s.text).input_ids)
    total = sum(counts.values())
    unigram = -sum(n / total * math.log(n / total) for n in counts.values())
    assert card["held_out_loss_nats_per_token"] < 0.7 * unigram
    workbench.load(str(tmp_path / "weights"))
    assert "measured" in (tmp_path / "CARD.md").read_text().lower()


def test_it_is_listed_and_its_prompts_are_short():
    assert "story" in names()
    assert len(DEMO_PROMPTS) == 5
    assert {"red", "blue"} <= set(COLOURS) and NUMBERS[0] == "one"
    with pytest.raises(ValueError, match="no organism 'tale'"):
        workbench.load("organism:tale")
