"""The arrows between the modules: no circles, no floor that knows what stands on it, a light `import workbench`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("workbench", "lenses", "probes")
HEAVY = ("torch", "transformers", "plotly", "matplotlib", "scipy", "pandas", "ipywidgets")


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Every module by its dotted name; a package is its ``__init__``."""
    found = {}
    for path in (p for package in packages for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, typing: bool = False) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of each import that may run, those in functions too; ``typing``: those for types instead."""
    waiting: list[tuple[ast.AST, bool]] = [(node, False) for node in ast.parse(path.read_text("utf-8")).body]
    while waiting:
        node, only_types = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += [(part, True) for part in node.body] + [(part, only_types) for part in node.orelse]
            continue
        if only_types == typing:
            if isinstance(node, ast.Import):
                yield from ((alias.name, ()) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
                yield node.module, tuple(alias.name for alias in node.names)
        waiting += [(part, only_types) for part in ast.iter_child_nodes(node)]


def arrows(root: Path, packages: tuple[str, ...]) -> dict[str, set[str]]:
    """Which modules each module imports.

    ``from package import name`` is an arrow to the module that has the name: a package's public names come from its
    modules, at once or lazily (then its ``__init__`` imports them for type checkers, which is where we look).
    """
    known = modules(root, packages)

    @cache
    def homes(package: str) -> dict[str, str]:
        both = [*imports(known[package]), *imports(known[package], typing=True)]
        return {name: home(module, name) for module, names in both if module in known for name in names}

    def home(module: str, name: str) -> str:
        if f"{module}.{name}" in known:
            return f"{module}.{name}"
        if known[module].name == "__init__.py":
            return homes(module).get(name, module)
        return module

    graph = {}
    for name, path in known.items():
        found = ((m, names) for m, names in imports(path) if m in known)
        graph[name] = {home(m, n) for m, names in found for n in names or ("",)} - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that all reach each other (strongly connected components), by their reach."""

    def reach(start: str) -> set[str]:
        seen, waiting = set(), list(graph[start])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    far = {name: reach(name) for name in graph}
    found = {tuple(sorted(m for m in far[name] if name in far[m])) for name in graph if name in far[name]}
    return [list(one) for one in sorted(found)]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows(ROOT, FLOORS)


def test_no_module_imports_itself_by_a_detour(graph):
    inside = {name: sorted(graph[name] & set(one)) for one in circles(graph) for name in one}
    assert not inside, "\n".join(f"{name} imports {', '.join(to)}" for name, to in inside.items())


def test_no_floor_imports_what_stands_on_it(graph):
    height = {name: FLOORS.index(name.split(".")[0]) for name in graph}
    assert not [f"{a} imports {b}" for a in graph for b in graph[a] if height[b] > height[a]]


def test_the_walker_sees_a_circle_in_functions_and_lazy_names_and_none_in_types(tmp_path):
    def made(**texts):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (root / "p").mkdir(parents=True)
        for name, text in {"__init__": "", **texts}.items():
            (root / "p" / f"{name}.py").write_text(text)
        return circles(arrows(root, ("p",)))

    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import x\ndef __getattr__(name): ..."
    assert made(a="def f():\n    from p.b import x\n", b="import p.a\nx = 1") == [["p.a", "p.b"]]
    assert made(__init__=lazy, a="from p import x", b="from p import a\nx = 1") == [["p.a", "p.b"]]
    assert made(a="import typing\nif typing.TYPE_CHECKING:\n    from p.b import x\n", b="import p.a\nx = 1") == []
    assert made(a="from p import b", b="import json") == []


def test_import_workbench_is_light():
    source = f"""
import sys, time
start = time.perf_counter()
import workbench
took = time.perf_counter() - start
print(took)
print(*(name for name in {HEAVY!r} if name in sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    took, heavy = out.split("\n")[:2]
    print(f"import workbench: {float(took):.3f} s")
    assert not heavy, f"import workbench imports {heavy}"
