"""Shared beginnings that are run once: the same log-probabilities as a plain forward pass of each whole prompt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers
from tiny import CONFIGS, SMALL, tiny

import workbench
from probes.values.answers import chosen_logprobs
from workbench.engine import prefix

MORE = {
    "mistral, window of 7": lambda: transformers.MistralConfig(**SMALL, sliding_window=7),
    "gemma2, window of 9": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=9),
    "gemma3, window of 9": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=9, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=0,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4),
    "lfm2": lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2),
    "rwkv": lambda: transformers.RwkvConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32, context_length=64
    ),
}  # fmt: skip
RECURRENT = ("mamba", "lfm2", "rwkv")
SPARED = 7 * (18 + 25 + 18)


def built(name: str) -> workbench.Model:
    if name in CONFIGS:
        return workbench.load(tiny(name), name=name)
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(MORE[name]()).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3) if parameter.ndim > 1 and name not in RECURRENT else None
    return workbench.load(module, name=name)


def asked(seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Three heads of 18 to 25 tokens with eight ends each, and four prompts of their own; one to three places read."""
    rng = np.random.default_rng(seed)

    def some(n: int) -> list[int]:
        return rng.integers(3, 97, n).tolist()

    prompts = [head + some(int(rng.integers(3, 12))) for head in (some(18), some(25), some(18)) for _ in range(8)]
    prompts += [some(n) for n in (2, 5, 20, 30)]
    prompts = [prompts[i] for i in rng.permutation(len(prompts))]
    return prompts, [[some(2) for _ in range(int(rng.integers(1, min(4, len(p)))))] for p in prompts]


def whole(model: workbench.Model, prompts: list[list[int]], ids: list[list[list[int]]]) -> list[np.ndarray]:
    """Each prompt alone, through the model's own forward."""
    found = []
    for prompt, own in zip(prompts, ids, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].double()
        rows = logits.log_softmax(-1)[-len(own) :]
        found.append(np.array([[float(row[t]) for t in some] for row, some in zip(rows, own, strict=True)]))
    return found


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_parts_are_the_whole(name):
    model = built(name)
    prompts, ids = asked()
    want = whole(model, prompts, ids)
    for batch_size in (None, 1, 5):
        found, cost = chosen_logprobs(model, prompts, ids, batch_size, False)
        for row, own in zip(found, want, strict=True):
            np.testing.assert_allclose(row[: len(own)], own, atol=2e-4, rtol=2e-5)
            assert np.isnan(row[len(own) :]).all()
        assert cost["tokens"] == sum(map(len, prompts))
        # All but one of the eight are spared each head, however batches are cut; four prompts were run twice more.
        saved = cost["prefix_tokens_saved"]
        assert saved == 0 if name in RECURRENT else SPARED // 2 < saved < SPARED


def test_a_model_whose_cache_changes_it_is_run_whole(monkeypatch):
    model = built("llama")
    prompts, ids = asked(1)
    want = whole(model, prompts, ids)
    own, calls = model.module.model.forward, []

    def forgetful(*args, **kwargs):
        calls.append(kwargs.get("past_key_values") is not None)
        if calls[-1] and kwargs["past_key_values"].get_seq_length():
            for layer in kwargs["past_key_values"].layers:
                layer.values = layer.values * 1.01
        return own(*args, **kwargs)

    monkeypatch.setattr(model.module.model, "forward", forgetful)
    found, cost = chosen_logprobs(model, prompts, ids, None, False)
    assert any(calls) and cost["prefix_tokens_saved"] == 0
    for row, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=2e-4)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    model = built("gpt2")
    prompts, ids = asked(2)
    own, failed = model.module.transformer.forward, []

    def small(*args, **kwargs):
        if not failed and len(args[0]) > 4:
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return own(*args, **kwargs)

    monkeypatch.setattr(model.module.transformer, "forward", small)
    found, cost = chosen_logprobs(model, prompts, ids, None, False)
    assert failed and cost["prefix_tokens_saved"] > 0
    for row, expected in zip(found, whole(model, prompts, ids), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=2e-4)


def test_an_adapter_is_read_in_parts_too():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    base = tiny("llama")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model = workbench.load(adapted.eval(), name="adapted")
    prompts, ids = asked(3)
    found, cost = chosen_logprobs(model, prompts, ids, None, False)
    assert cost["prefix_tokens_saved"] > SPARED // 2
    for row, expected in zip(found, whole(model, prompts, ids), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=2e-4)


def partitions(members: list[int]):
    """All ways to part a list into groups."""
    if not members:
        yield []
        return
    first, *rest = members
    for n in range(len(rest) + 1):
        for others in itertools.combinations(rest, n):
            left = [m for m in rest if m not in others]
            for tail in partitions(left):
                yield [[first, *others], *tail]


def test_no_choice_of_beginnings_saves_more(monkeypatch):
    """Of all partitions into groups that take every prompt with their beginning."""
    monkeypatch.setattr(prefix, "LEAST", 1)
    monkeypatch.setattr(prefix, "SHARE", 0.0)
    rng = np.random.default_rng(0)

    def alike(rows: list[list[int]]) -> int:
        return next((k for k in range(min(map(len, rows))) if len({r[k] for r in rows}) > 1), min(map(len, rows)))

    for _ in range(150):
        prompts = [rng.integers(0, 2, int(rng.integers(0, 7))).tolist() for _ in range(int(rng.integers(1, 7)))]
        groups = prefix.shared(prompts)
        saved = 0
        for members, depth in groups:
            assert len(members) > 1 and depth == alike([prompts[i] for i in members])
            saved += (len(members) - 1) * depth
        used = [i for members, _ in groups for i in members]
        assert len(used) == len(set(used))
        best = 0
        for parts in partitions(list(range(len(prompts)))):
            begun = {tuple(g): prompts[g[0]][: alike([prompts[i] for i in g])] for g in parts if len(g) > 1}
            if all(sorted(g) == [i for i, p in enumerate(prompts) if p[: len(b)] == b] for g, b in begun.items()):
                best = max(best, sum((len(g) - 1) * len(b) for g, b in begun.items()))
        assert saved == best


def test_short_beginnings_are_left_alone():
    head = list(range(20))
    assert prefix.shared([[*head, k] for k in range(30, 33)]) == [([0, 1, 2], 20)]
    assert prefix.shared([[*head[:15], k] for k in range(30, 33)]) == []
    assert prefix.shared([[*head, *range(100 * k, 100 * k + 90)] for k in range(1, 4)]) == []
    assert prefix.shared([]) == [] and prefix.shared([head]) == []
