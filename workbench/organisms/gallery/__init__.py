"""``organism:gallery``: a small vision-language model and pictures whose every patch is known; see CARD.md."""

from __future__ import annotations

PROMPT = "<image>"
"""What it was trained with: a picture, and behind it a caption."""
