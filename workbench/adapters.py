"""A PEFT adapter beside the weights of its base, which is left as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn

from workbench.errors import InputError, missing
from workbench.fingerprint import adapted, hooks_of

CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""How LoRA may begin (``init_lora_weights``) that writes to the base's own weights while it is loaded."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder is what ``PeftModel.save_pretrained`` wrote."""
    folder = Path(folder).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists()


def base_of(folder: str | Path) -> tuple[str, str | None]:
    """The base that an adapter names, as a folder or a hub id, and its revision; InputError where there is none."""
    folder = Path(folder).expanduser()
    config = _config(folder)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    give = f"Give its base: load(base, adapter={str(folder)!r})."
    if not named:
        raise InputError(f"The adapter in {folder} does not say which model it is for. {give}")
    path = Path(named).expanduser()
    for place in (path, folder / path, folder.parent / path):
        if (place / "config.json").is_file():
            return str(place), None
    if path.is_absolute() or named.startswith((".", "~")) or named.count("/") > 1:
        raise InputError(f"The adapter in {folder} is for {named}, and there is no model there. {give}")
    return named, revision


def with_adapter(module: nn.Module, adapter: str | Path) -> nn.Module:
    """The adapter on a copy of the module that shares its weights, so that the module itself stays as it is.

    Not merged: that would round the weights once more.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise missing("peft", "Loading an adapter", "adapters") from error
    folder = Path(adapter).expanduser()
    if folder.exists() and not (folder / "adapter_config.json").is_file():
        raise InputError(f"{adapter} is no adapter of PEFT's: it has no adapter_config.json.")
    if next(adapted(module), None) is not None or hasattr(module, "peft_config"):
        raise InputError(
            f"This {type(module).__name__} has an adapter already. Give its base and one adapter, or a model in "
            "memory that has all of them."
        )
    init = str(_config(folder).get("init_lora_weights", "")).lower() if folder.exists() else ""
    own = copy.deepcopy(module) if init.startswith(CHANGES_BASE) else _sharing(module)
    source = str(folder) if folder.exists() else str(adapter)
    try:
        both = PeftModel.from_pretrained(own, source)
        stored = set(load_peft_weights(source, device="cpu"))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"The adapter {adapter} does not fit {type(module).__name__}: {error}") from error
    # What has no place in the model would be dropped without a word.
    lost = sorted(stored - set(get_peft_model_state_dict(both, save_embedding_layers=True)))
    lacking = sorted(set(get_peft_model_state_dict(both, save_embedding_layers=False)) - stored)
    if lost or lacking:
        raise InputError(
            f"The adapter {adapter} does not fit {type(module).__name__}: "
            + (f"the model has no place for {len(lost)} of its weights ({lost[0]}" if lost else "")
            + (f"it lacks {len(lacking)} that the model wants ({lacking[0]}" if not lost else "")
            + "). Give the base that it was trained on."
        )
    return both


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{folder}/adapter_config.json is no JSON: {error}") from error


def _sharing(module: nn.Module) -> nn.Module:
    """Modules of its own around the same numbers: parameters are new objects over the same memory."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                plain = type(parameter) is nn.Parameter  # quantised ones carry more, and nobody trains them
                memo[id(parameter)] = (
                    nn.Parameter(parameter.detach(), parameter.requires_grad) if plain else parameter
                )
        memo |= {id(buffer): buffer for buffer in part._buffers.values() if buffer is not None}
        for hook in hooks_of(part):
            offloaded = getattr(hook, "weights_map", None)
            if offloaded is not None:
                memo[id(offloaded)] = offloaded
    return copy.deepcopy(module, memo)
