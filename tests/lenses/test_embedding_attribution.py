"""EmbeddingLens against a dense cosine; LogitAttribution against the logits that it must add up to."""

import numpy as np
import pytest
import torch
from tiny import CONFIGS, layer_states, prompts, tiny

import workbench
from lenses import EmbeddingLens, LogitAttribution


def test_cosines_equal_the_dense_ones(any_model):
    data = workbench.read(any_model, prompts(), EmbeddingLens(top_k=5), progress=False).data
    matrix = any_model.module.get_input_embeddings().weight.detach()
    for p, ids in enumerate(prompts()):
        states = layer_states(any_model.module, ids, any_model.anatomy.blocks)
        dense = torch.nn.functional.cosine_similarity(states[..., None, :], matrix, dim=-1)
        here = data.isel(prompt=p, position=slice(len(ids)))
        np.testing.assert_allclose(here.cosine, dense.topk(5, -1).values, atol=1e-5)


def test_layer_0_of_a_plain_model_is_the_input_itself(llama):
    data = workbench.read(llama, prompts(), EmbeddingLens(), progress=False).data
    real = data.input_id.values >= 0
    np.testing.assert_array_equal(data.token_id.values[:, 0, :, 0][real], data.input_id.values[real])


@pytest.mark.parametrize("name", [n for n in CONFIGS])
def test_contributions_add_up_to_the_logit(name):
    model = workbench.load(tiny(name), name=name)
    data = workbench.read(model, prompts(), LogitAttribution(targets=[5, 9]), progress=False).data
    for p, ids in enumerate(prompts()):
        with torch.no_grad():
            own = model.module(input_ids=torch.tensor([ids])).logits[0, :, [5, 9]]
        if name == "gemma2":  # before the softcap
            own = 7.0 * torch.atanh((own.double() / 7.0).clamp(-1 + 1e-12, 1 - 1e-12))
            steep = own.abs() < 12  # beyond, the capped logit has lost the digits
        else:
            steep = torch.ones_like(own, dtype=torch.bool)
        summed = data.contribution.isel(prompt=p, position=slice(len(ids))).sum("component").values
        np.testing.assert_allclose(summed[steep], own[steep], atol=2e-3, rtol=1e-3)


def test_each_prompt_has_a_logit_of_its_own_to_attribute(llama):
    own = [[p + 3, 40 - p] for p in range(len(prompts()))]
    data = workbench.read(llama, prompts(), LogitAttribution(targets=own), progress=False).data
    assert data.target_id.dims == ("prompt", "target") and data.target_id.values.tolist() == own
    for p, ids in enumerate(prompts()):
        with torch.no_grad():
            logits = llama.module(input_ids=torch.tensor([ids])).logits[0][:, own[p]]
        here = data.isel(prompt=p, position=slice(len(ids)))
        np.testing.assert_allclose(here.logit, logits, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(here.contribution.sum("component"), logits, atol=2e-3, rtol=1e-3)


def test_a_post_norm_model_is_refused():
    import transformers

    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, is_decoder=True
    )
    torch.manual_seed(0)
    model = workbench.load(transformers.BertLMHeadModel(config).eval(), name="bert")
    with pytest.raises(ValueError, match="norm behind the addition"):
        workbench.read(model, prompts(), LogitAttribution(), progress=False)


def test_a_state_of_zeros_contributes_nothing(llama):
    """The padding token's embedding is zero: its attention and MLP outputs are, too, in a model without biases."""
    module = tiny("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[0].zero_()
    data = workbench.read(workbench.load(module), [[0], [5, 0, 9]], LogitAttribution(targets=7), progress=False).data
    assert float(abs(data.contribution[0, 0]).max()) == 0
    np.testing.assert_allclose(data.contribution[1].sum("component"), data.logit[1], atol=1e-3)
