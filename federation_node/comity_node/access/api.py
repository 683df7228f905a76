"""The API of access: who is asking. Every other route takes its caller from `principal`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.model import Principal
from comity_node.context import NodeContext


def principal(request: Request) -> Principal:
    """Return who asks: a dependency of routes (`who: Annotated[Principal, Depends(principal)]`).

    Raises:
        ComityError: `UNAUTHENTICATED` on a route that is open to everybody, where nobody has been asked.
    """
    found = getattr(request.state, "principal", None)
    if not isinstance(found, Principal):
        raise ComityError(ErrorCode.UNAUTHENTICATED, "nobody has signed in")
    return found


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1/access`."""
    routes = APIRouter(prefix="/v1/access", tags=["access"])

    @routes.get("/me")
    async def me(request: Request) -> dict[str, Any]:
        """Return the caller's name and roles, as this node sees them."""
        who = principal(request)
        return {"user": who.user, "roles": sorted(who.roles), "via": who.via}

    return routes
