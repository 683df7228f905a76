"""From version N to N+1 with both running side by side: replicas and nodes are replaced one after the other in one run.

N is the commit of `EARLIER`; N+1 is the code under test, which brings the schema forward while N serves on it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import kill_runs
import psycopg
import pytest
from harness import earlier, journals, postgres
from harness.consortium import COMITY, ORGS
from harness.replicated import FIRST, SECOND, ReplicatedConsortium

from comity_agents.flower.bundle import build_app
from comity_client.demo.export import receipts
from comity_coordinator.migrations import schema

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(postgres.installed() is None, reason="PostgreSQL is not installed"),
]
# "Check Ed25519 signatures by libsodium, in one place": the schema's revision 0004, before that of deletions. Move it
# on with each release: only neighbouring versions have to get along.
EARLIER = "06d8db4abbf3ad1aa3662bce3c7a10b676595da4"
ROUNDS = 40
PAUSE_MS = 900
STEP_TIMEOUT_S = 60.0


class Rolling(ReplicatedConsortium):
    """Every process begins with the earlier version."""

    def __init__(self, folder: Path, command: tuple[str, ...]) -> None:
        super().__init__(folder)
        for name in ("", FIRST, SECOND, *ORGS):
            self.use(name, command)

    def environment(self, name: str) -> dict[str, str]:
        """Nothing but its own code for a process of the earlier version."""
        found = super().environment(name)
        return earlier.environment(found) if self._commands[name] != COMITY else found

    def joined(self, org: str) -> None:
        """Also: apps run without the sandbox's file view (`harness/earlier.py`, rule 3)."""
        super().joined(org)
        path = self.home(org) / "node.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "isolation": "process"}))

    def upgrade(self, name: str) -> None:
        """Stop a process as its operator would, and start it as the version under test."""
        self.down(name)
        self.use(name, COMITY)
        self.up(name)

    def revisions(self) -> set[str]:
        """Return what the database's schema has."""
        with psycopg.connect(self.database.dsn("comity")) as conn:
            return {row[0] for row in conn.execute("select revision from schema_applied")}

    def linked(self) -> None:
        """Wait until both replicas have a link to the other."""
        for name in (FIRST, SECOND):
            self.until(lambda name=name: self.replica_status(name)["linked"], f"{name} is linked")

    def steps(self, run: str, more: int) -> None:
        """Wait until every organisation has finished this many orders more: the run goes on."""
        before = {org: len(journals.finished(self.home(org))) for org in ORGS}
        assert max(before.values()) + more < ROUNDS, f"the run is over too soon for this test: {before}"
        self.until(
            lambda: all(len(journals.finished(self.home(org))) >= before[org] + more for org in ORGS),
            f"{more} orders more of {run} are finished everywhere",
            STEP_TIMEOUT_S,
        )


def test_a_run_that_began_on_the_earlier_version_ends_on_this_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("c")  # homes hold sockets, whose paths are short
    consortium = Rolling(tmp_path / "c", earlier.install(EARLIER, tmp_path / "earlier"))
    try:
        consortium.found(kill_runs.datasets(tmp_path), (build_app(kill_runs.APP).digest,))
        known = consortium.revisions()
        assert known < set(schema.REVISIONS), "both versions have one schema: choose an earlier commit"
        agreement = consortium.agreed(consortium.propose(_wish("a run through the upgrade", ROUNDS)))
        run = consortium.run_of(agreement)
        consortium.steps(run, 1)

        consortium.upgrade(SECOND)
        assert consortium.revisions() == set(schema.REVISIONS)
        consortium.linked()
        consortium.steps(run, 2)

        consortium.kill(FIRST)  # the earlier version may start again on the schema that was expanded
        consortium.up(FIRST)
        assert "schema.ahead" in consortium.log(FIRST).read_text()
        consortium.linked()
        consortium.steps(run, 2)

        consortium.upgrade(FIRST)
        consortium.linked()
        consortium.steps(run, 1)
        for org in reversed(ORGS):
            consortium.upgrade(org)
        consortium.use("", COMITY)
        ended = consortium.ended(run)
        assert (ended.state, ended.error) == ("COMPLETED", None)
        assert len(set(ended.models.values())) == 1
        assert _wrong(consortium, run, ROUNDS) == []

        later = consortium.train(_wish("a run after the upgrade", 2))
        assert later.state == "COMPLETED"
        assert _books(consortium, tmp_path / "ledger.jsonl", {run: ROUNDS, later.run: 2}) == []
    finally:
        left = consortium.stop()
    assert left == []


def _wish(title: str, rounds: int) -> dict[str, Any]:
    return {
        "app": str(kill_runs.APP),
        "purpose": "research",
        "dataset": "numbers",
        "title": title,
        "rounds": rounds,
        "deadline_s": 600,
        "reply_timeout_s": 60,
        "run_config": {"num-server-rounds": rounds, "pause-ms": PAUSE_MS},
    }


def _wrong(consortium: Rolling, run: str, rounds: int) -> list[str]:
    """Return what is wrong in the nodes' books: every order answered once, none again after it was finished."""
    wrong = []
    for org in ORGS:
        orders = journals.orders(consortium.home(org), run)
        if [(each.seq, each.outcome) for each in orders] != [(seq, "result") for seq in range(rounds)]:
            wrong.append(f"{org} has the orders {[(each.seq, each.outcome) for each in orders]}")
        begun = Counter(each.order for each in journals.executions(consortium.home(org), run) if each.result is None)
        again = {order: count for order, count in begun.items() if count > 1}
        if len(again) > 1 or any(count > 2 for count in again.values()):  # its node was stopped once, in one order
            wrong.append(f"{org} began {again} again")
    return wrong


def _books(consortium: Rolling, export: Path, rounds: dict[str, int]) -> list[str]:
    """Return what is wrong in the ledger, by this version's checks."""
    consortium.until(lambda: all(journals.unsent(consortium.home(org)) == 0 for org in ORGS), "all is handed in")
    consortium.until(lambda: consortium.unordered() == 0, "the ledger has all in order")
    home = str(consortium.home(FIRST))
    wrong = []
    checked = consortium.comity("coordinator", "ledger", "fsck", home, "--json")
    if checked.returncode:
        wrong.append(f"fsck: {checked.stdout[:2000]}{checked.stderr[-500:]}")
    consortium.ok("coordinator", "ledger", "export", home, str(export))
    verified = consortium.comity("ledger", "verify", str(export), "--genesis", consortium.genesis, "--json")
    if verified.returncode:
        wrong.append(f"verify: {verified.stdout[:2000]}{verified.stderr[-500:]}")
    counts = Counter((each["issuer"], each["run"], each["seq"]) for each in receipts(export))
    expected = Counter({(org, run, seq): 1 for org in ORGS for run, many in rounds.items() for seq in range(many)})
    return wrong + [f"receipts: {each}" for each in (counts - expected) + (expected - counts)]
