"""Strings, chats, token ids and images -> prompts -> padded batches, and which positions are real.

Padding is the workbench's own business: prompts are padded on the right (or, on request, on the left with
explicit position ids), whatever the tokenizer's ``padding_side`` says, and a pad is never a position.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.anatomy import text_config
from workbench.chats import filled, is_chat, rendered, taken_out
from workbench.errors import InputError, Refused
from workbench.images.given import Given
from workbench.images.joining import joined, placed
from workbench.images.layout import Visual, unplaced
from workbench.images.pictures import Picture, image_token, is_picture, pictures_of
from workbench.sinks import placeholder_ids
from workbench.tokens import UNKNOWN, token_texts, unknown_id, unknown_share, whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from workbench.model import Model

Positions = str | int | slice | Sequence[int]
Bos = bool | int | str | None


@dataclass
class Prompt:
    """One prompt: its token ids, the text it came from, and what else the model is given with it (images)."""

    ids: list[int]
    text: str
    extras: Mapping[str, Any] = field(default_factory=dict)
    visual: Visual | None = None
    """Which positions are pieces of pictures; None for text alone."""
    special: bool = True
    """Of a text with pictures: whether the processor put special tokens around it; a chat has its own."""
    positions: list[int] = field(default_factory=list)
    """The positions asked for, counted from 0 at the prompt's first token."""


@dataclass(eq=False)
class Batch:
    """What a reader is told about the states it sees.

    Attributes:
        prompts: [batch] index of each row's prompt.
        inputs: what the model is given.
        rows: [selected] flat index into [batch * padded length] of every position asked for; pads are never in it.
        prompt: [selected] index of the prompt of each selected row.
        slot: [selected] where the row belongs on the reading's position axis.
        position: [selected] position of each selected row in its prompt.
        input_ids: [selected] token id at each selected row.
        first: [batch] flat index of the first token of each row's prompt; None in passes that do not show whole
            prompts (those that go on from a cache).
        also, also_row: of a plan's further rows, which are in this batch, and in which rows of the states.
    """

    prompts: list[int]
    inputs: dict[str, Any]
    rows: Tensor
    prompt: Tensor
    slot: Tensor
    position: Tensor
    input_ids: Tensor
    first: Tensor | None = None
    also: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    also_row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def whole(self) -> bool:
        """Whether the pass shows whole prompts."""
        return self.first is not None

    def take(self, states: Tensor) -> Tensor:
        """The selected rows of live states: [batch, padded length, width] -> [selected, width]."""
        flat = states.reshape(-1, states.shape[-1])
        return flat.index_select(0, self.rows.to(flat.device))

    def __len__(self) -> int:
        return len(self.prompt)


def encode(model: Model, inputs: Any, positions: Positions = "all", *, bos: Bos = None) -> list[Prompt]:
    """Prompts from whatever the user has.

    Args:
        inputs: a string; a chat (a list of ``{"role", "content"}``; where the assistant has the last turn, it goes on;
            parts of a content may be ``{"type": "image", "image": picture}``); token ids (a list, array or tensor);
            what a tokenizer or processor returns (``input_ids`` with an ``attention_mask``, whose pads are left out);
            ``{"text": ..., "images": ...}`` for vision-language models, the text with the model's image token for
            each picture, or a chat (:mod:`workbench.images.pictures` has what is a picture).  Or several of them: a
            list, a generator, a column of a table; ids also as a matrix.
        positions: "all", "last", "image" (what shows a part of a picture), "text", an index, a slice or a list of
            indices (negative ones count from the end).
        bos: the first token of texts.  None: as the tokenizer does; True: its beginning-of-sequence token (where it has
            none, its end-of-sequence token); False: none; a token as text or id: that one.  It is never put twice, nor
            before a text that begins with it; chats and token ids, which have their own, are read as they are.

    Raises:
        InputError: for an empty prompt, one longer than the context, unknown ids, text without a tokenizer or that is
            not Unicode, and for what is no prompt.

    Warns where a tokenizer has a first token and does not put it, where it ends texts with its end-of-sequence token,
    where prompts are mostly unknown tokens, and where token ids seem padded.
    """
    items = _listed(inputs)
    if not items:
        raise InputError("There is no prompt to read: the list is empty.")
    prompts: list[Prompt] = []
    told = _Told(None if bos is None else first_token(model, bos))
    for item in items:
        prompts += _prompts(model, item, len(prompts), told)
    texts = told.plain
    lists = [item for item in items if isinstance(item, (list, tuple)) and _is_id(item[:1])]
    if len(lists) > 1 and len(set(map(len, lists))) == 1:
        _tell_of_pads(model, lists)
    if bos is not None and not (texts or told.pictured):
        raise InputError(
            f"bos={bos!r} is for texts, and none was given: chats and token ids are read as they are. Leave it out."
        )
    for prompt in texts:
        prompt.ids = begun(model, prompt.ids, told.first)
    limit = model.context_length
    for i, prompt in enumerate(prompts):
        if not prompt.extras:
            _tell_of_places(model, prompt, i)
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
        prompt.positions = selected(positions, prompt, i)
    if bos is None:
        tell_of_first_token(model, [prompt.ids for prompt in texts])
    tell_of_last_token(model, texts)
    tell_of_unknown_tokens(model, [prompt.ids for prompt in prompts], "prompts")
    return prompts


@dataclass
class _Told:
    """What is known while prompts are made: the first token of texts that ``bos=`` asks for, and which were texts."""

    first: int | None
    plain: list[Prompt] = field(default_factory=list)
    pictured: list[int] = field(default_factory=list)


# ---------------------------------------------------------------- what is a prompt

_ACCEPTED = (
    'Prompts are strings, chats (lists of {"role": ..., "content": ...}), token ids (lists, arrays, tensors), what a '
    'tokenizer returns (input_ids with attention_mask) and {"text": ..., "images": ...}, or a list of these.'
)


def _listed(inputs: Any) -> list[Any]:
    """One input or many -> many."""
    if isinstance(inputs, (str, Mapping)):
        return [inputs]
    if hasattr(inputs, "tolist") and hasattr(inputs, "ndim"):  # tensors, arrays, columns of tables
        if inputs.ndim == 1 and not _is_id(inputs[:1].tolist()[:1]):
            return inputs.tolist()
        return [inputs]
    if isinstance(inputs, (Sequence, Iterator, ValuesView)) and not isinstance(inputs, (bytes, bytearray, memoryview)):
        inputs = list(inputs)
        one = bool(inputs) and (_is_id(inputs[:1]) or (isinstance(inputs[0], Mapping) and "role" in inputs[0]))
        return [inputs] if one else inputs
    raise InputError(f"read() cannot read a {type(inputs).__name__}. {_ACCEPTED}")


def _is_id(items: Sequence[Any]) -> bool:
    """Whether these are whole numbers: int, numpy's, or tensors that hold one."""
    return bool(items) and all(
        (isinstance(x, (int, np.integer)) and not isinstance(x, bool))
        or (isinstance(x, Tensor) and x.ndim == 0 and not x.is_floating_point() and x.dtype != torch.bool)
        for x in items
    )


def _prompts(model: Model, item: Any, index: int, told: _Told) -> list[Prompt]:
    """The prompts of one item: one, but of a mapping or a matrix as many as it has rows.  Texts are told of."""
    if isinstance(item, str):
        # An empty text is an empty prompt, even where the tokenizer would prepend its first token.
        told.plain.append(Prompt(text_ids(model, item, f"Prompt {index}", special=True) if item else [], item))
        return told.plain[-1:]
    if isinstance(item, Mapping):
        if "input_ids" in item:
            return _tokenised(model, item, index)
        return _with_images(model, item, index, told)
    if hasattr(item, "tolist") and hasattr(item, "ndim"):
        if item.ndim not in (1, 2):
            raise InputError(
                f"Prompt {index} is an array of shape {tuple(item.shape)}. Token ids are [position] or "
                "[prompt, position]."
            )
        rows = item.tolist() if item.ndim == 2 else [item.tolist()]
        if item.ndim == 2:
            _tell_of_pads(model, rows)
        return [_of_ids(model, row, index + i) for i, row in enumerate(rows)]
    if isinstance(item, (list, tuple)):
        if item and isinstance(item[0], Mapping):
            return [_chat(model, item, index, None, told)]
        return [_of_ids(model, list(item), index)]
    raise InputError(f"Prompt {index} is a {type(item).__name__}. {_ACCEPTED}")


def _of_ids(model: Model, ids: list[Any], index: int) -> Prompt:
    if ids and not _is_id(ids):
        odd = next(x for x in ids if not _is_id([x]))
        raise InputError(
            f"Prompt {index} holds {odd!r}, a {type(odd).__name__}, where a token id (a whole number) was expected. "
            + _ACCEPTED
        )
    ids = embeddable(model, [int(i) for i in ids], index)
    text = model.tokenizer.decode(ids) if model.tokenizer is not None and ids else " ".join(map(str, ids))
    return Prompt(ids, text)


def _chat(model: Model, turns: Sequence[Any], index: int, images: Any, told: _Told) -> Prompt:
    """A chat, with the pictures that came beside it."""
    odd = next((x for x in turns if not (isinstance(x, Mapping) and "role" in x)), None)
    if odd is not None:
        raise InputError(f"Prompt {index} is a chat with a turn that has no role: {str(odd)[:80]}. {_ACCEPTED}")
    turns, found = taken_out(turns, index)
    # Without a part for any, the text of a turn may name them: the processor counts.
    pictures = filled(found, images, index) if found else pictures_of(images, f"prompt {index}")
    if pictures:
        return _pictured(model, turns, pictures, index, told)
    tokenizer, processor = _tokenizer(model, f"prompt {index}"), model.processor
    own = getattr(tokenizer, "chat_template", None) or not getattr(processor, "chat_template", None)
    text = rendered(model, tokenizer if own else processor, turns, index)
    first = tokenizer.bos_token if hasattr(tokenizer, "bos_token") else None
    special = not own and not (first and text.startswith(first))
    return Prompt(text_ids(model, text, f"Prompt {index}", special=special), text)


_NO_STATES = ("labels", "special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping")
"""What tokenizers and data collators put beside ids that changes no state."""


def _tokenised(model: Model, item: Mapping[str, Any], index: int) -> list[Prompt]:
    """What a tokenizer or a processor returned.  Positions count from the first token that the mask has."""
    rest = {k: v for k, v in item.items() if k not in ("input_ids", "attention_mask", *_NO_STATES)}
    rows, mask = _rows(item["input_ids"], "input_ids"), item.get("attention_mask")
    if mask is None:
        kept = [list(range(len(row))) for row in rows]
        _tell_of_pads(model, rows)
    else:
        masks = _rows(mask, "attention_mask")
        if list(map(len, masks)) != list(map(len, rows)):
            raise InputError("attention_mask and input_ids have different shapes, so it is not known what is a pad.")
        kept = [[i for i, real in enumerate(own) if real] for own in masks]
    for i, own in enumerate(kept, index):
        if own and own[-1] - own[0] >= len(own):
            raise InputError(
                f"The attention_mask of prompt {i} has a hole: tokens that are hidden stand between others. Pads stand "
                "at an end; leave the hidden tokens out of input_ids if the model is not to see them."
            )
    segments = rest.get("token_type_ids")
    if segments is not None and not any(map(any, _rows(segments, "token_type_ids"))):
        del rest["token_type_ids"]
    places = rest.get("position_ids")
    if places is not None:
        counted = _rows(places, "position_ids") * (len(rows) if len(places) == 1 else 1)
        real = [[c[i] for i in own] for c, own in zip(counted, kept, strict=True)]
        if real == [list(range(len(own))) for own in kept]:
            del rest["position_ids"]
    pictures = any(str(key).startswith(("pixel_values", "image")) for key in rest)
    if rest and not (pictures and len(rows) == 1):
        raise InputError(
            f"The inputs have {', '.join(map(str, rest))} beside input_ids, "
            + (
                "and what of it belongs to which prompt cannot be told. Give the prompts one by one, or as "
                '{"text": ..., "images": ...}.'
                if pictures
                else "which would be left out of the pass. Give input_ids and attention_mask alone, if that is meant."
            )
        )
    prompts = []
    for i, (row, own) in enumerate(zip(rows, kept, strict=True), index):
        prompt = _of_ids(model, [row[j] for j in own], i)
        along = torch.tensor(own)
        for key, value in rest.items():
            value = torch.as_tensor(value)
            by_token = value.ndim >= 2 and tuple(value.shape[:2]) == (1, len(row)) and not str(key).startswith("pixel")
            prompt.extras = {**prompt.extras, key: value[:, along] if by_token else value}
        if pictures:
            prompt.visual = _unplaced(model, prompt, i)
        prompts.append(prompt)
    return prompts


def _unplaced(model: Model, prompt: Prompt, index: int) -> Visual | None:
    """The visual tokens of what a processor returned: where in a picture they belong it does not say."""
    tokens = placeholder_ids(model) if model.processor is None else model.vision.proof.tokens
    at = np.flatnonzero(np.isin(prompt.ids, tokens))
    if len(at):
        return Visual(at, unplaced(len(at), []))
    if model.processor is None or not tokens:
        return None
    raise InputError(
        f"Prompt {index} came with pictures, and none of its token ids is one of theirs ({list(tokens)[:4]}): its text "
        "had no place for them."
    )


def _rows(values: Any, name: str) -> list[list[Any]]:
    """[position] or [prompt, position] of anything as lists of lists."""
    found = values if hasattr(values, "tolist") else [x.tolist() if hasattr(x, "tolist") else x for x in values]
    found = found.tolist() if hasattr(found, "tolist") else found
    rows = found if any(isinstance(x, (list, tuple)) for x in found) else [found]
    if not all(isinstance(row, (list, tuple)) and not any(isinstance(x, (list, tuple)) for x in row) for row in rows):
        raise InputError(f"{name} is neither one list of numbers nor a list of such lists.")
    return [list(row) for row in rows]


def _with_images(model: Model, item: Mapping[str, Any], index: int, told: _Told) -> list[Prompt]:
    """``{"text": str | chat | list, "images": picture | list}``: the processor puts the image tokens in their place."""
    unknown = set(item) - {"text", "images"}
    if unknown or "text" not in item:
        turn = " A turn of a chat belongs in a list, [{...}]." if "role" in item else ""
        raise InputError(
            f"Prompt {index} is a dict with the keys {sorted(map(str, item))}. A dict has 'text' and 'images', or what "
            f"a tokenizer returns.{turn} {_ACCEPTED}"
        )
    one = isinstance(item["text"], str) or is_chat(item["text"])
    texts = [item["text"]] if one else item["text"]
    if not isinstance(texts, (list, tuple)):
        raise InputError(f"The text of prompt {index} is a {type(texts).__name__}. Give a string, or a list of them.")
    images = item.get("images")
    if one:
        if isinstance(images, (list, tuple)) and len(images) == 1 and isinstance(images[0], (list, tuple)):
            images = images[0]  # as processors take them: a list for each text
        groups = [images]
    elif images is None or is_picture(images):
        groups = [images] * (len(texts) if images is None else 1)
    else:
        groups = list(images)
    if len(groups) != len(texts):
        raise InputError(
            f"Prompt {index} has {len(texts)} texts and {len(groups)} images. Give each text its own: "
            '"images": [[picture, ...], ...], [] for none.'
        )
    prompts = []
    for i, (text, own) in enumerate(zip(texts, groups, strict=True), index):
        if is_chat(text):
            prompts.append(_chat(model, text, i, own, told))
        elif own is None or (isinstance(own, (list, tuple)) and not own):
            prompts += _prompts(model, text, i, told)
        elif isinstance(text, str):
            prompts.append(_pictured(model, text, pictures_of(own, f"prompt {i}"), i, told))
        else:
            raise InputError(f"Prompt {i} has images and a {type(text).__name__} as its text. Give a string or a chat.")
    return prompts


def _pictured(model: Model, text: str | Sequence[Any], pictures: list[Picture], index: int, told: _Told) -> Prompt:
    """A prompt with pictures, of a text or a chat of :func:`workbench.chats.taken_out`."""
    if model.processor is None:
        raise InputError(
            f"{model.name} was loaded without a processor, so it takes no images"
            + (f" ({model.no_processor}). " if model.no_processor else ". ")
            + "Load a vision-language model by name, or give load(..., processor=...)."
        )
    what = f"Prompt {index}"
    first, special = told.first, True
    if isinstance(text, str):
        told.pictured.append(index)
        text = whole(text, what)
        if first is not None:
            begins = model.tokenizer.decode([first]) if first >= 0 else ""
            text, special = text if text.startswith(begins) else begins + text, False
    else:
        # As transformers' processors do it: a template that does not write the first token leaves it to the tokenizer.
        text, first = whole(rendered(model, model.processor, text, index), what), None
        own = getattr(model.tokenizer, "bos_token", None)
        special = not (own and text.startswith(own))
    vision, images = model.vision, [picture.rgb for picture in pictures]
    given = vision.process(text, images, what, special)
    ids = given["input_ids"][0].tolist()
    if special and ids[:1] * 2 == ids[:2] and ids[0] == own_first(model):
        given = vision.process(text, images, what, special := False)  # the text has it already
    if first is not None and (ids[0] != first if first >= 0 else ids[0] == own_first(model)):
        raise InputError(
            f"{what} has a picture, and {type(model.processor).__name__} does not let its first token be chosen. Leave "
            "bos out, and write the token in the text."
        )
    visual = vision.visual(text, pictures, given, what, special)
    held = _held(model, text, lambda: [picture.rgb for picture in pictures], special, what, given)
    return Prompt(embeddable(model, given["input_ids"][0].tolist(), index), text, held, visual, special)


def _held(
    model: Model, text: str, images: Callable[[], Sequence[Image]], special: bool, what: str, given: Mapping[str, Any]
) -> Given:
    """What the processor gave for a text with pictures beside its ids, kept or made again."""

    def rest(given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name != "input_ids"}

    return Given(rest(given), lambda: rest(model.vision.process(text, images(), what, special)))


def with_pictures(
    model: Model, prompt: Prompt, images: Callable[[], Sequence[Image]], what: str = "a prompt"
) -> Prompt:
    """The same prompt with other pictures of the same sizes in the places of its own.

    Its ``visual`` is that of the prompt: equal sizes have equal places.

    Parameters
    ----------
    images
        Gives the pictures, the same ones each time: they are made again where keeping their pixels would take too much.

    Raises
    ------
    Refused
        Where the processor makes other ids of it: then what it gives depends on more than the sizes of pictures.
    """
    given = model.vision.process(prompt.text, images(), what, prompt.special)
    ids, held = given["input_ids"][0].tolist(), _held(model, prompt.text, images, prompt.special, what, given)
    own = prompt.visual
    fixed = own is not None and [ids[at] for at in own.at if at < len(ids)] == [prompt.ids[at] for at in own.at]
    if len(ids) != len(prompt.ids) or not fixed:
        raise Refused(
            f"The processor of {model.name} makes {len(ids)} tokens of {what}, and made {len(prompt.ids)} with other "
            "pictures of the same sizes: places in the two cannot be compared."
        )
    return dataclasses.replace(prompt, extras=held)


def _tell_of_places(model: Model, prompt: Prompt, index: int) -> None:
    """InputError for a prompt that has places for pictures and no picture."""
    token = image_token(model.processor) if model.processor is not None else None
    named = prompt.text.count(token) if token else 0
    ids = sorted(set(prompt.ids) & set(placeholder_ids(model)))
    if named or ids:
        raise InputError(
            f"Prompt {index} has {f'{named} place(s) for a picture ({token!r})' if named else f'tokens {ids}'}"
            + ("" if named else ", which stand for pieces of pictures,")
            + " and no picture came with it: what the model embeds there has no meaning of its own. Give "
            '{"text": ..., "images": ...}, or a processor\'s whole output; or leave the place out of the text.'
        )


# ---------------------------------------------------------------- texts and ids


def _tokenizer(model: Model, what: str) -> Any:
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, so {what} cannot be read as text. "
            + ("A model in memory brings none along: give it, " if model.source is None else "Give token ids, or ")
            + "load(..., tokenizer=...)"
            + (", or read token ids." if model.source is None else ".")
        )
    return model.tokenizer


def text_ids(model: Model, text: str, what: str, *, special: bool = False) -> list[int]:
    """The token ids of a text that the model embeds; ``special``: with the tokens that the tokenizer puts around it."""
    tokenizer = _tokenizer(model, what[:1].lower() + what[1:])
    return embeddable(model, list(tokenizer(whole(text, what), add_special_tokens=special)["input_ids"]), what)


def one_token(model: Model, text: str, what: str) -> int | None:
    """The id of the one token that a text is; None where it is several, or none of the vocabulary."""
    ids = text_ids(model, text, what)
    if len(ids) == 1 and (ids[0] != unknown_id(model.tokenizer) or token_texts(model.tokenizer, ids) == [text]):
        return ids[0]
    # SentencePiece puts a space of its own before a text: " the" is two tokens, and yet there is one whose text it is,
    # the one that figures and tables show.
    same = _by_text(model).get(text, [])
    if len(same) > 1:
        raise InputError(f"{what} is {len(same)} tokens of the vocabulary alike: give an id, one of {same[:8]}.")
    return same[0] if same else None


def _by_text(model: Model) -> dict[str, list[int]]:
    """The ids of each token text of the vocabulary, which may have grown since they were asked for."""
    size = len(model.tokenizer)
    if model.__dict__.get("_by_text", (0,))[0] != size:
        found: dict[str, list[int]] = {}
        for i, text in enumerate(token_texts(model.tokenizer, range(size))):
            found.setdefault(text, []).append(i)
        model.__dict__["_by_text"] = size, found
    return model.__dict__["_by_text"][1]


def in_head(model: Model, token: int, what: str) -> int:
    """A token id that the logits have a column for.  InputError for others: of them there is nothing to read."""
    if not 0 <= token < model.vocab_size:
        raise InputError(
            f"{what} is token id {token}, outside the vocabulary: the logits of {model.name} have ids 0 to "
            f"{model.vocab_size - 1}"
            + (
                ": the token was added to the tokenizer, and the model's head has not grown with it "
                "(model.resize_token_embeddings)."
                if model.tokenizer is not None and 0 <= token < len(model.tokenizer)
                else "."
            )
        )
    return int(token)


def embedded(model: Model) -> int:
    """How many token ids the model embeds, which may be more or fewer than its logits have."""
    return getattr(model.module.get_input_embeddings(), "num_embeddings", model.vocab_size)


def embeddable(model: Model, ids: list[int], what: str | int) -> list[int]:
    """The ids; InputError for one that has no embedding.  ``what``: whose they are, or the number of a prompt."""
    n = embedded(model)
    bad = next((i for i in ids if not 0 <= i < n), None)
    if bad is not None:
        raise InputError(
            f"{what if isinstance(what, str) else f'Prompt {what}'} has token id {bad}, and {model.name} embeds ids 0 "
            f"to {n - 1}. The tokenizer and the model may not belong together."
        )
    return ids


# ---------------------------------------------------------------- the first token


def first_token(model: Model, bos: Bos) -> int | None:
    """What ``bos=`` asks for: the id of the token, -1: none, None: as the tokenizer does."""
    if bos is None or bos is False:
        return None if bos is None else -1
    tokenizer = _tokenizer(model, f"bos={bos!r}")
    if bos is True:
        found = next((x for x in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(x, int)), None)
        if found is None:
            raise InputError(
                f"bos=True, and the tokenizer of {model.name} has neither a beginning- nor an end-of-sequence token. "
                "Name the token that begins texts: bos='...' or its id."
            )
    elif isinstance(bos, str):
        found = one_token(model, bos, f"bos={bos!r}")
        if found is None:
            raise InputError(f"bos={bos!r} is not one token of {model.name}. Give the text or the id of one.")
    else:
        found = int(bos)
    return embeddable(model, [found], f"bos={bos!r}")[0]


def begun(model: Model, ids: list[int], first: int | None) -> list[int]:
    """A text's ids with the first token of :func:`first_token` in place of the tokenizer's own; never twice.

    Not twice either where the text itself begins with it, as one that a chat template has written does.
    """
    if first is None or not ids:
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == own_first(model) else ids
    if ids[0] == own_first(model):
        ids = ids[1:]
    return ids if first < 0 or ids[:1] == [first] else [first, *ids]


def own_first(model: Model) -> int | None:
    """The token that the tokenizer puts before texts; None: none."""
    tokenizer = _tokenizer(model, "a text")
    with_it, without = (tokenizer("a", add_special_tokens=special)["input_ids"][:1] for special in (True, False))
    return with_it[0] if with_it != without else None


def tell_of_first_token(model: Model, texts: Sequence[Sequence[int]]) -> None:
    """Warn, once for a model, where texts begin without the first token that the tokenizer has."""
    first = getattr(model.tokenizer, "bos_token_id", None)
    if first is None or "_told_of_first_token" in model.__dict__ or all(ids[0] == first for ids in texts):
        return
    if own_first(model) is not None:
        return
    model.__dict__["_told_of_first_token"] = True
    warnings.warn(
        f"The tokenizer of {model.name} has a first token, {model.tokenizer.bos_token!r}, and puts it before no text. "
        "Where training texts began with a token, states of texts without one differ from them, the first position's "
        "most. bos=True (read, ContextIndex.build) puts this one, bos='...' another, bos=False says that texts are "
        "meant to be read as they are; elsewhere write the token before the text.",
        stacklevel=3,
    )


def tell_of_last_token(model: Model, texts: Sequence[Prompt]) -> None:
    """Warn, once for a model, where its tokenizer ends texts with a token behind which a causal model says nothing."""
    last, known = getattr(model.tokenizer, "eos_token_id", None), model.tokenizer
    odd = [p for p in texts if p.ids[-1:] == [last] and not p.text.rstrip().endswith(known.eos_token)]
    # Encoders and their decoders are trained with it.
    usual = known is not None and getattr(known, "cls_token", None) is not None
    encodes = getattr(getattr(model.module, "config", None), "is_encoder_decoder", False)
    if not odd or usual or encodes or "_told_of_last_token" in model.__dict__:
        return
    model.__dict__["_told_of_last_token"] = True
    warnings.warn(
        f"The tokenizer of {model.name} puts its end-of-sequence token, {known.eos_token!r}, behind texts: the last "
        "position of a prompt is that token, and what the model predicts there does not continue the text. Tokenizers "
        "that were saved by a training script often do. Set tokenizer.add_eos_token = False, or read token ids.",
        stacklevel=3,
    )


def digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits over prompts: ids, the positions that are read, and what else the model is given."""
    found = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        found.update(json.dumps([prompt.ids, prompt.positions, sorted(prompt.extras)]).encode())
        pictures = prompt.visual.pictures if prompt.visual is not None else ()
        found.update("".join(picture.digest for picture in pictures).encode())
        for name in sorted(prompt.extras) if not pictures else ():
            for value in prompt.extras[name] if isinstance(prompt.extras[name], list) else [prompt.extras[name]]:
                found.update(np.ascontiguousarray(torch.as_tensor(value).float().cpu().numpy()).tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------- what is odd about ids


def tell_of_unknown_tokens(
    model: Model,
    prompts: Sequence[Sequence[int]],
    what: str,
    most: float = UNKNOWN,
    *,
    names: Sequence[str] | None = None,
    stacklevel: int = 3,
) -> None:
    """Warn where more than ``most`` of a text's tokens are the unknown one; ``names``: of the texts."""
    share = np.array([unknown_share(model.tokenizer, ids) for ids in prompts])
    if (share > most).any():
        worst = "up to" if names is None else f"{names[int(share.argmax())]}:"
        warnings.warn(
            f"{int((share > most).sum())} of {len(share)} {what} are more than {most:.0%} unknown tokens for "
            f"{model.name} ({worst} {share.max():.0%}): its tokenizer does not have their words or letters, so what is "
            "read there is of their number and places, not of what they say.",
            stacklevel=stacklevel,
        )


def _tell_of_pads(model: Model, rows: list[list[int]]) -> None:
    """Warn where ids without a mask begin or end with pads."""
    pad, known = getattr(model.tokenizer, "pad_token_id", None), model.tokenizer
    if pad is None:
        return
    # A token that also begins or ends texts is a pad where it stands twice.
    least = 1 + (pad in (getattr(known, "bos_token_id", None), getattr(known, "eos_token_id", None)))
    padded = sum([pad] * least in (ids[:least], ids[-least:]) for ids in rows)
    if padded:
        warnings.warn(
            f"{padded} of {len(rows)} rows of token ids begin or end with the pad token ({pad}) and came without an "
            "attention_mask, so pads are read as tokens. Give what the tokenizer returned (input_ids with "
            "attention_mask), or lists without pads.",
            stacklevel=3,
        )


def selected(positions: Positions, prompt: Prompt, index: int) -> list[int]:
    """The positions of a prompt that are asked for."""
    length = len(prompt.ids)
    if isinstance(positions, str):
        if positions == "all":
            return list(range(length))
        if positions == "last":
            return [length - 1]
        if positions == "text":
            return sorted(set(range(length)) - set(prompt.visual.at.tolist() if prompt.visual else ()))
        if positions == "image":
            if prompt.visual is None or not len(prompt.visual.shown):
                why = "in this model pictures enter by cross-attention, and fill no position."
                if prompt.visual is None:
                    why = "it came without one. Give {'text': ..., 'images': ...}, or a chat with image parts."
                raise InputError(f"Prompt {index} has no position that shows a part of a picture: {why}")
            return prompt.visual.shown.tolist()
        raise InputError(
            f"positions={positions!r} is unknown. Use 'all', 'last', 'image', 'text', an index, a slice or a list."
        )
    if isinstance(positions, slice):
        return list(range(length))[positions]
    wanted = [positions] if isinstance(positions, (int, np.integer)) else list(positions)
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


def plan(
    prompts: list[Prompt], budget: int, batch_size: int | None, pads: float = math.inf, pictured: bool = False
) -> list[list[int]]:
    """Batches of prompt indices, longest first, each at most ``budget`` tokens with padding (or batch_size rows).

    A batch wider than ``pads`` (``model.anatomy.pad_width``) holds prompts of one length: padding would change states.

    Prompts with images, and with inputs of the same names, share batches where the model was proved to be the same
    (``model.vision.proof.pad_sides``).
    """

    def together(prompt: Prompt) -> bool:
        return not prompt.extras or (pictured and prompt.visual is not None and bool(prompt.visual.pictures))

    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    batches: list[list[int]] = []
    for i in order:
        current = batches[-1] if batches else None
        if current and (prompts[i].extras.keys() == prompts[current[0]].extras.keys()) and together(prompts[i]):
            longest = len(prompts[current[0]].ids)
            room = len(current) < batch_size if batch_size else (len(current) + 1) * longest <= budget
            if room and (longest <= pads or longest == len(prompts[i].ids)):
                current.append(i)
                continue
        batches.append([i])
    return batches


def collate(
    model: Model, prompts: Sequence[Prompt], members: list[int], padding_side: str = "right", width: int = 0, *,
    check: bool = True,
) -> Batch:  # fmt: skip
    """Pad the members to one batch on the model's device, as wide as the longest of them or ``width``.

    Raises Refused where that takes pads on a side, or in a width, where they are not known to change nothing:
    :func:`plan` with ``model.anatomy.pad_width`` puts prompts of one length together.
    """
    chosen = [prompts[i] for i in members]
    lengths = [len(p.ids) for p in chosen]
    width = max(width, *lengths)
    pictured = [p for p in chosen if p.extras]
    if check and min(lengths) < width and width > model.anatomy.pad_width(padding_side):
        raise Refused(
            f"Pads on the {padding_side} change what {model.name} computes, so prompts of {min(lengths)} to {width} "
            "tokens cannot run in one batch. Run prompts of one length together."
        )
    own = getattr(text_config(model.module), "pad_token_id", None)
    likely = [own] if isinstance(own, int) and 0 <= own < model.vocab_size else []
    # Never a visual token: models count those, pads or not.
    visual = {p.ids[at] for p in chosen if p.visual is not None for at in p.visual.at}
    pad = next((i for i in (*likely, *chosen[0].ids) if i not in visual), 0)
    ids = torch.full((len(chosen), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    rows, prompt, slot, position, tokens, first = [], [], [], [], [], []
    for row, (index, p) in enumerate(zip(members, chosen, strict=True)):
        start = width - len(p.ids) if padding_side == "left" else 0
        ids[row, start : start + len(p.ids)] = torch.tensor(p.ids)
        mask[row, start : start + len(p.ids)] = 1
        rows += [row * width + start + at for at in p.positions]
        prompt += [index] * len(p.positions)
        first.append(row * width + start)
        slot += range(len(p.positions))
        position += p.positions
        tokens += [p.ids[at] for at in p.positions]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if padding_side == "left" and min(lengths) < width:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    if pictured:
        if model.processor is not None:  # places in a picture are the model's own business
            inputs.pop("position_ids", None)
        starts = [width - n if padding_side == "left" else 0 for n in lengths]
        extras = [p.extras.whole() if isinstance(p.extras, Given) else p.extras for p in chosen]
        inputs |= joined(extras, starts, lengths, width)
    inputs = placed(inputs, model)
    rows, prompt, slot, position, tokens, first = (
        torch.tensor(x, dtype=torch.long) for x in (rows, prompt, slot, position, tokens, first)
    )
    return Batch(members, inputs, rows.to(model.device), prompt, slot, position, tokens, first)

