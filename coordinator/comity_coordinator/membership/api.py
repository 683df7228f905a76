"""The REST edge of membership: who is enrolled, and the operator's one action, `revoke` (transport only)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection

from comity.wire import ids
from comity_coordinator.db import Database
from comity_coordinator.membership.model import MemberRow

Members = Callable[[Connection], tuple[MemberRow, ...]]


def router(
    db: Database,
    members: Members,
    revoke: Callable[[Connection, str], None],
    connected: Callable[[], frozenset[str]],
) -> APIRouter:
    """Return the routes; `revoke(conn, org)` closes the transport to an organisation."""
    routes = APIRouter(prefix="/v1/members", tags=["members"])

    @routes.get("")
    async def listed() -> dict[str, Any]:
        """List the enrolled organisations."""
        rows = await db.run(members)
        here = connected()
        return {
            "members": [
                {
                    "org": row.org,
                    "title": row.title,
                    "enrolled_at": row.enrolled_at,
                    "revoked_at": row.revoked_at,
                    "connected": row.org in here,
                }
                for row in rows
            ]
        }

    @routes.post("/{org}/revoke")
    async def revoked(org: str) -> dict[str, Any]:
        """Refuse the transport to an organisation from its next message on; it stays a member of the charter."""
        name = ids.org_id(org)
        await db.run(lambda conn: revoke(conn, name))
        return {"revoked": name}

    return routes
