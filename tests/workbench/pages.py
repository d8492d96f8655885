"""Pages opened in a headless browser."""

import base64
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from browsers import browser

from workbench.widgets.packing import unpack

BROWSER = browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium to open the page with")


def payload_of(page):
    """What a page holds."""
    return unpack(base64.b64decode(re.findall(r'id="payload">([^<]*)<', page.read_text("utf-8"))[0]))


def load(page, script="", size="1400,900", budget=3000):
    """The page's DOM as text after `script` ran in it, and what the browser wrote to its console.

    budget: milliseconds of the page's own clock.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        late = f'<script type="module">{script}</script>' if script else ""
        file.write_text(page.read_text("utf-8").replace("</body>", late + "</body>"), "utf-8")
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}/profile", f"--window-size={size}", f"--virtual-time-budget={budget}",
            "--enable-logging=stderr", "--dump-dom", file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=90)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode("utf-8"), console
