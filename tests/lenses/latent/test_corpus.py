"""What becomes of long texts, of texts without a first token and of texts that the tokenizer does not know."""

import filecmp
import warnings

import numpy as np
import pytest
import torch

import workbench
from lenses import ContextIndex, LatentLens
from workbench.errors import InputError
from workbench.organisms.story.grammar import stories


@pytest.fixture(scope="module")
def long():
    """Texts of several sentences, longer than the 40 tokens that are read, and short ones."""
    texts = [" ".join(s.text for s in stories(3, seed)) for seed in range(4)]
    return [*texts, "The bell of Tilda is red.", ("Mara lives in a house. " * 9).strip()]


def same(a, b):
    """Whether two indices have the same bytes."""
    ours, theirs = (sorted(p for p in path.rglob("*") if p.is_file()) for path in (a, b))
    return [p.relative_to(a) for p in ours] == [p.relative_to(b) for p in theirs] and all(
        filecmp.cmp(x, y, shallow=False) for x, y in zip(ours, theirs, strict=True)
    )


def lengths(model, texts):
    return [len(model.tokenizer(text)["input_ids"]) for text in texts]


def test_what_is_cut_is_told_and_counted(story, long, tmp_path):
    own = lengths(story, long)
    cut, lost = sum(n > 40 for n in own), sum(max(0, n - 40) for n in own)
    assert 0 < cut < len(long)
    with pytest.warns(UserWarning, match=f"{cut} of {len(long)} texts are longer than 40 tokens: the {lost} tokens"):
        whole = ContextIndex.build(story, long, tmp_path / "whole", max_tokens=40, progress=False)
    assert whole.info()["corpus"]["sentences_cut"] == cut and whole.info()["corpus"]["tokens_left_out"] == lost
    assert whole.info()["corpus"]["tokens"] == sum(own) - lost
    with pytest.warns(UserWarning, match="texts are longer"):
        added = ContextIndex.build(story, long[:3], tmp_path / "added", max_tokens=40, progress=False)
        ContextIndex.build(story, long[3:], tmp_path / "rest", max_tokens=40, progress=False)
    ContextIndex.merge([tmp_path / "rest", tmp_path / "added"], tmp_path / "merged", progress=False)
    with pytest.warns(UserWarning, match="of 3 texts are longer"):
        added.add(long[3:], model=story, progress=False)
    assert same(tmp_path / "whole", tmp_path / "merged") and same(tmp_path / "whole", tmp_path / "added")


def test_nothing_is_said_where_nothing_is_cut(story, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        index = ContextIndex.build(story, ["The bell of Tilda is red."], tmp_path / "i", progress=False)
    assert index.info()["corpus"]["sentences_cut"] == index.info()["corpus"]["tokens_left_out"] == 0


def test_long_texts_may_be_split_at_sentence_ends(story, long, tmp_path):
    options = {"max_tokens": 40, "long": "split", "contexts_per_token": 500, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = ContextIndex.build(story, long, tmp_path / "whole", **options)
    found = whole.store.sentences["text"].to_pylist()
    assert max(lengths(story, found)) <= 40 and whole.info()["corpus"]["sentences_cut"] == 0
    assert all(text[-1] in ".!?" and any(text in source for source in long) for text in found)
    # Every word of the corpus is in a piece, and no piece could have held the sentence that follows it.
    for source in long:
        there = sorted((source.find(text), len(text)) for text in set(found) if text in source)
        covered = {i for at in [range(a, a + n) for a, n in there] for i in at}
        repeated = "Mara lives" in source
        assert repeated or all(source[i] == " " for i in set(range(len(source))) - covered)
    ContextIndex.build(story, long[:2], tmp_path / "a", **options)
    ContextIndex.build(story, long[2:], tmp_path / "b", **options)
    ContextIndex.merge([tmp_path / "b", tmp_path / "a"], tmp_path / "merged", progress=False)
    assert same(tmp_path / "whole", tmp_path / "merged")
    with pytest.warns(UserWarning, match="texts are longer than 8 tokens"):  # a sentence that does not fit is cut
        ContextIndex.build(story, long[:1], tmp_path / "c", max_tokens=8, long="split", progress=False)
    with pytest.raises(InputError, match="long='split'"):
        ContextIndex.build(story, long, tmp_path / "d", max_tokens=40, long="refuse", progress=False)
    with pytest.raises(InputError, match="long='drop' is unknown"):
        ContextIndex.build(story, long, tmp_path / "e", long="drop", progress=False)


def test_an_index_has_the_first_token_that_was_asked_for(story, sentences, tmp_path):
    texts, first = sentences[:40], story.tokenizer.bos_token_id
    plain = ContextIndex.build(story, texts, tmp_path / "plain", layers=[2, 4], progress=False)
    true = ContextIndex.build(story, texts, tmp_path / "true", layers=[2, 4], bos=True, progress=False)
    bare = ContextIndex.build(story, texts, tmp_path / "bare", layers=[2, 4], bos=False, progress=False)
    other = ContextIndex.build(story, texts, tmp_path / "other", layers=[2, 4], bos=5, progress=False)
    for index, begins in ((plain, first), (true, first), (other, 5)):
        flat, starts = index.store.token_ids()
        assert set(flat[starts[:-1]].tolist()) == {begins}
        assert flat.tolist().count(first) == (len(starts) - 1) * (begins == first)  # never twice
    flat, starts = bare.store.token_ids()
    assert first not in flat.tolist()
    assert [index.manifest["settings"].get("bos") for index in (plain, true, bare, other)] == [None, first, -1, 5]
    for index in (bare, other):
        table, matrix = index.store.contexts, index.store.matrix(4)
        flat, starts = index.store.token_ids()
        stored = matrix.encoding.back(matrix.gather(np.arange(index.n_rows)))
        for row in range(0, index.n_rows, 23):  # beside transformers on the ids that the index says it ran
            own = flat[starts[table["sentence"][row]] : starts[table["sentence"][row] + 1]]
            dense = story.module(input_ids=torch.tensor([own.tolist()]), output_hidden_states=True).hidden_states[4][0]
            near = torch.nn.functional.cosine_similarity(stored[row].float(), dense[table["position"][row]], dim=0)
            assert float(near.detach()) > 0.999
        where = table["position"] > 0 if index is other else table["position"] >= 0
        texts_of = index.store.sentences["text"].to_pylist()
        for row in where.nonzero()[0][::17]:
            part = texts_of[table["sentence"][row]][table["char_start"][row] : table["char_end"][row]]
            assert part == story.tokenizer.decode([int(table["token_id"][row])]).strip()
    with pytest.raises(InputError, match="settings.bos"):
        ContextIndex.build(story, texts, tmp_path / "bare", layers=[2, 4], progress=False)
    with pytest.raises(workbench.errors.WorkbenchError, match="settings"):
        ContextIndex.merge([tmp_path / "bare", tmp_path / "other"], tmp_path / "m", progress=False)
    for index, options in ((bare, {}), (other, {}), (plain, {"bos": False}), (plain, {"bos": 5})):
        with pytest.warns(UserWarning, match="prompts begin otherwise than the sentences of the index"):
            workbench.read(story, "Mara", LatentLens(index, floors=False), progress=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for index, options in ((plain, {}), (plain, {"bos": True}), (bare, {"bos": False}), (other, {"bos": 5})):
            workbench.read(story, "Mara", LatentLens(index, floors=False), progress=False, **options)
