"""The notebooks run from top to bottom, are committed with what they show, and stay small."""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    "01_quickstart", "02_latentlens", "03_moe_routing", "04_superposition", "05_value_drift", "06_paper_figures",
    "07_images",
)  # fmt: skip
sys.path.insert(0, str(ROOT / "scripts"))
nbformat = pytest.importorskip("nbformat", reason="reading notebooks needs nbformat")
pytest.importorskip("nbclient", reason="running notebooks needs nbclient")


def committed(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_the_top(name):
    from notebooks import run

    notebook = run(ROOT / "notebooks" / f"{name}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    # What is committed is what this version says: the same cells with the same kinds of output.
    kept = [cell for cell in committed(name).cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.source for cell in kept] == [cell.source for cell in code]
    for was, now in zip(kept, code, strict=True):
        assert bool(was.outputs) == bool(now.outputs), was.source


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_with_its_pictures_and_small(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < 1e6
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    data = [output.data for cell in code for output in cell.outputs if "data" in output]
    pictures = [d["image/png"] for d in data if "image/png" in d]
    assert pictures, "a page that hosts code shows pictures, not widgets"
    assert all(base64.b64decode(p)[:4] == b"\x89PNG" for p in pictures)
    text = path.read_text()
    assert not re.search(r"cdn\.|unpkg|jsdelivr|googleapis", text)
    assert os.path.expanduser("~") + "/" not in text or os.path.expanduser("~") == "/"
    assert str(ROOT) not in text, "a path of the machine it was run on"
    streams = [output for cell in code for output in cell.outputs if output.output_type == "stream"]
    assert not [output.text for output in streams if output.name == "stderr"], "warnings and bars are not for readers"


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_with_an_exercise_and_the_readers_own_model(name):
    said = [c.source for c in committed(name).cells if c.cell_type == "markdown"]
    assert said[0].startswith("# ")
    assert any(s.startswith("## Exercise") for s in said)
    assert any(s.startswith("## Now your model") for s in said)
    assert not any(output.output_type == "error" for c in committed(name).cells for output in c.get("outputs", []))
