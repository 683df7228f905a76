"""What others can make this node keep is bounded: payloads, failed messages, proofs, apps of denied proposals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.ledger import store as ledger_store
from comity_node.ledger.store import LedgerStore, Proof
from comity_node.negotiation import apps
from comity_node.negotiation.apps import AppStore
from comity_node.training import room, store
from comity_node.training.datasets import DatasetCatalogue
from comity_node.training.room import Room
from comity_node.training.tables import ResultRow
from comity_node.transport import store as link_store
from comity_node.transport.model import Message


def test_no_work_begins_beyond_the_quota_of_payloads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(room, "COUNTED_EVERY_S", 0.0)
    found = Room(tmp_path, 100)
    found.check()
    (tmp_path / "a").write_bytes(b"x" * 60)
    found.check()
    (tmp_path / "b").write_bytes(b"x" * 40)
    with pytest.raises(ComityError) as refused:
        found.check()
    assert refused.value.code is ErrorCode.SPOOL_FULL
    (tmp_path / "a").unlink()
    found.check()


def test_only_the_newest_failed_messages_are_kept(journal, monkeypatch) -> None:
    monkeypatch.setattr(link_store, "FAILED_KEPT", 3)
    for seq in range(1, 9):
        message = Message(f"m-{seq}", seq, "unknown", "coordinator", (), "", b"{}")
        journal.transact(lambda conn, m=message: link_store.failed(conn, m, "no handler"))
    assert [each["seq"] for each in journal.transact(link_store.failures)] == [8, 7, 6]


def test_only_so_many_unclaimed_proofs_are_kept(journal, monkeypatch) -> None:
    monkeypatch.setattr(ledger_store, "UNCLAIMED_KEPT", 4)
    ledger = LedgerStore()
    for number in range(10):
        proof = Proof(f"{number:064x}", number, (), 10, b"r" * 32)
        journal.transact(lambda conn, p=proof: ledger.prove(conn, p))
    assert journal.transact(ledger.counts) == {"unclaimed": 4}


def test_a_result_that_everybody_keeps_is_not_kept_sealed(journal) -> None:
    row = ResultRow("run-1", "a" * 64, b"{}", "f" * 64, None, "2026-11-22T10:00:00Z")
    journal.transact(lambda conn: store.put_result(conn, row, ("b", "c")))
    assert journal.transact(lambda conn: store.confirm_result(conn, "run-1", "b")) is None
    assert journal.transact(lambda conn: store.confirm_result(conn, "run-1", "c")) == "f" * 64
    assert journal.transact(lambda conn: store.confirm_result(conn, "run-1", "c")) is None


def test_apps_can_be_let_go_of(tmp_path, monkeypatch) -> None:
    kept = AppStore(SimpleNamespace(settings=SimpleNamespace(apps_folder=tmp_path)))  # type: ignore[arg-type]
    digest = "ab" * 32
    (tmp_path / digest).mkdir()
    (tmp_path / f"{digest}.zip").write_bytes(b"x" * 10)
    assert kept.holds(digest)
    kept._check_room()
    monkeypatch.setattr(apps, "APPS_BYTES_MAX", 10)
    with pytest.raises(ComityError) as refused:
        kept._check_room()
    assert refused.value.code is ErrorCode.TOO_LARGE
    kept.discard(digest)
    assert not kept.holds(digest)
    assert list(tmp_path.iterdir()) == []


def test_no_columns_granted_is_not_all_of_them(tmp_path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("age,name\n1,x\n")
    catalogue = DatasetCatalogue(tmp_path)
    catalogue.add("patients", path, classification="internal")
    with pytest.raises(ComityError) as refused:
        catalogue.materialise("patients", (), tmp_path / "run")
    assert refused.value.code is ErrorCode.DATASET_COLUMNS
