"""The coordinator's database: one engine, transactions that may run again, and hooks that run after the commit.

Rules
1. A function given to `transact` may run several times and must be repeatable: it touches nothing but its connection.
   When it runs again, and for how long, is said in `retries.py`.
2. What a transaction would write many times over goes through `put_off`, and is written once, before the commit.
3. Whatever has to happen outside (wake a stream, tell the workflow engine) goes through `after_commit`; a transaction
   that fails runs none of its hooks.
4. The schema is portable: text ids, canonical text for JSON, bytes, RFC 3339 text for instants, no serial ids.
5. SQLite: WAL, `synchronous=FULL` (an acknowledged message is on the disk), `BEGIN IMMEDIATE`, foreign keys on.
6. PostgreSQL and CockroachDB: SERIALIZABLE; every wait has a bound, the server's for a client that vanished included.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from comity.observability import scope
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.observability import metrics
from comity_coordinator.retries import Budget, Failure, failure

T = TypeVar("T")

metadata = MetaData()

RETRIES_MAX = 20
RETRY_TIME_S = 15.0
RETRY_BASE_S = 0.005
RETRY_CAP_S = 1.0
BUSY_TIMEOUT_MS = 5_000
SERVER_THREADS = 4
# What a connection to a server waits for at most; a partition is noticed by the last one.
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 60_000
IDLE_IN_TRANSACTION_MS = 30_000
UNANSWERED_TIMEOUT_MS = 10_000
# Drivers by the database that a URL names; no others are tested.
DRIVERS = {"postgresql": "postgresql+psycopg", "cockroachdb": "cockroachdb+psycopg"}
_HOOKS = "comity_after_commit"
_PUT_OFF = "comity_put_off"
# `psycopg.pq.TransactionStatus.INERROR`; SQLite does without the driver's 10 MB.
_IN_ERROR = 3


def after_commit(conn: Connection, hook: Callable[[], None]) -> None:
    """Run `hook` once the transaction of `conn` has committed, in the database's thread; it must not raise or block."""
    hooks: list[Callable[[], None]] = conn.info[_HOOKS]
    hooks.append(scope.bound(hook))


def put_off(conn: Connection, key: tuple[str, str], value: Any, write: Callable[[Connection], None]) -> None:
    """Have `write` called once before the commit, instead of what was put off under `key`; `awaited` returns `value`.

    What asks the database itself for something that may be put off calls `catch_up` first.
    """
    conn.info[_PUT_OFF][key] = (value, write)


def awaited(conn: Connection, kind: str) -> list[Any]:
    """Return the values that are put off under a key of `kind`."""
    return [value for key, (value, _) in conn.info.get(_PUT_OFF, {}).items() if key[0] == kind]


def catch_up(conn: Connection) -> None:
    """Write now what was put off in this transaction."""
    waiting = conn.info.get(_PUT_OFF, {})
    while waiting:
        key = next(iter(waiting))
        waiting.pop(key)[1](conn)


def attempt(conn: Connection, fn: Callable[[], T]) -> T:
    """Run `fn` inside a savepoint: if it raises, its writes and its hooks are dropped, the transaction goes on."""
    hooks: list[Callable[[], None]] = conn.info[_HOOKS]
    before, waiting = len(hooks), dict(conn.info.get(_PUT_OFF, {}))
    try:
        with conn.begin_nested():
            return fn()
    except BaseException:  # whatever it was, its hooks must not run
        del hooks[before:]
        conn.info[_PUT_OFF] = waiting
        raise


class _LostAtCommitError(Exception):
    """The connection went while the commit was under way."""


class Database:
    """An engine with the retry rule; made by `open_database`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        threads = 1 if self._sqlite else SERVER_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="comity-db")
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        self._closing = threading.Event()

    def create_all(self) -> None:
        """Create the tables that the imported capabilities define on `metadata`."""
        metadata.create_all(self.engine)

    def transact(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in one transaction and commit it; on a conflict run the whole of it again.

        Raises:
            ComityError: `BUSY` when conflicts have spent the budget; `UNAVAILABLE` when the database stayed out of
                reach, or was lost at the commit; whatever `fn` raises otherwise.
        """
        began = time.perf_counter()
        budget = Budget(RETRIES_MAX, RETRY_TIME_S, RETRY_BASE_S, RETRY_CAP_S)
        while True:  # ends with the budget
            try:
                result, hooks = self._once(fn)
            except _LostAtCommitError as error:
                metrics.TRANSACTIONS_FAILED.add(Failure.LOST.value)
                detail = "the database was lost at the commit; whether it took place is not known"
                raise ComityError(ErrorCode.UNAVAILABLE, detail) from error
            except DBAPIError as error:
                why = failure(error)
                pause_s = budget.spend(why)
                (metrics.TRANSACTIONS_FAILED if pause_s is None else metrics.TRANSACTIONS_RETRIED).add(why.value)
                if pause_s is None and why is Failure.CONFLICT:
                    raise ComityError(ErrorCode.BUSY, "the database stayed contended", attempts=budget.tries) from error
                if pause_s is None and why is Failure.LOST:
                    raise ComityError(
                        ErrorCode.UNAVAILABLE, "the database is out of reach", attempts=budget.tries
                    ) from error
                if pause_s is None:
                    raise
                if self._closing.wait(pause_s):
                    raise ComityError(ErrorCode.UNAVAILABLE, "the coordinator stops") from error
                continue
            metrics.TRANSACTION_SECONDS.observe(time.perf_counter() - began)
            for hook in hooks:
                hook()
            return result

    def _once(self, fn: Callable[[Connection], T]) -> tuple[T, list[Callable[[], None]]]:
        with self.engine.connect() as conn:
            hooks: list[Callable[[], None]] = []
            conn.info[_HOOKS] = hooks
            conn.info[_PUT_OFF] = {}
            with conn.begin() as transaction:
                result = fn(conn)
                catch_up(conn)
                _refuse_failed(conn)
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if failure(error) in (Failure.LOST, Failure.UNKNOWN):
                        raise _LostAtCommitError from error
                    raise
            return result, hooks

    async def run(self, fn: Callable[[Connection], T]) -> T:
        """`transact` in the database's own thread, so that the event loop never waits for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.transact, scope.bound(fn))

    async def look(self, fn: Callable[[Connection], T]) -> T:
        """Run reads once, in the database's own thread, each for itself: at a server they conflict with nobody.

        Raises:
            DBAPIError: what the driver raises; nothing is tried again.
        """
        if self._sqlite:
            return await self.run(fn)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._look, fn)

    def _look(self, fn: Callable[[Connection], T]) -> T:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            return fn(conn)

    def change_counter(self) -> int | None:
        """Return a number that differs after any other connection's commit, another process's included.

        None where the engine has no such thing, which means: read again. SQLite's `data_version` costs microseconds.
        """
        if not self._sqlite:
            return None
        with self._watch_lock:
            return int(self._watching().execute("PRAGMA data_version").fetchone()[0])

    def peek(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]] | None:
        """Return what is committed now, at once and without a thread; for one indexed row, where microseconds count.

        None where the engine cannot: use `run`.
        """
        if not self._sqlite:
            return None
        with self._watch_lock:
            return self._watching().execute(query, values).fetchall()

    def _watching(self) -> sqlite3.Connection:
        if self._watch is None:
            self._watch = sqlite3.connect(str(self.engine.url.database), check_same_thread=False)
        return self._watch

    def close(self) -> None:
        """Wait for the transaction under way, give up those that wait to be tried again, close every connection."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open `url` (sqlite:///FILE, postgresql+psycopg://…, cockroachdb+psycopg://…); nothing is asked of a server yet.

    Raises:
        ComityError: `UNSUPPORTED` for another database or driver, and for SQLite in memory, which would be another
            database in each thread; `MALFORMED` for what is no URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Without its cause: that may quote the URL, and a URL may carry a password.
        raise ComityError(ErrorCode.MALFORMED, "the database's address is no URL") from None
    backend = parsed.get_backend_name()
    if backend in DRIVERS:
        return Database(_server_engine(parsed, DRIVERS[backend]))
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ComityError(ErrorCode.UNSUPPORTED, "SQLite, PostgreSQL and CockroachDB are supported")
    if not parsed.database or parsed.database == ":memory:":
        raise ComityError(ErrorCode.UNSUPPORTED, "SQLite needs a file")
    Path(parsed.database).touch(mode=0o600)  # the files that SQLite puts beside it take its mode
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return Database(engine)


def _server_engine(url: URL, driver: str) -> Engine:
    if url.drivername not in (url.get_backend_name(), driver):
        raise ComityError(ErrorCode.UNSUPPORTED, f"the driver is {driver}")
    waits = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": UNANSWERED_TIMEOUT_MS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = create_engine(
        url.set(drivername=driver),
        isolation_level="SERIALIZABLE",
        pool_pre_ping=True,
        pool_size=SERVER_THREADS + 1,
        hide_parameters=True,
        connect_args={name: value for name, value in waits.items() if name not in url.query},
    )
    event.listen(engine, "connect", _prepare_server)
    return engine


def _prepare_server(connection: Any, _record: Any) -> None:
    before, connection.autocommit = connection.autocommit, True
    connection.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
    connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
    connection.autocommit = before


def _refuse_failed(conn: Connection) -> None:
    """PostgreSQL answers a commit after a failed statement by undoing everything, and calls that no error."""
    info = getattr(conn.connection.dbapi_connection, "info", None)
    if getattr(info, "transaction_status", None) == _IN_ERROR:
        raise ComityError(ErrorCode.INTERNAL, "a failed statement was passed over in silence")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would start them deferred, and two of them deadlock.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")
