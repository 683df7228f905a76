"""The tables of governance."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Column, Connection, Integer, LargeBinary, String, Table, insert, select

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


def add_signature(conn: Connection, charter_digest: str, org: str, statement: bytes) -> None:
    """Keep the first signature of `org` over this draft."""
    if org not in dict(signatures_of(conn, charter_digest)):
        conn.execute(insert(signatures).values(charter_digest=charter_digest, org=org, statement=statement))


def signatures_of(conn: Connection, charter_digest: str) -> Sequence[tuple[str, bytes]]:
    """Return (org, statement) of all signatures over a draft, by org."""
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
