"""LogitLens against the dense computation, written out for each architecture."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control
from tiny import layer_states, prompts, tiny

import workbench
from lenses import LogitAttribution, LogitLens
from workbench.errors import InputError, StateError
from workbench.figures import Line
from workbench.readout import Readout
from workbench.widgets import payload


def head(module, h):
    """Each model's own readout, as its authors wrote it (not as the workbench finds it)."""
    c = module.config
    match c.model_type:
        case "llama":
            return module.lm_head(module.model.norm(h))
        case "gemma2":
            return 7.0 * torch.tanh(module.lm_head(module.model.norm(h)) / 7.0)
        case "cohere":
            return module.lm_head(module.model.norm(h)) * 0.3
        case "granite":
            return module.lm_head(module.model.norm(h)) / 3.0
        case "gpt2" | "bloom":
            return module.lm_head(module.transformer.ln_f(h))
        case "gpt_neox":
            return module.get_output_embeddings()(module.gpt_neox.final_layer_norm(h))
    raise AssertionError(c.model_type)


@pytest.fixture(scope="module")
def dense(any_model):
    """Per prompt the full [layers + 1, positions, vocabulary] log-probabilities."""
    with torch.no_grad():
        return [
            head(any_model.module, layer_states(any_model.module, ids, any_model.anatomy.blocks)).log_softmax(-1)
            for ids in prompts()
        ]


@pytest.fixture(scope="module")
def dense_llama(llama):
    with torch.no_grad():
        states = [layer_states(llama.module, ids, "model.layers") for ids in prompts()]
        return [head(llama.module, own).log_softmax(-1) for own in states]


def test_everything_equals_the_dense_computation(any_model, dense):
    data = workbench.read(any_model, prompts(), LogitLens(top_k=7), progress=False).data
    for p, own in enumerate(dense):
        here = data.isel(prompt=p, position=slice(own.shape[1]))
        top = own.topk(7, -1)
        np.testing.assert_allclose(here.logprob, top.values, atol=1e-4)
        chosen = own.gather(-1, torch.tensor(here.token_id.values).long())
        np.testing.assert_allclose(here.logprob, chosen, atol=1e-4)
        np.testing.assert_allclose(here.entropy, -(own.exp() * own).sum(-1), atol=1e-4)
        np.testing.assert_allclose(here.kl_to_final, (own[-1].exp() * (own[-1] - own)).sum(-1), atol=1e-4)
        target = own[-1].argmax(-1)
        at = own.gather(-1, target.expand(len(own), -1)[..., None])
        np.testing.assert_allclose(here.target_logprob, at[..., 0], atol=1e-4)
        np.testing.assert_array_equal(here.target_rank, (own > at).sum(-1))
        np.testing.assert_array_equal(here.target_id, target)


def test_last_layer_is_the_models_own_output(any_model):
    """The dense reference above could share a mistake with the lens; the model's own logits cannot."""
    data = workbench.read(any_model, prompts(), LogitLens(), progress=False).data.sel(layer=any_model.n_layers)
    for p, ids in enumerate(prompts()):
        with torch.no_grad():
            own = any_model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        here = data.isel(prompt=p, position=slice(len(ids)))
        np.testing.assert_array_equal(here.token_id[:, 0], own.argmax(-1))
        np.testing.assert_allclose(here.logprob, own.topk(10, -1).values, atol=1e-4)


def test_inside_a_block_the_lens_reads_what_the_part_adds(any_model):
    """attn_out and mlp_out must be what takes the stream from one layer to the next."""
    captured = {}

    def keep(at):
        found = workbench.read(any_model, ids, workbench.States(at=at), progress=False)["state"].values[0]
        captured.update({(at, b): torch.from_numpy(rows) for b, rows in enumerate(found)})

    ids = prompts()[0]
    keep("attn_out")
    keep("mlp_out")
    states = layer_states(any_model.module, ids, any_model.anatomy.blocks)
    for b in range(any_model.n_layers):
        added = captured["attn_out", b] + captured["mlp_out", b]
        np.testing.assert_allclose(states[b] + added, states[b + 1], atol=1e-3, rtol=1e-4)
    if any_model.name not in ("gpt_neox", "cohere"):  # parallel blocks have no state between
        keep("resid_mid")
        for b in range(any_model.n_layers):
            np.testing.assert_allclose(
                captured["resid_mid", b], states[b] + captured["attn_out", b], atol=1e-3, rtol=1e-4
            )


def test_a_parallel_block_has_no_state_in_its_middle():
    model = workbench.load(tiny("gpt_neox"))
    with pytest.raises(ValueError, match="no state between"):
        workbench.read(model, prompts(), LogitLens(at="resid_mid"), progress=False)


def test_chosen_targets_and_the_next_token(llama):
    own = head(llama.module, layer_states(llama.module, ids := prompts()[0], "model.layers")).log_softmax(-1)
    data = workbench.read(llama, ids, LogitLens(targets=[5, 9]), progress=False).data
    assert data.target_rank.dims == ("prompt", "layer", "position", "target")
    np.testing.assert_allclose(data.target_logprob[0], own[..., [5, 9]].detach(), atol=1e-4)
    data = workbench.read(llama, ids, LogitLens(targets="next"), progress=False).data
    following = own[:, range(len(ids) - 1), ids[1:]].detach()
    np.testing.assert_allclose(data.target_logprob[0, :, :-1], following, atol=1e-4)
    assert np.isnan(data.target_logprob[0, :, -1]).all()
    assert (data.target_rank[0, :, -1] == -1).all()


def null_of(logprob, prompt, at, token):
    """The target's log-probabilities [layer, other] under the states of all other positions of all prompts."""
    return np.concatenate(
        [own[:, [i for i in range(own.shape[1]) if (p, i) != (prompt, at)], token] for p, own in enumerate(logprob)], 1
    )


def check_null(data, logprob, p, slot, token, target=()):
    """Median and rank, by the definition, from the full softmax of every position."""
    here, null = data.isel(prompt=p, position=slot), null_of(logprob, p, int(data.input_position[p, slot]), token)
    for name in ("target_logprob", "target_logprob_null", "target_logprob_p"):
        assert here[name].dims[:1] == ("layer",)
    own = here.target_logprob.values[(slice(None), *target)]
    np.testing.assert_allclose(here.target_logprob_null.values[(slice(None), *target)], np.median(null, 1), atol=1e-4)
    rank = (1 + (null >= own[:, None] - 1e-5 * (1 + np.abs(own[:, None]))).sum(1)) / (1 + null.shape[1])
    got = here.target_logprob_p.values[(slice(None), *target)]
    np.testing.assert_allclose(got, np.where(null.shape[1] < 20, np.nan, rank), atol=1.5 / null.shape[1])
    return np.mean(np.abs(got - rank) < 1e-6) if null.shape[1] >= 20 else 1.0


@pytest.mark.parametrize("positions", ["all", "last", [0, -1], slice(1, None, 2), slice(9, None)], ids=str)
@pytest.mark.parametrize("options", [{}, {"padding_side": "left"}, {"batch_size": 1}], ids=str)
def test_the_null_is_the_same_target_under_other_states_whichever_are_read(any_model, dense, positions, options):
    found = [[4, 6]] * len(prompts())
    data = workbench.read(
        any_model, prompts(), LogitLens(targets=found[0], top_k=3), positions=positions, progress=False, **options
    ).data
    exact = []
    for p, own in enumerate(dense):
        for slot, at in enumerate(data.input_position.values[p]):
            if at >= 0:
                for t, token in enumerate(found[p]):
                    exact.append(check_null(data, dense, p, slot, token, (t,)))
                    np.testing.assert_allclose(data.target_logprob.values[p, :, slot, t], own[:, at, token], atol=1e-4)
    assert len(exact) >= 7 and np.mean(exact) > 0.95
    for name in ("target_logprob_null", "target_logprob_p", "target_logprob_q"):
        assert np.isnan(data[name].values.transpose(0, 2, 1, 3)[data.input_position.values < 0]).all()
    p, q = data.target_logprob_p.values, data.target_logprob_q.values
    if (known := ~np.isnan(p)).any():
        np.testing.assert_allclose(q[known], false_discovery_control(p[known]), rtol=1e-5)
    assert data.target_logprob_p.attrs["role"] == "p" and data.target_logprob_null.attrs["of"] == "target_logprob"


@pytest.fixture
def fast_bf16(monkeypatch):
    """On models this small bf16 gains nothing: what it gives is tested all the same."""
    monkeypatch.setattr(Readout, "gain", lambda self: 2.0)


def test_bf16_that_is_not_faster_is_refused_with_the_number(llama, monkeypatch):
    monkeypatch.setattr(Readout, "gain", lambda self: 0.61)
    with pytest.raises(InputError, match=r"not faster here: .*\[97, 32\].* takes 0.61 times as long"):
        workbench.read(llama, prompts(), LogitLens(precision="bf16"), progress=False)
    monkeypatch.undo()
    assert 0 < Readout(llama).gain() < 100


def test_the_null_in_parts_in_bf16_and_where_there_is_none(llama, fast_bf16):
    for options in (
        {"at": "mlp_out", "targets": 3},
        {"targets": "next"},
        {"layers": [2], "compare": False, "targets": 7},
    ):
        every = workbench.read(llama, prompts(), LogitLens(**options), progress=False).data
        some = workbench.read(llama, prompts(), LogitLens(**options), positions=[0, 1], progress=False).data
        for name in ("target_logprob_null", "target_logprob_p"):
            own = every[name].isel(position=[0, 1])
            np.testing.assert_allclose(some[name], own, atol=1e-4, err_msg=str(options))
            assert np.isfinite(own.values[1:, :, 0]).any()
    exact, fast = (
        workbench.read(llama, prompts(), LogitLens(targets=7, precision=p), positions="last", progress=False).data
        for p in ("fp32", "bf16")
    )
    np.testing.assert_allclose(exact.target_logprob_null, fast.target_logprob_null, atol=5e-3)
    # One position has no other; few have a median and no rank.
    assert np.isnan(workbench.read(llama, [[5]], LogitLens(targets=7), progress=False).data.target_logprob_null).all()
    few = workbench.read(llama, [[5, 6, 7]], LogitLens(targets=7), progress=False).data
    assert np.isfinite(few.target_logprob_null).all() and np.isnan(few.target_logprob_p).all()
    assert "fewer than 20 other positions" in few.target_logprob_q.attrs["reason"]
    with pytest.raises(InputError, match="draws=5 gives no p-value"):
        LogitLens(targets=7, draws=5)
    # What the state itself chooses has no null, and says so.
    own = workbench.read(llama, prompts(), LogitLens(), progress=False).data
    for name in ("target_logprob_null", "target_logprob_p", "target_logprob_q"):
        assert np.isnan(own[name]).all() and "chosen by the state itself" in own[name].attrs["reason"]


def test_a_sink_is_compared_with_sinks_alone(llama):
    """One position of each prompt has a state of a thousand times the others' length."""
    ids = [[1, *range(k, k + 9)] for k in range(2, 50, 2)]
    block = llama.module.model.layers[1]

    def grown(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        states = states.clone()
        states[:, 0] *= 1000
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = block.register_forward_hook(grown)
    try:
        data = workbench.read(llama, ids, LogitLens(targets=5, layers=[2]), progress=False).data
    finally:
        handle.remove()
    own = data.target_logprob.values[:, 0]
    # Fewer positions are drawn than there are: at most 128 of 240, about a tenth of them sinks.
    assert np.isnan(data.target_logprob_p.values[:, 0, 0]).all()
    assert np.isfinite(data.target_logprob_p.values[:, 0, 1:]).all()
    spread = np.abs(data.target_logprob_null.values[:, 0, 1:] - np.median(own[:, 1:]))
    assert spread.max() < 0.5 * own[:, 1:].std() + 0.2


@pytest.mark.parametrize("targets", [11, "next"])
def test_the_rank_has_its_level_on_random_tokens(targets):
    """p <= .05 in 5 % of cells, where tokens are random and say nothing of the target."""
    model = workbench.load("organism:story", progress=False)
    rng = np.random.default_rng(3)
    ids = rng.integers(5, model.vocab_size, (12, 24)).tolist()
    if targets == "next":  # what a model says next is not what comes, since nothing tells
        p = workbench.read(model, ids, LogitLens(targets="next"), progress=False).data.target_logprob_p.values[
            :, :, :-1
        ]
    else:
        p = np.concatenate([
            workbench.read(model, ids, LogitLens(targets=int(t)), progress=False).data.target_logprob_p.values
            for t in rng.integers(5, model.vocab_size, 8)
        ])  # fmt: skip
    assert 0.03 < (p <= 0.05).mean() < 0.07 and 0.45 < (p <= 0.5).mean() < 0.55


def test_each_prompt_has_targets_of_its_own(llama, dense_llama):
    own = [[p + 3, 40 - p] for p in range(len(prompts()))]
    for positions in ("all", "last"):
        data = workbench.read(llama, prompts(), LogitLens(targets=own), positions=positions, progress=False).data
        assert data.target_rank.dims == ("prompt", "layer", "position", "target")
        assert data.target_id.dims == ("prompt", "target") and data.target_id.values.tolist() == own
        for p, whole in enumerate(dense_llama):
            n = whole.shape[1]
            rows = np.arange(n) if positions == "all" else np.array([n - 1])
            here = data.isel(prompt=p, position=slice(len(rows)))
            wanted = whole[:, rows][..., own[p]]
            np.testing.assert_allclose(here.target_logprob, wanted, atol=1e-4)
            np.testing.assert_array_equal(here.target_rank, (whole[:, rows, None] > wanted[..., None]).sum(-1))
            for slot in range(len(rows)):
                for t in range(2):
                    check_null(data, dense_llama, p, slot, own[p][t], (t,))
    one = workbench.read(llama, prompts(), LogitLens(targets=[[t[0]] for t in own]), progress=False)
    assert one.data.sizes["target"] == 1
    table = one.frame()
    assert (table["target_id"] == table["prompt"] + 3).all()


def test_targets_that_do_not_fit_the_prompts_are_errors(llama):
    for targets, said in (
        ([[3], [4]], "2 lists and there are 3 prompts"),
        ([[3], [4, 5], [6]], "1 for prompt 0 and 2 for prompt 1"),
        ([[3], 4, [5]], "tokens such as 4 beside lists"),
        ([[], [], []], "empty list"),
        ([], "empty list"),
        ([[3], [97], [4]], "token id 97"),
    ):
        for lens in (LogitLens(targets=targets), LogitAttribution(targets=targets)):
            with pytest.raises(InputError, match=said):
                workbench.read(llama, [[3, 4], [5], [6]], lens, progress=False)


def test_figures_explorers_and_files_name_each_prompts_own_targets(tmp_path):
    model = workbench.load("organism:story", progress=False)
    asked = ["The bell of Tilda is", "The kite of Anna is"]
    lens, shown = [[" red", " green"], [" blue", " green"]], [["·red", "·green"], ["·blue", "·green"]]
    logit, part = workbench.read(
        model, asked, [LogitLens(targets=lens), LogitAttribution(targets=lens)], positions="last", progress=False
    )
    logit = workbench.open(logit.save(tmp_path / "own.nc"))
    for reading in (logit, part):
        heads = payload(reading)["readings"][0]
        assert heads["targets"] == [] and [p["targets"] for p in heads["prompts"]] == shown
    for prompt in (0, 1):
        (panel,) = logit.figure("trajectory", prompt=prompt).plot.panels
        assert [line.name for line in panel.of(Line) if line.markers] == shown[prompt]
    drawn = logit.figure("heatmap", value="target_logprob", prompt=1, target=" blue")
    wanted = logit.data.target_logprob.values[1, :, 0, 0]
    np.testing.assert_array_equal(drawn.plot.panels[0].marks[0].values[:, 0], wanted)
    with pytest.raises(InputError, match="followed in prompt 0"):
        logit.figure("heatmap", value="target_logprob", target=" blue")
    assert "·blue" in part.figure("attribution", prompt=1).plot.title


def test_bf16_product_keeps_the_top_tokens(llama, fast_bf16):
    exact = workbench.read(llama, prompts(), LogitLens(), progress=False).data
    fast = workbench.read(llama, prompts(), LogitLens(precision="bf16"), progress=False).data
    real = exact.input_id.values >= 0
    same = (exact.token_id.values == fast.token_id.values).all(-1).transpose(0, 2, 1)[real]
    assert same.mean() > 0.99


def test_unknown_layers_targets_and_places_are_errors(llama):
    for lens in (LogitLens(layers=[9]), LogitLens(layers=[-6]), LogitLens(targets=97), LogitLens(targets="word")):
        with pytest.raises(InputError):
            workbench.read(llama, [[3, 4]], lens, progress=False)
    with pytest.raises(InputError, match="resid, resid_mid"):
        LogitLens(at="middle")


def test_a_target_is_named_as_figures_show_it(shared):
    """SentencePiece puts a space of its own before a text; " the" is still the token that is shown as " the"."""
    model = workbench.load(shared / "models" / "stories260K", progress=False)
    by_text, by_id = (
        workbench.read(model, "Once upon a", LogitLens(targets=[target]), progress=False)
        for target in (" the", model.tokenizer.convert_tokens_to_ids("▁the"))
    )
    assert by_text.data["target"].values.tolist() == by_id.data["target"].values.tolist() == [" the"]
    np.testing.assert_array_equal(by_text.data["target_logprob"], by_id.data["target_logprob"])
    with pytest.raises(InputError, match=r"'Once' and ' Once' are one token \(id \d+\)"):
        workbench.read(model, "Once upon a", LogitLens(targets=["Once", " Once"]), progress=False)
    with pytest.raises(InputError, match=r"is \d tokens: .* \(id \d+\), .*the text or the id"):
        workbench.read(model, "Once upon a", LogitLens(targets=[" elephants"]), progress=False)


def test_a_word_without_its_space_is_asked_about():
    story = workbench.load("organism:story", progress=False)
    one, other = (story.tokenizer(text, add_special_tokens=False).input_ids for text in ("red", " red"))
    assert len(one) == len(other) == 1 and one != other
    with pytest.warns(UserWarning, match=rf"'red' is token {one[0]}; ' red', .* is token {other[0]}"):
        workbench.read(story, "The bell of Tilda is", LogitLens(targets=["red"]), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workbench.read(story, "The bell of Tilda is", LogitLens(targets=[" red", one[0]]), progress=False)
    with pytest.raises(InputError, match=r"'white' is 2 tokens: .* ' white' is one token \(id \d+\)"):
        workbench.read(story, "The bell of Tilda is", LogitLens(targets=["white"]), progress=False)


def with_bias(name: str, values: dict[int, float]) -> workbench.Model:
    """A model whose unembedding has a bias, ordinary but for the tokens given."""
    module = tiny(name)
    head = module.lm_head
    new = torch.nn.Linear(head.in_features, head.out_features)
    new.weight = head.weight
    with torch.no_grad():
        new.bias.normal_(generator=torch.Generator().manual_seed(5))
    module.lm_head = new
    model = workbench.load(module, name=name)
    with torch.no_grad():
        for token, value in values.items():
            new.bias[token] = value
    return model


@pytest.mark.parametrize("name", ["llama", "granite", "cohere", "gemma2"])
@pytest.mark.parametrize("options", [{}, {"chunk": 5}, {"precision": "bf16"}], ids=str)
def test_masked_tokens_have_no_probability_and_disturb_nothing(name, options, fast_bf16):
    """Biases of minus infinity.  Behind a softcap they are ordinary: the cap makes them its lower end."""
    never = [3, 40, 96]
    model = with_bias(name, dict.fromkeys(never, -torch.inf))
    ids = prompts()[0]
    lens = LogitLens(top_k=97, targets=[3, 5], **options)
    data = workbench.read(model, ids, lens, progress=False).data.isel(prompt=0)
    with torch.no_grad():
        states = layer_states(model.module, ids, model.anatomy.blocks).double()
        own = head(model.module.double(), states).log_softmax(-1)
        model.module.float()
    p, cut = own.exp(), own.clamp_min(-1e9)
    np.testing.assert_allclose(data.entropy, -(p * cut).sum(-1), atol=1e-4)
    # Behind a softcap the rounded product is in the KL itself.
    loose = 5e-3 if name == "gemma2" and options.get("precision") else 1e-4
    np.testing.assert_allclose(data.kl_to_final, (p[-1] * (cut[-1] - cut)).sum(-1), atol=loose)
    np.testing.assert_allclose(data.target_logprob, own[..., [3, 5]], atol=1e-4)
    np.testing.assert_allclose(data.logprob, own.sort(-1, descending=True).values, atol=1e-4)
    at = own[..., [3, 5]]
    np.testing.assert_array_equal(data.target_rank, (own[..., None, :] > at[..., None]).sum(-1))
    assert np.isinf(data.target_logprob.values[..., 0]).all() == (name != "gemma2")
    assert not np.isnan(data.target_logprob_null).any()
    if name != "gemma2":
        with pytest.raises(InputError, match="Target token 3 is masked"):
            workbench.read(model, ids, LogitAttribution(targets=[5, 3]), progress=False)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_unembedding_that_is_no_number_is_an_error_that_names_the_token(value):
    with pytest.raises(StateError, match="bias of token 11 "):
        workbench.read(with_bias("llama", {11: value}), prompts(), LogitLens(), progress=False)
    model = workbench.load(tiny("llama"), name="llama")
    with torch.no_grad():
        model.module.lm_head.weight[12, 3] = value
    with pytest.raises(StateError, match="row of token 12 "):
        workbench.read(model, prompts(), LogitLens(), progress=False)
