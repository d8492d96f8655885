"""Models that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, tiny

import workbench

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device (make gpu)")


@pytest.fixture(scope="session", params=list(CONFIGS))
def any_model(request: pytest.FixtureRequest) -> workbench.Model:
    return workbench.load(tiny(request.param), name=request.param)


@pytest.fixture(scope="session")
def llama() -> workbench.Model:
    return workbench.load(tiny("llama"), name="llama")


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "models").is_dir():
        pytest.skip("the folder ../shared with models trained by others is not here")
    return SHARED
