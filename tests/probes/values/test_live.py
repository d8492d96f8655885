"""Reading while training: the numbers of the saved checkpoints, and weights that are bit for bit those without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from test_tracker import Asked
from tiny import tiny

import workbench
from probes.values.live import ValueCallback, log_spaced
from probes.values.tracker import STANCES, ValueTracker
from workbench.errors import InputError

ITEMS = [Asked(f"i{k}", "topic", f"text {k}") for k in range(6)]


class NextToken:
    """Mass on four tokens after an id of the item's own."""

    name, settings = "next", "four tokens"

    def read(self, model, items, *, batch_size=None, seed=0, progress=True):
        from probes.superposition import CandidateBelief

        prompts = [[5, 10 + k, 7] for k in range(len(items))]
        reading = workbench.read(
            model, prompts, CandidateBelief([20, 21, 22, 23], layers=[-1]), positions="last", progress=False
        )
        p = reading.data["belief"].values[:, 0]
        return xr.Dataset(
            {"p": (("item", "framing", "stance"), p)},
            {"item": [i.item_id for i in items], "framing": ["one"], "stance": list(STANCES)},
        )


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(3, 90, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def trained(folder, callbacks, steps: int = 8):
    module = tiny("llama")
    module.config.attention_dropout = 0.1
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=2, learning_rate=1e-2,
        report_to=[], seed=3, use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model=module, args=arguments, train_dataset=Rows(), callbacks=callbacks)
    trainer.train()
    return module


def test_live_is_offline_and_training_does_not_notice(tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    plain = trained(tmp_path / "plain", [])
    tracker = ValueTracker(tmp_path / "live", ITEMS, [NextToken()])
    callback = ValueCallback(tracker, None, at=[0, 2, 4, 8])
    watched = trained(tmp_path / "watched", [callback])
    for (name, a), (_, b) in zip(plain.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    sources = {
        0: lambda: workbench.load(tiny("llama")),
        **{s: str(tmp_path / "watched" / f"checkpoint-{s}") for s in (2, 4, 8)},
    }
    offline = ValueTracker(tmp_path / "offline", ITEMS, [NextToken()]).run(sources, progress=False)
    np.testing.assert_array_equal(tracker.readings()["p"].values, offline.readings()["p"].values)
    assert tracker.steps == [0, 2, 4, 8]
    # Training did something.
    p = tracker.readings()["p"]
    assert float(np.abs(p.isel(checkpoint=-1) - p.isel(checkpoint=0)).max()) > 0.01


def test_a_run_can_be_stopped_and_a_budget_kept(tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    tracker = ValueTracker(tmp_path / "stop", ITEMS, [NextToken()])
    trained(tmp_path / "a", [ValueCallback(tracker, None, at=range(9), alert=lambda t: len(t.steps) >= 4)])
    assert tracker.steps == [0, 1, 2, 3]
    thrifty = ValueTracker(tmp_path / "thrifty", ITEMS, [NextToken()])
    callback = ValueCallback(thrifty, None, at=range(9), budget=1e-6)
    trained(tmp_path / "b", [callback])
    assert thrifty.steps == [0, 8] and callback.skipped == list(range(1, 8))
    with pytest.raises(InputError, match="budget=2"):
        ValueCallback(thrifty, None, budget=2)


def test_early_steps_are_dense():
    assert log_spaced(1000) == [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, 158, 251, 398, 631, 1000]
    assert log_spaced(1) == [0, 1]
