"""A real language model for tests: SmolLM2-135M-Instruct, where ``scripts/real_model.py`` put it.

Where it is not there these tests are skipped, and fail where the environment says CI=true.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import workbench

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "real_model.py"
_spec = importlib.util.spec_from_file_location("real_model", SCRIPT)
assert _spec is not None and _spec.loader is not None
real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(real)


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The transformers folder, in which the GGUF file lies that it was made of."""
    place = real.folder()
    if not real.ready(place):
        reason = f"SmolLM2-135M-Instruct is not in {place}: run  python scripts/real_model.py"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return place


@pytest.fixture(scope="session")
def real_gguf(real_folder: Path) -> Path:
    return real_folder / real.GGUF


@pytest.fixture(scope="session")
def real_model(real_folder: Path) -> workbench.Model:
    return workbench.load(real_folder, progress=False)
