"""The processor of a vision-language model, also where torchvision is not there.

transformers makes many processors only with torchvision, since they can read videos, too.  For pictures pillow does:
the processor is made of the image processor and the tokenizer, without the part for videos.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FAILURES = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError)


def load_processor(source: str, config: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """The processor of a folder or hub id; or None, and why.

    Parameters
    ----------
    config
        The model's.
    options
        For ``from_pretrained``: revision, trust_remote_code.
    """
    import transformers

    try:
        return transformers.AutoProcessor.from_pretrained(source, **options), ""
    except FAILURES as error:
        reason = error
    if find_spec("torchvision") is None:
        try:
            return _on_pillow(source, config, options), ""
        except FAILURES as error:
            reason = error  # what is missing once torchvision is left out
    return None, f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}"


def _on_pillow(source: str, config: Any, options: dict[str, Any]) -> Any:
    import transformers

    saved = {**_saved(source, "preprocessor_config.json", options), **_saved(source, "processor_config.json", options)}
    name = saved.pop("processor_class", None) or _processors().get(config.model_type)
    if not isinstance(name, str):
        raise ValueError(f"no processor is known for {config.model_type}")
    images = transformers.AutoImageProcessor.from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    kind = _class(name)
    takes = inspect.signature(kind).parameters
    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": saved.get("chat_template")}
    videos = {name: None for name in takes if "video" in name and "processor" in name}
    given = {k: v for k, v in {**saved, **parts, **videos}.items() if k in takes}
    with _without_videos():
        made = kind(**given)
    made.chat_template = made.chat_template or getattr(tokenizer, "chat_template", None)
    made.chat_template = made.chat_template or _beside(source, "chat_template.jinja", options)
    return made


def _saved(source: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A file of settings beside the weights; {} where there is none."""
    text = _beside(source, name, options)
    return json.loads(text) if text else {}


def _beside(source: str, name: str, options: dict[str, Any]) -> str | None:
    """The text of a file beside the weights; None where there is none."""
    from transformers.utils.hub import cached_file

    own = {"revision": options.get("revision"), "_raise_exceptions_for_missing_entries": False}
    path = cached_file(source, name, **{k: v for k, v in own.items() if v is not None})
    return Path(path).read_text(encoding="utf-8") if path else None


def _processors() -> dict[str, str | None]:
    """Type of a model -> name of the class of its processor."""
    from transformers.models.auto import processing_auto

    return dict(vars(processing_auto)["PROCESSOR_MAPPING_NAMES"])


def _class(name: str) -> Any:
    """A processor's class, from its own module: at the top of transformers stands one that asks for torchvision."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    homes = [kind for kind, known in _processors().items() if known == name]
    homes = sorted(homes, key=lambda kind: kind.replace("_", "") != name.removesuffix("Processor").lower())
    for home in [*homes, name.removesuffix("Processor").lower()]:
        module = f"transformers.models.{model_type_to_module_name(home)}"
        if find_spec(module) is None:
            continue
        folder = module.rpartition(".")[2]
        try:
            with _pillow_in_place(f"{module}.image_processing_{folder}", f"{module}.image_processing_pil_{folder}"):
                return getattr(importlib.import_module(f"{module}.processing_{folder}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} needs torchvision, which is not installed")


@contextmanager
def _pillow_in_place(name: str, stand_in: str) -> Iterator[None]:
    """While a processor is imported: the pillow twin of an image processor that cannot be imported itself."""
    known = name in sys.modules
    if not known and find_spec(stand_in) is not None:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = importlib.import_module(stand_in)
    try:
        yield
    finally:
        if not known and name in sys.modules and sys.modules[name].__name__ != name:
            del sys.modules[name]


@contextmanager
def _without_videos() -> Iterator[None]:
    """A processor takes None for the part that reads videos."""
    from transformers.processing_utils import ProcessorMixin

    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None and "video" in name else check(self, name, argument)

    ProcessorMixin.check_argument_for_proper_class = lenient
    try:
        yield
    finally:
        ProcessorMixin.check_argument_for_proper_class = check
