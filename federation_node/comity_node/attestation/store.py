"""Evidence in the node's journal: the newest of each party for each agreement, and what this node asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    String,
    Table,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from comity_crypto.statements import Statement
from comity_node.journal import metadata

# About 6 kB each for SEV-SNP, 30 kB for quotes.
ROWS_MAX = 20_000

evidence = Table(
    "attestation_evidence",
    metadata,
    Column("agreement", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    # What it has to be bound to, and since when it cannot be older: known once it was judged here.
    Column("nonce", LargeBinary),
    Column("since", String(20)),
)
asks = Table(
    "attestation_asks",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False),
    Column("org", String(63), nullable=False),
    Column("asked_at", String(20), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One party's evidence; `nonce` and `since` once it was judged here."""

    org: str
    digest: str
    statement: Statement
    nonce: bytes | None
    since: str | None


def put_first(conn: Connection, agreement: str, statement: Statement) -> None:
    """Keep evidence for an agreement that is being signed; the first of each party counts."""
    _make_room(conn)
    conn.execute(insert(evidence).values(_values(agreement, statement)).on_conflict_do_nothing())


def put_newer(conn: Connection, agreement: str, statement: Statement, nonce: bytes, since: str) -> None:
    """Keep evidence that was judged in place of what was kept before."""
    _make_room(conn)
    values = {**_values(agreement, statement), "nonce": nonce, "since": since}
    changed = {name: values[name] for name in ("digest", "statement", "nonce", "since")}
    statement_of = insert(evidence).values(values)
    conn.execute(statement_of.on_conflict_do_update(index_elements=["agreement", "org"], set_=changed))


def set_judged(conn: Connection, agreement: str, org: str, nonce: bytes, since: str) -> None:
    """Note what evidence had to be bound to, and since when it cannot be older."""
    this = (evidence.c.agreement == agreement, evidence.c.org == org)
    conn.execute(update(evidence).where(*this).values(nonce=nonce, since=since))


def shown(conn: Connection, agreement: str) -> dict[str, Shown]:
    """Return the newest evidence of each party for an agreement."""
    rows = conn.execute(select(evidence).where(evidence.c.agreement == agreement)).all()
    return {row.org: _shown(row) for row in rows}


def every(conn: Connection, limit: int) -> list[tuple[str, str, str, str | None]]:
    """Return (agreement, organisation, digest, since) of what is kept, for people."""
    query = select(evidence.c.agreement, evidence.c.org, evidence.c.digest, evidence.c.since)
    rows = conn.execute(query.order_by(evidence.c.agreement, evidence.c.org).limit(limit)).all()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def put_ask(conn: Connection, digest: str, agreement: str, org: str, now: str, before: str) -> None:
    """Note what was asked of whom; questions from before `before` need no answer any more."""
    conn.execute(delete(asks).where(asks.c.asked_at < before))
    conn.execute(insert(asks).values(digest=digest, agreement=agreement, org=org, asked_at=now))


def find_ask(conn: Connection, digest: str) -> tuple[str, str, str] | None:
    """Return (agreement, whom, when) of a question of ours."""
    row = conn.execute(select(asks.c.agreement, asks.c.org, asks.c.asked_at).where(asks.c.digest == digest)).first()
    return None if row is None else (row[0], row[1], row[2])


def _make_room(conn: Connection) -> None:
    """Let go of the oldest where too many are kept: what is missing is asked for anew."""
    if int(conn.execute(select(func.count()).select_from(evidence)).scalar_one()) >= ROWS_MAX:
        row: ColumnElement[int] = literal_column("rowid")
        oldest = select(row).select_from(evidence).order_by(row).limit(ROWS_MAX // 100)
        conn.execute(delete(evidence).where(row.in_(oldest)))


def _values(agreement: str, statement: Statement) -> dict[str, Any]:
    return {
        "agreement": agreement,
        "org": statement.issuer,
        "digest": statement.digest,
        "statement": statement.to_bytes(),
    }


def _shown(row: Any) -> Shown:
    return Shown(row.org, row.digest, Statement.from_bytes(row.statement), row.nonce, row.since)
