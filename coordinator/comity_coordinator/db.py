"""The coordinator's database: one engine, transactions that may run again, and hooks that run after the commit.

Rules
1. A function given to `transact` may run several times and must be repeatable: it touches nothing but its connection.
2. Whatever has to happen outside (wake a stream, tell the workflow engine) goes through `after_commit`; a transaction
   that fails runs none of its hooks.
3. The schema is portable: text ids, canonical text for JSON, bytes, RFC 3339 text for instants, no serial ids.
4. SQLite: WAL, `synchronous=FULL` (an acknowledged message is on the disk), `BEGIN IMMEDIATE`, foreign keys on.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from comity.wire.errors import ComityError, ErrorCode

T = TypeVar("T")

metadata = MetaData()

RETRIES_MAX = 10
RETRY_BASE_S = 0.005
RETRY_CAP_S = 0.5
BUSY_TIMEOUT_MS = 5_000
SERVER_THREADS = 4
_HOOKS = "comity_after_commit"
# Serialisation failure and deadlock, as PostgreSQL and CockroachDB name them (SQL standard class 40).
_RETRY_STATES = frozenset({"40001", "40P01"})


def after_commit(conn: Connection, hook: Callable[[], None]) -> None:
    """Run `hook` once the transaction of `conn` has committed, in the database's thread; it must not raise or block."""
    hooks: list[Callable[[], None]] = conn.info[_HOOKS]
    hooks.append(hook)


def attempt(conn: Connection, fn: Callable[[], T]) -> T:
    """Run `fn` inside a savepoint: if it raises, its writes and its hooks are dropped, the transaction goes on."""
    hooks: list[Callable[[], None]] = conn.info[_HOOKS]
    before = len(hooks)
    try:
        with conn.begin_nested():
            return fn()
    except BaseException:  # whatever it was, its hooks must not run
        del hooks[before:]
        raise


def is_transient(error: DBAPIError) -> bool:
    """True if the same transaction may succeed when it runs again."""
    state = getattr(error.orig, "sqlstate", None)
    if state in _RETRY_STATES:
        return True
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


class Database:
    """An engine with the retry rule; made by `open_database`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        threads = 1 if self._sqlite else SERVER_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="comity-db")
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()

    def create_all(self) -> None:
        """Create the tables that the imported capabilities define on `metadata`."""
        metadata.create_all(self.engine)

    def transact(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in one transaction and commit it; on a conflict run the whole of it again.

        Raises:
            ComityError: `BUSY` when `RETRIES_MAX` attempts met conflicts; whatever `fn` raises otherwise.
        """
        for tries in range(RETRIES_MAX):
            try:
                with self.engine.connect() as conn:
                    hooks: list[Callable[[], None]] = []
                    conn.info[_HOOKS] = hooks
                    with conn.begin():
                        result = fn(conn)
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                pause_s = min(RETRY_CAP_S, RETRY_BASE_S * 2**tries)
                time.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter, not a secret
                continue
            for hook in hooks:
                hook()
            return result
        raise ComityError(ErrorCode.BUSY, "the database stayed contended", attempts=RETRIES_MAX)

    async def run(self, fn: Callable[[Connection], T]) -> T:
        """`transact` in the database's own thread, so that the event loop never waits for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.transact, fn)

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
        """Wait for the transaction under way and close every connection."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open `url` (sqlite:///FILE, postgresql+psycopg://…, cockroachdb+psycopg://…).

    Raises:
        ComityError: `UNSUPPORTED` for SQLite in memory, which would be another database in each thread.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return Database(create_engine(url, isolation_level="SERIALIZABLE", pool_pre_ping=True))
    if not parsed.database or parsed.database == ":memory:":
        raise ComityError(ErrorCode.UNSUPPORTED, "SQLite needs a file")
    Path(parsed.database).touch(mode=0o600)  # the files that SQLite puts beside it take its mode
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return Database(engine)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would start them deferred, and two of them deadlock.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")
