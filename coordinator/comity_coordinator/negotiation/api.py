"""The REST edge of negotiation: what is being negotiated and whose move it is. Read-only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.negotiation import store, view

PAGE_MAX = 100


def router(db: Database) -> APIRouter:
    """Return the routes over `db`."""
    routes = APIRouter(tags=["negotiations"])

    @routes.get("/v1/negotiations")
    async def listed(
        after: Annotated[str, Query(max_length=128)] = "",
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_MAX,
        only_open: bool = False,
    ) -> dict[str, Any]:
        """List negotiations in the order of their ids; `next` continues."""
        records = await db.run(lambda conn: store.listed(conn, after, limit, only_open))
        rows = [_summary(record) for record in records]
        return {"negotiations": rows, "next": rows[-1]["proposal_id"] if len(rows) == limit else None}

    @routes.get("/v1/negotiations/{proposal_id}")
    async def one(proposal_id: str) -> dict[str, Any]:
        """Show one negotiation with all its legs and, once there is one, its agreement's state."""
        return await db.run(lambda conn: _detail(conn, proposal_id))

    return routes


def _summary(record: store.Record) -> dict[str, Any]:
    negotiation = record.negotiation
    return {
        "proposal_id": negotiation.proposal_id,
        "revision": negotiation.revision,
        "proposer": negotiation.proposer,
        "opened_at": record.opened_at,
        "until": negotiation.until,
        "state": str(negotiation.phase),
        "agreement": negotiation.agreement or None,
    }


def _detail(conn: Connection, proposal_id: str) -> dict[str, Any]:
    record = store.by_id(conn, proposal_id)
    if record is None:
        raise ComityError(ErrorCode.NOT_FOUND, "no such negotiation")
    row = store.agreement(conn, record.negotiation.agreement) if record.negotiation.agreement else None
    return {
        **_summary(record),
        **view.update(record.negotiation),
        "proposal_digest": record.proposal_digest,
        "statement": record.statement,
        "terms": record.negotiation.meet.to_json(),
        "agreement_state": row.state if row else None,
        "agreement_statement": (row.statement or None) if row else None,
        "accepts": record.negotiation.accepts,
        "bounds": record.negotiation.bounds.to_json(),
        "superseded": [_summary(each) for each in store.superseded(conn, proposal_id)],
        "withdrawal": canonical.parse(row.withdrawal.encode()) if row and row.withdrawal else None,
    }
