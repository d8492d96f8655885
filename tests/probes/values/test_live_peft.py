"""Adapters: read beside their base, live and offline, to the last bit; step 0 is the model before training as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from living import FRAMINGS, ITEMS, instruments, model, tokenizer
from test_live_trl import alike, method

import workbench
from probes.values.instruments import Pmf
from probes.values.live import ValueCallback
from probes.values.tracker import ValueTracker

peft = pytest.importorskip("peft", reason="peft is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def lora(**more):
    about = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.2}
    return peft.LoraConfig(**{**about, **more})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter that was trained before."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(5)
    module = peft.get_peft_model(model(), lora(init_lora_weights=False))
    module.save_pretrained(folder)
    return folder


def trained(name, base, folder, callbacks=(), adapter=None, resume=None):
    trainer, about, more, rows = method(name)
    arguments = about(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, save_steps=2, learning_rate=3e-2, seed=3,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1, **more,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    given = {"peft_config": lora()}
    if adapter is not None:
        module, given = peft.PeftModel.from_pretrained(module, adapter, is_trainable=True), {}
    found = trainer(
        model=module, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(base), callbacks=list(callbacks), **given,
    )  # fmt: skip
    found.train(resume_from_checkpoint=resume)
    return found


def test_a_new_adapter_begins_at_the_base_and_live_is_offline(base, tmp_path):
    tracker = ValueTracker(tmp_path / "live", ITEMS, instruments())
    watched = trained("sft", base, tmp_path / "run", [ValueCallback(tracker, at=[2])])
    alike(watched, trained("sft", base, tmp_path / "plain"))
    assert watched.model.active_adapters == ["default"]
    pairs = {step: (str(base), str(tmp_path / "run" / f"checkpoint-{step}")) for step in (2, 4)}
    offline = ValueTracker(tmp_path / "offline", ITEMS, instruments())
    offline.run({0: str(base), **pairs}, progress=False)
    for instrument in instruments():
        ours, theirs = tracker.readings(instrument)["p"], offline.readings(instrument)["p"]
        np.testing.assert_array_equal(ours.values, theirs.values)
        assert float(np.abs(ours[-1] - ours[0]).max()) > 0.01
    assert [tracker.fingerprint(step) for step in (2, 4)] == [offline.fingerprint(step) for step in (2, 4)]
    # Merging the same adapter rounds: close, and not equal.
    merged = peft.PeftModel.from_pretrained(model(), pairs[4][1]).merge_and_unload()
    other = Pmf(FRAMINGS).read(workbench.load(merged, tokenizer=tokenizer()), ITEMS, batch_size=32, progress=False).data
    np.testing.assert_allclose(tracker.readings()["p"].values[-1], other["p"].values, atol=1e-5)
    assert not np.array_equal(tracker.readings()["p"].values[-1], other["p"].values)


def test_a_run_that_goes_on_from_an_adapter_begins_there(base, adapter, tmp_path):
    """DPO copies the adapter as its reference ("ref"); what is read is the one that is trained."""
    tracker = ValueTracker(tmp_path / "live", ITEMS, instruments()[:2])
    watched = trained("dpo", base, tmp_path / "run", [ValueCallback(tracker, at=[2])], adapter)
    assert "ref" in watched.model.peft_config
    alike(watched, trained("dpo", base, tmp_path / "plain", adapter=adapter))
    pairs = {step: (str(base), str(tmp_path / "run" / f"checkpoint-{step}")) for step in (2, 4)}
    offline = ValueTracker(tmp_path / "offline", ITEMS, instruments()[:2])
    offline.run({0: (str(base), str(adapter)), 1: str(base), **pairs}, progress=False)
    for instrument in instruments()[:2]:
        ours, theirs = tracker.readings(instrument)["p"], offline.readings(instrument)["p"]
        np.testing.assert_array_equal(ours.values, theirs.sel(checkpoint=[0, 2, 4]).values)
        assert float(np.abs(theirs.sel(checkpoint=1) - theirs.sel(checkpoint=0)).max()) > 1e-3


def test_a_resumed_adapter_is_known_again(base, tmp_path):
    tracker = ValueTracker(tmp_path / "live", ITEMS, instruments()[:1])
    trained("sft", base, tmp_path / "run", [ValueCallback(tracker, at=[3])], resume=False)
    before = tracker.readings().data
    # The last step again, from the checkpoint before it: nothing is read, and nothing set aside.
    trained("sft", base, tmp_path / "run", [ValueCallback(tracker, at=[3])], resume=str(tmp_path / "run/checkpoint-2"))
    assert tracker.steps == [0, 3, 4] and "aside" not in tracker.about
    np.testing.assert_array_equal(tracker.readings()["p"].values, before["p"].values)


def test_an_adapter_on_the_unembedding_is_read_like_its_merged_twin(base, tmp_path):
    """Its matrix is what the head gives with the adapter, also after training has moved it."""
    torch.manual_seed(5)
    module = peft.get_peft_model(model(), lora(target_modules=["q_proj", "lm_head"]))
    live = workbench.load(module, tokenizer=tokenizer())  # a new adapter, which adds nothing yet
    new = Pmf(FRAMINGS).read(live, ITEMS, batch_size=32, progress=False).data
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    module.save_pretrained(tmp_path / "adapter")
    trained = Pmf(FRAMINGS).read(live, ITEMS, batch_size=32, progress=False).data
    tracker = ValueTracker(tmp_path / "values", ITEMS, [Pmf(FRAMINGS)])
    tracker.run({4: (str(base), str(tmp_path / "adapter"))}, progress=False)
    merged = workbench.load(module.merge_and_unload(), tokenizer=tokenizer())
    own = Pmf(FRAMINGS).read(merged, ITEMS, batch_size=32, progress=False).data
    for found in (trained["p"].values, tracker.readings()["p"].values[0]):
        np.testing.assert_allclose(found, own["p"].values, atol=1e-5)
    assert np.abs(new["p"].values - own["p"].values).max() > 1e-3


def test_adapters_of_a_base_in_memory_do_not_pile_up(base, tmp_path):
    """Each step is a fresh base with its adapter, and the caller's model stays what it was."""
    folders = {}
    for step in (1, 2, 3):
        fresh = model()
        torch.manual_seed(step)
        module = peft.get_peft_model(fresh, lora(init_lora_weights=False))
        module.save_pretrained(tmp_path / f"adapter-{step}")
        folders[step] = str(tmp_path / f"adapter-{step}")
    mine = workbench.load(model().eval(), tokenizer=tokenizer())
    for parameter in list(mine.module.parameters())[::2]:
        parameter.requires_grad_(False)
    ids = torch.tensor([[5, 6, 7, 8]])

    def state():
        with torch.no_grad():
            logits = mine.module(input_ids=ids).logits
        kept = [(name, type(m), len(m._forward_hooks)) for name, m in mine.module.named_modules()]
        return kept, [(id(p), p.requires_grad, p.grad) for p in mine.module.parameters()], mine.fingerprint, logits

    before = state()
    tracker = ValueTracker(tmp_path / "memory", ITEMS, [Pmf(FRAMINGS)])
    tracker.run({step: (mine, folder) for step, folder in folders.items()}, progress=False)
    after = state()
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    assert not hasattr(mine.module, "peft_config")
    fresh = ValueTracker(tmp_path / "fresh", ITEMS, [Pmf(FRAMINGS)])
    fresh.run({step: (str(base), folder) for step, folder in folders.items()}, progress=False)
    np.testing.assert_array_equal(tracker.readings()["p"].values, fresh.readings()["p"].values)
    assert len({tracker.fingerprint(step) for step in folders}) == 3
    assert [tracker.fingerprint(s) for s in folders] == [fresh.fingerprint(s) for s in folders]


def test_an_adapter_folder_brings_its_own_chat_template(base, adapter, tmp_path):
    words = tokenizer()
    words.chat_template = words.chat_template.replace("<user>", "<user> <bot>")
    module = peft.PeftModel.from_pretrained(model(), adapter)
    module.save_pretrained(tmp_path / "adapter")
    words.save_pretrained(tmp_path / "adapter")
    found = []
    for folder in (adapter, tmp_path / "adapter"):  # a series is asked in one template, so these are two
        tracker = ValueTracker(tmp_path / f"live-{len(found)}", ITEMS, [Pmf(FRAMINGS)])
        tracker.run({0: (str(base), str(folder))}, progress=False)
        found.append(tracker.readings()["p"].values[0])
    assert np.abs(found[0] - found[1]).max() > 1e-3
