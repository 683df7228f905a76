"""What the gauges count in the journal: few short queries over what is open or few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Table, func, select

from comity_node.journal import metadata
from comity_node.reviews import store as reviews
from comity_node.training.tables import receipts, runs
from comity_node.transport import store as link_store


@dataclass(frozen=True, slots=True)
class Counts:
    """What the journal says at one moment."""

    outbox: int
    untaken: int
    reviews_open: int
    pending: int
    runs: Mapping[str, int]
    runs_open: int
    receipts_unsent: int
    ledger_size: int
    incidents: int


def read(conn: Connection) -> Counts:
    """Count everything, in one transaction."""
    by_state = select(runs.c.state, func.count()).group_by(runs.c.state)
    return Counts(
        outbox=link_store.waiting_count(conn),
        untaken=_rows(conn, metadata.tables["link_failed"]),
        reviews_open=reviews.count_open(conn),
        pending=_rows(conn, metadata.tables["negotiation_pending"]),
        runs={str(row[0]): int(row[1]) for row in conn.execute(by_state)},
        runs_open=int(
            conn.execute(select(func.count()).select_from(runs).where(runs.c.closed.is_(False))).scalar_one()
        ),
        receipts_unsent=int(
            conn.execute(select(func.count()).select_from(receipts).where(receipts.c.sent.is_(False))).scalar_one()
        ),
        ledger_size=int(conn.execute(select(func.max(metadata.tables["ledger_checkpoints"].c.size))).scalar() or 0),
        incidents=_incidents(conn),
    )


def _rows(conn: Connection, table: Table) -> int:
    return int(conn.execute(select(func.count()).select_from(table)).scalar_one())


def _incidents(conn: Connection) -> int:
    """Return how many incidents this node saw itself and nobody has acknowledged."""
    incidents = metadata.tables["ledger_incidents"]
    query = select(func.count()).select_from(incidents).where(incidents.c.org == "")
    return int(conn.execute(query.where(incidents.c.acknowledged_at.is_(None))).scalar_one())
