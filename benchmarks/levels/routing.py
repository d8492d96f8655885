"""Levels, power and coverage of the measures of routing, on counts drawn from known distributions.

A document's shares of experts are drawn around its label's (Dirichlet; none where documents are alike), and its slots
from those.  Where nothing is to be found, all labels have the same mean, whatever else differs between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from levels.case import Case
from probes.routing import measures
from probes.routing.measures.confounds import Confounded
from probes.routing.store import Layer
from probes.routing.tracer import assembled
from workbench.reading import Reading

K, EXPERTS, DRAWS = 2, 8, 199
Trial = Callable[[np.random.Generator], Any]
ALIKE = None
SPREAD = 50.0
"""Concentration of documents' shares around their label's: a share of .1 varies by .042."""


def reading(
    count: np.ndarray, tokens: np.ndarray, label: np.ndarray, unknown: np.ndarray | None = None, k: int = K
) -> Reading:
    """The counts of RoutingTracer, from slots [document, block, expert]."""
    layers = [Layer(b, "", count.shape[2], k) for b in range(count.shape[1])]
    variables, coords = assembled(
        [f"L{i}" for i in range(int(label.max()) + 1)], np.arange(len(count)), label, len(count), tokens, count, None,
        np.zeros((len(count), count.shape[1], 2), int), layers,
    )  # fmt: skip
    if unknown is not None:
        variables["document_unknown"] = (("prompt",), unknown)
    return Reading(xr.Dataset(variables, {**coords, "prompt": np.arange(len(count))}, {"model": "simulated"}))


def shares(rng: np.random.Generator, blocks: int = 1, experts: int = EXPERTS) -> np.ndarray:
    return rng.dirichlet(np.ones(experts), size=blocks)


def drawn(
    rng: np.random.Generator, mean: np.ndarray, tokens: np.ndarray, spread: float | None = SPREAD
) -> np.ndarray:
    """Slots [document, block, expert] around a mean [block, expert] or [document, block, expert]."""
    mean = np.broadcast_to(mean, (len(tokens), *mean.shape[-2:]))
    p = mean if spread is None else np.array([[rng.dirichlet(spread * x + 1e-9) for x in own] for own in mean])
    return np.array([[rng.multinomial(K * n, x) for x in own] for n, own in zip(tokens, p, strict=True)])


Lengths = Callable[[np.random.Generator], Sequence[np.ndarray]]


def fixed(*labels: tuple[int, int]) -> Lengths:
    """Labels of (documents, tokens of each)."""
    return lambda rng: [np.full(n, tokens) for n, tokens in labels]


def random(*documents: int) -> Lengths:
    return lambda rng: [rng.integers(20, 1001, n) for n in documents]


def nothing(
    lengths: Lengths, spread: float | None = SPREAD, blocks: int = 1, times: int = 1, experts: int = EXPERTS
) -> Callable[[np.random.Generator], Reading]:
    """Labels of equal usage; ``times``: every document is there so often."""

    def make(rng: np.random.Generator) -> Reading:
        given = lengths(rng)
        label = np.repeat(np.arange(len(given)), [len(x) for x in given])
        tokens = np.concatenate(given)
        count = drawn(rng, shares(rng, blocks, experts), tokens, spread)
        return reading(*(np.repeat(x, times, 0) for x in (count, tokens, label)))

    return make


def apart(lengths: Lengths, size: float, spread: float | None = SPREAD, others: int = 0) -> Callable:
    """The first two labels differ in all experts (``size``: standard deviation of the logarithm); ``others`` more
    labels are far away."""

    def make(rng: np.random.Generator) -> Reading:
        given = lengths(rng)
        mean = shares(rng)
        means = [mean, mean * np.exp(size * rng.standard_normal(mean.shape))]
        means += [shares(rng) for _ in range(others)]
        count = [drawn(rng, m / m.sum(-1, keepdims=True), own, spread) for m, own in zip(means, given, strict=True)]
        label = np.repeat(np.arange(len(given)), [len(x) for x in given])
        return reading(np.concatenate(count), np.concatenate(given), label)

    return make


def quietly(measure: Callable, *args: Any, **options: Any) -> Reading:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(*args, **options)


def seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def mean_jsd(make: Callable, **options: Any) -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        table = quietly(measures.divergence, make(rng), draws=DRAWS, seed=seed(rng), **options)
        return (table["mean_jsd_p"].values <= 0.05).astype(float)

    return trial


def information(make: Callable) -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        table = quietly(measures.information, make(rng), draws=DRAWS, seed=seed(rng))
        return (table["information_p"].values <= 0.05).astype(float)

    return trial


def pair(make: Callable, a: str = "L0", b: str = "L1") -> Trial:
    def trial(rng: np.random.Generator) -> Any:
        table = quietly(measures.divergence, make(rng), draws=DRAWS, seed=seed(rng))
        return (table["jsd_p"].sel(label=a, label_2=b).values <= 0.05).astype(float)

    return trial


def any_q(make: Callable) -> Trial:
    def trial(rng: np.random.Generator) -> bool:
        table = quietly(measures.divergence, make(rng), draws=999, seed=seed(rng))
        return bool((np.nan_to_num(table["jsd_q"].values, nan=1.0) <= 0.05).any())

    return trial


def selected(make: Callable, **options: Any) -> Trial:
    def trial(rng: np.random.Generator) -> bool:
        table = quietly(measures.select, make(rng), draws=DRAWS, seed=seed(rng), **options)
        return bool(table["selected"].values.any())

    return trial


def least(measure: Callable, name: str, make: Callable, draws: int = 999) -> Trial:
    """Any cell of a family that is adjusted for itself."""

    def trial(rng: np.random.Generator) -> bool:
        table = quietly(measure, make(rng), draws=draws, seed=seed(rng))
        return bool((np.nan_to_num(table[name].values, nan=1.0) <= 0.05).any())

    return trial


def cells(measure: Callable, name: str, make: Callable) -> Trial:
    """The share of cells whose p says that there is something."""

    def trial(rng: np.random.Generator) -> float:
        p = quietly(measure, make(rng), draws=DRAWS, seed=seed(rng))[name].values
        return float((p[~np.isnan(p)] <= 0.05).mean()) if not np.isnan(p).all() else 0.0

    return trial


def covers(name: str, n: int, size: float, spread: float | None = SPREAD, experts: int = EXPERTS) -> Trial:
    """Two labels of n documents; the true value from their true means."""

    def trial(rng: np.random.Generator) -> bool:
        mean = shares(rng, 1, experts)
        other = mean * np.exp(size * rng.standard_normal(mean.shape))
        means = [mean, other / other.sum()]
        tokens = rng.integers(60, 140, n)
        count = np.concatenate([drawn(rng, m, tokens, spread) for m in means])
        made = reading(count, np.tile(tokens, 2), np.repeat([0, 1], n))
        measure, truth = {
            "jsd": (measures.divergence, _jsd(*means)), "token_share": (measures.specialisation, K * means[0][0, 0]),
            "share": (measures.usage, means[0][0, 0]), "entropy": (measures.usage, _entropy(means[0][0])),
            "information": (measures.information, _jsd(*means) / np.log(2)),
        }[name]  # fmt: skip
        table = quietly(measure, made, draws=DRAWS, seed=seed(rng))
        at = {"jsd": (0, 1, 0), "entropy": (0, 0), "information": (0,)}.get(name, (0, 0, 0))
        low, high = (float(table[f"{name}_{end}"].values[at]) for end in ("low", "high"))
        return low - 1e-12 <= truth <= high + 1e-12

    return trial


def _entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def _jsd(a: np.ndarray, b: np.ndarray) -> float:
    return _entropy((a + b)[0] / 2) - (_entropy(a[0]) + _entropy(b[0])) / 2


def correlated(make: Callable) -> Trial:
    """Mantel's p of shared vocabulary and divergence, tokens and routing independent of labels."""

    def trial(rng: np.random.Generator) -> bool:
        made = make(rng)
        tokens = made.data["document_label_count"].values.sum(1)
        ids = np.full((len(tokens), int(tokens.max())), -1)
        words = rng.dirichlet(np.full(200, 0.3))
        for i, n in enumerate(tokens):
            ids[i, :n] = rng.choice(200, n, p=words)
        made.data["input_id"] = (("prompt", "position"), ids)
        table = quietly(measures.overlap, made, draws=49, permutations=DRAWS, seed=seed(rng))
        return bool(float(table["mantel_p"].sel(measure="jaccard")[0]) <= 0.05)

    return trial


def long_routes(lengths: Lengths, strength: float, label_moves: bool = False) -> Callable:
    """Routing follows a document's length, and nothing else (``label_moves``: and the label, as much)."""

    def make(rng: np.random.Generator) -> Reading:
        given = lengths(rng)
        label = np.repeat(np.arange(len(given)), [len(x) for x in given])
        tokens, mean = np.concatenate(given), shares(rng)
        move = strength * rng.standard_normal(mean.shape)
        x = np.log(tokens) - np.log(tokens).mean()
        each = mean * np.exp(move * x[:, None, None])
        if label_moves:
            each = each * np.exp(strength * rng.standard_normal(mean.shape) * label[:, None, None])
        return reading(drawn(rng, each / each.sum(-1, keepdims=True), tokens), tokens, label)

    return make


def refused(make: Callable) -> Trial:
    def trial(rng: np.random.Generator) -> bool:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            table = measures.divergence(make(rng), draws=19, seed=seed(rng))
        lost = bool(np.isnan(table["mean_jsd_p"].values).all())
        assert lost == any(issubclass(x.category, Confounded) for x in said)
        return lost

    return trial


SHORT_LONG, LONG_SHORT, TEN = fixed((5, 30), (50, 300)), fixed((5, 300), (50, 30)), fixed((10, 100), (10, 100))
DESIGNS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "balanced": ("2 x 20 documents of 100 tokens", nothing(fixed((20, 100), (20, 100))), {"jsd": 0.075, "any": 0.085}),
    "random-lengths": ("2 x 20 documents of 20 to 1,000 tokens", nothing(random(20, 20)), {"jsd": 0.045, "any": 0.04}),
    "ten-labels": ("10 labels x 3 documents", nothing(fixed(*[(3, 100)] * 10)), {"jsd": 0.033, "any": 0.033}),
    "few-short": ("5 documents of 30 tokens against 50 of 300", nothing(SHORT_LONG), {"jsd": 0.21, "any": 0.125}),
    "few-short-alike": ("the same, documents alike", nothing(SHORT_LONG, ALIKE), {"jsd": 0.88, "any": 0.815}),
    "few-short-64": ("the same, alike, 64 experts", nothing(SHORT_LONG, ALIKE, experts=64), {}),
    "few-long": ("5 documents of 300 tokens against 50 of 30", nothing(LONG_SHORT), {"jsd": 0.0, "any": 0.0}),
    "twice": ("2 x 10 documents, each twice", nothing(TEN, times=2), {"jsd": 0.445, "any": 0.27}),
    "four-times": ("2 x 10 documents, each four times", nothing(TEN, times=4), {"jsd": 0.82, "any": 0.72}),
}  # fmt: skip


def spreads(documents: tuple[int, int], by: tuple[float, float]) -> Callable[[np.random.Generator], Reading]:
    """Two labels of equal usage, whose documents vary around it by different amounts."""

    def make(rng: np.random.Generator) -> Reading:
        mean = shares(rng) + 1e-3
        mean = mean / mean.sum()
        tokens = [np.full(n, 100) for n in documents]
        count = np.concatenate([drawn(rng, mean, own, spread) for own, spread in zip(tokens, by, strict=True)])
        return reading(count, np.concatenate(tokens), np.repeat([0, 1], documents))

    return make


DESIGNS["spread-differs"] = ("8 documents against 30 that vary a fifth as much", spreads((8, 30), (20.0, 100.0)), {})
DISTANT = 6
EIGHT = fixed(*[(8, 100)] * 2)
AMONG = fixed(*[(8, 100)] * (2 + DISTANT))


def lone(rng: np.random.Generator) -> Reading:
    """Two labels alike and of short documents, beside six distant ones of long documents."""
    given = [np.full(8, 30), np.full(8, 30), *[np.full(8, 300)] * DISTANT]
    mean = shares(rng)
    means = [mean, mean, *[shares(rng) for _ in range(DISTANT)]]
    count = np.concatenate([drawn(rng, m, own, ALIKE) for m, own in zip(means, given, strict=True)])
    return reading(count, np.concatenate(given), np.repeat(np.arange(2 + DISTANT), 8))


def case(kind: Any, name: str, trial: Trial, what: str, where: str, **more: Any) -> Case:
    nominal = {"coverage": 0.95, "power": np.nan}.get(kind, 0.05)
    more = {"quick": 60, **more}  # a tenth of a second each
    return Case(f"routing.{name}", kind, nominal, trial, what, f"probes.routing.measures.{where}", **more)


FEW = "the attribute confounded: 5 documents of one, so that a p of .05 may stand for .09"


def _cases() -> list[Case]:
    found = []
    for name, (what, make, before) in DESIGNS.items():
        more = {"labelled": FEW if name == "few-short" else ""}
        found += [
            case("level", f"mean_jsd.{name}", mean_jsd(make), what, "divergence: mean_jsd_p", before=before.get("jsd"),
                 **more),
            case("familywise", f"select.{name}", selected(make), what, "select: selected", before=before.get("any"),
                 **more),
        ]  # fmt: skip
    unlike = spreads((30, 30), (8.0, 200.0))
    what = "30 documents, each with experts of its own, against 30 all but alike"
    said = "spread, and the attribute confounded: documents of the first vary 12 times as much"
    found += [
        case("level", "mean_jsd.spread-extreme", mean_jsd(unlike), what, "divergence: mean_jsd_p", labelled=said),
        case("familywise", "select.spread-extreme", selected(unlike), what, "select: selected", labelled=said),
    ]
    lifts = {"few-short": 0.26, "few-short-alike": 0.91}
    for name in lifts:
        what, make, before = DESIGNS[name]
        jsd, gaps = before["jsd"], least(measures.differences, "difference_p", make, DRAWS)
        lift = least(measures.specialisation, "lift_q", make)
        shared = cells(measures.agreement, "shared_p", make)
        exclusive, universal = (cells(measures.classes, f"{x}_p", make) for x in ("exclusive", "universal"))
        equal, more = mean_jsd(make, tokens="equal"), {"labelled": FEW if name == "few-short" else ""}
        found += [
            case("level", f"information.{name}", information(make), what, "information: information_p", before=jsd,
                 **more),
            case("familywise", f"lift.{name}", lift, what, "specialisation: lift_q", before=lifts[name], **more),
            case("familywise", f"differences.{name}", gaps, what, "differences: difference_p"),
            case("level", f"agreement.{name}", shared, what, "agreement: shared_p"),
            case("level", f"classes.{name}", exclusive, what, "classes: exclusive_p"),
            case("level", f"universal.{name}", universal, what, "classes: universal_p"),
            case("level", f"equal.{name}", equal, what, 'divergence(tokens="equal"): mean_jsd_p', before=jsd),
        ]  # fmt: skip
    jsd_p, jsd_q, mean_p = (f"divergence: {name}" for name in ("jsd_p", "jsd_q", "mean_jsd_p"))
    many = nothing(fixed(*[(8, 30)] * 3, *[(8, 300)] * 5))
    even = nothing(fixed(*[(8, 100)] * 8))
    alone, beside = pair(apart(EIGHT, POWER)), pair(apart(AMONG, POWER, others=DISTANT))
    follows = long_routes(_no_overlap, 1.5)
    found += [
        case("familywise", "jsd_q.even", any_q(nothing(fixed(*[(8, 100)] * 4), blocks=2)),
             "4 labels x 8 documents, two blocks: any pair", jsd_q),
        case("familywise", "jsd_q.lengths", any_q(many), "3 labels of short and 5 of long documents: any pair", jsd_q),
        case("level", "jsd_p.beside-distant", pair(lone),
             "two labels alike, of short documents, beside six distant ones of long documents", jsd_p, before=0.92),
        case("power", "jsd_p.power-alone", alone, "two labels of 8 documents that differ", jsd_p, before=0.46),
        case("power", "jsd_p.power-beside", beside, "the same two beside six distant labels", jsd_p, before=0.0),
        case("power", "select.power-even", selected(apart(fixed((20, 100), (20, 100)), 0.3)),
             "2 x 20 documents, all experts differ by .3 of a logarithm", "select: selected", before=0.8),
        case("power", "mean_jsd.power-even", mean_jsd(apart(fixed((20, 100), (20, 100)), 0.2)),
             "2 x 20 documents, all experts differ by .2 of a logarithm", mean_p, before=0.59),
        case("power", "mean_jsd.power-few-long", mean_jsd(apart(LONG_SHORT, 0.4)),
             "5 long documents against 50 short ones that differ", mean_p, before=0.29),
        case("power", "mean_jsd.power-few-short", mean_jsd(apart(SHORT_LONG, 0.4)),
             "5 short documents against 50 long ones that differ (before, with a level of .21)", mean_p, before=0.84),
        case("level", "overlap.lengths", correlated(many), "8 labels alike, of 30 or 300 tokens a document",
             "overlap: mantel_p", before=0.17),
        case("level", "overlap.even", correlated(even), "8 labels alike", "overlap: mantel_p", before=0.07),
        case("level", "refused.independent", refused(long_routes(_no_overlap, 0.0)),
             "lengths with nothing in common, routing follows nothing: no p", "divergence: mean_jsd_p is NaN"),
        case("power", "refused.length-routes", refused(follows),
             "lengths with nothing in common, and routing follows length: no p", "divergence: mean_jsd_p is NaN"),
        case("level", "mean_jsd.length-routes", mean_jsd(follows), "the same: called a difference of labels", mean_p),
        case("level", "mean_jsd.length-routes-little", mean_jsd(long_routes(_no_overlap, 0.5)),
             "the same, routing follows length a third as much", mean_p,
             labelled="the attribute confounded: no length in common; length_p, and NaN where it is .05 or less"),
    ]  # fmt: skip
    for name, n, size in (
        *(("jsd", n, size) for n in (3, 10, 30) for size in (0.0, 0.3, 1.0)),
        *(("information", n, 0.3) for n in (3, 10, 30)),
        *((name, n, 0.3) for name in ("token_share", "share", "entropy") for n in (3, 10, 50)),
    ):
        measure = {"jsd": "divergence", "token_share": "specialisation", "information": name}.get(name, "usage")
        before = {("jsd", 3): 0.82, ("jsd", 10): 0.89, ("token_share", 3): 0.69}.get((name, n))
        what = f"{n} documents of each label, experts differ by {size:g} of a logarithm"
        where = f"{measure}: {name}_low, {name}_high"
        few = "interval: t over 3 documents" if n == 3 and name.endswith("share") else ""
        trial = covers(name, n, size)
        found.append(case("coverage", f"{name}.{n}-{size:g}", trial, what, where, before=before, labelled=few))
    real = "organism:polyglot, one language: 5 sentences against 60 documents of"
    found += [
        case("coverage", "jsd.unseen", covers("jsd", 5, 0.3, 5.0, 64),
             "5 documents of each label, each of which uses few of 64 experts", "divergence: jsd_low, jsd_high",
             labelled="docs/numbers/routing.md: experts that no document has shown yet are in no interval"),
        case("familywise", "select.polyglot-long", selected(polyglot(long=8)), f"{real} eight",
             "select: selected", before=0.92, labelled=FEW),
        case("familywise", "select.polyglot-even", selected(polyglot(long=1)), f"{real} one", "select: selected",
             before=0.025),
        case("level", "mean_jsd.polyglot-long", mean_jsd(polyglot(long=8)), f"{real} eight", mean_p, labelled=FEW),
    ]  # fmt: skip
    found += [
        case("power", f"select.planted-{4 * n}", found_what_was_planted(n),
             f"four languages x {n} documents of 20 tokens, two experts planted for each: all eight and no other",
             "select: selected", before=1.0) for n in (4, 8, 50)
    ]  # fmt: skip
    return found


def planted(each: int) -> Callable[[np.random.Generator], Reading]:
    """Documents of the model whose last block has two experts for each of four languages."""

    def make(rng: np.random.Generator) -> Reading:
        if not _PLANTED:
            import workbench
            from probes.routing import RoutingTracer
            from workbench.organisms.polyglot import twins

            texts, labels = twins.documents(400, languages=True, tokens=20, seed=77)
            data = workbench.read(twins.planted(), texts, RoutingTracer(labels), progress=False).data
            _PLANTED["count"], _PLANTED["tokens"] = (data[f"document_{x}"].values for x in ("count", "label_count"))
        count, tokens = _PLANTED["count"], _PLANTED["tokens"]
        some = np.concatenate([rng.choice(np.flatnonzero(tokens[:, i]), each, replace=False) for i in range(4)])
        return reading(count[some], tokens[some].sum(1), tokens[some].argmax(1))

    return make


def found_what_was_planted(each: int) -> Trial:
    """Exactly the planted experts are selected in the last block."""

    def trial(rng: np.random.Generator) -> bool:
        table = quietly(measures.select, planted(each)(rng), draws=DRAWS, seed=seed(rng))
        right = [np.arange(EXPERTS) // 2 == i for i in range(4)]
        return bool((table["selected"].values[:, 1] == np.array(right)).all())

    return trial


_PLANTED: dict[str, np.ndarray] = {}
POWER = 0.25


def _no_overlap(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(20, 60, 20), rng.integers(80, 240, 20)]


_SENTENCES: dict[str, np.ndarray] = {}


def sentences() -> tuple[np.ndarray, np.ndarray, int]:
    """Real counts of one language's sentences, read once: [sentence, block, expert], tokens, slots of a token."""
    if not _SENTENCES:
        import workbench
        from probes.routing import RoutingTracer
        from workbench.organisms.polyglot.grammar import documents

        texts = sorted(set(documents(1200, "a", seed=20_000)))
        data = workbench.read(workbench.load("organism:polyglot"), texts, RoutingTracer(), progress=False).data
        _SENTENCES["count"] = data["document_count"].values
        _SENTENCES["tokens"] = data["document_label_count"].values.sum(1)
        _SENTENCES["k"] = data["top_k"].values
    return _SENTENCES["count"], _SENTENCES["tokens"], int(_SENTENCES["k"][0])


def polyglot(long: int, few: int = 5, many: int = 60) -> Callable[[np.random.Generator], Reading]:
    def make(rng: np.random.Generator) -> Reading:
        count, tokens, k = sentences()
        chosen = rng.choice(len(count), few + many * long, replace=False)
        rows = [*([i] for i in chosen[:few]), *chosen[few:].reshape(many, long)]
        added = [(count[own].sum(0), tokens[own].sum()) for own in rows]
        label = np.repeat([0, 1], [few, many])
        return reading(np.array([c for c, _ in added]), np.array([n for _, n in added]), label, k=k)

    return make


CASES = _cases()
