"""Matrices are those that the model multiplies with, whatever is wrapped around them: beside merged twins and torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from tiny import prompts, tiny
from torch import nn

import workbench
from lenses import EmbeddingLens, LogitAttribution, LogitLens
from workbench.errors import Refused
from workbench.weights import effective_linear, effective_weight, merged

peft = pytest.importorskip("peft", reason="peft is not installed")

KINDS = {
    "lora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "rank-stabilised": {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True, "lora_alpha": 3},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "biases": {"target_modules": ["lm_head"], "bias": "all"},
}


def adapted(kind, base=None, adapters=("default",)):
    """Trained, as far as random numbers go."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **KINDS[kind])
    module = peft.get_peft_model(tiny("llama") if base is None else base, config, adapter_name=adapters[0]).eval()
    for name in adapters[1:]:
        module.add_adapter(name, config)
    with torch.no_grad():
        for _, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def twin(module):
    return copy.deepcopy(module).merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_head_and_embeddings_are_those_of_the_merged_model(kind):
    module = adapted(kind)
    plain = twin(module)
    model = workbench.load(module)
    weight, bias = model.unembedding
    torch.testing.assert_close(weight, plain.lm_head.weight, rtol=1e-5, atol=1e-5)
    assert bias is None or torch.equal(bias, plain.lm_head.bias)
    torch.testing.assert_close(model.embedding, plain.model.embed_tokens.weight, rtol=1e-6, atol=1e-6)
    # Each reading beside the same reading of the merged model.
    own = workbench.load(plain)
    for lens in (LogitLens(), EmbeddingLens(), LogitAttribution()):
        mine = workbench.read(model, prompts()[:4], lens, progress=False).data
        other = workbench.read(own, prompts()[:4], lens, progress=False).data
        for name in ("logprob", "cosine", "contribution"):
            if name in mine:
                np.testing.assert_allclose(mine[name], other[name], atol=2e-3)
    assert dict(merged(module)).keys() == dict(plain.named_parameters()).keys()
    for name, value in merged(module):
        torch.testing.assert_close(value, dict(plain.named_parameters())[name].detach(), rtol=1e-6, atol=1e-6)


def test_adapted_embeddings_name_the_token_that_went_in():
    model = workbench.load(adapted("lora"))
    data = workbench.read(model, prompts()[:5], EmbeddingLens(layers=[0], top_k=1), progress=False).data
    for p, ids in enumerate(prompts()[:5]):
        found = data.isel(prompt=p, layer=0, rank=0, position=slice(0, len(ids)))
        assert found.token_id.values.tolist() == ids
        np.testing.assert_allclose(found.cosine, 1, atol=1e-5)


def test_matrices_follow_adapters_that_change():
    """Trained in place, exchanged, off, merged: the last layer is the model's own logits each time."""
    module = adapted("lora", adapters=("one", "two"))
    model = workbench.load(module)

    def is_right():
        ids = prompts()[0]
        data = workbench.read(model, ids, LogitLens(top_k=97), progress=False).data.isel(prompt=0, layer=-1)
        with torch.no_grad():
            own = module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        ids = torch.tensor(data.token_id.values).long()
        mine = torch.empty_like(own).scatter_(1, ids, torch.tensor(data.logprob.values))
        torch.testing.assert_close(mine, own, atol=1e-3, rtol=1e-3)
        return mine

    found = [is_right()]
    with torch.no_grad():
        module.base_model.model.lm_head.lora_B["one"].weight.mul_(2)
    found.append(is_right())
    module.set_adapter("two")
    found.append(is_right())
    with module.disable_adapter():
        found.append(is_right())
    handle = module.base_model.model.lm_head.register_forward_hook(lambda m, a, out: 1.5 * out)
    found.append(is_right())
    handle.remove()
    module.merge_adapter()
    found.append(is_right())
    assert min(float((a - b).abs().max()) for a, b in zip(found, found[1:], strict=False)) > 0.01


def test_stored_matrices_are_given_as_they_are():
    module = tiny("llama")
    weight, bias = effective_linear(module.lm_head)
    assert weight.data_ptr() == module.lm_head.weight.data_ptr() and bias is None
    assert effective_weight(module.model.embed_tokens).data_ptr() == module.model.embed_tokens.weight.data_ptr()
    conv = tiny("gpt2").transformer.h[0].attn.c_attn
    weight, bias = effective_linear(conv)
    assert weight.data_ptr() == conv.weight.data_ptr() and torch.equal(weight, conv.weight.T) and bias is not None


def test_scaled_embeddings_are_what_the_module_gives():
    """Gemma 3 scales inside the module, Gemma 2 behind it: what is fed in as embeddings is what the module gives."""
    from tiny import SMALL

    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(**SMALL, head_dim=8)
    module = transformers.Gemma3ForCausalLM(config).eval()
    model = workbench.load(module)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.token_vectors[ids[0]], module.get_input_embeddings()(ids)[0])
        own = module(input_ids=ids).logits
        torch.testing.assert_close(module(inputs_embeds=model.token_vectors[ids]).logits, own)
    stored = module.model.embed_tokens.weight.detach()
    assert float((model.token_vectors[5] / stored[5]).mean()) == pytest.approx(32**0.5, rel=1e-3)


def test_factors_parametrisations_and_hooks_are_in_the_matrix():
    layer = nn.Linear(6, 4)
    plain = layer.weight.detach().clone()

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(effective_linear(layer)[0], 2 * plain)
    layer.register_forward_hook(lambda m, args, output: -output)
    weight, bias = effective_linear(layer)
    torch.testing.assert_close(weight, -2 * plain)
    torch.testing.assert_close(bias, -layer.bias.detach())


def test_what_is_no_product_is_refused():
    layer = nn.Linear(6, 4)
    layer.register_forward_hook(lambda m, args, output: output.tanh())
    with pytest.raises(Refused, match="no product with one matrix"):
        effective_linear(layer)
    with pytest.raises(Refused, match="on the meta device"):
        effective_linear(nn.Linear(6, 4, device="meta"))
    with pytest.raises(Refused, match="on the meta device"):
        effective_weight(nn.Embedding(6, 4, device="meta"))


def test_offloaded_matrices_are_fetched():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    for module in (nn.Linear(6, 4), nn.Embedding(9, 4)):
        own = module.weight.detach().clone()
        accelerate.cpu_offload(module, torch.device("cpu"))
        assert module.weight.is_meta
        torch.testing.assert_close(effective_weight(module), own, rtol=0, atol=0)
        assert module.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_heads_with_adapters(dtype):
    module = adapted("lora").to(dtype)
    weight, _ = workbench.load(module).unembedding
    exact = twin(adapted("lora")).lm_head.weight
    assert float((weight.float() - exact).abs().max() / exact.abs().max()) < 0.02


@pytest.mark.parametrize("whole", [False, True])
def test_adapted_routers_have_the_geometry_of_the_merged_ones(whole):
    """An adapter on a router's matrix (PEFT's target_parameters), and a router that was trained whole."""
    from probes.routing import interventions, measures

    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    base = transformers.MixtralForCausalLM(config).eval()
    where = {"modules_to_save": ["gate"]} if whole else {"target_parameters": ["mlp.gate.weight"]}
    lora = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False, **where)
    module = peft.get_peft_model(copy.deepcopy(base), lora).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn(32))
    model, plain, untrained = workbench.load(module), workbench.load(twin(module)), workbench.load(base)
    mine, own, other = (measures.geometry(m, draws=3).data for m in (model, plain, untrained))
    np.testing.assert_allclose(mine.cosine, own.cosine, atol=1e-6)
    assert float(abs(mine.cosine - other.cosine).max()) > 0.05
    assert [x.gate for x in model.moe.values()] == [x.gate for x in plain.moe.values()] == ["softmax"] * 2
    # A push on an expert's score is the same push.
    ids = torch.tensor([prompts()[0]])
    logits = []
    for each in (model, plain):
        with interventions.intervene(each, steer={0: {3: 2.0}}), torch.no_grad():
            logits.append(each.module(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
