"""Results under a minimum cohort leave receipts that prove it, made after the round, in spite of crashes."""

from __future__ import annotations

import threading

from comity_node.training import store
from comity_policies import cohorts
from comity_policies.cohorts import Claim
from comity_policies.documents import Receipt

MINIMA = {f"{org}/patients": 30 for org in ("hospital-a", "hospital-b", "hospital-c")}


def waiting(rig, org):
    return rig.nodes[org].read(lambda conn: store.unsent_receipts(conn, 64))


async def test_results_prove_their_cohort_and_name_no_number(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config={"params": 100, "num-server-rounds": 2}, terms={"min_cohort": MINIMA})
    run = rig.board.prepare(agreement)
    assert (await rig.finish(run))["state"] == "COMPLETED"
    await rig.until(lambda: all(len(rig.receipts(org)) == 2 for org in rig.nodes))
    commitments = set()
    for org in rig.nodes:
        for body in rig.receipts(org):
            receipt = Receipt.from_json(body)
            assert receipt.cohort is not None
            cohorts.verify(receipt, org, 30)
            commitments.add(receipt.cohort.commitment)
        assert waiting(rig, org) == []
        first, second = (Receipt.from_json(body) for body in rig.receipts(org))
        assert first.cohort.before is None
        assert second.cohort.before == first.order, "as many records as in the round before, without their number"
        cohorts.verify_same(second, org, first.cohort.commitment)
        stored = rig.nodes[org].read(lambda conn: store.receipts_of(conn, run))
        assert [b'"cohort"' in data for data in stored] == [True, True]
    assert len(commitments) == 6, "equal cohorts must not show as equal"


async def test_without_a_minimum_nothing_is_proved(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config={"params": 100, "num-server-rounds": 1})
    await rig.finish(rig.board.prepare(agreement))
    await rig.until(lambda: all(len(rig.receipts(org)) == 1 for org in rig.nodes))
    assert all("cohort" not in body for org in rig.nodes for body in rig.receipts(org))


async def test_a_process_that_dies_before_it_proved_proves_when_it_is_back(rig, dummy, monkeypatch):
    node = rig.nodes["hospital-b"]
    book = node.service._receipts

    async def never() -> None:
        return None

    monkeypatch.setattr(book, "flush", never)
    agreement = rig.agree(dummy, rounds=1, config={"params": 100, "num-server-rounds": 1}, terms={"min_cohort": MINIMA})
    run = rig.board.prepare(agreement)
    await rig.finish(run)
    await rig.until(lambda: len(waiting(rig, "hospital-b")) == 1)
    ((_, data, claim),) = waiting(rig, "hospital-b")
    assert b'"cohort"' not in data
    assert claim == Claim(30, 40)
    await node.crash()
    await node.up()
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 1)
    receipt = Receipt.from_json(rig.receipts("hospital-b")[0])
    assert receipt.cohort is not None
    cohorts.verify(receipt, "hospital-b", 30)


async def test_a_round_does_not_wait_for_proofs(rig, dummy, monkeypatch):
    """No proof is made before the run has ended; were a round to wait for one, the run would never end."""
    true, released = cohorts.prove, threading.Event()

    def held(*args):
        assert released.wait(60)
        return true(*args)

    monkeypatch.setattr(cohorts, "prove", held)
    agreement = rig.agree(dummy, rounds=4, config={"params": 100, "num-server-rounds": 4}, terms={"min_cohort": MINIMA})
    try:
        assert (await rig.finish(rig.board.prepare(agreement)))["state"] == "COMPLETED"
        assert all("cohort" not in body for org in rig.nodes for body in rig.receipts(org))
    finally:
        released.set()
    await rig.until(lambda: all(len(rig.receipts(org)) == 4 for org in rig.nodes), timeout_s=60)
    assert all("cohort" in body for org in rig.nodes for body in rig.receipts(org))
