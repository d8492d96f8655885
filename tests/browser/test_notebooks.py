"""The notebooks in a real JupyterLab: run from the top, clicked in, and opened again without a kernel."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# Where an explorer is clicked, and what changes then: its marks by the class of its outermost element's parts.
HEAT = ".wx-heat rect[role=gridcell] >> nth=3"
MARKS = {
    "wx-lens": ".wx-row[aria-rowindex='3'] .wx-cell >> nth=1", "wx-neighbours": ".wx-space .wx-line >> nth=2",
    "wx-routing": HEAT, "wx-belief": HEAT, "wx-drift": HEAT,
}  # fmt: skip


def _explorers(notebook: Any) -> list[int]:
    """Cells that show an explorer under that name."""
    return [
        i
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.source.rstrip().splitlines()[-1:] == ["explorer"]
    ]


def _clicked(page: Any, index: int) -> None:
    """A click changes what the explorer says, and the next cell reads the selection."""
    root = page.cell(index).locator(".wx")
    root.first.wait_for()
    mark = root.locator(MARKS[root.first.get_attribute("class").split()[1]])
    mark.wait_for()
    before, was = root.first.inner_text(), ast.literal_eval(page.python("print(dict(explorer.selection))"))
    mark.click()
    page.page.wait_for_function(
        "([i, before]) => document.querySelector(`.jp-Cell[data-windowed-list-index='${i}']`)"
        ".querySelector('.wx').innerText !== before",
        arg=[index, before],
    )
    assert page.notebook.cells[index + 1].source.startswith("explorer.selection")
    page.page.evaluate("(i) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i; }", index + 1)
    page.command("notebook:run-cell")
    page.idle()
    said = ast.literal_eval(page.cell(index + 1).locator(".jp-OutputArea-output pre").inner_text())
    assert said != was
    assert said == ast.literal_eval(page.python("print(dict(explorer.selection))"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_is_clicked_and_is_read_without_a_kernel(lab, name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:  # what is shown must come from this run
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    page = lab.open(notebook, name=name, height=1300)
    page.notebook = notebook
    page.run(limit=600)
    shown = _explorers(notebook)
    assert shown or not any("explore(" in cell.source for cell in notebook.cells), "an explorer without a name"
    for index in shown:
        _clicked(page, index)
        page.shot(f"notebook-{name}-{index}")
    watched = page.watched
    assert watched.errors == [] and watched.outside == [] and watched.dialogs == []

    page.reload(kernel=False)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and any("image/png" in o.get("data", {}) for o in page.saved.cells[i].outputs):
            picture = page.cell(i).locator(".jp-OutputArea-output img").first
            picture.wait_for()
            assert picture.evaluate("(img) => img.decode().then(() => img.naturalWidth)") > 100
    for index in shown:
        cell = page.cell(index)
        cell.locator(".wx-static table tr").first.wait_for()
        assert cell.locator(".wx").count() == 0
    page.shot(f"notebook-{name}-static")
    assert page.watched.outside == [] and page.watched.dialogs == []
    assert page.path.stat().st_size < 1e6
