"""Two replicas on one PostgreSQL and one Temporal: nodes at both, a run through both, one killed in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import kill_runs
import pytest
from harness import journals, postgres
from harness.consortium import ORGS
from harness.replicated import FIRST, REPLICAS, SECOND, ReplicatedConsortium

from comity_agents.flower.bundle import build_app

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(postgres.installed() is None, reason="PostgreSQL is not installed"),
]


@pytest.mark.parametrize("aggregation", ["plain", "threshold"])
def test_a_run_survives_the_death_of_a_replica(tmp_path: Path, aggregation: str) -> None:
    consortium = ReplicatedConsortium(tmp_path, aggregation)
    try:
        consortium.found(kill_runs.datasets(tmp_path), (build_app(kill_runs.APP).digest,))
        _spread(consortium)
        proof = kill_runs.Proof(consortium, seed=1)
        proof.undisturbed()
        _spread(consortium)

        agreement = consortium.agreed(proof._propose())
        run = consortium.run_of(agreement)
        _one_order_is_done(consortium, run)
        consortium.kill(SECOND)
        ended = consortium.ended(run)
        assert ended.state == "COMPLETED", ended
        assert set(ended.models.values()) == {proof._model}
        twice, faults = proof.judge(ended)
        assert (twice, [each for each in faults if "times in an undisturbed" not in each]) == ([], [])
        consortium.until(lambda: consortium.replica_status(FIRST)["living"] == [], "the lease of the dead one ends")
        assert consortium.replica_status(FIRST)["streams"] == list(ORGS)

        consortium.up(SECOND)
        consortium.until(lambda: consortium.replica_status(FIRST)["linked"] == ["b"], "the replicas are linked again")
        proof.completed += 1
        assert proof.books(tmp_path, proof.completed) == []
    finally:
        left = consortium.stop()
    assert left == []


def _spread(consortium: ReplicatedConsortium) -> None:
    """Check that both replicas have streams, see each other, and that every node sees all others."""

    def seen() -> dict[str, Any]:
        return {name: consortium.replica_status(name) for name in REPLICAS}

    consortium.until(lambda: all(each["linked"] for each in seen().values()), "the replicas are linked")
    streams = {name: each["streams"] for name, each in seen().items()}
    assert streams == {FIRST: [ORGS[0], ORGS[2]], SECOND: [ORGS[1]]}
    for org in ORGS:
        others = sorted(set(ORGS) - {org})
        consortium.until(
            lambda org=org, others=others: consortium.nodes[org].status()["connected_orgs"] == others,
            f"{org} sees the others",
        )


def _one_order_is_done(consortium: ReplicatedConsortium, run: str) -> None:
    until = time.monotonic() + 60
    while not any(each.outcome for each in journals.orders(consortium.home(ORGS[1]), run)):
        assert time.monotonic() < until, consortium.who_waits()
        time.sleep(0.01)
