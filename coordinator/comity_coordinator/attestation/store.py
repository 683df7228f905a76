"""The tables of evidence: who showed which for what agreement, and who asked whom.

The bytes of evidence for a draft stand here until the agreement is final; then the ledger has them.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Index, LargeBinary, String, Table, delete, insert, select, update

from comity_coordinator.db import metadata

evidence = Table(
    "attestation_evidence",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False),
    Column("org", String(63), nullable=False),
    Column("proposal_id", String(128), nullable=False),
    Column("content", LargeBinary),  # until the ledger has it
    Index("attestation_evidence_agreement", "agreement", "org"),
    Index("attestation_evidence_proposal", "proposal_id"),
)
asks = Table(
    "attestation_asks",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False),
    Column("asker", String(63), nullable=False),
    Column("org", String(63), nullable=False),
    Column("asked_at", String(20), nullable=False),
    Index("attestation_asks_pair", "agreement", "asker", "org", "asked_at"),
)


def put(conn: Connection, digest: str, agreement: str, org: str, proposal_id: str, content: bytes | None) -> None:
    """Note that `org` showed the evidence with this digest."""
    conn.execute(
        insert(evidence).values(digest=digest, agreement=agreement, org=org, proposal_id=proposal_id, content=content)
    )


def known(conn: Connection, digest: str) -> bool:
    """Tell whether an evidence was noted."""
    return conn.execute(select(evidence.c.digest).where(evidence.c.digest == digest)).first() is not None


def drop_drafts(conn: Connection, proposal_id: str, but: str) -> None:
    """Forget what was shown for other drafts of a proposal than the agreement `but`."""
    other = (evidence.c.proposal_id == proposal_id, evidence.c.agreement != but, evidence.c.content.is_not(None))
    conn.execute(delete(evidence).where(*other))


def take_contents(conn: Connection, agreement: str) -> list[tuple[str, bytes]]:
    """Return (organisation, statement) of what was shown for an agreement, sorted; the ledger has them from now on."""
    here = (evidence.c.agreement == agreement, evidence.c.content.is_not(None))
    rows = conn.execute(select(evidence.c.org, evidence.c.content).where(*here).order_by(evidence.c.org)).all()
    conn.execute(update(evidence).where(*here).values(content=None))
    return [(row[0], bytes(row[1])) for row in rows]


def owners(conn: Connection, agreement: str, digests: tuple[str, ...]) -> list[str]:
    """Return who showed each of `digests` for an agreement, in no order; unknown ones have no owner."""
    here = (evidence.c.agreement == agreement, evidence.c.digest.in_(digests))
    return list(conn.execute(select(evidence.c.org).where(*here)).scalars())


def shown_by(conn: Connection, agreement: str) -> set[str]:
    """Return who showed evidence for an agreement: all of its parties, or nobody if its terms ask for none."""
    return set(conn.execute(select(evidence.c.org).where(evidence.c.agreement == agreement)).scalars())


def put_ask(conn: Connection, digest: str, agreement: str, asker: str, org: str, now: str) -> None:
    """Note a question."""
    conn.execute(insert(asks).values(digest=digest, agreement=agreement, asker=asker, org=org, asked_at=now))


def find_ask(conn: Connection, digest: str) -> tuple[str, str, str] | None:
    """Return (agreement, who asks, whom) of a question."""
    row = conn.execute(select(asks.c.agreement, asks.c.asker, asks.c.org).where(asks.c.digest == digest)).first()
    return None if row is None else (row[0], row[1], row[2])


def asked_since(conn: Connection, agreement: str, asker: str, org: str, since: str) -> bool:
    """Tell whether `asker` asked `org` after `since`."""
    pair = (asks.c.agreement == agreement, asks.c.asker == asker, asks.c.org == org, asks.c.asked_at > since)
    return conn.execute(select(asks.c.digest).where(*pair).limit(1)).first() is not None
