"""What processors give for several prompts as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from workbench.model import Model


def joined(
    extras: Sequence[Mapping[str, Any]], starts: Sequence[int], lengths: Sequence[int], width: int
) -> dict[str, Any]:
    """The prompts' inputs beside their ids as those of one batch.

    What has one entry for each token moves to where the prompt is in the batch; all else (pixels, grids, sizes) is
    joined along its first axis.  Other axes are filled up with zeros, as processors themselves do.
    """
    found: dict[str, Any] = {}
    for key in extras[0]:
        values = [own[key] for own in extras]
        if not all(isinstance(value, Tensor) for value in values):
            found[key] = [one for value in values for one in (value if isinstance(value, list) else [value])]
            continue
        if all(_by_token(key, value, n) for value, n in zip(values, lengths, strict=True)):
            moved = []
            for value, start, n in zip(values, starts, lengths, strict=True):
                whole = value.new_zeros(1, width, *value.shape[2:])
                whole[:, start : start + n] = value
                moved.append(whole)
            values = moved
        found[key] = torch.cat(_filled(values))
    return found


def _by_token(key: str, value: Tensor, length: int) -> bool:
    return value.ndim >= 2 and tuple(value.shape[:2]) == (1, length) and not key.startswith("pixel")


def _filled(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that are alike in all axes but the first: the shorter ones end in zeros."""
    most = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    found = []
    for value in values:
        if list(value.shape[1:]) != most:
            whole = value.new_zeros(value.shape[0], *most)
            whole[tuple(slice(n) for n in value.shape)] = value
            value = whole
        found.append(value)
    return found


def alone(given: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What a processor gave for one prompt, its ids among it, as the model takes it."""
    mask = torch.ones_like(torch.as_tensor(given["input_ids"]))
    return placed({**given, "attention_mask": mask}, model)


def placed(inputs: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Inputs on the model's device; pixels in its dtype."""

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)

    return {key: there(value) for key, value in inputs.items()}
