"""What only a true GPU can show: memory, precision, order of sums, and the script that measures there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from cases import corpus, story

import workbench
from lenses import ContextIndex, EmbeddingLens, LogitLens
from probes.routing import RoutingTracer
from workbench.organisms.polyglot import twins

ROOT = Path(__file__).resolve().parents[2]


def peak(run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def wide(depth: int = 24) -> workbench.Model:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64_000, hidden_size=512, intermediate_size=512, num_hidden_layers=depth, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    return workbench.load(transformers.LlamaForCausalLM(config).eval(), device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("lens", [LogitLens, EmbeddingLens])
def test_a_lens_keeps_a_small_share_of_what_all_logits_would_take(lens):
    model, tokens = wide(), 1024
    ids = torch.randint(3, 64_000, (1, tokens), generator=torch.Generator().manual_seed(1)).tolist()
    _ = model.fingerprint
    workbench.read(model, ids, lens(), progress=False)
    dense = (model.n_layers + 1) * tokens * model.vocab_size * 4
    assert peak(lambda: workbench.read(model, ids, lens(), progress=False)) < dense / 4


@pytest.mark.gpu
def test_memory_does_not_grow_with_prompts():
    model = wide(4)
    ids = torch.randint(3, 64_000, (64, 128), generator=torch.Generator().manual_seed(1)).tolist()

    def read(n: int) -> int:
        return peak(lambda: workbench.read(model, ids[:n], LogitLens(), batch_size=4, progress=False))

    read(4)
    assert read(64) < 1.1 * read(4) + 2**20


@pytest.mark.gpu
def test_nothing_stays_on_the_device_after_reading():
    model, (texts, labels) = twins.planted(), twins.documents(16, languages=True, tokens=20)
    model = workbench.load(model.module, device="cuda")
    for _ in range(2):  # the first pass may make what is kept for good
        before = torch.cuda.memory_allocated()
        kept = workbench.read(model, texts, [LogitLens(), RoutingTracer(labels, trace=True)], progress=False)
    assert torch.cuda.memory_allocated() == before and len(kept) == 2


@pytest.mark.gpu
def test_an_index_is_the_same_whenever_it_is_built(tmp_path):
    """Rows bit for bit, as the same call gives them twice; and within fp16's rounding those of the CPU."""
    digests, rows = [], []
    for i, device in enumerate(("cuda", "cuda", "cpu")):
        index = ContextIndex.build(story(device), corpus(), tmp_path / str(i), layers=[2, 4], progress=False)
        files = sorted(p for p in index.path.rglob("layer_*") if p.is_file())
        digests.append(hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest())
        rows.append(torch.cat([index.store.matrix(layer).states(0, len(index)).float() for layer in index.layers]))
    assert digests[0] == digests[1]
    torch.testing.assert_close(rows[0], rows[2], rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reads_out_what_the_model_itself_says(dtype):
    model = story("cuda", dtype)
    ids = model.tokenizer.encode("The dog ran to the house.")
    data = workbench.read(model, [ids], LogitLens(-1, top_k=1), progress=False).data
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids], device="cuda")).logits[0].float().log_softmax(-1)
    said = data["token_id"].values[0, 0, :, 0]
    own = logits[torch.arange(len(ids)), torch.as_tensor(said.astype(np.int64))].cpu()
    # The lens multiplies in fp32: its first choice is the model's, or as likely within the model's own rounding.
    assert (logits.max(-1).values.cpu() - own).max() < 0.05


def gpu(folder: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu.py"), "--results", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_without_a_gpu_the_script_says_so_in_one_line(tmp_path):
    done = gpu(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and done.stdout.count("\n") == 1 and "no CUDA device" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_runs_a_part_and_goes_on_where_it_was_left(tmp_path):
    first = gpu(tmp_path, "--rehearse", "superposition")
    assert first.returncode == 0, first.stdout + first.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"gpu-rehearsal.json", "superposition-rehearsal.json"}
    made = (tmp_path / "superposition-rehearsal.json").stat().st_mtime_ns
    again = gpu(tmp_path, "--rehearse", "superposition")
    assert again.returncode == 0 and "is finished" in again.stdout
    assert (tmp_path / "superposition-rehearsal.json").stat().st_mtime_ns == made


def test_what_has_no_time_left_is_said_and_is_a_failure(tmp_path):
    done = gpu(tmp_path, "--rehearse", "--minutes", "0", "values", "lens")
    assert done.returncode == 1 and "2 failed (lens, values)" in done.stdout and "time is up" in done.stdout
