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


def null_holds(make: Callable) -> Trial:
    """jsd less jsd_null is 0 on average: whether it is above 0 is even odds."""

    def trial(rng: np.random.Generator) -> Any:
        table = quietly(measures.divergence, make(rng), draws=DRAWS, seed=seed(rng))
        return (table["jsd_excess"].sel(label="L0", label_2="L1").values > 0).astype(float)

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
        at = {"jsd": (0, 1, 0), "token_share": (0, 0, 0), "share": (0, 0, 0), "entropy": (0, 0), "information": (0,)}[name]
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


SHORT_LONG, LONG_SHORT = fixed((5, 30), (50, 300)), fixed((5, 300), (50, 30))
DESIGNS: dict[str, tuple[str, Callable, dict[str, float]]] = {
    "balanced": ("2 x 20 documents of 100 tokens", nothing(fixed((20, 100), (20, 100))), {"jsd": 0.075, "any": 0.085}),
    "random-lengths": ("2 x 20 documents of 20 to 1,000 tokens", nothing(random(20, 20)), {"jsd": 0.045, "any": 0.04}),
    "ten-labels": ("10 labels x 3 documents", nothing(fixed(*[(3, 100)] * 10)), {"jsd": 0.033, "any": 0.033}),
    "few-short": ("5 documents of 30 tokens against 50 of 300", nothing(SHORT_LONG), {"jsd": 0.21, "any": 0.125}),
    "few-short-alike": ("the same, documents alike", nothing(SHORT_LONG, ALIKE), {"jsd": 0.88, "any": 0.815}),
    "few-short-64": ("the same, alike, 64 experts", nothing(SHORT_LONG, ALIKE, experts=64), {}),
    "few-long": ("5 documents of 300 tokens against 50 of 30", nothing(LONG_SHORT), {"jsd": 0.0, "any": 0.0}),
    "twice": ("2 x 10 documents, each twice", nothing(fixed((10, 100), (10, 100)), times=2), {"jsd": 0.445, "any": 0.27}),
    "four-times": ("2 x 10 documents, each four times", nothing(fixed((10, 100), (10, 100)), times=4), {"jsd": 0.82, "any": 0.72}),
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
WHERE = "probes.routing.measures."
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


def _cases() -> list[Case]:
    found = []
    for name, (what, make, before) in DESIGNS.items():
        jsd, any_ = before.get("jsd"), before.get("any")
        found += [
            Case(f"routing.mean_jsd.{name}", "level", 0.05, mean_jsd(make), what, WHERE + "divergence: mean_jsd_p",
                 before=jsd),
            Case(f"routing.select.{name}", "familywise", 0.05, selected(make), what, WHERE + "select: selected",
                 before=any_),
        ]  # fmt: skip
    short, unlike = DESIGNS["few-short"][1], spreads((30, 30), (8.0, 200.0))
    said = "spread, and the attribute confounded: documents of the first vary 15 times as much"
    found += [
        Case("routing.mean_jsd.spread-extreme", "level", 0.05, mean_jsd(unlike), "30 documents, each with experts of its "
             "own, against 30 all but alike", WHERE + "divergence: mean_jsd_p", labelled=said),
        Case("routing.select.spread-extreme", "familywise", 0.05, selected(unlike), "the same", WHERE + "select: selected",
             labelled=said),
    ]  # fmt: skip
    for name, (what, make, before) in list(DESIGNS.items())[3:5]:
        found += [
            Case(f"routing.information.{name}", "level", 0.05, information(make), what,
                 WHERE + "information: information_p", before=before.get("jsd")),
            Case(f"routing.lift.{name}", "familywise", 0.05, least(measures.specialisation, "lift_q", make), what,
                 WHERE + "specialisation: lift_q"),
            Case(f"routing.differences.{name}", "familywise", 0.05, least(measures.differences, "difference_p", make, 199),
                 what, WHERE + "differences: difference_p"),
            Case(f"routing.agreement.{name}", "level", 0.05, cells(measures.agreement, "shared_p", make), what,
                 WHERE + "agreement: shared_p"),
            Case(f"routing.classes.{name}", "level", 0.05, cells(measures.classes, "exclusive_p", make), what,
                 WHERE + "classes: exclusive_p"),
            Case(f"routing.universal.{name}", "level", 0.05, cells(measures.classes, "universal_p", make), what,
                 WHERE + "classes: universal_p"),
            Case(f"routing.equal-tokens.{name}", "level", 0.05, mean_jsd(make, tokens="equal"), what,
                 WHERE + 'divergence(tokens="equal"): mean_jsd_p', before=before.get("jsd")),
        ]  # fmt: skip
    many = nothing(fixed(*[(8, 30)] * 3, *[(8, 300)] * 5), blocks=1)
    found += [
        Case("routing.jsd_null.few-short", "coverage", 0.3, null_holds(short), "5 short documents against 50 long ones: "
             "excess above 0 about as often as below", WHERE + "divergence: jsd_excess", before=0.98),
        Case("routing.jsd_q.null", "familywise", 0.05, any_q(nothing(fixed(*[(8, 100)] * 4), blocks=2)),
             "4 labels x 8 documents, two blocks: any pair", WHERE + "divergence: jsd_q"),
        Case("routing.jsd_q.lengths", "familywise", 0.05, any_q(many), "3 labels of short and 5 of long documents: any pair",
             WHERE + "divergence: jsd_q"),
        Case("routing.jsd_p.beside-distant", "level", 0.05, pair(lone), "two labels alike, of short documents, beside six "
             "distant ones of long documents", WHERE + "divergence: jsd_p", before=0.92),
        Case("routing.jsd_p.power-alone", "power", np.nan, pair(apart(EIGHT, POWER)), "two labels of 8 documents that differ",
             WHERE + "divergence: jsd_p", before=0.38),
        Case("routing.jsd_p.power-beside-distant", "power", np.nan, pair(apart(AMONG, POWER, others=DISTANT)),
             "the same two, beside six distant labels", WHERE + "divergence: jsd_p", before=0.0),
        Case("routing.select.power-balanced", "power", np.nan, selected(apart(fixed((20, 100), (20, 100)), 0.4)),
             "2 x 20 documents, all experts move by .4 of a logarithm", WHERE + "select: selected"),
        Case("routing.mean_jsd.power-few-long", "power", np.nan, mean_jsd(apart(LONG_SHORT, 0.4)),
             "5 long documents against 50 short ones that differ", WHERE + "divergence: mean_jsd_p"),
        Case("routing.mean_jsd.power-few-short", "power", np.nan, mean_jsd(apart(SHORT_LONG, 0.4)),
             "5 short documents against 50 long ones that differ", WHERE + "divergence: mean_jsd_p"),
        Case("routing.overlap.lengths", "level", 0.05, correlated(many), "8 labels alike, of 30 or 300 tokens a document",
             WHERE + "overlap: mantel_p"),
        Case("routing.overlap.even", "level", 0.05, correlated(nothing(fixed(*[(8, 100)] * 8))), "8 labels alike",
             WHERE + "overlap: mantel_p"),
        Case("routing.refused.independent", "level", 0.05, refused(long_routes(_no_overlap, 0.0)),
             "lengths with nothing in common, routing follows nothing: no p for want of one",
             WHERE + "divergence: mean_jsd_p is NaN"),
        Case("routing.refused.length-routes", "power", np.nan, refused(long_routes(_no_overlap, 1.5)),
             "lengths with nothing in common, and routing follows length: refused", WHERE + "divergence: mean_jsd_p is NaN"),
        Case("routing.length.length-routes", "level", 0.05, mean_jsd(long_routes(_no_overlap, 0.5)),
             "the same: called a difference of labels", WHERE + "divergence: mean_jsd_p",
             labelled="length_p, and NaN wherever routing is seen to follow length"),
    ]  # fmt: skip
    for name, sizes in (("jsd", (0.0, 0.3, 1.0)), ("information", (0.3,))):
        for n in (3, 10, 30):
            found += [
                Case(f"routing.{name}.coverage-{n}-{size:g}", "coverage", 0.95, covers(name, n, size),
                     f"2 x {n} documents, experts differ by {size:g} of a logarithm", WHERE + f"{name}_low, {name}_high",
                     before={3: 0.82, 10: 0.89}.get(n))
                for size in sizes
            ]  # fmt: skip
    found += [
        Case("routing.jsd.coverage-unseen", "coverage", 0.95, covers("jsd", 5, 0.3, 5.0, 64),
             "2 x 5 documents, 64 experts of which each document uses few", WHERE + "divergence: jsd_low, jsd_high",
             labelled="jsd_corrected: at the edge of its bounds, far below jsd"),
    ]  # fmt: skip
    for name in ("token_share", "share", "entropy"):
        for n in (3, 10, 50):
            found.append(
                Case(f"routing.{name}.coverage-{n}", "coverage", 0.95, covers(name, n, 0.3), f"{n} documents of a label",
                     WHERE + f"{name}_low, {name}_high", before={("token_share", 3): 0.69}.get((name, n)))
            )  # fmt: skip
    found += [
        Case("routing.polyglot.short-long", "familywise", 0.05, selected(polyglot(long=8)), "organism:polyglot, one "
             "language: 5 sentences against 60 documents of 8 sentences", WHERE + "select: selected", before=0.92),
        Case("routing.polyglot.equal", "familywise", 0.05, selected(polyglot(long=1)), "organism:polyglot, one language: "
             "5 sentences against 60", WHERE + "select: selected", before=0.025),
        Case("routing.polyglot.short-long-jsd", "level", 0.05, mean_jsd(polyglot(long=8)), "the same", WHERE +
             "divergence: mean_jsd_p"),
    ]  # fmt: skip
    return found


POWER = 0.35


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
