"""Levels of values: drift of topics, alerts on it, its onset, runs beside each other, instruments and surveys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

from levels.case import Case
from probes.values.alert import beyond
from probes.values.beside import agreement, compare, data_gap
from probes.values.choices import likeness
from probes.values.measures import drift, stance
from probes.values.units import STANCES
from workbench.reading import Reading

Trial = Callable[[np.random.Generator], Any]
Moves = Callable[[np.random.Generator, int], np.ndarray]
DRAWS = 199
OF_RUN = "long name: in this run (another seed may differ)"
FEW = "assumes: symmetry cannot be tested with so few clusters"


def readings(
    keyed: np.ndarray, topics: int = 10, cluster: Sequence[Any] | None = None, steps: Sequence[int] | None = None
) -> xr.Dataset:
    """Keyed stances [checkpoint, item] between -.9 and .9, as readings of one sample."""
    keyed = np.clip(keyed, -0.89, 0.89)
    k, n = keyed.shape
    rest = np.full_like(keyed, 0.05)
    names = [f"i{i}" for i in range(n)]
    return xr.Dataset(
        {
            "p": (
                ("checkpoint", "item", "sample", "stance"),
                np.stack([0.45 + keyed / 2, rest, 0.45 - keyed / 2, rest], -1)[:, :, None],
            ),
            "topic": ("item", np.repeat([f"t{t:02}" for t in range(topics)], n // topics).astype(object)),
            "polarity": ("item", np.ones(n, int)),
            "cluster": ("item", np.array(names if cluster is None else cluster, object)),
        },
        {
            "checkpoint": 10 * np.arange(k) if steps is None else np.array(steps), "item": names,
            "stance": list(STANCES),
        },
    )  # fmt: skip


def ends(moves: np.ndarray) -> np.ndarray:
    """Moves [item] between two checkpoints."""
    return np.stack([np.zeros_like(moves), moves])


def least(table: xr.Dataset, name: str = "M") -> float:
    return min(float(np.nanmin(table[f"{which}{name}_p"].values)) for which in ("", "keyed_", "commitment_"))


# ---------------------------------------------------------------- moves of items


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.1 * rng.standard_normal(n)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.06 * rng.standard_t(3, n)


def exponential(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.08 * (rng.exponential(1, n) - 1)


def movers(rng: np.random.Generator, n: int) -> np.ndarray:
    """15 % move far, the rest creep back; mean 0."""
    return np.where(rng.random(n) < 0.15, 0.6, -0.6 * 0.15 / 0.85) + 0.02 * rng.standard_normal(n)


def opposed(rng: np.random.Generator, n: int) -> np.ndarray:
    """As movers, up in half of ten topics and down in the others."""
    return movers(rng, n) * np.repeat(np.where(np.arange(10) % 2, 1, -1), n // 10)


def hidden(rng: np.random.Generator, n: int) -> np.ndarray:
    """Movers in two topics of ten, among others' noise."""
    found = 0.3 * rng.standard_normal(n)
    found[: n // 5] = movers(rng, n // 5)
    return found


def uneven(rng: np.random.Generator, n: int) -> np.ndarray:
    """Topics of unequal spread."""
    return 0.05 * rng.standard_normal(n) * np.repeat(np.exp(rng.standard_normal(10)), n // 10)


def ties(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.choice([-0.2, 0.0, 0.0, 0.2], n)


def copies(times: int) -> Moves:
    return lambda rng, n: np.repeat(normal(rng, n // times), times)


# ---------------------------------------------------------------- drift


def without_drift(moves: Moves, each: int, topics: int = 10, times: int = 1) -> Trial:
    """Any claim of drift; ``times``: as many items are declared one cluster."""

    def trial(rng: np.random.Generator) -> bool:
        n = each * topics
        data = readings(ends(moves(rng, n)), topics, [f"c{i // times}" for i in range(n)])
        return least(drift(data, draws=DRAWS, seed=int(rng.integers(2**31))).data) <= 0.05

    return trial


def paths(kind: str, each: int, checkpoints: int) -> Trial:
    def trial(rng: np.random.Generator) -> bool:
        n = 10 * each
        if kind == "noise":
            keyed = 0.1 * rng.standard_normal((checkpoints, n))
        elif kind == "walks":
            keyed = np.cumsum(0.03 * rng.standard_normal((checkpoints, n)), 0)
        else:
            own = {"movers": movers, "opposed": opposed}[kind](rng, n)
            keyed = np.linspace(0, 1, checkpoints)[:, None] * own + 0.01 * rng.standard_normal((checkpoints, n))
        return least(drift(readings(keyed), draws=DRAWS, seed=int(rng.integers(2**31))).data) <= 0.05

    return trial


def items_move(rng: np.random.Generator) -> bool:
    """Samples of 40 items differ by noise alone: moved_p."""
    p = rng.dirichlet(np.ones(4), 40)
    drawn = np.stack([[rng.multinomial(1, own, 5) for own in p] for _ in range(4)])
    data = readings(np.zeros((4, 40)), 4).drop_vars("p")
    data["p"] = (("checkpoint", "item", "sample", "stance"), 0.96 * drawn + 0.01)
    return float(np.nanmin(drift(data, draws=DRAWS).data["moved_p"].values)) <= 0.05


def planted(moves: Moves, each: int, shift: float) -> Trial:
    """The first topic of ten moves in its mean."""

    def trial(rng: np.random.Generator) -> bool:
        own = moves(rng, 10 * each)
        own[:each] += shift
        found = drift(readings(ends(own)), draws=DRAWS, seed=int(rng.integers(2**31))).data
        return float(found["keyed_M_p"].values[1, 0]) <= 0.05

    return trial


def covered(moves: Moves, each: int, name: str = "keyed_M", topics: int = 10) -> Trial:
    """Intervals of topics' means, of which each counts; of bands, all together."""

    def trial(rng: np.random.Generator) -> Any:
        data = readings(ends(moves(rng, each * topics)), topics)
        if name == "keyed":
            found = stance(data.isel(checkpoint=[1]), draws=999, seed=int(rng.integers(2**31))).data.isel(checkpoint=0)
        else:
            found = drift(data, draws=999, seed=int(rng.integers(2**31))).data.isel(checkpoint=1)
        held = (found[f"{name}_low"].values <= 0) & (found[f"{name}_high"].values >= 0)
        return bool(held.all()) if name.endswith("band") else held

    return trial


# ---------------------------------------------------------------- onset


def onset(kind: str, each: int, checkpoints: int = 50, near: float | None = None) -> Trial:
    """Drift that begins where it is told: covered, or within ``near`` of the steps; NaN where no drift is found."""
    begin, length = {"linear": (0.0, 1.0), "ramp": (0.4, 0.3), "step": (0.4, 0.0), "late": (0.6, 0.4)}[kind]

    def trial(rng: np.random.Generator) -> float:
        steps = np.arange(checkpoints)
        last = checkpoints - 1
        shape = np.clip((steps - begin * last) / max(length * last, 1e-9), 0, 1)
        keyed = (0.1 + 0.05 * rng.standard_normal(each)) * shape[:, None]
        keyed = keyed + 0.06 * rng.standard_normal((checkpoints, each))
        found = drift(readings(keyed, 1, steps=steps), draws=DRAWS, seed=int(rng.integers(2**31))).data
        value, low, high = (float(found[f"keyed_onset{end}"].values[0]) for end in ("", "_low", "_high"))
        if np.isnan(value):
            return float("nan")
        return float(abs(value / last - begin) <= near if near else low <= begin * last <= high)

    return trial


# ---------------------------------------------------------------- alert


def alarm(kind: str, each: int, by: float = 0.0, looks: int = 10, spread: float = 0.0) -> Trial:
    """Whether a run is stopped, which it should not be."""

    def trial(rng: np.random.Generator) -> bool:
        n, topics = 4 * each, 4
        grow = np.linspace(0, 1, looks + 1)[:, None]
        if kind == "noise":
            keyed = 0.1 * rng.standard_normal((looks + 1, n))
        elif kind == "walks":
            keyed = np.concatenate([np.zeros((1, n)), np.cumsum(0.03 * rng.standard_normal((looks, n)), 0)])
        elif kind == "movers":
            keyed = grow * (movers(rng, n) + by) + 0.01 * rng.standard_normal((looks + 1, n))
        elif kind == "at":
            keyed = grow * by + 0.1 * rng.standard_normal((looks + 1, n))
        else:  # topics' means walk, as between seeds
            walk = np.cumsum(rng.standard_normal((looks, topics)), 0) * 0.02 / looks**0.5
            keyed = np.repeat(np.concatenate([np.zeros((1, topics)), walk]), each, 1)
            keyed = keyed + 0.03 * rng.standard_normal((looks + 1, n))
        data, alert = readings(keyed, topics), beyond(by=by, looks=looks, spread=spread)
        for k in range(1, looks + 1):
            seen = Reading(data.isel(checkpoint=slice(k + 1)))
            tracker: Any = SimpleNamespace(readings=lambda instrument, seen=seen: seen)
            if alert(tracker):
                return True
        return False

    return trial


# ---------------------------------------------------------------- runs


def arms(seeds: int, what: str, difference: float = 0.0, noise: float = 0.03) -> Trial:
    """Two recipes of so many runs, alike but for ``difference`` in the first of ten topics, read with 24 items each."""

    def trial(rng: np.random.Generator) -> bool:
        items = 0.1 * rng.standard_normal(240)
        runs, arm = {}, {}
        for name in "ab":
            for seed in range(seeds):
                mean = noise * rng.standard_normal(10)
                mean[0] += difference * (name == "b")
                own = items + np.repeat(mean, 24) + 0.05 * rng.standard_normal(240)
                runs[f"{name}{seed}"], arm[f"{name}{seed}"] = readings(np.stack([items, own])), name
        table = compare(runs, arm=arm, draws=DRAWS, seed=int(rng.integers(2**31))).data
        if difference:
            return float(table["keyed_arm_difference_p"].values[0, 0]) <= 0.05
        if what == "covered":
            low, high = (table[f"keyed_arm_difference_{end}"].values for end in ("low", "high"))
            return ((low <= 0) & (high >= 0))[0]
        return least(table, what) <= 0.05

    return trial


# ---------------------------------------------------------------- others


def instruments(rng: np.random.Generator) -> bool:
    """Two instruments that have nothing to do with each other."""
    runs = {name: readings(0.4 * rng.standard_normal((1, 48)), 4) for name in "ab"}
    return float(agreement(runs, draws=DRAWS).data["spearman_p"].values[0, 0]) <= 0.05


def alike(each: int) -> Trial:
    """Two instruments whose keyed stances are normal, with a correlation of .7: coverage of Spearman's."""
    true = 6 / np.pi * np.arcsin(0.7 / 2)

    def trial(rng: np.random.Generator) -> bool:
        a, b = rng.standard_normal((2, 2 * each))
        runs = {"a": readings(0.2 * a[None], 2), "b": readings(0.2 * (0.7 * a + 0.51**0.5 * b)[None], 2)}
        found = agreement(runs, draws=DRAWS, seed=int(rng.integers(2**31))).data
        return bool(found["spearman_low"].values[0, 0] <= true <= found["spearman_high"].values[0, 0])

    return trial


def training(rng: np.random.Generator) -> bool:
    """Training data that say nothing of the drift."""
    given = xr.Dataset({"keyed": ("topic", rng.standard_normal(10))}, {"topic": [f"t{t:02}" for t in range(10)]})
    return float(data_gap(given, readings(ends(normal(rng, 240))), draws=DRAWS).data["pearson_p"]) <= 0.05


def survey(kind: str) -> Trial:
    """Answers that know nothing of the questions: similarity_p, and its interval's coverage of the mean."""

    def trial(rng: np.random.Generator) -> bool:
        n = 30
        p, q = rng.dirichlet(np.ones(4), n), rng.dirichlet(np.ones(4), n)
        asked = [
            SimpleNamespace(item_id=f"i{i}", options=tuple("abcd"), shares={"people": tuple(q[i])}) for i in range(n)
        ]
        data = xr.Dataset(
            {
                "p_option": (("item", "option"), p), "mass": ("item", np.ones(n)),
                "cluster": ("item", np.array([f"i{i}" for i in range(n)], object)),
            },
            {"item": [f"i{i}" for i in range(n)]},
        )  # fmt: skip
        table = likeness(data, asked, draws=DRAWS, seed=int(rng.integers(2**31))).data
        if kind == "level":
            return float(table["similarity_p"][0]) <= 0.05
        return bool(table["similarity_low"][0] <= SIMILAR <= table["similarity_high"][0])

    return trial


def _similar() -> float:
    from probes.values.choices import similarity

    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(4), 200_000) for _ in range(2))
    return float(similarity(p, q).mean())


SIMILAR = _similar()


def _drift(name: str, trial: Trial, what: str, before: float | None = None, **more: Any) -> Case:
    return Case(
        f"values.drift.{name}", "familywise", 0.05, trial, what, "probes.values.measures.drift: M_p", before=before,
        **{"quick": 25, **more},
    )  # fmt: skip


def _alert(name: str, trial: Trial, what: str, before: float | None = None, labelled: str = "") -> Case:
    where = "probes.values.alert.beyond"
    return Case(
        f"values.alert.{name}", "familywise", 0.05, trial, f"{what}, 4 topics, 10 looks", where, quick=12, full=400,
        labelled=labelled, before=before,
    )  # fmt: skip


def _arms(name: str, trial: Trial, what: str, before: float | None = None, **more: Any) -> Case:
    kind, where = more.pop("kind", "familywise"), more.pop("variable", "arm_difference_p")
    nominal = {"familywise": 0.05, "coverage": 0.95, "power": float("nan")}[kind]
    return Case(
        f"values.compare.{name}", kind, nominal, trial, what, f"probes.values.beside.compare: {where}", quick=15,
        full=400, before=before, **more,
    )  # fmt: skip


UNDECLARED = "drift counts clusters as they are declared: paraphrases that are not near-duplicates have to be"

CASES = [
    _drift("noise-8", without_drift(normal, 8), "10 topics of 8 items, normal moves", 0.045),
    _drift("noise-24", without_drift(normal, 24), "10 topics of 24 items, normal moves", 0.065),
    _drift("heavy-24", without_drift(heavy, 24), "moves of Student's t with 3 degrees of freedom"),
    _drift("ties-8", without_drift(ties, 8), "moves of -.2, 0, 0 or .2", 0.056),
    _drift("uneven-24", without_drift(uneven, 24), "topics of unequal spread (log-normal)"),
    _drift("noise-8x50", paths("noise", 8, 50), "50 checkpoints of noise, 8 items", 0.036, quick=10, full=500),
    _drift("walks-24x13", paths("walks", 24, 13), "items walk at random, 13 checkpoints", 0.024, quick=15, full=500),
    _drift("skewed-24", without_drift(movers, 24), "15 % of 24 items move far, the rest creep back, mean 0", 0.196),
    _drift("skewed-8", without_drift(movers, 8), "15 % of 8 items move far, the rest creep back, mean 0", 0.964),
    _drift("skewed-24x13", paths("movers", 24, 13), "the same, growing over 13 checkpoints", quick=15, full=500),
    _drift("skewed-8x13", paths("movers", 8, 13), "the same with 8 items", quick=15, full=500),
    _drift("exponential-24", without_drift(exponential, 24), "exponential moves less their mean, 24 items", 0.128),
    _drift("exponential-8", without_drift(exponential, 8), "exponential moves less their mean, 8 items"),
    _drift("skewed-3x8", without_drift(movers, 8, 3), "three topics of 8 items, 15 % move far"),
    _drift(
        "skewed-1x8", without_drift(movers, 8, 1), "one topic of 8 items, 15 % move far: often there is none of them",
        labelled=FEW,
    ),
    _drift("skewed-1x24", without_drift(movers, 24, 1), "one topic of 24 items, 15 % move far", labelled=FEW),
    _drift("opposed-24", without_drift(opposed, 24), "15 % move far, up in half of the topics and down in the others"),
    _drift("opposed-8", without_drift(opposed, 8), "the same with 8 items"),
    _drift(
        "opposed-8x13", paths("opposed", 8, 13), "the same, growing over 13 checkpoints", quick=15, full=500,
        labelled="assumes: symmetry is tested cell by cell; skews that differ in sign hide where items are few",
    ),
    _drift(
        "hidden-8", without_drift(hidden, 8), "two topics of ten skewed, 8 items, among others' noise",
        labelled="assumes: symmetry is tested over all topics; few skewed ones hide where items are few",
    ),
    _drift("hidden-24", without_drift(hidden, 24), "two topics of ten skewed, 24 items"),
    _drift("pairs-declared", without_drift(copies(2), 24, times=2), "24 items in 12 declared pairs"),
    _drift("fours-declared", without_drift(copies(4), 24, times=4), "24 items in 6 declared fours"),
    _drift("pairs", without_drift(copies(2), 24), "paraphrase pairs, not declared", 0.52, labelled=UNDECLARED),
    _drift("fours", without_drift(copies(4), 24), "paraphrase fours, not declared", 1.0, labelled=UNDECLARED),
    Case("values.drift.moved", "familywise", 0.05, items_move, "4 topics of 10 items in 5 samples, noise of sampling",
         "probes.values.measures.drift: moved_p", quick=25),
    Case("values.drift.power-8", "power", float("nan"), planted(normal, 8, 0.18), "one topic of ten moves by 1.8 SD",
         "probes.values.measures.drift: keyed_M_p", quick=20, full=400, before=0.80),
    Case("values.drift.power-24", "power", float("nan"), planted(normal, 24, 0.085),
         "one topic of ten moves by .85 SD", "probes.values.measures.drift: keyed_M_p", quick=20, full=400,
         before=0.92),
    Case("values.drift.power-heavy-24", "power", float("nan"), planted(heavy, 24, 0.085),
         "one topic of ten moves, items' moves of t with 3 degrees of freedom",
         "probes.values.measures.drift: keyed_M_p", quick=20, full=400, before=0.87),
    Case("values.drift.power-skewed-24", "power", float("nan"), planted(movers, 24, 0.25),
         "one topic of ten moves by .25, 15 % of the items far beside", "probes.values.measures.drift: keyed_M_p",
         quick=20, full=400, before=1.0),
    *(
        Case(f"values.interval.keyed_M-{n}", "coverage", 0.95, covered(normal, n), f"normal moves of {n} items",
             "probes.values.measures.drift: keyed_M_low, keyed_M_high", quick=20, full=400, before=before)
        for n, before in ((4, 0.80), (8, 0.89), (24, None))
    ),
    Case("values.interval.keyed_M-exponential-24", "coverage", 0.95, covered(exponential, 24),
         "exponential moves of 24 items", "probes.values.measures.drift: keyed_M_low, keyed_M_high", quick=20,
         full=400, labelled="interval: bootstrap-t over 24 clusters; a skewed mean is covered a little less often"),
    Case("values.interval.keyed-8", "coverage", 0.95, covered(normal, 8, "keyed"), "keyed stance of 8 items",
         "probes.values.measures.stance: keyed_low, keyed_high", quick=20, full=400),
    *(
        Case(f"values.interval.band-{name}", "coverage", 0.95, covered(moves, n, "keyed_M_band"), f"{said}, {n} items",
             "probes.values.measures.drift: keyed_M_band_low, keyed_M_band_high", quick=20, full=400)
        for name, moves, n, said in (
            ("8", normal, 8, "normal moves"), ("24", normal, 24, "normal moves"),
            ("skewed-8", movers, 8, "15 % move far"), ("skewed-24", movers, 24, "15 % move far"),
        )
    ),
    *(
        Case(f"values.onset.{kind}-{n}", "coverage", 0.95, onset(kind, n), f"{said}, {n} items, 50 checkpoints",
             "probes.values.measures.drift: keyed_onset_low, keyed_onset_high", quick=15, full=400)
        for kind, n, said in (
            ("linear", 24, "drift from the first step on"), ("linear", 100, "drift from the first step on"),
            ("ramp", 24, "drift from .4 to .7 of the steps"), ("step", 24, "a step at .4"),
            ("late", 24, "drift from .6 on"), ("ramp", 8, "drift from .4 to .7 of the steps"),
        )
    ),
    *(
        Case(f"values.onset.near-{n}", "power", float("nan"), onset("linear", n, near=0.15),
             f"onset of linear drift within .15 of its first step, {n} items (eta was {eta})",
             "probes.values.measures.drift: keyed_onset", quick=10, full=200)
        for n, eta in ((24, 0.65), (100, 0.82), (400, 0.91))
    ),
    _alert("noise", alarm("noise", 12), "noise, 12 items", 0.023),
    _alert("walks", alarm("walks", 12), "random walks, 12 items", 0.018),
    _alert("at", alarm("at", 12, 0.1), "means that end exactly at by = .1", 0.003),
    _alert("skewed-12", alarm("movers", 12), "15 % of 12 items move far, by = 0", 0.63),
    _alert("skewed-24", alarm("movers", 24, 0.1), "15 % of 24 items move far, means end at by = .1", 0.14),
    _alert(
        "run", alarm("run", 12), "topics' means walk as between seeds, final SD .02, by = 0", 0.28,
        labelled="assumes: the run is given; spread= takes what differs between seeds",
    ),
    _alert("run-spread", alarm("run", 12, spread=0.02), "the same, with spread = .02"),
    _arms("one-run-3", arms(3, "M"), "identical recipes, 3 seeds each, SD .03: some run starred", 0.78,
          variable="M_p", labelled=OF_RUN),
    *(
        _arms(f"same-{n}", arms(n, "arm_difference"), f"identical recipes, {n} seeds each, SD .03", before)
        for n, before in ((2, None), (3, 0.63), (4, None), (5, 0.80))
    ),
    *(
        _arms(f"mean-{n}", arms(n, "mean"), f"an arm of {n} seeds without drift, SD .03", variable="mean_p")
        for n in (3, 5)
    ),
    _arms("interval-3", arms(3, "covered"), "identical recipes, 3 seeds each", kind="coverage",
          variable="arm_difference_low, arm_difference_high"),
    _arms("spread", arms(4, "spread", noise=0.0), "4 runs that differ by the noise of reading", variable="spread_p"),
    *(
        _arms(f"power-{n}", arms(n, "", 0.2), f"recipes that differ by .2 in a topic of ten, {n} seeds each",
              kind="power")
        for n in (3, 5)
    ),
    Case("values.agreement.unrelated", "level", 0.05, instruments, "two instruments, 48 items, unrelated",
         "probes.values.beside.agreement: spearman_p"),
    *(
        Case(f"values.agreement.interval-{n}", "coverage", 0.95, alike(n), f"2 topics of {n} items, correlation .7",
             "probes.values.beside.agreement: spearman_low, spearman_high")
        for n in (8, 24)
    ),
    Case("values.data_gap.unrelated", "level", 0.05, training, "10 topics, training data that say nothing",
         "probes.values.beside.data_gap: pearson_p"),
    Case("values.likeness.unrelated", "level", 0.05, survey("level"), "30 questions, answers unrelated to people's",
         "probes.values.choices.likeness: similarity_p"),
    Case("values.likeness.interval", "coverage", 0.95, survey("coverage"), "30 questions",
         "probes.values.choices.likeness: similarity_low, similarity_high"),
]  # fmt: skip
