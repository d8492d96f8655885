"""The routing that is traced is the routing that happened, in every architecture."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import routing as table
import torch
import transformers
from tiny import tiny

import workbench
from workbench.anatomy.moe import record
from workbench.errors import Refused

NO_SUM = {
    "aria",
    "dbrx",
    "glm5_next",
    "gpt_oss",
    "hy_v4",
    "minimax_m3_vl",
    "nllb_moe",
    "openai_privacy_filter",
    "switch_transformers",
}
"""Experts with biases, clamps, or modules of their own: no plain sum to write out."""


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    transformers.logging.set_verbosity_error()
    return {folder: table.check(folder, name, module) for folder, name, module in table.models()}


def test_every_router_of_transformers_is_traced(rows):
    assert set(rows) == set(table.folders()) and len(rows) >= 72


def test_experts_fed_with_what_was_traced_give_what_the_model_gave(rows):
    for folder, row in rows.items():
        assert row["experts_again"] or row["written_out"] or folder in ("switch_transformers",), folder
        for name in ("experts_again", "written_out"):
            assert not row[name] or float(row[name]) < 1e-5, (folder, name, row[name])
        assert row["written_out"] or folder in NO_SUM, folder


def test_another_weight_is_another_output(rows):
    for folder, row in rows.items():
        assert row["weight_changes_logits"] in ("yes", ""), folder
        assert row["weight_changes_logits"] or row["kind"] in ("DogeCDMoE", "JetMoeTopKGating", "Llama4Router"), folder


def test_the_table_that_is_shipped_is_the_one_that_is_measured(rows):
    shipped = {r["folder"]: r for r in csv.DictReader((Path(table.__file__).parent / "routing.csv").open())}
    assert set(shipped) == set(rows)
    for folder, row in rows.items():
        for name in ("class", "kind", "layers", "experts", "top_k", "weight_changes_logits"):
            assert shipped[folder][name] == str(row[name]), (folder, name)


def test_top_k_of_the_logits_is_not_the_routing_where_a_bias_selects(rows):
    """What other tools take for the routing; DeepSeek-V3's own groups and biases choose otherwise."""
    assert float(rows["olmoe"]["top_k_of_logits"]) == 1
    assert float(rows["deepseek_v3"]["top_k_of_logits"]) < 0.5


def test_generation_is_traced_prompt_first_then_step_by_step():
    module = next(m for f, _, m in table.models() if f == "olmoe")
    ids = torch.tensor([[5, 6, 7, 8]])
    with record(module) as found:
        out = module.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=True)
    for calls in found.values():
        assert [len(c.index) for c in calls] == [4, 1, 1]
    # What steps with a cache did is what one pass over the whole text does.
    with record(module) as again, torch.no_grad():
        module(input_ids=out[:, :-1])
    for name, calls in found.items():
        steps = torch.cat([c.index for c in calls])
        assert torch.equal(steps.sort(1).values, again[name][0].index.sort(1).values)


def test_a_block_that_is_run_again_for_its_gradient_counts_once():
    module = next(m for f, _, m in table.models() if f == "olmoe").train()
    module.gradient_checkpointing_enable()
    with record(module) as found:
        module(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.sum().backward()
    assert {len(calls) for calls in found.values()} == {1}


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_the_ways_of_computing_experts_are_traced_alike(way):
    module = next(m for f, _, m in table.models() if f == "mixtral")
    given = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]])}
    with record(module) as plain, torch.no_grad():
        module(**given)
    module.set_experts_implementation(way)
    with record(module) as found, torch.no_grad():
        module(**given)
    assert plain.keys() == found.keys()
    for name in plain:
        assert torch.equal(plain[name][0].index, found[name][0].index)


def test_a_dense_model_is_refused():
    model = workbench.load(tiny("llama"))
    assert model.moe == {}
    with pytest.raises(Refused, match="no experts"), record(model.module):
        pass
