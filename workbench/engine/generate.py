"""``generate()``: reading while a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.engine.hooks import neutral
from workbench.engine.rollout import Writing, endings, uniforms, writes
from workbench.engine.run import run_readers
from workbench.errors import InputError
from workbench.inputs import Bos, Prompt, encode
from workbench.model import Model, load
from workbench.readers import Output, Plan, Reader, Run, settled
from workbench.variables import about

VARIABLES = {
    "text": about("text that was written", role="label", of="prompt"),
    "ended": about("whether the text came to its own end", role="mask"),
    "generated": about("whether the model wrote the token", role="mask", of="input_id"),
    "given": about("number of the prompt among those given", role="label", of="prompt"),
    "draw": about("number of the text among those of its prompt", role="label", of="prompt"),
}


@neutral()
def generate(
    model: Any,
    inputs: Any,
    readers: Any = (),
    *,
    max_new_tokens: int = 32,
    n: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    positions: str = "all",
    batch_size: int | None = None,
    cache: bool | None = None,
    progress: bool = True,
    partial: bool = False,
    bos: Bos = None,
) -> Any:
    """Let a model write, and read it while it does: the same readers, at every token that it writes.

    Parameters
    ----------
    model, inputs, batch_size, progress, partial, bos
        As :func:`workbench.read` takes them (no images).
    readers
        One reader, a list of them, or none for the texts alone.
    max_new_tokens
        Tokens that are written at most; a text ends with the model's end-of-sequence token.
    n
        Texts for each prompt.
    temperature, top_k, top_p
        Of the distribution that tokens are drawn from; temperature 0: the likeliest token.  The model's own generation
        settings are not used.
    seed
        Of the random numbers, which belong to a prompt's tokens and the number of the text: neither batches nor the
        other prompts change a text.
    positions
        "all": those of the prompt and those that were written; "new": the prompt's last, which decides on the first
        token, and those that were written.
    cache
        Keep keys and values between tokens; None: where that has been shown to change nothing.

    Returns
    -------
    Reading or tuple of Reading
        As :func:`workbench.read` does; without a reader, one Reading of the texts.  The dimension prompt has n entries
        for each prompt.  Each reading has besides: text, ended, given, draw [prompt]; generated [prompt, position].
        The state at a position is that of the token there, which the next one is chosen from.

    Raises
    ------
    Refused
        For a model that does not continue texts.
    InputError
        For prompts that do not leave room in the context, and settings that mean nothing.

    Examples
    --------
    >>> lens = workbench.generate("organism:story", ["Mara lives in"], LogitLens(), max_new_tokens=8)  # doctest: +SKIP
    """
    if max_new_tokens < 1 or n < 1:
        raise InputError(f"max_new_tokens and n must be 1 or more, got {max_new_tokens} and {n}.")
    if temperature < 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise InputError(
            f"Expected temperature >= 0, 0 < top_p <= 1 and top_k >= 1 or None, got {temperature}, {top_p}, {top_k}."
        )
    if temperature == 0 and n > 1:
        raise InputError(f"n={n} texts of one prompt are all the same at temperature 0. Give a temperature above 0.")
    if positions not in ("all", "new"):
        raise InputError(f"positions={positions!r} is unknown. Use 'all' or 'new'.")
    if not isinstance(model, Model):
        model = load(model, progress=progress)
    single = not isinstance(readers, (list, tuple))
    chosen: Sequence[Any] = [settled(reader) for reader in ([readers] if single else readers)]
    prompts = encode(model, inputs, "all" if positions == "all" else "last", bos=bos)
    if any(prompt.extras for prompt in prompts):
        raise InputError("generate() continues texts, and a prompt has images. Read it with read().")
    longest = max(len(prompt.ids) for prompt in prompts)
    writes(model, longest + max_new_tokens)
    uniform = uniforms([prompt.ids for prompt in prompts], n, max_new_tokens, seed)
    every = [Prompt(list(p.ids), p.text, positions=list(p.positions)) for p in prompts for _ in range(n)]
    drives = Writing(
        model, every, uniform, temperature=temperature, top_k=top_k, top_p=top_p, ends=endings(model), cached=cache
    )
    slots = max(len(p.positions) for p in every) + max_new_tokens
    run = Run(model, every, list(range(slots)), progress=progress)
    written = _Written(drives, n)
    settings = {
        "max_new_tokens": max_new_tokens, "n": n, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "seed": seed, "cache": drives.cached,
    }  # fmt: skip
    readings = run_readers(
        run, [written, *chosen], drives, batch_size=batch_size, progress=progress, partial=partial,
        more={"step": "generate", "generate": settings}, verb="writing",
    )  # fmt: skip
    texts = readings.pop(0)
    for reading in readings:
        reading.data = reading.data.assign({name: texts.data[name] for name in VARIABLES})
    if not chosen:
        return texts
    return readings[0] if single else tuple(readings)


class _Written(Reader):
    """The texts.  Its ``finish`` comes first, and tells the prompts which positions they have now."""

    def __init__(self, drives: Writing, n: int) -> None:
        self.drives, self.n = drives, n

    @property
    def name(self) -> str:
        return "generate"

    def settings(self) -> dict[str, Any]:
        return {}

    def plan(self, run: Run) -> Plan:
        drives, tokenizer = self.drives, run.model.tokenizer
        outputs: dict[str, Output] = {}

        def finish(found: Any) -> dict[str, Any]:
            generated = np.zeros((len(run.prompts), len(run.positions)), bool)
            for i, prompt in enumerate(run.prompts):
                before, new = len(prompt.positions), len(drives.written[i])
                prompt.positions += range(drives.begun[i], drives.begun[i] + new)
                generated[i, before : before + new] = True
            ends = set(drives.ends.tolist())
            text = [
                "" if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True) for ids in drives.written
            ]
            return {
                "text": (("prompt",), np.array(text, object)),
                "ended": (("prompt",), np.array([bool(ids) and ids[-1] in ends for ids in drives.written])),
                "generated": (("prompt", "position"), generated),
                "given": (("prompt",), np.arange(len(run.prompts)) // self.n),
                "draw": (("prompt",), np.arange(len(run.prompts)) % self.n),
            }

        return Plan([], outputs, lambda states, batch: {}, finish=finish, about=VARIABLES)


