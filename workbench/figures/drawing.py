"""The browser that draws: one headless Chromium for all figures of a process, started with the first one.

    drawn = draw(figure.to_plotly_json(), 312, 200)      svg, and where every text, axis and legend is
    pdf(svg, 312, 200)  png(svg, 312, 200, scale=2)      files of it, text kept as text
    missing("日本")                                       characters that no font here has

Kaleido starts the browser and keeps the line to it; what runs in its page is drawing.js and the plotly.js that is part
of the plotly package.  Nothing is taken from the network.  A browser without work closes after a few minutes.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly
from plotly.utils import PlotlyJSONEncoder

from workbench.errors import WorkbenchError
from workbench.figures import theme

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "chrome-headless-shell", "microsoft-edge", "brave-browser",
)  # fmt: skip
MAC_BROWSERS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
IDLE = 300.0  # seconds without work after which the browser is closed
PATIENCE = 120.0  # seconds for one step


class ExportError(WorkbenchError):
    """A figure that cannot be written in the form that was asked for."""


@dataclass(frozen=True)
class Drawn:
    """A figure as svg, and where things are on it: boxes are (x, y, width, height) in CSS pixels.

    texts      {"text", "box", "angle" (degrees), "size", "kind", "axis"}: kind is title, tick, colorbar title,
               annotation, table, label, ...
    axes       {"xaxis": {"offset", "length", "names"}, ...}; names: how many there are along an axis of names
    size       the margins l, r, t, b that plotly took
    legend     its box, or None; colorbars, table: boxes of each colour bar, of each cell
    """

    svg: str
    texts: list[dict[str, Any]]
    axes: dict[str, dict[str, float]]
    size: dict[str, float]
    legend: list[float] | None
    colorbars: list[list[float]]
    table: list[list[float]]


def draw(figure: dict[str, Any], width: float, height: float) -> Drawn:
    """Draw a figure (plotly's JSON) at a size in CSS pixels.  ExportError where that cannot be done."""
    spec = json.dumps(figure, cls=PlotlyJSONEncoder)
    return Drawn(**_do("ask", f"workbench.draw({spec}, {width}, {height})"))


def pdf(svg: str, width: float, height: float) -> bytes:
    """One page exactly as large as the svg (CSS pixels: 1/96 inch)."""
    return _on_page(_do("pdf", svg, width, height), width, height)


def png(svg: str, width: float, height: float, scale: float = 1.0) -> bytes:
    return _do("png", svg, width, height, scale)


def missing(characters: Iterable[str], family: str = theme.FONT) -> set[str]:
    """Those characters that no installed font has, so that a box would be drawn for them."""
    asked = {c for c in characters if c > "\x7f"}
    known = _tried(_fresh).known if asked else {}
    if new := sorted(c for c in asked if (family, c) not in known):
        lost = set(_do("ask", f"workbench.missing({json.dumps(new)}, {json.dumps(family)})"))
        known.update({(family, c): c in lost for c in new})
    return {c for c in asked if known[family, c]}


def faces(text: str, family: str, weight: str = "400", style: str = "normal") -> list[str]:
    """PostScript names of the installed fonts that the browser takes for a text, the font of plain letters first."""
    return _do("faces", text, family, weight, style)


def font(name: str) -> bytes | None:
    """The file of an installed font by its PostScript name; a collection holds more than that one."""
    known = _tried(_fresh).fonts
    if name not in known:
        known[name] = _listed(name) or base64.b64decode(_do("ask", f"workbench.font({json.dumps(name)})") or "")
    return known[name] or None


def _listed(name: str) -> bytes | None:
    """The same by fontconfig, where there is one: the browser takes seconds to list its fonts."""
    if not (program := shutil.which("fc-list")):
        return None
    found = subprocess.run([program, f":postscriptname={name}", "file"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.partition(":")[0].strip())
    return path.read_bytes() if found.stdout and path.is_file() else None


def close() -> None:
    """End the browser now; the next figure starts another."""
    global _current
    with _starting:
        if _current is not None and _current.pid == os.getpid():
            _current.end()
        _current = None


def browser() -> str | None:
    """The path of a Chrome or Chromium: BROWSER_PATH, then PATH, then where installers leave it."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if os.access(named, os.X_OK) else None
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    if sys.platform == "darwin":
        for place in MAC_BROWSERS:
            if os.access(place, os.X_OK):
                return place
    try:  # the copy that plotly_get_chrome downloads, and Windows' registry
        from choreographer.browsers.chromium import Chromium

        found = Chromium.find_browser(skip_local=False)
    except Exception:  # a search; not finding one is an answer
        return None
    return str(found) if found and os.access(found, os.X_OK) else None


# ---------------------------------------------------------------- the page


class _Html:
    """The page, as kaleido asks for it."""

    def generate_index(self) -> str:
        script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        own = Path(__file__).with_name("drawing.js").read_text(encoding="utf-8")
        return (
            f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>figure</title>'
            f'<script charset="utf-8" src="{script.as_uri()}"></script><script>{own}</script>'
            "<style>body{margin:0}</style></head><body></body></html>"
        )


class _Page:
    """A browser with one page, driven from a thread of its own; its methods wait and can be called from anywhere."""

    def __init__(self, path: str) -> None:
        self.path, self.pid = path, os.getpid()
        self.known: dict[tuple[str, str], bool] = {}
        self.fonts: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._turn = asyncio.Lock()  # a step that was interrupted may still be running when the next one comes
        self._idle: asyncio.TimerHandle | None = None
        self.open = True
        threading.Thread(target=self._live, name="workbench drawing", daemon=True).start()
        self._wait(self._start())

    def ask(self, expression: str) -> Any:
        return self._wait(self._evaluate(expression))

    def pdf(self, svg: str, width: float, height: float) -> bytes:
        async def steps() -> bytes:
            await self._evaluate(f"workbench.show({json.dumps(svg)})")
            # A little more than the figure, so that rounding to the browser's units never makes a second page.
            return await self._data(
                "Page.printToPDF", printBackground=True, generateTaggedPDF=False, pageRanges="1",
                paperWidth=(math.ceil(width) + 2) / 96, paperHeight=(math.ceil(height) + 2) / 96,
                marginTop=0, marginBottom=0, marginLeft=0, marginRight=0,
            )  # fmt: skip

        return self._wait(steps())

    def png(self, svg: str, width: float, height: float, scale: float) -> bytes:
        async def steps() -> bytes:
            await self._evaluate(f"workbench.show({json.dumps(svg)})")
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
            return await self._data("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)

        return self._wait(steps())

    def faces(self, text: str, family: str, weight: str, style: str) -> list[str]:
        async def used(shown: str) -> list[str]:
            css = f"font-family:{family};font-weight:{weight};font-style:{style}"
            await self._evaluate(
                f"document.body.innerHTML='<p></p>';document.querySelector('p').style.cssText={json.dumps(css)};"
                f"document.querySelector('p').textContent={json.dumps(shown)};"
                "document.body.offsetHeight"  # fonts are known once it is laid out
            )
            root = (await self._command("DOM.getDocument"))["root"]["nodeId"]
            node = (await self._command("DOM.querySelector", nodeId=root, selector="p"))["nodeId"]
            found = (await self._command("CSS.getPlatformFontsForNode", nodeId=node))["fonts"]
            return [f["postScriptName"] for f in sorted(found, key=lambda f: -f["glyphCount"])]

        async def steps() -> list[str]:
            return list(dict.fromkeys([*await used("A"), *await used(text)]))

        return self._wait(steps())

    def end(self) -> None:
        if self.open:
            self.open = False
            try:
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(PATIENCE)
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)

    # What runs in the thread.

    def _live(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._settle())
        self._loop.close()

    async def _settle(self) -> None:
        """End what a dead browser left waiting."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _start(self) -> None:
        import kaleido

        self._kaleido = kaleido.Kaleido(path=self.path, page_generator=_Html())  # type: ignore[arg-type]
        await self._kaleido.open()
        self._tab = next(iter(self._kaleido.tabs.values()))
        for domain in ("DOM", "CSS"):
            await self._command(f"{domain}.enable")
        await self._kaleido.send_command("Browser.grantPermissions", params={"permissions": ["localFonts"]})

    async def _stop(self) -> None:
        await self._kaleido.close()

    async def _command(self, name: str, **params: Any) -> dict[str, Any]:
        answer = await self._tab.send_command(name, params=params)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error'].get('message', answer['error'])}")
        return answer["result"]

    async def _data(self, name: str, **params: Any) -> bytes:
        return base64.b64decode((await self._command(name, **params))["data"])

    async def _evaluate(self, expression: str) -> Any:
        answer = await self._command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if wrong := answer.get("exceptionDetails"):
            told = wrong.get("exception", {}).get("description") or wrong.get("text", "")
            raise DrawingError(str(told).splitlines()[0])
        return answer["result"].get("value")

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def alone() -> Any:
            async with self._turn:
                if self._idle:
                    self._idle.cancel()
                try:
                    return await asyncio.wait_for(work, PATIENCE)
                finally:
                    self._idle = self._loop.call_later(IDLE, lambda: threading.Thread(target=close).start())

        return asyncio.run_coroutine_threadsafe(alone(), self._loop).result()


class DrawingError(RuntimeError):
    """What plotly.js said of a figure that it cannot draw."""


_current: _Page | None = None
_starting = threading.RLock()


def _do(step: str, *given: Any) -> Any:
    """A step of the current page; one that fails because the browser is gone is done once more in a new one."""
    return _tried(lambda: getattr(_fresh(), step)(*given))


def _fresh() -> _Page:
    """The page of this process and of the browser that is named now."""
    global _current
    path = browser()
    if path is None:
        named = os.environ.get("BROWSER_PATH")
        raise ExportError(
            f"No Chrome or Chromium was found{f' (BROWSER_PATH={named} is no program)' if named else ''}; "
            "figures are drawn by one. Install it (`apt install chromium`, or `plotly_get_chrome` "
            "without root rights), or set BROWSER_PATH to it. Or save the figure as .html, or save the "
            "reading and draw it on another machine: workbench.open(file).figure().save(...)."
        )
    with _starting:
        if _current is None or _current.pid != os.getpid() or _current.path != path or not _current.open:
            close()
            _current = _Page(path)
            atexit.unregister(close)
            atexit.register(close)  # before what the browser itself leaves to the end
        return _current


def _tried(step: Callable[[], Any]) -> Any:
    try:
        try:
            return step()
        except (ExportError, DrawingError):
            raise
        except Exception:  # the browser may have died; kaleido and choreographer raise many kinds
            _drop()
            return step()
    except ExportError:
        raise
    except ImportError as error:
        raise ExportError(
            f'Drawing figures needs the package "kaleido" (1.0 or newer): {error}. Install it with: '
            "pip install kaleido. Or save the figure as .html."
        ) from error
    except DrawingError as error:
        raise ExportError(f"plotly.js could not draw this figure: {error}. Save it as .html to look at it.") from error
    except Exception as error:
        _drop()
        raise ExportError(
            f"The browser {browser()} could not draw the figure ({type(error).__name__}: {error}). "
            f"Check that `{browser()} --headless --no-sandbox --version` works, set BROWSER_PATH to another one, "
            "or save as .html."
        ) from error


def _drop() -> None:
    """Forget a browser that no longer answers."""
    global _current
    lost, _current = _current, None
    if lost is not None:
        threading.Thread(target=lost.end, daemon=True).start()  # which may wait long for what is gone


# ---------------------------------------------------------------- pdf


def _on_page(content: bytes, width: float, height: float) -> bytes:
    """The page cut to exactly this size in CSS pixels: browsers print pages of whole units."""
    box = re.search(rb"/MediaBox\s*\[([^\]]*)\]", content)
    table = re.search(rb"\nxref\s+0 (\d+)\s*\n", content)
    if box is None or table is None or content.count(b"/MediaBox") != 1:
        raise ExportError(
            "The browser wrote a PDF in a form that is not known here, so its page cannot be cut to the figure. Use "
            "another Chromium, or save .svg."
        )
    top = float(box[1].split()[3])
    wide, tall = width * 72 / 96, height * 72 / 96
    sides = " ".join(f"{x:.4f}".rstrip("0").rstrip(".") for x in (0, top - tall, wide, top))
    new = f"/MediaBox [{sides}]".encode()
    longer = len(new) - (box.end() - box.start())

    def moved(entry: re.Match[bytes]) -> bytes:
        offset = int(entry[1])
        return b"%010d" % (offset + longer * (offset > box.start())) + entry[2]

    head, tail = content[: table.end()], content[table.end() :]
    count = int(table[1])
    entries = re.sub(rb"(\d{10})( \d{5} [fn])", moved, tail[: 20 * count])
    rest = re.sub(rb"startxref\s+(\d+)", lambda m: b"startxref\n%d" % (int(m[1]) + longer), tail[20 * count :])
    return head[: box.start()] + new + head[box.end() :] + entries + rest
