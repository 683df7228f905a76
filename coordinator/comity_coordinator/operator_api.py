"""Puts the operator's API together from the capabilities' edges; `app.py` starts and stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.feed import Feed
from comity_coordinator.governance.service import charter_in_force
from comity_coordinator.ledger import api as ledger_api
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.membership import api as membership_api
from comity_coordinator.membership.api import Members
from comity_coordinator.negotiation import api as negotiation_api
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.rest import OperatorServer, build_api
from comity_coordinator.training import api as training_api
from comity_coordinator.training import store as training_store

PENDING_COUNTED_MAX = 10_000
READY_WAIT_S = 2.0


def operator_server(
    *,
    listen: str,
    token: str,
    db: Database,
    ledger: Ledger,
    feed: Feed,
    members: Members,
    revoke: Callable[[Connection, str], None],
    connected: Callable[[], frozenset[str]],
    replica: Callable[[], dict[str, Any] | None] = lambda: None,
) -> OperatorServer:
    """Return the server, bound and not yet started.

    Args:
        listen: host:port on loopback; port 0 takes a free one.
        token: the content of `<home>/api.token`.
        members, revoke: of the membership capability.
        connected: organisations whose stream is open now.
        replica: this replica's name and the others that it reaches; None for a coordinator of one process.

    Raises:
        ComityError: `FORBIDDEN` if the host is not loopback; `UNAVAILABLE` if the port is taken.
    """

    async def status() -> dict[str, Any]:
        found = await db.run(lambda conn: _status(conn, ledger))
        return {**found, "connected": sorted(connected()), "replica": replica()}

    async def ready() -> None:
        try:
            async with asyncio.timeout(READY_WAIT_S):
                await db.look(charter_in_force)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the database does not answer") from error
        except SQLAlchemyError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, "the database does not answer") from error

    routers = [
        membership_api.router(db, members, revoke, connected),
        negotiation_api.router(db),
        training_api.router(db),
        ledger_api.router(db, ledger),
    ]
    return OperatorServer(build_api(token, routers, status, feed, ready), listen)


def _status(conn: Connection, ledger: Ledger) -> dict[str, Any]:
    charter = charter_in_force(conn)
    try:
        size = ledger.head(conn)[0]
    except ComityError:
        size = 0
    return {
        "consortium": ledger.consortium,
        "charter": None
        if charter is None
        else {"version": charter.version, "digest": charter.digest, "members": list(charter.organisations)},
        "ledger": {"size": size, "pending": ledger_store.pending_count(conn, PENDING_COUNTED_MAX)},
        "open_negotiations": len(negotiation_store.open_until(conn)),
        "open_runs": len(training_store.open_until(conn)),
    }
