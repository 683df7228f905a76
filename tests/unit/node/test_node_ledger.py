"""Proofs against what was expected, checkpoints against each other."""

from __future__ import annotations

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.ledger.store import EntryState, LedgerStore, Proof, Seen, read_hashes

KEYS = OrgKeys.generate()
STATEMENTS = [
    sign_statement(KEYS, kind="receipt", consortium="demo", issuer="hospital-a", body={"number": number})
    for number in range(7)
]
LEAVES = [merkle.leaf_hash(statement.to_bytes()) for statement in STATEMENTS]


def proof(index: int, size: int, *, of: int | None = None) -> Proof:
    leaves = LEAVES[:size]
    digest = STATEMENTS[index if of is None else of].digest
    return Proof(digest, index, tuple(merkle.inclusion_proof(leaves, index)), size, merkle.root(leaves))


def seen(size: int, root: bytes | None = None) -> Seen:
    return Seen(size, root or merkle.root(LEAVES[:size]), f"note of {size}")


@pytest.fixture
def store() -> LedgerStore:
    return LedgerStore()


def test_expected_then_proved(journal, store) -> None:
    journal.transact(lambda conn: store.expect(conn, STATEMENTS[3]))
    assert journal.transact(lambda conn: store.unproved(conn, 10)) == [STATEMENTS[3].digest]
    assert journal.transact(lambda conn: store.prove(conn, proof(3, 7))) is EntryState.INCLUDED
    assert journal.transact(lambda conn: store.prove(conn, proof(3, 5))) is EntryState.INCLUDED
    assert journal.transact(lambda conn: store.unproved(conn, 10)) == []
    journal.transact(store.check)


def test_proved_before_it_was_expected(journal, store) -> None:
    assert journal.transact(lambda conn: store.prove(conn, proof(2, 7))) is EntryState.UNCLAIMED
    journal.transact(lambda conn: store.expect(conn, STATEMENTS[2]))
    assert journal.transact(lambda conn: store.state_of(conn, STATEMENTS[2].digest)) is EntryState.INCLUDED


@pytest.mark.parametrize("proof_first", [False, True])
def test_a_proof_of_another_leaf_raises_the_alarm(journal, store, proof_first) -> None:
    forged = proof(4, 7, of=1)
    steps = [lambda conn: store.expect(conn, STATEMENTS[1]), lambda conn: store.prove(conn, forged)]
    for step in reversed(steps) if proof_first else steps:
        journal.transact(step)
    assert journal.transact(lambda conn: store.state_of(conn, STATEMENTS[1].digest)) is EntryState.BROKEN
    with pytest.raises(ComityError) as refused:
        journal.transact(store.check)
    assert refused.value.code is ErrorCode.LEDGER_INVALID


def test_a_refused_statement_is_expected_no_more(journal, store) -> None:
    for statement in STATEMENTS[:2]:
        journal.transact(lambda conn, statement=statement: store.expect(conn, statement))
    journal.transact(lambda conn: store.prove(conn, proof(0, 7)))
    for statement in STATEMENTS[:2]:
        journal.transact(lambda conn, statement=statement: store.forget(conn, statement.to_bytes()))
    assert journal.transact(store.counts) == {"included": 1}


def test_kinds_that_never_get_there_are_not_expected(journal, store) -> None:
    progress = sign_statement(KEYS, kind="progress", consortium="demo", issuer="hospital-a", body={})
    journal.transact(lambda conn: store.expect(conn, progress))
    assert journal.transact(store.counts) == {}


def test_checkpoints_are_compared_in_a_chain(journal, store) -> None:
    assert not journal.transact(lambda conn: store.see(conn, seen(2)))
    assert journal.transact(lambda conn: store.see(conn, seen(5)))
    assert journal.transact(lambda conn: store.see(conn, seen(7)))
    assert journal.transact(store.newest).size == 2
    assert compared(journal, store) == [2, 5, 7]
    assert journal.transact(store.newest).size == 7
    assert journal.transact(lambda conn: store.see(conn, seen(1)))  # late, and smaller than all
    assert compared(journal, store) == [1, 2]
    assert journal.transact(lambda conn: store.see(conn, seen(9)))
    assert journal.transact(lambda conn: store.see(conn, seen(3)))
    assert compared(journal, store) == [2, 3, 5, 7, 9]  # all between, or a fork could hide there
    assert compared(journal, store) == []


def test_many_checkpoints_are_compared_some_at_a_time(journal, store, monkeypatch) -> None:
    monkeypatch.setattr("comity_node.ledger.store.COMPARED_AT_ONCE", 4)
    for size in range(1, 9):
        journal.transact(lambda conn, size=size: store.see(conn, seen(size)))
    assert [compared(journal, store) for _ in range(4)] == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8], []]


def compared(journal, store) -> list[int]:
    found = journal.transact(store.to_compare)
    journal.transact(lambda conn: store.consistent(conn, found))
    return [each.size for each in found]


def test_two_roots_of_one_size_are_a_fork(journal, store) -> None:
    journal.transact(lambda conn: store.see(conn, seen(4)))
    journal.transact(lambda conn: store.see(conn, seen(4, bytes(32))))
    assert journal.transact(store.alarms) == ["two checkpoints of one size"]
    with pytest.raises(ComityError, match="LEDGER_INVALID"):
        journal.transact(store.check)


def test_old_checkpoints_are_forgotten(journal, store, monkeypatch) -> None:
    monkeypatch.setattr("comity_node.ledger.store.CHECKPOINTS_KEPT", 3)
    for size in range(1, 8):
        journal.transact(lambda conn, size=size: store.see(conn, seen(size)))
    assert compared(journal, store) == [1, 2, 3, 4, 5, 6, 7]
    assert journal.transact(store.newest).size == 7
    assert journal.transact(lambda conn: conn.exec_driver_sql("SELECT count(*) FROM ledger_checkpoints").scalar()) == 3


@pytest.mark.parametrize("hashes", [[b"x" * 31], [b"x" * 33], [b"x" * 32] * 65])
def test_odd_proofs_are_refused(hashes) -> None:
    with pytest.raises(ComityError, match="MALFORMED"):
        read_hashes(hashes)
