"""LatentLens as a reader, and what is measured with it, against the index itself and dense computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from tiny import tiny

import workbench
from lenses import ContextIndex, LogitLens, States
from lenses.latent import IndexRefused, LatentLens, logit_agreement
from lenses.latent.hubness import hubness
from workbench.errors import InputError
from workbench.organisms.story.grammar import stories

PROMPTS = ["Mara lives in", "He took the money to the bank to save it.", "one two three four"]
NAMES = (
    "similarity", "index_layer", "token_id", "sentence", "token_position", "word", "char_start", "char_end", "context",
)  # fmt: skip


@pytest.fixture(scope="module")
def reading(story, index):
    return workbench.read(story, PROMPTS, LatentLens(index, self_matches=True), progress=False)


def test_every_place_has_the_neighbours_that_the_index_gives_for_its_own_state(story, index, reading):
    compared = []
    for p, prompt in enumerate(PROMPTS):
        ids = story.tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            hidden = story.module(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        # transformers' last entry is behind the final norm, so the deepest layer is left out here.
        for layer in range(story.n_layers):
            found = index.search(hidden[layer][0], 5)
            here = reading.data.isel(prompt=p, layer=layer, position=slice(len(ids)))
            np.testing.assert_allclose(here.similarity.values, found.similarity.values, atol=1e-5)
            clear = np.abs(np.diff(found.similarity.values, axis=1)).min(1) > 1e-5
            for name in NAMES[1:]:
                assert (here[name].values[clear] == found[name].values[clear]).all(), name
            compared.append(clear.mean())
    assert np.mean(compared) > 0.6  # elsewhere two neighbours are equally near


def test_the_word_is_marked_where_it_stands(reading):
    data = reading.data
    real = data.context.values >= 0
    for text, a, b, word in zip(
        *(data[n].values[real] for n in ("sentence", "char_start", "char_end", "word")), strict=True
    ):
        assert text[a:b] in word and word in text


def test_pads_have_no_neighbours(story, reading):
    data = reading.data
    short = len(story.tokenizer(PROMPTS[0])["input_ids"])
    pads = data.isel(prompt=0, position=slice(short, None))
    assert pads.sizes["position"] > 0
    assert (pads.context.values == -1).all() and np.isnan(pads.similarity.values).all()
    assert (pads.sentence.values == "").all()


def test_positions_and_layers_that_were_asked_for(story, index):
    data = workbench.read(story, PROMPTS, LatentLens(index, [-1, 2], 3), positions="last", progress=False).data
    assert data.layer.values.tolist() == [2, 6] and data.sizes["rank"] == 3 and data.sizes["position"] == 1
    only = workbench.read(story, PROMPTS, LatentLens(index, 2, index_layers=[4]), progress=False).data
    assert set(np.unique(only.index_layer.values)) <= {4, -1}


def test_a_state_of_zeros_has_no_neighbours_and_is_no_error(story, index):
    lens = LatentLens(index, floors=False, foreign=True)
    with torch.no_grad():
        module = workbench.load("organism:story").module
        module.get_input_embeddings().weight[5] = 0
    model = workbench.load(module, tokenizer=story.tokenizer)
    data = workbench.read(model, [[1, 5, 9]], lens, progress=False).data
    assert (data.context.values[0, 0, 1] == -1).all() and (data.context.values[0, 0, 2] >= 0).all()


def test_another_models_index_is_refused_unless_that_is_wanted(index):
    other = workbench.load(tiny("llama"), name="other")
    with pytest.raises(IndexRefused, match="width"):
        workbench.read(other, [[3, 4]], LatentLens(index), progress=False)


def test_states_of_the_corpus_itself_come_back_as_themselves(story, index):
    """A known answer: a sentence of the index finds its own contexts, at similarity 1, in its own layer."""
    sentence = int(index.store.contexts["sentence"][len(index) // 2])
    text = index.store.text(sentence)
    lens = LatentLens(index, index.layers, distinct=False, self_matches=True)
    data = workbench.read(story, text, lens, progress=False).data
    rows = np.flatnonzero(index.store.contexts["sentence"] == sentence)
    for row in rows:
        at = int(index.store.contexts["position"][row])
        if index.store.contexts["token_id"][row] in index.manifest["special_ids"]:
            continue
        for i, layer in enumerate(index.layers):
            place = data.isel(prompt=0, layer=i, position=at)
            # Another context may be as near where sentences agree up to the last bit; this one is among the best.
            assert row in place.context.values[place.index_layer.values == layer]
            assert float(place.similarity[0]) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------- controls


def share(values: np.ndarray) -> float:
    return float((values[~np.isnan(values)] < 0.05).mean())


def test_real_texts_pass_the_null_of_shuffled_prompts_and_random_tokens_do_not(story, index):
    texts = [s.text for s in stories(12, 9)]
    data = workbench.read(story, texts, LatentLens(index), progress=False).data
    above = (data.similarity[..., 0] > data.similarity_floor_shuffled) & data.similarity_p.notnull()
    for found in (above, data.similarity_p < 0.05):
        rate = (found.sum(("prompt", "position")) / data.similarity_p.notnull().sum(("prompt", "position"))).values
        assert rate[1:].min() > 0.07 and rate[1:].mean() > 0.12, rate
    found, cells = [], 0
    rng = np.random.default_rng(0)
    lens = lambda: LatentLens(index, [1, 3, 5], top_k=1)  # noqa: E731
    for _ in range(8):
        strings = [rng.integers(300, 1300, n).tolist() for n in rng.integers(8, 20, 6)]
        null = workbench.read(story, strings, lens(), progress=False).data
        found.append(share(null.similarity_p.values))
        cells += (null.similarity_q.values < 0.05).sum()
    # Eight readings of some 80 places: a rate of .05 is seen between .03 and .07 (places of a prompt are alike).
    assert np.mean(found) < 0.075 and cells == 0, (found, cells)


def test_special_tokens_have_no_p_and_too_few_null_states_no_floor(story, index):
    data = workbench.read(story, PROMPTS, LatentLens(index, 3), progress=False).data
    special = np.isin(data.input_id.values, story.tokenizer.all_special_ids)
    real = (data.input_id.values >= 0) & ~special
    assert special.any() and np.isnan(data.similarity_p.values[:, 0][~real]).all()
    assert not np.isnan(data.similarity_p.values[:, 0][real]).any()
    one = workbench.read(story, "Mara", LatentLens(index, 3), progress=False).data
    for name in ("similarity_floor_shuffled", "similarity_floor_random", "similarity_p", "similarity_q"):
        assert np.isnan(one[name]).all() and "two text tokens" in one[name].attrs["reason"], name


def test_contexts_that_begin_as_the_prompt_does_are_left_out_and_counted(story, index):
    """Against every sentence of the index, written out."""
    text = index.store.text(int(index.store.contexts["sentence"][len(index) // 2]))
    ids = story.tokenizer(text)["input_ids"]
    flat, starts = index.store.token_ids()
    sentence, position = index.store.contexts["sentence"], index.store.contexts["position"]
    begins = [tuple(flat[starts[s] : starts[s] + p + 1].tolist()) for s, p in zip(sentence, position, strict=True)]
    same = {at: {row for row, own in enumerate(begins) if own == tuple(ids[: at + 1])} for at in range(len(ids))}
    every = workbench.read(story, text, LatentLens(index, 2, 60, self_matches=True, floors=False), progress=False).data
    data = workbench.read(story, text, LatentLens(index, 2, 60, floors=False), progress=False).data
    matched = 0
    for at in range(1, len(ids)):
        rows = set(data.context.values[0, 0, at].tolist())
        assert not rows & same[at]
        kept = [r for r in every.context.values[0, 0, at].tolist() if r not in same[at]]
        assert kept[:5] == data.context.values[0, 0, at].tolist()[:5] or not same[at]
        matched += bool(same[at])
    assert matched >= 5 and data.attrs["self_matches_left_out"] in (matched, matched + 1)
    out = sorted({int(r) for r in data.context.values[0, 0, 4, :3]})
    without = workbench.read(story, text, LatentLens(index, 2, 60, without=out, floors=False), progress=False).data
    assert not np.isin(without.context.values, out).any()


def test_floors_and_shares_do_not_move_with_a_sink(story, index):
    """The first position of every prompt 3,000 times as long, in another direction: what is measured stays."""
    texts = [s.text for s in stories(6, 9)]
    plain = workbench.read(story, texts, LatentLens(index, 3), progress=False).data
    loud = workbench.load("organism:story")
    block = loud.blocks[2]

    def shout(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        changed = states.clone()
        changed[:, 0] = 0
        changed[:, 0, 5] = 6e4
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    block.register_forward_hook(shout)
    data = workbench.read(loud, texts, LatentLens(index, 3, foreign=True), progress=False).data
    sink = data.sink.values
    assert sink[:, 0, 0].all() and sink.sum() == len(texts) and not plain.sink.any()
    for name in ("similarity_floor_shuffled", "similarity_floor_random", "index_layer_share"):
        np.testing.assert_allclose(data[name], plain[name], atol=1e-3, err_msg=name)


def test_shares_of_index_layers_are_of_neighbours_of_words(story, index):
    texts = [s.text for s in stories(12, 9)]
    data = workbench.read(story, texts, LatentLens(index), progress=False).data
    shares = data.index_layer_share.values
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(data.index_layer_share_null.values.sum(1), 1, atol=1e-5)
    word = ~np.isin(data.input_id.values, story.tokenizer.all_special_ids)
    counted = [(data.index_layer.values[:, 3][word] == x).sum() for x in index.layers]
    np.testing.assert_allclose(shares[3], np.array(counted) / sum(counted), atol=1e-6)


def test_shares_of_index_layers_have_an_interval_over_prompts(story, index):
    texts = [s.text for s in stories(6, 11)]
    data = workbench.read(story, texts, LatentLens(index, top_k=3), progress=False).data
    word = ~np.isin(data.input_id.values, story.tokenizer.all_special_ids)
    found = np.where(word[:, None, :, None], data.index_layer.values, -1)  # [prompt, layer, position, rank]
    # [prompt, index, layer]
    counts = np.stack([[(own == x).sum((1, 2)) for x in data["index"].values] for own in found])
    share = counts.sum(0) / counts.sum((0, 1))
    np.testing.assert_allclose(data.index_layer_share.values.T, share, atol=1e-6)
    # Few prompts: Student's t with the standard error of the jackknife, prompts left out one after the other.
    left = np.stack([(s := np.delete(counts, i, 0).sum(0)) / s.sum(0) for i in range(len(texts))])
    error = np.sqrt((len(texts) - 1) / len(texts) * ((left - left.mean(0)) ** 2).sum(0))
    weight = counts.sum((1, 2)) / counts.sum()
    half = error * stats.t.ppf(0.975, (weight**2).sum() ** 2 / (weight**4).sum() - 1)
    low, high = np.clip(share - half, 0, 1), np.clip(share + half, 0, 1)
    np.testing.assert_allclose(data.index_layer_share_low.values.T, low, atol=0.004)
    np.testing.assert_allclose(data.index_layer_share_high.values.T, high, atol=0.004)
    assert data.index_layer_share_low.attrs["interval"] == "t over 6 prompts"
    assert (high - low).max() > 0.03
    one = workbench.read(story, texts[0], LatentLens(index, floors=False), progress=False).data
    assert np.isnan(one.index_layer_share_low).all() and np.isnan(one.index_layer_share_high).all()


def test_noise_stays_under_the_random_floor(story, index):
    """States without any structure but mean and covariance pass the floor of random tokens no more often."""
    states = workbench.read(story, [s.text for s in stories(30, 9)], States(3), progress=False)["state"].values
    real = torch.from_numpy(states[:, 0]).flatten(0, 1)
    real = real[~real.isnan().any(1)].double()
    lens = LatentLens(index, 3)
    floor = float(
        workbench.read(story, [s.text for s in stories(30, 9)], lens, progress=False).data.similarity_floor_random[0]
    )
    noise = torch.distributions.MultivariateNormal(real.mean(0), torch.cov(real.T) + 1e-9 * torch.eye(128)).sample(
        (400,)
    )
    passed = (index.search(noise.float(), 1).similarity.values[:, 0] > floor).mean()
    assert passed < 0.15


def test_an_interrupted_figure_needs_nothing_but_the_file(reading, tmp_path):
    opened = workbench.open(reading.save(tmp_path / "latent.nc"))
    # Sentences come back many times, and are stored once.
    assert (tmp_path / "latent.nc").stat().st_size < 400_000
    for name, panel in zip(("share", "share_null"), opened.figure("leap").plot.panels, strict=True):
        np.testing.assert_array_equal(panel.marks[0].values, reading.data[f"index_layer_{name}"].values)
    assert "similarity" in opened.figure().plot.panels[0].marks[0].bar


def test_the_explorer_is_sent_each_sentence_once_with_its_word_marked(reading):
    from workbench.widgets import payload

    data = reading.data
    sent = payload(data)["readings"][0]["prompts"][1]["said"]
    shown = {tuple(p) for p in sent["texts"]}
    assert len(shown) == len(sent["texts"]) > 20
    texts = set(data.sentence.values[1].ravel())
    for before, word, after in shown - {("", "", "")}:
        assert word and any(before.lstrip("…") + word + after.rstrip("…") in text for text in texts)


# ---------------------------------------------------------------- agreement with the logit lens


def test_agreement_counts_what_a_loop_counts(story, index):
    texts = [s.text for s in stories(6, 9)]
    latent, logit = workbench.read(story, texts, [LatentLens(index), LogitLens(layers=[1, 3, 6])], progress=False)
    found = logit_agreement(latent, logit).data
    assert found.layer.values.tolist() == [1, 3, 6] and found.measure.values.tolist() == ["token", "next token"]
    for measure, name in (("token", "token_id"), ("next token", "next_token_id")):
        for layer in (1, 3, 6):
            pairs = []
            for p, text in enumerate(texts):
                for t in range(len(story.tokenizer(text)["input_ids"])):
                    top = int(logit.data.token_id.sel(layer=layer, rank=0)[p, t])
                    near = {int(x) for x in latent.data[name].sel(layer=layer)[p, t].values} - {-1}
                    pairs.append((top, near))
            own = np.mean([top in near for top, near in pairs])
            others = [a in near for i, (a, _) in enumerate(pairs) for j, (_, near) in enumerate(pairs) if i != j]
            here = found.sel(measure=measure, layer=layer)
            assert float(here.rate) == pytest.approx(own, abs=1e-9)
            assert float(here.rate_chance) == pytest.approx(np.mean(others), abs=1e-9)
            assert float(here.rate_low) <= own <= float(here.rate_high)


def test_neighbours_go_on_as_the_model_does(story, index):
    """At the last layer a trained model's state says the next token; so do the contexts near to it."""
    texts = [s.text for s in stories(12, 9)]
    latent, logit = workbench.read(story, texts, [LatentLens(index), LogitLens()], progress=False)
    last = logit_agreement(latent, logit).data.sel(measure="next token", layer=6)
    assert float(last.rate_low) > 5 * float(last.rate_chance)


def test_an_index_finds_its_models_folder_again_and_readings_do_not_tell_it(story, sentences, tmp_path):
    story.module.save_pretrained(tmp_path / "own")
    story.tokenizer.save_pretrained(tmp_path / "own")
    index = ContextIndex.build(str(tmp_path / "own"), sentences[:40], tmp_path / "index", progress=False)
    assert index.manifest["model"]["name"] == "own"
    again = ContextIndex.open(tmp_path / "index").add(sentences[40:60], progress=False)
    whole = ContextIndex.build(story, sentences[:60], tmp_path / "whole", progress=False)
    assert len(again) == len(whole) and again.manifest["contexts"] == whole.manifest["contexts"]
    again.check(story)  # by fingerprint: the organism is the same model under another name
    found = workbench.read(story, "The bat flew", LatentLens(again), progress=False)
    assert str(tmp_path) not in f"{found.data.attrs} {found.provenance}"


def test_readings_of_different_prompts_are_not_compared(story, index, reading):
    other = workbench.read(story, PROMPTS[:2], LogitLens(), progress=False)
    with pytest.raises(InputError, match="different prompts"):
        logit_agreement(reading, other)
    with pytest.raises(InputError, match="in this order"):
        logit_agreement(other, reading)


# ---------------------------------------------------------------- hubs


def test_a_planted_hub_is_found_and_csls_takes_its_advantage(tmp_path):
    """Rows around a common direction: the row in the middle is near to all of them."""
    tokens = {f"w{i}": i for i in range(200)}
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel(tokens, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=1, vocab_size=200)).eval()
    with torch.no_grad():
        table = torch.randn(200, 64)
        table[7] = 0
        table = table / table.norm(dim=1, keepdim=True).clamp_min(1e-6) + torch.eye(64)[0]
        module.transformer.wte.weight.copy_(table)
        module.transformer.wpe.weight.zero_()
    model = workbench.load(module, tokenizer=PreTrainedTokenizerFast(tokenizer_object=raw))
    index = ContextIndex.build(model, list(tokens), tmp_path / "hub", layers=[0], progress=False)
    found = hubness(index, top_k=5).data
    assert found.calibration.values.tolist() == ["none", "centre", "z-score", "csls"]
    plain, csls = found.sel(calibration="none"), found.sel(calibration="csls")
    assert plain.hub_sentence.values[0] == "w7" and int(plain.hub_count[0]) > 150
    assert float(plain.skewness) > 3 * float(plain.skewness_null)
    assert int(csls.hub_count[0]) < 0.75 * int(plain.hub_count[0])
    np.testing.assert_allclose(found.share.sum("index"), 1, atol=1e-6)
    # By hand: in how many others' five nearest does each row stand?
    unit = torch.nn.functional.normalize(table, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    times = torch.bincount(cosine.topk(5, 1).indices.flatten(), minlength=200).sort(descending=True).values
    assert abs(int(plain.hub_count[0]) - int(times[0])) <= 2
    assert float(plain.never_found) == pytest.approx(float((times == 0).double().mean()), abs=0.02)


# ---------------------------------------------------------------- senses


def test_senses_of_the_card_are_found_again(story, tmp_path):
    """A smaller run than the card's; its numbers lie in wider intervals around them."""
    import json

    from lenses.latent.senses import senses
    from workbench.organisms import folder

    card = json.loads((folder("story").parent / "card.json").read_text())["lenses"]
    data = senses(story, corpus=1000, queries=120, path=tmp_path / "senses").data
    assert data.measure.values.tolist() == card["measure"] and data.lens.values.tolist() == card["lens"]
    here, there = data.rate.values[1:], np.array(card["rate"])[1:]
    assert np.abs(here - there).max() < 0.12
    assert (data.rate_low.values <= data.rate.values + 1e-9).all() and (
        data.rate.values <= data.rate_high.values + 1e-9
    ).all()
    new_story = data.sel(measure="sense, new story").rate.max("layer")
    assert float(new_story.sel(lens="LatentLens")) > 0.85 > float(new_story.sel(lens="EmbeddingLens"))
    assert np.abs(data.rate_chance.values[1:] - 0.5).max() < 0.1
    assert data.rate.sel(measure="word", lens="LatentLens").values[1:].min() > 0.7


def test_intervals_of_senses_cover_where_what_varies_is_the_clause():
    """On the grammar's own stories, with answers that each clause has of its own: the interval over clauses holds the
    rate over all clauses there could be, the one over stories does not."""
    from lenses.latent.senses import occurrences, over_clauses
    from workbench.organisms.story.grammar import stories
    from workbench.stats import Design

    wanted = occurrences(list(stories(600, 2)))
    keys = [(o.word, o.clause) for o in wanted]
    clause = np.unique(np.array([" ".join(k) for k in keys]), return_inverse=True)[1]
    _, story = np.unique([o.story for o in wanted], return_inverse=True)
    rng, runs = np.random.default_rng(0), 300
    own = (rng.random((runs, clause.max() + 1)) < 0.7)[:, clause]  # a clause is known, or not
    each = np.where(rng.random(own.shape) < 0.05, ~own, own).astype(float)
    truth = 0.7 * 0.95 + 0.3 * 0.05
    found, by_story = over_clauses(each, wanted), Design(story).bootstrap(each.T)
    covered, naive = (((x.low <= truth) & (truth <= x.high)).mean() for x in (found, by_story))
    assert covered > 0.93 and naive < covered - 0.08


def test_senses_of_an_index_that_is_there_are_those_of_a_new_one(story, index, tmp_path):
    from lenses.latent.senses import senses

    new = senses(story, corpus=150, queries=15, path=tmp_path / "senses")
    again = senses(story, index=tmp_path / "senses", queries=15)
    xr.testing.assert_identical(new.data, again.data)
    again.save(tmp_path / "senses.nc")
    lower = ContextIndex.build(story, [s.text for s in stories(150, 5)], tmp_path / "low", layers=[1], progress=False)
    assert senses(story, index=lower, queries=15).data.attrs["index_layers"] == [1]
    with pytest.raises(InputError, match="not known"):  # single sentences
        senses(story, index=index, queries=15)
    with pytest.raises(InputError, match="not both"):
        senses(story, index=lower, corpus=150)
    with pytest.raises(IndexRefused):
        senses(tiny("llama"), index=lower, queries=15)


def test_left_out_contexts_are_never_found(index, dense):
    queries = dense[index.layers[0]][:20]
    first = index.search(queries, 3)
    without = np.unique(first.context.values)
    again = index.search(queries, 3, without=without)
    assert not np.isin(again.context.values, without).any()
    assert (again.similarity.values <= first.similarity.values + 1e-6).all()
