"""Tiny random models with awkward readouts, prompts for them, and their states by plain hooks."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

SMALL = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=7.0),
    "cohere": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.3),
    "granite": lambda: transformers.GraniteConfig(
        **SMALL, logits_scaling=3.0, residual_multiplier=0.4, embedding_multiplier=5.0, attention_multiplier=0.3
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=64, pad_token_id=0
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=4, n_head=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, use_parallel_residual=True
    ),
}


def tiny(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model whose logits are large enough that a missed scale, bias or softcap shows."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(6)
    return module


def saved(path: Path, words: list[str]) -> Path:
    """A folder with the tiny Llama and a tokenizer of these 97 words, written apart."""
    import tokenizers

    tiny("llama").save_pretrained(path)
    known = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0")
    made = tokenizers.Tokenizer(known)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    return path


def prompts(n: int = 9, vocabulary: int = 97, seed: int = 3) -> list[list[int]]:
    """Random id lists of different lengths, without the special ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 15, (n,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (m,), generator=generator).tolist() for m in lengths]


def layer_states(module: torch.nn.Module, ids: list[int], blocks: str) -> torch.Tensor:
    """[layers + 1, positions, width], by plain hooks on one unpadded prompt: input of block 0, all outputs."""
    seen: list[torch.Tensor] = []
    handles = []
    for i, block in enumerate(module.get_submodule(blocks)):

        def hook(m, args, kwargs, output, i=i):
            if i == 0:
                seen.append((args[0] if args else kwargs["hidden_states"]).clone())
            seen.append((output[0] if isinstance(output, tuple) else output).clone())

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            module(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)[:, 0]
