"""``workbench values run | show | compare | figure``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from workbench.errors import InputError

INSTRUMENTS = {"pmf": "Pmf", "sequence": "SequenceLikelihood"}


def register(commands: Any, style: Any) -> None:
    """Add the command to the workbench's own (entry points of group ``workbench.commands`` are called so)."""
    values = commands.add_parser(
        "values",
        help="ask a series of checkpoints where they stand, and what moved",
        formatter_class=style,
        description="Stances over training, read off answer tokens: no judge, nothing is generated.",
        epilog="example:\n"
        "  workbench values run out/values out/run                    every checkpoint-N in a Trainer's folder\n"
        "  workbench values run out/values 0=base/ 500=sft/ --items mine.csv --instruments pmf,sequence\n"
        "  workbench values show out/values && workbench values figure out/values\n"
        "  workbench values figure out/sft out/dpo                    two runs beside each other",
    )
    actions = values.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        parser.set_defaults(run=run)
        parser.add_argument("path", metavar="PATH", type=Path, help="the folder of readings")
        return parser

    run = action("run", _run, "read checkpoints; run it again to go on with an interrupted run")
    run.add_argument(
        "sources", nargs="+", metavar="STEP=MODEL | FOLDER", help="checkpoints, or a folder of checkpoint-N"
    )
    run.add_argument(
        "--instruments", default="pmf", metavar="NAMES", help=f"of {', '.join(INSTRUMENTS)}, with commas; default: pmf"
    )
    run.add_argument("--skip-failures", action="store_true", help="record what cannot be loaded and go on")
    run.add_argument("--batch-size", type=int, metavar="N")
    show = action("show", _show, "print what moved, by topic, with its family-wise p, and whether instruments agree")
    figure = action("figure", _figure, "write the figures, of one run or of several beside each other")
    figure.add_argument("others", nargs="*", metavar="PATH", type=Path, help="runs that were asked the same")
    figure.add_argument("--out", type=Path, metavar="FOLDER", help="default: PATH/figures")
    compare = action("compare", _compare, "compare the drift of runs that were asked the same")
    compare.add_argument("others", nargs="+", metavar="PATH", type=Path)
    for parser in (run, show, figure, compare):
        parser.add_argument("--items", default="own", metavar="FILE", help="a csv file; default: the built-in items")


def _tracker(path: Path, items: str, names: str = "pmf") -> Any:
    from probes.values import instruments
    from probes.values.items import load_csv, own
    from probes.values.tracker import ValueTracker

    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in chosen if name not in INSTRUMENTS]:
        raise InputError(
            f"There is no instrument {unknown[0]!r} here. Choose from {', '.join(INSTRUMENTS)}; sampled text needs a "
            "judge: in Python, SampledText(judge=...)."
        )
    asks = [getattr(instruments, INSTRUMENTS[name])() for name in chosen]
    return ValueTracker(path, own() if items == "own" else load_csv(items), asks)


def _there(path: Path, items: str) -> Any:
    if not any((path / name).exists() for name in ("manifest.json", "track.json")):
        raise InputError(f"There are no readings in {path}. Make some: workbench values run {path} CHECKPOINTS.")
    found = _tracker(path, items)
    if not found.kept:
        raise InputError(f"No checkpoint was read into {path} yet. Run: workbench values run {path} CHECKPOINTS.")
    return found


def checkpoints(sources: list[str]) -> dict[int, str]:
    """STEP=MODEL pairs, and the checkpoint-N of folders, by step."""
    found: dict[int, str] = {}
    for source in sources:
        step, equals, model = source.partition("=")
        if equals and step.isdigit():
            found[int(step)] = model
            continue
        folders = {p: re.fullmatch(r"(?:checkpoint|step)-(\d+)", p.name) for p in Path(source).glob("*") if p.is_dir()}
        steps = {int(m.group(1)): str(p) for p, m in folders.items() if m}
        if not steps:
            raise InputError(
                f"{source} is neither STEP=MODEL nor a folder with checkpoint-N in it. Write e.g. 0=organism:story."
            )
        found |= steps
    return found


def _run(chosen: argparse.Namespace) -> None:
    tracker = _tracker(chosen.path, chosen.items, chosen.instruments)
    series = checkpoints(chosen.sources)
    tracker.run(series, skip_failures=chosen.skip_failures, batch_size=chosen.batch_size)
    print(f"{len(tracker.steps)} checkpoints of {len(tracker.items)} items in {chosen.path}")
    for step, why in tracker.failures.items():
        print(f"  {step} failed: {why}")


def _show(chosen: argparse.Namespace) -> None:
    from probes.values.tracker import brief

    tracker = _there(chosen.path, chosen.items)
    for name, key in brief(tracker.kept).items():
        print(name)
        _moved(tracker.readings(key))
    found = tracker.agreement()
    if found is not None:
        table = found.data
        print("agreement of instruments (rank correlation of keyed stance over items, 95 %; distance of distributions)")
        for pair in table["pair"].values:
            for own in (table.sel(pair=pair).isel(checkpoint=k) for k in {0, table.sizes["checkpoint"] - 1}):
                r, low, high, tv, null = (
                    float(own[k]) for k in ("spearman", "spearman_low", "spearman_high", "tv", "tv_null")
                )
                print(
                    f"  {pair!s:<28} at {int(own['checkpoint'])}: {r:+.2f} [{low:+.2f}, {high:+.2f}]"
                    f"  tv {tv:.2f} (of other items {null:.2f})"
                )


def _moved(data: Any) -> None:
    from probes.values.measures import drift, stance

    steps = data["checkpoint"].values
    if len(steps) < 2:
        print(stance(data)["keyed"].to_series().to_string())
    else:
        table = drift(data).data
        print(f"keyed drift from {steps[0]} to {steps[-1]} (95 %; p over all topics, checkpoints and stances)")
        _rows(table.isel(checkpoint=-1), "keyed_M")
    if "mass" in data:
        mass = data["mass"].mean(("item", "sample"))
        first, last = float(mass[0]), float(mass[-1])
        print(f"of the probability, {first:.0%} (first) and {last:.0%} (last) is on the answers offered", end="")
        print(f"; asked in {data.data.attrs['asked']}" if data.data.attrs.get("asked") else "")


def _rows(table: Any, name: str) -> None:
    """A line for each topic."""
    for topic in table["topic"].values:
        own = table.sel(topic=topic)
        value, low, high, p = (float(own[f"{name}{end}"]) for end in ("", "_low", "_high", "_p"))
        print(f"  {topic!s:<28} {value:+.3f} [{low:+.3f}, {high:+.3f}]  p = {p:.3f}{'  *' if p <= 0.05 else ''}")


def _runs(chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Instrument -> run -> readings, of the instruments that all runs have."""
    from probes.values.tracker import brief

    runs = {str(p): _there(p, chosen.items) for p in (chosen.path, *chosen.others)}
    common = [key for key in next(iter(runs.values())).kept if all(key in run.kept for run in runs.values())]
    if not common:
        own = "; ".join(f"{path}: {', '.join(run.kept)}" for path, run in runs.items())
        raise InputError(f"The runs were not asked the same ({own}). Read each with one of the others' instruments.")
    return {name: {path: run.readings(key) for path, run in runs.items()} for name, key in brief(common).items()}


def _figure(chosen: argparse.Namespace) -> None:
    from probes.values import figures
    from probes.values.measures import compare, drift, sides, stance

    out = chosen.out or chosen.path / "figures"
    out.mkdir(parents=True, exist_ok=True)
    asked = _runs(chosen)
    made: dict[str, Any] = {}
    for name, runs in asked.items():
        end = f"-{name.replace(' ', '-')}" if len(asked) > 1 else ""
        several = len(runs) > 1
        tables = {path: stance(data) for path, data in runs.items()}
        made[f"trajectories{end}"] = figures.trajectories(tables if several else tables[str(chosen.path)])
        if all(data.data.sizes["checkpoint"] > 1 for data in runs.values()):
            if several:
                made[f"runs{end}"] = figures.runs(compare(runs))
            data = runs[str(chosen.path)]
            table = drift(data)
            own = {"drifts": figures.drifts(table), "times": figures.times(table), "sides": figures.sides(sides(data))}
            made |= {f"{kind}{end}": figure for kind, figure in own.items()}
    table = _there(chosen.path, chosen.items).agreement()
    if table is not None:
        made["agreement"] = figures.agreement(table)
    for name, figure in made.items():
        figure.save(out / f"{name}.html")
        print(out / f"{name}.html")


def _compare(chosen: argparse.Namespace) -> None:
    from probes.values.measures import compare

    for name, runs in _runs(chosen).items():
        table = compare(runs).data
        print("Differences between two runs, which two seeds of one recipe have, too. Of recipes: several runs of each")
        print("(probes.values.compare(runs, arm=...)).")
        for pair in table["pair"].values:
            print(f"{pair} ({name})")
            _rows(table.sel(pair=pair), "keyed_difference")
