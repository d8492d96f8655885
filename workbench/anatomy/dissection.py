"""Find a model's blocks, readout and residual stream by their structure, and prove the readout by numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.anatomy.config import config_numbers
from workbench.anatomy.constants import fit_output, unit_roundoff
from workbench.anatomy.description import Anatomy, Proof
from workbench.anatomy.layout import Layout
from workbench.anatomy.probe import accepted, probe, probe_inputs, record, rows_of
from workbench.anatomy.proof import prove_readout
from workbench.anatomy.stream import find_blocks, find_unembedding, follow, tail_reason, tied
from workbench.engine.hooks import untouched
from workbench.errors import Refused


def dissect(module: nn.Module) -> Anatomy:
    """Find the anatomy of a model and prove its readout.

    Raises:
        Refused: with the nearest reason, when a part is not found or the replayed readout is not the model's.
    """
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise Refused(
            f"{type(module).__name__} is an encoder-decoder: its logits depend on two streams. "
            "Only decoder-only models (and encoders with a token head) are read."
        )
    away = absent_weights(module)
    if away:
        raise Refused(
            f"Weights of {type(module).__name__} are not in memory ({', '.join(away[:3])}: on the meta device), and no "
            "hook of accelerate brings them for a forward pass. What is computed with them would be whatever memory "
            "holds: load the model with its weights, or offload it with accelerate (device_map=, cpu_offload)."
        )
    with untouched(module):
        inputs, real = probe_inputs(module, seed=0)
        if "input_ids" not in accepted(module, inputs):
            raise Refused(f"The forward of {type(module).__name__} takes no input_ids, so text cannot be read.")
        try:
            probe(module, inputs)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Refused(
                f"A plain forward pass of {type(module).__name__} on text alone fails with "
                f"{type(error).__name__}: {str(error)[:300]}. A model that cannot run on token ids cannot be read."
            ) from error
        found = _dissect(module, inputs, real)
        try:
            return prove_readout(module, found)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if isinstance(error, Refused) or found.own_tail or found.tied_function:
                raise _unproved(found, error) from error
        # A chain of modules that cannot be called on states alone: the model's own code may be.
        found = replace(found, own_tail=True, steps=())
        try:
            return prove_readout(module, found)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _unproved(found, error) from error


def _unproved(found: Anatomy, error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    return Refused(
        f"What {found.architecture} does behind its last block cannot be run on states alone "
        f"({type(error).__name__}: {str(error)[:200]}): its logits need more than the last state. "
        "A lens that left the rest out would be silently wrong."
    )


def _dissect(module: nn.Module, inputs: dict[str, Any], real: Tensor) -> Anatomy:
    kind = type(module).__name__
    events, logits = record(module, inputs, keep=lambda name: False)
    if logits.ndim != 3 or logits.shape[:2] != real.shape:
        raise Refused(
            f"The logits of {kind} have shape {tuple(logits.shape)} for input ids {tuple(real.shape)}: there is "
            "not one distribution for each position, so states and logits cannot be matched."
        )
    vocabulary = logits.shape[-1]
    path, ran = find_blocks(module, events)
    last_end = max(e.end for e in events if e.name == ran[-1])
    unembedding = find_unembedding(module, events, vocabulary)
    tail = [e.name for e in events if e.begin > last_end]
    # Outermost calls only: a head that is a module of modules is one step.
    outer = [n for n in tail if not any(n.startswith(o + ".") for o in tail)]
    wanted = set(outer) | {unembedding, *ran}
    events, logits = record(module, inputs, keep=lambda name: name in wanted)
    by_name = {event.name: event for event in events}

    outputs = [by_name[name].output for name in ran]
    last = outputs[-1]
    layout = None if last is None else Layout.guess(last, *real.shape)
    if last is None or layout is None:
        shape = None if last is None else tuple(last.shape)
        raise Refused(
            f"{ran[-1]} of {kind} gives states of shape {shape} for {real.shape[0]} prompts of {real.shape[1]} tokens: "
            "there is not one residual state for each position."
        )
    continuous = all(
        any(
            t.shape == o.shape and torch.equal(layout.read(t)[real], layout.read(o)[real]) for t in by_name[name].inputs
        )
        for o, name in zip(outputs[:-1], ran[1:], strict=True)
        if o is not None and o.shape == last.shape
    )
    numbers = config_numbers(getattr(module, "config", None))
    functional = unembedding is None
    steps, raw = follow(module, by_name, outer, unembedding, last, layout, real, numbers)
    own_tail = False
    if raw is None and functional:
        # No module gives the logits: perhaps the tied embedding matrix does, in a function.
        unembedding, raw = tied(module, by_name, steps, last, layout, vocabulary)
    if raw is None and not functional:
        # Not a chain of modules.  The model's own code can still be run on states put in place of the last
        # block's output; whether that depends on nothing else is for the proof to say.
        own_tail, steps, raw = True, [], by_name[str(unembedding)].output
    if raw is None or unembedding is None:
        raise Refused(tail_reason(kind, ran[-1], outer, unembedding))
    raw_rows = rows_of(raw, real).float()
    own_rows = logits[real].float()
    if raw_rows.shape != own_rows.shape:
        raise Refused(
            f"{unembedding} of {kind} gives {tuple(raw_rows.shape)} numbers and the logits are "
            f"{tuple(own_rows.shape)}: the logits come from somewhere else as well."
        )
    scale, softcap, masked = fit_output(raw_rows, own_rows, numbers, unit_roundoff(raw.dtype, logits.dtype))
    embedding = module.get_input_embeddings()
    where = next((n for n, m in module.named_modules() if m is embedding), None)
    return Anatomy(
        architecture=kind,
        blocks=path,
        n_layers=len(module.get_submodule(path)),
        d_model=layout.width,
        vocab_size=vocabulary,
        embedding=where,
        steps=tuple(steps),
        unembedding=str(unembedding),
        scale=scale,
        softcap=softcap,
        masked=masked,
        tied_function=functional,
        last_block=[name for name, _ in module.get_submodule(path).named_children()].index(ran[-1].rsplit(".", 1)[1]),
        layout=layout,
        own_tail=own_tail,
        proof=Proof(math.nan, math.nan, 0, str(last.dtype).removeprefix("torch."), continuous),
    )


def absent_weights(module: nn.Module, path: str = "") -> list[str]:
    """Weights on the meta device that nothing brings; one product with such a tensor gives unwritten memory."""
    hook: Any = getattr(module, "_hf_hook", None)
    bringing = [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", False)]
    if any(h.place_submodules for h in bringing):
        return []
    own = [path + name for name, p in module.named_parameters(recurse=False) if p.is_meta and not bringing]
    return own + [name for n, child in module.named_children() for name in absent_weights(child, f"{path}{n}.")]
