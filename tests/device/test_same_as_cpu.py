"""Whatever runs a model gives on a GPU what it gives on the CPU: on a make-believe device, and on a true one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CASES
from make_believe_cuda import MakeBelieveCuda

import lenses
import probes
import workbench
from workbench.reading import Reading

ROOT = Path(__file__).resolve().parents[2]


def found_readers() -> dict[str, type]:
    """Every reader of the packages by name; of those that are not public, the module, too."""
    found: dict[str, type] = {"States": workbench.States}
    for package in (lenses, probes):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, kind in vars(module).items():
                if inspect.isclass(kind) and kind.__module__ == info.name and issubclass(kind, workbench.Reader):
                    found[f"{info.name.split('.')[-1]}.{name}" if name.startswith("_") else name] = kind
    return found


READERS = found_readers()


def test_every_reader_has_a_case():
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["workbench.readers"]
    named = {path.split(":")[1] for path in own.values()}
    named |= {e.value.split(":")[1] for e in entry_points(group="workbench.readers") if e.dist and _ours(e.dist)}
    covered = {name for case in CASES.values() for name in case.readers}
    missing = (named | set(READERS)) - covered
    assert not missing, f"{sorted(missing)} read states, and no case in tests/device/cases.py puts them on a device"
    assert covered <= set(READERS), f"{sorted(covered - set(READERS))} in tests/device/cases.py are no readers"


def _ours(dist: Any) -> bool:
    return dist.name == "latent-workbench"


@pytest.fixture(params=["make-believe", pytest.param("true", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def seen(monkeypatch) -> set[tuple[str, str]]:
    """(reader, device) of all states that readers were shown."""
    there: set[tuple[str, str]] = set()
    for name, kind in READERS.items():
        monkeypatch.setattr(kind, "plan", _noted(kind.plan, name, there))
    return there


def _noted(plan: Any, name: str, there: set[tuple[str, str]]) -> Any:
    def planned(self: Any, run: Any) -> Any:
        own = plan(self, run)

        def observe(states: Any, batch: Any) -> Any:
            for rows in states.values():
                tensor = rows if isinstance(rows, torch.Tensor) else rows[0]
                there.add((name, tensor.device.type))
            return own.observe(states, batch)

        return dataclasses.replace(own, observe=observe)

    return planned


CPU: dict[str, Any] = {}


@pytest.mark.parametrize("name", CASES)
def test_same_as_on_the_cpu(name, device, seen, tmp_path):
    case = CASES[name]
    if name not in CPU:
        torch.manual_seed(0)
        (tmp_path / "cpu").mkdir()
        CPU[name] = case.run("cpu", tmp_path / "cpu")
    seen.clear()
    torch.manual_seed(0)
    (tmp_path / "cuda").mkdir()
    with MakeBelieveCuda() if device == "make-believe" else contextlib.nullcontext():
        found = case.run("cuda", tmp_path / "cuda")
    assert set(case.readers) <= {reader for reader, kind in seen if kind == "cuda"}
    assert not {reader for reader, kind in seen if kind == "cpu"}, "the model was on the CPU"
    alike(found, CPU[name], 1e-6 if device == "make-believe" else case.close, name)


def alike(found: Any, expected: Any, close: float, where: str) -> None:
    """Numbers within ``close``; whole numbers and texts the same, but for what a rounding may turn (a true device)."""
    assert type(found) is type(expected), where
    if isinstance(expected, Reading):
        found, expected = found.data, expected.data
    if isinstance(expected, dict | xr.Dataset):
        assert list(found) == list(expected), where
        for key in expected:
            alike(found[key], expected[key], close, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            alike(a, b, close, f"{where}[{i}]")
    elif isinstance(expected, xr.DataArray | np.ndarray):
        a, b = np.asarray(found), np.asarray(expected)
        assert a.shape == b.shape and a.dtype == b.dtype, where
        if b.dtype.kind == "f":
            np.testing.assert_allclose(a, b, close, close, err_msg=where)
        elif close <= 1e-6:
            np.testing.assert_array_equal(a, b, err_msg=where)
        elif b.size:  # two tokens as likely, two states as near: their order is anyone's
            assert (a == b).mean() > 0.95, where
    else:
        assert found == expected, where
