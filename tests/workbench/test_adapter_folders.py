"""Folders of PEFT adapters: with the base that they name, or one that is given; nothing is left behind."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from tiny import prompts, tiny

import workbench
from lenses import LogitLens
from workbench.errors import InputError

peft = pytest.importorskip("peft", reason="peft is not installed")


def saved(folder, names, **options):
    """A base and an adapter in two folders; the adapter names its base as ``names``."""
    tiny("llama").save_pretrained(folder / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(1)
    usual = {"r": 4, "target_modules": ["q_proj", "lm_head"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(**{**usual, **options})
    module = peft.get_peft_model(base, config).eval()
    module.save_pretrained(folder / "adapter")
    about = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = names and names.format(folder)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    return module


@pytest.mark.parametrize("names", ["{}/base", "../base", "base"])
def test_an_adapter_folder_is_its_base_with_the_adapter_on(tmp_path, monkeypatch, names):
    module = saved(tmp_path, names)
    if names == "base":
        monkeypatch.chdir(tmp_path)
    model = workbench.load(tmp_path / "adapter", progress=False)
    assert model.name == "base+adapter" and model.adapters == ["default"] and model.n_layers == 4
    assert model.fingerprint == workbench.load(module).fingerprint
    assert model.fingerprint != workbench.load(tmp_path / "base", progress=False).fingerprint
    ids = prompts()[0]
    reading = workbench.read(model, ids, LogitLens(top_k=1), progress=False)
    with torch.no_grad():
        own = module(input_ids=torch.tensor([ids])).logits[0]
    last = reading.data.isel(prompt=0, layer=-1, rank=0)
    assert np.array_equal(last.token_id, own.argmax(-1))
    np.testing.assert_allclose(last.logprob, own.log_softmax(-1).max(-1).values, atol=1e-4)
    assert reading.provenance["model"]["adapters"] == ["default"]
    assert workbench.load(tmp_path / "base", adapter=tmp_path / "adapter").fingerprint == model.fingerprint


def test_a_base_that_is_not_there_is_asked_for(tmp_path):
    saved(tmp_path, "/nowhere/at/all")
    with pytest.raises(InputError, match=r"no model there. Give its base: load\(base, adapter="):
        workbench.load(tmp_path / "adapter")
    saved(tmp_path, None)
    with pytest.raises(InputError, match=r"does not say which model .* load\(base, adapter="):
        workbench.load(tmp_path / "adapter")
    base = workbench.load(tmp_path / "base", adapter=tmp_path / "adapter", name="mine")
    assert base.name == "mine" and base.adapters == ["default"]


def test_a_base_on_the_hub_that_cannot_be_had_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    saved(tmp_path, "someone/base")
    with pytest.raises(InputError, match=r"someone/base(?s:.*)load\(base, adapter="):
        workbench.load(tmp_path / "adapter")


def test_what_is_no_adapter_or_does_not_fit_says_why(tmp_path, monkeypatch):
    saved(tmp_path, "../base")
    base = workbench.load(tmp_path / "base")
    with pytest.raises(InputError, match="no adapter of PEFT's"):
        workbench.load(base, adapter=tmp_path / "base")
    with pytest.raises(InputError, match="does not fit GPT2LMHeadModel"):
        workbench.load(tiny("gpt2"), adapter=tmp_path / "adapter")
    both = workbench.load(base, adapter=tmp_path / "adapter")
    with pytest.raises(InputError, match="has an adapter already"):
        workbench.load(both, adapter=tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"latent-workbench\[adapters\]"):
        workbench.load(base, adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},  # writes to the base while it is loaded
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ],
)
def test_a_model_in_memory_is_left_as_it_was(tmp_path, options):
    saved(tmp_path, "../base", **options)
    base = workbench.load(tmp_path / "base")
    base.module.model.norm.weight.requires_grad_(False)
    seen = []
    base.module.model.layers[0].register_forward_hook(lambda m, args, output: seen.append(1))

    def state():
        parameters = [(n, id(p), p.data_ptr(), p.requires_grad) for n, p in base.module.named_parameters()]
        modules = [(n, id(m), len(m._forward_hooks), sorted(vars(m))) for n, m in base.module.named_modules()]
        with torch.no_grad():
            logits = base.module(input_ids=torch.tensor([[5, 6, 7]])).logits
        return parameters, modules, base.fingerprint, logits.tolist()

    before = state()
    both = workbench.load(base, adapter=tmp_path / "adapter")
    assert both.fingerprint != base.fingerprint
    assert state() == before
    # The weights are not there twice.
    if options.get("init_lora_weights") != "pissa":
        mine = both.module.get_base_model().model.layers[1].mlp.up_proj.weight
        assert mine.data_ptr() == base.module.model.layers[1].mlp.up_proj.weight.data_ptr()


def test_a_peft_model_in_memory_is_read_like_any_other(tmp_path):
    module = saved(tmp_path, "../base")
    model = workbench.load(module, tokenizer=None, name="adapted")
    assert (model.n_layers, model.d_model, model.vocab_size) == (4, 32, 97)
    assert model.module.get_submodule(model.anatomy.blocks) is module.get_base_model().model.layers
    assert model.blocks[2] is module.get_base_model().model.layers[2]
    merged = workbench.load(module.merge_and_unload())
    for layer in (1, 4):
        mine, own = (
            workbench.read(m, prompts()[:3], LogitLens(), progress=False).data.sel(layer=layer) for m in (model, merged)
        )
        np.testing.assert_allclose(mine.logprob, own.logprob, atol=1e-3)
