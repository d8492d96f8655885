"""Pads change nothing: they are proved on each side, and a side that is not proved is not padded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo

import workbench
from lenses import LogitLens
from probes.values.sampled import sample
from workbench.errors import Refused
from workbench.inputs import collate, encode

SPREAD = [
    "llama", "gpt2", "bloom", "mpt", "falcon", "qwen3_moe", "gemma2", "mamba", "opt", "gpt_neox",
    "bart", "rwkv", "recurrent_gemma", "xlm-roberta", "cpmant", "deepseek_v4",
]  # fmt: skip
LEFT_DISTURBS = {"bart", "rwkv", "recurrent_gemma", "xlm-roberta", "cpmant", "deepseek_v4"}
PROMPTS = [list(range(5, 38)), list(range(40, 49)), list(range(60, 69))]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", SPREAD)
def test_a_short_prompt_reads_beside_a_long_one_as_it_does_alone(model_type, side):
    model = workbench.load(zoo.build(model_type))
    assert ("left" not in model.anatomy.pad_sides) == (model_type in LEFT_DISTURBS)
    data = workbench.read(model, PROMPTS, LogitLens(top_k=5), batch_size=3, padding_side=side, progress=False).data
    for p, ids in enumerate(PROMPTS):
        given = torch.tensor([ids])
        own = zoo.logits(model.module, {"input_ids": given, "attention_mask": torch.ones_like(given)})[0]
        last = data.isel(prompt=p, position=slice(len(ids))).sel(layer=model.n_layers)
        theirs = own.log_softmax(-1).gather(-1, torch.tensor(last.token_id.values).long())
        assert float((theirs - torch.tensor(last.logprob.values)).abs().max()) < 1e-3
        alone = workbench.read(model, [ids], LogitLens(top_k=1), progress=False).data
        mine = data.entropy.isel(prompt=p, position=slice(len(ids))).values
        assert abs(mine - alone.entropy.values[0]).max() < 1e-3


def test_what_disturbs_is_not_padded():
    model = workbench.load(zoo.build("rwkv"), name="rwkv")
    assert model.anatomy.pad_sides == ("right",) and not model.anatomy.pads
    prompts = encode(model, PROMPTS)
    assert collate(model, prompts, [0, 1]).inputs["input_ids"].shape == (2, 33)
    assert collate(model, prompts, [1, 2], "left").inputs["input_ids"].shape == (2, 9)
    with pytest.raises(Refused, match="Pads on the left change what rwkv computes"):
        collate(model, prompts, [0, 1], "left")
    assert workbench.load(zoo.build("llama")).anatomy.pads


@pytest.mark.parametrize("model_type", ["llama", "opt", "bloom", "bart", "recurrent_gemma", "rwkv", "mamba"])
def test_text_written_in_a_batch_is_that_of_its_prompt_alone(model_type):
    model = workbench.load(zoo.build(model_type))
    ids = PROMPTS[:2]
    uniform = np.random.default_rng(0).random((2, 6), np.float32)
    prompts = encode(model, ids)
    model.tokenizer = SimpleNamespace(eos_token_id=None)
    together = sample(model, prompts, uniform, 1.0, batch_size=2, progress=False)
    for p in range(len(ids)):
        assert together[p] == sample(model, prompts[p : p + 1], uniform[p : p + 1], 1.0, progress=False)[0]
