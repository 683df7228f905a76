"""Three runs of `make faults` with a fixed seed, one kill each; and its judge must be able to find fault."""

from __future__ import annotations

import time
from pathlib import Path

import kill_runs
import pytest
from harness import journals
from harness.consortium import LEAD, ORGS, Consortium

from comity_agents.flower.bundle import build_app

pytestmark = pytest.mark.e2e
SEED = 20_261_122
# The lead dies in the negotiation or the first round, the coordinator and a worker in the middle of the training.
PLANS = (
    kill_runs.Plan("lead", LEAD, 0.4),
    kill_runs.Plan("coordinator", "coordinator", 0.6),
    kill_runs.Plan("worker", ORGS[1], 0.5),
)


def test_three_kills(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    try:
        consortium.found(kill_runs.datasets(tmp_path), (build_app(kill_runs.APP).digest,))
        proof = kill_runs.Proof(consortium, SEED)
        with consortium.supervised():
            ended = proof.undisturbed()
            for number, plan in enumerate(PLANS, 1):
                report = proof.disturbed(number, plan)
                assert report.ok, kill_runs.line_of(report)
                assert report.killed
        assert proof.books(tmp_path, proof.completed) == []
        assert {status for _, status in consortium.deaths} == {-9}
        _check_the_judge(proof, consortium, ended)
    finally:
        left = consortium.stop()
    assert left == []


def _check_the_judge(proof: kill_runs.Proof, consortium: Consortium, ended: kill_runs.Ended) -> None:
    """Forge a second execution of a finished order and a lost ledger entry: both must be noticed."""
    order = journals.orders(consortium.home(LEAD), ended.run)[0]
    with (consortium.home(LEAD) / "runs" / ended.run / "client.log").open("a") as log:
        log.write(
            f"tally begin {order.digest} {time.time() + 1:.6f}\ntally end {order.digest} {time.time() + 2:.6f} 0\n"
        )
    striker = kill_runs.Striker(consortium, PLANS[0], kill_runs.threading.Event(), 0.0, 0.0)
    striker.finished, striker.read_at = {LEAD: journals.finished(consortium.home(LEAD))}, time.time()
    twice, faults = proof.judge(ended, striker)
    assert twice == [f"{LEAD} order {order.seq} {order.digest[:12]}"]
    assert faults == [f"{LEAD} order {order.seq} came out differently when it ran again"]
    assert proof.books(consortium.folder, proof.completed + 1) != []


def test_a_seed_gives_the_same_plans(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[kill_runs.Plan]:
        proof = kill_runs.Proof(Consortium(tmp_path), seed)
        return [proof.plan() for _ in range(60)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {plan.part for plan in drawn(1)} == set(kill_runs.PARTS)
