"""What the gauges count in the database: few short queries, each by an index or over what is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from comity_coordinator.ledger import witness_store
from comity_coordinator.ledger.store import checkpoints, pending, statements
from comity_coordinator.membership.store import members
from comity_coordinator.negotiation.store import negotiations
from comity_coordinator.training.store import runs
from comity_coordinator.transport.store import outbox

# Those with the most rows are named, the rest are summed by the gauge.
ORGS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Counts:
    """What the database says at one moment. Instants are RFC 3339 text, empty where there is none."""

    members: tuple[str, ...]
    outbox: Mapping[str, int]
    ledger_entries: int
    ledger_pending: int
    oldest_pending_at: str
    checkpoint_at: str
    unsigned_since: str
    negotiations: Mapping[str, int]
    runs: Mapping[str, int]
    runs_open: int


def read(conn: Connection) -> Counts:
    """Count everything, in one transaction."""
    head = conn.execute(
        select(checkpoints.c.size, checkpoints.c.made_at).order_by(checkpoints.c.size.desc()).limit(1)
    ).first()
    oldest = conn.execute(
        select(statements.c.appended_at)
        .join(pending, pending.c.digest == statements.c.digest)
        .order_by(pending.c.place)
        .limit(1)
    ).scalar()
    standing = select(members.c.org).where(members.c.revoked_at.is_(None)).order_by(members.c.org).limit(ORGS_MAX)
    return Counts(
        members=tuple(conn.execute(standing).scalars()),
        outbox=_grouped(conn, outbox.c.org),
        ledger_entries=0 if head is None else int(head[0]),
        ledger_pending=_count(conn, select(func.count()).select_from(pending)),
        oldest_pending_at=str(oldest or ""),
        checkpoint_at="" if head is None else str(head[1]),
        unsigned_since=_unsigned_since(conn),
        negotiations=_grouped(conn, negotiations.c.phase),
        runs=_grouped(conn, runs.c.state),
        runs_open=_count(conn, select(func.count()).select_from(runs).where(runs.c.closed.is_(False))),
    )


def _grouped(conn: Connection, column: ColumnElement[Any]) -> dict[str, int]:
    query = select(column, func.count()).group_by(column).order_by(func.count().desc()).limit(ORGS_MAX)
    return {str(row[0]): int(row[1]) for row in conn.execute(query)}


def _count(conn: Connection, query: Select[tuple[int]]) -> int:
    return int(conn.execute(query).scalar_one())


def _unsigned_since(conn: Connection) -> str:
    """Return since when witnesses were asked and nothing became final; empty if nothing waits for them.

    A checkpoint that waits too long is given up and a newer one asked for: the oldest after the last final one counts.
    """
    final, rounds = witness_store.newest_final(conn), witness_store.rounds
    after = -1 if final is None else final.size
    return str(conn.execute(select(func.min(rounds.c.asked_at)).where(rounds.c.size > after)).scalar() or "")
