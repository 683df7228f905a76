"""The attestation's part of the node's API: whether this machine can show evidence, and what is kept of others'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from comity_node.attestation import store
from comity_node.attestation.trust import able

if TYPE_CHECKING:
    from comity_node.context import NodeContext

LISTED_MAX = 500


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1/attestation", tags=["attestation"])

    @api.get("")
    async def state() -> dict[str, Any]:
        """Return whether this node is set up for evidence and can gather it, and the evidence that it keeps."""
        rows = await node.journal.run(lambda conn: store.every(conn, LISTED_MAX))
        kept = [
            {"agreement": agreement, "org": org, "evidence": digest, "since": since}
            for agreement, org, digest, since in rows
        ]
        return {"set_up": node.settings.attestation is not None, "able": able(node.settings), "evidence": kept}

    return api
