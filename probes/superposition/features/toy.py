"""The toy autoencoder of superposition, trained at many sparsities at once (Elhage et al. 2022).

    x' = ReLU(W^T W x + b)        x in R^features, W [hidden, features]
    loss = mean over x of sum_i importance_i (x_i - x'_i)^2

A feature is 0 with probability S, its sparsity, and uniform on [0, 1] otherwise.  Dense features get a dimension each
or none; sparse ones share: antipodal pairs (half a dimension each), triangles (2/3), pentagons (2/5).

    python -m probes.superposition.features.toy        both experiments with their tables, in less than three minutes
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.superposition.features.measures import VARIABLES as MEASURED
from probes.superposition.features.measures import dimensionality, interference, plateaus, random_directions
from workbench.errors import InputError, StateError
from workbench.reading import Reading, derived
from workbench.variables import about, described

VARIABLES = {
    **{name: MEASURED[name] for name in ("norm", "interference", "dimensionality", "dimensions_per_feature")},
    "dimensionality_random": about(
        "share of a dimension that the feature has, of random directions", "", "high", "null", "dimensionality"
    ),
    "W": about("weights"),
    "b": about("bias"),
    "loss": about("loss", better="low"),
    "loss_all": about("loss by restart", better="low"),
    "loss_orthogonal": about("loss, were the most important features kept whole", "", "low", "floor", "loss"),
    "importance": about("weight in the loss"),
}
HELD_OUT = 16  # batches on which the loss is measured


def sweep(
    features: int,
    hidden: int,
    sparsities: Sequence[float],
    *,
    importance: Sequence[float] | None = None,
    steps: int = 10_000,
    batch: int = 1024,
    rate: float = 1e-3,
    restarts: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Reading:
    """Train one autoencoder for each sparsity, all as one batch of matrices, and measure what they hold.

    Args:
        sparsities: S of each, in [0, 1): the probability that a feature is 0.
        importance: [features] weights of the loss, all 1 by default.
        rate: of Adam, falling to 0 along a cosine over all ``steps``.
        restarts: initialisations of each sparsity, of which the one of the lowest loss is kept.
        seed: of initial weights and samples.  All sparsities start from the same weights and see the same uniform
            draws, so one model does not depend on which others are trained beside it.

    Returns:
        W [sparsity, hidden, feature], b [sparsity, feature]; norm, interference and dimensionality (D_i)
        [sparsity, feature], and dimensionality_random of random directions of the same norms (one draw);
        dimensions_per_feature (D* = hidden / ||W||_F^2) [sparsity].
        loss [sparsity] on fresh samples, loss_all [sparsity, restart], and beside them loss_orthogonal: what is lost
        when the ``hidden`` most important features are kept whole and the others replaced by their mean.  Features
        share dimensions to some purpose only where loss is below that.

    Raises:
        InputError: a sparsity outside [0, 1), importance of another length or negative, sizes below 1.
        StateError: training diverged.
    """
    sparsity, weight = _checked(features, hidden, sparsities, importance, steps, batch, restarts)
    generator = torch.Generator().manual_seed(seed)
    n, density = len(sparsity) * restarts, torch.tensor(1 - sparsity, dtype=torch.float32).repeat_interleave(restarts)
    spread = math.sqrt(2 / (features + hidden))  # Xavier, as in the paper's own code
    start = torch.randn(restarts, hidden, features, generator=generator) * spread
    w = start.repeat(len(sparsity), 1, 1)
    b = torch.zeros(n, 1, features)
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in (w, b)]
    for step in _counted(steps, progress, f"{n} autoencoders"):
        x = _samples(density, batch, features, generator)
        gradients = _gradients(w, b, x, weight)
        pace = 0.5 * rate * (1 + math.cos(math.pi * step / steps))
        for parameter, gradient, (mean, square) in zip((w, b), gradients, moments, strict=True):
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square_(), 0.001)
            size = pace * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            parameter.addcdiv_(mean, square.sqrt().add_(1e-8), value=-size)
    loss = torch.zeros(n, dtype=torch.float64)
    for _ in range(HELD_OUT):
        x = _samples(density, batch, features, generator)
        loss += ((_output(w, b, x)[1].relu() - x).square() @ weight).mean(1).double() / HELD_OUT
    if not torch.isfinite(loss).all():
        raise StateError(f"Training at rate={rate} diverged: the loss is not finite. Train with a smaller rate.")
    losses = loss.reshape(-1, restarts).numpy()
    best = losses.argmin(1) + np.arange(len(sparsity)) * restarts
    table = _dataset(w.numpy()[best], b.numpy()[best, 0], losses, sparsity, weight.numpy())
    settings = {"steps": steps, "batch": batch, "rate": rate, "restarts": restarts, "seed": seed}
    return derived("features.sweep", described(table, VARIABLES), **settings)


def _checked(
    features: int, hidden: int, sparsities: Sequence[float], importance: Sequence[float] | None, *sizes: int
) -> tuple[np.ndarray, Tensor]:
    sparsity = np.asarray(sparsities, float).reshape(-1)
    if not len(sparsity) or not ((sparsity >= 0) & (sparsity < 1)).all():
        raise InputError(
            f"sparsities={sparsity.tolist()}: each is the probability that a feature is 0, from 0 to below 1 (at 1 "
            "there is nothing to learn). Give at least one."
        )
    if min(features, hidden, *sizes) < 1:
        raise InputError("features, hidden, steps, batch and restarts are counts: give 1 or more of each.")
    weight = torch.ones(features) if importance is None else torch.tensor(np.asarray(importance, np.float32))
    if weight.shape != (features,) or not bool(((weight >= 0) & torch.isfinite(weight)).all()):
        raise InputError(
            f"importance has shape {tuple(weight.shape)} and minimum {float(weight.min()):.3g}; the loss needs one "
            f"finite weight of 0 or more for each of the {features} features."
        )
    return sparsity, weight


def _samples(density: Tensor, batch: int, features: int, generator: torch.Generator) -> Tensor:
    """[models, batch, features]: u / p where u < p, for uniform u is then uniform on [0, 1] with probability p."""
    u = torch.rand(batch, features, generator=generator)
    x = u / density[:, None, None]
    return x.masked_fill_(x >= 1, 0) if float(density.min()) < 1 else x


def _output(w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [models, batch, hidden] and what goes into the ReLU [models, batch, features]."""
    h = x @ w.mT
    return h, torch.baddbmm(b, h, w)


def _gradients(w: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of the loss by W and b, written out: autograd would keep and pass through several times as much."""
    h, y = _output(w, b, x)
    active = y > 0
    error = y.sub_(x).mul_(active).mul_(weight * (2 / x.shape[1]))
    return torch.baddbmm(h.mT @ error, (error @ w.mT).mT, x), error.sum(1, keepdim=True)


def _counted(steps: int, progress: bool, what: str) -> Sequence[int]:
    from tqdm.auto import tqdm

    return tqdm(range(steps), desc=what, disable=not progress, unit="step")  # type: ignore[return-value]


def _dataset(
    w: np.ndarray, b: np.ndarray, losses: np.ndarray, sparsity: np.ndarray, weight: np.ndarray
) -> xr.Dataset:
    hidden, features = w.shape[1:]
    rows = w.transpose(0, 2, 1).astype(float)
    p = 1 - sparsity
    # Variance of what is 0 with probability 1 - p and uniform otherwise.
    dropped = np.sort(weight)[: max(0, features - hidden)].sum() * (p / 3 - p**2 / 4)
    each = ("sparsity", "feature")
    return xr.Dataset(
        {
            "W": (("sparsity", "hidden", "feature"), w), "b": (each, b),
            "norm": (each, np.linalg.norm(rows, axis=-1)),
            "interference": (each, np.stack([interference(r) for r in rows])),
            "dimensionality": (each, np.stack([dimensionality(r) for r in rows])),
            "dimensionality_random": (each, np.stack([dimensionality(next(random_directions(r, 1, 0))) for r in rows])),
            "dimensions_per_feature": (("sparsity",), hidden / (rows**2).sum((1, 2))),
            "loss": (("sparsity",), losses.min(1)), "loss_all": (("sparsity", "restart"), losses),
            "loss_orthogonal": (("sparsity",), dropped),
            "importance": (("feature",), weight),
        },
        {"sparsity": sparsity, "feature": np.arange(features), "hidden": np.arange(hidden)},
        {"model": f"{features} features in {hidden} dimensions", "chart": "sharing"},
    )  # fmt: skip


def table(data: Reading, *, within: float = 0.02, draws: int = 50, seed: int = 0) -> str:
    """A sweep as text: D* and, for each shape, the share of represented features with its dimensionality.

    In brackets the share among random directions of the same norms, and a star where p < 0.05.
    """
    lines, head = [], ""
    for i, sparsity in enumerate(data["sparsity"].values):
        found = plateaus(data["W"].values[i].T, within=[within], draws=draws, seed=seed).data.isel(within=0)
        shapes = zip(found["share"].values, found["share_null"].values, found["share_p"].values, strict=True)
        cells = [
            f"{own:5.0%} ({null:3.0%}){'*' if p < 0.05 else ' '}" if own == own else "- " for own, null, p in shapes
        ]
        head = "".join(f"{name:>17}" for name in found["plateau"].values)
        ratio = float(data["loss"][i]) / max(float(data["loss_orthogonal"][i]), 1e-300)
        lines.append(
            f"{1 / (1 - sparsity):9.2f} {float(data['dimensions_per_feature'][i]):7.3f} {ratio:9.3f} "
            f"{int(found['features']):6d}" + "".join(f"{cell:>17}" for cell in cells)
        )
    start = f"{data.data.attrs['model']}: share of represented features within {within} of a shape's D (among random)\n"
    return start + f"{'1/(1-S)':>9} {'D*':>7} {'loss/orth':>9} {'repr.':>6}{head}\n" + "\n".join(lines)


def main() -> None:
    """Small geometries, then many features in twenty dimensions, as tables."""
    begun = time.time()
    for features, hidden in ((3, 2), (4, 3), (5, 2)):
        inverse = np.geomspace(1.5, 30, 7)
        print(table(sweep(features, hidden, 1 - 1 / inverse, steps=3000, batch=512, rate=1e-2, restarts=8)) + "\n")
    inverse = np.r_[np.geomspace(1.2, 5, 11), np.geomspace(7, 100, 7)]
    many = sweep(200, 20, 1 - 1 / inverse, steps=8000, batch=256, rate=3e-3, progress=True)
    print(f"{table(many)}\n\n{time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
