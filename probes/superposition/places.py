"""What the places of a reading of thoughts are: thoughts, and the tokens fed behind the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench import tokens

if TYPE_CHECKING:
    import xarray as xr


def places_of(data: xr.Dataset, prompt: int) -> list[tuple[int | None, str]]:
    """(thoughts so far, token) of every place of a prompt: a place behind the last thought is no thought more.

    The number is None where nothing was thought (a reading that is not of thoughts), the token "" at thoughts.
    """
    from workbench.widgets.base import clipped

    n = data.sizes["position"]
    if "input_token" not in data:
        return [(None, str(p)) for p in data["position"].values.tolist()]
    texts = [str(t) for t in data["input_token"].values[prompt]]
    no_token = data["input_id"].values[prompt] == -1 if "input_id" in data else np.zeros(n, bool)
    thought = [bool(no_token[k]) and texts[k].startswith("thought ") for k in range(n)]
    found: list[tuple[int | None, str]] = []
    for k in range(n):
        so_far = sum(thought[: k + 1]) if any(thought) else None
        found.append((so_far, "" if thought[k] else clipped(tokens.visible(texts[k])) if texts[k] else "–"))
    return found


def called_as(thoughts: int | None, token: str) -> str:
    """What a place is called."""
    if thoughts is None:
        return f"at {token}"
    if thoughts and token:
        return f"answer, after {token}"
    return "no thought yet" if not thoughts else f"{thoughts} thought{'s' * (thoughts > 1)}"
