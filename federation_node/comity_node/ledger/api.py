"""The local API of the ledger: this node's proofs and a verified export."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from comity.wire import ids
from comity_node.access.api import Caller
from comity_node.context import NodeContext
from comity_node.ledger.service import LedgerService

REASON_CHARS_MAX = 400


class AcknowledgeRequest(BaseModel):
    """Why work may go on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reason: str = Field(min_length=1, max_length=REASON_CHARS_MAX)


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1/ledger", tags=["ledger"])
    service = node.services.get(LedgerService)

    @api.get("")
    async def state() -> dict[str, Any]:
        """Return what of this node is proved, what it has read, what is final, who is awaited, incidents."""
        return await service.state()

    @api.get("/proof/{digest}")
    async def proof(digest: str) -> dict[str, Any]:
        """Return the entry with this digest and the proof that it is in the ledger, both verified here."""
        return await service.prove(ids.sha256_hex(digest))

    @api.post("/incidents/{incident}/acknowledge")
    async def acknowledge(incident: str, request: AcknowledgeRequest, who: Caller) -> dict[str, Any]:
        """Take work up again after an incident, from what the coordinator shows now."""
        return await service.acknowledge(incident, who.user, request.reason)

    @api.get("/export")
    async def export() -> FileResponse:
        """Return the whole ledger as JSON lines; its root was verified against the signed checkpoint."""
        path = node.settings.home / f"{ids.new_id('export')}.jsonl"
        try:
            await service.export(path)
        except BaseException:  # also a caller that went away leaves no file
            path.unlink(missing_ok=True)
            raise
        return FileResponse(path, media_type="application/jsonl", background=BackgroundTask(path.unlink, True))

    return api
