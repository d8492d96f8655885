"""What the config of a transformers model says, with the sub-configs of vision-language models."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(module: nn.Module) -> Any:
    """The config of the part that writes text: sub-configs of vision-language models are looked into."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return config


def reserved_ids(config: Any) -> list[int]:
    """Every ``*_token_id`` in a config and its sub-configs."""
    found: list[int] = []
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            found += [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]
        elif hasattr(value, "to_dict"):
            found += reserved_ids(value)
    return found


def config_numbers(config: Any) -> list[float]:
    """Every float or small integer in a config and its sub-configs, and simple combinations used as factors."""
    numbers: list[float] = []
    for value in vars(config).values() if config is not None else ():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            numbers.append(float(value))
        elif hasattr(value, "to_dict"):
            numbers += config_numbers(value)
    return numbers
