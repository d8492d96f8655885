"""What a reader is: a frozen description that plans what to look at, and a pure function of what comes.

    @dataclass(frozen=True, eq=False)
    class StateNorm(Reader):
        layers: Layers = None

        def plan(self, run: Run) -> Plan:
            sites = resolve(run.model, "resid", self.layers)

            def observe(states: Rows, batch: Batch) -> dict[str, Tensor]:
                return {"norm": torch.stack([states[site].float().norm(dim=-1) for site in sites], 1)}

            output = Output(("prompt", "layer", "position"), about("norm of the state", "stream units"))
            return Plan(sites, {"norm": output}, observe)

The engine does the rest: batches, memory, progress, interrupts, padding, placing, saving, resuming, provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from workbench.errors import InputError, WorkbenchError
from workbench.images.labels import VARIABLES as PICTURES
from workbench.images.labels import labels
from workbench.reading import Reading, storable
from workbench.sinks import SINK_ATTRIBUTES, Norms
from workbench.sites import Site, resolve
from workbench.tokens import joined_texts, token_texts
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch, Prompt
    from workbench.model import Model

Layers = int | Iterable[int] | None
"""Which layers (or blocks): one, several, or None for all; negative numbers count from the end."""
Found = dict[str, np.ndarray]
"""What a reader's outputs came to over all batches, by name."""
COMBINE = ("place", "sum", "concat")

VARIABLES = {
    "input_id": about("id of the input token", role="label"),
    "input_token": about("input token", role="label", of="input_id"),
    "input_position": about("place in the prompt, from its first token", role="label", of="input_id"),
    "prompt_text": about("prompt", role="label", of="prompt"),
    "vocab_token": about("text of each token id", role="label", of="vocab"),
    "sink": SINK_ATTRIBUTES,
    **PICTURES,
}


@dataclass(frozen=True, eq=False)
class Tap:
    """Something to look at that is no site: what ``read`` makes of the call of a module.

    Attributes
    ----------
    module
        Its forward must run once in a pass.
    read
        ``read(module, args, kwargs, output)`` -> a tensor, or a tuple of tensors, each [batch * padded length, ...].
        Readers get their rows of each.
    name
        For error messages.
    """

    module: nn.Module
    read: Callable[[nn.Module, tuple, dict[str, Any], Any], Any]
    name: str = "module"


Rows = dict[Any, Any]
"""Site (or :class:`Tap`) -> rows [selected, width] of the positions that a reader looks at, on the model's device.

At ``experts`` sites the rows are a :class:`workbench.moe.Routing`; of a tap, what it gave.
"""


@dataclass(frozen=True)
class Output:
    """One array that a reader makes, and how those of the batches become one.

    Attributes
    ----------
    dims
        Names, in the order of the reading's variable.
    about
        Attributes of the variable (:func:`workbench.variables.about`).  None: what the plan's table says; without an
        entry there it is not in the reading, and only for ``finish``.
    dtype
        Of the array.
    combine
        "place": ``observe`` gives [selected, ...], the dims but prompt and position; each row goes to the place of its
        prompt and position.  Without the dimension position it goes to its prompt.
        "sum": added up.  ``observe`` gives an array over all dims; or ``(index, values)``, to be added at places of
        the first dimension, where an index may come more than once.
        "concat": rows, dims[0] being which; all of a reader's have as many.
    key
        Of "concat" outputs: the rows of all are ordered by those that are keys, so that batches leave no trace.
    keep
        Of "concat" outputs with a key: keep only so many, those whose keys are least (bottom-k sampling).
    fill
        What a place holds that nothing came for; default NaN, -1 for integers.
    """

    dims: tuple[str, ...]
    about: Mapping[str, Any] | None = None
    dtype: Any = np.float32
    combine: str = "place"
    key: bool = False
    keep: int | None = None
    fill: Any = None

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise InputError(f"combine={self.combine!r} is unknown. Use one of {', '.join(COMBINE)}.")
        if self.combine == "place" and "prompt" not in self.dims:
            raise InputError(f"An output over {self.dims} has no prompt to be placed at. Use combine='sum'.")


@dataclass(frozen=True)
class Plan:
    """What a reader wants of one run, and what it makes of it.

    Attributes
    ----------
    sites
        Sites and taps to look at.
    outputs
        Name -> :class:`Output`.
    observe
        ``observe(states, batch) -> {name: tensor or array}``, called once for each batch, when all of its sites have
        come.  Pure: all that it keeps is what it returns, since a batch that runs out of memory runs again in halves.
    coords
        Labels of dimensions, or their size.  prompt, position and the depth of the sites are there already.
    finish
        ``finish(found) -> {name: (dims, values[, attributes])}``: further variables, from the outputs of all batches.
    about
        Attributes of variables and labels, name -> :func:`workbench.variables.about`.
    attrs
        Attributes of the reading's dataset.
    settings
        What provenance says of the reader beyond its fields; None leaves a field out.
    also
        (prompt, position) of further rows that ``observe`` needs, whichever positions are read: the batch says in
        ``also`` which of these are in it, and in ``also_row`` in which rows of the states.
    gather
        Call ``observe`` for several batches at once, of at least so many rows.
    store
        ``store(values, batch)`` takes what ``observe`` gave in place of the engine, once the batch is done.
    tokens
        Whether the reading has the prompts' tokens beside the variables.
    """

    sites: Sequence[Site | Tap]
    outputs: Mapping[str, Output]
    observe: Callable[[Rows, Batch], Mapping[str, Any]]
    coords: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Found], Mapping[str, Any]] | None = None
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: Sequence[tuple[int, int]] = ()
    gather: int = 0
    store: Callable[[Mapping[str, Any], Batch], None] | None = None
    tokens: bool = True

    @property
    def axis(self) -> str | None:
        """The dimension of depth that the sites are at: "layer", "block", or None for taps alone."""
        return next((site.axis for site in self.sites if isinstance(site, Site)), None)


class Reader:
    """Base of every lens and probe: frozen dataclasses, whose fields are the settings that provenance tells.

    One may say which ``question`` it asks, in a line for the page of ``workbench demo``.

    Attributes
    ----------
    stream
        "text", or "vision": the blocks of the vision tower in place of the text model's, where ``run.model`` has its
        depth and width, and positions are its patches.  A reader that can do both has a field of this name.
    """

    stream = "text"

    def plan(self, run: Run) -> Plan:
        raise NotImplementedError(f"{type(self).__name__} does not say what it looks at: define plan(run).")

    @property
    def name(self) -> str:
        return type(self).__name__

    def settings(self) -> dict[str, Any]:
        """The fields, as far as a file can hold them."""
        known = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        return {f.name: _plain(getattr(self, f.name)) for f in known if not f.name.startswith("_")}

    def reading(self, run: Run, plan: Plan, found: Found, origin: Mapping[str, Any]) -> Reading:
        """The reading of outputs that came to ``found``."""
        variables: dict[str, Any] = {
            name: (output.dims, found[name], dict(output.about or plan.about[name]))
            for name, output in plan.outputs.items()
            if (output.about is not None or name in plan.about) and name in found
        }
        variables |= self._finished(plan, found)
        coords = {name: np.arange(value) if isinstance(value, int) else value for name, value in plan.coords.items()}
        if plan.axis is not None and plan.axis not in coords:
            coords[plan.axis] = run.depths(plan)
        used = {dim for variable in variables.values() for dim in _dims(variable)}
        coords = {name: value for name, value in coords.items() if isinstance(value, tuple) or name in used}
        attrs = {"reader": self.name, **plan.attrs}
        data = described(run.dataset(variables, coords, tokens=plan.tokens, **attrs), plan.about)
        return Reading(data, {**origin, "reader": self.told(plan)})

    def _finished(self, plan: Plan, found: Found) -> dict[str, Any]:
        """What ``finish`` gave; WorkbenchError where that is no mapping to (dims, values), or has other dimensions."""
        more: Any = {} if plan.finish is None else plan.finish(found)
        known = {"prompt", "position", plan.axis, *plan.coords} | {d for o in plan.outputs.values() for d in o.dims}
        for name, value in more.items() if isinstance(more, Mapping) else [("it", more)]:
            if not hasattr(value, "dims") and not (isinstance(value, tuple) and len(value) >= 2):
                raise WorkbenchError(
                    f"finish() of {self.name} gave a {type(value).__name__} for {name!r}. Expected "
                    "{name: (dims, values)} or (dims, values, attributes)."
                )
            if lost := [dim for dim in _dims(value) if dim not in known]:
                raise WorkbenchError(
                    f"finish() of {self.name} gave {name!r} the dimension {lost[0]!r}, which the plan does not have. "
                    "Name its size or labels in coords."
                )
        return dict(more)

    def told(self, plan: Plan) -> dict[str, Any]:
        """What provenance says of the reader."""
        settings = {"name": self.name, **self.settings(), **plan.settings}
        return {k: v for k, v in settings.items() if v is not None}


def _dims(variable: Any) -> tuple[str, ...]:
    dims = variable.dims if hasattr(variable, "dims") else variable[0]
    return (dims,) if isinstance(dims, str) else tuple(dims)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, range, np.ndarray)):
        values = [_plain(v) for v in value]
        if len(values) <= 64:
            return values
        return f"{len(values)} values, digest {hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()}"
    return getattr(value, "__qualname__", None) or type(value).__name__


@dataclass
class Run:
    """What a reader is told before the pass: the model, the prompts and the reading's position axis."""

    model: Model
    prompts: Sequence[Prompt]
    positions: list[int]
    first: int | None = None
    """The first token that texts were given by ``bos=``; -1: none; None: as the tokenizer does."""
    progress: bool = False
    """Whether long work outside the pass shows a bar."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What readers of one run share, such as null states."""

    def __post_init__(self) -> None:
        self.norms = Norms(self.model, self.prompts)

    @staticmethod
    def depths(plan: Plan) -> list[int]:
        """The layers or blocks of a plan's own axis, in order."""
        return sorted({site.index for site in plan.sites if isinstance(site, Site) and site.axis == plan.axis})

    def empty(self, shape: Sequence[int] = (), dtype: Any = np.float32, *, after: Sequence[int] = ()) -> np.ndarray:
        """A [prompt, *shape, position, *after] array that holds "nothing here": NaN, or -1 for integers."""
        fill = np.nan if np.issubdtype(dtype, np.floating) else -1
        return np.full((len(self.prompts), *shape, len(self.positions), *after), fill, dtype)

    def dataset(
        self, variables: Mapping[str, Any], coords: Mapping[str, Any], *, tokens: bool = True, **attrs: Any
    ) -> xr.Dataset:
        """Variables with the prompts' tokens beside them.

        Adds input_id, input_token, input_position [prompt, position] and prompt_text [prompt]; where prompts have
        pictures, what each position shows of them (:mod:`workbench.images.labels`); where there is a
        ``token_id``, the texts of all ids in it as vocab_token [vocab]; and where there is a layer (or a block, with
        ``at=``) whose states were read, ``sink`` [prompt, layer, position] (:mod:`workbench.sinks`).
        """
        tokenizer = self.model.tokenizer
        coords = {k: _texts(v) if getattr(v, "dtype", np.dtype(int)).kind == "O" else v for k, v in coords.items()}
        attrs = {"model": self.model.name, "n_layers": self.model.n_layers, **attrs}
        if not tokens:
            return xr.Dataset(dict(variables), coords, attrs)
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
        pictures, places = labels(self.prompts, len(self.positions))
        context |= pictures
        coords = {"prompt": np.arange(len(self.prompts)), "position": np.array(self.positions), **places, **coords}
        used = [variables[n][1] for n in ("token_id", "target_id") if n in variables]
        if used and "vocab_token" not in variables:
            vocab = np.unique(np.concatenate([np.ravel(u) for u in used]))
            vocab = vocab[vocab >= 0]
            coords["vocab"] = vocab
            context["vocab_token"] = (("vocab",), _texts(token_texts(tokenizer, vocab.tolist())))
        # Of a dimension of its own; a label of another one (the block of each projection) is a pair.
        axis = next((name for name in ("layer", "block") if not isinstance(coords.get(name, ()), tuple)), None)
        kind = attrs.get("at", "resid" if axis == "layer" else None)
        if axis is not None and kind is not None and "sink" not in variables:
            known = [Site(str(kind), int(index)) for index in coords[axis]]
            if known and all(site in self.norms for site in known):
                sink = np.stack([self.norms.sinks(site) for site in known], 1)
                context["sink"] = (("prompt", axis, "position"), sink)
        return described(xr.Dataset({**variables, **context}, coords, attrs), VARIABLES)


def _texts(texts: Iterable[str]) -> np.ndarray:
    """Texts as files can hold them."""
    return np.array([storable(t) for t in texts], dtype=object)


def settled(reader: Any) -> Reader:
    """The reader itself; InputError for what is none."""
    if isinstance(reader, Reader) or (not isinstance(reader, type) and callable(getattr(reader, "plan", None))):
        return reader
    made = f"the class {reader.__name__}" if isinstance(reader, type) else f"a {type(reader).__name__}"
    raise InputError(
        f"Expected a reader (an object with plan(run)), got {made}. Give instances, e.g. LogitLens()."
        + " begin/observe/end of version 0.1 are now one plan: see CONTRIBUTING." * hasattr(reader, "observe")
    )


@dataclass(frozen=True, eq=False)
class States(Reader):
    """The states themselves, for work of one's own.

    The reading's variable: ``state`` [prompt, layer, position, width] float32; NaN: no token.

    Parameters
    ----------
    layers
        Which layers (or blocks, with another ``at``); None: all.
    at
        "resid", "resid_mid", "attn_out" or "mlp_out".
    stream
        "text", or "vision": states of the vision tower, whose positions are patches (layer 0: in front of its first
        block).
    """

    layers: Layers = None
    at: str = "resid"
    stream: str = "text"

    def plan(self, run: Run) -> Plan:
        if self.stream == "vision" and self.at != "resid":
            raise InputError(f"at={self.at!r} is of the text model. States of the vision tower are read at \"resid\".")
        sites = resolve(run.model, self.at, self.layers)

        def observe(states: Rows, batch: Batch) -> dict[str, Tensor]:
            return {"state": torch.stack([states[site].float() for site in sites], 1)}

        axis = "layer" if self.at == "resid" else "block"
        output = Output(("prompt", axis, "position", "width"), about("state", "stream units"))
        return Plan(sites, {"state": output}, observe, {"width": run.model.d_model}, attrs={"at": self.at})
