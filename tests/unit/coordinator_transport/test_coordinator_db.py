"""The retry rule, hooks after commit, savepoints, and the counter that sees other processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import db as db_module
from comity_coordinator.db import Database, after_commit, attempt, awaited, catch_up, open_database, put_off


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    opened.transact(lambda conn: conn.execute(text("CREATE TABLE t (x INTEGER)")) and None)
    yield opened
    opened.close()


def _count(database: Database) -> int:
    return int(database.transact(lambda conn: conn.execute(text("SELECT count(*) FROM t")).scalar_one()))


def _insert(conn: Any) -> None:
    conn.execute(text("INSERT INTO t VALUES (1)"))


def _conflict() -> OperationalError:
    return OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))


def test_hooks_run_after_commit_and_not_after_failure(database: Database) -> None:
    ran: list[str] = []

    def good(conn: Any) -> None:
        after_commit(conn, lambda: ran.append("good"))
        assert ran == []

    def bad(conn: Any) -> None:
        _insert(conn)
        after_commit(conn, lambda: ran.append("bad"))
        raise ComityError(ErrorCode.CONFLICT)

    database.transact(good)
    with pytest.raises(ComityError):
        database.transact(bad)
    assert (ran, _count(database)) == (["good"], 0)


def test_conflict_runs_the_whole_function_again(database: Database) -> None:
    tries, ran = [], []

    def flaky(conn: Any) -> str:
        tries.append(1)
        _insert(conn)
        after_commit(conn, lambda: ran.append(len(tries)))
        if len(tries) < 3:
            raise _conflict()
        return "done"

    assert database.transact(flaky) == "done"
    assert (len(tries), ran, _count(database)) == (3, [3], 1)


def test_conflict_for_ever_is_busy_and_other_faults_pass(database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(db_module, "RETRY_BASE_S", 0.0)
    tries = []

    def contended(conn: Any) -> None:
        tries.append(1)
        raise _conflict()

    with pytest.raises(ComityError, match="BUSY"):
        database.transact(contended)
    assert len(tries) == db_module.RETRIES_MAX
    with pytest.raises(OperationalError, match="no such table"):
        database.transact(lambda conn: conn.execute(text("SELECT * FROM missing")) and None)


def test_attempt_drops_writes_and_hooks_of_what_failed(database: Database) -> None:
    ran: list[str] = []

    def inner(conn: Any) -> None:
        _insert(conn)
        after_commit(conn, lambda: ran.append("inner"))
        raise ComityError(ErrorCode.CONFLICT)

    def outer(conn: Any) -> None:
        _insert(conn)
        after_commit(conn, lambda: ran.append("outer"))
        with pytest.raises(ComityError):
            attempt(conn, lambda: inner(conn))
        attempt(conn, lambda: _insert(conn))

    database.transact(outer)
    assert (ran, _count(database)) == (["outer"], 2)


def _values(database: Database) -> list[int]:
    return [row[0] for row in database.transact(lambda conn: conn.execute(text("SELECT x FROM t ORDER BY x")).all())]


def _put(conn: Any, key: str, value: int) -> None:
    def write(conn: Any) -> None:
        conn.execute(text("INSERT INTO t VALUES (:x)"), {"x": value})

    put_off(conn, ("row", key), value, write)


def test_what_is_put_off_is_written_once_and_last_before_the_commit(database: Database) -> None:
    def work(conn: Any) -> None:
        for value in (1, 2, 3):
            _put(conn, "a", value)
        _put(conn, "b", 9)
        assert conn.execute(text("SELECT count(*) FROM t")).scalar_one() == 0
        assert (awaited(conn, "row"), awaited(conn, "other")) == ([3, 9], [])

    database.transact(work)
    assert _values(database) == [3, 9]
    database.transact(lambda conn: None)
    assert _values(database) == [3, 9]


def test_who_catches_up_sees_it_and_it_is_not_written_again(database: Database) -> None:
    def work(conn: Any) -> int:
        _put(conn, "a", 1)
        catch_up(conn)
        assert awaited(conn, "row") == []
        return int(conn.execute(text("SELECT count(*) FROM t")).scalar_one())

    assert (database.transact(work), _values(database)) == (1, [1])


def test_what_a_failed_attempt_put_off_is_as_it_was_before(database: Database) -> None:
    def fails(conn: Any, early: bool) -> None:
        _put(conn, "a", 2)
        _put(conn, "b", 3)
        if early:
            catch_up(conn)
        raise ComityError(ErrorCode.CONFLICT)

    def work(conn: Any) -> None:
        _put(conn, "a", 1)
        for early in (False, True):
            with pytest.raises(ComityError):
                attempt(conn, lambda early=early: fails(conn, early))  # type: ignore[misc]
            assert awaited(conn, "row") == [1]

    database.transact(work)
    assert _values(database) == [1]


def test_a_transaction_that_fails_leaves_nothing_put_off_behind(database: Database) -> None:
    def work(conn: Any) -> None:
        _put(conn, "a", 1)
        raise ComityError(ErrorCode.CONFLICT)

    with pytest.raises(ComityError):
        database.transact(work)
    database.transact(lambda conn: None)
    assert _values(database) == []


def test_change_counter_sees_own_and_other_commits(database: Database, tmp_path: Path) -> None:
    first = database.change_counter()
    assert database.change_counter() == first
    database.transact(_insert)
    second = database.change_counter()
    assert second != first
    other = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    other.transact(_insert)
    other.close()
    assert database.change_counter() != second


def test_pragmas_and_memory_is_refused(database: Database) -> None:
    def read(conn: Any) -> tuple[Any, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return tuple(conn.execute(text(f"PRAGMA {name}")).scalar_one() for name in names)

    assert database.transact(read) == ("wal", 2, 1)
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ComityError, match="UNSUPPORTED"):
            open_database(url)


async def test_run_leaves_the_event_loop_free(database: Database) -> None:
    import threading

    names = await database.run(lambda conn: threading.current_thread().name)
    assert names.startswith("comity-db")


def test_the_files_are_their_owners_alone(database: Database, tmp_path: Path) -> None:
    _count(database)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("test.db*")} == {0o600}
