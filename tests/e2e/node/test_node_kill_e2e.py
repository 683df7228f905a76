"""`kill -9` of coordinator and nodes while proposals flow: every journalled one arrives, and counts once."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from comity.wire.errors import ComityError
from comity_crypto.statements import Statement

pytestmark = pytest.mark.e2e
A, B, C = "hospital-a", "hospital-b", "hospital-c"
APP = Path(__file__).parents[3] / "benchmarks" / "dummy_app"
SEED = 20_261_122
ROUNDS = 4


def propose(cast, number: int) -> None:
    """Ask A's node to propose what B and C will deny; the node may be dead or about to die."""
    request = {
        "app": str(APP),
        "purpose": "marketing",
        "dataset": "patients",
        "columns": ["age"],
        "title": f"proposal {number}",
    }
    with contextlib.suppress(ComityError):
        cast.api(A).post("/v1/proposals", request)


def ledger(cast, file: Path) -> list[Statement]:
    cast.ok("ledger", "export", str(file), "--home", str(cast.home(A)))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["size"] == len(lines) - 1
    return [Statement.from_bytes(base64.b64decode(line["statement"])) for line in lines[1:]]


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice(cast, tmp_path) -> None:
    chance = random.Random(SEED)
    cast.found(A, B, C)
    number = 0
    for _ in range(ROUNDS):
        victims = chance.sample(["coordinator", A, B, C], chance.choice((1, 2)))
        for _ in range(4):
            propose(cast, number)
            number += 1
        for victim in victims:
            cast.kill(victim)
        if not {A, "coordinator"} & set(victims):
            propose(cast, number)  # while somebody is away
            number += 1
        for victim in victims:
            cast.start(victim)
    for org in (A, B, C):
        cast.connected(org)

    mine = {each["proposal_id"] for each in cast.api(A).get("/v1/proposals")}
    assert len(mine) >= 8

    def settled() -> bool:
        entries = ledger(cast, tmp_path / "export")
        answered = {entry.body["proposal_digest"] for entry in entries if entry.kind == "answer"}
        return Counter(entry.kind for entry in entries)["proposal"] == len(mine) == len(answered)

    cast.wait(settled, "every proposal and an answer to it are in the ledger", 40)
    entries = ledger(cast, tmp_path / "export")
    proposals = Counter(entry.body["proposal_id"] for entry in entries if entry.kind == "proposal")
    assert proposals == Counter(mine)
    answers = Counter((entry.issuer, entry.body["proposal_digest"]) for entry in entries if entry.kind == "answer")
    assert set(answers.values()) == {1}
    assert max(Counter(entry.digest for entry in entries).values()) == 1
    for org in (A, B, C):
        cast.wait(lambda org=org: cast.status(org)["outbox"]["waiting"] == 0, f"{org} has nothing left to send")
        assert cast.status(org)["outbox"]["failed"] == []
        written = 1 + sum(entry.issuer == org for entry in entries)  # the charter, too
        cast.wait(
            lambda org=org, written=written: cast.api(org).get("/v1/ledger")["entries"]["included"] >= written,
            f"every entry of {org} is proved to it",
        )
        assert cast.api(org).get("/v1/ledger")["alarms"] == []
    print(f"e2e kill: seed {SEED}, {ROUNDS} rounds, {len(mine)} proposals, {len(answers)} answers, none twice")
