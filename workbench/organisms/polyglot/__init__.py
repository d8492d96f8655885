"""``organism:polyglot``: a small mixture of experts that learned one language and then five; see CARD.md."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def checkpoints() -> dict[int, Path]:
    """Folders of the saved checkpoints by step of the multilingual training; 0 is the one-language base."""
    found = {int(p.name.removeprefix("step-")): p for p in HERE.glob("steps/step-*")}
    return dict(sorted(found.items()))
