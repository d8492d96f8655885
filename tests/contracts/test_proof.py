"""What a proof rests on: it holds in half precision, for offloaded weights, and until something it rests on changes."""

import copy

import numpy as np
import pytest
import torch
from tiny import CONFIGS, prompts, tiny
from torch import nn

import workbench
from lenses import LogitAttribution, LogitLens
from workbench.errors import Refused

IDS = prompts()[0]


def off(model, module):
    """The last layer's log-probabilities against those of the module as it is now."""
    data = workbench.read(model, IDS, LogitLens(), progress=False).data.sel(layer=model.n_layers)
    with torch.no_grad():
        # A copied block writes to the cache in its original's place.
        own = module(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].float().log_softmax(-1)
    return float(
        (own.gather(-1, torch.tensor(data.token_id.values[0]).long()) - torch.tensor(data.logprob.values[0]))
        .abs()
        .max()
    )


def exact_or_refused(model, module):
    try:
        return off(model, module) < 1e-4
    except Refused:
        return True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_scales_and_softcaps_are_found_in_half_precision(name, dtype):
    half, whole = (workbench.load(m).anatomy for m in (tiny(name).to(dtype), tiny(name)))
    assert half.scale == pytest.approx(whole.scale, rel=2e-3) and half.softcap == whole.softcap
    assert [s.path for s in half.steps] == [s.path for s in whole.steps]
    assert half.pad_sides == whole.pad_sides == ("right", "left")


def test_an_outlier_hides_no_wrong_row():
    """Behind the unembedding one row is doubled and every row but the largest is changed."""
    from workbench.anatomy.constants import fit_output, ratio, row_share

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 50, generator=generator)
    x[3] *= 2e4
    assert ratio(x, 0.3 * x) == pytest.approx(0.3)
    wrong = 0.3 * x
    wrong[5] += 1e-3 * x[5].roll(1)
    assert ratio(x, wrong) is None
    with pytest.raises(Refused):
        fit_output(x, wrong, [0.3, 1e5], 2**-24)
    assert row_share(wrong - 0.3 * x, 0.3 * x) > 1e-3


def lora(module, **options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(module, peft.LoraConfig(target_modules=["lm_head"], r=4, **options)).eval()


def train(module):
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ids = torch.tensor([prompts()[1]])
        module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def test_an_adapter_on_the_head_that_is_trained_after_loading():
    module = lora(tiny("llama"))
    model = workbench.load(module)
    assert off(model, module) < 1e-4
    before = module(input_ids=torch.tensor([IDS])).logits.detach()
    train(module)
    assert float((module(input_ids=torch.tensor([IDS])).logits.detach() - before).abs().max()) > 1
    assert exact_or_refused(model, module)
    with module.disable_adapter():
        assert off(model, module) < 1e-4
    assert exact_or_refused(model, module)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()  # raises no version
    assert off(model, module) < 1e-4


def test_an_adapter_put_on_after_loading():
    module = tiny("llama")
    model = workbench.load(module)
    lora(module, init_lora_weights=False)
    assert exact_or_refused(model, module)


HOOKS = {
    "head, linear": lambda m: m.lm_head.register_forward_hook(lambda h, a, o: 1.5 * o),
    "head, mixing": lambda m: m.lm_head.register_forward_hook(lambda h, a, o: o + 0.1 * o.roll(1, -1)),
    "head, curved": lambda m: m.lm_head.register_forward_hook(lambda h, a, o: 9 * torch.tanh(o / 9)),
    "before the head": lambda m: m.lm_head.register_forward_pre_hook(lambda h, a: (a[0] + 0.1 * a[0].roll(1, -1),)),
    "norm": lambda m: m.model.norm.register_forward_hook(lambda h, a, o: 1.3 * o),
    "model": lambda m: m.register_forward_hook(lambda h, a, o: setattr(o, "logits", o.logits.flip(-1)) or o),
}


@pytest.mark.parametrize("where", list(HOOKS))
def test_a_hook_put_on_after_loading(where):
    module = tiny("llama")
    model = workbench.load(module)
    assert off(model, module) < 1e-4
    handle = HOOKS[where](module)
    assert exact_or_refused(model, module)
    handle.remove()
    assert off(model, module) < 1e-4


def test_replaced_parts_are_read_as_they_are():
    module = tiny("llama")
    model = workbench.load(module)
    torch.manual_seed(1)
    module.lm_head = nn.Linear(32, 97, bias=True)
    assert off(model, module) < 1e-4
    module.model.norm = nn.LayerNorm(32)
    assert off(model, module) < 1e-4
    module.model.layers[2] = copy.deepcopy(module.model.layers[0])
    assert off(model, module) < 1e-4
    with torch.no_grad():
        module.lm_head.weight.mul_(2)
    assert off(model, module) < 1e-4
    capped = tiny("gemma2")
    model = workbench.load(capped)
    capped.config.final_logit_softcapping = 3.0
    assert off(model, capped) < 1e-4


def test_what_only_looks_costs_no_proof():
    module = tiny("llama")
    model = workbench.load(module)
    ran = []
    ids = [i for own in prompts() for i in own][:40]  # long enough to tell by itself what norms are usual
    module.register_forward_pre_hook(lambda *a: ran.append(1))
    workbench.read(model, ids, LogitLens(), progress=False)
    assert len(ran) == 1
    with torch.no_grad():
        module.lm_head.weight.mul_(1.5)  # a plain matrix is read anew, and is no other way to the logits
    workbench.read(model, ids, LogitLens(), progress=False)
    assert len(ran) == 2


# --- weights that are elsewhere -----------------------------------------------------------------------------

READERS = [LogitLens, lambda: LogitLens(at="mlp_out"), lambda: LogitAttribution(targets=[4, 7])]


def values(model):
    found = workbench.read(model, prompts()[:4], [reader() for reader in READERS], progress=False)
    return [r.data["contribution" if "contribution" in r.data else "logprob"].values for r in found]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("how", ["to memory", "with buffers", "to disk", "the head alone"])
def test_offloaded_models_read_as_those_in_memory(name, how, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    module, here = tiny(name), torch.device("cpu")
    if how == "to disk":
        accelerate.disk_offload(module, str(tmp_path), execution_device=here)
    else:
        part = module.lm_head if how == "the head alone" else module
        accelerate.cpu_offload(part, execution_device=here, offload_buffers=how == "with buffers")
    assert module.lm_head.weight.is_meta
    model = workbench.load(module)
    assert model.device == here
    for got, expected in zip(values(model), values(workbench.load(tiny(name))), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert module.lm_head.weight.is_meta


def test_weights_that_are_nowhere_are_named():
    for part, named in (("lm_head", "lm_head.weight"), ("model.norm", "model.norm.weight"), ("", "embed_tokens")):
        module = tiny("llama")
        module.get_submodule(part).to("meta")
        with pytest.raises(Refused, match=f"not in memory .*{named}"):
            workbench.load(module)


class Rounded(nn.Module):
    """A head of 8-bit integers, as quantisation libraries keep it."""

    def __init__(self, head):
        super().__init__()
        self.scale = nn.Parameter(head.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (head.weight.detach() / self.scale.detach()).round().to(torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.scale)


def test_a_quantised_head_is_read_by_what_it_multiplies_with():
    module = tiny("llama")
    module.lm_head = Rounded(module.lm_head)
    assert off(workbench.load(module), module) < 1e-5
