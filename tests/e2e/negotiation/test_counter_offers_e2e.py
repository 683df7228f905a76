"""Counter-offers and a revision through the commands, with real processes, to a ledger that verifies."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.consortium import LEAD, ORGS, Consortium

from comity_agents.flower.bundle import build_app

APP = Path(__file__).resolve().parents[3] / "benchmarks" / "dummy_app"
OTHERS = ORGS[1:]


@pytest.fixture(scope="module")
def hospitals() -> Iterator[Consortium]:
    with tempfile.TemporaryDirectory(prefix="comity-counter-") as name:
        consortium = Consortium(Path(name))
        try:
            table = Path(name) / "numbers.csv"
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([["x", "y"], *([row, row % 2] for row in range(40))])
            consortium.found({org: {"numbers": table} for org in ORGS}, (build_app(APP).digest,))
            yield consortium
        finally:
            left = consortium.stop()
        assert left == []


def offered(hospitals: Consortium, proposal: str, revision: int) -> bool:
    view: Any = hospitals.nodes[LEAD].proposal(proposal)
    news = view["news"]
    return bool(
        view["revision"] == revision
        and news is not None
        and {leg["org"] for leg in news["legs"] if leg["state"] == "OFFERED"} == set(OTHERS)
        and {each["org"] for each in view["counters"]} == set(OTHERS)
    )


@pytest.mark.slow
def test_counter_offers_wait_for_the_proposer_through_a_revision_to_an_agreement(hospitals: Consortium) -> None:
    home = ("--home", str(hospitals.home(LEAD)))
    made = hospitals.ok(
        *("train", str(APP), "--purpose", "research", "--dataset", "numbers", "--aggregation", "plain"),
        *("--rounds", "2", "--accepts", "none", "--no-wait", "--deadline", "10m", *home),
    )
    proposal = made["proposal_id"]
    hospitals.until(lambda: offered(hospitals, proposal, 1), "both others make a counter-offer")

    waits = [each for each in hospitals.ok("status", *home)["waiting"] if each["name"] == proposal]
    assert [each["awaited"] for each in waits] == [[LEAD]]
    assert "it ends: hospital-a did not answer in time" in waits[0]["then"]
    assert f"comity proposals accept {proposal} {OTHERS[0]}" in waits[0]["then"]
    shown = hospitals.comity("proposals", "show", proposal, *home).stdout
    assert f"counter-offer of {OTHERS[0]}, signed: yours to accept or to revise" in shown
    assert "min_cohort: asked nothing, offered" in shown
    assert hospitals.refused("proposals", "accept", proposal, LEAD, *home)["code"] == "NOT_FOUND"

    done = hospitals.ok("proposals", "revise", proposal, "--term", "rounds=1", "--accepts", "none", *home)
    assert (done["proposal"]["revision"], done["proposal"]["steps"][0]["rounds"]) == (2, 1)
    hospitals.until(lambda: offered(hospitals, proposal, 2), "both make a counter-offer again")
    for org in OTHERS:
        hospitals.ok("proposals", "accept", proposal, org, *home)
    agreement = hospitals.agreed(proposal)
    assert hospitals.refused("proposals", "revise", proposal, *home)["code"] == "ILLEGAL_EVENT"
    assert hospitals.ended(hospitals.run_of(agreement)).state == "COMPLETED"

    export = hospitals.folder / "ledger.jsonl"
    hospitals.nodes[LEAD].export_ledger(export)
    report = hospitals.ok("ledger", "verify", str(export), "--genesis", hospitals.genesis)
    assert (report["counts"]["proposal"], report["counts"]["counter-acceptance"]) == (2, 2)
