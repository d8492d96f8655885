"""Run the notebooks and keep what they show.

    python scripts/notebooks.py [notebooks/01_quickstart.ipynb ...]

Each is executed from the top in a new kernel, in the project's root, and written back with its outputs, without what
changes from run to run (times, widget models that a reader has no kernel for).
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
LIVE = "application/vnd.jupyter.widget-view+json"
# The notebooks need no hub, and bars of progress are not what they show.
KERNEL = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
# For models this small a second thread only waits for the first, for minutes where cores are shared.
KERNEL |= {"OMP_NUM_THREADS": "1"}


def run(path: Path, *, limit: int = 600) -> nbformat.NotebookNode:
    """The notebook, executed.  Raises nbclient's CellExecutionError with the cell that failed."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=limit, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}},
        coalesce_streams=True,
    ).execute(env=os.environ | KERNEL)
    return notebook


def settled(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without times and identities that differ between runs, and without widgets: their static pictures stay."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            sizes = {kind: size for kind, size in output.get("metadata", {}).items() if kind in data}
            output.pop("metadata", None)
            if output.output_type != "stream":
                output.metadata = nbformat.from_dict(sizes)  # at which a picture is shown
            if "text/plain" in data:
                data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
            if set(data) - {LIVE, "text/plain"}:
                data.pop(LIVE, None)
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths or sorted((ROOT / "notebooks").glob("*.ipynb")):
        start = time.perf_counter()
        text = nbformat.writes(settled(run(path)))
        path.write_text(text if text.endswith("\n") else text + "\n")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main([Path(x) for x in sys.argv[1:]])
