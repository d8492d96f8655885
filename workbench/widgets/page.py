"""The lens explorer as one HTML file that opens anywhere: no server, no kernel, no network."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from workbench import tokens
from workbench.errors import ReadingError
from workbench.files import atomic_write
from workbench.widgets import packing
from workbench.widgets.base import PAGE, POLICY, script_json
from workbench.widgets.explorer import MODULE


def to_html(readings: Any, path: str | os.PathLike[str], title: str | None = None, top_k: int | None = None) -> Path:
    """Write the explorer of one or several readings (or bare datasets) as one offline page; returns its path.

    readings   a Reading or xarray.Dataset, a list of them, or a mapping of names to them
    top_k      tokens to keep for each cell; by default all, or as many as 6 MB hold
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ReadingError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    text = page(readings, title, top_k)
    atomic_write(path, text)
    return path


def page(readings: Any, title: str | None = None, top_k: int | None = None) -> str:
    """The page's text."""
    block = packing.whole(packing.packers(readings, top_k))
    shown = packing.unpacked(block)["readings"]
    models = list(dict.fromkeys(r["model"] for r in shown if r["model"]))
    if title is None:
        title = " · ".join([", ".join(r["name"] for r in shown), *models])
    # The same module as in the notebook; a page has no importer, so its one export becomes a name.
    module = MODULE.read_text(encoding="utf-8").replace("export default", "const shown =", 1)
    return PAGE.format(
        policy=POLICY,
        title=tokens.html(packing.label(title)),
        about="<br>".join(dict.fromkeys(_about(reading) for reading in shown)),
        payload=script_json({"packed": base64.b64encode(block).decode()}),
        module=module,
    )


def _about(reading: dict[str, Any]) -> str:
    parts = []
    if reading["model"]:
        parts.append(f"model {tokens.html(reading['model'])}")
    if reading["fingerprint"]:
        parts.append(f"fingerprint <code>{tokens.html(reading['fingerprint'])}</code>")
    sent = min((prompt["ranks"] for prompt in reading["prompts"]), default=0)
    if sent < reading["ranks"]:
        parts.append(f"the top {sent} of the {reading['ranks']} ranks that {tokens.html(reading['reader'])} kept")
    return ", ".join(parts) or "model not recorded"
