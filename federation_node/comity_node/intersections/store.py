"""What an intersection keeps in the journal: the only SQL on it. A row outlives its run; it holds sizes, no data."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Integer, String, Table, select
from sqlalchemy.dialects.sqlite import insert as upsert

from comity_node.intersections.model import Party
from comity_node.journal import metadata

parties = Table(
    "intersections",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("masked", Integer, nullable=False),
    Column("compared", String(64), nullable=False),
)


def party(conn: Connection, run: str) -> Party:
    """Return what is known of this party's side of a run."""
    row = conn.execute(select(parties.c.masked, parties.c.compared).where(parties.c.run == run)).one_or_none()
    return Party() if row is None else Party(int(row.masked), str(row.compared))


def put(conn: Connection, run: str, known: Party) -> None:
    """Note what is known now."""
    values = {"masked": known.masked, "compared": known.compared}
    conn.execute(upsert(parties).values(run=run, **values).on_conflict_do_update(index_elements=["run"], set_=values))
