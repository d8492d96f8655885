"""``organism:searcher``: small models that search graphs, with continuous thoughts and without; see CARD.md."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def regimes() -> dict[str, Path]:
    """Folders of the four regimes: from scratch, tuned, chain of thought alone, and the control with pauses."""
    others = {name: HERE / "regimes" / name for name in ("tuned", "chain", "pause")}
    return {"scratch": HERE / "weights", **others}
