"""Which schema a database has, and how it comes to the one that this version needs.

Rules
1. Nothing runs on a schema that it does not know: one behind is brought forward or refused, one ahead is refused by
   name, unless all that is unknown only added something (`migrations/__init__.py`, rule 1).
2. Several coordinators may start at once: a lease row lets one of them change the schema, the others wait for it.
3. A text sorts by its bytes: pages of ids and the ledger's queue rely on it, so another order is refused.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Column, Connection, String, Table, delete, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import STATEMENT_TIMEOUT_MS, Database, metadata
from comity_coordinator.retries import Failure, failure

EXPAND, CONTRACT = "expand", "contract"
# Every revision of this version, oldest first, as their files say (a test compares them): Alembic is loaded to change a
# schema and not to look at it.
REVISIONS = {"0001": EXPAND, "0002": EXPAND, "0003": EXPAND, "0004": EXPAND, "0005": EXPAND, "0006": EXPAND}
LEASE_S = 600
WAIT_S = 300.0
LOOK_EVERY_S = 0.2
TRIES_MAX = 5

applied = Table(
    "schema_applied",
    metadata,
    Column("revision", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("applied_at", String(20), nullable=False),
)
lease = Table(
    "schema_lease",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(80), nullable=False),
    Column("until", String(20), nullable=False),
)
OWN = (applied, lease)
_NAME = "migration"
_EXISTS = frozenset({"42710", "42P07", "23505"})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """What a database has: revisions that this version knows, those that it still needs, and those it does not know."""

    has: tuple[str, ...]
    needs: tuple[str, ...]
    unknown: dict[str, str]


def standing(conn: Connection) -> Standing:
    """Read which revisions were applied."""
    found: dict[str, str] = {}
    if inspect(conn).has_table(applied.name):
        found = {row[0]: row[1] for row in conn.execute(select(applied.c.revision, applied.c.kind))}
    return Standing(
        tuple(each for each in REVISIONS if each in found),
        tuple(each for each in REVISIONS if each not in found),
        {each: kind for each, kind in sorted(found.items()) if each not in REVISIONS},
    )


def prepare(database: Database, *, change: bool = True) -> tuple[str, ...]:
    """Let `database` have the schema of this version; return the revisions that were applied for it.

    Args:
        change: False refuses a schema that is behind, for operators who run `comity coordinator migrate` themselves.

    Raises:
        ComityError: `UNSUPPORTED` for a schema that is ahead, or behind and not to be changed, and for a database that
            sorts text in another order; `BUSY` if another process keeps changing the schema; as `transact`.
    """
    database.transact(check_order)
    found = database.transact(standing)
    _refuse_ahead(found)
    if not found.needs:
        return ()
    if not change:
        missing = ", ".join(found.needs)
        raise ComityError(ErrorCode.UNSUPPORTED, f"the schema lacks {missing}: run `comity coordinator migrate`")
    holder = f"migration-{secrets.token_hex(8)}"
    for tries in range(1, TRIES_MAX + 1):
        try:
            database.transact(_make_own)
            break
        except DBAPIError as error:
            # PostgreSQL's "if not exists" does not see what another transaction is just about to commit.
            if getattr(error.orig, "sqlstate", None) not in _EXISTS or tries == TRIES_MAX:
                raise
    until = time.monotonic() + WAIT_S
    while not database.transact(partial(_take_lease, holder=holder)):
        if time.monotonic() > until:
            raise ComityError(ErrorCode.BUSY, "another process changes the schema")
        time.sleep(LOOK_EVERY_S)
    try:
        found = database.transact(standing)
        if found.needs:
            _upgrade(database)
            if found.has:  # a new database has nothing to tell, and `init --json` prints one object
                log.info("schema.changed", revisions=found.needs)
        return found.needs
    finally:
        database.transact(partial(_release_lease, holder=holder))


def check_order(conn: Connection) -> None:
    """Refuse a database whose text is not in the order of its bytes. Raises `UNSUPPORTED`."""
    if not conn.execute(text("SELECT 'Z' < 'a' AND 'a-b' < 'aa' AND 'a' < 'é'")).scalar_one():
        raise ComityError(
            ErrorCode.UNSUPPORTED, "the database sorts text by a language: create it with LC_COLLATE 'C', encoding UTF8"
        )


def note_applied(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
    """Keep what Alembic applied, in the transaction of the revision itself (`env.py`)."""
    revision = step.up_revision
    values = {"revision": revision.revision, "kind": revision.module.KIND, "applied_at": instants.now_text()}
    ctx.connection.execute(insert(applied).values(values))


def _refuse_ahead(found: Standing) -> None:
    contracted = [each for each, kind in found.unknown.items() if kind != EXPAND]
    if contracted or (found.unknown and found.needs):
        raise ComityError(
            ErrorCode.UNSUPPORTED,
            f"the database's schema has {', '.join(contracted or found.unknown)}, "
            f"this version knows it up to {list(REVISIONS)[-1]}: a newer version is needed",
        )
    if found.unknown:
        log.warning("schema.ahead", unknown=tuple(found.unknown), known=list(REVISIONS)[-1])


def _upgrade(database: Database) -> None:
    # Imported here: paid for only where a schema changes.
    from alembic import command
    from alembic.config import Config

    for tries in range(1, TRIES_MAX + 1):
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        try:
            with database.engine.connect() as conn:
                _limit_statements(conn, 0)
                config.attributes["connection"] = conn
                command.upgrade(config, "head")
                _limit_statements(conn, STATEMENT_TIMEOUT_MS)
            return
        except DBAPIError as error:
            database.engine.dispose()  # the limit of the connection that failed is not the others'
            if failure(error) not in (Failure.CONFLICT, Failure.LOST) or tries == TRIES_MAX:
                raise
        time.sleep(LOOK_EVERY_S * tries)


def _limit_statements(conn: Connection, timeout_ms: int) -> None:
    """Building an index may take longer than any statement of the coordinator."""
    if conn.dialect.name != "sqlite":
        conn.exec_driver_sql(f"SET statement_timeout = {timeout_ms}")
        conn.commit()


def _make_own(conn: Connection) -> None:
    for table in OWN:
        conn.execute(CreateTable(table, if_not_exists=True))


def _take_lease(conn: Connection, holder: str) -> bool:
    now = instants.now()
    until = instants.to_text(now + timedelta(seconds=LEASE_S))
    row = conn.execute(select(lease.c.holder, lease.c.until).where(lease.c.name == _NAME)).first()
    if row is None:
        conn.execute(insert(lease).values(name=_NAME, holder=holder, until=until))
        return True
    if row[0] != holder and row[1] >= instants.to_text(now):
        return False
    conn.execute(update(lease).where(lease.c.name == _NAME).values(holder=holder, until=until))
    return True


def _release_lease(conn: Connection, holder: str) -> None:
    conn.execute(delete(lease).where(lease.c.name == _NAME, lease.c.holder == holder))
