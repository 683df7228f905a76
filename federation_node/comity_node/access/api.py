"""The API of access: who is asking, how to log in, the organisation's tokens. Routes ask `principal` who calls."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.model import ROLES, TOKEN_S_MAX, Principal, Token
from comity_node.access.service import TOKEN_S_MIN, AccessService
from comity_node.context import NodeContext


class TokenRequest(BaseModel):
    """A token to issue: to whom, with which roles, for how many seconds."""

    model_config = ConfigDict(extra="forbid")

    user: str = Field(max_length=128)
    roles: list[str] = Field(min_length=1, max_length=len(ROLES))
    valid_s: int = Field(default=30 * 86_400, ge=TOKEN_S_MIN, le=TOKEN_S_MAX)


def principal(request: Request) -> Principal:
    """Return who asks: a dependency of routes (`who: Annotated[Principal, Depends(principal)]`).

    Raises:
        ComityError: `UNAUTHENTICATED` on a route that is open to everybody, where nobody has been asked.
    """
    found = getattr(request.state, "principal", None)
    if not isinstance(found, Principal):
        raise ComityError(ErrorCode.UNAUTHENTICATED, "nobody has signed in")
    return found


Caller = Annotated[Principal, Depends(principal)]


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1/access`."""
    routes = APIRouter(prefix="/v1/access", tags=["access"])
    service = node.services.get(AccessService)

    @routes.get("/me")
    async def me(who: Caller) -> dict[str, Any]:
        """Return the caller's name and roles, as this node sees them now."""
        until = None if who.until is None else instants.to_text(who.until)
        return {"user": who.user, "roles": sorted(who.roles), "via": who.via, "until": until, "org": node.settings.org}

    @routes.get("/login")
    async def how_to_log_in() -> dict[str, Any]:
        """Return what `comity login` needs; nothing of it is secret, and no credentials are asked."""
        found = service.oidc
        if found is None:
            raise ComityError(ErrorCode.UNSUPPORTED, "this node has no identity provider: ask its admin for a token")
        return {"issuer": found.issuer, "client_id": found.client_id or found.audience, "scope": found.scope}

    @routes.post("/tokens", status_code=201)
    async def issue(request: TokenRequest, who: Caller, response: Response) -> dict[str, Any]:
        """Issue a token; its text is in this answer and nowhere else."""
        response.headers["cache-control"] = "no-store"
        issued = await service.issue(who, request.user, frozenset(request.roles), request.valid_s)
        return {**_shown(issued.token, instants.now_text()), "token": issued.text}

    @routes.get("/tokens")
    async def listed() -> list[dict[str, Any]]:
        """List tokens, newest first; never their text."""
        now = instants.now_text()
        return [_shown(each, now) for each in await service.tokens()]

    @routes.post("/tokens/{token_id}/revoke")
    async def revoke(token_id: str, who: Caller) -> dict[str, Any]:
        """End a token, from the next request on."""
        return _shown(await service.revoke(who, token_id), instants.now_text())

    return routes


def _shown(token: Token, now: str) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "user": token.user,
        "roles": sorted(token.roles),
        "state": token.state(now),
        "issued_at": token.issued_at,
        "issued_by": token.issued_by,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at or None,
    }
