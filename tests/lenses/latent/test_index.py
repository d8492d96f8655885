"""Rows, search and what they say, against dense computations and against what the published package gets wrong."""

from __future__ import annotations

import json
import resource
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plainly import tree
from tiny import tiny
from torch.nn.functional import normalize

import workbench
from lenses import ContextIndex
from lenses.latent import IndexRefused
from lenses.latent import search as searching
from lenses.latent.search import CALIBRATIONS
from lenses.latent.store import Encoding
from workbench.errors import InputError, StateError
from workbench.tokens import word_span


def test_rows_are_the_models_own_states(index, dense):
    for layer, states in dense.items():
        matrix = index.store.matrix(layer)
        np.testing.assert_allclose(matrix.norm, states.norm(dim=1), rtol=1e-5)
        np.testing.assert_allclose(matrix.units(0, index.n_rows), normalize(states, dim=1), atol=2**-11)


def test_at_most_k_contexts_of_a_token_and_all_of_a_rare_one(index, story, sentences):
    contexts: dict[int, set] = {}
    for text in sentences:
        ids = story.tokenizer(text)["input_ids"]
        for p in range(len(ids)):
            contexts.setdefault(ids[p], set()).add(tuple(ids[: p + 1]))
    tokens, kept = np.unique(index.store.contexts["token_id"], return_counts=True)
    assert dict(zip(tokens.tolist(), kept.tolist(), strict=True)) == {t: min(20, len(c)) for t, c in contexts.items()}


def by_hand(dense, queries, k, calibration="none", hidden=()):
    """The k best over all layers, every score written out; a context once."""
    scores = []
    for states in dense.values():
        q, x = queries, states
        if calibration in ("centre", "z-score"):
            mean = states.mean(0)
            spread = states.std(0, correction=0) if calibration == "z-score" else torch.ones(states.shape[1])
            q, x = (queries - mean) / spread, (states - mean) / spread
        scores.append(normalize(q, dim=1) @ normalize(x, dim=1).T)
    best = torch.stack(scores)
    best[:, :, list(hidden)] = -2
    best = best.amax(0)  # a context counts where it is nearest
    return best.topk(k, 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_state_has_the_same_bits_whoever_ran_beside_it(name):
    """What the equality of shards, extensions and resumed builds rests on."""
    from lenses.latent.build import Shapes

    module = tiny(name)
    shapes = Shapes(workbench.load(module), 512)
    draw = torch.Generator().manual_seed(0)
    for length in [*range(2, 30), 61, 63]:
        count, width = shapes(length)
        assert count * width % 16 == 0 and width >= length
        ids = torch.zeros(3 * count, width, dtype=torch.long)
        ids[:, :length] = torch.randint(3, 97, (3 * count, length), generator=draw)
        mask = (torch.arange(width) < length).long().expand(count, -1)
        order = torch.randperm(len(ids), generator=draw)

        def states(x, mask=mask, count=count):
            parts = [module(input_ids=p, attention_mask=mask, output_hidden_states=True) for p in x.split(count)]
            return torch.cat([p.hidden_states[3] for p in parts])

        with torch.no_grad():
            assert (states(ids[order]) == states(ids)[order])[:, :length].all(), length
    assert shapes(64) == (6, 80) and shapes(63)[1] == 64


@pytest.mark.parametrize("calibration", ["none", "centre", "z-score"])
def test_search_is_the_exact_top_k_over_all_layers(index, dense, story, calibration):
    queries = torch.cat([dense[2][3::97], dense[5][5::89] + 0.3 * torch.randn(1, 128)])
    special = np.flatnonzero(np.isin(index.store.contexts["token_id"], story.tokenizer.all_special_ids))
    value, row = by_hand(dense, queries, 10, calibration, special)
    found = index.search(queries, 10, calibration=calibration)
    np.testing.assert_allclose(found.similarity, value, atol=1e-3)
    agree = (found.context.values == row.numpy()) | (np.abs(found.similarity.values - value.numpy()) < 1e-3)
    assert agree.all() and (found.context.values == row.numpy()).mean() > 0.97
    assert not np.isin(found.token_id, story.tokenizer.all_special_ids).any()


def test_csls_takes_off_what_hubs_have_in_common(index, dense):
    """2 cos - r(x) - r(q) with r written out; r(x) over the index's own sample."""
    queries, layer = dense[4][::50], 4
    sample = index.sample(1024)
    units = normalize(dense[layer], dim=1)
    cosine = units @ normalize(sample.units, dim=1).T
    for column in np.flatnonzero(sample.layer == layer):
        cosine[sample.row[column], column] = -1  # itself
    hub = cosine.topk(10, 1).values.mean(1)
    plain = normalize(queries, dim=1) @ units.T
    score = 2 * plain - hub - plain.topk(10, 1).values.mean(1, keepdim=True)
    score[:, index._hidden] = -9
    found = index.search(queries, 5, layers=layer, calibration="csls")
    np.testing.assert_allclose(found.similarity, score.topk(5, 1).values, atol=4e-3)


def test_every_text_of_a_neighbour_fits_its_place(index, dense, story):
    found = index.search(dense[4][::40], 6)
    for q in range(found.sizes["query"]):
        for rank in range(6):
            one = found.isel(query=q, rank=rank)
            ids = story.tokenizer(one.sentence.item())["input_ids"]
            p = int(one.token_position)
            assert ids[p] == int(one.token_id)
            assert story.tokenizer.decode([ids[p]]) == one.token.item()
            assert int(one.next_token_id) == (ids[p + 1] if p + 1 < len(ids) else -1)
            a, b = int(one.char_start), int(one.char_end)
            assert one.sentence.item()[a:b] == one.token.item().strip()
            assert one.sentence.item()[a:b] in one.word.item()


# ---------------------------------------------------------------- what the published package gets wrong


def test_a_left_padding_tokenizer_changes_nothing(index, sentences, tmp_path):
    model = workbench.load("organism:story")
    model.tokenizer.padding_side = "left"
    other = ContextIndex.build(model, sentences, tmp_path / "left", contexts_per_token=20, progress=False)
    assert tree(other.path) == tree(index.path)


def test_memory_does_not_keep_whole_batches(story, tmp_path):
    """40 times the sentences, hardly more memory: rows are copied out, not views of their batches."""
    words = [f"{a} {b}." for a in "abcdefghij" for b in range(40)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ContextIndex.build(story, words * 40, tmp_path / "x", progress=False)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 150


def test_one_context_counts_once_over_all_layers(index, dense):
    found = index.search(dense[4][::20], 8)
    rows = found.context.values
    assert all(len(set(r)) == len(r) for r in rows.tolist())
    doubled = index.search(dense[4][::20], 8, distinct=False).context.values
    assert any(len(set(r)) < len(r) for r in doubled.tolist())


@pytest.mark.parametrize(("bad", "says"), [(torch.nan, "holds NaN"), (torch.inf, "infinity"), (0.0, "only zeros")])
def test_a_state_without_direction_is_an_error_that_names_it(index, bad, says):
    states = torch.randn(6, 128)
    states[4] = bad
    with pytest.raises(StateError, match=f"State 4 .*{says}"):
        index.search(states)


def test_errors_of_arguments_say_what_is_there(index):
    with pytest.raises(InputError, match=r"holds layers \[1, 2, 4, 5\], not 3"):
        index.search(torch.randn(2, 128), layers=3)
    with pytest.raises(InputError, match=r"\(2, 64\).*width 128"):
        index.search(torch.randn(2, 64))
    with pytest.raises(InputError, match="top_k=0"):
        index.search(torch.randn(2, 128), 0)
    with pytest.raises(InputError, match="calibration='zscore'"):
        index.search(torch.randn(2, 128), calibration="zscore")
    with pytest.raises(InputError, match="no approximate index"):
        index.search(torch.randn(2, 128), method="approximate")


def test_more_neighbours_than_contexts_and_an_empty_index(story, tmp_path):
    small = ContextIndex.build(story, ["one two"], tmp_path / "small", progress=False)
    found = small.search(torch.randn(3, 128), 9)
    there = small.n_rows - 1  # without the leading special token
    assert (found.context.values[:, :there] >= 0).all() and (found.context.values[:, there:] == -1).all()
    assert np.isnan(found.similarity.values[:, there:]).all() and (found.word.values[:, there:] == "").all()
    empty = ContextIndex.build(story, [], tmp_path / "empty", progress=False)
    assert len(empty) == 0 and "0 contexts" in repr(empty)
    assert (empty.search(torch.randn(3, 128)).context.values == -1).all()


def test_words_come_from_offsets_never_from_a_search_for_the_token():
    text = "heat eats at a seat, don't 猫が好き naïve-ish x_1"

    def word(start, end):
        a, b = word_span(text, start, end)
        return text[a:b]

    assert word(10, 12) == "at"  # a search for "at" would find "heat"
    assert word(6, 8) == "eats" and word(16, 18) == "seat" and word(19, 20) == ","
    assert word(21, 24) == "don't" and word(24, 26) == "don't"
    assert word(text.index("猫"), text.index("猫") + 1) == "猫"
    assert word(text.index("ïve"), text.index("ïve") + 2) == "naïve" and word(len(text) - 1, len(text)) == "x_1"
    assert word(0, 0) == ""


def test_caps_are_by_token_id_not_by_its_text(sentences, tmp_path):
    """Two ids with one text keep k contexts each."""
    model = workbench.load("organism:story")
    ids = model.tokenizer.get_vocab()
    a, b = ids["Ġlives"], ids["Ġbank"]
    from lenses.latent.selection import Selection

    chosen = Selection(len(ids), 3)
    chosen.feed([f"{i}" for i in range(20)], [[1, 300 + i, (a, b)[i % 2]] for i in range(20)])
    kept = chosen.finish()
    assert (kept.token_id == a).sum() == 3 and (kept.token_id == b).sum() == 3


def test_an_index_of_another_model_or_tokenizer_is_refused(index, story):
    module = type(story.module)(story.module.config).eval()
    other = workbench.load(module, tokenizer=story.tokenizer, name="other")
    with pytest.raises(IndexRefused, match="another weights or configuration"):
        index.search(torch.randn(1, 128), model=other)
    index.check(other, foreign=True)
    tokenizer = workbench.load("organism:story").tokenizer
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(IndexRefused, match="another tokenizer"):
        index.check(workbench.load(story.module, tokenizer=tokenizer))
    with pytest.raises(IndexRefused, match="width 128 .* 32 wide"):
        index.check(workbench.load(tiny("llama")), foreign=True)


# ---------------------------------------------------------------- storage, extension, parts


def test_int8_keeps_the_neighbours_in_half_the_room(index, dense, story, sentences, tmp_path):
    small = ContextIndex.build(story, sentences, tmp_path / "i8", contexts_per_token=20, storage="int8", progress=False)
    queries = torch.cat([dense[layer][layer::60] for layer in dense]) + 0.05 * torch.randn(1, 128)
    a, b = index.search(queries, 10).context.values, small.search(queries, 10).context.values
    kept = np.mean([len(set(x) & set(y)) / 10 for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    assert kept >= 0.98
    rows = {k: v["bytes"] for k, v in small.manifest["files"].items() if k.startswith("layer")}
    assert sum(rows.values()) <= 0.55 * index.n_rows * 128 * 2 * 4


def test_int8_survives_a_dimension_that_dwarfs_the_others():
    """As in real language models: without the rotation such a dimension alone would set the scale."""
    from lenses.latent.store import Encoding

    torch.manual_seed(0)
    states = torch.randn(300, 768)
    states[:, 5] += 1000
    encoding = Encoding("int8", 768)
    files = encoding.encode(states)
    back = encoding.back(torch.from_numpy(files["i8"]).float() * torch.from_numpy(files["scale"])[:, None])
    back = back * torch.from_numpy(files["norm"])[:, None]
    rest = [i for i in range(768) if i != 5]
    cosine = torch.nn.functional.cosine_similarity(back[:, rest], states[:, rest])
    assert cosine.min() > 0.95
    naive = (states * 127 / states.abs().amax(1, keepdim=True)).round()
    assert torch.nn.functional.cosine_similarity(naive[:, rest], states[:, rest]).max() < 0.5
    np.testing.assert_allclose(encoding.back(encoding.turn(states)), states, atol=1e-3)


def test_add_and_merge_equal_one_build(index, story, sentences, tmp_path):
    half = len(sentences) // 2
    parts = [sentences[:half], sentences[half:]]
    options = {"contexts_per_token": 20, "progress": False}
    built = [ContextIndex.build(story, p, tmp_path / f"part{i}", **options) for i, p in enumerate(parts)]
    for name, order in (("ab", [0, 1]), ("ba", [1, 0])):
        merged = ContextIndex.merge([built[i].path for i in order], tmp_path / name, progress=False)
        assert tree(merged.path) == tree(index.path)
    grown = built[0].add(parts[1], progress=False)
    assert tree(grown.path) == tree(index.path)
    assert grown.n_rows == index.n_rows
    thirds = [sentences[i::3] for i in range(3)]
    paths = [ContextIndex.build(story, p, tmp_path / f"third{i}", **options).path for i, p in enumerate(thirds)]
    assert tree(ContextIndex.merge(paths[::-1], tmp_path / "thirds", progress=False).path) == tree(index.path)


def test_what_cannot_be_merged_is_refused(index, story, sentences, tmp_path):
    other = ContextIndex.build(story, sentences[:20], tmp_path / "seed", contexts_per_token=20, seed=1, progress=False)
    with pytest.raises(IndexRefused, match="differ in 'settings'"):
        ContextIndex.merge([index.path, other.path], tmp_path / "no")
    with pytest.raises(InputError, match="corpus.sentences there is 20, and here 30"):
        ContextIndex.build(story, sentences[:30], other.path, contexts_per_token=20, seed=1, progress=False)


def test_shuffled_sentences_and_other_batches_give_the_same_bytes(index, story, sentences, tmp_path):
    order = np.random.default_rng(0).permutation(len(sentences))
    again = ContextIndex.build(
        story, (sentences[i] for i in order), tmp_path / "again", contexts_per_token=20, progress=False
    )
    assert tree(again.path) == tree(index.path)


def test_layers_are_the_papers_and_no_block_above_them_runs(story, tmp_path):
    from lenses.latent.build import paper_layers

    assert paper_layers(32) == [1, 2, 4, 8, 16, 24, 30, 31] and paper_layers(12) == [1, 2, 4, 8, 10, 11]
    assert paper_layers(1) == [1] and paper_layers(2) == [1]
    ran = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(story.blocks)]
    head = story.module.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    try:
        ContextIndex.build(story, ["Mara lives in Malmo."], tmp_path / "x", layers=[1, 3], progress=False)
    finally:
        for handle in [*handles, head]:
            handle.remove()
    assert set(ran) == {0, 1, 2}


def test_long_lines_are_read_up_to_the_limit(story, tmp_path):
    line = " ".join(["one two three four"] * 100)
    index = ContextIndex.build(story, [line], tmp_path / "x", max_tokens=11, progress=False)
    assert index.store.contexts["position"].max() == 10
    whole = ContextIndex.build(story, [line], tmp_path / "y", contexts_per_token=999, progress=False)
    assert whole.store.contexts["position"].max() == 255  # the model's context


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-pq", "hnsw"])
def test_approximate_search_ranks_exactly_and_its_recall_is_what_it_says(
    index, dense, story, sentences, tmp_path, kind
):
    fast = ContextIndex.build(story, sentences, tmp_path / kind, contexts_per_token=20, progress=False)
    fast.accelerate(kind, progress=False)
    fast = ContextIndex.open(fast.path)
    queries = torch.cat([dense[layer][layer::30] for layer in dense])
    exact, near = index.search(queries, 10), fast.search(queries, 10, method="approximate")
    pairs = zip(exact.context.values.tolist(), near.context.values.tolist(), strict=True)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
    assert near.attrs["recall_at_10"] >= 0.99 and recall >= 0.98
    same = (exact.context.values == near.context.values) & (exact.index_layer.values == near.index_layer.values)
    np.testing.assert_allclose(exact.similarity.values[same], near.similarity.values[same], atol=1e-5)
    assert fast.info()["approximate"]["kind"] == kind


def test_info_counts_what_was_read(index, sentences, story):
    known = index.info()
    assert known["corpus"]["sentences"] == len(sentences)
    assert known["corpus"]["tokens"] == sum(len(story.tokenizer(s)["input_ids"]) for s in sentences)
    assert known["bytes"] == sum(len(v) for k, v in tree(index.path).items() if k != "manifest.json")
    assert json.dumps(known)


def test_calibrations_are_all_reachable_from_int8_too(index, dense, story, sentences, tmp_path):
    small = ContextIndex.build(story, sentences, tmp_path / "i8", contexts_per_token=20, storage="int8", progress=False)
    for calibration in CALIBRATIONS:
        a, b = (i.search(dense[4][::60], 5, calibration=calibration).similarity.values for i in (index, small))
        np.testing.assert_allclose(a, b, atol=0.02)


def test_an_approximate_index_that_finds_less_than_asked_for_says_so(story, sentences, tmp_path, monkeypatch):
    made = ContextIndex.build(story, sentences, tmp_path / "x", layers=[1, 4], contexts_per_token=10, progress=False)
    with pytest.raises(InputError, match="recall=99"):
        made.accelerate(recall=99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.accelerate("ivf-sq8", recall=0.9, progress=False)
        made.search(torch.randn(2, 128), method="approximate")
    # As many candidates as neighbours: the four bits of each direction decide, and never put all ten right.
    monkeypatch.setitem(searching.KINDS, "ivf-pq", 1)
    monkeypatch.setattr(searching, "MORE", (1,))
    with pytest.warns(UserWarning, match=r"less of the ten nearest than the 1 .*0\.\d+ at layer \d.*kind='ivf-sq8'"):
        made.accelerate("ivf-pq", recall=1.0, progress=False)
    opened = ContextIndex.open(made.path)
    with pytest.warns(UserWarning, match="at layer"):
        found = opened.search(torch.randn(2, 128), method="approximate")
    assert found.attrs["recall_wanted"] == 1.0 > found.attrs["recall_at_10"]
    known = opened.info()["approximate"]
    assert known["wanted"] == 1.0 and min(known["recall_at_10"].values()) == found.attrs["recall_at_10"]
    # More candidates find what the codes alone do not.
    monkeypatch.setattr(searching, "MORE", (1, 16, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.accelerate("ivf-pq", recall=0.99, progress=False)
    more = made.info()["approximate"]
    assert min(more["recall_at_10"].values()) >= 0.99 and max(more["candidates"].values()) > 1


def test_massive_activations_do_not_make_the_mean_of_a_layer():
    """One row in a hundred, a hundred times as long: centring must not be around it."""
    g = torch.Generator().manual_seed(0)
    states = torch.randn(500, 32, generator=g) + 2 * torch.randn(32, generator=g)
    usual = states.clone()
    states[::100] = 300 * normalize(torch.randn(32, generator=g), dim=0) * 5
    encoding = Encoding("fp16", 32)

    matrix = SimpleNamespace(
        n_rows=500, norm=states.norm(dim=1), encoding=encoding, states=lambda lo, hi: states[lo:hi]
    )
    usual = torch.cat([usual[i : i + 1] for i in range(500) if i % 100])
    for calibration in ("centre", "z-score"):
        scale = searching.Scale(matrix, calibration, None)
        np.testing.assert_allclose(scale.mean, usual.mean(0), atol=1e-5)
    np.testing.assert_allclose(scale.spread, usual.std(0, correction=0), rtol=1e-4)
