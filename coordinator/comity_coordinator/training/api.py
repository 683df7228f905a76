"""The REST edge of training: states, rounds, times, counts of receipts; metrics are the nodes'. Read-only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.training import store
from comity_coordinator.training.model import Run

PAGE_MAX = 100


def router(db: Database) -> APIRouter:
    """Return the routes over `db`."""
    routes = APIRouter(tags=["runs"])

    @routes.get("/v1/runs")
    async def listed(
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_MAX,
    ) -> dict[str, Any]:
        """List runs in the order of their ids; `next` continues."""
        found = await db.run(lambda conn: store.listed(conn, after, limit))
        rows = [{**_shown(run), "created_at": created_at} for created_at, run in found]
        return {"runs": rows, "next": rows[-1]["run"] if len(rows) == limit else None}

    @routes.get("/v1/runs/{run}")
    async def one(run: str) -> dict[str, Any]:
        """Show one run: who is awaited, until when, how many receipts came."""
        found = await db.run(lambda conn: store.get(conn, run))
        if found is None:
            raise ComityError(ErrorCode.NOT_FOUND, "no such run")
        return _shown(found)

    return routes


def _shown(run: Run) -> dict[str, Any]:
    return {**store.to_json(run), "awaited": list(run.awaited)}
