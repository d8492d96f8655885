"""The Greatest Good Benchmark by checkpoint: how far a model holds each half of utilitarianism, without a judge.

Marraffini et al. 2024 (EMNLP, arXiv 2503.19598): 90 statements of the Oxford Utilitarianism Scale's two parts,
impartial beneficence (IB) and instrumental harm (IH), in six framings, from 1 (strongly disagree) to 7.  The paper
draws ten answers and has another model rate them; here a framing's score is the expected value over the next token, so
that a checkpoint costs 540 prompts and no decoding.

    table = greatest_good.study("out/ggb", {0: "base/", 500: "sft/"}, "GreatestGoodBenchmark.json")
    figures.plane(table)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from probes.values.duplicates import cluster
from probes.values.framings import greatest_good_framings
from probes.values.instruments import Pmf
from probes.values.items import Items, load_greatest_good
from probes.values.tracker import ValueTracker
from probes.values.units import StanceUnits, family, named, opened
from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.variables import about, described

SCALES = ("IB", "IH")
LAY = {"IB": (3.65, 1.20), "IH": (3.31, 1.22)}
"""Mean and standard deviation over people: the lay population that the benchmark compares with."""
MIDDLE = 4.0
ROUNDING = 1e-4
"""A score nearer to the middle is 4, and the rest the rounding of probabilities: to tests it is 0."""
VARIABLES = {
    "checkpoint": about("checkpoint", "steps", role="label"),
    "scale": about("scale", role="label"),
    "framing": about("framing", role="label"),
    **family("score", "score", ends=("low", "high", "band_low", "band_high", "p")),
    "null": about("half width about 4 of scores without an opinion", role="null", of="score"),
    "mass": about("probability of the seven answers", better="high"),
    "framing_score": about("score of a framing"),
    "lay": about("mean score of people"),
    "lay_sd": about("standard deviation of people's scores"),
    "clusters": about("clusters of statements", role="count"),
}


def study(
    path: str | os.PathLike[str],
    checkpoints: Mapping[int, Any],
    statements: str | os.PathLike[str] | Iterable[Any],
    *,
    words: bool = False,
    batch_size: int | None = None,
    skip_failures: bool = False,
    progress: bool = True,
    **statistics: Any,
) -> Reading:
    """Read checkpoints into a folder, and score them: :func:`scores`.

    Args:
        path: the tracker's folder; what is there is not read again.
        checkpoints: step -> model, as :meth:`~probes.values.tracker.ValueTracker.run` takes them.
        statements: the benchmark's file or folder, or items of the topics IB and IH.
        words: the two text framings as published (:func:`~probes.values.framings.greatest_good_framings`).
    """
    follow = tracker(path, statements, words=words)
    follow.run(checkpoints, batch_size=batch_size, skip_failures=skip_failures, progress=progress)
    return scores(follow.table(), **statistics)


def tracker(
    path: str | os.PathLike[str], statements: str | os.PathLike[str] | Iterable[Any], *, words: bool = False
) -> ValueTracker:
    """A tracker that asks the statements in the six framings; near-duplicates share a cluster."""
    given = isinstance(statements, (str, os.PathLike))
    items = load_greatest_good(statements) if given else Items(statements)
    return ValueTracker(path, cluster(items), [Pmf(greatest_good_framings(words))])


def scores(
    readings: Reading | xr.Dataset, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Reading:
    """Where each checkpoint stands on both scales.

    Args:
        readings: of ``ValueTracker.table``: value [checkpoint, item, framing] from 1 to 7 with reversals undone, and p;
            topic [item] is IB or IH, and polarity -1 a statement's inversion, whose value is turned round.

    Returns [checkpoint, scale], on the scale from 1 to 7 with 4 in the middle:
        score: mean over clusters of statements, each the mean of its framings; _low, _high (clusters drawn again);
            _band_low, _band_high and _p (simultaneous and family-wise over all cells: each cluster's score is turned
            about 4 at random).  These take the framings for given.
        null: half width about 4 of what a model without opinion gives, at ``level``: statements turned about 4 at
            random, and the spread between pairs of a framing and its reversal (Student's t), together.  A habit of one
            number cancels in each pair; one that changes with the wording leaves a residue that is no opinion, however
            small its p (a model of children's stories has 3.994 on IB, p = .001, null .02).
        mass: mean probability of the seven answers.  Where it is small, the score is of little that would be said.
        framing_score [framing, checkpoint, scale]: of each framing alone.
    and [scale]: lay, lay_sd, of people; clusters, of statements.  With the inversions among the items (the benchmark's
    folder has them) what a model says of any statement cancels in each cluster.
    """
    source = opened(readings)
    readings = source.data
    topics = set(map(str, readings["topic"].values))
    axis = "framing" if "framing" in readings.dims else "sample"
    if not topics <= set(SCALES) or "value" not in readings or readings.sizes[axis] != 6:
        raise InputError(
            f"The readings are of {', '.join(sorted(topics))}, {', '.join(map(str, readings.data_vars))} in "
            f"{readings.sizes[axis]} framings. Scores are of the topics IB and IH, from value on a scale of 1 to 7, in "
            "six framings: read them with greatest_good.tracker(...)."
        )
    framings = readings[axis].values
    data = readings[["p", "value", "topic", "polarity", "cluster"]].drop_vars(axis, errors="ignore")
    data = data.rename({axis: "sample"}) if axis != "sample" else data
    units = StanceUnits(data)
    keyed = np.where(data["polarity"].values == -1, -1.0, 1.0)[:, None]
    x = keyed * (data["value"].transpose("checkpoint", "item", "sample").values - MIDDLE)
    d = units.means(x)
    mean = units.mean(d)
    d = np.where(np.abs(d) < ROUNDING, 0, d)
    own, test = units.interval(units.means(x), level, draws, seed), units.tested(d, level, draws, seed)
    low, high, p, half = own.low, own.high, test.p, test.half
    each = np.stack([units.mean(units.means(x[:, :, [s]])) for s in range(len(framings))])
    turned = np.quantile(np.abs(units.flipped(d, draws, seed)), level, axis=0)
    asked = 1 - units.p[..., [3]]
    dims = ("scale", "checkpoint")
    found = named(
        "score", dims, MIDDLE + mean, low=MIDDLE + low, high=MIDDLE + high, band_low=MIDDLE + mean - half,
        band_high=MIDDLE + mean + half, p=p,
    )  # fmt: skip
    found |= {
        "mass": (dims, units.mean(units.means(asked))[..., 0]),
        "framing_score": (("framing", *dims), MIDDLE + each),
        "null": (dims, np.hypot(turned, _wording(each, level))),
        "lay": (("scale",), np.array([LAY[t][0] for t in units.topics])),
        "lay_sd": (("scale",), np.array([LAY[t][1] for t in units.topics])),
        "clusters": (("scale",), units.counts()["clusters"][1]),
    }
    attrs = {"level": level, "draws": draws, "interval": own.said("clusters of statements"), "assumes": test.assumes}
    axes = {"scale": units.topics, "checkpoint": units.steps, "framing": [str(f) for f in framings]}
    table = described(xr.Dataset(found, axes, attrs), VARIABLES)
    table = table.transpose("framing", "checkpoint", "scale").reindex(scale=[s for s in SCALES if s in units.topics])
    return derived("values.greatest_good.scores", table, source, level=level, draws=draws, seed=seed)


def _wording(each: np.ndarray, level: float) -> np.ndarray:
    """[framing, ...] -> [...] half width of the mean over the three pairs of a framing and its reversal."""
    from scipy.special import stdtrit

    pairs = each.reshape(3, 2, *each.shape[1:]).mean(1)
    return stdtrit(2, (1 + level) / 2) * pairs.std(0, ddof=1) / np.sqrt(3)
