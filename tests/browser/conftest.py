"""Real browsers for tests: a Chromium, and a JupyterLab with a kernel of this Python.

    def test_something(lab):
        page = lab.open(["import workbench", "1 + 1"])    # a notebook of these cells, in a tab of its own
        page.run()                                        # all cells, waiting for the kernel
        page.cell(1).locator("pre")                       # playwright locators
        page.reload(kernel=False)                         # saved, kernel gone, opened again
        page.shot("name")                                 # out/browser/name.png

``page_of(notebook)`` opens a notebook that was made elsewhere.  Where no browser can be had, these tests are skipped,
and fail where the environment says CI=true.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import browser

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "out" / "browser"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--font-render-hinting=none",
]  # fmt: skip
TOKEN = "tests"
WAIT = 60_000  # milliseconds; a busy machine starts a kernel in tens of seconds


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


def without(what: str) -> Any:
    """Skip, or fail where the tests are those that decide."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; with CI=true that is a failure")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, as playwright's Browser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        without("playwright is not installed")
    path = browser()
    if path is None:
        without("no Chrome or Chromium to open pages with")
    with sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        except Error as error:
            without(f"{path} does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


class Watched:
    """What a page did that a page must not do, from its first moment on."""

    def __init__(self, page: Any, home: str) -> None:
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.outside: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)
        page.on("dialog", self._dialog)
        page.route("**/*", lambda route: self._route(route, home))

    def _said(self, said: Any) -> None:
        if said.type == "error" and not said.text.startswith("Failed to load resource"):  # the server logs these
            self.errors.append(said.text)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _route(self, route: Any, home: str) -> None:
        url = route.request.url
        if url.startswith((home, "data:", "blob:", "about:")):
            route.continue_()
        else:  # nothing may come from elsewhere
            self.outside.append(url)
            route.abort()


@pytest.fixture
def file_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """file_page(path, width=, height=, dark=, at=): a file in a browser without network; .watched says what it did."""
    contexts = []
    SHOTS.mkdir(parents=True, exist_ok=True)

    def opened(path: Path, width: int = 1400, height: int = 900, dark: bool = False, at: str = "") -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.watched = Watched(page, "file:")
        page.goto(path.as_uri() + (f"#{at}" if at else ""))
        return page

    yield opened
    for context in contexts:
        context.close()


# ---------------------------------------------------------------- JupyterLab


class Lab:
    """A running JupyterLab, and notebooks opened in it."""

    def __init__(self, folder: Path, url: str, browser: Any) -> None:
        self.folder, self.url, self.browser = folder, url, browser
        self.pages: list[Notebook] = []

    def open(self, cells: list[str] | Any, name: str = "test", **options: Any) -> Notebook:
        """A notebook (a list of code cells, or one of nbformat's) in JupyterLab.

        width, height, dark: of the window and of JupyterLab's theme.  save_widgets: whether JupyterLab keeps the state
        of widgets in the notebook (a setting of the user's, off at first).
        """
        import nbformat

        notebook = cells
        if isinstance(cells, list):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.folder / f"{name}-{len(self.pages)}.ipynb"
        nbformat.write(notebook, path)
        self.pages.append(page := Notebook(self, path, **options))
        return page

    def ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stop_kernels(self) -> None:
        for session in self.ask("GET", "sessions"):
            self.ask("DELETE", f"sessions/{session['id']}")

    def setting(self, plugin: str, **values: Any) -> None:
        """JupyterLab's own settings, for windows that are opened after; plugin as "@jupyterlab/name:part"."""
        package, _, part = plugin.partition(":")
        place = self.folder / "settings" / package
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{part}.jupyterlab-settings").write_text(json.dumps(values))


class Notebook:
    """One notebook in a browser window.  ``page`` is playwright's Page; ``watched`` what it did."""

    def __init__(
        self,
        lab: Lab,
        path: Path,
        width: int = 1400,
        height: int = 1000,
        dark: bool = False,
        save_widgets: bool = False,
    ) -> None:
        self.lab, self.path = lab, path
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        lab.setting("@jupyterlab/apputils-extension:themes", theme=theme)
        lab.setting("@jupyterlab/apputils-extension:notification", fetchNews="false", checkForUpdates=False)
        lab.setting("@jupyter-widgets/jupyterlab-manager:plugin", saveState=save_widgets)
        self.context = lab.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.watched = Watched(self.page, lab.url)
        self._goto()

    def _goto(self) -> None:
        self.page.goto(f"{self.lab.url}/doc/tree/{self.path.name}?reset&token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function("() => window.jupyterapp && document.querySelector('#jupyterlab-splash') === null")

    def command(self, name: str) -> None:
        self.page.evaluate("(name) => window.jupyterapp.commands.execute(name)", name)

    def run(self, limit: float = WAIT / 1000) -> Notebook:
        """Run all cells, and wait `limit` seconds for the last.  AssertionError with the traceback where one fails."""
        self.page.wait_for_function(
            "() => { const s = window.jupyterapp.shell.currentWidget?.sessionContext;"
            " return s && s.session?.kernel?.status === 'idle'; }"
        )
        self.command("notebook:run-all-cells")
        self.idle(limit)
        broken = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
        assert broken.count() == 0, broken.first.inner_text()
        return self

    def idle(self, limit: float = WAIT / 1000) -> None:
        """Until every code cell has run and the kernel waits, or one has failed."""
        self.page.wait_for_function(
            """() => {
              const w = window.jupyterapp.shell.currentWidget, cells = w.content.model.cells;
              if (w.sessionContext.session?.kernel?.status !== 'idle') return false;
              for (let i = 0; i < cells.length; i++) {  // after a failure the cells behind it never run
                const cell = cells.get(i);
                for (let k = 0; k < (cell.outputs?.length ?? 0); k++)
                  if (cell.outputs.get(k).type === 'error') return true;
              }
              for (let i = 0; i < cells.length; i++) {
                const cell = cells.get(i);
                if (cell.type === 'code' && cell.sharedModel.getSource() && cell.executionState === 'running')
                  return false;
                if (cell.type === 'code' && cell.sharedModel.getSource() && cell.executionCount === null) return false;
              }
              return true;
            }""",
            timeout=1000 * limit,
        )

    def cell(self, index: int) -> Any:
        """The index-th cell, in sight."""
        self.page.evaluate(
            "(i) => window.jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", index
        )  # cells out of sight are not in the document
        found = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")
        found.wait_for()
        return found

    def python(self, code: str) -> str:
        """What a line of Python prints in the notebook's kernel."""
        return self.page.evaluate(
            """async (code) => {
              const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
              const future = kernel.requestExecute({ code, store_history: false });
              let text = "";
              future.onIOPub = (m) => {
                if (m.header.msg_type === "stream") text += m.content.text;
                if (m.header.msg_type === "error") text += m.content.traceback.join("\\n");
              };
              await future.done;
              return text;
            }""",
            code,
        ).strip()

    def save(self) -> Any:
        """The notebook as JupyterLab saves it."""
        import nbformat

        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
        return nbformat.read(self.path, 4)

    def reload(self, kernel: bool = False) -> Notebook:
        """Save, and open it again; without the kernel that made its outputs unless `kernel`."""
        self.saved = self.save()
        if not kernel:
            self.lab.stop_kernels()
        self._goto()
        return self

    def shot(self, name: str, full: bool = False) -> Path:
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=full)
        return path

    def close(self) -> None:
        self.context.close()


@pytest.fixture(scope="session")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab in a temporary folder, with its own settings; the kernel is this Python."""
    if subprocess.run([sys.executable, "-m", "jupyterlab", "--version"], capture_output=True).returncode:
        without("jupyterlab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    for name in ("runtime", "config", "data", "settings", "workspaces"):
        (folder / name).mkdir()
    environment = {
        **os.environ, "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"), "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_NO_CONFIG": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "workbench"), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port=0", f"--ServerApp.token={TOKEN}",
        "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser",
        f"--LabApp.user_settings_dir={folder / 'settings'}", f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        "--LabApp.extension_manager=readonly", "--ServerApp.log_level=WARN", "--ServerApp.open_browser=False",
        "--ServerApp.disable_check_xsrf=True",
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Lab(folder, _address(process, folder), chromium)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    end = time.monotonic() + WAIT / 1000
    while time.monotonic() < end and process.poll() is None:
        for file in (folder / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError, KeyError):
                return json.loads(file.read_text())["url"].rstrip("/").replace("localhost", "127.0.0.1")
        time.sleep(0.2)
    without("JupyterLab does not start: " + (folder / "server.log").read_text()[-2000:])
    raise AssertionError


@pytest.fixture
def lab(server: Lab) -> Iterator[Lab]:
    """JupyterLab; windows and kernels that a test opens are closed after it."""
    yield server
    for page in server.pages:
        with contextlib.suppress(Exception):  # the window may be gone with a browser that crashed
            page.close()
    server.stop_kernels()


@pytest.fixture
def page_of(lab: Lab) -> Callable[..., Notebook]:
    """page_of(notebook, ...): the notebook in JupyterLab, its cells run."""
    return lambda notebook, **options: lab.open(notebook, **options).run()
