"""Token text: what the tokenizer says, one id at a time, with nothing lost to markup."""

import json
import os
from pathlib import Path

import pytest

from workbench import tokens

HERE = Path(__file__).resolve()
FOLDERS = [
    Path(os.environ.get("WORKBENCH_TEST_MODELS", "")),
    *(p / "shared" / "models" for p in HERE.parents[2:4]),
]
TEXTS = ["Once upon a time, 日本語 and 🙂👩‍👩‍👧!", " the  two\n\n\tdéjà vu", "नमस्ते", "שלום", "x"]


def said(texts):
    return "".join(t for t in texts).replace(tokens.CONTINUED, "")


def local_tokenizer(folder):
    """A tokenizer from a local tokenizer.json, or a plain skip."""
    file = next(
        (f / folder / "tokenizer.json" for f in FOLDERS if (f / folder / "tokenizer.json").is_file()), None
    )
    if file is None:
        pytest.skip(f"no tokenizer of {folder}; set WORKBENCH_TEST_MODELS to the folder that holds it")
    transformers = pytest.importorskip("transformers")
    settings = json.loads((file.parent / "tokenizer_config.json").read_text())
    special = {k: v for k, v in settings.items() if k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), **special)


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE that has seen almost nothing, so it must split every CJK character and emoji."""
    hf = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    raw = hf.ByteLevelBPETokenizer()
    raw.train_from_iterator(
        ["the cat and the hat once upon a time"] * 4, vocab_size=270, special_tokens=["<s>"]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, bos_token="<s>")


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_sequences_say_what_decode_says(byte_level, text):
    ids = byte_level(text).input_ids
    assert said(tokens.joined_texts(byte_level, ids)) == byte_level.decode(ids) == text


def test_a_split_character_belongs_to_its_first_token(byte_level):
    ids = byte_level("日x🙂").input_ids
    assert tokens.joined_texts(byte_level, ids) == ["日", "⋯", "⋯", "x", "🙂", "⋯", "⋯", "⋯"]
    assert tokens.token_texts(byte_level, ids)[:4] == ["⟨E6⟩", "⟨97⟩", "⟨A5⟩", "x"]
    assert tokens.joined_texts(byte_level, ids[:2]) == ["⟨E6⟩", "⟨97⟩"], (
        "a sequence that stops inside a character"
    )


def test_special_tokens_are_verbatim_and_break_characters(byte_level):
    first, *_ = byte_level("日").input_ids
    assert tokens.joined_texts(byte_level, [first, byte_level.bos_token_id, first]) == ["⟨E6⟩", "<s>", "⟨E6⟩"]


def test_leading_space_is_kept_and_unknown_ids_are_numbers(byte_level):
    ids = byte_level(" the").input_ids
    assert said(tokens.token_texts(byte_level, ids)) == " the"
    assert tokens.token_texts(byte_level, [99999, -1]) == ["#99999", ""]
    assert tokens.token_texts(None, [7, -1]) == ["#7", ""]
    assert tokens.joined_texts(None, [7]) == ["#7"]


def test_bare_tokenizers_object(byte_level):
    ids = byte_level("the 日").input_ids
    assert tokens.joined_texts(byte_level.backend_tokenizer, ids) == tokens.joined_texts(byte_level, ids)


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_with_byte_fallback(text):
    tok = local_tokenizer("stories260K")
    ids = tok(text, add_special_tokens=False).input_ids
    texts = tokens.joined_texts(tok, ids)
    assert texts[0].startswith(" "), "sentencepiece puts a space before the first word; decode strips it"
    assert said(texts)[1:] == tok.decode(ids, skip_special_tokens=False)


def test_sentencepiece_bytes_and_specials():
    tok = local_tokenizer("stories260K")
    ids = tok("日", add_special_tokens=False).input_ids
    assert tokens.joined_texts(tok, ids)[-3:] == ["日", "⋯", "⋯"]
    assert tokens.token_texts(tok, ids)[-3:] == ["⟨E6⟩", "⟨97⟩", "⟨A5⟩"]
    assert tokens.token_texts(tok, [1, 2]) == ["<s>", "</s>"]


@pytest.mark.parametrize("folder", ["arthur-char/epoch25", "induction-gpt2"])
def test_word_level_vocabularies_are_verbatim(folder):
    tok = local_tokenizer(folder)
    ids = tok("once upon a time").input_ids
    assert tokens.joined_texts(tok, ids) == tok.convert_ids_to_tokens(ids)
    assert "".join(tokens.token_texts(tok, ids)) == tok.decode(ids)


def test_slow_tokenizers():
    class Slow:  # the shape of a slow sentencepiece tokenizer
        sp_model = object()
        all_special_ids = (0,)
        vocab = ("<s>", "▁the", "<0xE6>", "<0x97>", "<0xA5>")

        def convert_ids_to_tokens(self, i):
            return self.vocab[i]

    assert tokens.joined_texts(Slow(), [0, 1, 2, 3, 4, 9]) == ["<s>", " the", "日", "⋯", "⋯", "#9"]

    class Gpt2:  # a slow byte-level one
        all_special_ids = ()

        def __init__(self):
            self.byte_decoder = {"Ġ": 32}

        def convert_ids_to_tokens(self, i):
            return ["Ġthe", "æĹ", "¥x"][i]

    assert tokens.joined_texts(Gpt2(), [0, 1, 2]) == [" the", "日", "⋯x"]


def test_byt5_and_word_end_marks():
    transformers = pytest.importorskip("transformers")
    byt5 = transformers.ByT5Tokenizer()
    ids = byt5("日 a", add_special_tokens=False).input_ids
    assert tokens.joined_texts(byt5, ids) == ["日", "⋯", "⋯", " ", "a"]


def test_visible():
    assert tokens.visible(" the\n\t") == "·the↵⇥"
    assert tokens.visible("") == "∅"
    assert tokens.visible("\x00\r\x1b\x07\x01") == "\\0\\r\\e\\a\\x01"
    assert tokens.visible("\u202eabc") == "\\u202eabc", "an override would turn the whole line round"
    assert tokens.visible("שלום") == "\u2068שלום\u2069"
    assert tokens.visible("\u0301") == "◌\u0301"
    assert tokens.visible("👩‍👧") == "👩‍👧"
    assert tokens.visible("a\u00a0·") == "a\\xa0\\xb7"


def test_escapes():
    assert tokens.html("<s>&\"'") == "&lt;s&gt;&amp;&quot;&#x27;"
    assert tokens.plotly("<br>&lt;$x$") == "&lt;br&gt;&amp;lt;&#36;x&#36;"
    assert tokens.latex("a_b\\{}·") == r"a\_b\textbackslash{}\{\}\textperiodcentered{}"


def test_labels_of_figures_are_cut_and_stay_apart():
    long = "a" * 40
    assert tokens.labels(["<b>", "x\0y", 3]) == ["<b>", "x\\0y", "3"]
    one, two, other = tokens.labels([long + "1", long + "2", "short"], 20)
    assert one == "a" * 19 + "…" and two == one + " (2)" and other == "short"
    assert tokens.labels(["same", "same"]) == ["same", "same"]
    joined = "\N{WOMAN}\u200d\N{GIRL}"
    assert tokens.plain(joined) == tokens.plotly(joined) == joined, "joiners inside an emoji stay"
    assert tokens.plain("\u200bx") == "\\u200bx"
