"""How far two judges agree: kappa and accuracy with intervals over pictures, beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.reading import Reading, derived
from workbench.stats import Design, over
from workbench.variables import about, described

VARIABLES = {
    "kappa": about("Cohen's kappa", better="high", short_name="kappa"),
    "kappa_low": about("95 % interval over pictures", role="low", of="kappa"),
    "kappa_high": about("95 % interval over pictures", role="high", of="kappa"),
    "kappa_chance": about("kappa of judges that say yes as often, at random", role="chance", of="kappa"),
    "accuracy": about("share of questions with the same verdict", better="high", short_name="accuracy"),
    "accuracy_low": about("95 % interval over pictures", role="low", of="accuracy"),
    "accuracy_high": about("95 % interval over pictures", role="high", of="accuracy"),
    "accuracy_chance": about("accuracy of judges that say yes as often, at random", role="chance", of="accuracy"),
    "questions": about("questions that both judged", "questions", role="count", of="kappa"),
    "pictures": about("pictures of these", "pictures", role="count", of="kappa"),
    "among": about("which questions", role="label"),
}
NEARLY = 0.999


def agreed(one: np.ndarray, other: np.ndarray, clusters: np.ndarray, level: float = 0.95) -> dict[str, float | str]:
    """Kappa, accuracy, their intervals and chance levels of two lists of verdicts (0 or 1; NaN: none).

    ``clusters``: which picture each is of.  Kappa is NaN where both say always the same one thing, and has no interval
    where they agree throughout.
    """
    known = np.isfinite(one) & np.isfinite(other)
    a, b = one[known].astype(bool), other[known].astype(bool)
    if not known.any():
        return {"questions": 0, "pictures": 0}
    design = Design(clusters=clusters[known])

    def kappa(times: np.ndarray) -> np.ndarray:
        n = times.sum(1)
        same, p, q = (over(times @ x.astype(float), n) for x in (a == b, a, b))
        expected = p * q + (1 - p) * (1 - q)
        return over(same - expected, 1 - expected)

    def fisher(times: np.ndarray) -> np.ndarray:
        # Near 1 kappa is skewed, and an interval of it lies too high; on this scale it does not.
        return np.arctanh(np.clip(kappa(times), -NEARLY, NEARLY))

    told: dict[str, float | str] = {"questions": int(known.sum()), "pictures": design.n, "kappa_chance": 0.0}
    told["accuracy_chance"] = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    told |= {"kappa": float(kappa(np.ones((1, len(a))))[0]), "accuracy": float((a == b).mean())}
    intervals = {
        "kappa": design.bootstrap(fisher, level=level),
        "accuracy": design.bootstrap((a == b).astype(float), level=level, bounds=(0, 1)),
    }
    for name, found in intervals.items():
        # Where nothing varies between pictures, resampling them says nothing of how sure it is.
        if found.error > 1e-12 or found.method == "exact":
            ends = [float(np.tanh(end) if name == "kappa" else end) for end in (found.low, found.high)]
            told |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
            told[f"{name}_interval"] = found.said("pictures")
    return told


def table(rows: Mapping[str, Mapping[str, float | str]], dim: str = "among") -> xr.Dataset:
    """Several of :func:`agreed` as a dataset over ``dim``."""
    names = [name for name in VARIABLES if name not in ("among",)]
    data = xr.Dataset(
        {name: (dim, np.array([float(own.get(name, np.nan)) for own in rows.values()])) for name in names},
        {dim: np.array(list(rows), object)},
    )
    for name in ("questions", "pictures"):
        data[name] = data[name].fillna(0).astype(int)
    data = described(data, VARIABLES)
    for name in ("kappa", "accuracy"):
        said = {own[f"{name}_interval"] for own in rows.values() if f"{name}_interval" in own}
        for end in ("low", "high"):
            data[f"{name}_{end}"].attrs["interval"] = ", ".join(sorted(map(str, said)))
    return data


def agreement(first: Reading, second: Reading, *, level: float = 0.95) -> Reading:
    """How far two judges agree on whether any word fits, question by question.

    Parameters
    ----------
    first, second
        Results of :func:`judge` on the same patches, of a model and of a person, say.  Questions that one of them has
        not answered, or whose answer could not be read, are left out; a question that was asked for several layers
        counts once.
    level
        Of the intervals.

    Returns
    -------
    Reading
        [among]: kappa, accuracy, with intervals over pictures (:meth:`workbench.stats.Design.bootstrap`) and what
        judges that say yes as often would reach at random; questions, pictures.  ``among``: all questions, those of
        the lenses ("own"), and those of each null.  Agreement on nulls alone is mostly agreement on "no".

    Raises
    ------
    InputError
        Where the two have no question in common.
    """
    rows: dict[str, dict[str, float | str]] = {}
    tables = [_by_question(own) for own in (first, second)]
    for among in ("all", *map(str, first.data["arm"].values)):
        own, other = (
            {key: value for key, value in one.items() if among == "all" or among in value[2]} for one in tables
        )
        both = sorted(set(own) & set(other))
        if among == "all" and not both:
            raise InputError(
                "The two have no question in common that both judged. They must be of the same readings, patches, seed "
                "and number of words."
            )
        found = [np.array([one[key][0] for key in both], float) for one in (own, other)]
        clusters = np.array([own[key][1] for key in both])
        rows[among] = agreed(*found, clusters, level) if both else {}
    data = table(rows)
    data.attrs = {"reader": "judge.agreement", "judges": f"{first.data.attrs['judge']}; {second.data.attrs['judge']}"}
    bare = [Reading(xr.Dataset(), own.provenance) for own in (first, second)]
    return derived("judge.agreement", data, *bare, level=level)


def _by_question(reading: Reading) -> dict[str, tuple[float, str, set[str]]]:
    """Question -> whether any word fits, the picture, and the arms that asked it; those that have a verdict."""
    data, found = reading.data, {}
    if lacks := [name for name in ("question", "interpretable", "picture_key") if name not in data]:
        raise InputError(f"Agreement is of results of judge.judge, and this reading has no {', '.join(lacks)}.")
    value = data["interpretable"].transpose("lens", "arm", ..., "patch")
    question = data["question"].transpose(*value.dims).values
    keys, arms = data["picture_key"].values.astype(str), data["arm"].values.astype(str)
    for place in zip(*np.nonzero(np.isfinite(value.values)), strict=True):
        if key := str(question[place]):
            known = found.setdefault(key, (float(value.values[place]), keys[place[-1]], set()))
            known[2].add(arms[place[1]])
    return found
