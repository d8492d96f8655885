"""Tiny random models of every architecture in transformers' causal and image-text-to-text mappings.

From the configs alone: sizes shrink by field name, multipliers move away from 1, weights are scaled until the
logits have a standard deviation near 8.  Otherwise a forgotten scale, bias or softcap would hide in rounding.

    python tests/zoo.py [--check] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

VOCABULARY = 131
WIDTH, HEADS, LAYERS = 32, 4, 4

EXACT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "n_vocab": VOCABULARY,
    "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "dim": WIDTH, "embed_dim": WIDTH, "hidden_dim": WIDTH,
    "embedding_size": WIDTH, "emb_dim": WIDTH, "word_embed_proj_dim": WIDTH, "attention_hidden_size": WIDTH,
    "dim_ff": 48, "linear_head_dim": 8, "linear_num_heads": 4, "alignment_intermediate_size": 48,
    "shape_embed_dim": 8, "shape_vocab_size": 40, "pronunciation_embed_dim": 8, "pronunciation_vocab_size": 40,
    "downsample_hidden_size": 16, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH,
    "nemo_conv_channels": 16,
    "hidden_size_global": WIDTH, "encoder_cross_output_size": WIDTH,
    "model_dim": WIDTH, "d_embed": WIDTH, "input_embedding_size": WIDTH,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "decoder_layers": LAYERS, "encoder_layers": LAYERS, "layers": LAYERS, "depth": 2,
    "num_encoder_layers": 2, "num_decoder_layers": LAYERS,
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "num_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_attention_heads": HEADS, "attention_heads": HEADS,
    "num_key_value_heads": 2, "num_kv_heads": 2, "multi_query_group_num": 2,
    "head_dim": 8, "attention_head_dim": 8, "global_head_dim": 8, "kv_channels": 8,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "d_ff": 48, "ffn_hidden_size": 48, "mlp_dim": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "ffn_size": 48, "dense_intermediate_size": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24, "expert_dim": 24, "expert_ffn_hidden_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_moe_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2, "moe_top_k": 2, "top_k_experts": 2,
    "n_group": 1, "topk_group": 1, "n_groups": 2, "num_group": 1, "num_expert_group": 1,
    "first_k_dense_replace": 1, "zero_expert_num": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "qk_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 8, "o_lora_rank": 8,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "seq_length": 64, "n_ctx": 64,
    "max_sequence_length": 64, "context_length": 64, "max_seqlen": 64,
    "sliding_window": 16, "attention_window_size": 16, "window_size": 16, "local_attn_window": 16,
    "state_size": 8, "mamba_d_state": 8, "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_n_heads": 8,
    "mamba_head_dim": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_dt_rank": 4, "time_step_rank": 4,
    "mamba_d_ssm": 64, "chunk_size": 8, "mamba_chunk_size": 8, "expand": 2, "mamba_expand": 2, "lru_width": WIDTH,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "image_size": 16, "patch_size": 8, "num_channels": 3, "spatial_merge_size": 1, "temporal_patch_size": 1,
    "out_hidden_size": WIDTH, "num_image_tokens": 4, "projection_dim": WIDTH, "vision_output_dim": WIDTH,
    "text_hidden_size": WIDTH, "base_channels": 32,
    "moe_hidden_size": WIDTH, "projector_hidden_size": WIDTH, "vision_hidden_size": WIDTH, "max_img_size": 64,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
    "num_nextn_predict_layers": 0, "mtp_num_layers": 0, "num_mtp_modules": 0, "pad_token_id": 0, "bos_token_id": 1,
    "rotary_dim": 4, "num_query_tokens": 4, "mm_tokens_per_image": 4, "resampler_n_latents": 4,
    "layerdrop": 0.0, "num_memory_blocks": 2, "num_mem_blocks": 1, "attention_rank": 4, "low_rank_dim": 4,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "memory_size": 8,
    "num_codebooks": 2, "codebook_size": 16,
    "query_pre_attn_scalar": 10, "route_scale": 1.7,
    "full_attn_alpha_factor": 0.8, "full_attn_beta_factor": 1.3, "linear_attn_alpha_factor": 0.7,
    "linear_attn_beta_factor": 1.2, "mlp_alpha_factor": 0.9, "mlp_beta_factor": 1.4,
    "scale_emb": 3, "dim_model_base": 20,
}  # fmt: skip
# These are None in some default configs, and the classes cannot be made from that.
FILLED: dict[str, Any] = {"head_dim": 8, "attn_logit_softcapping": 20.0, "logit_scale": 0.7}
PER_LAYER = (
    "layer_types", "layers_block_type", "block_types", "attention_types", "mlp_layer_types", "attention_layers",
    "indexer_types", "layer_rope_theta", "no_rope_layers", "num_attention_heads_per_layer",
    "activation_sparsity_pattern", "attn_layers", "kv_source_layers",
)  # fmt: skip
CAP = 11.0
LOOSE = ("decoder_input_ids", "pixel_values")  # these pass through **kwargs in some forwards
MULTIPLIERS = (
    "logit_scale", "logits_scaling", "lm_head_multiplier", "residual_multiplier", "embedding_multiplier",
    "attention_multiplier", "scale_emb", "scale_depth", "mup_", "_multiplier", "emb_scale", "logits_scale",
    "output_multiplier", "width_scale", "routed_scaling_factor", "embedding_scale", "residual_scale",
)  # fmt: skip
TOKENS = ("image_token", "video_token", "audio_token", "boi_", "eoi_", "vision_", "image_")


class CannotBuild(Exception):
    """This class cannot be made tiny, with the reason."""


def _class(names: dict[str, Any], model_type: str) -> type:
    name = names[model_type]
    name = name[0] if isinstance(name, (tuple, list)) else name
    found = getattr(transformers, name, None)
    if found is None:
        raise CannotBuild(f"transformers has no class {name}")
    return found


def causal() -> list[str]:
    return list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def image_text() -> list[str]:
    return list(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def _cycled(value: Any, n: int, old: int) -> list[Any]:
    """``n`` entries of a list with one entry per layer, so that each kind of entry occurs where it can."""
    kinds = list(dict.fromkeys(value)) if all(isinstance(v, str) for v in value) else list(value)
    if len(kinds) == len(value) and len(value) >= n:
        return list(value[:n])
    return (kinds * n)[:n] if kinds else list(value)


def _sections(sections: list[int], total: int) -> list[int]:
    """Rotary sections with the same order of sizes and this sum."""
    small = [max(1, s * total // sum(sections)) for s in sections]
    small[0] += total - sum(small)
    return small


def _shrunk(config: Any, fixed: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Keyword arguments that make a config of this class small; ``fixed`` has the last word."""
    values: dict[str, Any] = {}
    taken = 100
    own = vars(config)
    vision = any(w in path for w in ("vision", "vit", "image", "audio", "speech", "vq", "dac", "codec", "mimi"))
    layers = 2 if vision else LAYERS
    for name, value in list(own.items()):
        if name.startswith("_") or name in ("transformers_version", "architectures"):
            continue
        if hasattr(value, "to_dict"):
            if hasattr(value, "model_type"):
                values[name] = type(value)(**_shrunk(value, fixed.get(name, {}), f"{path}.{name}"))
        elif name in FILLED and value is None:
            values[name] = FILLED[name]
        elif isinstance(value, bool) or value is None:
            if name == "use_mambapy" or name == "use_cache":
                values[name] = False
            elif name in ("mup_enabled", "scale_embedding"):
                values[name] = True
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
            if name in special:
                values[name] = special[name]
            else:
                taken += 1
                values[name] = taken
        elif name.endswith("eos_token_id"):
            values[name] = 2
        elif name == "head_dim" and "qk_rope_head_dim" in own:
            # Latent attention: these configs name the rotary part of a head so, or the whole of it.
            values[name] = EXACT["qk_rope_head_dim" if value == own["qk_rope_head_dim"] else "qk_head_dim"]
        elif name in ("num_key_value_heads", "num_attention_heads") and "kv_lora_rank" in own:
            values[name] = HEADS
        elif name in EXACT and isinstance(value, (int, float)):
            values[name] = 2 if vision and EXACT[name] == LAYERS and "layer" in name else EXACT[name]
        elif name == "intermediate_size" and isinstance(value, (list, tuple)):
            values[name] = [EXACT[name]] * layers
        elif name in PER_LAYER and isinstance(value, (list, tuple)):
            values[name] = _cycled(value, layers, len(value))
        elif name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
            share = value.get("partial_rotary_factor", 1.0)
            values[name] = {**value, "mrope_section": _sections(value["mrope_section"], int(4 * share))}
        elif "softcap" in name or "soft_cap" in name:
            values[name] = CAP
        elif isinstance(value, float) and any(m in name for m in MULTIPLIERS):
            values[name] = value * 0.6 if value != 1 else 0.6
        elif isinstance(value, (list, tuple)) and name.endswith("_multipliers"):
            values[name] = [v * f for v, f in zip(value, (0.6, 0.7, 0.8, 1.3, 1.4), strict=False)]
    return values | {k: v for k, v in fixed.items() if not hasattr(own.get(k), "to_dict")}


PLAIN = {"rope_theta": 10000.0, "rope_type": "default"}
MROPE = {"rope_parameters": {**PLAIN, "mrope_section": [2, 1, 1]}}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
SHARED = {
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": LAYERS,
    "layer_types": ALTERNATING,
}  # fmt: skip
VOCABULARY_MAP = {"<image>": 100, "<|extra_200|>": 99} | {
    name: 101 + i for i in range(8) for name in (f"IMGIMG{'ABCDEFGH'[i]}Z", f"<|visual token {i:06d}|>")
}
OMNI = {"vision_start_token_id": 110, "vision_end_token_id": 111, "audio_start_token_id": 112}
DOTS = {
    "head_dim": 8,
    **{f"swa_{k}": v for k, v in {
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 24, "head_dim": 16,
        "qk_nope_head_dim": 8, "v_head_dim": 8,
    }.items()},
}  # fmt: skip
QWEN4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 4, "ngram_vocab_size_base": 40, "eos_token_id": 2, "hc_lowrank": 8, "ple_layer_ids": [1],
    "ple_embed_dim": WIDTH, "heads_per_ngram": 2, "make_ngram_vocab_size_divisible_by": 2, "split_ngram_parts": 1,
}  # fmt: skip
TINY_VQ = {"base_channels": 32, "channel_multiplier": (1, 1), "num_res_blocks": 1, "num_embeddings": 16}

START: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 30,
        },
    },
}  # fmt: skip
"""Arguments without which the default config of a type cannot even be made."""

PATCHES: dict[str, dict[str, Any]] = {
    "blip-2": {"image_token_index": 120},
    "instructblip": {"image_token_index": 120},
    "instructblipvideo": {"video_token_index": 120},
    "kosmos-2": {"latent_query_num": 4},
    "pix2struct": {"text_config": {"d_kv": 8}, "vision_config": {"d_kv": 8}},
    "pp_formulanet": {
        "vision_config": {"decoder_hidden_size": WIDTH, "output_channels": 16, "post_conv_in_channels": 16,
                          "post_conv_mid_channels": 16, "post_conv_out_channels": 16},
    },
    "blt": {"encoder_hash_byte_group_vocab": 60, "encoder_hash_byte_group_size": [3, 4]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_ocr2": {
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"] * 2, "n_group": 1,
                        "topk_group": 1},
    },
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4_assistant": {"backbone_hidden_size": WIDTH, "text_config": SHARED},
    "gemma4_unified_assistant": {"backbone_hidden_size": WIDTH, "text_config": SHARED},
    "dots3_note": {
        "text_config": DOTS,
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH, "adapter_merge_size": 1,
                          "mlp_layer_types": ["dense", "sparse"], "per_layer_config": {}},
        "audio_config": {"num_key_value_heads": HEADS, "downsample_hidden_size": 16, "adapter_input_size": WIDTH,
                         "adapter_out_dim": WIDTH},
    },
    "dots3_note_text": DOTS,
    "ernie4_5_vl_moe": {
        "text_config": {"moe_intermediate_size": [24, 24], "head_dim": 8,
                        "rope_parameters": {**PLAIN, "mrope_section": [1, 1, 2]}},
    },
    "florence2": {
        "vision_config": {"embed_dim": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2), "num_groups": (2, 2, 2, 2),
                          "depths": (1, 1, 1, 1)},
    },
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "qk_nope_head_dim": 8, "head_dim": 0, "index_kpool": 4}},
    "granite4_vision": {
        # Its constructor gives the query transformer one head for each 64 of the tower's width.
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [(0, 0), (1, 1)], "spatial_target_layers": [1, 2], "downsample_rate": "1/2",
    },
    "inkling_mm_model": {
        # With fewer layers than scales its plan for the tower would need the scipy package.
        "vision_config": {"patch_size": 8, "n_layers": 8, "temporal_patch_size": 2, "text_hidden_size": WIDTH},
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0], "text_hidden_size": WIDTH}},
    "muse_spark": {
        "audio_config": {"num_hidden_layers": 2, "patch_sizes": (4, 2), "hidden_sizes": (16, 32), "depths": (1, 1)},
    },
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": WIDTH}}},
    "qwen2_5_omni_thinker": {"text_config": MROPE, **OMNI},
    "qwen3_omni_moe_thinker": OMNI,
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "attention_head_size": 8,
                 "feed_forward_size": 48, "hash_seed": 7, "is_decoder": True, "local_attn_chunk_length": 8,
                 "lsh_attn_chunk_length": 8, "num_buckets": 2},
    "step3p7": {"text_config": {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] * 2,
                                "rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}}},
    "unlimited_ocr": {"text_config": {"num_key_value_heads": HEADS}},
    "vision-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "zamba": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16},
    "zamba2": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "chameleon": {"vocabulary_map": VOCABULARY_MAP, "vq_config": TINY_VQ},
    "emu3": {"vocabulary_map": VOCABULARY_MAP, "vq_config": TINY_VQ},
    "janus": {"vq_config": TINY_VQ},
    **{name: {"text_config": MROPE} for name in (
        "glm4v", "glm46v", "glmga", "glm_ocr", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "hunyuan_vl",
    )},
    "glm4v_moe": {
        "text_config": {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    },
}  # fmt: skip
"""What the walk over the config cannot know, per model type; sub-configs nest."""


IMPOSSIBLE = {
    name: "its config demands that all layers share key-value states, and its text model refuses such a config "
    "(transformers 5.23); it drafts for another model, whose key-value states its forward needs"
    for name in ("gemma4_assistant", "gemma4_unified_assistant")
}


def _config(model_type: str) -> Any:
    if model_type in IMPOSSIBLE:
        raise CannotBuild(IMPOSSIBLE[model_type])
    if model_type not in CONFIG_MAPPING:
        raise CannotBuild("no config class")
    kind = CONFIG_MAPPING[model_type]
    default = kind(**START.get(model_type, {}))
    config = kind(**_shrunk(default, PATCHES.get(model_type, {})))
    text = config.get_text_config(decoder=True)
    # Where the default is None, too: the code that applies it is there.
    for name, value in (("final_logit_softcapping", CAP), ("logit_scale", 0.7), ("logits_scaling", 0.7)):
        if name in vars(text) and (value == CAP or isinstance(getattr(text, name), (int, float))):
            setattr(text, name, value)
    return config


@contextmanager
def _without_timm() -> Any:
    """Vision towers that only the timm package has become identities: text alone never enters them."""
    made = transformers.AutoModel.from_config

    def from_config(config: Any, **kwargs: Any) -> Any:
        try:
            return made(config, **kwargs)
        except ImportError as error:
            if "timm" not in str(error):
                raise
            return torch.nn.Identity()

    with patch.object(transformers.AutoModel, "from_config", from_config):
        yield


def build(model_type: str, kind: str = "causal", seed: int = 0) -> Any:
    names = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if kind == "causal"
        else modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    )
    torch.manual_seed(seed)
    try:
        config = _config(model_type)
        cls = _class(names, model_type)
        if cls.config_class is not None and not isinstance(config, cls.config_class):
            text = config.get_text_config(decoder=True)
            config = text if isinstance(text, cls.config_class) else config
        if hasattr(config, "is_decoder") and kind == "causal":
            config.is_decoder = True
        config._attn_implementation = "eager"
        with _without_timm():
            module = cls(config).float().eval()
    except CannotBuild:
        raise
    except Exception as error:
        raise CannotBuild(f"{type(error).__name__}: {str(error)[:200]}") from error
    size = sum(p.numel() for p in module.parameters())
    if size > 2e7:
        big = max(module.named_parameters(), key=lambda p: p[1].numel())
        raise CannotBuild(f"{size / 1e6:.0f} M parameters; {big[0]} {tuple(big[1].shape)}")
    if hasattr(module, "set_default_language"):
        module.set_default_language("en_XX")
    try:
        _scale(module, kind, seed)
    except Exception as error:
        raise CannotBuild(f"its forward fails with {type(error).__name__}: {str(error)[:200]}") from error
    return module


def inputs(
    module: Any, seed: int = 0, lengths: tuple[int, int] = (12, 8)
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two prompts of random ids, right-padded, and the mask of their real positions."""
    generator = torch.Generator().manual_seed(seed + 77)
    ids = torch.randint(3, 96, (len(lengths), max(lengths)), generator=generator)
    mask = torch.ones_like(ids)
    for row, n in enumerate(lengths):
        mask[row, n:] = 0
        ids[row, n:] = 0
    return {"input_ids": ids, "attention_mask": mask}, mask.bool()


def _pixels(module: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    size = EXACT["image_size"]
    return {"pixel_values": torch.rand(len(ids), 3, size, size, generator=torch.Generator().manual_seed(5))}


def _queries(module: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """An image, and the place of its query tokens in front of the prompt."""
    config = module.config
    n = config.num_query_tokens
    front = torch.full((len(ids), n), config.image_token_index)
    return _pixels(module, ids) | {"input_ids": torch.cat([front, ids], 1)}


def _decoded(module: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": ids}


NEEDS: dict[tuple[str, str], Callable[[Any, torch.Tensor], dict[str, torch.Tensor]]] = {
    ("image_text", "blip"): _pixels,
    ("image_text", "blip-2"): _queries,
    ("image_text", "instructblip"): lambda m, ids: _queries(m, ids) | {"qformer_input_ids": ids},
    ("image_text", "instructblipvideo"): lambda m, ids: {
        "pixel_values": _pixels(m, ids)["pixel_values"][:, None].expand(-1, 4, -1, -1, -1),
        "input_ids": torch.cat([torch.full((len(ids), 16), m.config.video_token_index), ids], 1),
        "qformer_input_ids": ids,
    },
    ("image_text", "florence2"): _decoded,
    ("image_text", "idefics"): lambda m, ids: {
        "pixel_values": _pixels(m, ids)["pixel_values"][:, None],
        "image_attention_mask": torch.ones(*ids.shape, 1, dtype=torch.long),
    },
    ("image_text", "kosmos-2"): lambda m, ids: _pixels(m, ids)
    | {"image_embeds_position_mask": torch.arange(ids.shape[1]).lt(m.config.latent_query_num).expand(ids.shape)},
    ("image_text", "pi0"): lambda m, ids: {
        "pixel_values": _pixels(m, ids)["pixel_values"][:, None],
        "pixel_attention_mask": torch.ones(len(ids), 1, dtype=torch.bool),
        "state": torch.ones(len(ids), m.config.max_state_dim),
        "noise": torch.ones(len(ids), m.config.chunk_size, m.config.max_action_dim),
        "timestep": torch.full((len(ids),), 0.5),
    },
    ("image_text", "pix2struct"): lambda m, ids: {
        "flattened_patches": torch.rand(len(ids), 6, 2 + m.config.vision_config.patch_embed_hidden_size),
        "attention_mask": torch.ones(len(ids), 6),
    } | _decoded(m, ids),
    ("image_text", "pp_formulanet"): lambda m, ids: _pixels(m, ids) | _decoded(m, ids),
    ("image_text", "t5gemma2"): _decoded,
    ("image_text", "udop"): lambda m, ids: {"bbox": torch.rand(*ids.shape, 4)} | _decoded(m, ids),
    ("image_text", "vision-encoder-decoder"): lambda m, ids: _pixels(m, ids) | _decoded(m, ids),
}  # fmt: skip
"""What the forward of a type needs besides ids and mask; such a model cannot be read from text alone."""


def forward_inputs(module: Any, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs that the plain forward of a model takes: ids, mask, and what ``NEEDS`` adds."""
    given, _ = inputs(module, seed)
    needed = NEEDS.get((kind, module.config.model_type))
    if needed is not None:
        extra = needed(module, given["input_ids"])
        given |= extra
        if "attention_mask" not in extra and given["input_ids"].shape != given["attention_mask"].shape:
            given["attention_mask"] = (given["input_ids"] != 0).long()
    return given


def logits(module: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's own logits, from a plain forward pass without a cache."""
    takes = inspect.signature(module.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    given = {k: v for k, v in given.items() if k in takes or k == "input_ids" or (open_ended and k in LOOSE)}
    if "use_cache" in takes:
        given["use_cache"] = False  # type: ignore[assignment]
    with torch.no_grad():
        return module(**given).logits


def _spread(module: Any, kind: str) -> float:
    """The standard deviation of the logits, as it is ahead of a softcap."""
    given = forward_inputs(module, kind)
    z = logits(module, given).double()
    z = z[z.abs() < 1e20]
    config = module.config.get_text_config(decoder=True)
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    cap = next((c for c in (getattr(config, n, None) for n in names) if c), None)
    if cap and float(z.abs().max()) <= cap:
        z = cap * torch.atanh((z / cap).clamp(-1 + 1e-9, 1 - 1e-9))
    return float(z.std())


def _last_norm(module: Any, kind: str) -> torch.nn.Module | None:
    """The last module with a vector for a weight that a forward pass enters."""
    ran: list[torch.nn.Module] = []
    hooks = [
        m.register_forward_hook(lambda m, *_: ran.append(m))
        for m in module.modules()
        if isinstance(w := getattr(m, "weight", None), torch.nn.Parameter) and w.ndim == 1
    ]
    try:
        logits(module, forward_inputs(module, kind))
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def _scale(module: Any, kind: str, seed: int) -> None:
    """Random norms and biases, and logits with a standard deviation near 8.

    A head of its own is scaled.  A tied one is the embedding as well, so there the last norm is scaled instead.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if not p.is_floating_point():
                continue
            if p.ndim == 1:
                noise = torch.randn(p.shape, generator=generator)
                p.add_(0.2 * noise if p.abs().max() < 100 else 0)
            elif p.ndim >= 2 and p.std() < 0.1:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.6 / p.shape[-1] ** 0.5))
        try:
            head = module.get_output_embeddings()
            tied = head is None or head.weight is module.get_input_embeddings().weight
        except (AttributeError, NotImplementedError):
            head, tied = None, True
        norm = _last_norm(module, kind) if tied else None
        # Some norms multiply with 1 + weight.
        offset = 1.0 if norm is not None and abs(float(norm.weight.mean())) < 0.4 else 0.0
        for step in range(8):
            std = _spread(module, kind)
            if 7 < std < 9 or not 0 < std < 1e9:
                return
            factor = 8 / std
            if step == 4 or (norm is None and head is None):
                norm = None  # it was not the one ahead of the head
                if head is None:
                    return
            if norm is not None:
                norm.weight.copy_((norm.weight + offset) * factor - offset)
                if getattr(norm, "bias", None) is not None:
                    norm.bias.mul_(factor)
            else:
                head.weight.mul_(min(factor, 4) if tied else factor)


@contextmanager
def outlier(block: torch.nn.Module, size: float = 2e4) -> Iterator[None]:
    """One position of every prompt enters this block with a state of ``size`` times the median norm.

    As in trained models, where the first position is so large in the stream that what blocks write is small beside it.
    Never beyond half of what the type holds.
    """

    def plant(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        def grown(value: Any) -> Any:
            if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3):
                return value
            norm = value.double().norm(dim=-1)
            largest = torch.finfo(value.dtype).max / 2 / float(value[:, 1].abs().max())
            factor = (size * norm.median() / norm[:, 1, None]).clamp(max=largest)
            value = value.clone()
            value[:, 1] = (value[:, 1].double() * factor).to(value.dtype)
            return value

        if args and isinstance(args[0], torch.Tensor):
            return (grown(args[0]), *args[1:]), kwargs
        return args, {k: grown(v) if k == "hidden_states" else v for k, v in kwargs.items()}

    handle = block.register_forward_pre_hook(plant, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="one line for each, not only for those that fail")
    parser.add_argument("--only", nargs="*", metavar="NAME")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    good = total = 0
    for kind, types in (("causal", causal()), ("image_text", image_text())):
        for model_type in types:
            if chosen.only and model_type not in chosen.only:
                continue
            total += 1
            start = time.perf_counter()
            what = f"{kind:<10} {model_type:<26}"
            try:
                module = build(model_type, kind)
                z = logits(module, forward_inputs(module, kind))
            except CannotBuild as reason:
                print("none", what, reason, flush=True)
                continue
            except Exception as error:
                print("FAIL", what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
                continue
            good += 1
            if chosen.check or chosen.only:
                size = sum(p.numel() for p in module.parameters())
                spread = float(z[z.abs() < 1e20].std())
                seconds = time.perf_counter() - start
                print(
                    f"ok   {what} {type(module).__name__:<40} {size / 1e6:.2f} M  {tuple(z.shape)}  "
                    f"std {spread:.1f}  {seconds:.1f} s",
                    flush=True,
                )
    print(good, "of", total)


if __name__ == "__main__":
    main()
