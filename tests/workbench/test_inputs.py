"""What may be given to read(): by type, or refused; ids and texts checked in one place."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SMALL, tiny
from torch import nn

import workbench
from lenses import LogitLens
from probes.superposition import CandidateBelief, ContinuousThought, think
from workbench.errors import InputError
from workbench.inputs import encode


@pytest.fixture(scope="module")
def story():
    return workbench.load("organism:story")


def words(*vocabulary, template=None, bos=None, **options):
    """A tokenizer of whole words that puts no token before a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {word: i for i, word in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token=bos, **options)
    tokenizer.chat_template = template
    return tokenizer


def ids(model, inputs, **options):
    return [prompt.ids for prompt in encode(model, inputs, **options)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_what_a_tokenizer_returns_is_read_without_its_pads(story, side, kind):
    texts = ["The bell of Tilda is", "Mara lives in", "One"]
    alone = [list(story.tokenizer(text)["input_ids"]) for text in texts]
    padded = story.tokenizer(texts, padding=True, padding_side=side, return_tensors=kind)
    assert ids(story, padded) == alone == ids(story, dict(padded))
    assert ids(story, [padded, "One", {"text": "One"}]) == [*alone, alone[2], alone[2]]
    last = encode(story, padded, "last")
    assert [prompt.positions for prompt in last] == [[len(own) - 1] for own in alone]
    mine = workbench.read(story, padded, LogitLens(top_k=2), progress=False)
    theirs = workbench.read(story, texts, LogitLens(top_k=2), progress=False)
    assert (mine.data["token_id"].values == theirs.data["token_id"].values).all()
    assert ids(story, story.tokenizer(texts[0])) == alone[:1]


@pytest.mark.parametrize("given, read", [
    (np.array([3, 4]), [[3, 4]]), (np.array([[3, 4], [5, 6]], np.int16), [[3, 4], [5, 6]]),
    (torch.tensor([3, 4]), [[3, 4]]), (torch.tensor([[3, 4]]), [[3, 4]]), ([np.int64(3), np.int32(4)], [[3, 4]]),
    ([torch.tensor(3), torch.tensor(4)], [[3, 4]]), ([torch.tensor([3]), np.array([4]), [5]], [[3], [4], [5]]),
    (pd.Series([3, 4]), [[3, 4]]), (pd.Series([[3], [4]]), [[3], [4]]), (range(3, 5), [[3, 4]]),
    ([[3], (4, 5)], [[3], [4, 5]]), (([3] for _ in "ab"), [[3], [3]]), ({"a": [3], "b": [4]}.values(), [[3], [4]]),
    ({"input_ids": [3, 4], "token_type_ids": [0, 0], "labels": [3, 4]}, [[3, 4]]),
    ({"input_ids": [[0, 3]], "attention_mask": [[0, 1]], "position_ids": [[0, 0]]}, [[3]]),
])  # fmt: skip
def test_token_ids_of_every_kind(llama, given, read):
    assert ids(llama, given) == read


def test_texts_of_every_kind(story):
    texts = ["The bell", "Mara"]
    alone = ids(story, texts)
    for given in (
        tuple(texts), iter(texts), pd.Series(texts), np.array(texts), pd.DataFrame({"t": texts})["t"],
        {"text": texts}, [{"text": t} for t in texts], [{"text": t, "images": None} for t in texts],
    ):  # fmt: skip
        assert ids(story, given) == alone


@pytest.mark.parametrize("given, says", [
    ({"ab", "c"}, "a set"), (b"ab", "a bytes"), (None, "a NoneType"), (True, "a bool"), (7, "a int"),
    ([None], "Prompt 0 is a NoneType"), ([b"a"], "Prompt 0 is a bytes"), ([[3], [1.5]], "Prompt 1 holds 1.5"),
    ([[True]], "holds True"), ([[[3]]], "where a token id"), (np.zeros((1, 2)), "holds 0.0"),
    (np.zeros((1, 1, 2), int), r"shape \(1, 1, 2\)"), (pd.DataFrame({"a": [3]}), "a DataFrame"),
    ({"a": 3}, "keys"), ({"role": "user", "content": "x"}, "belongs in a list"),
    ([{"role": "user", "content": "x"}, "y"], "no role"), ({"text": 3}, "text of prompt 0 is a int"),
    ({"input_ids": [[3, 4, 5]], "attention_mask": [[1, 0, 1]]}, "hole"),
    ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "different shapes"),
    ({"input_ids": [[3, 4]], "inputs_embeds": 0}, "inputs_embeds"),
    ({"input_ids": [[3, 4]], "token_type_ids": [[0, 1]]}, "token_type_ids"),
    ({"input_ids": [[3], [4]], "pixel_values": torch.zeros(2, 3)}, "which prompt cannot be told"),
    ({"input_ids": [[0, 0]], "attention_mask": [[0, 0]]}, "empty"),
])  # fmt: skip
def test_what_is_no_prompt_is_refused(llama, given, says):
    with pytest.raises(InputError, match=says):
        encode(llama, given)


def test_a_refusal_names_what_is_accepted(llama):
    for given in (3.5, [None], [[1.5]], {"a": 3}):
        with pytest.raises(InputError, match=r'input_ids with attention_mask\) and \{"text": .*, "images": .*\}'):
            encode(llama, given)


def test_ids_that_seem_padded_are_told_of(story):
    padded = story.tokenizer(["The bell of Tilda is", "Mara"], padding=True, return_tensors="pt")["input_ids"]
    for given in (padded, padded.tolist(), {"input_ids": padded}):
        with pytest.warns(UserWarning, match="1 of 2 rows of token ids begin or end with the pad token"):
            encode(story, given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(story, ["The bell of Tilda is", "Mara"])
        encode(story, [[5, 6], [7, 8]])


def test_half_a_surrogate_pair_is_named(story):
    module = tiny("llama")
    chatty = workbench.load(
        module, tokenizer=words("<unk>", "a", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    )
    for model, given in (
        (story, "a\ud83d"), (story, ["fine", "a\udc00"]), (story, {"text": "\ud800"}),
        (chatty, [{"role": "user", "content": "a \ud800"}]),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"Prompt \d holds '\\ud.{3}' at character \d"):
            encode(model, given)
    with pytest.raises(InputError, match="one half of a surrogate pair"):
        workbench.read(story, "The bell", LogitLens(targets=["\ud800"]), progress=False)
    assert ids(story, "🙂") == [list(story.tokenizer("🙂")["input_ids"])]  # a whole pair is one character


# ---------------------------------------------------------------- the first token


@pytest.fixture
def beginner():
    """A model whose tokenizer has a first token and does not put it."""
    tokenizer = words("<unk>", "<s>", "</s>", "a", "b", bos="<s>", eos_token="</s>")
    return workbench.load(tiny("llama"), tokenizer=tokenizer, name="beginner")


def test_a_first_token_that_is_not_put_is_told_of_once(beginner, story):
    with pytest.warns(UserWarning, match="'<s>', and puts it before no text"):
        assert ids(beginner, "a b") == [[3, 4]]
    other = workbench.load(tiny("llama"), tokenizer=beginner.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(beginner, "a b")
        # Asked for, written out, given as ids, or put by the tokenizer: there is nothing to tell.
        for bos in (True, False, "<s>", 1):
            encode(other, "a b", bos=bos)
        encode(other, "<s> a b")
        encode(other, [[3, 4]])
        encode(story, "a b")
        encode(workbench.load(tiny("llama"), tokenizer=words("<unk>", "a", "b")), "a b")


def test_the_first_token_is_as_asked_and_never_twice(beginner, story):
    for bos, expected in ((True, [1, 3]), (False, [3]), ("<s>", [1, 3]), (1, [1, 3]), ("</s>", [2, 3]), (4, [4, 3])):
        assert ids(beginner, "a", bos=bos) == [expected]
    assert ids(beginner, "<s> a", bos=True) == [[1, 3]]
    own = list(story.tokenizer("Mara")["input_ids"])
    assert own[0] == story.tokenizer.bos_token_id
    for bos, expected in ((None, own), (True, own), (False, own[1:]), (5, [5, *own[1:]])):
        assert ids(story, "Mara", bos=bos) == [expected]
    endless = workbench.load(tiny("llama"), tokenizer=words("<unk>", "</s>", "a", eos_token="</s>"))
    assert ids(endless, "a", bos=True) == [[1, 2]]
    for given, says in ((True, "neither"), ("b c", "not one token"), (999, "token id 999")):
        plain = workbench.load(tiny("llama"), tokenizer=words("<unk>", "a", "b", "c"))
        with pytest.raises(InputError, match=says):
            encode(plain, "a", bos=given)
    with pytest.raises(InputError, match="is for texts"):
        encode(story, [[5, 6]], bos=True)
    read = workbench.read(beginner, "a", LogitLens(), bos=True, progress=False)
    assert read.data["input_id"].values.tolist() == [[1, 3]] and read.provenance["bos"] == 1


# ---------------------------------------------------------------- ids that have no logit, or no embedding


@pytest.fixture
def lopsided():
    """More embeddings (101) than logits (97), as of added tokens; the tokenizer knows all of them."""
    module = tiny("llama")
    grown = nn.Embedding(SMALL["vocab_size"] + 4, SMALL["hidden_size"])
    with torch.no_grad():
        grown.weight[:97] = module.model.embed_tokens.weight
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.clone())
    module.model.embed_tokens = grown
    return workbench.load(module, tokenizer=words("<unk>", *[f"w{i}" for i in range(1, 101)]), name="lopsided")


def test_ids_beyond_the_logits_are_refused_or_missing(lopsided):
    for bad in (97, "w98", [3, "w97"], [[100]], -1):
        with pytest.raises(InputError, match="outside the vocabulary: the logits of lopsided have ids 0 to 96"):
            workbench.read(lopsided, [[3, 4]], LogitLens(targets=bad), progress=False)
        if bad != -1:
            with pytest.raises(InputError, match="outside the vocabulary"):
                listed = bad if isinstance(bad, list) else [bad]
                workbench.read(lopsided, [[3, 4]], CandidateBelief(listed), progress=False)
    with pytest.warns(UserWarning, match="2 tokens of the prompts have ids that the logits"):
        read = workbench.read(lopsided, [[3, 98, 5, 97]], LogitLens(targets="next"), progress=False).data
    assert read["target_id"].values.tolist() == [[-1, 5, -1, -1]]
    known = ~np.isnan(read["target_logprob"].values[0])
    assert (known == np.array([False, True, False, False])).all()
    logits = lopsided.module(input_ids=torch.tensor([[3, 98, 5, 97]])).logits[0, 1].log_softmax(-1)
    assert float(read["target_logprob"][0, -1, 1]) == pytest.approx(float(logits[5].detach()), abs=1e-4)


def test_ids_without_an_embedding_are_refused_wherever_they_are_fed():
    model = workbench.load(tiny("llama"), tokenizer=words("<unk>", *[f"w{i}" for i in range(1, 120)]))
    for call in (
        lambda: encode(model, "w5 w110"),
        lambda: think(model, [[3]], ContinuousThought(1), then=[200]),
        lambda: think(model, [[3]], ContinuousThought(1), then="w110"),
    ):
        with pytest.raises(InputError, match="embeds ids 0 to 96"):
            call()


# ---------------------------------------------------------------- unknown tokens


def test_prompts_of_unknown_tokens_are_told_of():
    model = workbench.load(tiny("llama"), tokenizer=words("<unk>", "a", "b"), name="plain")
    with pytest.warns(UserWarning, match=r"1 of 2 prompts are more than 20% unknown tokens for plain \(up to 75%\)"):
        encode(model, ["a b a b", "a x y z"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(model, ["a b a b a x", "b"])


def test_a_target_that_the_vocabulary_does_not_have_is_not_the_unknown_token():
    model = workbench.load(tiny("llama"), tokenizer=words("<unk>", "a", "b"), name="plain")
    for reader in (LogitLens(targets="x"), CandidateBelief(["a", "x"])):
        with pytest.raises(InputError, match="'x' is not in the vocabulary of plain"):
            workbench.read(model, "a b", reader, progress=False)
    # The token itself may be asked for.
    read = workbench.read(model, "a b", LogitLens(targets="<unk>"), progress=False)
    assert read.data["target_id"].values.ravel()[0] == 0
