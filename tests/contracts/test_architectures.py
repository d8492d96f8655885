"""A spread of thirty architectures load proved and read right; those beside them are refused with a reason."""

import coverage
import pytest
import zoo

import workbench
from workbench.errors import Refused

PROVED = [
    "gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "llama", "mistral", "qwen2", "qwen3", "phi", "phi3",
    "gemma", "gemma2", "gemma3_text", "gemma3n_text", "cohere", "cohere2", "granite", "olmo2", "stablelm", "minicpm3",
    "mixtral", "qwen3_moe", "deepseek_v3", "mamba", "rwkv", "bert", "xlnet",
]  # fmt: skip


@pytest.mark.parametrize("model_type", PROVED)
def test_proved(model_type):
    row = coverage.examine("causal", model_type)
    assert row["status"] == "proved", row.get("detail")


@pytest.mark.parametrize("model_type", ["qwen2_vl", "llava", "gemma3", "mllama"])
def test_vision_language_models_read_text(model_type):
    row = coverage.examine("image_text", model_type)
    assert row["status"] == "proved", row.get("detail")


@pytest.mark.parametrize("model_type, reason", [
    ("hrm_text", "recurrent depth"), ("prophetnet", "somewhere else"), ("xlm", "not one residual stream"),
    ("musicgen", "not one residual state"),
])  # fmt: skip
def test_refused_with_the_reason(model_type, reason):
    with pytest.raises(Refused, match=reason):
        workbench.load(zoo.build(model_type))


def test_an_encoder_decoder_is_refused():
    import transformers

    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
    with pytest.raises(Refused, match="encoder-decoder"):
        workbench.load(transformers.T5ForConditionalGeneration(config))
