"""Retention's part of the node's API: what will go when, what has gone, and to do it now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from comity_node.retention.service import RetentionService

if TYPE_CHECKING:
    from comity_node.context import NodeContext


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1/retention", tags=["retention"])

    @api.get("")
    async def state() -> dict[str, Any]:
        """Return the runs whose data will go, with the instant, and the newest deletions."""
        return await node.services.get(RetentionService).describe()

    @api.post("/run")
    async def run() -> dict[str, Any]:
        """Drop now what is due, and return it."""
        done = await node.services.get(RetentionService).run()
        return {"deleted": [each.to_json() for each in done]}

    return api
