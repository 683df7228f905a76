"""The local API of the policy: which bundle decides, and loading it anew."""

from __future__ import annotations

from fastapi import APIRouter

from comity_node.context import NodeContext
from comity_node.policy.engine import ReloadablePolicy


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1/policy", tags=["policy"])

    @api.get("")
    async def show() -> dict[str, str]:
        """Return engine and bundle in force."""
        return {"engine": node.policy.name, "bundle": node.policy.bundle_digest}

    @api.post("/reload")
    async def reload() -> dict[str, str]:
        """Load the policy folder anew; a bundle that does not hold changes nothing."""
        assert isinstance(node.policy, ReloadablePolicy)
        return {"engine": node.policy.name, "bundle": await node.policy.reload()}

    return api
