"""The tables of transport: sequence numbers, ids already taken, messages that a node has not acknowledged."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Connection, LargeBinary, String, Table, delete, insert, select, update

from comity_coordinator.db import metadata
from comity_coordinator.transport.model import KNOWN_IDS_KEPT, Message

cursors = Table(
    "transport_cursors",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("received_seq", BigInteger, nullable=False),
    Column("sent_seq", BigInteger, nullable=False),
    Column("acked_seq", BigInteger, nullable=False),
)
taken = Table(
    "transport_taken",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("id", String(80), primary_key=True),
    Column("seq", BigInteger, nullable=False),
)
outbox = Table(
    "transport_outbox",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(80), nullable=False),
    Column("kind", String(80), nullable=False),
    Column("run", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)


def ensure_cursor(conn: Connection, org: str) -> tuple[int, int, int]:
    """Return (received_seq, sent_seq, acked_seq) of `org`, made on first sight."""
    row = conn.execute(
        select(cursors.c.received_seq, cursors.c.sent_seq, cursors.c.acked_seq).where(cursors.c.org == org)
    ).first()
    if row is None:
        conn.execute(insert(cursors).values(org=org, received_seq=0, sent_seq=0, acked_seq=0))
        return 0, 0, 0
    return int(row[0]), int(row[1]), int(row[2])


def is_taken(conn: Connection, org: str, message_id: str) -> bool:
    """True if this id of `org` was acted on (within the last `KNOWN_IDS_KEPT`)."""
    found = conn.execute(select(taken.c.seq).where(taken.c.org == org, taken.c.id == message_id)).first()
    return found is not None


def take(conn: Connection, org: str, message_id: str, seq: int, *, known: bool = False) -> None:
    """Record that `seq` was acted on and forget ids far behind it; a `known` id keeps its first record."""
    if not known:
        conn.execute(insert(taken).values(org=org, id=message_id, seq=seq))
    conn.execute(update(cursors).where(cursors.c.org == org).values(received_seq=seq))
    if seq % 64 == 0:
        conn.execute(delete(taken).where(taken.c.org == org, taken.c.seq <= seq - KNOWN_IDS_KEPT))


def append(conn: Connection, org: str, message: Message) -> int:
    """Put `message` at the end of the outbox of `org`; return its number."""
    _, sent_seq, _ = ensure_cursor(conn, org)
    seq = sent_seq + 1
    conn.execute(update(cursors).where(cursors.c.org == org).values(sent_seq=seq))
    conn.execute(
        insert(outbox).values(org=org, seq=seq, id=message.id, kind=message.kind, run=message.run, body=message.body)
    )
    return seq


def acknowledge(conn: Connection, org: str, up_to_seq: int) -> None:
    """Drop what the node has journalled."""
    conn.execute(
        update(cursors).where(cursors.c.org == org, cursors.c.acked_seq < up_to_seq).values(acked_seq=up_to_seq)
    )
    conn.execute(delete(outbox).where(outbox.c.org == org, outbox.c.seq <= up_to_seq))


def unsent(conn: Connection, org: str, after_seq: int, up_to_seq: int) -> Sequence[tuple[int, str, str, str, bytes]]:
    """Return (seq, id, kind, run, body) of the messages with after_seq < seq <= up_to_seq, in order."""
    rows = conn.execute(
        select(outbox.c.seq, outbox.c.id, outbox.c.kind, outbox.c.run, outbox.c.body)
        .where(outbox.c.org == org, outbox.c.seq > after_seq, outbox.c.seq <= up_to_seq)
        .order_by(outbox.c.seq)
    )
    return [(int(row[0]), row[1], row[2], row[3], bytes(row[4])) for row in rows]


def forget(conn: Connection, org: str) -> None:
    """Start the sequences of `org` anew: a newcomer's journal is empty."""
    for table in (outbox, taken, cursors):
        conn.execute(delete(table).where(table.c.org == org))
