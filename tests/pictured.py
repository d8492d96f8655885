"""Tiny random vision-language models with a processor, made without a hub, so that pictures can be read.

``pictured("llava")`` gives the model of ``zoo.py`` with pictures of a few dozen pixels, and a processor that fits it:
a tokenizer of bytes whose special tokens have the ids that the config names, and transformers' own image processor
on pillow.  Their processors for videos need torchvision, so there is none.

    python tests/pictured.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import transformers
import zoo
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from zoo import CannotBuild

VOCABULARY = 480
SIZE, PATCH = 32, 8
EXACT = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "image_size": SIZE, "patch_size": PATCH,
    "max_position_embeddings": 1024, "max_sequence_length": 1024, "n_positions": 1024, "temporal_patch_size": 2,
}  # fmt: skip
TEMPLATE = (
    "{%% for m in messages %%}{{ m.role }}: {%% if m.content is string %%}{{ m.content }}{%% else %%}"
    "{%% for p in m.content %%}{%% if p.type == 'image' %%}%s{%% else %%}{{ p.text }}{%% endif %%}{%% endfor %%}"
    "{%% endif %%}\n{%% endfor %%}{%% if add_generation_prompt %%}assistant: {%% endif %%}"
)


@dataclass(frozen=True)
class Recipe:
    """How one type gets its processor.

    Attributes
    ----------
    image: what stands for one picture in a prompt.
    make: the processor, from the tokenizer and the model's config.
    tokens: special tokens, and the fields of the config that hold their ids ("" where the config names none).
    names: the tokens that the tokenizer has under a name, as ``tokenizer.image_token``.
    exact: sizes by the name of a config's field, wherever it occurs.
    config: what only this type's config wants; sub-configs nest.
    """

    image: str
    make: Callable[[Any, Any], Any]
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    template: bool = True


def _module(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name}")


def _pil(model: str, name: str, **kwargs: Any) -> Any:
    """The image processor on pillow of one type."""
    return getattr(_module(f"{model}.image_processing_pil_{model}"), f"{name}ImageProcessorPil")(**kwargs)


def _processor(model: str, name: str) -> Any:
    return getattr(_module(f"{model}.processing_{model}"), f"{name}Processor")


SQUARE = {"height": SIZE, "width": SIZE}


def _llava(tokenizer: Any, config: Any) -> Any:
    vision = config.vision_config
    return _processor("llava", "Llava")(
        _pil("llava", "Llava", size={"shortest_edge": vision.image_size}, crop_size=SQUARE), tokenizer,
        patch_size=vision.patch_size, vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )  # fmt: skip


PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE], [3 * SIZE, SIZE], [SIZE, 3 * SIZE]]


def _llava_next(tokenizer: Any, config: Any) -> Any:
    return _processor("llava_next", "LlavaNext")(
        _pil("llava_next", "LlavaNext", size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )  # fmt: skip


def _llava_onevision(tokenizer: Any, config: Any) -> Any:
    return _processor("llava_onevision", "LlavaOnevision")(
        _pil("llava_onevision", "LlavaOnevision", size=SQUARE, image_grid_pinpoints=PINPOINTS), tokenizer, None,
        num_image_tokens=(SIZE // PATCH) ** 2, vision_feature_select_strategy=config.vision_feature_select_strategy,
    )  # fmt: skip


def _qwen(model: str, name: str) -> Callable[[Any, Any], Any]:
    def make(tokenizer: Any, config: Any) -> Any:
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        images = _pil(
            "qwen2_vl", "Qwen2VL", patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            size={"shortest_edge": 4 * side**2, "longest_edge": 24 * side**2},
        )  # fmt: skip
        return _processor(model, name)(images, tokenizer, None)

    return make


QWEN_TOKENS = {
    "<|image_pad|>": "image_token_id", "<|video_pad|>": "video_token_id", "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}  # fmt: skip


def _gemma3(tokenizer: Any, config: Any) -> Any:
    images = _pil("gemma3", "Gemma3", size=SQUARE)
    return _processor("gemma3", "Gemma3")(images, tokenizer, image_seq_length=config.mm_tokens_per_image)


def _paligemma(tokenizer: Any, config: Any) -> Any:
    images = _pil("siglip", "Siglip", size=SQUARE)
    images.image_seq_length = (SIZE // PATCH) ** 2
    with patch.object(_module("paligemma.processing_paligemma"), "EXTRA_TOKENS", ["<loc0000>", "<seg000>"]):
        return _processor("paligemma", "PaliGemma")(images, tokenizer)


def _idefics3(model: str, name: str) -> Callable[[Any, Any], Any]:
    def make(tokenizer: Any, config: Any) -> Any:
        images = _pil(
            model, name, size={"longest_edge": 3 * SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=True
        )
        given = {"image_seq_len": (SIZE // PATCH // config.scale_factor) ** 2}
        if model == "smolvlm":
            return _processor(model, name)(images, tokenizer, None, **given)
        return _processor(model, name)(images, tokenizer, **given)

    return make


ROWS_COLUMNS = {f"<row_{r + 1}_col_{c + 1}>": "" for r in range(6) for c in range(6)}


def _internvl(tokenizer: Any, config: Any) -> Any:
    images = _pil("got_ocr2", "GotOcr2", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=6)
    return _processor("internvl", "InternVL")(images, tokenizer, None, image_seq_length=config.image_seq_length)


def _pixtral(tokenizer: Any, config: Any) -> Any:
    """Its processor is offered with torchvision only, though the one function that it takes from there is pillow's."""
    there = _module("pixtral.image_processing_pil_pixtral")
    name = "transformers.models.pixtral.image_processing_pixtral"
    known = name in sys.modules
    sys.modules.setdefault(name, there)
    try:
        kind = _processor("pixtral", "Pixtral")
    finally:
        if not known:
            del sys.modules[name]
    merge = getattr(config, "spatial_merge_size", 1)
    side = PATCH * merge
    images = _pil("pixtral", "Pixtral", size={"longest_edge": 6 * side}, patch_size={"height": side, "width": side})
    return kind(images, tokenizer, patch_size=PATCH, spatial_merge_size=merge)


def _mllama(tokenizer: Any, config: Any) -> Any:
    return _processor("mllama", "Mllama")(_pil("mllama", "Mllama", size=SQUARE, max_image_tiles=4), tokenizer)


RECIPES: dict[str, Recipe] = {
    "llava": Recipe("<image>", _llava, {"<image>": "image_token_id"}),
    "vipllava": Recipe("<image>", _llava, {"<image>": "image_token_id"}),
    "llava_next": Recipe(
        "<image>", _llava_next, {"<image>": "image_token_id"}, config={"image_grid_pinpoints": PINPOINTS}
    ),
    "llava_onevision": Recipe(
        "<image>", _llava_onevision, {"<image>": "image_token_id", "<video>": "video_token_id"},
        config={"image_grid_pinpoints": PINPOINTS},
    ),
    **{
        model: Recipe(
            "<|vision_start|><|image_pad|><|vision_end|>", _qwen(*kind), QWEN_TOKENS, exact={"spatial_merge_size": 2}
        )
        for model, kind in {
            "qwen2_vl": ("qwen2_vl", "Qwen2VL"),
            "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VL"),
            "qwen3_vl": ("qwen3_vl", "Qwen3VL"),
            "qwen3_vl_moe": ("qwen3_vl", "Qwen3VL"),
            "qwen3_5": ("qwen3_vl", "Qwen3VL"),
            "qwen3_5_moe": ("qwen3_vl", "Qwen3VL"),
        }.items()
    },
    "gemma3": Recipe(
        "<start_of_image>", _gemma3,
        {"<image_soft_token>": "image_token_index", "<start_of_image>": "boi_token_index",
         "<end_of_image>": "eoi_token_index"},
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "paligemma": Recipe(
        "<image>", _paligemma, {"<image>": "image_token_id", "<loc0000>": "", "<seg000>": ""},
        {"image_token": "<image>"}, exact={"num_image_tokens": 16},
    ),
    "idefics3": Recipe(
        "<image>", _idefics3("idefics3", "Idefics3"),
        {"<image>": "image_token_id", "<fake_token_around_image>": "", "<end_of_utterance>": "", "<global-img>": "",
         **ROWS_COLUMNS},
    ),
    "internvl": Recipe(
        "<IMG_CONTEXT>", _internvl,
        {"<IMG_CONTEXT>": "image_token_id", "<img>": "", "</img>": "", "<video>": ""},
        {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
         "video_token": "<video>"},
        config={"image_seq_length": 4, "vision_config": {"image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH]}},
    ),
    "mistral3": Recipe(
        "[IMG]", _pixtral, {"[IMG]": "image_token_id", "[IMG_BREAK]": "", "[IMG_END]": ""},
        exact={"spatial_merge_size": 2, "image_size": 8 * PATCH * 2},
    ),
    "mllama": Recipe(
        "<|image|>", _mllama, {"<|image|>": "image_token_index", "<|python_tag|>": ""},
        exact={"vision_output_dim": 3 * zoo.WIDTH},
        config={"text_config": {"cross_attention_layers": [1, 3]},
                "vision_config": {"intermediate_layers_indices": [0, 1]}},
    ),
}  # fmt: skip


def _ids(config: Any) -> dict[str, int]:
    """Every id of a special token that a config or one of its sub-configs names; the outer name wins."""
    found: dict[str, int] = {}
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):
            found = _ids(value) | found
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            found[name] = value
    return found


def bytes_tokenizer(config: Any, tokens: dict[str, str], names: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes whose special tokens have the ids that the config names."""
    ids = _ids(config)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for token, name in tokens.items():
        if name:
            vocabulary[token] = ids[name if name in ids else name.replace("_id", "_index")]
    taken = set(vocabulary.values()) | set(ids.values())
    free = (i for i in range(VOCABULARY) if i not in taken)
    # Characters of texts first: their ids are those that zoo's random prompts have.
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) + [t for t, name in tokens.items() if not name]:
        vocabulary[letter] = next(free)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=list(tokens), **({"extra_special_tokens": names} if names else {}),
    )  # fmt: skip


@contextmanager
def _sizes(recipe: Recipe, model_type: str) -> Iterator[None]:
    """zoo's configs with the sizes that pictures need."""

    def merged(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return old | {k: merged(old.get(k), v) for k, v in new.items()}
        return new

    config = merged(zoo.PATCHES.get(model_type, {}), recipe.config)
    with patch.dict(zoo.EXACT, EXACT | recipe.exact), patch.dict(zoo.PATCHES, {model_type: config}):
        yield


@contextmanager
def _without_videos() -> Iterator[None]:
    """Processors take None for the part that reads videos."""
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None and "video" in name else check(self, name, argument)

    with patch.object(ProcessorMixin, "check_argument_for_proper_class", lenient):
        yield


def pictured(model_type: str, seed: int = 0) -> tuple[Any, Any]:
    """The tiny model of one type and a processor that fits it."""
    recipe = RECIPES.get(model_type)
    if recipe is None:
        raise CannotBuild(UNABLE.get(model_type, "no recipe"))
    with _sizes(recipe, model_type):
        model = zoo.build(model_type, "image_text", seed)
    tokenizer = bytes_tokenizer(model.config, recipe.tokens, recipe.names)
    with _without_videos():
        processor = recipe.make(tokenizer, model.config)
    processor.chat_template = TEMPLATE % recipe.image
    processor.place_of_picture = recipe.image
    return model, processor


def text_with_image(processor: Any, n: int = 1, text: str = "a red ball") -> str:
    """A prompt with the places of ``n`` pictures, as this processor of :func:`pictured` wants it."""
    return " and ".join([processor.place_of_picture] * n) + f" {text}"


UNABLE: dict[str, str] = {}
"""Types without a processor that works with pillow alone, and why."""


def drawn(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """A picture of smooth random colours, so that no two parts of it are alike."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", metavar="NAME")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for model_type in zoo.image_text():
        if chosen.only and model_type not in chosen.only:
            continue
        start = time.perf_counter()
        try:
            model, processor = pictured(model_type)
            built = time.perf_counter() - start
            given = processor(text=[text_with_image(processor)], images=[drawn()], return_tensors="pt")
            with torch.no_grad():
                z = model(**given).logits
        except CannotBuild as reason:
            print("none", f"{model_type:<24}", str(reason)[:150], flush=True)
            continue
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print("FAIL", f"{model_type:<24}", said, flush=True)
            if chosen.only and len(chosen.only) == 1:
                raise
            continue
        shapes = {k: tuple(v.shape) for k, v in given.items() if hasattr(v, "shape")}
        print("ok  ", f"{model_type:<24}", f"{built:.1f} s", f"{float(z.std()):.1f}", shapes, flush=True)


if __name__ == "__main__":
    main()
