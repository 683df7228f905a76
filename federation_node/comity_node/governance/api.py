"""The local API of governance: the draft of the next charter, its signature, the charter in force."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comity_node.context import NodeContext
from comity_node.governance.service import GovernanceService


class SignRequest(BaseModel):
    """The digest or name of the charter, typed by a person who has compared it."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(min_length=24, max_length=200)


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1", tags=["governance"])
    service = node.services.get(GovernanceService)

    @api.get("/genesis")
    async def draft() -> dict[str, Any]:
        """Return the draft of the next charter, and which one is in force."""
        shown = (await service.draft()).to_json()
        return {"draft": shown, "in_force": node.charters.genesis_name(), "own": node.keys.public.fingerprint()}

    @api.post("/genesis/sign")
    async def sign(request: SignRequest) -> dict[str, bool]:
        """Sign the draft with the given digest."""
        return {"final": await service.sign(request.digest)}

    @api.get("/charter")
    async def charter() -> dict[str, Any]:
        """Return the charter in force."""
        found = node.charters.in_force()
        return {"digest": found.digest, "genesis": node.charters.genesis_name(), "charter": found.to_json()}

    return api
