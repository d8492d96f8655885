"""Chats -> texts, as the template of a tokenizer or processor writes them; and the pictures that stand in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.images.pictures import Picture, picture_of, pictures_of

if TYPE_CHECKING:
    from workbench.model import Model

_PICTURES = {"image": ("image", "url", "path", "base64"), "image_url": ("image_url",), "input_image": ("image_url",)}
"""Types of parts of a turn that are pictures, and where they have them: transformers' form, and OpenAI's."""
_PARTS = 'Parts are {"type": "text", "text": ...} and {"type": "image", "image": picture}.'


def is_chat(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], Mapping) and "role" in item[0]


def places(turns: Sequence[Any]) -> int:
    """How many pictures a chat of :func:`taken_out` has places for."""
    return sum(part["type"] == "image" for parts in _parted(turns) for part in parts)


def taken_out(turns: Sequence[Any], index: int) -> tuple[list[Any], list[Picture | None]]:
    """A chat whose parts are text and places of pictures, and what stood in each place; None: nothing did.

    Raises
    ------
    InputError
        For parts of another kind, and pictures that cannot be opened.
    """
    found: list[Picture | None] = []
    made = []
    for turn in turns:
        if isinstance(turn.get("content"), (list, tuple)):
            turn = {**turn, "content": [_part(part, index, found) for part in turn["content"]]}
        made.append(turn)
    return made, found


def _part(part: Any, index: int, found: list[Picture | None]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise InputError(f"Prompt {index} has a part that is a {type(part).__name__}. {_PARTS}")
    kind = part.get("type", "image" if "image" in part else "text" if "text" in part else None)
    if kind in _PICTURES:
        key = next((key for key in _PICTURES[kind] if part.get(key) is not None), None)
        if key is None:
            found.append(None)
        else:
            given = part[key].get("url") if isinstance(part[key], Mapping) else part[key]
            given = f"data:;base64,{given}" if key == "base64" and isinstance(given, str) else given
            number = len(found)
            found.append(picture_of(given, f"Picture {number} of prompt {index}"))
        return {"type": "image"}
    if kind not in ("text", "input_text"):
        raise InputError(f"Prompt {index} has a part of type {kind!r}, which is not read. {_PARTS}")
    if not isinstance(part.get("text"), str):
        raise InputError(f"Prompt {index} has a part of type {kind!r} without a text. {_PARTS}")
    return {"type": "text", "text": part["text"]}


def filled(found: Sequence[Picture | None], images: Any, index: int) -> list[Picture]:
    """The pictures of a chat: those that stood in its parts, and in the empty places those that came beside it."""
    beside = iter(pictures := pictures_of(images, f"prompt {index}"))
    empty = sum(own is None for own in found)
    if empty != len(pictures):
        raise InputError(
            f"The chat of prompt {index} has {empty} place(s) without a picture, and {len(pictures)} came beside "
            'it. Give each part {"type": "image", "image": picture} its picture; or leave it {"type": "image"}, and '
            'give the picture in "images".'
        )
    return [next(beside) if own is None else own for own in found]


def rendered(model: Model, writer: Any, turns: Sequence[Any], index: int) -> str:
    """A chat as the template of ``writer``, a tokenizer or processor, writes it.

    Templates differ in whether they take a turn as one string or as parts, and some leave out without a word what they
    do not take: it is the form in which all of what is said gets into the text that is used.
    """
    if not getattr(writer, "chat_template", None) and getattr(model.tokenizer, "chat_template", None):
        writer = model.tokenizer
    if not getattr(writer, "chat_template", None):
        raise InputError(
            f"Prompt {index} is a chat and the tokenizer of {model.name} has no chat template. "
            "Give the text as one string, or set tokenizer.chat_template."
        )
    said = [part["text"].strip() for parts in _parted(turns) for part in parts if part["type"] == "text"]
    best, reason = ("", -2), None
    for form in _forms(turns):
        try:
            text = _written(model, writer, form, index)
        except Exception as error:  # templates raise what they like
            reason = reason or error
            continue
        # Python's own writing of parts is not what the template was made for.
        odd = "'type': 'text'" in text and not any("'type': 'text'" in own for own in said)
        score = -1 if odd else sum(own in text for own in said)
        if score == len(said):
            return text
        best = max(best, (text, score), key=lambda one: one[1])
    if best[1] > -2:
        return best[0]
    if isinstance(reason, InputError):
        raise reason
    raise InputError(f"The chat template of {model.name} does not take prompt {index}: {reason}") from reason


def _written(model: Model, writer: Any, turns: Sequence[Any], index: int) -> str:
    # As in transformers' pipelines: what the assistant has begun to say goes on, without a second heading.
    goes_on = turns[-1]["role"] == "assistant"
    try:
        # The template writes the special tokens itself; tokenising its text again would double the first one.
        return by_template(writer, turns, goes_on)
    except ValueError as error:
        if not goes_on:
            raise
        raise InputError(
            f"Prompt {index} is a chat that ends with what the assistant says, and the chat template of {model.name} "
            f"does not write that as it stands: {error} Render the chat and give its text."
        ) from error


def by_template(writer: Any, turns: Sequence[Any], goes_on: bool = False) -> str:
    """A chat as text.  ``goes_on``: with the assistant's last turn open, in place of a heading for the next."""
    options: dict[str, Any] = {
        "tokenize": False, "add_generation_prompt": not goes_on, "continue_final_message": goes_on
    }  # fmt: skip
    template, tokenizer = getattr(writer, "chat_template", None), getattr(writer, "tokenizer", None)
    if isinstance(template, str) and tokenizer is not None:
        # Processors ask their part for videos first, which is not there without torchvision.
        writer, options["chat_template"] = tokenizer, template
    return writer.apply_chat_template(list(turns), **options)


def _parted(turns: Sequence[Any]) -> Iterator[list[dict[str, Any]]]:
    """The parts of each turn; of a string one, of a turn without content (a call of a tool, say) none."""
    for turn in turns:
        content = turn.get("content")
        yield [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _forms(turns: Sequence[Any]) -> Iterator[list[Any]]:
    """The turns as they were given; with strings as parts; with parts of text alone as one string."""
    yield list(turns)
    if all(isinstance(turn.get("content"), str) for turn in turns):
        return
    whole = list(zip(turns, _parted(turns), strict=True))
    yield [{**turn, "content": parts} if turn.get("content") else turn for turn, parts in whole]
    yield [
        {**turn, "content": "\n".join(part["text"] for part in parts)}
        if parts and all(part["type"] == "text" for part in parts) else turn
        for turn, parts in whole
    ]  # fmt: skip
