"""`comity aggregate` with real processes under `threshold`: an exact answer, a noisy one, a refusal, a ledger."""

from __future__ import annotations

import csv
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness.consortium import LEAD, ORGS, Consortium

pytestmark = pytest.mark.e2e
RECORDS = 400


def _patients(path: Path, seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    rows = [(draw.randint(18, 95), int(draw.random() < 0.3)) for _ in range(RECORDS)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "smoker"], *rows])
    return rows


@pytest.fixture(scope="module")
def hospitals() -> Iterator[tuple[Consortium, list[tuple[int, int]]]]:
    with tempfile.TemporaryDirectory(prefix="comity-ask-") as name:
        folder = Path(name)
        consortium = Consortium(folder, "threshold")
        try:
            rows = [row for seed, org in enumerate(ORGS) for row in _patients(folder / f"{org}.csv", seed)]
            consortium.found({org: {"patients": folder / f"{org}.csv"} for org in ORGS}, ())
            yield consortium, rows
        finally:
            left = consortium.stop()
        assert left == []


@pytest.mark.slow
def test_a_question_gets_its_answer_and_says_what_is_not_exact(
    hospitals: tuple[Consortium, list[tuple[int, int]]],
) -> None:
    consortium, rows = hospitals
    ask = ("aggregate", "--dataset", "patients", "--purpose", "research", "--home", str(consortium.home(LEAD)))
    told = consortium.comity(*ask, "--query", "mean(age in 0..120) where smoker = 1")
    assert told.returncode == 0, told.stdout + told.stderr
    mean = np.mean([age for age, smoker in rows if smoker])
    assert f"  {mean:.10g}\n  3 organisations, {sum(smoker for _, smoker in rows)} records" in told.stdout

    noisy = consortium.ok(*ask, "--query", "count where smoker = 1", "--epsilon", "1")["statistic"]
    assert abs(noisy["value"] - sum(smoker for _, smoker in rows)) < 12 * noisy["noise_std"]
    assert noisy["noise_std"] > 1
    run = consortium.nodes[LEAD].runs()[0]["run"]
    other = str(consortium.home(ORGS[2]))
    assert consortium.ok("runs", "result", run, "--home", other)["statistic"] == noisy
    assert "standard deviation" in consortium.comity("runs", "result", run, "--home", other).stdout

    few = consortium.comity(*ask, "--query", "count where age > 94", "--json")
    assert few.returncode != 0
    assert json.loads(few.stdout)["error"]["code"] == "PARTICIPANTS_TOO_FEW"
    assert "MALFORMED" in str(consortium.refused(*ask, "--query", "mean(age)"))

    export = consortium.folder / "ledger.jsonl"
    consortium.nodes[LEAD].export_ledger(export)
    consortium.ok("ledger", "verify", str(export), "--genesis", consortium.genesis)
