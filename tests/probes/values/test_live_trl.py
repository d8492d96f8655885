"""Under trl's trainers: rows of the saved checkpoints to the last bit, and training that ends where it would have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from living import ITEMS, instruments, model, preferred, same, tokenizer, told

from probes.values.live import ValueCallback
from probes.values.tracker import ValueTracker

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def asked_by_its_length(completions, **more) -> list[float]:
    return [float(len(str(text)) % 7) for text in completions]


def method(name: str):
    """Trainer, config, its arguments, data."""
    if name == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        more = {"loss_type": "simpo", "cpo_alpha": 0.0, "max_length": 64}
        return CPOTrainer, CPOConfig, more, preferred()
    if name == "dpo":
        return trl.DPOTrainer, trl.DPOConfig, {"max_length": 64}, preferred()
    if name == "grpo":
        more = {"num_generations": 2, "max_completion_length": 6, "temperature": 1.0}
        return trl.GRPOTrainer, trl.GRPOConfig, more, [{"prompt": row["prompt"]} for row in preferred()]
    return trl.SFTTrainer, trl.SFTConfig, {"max_length": 64}, told()


def trained(name: str, base, folder, callbacks=(), **config):
    """The trainer after its training.  bf16 and gradient checkpointing are trl's defaults, and on."""
    trainer, about, more, rows = method(name)
    arguments = about(
        output_dir=str(folder),
        **{
            "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "learning_rate": 3e-2, "seed": 3,
            "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, **more, **config,
        },
    )  # fmt: skip
    given = {"reward_funcs": asked_by_its_length} if name == "grpo" else {}
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    words = transformers.AutoTokenizer.from_pretrained(base)
    data = datasets.Dataset.from_list(rows)
    if config.get("eval_strategy", "no") != "no":
        given["eval_dataset"] = data
    found = trainer(
        model=module, args=arguments, train_dataset=data, processing_class=words, callbacks=list(callbacks), **given
    )
    found.train()
    return found


def alike(a, b) -> None:
    """Weights and the optimizer's state, bit for bit."""
    same(a.model, b.model)
    ours, theirs = a.optimizer.state_dict()["state"], b.optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() and len(ours)
    for key in ours:
        for name, value in ours[key].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key][name])), (key, name)


def saved(base, folder, *steps: int) -> dict:
    return {0: str(base), **{step: str(folder / f"checkpoint-{step}") for step in steps}}


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_live_is_offline_and_training_does_not_notice(name, base, tmp_path):
    # Accumulation, logging and evaluation are the trainer's own affair: the same steps are read.
    busy = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    tracker = ValueTracker(tmp_path / "live", ITEMS, instruments())
    callback = ValueCallback(tracker, at=[2], seed=5)
    watched = trained(name, base, tmp_path / "run", [callback], **busy)
    plain = trained(name, base, tmp_path / "plain", **busy)
    alike(watched, plain)
    offline = ValueTracker(tmp_path / "offline", ITEMS, instruments())
    offline.run(saved(base, tmp_path / "run", 2, 4), progress=False, seed=5)
    assert tracker.steps == [0, 2, 4]
    for instrument in instruments():
        ours, theirs = tracker.readings(instrument).data, offline.readings(instrument).data
        np.testing.assert_array_equal(ours["p"].values, theirs["p"].values)
        assert float(np.abs(ours["p"].isel(checkpoint=-1) - ours["p"].isel(checkpoint=0)).max()) > 0.01
    assert [tracker.fingerprint(step) for step in (0, 2, 4)] == [offline.fingerprint(step) for step in (0, 2, 4)]
    # Losses of both runs are equal, too, and the stances are in the trainer's history.
    ours, theirs = ([row["loss"] for row in t.state.log_history if "loss" in row] for t in (watched, plain))
    assert ours == theirs and len(ours) == 4
    told = {row["step"]: row for row in watched.state.log_history if any(key.startswith("values/") for key in row)}
    assert sorted(told) == [0, 2, 4] and told[2]["values/pmf/tea_low"] <= told[2]["values/pmf/tea"]


@pytest.mark.parametrize("name", ["simpo", "grpo"])
def test_other_methods_are_read_and_do_not_notice(name, base, tmp_path):
    tracker = ValueTracker(tmp_path / "live", ITEMS, instruments()[:2])
    watched = trained(name, base, tmp_path / "run", [ValueCallback(tracker, at=[2])])
    alike(watched, trained(name, base, tmp_path / "plain"))
    offline = ValueTracker(tmp_path / "offline", ITEMS, instruments()[:2])
    offline.run(saved(base, tmp_path / "run", 2, 4), progress=False)
    np.testing.assert_array_equal(tracker.readings()["p"].values, offline.readings()["p"].values)
    assert tracker.steps == [0, 2, 4]
