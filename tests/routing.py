"""Every architecture with a router in transformers, tiny and random: is what is traced the routing that happened?

    python tests/routing.py [--only NAME ...]        writes tests/routing.csv

For each: the experts are fed again with the captured indices and weights, and a sum over experts is written out here
from their weights; both must give what the model's own experts gave.  One captured weight is changed, and the logits
must move.  And it is noted whether the top k of the router's logits would have been the same experts.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
import zoo
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.anatomy.moe import ADAPTERS, Call, Routing, record, takes_routing

HERE = Path(__file__).parent
VARIANTS: dict[str, dict[str, Any]] = {
    # With default configs these are dense.
    "doge": {"is_moe": True, "num_experts": 16},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    # Groups are looked at: the top k of all experts is then not what is chosen.
    "deepseek_v3": {"n_routed_experts": 8, "n_group": 4, "topk_group": 2},
}
FIELDS = (
    "folder", "model_type", "class", "kind", "layers", "experts", "top_k", "weight_sum", "experts_again", "written_out",
    "weight_changes_logits", "top_k_of_logits",
)  # fmt: skip


def folders() -> list[str]:
    """Model folders of transformers that record router logits."""
    root = Path(transformers.__file__).parent / "models"
    return sorted({f.parent.name for f in root.glob("*/modeling_*.py") if '"router_logits": ' in f.read_text("utf-8")})


def _specials() -> dict[str, Any]:
    """Architectures that are no causal language models."""
    small = {"vocab_size": zoo.VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    switch = transformers.SwitchTransformersConfig(
        **small, num_decoder_layers=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4,
        expert_capacity=3, decoder_start_token_id=0,
    )  # fmt: skip
    nllb = transformers.NllbMoeConfig(
        vocab_size=zoo.VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_experts=4, encoder_sparse_step=2,
        decoder_sparse_step=2, expert_capacity=64, decoder_start_token_id=2,
    )  # fmt: skip
    privacy = transformers.OpenAIPrivacyFilterConfig(
        vocab_size=zoo.VOCABULARY, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return {
        "switch_transformers": (transformers.SwitchTransformersForConditionalGeneration, switch),
        "nllb_moe": (transformers.NllbMoeForConditionalGeneration, nllb),
        "openai_privacy_filter": (transformers.OpenAIPrivacyFilterForTokenClassification, privacy),
    }


def models() -> Iterator[tuple[str, str, nn.Module]]:
    """(folder, model type, module), one for each folder where that can be made."""
    wanted, done = set(folders()), set()
    specials = _specials()
    for kind, names in (("causal", zoo.causal()), ("image", zoo.image_text())):
        for name in names:
            if name not in transformers.CONFIG_MAPPING:
                continue
            folder = transformers.CONFIG_MAPPING[name].__module__.split(".")[2]
            if folder not in wanted or folder in done:
                continue
            base = zoo.PATCHES.get(name, {})
            try:
                with patch.dict(zoo.PATCHES, {name: {**base, **VARIANTS.get(name, {})}}):
                    module = zoo.build(name, kind)
            except zoo.CannotBuild:
                continue
            # Selection biases start at zero, where they select nothing.
            for part, value in [*module.named_buffers(), *module.named_parameters()]:
                if any(word in part for word in ("correction_bias", "expert_bias", "balancing_bias")):
                    value.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
            if any(takes_routing(m) or type(m).__name__ in ADAPTERS for m in module.modules()):
                done.add(folder)
                yield folder, name, module
    for folder, (cls, config) in specials.items():
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        yield folder, folder, cls(config).float().eval()


def inputs(module: Any) -> dict[str, Tensor]:
    given, _ = zoo.inputs(module)
    if getattr(module.config, "is_encoder_decoder", False):
        given = {**given, "decoder_input_ids": given["input_ids"]}
    names = inspect.signature(module.forward).parameters
    loose = any(p.kind == p.VAR_KEYWORD for p in names.values())
    return {k: v for k, v in given.items() if k in names or loose}


def logits(module: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        torch.manual_seed(0)
        return module(**given).logits.float()


# ---------------------------------------------------------------- sums written out


def experts_by_hand(module: Any, x: Tensor, routing: Routing) -> Tensor | None:
    """The sum over a token's experts from their weights, where these are plain matrices; None where they are not."""
    name = type(module).__name__
    if any(p.endswith("bias") or "scale" in p for p, _ in module.named_parameters()):
        return None
    index, weight = routing.index.clamp_min(0), routing.weight
    out = torch.zeros(len(x), x.shape[1], dtype=x.dtype)
    if name == "DogeCDMoE":
        down, up = module.down_embed.weight[index], module.up_embed.weight[index]
        mixed = module.act_fn((down * x[:, None]).sum(-1)) * weight
        shared = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
        return (mixed[..., None] * up).sum(1) + shared
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    single = getattr(module, "up_proj", None)
    act = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    if not isinstance(down, Tensor) or down.ndim != 3 or act is None or getattr(module, "swiglu_limit", None):
        return None
    for token in range(len(x)):
        for slot in range(index.shape[1]):
            e, w = int(index[token, slot]), weight[token, slot]
            if routing.index[token, slot] < 0:
                continue
            if e >= len(down):  # an identity expert
                out[token] += w * x[token]
                continue
            d = down[e]
            if isinstance(gate_up, Tensor) and gate_up.shape[2] == x.shape[1]:
                gate, upper = F.linear(x[token], gate_up[e]).chunk(2)
                two = (
                    isinstance(act, nn.Module) and len(inspect.signature(act.forward).parameters) > 1
                )  # an activation of both halves
                h = act(gate, upper) if two else act(gate) * upper
            elif isinstance(single, Tensor) and single.ndim == 3 and single.shape[2] == x.shape[1]:
                h = act(F.linear(x[token], single[e]))
            else:
                return None
            if d.shape[0] != x.shape[1] or d.shape[1] != h.shape[0]:
                return None
            y = F.linear(h, d)
            norm = getattr(module, "post_expert_norm", None)
            out[token] += w * (y if norm is None else norm(y[None])[0])
    return out


def around_the_router(module: nn.Module, given: dict[str, Tensor], name: str, routing: Routing) -> float | None:
    """Llama4 and JetMoE, whose routing is read behind the router: the whole layer, written out."""
    parent = module.get_submodule(name.rsplit(".", 1)[0])
    kept: dict[str, Any] = {}

    def keep(m: Any, a: tuple, k: dict, out: Any) -> None:
        kept.setdefault("x", (a[0] if a else next(iter(k.values()))))
        kept.setdefault("out", out[0] if isinstance(out, tuple) else out)

    handle = parent.register_forward_hook(keep, with_kwargs=True)
    logits(module, given)
    handle.remove()
    if "x" not in kept:  # JetMoE's attention calls parts of its experts
        return None
    x = kept["x"].reshape(-1, kept["x"].shape[-1])
    index, weight = routing.index, routing.weight
    with torch.no_grad():
        if type(parent).__name__ == "Llama4TextMoe":
            e, total = parent.experts, parent.shared_expert(x)
            for slot in range(index.shape[1]):
                i = index[:, slot]
                # Here the weight multiplies what goes in.
                gate, up = torch.einsum("th,tho->to", x * weight[:, slot, None], e.gate_up_proj[i]).chunk(2, -1)
                total = total + torch.einsum("to,toh->th", up * e.act_fn(gate), e.down_proj[i])
        elif type(parent).__name__ == "JetMoeMoE":
            total = parent.bias.expand(len(x), -1)
            for slot in range(index.shape[1]):
                i = index[:, slot]
                gate, up = torch.einsum("th,toh->to", x, parent.input_linear.weight[i]).chunk(2, -1)
                y = torch.einsum("to,tho->th", parent.activation(gate) * up, parent.output_linear.weight[i])
                total = total + weight[:, slot, None] * y
        else:
            return None
    return _error(total, kept["out"].reshape(-1, x.shape[1]))


def check(folder: str, name: str, module: nn.Module) -> dict[str, Any]:
    given = inputs(module)
    plain = logits(module, given)
    calls: dict[str, tuple[Any, tuple, dict, Any]] = {}
    handles = []
    parts = {n: m for n, m in module.named_modules() if takes_routing(m) or type(m).__name__ in ADAPTERS}

    def keep(n: str) -> Any:
        def hook(m: Any, a: tuple, k: dict, out: Any) -> None:
            calls.setdefault(n, (m, a, k, out))

        return hook

    for n, m in parts.items():
        handles.append(m.register_forward_hook(keep(n), with_kwargs=True))
    with record(module) as found:
        traced = logits(module, given)
    for h in handles:
        h.remove()
    assert torch.equal(plain, traced), "tracing changed the logits"
    called = {n: r[0] for n, r in found.items()}
    assert called, "nothing was traced"
    assert set(called) == {n for n in parts if n in calls}, "a call was not traced"
    first = next(iter(called))
    part, args, kwargs, output = calls[first]
    row: dict[str, Any] = {
        "folder": folder, "model_type": name, "class": type(module).__name__,
        "kind": "experts" if takes_routing(part) else type(part).__name__,
        "layers": len(called), "top_k": int(called[first].index.shape[1]),
        "weight_sum": round(float(called[first].weight.sum(1).mean()), 3),
    }  # fmt: skip
    from workbench.anatomy.moe import _experts

    row["experts"] = _experts(part)[0] if takes_routing(part) else int(part.num_experts)
    # Fed again: forward of the class itself, so that no hook stands between.
    again, hand = [], []
    for n, routing in called.items():
        m, a, k, out = calls[n]
        out = out[0] if isinstance(out, tuple) else out
        if takes_routing(m):
            call = Call(m, a, k)
            if call.get(call.index).ndim == 3:
                continue
            index = torch.where(routing.index < 0, call.get(call.index), routing.index)
            weight = routing.weight
            if call.get(call.weight).shape != call.get(call.index).shape:
                weight = torch.zeros_like(call.get(call.weight)).scatter_(-1, index, weight)
            a2, k2 = call.replaced(index.view_as(call.get(call.index)), weight.view_as(call.get(call.weight)))
            with torch.no_grad():
                again.append(_error(m(*a2, **k2), out))
            x = a[0] if a else next(v for v in k.values() if isinstance(v, Tensor) and v.is_floating_point())
        elif (error := around_the_router(module, given, n, routing)) is not None:
            hand.append(error)
            continue
        elif type(m).__name__ != "DogeCDMoE":
            continue
        else:
            x = a[0] if a else k["hidden_states"]
        x = x.reshape(-1, x.shape[-1])
        with torch.no_grad():
            own = experts_by_hand(m, x, routing)
        if own is not None and len(own) == out.numel() // out.shape[-1]:
            hand.append(_error(own, out.reshape(-1, out.shape[-1])))
    row["experts_again"] = f"{max(again):.0e}" if again else ""
    row["written_out"] = f"{max(hand):.0e}" if hand else ""
    row["weight_changes_logits"] = _moves(module, given, plain, parts[first])
    row["top_k_of_logits"] = _naive(module, given, called)
    return row


def _error(a: Tensor, b: Tensor) -> float:
    a = a[0] if isinstance(a, tuple) else a
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _moves(module: nn.Module, given: dict[str, Tensor], plain: Tensor, part: nn.Module) -> str:
    """Whether the logits move when one captured weight is another."""
    if not takes_routing(part):
        return ""

    def change(m: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = Call(m, args, kwargs)
        index, weight = call.get(call.index), call.get(call.weight).clone()
        weight.view(-1)[weight.view(-1).abs().argmax()] *= 3
        return call.replaced(index, weight)

    handle = part.register_forward_pre_hook(change, with_kwargs=True)
    try:
        return "yes" if float((logits(module, given) - plain).abs().max()) > 1e-6 else "no"
    finally:
        handle.remove()


def _naive(module: nn.Module, given: dict[str, Tensor], called: dict[str, Routing]) -> str:
    """Share of tokens for which the top k of ``router_logits`` are the experts that were used."""
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            out = module(**given, output_router_logits=True)
        recorded = [t for t in (out.get("router_logits") or ()) if isinstance(t, Tensor)]
    except Exception as error:  # some classes do not take the argument
        return f"none ({type(error).__name__})"
    if len(recorded) != len(called):
        return f"{len(recorded)} tensors for {len(called)} layers"
    agree = []
    for scores, routing in zip(recorded, called.values(), strict=True):
        scores = scores.reshape(-1, scores.shape[-1])
        if len(scores) != len(routing.index) or scores.shape[1] < routing.index.shape[1]:
            return f"shape {tuple(scores.shape)}"
        naive = scores.topk(routing.index.shape[1], 1).indices.sort(1).values
        agree.append((naive == routing.index.sort(1).values).all(1).float().mean())
    return f"{float(torch.stack(agree).mean()):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for folder, name, module in models():
        if given.only and folder not in given.only:
            continue
        try:
            rows.append(check(folder, name, module))
        except Exception as error:
            rows.append({"folder": folder, "model_type": name, "kind": f"FAILED {type(error).__name__}: {error}"})
        print(rows[-1], flush=True)
    missing = sorted(set(folders()) - {r["folder"] for r in rows})
    print(f"{len(rows)} of {len(folders())} architectures; not made: {missing}")
    if not given.only:
        with (HERE / "routing.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda r: r["folder"]))


if __name__ == "__main__":
    main()
