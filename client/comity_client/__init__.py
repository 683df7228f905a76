"""Comity's Python SDK: typed clients of a node's local API and of the coordinator's REST API, sync and async."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comity_client.sdk import AsyncCoordinator, AsyncNode, Coordinator, Node

__all__ = ["AsyncCoordinator", "AsyncNode", "Coordinator", "Node"]


def __getattr__(name: str) -> Any:
    """Load the SDK when it is first used: the command line of a long-lived node needs none of it."""
    if name in __all__:
        from comity_client import sdk

        return getattr(sdk, name)
    raise AttributeError(name)
