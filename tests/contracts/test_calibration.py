"""Every claimed level is simulated: the short version of ``benchmarks/calibration.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # behind the tests: both have a module called routing

from calibration import cases  # noqa: E402
from levels.case import KINDS, Case, measured  # noqa: E402

ALL = cases()
TABLE = ROOT / "benchmarks" / "results" / "calibration.json"
KNOWN = {row["name"]: row for row in json.loads(TABLE.read_text())}
SECOND, FEWEST = 0.7, 20
"""About so long a case may take here, by what its trials took for the table; and the fewest trials."""


def trials(case: Case) -> int:
    row = KNOWN.get(case.name)
    if row is None:
        return FEWEST
    return int(min(case.quick, max(FEWEST, SECOND * row["trials"] / max(row["seconds"], 0.01))))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL if case.kind != "power"])
def test_the_rate_is_the_one_that_is_claimed(case: Case):
    """At 99.99 %, since there are hundreds of cases; the table has 95 % and more trials."""
    if case.labelled:
        pytest.skip(f"not the nominal rate, and the reading says so: {case.labelled}")
    found = measured(case, trials(case), seed=3, level=0.9999)
    assert found.holds(case), f"{case.what}: {found.rate:.3f} [{found.low:.3f}, {found.high:.3f}] for {case.nominal}"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ALL if case.kind == "power"])
def test_what_is_there_is_found(case: Case):
    found = measured(case, trials(case), seed=3, level=0.9999)
    assert case.name in KNOWN, f"{case.name} is not in the table: run benchmarks/calibration.py --only {case.name}"
    assert found.high >= KNOWN[case.name]["low"], f"{case.what}: found in {found.rate:.3f}, and before in more"


def test_the_table_has_every_case_and_no_wrong_one():
    assert list(KNOWN) == [case.name for case in ALL]
    said = {case.name: case.labelled for case in ALL}
    for row in KNOWN.values():
        assert row["kind"] in KINDS and row["labelled"] == said[row["name"]]
        assert row["holds"] or row["labelled"], f"{row['name']}: {row['rate']} for {row['nominal']}"
