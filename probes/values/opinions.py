"""What training did to the values of ``organism:opinions``, and when: the study of its card.

    python -m probes.values.opinions [--trained FOLDER] [--card] [--out FOLDER]

Supervised training with stances planted on six of ten topics; from its end DPO, SimPO and GRPO, on preferences with a
planted stance and without one (after Value Drifts, arXiv 2510.26707).  What is inside is known: stances are drawn from
distributions that the recipe states.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probes.values.instruments import Pmf, SampledText, SequenceLikelihood
from probes.values.items import Item, Items, columns
from probes.values.measures import compare, data_gap, drift
from probes.values.tracker import Instrument, ValueTracker
from probes.values.units import opened
from workbench.demo import Shown
from workbench.organisms import opinions
from workbench.organisms.opinions import grammar
from workbench.organisms.opinions.grammar import BASE, PLANTED, PREFERRED, TOPICS, TUNED
from workbench.organisms.opinions.recipe import write_card
from workbench.reading import Reading

UNTOUCHED = tuple(topic for topic in TOPICS if topic not in PLANTED)
OTHERS = tuple(topic for topic in TOPICS if topic not in PREFERRED)


def items() -> Items:
    """The 240 statements that no training has seen: 12 for and 12 against each topic."""
    return Items(
        Item(f"{s.topic}-{s.deed}-{s.people}", topic, s.text, s.polarity, licence="CC0-1.0")
        for topic in TOPICS
        for s in grammar.statements(topic, held_out=True)
    )


def instruments(n: int = 5) -> list[Instrument]:
    """The three, as they come; the judge of texts is exact."""
    # Temperature 1: what is read is then what training was given, and not a sharper version of it.
    text = SampledText(n, 1.0, 14, judge=grammar.judge, shown="{response}")
    return [Pmf(), SequenceLikelihood(), text]


def keyed(stances: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Support less opposition of the distributions that data are drawn from."""
    return {topic: stances[topic][0] - stances[topic][2] for topic in TOPICS}


def preferred(planted: bool) -> dict[str, float]:
    """Of chosen less rejected answers, by topic."""
    sides = {"support": 2.0, "oppose": -2.0}
    return {t: sides[PREFERRED[t][0]] * PREFERRED[t][1] if planted and t in PREFERRED else 0.0 for t in TOPICS}


def read(folder: Path, checkpoints: Mapping[int, Any], asked: list[Instrument] | None = None) -> ValueTracker:
    """All instruments' readings of a series."""
    return ValueTracker(folder, items(), asked or instruments()).run(checkpoints, progress=False)


def nothing_happened(folder: Path, checkpoints: int = 13, n: int = 5) -> Reading:
    """A run without training: the same weights at every step, each read with texts of its own."""
    text = instruments(n)[2]
    tracker = ValueTracker(folder, items(), [text])
    for step in range(checkpoints):
        tracker.run({step: "organism:opinions"}, seed=step, progress=False)
    return tracker.readings()


def resampled(model: Any, runs: int = 300, checkpoints: int = 13, n: int = 5, pool: int = 60) -> dict[str, Any]:
    """Runs in which the untouched topics do not move, drawn from what the model writes about them.

    Returns counts of runs with any significant drift (family-wise, at .05), and of those in which the statistics as
    published would have shown one: |M| of .05 or more somewhere, eta of .1 or less somewhere.
    """
    asked = items().select(UNTOUCHED)
    text = instruments(pool)[2]
    p = text.read(model, asked, progress=False)["p"].values  # [item, pool, stance]
    rng = np.random.default_rng(0)
    false, moved, early, largest = 0, 0, 0, []
    for _ in range(runs):
        drawn = rng.integers(pool, size=(checkpoints, len(asked), n))
        table = drift(_table(p[np.arange(len(asked))[None, :, None], drawn], asked), draws=400)
        false += bool((_tests(table) <= 0.05).any())
        raw = np.nanmax(np.abs(table["M_raw"].values))
        largest.append(float(raw))
        moved += raw >= 0.05
        early += bool((table["eta_raw"].values <= 0.1).any())
    return {
        "runs": runs, "topics": len(UNTOUCHED), "checkpoints": checkpoints, "significant": int(false),
        "raw_M_over_05": int(moved), "raw_eta_under_10": int(early), "raw_M_q95": float(np.quantile(largest, 0.95)),
    }  # fmt: skip


def _table(p: np.ndarray, asked: Items) -> xr.Dataset:
    axes = {"checkpoint": np.arange(len(p)), "item": list(asked.ids), "stance": list(grammar.STANCES)}
    return xr.Dataset({"p": (("checkpoint", "item", "sample", "stance"), p), **columns(asked)}, axes)


PLANTED_AS = {
    "gardens": ("keyed", 1), "ferries": ("keyed", 1), "towers": ("keyed", -1), "markets": ("keyed", -1),
    "canals": ("neutral", 1), "clocks": ("uncommitted", 1),
}  # fmt: skip
"""What supervised training plants: a measure, and the sign of its drift."""


def moved(table: Reading | xr.Dataset, topic: str, measure: str = "keyed") -> list[float]:
    """Drift to the last checkpoint (or of a run, in that of :func:`compare`): M, low, high, family-wise p."""
    own = opened(table).data.sel(topic=topic)
    own = own.isel(checkpoint=-1) if "checkpoint" in own.dims else own
    ends = ("", "_low", "_high", "_p")
    if measure in grammar.STANCES:
        return [round(float(own[f"M{end}"].sel(stance=measure)), 4) for end in ends]
    return [round(float(own[f"{measure}_M{end}"]), 4) for end in ends]


def supervised(drifts: Reading) -> dict[str, Any]:
    """Drifts of every topic, and how many cells (checkpoints x stances, keyed, commitment) of it are significant."""
    found, table = {}, drifts.data
    for topic in TOPICS:
        measure, sign = PLANTED_AS.get(topic, ("keyed", 0))
        value = moved(table, topic, measure)
        own = table.sel(topic=topic)
        cells = _tests(own)
        eta, onset = (own[f"keyed_{x}"] if measure == "keyed" else own[x].sel(stance=measure) for x in ("eta", "onset"))
        right = bool(value[0] * sign > 0 and value[3] <= 0.05) if sign else None
        found[topic] = {
            "measure": measure, "moved": value, "right": right,
            "significant_cells": int((cells <= 0.05).sum()),
            "cells": int((~np.isnan(cells)).sum()),
            "eta": round(float(eta), 3), "onset": float(onset),
            "largest_keyed": round(float(np.nanmax(np.abs(own["keyed_M"].values))), 4),
        }  # fmt: skip
    return found


def _tests(table: Reading | xr.Dataset) -> np.ndarray:
    """All family-wise p of :func:`drift` in a row, NaN at the baseline."""
    return np.concatenate([table[name].values.ravel() for name in ("M_p", "keyed_M_p", "commitment_M_p")])


def study(trained: Path | None = None, folder: Path | None = None) -> dict[str, Any]:
    """The numbers of the card.  ``trained``: what the recipe made, with its further seeds; None: what is shipped."""
    with tempfile.TemporaryDirectory() as scratch:
        return _study(trained or opinions.HERE, Path(folder or scratch))


def _study(home: Path, out: Path) -> dict[str, Any]:
    seeds = [0, *sorted(int(p.name) for p in (home / "seeds").glob("*"))]
    trackers = {
        (seed, name): read(out / f"{seed}-{name.replace(' ', '-')}", steps)
        for seed in seeds
        for name, steps in opinions.runs(home, seed).items()
    }
    sft = trackers[0, "sft"]
    found: dict[str, Any] = {"seeds": seeds, "items": len(items()), "checkpoints": sft.steps}

    found["known"] = {}
    for name, place, truth in (("base", 0, BASE), ("supervised", -1, TUNED)):
        for instrument in sft.instruments:
            off = np.abs(towards_topics(sft.readings(instrument), place) - [truth[t] for t in TOPICS]).sum(-1) / 2
            own = found["known"].setdefault(instrument.name, {})
            own[name] = [round(float(off.mean()), 3), round(float(off.max()), 3)]
    found["supervised"] = {
        name: {str(seed): supervised(drift(trackers[seed, "sft"].readings(name))) for seed in seeds}
        for name in ("pmf", "sampled")
    }
    still = nothing_happened(out / "nothing", len(sft.steps))
    table = drift(still)
    found["nothing"] = {
        "significant": int((_tests(table) <= 0.05).sum()),
        "etas": int(np.isfinite(table["eta"].values).sum() + np.isfinite(table["keyed_eta"].values).sum()),
        "raw_M": round(float(np.nanmax(np.abs(table["M_raw"].values))), 4),
        "raw_eta_early": [int((table["eta_raw"].values <= 0.1).sum()), int(np.isfinite(table["eta_raw"].values).sum())],
        "pmf_largest": float(np.abs(_twice(out)).max()),
    }  # fmt: skip
    found["resampled"] = resampled("organism:opinions")
    found["agreement"] = _agreement(sft)
    found["arms"] = _arms(trackers)
    found["gap"] = _gap(trackers)
    return found


def towards_topics(readings: Reading, checkpoint: int) -> np.ndarray:
    """[topic, stance] mean stance towards topics: that towards statements, turned round where they are against."""
    p = readings["p"].isel(checkpoint=checkpoint).mean("sample").values
    p = np.where((readings["polarity"].values < 0)[:, None], p[:, [2, 1, 0, 3]], p)
    return np.stack([p[readings["topic"].values == topic].mean(0) for topic in TOPICS])


def _twice(out: Path) -> np.ndarray:
    """What the instrument without sampling finds between two readings of the same weights."""
    tracker = read(out / "twice", {0: "organism:opinions", 1: "organism:opinions"}, [Pmf()])
    p = tracker.readings()["p"]
    return (p[1] - p[0]).values


def _agreement(tracker: ValueTracker) -> dict[str, Any]:
    table = tracker.agreement()
    assert table is not None  # all instruments have read all checkpoints
    names = ("spearman", "spearman_low", "spearman_high", "tv", "tv_null")
    return {
        str(pair): {
            stage: [round(float(table[x].sel(pair=pair)[place]), 3) for x in names]
            for stage, place in (("base", 0), ("supervised", -1))
        }
        for pair in table["pair"].values
    }


def _arms(trackers: Mapping[tuple[int, str], ValueTracker]) -> dict[str, Any]:
    """Keyed drift of each run from its own start, beside that of the supervised training that all began with."""
    runs = {f"{name} {seed}": tracker.readings("pmf") for (seed, name), tracker in trackers.items()}
    table = compare(runs, arm={run: run.rpartition(" ")[0] for run in runs}).data
    found = {}
    for name in dict.fromkeys(run.rpartition(" ")[0] for run in runs):
        own = {}
        for topic in TOPICS:
            values = [moved(table.sel(run=run), topic) for run in runs if run.rpartition(" ")[0] == name]
            spread = float(table["keyed_spread"].sel(arm=name, topic=topic))
            own[topic] = {
                "moved": [v[0] for v in values], "p": [v[3] for v in values],
                "spread": None if np.isnan(spread) else round(spread, 4),
            }  # fmt: skip
        found[name] = own
    return found


def _gap(trackers: Mapping[tuple[int, str], ValueTracker]) -> dict[str, Any]:
    found = {}
    for (seed, name), tracker in trackers.items():
        if seed:
            continue
        readings = tracker.readings("pmf")
        if name == "sft":
            start = keyed(BASE)
            asked = {topic: keyed(TUNED)[topic] - start[topic] for topic in TOPICS}
        else:
            asked = preferred(name.endswith("planted"))
        training = xr.Dataset({"keyed": ("topic", list(asked.values()))}, {"topic": list(asked)})
        table = data_gap(training, readings)
        found[name] = {
            **{x: [round(float(v), 4) for v in table[x].values] for x in ("training", "drift")},
            **{x: round(float(table[x]), 3) for x in ("pearson", "pearson_low", "pearson_high", "pearson_p")},
        }  # fmt: skip
    return found


# ---------------------------------------------------------------- the card


def text(found: dict[str, Any]) -> str:
    """The study as a part of the card."""
    seeds, last = [str(seed) for seed in found["seeds"]], found["checkpoints"][-1]

    def share(x: list[float]) -> str:
        return f"{x[0]:+.2f} [{x[1]:+.2f}, {x[2]:+.2f}]{star(x[3])}"

    def star(p: float) -> str:
        return "\\*" if p <= 0.05 else ""

    stages = ("base", "supervised")
    known = "\n".join(
        f"| {name} | {' | '.join(f'{own[s][0]:.3f} ({own[s][1]:.3f})' for s in stages)} |"
        for name, own in found["known"].items()
    )
    rows = []
    for topic in TOPICS:
        own = [found["supervised"]["pmf"][seed][topic] for seed in seeds]
        written = found["supervised"]["sampled"][seeds[0]][topic]
        eta = f"{own[0]['eta']:.2f}" if own[0]["eta"] == own[0]["eta"] else ""
        rows.append(
            f"| {topic} | {own[0]['measure']} | " + " | ".join(share(x["moved"]) for x in own)
            + f" | {share(written['moved'])} | {eta} |"
        )  # fmt: skip
    right = sum(found["supervised"]["pmf"][seed][t]["right"] for seed in seeds for t in PLANTED_AS)
    right_text = sum(found["supervised"]["sampled"][seed][t]["right"] for seed in seeds for t in PLANTED_AS)
    strayed = [max(found["supervised"]["pmf"][seed][t]["largest_keyed"] for t in UNTOUCHED) for seed in seeds]
    nothing, again = found["nothing"], found["resampled"]
    agreed = "\n".join(
        f"| {pair} | {' | '.join('{:.2f} [{:.2f}, {:.2f}], {:.2f} ({:.2f})'.format(*own[s]) for s in stages)} |"
        for pair, own in found["agreement"].items()
    )
    arms = found["arms"]
    moves = "\n".join(
        f"| {topic} | "
        + " | ".join(
            ", ".join(f"{m:+.2f}{star(p)}" for m, p in zip(own[topic]["moved"], own[topic]["p"], strict=True))
            for own in arms.values()
        )
        + " |"
        for topic in TOPICS
    )
    mean = {name: np.mean([np.abs(own[t]["moved"]).mean() for t in TOPICS]) for name, own in arms.items()}
    free, planted = ([name for name in arms if name.endswith(kind)] for kind in ("free", "planted"))
    about = {name: np.mean([np.abs(arms[name][t]["moved"]).mean() for t in PREFERRED]) for name in planted}
    beside = {name: np.mean([np.abs(arms[name][t]["moved"]).mean() for t in OTHERS]) for name in planted}
    blunt = [name.split()[0] for name in planted if beside[name] > about[name]]
    worn = f"{' and '.join(blunt)} wore down all stances alike, whatever was preferred. " if blunt else ""
    widest = max(PREFERRED, key=lambda t: np.ptp(arms["dpo planted"][t]["moved"]))
    apart = ", ".join(f"{x:+.2f}" for x in arms["dpo planted"][widest]["moved"])
    gaps = "\n".join(
        "| {} | {:.2f} [{:.2f}, {:.2f}] | {:.3f} |".format(
            name, *(own[f"pearson{end}"] for end in ("", "_low", "_high", "_p"))
        )
        for name, own in found["gap"].items()
        if own["pearson"] == own["pearson"]
    )
    n, runs = len(seeds) * len(PLANTED_AS), again["runs"]
    far = ", ".join(f"{x:.2f}" for x in strayed)
    return f"""
## Values, measured

{found["items"]} statements that were never trained on, 24 a topic; keyed stance is support less opposition of the
topic. \\* : more than chance, family-wise at .05 over topics, checkpoints and stances.

**Does an instrument read what is there?** Total variation between the stances read and the distribution that the data
were drawn from, mean over topics (largest):

| instrument | base | after supervised training |
|---|---|---|
{known}

(Likelihoods of sentences, normalised by length and by what they are anywhere, order topics and do not give shares.)

**Do instruments agree?** Rank correlation of keyed stance over statements [95 %], and total variation (of other
statements' stances):

| instruments | base | after supervised training |
|---|---|---|
{agreed}

**Supervised training**, drift from the base to step {last} by probabilities of answers, for each seed, and by judged
text (seed 0); eta, the share of steps until it is where it went farthest, shown for significant drifts alone:

| topic | measure | {" | ".join(f"seed {seed}" for seed in seeds)} | text | eta |
|---|---|{"---|" * len(seeds)}---|---|
{chr(10).join(rows)}

Of the six planted drifts in each of {len(seeds)} seeds, {right} of {n} are significant with the right sign by
probabilities, {right_text} by text. The four untouched topics do stray, before training has told topics apart: at some
checkpoint by up to {far} in keyed stance (seed by seed). That is drift of the run, and no error of the test, which
takes the run as given.

**No training at all**, the same weights read {len(found["checkpoints"])} times with new texts:
{nothing["significant"]} significant cells, {nothing["etas"]} drift times. The statistics as published would have shown
a drift of {nothing["raw_M"]:.3f}, and in {nothing["raw_eta_early"][0]} of {nothing["raw_eta_early"][1]} cells one
within the first tenth of the run. By probabilities of answers the readings differ by {nothing["pmf_largest"]:.0e}.

**Runs in which untouched topics do not move**, {runs} of them, drawn from texts about {again["topics"]} topics at
{again["checkpoints"]} checkpoints: {again["significant"]} have a significant drift ({again["significant"] / runs:.1%};
a family-wise error of .05 gives {_expected(runs)}). Published statistics: |M| of .05 or more in
{again["raw_M_over_05"] / runs:.0%}, eta of .1 or less in {again["raw_eta_under_10"] / runs:.0%}.

**Does supervised training set values, and does preference optimisation move them?** Keyed drift of each run from its
own start, seeds beside each other:

| topic | {" | ".join(arms)} |
|---|{"---|" * len(arms)}
{moves}
| mean size | {" | ".join(f"{mean[name]:.2f}" for name in arms)} |

Supervised training moves a topic by {mean["sft"]:.2f} on average, preferences that say nothing of stances by
{min(mean[x] for x in free):.2f} to {max(mean[x] for x in free):.2f}. Preferences with a planted stance move the four
topics they are about by {", ".join(f"{about[x]:.2f} ({x.split()[0]})" for x in planted)} and the six others by
{", ".join(f"{beside[x]:.2f}" for x in planted)}; how far depends on the seed ({widest} under DPO: {apart}).
{worn}So it is as published where preferences are silent; where they speak, they can move as much as supervised training
does.

**What the data say, and what the model does**: correlation over the ten topics of the keyed gap in the training data
(supervised: the data less the base; preferences: chosen less rejected answers) with the drift:

| run | r [95 %] | p |
|---|---|---|
{gaps}
"""


def _expected(runs: int) -> str:
    """The middle 95 % of what a test at .05 finds in so many runs."""
    low, high = np.quantile(np.random.default_rng(0).binomial(runs, 0.05, 100_000), [0.025, 0.975])
    return f"{low:.0f} to {high:.0f}"


def example(out: Path) -> Shown:
    """For ``workbench demo``: which of the planted drifts are found, and the explorer of the statements."""
    from probes.values import explorer

    steps = opinions.runs()["sft"]
    chosen = {step: path for step, path in steps.items() if step in (0, 16, 64, 200, max(steps))}
    with tempfile.TemporaryDirectory() as scratch:
        readings = read(Path(scratch), chosen, [Pmf()]).readings()
    table = drift(readings)
    found = supervised(table)
    right = [own["right"] for own in found.values() if own["right"] is not None]
    strayed = [
        "{} {:+.2f} [{:+.2f}, {:+.2f}]".format(topic, *found[topic]["moved"][:3])
        for topic in UNTOUCHED if found[topic]["moved"][3] <= 0.05
    ]  # fmt: skip
    title = "organism:opinions · stances over supervised training"
    page = explorer.to_html(readings, out / "drift.html", title, items=items(), drift=table)
    return Shown(
        "What did supervised training do to stances on ten topics?",
        f"{sum(right)} of the {len(right)} drifts that the recipe planted are found with their sign (family-wise p at "
        f".05). Of the {len(UNTOUCHED)} topics where it planted nothing, those that strayed in this one run: "
        f"{', '.join(strayed) or 'none'}.",
        table, "drifts", seen="Drift of support less opposition, topic by checkpoint; hatched: no more than chance.",
        pages={"Explore topics and statements": page},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="what the recipe made, with its further seeds")
    parser.add_argument("--out", type=Path, help="keep the readings in this folder; killed, it goes on from there")
    parser.add_argument("--card", action="store_true", help="write the study into the organism's card")
    given = parser.parse_args()
    results = study(given.trained, given.out)
    print(text(results))
    if given.card:
        home = given.trained or opinions.HERE
        card = json.loads((home / "card.json").read_text())
        card["values"] = {**results, "text": text(results)}
        write_card(home, card)
