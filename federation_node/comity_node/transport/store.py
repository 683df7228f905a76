"""The stream's part of the journal: what waits to be acknowledged, and how far both sides have come.

`link_state` survives the deletion of acknowledged rows, so that a number is never used twice; a coordinator that has
seen a higher number than `sent_seq` proves that this journal was restored from a backup (architecture.md section 4).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import metadata
from comity_node.transport.model import Message

OUTBOX_ROWS_MAX = 100_000
FAILED_KEPT = 256

_outbox = sa.Table(
    "link_outbox",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)
# The step that wrote a message, for those that belong to a trace; a table of its own, so that a journal of an earlier
# version gets it when it is opened.
_traces = sa.Table(
    "link_outbox_traces",
    metadata,
    sa.Column("seq", sa.ForeignKey(_outbox.c.seq, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("trace", sa.Text, nullable=False),
)
_state = sa.Table(
    "link_state",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_failed = sa.Table(
    "link_failed",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("failed_at", sa.Text, nullable=False),
)

_WAITING = (
    sa.select(_outbox, _traces.c.trace).outerjoin(_traces, _traces.c.seq == _outbox.c.seq).order_by(_outbox.c.seq)
)
# As text: each message asks these several times, and building an expression costs more than SQLite's answer.
_POSITION = "SELECT name, value FROM link_state"
_SET = "INSERT INTO link_state (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class Position:
    """How far the two directions have come: highest number given out, and highest number taken in."""

    sent_seq: int
    received_seq: int


def position(conn: Connection) -> Position:
    """Return both positions; 0 where nothing has happened."""
    rows = {name: int(value) for name, value in conn.exec_driver_sql(_POSITION)}
    return Position(rows.get("sent_seq", 0), rows.get("received_seq", 0))


def append(conn: Connection, message_id: str, kind: str, run: str, body: bytes, trace: str = "") -> int:
    """Number a message and keep it until it is acknowledged; returns its number. Raises `BUSY` when too many wait."""
    sent = position(conn).sent_seq
    oldest = conn.execute(sa.select(sa.func.min(_outbox.c.seq))).scalar()
    if oldest is not None and sent - int(oldest) >= OUTBOX_ROWS_MAX:
        raise ComityError(ErrorCode.BUSY, "too many messages wait for the coordinator")
    seq = sent + 1
    conn.execute(
        _outbox.insert().values(seq=seq, id=message_id, kind=kind, run=run, body=body, created_at=instants.now_text())
    )
    if trace:
        conn.execute(_traces.insert().values(seq=seq, trace=trace))
    _set(conn, "sent_seq", seq)
    return seq


def waiting(conn: Connection, after_seq: int, limit: int, sender: str) -> list[Message]:
    """Return at most `limit` unacknowledged messages above `after_seq`, in order."""
    return [
        Message(row.id, row.seq, row.kind, sender, (), row.run, row.body, trace=row.trace or "")
        for row in conn.execute(_WAITING.where(_outbox.c.seq > after_seq).limit(limit))
    ]


def waiting_count(conn: Connection) -> int:
    """Return how many messages are not acknowledged yet."""
    return int(conn.execute(sa.select(sa.func.count()).select_from(_outbox)).scalar_one())


def waiting_digests(conn: Connection) -> set[str]:
    """Return SHA-256, in hexadecimal, of the bodies that are not acknowledged yet; of a statement it is its digest."""
    return {hashlib.sha256(body).hexdigest() for body in conn.execute(sa.select(_outbox.c.body)).scalars()}


def acknowledged(conn: Connection, up_to_seq: int) -> None:
    """Forget what the coordinator has committed."""
    conn.execute(_outbox.delete().where(_outbox.c.seq <= up_to_seq))


def received(conn: Connection, seq: int) -> bool:
    """Note that number `seq` was taken in; False if it was already (then the caller must do nothing more)."""
    if position(conn).received_seq >= seq:
        return False
    _set(conn, "received_seq", seq)
    return True


def skip_to(conn: Connection, sent_seq: int, received_seq: int) -> None:
    """Go on from the coordinator's numbers in a journal that was restored; what waited was sent in another life."""
    now = position(conn)
    conn.execute(_outbox.delete())
    _set(conn, "sent_seq", max(sent_seq, now.sent_seq))
    _set(conn, "received_seq", max(received_seq, now.received_seq))


def restart(conn: Connection) -> None:
    """Begin with another coordinator: what waits is numbered from 1 on, and nothing was received from it."""
    rows = conn.execute(_WAITING).all()
    conn.execute(_outbox.delete())
    for seq, row in enumerate(rows, start=1):
        values = {"id": row.id, "kind": row.kind, "run": row.run, "body": row.body, "created_at": row.created_at}
        conn.execute(_outbox.insert().values(seq=seq, **values))
        if row.trace:
            conn.execute(_traces.insert().values(seq=seq, trace=row.trace))
    _set(conn, "sent_seq", len(rows))
    _set(conn, "received_seq", 0)


def failed(conn: Connection, message: Message, error: str) -> None:
    """Keep a message that no handler could take, for the organisation's admin; the newest `FAILED_KEPT` of them."""
    newest = sa.select(_failed.c.id).order_by(_failed.c.seq.desc()).limit(FAILED_KEPT - 1)
    conn.execute(_failed.delete().where(_failed.c.id.not_in(newest)))
    conn.execute(_failed.delete().where(_failed.c.id == message.id))
    conn.execute(
        _failed.insert().values(
            id=message.id,
            seq=message.seq,
            kind=message.kind,
            body=message.body,
            error=error,
            failed_at=instants.now_text(),
        )
    )


def failures(conn: Connection) -> list[dict[str, str | int]]:
    """Return the newest 100 messages that no handler could take, without their bodies."""
    query = sa.select(_failed.c.id, _failed.c.seq, _failed.c.kind, _failed.c.error, _failed.c.failed_at)
    return [dict(row._mapping) for row in conn.execute(query.order_by(_failed.c.seq.desc()).limit(100))]


def _set(conn: Connection, name: str, value: int) -> None:
    conn.exec_driver_sql(_SET, (name, value))


def find(conn: Connection, message_id: str) -> tuple[str, bytes] | None:
    """Return (kind, body) of a message that waits in the outbox, None if none of this id does."""
    row = conn.execute(sa.select(_outbox.c.kind, _outbox.c.body).where(_outbox.c.id == message_id)).first()
    return None if row is None else (row.kind, row.body)
