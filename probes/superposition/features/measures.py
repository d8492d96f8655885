"""How directions share a space, and how many features a dictionary finds in use, each beside its null.

geometry, plateaus      of directions, such as a toy model's W^T or the decoder of a sparse autoencoder
effective_features      of activations, such as those that DictionaryFeatures streams

Sources: Elhage et al. 2022, Toy Models of Superposition (interference, dimensionality, D*); Scherlis et al. 2022
(capacity, which is the same number as dimensionality); Welch 1974; Bereska et al. 2025 (effective features, psi).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probes.results import family
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, entropy, fdr, least_q, over, p_value
from workbench.variables import about, described

PLATEAUS = {
    "alone": 1.0, "tetrahedron": 3 / 4, "triangle": 2 / 3, "antipodal pair": 1 / 2, "pentagon": 2 / 5,
    "square antiprism": 3 / 8,
}  # fmt: skip
"""Dimensionality of each member of the shapes that toy models form: dimensions over members."""

GRAM_LIMIT = 1024  # a larger gram matrix is no longer a small result, nor a figure
FEW = ", which covers 91 to 94 % in place of 95 % below 100 documents"
CHUNK = 2**24  # numbers in a temporary table

ENDS = ("low", "high")
RANDOM = {"low": ("null", "{}, of random directions, lower end"), "high": ("floor", "{}, of random directions")}
VARIABLES = {
    "norm": about("length of the feature's direction", better="high"),
    **family("interference", about("interference", better="low"), "null", "p", "q", **RANDOM),
    **family("dimensionality", about("share of a dimension that the feature has", better="high"), "null", **RANDOM),
    **family("capacity", about("capacity", "dimensions", "high"), "null", "p"),
    **family("coherence", about("largest size of a cosine", better="low"), "null", "p"),
    "welch": about("least coherence that there can be", "", "low", "floor", "coherence"),
    **family("rank", about("effective rank", "dimensions", "high"), "null", "p"),
    "dimensions_per_feature": about("dimensions per feature D*"),
    "gram": about("product of two directions"),
}
PLATEAU_VARIABLES = {
    **family("share", about("share of features with the shape's dimensionality", better="high"), "null", "p"),
    "dimensionality": about("dimensionality of the shape", role="label", of="share"),
    "features": about("features represented", "features", role="count", of="share"),
}
USE_VARIABLES = {
    "share": about("share of the activity"),
    **family("F", about("effective features", "features"), *ENDS, "rotated", "null"),
    **family("psi", about("effective features per dimension"), *ENDS, "rotated", "null"),
    "F_max": about("features of the dictionary", "features", role="count", of="F"),
    "in_use": about("features that are ever active", "features"),
}


def interference(directions: np.ndarray) -> np.ndarray:
    """[features] sum over j != i of (What_i . W_j)^2: how much of the others is read along i.  NaN for a zero row.

    By the second moment W^T W [hidden, hidden], so that no table of pairs is built.
    """
    square, unit = _units(directions)
    # The own part |W_i|^2 is taken out again; of nothing but itself rounding leaves a little, of either sign.
    return np.maximum(((unit @ (directions.T @ directions)) * unit).sum(-1) - square, 0)


def dimensionality(directions: np.ndarray) -> np.ndarray:
    """[features] D_i = |W_i|^2 / sum over all j of (What_i . W_j)^2, from 0 to 1: the share of a dimension that i has.

    Equal to Scherlis' capacity (W_i.W_i)^2 / sum_j (W_i.W_j)^2; they sum to at most the hidden width.  NaN: zero row.
    """
    square, _ = _units(directions)
    return square / (square + interference(directions))


def coherence(directions: np.ndarray) -> float:
    """Largest |cosine| between two directions.  NaN with fewer than two that are not zero."""
    square, unit = _units(directions)
    unit = unit[square > 0]
    best, step = float("nan"), max(1, CHUNK // max(1, len(unit)))
    for start in range(0, len(unit) if len(unit) > 1 else 0, step):
        cosine = np.abs(unit[start : start + step] @ unit.T)
        own = np.arange(len(cosine))
        cosine[own, start + own] = 0
        best = np.fmax(best, cosine.max())
    return float(best)


def effective_rank(directions: np.ndarray) -> float:
    """exp(entropy of the squared singular values as shares): how many dimensions the directions fill."""
    power = np.linalg.eigvalsh(directions.T @ directions).clip(0)
    return float(np.exp(entropy(power / power.sum())))


def welch(features: int, hidden: int) -> float:
    """The least coherence that ``features`` directions in ``hidden`` dimensions can have (Welch 1974, k = 1)."""
    return float(np.sqrt((features - hidden) / (hidden * (features - 1)))) if features > hidden else 0.0


def geometry(directions: Any, *, draws: int = 100, level: float = 0.95, seed: int = 0) -> Reading:
    """How directions [features, hidden] share their space, beside random directions of the same norms.

    Args:
        directions: one row for each feature; of a toy model's W [hidden, features] give W.T.
        draws: of random directions, uniform on the sphere, each with its feature's own norm.

    Returns:
        norm, interference, dimensionality [feature] (:func:`interference`, :func:`dimensionality`), the latter two with
        _null (mean of the draws), _low and _high (of them).  interference_p: of a feature having so little among
        random others, and interference_q over all features (Benjamini-Hochberg); attribute least_q: what one feature
        alone can reach with so many draws.
        capacity: sum of D_i, at most ``hidden``; coherence, never below welch; rank (:func:`effective_rank`); each
        with _null and p: of so much capacity and rank, so little coherence, among random directions.
        dimensions_per_feature: D* = hidden / ||W||_F^2, meaningful where a feature that is kept has norm 1.  It is a
        matter of norms alone, so random directions have the same.
        gram [feature, feature_2] W W^T, up to 1024 features.

    Raises:
        InputError: not a matrix, not finite, or all zero.
    """
    rows = _matrix(directions)
    whole, total = _measured(rows)
    null = [_measured(random) for random in random_directions(rows, draws, seed)]
    by_feature = np.stack([x for x, _ in null])
    by_matrix = np.stack([x for _, x in null])
    found: dict[str, Any] = {"norm": (("feature",), np.linalg.norm(rows, axis=1))}
    for i, name in enumerate(("interference", "dimensionality")):
        low, high = np.quantile(by_feature[:, i], [(1 - level) / 2, (1 + level) / 2], axis=0)
        for ending, values in (("", whole[i]), ("_null", by_feature[:, i].mean(0)), ("_low", low), ("_high", high)):
            found[name + ending] = (("feature",), values)
    p = p_value(-whole[0], -by_feature[:, 0])
    found |= {"interference_p": (("feature",), p), "interference_q": (("feature",), fdr(p))}
    for i, (name, sign) in enumerate((("capacity", 1), ("coherence", -1), ("rank", 1))):
        found |= {
            name: total[i], f"{name}_null": by_matrix[:, i].mean(),
            f"{name}_p": float(p_value(sign * total[i], sign * by_matrix[:, i])),
        }  # fmt: skip
    found["welch"] = welch(int((found["norm"][1] > 0).sum()), rows.shape[1])
    found["dimensions_per_feature"] = rows.shape[1] / (rows**2).sum()
    axis = np.arange(len(rows))
    coords = {"feature": axis}
    if len(rows) <= GRAM_LIMIT:
        found["gram"], coords["feature_2"] = (("feature", "feature_2"), rows @ rows.T), axis
    attrs = {"model": f"{len(rows)} features in {rows.shape[1]} dimensions", "hidden": rows.shape[1]}
    attrs["least_q"] = least_q(draws, len(rows))
    table = described(xr.Dataset(found, coords, {**attrs, "chart": "gram"}), VARIABLES)
    return derived("features.geometry", table, draws=draws, level=level, seed=seed)


def near(dimensionalities: np.ndarray, within: float) -> np.ndarray:
    """[plateau] share of the values that lie within so much of each of PLATEAUS.  NaN where there is no value."""
    away = np.abs(np.asarray(dimensionalities)[:, None] - np.array(list(PLATEAUS.values())))
    return (away <= within).mean(0) if len(away) else np.full(len(PLATEAUS), np.nan)


def plateaus(
    directions: Any, *, within: Sequence[float] = (0.02, 0.05), least_norm: float = 0.5, draws: int = 100, seed: int = 0
) -> Reading:
    """How many features have the dimensionality of a known shape, beside random directions of the same norms.

    share [within, plateau] of the features with a norm of ``least_norm`` or more (those that are represented), its
    share_null and share_p: of so many among random directions.  features: how many are represented.
    """
    rows = _matrix(directions)
    kept = np.linalg.norm(rows, axis=1) >= least_norm

    def shares(x: np.ndarray) -> np.ndarray:
        found = dimensionality(x)[kept]
        return np.stack([near(found, w) for w in within])

    null = np.stack([shares(random) for random in random_directions(rows, draws, seed)])
    own = shares(rows)
    axes = ("within", "plateau")
    table = xr.Dataset(
        {
            "share": (axes, own), "share_null": (axes, null.mean(0)), "share_p": (axes, p_value(own, null)),
            "dimensionality": (("plateau",), list(PLATEAUS.values())), "features": int(kept.sum()),
        },
        {"within": list(within), "plateau": list(PLATEAUS)},
    )  # fmt: skip
    table = described(table, PLATEAU_VARIABLES)
    return derived("features.plateaus", table, least_norm=least_norm, draws=draws, seed=seed)


def effective_features(
    activations: Any,
    *,
    units: Any = None,
    hidden: int | None = None,
    rotated: Any = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Reading:
    """How many features of a dictionary are in use: F = exp(H(p)), p_i = mean |a_i| / sum_j mean |a_j|.

    F runs from 1 (one feature does everything) to the dictionary's size (all are used alike).  psi = F / hidden, above
    1 where more features are in use than there are dimensions (Bereska et al. 2025, arXiv 2512.13568).  Both grow with
    the dictionary, whatever the model: compare equal dictionaries, or sweep their width.

    Args:
        activations: [tokens, features], or sums of |a| by document [documents, features].
        units: [tokens] the document of each row.  Documents are resampled, never tokens.  Default: a row is one.
        hidden: width of the hidden space, for psi.
        rotated: [draw, features] sums of |a| when the same states were turned at random first
            (:func:`probes.superposition.features.rotation`): they keep all lengths and angles, and lose
            their relation to the dictionary.  A dictionary of random directions gives the same F for both.

    Returns:
        share [feature] (p_i), F with F_low and F_high, F_max (the number of features), in_use (how many ever are);
        psi, psi_low, psi_high with ``hidden``; F_rotated (and psi_rotated) [draw] with
        ``rotated``, and F_null (psi_null), their mean.
        F itself is low where features are rarer than documents (by a tenth where a feature appears in every fiftieth of
        250).  The interval is corrected for that (the jackknife's bias, or the "basic" bootstrap of many documents, on
        the log scale), so that it may lie above F: trust the interval.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or no feature ever active.
    """
    values = np.abs(np.asarray(activations, float))
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(
            f"activations has shape {values.shape}{'' if np.isfinite(values).all() else ' and holds NaN or infinity'}; "
            "give a finite [tokens, features] or [documents, features]."
        )
    if units is not None:
        number = np.unique(np.asarray(units), return_inverse=True)[1].ravel()
        if len(number) != len(values):
            raise InputError(f"units names the documents of {len(number)} rows, and activations has {len(values)}.")
        summed = np.zeros((number.max() + 1, values.shape[1]))
        np.add.at(summed, number, values)
        values = summed
    total = values.sum(0)
    if not total.sum() > 0:
        raise InputError(
            "No feature is ever active, so there is nothing whose share could be counted. Check that the dictionary "
            "belongs to this layer and that its inputs are scaled as in its training."
        )
    f = float(_count(total))
    # On the log scale.  Resampling loses features as the sample lost them to begin with, so the interval is corrected.
    where = Design(n=len(values)).bootstrap(
        lambda times: np.log(_count(times @ values)), level=level, draws=draws, seed=seed, reflect=True
    )
    low, high = (float(np.exp(np.clip(end, 0, np.log(values.shape[1])))) for end in (where.low, where.high))
    found: dict[str, Any] = {
        "share": (("feature",), total / total.sum()), "F": f, "F_low": low, "F_high": high,
        "F_max": values.shape[1], "in_use": int((total > 0).sum()),
    }  # fmt: skip
    if rotated is not None:
        turned = np.asarray(rotated, float)
        if turned.ndim != 2 or turned.shape[1] != values.shape[1]:
            raise InputError(f"rotated has shape {turned.shape}, not [draw, {values.shape[1]}] as the activations ask.")
        found["F_rotated"] = (("draw",), _count(turned))
        found["F_null"] = found["F_rotated"][1].mean()
    if hidden is not None:
        for name in [n for n in ("F", "F_low", "F_high", "F_rotated", "F_null") if n in found]:
            value = found[name]
            psi = (value[0], value[1] / hidden) if isinstance(value, tuple) else value / hidden
            found[name.replace("F", "psi")] = psi
    attrs = {"units": len(values), "interval": where.said("documents") + FEW * (len(values) < 100)}
    table = xr.Dataset(found, {"feature": np.arange(values.shape[1])}, attrs)
    settings = {"hidden": hidden, "draws": draws, "level": level, "seed": seed}
    return derived("features.effective_features", described(table, USE_VARIABLES), **settings)


def _count(total: np.ndarray) -> np.ndarray:
    """[..., features] sums of activity -> exp(entropy) of their shares; NaN where there is none."""
    size = total.sum(-1, keepdims=True)
    return np.where(size[..., 0] > 0, np.exp(entropy(np.nan_to_num(over(total, size)))), np.nan)


def _units(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms [features], NaN where zero stays zero, and rows of length 1 (NaN for a zero row)."""
    square = (directions**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return square, directions / np.sqrt(square)[:, None]


def _measured(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[2, features] interference and dimensionality; [3] capacity, coherence, rank."""
    between, share = interference(rows), dimensionality(rows)
    return np.stack([between, share]), np.array([np.nansum(share), coherence(rows), effective_rank(rows)])


def random_directions(rows: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Random directions of the same norms, so many times."""
    if draws < 1:
        raise InputError(f"draws={draws}: without random directions there is no null. Give 1 or more.")
    rng, norm = np.random.default_rng(seed), np.linalg.norm(rows, axis=1, keepdims=True)
    for _ in range(draws):
        random = rng.standard_normal(rows.shape)
        yield random * norm / np.linalg.norm(random, axis=1, keepdims=True)


def _matrix(directions: Any) -> np.ndarray:
    rows = directions.detach().cpu().double().numpy() if hasattr(directions, "detach") else directions
    rows = np.asarray(rows, float)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"directions has shape {rows.shape}; give [features, hidden], one row for each feature.")
    if not np.isfinite(rows).all():
        raise InputError("directions holds NaN or infinity, so no angle between them is known. Check the weights.")
    if not rows.any():
        raise InputError("All directions are zero: no feature is represented, and there is nothing to measure.")
    return rows
