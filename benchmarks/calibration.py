"""Every claimed level, simulated: how often a p-value, a star or an interval is wrong where it may be wrong so often.

    python benchmarks/calibration.py [--quick] [--only routing.,values.] [--seed 1] [--jobs 2] [--seconds 60]
                                     [--out FILE.json]

Prints one row for each case: the claimed rate, the measured one with its exact 95 % interval, and whether they agree.
The cases are in ``benchmarks/levels``; ``--quick`` takes the trials of the tests.  With ``--out`` the rows that were
run replace those of the same name in the file, from which the documentation's page is made.  ``--seconds`` bounds the
time of a case, by fewer trials (never fewer than in the tests).
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

from levels.case import Case, measured

FAMILIES = ("stats", "lenses", "judge", "routing", "effects", "superposition", "values")


def cases(only: str = "") -> list[Case]:
    """All of them, in order; names are unique."""
    found = [case for name in FAMILIES for case in import_module(f"levels.{name}").CASES]
    names = [case.name for case in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"Two cases are called {min(twice)}.")
    return [case for case in found if case.name.startswith(tuple(only.split(",")))]


def row(name: str, quick: bool, seed: int, seconds: float) -> dict:
    case = next(x for x in cases(name) if x.name == name)
    start = time.perf_counter()
    found = measured(case, case.quick if quick else case.full, seed, seconds=seconds)
    return {
        "name": name, "kind": case.kind, "nominal": None if case.kind == "power" else case.nominal,
        "rate": round(found.rate, 4), "low": round(found.low, 4), "high": round(found.high, 4),
        "trials": found.trials, "holds": found.holds(case), "labelled": case.labelled, "before": case.before,
        "what": case.what, "where": case.where, "seed": seed, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="as many trials as in the tests")
    parser.add_argument("--only", default="", help="beginnings of names, joined by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a case, roughly")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file whose rows are replaced")
    parser.add_argument("--device", default="cpu", help="not used: these are simulations")
    given = parser.parse_args()
    old = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else []
    known = {r["name"]: r for r in old}
    with ProcessPoolExecutor(given.jobs) as pool:
        waiting = [pool.submit(row, case.name, given.quick, given.seed, given.seconds) for case in cases(given.only)]
        for done in as_completed(waiting):
            r = done.result()
            known[r["name"]] = r
            said = "" if r["holds"] else ("  labelled" if r["labelled"] else "  WRONG")
            nominal = "     " if r["nominal"] is None else f"{r['nominal']:5.3f}"
            print(
                f"{r['name']:55} {r['kind']:10} {nominal} {r['rate']:6.3f} [{r['low']:.3f}, {r['high']:.3f}] "
                f"of {r['trials']}{said}  {r['seconds']} s",
                flush=True,
            )
            if given.out is not None:
                order = {case.name: i for i, case in enumerate(cases())}
                rows = sorted((x for x in known.values() if x["name"] in order), key=lambda x: order[x["name"]])
                given.out.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = [r for r in known.values() if not r["holds"] and not r["labelled"]]
    print(f"{len(known)} cases, {len(wrong)} wrong" + "".join(f"\n  {r['name']}" for r in wrong))


if __name__ == "__main__":
    main()
