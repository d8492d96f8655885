"""A fingerprint is of what runs: every element, the adapters that act, wherever the weights lie."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny import prompts, tiny

import workbench
from lenses import LogitLens
from workbench.fingerprint import checksum


def test_every_single_element_counts():
    """One changed by the least step there is, anywhere, in each parameter."""
    module = tiny("llama")
    model = workbench.load(module)
    before, seen = model.fingerprint, set()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        flat = parameter.detach().view(-1)
        ends = [0, flat.numel() - 1, *torch.randint(0, flat.numel(), (4,), generator=generator).tolist()]
        for i in ends:
            old = flat[i].clone()
            with torch.no_grad():
                flat[i] = torch.nextafter(old, torch.tensor(torch.inf))
            seen.add(workbench.load(module).fingerprint if i == ends[0] else model.fingerprint)
            assert before not in seen
            with torch.no_grad():
                flat[i] = old
            assert model.fingerprint == before
    assert len(seen) > 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_checksum_sees_one_element_of_any_kind_and_size(dtype):
    for n in (1, 2, 7, 2**17 + 3):
        values = torch.arange(n).remainder(2 if dtype is torch.bool else 97).to(dtype)
        own = checksum(values)
        for i in {0, n // 2, n - 1}:
            other = values.clone()
            other[i] = not other[i] if dtype is torch.bool else other[i] + 1
            assert checksum(other) != own
        assert checksum(values.clone()) == own
    pair = torch.zeros(6, 4, dtype=dtype)
    pair[2] = 1
    assert checksum(pair) != checksum(pair.roll(1, 0)) != checksum(pair.T.contiguous())


def test_sums_are_those_of_plain_integers():
    """The sum itself, written out with Python's integers: the same on any device that adds integers."""
    import numpy as np

    values = torch.randn(7, generator=torch.Generator().manual_seed(0))
    halves = [*values.view(torch.int32).tolist(), 0]
    random = [int(x) | 1 for x in np.random.PCG64(0).random_raw(4)]
    total = 0
    for k in range(4):
        low, high = halves[2 * k] % 2**32, halves[2 * k + 1]
        word = high * 2**32 + low
        total += (word + high) * random[k]
    assert checksum(values).endswith((total % 2**64).to_bytes(8, "little"))


def test_values_count_and_not_how_they_are_stored(tmp_path):
    module = tiny("llama").to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    half, full = workbench.load(tmp_path, dtype="bfloat16"), workbench.load(tmp_path, dtype="float32")
    assert half.fingerprint == full.fingerprint == workbench.load(tmp_path).fingerprint
    assert workbench.load(tiny("llama")).fingerprint != full.fingerprint  # which rounding has changed
    turned = tiny("llama")
    turned.model.layers[0].mlp.up_proj.weight.data = turned.model.layers[0].mlp.up_proj.weight.data.T.contiguous().T
    assert workbench.load(turned).fingerprint == workbench.load(tiny("llama")).fingerprint


def test_training_in_place_changes_it_and_the_provenance_of_the_next_reading():
    model = workbench.load(tiny("llama"))

    def told():
        return workbench.read(model, prompts()[:2], LogitLens(), progress=False).provenance["model"]["fingerprint"]

    found = [told(), told()]
    assert found[0] == found[1]
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3)
    model.module(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    found.append(told())
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.data.mul_(1.01)  # through .data, which torch keeps no account of
    found.append(told())
    model.module.model.norm.weight = torch.nn.Parameter(model.module.model.norm.weight.detach() + 1)
    found.append(told())
    assert len(set(found)) == 4
    assert told() == workbench.load(copy.deepcopy(model.module)).fingerprint


def test_hooks_and_parametrisations_count():
    module = tiny("llama")
    model = workbench.load(module)
    plain = model.fingerprint
    vector = torch.ones(32)

    def adding(vector):
        return lambda m, args, output: output + vector

    found = []
    for size in (1.0, 2.0):
        handle = module.model.layers[1].mlp.register_forward_hook(adding(vector * size))
        found.append(model.fingerprint)
        handle.remove()
    assert len({plain, *found}) == 3 and model.fingerprint == plain
    seen = []
    handle = module.model.layers[1].register_forward_hook(lambda m, args, output: seen.append(output))
    recording = model.fingerprint
    module(input_ids=torch.tensor([[5, 6]]))
    assert seen and model.fingerprint == recording  # what a recorder has recorded is no part of the model
    handle.remove()
    with pytest.MonkeyPatch.context() as patch:
        mlp = module.model.layers[1].mlp
        own = mlp.forward
        patch.setattr(mlp, "forward", lambda x: 2 * own(x), raising=False)
        assert model.fingerprint not in (plain, *found)
    assert model.fingerprint == plain

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    twice = tiny("llama")
    with torch.no_grad():
        twice.model.layers[0].mlp.up_proj.weight.mul_(2)
    torch.nn.utils.parametrize.register_parametrization(module.model.layers[0].mlp.up_proj, "weight", Doubled())
    assert model.fingerprint == workbench.load(twice).fingerprint != plain


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_count_like_those_in_memory(tmp_path, where):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    own = workbench.load(tiny("llama")).fingerprint

    def offloaded(module, folder):
        if where == "cpu":
            for block in module.model.layers[1:]:
                accelerate.cpu_offload(block, torch.device("cpu"))
        else:
            places = {f"model.layers.{i}": "disk" for i in range(4)} | {"lm_head": "disk"}
            places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
            accelerate.dispatch_model(module, places, main_device="cpu", offload_dir=tmp_path / folder)
        assert next(module.model.layers[2].parameters()).is_meta
        return workbench.load(module)

    model = offloaded(tiny("llama"), "one")
    assert model.fingerprint == own and model.offloaded == [where]
    reading = workbench.read(model, prompts()[:3], LogitLens(), progress=False)
    plain = workbench.read(workbench.load(tiny("llama")), prompts()[:3], LogitLens(), progress=False)
    assert reading.provenance["model"]["offloaded"] == [where]
    assert abs(reading.data.logprob - plain.data.logprob).max() < 1e-4
    changed = tiny("llama")
    with torch.no_grad():
        changed.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-3
    assert offloaded(changed, "two").fingerprint != own


# ---------------------------------------------------------------- adapters


def adapted(names=("one", "two"), **options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **options})
    torch.manual_seed(7)
    module = peft.get_peft_model(tiny("llama"), config, adapter_name=names[0])
    for name in names[1:]:
        module.add_adapter(name, config)
    return module.eval()


def test_adapters_that_act_count_and_no_others():
    module, base = adapted(), workbench.load(tiny("llama")).fingerprint
    model = workbench.load(module, name="adapted")
    one = model.fingerprint
    module.set_adapter("two")
    two = model.fingerprint
    with module.disable_adapter():
        assert model.fingerprint == base
    assert len({base, one, two}) == 3
    module.set_adapter("one")
    assert model.fingerprint == one
    for layer in module.modules():  # an adapter that is off may change, and go
        if hasattr(layer, "lora_A") and "two" in layer.lora_A:
            with torch.no_grad():
                layer.lora_A["two"].weight.zero_()
    assert model.fingerprint == one
    module.delete_adapter("two")
    assert model.fingerprint == one
    for layer in module.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["one"] *= 0.5
    assert model.fingerprint not in (base, one, two)


def test_what_an_adapter_is_called_does_not_count():
    assert workbench.load(adapted(("a",))).fingerprint == workbench.load(adapted(("b",))).fingerprint


def test_a_merged_adapter_is_the_model_that_merging_gives():
    module = adapted(("one",))
    active = workbench.load(module).fingerprint
    twin = copy.deepcopy(module).merge_and_unload()
    module.merge_adapter()
    merged = workbench.load(module)
    assert merged.fingerprint == workbench.load(twin).fingerprint != active
    assert merged.adapters == ["one (merged)"]


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"use_rslora": True}])
def test_every_kind_of_adapter_is_seen_when_it_acts_and_is_its_base_when_off(options):
    module = adapted(("one",), **options)
    model, base = workbench.load(module), workbench.load(tiny("llama")).fingerprint
    before = model.fingerprint
    with module.disable_adapter():
        assert model.fingerprint == base
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.view(-1)[0] += 0.1
            assert model.fingerprint != before, name
            before = model.fingerprint


def test_an_index_answers_for_the_adapter_that_made_it(tmp_path):
    from lenses.latent import ContextIndex
    from lenses.latent.index import IndexRefused

    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = workbench.load("organism:story", progress=False)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    module = peft.get_peft_model(copy.deepcopy(base.module), config, adapter_name="one")
    module.add_adapter("two", config)
    model = workbench.load(module, tokenizer=base.tokenizer, name="adapted")
    corpus = ["The bell of Tilda is red.", "The boat of Mara is blue.", "The bell of Mara is red."]
    index = ContextIndex.build(model, corpus, tmp_path / "index", layers=[1], progress=False)
    index.check(model)
    module.set_adapter("two")
    with pytest.raises(IndexRefused, match="another weights"):
        index.check(model)
    with module.disable_adapter(), pytest.raises(IndexRefused, match="another weights"):
        index.check(model)
    module.set_adapter("one")
    index.check(model)
    index.manifest["model"]["fingerprint"] = index.manifest["model"]["fingerprint"][:16]
    with pytest.raises(IndexRefused, match="built by version 0.1.0"):
        index.check(model)


def test_loading_twice_gives_the_same(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    assert workbench.load(tmp_path).fingerprint == workbench.load(tmp_path).fingerprint
    assert workbench.load(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)).fingerprint == workbench.load(
        tmp_path
    ).fingerprint
