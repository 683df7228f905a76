"""The retry rule against a real PostgreSQL: conflicts, deadlocks, lost connections, and what it must not hide."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import db as db_module
from comity_coordinator.db import Database, attempt, open_database


@pytest.fixture(params=["postgresql", "cockroachdb-dialect"])
def database(request: Any, databases: Any) -> Iterator[Database]:
    opened = open_database(databases.postgres_url(f"retries-{request.param}", shim=request.param != "postgresql"))
    _do(opened, "DROP TABLE IF EXISTS t", "CREATE TABLE t (x integer PRIMARY KEY, y integer)")
    _do(opened, "INSERT INTO t VALUES (1, 0), (2, 0)")
    yield opened
    opened.close()


def _do(database: Database, *statements: str) -> None:
    database.transact(lambda conn: [conn.execute(text(each)) for each in statements] and None)


def _number(conn: Connection, x: int) -> int:
    return int(conn.execute(text("SELECT y FROM t WHERE x = :x"), {"x": x}).scalar_one())


def _set(conn: Connection, x: int, y: int) -> None:
    conn.execute(text("UPDATE t SET y = :y WHERE x = :x"), {"x": x, "y": y})


def _in_threads(*calls: Any) -> list[BaseException]:
    failures: list[BaseException] = []

    def run(call: Any) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - shown to the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return failures


def test_many_writers_count_right(database: Database) -> None:
    tries = []

    def add(conn: Connection) -> None:
        tries.append(1)
        _set(conn, 1, _number(conn, 1) + 1)

    assert _in_threads(*[lambda: [database.transact(add) for _ in range(5)]] * 4) == []
    assert database.transact(lambda conn: _number(conn, 1)) == 20
    assert len(tries) > 20, "nothing conflicted, so nothing was shown"


def test_write_skew_is_not_possible(database: Database) -> None:
    both = threading.Barrier(2, timeout=10)
    met = []

    def leave(conn: Connection, mine: int) -> None:
        others = _number(conn, 1) + _number(conn, 2)
        if len(met) < 2:
            met.append(mine)
            both.wait()
        if others == 0:
            _set(conn, mine, 1)

    calls = [lambda mine=mine: database.transact(lambda conn: leave(conn, mine)) for mine in (1, 2)]
    assert _in_threads(*calls) == []
    assert database.transact(lambda conn: _number(conn, 1) + _number(conn, 2)) == 1


def test_a_deadlock_is_one_more_try(database: Database) -> None:
    both = threading.Barrier(2, timeout=10)
    tries: list[int] = []

    def cross(conn: Connection, first: int, second: int) -> None:
        tries.append(first)
        _set(conn, first, 7)
        if tries.count(first) == 1:
            both.wait()
        _set(conn, second, 7)

    calls = [lambda a=a, b=b: database.transact(lambda conn: cross(conn, a, b)) for a, b in ((1, 2), (2, 1))]
    assert _in_threads(*calls) == []
    assert len(tries) > 2


def test_a_connection_that_is_cut_before_the_commit_is_another_try(database: Database) -> None:
    tries: list[int] = []

    def cut(conn: Connection) -> None:
        tries.append(1)
        _set(conn, 1, 5)
        if len(tries) < 3:
            _kill(database, conn)
        _set(conn, 2, 5)

    database.transact(cut)
    assert len(tries) == 3
    assert database.transact(lambda conn: (_number(conn, 1), _number(conn, 2))) == (5, 5)


def test_a_connection_that_is_cut_at_the_commit_is_told_as_unknown(database: Database) -> None:
    tries: list[int] = []

    def cut(conn: Connection) -> None:
        tries.append(1)
        _set(conn, 1, 5)
        _kill(database, conn)

    with pytest.raises(ComityError, match="not known") as caught:
        database.transact(cut)
    assert (caught.value.code, len(tries)) == (ErrorCode.UNAVAILABLE, 1)


def test_a_conflict_without_end_is_busy(database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(db_module, "RETRY_BASE_S", 0.0)

    def lose(conn: Connection) -> None:
        conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(ComityError) as caught:
        database.transact(lambda conn: attempt(conn, lambda: lose(conn)))
    assert caught.value.code is ErrorCode.BUSY
    monkeypatch.setattr(db_module, "RETRIES_MAX", 10**6)
    monkeypatch.setattr(db_module, "RETRY_TIME_S", 0.2)
    with pytest.raises(ComityError, match="BUSY"):
        database.transact(lose)


def test_a_taken_value_is_tried_a_little_and_then_told(database: Database) -> None:
    tries: list[int] = []

    def insert(conn: Connection) -> None:
        tries.append(1)
        conn.execute(text("INSERT INTO t VALUES (1, 1)"))

    with pytest.raises(IntegrityError) as caught:
        database.transact(insert)
    assert 1 < len(tries) < db_module.RETRIES_MAX
    assert "Key (x)" in str(caught.value.orig)
    with pytest.raises(IntegrityError) as caught:
        database.transact(lambda conn: conn.execute(text("INSERT INTO t VALUES (:x, 9)"), {"x": 1}))
    assert "[parameters" not in str(caught.value)


def test_a_failed_statement_cannot_be_passed_over(database: Database) -> None:
    def careless(conn: Connection) -> str:
        _set(conn, 1, 5)
        try:
            conn.execute(text("SELECT * FROM missing"))
        except Exception:  # noqa: BLE001 - the defect that this test is about
            return "done"
        return "?"

    with pytest.raises(ComityError, match="passed over"):
        database.transact(careless)
    assert database.transact(lambda conn: _number(conn, 1)) == 0


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(db_module, "RETRY_TIME_S", 0.1)
    gone = open_database(f"postgresql+psycopg://nobody@/x?host={tmp_path}")
    with pytest.raises(ComityError, match="out of reach"):
        gone.transact(lambda conn: conn.execute(text("SELECT 1")))
    gone.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "postgresql+psycopg2://x/y", "sqlite+pysqlcipher:///x", "no url"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    with pytest.raises(ComityError) as caught:
        open_database(url)
    assert caught.value.code in (ErrorCode.UNSUPPORTED, ErrorCode.MALFORMED)


def _kill(database: Database, conn: Connection) -> None:
    pid = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with database.engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
