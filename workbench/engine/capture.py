"""One forward pass over one batch: hooks at the sites asked for, and the rows of their states that readers look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.anatomy import accepted
from workbench.anatomy.block_writes import add_hooks
from workbench.anatomy.moe import Routing, moe_of
from workbench.anatomy.moe import hooks as moe_hooks
from workbench.engine.hooks import StopForward, hooked, run
from workbench.errors import Refused, StateError, WorkbenchError
from workbench.readers import Tap
from workbench.sites import STREAM, Site

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model


@dataclass
class Captured:
    """What one pass showed.

    output: of the model; None where it was stopped behind the deepest site.  states: for each site and tap, the rows
    [selected, width] of each view.  norms: of the stream's states [batch, padded length], where they were asked for.
    """

    output: Any
    states: dict[Any, dict[int, Any]]
    norms: dict[Site, Tensor]


def capture(
    model: Model,
    batch: Batch,
    wanted: Mapping[Any, Iterable[int]],
    views: Sequence[Tensor],
    forward: Callable[[], Any] | None = None,
    *,
    norms: bool = False,
) -> Captured:
    """Run a batch once, as deep as the deepest site.

    Parameters
    ----------
    wanted
        Site or tap -> numbers of the views that are wanted of it.
    views
        Flat row numbers [selected], one set for each view.
    forward
        Run in place of the model on the batch, to its end: for passes with a cache or with embeddings.
    norms
        Also measure the norm of every state of the stream that is shown.

    Raises
    ------
    Refused
        Where a site was not reached.
    StateError
        For NaN or infinity in the rows of the first view.
    """
    seen: dict[Any, dict[int, Any]] = {}
    lengths: dict[Site, Tensor] = {}
    finite: list[tuple[Site, Tensor, Tensor]] = []
    views = [rows.to(model.device) for rows in views]

    def show(site: Any, states: Any) -> None:
        if site in seen or site not in wanted:
            return
        if states is None:
            raise Refused(
                f"{model.name} gave no state of width {model.d_model} at {site} in this pass, though it did when "
                "its anatomy was proved. Inputs that change the model's path (images, caches) may do that."
            )
        flat = states.flatten(0, 1) if isinstance(site, Site) and site.kind in STREAM else states
        seen[site] = {view: _rows(flat, views[view]) for view in wanted[site]}
        if isinstance(site, Tap):
            return
        rows = next(iter(seen[site].values()))
        numbers = rows.weight if isinstance(rows, Routing) else rows
        if site.kind != "router":  # a masked expert's score may be -infinity
            # Rows of every view hold the selected ones first.
            finite.append((site, torch.isfinite(numbers.sum(dtype=torch.float32)), numbers))
        if numbers.device.type == "cpu":
            _check(finite, batch)
        if norms and site.kind in STREAM:
            lengths[site] = torch.linalg.vector_norm(states.detach(), dim=-1, dtype=torch.float32)
        if len(seen) == len(wanted) and forward is None:
            raise StopForward

    before, after = _hooks(model, [x for x in wanted if isinstance(x, Site)], show)
    for tap in wanted:
        if isinstance(tap, Tap):
            _chained(after, tap.module, _tapped(tap, show))
    with hooked(before, after):
        output = ran(model, batch.inputs, batch.prompts) if forward is None else forward()
    _check(finite, batch)
    missed = [x for x in wanted if x not in seen]
    if missed:
        what = f"{missed[0].name} of" if isinstance(missed[0], Tap) else f"{min(missed)} in"
        raise Refused(
            f"The forward pass of {model.name} ended without reaching {what} it: that part of the model did not run on "
            "these inputs."
        )
    return Captured(output, seen, lengths)


def ran(model: Model, inputs: dict[str, Any], prompts: Sequence[int]) -> Any:
    """One forward pass.  Refused where it fails on prompts with pictures."""
    given = accepted(model.module, inputs)
    try:
        return run(model.module, given)
    except (WorkbenchError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        more = [name for name in given if name.startswith("pixel") or "image" in name]
        if not more:
            raise
        shapes = ", ".join(f"{name} {tuple(given[name].shape)}" for name in more if isinstance(given[name], Tensor))
        which = f"prompt {prompts[0]}" if len(prompts) == 1 else f"prompts {list(prompts)}"
        raise Refused(
            f"A pass of {model.name} on the picture(s) of {which} ({shapes}) fails with {type(error).__name__}: "
            f"{str(error)[:300]}. Very small or long pictures do that, and a processor that is another model's."
        ) from error


def _tapped(tap: Tap, show: Callable[[Any, Any], None]) -> Callable[..., None]:
    busy = False

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy:  # what a tap does may call the module itself
            return
        busy = True
        try:
            show(tap, tap.read(module, args, kwargs, output))
        finally:
            busy = False

    return hook


def _rows(value: Any, rows: Tensor) -> Any:
    """The rows of stream states [batch, length, width], or of what is [batch * length, ...]; of each in a tuple."""
    if isinstance(value, Routing):
        return Routing(_rows(value.index, rows), _rows(value.weight, rows))
    if isinstance(value, tuple):
        return tuple(_rows(x, rows) for x in value)
    return value.detach().index_select(0, rows.to(value.device))


def _check(finite: list[tuple[Site, Tensor, Tensor]], batch: Batch) -> None:
    """Raise StateError for the first site with NaN or infinity; forget the states that are fine."""
    for site, good, rows in finite:
        if not bool(good):
            bad = ~torch.isfinite(rows[: len(batch)]).flatten(1).all(-1)
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


def _chained(hooks: Hooks, module: nn.Module, function: Callable[..., None]) -> None:
    """One more function behind those that a module has."""
    own = hooks.get(module)

    def both(*args: Any) -> None:
        if own is not None:
            own(*args)
        function(*args)

    hooks[module] = both


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
