"""Which tokens a lens follows: what the model says in the end, the prompt's next token, or chosen ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import InputError
from workbench.inputs import in_head, one_token, text_ids
from workbench.tokens import token_texts, unknown_id
from workbench.variables import aimed

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.readers import Run

Target = str | int
Targets = None | Target | Iterable[Target] | Iterable[Iterable[Target]]


class Followed:
    """The targets of one reading.

    Args:
        targets: None or "next", which depend on the position; a token (text or id); a list of them; or a list of such
            lists, one for each prompt and all of one length.

    Attributes:
        ids: [prompt, target] token ids; None where they depend on the position.
        count: how many targets there are at each place.
        listed: whether variables have the dimension ``target``.

    Raises InputError for a text that is not exactly one token, an id outside the vocabulary, lists that are not as
    many as the prompts, and lists of different lengths.
    """

    def __init__(self, run: Run, targets: Targets) -> None:
        self.run, self.ids = run, None
        self.next = isinstance(targets, str) and targets == "next"
        self.listed = self.by_prompt = False
        if targets is not None and not self.next:
            self.listed = not _one(targets)
            given: list[Any] = [targets] if _one(targets) else list(targets)  # type: ignore[arg-type]
            self.by_prompt = any(not _one(t) for t in given)
            rows = _rows(given, len(run.prompts)) if self.by_prompt else [given]
            if not rows[0]:
                raise InputError("targets is an empty list. Give at least one token, 'next', or None.")
            ids = np.array([_target_ids(run.model, row) for row in rows], np.int32)
            self.ids = ids if self.by_prompt else ids.repeat(len(run.prompts), 0)
        elif self.next and (beyond := sum(i >= run.model.vocab_size for p in run.prompts for i in p.ids[1:])):
            warnings.warn(
                f"{beyond} tokens of the prompts have ids that the logits of {run.model.name} do not reach (0 to "
                f"{run.model.vocab_size - 1}), as tokens have that were added without resizing the head. As next "
                "tokens they have no probability and are left out (target_id -1).",
                stacklevel=2,
            )
        self.count = 1 if self.ids is None else self.ids.shape[1]

    def at(self, batch: Batch) -> Tensor | None:
        """[selected, target] ids, -1 where there is no next token of text, or one without a logit; None where the
        model's own top token is followed."""
        if self.ids is not None:
            return torch.from_numpy(self.ids[batch.prompt.numpy()]).long()
        if not self.next:
            return None
        places = zip(batch.prompt.tolist(), batch.position.tolist(), strict=True)
        prompts = self.run.prompts
        following = [
            -1 if self._shows(p, at + 1) else (prompts[p].ids[at + 1 : at + 2] or [-1])[0] for p, at in places
        ]
        following = [i if i < self.run.model.vocab_size else -1 for i in following]
        return torch.tensor(following, dtype=torch.long)[:, None]

    def _shows(self, prompt: int, position: int) -> bool:
        """Whether a position is a piece of a picture: no model says its token, which stands for what is put there."""
        visual = self.run.prompts[prompt].visual
        return visual is not None and position in visual.at

    @property
    def names(self) -> np.ndarray:
        """Labels of the dimension ``target``: texts; numbers where a target has no name that holds for all prompts."""
        if self.ids is None or not self.listed or self.by_prompt:
            return np.arange(self.count)
        return np.array(token_texts(self.run.model.tokenizer, self.ids[0].tolist()), dtype=object)

    def named(self, variables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The attributes of variables, whose names say which token is meant where it depends on the position."""
        what = "" if self.ids is not None else "next token" if self.next else "final top token"
        names = ("long_name", "short_name") if what else ()
        return {
            name: {k: aimed(x, what) if k in names and name != "target" else x for k, x in own.items()}
            for name, own in variables.items()
        }

    def labels(self, followed: np.ndarray) -> dict[str, Any]:
        """The variable that says which tokens were followed; ``followed`` [prompt, position], the first of several."""
        if self.ids is None or not self.listed:
            return {"target_id": (("prompt", "position"), followed)}
        if self.by_prompt:
            return {"target_id": (("prompt", "target"), self.ids)}
        return {"target_id": (("target",), self.ids[0])}


def _one(target: Any) -> bool:
    return isinstance(target, (str, int, np.integer))


def _rows(given: list[Any], prompts: int) -> list[list[Any]]:
    """One list for each prompt, all of one length."""
    if flat := [t for t in given if _one(t)]:
        raise InputError(
            f"targets has tokens such as {flat[0]!r} beside lists. A flat list is followed in every prompt, a list of "
            "lists has one for each prompt: give one or the other."
        )
    rows = [list(row) for row in given]
    if len(rows) != prompts:
        raise InputError(
            f"targets has {len(rows)} lists and there are {prompts} prompts. With lists in a list every prompt has its "
            "own targets: give one list for each prompt, or a flat list for all of them."
        )
    short = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if short is not None:
        raise InputError(
            f"targets has {len(rows[0])} for prompt 0 and {len(rows[short])} for prompt {short}. The dimension target "
            "is as long in every prompt: give lists of one length, or read these prompts apart."
        )
    return rows


def _target_ids(model: Model, row: list[Target]) -> list[int]:
    found: dict[int, Target] = {}
    for target in row:
        token = _target_id(model, target)
        if token in found:
            raise InputError(
                f"The targets {found[token]!r} and {target!r} are one token (id {token}), which would be followed "
                "twice. Leave one out."
            )
        found[token] = target
    return list(found)


def _target_id(model: Model, target: Target) -> int:
    if not isinstance(target, str):
        return in_head(model, int(target), "A target")
    what = f"The target {target!r}"
    found = one_token(model, target, what)
    spaced = text_ids(model, f" {target}", what) if target[:1].isalnum() else []
    if found is not None:
        if len(spaced) == 1 and spaced != [found] and text_ids(model, target, what) == [found]:
            warnings.warn(
                f"The target {target!r} is token {found}; {' ' + target!r}, with the space that a word has after "
                f"another, is token {spaced[0]}. Give the one that is meant (an id says it without this warning).",
                stacklevel=2,
            )
        return in_head(model, found, what)
    ids = text_ids(model, target, what)
    if unknown_id(model.tokenizer) in ids:
        raise InputError(f"{what} is not in the vocabulary of {model.name}: its tokenizer makes unknown tokens of it.")
    pieces = ", ".join(f"{text!r} (id {i})" for i, text in zip(ids, token_texts(model.tokenizer, ids), strict=True))
    instead = f" {' ' + target!r} is one token (id {spaced[0]})." if len(spaced) == 1 else ""
    raise InputError(
        f"{what} is {len(ids)} tokens: {pieces}, and a rank belongs to one. Give the text or the id of "
        f"one token; mind the leading space, ' word' and 'word' are different tokens.{instead}"
    )
