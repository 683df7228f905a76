"""What retention keeps in the journal, and the rows of a run that hold data: the only SQL on both.

Orders, receipts and the run itself stay: they hold digests, counts and times, and refuse what would be done twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Column, Connection, LargeBinary, String, Table, Text, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from comity_crypto.statements import Statement
from comity_node.journal import metadata
from comity_node.training.events import LAST_EVENT
from comity_node.training.tables import copies, events, results, runs

# A deletion is planned, with its counts, before the first file goes; it is done when the statement is written.
deletions = Table(
    "retention_deletions",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("counts", Text, nullable=False),
    Column("done_at", String(20)),
    Column("statement", LargeBinary),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A closed run whose data is here still; `ended_at` is the later of what the journal knows of it."""

    run: str
    agreement: str
    ended_at: str


@dataclass(frozen=True, slots=True)
class Held:
    """What the journal holds of a run: how many events, the sealed result's file, and what was announced of it."""

    events: int
    files: tuple[str, ...]
    digests: tuple[str, ...]


def ended(conn: Connection, after: str, limit: int) -> list[Ended]:
    """Return closed runs that were not dropped, by name, those after `after`."""
    dropped = select(deletions.c.run).where(deletions.c.done_at.is_not(None))
    query = select(runs.c.run, runs.c.agreement, runs.c.prepared_at, runs.c.ended_at).where(
        runs.c.closed.is_(True), runs.c.ended_at.is_not(None), runs.c.run > after, runs.c.run.not_in(dropped)
    )
    rows = conn.execute(query.order_by(runs.c.run).limit(limit))
    return [Ended(row[0], row[1], max(row[2], row[3])) for row in rows]


def held(conn: Connection, run: str) -> Held:
    """Return what the journal holds of a run."""
    count = select(func.count()).select_from(events).where(events.c.run == run, events.c.kind != LAST_EVENT)
    found = conn.execute(select(results.c.file, results.c.statement).where(results.c.run == run)).first()
    files: tuple[str, ...] = () if found is None or found[0] is None else (str(found[0]),)
    digests: tuple[str, ...] = ()
    if found is not None:
        announced = Statement.from_bytes(bytes(found[1])).body.get("content_digest")
        digests = (str(announced),) if announced else ()
    return Held(int(conn.execute(count).scalar_one()), files, digests)


def plan(conn: Connection, run: str, counts: dict[str, int]) -> dict[str, int]:
    """Note what is about to go; return what was noted first, if an earlier attempt was cut off."""
    conn.execute(upsert(deletions).values(run=run, counts=json.dumps(counts)).on_conflict_do_nothing())
    return dict(json.loads(conn.execute(select(deletions.c.counts).where(deletions.c.run == run)).scalar_one()))


def drop(conn: Connection, run: str, now: str, statement: bytes) -> None:
    """Drop the rows that hold data, and note that all of it is gone."""
    conn.execute(delete(events).where(events.c.run == run, events.c.kind != LAST_EVENT))
    conn.execute(delete(copies).where(copies.c.run == run))
    conn.execute(delete(results).where(results.c.run == run))
    conn.execute(update(runs).where(runs.c.run == run).values(result=None))
    conn.execute(update(deletions).where(deletions.c.run == run).values(done_at=now, statement=statement))


def is_dropped(conn: Connection, run: str) -> bool:
    """True if what was held of a run is gone, or going: nothing of it is taken in any more."""
    return conn.execute(select(deletions.c.run).where(deletions.c.run == run)).first() is not None


def done(conn: Connection, limit: int) -> list[tuple[str, str, dict[str, int], bytes]]:
    """Return (run, when, counts, statement) of the newest deletions."""
    query = select(deletions.c.run, deletions.c.done_at, deletions.c.counts, deletions.c.statement)
    query = query.where(deletions.c.done_at.is_not(None)).order_by(deletions.c.done_at.desc(), deletions.c.run)
    return [(row[0], row[1], json.loads(row[2]), bytes(row[3])) for row in conn.execute(query.limit(limit))]
