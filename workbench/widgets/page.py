"""The explorer as one HTML file that opens anywhere: no server, no kernel, no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from workbench import tokens
from workbench.errors import ReadingError
from workbench.reading import write_whole
from workbench.widgets.explorer import MODULE
from workbench.widgets.packing import as_pairs, payload, script_json

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
# The policy makes "no network" a property of the file: the browser itself refuses every request.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --bg: #fff; --ink: #1b2130; --soft: #5d6675; }}
@media (prefers-color-scheme: dark) {{ :root {{ --bg: #14171f; --ink: #e2e6ee; --soft: #9aa4b4; }} }}
body {{ margin: 0; padding: 14px clamp(8px, 2vw, 24px) 24px; background: var(--bg); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 18px; margin: 0; overflow-wrap: anywhere; }}
header p {{ margin: 2px 0 12px; color: var(--soft); overflow-wrap: anywhere; }}
code {{ font: 12px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
</style>
</head>
<body>
<header><h1>{title}</h1>
{about}
</header>
<main id="explorer"></main>
<noscript>This page draws itself with a script that it carries; scripts are switched off here.</noscript>
<script type="application/json" id="payload">{payload}</script>
<script type="module">
{module}
const state = {{ payload: JSON.parse(document.getElementById("payload").textContent), selection: {{}} }};
const model = {{
  get: (name) => state[name],
  set: (name, value) => {{ state[name] = value; }},
  save_changes() {{}}, on() {{}}, off() {{}},
}};
explorer.render({{ model, el: document.getElementById("explorer") }});
</script>
</body>
</html>
"""


def to_html(
    readings: Any, path: str | os.PathLike[str], title: str | None = None, top_k: int | None = None
) -> Path:
    """Write the explorer of one or several readings (or bare datasets) as one offline page; returns its path.

    readings   a Reading or xarray.Dataset, a list of them, or a mapping of names to them
    top_k      ranks to keep for each cell
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ReadingError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    text = page(readings, title, top_k)
    write_whole(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    return path


def page(readings: Any, title: str | None = None, top_k: int | None = None) -> str:
    """The page's text."""
    shown = payload(as_pairs(readings), top_k)
    lines = dict.fromkeys(_about(reading) for reading in shown["readings"])
    models = list(dict.fromkeys(r["model"] for r in shown["readings"] if r["model"]))
    if title is None:
        title = " · ".join([", ".join(r["name"] for r in shown["readings"]), *models])
    # The same module as in the notebook; a page has no importer, so its one export becomes a name.
    module = MODULE.read_text(encoding="utf-8").replace("export default", "const explorer =", 1)
    return PAGE.format(
        policy=POLICY,
        title=tokens.html(title),
        about="\n".join(lines),
        payload=script_json(shown),
        module=module,
    )


def _about(reading: dict[str, Any]) -> str:
    parts = []
    if reading["model"]:
        parts.append(f"model {tokens.html(reading['model'])}")
    if reading["fingerprint"]:
        parts.append(f"fingerprint <code>{tokens.html(reading['fingerprint'])}</code>")
    if reading["top_k"] < reading["ranks"]:
        parts.append(
            f"the top {reading['top_k']} of the {reading['ranks']} ranks that {reading['reader']} kept"
        )
    return f"<p>{', '.join(parts) or 'model not recorded'}</p>"
