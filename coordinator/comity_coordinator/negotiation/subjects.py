"""What the workflow engine knows a negotiation by: its proposal's id, and from the second revision on its number."""

from __future__ import annotations

from sqlalchemy import Connection

from comity_coordinator.negotiation import store
from comity_coordinator.negotiation.states import Negotiation

# No proposal's id holds this sign (`ids.name`).
_BETWEEN = "~"


def of(negotiation: Negotiation) -> str:
    """Return the subject of a negotiation."""
    return named(negotiation.proposal_id, negotiation.revision)


def named(proposal_id: str, revision: int) -> str:
    """Return the subject of a proposal's revision."""
    return proposal_id if revision == 1 else f"{proposal_id}{_BETWEEN}{revision}"


def find(conn: Connection, subject: str) -> store.Record | None:
    """Return the negotiation of a subject while its revision is the newest."""
    record = store.by_id(conn, subject.partition(_BETWEEN)[0])
    return record if record is not None and of(record.negotiation) == subject else None
