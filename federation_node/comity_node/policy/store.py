"""Where decisions are kept: `<home>/decisions.db`, apart from the journal so that its commits never wait for this.

Rules:
1. rows are written in batches by one thread (`log.py`); reading opens a connection of its own;
2. count, age and size are bounded: the oldest go first;
3. the file is private: inputs name datasets, columns and apps, never records.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Integer, LargeBinary, MetaData, Table, Text, create_engine, event, func
from sqlalchemy import delete as sql_delete
from sqlalchemy import insert as sql_insert
from sqlalchemy import select as sql_select
from sqlalchemy.exc import DatabaseError

from comity.wire.errors import ComityError, ErrorCode

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 5_000
PAGE_MAX = 500
INPUT_BYTES_MAX = 4 << 20
# What is removed at once when the file is too large: a share of all rows.
SHARE_REMOVED = 10

_metadata = MetaData()
_decisions = Table(
    "decisions",
    _metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("subject", Text, nullable=False, index=True),
    Column("decision", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("input", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded decision; `result` as `Decision.to_json` with `layers`, `document` what was asked."""

    at: str
    stage: str
    subject: str
    decision: str
    result: dict[str, Any]
    document: dict[str, Any]
    seq: int = 0

    @property
    def id(self) -> str:
        """How people name it."""
        return f"dec-{self.seq}"

    def to_json(self, *, with_input: bool) -> dict[str, Any]:
        """Return what the API shows."""
        shown = {"id": self.id, "at": self.at, "stage": self.stage, "subject": self.subject, "result": self.result}
        return {**shown, "input": self.document} if with_input else shown


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept."""

    rows_max: int
    size_bytes_max: int


class DecisionStore:
    """The file of decisions. Any thread may call; only one may write."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        """Open or create the file, mode 0600. Raises `JOURNAL_UNWRITABLE`, `UNSUPPORTED` for a newer release's."""
        self._bounds = bounds
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._engine = create_engine(
                f"sqlite:///{path}", pool_size=1, connect_args={"timeout": BUSY_TIMEOUT_MS / 1_000}
            )
            event.listen(self._engine, "connect", _configure)
            with self._engine.begin() as conn:
                found = int(conn.exec_driver_sql("PRAGMA user_version").scalar_one())
                if found > SCHEMA_VERSION:
                    raise ComityError(ErrorCode.UNSUPPORTED, "decisions.db was written by a newer release")
                _metadata.create_all(conn)
                conn.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, DatabaseError) as error:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "decisions.db cannot be opened") from error

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows and remove what is beyond the bounds. Raises `JOURNAL_UNWRITABLE`."""
        values = [
            {
                "at": row.at,
                "stage": row.stage,
                "subject": row.subject,
                "decision": row.decision,
                "result": json.dumps(row.result, sort_keys=True),
                "input": _packed(row.document),
            }
            for row in rows
        ]
        try:
            with self._engine.begin() as conn:
                conn.execute(sql_insert(_decisions), values)
                self._prune(conn)
        except DatabaseError as error:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "decisions.db takes no writes") from error

    def close(self) -> None:
        """Close the file; nothing is asked or written afterwards."""
        self._engine.dispose()

    def forget(self, before: str) -> None:
        """Remove what was decided before an instant. Raises `JOURNAL_UNWRITABLE`."""
        try:
            with self._engine.begin() as conn:
                conn.execute(sql_delete(_decisions).where(_decisions.c.at < before))
        except DatabaseError as error:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "decisions.db takes no writes") from error

    def find(self, seq: int) -> Row:
        """Return one decision. Raises `NOT_FOUND`."""
        rows = self._read(sql_select(_decisions).where(_decisions.c.seq == seq))
        if not rows:
            raise ComityError(ErrorCode.NOT_FOUND, "no such decision is recorded (any more)")
        return rows[0]

    def about(self, subject: str, limit: int = PAGE_MAX) -> list[Row]:
        """Return the newest decisions about a proposal, an agreement or a candidate, the newest first."""
        query = sql_select(_decisions).where(_decisions.c.subject == subject)
        return self._read(query.order_by(_decisions.c.seq.desc()).limit(min(limit, PAGE_MAX)))

    def newest(self, *, before: int | None = None, stage: str = "", decision: str = "", limit: int = 50) -> list[Row]:
        """Return a page of decisions, the newest first, those with a smaller number than `before`."""
        query = sql_select(_decisions)
        if before is not None:
            query = query.where(_decisions.c.seq < before)
        if stage:
            query = query.where(_decisions.c.stage == stage)
        if decision:
            query = query.where(_decisions.c.decision == decision)
        return self._read(query.order_by(_decisions.c.seq.desc()).limit(min(limit, PAGE_MAX)))

    def _read(self, query: Any) -> list[Row]:
        try:
            with self._engine.connect() as conn:
                found = conn.execute(query).all()
        except DatabaseError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, "decisions.db cannot be read") from error
        return [
            Row(
                at=each.at,
                stage=each.stage,
                subject=each.subject,
                decision=each.decision,
                result=json.loads(each.result),
                document=json.loads(_unpacked(each.input)),
                seq=each.seq,
            )
            for each in found
        ]

    def _prune(self, conn: Connection) -> None:
        newest = int(conn.execute(sql_select(func.max(_decisions.c.seq))).scalar_one())
        conn.execute(sql_delete(_decisions).where(_decisions.c.seq <= newest - self._bounds.rows_max))
        pages, unused, page_bytes = (
            int(conn.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - unused) * page_bytes > self._bounds.size_bytes_max:
            oldest = int(conn.execute(sql_select(func.min(_decisions.c.seq))).scalar_one())
            cut = oldest + max(1, (newest - oldest) // SHARE_REMOVED)
            conn.execute(sql_delete(_decisions).where(_decisions.c.seq < cut))


def _packed(document: dict[str, Any]) -> bytes:
    """What cannot be written as JSON was denied, and is not worth losing the log for."""
    try:
        data = json.dumps(document, sort_keys=True).encode()
    except (ValueError, TypeError, RecursionError):
        data = b'{"unreadable":true}'
    if len(data) > INPUT_BYTES_MAX:
        data = b'{"unreadable":true}'
    return zlib.compress(data, 1)


def _unpacked(data: bytes) -> bytes:
    """The file is ours, and still only so much of it is unpacked."""
    return zlib.decompressobj().decompress(data, INPUT_BYTES_MAX)


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "trusted_schema = OFF"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
