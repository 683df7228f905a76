"""What a stream asks of the database for its durable messages: where it goes on, and what is to be sent."""

from __future__ import annotations

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_coordinator.transport import store
from comity_coordinator.transport.model import Message
from comity_coordinator.transport.session import Errand


def resume(conn: Connection, org: str, received_seq: int) -> int:
    """Book what a node says it has received; return the newest number that was received from it.

    Raises:
        ComityError: `CONFLICT` if the node has received more than was ever sent to it.
    """
    mine, sent_seq, _ = store.ensure_cursor(conn, org)
    if received_seq > sent_seq:
        raise ComityError(ErrorCode.CONFLICT, "the node has received more than was sent", sent_seq=sent_seq)
    store.acknowledge(conn, org, received_seq)
    return mine


def fetch(conn: Connection, asked: tuple[str, Errand]) -> list[Message]:
    """Book the ack of an errand and return the messages that it has room for."""
    org, errand = asked
    if errand.acked_seq is not None:
        store.acknowledge(conn, org, errand.acked_seq)
    if not errand.room or errand.room < 0:
        return []
    rows = store.unsent(conn, org, errand.after_seq, errand.after_seq + errand.room)
    return [Message(row[1], row[2], COORDINATOR, (), row[3], row[4], seq=row[0], trace=row[5]) for row in rows]
