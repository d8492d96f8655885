"""Where a model may come from, and what its fingerprint depends on."""

import pytest
import torch
import transformers
from tiny import CONFIGS, prompts, tiny

import workbench
from lenses import LogitLens
from workbench.errors import InputError, Refused


def test_a_folder_and_the_object_are_the_same_model(tmp_path):
    module = tiny("granite")
    module.save_pretrained(tmp_path / "m")
    one, two = workbench.load(module), workbench.load(tmp_path / "m")
    assert one.fingerprint == two.fingerprint
    assert one.anatomy.formula == two.anatomy.formula


def test_one_changed_weight_changes_the_fingerprint():
    module = tiny("llama")
    before = workbench.load(module).fingerprint
    with torch.no_grad():
        module.model.norm.weight[3] += 0.5
    assert workbench.load(module).fingerprint != before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reads_like_its_own_logits(tmp_path, dtype):
    tiny("llama").save_pretrained(tmp_path)
    model = workbench.load(tmp_path, dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    ids = prompts()[0]
    data = workbench.read(model, ids, LogitLens(), progress=False).data.sel(layer=4)
    with torch.no_grad():
        states = model.module.model(input_ids=torch.tensor([ids])).last_hidden_state
        own = torch.nn.functional.linear(states.float(), model.module.lm_head.weight.float())[0].log_softmax(-1)
    assert (data.token_id.values[0, :, 0] == own.argmax(-1).numpy()).mean() > 0.9
    assert abs(data.logprob.values[0] - own.topk(10, -1).values.numpy()).max() < 0.2


def test_a_transformer_bridge_is_read_through_the_model_it_wraps(tmp_path):
    bridge_type = pytest.importorskip("transformer_lens.model_bridge", reason="transformer-lens is not installed")
    module = tiny("gpt2")
    module.config.architectures = ["GPT2LMHeadModel"]
    module.save_pretrained(tmp_path)
    plain = workbench.read(workbench.load(tiny("gpt2")), prompts(), LogitLens(), progress=False).data
    bridge = bridge_type.TransformerBridge.boot_transformers(
        model_name=str(tmp_path), hf_model=module, device="cpu", tokenizer=None
    )
    data = workbench.read(workbench.load(bridge), prompts(), LogitLens(), progress=False).data
    assert abs(data.logprob - plain.logprob).max() < 1e-4


def test_an_nnsight_model_is_read_through_the_model_it_wraps():
    nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")
    module = tiny("llama")
    words = {f"w{i}": i for i in range(97)}
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0"
    )
    wrapped = nnsight.LanguageModel(module, tokenizer=tokenizer)
    model = workbench.load(wrapped)
    assert model.module is module
    plain = workbench.read(workbench.load(module), prompts(), LogitLens(), progress=False).data
    data = workbench.read(model, prompts(), LogitLens(), progress=False).data
    assert abs(data.logprob - plain.logprob).max() < 1e-5


def test_what_cannot_be_loaded_says_why(tmp_path):
    (tmp_path / "tiny-llama").mkdir()
    for source, error, message in (
        (3, InputError, "given a int"), ("./nowhere", InputError, "no folder"),
        (str(tmp_path), InputError, "config.json"), ("base/", InputError, "no folder base/"),
        ("run/one/checkpoint-5", InputError, "no folder"), ("organism:storie", InputError, "no organism"),
        (str(tmp_path / "tiny-lama"), InputError, "Did you mean .*tiny-llama"),
        (torch.nn.Linear(2, 2), Refused, "no input embedding"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            workbench.load(source)
    with pytest.raises(InputError, match="engine='warp' is unknown"):
        workbench.load(tiny("llama"), engine="warp")
    with pytest.raises(InputError, match="revision="):
        workbench.load(tiny("llama"), revision="main")
    tiny("llama").save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="not a floating-point"):
        workbench.load(tmp_path / "m", dtype="int7")


def test_a_model_without_a_head_is_refused():
    torch.manual_seed(0)
    with pytest.raises(Refused, match="no logits"):
        workbench.load(transformers.LlamaModel(CONFIGS["llama"]()))


def test_a_changed_readout_is_refused():
    """A model whose logits are more than its readout: the proof must notice."""

    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + 0.01 * out.logits.roll(1, -1)
            return out

    torch.manual_seed(0)
    with pytest.raises(Refused, match="behind the unembedding"):
        workbench.load(Odd(CONFIGS["llama"]()).eval())


def test_a_folder_gives_a_model_its_own_name_and_not_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoint-500"
    tiny("llama").save_pretrained(folder)
    monkeypatch.chdir(folder.parent)
    sources = (folder, str(folder), "checkpoint-500", "./checkpoint-500/", "../run/checkpoint-500")
    assert {workbench.load(s, progress=False).name for s in sources} == {"checkpoint-500"}
    assert workbench.load(folder, name="mine", progress=False).name == "mine"
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = workbench.load(module)
    assert model.name == "checkpoint-500" and workbench.load(tiny("llama")).name == "LlamaForCausalLM"
    reading = workbench.read(model, prompts()[:2], LogitLens(), progress=False)
    path = reading.save(tmp_path / "x.nc")
    assert str(tmp_path) not in f"{reading.data.attrs} {reading.provenance} {reading!r} {model!r}"
    assert str(tmp_path).encode() not in path.read_bytes()
    assert workbench.load("organism:story", progress=False).name == "organism:story"
    monkeypatch.chdir(folder)
    assert workbench.load(".", progress=False).name == "checkpoint-500"


@pytest.mark.parametrize("before", [True, False])
def test_loading_without_progress_says_nothing_and_leaves_bars_as_they_were(tmp_path, capfd, before):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    tiny("llama").save_pretrained(tmp_path / "m")
    capfd.readouterr()
    found = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
        disable_progress_bars()
        workbench.load(tmp_path / "m", progress=False)
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled() == before and are_progress_bars_disabled()
        with pytest.raises(InputError):
            workbench.load(tmp_path / "none", progress=False)
        assert logging.is_progress_bar_enabled() == before
        if before:
            workbench.load(tmp_path / "m")
            assert "Loading weights" in capfd.readouterr().err
    finally:
        (logging.enable_progress_bar if found[0] else logging.disable_progress_bar)()
        (disable_progress_bars if found[1] else enable_progress_bars)()
