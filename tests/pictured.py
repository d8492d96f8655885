"""Tiny random vision-language models with a processor, made without a hub, so that pictures can be read.

``pictured("llava")`` gives the model of ``zoo.py`` with pictures of a few dozen pixels, and a processor that fits it:
a tokenizer of bytes whose special tokens have the ids that the config names, and transformers' own image processor
on pillow.  Their processors for videos need torchvision, so there is none.

    python tests/pictured.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
import zoo
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
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
    start: the parts that the default config leaves out.
    """

    image: str
    make: Callable[[Any, Any], Any]
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)


def _module(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name}")


def _pil(model: str, name: str, **kwargs: Any) -> Any:
    """The image processor on pillow of one type."""
    return _pil_class(model, name)(**kwargs)


def _pil_class(model: str, name: str) -> Any:
    try:
        return getattr(_module(f"{model}.image_processing_pil_{model}"), f"{name}ImageProcessorPil")
    except ModuleNotFoundError:  # Some were made before there were two kinds.
        return getattr(_module(f"{model}.image_processing_{model}"), f"{name}ImageProcessor")


def _processor(model: str, name: str) -> Any:
    return getattr(_module(f"{model}.processing_{model}"), f"{name}Processor")


ABSENT = SimpleNamespace(model_input_names=[], slice_mode=False, downsample_mode="16x")


def _assembled(kind: Any, images: Any, tokenizer: Any, **given: Any) -> Any:
    """A processor of this class without the parts that read videos and sounds."""
    absent = {n: ABSENT for n in ("video_processor", "feature_extractor") if n in inspect.signature(kind).parameters}
    return kind(image_processor=images, tokenizer=tokenizer, **absent, **given)


SQUARE = {"height": SIZE, "width": SIZE}


def _plain(kind: str, images: tuple[str, str], sizes: dict[str, Any] | None = None, **given: Any) -> Any:
    """A processor that squashes pictures to one square and has no rule of its own."""
    model, name = kind.split(".")

    def make(tokenizer: Any, config: Any) -> Any:
        filled = {k: v(config) if callable(v) else v for k, v in given.items()}
        return _assembled(_processor(model, name), _pil(*images, **(sizes or {"size": SQUARE})), tokenizer, **filled)

    return make


def _llava(tokenizer: Any, config: Any) -> Any:
    vision = config.vision_config
    return _processor("llava", "Llava")(
        _pil("llava", "Llava", size={"shortest_edge": vision.image_size}, crop_size=SQUARE), tokenizer,
        patch_size=vision.patch_size, num_additional_image_tokens=1,
        vision_feature_select_strategy=getattr(config, "vision_feature_select_strategy", "default"),
    )  # fmt: skip


PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE], [3 * SIZE, SIZE], [SIZE, 3 * SIZE]]


def _llava_next(tokenizer: Any, config: Any) -> Any:
    images = _pil("llava_next", "LlavaNext", size={"shortest_edge": SIZE}, crop_size=SQUARE,
                  image_grid_pinpoints=PINPOINTS)  # fmt: skip
    video = hasattr(config, "video_token_index")
    kind = ("llava_next_video", "LlavaNextVideo") if video else ("llava_next", "LlavaNext")
    return _assembled(
        _processor(*kind), images, tokenizer, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )  # fmt: skip


def _llava_onevision(tokenizer: Any, config: Any) -> Any:
    images = _pil("llava_onevision", "LlavaOnevision", size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return _assembled(
        _processor("llava_onevision", "LlavaOnevision"), images, tokenizer,
        num_image_tokens=(SIZE // PATCH) ** 2, vision_feature_select_strategy=config.vision_feature_select_strategy,
    )  # fmt: skip


def _grid(kind: str, images: tuple[str, str] = ("qwen2_vl", "Qwen2VL"), **given: Any) -> Callable[[Any, Any], Any]:
    """Pictures of any shape, cut to whole patches, whose grid the model is told: Qwen2-VL's way."""
    model, name = kind.split(".")

    def make(tokenizer: Any, config: Any) -> Any:
        vision = config.vision_config
        merge = getattr(vision, "spatial_merge_size", getattr(config, "spatial_merge_size", 1))
        side = vision.patch_size * merge
        patches = {"patch_size": vision.patch_size, "merge_size": merge,
                   "size": {"shortest_edge": 4 * side**2, "longest_edge": 24 * side**2}}  # fmt: skip
        patches["temporal_patch_size"] = getattr(vision, "temporal_patch_size", 1)
        return _assembled(_processor(model, name), _pil(*images, **patches | given), tokenizer)

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
        if model == "smolvlm":  # It wants a package that spells numbers out, for the times of video frames only.
            with patch.object(_module("smolvlm.processing_smolvlm"), "num2words", str):
                return _assembled(_processor(model, name), images, tokenizer, **given)
        return _processor(model, name)(images, tokenizer, **given)

    return make


DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker", "cosmos3_omni", "cohere_compass")
"""Types that add visual features behind the first blocks of the language model, too."""
GEMMA3_TOKENS = {
    "<image_soft_token>": "image_token_id", "<start_of_image>": "boi_token_id", "<end_of_image>": "eoi_token_id",
}  # fmt: skip
ENTRIES = 128
DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")
CODES = {"channel_multiplier": (1, 1, 1, 1), "num_embeddings": ENTRIES, "codebook_size": ENTRIES}
"""Chameleon's and Emu3's pictures become tokens of a code book, one for 8 x 8 pixels."""
ROWS_COLUMNS = {f"<row_{r + 1}_col_{c + 1}>": "" for r in range(6) for c in range(6)}


def _internvl(tokenizer: Any, config: Any) -> Any:
    images = _pil("got_ocr2", "GotOcr2", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=6)
    return _assembled(
        _processor("internvl", "InternVL"), images, tokenizer, image_seq_length=config.image_seq_length
    )


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


def _got(tokenizer: Any, config: Any) -> Any:
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    images = _pil("got_ocr2", "GotOcr2", size=size)
    processor = _assembled(_processor("got_ocr2", "GotOcr2"), images, tokenizer)
    processor.num_image_tokens = (config.vision_config.image_size // config.vision_config.patch_size // 4) ** 2
    return processor


def _aria(tokenizer: Any, config: Any) -> Any:
    """490 pixels are the least that its image processor takes."""
    processor = _assembled(_processor("aria", "Aria"), _pil("aria", "Aria"), tokenizer, size_conversion={490: 8})
    processor.images_kwargs = {"max_image_size": 490, "split_image": False}
    return processor


def _ovis(tokenizer: Any, config: Any) -> Any:
    images = _pil("ovis2", "Ovis2", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=6)
    tokens = (SIZE // PATCH // config.vision_config.hidden_stride) ** 2
    return _assembled(_processor("ovis2", "Ovis2"), images, tokenizer, image_seq_length=tokens)


def _lighton(tokenizer: Any, config: Any) -> Any:
    side = PATCH * config.spatial_merge_size
    images = _pil("pixtral", "Pixtral", size={"longest_edge": 6 * side}, patch_size={"height": side, "width": side})
    return _assembled(
        _processor("lighton_ocr", "LightOnOcr"), images, tokenizer, patch_size=PATCH,
        spatial_merge_size=config.spatial_merge_size,
    )  # fmt: skip


def _granite4(tokenizer: Any, config: Any) -> Any:
    images = _pil("llava_next", "LlavaNext", size={"shortest_edge": SIZE}, crop_size=SQUARE,
                  image_grid_pinpoints=PINPOINTS)  # fmt: skip
    return _assembled(
        _processor("granite4_vision", "Granite4Vision"), images, tokenizer, patch_size=PATCH,
        vision_feature_select_strategy=config.vision_feature_select_strategy, num_additional_image_tokens=1,
        downsample_rate=config.downsample_rate,
    )  # fmt: skip


def _docling(tokenizer: Any, config: Any) -> Any:
    images = _pil("granite_docling", "GraniteDocling", size=SQUARE, max_patches=6)
    tokens = (SIZE // PATCH // config.vision_config.scale_factor) ** 2
    return _assembled(_processor("granite_docling", "GraniteDocling"), images, tokenizer, image_seq_len=tokens)


def _kosmos25(tokenizer: Any, config: Any) -> Any:
    images = _pil("kosmos2_5", "Kosmos2_5", patch_size={"height": PATCH, "width": PATCH}, max_patches=40)
    return _assembled(
        _processor("kosmos2_5", "Kosmos2_5"), images, tokenizer, num_image_tokens=config.latent_query_num
    )


def _gemma4(tokenizer: Any, config: Any) -> Any:
    vision = config.vision_config
    images = _pil("gemma4", "Gemma4", patch_size=vision.patch_size, max_soft_tokens=70,
                  pooling_kernel_size=vision.pooling_kernel_size)  # fmt: skip
    return _assembled(_processor("gemma4", "Gemma4"), images, tokenizer, image_seq_length=70)


class Underscored(PreTrainedTokenizerFast):
    """Puts a token ahead of every text, as SentencePiece does with its underscore; Fuyu's processor cuts it off."""

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        text = UNDERSCORE + text if isinstance(text, str) else [UNDERSCORE + t for t in text]
        return super().__call__(text, *args, **kwargs)


UNDERSCORE = "<underscore>"


def _fuyu(tokenizer: Any, config: Any) -> Any:
    tokenizer = Underscored(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    side = {"height": PATCH, "width": PATCH}

    class Images(_pil_class("fuyu", "Fuyu")):  # type: ignore[misc]
        """Given tensors by its own processor, which expects the class that stands on torchvision."""

        def patchify_image(self, image: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.from_numpy(super().patchify_image(np.asarray(image), *args, **kwargs))

    images = Images(size={"height": 2 * SIZE, "width": 3 * SIZE}, patch_size=side)
    return _assembled(_processor("fuyu", "Fuyu"), images, tokenizer)


def _minicpm(kind: str) -> Callable[[Any, Any], Any]:
    model, name = kind.split(".")

    def make(tokenizer: Any, config: Any) -> Any:
        images = _pil("minicpmv4_6", "MiniCPMV4_6", patch_size=PATCH, scale_resolution=8 * PATCH, max_slice_nums=4)
        return _assembled(_processor(model, name), images, tokenizer)

    return make


def _ocr2(tokenizer: Any, config: Any) -> Any:
    size = 12 * 4 * PATCH  # 12 x 12 learned queries, whatever the picture
    images = _pil("deepseek_ocr2", "DeepseekOcr2", size={"height": size, "width": size}, tile_size=size)
    return _assembled(_processor("deepseek_ocr2", "DeepseekOcr2"), images, tokenizer, patch_size=PATCH)


def _idefics(tokenizer: Any, config: Any) -> Any:
    images = _pil("idefics", "Idefics", image_size=SIZE)
    return _processor("idefics", "Idefics")(images, tokenizer)


def _kosmos2(tokenizer: Any, config: Any) -> Any:
    images = _pil("clip", "CLIP", size={"shortest_edge": SIZE}, crop_size=SQUARE)
    processor = _processor("kosmos2", "Kosmos2")(images, tokenizer, num_patch_index_tokens=4)
    processor.num_image_tokens = config.latent_query_num
    return processor


def _tensors(model: str, name: str, **kwargs: Any) -> Any:
    """An image processor that stands on torchvision."""
    return getattr(_module(f"{model}.image_processing_{model}"), f"{name}ImageProcessor")(**kwargs)


def _with_tensors(kind: str, images: tuple[str, str], sizes: dict[str, Any], **given: Any) -> Any:
    model, name = kind.split(".")

    def make(tokenizer: Any, config: Any) -> Any:
        return _assembled(_processor(model, name), _tensors(*images, **sizes), tokenizer, **given)

    return make


def _aya(tokenizer: Any, config: Any) -> Any:
    images = _pil("got_ocr2", "GotOcr2", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=6)
    return _assembled(
        _processor("aya_vision", "AyaVision"), images, tokenizer, patch_size=PATCH, img_size=SIZE,
        downsample_factor=config.downsample_factor,
    )  # fmt: skip


def _blip(kind: str) -> Callable[[Any, Any], Any]:
    model, name = kind.split(".")

    def make(tokenizer: Any, config: Any) -> Any:
        given = {} if model == "blip" else {"num_query_tokens": config.num_query_tokens}
        if model == "instructblip":
            given["qformer_tokenizer"] = tokenizer
        return _processor(model, name)(_pil("blip", "Blip", size=SQUARE), tokenizer, **given)

    return make


def _emu3(tokenizer: Any, config: Any) -> Any:
    images = _pil("emu3", "Emu3", min_pixels=9 * SIZE**2, max_pixels=12 * SIZE**2, spatial_factor=8)
    return _processor("emu3", "Emu3")(images, tokenizer)


RECIPES: dict[str, Recipe] = {
    "llava": Recipe("<image>", _llava, {"<image>": "image_token_id"}),
    "vipllava": Recipe(
        "<image>", _llava, {"<image>": "image_token_id"}, config={"vision_feature_layer": [-1, -2]}
    ),
    "llava_next": Recipe(
        "<image>", _llava_next, {"<image>": "image_token_id"}, config={"image_grid_pinpoints": PINPOINTS}
    ),
    "llava_onevision": Recipe(
        "<image>", _llava_onevision, {"<image>": "image_token_id", "<video>": "video_token_id"},
        config={"image_grid_pinpoints": PINPOINTS},
    ),
    **{
        model: Recipe(
            "<|vision_start|><|image_pad|><|vision_end|>", _grid(kind), QWEN_TOKENS, exact={"spatial_merge_size": 2}
        )
        for model, kind in {
            "qwen2_vl": "qwen2_vl.Qwen2VL",
            "qwen2_5_vl": "qwen2_5_vl.Qwen2_5_VL",
            "qwen3_vl": "qwen3_vl.Qwen3VL",
            "qwen3_vl_moe": "qwen3_vl.Qwen3VL",
            "qwen3_5": "qwen3_vl.Qwen3VL",
            "qwen3_5_moe": "qwen3_vl.Qwen3VL",
        }.items()
    },
    "gemma3": Recipe(
        "<start_of_image>", _gemma3, GEMMA3_TOKENS,
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
    "smolvlm": Recipe(
        "<image>", _idefics3("smolvlm", "SmolVLM"),
        {"<image>": "image_token_id", "<fake_token_around_image>": "", "<end_of_utterance>": "", "<global-img>": "",
         **ROWS_COLUMNS},
    ),
    "aya_vision": Recipe(
        "<image>", _aya,
        {"<|IMG_PATCH|>": "image_token_id", "<image>": "", "<|START_OF_IMG|>": "", "<|END_OF_IMG|>": "",
         "<|IMG_LINE_BREAK|>": "", "TILE_GLOBAL": "", **{f"TILE_{i}": "" for i in range(1, 7)}},
    ),
    "blip-2": Recipe("", _blip("blip_2.Blip2"), {"<image>": "image_token_id"}),
    "instructblip": Recipe("", _blip("instructblip.InstructBlip"), {"<image>": "image_token_id"}),
    "blip": Recipe("", _blip("blip.Blip")),
    "git": Recipe("", _plain("git.Git", ("clip", "CLIP"), {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE})),
    "deepseek_vl": Recipe(
        "<image>", _plain("deepseek_vl.DeepseekVL", ("deepseek_vl", "DeepseekVL"), num_image_tokens=16),
        {"<image>": "image_token_id"}, {"image_token": "<image>"},
    ),
    "deepseek_vl_hybrid": Recipe(
        "<image>",
        _plain("deepseek_vl_hybrid.DeepseekVLHybrid", ("deepseek_vl_hybrid", "DeepseekVLHybrid"),
               {"size": SQUARE, "high_res_size": {"height": 2 * SIZE, "width": 2 * SIZE}}, num_image_tokens=16),
        {"<image>": "image_token_id"}, {"image_token": "<image>"},
        config={"high_res_vision_config": {"image_size": 2 * SIZE, "global_attn_indexes": [1],
                                           "output_channels": 16}},
    ),
    "janus": Recipe(
        "<image>", _plain("janus.Janus", ("janus", "Janus"), num_image_tokens=16),
        {"<image>": "image_token_id", "<boi>": "", "<eoi>": ""},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    ),
    "chameleon": Recipe(
        "<image>",
        _plain("chameleon.Chameleon", ("chameleon", "Chameleon"),
               {"size": {"shortest_edge": 3 * SIZE}, "crop_size": {"height": 3 * SIZE, "width": 3 * SIZE}},
               image_seq_length=144),
        {"<image>": "image_token_id", "<racm3:break>": "", "<eoss>": ""},
        config={
            "vocabulary_map": {"<image>": 100, **{f"IMGIMG{str(i).translate(DIGITS)}Z": 110 + i
                                                  for i in range(ENTRIES)}},
            "vq_config": CODES,
        },
    ),
    "emu3": Recipe(
        "<image>", _emu3,
        {"<image>": "image_token_id", "<boi>": "", "<eoi>": "", "<|image token|>": "", "<eof>": ""},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "eof_token": "<eof>",
         "image_wrapper_token": "<|image token|>"},
        config={
            "vocabulary_map": {"<image>": 100, "<|extra_200|>": 99,
                               **{f"<|visual token {i:06d}|>": 110 + i for i in range(ENTRIES)}},
            "vq_config": CODES,
        },
    ),
    "idefics2": Recipe(
        "<image>",
        _plain("idefics2.Idefics2", ("idefics2", "Idefics2"),
               {"size": {"shortest_edge": SIZE // 2, "longest_edge": SIZE}, "do_image_splitting": False},
               image_seq_len=4),
        {"<image>": "image_token_id", "<fake_token_around_image>": "", "<end_of_utterance>": ""},
    ),
    **{
        name: Recipe(
            "<|begin_of_image|><|image|><|end_of_image|>", _grid(f"{kind.lower()}.{kind}", images),
            {"<|image|>": "image_token_id", "<|video|>": "video_token_id",
             "<|begin_of_image|>": "image_start_token_id", "<|end_of_image|>": "image_end_token_id"},
            exact={"spatial_merge_size": 2},
        )
        for name, kind, images in (
            ("glm4v", "Glm4v", ("glm4v", "Glm4v")),
            ("glm4v_moe", "Glm4v", ("glm4v", "Glm4v")),
            ("glm46v", "Glm46V", ("glm46v", "Glm46V")),
            ("glm_ocr", "Glm46V", ("glm46v", "Glm46V")),
            ("glmga", "Glm46V", ("glmga", "Glmga")),
        )
    },
    "ernie4_5_vl_moe": Recipe(
        "<|IMAGE_START|><|IMAGE|><|IMAGE_END|>",
        _grid("ernie4_5_vl_moe.Ernie4_5_VLMoe", ("ernie4_5_vl_moe", "Ernie4_5_VLMoe")),
        {"<|IMAGE|>": "image_token_id", "<|IMAGE_START|>": "image_start_token_id",
         "<|IMAGE_END|>": "image_end_token_id", "<|VIDEO|>": "video_token_id",
         "<|VIDEO_START|>": "video_start_token_id", "<|VIDEO_END|>": "video_end_token_id"},
        {"image_token": "<|IMAGE|>", "image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>",
         "video_token": "<|VIDEO|>", "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"},
        exact={"spatial_merge_size": 2},
    ),
    "exaone4_5": Recipe(
        "<|image_pad|>", _grid("exaone4_5.Exaone4_5_"), {k: v for k, v in QWEN_TOKENS.items() if "pad" in k},
        exact={"spatial_merge_size": 2},
    ),
    "video_llama_3": Recipe(
        "<|image_pad|>", _grid("video_llama_3.VideoLlama3", ("video_llama_3", "VideoLlama3")),
        {k: v for k, v in QWEN_TOKENS.items() if "pad" in k},
    ),
    "paddleocr_vl": Recipe(
        "<|vision_start|><|image_pad|><|vision_end|>",
        _grid("paddleocr_vl.PaddleOCRVL", ("paddleocr_vl", "PaddleOCRVL")), QWEN_TOKENS,
        {"image_token": "<|image_pad|>"}, exact={"spatial_merge_size": 2},
    ),
    "hunyuan_vl": Recipe(
        "<im_start><image><im_end>", _grid("hunyuan_vl.HunYuanVL", ("hunyuan_vl", "HunYuanVL")),
        {"<image>": "image_token_id", "<im_start>": "", "<im_end>": ""},
        {"image_token": "<image>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"},
        exact={"spatial_merge_size": 2, "temporal_patch_size": 1},
    ),
    "got_ocr2": Recipe(
        "<img><imgpad></img>",
        _got, {"<imgpad>": "image_token_id", "<img>": "", "</img>": "", "<|im_start|>": "", "<|im_end|>": ""},
        exact={"image_size": 4 * SIZE},
    ),
    "pp_chart2table": Recipe(
        f"<img>{'<imgpad>' * 16}</img>",
        _plain("pp_chart2table.PPChart2Table", ("pp_chart2table", "PPChart2Table"),
               {"size": {"height": 4 * SIZE, "width": 4 * SIZE}}),
        {"<imgpad>": "image_token_id", "<img>": "", "</img>": ""}, exact={"image_size": 4 * SIZE},
    ),
    "granite4_vision": Recipe(
        "<image>", _granite4, {"<image>": "image_token_id"}, config={"image_grid_pinpoints": PINPOINTS}
    ),
    "granite_docling": Recipe(
        "<image>", _docling,
        {"<image>": "image_token_id", "<fake_token_around_image>": "", "<global-img>": "", **ROWS_COLUMNS},
        config={"vision_config": {"scale_factor": 2}},
    ),
    "ovis2": Recipe(
        "<image>", _ovis,
        {"<IMG_ATOM>": "image_token_id", "<image>": "", **{f"<IMG_{t}>": "" for t in ("START", "GRID", "COL", "ROW",
                                                                                     "END")}},
    ),
    "lighton_ocr": Recipe(
        "<image>", _lighton, {"<image>": "image_token_id", "<image_break>": "", "<image_end>": ""},
        {"image_token": "<image>", "image_break_token": "<image_break>", "image_end_token": "<image_end>"},
        exact={"spatial_merge_size": 2, "image_size": 8 * PATCH * 2},
    ),
    "qianfan_ocr": Recipe(
        "<image>",
        _plain("qianfan_ocr.QianfanOCR", ("got_ocr2", "GotOcr2"),
               {"size": SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 6},
               image_seq_length=lambda config: config.image_seq_length),
        {"<IMG_CONTEXT>": "image_token_id", "<img>": "", "</img>": "", "<image>": ""},
        {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
        config={"image_seq_length": 4, "vision_config": {"image_size": (SIZE, SIZE), "patch_size": (PATCH, PATCH)}},
    ),
    "kosmos-2.5": Recipe(
        "", _kosmos25, {"<img>": "", "</img>": "", "<imgpad>": ""},
        {"image_token": "<imgpad>", "boi_token": "<img>", "eoi_token": "</img>"},
        config={"latent_query_num": 8, "vision_config": {"patch_embed_hidden_size": 3 * PATCH**2}},
    ),
    "gemma4": Recipe(
        "<image>", _gemma4,
        {"<image>": "image_token_id", "<boi>": "boi_token_id", "<eoi>": "eoi_token_id", "<|video|>": "video_token_id",
         "<audio>": "audio_token_id", "<boa>": "boa_token_id", "<eoa>": "eoa_token_id"},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "audio_token": "<audio>",
         "boa_token": "<boa>", "eoa_token": "<eoa>"},
        start={"vision_config": {"model_type": "gemma4_vision"}},
    ),
    "video_llava": Recipe(
        "<image>", _plain("video_llava.VideoLlava", ("video_llava", "VideoLlava"),
                          {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}, patch_size=PATCH),
        {"<image>": "image_token_id", "<video>": "video_token_id"},
    ),
    "aria": Recipe(
        "<image>", _aria, {"<image>": "image_token_id"}, {"image_token": "<image>"},
        exact={"image_size": 490, "patch_size": 14}, config={"projector_patch_to_query_dict": {35**2: 8}},
    ),
    "fuyu": Recipe("", _fuyu, {"|SPEAKER|": "image_token_id", "|NEWLINE|": "", UNDERSCORE: ""}),
    "llava_next_video": Recipe(
        "<image>", _llava_next, {"<image>": "image_token_id", "<video>": "video_token_id"},
        config={"image_grid_pinpoints": PINPOINTS},
    ),
    "shieldgemma2": Recipe(
        "<start_of_image>", _gemma3, GEMMA3_TOKENS,
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "mistral_large4": Recipe(
        "[IMG]", _pixtral, {"[IMG]": "image_token_id", "[IMG_BREAK]": "", "[IMG_END]": ""},
        exact={"spatial_merge_size": 2, "image_size": 8 * PATCH * 2},
    ),
    **{
        name: Recipe(
            "<|vision_start|><|image_pad|><|vision_end|>", _grid(kind, images), QWEN_TOKENS,
            exact={"spatial_merge_size": 2} | exact,
        )
        for name, kind, images, exact in (
            ("qwen4_exp", "qwen3_vl.Qwen3VL", ("qwen2_vl", "Qwen2VL"), {}),
            ("cosmos3_omni", "qwen3_vl.Qwen3VL", ("qwen2_vl", "Qwen2VL"), {}),
            ("cosmos3_edge", "cosmos3_edge.Cosmos3Edge", ("cosmos3_edge", "Cosmos3Edge"), {"temporal_patch_size": 1}),
            ("lfm3_vl", "lfm3_vl.Lfm3Vl", ("qwen2_vl", "Qwen2VL"), {}),
        )
    },
    "hyperclovax_vision_v2": Recipe(
        "<|image_pad|>", _grid("hyperclovax_vision_v2.HyperCLOVAXVisionV2"),
        {k: v for k, v in QWEN_TOKENS.items() if "pad" in k}, exact={"spatial_merge_size": 2},
    ),
    "cohere_compass": Recipe(
        "<|IMAGE_PAD|>", _grid("cohere_compass.CohereCompass", ("cohere_compass", "CohereCompass")),
        {"<|IMAGE_PAD|>": "image_token_id", "<|VIDEO_PAD|>": "video_token_id"}, exact={"spatial_merge_size": 2},
    ),
    "glm5_next": Recipe(
        "<|begin_of_image|><|image|><|end_of_image|>",
        _grid("glm5_next.Glm5Next", ("glm5_next", "Glm5Next"), min_image_tokens=4, max_image_tokens=24),
        {"<|image|>": "image_token_id", "<|video|>": "video_token_id", "<|begin_of_image|>": "image_start_token_id",
         "<|end_of_image|>": "image_end_token_id"},
        exact={"spatial_merge_size": 2},
    ),
    "dots3_note": Recipe(
        "<|imgpad|>", _grid("dots3_note.Dots3Note"),
        {"<|imgpad|>": "image_token_id", "<|video_pad|>": "video_token_id", "<|audio_comp_pad|>": "audio_token_id"},
        exact={"spatial_merge_size": 2}, config={"vision_config": {"adapter_merge_size": 2}},
    ),
    **{
        f"{model}_thinker": Recipe(
            "<|vision_bos|><|IMAGE|><|vision_eos|>", _grid(kind),
            {"<|IMAGE|>": "image_token_id", "<|VIDEO|>": "video_token_id", "<|AUDIO|>": "audio_token_id",
             "<|vision_bos|>": "vision_start_token_id", "<|vision_eos|>": "vision_end_token_id",
             "<|audio_bos|>": "audio_start_token_id", "<|audio_eos|>": ""},
            {f"{part}_token": f"<|{part.upper()}|>" for part in ("image", "video", "audio")}
            | {f"{part}_token": f"<|{part}|>" for part in ("vision_bos", "vision_eos", "audio_bos", "audio_eos")},
            exact={"spatial_merge_size": 2},
        )
        for model, kind in (
            ("qwen2_5_omni", "qwen2_5_omni.Qwen2_5Omni"), ("qwen3_omni_moe", "qwen3_omni_moe.Qwen3OmniMoe"),
        )
    },
    **{
        name: Recipe(
            "<image>", _minicpm(kind),
            {"<image>": "image_token_id", "<video>": "video_token_id", "<im_start>": "", "<im_end>": "",
             "<slice>": "", "</slice>": "", "<image_id>": "", "</image_id>": ""},
            {"image_token": "<image>", "video_token": "<video>", "image_start_token": "<im_start>",
             "image_end_token": "<im_end>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
             "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"},
            exact={"image_size": 16 * SIZE, "insert_layer_id": 0}, start={"image_token_id": 101, "video_token_id": 102},
        )
        for name, kind in (("minicpmv4_6", "minicpmv4_6.MiniCPMV4_6"), ("minicpmv4_7", "minicpmv4_7.MiniCPMV4_7"))
    },
    "deepseek_ocr2": Recipe(
        "<image>", _ocr2, {"<image>": "image_token_id"}, exact={"image_size": 12 * 4 * PATCH},
        config={"vision_config": {"sam_config": {"output_channels": 16, "downsample_channels": [16, zoo.WIDTH],
                                                 "global_attn_indexes": [1]}}},
    ),
    "idefics": Recipe(
        "<image>", _idefics, {"<image>": "", "<fake_token_around_image>": "", "<end_of_utterance>": ""},
    ),
    "kosmos-2": Recipe("", _kosmos2, {"<image>": "", "</image>": ""}),
    "mllama": Recipe(
        "<|image|>", _mllama, {"<|image|>": "image_token_index", "<|python_tag|>": ""},
        exact={"vision_output_dim": 3 * zoo.WIDTH},
        config={"text_config": {"cross_attention_layers": [1, 2]},
                "vision_config": {"intermediate_layers_indices": [0, 1]}},
    ),
}  # fmt: skip


WITH_TENSORS: dict[str, Recipe] = {
    "cohere2_vision": Recipe(
        "<image>", _with_tensors("cohere2_vision.Cohere2Vision", ("cohere2_vision", "Cohere2Vision"),
                                 {"size": SQUARE, "patch_size": 2, "max_patches": 6}),
        {"<image>": "image_token_id", "<boi>": "", "<eoi>": "", "<break>": ""},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "img_line_break_token": "<break>"},
    ),
    "lfm2_vl": Recipe(
        "<image>", _with_tensors("lfm2_vl.Lfm2Vl", ("lfm2_vl", "Lfm2Vl"),
                                 {"encoder_patch_size": PATCH, "tile_size": 2 * SIZE, "min_image_tokens": 4,
                                  "max_image_tokens": 16, "max_num_patches": 64}),
        {"<image>": "image_token_id", "<|image_start|>": "", "<|image_end|>": "", "<|img_thumbnail|>": "",
         **{f"<|img_row_{r}_col_{c}|>": "" for r in range(1, 6) for c in range(1, 6)}},
    ),
    "llama4": Recipe(
        "<|image|>", _with_tensors("llama4.Llama4", ("llama4", "Llama4"), {"size": SQUARE, "max_patches": 4},
                                   patch_size=PATCH),
        {"<|patch|>": "image_token_index", "<|image|>": "", "<|image_start|>": "", "<|image_end|>": "",
         "<|tile_x_separator|>": "", "<|tile_y_separator|>": ""},
        config={"vision_config": {"intermediate_size": 4 * zoo.WIDTH}},
    ),
    "step3p7": Recipe(
        "<im_patch>", _with_tensors("step3p7.Step3p7", ("step3p7", "Step3p7"),
                                    {"size": {"height": 4 * SIZE, "width": 4 * SIZE}, "patch_size": 3 * SIZE,
                                     "vision_patch_size": PATCH, "max_image_size": 16 * SIZE}),
        {"<im_patch>": "image_token_id", "<im_start>": "", "<im_end>": "", "<patch_start>": "", "<patch_end>": "",
         "<patch_newline>": ""},
        exact={"image_size": 4 * SIZE},
    ),
    "kimi_k25": Recipe(
        "<|media_pad|>", _with_tensors("kimi_k25.Kimi_K25", ("kimi_k25", "Kimi_K25"),
                                       {"size": {"max_height": 2 * SIZE, "max_width": 2 * SIZE}, "patch_size": PATCH}),
        {"<|media_pad|>": "image_token_id", "<|kimi_k25_video_placeholder|>": "video_token_id"},
        config={"projection_hidden_size": zoo.WIDTH},
    ),
    "minimax_m3_vl": Recipe(
        "]<]image[>[", _with_tensors("minimax_m3_vl.MiniMaxM3VL", ("minimax_m3_vl", "MiniMaxM3VL"),
                                     {"size": {"shortest_edge": 4 * 256, "longest_edge": 24 * 256},
                                      "patch_size": PATCH}),
        {"]<]image[>[": "image_token_id", "]<]video[>[": "video_token_id", "]<]start of image[>[": "",
         "]<]end of image[>[": ""},
        exact={"spatial_merge_size": 2},
    ),
    **{
        name: Recipe(
            "<|patch|>", _with_tensors(kind, ("muse_glimmer", "MuseGlimmer"), {"patch_size": PATCH,
                                                                             "max_image_tokens": 24}),
            {"<|patch|>": "image_token_id", "<|video|>": "video_token_id", "<|image_start|>": "", "<|image_end|>": ""},
            config={"out_hidden_size": 4 * zoo.WIDTH},
        )
        for name, kind in (("muse_glimmer", "muse_glimmer.MuseGlimmer"), ("muse_spark", "muse_spark.MuseSpark"))
    },
    "minicpm_ocr": Recipe(
        "<image>", _with_tensors("minicpm_ocr.MiniCPMOcr", ("minicpm_ocr", "MiniCPMOcr"),
                                 {"patch_size": PATCH, "scale_resolution": 8 * PATCH, "max_slice_nums": 4}),
        RECIPES["minicpmv4_6"].tokens, RECIPES["minicpmv4_6"].names,
        exact={"image_size": 16 * SIZE}, start={"image_token_id": 101, "video_token_id": 102},
    ),
}  # fmt: skip
"""The same for types whose image processor exists for torchvision only."""


def _ids(config: Any) -> dict[str, int]:
    """Every id of a special token that a config or one of its sub-configs names; the outer name wins."""
    found: dict[str, int] = {}
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):
            found = _ids(value) | found
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            found[name] = value
        elif name == "vocabulary_map":
            found |= value
    return found


def bytes_tokenizer(config: Any, tokens: dict[str, str], names: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes whose special tokens have the ids that the config names."""
    ids = _ids(config)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
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
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        **({"extra_special_tokens": names} if names else {}),
    )  # fmt: skip


@contextmanager
def _sizes(recipe: Recipe, model_type: str) -> Iterator[None]:
    """zoo's configs with the sizes that pictures need."""

    def merged(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict) and "<image>" not in new:
            return old | {k: merged(old.get(k), v) for k, v in new.items()}
        return new

    config = merged(zoo.PATCHES.get(model_type, {}), recipe.config)
    if model_type in DEEPSTACK:
        config = merged({"vision_config": {"deepstack_visual_indexes": [0, 1]}}, config)
    with (
        patch.dict(zoo.EXACT, EXACT | recipe.exact),
        patch.dict(zoo.PATCHES, {model_type: config}),
        patch.dict(zoo.START, {model_type: zoo.START.get(model_type, {}) | recipe.start}),
    ):
        yield


@contextmanager
def _without_videos() -> Iterator[None]:
    """Processors take something else for the part that reads videos."""
    check = ProcessorMixin.check_argument_for_proper_class

    def lenient(self: Any, name: str, argument: Any) -> Any:
        return None if name in ("video_processor", "feature_extractor") else check(self, name, argument)

    with patch.object(ProcessorMixin, "check_argument_for_proper_class", lenient):
        yield


def pictured(model_type: str, seed: int = 0) -> tuple[Any, Any]:
    """The tiny model of one type and a processor that fits it."""
    recipe = RECIPES.get(model_type)
    if recipe is None and importlib.util.find_spec("torchvision") is not None:
        recipe = WITH_TENSORS.get(model_type)
    if recipe is None:
        raise CannotBuild(UNABLE[model_type])
    with _sizes(recipe, model_type):
        model = zoo.build(model_type, "image_text", seed)
    if hasattr(model.config, "vocabulary_map"):
        _fill_code_book(model)
    tokenizer = bytes_tokenizer(model.config, recipe.tokens, recipe.names)
    with _without_videos():
        processor = recipe.make(tokenizer, model.config)
    processor.chat_template = TEMPLATE % recipe.image
    processor.place_of_picture = recipe.image
    return model, processor


def _fill_code_book(model: Any) -> None:
    """Entries that pictures need: what the encoder makes of some of them."""
    coder = model.model.vqmodel
    seen: list[torch.Tensor] = []
    hook = coder.quantize.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noise = torch.rand(24, 3, 3 * SIZE, 3 * SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    noise = torch.nn.functional.interpolate(noise[..., ::PATCH, ::PATCH], scale_factor=PATCH)
    try:
        with torch.no_grad():
            coder.encode(noise, *([[(3 * SIZE, 3 * SIZE)] * 24] if hasattr(model.config, "text_config") else []))
    finally:
        hook.remove()
    vectors = seen[0].movedim(-3, -1).reshape(-1, coder.quantize.embedding.weight.shape[1])
    entries = coder.quantize.embedding.weight
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(4))[: len(entries)]
    entries.data.copy_(vectors[chosen])


def loaded(model_type: str) -> Any:
    """The tiny model of one type, loaded with its processor."""
    import workbench

    module, processor = pictured(model_type)
    return workbench.load(module, tokenizer=processor.tokenizer, processor=processor, name=model_type)


def text_with_image(processor: Any, n: int = 1, text: str = "a red ball") -> str:
    """A prompt with the places of ``n`` pictures, as this processor of :func:`pictured` wants it."""
    return " and ".join([processor.place_of_picture] * n) + f" {text}"


UNABLE: dict[str, str] = {
    **{
        name: "its image processor exists for torchvision only"
        for name in (
            "cohere2_vision", "gemma4_unified", "inkling2", "inkling_mm_model", "kimi_k25", "lfm2_vl", "llama4",
            "minicpm_ocr", "minimax_m3_vl", "molmo2", "muse_glimmer", "muse_spark", "nemotron_h_omni", "perception_lm",
            "pi0", "pp_formulanet", "step3p7", "unlimited_ocr",
        )
    },
    **{
        name: "an encoder-decoder: refused by the workbench"
        for name in ("florence2", "pix2struct", "t5gemma2", "udop", "vision-encoder-decoder")
    },
    "diffusion_gemma": "it diffuses blocks of text: refused by the workbench",
    "evolla": "it reads proteins, not pictures",
    "fast_vlm": "its vision tower comes from the timm package",
    "gemma3n": "its vision tower comes from the timm package",
    "instructblipvideo": "it reads videos only, through torchvision",
    "mistral4": "a language model: the class that this type names takes no pictures",
}  # fmt: skip
"""Types without a tiny model that sees, or without a processor that works with pillow alone, and why."""


def drawn(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """A picture of smooth random colours, so that no two parts of it are alike."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _answer(model: Any, processor: Any, picture: Image.Image) -> tuple[Any, torch.Tensor]:
    asked = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
    given = processor(text=[text_with_image(processor)], images=[picture], return_tensors="pt", **asked)
    given = {k: v.float() if hasattr(v, "is_floating_point") and v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        return given, model(**given).logits


def main() -> None:
    """One line for each type, and what went wrong."""
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
            given, z = _answer(model, processor, drawn())
            if torch.equal(z[:, -1], _answer(model, processor, drawn(seed=1))[1][:, -1]):
                raise ValueError("another picture changes nothing at the last position")
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
