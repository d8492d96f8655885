"""The one pass: how deep it goes, what it leaves behind, what it refuses."""

import numpy as np
import pytest
import torch
from tiny import layer_states, prompts, tiny

import workbench
from lenses import EmbeddingLens, LogitAttribution, LogitLens
from workbench.errors import InputError, Refused, StateError
from workbench.variables import about


class Keep(workbench.Reader):
    """A reader that keeps what it sees, and does ``on_observe`` when it sees it."""

    def __init__(self, *sites, on_observe=lambda prompts: None):
        self.wanted, self.on_observe, self.seen = [workbench.Site(*s) for s in sites], on_observe, {}

    def plan(self, run):
        self.run = run

        def observe(states, batch):
            self.on_observe(len(batch.prompts))
            self.seen |= {site: rows.clone() for site, rows in states.items()}
            return {"rows": len(batch)}

        output = workbench.Output((), about("rows", role="count"), dtype=int, combine="sum")
        return workbench.Plan(self.wanted, {"rows": output}, observe)


def count_forwards(module, run):
    calls = []
    handle = module.register_forward_pre_hook(lambda *a: calls.append(1))
    try:
        run()
    finally:
        handle.remove()
    return len(calls)


def test_ten_readers_cost_one_forward(llama):
    readers = [LogitLens(), EmbeddingLens(floors=False), LogitAttribution(), LogitLens(at="mlp_out")]
    readers += [LogitLens(at="attn_out")]
    readers += [LogitLens(at="resid_mid"), LogitLens(top_k=1), LogitLens(targets=5)]
    readers += [Keep(("resid", 2)), Keep(("resid", 4))]
    llama.parts  # noqa: B018 - found once for a model, by a pass of its own
    assert len(readers) == 10
    prompt = [sum(prompts(), [])[:40]]
    assert count_forwards(llama.module, lambda: workbench.read(llama, prompt, readers, progress=False)) == 1
    # The null states of all lenses come from one further pass, and what norms are usual is asked once for a model.
    floors = [EmbeddingLens(), EmbeddingLens(layers=[1, 2])]
    assert count_forwards(llama.module, lambda: workbench.read(llama, prompt, floors, progress=False)) == 2
    short = [LogitLens(), EmbeddingLens(floors=False)]
    twice = lambda: [workbench.read(llama, prompts()[:1], short, progress=False) for _ in range(2)]  # noqa: E731
    assert count_forwards(llama.module, twice) == 3


def test_the_pass_stops_after_the_deepest_site(llama):
    blocks = llama.blocks
    ran = []
    handles = [b.register_forward_hook(lambda *a, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    handles.append(llama.module.lm_head.register_forward_hook(lambda *a: ran.append("head")))
    try:
        reach = {("resid", 0): [], ("resid", 2): [0, 1], ("attn_out", 1): [0], ("resid", 4): [0, 1, 2, 3]}
        for site, expected in reach.items():
            ran.clear()
            workbench.read(llama, prompts()[:1], Keep(site), progress=False)
            assert ran == expected, site
    finally:
        for handle in handles:
            handle.remove()


def test_states_are_those_of_plain_hooks(any_model):
    ids = prompts()[0]
    keep = Keep(*[("resid", i) for i in range(any_model.n_layers + 1)])
    workbench.read(any_model, ids, keep, progress=False)
    dense = layer_states(any_model.module, ids, any_model.anatomy.blocks)
    for site, rows in keep.seen.items():
        np.testing.assert_allclose(rows, dense[site.index], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("ends", ["well", "reader raises", "interrupted"])
def test_the_model_is_left_as_it_was_found(ends):
    module = tiny("llama").train()
    module.model.layers[1].eval()
    module.model.norm.register_forward_hook(lambda *a: None)
    model = workbench.load(module, name="m")

    def fingerprint():
        hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()]
        return hooks, [m.training for m in module.modules()], torch.get_rng_state().tolist(), model.fingerprint

    def fail(prompts):
        torch.rand(1)
        if ends == "reader raises":
            raise RuntimeError("of the reader's own")
        if ends == "interrupted":
            raise KeyboardInterrupt

    before = fingerprint()
    keep = Keep(("resid", 1), ("mlp_out", 2), on_observe=fail)
    if ends == "well":
        workbench.read(model, prompts(), keep, progress=False)
    else:
        with pytest.raises(RuntimeError if ends == "reader raises" else KeyboardInterrupt):
            workbench.read(model, prompts(), keep, progress=False)
    assert fingerprint() == before


def test_an_interrupted_pass_gives_what_it_has_on_request(llama):
    seen = []

    def stop(rows):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    keep = Keep(("resid", 1), on_observe=stop)
    lens, keep_reading = workbench.read(
        llama, prompts(), [LogitLens(), keep], batch_size=1, partial=True, progress=False
    )
    assert lens.provenance["prompts_read"] == 2
    real = lens.data.input_id.values >= 0
    read = np.isfinite(lens.data.entropy.values.transpose(0, 2, 1)).all(-1) & real
    assert read.any(1).sum() == 2
    assert int(keep_reading.data.rows) == read.sum()


def test_out_of_memory_halves_the_batch_and_counts_nothing_twice(llama):
    plain = workbench.read(llama, prompts(), LogitLens(), progress=False).data
    state = {"failures": 0}

    def hungry_for(prompts):
        if prompts > 3:
            state["failures"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    hungry = Keep(("resid", 4), on_observe=hungry_for)
    lens, hungry = workbench.read(llama, prompts(), [LogitLens(), hungry], progress=False)
    assert state["failures"] > 0
    np.testing.assert_allclose(lens.data.logprob, plain.logprob, atol=1e-5)
    assert int(hungry.data.rows) == sum(map(len, prompts()))


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_rows_that_wait_for_each_other_are_halved_too(llama, batch_size):
    """What is gathered from several batches, and what waits at the end, by prompts."""
    shown, failures = [], []

    class Gathers(workbench.Reader):
        def plan(self, run):
            def observe(states, batch):
                if len(batch) > 16 and len(batch.prompts) > 1:
                    failures.append(len(batch))
                    raise torch.OutOfMemoryError("CUDA out of memory")
                shown.extend(zip(batch.prompt.tolist(), batch.position.tolist(), strict=True))
                return {"rows": len(batch), "norm": states[site].norm(dim=-1)}

            site = workbench.Site("resid", 2)
            outputs = {
                "rows": workbench.Output((), about("rows"), dtype=int, combine="sum"),
                "norm": workbench.Output(("prompt", "position"), about("norm")),
            }
            return workbench.Plan([site], outputs, observe, gather=30)

    found = workbench.read(llama, prompts(), Gathers(), batch_size=batch_size, progress=False).data
    assert failures and int(found.rows) == len(shown) == len(set(shown)) == sum(map(len, prompts()))
    state = workbench.read(llama, prompts(), workbench.States(2), progress=False)["state"].values[:, 0]
    np.testing.assert_allclose(found.norm, np.linalg.norm(state, axis=-1), rtol=1e-5)


def test_not_a_number_is_named(llama):
    module = tiny("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises((StateError, Refused)):
        workbench.read(workbench.load(module), prompts(), LogitLens(), progress=False)
    model = workbench.load(tiny("llama"), name="broken")
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(StateError, match="NaN at layer 2"):
        workbench.read(model, prompts(), LogitLens(), progress=False)


def test_positions(llama):
    ids = prompts()
    everything = workbench.read(llama, ids, LogitLens(), progress=False).data
    last = workbench.read(llama, ids, LogitLens(), positions="last", progress=False).data
    assert last.sizes["position"] == 1
    for p, prompt in enumerate(ids):
        assert int(last.input_position[p, 0]) == len(prompt) - 1
        np.testing.assert_allclose(last.logprob[p, :, 0], everything.logprob[p, :, len(prompt) - 1], atol=1e-4)
    some = workbench.read(llama, ids, LogitLens(), positions=[0, -1], progress=False).data
    np.testing.assert_array_equal(some.input_position[:, 0], 0)
    with pytest.raises(InputError, match="positions 0 to"):
        workbench.read(llama, ids, LogitLens(), positions=40, progress=False)


@pytest.mark.parametrize("bad, message", [
    ([], "no prompt"), ([[]], "empty"), ([[3] * 65], "at most 64"), ([[3, 97]], "token id 97"),
    ("text", "no tokenizer"),
    (3.5, "cannot read a float"), ([[3, "a"]], "Prompt 0"), ({"texts": "a"}, "'text' and 'images'"),
])  # fmt: skip
def test_bad_inputs_say_what_was_found(llama, bad, message):
    with pytest.raises(InputError, match=message):
        workbench.read(llama, bad, LogitLens(), progress=False)


def test_bad_calls_say_what_to_do(llama):
    for readers, message in (([], "No reader"), (LogitLens, "Give instances"), ("logit", "Expected a reader")):
        with pytest.raises(InputError, match=message):
            workbench.read(llama, [[3]], readers, progress=False)
    with pytest.raises(InputError, match="layers 0 to 4"):
        workbench.read(llama, [[3]], LogitLens(layers=7), progress=False)


def test_chats_get_one_beginning_of_sequence():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "user", "assistant", "hello", "there"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = "<s> {% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    model = workbench.load(tiny("llama"), tokenizer=tokenizer)
    chat = [{"role": "user", "content": "hello there"}]
    data = workbench.read(model, [chat], LogitLens(), progress=False).data
    assert data.input_id.values.tolist() == [[1, 2, 4, 5, 3]]
    data = workbench.read(model, "hello there", LogitLens(), progress=False).data
    assert data.input_id.values.tolist() == [[1, 4, 5]]
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        workbench.read(model, [chat], LogitLens(), progress=False)


def test_a_batch_is_let_go_when_it_is_done():
    """Commits know their batch: unless that is undone, memory grows until a collection."""
    import gc
    import weakref

    seen = []

    class Keeps(workbench.Reader):
        def plan(self, run):
            def observe(states, batch):
                seen.append(weakref.ref(batch))
                seen.append(weakref.ref(states[workbench.Site("resid", 2)]))
                return {}

            return workbench.Plan([workbench.Site("resid", 2)], {}, observe)

    gc.collect()
    gc.disable()
    try:
        model = workbench.load(tiny("llama"))
        workbench.read(model, [[3, 4, 5]] * 6, Keeps(), batch_size=2, progress=False)
        assert len(seen) >= 6 and all(ref() is None for ref in seen)
    finally:
        gc.enable()
