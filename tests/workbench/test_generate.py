"""Reading while a model writes: the numbers of a pass over the whole text, whatever batch, cache and other prompts."""

import numpy as np
import pytest
import torch
import transformers
from tiny import SMALL, tiny

import workbench
from lenses import LogitLens
from probes.routing import RoutingTracer
from workbench.errors import InputError, Refused
from workbench.organisms.polyglot import twins

PROMPTS = [[5, 9, 13, 40], [7, 8], [20, 21, 22, 23, 24, 25, 26]]


def mamba() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def gqa() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**{**SMALL, "num_key_value_heads": 2}, head_dim=8)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=["llama", "gpt2", "gemma2", "qwen3", "mamba"])
def model(request):
    made = {"mamba": mamba, "qwen3": gqa}
    module = made[request.param]() if request.param in made else tiny(request.param)
    module.generation_config.eos_token_id = None
    return workbench.load(module, name=request.param)


def ids(reading: workbench.Reading, prompt: int) -> list[int]:
    return [int(i) for i in reading["input_id"].values[prompt] if i >= 0]


def test_each_token_is_read_as_in_a_pass_over_the_whole_text(model):
    readers = [LogitLens(targets="next"), workbench.States()]
    found = workbench.generate(model, PROMPTS, readers, max_new_tokens=5, progress=False)
    for p, prompt in enumerate(PROMPTS):
        own = ids(found[0], p)
        n = len(own)
        assert own[: len(prompt)] == prompt and n == len(prompt) + 5
        whole = workbench.read(model, own, [LogitLens(targets="next"), workbench.States()], progress=False)
        for name in ("entropy", "kl_to_final", "target_logprob"):
            a, b = found[0][name].values[p, :, :n], whole[0][name].values[0]
            np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)
        state = found[1]["state"].values[p, :, :n]
        np.testing.assert_allclose(state, whole[1]["state"].values[0], atol=1e-3, rtol=1e-3)
        with torch.no_grad():  # each token is the model's own likeliest
            logits = model.module(input_ids=torch.tensor([own])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == own[len(prompt) :]


def test_batches_cache_and_other_prompts_change_no_text(model):
    options = {"max_new_tokens": 6, "temperature": 1.0, "n": 2, "seed": 3, "progress": False}
    every = workbench.generate(model, PROMPTS, **options)
    assert every["draw"].values.tolist() == [0, 1] * 3 and every["given"].values.tolist() == [0, 0, 1, 1, 2, 2]
    for change in ({"batch_size": 1}, {"cache": False}):
        other = workbench.generate(model, PROMPTS, **options, **change)
        assert [ids(other, p) for p in range(6)] == [ids(every, p) for p in range(6)]
    alone = workbench.generate(model, PROMPTS[1:2], **options)
    assert [ids(alone, p) for p in range(2)] == [ids(every, p) for p in (2, 3)]
    assert ids(every, 2) != ids(every, 3)
    again = workbench.generate(model, PROMPTS[1:2] * 2, **{**options, "n": 1})
    assert [ids(again, p) for p in range(2)] == [ids(every, p) for p in (2, 3)], "a prompt that comes again goes on"


def test_draws_are_as_likely_as_the_model_says():
    model = workbench.load(tiny("llama"))
    found = workbench.generate(model, [PROMPTS[0]], max_new_tokens=1, temperature=0.7, n=4000, progress=False)
    drawn = np.bincount(found["input_id"].values[:, len(PROMPTS[0])], minlength=97)
    with torch.no_grad():
        p = (model.module(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 0.7).softmax(-1).numpy()
    assert np.abs(drawn / 4000 - p).max() < 5 * np.sqrt(p.max() / 4000)
    few = workbench.generate(model, [PROMPTS[0]], max_new_tokens=1, temperature=0.7, top_k=2, n=200, progress=False)
    assert set(few["input_id"].values[:, len(PROMPTS[0])]) <= set(np.argsort(-p)[:2].tolist())


def test_a_text_ends_with_its_end():
    module = tiny("llama")
    module.generation_config.eos_token_id = None
    plain = workbench.generate(workbench.load(module), PROMPTS, max_new_tokens=6, progress=False)
    end = ids(plain, 0)[len(PROMPTS[0]) + 2]
    module.generation_config.eos_token_id = end
    found = workbench.generate(workbench.load(module), PROMPTS, LogitLens(), max_new_tokens=6, progress=False)
    for p, prompt in enumerate(PROMPTS):
        own, free = ids(found, p), ids(plain, p)
        stop = len(prompt) + (free[len(prompt) :].index(end) + 1 if end in free[len(prompt) :] else 6)
        assert own == free[:stop] and bool(found["ended"].values[p]) == (stop < len(free) or free[-1] == end)
        assert found["generated"].values[p].sum() == stop - len(prompt)
        assert np.isfinite(found["entropy"].values[p, :, :stop]).all()
        assert np.isnan(found["entropy"].values[p, :, stop:]).all()


def test_routing_is_traced_while_a_model_writes():
    model = twins.planted()
    documents, _ = twins.documents(3, languages=True, tokens=12)
    tracer = RoutingTracer(trace=True)
    found = workbench.generate(model, documents, tracer, max_new_tokens=4, positions="new", progress=False)
    for p in range(3):
        own = ids(workbench.generate(model, documents, max_new_tokens=4, progress=False), p)
        whole = workbench.read(model, own, RoutingTracer(trace=True), progress=False)
        np.testing.assert_array_equal(
            found["expert_id"].values[p], whole["expert_id"].values[0][:, -found.data.sizes["position"] :]
        )


def test_what_cannot_write_is_refused_and_the_model_is_left_as_it_was():
    model = workbench.load(tiny("llama"))
    model.module.train()
    state = torch.get_rng_state()
    workbench.generate(model, PROMPTS, max_new_tokens=2, temperature=1.0, progress=False)
    assert model.module.training and torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    with pytest.raises(InputError, match="reads at most 64"):
        workbench.generate(model, PROMPTS, max_new_tokens=60, progress=False)
    with pytest.raises(InputError, match="all the same at temperature 0"):
        workbench.generate(model, PROMPTS, n=2, progress=False)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    ))  # fmt: skip
    with pytest.raises(Refused, match="does not continue texts"):
        workbench.generate(workbench.load(bert.eval()), PROMPTS, progress=False)
