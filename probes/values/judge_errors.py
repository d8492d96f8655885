"""What a judge gets wrong, measured on texts whose stance is known, and taken out of means: v = C^-1 v_observed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probes.values.framings import OFFERED, STANCES
from probes.values.judged import SLACK, Judge, judged
from probes.values.units import family, opened
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.variables import about, described

WORST = 30.0
"""A confusion matrix of a larger condition number is not inverted: noise would be multiplied by as much."""


VARIABLES = {
    "judged": about("stance that the judge sees", role="label"),
    "true": about("true stance", role="label"),
    "stance": about("stance", role="label"),
    "matrix": about("share of the texts of a stance that the judge takes for another"),
    "counts": about("labelled texts of the stance", "texts", role="count"),
    "p": about("probability of the stance among the three, as the judge sees it"),
    "truth": about("true stance of the text", role="label"),
    **family("v", "mean stance, the judge's confusion taken out", ends=("low", "high")),
    "observed": about("mean stance as the judge saw it"),
}


def confusion(judge: Judge, labelled: Sequence[tuple[str, str]]) -> Reading:
    """How a judge sees labelled texts: pairs (text as the instrument shows it to the judge, its true stance).

    Returns:
        matrix [judged, true]: C, what the judge says on average of texts of each stance; columns sum to 1.
        counts [true]: labelled texts of each stance.
        p [text, judged]: its probabilities of support, neutral, oppose; truth [text]: the true stance.

    Raises InputError for another stance, fewer than two texts of one, and a text that is called uncommitted outright.
    """
    pairs = list(labelled)
    if unknown := sorted({str(s) for _, s in pairs} - set(OFFERED)):
        raise InputError(f"The labels have {', '.join(unknown)}. A labelled text is one of {', '.join(OFFERED)}.")
    truth = np.array([OFFERED.index(s) for _, s in pairs], int)
    counts = np.bincount(truth, minlength=3)
    if counts.min() < 2:
        raise InputError(
            f"{counts.tolist()} texts are labelled {', '.join(OFFERED)}. What a judge makes of a stance is not "
            "known from fewer than two; label more (30 of each give an error of about .1)."
        )
    seen = judged(judge, [text for text, _ in pairs])
    p = seen["p"].values[:, :3]
    total = p.sum(1, keepdims=True)
    if (total < SLACK).any():
        raise InputError(
            "The judge calls a labelled text uncommitted outright, and stances are corrected among themselves."
        )
    p = p / total
    variables = {
        "matrix": (("judged", "true"), np.stack([p[truth == k].mean(0) for k in range(3)], 1)),
        "counts": ("true", counts), "p": (("text", "judged"), p),
        "truth": ("text", np.array([OFFERED[k] for k in truth], object)),
    }  # fmt: skip
    axes = {"judged": list(OFFERED), "true": list(OFFERED), "text": seen["text"].values}
    return derived("values.confusion", described(xr.Dataset(variables, axes), VARIABLES), seen)


def corrected(
    readings: Reading | xr.Dataset, known: Reading, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Reading:
    """The mean stance with the judge's confusion taken out: v = C^-1 v_observed, put back onto the simplex.

    Args:
        readings: of :class:`~probes.values.sampled.SampledText`, p [item, sample, stance], with cluster [item];
            or of one checkpoint of a tracker.
        known: of the same judge, what :func:`confusion` gave.
        draws, level, seed: of the bootstrap, which draws clusters of items and, within each true stance, labelled
            texts: the interval holds what is not known of the judge, too.

    Returns [stance]: v, v_low, v_high, and observed.  A cluster counts once.  What is uncommitted stays as observed.
    The simplex point is the nearest one; where v before it was below -.05 (outside), C does not fit these texts.
    Raises InputError where C is too near to singular: the judge hardly tells two stances apart.
    """
    readings, matrix = opened(readings), known["matrix"].values
    condition = float(np.linalg.cond(matrix))
    if not condition < WORST:
        raise InputError(
            f"The judge's confusion matrix has the condition number {condition:.0f} (at most {WORST:.0f} is inverted): "
            f"it hardly tells stances apart.\n{known['matrix'].to_pandas().round(2)}\nNo correction mends this judge: "
            "use another."
        )
    p = readings["p"]
    if "checkpoint" in p.dims:
        if p.sizes["checkpoint"] > 1:
            raise InputError(
                f"The readings are of {p.sizes['checkpoint']} checkpoints, and a mean is corrected at one. Choose it: "
                "readings.isel(checkpoint=-1)."
            )
        p = p.isel(checkpoint=0)
    p = p.mean("sample").transpose("item", "stance").sel(stance=list(STANCES)).values
    _, cluster = np.unique(readings["cluster"].values.astype(str), return_inverse=True)
    there = ~np.isnan(p).any(1)
    if not there.any():
        raise InputError("The readings are NaN everywhere, so there is nothing to correct.")
    names = np.unique(cluster[there])
    units = np.stack([p[there & (cluster == k)].mean(0) for k in names])
    rng = np.random.default_rng(seed)
    truth = known["truth"].values
    groups = [known["p"].values[truth == stance] for stance in OFFERED]

    def solve(matrix: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(matrix, mean[:3], rcond=None)[0]

    raw = solve(matrix, units.mean(0))
    drawn = np.empty((draws, 4))
    for d in range(draws):
        mean = units[rng.integers(len(units), size=len(units))].mean(0)
        other = np.stack([own[rng.integers(len(own), size=len(own))].mean(0) for own in groups], 1)
        drawn[d] = [*on_simplex(solve(other, mean), 1 - mean[3]), mean[3]]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if len(units) < 2:
        low = high = np.full(4, np.nan)  # one cluster says nothing of others
    best = np.array([*on_simplex(raw, 1 - units.mean(0)[3]), units.mean(0)[3]])
    found = {"v": best, "v_low": low, "v_high": high, "observed": units.mean(0)}
    data = xr.Dataset(
        {name: ("stance", value) for name, value in found.items()},
        {"stance": list(STANCES)},
        {"condition": condition, "outside": float(min(raw.min(), 0.0)), "labelled": len(truth), "level": level,
         "interval": f"percentile over {len(units)} clusters of items and {len(truth)} labelled texts"},
    )  # fmt: skip
    asked = {"level": level, "draws": draws, "seed": seed}
    return derived("values.corrected", described(data, VARIABLES), readings, known, **asked)


def on_simplex(v: np.ndarray, total: float = 1.0) -> np.ndarray:
    """The nearest vector of nonnegative numbers with this sum (Duchi et al. 2008)."""
    falling = np.sort(v)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(v) + 1)
    return np.maximum(v - excess[np.flatnonzero(falling > excess)[-1]], 0) if total > 0 else np.zeros(len(v))
