"""Version N beside N+1: on a schema that N+1 has expanded, and with words of N+1 that N has not heard of.

The whole of it with real processes is `tests/e2e/replicas/test_rolling_upgrade.py`.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, inspect, select

import comity_coordinator.app as _app  # noqa: F401 - its capabilities define their tables
from comity.v1 import exchange_pb2, replica_pb2
from comity_coordinator.db import Database, open_database
from comity_coordinator.migrations import schema
from comity_coordinator.transport import store
from comity_coordinator.transport.model import from_coordinator, from_wire
from comity_node.transport.model import read_envelope

# What N+1 adds: a nullable column to the busiest table, as `versions/` would.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, KIND = "9001", "{newest}", "expand"


def upgrade() -> None:
    op.add_column("transport_outbox", sa.Column("of_next_version", sa.String(40), nullable=True))
"""
# A field of a number that nobody uses: 500, text.
LATER = b"\xa2\x1f\x05later"
_count = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: Any, databases: Any, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(databases.postgres_url(f"rolled-{next(_count)}"))


@pytest.fixture
def both(url: str) -> Iterator[tuple[Database, Database]]:
    """Connections of N and of N+1 to one database that has the schema of N."""
    opened = (open_database(url), open_database(url))
    schema.prepare(opened[0])
    yield opened
    for each in opened:
        each.close()


def _next_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the code know one revision more, as N+1 does."""
    copied = folder / "migrations"
    shutil.copytree(Path(schema.__file__).parent, copied)
    newest = list(schema.REVISIONS)[-1]
    (copied / "versions" / "r9001_next.py").write_text(NEXT.format(newest=newest))
    monkeypatch.setattr(schema, "__file__", str(copied / "schema.py"))
    monkeypatch.setattr(schema, "REVISIONS", {**schema.REVISIONS, "9001": schema.EXPAND})


def test_the_next_version_expands_the_schema_while_this_one_works(
    both: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, nexts = both
    sent, stop = [0], threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                message = from_coordinator(f"m-{sent[0]}", "news", {"number": sent[0]})
                mine.transact(partial(store.append, org="alpha", message=message))
                sent[0] += 1
        except BaseException as error:  # noqa: BLE001 - shown to the test
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with monkeypatch.context() as patched:
            _next_version(patched, tmp_path)
            assert schema.prepare(nexts) == ("9001",)
        before = sent[0]
        for _ in range(500):  # N goes on afterwards
            if sent[0] > before + 5 or failed:
                break
            stop.wait(0.01)
    finally:
        stop.set()
        worker.join(30)
    assert failed == []
    assert sent[0] > before + 5
    counted = select(func.count()).select_from(store.outbox)
    assert mine.transact(lambda conn: conn.execute(counted).scalar_one()) == sent[0]
    assert [row[0] for row in mine.transact(lambda conn: store.unsent(conn, "alpha", 0, 3))] == [1, 2, 3]
    columns = {each["name"] for each in mine.transact(lambda conn: inspect(conn).get_columns("transport_outbox"))}
    assert "of_next_version" in columns
    assert schema.prepare(mine, change=False) == ()  # and it may start again there
    assert mine.transact(schema.standing).unknown == {"9001": schema.EXPAND}
    mine.transact(lambda conn: store.acknowledge(conn, "alpha", sent[0]))
    assert mine.transact(lambda conn: store.unsent(conn, "alpha", 0, 3)) == []


def _envelope(**values: Any) -> exchange_pb2.Envelope:
    made = exchange_pb2.Envelope(id="m-1", kind="news", body=b"{}", **values).SerializeToString()
    return exchange_pb2.Envelope.FromString(made + LATER)


def test_fields_that_a_reader_does_not_know_are_passed_over() -> None:
    of_node = from_wire(_envelope(sender="alpha", seq=1), "alpha")
    assert (of_node.id, of_node.kind, of_node.body) == ("m-1", "news", b"{}")
    of_coordinator = read_envelope(_envelope(sender="coordinator", seq=1), "alpha")
    assert (of_coordinator.id, of_coordinator.durable) == ("m-1", True)
    for frame in (exchange_pb2.ConnectRequest, exchange_pb2.ConnectResponse):
        beat = frame(heartbeat=exchange_pb2.Heartbeat(at="now")).SerializeToString()
        assert frame.FromString(beat + LATER).WhichOneof("frame") == "heartbeat"
    hint = replica_pb2.Hint(kind="outbox", subjects=["alpha"]).SerializeToString()
    assert replica_pb2.Hint.FromString(hint + LATER).kind == "outbox"
