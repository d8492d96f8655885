"""``read()``: one forward pass, many readers.

A reader names the sites that it wants, sees the live tensors while the model runs, keeps what it needs, and
closes with a :class:`~workbench.reading.Reading`.  Hooks sit only at the sites asked for, and the pass stops
after the deepest of them.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from workbench.anatomy import accepted
from workbench.anatomy.block_writes import add_hooks
from workbench.anatomy.moe import Routing, moe_of
from workbench.anatomy.moe import hooks as moe_hooks
from workbench.engine.hooks import StopForward, hooked, neutral, run, untouched
from workbench.errors import InputError, Refused, StateError
from workbench.inputs import Batch, Bos, Positions, Prompt, collate, encode, first_token, plan, position_axis
from workbench.model import Model, load
from workbench.reading import Provenance, Reading, storable
from workbench.sinks import SINK_ATTRIBUTES, Norms
from workbench.sites import Site
from workbench.tokens import joined_texts, token_texts
from workbench.variables import about, described

VARIABLES = {
    "input_id": about("id of the input token", role="label"),
    "input_token": about("input token", role="label", of="input_id"),
    "input_position": about("place in the prompt, from its first token", role="label", of="input_id"),
    "prompt_text": about("prompt", role="label", of="prompt"),
    "vocab_token": about("text of each token id", role="label", of="vocab"),
    "sink": SINK_ATTRIBUTES,
}


@runtime_checkable
class Reader(Protocol):
    """What every lens and probe is.

    ``observe`` gets the states [batch, padded length, width] of one site, live on their device: read them,
    never write to them, and use ``batch.take(states)`` for the positions that were asked for.  Sites arrive in
    the order of the forward pass.  A batch that runs out of memory is run again in halves, so anything that
    accumulates over batches is added in ``batch.done``.
    """

    def sites(self, model: Model) -> list[Site]: ...
    def begin(self, run: Run) -> None: ...
    def observe(self, site: Site, states: Tensor, batch: Batch) -> None: ...
    def end(self) -> Reading: ...


@dataclass
class Run:
    """What a reader is told before the pass: the model, the prompts and the reading's position axis."""

    model: Model
    prompts: list[Prompt]
    positions: list[int]
    first: int | None = None
    """The first token that texts were given by ``bos=``; -1: none; None: as the tokenizer does."""

    def __post_init__(self) -> None:
        self.norms = Norms(self.model, self.prompts, len(self.positions), read)

    def empty(self, shape: Sequence[int] = (), dtype: Any = np.float32, *, after: Sequence[int] = ()) -> np.ndarray:
        """A [prompt, *shape, position, *after] array that holds "nothing here": NaN, or -1 for integers."""
        fill = np.nan if np.issubdtype(dtype, np.floating) else -1
        return np.full((len(self.prompts), *shape, len(self.positions), *after), fill, dtype)

    def dataset(self, variables: dict[str, Any], coords: dict[str, Any], **attrs: Any) -> xr.Dataset:
        """The reader's variables with the prompts' tokens beside them.

        Adds input_id, input_token, input_position [prompt, position] and prompt_text [prompt]; where there is a
        ``token_id``, the texts of all ids in it as vocab_token [vocab]; and where there is a layer (or a block, with
        ``at=``) whose states were read, ``sink`` [prompt, layer, position] (:mod:`workbench.sinks`).
        """
        tokenizer = self.model.tokenizer
        ids, place = self.empty(dtype=np.int32), self.empty(dtype=np.int32)
        texts = np.full(ids.shape, "", dtype=object)
        for i, prompt in enumerate(self.prompts):
            shown = _texts(joined_texts(tokenizer, prompt.ids))
            for slot, position in enumerate(prompt.positions):
                ids[i, slot], place[i, slot], texts[i, slot] = prompt.ids[position], position, shown[position]
        context: dict[str, Any] = {
            "input_id": (("prompt", "position"), ids),
            "input_token": (("prompt", "position"), texts),
            "input_position": (("prompt", "position"), place),
            "prompt_text": (("prompt",), _texts(p.text for p in self.prompts)),
        }
        coords = {k: _texts(v) if getattr(v, "dtype", np.dtype(int)).kind == "O" else v for k, v in coords.items()}
        coords = {"prompt": np.arange(len(self.prompts)), "position": np.array(self.positions), **coords}
        used = [variables[n][1] for n in ("token_id", "target_id") if n in variables]
        if used:
            vocab = np.unique(np.concatenate([np.ravel(u) for u in used]))
            vocab = vocab[vocab >= 0]
            coords["vocab"] = vocab
            context["vocab_token"] = (("vocab",), _texts(token_texts(tokenizer, vocab.tolist())))
        # Of a dimension of its own; a label of another one (the block of each projection) is a pair.
        axis = next((name for name in ("layer", "block") if not isinstance(coords.get(name, ()), tuple)), None)
        kind = attrs.get("at", "resid" if axis == "layer" else None)
        if axis is not None and kind is not None:
            known = [Site(str(kind), int(index)) for index in coords[axis]]
            if known and all(site in self.norms for site in known):
                sink = np.stack([self.norms.sinks(site) for site in known], 1)
                context["sink"] = (("prompt", axis, "position"), sink, SINK_ATTRIBUTES)
        attrs = {"model": self.model.name, "n_layers": self.model.n_layers, **attrs}
        return described(xr.Dataset({**variables, **context}, coords, attrs), VARIABLES)


def _texts(texts: Iterable[str]) -> np.ndarray:
    """Texts as files can hold them."""
    return np.array([storable(t) for t in texts], dtype=object)


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
) -> Any:
    """Read prompts through one or many readers in one pass of the model for each batch.

    Args:
        model: a :class:`Model`, or anything :func:`workbench.load` takes.
        inputs: a string, strings, chats, token ids, what a tokenizer returns, or ``{"text": ..., "images": ...}``
            (:func:`workbench.inputs.encode`).
        readers: one reader, or a list of them.
        batch_size: prompts in a batch; default: as many as a token budget allows, halved when memory runs out.
        positions: "all", "last", an index, a slice or a list; pads are never positions.
        progress: False: no bars, of loading either.
        padding_side: how batches are padded inside; changes no result.
        partial: when interrupted (Ctrl-C), return what was read so far instead of raising.
        bos: the first token of texts: None: as the tokenizer does; True: put its beginning-of-sequence token; False:
            none; or a token, as text or id.

    Returns:
        One Reading for one reader, a tuple for a list.  The model is left as it was found: mode, random state
        and hooks, also when a reader raises.

    Raises:
        InputError: inputs, positions or sites that cannot be read.
        StateError: NaN or infinity in the states, with the layer and position.
    """
    if not isinstance(model, Model):
        model = load(model, progress=progress)
    single = not isinstance(readers, (list, tuple))
    chosen: list[Reader] = [readers] if single else list(readers)
    for reader in chosen:
        if isinstance(reader, type) or not isinstance(reader, Reader):
            raise InputError(
                f"{reader!r} is not a reader (it lacks sites, begin, observe or end). Give instances, e.g. LogitLens()."
            )
    if not chosen:
        raise InputError("No reader was given, so there is nothing to look for. Give e.g. [LogitLens()].")
    if len({id(r) for r in chosen}) < len(chosen):
        raise InputError("The same reader object was given twice. Make one for each reading.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size} holds no prompt. Use 1 or more, or None.")
    if padding_side not in ("right", "left"):
        raise InputError(f"padding_side={padding_side!r} is unknown. Use 'right' or 'left'.")
    prompts = encode(model, inputs, positions, bos=bos)
    wanted: dict[Site, list[Reader]] = {}
    for reader in chosen:
        for site in reader.sites(model):
            wanted.setdefault(site, []).append(reader)
    first = None if bos is None else first_token(model, bos)
    job = Run(model, prompts, position_axis(prompts, positions), first)
    for reader in chosen:
        reader.begin(job)
    done = _pass(model, prompts, wanted, batch_size, progress, padding_side, partial, job.norms)
    origin = provenance(model, job, done) | ({} if bos is None else {"bos": first})
    readings = []
    for reader in chosen:
        reading = reader.end()
        reading.provenance = Provenance([origin | own for own in reading.provenance or [{}]])
        readings.append(reading)
    return readings[0] if single else tuple(readings)


def provenance(model: Model, job: Run, done: int) -> dict[str, Any]:
    """Where a reading comes from: enough to tell whether two readings may be compared."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("latent-workbench", "transformers", "numpy", "xarray"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
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
        "prompts": len(job.prompts),
        "prompts_read": done,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _pass(
    model: Model,
    prompts: list[Prompt],
    wanted: dict[Site, list[Reader]],
    batch_size: int | None,
    progress: bool,
    padding_side: str,
    partial: bool,
    norms: Norms,
) -> int:
    """Run every batch; how many prompts were read (all of them unless interrupted with ``partial``)."""
    from tqdm.auto import tqdm

    queue = plan(prompts, token_budget(model), batch_size, model.anatomy.pad_width(padding_side))
    total = sum(len(p.ids) for p in prompts)
    done = 0

    def observed(members: list[int]) -> Batch:
        batch = collate(model, prompts, members, padding_side)
        observe_batch(model, batch, wanted, norms=norms)
        return batch

    with (
        untouched(model.module),
        tqdm(total=total, unit="tok", desc=f"reading {model.name}", disable=not progress, delay=1.0) as bar,
    ):
        try:
            for members, batch in halving(queue, observed):
                settle(batch)
                done += len(members)
                bar.update(sum(len(prompts[i].ids) for i in members))
        except KeyboardInterrupt:
            if not partial:
                raise
    return done


def halving(queue: list[list[int]], observed: Callable[[list[int]], Batch]) -> Iterator[tuple[list[int], Batch]]:
    """Each batch of the queue with its members, once ``observed`` has run it and shown it to its readers.

    Where memory does not do, that batch and all that are left are halved.  What readers keep is for the caller to
    :func:`settle`: a batch that failed is run again, and must leave nothing behind.
    """
    while queue:
        members = queue.pop(0)
        try:
            batch = observed(members)
        except (torch.OutOfMemoryError, MemoryError):
            if len(members) == 1:
                raise
            torch.cuda.empty_cache()
            # Shorter batches from here on: the rest of the queue is as large as the one that failed.
            rest = [members, *queue]
            queue = [half for m in rest for half in (m[: (len(m) + 1) // 2], m[(len(m) + 1) // 2 :]) if half]
            continue
        yield members, batch


def settle(batch: Batch) -> None:
    """Let readers keep what they saw of a batch, and let go of it."""
    for commit in batch.done:
        commit()
    # What is in here knows the batch: it would stay in memory until the collector comes by.
    batch.done.clear()
    batch.scratch.clear()


def token_budget(model: Model) -> int:
    """Tokens in a batch: what the states of all layers may take is a share of the memory that is free."""
    bytes_per_token = (model.n_layers + 1) * model.d_model * 4
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(256, min(32768, int(free * 0.15 / bytes_per_token)))
    return max(256, min(4096, 24 * 2**20 // bytes_per_token))


def observe_batch(
    model: Model,
    batch: Batch,
    wanted: dict[Site, list[Reader]],
    forward: Callable[[], Any] | None = None,
    *,
    norms: Norms | None = None,
) -> Any:
    """One forward pass over one batch, as deep as the deepest site, showing each site to its readers.

    ``forward`` is run in its place, to its end, and its output given back: for passes with a cache or with embeddings.
    After it :func:`settle` the batch.
    """
    pending = set(wanted)
    finite: list[tuple[Site, Tensor, Tensor]] = []
    busy = False

    def show(site: Site, states: Any) -> None:
        nonlocal busy
        # A reader may run parts of the model itself (its own tail): those states are not this pass's.
        if busy or site not in pending:
            return
        if states is None:
            raise Refused(
                f"{model.name} gave no state of width {model.d_model} at {site} in this pass, though it did when "
                "its anatomy was proved. Inputs that change the model's path (images, caches) may do that."
            )
        pending.discard(site)
        numbers = states.weight if isinstance(states, Routing) else states
        rows = batch.take(numbers)
        if site.kind != "router":  # a masked expert's score may be -infinity
            finite.append((site, torch.isfinite(rows.sum(dtype=torch.float32)), rows.detach()))
        if numbers.device.type == "cpu":
            _check(finite, batch)
        if norms is not None and isinstance(states, Tensor):
            norms.observe(site, states, batch)
        busy = True
        for reader in wanted[site]:
            reader.observe(site, states, batch)
        busy = False
        if not pending and forward is None:
            raise StopForward

    before, after = _hooks(model, list(wanted), show)
    try:
        with hooked(before, after):
            output = run(model.module, accepted(model.module, batch.inputs)) if forward is None else forward()
    except (torch.OutOfMemoryError, MemoryError):
        batch.scratch.clear()  # it knows the batch, which would stay in the memory that is short
        raise
    _check(finite, batch)
    if pending:
        raise Refused(
            f"The forward pass of {model.name} ended without reaching {min(pending)}: that part of the model did "
            "not run on these inputs."
        )
    return output


def _check(finite: list[tuple[Site, Tensor, Tensor]], batch: Batch) -> None:
    """Raise StateError for the first site with NaN or infinity; forget the states that are fine."""
    for site, good, rows in finite:
        if not bool(good):
            bad = ~torch.isfinite(rows).all(-1)
            if not bad.any():  # the sum overflowed, the states did not
                continue
            row = int(bad.nonzero()[0, 0])
            what = "NaN" if torch.isnan(rows[row]).any() else "infinity"
            hint = " In float16 large states overflow: load the model with dtype='bfloat16'." * (
                rows.dtype == torch.float16
            )
            raise StateError(
                f"The states of prompt {int(batch.prompt[row])} hold {what} at {site.axis} {site.index} "
                f"({site.kind}), position slot {int(batch.slot[row])}. Nothing that is read from them means "
                f"anything; check the weights and the dtype.{hint}"
            )
    finite.clear()


Hooks = dict[nn.Module, Callable[..., None]]


def _hooks(model: Model, sites: list[Site], show: Callable[[Site, Tensor | None], None]) -> tuple[Hooks, Hooks]:
    """Hooks at the modules where the sites are, and nowhere else."""
    layout = model.anatomy.layout
    layers = sorted(site.index for site in sites if site.kind == "resid")
    inner = {site for site in sites if site.kind != "resid"}
    before: Hooks = {}
    after: Hooks = {}
    last = model.anatomy.last_block

    def entering(block: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            states = layout.find((args, kwargs))
            for layer in layers:
                # A block that this pass skips leaves the stream alone: its layer is what the next block gets.
                if layer <= block:
                    show(Site("resid", layer), states)

        return hook

    deepest = max(layers, default=-1)
    for block, module in enumerate(model.blocks):
        if layers and block <= deepest and (block in layers or block - 1 in layers):
            before[module] = entering(block)
    if deepest > last:

        def leaving(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            for layer in layers:
                show(Site("resid", layer), layout.find(output)) if layer > last else None

        after[model.blocks[last]] = leaving
    routed = {site for site in inner if site.kind in ("router", "experts")}
    if inner - routed:
        add_hooks(model, inner - routed, show, before, after)
    if routed:
        kinds: dict[int, set[str]] = {}
        for site in routed:
            kinds.setdefault(site.index, set()).add(site.kind)
            moe_of(model, site.index)
        early, late = moe_hooks(
            model, model.moe, lambda b, v: show(Site("experts" if isinstance(v, Routing) else "router", b), v), kinds
        )
        before.update(early)
        after.update(late)
    return before, after
