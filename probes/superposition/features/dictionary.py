"""Features of a dictionary (a sparse autoencoder, say) in use at layers of a model, streamed in the one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probes.results import family
from probes.superposition.features.checked import CELLS, Checked, rotation
from probes.superposition.features.measures import USE_VARIABLES, effective_features
from workbench.errors import InputError
from workbench.readers import Output, Plan, Reader, Rows, Run
from workbench.sites import Site, resolve
from workbench.stats import Design, over
from workbench.variables import about

if TYPE_CHECKING:
    from workbench.inputs import Batch

VARIABLES = {
    **{name: attrs for name, attrs in USE_VARIABLES.items() if name.startswith(("F", "psi"))},
    **family("fvu", about("share of the variance that is not reconstructed", better="low"), "low", "high", "rotated"),
    "fvu_pca": about(
        "share of the variance that as many principal components leave", "", "low", "floor", "fvu"
    ),
    "n_features": about("features of the dictionary", "features", role="count", of="F"),
    "l0": about("active features a token", "features"),
    "dead": about("features never active", "features", "low"),
    "token_count": about("tokens", "tokens", role="count", of="F"),
    "mean_activation": about("mean activation of the feature"),
    "density": about("share of tokens where the feature is active"),
    "dictionary": about("dictionary", role="label"),
}  # fmt: skip
GROUPS = 256
"""Documents beyond this many share a sum, so that what is kept does not grow with the corpus."""


@dataclass(frozen=True, eq=False)
class DictionaryFeatures(Reader):
    """How many of a dictionary's features are in use at each layer: psi with its interval and its controls.

    Args:
        dictionaries: layer -> a dictionary, or several as a list or under names, e.g. {6: {"4k": a, "16k": b}}: psi
            grows with a dictionary's width, so one width alone says little.
        documents: [prompts] the document of each prompt, where prompts are pieces of documents.  Default: its own.
        rotations: how many random rotations of the states are read as well.  0: no control.
        scale: count activations in units of the stream, |a_i| times the length of feature i's decoder direction, so
            that a dictionary whose features are scaled up and decoded down gives the same number.  False: as they are.
        draws, level, seed: of the bootstrap; seed also of the rotations.

    Data variables, over [layer, dictionary]:
        F, psi with _low, _high (over documents), as :func:`~.measures.effective_features` defines them.
        F_rotated, psi_rotated [.., draw]: of the same states, turned at random about the dictionary's decode(0);
            F_null, psi_null: their mean.  A psi that lies among these is that of a dictionary which is not about
            these states.
        fvu, fvu_low, fvu_high: squared reconstruction error over the states' variance (1: as bad as their mean).
        fvu_rotated [.., draw] of the turned states, and fvu_pca: what as many principal components leave as the
            dictionary has active features a token (l0), the error to beat.
        n_features; l0; dead: features never active on these tokens; token_count.
        mean_activation, density (share of tokens where it is active) [.., feature], NaN beyond a dictionary's size.

    The first position of many models has states hundreds of times longer than all others, of which fvu then mostly
    speaks; dictionaries are trained without it.  Read with ``positions=slice(1, None)`` then.

    Raises:
        InputError: no such layer, or something that is not a dictionary for it, naming which and why.
        StateError: a dictionary that gives NaN or infinity.
    """

    dictionaries: Mapping[int, Any]
    _: KW_ONLY
    documents: Sequence[Any] | None = None
    rotations: int = 3
    scale: bool = True
    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        given = self.dictionaries
        if not isinstance(given, Mapping) or not given:
            raise InputError(
                f"dictionaries={str(given):.60} names no dictionary. Give a mapping from layers to objects with "
                "encode and decode, e.g. {6: sae}."
            )
        if self.rotations < 0 or self.draws < 1:
            raise InputError(f"rotations={self.rotations} and draws={self.draws} are counts: 0 or more, 1 or more.")

    def plan(self, run: Run) -> Plan:
        model, width = run.model, run.model.d_model
        by_layer: dict[int, Any] = {}
        for layer, given in self.dictionaries.items():
            site = resolve(model, "resid", layer)[0]
            if site.index in by_layer:
                raise InputError(f"Layer {site.index} was given twice, counted from the start and from the end.")
            by_layer[site.index] = given
        documents = list(range(len(run.prompts))) if self.documents is None else list(self.documents)
        if len(documents) != len(run.prompts):
            raise InputError(f"documents names {len(documents)} prompts, and {len(run.prompts)} are read. Name each.")
        order = {name: i for i, name in enumerate(dict.fromkeys(documents))}
        group = torch.tensor([order[name] % GROUPS for name in documents])
        turns = [rotation(width, seed=self.seed + i).to(model.device) for i in range(self.rotations)]
        sums: dict[int, dict[str, _Sums]] = {}
        moments: dict[int, _States] = {}
        for layer, given in sorted(by_layer.items()):
            mine = sums[layer] = {}
            for name, one in _named(given):
                where = f"The dictionary{f' {name!r}' if name else ''} of layer {layer}"
                tried = Checked(one, width, where, model.device)
                name = name or (str(tried.features) if _many(given) else "dictionary")
                if name in mine:
                    raise InputError(
                        f"Layer {layer} has two dictionaries of {name} features. Name them: {{'a': ..., 'b': ...}}."
                    )
                mine[name] = _Sums(tried, self, f"{layer}/{name}")
                moments.setdefault(layer, _States(tried.centre, str(layer)))
            if not mine:
                raise InputError(f"Layer {layer} was given no dictionary. Give one, or leave the layer out.")
        kept: list[_States | _Sums] = [*moments.values(), *(own for row in sums.values() for own in row.values())]
        sites = [Site("resid", layer) for layer in sums]

        def observe(states: Rows, batch: Batch) -> dict[str, Any]:
            own, additions = group[batch.prompt], []
            for site in sites:
                rows = states[site].float()
                additions += moments[site.index].additions(rows, own)
                for one in sums[site.index].values():
                    additions += one.additions(rows, own, turns)
            return _added(additions)

        def finish(found: dict[str, np.ndarray]) -> dict[str, Any]:
            for own in kept:
                own.take(found)
            names = list(dict.fromkeys(name for row in sums.values() for name in row))
            extra, variables = {"draw": self.rotations, "feature": size}, {}
            for i, layer in enumerate(sums):
                for name, own in sums[layer].items():
                    measured = own.measured(moments[layer], self.draws, self.level, self.seed)
                    for key, (axes, value) in measured.items():
                        shape = (len(sums), len(names), *[extra[axis] for axis in axes])
                        empty = ("layer", "dictionary", *axes), np.full(shape, np.nan)
                        full = variables.setdefault(key, empty)[1]
                        full[(i, names.index(name), *[slice(n) for n in np.shape(value)])] = value
            return variables

        size = max(own.of.features for row in sums.values() for own in row.values())
        names = list(dict.fromkeys(name for row in sums.values() for name in row))
        coords: dict[str, Any] = {
            "layer": list(sums), "dictionary": np.array(names, object), "feature": size, "draw": self.rotations,
            "group": min(len(order), GROUPS), "width": width, "width_2": width,
        }  # fmt: skip
        coords |= {f"feature of {own.key}": own.of.features for row in sums.values() for own in row.values()}
        attrs = {"hidden": width, "scale": int(self.scale), "documents": len(order)}
        outputs = {name: output for own in kept for name, output in own.outputs().items()}
        settings = {"dictionaries": None, "documents": None, "scale": None}
        return Plan(sites, outputs, observe, coords, finish, VARIABLES, attrs, settings, tokens=False)


Found = dict[str, tuple[tuple[str, ...], Any]]
"""Variables of one dictionary: name -> (axes beyond layer and dictionary, values)."""
Additions = list[tuple[str, Any, Tensor]]
"""Names of sums, where in their first dimension (None: everywhere), and what to add there."""


def _added(additions: Additions) -> dict[str, Any]:
    """The additions of a batch, one for each sum."""
    found: dict[str, Any] = {}
    for name, where, value in additions:
        if where is None:
            found[name] = found[name] + value if name in found else value
        else:
            found.setdefault(name, []).append((where, value))
    joined = {k: tuple(map(torch.cat, zip(*v, strict=True))) for k, v in found.items() if isinstance(v, list)}
    return {**found, **joined}


class _States:
    """Moments of one layer's states by document: what the errors of its dictionaries are measured against."""

    tokens: Tensor
    square: Tensor
    sum: Tensor
    moment: Tensor

    def __init__(self, centre: Tensor, key: str) -> None:
        # About a point near the mean: about 0 the variance would lose its digits to the mean.
        self.centre, self.key = centre, key

    def outputs(self) -> dict[str, Output]:
        return {
            f"{self.key}.tokens": _summed("group"), f"{self.key}.square": _summed("group"),
            f"{self.key}.sum": _summed("group", "width"), f"{self.key}.moment": _summed("width", "width_2"),
        }  # fmt: skip

    def additions(self, rows: Tensor, group: Tensor) -> Additions:
        away = rows - self.centre
        return [
            (f"{self.key}.tokens", *_by_group(torch.ones_like(away[:, 0]), group)),
            (f"{self.key}.square", *_by_group(away.square().sum(1), group)),
            (f"{self.key}.sum", *_by_group(away, group)),
            (f"{self.key}.moment", None, (away.T @ away).double().cpu()),
        ]

    def take(self, found: dict[str, np.ndarray]) -> None:
        """What all batches came to."""
        for name in self.outputs():
            setattr(self, name.removeprefix(f"{self.key}."), torch.from_numpy(found[name]))

    def variance(self, drawn: np.ndarray, real: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[...] sum of squared distances from the mean, these documents drawn so many times each [..., documents]."""
        tokens = np.maximum(drawn @ self.tokens.numpy()[real], 1e-300)
        found = drawn @ self.square.numpy()[real] - ((drawn @ self.sum.numpy()[real]) ** 2).sum(-1) / tokens
        return np.maximum(found, 0)

    def left(self, components: int) -> float:
        """Share of the variance that so many principal components leave."""
        mean = self.sum.sum(0) / self.tokens.sum().clamp_min(1)
        power = torch.linalg.eigvalsh(self.moment / self.tokens.sum().clamp_min(1) - torch.outer(mean, mean)).clamp_min(
            0
        )
        return float(power[: max(0, len(power) - components)].sum() / power.sum()) if power.sum() > 0 else float("nan")


class _Sums:
    """What is kept of one dictionary: sums of its activations and errors, by document, and of turned states."""

    activity: Tensor
    active: Tensor
    error: Tensor
    turned: Tensor
    turned_error: Tensor

    def __init__(self, of: Checked, settings: DictionaryFeatures, key: str) -> None:
        self.of, self.tried, self.key = of, False, key
        self.length = torch.ones(of.features, device=of.device)
        if settings.scale:
            self.length = torch.cat([x.norm(dim=1) for x in of.directions()])

    def outputs(self) -> dict[str, Output]:
        feature = f"feature of {self.key}"
        return {
            f"{self.key}.activity": _summed("group", feature), f"{self.key}.active": _summed(feature),
            f"{self.key}.error": _summed("group"), f"{self.key}.turned": _summed("draw", feature),
            f"{self.key}.turned_error": _summed("draw"),
        }  # fmt: skip

    take = _States.take

    def additions(self, rows: Tensor, group: Tensor, turns: list[Tensor]) -> Additions:
        """Of states [tokens, hidden] of documents [tokens]."""
        additions: Additions = []
        of, step = self.of, max(1, CELLS // self.of.features)
        for x, own in zip(rows.split(step), group.split(step), strict=True):
            a = of.encode(x)
            if not self.tried and len(x) > 1:  # once more, as random states may excite nothing
                of.apart(x, a)
                self.tried = True
            additions += [
                (f"{self.key}.activity", *_by_group(a.abs() * self.length, own)),
                (f"{self.key}.active", None, (a != 0).sum(0).double().cpu()),
                (f"{self.key}.error", *_by_group((x - of.decode(a)).square().sum(1), own)),
            ]
            for i, turn in enumerate(turns):
                turned, at = (x - of.centre) @ turn + of.centre, torch.tensor([i])
                a = of.encode(turned)
                error = (turned - of.decode(a)).square().sum().double().cpu()
                additions += [
                    (f"{self.key}.turned", at, (a.abs() * self.length).sum(0).double().cpu()[None]),
                    (f"{self.key}.turned_error", at, error[None]),
                ]
        return additions

    def measured(self, states: _States, draws: int, level: float, seed: int) -> Found:
        """The reader's variables of this dictionary."""
        real = (states.tokens > 0).numpy()
        activity, error, count = self.activity.numpy(), self.error.numpy(), max(float(states.tokens.sum()), 1)
        l0 = float(self.active.sum()) / count
        fvu: Any = [np.nan] * 2
        if real.any():
            where = Design(n=int(real.sum())).bootstrap(
                lambda times: over(times @ error[real], states.variance(times, real)),
                level=level, draws=draws, seed=seed, bounds=(0, np.inf),
            )  # fmt: skip
            fvu = where.low, where.high
        whole = float(states.variance(real.astype(float)))
        found: Found = {
            "n_features": ((), self.of.features), "token_count": ((), float(states.tokens.sum())), "l0": ((), l0),
            "dead": ((), int((self.active == 0).sum())),
            "fvu": ((), over(error.sum(), whole)), "fvu_low": ((), fvu[0]), "fvu_high": ((), fvu[1]),
            "fvu_pca": ((), states.left(round(l0))),
            "mean_activation": (("feature",), activity.sum(0) / count),
            "density": (("feature",), self.active.numpy() / count),
        }  # fmt: skip
        if len(self.turned):
            found["fvu_rotated"] = (("draw",), over(self.turned_error.numpy(), whole))
        if activity.sum() > 0:
            rotated = self.turned.numpy() if len(self.turned) else None
            table = effective_features(
                activity[real], hidden=self.of.width, rotated=rotated, level=level, draws=draws, seed=seed
            )
            for name in (f"{x}{end}" for x in ("F", "psi") for end in ("", "_low", "_high", "_rotated", "_null")):
                if name in table:
                    found[name] = (tuple(map(str, table[name].dims)), table[name].values)
        return found


def _summed(*dims: str) -> Output:
    return Output(dims, dtype=np.float64, combine="sum")


def _by_group(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Which groups [tokens] are among the rows, and the sums of each one's rows [tokens, ...]."""
    here, at = torch.unique(group, return_inverse=True)
    return here, x.new_zeros(len(here), *x.shape[1:]).index_add_(0, at.to(x.device), x).double().cpu()


def _many(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _named(given: Any) -> list[tuple[str | None, Any]]:
    """One dictionary or several -> (name, dictionary), without a name where none was given."""
    if isinstance(given, Mapping):
        return [(str(name), one) for name, one in given.items()]
    return [(None, one) for one in given] if _many(given) else [(None, given)]
