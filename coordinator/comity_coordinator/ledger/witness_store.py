"""The tables of witnessing: which checkpoints were put to the witnesses, and what they signed.

A round is one checkpoint that all witnesses are asked to cosign. Its row is unique by size, so that two coordinators on
one database never ask for two; rounds that are long over are forgotten with their cosignatures.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, String, Table, delete, insert, select
from sqlalchemy import update as sql_update

from comity_coordinator.db import metadata

LINE_CHARS_MAX = 512

rounds = Table(
    "ledger_rounds",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("asked_at", String(20), nullable=False),
    Column("final_at", String(20)),
)
cosignatures = Table(
    "ledger_cosignatures",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("org", String(63), primary_key=True),
    Column("line", String(LINE_CHARS_MAX), nullable=False),
    Column("signed_s", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Round:
    """A checkpoint that witnesses were asked to cosign; `final_at` once enough have."""

    size: int
    asked_at: str
    final_at: str | None


def newest(conn: Connection) -> Round | None:
    """Return the round that was opened last."""
    return _one(conn.execute(select(rounds).order_by(rounds.c.size.desc()).limit(1)).first())


def newest_final(conn: Connection) -> Round | None:
    """Return the newest round that became final."""
    query = select(rounds).where(rounds.c.final_at.is_not(None)).order_by(rounds.c.size.desc())
    return _one(conn.execute(query.limit(1)).first())


def of_size(conn: Connection, size: int) -> Round | None:
    """Return the round of one checkpoint."""
    return _one(conn.execute(select(rounds).where(rounds.c.size == size)).first())


def open_round(conn: Connection, size: int, now: str, kept: int) -> None:
    """Open a round; of those that are over, `kept` stay."""
    conn.execute(insert(rounds).values(size=size, asked_at=now, final_at=None))
    last = select(rounds.c.size).order_by(rounds.c.size.desc()).limit(1).offset(kept)
    oldest = conn.execute(last).scalar()
    final = newest_final(conn)
    if oldest is None or final is None:
        return
    beyond = min(int(oldest), final.size - 1)  # the newest final one is what newcomers are shown
    conn.execute(delete(cosignatures).where(cosignatures.c.size <= beyond))
    conn.execute(delete(rounds).where(rounds.c.size <= beyond))


def set_final(conn: Connection, size: int, now: str) -> None:
    """Note that a round is final."""
    conn.execute(sql_update(rounds).where(rounds.c.size == size).values(final_at=now))


def put(conn: Connection, size: int, org: str, line: str, signed_s: int) -> None:
    """Keep a witness's newest cosignature of a checkpoint."""
    conn.execute(delete(cosignatures).where(cosignatures.c.size == size, cosignatures.c.org == org))
    conn.execute(insert(cosignatures).values(size=size, org=org, line=line, signed_s=signed_s))


def lines(conn: Connection, size: int) -> list[str]:
    """Return the signature lines of one checkpoint, by organisation."""
    query = select(cosignatures.c.line).where(cosignatures.c.size == size).order_by(cosignatures.c.org)
    return list(conn.execute(query).scalars())


def all_rounds(conn: Connection) -> list[Round]:
    """Return every round that is kept, smallest first (for fsck)."""
    return [Round(int(row[0]), row[1], row[2]) for row in conn.execute(select(rounds).order_by(rounds.c.size))]


def _one(row: object) -> Round | None:
    return None if row is None else Round(int(row[0]), row[1], row[2])  # type: ignore[index]
