"""Features of a dictionary (a sparse autoencoder, say) in use at layers of a model, streamed in the one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.results import family
from probes.superposition.features.checked import CELLS, Checked, rotation
from probes.superposition.features.measures import USE_VARIABLES, effective_features
from workbench.errors import InputError
from workbench.reading import Reading
from workbench.sites import Site, resolve
from workbench.variables import about, described

if TYPE_CHECKING:
    from workbench.inputs import Batch
    from workbench.model import Model
    from workbench.readers import Run

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
}  # fmt: skip
GROUPS = 256
"""Documents beyond this many share a sum, so that what is kept does not grow with the corpus."""


class DictionaryFeatures:
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

    def __init__(
        self,
        dictionaries: Mapping[int, Any],
        *,
        documents: Sequence[Any] | None = None,
        rotations: int = 3,
        scale: bool = True,
        draws: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> None:
        if not isinstance(dictionaries, Mapping) or not dictionaries:
            raise InputError(
                f"dictionaries={str(dictionaries):.60} names no dictionary. Give a mapping from layers to objects with "
                "encode and decode, e.g. {6: sae}."
            )
        if rotations < 0 or draws < 1:
            raise InputError(f"rotations={rotations} and draws={draws} are counts: 0 or more, and 1 or more.")
        self.dictionaries, self.documents = dictionaries, documents
        self.rotations, self.scale, self.draws, self.level, self.seed = rotations, scale, draws, level, seed

    def sites(self, model: Model) -> list[Site]:
        self._by_layer: dict[int, Any] = {}
        for layer, given in self.dictionaries.items():
            site = resolve(model, "resid", layer)[0]
            if site.index in self._by_layer:
                raise InputError(f"Layer {site.index} was given twice, counted from the start and from the end.")
            self._by_layer[site.index] = given
        return [Site("resid", layer) for layer in sorted(self._by_layer)]

    def begin(self, run: Run) -> None:
        self._run, width = run, run.model.d_model
        names = list(range(len(run.prompts))) if self.documents is None else list(self.documents)
        if len(names) != len(run.prompts):
            raise InputError(f"documents names {len(names)} prompts, and {len(run.prompts)} are read. Name each.")
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self._documents = len(order)
        self._group = torch.tensor([order[name] % GROUPS for name in names])
        self._turns = [rotation(width, seed=self.seed + i).to(run.model.device) for i in range(self.rotations)]
        self._sums: dict[int, dict[str, _Sums]] = {}
        self._states: dict[int, _States] = {}
        groups = min(len(order), GROUPS)
        for layer, given in sorted(self._by_layer.items()):
            mine = self._sums[layer] = {}
            for name, one in _named(given):
                where = f"The dictionary{f' {name!r}' if name else ''} of layer {layer}"
                tried = Checked(one, width, where, run.model.device)
                name = name or (str(tried.features) if _many(given) else "dictionary")
                if name in mine:
                    raise InputError(
                        f"Layer {layer} has two dictionaries of {name} features. Name them: {{'a': ..., 'b': ...}}."
                    )
                mine[name] = _Sums(tried, groups, self)
                self._states.setdefault(layer, _States(groups, tried.centre))
            if not mine:
                raise InputError(f"Layer {layer} was given no dictionary. Give one, or leave the layer out.")

    def observe(self, site: Site, states: Tensor, batch: Batch) -> None:
        rows, group = batch.take(states).detach().float(), self._group[batch.prompt]
        additions = self._states[site.index].found(rows, group)
        for own in self._sums[site.index].values():
            additions += own.found(rows, group, self._turns)

        def commit() -> None:
            for total, where, value in additions:
                total[where] += value

        batch.done.append(commit)

    def end(self) -> Reading:
        names = list(dict.fromkeys(name for own in self._sums.values() for name in own))
        layers = list(self._sums)
        size = max(own.of.features for row in self._sums.values() for own in row.values())
        found: dict[str, Any] = {}
        extra = {"draw": self.rotations, "feature": size}
        for i, layer in enumerate(layers):
            for name, own in self._sums[layer].items():
                for key, (axes, value) in own.measured(self._states[layer], self.draws, self.level, self.seed).items():
                    shape = (len(layers), len(names), *[extra[axis] for axis in axes])
                    full = found.setdefault(key, (("layer", "dictionary", *axes), np.full(shape, np.nan)))[1]
                    full[(i, names.index(name), *[slice(n) for n in np.shape(value)])] = value
        data = xr.Dataset(
            found,
            {
                "layer": layers, "dictionary": np.array(names, object), "feature": np.arange(size),
                **({"draw": np.arange(self.rotations)} if self.rotations else {}),
            },
            {
                "reader": "DictionaryFeatures", "model": self._run.model.name, "hidden": self._run.model.d_model,
                "scale": int(self.scale), "documents": self._documents,
            },
        )  # fmt: skip
        asked = {"rotations": self.rotations, "draws": self.draws, "level": self.level, "seed": self.seed}
        return Reading(described(data, VARIABLES), {"reader": {"name": "DictionaryFeatures", **asked}})


Found = dict[str, tuple[tuple[str, ...], Any]]
"""Variables of one dictionary: name -> (axes beyond layer and dictionary, values)."""
Additions = list[tuple[Tensor, Any, Tensor]]
"""Sums, where in them, and what to add there once the batch is done."""


class _States:
    """Moments of one layer's states by document: what the errors of its dictionaries are measured against."""

    def __init__(self, groups: int, centre: Tensor) -> None:
        # About a point near the mean: about 0 the variance would lose its digits to the mean.
        self.centre, width = centre, len(centre)
        self.tokens, self.square = torch.zeros(groups, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
        self.sum = torch.zeros(groups, width, dtype=torch.float64)
        self.moment = torch.zeros(width, width, dtype=torch.float64)

    def found(self, rows: Tensor, group: Tensor) -> Additions:
        away = rows - self.centre
        return [
            (self.tokens, *_by_group(torch.ones_like(away[:, 0]), group)),
            (self.square, *_by_group(away.square().sum(1), group)),
            (self.sum, *_by_group(away, group)),
            (self.moment, slice(None), (away.T @ away).double().cpu()),
        ]

    def variance(self, drawn: np.ndarray) -> np.ndarray:
        """[...] sum of squared distances from the mean, each document drawn so many times [..., documents]."""
        tokens = np.maximum(drawn @ self.tokens.numpy(), 1e-300)
        return drawn @ self.square.numpy() - ((drawn @ self.sum.numpy()) ** 2).sum(-1) / tokens

    def left(self, components: int) -> float:
        """Share of the variance that so many principal components leave."""
        mean = self.sum.sum(0) / self.tokens.sum().clamp_min(1)
        power = torch.linalg.eigvalsh(self.moment / self.tokens.sum().clamp_min(1) - torch.outer(mean, mean)).clamp_min(
            0
        )
        return float(power[: max(0, len(power) - components)].sum() / power.sum()) if power.sum() > 0 else float("nan")


class _Sums:
    """What is kept of one dictionary: sums of its activations and errors, by document, and of turned states."""

    def __init__(self, of: Checked, groups: int, settings: DictionaryFeatures) -> None:
        self.of, self.tried, n, turns = of, False, of.features, settings.rotations
        self.length = torch.ones(n, device=of.device)
        if settings.scale:
            self.length = torch.cat([x.norm(dim=1) for x in of.directions()])
        self.activity, self.active = torch.zeros(groups, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        self.error = torch.zeros(groups, dtype=torch.float64)
        self.turned = torch.zeros(turns, n, dtype=torch.float64)
        self.turned_error = torch.zeros(turns, dtype=torch.float64)

    def found(self, rows: Tensor, group: Tensor, turns: list[Tensor]) -> Additions:
        """Of states [tokens, hidden] of documents [tokens]."""
        additions: Additions = []
        of, step = self.of, max(1, CELLS // self.of.features)
        for x, own in zip(rows.split(step), group.split(step), strict=True):
            a = of.encode(x)
            if not self.tried and len(x) > 1:  # once more, as random states may excite nothing
                of.apart(x, a)
                self.tried = True
            additions += [
                (self.activity, *_by_group(a.abs() * self.length, own)),
                (self.active, slice(None), (a != 0).sum(0).double().cpu()),
                (self.error, *_by_group((x - of.decode(a)).square().sum(1), own)),
            ]
            for i, turn in enumerate(turns):
                turned = (x - of.centre) @ turn + of.centre
                a = of.encode(turned)
                additions += [
                    (self.turned, i, (a.abs() * self.length).sum(0).double().cpu()),
                    (self.turned_error, i, (turned - of.decode(a)).square().sum().double().cpu()),
                ]
        return additions

    def measured(self, states: _States, draws: int, level: float, seed: int) -> Found:
        """The reader's variables of this dictionary."""
        real = (states.tokens > 0).numpy()
        activity, error, count = self.activity.numpy(), self.error.numpy(), max(float(states.tokens.sum()), 1)
        l0 = float(self.active.sum()) / count
        once, drawn = real.astype(float), np.empty((0, len(real)))
        if real.sum() > 1:
            drawn = np.random.default_rng(seed).multinomial(real.sum(), once / real.sum(), size=draws).astype(float)
        fvu, ends = [np.nan] * 2, [(1 - level) / 2, (1 + level) / 2]
        if len(drawn):
            fvu = np.quantile(_ratio(drawn @ error, states.variance(drawn)), ends)
        whole = states.variance(once)
        found: Found = {
            "n_features": ((), self.of.features), "token_count": ((), float(states.tokens.sum())), "l0": ((), l0),
            "dead": ((), int((self.active == 0).sum())),
            "fvu": ((), _ratio(error.sum(), whole)), "fvu_low": ((), fvu[0]), "fvu_high": ((), fvu[1]),
            "fvu_pca": ((), states.left(round(l0))),
            "mean_activation": (("feature",), activity.sum(0) / count),
            "density": (("feature",), self.active.numpy() / count),
        }  # fmt: skip
        if len(self.turned):
            found["fvu_rotated"] = (("draw",), _ratio(self.turned_error.numpy(), whole))
        if activity.sum() > 0:
            rotated = self.turned.numpy() if len(self.turned) else None
            table = effective_features(
                activity[real], hidden=self.of.width, rotated=rotated, level=level, draws=draws, seed=seed
            )
            for name in (f"{x}{end}" for x in ("F", "psi") for end in ("", "_low", "_high", "_rotated", "_null")):
                if name in table:
                    found[name] = (tuple(map(str, table[name].dims)), table[name].values)
        return found


def _by_group(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Which groups [tokens] are among the rows, and the sums of each one's rows [tokens, ...]."""
    here, at = torch.unique(group, return_inverse=True)
    return here, x.new_zeros(len(here), *x.shape[1:]).index_add_(0, at.to(x.device), x).double().cpu()


def _ratio(error: Any, variance: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, error / variance, np.nan)


def _many(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _named(given: Any) -> list[tuple[str | None, Any]]:
    """One dictionary or several -> (name, dictionary), without a name where none was given."""
    if isinstance(given, Mapping):
        return [(str(name), one) for name, one in given.items()]
    return [(None, one) for one in given] if _many(given) else [(None, given)]
