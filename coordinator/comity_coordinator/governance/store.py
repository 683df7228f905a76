"""The tables of governance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    insert,
    select,
    update,
)

from comity_coordinator.db import metadata

signatures = Table(
    "governance_signatures",
    metadata,
    Column("charter_digest", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("statement", LargeBinary, nullable=False),
)
charters = Table(
    "governance_charters",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("statement", LargeBinary, nullable=False),
)
proposals = Table(
    "governance_proposals",
    metadata,
    Column("statement_digest", String(64), primary_key=True),
    Column("charter_digest", String(64), nullable=False),
    Column("proposer", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("deadline", String(20), nullable=False),
    Column("opened_at", String(20), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Index("governance_proposals_state", "state", "deadline"),
    Index("governance_proposals_charter", "charter_digest"),
)
votes = Table(
    "governance_votes",
    metadata,
    Column("charter_digest", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("allow", Boolean, nullable=False),
    Column("statement", LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class ProposalRow:
    """A charter proposal as it is kept; `statement` is the proposer's, `state` an `Outcome`."""

    statement_digest: str
    charter_digest: str
    proposer: str
    state: str
    deadline: str
    opened_at: str
    statement: bytes


_PROPOSAL = select(
    proposals.c.statement_digest,
    proposals.c.charter_digest,
    proposals.c.proposer,
    proposals.c.state,
    proposals.c.deadline,
    proposals.c.opened_at,
    proposals.c.statement,
)


def add_signature(conn: Connection, charter_digest: str, org: str, statement: bytes) -> None:
    """Keep the first signature of `org` over this genesis draft."""
    if org not in dict(signatures_of(conn, charter_digest)):
        conn.execute(insert(signatures).values(charter_digest=charter_digest, org=org, statement=statement))


def signatures_of(conn: Connection, charter_digest: str) -> Sequence[tuple[str, bytes]]:
    """Return (org, statement) of all signatures over a genesis draft, by org."""
    rows = conn.execute(
        select(signatures.c.org, signatures.c.statement)
        .where(signatures.c.charter_digest == charter_digest)
        .order_by(signatures.c.org)
    )
    return [(row[0], bytes(row[1])) for row in rows]


def add_charter(conn: Connection, version: int, digest: str, statement: bytes) -> None:
    """Put a charter into force."""
    conn.execute(insert(charters).values(version=version, digest=digest, statement=statement))


def newest_charter(conn: Connection) -> bytes | None:
    """Return the statement of the charter in force."""
    row = conn.execute(select(charters.c.statement).order_by(charters.c.version.desc()).limit(1)).first()
    return None if row is None else bytes(row[0])


def charters_from(conn: Connection, version: int, limit: int) -> Sequence[bytes]:
    """Return statements of charters from `version` on, oldest first."""
    rows = conn.execute(
        select(charters.c.statement).where(charters.c.version >= version).order_by(charters.c.version).limit(limit)
    )
    return [bytes(row[0]) for row in rows]


def add_proposal(conn: Connection, row: ProposalRow) -> None:
    """Keep a new proposal."""
    conn.execute(
        insert(proposals).values(
            statement_digest=row.statement_digest,
            charter_digest=row.charter_digest,
            proposer=row.proposer,
            state=row.state,
            deadline=row.deadline,
            opened_at=row.opened_at,
            statement=row.statement,
        )
    )


def proposal(conn: Connection, statement_digest: str) -> ProposalRow | None:
    """Return a proposal by its statement."""
    row = conn.execute(_PROPOSAL.where(proposals.c.statement_digest == statement_digest)).first()
    return None if row is None else _row(row)


def newest_of(conn: Connection, charter_digest: str) -> ProposalRow | None:
    """Return the newest proposal of a charter: one that ended may have been put again."""
    query = _PROPOSAL.where(proposals.c.charter_digest == charter_digest)
    row = conn.execute(query.order_by(proposals.c.opened_at.desc(), proposals.c.state.desc()).limit(1)).first()
    return None if row is None else _row(row)


def in_state(conn: Connection, state: str, limit: int) -> list[ProposalRow]:
    """Return the proposals in this state, oldest first."""
    query = _PROPOSAL.where(proposals.c.state == state)
    order = (proposals.c.opened_at, proposals.c.statement_digest)
    return [_row(row) for row in conn.execute(query.order_by(*order).limit(limit))]


def set_state(conn: Connection, statement_digest: str, state: str) -> None:
    """Note how a proposal stands."""
    conn.execute(update(proposals).where(proposals.c.statement_digest == statement_digest).values(state=state))


def add_vote(conn: Connection, charter_digest: str, org: str, allow: bool, statement: bytes) -> None:
    """Keep a member's vote."""
    conn.execute(insert(votes).values(charter_digest=charter_digest, org=org, allow=allow, statement=statement))


def votes_of(conn: Connection, charter_digest: str) -> list[tuple[str, bool, bytes]]:
    """Return (org, yes or no, statement) of all votes on a charter, by org."""
    query = select(votes.c.org, votes.c.allow, votes.c.statement).where(votes.c.charter_digest == charter_digest)
    return [(row[0], bool(row[1]), bytes(row[2])) for row in conn.execute(query.order_by(votes.c.org))]


def _row(row: object) -> ProposalRow:
    digest, charter, proposer, state, deadline, opened_at, statement = row  # type: ignore[misc]
    return ProposalRow(digest, charter, proposer, state, deadline, opened_at, bytes(statement))  # type: ignore[has-type]
