"""The local API of membership: invitations and certificates."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comity_node.context import NodeContext
from comity_node.membership import service


class InvitationRequest(BaseModel):
    """Whom to invite, and for how long the token works."""

    model_config = ConfigDict(extra="forbid")

    org: str = Field(max_length=63)
    valid_s: int = Field(default=service.INVITATION_VALID_S, ge=60, le=service.INVITATION_VALID_S)


class Invitation(BaseModel):
    """A join token: a secret to hand to the newcomer's admin, together with nothing else."""

    org: str
    token: str
    genesis: str | None


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1", tags=["membership"])

    @api.post("/invitations")
    async def invite(request: InvitationRequest) -> Invitation:
        """Sponsor a newcomer: returns a single-use join token."""
        genesis = node.charters.genesis_name()
        token = await service.invite(
            node.dialer,
            node.keys,
            node.settings,
            request.org,
            genesis,
            authority_pem=node.keystore.tls_paths().ca.read_bytes(),
            valid_s=request.valid_s,
        )
        return Invitation(org=request.org, token=token, genesis=genesis)

    @api.post("/link/redial")
    async def redial() -> dict[str, bool]:
        """Dial the coordinator again now, with the certificate on disk."""
        node.link.redial()
        return {"redialled": True}

    return api
