"""The tables of transport: sequence numbers, ids already taken, messages that a node has not acknowledged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from comity.observability.scope import TRACEPARENT_CHARS
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
    # The step that wrote it: a message may wait for longer than its process lives, or leave by another replica.
    Column("trace", String(TRACEPARENT_CHARS)),
)


# Made once: every message asks several of these, and building an expression costs more than a database's answer.
_OF_ORG = cursors.c.org == bindparam("of_org")
_CURSOR = select(cursors.c.received_seq, cursors.c.sent_seq, cursors.c.acked_seq).where(_OF_ORG)
_SEEN = select(taken.c.seq).where(taken.c.org == bindparam("of_org"), taken.c.id == bindparam("of_id"))
_RECEIVED = update(cursors).where(_OF_ORG).values(received_seq=bindparam("seq"))
_SENT = update(cursors).where(_OF_ORG).values(sent_seq=bindparam("seq"))
_ACKED = update(cursors).where(_OF_ORG, cursors.c.acked_seq < bindparam("seq")).values(acked_seq=bindparam("seq"))
_DROP = delete(outbox).where(outbox.c.org == bindparam("of_org"), outbox.c.seq <= bindparam("up_to"))
_UNSENT = (
    select(outbox.c.seq, outbox.c.id, outbox.c.kind, outbox.c.run, outbox.c.body, outbox.c.trace)
    .where(outbox.c.org == bindparam("of_org"))
    .where(outbox.c.seq > bindparam("after"), outbox.c.seq <= bindparam("up_to"))
    .order_by(outbox.c.seq)
)
_TAKE, _APPEND = insert(taken), insert(outbox)


def ensure_cursor(conn: Connection, org: str) -> tuple[int, int, int]:
    """Return (received_seq, sent_seq, acked_seq) of `org`, made on first sight."""
    row = conn.execute(_CURSOR, {"of_org": org}).first()
    if row is None:
        conn.execute(insert(cursors).values(org=org, received_seq=0, sent_seq=0, acked_seq=0))
        return 0, 0, 0
    return int(row[0]), int(row[1]), int(row[2])


def is_taken(conn: Connection, org: str, message_id: str) -> bool:
    """True if this id of `org` was acted on (within the last `KNOWN_IDS_KEPT`)."""
    return conn.execute(_SEEN, {"of_org": org, "of_id": message_id}).first() is not None


def take(conn: Connection, org: str, message_id: str, seq: int, *, known: bool = False) -> None:
    """Record that `seq` was acted on and forget ids far behind it; a `known` id keeps its first record."""
    if not known:
        conn.execute(_TAKE, {"org": org, "id": message_id, "seq": seq})
    conn.execute(_RECEIVED, {"of_org": org, "seq": seq})
    if seq % 64 == 0:
        conn.execute(delete(taken).where(taken.c.org == org, taken.c.seq <= seq - KNOWN_IDS_KEPT))


def append(conn: Connection, org: str, message: Message) -> int:
    """Put `message` at the end of the outbox of `org`; return its number."""
    _, sent_seq, _ = ensure_cursor(conn, org)
    seq = sent_seq + 1
    conn.execute(_SENT, {"of_org": org, "seq": seq})
    conn.execute(_APPEND, _row(org, seq, message))
    return seq


def append_all(conn: Connection, messages: Mapping[str, Message]) -> None:
    """Put a message at the end of each organisation's outbox, all at once."""
    query = select(cursors.c.org, cursors.c.sent_seq).where(cursors.c.org.in_(list(messages)))
    sent = {str(org): int(seq) for org, seq in conn.execute(query)}
    for org in messages:
        if org not in sent:
            sent[org] = ensure_cursor(conn, org)[1]
    conn.execute(_SENT, [{"of_org": org, "seq": sent[org] + 1} for org in messages])
    conn.execute(_APPEND, [_row(org, sent[org] + 1, each) for org, each in messages.items()])


def acknowledge(conn: Connection, org: str, up_to_seq: int) -> None:
    """Drop what the node has journalled."""
    conn.execute(_ACKED, {"of_org": org, "seq": up_to_seq})
    conn.execute(_DROP, {"of_org": org, "up_to": up_to_seq})


def unsent(
    conn: Connection, org: str, after_seq: int, up_to_seq: int
) -> Sequence[tuple[int, str, str, str, bytes, str]]:
    """Return (seq, id, kind, run, body, trace) of the messages with after_seq < seq <= up_to_seq, in order."""
    rows = conn.execute(_UNSENT, {"of_org": org, "after": after_seq, "up_to": up_to_seq})
    return [(int(row[0]), row[1], row[2], row[3], bytes(row[4]), row[5] or "") for row in rows]


def forget(conn: Connection, org: str) -> None:
    """Start the sequences of `org` anew: a newcomer's journal is empty."""
    for table in (outbox, taken, cursors):
        conn.execute(delete(table).where(table.c.org == org))


def _row(org: str, seq: int, message: Message) -> dict[str, Any]:
    row = {"org": org, "seq": seq, "id": message.id, "kind": message.kind, "run": message.run, "body": message.body}
    return {**row, "trace": message.trace or None}
