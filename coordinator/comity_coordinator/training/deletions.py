"""Deletions: a party's word that it dropped what it held of a run goes into the ledger, once for each party and run.

Rules, in this order:
1. form, membership and signature (`inbound.statement`);
2. the run is known and closed, the sender is a party of it, and its agreement names this very time;
3. the same statement again changes nothing, another one is refused: a party restored from a backup deletes again, and
   its first word stands.
"""

from __future__ import annotations

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import inbound
from comity_coordinator.inbound import CharterOf, Outbox
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.training import store
from comity_coordinator.training.totals import agreement_of
from comity_coordinator.transport.model import Message
from comity_policies import deletions
from comity_policies.deletions import DELETION, Deletion

DELETION_BYTES_MAX = 16 << 10


class Deletions:
    """Takes deletions off the hub."""

    def __init__(self, charter_of: CharterOf, ledger: Ledger) -> None:
        self._charter_of = charter_of
        self._ledger = ledger

    def register(self, outbox: Outbox) -> None:
        """Handle what parties report."""
        outbox.register(DELETION, self.report)

    def report(self, conn: Connection, org: str, message: Message) -> None:
        """Enter a deletion.

        Raises:
            ComityError: `MALFORMED`; `NOT_FOUND` for an unknown run, `ILLEGAL_EVENT` for one that is not closed;
                `CONFLICT` for a second one; what `inbound.statement` and `deletions.check` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, DELETION, DELETION_BYTES_MAX)
        deletion = Deletion.from_json(said.body)
        run = store.get(conn, deletion.run)
        if run is None:
            raise ComityError(ErrorCode.NOT_FOUND, "there is no such run")
        deletions.check(deletion, org, agreement_of(conn, run))
        if not run.closed:
            raise ComityError(ErrorCode.ILLEGAL_EVENT, "the run is not closed yet")
        known = store.deletion(conn, run.run, org)
        if known == said.digest:
            return
        if known is not None:
            raise ComityError(ErrorCode.CONFLICT, "this party has said so of this run before")
        store.put_deletion(conn, run.run, org, said.digest)
        self._ledger.append(conn, said)
