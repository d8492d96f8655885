"""Thoughts against loops of the test's own: no cache, one prompt at a time, transformers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
import zoo
from tiny import tiny

import workbench
from lenses import LogitLens
from probes.routing import RoutingTracer
from probes.superposition import CandidateBelief, ContinuousThought, ForcedMixture, Given, SoftThought, think
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins
from workbench.readers import States

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
THEN = [4, 17]


def by_hand(module, ids: list[int], n: int, then: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Continuous thoughts without a cache: the last hidden state is already behind the final norm."""
    embed = module.get_input_embeddings()
    row = embed(torch.tensor([ids]))
    thoughts = []
    with torch.no_grad():
        for _ in range(n):
            hidden = module(inputs_embeds=row, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1:]
            thoughts.append(hidden[0, 0])
            row = torch.cat([row, hidden], 1)
        row = torch.cat([row, embed(torch.tensor([then]))], 1) if then else row
        out = module(inputs_embeds=row, output_hidden_states=True, use_cache=False)
    return out.logits[0], thoughts


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    transformers.logging.set_verbosity_error()
    return workbench.load(tiny(request.param))


def test_continuous_thoughts_are_those_of_a_plain_loop(model):
    states = States()
    found = think(model, PROMPTS, ContinuousThought(3), readers=[LogitLens(top_k=model.vocab_size), states], then=THEN)
    data = found.readings[0].data
    for i, ids in enumerate(PROMPTS):
        logits, thoughts = by_hand(model.module, ids, 3, THEN)
        for t, vector in enumerate(thoughts):
            np.testing.assert_allclose(found.vectors[i, t], vector, atol=1e-5)
        # Reading while it thinks, and reading the finished sequence, are the same: the future changes no past state.
        own = logits[len(ids) - 1 :].log_softmax(-1)
        at_end = data.isel(prompt=i, layer=-1)
        for place in range(6):
            whole = np.empty(model.vocab_size)
            whole[at_end["token_id"].values[place]] = at_end["logprob"].values[place]
            np.testing.assert_allclose(whole, own[place], atol=1e-4)
    assert data["input_token"].values[0, :4].tolist()[1:] == ["thought 1", "thought 2", "thought 3"]
    assert (data["input_id"].values[:, 1:4] == -1).all()


@pytest.mark.parametrize("how", [{"batch_size": 1}, {"cache": False}, {"cache": False, "batch_size": 2}])
def test_cache_and_batches_change_nothing(model, how):
    runs = []
    for options in ({}, how):
        states, lens = States(), LogitLens(top_k=5)
        runs.append((think(model, PROMPTS, ContinuousThought(4), readers=[states, lens], then=THEN, **options), states))
    (a, x), (b, y) = runs
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
    np.testing.assert_allclose(a.readings[0]["state"], b.readings[0]["state"], atol=1e-4)
    np.testing.assert_array_equal(a.readings[1].data["token_id"], b.readings[1].data["token_id"])


def test_one_token_mixtures_are_greedy_decoding(model):
    found = think(model, PROMPTS, SoftThought(6, keep=1, temperature=1.0))
    for i, ids in enumerate(PROMPTS):
        own = model.module.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert found.data["token_id"].values[i, :, 0].tolist() == own[0, len(ids) :].tolist()
    assert (found.data["weight"].values == 1).all() and (found.data["mixture_entropy"].values == 0).all()


def test_no_thoughts_are_the_plain_model(model):
    found = think(model, PROMPTS, ContinuousThought(0), readers=[LogitLens(top_k=3)], then=THEN)
    read = workbench.read(model, [p + THEN for p in PROMPTS], LogitLens(top_k=3), progress=False)
    for i, ids in enumerate(PROMPTS):
        a = found.readings[0].data.isel(prompt=i)
        b = read.data.isel(prompt=i, position=slice(len(ids) - 1, len(ids) + 2))
        np.testing.assert_array_equal(a["token_id"].values, b["token_id"].values)
        np.testing.assert_allclose(a["logprob"].values, b["logprob"].values, atol=1e-4)
    assert found.vectors.shape == (3, 0, model.d_model)


def test_a_mixture_is_cut_and_weighted_as_it_says(model):
    policy = SoftThought(1, temperature=0.7, top_k=12, top_p=0.6, min_p=0.05, keep=5)
    found = think(model, PROMPTS, policy)
    table = model.module.get_input_embeddings().weight.detach()
    for i, ids in enumerate(PROMPTS):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
        p = (logits / 0.7).softmax(-1)
        order = p.argsort(descending=True).tolist()
        kept, total = [], 0.0
        for rank, token in enumerate(order):
            if rank >= 12 or total >= 0.6 or float(p[token]) < 0.05 * float(p[order[0]]):
                break
            kept.append(token)
            total += float(p[token])
        kept = kept[:5]
        weight = p[kept] / p[kept].sum()
        np.testing.assert_allclose(found.vectors[i, 0], (table[kept] * weight[:, None]).sum(0), atol=1e-5)
        assert float(found.data["mixture_entropy"][i, 0]) == pytest.approx(
            float(torch.special.entr(weight).sum()), abs=1e-5
        )
        entropy = float(torch.special.entr(logits.softmax(-1)).sum())
        assert float(found.data["entropy"][i, 0]) == pytest.approx(entropy, rel=1e-4)


def test_gumbel_noise_is_seeded_and_belongs_to_the_prompt(model):
    policy = SoftThought(3, gumbel=0.5)
    a, b = think(model, PROMPTS, policy, seed=3), think(model, PROMPTS, policy, seed=3, batch_size=1)
    np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-5)
    c = think(model, PROMPTS, policy, seed=4)
    assert np.abs(a.vectors - c.vectors).max() > 1e-3
    # Of one token after the other, the heaviest is drawn as often as its probability says (Gumbel-max).
    plain = think(model, [PROMPTS[0]], SoftThought(1, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, keep=200))
    p = plain.data["weight"].values[0, 0]
    rows = think(model, [PROMPTS[0]] * 400, SoftThought(1, 1.0, None, 1.0, 0.0, 200, gumbel=0.1))
    first = rows.data["weight"].values[:, 0].argmax(1)
    assert abs((first == 0).mean() - p[0]) < 4 * np.sqrt(p[0] * (1 - p[0]) / 400)


def test_a_row_that_is_sure_stops_and_the_others_go_on(model):
    entropy = think(model, PROMPTS, SoftThought(5)).data["entropy"].values
    line = float(np.sort(entropy[:, 0])[1])
    found = think(
        model, PROMPTS, SoftThought(5, stop_entropy=line, patience=1), readers=[LogitLens(top_k=2)], then=THEN
    )
    for i, ids in enumerate(PROMPTS):
        below = np.flatnonzero(entropy[i] < line)
        length = int(below[0]) + 1 if len(below) else 5
        assert int(found.data["length"][i]) == length
        assert np.isnan(found.vectors[i, length:]).all() and not np.isnan(found.vectors[i, :length]).any()
        alone = think(model, [ids], SoftThought(length), readers=[LogitLens(top_k=2)], then=THEN)
        np.testing.assert_allclose(found.vectors[i, :length], alone.vectors[0], atol=1e-5)
        a, b = found.readings[0].data, alone.readings[0].data
        np.testing.assert_allclose(a["logprob"].values[i, :, -2:], b["logprob"].values[0, :, -2:], atol=1e-4)
        assert np.isnan(a["logprob"].values[i, :, length + 1 : 6]).all()


def test_given_forced_and_edited_thoughts(model):
    plain = think(model, PROMPTS, ContinuousThought(3), readers=[LogitLens(top_k=2)], then=THEN)
    given = think(model, PROMPTS, Given(plain.vectors), readers=[LogitLens(top_k=2)], then=THEN)
    np.testing.assert_allclose(
        plain.readings[0].data["logprob"].values, given.readings[0].data["logprob"].values, atol=1e-4
    )
    table = model.module.get_input_embeddings().weight.detach().numpy()
    forced = think(model, PROMPTS, ForcedMixture([[5, 6], [7, 8, 9]]))
    np.testing.assert_allclose(forced.vectors[1], [table[[5, 6]].mean(0), table[[7, 8, 9]].mean(0)], atol=1e-6)
    own = think(model, PROMPTS, ForcedMixture([[[5], [6]], [[7], [8]], [[9], [10]]]))
    np.testing.assert_allclose(own.vectors[2], table[[9, 10]], atol=1e-6)

    def zero(place, thoughts, prompts):
        return thoughts * (place != 2)

    edited = think(model, PROMPTS, ContinuousThought(3), edit=zero)
    assert (edited.vectors[:, 1] == 0).all()
    np.testing.assert_allclose(edited.vectors[:, 0], plain.vectors[:, 0], atol=1e-6)
    # What comes after is made of what was fed.
    assert np.abs(edited.vectors[:, 2] - plain.vectors[:, 2]).max() > 1e-3


def test_routing_and_belief_look_on():
    model = twins.planted()
    ids = [[5, 9, 40, 77], [6, 10]]
    tracer, belief = RoutingTracer(trace=True, scores=True), CandidateBelief([[3, 4, 5], [6, 7, 8]])
    found = think(model, ids, ContinuousThought(2), readers=[tracer, belief], then=[11])
    routed = found.readings[0].data
    assert routed["expert_id"].shape == (2, 2, 4, 2) and int(routed["token_count"].sum()) == 8
    module = model.module
    row = module.get_input_embeddings()(torch.tensor([ids[1]]))
    with torch.no_grad():
        row = torch.cat(
            [row, torch.tensor(found.vectors[1])[None], module.get_input_embeddings()(torch.tensor([[11]]))], 1
        )
        out = module(inputs_embeds=row, output_router_logits=True)
    for b, scores in enumerate(out.router_logits):
        own = scores.topk(2, 1).indices.sort(1).values[1:]
        np.testing.assert_array_equal(np.sort(routed["expert_id"].values[1, b], -1), own)
    np.testing.assert_allclose(
        found.readings[1].data["belief"].values[1, -1], out.logits[0, 1:, [6, 7, 8]].softmax(-1), atol=1e-5
    )


def test_the_model_is_left_as_it_was(model):
    model.module.train()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())
    state = torch.random.get_rng_state()
    think(model, PROMPTS, SoftThought(2, gumbel=1.0), readers=[LogitLens()])
    assert model.module.training and (torch.random.get_rng_state() == state).all()
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())
    model.module.eval()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "qwen3", "mamba", "gpt_neox", "olmoe", "bloom", "falcon_h1"])
def test_other_architectures_think_as_their_plain_loop_or_are_refused(name):
    transformers.logging.set_verbosity_error()
    model = workbench.load(zoo.build(name))
    try:
        found = think(model, PROMPTS, ContinuousThought(2), readers=[LogitLens(top_k=4)], then=THEN)
    except Refused as refused:
        assert name in ("mamba", "falcon_h1"), refused  # Falcon-H1 scales embeddings of ids alone
        return
    for i, ids in enumerate(PROMPTS):
        logits, _ = by_hand(model.module, ids, 2, THEN)
        own = logits[-1].log_softmax(-1).topk(4)
        np.testing.assert_allclose(found.readings[0].data["logprob"].values[i, -1, -1], own.values, atol=2e-3)


def test_what_cannot_be_thought_says_why(model):
    limit = model.context_length
    with pytest.raises(InputError, match="Think less, or cut the prompt"):
        think(model, PROMPTS, ContinuousThought(limit))
    with pytest.raises(InputError, match="There are 3 prompts and thoughts for 2"):
        think(model, PROMPTS, Given(np.zeros((2, 1, model.d_model))))
    with pytest.raises(InputError, match="temperature=0"):
        SoftThought(2, temperature=0)
    with pytest.raises(InputError, match="no tokenizer"):
        think(model, PROMPTS, ContinuousThought(1), then="word")


@pytest.mark.parametrize("name", ["gpt2", "mistral", "mamba"])
def test_rows_that_stop_leave_no_holes_in_other_rows(name):
    """Windows and recurrences would count columns that nothing attends to."""
    transformers.logging.set_verbosity_error()
    model = workbench.load(zoo.build(name))
    prompts = [[5, 6, 7], [12, 13, 14], [20, 21, 22]]
    entropy = think(model, prompts, SoftThought(5)).data["entropy"].values
    policy = SoftThought(5, stop_entropy=float(np.sort(entropy[:, 0])[1]), patience=1)
    together = think(model, prompts, policy, readers=[LogitLens(top_k=2)], then=THEN)
    for i, ids in enumerate(prompts):
        alone = think(model, [ids], policy, readers=[LogitLens(top_k=2)], then=THEN)
        a, b = (x.readings[0].data["logprob"].values for x in (together, alone))
        np.testing.assert_allclose(a[i, :, -1], b[0, :, -1], atol=1e-4)
    # The thoughts of a run that stopped can be given again.
    again = think(model, prompts, Given(together.vectors), readers=[LogitLens(top_k=2)], then=THEN)
    np.testing.assert_array_equal(again.data["length"], together.data["length"])
    a, b = (x.readings[0].data["logprob"].values for x in (together, again))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_mixtures_that_do_not_fit_are_named():
    for tokens in ([[[3]], [[3], [4]]], [[], [3]], [[[3], []], [[4], [5]]]):
        with pytest.raises(InputError, match="ForcedMixture takes token ids for each thought"):
            ForcedMixture(tokens)
    assert ForcedMixture(np.array([[3, 4], [5, 6]])).n == 2
