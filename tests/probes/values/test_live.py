"""Reading while training: the numbers of the saved checkpoints, and weights that are bit for bit those without it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from living import FRAMINGS, ITEMS, model, same, tokenizer
from test_tracker import Asked

import probes.values.live
import workbench
from probes.values.framings import with_negation
from probes.values.instruments import Pmf
from probes.values.live import ValueCallback, log_spaced
from probes.values.parts import parts
from probes.values.tracker import STANCES, ValueTracker
from probes.values.training import as_saved
from probes.values.white import WhiteBox
from workbench.errors import InputError, Refused

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")


class Whole:
    """An instrument that says nothing of parts: asked about all items at once.  Its rows know their place."""

    name, settings = "whole", "first id"

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
    def __init__(self, seed: int = 0):
        self.seed = seed

    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(6, 90, (8,), generator=torch.Generator().manual_seed(100 * self.seed + i))
        return {"input_ids": ids, "labels": ids}


class Then(transformers.TrainerCallback):
    """Does something at the end of a step, or of the epoch that it is in."""

    def __init__(self, step: int, what, of: str = "step"):
        self.step, self.what, self.of = step, what, of

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.step and self.of == "step":
            self.what(control)

    def on_epoch_end(self, args, state, control, **more):
        if state.global_step == self.step and self.of == "epoch":
            self.what(control)


def stop(control):
    control.should_training_stop = True


def killed(control):
    raise KeyboardInterrupt


def trainer_of(folder, callbacks, module=None, data=None, **config):
    module = model() if module is None else module
    about = {"max_steps": 8, "save_steps": 2, "learning_rate": 1e-2, "logging_strategy": "no", **config}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, report_to=[], seed=3, use_cpu=True, disable_tqdm=True,
        **about,
    )  # fmt: skip
    return transformers.Trainer(
        model=module, args=arguments, train_dataset=data or Rows(), eval_dataset=Rows(1), callbacks=callbacks
    )


def trained(folder, callbacks, **more):
    trainer = trainer_of(folder, callbacks, **more)
    trainer.train()
    return trainer


def tracked(path, *instruments) -> ValueTracker:
    return ValueTracker(path, ITEMS, instruments or [Pmf(FRAMINGS[:1])])


def files(tracker: ValueTracker) -> dict:
    return {f: f.stat().st_mtime_ns for f in tracker.path.rglob("*.nc")}


def test_live_is_offline_and_training_does_not_notice(tmp_path):
    plain = trained(tmp_path / "plain", [])
    tracker = tracked(tmp_path / "live", Whole(), Pmf(FRAMINGS), WhiteBox(FRAMINGS[:2]))
    watched = trained(tmp_path / "watched", [ValueCallback(tracker, tokenizer(), at=[2, 4])])
    same(plain.model, watched.model)
    sources = {
        0: lambda: workbench.load(model(), tokenizer=tokenizer()),
        **{s: self_contained(tmp_path / "watched" / f"checkpoint-{s}") for s in (2, 4, 8)},
    }
    offline = tracked(tmp_path / "offline", Whole(), Pmf(FRAMINGS), WhiteBox(FRAMINGS[:2]))
    offline.run(sources, progress=False)
    for name in ("whole", "pmf", "whitebox"):
        np.testing.assert_array_equal(tracker.readings(name)["p"].values, offline.readings(name)["p"].values)
    inside, there = tracker.table("whitebox").data, offline.table("whitebox").data
    np.testing.assert_array_equal(inside["projection"].values, there["projection"].values)
    assert tracker.steps == [0, 2, 4, 8]
    p = tracker.readings()["p"]
    assert float(np.abs(p.isel(checkpoint=-1) - p.isel(checkpoint=0)).max()) > 0.01


def self_contained(folder):
    tokenizer().save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------- left as it was found


def awkward():
    """A model with adapters, in a state that no trainer leaves behind, and its tokenizer."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    module = peft.get_peft_model(
        model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    module.add_adapter("other", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    module.train()
    module.base_model.model.model.layers[1].eval()
    module.base_model.model.model.layers[0].self_attn.q_proj.enable_adapters(False)
    module.base_model.model.model.norm.weight.requires_grad_(True)
    for k, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, k) if parameter.requires_grad and k % 2 else None
    words = tokenizer()
    words.padding_side = "left"
    return module, words


def state_of(module, words):
    adapted = [m for m in module.modules() if hasattr(m, "lora_A")]
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "modes": [m.training for m in module.modules()],
        "wanted": [p.requires_grad for p in module.parameters()],
        "grads": [(id(p.grad), None if p.grad is None else p.grad.sum().item()) for p in module.parameters()],
        "weights": [p.double().sum().item() for p in module.parameters()],
        "active": [list(m.active_adapters) for m in adapted],
        "disabled": [m.disable_adapters for m in adapted],
        "whole": (module.active_adapter, module._adapters_disabled),
        "words": (words.padding_side, words.truncation_side),
        "forward": module.forward.__func__,
        "generation": module.generation_config.to_dict(),
        "config": module.config.to_dict(),
    }


class Rude:
    """An instrument that leaves everything in disorder, and fails half-way where it is told to."""

    name, settings = "rude", "v1"

    def __init__(self, fails: bool):
        self.fails = fails

    def read(self, model, items, *, batch_size=None, seed=0, progress=True):
        module = model.module
        random.random(), np.random.rand(), torch.rand(2)
        module.eval()
        module.base_model.model.model.layers[0].train()
        model.tokenizer.padding_side, model.tokenizer.truncation_side = "right", "left"
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            module(input_ids=torch.tensor([[7, 8, 9]])).logits.sum().backward()
        module.zero_grad()
        module.set_adapter("other")
        module.base_model.disable_adapter_layers()
        if self.fails:
            raise RuntimeError("half-way")
        p = np.full((len(items), 1, 4), 0.25)
        return xr.Dataset(
            {"p": (("item", "framing", "stance"), p)},
            {"item": [i.item_id for i in items], "framing": ["one"], "stance": list(STANCES)},
        )


def told(step: int = 0, last: int = 10):
    """What a trainer tells its callbacks."""
    state = SimpleNamespace(
        global_step=step, max_steps=last, epoch=0.0, log_history=[], best_model_checkpoint=None,
        is_world_process_zero=True,
    )  # fmt: skip
    return SimpleNamespace(load_best_model_at_end=False), state, transformers.TrainerControl()


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_left_as_it_was_found_also_when_an_instrument_fails(fails, tmp_path):
    module, words = awkward()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = state_of(module, words)
    tracker = tracked(tmp_path, Pmf(FRAMINGS), Rude(fails))
    callback = ValueCallback(tracker)
    if fails:
        with pytest.raises(RuntimeError, match="half-way"):
            callback.on_train_begin(*told(), model=module, processing_class=words)
        assert tracker.there(0, tracker.instruments[0]) and not tracker.there(0, tracker.instruments[1])
    else:
        callback.on_train_begin(*told(), model=module, processing_class=words)
    after = state_of(module, words)
    for key in before:
        assert after[key] == before[key], key


@pytest.mark.gpu
def test_cuda_random_numbers_are_put_back():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    with as_saved(model().cuda()):
        torch.rand(3, device="cuda")
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_mixed_precision_is_off_while_reading_and_back_after():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what trainers of other tests have set
    module = model().eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    exact = module(ids).logits
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(module)
    wrapped = prepared.forward
    assert not torch.equal(prepared(ids).logits, exact)
    with as_saved(prepared):
        assert torch.equal(prepared(ids).logits, exact)
    assert prepared.forward is wrapped and not torch.equal(prepared(ids).logits, exact)
    AcceleratorState._reset_state(reset_partial_state=True)


# ---------------------------------------------------------------- which steps


def test_early_steps_are_dense():
    assert log_spaced(1000) == [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, 158, 251, 398, 631, 1000]
    assert log_spaced(1) == [0, 1]


def test_first_and_last_are_always_read_wherever_a_run_stops(tmp_path):
    tracker = tracked(tmp_path / "a")
    trained(tmp_path / "run a", [ValueCallback(tracker, tokenizer(), at=[]), Then(5, stop)])
    assert tracker.steps == [0, 5]
    tracker = tracked(tmp_path / "b")
    trained(tmp_path / "run b", [Then(5, stop), ValueCallback(tracker, tokenizer(), at=[2, 700])])
    assert tracker.steps == [0, 2, 5]
    # Stopped by a callback that is asked after this one, at the end of an epoch (eight steps of sixteen).
    tracker = tracked(tmp_path / "c")
    callbacks = [ValueCallback(tracker, tokenizer(), at=[]), Then(8, stop, "epoch")]
    trainer = trained(tmp_path / "run c", callbacks, max_steps=16)
    assert tracker.steps == [0, 8] and trainer.state.global_step == 8


def test_the_last_step_is_not_taken_for_the_best_one(tmp_path):
    """A run that loads its best weights in the end: the last step's are read before."""
    tracker = tracked(tmp_path / "live")
    trainer = trained(
        tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[]), transformers.EarlyStoppingCallback(2)],
        learning_rate=1.0, save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    last = trainer.state.global_step
    assert last < 8 and not trainer.state.best_model_checkpoint.endswith(f"-{last}")
    source = {last: self_contained(tmp_path / "run" / f"checkpoint-{last}")}
    offline = tracked(tmp_path / "offline").run(source, progress=False)
    assert tracker.steps == [0, last]
    ours = tracker.readings()["p"].sel(checkpoint=last).values
    np.testing.assert_array_equal(ours, offline.readings()["p"].values[0])


class Clock:
    """A clock that stands still but for what is told to take time."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(Pmf):
    def __init__(self, clock):
        super().__init__(FRAMINGS[:1])
        self.clock, self.apart = clock, False

    def read(self, *args, **more):
        self.clock.now += 3.0
        return super().read(*args, **more)


def test_a_budget_is_kept_but_for_the_first_and_the_last(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(probes.values.live, "time", clock)
    tracker = tracked(tmp_path / "live", Slow(clock))
    callback = ValueCallback(tracker, tokenizer(), at=range(41), budget=0.35)
    module = model()
    args, state, control = told(0, 40)
    callback.on_train_begin(args, state, control, model=module)
    for step in range(1, 41):
        clock.now += 1.0
        state.global_step = step
        callback.on_step_end(args, state, control, model=module)
    clock.now += 1.0
    callback.on_train_end(args, state, control, model=module)
    # 3 s each, of the 14 s that 40 steps of a second allow: four readings, one of which is kept for the last step.
    assert tracker.steps == [0, 1, 2, 40]
    assert callback.skipped == list(range(3, 40)) and callback.overhead == pytest.approx(12 / 41)
    clock.now += 1000.0
    assert callback.overhead == pytest.approx(12 / 41)  # the run is over
    said = callback.summary()
    assert "read at 4 steps: 0, 1, 2, 40." in said and "12.0 s, 29.3 %" in said and "budget: 35.0 %" in said
    assert "Left out: steps 3, 4, 5" in said
    with pytest.raises(InputError, match="budget=2"):
        ValueCallback(tracker, None, budget=2)


def run_by(clock, callback, last, a_step=1.0):
    """A run of steps that take a second each, by the clock."""
    module, (args, state, control) = model(), told(0, last)
    callback.on_train_begin(args, state, control, model=module)
    for step in range(1, last + 1):
        clock.now += a_step
        state.global_step = step
        callback.on_step_end(args, state, control, model=module)
    callback.on_train_end(args, state, control, model=module)


def test_by_default_reading_takes_a_tenth_of_the_training_and_says_so(tmp_path, monkeypatch, capsys, recwarn):
    clock = Clock()
    monkeypatch.setattr(probes.values.live, "time", clock)
    tracker = tracked(tmp_path / "long", Slow(clock))
    callback = ValueCallback(tracker, tokenizer())
    run_by(clock, callback, 200)
    # 20 s: six readings, the last of them at the end.
    assert tracker.steps == [0, 1, 2, 3, 4, 200] and callback.skipped == log_spaced(200)[5:-1]
    assert callback.overhead == pytest.approx(0.09) and not [w for w in recwarn if "longer" in str(w.message)]
    assert "Reading took 18.0 s, 9.0 % of the training's own time (budget: 10.0 %)." in capsys.readouterr().out
    # The first and the last are read whatever they cost: that is said.
    short = tracked(tmp_path / "short", Slow(clock))
    with pytest.warns(UserWarning, match="Reading values makes this run 30 % longer.*3.0 s"):
        run_by(clock, ValueCallback(short, tokenizer()), 20)
    assert short.steps == [0, 20]


def test_steps_that_are_asked_for_are_read_and_their_cost_is_told_early(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(probes.values.live, "time", clock)
    tracker = tracked(tmp_path / "every", Slow(clock))
    callback = ValueCallback(tracker, tokenizer(), every=8)
    with pytest.warns(UserWarning, match="60 % longer") as said:
        run_by(clock, callback, 20)
    assert tracker.steps == [0, 8, 16, 20] and len([w for w in said if "longer" in str(w.message)]) == 1
    for wrong in ({"every": 0}, {"every": 2, "at": [1]}):
        with pytest.raises(InputError, match="every="):
            ValueCallback(tracker, **wrong)


def test_a_trainer_without_a_tokenizer_is_told_where_to_give_it(tmp_path):
    tracker = tracked(tmp_path)
    for given in ({}, {"processing_class": None}, {"processing_class": object()}):
        with pytest.raises(InputError, match=r"processing_class=tokenizer.*ValueCallback\(tracker, tokenizer=tok"):
            ValueCallback(tracker).on_train_begin(*told(), model=model(), **given)
    assert tracker.steps == []


def test_a_step_left_out_for_the_budget_is_read_when_it_proves_to_be_the_last(tmp_path):
    tracker = tracked(tmp_path / "live")
    callback = ValueCallback(tracker, tokenizer(), at=range(9), budget=1e-6)
    trained(tmp_path / "run", [callback, Then(5, stop)])
    assert tracker.steps == [0, 5] and callback.skipped == [1, 2, 3, 4]


def test_a_run_is_stopped_and_says_what_it_saw(tmp_path, capsys):
    tracker, seen = tracked(tmp_path / "live"), []
    callback = ValueCallback(
        tracker, tokenizer(), at=range(9), alert=lambda t: len(t.steps) >= 4, log=lambda v, s: seen.append((s, v))
    )
    trainer = trained(tmp_path / "run", [callback])
    assert callback.summary() in capsys.readouterr().out
    assert tracker.steps == [0, 1, 2, 3] and callback.stopped == 3 == trainer.state.global_step
    assert "stopped the training after step 3" in callback.summary()
    history = {row["step"]: row for row in trainer.state.log_history if "values/pmf/tea" in row}
    assert [s for s, _ in seen] == [0, 1, 2, 3] == sorted(history)
    now = tracker.readings().data.sel(checkpoint=2).isel(sample=0)
    tea = now["topic"].values == "tea"
    expected = (now["polarity"] * (now["p"].sel(stance="support") - now["p"].sel(stance="oppose"))).values[tea]
    # Two items a cluster, so that the mean over clusters is that over items.
    assert history[2]["values/pmf/tea"] == pytest.approx(expected.mean()) == dict(seen)[2]["values/pmf/tea"]
    assert history[2]["values/pmf/tea_low"] < history[2]["values/pmf/tea"] < history[2]["values/pmf/tea_high"]


# ---------------------------------------------------------------- resumed, and other runs


def test_a_resumed_run_reads_what_is_missing_and_nothing_twice(tmp_path):
    whole = tracked(tmp_path / "whole")
    trained(tmp_path / "run whole", [ValueCallback(whole, tokenizer(), at=[1, 3, 5, 7])])
    tracker = tracked(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[1, 3, 5, 7]), Then(6, killed)])
    before = files(tracker)
    assert tracker.steps == [0, 1, 3, 5]
    # Nothing was read at step 4, and step 5 comes once more: the folder knows the checkpoint, and step 5's weights.
    again = tracked(tmp_path / "killed")
    trainer = trainer_of(tmp_path / "run", [ValueCallback(again, tokenizer(), at=[1, 3, 5, 7])])
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again.steps == [0, 1, 3, 5, 7, 8]
    after = files(again)
    assert len(after) == 6 and all(after[f] == t for f, t in before.items())
    np.testing.assert_array_equal(again.readings()["p"].values, whole.readings()["p"].values)


def test_steps_that_come_again_with_other_weights_are_set_aside(tmp_path):
    tracker = tracked(tmp_path / "live")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[3, 5]), Then(6, killed)])
    old = tracker.readings()["p"].sel(checkpoint=5).values
    trainer = trainer_of(tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[3, 5])], data=Rows(7))
    with pytest.warns(UserWarning, match="step 5 of other weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert tracker.steps == [0, 3, 5, 8] and tracker.about["aside"][0]["step"] == 5
    assert not np.array_equal(tracker.readings()["p"].sel(checkpoint=5).values, old)
    kept = xr.open_dataset(next((tracker.path / "step-00000005-1").glob("*.nc")), engine="h5netcdf")
    np.testing.assert_array_equal(kept["p"].values, old)
    assert len(tracked(tmp_path / "live").readings()["checkpoint"]) == 4


def test_the_folder_of_another_run_is_refused(tmp_path):
    tracker = tracked(tmp_path / "live")
    trained(tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[4])])
    before = files(tracker)

    def goes(folder, resume=None, track=tracker, **more):
        trainer = trainer_of(folder, [ValueCallback(track, tokenizer(), at=[4])], **more)
        trainer.train(resume_from_checkpoint=resume)

    with pytest.raises(InputError, match="this run begins at step 0"):
        goes(tmp_path / "second", data=Rows(7))
    trained(tmp_path / "other", [], data=Rows(7))
    with pytest.raises(InputError, match="this is another run"):
        goes(tmp_path / "other", str(tmp_path / "other" / "checkpoint-4"))
    trained(tmp_path / "third", [], save_steps=3)
    with pytest.raises(InputError, match="nothing there knows step 3"):
        goes(tmp_path / "third", str(tmp_path / "third" / "checkpoint-3"))
    assert files(tracker) == before and tracker.steps == [0, 4, 8]
    # A baseline that was read before training, of another model.
    begun = tracked(tmp_path / "begun").run(
        {0: lambda: workbench.load(model(1), tokenizer=tokenizer())}, progress=False
    )
    with pytest.raises(InputError, match="this is another run"):
        goes(tmp_path / "fourth", track=begun)


def test_a_baseline_that_was_read_before_is_not_read_again(tmp_path):
    tracker = tracked(tmp_path / "live").run(
        {0: lambda: workbench.load(model(), tokenizer=tokenizer())}, progress=False
    )
    before = files(tracker)
    trained(tmp_path / "run", [ValueCallback(tracker, tokenizer(), at=[])], max_steps=2)
    after = files(tracker)
    assert tracker.steps == [0, 2] and all(after[f] == t for f, t in before.items())


# ---------------------------------------------------------------- parts


@dataclass(frozen=True)
class Denied(Asked):
    negated: str = ""


def test_parts_give_the_rows_of_one_reading_where_few_items_have_a_negation(tmp_path):
    items = [
        Denied(f"i{k}", "topic", item.text, item.polarity, negated=f"not {item.text}" if k in (3, 30) else "")
        for k, item in enumerate([*ITEMS, *ITEMS])
    ]
    asks = Pmf(with_negation(FRAMINGS[:2]))
    cuts = parts(asks, items)
    assert [len(cut) for cut in cuts] == [24, 24] and sorted(i for cut in cuts for i in cut) == list(range(48))
    assert {next(k for k, cut in enumerate(cuts) if i in cut) for i in (3, 30)} == {0, 1}
    assert [len(cut) for cut in parts(asks, ITEMS)] == [12, 12] and parts(Whole(), items) == [list(range(48))]
    words = workbench.load(model(), tokenizer=tokenizer())
    tracker = ValueTracker(tmp_path, items, [asks]).run({0: words}, progress=False)
    whole = asks.read(words, items, progress=False).data
    np.testing.assert_allclose(tracker.readings()["p"].values[0], whole["p"].values, atol=1e-6)
    kept = xr.open_dataset(next(tmp_path.rglob("*.nc")), engine="h5netcdf")
    assert kept["item"].values.tolist() == whole["item"].values.tolist() and set(kept.variables) == set(whole.variables)
    assert np.isnan(kept["p"].values).sum() == 46 * 2 * 4


# ---------------------------------------------------------------- refused


def test_weights_in_pieces_are_refused(tmp_path):
    module = model()
    module.lm_head.weight.ds_id = 3  # what DeepSpeed ZeRO-3 marks its parameters with
    tracker = tracked(tmp_path)
    with pytest.raises(Refused, match="ZeRO-3.*pieces"):
        ValueCallback(tracker, tokenizer()).on_train_begin(*told(), model=module)
    with torch.device("meta"):
        nowhere = transformers.LlamaForCausalLM(model().config)
    with pytest.raises(Refused, match="meta device"):
        ValueCallback(tracker, tokenizer()).on_train_begin(*told(), model=nowhere)
    assert tracker.steps == []
