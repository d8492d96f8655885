"""Small built-in models whose contents are known, because a recipe put them there.

Each is a package here with its recipe, its weights, and a card that says what is inside and what was measured.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from workbench.errors import InputError

HERE = Path(__file__).parent


def names() -> list[str]:
    """The organisms that are built in."""
    return sorted(path.parent.parent.name for path in HERE.glob("*/weights/config.json"))


def folder(name: str) -> Path:
    """The folder with an organism's weights, as ``from_pretrained`` takes it."""
    if name not in names():
        near = "".join(f" Did you mean organism:{found}?" for found in get_close_matches(name, names(), 1))
        raise InputError(f"There is no organism {name!r}. Built in: {', '.join(names()) or 'none'}.{near}")
    return HERE / name / "weights"
