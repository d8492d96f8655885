"""``workbench values run | show | compare | figure``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from workbench.errors import InputError


def register(commands: Any, style: Any) -> None:
    """Add the command to the workbench's own (entry points of group ``workbench.commands`` are called so)."""
    values = commands.add_parser(
        "values",
        help="ask a series of checkpoints where they stand, and what moved",
        formatter_class=style,
        description="Stances over training, read off answer tokens: no judge, nothing is generated.",
        epilog="example:\n"
        "  workbench values run out/values out/run                    every checkpoint-N in a Trainer's folder\n"
        "  workbench values run out/values 0=base/ 500=sft/ --items mine.csv\n"
        "  workbench values show out/values && workbench values figure out/values",
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
    run.add_argument("--skip-failures", action="store_true", help="record what cannot be loaded and go on")
    run.add_argument("--batch-size", type=int, metavar="N")
    show = action("show", _show, "print what moved, by topic, with its family-wise p")
    figure = action("figure", _figure, "write the figures")
    figure.add_argument("--out", type=Path, metavar="FOLDER", help="default: PATH/figures")
    compare = action("compare", _compare, "compare the drift of runs that were asked the same")
    compare.add_argument("others", nargs="+", metavar="PATH", type=Path)
    for parser in (run, show, figure, compare):
        parser.add_argument("--items", default="own", metavar="FILE", help="a csv file; default: the built-in items")


def _tracker(path: Path, items: str) -> Any:
    from probes.values.instruments import Pmf
    from probes.values.items import load_csv, own
    from probes.values.tracker import ValueTracker

    return ValueTracker(path, own() if items == "own" else load_csv(items), [Pmf()])


def _there(path: Path, items: str) -> Any:
    if not (path / "track.json").exists():
        raise InputError(f"There are no readings in {path}. Make some: workbench values run {path} CHECKPOINTS.")
    return _tracker(path, items)


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
    tracker = _tracker(chosen.path, chosen.items)
    series = checkpoints(chosen.sources)
    tracker.run(series, skip_failures=chosen.skip_failures, batch_size=chosen.batch_size)
    print(f"{len(tracker.steps)} checkpoints of {len(tracker.items)} items in {chosen.path}")
    for step, why in tracker.failures.items():
        print(f"  {step} failed: {why}")


def _show(chosen: argparse.Namespace) -> None:
    from probes.values.drift import drift, stance

    data = _there(chosen.path, chosen.items).readings()
    steps = data["checkpoint"].values
    if len(steps) < 2:
        print(stance(data)["keyed"].to_series().to_string())
        return
    table = drift(data)
    print(f"keyed drift from {steps[0]} to {steps[-1]} (95 %; p over all topics, checkpoints and stances)")
    last = table.isel(checkpoint=-1)
    for topic in table["topic"].values:
        own = last.sel(topic=topic)
        value, low, high, p = (float(own[f"keyed_M{end}"]) for end in ("", "_low", "_high", "_p"))
        print(f"  {topic!s:<28} {value:+.3f} [{low:+.3f}, {high:+.3f}]  p = {p:.3f}{'  *' if p <= 0.05 else ''}")
    mass = 1 - data["p"].sel(stance="uncommitted").mean(("item", "sample"))
    print(f"of the probability, {float(mass[0]):.0%} to {float(mass[-1]):.0%} is on the answers offered")


def _figure(chosen: argparse.Namespace) -> None:
    from probes.values import figures
    from probes.values.drift import drift, stance

    data = _there(chosen.path, chosen.items).readings()
    out = chosen.out or chosen.path / "figures"
    out.mkdir(parents=True, exist_ok=True)
    made = {"trajectories": figures.trajectories(stance(data))}
    if data.sizes["checkpoint"] > 1:
        table = drift(data)
        made |= {"drifts": figures.drifts(table), "times": figures.times(table), "sides": figures.sides(data)}
    for name, figure in made.items():
        figure.save(out / f"{name}.html")
        print(out / f"{name}.html")


def _compare(chosen: argparse.Namespace) -> None:
    from probes.values.drift import compare

    runs = {str(p): _there(p, chosen.items).readings() for p in (chosen.path, *chosen.others)}
    table = compare(runs)
    for pair in table["pair"].values:
        print(pair)
        for topic in table["topic"].values:
            own = table.sel(pair=pair, topic=topic)
            value, low, high, p = (float(own[f"keyed_difference{end}"]) for end in ("", "_low", "_high", "_p"))
            print(f"  {topic!s:<28} {value:+.3f} [{low:+.3f}, {high:+.3f}]  p = {p:.3f}{'  *' if p <= 0.05 else ''}")
