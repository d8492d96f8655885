"""Folders of vision-language models load with a processor on pillow alone, and pictures on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictured import drawn, pictured, text_with_image

import workbench
from lenses import LogitLens
from workbench.cli import main


def saved(kind: str, folder: Path) -> tuple[workbench.Model, Any]:
    """A tiny model as a folder of a hub has it, and the same in memory."""
    model, processor = pictured(kind)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    plain = {k: v for k, v in vars(processor).items() if isinstance(v, (int, str, float)) and not k.startswith("_")}
    (folder / "processor_config.json").write_text(json.dumps({**plain, "processor_class": type(processor).__name__}))
    return workbench.load(model, tokenizer=processor.tokenizer, processor=processor), processor


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_5_vl", "llava_onevision", "internvl", "mistral3"])
def test_a_folder_is_loaded_with_its_vision_tower_and_its_processor(kind: str, tmp_path: Path) -> None:
    memory, processor = saved(kind, tmp_path)
    model = workbench.load(tmp_path, progress=False)
    assert type(model.processor) is type(processor) and model.no_processor == ""
    prompt = {"text": text_with_image(processor), "images": drawn(60, 50)}
    found, own = (workbench.read(m, prompt, LogitLens(), progress=False).data for m in (model, memory))
    assert (found["kind"] == "image").any() and (found["box"].fillna(-1) == own["box"].fillna(-1)).all()
    assert np.allclose(found["entropy"], own["entropy"], atol=1e-4)


def test_a_picture_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, processor = saved("qwen2_5_vl", tmp_path / "model")
    drawn(60, 50).save(tmp_path / "seen.png")
    text = text_with_image(processor)
    command = ["read", str(tmp_path / "model"), text, "--image", str(tmp_path / "seen.png"), "--out", str(tmp_path)]
    assert main(command) == 0
    assert workbench.open(tmp_path / "logit.nc").data.sizes["picture"] == 1
    assert main(["info", str(tmp_path / "model")]) == 0 and "<|image_pad|>" in capsys.readouterr().out
    assert main(["read", str(tmp_path / "model"), text, text, "--image", str(tmp_path / "seen.png")]) == 1
    assert "1 pictures for 2 prompts" in capsys.readouterr().err
