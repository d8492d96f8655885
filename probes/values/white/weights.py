"""How far the weights of a series of checkpoints move, module by module, one parameter in memory at a time.

A folder with safetensors is read where it lies.  Anything else that a checkpoint may be (a hub id, an adapter beside
its base, a model in memory) is opened, and its parameters are written to a folder that is gone afterwards: at no time
are two whole models in memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probes.values.answers import model_step
from probes.values.tracker import opened
from workbench.errors import InputError, Refused
from workbench.fingerprint import plain_names
from workbench.fingerprint import weights as running
from workbench.reading import Reading
from workbench.stats import over
from workbench.variables import about, described
from workbench.weights import merged

if TYPE_CHECKING:
    from workbench.model import Model

PARTS = ("attention", "mlp", "norm", "other")
PIECE = 2**22
"""Elements of a parameter that are in double precision at one time."""
VARIABLES = {
    "checkpoint": about("checkpoint", "steps", role="label"),
    "module": about("module", role="label"),
    "change": about("weights less the first checkpoint's, over their norm"),
    "update": about("weights less the checkpoint's before, over the norm of the first"),
    "cosine": about("cosine of an update with the one before"),
    "cosine_null": about("standard deviation of the cosine of independent updates", role="null", of="cosine"),
    "parameters": about("parameters of the module", "parameters", role="count"),
    "norm": about("norm of the first checkpoint's weights"),
    "reason": about("why a value is missing", role="label"),
}


def weights(checkpoints: Mapping[int, Any]) -> Reading:
    """How far weights have moved from the first checkpoint, and whether they keep to one way.

    Args:
        checkpoints: step -> what :meth:`ValueTracker.run` takes.  Adapters count as what they add to the base.

    Returns, with module: "block 0 attention", "block 0 mlp", "block 0 norm", ..., "embedding", "unembedding", "norm"
    (the final one), "other" (where there is any), and "all"; a weight that two modules share counts once, as embedding:
        change [checkpoint, module]: |theta_t - theta_0| / |theta_0|, Frobenius norms.
        update [checkpoint, module]: |theta_t - theta_s| / |theta_0|, s the checkpoint before; NaN at the first.
        cosine [checkpoint, module]: of the update with the update before it; NaN at the first two.  Of independent
            updates in n dimensions it is 0 +- 1 / root n: cosine_null is that, for the module's number of parameters
            (in fact updates fill fewer dimensions).
        parameters, norm [module]: how many, and |theta_0|.
        reason [checkpoint, module]: why a value is NaN, "" where none is.

    Raises InputError for fewer than two checkpoints, and checkpoints with other parameters than the first.
    """
    steps = sorted(int(step) for step in checkpoints)
    if len(steps) < 2:
        raise InputError(f"Weights move between checkpoints, and there are {len(steps)}. Give two or more.")
    first = opened(checkpoints[steps[0]])
    origin = model_step(first)
    shapes, shared = _parameters(first)
    modules = _modules(first, shapes)
    names = list(dict.fromkeys(modules.values()))
    at = {name: names.index(own) for name, own in modules.items()}
    shape = len(steps), len(names)
    moved, update, along = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    norm = np.zeros(len(names))
    with tempfile.TemporaryDirectory(prefix="weights-") as scratch:
        sources: list[_Weights] = []
        for t, step in enumerate(steps):
            model = first if t == 0 else None
            sources.append(_Weights(checkpoints[step], step, shapes, shared, Path(scratch), model))
            first = model = None  # type: ignore[assignment]
            before = sources[max(0, t - 1)], sources[max(0, t - 2)]
            for name in modules:
                k = at[name]
                pieces = zip(*(x.pieces(name) for x in (sources[0], before[1], before[0], sources[t])), strict=True)
                for start, older, old, new in pieces:
                    norm[k] += float((start * start).sum()) if t == 0 else 0.0
                    step_now = new - old
                    moved[t, k] += float(((new - start) ** 2).sum())
                    update[t, k] += float((step_now**2).sum())
                    if t > 1:
                        along[t, k] += float((step_now * (old - older)).sum())
            if t > 2:
                sources[t - 2].drop()
        for source in sources:
            source.drop()
    counts = np.bincount(list(at.values()), [np.prod(shapes[x]) for x in at], len(names))
    names, counts, norm = [*names, "all"], np.append(counts, counts.sum()), np.append(norm, norm.sum())
    moved, update, along = (np.concatenate([x, x.sum(1, keepdims=True)], 1) for x in (moved, update, along))
    data = _table(steps, names, counts, np.sqrt(norm), np.sqrt(moved), np.sqrt(update), along)
    model = f"{origin['model']['name']} ({len(steps)} checkpoints)"
    data.attrs |= {"model": model, "measure": "weights"}
    last = {"step": "values.white.weights", "settings": {"checkpoints": steps}, "model": {"name": model}}
    return Reading(data, [origin, last])


def _table(
    steps: list[int],
    names: list[str],
    counts: np.ndarray,
    norm: np.ndarray,
    moved: np.ndarray,
    update: np.ndarray,
    along: np.ndarray,
) -> xr.Dataset:
    lengths = np.concatenate([np.full((1, len(names)), np.nan), update[1:-1] * update[2:]])
    cosine = np.concatenate([np.full((1, len(names)), np.nan), over(along[1:], lengths)])
    cosine[:2] = np.nan
    update[0] = np.nan
    reason = np.full(moved.shape, "", object)
    reason[0] = "the first checkpoint has no update"
    reason[1] = "the first update has none before it"
    still = "the weights did not move between two checkpoints"
    reason[2:] = np.where(np.isnan(cosine[2:]), still, "")
    reason[:, norm == 0] = "all weights are 0 at the first checkpoint"
    dims = ("checkpoint", "module")
    data = xr.Dataset(
        {
            "change": (dims, over(moved, norm)), "update": (dims, over(update, norm)), "cosine": (dims, cosine),
            "cosine_null": (("module",), over(1.0, np.sqrt(counts))), "parameters": (("module",), counts.astype(int)),
            "norm": (("module",), norm), "reason": (dims, reason),
        },
        {"checkpoint": steps, "module": np.array(names, object)},
        {"baseline": steps[0]},
    )  # fmt: skip
    return described(data, VARIABLES)


# ---------------------------------------------------------------- what belongs to what


def _parameters(model: Model) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shape of each parameter under its first name, adapters' own apart; and other names -> the first.

    Names are those without an adapter.
    """
    once: dict[int, str] = {}
    found, shared = {}, {}
    for weight in running(model.module):
        if not isinstance(weight.tensor, nn.Parameter) or weight.adapter:
            continue
        if not weight.tensor.is_floating_point():
            raise Refused(
                f"{model.name} holds {weight.name} as {weight.tensor.dtype}: codes of a quantisation, which do not "
                "move as weights do. Load the checkpoints unquantised."
            )
        first = once.setdefault(id(weight.tensor), weight.name)
        if first == weight.name:
            found[first] = tuple(weight.tensor.shape)
        else:
            shared[weight.name] = first
    return found, shared


def _modules(model: Model, names: Iterable[str]) -> dict[str, str]:
    """Parameter -> module."""
    anatomy = model.anatomy
    plain = plain_names(model.module)
    blocks, embedding, unembedding = (
        f"{plain(path or '?')}." for path in (anatomy.blocks, anatomy.embedding, anatomy.unembedding)
    )
    found = {}
    for name in names:
        if name.startswith(blocks):
            number, _, rest = name.removeprefix(blocks).partition(".")
            found[name] = f"block {number} {_part(rest)}"
        elif name.startswith(embedding) or "position" in name or ".wpe." in f".{name}":
            found[name] = "embedding"
        elif name.startswith(unembedding):
            found[name] = "unembedding"
        else:
            found[name] = "norm" if _is_norm(name) else "other"
    order = {"embedding": -1, "norm": 10**6, "unembedding": 10**6 + 1, "other": 10**6 + 2}

    def place(name: str) -> tuple[int, int]:
        own = found[name]
        if own in order:
            return order[own], 0
        _, number, part = own.split(" ")
        return int(number), PARTS.index(part)

    return {name: found[name] for name in sorted(found, key=place)}


def _part(rest: str) -> str:
    """Which part of a block a parameter is of, by the child of the block that holds it."""
    child = rest.split(".")[0].lower()
    if _is_norm(child):
        return "norm"
    if any(word in child for word in ("mlp", "ffn", "feed_forward", "moe", "expert", "fc1", "fc2", "dense_")):
        return "mlp"
    if any(word in child for word in ("attn", "attention", "mixer", "mamba", "rwkv", "time_mix")):
        return "attention"
    return "other"


def _is_norm(name: str) -> bool:
    name = name.lower()
    return "norm" in name or any(part == "ln" or part.startswith("ln_") for part in name.split("."))


# ---------------------------------------------------------------- where they are read from


class _Weights:
    """One checkpoint's parameters, by name, in pieces of double precision.

    Raises InputError where they are not those of the first checkpoint.
    """

    def __init__(
        self,
        source: Any,
        step: int,
        shapes: dict[str, tuple[int, ...]],
        shared: dict[str, str],
        scratch: Path,
        model: Model | None,
    ) -> None:
        self._own: list[Path] = []
        self._where: dict[str, tuple[Path, str]] = {}
        twice = {}
        for file in _files(source):
            with safe_open(file, "pt") as stored:
                for name in stored.keys():
                    (twice if name in shared else self._where)[shared.get(name, name)] = (file, name)
        self._where = twice | self._where
        if set(shapes) - set(self._where):
            # No files, or files with names of their own: the model says what is what.
            model = opened(source) if model is None else model
            self._where = {}
            for number, (name, tensor) in enumerate(merged(model.module)):
                if name not in shapes:
                    continue
                file = scratch / f"{step}-{number}.safetensors"
                save_file({"w": tensor.cpu().contiguous()}, file)
                self._where[name] = (file, "w")
                self._own.append(file)
        if lost := sorted(set(shapes) - set(self._where)):
            raise InputError(
                f"Checkpoint {step} has no parameter {lost[0]!r} ({len(lost)} are missing), which the first one has. "
                "Weights are compared one by one: give checkpoints of one model."
            )
        self.step, self._shapes = step, shapes

    def pieces(self, name: str) -> Iterator[Tensor]:
        file, stored = self._where[name]
        shape = self._shapes[name]
        with safe_open(file, "pt") as weights:
            part = weights.get_slice(stored)
            found = tuple(part.get_shape())
            if found != shape:
                raise InputError(
                    f"The parameter {name!r} is {found} at checkpoint {self.step} and {shape} at the first. Weights "
                    "are compared one by one: give checkpoints of one model."
                )
            if not shape:
                yield weights.get_tensor(stored).double()
                return
            rows = max(1, PIECE * shape[0] // max(1, int(np.prod(shape))))
            for lo in range(0, shape[0], rows):
                yield part[lo : lo + rows].double()

    def drop(self) -> None:
        """Remove what was written for this checkpoint alone."""
        for file in self._own:
            file.unlink(missing_ok=True)
        self._own = []


def _files(source: Any) -> list[Path]:
    """The safetensors files of a folder; none for anything else."""
    if not isinstance(source, (str, Path)):
        return []
    if str(source).startswith("organism:"):
        from workbench.organisms import folder

        source = folder(str(source).removeprefix("organism:"))
    home = Path(source).expanduser()
    index, single = home / "model.safetensors.index.json", home / "model.safetensors"
    if index.exists():
        return [home / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [single] if single.exists() else []
