"""The last event of a run waits for the proofs of its receipts, says what is missing, and survives a restart."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from comity_crypto import merkle
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.journal import Journal
from comity_node.ledger.store import LedgerStore, Proof
from comity_node.training import closing, store
from comity_node.training.closing import Closing
from comity_node.training.tables import COMPLETED, RunRow

KEYS = OrgKeys.generate()
RECEIPTS = [
    sign_statement(KEYS, kind="receipt", consortium="demo", issuer="a", body={"number": number}) for number in range(2)
]
LEAVES = [merkle.leaf_hash(each.to_bytes()) for each in RECEIPTS]


class Told:
    """What watchers hear."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def tell(self, run: str, kind: str, **body: object) -> None:
        self.events.append((run, kind, body))


@pytest.fixture
def journal(tmp_path):
    made = Journal.open(tmp_path / "journal.db")
    made.create_all()

    def write(conn):
        row = RunRow("run-1", "a" * 64, "a", "[]", COMPLETED, "2026-11-22T10:00:00Z", "x", None, None, True)
        store.put_run(conn, row)
        for number, receipt in enumerate(RECEIPTS):
            store.put_receipt(conn, number + 1, "run-1", receipt.to_bytes())
            LedgerStore().expect(conn, receipt)

    made.transact(write)
    yield made
    made.close()


def prove(journal, index):
    hashes = tuple(merkle.inclusion_proof(LEAVES, index))
    proof = Proof(RECEIPTS[index].digest, index, hashes, 2, merkle.root(LEAVES))
    journal.transact(lambda conn: LedgerStore().prove(conn, proof))


async def test_the_end_is_told_once_every_receipt_is_proved(journal, monkeypatch) -> None:
    monkeypatch.setattr(closing, "LOOK_AGAIN_S", 0.01)
    told = Told()
    end = Closing(SimpleNamespace(journal=journal, ledger=LedgerStore()), told)
    await end.start()  # the run is closed, and nobody was told: a process died in between
    prove(journal, 0)
    await asyncio.sleep(0.1)
    assert told.events == []
    prove(journal, 1)
    async with asyncio.timeout(5):
        while not told.events:
            await asyncio.sleep(0.01)
    assert told.events == [("run-1", "closed", {"state": "COMPLETED", "receipts": 2, "proved": 2})]
    await end.stop()


async def test_what_is_not_proved_is_said(journal, monkeypatch) -> None:
    monkeypatch.setattr(closing, "PROVED_WITHIN_S", 0.05)
    told = Told()
    end = Closing(SimpleNamespace(journal=journal, ledger=LedgerStore()), told)
    prove(journal, 1)
    end.begin("run-1", "FAILED")
    async with asyncio.timeout(5):
        while not told.events:
            await asyncio.sleep(0.01)
    assert told.events == [("run-1", "closed", {"state": "FAILED", "receipts": 2, "proved": 1})]
