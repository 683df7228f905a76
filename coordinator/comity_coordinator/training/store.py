"""The tables of training: runs, and how many receipts each party handed in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from comity.wire import canonical
from comity_coordinator.db import metadata
from comity_coordinator.training.model import Run, RunState

runs = Table(
    "training_runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False),
    Column("use_number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("until", String(20), nullable=False),
    Column("created_at", String(20), nullable=False),
    Column("document", Text, nullable=False),
    Index("training_runs_agreement", "agreement", "use_number", unique=True),
    Index("training_runs_open", "closed", "until"),
)
receipts = Table(
    "training_receipts",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("journal_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("run", String(64), nullable=False),
    # The order's digest if it was executed, else the receipt's own: unique either way.
    Column("executed", String(64), nullable=False),
    Column("statement", String(64), nullable=False),
    Index("training_receipts_executed", "org", "executed", unique=True),
)
# Who has said that what it held of a run is gone, by which statement.
deletions = Table(
    "training_deletions",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("statement", String(64), nullable=False),
)


def create(conn: Connection, run: Run, now: str) -> None:
    """Write a new run."""
    conn.execute(
        insert(runs).values(
            run=run.run,
            agreement=run.agreement,
            use_number=run.use,
            state=str(run.state),
            closed=run.closed,
            until=run.until,
            created_at=now,
            document=_text(run),
        )
    )


def save(conn: Connection, run: Run) -> None:
    """Write a run's new state."""
    conn.execute(
        update(runs)
        .where(runs.c.run == run.run)
        .values(state=str(run.state), closed=run.closed, until=run.until, document=_text(run))
    )


def get(conn: Connection, run: str) -> Run | None:
    """Return a run."""
    row = conn.execute(select(runs.c.document).where(runs.c.run == run)).first()
    return None if row is None else _run(row[0])


def of_agreement(conn: Connection, agreement: str) -> list[Run]:
    """Return an agreement's runs, oldest first."""
    query = select(runs.c.document).where(runs.c.agreement == agreement).order_by(runs.c.use_number)
    return [_run(row[0]) for row in conn.execute(query)]


def listed(conn: Connection, after: str, limit: int) -> list[tuple[str, Run]]:
    """Return (created at, run) in the order of their ids, those after `after`."""
    query = select(runs.c.created_at, runs.c.document).where(runs.c.run > after).order_by(runs.c.run).limit(limit)
    return [(row[0], _run(row[1])) for row in conn.execute(query)]


def open_until(conn: Connection) -> list[tuple[str, str]]:
    """Return (run, deadline) of all runs that are not closed."""
    query = select(runs.c.run, runs.c.until).where(runs.c.closed.is_(False))
    return [(row[0], row[1]) for row in conn.execute(query)]


def receipt_numbered(conn: Connection, org: str, journal_seq: int) -> str | None:
    """Return the digest of the receipt that `org` wrote under this number."""
    query = select(receipts.c.statement).where(receipts.c.org == org, receipts.c.journal_seq == journal_seq)
    row = conn.execute(query).first()
    return None if row is None else str(row[0])


def newest_receipt(conn: Connection, org: str) -> str | None:
    """Return the digest of the receipt of `org` with the largest number."""
    query = select(receipts.c.statement).where(receipts.c.org == org)
    row = conn.execute(query.order_by(receipts.c.journal_seq.desc()).limit(1)).first()
    return None if row is None else str(row[0])


def is_executed(conn: Connection, org: str, order: str) -> bool:
    """True if `org` has a receipt of a result for this order."""
    query = select(receipts.c.statement).where(receipts.c.org == org, receipts.c.executed == order)
    return conn.execute(query).first() is not None


def receipt_of_order(conn: Connection, org: str, run: str, order: str) -> str | None:
    """Return the digest of the receipt of `org` for the result of an order of `run`."""
    this = (receipts.c.org == org, receipts.c.run == run, receipts.c.executed == order)
    return conn.execute(select(receipts.c.statement).where(*this).limit(1)).scalar_one_or_none()


def put_receipt(conn: Connection, org: str, journal_seq: int, run: str, executed: str, statement: str) -> None:
    """Note a receipt's number and order."""
    conn.execute(
        insert(receipts).values(org=org, journal_seq=journal_seq, run=run, executed=executed, statement=statement)
    )


def deletion(conn: Connection, run: str, org: str) -> str | None:
    """Return the digest of the statement by which `org` said that it dropped what it held of a run."""
    query = select(deletions.c.statement).where(deletions.c.run == run, deletions.c.org == org)
    found = conn.execute(query).scalar_one_or_none()
    return None if found is None else str(found)


def put_deletion(conn: Connection, run: str, org: str, statement: str) -> None:
    """Note a deletion."""
    conn.execute(insert(deletions).values(run=run, org=org, statement=statement))


def to_json(run: Run) -> dict[str, Any]:
    """Return a run as it is kept and shown."""
    return {
        "run": run.run,
        "agreement": run.agreement,
        "use": run.use,
        "lead": run.lead,
        "parties": list(run.parties),
        "steps": list(run.steps),
        "limits": dict(run.limits),
        "limit_s": run.limit_s,
        "state": str(run.state),
        "since": run.since,
        "until": run.until,
        "ready": sorted(run.ready),
        "round": run.round,
        "rounds": run.rounds,
        "code": run.code,
        "detail": run.detail,
        "move": run.move,
        "finished": run.finished,
        "expected": dict(run.expected),
        "received": dict(run.received),
        "closed": run.closed,
        "proved": run.proved,
    }


def _text(run: Run) -> str:
    return canonical.canonical(to_json(run)).decode()


def _run(document: str) -> Run:
    value = canonical.parse(document.encode())
    return Run(
        **{
            **value,
            "parties": tuple(value["parties"]),
            "steps": tuple(value["steps"]),
            "state": RunState(value["state"]),
            "ready": frozenset(value["ready"]),
        }
    )
