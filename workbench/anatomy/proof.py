"""The proof that a readout is the model's own, and what it rests on.

The readout is replayed on a second, fresh batch (two prompts of different length, padded) and must give the model's
own logits.  If it does not, the model is refused: a lens through a wrong readout is silently wrong.  The batch runs
padded on either side, and each prompt alone: only a side on which pads change nothing is padded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.anatomy.config import config_numbers, text_config
from workbench.anatomy.constants import row_share
from workbench.anatomy.description import Anatomy
from workbench.anatomy.probe import alone, probe, probe_inputs
from workbench.anatomy.replay import Replay, head_weights
from workbench.errors import Refused

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest |replayed - own| logit, as a share of the largest |own| logit.

Half precisions are looser because the same matrix product rounds differently for another batch shape."""


def proof_is_current(module: nn.Module, anatomy: Anatomy, proved: Any) -> bool:
    """Whether what the proof rests on is as it was when :func:`proof_rests_on` gave ``proved``."""
    return proof_rests_on(module, anatomy) == proved


def proof_rests_on(module: nn.Module, anatomy: Anatomy) -> tuple[Any, ...]:
    """What turns the last states into logits, as far as a proof would notice a change; cheap to ask for.

    The modules of the readout and those around the blocks, by identity; their hooks (but for those that say
    ``only_looks``, an attribute of the function) and replaced forwards; the
    constants of the config; and, where the unembedding is more than one linear layer (an adapter, a parametrisation),
    its weights and switches.  The weights of a plain one may change: they are read anew for every reading.
    """
    path = dict.fromkeys([*(step.path for step in anatomy.steps), anatomy.unembedding])
    outer = [module]
    for name in anatomy.blocks.split(".")[:-1]:
        outer.append(outer[-1].get_submodule(name))
    head = module.get_submodule(anatomy.unembedding)
    found: list[Any] = [tuple(config_numbers(getattr(module, "config", None)))]
    for m in outer:  # what is given to these may change as it likes: it is part of the prompt
        hooks = [key for key, hook in m._forward_hooks.items() if not getattr(hook, "only_looks", False)]
        found += [id(m), tuple(hooks), id(vars(m).get("forward"))]
        found += [_version(t) for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    for name in path:
        for m in module.get_submodule(name).modules():
            found += [id(m), tuple(m._forward_hooks), tuple(m._forward_pre_hooks), id(vars(m).get("forward"))]
    if type(head) not in (nn.Linear, nn.Embedding) and not hasattr(head, "_hf_hook"):
        for m in head.modules():
            switches = {k: v for k, v in vars(m).items() if k != "training"}
            found.append(repr({k: v for k, v in switches.items() if _is_plain(v)}))
        found += [(_version(t), *_sample(t)) for t in (*head.parameters(), *head.buffers())]
    return tuple(found)


def _version(tensor: Tensor) -> tuple[int, int, int]:
    return id(tensor), 0 if tensor.is_meta else tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> list[float]:
    """Some elements: an optimizer that writes to memory directly raises no version."""
    if tensor.is_meta or not tensor.numel():
        return []
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 256)].double().nan_to_num().tolist()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (bool, int, float, str, type(None)))


def prove_readout(module: nn.Module, anatomy: Anatomy) -> Anatomy:
    """Replay the readout on fresh tokens; the anatomy with its proof, or Refused.

    The tokens are two prompts of different length in one batch, padded on the right.  They then run padded on the
    left, and each alone: pads are proved on a side where neither prompt's logits or last states depend on them.
    """
    inputs, real = probe_inputs(module, seed=1)
    last = list(module.get_submodule(anatomy.blocks).children())[anatomy.last_block]

    def look(given: dict[str, Tensor], where: Tensor) -> tuple[Tensor, Tensor]:
        """The last states and the logits at the real positions."""
        seen: list[Tensor] = []

        def take(m: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            state = anatomy.layout.find(output)
            if state is not None:
                seen.append(state.detach().clone())

        logits = probe(module, given, after={last: take}).logits
        return seen[-1][where.to(seen[-1].device)], logits[where.to(logits.device)].float()

    rows, own = look(inputs, real)
    error, tolerance, keep = _compared(module, anatomy, rows, own)
    own = own.to(keep.device)
    dtype = rows.dtype
    if not anatomy.proof.states_continuous:
        raise Refused(
            f"In {anatomy.architecture} a block of {anatomy.blocks} does not read what the block before it gave. "
            "The states at the borders are not one residual stream, so reading them layer by layer would mislead."
        )
    if not error <= tolerance:
        raise Refused(
            f"The readout found for {anatomy.architecture} is not the model's: on fresh tokens "
            f"{anatomy.formula} differs from its own logits by {error:.1e} of the largest logit "
            f"(allowed: {tolerance:.0e} in {dtype}). A lens through it would be silently wrong."
        )
    each = [torch.cat(parts) for parts in zip(*(look(*one) for one in alone(inputs, real)), strict=True)]
    shares: dict[str, float] = {}
    for side in ("right", "left"):
        try:
            padded = (rows, own) if side == "right" else look(*_left(inputs, real))
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception:  # a model that cannot run so is not padded so
            continue
        (states, z), (own_states, own_z) = padded, each
        masked = ~keep.to(z.device)
        shares[side] = max(
            row_share(states.float() - own_states.float(), own_states.float()),
            row_share((z - own_z).masked_fill(masked, 0), own_z.masked_fill(masked, 0)),
        )
    # Sparse attention picks its keys among the pads, too, but only in prompts longer than its budget of keys.
    sparse = any(name.startswith("index_topk") and value for name, value in vars(text_config(module)).items())
    sides = tuple(side for side, share in shares.items() if share <= tolerance and not sparse)
    proof = replace(anatomy.proof, error=error, tolerance=tolerance, positions=int(real.sum()))
    return replace(anatomy, proof=proof, pad_sides=sides, pad_limit=_rope_limit(text_config(module)))


def readout_error(module: nn.Module, anatomy: Anatomy, rows: Tensor, own: Tensor) -> tuple[float, float]:
    """How far the readout of states [rows, width] is from the model's own logits, and how far it may be.

    As a share of the largest logit.
    """
    error, tolerance, _ = _compared(module, anatomy, rows, own)
    return error, tolerance


def _compared(module: nn.Module, anatomy: Anatomy, rows: Tensor, own: Tensor) -> tuple[float, float, Tensor]:
    features = Replay(module, anatomy).features(rows)
    weight, bias = head_weights(module, anatomy)
    features, own = features.to(weight.device), own.to(weight.device)
    logits = nn.functional.linear(features, weight, bias).float() * anatomy.scale
    if anatomy.softcap is not None:
        logits = anatomy.softcap * torch.tanh(logits / anatomy.softcap)
    if anatomy.masked:
        logits[:, list(anatomy.masked)] = own[:, list(anatomy.masked)]
    keep = ~(own.abs() >= torch.finfo(torch.bfloat16).max / 4)  # what the model masks; NaN stays, and fails
    error = row_share((logits - own).masked_fill(~keep, 0), own.masked_fill(~keep, 0))
    return error, TOLERANCE.get(rows.dtype, 1e-4), keep


def _rope_limit(config: Any) -> int | None:
    """The length beyond which the rotary frequencies of a whole batch are others, by its longest row; None: none.

    Prompts of the proof are too short to show it.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    for kind in (rope, *(own for own in rope.values() if isinstance(own, dict))):  # one for each type of layer
        if (kind.get("rope_type") or kind.get("type")) in ("dynamic", "longrope", "su"):
            named = (kind.get("original_max_position_embeddings"), vars(config).get("original_max_position_embeddings"))
            found += [next((n for n in named if n), vars(config).get("max_position_embeddings"))]
    return min((n for n in found if n), default=None)


def _left(inputs: dict[str, Tensor], real: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A right-padded batch with its pads in front, as :func:`workbench.inputs.collate` puts them."""
    width = real.shape[1]
    shift = [width - n for n in real.sum(1).tolist()]
    moved = {k: torch.stack([row.roll(s) for row, s in zip(v, shift, strict=True)]) for k, v in inputs.items()}
    mask = moved["attention_mask"]
    return {**moved, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}, mask.bool()
