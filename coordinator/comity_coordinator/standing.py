"""What the coordinator remembers of one organisation: a node whose journal knows less was restored from a backup.

The receipt is signed by that organisation itself, so its node believes nobody else's word about it (architecture.md
section 4); the numbers only let the node's stream go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from comity_coordinator.ledger.service import Ledger
from comity_coordinator.training import store as training
from comity_coordinator.transport import store as transport


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest receipt by its number (canonical bytes, empty if none), and how far both directions have come."""

    receipt: bytes
    received_seq: int
    acked_seq: int


class Memory:
    """Reads standings."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def of(self, conn: Connection, org: str) -> Standing:
        """Return what is remembered of `org`."""
        newest = training.newest_receipt(conn, org)
        receipt = b"" if newest is None else self._ledger.statement(conn, newest).to_bytes()
        received_seq, _, acked_seq = transport.ensure_cursor(conn, org)
        return Standing(receipt, received_seq, acked_seq)
