"""A journal that was restored from a backup: seen by its own receipts, recovered at the price of every open grant."""

from __future__ import annotations

import json

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.journal import mark
from comity_node.ledger.store import LedgerStore
from comity_node.moving import book as move
from comity_node.negotiation import store as negotiation
from comity_node.recovery import Recovered, Remembered, book
from comity_node.reviews import store as reviews
from comity_node.reviews.model import ReviewAsk, open_review
from comity_node.training import store
from comity_node.training.profiles import sum_store, threshold_store
from comity_node.training.tables import PREPARING, OrderRow, RunRow
from comity_node.transport import store as transport
from comity_policies.documents import Agreement, AppRef, Proposal, TrainStep
from comity_policies.terms import Terms

ORGS = ("hospital-a", "hospital-b")
NOW, LATER = "2026-11-22T10:00:00Z", "2026-11-22T10:00:01Z"
LEDGER = LedgerStore()
assert threshold_store is not None, "its tables stand in the journal"
KEYS = OrgKeys.generate()


def agreement() -> Agreement:
    step = TrainStep("fit", "hospital-a", AppRef("a" * 64, 1, "app", "us", "1"), 3, {}, 60)
    wanted = Terms.parse({"releases": 9, "egress_bytes": 1_000})
    proposal = Proposal(
        "p-1", 1, "demo", "hospital-a", "research", "t", (step,), ORGS, (), 2, (), wanted, "2099-01-01T00:00:00Z", 2
    )
    return Agreement("agr-1", "demo", "c" * 64, proposal, ORGS, wanted)


def receipt(number: int) -> bytes:
    body = {"journal_seq": number}
    signed = sign_statement(KEYS, kind="receipt", consortium="demo", issuer="hospital-b", body=body, issued_at=NOW)
    return signed.to_bytes()


def refusal(journal, act) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        journal.transact(act)
    return caught.value.code


@pytest.fixture
def lived(journal):
    """A journal in the middle of its work."""

    def write(conn):
        held = agreement()
        negotiation.add_agreement(conn, held, NOW)
        store.spend(conn, held.digest, {"rounds": 1, "uses": 1, "releases": 1})
        store.put_run(conn, RunRow("run-1", held.digest, "hospital-a", "[]", PREPARING, NOW, None, None, None, False))
        started = OrderRow(
            "run-1", 0, "d" * 64, held.digest, 1, "train", "hospital-a", "started", NOW,
            None, None, None, None, None, False,
        )  # fmt: skip
        store.start_order(conn, started)
        store.put_receipt(conn, 1, "run-1", receipt(1))
        sum_store.begin_session(conn, "run-1", "s" * 64, "k" * 64)
        for run in ("run-1", ""):
            asked = ReviewAsk("dispatch", "ab" * 32, "t", {"run": run}, (), "reviewer", 1, "2099-01-01T00:00:00Z", run)
            reviews.put(conn, open_review(asked, NOW))
        transport.append(conn, "m-1", "run.ready", "run-1", b"{}")

    journal.transact(write)
    return journal


def test_a_journal_knows_the_receipts_that_it_wrote(lived) -> None:
    known = [(1, receipt(1), True), (1, receipt(2), False), (2, receipt(2), False)]
    for number, data, expected in known:
        assert lived.transact(lambda conn, n=number, d=data: store.knows_receipt(conn, n, d)) is expected


def test_a_journal_that_is_behind_does_no_work(journal) -> None:
    journal.transact(LEDGER.check)
    journal.transact(lambda conn: LEDGER.behind(conn, "receipt 9"))
    assert refusal(journal, LEDGER.check) is ErrorCode.JOURNAL_BEHIND


def test_recovery_books_everything_open_as_spent(lived) -> None:
    lived.transact(lambda conn: LEDGER.behind(conn, "receipt 9"))
    done = lived.transact(lambda conn: book(conn, Remembered(receipt=9, received_seq=40, acked_seq=7), NOW))
    assert done == Recovered(agreements=1, runs=1, receipt=9)
    lived.transact(LEDGER.check)
    held = agreement()
    assert lived.transact(lambda conn: store.spent(conn, held.digest)) == held.limits
    run = lived.transact(lambda conn: store.find_run(conn, "run-1"))
    sessions = lived.transact(lambda conn: conn.exec_driver_sql("SELECT count(*) FROM training_sum_sessions").scalar())
    assert sessions == 0
    assert [each.ask.run for each in lived.transact(lambda conn: reviews.every(conn, open_only=True))] == [""]
    assert (run.state, run.closed, json.loads(run.error)["code"]) == ("CANCELLED", True, "JOURNAL_BEHIND")
    # Numbers go on from where others saw this node, never again from where the backup was.
    assert lived.transact(transport.position) == transport.Position(40, 7)
    assert lived.transact(transport.waiting_count) == 0
    assert lived.transact(store.next_receipt_no) == 10
    assert lived.transact(lambda conn: store.knows_receipt(conn, 9, receipt(9)))


def test_recovery_never_goes_back(lived) -> None:
    done = lived.transact(lambda conn: book(conn, Remembered(receipt=0, received_seq=0, acked_seq=0), NOW))
    assert done.receipt == 1
    assert lived.transact(store.next_receipt_no) == 2
    assert lived.transact(transport.position).sent_seq == 1


def test_what_was_said_before_a_recovery_is_not_agreed_to_again(lived) -> None:
    lived.transact(lambda conn: book(conn, Remembered(9, 40, 7), NOW))
    assert lived.transact(lambda conn: mark(conn, "recovered_at")) == NOW

    def said(at: str):
        return sign_statement(KEYS, kind="proposal", consortium="demo", issuer="hospital-b", body={}, issued_at=at)

    assert refusal(lived, lambda conn: LEDGER.check_new(conn, said(NOW))) is ErrorCode.JOURNAL_BEHIND
    lived.transact(lambda conn: LEDGER.check_new(conn, said(LATER)))


def test_another_coordinator_ends_runs_by_name_and_loses_nothing_else(lived) -> None:
    def lead(conn):
        store.put_run(
            conn, RunRow("run-2", agreement().digest, "hospital-a", "[]", "RUNNING", NOW, None, None, None, False)
        )
        proposal = agreement().proposal
        said = sign_statement(KEYS, kind="proposal", consortium="demo", issuer="hospital-a", body=proposal.to_json())
        negotiation.add_proposal(conn, proposal, said, "proposer", NOW)

    lived.transact(lead)
    spent = lived.transact(lambda conn: store.spent(conn, agreement().digest))
    moved = lived.transact(lambda conn: move(conn, "hospital-a", NOW))
    assert (sorted(moved.runs), moved.proposals) == (["run-1", "run-2"], ("p-1",))
    for name in moved.runs:
        run = lived.transact(lambda conn, name=name: store.find_run(conn, name))
        assert (run.state, run.closed, json.loads(run.error)["code"]) == ("CANCELLED", True, "COORDINATOR_CHANGED")
        events = lived.transact(lambda conn, name=name: store.list_events(conn, name, 0, 9))
        assert [kind for _, _, kind, _ in events] == ["ended", "closed"]
        assert json.loads(events[0][3])["manifest"] == [], "its lead says who took part"
    assert lived.transact(lambda conn: store.spent(conn, agreement().digest)) == spent, "what was spent stays spent"
    assert [each.ask.run for each in lived.transact(lambda conn: reviews.every(conn, open_only=True))] == [""]
    assert lived.transact(transport.waiting_count) == 1, "what waits is sent to the other coordinator"
    assert lived.transact(lambda conn: move(conn, "hospital-a", NOW)).runs == ()
