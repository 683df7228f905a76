"""The tables of replicas: which processes live, at which of them each stream is, and who keeps a run's sums.

Instants are compared between replicas: their clocks must agree within a second or two (`LEASE_S` is the bound).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, String, Table, bindparam, delete, insert, select, update

from comity_coordinator.db import metadata
from comity_coordinator.training import store as training
from comity_coordinator.transport import store as transport

replicas = Table(
    "replicas",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("address", String(255), nullable=False),
    Column("boot", String(64), nullable=False),
    Column("until", String(20), nullable=False),
)
streams = Table(
    "replica_streams",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("replica", String(63), nullable=False),
    Column("boot", String(64), nullable=False),
    Column("epoch", BigInteger, nullable=False),
)
sums = Table(
    "replica_sums",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("replica", String(63), nullable=False),
    Column("boot", String(64), nullable=False),
)

_EPOCH = select(streams.c.epoch).where(streams.c.org == bindparam("of_org"))
_MOVE = update(streams).where(streams.c.org == bindparam("of_org"))
_MINE = (
    select(streams.c.org, streams.c.epoch, transport.cursors.c.sent_seq)
    .join(transport.cursors, transport.cursors.c.org == streams.c.org)
    .where(streams.c.replica == bindparam("name"), streams.c.boot == bindparam("of_boot"))
)


@dataclass(frozen=True, slots=True)
class Row:
    """One replica: its name, where the others reach it (host:port), its process, and how long it counts as living."""

    name: str
    address: str
    boot: str
    until: str


def beat(conn: Connection, row: Row, *, first: bool) -> bool:
    """Say that a replica lives. The newest process of a name wins: False if that is another one (not at `first`)."""
    known = conn.execute(select(replicas.c.boot).where(replicas.c.name == row.name)).first()
    if known is None:
        if not first:
            return False
        conn.execute(insert(replicas).values(name=row.name, address=row.address, boot=row.boot, until=row.until))
        return True
    if known[0] != row.boot and not first:
        return False
    values = {"address": row.address, "boot": row.boot, "until": row.until}
    conn.execute(update(replicas).where(replicas.c.name == row.name).values(values))
    return True


def leave(conn: Connection, name: str, boot: str) -> None:
    """Forget a replica that stops, and its streams: their nodes dial anew."""
    conn.execute(delete(replicas).where(replicas.c.name == name, replicas.c.boot == boot))
    conn.execute(delete(sums).where(sums.c.replica == name, sums.c.boot == boot))


def living(conn: Connection, now: str) -> tuple[Row, ...]:
    """Return the replicas whose lease has not ended, by name."""
    rows = conn.execute(select(replicas).where(replicas.c.until >= now).order_by(replicas.c.name))
    return tuple(Row(*row._tuple()) for row in rows)


def claim(conn: Connection, org: str, name: str, boot: str) -> int:
    """Note that the stream of `org` is at a replica now; return its epoch, one more than that of the stream before."""
    known = conn.execute(_EPOCH, {"of_org": org}).first()
    if known is None:
        conn.execute(insert(streams).values(org=org, replica=name, boot=boot, epoch=1))
        return 1
    epoch = int(known[0]) + 1
    conn.execute(_MOVE.values(replica=name, boot=boot, epoch=epoch), {"of_org": org})
    return epoch


def mine(conn: Connection, name: str, boot: str) -> Mapping[str, tuple[int, int]]:
    """Return, for each organisation whose newest stream is at this process, its epoch and the newest number sent."""
    rows = conn.execute(_MINE, {"name": name, "of_boot": boot})
    return {str(row[0]): (int(row[1]), int(row[2])) for row in rows}


def keeper(conn: Connection, run: str, name: str, boot: str, now: str) -> tuple[str, str]:
    """Return which process (name, boot) keeps the state of a run's sums; the asking one, if the former is gone."""
    row = conn.execute(select(sums.c.replica, sums.c.boot).where(sums.c.run == run)).first()
    if row is not None:
        alive = select(replicas.c.name).where(
            replicas.c.name == row[0], replicas.c.boot == row[1], replicas.c.until >= now
        )
        if conn.execute(alive).first() is not None:
            return str(row[0]), str(row[1])
        conn.execute(update(sums).where(sums.c.run == run).values(replica=name, boot=boot))
    else:
        conn.execute(insert(sums).values(run=run, replica=name, boot=boot))
    return name, boot


def forget_sums(conn: Connection) -> None:
    """Drop the keepers of runs that are closed."""
    closed = select(training.runs.c.run).where(training.runs.c.closed.is_(True))
    conn.execute(delete(sums).where(sums.c.run.in_(closed)))
