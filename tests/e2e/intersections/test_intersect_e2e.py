"""`comity intersect` with real processes: how many, which of the own, too few, and a ledger that verifies."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.consortium import LEAD, ORGS, Consortium

PARTNER = ORGS[1]
KINDS = {"kinds": ["model", "statistic", "record"], "metrics": ["*"], "size_bytes_max": 1 << 28}
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def _people(path: Path, first: int, last: int) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "person"], *([40, f"P-{number:04}"] for number in range(first, last))])
    return path


@pytest.fixture(scope="module")
def hospitals() -> Iterator[Consortium]:
    with tempfile.TemporaryDirectory(prefix="comity-meet-") as name:
        folder = Path(name)
        consortium = Consortium(folder)
        try:
            tables = {
                org: {"people": _people(folder / f"{org}.csv", 100 * n, 100 * n + 150)} for n, org in enumerate(ORGS)
            }
            tables[LEAD]["few"] = _people(folder / "few.csv", 140, 190)
            tables[PARTNER]["few"] = _people(folder / "few-too.csv", 180, 230)
            consortium.found(tables, (), egress=KINDS)
            yield consortium
        finally:
            left = consortium.stop()
        assert left == []


def test_how_many_which_and_too_few(hospitals: Consortium) -> None:
    ask = ("intersect", "--with", PARTNER, "--purpose", "research", "--home", str(hospitals.home(LEAD)))
    done = hospitals.ok(*ask, "--dataset", "people.person")
    assert (done["state"], done["common"]) == ("COMPLETED", 50)
    assert "50 identifiers in common" in hospitals.comity("runs", "result", done["run"], *ask[5:]).stdout
    assert hospitals.ok("runs", "result", done["run"], "--home", str(hospitals.home(PARTNER)))["common"] == 50

    rows = hospitals.ok(*ask, "--dataset", "people.person", "--mode", "ids")
    found = hospitals.home(LEAD) / "results" / rows["run"] / "rows.csv"
    assert found.stat().st_mode & 0o777 == 0o600
    lines = found.read_text().splitlines()
    assert (lines[0], lines[1], len(lines)) == ("row,identifier", "100,P-0100", 51)
    assert not (hospitals.home(PARTNER) / "results" / rows["run"] / "rows.csv").exists()

    few = hospitals.comity(*ask, "--dataset", "few.person", "--json")
    assert few.returncode != 0
    assert json.loads(few.stdout)["error"]["code"] == "EGRESS_DENIED"

    export = hospitals.folder / "ledger.jsonl"
    hospitals.nodes[LEAD].export_ledger(export)
    hospitals.ok("ledger", "verify", str(export), "--genesis", hospitals.genesis)
    assert "P-0" not in export.read_text()
