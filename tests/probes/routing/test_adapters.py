"""Arrow's weights are those that PEFT itself computed, and what is said of them is what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import workbench
from probes.routing.adapters import adapter_routing, agreement, compare, gram, oracle_rate, prototypes, usage, weighted
from probes.routing.adapters.figures import adapters as figure
from probes.routing.costs import document_nll
from workbench.errors import InputError, Refused

peft = pytest.importorskip("peft", reason="peft is not installed, and Arrow routers are PEFT's")

TASKS, WORDS, WIDTH = 3, 20, 64
LABELS = [f"L{i}" for i in range(TASKS)]
ORACLE = {label: f"task_{i}" for i, label in enumerate(LABELS)}
INPUTS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]
DIRECTIONS = torch.linalg.qr(torch.randn(WIDTH, TASKS, generator=torch.Generator().manual_seed(9))).Q.T


def base(*, planted: bool = True) -> LlamaForCausalLM:
    """Tokens of a label show its direction in their embeddings, and the blocks add little."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3 + TASKS * WORDS, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        table = module.model.embed_tokens.weight.copy_(torch.randn(config.vocab_size, WIDTH))
        if planted:
            table[3:] += 12 * DIRECTIONS[torch.arange(TASKS).repeat_interleave(WORDS)]
    return module


def saved(folder: Path, name: str, direction: torch.Tensor | None, seed: int, targets: list[str], **options) -> str:
    """An adapter whose first row reads a direction of the stream (None: nothing in particular)."""
    config = peft.LoraConfig(
        r=2, lora_alpha=2 + seed % 5, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    model = peft.get_peft_model(base(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                a.normal_(0, 0.02)
                b.normal_(0, 0.2)
                if direction is not None and a.shape[1] == WIDTH:
                    a[0] = direction
    model.save_pretrained(str(folder / name))
    return str(folder / name)


def arrow(folder: Path, *, planted: bool = True, targets: list[str] | None = None, general: int = 0, **options):
    targets = [x.split(".")[-1] for x in INPUTS] if targets is None else targets
    paths = [saved(folder, f"a{i}", DIRECTIONS[i], i + 1, targets) for i in range(TASKS)]
    extra = [saved(folder, f"g{i}", None, 20 + i, targets) for i in range(general)]
    config = peft.ArrowConfig(**{"top_k": 2, "router_temperature": 1.0, "rng_seed": 0, **options})
    return peft.create_arrow_model(base(planted=planted), paths, config, general_adapter_paths=extra or None)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> workbench.Model:
    return workbench.load(arrow(tmp_path_factory.mktemp("planted")), name="planted")


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory) -> workbench.Model:
    """Random adapters in all seven Linears of a block."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    module = arrow(tmp_path_factory.mktemp("everywhere"), targets=targets, router_temperature=0.7)
    return workbench.load(module, name="everywhere")


def documents(n: int = 12, *, tasks: bool = True, seed: int = 0) -> tuple[list[list[int]], list[str]]:
    """Token ids and labels; without ``tasks`` every label draws from the words of all."""
    rng = np.random.default_rng(seed)
    start, words = (WORDS, WORDS) if tasks else (0, TASKS * WORDS)
    ids = [(3 + i % TASKS * start + rng.integers(words, size=rng.integers(5, 20))).tolist() for i in range(n)]
    return ids, [LABELS[i % TASKS] for i in range(n)]


class Spy:
    """``torch`` for PEFT's module, which keeps every softmax."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def softmax(self, *args, **kwargs) -> torch.Tensor:
        self.seen.append(torch.softmax(*args, **kwargs))
        return self.seen[-1]


def own_weights(model: workbench.Model, ids: list[int], monkeypatch) -> dict[str, np.ndarray]:
    """Projection -> [tokens, adapter]: the coefficients inside PEFT's own forward."""
    spy, order, handles = Spy(), [], []
    for name, module in model.module.named_modules():
        if type(module).__name__ == "ArrowLoraLinearLayer":
            own = name.split(".layers.")[1].removesuffix(".lora_arrow.arrow_router")
            handles.append(module.register_forward_pre_hook(lambda m, a, own=own: order.append(own)))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("peft.tuners.lora.arrow.torch", spy)
        model.module(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: w.float().numpy() for name, w in zip(order, spy.seen, strict=True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_inside_peft(everywhere, tmp_path, monkeypatch, dtype):
    model = everywhere
    if dtype == "bfloat16":
        module = arrow(tmp_path, targets=["q_proj", "o_proj", "down_proj"])
        model = workbench.load(module, dtype="bfloat16", name="half")
    ids, labels = documents(5)
    reading = adapter_routing(model, ids, labels, trace=True, batch_size=1, progress=False)
    data = reading.data
    assert float(data["proof_error"].max()) < (1e-5 if dtype == "float32" else 3e-2)
    totals = np.zeros((len(LABELS), data.sizes["projection"], TASKS))
    for i, one in enumerate(ids):
        own = own_weights(model, one, monkeypatch)
        assert list(own) == data["projection"].values.tolist()
        for p, weights in enumerate(own.values()):
            mine = data["adapter_weight"].values[i, p]
            np.testing.assert_array_equal(mine[: len(one)], weights.astype(np.float16))
            assert np.isnan(mine[len(one) :]).all()
            first = data["adapter_id"].values[i, p]
            assert (weights[np.arange(len(one)), first[: len(one)]] == weights.max(1)).all()
            assert (first[len(one) :] == -1).all()
            np.testing.assert_allclose(data["document_weight"].values[i, p], weights.mean(0), atol=1e-6)
            totals[LABELS.index(labels[i]), p] += weights.sum(0)
    np.testing.assert_allclose(data["weight"].values, totals / data["token_count"].values[:, None, None], atol=1e-6)


def test_update_is_what_the_linear_adds_to_its_base(everywhere):
    """Traced weights, adapters' matrices and scalings give output less base output, in numpy."""
    model, ids = everywhere, documents(1)[0]
    data = adapter_routing(model, ids, trace=True, progress=False).data
    kept = {}
    layer = model.module.base_model.model.model.layers[1].mlp.down_proj
    handles = [
        layer.register_forward_hook(lambda m, a, out: kept.update(x=a[0][0].numpy(), out=out[0].numpy())),
        layer.base_layer.register_forward_hook(lambda m, a, out: kept.update(base=out[0].numpy())),
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor(ids))
    for handle in handles:
        handle.remove()
    weights = data["adapter_weight"].sel(projection="1.mlp.down_proj").values[0].astype(float)
    update = np.zeros_like(kept["out"])
    for e in range(TASKS):
        a, b = (m[f"task_{e}"].weight.detach().numpy() for m in (layer.lora_A, layer.lora_B))
        update += weights[:, e, None] * layer.scaling[f"task_{e}"] * (kept["x"] @ a.T @ b.T)
    found = kept["out"] - kept["base"]
    assert np.abs(update - found).max() < 2e-3 * np.abs(found).max()  # weights are kept in float16


def test_entropies_against_a_dense_computation(everywhere):
    ids = documents(1)[0]
    data = adapter_routing(everywhere, ids, progress=False).data
    layer = everywhere.module.base_model.model.model.layers[0].self_attn.q_proj
    kept = []
    handle = layer.register_forward_pre_hook(lambda m, a: kept.append(a[0][0].double()))
    with torch.no_grad():
        everywhere.module(input_ids=torch.tensor(ids))
    handle.remove()
    score = (kept[0] @ layer.lora_arrow["arrow_router"].prototypes.double().T).abs() / 0.7
    least = score.sort(1).values[:, 1:2]
    for stage, s in (("before", score), ("after", score.masked_fill(score < least, -torch.inf))):
        want = torch.distributions.Categorical(logits=s).entropy().mean()
        found = data["routing_entropy"].sel(stage=stage, projection="0.self_attn.q_proj").item()
        assert found == pytest.approx(float(want), abs=1e-5)
    np.testing.assert_allclose(data["routing_entropy_uniform"].values[0], np.log([TASKS, 2]))
    assert (data["routing_entropy"].values <= data["routing_entropy_uniform"].values + 1e-6).all()
    # Random prototypes: fresh directions through the same formula, many times.
    unit = torch.nn.functional.normalize(torch.randn(400, TASKS, WIDTH, dtype=torch.float64), dim=-1)
    random = torch.einsum("tw,rew->rte", kept[0], unit).abs() / 0.7
    want = float(torch.distributions.Categorical(logits=random).entropy().mean())
    found = data["routing_entropy_random"].sel(stage="before", projection="0.self_attn.q_proj").item()
    spread = float(torch.distributions.Categorical(logits=random[:, :, :]).entropy().std()) / len(ids[0]) ** 0.5
    assert abs(found - want) < 4 * spread


def test_planted_adapters_are_found_and_unplanted_ones_are_not(planted, tmp_path):
    ids, labels = documents(18)
    reading = adapter_routing(planted, ids, labels, oracle=ORACLE, progress=False)
    table = oracle_rate(reading, draws=200)
    assert reading.data["kind"].values.tolist() == INPUTS * 2
    assert reading.data["block"].values.tolist() == [0] * 3 + [1] * 3
    assert float(table["rate"].min()) > 0.98 and float(table["probability"].min()) > 0.9
    assert float(table["mean_rate_low"]) > 0.98 and float(table["mean_rate_p"]) < 0.01
    assert float(table["rate_null"]) == pytest.approx(1 / 3)
    np.testing.assert_allclose(table["rate_shuffled"].mean(), 1 / 3, atol=0.05)
    assert (table["rate_q"] < 0.05).all()
    # The same adapters, where neither words nor embeddings know a label: p is spread over 0 to 1.
    null, p = workbench.load(arrow(tmp_path, planted=False), name="null"), []
    for seed in range(12):
        ids, labels = documents(18, tasks=False, seed=seed)
        table = oracle_rate(adapter_routing(null, ids, labels, oracle=ORACLE, progress=False), draws=100)
        assert abs(float(table["mean_rate"]) - 1 / 3) < 0.1
        p.append(float(table["mean_rate_p"]))
    assert min(p) > 0.01 and 0.25 < np.mean(p) < 0.75


def test_usage_and_agreement_have_their_nulls(planted):
    ids, labels = documents(18)
    reading = adapter_routing(planted, ids, labels, trace=True, names=["fr", "de", "fi"], progress=False)
    table = usage(reading, draws=100)
    assert table["adapter"].values.tolist() == ["fr", "de", "fi"]
    np.testing.assert_allclose(table["weight"].values, reading.data["weight"].values, atol=1e-6)
    np.testing.assert_allclose(table["chosen"].values, reading.data["chosen"].values, atol=1e-6)
    np.testing.assert_allclose(table["entropy"].values, reading.data["routing_entropy"].values, atol=1e-6)
    assert ((table["weight_low"] <= table["weight"] + 1e-9) & (table["weight"] <= table["weight_high"] + 1e-9)).all()
    assert (table["mean_weight_low"].sel(adapter="fr", label="L0") > table["share_null"]).all()
    same = agreement(reading, draws=50)
    first = reading.data["adapter_id"].transpose("projection", ...).values.reshape(6, -1)
    first = first[:, first[0] >= 0]
    want = (first[:, None] == first[None]).mean(-1)
    np.testing.assert_allclose(same["agreement"].values, want, atol=1e-6)
    shares = np.stack([(first == e).mean(1) for e in range(TASKS)], 1)
    np.testing.assert_allclose(same["agreement_null"].values, shares @ shares.T, atol=1e-6)
    # All projections follow the label, so labels explain the agreement and the pooled product does not.
    off = ~np.eye(6, dtype=bool)
    assert (same["agreement_excess_low"].values[off] > 0.5).all()
    np.testing.assert_allclose(same["agreement_null_label"].values, want, atol=0.05)


def test_other_readers_and_positions_change_nothing(everywhere):
    from lenses.logit import LogitLens

    ids, labels = documents(7)
    alone = adapter_routing(everywhere, ids, labels, trace=True, progress=False)
    both = adapter_routing(everywhere, ids, labels, trace=True, progress=False, readers=[LogitLens()])
    assert both[1].data.attrs["reader"] == "LogitLens"
    for name in alone.data.data_vars:
        np.testing.assert_array_equal(both[0].data[name].values, alone.data[name].values)
    some = adapter_routing(everywhere, ids, labels, trace=True, positions=slice(1, None), progress=False).data
    np.testing.assert_array_equal(some["document_tokens"].values, [len(x) - 1 for x in ids])


def test_prototypes_beside_each_other(planted, everywhere):
    table = gram(planted, draws=2000)
    np.testing.assert_allclose(table["cosine_null"].values, np.sqrt(2 / (np.pi * WIDTH)))
    first = prototypes(planted)["0.self_attn.q_proj"].values
    np.testing.assert_allclose(np.abs(np.sum(first * DIRECTIONS.numpy(), 1)), 1, atol=0.02)
    found = table["cosine"].sel(projection="0.self_attn.q_proj").values
    np.testing.assert_allclose(found, np.abs(first @ first.T), atol=1e-5)
    np.testing.assert_allclose(table["exact"].values, 1, atol=1e-4)
    # The singular vectors, by a full decomposition; random adapters, for which power iterations may fall short.
    table = gram(everywhere, draws=2000)
    for e in range(TASKS):
        layer = everywhere.module.base_model.model.model.layers[1].mlp.down_proj
        a, b = (m[f"task_{e}"].weight.detach().double() for m in (layer.lora_A, layer.lora_B))
        _, s, v = torch.linalg.svd(b @ a)
        cell = table.data.sel(projection="1.mlp.down_proj", adapter=f"task_{e}")
        want = float((v[0] @ layer.lora_arrow["arrow_router"].prototypes[e].double()).abs())
        assert float(cell["exact"]) == pytest.approx(want, abs=1e-5)
        assert float(cell["energy"]) == pytest.approx(float(s[0] ** 2 / (s**2).sum()), abs=1e-6)
    draws = torch.nn.functional.normalize(torch.randn(4000, 2, WIDTH), dim=-1)
    drawn = (draws[:, 0] * draws[:, 1]).sum(1).abs()
    assert float(drawn.mean()) == pytest.approx(np.sqrt(2 / (np.pi * WIDTH)), rel=0.04)
    assert float(drawn.quantile(0.95)) == pytest.approx(float(table["cosine_high"][0]), rel=0.08)


def test_compare_is_what_peft_gives_with_the_adapters_set_by_hand(planted):
    ids, labels = documents(9)
    table = compare(planted, ids, labels, ORACLE, draws=200)
    nats = table["document_nats"].sel
    module = planted.module
    np.testing.assert_allclose(nats(routing="arrow").values, document_nll(planted, ids)[0], rtol=1e-5)
    plain = workbench.load(base(), name="base")
    np.testing.assert_allclose(nats(routing="base").values, document_nll(plain, ids)[0], rtol=1e-5)
    try:
        own = np.empty(len(ids))
        for i, label in enumerate(labels):
            module.set_adapter(ORACLE[label])
            own[i] = document_nll(planted, [ids[i]])[0][0]
        np.testing.assert_allclose(nats(routing="oracle").values, own, rtol=1e-5)
    finally:
        module.set_adapter("arrow_router")
    merged = base()
    for i in range(2):
        for kind in INPUTS:
            layer = module.base_model.model.model.layers[i].get_submodule(kind)
            update = sum(layer.scaling[n] * layer.lora_B[n].weight @ layer.lora_A[n].weight for n in ORACLE.values())
            merged.model.layers[i].get_submodule(kind).weight.data += update.detach() / TASKS
    uniform = document_nll(workbench.load(merged, name="merged"), ids)[0]
    np.testing.assert_allclose(nats(routing="uniform").values, uniform, rtol=1e-5)
    tokens = table["document_tokens"].values
    delta = (nats(routing="oracle").values - nats(routing="arrow").values).sum() / tokens.sum()
    assert float(table["delta"].sel(routing="oracle")) == pytest.approx(delta)
    # Arrow chose the oracle nearly always: its cost is the oracle's, and another adapter's is not.
    assert abs(delta) < 0.1 * abs(float(table["delta"].sel(routing="base")))
    assert not np.allclose(nats(routing="other"), nats(routing="oracle"), rtol=1e-3)
    with pytest.raises(KeyError), weighted(planted, {"task_1": 1.0}):
        assert not np.allclose(document_nll(planted, ids)[0], nats(routing="arrow"), rtol=1e-5)
        raise KeyError
    np.testing.assert_allclose(document_nll(planted, ids)[0], nats(routing="arrow"), rtol=1e-6)
    assert "oracle" not in compare(planted, ids[:2], draws=20)["routing"].values


def test_general_knowledge_is_subtracted_before_anything_is_traced(tmp_path, monkeypatch):
    module = arrow(tmp_path, general=2, use_gks=True)
    layer = module.base_model.model.model.layers[0].self_attn.q_proj
    before = layer.lora_A["task_0"].weight.detach().clone()
    mean = (layer.lora_A["gks_0"].weight + layer.lora_A["gks_1"].weight).detach() / 2
    model = workbench.load(module, name="gks")
    ids = documents(2)[0]
    fingerprint = model.fingerprint
    reading = adapter_routing(model, ids, trace=True, batch_size=1, progress=False)
    torch.testing.assert_close(layer.lora_A["task_0"].weight.detach(), before - mean)
    assert reading.provenance["reader"]["general_knowledge_subtracted"] == ["gks_0", "gks_1"]
    assert reading.data["adapter"].values.tolist() == ["task_0", "task_1", "task_2"]
    own = own_weights(model, ids[0], monkeypatch)["1.mlp.up_proj"]
    found = reading.data["adapter_weight"].sel(projection="1.mlp.up_proj").values[0]
    np.testing.assert_array_equal(found[: len(own)], own.astype(np.float16))
    assert workbench.load(module).fingerprint == fingerprint
    # An adapter that comes later would be subtracted from in the next pass: not in one that only reads.
    module.load_adapter(str(tmp_path / "a0"), adapter_name="late")
    module.set_adapter("arrow_router")
    late = layer.lora_A["late"].weight.detach().clone()
    with pytest.raises(Refused, match="have changed since the model last ran"):
        adapter_routing(model, ids, progress=False)
    torch.testing.assert_close(layer.lora_A["late"].weight.detach(), late)
    again = adapter_routing(workbench.load(module), ids, progress=False)
    assert again.data.sizes["adapter"] == 4


def test_another_formula_is_refused(planted, monkeypatch):
    own = peft.tuners.lora.arrow.ArrowLoraLinearLayer.forward

    def colder(self, x, **kwargs):
        self.temperature, kept = self.temperature * 4, self.temperature
        try:
            return own(self, x, **kwargs)
        finally:
            self.temperature = kept

    monkeypatch.setattr(peft.tuners.lora.arrow.ArrowLoraLinearLayer, "forward", colder)
    with pytest.raises(Refused, match="do not give its own update"):
        adapter_routing(planted, documents(4)[0], progress=False)


def test_models_without_routing_are_refused(planted, tmp_path):
    ids = documents(2)[0]
    with pytest.raises(Refused, match="has no LoRA adapters"):
        adapter_routing(workbench.load(base(), name="dense"), ids)
    path = saved(tmp_path, "one", None, 1, ["q_proj"])
    plain = workbench.load(peft.PeftModel.from_pretrained(base(), path, adapter_name="fr"), name="plain")
    with pytest.raises(Refused, match=r"LoRA adapters \(fr\) but no Arrow router"):
        gram(plain)
    try:
        planted.module.set_adapter("task_0")
        with pytest.raises(Refused, match="only active adapter"):
            adapter_routing(planted, ids)
    finally:
        planted.module.set_adapter("arrow_router")
    with planted.module.disable_adapter(), pytest.raises(Refused, match="disabled"):
        adapter_routing(planted, ids)
    module = arrow(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    module.add_adapter("fresh", config)
    module.set_adapter("arrow_router")
    with pytest.raises(Refused, match="'fresh' has no prototype"):
        adapter_routing(workbench.load(module), ids)


def test_wrong_arguments(planted):
    ids, labels = documents(3)
    with pytest.raises(InputError, match="2 and there are 3 prompts"):
        adapter_routing(planted, ids, labels[:2])
    with pytest.raises(InputError, match="one text"):
        adapter_routing(planted, ids, "L0")
    with pytest.raises(InputError, match="the adapter 'task_9'; the model has task_0, task_1, task_2"):
        adapter_routing(planted, ids, labels, oracle={**ORACLE, "L1": "task_9"})
    with pytest.raises(InputError, match="no adapter for the label 'L2'"):
        adapter_routing(planted, ids, labels, oracle={"L0": "task_0", "L1": "task_1"})
    with pytest.raises(InputError, match="does not name the 3 adapters"):
        adapter_routing(planted, ids, names=["a", "b"])
    with pytest.raises(InputError, match="no adapter 'fr'"), weighted(planted, {"fr": 1}):
        pass
    reading = adapter_routing(planted, ids, labels, progress=False)
    with pytest.raises(InputError, match="oracle="):
        oracle_rate(reading)
    with pytest.raises(InputError, match="trace=True"):
        agreement(reading)
    with pytest.raises(InputError, match="one token"):
        compare(planted, [[5]])
    # One document for each label: nothing to draw again, so no interval.
    assert np.isnan(usage(reading, draws=10)["weight_low"]).all()


def test_the_figure_and_the_file(planted, tmp_path):
    ids, labels = documents(9)
    reading = adapter_routing(planted, ids, labels, oracle=ORACLE, trace=True, progress=False)
    table = usage(reading)
    (panel,) = figure(table).plot.panels
    assert panel.x.names == ["task_0", "task_1", "task_2"] and panel.y.names == LABELS
    (cells,) = panel.marks
    np.testing.assert_array_equal(cells.values, table["mean_weight"])
    np.testing.assert_allclose(cells.values, reading.data["weight"].mean("projection").values, atol=1e-5)
    np.testing.assert_array_equal(cells.ringed, np.eye(TASKS, dtype=bool))
    as_by_chance = (table["mean_weight_low"] <= 1 / TASKS) & (table["mean_weight_high"] >= 1 / TASKS)
    np.testing.assert_array_equal(cells.dotted, as_by_chance)
    (panel,) = reading.figure(by="projection", label="L1", value="chosen").plot.panels
    assert panel.y.names == reading.data["projection"].values.tolist()
    np.testing.assert_array_equal(panel.marks[0].values, table["chosen"].sel(label="L1"))
    with pytest.raises(InputError, match="no label 'L7'"):
        figure(usage(reading, draws=2), label="L7")
    again = workbench.open(reading.save(tmp_path / "adapters.nc"))
    assert again.data["kind"].values.tolist() == reading.data["kind"].values.tolist()
    assert float(oracle_rate(again, draws=20)["mean_rate"]) == float(oracle_rate(reading, draws=20)["mean_rate"])
    assert again.provenance["reader"]["peft"] == peft.__version__
    assert "adapter_weight" in repr(reading) and reading._repr_mimebundle_()["text/html"]


def test_adapters_outside_the_blocks_are_named(tmp_path):
    config = OPTConfig(
        vocab_size=63, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    for i in range(2):
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "project_in"], init_lora_weights=False)
        peft.get_peft_model(OPTForCausalLM(config), lora).save_pretrained(tmp_path / f"a{i}")
    paths = [str(tmp_path / f"a{i}") for i in range(2)]
    module = peft.create_arrow_model(OPTForCausalLM(config), paths, peft.ArrowConfig(top_k=2, rng_seed=0)).eval()
    model = workbench.load(module, name="opt")
    ids = documents(2)[0]
    reading = adapter_routing(model, ids, progress=False)
    assert reading.data["projection"].values.tolist() == ["0.self_attn.q_proj", "1.self_attn.q_proj"]
    assert [x.rsplit(".", 1)[1] for x in reading.provenance["reader"]["not_traced"]] == ["project_in"]
    # What replaces Arrow's weights replaces them there, too.
    with module.disable_adapter():
        plain = document_nll(model, ids)[0]
    np.testing.assert_allclose(compare(model, ids)["document_nats"].sel(routing="base"), plain, rtol=1e-5)
