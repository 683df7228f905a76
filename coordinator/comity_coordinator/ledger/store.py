"""The tables of the ledger (ledger.md section 3).

A statement's bytes are written once, when it is appended; a pending row holds its place in the queue, and all that the
sequencer needs of it, until it has an index. Tiles hold 256 hashes: tile level `t` has the nodes of tree level `8 * t`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy import update as sql_update

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import metadata
from comity_crypto.merkle import leaf_hash
from comity_crypto.statements import Statement

statements = Table(
    "ledger_statements",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("kind", String(128), nullable=False),
    Column("issuer", String(63), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("appended_at", String(20), nullable=False),
)
pending = Table(
    "ledger_pending",
    metadata,
    Column("place", String(40), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("kind", String(128), nullable=False),
    Column("issuer", String(63), nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    Column("recipients", String(8192), nullable=False),
)
entries = Table(
    "ledger_entries",
    metadata,
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    Column("kind", String(128), nullable=False),
    Index("ledger_entries_kind", "kind", "idx"),
)
tiles = Table(
    "ledger_tiles",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)
checkpoints = Table(
    "ledger_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("note", String(4096), nullable=False),
    Column("made_at", String(20), nullable=False),
)
lease = Table(
    "ledger_lease",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("until", String(20), nullable=False),
)

_SEQUENCER = "sequencer"
# A bound on the parameters of one statement, and one statement for most batches: the server keeps its plan.
ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A statement that waits for its index."""

    place: str
    digest: str
    kind: str
    issuer: str
    recipients: tuple[str, ...]
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A signed tree head."""

    size: int
    root: bytes
    note: str


def add_all(
    conn: Connection, queued: Sequence[tuple[Statement, str]], recipients: Sequence[str], now: str
) -> frozenset[str]:
    """Queue statements, each with its place; return the digests of those that were not known already.

    Nothing is read before: under SERIALIZABLE what one writer reads beside another's rows makes both run again.
    """
    if not queued:
        return frozenset()
    places = {statement.digest: place for statement, place in reversed(queued)}
    rows = {each.digest: (each.digest, each.kind, each.issuer, each.to_bytes(), now) for each, _ in queued}
    new = frozenset(_insert(conn, statements, list(rows.values()), "ON CONFLICT DO NOTHING RETURNING digest"))
    names = ",".join(recipients)
    waiting = [
        (places[digest], digest, kind, issuer, leaf_hash(content), names)
        for digest, kind, issuer, content, _ in rows.values()
        if digest in new
    ]
    _insert(conn, pending, waiting)
    return new


def _insert(conn: Connection, table: Table, rows: Sequence[tuple[Any, ...]], tail: str = "") -> list[str]:
    """Insert rows, columns in the table's order, many in one statement; return the first column that `tail` gives.

    Written out, because compiling and binding an expression costs several times what the database does with a row.
    """
    names = ", ".join(column.name for column in table.columns)
    if conn.dialect.name == "postgresql" and rows:
        # One array for each column: the driver looks for every mark in a long statement each time it is sent.
        marks = ", ".join(f"%s::{_type_of(column)}[]" for column in table.columns)
        query = f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({marks}) {tail}"  # noqa: S608 - names of ours
        result = conn.exec_driver_sql(query, tuple(array_text(each) for each in zip(*rows, strict=True)))
        return [row[0] for row in result] if tail else []
    marks = "(" + ", ".join(["?" if conn.dialect.paramstyle == "qmark" else "%s"] * len(table.columns)) + ")"
    found: list[str] = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[first : first + ROWS_AT_ONCE]
        query = f"INSERT INTO {table.name} ({names}) VALUES {', '.join([marks] * len(part))} {tail}"  # noqa: S608 - names of ours
        result = conn.exec_driver_sql(query, tuple(itertools.chain.from_iterable(part)))
        if tail:
            found.extend(row[0] for row in result)
    return found


def _type_of(column: Column[Any]) -> str:
    if isinstance(column.type, Integer):
        return "bigint"
    return "bytea" if isinstance(column.type, LargeBinary) else "text"


def array_text(values: Sequence[str | bytes | int]) -> str:
    """Return PostgreSQL's text of an array; every value is quoted."""
    texts = [
        f"\\\\x{each.hex()}" if isinstance(each, bytes) else str(each).replace("\\", "\\\\").replace('"', '\\"')
        for each in values
    ]
    return '{"' + '","'.join(texts) + '"}'


def has(conn: Connection, digest: str) -> bool:
    """True if the statement was ever appended."""
    return conn.execute(select(statements.c.digest).where(statements.c.digest == digest)).first() is not None


def content(conn: Connection, digest: str) -> bytes | None:
    """Return a statement's canonical bytes."""
    row = conn.execute(select(statements.c.content).where(statements.c.digest == digest)).first()
    return None if row is None else bytes(row[0])


def next_pending(conn: Connection, limit: int) -> list[PendingRow]:
    """Return the oldest pending statements in order, at most `limit`."""
    columns = (pending.c.place, pending.c.digest, pending.c.kind, pending.c.issuer, pending.c.recipients)
    rows = conn.execute(select(*columns, pending.c.leaf_hash).order_by(pending.c.place).limit(limit))
    return [
        PendingRow(row[0], row[1], row[2], row[3], tuple(each for each in row[4].split(",") if each), bytes(row[5]))
        for row in rows
    ]


def pending_count(conn: Connection, limit: int) -> int:
    """Return how many statements wait, counted up to `limit`."""
    return len(conn.execute(select(pending.c.place).limit(limit)).all())


def integrate(conn: Connection, first: int, rows: Iterable[PendingRow]) -> None:
    """Give `rows` the indexes from `first` on and take them off the queue."""
    batch = list(rows)
    # The database has the rows already: nothing but the place of the last one travels. What came to these places
    # meanwhile is not seen here: the transaction looks at one instant.
    upto = pending.c.place <= batch[-1].place
    place = first - 1 + func.row_number().over(order_by=pending.c.place)
    moved = select(place, pending.c.digest, pending.c.leaf_hash, pending.c.kind).where(upto)
    enter = insert(entries).from_select(["idx", "digest", "leaf_hash", "kind"], moved)
    made = conn.execute(enter, execution_options={"preserve_rowcount": True}).rowcount
    gone = conn.execute(delete(pending).where(upto)).rowcount
    if (made, gone) != (len(batch), len(batch)):
        raise ComityError(ErrorCode.LEDGER_INVALID, "the queue changed under the sequencer", expected=len(batch))


def index_of(conn: Connection, digest: str) -> int | None:
    """Return the index of a statement, or None while it has none."""
    row = conn.execute(select(entries.c.idx).where(entries.c.digest == digest)).first()
    return None if row is None else int(row[0])


def indexes_of(conn: Connection, kind: str) -> list[int]:
    """Return where statements of a kind stand, in order."""
    query = select(entries.c.idx).where(entries.c.kind == kind).order_by(entries.c.idx)
    return [int(index) for index in conn.execute(query).scalars()]


def page(conn: Connection, start: int, stop: int) -> list[tuple[int, str, bytes, bytes]]:
    """Return (index, digest, leaf hash, statement bytes) for start <= index < stop, in order."""
    rows = conn.execute(
        select(entries.c.idx, entries.c.digest, entries.c.leaf_hash, statements.c.content)
        .join(statements, statements.c.digest == entries.c.digest)
        .where(entries.c.idx >= start, entries.c.idx < stop)
        .order_by(entries.c.idx)
    )
    return [(int(row[0]), row[1], bytes(row[2]), bytes(row[3])) for row in rows]


def tile(conn: Connection, level: int, idx: int) -> bytes:
    """Return the hashes of a tile, 32 bytes each; empty if there is none."""
    row = conn.execute(select(tiles.c.hashes).where(tiles.c.level == level, tiles.c.idx == idx)).first()
    return b"" if row is None else bytes(row[0])


def change_tile(conn: Connection, level: int, idx: int, hashes: bytes) -> None:
    """Write a tile that was there before."""
    conn.execute(sql_update(tiles).where(tiles.c.level == level, tiles.c.idx == idx).values(hashes=hashes))


def add_tiles(conn: Connection, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Write new tiles (level, index, hashes), all at once."""
    _insert(conn, tiles, rows)


def newest_checkpoint(conn: Connection) -> CheckpointRow | None:
    """Return the newest tree head."""
    row = conn.execute(
        select(checkpoints.c.size, checkpoints.c.root, checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(1)
    ).first()
    return None if row is None else CheckpointRow(int(row[0]), bytes(row[1]), row[2])


def made_after(conn: Connection, size: int) -> str | None:
    """Return when the first tree head beyond a size was made."""
    found = select(checkpoints.c.made_at).where(checkpoints.c.size > size).order_by(checkpoints.c.size)
    return conn.execute(found.limit(1)).scalar()


def has_other_than(conn: Connection, kinds: Sequence[str], start: int) -> bool:
    """Tell whether an entry from `start` on is of none of these kinds."""
    found = select(entries.c.idx).where(entries.c.idx >= start, entries.c.kind.not_in(kinds))
    return conn.execute(found.limit(1)).first() is not None


def checkpoint(conn: Connection, size: int) -> CheckpointRow | None:
    """Return the tree head of one size."""
    columns = (checkpoints.c.size, checkpoints.c.root, checkpoints.c.note)
    row = conn.execute(select(*columns).where(checkpoints.c.size == size)).first()
    return None if row is None else CheckpointRow(int(row[0]), bytes(row[1]), row[2])


def all_checkpoints(conn: Connection) -> list[CheckpointRow]:
    """Return every tree head, smallest first (for fsck)."""
    rows = conn.execute(select(checkpoints.c.size, checkpoints.c.root, checkpoints.c.note).order_by(checkpoints.c.size))
    return [CheckpointRow(int(row[0]), bytes(row[1]), row[2]) for row in rows]


def put_checkpoint(conn: Connection, row: CheckpointRow, now: str) -> None:
    """Write a tree head; its size is unique, so two sequencers cannot both publish one."""
    conn.execute(insert(checkpoints).values(size=row.size, root=row.root, note=row.note, made_at=now))


def take_lease(conn: Connection, holder: str, now: str, until: str) -> bool:
    """Take or extend the sequencer's lease; False while another holds it."""
    row = conn.execute(select(lease.c.holder, lease.c.until).where(lease.c.name == _SEQUENCER)).first()
    if row is None:
        conn.execute(insert(lease).values(name=_SEQUENCER, holder=holder, until=until))
        return True
    if row[0] != holder and row[1] >= now:
        return False
    conn.execute(sql_update(lease).where(lease.c.name == _SEQUENCER).values(holder=holder, until=until))
    return True


def release_lease(conn: Connection, holder: str) -> None:
    """Give the lease back, so that a successor need not wait for its end."""
    conn.execute(delete(lease).where(lease.c.name == _SEQUENCER, lease.c.holder == holder))
