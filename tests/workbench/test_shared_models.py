"""Models that others trained, not random ones: the last layer is the model's own next token, everywhere."""

import json

import numpy as np
import pytest
import torch

import workbench
from lenses import LogitLens
from workbench.readout import Readout

MODELS = ["stories260K", "induction-gpt2", "rwkv4-tiny", "arthur-char/epoch25", "arthur-char/epoch200"]


def texts(shared, model):
    """200 prompts in the model's own manner."""
    stories = json.loads((shared / "data/tinystories-sample/tinystories_1000.json").read_text())[:200]
    if model.tokenizer is None:
        return [list(story.encode()[:80]) for story in stories]
    if "stories" in model.name:
        return [story[: 100 + i] for i, story in enumerate(stories)]
    n = min(model.context_length or 64, 64)
    known = set(model.tokenizer.get_vocab())
    return ["".join(c for c in story.lower() if c in known)[: n - 2] for story in stories]


@pytest.mark.parametrize("name", MODELS)
def test_last_layer_is_the_models_own_next_token(shared, name):
    model = workbench.load(str(shared / "models" / name))
    given = texts(shared, model)
    data = workbench.read(model, given, LogitLens(), progress=False).data
    positions = 0
    for p in range(len(given)):
        ids = data.input_id.values[p]
        ids = ids[ids >= 0]
        with torch.no_grad():
            own = model.module(input_ids=torch.tensor(ids[None]).long()).logits[0].log_softmax(-1)
        here = data.isel(prompt=p, position=slice(len(ids))).sel(layer=model.n_layers)
        best = own.max(-1)
        chosen = own.gather(-1, torch.tensor(here.token_id.values).long()).numpy()
        np.testing.assert_allclose(here.logprob, chosen, atol=1e-4)
        same = here.token_id.values[:, 0] == best.indices.numpy()
        # Where the two best are within rounding either may be first.
        assert np.all(same | (best.values.numpy() - chosen[:, 0] < 1e-5))
        positions += len(ids)
    assert positions > 5000


def test_bf16_on_a_trained_model(shared, monkeypatch):
    monkeypatch.setattr(Readout, "gain", lambda self: 2.0)  # what it gives, however fast this machine is
    model = workbench.load(str(shared / "models/stories260K"))
    given = texts(shared, model)
    exact, fast = workbench.read(model, given, [LogitLens(), LogitLens(precision="bf16")], progress=False)
    real = exact.data.input_id.values >= 0
    same = (exact.data.token_id.values == fast.data.token_id.values).all(-1).transpose(0, 2, 1)[real]
    assert same.mean() >= 0.999
    error = np.abs(exact.data.logprob.values - fast.data.logprob.values)
    assert np.nanmax(error) < 1e-3
