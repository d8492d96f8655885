"""A block is its input plus what attention and MLP write: true ones pass in every type, false ones in none.

Each also with a massive activation: one position whose state is 20,000 times the median, as trained models have.
"""

import pytest
import torch
import transformers
import zoo
from tiny import CONFIGS, prompts, tiny
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import workbench
from lenses import LogitAttribution, LogitLens
from workbench.anatomy.block_writes import Parts, find_writes
from workbench.errors import Refused

TYPES = [torch.float32, torch.bfloat16, torch.float16]
SPREAD = [
    "gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "llama", "qwen3", "phi", "gemma2", "gemma3_text",
    "cohere", "granite", "olmo2", "stablelm", "minicpm3", "mixtral", "deepseek_v3", "mamba", "rwkv", "bert",
    "openai-gpt",
]  # fmt: skip


def verdicts(model):
    """Paths and order exactly, factors to three digits (they are fitted where they are no plain constants)."""
    return [
        (p.attn.path, p.mlp.path, p.attn.total, p.mlp.total, p.parallel, f"{p.attn.scale:.2g} {p.mlp.scale:.2g}")
        if isinstance(p, Parts) else p
        for p in find_writes(model)
    ]  # fmt: skip


@pytest.mark.parametrize("model_type", SPREAD)
def test_an_outlier_and_the_type_change_no_verdict(model_type):
    found = []
    for dtype in TYPES:
        module = zoo.build(model_type).to(dtype)
        try:
            model = workbench.load(module)
        except Refused:
            # Some models do not run in half precision on a CPU.
            assert dtype != torch.float32
            continue
        found.append(verdicts(model))
        for block in (0, 2):
            with zoo.outlier(model.blocks[block]):
                given = zoo.inputs(module)[0]
                if zoo.logits(module, given).isfinite().all():  # in fp16 an outlier can be more than it holds
                    found.append(verdicts(model))
    assert len(found) >= 3 and all(one == found[0] for one in found)


def test_the_spread_has_blocks_of_every_kind():
    kinds = {}
    for model_type in ("llama", "granite", "gptj", "bloom", "bert", "openai-gpt", "mamba", "zaya"):
        part = find_writes(workbench.load(zoo.build(model_type)))[1]
        kinds[model_type] = part if isinstance(part, str) else (part.parallel, part.attn.scale != 1)
    assert kinds["llama"] == kinds["bloom"] == (False, False)
    assert kinds["granite"] == (False, True) and kinds["gptj"] == (True, False)
    for model_type in ("bert", "openai-gpt", "mamba", "zaya"):
        assert "is not its input plus two module outputs" in kinds[model_type]


class Damped(LlamaDecoderLayer):
    """The stream itself is scaled: out = 0.9 (in + attention + mlp)."""

    def forward(self, hidden_states, **kwargs):
        return 0.9 * super().forward(hidden_states, **kwargs)


class PostNorm(LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        out = super().forward(hidden_states, **kwargs)
        return self.post_attention_layernorm(out)


class Leaky(LlamaDecoderLayer):
    """A third write, outside any module, and small."""

    def forward(self, hidden_states, **kwargs):
        out = super().forward(hidden_states, **kwargs)
        return out + 0.05 * hidden_states.roll(1, -1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", [Damped, PostNorm, Leaky])
def test_false_blocks_are_refused(kind, dtype):
    module = tiny("llama")
    for block in module.model.layers:
        block.__class__ = kind
    model = workbench.load(module.to(dtype))
    reasons = find_writes(model)
    assert all(isinstance(r, str) and "is not its input plus" in r for r in reasons)
    with zoo.outlier(model.blocks[0]):
        assert find_writes(model) == reasons
    with pytest.raises(Refused, match="not its input plus"):
        workbench.read(model, prompts()[:2], LogitLens(at="attn_out"), progress=False)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_and_sequential_are_told_apart(parallel, dtype):
    config = CONFIGS["gpt_neox"]()
    config.use_parallel_residual = parallel
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    model = workbench.load(module)
    for block in range(model.n_layers):
        with zoo.outlier(model.blocks[block]):
            assert [p.parallel for p in find_writes(model)] == [parallel] * model.n_layers


@pytest.mark.parametrize("dtype, factor", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_something_else_that_writes_to_the_stream_is_noticed_beside_an_outlier(dtype, factor):
    """A hook behind a block adds what no part wrote; the outlier's logits are as large as any."""
    model = workbench.load(tiny("llama").to(dtype))
    reader = LogitAttribution(targets=[5, 9])
    with zoo.outlier(model.blocks[0]):
        assert workbench.read(model, prompts()[:3], reader, progress=False).data.contribution.notnull().any()
        handle = model.blocks[1].register_forward_hook(lambda m, a, out: out + factor * out.roll(1, -1))
        try:
            with pytest.raises(Refused, match="Something else writes"):
                workbench.read(model, prompts()[:3], LogitAttribution(targets=[5, 9]), progress=False)
        finally:
            handle.remove()


def test_a_massive_activation_leaves_the_sum_of_contributions_right_everywhere():
    model = workbench.load(tiny("llama"))
    ids = prompts()[:3]
    with zoo.outlier(model.blocks[0]):
        data = workbench.read(model, ids, LogitAttribution(targets=[5, 9]), progress=False).data
        for p, own in enumerate(ids):
            with torch.no_grad():
                logits = model.module(input_ids=torch.tensor([own])).logits[0][:, [5, 9]]
            summed = data.contribution[p, : len(own)].sum("component").values
            room = abs(data.contribution[p, : len(own)]).sum("component").values
            assert (abs(summed - logits.numpy()) <= 1e-5 * room + 1e-3).all()
