"""The tables as a backup sees them: all of one instant, a page at a time, the same on every database.

Leases and who is alive are not carried over: they are true for an instant only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, create_engine, delete, event, insert, inspect, select, tuple_
from sqlalchemy.engine import Engine

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database, metadata
from comity_coordinator.ledger import store as ledger
from comity_coordinator.membership import store as membership
from comity_coordinator.migrations import schema
from comity_coordinator.transport import store as transport
from comity_crypto.statements import Statement

PAGE = 64
# Whoever defines tables (a test compares this with the whole schema).
STORES = ("attestation", "governance", "ledger", "membership", "negotiation", "replicas", "training", "transport")
TRANSIENT = frozenset(
    {"ledger_lease", "replicas", "replica_streams", "replica_sums", *(each.name for each in schema.OWN)}
)


def tables() -> list[Table]:
    """Return the tables that a backup holds, those that others refer to first."""
    for name in STORES:
        import_module(f"comity_coordinator.{name}.store")
    import_module("comity_coordinator.ledger.witness_store")
    return [table for table in metadata.sorted_tables if table.name not in TRANSIENT]


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """Yield a connection that reads one instant and stops nobody."""
    if database.engine.dialect.name == "sqlite":
        engine = create_engine(database.engine.url, hide_parameters=True)
        event.listen(engine, "connect", _read_only)
        event.listen(engine, "begin", _begin)
        try:
            with engine.connect() as conn, conn.begin():
                yield conn
        finally:
            engine.dispose()
        return
    with _reading(database.engine) as conn, conn.begin():
        yield conn


def _reading(engine: Engine) -> Connection:
    # Deferrable: PostgreSQL waits for an instant at which reading conflicts with nobody. CockroachDB has no such word.
    deferrable = {"postgresql_deferrable": True} if engine.dialect.name == "postgresql" else {}
    return engine.connect().execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True, **deferrable)


def rows(conn: Connection, table: Table) -> Iterator[list[Any]]:
    """Yield a table's rows in the order of its key, `PAGE` in memory at a time."""
    key = list(table.primary_key.columns)
    places = [list(table.columns).index(column) for column in key]
    query, last = select(table).order_by(*key).limit(PAGE), None
    while True:  # ends with the table: each page begins behind the last one
        page = conn.execute(query if last is None else query.where(tuple_(*key) > tuple_(*last))).all()
        yield from (list(row) for row in page)
        if len(page) < PAGE:
            return
        last = [page[-1][place] for place in places]


def fill(conn: Connection, table: Table, values: Iterable[dict[str, Any]]) -> int:
    """Write rows; return how many."""
    count, source = 0, iter(values)
    while page := list(islice(source, PAGE)):  # ends with the rows
        conn.execute(insert(table), page)
        count += len(page)
    return count


def is_empty(conn: Connection) -> bool:
    """True if no table holds a row."""
    return all(conn.execute(select(*table.primary_key.columns).limit(1)).first() is None for table in tables())


def has_rows(conn: Connection) -> bool:
    """True if there are tables and one of them holds a row."""
    return inspect(conn).has_table(tables()[0].name) and not is_empty(conn)


def forget_enrolments(conn: Connection) -> list[str]:
    """Let every organisation enrol anew, its stream beginning at 1; return those that were not revoked."""
    columns = membership.members.c
    orgs = [str(row[0]) for row in conn.execute(select(columns.org).where(columns.revoked_at.is_(None)))]
    conn.execute(delete(membership.members).where(columns.revoked_at.is_(None)))
    for org in orgs:
        transport.forget(conn, org)
    return sorted(orgs)


def take_pending(conn: Connection) -> dict[str, tuple[Statement, tuple[str, ...]]]:
    """Take what waits for an index out of the log; return it in order, by digest, with who is told of it."""
    query = select(ledger.pending.c.digest, ledger.pending.c.recipients, ledger.statements.c.content).join(
        ledger.statements, ledger.statements.c.digest == ledger.pending.c.digest
    )
    taken = {
        row[0]: (Statement.from_bytes(bytes(row[2])), tuple(each for each in row[1].split(",") if each))
        for row in conn.execute(query.order_by(ledger.pending.c.place))
    }
    conn.execute(delete(ledger.statements).where(ledger.statements.c.digest.in_(select(ledger.pending.c.digest))))
    conn.execute(delete(ledger.pending))
    return taken


def check_revisions(revisions: Iterable[str]) -> None:
    """Refuse a backup of a schema that this version does not know. Raises `UNSUPPORTED`."""
    if unknown := sorted(set(revisions) - set(schema.REVISIONS)):
        raise ComityError(
            ErrorCode.UNSUPPORTED, f"the backup's schema has {unknown[0][:32]}: a newer version of Comity is needed"
        )


def _read_only(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only=ON")


def _begin(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN")
