"""The node's journal: one SQLite file that outlives every process of the node.

Rules:
1. One dedicated thread owns the only connection; work is a function that takes it and runs in one `BEGIN IMMEDIATE`
   transaction, so that two decisions about one grant can never interleave.
2. `synchronous=FULL` with a write-ahead log: what `run` or `transact` returned survives power loss.
3. A journal that cannot be written stops the node's work with `JOURNAL_UNWRITABLE`; nothing goes on from memory.
4. Callbacks given to `after_commit` run once the transaction is on disk, and never if it failed.

Every capability defines its tables on `metadata`, names prefixed by the capability.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, MetaData, Table, Text, create_engine, event, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from comity.observability import scope
from comity.wire.errors import ComityError, ErrorCode

T = TypeVar("T")

metadata = MetaData()

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 5_000
PENDING_MAX = 10_000

# SQLite's primary result codes that mean "the file cannot take this": full disk, I/O error, read-only, cannot open.
_UNWRITABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


_marks = Table("journal_marks", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))


def mark(conn: Connection, name: str) -> str | None:
    """Return what was noted of this journal under `name`."""
    found = conn.execute(select(_marks.c.value).where(_marks.c.name == name)).scalar_one_or_none()
    return None if found is None else str(found)


def set_mark(conn: Connection, name: str, value: str) -> None:
    """Note something of this journal, in place of what was noted before."""
    clear_mark(conn, name)
    conn.execute(_marks.insert().values(name=name, value=value))


def clear_mark(conn: Connection, name: str) -> None:
    """Forget what was noted under `name`."""
    conn.execute(_marks.delete().where(_marks.c.name == name))


class Journal:
    """The node's only database. Open with `Journal.open(path)`, end with `close()`."""

    def __init__(self, path: Path) -> None:
        """Open or create the file at `path` (mode 0600). Raises `JOURNAL_UNWRITABLE`."""
        self.path = path
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._callbacks: list[Callable[[], None]] = []
        self._pending = 0
        self._closed = False
        try:
            self._thread.submit(self._open).result()
        except BaseException:  # the thread must not outlive a journal that did not open
            self._thread.shutdown()
            raise

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Return the journal at `path`, created if absent. Raises `JOURNAL_UNWRITABLE`."""
        return cls(path)

    def _open(self) -> None:
        try:
            self.path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the journal's file cannot be opened") from error
        self._engine = create_engine(
            f"sqlite:///{self.path}",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1_000},
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin_immediate)
        self._guarded(self._check_version)

    def _check_version(self, conn: Connection) -> None:
        found = int(conn.exec_driver_sql("PRAGMA user_version").scalar_one())
        if found > SCHEMA_VERSION:
            raise ComityError(ErrorCode.UNSUPPORTED, "the journal was written by a newer release", version=found)
        conn.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def create_all(self) -> None:
        """Create the tables that are missing; call once, after every capability is imported."""
        self.transact(metadata.create_all)

    async def run(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in one transaction on the journal's thread and return its result once it is on disk.

        Cancelling the caller does not undo the transaction: it was either never begun or runs to its end.

        Raises:
            ComityError: `JOURNAL_UNWRITABLE` if the file takes no writes; `BUSY` beyond `PENDING_MAX` waiting calls;
                and whatever `fn` raises, after a rollback.
        """
        return await asyncio.wrap_future(self._submit(fn))

    def transact(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` like `run`, waiting for it; for start-up, tests and other threads, never inside `fn` itself."""
        return self._submit(fn).result()

    def after_commit(self, conn: Connection, callback: Callable[[], None]) -> None:
        """Call `callback` on the journal's thread once the transaction of `conn`, now open, is on disk."""
        assert conn.in_transaction(), "after_commit belongs inside a transaction"
        self._callbacks.append(callback)

    def close(self) -> None:
        """Finish what waits, then close the file. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._thread.submit(self._engine.dispose).result()
        self._thread.shutdown()

    def _submit(self, fn: Callable[[Connection], T]) -> concurrent.futures.Future[T]:
        if self._closed:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the journal is closed")
        if self._pending >= PENDING_MAX:
            raise ComityError(ErrorCode.BUSY, "too much waits for the journal")
        self._pending += 1
        return self._thread.submit(self._counted, scope.bound(fn))

    def _counted(self, fn: Callable[[Connection], T]) -> T:
        self._pending -= 1
        return self._guarded(fn)

    def _guarded(self, fn: Callable[[Connection], T]) -> T:
        self._callbacks = []
        try:
            with self._engine.begin() as conn:
                result = fn(conn)
        except DatabaseError as error:
            self._callbacks = []
            raise _translated(error) from error
        except BaseException:  # whatever it was, its callbacks must not run
            self._callbacks = []
            raise
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            # A loop that was closed meanwhile needs no waking; the rows are on disk and the next start reads them.
            with contextlib.suppress(RuntimeError):
                callback()
        return result


def _translated(error: DatabaseError) -> Exception:
    """Return `JOURNAL_UNWRITABLE` for what a disk does to us, and the error itself for our own mistakes."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if isinstance(code, int) and code & 0xFF in _UNWRITABLE:
        return ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the journal's disk is full, broken or read-only")
    if isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ComityError(ErrorCode.JOURNAL_UNWRITABLE, "another process holds the journal")
    if isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the journal's file is damaged")
    return error


def _configure(connection: Any, _record: Any) -> None:
    """Set what the rules above promise, on each new SQLite connection."""
    connection.isolation_level = None  # the driver must not begin transactions by itself
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "trusted_schema = OFF",
        "journal_size_limit = 16777216",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")
