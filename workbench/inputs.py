"""Strings, chats, token ids and images -> prompts -> padded batches, and which positions are real.

Padding is the workbench's own business: prompts are padded on the right (or, on request, on the left with
explicit position ids), whatever the tokenizer's ``padding_side`` says, and a pad is never a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.anatomy import text_config
from workbench.errors import InputError, Refused

if TYPE_CHECKING:
    from workbench.model import Model

Positions = str | int | slice | Sequence[int]


@dataclass
class Prompt:
    """One prompt: its token ids, the text it came from, and what else the model is given with it (images)."""

    ids: list[int]
    text: str
    extras: dict[str, Tensor] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    """The positions asked for, counted from 0 at the prompt's first token."""


@dataclass(eq=False)
class Batch:
    """What a reader is told about the states it sees.

    Attributes:
        prompts: [batch] index of each row's prompt.
        rows: [selected] flat index into [batch * padded length] of every position asked for; pads are never in it.
        prompt: [selected] index of the prompt of each selected row.
        slot: [selected] where the row belongs on the reading's position axis.
        input_ids: [selected] token id at each selected row.
        first: [selected] flat index of the first token of each row's prompt; None in passes that do not show whole
            prompts (those that go on from a cache).
    """

    prompts: list[int]
    inputs: dict[str, Any]
    rows: Tensor
    prompt: Tensor
    slot: Tensor
    input_ids: Tensor
    first: Tensor | None = None
    scratch: dict[Any, Any] = field(default_factory=dict)
    """A reader's notes for this batch.  Gone after it, and when it runs again in halves for want of memory."""
    done: list[Callable[[], None]] = field(default_factory=list)
    """Called once the whole batch succeeded: count here, not in ``observe``, which may see a batch twice."""

    def take(self, states: Tensor) -> Tensor:
        """The selected rows of live states: [batch, padded length, width] -> [selected, width]."""
        flat = states.reshape(-1, states.shape[-1])
        return flat.index_select(0, self.rows.to(flat.device))

    def __len__(self) -> int:
        return len(self.rows)


def encode(model: Model, inputs: Any, positions: Positions = "all") -> list[Prompt]:
    """Prompts from whatever the user has.

    Args:
        inputs: a string; a list of strings; a chat (a list of ``{"role", "content"}``) or a list of chats; a
            list of token ids or of lists of them; ``{"text": ..., "images": ...}`` for vision-language models.
        positions: "all", "last", an index, a slice or a list of indices (negative ones count from the end).

    Raises:
        InputError: for an empty prompt, one longer than the context, unknown ids, or text without a tokenizer.
    """
    if isinstance(inputs, dict):
        prompts = _with_images(model, inputs)
    else:
        items = _listed(inputs)
        if not items:
            raise InputError("There is no prompt to read: the list is empty.")
        prompts = [_one(model, item, i) for i, item in enumerate(items)]
    limit = model.context_length
    for i, prompt in enumerate(prompts):
        if not prompt.ids:
            raise InputError(
                f"Prompt {i} is empty (no tokens). A model gives no state without a token; "
                "write at least one token, e.g. the beginning-of-sequence token."
            )
        if limit is not None and len(prompt.ids) > limit:
            raise InputError(
                f"Prompt {i} has {len(prompt.ids)} tokens and {model.name} reads at most {limit}. "
                "States beyond its context would mean nothing; cut the prompt or split it."
            )
        prompt.positions = _positions(positions, len(prompt.ids), i)
    return prompts


def _listed(inputs: Any) -> list[Any]:
    """One input or many -> many."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, Tensor):
        inputs = inputs.tolist()
    if not isinstance(inputs, Iterable):
        raise InputError(
            f"read() cannot read a {type(inputs).__name__}. Give a string, a list of strings, chats or token ids, "
            "or a dict with text and images."
        )
    inputs = list(inputs)
    if inputs and (isinstance(inputs[0], int) or _is_turn(inputs[0])):
        return [inputs]
    return inputs


def _is_turn(item: Any) -> bool:
    return isinstance(item, dict) and "role" in item and "content" in item


def _one(model: Model, item: Any, index: int) -> Prompt:
    if isinstance(item, str) or (isinstance(item, (list, tuple)) and item and _is_turn(item[0])):
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise InputError(
                f"{model.name} has no tokenizer, so prompt {index} cannot be read as text. "
                + ("A model in memory brings none along: give it, " if model.source is None else "Give token ids, or ")
                + "load(..., tokenizer=...)"
                + (", or read token ids." if model.source is None else ".")
            )
        if isinstance(item, str):
            # An empty text is an empty prompt, even where the tokenizer would prepend its first token.
            ids = list(tokenizer(item)["input_ids"]) if item else []
            return Prompt(_checked(model, ids, index), item)
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                f"Prompt {index} is a chat and the tokenizer of {model.name} has no chat template. "
                "Give the text as one string, or set tokenizer.chat_template."
            )
        # The template writes the special tokens itself; tokenising its text again would double the first one.
        text = tokenizer.apply_chat_template(list(item), tokenize=False, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return Prompt(_checked(model, ids, index), text)
    if isinstance(item, Tensor):
        item = item.tolist()
    if isinstance(item, (list, tuple)) and all(isinstance(i, int) and not isinstance(i, bool) for i in item):
        ids = _checked(model, list(item), index)
        text = model.tokenizer.decode(ids) if model.tokenizer is not None and ids else " ".join(map(str, ids))
        return Prompt(ids, text)
    if hasattr(item, "tolist"):
        return _one(model, item.tolist(), index)
    raise InputError(
        f"Prompt {index} is a {type(item).__name__}. Prompts are strings, chats (lists of role/content) or "
        "lists of token ids."
    )


def _checked(model: Model, ids: list[int], index: int) -> list[int]:
    embedding = model.module.get_input_embeddings()
    n = getattr(embedding, "num_embeddings", model.vocab_size)
    bad = next((i for i in ids if not 0 <= i < n), None)
    if bad is not None:
        raise InputError(
            f"Prompt {index} has token id {bad}, and {model.name} embeds ids 0 to {n - 1}. "
            "The tokenizer and the model may not belong together."
        )
    return ids


def _with_images(model: Model, inputs: dict[str, Any]) -> list[Prompt]:
    """``{"text": str | list, "images": image | list}``: the processor puts the image tokens in their place."""
    unknown = set(inputs) - {"text", "images"}
    if unknown or "text" not in inputs:
        raise InputError(f"A dict of inputs has the keys 'text' and 'images'; this one has {sorted(inputs)}.")
    texts = [inputs["text"]] if isinstance(inputs["text"], str) else list(inputs["text"])
    images = inputs.get("images")
    if images is None:
        return [_one(model, text, i) for i, text in enumerate(texts)]
    if model.processor is None:
        raise InputError(
            f"{model.name} was loaded without a processor, so it takes no images. "
            "Load a vision-language model by name, or give load(..., processor=...)."
        )
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(images) != len(texts):
        raise InputError(f"{len(texts)} texts came with {len(images)} images. Give each text its image or images.")
    prompts = []
    for i, (text, image) in enumerate(zip(texts, images, strict=True)):
        given = model.processor(text=[text], images=image, return_tensors="pt")
        ids = given.pop("input_ids")[0].tolist()
        given.pop("attention_mask", None)
        prompts.append(Prompt(_checked(model, ids, i), text, dict(given)))
    return prompts


def _positions(positions: Positions, length: int, index: int) -> list[int]:
    if isinstance(positions, str):
        if positions == "all":
            return list(range(length))
        if positions == "last":
            return [length - 1]
        raise InputError(f"positions={positions!r} is unknown. Use 'all', 'last', an index, a slice or a list.")
    if isinstance(positions, slice):
        return list(range(length))[positions]
    wanted = [positions] if isinstance(positions, int) else list(positions)
    for p in wanted:
        if not -length <= p < length:
            raise InputError(
                f"Prompt {index} has positions 0 to {length - 1}; position {p} was asked for. "
                "Choose positions that every prompt has, or read the prompts apart."
            )
    return sorted({p % length for p in wanted})


def position_axis(prompts: list[Prompt], positions: Positions) -> list[int]:
    """The labels of a reading's position axis.

    Absolute positions where they mean the same in every prompt; otherwise ("last", negative, slices) the
    running number of the selection, and the variable ``input_position`` has the absolute ones.
    """
    if positions == "all":
        return list(range(max(len(p.ids) for p in prompts)))
    if len(prompts) == 1 or all(p.positions == prompts[0].positions for p in prompts):
        return prompts[0].positions
    return list(range(max(len(p.positions) for p in prompts)))


def plan(prompts: list[Prompt], budget: int, batch_size: int | None, pads: bool = True) -> list[list[int]]:
    """Batches of prompt indices, longest first, each at most ``budget`` tokens with padding (or batch_size rows).

    With ``pads=False`` a batch holds prompts of one length: for models whose states padding would change.

    Prompts with images go one at a time: what their processors give has no common batch axis.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    batches: list[list[int]] = []
    for i in order:
        current = batches[-1] if batches else None
        if current and not prompts[i].extras and not prompts[current[0]].extras:
            longest = len(prompts[current[0]].ids)
            room = len(current) < batch_size if batch_size else (len(current) + 1) * longest <= budget
            if room and (pads or longest == len(prompts[i].ids)):
                current.append(i)
                continue
        batches.append([i])
    return batches


def collate(
    model: Model, prompts: list[Prompt], members: list[int], padding_side: str = "right", width: int = 0
) -> Batch:
    """Pad the members to one batch on the model's device, as wide as the longest of them or ``width``.

    Raises Refused where that takes pads on a side on which they were not proved to change nothing: :func:`plan` with
    ``model.anatomy.pad_sides`` puts prompts of one length together.
    """
    chosen = [prompts[i] for i in members]
    lengths = [len(p.ids) for p in chosen]
    width = max(width, *lengths)
    if min(lengths) < width and padding_side not in model.anatomy.pad_sides:
        raise Refused(
            f"Pads on the {padding_side} change what {model.name} computes, so prompts of {min(lengths)} to {width} "
            "tokens cannot run in one batch. Run prompts of one length together."
        )
    pad = getattr(text_config(model.module), "pad_token_id", None)
    pad = pad if isinstance(pad, int) and 0 <= pad < model.vocab_size else chosen[0].ids[0]
    ids = torch.full((len(chosen), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    rows, prompt, slot, tokens, first = [], [], [], [], []
    for row, (index, p) in enumerate(zip(members, chosen, strict=True)):
        start = width - len(p.ids) if padding_side == "left" else 0
        ids[row, start : start + len(p.ids)] = torch.tensor(p.ids)
        mask[row, start : start + len(p.ids)] = 1
        rows += [row * width + start + position for position in p.positions]
        prompt += [index] * len(p.positions)
        first += [row * width + start] * len(p.positions)
        slot += range(len(p.positions))
        tokens += [p.ids[position] for position in p.positions]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if padding_side == "left" and min(lengths) < width:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    for key in chosen[0].extras:
        inputs[key] = chosen[0].extras[key] if len(chosen) == 1 else torch.cat([p.extras[key] for p in chosen])
    inputs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    rows, prompt, slot, tokens, first = (torch.tensor(x, dtype=torch.long) for x in (rows, prompt, slot, tokens, first))
    return Batch(members, inputs, rows.to(model.device), prompt, slot, tokens, first)
