"""``read()``: one forward pass, many readers."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.engine.drivers import Driver, Hooks
from workbench.engine.hooks import neutral
from workbench.engine.loop import Result, collect
from workbench.engine.prefix import Prefix
from workbench.engine.saved import Saved
from workbench.engine.tower import Through
from workbench.errors import InputError
from workbench.inputs import Bos, Positions, Prompt, encode, first_token, position_axis
from workbench.model import ENGINES, Model, load
from workbench.readers import Plan, Reader, Run, settled
from workbench.reading import Reading
from workbench.sinks import BINS, Norms, random_prompts
from workbench.sites import Site

if TYPE_CHECKING:
    pass


@neutral()
def read(
    model: Any,
    inputs: Any,
    readers: Any,
    *,
    batch_size: int | None = None,
    positions: Positions = "all",
    progress: bool = True,
    padding_side: str = "right",
    partial: bool = False,
    bos: Bos = None,
    out: str | os.PathLike[str] | None = None,
    engine: str | None = None,
) -> Any:
    """Read prompts through one or many readers in one pass of the model for each batch.

    Parameters
    ----------
    model
        A :class:`Model`, or anything :func:`workbench.load` takes.
    inputs
        A string, strings, chats, token ids, what a tokenizer returns, or ``{"text": ..., "images": ...}``
        (:func:`workbench.inputs.encode`).
    readers
        One reader, or a list of them.
    batch_size
        Prompts in a batch; default: as many as a token budget allows, halved when memory runs out.
    positions
        "all", "last", "image" (what shows a part of a picture), "text", an index, a slice or a list; pads are never
        positions.
    progress
        False: no bars, of loading either.
    padding_side
        How batches are padded inside; changes no result.
    partial
        When interrupted (Ctrl-C), return what was read so far instead of raising.
    bos
        The first token of texts: None: as the tokenizer does; True: put its beginning-of-sequence token; False: none;
        or a token, as text or id.
    out
        A folder that keeps what is read, part by part (2048 tokens, or a thousandth of the run).  A call with the same
        arguments goes on behind the last part where another was interrupted or killed, to the same result;
        :func:`workbench.open` opens what is finished.
    engine
        How the model is run: "hooks" (whole prompts) or "prefix" (beginnings that prompts share are run once; for
        ``positions`` behind them).  None: as the model was loaded.

    Returns
    -------
    Reading or tuple of Reading
        One Reading for one reader, a tuple for a list.  The model is left as it was found: mode, random state and
        hooks, also when a reader raises.

    Raises
    ------
    InputError
        Inputs, positions or sites that cannot be read; a folder that holds something else.
    StateError
        NaN or infinity in the states, with the layer and position.

    Examples
    --------
    >>> reading = workbench.read("organism:story", ["Mara lives in"], LogitLens())  # doctest: +SKIP
    """
    if not isinstance(model, Model):
        model = load(model, progress=progress)
    single = not isinstance(readers, (list, tuple))
    chosen = [settled(reader) for reader in ([readers] if single else readers)]
    if not chosen:
        raise InputError("No reader was given, so there is nothing to look for. Give e.g. [LogitLens()].")
    if len({id(r) for r in chosen}) < len(chosen):
        raise InputError("The same reader object was given twice. Make one for each reading.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be a positive number or None, got {batch_size}.")
    if padding_side not in ("right", "left"):
        raise InputError(f"padding_side={padding_side!r} is unknown. Use 'right' or 'left'.")
    streams = [getattr(reader, "stream", "text") for reader in chosen]
    if odd := set(streams) - {"text", "vision"}:
        raise InputError(f"stream={odd.pop()!r} is unknown. Use 'text' or 'vision'.")
    if out is not None and len(set(streams)) > 1:
        raise InputError(
            "out= keeps one run, and the text model and its vision tower are two. Read the readers with "
            'stream="vision" apart, into a folder of their own.'
        )
    prompts = encode(model, inputs, positions if "text" in streams else "all", bos=bos)
    first = None if bos is None else first_token(model, bos)
    more = {} if bos is None else {"bos": first}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "partial": partial, "out": out}
    found: dict[int, Reading] = {}
    for stream in dict.fromkeys(streams):
        if stream == "text":
            drives = driver(engine or model.engine, model, prompts, padding_side)
            run = Run(model, prompts, position_axis(prompts, positions), first, progress)
        else:
            drives = Through(model, prompts, positions)
            run = Run(drives.model, drives.prompts, position_axis(drives.prompts, positions), first, progress)
            more = {**more, "tower": drives.model.tower.describe()}
        own = [i for i, of in enumerate(streams) if of == stream]
        found |= zip(own, run_readers(run, [chosen[i] for i in own], drives, more=more, **options), strict=True)
    return found[0] if single else tuple(found[i] for i in range(len(chosen)))


def run_readers(
    run: Run,
    readers: Sequence[Reader],
    drives: Driver,
    *,
    batch_size: int | None = None,
    progress: bool = True,
    partial: bool = False,
    out: str | os.PathLike[str] | None = None,
    more: dict[str, Any] | None = None,
    verb: str = "reading",
) -> list[Reading]:
    """The readings of a run that a driver runs: the second half of :func:`read`, of which each verb is a first half.

    ``more`` goes into the readings' first step of provenance.
    """
    model, prompts = run.model, run.prompts
    other = next((reader for reader in readers if getattr(reader, "stream", "text") != model.stream), None)
    if other is not None:
        raise InputError(f'{type(other).__name__}(stream={other.stream!r}) has a pass of its own: read() runs it.')
    run.norms.usual = lambda sites: _usual(model, sites)
    plans = [reader.plan(run) for reader in readers]
    saved = None if out is None else Saved(out, run, readers, plans, more or {})
    if saved is not None and saved.finished:
        return saved.readings()
    with nullcontext() if saved is None else saved.folder:
        result = collect(
            model, prompts, plans, drives, positions=len(run.positions), norms=run.norms, batch_size=batch_size,
            progress=progress, partial=partial, store=None if saved is None else saved.store, verb=verb,
        )  # fmt: skip
        origin = provenance(model, run, result.done) | (more or {})
        made = zip(readers, plans, result.found, strict=True)
        readings = [reader.reading(run, plan, found, origin) for reader, plan, found in made]
        if saved is not None and result.done == len(prompts):
            saved.finish(readings)
    return readings


def observe(
    model: Model, prompts: Sequence[Prompt], reader: Reader | Plan, drives: Driver | None = None, *,
    positions: int | None = None, **options: Any,
) -> dict[str, np.ndarray]:
    """The outputs of one reader or plan over encoded prompts, as arrays: what is measured on the way to something else.

    ``drives``: how the model is run; None: whole prompts.  ``positions``: size of the position axis; None: as many as a
    prompt reads.  ``options`` are those of
    :func:`workbench.engine.loop.collect`; there is no progress bar unless it is asked for.
    """
    slots = max((len(prompt.positions) for prompt in prompts), default=0) if positions is None else positions
    run = Run(model, prompts, list(range(slots)))
    for norms in filter(None, (run.norms, options.get("norms"))):
        norms.usual = lambda sites: _usual(model, sites)
    made = reader if isinstance(reader, Plan) else reader.plan(run)
    drives = driver("hooks", model, prompts) if drives is None else drives
    with neutral():
        result: Result = collect(
            model, prompts, [made], drives, positions=slots, **{"progress": False, "norms": None, **options}
        )
    return result.found[0]


def driver(engine: str, model: Model, prompts: Sequence[Prompt], padding_side: str = "right") -> Driver:
    """The driver of a name.  InputError for an unknown one."""
    if engine in ("auto", "hooks"):
        return Hooks(model, prompts, padding_side)
    if engine == "prefix":
        return Prefix(model, prompts, padding_side)
    raise InputError(f"engine={engine!r} is unknown. Use one of {', '.join(map(repr, ENGINES))}.")


def _usual(model: Model, sites: list[Site]) -> dict[Site, np.ndarray]:
    """Counts of norms over prompts of random tokens (:class:`workbench.sinks.Norms`); a vision tower knows none."""
    if model.stream == "vision":
        return {site: np.zeros(BINS, np.int64) for site in sites}
    prompts = encode(model, random_prompts(model), "all")
    norms = Norms(model, prompts)
    nothing = Plan(sites, {}, lambda states, batch: {})
    observe(model, prompts, nothing, norms=norms)
    return {site: norms.counts(site) for site in sites}


def provenance(model: Model, run: Run, done: int) -> dict[str, Any]:
    """Where a reading comes from: enough to tell whether two readings may be compared."""
    shown = model.processor is not None and any(prompt.visual is not None for prompt in run.prompts)
    vision = {"vision": model.vision.describe()} if shown else {}
    return {**model_step(model), **vision, "prompts": len(run.prompts), "prompts_read": done}


def model_step(model: Model) -> dict[str, Any]:
    """What provenance says of a model, and of the programs that ran it."""
    return {
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "adapters": model.adapters,
            "quantization": model.quantization,
            "offloaded": model.offloaded,
        },
        "matmul_precision": torch.get_float32_matmul_precision(),
        "anatomy": {k: v for k, v in model.anatomy.describe().items() if k != "masked"},
        "readout": model.anatomy.formula,
        "versions": dict(_versions()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("latent-workbench", "transformers", "numpy", "xarray"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
