"""How loud the expert that serves every token is beside those that tokens are routed to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.results import family, ran
from probes.routing.duplicates import near_duplicates, said
from probes.routing.measures.documents import intervals
from probes.routing.outputs import Blocks, layers_of, ratio, same
from workbench.anatomy.moe import MoE
from workbench.engine.hooks import tensors
from workbench.engine.run import observe as observed
from workbench.errors import Refused
from workbench.inputs import Batch, encode
from workbench.readers import Output, Plan, Rows, Tap
from workbench.reading import Reading, derived
from workbench.stats import Design
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.model import Model

SHARED = ("shared_expert", "shared_experts", "shared_mlp")
"""What transformers' models call the expert that serves every token; behind it, where there is one, ..._gate."""

ENDS, SIZE = ("low", "high"), "units of the stream"
VARIABLES = {
    **family("shared", about("mean length of the shared expert's output", SIZE), *ENDS),
    **family("routed", about("mean length of the routed experts' output", SIZE), *ENDS),
    **family("ratio", about("length of the shared expert's output over the routed ones'"), *ENDS),
    **family("gate", about("mean gate of the shared expert"), *ENDS),
}


def shared(
    model: Model,
    inputs: Any,
    blocks: Blocks = None,
    *,
    batch_size: int | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Reading:
    """How loud the shared expert, which serves every token, is beside the routed ones.

    Both are taken as they are added to each other, gates and factors included: a fit of the mixture's own output by
    the two must leave nothing over.

    Returns:
        [block], with bootstrap over documents (_low, _high): shared, routed: mean Euclidean norm over tokens;
        ratio of the two means; gate: mean of the shared expert's sigmoid gate (NaN where there is none).

    Raises Refused for models without a shared expert, and where the sum cannot be proved.
    """
    prompts, layers = encode(model, inputs), _layers(model, blocks)
    factors: dict[int, tuple[float, float]] = {}
    taps = [_taps(model, layer) for layer in layers]

    def observe(states: Rows, batch: Batch) -> dict[str, Any]:
        document, at = torch.unique(batch.prompt, return_inverse=True)
        sums = np.zeros((len(document), 4, len(layers)))  # shared, routed, gate, tokens
        for i, (layer, own) in enumerate(zip(layers, taps, strict=True)):
            seen = {name: states[tap] if name == "whole" else states[tap].float() for name, tap in own.items()}
            gate = seen["gate"].sigmoid() if "gate" in seen else torch.full((len(batch), 1), torch.nan)
            parts = seen["routed"], seen["shared"] * gate if "gate" in seen else seen["shared"]
            if i not in factors:
                whole = seen["whole"] - seen["stream"] if "stream" in seen else seen["whole"]
                factors[i] = _fit(model, layer, whole, *parts)
            added, always = (abs(x) * part.norm(dim=1) for x, part in zip(factors[i], parts, strict=True))
            for j, values in enumerate((always, added, gate[:, 0], torch.ones_like(always))):
                np.add.at(sums[:, j, i], at.numpy(), values.double().cpu().numpy())
        return {"sums": (document, sums)}

    plan = Plan(
        [tap for own in taps for tap in own.values()],
        {"sums": Output(("prompt", "statistic", "block"), dtype=np.float64, combine="sum")},
        observe,
        {"statistic": 4, "block": len(layers)},
    )
    sums = observed(model, prompts, plan, batch_size=batch_size)["sums"].swapaxes(0, 1)
    own, routed, gate, tokens = sums
    found: dict[str, Any] = {}
    means = {"shared": (own, tokens), "routed": (routed, tokens), "ratio": (own, routed), "gate": (gate, tokens)}
    cluster, methods = near_duplicates(p.ids for p in prompts), {}
    settings = {"draws": draws, "level": level, "seed": seed}
    for name, (over, under) in means.items():
        ends, methods[name] = ratio(name, over, under, Design(cluster), **settings)
        found |= {end: (("block",), value) for end, value in ends.items()}
    attrs = {"documents": len(prompts), **intervals(methods)} | ({"clusters": said(cluster)} if said(cluster) else {})
    table = xr.Dataset(found, {"block": [x.block for x in layers]}, attrs)
    return derived("routing.shared", described(table, VARIABLES), ran(model, prompts), **settings)


def _taps(model: Model, layer: MoE) -> dict[str, Tap]:
    """The shared expert of a block, the routed ones, the gate, what they make together, and the stream in it."""

    def tap(path: str, *, given: bool = False) -> Tap:
        """What a module gives, or what it is given, [rows, width]."""

        def read(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
            value = next(tensors((args, kwargs) if given else output))
            return value.reshape(-1, value.shape[-1])

        return Tap(model.module.get_submodule(path), read, path)

    expert = _shared_of(model, layer)
    parent = _common(layer.name, expert)
    found = {"routed": tap(layer.name), "shared": tap(expert), "whole": tap(parent)}
    if _submodule(model, f"{expert}_gate"):
        found["gate"] = tap(f"{expert}_gate")
    # Where the two meet in the block itself (Granite), the stream before them is in its output, too.
    norm = f"{parent}.post_attention_layernorm"
    if parent == f"{model.anatomy.blocks}.{layer.block}" and _submodule(model, norm):
        found["stream"] = tap(norm, given=True)
    return found


def _layers(model: Model, blocks: Blocks) -> list[MoE]:
    """The blocks asked for; None: all that have a shared expert."""
    found = [b for b, x in model.moe.items() if _shared_of(model, x)]
    if not found:
        raise Refused(
            f"{model.name} has no shared expert beside routed ones (a module named {', '.join(SHARED)}), so there is "
            "nothing to compare."
        )
    layers = layers_of(model, found if blocks is None else blocks)
    if bare := [x.block for x in layers if x.block not in found]:
        raise Refused(f"{model.name}: block {bare[0]} has no shared expert. Blocks that have one: {found}.")
    return layers


def _shared_of(model: Model, layer: MoE) -> str:
    """Path of the shared expert nearest to a block's experts, or ""."""
    block = f"{model.anatomy.blocks}.{layer.block}"
    names = [n for n, _ in model.module.get_submodule(block).named_modules() if n.rsplit(".", 1)[-1] in SHARED]
    return max((f"{block}.{n}" for n in names), key=lambda n: len(_common(n, layer.name)), default="")


def _common(a: str, b: str) -> str:
    """The module that holds both."""
    parts = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        parts.append(x)
    return ".".join(parts)


def _fit(model: Model, layer: MoE, mixed: Tensor, routed: Tensor, own: Tensor) -> tuple[float, float]:
    """Factors of the routed and the shared part in their mixture; Refused where there is more to it."""
    if not mixed.shape == routed.shape == own.shape:
        shapes = [list(x.shape[1:]) for x in (mixed, routed, own)]
        raise Refused(
            f"{model.name}: in block {layer.block} the mixture, its routed and its shared part are {shapes} wide, so "
            "they cannot be compared. Leave this block out: blocks=[...]."
        )
    parts = torch.stack([routed.flatten(), own.flatten()], 1).double().cpu()
    factors = torch.linalg.lstsq(parts, mixed.flatten().double().cpu()[:, None]).solution[:, 0]
    total = (parts @ factors).view(mixed.shape).to(mixed.device)
    same(model, layer, mixed, total.float(), "the routed and the shared part", "they are mixed to")
    return float(factors[0]), float(factors[1])


def _submodule(model: Model, path: str) -> nn.Module | None:
    try:
        return model.module.get_submodule(path)
    except AttributeError:
        return None
