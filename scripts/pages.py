"""What the documentation takes from elsewhere while it is built (hooks of mkdocs): cards, measured levels, notebooks.

Nothing is copied by hand and nothing is executed.  A notebook's page shows its cells and the outputs that were saved
with them; where there are no notebooks, there are no such pages.
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

CARDS, LIST = "<!-- cards -->", "<!-- notebooks -->"
LEVELS = re.compile(r"<!-- calibration (\w+) -->")
SCRIPT = re.compile(r"<(script|iframe|object|embed)\b.*?(</\1\s*>|\Z)|<link\b[^>]*>", re.DOTALL | re.IGNORECASE)
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)")
FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*?\b(?:src|href|data|srcset)=["']?(?:https?:)?//[^>]*>"""
    r"""|(?:@import\s+(?:url\()?|\burl\()["']?(?:https?:)?//[^)"']*""",
    re.IGNORECASE,
)
"""What a browser would take from the network to show a page.  Links that a reader may click are none of it."""
SHOWN = re.compile(r"<code\b.*?</code>", re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FORMS = ("image/png", "image/jpeg", "image/svg+xml", "text/html", "text/markdown", "text/plain")
"""Forms of an output, the best first: a figure is saved as a picture, and a widget with a table beside it."""

TABLES = (
    "<style>table{border-collapse:collapse;font-size:.65rem}td,th{padding:.1rem .35rem;text-align:right;border:0}"
    "thead th{border-bottom:1px solid}</style>"
)
"""For tables without styles of their own (pandas)."""


def on_config(config: Any) -> Any:
    """The notebooks join the navigation."""
    found = [{title_of(path).partition(":")[0]: f"notebooks/{path.stem}.md"} for path in notebooks(config)]
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] += found
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """A page for each notebook, its pictures, and the notebook itself."""
    for path in notebooks(config):
        text, pictures = as_page(path)
        made = {f"{path.stem}.md": text, path.name: path.read_bytes(), **pictures}
        for name, content in made.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The cards and the list of notebooks, where a page asks for them."""
    if CARDS in markdown:
        markdown = markdown.replace(CARDS, "\n\n".join(cards(root(config))))
    if LIST in markdown:
        lines = [f"* [{title_of(path)}](notebooks/{path.stem}.md)" for path in notebooks(config)]
        markdown = markdown.replace(LIST, "\n".join(lines) or "There are no notebooks in this checkout.")
    return LEVELS.sub(lambda found: levels(root(config), found[1]), markdown)


def on_post_build(*, config: Any) -> None:
    """Refuses a site that would fetch anything to be shown."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            text = path.read_text("utf-8")
            if found := FETCHED.search(SHOWN.sub("", text)):
                raise PluginError(
                    f"{path} would be shown with {found[0][:120]!r}, which is on the network. Bring it along."
                )


def root(config: Any) -> Path:
    """The folder of mkdocs.yml."""
    return Path(config.config_file_path).parent


def cards(folder: Path) -> list[str]:
    """The organisms' cards, one heading lower: the page has the first."""
    found = sorted((folder / "workbench" / "organisms").glob("*/CARD.md"))
    return [re.sub(r"^#", "##", path.read_text("utf-8"), flags=re.MULTILINE) for path in found]


def levels(folder: Path, family: str) -> str:
    """The rows of the calibration of one family of numbers, as a table."""
    rows = json.loads((folder / "benchmarks" / "results" / "calibration.json").read_text("utf-8"))
    lines = ["| case | number | kind | claimed | rate | 95 % | trials | 0.1.0 |", "|---|---|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["name"].startswith(f"{family}.")):
        claimed = "" if row["nominal"] is None else f"{row['nominal']:g}"
        before = "" if row["before"] is None else f"{row['before']:.3g}"
        said = f"; *{row['labelled']}*" if row["labelled"] else ""
        lines.append(
            f"| {row['what']}{said} | `{row['where']}` | {row['kind']} | {claimed} | {row['rate']:.3f} | "
            f"{row['low']:.3f} to {row['high']:.3f} | {row['trials']} | {before} |"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- notebooks


def notebooks(config: Any) -> list[Path]:
    """The notebooks of the checkout, by name; none where there is no such folder."""
    return sorted((root(config) / "notebooks").glob("*.ipynb"))


def title_of(path: Path) -> str:
    """The first heading, or the file's name."""
    for cell in _cells(path):
        for line in _text(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
            if line.startswith("# "):
                return line[2:].strip().replace("`", "")
    return path.stem


def as_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    parts, pictures = [], {}
    if not any(_text(c["source"]).lstrip().startswith("# ") for c in _cells(path) if c["cell_type"] == "markdown"):
        parts.append(f"# {path.stem}")
    for n, cell in enumerate(_cells(path)):
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(LINK.sub(_relinked, source))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced(source, "python"))
            for k, output in enumerate(cell.get("outputs", [])):
                parts += _shown(output, f"{path.stem}-{n}-{k}", pictures)
    parts.append(f"[The notebook itself]({path.name}){{ download }}")
    return "\n\n".join(parts) + "\n", pictures


def _relinked(link: re.Match[str]) -> str:
    """A link between files of the checkout as one between pages; where the file has no page, its text alone."""
    text, target = link.groups()
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    if card := re.fullmatch(r"\.\./workbench/organisms/(\w+)/CARD\.md", target):
        return f"[{text}](../organisms.md#organism{card[1]})"
    if page := re.fullmatch(r"(\w+)\.ipynb|\.\./docs/(\S+\.md)", target):
        return f"[{text}]({f'{page[1]}.md' if page[1] else f'../{page[2]}'})"
    return text


def _shown(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> list[str]:
    """One output as blocks of Markdown.  Progress bars, which are on stderr, are left out."""
    if output["output_type"] == "stream":
        text = ANSI.sub("", _text(output["text"])).rstrip()
        return [_fenced(text, "text")] if output["name"] == "stdout" and text else []
    if output["output_type"] == "error":
        return [_fenced(ANSI.sub("", "\n".join(output["traceback"])), "text")]
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data:
        return []  # a progress bar
    form = next((f for f in FORMS if f in data), None)
    if form is None:
        return []
    content = _text(data[form])
    if form.startswith("image/"):
        file = f"{name}.{form.removeprefix('image/').removesuffix('+xml')}"
        pictures[file] = content.encode() if form == "image/svg+xml" else base64.b64decode(content)
        width = output.get("metadata", {}).get(form, {}).get("width")
        size = f' width="{int(width)}"' if width else ""
        told = html.escape(_text(data.get("text/plain", "a picture")).splitlines()[0])
        return [f'<div class="lw-output"><img src="{file}" alt="{told}"{size}></div>']
    if form == "text/html":
        # Scripts and frames would bring the network, or nothing: what is saved is read, not run.  In a shadow of its
        # own, since an output's styles and the site's would each change the other.
        inner = _one_block(SCRIPT.sub("", content))
        return [f'<div class="lw-output"><template shadowrootmode="open">{TABLES}{inner}</template></div>']
    return [content] if form == "text/markdown" else [_fenced(ANSI.sub("", content), "text")]


def _one_block(content: str) -> str:
    """HTML that Markdown takes for one block: it would end at an empty line."""
    return re.sub(r"\n\s*\n", "\n", content.strip())


def _fenced(text: str, language: str) -> str:
    longest = max((len(x) for x in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["cells"]


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
