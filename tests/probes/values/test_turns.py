"""How instruments put a question: chat templates, where answers begin, and how much of the probability answers have."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from living import ITEMS as ASKED_ITEMS
from living import model as chat_module
from living import tokenizer as chat_tokenizer
from test_instruments import ITEMS, LETTERS, SCALE, behind_prompt, word_model, word_tokenizer
from tokenizers.processors import TemplateProcessing

import workbench
from probes.values.answers import LowMass, Turn, answer_pieces
from probes.values.choices import Choices
from probes.values.figures import trajectories
from probes.values.framings import Framing
from probes.values.instruments import Pmf, SampledText, SequenceLikelihood
from probes.values.items import Item
from probes.values.judged import LmJudge
from probes.values.measures import compare, stance
from probes.values.sampled import sample
from probes.values.tracker import ValueTracker
from workbench.errors import InputError
from workbench.figures.plot import Line
from workbench.inputs import encode

REAL = Path(os.path.expanduser("~/.cache/workbench-real/SmolLM2-135M-Instruct"))
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
YES = Framing("yes", {"statement": "{text} Is it right?"}, ("yes", "maybe", "no"), ("support", "neutral", "oppose"))


@pytest.fixture(scope="module")
def story() -> workbench.Model:
    return workbench.load("organism:story", progress=False)


def with_template(model: workbench.Model, template: str | None) -> workbench.Model:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return workbench.load(model.module, tokenizer=tokenizer, name="chat")


# ---------------------------------------------------------------- where answers begin


@pytest.mark.parametrize("lead", ["\nAnswer:", "\nAnswer: ", "\nAnswer:\n"], ids=repr)
def test_answers_are_found_as_the_whole_text_has_them(story, lead):
    """Letters behind a lead that ends in a space are one token with it, wherever the prompt was cut."""
    turn, tokenizer = Turn(story, False, lead), story.tokenizer
    question = LETTERS[0].shown(ITEMS[0])
    seam, pieces = answer_pieces(turn, LETTERS[0].answers, question=question)
    gap = "" if lead[-1].isspace() else " "
    for answer, own in zip(LETTERS[0].answers, pieces, strict=True):
        whole = tokenizer(question + lead + gap + answer)["input_ids"]
        assert [*turn.prompt(question, seam), *own[0]] == whole
    data = Pmf(LETTERS[:1], lead=lead).read(story, ITEMS[:1], progress=False).data
    p = behind_prompt(story, whole[:-1])
    want = [float(sum(p[x[0]] for x in own)) for own in pieces]
    np.testing.assert_allclose(data["p"].values[0, 0, :3], want, atol=1e-6)


def test_a_template_says_whether_a_space_stands_before_the_answer(story):
    chat = with_template(story, INST)
    question = LETTERS[0].shown(ITEMS[0])
    turn = Turn(chat)
    assert turn.text(question) == f"[INST] {question} [/INST]" and turn.gap == " "
    seam, pieces = answer_pieces(turn, LETTERS[0].answers, question=question)
    for answer, own in zip(LETTERS[0].answers, pieces, strict=True):
        whole = chat.tokenizer(f"[INST] {question} [/INST] {answer}", add_special_tokens=False)["input_ids"]
        assert [*turn.prompt(question, seam), *own[0]] == whole
    assert turn.asked.startswith("chat template ") and Turn(chat, chat=False).asked == "plain text"
    assert Turn(with_template(story, INST + " ")).asked != turn.asked


def test_first_tokens_are_not_doubled_and_last_ones_not_kept():
    words = word_tokenizer(("user", "assistant"))
    ends = [("<s>", words.bos_token_id), ("</s>", words.eos_token_id)]
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert words("dog")["input_ids"][0] == 1 and words("dog")["input_ids"][-1] == 2
    module = word_model(extra=("user", "assistant")).module
    plain = workbench.load(module, tokenizer=words, name="plain")
    ids = Turn(plain).ids("dog")
    assert ids == [1, *words("dog Answer:", add_special_tokens=False)["input_ids"]]
    words.chat_template = "{{ bos_token }} {% for m in messages %}user {{ m.content }} {% endfor %}assistant"
    ids = Turn(plain).ids("dog")
    assert ids.count(1) == 1 and ids[0] == 1 and 2 not in ids and ids[-1] == words.convert_tokens_to_ids("assistant")


def test_what_is_joined_with_the_answer_is_refused(story):
    with pytest.raises(InputError, match="joins the end of the prompt.*lead="):
        turn = Turn(story, False, "Answer")
        turn.gap = ""
        answer_pieces(turn, ("s", "ed"), "whole", "The dog is good. ")


def test_tokens_beyond_the_unembedding_are_refused():
    words = word_tokenizer()
    module = word_model().module
    words.add_tokens(["perhaps", "surely", "never"])
    own = Framing("own", {"statement": "{text}"}, ("perhaps", "surely", "never"), YES.stances)
    model = workbench.load(module, tokenizer=words, name="words")
    for ask in (Pmf([own]), Pmf([own], "whole"), Choices(letters=own.answers), SequenceLikelihood(dict(
        zip(YES.stances, ("perhaps", "The dog", "A cat"), strict=True)))):  # fmt: skip
        items = [Item("c", "t", "A cat sees a ball.", 1, "", "choice", options=("take it", "leave it"))]
        with pytest.raises(InputError, match=f"logits for the ids 0 to {model.vocab_size - 1}.*resize_token_emb"):
            ask.read(model, items if isinstance(ask, Choices) else ITEMS[:1], progress=False)


# ---------------------------------------------------------------- how much of the probability they have


def test_mass_is_what_all_answers_have_and_low_mass_is_told():
    loud = word_model({"A": 200.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowMass)
        assert float(Pmf(LETTERS).read(loud, ITEMS, progress=False)["mass"].min()) > 0.99
    silent = word_model({"house": 200.0})
    with pytest.warns(LowMass, match="pmf in plain text.*less than 0.5.*lead='Answer:'"):
        data = Pmf(LETTERS).read(silent, ITEMS, progress=False).data
    assert float(data["mass"].max()) < 0.01 and data.attrs["asked"] == "plain text"
    with pytest.warns(LowMass, match="choices in plain text"):
        Choices().read(silent, ITEMS[3:], progress=False)
    half = word_model({"A": 200.0})
    with pytest.warns(LowMass, match=r"in scale"):  # the scale has none, and the letters all
        Pmf((*LETTERS[:1], *SCALE)).read(half, ITEMS, progress=False)
    # A comparison of sentences is no share of what is said, and does not warn.
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowMass)
        assert float(SequenceLikelihood().read(silent, ITEMS, progress=False)["mass"].max()) < 1e-3


def test_a_judge_says_how_much_its_labels_have():
    judge = LmJudge(word_model({"yes": 200.0}), "{text} yes no maybe", ("yes", "maybe", "no"), lead="")
    own = SampledText(2, 1.0, 3, judge=judge).read(word_model({"dog": 8.0}), ITEMS, progress=False).data
    there = own["judge_mass"].values[[[bool(t.strip()) for t in row] for row in own["text"].values]]
    assert len(there) and (there > 0.99).all()
    with pytest.warns(LowMass, match="The judge"):
        LmJudge(word_model({"dog": 200.0}), "{text} yes no maybe", ("yes", "maybe", "no"), lead="")(["The dog"])


def test_items_in_another_language_are_told():
    strange = [Item("x", "t", "qqq zzz vvv www", 1), ITEMS[0]]
    with pytest.warns(UserWarning, match=r"1 of 2 items are more than 50% unknown.*\(x: 100%\)"):
        Pmf(LETTERS).read(word_model({"A": 200.0}), strange, progress=False)


# ---------------------------------------------------------------- a series


def test_a_tracker_holds_the_template_and_keeps_the_mass(tmp_path):
    def checkpoint(template: bool) -> workbench.Model:
        words = chat_tokenizer()
        words.chat_template = words.chat_template if template else None
        return workbench.load(chat_module().eval(), tokenizer=words, name="checkpoint")

    tracker = ValueTracker(tmp_path / "mixed", ASKED_ITEMS, [Pmf(LETTERS)])
    with pytest.warns(LowMass, match="Step 0: pmf in plain text") as said:
        tracker.run({0: checkpoint(False), 5: checkpoint(False)}, progress=False)
    assert len([w for w in said if w.category is LowMass]) == 1, "once, and not for each part and step"
    with pytest.raises(InputError, match="step 0 by pmf in plain text, and step 10 would be asked in chat template"):
        tracker.run({10: checkpoint(True)}, progress=False)
    again = ValueTracker(tmp_path / "mixed", ASKED_ITEMS, [Pmf(LETTERS)])
    with pytest.raises(InputError, match="chat=False"):
        again.run({10: checkpoint(True)}, progress=False)
    assert tracker.steps == [0, 5]
    data = tracker.readings().data
    assert data.attrs["asked"] == "plain text"
    np.testing.assert_allclose(data["mass"], 1 - data["p"].sel(stance="uncommitted"), atol=1e-6)
    table = stance(data).data
    np.testing.assert_allclose(table["mass"].mean("topic"), data["mass"].mean(("item", "sample")), atol=1e-6)
    lines = trajectories(table).plot.panels[0].of(Line)
    assert "mass of the answers" in [line.name for line in lines]
    fixed = ValueTracker(tmp_path / "fixed", ASKED_ITEMS, [Pmf(LETTERS, chat=False)])
    assert fixed.run({0: checkpoint(False), 10: checkpoint(True)}, progress=False).steps == [0, 10]
    other = ValueTracker(tmp_path / "chat", ASKED_ITEMS, [Pmf(LETTERS)])
    other.run({0: checkpoint(True), 5: checkpoint(True)}, progress=False)
    with pytest.warns(UserWarning, match="not asked in one way.*plain: plain text; chat: chat template"):
        compare({"plain": data, "chat": other.readings().data}, draws=50)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["recurrent_gemma", "rwkv", "llama"])
def test_what_is_written_does_not_depend_on_longer_prompts_beside(name):
    """Pads in front of the shorter prompt would move a recurrent state."""
    module = zoo.build(name)
    model = workbench.load(module, name=name)
    model.tokenizer = chat_tokenizer()
    prompts = encode(model, [[5, 6, 7], list(range(8, 28)), [9, 4], list(range(40, 52))], "last")
    uniform = np.random.default_rng(0).random((len(prompts), 12))
    together = sample(model, prompts, uniform, 1.0, batch_size=8, progress=False)
    alone = [sample(model, [p], uniform[[i]], 1.0, progress=False)[0] for i, p in enumerate(prompts)]
    assert together == alone


# ---------------------------------------------------------------- a real model


@pytest.mark.skipif(not REAL.exists(), reason="needs SmolLM2-135M-Instruct: make real")
def test_a_real_chat_model_is_asked_in_its_template():
    model = workbench.load(str(REAL), progress=False)
    tokenizer, question = model.tokenizer, LETTERS[0].shown(ITEMS[0])
    turn = Turn(model)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    seam, pieces = answer_pieces(turn, LETTERS[0].answers, question=question)
    assert turn.prompt(question, seam) == list(rendered) and turn.gap == ""
    assert tokenizer.decode(list(rendered)).endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode(own[0]) for own in pieces] == ["A", "B", "C"]
    with pytest.warns(LowMass, match="in chat template.*less than 0.5"):
        alone = Pmf((*LETTERS[:1], *SCALE[:1])).read(model, ITEMS[:2], progress=False).data
    led, spaced = (
        Pmf((*LETTERS[:1], *SCALE[:1]), lead=lead).read(model, ITEMS[:2], progress=False)["mass"].mean()
        for lead in ("Answer:", "Answer: ")
    )
    plain = Pmf(LETTERS[:1], chat=False).read(model, ITEMS[:2], progress=False)["mass"].mean()
    # It would rather end its turn in plain text, rather begin with "I" or "The" in a chat, and answers when begun.
    assert float(plain) < 0.1 and float(alone["mass"].mean()) < 0.5 < float(led)
    assert float(spaced) == pytest.approx(float(led), abs=0.05), "the space that ends the lead is the answer's"
    with torch.no_grad():
        p = model.module(torch.tensor([turn.prompt(question, seam)])).logits[0, -1].double().softmax(-1)
    want = sum(float(p[x[0]]) for own in pieces for x in own)
    assert float(alone["mass"].sel(item="s1", framing="letters_1")) == pytest.approx(want, rel=1e-3)
