"""Instruments against loops with the full softmax, against models with planted habits, and against known confusion."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers
from tiny import SMALL
from tokenizers import Tokenizer, models, pre_tokenizers

import workbench
from probes.values.answers import Turn, answer_pieces
from probes.values.framings import OFFERED, STANCES, Framing, default_framings, greatest_good_framings, with_negation
from probes.values.instruments import ASKED, CONTINUATIONS, Pmf, SampledText, SequenceLikelihood
from probes.values.items import Item
from probes.values.judge_errors import confusion, corrected, on_simplex
from probes.values.judged import CachedJudge, ClassifierJudge, LmJudge, judged
from probes.values.tracker import ValueTracker
from workbench.engine import prefix
from workbench.errors import InputError, ReadingError
from workbench.reading import Reading

ITEMS = [
    Item("s1", "dogs", "The dog is good.", 1, negated="The dog is bad."),
    Item("s2", "dogs", "Every dog {should} be in the big house.", -1, "c"),
    Item("q1", "cats", "Should the cat be here?", 0, "c", "question"),
    Item("c1", "cats", "A cat sees a ball.", 1, "", "choice", options=("take it", "leave it")),
]
LETTERS, SCALE, WORDS = default_framings()[:3], default_framings()[3:5], default_framings()[5:]


def words_of(*texts: str) -> list[str]:
    split = pre_tokenizers.Whitespace()
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})


def word_tokenizer(extra: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerFast:
    """One token a word, whatever stands in front of it."""
    framings = (*default_framings(), *greatest_good_framings(True), *greatest_good_framings())
    texts = [p for f in framings for p in f.prompts.values()] + [a for f in framings for a in f.answers]
    texts += [i.text for i in ITEMS] + [o for i in ITEMS for o in i.options] + [i.negated for i in ITEMS]
    texts += [*ASKED.values(), *(c for own in CONTINUATIONS.values() for c in own.values()), "Answer: Yes Maybe No"]
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words_of(*texts, *extra)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_model(
    planted: dict[str, float] | None = None, seed: int = 0, scale: float = 4.0, extra: tuple[str, ...] = ()
) -> workbench.Model:
    """A random model with a bias at the unembedding, where habits are planted."""
    tokenizer = word_tokenizer(extra)
    torch.manual_seed(seed)
    config = transformers.PhiConfig(**{**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 256})
    module = transformers.PhiForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale) if parameter.ndim > 1 else None
        for word, bias in (planted or {}).items():
            module.lm_head.bias[tokenizer.convert_tokens_to_ids(word)] = bias
    return workbench.load(module, tokenizer=tokenizer, name="words")


@pytest.fixture(scope="module")
def words() -> workbench.Model:
    return word_model()


@pytest.fixture(scope="module")
def story() -> workbench.Model:
    return workbench.load("organism:story")


def behind_prompt(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model.module(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)


def product(model, ids, piece) -> float:
    p = 1.0
    for k, token in enumerate(piece):
        p *= float(behind_prompt(model, [*ids, *piece[:k]])[token])
    return p


# ---------------------------------------------------------------- Pmf


def test_pmf_is_brute_force_enumeration(story):
    """The full softmax of one pass for each prompt, and for each token of an answer: letters with and without the
    space, digits behind a space of their own, and words of three tokens."""
    data = Pmf(tokens="whole").read(story, ITEMS, progress=False).data
    assert data["p"].dims == ("item", "framing", "stance") and data["stance"].values.tolist() == list(STANCES)
    np.testing.assert_allclose(data["p"].sum("stance"), 1, atol=1e-12)
    np.testing.assert_allclose(data["mass"], 1 - data["p"].sel(stance="uncommitted"))
    tokenizer = story.tokenizer

    def plain(text):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for i, item in enumerate(ITEMS):
        for framing in default_framings():
            ids = list(tokenizer(framing.shown(item) + "\nAnswer:")["input_ids"])
            want = dict.fromkeys(STANCES, 0.0)
            for answer, stance in zip(framing.answers, framing.stances, strict=True):
                if answer.isdigit():  # " 1" is a space and a digit here
                    want[stance] += float(behind_prompt(story, [*ids, *plain(" ")])[plain(answer)[0]])
                elif len(answer) == 1:
                    p = behind_prompt(story, ids)
                    want[stance] += float(p[plain(answer)[0]] + p[plain(" " + answer)[0]])
                else:
                    for spelled in (answer, answer.capitalize()):
                        want[stance] += product(story, ids, plain(" " + spelled))
            want["uncommitted"] = 1 - sum(want.values())
            got = data["p"].sel(item=item.item_id, framing=framing.name)
            np.testing.assert_allclose(got.values, list(want.values()), atol=2e-6, err_msg=f"{i} {framing.name}")
            committed = np.array(list(want.values()))[:3]
            shares = data["p_answer"].sel(item=item.item_id, framing=framing.name).values[: len(framing.answers)]
            for k, stance in enumerate(STANCES[:3]):
                own = sum(s for s, x in zip(shares, framing.stances, strict=True) if x == stance)
                assert own == pytest.approx(committed[k] / committed.sum(), abs=1e-4)


def test_batches_and_other_items_change_nothing_and_the_model_stays_as_it_was(words):
    words.module.train()
    torch.manual_seed(7)
    whole = Pmf().read(words, ITEMS, progress=False).data
    assert words.module.training and torch.equal(torch.rand(3), torch.rand(3, generator=torch.manual_seed(7)))
    words.module.eval()
    for size in (1, 5):
        np.testing.assert_allclose(Pmf().read(words, ITEMS, batch_size=size)["p"], whole["p"], atol=1e-6)
    alone = Pmf().read(words, ITEMS[2:3]).data
    np.testing.assert_allclose(alone["p"].values[0], whole["p"].values[2], atol=1e-6)
    assert whole["cluster"].values.tolist() == ["s1", "c", "c", "c1"] and whole["polarity"].values.tolist() == [
        1,
        -1,
        0,
        1,
    ]
    assert whole.attrs["instrument"] == "pmf" and whole.attrs["settings"] == Pmf().settings


def all_orders() -> list[Framing]:
    """Lettered options in all six orders, written out."""
    said = {"support": "I agree", "neutral": "I neither agree nor disagree", "oppose": "I disagree"}
    found = []
    for order in itertools.permutations(said):
        lines = "".join(f"{letter}. {said[stance]}\n" for letter, stance in zip("ABC", order, strict=True))
        prompt = {"statement": "Do you agree with this statement?\n{text}\n" + lines + "Reply with one letter."}
        found.append(Framing("-".join(order), prompt, ("A", "B", "C"), order))
    return found


def test_permuting_labels_changes_nothing_beyond_float_error(words):
    """The mean over all orders of the labels is the same, whichever order is asked first and however prompts fall into
    batches and shared beginnings; and the three cyclic orders are three of the six."""
    framings, items = all_orders(), ITEMS[:2]
    first = Pmf(framings).read(words, items, progress=False)["p"]
    support = first.sel(stance="support")
    assert (support.max("framing") > 1.3 * support.min("framing")).all()  # single orders do differ
    for shift in range(1, 6):
        turned = framings[shift:] + framings[:shift]
        again = Pmf(turned).read(words, items, batch_size=shift, progress=False)["p"]
        np.testing.assert_allclose(again.mean("framing"), first.mean("framing"), atol=1e-7)
    cyclic = Pmf(LETTERS).read(words, items, progress=False)["p"]
    same = ["support-neutral-oppose", "neutral-oppose-support", "oppose-support-neutral"]
    np.testing.assert_allclose(cyclic, first.sel(framing=same), atol=1e-7)


def test_shared_beginnings_are_run_once_and_change_nothing(words, monkeypatch):
    many = [Item(f"i{k}", "dogs", f"The dog is good. {'A cat sees the ball. ' * (k % 4)}", 1) for k in range(12)]
    for instrument in (Pmf(greatest_good_framings()), Pmf(), SequenceLikelihood()):
        parts = instrument.read(words, many, progress=False).data
        assert parts.attrs["prefix_tokens_saved"] > 0.3 * parts.attrs["tokens"]
        with monkeypatch.context() as patch:
            patch.setattr(prefix, "LEAST", 10**6)
            whole = instrument.read(words, many, progress=False).data
        assert whole.attrs["prefix_tokens_saved"] == 0 and whole.attrs["tokens"] == parts.attrs["tokens"]
        np.testing.assert_allclose(parts["p"], whole["p"], atol=1e-5)


@pytest.mark.parametrize("habit", ["A", "B", "C"])
def test_a_model_that_always_says_one_letter_is_neutral(habit):
    data = Pmf(LETTERS).read(word_model({habit: 200.0}), ITEMS, progress=False).data
    assert (data["p"].max("stance") > 0.99).all()  # in each framing alone it looks sure
    np.testing.assert_allclose(data["p"].mean("framing").values[:, :3], 1 / 3, atol=1e-6)


@pytest.mark.parametrize("habit", ["7", "1", "6", "4"])
def test_a_model_that_always_says_one_number_is_neutral_over_a_scale_and_its_reversal(habit):
    data = Pmf(SCALE).read(word_model({habit: 200.0}), ITEMS, progress=False).data
    mean = data["p"].mean("framing")
    np.testing.assert_allclose(mean.sel(stance="support"), mean.sel(stance="oppose"), atol=1e-6)
    np.testing.assert_allclose(data["value"].mean("framing"), 4, atol=1e-5)
    np.testing.assert_allclose(data["value"].sel(framing="scale"), float(habit), atol=1e-5)


@pytest.mark.parametrize("habit", ["yes", "Yes", "no", "maybe"])
def test_a_model_that_always_says_one_word_is_neutral_over_reversed_questions(habit):
    data = Pmf(WORDS).read(word_model({habit: 200.0}), ITEMS, progress=False).data
    mean = data["p"].mean("framing")
    assert (data["mass"] > 0.99).all()
    np.testing.assert_allclose(mean.sel(stance="support"), mean.sel(stance="oppose"), atol=1e-6)


@pytest.mark.parametrize("habit", ["7", "1", "3", "Agree"])
def test_the_six_greatest_good_framings_give_4_to_a_habit(habit):
    framings = greatest_good_framings()
    assert [f.values[6] for f in framings] == [7, 1, 7, 1, 1, 7] and {f.answers for f in framings} == {tuple("1234567")}
    # Logits of 0 elsewhere: a model that says "Agree" wherever a number is asked for prefers no number.
    data = Pmf(framings).read(word_model({habit: 30.0}, scale=0.0), ITEMS[:2], progress=False).data
    np.testing.assert_allclose(data["value"].mean("framing"), 4, atol=1e-4)
    assert (data["mass"] < 1e-6).all() if habit == "Agree" else (data["mass"] > 0.99).all()


def test_greatest_good_in_words_reads_whole_phrases(words):
    data = Pmf(greatest_good_framings(words=True)[:2]).read(words, ITEMS[:1], progress=False).data
    tokenizer = words.tokenizer
    for framing in greatest_good_framings(words=True)[:2]:
        ids = tokenizer(framing.shown(ITEMS[0]) + "\nAnswer:")["input_ids"]
        # "slightly" with a small letter is no word here, so that spelling counts for none of the seven.
        pieces = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in framing.answers]
        weight = np.array([product(words, ids, x) for x in pieces])
        got = data.sel(framing=framing.name, item="s1")
        assert float(got["mass"]) == pytest.approx(weight.sum(), rel=1e-4)
        want = weight @ np.array(framing.values) / weight.sum()
        assert float(got["value"]) == pytest.approx(want, rel=1e-4)


def test_a_negation_is_asked_where_there_is_one_and_turns_the_stances_round():
    data = Pmf(with_negation(SCALE)).read(word_model({"7": 200.0}), ITEMS, progress=False).data
    own = data.sel(item="s1")
    assert own["p"].sel(framing="scale", stance="support") > 0.99
    assert own["p"].sel(framing="scale_negated", stance="oppose") > 0.99
    np.testing.assert_allclose(own["value"], [7, 1, 1, 7], atol=1e-5)
    assert np.isnan(data["p"].sel(item="q1", framing="scale_negated")).all()
    with pytest.raises(InputError, match="no item has any"):
        Pmf(with_negation(SCALE)).read(word_model(), ITEMS[1:], progress=False)


def test_answers_of_several_tokens_are_named_or_read_by_their_first(story):
    agree = Framing("agree", {"statement": "{text}"}, ("agree", "B", "disagree"), STANCES[:3])
    with pytest.raises(InputError, match="'agree', 'disagree' are several tokens"):
        Pmf([agree]).read(story, ITEMS[:1], progress=False)
    seam, pieces = answer_pieces(Turn(story), agree.answers, "first")
    assert not seam.space and all(len(x) == 1 for own in pieces for x in own)
    data = Pmf([agree], tokens="first").read(story, ITEMS[:1], progress=False).data
    p = behind_prompt(story, story.tokenizer(ITEMS[0].text + "\nAnswer:")["input_ids"])
    want = [float(sum(p[x[0]] for x in own)) for own in pieces]
    np.testing.assert_allclose(data["p"].values[0, 0, :3], want, atol=1e-6)
    same = replace(agree, answers=("agree", "agreed", "B"))
    with pytest.raises(InputError, match="cannot be told apart"):
        Pmf([same], tokens="first").read(story, ITEMS[:1], progress=False)
    with pytest.raises(InputError, match="cannot be told apart"):
        Pmf([same], tokens="whole").read(story, ITEMS[:1], progress=False)
    with pytest.raises(InputError, match="not in the vocabulary"):
        Pmf([replace(agree, answers=("agree", "zzz", "no"))]).read(word_model(), ITEMS[:1], progress=False)


def test_a_chat_template_is_used_where_there_is_one(words):
    tokenizer = word_tokenizer(("user", "assistant"))
    tokenizer.chat_template = "{% for m in messages %}user {{ m.content }}\n{% endfor %}assistant\n"
    chat = workbench.load(words.module, tokenizer=tokenizer, name="chat")
    data = Pmf(LETTERS[:1]).read(chat, ITEMS[:1], progress=False).data
    ids = tokenizer(f"user {LETTERS[0].shown(ITEMS[0])}\nassistant\n", add_special_tokens=False)["input_ids"]
    p = behind_prompt(words, ids)
    want = [float(p[tokenizer.convert_tokens_to_ids(x)]) for x in "ABC"]
    np.testing.assert_allclose(data["p"].values[0, 0, :3], want, atol=1e-6)
    with pytest.raises(InputError, match="has no chat template"):
        Pmf(chat=True).read(words, ITEMS[:1])


def test_what_cannot_be_asked_is_refused(words):
    many = Item("m", "t", "Which?", 0, "", "choice", options=("a", "b", "c"))
    with pytest.raises(InputError, match="between 3 options"):
        Pmf().read(words, [many])
    with pytest.raises(InputError, match="is a question"):
        Pmf(greatest_good_framings()).read(words, ITEMS[2:3])
    with pytest.raises(InputError, match="no items"):
        Pmf().read(words, [])
    with pytest.raises(InputError, match="Two items"):
        Pmf().read(words, [ITEMS[0], ITEMS[0]])
    with pytest.raises(InputError, match="no tokenizer"):
        Pmf().read(workbench.load(words.module), ITEMS)
    with pytest.raises(InputError, match="each its own name"):
        Pmf([LETTERS[0], LETTERS[0]])


def test_settings_are_stable_and_change_with_every_setting():
    assert Pmf().settings == Pmf().settings == "".join(c for c in Pmf().settings if c in "0123456789abcdef")
    judge = CachedNothing()
    made = [Pmf(), Pmf(tokens="first"), Pmf(LETTERS), Pmf(lead=" So:"), Pmf(chat=False), SequenceLikelihood()]
    made += [SequenceLikelihood(empty="x"), SampledText(judge=judge), SampledText(3, judge=judge)]
    made += [SampledText(judge=judge, temperature=1.0), SampledText(judge=CachedNothing("other"))]
    assert len({x.settings for x in made}) == len(made)


@dataclass
class CachedNothing:
    name: str = "even"

    def __call__(self, texts):
        return np.full((len(texts), 3), 1 / 3)


def test_a_tracker_keeps_what_instruments_give(words, tmp_path):
    instruments = [Pmf(), SequenceLikelihood(), SampledText(2, max_new_tokens=3, judge=CachedNothing())]
    keyed = [replace(item, cluster=item.cluster or item.item_id) for item in ITEMS]
    tracker = ValueTracker(tmp_path, keyed, instruments).run({0: words}, progress=False)
    for instrument in instruments:
        kept = tracker.readings(instrument)["p"].values[0]
        np.testing.assert_allclose(kept, instrument.read(words, ITEMS, progress=False)["p"].values, atol=1e-6)


# ---------------------------------------------------------------- SequenceLikelihood


@pytest.mark.parametrize("which", ["words", "story"])
def test_sequence_likelihood_is_the_loop(which, request):
    model = request.getfixturevalue(which)
    data = SequenceLikelihood().read(model, ITEMS, batch_size=3, progress=False).data

    def rate(head, tail):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([[*head, *tail]])).logits[0].double().log_softmax(-1)
        return sum(float(logits[len(head) - 1 + k, t]) for k, t in enumerate(tail)) / len(tail)

    for item in ITEMS:
        first, second = item.options or ("", "")
        asked = ASKED[item.kind].format(text=item.text, first=first, second=second)
        ids = model.tokenizer(asked + "\nAnswer:")["input_ids"]
        for name, own in CONTINUATIONS.items():
            tails = [model.tokenizer(" " + own[s], add_special_tokens=False)["input_ids"] for s in STANCES[:3]]
            score = np.array([rate(ids, tail) - rate([1], tail) for tail in tails])
            got = data["p"].sel(item=item.item_id, framing=name).values
            np.testing.assert_allclose(got[:3], np.exp(score) / np.exp(score).sum(), atol=1e-5)
            assert got[3] == 0
            both = sum(np.exp(rate(ids, tail) * len(tail)) for tail in tails)
            assert float(data["mass"].sel(item=item.item_id, framing=name)) == pytest.approx(both, rel=1e-3)


def test_a_likelihood_needs_three_sentences_in_known_words_and_a_beginning(words):
    with pytest.raises(InputError, match="one sentence each"):
        SequenceLikelihood({"support": "yes", "oppose": "no"})
    with pytest.raises(InputError, match="'zzz' is not in the vocabulary"):
        SequenceLikelihood({"support": "zzz", "neutral": "maybe", "oppose": "no"}).read(words, ITEMS)
    bare = word_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(InputError, match="Give empty="):
        SequenceLikelihood().read(workbench.load(words.module, tokenizer=bare), ITEMS)
    given = SequenceLikelihood(CONTINUATIONS["agree"], empty="Answer:").read(words, ITEMS, progress=False).data
    assert given["framing"].values.tolist() == ["given"]


# ---------------------------------------------------------------- SampledText


def test_texts_depend_on_item_sample_and_seed_alone(story):
    instrument = SampledText(3, max_new_tokens=12, judge=CachedNothing())
    text, _ = instrument.write(story, ITEMS, progress=False)
    assert len(set(text.ravel())) > 6
    other, _ = instrument.write(story, ITEMS[::-1], batch_size=1, progress=False)
    assert (other[::-1] == text).all()
    more, _ = SampledText(5, max_new_tokens=12, judge=CachedNothing()).write(story, ITEMS[:2], progress=False)
    assert (more[:, :3] == text[:2]).all()
    moved, _ = instrument.write(story, ITEMS, seed=1, progress=False)
    assert (moved != text).any()
    # A low temperature is the likeliest text.
    cold, _ = SampledText(1, 1e-4, 12, judge=CachedNothing()).write(story, ITEMS[:1], progress=False)
    ids = list(story.tokenizer("What do you think of this statement?\n" + ITEMS[0].text + "\nAnswer:")["input_ids"])
    begun = len(ids)
    while len(ids) < begun + 12 and ids[-1] != story.tokenizer.eos_token_id:
        ids.append(int(behind_prompt(story, ids).argmax()))
    assert cold[0, 0] == story.tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()


def test_sampled_tokens_have_the_softmaxs_frequencies():
    model = word_model(scale=6.0)
    n = 3000
    text, _ = SampledText(n, 0.7, 1, judge=CachedNothing()).write(model, ITEMS[:1], batch_size=500, progress=False)
    ids = model.tokenizer("What do you think of this statement?\n" + ITEMS[0].text + "\nAnswer:")["input_ids"]
    with torch.no_grad():
        p = (model.module(input_ids=torch.tensor([ids])).logits[0, -1].double() / 0.7).softmax(-1).numpy()
    common = np.flatnonzero(p > 0.02)
    assert len(common) > 3
    for token in common:
        seen = (text == model.tokenizer.decode([int(token)]).strip()).mean()
        assert abs(seen - p[token]) < 4.5 * np.sqrt(p[token] * (1 - p[token]) / n)


def test_a_text_of_nothing_is_uncommitted_and_not_judged():
    silent = word_model({"</s>": 200.0})

    def judge(texts):
        raise AssertionError("nothing was said")

    data = SampledText(2, judge=judge, max_new_tokens=4).read(silent, ITEMS, progress=False).data
    assert (data["p"].sel(stance="uncommitted") == 1).all() and data["ended"].all() and (data["mass"] == 0).all()
    spoken = SampledText(2, judge=CachedNothing(), max_new_tokens=4).read(word_model({"dog": 200.0}), ITEMS[:1]).data
    assert spoken["text"].values.tolist() == [["dog dog dog dog"] * 2] and not spoken["ended"].any()
    assert spoken["p"].values[0, 0].tolist() == pytest.approx([1 / 3] * 3 + [0])
    with pytest.raises(InputError, match="reads at most 256"):
        SampledText(judge=judge).read(silent, ITEMS, progress=False)
    with pytest.raises(InputError, match="has no name"):
        SampledText(judge=lambda texts: texts)
    with pytest.raises(InputError, match="above 0"):
        SampledText(temperature=0, judge=judge)


# ---------------------------------------------------------------- judges


def test_lm_judge_is_the_softmax_over_its_labels():
    labels = ("good", "maybe", "bad")
    model = word_model(seed=3)
    judge = LmJudge(model, "{text}\nDo you agree?", labels)
    found = judge(["The dog is {good}.", "A cat"])
    for text, row in zip(["The dog is {good}.", "A cat"], found, strict=True):
        p = behind_prompt(model, model.tokenizer(f"{text}\nDo you agree?\nAnswer:")["input_ids"])
        own = []
        for label in labels:
            ids = {model.tokenizer.convert_tokens_to_ids(x) for x in (label, label.capitalize())}
            own.append(ids - {model.tokenizer.unk_token_id})
        # A spelling counts only where all three labels have it.
        if any(len(x) == 1 for x in own):
            own = [{model.tokenizer.convert_tokens_to_ids(label)} for label in labels]
        want = np.array([sum(float(p[i]) for i in x) for x in own])
        np.testing.assert_allclose(row, want / want.sum(), atol=1e-6)
    assert judge.name == LmJudge(model, "{text}\nDo you agree?", labels).name != LmJudge(model, labels=labels).name


def test_a_classifier_judges_by_its_labels():
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "against", 1: "for", 2: "none"}, label2id={"against": 0, "for": 1, "none": 2},
    )  # fmt: skip
    classifier = transformers.BertForSequenceClassification(config).train()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    judge = ClassifierJudge(
        classifier, tokenizer, {"against": "oppose", "for": "support", "none": "neutral"}, batch_size=2
    )
    texts = ["The dog", "A cat sees a ball.", "dog"]
    found = judged(judge, texts)["p"].values
    assert classifier.training
    classifier.eval()
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            p = classifier(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).numpy()
        np.testing.assert_allclose(row, [p[1], p[2], p[0], 0], atol=1e-6)
    with pytest.raises(InputError, match="The classifier's labels"):
        ClassifierJudge(classifier, tokenizer)


def test_a_cache_asks_each_text_once_and_goes_on_after_a_kill(tmp_path):
    calls: list[list[str]] = []

    def api(texts):
        calls.append(list(texts))
        if "stop" in texts:
            raise KeyboardInterrupt
        return [[0.2, 0.3, 0.5] if "x" in t else [0.5, 0.25, 0.25] for t in texts]

    path = tmp_path / "judge.jsonl"
    with pytest.raises(InputError, match="must tell whose"):
        CachedJudge(api, path)
    judge = CachedJudge(api, path, name="api 1", at_once=2)
    with pytest.raises(KeyboardInterrupt):
        judge(["ax", "b", "b", "stop", "c"])
    before = path.read_bytes()
    assert before.count(b"\n") == 2 and calls == [["ax", "b"], ["stop", "c"]]
    path.write_bytes(before + b'{"key": "half')
    again = CachedJudge(api, path, name="api 1", at_once=2)
    np.testing.assert_allclose(
        again(["b", "c", "ax"]), [[0.5, 0.25, 0.25, 0], [0.5, 0.25, 0.25, 0], [0.2, 0.3, 0.5, 0]]
    )
    assert calls[2:] == [["c"]] and path.read_bytes().startswith(before)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    CachedJudge(api, path, name="api 2")(["b"])
    assert calls[3:] == [["b"]]
    path.write_text("nonsense\n" + before.decode())
    with pytest.raises(ReadingError, match="line 1"):
        CachedJudge(api, path, name="api 1")
    with pytest.raises(InputError, match="no distribution"):
        judged(lambda texts: [[1, 1, 1]] * len(texts), ["a"])
    with pytest.raises(InputError, match=r"gave \(1, 2\)"):
        judged(lambda texts: [[1, 0]] * len(texts), ["a"])


# ---------------------------------------------------------------- confusion

C = np.array([[0.8, 0.15, 0.1], [0.15, 0.7, 0.2], [0.05, 0.15, 0.7]])


def confused(seen, truth) -> Reading:
    """The confusion of a judge that sees labelled texts so."""
    seen = seen / seen.sum(1, keepdims=True)
    return confusion(lambda texts: seen[[int(x) for x in texts]], [(str(i), OFFERED[k]) for i, k in enumerate(truth)])


def labelled(rng, per_stance: int) -> Reading:
    truth = np.repeat(np.arange(3), per_stance)
    return confused(np.eye(3)[[rng.choice(3, p=C[:, k]) for k in truth]], truth)


def observed(rng, v, items: int, unsaid: float = 0.0):
    import xarray as xr

    p = np.zeros((items, 2, 4))
    for i in range(items):
        truth = rng.choice(3, p=v)
        for s in range(2):
            p[i, s, 3 if rng.random() < unsaid else rng.choice(3, p=C[:, truth])] = 1
    cluster = np.array([f"c{i}" for i in range(items)], object)
    return xr.Dataset(
        {"p": (("item", "sample", "stance"), p)},
        {"stance": list(STANCES), "cluster": ("item", cluster), "item": np.arange(items)},
    )


def test_known_confusion_is_taken_out():
    rng, v = np.random.default_rng(0), np.array([0.7, 0.1, 0.2])
    found = corrected(observed(rng, v, 6000, 0.25), labelled(rng, 4000), draws=200)
    np.testing.assert_allclose(found["v"].values, [*(0.75 * v), 0.25], atol=0.025)
    assert abs(found["observed"].values[:3] / 0.75 - v).max() > 0.05 and found["v"].sum() == pytest.approx(1)


def test_intervals_of_the_correction_hold_what_they_say():
    v, inside = np.array([0.6, 0.1, 0.3]), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = corrected(observed(rng, v, 80), labelled(rng, 40), draws=300, seed=seed)
        inside.append((found["v_low"].values[:3] <= v) & (v <= found["v_high"].values[:3]))
    share = np.mean(inside)
    assert 0.88 < share <= 1.0, share


def test_a_judge_that_cannot_tell_stances_apart_is_not_corrected():
    rng = np.random.default_rng(0)
    blind = confused(np.full((30, 3), 1 / 3) + 1e-3 * rng.standard_normal((30, 3)), np.repeat(np.arange(3), 10))
    with pytest.raises(InputError, match="hardly tells"):
        corrected(observed(rng, [1 / 3] * 3, 10), blind)
    with pytest.raises(InputError, match="fewer than two"):
        confusion(CachedNothing(), [("a", "support"), ("b", "oppose")])
    with pytest.raises(InputError, match="The labels have pro"):
        confusion(CachedNothing(), [("a", "pro")])

    def sharp(texts):
        return [np.eye(3)["sno".index(t[0])] for t in texts]

    pairs = [(f"{s[0]}{k}", s) for s in STANCES[:3] for k in range(2)]
    known = confusion(sharp, pairs)
    np.testing.assert_allclose(known["matrix"].values, np.eye(3))
    assert known["counts"].values.tolist() == [2, 2, 2] and known["matrix"].sel(judged="support", true="support") == 1


def test_the_simplex_point_is_the_nearest():
    rng = np.random.default_rng(0)
    grid = np.array(
        [(a, b, 1 - a - b) for a, b in itertools.product(np.linspace(0, 1, 201), repeat=2) if a + b <= 1 + 1e-9]
    )
    for _ in range(20):
        v = rng.normal(1 / 3, 0.6, 3)
        found = on_simplex(v)
        assert found.min() >= 0 and found.sum() == pytest.approx(1)
        assert ((found - v) ** 2).sum() <= ((grid - v) ** 2).sum(1).min() + 1e-9
    np.testing.assert_allclose(on_simplex(np.array([0.5, 0.2, 0.1]), 0.8), [0.5, 0.2, 0.1])
