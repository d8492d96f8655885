"""What is set in PyTorch around a reading changes nothing that is read; compiled models read as uncompiled ones."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import prompts, tiny
from torch.overrides import TorchFunctionMode

import workbench
from lenses import ContextIndex, EmbeddingLens, LogitAttribution, LogitLens
from workbench.engine.hooks import neutral

IDS = prompts()[:4]
VALUES = ("logprob", "entropy", "cosine", "contribution")


def read(model):
    readers = [
        LogitLens(targets=5), LogitLens(at="mlp_out"), LogitLens(at="resid_mid"), EmbeddingLens(),
        LogitAttribution(targets=[4, 7]),
    ]  # fmt: skip
    found = workbench.read(model, IDS, readers, progress=False)
    return [r.data[v].values for r in found for v in VALUES if v in r.data]


def same(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


class Watching(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


AMBIENT = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "anomaly": torch.autograd.set_detect_anomaly,
    "function mode": Watching,
}


def ambient(name):
    return AMBIENT[name](True) if name == "anomaly" else AMBIENT[name]()


def state():
    kinds = ("cpu", "cuda")
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), *(torch.is_autocast_enabled(k) for k in kinds),
    )  # fmt: skip


@pytest.mark.parametrize("name", list(AMBIENT))
def test_readings_do_not_know_what_is_set_around_them(llama, name):
    expected = read(llama)
    with ambient(name):
        before = state()
        found = read(llama)
        assert state() == before
    same(found, expected)
    same(read(llama), expected)  # nothing of it stays


@pytest.mark.parametrize("name", ["bfloat16", "autocast", "default device", "inference"])
def test_models_are_proved_whatever_is_set(name):
    module = tiny("gemma2")
    expected = workbench.load(module).anatomy
    with ambient(name):
        found = workbench.load(module).anatomy
    assert found == expected


@pytest.mark.parametrize("name", ["bfloat16", "autocast", "default device", "inference"])
def test_an_index_does_not_know_it_either(tmp_path, name):
    model = workbench.load("organism:story", progress=False)
    corpus = ["The dog ran home.", "A cat sat on the mat.", "She saw the big tree."] * 2
    settings = {"layers": [1, 2], "progress": False}
    plain = ContextIndex.build(model, corpus, tmp_path / "plain", **settings)
    queries = np.random.default_rng(0).standard_normal((5, model.d_model)).astype(np.float32)
    expected = plain.search(queries, layers=[1, 2])
    with ambient(name):
        index = ContextIndex.build(model, corpus, tmp_path / "other", **settings)
        found = index.search(queries, layers=[1, 2])
    np.testing.assert_array_equal(found.token_id, expected.token_id)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)


def test_neutral_puts_back_what_it_found_when_something_fails():
    with default_dtype(torch.float64), default_device("meta"), torch.autocast("cpu", torch.bfloat16):
        before = state()
        with pytest.raises(KeyError), neutral():
            assert state()[:3] == (torch.float32, torch.device("cpu"), False)
            assert not torch.is_autocast_enabled("cpu")
            raise KeyError
        assert state() == before


# --- compiled -----------------------------------------------------------------------------------------------


def compiled(how):
    module = tiny("llama")
    layers = module.model.layers
    if how == "model":
        return torch.compile(module, backend="eager")
    if how in ("in place", "and has run"):
        module.compile(backend="eager")
        if how == "and has run":
            module(input_ids=torch.tensor([[3, 4, 5]]))
    if how == "blocks":
        for i in range(len(layers)):
            layers[i] = torch.compile(layers[i], backend="eager")
    if how == "blocks in place":
        for layer in layers:
            layer.compile(backend="eager")
    if how == "inner model":
        module.model = torch.compile(module.model, backend="eager")
    if how == "parts":
        for layer in layers:
            layer.mlp = torch.compile(layer.mlp, backend="eager")
    if how == "forward":
        module.forward = torch.compile(module.forward, backend="eager")
    if how == "head":
        module.lm_head = torch.compile(module.lm_head, backend="eager")
    return module


@pytest.mark.parametrize(
    "how", ["model", "in place", "and has run", "blocks", "blocks in place", "inner model", "parts", "forward", "head"]
)
def test_compiled_models_read_as_they_are_written(llama, how):
    module = compiled(how)
    model = workbench.load(module)
    same(read(model), read(llama))
    with torch.no_grad():  # and are as compiled as before
        own = module(input_ids=torch.tensor([IDS[0]])).logits
    torch.testing.assert_close(own, llama.module(input_ids=torch.tensor([IDS[0]])).logits)


def test_blocks_compiled_after_loading(llama):
    module = tiny("llama")
    model = workbench.load(module)
    for i in range(len(module.model.layers)):
        module.model.layers[i] = torch.compile(module.model.layers[i], backend="eager")
    same(read(model), read(llama))
